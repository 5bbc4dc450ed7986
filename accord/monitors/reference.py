"""Does the run start at its reference?"""

from __future__ import annotations

from accord.monitors import Verdict

AWAY = 0.05  # nats a token


class ReferenceAtStart:
    """Speaks at the first step, if policy and reference differ by more than 0.05 nats a token before any update: on
    average over a side, or, where the reference is known to be another model, over responses whatever their sign."""

    name = "reference"
    question = "does the run start at its reference?"
    needs: tuple[str, ...] = ("logratios/chosen", "logratios/rejected")

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        chosen, rejected = (metrics[n] for n in self.needs)
        away = metrics.get("logratios/away", 0.0)
        if step != 1 or max(abs(chosen), abs(rejected), away) <= AWAY:
            return None
        whatever = f", and {away:.2g} from it on average whatever the sign" if away else ""
        return Verdict(
            self.name,
            f"before the first update the policy is {chosen:+.2g} nats a token from its reference on chosen responses "
            f"and {rejected:+.2g} on rejected ones{whatever}: it was not trained from that model.",
            "If the reference should be the model as the run starts, write `reference=start`; if policy and reference "
            "are meant to differ, all is well.",
        )
