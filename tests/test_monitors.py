"""Monitors, sinks, intervals, comparison and the report: what reads numbers and says something."""

from __future__ import annotations

import json

import numpy as np
import pytest

from accord.errors import AccordError
from accord.evaluate.compare import compare
from accord.monitors.drop import Drop
from accord.report.read import read
from accord.report.render import write_report
from accord.sinks import JsonLines
from accord.stats import bootstrap, proportion


def test_drop_speaks_once_when_chosen_falls_while_the_margin_grows():
    monitor = Drop(window=3, threshold=0.5)
    spoke = [
        s for s in range(12) if monitor.see(s, {"rewards/chosen": -0.2 * s, "rewards/margins": 0.1 * s}) is not None
    ]
    assert spoke == [4]


def test_drop_is_silent_while_chosen_rises():
    monitor = Drop(window=3)
    assert all(monitor.see(s, {"rewards/chosen": 0.1 * s, "rewards/margins": 0.2 * s}) is None for s in range(20))


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


def test_the_report_shows_numbers_curves_and_answers_and_escapes_them(tmp_path):
    JsonLines(tmp_path / "metrics.jsonl").append(
        [{"step": s, "loss": 1.0 / s, "grad_norm": 1.0} for s in range(1, 5)] + [{"step": 4, "eval_loss": 0.3}]
    )
    (tmp_path / "config.yaml").write_text("model: m\n")
    (tmp_path / "summary.json").write_text(
        json.dumps(
            {"finished": "done", "steps": 4, "reference": None}
            | {k: {"mean": 0.1, "low": 0.0, "high": 0.2} for k in ("before", "after", "difference")}
        )
    )
    JsonLines(tmp_path / "samples.jsonl").append(
        [{"prompt": "<b>p</b>", "before": "x", "after": "y", "before_score": 0.0, "after_score": 1.0}]
    )
    page = write_report(tmp_path).read_text()
    assert "<polyline" in page
    assert "<circle" in page
    assert "&lt;b&gt;p&lt;/b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert read(tmp_path).held_out == [{"step": 4, "eval_loss": 0.3}]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(AccordError, match="no run folder"):
        read(tmp_path)
