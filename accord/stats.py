"""How sure is a number? Intervals, calibration, uncertainty, ratings: numpy and scipy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


MANY = 10_000  # clusters, of which a sum is as good as normal


def bootstrap(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Any] | np.ndarray | None = None,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` with its percentile bootstrap interval. For differences, pass the paired differences.

    Of more than `MANY` clusters the interval is m ± z sqrt(sum_i (x_i - m w_i)^2) / sum_i w_i, for sums x_i and weights
    w_i of the clusters: draws would find the same, within what another seed changes, and take seconds.

    Args:
        clusters: of each value what it belongs to (a prompt, a record): whole clusters are drawn.
        weights: of each value in the mean, such as tokens.

    >>> bootstrap([1.0, 1.0, 1.0])
    Interval(mean=1.0, low=1.0, high=1.0)
    >>> x = [0.0, 0.0, 1.0, 1.0] * 10
    >>> str(bootstrap(x)), str(bootstrap(x, [0, 0, 1, 1] * 10))  # two prompts, said often
    ('0.500 [0.350, 0.650]', '0.500 [0.000, 1.000]')
    """
    x = np.asarray(values, float)
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"))
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    if clusters is not None:
        _, which = np.unique(np.asarray(clusters), return_inverse=True)
        x, w = np.bincount(which, x * w), np.bincount(which, w)
    else:
        x = x * w
    mean = float(x.sum() / w.sum())
    if len(x) > MANY:
        half = NormalDist().inv_cdf((1 + level) / 2) * float(np.sqrt(((x - mean * w) ** 2).sum()) / w.sum())
        return Interval(mean, mean - half, mean + half)
    draw = np.random.default_rng(seed)
    at_once = max(1, 256_000 // len(x))  # numbers in memory: what a cache holds, 2.5 times as fast as 4 million
    means = np.concatenate(
        [
            x[which].sum(1) / w[which].sum(1)
            for which in (
                draw.integers(0, len(x), (min(at_once, draws - done), len(x))) for done in range(0, draws, at_once)
            )
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def proportion(successes: float, n: float, *, level: float = 0.95) -> Interval:
    """A share with its Wilson interval.

    >>> str(proportion(50, 100))
    '0.500 [0.404, 0.596]'
    """
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return Interval(p, max(0.0, centre - half) if p > 0 else 0.0, min(1.0, centre + half) if p < 1 else 1.0)


def share(values: Sequence[float] | np.ndarray, groups: Sequence[Any] | np.ndarray, *, level: float = 0.95) -> Interval:
    """Share of right ones (1, 0 or 1/2 each) with the Wilson interval of as many as they are worth.

    Values of one group (pairs of one record) are not independent. They are worth p (1 - p) / var of independent ones,
    where var is the variance of their mean over groups (Kish's design effect); if all are alike, as many as there are
    groups.

    >>> str(share([1, 0] * 50, range(100)))  # as proportion(50, 100)
    '0.500 [0.404, 0.596]'
    >>> str(share([1] * 50 + [0] * 50, [i // 10 for i in range(100)]))  # ten groups of one mind
    '0.500 [0.227, 0.773]'
    """
    x = np.asarray(values, float)
    if not len(x):
        return Interval(float("nan"), 0.0, 1.0)
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    several, p = int(which.max()) + 1, float(x.mean())
    if several == len(x):
        return proportion(float(x.sum()), len(x), level=level)
    off = np.bincount(which, x - p)
    variance = float((off**2).sum()) / len(x) ** 2 * several / max(1, several - 1)
    worth = min(float(len(x)), p * (1 - p) / variance) if variance > 0 and 0 < p < 1 else float(several)
    return proportion(p * worth, worth, level=level)


# -- calibration -------------------------------------------------------------------------------------------------------

Binning = Literal["uniform", "quantile"]


@dataclass(frozen=True)
class Reliability:
    """What was said with which probability, and how often it came true, by bins of p; every pair in both orders.

    Of bin b: edges[b], edges[b + 1]; said[b] and true[b], means of p and y (NaN where nothing fell); count[b].
    """

    edges: np.ndarray
    said: np.ndarray
    true: np.ndarray
    count: np.ndarray

    @property
    def gaps(self) -> np.ndarray:
        """|true - said| of the bins that hold something."""
        return np.abs(self.true - self.said)[self.count > 0]

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap, weighted by count."""
        return float((self.gaps * self.count[self.count > 0]).sum() / max(1, self.count.sum()))

    @property
    def ace(self) -> float:
        """Average calibration error: the mean gap of the bins that hold something."""
        return float(self.gaps.mean()) if len(self.gaps) else float("nan")

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap."""
        return float(self.gaps.max()) if len(self.gaps) else float("nan")

    def points(self) -> list[dict[str, float]]:
        """The bins that hold something, as JSON has them."""
        columns = (self.edges[:-1], self.edges[1:], self.said, self.true, self.count)
        names = ("low", "high", "said", "true", "count")
        rows = [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]
        return [row for row in rows if row["count"]]


def reliability(
    p: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, bins: int = 10, how: Binning = "uniform"
) -> Reliability:
    """The reliability diagram of P(first is better), p [N], where y [N] of the first were better (1, 0; a tie 1/2).

    Every pair counts in both orders (p and y, 1 - p and 1 - y). In one order, with chosen always first, the error
    would be mean(1 - p), whatever the calibration. With an even number of bins ECE is that of the predicted class's
    confidence; with an odd number the middle bin holds both orders of a pair, which cancel: it always has gap 0, and
    ECE is biased low.

    Args:
        bins: how many. how: of equal width, or of about equally many (fewer bins where p has many equal values).

    400 pairs said with 0.75, of which 300 came true, and 400 said with 0.95, of which 260 did:

    >>> p, y = np.repeat([0.75, 0.95], 400), np.r_[np.arange(400) < 300, np.arange(400) < 260]
    >>> found = reliability(p, y)
    >>> round(found.ece, 6), round(found.ace, 6), round(found.mce, 6)
    (0.15, 0.15, 0.3)
    """
    both, true = _both(p), _both(y)
    edges, where = _binned(both, bins, how)
    count = np.bincount(where, minlength=len(edges) - 1).astype(float)
    with np.errstate(invalid="ignore"):
        said, came = (np.bincount(where, v, minlength=len(count)) / count for v in (both, true))
    return Reliability(edges, said, came, count)


def _both(p: Any) -> np.ndarray:
    """Both orders along the last axis."""
    x = np.asarray(p, float)
    return np.concatenate([x, 1 - x], -1)


def _binned(both: np.ndarray, bins: int, how: Binning) -> tuple[np.ndarray, np.ndarray]:
    """Edges [M + 1] and the bin of each [2N]. A value on an edge is of the bin above it, 1 of the last."""
    if how == "uniform":
        return np.linspace(0, 1, bins + 1), np.minimum((both * bins).astype(int), bins - 1)
    edges = np.unique(np.quantile(both, np.linspace(0, 1, bins + 1))) if both.size else np.array([0.0, 1.0])
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0]])
    return edges, np.clip(np.searchsorted(edges, both, side="right") - 1, 0, len(edges) - 2)


