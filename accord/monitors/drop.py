"""Property 1 of 3D-Properties (arXiv 2406.07327), drastic drop: rejected responses fall far, and faster than chosen."""

from __future__ import annotations

import math

from accord.monitors import Verdict, Window

FAR = math.log(1000)  # nats of a whole response
FAR_PER_TOKEN = 0.5  # and, of a long one, nats a token: it is then 40 % less likely at every token


class Drop:
    """Speaks once, when rejected responses have become a thousand times less likely than under the reference (and 0.5
    nats a token), and have fallen further than chosen ones."""

    name = "drop"
    question = "do rejected responses fall drastically?"
    needs: tuple[str, ...] = (
        "logratios/chosen", "logratios/rejected", "lengths/chosen", "lengths/rejected", "logps/chosen",
        "logps/rejected",
    )  # fmt: skip

    def __init__(self) -> None:
        self._rejected, self._chosen, self._ahead = Window(), Window(), Window()
        self._spoke = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        length = metrics["lengths/rejected"]
        rejected = self._rejected.add(metrics["logratios/rejected"] * length).mean
        chosen = self._chosen.add(metrics["logratios/chosen"] * metrics["lengths/chosen"]).mean
        ahead = self._ahead.add(metrics["logps/chosen"] - metrics["logps/rejected"]).mean
        if self._spoke or not self._rejected.full or rejected > -max(FAR, FAR_PER_TOKEN * length) or chosen < rejected:
            return None
        self._spoke = True
        pushes = (
            f" Rejected is now e^{ahead:.0f} times less likely than chosen, and along probabilities the loss pushes it "
            "as many times as hard."
        ) if ahead > 1 else ""  # fmt: skip
        return Verdict(
            self.name,
            f"rejected responses have fallen by {-rejected:.1f} nats from the reference, {-rejected / step:.2g} a "
            f"step; chosen ones {'rose' if chosen > 0 else 'fell'} by {abs(chosen):.1f}.{pushes}",
            "If that is more than you want, push rejected less (`objective=flex_dpo beta_rejected=0.05`), let the "
            "margin end somewhere (`objective=ipo`), or take fewer steps.",
        )
