"""What does more of everything cost? Updates of many sizes are timed and fitted, twice the data and larger models
beside them; memory is measured where the data and the batch grow."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from accord.bench import device, shapes
from accord.bench.cell import Cell, vocabulary
from accord.bench.sides import Ours
from accord.bench.table import apart, code_key, ready
from accord.bench.work import MIXES, Update, draw
from accord.data.batches import seeded
from accord.engine.models import free_memory, write_whole
from accord.training import cost
from accord.training.cost import fit

ANSWERS, PROMPTS, COPIES = (2, 4, 8), (2, 4), (1, 2, 4)
PASSES, WINDOW = 3, 4.0
GROWN = ((4, 4), (4, 25), (16, 4))  # prompts of an update, updates
WIDTHS = ("tiny", "smollm2-135m", "smollm2-360m", "smollm2-1.7b")


def times() -> int:
    """A GPU gets as many times the prompts of a CPU, so that micro-batches are full there, too."""
    return 16 if device.name() == "cuda" else 1


def sizes(update: Update) -> cost.Sizes:
    """Unique tokens, trained tokens, pairs of query and key in a layer, and 1."""
    trees = [(len(p), [*map(len, several)]) for p, several in zip(update.prompts, update.answers, strict=True)]
    return cost.sizes(trees, update.trained)


def alike(update: Update, copies: int, words: int) -> Update:
    """As many times the prompts, with answers of the same lengths, in other tokens."""
    rng = seeded(0, "alike", copies)
    return Update(
        [rng.integers(3, words, len(prompt)) for _ in range(copies) for prompt in update.prompts],
        [[rng.integers(3, words, len(a)) for a in several] for _ in range(copies) for several in update.answers],
    )


def timed(model: Path, updates: list[Update], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Seconds of each update, the least of `PASSES`, in another order each time; no reference, so that an update is a
    forward and a backward pass and a step of the optimizer.

    A short one is repeated for `WINDOW` seconds: the least of several moments would be luckier than that of long ones.

    Returns:
        For each also `micros`, its micro-batches, and `met`, its tokens times the weights that they meet, in billions.
    """
    torch.set_num_threads(1)
    numbers = range(len(updates))
    seconds = np.full((PASSES, len(updates)), np.nan)
    orders = (numbers, reversed(numbers), seeded(0, "order").permutation(len(updates)).tolist())
    with tempfile.TemporaryDirectory() as folder:
        precision = "fp32" if device.name() == "cpu" else "auto"
        ours = Ours(model, updates, "simpo", precision=precision, folder=Path(folder))
        trunk, head = ours.policy.model, ours.policy.model.get_output_embeddings().weight
        apart_from = {id(head), id(trunk.get_input_embeddings().weight)}
        body = sum(p.numel() for p in trunk.parameters() if p.ndim == 2 and id(p) not in apart_from)
        ours.step(ours.schedule.batch(0), 0)
        for number, order in enumerate(orders):
            for i in order:
                began, done = device.now(), 0
                while not done or device.now() - began < WINDOW:
                    ours.step(ours.schedule.batch(i), i)
                    done += 1
                seconds[number, i] = (device.now() - began) / done
            say(f"{model.name}: pass {number + 1} of {PASSES}, {seconds[number].sum():.0f} s of work")
        found = [
            {
                "sizes": sizes(u), "seconds": float(seconds[:, i].min()), "passes": seconds[:, i].tolist(),
                "micros": len(ours.step.collect(ours.schedule.batch(i), i).micros),
                "met": (body * u.unique + head.numel() * u.trained) / 1e9,
            }
            for i, u in enumerate(updates)
        ]  # fmt: skip
    del ours, trunk, head
    device.let_go()
    return found


