"""How far can a reward model be believed? Scores of one or several on the same pairs, against what people preferred.

Accuracy with its interval, by source and by length; calibration with its finite-sample floor; length bias; where
there are several models, how far they agree and how far one has drifted from another. P(first is better) is taken as
sigmoid(margin), which is what a Bradley-Terry model says; scores on another scale are measured after a temperature.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as tests
from scipy.cluster.hierarchy import linkage
from scipy.special import expit, logit

from accord.data.records import Judgement, Record
from accord.data.rows import many
from accord.data.views import Counts, Example, ViewOptions, nothing, view, whole
from accord.errors import ConfigError, RecordError
from accord.evaluate.scorers import counted, quiet
from accord.judges.ensemble import own_scores
from accord.judges.frame import Judge, Say
from accord.sinks import jsonable, write_json
from accord.stats import (
    Calibration,
    Interval,
    bootstrap,
    brier,
    calibration,
    nll,
    proportion,
    temperature,
)

BINS = 10
OTHER_BINS: tuple[tuple[int, Any], ...] = ((5, "uniform"), (20, "uniform"), (10, "quantile"))
ODD = " (5 are biased low: the middle bin holds both orders of a pair, which cancel)"
SURE = 1e-6  # a stated preference of 0 or 1 as a margin: logit of this


@dataclass(frozen=True)
class Pairs:
    """Pairs of two responses, the better one first: which record, which responses, and how it came to be.

    y: P(first is better) as people said it, 1/2 for a tie. prompt: the same number where the prompt is the same.
    longer: characters of the first minus those of the second.
    """

    records: Seq[Record]
    record: np.ndarray
    first: np.ndarray
    second: np.ndarray
    y: np.ndarray
    source: list[str]
    prompt: np.ndarray
    longer: np.ndarray
    counts: Counts

    def __len__(self) -> int:
        return len(self.record)


def pairs_of(records: Seq[Record], without: Seq[str] = (), options: ViewOptions | None = None) -> Pairs:
    """The pairs that the records' judgements make, ties among them.

    Args:
        without: whose judgements are left out, by `by`: those of the models that are measured against the others.
        options: of the view; by default ties are kept.

    Raises:
        ConfigError: nothing makes a pair.
    """
    kept = [
        r.model_copy(update={"judgements": tuple(j for j in r.judgements if j.by is None or j.by not in without)})
        for r in records
    ]
    counts = Counts()
    found = view(kept, "Pairs", options or ViewOptions(ties="half"), counts=counts)
    if not len(found):
        raise ConfigError(nothing(counts, len(records)))
    prompts: dict[str, int] = {}
    first, second = (np.array([_response(e, side) for e in found]) for side in ("chosen", "rejected"))
    of = np.array([e.record for e in found])
    lengths = [[len(r.plain_text) for r in record.responses] for record in records]
    return Pairs(
        records, of, first, second, np.array([e.values["strength"] for e in found], float), [e.source for e in found],
        np.array([prompts.setdefault(records[i].prompt_key, len(prompts)) for i in of]),
        np.array([lengths[i][a] - lengths[i][b] for i, a, b in zip(of, first, second, strict=True)]), counts,
    )  # fmt: skip


def _response(example: Example, side: str) -> int:
    branch = example.branches[side]
    assert not isinstance(branch, tuple)
    return branch.response


def margins(pairs: Pairs, said: Seq[Seq[Judgement]]) -> np.ndarray:
    """By how much a judge puts the first response of each pair above the second, [N]; NaN where it says nothing.

    The difference of its scores; of a judge that compares, the logit of its probability, or its margin.
    """
    given = [own_scores(j, len(r.responses)) for r, j in zip(pairs.records, said, strict=True)]
    found = np.array(
        [given[r][a] - given[r][b] for r, a, b in zip(pairs.record, pairs.first, pairs.second, strict=True)]
    )
    compared = [_compared(judgements) for judgements in said]
    for n in np.flatnonzero(np.isnan(found)):
        values = compared[pairs.record[n]].get((pairs.first[n], pairs.second[n]))
        found[n] = np.mean(values) if values else np.nan
    return found


def _compared(judgements: Seq[Judgement]) -> dict[tuple[int, int], list[float]]:
    found: dict[tuple[int, int], list[float]] = {}
    for said in judgements:
        if said.pair is not None and whole(said):
            i, j = said.pair
            value = said.value if said.margin else float(logit(np.clip(said.value, SURE, 1 - SURE)))
            found.setdefault((i, j), []).append(value)
            found.setdefault((j, i), []).append(-value)
    return found


# -- one model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """How often a model puts the better response first, of so many pairs; an equal score counts one half."""

    accuracy: Interval
    pairs: int


@dataclass(frozen=True)
class Measured:
    """What one model's scores are worth.

    accuracy: of pairs that people did not call ties. ties: of these, how many the model scores equally.
    unscored: pairs that it says nothing about, which count nowhere. calibration: in `BINS` uniform bins; other: the
    errors in others. tempered: temperature fitted on one half of the prompts, and on the other half the ECE before and
    after it, with the floor. by_length: where chosen is shorter, longer, equally long. score_length: rank correlation
    of score and length over responses; margin_length: of their differences over pairs. prefers_longer: share of pairs
    of unequal length in which the longer one has the higher score; people: in which people preferred it.
    """

    name: str
    pairs: int
    unscored: int
    ties: int
    accuracy: Interval
    sources: dict[str, Share]
    by_length: dict[str, Share]
    calibration: Calibration
    other: dict[str, Calibration]
    brier: float
    nll: float
    tempered: dict[str, Any]
    margin: dict[str, float]
    score: dict[str, float]
    score_length: float
    margin_length: float
    prefers_longer: float
    people_prefer_longer: float


def measured(name: str, pairs: Pairs, margin: np.ndarray, score: np.ndarray, length: np.ndarray) -> Measured:
    """All numbers of one model.

    Args:
        margin: [N], of each pair, NaN where it has none.
        score, length: of each response that has a score, and its length in characters.
    """
    there = ~np.isnan(margin)
    decided = there & (pairs.y != 0.5)
    m, y, prompt = margin[there], pairs.y[there], pairs.prompt[there]
    right = (margin > 0) + 0.5 * (margin == 0)
    buckets = {"shorter": pairs.longer < 0, "longer": pairs.longer > 0, "equal": pairs.longer == 0}
    names = np.array(pairs.source)
    uneven = decided & (pairs.longer != 0)
    p = expit(m)
    return Measured(
        name=name,
        pairs=int(decided.sum()),
        unscored=int((~there).sum()),
        ties=int((margin[decided] == 0).sum()),
        accuracy=accuracy_of(right[decided], pairs.prompt[decided]),
        sources={str(s): _share(right, pairs.prompt, decided & (names == s)) for s in dict.fromkeys(pairs.source)},
        by_length={k: _share(right, pairs.prompt, decided & where) for k, where in buckets.items()},
        calibration=calibration(p, y, bins=BINS, clusters=prompt),
        other={f"{n} {how}": calibration(p, y, bins=n, how=how, clusters=prompt) for n, how in OTHER_BINS},
        brier=brier(p, y) if len(p) else float("nan"),
        nll=nll(m, y) if len(m) else float("nan"),
        tempered=_tempered(m, y, prompt),
        margin=_spread(np.abs(m)),
        score=_spread(score),
        score_length=_rank(score, length),
        margin_length=_rank(np.r_[m, -m], np.r_[pairs.longer[there], -pairs.longer[there]]),
        prefers_longer=float(np.mean(np.where(pairs.longer > 0, right, 1 - right)[uneven])) if uneven.any() else np.nan,
        people_prefer_longer=float(np.mean(pairs.longer[uneven] > 0)) if uneven.any() else np.nan,
    )


def accuracy_of(right: np.ndarray, prompt: np.ndarray) -> Interval:
    """Wilson's interval where every prompt has one pair, else the bootstrap's over prompts."""
    if len(np.unique(prompt)) == len(right):
        return proportion(float(right.sum()), len(right))
    return bootstrap(right, clusters=prompt)


def _share(right: np.ndarray, prompt: np.ndarray, where: np.ndarray) -> Share:
    return Share(accuracy_of(right[where], prompt[where]), int(where.sum()))


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return dict.fromkeys(("min", "mean", "max", "std"), float("nan"))
    return {
        "min": float(values.min()),
        "mean": float(values.mean()),
        "max": float(values.max()),
        "std": float(values.std()),
    }


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation; NaN where one of the two does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(tests.spearmanr(a, b).statistic)


def _tempered(m: np.ndarray, y: np.ndarray, prompt: np.ndarray) -> dict[str, Any]:
    """The temperature of every other prompt's pairs, and what it does to those of the others."""
    fit = prompt % 2 == 0
    if not fit.any() or fit.all():
        return {}
    t = float(temperature(m[fit], y[fit]))
    before, after = (calibration(expit(m[~fit] / by), y[~fit], bins=BINS, clusters=prompt[~fit]) for by in (1.0, t))
    return {
        "temperature": t, "fitted_on": int(fit.sum()), "pairs": int((~fit).sum()), "before": before.ece,
        "after": after.ece, "floor": after.floor["ece"], "nll": nll(m[~fit] / t, y[~fit]),
    }  # fmt: skip


