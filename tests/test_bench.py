"""The race against TRL: what it counts, what it refuses, and that it goes on where it stopped."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode

from accord.bench import cell as cells
from accord.bench import device, figures, scaling, shapes, table, work
from accord.bench.baselines import TRAINERS
from accord.bench.sides import Ours, Turn
from accord.errors import AccordError, ConfigError
from accord.sampling import local
from accord.training.step import Step


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
    """Forward and backward over each unique token once, but for most of the last layer, which is computed where trained
    tokens are predicted, as is the head; attention is not counted."""
    update = work.draw("balanced", 3, 2, 1, 300)[0]
    ours = Ours(model_folder, [update], "dpo", folder=tmp_path)
    ours.prepare()
    with FlopCounterMode(display=False) as counter:
        ours.step.backward(ours.step.collect(ours.schedule.batch(0), 0))
    model = ours.policy.model
    body = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)
    last = model.model.layers[-1]
    cut = (*last.mlp.parameters(), last.self_attn.q_proj.weight, last.self_attn.o_proj.weight)
    unread = sum(len(prompt) - 1 for prompt in update.prompts)
    least = 6 * (body * update.unique + model.lm_head.weight.numel() * update.trained)
    least -= 6 * unread * sum(p.numel() for p in cut)
    assert counter.get_total_flops() == pytest.approx(least, rel=1e-9)
    assert least < work.least_work(model, update, "dpo") < 2 * least


def test_a_cell_that_is_stored_is_not_run_again_and_a_control_that_is_uneven_is_named(tmp_path, monkeypatch):
    ran = []

    def measured(what, cell):
        ran.append((what, cell.against))
        return {
            "cell": cells.asdict(cell), "ratio": 1.2, "ratios": [1.1, 1.3], "wall_ratio": 1.0, "speed": 1.0,
            "effective": 2.0,
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
    assert min(a.seconds + b.seconds) > 0


def test_trl_s_batch_changes_its_speed_and_not_its_way(model_folder, tmp_path):
    pytest.importorskip("trl")
    cell = cells.Cell(str(model_folder), prompts=4, updates=2, batch=2)
    assert cell.examples == 4
    ours, theirs = cells.sides_of(cell, tmp_path)
    assert theirs.trainer.args.per_device_train_batch_size == theirs.trainer.args.gradient_accumulation_steps == 2
    a, b = in_turn(ours, theirs)
    assert a.losses == pytest.approx(b.losses, abs=2e-4)


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
    monkeypatch.setattr(work, "MIXES", {"balanced": (12, 8)})
    monkeypatch.setattr(scaling, "MIXES", work.MIXES)
    monkeypatch.setattr(scaling, "apart", lambda what, cell: {"peak": 2.0**30 + cell.prompts})
    monkeypatch.setattr(scaling, "WIDTHS", ("tiny",))
    monkeypatch.setattr(scaling, "WINDOW", 0.02)
    monkeypatch.setitem(shapes.SHAPES, "tiny", (300, 32, 64, 2, 4, 2, True))
    monkeypatch.setattr(scaling, "ready", lambda model: model)
    found = scaling.kept(model_folder, tmp_path, lambda line: None)
    assert len(found["updates"]) == len(found["errors"]) == 6
    assert min(found["weights"]) >= 0
    update = work.draw("balanced", 2, 2, 1, 300, seed=2)[0]
    seen = sum(
        len(p) * (len(p) + 1) / 2 + sum(sum(len(p) + i + 1 for i in range(len(a) - 1)) for a in several)
        for p, several in zip(update.prompts, update.answers, strict=True)
    )
    assert found["updates"][0]["sizes"] == [update.unique, update.trained, seen, 1.0]
    assert [f["seconds"] for f in found["updates"]] == [min(f["passes"]) for f in found["updates"]]
    assert {len(f["passes"]) for f in found["updates"]} == {3}
    assert min(f["micros"] for f in found["updates"]) >= 1
    assert len(found["twice"]) == 2
    assert found["widths"]["tiny"] > 0
    monkeypatch.setattr(scaling, "measure", lambda *args: pytest.fail("it is kept"))
    assert scaling.kept(model_folder, tmp_path, lambda line: None) == found
    text = "\n".join(scaling.lines(found))
    assert "more data and larger batches: 1.00 times the memory" in text
    assert "16 prompts an update, 4 updates: 1,024 MiB" in text


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
    code = "from accord.bench.device import held; print(held()['peak'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 1 << 30 < device.held()["peak"]


@pytest.fixture
def a_gpu(monkeypatch):
    """A GPU as far as the clock and the table ask: its card, its memory, and who waited for it."""
    waited: list[None] = []
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.torch.cuda, "synchronize", lambda: waited.append(None))
    monkeypatch.setattr(device.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(device.torch.cuda, "max_memory_allocated", lambda: 3)
    monkeypatch.setattr(device.torch.cuda, "max_memory_reserved", lambda: 4)
    monkeypatch.setattr(shapes, "free_memory", lambda device: 150 * 10**9)
    return waited


def test_on_a_gpu_the_clock_waits_for_it_and_memory_is_also_what_was_reserved(a_gpu, monkeypatch):
    monkeypatch.setattr(device.time, "process_time", lambda: pytest.fail("CPU seconds say nothing of a GPU"))
    began = device.now()
    assert device.now() > began
    assert len(a_gpu) == 2
    assert device.held() == {"peak": 3.0, "reserved": 4.0}
    assert device.kind() == "GPU"


def test_a_turn_s_seconds_are_those_of_the_device_s_clock(monkeypatch):
    ticks = iter([10.0, 12.5])
    monkeypatch.setattr(device, "now", lambda: next(ticks))
    turn = Turn("one", lambda ended: ended(0.5))
    turn.go()
    assert turn.seconds == [2.5]
    turn.stop()


def test_what_is_left_out_and_what_mfu_is():
    """7 operations a second of 28 by the sheet, of 14 as measured; the two that warm up are slower and not seen."""
    found = work.compared(2, [[9, 9, 1, 1], [9, 9, 2, 3]], [[9, 9, 1, 1], [9, 9, 4, 4]], [7.0] * 4, 14, 28)
    assert found["ratios"] == [2, 3]
    assert found["wall_ratio"] == 4
    assert found["utilisation"] == {"accord": 0.5, "other": pytest.approx((7 / 2 + 7 / 3) / 2 / 14)}
    assert found["mfu"]["accord"] == 0.25
    assert work.compared(0, [[1], [1]], [[1], [1]], [1], 1, None)["mfu"] is None


def test_a_card_is_known_by_its_whole_name():
    known = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA A100-SXM4-80GB": 312e12,
             "NVIDIA H20": None, "Tesla V100": None}  # fmt: skip
    assert {name: device.sheet(name, device.torch.bfloat16) for name in known} == known


def test_tokens_without_sharing_are_those_of_the_pairs_or_of_the_answers():
    update = work.draw("balanced", 3, 2, 1, 100)[0]
    prompts, answers = [len(p) for p in update.prompts], [[len(a) for a in several] for several in update.answers]
    assert update.repeated("dpo") == sum(6 * p + 2 * sum(a) for p, a in zip(prompts, answers, strict=True))
    assert update.repeated("kto") == sum(3 * p + sum(a) for p, a in zip(prompts, answers, strict=True))
    assert update.repeated("sft") == sum(p + a[0] for p, a in zip(prompts, answers, strict=True))


def test_the_cells_of_a_gpu_and_those_that_have_no_room_are_skipped_with_a_word(a_gpu, tmp_path, monkeypatch):
    """Tuned TRL takes the batch that is fastest among those that fit, alone and beside Accord."""

    def asked(preset, model=None, **known):
        return table.cells_of(
            table.PRESETS[preset],
            model,
            objectives=[],
            mixes=["balanced"],
            against=[],
            k=2,
            lora=False,
            threads=1,
            **known,
        )

    every = asked("gpu")
    assert {(c.warm, c.updates, c.prompts) for c in every} == {(5, 20, 64)}
    assert {(c.against, c.batch) for c in every} == {("itself", 0), ("tuned-bf16", 0), ("box", 8)}
    ran = []

    def measured(what, cell):
        ran.append((what, cell.batch))
        if cell.batch == (64 if what == "pace" else 16):
            raise table.NoRoomError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {"cell": cells.asdict(cell), "seconds": 1 / cell.batch}

    monkeypatch.setattr(table, "apart", measured)
    monkeypatch.setattr(shapes, "make", lambda shape: None)
    monkeypatch.setattr(table, "lines", lambda found: [str(f.get("skipped")) for f in found])
    chosen = [c for c in every if c.against == "tuned-bf16" and c.model.endswith(("1.7b", "8b"))]
    found = table.run(chosen, tmp_path, False, lambda line: None)
    assert [(f["cell"]["lora"], f["cell"]["batch"], "skipped" in f) for f in found] == [
        (False, 4, False), (True, 4, False), (True, 4, False), (False, 0, True),
    ]  # fmt: skip
    assert ran[:6] == [("pace", 1), ("pace", 4), ("pace", 16), ("pace", 64), ("race", 16), ("race", 4)]
    assert found[-1]["skipped"] == (
        "two sides take 289 GB before any activation, and 150 GB of the GPU are free"
    )  # 8.03 billion weights, 36 bytes each
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="for a GPU, and there is none here; --model tiny tries them out"):
        asked("gpu")


def test_a_skipped_cell_is_told_below_the_table():
    cell = small("m", against="box")
    text = table.lines([{"cell": cells.asdict(cell), "skipped": "two sides take 9 GB"}])
    assert text[1:] == ["m-dpo-balanced-box-k2-2x2-t1: skipped, two sides take 9 GB"]
    assert table.control_fails([{"cell": cells.asdict(small("m", against="itself")), "skipped": "no"}]) == []


def test_the_cells_of_a_gpu_run_here_with_a_tiny_shape(tmp_path, monkeypatch, accord):
    """`--preset gpu` from the command to the table, adapters in bf16 against TRL's, on a random shape of its kind."""
    pytest.importorskip("trl")
    monkeypatch.setitem(shapes.SHAPES, "mini", (300, 32, 64, 2, 4, 2, True))
    small = replace(table.PRESETS["gpu"], prompts=4, batch=2)
    monkeypatch.setitem(table.PRESETS, "gpu", small)
    monkeypatch.setattr(table, "apart", lambda what, cell: in_here(what, cell, tmp_path / what))
    words = ["bench", "--preset", "gpu", "--model", "mini", "--lora", "--mix", "response", "--updates", "1", "--json"]
    code, out, err = accord(*words, "--against", "box", "--against", "tuned-bf16", "--output", str(tmp_path / "kept"))
    assert code == 0, err
    box, tuned = json.loads(out)
    assert (box["cell"]["batch"], tuned["cell"]["batch"], tuned["cell"]["lora"]) == (2, 0, True)
    assert tuned["losses"]["accord"] == pytest.approx(tuned["losses"]["other"], abs=2e-2)
    assert box["mfu"] is None
    assert box["clock"] == "CPU"
    config = json.loads((shapes.folder_of("mini") / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def in_here(what, cell, folder):
    """A measurement in this process."""
    return cells.race(cell, folder) if what == "race" else cells.memory(cell, folder, what)


def test_twice_the_data_has_twice_the_tokens_of_the_same_lengths():
    update = work.draw("response", 3, 2, 1, 100)[0]
    twice = scaling.alike(update, 2, 100)
    assert [len(p) for p in twice.prompts] == 2 * [len(p) for p in update.prompts]
    assert (twice.unique, twice.trained) == (2 * update.unique, 2 * update.trained)
    assert scaling.sizes(twice)[2] == 2 * scaling.sizes(update)[2]
    assert len({p.tobytes() for p in twice.prompts}) == 4  # another prompt is not shared


def test_a_short_update_is_repeated_until_its_window_is_full(model_folder, monkeypatch):
    """Of a clock that goes on by 1 second whenever it is read: a window of 3 is full behind three updates."""
    ticks = itertools.count()
    monkeypatch.setattr(device, "now", lambda: float(next(ticks)))
    monkeypatch.setattr(scaling, "WINDOW", 3.0)
    done: list[int] = []
    step = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda self, *args: done.append(1) or step(self, *args))
    monkeypatch.setitem(work.MIXES, "balanced", (12, 8))
    (found,) = scaling.timed(model_folder, [work.draw("balanced", 2, 2, 1, 300)[0]], lambda line: None)
    assert len(done) == 1 + 3 * 3  # one warms up, three passes
    assert found["passes"] == [4 / 3] * 3


def test_figures_are_drawn_from_the_numbers_alone_and_are_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    said: list[str] = []
    raced = [
        {"cell": cells.asdict(small("m", against=against)), "ratio": ratio, "ratios": [ratio - 0.5, ratio + 0.5],
         "clock": "CPU"} for against, ratio in (("itself", 1.0), ("tuned", 1.87))
    ]  # fmt: skip
    figures.write(figures.race, raced, tmp_path / "a" / "race", said.append)
    figures.write(figures.race, raced, tmp_path / "b" / "race", said.append)
    drawn = (tmp_path / "a" / "race.svg").read_text()
    assert drawn == (tmp_path / "b" / "race.svg").read_text()
    assert "TRL best tuned, fp32" in drawn
    assert "1.87" in drawn
    assert said == [f"figure: {tmp_path}/{x}/race.svg" for x in "ab"]
    updates = [
        {"mix": mix, "k": k, "sizes": [100.0 * k, 50.0, 9.0, 1.0], "seconds": 0.1 * k}
        for mix in work.MIXES
        for k in (2, 8)
    ]
    grown = {"clock": "CPU", "updates": updates, "errors": [0.01] * 6, "memory": {"4 prompts, 4 updates": 2.0**30}}
    figures.write(figures.scaling, grown, tmp_path / "scaling", said.append)
    drawn = (tmp_path / "scaling.svg").read_text()
    assert all(word in drawn for word in (*work.MIXES, "8 answers a prompt", "within 5%", "4 prompts,"))
    assert len(drawn) < 100_000


def test_without_matplotlib_there_is_a_sentence_and_no_figure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    figures.write(figures.race, [], tmp_path / "race", said.append)
    assert said == ["no figure: figures need matplotlib: pip install 'accord-align[lab]'"]
    assert not list(tmp_path.iterdir())


def test_a_process_that_ran_out_of_memory_is_told_from_one_that_failed(monkeypatch):
    def ending(stderr):
        return lambda *args, **known: subprocess.CompletedProcess(args, 1, "", stderr)

    full = (
        "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\nException ignored in: <x>"
    )
    monkeypatch.setattr(table.subprocess, "run", ending(full))
    with pytest.raises(table.NoRoomError, match="Tried to allocate"):
        table.apart("race", small("m"))
    monkeypatch.setattr(table.subprocess, "run", ending("Traceback\nValueError: no"))
    with pytest.raises(AccordError, match="failed: ValueError: no") as error:
        table.apart("race", small("m"))
    assert not isinstance(error.value, table.NoRoomError)


def test_scaling_is_told_drawn_and_kept(tmp_path, monkeypatch, accord):
    pytest.importorskip("matplotlib")
    updates = [
        {"mix": mix, "k": 2, "prompts": 2, "sizes": [100.0, 50.0, 9.0, 1.0], "seconds": 0.1} for mix in work.MIXES
    ]
    found = {
        "clock": "CPU", "updates": updates, "errors": [0.01] * 3, "linear": [0.02] * 3, "weights": [1e-3] * 4,
        "answers": {"balanced": [3.1, 3.0]}, "twice": [1.99, 2.01],
        "widths": {"tiny": 0.09, "smollm2-135m": 0.08, "smollm2-360m": 0.088},
        "memory": {"4 prompts an update, 4 updates": 2.0**30, "16 prompts an update, 4 updates": 1.1 * 2.0**30},
    }  # fmt: skip
    monkeypatch.setattr(scaling, "measure", lambda model, say: found)
    monkeypatch.setattr(scaling, "ready", lambda model: model)
    code, out, err = accord("bench", "--scaling", "--output", str(tmp_path / "kept"))
    assert code == 0, err
    assert "twice the prompts of the same lengths: 1.99 and 2.01 times as long" in out
    assert "0.088 (smollm2-360m); 10% apart but for tiny" in out
    assert "more data and larger batches: 1.10 times the memory" in out
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"scaling-tiny.json", "scaling.svg", "scaling.png"}
