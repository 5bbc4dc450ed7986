"""Likelihood over-optimisation (arXiv 2410.11677): has the entropy over the likeliest tokens turned?"""

from __future__ import annotations

from accord.monitors import Verdict

TURN = 0.1  # share of its highest value by which the entropy must have come back
ROSE = 0.02  # share by which it must have risen before
MASS = 0.1  # probability that the likeliest tokens may lose


class Entropy:
    """Speaks once, when the entropy over the ten likeliest tokens turned from rising to falling, or these tokens lost
    a tenth of all probability. Entropy in bits, -sum p log2 p with the probabilities as they are."""

    name = "entropy"
    question = "has the entropy over the likeliest tokens turned, or their mass gone?"
    needs: tuple[str, ...] = ("probe/topk_entropy", "probe/topk_mass")

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._peak, self._at, self._spoke = 0.0, 0, False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        entropy, mass = (metrics[n] for n in self.needs)
        first, held = self._first = self._first or (entropy, mass)
        if entropy > self._peak:
            self._peak, self._at = entropy, step
        turned = self._peak > (1 + ROSE) * first and entropy < (1 - TURN) * self._peak
        if self._spoke or not (turned or mass < held - MASS):
            return None
        self._spoke = True
        seen = (
            f"the entropy over the ten likeliest tokens rose to {self._peak:.2f} bits at step {self._at} and is back "
            f"at {entropy:.2f}"
            if turned
            else f"the ten likeliest tokens hold {mass:.2f} of the probability, and held {held:.2f} at first"
        )
        return Verdict(
            self.name,
            f"{seen}: a sign that likelihoods are pushed further than quality follows.",
            "Stop at the best evaluation (`save_best=true patience=3`), or tie the policy closer (a larger `beta`).",
        )
