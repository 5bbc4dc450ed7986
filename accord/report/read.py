"""What does a run folder hold? Its files as tables. Reads only; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from accord.errors import AccordError
from accord.sinks import JsonLines

ROWS = 500_000  # examples that are looked at, the newest ones
COLUMNS = {
    "step": 0, "record": "", "term": "", "source": "", "loss": np.nan, "rewards_chosen": np.nan,
    "rewards_rejected": np.nan, "margin": np.nan, "logps_chosen": np.nan, "logps_rejected": np.nan,
    "length_chosen": np.nan, "length_rejected": np.nan, "file": "", "line": 0, "text": "", "width": 0.0,
}  # fmt: skip
# columns that tell how often an example was wrong: a long run has many rows
LOOKS = ("step", "record", "margin", "logps_chosen", "logps_rejected", "length_rejected", "file", "line")


@dataclass(frozen=True)
class Examples:
    """Rows of examples as columns [n]; NaN, 0 or an empty text where a row has none."""

    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["step"]) if self.columns else 0

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def take(self, index: np.ndarray) -> Examples:
        return Examples({k: v[index] for k, v in self.columns.items()})

    @property
    def margins(self) -> np.ndarray:
        """Of pairs, by how much chosen is ahead: of rewards, or of log-probs where there are no rewards [n]."""
        return np.where(np.isnan(self["margin"]), self["logps_chosen"] - self["logps_rejected"], self["margin"])

    @property
    def right(self) -> np.ndarray:
        """Of pairs, 1 where chosen is ahead, 0 where rejected is, 1/2 where noise may have decided [n]."""
        margins = self.margins
        return np.where(np.abs(margins) <= self["width"], 0.5, margins > 0)

    @property
    def two(self) -> np.ndarray:
        """Which rows are pairs: they have two lengths; a reward model's have no log-probs [n]."""
        return ~np.isnan(self["length_rejected"])

    @property
    def pairs(self) -> Examples:
        return self.take(np.flatnonzero(self.two)) if len(self) else self

    @classmethod
    def of(cls, files: list[Path], only: Collection[str] = tuple(COLUMNS)) -> Examples:
        """The newest `ROWS` rows of Parquet files, which are named in their order. only: the columns that are read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables: list[Any] = []
        for file in sorted(files, reverse=True):
            try:
                source = pq.ParquetFile(file)
                tables.insert(0, source.read([c for c in source.schema_arrow.names if c in only]))
            except (OSError, pa.ArrowInvalid) as error:
                raise AccordError(
                    f"{file} is damaged ({' '.join(str(error).split())}): remove it to see the rest"
                ) from None
            if sum(t.num_rows for t in tables) >= ROWS:
                break
        if not tables:
            return cls()
        whole = pa.concat_tables(tables, promote_options="default").slice(max(0, sum(map(len, tables)) - ROWS))
        columns = {}
        for name in only:
            without = COLUMNS[name]
            if name not in whole.column_names:  # written before there was such a column
                columns[name] = np.full(len(whole), without, object if without == "" else None)
                continue
            values = whole.column(name).fill_null(without)
            if without == "":  # most texts come again: each is made once
                coded = values.combine_chunks().dictionary_encode()
                columns[name] = np.array(coded.dictionary.to_pylist(), object)[coded.indices.to_numpy()]
            else:
                columns[name] = values.to_numpy()
        return cls(columns)


Curves = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class RunFolder:
    """Everything a run wrote: settings, summary, data story, metrics by step, times, verdicts, answers."""

    path: Path
    config: str
    summary: dict[str, Any]
    data: dict[str, Any]
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    times: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @property
    def name(self) -> str:
        parent = self.path.parent
        return f"{parent.parent.name}, round {self.path.name}" if parent.name == "rounds" else self.path.name or "run"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml as values; empty if it is damaged."""
        try:
            found = yaml.load(self.config, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError:
            found = None
        return found if isinstance(found, dict) else {}

    @cached_property
    def notes(self) -> list[str]:
        """The comments at the head of config.yaml: versions, identity of the policy and of references."""
        return [line[2:] for line in self.config.splitlines() if line.startswith("# ")]

    @property
    def reference(self) -> str:
        """What the policy is compared with, if anything: name and content."""
        return next((n.partition(": ")[2] for n in self.notes if n.startswith("reference ")), "")

    @property
    def scores(self) -> bool:
        """Whether what was trained is a reward model, which scores answers and gives none."""
        return any("rewards/mean" in row and "logps/chosen" not in row for row in self.train[:1])

    @property
    def steps(self) -> int:
        """Updates that are done."""
        return int(self.train[-1]["step"]) if self.train else 0

    @property
    def planned(self) -> int:
        return int(self.settings.get("max_steps") or self.steps)

    @cached_property
    def metrics(self) -> Curves:
        """Training metrics: steps and values of each, NaN where one is null."""
        return curves(self.train)

    @cached_property
    def held_metrics(self) -> Curves:
        """The same of evaluations, without `eval_`."""
        return curves(self.held_out)

    @cached_property
    def newest(self) -> Examples:
        """Trained examples of the last quarter of the steps."""
        files = {f: int(f.stem.split("-")[2]) for f in (self.path / "examples").glob("steps-*-*.parquet")}
        since = max(files.values(), default=0) * 3 // 4
        found = Examples.of([f for f, last in files.items() if last > since])
        return found.take(np.flatnonzero(found["step"] > since)) if len(found) else found

    @cached_property
    def every(self) -> Examples:
        """All trained examples, or the newest `ROWS`: their columns `LOOKS`."""
        return Examples.of([*(self.path / "examples").glob("steps-*-*.parquet")], LOOKS)

    @cached_property
    def evaluations(self) -> list[int]:
        """Steps of which there are held-out examples."""
        return sorted(int(f.stem.split("-")[1]) for f in (self.path / "held_out").glob("step-*.parquet"))

    def held(self, step: int) -> Examples:
        """Held-out examples as they were at `step`."""
        return Examples.of([self.path / "held_out" / f"step-{step:07d}.parquet"])

    @cached_property
    def first(self) -> Examples:
        """Held-out examples of the start."""
        return self.held(self.evaluations[0]) if self.evaluations and self.evaluations[0] == 0 else Examples()

    @cached_property
    def last(self) -> Examples:
        """Held-out examples of the weights that `model/` holds, or of the last evaluation, always after the start."""
        best = self.summary.get("best_step") if self.settings.get("save_best") else None
        after = [s for s in self.evaluations if s > 0]
        found = self.held(best if best in after else after[-1]) if after else Examples()
        return Examples(found.columns | {"width": self._widths(found)}) if len(found) else found

    def _widths(self, found: Examples) -> np.ndarray:
        """How large a margin the noise of the precision makes of none, as the run counted its ties [n]."""
        widths = np.zeros(len(found))
        for term, told in self.summary.get("held_out_accuracy", {}).get("widths", {}).items():
            of = (found["term"] == term) & ~np.isnan(found["margin"])
            tokens = [np.maximum(found[f"length_{side}"][of], 1) for side in ("chosen", "rejected")]
            widths[of] = told["unit"] * np.sqrt(sum(1 / n if told["mean"] else n for n in tokens))
        return widths


def read(path: Path) -> RunFolder:
    """Reads a run folder, finished or not.

    Raises:
        AccordError: it is none, or a file of it is damaged.
    """
    if not (path / "metrics.jsonl").exists() and not (path / "config.yaml").exists():
        if (path / "loop.yaml").exists():
            raise AccordError(f"{path} is a loop: its rounds are the runs, like {path / 'rounds' / '1'}")
        raise AccordError(f"{path} is no run folder: it holds neither config.yaml nor metrics.jsonl")

    def text(name: str) -> str:
        return (path / name).read_text(encoding="utf-8", errors="replace") if (path / name).exists() else ""

    def load(name: str) -> dict[str, Any]:
        try:
            return json.loads(text(name) or "{}")
        except ValueError as error:
            raise AccordError(f"{path / name} is damaged ({error}): remove it to see the rest") from None

    rows = JsonLines(path / "metrics.jsonl").read()
    return RunFolder(
        path,
        text("config.yaml"),
        load("summary.json"),
        load("data.json"),
        [r for r in rows if "grad_norm" in r],
        [r for r in rows if any(k.startswith("eval_") for k in r)],
        JsonLines(path / "timing.jsonl").read(),
        JsonLines(path / "verdicts.jsonl").read(),
        JsonLines(path / "samples.jsonl").read(),
    )


def curves(rows: list[dict[str, Any]]) -> Curves:
    """Numbers by name: the steps that have them, and the numbers, NaN where one is null."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        step = row["step"]
        for key, value in row.items():
            if key in found:
                x, y = found[key]
            else:
                x, y = found[key] = [], []
            x.append(step)
            y.append(value)
    return {
        key.removeprefix("eval_"): (np.array(x), np.array(y, float))  # None becomes NaN
        for key, (x, y) in found.items()
        if key not in ("step", "epoch") and not any(isinstance(v, str) for v in y)
    }


def runs_of(path: Path) -> list[Path]:
    """The run folders that a name on the command line means: itself, those of a sweep's folder, or the rounds of a
    loop's."""
    if not (path / "metrics.jsonl").exists() and (path / "rounds").is_dir():
        rounds = [f for f in (path / "rounds").iterdir() if f.name.isdecimal() and (f / "metrics.jsonl").exists()]
        if rounds:
            return sorted(rounds, key=lambda f: int(f.name))
    if not (path / "sweep.json").exists():
        return [path]
    rows = json.loads((path / "sweep.json").read_text(encoding="utf-8"))["runs"]
    folders = [path / Path(row["folder"]).name for row in rows]
    return [f for f in folders if (f / "metrics.jsonl").exists()]
