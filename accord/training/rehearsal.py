"""What would a run take? Measured on some of its updates; no weight is changed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from accord.data.batches import Batch, Micro
from accord.data.chat import Sequence
from accord.training.cost import Law, Sizes, looked_at
from accord.training.inputs import referenced
from accord.training.step import Step
from accord.training.watch import clock

LEAST, MOST, LONG = 2, 8, 20.0  # updates that are timed, and seconds after which that is enough
SPREAD = (1.0, 0.5, 0.0, 0.75, 0.25, 0.9, 0.1, 0.6)  # which ones: from the least work (0) to the most


@dataclass
class Estimate:
    """Seconds and bytes of a run; activations are those that the backward pass of the largest micro-batch keeps.

    off: how far a timed update was from what the others said of it, the root of the mean square; None of a single one.
    """

    steps: int
    step_seconds: float
    off: float | None
    reference_seconds: float
    evaluation_seconds: float
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds + self.reference_seconds + self.evaluation_seconds

    @property
    def memory(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": self.seconds, "memory": self.memory}

    def lines(self) -> list[str]:
        """What a person is told."""
        parts = [f"{self.steps:,} updates of {self.step_seconds:.2g} s"]
        if self.off is not None:
            parts[0] += f", each within {100 * self.off:.0f} %"
        for name, value in (("references", self.reference_seconds), ("evaluation", self.evaluation_seconds)):
            if value:
                parts.append(f"{name} {clock(value)}")
        sizes = ("weights", "gradients", "optimizer", "activations")
        of_them = ", ".join(f"{name} {_size(getattr(self, name))}" for name in sizes)
        return [
            f"time: about {clock(self.seconds)} ({', '.join(parts)})",
            f"memory: about {_size(self.memory)} ({of_them}), beside Python, its libraries and the data (over 0.5 GiB)",
        ]


def _size(n: int) -> str:
    """
    >>> _size(3 << 29), _size(1 << 20)
    ('1.5 GiB', '1 MiB')
    """
    return f"{n / 2**30:.1f} GiB" if n >= 1 << 28 else f"{n / 2**20:.0f} MiB"


def rehearse(
    step: Step, batches: Seq[Batch], wanted: dict[str, Seq[Sequence]], held_out: Seq[Batch], evaluations: int
) -> Estimate:
    """Times updates of different sizes at a learning rate of 0, and a forward pass; the law that fits them says what
    the others take.

    Args:
        batches: those of the run, in order.
        wanted: what each reference has to score for them.
        held_out: one evaluation; evaluations: how many there will be.
    """
    work, rates = step.work, dict.fromkeys(range(len(step.optimizer.param_groups)) if step.optimizer else (), 0.0)
    size = max(1, sum(len(term) for term in batches[0].terms.values()))
    numbers, sizes = looked_at(batches.__getitem__, 0, len(batches), size, work)
    order = numbers[np.argsort(sizes @ work.rates)]
    chosen = dict.fromkeys(int(order[round(at * (len(order) - 1))]) for at in SPREAD)
    found: list[tuple[Sizes, float]] = []
    began = time.monotonic()
    for number in (*itertools.islice(chosen, 1), *chosen):  # the first warms up
        batch = batches[number]
        for name, sequences in referenced(step, [batch]).items():
            step.references[name].prepare(sequences)
        start = time.monotonic()
        step(batch, number, rates)
        found.append((work.sizes(batch.sequences), time.monotonic() - start))
        if len(found) > LEAST and step.processes.any(time.monotonic() - began > LONG):
            break
    del found[0]
    law = Law.of(found, work.rates)
    batch = batches[next(iter(chosen))]
    collected = step.collect(batch, 0)
    with torch.no_grad():
        start = time.monotonic()
        for micro in collected.micros:
            step.score(micro)
        forward = (time.monotonic() - start) / sum(
            work.of(collected.batch.sequences[i] for i in micro.sequences) for micro in collected.micros
        )
    asked = sum(
        work.of(step.references[name].missing(sequences).values())
        for name, sequences in wanted.items()
        if step.references[name].mode == "cached"
    )
    evaluated = sum(work.of(b.sequences) for b in held_out)
    trained = step.parameters
    gradients = sum(p.numel() * p.element_size() for p in trained)
    return Estimate(
        len(batches),
        float(np.interp(np.arange(len(batches)), numbers, law.seconds(sizes)).mean()),
        left_out(found, work.rates),
        forward * asked,
        forward * evaluated * evaluations,
        sum(p.numel() * p.element_size() for p in step.scorer.parameters()),
        gradients,
        2 * gradients,  # AdamW's two moments
        _kept(step, max(collected.micros, key=lambda m: m.tokens.size)),
    )


def left_out(found: list[tuple[Sizes, float]], likely: np.ndarray) -> float | None:
    """How far each update is from what the law of the others says, relatively: the root of the mean square."""
    if len(found) < 2:
        return None
    apart = [
        float(Law.of(found[:i] + found[i + 1 :], likely).seconds(np.array(sizes))) / seconds - 1
        for i, (sizes, seconds) in enumerate(found)
    ]
    return math.sqrt(sum(e * e for e in apart) / len(apart))


def _kept(step: Step, micro: Micro) -> int:
    """Bytes that the backward pass of one micro-batch needs beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in step.scorer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        step.score(micro)
    return sum(kept.values())
