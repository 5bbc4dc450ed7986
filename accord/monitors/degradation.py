"""Property 2 of 3D-Properties (arXiv 2406.07327), degradation: chosen responses sink along with rejected ones."""

from __future__ import annotations

import math

from accord.monitors import Verdict, Window

HALF = math.log(2)  # nats of a response of few tokens
PER_TOKEN = 0.3  # nats a token of a longer one


class Degradation:
    """Speaks once, when the probability of chosen responses has sunk by 0.3 nats a token from its highest value in the
    run (of responses of few tokens: to half), while that of rejected ones is lower still.

    Probabilities are a token's, as multiples of the reference's (`probability/chosen`): of the mean log-prob, a few
    responses that are all but gone make up most.
    """

    name = "degradation"
    question = "do chosen responses sink?"
    needs: tuple[str, ...] = ("probability/chosen", "probability/rejected", "lengths/chosen")

    def __init__(self) -> None:
        self._chosen, self._rejected = Window(), Window()
        self._peak, self._at, self._spoke = 0.0, 0, False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        chosen = self._chosen.add(metrics["probability/chosen"]).mean
        rejected = self._rejected.add(metrics["probability/rejected"]).mean
        if chosen > self._peak:
            self._peak, self._at = chosen, step
        least = math.exp(-max(HALF / max(1.0, metrics["lengths/chosen"]), PER_TOKEN))
        if self._spoke or not self._chosen.full or chosen > least * self._peak or rejected > chosen:
            return None
        self._spoke = True
        since = f"after step {self._at}" if self._at > 1 else "at first"
        return Verdict(
            self.name,
            f"a token of a chosen response has {100 * chosen / self._peak:.0f} % of the probability that it had "
            f"{since}, and one of a rejected response {100 * rejected:.0f} % of what it has under the reference: both "
            "fall, and what margin there is comes from rejected falling further.",
            "If chosen should rise, add an SFT term (`objective=dpo_sft alpha=0.1`), tie the policy closer (a larger "
            "`beta`), or lower `learning_rate`.",
        )
