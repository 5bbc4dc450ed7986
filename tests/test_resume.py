"""A run that is killed at any moment and started again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import accord
from accord.data.records import Record
from accord.errors import AccordError, ConfigError
from accord.training import parallel
from tests.conftest import mixed_records, pair_records
from tests.processes import command, finish, join, kill, kill_all, start
from tests.test_training import all_records

MIXED = {"pairs": "dpo", "ratings": {"name": "pointwise_dpo", "log_z": "head"}, "labels": "kto"}


@pytest.fixture(scope="module")
def settings(model_folder, tmp_path_factory) -> dict[str, Any]:
    """A run of 10 steps, a checkpoint at every second, but for its output."""
    file = tmp_path_factory.mktemp("data") / "feedback.jsonl"
    file.write_text("".join(r.to_json() + "\n" for r in all_records()))
    return {
        "model": str(model_folder), "data": str(file), "objective": MIXED, "max_steps": 10, "batch_size": 8,
        "save_steps": 2, "eval_steps": 3, "learning_rate": 1e-3, "tokens_per_micro_batch": 120, "device": "cpu",
        "precision": "fp32", "quiet": True, "eval_fraction": 0.2,
    }  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 2, "dropout": 0.2}, "objective": "dpo", "eval_fraction": 0.1},
}


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    """(variant, processes) -> folder of a run that nobody disturbed."""
    done: dict[tuple[str, int], Path] = {}

    def get(variant: str, world: int = 1) -> Path:
        if (variant, world) not in done:
            folder = tmp_path_factory.mktemp("straight") / f"{variant}{world}"
            done[variant, world] = finish(settings | VARIANTS[variant] | {"output": str(folder)}, world)
        return done[variant, world]

    return get


def examples(folder: Path) -> list[dict[str, Any]]:
    rows = [row for file in sorted((folder / "examples").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda r: json.dumps(r))


def assert_same(folder: Path, straight: Path) -> None:
    """Everything but the clock is equal, and nothing half-written lies about."""
    assert (folder / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    files = sorted(p.name for p in (straight / "model").glob("*.safetensors"))
    assert files
    for name in files:
        a, b = load_file(folder / "model" / name), load_file(straight / "model" / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert examples(folder) == examples(straight)
    summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, straight)]
    for s in summaries:
        del s["seconds"]
        s.pop("cost", None)
    assert summaries[0] == summaries[1]
    names = [sorted(p.name for p in (f / "checkpoints").iterdir()) for f in (folder, straight)]
    assert names[0] == names[1]
    steps = [json.loads(line)["step"] for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_what_is_compared_is_not_empty(straight):
    folder = straight("full")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "grad_norm" in r] == list(range(1, 11))
    assert [r["step"] for r in rows if "eval_loss" in r] == [0, 3, 6, 9, 10]
    seen = examples(folder)
    assert [sum(r["step"] == s for r in seen) for s in range(1, 11)] == [8] * 10
    assert (folder / "model" / "heads.safetensors").exists()


def test_dropout_of_adapters_is_real(settings, straight, tmp_path):
    folder = straight("lora")
    plain = settings | VARIANTS["lora"] | {"lora": {"rank": 2}, "output": str(tmp_path / "run")}
    losses = [
        [json.loads(line)["loss"] for line in (f / "metrics.jsonl").read_text().splitlines() if "grad_norm" in line]
        for f in (finish(plain), folder)
    ]
    assert losses[0][0] == pytest.approx(losses[1][0])  # B is zero, so dropout changes nothing yet
    assert losses[0][1:] != pytest.approx(losses[1][1:], rel=1e-3)


@pytest.mark.parametrize(("variant", "seed"), [("full", 0), ("full", 1), ("full", 2), ("lora", 3), ("lora", 4)])
def test_killed_at_random_moments_and_resumed_is_the_straight_run(variant, seed, settings, straight, tmp_path):
    folder = tmp_path / "run"
    given = settings | VARIANTS[variant] | {"output": str(folder)}
    draw = random.Random(seed)
    for moment in sorted(draw.sample(range(14), 4)):  # five folders, each killed four times
        (process,) = start(given)
        while moment and lines(folder) < moment and process.is_alive():
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03 if moment else 0.3))
        kill([process])
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    else:
        finish(given)
    assert_same(folder, straight(variant))


@pytest.mark.parametrize("gone", [("summary.json",), ("summary.json", "model"), ("summary.json", "model", "last row")])
def test_killed_between_the_last_checkpoint_and_the_end(gone, settings, straight, tmp_path):
    reference = straight("full")
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(reference, folder)
    (folder / "summary.json").unlink()
    if "model" in gone:
        shutil.rmtree(folder / "model")
    if "last row" in gone:  # torn in the middle of the final evaluation
        rows = (folder / "metrics.jsonl").read_bytes()
        (folder / "metrics.jsonl").write_bytes(rows[: rows.rindex(b"{") + 40])
    finish(settings | {"output": str(folder)})
    assert_same(folder, reference)


def test_killed_after_the_first_evaluation_and_before_any_checkpoint(settings, straight, tmp_path):
    reference = straight("full")
    folder = tmp_path / "run"
    (folder / "checkpoints" / ".writing-2" / "state").mkdir(parents=True)
    rows = (reference / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:2]))
    (folder / "timing.jsonl").write_text('{"step": 1, "seconds": 1.0, "tokens": 1}\n')
    finish(settings | {"output": str(folder)})
    assert_same(folder, reference)


def test_an_early_stop_stays_stopped_after_a_kill(settings, tmp_path):
    more = {"objective": {"pairs": "sft"}, "patience": 1, "eval_steps": 1, "learning_rate": 0.3, "save_steps": 1}
    folder = finish(settings | more | {"output": str(tmp_path / "run")})
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] == "early stop"
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "summary.json").unlink()
    finish(settings | more | {"output": str(folder)})
    again = json.loads((folder / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}
    assert (folder / "metrics.jsonl").read_bytes() == before


# -- the real command -------------------------------------------------------------------------------------------------


@pytest.fixture
def spoken(settings, tmp_path) -> dict[str, Any]:
    """The settings as words on a command line."""
    return settings | {"objective": json.dumps(MIXED), "output": str(tmp_path / "run")}


def wait_for(process, condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.0005)


def test_the_command_killed_while_it_writes_a_checkpoint_then_politely_stopped(settings, spoken, straight, tmp_path):
    folder = tmp_path / "run"
    process = command(spoken)
    while True:
        wait_for(process, lambda: any((folder / "checkpoints").glob(".writing-*")))
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.01)
        if any((folder / "checkpoints").glob(".writing-[0-9]*")):
            break
        os.kill(process.pid, signal.SIGCONT)
    kill_all(process)

    before, saved = lines(folder), bool(list((folder / "checkpoints").glob("step-*")))
    process = command(spoken | {"quiet": False})
    wait_for(process, lambda: lines(folder) > before)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert ("going on from step" in said) == saved
    assert "run the same command again to go on" in said
    stopped = json.loads((folder / "summary.json").read_text())
    assert stopped["finished"] == "interrupted"
    assert (folder / "checkpoints" / f"step-{stopped['steps']}" / "progress.json").exists()
    assert not (folder / "model").exists()

    finish(settings | {"output": str(folder)})
    assert_same(folder, straight("full"))


def test_torchrun_killed_and_resumed_by_two_processes(settings, spoken, straight, tmp_path):
    reference = straight("full", 2)
    process = command(spoken, world=2)
    wait_for(process, lambda: lines(tmp_path / "run") >= 6)
    kill_all(process)
    finish(settings | {"output": str(tmp_path / "run")}, world=2)
    assert_same(tmp_path / "run", reference)


def test_a_polite_stop_of_two_processes(settings, straight, tmp_path):
    reference = straight("full", 2)
    started = start(settings | {"output": str(tmp_path / "run")}, world=2)
    while lines(tmp_path / "run") < 4:
        time.sleep(0.001)
        assert started[0].is_alive()
    started[1].terminate()  # either process hears it, both stop after the same step
    assert join(started) == [130, 130]
    finish(settings | {"output": str(tmp_path / "run")}, world=2)
    assert_same(tmp_path / "run", reference)


def test_resume_never_and_a_damaged_checkpoint_are_said_plainly(settings, straight, tmp_path):
    import shutil

    from accord import train
    from accord.errors import AccordError, ConfigError

    folder = tmp_path / "run"
    shutil.copytree(straight("full"), folder)
    (folder / "summary.json").unlink()
    given = settings | {"output": str(folder)}
    with pytest.raises(ConfigError, match="holds an unfinished run; resume: auto goes on with it"):
        train(**given, resume="never")
    story = (folder / "data.json").read_text()
    (folder / "data.json").write_text(story[: len(story) // 2])
    with pytest.raises(ConfigError, match=r"data\.json is damaged or breaks off .*: put it back, remove it if"):
        train(**given)
    (folder / "data.json").write_text(story)
    (folder / "checkpoints" / "step-10" / "state" / ".metadata").write_bytes(b"no")
    with pytest.raises(AccordError, match=r"step-10 cannot be read .*Remove it to go on from step-8"):
        train(**given)
    shutil.rmtree(folder / "checkpoints" / "step-10")
    finish(given)
    reference = straight("full")
    assert (folder / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    assert examples(folder) == examples(reference)


def test_an_optimizer_of_another_run_goes_on(model_folder, tmp_path):
    """Full batches at a constant rate: two runs of two updates are one of four if the second has the first's optimizer,
    at rates and betas of its own; with a new one they are not."""
    known = {
        "objective": "sft", "batch_size": 5, "learning_rate": 3e-3, "schedule": "constant", "warmup": 0.0,
        "eval_fraction": 0.0, "device": "cpu", "precision": "fp32", "quiet": True,
    }  # fmt: skip
    demos = [Record(prompt=r.prompt, responses=r.responses[:1]) for r in pair_records(5)]

    def run(name: str, model: object, steps: int, **more: object) -> dict[str, torch.Tensor]:
        accord.train(model, demos, output=str(tmp_path / name), max_steps=steps, **known | more)
        return load_file(tmp_path / name / "model" / "model.safetensors")

    def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return max(float((a[k] - b[k]).abs().max()) for k in a)

    whole, _ = run("whole", str(model_folder), 4), run("half", str(model_folder), 2)
    half = {"model": str(tmp_path / "half" / "model"), "steps": 2}
    assert apart(run("kept", **half, optimizer_from=str(tmp_path / "half")), whole) < 1e-5
    assert apart(run("anew", **half), whole) > 1e-3
    slower = run("slower", **half, optimizer_from=str(tmp_path / "half"), learning_rate=1e-9)
    assert apart(slower, load_file(tmp_path / "half" / "model" / "model.safetensors")) < 1e-7
    with pytest.raises(ConfigError, match="there is no checkpoint in it"):
        run("none", **half, optimizer_from=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="does not fit what is trained here"):
        run("other", **half, optimizer_from=str(tmp_path / "half"), lora={"rank": 2})


def test_records_of_the_fixture_hold_every_kind():
    kinds = {k for r in [*mixed_records(1), *pair_records(1), *all_records()] for k in r.kinds}
    assert {"pairs", "ratings", "labels", "rankings", "demonstrations"} <= kinds


class _Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return (Path.touch, (self.proof,))


@pytest.mark.parametrize("where", ["index", "shard"])
def test_a_checkpoint_runs_no_code(where, model_folder, tmp_path):
    """A run folder that somebody sent: its checkpoint's index, or an entry of its state, is a pickle that acts."""
    given = {"max_steps": 2, "batch_size": 4, "device": "cpu", "precision": "fp32", "quiet": True}
    folder, proof = tmp_path / "run", tmp_path / "proof"
    accord.train(str(model_folder), pair_records(8), output=str(folder), **given)
    (folder / "summary.json").unlink()
    state = folder / "checkpoints" / "step-2" / "state"
    if where == "index":
        (state / ".metadata").write_bytes(pickle.dumps(_Evil(proof)))
        with pytest.raises(AccordError, match="which no checkpoint of ours does"):
            accord.train(str(model_folder), pair_records(8), output=str(folder), **given)
    else:
        planner = parallel._reading(state)["planner"]
        stream = io.BytesIO()
        torch.save(_Evil(proof), stream)
        stream.seek(0)
        with pytest.raises(pickle.UnpicklingError):
            planner.load_bytes(None, stream)
    assert not proof.exists()
