"""The race against TRL: what it counts, what it refuses, and that it goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from torch.utils.flop_counter import FlopCounterMode

from accord.bench import cell as cells
from accord.bench import scaling, table, work
from accord.bench.baselines import TRAINERS
from accord.bench.sides import Ours
from accord.errors import AccordError, ConfigError
from accord.sampling import local


def small(folder, **known) -> cells.Cell:
    return cells.Cell(str(folder), prompts=2, updates=2, **known)


@pytest.mark.parametrize("objective", list(work.OBJECTIVES))
def test_the_gate_holds_for_a_perturbed_policy(model_folder, tmp_path, objective):
    found = cells.gate(small(model_folder, objective=objective), tmp_path)
    assert found["loss_apart"] < cells.LOSS
    assert 0 < found["gradient_apart"] < cells.GRADIENT


def test_the_gate_catches_a_gradient_that_is_a_thousandth_off(model_folder, tmp_path, monkeypatch):
    backward = cells.Ours.__init__

    def wrong(self, *args, **kwargs):
        backward(self, *args, **kwargs)
        weight = self.policy.model.get_input_embeddings().weight
        calls: list[int] = []
        weight.register_hook(lambda g: g * 1.001 if not calls and calls.append(1) is None else g)

    monkeypatch.setattr(cells.Ours, "__init__", wrong)
    with pytest.raises(AccordError, match="gate of equality failed"):
        cells.gate(small(model_folder), tmp_path)


def test_an_update_s_matrix_products_are_the_least_there_are(model_folder, tmp_path):
    """Forward and backward over each unique token once, and the head over trained ones; attention is not counted."""
    update = work.draw("balanced", 3, 2, 1, 300)[0]
    ours = Ours(model_folder, [update], "dpo", folder=tmp_path)
    ours.prepare()
    with FlopCounterMode(display=False) as counter:
        ours.step.backward(ours.step.collect(ours.schedule.batch(0), 0))
    model = ours.policy.model
    body = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    least = 6 * (body * update.unique + model.lm_head.weight.numel() * update.trained)
    assert counter.get_total_flops() == pytest.approx(least, rel=1e-9)
    assert least < work.least_work(model, update, "dpo") < 2 * least


def test_a_cell_that_is_stored_is_not_run_again_and_a_control_that_is_uneven_is_named(tmp_path, monkeypatch):
    ran = []

    def measured(what, cell):
        ran.append((what, cell.against))
        return {
            "cell": cells.asdict(cell), "ratio": 1.2, "ratios": [1.1, 1.3], "wall_ratio": 1.0, "speed": 1.0,
            "utilisation": {"accord": 0.5, "other": 0.2}, "products": {"accord": 1.0, "other": 2.0},
            "reference": {"accord": 1.0, "other": 2.0}, "peak": 1.0,
        }  # fmt: skip

    monkeypatch.setattr(table, "apart", measured)
    both = [small("m", against="itself"), small("m", against="tuned")]
    first = table.run(both[:1], tmp_path, True, lambda line: None)
    again = table.run(both, tmp_path, True, lambda line: None)
    assert ran == [("race", "itself"), ("race", "tuned"), ("ours", "tuned"), ("theirs", "tuned")]
    assert again[0] == first[0]
    assert len(table.control_fails(again)) == 1
    assert json.dumps(again[1])


def in_turn(ours, theirs):
    """Both sides after three updates each, in the order A B B A A B."""
    ours.prepare()
    a, b = ours.turn(), theirs.turn()
    for turn in (a, b, b, a, a, b):
        turn.go()
    a.stop()
    b.stop()
    return a, b


@pytest.mark.parametrize("objective", TRAINERS)
def test_both_sides_go_the_same_way(model_folder, tmp_path, objective):
    pytest.importorskip("trl")
    ours, theirs = cells.sides_of(small(model_folder, objective=objective), tmp_path)
    a, b = in_turn(ours, theirs)
    begin = {"dpo": 0.693147, "bradley_terry": 0.693147, "kto": 0.5}.get(objective, a.losses[0])
    assert a.losses[0] == pytest.approx(begin, abs=1e-5)
    assert a.losses[2] != pytest.approx(a.losses[0], abs=1e-5)
    assert a.losses == pytest.approx(b.losses, abs=2e-4)
    assert min(a.cpu + b.cpu) > 0


@pytest.mark.parametrize("objective", ["dpo", "ulma"])
def test_the_plain_loop_goes_the_same_way(model_folder, tmp_path, objective):
    ours, theirs = cells.sides_of(small(model_folder, objective=objective, against="plain", k=3), tmp_path)
    a, b = in_turn(ours, theirs)
    assert a.losses[2] != pytest.approx(a.losses[0], abs=1e-4)
    assert a.losses == pytest.approx(b.losses, rel=1e-5)


def test_sampling_is_raced_if_greedy_answers_are_those_of_generate(model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(work.MIXES, "balanced", (20, 6))
    cell = small(model_folder, objective="sample", against="plain", k=3)
    found = cells.race(cell, tmp_path)
    assert len(found["ratios"]) == 2
    assert found["speed"] > 0
    assert "generate" not in table.lines([found])[1]
    together = local.together

    def wrong(*args):
        rows = together(*args)
        rows[0][0][0] += 1
        return rows

    monkeypatch.setattr(local, "together", wrong)
    with pytest.raises(AccordError, match="1 of 4 greedy answers are not those of generate"):
        cells.race(cell, tmp_path)


def test_time_is_fitted_by_tokens_and_attention(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "VOCABULARY", 300)
    monkeypatch.setattr(work, "MIXES", {"balanced": (12, 8)})
    monkeypatch.setattr(scaling, "MIXES", work.MIXES)
    monkeypatch.setattr(scaling, "apart", lambda what, cell: {"peak": 2.0**30 + cell.prompts})
    found = scaling.measure(model_folder, lambda line: None)
    assert len(found["updates"]) == len(found["errors"]) == 6
    assert min(found["weights"]) >= 0
    update = work.draw("balanced", 2, 2, 1, 300, seed=2)[0]
    seen = sum(
        len(p) * (len(p) + 1) / 2 + sum(sum(len(p) + i + 1 for i in range(len(a) - 1)) for a in several)
        for p, several in zip(update.prompts, update.answers, strict=True)
    )
    assert found["updates"][0]["sizes"] == (update.unique, update.trained, seen, 1.0)
    text = "\n".join(scaling.lines(found))
    assert "more data and larger batches: 1.00 times the memory" in text
    assert "16 prompts an update: 1,024 MiB" in text


def test_what_trl_has_not_is_raced_against_the_plain_loop(tmp_path):
    def asked(objectives, against):
        found = table.cells_of(
            table.PRESETS["full"], str(tmp_path), objectives=objectives, mixes=["balanced"], against=against, k=8,
            lora=False, threads=1, updates=3,
        )  # fmt: skip
        return [(c.objective, c.against) for c in found]

    (tmp_path / "config.json").write_text("{}")
    assert asked(["ulma"], []) == [("ulma", "itself"), ("ulma", "plain")]
    with pytest.raises(ConfigError, match="tuned has no ulma; it has bradley_terry, dpo, kto, sft"):
        asked(["ulma"], ["tuned"])
    with pytest.raises(ConfigError, match="plain has no kto; it has dpo, sample, ulma"):
        asked(["kto"], ["plain"])


def test_a_name_that_is_not_there_is_refused(accord):
    code, _, err = accord("bench", "--objective", "dop")
    assert code == 2
    assert "dpo" in err


def test_a_peak_is_that_of_the_process_and_not_of_the_one_that_started_it():
    held = bytearray(1 << 30)
    held[:: 1 << 12] = b"1" * len(held[:: 1 << 12])
    code = "from accord.bench.cell import _resident; print(_resident())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1 << 30 < cells._resident()
