"""Every layout and every refusal of `accord.data.sources`, on small files and on real ones."""

import bz2
import csv
import gzip
import json
import lzma
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.data.records import Judgement, Message, Record, Response, from_table, to_table
from accord.data.sources import FORMATS, LAYOUTS, bundled, load, source_name
from accord.errors import ConfigError, RecordError

DATA = Path(__file__).parents[1] / os.environ.get("ACCORD_DATA", "../shared/data")


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"real data {name} is absent (ACCORD_DATA)")
    return path


def write(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def one(tmp_path: Path, row, **kwargs) -> Record:
    (record,) = load(write(tmp_path / "one.jsonl", row), **kwargs).records
    return record


def said(record: Record) -> list[tuple]:
    return [(j.kind, j.response if j.pair is None else j.pair, j.value) for j in record.judgements]


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


U, A, S = "user", "assistant", "system"


# -- layouts ----------------------------------------------------------------------------------------------------------

PREFERRED = ("preference", (0, 1), 1.0)
CASES = {
    # name: (row, layout, prompt as (role, content) or text, responses' texts, judgements)
    "pair": ({"prompt": "p", "chosen": "a", "rejected": "b"}, "prompt/chosen/rejected", "p", ["a", "b"], [PREFERRED]),
    "pair with all that is known": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "strength": 0.8, "score_chosen": 5,
         "metadata": {"score_rejected": 3.0, "other": 1}},
        "prompt/chosen/rejected", "p", ["a", "b"],
        [("preference", (0, 1), 0.8), ("preference", (0, 1), 2.0), ("score", 0, 5.0), ("score", 1, 3.0)],
    ),
    "pair as messages": (
        {"prompt": turns((S, "s"), (U, "p")), "chosen": turns((A, "a")), "rejected": turns((A, "b"))},
        "prompt/chosen/rejected", [(S, "s"), (U, "p")], ["a", "b"], [PREFERRED],
    ),
    "pair whose answers repeat the prompt": (
        {"prompt": "p", "chosen": turns((U, "p"), (A, "a")), "rejected": turns((U, "p"), (A, "b"))},
        "prompt/chosen/rejected", [(U, "p")], ["a", "b"], [PREFERRED],
    ),
    "pair, prompt inside": (
        {"chosen": turns((U, "p"), (A, "x"), (U, "q"), (A, "a")),
         "rejected": turns((U, "p"), (A, "x"), (U, "q"), (A, "b"))},
        "chosen/rejected", [(U, "p"), (A, "x"), (U, "q")], ["a", "b"], [PREFERRED],
    ),
    "pair, both the same": (
        {"chosen": turns((U, "p"), (A, "a")), "rejected": turns((U, "p"), (A, "a"))},
        "chosen/rejected", [(U, "p")], ["a", "a"], [PREFERRED],
    ),
    "hh": (
        {"chosen": "\n\nHuman: p\n\nAssistant: a\n\nx", "rejected": "\n\nHuman: p\n\nAssistant: b "},
        "hh", [(U, "p")], ["a\n\nx", "b"], [PREFERRED],
    ),
    "hh, one answer in two turns": (
        {"chosen": "\n\nHuman: p\n\nAssistant: a\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: b"},
        "hh", [(U, "p")], ["a\n\nc", "b"], [PREFERRED],
    ),
    "sharegpt pair": (
        {"conversations": [{"from": "human", "value": "p"}], "chosen": {"from": "gpt", "value": "a"},
         "rejected": {"from": "gpt", "value": "b"}, "system": "s"},
        "conversations/chosen/rejected", [(S, "s"), (U, "p")], ["a", "b"], [PREFERRED],
    ),
    "messages": ({"messages": turns((S, "s"), (U, "p"), (A, "a"))}, "messages", [(S, "s"), (U, "p")], ["a"], []),
    "messages with several answers": (
        {"messages": turns((U, "p"), (A, "a"), (U, "q"), (A, "b"))}, "messages", [(U, "p")], ["a\n\nb"], [],
    ),
    "messages with a label": (
        {"messages": turns((U, "p"), (A, "a"), (U, "q"), (A, "b")), "label": False},
        "prompt/completion/label", [(U, "p"), (A, "a"), (U, "q")], ["b"], [("label", 0, 0.0)],
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "a"}]},
        "sharegpt", [(U, "p")], ["a"], [],
    ),
    "completion": ({"prompt": "p", "completion": "a"}, "prompt/completion", "p", ["a"], []),
    "response": ({"prompt": "p", "response": "a"}, "prompt/completion", "p", ["a"], []),
    "empty prompt": ({"prompt": "", "output": "a"}, "prompt/completion", "", ["a"], []),
    "system": ({"system": "s", "prompt": "p", "output": "a"}, "prompt/completion", [(S, "s"), (U, "p")], ["a"], []),
    "label": (
        {"prompt": "p", "completion": "a", "label": True}, "prompt/completion/label", "p", ["a"],
        [("label", 0, 1.0)],
    ),
    "label 0": (
        {"prompt": "p", "completion": "a", "label": 0}, "prompt/completion/label", "p", ["a"],
        [("label", 0, 0.0)],
    ),
    "label as text": (
        {"prompt": "p", "completion": "a", "label": "False"}, "prompt/completion/label", "p", ["a"],
        [("label", 0, 0.0)],
    ),
    "rating": (
        {"prompt": "p", "response": "a", "rating": 7}, "prompt/response/rating", "p", ["a"], [("score", 0, 7.0)],
    ),
    "score": (
        {"prompt": "p", "completion": "a", "score": 7, "scale": [0, 10]}, "prompt/response/rating", "p", ["a"],
        [("score", 0, 7.0)],
    ),
    "scores": (
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, None, 1]},
        "prompt/responses/scores", "p", ["a", "b", "c"], [("score", 0, 1.0), ("score", 2, 1.0)],
    ),
    "labels": (
        {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
        "prompt/responses/scores", "p", ["a", "b"], [("label", 0, 1.0), ("label", 1, 0.0)],
    ),
    "ranks": (
        {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 0]},
        "prompt/responses/scores", "p", ["a", "b"], [("rank", 0, 1.0), ("rank", 1, 0.0)],
    ),
    "ranking, best first": (
        {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [3, 1, 2]},
        "prompt/responses/scores", "p", ["a", "b", "c"], [("rank", 0, 1.0), ("rank", 1, 2.0), ("rank", 2, 0.0)],
    ),
    "alpaca": ({"instruction": "i", "input": "x", "output": "a"}, "alpaca", "i\n\nx", ["a"], []),
    "alpaca without input": ({"instruction": "i", "input": "", "output": "a"}, "alpaca", "i", ["a"], []),
    "prompts": ({"prompt": "p", "split": "test"}, "prompt", "p", [], []),
    "record": (
        {"prompt": "p", "responses": [{"text": "a"}], "judgements": [{"kind": "label", "response": 0, "value": 1}]},
        "record", "p", ["a"], [("label", 0, 1.0)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layout(name, tmp_path):
    row, layout, prompt, texts, judgements = CASES[name]
    loaded = load(write(tmp_path / "some.data.jsonl", row))
    (record,) = loaded.records
    assert loaded.layout == layout
    assert loaded.told.startswith("some.data.jsonl: ")
    assert "1 " in loaded.told
    if isinstance(prompt, str):
        assert record.prompt == prompt
    else:
        assert [(m.role, m.content) for m in record.messages] == prompt
    assert [r.plain_text for r in record.responses] == texts
    assert said(record) == judgements
    assert (record.origin.file, record.origin.line) == (str(tmp_path / "some.data.jsonl"), 1)
    assert record.source == source_name(tmp_path / "some.data.jsonl") == "some"


def test_every_layout_has_a_case():
    assert {layout for _, layout, *_ in CASES.values()} == {entry.name for entry in LAYOUTS}
    assert len({entry.description for entry in LAYOUTS}) == len(LAYOUTS)


def test_margin_and_scale_are_kept_as_what_they_are(tmp_path):
    pair = one(tmp_path, CASES["pair with all that is known"][0])
    assert [j.margin for j in pair.judgements] == [False, True, False, False]
    assert one(tmp_path, CASES["score"][0]).judgements[0].scale == (0, 10)


def test_several_assistant_turns_stay_turns(tmp_path):
    record = one(tmp_path, CASES["messages with several answers"][0])
    assert [m.role for m in record.responses[0].messages] == [A, U, A]


def test_tools_and_tool_calls_are_kept(tmp_path):
    call = {"type": "function", "function": {"name": "now", "arguments": {"zone": None}}}
    tools = [{"type": "function", "function": {"name": "now"}}]
    dialogue = [*turns((U, "when?")), {"role": A, "tool_calls": [call]}, *turns(("tool", "noon"), (A, "Noon."))]
    record = one(tmp_path, {"messages": dialogue, "tools": tools})
    assert record.tools == tuple(tools)
    assert record.responses[0].messages[0].plain() == {"role": A, "tool_calls": [call], "content": ""}
    share = [
        ("human", "when?"),
        ("function_call", '{"name": "now", "arguments": {}}'),
        ("observation", "noon"),
        ("gpt", "Noon."),
    ]
    record = one(tmp_path, {"conversations": [{"from": f, "value": v} for f, v in share], "tools": json.dumps(tools)})
    assert record.tools == tuple(tools)
    assert record.responses[0].messages[0].plain()["tool_calls"][0]["function"]["name"] == "now"
    assert [m.role for m in record.responses[0].messages] == [A, "tool", A]


def test_columns_are_renamed_and_the_rest_is_named(tmp_path):
    file = write(tmp_path / "qa.jsonl", {"question": "p", "answer": "a", "who": "ann", "w": 2, "note": 1})
    loaded = load(
        file, columns={"prompt": "question", "completion": "answer", "source": "who", "weight": "w"}, weight=3
    )
    (record,) = loaded.records
    assert (record.prompt, record.source, record.weight) == ("p", "ann", 6.0)
    assert loaded.told == "qa.jsonl: prompt and completion, 1 demonstration; columns not used: note"
    assert load(file, columns={"prompt": "question", "completion": "answer"}, source="mine").records[0].source == "mine"


def test_a_source_column_is_not_taken_unasked(tmp_path):
    loaded = load(write(tmp_path / "a.jsonl", {"prompt": "p", "completion": "a", "source": "web", "weight": 9}))
    assert (loaded.records[0].source, loaded.records[0].weight) == ("a", 1.0)
    assert loaded.told.endswith("columns not used: source, weight")


def test_own_records_keep_source_weight_and_origin(tmp_path):
    row = {"prompt": "p", "responses": [{"text": "a"}], "source": "s", "weight": 2, "origin": {"file": "x", "line": 9}}
    record = one(tmp_path, row, weight=2)
    assert (record.source, record.weight, record.origin.line) == ("s", 4.0, 9)
    assert one(tmp_path, row, source="t").source == "t"


def test_layout_can_be_named(tmp_path):
    file = write(tmp_path / "a.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b", "completion": "c"})
    assert load(file).layout == "prompt/chosen/rejected"
    assert load(file, layout="prompt/completion").records[0].responses[0].text == "c"
    with pytest.raises(ConfigError, match="did you mean 'messages'"):
        load(file, layout="message")


# -- files ------------------------------------------------------------------------------------------------------------

ROWS = [
    {"prompt": "زين 🦊", "chosen": "a\nb", "rejected": 'c, "d"'},
    {"prompt": "e\u0301\x00", "chosen": "x\r\ny", "rejected": "z"},
]


def as_bytes(kind: str) -> bytes:
    if kind == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        return sink.getvalue().to_pybytes()
    if kind == ".json":
        return json.dumps({"data": ROWS}).encode()
    if kind in (".csv", ".tsv"):
        lines: list[str] = []
        writer = csv.DictWriter(
            type("", (), {"write": lines.append}), ROWS[0], delimiter="\t" if kind == ".tsv" else ","
        )
        writer.writeheader()
        writer.writerows(ROWS)
        return "".join(lines).encode()
    return "".join(json.dumps(row) + "\r\n" for row in ROWS).encode()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".xz"])
