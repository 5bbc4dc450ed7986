"""What is saved, what is resumed?

A checkpoint is complete or absent: it is written beside its place and renamed when every process has finished.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from accord.engine.models import replace_folder
from accord.errors import AccordError, ConfigError
from accord.sinks import write_json
from accord.training import parallel
from accord.training.step import Step

WRITING = ".writing-"
CHECKPOINT = "checkpoints/step-*/progress.json"


@dataclass
class Progress:
    """Where a run stands. step: updates done. best_*: of the evaluation metric. evals_since_best: for early stopping.
    start: what was measured before the first update. weights: content of the policy at the start and of each reference.
    """

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    evals_since_best: int = 0
    objective_state: dict[str, Any] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Args:
        folder: it.
        keep: how many of the newest stay; the best one stays too.
    """

    def __init__(self, folder: Path, processes: parallel.Processes, keep: int = 2) -> None:
        self.folder, self.processes, self.keep = folder, processes, keep
        if processes.first:
            for half in folder.glob(f"{WRITING}*"):
                shutil.rmtree(half, ignore_errors=True)
        processes.wait()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(
            int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*") if (p / "progress.json").exists()
        )

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def save(self, step: Step, progress: Progress) -> None:
        """Writes `step-N` for the step that `progress` names."""
        assert step.optimizer is not None
        target = self.path(progress.step)
        if target.exists():
            return
        half = self.folder / f"{WRITING}{progress.step}"
        parallel.on_first(self.processes, lambda: half.mkdir(parents=True, exist_ok=True))
        parallel.save_sharded(half / "state", step.scorer, step.optimizer, _moved(step))
        progress.objective_state = _plain(step.objective_state)
        self.processes.wait()

        def finish() -> None:
            write_json(half / "progress.json", asdict(progress))
            replace_folder(half, target)
            for old in self.steps()[: -self.keep]:
                if old != progress.best_step:
                    gone = self.path(old).rename(self.folder / f"{WRITING}{old}")  # absent at once, not half
                    shutil.rmtree(gone, ignore_errors=True)

        parallel.on_first(self.processes, finish)

    def load(self, step: Step, number: int) -> Progress:
        """Weights, optimizer and objective state of `step-number` into `step`; returns where the run stood.

        Raises:
            AccordError: it cannot be read; the other checkpoints are named.
        """
        assert step.optimizer is not None
        path = self.path(number)
        try:
            progress = Progress(**json.loads((path / "progress.json").read_text()))
            parallel.load_sharded(path / "state", step.scorer, step.optimizer, _moved(step))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            others = [f"step-{s}" for s in self.steps() if s != number]
            raise AccordError(
                f"{path} cannot be read ({str(error).splitlines()[0]}). "
                + (f"Remove it to go on from {others[-1]}" if others else "Start anew with overwrite: true")
            ) from error
        step.objective_state = _tensors(progress.objective_state) | {
            k: {} for k in step.terms if k not in progress.objective_state
        }
        return progress


def go_on_with(step: Step, run: str) -> None:
    """Gives `step` the optimizer of another run as its newest checkpoint holds it: moments and counts of updates.

    Raises:
        ConfigError: the run has no checkpoint, or it trained other parameters.
    """
    assert step.optimizer is not None
    found = {int(p.parent.name.removeprefix("step-")): p.parent for p in Path(run).glob(CHECKPOINT)}
    if not found:
        raise ConfigError(f"optimizer_from={run}: there is no checkpoint in it; name the folder of a run that has some")
    path = found[max(found)]
    try:
        parallel.load_optimizer(path / "state", step.scorer, step.optimizer)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer_from={run}: {path.name} does not fit what is trained here ({str(error).splitlines()[0]}); name "
            "a run of the same model, with the same heads and adapters"
        ) from error


UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Whatever is written of a run within.

    Raises:
        AccordError: the disk is full, or may not be written; what lay there before is whole.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in UNWRITABLE:
            raise
        kept = max((int(p.parent.name.removeprefix("step-")) for p in folder.glob(CHECKPOINT)), default=None)
        raise AccordError(
            f"{folder} cannot be written any more ({error}). Make room, and run the same command again: it "
            + ("begins anew, for there is no checkpoint yet" if kept is None else f"goes on from step {kept}")
        ) from error


def _moved(step: Step) -> parallel.Beside:
    """Weights of the references that follow the policy."""
    return {name: ref.moving.weights for name, ref in step.references.items() if ref.moving is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"tensor", "dtype"}:
            return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
        return {k: _tensors(v) for k, v in value.items()}
    return [_tensors(v) for v in value] if isinstance(value, list) else value
