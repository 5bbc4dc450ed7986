"""Calibration, uncertainty, ratings: closed forms, and what intervals and floors promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit

from accord import stats
from accord.stats import (
    COLDEST,
    HOTTEST,
    bald,
    bootstrap,
    brier,
    calibration,
    ece,
    ece_floor,
    nll,
    ratings,
    reliability,
    temperature,
)


def drawn(n: int, scale: float = 1.5, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Margins, and labels that come true as often as sigmoid(margin) says."""
    random = np.random.default_rng(seed)
    d = random.normal(scale=scale, size=n)
    return d, (random.random(n) < expit(d)).astype(float)


def test_floor_of_a_calibrated_model():
    """Margins N(0, 1), 10 bins: 0.0150 +- 0.0056 at 2,300 pairs, 0.0259 +- 0.0095 at 900."""
    random = np.random.default_rng(0)
    for n, mean, deviation in ((2300, 0.0150, 0.0056), (900, 0.0259, 0.0095)):
        p = expit(random.normal(size=(200, n)))
        found = ece(p, (random.random(p.shape) < p).astype(float))
        assert found.mean() == pytest.approx(mean, abs=0.003)
        assert found.std() == pytest.approx(deviation, abs=0.0015)
        assert ece_floor(p).mean() == pytest.approx(found.mean(), abs=0.004)  # 20 draws
        told = calibration(p[0], np.ones(n))
        assert told.floor["ece"].mean == pytest.approx(mean, abs=0.003)
        assert told.floor["ece"].low < mean - deviation
        assert told.floor["ece"].high > mean + deviation


def test_ece_of_both_orders_is_that_of_the_predicted_class():
    random = np.random.default_rng(1)
    p = random.random(500)
    y = (random.random(500) < 0.7).astype(float)
    sure, right = np.maximum(p, 1 - p), np.where(p > 0.5, y, 1 - y)
    edges = np.minimum((sure * 10).astype(int), 9)
    plain = sum(abs((right - sure)[edges == b].sum()) for b in range(10)) / 500
    assert float(ece(p, y)) == pytest.approx(plain, abs=1e-12)
    assert reliability(p, y).ece == pytest.approx(plain, abs=1e-12)


def test_oracle_n7_orientation():
    """Chosen always first: one order looks badly calibrated, both orders do not; a wrong scale shows."""
    d, y = drawn(200_000)
    chosen_first = np.where(y == 1, d, -d)
    p = expit(chosen_first)
    assert (1 - p).mean() == pytest.approx(0.354, abs=0.003)  # what one order calls ECE
    assert float(ece(p, np.ones_like(p))) == pytest.approx(0.001, abs=0.002)
    for k, expected in ((0.5, 0.096), (2.0, 0.102), (4.0, 0.177)):
        assert float(ece(expit(k * chosen_first), np.ones_like(p))) == pytest.approx(expected, abs=0.003)
        assert np.abs(expit(k * d) - expit(d)).mean() == pytest.approx(expected, abs=0.003)
        assert float(temperature(k * chosen_first)) == pytest.approx(k, rel=0.02)


def test_an_odd_number_of_bins_hides_the_pairs_in_the_middle():
    p, y = np.full(100, 0.55), np.ones(100)
    assert reliability(p, y, bins=5).ece == pytest.approx(0, abs=1e-12)
    assert reliability(p, y, bins=10).ece == pytest.approx(0.45)


def test_bins_of_equally_many_and_values_that_are_all_equal():
    d, y = drawn(3000)
    found = reliability(expit(d), y, bins=10, how="quantile")
    assert found.count.tolist() == pytest.approx([600.0] * 10, abs=2)
    assert (np.diff(found.said) > 0).all()
    assert reliability([0.5] * 8, [1, 0] * 4, how="quantile").ece == 0
    assert reliability([0.5] * 8, [1] * 8, how="quantile").points() == [
        {"low": 0.5, "high": 0.5, "said": 0.5, "true": 0.5, "count": 16.0}
    ]


def test_errors_are_ordered_and_weighted():
    p, y = np.repeat([0.75, 0.95], [100, 300]), np.concatenate([np.arange(100) < 75, np.arange(300) < 195])
    found = reliability(p, y)
    assert (found.ece, found.ace, found.mce) == pytest.approx((0.75 * 0.3, 0.15, 0.3))
    assert sum(row["count"] for row in found.points()) == 800
    told = calibration(p, y)
    assert (told.ece.mean, told.ace.mean, told.mce.mean) == (found.ece, found.ace, found.mce)
    assert told.seen


def test_the_interval_of_an_error_holds_the_truth():
    """Where margins are twice too large, and where they are right: then the interval begins at 0."""
    d, y = drawn(400_000)
    for k, least in ((2.0, 0.85), (1.0, 0.9)):
        p = expit(k * d)
        truth = float(ece(p, y)) if k != 1 else 0.0
        held = 0
        for start in range(0, 100 * 600, 600):
            at = slice(start, start + 600)
            told = calibration(p[at], y[at], draws=100, seed=start)
            held += told.ece.low <= truth <= told.ece.high
        assert held / 100 >= least


