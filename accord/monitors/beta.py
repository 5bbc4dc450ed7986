"""Is the tie to the reference so loose that nothing ends the push?"""

from __future__ import annotations

from accord.monitors import Verdict

FEW = 200.0  # nats; a margin of 1 may take as many however short the answers are, for they can fall without end
MOVED = 0.1  # nats, so that the scale can be read off


class Beta:
    """Speaks once, when a margin of 1 asks for more nats than a whole answer has, and more than `FEW`.

    A pair lets go at margins of a few units of reward, and a unit is 1 / beta nats of log-ratio. The log-prob of a
    whole answer says how many nats there are: beyond it an answer is certain, or gone. The scale is read off the
    metrics, rewards over log-ratios, so it is right for losses by the mean of tokens, too.
    """

    name = "beta"
    question = "does the loss ever let go of a pair that is settled?"
    needs: tuple[str, ...] = (
        "logratios/chosen", "logratios/rejected", "lengths/chosen", "lengths/rejected", "rewards/margins",
        "logps/chosen",
    )  # fmt: skip

    def __init__(self) -> None:
        self._spoke = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        chosen, rejected, long, other, reward, logp = (metrics[n] for n in self.needs)
        margin = chosen * long - rejected * other
        if self._spoke or abs(margin) < MOVED or reward * margin <= 0:
            return None
        nats = margin / reward
        if nats <= max(FEW, abs(logp)):
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"a margin of 1 takes {nats:,.0f} nats of log-ratio, and a whole chosen answer has {abs(logp):.0f}: no "
            "pair is ever settled, and nothing holds the policy near its reference.",
            f"Tie it closer: a `beta` {10 * nats / abs(logp):.0f} times as large.",
        )