def test_every_format_and_compression(kind, packed, tmp_path):
    file = tmp_path / f"set{kind}{packed}"
    compress = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[packed]
    file.write_bytes(compress(as_bytes(kind)))
    loaded = load(file)
    assert [(r.prompt, *(a.text for a in r.responses)) for r in loaded.records] == [tuple(row.values()) for row in ROWS]
    assert [r.origin.line for r in loaded.records] == ([2, 4] if kind in (".csv", ".tsv") else [1, 2])
    assert loaded.told == f"set{kind}{packed}: prompt, chosen and rejected, 2 pairs"


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_byte_order_mark(kind, tmp_path):
    (tmp_path / f"a{kind}").write_bytes(b"\xef\xbb\xbf" + as_bytes(kind))
    assert load(tmp_path / f"a{kind}").records[0].prompt == ROWS[0]["prompt"]


def test_lines_named_json(tmp_path):
    (tmp_path / "a.json").write_bytes(as_bytes(".jsonl"))
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    assert len(load(tmp_path / "a.json").records) == len(load(tmp_path / "b.json").records) == 2


def test_csv_cells_hold_numbers_labels_lists_and_messages(tmp_path):
    def table(*rows):
        with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        return load(tmp_path / "a.csv").records

    assert said(*table(["prompt", "completion", "label"], ["p", "a", "true"])) == [("label", 0, 1.0)]
    assert said(*table(["prompt", "completion", "rating"], ["p", "a", "7.5"])) == [("score", 0, 7.5)]
    assert said(*table(["prompt", "responses", "scores"], ["p", '["a", "b"]', "[1, 2]"])) == [
        ("score", 0, 1),
        ("score", 1, 2),
    ]
    sides = [json.dumps(turns((U, "p"), (A, text))) for text in "ab"]
    assert [r.text for r in table(["chosen", "rejected"], sides)[0].responses] == ["a", "b"]
    assert (
        table(["prompt", "completion"], ["p", '[{"a": 1}]'])[0].responses[0].text == '[{"a": 1}]'
    )  # JSON can be an answer
    assert table(["prompt", "completion", "margin"], ["", "a", ""])[0].prompt == ""


