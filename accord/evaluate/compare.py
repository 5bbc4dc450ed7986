"""Is it better, and how sure are we? Scores of two policies on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from accord.stats import Interval, bootstrap


@dataclass(frozen=True)
class Comparison:
    """before, after: mean score over prompts; difference: of the same prompts, after minus before."""

    before: Interval
    after: Interval
    difference: Interval

    @property
    def sure(self) -> bool:
        """True if the interval of the difference excludes 0."""
        return self.difference.low > 0 or self.difference.high < 0


def compare(before: Seq[Seq[float]], after: Seq[Seq[float]], *, seed: int = 0) -> Comparison:
    """Paired bootstrap over prompts of the mean score of each prompt's answers.

    Args:
        before, after: for each prompt, the scores of its answers; the same prompts in the same order.

    >>> c = compare([[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.5, 0.5]])
    >>> (c.before.mean, c.after.mean, c.difference.mean)
    (0.25, 0.75, 0.5)
    """
    b, a = np.array([np.mean(s) for s in before]), np.array([np.mean(s) for s in after])
    return Comparison(bootstrap(b, seed=seed), bootstrap(a, seed=seed), bootstrap(a - b, seed=seed))
