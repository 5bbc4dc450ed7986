"""A run folder as tables. Reads only; imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import AccordError
from accord.sinks import JsonLines


@dataclass(frozen=True)
class RunFolder:
    """Everything a run wrote: config as text, summary, data story, metrics by step, verdicts, samples."""

    path: Path
    config: str
    summary: dict[str, Any]
    data: dict[str, Any]
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    samples: list[dict[str, Any]]


def read(path: Path) -> RunFolder:
    """Reads a run folder, finished or not.

    Raises:
        AccordError: it is none.
    """
    if not (path / "metrics.jsonl").exists() and not (path / "config.yaml").exists():
        raise AccordError(f"{path} is no run folder: it holds neither config.yaml nor metrics.jsonl")

    def text(name: str) -> str:
        return (path / name).read_text(encoding="utf-8") if (path / name).exists() else ""

    def load(name: str) -> dict[str, Any]:
        return json.loads(text(name)) if text(name) else {}

    rows = JsonLines(path / "metrics.jsonl").read()
    return RunFolder(
        path,
        text("config.yaml"),
        load("summary.json"),
        load("data.json"),
        [r for r in rows if "grad_norm" in r],
        [r for r in rows if any(k.startswith("eval_") for k in r)],
        JsonLines(path / "verdicts.jsonl").read(),
        JsonLines(path / "samples.jsonl").read(),
    )
