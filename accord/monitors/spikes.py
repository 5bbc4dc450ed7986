"""Does the loss or the gradient jump?"""

from __future__ import annotations

from statistics import median

from accord.monitors import Verdict, Window

TIMES = 10.0


class Spikes:
    """Speaks once, when a gradient is ten times as long, or a loss ten times as high, as the median of the last 20."""

    name = "spikes"
    question = "does the loss or the gradient jump?"
    needs: tuple[str, ...] = ("loss", "grad_norm")

    def __init__(self) -> None:
        self._loss, self._norm = Window(20), Window(20)
        self._spoke = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        found = None
        for what, window, value in (
            ("gradient", self._norm, metrics["grad_norm"]),
            ("loss", self._loss, metrics["loss"]),
        ):
            usual = median(window.values) if window.full else 0.0
            if found is None and usual > 0 and value > TIMES * usual:
                found = f"the {what} of this step is {value:.3g}, where {usual:.3g} is usual."
            window.add(value)
        if self._spoke or found is None:
            return None
        self._spoke = True
        return Verdict(
            self.name,
            found,
            "Look at the records of this step (examples/*.parquet, then `accord data show`); clip harder "
            "(`max_grad_norm=0.5`) or lower `learning_rate`.",
        )
