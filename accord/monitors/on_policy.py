"""Would the model say what it is trained on?"""

from __future__ import annotations

from accord.monitors import Verdict

NATS = 0.5  # a token
ERRORS = 4.0  # standard errors


class OnPolicy:
    """Speaks at the first look, if answers surprise the model more than its own would.

    A token that the model sampled itself has -log p equal to the entropy there on average, so -log p - entropy summed
    over an answer has mean 0, and its variance is the sum of the variances of log p. Surprise is that sum, a token.
    Most data is by others: this says what it is, and is no alarm.
    """

    name = "on_policy"
    question = "would the model say what it is trained on?"
    needs: tuple[str, ...] = ("probe/surprise/chosen", "probe/surprise_error/chosen")

    def __init__(self) -> None:
        self._asked = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        if self._asked:
            return None
        self._asked = True
        off = {}
        for side in ("chosen", "rejected"):
            surprise = metrics.get(f"probe/surprise/{side}")
            if surprise is not None and surprise > max(NATS, ERRORS * metrics[f"probe/surprise_error/{side}"]):
                off[side] = surprise
        if not off:
            return None
        told = " and ".join(f"{side} responses by {nats:.2g} nats a token" for side, nats in off.items())
        fall = " Rejected ones that it would not say fall fastest and teach least." if "rejected" in off else ""
        return Verdict(
            self.name,
            f"{told} less likely than what the model says itself: they are off policy.{fall}",
            "Sample answers from this model and judge them (`accord sample`), or train it on chosen first ("
            "`objective=sft`).",
        )
