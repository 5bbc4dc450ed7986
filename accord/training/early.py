"""Which coefficients of the loss are known while the logits still exist?

Those of a micro-batch whose examples lie in it whole, in a batch that no term couples. Its predicted tokens are cut
into chunks of whole examples; the engine takes each chunk's log-probs, gets d loss / d log-prob for them at once, and
need neither keep the chunk's logits nor compute them again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from accord.data.batches import Batch, Micro, merged
from accord.engine.logprobs import Given
from accord.training.terms import Example, Metrics, Seen, add_metrics

if TYPE_CHECKING:
    from accord.training.step import Collected, Step


def known(step: Step, collected: Collected) -> bool:
    """Whether the update's coefficients are: one set of them, of log-probs alone, micro-batch by micro-batch."""
    alone = not (step.needs or step.live or step.scorer.heads) and step.partition == "all" and step.rule is None
    return alone and collected.direct and step.logps and step.scorer.plain_head is not None


def chunks(batch: Batch, micro: Micro, rows: int) -> list[tuple[Tensor, Micro]]:
    """Predicted tokens of a micro-batch by place, [m], and the micro-batch as if it had no others: whole examples,
    as many as have no more than `rows` tokens, one at least.

    Example:
        Pairs of 60, 50, 90 and 30 tokens, at most 120: (60, 50), (90, 30).
    """
    here = set(micro.sequences.tolist())
    units = merged([*((i,) for i in here), *(p for _, _, p in batch.examples() if p[0] in here)])
    unit_of = {i: n for n, unit in enumerate(units) for i in unit}
    unit = np.array([unit_of[i] for i in micro.owner.tolist()])
    sizes = np.bincount(unit, minlength=len(units))
    group, used, count = np.zeros(len(units), np.int64), 0, 0
    for n in dict.fromkeys(unit.tolist()):
        if used and used + sizes[n] > rows:
            used, count = 0, count + 1
        used += sizes[n]
        group[n] = count
    of_row, of_sequence = group[unit], group[[unit_of[i] for i in micro.sequences.tolist()]]
    return [
        (
            torch.from_numpy(np.flatnonzero(of_row == n)),
            replace(micro, owner=micro.owner[of_row == n], sequences=micro.sequences[of_sequence == n]),
        )
        for n in range(count + 1)
    ]


def score(
    step: Step, collected: Collected, micro: Micro, mine: bool
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Seen]:
    """One pass of the scorer that has its coefficients in it already: what is handed back to it is 1; and what was
    measured."""
    parts = chunks(collected.batch, micro, step.scorer.chunk_rows)
    metrics: Metrics = {}
    examples: list[Example] = []

    def coefficients(number: int, logp: Tensor) -> Tensor:
        (found,), here = step.cotangents_of(collected, parts[number][1], mine, {"logp": logp}, ["all"], None)
        assert here is not None
        add_metrics(metrics, here.metrics)
        examples.extend(here.examples)
        return found["logp"]

    out = step.score(micro, Given([rows for rows, _ in parts], coefficients))
    return out, [{"given": torch.ones_like(out["given"])}], Seen(metrics, examples, {})
