"""A run folder, told and drawn: what the page says is true, nothing is lost, and everybody can read it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from accord.errors import AccordError
from accord.report import charts, compare, render, rounds, tables
from accord.report.read import read, runs_of
from accord.report.story import did_it_work, story
from accord.report.watch import Tail, Watched, watch
from accord.sinks import JsonLines, write_examples, write_json
from accord.stats import share
from tests.conftest import mixed_records, pair_records

# -- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory):
    """Trains once for each set of settings: a real run folder."""
    made: dict[str, Path] = {}

    def run(name: str, data: Any = None, **settings: Any) -> Path:
        if name not in made:
            from accord.training.run import train

            folder = tmp_path_factory.mktemp("runs") / name
            train(
                str(model_folder), data or pair_records(40),
                **{"max_steps": 6, "eval_steps": 3, "learning_rate": 1e-3, "batch_size": 8, "precision": "fp32",
                   "eval_fraction": 0.3, "quiet": True, "output": str(folder)} | settings,
            )  # fmt: skip
            made[name] = folder
        return made[name]

    return run


class Seen:
    """An example as the trainer hands it on."""

    def __init__(self, record: str, chosen: float, rejected: float | None, loss: float = 0.0, length: int = 5) -> None:
        self.term, self.record, self.source, self.loss = "dpo", record, "s", loss
        both = {"chosen": chosen} | ({} if rejected is None else {"rejected": rejected})
        self.rewards = both if rejected is not None else {}
        self.logps = both if rejected is not None else {"response": chosen}
        self.lengths = dict.fromkeys(both, length) if rejected is not None else {"response": length}


def folder_of(
    path: Path, held: dict[int, list[Seen]], *, steps: int = 10, metrics: Any = None, **settings: Any
) -> Path:
    """A run folder with the held-out examples of some steps."""
    path.mkdir(parents=True, exist_ok=True)
    resolved = {"model": "m", "data": "d.jsonl", "objective": "dpo", "output": str(path), "max_steps": steps} | settings
    (path / "config.yaml").write_text(
        "# accord 0.1.0\n# reference ref: start of run, content abc\n" + yaml.safe_dump(resolved)
    )
    train = metrics or [{"step": s, "loss": 1.0 / s, "grad_norm": 1.0} for s in range(1, steps + 1)]
    JsonLines(path / "metrics.jsonl").append(train + [{"step": s, "eval_loss": 1.0} for s in held])
    for step, rows in held.items():
        told = [{"file": "d.jsonl", "line": i + 1, "text": None} for i in range(len(rows))]
        write_examples(path / "held_out" / f"step-{step:07d}.parquet", [(step, e) for e in rows], told)
    write_json(
        path / "data.json", {"told": ["d"], "records": 5, "examples": {"dpo": 9}, "decisions": {}, "content": "c"}
    )
    write_json(path / "summary.json", {"finished": "done", "steps": steps})
    return path


# -- what a run writes for it -----------------------------------------------------------------------------------------


def test_every_example_names_file_and_line_of_its_record(model_folder, tmp_path, trained):
    from accord.data import sources

    file = tmp_path / "feedback.jsonl"
    file.write_text("".join(r.to_json() + "\n" for r in pair_records(40)))
    folder = trained("traced", str(file))
    ids = {i + 1: r.id for i, r in enumerate(sources.load(file).records)}
    for part, steps in (("examples", {1, 2, 3, 4, 5, 6}), ("held_out", {0, 3, 6})):
        rows = [row for f in sorted((folder / part).iterdir()) for row in pq.read_table(f).to_pylist()]
        assert {row["step"] for row in rows} == steps
        assert all(row["file"] == str(file) and ids[row["line"]] == row["record"] for row in rows)
        with_text = [row for row in rows if row["text"]]
        assert with_text
        assert all("tell me about" in json.loads(row["text"])["prompt"] for row in with_text)
    worst, best = tables.extremes(read(folder))
    rows = [row for f in (folder / "examples").iterdir() for row in pq.read_table(f).to_pylist() if row["step"] > 4]
    assert worst[0].number == min(row["margin"] for row in rows)
    assert best[0].number == max(row["margin"] for row in rows)
    assert worst[0].place.startswith(f"{file}, line ")
    assert worst[0].place in (folder / "report.html").read_text()


def test_texts_stand_with_the_extremes_of_each_file(tmp_path):
    from accord.data.records import Record, Response
    from accord.training.trail import EXTREMES, described

    records = [Record(prompt=f"p{i}", responses=(Response(text="x" * 5000),)) for i in range(40)]
    rows = [(1, Seen(r.id, -i / 10, None, loss=i / 10)) for i, r in enumerate(records)]
    told = described(rows, records, set(range(40)))  # type: ignore[arg-type]
    kept = [i for i, t in enumerate(told) if t["text"]]
    assert kept == [*range(EXTREMES), *range(40 - EXTREMES, 40)]
    assert len(told[0]["text"]) < 1000


# -- what it says -----------------------------------------------------------------------------------------------------


def test_the_first_screen_answers_by_the_strongest_evidence(tmp_path):
    start = [Seen(f"r{i}", 0.0, 0.0) for i in range(60)]
    for name, right, says in (("good", 50, "Yes"), ("unsure", 32, "Not shown"), ("bad", 10, "No")):
        now = [Seen(f"r{i}", 1.0 if i < right else -1.0, 0.0) for i in range(60)]
        run = read(folder_of(tmp_path / name, {0: start, 10: now}))
        answer, numbers = did_it_work(run)
        assert answer.answer.startswith(says)
        assert answer.tone == name
        assert numbers is not None
        assert numbers.accuracy == share([1] * right + [0] * (60 - right), range(60))
    JsonLines(tmp_path / "good" / "samples.jsonl").append(
        {"prompt": f"p{i}", "before": "a", "after": "b", "before_score": 0.5, "after_score": 0.4} for i in range(9)
    )
    assert did_it_work(read(tmp_path / "good"))[0].answer == "No: answers score lower"


def test_each_of_the_three_d_has_its_number_beside_its_alarm(tmp_path):
    """Chosen falls to e^-0.2 of its peak, which is no alarm; rejected by 1.5 nats a token of 10, which is one."""
    rows = [
        {"step": s, "loss": 1.0, "grad_norm": 1.0, "logratios/chosen": -0.1, "logratios/rejected": -1.5 * (s > 15),
         "lengths/chosen": 10.0, "lengths/rejected": 10.0, "probability/chosen": float(np.exp(-0.2 * (s > 15))),
         "probability/rejected": 0.5, "dispersed": 0.25}
        for s in range(1, 31)
    ]  # fmt: skip
    folder = folder_of(tmp_path / "r", {}, steps=30, metrics=rows)
    drop, degradation, dispersion = tables.three_d(read(folder))
    assert drop.numbers == "rejected fell by 15 nats a response; the alarm is at 6.9, and chosen fell by 1"
    assert degradation.spoke == "not seen"
    assert degradation.numbers == "chosen fell by 0.2 nats a token; the alarm is at 0.3"
    assert dispersion.numbers == "25 % of the pairs lost their mass; the alarm is at 50 % for certain"
    assert "Chosen fell by 0.2 nats a token; the alarm is at 0.3." in render.write_report(folder).read_text()
    assert "Chosen fell by 0.2 nats a token; the alarm is at 0.3." in render.markdown(folder)
    few = read(folder_of(tmp_path / "few", {}, steps=5, metrics=rows[:5], monitors="none"))
    assert {d.spoke for d in tables.three_d(few)} == {"not measured"}
    assert {d.numbers for d in tables.three_d(few)} == {"it takes 10 updates of pairs"}
    alone = read(folder_of(tmp_path / "alone", {}, steps=30, metrics=rows, monitors="drop"))
    assert [d.spoke for d in tables.three_d(alone)] == ["not seen", "nobody watched", "nobody watched"]


def test_the_first_screen_says_why_chosen_fell_and_when_that_is_a_fault(tmp_path):
    start = [Seen(f"r{i}", -10.0, -10.0) for i in range(30)]
    for name, chosen, says in (
        ("fell", -10.8, "Chosen fell 0.16 nats a token; the alarm is at 0.3."),
        ("rose", -9, ""),
    ):
        now = [Seen(f"r{i}", chosen, -12.0) for i in range(30)]
        facts = story(read(folder_of(tmp_path / name, {0: start, 10: now})))[2].facts
        (fact,) = [f for f in facts if f.what == "chosen responses"]
        assert says in fact.says
        assert ("Most losses on pairs ask only that the difference grows" in fact.says) == (name == "fell")


def test_every_point_that_is_counted_is_shown_the_gravest_first(tmp_path):
    start = [Seen(f"r{i}", -10.0, -10.0) for i in range(30)]
    now = [Seen(f"r{i}", -12.0, -13.0 if i % 2 else -11.0) for i in range(30)]
    folder = folder_of(tmp_path / "r", {0: start, 10: now}, steps=8, max_steps=9)
    write_json(folder / "summary.json", {
        "length": {"before": 10, "after": 20}, "distinct_2": {"before": 1.0, "after": 0.1},
        "held_out_accuracy": {"mean": 0.5, "low": 0.3, "high": 0.7, "pairs": 30, "records": 30, "ties": 20},
    })  # fmt: skip
    lost = {"count": 465, "examples": []}
    write_json(folder / "data.json", {"told": [], "examples": {"dpo": 900}, "decisions": {"dropped": lost}})
    names = ("length", "drop", "repeats", "beta", "rate")
    JsonLines(folder / "verdicts.jsonl").append(
        {"step": 3, "monitor": name, "says": "it is so.", "remedy": ""} for name in names
    )
    belief = story(read(folder))[2]
    to_look_at = [f for f in belief.facts if f.tone in ("bad", "unsure")]
    assert belief.answer == f"With care: {len(to_look_at)} points to look at"
    assert len(to_look_at) == len(belief.facts) > 6
    assert {"data lost", "and 2 verdicts more"} <= {f.what for f in to_look_at}
    assert [f.tone for f in belief.facts] == ["bad"] + ["unsure"] * (len(belief.facts) - 1)
    assert belief.facts[0].what == "rate, step 3"


def test_an_accuracy_is_the_same_wherever_it_stands(trained):
    """In bf16 a small margin is a tie: on the first screen, by source, and in the ranking."""
    run = read(trained("bf16", precision="bf16", learning_rate=1e-5))
    told = run.summary["held_out_accuracy"]
    assert 0 < told["ties"] < told["pairs"], told
    kept = (told["mean"], told["low"], told["high"])
    (_, _, by_source), *more = tables.by_source(run)[1]
    assert not more
    assert by_source.accuracy is not None
    found = by_source.accuracy
    assert (found.mean, found.low, found.high) == pytest.approx(kept)
    assert np.sum(run.last.pairs.right == 0.5) == told["ties"]
    by_length = [(r.kind, r.pairs, r.implicit.mean) for r in tables.ranking(run)]
    assert by_length[0][2] == told["mean"]
    equal = run.last.pairs["length_chosen"] == run.last.pairs["length_rejected"]
    right = sum(n * mean for _, n, mean in by_length[1:]) + run.last.pairs.right[equal].sum()
    assert right == pytest.approx(told["mean"] * told["pairs"])
    assert compare.measured(run, run, "accuracy", 0.95).difference.mean == 0.0  # type: ignore[union-attr]


LENGTHS = {  # right of 100 pairs, those with chosen longer, with rejected longer: tone, what is said
    "nothing learned": ((range(52), range(8), range(94, 100)), "plain", "nor than chance. 14 of 100 pairs differ"),
    "better": ((range(90), range(60), range(60, 100)), "good", "the model is better than it"),
    "no rule": ((range(62), range(55), range(55, 100)), "plain", "it may be no better than chance"),
    "by length": ((range(75), range(75), range(75, 100)), "unsure", "length may be all that was learned"),
    "by another rule": (
        (range(28, 100), range(70), range(70, 100)),
        "plain",
        "length is not shown to be what was learned",
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_length_is_a_rival_only_where_the_model_follows_it(name, tmp_path):
    (right, longer, shorter), tone, says = LENGTHS[name]
    now = [Seen(f"r{i}", 1.0 if i in right else -1.0, 0.0) for i in range(100)]
    for i, e in enumerate(now):
        e.lengths = {"chosen": 9 if i in longer else 5, "rejected": 9 if i in shorter else 5}
    facts = story(read(folder_of(tmp_path / "r", {10: now})))[2].facts
    (fact,) = [f for f in facts if f.what == "choosing the longer"]
    assert (fact.tone, says in fact.says) == (tone, True), fact.says


def test_a_verdict_on_labels_stands_beside_what_held_out_pairs_say(tmp_path):
    start = [Seen(f"r{i}", 0.0, 0.0) for i in range(60)]
    now = [Seen(f"r{i}", 1.0 if i < 45 else -1.0, 0.0) for i in range(60)]
    folder = folder_of(tmp_path / "r", {0: start, 10: now})
    assert did_it_work(read(folder))[0].tone == "good"
    JsonLines(folder / "verdicts.jsonl").append(
        [{"step": 7, "monitor": "labels", "says": "nothing carries over.", "remedy": ""}]
    )
    answer, _ = did_it_work(read(folder))
    assert answer.answer == (
        "In part: it tells better from worse on prompts it never saw, but the monitor of labels found nothing to learn "
        "at step 7"
    )
    assert answer.tone == "unsure"


def test_a_better_accuracy_with_a_worse_loss_is_half_an_answer(tmp_path):
    start = [Seen(f"r{i}", 0.0, 0.0, loss=0.7) for i in range(60)]
    now = [Seen(f"r{i}", 1.0 if i < 50 else -90.0, 0.0, loss=0.8 if i < 50 else 9.0) for i in range(60)]
    answer, _ = did_it_work(read(folder_of(tmp_path / "r", {0: start, 10: now})))
    assert answer.tone == "unsure"
    assert answer.answer.startswith("In part: it tells better from worse")
    assert "held-out loss got worse" in answer.answer


def test_intervals_are_over_records_and_changes_are_paired(tmp_path):
    """Two records of 20 pairs each: 40 pairs, and hardly any evidence."""
    start = [Seen(f"r{i // 20}", -5.0, -6.0) for i in range(40)]
    now = [Seen(f"r{i // 20}", -5.5 if i < 20 else -4.0, -9.0 if i < 20 else 0.0) for i in range(40)]
    run = read(folder_of(tmp_path / "r", {0: start, 10: now}))
    answer, numbers = did_it_work(run)
    assert numbers is not None
    assert numbers.records == 2
    assert answer.tone == "unsure"
    assert numbers.chosen is not None
    assert (numbers.chosen.mean, numbers.chosen.low, numbers.chosen.high) == pytest.approx((0.25, -0.5, 1.0))
    assert numbers.ranking is not None
    assert numbers.ranking.mean == pytest.approx(-0.5)


def test_demonstrations_are_told_by_nats_a_token(tmp_path):
    start = [Seen(f"r{i}", -10.0, None, length=4 + i % 3) for i in range(30)]
    now = [Seen(f"r{i}", -8.0, None, length=4 + i % 3) for i in range(30)]
    folder = folder_of(tmp_path / "r", {0: start, 10: now}, objective="sft")
    (folder / "config.yaml").write_text("objective: sft\nmax_steps: 10\n")
    answer, numbers = did_it_work(read(folder))
    assert answer.answer == "Yes: held-out demonstrations are likelier"
    assert numbers is not None
    assert numbers.per_token is not None
    assert numbers.per_token.mean == pytest.approx(2 / 5)


def test_ranking_is_told_by_which_answer_is_longer_beside_what_could_be_reached(tmp_path):
    """The reference finds every rejected answer likelier by 5 nats; at beta 0.1, and 3 of 4 who agree, 11 are there."""
    start = [Seen(f"r{i}", -30.0, -25.0) for i in range(20)]
    now = [Seen(f"r{i}", -30.0, -26.0 if i % 2 else -33.0) for i in range(20)]
    for side in (start, now):
        for i, e in enumerate(side):
            e.lengths = {"chosen": 5, "rejected": 3 if i % 2 else 9}
    for e in now:
        e.rewards = {k: 0.1 * (v - {"chosen": -30.0, "rejected": -25.0}[k]) for k, v in e.logps.items()}
    found = tables.ranking(read(folder_of(tmp_path / "r", {0: start, 10: now}, beta=0.1)))
    assert [(r.kind, r.pairs) for r in found] == [("all", 20), ("chosen is longer", 10), ("chosen is shorter", 10)]
    assert [r.now.mean for r in found if r.now] == [0.5, 0.0, 1.0]
    assert [r.before.mean for r in found if r.before] == [0.0, 0.0, 0.0]
    assert [r.implicit.mean for r in found] == [1.0, 1.0, 1.0]
    assert [r.gap for r in found] == [0.5, 1.0, 0.0]


def test_pairs_that_stay_wrong_are_suspects_in_a_run_that_learns(tmp_path):
    folder = folder_of(tmp_path / "r", {})
    rows = []
    for step in (1, 2, 3):
        for i in range(10):
            e = Seen(f"r{i}", -1.0, -2.0)
            margin = -1.0 if i == 7 or step == 1 else 1.0
            e.rewards = {"chosen": margin, "rejected": 0.0}
            rows.append((step, e))
    told = [{"file": "d.jsonl", "line": int(e.record[1:]) + 1, "text": None} for _, e in rows]
    write_examples(folder / "examples" / "steps-0000001-0000003.parquet", rows, told)
    found = tables.stubborn(read(folder))
    assert found == tables.Stubborn(1, 10, 0.9, ["d.jsonl, line 8"])
    assert "1 of 10 pairs" in render.write_report(folder).read_text()
    assert tables.stubborn(read(folder_of(tmp_path / "once", {}))) is None


def test_word_differences():
    a, b = tables.compared("The big red fox.", "The small red fox!")
    assert [t for k, t in a if k == "gone"] == ["big", "."]
    assert [t for k, t in b if k == "new"] == ["small", "!"]
    assert "".join(t for _, t in b) == "The small red fox!"
    assert tables.compared("one two", "quite other words here") == (
        [("same", "one two")],
        [("same", "quite other words here")],
    )


OBJECTIVES: dict[str, tuple[dict[str, Any], str]] = {
    "dpo": ({}, "held-out accuracy"),
    "simpo": ({"objective": "simpo"}, "held-out accuracy"),
    "sft": ({"objective": "sft", "data": "mixed"}, "log-prob a token"),
    "kto": ({"objective": "kto", "data": "mixed"}, "held-out loss"),
    "exo_rw": ({"objective": "exo_rw", "data": "mixed"}, "held-out loss"),
    "reward": ({"objective": "bradley_terry"}, "held-out accuracy"),
    "terms": ({"objective": {"pairs": "dpo", "demonstrations": "sft"}, "data": "mixed"}, "held-out accuracy"),
    "nothing": ({"eval_fraction": 0.0, "eval_steps": None}, "training loss"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_kind_of_run_has_a_page_and_a_text(name, trained):
    settings, fact = OBJECTIVES[name]
    settings = dict(settings)
    data = mixed_records(24) if settings.pop("data", "") == "mixed" else None
    folder = trained(name, data, **settings)
    answers = story(read(folder))
    assert [a.question for a in answers] == ["What was done?", "Did it work?", "Can I believe it?", "What next?"]
    assert fact in [f.what for f in answers[1].facts]
    if name == "nothing":
        assert answers[1].answer == "Nobody can say: nothing was held out"
        assert "eval_fraction=0.1" in answers[3].steps[0][0]
    if name == "reward":
        assert "larger reward" in answers[1].facts[0].says
    page, text = (folder / "report.html").read_text(), render.markdown(folder)
    for says in (a.answer for a in answers):
        assert says in text
    assert "Curves" in page
    assert "<script" in page
    assert "nan" not in re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.S).lower().split()


def test_a_killed_run_is_told_as_far_as_it_came(trained, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(trained("dpo"), folder, ignore=shutil.ignore_patterns("model", "summary.json", "report.html"))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-3]) + lines[-3][:30])
    page = render.write_report(folder).read_text()
    assert "Not finished: 4 of 6 steps so far." in page
    assert "Let it finish" in page
    assert "accord train" in page
    assert "talks to it" not in page
    for name in ("config.yaml", "data.json", "timing.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "examples")
    shutil.rmtree(folder / "held_out")
    assert "Not finished" in render.write_report(folder).read_text()
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(AccordError, match="no run folder"):
        render.write_report(folder)


def test_a_damaged_file_is_named(trained, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(trained("dpo"), folder)
    (folder / "summary.json").write_text("{")
    with pytest.raises(AccordError, match=r"summary\.json is damaged"):
        read(folder)
    shutil.copy(trained("dpo") / "summary.json", folder)
    max((folder / "examples").iterdir()).write_bytes(b"PAR1")
    with pytest.raises(AccordError, match=r"steps-.*parquet is damaged"):
        render.write_report(folder)


def test_the_page_needs_nothing_else_and_escapes_what_others_wrote(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = folder_of(tmp_path / "r", {}, model=evil)
    JsonLines(folder / "samples.jsonl").append(
        [{"prompt": evil, "before": evil, "after": "y", "before_score": 0.0, "after_score": 1.0}]
    )
    with (folder / "samples.jsonl").open("a") as stream:
        stream.write('{"prompt": "half \\ud83d", "before": "x", "after": "y"}\n')
    JsonLines(folder / "verdicts.jsonl").append([{"step": 3, "monitor": "m", "says": evil, "remedy": ""}])
    page = render.write_report(folder).read_text()
    assert "<img" not in page
    assert page.count("<script") == 1
    assert "http" not in page.replace("http-equiv", "")
    assert not re.search(r"\b(src|href)=\"(?!#)", page)
    assert "default-src 'none'" in page
    assert "half ?" in page


# -- what it draws ----------------------------------------------------------------------------------------------------


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def test_a_long_curve_keeps_its_extremes():
    draw = np.random.default_rng(0)
    y = draw.normal(size=10_000)
    y[[1234, 8765]] = 50.0, -50.0
    found = charts.chart("t", "", [charts.Line("one", "one", np.arange(1, 10_001), y)])
    assert found is not None
    raw, mean = found.lines
    assert raw.pale
    assert len(points(raw.path)) <= 1010
    drawn = {x: found.y1 - v / charts.TALL * (found.y1 - found.y0) for x, v in points(raw.path)}
    assert drawn[1234.0] == pytest.approx(50, abs=0.01)
    assert drawn[8765.0] == pytest.approx(-50, abs=0.01)
    assert {0.0, 9999.0} <= drawn.keys()
    half = charts.window(10_000) // 2
    assert mean.y[5000] == pytest.approx(y[5000 - half : 5001 + half].mean())
    assert "highest 50" in found.told


def test_what_is_not_finite_is_a_gap_and_counted(tmp_path):
    rows = [{"step": s, "loss": None if s == 3 else 1.0, "grad_norm": 1.0} for s in range(1, 6)]
    run = read(folder_of(tmp_path / "r", {}, metrics=rows))
    (loss,) = [c for _, drawn in charts.curves(run)[0] for c in drawn if c.title == "Loss"]
    assert loss.left_out == 1
    assert loss.lines[0].path.count("M") == 2
    assert "1 value not finite" in render.write_report(run.path).read_text()


def test_every_metric_is_drawn_once_and_verdicts_are_marked_where_they_fell(trained, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(trained("terms", mixed_records(24), objective=OBJECTIVES["terms"][0]["objective"]), folder)
    JsonLines(folder / "verdicts.jsonl").append(
        [{"step": 4, "monitor": "drop", "says": "it fell.", "remedy": "lift it."}]
    )
    rows = JsonLines(folder / "metrics.jsonl").read()
    JsonLines(folder / "metrics.jsonl").path.unlink()
    JsonLines(folder / "metrics.jsonl").append([row | {"probe/new": 1.0 * row["step"]} for row in rows])
    run = read(folder)
    parts, rest = charts.curves(run)
    named = [f"{term}/{c.title}" for term, drawn in parts for c in drawn]
    assert len(set(named)) == len(named)
    assert {"/Loss", "pairs/Rewards", "pairs/Log-probs", "demonstrations/Loss per token"} <= set(named)
    titles = [c.title for c in rest]
    assert len(set(titles)) == len(titles)
    assert "probe/new" in titles
    assert "pairs: Entanglement" in titles
    assert not [t for t in titles if "logratios" in t or t.startswith("data/")]  # with the three D; said once
    assert {"A token since the reference", "Pairs that lost their mass"} <= {c.title for c in charts.three_d(run)[0][1]}
    number = len(run.verdicts)  # the run's own come before it
    assert all((4, number) in [m[:2] for m in c.marks] for _, drawn in parts for c in drawn if c.x0 <= 4 <= c.x1)
    page = render.write_report(folder).read_text()
    assert "It fell." in page
    assert "Lift it." in page


def test_histograms_hold_everything_and_have_an_edge_at_zero():
    values = np.random.default_rng(1).normal(0.3, 2.0, 500)
    found = charts.bars("t", "", {"a": values})
    assert found is not None
    assert found.counts[0].sum() == 500
    assert np.abs(found.edges).min() == 0


# -- several runs -----------------------------------------------------------------------------------------------------


def test_runs_are_compared_on_what_both_were_measured_on(tmp_path):
    def rows(gain: float, extra: int = 0) -> list[Seen]:
        return [
            Seen(f"r{i // 2}", gain + 0.1 * (i % 3) - 0.1, 0.0, length=5 + (extra if i >= 50 else 0)) for i in range(60)
        ]

    a = folder_of(tmp_path / "a", {10: rows(0.0)}, beta=0.1)
    b = folder_of(tmp_path / "b", {10: rows(2.0, extra=1)}, beta=0.2)
    found = compare.measured(read(a), read(b), "chosen", 0.95)
    assert found is not None
    assert (found.n, found.groups) == (50, 25)  # ten rows are other examples: their lengths differ
    assert found.difference.mean == pytest.approx(2.0)
    assert compare.differing(compare.named([read(a), read(b)])) == [("beta", ["0.1", "0.2"])]
    assert compare.measured(read(a), read(b), "loss", 0.95) is None  # beta changes what a loss is
    page = compare.write_comparison([a, b], tmp_path / "comparison.html").read_text()
    assert "b, by its held-out accuracy" in page
    text = compare.markdown([a, b])
    assert "| beta | 0.1 | 0.2 |" in text
    c = folder_of(tmp_path / "c", {10: [Seen("other", 1.0, 0.0)]})
    assert "Nobody can say" in compare.markdown([a, c])


def test_runs_that_share_are_compared_whichever_was_named_first(tmp_path):
    def run(name: str, records: str, right: int) -> Path:
        now = [Seen(f"{records}{i}", 1.0 if i < right else -1.0, 0.0) for i in range(60)]
        return folder_of(tmp_path / name, {10: now})

    a, b, c, d = run("A", "x", 30), run("B", "y", 10), run("C", "y", 50), run("D", "y", 20)
    runs = compare.named([read(f) for f in (a, b, c, d)])
    assert compare.comparable(runs) == [["B", "C", "D"], ["A"]]
    text = compare.markdown([a, b, c, d])
    assert "## Which is better? C, by its held-out accuracy, among B, C, D" in text
    assert "**A** (to look at) shares no held-out examples and no scored prompts with any other." in text
    assert "| C | B | held-out accuracy | +0.667" in text
    assert "| D | B | held-out accuracy | +0.167" in text
    assert "| A | – | shares nothing with any other |" in text
    page = compare.write_comparison([a, b, c, d], tmp_path / "comparison.html").read_text()
    assert "Baseline is the run that shares with most others" in page
    e = run("E", "x", 20)
    assert compare.comparable(compare.named([read(f) for f in (a, b, c, e)])) == [["A", "E"], ["B", "C"]]
    assert "**B, C** (to look at) share with one another alone" in compare.markdown([a, b, c, e])
    first, *_ = compare.against(compare.named([read(f) for f in (a, e)]))
    assert (first.name, first.baseline) == ("E", "A")


def test_a_chart_of_the_probe_says_that_it_is_a_token(tmp_path):
    rows = [
        {"step": s, "loss": 1.0, "grad_norm": 1.0, "logps/chosen": -9.0, "probe/logps/chosen": -0.5} for s in (1, 2)
    ]
    runs = {n: read(folder_of(tmp_path / n, {}, steps=2, metrics=rows)) for n in "ab"}
    notes = {c.title: c.note for c in charts.overlaid(runs)}
    assert notes["probe: Log-probs: chosen"].startswith("Nats a token")
    assert notes["Log-probs: chosen"].startswith("Nats of a whole response")


def test_a_comparison_of_many_asks_for_more(tmp_path):
    draw = np.random.default_rng(0)
    runs = {}
    for name in "abcdefghijk":
        now = [Seen(f"r{i}", float(draw.normal()), 0.0) for i in range(80)]
        runs[name] = read(folder_of(tmp_path / name, {10: now}))
    one = compare.measured(runs["a"], runs["b"], "accuracy", 0.95)
    (ten, *_) = compare.against(runs)[0].found
    assert one is not None
    assert ten.difference.mean == one.difference.mean
    assert ten.difference.high - ten.difference.low > 1.2 * (one.difference.high - one.difference.low)


def test_the_report_command(accord, trained, tmp_path):
    dpo, simpo = trained("dpo"), trained("simpo")
    code, out, _ = accord("report", dpo, simpo)
    assert code == 0
    page = Path(out.strip()).read_text()
    assert "Paired differences" in page
    code, out, _ = accord("report", dpo, "--format", "md")
    assert code == 0
    assert out.startswith("# dpo\n")
    assert accord("report", dpo, "--output", tmp_path / "x.html")[0] == 0
    assert "Did it work?" in (tmp_path / "x.html").read_text()
    code, _, err = accord("report", dpo, "--output", tmp_path / "no" / "x.html")
    assert code == 2
    assert "there is no folder" in err
    code, _, err = accord("report", dpo, "nope")
    assert code == 2
    assert "nope is no run folder" in err


def test_a_sweep_is_a_comparison(accord, trained, tmp_path):
    (tmp_path / "sweep").mkdir()
    for name in ("dpo", "simpo"):
        shutil.copytree(trained(name), tmp_path / "sweep" / name)
    rows = [{"folder": f"elsewhere/sweep/{name}"} for name in ("dpo", "simpo", "failed")]
    write_json(tmp_path / "sweep" / "sweep.json", {"varied": ["objective"], "runs": rows})
    assert [f.name for f in runs_of(tmp_path / "sweep")] == ["dpo", "simpo"]
    code, out, _ = accord("report", tmp_path / "sweep")
    assert (code, out.strip()) == (0, "sweep/comparison.html")
    assert 'href="dpo/report.html"' in (tmp_path / "sweep" / "comparison.html").read_text()


# -- watching ---------------------------------------------------------------------------------------------------------


def test_a_tail_reads_whole_lines_and_starts_again_when_a_file_is_cut(tmp_path):
    path = tmp_path / "m.jsonl"
    tail = Tail(path)
    tail.look()
    assert tail.rows == []
    path.write_text('{"step": 1}\n{"st')
    tail.look()
    assert [r["step"] for r in tail.rows] == [1]
    with path.open("a") as stream:
        stream.write('ep": 2}\n{"step": 3}\n')
    tail.look()
    assert [r["step"] for r in tail.rows] == [1, 2, 3]
    path.write_text('{"step": 1}\n')
    tail.look()
    assert [r["step"] for r in tail.rows] == [1]


def test_what_informs_stands_last_and_is_no_point_to_look_at(tmp_path):
    """`on_policy` says what the data is; `drop` beside it is an alarm."""
    informs = {"step": 1, "monitor": "on_policy", "says": "they are off policy.", "remedy": "Sample answers."}
    alarm = {"step": 4, "monitor": "drop", "says": "it fell.", "remedy": "Lift it."}
    for name, verdicts in (("informed", [informs]), ("alarmed", [informs, alarm])):
        folder = folder_of(tmp_path / name, {})
        (folder / "model").mkdir(exist_ok=True)
        JsonLines(folder / "verdicts.jsonl").append(verdicts)
        *_, believe, following = story(read(folder))
        told = [says for _, says in following.steps]
        assert told[-1] == "Sample answers."
        assert len(told) > len(verdicts)
        assert ("Lift it." in told) == (alarm in verdicts)
        assert ("said first" in following.answer) == (alarm in verdicts)
        assert {f.what: f.tone for f in believe.facts}["on_policy, step 1"] == "plain"


def test_watching_ends_with_the_run(tmp_path, capsys):
    folder = folder_of(tmp_path / "r", {}, steps=4)
    (folder / "summary.json").unlink()
    JsonLines(folder / "timing.jsonl").append({"step": s, "seconds": 2.0, "tokens": 100} for s in range(1, 3))
    rows = JsonLines(folder / "metrics.jsonl").read()
    (folder / "metrics.jsonl").write_text("")
    JsonLines(folder / "metrics.jsonl").append(rows[:2])
    assert Watched(folder).status() == "step 2 of 4, 50 tokens/s, 0:04 left"
    assert not Watched(folder).ended

    def finish() -> None:
        JsonLines(folder / "verdicts.jsonl").append(
            [{"step": 3, "monitor": "drop", "says": "it fell", "remedy": "lift it"}]
        )
        JsonLines(folder / "metrics.jsonl").append(rows[2:])
        write_json(folder / "summary.json", {"finished": "done", "steps": 4})

    timer = threading.Timer(0.3, finish)
    timer.start()
    watch(folder, every=0.1)
    out = capsys.readouterr().out
    assert "drop: it fell" in out
    assert "done: step 4 of 4  loss 0.250" in out


def test_a_silent_run_is_called_one(tmp_path):
    folder = folder_of(tmp_path / "r", {})
    (folder / "summary.json").unlink()
    old = time.time() - 7200
    os.utime(folder / "metrics.jsonl", (old, old))
    assert "no new step for 2:00:0" in Watched(folder).status()


def test_watch_needs_a_run(accord, tmp_path):
    code, _, err = accord("watch", tmp_path)
    assert code == 2
    assert "is no run folder" in err
    code, out, _ = accord("watch", folder_of(tmp_path / "r", {}), "--once")
    assert code == 0
    assert "done: step 10 of 10" in out


# -- at any length ----------------------------------------------------------------------------------------------------


def test_ten_thousand_steps_are_a_page_in_three_seconds_without_torch(tmp_path):
    draw = np.random.default_rng(0)
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
             "logps/rejected", "accuracies/ranking", "grad_norm", "learning_rate")  # fmt: skip
    values = draw.normal(size=(10_000, len(names)))
    rows = [{"step": i + 1, "epoch": 0.0} | dict(zip(names, row, strict=True)) for i, row in enumerate(values.tolist())]
    folder = folder_of(tmp_path / "r", {}, steps=10_000, metrics=rows)
    JsonLines(folder / "timing.jsonl").append({"step": i + 1, "seconds": 1.0, "tokens": 500} for i in range(10_000))
    for first in range(1, 10_001, 50):  # 32 pairs a step, of 64,000 records: five passes
        many = [(first - 1) * 32 + i for i in range(1600)]
        seen = [(1 + i // 32, Seen(f"{i % 64_000:032x}", 1.0 * (i % 7), 0.5)) for i in many]
        told = [{"file": "d.jsonl", "line": 1 + i % 64_000, "text": "{}" if i % 100 == 0 else None} for i in many]
        write_examples(folder / "examples" / f"steps-{first:07d}-{first + 49:07d}.parquet", seen, told)
    code = (
        "import sys, time\nfrom accord.cli import main\ntry:\n    main(['report', sys.argv[1]])\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    took = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        took.append(float(done.stdout.splitlines()[-1]))
    assert min(took) < 3.0  # of processor time, imports included
    assert (folder / "report.html").stat().st_size < 1_000_000


# -- loops ------------------------------------------------------------------------------------------------------------


def loop_of(path: Path, scores: list[dict[str, list[float]]], kl: list[float]) -> Path:
    """A loop's folder of rounds whose answers to each prompt got these scores; the last is not trained yet."""
    path.mkdir(parents=True)
    (path / "loop.yaml").write_text(yaml.safe_dump({"model": "m", "preset": "online_dpo", "rounds": 3}))
    for n, (of, distance) in enumerate(zip(scores, kl, strict=True), 1):
        place = path / "records" / f"round-{n}"
        place.mkdir(parents=True)
        JsonLines(place / "judged.jsonl").append(
            {
                "prompt": prompt,
                "responses": [{"text": f"answer {n} <b>"} for _ in values],
                "judgements": [
                    {"kind": "score", "response": i, "value": v, "by": "rule"} for i, v in enumerate(values)
                ],
            }
            for prompt, values in of.items()
        )
        numbers = {"round": n, "prompts": len(of), "answers": 2 * len(of), "tokens": 10.0 * n, "distinct": 1.0,
                   "finished": 1.0, "advantage": {"kl_ref": distance}}  # fmt: skip
        write_json(place / "round.json", numbers)
        if n < len(scores):
            folder_of(path / "rounds" / str(n), {}, steps=4)
    return path


