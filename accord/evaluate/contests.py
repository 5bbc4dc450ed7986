"""Who answered what, and which answer was said to be better? Files of answers and of verdicts, in anybody's layout.

| a file of | is known by |
|---|---|
| answers, AlpacaEval | `instruction`, `output`, `generator` |
| answers, Arena-Hard and MT-bench | `question_id` or `uid`, with `choices` or `messages`; questions are a file apart |
| verdicts, AlpacaEval | `output_1`, `output_2`, `preference` from 1 (the first) to 2 (the second); 0 is a draw |
| verdicts, Arena-Hard | `games` with `score` such as `A>B`; in the first game the baseline is A, in the second one B |
| verdicts, MT-bench | `g1_winner`, `g2_winner`; `model`, `score` and `turn` for single answers |
| anything else that Accord reads | records: answers, and judgements between answers whose `sampler` differs |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accord.data import sources
from accord.data.files import bundled, find
from accord.data.records import Message, Record, Response, Sampler
from accord.data.rows import Row, many
from accord.errors import ConfigError, RecordError
from accord.sinks import JsonLines

ARENA = {  # P(A is better), how much the verdict weighs in Arena-Hard's mean
    "A>>B": (1.0, 3.0), "A>B": (1.0, 1.0), "A=B": (0.5, 1.0), "A<B": (0.0, 1.0), "A<<B": (0.0, 3.0),
    "B>>A": (0.0, 3.0), "B>A": (0.0, 1.0), "B=A": (0.5, 1.0), "B<A": (1.0, 1.0), "B<<A": (1.0, 3.0),
}  # fmt: skip
WINNERS = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5}
UNPARSED = -1.0  # MT-bench's score of a verdict without a number


@dataclass(frozen=True)
class Verdict:
    """P(models[0] is better than models[1]) in one look at one prompt.

    game: which two answers were compared; verdicts of one game are put together. shown: which of the models stood first
    (0 or 1), where that is known. lengths: of the two answers, in characters, where they are known.
    """

    prompt: str
    game: str
    models: tuple[str, str]
    value: float
    shown: int | None = None
    weight: float = 1.0
    lengths: tuple[int, int] | None = None
    by: str = ""


@dataclass(frozen=True)
class Score:
    """What a single answer got. turn: of a dialogue, from 1."""

    prompt: str
    model: str
    value: float
    turn: int | None = None
    by: str = ""


@dataclass
class Contest:
    """All that files say.

    answers: model, then prompt key, then its answers. prompts: the prompt of a key, where a file has it; later: what is
    asked after it. left: what was left out, by reason.
    """

    answers: dict[str, dict[str, list[Response]]] = field(default_factory=dict)
    prompts: dict[str, str | tuple[Message, ...]] = field(default_factory=dict)
    later: dict[str, list[str]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def add(self, model: str, key: str, answer: Response, prompt: str | tuple[Message, ...] | None = None) -> None:
        """One more answer of a model."""
        self.answers.setdefault(model, {}).setdefault(key, []).append(answer)
        if prompt is not None:
            self.prompts.setdefault(key, prompt)

    def measured(self) -> list[Verdict]:
        """The verdicts, with lengths of answers that stand in other files."""
        return [v if v.lengths else self._measured(v) for v in self.verdicts]

    def _measured(self, v: Verdict) -> Verdict:
        turn = int(v.game.rpartition("#")[2] or 0) if "#" in v.game else 0
        found = [self.answers.get(m, {}).get(v.prompt, []) for m in v.models]
        if len(found[0]) != 1 or len(found[1]) != 1:
            return v
        a, b = (_characters(one, turn) for (one,) in found)
        return Verdict(v.prompt, v.game, v.models, v.value, v.shown, v.weight, (a, b), v.by)


def _characters(answer: Response, turn: int = 0) -> int:
    said = [str(m.content or "") for m in answer.messages or () if m.role == "assistant"]
    return len(said[turn - 1] if 0 < turn <= len(said) else answer.plain_text)


def collect(names: Seq[str], *, questions: str | None = None) -> Contest:
    """What stands in files, folders of files, and run folders with `samples.jsonl` (whose `before` is a model, too).

    Args:
        questions: a file of `question_id` or `uid` with `turns` or `prompt`, for answers that do not say to what.

    Raises:
        RecordError: a row that cannot be read; file, line and field are named.
    """
    made = Contest()
    if questions is not None:
        _questions(questions, made)
    called = _called(names)
    for name in names:
        before = len(made.verdicts), len(made.scores), sum(len(a) for a in made.answers.values())
        folder = Path(name)
        if (folder / "samples.jsonl").is_file():
            _samples(folder, called[name], made, whole=len(names) == 1)
        elif (layout := _layout(name)) is not None:
            for row in _rows(name):
                layout(row, called[name], made)
        else:
            loaded = sources.load(name)
            _records(loaded.records, called[name], made)
        after = len(made.verdicts), len(made.scores), sum(len(a) for a in made.answers.values())
        found = (
            many(n - o, w) for n, o, w in zip(after, before, ("verdicts", "scores", "answers"), strict=True) if n > o
        )
        made.told.append(f"{name}: {', '.join(found) or 'nothing that can be compared'}")
    return made


def _called(names: Seq[str]) -> dict[str, str]:
    """What a file's model is called where the file does not say: its name, or its path where two have one name."""
    short = {name: sources.source_name(name.rstrip("/")) for name in names}
    held = Counter(short.values())
    return {name: s if held[s] == 1 else name for name, s in short.items()}


