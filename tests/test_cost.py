"""The time that is left: a law of an update's sizes against the mean of what was, with a made-up clock."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from accord.data.batches import Batch
from accord.data.chat import Sequence
from accord.training import cost
from tests.conftest import make_llama


def law_of(work: cost.Work) -> np.ndarray:
    """Seconds of a made-up machine, which does not compute all parts equally fast, and begins an update in 0.1 s."""
    return 2e-8 * work.rates * [1.0, 0.6, 1.8, 0.0] + [0.0, 0.0, 0.0, 0.1]


def sequence(context: int, answer: int, first: int = 0) -> Sequence:
    return Sequence(np.arange(first, first + context, dtype=np.int32), np.ones(answer, np.int32), np.ones(answer, bool))


class Growing:
    """A schedule of which answers get longer from update to update: by 1 % of the last."""

    batch_size = 4

    def batch(self, number: int) -> Batch:
        draw = np.random.default_rng(number)
        longer = 1.01**number
        several = [
            sequence(int(20 * longer), int(n), 1000 * i)
            for i in range(self.batch_size)
            for n in longer * draw.integers(20, 60, 2)
        ]
        return Batch(several, {}, np.zeros(len(several), bool))


@pytest.fixture
def work() -> cost.Work:
    return cost.Work(SimpleNamespace(causal=make_llama(), layout="shared"))


def ride(schedule, work, monkeypatch, steps: int = 200, every: int | None = None) -> tuple[list[float], list[float]]:
    """What the clock says is left after each update, and what really is; beside an update's time goes a tenth of a
    second, and an evaluation takes seven seconds."""
    now = [100.0]
    monkeypatch.setattr(cost, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = cost.Clock(schedule, work, steps, every)
    noise, law = np.random.default_rng(0), law_of(work)
    said, at = [], []
    for number in range(steps):
        batch = schedule.batch(number)
        slow = 3.0 if number < cost.WARM else 1.0
        seconds = slow * float(np.dot(work.sizes(batch.sequences), law)) * noise.uniform(0.97, 1.03)
        now[0] += seconds + 0.1
        said.append(clock.tell(number + 1, batch, seconds)[1])
        at.append(now[0])
        if every and (number + 1) % every == 0:
            with clock.evaluation():
                now[0] += 7.0
    if every:
        now[0] += 7.0
    return said, [now[0] - t for t in at]


def test_what_is_left_counts_the_lengths_that_are_to_come(work, monkeypatch):
    said, left = map(np.array, ride(Growing(), work, monkeypatch))
    after = slice(cost.WARM + cost.ENOUGH, -1)
    assert np.abs(said[after] / left[after] - 1).max() < 0.15
    monkeypatch.setattr(cost, "FAR", 0)  # nothing to come is looked at: the mean says it
    mean, _ = map(np.array, ride(Growing(), work, monkeypatch))
    assert np.abs(mean[after] / left[after] - 1).max() > 0.6


def test_evaluations_to_come_are_counted_one_by_one(work, monkeypatch):
    said, left = map(np.array, ride(Growing(), work, monkeypatch, 60, 20))
    assert np.abs(said - left)[20:].max() < 0.06 * left[20]
    assert said[-1] == pytest.approx(14.0)  # one behind the last update, and one at the end


def test_examples_that_were_not_tokenised_are_no_harm(work, monkeypatch):
    class Short(Growing):
        def batch(self, number: int) -> Batch:
            if number >= 150:
                raise IndexError("this example lies beyond the updates that were tokenised")
            return super().batch(number)

    now = [0.0]
    monkeypatch.setattr(cost, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = cost.Clock(Short(), work, 200, None)
    for number in range(50):
        now[0] += 2.0 + number
        left = clock.tell(number + 1, Short().batch(number), 1.0 + number)[1]
    assert clock.law is not None
    assert left == pytest.approx(now[0] / 50 * 150)


def test_a_hundred_thousand_updates_are_not_walked_through(work):
    class Counted(Growing):
        asked = 0

        def batch(self, number: int) -> Batch:
            self.asked += 1
            return super().batch(number % 100)

    schedule = Counted()
    clock = cost.Clock(schedule, work, cost.FAR, None)
    batch = schedule.batch(0)
    for number in range(400):
        clock.tell(number + 1, batch, 1.0)
    assert schedule.asked <= 1 + 256


def test_alike_updates_are_extrapolated_by_the_arithmetic(work):
    """Ten updates of nearly one size say nothing of one ten times as long; what the model's shape says of it does."""
    few = [work.sizes([sequence(50, n)]) for n in range(48, 58)]
    rate = 1e-9 * work.rates
    found = [(s, float(np.dot(s, rate)) * noise) for s, noise in zip(few, [1.02, 0.98] * 5, strict=True)]
    long = np.array(work.sizes([sequence(500, 520)]))
    true = float(np.dot(long, rate))
    assert cost.Law.of(found, work.rates).seconds(long) == pytest.approx(true, rel=0.15)
    unaided = cost.fit(found)[0]
    assert abs(float(long @ unaided) / true - 1) > 0.3


def test_a_law_is_found_again_and_says_how_far_it_is_off(work):
    draw, true = np.random.default_rng(0), law_of(work)
    seen = [work.sizes([sequence(int(p), int(n)) for n in draw.integers(5, 400, 3)]) for p in draw.integers(5, 400, 64)]
    found = [(s, float(np.dot(s, true)) * draw.uniform(0.98, 1.02)) for s in seen]
    law = cost.Law.of(found, work.rates)
    assert 0.001 < law.off < 0.02
    assert law.seconds(np.array(seen)) == pytest.approx(np.array(seen) @ true, rel=0.04)
    slow = [*found[:-8], *((s, 5 * t) for s, t in found[-8:])]  # stalls count for what they took
    assert cost.Law.of(slow, work.rates).seconds(np.array(seen)).sum() == pytest.approx(sum(t for _, t in slow))


def test_groups_of_like_work_stand_in_one_round(work):
    draw = np.random.default_rng(0)
    several = [sequence(int(p), int(n), 1000 * i) for i, (p, n) in enumerate(draw.integers(5, 300, (40, 2)))]
    groups = [[i] for i in range(40)]
    ordered = work.alike(several, groups)
    assert sorted(ordered) == groups

    def slowest(order: list[list[int]]) -> float:
        spent = [work.of(several[i] for i in group) for group in order]
        return sum(max(spent[i : i + 4]) for i in range(0, 40, 4))

    least = sum(work.of([s]) for s in several) / 4
    assert slowest(ordered) < 1.15 * least < 1.4 * least < slowest(groups)


def test_a_run_says_what_an_update_cost_and_tells_the_watcher(model_folder, tmp_path, monkeypatch):
    import accord
    from tests.conftest import pair_records

    told = []
    tell = cost.Clock.tell
    monkeypatch.setattr(cost.Clock, "tell", lambda *a: told.append(tell(*a)) or told[-1])
    given = {"batch_size": 4, "device": "cpu", "precision": "fp32", "quiet": True, "output": str(tmp_path / "r")}
    run = accord.train(str(model_folder), pair_records(40), max_steps=14, eval_fraction=0, **given)
    law = run.summary["cost"]
    assert law["updates"] == cost.ENOUGH
    assert 0 <= law["off"] < 1
    assert law["told"].endswith("% off")
    assert law["told"] in (run.folder / "report.html").read_text(encoding="utf-8")
    assert len(told) == 14
    assert told[-1][1] == pytest.approx(0.0, abs=1e-6)