def ece(p: np.ndarray, y: np.ndarray, bins: int = 10) -> np.ndarray:
    """Expected calibration error over the last axis, p and y [..., N], as of `reliability` with uniform bins.

    >>> p = np.array([[0.75] * 4, [0.75] * 4])
    >>> ece(p, np.array([[1, 1, 1, 0], [1, 1, 0, 0]])).tolist()
    [0.0, 0.25]
    """
    both, true = _both(p), _both(y)
    lead, n = both.shape[:-1], both.shape[-1]
    rows = np.arange(int(np.prod(lead, dtype=int))).reshape(*lead, 1)
    where = rows * bins + _binned(both, bins, "uniform")[1]
    gap = np.bincount(where.ravel(), (true - both).ravel(), minlength=rows.size * bins)
    return np.abs(gap.reshape(*lead, bins)).sum(-1) / n


def ece_floor(p: np.ndarray, bins: int = 10, draws: int = 20) -> np.ndarray:
    """Mean ECE over drawn labels that p [..., N] is exactly right about: what no calibration can go below.

    A model with margins N(0, 1) that is perfectly calibrated has an ECE of about 0.015 on 2,300 pairs, 0.026 on 900.
    """
    random = np.random.default_rng(23)
    return np.mean([ece(p, (random.random(p.shape[-1]) < p).astype(float), bins) for _ in range(draws)], 0)


