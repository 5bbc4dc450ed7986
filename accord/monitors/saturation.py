"""Are the pairs settled, so that hardly one of them still moves the weights?"""

from __future__ import annotations

from accord.monitors import Verdict, Window

LEFT = 0.02  # of the first pull
FEW = 0.1  # of the pairs count


class Saturation:
    """Speaks once, when the loss pulls with a fiftieth of its first strength, or a tenth of the pairs do all of it.

    How many of n pairs count is n (mean of c)^2 / (mean of c^2), with c the size of their pull.
    """

    name = "saturation"
    question = "how many pairs still count?"
    needs: tuple[str, ...] = ("factors/chosen", "factors/rejected", "factors/squares")

    def __init__(self) -> None:
        self._size, self._count = Window(), Window()
        self._first: float | None = None
        self._spoke = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        chosen, rejected, squares = (metrics[n] for n in self.needs)
        size = (abs(chosen) + abs(rejected)) / 2
        self._first = size if self._first is None else self._first
        left = self._size.add(size).mean / self._first if self._first else 1.0
        count = self._count.add(size**2 / squares if squares else 0.0).mean
        if self._spoke or not self._size.full or (left > LEFT and count > FEW):
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"the loss pulls with {100 * left:.2g} % of its first strength, and the equivalent of {100 * count:.0f} % "
            "of the pairs does it: the others are settled.",
            "Stop here, or bring new pairs; labels that are not sure (`objective=cdpo label_smoothing=0.1`) keep all "
            "of them at work.",
        )
