"""Is the learning rate too high?"""

from __future__ import annotations

from accord.monitors import Verdict, Window

WORSE = 1.3  # times the first loss
STEPS = 5
MOVED = 0.01  # share of the weights' norm that a step moves


class Rate:
    """Speaks once, when the mean loss of five steps is 1.3 times that of the first step, or a step moves the weights by
    a hundredth of their norm (measured at a probe, and scaled by the learning rate from there on)."""

    name = "rate"
    question = "is the learning rate too high?"
    needs: tuple[str, ...] = ("loss", "learning_rate", "grad_norm")

    def __init__(self) -> None:
        self._loss = Window(STEPS)
        self._first: float | None = None
        self._per_rate, self._highest, self._spoke = 0.0, 0.0, False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        loss, rate, _ = (metrics[n] for n in self.needs)
        self._first = loss if self._first is None else self._first
        mean = self._loss.add(loss).mean
        if rate > 0 and "probe/update" in metrics:
            self._per_rate = metrics["probe/update"] / rate
        moved = self._per_rate * rate
        self._highest = max(self._highest, rate)
        worse = self._loss.full and self._first > 0 and mean > WORSE * self._first
        if self._spoke or not (worse or moved > MOVED):
            return None
        self._spoke = True
        seen = (
            f"the loss of the last {STEPS} steps is {mean:.3g}, and that of the first step was {self._first:.3g}"
            if worse
            else f"a step moves the weights by {100 * moved:.2g} % of their norm"
        )
        return Verdict(
            self.name, f"{seen}: steps are too large.", f"Lower it: `learning_rate={self._highest / 10:.1g}`."
        )
