"""Does the run learn by heart?"""

from __future__ import annotations

import math

from accord.monitors import Verdict

WORSE = 0.05  # share of the lowest evaluation
TIMES = 2


class Heart:
    """Speaks once, when the held-out loss has stood a twentieth above its lowest value in two evaluations in a row."""

    name = "heart"
    question = "does the held-out loss rise while training goes on?"
    needs: tuple[str, ...] = ("eval_loss",)

    def __init__(self) -> None:
        self._lowest, self._at, self._times, self._spoke = math.inf, 0, 0, False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        loss = metrics["eval_loss"]
        if loss < self._lowest:
            self._lowest, self._at = loss, step
        self._times = self._times + 1 if loss > self._lowest + WORSE * abs(self._lowest) else 0
        if self._spoke or self._times < TIMES:
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"the held-out loss was lowest at step {self._at} ({self._lowest:.3g}) and is {loss:.3g} now.",
            "Keep the best weights and stop there (`save_best=true patience=3`), or take fewer passes (`epochs`).",
        )
