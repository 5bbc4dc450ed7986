"""What is a judge? A function of records: for each of them, what it says of its responses.

Where a judgement comes from (a rule, a reward model, two language models, another model's words, a person) is not seen
behind this: `accord judge` writes judgements into files, the online loop into the records of a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from accord.data.records import Judgement, Record
from accord.errors import AccordError, ConfigError, ServerError

Say = Callable[[int, int], None]  # records done, of how many


class Judge(Protocol):
    """by: what stands as `by` in its judgements: the words that call it, with the key of its weights if it has some."""

    by: str

    def __call__(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
        """For each record its judgements: scores of responses, or preferences between them.

        Where it cannot judge a record, or not every response of it, this is an `Unjudged` that says why.
        """
        ...


class Unjudged(tuple[Judgement, ...]):
    """What a judge says of a record that it cannot judge (nothing), or only in part, and why."""

    why: str

    def __new__(cls, why: str, said: tuple[Judgement, ...] = ()) -> Unjudged:
        made = super().__new__(cls, said)
        made.why = why
        return made


def reason(error: Exception) -> str:
    """Why a record could not be judged, in one line; what is no mistake of the data's keeps its type."""
    what = next(iter(str(error).splitlines()), "")
    return what if isinstance(error, AccordError) else f"{type(error).__name__}: {what}"


def noted(judge: Judge) -> list[str]:
    """What a judge says of its own work, in lines: what it took, say."""
    notes = getattr(judge, "notes", None)
    return notes() if notes is not None else []


Numbers = Seq[float] | Unjudged  # a value for each response of a record, NaN where there is none


@dataclass
class Scored:
    """A judge that gives each response a number.

    Args:
        score: gives a list of numbers for each record, one a response, or an `Unjudged`.
        by, key: the words that call it, and the key of its weights, if it has some.
        scale: lowest and highest number, where they are known.
        alone: records are judged one by one, so that what spoils one spoils no other.
        attribute: what it judges, by which a view can choose one of several judges (`view.attribute`).

    >>> judge = Scored(lambda records, say: [[len(a.plain_text) for a in r.responses] for r in records], "length")
    >>> [j.value for j in judge([Record(prompt="Hi", responses=[{"text": "Ho"}, {"text": "Hello"}])])[0]]
    [2.0, 5.0]
    """

    score: Callable[[Seq[Record], Say], Seq[Numbers]]
    by: str = ""
    key: str = ""
    scale: tuple[float, float] | None = None
    alone: bool = False
    attribute: str = "overall"

    def __call__(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
        parts = [[r] for r in records] if self.alone else [records]
        return [self._said(record, numbers) for part in parts for record, numbers in self._numbers(part, say)]

    def _numbers(self, records: Seq[Record], say: Say) -> list[tuple[Record, Numbers]]:
        if not self.alone:
            return list(zip(records, self.score(records, say), strict=True))
        try:
            return list(zip(records, self.score(records, say), strict=True))
        except (ConfigError, ServerError):
            raise
        except Exception as error:  # of a function of the user's: whatever it may be, it is counted and named
            return [(r, Unjudged(reason(error))) for r in records]

    def _said(self, record: Record, numbers: Numbers) -> tuple[Judgement, ...]:
        if isinstance(numbers, Unjudged):
            return numbers
        if len(numbers) != len(record.responses):
            return Unjudged(f"{len(numbers)} numbers for {len(record.responses)} responses")
        said = tuple(
            Judgement(
                kind="score", response=i, value=float(value), scale=self.scale, by=self.by, attribute=self.attribute
            )
            for i, value in enumerate(numbers)
            if math.isfinite(value)
        )
        if len(said) < len(numbers):
            return Unjudged(f"{next(v for v in numbers if not math.isfinite(v))} is no score", said)
        return said


class Sum:
    """A weighted sum of products of judges that score: `0.5*sentiment + slogan:words=5`.

    A response that one of them does not score has no sum.

    >>> one, two = (Scored(lambda rs, say, v=v: [[v] for _ in rs], name) for v, name in ((2.0, "a"), (3.0, "b")))
    >>> both = Sum([(0.5, [one]), (1.0, [one, two])])
    >>> both.by, both([Record(prompt="Hi", responses=[{"text": "Ho"}])])[0][0].value
    ('0.5*a + a*b', 7.0)
    """

    def __init__(self, terms: Seq[tuple[float, Seq[Judge]]], attribute: str = "overall") -> None:
        self.terms, self.attribute = terms, attribute
        self.parts = list({judge.by: judge for _, judges in terms for judge in judges}.values())
        texts = ["*".join(([] if f == 1 else [f"{f:g}"]) + [judge.by for judge in judges]) for f, judges in terms]
        self.by = " + ".join(texts)

    def __call__(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
        found = {judge.by: judge(records, say) for judge in self.parts}
        made: list[tuple[Judgement, ...]] = []
        for n in range(len(records)):
            said = {by: self._values(by, several[n]) for by, several in found.items()}
            scored = sorted(set.intersection(*(set(values) for values in said.values())))
            total = tuple(
                Judgement(kind="score", response=i, value=self._total(said, i), by=self.by, attribute=self.attribute)
                for i in scored
            )
            why = next((s[n].why for s in found.values() if isinstance(s[n], Unjudged)), None)  # type: ignore[attr-defined]
            made.append(total if why is None else Unjudged(why, total))
        return made

    def _values(self, by: str, said: tuple[Judgement, ...]) -> dict[int, float]:
        if any(j.kind != "score" for j in said):
            raise ConfigError(f"{by} gives no scores, so it cannot be a part of a sum")
        return {j.response: j.value for j in said if j.response is not None}

    def _total(self, said: dict[str, dict[int, float]], i: int) -> float:
        return math.fsum(f * math.prod(said[judge.by][i] for judge in judges) for f, judges in self.terms)


def judged(records: Seq[Record], judge: Judge, say: Say = lambda done, of: None) -> list[Record]:
    """The records with the judge's judgements beside those that they had; what the same judge said before is replaced.

    >>> judge = Scored(lambda records, say: [[len(a.plain_text) for a in r.responses] for r in records], "length")
    >>> judged([Record(prompt="Hi", responses=[{"text": "Ho"}])], judge)[0].judgements[0].value
    2.0
    """
    return [said_beside(r, f, (judge.by,)) for r, f in zip(records, judge(records, say), strict=True)]


def said_beside(record: Record, said: Seq[Judgement], judges: Seq[str] = ()) -> Record:
    """The record with further judgements; what `judges` said before goes."""
    kept = tuple(j for j in record.judgements if j.by not in judges)
    return Record(**{**dict(record), "judgements": (*kept, *said)})
