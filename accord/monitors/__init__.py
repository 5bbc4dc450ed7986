"""What do these numbers mean?

A monitor declares what it needs by the names of metrics, sees them once a step, and gives a verdict when there is
something to say. One file and one row of `TABLE` (`accord/monitors/table.py`) a monitor. Monitors see numbers, never
the model.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

WINDOW = 10  # steps that a number is averaged over: a batch is small


@dataclass(frozen=True)
class Verdict:
    """monitor: who says it. says: what was seen, in a sentence. remedy: what to type."""

    monitor: str
    says: str
    remedy: str


class Monitor(Protocol):
    """name: of the monitor. question: what it asks, in a line. needs: metrics without which it is not asked."""

    name: str
    question: str
    needs: tuple[str, ...]

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        """Called once a step, in order; the same numbers give the same verdicts (resume replays them)."""
        ...


class Window:
    """The last `size` values of something."""

    def __init__(self, size: int = WINDOW) -> None:
        self.values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> Window:
        self.values.append(value)
        return self

    @property
    def full(self) -> bool:
        return len(self.values) == self.values.maxlen

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def error(self) -> float:
        """Standard error of the mean; 0 of a single value."""
        n, mean = len(self.values), self.mean
        return math.sqrt(sum((v - mean) ** 2 for v in self.values) / (n - 1) / n) if n > 1 else 0.0