def measure(model: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it."""
    words, many = vocabulary(str(model)), times()
    grid = list(product(MIXES, ANSWERS, [many * p for p in PROMPTS]))
    drawn = [draw(mix, k, p, 1, words, seed=p)[0] for mix, k, p in grid]
    some = draw("balanced", 2, 4 * many, 1, words, seed=4)[0]
    every = timed(model, [*drawn, *(alike(some, copies, words) for copies in COPIES)], say)
    found = [{"mix": m, "k": k, "prompts": p, **f} for (m, k, p), f in zip(grid, every, strict=False)]
    copied = [f["seconds"] for f in every[len(grid) :]]
    weights, errors = fit([(f["sizes"], f["seconds"]) for f in found])
    _, linear = fit([((f["sizes"][0], 0.0, 0.0, 1.0), f["seconds"]) for f in found])
    peaks = {}
    for prompts, updates in GROWN:
        what = f"{many * prompts} prompts an update, {updates} updates"
        say(f"memory, {what} ...")
        peaks[what] = apart("ours", Cell(str(model), against="itself", prompts=many * prompts, updates=updates - 1))[
            "peak"
        ]
    wide = {}
    for shape in WIDTHS:
        free = free_memory(torch.device(device.name())) or 0
        if 2 * 16 * shapes.weights(shape) > free:  # weights, gradients and moments in half of what is free
            say(f"{shape} is left out: there is no room for it")
            continue
        (one,) = timed(shapes.make(shape), [draw("balanced", 2, 2 * many, 1, shapes.SHAPES[shape][0], seed=2)[0]], say)
        wide[shape] = one["seconds"] / one["met"]
    at = {(f["mix"], f["k"], f["prompts"]): f for f in found}

    def grown(mix: str, of: Callable[[dict[str, Any]], float]) -> float:
        return median(of(at[mix, 8, many * p]) / of(at[mix, 2, many * p]) for p in PROMPTS)

    return {
        "machine": device.machine(), "clock": device.kind(), "updates": found,
        "weights": weights.tolist(), "errors": errors.tolist(), "linear": linear.tolist(),
        "answers": {  # the time of 8 answers a prompt over that of 2, and what the unique tokens say
            mix: [grown(mix, lambda f: f["seconds"]), grown(mix, lambda f: f["sizes"][0])] for mix in MIXES
        },
        "twice": [b / a for a, b in pairwise(copied)], "widths": wide, "memory": peaks,
    }  # fmt: skip


def kept(model: str | Path, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The same, as `folder` holds it from the same code, else measured and kept there."""
    file, code = folder / f"scaling-{Path(model).name}.json", code_key(model)
    if not file.exists() or json.loads(file.read_text())["code"] != code:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(measure(ready(model), say) | {"code": code}, indent=1))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """It, for a person."""
    errors, linear = (np.abs(found[what]) for what in ("errors", "linear"))
    a, b, c, d = (1e3 * w for w in found["weights"])
    clock, wide = found["clock"], found["widths"]
    known = [x for name, x in wide.items() if name != "tiny"]
    smallest, *others = found["memory"].values()
    return [
        f"lengths   K  prompts  unique tokens  trained  {clock} s  fitted",
        *(
            f"{f['mix']:<9} {f['k']}  {f['prompts']:<7}  {f['sizes'][0]:<13,.0f}  {f['sizes'][1]:<7,.0f}  "
            f"{f['seconds']:<5.2f}  {1 + e:.2f}"
            for f, e in zip(found["updates"], found["errors"], strict=True)
        ),
        f"{clock} ms = {a:.3f} unique tokens + {b:.3f} trained tokens + {1e6 * c:.0f}e-6 pairs of query and key "
        f"+ {d:.0f}",
        f"off by {np.median(errors):.1%} in the middle, by {errors.max():.1%} at most",
        f"by unique tokens and a constant alone: {np.median(linear):.1%} and {linear.max():.1%}",
        *(
            f"8 answers a prompt take {seconds:.2f} times as long as 2 ({mix}); unique tokens: {tokens:.2f} times"
            for mix, (seconds, tokens) in found["answers"].items()
        ),
        f"twice the prompts of the same lengths: {' and '.join(f'{x:.2f}' for x in found['twice'])} times as long",
        f"{clock} s for a billion weights that meet a token: "
        + ", ".join(f"{x:.3f} ({n})" for n, x in wide.items())
        + (f"; {max(known) / min(known) - 1:.0%} apart but for tiny" if len(known) > 1 else ""),
        *(f"peak memory, {what}: {peak / 2**20:,.0f} MiB" for what, peak in found["memory"].items()),
        f"more data and larger batches: {max(others) / smallest:.2f} times the memory",
    ]
