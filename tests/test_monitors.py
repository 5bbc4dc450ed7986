"""Monitors, sinks, intervals and comparison: what reads numbers and says something."""

from __future__ import annotations

import json

import numpy as np
import pytest

from accord.evaluate.compare import compare
from accord.sinks import JsonLines
from accord.stats import bootstrap, confidence, proportion, share


def test_metrics_are_cut_to_a_step_and_a_half_written_line_goes(tmp_path):
    sink = JsonLines(tmp_path / "metrics.jsonl")
    sink.append([{"step": s, "loss": 1.0 / s} for s in range(1, 6)])
    with sink.path.open("a") as stream:
        stream.write('{"step": 6, "lo')
    sink.cut(3)
    assert [r["step"] for r in sink.read()] == [1, 2, 3]


def test_not_a_number_is_null_in_json(tmp_path):
    sink = JsonLines(tmp_path / "m.jsonl")
    sink.append([{"step": 1, "loss": float("nan")}])
    assert json.loads(sink.path.read_text())["loss"] is None


def test_a_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        interval = bootstrap(draw.normal(1.0, 1.0, 60), draws=400, seed=i)
        hits += interval.low <= 1.0 <= interval.high
    assert 180 <= hits <= 199


def test_a_paired_comparison_sees_a_small_but_steady_gain():
    draw = np.random.default_rng(1)
    before = draw.uniform(0, 1, 64)
    found = compare([[b] for b in before], [[b + 0.05] for b in before])
    assert found.sure
    assert found.difference.low == pytest.approx(0.05)
    assert proportion(0, 10).low == 0.0


def test_an_interval_over_records_covers_where_one_over_pairs_does_not():
    """Pairs of one record stand or fall together: 20 records of 10 pairs, half of each decided by its record."""
    draw = np.random.default_rng(2)
    hits = {"share": 0, "proportion": 0, "bootstrap": 0}
    for i in range(200):
        of_record = draw.random(20) < 0.5
        right = np.where(draw.random((20, 10)) < 0.5, of_record[:, None], draw.random((20, 10)) < 0.5).ravel()
        groups = np.repeat(np.arange(20), 10)
        found = {
            "share": share(right, groups), "proportion": proportion(right.sum(), 200),
            "bootstrap": bootstrap(right, groups, draws=400, seed=i),
        }  # fmt: skip
        for name, interval in found.items():
            hits[name] += interval.low <= 0.5 <= interval.high
    assert 182 <= hits["share"] <= 199
    assert 176 <= hits["bootstrap"] <= 199
    assert hits["proportion"] < 150


@pytest.mark.parametrize(("k", "off"), [(1.0, 0.0), (0.5, 0.096), (2.0, 0.102), (4.0, 0.177)])
def test_calibration_error_is_what_theory_says(k, off):
    """d ~ N(0, 1.5^2), P(first is better) = sigmoid(d), the model says k d: E|sigmoid(k d) - sigmoid(d)|."""
    draw = np.random.default_rng(3)
    d = draw.normal(0, 1.5, 200_000)
    first = draw.random(len(d)) < 1 / (1 + np.exp(-d))
    found = confidence(k * np.where(first, d, -d))
    assert found.ece == pytest.approx(off, abs=0.005)
    assert found.floor < 0.004
    assert found.count.sum() == len(d)


def test_means_of_tokens_are_weighed_by_tokens():
    found = bootstrap([1.0, 0.0], ["a", "b"], weights=[3, 1])
    assert (found.mean, found.low, found.high) == (0.75, 0.0, 1.0)
