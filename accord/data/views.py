"""Is a tie a pair? How many pairs from a ranking? Is 7 of 10 good?

A record states facts; a view decides what they count as, and counts what it decided. `view` turns records into the
examples of one kind: demonstrations (`Demos`), judged responses (`Points`), preferences (`Pairs`), scored lists
(`Groups`). It is a pure function: the same records and options give the same examples and the same counts.

| kind   | made from                                                                                              |
|--------|--------------------------------------------------------------------------------------------------------|
| Demos  | demonstrations; responses labelled good; rated `threshold` or better (without one: the best of several); |
|        | the chosen of a preference; the best of a ranking                                                      |
| Points | labels; else ratings; else preferences (the share of its pairs that a response wins); demonstrations     |
| Pairs  | preferences; else the order that ratings, labels or ranks give to the responses of one record           |
| Groups | ratings; else ranks (score = -rank); else labels                                                       |
| Tokens | as Points                                                                                              |
| Rollouts | labels, else ratings, of responses that carry the log-probs under which they were sampled            |
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import combinations, combinations_with_replacement, compress, product
from statistics import median
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from accord.data import verdicts
from accord.data.records import FEEDBACK_KINDS, KIND_OF_JUDGEMENT, STRENGTH, Judgement, Message, Record, Response
from accord.data.store import Growing, Making, Table, each, taken
from accord.errors import ConfigError, nearest

NAN = math.nan
EXAMPLES_KEPT = 5
PLACES = re.compile(r"\{(?:chosen|rejected)\}")


@dataclass(frozen=True)
class Branch:
    """A response of a record under a context; context None is the record's prompt. With `rationale`, under a context
    that asks for it, the reasons given for the response are what is said; with `verdict`, that word."""

    record: int
    response: int
    context: tuple[Message, ...] | None = None
    rationale: bool = False
    verdict: str | None = None

    def said(self, record: Record) -> Response:
        """What is trained of the branch's record."""
        if self.verdict is not None:
            return Response(text=self.verdict)
        response = record.responses[self.response]
        return Response(text=response.rationale) if self.rationale else response


@dataclass(frozen=True)
class Example:
    """What an objective is fed with, one row of it.

    branches: Demos and Points {"response"}; Pairs {"chosen", "rejected"}, and what options add; Groups {"responses": a
        tuple}.
    values: Points {"value"}; Pairs {"strength", "score_chosen", "score_rejected"}, NaN where nobody scored;
        Groups {"score": a tuple}.
    record: index of the record; source and weight are the record's.
    """

    kind: str
    branches: dict[str, Branch | tuple[Branch, ...]]
    values: dict[str, float | tuple[float, ...]]
    record: int
    source: str
    weight: float


@dataclass(frozen=True, eq=False)
class Examples(Table[Example]):
    """Examples of one kind in columns. A branch is the number of a response of the example's own record, or ~k for the
    branch `others[k]`, which is another."""

    others: tuple[Branch, ...] = ()

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Examples:
        """The same in columns."""
        if isinstance(examples, Examples):
            return examples
        made, others = Making(), list[Branch]()
        for example in examples:
            made.add(example, _numbers(example, others))
        return cls(**made.done(), others=tuple(others))

    def _row(self, i: int) -> Example:
        record = int(self.records[i])

        def branch(number: int) -> Branch:
            return Branch(record, number) if number >= 0 else self.others[~number]

        roles = {
            role: tuple(map(branch, found)) if isinstance(found := column.item(i), tuple) else branch(found)
            for role, column in self.branches.items()
        }
        values = {name: column.item(i) for name, column in self.values.items()}
        source, weight = self.names[int(self.sources[i])], float(self.weights[i])
        return Example(self.kind, roles, values, record, source, weight)


def _numbers(example: Example, others: list[Branch]) -> dict[str, int | tuple[int, ...]]:
    """What the columns hold of an example's branches; `others` grows."""

    def number(branch: Branch) -> int:
        if branch.record == example.record and branch.context is None:
            return branch.response
        others.append(branch)
        return -len(others)

    return {
        role: number(found) if isinstance(found, Branch) else tuple(map(number, found))
        for role, found in example.branches.items()
    }


