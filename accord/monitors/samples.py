"""What has become of the answers themselves: their length, variety and ends?"""

from __future__ import annotations

from accord.monitors import Verdict

TIMES = 1.6  # longer or shorter than at first
VARIETY = 0.7  # of what it was


class Samples:
    """Speaks once, when fresh answers are 1.6 times as long as at first, or as short, or have lost three tenths of
    their variety (n-grams that differ, adjusted for length: `probe/samples/distinct`)."""

    name = "samples"
    question = "do fresh answers grow, shrink, or become alike?"
    needs: tuple[str, ...] = ("probe/samples/length", "probe/samples/distinct")

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._spoke = False

    def see(self, step: int, metrics: dict[str, float]) -> Verdict | None:
        length, distinct = (metrics[n] for n in self.needs)
        first, variety = self._first = self._first or (length, distinct)
        found = []
        if not first / TIMES <= length <= first * TIMES:
            found.append(f"are {length:.0f} tokens long and were {first:.0f}")
        if distinct < VARIETY * variety:
            found.append(f"have {100 * distinct / variety:.0f} % of their variety left")
        if self._spoke or not found:
            return None
        self._spoke = True
        return Verdict(
            self.name,
            f"fresh answers {' and '.join(found)}.",
            "Tie the policy closer (a larger `beta`), score by the mean of tokens (`length=mean`), or stop earlier.",
        )
