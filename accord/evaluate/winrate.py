"""Which model answers better, and how sure is that? Win rates, raw and at equal length; ratings of many models.

A game is two answers to one prompt. Verdicts of one game, in one order of the answers or in both, are put together to
one value by a tie rule, and everything with an interval is drawn over prompts: both orders of a game, and several games
of a prompt, stay together.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, log_expit

from accord.data.records import Record
from accord.data.rows import many
from accord.errors import ConfigError, nearest
from accord.evaluate.contests import Contest, Verdict, answers, collect, games, turned
from accord.evaluate.scorers import quiet
from accord.judges.files import judge_into
from accord.judges.frame import Judge, Say
from accord.sinks import jsonable, write_json
from accord.stats import Interval, bootstrap, elo, proportion, ratings

ORDERS = ("both", "random", "fixed")
DRAWS = 400  # of intervals that need a fit each
STRENGTHS = np.logspace(-4, 4, 10)  # C of the length regression: ten, as scikit-learn's LogisticRegressionCV tries
FOLDS = 5
LOOSE = 0.01  # ridge of a drawn set of prompts in which somebody never lost


# -- several looks at one game -----------------------------------------------------------------------------------------


TIES = {
    "mean": "each order counts one half (Arena-Hard)",
    "agree": "won only if both orders say so, else a tie (MT-bench)",
    "other": "a tie in one order leaves it to the other; a tie if they contradict (MORE)",
}


def _side(value: float) -> float:
    return (value > 0.5) + 0.5 * (value == 0.5)


@dataclass(frozen=True)
class Game:
    """Two answers to one prompt, and what all looks at them say.

    value: P(models[0] is better). looks: the mean value where models[0] stood first, and where it stood second.
    longer: characters of models[0] minus those of models[1].
    """

    prompt: str
    models: tuple[str, str]
    value: float
    weight: float
    looks: tuple[float | None, float | None]
    lengths: tuple[int, int] | None


def gathered(verdicts: Seq[Verdict], rule: str = "mean", order: Seq[str] = ()) -> dict[tuple[str, str], list[Game]]:
    """Games by the two models, these as they stand in `order`, else as they are first named.

    Args:
        rule: of `TIES`. Verdicts whose order nobody knows count as they are.

    >>> a, b = (Verdict("p", "g", ("x", "y"), v, shown) for v, shown in ((1.0, 0), (0.0, 1)))
    >>> [gathered([a, b], r)["x", "y"][0].value for r in TIES]  # whoever stands first wins
    [0.5, 0.5, 0.5]
    """
    named: dict[frozenset[str], tuple[str, str]] = {}
    place = {name: n for n, name in enumerate(order)}
    looks: dict[tuple[tuple[str, str], str, str], list[Verdict]] = defaultdict(list)
    for v in verdicts:
        known = all(m in place for m in v.models)
        both = min(v.models, v.models[::-1], key=lambda m: place[m[0]]) if known else v.models
        models = named.setdefault(frozenset(v.models), both)
        if models != v.models:
            shown = None if v.shown is None else 1 - v.shown
            v = replace(v, models=models, value=1 - v.value, shown=shown, lengths=v.lengths and v.lengths[::-1])  # type: ignore[arg-type]
        looks[models, v.prompt, v.game].append(v)
    found: dict[tuple[str, str], list[Game]] = {models: [] for models in named.values()}
    for (models, prompt, _), several in looks.items():
        sides = [_weighed([v for v in several if v.shown == side]) for side in (0, 1)]
        unknown = _weighed([v for v in several if v.shown is None])
        told = [s for s in (*sides, unknown) if s]
        weight = float(np.mean([w for _, w in told]))
        lengths = next((v.lengths for v in several if v.lengths), None)
        first, second = (s[0] if s else None for s in sides)
        found[models].append(Game(prompt, models, _value(told, rule), weight, (first, second), lengths))
    return found


def _value(told: Seq[tuple[float, float]], rule: str) -> float:
    """One value of what each order says, (value, weight)."""
    if rule == "mean":
        return sum(v * w for v, w in told) / sum(w for _, w in told)
    said = {_side(v) for v, _ in told} - ({0.5} if rule == "other" else set())
    return said.pop() if len(said) == 1 else 0.5


def _weighed(verdicts: Seq[Verdict]) -> tuple[float, float] | None:
    if not verdicts:
        return None
    weight = float(np.mean([v.weight for v in verdicts]))
    return float(np.average([v.value for v in verdicts], weights=[v.weight for v in verdicts])), weight


# -- at equal length ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Controlled:
    """rate: win rate if both answers were equally long. effect: phi, log-odds of tanh(length difference / its sd)."""

    rate: Interval
    effect: float
    strength: float


def length_controlled(
    values: Seq[float] | np.ndarray,
    longer: Seq[float] | np.ndarray,
    clusters: Seq[Any] | np.ndarray,
    *,
    weights: Seq[float] | np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Controlled:
    """The win rate that is left when length is taken out: AlpacaEval 2's regression, without its external tables.

    Equation:
        logit P(model is better) = theta + phi * tanh(d / sd(d)),  d = characters of the model's answer - of the other
        length-controlled win rate = sigmoid(theta)
        theta, phi: argmin |theta| + |phi| + C * sum of log-losses, C by five-fold cross-validation over prompts

    AlpacaEval adds a difficulty of each of its own 805 instructions and two runs of a baseline that was told to be
    brief or wordy; both are tables fitted on its own data, and its numbers differ by what they do.

    Args:
        values: P(model is better) [N]. longer: d [N]. clusters: prompts, which folds and draws keep whole [N].
        weights: of each value [N].

    Source: arXiv 2404.04475 and its code. There d is baseline minus model, and phi has the other sign.

    >>> d = np.random.default_rng(0).normal(50, 100, 4000)
    >>> y = np.random.default_rng(1).random(4000) < expit(np.tanh(d / d.std(ddof=1)))  # theta 0, phi 1
    >>> round(float(y.mean()), 2), round(length_controlled(y, d, range(4000), draws=50).rate.mean, 2)
    (0.57, 0.5)
    """
    y, d = np.asarray(values, float), np.asarray(longer, float)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, float)
    spread = d.std(ddof=1) if len(d) > 1 else 0.0
    x = np.stack([np.ones(len(y)), np.tanh(d / spread) if spread > 0 else np.zeros(len(y))], 1)
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    prompts = int(group.max()) + 1
    draw = np.random.default_rng(seed)
    fold = draw.permutation(np.arange(prompts) % FOLDS)[group]
    strength = float(STRENGTHS[-1])
    if prompts >= 2 * FOLDS:
        lost = [
            sum(
                _loss(_fitted(x[fold != f], y[fold != f], w[fold != f], c), x[fold == f], y[fold == f], w[fold == f])
                for f in range(FOLDS)
            )
            for c in STRENGTHS
        ]
        strength = float(STRENGTHS[int(np.argmin(lost))])
    theta, phi = _fitted(x, y, w, strength)
    again = []
    for _ in range(draws):
        count = np.bincount(draw.integers(0, prompts, prompts), minlength=prompts)[group]
        used = count > 0
        again.append(_fitted(x[used], y[used], (w * count)[used], strength)[0])
    low, high = np.quantile(expit(again), [0.025, 0.975]) if draws else (np.nan, np.nan)
    return Controlled(Interval(float(expit(theta)), float(low), float(high)), float(phi), strength)


def _loss(theta: np.ndarray, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> float:
    m = x @ theta
    return float(-(w * (y * log_expit(m) + (1 - y) * log_expit(-m))).sum())


def _fitted(x: np.ndarray, y: np.ndarray, w: np.ndarray, strength: float) -> np.ndarray:
    """argmin |theta|_1 + strength * log-loss, as the difference of two vectors that are not negative."""
    from scipy.optimize import minimize

    k = x.shape[1]

    def loss(both: np.ndarray) -> tuple[float, np.ndarray]:
        theta = both[:k] - both[k:]
        slope = strength * (x.T @ (w * (expit(x @ theta) - y)))
        return strength * _loss(theta, x, y, w) + float(both.sum()), np.concatenate([slope + 1, 1 - slope])

    scale = strength * max(1.0, float(w.sum()))
    options = {"ftol": 1e-13, "gtol": 1e-8 * max(1.0, scale)}
    both = minimize(loss, np.zeros(2 * k), jac=True, method="L-BFGS-B", bounds=[(0, 30)] * (2 * k), options=options).x
    return both[:k] - both[k:]


def extreme(raw: float, controlled: float) -> bool:
    """Whether length alone moved a win rate so far that the regression is in doubt: AlpacaEval's rule.

    >>> extreme(0.5, 0.36), extreme(0.5, 0.4)
    (True, False)
    """
    return controlled < min(raw - raw / 4, raw - 0.1) or controlled > max(raw + (1 - raw) / 4, raw + 0.1)


# -- two models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairing:
    """One model against another.

    rate: mean value over games, with a bootstrap interval over prompts (Wilson's where all are alike). wins, ties,
    losses: games whose value is above, at, below one half. sign: p of the sign test over prompts. both: games judged in
    both orders, of which `consistent` is the share with one verdict. first: P(whoever stands first wins) - 1/2, over
    these. controlled: at equal length; None where lengths are unknown. lengths: mean characters. ignored: games without
    lengths.
    """

    model: str
    against: str
    prompts: int
    games: int
    rate: Interval
    wins: int
    ties: int
    losses: int
    sign: float
    both: int
    consistent: Interval | None
    first: Interval | None
    controlled: Controlled | None
    lengths: tuple[float, float] | None
    ignored: int

    def lines(self) -> list[str]:
        """For a person."""
        told = [
            f"{self.model} against {self.against}: win rate {self.rate}",
            f"  {many(self.wins, 'wins')}, {many(self.ties, 'ties')}, {many(self.losses, 'losses')} in "
            f"{many(self.games, 'games')} of {many(self.prompts, 'prompts')}; "
            f"sign test over prompts p = {self.sign:.3g}",
        ]
        if self.controlled is not None and self.lengths is not None:
            a, b = self.lengths
            told.append(
                f"  at equal length {self.controlled.rate} (mean {a:,.0f} and {b:,.0f} characters"
                + (f"; {many(self.ignored, 'games')} without lengths" if self.ignored else "")
                + ")"
            )
            if extreme(self.rate.mean, self.controlled.rate.mean):
                told.append(
                    "  length alone moves it so far that the regression itself is in doubt: look at the answers"
                )
        else:
            why = "no file holds the answers" if self.ignored == self.games else "every game went the same way"
            told.append(f"  at equal length: not known, because {why}")
        if self.consistent is not None:
            told.append(
                f"  judged in both orders: {many(self.both, 'games')}, the same verdict in {self.consistent}; "
                f"whoever stands first wins {self.first.mean:+.3f} [{self.first.low:+.3f}, {self.first.high:+.3f}] "  # type: ignore[union-attr]
                "more often than half"
            )
        elif self.first is not None:
            told.append(f"  judged in one order each; whoever stands first wins {self.first.mean:+.3f} more than half")
        else:
            told.append("  the order of the answers is not known, or is no matter to this judge")
        return told


def pairing(played: Seq[Game], *, seed: int = 0) -> Pairing:
    """All that the games of two models say."""
    from scipy.stats import binomtest

    value = np.array([g.value for g in played])
    weight = np.array([g.weight for g in played])
    prompt = np.unique([g.prompt for g in played], return_inverse=True)[1]
    each = np.bincount(prompt, value * weight) / np.bincount(prompt, weight)
    up, down = int((each > 0.5).sum()), int((each < 0.5).sum())
    twice = [n for n, g in enumerate(played) if None not in g.looks]
    consistent = first = None
    if twice:
        looks = [played[n].looks for n in twice]
        same = [_side(a) == _side(b) for a, b in looks]  # type: ignore[arg-type]
        consistent = proportion(sum(same), len(same))
        ahead = [(a + 1 - b) / 2 - 0.5 for a, b in looks]  # type: ignore[operator]
        first = bootstrap(ahead, prompt[twice], seed=seed)
    elif all(any(g.looks[side] is not None for g in played) for side in (0, 1)):
        seen = [(n, side) for n, side in product(range(len(played)), (0, 1)) if played[n].looks[side] is not None]
        ahead = [abs(side - played[n].looks[side]) - 0.5 for n, side in seen]  # type: ignore[operator]
        first = bootstrap(ahead, prompt[[n for n, _ in seen]], seed=seed)
    known = [n for n, g in enumerate(played) if g.lengths]
    controlled, lengths = None, None
    if known and len(set(value[known])) > 1:
        size = np.array([played[n].lengths for n in known], float)
        controlled = length_controlled(
            value[known], size[:, 0] - size[:, 1], prompt[known], weights=weight[known], seed=seed
        )
        lengths = float(size[:, 0].mean()), float(size[:, 1].mean())
    model, against = played[0].models
    return Pairing(
        model=model, against=against, prompts=len(each), games=len(played),
        rate=bootstrap(value, prompt, weights=weight, seed=seed)
        if 0 < value.mean() < 1
        else proportion(float(value.mean()) * len(each), len(each)),
        wins=int((value > 0.5).sum()), ties=int((value == 0.5).sum()), losses=int((value < 0.5).sum()),
        sign=float(binomtest(up, up + down).pvalue) if up + down else 1.0,
        both=len(twice), consistent=consistent, first=first, controlled=controlled, lengths=lengths,
        ignored=len(played) - len(known),
    )  # fmt: skip


# -- many models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rated:
    """Ratings on Elo's scale. loose: how many drawn sets of prompts needed a ridge, because somebody never lost."""

    bradley_terry: dict[str, Interval]
    elo: dict[str, Interval]
    games: dict[str, int]
    anchor: str | None
    loose: int

    def lines(self) -> list[str]:
        """For a person, the best first."""
        width = max(map(len, self.bradley_terry))
        told = [f"{'':<{width}}  {'Bradley-Terry':<24}{'Elo':<24}games"]
        for name, r in sorted(self.bradley_terry.items(), key=lambda item: -item[1].mean):
            ends = [f"{v.mean:.0f} [{v.low:.0f}, {v.high:.0f}]" for v in (r, self.elo[name])]
            told.append(f"{name:<{width}}  {ends[0]:<24}{ends[1]:<24}{self.games[name]:,}")
        if self.loose:
            told.append(f"{many(self.loose, 'draws')} of {DRAWS // 2} needed a ridge: somebody never lost in them")
        return told


def rated(played: Seq[Game], *, ridge: float = 0.0, anchor: str | None = None, k: float = 4.0, seed: int = 0) -> Rated:
    """Bradley-Terry and Elo ratings, with intervals over prompts.

    Args:
        ridge: of Bradley-Terry, as of `stats.ratings`. anchor: who has exactly 1000; without one, the mean. k: of Elo.

    Raises:
        ConfigError: somebody never lost to some others, and there is no ridge; nobody is called as the anchor.
    """
    names = sorted({name for g in played for name in g.models})
    if anchor is not None and anchor not in names:
        raise ConfigError(f"--anchor {anchor}: nobody is called so; {nearest(anchor, names)}")
    place = {name: i for i, name in enumerate(names)}
    _, prompt = np.unique([g.prompt for g in played], return_inverse=True)
    i, j = (np.array([place[g.models[side]] for g in played]) for side in (0, 1))
    value, weight = (np.array([getattr(g, name) for g in played]) for name in ("value", "weight"))

    def fit(count: np.ndarray, ridge: float) -> np.ndarray:
        won = np.zeros((len(names), len(names)))
        np.add.at(won, (i, j), count * weight * value)
        np.add.at(won, (j, i), count * weight * (1 - value))
        wins = {(a, b): float(won[place[a], place[b]]) for a, b in product(names, names) if a != b}
        found = ratings(wins, ridge=ridge)
        points = np.array([found[name].mean for name in names])
        return points - (points[place[anchor]] - 1000 if anchor is not None else 0)

    try:
        best = fit(np.ones(len(played)), ridge)
    except ValueError:
        raise ConfigError(
            "somebody never lost to some of the others, or never met them, so no rating is likeliest; say --ridge 1, "
            "which draws all ratings together"
        ) from None
    draw, loose, drawn = np.random.default_rng(seed), 0, []
    for _ in range(DRAWS // 2):
        several = int(prompt.max()) + 1
        count = np.bincount(draw.integers(0, several, several), minlength=several)[prompt].astype(float)
        try:
            drawn.append(fit(count, ridge))
        except ValueError:
            loose += 1
            drawn.append(fit(count, LOOSE))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    one, two = ([g.models[side] for g in played] for side in (0, 1))
    return Rated(
        {n: Interval(float(best[p]), float(low[p]), float(high[p])) for n, p in place.items()},
        elo(one, two, value, prompt, k=k, seed=seed),
        {n: sum(n in g.models for g in played) for n in names},
        anchor,
        loose,
    )


# -- the whole of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Winrates:
    """What `winrates` found: each pair of models, and ratings where they are more than two or asked for."""

    told: list[str]
    judges: list[str]
    pairs: list[Pairing]
    ratings: Rated | None
    notes: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return jsonable(asdict(self))

    def write(self, folder: Path) -> list[Path]:
        """winrate.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "winrate.json", self.as_dict())
        return [folder / "winrate.json"]

    def lines(self) -> list[str]:
        found = [*self.told, f"judged by {', '.join(self.judges) or 'nobody who is named'}", ""]
        found += [line for pair in self.pairs for line in pair.lines()]
        if self.ratings is not None:
            found += ["", *self.ratings.lines()]
        return [*found, *(f"left out: {what}: {n:,}" for what, n in self.notes.items())]


def winrates(
    made: Contest,
    *,
    by: str | None = None,
    against: str | None = None,
    ties: str = "mean",
    rating: bool = False,
    ridge: float = 0.0,
    anchor: str | None = None,
    k: float = 4.0,
    seed: int = 0,
) -> Winrates:
    """Win rates of every two models of a contest, by what was said of their answers.

    Args:
        by: only what this judge said. against: only games against this model, which stands second.
        ties: of `TIES`. rating: ratings, also of two models. ridge, anchor, k: of `rated`.

    Raises:
        ConfigError: nothing was said, or nobody is called so.
    """
    if ties not in TIES:
        raise ConfigError(f"--ties {ties}: {nearest(ties, TIES)}")
    verdicts = made.measured()
    heard = sorted({v.by for v in verdicts})
    if by is not None:
        verdicts = [v for v in verdicts if v.by == by]
        if not verdicts:
            raise ConfigError(f"--by {by}: nobody called so compared answers; {nearest(by, heard)}")
    if not verdicts:
        raise ConfigError(
            "nothing in these files says which answer is better: name a judge, such as --judge slogan:words=5, or give "
            "files of verdicts" + (f" ({'; '.join(made.left)})" if made.left else "")
        )
    names = sorted({m for v in verdicts for m in v.models})
    if against is not None and against not in names:
        raise ConfigError(f"--against {against}: nobody is called so; {nearest(against, names)}")
    order = [m for m in made.answers if m != against]
    found = gathered(verdicts, ties, order)
    shown = found
    if against is not None:
        beside = [v for v in verdicts if against in v.models]
        shown = gathered(beside, ties, [*dict.fromkeys([*order, *(m for m in names if m != against)]), against])
    played = [g for several in found.values() for g in several]
    return Winrates(
        told=list(made.told),
        judges=[name for name in ([by] if by is not None else heard) if name],
        pairs=[pairing(several, seed=seed) for several in shown.values()],
        ratings=rated(played, ridge=ridge, anchor=anchor, k=k, seed=seed) if rating or len(names) > 2 else None,
        notes=dict(made.left.most_common()),
    )


def judged_games(
    made: Contest, judge: Judge, folder: Path, *, order: str = "both", alone: bool = False, seed: int = 0,
    overwrite: bool = False, say: Say = quiet,
) -> Contest:  # fmt: skip
    """Asks a judge for the games of a contest; what it said stands in a file of the folder, and is not asked again.

    A judge that compares is asked in both orders, in a drawn one, or in that of the models (`order`); one that scores
    sees each answer alone, and is asked once. With `alone` it is asked for single answers, not for games.

    Returns:
        A contest with the judge's verdicts.
    """
    if order not in ORDERS:
        raise ConfigError(f"--order {order}: {nearest(order, ORDERS)}")
    records = answers(made) if alone else games(made)
    asked = _ordered(records, order, seed) if getattr(judge, "compares", False) and not alone else records
    whose = hashlib.blake2b("\n".join([judge.by, *(r.id for r in asked)]).encode(), digest_size=4).hexdigest()
    path = folder / f"judged-{whose}.jsonl"
    story = judge_into(path, asked, [judge], overwrite=overwrite, say=say)
    found = collect([str(path)])
    found.answers = {model: found.answers.get(model, {}) for model in made.answers}
    found.left = made.left
    found.told = [*made.told, *story.lines()]
    return found


def _ordered(records: Seq[Record], order: str, seed: int) -> list[Record]:
    if order == "both":
        return [one for r in records for one in (r, turned(r))]
    if order == "fixed":
        return list(records)
    drawn = np.random.default_rng(seed).random(len(records)) < 0.5
    return [turned(r) if flip else r for r, flip in zip(records, drawn, strict=True)]


# -- single answers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Mean scores of single answers. by turn: of a dialogue; all: of the same over all turns."""

    told: list[str]
    judges: list[str]
    models: dict[str, dict[str, Interval]]
    counts: dict[str, dict[str, int]]
    notes: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return jsonable(asdict(self))

    def write(self, folder: Path) -> list[Path]:
        """scores.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "scores.json", self.as_dict())
        return [folder / "scores.json"]

    def lines(self) -> list[str]:
        width = max(map(len, self.models))
        found = [*self.told, f"scored by {', '.join(self.judges) or 'nobody who is named'}", ""]
        for name, turns in sorted(self.models.items(), key=lambda item: -item[1]["all"].mean):
            each = "  ".join(f"{what} {v} (n {self.counts[name][what]:,})" for what, v in turns.items())
            found.append(f"{name:<{width}}  {each}")
        return [*found, *(f"left out: {what}: {n:,}" for what, n in self.notes.items())]


def scores(made: Contest, *, by: str | None = None, seed: int = 0) -> Scored:
    """Mean score of each model, by turn and over all, with intervals over prompts.

    Raises:
        ConfigError: no answer has a score, or nobody is called `by`.
    """
    said = [s for s in made.scores if by is None or s.by == by]
    if not said:
        heard = sorted({s.by for s in made.scores})
        more = nearest(by, heard) if by is not None and heard else "name a judge that scores, by --judge"
        raise ConfigError(f"no answer in these files has a score{f' by {by!r}' if by else ''}; {more}")
    models: dict[str, dict[str, Interval]] = {}
    counts: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(s.model for s in said):
        mine = [s for s in said if s.model == name]
        turns = sorted({s.turn for s in mine if s.turn is not None})
        parts = {f"turn {t}": [s for s in mine if s.turn == t] for t in turns if len(turns) > 1} | {"all": mine}
        models[name] = {k: bootstrap([s.value for s in v], [s.prompt for s in v], seed=seed) for k, v in parts.items()}
        counts[name] = {k: len(v) for k, v in parts.items()}
    judges = sorted({s.by for s in said if s.by})
    return Scored(list(made.told), judges, models, counts, dict(made.left.most_common()))
