"""Is there anything to learn in the labels?"""

from __future__ import annotations

from accord.monitors import Verdict, Window

STEPS = 20
BETTER = 0.55  # accuracy that a signal must reach
ERRORS = 2.0  # standard errors above one half, which are one, too
MOVED = 0.02  # nats a token


class Labels:
    """Speaks once, when the policy has moved, and yet the pairs of the last 20 steps come out no better than a coin.

    Within the first pass pairs are scored before they are trained on, so their accuracy is one on new pairs; in later
    passes even noise is learned by heart, and this monitor says nothing.
    """

    name = "labels"
    question = "is there anything to learn in the labels?"
    needs: tuple[str, ...] = ("rewards/accuracies", "logratios/chosen", "logratios/rejected", "epoch")

    def __init__(self) -> None:
        self._right, self._moved = Window(STEPS), Window(STEPS)
        self._spoke = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        right = self._right.add(metrics["rewards/accuracies"]).mean
        moved = self._moved.add(max(abs(metrics["logratios/chosen"]), abs(metrics["logratios/rejected"]))).mean
        error = self._right.error
        chance = right < BETTER and right - ERRORS * error <= 0.5
        if self._spoke or not self._right.full or metrics["epoch"] > 1 or not chance or moved < MOVED:
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"the policy has moved ({moved:.2g} nats a token), but of pairs that it has not seen it gets "
            f"{100 * right:.0f} % right (± {100 * error:.0f}): so far the labels teach nothing that carries over.",
            "Look whether chosen and rejected are mixed up (`accord data show`), whether judges agree (`accord data "
            "stats`), and whether the model is able to tell such answers apart.",
        )