@dataclass(frozen=True)
class Confidence:
    """Of each bin of confidence: its mean, the share that was right, how many; ece: mean distance of the two.

    floor: the ECE that a perfectly calibrated model would have at this many answers.
    """

    confidence: np.ndarray
    right: np.ndarray
    count: np.ndarray
    ece: float
    floor: float


def confidence(margins: Sequence[float] | np.ndarray, *, bins: int = 10) -> Confidence:
    """How often the better response of a pair has the larger reward, against how sure sigmoid(margin) is of it.

    The upper half of `reliability` with twice as many bins, whose ECE it has. Empty bins are left out.

    Args:
        margins: reward of the better response minus that of the other [n].

    >>> said = [np.log(3)] * 300 + [-np.log(3)] * 100 + [np.log(19)] * 260 + [-np.log(19)] * 140
    >>> c = confidence(said, bins=5)
    >>> round(c.ece, 3), c.count.tolist()  # sure at .75 and right at .75; sure at .95 and right at .65
    (0.15, [400.0, 400.0])
    """
    x = np.asarray(margins, float)
    p = 1.0 / (1.0 + np.exp(-np.clip(x, -700.0, 700.0)))
    found = reliability(p, np.ones(len(x)), 2 * bins)
    used = (found.count > 0) & (np.arange(2 * bins) >= bins)
    floor = float(ece_floor(p, 2 * bins, 100)) if len(x) else 0.0
    return Confidence(found.said[used], found.true[used], found.count[used], found.ece, floor)


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be believed, each error with its interval and beside what chance alone makes of it.

    ece, ace, mce: with 95 % bootstrap intervals. floor: the same errors of a model that says the same probabilities
    and is exactly right, on as many pairs: mean, and where 95 % of such models lie. An error inside its floor is
    none that these pairs can show.
    """

    bins: int
    how: Binning
    ece: Interval
    ace: Interval
    mce: Interval
    floor: dict[str, Interval]
    points: list[dict[str, float]]

    @property
    def seen(self) -> bool:
        """Whether the ECE is larger than 97.5 % of exactly right models would show."""
        return self.ece.mean > self.floor["ece"].high


def calibration(
    p: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    *,
    bins: int = 10,
    how: Binning = "uniform",
    draws: int = 400,
    seed: int = 0,
    clusters: Sequence[int] | np.ndarray | None = None,
) -> Calibration:
    """ECE, ACE and MCE of `reliability`, each with its interval and its floor.

    The interval is the basic bootstrap's, 2 * estimate - quantiles: errors of this kind are larger on a resample than
    on the sample by about as much as on the sample than in truth, and a percentile interval would add that twice. It
    begins at 0 where the estimate lies in its floor. Bins stay those of the sample.

    Args:
        p, y: as of `reliability`, [N].
        draws: of labels for the floor, and of resamples for the interval.
        clusters: [N], of pairs that are drawn together (those of one prompt).
    """
    p, y = np.asarray(p, float), np.asarray(y, float)
    found = reliability(p, y, bins, how)
    _, where = _binned(_both(p), bins, how)
    random, n, m = np.random.default_rng(seed), len(p), len(found.count)
    group = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    names = ("ece", "ace", "mce")
    even = y == 0.5  # people's ties stay ties
    exact = np.array(
        [_errors(where, p, np.where(even, 0.5, random.random(n) < p), np.ones(n), m) for _ in range(draws if n else 0)]
    )
    of = group.max() + 1 if n else 0
    again = [np.bincount(random.integers(0, of, of), minlength=of)[group] for _ in range(draws if n else 0)]
    resampled = np.array([_errors(where, p, y, weight, m) for weight in again])
    told = {}
    floor = {}
    for i, name in enumerate(names):
        mean = getattr(found, name) if n else float("nan")
        low, high = np.quantile(resampled[:, i], [0.025, 0.975]) if n else (np.nan, np.nan)
        ends = np.quantile(exact[:, i], [0.025, 0.975]) if n else (np.nan, np.nan)
        floor[name] = Interval(float(exact[:, i].mean()) if n else float("nan"), float(ends[0]), float(ends[1]))
        least = 0.0 if mean <= floor[name].high else max(0.0, 2 * mean - high)
        told[name] = Interval(mean, float(least), float(max(0.0, 2 * mean - low)))
    return Calibration(bins, how, told["ece"], told["ace"], told["mce"], floor, found.points())


def _errors(where: np.ndarray, p: np.ndarray, y: np.ndarray, weight: np.ndarray, bins: int) -> tuple[float, ...]:
    """ECE, ACE, MCE of weighted pairs whose two orders lie in the bins `where` [2N]."""
    w = np.concatenate([weight, weight])
    count = np.bincount(where, w, minlength=bins)
    gap = np.abs(np.bincount(where, w * (_both(y) - _both(p)), minlength=bins))
    held = count > 0
    each = gap[held] / count[held]
    return float(gap.sum() / count.sum()), float(each.mean()), float(each.max())


def brier(p: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Mean squared distance of what was said from what came true; 0.25 for a model that always says one half.

    >>> brier([0.5, 1.0], [1, 1])
    0.125
    """
    return float(np.mean((np.asarray(p, float) - np.asarray(y, float)) ** 2))


