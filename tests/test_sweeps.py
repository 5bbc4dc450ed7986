"""Which value is best? Runs of a sweep, their folders, their table."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import accord
from accord import config
from accord.errors import ConfigError
from tests.conftest import pair_records
from tests.test_training import TINY

GIVEN = {"max_steps": 2, "batch_size": 4, **TINY}


def test_every_combination_has_a_folder_and_a_row_and_shares_the_reference(model_folder, tmp_path):
    given = {"model": str(model_folder), "data": pair_records(12), "reference_cache": str(tmp_path / "cache")}
    values = {"beta": [0.1, 0.5], "learning_rate": [1e-3, 1e-2]}
    rows = accord.sweep(values, output=tmp_path / "s", **GIVEN, **given)
    assert [(r["beta"], r["learning_rate"]) for r in rows] == [(0.1, 1e-3), (0.1, 1e-2), (0.5, 1e-3), (0.5, 1e-2)]
    assert {r["finished"] for r in rows} == {"done"}
    assert len({r["eval_rewards/margins"] for r in rows}) == 4
    assert json.loads((tmp_path / "s" / "sweep.json").read_text()) == {"varied": list(values), "runs": rows}
    (cache,) = (tmp_path / "cache").iterdir()  # one reference
    assert len(list(cache.glob("*.safetensors"))) == 1  # computed by the first run alone
    assert (tmp_path / "s" / "beta=0.5,learning_rate=0.001" / "model").exists()


def test_a_sweep_goes_on_where_it_stopped(model_folder, tmp_path):
    settings = GIVEN | {"model": str(model_folder), "data": pair_records(12), "objective": "dpo"}
    first = accord.sweep({"beta": [0.1]}, output=tmp_path, **settings)
    made = (tmp_path / "beta=0.1" / "summary.json").stat().st_mtime_ns
    rows = accord.sweep({"beta": [0.1, 0.2]}, output=tmp_path, **settings)
    assert (tmp_path / "beta=0.1" / "summary.json").stat().st_mtime_ns == made
    assert rows[0] == first[0]
    assert [r["finished"] for r in rows] == ["done", "done"]


def test_a_run_that_fails_does_not_end_the_sweep(model_folder, tmp_path):
    models = [str(tmp_path / "nowhere"), str(model_folder)]
    rows = accord.sweep({"model": models}, output=tmp_path / "s", data=pair_records(12), **GIVEN)
    assert [r["finished"] for r in rows] == ["failed", "done"]
    assert "there is no such folder" in rows[0]["error"]


def test_a_sweep_over_nothing_or_over_one_value_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="several values, like beta"):
        accord.sweep({}, output=tmp_path)
    with pytest.raises(ConfigError, match="beta has the same value twice"):
        accord.sweep({"beta": [0.1, 0.1]}, output=tmp_path)


def test_lists_and_files_are_not_swept():
    given = config.parse(["data=a,b.jsonl", "lora.target_modules=[q_proj, v_proj]", "objective=dpo,ipo", "seed=0,1"])
    left, values = config.several(given)
    assert left == {"data": "a,b.jsonl", "lora": {"target_modules": ["q_proj", "v_proj"]}}
    assert values == {"objective": ["dpo", "ipo"], "seed": [0, 1]}


def test_on_the_command_line(model_folder, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(r.to_json() + "\n" for r in pair_records(12)))
    words = [
        "train", f"model={model_folder}", f"data={file}", "lora.rank=2,4", "max_steps=2", "batch_size=4", "device=cpu",
        "quiet=true", f"output={tmp_path / 'sweep'}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "accord"]
    said = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    for text in ("lora.rank", "loss", "rewards/accuracies", "done", "2 runs in"):
        assert text in said.stdout, said.stdout
    wrong = subprocess.run([*command, *words, "beta=0.1,x"], capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert not (tmp_path / "sweep" / "lora.rank=2,beta=0.1").exists()


def test_every_value_is_checked_before_the_first_run(model_folder, tmp_path):
    given = GIVEN | {"model": str(model_folder), "data": pair_records(12)}
    del given["max_steps"]
    with pytest.raises(ConfigError, match=r"learning_rate=1000\.0 must lie between 0 and 1"):
        accord.sweep({"learning_rate": [1e-5, 1e3]}, output=tmp_path / "s", max_steps=1, **given)
    assert not (tmp_path / "s").exists()


def test_a_sweep_is_rehearsed_too(model_folder, tmp_path):
    rows = accord.sweep(
        {"beta": [0.1, 0.2]},
        output=tmp_path / "s",
        model=str(model_folder),
        data=pair_records(12),
        dry_run=True,
        **GIVEN,
    )
    assert [r["finished"] for r in rows] == ["dry run"] * 2
    assert all(r["seconds"] > 0 for r in rows)
    assert not (tmp_path / "s").exists()