def test_pairs_of_one_prompt_are_drawn_together():
    d, y = drawn(300)
    p, prompt = np.repeat(expit(2 * d), 8), np.repeat(np.arange(300), 8)
    apart, together = (calibration(p, np.repeat(y, 8), clusters=c).ece for c in (None, prompt))
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_nobody_to_measure():
    told = calibration([], [])
    assert math.isnan(told.ece.mean)
    assert told.points == []
    assert not told.seen


def test_scores_of_what_was_said():
    p, y = expit(np.array([0.3, -2.0, 4.0])), np.array([1.0, 0.0, 0.5])
    plain = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert nll(np.array([0.3, -2.0, 4.0]), y) == pytest.approx(plain)
    assert nll([0.0] * 3, y) == pytest.approx(math.log(2))
    assert brier(p, y) == pytest.approx(((p - y) ** 2).mean())
    assert brier([0.5] * 3, [1, 0, 1]) == 0.25


def test_temperature_is_where_the_likelihood_is_greatest():
    d, y = drawn(500, seed=5)
    fitted = float(temperature(3 * d, y))
    assert all(nll(3 * d / fitted, y) < nll(3 * d / (fitted * f), y) for f in (0.9, 1.1))
    both = temperature(np.stack([3 * d, d]), y)
    assert both[0] == pytest.approx(3 * both[1], rel=1e-6)
    assert float(temperature([1.0, 2.0])) == pytest.approx(COLDEST, rel=1e-6)
    assert float(temperature([-1.0, -2.0])) == pytest.approx(HOTTEST, rel=1e-6)
    assert np.isfinite(temperature(np.zeros(3)))


def test_oracle_n6_uncertainty():
    assert bald(np.array([[0.0], [1.0]]))[0] == pytest.approx(math.log(2))
    assert bald(np.array([[0.9], [0.9]]))[0] == pytest.approx(0, abs=1e-12)
    assert bald(np.array([[0.6], [0.9]]))[0] == pytest.approx(0.063288, abs=1e-6)


def test_oracle_n18_ratings():
    for wins, of in ((75, 100), (3, 7)):
        found = ratings({("a", "b"): wins, ("b", "a"): of - wins})
        gap = found["a"].mean - found["b"].mean
        assert gap == pytest.approx(400 * math.log10(wins / (of - wins)), abs=1e-3)
        se = 400 / math.log(10) * math.sqrt(1 / wins + 1 / (of - wins))  # of a logit of a share, on this scale
        assert found["a"].high - found["a"].mean == pytest.approx(1.959964 * se / 2, rel=1e-4)
    cycle = ratings({("a", "b"): 9, ("b", "a"): 1, ("b", "c"): 9, ("c", "b"): 1, ("c", "a"): 9, ("a", "c"): 1})
    assert [r.mean for r in cycle.values()] == pytest.approx([1000.0] * 3)


def test_ratings_that_have_no_end_need_a_ridge():
    for games in ({("a", "b"): 5}, {("a", "b"): 5, ("b", "a"): 1, ("c", "d"): 2, ("d", "c"): 2}):
        with pytest.raises(ValueError, match="ridge"):
            ratings(games)
        found = ratings(games, ridge=0.1)
        assert found["a"].mean > found["b"].mean
    with pytest.raises(ValueError, match="-1 wins"):
        ratings({("a", "b"): -1})


def test_ratings_recover_who_is_better():
    random = np.random.default_rng(0)
    theta = np.array([0.0, 0.5, 1.5])
    wins = {
        (str(i), str(j)): float(random.binomial(4000, expit(theta[i] - theta[j]))) for i in range(3) for j in range(i)
    }
    wins |= {(j, i): 4000 - n for (i, j), n in wins.items()}
    found = ratings(wins)
    logits = np.array([found[str(i)].mean for i in range(3)]) * math.log(10) / 400
    assert logits - logits[0] == pytest.approx(theta, abs=0.1)


def test_the_interval_of_many_clusters_is_the_one_that_draws_find(monkeypatch):
    random = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12_000), 3)
    weights = random.integers(1, 200, len(clusters))
    values = random.exponential(size=len(clusters)) + random.normal(size=12_000)[clusters]
    closed = bootstrap(values, clusters, weights=weights)
    monkeypatch.setattr(stats, "MANY", 12_000)
    drawn = bootstrap(values, clusters, weights=weights, draws=2000)
    assert closed.mean == drawn.mean
    width = drawn.high - drawn.low
    assert abs(closed.low - drawn.low) < 0.06 * width
    assert abs(closed.high - drawn.high) < 0.06 * width
