"""What an objective feeds on: small named tensors, one row an example.

Shapes: B examples, K responses of one prompt, L tokens of the longest response. Log-probs are nats, float32 or
better; whether they are sums or means over a response's tokens is the run's `length` option, chosen before the
objective is called. The same types carry other statistics of the same responses: an argument `ref` is a `Pairs`
whose `chosen` and `rejected` are the reference's log-probs, `kl` one that holds sequence KLs, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """Base of the kinds: permuting, slicing and moving act on every tensor alike."""

    def map(self, function: Any) -> Self:
        """The same kind with `function` applied to every tensor that is present."""
        return replace(
            self, **{f.name: function(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        )

    def __getitem__(self, index: Any) -> Self:
        return self.map(lambda t: t[index])


@dataclass(frozen=True)
class Demos(Kind):
    """Demonstrations. logp [B] nats, length [B] tokens."""

    logp: Tensor
    length: Tensor


@dataclass(frozen=True)
class Points(Kind):
    """Single judged responses. logp [B] nats, length [B] tokens, value [B] (a label in [0, 1], or a score)."""

    logp: Tensor
    length: Tensor
    value: Tensor


@dataclass(frozen=True)
class Pairs(Kind):
    """Two responses to one prompt, chosen and rejected.

    chosen, rejected [B] nats; chosen_length, rejected_length [B] tokens; strength [B], P(chosen is better) in
    [0, 1], 1 for a plain preference; score_chosen, score_rejected [B], NaN where nobody scored them.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    strength: Tensor
    score_chosen: Tensor
    score_rejected: Tensor


@dataclass(frozen=True)
class Groups(Kind):
    """K scored responses to one prompt. logp, length, score [B, K]; mask [B, K] is True where there is a response."""

    logp: Tensor
    length: Tensor
    score: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Tokens(Kind):
    """Token log-probs of single responses. logp [B, L] nats, mask [B, L] True on trained tokens, value [B]."""

    logp: Tensor
    mask: Tensor
    value: Tensor


@dataclass(frozen=True)
class Rollouts(Kind):
    """Sampled responses with advantages. logp, old_logp, advantage [B, L], mask [B, L] True on trained tokens."""

    logp: Tensor
    old_logp: Tensor
    advantage: Tensor
    mask: Tensor


KINDS: dict[str, type[Kind]] = {k.__name__: k for k in (Demos, Points, Pairs, Groups, Tokens, Rollouts)}


def require_float32(*tensors: Tensor) -> None:
    """Refuses anything below float32: sums of low-precision log-probs are where preference losses go wrong.

    Raises:
        TypeError: a tensor is float16 or bfloat16.
    """
    for t in tensors:
        if t.is_floating_point() and torch.finfo(t.dtype).bits < 32:
            raise TypeError(f"log-probs must be float32 or better, not {t.dtype}; cast them where they are summed")