def _rows(name: str) -> Iterator[Row]:
    for part in find(name, bundled()).parts:
        for number, row in part.rows():
            if isinstance(row, RecordError):
                raise row
            yield Row(row, part.file, number, set(), flat=part.flat)


def _layout(name: str) -> Any:
    """The function that reads the rows of a layout of an arena; None for a file of records."""
    first = next(_rows(name), None)
    columns = set(first.data) if first else set()
    return next((read for needed, read in LAYOUTS if all(columns & names for names in needed)), None)


def _samples(folder: Path, name: str, made: Contest, *, whole: bool) -> None:
    for number, row in enumerate(JsonLines(folder / "samples.jsonl").read(), 1):
        said = Row(row, str(folder / "samples.jsonl"), number, set())
        record = Record(prompt=said.text(*said.need("prompt")))
        made.add(name, record.prompt_key, Response(text=said.text(*said.need("after"))), record.prompt)
        if whole:
            made.add(f"{name}:before", record.prompt_key, Response(text=said.text(*said.need("before"))))


def _records(records: Seq[Record], name: str, made: Contest) -> None:
    many_models = any(a.sampler and a.sampler.model != name for r in records for a in r.responses) and (
        len({_who(a, "") for r in records for a in r.responses}) > 1
    )
    for record in records:
        who = [_who(a, name) if many_models else name for a in record.responses]
        for model, answer in zip(who, record.responses, strict=True):
            made.add(model, record.prompt_key, answer, record.prompt)
        _said(record, who, made)


def _who(answer: Response, otherwise: str) -> str:
    return answer.sampler.model if answer.sampler else otherwise


def _said(record: Record, who: Seq[str], made: Contest) -> None:
    """The judgements of a record, as scores of answers and as verdicts between answers of different models."""
    texts = [a.plain_text for a in record.responses]
    compared = {j.by for j in record.judgements if j.kind == "preference"}

    def add(i: int, j: int, value: float, first: int | None, by: str | None) -> None:
        if who[i] == who[j]:
            made.left["judgements between two answers of one model"] += 1
            return
        (a, x), (b, y) = sorted([(who[i], texts[i]), (who[j], texts[j])])
        shown = None if first is None else int(first == j)
        game = "\0".join((record.prompt_key, a, x, b, y))
        made.verdicts.append(
            Verdict(
                record.prompt_key, game, (who[i], who[j]), value, shown, 1.0, (len(texts[i]), len(texts[j])), by or ""
            )
        )

    for n, j in enumerate(record.judgements):
        if j.kind == "preference" and j.pair is not None:
            value = j.value if not j.margin else (j.value > 0) + 0.5 * (j.value == 0)
            add(*j.pair, value, next((i for i in j.order or () if i in j.pair), None), j.by)
        elif j.kind == "score" and j.response is not None and j.step is None and j.span is None:
            made.scores.append(Score(record.prompt_key, who[j.response], j.value, by=j.by or ""))
            for other in record.judgements[n + 1 :] if j.by not in compared else ():
                alike = (other.kind, other.by, other.attribute, other.step) == ("score", j.by, j.attribute, None)
                if alike and other.response is not None and other.response != j.response:
                    value = (j.value > other.value) + 0.5 * (j.value == other.value)
                    add(j.response, other.response, value, None, j.by)


# -- layouts of arenas -------------------------------------------------------------------------------------------------


def _key(row: Row) -> str:
    return str(row.need("question_id", "uid")[1])


