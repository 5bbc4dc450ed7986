"""What do these numbers mean?

A monitor declares what it needs by the names of metrics, sees them once a step, and gives a verdict when there is
something to say. One file a monitor. Monitors see numbers, never the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Verdict:
    """monitor: who says it. says: what was seen, in a sentence. remedy: what to type."""

    monitor: str
    says: str
    remedy: str


class Monitor(Protocol):
    """needs: metrics without which it stays silent."""

    name: str
    needs: tuple[str, ...]

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        """Called once a step, in order; the same numbers give the same verdicts (resume replays them)."""
        ...
