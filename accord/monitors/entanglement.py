"""Gradient entanglement (arXiv 2410.13828): does a step that should part chosen from rejected move both one way?"""

from __future__ import annotations

from accord.monitors import Verdict

SURE = 0.25  # of the squared norm of chosen's own gradient, for one look


class Entanglement:
    """Speaks once, when a plain step on the probe would lower its chosen responses: in two looks, or clearly in one.

    With g_w, g_l the gradients of the log-probs of chosen and rejected, weighted as the loss weighs them, a step along
    g_w - g_l raises chosen iff <g_w, g_l> < |g_w|^2, and lowers rejected iff <g_w, g_l> < |g_l|^2. The numbers are
    1 - <g_w, g_l> / |g_w|^2 (`chosen_rises`) and <g_w, g_l> / |g_l|^2 - 1 (`rejected_rises`). They foretell that step
    alone: the run's own is on other pairs and scaled by its optimizer, and may well do otherwise.
    """

    name = "entanglement"
    question = "would a plain step on the probe raise chosen and lower rejected?"
    needs: tuple[str, ...] = (
        "probe/entanglement/cosine", "probe/entanglement/chosen_rises", "probe/entanglement/rejected_rises",
    )  # fmt: skip

    def __init__(self) -> None:
        self._before, self._spoke = 0.0, False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        cosine, chosen, rejected = (metrics[n] for n in self.needs)
        twice = chosen < 0 and self._before < 0
        self._before = chosen
        if self._spoke or not (twice or chosen < -SURE):
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"the gradients of chosen and rejected point the same way (cosine {cosine:.2f}): along these pairs' own "
            f"gradient, without the optimizer's scaling, a step lowers chosen, and rejected "
            f"{'too' if rejected < 0 else 'rises'}. What the run's updates, which are on other pairs, do to them is "
            "`probe/logps/chosen` and `probe/logps/rejected` at the next look.",
            "Make both sides' gradients equally long (`update=pair_normalised`), add an SFT term "
            "(`objective=dpo_sft alpha=0.1`), or bring pairs that differ in more than a few tokens.",
        )