def test_a_loop_is_told_by_its_rounds(accord, tmp_path):
    scores = [{f"p{i}": [0.1 * i + 0.1 * n, 0.1 * i + 0.1 * n] for i in range(6)} for n in range(3)]
    folder = loop_of(tmp_path / "loop", scores, [0.0, 1.0, 4.0])
    worked = rounds.story(folder, {"rounds": 3}, rounds.rounds_of(folder))[1]
    assert worked.answer.startswith("Yes")
    assert worked.facts[0].value == "+0.200 [+0.200, +0.200]"
    code, out, _ = accord("report", str(folder))
    page = (folder / "report.html").read_text()
    assert code == 0
    assert out.strip().endswith("report.html")
    assert "Score against distance" in page
    assert "&lt;b&gt;" in page
    assert "not yet" in page
    assert "10.00 → 30.00 tokens" in page
    code, out, _ = accord("report", str(folder), "--format", "md")
    assert "| 3 | 6 | 12 | 0.450 [" in out
    assert read(folder / "rounds" / "2").name == "loop, round 2"
    drawn = rounds.against_kl(rounds.rounds_of(folder))
    assert drawn is not None
    assert [round(x, 3) for x, *_ in drawn["points"]] == [0.0, round(1 / 2.1, 3), round(2 / 2.1, 3)]


