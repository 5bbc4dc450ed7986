"""Intervals and comparisons: numpy and scipy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, draws: int = 4000, seed: int = 0
) -> Interval:
    """Mean of `values` with its percentile bootstrap interval. For differences, pass the paired differences.

    >>> bootstrap([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    """
    x = np.asarray(values, float)
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"))
    means = x[np.random.default_rng(seed).integers(0, len(x), (draws, len(x)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high))


def proportion(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """A share with its Wilson interval.

    >>> str(proportion(50, 100))
    '0.500 [0.404, 0.596]'
    """
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z = float(stats.norm.ppf((1 + level) / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))
