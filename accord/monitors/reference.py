"""Does the run start at its reference?"""

from __future__ import annotations

from accord.monitors import Verdict

AWAY = 0.05  # nats a token


class ReferenceAtStart:
    """Speaks at the first step, if policy and reference differ by more than 0.05 nats a token before any update."""

    name = "reference"
    question = "does the run start at its reference?"
    needs: tuple[str, ...] = ("logratios/chosen", "logratios/rejected")

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        chosen, rejected = (metrics[n] for n in self.needs)
        if step != 1 or max(abs(chosen), abs(rejected)) <= AWAY:
            return None
        return Verdict(
            self.name,
            f"before the first update the policy is {chosen:+.2g} nats a token from its reference on chosen responses "
            f"and {rejected:+.2g} on rejected ones: it was not trained from that model.",
            "If the reference should be the model as the run starts, write `reference=start`; if policy and reference "
            "are meant to differ, all is well.",
        )
