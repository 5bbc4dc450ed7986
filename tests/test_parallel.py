"""Two processes draw the curve of one: sharded by FSDP2 over gloo, summed and not averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from accord.data.batches import Corpus, Schedule
from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.views import Counts
from accord.sampling.local import answer
from accord.training import inputs, parallel, plan
from accord.training.run import Run
from accord.training.step import Step
from tests.processes import command, finish, join, start
from tests.test_training import all_records

MIXED = {"pairs": "dpo", "demonstrations": "sft", "ratings": {"name": "pointwise_dpo", "log_z": "head"}}


@pytest.fixture(scope="module")
def settings(model_folder, tmp_path_factory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("data") / "feedback.jsonl"
    file.write_text("".join(r.to_json() + "\n" for r in all_records()))
    return {
        "model": str(model_folder), "data": str(file), "max_steps": 6, "batch_size": 9, "save_steps": 3,
        "learning_rate": 1e-3, "tokens_per_micro_batch": 100, "device": "cpu", "precision": "fp32", "quiet": True,
        "eval_fraction": 0.2,
    }  # fmt: skip


CASES: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo"},
    "kto, other prompts' answers scored first": {"objective": {"labels": "kto"}},
    "bco, the batch scored first": {"objective": {"labels": "bco"}},
    "lora": {"objective": "dpo", "lora": {"rank": 2}},
    "frozen layers": {"objective": "dpo", "freeze_layers": 1},
    "mixed with a head": {"objective": MIXED},
    "live reference": {"objective": "dpo", "reference_mode": "live"},
    "what a live reference gives": {"objective": ["sparsepo_mapo", {"name": "selfie", "extrapolation": 0.5}]},
    "padded": {"objective": "dpo", "layout": "padded"},
    "compiled": {"objective": "dpo", "compile_layers": True},
}


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def size(key: str) -> float:
    """What rounding may be of a number that can be near 0: a difference of log-probs of responses, or of tokens."""
    return 1e-5 if "reward" in key or key.endswith("logratios/pair") else 1e-6 if "logratios" in key else 1e-7


def assert_same_curve(folder: Path, other: Path) -> None:
    """Every metric of every step within 1e-5 of its size (sums of float32 in another order), but of probes, which only
    one process has."""
    a, b = ([{k: v for k, v in r.items() if "probe/" not in k} for r in curve(f)] for f in (folder, other))
    assert len(a) == len(b) >= 6
    for row, wanted in zip(a, b, strict=True):
        assert row.keys() == wanted.keys()
        for key, value in wanted.items():
            assert row[key] == pytest.approx(value, rel=1e-5, abs=size(key)), (key, row["step"])
    for file in (other / "model").glob("*.safetensors"):
        x, y = load_file(folder / "model" / file.name), load_file(file)
        assert x.keys() == y.keys()
        for name in y:
            assert torch.allclose(x[name], y[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, settings, tmp_path):
    one, two = (
        finish(settings | CASES[case] | {"output": f"{tmp_path}/{n}", "reference_cache": f"{tmp_path}/cache{n}"}, n)
        for n in (1, 2)
    )
    assert_same_curve(two, one)


def test_a_checkpoint_of_one_process_goes_on_with_two_and_back(settings, tmp_path):
    """Killed twice by their own limit of steps: 1 process to step 2, 2 processes to step 4, 1 process to the end."""
    given = settings | {"objective": MIXED, "save_steps": 2, "schedule": "constant"}
    straight = finish(given | {"output": str(tmp_path / "straight")})
    folder = str(tmp_path / "run")
    for world, steps in ((1, 2), (2, 4), (1, 6)):
        finish(given | {"output": folder, "max_steps": steps}, world)
        if steps < 6:
            (tmp_path / "run" / "summary.json").unlink()
            rows = [json.dumps(r) + "\n" for r in curve(tmp_path / "run") if r["step"] < steps or "grad_norm" in r]
            (tmp_path / "run" / "metrics.jsonl").write_text("".join(rows))
    assert_same_curve(tmp_path / "run", straight)


def test_torchrun_and_the_command_line(settings, tmp_path):
    given = settings | {"objective": "dpo"}
    one = finish(given | {"output": str(tmp_path / "one")})
    process = command(given | {"output": str(tmp_path / "two"), "quiet": False}, world=2)
    said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said
    assert said.count("6 updates of 9 examples") == 1  # one process speaks
    assert_same_curve(tmp_path / "two", one)


def test_an_error_in_one_process_ends_both(settings, tmp_path):
    codes = join(start(settings | {"objective": "dpo", "batch_size": 1, "output": str(tmp_path / "run")}, 2))
    assert codes == [1, 1]
    assert "less than the" in (tmp_path / "run.log").read_text()


def _say(done: Run, folder: Path) -> None:
    """Samples from the trained policy in every process."""
    chat = Chat(done.policy.tokenizer)
    said = answer(done.policy, chat, [Record(prompt="Say 1"), Record(prompt="Say 2")], samples=2, max_new_tokens=8)
    found = {"ids": [[r.token_ids for r in several] for several in said], "key": done.policy.key}
    (folder / f"said-{parallel.start().rank}.json").write_text(json.dumps(found))


def test_sharded_weights_answer_what_whole_ones_do(settings, tmp_path):
    given = settings | {"objective": "dpo", "max_steps": 2, "learning_rate": 1e-4}
    one = finish(given | {"output": str(tmp_path / "one")}, 1, _say)
    two = finish(given | {"output": str(tmp_path / "two")}, 2, _say)
    alone, first, second = (json.loads(f.read_text()) for f in (
        one / "said-0.json", two / "said-0.json", two / "said-1.json"))  # fmt: skip
    assert first["ids"] == second["ids"] == alone["ids"]
    assert first["key"] == second["key"]


def _sets(done: Run, folder: Path) -> None:
    """Norms of the gradient of every source, over one forward pass."""
    processes = parallel.start()
    terms = plan.terms({"pairs": "simpo", "demonstrations": "sft"}, {})
    counts = Counts()
    chat = Chat(done.policy.tokenizer)
    corpus = Corpus.build(done.records, inputs.view_terms(terms, done.records, counts), chat, counts)
    batch = Schedule(corpus, [inputs.spec(t, done.records) for t in terms.values()], 8, 0).batch(0)
    step = Step(done.policy.scorer, terms, done.records, None, budget=60, processes=processes, partition="term")
    sets, *_ = step.backward(step.collect(batch, 0))
    whole = [[g if g is None or not hasattr(g, "full_tensor") else g.full_tensor() for g in s] for s in sets]
    norms = [[None if g is None else float(g.norm()) for g in s] for s in whole]
    if processes.first:
        (folder / "sets.json").write_text(json.dumps(norms))


def test_sets_of_gradients_are_those_of_one_process(settings, tmp_path):
    given = settings | {"objective": "dpo", "max_steps": 2, "learning_rate": 1e-4}
    one, two = (
        json.loads((finish(given | {"output": f"{tmp_path}/{n}"}, n, _sets) / "sets.json").read_text()) for n in (1, 2)
    )
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
    assert one[0] != pytest.approx(one[1], rel=0.1)