class Counts:
    """How often each decision was taken, with the first few records that it was taken on.

    >>> counts = Counts()
    >>> counts.add("tie dropped", Record(prompt="Hi", origin={"file": "a.jsonl", "line": 3}))
    >>> counts["tie dropped"], counts.as_dict()["tie dropped"]["examples"][0]["line"]
    (1, 3)
    """

    def __init__(self) -> None:
        self._counter: Counter[str] = Counter()
        self._examples: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, name: str, about: Any = None, times: int = 1) -> None:
        """Counts a decision about a record (or about anything that has a file and a line, or a function that gives
        it, which is called only while examples are wanted)."""
        self._counter[name] += times
        if about is not None and len(self._examples[name]) < EXAMPLES_KEPT:
            about = about() if callable(about) else about
            place = getattr(about, "origin", about)
            found = {"id": getattr(about, "id", None)} | {k: getattr(place, k, None) for k in ("file", "line")}
            self._examples[name].append({key: value for key, value in found.items() if value is not None})

    def recall(self, found: dict[str, dict[str, Any]]) -> None:
        """Adds what `as_dict` gave."""
        for name, said in found.items():
            self._counter[name] += said["count"]
            self._examples[name] = (self._examples[name] + said["examples"])[:EXAMPLES_KEPT]

    def __getitem__(self, name: str) -> int:
        return self._counter[name]

    def totals(self) -> dict[str, int]:
        """Decision to number, most frequent first."""
        return dict(self._counter.most_common())

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Decision to {"count", "examples"}, as `data.json` keeps it."""
        return {name: {"count": n, "examples": list(self._examples[name])} for name, n in self.totals().items()}


@dataclass(frozen=True)
class ViewOptions:
    """What feedback counts as.

    Args:
        threshold: a rating (after `rescale`) of this much or more is good: value 1, below it 0. None keeps the
            number, for objectives that take scores; demonstrations are then the best of several.
        rescale: `none`; `unit` puts ratings on [0, 1] and `centred` on [-1, 1], by the judgement's scale, else by the
            lowest and highest value that the source gave to the attribute.
        ties: `drop`, or `half`: kept with strength 0.5. A pair of equal texts teaches nothing and is always dropped.
        several: what several judgements of one target come to. `mean`: their mean, within each attribute, then over
            the attributes. `vote`: what most say, labels and preferences as votes for or against (even votes are a
            tie), ratings, ranks and margins by their median. `agreement`: as `mean`, but a pair is as strong as the
            share of the judges who agree on it, be it that they compared the two or that they rated or ranked both;
            judges are told apart by `by`. Under `vote` and `agreement` a pair that a source brings in several records
            is judged once, by all of them.
        rankings: pairs from an order of K responses: `all` K(K-1)/2, `adjacent` places, or `best_worst`.
        strengths: strength of a pair: `hard` is 1; `given` is the stated probability, else 1; `scores` is
            sigmoid(strength_scale * gap) where a margin or two ratings give a gap, else as `given`.
        strength_scale: units of 1 / score.
        ensemble: what becomes of a pair by the margin that an ensemble of reward models gave it (`accord data
            strength`; arXiv 2401.06080). Of pairs whose margin is below `ensemble_below`: `flip` turns them round,
            `smooth` makes their strength 1 - ensemble_smoothing, `drop` leaves them out. Of all pairs: `soft` makes the
            strength sigmoid(margin), turning round those below one half; `margin` makes the margin their score gap,
            for objectives that read one. `flip+margin` and `soft+margin` do both.
        ensemble_below: a margin, in units of the models' scores; `accord data strength` tells those of each share.
        ensemble_smoothing: in (0, 0.5).
        duplicates: `drop` leaves out a pair that the same source has brought before, and a pair that it brought in
            both directions; `keep` takes every one.
        pairs_as_points: whether a preference makes points (chosen 1, rejected 0).
        demonstration_value: the value of a demonstration as a point.
        advantages: of rollouts, from the ratings of a record's responses: `centred` takes their mean off, `normalised`
            divides by their standard deviation too, `value` is the rating itself.
        max_pairs: at most so many pairs for a prompt, spread evenly over the order in which they come.
        attribute: the attribute whose judgements count; None: all of them.
        attributes: attributes by name, each of whose ratings of a response is a point of its own, for
            `reward_attributes`, whose head gives a number for each in this order.
        relabel: reward-augmented pairs (arXiv 2410.08067): a text with `{score}` in it, which is added to the prompt. A
            pair becomes two, one for each response's score, and the response that has the score is chosen; their
            scores are -(target - score)^2. Ask with the highest score in that text when the model is used.
        revise: what a user says to have an answer revised. A pair then holds each response also as a revision of the
            other and of itself; `srpo` needs it, and has a text of its own.
        rationale: what the prompt is followed by to be told why the one answer is better, with `{chosen}` and
            `{rejected}` in it. A pair then holds the rationale of its chosen response, too; the objective `rationale`
            reads it, and has a text of its own.
        verdict: teaches a judge: each pair makes two demonstrations, one an order, of the word (A or B) that says which
            of two answers is better; nothing else is shown. True asks as the judge `self` does; a text of one's own
            has {prompt}, {first} and {second} in it.
        match_prompts: weighs each bad point (below one half) by how much likelier its prompt is among good ones, as
            a classifier sees it, held in [0.5, 10]: for good and bad answers to different prompts (arXiv 2404.04656).
    """

    threshold: float | None = None
    rescale: Literal["none", "unit", "centred"] = "none"
    ties: Literal["drop", "half"] = "drop"
    several: Literal["mean", "vote", "agreement"] = "mean"
    rankings: Literal["all", "adjacent", "best_worst"] = "all"
    strengths: Literal["hard", "given", "scores"] = "given"
    strength_scale: float = 1.0
    ensemble: Literal["none", "flip", "smooth", "soft", "margin", "drop", "flip+margin", "soft+margin"] = "none"
    ensemble_below: float = 0.0
    ensemble_smoothing: float = 0.1
    duplicates: Literal["keep", "drop"] = "drop"
    pairs_as_points: bool = True
    demonstration_value: float = 1.0
    advantages: Literal["centred", "normalised", "value"] = "centred"
    max_pairs: int | None = None
    attribute: str | None = None
    attributes: tuple[str, ...] | None = None
    relabel: str | None = None
    revise: str | None = None
    rationale: str | None = None
    verdict: bool | str = False
    match_prompts: bool = False

    def __post_init__(self) -> None:
        if self.attributes is not None:
            names = self.attributes if isinstance(self.attributes, list | tuple) else [self.attributes]
            object.__setattr__(self, "attributes", tuple(map(str, names)))
            if len(set(names)) < max(2, len(names)) or self.attribute is not None:
                raise ConfigError(f"view.attributes={names!r} names two or more, each once; for one: view.attribute")
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if (known := get_args(hint)) and isinstance(known[0], str) and value not in known:
                raise ConfigError(f"view.{name}={value!r} is not known; {nearest(str(value), known)}")
        for name in ("threshold", "strength_scale", "ensemble_below", "ensemble_smoothing", "demonstration_value"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
                raise ConfigError(f"view.{name}={value!r} is not a number")
        if self.several == "agreement" and self.strengths == "scores":
            raise ConfigError(
                "view.several=agreement and view.strengths=scores both make strengths, of judges or scores; choose one"
            )
        if not 0 < self.ensemble_smoothing < 0.5:
            raise ConfigError(f"view.ensemble_smoothing={self.ensemble_smoothing} must lie in (0, 0.5)")
        if self.strengths == "hard" and self.ensemble in ("smooth", "soft", "soft+margin"):
            raise ConfigError(f"view.strengths=hard undoes what view.ensemble={self.ensemble} does; choose one")
        if self.strength_scale <= 0:
            raise ConfigError(f"view.strength_scale={self.strength_scale} must be above 0")
        if self.relabel is not None and "{score}" not in self.relabel:
            raise ConfigError(f"view.relabel={self.relabel!r} has no place for the score: write {{score}} in it")
        if self.rationale is not None and not {"{chosen}", "{rejected}"} <= set(PLACES.findall(self.rationale)):
            raise ConfigError(
                f"view.rationale={self.rationale!r} has no place for both answers: write {{chosen}} and "
                "{rejected} in it"
            )
        writing = [name for name in ("relabel", "revise", "rationale") if getattr(self, name) is not None]
        if len(writing) > 1:
            raise ConfigError(f"view.{writing[0]} and view.{writing[1]} both write prompts of their own; choose one")
        if self.verdict:
            verdicts.read(self.verdict)
        if self.max_pairs is not None and self.max_pairs < 1:
            raise ConfigError(f"view.max_pairs={self.max_pairs} leaves no pair; use 1 or more, or leave it out")


# Kind to the feedback that it can be made from.
MADE_FROM = {
    "Demos": FEEDBACK_KINDS,
    "Points": ("demonstrations", "labels", "ratings", "pairs"),
    "Pairs": ("labels", "ratings", "pairs", "rankings"),
    "Groups": ("labels", "ratings", "rankings"),
    "Tokens": ("demonstrations", "labels", "ratings", "pairs"),
    "Rollouts": ("labels", "ratings"),
}


def view(
    records: Seq[Record],
    kind: str,
    options: ViewOptions | None = None,
    *,
    feedback: Collection[str] | None = None,
    counts: Counts | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Examples:
    """The examples of one kind that records make, in the records' order.

    Args:
        records: what was said.
        kind: "Demos", "Points", "Pairs" or "Groups".
        options: what it counts as.
        feedback: kinds of feedback that are used, of `records.FEEDBACK_KINDS`; None is all that can make `kind`.
            What is not used is not looked at: without "ratings", pairs have no scores.
        counts: every decision is added to it.
        progress: is told now and then how many of how many records were looked at.

    Records are gone over one by one (a second time for `rescale`), and of each example some tens of bytes are kept;
    while pairs are made, 17 bytes more for each to know those that come again, and 16 for `max_pairs`.

    Raises:
        ConfigError: an unknown kind, or feedback that cannot make it.

    Three ratings, two of them equal, are two pairs and a tie:

    >>> scores = [{"kind": "score", "response": i, "value": v} for i, v in enumerate((7, 9, 7))]
    >>> record = Record(prompt="2+2?", responses=[{"text": t} for t in ("3", "4", "5")], judgements=scores)
    >>> counts = Counts()
    >>> for pair in view([record], "Pairs", counts=counts):
    ...     print(pair.branches["chosen"].response, pair.branches["rejected"].response, pair.values["score_chosen"])
    1 0 9.0
    1 2 9.0
    >>> counts.totals()
    {'pair from ratings': 2, 'tie dropped: equal ratings': 1}
    """
    options, counts = options or ViewOptions(), counts if counts is not None else Counts()
    if kind not in MADE_FROM:
        raise ConfigError(f"no view makes {kind!r}; {nearest(kind, MADE_FROM)}")
    for name in feedback or ():
        if name not in FEEDBACK_KINDS:
            raise ConfigError(f"feedback {name!r} is not known; {nearest(name, FEEDBACK_KINDS)}")
        if name not in MADE_FROM[kind]:
            raise ConfigError(f"{kind} cannot be made from {name}; they are made from {', '.join(MADE_FROM[kind])}")
    used = frozenset(MADE_FROM[kind] if feedback is None else feedback)
    if options.ensemble != "none" and kind != "Pairs":
        raise ConfigError(f"view.ensemble decides about pairs, and these are {kind.lower()}; leave it out")
    if options.verdict and kind != "Demos":
        raise ConfigError(f"view.verdict makes demonstrations, and these are {kind.lower()}: train it with sft")
    if options.match_prompts and kind not in ("Points", "Tokens"):
        raise ConfigError(f"view.match_prompts weighs good and bad points, and these are {kind.lower()}; leave it out")
    ranges = observed_ranges(records) if options.rescale != "none" else {}
    scales = Scales(options, counts) if options.rescale == "none" and "ratings" in used else None
    repeats = Repeats(options) if kind == "Pairs" else None
    made, origins, names, others = Making(), Growing("b"), dict[str, int](), list[Branch]()
    for index, record in enumerate(records):
        facts = Facts(record, index, options, used, ranges, counts)
        found = list(MAKERS[kind](facts))
        for origin, example in found:
            made.add(example, _numbers(example, others))
            origins.append(names.setdefault(origin, len(names)))
        if scales:
            scales.see(record)
        if repeats and found:
            repeats.see(record, [example for _, example in found])
        if not found:
            counts.add(f"no {NOUNS[kind]}: {facts.why_nothing(kind)}", record)
        for name in sorted(record.kinds.intersection(MADE_FROM[kind]) - used):
            counts.add(f"left: {name}, not asked for", record)
        if index % 1000 == 999:
            progress(index + 1, len(records))
    examples, origin_of = Examples(**made.done(), others=tuple(others)), np.asarray(origins.done())
    if options.ensemble != "none" and len(examples) and not counts[ENSEMBLE]:
        raise ConfigError(
            f"view.ensemble={options.ensemble} reads how far an ensemble believes each pair, and none of "
            f"{len(examples):,} pairs says so: accord data strength writes it"
        )
    if repeats:
        examples, origin_of = repeats.settled(examples, origin_of, records, counts)
    if options.match_prompts and len(examples):
        examples = matched(examples, records, counts)
    every, numbers = list(names), dict.fromkeys(origin_of.tolist())
    for number in numbers:
        places = np.flatnonzero(origin_of == number)
        _count(counts, f"{NOUNS[kind]} from {every[number]}", records, examples.records[places])
    return examples


def matched(points: Examples, records: Seq[Record], counts: Counts) -> Examples:
    """The points, the bad ones weighed by the odds of their prompts."""
    from accord.data.matching import LEAST, MOST_ODDS, odds  # scipy is slow to import, and few ask

    bad = np.asarray(points.values["value"]) < 0.5
    ratio = odds(records, points.records, ~bad)
    _count(counts, "bad point weighed by its prompt", records, points.records[bad])
    for bound, beyond in ((LEAST, ratio < LEAST), (MOST_ODDS, ratio > MOST_ODDS)):
        _count(counts, f"weight of a bad point held at {bound:g}", records, points.records[bad & beyond])
    return replace(points, weights=points.weights * np.where(bad, ratio.clip(LEAST, MOST_ODDS), 1.0))


def _count(counts: Counts, name: str, records: Seq[Record], places: np.ndarray) -> None:
    """Counts a decision about each of these records."""
    for place in places[:EXAMPLES_KEPT]:
        counts.add(name, records[place])
    if len(places) > EXAMPLES_KEPT:
        counts.add(name, times=len(places) - EXAMPLES_KEPT)


NOUNS = {
    "Demos": "demonstration", "Points": "point", "Pairs": "pair", "Groups": "group", "Tokens": "point",
    "Rollouts": "rollout",
}  # fmt: skip


# -- what a record says, on average and in the units asked for --------------------------------------------------------


def observed_ranges(records: Iterable[Record]) -> dict[tuple[str, str], tuple[float, float]]:
    """(source, attribute) to the lowest and highest rating that was given without a scale."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for record in records:
        for said in record.judgements:
            if said.kind == "score" and said.scale is None and whole(said):
                low, high = found.get((record.source, said.attribute), (said.value, said.value))
                found[record.source, said.attribute] = min(low, said.value), max(high, said.value)
    return found


