"""What is in these files, in numbers? `accord data stats`: lengths, scripts, judgements, and how far judges agree."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accord import stats
from accord.data.chat import words
from accord.data.checks import SAMPLED, encoded
from accord.data.passes import Files, Keys, Reservoir, Spread, bounded, columns_of, content, hashed
from accord.data.records import FEEDBACK_KINDS, KIND_OF_JUDGEMENT, Judgement, Record
from accord.data.views import Counts, whole

if TYPE_CHECKING:
    from accord.data.chat import Chat

JUDGED = 1 << 18  # judgements of a kind and attribute, 24 bytes each, from which agreement is known exactly
VALUES = 12  # different values that are told one by one; more of them in ten bins
JUDGES = 20  # that are told one by one
ASCII = bytes(i for i in range(128) if not chr(i).isalpha())


@dataclass
class Values:
    """Values of judgements: how many of each."""

    counts: Counter[float] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        known = value if value in self.counts or len(self.counts) < 10_000 else float(f"{value:.2g}")
        self.counts[known] += 1

    @property
    def mean(self) -> float:
        return math.fsum(v * n for v, n in self.counts.items()) / self.counts.total()

    def bins(self, low: float, high: float) -> dict[str, int]:
        """Value to number; of many values, ten bins between `low` and `high`.

        >>> Values(Counter({0.0: 3, 1.0: 5})).bins(0, 1)
        {'0': 3, '1': 5}
        """
        if len(self.counts) <= VALUES:
            return {f"{value:g}": self.counts[value] for value in sorted(self.counts)}
        edges = np.linspace(low, high, 11)
        numbers, _ = np.histogram(list(self.counts), edges, weights=list(self.counts.values()))
        return {f"{edges[i]:.3g} to {edges[i + 1]:.3g}": int(n) for i, n in enumerate(numbers)}

    def told(self, low: float, high: float) -> str:
        """The same in one line."""
        bins = self.bins(low, high)
        if len(self.counts) <= VALUES:
            return "  ".join(f"{name}: {n:,}" for name, n in bins.items())
        return f"{low:g} to {high:g} in ten steps: " + " ".join(f"{n:,}" for n in bins.values())


@dataclass(frozen=True)
class Agreement:
    """How far judges agree on what several of them judged.

    targets: how many that is; agree: share of the pairs of judgements on one target that are equal; alpha:
    Krippendorff's, 1 if all agree, 0 if they agree as by chance, NaN where all judgements are the same.
    """

    targets: int
    judgements: int
    agree: float
    alpha: float


@dataclass(frozen=True)
class Portrait:
    """The numbers of some files.

    by_source: source to kind of feedback to records. lengths: what is measured to its spread; tokens are those of
    `tokens_from` records. scripts: share of the letters. values: (kind, attribute, judge) to values, judge "" for all
    of them; of preferences and margins their strength. ties: share of the pairs of responses, by what compares them.
    first_shown: share of the preferences that are for what the judge saw first.
    """

    told: list[str]
    records: int
    by_source: dict[str, dict[str, int]]
    lengths: dict[str, Spread]
    tokens_from: int
    scripts: dict[str, float]
    values: dict[tuple[str, str, str], Values]
    agreement: dict[tuple[str, str], Agreement]
    ties: dict[str, stats.Interval]
    first_shown: stats.Interval | None

    def as_dict(self) -> dict[str, Any]:
        """The numbers for a program to read; NaN becomes null."""
        plain = asdict(replace(self, values={}, agreement={}))
        plain["values"] = [
            {
                "kind": kind, "attribute": attribute, "by": by or None, "count": values.counts.total(),
                "mean": values.mean, "values": values.bins(*self._ends(kind, attribute)),
            }
            for (kind, attribute, by), values in self.values.items()
        ]  # fmt: skip
        plain["agreement"] = [
            {"kind": k, "attribute": a, **asdict(found), "alpha": None if math.isnan(found.alpha) else found.alpha}
            for (k, a), found in self.agreement.items()
        ]
        return plain

    def lines(self) -> list[str]:
        """The numbers for a person to read."""
        found = [*self.told, "", f"records {self.records:,}"]
        kinds = [k for k in (*FEEDBACK_KINDS, "prompts") if any(k in row for row in self.by_source.values())]
        found += columns_of(
            [["source", *kinds], *([s, *(f"{row.get(k, 0):,}" for k in kinds)] for s, row in self.by_source.items())]
        )
        found += ["", "lengths"]
        spreads = [
            [name, *(f"{n:,.0f}" for n in (s.low, s.median, s.high95, s.high))] for name, s in self.lengths.items()
        ]
        found += columns_of([["", "lowest", "median", "95 %", "highest"], *spreads])
        if self.tokens_from:
            found.append(
                f"  tokens of {self.tokens_from:,} records" + " drawn from all" * (self.tokens_from < self.records)
            )
        found += ["", "scripts " + ", ".join(f"{name} {share:.1%}" for name, share in self.scripts.items())]
        if self.values:
            found += [
                "",
                "judgements",
                *columns_of([["kind", "attribute", "by", "number", "mean", "values"], *self._judged()]),
            ]
        if self.agreement:
            rows = [
                [kind, attribute, f"{a.targets:,}", f"{a.judgements:,}", f"{a.agree:.1%}", _alpha(a.alpha)]
                for (kind, attribute), a in self.agreement.items()
            ]
            heads = ["kind", "attribute", "judged by several", "judgements", "equal", "Krippendorff's alpha"]
            found += ["", "agreement of judges", *columns_of([heads, *rows])]
        facts = [f"ties    {share} of the pairs of responses in {name}" for name, share in self.ties.items()]
        if self.first_shown is not None:
            facts.append(f"position  {self.first_shown} of the preferences are for the response shown first")
        return [*found, *([""] if facts else []), *facts]

    def _ends(self, kind: str, attribute: str) -> tuple[float, float]:
        """The lowest and the highest value that any judge gave."""
        every = self.values[kind, attribute, ""].counts
        return min(every), max(every)

    def _judged(self) -> Iterator[list[str]]:
        others: Counter[tuple[str, str]] = Counter()
        told: Counter[tuple[str, str]] = Counter()
        for (kind, attribute, by), values in self.values.items():
            told[kind, attribute] += 1
            if told[kind, attribute] > JUDGES + 1:
                others[kind, attribute] += 1
                continue
            bins = values.told(*self._ends(kind, attribute))
            yield [kind, attribute, by or "all", f"{values.counts.total():,}", f"{values.mean:.3g}", bins]
        for (kind, attribute), n in others.items():
            yield [kind, attribute, f"and {n:,} more judges", "", "", ""]


def _alpha(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def describe(
    names: Sequence[str | Path],
    *,
    chat: Chat | None = None,
    columns: Mapping[str, str] | None = None,
    layout: str | None = None,
    say: Callable[[int], None] | None = None,
) -> Portrait:
    """Goes over files once, in little memory whatever their size; rows that cannot be read are left out and told.

    Args:
        names: whatever `sources.stream` reads.
        chat: also counts tokens, on a sample of 1,000 records.
        columns, layout: as of `sources.stream`.
        say: is called now and then with the number of records so far.
    """
    files = Files(names, columns=columns, layout=layout, on_error="skip", say=say)
    seen = _Seen()
    for _, record in files:
        seen.add(record)
        if chat is not None:
            seen.sample.add(record)
    if chat is not None:
        for record in seen.sample.kept:
            notes = Counts()
            seen.lengths["prompts, tokens"][len(chat.context_ids(record))] += 1
            for i in range(len(record.responses)):
                seen.lengths["responses, trained tokens"][encoded(record, [i], chat, notes)[1]] += 1
    order = sorted(seen.values, key=lambda k: (k[0], k[1], k[2] != "", -seen.values[k].counts.total(), k[2]))
    return Portrait(
        told=files.told,
        records=seen.records,
        by_source={source: dict(kinds) for source, kinds in seen.by_source.items()},
        lengths={name: Spread.of(counts) for name, counts in seen.lengths.items()},
        tokens_from=len(seen.sample.kept),
        scripts=seen.shares(),
        values={key: seen.values[key] for key in order},
        agreement={key: found for key, keys in sorted(seen.judged.items()) if (found := agreement(*key, keys))},
        ties={name: stats.proportion(ties, of) for name, (ties, of) in seen.ties.items()},
        first_shown=stats.proportion(*seen.shown) if seen.shown[1] else None,
    )


class _Seen:
    """What has been counted so far."""

    def __init__(self) -> None:
        self.records = 0
        self.by_source: dict[str, Counter[str]] = defaultdict(Counter)
        names = ("prompts, words", "prompts, characters", "prompts, turns", "responses of a record")
        self.lengths: dict[str, Counter[int]] = defaultdict(Counter, {name: Counter() for name in names})
        self.letters: Counter[str] = Counter()
        self.values: dict[tuple[str, str, str], Values] = defaultdict(Values)
        self.judged: dict[tuple[str, str], Keys] = defaultdict(lambda: Keys(JUDGED))
        self.ties: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.shown = [0, 0]  # preferences for what was shown first, and all of them
        self.sample = Reservoir(SAMPLED)
        self._attributes: dict[str, None] = {}
        self._judges: dict[str, None] = {}

    def add(self, record: Record) -> None:
        self.records += 1
        self.by_source[bounded(self.by_source, record.source)].update(record.kinds or ["prompts"])
        asked = [words(m) for m in record.messages]
        answers = [r.plain_text for r in record.responses]
        self._measure("prompts", asked)
        self.lengths["prompts, turns"][len(asked)] += 1
        self.lengths["responses of a record"][len(answers)] += 1
        for answer, response in zip(answers, record.responses, strict=True):
            self._measure("responses", [answer])
            self.lengths["responses, turns"][len(response.messages or "1")] += 1
        for text in (*asked, *answers):
            self.letters.update(scripts(text))
        if record.judgements:
            self._judged(record)

    def _measure(self, name: str, texts: list[str]) -> None:
        self.lengths[f"{name}, words"][sum(len(text.split()) for text in texts)] += 1
        self.lengths[f"{name}, characters"][sum(map(len, texts))] += 1

    def _judged(self, record: Record) -> None:
        answers, copies = list[str](), Counter[str]()
        for response in record.responses:  # the same words a second time are another response
            text = content(response)
            answers.append(f"{text}{copies[text]}")
            copies[text] += 1
        again: Counter[tuple[str, ...]] = Counter()
        alike: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
        for said in record.judgements:
            if not whole(said):
                continue
            attribute = bounded(self._attributes, said.attribute)
            by = bounded(self._judges, said.by or "")
            self._attributes[attribute] = self._judges[by] = None
            kind, value, about = _about(said, answers)
            for one in {"", by}:
                self.values[kind, attribute, one].add(_strength(said))
            again[about, kind, attribute, by] += 1
            judge = hashed(record.source, by, str(again[about, kind, attribute, by])) >> 1
            self.judged[kind, attribute].add(hashed(record.prompt_key, about), judge, value)
            if said.kind == "preference" and not said.margin:
                self._count("preferences", said.value == 0.5)
                self._first(said)
            elif said.response is not None:
                alike[kind, attribute, by][said.response] = said.value
        for (kind, _, _), values in alike.items():
            for a, b in combinations(values.values(), 2):
                self._count(kind, a == b)

    def _count(self, name: str, tie: bool) -> None:
        self.ties[name][0] += tie
        self.ties[name][1] += 1

    def _first(self, said: Judgement) -> None:
        if said.order is None or said.pair is None or said.value == 0.5 or not {*said.pair} <= {*said.order}:
            return
        better = said.pair[said.value < 0.5]
        self.shown[0] += min(said.pair, key=said.order.index) == better
        self.shown[1] += 1

    def shares(self) -> dict[str, float]:
        """Scripts by their share of the letters; those below one in a thousand are told together."""
        total = self.letters.total() or 1
        found = {name: n / total for name, n in self.letters.most_common() if n / total >= 0.001}
        others = 1 - math.fsum(found.values())
        return found | ({"others": others} if found and others >= 0.0005 else {})


def _strength(said: Judgement) -> float:
    """The value of a judgement, of a preference or margin from its better side."""
    if said.kind != "preference":
        return said.value
    return abs(said.value) if said.margin else max(said.value, 1 - said.value)


def _about(said: Judgement, answers: list[str]) -> tuple[str, float, str]:
    """Kind, value and target of a judgement; pairs always from the same side."""
    kind = "margins" if said.margin else KIND_OF_JUDGEMENT[said.kind]
    if said.pair is None:
        assert said.response is not None
        return kind, said.value, answers[said.response]
    i, j = said.pair
    turned = answers[i] > answers[j]
    value = said.value if not turned else -said.value if said.margin else 1 - said.value
    return kind, value, min(answers[i], answers[j]) + max(answers[i], answers[j])


# -- agreement --------------------------------------------------------------------------------------------------------


def agreement(kind: str, attribute: str, judged: Keys) -> Agreement | None:
    """Of judgements by target (key), judge (place) and value; None if no target has two judges."""
    rows = judged.sorted()
    order = np.lexsort((rows.places, rows.keys))
    keys, judges, values = rows.keys[order], rows.places[order], rows.values[order]
    again = np.append(False, (keys[1:] == keys[:-1]) & (judges[1:] == judges[:-1]))[: len(keys)]  # the same row twice
    _, unit, sizes = np.unique(keys[~again], return_inverse=True, return_counts=True)
    several = sizes[unit] > 1
    if not several.any():
        return None
    unit, values = unit[several], values[~again][several]
    equal, alpha = krippendorff(unit, values, nominal=kind in ("labels", "pairs"))
    return Agreement(judged.count(np.diff(unit, prepend=-1) > 0), judged.count(several), equal, alpha)


def krippendorff(units: np.ndarray, values: np.ndarray, *, nominal: bool) -> tuple[float, float]:
    """Share of equal pairs of values within units, and Krippendorff's alpha; every unit has two values or more.

    Equation:
        alpha = 1 - D_o / D_e, with n values in all and m of the unit u:
        D_o = 1/n sum_u sum_(i != j in u) d(v_i, v_j) / (m - 1)
        D_e = 1/(n (n - 1)) sum_(i != j) d(v_i, v_j)
        d = [v_i != v_j] (nominal), or (v_i - v_j)^2 (interval: ratings and ranks).

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011).

    Example: two judges on four answers say good-good, good-bad, bad-bad, bad-bad: n = 8, D_o = 2/8, 3 times good and
        5 times bad, so D_e = 2 * 3 * 5 / 56, and alpha = 1 - 0.25 / 0.5357 = 0.5333.

    >>> units, values = np.array([0, 0, 1, 1, 2, 2, 3, 3]), np.array([1, 1, 1, 0, 0, 0, 0, 0])
    >>> equal, alpha = krippendorff(units, values, nominal=True)
    >>> equal, round(alpha, 4)
    (0.75, 0.5333)
    """
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    n = len(values)
    _, value, totals = np.unique(values, return_inverse=True, return_counts=True)
    _, cells = np.unique(unit * len(totals) + value, return_counts=True)
    inside = np.unique(unit * len(totals) + value) // len(totals)
    same = np.bincount(inside, cells.astype(float) ** 2)  # of each unit, ordered pairs of equal values, i = j included
    if nominal:
        apart, expected = sizes**2 - same, float(n**2 - (totals.astype(float) ** 2).sum())
    else:
        v = values - values.mean()
        apart = 2 * (sizes * np.bincount(unit, v**2) - np.bincount(unit, v) ** 2)
        expected = 2 * float(n * (v**2).sum() - v.sum() ** 2)
    equal = float((same - sizes).sum() / (sizes * (sizes - 1)).sum())
    if expected <= 0:
        return equal, math.nan
    return equal, 1 - float((apart / (sizes - 1)).sum()) / n / (expected / (n * (n - 1)))


# -- scripts ----------------------------------------------------------------------------------------------------------


def scripts(text: str) -> dict[str, int]:
    """Letters of a text by script.

    >>> scripts("Name 2 colours: синий")
    {'Latin': 11, 'Cyrillic': 5}
    """
    if text.isascii():
        letters = len(text.encode().translate(None, ASCII))
        return {"Latin": letters} if letters else {}
    found: dict[str, int] = {}
    for character, n in Counter(text).items():
        if name := script(character):
            found[name] = found.get(name, 0) + n
    return found


@functools.lru_cache(1 << 16)
def script(character: str) -> str:
    """The script of a letter, the first word of its Unicode name; "" for what is no letter.

    >>> script("я"), script("字"), script("!")
    ('Cyrillic', 'CJK', '')
    """
    if not character.isalpha():
        return ""
    name = unicodedata.name(character, "").partition(" ")[0]
    return name if name in ("CJK", "") else name.capitalize()
