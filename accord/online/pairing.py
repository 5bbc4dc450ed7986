"""Who is paired with whom, and how surely? From what was said of a prompt's answers to the records of training.

`pair` turns judged records into records of two answers and one preference each, which `accord train` reads as any
others: a rule chooses the pairs (`RULES`), a label says what a pair counts as (`LABELS`), filters leave pairs out, and
everything that is left out is counted. It is a pure function of records, options and seed.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Generator, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from accord.data.batches import seeded
from accord.data.records import Judgement, Record, Response
from accord.data.views import Counts, together
from accord.errors import ConfigError, nearest

NAN = math.nan
Pair = tuple[int, int]
Asking = Generator[list[Pair], list[float], None]  # yields comparisons, is sent P(first is better) of each


@dataclass(frozen=True)
class PairOptions:
    """How judged answers become records of training.

    Args:
        rule: who is paired with whom, see `RULES`; `none` leaves the answers of a prompt together, with their values.
        label: what a pair counts as, see `LABELS`.
        values: what stands as the score of an answer. `score`: the judge's; `win_rate`: the mean of P(it is better)
            over the prompt's answers, itself one half; `advantage`: the mean of the log-odds of that, itself 0;
            `against`: of the policy's answers, the mean of P(it is better) over those of the reference.
        strength_scale: P(i is better than j) = sigmoid(strength_scale * (score i - score j)) where a judge scores;
            units of 1 / score.
        together: what scores of several judges (or attributes) come to. `mean`; `sample_min`, the least of each
            answer; `group_min`, the scores of the judge whose mean over all answers of the round is least.
        reject: keep so many answers of a prompt by statistical rejection sampling (RSO) before pairing.
        reject_beta: its temperature in units of score: large keeps answers as they came, small keeps the best.
        baseline: of `ranked`: the answer that all are compared with, `first` or `median` (by score, of judges that
            score).
        among: of `ranked`: which pairs its order gives: `all`, `adjacent`, `best` with each, `baseline` with each.
        policy_answers: of `policy_vs_ref` and `policy_pairs`: the first so many answers are the policy's.
        smoothing: of `smoothed`: probability that the label is wrong, in [0, 0.5).
        smoothed_below: of `smoothed`: only pairs of which P(chosen is better) is at most this.
        min_margin: pairs whose scores differ by less are left out.
        min_confidence: pairs of which P(chosen is better) is less are left out, in [0.5, 1].
        finished: leave out answers that were cut off at their longest (`finish: length`).
    """

    rule: str = "best_worst"
    label: str = "hard"
    values: Literal["score", "win_rate", "advantage", "against"] = "score"
    strength_scale: float = 1.0
    together: Literal["mean", "sample_min", "group_min"] = "mean"
    reject: int | None = None
    reject_beta: float = 0.5
    baseline: Literal["first", "median"] = "first"
    among: Literal["all", "adjacent", "best", "baseline"] = "all"
    policy_answers: int = 1
    smoothing: float = 0.1
    smoothed_below: float = 1.0
    min_margin: float = 0.0
    min_confidence: float = 0.5
    finished: bool = False

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if (known := get_args(hint)) and isinstance(known[0], str) and value not in known:
                raise ConfigError(f"pair.{name}={value!r} is not known; {nearest(str(value), known)}")
        for name, table in (("rule", RULES), ("label", LABELS)):
            if getattr(self, name) not in table:
                raise ConfigError(
                    f"pair.{name}={getattr(self, name)!r} is not known; {nearest(str(getattr(self, name)), table)}"
                )
        bounds = (
            ("strength_scale", 1e-12, math.inf), ("reject", 1, math.inf), ("reject_beta", 1e-12, math.inf),
            ("policy_answers", 1, math.inf), ("smoothing", 0, 0.5 - 1e-12), ("smoothed_below", 0.5, 1),
            ("min_margin", 0, math.inf), ("min_confidence", 0.5, 1),
        )  # fmt: skip
        for name, low, high in bounds:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"pair.{name}={value!r} must be a number from {low:g} to {high:g}")
        if not isinstance(self.finished, bool):
            raise ConfigError(f"pair.finished={self.finished!r} must be true or false")

    @classmethod
    def of(cls, given: dict[str, Any]) -> PairOptions:
        """Checked options.

        Raises:
            ConfigError: unknown ones (the nearest is named), or ones that nothing reads under this rule and label.
        """
        known = {f.name: f.default for f in fields(cls)}
        for key in given:
            if key not in known:
                raise ConfigError(f"pair.{key} is not known; {nearest(key, known)}")
        made = cls(**given)
        read_by = {
            "baseline": made.rule == "ranked" and made.among == "baseline", "among": made.rule == "ranked",
            "smoothing": made.label == "smoothed",
            "smoothed_below": made.label == "smoothed", "policy_answers": made.rule in WITH_REFERENCE,
            "reject_beta": made.reject is not None, "label": made.rule not in UNPAIRED + WITHOUT_JUDGE,
            "min_margin": made.rule not in UNPAIRED + WITHOUT_JUDGE, "reject": made.rule not in READS_GIVEN,
            "min_confidence": made.rule not in UNPAIRED + WITHOUT_JUDGE,
        }  # fmt: skip
        for name, read in read_by.items():
            if not read and getattr(made, name) != known[name]:
                by = "reject" if name == "reject_beta" else "label" if name.startswith("smooth") else "rule"
                raise ConfigError(
                    f"pair.{name} is set, and nothing reads it under {by}: {getattr(made, by)}; leave it out"
                )
        if (made.values == "against") != (made.rule == "policy_pairs"):
            raise ConfigError(
                "pair.values: against and pair.rule: policy_pairs go together (Nash-MD); set both, or none"
            )
        return made


# -- what is known of a prompt's answers -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Known:
    """score [K], higher is better; beats [K, K], P(i is better than j), one half on the diagonal; NaN where nothing
    says it."""

    score: np.ndarray
    beats: np.ndarray

    def take(self, kept: Seq[int]) -> Known:
        """Of these answers alone."""
        index = np.asarray(kept, int)
        return Known(self.score[index], self.beats[np.ix_(index, index)])

    def values(self, which: str, own: int = 0) -> np.ndarray:
        """[K]: scores, win rates, or mean log-odds; of the answers that each was compared with. Of `against`, those of
        the first `own` answers over the others.

        >>> Known(np.array([2.0, 0.0]), beats(np.array([2.0, 0.0]), 1.0)).values("win_rate").round(3).tolist()
        [0.69, 0.31]
        """
        if which == "score":
            return self.score
        if which == "against":
            others = self.beats[:, own:]
            found = others.mean(1) if others.shape[1] else np.full(len(self.score), NAN)
            return np.where(np.arange(len(self.score)) < own, found, NAN)
        there = ~np.isnan(self.beats)
        p = np.where(there, self.beats, 0.5)
        said = p if which == "win_rate" else np.array([[log_odds(v) for v in line] for line in p])
        alone = there.sum(1) < 2
        return np.where(alone, NAN, np.where(there, said, 0.0).sum(1) / np.maximum(there.sum(1), 1))


def sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x, float)))


def log_odds(p: float) -> float:
    """Those of a certain verdict are held at 1e-6 from it, 13.8 nats."""
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def beats(score: np.ndarray, scale: float) -> np.ndarray:
    """P(i is better than j) [K, K] of a judge that scores (Bradley and Terry).

    >>> beats(np.array([0.0, 2.0]), 0.5).round(4).tolist()
    [[0.5, 0.2689], [0.7311, 0.5]]
    """
    return sigmoid(scale * (score[:, None] - score[None, :]))


def known(records: Seq[Record], options: PairOptions, judges: Iterable[str] | None = None) -> list[Known]:
    """What is known of each record's answers.

    Args:
        judges: names of those (`by`) who are listened to; None: everybody.

    Where answers were compared, P is what was said of a pair, of several verdicts `together`. If all were compared with
    one answer alone, scores are the log-odds against it, and the other P follow from them; else the score is the win
    rate.
    """
    heard = None if judges is None else set(judges)
    said = [[j for j in r.judgements if heard is None or j.by in heard] for r in records]
    if heard is None and options.rule == "stated":  # what was stated is not what judges it
        said = [[j for j in of if j.pair is None] for of in said]
    sides = [_sides(r, of) for r, of in zip(records, said, strict=True)]
    if heard is not None:  # what one of them could not score has no score: the others' alone is on another scale
        scoring = {by for side in sides for by, _ in side}
        sides = [side if {by for by, _ in side} == scoring else {} for side in sides]
    names = sorted({name for side in sides for name in side}, key=str)
    worst: Any = None
    if options.together == "group_min" and len(names) > 1:
        means = {n: float(np.nanmean(np.concatenate([s[n] for s in sides if n in s]))) for n in names}
        worst = min(names, key=lambda n: means[n])
    found = []
    for record, of, side in zip(records, said, sides, strict=True):
        score = _one(side, options.together, worst, len(record.responses))
        found.append(_compared(of, score, options.strength_scale, len(record.responses)))
    return found


def _sides(record: Record, said: list[Judgement]) -> dict[tuple[str | None, str], np.ndarray]:
    """Scores [K] by each judge and attribute; labels are scores, ranks count downwards."""
    found: dict[tuple[str | None, str], np.ndarray] = {}
    for j in said:
        if j.response is not None and j.step is None and j.span is None:
            column = found.setdefault((j.by, j.attribute), np.full(len(record.responses), NAN))
            column[j.response] = -j.value if j.kind == "rank" else j.value
    return found


def _one(side: dict[Any, np.ndarray], together: str, worst: Any, count: int) -> np.ndarray:
    if not side:
        return np.full(count, NAN)
    if worst is not None:
        return side.get(worst, np.full(count, NAN))
    every = np.stack(list(side.values()))
    return every.min(0) if together == "sample_min" else every.mean(0)  # NaN if one of several judges says nothing


def _compared(said: list[Judgement], score: np.ndarray, scale: float, count: int) -> Known:
    """From comparisons where there are some, else from scores."""
    verdicts: dict[Pair, list[float]] = {}
    for j in said:
        if j.pair is not None and not j.margin and j.step is None and j.span is None:
            low = j.pair[0] < j.pair[1]
            verdicts.setdefault(j.pair if low else j.pair[::-1], []).append(j.value if low else 1 - j.value)
    if not verdicts:
        return Known(score, beats(score, scale))
    p = np.full((count, count), NAN)
    np.fill_diagonal(p, 0.5)
    for (a, b), values in verdicts.items():
        p[a, b] = together(values)
        p[b, a] = 1 - p[a, b]
    shared = set.intersection(*(set(pair) for pair in verdicts))
    if not np.isnan(score).all():
        return Known(score, p)
    if len(verdicts) == count - 1 and shared:
        star = min(shared)
        score = np.array([log_odds(v) for v in p[:, star]])
        return Known(score, np.where(np.isnan(p), beats(score, 1.0), p))
    made = Known(score, p)
    return Known(made.values("win_rate"), p)


def accepted(reward: Seq[float] | np.ndarray, beta: float, take: int, draw: np.random.Generator) -> list[int]:
    """Statistical rejection sampling (RSO): places of at most `take` answers, as if drawn from the optimal policy.

    An answer is taken with probability exp((reward - M) / beta), M the greatest reward of those left; they are gone
    over again until enough are taken. Equal answers count as often as they came, and the order is shuffled: the listing
    of arXiv 2309.06657 does neither, and its answers follow another distribution.

    >>> accepted([0.0, 5.0, 0.0], 1e-3, 1, np.random.default_rng(0))
    [1]
    """
    left: list[int] = draw.permutation(len(reward)).tolist()
    taken: list[int] = []
    while left and len(taken) < take:
        top = max(reward[i] for i in left)
        kept = []
        for i in left:
            if len(taken) < take and draw.random() < math.exp((reward[i] - top) / beta):
                taken.append(i)
            else:
                kept.append(i)
        left = kept
    return taken


# -- who is paired with whom: (i, j) that i comes first in is decided by the label -------------------------------------


def best_worst(known: Known, draw: np.random.Generator) -> list[Pair]:
    """The best with the worst, by score; of equal ones the first best and the last worst."""
    order = _order(known)
    return [(order[0], order[-1])]


def best_random(known: Known, draw: np.random.Generator) -> list[Pair]:
    """The best with one of the others, drawn."""
    best = int(np.nanargmax(known.score))
    others = [i for i in np.flatnonzero(~np.isnan(known.score)).tolist() if i != best]
    return [(best, int(draw.choice(others)))] if others else []


def best_second(known: Known, draw: np.random.Generator) -> list[Pair]:
    """The best with the one after it."""
    order = _order(known)
    return [(order[0], order[1])] if len(order) > 1 else []


def first_second(known: Known, draw: np.random.Generator) -> list[Pair]:
    """The first two answers, as they came: an independent pair of the sampler."""
    return [(0, 1)]


def all_pairs(known: Known, draw: np.random.Generator) -> list[Pair]:
    """Every two answers: K(K-1)/2 pairs."""
    count = len(known.score)
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def random(known: Known, draw: np.random.Generator) -> list[Pair]:
    """Answers two by two in a drawn order, each in one pair: what RSO does with those that it has accepted."""
    order = draw.permutation(len(known.score)).tolist()
    return list(zip(order[0::2], order[1::2], strict=False))


def halves(known: Known, draw: np.random.Generator) -> list[Pair]:
    """Each of the better half with each of the other (UPO): 9 pairs of 6 answers; one in the middle is left out."""
    order = _order(known)
    half = len(order) // 2
    return [(i, j) for i in order[:half] for j in order[len(order) - half :]]


def ranked(known: Known, draw: np.random.Generator, *, baseline: str = "first", among: str = "all") -> list[Pair]:
    """All are compared with one answer, and its order gives the pairs (OSP): K - 1 comparisons."""
    order = _order(known)
    if among == "adjacent":
        return list(pairwise(order))
    if among == "best":
        return [(order[0], j) for j in order[1:]]
    if among == "baseline":
        star = order[len(order) // 2] if baseline == "median" else 0
        return [(i, star) if order.index(i) < order.index(star) else (star, i) for i in order if i != star]
    return [(order[a], order[b]) for a in range(len(order)) for b in range(a + 1, len(order))]


def tournament(known: Known, draw: np.random.Generator) -> list[Pair]:
    """The winner of a knock-out with the loser of one among those who lost first (INPO): 11 comparisons of 8 answers,
    the last of them between the two, which must confirm the order; who is equal loses to the first."""
    asking = knock_out(len(known.score))
    asked = next(asking)
    while True:
        last = asked[0]
        try:
            asked = asking.send([float(known.beats[i, j]) for i, j in asked])
        except StopIteration:
            return [] if known.beats[last] <= 0.5 else [last]


def policy_vs_ref(known: Known, draw: np.random.Generator, *, policy_answers: int = 1) -> list[Pair]:
    """Each answer of the policy with each of the reference (XPO)."""
    count = len(known.score)
    return [(i, j) for i in range(min(policy_answers, count)) for j in range(policy_answers, count)]


def policy_pairs(known: Known, draw: np.random.Generator, *, policy_answers: int = 1) -> list[Pair]:
    """Every two answers of the policy; those of the reference are opponents alone (Nash-MD, with values: against)."""
    return [(i, j) for i in range(policy_answers) for j in range(i + 1, policy_answers)]


def _order(known: Known) -> list[int]:
    """Places of the answers that have a score, best first; equal ones as they came."""
    there = np.flatnonzero(~np.isnan(known.score))
    return there[np.argsort(-known.score[there], kind="stable")].tolist()


RULES: dict[str, Callable[..., list[Pair]] | None] = {
    "best_worst": best_worst, "best_random": best_random, "best_second": best_second, "first_second": first_second,
    "all_pairs": all_pairs, "random": random, "halves": halves, "ranked": ranked, "tournament": tournament,
    "policy_vs_ref": policy_vs_ref, "policy_pairs": policy_pairs, "stated": None, "given_vs_sampled": None,
    "sampled_vs_bad": None, "stated_beside_sampled": None, "revised": None, "none": None, "best": None,
}  # fmt: skip
WITHOUT_JUDGE = ("given_vs_sampled", "sampled_vs_bad", "stated_beside_sampled", "revised")
UNPAIRED = ("none", "best")  # rules that make no pairs of what was judged
WITH_REFERENCE = ("policy_vs_ref", "policy_pairs")  # rules that need answers of the reference
READS_GIVEN = ("stated", *WITHOUT_JUDGE)  # rules that look at answers which the prompts brought
SAYS = {
    "stated": "The pairs that somebody else stated: the judge is asked how sure they are.",
    "given_vs_sampled": "Each answer that the data brought, chosen, with each that was sampled (SPIN); nobody judges.",
    "sampled_vs_bad": "No pairs: the sampled answers, with a score of 1, and the worse one of the pair that the data "
    "brought, with 0 (D2O); nobody judges.",
    "stated_beside_sampled": "The pairs that the data brought, and each sampled answer as a record of its own that "
    "nobody judged (HyPO).",
    "revised": "Each revision, chosen, with the answer that it revises; nobody judges.",
    "none": "No pairs: the answers of a prompt stay together, with their values.",
    "best": "No pairs: the best answer to each prompt, alone, as a demonstration; of equal ones the first.",
}


def says(rule: str) -> str:
    """A rule in one sentence."""
    function = RULES[rule]
    return SAYS[rule] if function is None else " ".join((inspect.getdoc(function) or "").split())


def described() -> list[tuple[str, str]]:
    """(option, help) of `PairOptions`, for the command line."""
    section = (inspect.getdoc(PairOptions) or "").partition("Args:")[2]
    helps: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w)", section):
        name, _, text = " ".join(entry.split()).partition(": ")
        helps[name] = text
    return [
        (
            f"--{f.name.replace('_', '-')}",
            helps[f.name] + ("" if f.default in (None, False) else f" [default {f.default}]"),
        )
        for f in fields(PairOptions)
    ]


# -- which comparisons a judge of pairs is asked for -------------------------------------------------------------------


def every(count: int) -> Asking:
    """All of them."""
    yield [(i, j) for i in range(count) for j in range(i + 1, count)]


def across(count: int, own: int) -> Asking:
    """Each of the first `own` with each of the others."""
    yield [(i, j) for i in range(min(own, count)) for j in range(own, count)]


def star(count: int) -> Asking:
    """Each with the first."""
    yield [(i, 0) for i in range(1, count)]


def knock_out(count: int) -> Asking:
    """A knock-out of all, one of those who lost in its first round for the worst, and the winner with that one."""
    asked = _paired(list(range(count)))
    won = yield asked
    winners, losers = _through(list(range(count)), asked, won, best=True), [
        j if p >= 0.5 else i for (i, j), p in zip(asked, won, strict=True)
    ]  # fmt: skip
    while len(winners) > 1:
        asked = _paired(winners)
        winners = _through(winners, asked, (yield asked), best=True)
    while len(losers) > 1:
        asked = _paired(losers)
        losers = _through(losers, asked, (yield asked), best=False)
    yield [(winners[0], losers[0])]


def _paired(inside: list[int]) -> list[Pair]:
    return list(zip(inside[0::2], inside[1::2], strict=False))


def _through(inside: list[int], asked: list[Pair], won: list[float], *, best: bool) -> list[int]:
    """Who goes on; one without an opponent does."""
    through = [(i if p >= 0.5 else j) if best else (j if p >= 0.5 else i) for (i, j), p in zip(asked, won, strict=True)]
    return through + inside[2 * len(asked) :]


ASKS: dict[str, Callable[[int], Asking]] = {"ranked": star, "tournament": knock_out}


def comparisons(options: PairOptions) -> Callable[[int], Asking]:
    """Which comparisons the rule needs of K answers."""
    if options.rule in WITH_REFERENCE:
        return lambda count: across(count, options.policy_answers)
    return ASKS.get(options.rule, every)


# -- what a pair counts as: p is P(i is better than j); (i, j, strength, weight), i chosen -----------------------------

Labelled = tuple[int, int, float, float]


def hard(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    """The better one is chosen, with strength 1."""
    return None if p == 0.5 else (i, j, 1.0, 1.0) if p > 0.5 else (j, i, 1.0, 1.0)


def soft(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    """The better one is chosen, as surely as the judge is."""
    return None if p == 0.5 else (i, j, p, 1.0) if p > 0.5 else (j, i, 1 - p, 1.0)


def kept(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    """As the pair was stated (rule: stated), whatever the judge says."""
    return i, j, 1.0, 1.0


def flipped(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    """As stated, and turned round where the judge says the opposite; evenly judged pairs stay."""
    return (j, i, 1.0, 1.0) if p < 0.5 else (i, j, 1.0, 1.0)


def smoothed(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    """As `hard`, with strength 1 - smoothing where the judge is no surer than `smoothed_below`."""
    made = hard(i, j, p, options)
    return made if made is None or max(p, 1 - p) > options.smoothed_below else (*made[:2], 1 - options.smoothing, 1.0)


def weight(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    """As `hard`, and the pair counts |2p - 1|: 0 for an even one, 1 for a sure one."""
    made = hard(i, j, p, options)
    return None if made is None else (*made[:3], abs(2 * p - 1))


def margin(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    """As `hard`, and the gap of the scores stands beside it, for objectives that read a margin."""
    return hard(i, j, p, options)


LABELS: dict[str, Callable[[int, int, float, PairOptions], Labelled | None]] = {
    "hard": hard, "soft": soft, "kept": kept, "flipped": flipped, "smoothed": smoothed, "weight": weight,
    "margin": margin,
}  # fmt: skip


# -- records -----------------------------------------------------------------------------------------------------------


def pair(
    records: Seq[Record], options: PairOptions, *, seed: int = 0, judges: Iterable[str] | None = None,
    counts: Counts | None = None,
) -> list[Record]:  # fmt: skip
    """Records for training, made of judged ones: one for each pair, or one for each prompt under `rule: none`.

    Args:
        records: with several answers each, and judgements on them.
        seed: of what is drawn; the draws of a record depend on (seed, record) alone.
        judges: whose judgements count (`by`); None: everybody's.
        counts: every decision is added to it.

    >>> said = [{"kind": "score", "response": i, "value": v} for i, v in enumerate((0.2, 1.0, 0.6))]
    >>> record = Record(prompt="2+2?", responses=[{"text": t} for t in "345"], judgements=said)
    >>> made = pair([record], PairOptions(label="soft", strength_scale=2.0))
    >>> [a.text for a in made[0].responses], round(made[0].judgements[0].value, 4)
    (['4', '3'], 0.832)
    """
    counts = counts if counts is not None else Counts()
    names = None if judges is None else list(judges)
    by = "+".join(names) if names else None
    made: list[Record] = []
    for record, of in zip(records, known(records, options, names), strict=True):
        draw = seeded(seed, "pair", record.id)
        inside = [i for i in range(len(record.responses)) if not (options.finished and _cut(record.responses[i]))]
        if cut := len(record.responses) - len(inside):
            counts.add("left: an answer that was cut off at its longest", record, cut)
        if options.rule not in READS_GIVEN:
            scored = ~np.isnan(of.score)
            compared = (~np.isnan(of.beats)).sum(1) > 1  # with another than itself
            there = set(np.flatnonzero(scored if scored.any() else compared).tolist())
            if unsaid := [i for i in inside if i not in there]:
                counts.add("left: an answer without a score", record, len(unsaid))
            inside = [i for i in inside if i in there]
            if options.reject is not None and not np.isnan(of.score).all():
                before = len(inside)
                taken = accepted(of.score[inside], options.reject_beta, options.reject, draw)
                inside = [inside[i] for i in taken]
                counts.add("left: an answer that rejection sampling did not take", record, before - len(inside))
        found = _records(record, of, inside, options, draw, by, counts)
        if not found:
            counts.add("no answers" if options.rule in UNPAIRED else "no pair", record)
        made += found
    return made


def _cut(response: Response) -> bool:
    return response.finish == "length"


def _records(
    record: Record, of: Known, inside: list[int], options: PairOptions, draw: np.random.Generator, by: str | None,
    counts: Counts,
) -> list[Record]:  # fmt: skip
    values = of.values(options.values, options.policy_answers)
    if options.rule == "none":
        scored = [i for i in inside if not math.isnan(values[i])]
        return [_said(record, scored, values, by, options)] if scored else []
    if options.rule == "best":
        return _best(record, inside, values, counts)
    if options.rule == "sampled_vs_bad":
        return _beside_bad(record, inside, counts)
    made, theirs = [], dict[int, None]()
    for i, j, p in _pairs(record, of, inside, options, draw):
        if record.responses[i].plain_text == record.responses[j].plain_text:
            counts.add("left: a pair of equal answers", record)
        elif math.isnan(p):
            counts.add("left: a pair that nobody judged", record)
        elif abs(of.score[i] - of.score[j]) < options.min_margin:
            counts.add("left: a pair of less than min_margin", record)
        elif max(p, 1 - p) < options.min_confidence:
            counts.add("left: a pair of less than min_confidence", record)
        elif (labelled := _labelled(i, j, p, options)) is None:
            counts.add("left: a tie", record)
        else:
            if options.rule == "stated" and labelled[0] != i:
                counts.add("turned round: the judge says the opposite", record)
            if labelled[2] != 1.0 and options.label == "smoothed":
                counts.add("smoothed", record)
            made.append(_said(record, list(labelled[:2]), values, by, options, labelled))
            theirs.setdefault(j)
    if options.rule == "stated_beside_sampled":
        made += [_only(record, [i], [], record.weight) for i in inside if record.responses[i].sampler is not None]
    for j in theirs if options.rule == "policy_vs_ref" else ():  # what the reference wrote, for what is asked of it
        label = Judgement(kind="label", response=0, value=0, by="reference")
        made.append(_only(record, [j], [label], record.weight).model_copy(update={"source": "reference"}))
    return made


def _best(record: Record, inside: list[int], values: np.ndarray, counts: Counts) -> list[Record]:
    """The best answer as a demonstration; of equal ones the first."""
    scored = [i for i in inside if not math.isnan(values[i])]
    if not scored:
        return []
    best = max(scored, key=lambda i: values[i])
    if sum(values[i] == values[best] for i in scored) > 1:
        counts.add("several answers are the best: the first is taken", record)
    return [_only(record, [best], [], record.weight)]


def _labelled(i: int, j: int, p: float, options: PairOptions) -> Labelled | None:
    if options.rule == "policy_pairs" and p == 0.5:  # equal win rates over the opponents that were drawn: a gap of 0
        return i, j, 1.0, 1.0
    return LABELS[options.label](i, j, p, options)


def _beside_bad(record: Record, inside: list[int], counts: Counts) -> list[Record]:
    """The sampled answers and the worst that was given: the rejected one of a pair, else the only one."""
    drawn = [i for i in inside if record.responses[i].sampler is not None]
    given = [i for i in range(len(record.responses)) if record.responses[i].sampler is None]
    worse = [j.pair[1] if j.value > 0.5 else j.pair[0] for j in record.judgements if j.pair is not None]
    bad = worse[0] if worse else given[0] if len(given) == 1 else None
    if bad is None or not drawn:
        counts.add("left: a prompt without an answer that is known to be bad", record)
        return []
    said = [
        Judgement(kind="score", response=place, value=float(i != bad), by="sampled_vs_bad")
        for place, i in enumerate([*drawn, bad])
    ]
    return [_only(record, [*drawn, bad], said, record.weight)]


def _pairs(
    record: Record, of: Known, inside: list[int], options: PairOptions, draw: np.random.Generator
) -> list[tuple[int, int, float]]:
    if options.rule == "given_vs_sampled":
        given = [i for i in inside if record.responses[i].sampler is None]
        drawn = [i for i in inside if record.responses[i].sampler is not None]
        return [(i, j, 1.0) for i in given for j in drawn]
    if options.rule == "revised":
        before = ((i, record.responses[i].revised_from) for i in inside)
        return [(i, j, 1.0) for i, j in before if j is not None and j in inside]
    if options.rule in ("stated", "stated_beside_sampled"):
        named = [j for j in record.judgements if j.pair is not None and not j.margin and j.value != 0.5]
        pairs = dict.fromkeys(j.pair if j.value > 0.5 else j.pair[::-1] for j in named if j.pair is not None)
        sure = options.rule == "stated_beside_sampled"
        return [(i, j, 1.0 if sure else float(of.beats[i, j])) for i, j in pairs if i in inside and j in inside]
    if len(inside) < 2:
        return []
    rule, part = RULES[options.rule], of.take(inside)
    assert rule is not None
    own = [p.name for p in inspect.signature(rule).parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    chosen: dict[str, Any] = {name: getattr(options, name) for name in own}
    if "policy_answers" in chosen:
        chosen["policy_answers"] = sum(i < options.policy_answers for i in inside)  # of those that are left
    found = rule(part, draw, **chosen)
    if options.rule == "policy_pairs":  # a gap of win rates is what they are trained on
        rate = part.values("against", chosen["policy_answers"])
        return [(inside[i], inside[j], float(0.5 + (rate[i] - rate[j]) / 2)) for i, j in found]
    return [(inside[i], inside[j], float(part.beats[i, j])) for i, j in found]


def _said(
    record: Record, which: list[int], values: np.ndarray, by: str | None, options: PairOptions,
    labelled: Labelled | None = None,
) -> Record:  # fmt: skip
    """A record of some of the answers, with their values and, of a pair, the preference."""
    attribute = "overall" if options.values == "score" else options.values
    said = []
    if labelled is not None:
        said.append(Judgement(kind="preference", pair=(0, 1), value=labelled[2], by=by))
        gap = float(values[which[0]] - values[which[1]])
        if options.label == "margin" and not math.isnan(gap):
            said.append(Judgement(kind="preference", pair=(0, 1), value=gap, margin=True, by=by))
    for place, i in enumerate(which):
        if not math.isnan(values[i]):
            value = float(values[i])
            said.append(Judgement(kind="score", response=place, value=value, attribute=attribute, by=by))
    return _only(record, which, said, record.weight * (labelled[3] if labelled else 1.0))


def _only(record: Record, which: list[int], said: list[Judgement], weight: float) -> Record:
    answers = []
    for i in which:
        answer = record.responses[i]
        before = answer.revised_from
        if before is not None:
            answer = answer.model_copy(update={"revised_from": which.index(before) if before in which else None})
        answers.append(answer)
    said_of_them = {"responses": tuple(answers), "judgements": tuple(said), "weight": weight}
    return Record(**{**dict(record), **said_of_them})