class Scales:
    """Counts records whose ratings are averaged, or held against one threshold, though they were given on several
    scales."""

    def __init__(self, options: ViewOptions, counts: Counts) -> None:
        self.options, self.counts = options, counts
        self.first: set[tuple[float, float]] = set()

    def see(self, record: Record) -> None:
        options = self.options
        said = [j for j in record.judgements if j.kind == "score" and options.attribute in (None, j.attribute)]
        scales = {j.scale for j in said if j.scale is not None}
        if len(scales) > 1:
            what = "ratings of several scales stand in one record as they are: `rescale` puts them on one"
            self.counts.add(what, record)
        elif scales and options.threshold is not None:
            self.first = self.first or scales
            if scales != self.first:
                self.counts.add("one threshold for ratings of several scales: `rescale` puts them on one", record)


def whole(judgement: Judgement) -> bool:
    """Whether a judgement is on whole responses, and not on a step or span of one."""
    return judgement.step is None and judgement.span is None


class Facts:
    """What one record says: each judgement as `several` makes it of those who judged, ratings rescaled.

    labels, ratings, ranks: response to value. preferences: (i, j) to P(i is better than j), in the order in which the
    pair was first named; margins: the same to a gap in score units. ensemble: (i, j) to the margin that an ensemble
    gave, in both orders. judges: of ratings and of ranks, what each judge
    gave to the responses (higher is better), for the agreement of judges.
    """

    def __init__(
        self,
        record: Record,
        index: int,
        options: ViewOptions,
        used: Collection[str],
        ranges: dict[tuple[str, str], tuple[float, float]],
        counts: Counts,
    ) -> None:
        self.record, self.index, self.options, self.used, self.counts = record, index, options, used, counts
        self.ranges = ranges
        self.labels: dict[int, float] = {}
        self.ratings: dict[int, float] = {}
        self.ranks: dict[int, float] = {}
        self.preferences: dict[tuple[int, int], float] = {}
        self.margins: dict[tuple[int, int], float] = {}
        self.ensemble: dict[tuple[int, int], float] = {}
        self.judges: dict[str, dict[tuple[str, str], dict[int, float]]] = {"ratings": {}, "rankings": {}}
        self.apart: dict[tuple[int, str], list[float]] = {}  # (response, attribute) to its ratings
        self.ties = self.doubted = 0
        named: dict[frozenset[int], tuple[int, int]] = {}
        said: dict[tuple[str, Any], list[tuple[str, float]]] = {}
        for j in in_both_orders(record.judgements):
            if j.attribute == STRENGTH:
                if j.pair is not None and options.ensemble != "none":
                    self.ensemble |= {j.pair: j.value, j.pair[::-1]: -j.value}
                continue
            if KIND_OF_JUDGEMENT[j.kind] not in used:
                continue
            if not whole(j):
                counts.add("left: a judgement on a part of a response", record)
            elif options.attribute not in (None, j.attribute):
                counts.add(f"left: a judgement that is not on {options.attribute!r}", record)
            elif j.pair is None:
                if j.kind == "score" and j.response is not None and j.attribute in (options.attributes or ()):
                    self.apart.setdefault((j.response, j.attribute), []).append(self._scaled(j))
                said.setdefault((j.kind, j.response), []).append((j.attribute, self._scaled(j)))
                if j.by is not None and j.response is not None and j.kind in ("score", "rank"):
                    own = self.judges[KIND_OF_JUDGEMENT[j.kind]].setdefault((j.by, j.attribute), {})
                    own[j.response] = -j.value if j.kind == "rank" else self._scaled(j)
            else:
                pair, value = named.setdefault(frozenset(j.pair), j.pair), j.value
                if pair != j.pair:
                    value = -value if j.margin else 1 - value
                said.setdefault(("margin" if j.margin else j.kind, pair), []).append((j.attribute, value))
        tables: dict[str, dict[Any, float]] = {
            "label": self.labels, "score": self.ratings, "rank": self.ranks,
            "preference": self.preferences, "margin": self.margins,
        }  # fmt: skip
        for (kind, target), values in said.items():
            made = self._together(kind, values)
            if made is not None:
                tables[kind][target] = made

    def _together(self, kind: str, values: list[tuple[str, float]]) -> float | None:
        """What several judgements of one target come to; None for a label that is a tie and dropped."""
        if len(values) == 1:
            return values[0][1]
        numbers = [v for _, v in values]
        several = self.options.several
        if several == "vote":
            self.counts.add(f"voted: several judgements of one target ({kind})", self.record)
        else:
            self.counts.add(f"averaged: several judgements of one target ({kind})", self.record)
        if kind == "preference" and min(numbers) < 0.5 < max(numbers):
            self.counts.add("contradiction: the same pair in both directions", self.record)
        if kind == "preference" and several == "agreement":
            return _share(numbers)
        if several == "vote" and kind not in ("label", "preference"):
            return median(numbers)
        if several == "vote":
            won = _share(numbers)
            if kind == "label" and won == 0.5:
                self.ties += 1
                kept = self.options.ties == "half"
                self.counts.add(("tie kept at one half: " if kept else "tie dropped: ") + "even votes", self.record)
                return 0.5 if kept else None
            return 0.5 if won == 0.5 else float(won > 0.5)
        groups: dict[str, list[float]] = {}
        for attribute, value in values:
            groups.setdefault(attribute, []).append(value)
        return math.fsum(math.fsum(g) / len(g) for g in groups.values()) / len(groups)

    def agreed(self, origin: str, i: int, j: int) -> float | None:
        """The share of those who rated (or ranked) both that put i above j; None if nobody is known to have done so."""
        if self.options.several != "agreement":
            return None
        gaps = [own[i] - own[j] for own in self.judges.get(origin, {}).values() if i in own and j in own]
        return _share([0.5 + gap for gap in gaps]) if gaps else None

    def _scaled(self, judgement: Judgement) -> float:
        if judgement.kind != "score" or self.options.rescale == "none":
            return judgement.value
        low, high = judgement.scale or self.ranges[self.record.source, judgement.attribute]
        if low == high:
            self.counts.add("rescaled to the middle: the source gave one value only", self.record)
        unit = (judgement.value - low) / (high - low) if high > low else 0.5
        return unit if self.options.rescale == "unit" else 2 * unit - 1

    @property
    def demonstrations(self) -> Iterable[int]:
        """Responses of a record that nobody judged."""
        shown = "demonstrations" in self.used and not self.record.judgements
        return range(len(self.record.responses)) if shown else ()

    def branch(self, response: int, context: tuple[Message, ...] | None = None) -> Branch:
        return Branch(self.index, response, context)

    def example(self, kind: str, branches: dict[str, Any], values: dict[str, Any]) -> Example:
        return Example(kind, branches, values, self.index, self.record.source, self.record.weight)

    def why_nothing(self, kind: str) -> str:
        """Why this record makes no example of a kind."""
        n, kinds = len(self.record.responses), self.record.kinds
        if n == 0:
            return "a prompt without responses"
        if self.ties:
            return "all ties"
        if self.doubted:
            return "an ensemble doubts all of its pairs"
        if not kinds & frozenset(self.used):
            return f"only {' and '.join(sorted(kinds))}"
        if not (self.labels or self.ratings or self.ranks or self.preferences or self.margins or self.demonstrations):
            return "no judgement is left that counts"
        if kind == "Demos":
            return "no response is known to be good"
        if n == 1 and kind != "Points":
            return f"only one response, with {' and '.join(sorted(kinds))}"
        return "fewer than two of its responses are judged" if kind != "Points" else "no response has a value"


