"""Which of the judged answers to a prompt are kept, and as what?

Best-of-n: the best answer alone is a demonstration, and training on such is rejection-sampling fine-tuning. The best
and the worst are a pair.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence as Seq
from pathlib import Path

from accord.data.records import Judgement, Record
from accord.data.views import Counts, in_both_orders
from accord.errors import ConfigError, nearest
from accord.judges.files import Story, judge_into
from accord.judges.frame import Judge, Say

KEPT = ("best", "best_worst", "all")


def known(what: str) -> str:
    """
    Raises:
        ConfigError: nothing is kept in that way.
    """
    if what not in KEPT:
        raise ConfigError(f"keep={what!r} is not known; {nearest(what, KEPT)}")
    return what


def keep(record: Record, by: str, what: str, counts: Counts) -> Record | None:
    """What is kept of a record, by the scores that the judge `by` gave, or by how often it preferred each answer to the
    others; None if nothing is.

    `best`: its answer with the highest score and no judgement, which training takes for a demonstration; of several the
    first. `best_worst`: the best and the worst, with their scores and a preference. `all`: the record.

    >>> said = [Judgement(kind="score", response=i, value=v, by="j") for i, v in enumerate((1, 3, 3))]
    >>> record = Record(prompt="Hi", responses=[{"text": t} for t in "abc"], judgements=said)
    >>> counts = Counts()
    >>> best = keep(record, "j", "best", counts)
    >>> best.responses[0].text, best.kinds, counts.totals()
    ('b', frozenset({'demonstrations'}), {'kept: the first of several best': 1})
    >>> [(j.kind, j.pair or j.response, j.value) for j in keep(record, "j", "best_worst", counts).judgements]
    [('score', 0, 3.0), ('score', 1, 1.0), ('preference', (0, 1), 1.0)]
    """
    if what == "all":
        return record
    own = [j for j in record.judgements if j.by == by]
    scores = {j.response: j for j in own if j.kind == "score" and j.response is not None} or _win_rates(own, by)
    if not scores:
        raise ConfigError(f"{by} neither scores nor compares, so none of the answers is best; use --keep all")
    best, worst = max(scores, key=lambda i: scores[i].value), min(scores, key=lambda i: scores[i].value)
    alike = sum(j.value == scores[best].value for j in scores.values())
    if what == "best":
        if alike > 1:
            counts.add("kept: the first of several best", record)
        said = record.responses[best].model_copy(update={"revised_from": None})
        return Record(**{**dict(record), "responses": (said,), "judgements": ()})
    if scores[best].value == scores[worst].value:
        counts.add("left: one answer alone" if len(scores) == 1 else "left: all answers are equally good", record)
        return None
    pair = tuple(record.responses[i].model_copy(update={"revised_from": None}) for i in (best, worst))
    values = tuple(scores[i].model_copy(update={"response": n}) for n, i in enumerate((best, worst)))
    chosen = Judgement(kind="preference", pair=(0, 1), value=1.0, by=by)
    return Record(**{**dict(record), "responses": pair, "judgements": (*values, chosen)})


def _win_rates(said: Seq[Judgement], by: str) -> dict[int, Judgement]:
    """Of verdicts on pairs, the mean of P(it is better) of each answer, as its score."""
    won: dict[int, list[float]] = {}
    for j in in_both_orders(said):
        if j.pair is not None and not j.margin:
            won.setdefault(j.pair[0], []).append(j.value)
            won.setdefault(j.pair[1], []).append(1 - j.value)
    return {
        i: Judgement(kind="score", response=i, value=sum(v) / len(v), attribute="win_rate", by=by)
        for i, v in won.items()
    }


def judged_and_kept(
    records: Seq[Record], judge: Judge, what: str, output: Path | None = None, say: Say = lambda done, of: None
) -> tuple[list[Record], Story, Counts]:
    """Judges the answers of records and keeps some of them.

    Args:
        output: the file that they will be written to; beside it, a hidden one holds what is judged until all is. None:
            they are not written, and a kill loses them.

    Returns:
        what is kept; what the judge said, in numbers; what was decided.
    """
    counts, made = Counts(), list[Record]()
    with tempfile.TemporaryDirectory() as folder:
        identity = hashlib.blake2b("\n".join([judge.by, *(r.id for r in records)]).encode(), digest_size=6).hexdigest()
        stem = f".{output.name if output else 'answers'}."
        scratch = (output.parent if output else Path(folder)) / f"{stem}{identity}.judged.jsonl"
        story = judge_into(scratch, records, [judge], say=say)
        with scratch.open(encoding="utf-8") as lines:
            for line in lines:
                if (found := keep(Record.from_json(line), judge.by, what, counts)) is not None:
                    made.append(found)
    return made, story, counts


def forget(output: Path) -> None:
    """Removes what was kept beside an output until it was written."""
    for scratch in output.parent.glob(f".{output.name}.*.judged.jsonl"):
        scratch.unlink()