def nll(margin: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray | float = 1.0) -> float:
    """Mean negative log-likelihood, nats, of labels y where P(first is better) = sigmoid(margin); log 2 at margin 0.

    >>> round(nll([0.0, 2.0], [1, 0.5]), 6)
    0.910038
    """
    from scipy.special import log_expit

    m, y = np.asarray(margin, float), np.asarray(y, float)
    return float(-np.mean(y * log_expit(m) + (1 - y) * log_expit(-m)))


COLDEST, HOTTEST = 1e-2, 1e2


def temperature(margin: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray | float = 1.0) -> np.ndarray:
    """The temperature T that makes sigmoid(margin / T) likeliest, over the last axis: margins [..., N], labels y.

    Held in [0.01, 100]: COLDEST where every margin is right, HOTTEST where margins say the opposite.
    Above 1 the model was too sure. The likelihood is concave in 1 / T, so its slope is followed to 0.

    >>> y = np.r_[np.ones(731), np.zeros(269)]  # sigmoid(1) = 0.731
    >>> round(float(temperature(np.full(1000, 2.0), y)), 2)
    2.0
    """
    from scipy.special import expit

    m, y = np.asarray(margin, float), np.asarray(y, float)
    low, high = (np.full(m.shape[:-1], np.log(v)) for v in (1 / HOTTEST, 1 / COLDEST))
    for _ in range(50):
        middle = (low + high) / 2
        now = np.exp(middle)[..., None] * m
        rises = (m * (y * expit(-now) - (1 - y) * expit(now))).sum(-1) >= 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return np.exp(-(low + high) / 2)


def bald(p: np.ndarray) -> np.ndarray:
    """What passes of a model with dropout do not agree on: H(mean of p) - mean of H(p) over the first axis, nats.

    0 where all say the same, however unsure they are; log 2 at most (arXiv 1112.5745; UPO 2409.11212 weighs by it).

    >>> bald(np.array([[0.0, 0.9, 0.6], [1.0, 0.9, 0.9]])).round(6).tolist()
    [0.693147, 0.0, 0.063288]
    """
    p = np.asarray(p, float)
    return np.maximum(0.0, _entropy(p.mean(0)) - _entropy(p).mean(0))


def _entropy(p: np.ndarray) -> np.ndarray:
    from scipy.special import xlogy

    return -xlogy(p, p) - xlogy(1 - p, 1 - p)


# -- ratings -----------------------------------------------------------------------------------------------------------

ELO = 400 / np.log(10)  # points of a logit