# What may be done where no record makes an example, by a part of the reason.
REMEDIES = {
    "only one response": "an objective on points (kto, ulma) takes single responses",
    "only demonstrations": "sft learns from demonstrations",
    "tie dropped": "view: {ties: half} keeps ties",
    "not asked for": "name that feedback in the term",
    "that is not on": "name another view: {attribute: ...}",
    "longer than max_length": "raise max_length, or cut with overlong: cut",
    "are the same tokens": "raise max_length",
    "without a rationale": "give the chosen responses a column rationale, or choose another objective",
    "no response is known to be good": "lower view: {threshold: ...}",
}


def nothing(counts: Counts, records: int) -> str:
    """Why `records` records make no example, most frequent reason first, and what may be done.

    >>> counts = Counts()
    >>> counts.add("no pair: only demonstrations", times=3)
    >>> nothing(counts, 3)
    'none of 3 records makes an example (no pair: only demonstrations: 3); sft learns from demonstrations'
    """
    reasons = [name for name in counts.totals() if not name.startswith(("averaged", "voted", "rescaled"))]
    why = "; ".join(f"{name}: {counts[name]:,}" for name in reasons) or "there are none of that kind"
    remedies = dict.fromkeys(r for part, r in REMEDIES.items() if any(part in name for name in reasons))
    return "; ".join([f"none of {records:,} records makes an example ({why})", *remedies])