# -- several models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """How far the scores of model `b` are from those of `a`, on what both have scored.

    difference: of responses' scores, b - a. wasserstein: distance of the two distributions of scores, in units of a
    score. rank: Spearman's correlation of the scores; margin_rank: of the margins of pairs. agreement: share of pairs
    that both put in the same order (an equal score agrees by half); flips: share that they put in opposite orders.
    outliers: pairs whose difference of margins lies beyond 1.5 interquartile ranges of its quartiles, above and below.
    accuracy: b's minus a's, on the same pairs.
    """

    a: str
    b: str
    responses: int
    difference: dict[str, float]
    wasserstein: float
    rank: float
    pairs: int
    margin_rank: float
    agreement: float
    flips: float
    outliers: dict[str, dict[str, float]]
    accuracy: Interval


def drift(
    names: tuple[str, str], scored: tuple[np.ndarray, np.ndarray], of: tuple[np.ndarray, np.ndarray], pairs: Pairs
) -> Drift:
    """Drift of the second model from the first: scores [R] of the same responses, margins [N] of the same pairs.

    The margins of b are those of a, but for the sign of one of four:

    >>> from accord.data.records import Record, Response
    >>> said = [Judgement(kind="preference", pair=(0, 1), value=1.0)]
    >>> answers = [Response(text="x"), Response(text="y")]
    >>> records = [Record(prompt=p, responses=answers, judgements=said) for p in "pqrs"]
    >>> a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, -4.0])
    >>> found = drift(("a", "b"), (a, b), (a, b), pairs_of(records))
    >>> found.agreement, found.flips, found.accuracy.mean, found.difference["mean"], found.wasserstein
    (0.75, 0.25, -0.25, -2.0, 2.0)
    """
    both = ~np.isnan(scored[0]) & ~np.isnan(scored[1])
    x, z = scored[0][both], scored[1][both]
    there = ~np.isnan(of[0]) & ~np.isnan(of[1])
    m, n = of[0][there], of[1][there]
    decided = pairs.y[there] != 0.5
    right = [((v > 0) + 0.5 * (v == 0))[decided] for v in (m, n)]
    gap = n - m
    quartiles = np.quantile(gap, [0.25, 0.75]) if len(gap) else np.array([0.0, 0.0])
    reach = 1.5 * (quartiles[1] - quartiles[0])
    sides = {"above": gap[gap > quartiles[1] + reach], "below": gap[gap < quartiles[0] - reach]}
    equal = np.where((m == 0) | (n == 0), 0.5, np.sign(m) == np.sign(n))
    return Drift(
        a=names[0],
        b=names[1],
        responses=int(both.sum()),
        difference=_spread(z - x),
        wasserstein=float(tests.wasserstein_distance(x, z)) if len(x) else float("nan"),
        rank=_rank(x, z),
        pairs=int(there.sum()),
        margin_rank=_rank(m, n),
        agreement=float(equal.mean()) if len(equal) else float("nan"),
        flips=float((m * n < 0).mean()) if len(m) else float("nan"),
        outliers={
            side: {"count": len(v), "mean": float(v.mean()) if len(v) else float("nan")} for side, v in sides.items()
        },
        accuracy=bootstrap(right[1] - right[0], clusters=pairs.prompt[there][decided]),
    )


def clusters(names: Seq[str], drifts: Seq[Drift]) -> list[dict[str, Any]]:
    """Which models are alike: joined two groups at a time, those first whose models agree most, on average.

    Returns:
        A row for each join: the models of both groups, and the mean agreement of a model of one with one of the other.
    """
    if len(names) < 2:
        return []
    joins = linkage([max(0.0, 1 - d.agreement) if np.isfinite(d.agreement) else 1.0 for d in drifts], "average")
    groups: list[list[str]] = [[name] for name in names]
    found = []
    for i, j, distance, _ in joins:
        left, right = groups[int(i)], groups[int(j)]
        groups.append(left + right)
        found.append({"models": left, "with": right, "agreement": float(1 - distance)})
    return found


# -- all of it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. notes: what was cut, dropped or decided on the way."""

    told: list[str]
    pairs: int
    prompts: int
    human_ties: int
    models: list[Measured]
    drifts: list[Drift]
    clusters: list[dict[str, Any]]
    notes: dict[str, int]
    rows: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pairs one by one, plain JSON."""
        found = jsonable(asdict(self))
        del found["rows"]
        return found

    def write(self, folder: Path) -> list[Path]:
        """rewards.json, pairs.jsonl (every pair with its margins, file and line), and a reliability diagram of each
        model as SVG and PNG if matplotlib is there."""
        import json

        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "rewards.json", self.as_dict())
        lines = [json.dumps(jsonable(row), ensure_ascii=False) + "\n" for row in self.rows]
        (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
        return [folder / "rewards.json", folder / "pairs.jsonl", *_figures(self.models, folder)]

    def lines(self) -> list[str]:
        found = [*self.told, ""]
        ties = f", and {many(self.human_ties, 'ties')} of people, which count for calibration alone"
        found.append(f"{many(self.pairs, 'pairs')} of {many(self.prompts, 'prompts')}{ties if self.human_ties else ''}")
        width = max(len(m.name) for m in self.models)
        found += ["", f"{'':<{width}}  {'accuracy':<21} equal  {'ECE, 10 bins':<21} {'by chance':<16} NLL    Brier"]
        for m in self.models:
            floor = m.calibration.floor["ece"]
            found.append(
                f"{m.name:<{width}}  {m.accuracy!s:<21} {m.ties:>5,}  {m.calibration.ece!s:<21} "
                f"{floor.low:.3f} to {floor.high:.3f}   {m.nll:.3f}  {m.brier:.3f}"
            )
        found += [
            "by chance: where 95 % of models that are exactly right would lie on as many pairs; of no opinion NLL "
            f"0.693 and Brier {0.25 * self.pairs / max(1, self.pairs + self.human_ties):.3f} on these"
        ]
        for m in self.models:
            found += ["", m.name, *_told(m)]
        for d in self.drifts:
            found += ["", *_drifted(d)]
        if self.clusters:
            found += ["", "alike, by the share of pairs in one order"]
            found += [
                f"  {j['agreement']:.3f}  {' + '.join(j['models'])}  with  {' + '.join(j['with'])}"
                for j in self.clusters
            ]
        if self.notes:
            found += ["", *(f"{what}: {n:,}" for what, n in self.notes.items())]
        return found


def _told(m: Measured) -> list[str]:
    found = []
    if m.unscored:
        found.append(f"  says nothing about {many(m.unscored, 'pairs')}, which count nowhere")
    if len(m.sources) > 1:
        found += [f"  {name}: {s.accuracy} of {s.pairs:,}" for name, s in m.sources.items()]
    length = ", ".join(f"{k} {s.accuracy} of {s.pairs:,}" for k, s in m.by_length.items() if s.pairs)
    found.append(f"  accuracy where chosen is: {length}")
    found.append(
        f"  length: the longer one wins in {m.prefers_longer:.0%} of pairs (people: {m.people_prefer_longer:.0%}); "
        f"rank correlation with score {m.score_length:+.2f}, of differences {m.margin_length:+.2f}"
    )
    c = m.calibration
    verdict = "more than chance would show" if c.seen else "no more than chance would show: these pairs cannot tell it"
    found.append(f"  ECE {c.ece}, {verdict}; ACE {c.ace}, MCE {c.mce}")
    found.append("  ECE in " + ", ".join(f"{name} bins {o.ece.mean:.3f}" for name, o in m.other.items()) + ODD)
    if m.tempered:
        t = m.tempered
        found.append(
            f"  temperature {t['temperature']:.3g}, fitted on {t['fitted_on']:,} pairs; on the other {t['pairs']:,} "
            f"ECE {t['before'].mean:.3f} before, {t['after'].mean:.3f} after it (chance: to {t['floor'].high:.3f})"
        )
    for row in c.points:
        if row["said"] >= 0.5:
            bar = "#" * round(40 * (row["true"] - 0.5)) if row["true"] > 0.5 else ""
            found.append(f"  said {row['said']:.2f}  came true {row['true']:.2f}  {bar:<20}  {int(row['count']):,}")
    return found


def _drifted(d: Drift) -> list[str]:
    above, below = (d.outliers[side] for side in ("above", "below"))
    of = {k: f"{v['count']} ({v['mean']:+.2f})" if v["count"] else "0" for k, v in (("above", above), ("below", below))}
    return [
        f"{d.b} against {d.a}, on {many(d.pairs, 'pairs')}",
        f"  accuracy {d.accuracy.mean:+.3f} [{d.accuracy.low:+.3f}, {d.accuracy.high:+.3f}]; one order in "
        f"{d.agreement:.1%} of pairs, opposite in {d.flips:.1%}",
        f"  scores {d.difference['mean']:+.3f} on average, standard deviation {d.difference['std']:.3f}, Wasserstein "
        f"{d.wasserstein:.3f}; rank correlation {d.rank:.3f}, of margins {d.margin_rank:.3f}",
        f"  margins far from the other's: above {of['above']}, below {of['below']}",
    ]


def evaluate(
    records: Seq[Record],
    judges: Seq[Judge],
    *,
    told: Seq[str] = (),
    options: ViewOptions | None = None,
    say: Say = quiet,
) -> Evaluation:
    """Measures judges on the pairs that the records make, each without its own judgements.

    Raises:
        ConfigError: two judges of one name, or records that make no pair.
        RecordError: a judge says nothing about any of the pairs.
    """
    names = [judge.by for judge in judges]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigError(f"two models are called {twice!r}: name each once, or by another path")
    for judge in judges:
        if getattr(judge, "ready", False):
            judge(records)  # a name that nobody bears is said before a model is run
    pairs = pairs_of(records, names, options)
    lengths = np.array([len(a.plain_text) for r in records for a in r.responses])
    found: list[Measured] = []
    given: list[np.ndarray] = []
    of: list[np.ndarray] = []
    notes: dict[str, int] = dict(pairs.counts.totals())
    for n, judge in enumerate(judges):
        said = judge(records, lambda done, all_, n=n: say(n * all_ + done, len(judges) * all_))  # type: ignore[misc]
        own = np.concatenate([own_scores(j, len(r.responses)) for r, j in zip(records, said, strict=True)])
        margin = margins(pairs, said)
        if np.isnan(margin).all():
            raise RecordError(f"{judge.by} says nothing about any of the {len(pairs):,} pairs")
        there = ~np.isnan(own)
        given.append(own)
        of.append(margin)
        found.append(measured(judge.by, pairs, margin, own[there], lengths[there]))
        notes |= counted(judge)
    drifts = [
        drift((names[i], names[j]), (given[i], given[j]), (of[i], of[j]), pairs)
        for i, j in combinations(range(len(names)), 2)
    ]
    return Evaluation(
        told=list(told),
        pairs=int((pairs.y != 0.5).sum()),
        prompts=len(np.unique(np.asarray(pairs.prompt)[pairs.y != 0.5])),
        human_ties=int((pairs.y == 0.5).sum()),
        models=found,
        drifts=drifts,
        clusters=clusters(names, drifts),
        notes=notes,
        rows=_rows(pairs, names, of),
    )


def _rows(pairs: Pairs, names: Seq[str], of: Seq[np.ndarray]) -> list[dict[str, Any]]:
    """Every pair with where it stands and its margins, so that the worst ones can be looked at."""
    found = []
    for n in range(len(pairs)):
        record = pairs.records[pairs.record[n]]
        place = record.origin.model_dump() if record.origin else {}
        found.append(
            {"id": record.id, **place, "source": pairs.source[n], "chosen": int(pairs.first[n])}
            | {"rejected": int(pairs.second[n]), "people": float(pairs.y[n])}
            | {"margins": {name: float(m[n]) for name, m in zip(names, of, strict=True)}}
        )
    return found


def _figures(models: Seq[Measured], folder: Path) -> list[Path]:
    """A reliability diagram for each model; none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    paths = []
    for number, model in enumerate(models, 1):
        figure = Figure(figsize=(4, 4), layout="constrained")
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], color="#8C8C8C", linewidth=1, linestyle=":")
        points = model.calibration.points
        size = [12 + 160 * row["count"] / (4 * model.pairs) for row in points]
        ax.plot([r["said"] for r in points], [r["true"] for r in points], color="#0072B2", linewidth=1)
        ax.scatter([r["said"] for r in points], [r["true"] for r in points], size, color="#0072B2")
        ax.set(xlabel="said: sigmoid(margin)", ylabel="came true", xlim=(0, 1), ylim=(0, 1), aspect="equal")
        ax.set_title(f"{model.name}\nECE {model.calibration.ece}", fontsize=9)
        for ending in ("svg", "png"):
            paths.append(folder / f"reliability-{number}.{ending}")
            figure.savefig(paths[-1], dpi=150)
    return paths
