"""How much memory and time does training on many rows take?

    python scripts/scale.py 1000000 --model MODEL [--folder runs/scale] [--steps 3]

Writes a file of so many pairs of about 300 characters, once, and trains on it twice: the first time records are read
and kept, the second time they are there. Prints peak memory, time and processor time of each, and the size on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

TEXT = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many"
)


def write(path: Path, rows: int) -> None:
    """Pairs without a meaning, the same ones each time; a prompt comes once."""
    draw, known = random.Random(0), TEXT.split()

    def text(words: int) -> str:
        return " ".join(draw.choices(known, k=words))

    with path.with_suffix(".writing").open("w", encoding="utf-8") as out:
        for number in range(rows):
            row = {"prompt": f"{number}: {text(16)}?", "chosen": text(24), "rejected": text(24)}
            out.write(json.dumps(row) + "\n")
    path.with_suffix(".writing").rename(path)


def size(path: Path) -> float:
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()) / 2**30


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, default=Path("runs/scale"))
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    data, cache = asked.folder / f"pairs-{asked.rows}.jsonl", asked.folder / "cache"
    if not data.exists():
        write(data, asked.rows)
    settings = {
        "model": asked.model, "data": data, "max_steps": asked.steps, "batch_size": 8, "output": asked.folder / "run",
        "overwrite": "true",
    }  # fmt: skip
    command = [sys.executable, "-m", "accord", "train", *(f"{k}={v}" for k, v in settings.items())]
    for which in ("first", "again"):
        began = time.monotonic()
        child = subprocess.Popen(command, env={**os.environ, "ACCORD_CACHE": str(cache)})
        _, status, used = os.wait4(child.pid, 0)
        if status:
            sys.exit(f"{which}: training failed")
        print(
            f"{asked.rows:,} rows, {which}: peak {used.ru_maxrss / 2**20:.2f} GiB, {time.monotonic() - began:,.0f} s "
            f"({used.ru_utime + used.ru_stime:,.0f} s of processor time); file {size(data):.2f} GiB, cache "
            f"{size(cache):.2f} GiB",
            flush=True,
        )
