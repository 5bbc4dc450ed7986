"""Does a judge of pairs agree with itself? Both orders of a pair, and pairs that go round in a circle."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from accord.data.records import Judgement
from accord.data.views import in_both_orders


@dataclass
class Agreement:
    """What verdicts of one judge say about it, record by record.

    verdicts: those that say in which order the answers were shown; first: of these the number that prefer the one shown
    first, ties as one half. both: pairs that were judged in both orders, turned: those that it decides one way in one
    order and the other way in the other. triples: of three answers that were all compared, cycles: those where each is
    beaten by another.

    >>> def said(pair, value, order):
    ...     return Judgement(kind="preference", pair=pair, value=value, order=order)
    >>> found = Agreement()
    >>> found.add([said((0, 1), 1, (0, 1)), said((0, 1), 0, (1, 0)), said((1, 2), 1, (1, 2)), said((1, 2), 1, (2, 1))])
    >>> found.both, found.turned, found.first
    (2, 1, 3.0)
    """

    verdicts: int = 0
    first: float = 0.0
    both: int = 0
    turned: int = 0
    triples: int = 0
    cycles: int = 0

    def add(self, said: Iterable[Judgement]) -> None:
        """Counts the verdicts on one record."""
        verdicts = [j for j in said if j.pair is not None and not j.margin]
        shown: dict[frozenset[int], set[float]] = defaultdict(set)  # which way a pair is decided
        orders: dict[frozenset[int], set[tuple[int, ...]]] = defaultdict(set)
        for j in verdicts:
            if j.pair is None or j.order is None:
                continue
            self.verdicts += 1
            for_first = j.value if j.order[0] == j.pair[0] else 1 - j.value
            self.first += 1.0 if for_first > 0.5 else 0.5 if for_first == 0.5 else 0.0
            one = frozenset(j.pair)
            orders[one].add(j.order)
            shown[one].add(_sign(j.value - 0.5) * (1 if j.pair[0] < j.pair[1] else -1))
        for one, seen in orders.items():
            self.both += len(seen) > 1
            self.turned += len(seen) > 1 and {1, -1} <= shown[one]
        beats: dict[tuple[int, int], int] = {}
        for j in in_both_orders(verdicts):
            assert j.pair is not None
            beats[j.pair], beats[j.pair[::-1]] = _sign(j.value - 0.5), -_sign(j.value - 0.5)
        for a, b, c in combinations(sorted({i for pair in beats for i in pair}), 3):
            if {(a, b), (b, c), (c, a)} <= beats.keys():
                self.triples += 1
                self.cycles += beats[a, b] == beats[b, c] == beats[c, a] != 0

    def as_dict(self) -> dict[str, Any]:
        """In numbers; empty where nothing of it is known."""
        found: dict[str, Any] = {}
        if self.verdicts:
            found["first_place"] = self.first / self.verdicts
        if self.both:
            found |= {"both_orders": self.both, "turned_round": self.turned / self.both}
        if self.triples:
            found |= {"triples": self.triples, "cycles": self.cycles / self.triples}
        return found

    def lines(self) -> list[str]:
        """The same for a person."""
        told = []
        if self.both:
            told.append(f"{self.turned / self.both:.0%} of {self.both:,} pairs turn round with their order")
        if self.verdicts:
            told.append(f"the first place wins {self.first / self.verdicts:.0%}")
        if self.triples:
            told.append(f"{self.cycles / self.triples:.0%} of {self.triples:,} triples go round in a circle")
        return [", ".join(told)] if told else []


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