def ratings(wins: Mapping[tuple[str, str], float], *, ridge: float = 0.0, mean: float = 1000.0) -> dict[str, Interval]:
    """Bradley-Terry ratings of players on Elo's scale by maximum likelihood, with 95 % intervals.

    Equation:
        P(i beats j) = 1 / (1 + 10^((R_j - R_i) / 400))
        intervals: R +- 1.96 standard errors of R - mean(R), from the inverse of the information

    Args:
        wins: (i, j) to how often i beat j; a tie is half a win for each.
        ridge: weight of sum of theta^2 / 2, theta in logits; above 0 there are ratings whatever the games.
        mean: of all ratings.

    Raises:
        ValueError: without a ridge there is no greatest likelihood: some players never lost to some others, or never
            met them, even through others.

    >>> {name: round(r.mean, 2) for name, r in ratings({("a", "b"): 75, ("b", "a"): 25}).items()}
    {'a': 1095.42, 'b': 904.58}
    """
    from scipy.optimize import minimize
    from scipy.sparse.csgraph import connected_components
    from scipy.special import expit, log_expit

    names = sorted({name for pair in wins for name in pair})
    place = {name: i for i, name in enumerate(names)}
    k = len(names)
    won = np.zeros((k, k))
    for (i, j), n in wins.items():
        if n < 0 or i == j:
            raise ValueError(f"{n:g} wins of {i!r} over {j!r} cannot be")
        won[place[i], place[j]] += n
    if ridge <= 0 and connected_components(won > 0, connection="strong")[0] > 1:
        raise ValueError("ratings have no greatest likelihood: some players never lost to some others; use a ridge")

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        gap = theta[:, None] - theta[None]
        lost = won * expit(-gap)
        slope = -lost.sum(1) + lost.sum(0) + ridge * theta
        return float(-(won * log_expit(gap)).sum() + ridge * (theta @ theta) / 2), slope

    theta = minimize(loss, np.zeros(k), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10}).x
    gap = theta[:, None] - theta[None]
    spread = (won + won.T) * expit(gap) * expit(-gap)
    information = np.diag(spread.sum(1)) - spread + ridge * np.eye(k)
    centred = np.eye(k) - 1 / k
    deviation = np.sqrt(np.diag(centred @ np.linalg.pinv(information) @ centred).clip(0))
    points = mean + ELO * (theta - theta.mean())
    half = 1.959964 * ELO * deviation
    return {n: Interval(float(r), float(r - h), float(r + h)) for n, r, h in zip(names, points, half, strict=True)}


def elo(
    first: Sequence[str],
    second: Sequence[str],
    score: Sequence[float] | np.ndarray,
    clusters: Sequence[Any] | np.ndarray | None = None,
    *,
    k: float = 4.0,
    mean: float = 1000.0,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, Interval]:
    """Elo ratings after games, averaged over the orders in which they could have been played, with 95 % intervals.

    Equation:
        R_i += k (s - 1 / (1 + 10^((R_j - R_i) / 400))),  R_j -= the same, game after game

    One order gives one rating: the last games count most. The intervals are of drawn clusters, each in an order of its
    own. Ratings begin at `mean` and, with a small k and few games, stay near it; `ratings` has no such memory.

    Args:
        first, second: who played [N]. score: of the first: 1, 0, or 1/2 for a tie [N].
        clusters: of each game what it belongs to (a prompt): whole clusters are drawn.

    >>> found = elo(["a"] * 4000, ["b"] * 4000, [1, 1, 1, 0] * 1000)
    >>> round(found["a"].mean - found["b"].mean)  # 400 log10(3) is 190.85
    190
    """
    names = sorted({*first, *second})
    place = {name: i for i, name in enumerate(names)}
    one, two = (np.array([place[n] for n in side], int) for side in (first, second))
    won, n = np.asarray(score, float), len(one)
    if not n:
        return {}
    group = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    draw = np.random.default_rng(seed)
    orders = [draw.permutation(n) for _ in range(draws)]
    drawn = [
        draw.permutation(np.concatenate([members[c] for c in draw.integers(0, len(members), len(members))]))
        for _ in range(draws)
    ]
    plain, again = (_played(several, one, two, won, len(names), k) for several in (orders, drawn))
    low, high = np.quantile(again, [0.025, 0.975], axis=0)
    middle = plain.mean(0)
    return {name: Interval(*(mean + float(v[i]) for v in (middle, low, high))) for name, i in place.items()}


def _played(
    orders: Sequence[np.ndarray], one: np.ndarray, two: np.ndarray, won: np.ndarray, players: int, k: float
) -> np.ndarray:
    """Ratings [orders, players] around 0 after the games of each order."""
    longest, rows = max(map(len, orders)), np.arange(len(orders))
    game = np.full((len(orders), longest), -1)
    for row, order in enumerate(orders):
        game[row, : len(order)] = order
    rating = np.zeros((len(orders), players))
    for g in game.T:
        i, j = one[g], two[g]
        gain = np.where(g < 0, 0.0, k * (won[g] - 1 / (1 + 10 ** ((rating[rows, j] - rating[rows, i]) / 400))))
        rating[rows, i] += gain
        rating[rows, j] -= gain
    return rating