def test_folder_glob_and_what_is_left(tmp_path):
    folder = tmp_path / "mine"
    (folder / "inner").mkdir(parents=True)
    write(folder / "a.jsonl", ROWS[0])
    write(folder / "inner" / "b.jsonl", {"messages": turns((U, "p"), (A, "a"))})
    (folder / "README.md").write_text("words")
    loaded = load(folder)
    assert loaded.layout == "prompt/chosen/rejected + messages"
    assert {r.source for r in loaded.records} == {"mine"}
    assert loaded.told == (
        "mine: prompt, chosen and rejected, 1 pair; messages (each assistant turn is trained), 1 demonstration; "
        "2 files; not data, left out: README.md"
    )
    assert [r.source for r in load(str(folder / "**/*.jsonl")).records] == ["a", "b"]


def test_parquet_nulls_in_turns_are_not_facts(tmp_path):
    dialogue = [*turns((U, "p")), {"role": A, "content": "a", "name": "bot"}]
    pq.write_table(pa.Table.from_pylist([{"messages": dialogue}]), tmp_path / "a.parquet")
    (record,) = load(tmp_path / "a.parquet").records
    assert record.messages == (Message(role=U, content="p"),)


def test_bundled_names(monkeypatch, tmp_path):
    file = write(tmp_path / "verses.jsonl", ROWS[0])
    monkeypatch.setattr("accord.data.sources.bundled", lambda: {"verses": file})
    monkeypatch.chdir(tmp_path.parent)
    loaded = load("verses")
    assert (loaded.records[0].source, loaded.records[0].origin.file) == ("verses", "verses")
    with pytest.raises(RecordError, match="Did you mean 'verses'"):
        load("verse")