def test_a_round_that_is_only_informed_of_is_no_point_to_look_at(tmp_path):
    folder = loop_of(tmp_path / "loop", [{"p": [0.1, 0.2]}] * 2, [0.0, 1.0])
    points = []
    for monitor, tone in (("on_policy", "plain"), ("drop", "unsure")):
        JsonLines(folder / "rounds" / "1" / "verdicts.jsonl").append([{"step": 1, "monitor": monitor, "says": "s."}])
        answer = rounds.belief(rounds.rounds_of(folder))
        assert [f.tone for f in answer.facts if f.what == "round 1"] == [tone]
        points.append(sum(f.tone == "unsure" for f in answer.facts))
        assert f"{points[-1]} point" in answer.answer
    assert points[1] == points[0] + 1


def test_a_loop_without_judged_answers_is_named(accord, tmp_path):
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "loop.yaml").write_text("model: m\n")
    code, _, err = accord("report", str(tmp_path / "loop"))
    assert code == 2
    assert "no round has been judged yet" in err


# -- in a browser -----------------------------------------------------------------------------------------------------


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
AXE = importlib.util.find_spec("axe_playwright_python")


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory) -> dict[str, Path]:
    """Pages as a browser gets them: of a run with everything in it, and of two runs."""
    if not os.environ.get("ACCORD_CI") and (CHROMIUM is None or AXE is None):
        pytest.skip("no chromium, or no axe-playwright-python, which brings axe-core")
    folder = tmp_path_factory.mktemp("pages") / "everything"
    shutil.copytree(trained("terms", mixed_records(24), objective=OBJECTIVES["terms"][0]["objective"]), folder)
    JsonLines(folder / "samples.jsonl").append(
        {
            "prompt": f"p{i}",
            "rule": "r",
            "before": "a b c",
            "after": "a d c",
            "before_score": 0.1 * i,
            "after_score": 0.5,
        }
        for i in range(20)
    )
    JsonLines(folder / "verdicts.jsonl").append(
        [{"step": 4, "monitor": "drop", "says": "it fell.", "remedy": "lift it."}]
    )
    several = compare.write_comparison([trained("dpo"), trained("simpo")], folder.parent / "several.html")
    scores = [{f"p{i}": [0.1 * i * n, 0.2] for i in range(6)} for n in range(3)]
    loop = rounds.write_rounds(loop_of(folder.parent / "loop", scores, [0.0, 1.0, 4.0]))
    return {"run": render.write_report(folder), "several": several, "loop": loop}