def _turn(row: Row, name: str, value: Any) -> str:
    """The text of a turn: as it is, or in `content`, or in its `answer`."""
    for inner in ("content", "answer"):
        value = value.get(inner, value) if isinstance(value, dict) else value
    return row.text(name, value)


def _dialogue(row: Row, made: Contest, key: str, said: Seq[str]) -> Response:
    """An answer of several turns, between them the questions, where these are known."""
    if len(said) == 1:
        return Response(text=said[0])
    between = made.later.get(key, [])
    turns = [Message(role="assistant", content=said[0])]
    for i, text in enumerate(said[1:]):
        turns.append(Message(role="user", content=between[i] if i < len(between) else ""))
        turns.append(Message(role="assistant", content=text))
    return Response(messages=tuple(turns))


def _questions(name: str, made: Contest) -> None:
    for row in _rows(name):
        key = _key(row)
        field_, asked = row.need("turns", "prompt")
        turns = [_turn(row, field_, t) for t in (asked if isinstance(asked, list) else [asked])]
        if not turns:
            row.fail("there are no turns in it", field_)
        made.prompts[key] = turns[0]
        made.later[key] = turns[1:]


def _alpaca_answer(row: Row, name: str, made: Contest) -> None:
    record = Record(prompt=row.text(*row.need("instruction")))
    model = row.get("generator")[1]
    answer = Response(text=row.text(*row.need("output")))
    made.add(str(model or name), record.prompt_key, answer, record.prompt)


def _alpaca_verdict(row: Row, name: str, made: Contest) -> None:
    record = Record(prompt=row.text(*row.need("instruction")))
    one, two = (str(row.get(f"generator_{i}")[1] or f"output_{i}") for i in (1, 2))
    texts = [row.text(*row.need(f"output_{i}")) for i in (1, 2)]
    if one == two:
        made.left["answers of one model compared with themselves"] += 1
        return
    for model, text in zip((two, one), texts[::-1], strict=True):
        if record.prompt_key not in made.answers.get(model, {}):
            made.add(model, record.prompt_key, Response(text=text), record.prompt)
    field_, said = row.get("preference")
    if said is None:
        made.left["the judge gave no verdict"] += 1
        return
    value = row.number(field_, said) or 1.5
    if not 1 <= value <= 2:
        row.fail(f"a preference lies between 1 (output_1) and 2 (output_2), or is 0 for a draw, not {value:g}", field_)
    by = str(row.get("annotator")[1] or "")
    made.verdicts.append(
        Verdict(
            record.prompt_key, record.prompt_key, (two, one), value - 1, None, 1.0, (len(texts[1]), len(texts[0])), by
        )
    )


def _choices(row: Row, name: str, made: Contest) -> None:
    key, model = _key(row), row.get("model_id", "model")[1]
    field_, choices = row.need("choices")
    choices = row.items(field_, choices)
    if not choices:
        row.fail("there is no answer in it", field_)
    inner = row.inner(f"{field_}.0", choices[0])
    turns = [_turn(row, f"{field_}.0.turns", t) for t in inner.items(*inner.need("turns"))]
    if not turns:
        row.fail("there is no answer in it", f"{field_}.0.turns")
    made.add(str(model or name), key, _dialogue(row, made, key, turns))


def _dialogues(row: Row, name: str, made: Contest) -> None:
    key, model = _key(row), row.get("model", "model_id")[1]
    field_, messages = row.need("messages")
    turns = [m for m in row.items(field_, messages) if isinstance(m, dict)]
    said = [_turn(row, field_, m) for m in turns if m.get("role") == "assistant"]
    if not said:
        row.fail("there is no turn of the assistant in it", field_)
    made.add(str(model or name), key, _dialogue(row, made, key, said))
    asked = next((m for m in turns if m.get("role") == "user"), None)
    if asked is not None:
        made.prompts.setdefault(key, _turn(row, field_, asked))


def _arena(row: Row, name: str, made: Contest) -> None:
    key, model = _key(row), str(row.need("model", "model_id")[1])
    baseline = str(row.get("baseline")[1] or "baseline")
    field_, games = row.need("games")
    said: list[tuple[float, float] | None] = []
    for i, game in enumerate(row.items(field_, games)[:2]):
        verdict = game.get("score") if isinstance(game, dict) else None
        if verdict is not None and verdict not in ARENA:
            row.fail(f"a verdict is {', '.join(list(ARENA)[:5])}, not {verdict!r}", f"{field_}.{i}.score")
        said.append(ARENA.get(verdict or ""))
    if not said or None in said:
        made.left["the judge gave no verdict"] += 1
        return
    for shown, found in zip((1, 0), said, strict=False):  # the baseline is A in the first game, the model in the second
        assert found is not None
        value, weight = found
        of_model = value if shown == 0 else 1 - value
        by = str(row.get("judge")[1] or "")
        made.verdicts.append(Verdict(key, key, (model, baseline), of_model, shown, weight, None, by))