def test_everything_bundled_loads():
    for name in bundled():
        assert load(name).records, name


# -- refusals ---------------------------------------------------------------------------------------------------------

PROMPT = {"prompt": "p", "completion": "a"}
BAD_ROWS = {
    # name: (row, field, part of the message, part of the remedy)
    "null": ({"prompt": None, "completion": "a"}, "prompt", "missing or null", "on_bad_record"),
    "missing": ({"prompt": "p"}, "completion", "missing or null", "on_bad_record"),
    "list for text": ({"prompt": "p", "completion": ["a"]}, "completion.0", "a turn with role", "on_bad_record"),
    "number for text": ({"prompt": "p", "completion": 3}, "completion", "not a number", "on_bad_record"),
    "empty response": ({"prompt": "p", "completion": " \n"}, "completion", "the response is empty", "on_bad_record"),
    "half a character": ({"prompt": "p", "completion": "\ud83d"}, "completion", "half a character", "on_bad_record"),
}  # fmt: skip
BAD_FIRST_ROWS = {
    "text label": ({**PROMPT, "label": "good"}, "label", "true or false", 'column "rating"'),
    "null label": ({**PROMPT, "label": None}, "label", "missing or null", "on_bad_record"),
    "label 2": ({**PROMPT, "label": 2}, "label", "true or false", 'column "rating"'),
    "nan": ({**PROMPT, "rating": float("nan")}, "rating", "nan", "on_bad_record"),
    "infinite": ({**PROMPT, "score": float("inf")}, "score", "inf", "on_bad_record"),
    "text rating": ({**PROMPT, "rating": "great"}, "rating", "a number is expected", "on_bad_record"),
    "true as rating": ({**PROMPT, "rating": True}, "rating", "not true or false", "on_bad_record"),
    "outside scale": ({**PROMPT, "rating": 11, "scale": [0, 10]}, "rating", "outside its scale", "on_bad_record"),
    "no scale": ({**PROMPT, "rating": 11, "scale": [10]}, "scale", "[lowest, highest]", "on_bad_record"),
    "strength 2": (
        {"prompt": "p", "chosen": "a", "rejected": "b", "strength": 2}, "strength", "no probability", "'margin'",
    ),
    "plain text pair": ({"chosen": "p a", "rejected": "p b"}, "chosen", "transcript", "Add a 'prompt' column"),
    "nothing shared": (
        {"chosen": turns((U, "p"), (A, "a")), "rejected": turns((U, "q"), (A, "b"))},
        "rejected", "share no turn", "'prompt' column",
    ),
    "other prompts": (
        {"chosen": turns((U, "p"), (A, "a"), (U, "q"), (A, "a")),
         "rejected": turns((U, "p"), (A, "a"), (U, "r"), (A, "a"))},
        "chosen", "different prompts", "one prompt",
    ),
    "prompt and dialogue differ": (
        {"prompt": "x", "chosen": turns((U, "p"), (A, "a")), "rejected": turns((U, "p"), (A, "b"))},
        "chosen", "another prompt", "on_bad_record",
    ),
    "user has the last word": (
        {"messages": turns((U, "p"), (A, "a"), (U, "q"))}, "messages", "nobody answers", "on_bad_record",
    ),
    "no answer": ({"messages": turns((U, "p"))}, "messages", "no assistant turn", "on_bad_record"),
    "no question": ({"messages": turns((A, "p"))}, "messages", "no prompt", "on_bad_record"),
    "no turns": ({"messages": []}, "messages", "no turns", "on_bad_record"),
    "unknown role": ({"messages": turns(("asistant", "p"))}, "messages.0.role", "'asistant'", "'assistant'"),
    "empty turn": ({"messages": [{"role": "user"}]}, "messages.0.content", "without content", "on_bad_record"),
    "empty answer": ({"messages": turns((U, "p"), (A, ""))}, "messages", "the response is empty", "on_bad_record"),
    "lengths": (
        {"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "scores", "1 values for 2", "one value for each",
    ),
    "ranking": ({"prompt": "p", "responses": ["a", "b"], "ranking": [1, 1]}, "ranking", "once", "'ranks'"),
    "unjudged": ({"prompt": "p", "responses": ["a"], "scores": [None]}, "scores", "none of the", "on_bad_record"),
    "two systems": (
        {"system": "s", "messages": turns((S, "t"), (U, "p"), (A, "a"))}, "system", "of its own", "Keep one",
    ),
    "record field": (
        {"prompt": "p", "responses": [{"text": "a", "txt": 1}]}, "responses.0.txt", "not part of", "on_bad_record",
    ),
    "record judgement": (
        {"prompt": "p", "responses": [{"text": "a"}], "judgements": [{"kind": "score", "response": 4, "value": 1}]},
        None, "names response 4", "on_bad_record",
    ),
}  # fmt: skip


def refused(file, **kwargs) -> RecordError:
    with pytest.raises(RecordError) as caught:
        load(file, **kwargs)
    error = caught.value
    assert error.remedy
    assert error.remedy in str(error)
    assert error.file in str(error)
    return error


@pytest.mark.parametrize("name", [*BAD_ROWS, *BAD_FIRST_ROWS])
def test_bad_row(name, tmp_path):
    row, field, what, remedy = (BAD_ROWS | BAD_FIRST_ROWS)[name]
    good = [PROMPT] if name in BAD_ROWS else []
    file = tmp_path / "bad.jsonl"
    file.write_text("\n" + "".join(json.dumps(r) + "\n" for r in [*good, row]))
    error = refused(file)
    assert (error.file, error.line, error.field) == (str(file), 2 + len(good), field)
    assert what in str(error)
    assert remedy in error.remedy
    if good:
        loaded = load(file, on_error="skip")
        assert len(loaded.records) == 1
        (problem,) = loaded.problems
        assert (problem.line, problem.field, problem.what) == (error.line, field, error.what)
        assert f"1 row skipped ({problem.what} in {field!r}: 1)" in loaded.told
    else:
        assert "none of the 1 rows can be read" in str(refused(file, on_error="skip"))


def test_not_json(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(PROMPT) + '\n{"prompt": "p\n[1]\n' + json.dumps(PROMPT))
    error = refused(file)
    assert (error.line, "not JSON" in str(error)) == (2, True)
    loaded = load(file, on_error="skip")
    assert ([p.line for p in loaded.problems], [r.origin.line for r in loaded.records]) == ([2, 3], [1, 4])
    assert "not a list" in loaded.problems[1].what
    (tmp_path / "b.json").write_text("[\n{},\n{")
    assert refused(tmp_path / "b.json").line == 3
    (tmp_path / "c.json").write_text('{"a": 1}')
    assert "'data'" in refused(tmp_path / "c.json").remedy


def test_wrong_encoding(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"prompt": "p", "completion": "a"}\n{"prompt": "caf\xe9", "completion": "a"}\n')
    error = refused(file)
    assert (error.line, "0xe9" in str(error), "UTF-8" in error.remedy) == (2, True, True)
    assert len(load(file, on_error="skip").records) == 1
    (tmp_path / "a.csv").write_bytes(b"prompt,completion\np,a\ncaf\xe9,a\n")
    assert refused(tmp_path / "a.csv", on_error="skip").line == 3
    file.write_bytes(json.dumps(PROMPT).encode("utf-16"))
    assert "UTF-16" in str(refused(file))


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_truncated_or_damaged(suffix, compress, tmp_path):
    whole = compress("".join(json.dumps(PROMPT | {"n": i}) + "\n" for i in range(20_000)).encode())
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(whole[: len(whole) // 2])
    error = refused(file, on_error="skip")
    assert "damaged" in str(error)
    assert error.line is not None
    file.write_bytes(b"these are no compressed bytes")
    assert "damaged" in str(refused(file))


def test_truncated_parquet_and_tables(tmp_path):
    (tmp_path / "a.parquet").write_bytes(as_bytes(".parquet")[:-20])
    assert "Parquet" in str(refused(tmp_path / "a.parquet"))
    (tmp_path / "a.csv").write_text('prompt,completion\np,a\n"p,a\n')
    assert (error := refused(tmp_path / "a.csv")).line == 3
    assert "quotes" in error.remedy
    (tmp_path / "a.csv").write_text("prompt,completion\np,a\np,a,b\n")
    assert (refused(tmp_path / "a.csv").line, len(load(tmp_path / "a.csv", on_error="skip").records)) == (3, 1)
    (tmp_path / "a.csv").write_text("prompt,prompt\np,a\n")
    assert "same name" in str(refused(tmp_path / "a.csv"))
    (tmp_path / "a.csv").write_text("prompt;completion\np;a\n")
    assert "tabs" in refused(tmp_path / "a.csv").remedy


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_empty_file(kind, tmp_path):
    (tmp_path / f"a{kind}").write_bytes(gzip.compress(b"\n") if kind.endswith(".gz") else b"")
    assert "empty" in str(refused(tmp_path / f"a{kind}", on_error="skip"))


def test_paths(tmp_path):
    write(tmp_path / "feedback.jsonl", PROMPT)
    assert "'feedback.jsonl'" in refused(tmp_path / "fedback.jsonl").remedy
    assert "does not exist" in str(refused(tmp_path / "nowhere" / "a.jsonl"))
    assert "no file" in str(refused(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    assert "no data file" in str(refused(tmp_path / "empty"))
    (tmp_path / "a.txt").write_text("x")
    assert ".jsonl" in refused(tmp_path / "a.txt").remedy
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([PROMPT]))
    assert "run code" in str(refused(tmp_path / "a.pkl"))
    with pytest.raises(ConfigError, match="on_error"):
        load(tmp_path / "feedback.jsonl", on_error="ignore")
    with pytest.raises(ConfigError, match="weight"):
        load(tmp_path / "feedback.jsonl", weight=0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable(tmp_path):
    file = write(tmp_path / "a.jsonl", PROMPT)
    file.chmod(0)
    assert "cannot be read" in str(refused(file))


def test_unknown_layouts_suggest_what_to_type(tmp_path):
    file = tmp_path / "a.jsonl"
    assert (
        "'prompt': 'question', 'completion': 'answer'" in refused(write(file, {"question": "p", "answer": "a"})).remedy
    )
    assert "'responses': 'answers'" in refused(write(file, {"query": "p", "answers": ["a"]})).remedy
    assert "'completion'" in refused(write(file, {"text": "once upon a time"})).remedy
    assert "columns={'messages': 'text'}" in refused(write(file, {"text": "\n\nHuman: p\n\nAssistant: a"})).remedy
    assert load(file, columns={"messages": "text"}).records[0].messages[0].content == "p"
    assert refused(write(file, {"prompt": "p", "reply": "a"}), on_error="skip").line == 1
    error = refused(write(file, {"question": "p", "answer": "a"}), columns={"prompt": "qestion"})
    assert (error.field, "'question'" in error.remedy) == ("qestion", True)


def test_a_later_row_of_another_layout_is_not_read_as_the_first(tmp_path):
    file = write(tmp_path / "a.jsonl", PROMPT, {**PROMPT, "label": False}, {**PROMPT, "note": 1})
    error = refused(file)
    assert (error.line, error.field, "different files" in error.remedy) == (2, "label", True)
    loaded = load(file, on_error="skip")
    assert ([r.origin.line for r in loaded.records], len(loaded.problems)) == ([1, 3], 1)


# -- real files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pairs", "empty"), [("harmless", 2308, "chosen"), ("helpful", 2348, "rejected")])
def test_real_hh(name, pairs, empty):
    file = real(f"hh/{name}-base.test.jsonl.gz")
    assert "the response is empty" in str(refused(file))
    loaded = load(file, on_error="skip")
    assert (len(loaded.records), len(loaded.problems)) == (pairs, 4)
    assert loaded.told == (
        f"{name}-base.test.jsonl.gz: HH transcripts (chosen/rejected), {pairs:,} pairs; "
        f"4 rows skipped (the response is empty in {empty!r}: 4)"
    )
    for record in loaded.records:
        assert record.messages[0].role == U
        assert all(not text.startswith((" ", "\n")) for text in (r.plain_text for r in record.responses))


def test_real_ultrafeedback():
    loaded = load(real("pairwise/ultrafeedback-binarized.train1000.jsonl.gz"), on_error="skip")
    assert (len(loaded.records), [p.line for p in loaded.problems]) == (998, [479, 834])
    assert "998 pairs with scores" in loaded.told
    assert loaded.told.endswith("columns not used: source_index")
    assert said(loaded.records[0]) == [PREFERRED, ("score", 0, 9.0), ("score", 1, 8.0)]


def test_real_sharegpt_pairs():
    loaded = load(real("pairwise/dpo-en-demo.jsonl.gz"))
    assert loaded.told == "dpo-en-demo.jsonl.gz: ShareGPT with chosen and rejected, 300 pairs"
    assert sum(r.messages[0].role == S for r in loaded.records) == 80


def test_real_lists_and_demonstrations():
    webgpt = load(real("multi-source/webgpt.test.jsonl.gz"), columns={"prompt": "question", "responses": "answers"})
    assert "901 rated lists" in webgpt.told
    gsm = load(real("math/gsm8k.test.jsonl.gz"), columns={"prompt": "question", "completion": "answer"})
    assert "1,319 demonstrations" in gsm.told
    assert "'completion': 'answer'" in refused(real("math/gsm8k.test.jsonl.gz")).remedy


# -- round trips ------------------------------------------------------------------------------------------------------

words = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)


@st.composite
def records(draw):
    n = draw(st.integers(1, 4))
    dialogue = st.lists(st.builds(Message, role=st.sampled_from([S, U, "tool"]), content=words), min_size=1, max_size=3)
    judgements = []
    for i in range(n):
        judgements.append(Judgement(kind="score", response=i, value=draw(numbers), attribute=draw(words)))
        if i:
            judgements.append(
                Judgement(
                    kind="preference",
                    pair=(i, i - 1),
                    value=draw(st.floats(0, 1, allow_subnormal=False)),
                    by=draw(words),
                )
            )
    return Record(
        prompt=draw(st.one_of(words, dialogue.map(tuple))),
        responses=[Response(text=draw(words), finish=draw(st.sampled_from(["stop", "length"]))) for _ in range(n)],
        judgements=judgements,
        tools=draw(st.one_of(st.none(), st.just(({"name": "f", "arguments": {"x": None}},)))),
        source=draw(words),
        weight=draw(st.floats(0.1, 10, allow_subnormal=False)),
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(records(), min_size=1, max_size=3))
def test_json_and_arrow_round_trip(made):
    assert [Record.from_json(r.to_json()) for r in made] == made
    assert from_table(to_table(made)) == made
    assert [Record.from_json(r.to_json()).id for r in made] == [r.id for r in made]


@settings(max_examples=15, deadline=None)
@given(made=st.lists(records(), min_size=1, max_size=3))
def test_records_load_as_they_were_written(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("round")
    (folder / "r.jsonl").write_text("".join(r.to_json() + "\n" for r in made), encoding="utf-8", newline="")
    pq.write_table(to_table(made), folder / "r.parquet")
    for name in ("r.jsonl", "r.parquet"):
        found = load(folder / name).records
        assert [r.id for r in found] == [r.id for r in made]
        assert [r.weight for r in found] == [r.weight for r in made]
