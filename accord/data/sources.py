"""In which layout did the user bring it? One function and one row of `LAYOUTS` per layout.

`load` reads a file, a folder, a glob or the name of a bundled data set, recognises the layout by the columns of the
first row, and says in one line what it took the file for. Rows become `Record`s: facts, with file and line; what they
count as is decided in `views.py`. A row that cannot be read is an error that names file, line, field and remedy, or,
with `on_error="skip"`, left out and kept in `Loaded.problems`.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any, NoReturn
from zipfile import BadZipFile

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from accord.data.records import ROLES, Record, explain
from accord.errors import ConfigError, RecordError, nearest

SKIP = "Mend the row, or leave such rows out with on_bad_record: skip"
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz")
DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, BadZipFile)
ANSWER = ("completion", "response", "output")
RATING = ("rating", "score")
TURNS = ("messages", "conversations")
SYNONYMS = {  # what other files call it: suggested, never assumed
    "prompt": ("prompt", "question", "query", "input", "problem", "instruction"),
    "completion": ("answer", "answers", "reply", "solution", "summary", "target", "text"),
}
TURN_KEYS = ({"role", "content"}, {"from", "value"})
SPEAKERS = {role: role for role in ROLES} | {
    "human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant",
    "function_call": "assistant", "observation": "tool", "function": "tool", "function_response": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A row that was left out: where it stands, what is wrong, what to do."""

    file: str
    line: int | None
    field: str | None
    what: str
    remedy: str | None


@dataclass(frozen=True)
class Loaded:
    """What `load` gives: `told` is the one line that tells the user what the layout was taken for."""

    records: list[Record]
    layout: str
    told: str
    problems: list[Problem]


# -- one row of a file ------------------------------------------------------------------------------------------------


