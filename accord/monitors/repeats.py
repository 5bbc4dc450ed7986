"""Does the data repeat or contradict itself?"""

from __future__ import annotations

from accord.monitors import Verdict

SHARE = 0.05


class Repeats:
    """Speaks at the first step, if a twentieth of the pairs stands there twice, or in both directions."""

    name = "repeats"
    question = "does the data repeat or contradict itself?"
    needs: tuple[str, ...] = ("data/pairs", "data/duplicates", "data/contradictions")

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        pairs, twice, against = (metrics[n] for n in self.needs)
        if max(twice, against) <= SHARE * pairs:
            return None
        return Verdict(
            self.name,
            f"beside {pairs:.0f} pairs there were {twice:.0f} duplicates, and {against:.0f} contradict another one.",
            "See where they come from (`accord data check`); `view.several=agreement` makes a strength of judgements "
            "that disagree.",
        )
