"""All cells of a race: each in processes of its own, stored when it is done, told as a table."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from accord.bench import device, shapes
from accord.bench.baselines import BASELINES, PLAIN, TRAINERS
from accord.bench.cell import CONTROL, Cell
from accord.engine.models import resolve, write_whole
from accord.errors import AccordError, ConfigError


@dataclass(frozen=True)
class Preset:
    """objectives x mixes x baselines; prompts and updates of a cell; whether memory is measured and A/A is raced.

    models: shapes, and whether adapters are trained; where there are some, it needs a GPU.
    batch: what TRL sees at a time if it is not tuned, its own default; 0: the whole update. compiled: see `Cell`.
    """

    objectives: tuple[str, ...]
    mixes: tuple[str, ...]
    against: tuple[str, ...]
    prompts: int = 8
    updates: int = 6
    memory: bool = True
    models: tuple[tuple[str, bool], ...] = ()
    batch: int = 0
    compiled: bool = False


LARGE = (
    ("smollm2-135m", False), ("llama-3.2-1b", False), ("smollm2-1.7b", False), ("smollm2-1.7b", True),
    ("qwen2.5-3b", True), ("llama-3.1-8b", True), ("llama-3.1-8b", False),
)  # fmt: skip
PRESETS = {
    "ci": Preset(("dpo",), ("balanced",), ("tuned",), prompts=3, updates=2, memory=False),
    "small": Preset(("dpo",), ("balanced",), ("itself", "tuned", "fp32", "box")),
    "full": Preset(
        ("dpo", "kto", "bradley_terry", "sft", "ulma"),
        ("balanced", "prompt", "response"),
        ("itself", "tuned", "tuned-bf16", "fp32", "box"),
    ),
    "gpu": Preset(  # 64 prompts are some 28,000 unique tokens: more than the 16,384 of a micro-batch on a GPU
        ("dpo",),
        ("balanced", "prompt", "response"),
        ("itself", "tuned-bf16", "box"),
        prompts=64,
        batch=8,
        models=LARGE,
        compiled=True,
    ),
}
TRIES = (1, 4, 16, 64)  # examples at a time, among which tuned TRL takes the fastest on a GPU
NO_ROOM = "out of memory"


def folder_of(model: str) -> Path:
    """Where its weights lie, or will lie if it is one of `shapes.SHAPES`."""
    return shapes.folder_of(model) if model in shapes.SHAPES else Path(resolve(model))


def shape_of(folder: str | Path) -> str | None:
    """The shape whose random weights lie there, if it is one."""
    name = Path(folder).name
    return name if name in shapes.SHAPES and shapes.folder_of(name) == Path(folder) else None


def ready(folder: str | Path) -> Path:
    """The folder, with its weights made if they are random."""
    shape = shape_of(folder)
    return shapes.make(shape) if shape else Path(folder)


def cells_of(
    preset: Preset, model: str | None, *, objectives: list[str], mixes: list[str], against: list[str], k: int,
    lora: bool, threads: int, updates: int = 0, compiled: bool | None = None,
) -> list[Cell]:  # fmt: skip
    """The cells, in the order in which they are run; what is named replaces what the preset has.

    An objective that TRL has not is raced against the plain loop. On a GPU more updates warm up, and more are timed.

    Raises:
        ConfigError: an opponent that is named has none of the objectives, or the preset's models ask for a GPU.
    """
    gpu, cells = device.name() == "cuda", []
    if preset.models and not model and not gpu:
        raise ConfigError("these cells are for a GPU, and there is none here; --model tiny tries them out")
    models = ((model or "tiny", lora),) if model or not preset.models else preset.models
    warm, count = (device.WARM, max(device.TIMED, preset.updates)) if gpu else (1, preset.updates)
    for (name, low), objective, mix in product(models, objectives or preset.objectives, mixes or preset.mixes):
        for other in against or (preset.against if objective in TRAINERS else ("itself", "plain")):
            if other != "itself" and objective not in (PLAIN if other == "plain" else TRAINERS):
                having = sorted(PLAIN if other == "plain" else TRAINERS)
                raise ConfigError(f"--against {other} has no {objective}; it has {', '.join(having)}")
            if lora and (other == "plain" or objective == "sample"):
                raise ConfigError(f"--lora: {objective} against {other} is raced without adapters; leave it out")
            alone = preset.batch if other in BASELINES and not BASELINES[other].tuned else 0
            cells.append(
                Cell(
                    str(folder_of(name)), objective, mix, other, k, low or lora, preset.prompts, updates or count,
                    threads, warm, alone, preset.compiled if compiled is None else compiled,
                )
            )  # fmt: skip
    return list(dict.fromkeys(cells))  # with --lora, a shape may stand there twice


def run(cells: list[Cell], folder: Path, memory: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every cell's numbers; one that `folder` holds, made by the same code, is not run again.

    Raises:
        AccordError: a cell failed; what was done before stays, and the same command goes on behind it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for cell in cells:
        file = folder / f"{cell.name}-{code_key(cell.model)}.json"
        if not file.exists():
            say(f"{cell.name} ...")
            try:
                done = _raced(cell)
            except NoRoomError as error:
                found.append({"cell": asdict(cell), "skipped": str(error)})
                say(lines(found[-1:])[-1])
                continue
            if memory and cell.against != "itself" and cell.objective != "sample":
                best = Cell(**done["cell"])
                done["memory"] = {who: apart(who, best) for who in ("ours", "theirs")}
            write_whole(file, json.dumps(done, indent=1))
        found.append(json.loads(file.read_text()))
        say("\n".join(lines(found[-1:])[1:]))
    return found


class NoRoomError(AccordError):
    """A cell does not fit into the memory of the GPU."""


def _raced(cell: Cell) -> dict[str, Any]:
    """One race. On a GPU tuned TRL sees as many examples at a time as make it fastest, if there is room for them.

    Raises:
        NoRoomError: in no way do both sides fit.
    """
    shape = shape_of(cell.model)
    if shape and (why := shapes.lacking(shape, cell.lora)):
        raise NoRoomError(why)
    ready(cell.model)
    tuned = cell.against != "plain" and cell.against in BASELINES and BASELINES[cell.against].tuned
    if device.name() == "cpu" or not tuned or cell.batch:
        return apart("race", cell)
    paces: dict[int, float] = {}
    for batch in TRIES:
        if cell.examples % batch == 0 and (batch > 1 or cell.objective != "kto"):  # one at a time TRL's KTO refuses
            with contextlib.suppress(NoRoomError):
                paces[batch] = apart("pace", replace(cell, batch=batch, warm=1, updates=3))["seconds"]
    for batch in sorted(paces, key=lambda b: paces[b]):
        with contextlib.suppress(NoRoomError):
            return apart("race", replace(cell, batch=batch)) | {"paces": paces}
    raise NoRoomError("both sides together ran out of the GPU's memory")


def code_key(model: str | Path) -> str:
    """Identity of the code whose speed is measured, of what it is raced with, of the machine and of the weights."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(repr(device.machine()).encode(), digest_size=5)
    for wing in ("bench", "engine", "objectives", "training", "data", "sampling"):
        for file in sorted((root / wing).glob("*.py")):
            digest.update(file.read_bytes())
    if not shape_of(model):  # random ones are the same each time
        for file in sorted(Path(model).glob("*.safetensors")):
            digest.update(f"{file} {(known := file.stat()).st_size} {known.st_mtime_ns}".encode())
    return digest.hexdigest()