def _bench_pair(row: Row, name: str, made: Contest) -> None:
    key, models = _key(row), (str(row.need("model_1")[1]), str(row.need("model_2")[1]))
    values = []
    for field_ in ("g1_winner", "g2_winner"):
        said = row.need(field_)[1]
        if said != "error" and said not in WINNERS:
            row.fail(f"the winner is {', '.join(WINNERS)} or error, not {said!r}", field_)
        values.append(WINNERS.get(said))
    if None in values:
        made.left["the judge gave no verdict"] += 1
        return
    turn = row.get("turn")[1]
    game = key if turn is None else f"{key}#{turn}"
    for shown, value in enumerate(values):  # model_1 stands first in the first game, model_2 in the second
        assert value is not None
        made.verdicts.append(Verdict(key, game, models, value, shown, 1.0, None, _judge(row)))


def _bench_single(row: Row, name: str, made: Contest) -> None:
    value = row.number(*row.need("score"))
    if value == UNPARSED:
        made.left["the judge gave no score"] += 1
        return
    turn = row.get("turn")[1]
    turn = None if turn is None else int(row.number("turn", turn))
    model = str(row.need("model", "model_id")[1])
    made.scores.append(Score(_key(row), model, value, turn, _judge(row)))


def _judge(row: Row) -> str:
    said = row.get("judge")[1]
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said or "")


ID = {"question_id", "uid"}
LAYOUTS: list[tuple[tuple[set[str], ...], Any]] = [  # one of each set of columns is there
    (({"instruction"}, {"output_1"}, {"output_2"}, {"preference"}), _alpaca_verdict),
    (({"instruction"}, {"output"}, {"generator"}), _alpaca_answer),
    ((ID, {"games"}), _arena),
    ((ID, {"g1_winner"}), _bench_pair),
    ((ID, {"score"}, {"model", "model_id"}, {"judge", "judgment"}), _bench_single),
    ((ID, {"choices"}), _choices),
    ((ID, {"messages"}, {"model", "model_id"}), _dialogues),
]


# -- what is to be judged ----------------------------------------------------------------------------------------------


def games(made: Contest, models: Seq[str] = ()) -> list[Record]:
    """The answers of every two models to one prompt as records; of several answers the first with the first, and so on.

    Raises:
        ConfigError: fewer than two models, no prompt that two of them answer, or prompts that no file states.
    """
    names = list(models or made.answers)
    if len(names) < 2:
        raise ConfigError(f"a comparison needs the answers of two models, and here is {', '.join(names) or 'none'}")
    found = []
    for n, one in enumerate(names):
        for two in names[n + 1 :]:
            for key, mine in made.answers[one].items():
                theirs = made.answers[two].get(key, [])
                if not theirs:
                    made.left[f"prompts that {two} does not answer"] += 1
                elif len(mine) != len(theirs):
                    made.left["answers that another model gave fewer times"] += abs(len(mine) - len(theirs))
                pairs = zip(mine, theirs, strict=False)
                found += [_game(made, key, (one, a), (two, b)) for a, b in pairs]
    if not found:
        raise ConfigError(f"{' and '.join(names[:2])} answer no prompt that is the same")
    return found


def answers(made: Contest) -> list[Record]:
    """Each answer as a record of its own.

    Raises:
        ConfigError: there is none, or prompts that no file states.
    """
    if not made.answers:
        raise ConfigError("these files hold no answers that could be judged")
    return [
        _game(made, key, (model, answer))
        for model, of in made.answers.items() for key, several in of.items() for answer in several
    ]  # fmt: skip


def _game(made: Contest, key: str, *sides: tuple[str, Response]) -> Record:
    if key not in made.prompts:
        raise ConfigError(f"no file says what question {key} is; name the file of questions with --questions")
    return Record(prompt=made.prompts[key], responses=tuple(signed(answer, model) for model, answer in sides))


def signed(answer: Response, model: str) -> Response:
    """The answer alone, with the model's name under it."""
    by = answer.sampler.model_copy(update={"model": model}) if answer.sampler else Sampler(model=model)
    return answer.model_copy(update={"sampler": by, "revised_from": None})


def turned(record: Record) -> Record:
    """The same two answers, the second one first."""
    return Record(**{**dict(record), "responses": record.responses[::-1]})
