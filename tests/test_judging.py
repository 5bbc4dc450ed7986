"""`accord judge` and `accord sample --judge`: nothing judged is lost or asked twice, and what is kept trains."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from accord.data import sources
from accord.data.chat import Chat
from accord.data.records import Judgement, Record, Response
from accord.data.views import Counts, ViewOptions, view
from accord.engine import models
from accord.errors import AccordError, ConfigError
from accord.judges.files import judge_into
from accord.judges.frame import Scored, Unjudged
from accord.judges.keep import keep
from accord.judges.table import find
from accord.sampling.local import answer
from tests.conftest import ROOT, pair_records

torch.set_num_threads(1)


def records(n: int = 10) -> list[Record]:
    return [
        Record(prompt=f"Number {i}.", responses=[Response(text="word " * (i % 4 + k)) for k in range(1, 4)])
        for i in range(n)
    ]


def write(path: Path, made: list[Record]) -> Path:
    path.write_text("".join(r.to_json() + "\n" for r in made), encoding="utf-8")
    return path


class Counting(Scored):
    """A judge that remembers which prompts it was asked about."""

    def __init__(self, by: str = "counting") -> None:
        self.asked: list[str] = []
        super().__init__(self._score, by)

    def _score(self, records, say):
        self.asked += [r.prompt for r in records]
        return [[float(len(a.plain_text)) for a in r.responses] for r in records]


# -- files ------------------------------------------------------------------------------------------------------------


def test_what_is_judged_is_in_the_file_and_is_not_asked_again(tmp_path) -> None:
    judge, output = Counting(), tmp_path / "o.jsonl"
    judge_into(output, records(6), [judge], batch=4)
    whole = output.read_bytes()
    story = judge_into(output, records(10), [judge], batch=4)
    assert judge.asked == [r.prompt for r in records(10)]
    assert output.read_bytes()[: len(whole)] == whole
    assert (story.records, story.kept, story.judged, story.left, story.foreign) == (10, 6, 4, 0, 0)
    assert [r.prompt for r in sources.load(output).records] == judge.asked
    again = judge_into(output, records(3), [judge])
    assert (again.kept, again.judged, again.foreign) == (10, 0, 7)
    assert "7 records of" in "\n".join(again.lines())


def test_records_that_stand_twice_are_judged_twice(tmp_path) -> None:
    judge, output = Counting(), tmp_path / "o.jsonl"
    judge_into(output, [*records(2), *records(2)], [judge])
    assert judge_into(output, [*records(2), *records(2), *records(2)], [judge]).judged == 2
    assert len(judge.asked) == 6


def test_a_line_that_was_cut_off_is_judged_again(tmp_path) -> None:
    judge, output = Counting(), tmp_path / "o.jsonl"
    judge_into(output, records(5), [judge])
    whole = output.read_bytes()
    output.write_bytes(whole[:-20])
    judge_into(output, records(5), [judge])
    assert output.read_bytes() == whole
    assert judge.asked[5:] == ["Number 4."]


def test_a_file_that_somebody_else_judged_is_refused(tmp_path) -> None:
    output = write(tmp_path / "o.jsonl", records(2))
    with pytest.raises(ConfigError, match=r"o.jsonl, line 1: counting has not judged this record"):
        judge_into(output, records(2), [Counting()])
    judge_into(output, records(2), [Counting()], overwrite=True)
    with pytest.raises(ConfigError, match="line 1: other has not judged"):
        judge_into(output, records(2), [Counting(), Counting("other")])
    with pytest.raises(ConfigError, match="named twice"):
        judge_into(output, records(2), [Counting(), Counting()])
    with pytest.raises(ConfigError, match=r"added to a .jsonl file"):
        judge_into(tmp_path / "o.jsonl.gz", records(2), [Counting()])


def test_what_cannot_be_judged_is_counted_named_left_out_and_tried_again(tmp_path) -> None:
    def score(rs, say):
        if any(r.prompt == "Number 3." for r in rs):
            raise RuntimeError("the judge is ill")
        said = {"Number 1.": Unjudged("too long"), "Number 2.": [1.0, float("nan"), 2.0]}
        return [said.get(r.prompt, [0, 0, 1]) for r in rs]

    output, given = tmp_path / "o.jsonl", write(tmp_path / "given.jsonl", records(6))
    story = judge_into(output, sources.load(given).records, [Scored(score, "ill")])
    assert [r.prompt for r in sources.load(output).records] == ["Number 0.", "Number 2.", "Number 4.", "Number 5."]
    assert (story.judged, story.left) == (4, 2)
    (tally,) = story.tallies
    assert tally.failures == {"too long": 1, "nan is no score": 1, "RuntimeError: the judge is ill": 1}
    assert tally.missing == 1
    assert [(n["why"], n["line"]) for n in tally.named] == [
        ("too long", 2), ("nan is no score", 3), ("RuntimeError: the judge is ill", 4),
    ]  # fmt: skip
    assert f"1 record not judged as a whole: too long, first {given}, line 2" in "\n".join(tally.lines())
    assert 0.0 not in [j.value for j in sources.load(output).records[1].judgements]
    well = judge_into(output, sources.load(given).records, [Scored(lambda rs, say: [[1, 2, 3]] * len(rs), "ill")])
    assert (well.kept, well.judged, well.left) == (4, 2, 0)


def test_a_judge_that_judges_nothing_stops_at_once(tmp_path) -> None:
    with pytest.raises(AccordError, match="none of the first 4 records can be judged: the prompt states no rule"):
        judge_into(tmp_path / "o.jsonl", records(10), [find("asked")], batch=4)


def test_the_numbers_of_the_summary(tmp_path) -> None:
    made = [Record(prompt=p, responses=[Response(text=t) for t in texts]) for p, texts in (("a", "xxy"), ("b", "xy"))]
    value = {"x": 1.0, "y": 4.0}
    judge = Scored(lambda rs, say: [[value[a.plain_text] for a in r.responses] for r in rs], "letters")
    for _ in range(2):  # the second time they are counted out of the file
        (tally,) = judge_into(tmp_path / "o.jsonl", made, [judge]).tallies
        assert (tally.records, tally.values, tally.pairs, tally.ties) == (2, 5, 4, 1)
        assert tally.mean == pytest.approx(2.2)
        assert tally.spread == pytest.approx((6 * 1.8 / 5) ** 0.5)


def test_a_full_disk_loses_nothing_that_was_judged(tmp_path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    full = tmp_path / "o.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(AccordError, match=r"cannot be written \(No space left"):
        judge_into(full, records(2), [Counting()], overwrite=True)


# -- the command ------------------------------------------------------------------------------------------------------


def test_judging_files_of_any_layout(accord) -> None:
    Path("pairs.csv").write_text("prompt,chosen,rejected\nName a colour.,Blue is nice.,Bread\n")
    write(Path("more.jsonl"), records(3))
    words = [
        "judge",
        "pairs.csv",
        "more.jsonl",
        "--judge",
        "length",
        "--judge",
        "slogan:words=3",
        "--output",
        "o.jsonl",
    ]
    code, out, err = accord(*words)
    assert (code, err) == (0, "")
    assert "4 records judged: o.jsonl\nlength: 11 judgements of 4 records, mean " in out
    held = sources.load("o.jsonl").records
    assert [r.source for r in held] == ["pairs", *["default"] * 3]
    assert {j.by for r in held for j in r.judgements} == {None, "length", "slogan:words=3"}
    told = json.loads(accord(*words, "--json")[1])
    assert (told["kept"], told["judged"]) == (4, 0)
    assert told["judges"][0]["by"] == "length"


def test_a_view_takes_one_of_several_judges_by_its_words(tmp_path) -> None:
    made = [Record(prompt="Hi", responses=[Response(text="one"), Response(text="one two three")])]
    judge_into(tmp_path / "o.jsonl", made, [find("length"), find("slogan:words=1"), find("length + distinct")])
    (held,) = sources.load(tmp_path / "o.jsonl").records
    for words, better in (("length", 1), ("slogan:words=1", 0), ("length + distinct", 1)):
        (pair,) = view([held], "Pairs", ViewOptions(attribute=words))
        assert pair.branches["chosen"].response == better


def test_the_list_of_judges(accord) -> None:
    code, out, err = accord("judge", "--list")
    assert (code, err) == (0, "")
    assert "slogan[:words=5]" in out
    rows = json.loads(accord("judge", "--list", "--json")[1])
    assert {r["name"]: r["main"] for r in rows}["similarity"] == "model"
    assert "Equation:" in accord("judge", "--list", "r3")[1]


def test_the_list_imports_no_torch() -> None:
    code = (
        "import sys\nfrom accord.cli import main\ntry:\n    main(['judge', '--list'])\nexcept SystemExit as end:\n"
        "    assert not end.code\nprint({'torch', 'transformers', 'scipy', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name the files to judge: accord judge FILE --judge"),
        (["a.jsonl"], "name --judge"),
        (["a.jsonl", "--judge", "length"], "name --output"),
        (["a.jsonl", "--judge", "lenth", "--output", "o.jsonl"], "did you mean 'length'"),
        (["a.jsonl", "--judge", "length", "--output", "./a.jsonl"], "is one of the files that are judged"),
        (["nope.jsonl", "--judge", "length", "--output", "o.jsonl"], "nope.jsonl: there is no such file"),
        (["a.jsonl", "--judge", "length", "--output", "o.parquet"], "added to a .jsonl file"),
        (["a.jsonl", "--judge", "similarity:./nope", "--output", "o.jsonl"], "there is no such folder"),
        (["prompts.jsonl", "--judge", "length", "--output", "o.jsonl"], "it has no response"),
        (["--list", "slogn"], "did you mean 'slogan'"),
    ],
)
def test_mistakes(words, says, accord) -> None:
    write(Path("a.jsonl"), records(1))
    Path("prompts.jsonl").write_text('{"prompt": "Hi"}\n')
    code, out, err = accord("judge", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_killed_and_started_again_it_goes_on_where_it_stopped(tmp_path, monkeypatch) -> None:
    """Killed at random moments by a judge that takes its time; every record is there once, and none was asked twice
    but for those of the batch that was lost."""
    given = write(tmp_path / "given.jsonl", records(600))
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def slow(text: str) -> float:\n"
        "    time.sleep(0.0004)\n"
        "    open('asked.txt', 'a').write('.')\n"
        "    return float(len(text))\n"
    )
    words = [sys.executable, "-m", "accord", "judge", str(given), "--judge", "slow.py:slow", "--output", "o.jsonl"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    draw, output = random.Random(0), tmp_path / "o.jsonl"
    kills = 0
    for _ in range(12):
        before = output.stat().st_size if output.exists() else 0
        run = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until = time.monotonic() + 60
        while run.poll() is None and time.monotonic() < until:
            if output.exists() and output.stat().st_size > before:
                time.sleep(draw.random() * 0.1)
                run.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        out = run.communicate(timeout=60)[0].decode()
        if run.returncode == 0:
            break
        assert run.returncode == -signal.SIGKILL, out
        kills += 1
    assert run.returncode == 0
    assert kills
    asked = (tmp_path / "asked.txt").stat().st_size
    monkeypatch.chdir(tmp_path)
    judge_into(tmp_path / "straight.jsonl", sources.load(given).records, [find("slow.py:slow")])
    texts = [[r.prompt for r in sources.load(tmp_path / name).records] for name in ("o.jsonl", "straight.jsonl")]
    assert texts[0] == texts[1]
    assert asked <= 1800 + kills * 64 * 3


# -- best of n --------------------------------------------------------------------------------------------------------


def scored(*values: float) -> Record:
    said = [Judgement(kind="score", response=i, value=v, by="j") for i, v in enumerate(values)]
    return Record(prompt="Hi", responses=[Response(text=str(i)) for i in range(len(values))], judgements=said)


def test_nothing_is_kept_where_all_answers_are_equal() -> None:
    counts = Counts()
    assert keep(scored(2, 2), "j", "best_worst", counts) is None
    assert keep(scored(2), "j", "best_worst", counts) is None
    assert keep(scored(2, 2), "j", "best", counts).responses[0].text == "0"
    assert counts.totals() == {
        "left: all answers are equally good": 1, "left: one answer alone": 1, "kept: the first of several best": 1,
    }  # fmt: skip
    assert keep(scored(1, 2), "j", "all", counts) == scored(1, 2)


def ask(accord, model_folder, *more: str) -> tuple[int, str, str]:
    write(Path("asked.jsonl"), pair_records(6))
    return accord(
        "sample", "--model", model_folder, "--prompts", "asked.jsonl", "-n", 4, "--max-new-tokens", 6, "--precision",
        "fp32", *more,
    )  # fmt: skip


def test_the_best_of_n_are_demonstrations_that_train_as_they_are(accord, model_folder) -> None:
    code, out, err = ask(accord, model_folder, "--output", "all.jsonl")
    assert (code, err) == (0, "")
    code, out, err = ask(accord, model_folder, "--judge", "length", "--keep", "best", "--output", "best.jsonl")
    assert (code, err) == (0, "")
    assert out.startswith("6 prompts, 24 answers, 6 records kept: best.jsonl\nlength: 24 judgements of 6 records")
    every, best = (sources.load(f"{n}.jsonl").records for n in ("all", "best"))
    for answers, kept in zip(every, best, strict=True):
        scores = [find("length")([answers])[0][i].value for i in range(4)]
        assert kept.responses == (answers.responses[scores.index(max(scores))],)
        assert kept.kinds == {"demonstrations"}
    assert {p.name for p in Path().iterdir()} == {"asked.jsonl", "all.jsonl", "best.jsonl"}
    words = ["--model", model_folder, "--max-steps", 1, "--batch-size", 2, "--eval-fraction", 0, "--precision", "fp32"]
    code, out, err = accord("train", *words, "--data", "best.jsonl", "--objective", "sft", "--output", "sft")
    assert (code, err) == (0, "")
    code, out, err = ask(accord, model_folder, "--judge", "length", "--keep", "best_worst", "--output", "pairs.jsonl")
    assert code == 0
    code, out, err = accord("train", *words, "--data", "pairs.jsonl", "--objective", "dpo", "--output", "dpo")
    assert code == 0


def test_kept_answers_are_printed_where_there_is_no_file(accord, model_folder) -> None:
    code, out, err = ask(accord, model_folder, "--judge", "length", "--json")
    assert (code, err) == (0, "")
    assert [[j.by for j in Record.from_json(line).judgements] for line in out.splitlines()] == [["length"] * 4] * 6


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--keep", "best"], "name who judges them with --judge"),
        (["--judge", "length", "--keep", "bset"], "did you mean 'best'"),
        (["--judge", "lenght"], "did you mean 'length'"),
        (["--judge", "asked"], "the prompt states no rule"),
    ],
)
def test_mistakes_in_keeping(more, says, accord, model_folder) -> None:
    code, _, err = ask(accord, model_folder, *more, "--output", "o.jsonl")
    assert code == 2
    assert says in err
    assert not Path("o.jsonl").exists()


def test_sampling_goes_on_with_the_shards_that_are_done(model_folder, tmp_path) -> None:
    policy = models.load(model_folder, device="cpu", precision="fp32")
    chat, prompts = Chat(policy.tokenizer), pair_records(6)
    how = {"samples": 3, "max_new_tokens": 5, "shard": 4}
    straight = answer(policy, chat, prompts, seed=1, **how)

    def killed(done: int, of: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    kept = tmp_path / "shards"
    with pytest.raises(KeyboardInterrupt):
        answer(policy, chat, prompts, seed=1, kept=kept, progress=killed, **how)
    assert len(kept.read_text().splitlines()) == 3
    with kept.open("a") as stream:
        stream.write('[8, [{"text": "half')
    asked = []
    again = answer(policy, chat, prompts, seed=1, kept=kept, progress=lambda done, of: asked.append(done), **how)
    assert again == straight
    assert asked == [12, 16, 18]
    asked.clear()
    other = answer(policy, chat, prompts, seed=2, kept=kept, progress=lambda done, of: asked.append(done), **how)
    assert other != straight
    assert len(asked) == 5