# -- the kinds --------------------------------------------------------------------------------------------------------

Made = Iterator[tuple[str, Example]]


def demos(facts: Facts) -> Made:
    """Responses worth imitating, each once, under the first kind of feedback that says so."""
    if facts.options.verdict:
        yield from taught(facts, verdicts.read(facts.options.verdict))
        return
    origins: dict[int, str] = {}
    threshold = facts.options.threshold
    good = {
        "demonstrations": list(facts.demonstrations),
        "labels": [i for i, v in facts.labels.items() if v > 0.5],
        "ratings": _best(facts, "ratings", facts.ratings)
        if threshold is None
        else [i for i, v in facts.ratings.items() if v >= threshold],
        "pairs": [better for better, _, strength in preferred(facts) if strength > 0.5],
        "rankings": _best(facts, "ranks", {i: -v for i, v in facts.ranks.items()}),
    }
    for origin, responses in good.items():
        for i in responses:
            origins.setdefault(i, origin)
    for i, origin in sorted(origins.items()):
        yield origin, facts.example("Demos", {"response": facts.branch(i)}, {})


def taught(facts: Facts, question: str) -> Made:
    """Of each pair, which of two answers is better, in both orders."""
    stated = {frozenset(pair) for pair in (*facts.preferences, *facts.margins)}
    found = [("pairs", *pair) for pair in preferred(facts)]
    for origin, values in _orders(facts):
        for better, worse, strength in ordered(facts, origin, values, stated):
            found.append((origin, better, worse, strength))
            stated.add(frozenset((better, worse)))
    for origin, better, worse, strength in found:
        if strength == 0.5:
            facts.counts.add("left: a tie, which has no verdict", facts.record)
            continue
        good, bad = (facts.record.responses[i].plain_text for i in (better, worse))
        for first, second, verdict in ((good, bad, verdicts.FIRST), (bad, good, verdicts.SECOND)):
            context = verdicts.asked(facts.record.messages, first, second, question)
            branch = replace(facts.branch(better, context), verdict=verdict)
            yield origin, facts.example("Demos", {"response": branch}, {})


def _best(facts: Facts, what: str, values: dict[int, float]) -> list[int]:
    """The best of several, all of them if several are; none if all are equal, which says nothing about any."""
    if len(values) == 1:
        facts.counts.add(f"left: one response with {what}, and nothing to compare it with", facts.record)
    elif values and len(set(values.values())) == 1:
        facts.ties += 1
        facts.counts.add(f"tie dropped: equal {what}", facts.record)
    elif values:
        return [i for i, v in values.items() if v == max(values.values())]
    return []


def points(facts: Facts) -> Made:
    """Responses with a value: labels before ratings before preferences; or demonstrations."""
    options = facts.options
    if options.attributes is not None:
        yield from _by_attribute(facts, options.attributes)
        return
    wins: dict[int, list[float]] = {}
    unscored = set(range(len(facts.record.responses))) - facts.labels.keys() - facts.ratings.keys()
    if options.pairs_as_points and unscored:
        for better, worse, strength, *_ in preferred(facts):
            wins.setdefault(better, []).append(1.0 if strength != 0.5 else 0.5)
            wins.setdefault(worse, []).append(0.0 if strength != 0.5 else 0.5)
    elif unscored and (facts.preferences or facts.margins):
        facts.counts.add("left: preferences (pairs_as_points is off)", facts.record)
    for i in range(len(facts.record.responses)):
        if i in facts.labels:
            origin, value = "labels", facts.labels[i]
        elif i in facts.ratings:
            origin, value = "ratings", facts.ratings[i]
            value = value if options.threshold is None else float(value >= options.threshold)
        elif i in wins:
            origin, value = "pairs", math.fsum(wins[i]) / len(wins[i])
        elif i in facts.demonstrations:
            origin, value = "demonstrations", options.demonstration_value
        else:
            if facts.record.judgements:
                facts.counts.add("left: a response that nobody judged", facts.record)
            continue
        yield origin, facts.example("Points", {"response": facts.branch(i)}, {"value": value})


def _by_attribute(facts: Facts, names: tuple[str, ...]) -> Made:
    """A point for each attribute in which a response was rated."""
    for i in range(len(facts.record.responses)):
        rated = [(k, facts.apart[i, name]) for k, name in enumerate(names) if (i, name) in facts.apart]
        if not rated:
            facts.counts.add("left: a response that nobody rated in these attributes", facts.record)
        for k, values in rated:
            value = median(values) if facts.options.several == "vote" else math.fsum(values) / len(values)
            yield "ratings", facts.example("Points", {"response": facts.branch(i)}, {"value": value, "attribute": k})


def pairs(facts: Facts) -> Made:
    """Preferences as they were stated, then the pairs that an order gives and nobody stated."""
    scored = facts.ratings
    stated = {frozenset(pair) for pair in (*facts.preferences, *facts.margins)}
    found = [("pairs", *pair) for pair in preferred(facts)]
    for origin, values in _orders(facts):
        for better, worse, strength in ordered(facts, origin, values, stated):
            found.append((origin, better, worse, strength))
            stated.add(frozenset((better, worse)))
    for origin, better, worse, strength in found:
        margin = None
        if facts.options.ensemble != "none":
            weighed = believed(facts, better, worse, strength)
            if weighed is None:
                continue
            better, worse, strength, margin = weighed
        high, low = (scored.get(better, NAN), scored.get(worse, NAN)) if margin is None else (margin, 0.0)
        if math.isnan(high - low) and facts.options.relabel is None:  # of a stated margin only the difference is known
            gap = facts.margins.get((better, worse), -facts.margins.get((worse, better), NAN))
            high, low = (gap, 0.0) if not math.isnan(gap) else (high, low)
        numbers = {"strength": strength, "score_chosen": high, "score_rejected": low}
        branches = {"chosen": facts.branch(better), "rejected": facts.branch(worse)}
        made: Iterable[Example] = [facts.example("Pairs", branches, numbers)]
        if facts.options.relabel is not None:
            made = relabelled(facts, better, worse, numbers)
        elif facts.options.revise is not None:
            made = revised(facts, better, worse, numbers)
        elif facts.options.rationale is not None:
            made = explained(facts, better, worse, numbers)
        yield from ((origin, example) for example in made)