def browse(page: Path, script: str, tmp_path: Path, *flags: str) -> tuple[Any, str]:
    """Opens a copy of a page with `script` in it; what the script gave to `done`, and what the console said."""
    assert CHROMIUM is not None, "CI must install chromium"
    copy = tmp_path / "page.html"
    text = page.read_text().replace("</body>", f"<pre id=found></pre><script>{script}</script></body>")
    copy.write_text(text)
    run = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=20000",
         "--window-size=1200,900", *flags, "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    console = "\n".join(line for line in run.stderr.splitlines() if "CONSOLE" in line)
    found = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.S)
    assert found is not None, run.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") or "null"), console


DONE = "const done = x => { document.getElementById('found').textContent = JSON.stringify(x); };\n"
LIGHTS = {"light": "--blink-settings=preferredColorScheme=1", "dark": "--blink-settings=preferredColorScheme=0"}


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("which", ["run", "several", "loop"])
def test_everybody_can_read_it(which, light, pages, tmp_path):
    """axe-core finds no serious fault, and the console stays empty."""
    assert AXE is not None, "CI must install axe-playwright-python"
    axe = (Path(str(AXE.origin)).parent / "axe.min.js").read_text().replace("</script", "<\\/script")
    script = f"{axe}\n</script><script>{DONE}document.querySelectorAll('details').forEach(d => d.open = true);\n"
    script += "axe.run().then(r => done([getComputedStyle(document.body).backgroundColor, r.passes.length, "
    script += "r.violations.map(v => [v.id, v.impact, v.nodes.length, v.nodes[0].html.slice(0, 200)])]));"
    (paper, passed, faults), console = browse(pages[which], script, tmp_path, LIGHTS[light])
    assert (paper == "rgb(255, 255, 255)") == (light == "light")
    assert passed > 20
    assert [f for f in faults if f[1] in ("serious", "critical")] == []
    assert console == ""


