"""What does more of everything cost? Updates of many sizes are timed and fitted; memory is measured where the data
and the batch grow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from accord.bench import device
from accord.bench.cell import Cell, vocabulary
from accord.bench.sides import Ours
from accord.bench.table import apart
from accord.bench.work import MIXES, Update, draw

ANSWERS, PROMPTS = (2, 4, 8), (2, 4)
GROWN = {"4 prompts an update, 4 updates": (4, 3), "of 25 updates": (4, 24), "16 prompts an update": (16, 3)}


def sizes(update: Update) -> tuple[float, float, float, float]:
    """Unique tokens, trained tokens, pairs of query and key in a layer, and 1."""
    area = 0.0
    for prompt, several in zip(update.prompts, update.answers, strict=True):
        p = len(prompt)
        area += p * (p + 1) / 2 + sum((len(a) - 1) * (p + len(a) / 2) for a in several)
    return float(update.unique), float(update.trained), area, 1.0


def fit(found: list[tuple[tuple[float, float, float, float], float]]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the sizes, none below 0, by least squares of relative errors; and those errors.

    >>> errors = fit([((u, u / 2, u**2, 1.0), 3 * u + 4) for u in (1.0, 2.0, 5.0, 9.0)])[1]
    >>> bool(abs(errors).max() < 1e-9)
    True
    """
    x, seconds = np.array([s for s, _ in found]), np.array([t for _, t in found])
    scale = np.maximum(x.max(0), 1e-300)
    relative = x / scale / seconds[:, None]
    weights, _ = nnls(relative, np.ones(len(x)))
    return weights / scale, relative @ weights - 1


def timed(model: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """CPU seconds of an update of every size, the less of two, in another order each time; no reference, so that an
    update is a forward and a backward pass and a step of the optimizer."""
    torch.set_num_threads(1)
    grid = list(product(MIXES, ANSWERS, PROMPTS))
    updates = [draw(mix, k, p, 1, vocabulary(str(model)), seed=p)[0] for mix, k, p in grid]
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(model, updates, "simpo", precision="fp32", folder=Path(folder))
        seconds = np.full((2, len(grid)), np.nan)
        ours.step(ours.schedule.batch(0), 0)
        for turn, order in enumerate((range(len(grid)), reversed(range(len(grid))))):
            for i in order:
                began = device.now()
                ours.step(ours.schedule.batch(i), i)
                seconds[turn, i] = device.now() - began
            say(f"pass {turn + 1} of 2: {seconds[turn].sum():.0f} s")
    return [
        {"mix": mix, "k": k, "prompts": p, "sizes": sizes(u), "seconds": float(t)}
        for (mix, k, p), u, t in zip(grid, updates, seconds.min(0), strict=True)
    ]


def measure(model: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it."""
    found = timed(model, say)
    weights, errors = fit([(f["sizes"], f["seconds"]) for f in found])
    _, linear = fit([((f["sizes"][0], 0.0, 0.0, 1.0), f["seconds"]) for f in found])
    at = {(f["mix"], f["k"], f["prompts"]): f for f in found}
    peaks = {}
    for what, (prompts, updates) in GROWN.items():
        say(f"memory, {what} ...")
        peaks[what] = apart("ours", Cell(str(model), prompts=prompts, updates=updates))["peak"]
    return {
        "updates": found, "weights": weights.tolist(), "errors": errors.tolist(), "linear": linear.tolist(),
        "answers": {  # the time of 8 answers a prompt over that of 2, and what the unique tokens say
            mix: [
                median(at[mix, 8, p][what] / at[mix, 2, p][what] for p in PROMPTS)
                if what == "seconds"
                else median(at[mix, 8, p]["sizes"][0] / at[mix, 2, p]["sizes"][0] for p in PROMPTS)
                for what in ("seconds", "sizes")
            ]
            for mix in MIXES
        },
        "memory": peaks,
    }  # fmt: skip


def lines(found: dict[str, Any]) -> list[str]:
    """It, for a person."""
    errors, linear = (np.abs(found[what]) for what in ("errors", "linear"))
    a, b, c, d = (1e3 * w for w in found["weights"])
    smallest, *others = found["memory"].values()
    return [
        "lengths   K  prompts  unique tokens  trained  CPU s  fitted",
        *(
            f"{f['mix']:<9} {f['k']}  {f['prompts']:<7}  {f['sizes'][0]:<13,.0f}  {f['sizes'][1]:<7,.0f}  "
            f"{f['seconds']:<5.2f}  {1 + e:.2f}"
            for f, e in zip(found["updates"], found["errors"], strict=True)
        ),
        f"CPU ms = {a:.3f} unique tokens + {b:.3f} trained tokens + {1e6 * c:.0f}e-6 pairs of query and key + {d:.0f}",
        f"off by {np.median(errors):.1%} in the middle, by {errors.max():.1%} at most",
        f"by unique tokens and a constant alone: {np.median(linear):.1%} and {linear.max():.1%}",
        *(
            f"8 answers a prompt take {seconds:.2f} times as long as 2 ({mix}); unique tokens: {tokens:.2f} times"
            for mix, (seconds, tokens) in found["answers"].items()
        ),
        *(f"peak memory, {what}: {peak / 2**20:,.0f} MiB" for what, peak in found["memory"].items()),
        f"more data and larger batches: {max(others) / smallest:.2f} times the memory",
    ]