class Row:
    """One row, asked field by field. What is missing or of another type is a `RecordError` with its place.

    `used` gathers the columns that were asked for, so that the user can be told which ones were not.
    `flat` rows (CSV) hold text only: an empty cell is a missing value, and lists are written as JSON.
    """

    def __init__(self, data: dict[str, Any], file: str, line: int, used: set[str], *, flat: bool = False) -> None:
        self.data, self.file, self.line, self.used, self.flat = data, file, line, used, flat

    def fail(self, what: str, field: str | None, remedy: str = SKIP) -> NoReturn:
        raise RecordError(what, file=self.file, line=self.line, field=field, remedy=remedy)

    def get(self, *names: str) -> tuple[str, Any]:
        """The first of `names` that holds a value, and the value; a name and None if none does."""
        present = [name for name in names if name in self.data]
        for name in present:
            self.used.add(name)
            value = self.data[name]
            if value is not None and not (self.flat and value == ""):
                return name, value
        return (present or names)[0], None

    def need(self, *names: str) -> tuple[str, Any]:
        name, value = self.get(*names)
        if value is None:
            if self.data.get(name) == "":
                return name, ""  # an empty cell where text is needed is an empty text
            self.fail("this field is missing or null", name)
        return name, value

    def items(self, name: str, value: Any) -> list[Any]:
        """A list; text (of a CSV cell, or of a column of JSON) is read as JSON."""
        if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                self.fail(f"a list is expected, and this text is no JSON list ({error.msg})", name)
        if not isinstance(value, list):
            self.fail(f"a list is expected, not {_kind(value)}", name)
        return value

    def number(self, name: str, value: Any) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self.fail(f"a number is expected, not the text {value[:40]!r}", name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"a number is expected, not {_kind(value)}", name)
        if not math.isfinite(value):
            self.fail(f"the number is {value}, which says nothing", name)
        return float(value)

    def label(self, name: str, value: Any) -> int:
        known = {"true": 1, "false": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
        if not isinstance(value, bool | int | float | str) or (good := known.get(str(value).strip().lower())) is None:
            self.fail(
                f"a label is true or false (or 1 or 0), not {value!r}",
                name,
                'Write true for good and false for bad; a number on a scale belongs in a column "rating"',
            )
        return good

    def turns(self, name: str, value: Any) -> list[dict[str, Any]]:
        """Messages from a list of role/content or from/value, from one such turn, or from an HH transcript."""
        if isinstance(value, str) and self._cell(value):
            value = json.loads(value)
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, str) and (transcript := hh_turns(value)) is not None:
            return transcript
        turns = [self._turn(f"{name}.{i}", turn) for i, turn in enumerate(self.items(name, value))]
        if not turns:
            self.fail("there are no turns in it", name)
        return turns

    def _turn(self, name: str, turn: Any) -> dict[str, Any]:
        if not isinstance(turn, dict):
            self.fail(f"a turn with role and content is expected, not {_kind(turn)}", name)
        turn = {key: value for key, value in turn.items() if value is not None}
        speaker = turn.pop("role", None) or turn.pop("from", None)
        if speaker not in SPEAKERS:
            self.fail(f"the role is {speaker!r}", f"{name}.role", nearest(str(speaker), SPEAKERS).capitalize())
        content = turn.pop("content", None)
        content = turn.pop("value", None) if content is None else content
        if speaker == "function_call":
            try:
                turn["tool_calls"] = [{"type": "function", "function": json.loads(content)}]
            except (TypeError, json.JSONDecodeError):
                self.fail("a function call is expected as JSON", f"{name}.value")
            content = None
        if content is None and "tool_calls" not in turn:
            self.fail("a turn without content", f"{name}.content")
        return {"role": SPEAKERS[speaker], "content": content, **turn}

    def prompt(self, *names: str) -> str | list[dict[str, Any]]:
        """The prompt, with the text of a `system` column in front."""
        name, value = self.need(*(names or ("prompt",)))
        return self.with_system(value if isinstance(value, str) and not self._cell(value) else self.turns(name, value))

    def with_system(self, prompt: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        name, system = self.get("system")
        if system in (None, ""):
            return prompt
        if not isinstance(system, str):
            self.fail(f"text is expected, not {_kind(system)}", name)
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if turns and turns[0]["role"] == "system":
            self.fail("the dialogue has a system message of its own", name, "Keep one of the two")
        return [{"role": "system", "content": system}, *turns]

    def answer(self, name: str, value: Any) -> dict[str, Any]:
        """A response: text, one turn, or turns that begin and end with the assistant."""
        if isinstance(value, str) and not self._cell(value):
            if not value.strip():
                self.fail("the response is empty", name)
            return {"text": value}
        return self.spoken(name, self.turns(name, value))

    def spoken(self, name: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
        """Turns as a response; a single plain turn becomes text."""
        if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
            side = "begins" if turns[0]["role"] != "assistant" else "ends"
            role = turns[0 if side == "begins" else -1]["role"]
            self.fail(f"a response {side} with the assistant's turn, and this one {side} with a {role} turn", name)
        for turn in turns:
            if turn["role"] == "assistant" and not turn.get("tool_calls") and not _said(turn["content"]):
                self.fail("the response is empty", name)
        plain = len(turns) == 1 and isinstance(turns[0]["content"], str) and set(turns[0]) == {"role", "content"}
        return {"text": turns[0]["content"]} if plain else {"messages": turns}

    def _cell(self, value: str) -> bool:
        """Whether a CSV cell holds messages rather than text."""
        if not (self.flat and value.lstrip().startswith(("[{", "{"))):
            return False
        try:
            found = json.loads(value)
        except json.JSONDecodeError:
            return False
        turns = found if isinstance(found, list) else [found]
        return all(isinstance(t, dict) and any(t.keys() >= keys for keys in TURN_KEYS) for t in turns)


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "text", dict: "an object", list: "a list"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _said(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(content)


def hh_turns(text: str) -> list[dict[str, Any]] | None:
    r"""The turns of an HH transcript, white space around each taken off; None if `text` is none.

    >>> hh_turns("\n\nHuman: Hi\n\nAssistant: Hello!")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]
    """
    text = "\n\n" + text.lstrip("\n")
    if not text.startswith(("\n\nHuman:", "\n\nAssistant:")):
        return None
    turns = []
    for part in text.replace("\n\nHuman:", "\0\0H").replace("\n\nAssistant:", "\0\0A").split("\0\0")[1:]:
        turns.append({"role": "user" if part[0] == "H" else "assistant", "content": part[1:].strip()})
    return turns


# -- the layouts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A way to write feedback down: by which columns it is known, and how a row becomes the parts of a record."""

    name: str
    description: str
    matches: Callable[[Set[str], dict[str, Any]], bool]
    read: Callable[[Row], dict[str, Any]]


def read_record(row: Row) -> dict[str, Any]:
    """Accord's own record, from a JSON line or from a row of `records.to_table`."""
    if "record" not in row.data:
        row.used.update(row.data)
        return {key: value for key, value in row.data.items() if value is not None}
    row.used.update({"record", "id", "source", "weight", "kinds"})
    _, text = row.need("record")
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError):
        row.fail("an accord record is expected as one JSON object", "record")


def read_pair(row: Row) -> dict[str, Any]:
    """An explicit prompt (or `conversations`), chosen and rejected; answers that repeat the prompt lose it."""
    if row.get("prompt")[1] is None and row.get("conversations")[1] is not None:
        prompt = row.with_system(row.turns(*row.get("conversations")))
    else:
        prompt = row.prompt()
    chosen, rejected = row.need("chosen"), row.need("rejected")
    if isinstance(chosen[1], list) and isinstance(rejected[1], list):
        sides = row.turns(*chosen), row.turns(*rejected)
        if sides[0][0]["role"] != "assistant":  # both repeat the prompt
            shared, *answers = _shared(row, *sides)
            asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            if shared[-len(asked) :] != asked:
                row.fail("chosen begins with another prompt than the one in 'prompt'", "chosen")
            return {"prompt": shared, "responses": answers, "judgements": _compared(row)}
    return {"prompt": prompt, "responses": [row.answer(*chosen), row.answer(*rejected)], "judgements": _compared(row)}


def read_implicit_pair(row: Row) -> dict[str, Any]:
    """Two whole dialogues: the turns that both begin with are the prompt."""
    sides = []
    for side in ("chosen", "rejected"):
        name, value = row.need(side)
        if isinstance(value, str) and not row.flat and hh_turns(value) is None:
            what = "without a 'prompt' column, text has to be a transcript that begins with '\\n\\nHuman:'"
            row.fail(what, name, NO_PROMPT)
        sides.append(row.turns(name, value))
    shared, *answers = _shared(row, *sides)
    return {"prompt": row.with_system(shared), "responses": answers, "judgements": _compared(row)}


NO_PROMPT = "Add a 'prompt' column, or write both sides as messages"


def _shared(row: Row, chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """The turns that both dialogues begin with (each keeps one turn at least), and the two answers."""
    most = min(len(chosen), len(rejected)) - 1
    n = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if n == 0:
        row.fail("chosen and rejected share no turn, so there is no prompt", "rejected", NO_PROMPT)
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[n]["role"] not in ("assistant", "tool"):
            row.fail(
                f"chosen and rejected answer different prompts: they part at turn {n + 1}, a {turns[n]['role']} turn",
                name,
                "A pair needs two answers to one prompt",
            )
    return chosen[:n], row.spoken("chosen", chosen[n:]), row.spoken("rejected", rejected[n:])


def _compared(row: Row) -> list[dict[str, Any]]:
    """What is known of a pair: that response 0 was chosen, how strongly, by which margin, with which scores."""
    name, strength = row.get("strength")
    strength = 1.0 if strength is None else row.number(name, strength)
    if not 0 <= strength <= 1:
        row.fail(
            f"strength {strength:g} is no probability",
            name,
            "Write P(chosen is better) between 0 and 1; a gap in score units belongs in a column 'margin'",
        )
    found: list[dict[str, Any]] = [{"kind": "preference", "pair": (0, 1), "value": strength}]
    name, margin = row.get("margin")
    if margin is not None:
        found.append({"kind": "preference", "pair": (0, 1), "margin": True, "value": row.number(name, margin)})
    _, inner = row.get("metadata")
    inside = Row(inner if isinstance(inner, dict) else {}, row.file, row.line, set())
    for i, side in enumerate(("chosen", "rejected")):
        names = [f"score_{side}", f"{side}_score", f"{side}_rating", f"{side}-rating"]
        name, score = row.get(*names)
        if score is None:
            name, score = inside.get(*names)
            name = f"metadata.{name}"
        if score is not None:
            found.append({"kind": "score", "response": i, **_on_scale(row, name, row.number(name, score))})
    return found


def _on_scale(row: Row, name: str, value: float) -> dict[str, Any]:
    """A value, with the ends of its scale where a `scale` column gives them."""
    field, scale = row.get("scale")
    if scale is None:
        return {"value": value}
    ends = [row.number(field, end) for end in row.items(field, scale)]
    if len(ends) != 2 or not ends[0] < ends[1]:
        row.fail(f"a scale is [lowest, highest], not {scale}", field)
    if not ends[0] <= value <= ends[1]:
        row.fail(f"{value:g} lies outside its scale {ends[0]:g} to {ends[1]:g}", name)
    return {"value": value, "scale": ends}


def read_answer(row: Row) -> dict[str, Any]:
    """A prompt and one answer (`prompt`, Alpaca's `instruction` and `input`), and what was said about the answer."""
    if row.get("prompt")[1] is None and "instruction" in row.data:
        name, instruction = row.need("instruction")
        field, more = row.get("input")
        for part, value in ((name, instruction), (field, more or "")):
            if not isinstance(value, str):
                row.fail(f"text is expected, not {_kind(value)}", part)
        prompt = row.with_system(f"{instruction}\n\n{more}" if more else instruction)
    else:
        prompt = row.prompt()
    return {"prompt": prompt, "responses": [row.answer(*row.need(*ANSWER))], "judgements": _judged(row)}


def read_dialogue(row: Row) -> dict[str, Any]:
    """A dialogue: what stands before the first assistant turn is the prompt, the rest is the response.

    A judged dialogue is judged by its last turn: then all that stands before it is the prompt.
    """
    name, value = row.need(*TURNS)
    turns, judgements = row.turns(name, value), _judged(row)
    speakers = [turn["role"] for turn in turns]
    if "assistant" not in speakers:
        row.fail("the dialogue has no assistant turn, so there is nothing to learn from", name)
    if speakers[-1] != "assistant":
        row.fail(f"the dialogue ends with a {speakers[-1]} turn that nobody answers", name)
    at = len(turns) - 1 if judgements else speakers.index("assistant")
    if at == 0:
        row.fail("the dialogue opens with the assistant, so there is no prompt", name)
    answer = row.spoken(name, turns[at:])
    return {"prompt": row.with_system(turns[:at]), "responses": [answer], "judgements": judgements}


def _judged(row: Row) -> list[dict[str, Any]]:
    """The label or the rating of a row's only response; a column that is there has to be filled in."""
    found: list[dict[str, Any]] = []
    if "label" in row.data:
        found.append({"kind": "label", "response": 0, "value": row.label(*row.need("label"))})
    if names := [name for name in RATING if name in row.data]:
        name, value = row.need(*names)
        found.append({"kind": "score", "response": 0, **_on_scale(row, name, row.number(name, value))})
    return found


def read_list(row: Row) -> dict[str, Any]:
    """Several responses to one prompt, with one score, label or rank for each, or with their order, best first."""
    name, value = row.need("responses", "completions")
    answers = [row.answer(f"{name}.{i}", answer) for i, answer in enumerate(row.items(name, value))]
    judgements: list[dict[str, Any]] = []
    for field, kind in LISTS.items():
        if row.get(field)[1] is None:
            continue
        values = row.items(*row.need(field))
        if len(values) != len(answers):
            row.fail(f"{len(values)} values for {len(answers)} responses", field, "Give one value for each response")
        if field == "ranking":
            values = _places(row, values)
        for i, said in enumerate(values):
            if said is None:
                continue  # this response was not judged
            name = f"{field}.{i}"
            if kind == "score":
                judgements.append({"kind": kind, "response": i, **_on_scale(row, name, row.number(name, said))})
            else:
                said = row.label(name, said) if kind == "label" else row.number(name, said)
                judgements.append({"kind": kind, "response": i, "value": said})
    if not judgements:
        row.fail("none of the responses is judged", next((f for f in LISTS if f in row.data), name))
    return {"prompt": row.prompt(), "responses": answers, "judgements": judgements}


LISTS = {"scores": "score", "ratings": "score", "labels": "label", "ranks": "rank", "ranking": "rank"}


def _places(row: Row, order: list[Any]) -> list[int]:
    """The place of each response in an order of response numbers, best first, counted from 0 or from 1."""
    n = len(order)
    if all(type(i) is int for i in order) and sorted(order) in ([*range(n)], [*range(1, n + 1)]):
        return [order.index(i) for i in range(min(order), min(order) + n)]
    row.fail(
        f"a ranking names each response once, best first, and this is {order}",
        "ranking",
        "The places of the responses (0 is best, ties allowed) belong in a column 'ranks'",
    )


def read_prompt(row: Row) -> dict[str, Any]:
    """A prompt that nobody has answered yet."""
    return {"prompt": row.prompt()}


def _single(columns: Set[str]) -> bool:
    return bool(columns & set(TURNS)) or bool(columns & {"prompt", "instruction"} and columns & set(ANSWER))


def _own(columns: Set[str], row: dict[str, Any]) -> bool:
    if {"record", "kinds"} <= columns:
        return True
    responses = row.get("responses") or []
    told = isinstance(responses, list) and all(isinstance(r, dict) and {"text", "messages"} & set(r) for r in responses)
    return columns <= set(Record.model_fields) and bool(columns & {"responses", "judgements"}) and told


PAIR = {"chosen", "rejected"}
LAYOUTS: tuple[Layout, ...] = (
    Layout("record", "accord records", _own, read_record),
    Layout(
        "prompt/chosen/rejected",
        "prompt, chosen and rejected",
        lambda c, row: c >= PAIR and "prompt" in c,
        read_pair,
    ),
    Layout(
        "conversations/chosen/rejected",
        "ShareGPT with chosen and rejected",
        lambda c, row: c >= PAIR and "conversations" in c,
        read_pair,
    ),
    Layout(
        "hh",
        "HH transcripts (chosen/rejected)",
        lambda c, row: c >= PAIR and isinstance(row.get("chosen"), str) and bool(hh_turns(row["chosen"])),
        read_implicit_pair,
    ),
    Layout(
        "chosen/rejected",
        "chosen and rejected, the prompt inside",
        lambda c, row: c >= PAIR,
        read_implicit_pair,
    ),
    Layout(
        "prompt/responses/scores",
        "responses with scores, labels, ranks (lowest is best) or a ranking (best first)",
        lambda c, row: bool(c & {"responses", "completions"}) and bool(c & set(LISTS)),
        read_list,
    ),
    Layout(
        "prompt/completion/label",
        "responses with label (true is good)",
        lambda c, row: _single(c) and "label" in c,
        lambda row: read_dialogue(row) if set(TURNS) & set(row.data) else read_answer(row),
    ),
    Layout(
        "prompt/response/rating",
        "responses with rating (higher is better)",
        lambda c, row: _single(c) and bool(c & set(RATING)),
        lambda row: read_dialogue(row) if set(TURNS) & set(row.data) else read_answer(row),
    ),
    Layout(
        "messages",
        "messages (each assistant turn is trained)",
        lambda c, row: "messages" in c,
        read_dialogue,
    ),
    Layout(
        "sharegpt",
        "ShareGPT (each assistant turn is trained)",
        lambda c, row: "conversations" in c,
        read_dialogue,
    ),
    Layout(
        "prompt/completion",
        "prompt and completion",
        lambda c, row: "prompt" in c and _single(c),
        read_answer,
    ),
    Layout("alpaca", "Alpaca (instruction, input, output)", lambda c, row: _single(c), read_answer),
    Layout(
        "prompt",
        "prompts",
        lambda c, row: "prompt" in c and not c & {*ANSWER, *PAIR, *SYNONYMS["completion"], "responses", "completions"},
        read_prompt,
    ),
)


def recognise(row: dict[str, Any], file: str, line: int | None = None, layout: str | None = None) -> Layout:
    """The layout of a row, by its columns; a `RecordError` that says what to do if there is none."""
    if layout is not None:
        known = {entry.name: entry for entry in LAYOUTS}
        if layout not in known:
            raise ConfigError(f"layout {layout!r} is unknown; {nearest(layout, known)}")
        return known[layout]
    if (entry := _match(row)) is not None:
        return entry
    what = "the columns " + ", ".join(sorted(row)) + " are no known layout"
    raise RecordError(what, file=file, line=line, remedy=_suggest(row.keys(), row))


def _match(row: dict[str, Any]) -> Layout | None:
    return next((entry for entry in LAYOUTS if entry.matches(row.keys(), row)), None)


def _suggest(columns: Set[str], row: dict[str, Any]) -> str:
    if len(columns) == 1 and any(mark in next(iter(columns)) for mark in ";\t"):
        return "It looks like a table cut by ';' or tabs: save it with commas, or as .tsv"
    if "text" in columns:
        if isinstance(row["text"], str) and hh_turns(row["text"]):
            return "It is a transcript: name it with columns={'messages': 'text'}"
        return "A text alone does not name its response: split it into 'prompt' (may be empty) and 'completion'"
    guess = {ours: theirs for ours, names in SYNONYMS.items() for theirs in names if theirs in columns}
    if "completion" in guess and isinstance(row[guess["completion"]], list):
        guess["responses"] = guess.pop("completion")
    example = guess or {"prompt": "...", "completion": "..."}
    return f"Say which is which, for example columns={example}; known layouts: " + ", ".join(e.name for e in LAYOUTS)


# -- files ------------------------------------------------------------------------------------------------------------

Numbered = Iterator[tuple[int, dict[str, Any] | RecordError]]


def _suffixes(path: Path) -> tuple[str, str]:
    """Format and compression of a file, by its name: ('.jsonl', '.gz')."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in OPENERS else (last, "")


def _open(path: Path) -> IO[bytes]:
    return OPENERS.get(_suffixes(path)[1], open)(path, "rb")


def _decoded(stream: Iterable[bytes], file: str) -> Iterator[tuple[int, str | RecordError]]:
    """Lines of a file as text, with their numbers; a line that is not UTF-8 comes as the error it is."""
    for number, raw in enumerate(stream, 1):
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise RecordError("the file is UTF-16", file=file, line=1, remedy="Save it as UTF-8")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"byte 0x{raw[error.start]:02x} at place {error.start + 1} of the line is not UTF-8"
            remedy = "Save the file as UTF-8 (iconv -f latin1 -t utf-8 turns Latin-1 into it)"
            yield number, RecordError(what, file=file, line=number, remedy=remedy)


def _object(value: Any, file: str, number: int, escapes: bool) -> dict[str, Any] | RecordError:
    """A row if it is one; with `escapes` in its JSON, halves of characters are looked for: no file holds them."""
    if not isinstance(value, dict):
        what = f"an object with named fields is expected, not {_kind(value)}"
        return RecordError(what, file=file, line=number, remedy=SKIP)
    for field in value if escapes else ():
        try:
            json.dumps([field, value[field]], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            what = f"the text holds {half}, which is half a character (an emoji that was cut)"
            return RecordError(what, file=file, line=number, field=field, remedy=SKIP)
    return value


def _json_lines(stream: Iterable[bytes], file: str) -> Numbered:
    for number, line in _decoded(stream, file):
        if isinstance(line, RecordError):
            yield number, line
        elif line.strip():
            try:
                yield number, _object(json.loads(line), file, number, "\\u" in line)
            except (json.JSONDecodeError, RecursionError) as error:
                what = f"the line is not JSON ({getattr(error, 'msg', 'nested too deep')})"
                yield number, RecordError(what, file=file, line=number, remedy=SKIP)


def _json(stream: IO[bytes], file: str) -> Numbered:
    raw = stream.read()
    text = "".join(_sound(_decoded(raw.splitlines(keepends=True), file)))
    if not text.strip():
        return
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name of .json
            yield from _json_lines(raw.splitlines(keepends=True), file)
            return
        remedy = "Mend the file (python -m json.tool FILE shows the place)"
        raise RecordError(f"the file is not JSON ({error.msg})", file=file, line=error.lineno, remedy=remedy) from None
    rows = found.get("data", found) if isinstance(found, dict) else found
    if not isinstance(rows, list):
        remedy = "Write a list of objects, or one object with a list under 'data', or JSON lines (.jsonl)"
        raise RecordError("the file holds no list of rows", file=file, remedy=remedy)
    for number, row in enumerate(rows, 1):
        yield number, _object(row, file, number, "\\u" in text)


def _sound(lines: Iterable[tuple[int, str | RecordError]]) -> Iterator[str]:
    for _, line in lines:
        if isinstance(line, RecordError):
            raise line
        yield line


def _table(stream: IO[bytes], file: str, delimiter: str) -> Numbered:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(_sound(_decoded(stream, file)), delimiter=delimiter, strict=True)
    number = 1
    try:
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise RecordError("two columns have the same name", file=file, line=1, remedy="Rename one of them")
        number = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            elif cells:
                what = f"{len(cells)} cells under {len(header)} columns"
                remedy = f'Put text that holds a delimiter or a line break in "quotes". {SKIP}'
                yield number, RecordError(what, file=file, line=number, remedy=remedy)
            number = reader.line_num + 1
    except csv.Error as error:
        what = f"the table breaks off ({error})"
        raise RecordError(what, file=file, line=number, remedy="Close the quotes") from None


def _parquet(stream: IO[bytes], file: str) -> Numbered:
    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, _pruned(row)
    except (pa.ArrowException, OSError) as error:
        what = f"the Parquet file is damaged or cut off ({str(error).splitlines()[0][:120]})"
        raise RecordError(what, file=file, line=number + 1, remedy="Fetch or write it again") from None


def _pruned(value: Any) -> Any:
    """Without the nulls that Arrow writes into objects whose fields differ from row to row (tool calls)."""
    if isinstance(value, dict):
        return {k: _pruned(v) for k, v in value.items() if v is not None or k == "content"}
    return [_pruned(v) for v in value] if isinstance(value, list) else value


def _rows(path: Path, file: str) -> Numbered:
    """The rows of one file with their numbers, from 1; whatever is wrong with the whole file is a `RecordError`."""
    kind = _suffixes(path)[0]
    if kind in PICKLES:
        raise RecordError(
            "pickle files can run code when they are read, so they are refused",
            file=file,
            remedy="Write the data as .jsonl or .parquet",
        )
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise RecordError(f"files ending in {kind or 'nothing'!r} are not read", file=file, remedy=f"Known: {known}")
    number = 0
    try:
        with _open(path) as opened:
            stream = io.BytesIO(opened.read()) if kind == ".parquet" and _suffixes(path)[1] else opened
            if kind in (".csv", ".tsv"):
                rows = _table(stream, file, "\t" if kind == ".tsv" else ",")
            else:
                rows = {".json": _json, ".parquet": _parquet}.get(kind, _json_lines)(stream, file)
            for number, row in rows:
                yield number, row
    except DAMAGED as error:
        raise RecordError(
            f"the compressed file is damaged or breaks off ({error})",
            file=file,
            line=number + 1,
            remedy="Fetch or write it again (gzip -t, bzip2 -t or xz -t checks it)",
        ) from None
    except OSError as error:
        if "stream" in str(error):  # bz2 has no error of its own
            what = f"the compressed file is damaged ({error})"
            raise RecordError(what, file=file, line=number + 1, remedy="Fetch it again") from None
        what = f"the file cannot be read ({error.strerror or error})"
        raise RecordError(what, file=file, remedy="Check its path and its rights") from None


def bundled() -> dict[str, Path]:
    """The data sets that come with the package, by name."""
    folder = Path(str(resources.files("accord"))) / "bundled"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name.split(".")[0]: path for path in found if _suffixes(path)[0] in FORMATS}


def _files(name: str | Path) -> tuple[list[Path], list[str]]:
    """The files that a path, folder, glob or bundled name stands for, and what was left in a folder."""
    path = Path(name).expanduser()
    if path.is_dir():
        every = sorted(p for p in path.rglob("*") if p.is_file() and not p.relative_to(path).as_posix().startswith("."))
        files = [p for p in every if _suffixes(p)[0] in FORMATS]
        if not files:
            raise RecordError("the folder holds no data file", file=str(name), remedy="Known: " + ", ".join(FORMATS))
        return files, [str(p.relative_to(path)) for p in every if p not in files]
    if path.exists():
        return [path], []
    if glob.has_magic(str(path)):
        found = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if Path(p).is_file()]
        if not found:
            raise RecordError("no file has a name like this", file=str(name), remedy="See the pattern")
        return found, []
    if str(name) in bundled():
        return [bundled()[str(name)]], []
    known = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
    if not known and path.parent != Path("."):
        raise RecordError(f"the folder {path.parent} does not exist", file=str(name), remedy="See its name")
    known |= bundled().keys() if path.parent == Path(".") else set()
    close = nearest(path.name, known)
    remedy = close.capitalize() if close.startswith("did you mean") else f"Bundled: {', '.join(bundled()) or 'none'}"
    raise RecordError("there is no such file or bundled data set", file=str(name), remedy=remedy)


# -- loading ----------------------------------------------------------------------------------------------------------


def source_name(path_or_name: str | Path) -> str:
    """What the records of a file or folder are called by default.

    >>> source_name("feedback/hh.jsonl.gz")
    'hh'
    """
    return Path(path_or_name).name.split(".")[0]


def load(
    path_or_name: str | Path,
    *,
    source: str | None = None,
    weight: float = 1.0,
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    on_error: str = "raise",
) -> Loaded:
    """Reads feedback in the layout in which it comes.

    Args:
        path_or_name: a file (JSONL, JSON, CSV, TSV, Parquet, each also .gz, .bz2 or .xz), a folder, a glob, or the
            name of a bundled data set.
        source: name of the records' source; by default the one in the record, else the name of the file or folder.
        weight: multiplies the weight of every record.
        columns: what a column is, by our name: `{"prompt": "question"}` reads `question` as the prompt. `source` and
            `weight` are read from a column only if they are named here.
        layout: name of a row of `LAYOUTS`; by default recognised by the columns of each file's first row.
        on_error: `raise`, or `skip` rows that cannot be read and keep the reasons in `problems`. A file that is
            damaged or of no known layout is an error either way.

    Raises:
        RecordError: with file, line, field and remedy.
        ConfigError: an argument is impossible.

    Example:
        `load("hh.jsonl.gz").told` is "hh.jsonl.gz: HH transcripts (chosen/rejected), 2,312 pairs".
    """
    if on_error not in ("raise", "skip"):
        raise ConfigError(f"on_error={on_error!r} is neither 'raise' nor 'skip'")
    if not (math.isfinite(weight) and weight > 0):
        raise ConfigError(f"weight={weight} must be above 0")
    files, left = _files(path_or_name)
    default = "" if glob.has_magic(str(path_or_name)) else source_name(path_or_name)
    records: list[Record] = []
    problems: list[Problem] = []
    told: dict[Layout, Counter[str]] = {}
    unused: set[str] = set()
    for path in files:
        file = str(path_or_name) if path in bundled().values() else str(path)
        used: set[str] = set()
        for entry, row in _laid_out(path, file, columns or {}, layout, used):
            try:
                if isinstance(row, RecordError) or entry is None:
                    raise row  # type: ignore[misc]
                record = _record(entry, row, source, default or source_name(path), weight, columns or {})
            except RecordError as error:
                if on_error == "raise":
                    raise error from None
                problems.append(Problem(error.file or file, error.line, error.field, error.what, error.remedy))
            else:
                records.append(record)
                told.setdefault(entry, Counter())[_noun(record)] += 1
                unused |= row.data.keys()
        unused -= used
    if not records:
        raise RecordError(
            f"none of the {len(problems)} rows can be read; the first: {problems[0].what}",
            file=problems[0].file,
            line=problems[0].line,
            field=problems[0].field,
            remedy=problems[0].remedy,
        )
    sentence = _told(Path(path_or_name).name, told, problems, unused, files, left)
    return Loaded(records, " + ".join(entry.name for entry in told), sentence, problems)


def _laid_out(
    path: Path, file: str, columns: Mapping[str, str], layout: str | None, used: set[str]
) -> Iterator[tuple[Layout | None, Row | RecordError]]:
    """The rows of a file with their layout, known by the first that can be read; spoilt rows come as errors.

    A later row with more columns, which make it another layout (a label, say), is an error: read like the others it
    would lose them without a word.
    """
    flat = _suffixes(path)[0] in (".csv", ".tsv")
    entry: Layout | None = None
    known: set[str] = set()
    number = 0
    for number, found in _rows(path, file):
        if isinstance(found, RecordError):
            yield entry, found
            continue
        if missing := next((name for name in columns.values() if name not in found), None):
            ours = next(ours for ours, theirs in columns.items() if theirs == missing)
            what, remedy = f"there is no column {missing!r} to read as {ours!r}", nearest(missing, found).capitalize()
            fault = RecordError(what, file=file, line=number, field=missing, remedy=remedy)
            if entry is None:
                raise fault
            yield entry, fault
            continue
        data = {key: value for key, value in found.items() if key not in columns.values()}
        data |= {ours: found[theirs] for ours, theirs in columns.items()}
        if entry is None:
            entry = recognise(data, file, number, layout)
        elif layout is None and not data.keys() <= known and (other := _match(data)) not in (None, entry):
            what = f"this row is of another layout ({other.name}) than the first ({entry.name})"  # type: ignore[union-attr]
            remedy = "Put rows of different layouts into different files"
            extra = min(data.keys() - known)
            yield entry, RecordError(what, file=file, line=number, field=extra, remedy=remedy)
            continue
        known |= data.keys()
        yield entry, Row(data, file, number, used, flat=flat)
    if number == 0:
        raise RecordError("the file is empty", file=file, line=1, remedy="Give at least one row")


def _record(
    entry: Layout, row: Row, source: str | None, default: str, weight: float, columns: Mapping[str, str]
) -> Record:
    """One row as a record, with its place."""
    parts = entry.read(row)
    own = entry.read is read_record
    if not own:
        name, tools = row.get("tools")
        if tools is not None:
            parts["tools"] = row.items(name, tools) or None
        for key in {"source", "weight"} & columns.keys():
            value = row.need(key)[1]
            parts[key] = row.number(key, value) if key == "weight" else str(value)
    parts.pop("id", None)
    parts["source"] = source or parts.get("source") or default
    parts.setdefault("origin", {"file": row.file, "line": row.line})
    try:
        made = Record.model_validate(parts)
        return made if weight == 1 else Record.model_validate(parts | {"weight": made.weight * weight})
    except ValidationError as error:
        fault = explain(error)
        row.fail(fault.what, fault.field)


def _noun(record: Record) -> str:
    """What a record is to its reader, in the plural."""
    kinds = record.kinds
    if "pairs" in kinds:
        return "pairs with scores" if "ratings" in kinds else "pairs"
    if "rankings" in kinds:
        return "ranked lists"
    if len(record.responses) > 1 and kinds & {"ratings", "labels"}:
        return "rated lists" if "ratings" in kinds else "labelled lists"
    named = {"labels": "labelled responses", "ratings": "rated responses", "demonstrations": "demonstrations"}
    return next((noun for kind, noun in named.items() if kind in kinds), "prompts without responses")


def _told(
    name: str,
    told: dict[Layout, Counter[str]],
    problems: list[Problem],
    unused: Set[str],
    files: list[Path],
    left: list[str],
) -> str:
    parts = []
    for entry, counter in told.items():
        parts.append(", ".join([entry.description, *(_many(n, noun) for noun, n in counter.items())]))
    line = f"{name}: " + "; ".join(parts)
    if len(files) > 1:
        line += f"; {len(files)} files"
    if problems:
        why = Counter(f"{p.what}" + (f" in {p.field!r}" if p.field else "") for p in problems).most_common(3)
        line += f"; {_many(len(problems), 'rows')} skipped (" + "; ".join(f"{what}: {n:,}" for what, n in why) + ")"
    if unused:
        line += "; columns not used: " + ", ".join(sorted(unused))
    if left:
        line += f"; not data, left out: {', '.join(left[:5])}" + (f" and {len(left) - 5} more" if len(left) > 5 else "")
    return line


def _many(n: int, noun: str) -> str:
    first, _, rest = noun.partition(" ")
    if n == 1:
        noun = (first.removesuffix("s") + " " + rest if first.endswith("s") else noun.removesuffix("s")).strip()
    return f"{n:,} {noun}"