ENSEMBLE = "pair weighed by an ensemble"


def believed(facts: Facts, better: int, worse: int, strength: float) -> tuple[int, int, float, float | None] | None:
    """A pair as `ensemble` makes it of the margin that it was given: (better, worse, strength, score gap or None).

    None if it is dropped.
    """
    options, counts, record = facts.options, facts.counts, facts.record
    how = options.ensemble.split("+")
    if (margin := facts.ensemble.get((better, worse))) is None:
        counts.add("pair as it was: no ensemble has weighed it", record)
        return better, worse, strength, None
    counts.add(ENSEMBLE, record)
    doubted = margin < (0 if "soft" in how else options.ensemble_below)
    if doubted and "drop" in how:
        facts.doubted += 1
        counts.add("dropped: an ensemble doubts the pair", record)
        return None
    if doubted and "smooth" in how:
        counts.add("strength smoothed: an ensemble doubts the pair", record)
        strength = 1 - options.ensemble_smoothing
    if doubted and ("flip" in how or "soft" in how):
        counts.add("pair turned round: an ensemble says the opposite", record)
        better, worse, margin = worse, better, -margin
    if "soft" in how:
        strength = _sigmoid(margin)
    return better, worse, strength, margin if "margin" in how else None


def relabelled(facts: Facts, better: int, worse: int, numbers: dict[str, float]) -> Iterator[Example]:
    """The pair under the score of each of its responses, which is then chosen."""
    high, low = numbers["score_chosen"], numbers["score_rejected"]
    if not high > low:
        facts.counts.add("left: a pair without a higher score for chosen, which relabel needs", facts.record)
        return
    *before, last = facts.record.messages
    if not isinstance(last.content, str):
        facts.counts.add("left: a prompt that does not end in text, which relabel needs", facts.record)
        return
    for target, chosen, rejected in ((high, better, worse), (low, worse, better)):
        text = (facts.options.relabel or "").replace("{score}", f"{target:g}")
        context = (*before, last.model_copy(update={"content": f"{last.content}\n\n{text}"}))
        branches = {"chosen": facts.branch(chosen, context), "rejected": facts.branch(rejected, context)}
        yield facts.example("Pairs", branches, numbers | {"score_chosen": 0.0, "score_rejected": -((high - low) ** 2)})


def revised(facts: Facts, better: int, worse: int, numbers: dict[str, float]) -> Iterator[Example]:
    """The pair, and each of its responses again where the other, and where itself, had been said and was to be
    revised."""
    record, request = facts.record, Message(role="user", content=facts.options.revise)
    if any(not isinstance(m.content, str) for m in record.messages):
        facts.counts.add("left: a prompt that is not all text, which revise needs", record)
        return

    def after(response: int, said: int) -> Branch:
        answer = record.responses[said]
        turns = answer.messages or (Message(role="assistant", content=answer.text),)
        return facts.branch(response, (*record.messages, *turns, request))

    branches = {"chosen": facts.branch(better), "rejected": facts.branch(worse)}
    branches |= {"chosen_revised": after(better, worse), "rejected_revised": after(worse, better)}
    branches |= {"chosen_kept": after(better, better), "rejected_kept": after(worse, worse)}
    yield facts.example("Pairs", branches, numbers)


def explained(facts: Facts, better: int, worse: int, numbers: dict[str, float]) -> Iterator[Example]:
    """The pair, and why its chosen response is better, said where both of them are shown."""
    record, why = facts.record, facts.record.responses[better].rationale
    if why is None or not why.strip():
        facts.counts.add("left: a pair without a rationale of its chosen response", record)
        return
    *before, last = record.messages
    if not isinstance(last.content, str):
        facts.counts.add("left: a prompt that does not end in text, which rationale needs", record)
        return
    shown = {"{chosen}": record.responses[better].plain_text, "{rejected}": record.responses[worse].plain_text}
    asked = PLACES.sub(lambda place: shown[place[0]], facts.options.rationale or "")
    context = (*before, last.model_copy(update={"content": f"{last.content}\n\n{asked}"}))
    branches = {"chosen": facts.branch(better), "rejected": facts.branch(worse)}
    branches["rationale"] = replace(facts.branch(better, context), rationale=True)
    yield facts.example("Pairs", branches, numbers)


def groups(facts: Facts) -> Made:
    """All responses of a record that one kind of judgement scores."""
    for origin, values in _orders(facts, ("ratings", "rankings", "labels")):
        if len(values) < len(facts.record.responses):
            facts.counts.add(
                "left: a response that nobody scored", facts.record, len(facts.record.responses) - len(values)
            )
        if len(set(values.values())) == 1:
            facts.counts.add("group kept: all scores equal", facts.record)
        inside = sorted(values)
        branches = {"responses": tuple(facts.branch(i) for i in inside)}
        yield origin, facts.example("Groups", branches, {"score": tuple(values[i] for i in inside)})
        return


def tokens(facts: Facts) -> Made:
    """Points that are looked at token by token."""
    return ((origin, replace(point, kind="Tokens")) for origin, point in points(facts))


def rollouts(facts: Facts) -> Made:
    """Sampled and rated responses, each with the advantages that it carries, else with that over its siblings."""
    origin, values = ("labels", facts.labels) if facts.labels else ("ratings", facts.ratings)
    rated = {}
    for i, value in values.items():
        if facts.record.responses[i].sampling_logprobs is None:
            facts.counts.add("left: a response that carries no sampling_logprobs", facts.record)
        else:
            rated[i] = value
    if any(facts.record.responses[i].advantages is not None for i in rated):
        yield from _weighed(facts, origin, rated)
        return
    how = facts.options.advantages
    if how != "value" and len(rated) == 1:
        facts.counts.add("left: a single rollout, which has no advantage over others", facts.record)
        return
    mean = math.fsum(rated.values()) / max(1, len(rated)) if how != "value" else 0.0
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in rated.values()) / max(1, len(rated) - 1))
    equal = len(set(rated.values())) == 1  # the spread of equal numbers is not always 0 in floating point
    unit = spread if how == "normalised" and not equal else 1.0
    for i, value in rated.items():
        values_ = {"value": value, "advantage": (value - mean) / unit}
        yield origin, facts.example("Rollouts", {"response": facts.branch(i)}, values_)


