"""Property 3 of 3D-Properties (arXiv 2406.07327), dispersion: probability leaves the pair for what nobody judged."""

from __future__ import annotations

from accord.monitors import Verdict, Window

SHARE = 0.5  # of the pairs
ERRORS = 2.0  # standard errors of a mean over few batches


class Dispersion:
    """Speaks once, when in most pairs both responses together have lost half of their probability (and 0.3 nats a
    token of the shorter one): `dispersed` is the share of such pairs.

    Probabilities sum to one: what leaves the pair goes to other responses. Other prompts' responses, which are probed,
    say whether it goes there.
    """

    name = "dispersion"
    question = "does probability leave the pairs for responses that nobody judged?"
    needs: tuple[str, ...] = ("dispersed", "logratios/pair")

    def __init__(self) -> None:
        self._share, self._pair, self._spoke = Window(), Window(), False
        self._first: float | None = None
        self._unseen = ""

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        if (unseen := metrics.get("probe/logps/unseen")) is not None:
            self._first = unseen if self._first is None else self._first
            rose = unseen - self._first
            how = f"{'rose' if rose > 0 else 'fell'} by {abs(rose):.2g} nats a token"
            self._unseen = f" Responses to other prompts {how}." if abs(rose) > 0.01 else ""
        share = self._share.add(metrics["dispersed"]).mean
        sure = share - ERRORS * self._share.error
        pair = self._pair.add(metrics["logratios/pair"]).mean
        if self._spoke or not self._share.full or sure <= SHARE:
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"in {100 * share:.0f} % of the pairs chosen and rejected together have lost more than half of their "
            f"probability ({-pair:.1f} nats on average): it went to responses that nobody judged.{self._unseen}",
            "Train on pairs that the model samples itself (`accord sample`), tie it closer (a larger `beta`), or add "
            "an SFT term (`objective=dpo_sft alpha=0.1`).",
        )
