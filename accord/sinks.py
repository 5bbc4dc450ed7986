"""Where is a number written? A sink never takes a run down with it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def jsonable(value: Any) -> Any:
    """Numbers that JSON has no name for (NaN, infinities) become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def write_json(path: Path, value: Any) -> None:
    """A whole file or none."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


class JsonLines:
    """A file of JSON lines that is appended to and can be cut back to a step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            for row in rows:
                stream.write(json.dumps(jsonable(row), ensure_ascii=False) + "\n")

    def cut(self, step: int) -> None:
        """Keeps the rows up to and with `step`; a half-written last line goes."""
        if not self.path.exists():
            return
        kept = [row for row in self.read() if row.get("step", 0) <= step]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        JsonLines(temporary).append(kept)
        temporary.touch()
        temporary.replace(self.path)

    def read(self) -> list[dict[str, Any]]:
        """All complete rows."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows


def write_examples(path: Path, rows: list[tuple[int, Any]]) -> None:
    """Trained examples as one Parquet file: step, record, term, source, loss, rewards, margin, log-probs, lengths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(part: str, role: str) -> list[float | None]:
        return [
            getattr(e, part).get(role, getattr(e, part).get("response") if role == "chosen" else None) for _, e in rows
        ]

    chosen, rejected = column("rewards", "chosen"), column("rewards", "rejected")
    table = pa.table(
        {
            "step": [s for s, _ in rows],
            "record": [e.record for _, e in rows],
            "term": [e.term for _, e in rows],
            "source": [e.source for _, e in rows],
            "loss": [e.loss for _, e in rows],
            "rewards_chosen": pa.array(chosen, pa.float64()),
            "rewards_rejected": pa.array(rejected, pa.float64()),
            "margin": pa.array(
                [a - b if a is not None and b is not None else None for a, b in zip(chosen, rejected, strict=True)],
                pa.float64(),
            ),
            "logps_chosen": pa.array(column("logps", "chosen"), pa.float64()),
            "logps_rejected": pa.array(column("logps", "rejected"), pa.float64()),
            "length_chosen": pa.array(column("lengths", "chosen"), pa.float64()),
            "length_rejected": pa.array(column("lengths", "rejected"), pa.float64()),
        }
    )
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    pq.write_table(table, temporary)
    temporary.replace(path)