def _weighed(facts: Facts, origin: str, rated: dict[int, float]) -> Made:
    """Rollouts that carry an advantage for each token, and with a critic what it returned and what was expected."""
    for i, value in rated.items():
        response = facts.record.responses[i]
        if response.advantages is None:
            facts.counts.add("left: a response without advantages beside others that have them", facts.record)
            continue
        named = {"advantage": response.advantages, "returns": response.returns, "old_value": response.values}
        counted = response.trained or (True,) * len(response.advantages)
        numbers = {k: tuple(compress(v, counted)) for k, v in named.items() if v is not None}
        yield origin, facts.example("Rollouts", {"response": facts.branch(i)}, {"value": value, **numbers})


MAKERS: dict[str, Callable[[Facts], Made]] = {
    "Demos": demos, "Points": points, "Pairs": pairs, "Groups": groups, "Tokens": tokens, "Rollouts": rollouts,
}  # fmt: skip


def _orders(
    facts: Facts, kinds: Iterable[str] = ("ratings", "labels", "rankings")
) -> Iterator[tuple[str, dict[int, float]]]:
    """Scores (higher is better) of two responses or more, by the kind of feedback that gives them."""
    tables = {"ratings": facts.ratings, "labels": facts.labels, "rankings": {i: -v for i, v in facts.ranks.items()}}
    return ((kind, tables[kind]) for kind in kinds if len(tables[kind]) > 1)


def preferred(facts: Facts) -> Iterator[tuple[int, int, float]]:
    """(better, worse, strength) of the preferences that were stated, ties decided, equal texts left out.

    A probability says which is better, else the sign of the margin. A plain preference between responses of equal
    score or margin 0 is a tie: somebody had to choose.
    """
    options, counts, record = facts.options, facts.counts, facts.record
    for i, j in facts.preferences | facts.margins:
        if _words(record.responses[i]) == _words(record.responses[j]):
            facts.ties += 1
            counts.add("dropped: chosen equals rejected", record)
            continue
        stated, gap = facts.preferences.get((i, j)), facts.margins.get((i, j))
        if gap is None and i in facts.ratings and j in facts.ratings:
            gap = facts.ratings[i] - facts.ratings[j]
        if gap is not None and options.strengths == "scores":
            p = _sigmoid(options.strength_scale * gap)
        elif stated is None or (gap == 0 and stated in (0, 1)):
            p = 0.5 if not gap else float(gap > 0)
        else:
            p = stated
        if gap and stated is not None and (stated - 0.5) * gap < 0:
            counts.add("pair whose scores say the opposite", record)
        why = "equal scores" if gap == 0 else "preference of one half"
        if (decided := _decided(facts, p, why)) is not None:
            if p < 0.5:
                counts.add("pair turned round: preference below one half", record)
            yield (i, j, decided) if p >= 0.5 else (j, i, decided)


def ordered(
    facts: Facts, origin: str, values: dict[int, float], stated: Collection[frozenset[int]]
) -> Iterator[tuple[int, int, float]]:
    """(better, worse, strength) of the pairs that scores give, but for those already stated; best first.

    Equal responses share a place: what is paired depends on the values alone, never on the order of the responses.
    """
    options, record = facts.options, facts.record
    places = [[i for i in sorted(values) if values[i] == v] for v in sorted(set(values.values()), reverse=True)]
    last = len(places) - 1
    for a, b in combinations_with_replacement(range(len(places)), 2):
        if (options.rankings == "adjacent" and b - a > 1) or (options.rankings == "best_worst" and (a, b) != (0, last)):
            continue
        for i, j in product(places[a], places[b]) if a < b else combinations(places[a], 2):
            if frozenset((i, j)) in stated:
                continue
            if _words(record.responses[i]) == _words(record.responses[j]):
                facts.ties += 1
                facts.counts.add("dropped: chosen equals rejected", record)
                continue
            soft = options.strengths == "scores" and origin == "ratings"
            p = _sigmoid(options.strength_scale * (values[i] - values[j])) if soft else 1.0 if a < b else 0.5
            share = facts.agreed(origin, i, j)
            p, why = (p, f"equal {origin}") if share is None else (share, "judges are divided evenly")
            if (decided := _decided(facts, p, why)) is not None:
                if p < 0.5:
                    facts.counts.add("pair turned round: most judges say the opposite of the mean", record)
                yield (i, j, decided) if p >= 0.5 else (j, i, decided)


def _decided(facts: Facts, p: float, why: str) -> float | None:
    """The strength of a pair whose one side is better with probability `p`; None if it is a tie and dropped."""
    if p == 0.5:
        facts.ties += 1
        kept = facts.options.ties == "half"
        facts.counts.add(("tie kept at one half: " if kept else "tie dropped: ") + why, facts.record)
        return 0.5 if kept else None
    return 1.0 if facts.options.strengths == "hard" else max(p, 1 - p)


def _share(votes: list[float]) -> float:
    """The share of those above one half; one half counts half.

    >>> _share([1.0, 0.7, 0.5, 0.0])
    0.625
    """
    return math.fsum(1.0 if v > 0.5 else 0.5 if v == 0.5 else 0.0 for v in votes) / len(votes)


def in_both_orders(judgements: Iterable[Judgement]) -> list[Judgement]:
    """The judgements, with what one judge said of a pair in several orders as one: see `together`.

    >>> said = [Judgement(kind="preference", pair=(0, 1), value=v, order=o) for v, o in ((0.9, (0, 1)), (0.5, (1, 0)))]
    >>> [round(j.value, 6) for j in in_both_orders(said)]
    [0.75]
    """
    judgements = list(judgements)
    if all(j.order is None for j in judgements):
        return judgements
    found: dict[Any, list[Judgement]] = {}
    for n, j in enumerate(judgements):
        apart = j.pair is None or j.margin or j.order is None or j.step is not None or j.span is not None
        found.setdefault(n if apart or j.pair is None else (j.by, j.attribute, frozenset(j.pair)), []).append(j)
    made = []
    for several in found.values():
        first = several[0]
        if len(several) > 1:
            values = [j.value if j.pair == first.pair else 1 - j.value for j in several]
            first = first.model_copy(update={"value": together(values), "order": None})
        made.append(first)
    return made


def together(verdicts: Seq[float]) -> float:
    """P(the first is better) of several verdicts on a pair: the mean of their log-odds, so that a liking for the first
    place falls out where both orders were judged; of verdicts that are certain, or ties, their mean.

    >>> round(together([0.9, 0.5]), 6), together([1.0, 0.0]), together([1.0, 0.5])
    (0.75, 0.5, 0.75)
    """
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if not all(0 < v < 1 for v in verdicts):
        return math.fsum(verdicts) / len(verdicts)
    return _sigmoid(math.fsum(math.log(v / (1 - v)) for v in verdicts) / len(verdicts))


