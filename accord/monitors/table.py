"""Which monitors are there, and who sees which number?"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from accord.errors import ConfigError, nearest
from accord.monitors import Monitor, Verdict
from accord.monitors.beta import Beta
from accord.monitors.degradation import Degradation
from accord.monitors.dispersion import Dispersion
from accord.monitors.drop import Drop
from accord.monitors.entanglement import Entanglement
from accord.monitors.entropy import Entropy
from accord.monitors.heart import Heart
from accord.monitors.labels import Labels
from accord.monitors.length import Length
from accord.monitors.on_policy import OnPolicy
from accord.monitors.rate import Rate
from accord.monitors.reference import ReferenceAtStart
from accord.monitors.repeats import Repeats
from accord.monitors.samples import Samples
from accord.monitors.saturation import Saturation
from accord.monitors.spikes import Spikes

# The gravest first, and causes before their signs: a report that has room for few takes them in this order.
TABLE: dict[str, type[Monitor]] = {
    m.name: m
    for m in (
        ReferenceAtStart, Rate, Labels, Heart, Spikes, Degradation, Dispersion, Samples, Beta, Drop, Entanglement,
        Entropy, Saturation, Length, Repeats, OnPolicy,
    )
}  # fmt: skip
GRAVE = ("reference", "rate", "labels", "heart", "spikes", "degradation", "dispersion", "samples")  # against the run
INFORMS = ("on_policy",)  # say what the data is, and that is no fault: such a verdict stops no run


def gravity(name: str) -> int:
    """Place in the table, at its end for those that are no longer in it."""
    return [*TABLE, name].index(name)


def named(asked: str | Iterable[str]) -> tuple[str, ...]:
    """The names that a setting means: `all`, `none`, a name, or several.

    Raises:
        ConfigError: there is none of that name.

    >>> named("none"), named("drop, beta")
    ((), ('drop', 'beta'))
    """
    if asked == "all":
        return tuple(TABLE)
    if asked == "none":
        return ()
    names = tuple(n.strip() for n in asked.split(",")) if isinstance(asked, str) else tuple(asked)
    for name in names:
        if name not in TABLE:
            raise ConfigError(f"monitors: there is none called {name!r}; {nearest(name, TABLE)}")
    return names


class Panel:
    """Shows each row of metrics to monitors, those of each term to monitors of its own.

    Args:
        names: of the monitors.
        terms: of the run; the metrics of several carry their names (`pairs/rewards/chosen`).
    """

    def __init__(self, names: Iterable[str], terms: Collection[str] = ()) -> None:
        self.names = tuple(names)
        self.terms = tuple(terms) if len(terms) > 1 else ()
        self.monitors = {term: [TABLE[n]() for n in self.names] for term in ("", *self.terms)}

    def see(self, step: int, row: Mapping[str, Any]) -> list[Verdict]:
        """What the monitors say to a row, which may be one of an update or of an evaluation."""
        found = []
        for term, metrics in self._by_term(row).items():
            for monitor in self.monitors[term]:
                if all(need in metrics for need in monitor.needs):
                    verdict = monitor.see(step, metrics)
                    if verdict is not None:
                        found.append(replace(verdict, says=f"{term}: {verdict.says}") if term else verdict)
        return found

    def _by_term(self, row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """The row's numbers under their plain names, by term; `""` has those of the whole run. Others are left out."""
        found: dict[str, dict[str, float]] = {term: {} for term in self.monitors}
        for key, value in row.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            kind = "eval_" if key.startswith("eval_") else ""
            term, _, name = key.removeprefix(kind).partition("/")
            if term in self.terms:
                found[term][kind + name] = float(value)
            else:
                found[""][key] = float(value)
        return found