def test_curves_are_read_and_enlarged_by_keyboard_and_pointer(pages, tmp_path):
    script = (
        DONE
        + """
      const plots = [...document.querySelectorAll('.plot[role=slider]')], plot = plots[0], found = {};
      const text = () => plot.getAttribute('aria-valuetext');
      const key = k => plot.dispatchEvent(new KeyboardEvent('keydown', {key: k, bubbles: true}));
      const view = () => plots.map(p => p.querySelector('svg svg').getAttribute('viewBox').split(' ').map(Number));
      const at = (type, share) => { const r = plot.getBoundingClientRect();
        plot.dispatchEvent(new PointerEvent(type, {clientX: r.left + r.width * share, clientY: r.top + 20, button: 0,
          pointerId: 1, bubbles: true})); };
      plot.setPointerCapture = () => {};
      found.told = text(); key('Home'); found.home = text(); key('ArrowRight'); found.right = text();
      found.whole = view()[0]; key('+'); found.near = view(); key('0'); found.again = view()[0];
      at('pointermove', .99); found.hover = text();
      at('pointerdown', .3); at('pointermove', .7); at('pointerup', .7); found.dragged = view()[0];
      const button = plot.closest('figure').querySelector('button');
      found.hidden = button.hidden; button.click(); found.back = view()[0];
      found.ticks = plot.querySelectorAll('.x text').length;
      done(found);"""
    )
    found, console = browse(pages["run"], script, tmp_path)
    assert console == ""
    assert "chosen" in found["told"]
    assert "at step 6" in found["told"]
    assert found["home"].startswith("step 0: ")
    assert found["right"].startswith("step 1: ")
    assert found["whole"][:3] == [0, 0, 6]
    assert all(view[2] < 6 for view in found["near"] if view[2] > 0)
    assert found["again"] == found["back"] == found["whole"]
    assert found["hover"].startswith("step 6: ")
    assert found["dragged"][0] > 0
    assert found["dragged"][2] == pytest.approx(0.4 * 420 / 358 * 6, rel=0.02)
    assert found["hidden"] is False
    assert found["ticks"] > 2


def test_nothing_is_wider_than_a_phone(pages, tmp_path):
    script = DONE + "done([document.documentElement.scrollWidth, innerWidth]);"
    for page in pages.values():
        (wide, phone), _ = browse(page, script, tmp_path, "--window-size=390,800")
        assert wide <= phone <= 500