def _sigmoid(x: float) -> float:
    e = math.exp(-abs(x))
    return (1 if x >= 0 else e) / (1 + e)


def _words(response: Response) -> str:
    """What makes two responses the same: their text, or their turns."""
    if response.text is not None:
        return response.text
    return json.dumps([m.plain() for m in response.messages or ()], sort_keys=True, ensure_ascii=False)


# -- over all records -------------------------------------------------------------------------------------------------


About = Callable[[int], Callable[[], Record]]  # from a pair to what gives its record


class Repeats:
    """Pairs that come again, and prompts that have many. Of each pair the hashes that this takes are kept."""

    def __init__(self, options: ViewOptions) -> None:
        self.options = options
        self.pairs, self.prompts, self.turned = bytearray(), bytearray(), bytearray()

    def see(self, record: Record, pairs: list[Example]) -> None:
        prompt = record.prompt_key
        for pair in pairs if self.options.duplicates == "drop" else ():
            texts = [_words(record.responses[_one(pair, side).response]) for side in ("chosen", "rejected")]
            low, high = sorted(texts)
            context = _one(pair, "chosen").context
            under = [] if context is None else [json.dumps([m.plain() for m in context], sort_keys=True)]
            self.pairs += _hashed(pair.source, prompt, low, high, *under)
            self.turned.append(texts[0] != low)
        if self.options.max_pairs is not None:
            self.prompts += _hashed(prompt) * len(pairs)

    def settled(
        self, examples: Examples, origins: np.ndarray, records: Seq[Record], counts: Counts
    ) -> tuple[Examples, np.ndarray]:
        """The pairs that are left, with their origins.

        Each pair of a source stands once; one that a source brought in both directions is a tie, or put to the vote.
        At most `max_pairs` pairs of a prompt are left, evenly spaced in the order in which they come.
        """
        of = examples.records

        def about(pair: int) -> Callable[[], Record]:
            return functools.partial(records.__getitem__, int(of[pair]))

        chosen = np.arange(len(examples), dtype=np.int32)  # the pair that stands at each place
        kept = np.ones(len(examples), bool)
        if self.options.duplicates == "drop" and (repeated := _repeated(self.pairs)):
            strengths = np.array(examples.values["strength"])
            examples = replace(examples, values=examples.values | {"strength": strengths})
            together = self._in_one if self.options.several == "mean" else self._by_vote
            for places in repeated:
                kept[places] = False
                found = together(places.tolist(), strengths, about, counts)
                if found is not None:
                    chosen[places[0]], strengths[found[0]] = found
                    kept[places[0]] = True
        if (most := self.options.max_pairs) is not None:
            left = np.flatnonzero(kept)
            for places in _repeated(self.prompts, left, most + 1):
                n = len(places)
                kept[places] = False
                kept[places[[k * (n - 1) // max(most - 1, 1) for k in range(most)]]] = True
                counts.add(f"left: a pair above max_pairs={most}", about(chosen[places[0]]), n - most)
        if kept.all() and (np.diff(chosen) == 1).all():
            return examples, origins
        order = chosen[kept]
        return examples.take(order), origins.take(order)

    def _in_one(self, same: list[int], strengths: np.ndarray, about: About, counts: Counts) -> tuple[int, float] | None:
        """The first of equal pairs and its strength; a tie if one of them stands in the other direction."""
        first, *others = same
        contradicted = False
        for pair in others:
            if self.turned[pair] == self.turned[first] or strengths[pair] == 0.5:
                counts.add("duplicate pair dropped", about(pair))
            else:
                contradicted = True
                counts.add("contradiction: the same pair in both directions", about(pair))
        if not contradicted:
            return first, strengths[first]
        if self.options.ties == "drop":
            counts.add("tie dropped: the same pair in both directions", about(first))
            return None
        return first, 0.5

    def _by_vote(
        self, same: list[int], strengths: np.ndarray, about: About, counts: Counts
    ) -> tuple[int, float] | None:
        """One of equal pairs, in the direction that most of them have; under `agreement` as strong as they are many."""
        options = self.options
        share = _share([float(1 - strengths[p] if self.turned[p] else strengths[p]) for p in same])
        first = next(p for p in same if self.turned[p] == (share < 0.5))
        counts.add("judged once: a pair that several records bring", about(first), len(same) - 1)
        if share == 0.5:
            kept = options.ties == "half"
            counts.add(
                ("tie kept at one half: " if kept else "tie dropped: ") + "judges are divided evenly", about(first)
            )
            return (first, 0.5) if kept else None
        return first, max(share, 1 - share) if options.several == "agreement" and options.strengths != "hard" else 1.0


def _hashed(*parts: str) -> bytes:
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _repeated(hashes: bytearray, among: np.ndarray | None = None, times: int = 2) -> list[np.ndarray]:
    """Places of equal hashes (16 bytes each) that stand there `times` or more often, by their first place.

    >>> [places.tolist() for places in _repeated(bytearray(b"".join(_hashed(c) for c in "abcbab")))]
    [[0, 4], [1, 3, 5]]
    """
    low, high = np.frombuffer(hashes, np.uint64).reshape(-1, 2).T
    if among is not None:
        low, high = low[among], high[among]
    order = np.argsort(low)
    alike = np.flatnonzero(low[order[1:]] == low[order[:-1]])
    places = np.unique(np.concatenate([order[alike], order[alike + 1]]))  # nearly all hashes stand alone
    places = places[np.lexsort((high[places], low[places]))]
    edges = np.flatnonzero((np.diff(low[places]) != 0) | (np.diff(high[places]) != 0)) + 1
    groups = [g if among is None else among[g] for g in np.split(places, edges) if len(g) >= times]
    return sorted(groups, key=lambda group: group[0])


def _one(example: Example, role: str) -> Branch:
    branch = example.branches[role]
    assert isinstance(branch, Branch)
    return branch


def split(records: Seq[Record], fraction: float, seed: int) -> tuple[Seq[Record], Seq[Record]]:
    """Records to train on and records held out, by prompt: all records of a prompt stand on one side.

    `fraction` of the prompts (rounded, never all) are held out: those whose key, hashed with the seed, is lowest. So
    the split depends on the prompts alone, not on the order of the records.

    >>> records = [Record(prompt=p, responses=[{"text": t}]) for p in "abcdefgh" for t in "xy"]
    >>> train, held = split(records, 0.25, seed=0)
    >>> len(train), len(held), {r.prompt for r in train} & {r.prompt for r in held}
    (12, 4, set())
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"the held-out fraction is {fraction}; use 0 or more, and less than 1")
    digests = bytearray()
    for key in each(records, "prompt_key"):
        digests += hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    places = np.frombuffer(digests, ">u8")
    order = np.unique(places)
    n = min(round(fraction * len(order)), len(order) - 1) if len(order) else 0
    held = places < order[n] if n else np.zeros(len(places), bool)
    return taken(records, ~held), taken(records, held)
