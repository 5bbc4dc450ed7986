"""Does the data teach length?"""

from __future__ import annotations

from accord.monitors import Verdict

SHARE = 0.75
PAIRS = 40  # that differ in length


class Length:
    """Speaks at the first step, if in three quarters of the pairs the longer answer is chosen, or the shorter one: a
    rule that looks at nothing else would be right so often."""

    name = "length"
    question = "does the data teach length?"
    needs: tuple[str, ...] = ("data/longer", "data/shorter")

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        longer, shorter = (metrics[n] for n in self.needs)
        if longer + shorter < PAIRS or max(longer, shorter) < SHARE * (longer + shorter):
            return None
        which, share = ("longer", longer) if longer > shorter else ("shorter", shorter)
        return Verdict(
            self.name,
            f"in {100 * share / (longer + shorter):.0f} % of the pairs that differ in length the {which} answer is "
            f"chosen: to be {which} is the easiest thing to learn here.",
            "Score tokens by their mean (`length=mean`), take an objective made for it (`objective=simpo`), balance "
            "the pairs, or watch rewards/accuracies_shorter against rewards/accuracies_longer.",
        )
