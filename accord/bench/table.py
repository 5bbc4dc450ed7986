"""All cells of a race: each in processes of its own, stored when it is done, told as a table."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from accord.bench.baselines import BASELINES, PLAIN, TRAINERS
from accord.bench.cell import CONTROL, Cell
from accord.bench.work import random_model
from accord.data.store import cache_root
from accord.engine.models import resolve, write_whole
from accord.errors import AccordError, ConfigError


@dataclass(frozen=True)
class Preset:
    """objectives x mixes x baselines; prompts and updates of a cell; whether memory is measured and A/A is raced."""

    objectives: tuple[str, ...]
    mixes: tuple[str, ...]
    against: tuple[str, ...]
    prompts: int = 8
    updates: int = 6
    memory: bool = True


PRESETS = {
    "ci": Preset(("dpo",), ("balanced",), ("tuned",), prompts=3, updates=2, memory=False),
    "small": Preset(("dpo",), ("balanced",), ("itself", "tuned", "fp32", "box")),
    "full": Preset(
        ("dpo", "kto", "bradley_terry", "sft", "ulma"),
        ("balanced", "prompt", "response"),
        ("itself", "tuned", "tuned-bf16", "fp32", "box"),
    ),
}


def folder_of(model: str) -> Path:
    """Where its weights lie; those of `tiny` are made."""
    return random_model(cache_root() / "bench" / "tiny") if model == "tiny" else Path(resolve(model))


def cells_of(
    preset: Preset, model: str, *, objectives: list[str], mixes: list[str], against: list[str], k: int, lora: bool,
    threads: int, updates: int = 0,
) -> list[Cell]:  # fmt: skip
    """The cells, in the order in which they are run; what is named replaces what the preset has.

    An objective that TRL has not is raced against the plain loop.

    Raises:
        ConfigError: an opponent that is named has none of the objectives.
    """
    folder, cells = str(folder_of(model)), []
    for objective, mix in product(objectives or preset.objectives, mixes or preset.mixes):
        for other in against or (preset.against if objective in TRAINERS else ("itself", "plain")):
            if other != "itself" and objective not in (PLAIN if other == "plain" else TRAINERS):
                having = sorted(PLAIN if other == "plain" else TRAINERS)
                raise ConfigError(f"--against {other} has no {objective}; it has {', '.join(having)}")
            cells.append(
                Cell(folder, objective, mix, other, k, lora, preset.prompts, updates or preset.updates, threads)
            )
    return cells


def run(cells: list[Cell], folder: Path, memory: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every cell's numbers; one that `folder` holds, made by the same code, is not run again.

    Raises:
        AccordError: a cell failed; what was done before stays, and the same command goes on behind it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for cell in cells:
        file = folder / f"{cell.name}-{_code()}.json"
        if not file.exists():
            say(f"{cell.name} ...")
            done = apart("race", cell)
            if memory and cell.against != "itself" and cell.objective != "sample":
                done["memory"] = {who: apart(who, cell) for who in ("ours", "theirs")}
            write_whole(file, json.dumps(done, indent=1))
        found.append(json.loads(file.read_text()))
        say("\n".join(lines(found[-1:])[1:]))
    return found


def _code() -> str:
    """Identity of the code whose speed is measured."""
    root = Path(__file__).parents[1]
    digest = hashlib.blake2b(digest_size=5)
    for wing in ("bench", "engine", "training", "data", "sampling"):
        for file in sorted((root / wing).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def apart(what: str, cell: Cell) -> dict[str, Any]:
    """One measurement in a process of its own."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "0"}
    environment = os.environ | quiet | {"OMP_NUM_THREADS": str(cell.threads), "CUDA_MODULE_LOADING": "LAZY"}
    ended = subprocess.run(
        [sys.executable, "-m", "accord.bench.cell", what, json.dumps(asdict(cell))],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise AccordError(f"{cell.name} failed: {(ended.stderr.strip().splitlines() or ['no word'])[-1]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def control_fails(found: list[dict[str, Any]]) -> list[str]:
    """The A/A races that are not even: then the ratios of this run are void."""
    return [
        f"{Cell(**f['cell']).name}: Accord against itself gives {f['ratio']:.2f}"
        for f in found
        if f["cell"]["against"] == "itself" and abs(f["ratio"] - 1) > CONTROL
    ]


def lines(found: list[dict[str, Any]]) -> list[str]:
    """The table, for a person."""
    head = ["objective", "lengths", "K", "against", "CPU x", "from-to", "wall x", "util", "theirs", "work", "theirs",
            "tokens/s", "ref x", "memory x"]  # fmt: skip
    rows = [head]
    for f in found:
        cell, used, memory = Cell(**f["cell"]), f["utilisation"], f.get("memory")
        says = BASELINES[cell.against].says if cell.against in BASELINES else "Accord again (control)"
        work, passes = f.get("products"), f.get("reference", {"accord": 0.0, "other": 0.0})
        paid = min(passes.values()) > 0.01
        rows.append([
            cell.objective + (" lora" if cell.lora else ""), cell.mix, str(cell.k), says, f"{f['ratio']:.2f}",
            f"{min(f['ratios']):.2f}-{max(f['ratios']):.2f}", f"{f['wall_ratio']:.2f}", f"{used['accord']:.0%}",
            f"{used['other']:.0%}", *(f"{work[side]:.2f}" if work else "-" for side in ("accord", "other")),
            f"{f['speed']:,.0f}", f"{passes['other'] / passes['accord']:.2f}" if paid else "-",
            f"{memory['ours']['peak'] / memory['theirs']['peak']:.2f}" if memory else "-",
        ])  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    return ["  ".join(f"{v:<{w}}" for v, w in zip(r, widths, strict=True)).rstrip() for r in rows]
