"""Tables of a run as one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from accord.report.read import RunFolder, read

CURVES = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
    "grad_norm",
)
WIDTH, HEIGHT = 340, 130


def write_report(folder: Path) -> Path:
    """Writes report.html into a run folder and returns its path."""
    run = read(folder)
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("report.html")
    target = folder / "report.html"
    temporary = folder / ".report.html.writing"
    temporary.write_text(page.render(run=run, curves=curves(run), name=folder.name), encoding="utf-8")
    temporary.replace(target)
    return target


def curves(run: RunFolder) -> list[dict[str, Any]]:
    """One drawing for each metric that matters: the training line, and held-out points where there are any."""
    found = []
    for metric in CURVES:
        for key in dict.fromkeys(k for row in run.train for k in row if k == metric or k.endswith("/" + metric)):
            line = [(r["step"], r[key]) for r in run.train if r.get(key) is not None]
            points = [(r["step"], r[f"eval_{key}"]) for r in run.held_out if r.get(f"eval_{key}") is not None]
            if len(line) > 1:
                found.append(_drawing(key, line, points))
    return found


def _drawing(key: str, line: list[tuple[int, float]], points: list[tuple[int, float]]) -> dict[str, Any]:
    xs = [x for x, _ in line + points]
    ys = [y for _, y in line + points]
    low, high = min(ys), max(ys)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(46 + (x - first) / (last - first) * (WIDTH - 56), 1),
            round(8 + (high - y) / (high - low) * (HEIGHT - 30), 1),
        )

    return {
        "name": key,
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "first": first,
        "last": last,
        "path": " ".join(f"{x},{y}" for x, y in (place(*p) for p in line)),
        "points": [place(*p) for p in points],
        "width": WIDTH,
        "height": HEIGHT,
    }