def apart(what: str, cell: Cell) -> dict[str, Any]:
    """One measurement in a process of its own."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "0"}
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # TRL would spread over several
    environment = os.environ | quiet | {"OMP_NUM_THREADS": str(cell.threads), "CUDA_VISIBLE_DEVICES": one}
    ended = subprocess.run(
        [sys.executable, "-m", "accord.bench.cell", what, json.dumps(asdict(cell))],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["no word"]
        if full := [line for line in said if NO_ROOM in line]:
            raise NoRoomError(full[-1])
        raise AccordError(f"{cell.name} failed: {said[-1]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def control_fails(found: list[dict[str, Any]]) -> list[str]:
    """The A/A races that are not even: then the ratios of this run are void."""
    return [
        f"{Cell(**f['cell']).name}: Accord against itself gives {f['ratio']:.2f}"
        for f in found
        if "skipped" not in f and f["cell"]["against"] == "itself" and abs(f["ratio"] - 1) > CONTROL
    ]


def lines(found: list[dict[str, Any]]) -> list[str]:
    """The table, for a person."""
    done, skipped = [f for f in found if "skipped" not in f], [f for f in found if "skipped" in f]
    models = len({f["cell"]["model"] for f in done}) > 1
    sheets = any(f.get("mfu") for f in done)
    head = [*(["model"] if models else []), "objective", "lengths", "K", "against", f"{device.kind()} x", "from-to",
            "wall x", *(["MFU", "theirs"] if sheets else []), "util", "theirs", "work", "theirs", "tokens/s",
            "unshared/s", "ref x", "memory x"]  # fmt: skip
    rows = [head]
    for f in done:
        cell, used, memory = Cell(**f["cell"]), f["utilisation"], f.get("memory")
        says = BASELINES[cell.against].says if cell.against in BASELINES else "Accord again (control)"
        work, passes, sheet = f.get("products"), f.get("reference", {"accord": 0.0, "other": 0.0}), f.get("mfu")
        paid = min(passes.values()) > 0.01
        what = cell.objective + " lora" * cell.lora + " compiled" * cell.compiled
        rows.append([
            *([Path(cell.model).name] if models else []), what, cell.mix,
            str(cell.k), says, f"{f['ratio']:.2f}", f"{min(f['ratios']):.2f}-{max(f['ratios']):.2f}",
            f"{f['wall_ratio']:.2f}",
            *([f"{sheet[side]:.0%}" if sheet else "-" for side in ("accord", "other")] if sheets else []),
            f"{used['accord']:.0%}", f"{used['other']:.0%}",
            *(f"{work[side]:.2f}" if work else "-" for side in ("accord", "other")),
            f"{f['speed']:,.0f}", f"{f['effective']:,.0f}" if "effective" in f else "-",
            f"{passes['other'] / passes['accord']:.2f}" if paid else "-",
            f"{memory['ours']['peak'] / memory['theirs']['peak']:.2f}" if memory else "-",
        ])  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    return [
        *("  ".join(f"{v:<{w}}" for v, w in zip(r, widths, strict=True)).rstrip() for r in rows),
        *(f"{Cell(**f['cell']).name}: skipped, {f['skipped']}" for f in skipped),
    ]
