"""When do we log, evaluate, save, stop?"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from accord.data.batches import Batch, Schedule
from accord.errors import ConfigError
from accord.monitors.table import INFORMS, Panel
from accord.sinks import JsonLines
from accord.training.cost import Clock, tokens
from accord.training.parallel import Processes
from accord.training.probes import NoProbes, Probes
from accord.training.state import Checkpoints, Progress
from accord.training.step import Step
from accord.training.terms import Example, add_metrics, reduced
from accord.training.trail import Trail
from accord.training.watch import asked_to_stop


@dataclass(frozen=True)
class LoopOptions:
    """How long, how often, when to stop."""

    max_steps: int
    learning_rates: tuple[float, ...]
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    eval_steps: int | None = None
    save_steps: int | None = None
    examples_steps: int = 50
    patience: int | None = None
    best_metric: str = "eval_loss"
    on_verdict: Literal["warn", "stop", "nothing"] = "warn"
    target_kl: float = math.inf


def rate_factor(step: int, options: LoopOptions) -> float:
    """Share of the peak learning rate at update `step` (from 0): linear warm-up, then the schedule down to 0.

    >>> o = LoopOptions(max_steps=10, learning_rates=(1.0,), schedule="linear", warmup=0.2)
    >>> [round(rate_factor(s, o), 3) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    warm = math.ceil(options.warmup * options.max_steps)
    if step < warm:
        return (step + 1) / warm
    if options.schedule == "constant":
        return 1.0
    done = (step - warm) / max(1, options.max_steps - warm)
    return 1.0 - done if options.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class Watcher(Protocol):
    """Whoever shows progress to the user."""

    def step(self, step: int, metrics: dict[str, float], speed: float, left: float) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Finished:
    """Why the loop ended: `done`, `early stop`, `interrupted` or `verdict`."""

    reason: str
    progress: Progress
    last: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    held: list[Example] = field(default_factory=list)


class Loop:
    """Runs steps from where `progress` stands until the end, writing the run folder as it goes."""

    def __init__(
        self,
        step: Step,
        schedule: Schedule,
        options: LoopOptions,
        folder: Path,
        checkpoints: Checkpoints,
        processes: Processes,
        watcher: Watcher,
        held_out: list[Batch] | None = None,
        panel: Panel | None = None,
        held_step: Step | None = None,
        probes: Probes | NoProbes | None = None,
    ) -> None:
        self.held_step = held_step or step
        self.step, self.schedule, self.options, self.folder = step, schedule, options, folder
        self.checkpoints, self.processes, self.watcher = checkpoints, processes, watcher
        self.held_out, self.panel = held_out or [], panel or Panel(())
        self.probes = probes or NoProbes()
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.timing = JsonLines(folder / "timing.jsonl")
        self.verdicts = JsonLines(folder / "verdicts.jsonl")
        self.trail = Trail(folder, step.records, self.held_step.records, processes)
        self.evaluated: set[int] = set()  # steps whose evaluation stands in metrics.jsonl
        self.halted = False  # by a verdict

    def run(self, progress: Progress) -> Finished:
        """Trains; returns why it ended. On SIGINT or SIGTERM the step is finished and saved first."""
        last = self._cut(progress.step)
        evaluation: dict[str, float] = {}
        reason = "verdict" if self.halted else "early stop" if self._impatient(progress) else "done"
        self.clock = Clock(self.schedule, self.step.work, self.options.max_steps, self.options.eval_steps)
        if progress.step == 0 and self.held_out:
            self.evaluate(0)
        with asked_to_stop() as stop:
            while reason == "done" and progress.step < self.options.max_steps:
                number = progress.step
                factor = rate_factor(number, self.options)
                rates = {i: factor * r for i, r in enumerate(self.options.learning_rates)}
                batch = self.schedule.batch(number)
                self.probes.before(batch, number)
                start, busy = time.monotonic(), time.process_time()
                result = self.step(batch, number, rates, number / self.options.max_steps)
                progress.step += 1
                elapsed, busy = time.monotonic() - start, time.process_time() - busy
                last = reduced(result.metrics) | {"grad_norm": result.grad_norm, "learning_rate": rates[0]}
                last |= self.probes.after()
                row = {"step": progress.step, "epoch": self.epoch(progress.step), **last}
                self.trail.add(progress.step, batch, result.examples)
                if self.processes.first:
                    self.metrics.append([row])
                    times = {"seconds": elapsed, "tokens": tokens(batch.sequences), "processor": busy}
                    self.timing.append([{"step": progress.step, **times, **self.probes.cost()}])
                self.watcher.step(progress.step, last, *self.clock.tell(progress.step, batch, elapsed))
                self._hear(progress.step, row)
                if self._due(self.options.eval_steps, progress.step) and self.held_out:
                    evaluation, _ = self.evaluate(progress.step)
                    if self._judge(progress, evaluation):
                        reason = "early stop"
                if any(v > self.options.target_kl for k, v in last.items() if k.endswith("kl/old")):
                    reason = "early stop"
                stopping = self.processes.any(stop.is_set())
                if reason == "done" and (stopping or self.halted):
                    reason = "interrupted" if stopping else "verdict"
                ended = reason != "done" or progress.step == self.options.max_steps
                if ended or self._due(self.options.save_steps, progress.step) or progress.best_step == progress.step:
                    self.trail.flush()
                    self.checkpoints.save(self.step, progress)
                elif progress.step % self.options.examples_steps == 0:
                    self.trail.flush()
        self.trail.flush()
        held: list[Example] = []
        if self.held_out and reason != "interrupted":
            evaluation, held = self.evaluate(progress.step)
        return Finished(reason, progress, last, evaluation, held)

    def epoch(self, step: int) -> float:
        return round(step * self.schedule.batch_size / max(1, self.schedule.examples), 4)

    def evaluate(self, step: int, *, write: bool = True) -> tuple[dict[str, float], list[Example]]:
        """Metrics over the held-out batches, under `eval_` names, and their examples (alike in every process)."""
        self.held_step.objective_state = self.step.objective_state
        with self.clock.evaluation():
            values, examples = evaluated(self.held_step, self.held_out)
        if write and step not in self.evaluated:
            if self.processes.first:
                self.trail.evaluated(step, self.held_out, examples)
                self.metrics.append([{"step": step, **values}])
            self.evaluated.add(step)
            self._hear(step, values)
        return values, examples

    def _cut(self, step: int) -> dict[str, float]:
        """Cuts what was written back to `step`; gives the last metrics left. Monitors see again what they saw."""
        if self.processes.first:
            for sink in (self.metrics, self.timing, self.verdicts):
                sink.cut(step)
            self.trail.cut(step)
        self.processes.wait()
        last: dict[str, float] = {}
        for row in self.metrics.read():
            self._hear(row["step"], row, again=True)
            if "grad_norm" in row:
                last = {k: v for k, v in row.items() if k not in ("step", "epoch")}
            else:
                self.evaluated.add(row["step"])
        return last

    def _hear(self, step: int, row: dict[str, float], *, again: bool = False) -> None:
        """Shows a row to the monitors and tells what they say; `again`: they said it before the run was stopped."""
        for verdict in self.panel.see(step, row):
            self.halted |= self.options.on_verdict == "stop" and verdict.monitor not in INFORMS
            if self.processes.first and not again:
                self.verdicts.append([{"step": step, **asdict(verdict)}])
                if self.options.on_verdict != "nothing":
                    self.watcher.note(f"step {step}, {verdict.monitor}: {verdict.says} {verdict.remedy}")

    def _judge(self, progress: Progress, evaluation: dict[str, float]) -> bool:
        """Remembers the best evaluation; True if patience is at its end."""
        name = self.options.best_metric
        if name not in evaluation:
            raise ConfigError(f"best_metric={name!r} is not measured; there are {', '.join(sorted(evaluation))}")
        value = evaluation[name]
        higher = not name.endswith(("loss", "nll_per_token"))
        better = progress.best_value is None or (
            (value > progress.best_value) == higher and value != progress.best_value
        )
        if better:
            progress.best_step, progress.best_value, progress.evals_since_best = progress.step, value, 0
        else:
            progress.evals_since_best += 1
        return self._impatient(progress)

    def _impatient(self, progress: Progress) -> bool:
        return self.options.patience is not None and progress.evals_since_best >= self.options.patience

    @staticmethod
    def _due(every: int | None, step: int) -> bool:
        return every is not None and step % every == 0


def evaluated(step: Step, batches: list[Batch]) -> tuple[dict[str, float], list[Example]]:
    """Metrics over all of the batches, under `eval_` names, and their examples."""
    total: dict[str, tuple[float, float]] = {}
    losses: dict[str, tuple[float, float]] = {}
    examples: list[Example] = []
    for number, batch in enumerate(batches):
        seen = step.evaluate(batch, number)
        add_metrics(total, {k: v for k, v in seen.metrics.items() if k != "loss"})
        add_metrics(losses, seen.losses)
        examples += seen.examples
    whole = sum(step.terms[name].weight * value for name, value in reduced(losses).items())
    total["loss"] = (whole, 0.0)  # each term by its own units over all batches
    return {f"eval_{k}": v for k, v in reduced(total).items()}, examples
