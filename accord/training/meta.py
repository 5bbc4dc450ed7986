"""How does a reward model keep telling apart what the policy says by now? MetaRM (arXiv 2401.06080, Algorithm 1).

The labelled pairs were written by other policies. Before each update the weights take a step up J, how far apart the
rewards of several answers of the policy to one prompt lie; the gradient of the loss is taken there, and applied here.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from accord.data.batches import Batch, seeded
from accord.data.chat import Chat, Sequence
from accord.data.records import Record
from accord.data.views import Branch, Counts
from accord.engine.logprobs import no_dropout
from accord.errors import ConfigError, nearest
from accord.training.sets import hand_back

if TYPE_CHECKING:
    from accord.training.step import Step

OPTIONS = ("way", "data", "rate", "groups")


@dataclass
class Meta:
    """Groups of answers of the policy, and how far the weights go by them.

    Args:
        answers: of each prompt, two answers or more as tokens.
        rate: of the step up J; ours, the paper gives none.
        groups: prompts of one step.
        seed: of their order.
    """

    answers: list[list[Sequence]]
    rate: float = 1e-3
    groups: int = 4
    seed: int = 0

    @classmethod
    def of(cls, asked: Mapping[str, Any], records: Seq[Record], chat: Chat, counts: Counts, seed: int) -> Meta:
        """From the map under `update`, whose `data` are the records.

        Raises:
            ConfigError: an option that is unknown or impossible, or no record with two answers.
        """
        rate, groups = (asked.get(k, default) for k, default in (("rate", 1e-3), ("groups", 4)))
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise ConfigError(f"update.rate={rate!r} must be a number above 0")
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ConfigError(f"update.groups={groups!r} must be a whole number above 0")
        answers = []
        for i, record in enumerate(records):
            made = chat.encode(record, [Branch(i, j) for j in range(len(record.responses))], counts)
            if made is not None and len(made) > 1:
                answers.append(made)
        if not answers:
            raise ConfigError(
                f"update.data={asked['data']!r}: no prompt there has two answers, whose rewards could lie apart; "
                "`accord sample --samples 4` writes several"
            )
        return cls(answers, float(rate), groups, seed)

    def drawn(self, number: int) -> list[list[Sequence]]:
        """The groups of update `number`: permuted passes over all of them."""
        n = len(self.answers)
        places = range(number * self.groups, (number + 1) * self.groups)
        orders = {turn: seeded(self.seed, "meta", turn).permutation(n) for turn in {p // n for p in places}}
        return [self.answers[orders[p // n][p % n]] for p in places]


def check(asked: Mapping[str, Any]) -> None:
    """Raises a ConfigError if a map under `update` is not of MetaRM."""
    for key in asked:
        if key not in OPTIONS:
            raise ConfigError(f"update.{key} is not known; {nearest(str(key), OPTIONS)}")
    if asked.get("way") != "meta" or not isinstance(asked.get("data"), str):
        raise ConfigError("update: a map is of MetaRM, like {way: meta, data: samples.jsonl, rate: 0.001, groups: 4}")


def spread(scores: Tensor) -> Tensor:
    """How far apart the rewards [k] of one prompt's answers lie.

    Equation:
        J = 2 / k^2 * sum over i < j of sigmoid(|r_i - r_j|)

    >>> spread(torch.tensor([1.0, 1.0])).item(), round(spread(torch.tensor([0.0, 1.0, 3.0])).item(), 6)
    (0.25, 0.569873)
    """
    gaps = (scores[:, None] - scores[None, :]).abs()
    i, j = np.triu_indices(len(scores), 1)
    return 2.0 / len(scores) ** 2 * gaps[i, j].sigmoid().sum()


def ascend(step: Step, number: int) -> float:
    """Moves the weights by rate x grad J, the mean over the update's groups; returns J as it was."""
    meta = step.meta
    assert meta is not None
    sequences: list[Sequence] = []
    units: list[tuple[int, ...]] = []
    ends: list[list[int]] = []  # of each group, where each answer's last turn stands
    for group in meta.drawn(number):
        first = len(sequences)
        ends.append([])
        for answer in group:
            sequences += [answer, *answer.later]
            ends[-1].append(len(sequences) - 1)
        units.append(tuple(range(first, len(sequences))))
    micros, owned = step.mine(Batch(sequences, {}, np.zeros(len(sequences), bool)), units)
    for p in step.parameters:
        p.grad = None
    total = 0.0
    for micro, mine in zip(micros, owned, strict=True):
        with no_dropout(step.scorer):
            out = step.score(micro)
        leaf = out["head:score"].detach().cpu().to(step.dtype).requires_grad_(True)
        at = {s: i for i, s in enumerate(micro.sequences.tolist())}
        here = [spread(leaf[[at[e] for e in group]]) for group in ends if group[0] in at]
        j = torch.stack(here).sum() / len(units)
        (up,) = torch.autograd.grad(j, leaf)
        hand_back(out, {"head:score": up if mine else torch.zeros_like(up)}, again=False)
        total += float(j.detach()) if mine else 0.0
    with torch.no_grad():
        for p in step.parameters:
            if p.grad is not None:
                p.add_(p.grad, alpha=meta.rate)
                p.grad = None
    return sum(step.processes.gather(total))
