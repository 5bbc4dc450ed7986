"""Shared pieces of the objectives: links (a margin or a score in, a loss out, element by element) and option checks."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from accord.errors import ConfigError


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


def positive(**options: float) -> None:
    """Refuses options that are not finite numbers above 0.

    >>> positive(beta=0.0)
    Traceback (most recent call last):
    accord.errors.ConfigError: beta=0.0 must be a finite number above 0; leave beta out for its default
    """
    for name, value in options.items():
        _require(0.0 < value < math.inf, name, value, "a finite number above 0")


def not_negative(**options: float) -> None:
    """Refuses options that are not finite numbers of at least 0."""
    for name, value in options.items():
        _require(0.0 <= value < math.inf, name, value, "a finite number, 0 or more")


def finite(**options: float) -> None:
    """Refuses options that are NaN or infinite."""
    for name, value in options.items():
        _require(math.isfinite(value), name, value, "a finite number")


def _require(ok: bool, name: str, value: float, what: str) -> None:
    if not ok:
        raise ConfigError(f"{name}={value} must be {what}; leave {name} out for its default")
