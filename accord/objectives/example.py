"""One-example kinds in float64, for the worked numbers in docstrings and for trying an objective by hand."""

from __future__ import annotations

import math

import torch

from accord.objectives.kinds import Demos, Groups, Pairs, Points, Rollouts


def _row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> torch.Tensor:
    """One 0-dim number, such as a log Z shared by all prompts."""
    return torch.tensor(value, dtype=torch.float64)


def pairs(
    chosen: float,
    rejected: float,
    *,
    lengths: tuple[int, int] = (5, 5),
    strength: float = 1.0,
    scores: tuple[float, float] = (math.nan, math.nan),
) -> Pairs:
    """One pair."""
    return Pairs(
        _row(chosen),
        _row(rejected),
        _row(lengths[0]),
        _row(lengths[1]),
        _row(strength),
        _row(scores[0]),
        _row(scores[1]),
    )


def points(logp: float, value: float = 1.0, *, length: int = 5) -> Points:
    """One judged response."""
    return Points(_row(logp), _row(length), _row(value))


def demos(logp: float, *, length: int = 5) -> Demos:
    """One demonstration."""
    return Demos(_row(logp), _row(length))


def groups(logp: list[float], score: list[float]) -> Groups:
    """One group of scored responses."""
    k = len(logp)
    return Groups(
        _row(*logp)[None],
        torch.full((1, k), 5.0, dtype=torch.float64),
        _row(*score)[None],
        torch.ones(1, k, dtype=torch.bool),
    )


def rollouts(logp: list[float], advantage: list[float], *, old: list[float] | None = None) -> Rollouts:
    """One sampled answer token by token, [1, L]; `old`: log-probs when it was sampled, by default those of now."""
    mask = torch.ones(1, len(logp), dtype=torch.bool)
    return Rollouts(_row(*logp)[None], _row(*(old or logp))[None], _row(*advantage)[None], mask)


def token_pairs(chosen: list[float], rejected: list[float]) -> Pairs:
    """One pair token by token: [1, L], with masks in place of lengths."""
    width = max(len(chosen), len(rejected))
    w, l = (_row(*t, *[0.0] * (width - len(t)))[None] for t in (chosen, rejected))
    in_w, in_l = (torch.arange(width)[None] < len(t) for t in (chosen, rejected))
    return Pairs(w, l, in_w, in_l, _row(1.0), _row(math.nan), _row(math.nan))
