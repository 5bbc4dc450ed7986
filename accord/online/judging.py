"""Who is asked, and for what? A judge's words to a judge, and what it says of a round's answers.

Most judges score each answer. One that compares (`compares = True`) is given two answers at a time: those comparisons
alone that the pairing rule needs, the rounds of a tournament one after another, and all prompts' of a round together.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

from accord.data.records import Judgement, Record
from accord.data.views import together
from accord.judges.files import tried
from accord.judges.frame import Judge, Unjudged, said_beside
from accord.judges.table import check as check  # what a loop calls
from accord.judges.table import find as find
from accord.online.pairing import Asking, Pair


def asked(
    records: Seq[Record], judge: Judge, asking: Callable[[int], Asking], why: dict[int, str] | None = None
) -> list[Record]:
    """The records with what the judge says of their answers beside what was said before.

    Args:
        why: gets the reason of each record that the judge could not judge, or not as a whole.
    """
    why = {} if why is None else why
    if not getattr(judge, "compares", False):
        found = tried(judge, records)
        why |= {n: said.why for n, said in enumerate(found) if isinstance(said, Unjudged)}
        return [said_beside(r, said, (judge.by,)) for r, said in zip(records, found, strict=True)]
    plays = [asking(len(r.responses)) for r in records]
    wanted: dict[int, list[Pair]] = {n: next(play) for n, play in enumerate(plays) if len(records[n].responses) > 1}
    said: dict[int, list[Judgement]] = {n: [] for n in range(len(records))}
    while wanted:
        small = [(n, pair, _two(records[n], pair)) for n, pairs in wanted.items() for pair in pairs]
        found = tried(judge, [two for _, _, two in small])
        answers: dict[int, list[float]] = {n: [] for n in wanted}
        for (n, pair, _), verdicts in zip(small, found, strict=True):
            if isinstance(verdicts, Unjudged):
                why.setdefault(n, verdicts.why)
            said[n] += [_placed(v, pair) for v in verdicts]
            answers[n].append(_mean(verdicts))
        following = {}
        for n, values in answers.items():
            try:
                following[n] = plays[n].send(values)
            except StopIteration:
                continue
        wanted = following
    return [said_beside(r, said[n], (judge.by,)) for n, r in enumerate(records)]


def _two(record: Record, pair: Pair) -> Record:
    answers = tuple(record.responses[i].model_copy(update={"revised_from": None}) for i in pair)
    return Record(prompt=record.prompt, tools=record.tools, responses=answers, source=record.source)


def _placed(said: Judgement, pair: Pair) -> Judgement:
    """A judgement of two answers as one of these of the whole record."""
    moved: dict[str, Any] = {"pair": tuple(pair[i] for i in said.pair)} if said.pair else {}
    if said.response is not None:
        moved["response"] = pair[said.response]
    if said.order is not None:
        moved["order"] = tuple(pair[i] for i in said.order)
    return said.model_copy(update=moved)


def _mean(verdicts: Seq[Judgement]) -> float:
    """P(the first is better); one half if nothing was said."""
    found = [v.value if v.pair == (0, 1) else 1 - v.value for v in verdicts if v.pair is not None and not v.margin]
    return together(found) if found else 0.5
