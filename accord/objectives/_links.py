"""Shared pieces of the objectives: a margin or a score in, a loss out. All of them act element by element."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def soft_logistic(margin: Tensor, p: Tensor | float = 1.0) -> Tensor:
    """-p log sigmoid(m) - (1 - p) log sigmoid(-m), in the form softplus(-m) + (1 - p) m, for any real p.

    p is not clamped: label noise corrections use p > 1. margin [B] nats, returns [B]. Slope: sigmoid(m) - p.
    """
    return F.softplus(-margin) + (1.0 - p) * margin


def hinge(margin: Tensor, at: float = 1.0) -> Tensor:
    """max(0, at - m). margin [B] nats, returns [B]."""
    return F.relu(at - margin)


def square(margin: Tensor, target: Tensor | float) -> Tensor:
    """(m - target)^2. margin [B], returns [B]."""
    return (margin - target) ** 2
