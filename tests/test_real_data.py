"""Real preference data and a tiny real model: DPO learns its training pairs; what that gives on held-out pairs is told.

`python -m tests.test_real_data` prints the longer run that LOG.md reports.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch

import accord
from tests.conftest import data_file


def dpo_on_hh(folder: Path, steps: int, limit: int) -> dict:
    """DPO of the tiny model on the first helpful pairs; training loss is measured over the last tenth of the run."""
    from accord.data import sources

    model = data_file("tiny-lm/hf")
    records = sources.load(data_file("hh/helpful-base.test.jsonl.gz"), on_error="skip").records[:limit]
    run = accord.train(
        str(model), records, "dpo", output=str(folder), max_steps=steps, batch_size=32, learning_rate=2e-4,
        max_length=192, eval_fraction=0.25, precision="fp32", device="cpu", quiet=True,
    )  # fmt: skip
    rows = pq.read_table(folder / "examples").to_pylist()
    last = [r["loss"] for r in rows if r["step"] > steps * 0.9]
    return {"training_loss": sum(last) / len(last), **run.summary}


def test_dpo_on_hh_goes_below_log_2_on_its_training_pairs(tmp_path):
    torch.set_num_threads(1)
    found = dpo_on_hh(tmp_path / "hh", steps=30, limit=240)
    assert found["start"]["loss"] == math.log(2) or abs(found["start"]["loss"] - math.log(2)) < 1e-4
    assert found["training_loss"] < math.log(2) - 0.05
    assert 0 <= found["held_out_accuracy"]["low"] <= found["held_out_accuracy"]["mean"]
    assert "longer_is_better" in found


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        out = dpo_on_hh(Path(scratch) / "hh", steps=int(sys.argv[1]) if len(sys.argv) > 1 else 200, limit=2400)
    print(f"training loss over the last tenth {out['training_loss']:.4f} (log 2 = {math.log(2):.4f})")
    for name in ("held_out_accuracy", "longer_is_better"):
        print(name, {k: round(v, 3) for k, v in out[name].items()})
    print(f"{out['seconds']} s")
