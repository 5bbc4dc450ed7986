"""Accord's side of the race, and how two training loops take turns in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.bench import device
from accord.bench.work import Update
from accord.data.batches import Batch, Corpus, Item, gather
from accord.data.chat import Sequence
from accord.data.records import Record
from accord.data.views import Counts
from accord.engine import models
from accord.engine.reference import Reference
from accord.training import plan
from accord.training.inputs import referenced
from accord.training.loop import Loop, LoopOptions
from accord.training.parallel import Processes
from accord.training.run import parameter_groups, token_budget
from accord.training.start import references_of
from accord.training.state import Checkpoints, Progress
from accord.training.step import Step
from accord.training.watch import Quiet

RATE = 1e-4  # large enough that a wrong gradient shows in the losses of the next updates
ADAM: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-8}


class Over(Exception):  # noqa: N818 - no error: the race is over
    """Ends a training loop from inside."""


@dataclass
class Turn:
    """A training loop in a thread of its own, which goes one update at a time.

    The loop calls `ended(loss)` after each update and is held there; `go` lets it run to the next one. Only one thread
    runs at a time, so the seconds of `device.now` are those of the update.
    """

    name: str
    body: Callable[[Callable[[float], None]], None]
    seconds: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._go, self._held = threading.Semaphore(0), threading.Semaphore(0)
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.body(self.ended)
        except Over:
            pass
        except BaseException as error:  # raised again in `go`
            self._error = error
        self._held.release()

    def ended(self, loss: float) -> None:
        """Called by the loop when an update is done."""
        self.losses.append(loss)
        self._held.release()
        self._go.acquire()
        if self._over:
            raise Over

    def go(self) -> None:
        """One update, timed."""
        began, wall = device.now(), time.perf_counter()
        self._go.release()
        self._held.acquire()
        if self._error is not None:
            raise self._error
        self.seconds.append(device.now() - began)
        self.wall.append(time.perf_counter() - wall)

    def stop(self) -> None:
        self._over = True
        self._go.release()
        self._thread.join()


class _Order:
    """The updates as they were drawn, in place of a schedule."""

    def __init__(self, corpus: Corpus, name: str, updates: list[list[int]]) -> None:
        self.corpus, self.name, self.updates = corpus, name, updates
        self.batch_size = len(updates[0])
        self.examples = sum(map(len, updates))

    def batch(self, step: int) -> Batch:
        return gather(self.corpus, {self.name: self.updates[step % len(self.updates)]})


def corpus_of(updates: list[Update], objective: str, kind: str) -> tuple[Corpus, list[list[int]]]:
    """The updates as a corpus, and which examples each has."""
    records: list[Record] = []
    sequences: list[Sequence] = []
    items: list[Item] = []
    order: list[list[int]] = []
    for update in updates:
        first = len(items)
        places = {}
        for p, (prompt, several) in enumerate(zip(update.prompts, update.answers, strict=True)):
            context = prompt.astype(np.int32)
            for i, answer in enumerate(several[:1] if kind == "Demos" else several):
                places[p, i] = len(sequences)
                sequences.append(Sequence(context, answer.astype(np.int32), np.ones(len(answer), bool)))
        base = len(records)
        records += [Record(prompt=f"{len(records) + p}") for p in range(len(update.prompts))]
        if kind == "Pairs":
            none: dict[str, Any] = {"strength": 1.0, "score_chosen": np.nan, "score_rejected": np.nan}
            for p, i, j in update.pairs():
                roles: dict[str, Any] = {"chosen": places[p, i], "rejected": places[p, j]}
                items.append(Item("Pairs", roles, none, base + p, "bench", 1.0))
        else:
            for p, i in places:
                values: dict[str, Any] = {} if kind == "Demos" else {"value": float(i == 0)}
                items.append(Item(kind, {"response": places[p, i]}, values, base + p, "bench", 1.0))
        order.append(list(range(first, len(items))))
    return Corpus(records, sequences, {objective: items}, Counts()), order


class Ours:
    """A run of Accord on the updates, by its own loop.

    Args:
        precision: fp32, bf16, or auto: what Accord takes by itself.
    """

    def __init__(
        self, model: Path, updates: list[Update], objective: str, *, precision: str = "fp32", lora: bool = False,
        compiled: bool = False, folder: Path, reference: Path | None = None,
    ) -> None:  # fmt: skip
        terms = plan.terms(objective, {})
        term = terms[objective]
        torch.manual_seed(0)
        self.policy = models.load(
            model, device=device.name(), precision=precision, lora=models.LoraOptions() if lora else None,  # type: ignore[arg-type]
            heads=term.heads, compile_layers=compiled,
        )  # fmt: skip
        scorer = self.policy.scorer
        corpus, order = corpus_of(updates, objective, term.feeds_on)
        self.schedule = _Order(corpus, objective, order)
        refs: dict[str, Reference] = references_of(
            str(reference or "start"), "cached", str(folder / "cache"), self.policy, terms, Processes(), fresh=True,
            model=str(model), load={"device": device.name(), "precision": precision},
        ) if term.references else {}  # fmt: skip
        heads = {f"head:{name}": RATE for name in scorer.heads}  # as TRL's learn
        groups, self.rates = parameter_groups(scorer, RATE, heads, 0.0)
        optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True, **ADAM)
        self.step = Step(
            scorer, terms, corpus.records, optimizer, references=refs, budget=token_budget("auto", scorer),
        )  # fmt: skip
        self.folder = folder

    def prepare(self) -> float:
        """The reference pass; its seconds."""
        batches = [self.schedule.batch(i) for i in range(len(self.schedule.updates))]
        wanted = referenced(self.step, batches) if self.step.references else {}
        began = device.now()
        for name, sequences in wanted.items():
            self.step.references[name].prepare(sequences)
        return device.now() - began

    def turn(self, name: str = "accord") -> Turn:
        """Its loop, ready to go."""
        side = self

        def body(ended: Callable[[float], None]) -> None:
            class Watch(Quiet):
                def step(self, step: int, metrics: dict[str, float], speed: float, left: float) -> None:
                    ended(metrics["loss"])

            (side.folder / "examples").mkdir(parents=True, exist_ok=True)
            options = LoopOptions(max_steps=10**6, learning_rates=tuple(side.rates), schedule="constant", warmup=0.0)
            checkpoints = Checkpoints(side.folder / "checkpoints", Processes())
            schedule: Any = side.schedule
            Loop(side.step, schedule, options, side.folder, checkpoints, Processes(), Watch()).run(Progress())

        return Turn(name, body)
