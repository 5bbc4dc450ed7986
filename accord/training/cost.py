"""How long does an update take? The arithmetic says what its parts weigh against each other, and the first updates of
a run what they cost here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from accord.data.batches import Batch, Schedule
from accord.data.chat import Sequence
from accord.engine.logprobs import Scorer

Sizes = tuple[float, float, float, float]
WARM = 2  # updates that are not fitted: the first ones load kernels and make the optimizer's moments
ENOUGH, MOST = 8, 256  # updates for a fit, of which the newest count
LOOKED = 8192  # examples of updates to come that are looked at
FAR = 100_000  # updates to come; with more of them the mean says it
TRUST = 0.1  # in the arithmetic: a coefficient that is twice what it says weighs as much as an update that is 10 % off


def sizes(trees: Iterable[tuple[int, Seq[int]]], trained: float) -> Sizes:
    """Unique tokens, trained tokens, pairs of query and key in a layer, and 1.

    Args:
        trees: tokens of each context and of the answers under it, whose last one predicts nothing and is not computed.

    >>> sizes([(3, [3])], 3)  # five places, which see 1 + 2 + 3 + 4 + 5 keys
    (5.0, 3.0, 15.0, 1.0)
    """
    unique = area = 0.0
    for p, answers in trees:
        unique += p + sum(n - 1 for n in answers)
        area += p * (p + 1) / 2 + sum((n - 1) * (p + n / 2) for n in answers)
    return unique, float(trained), area, 1.0


class Work:
    """What an update asks of a model, by its shape alone: the same in every process and after a resume, as measured
    times are not.

    rates [4]: floating point operations, forward and backward, for one of each of the sizes: 6 for each weight of the
    layers' matrices, 6 for each of the output embedding, 12 for each layer and place of its heads.
    """

    def __init__(self, scorer: Scorer) -> None:
        causal, self.layout = scorer.causal, scorer.layout
        config, head = causal.config.get_text_config(), causal.get_output_embeddings()
        tables = {id(m.weight) for m in (head, causal.get_input_embeddings()) if m is not None}
        matrices = sum(p.numel() for p in causal.parameters() if p.ndim == 2 and id(p) not in tables)
        heads = getattr(config, "num_attention_heads", 1)
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        words = head.weight.numel() if head is not None else 0
        self.rates = np.array([6.0 * matrices, 6.0 * words, 12.0 * width * config.num_hidden_layers, 0.0])

    def sizes(self, sequences: Iterable[Sequence]) -> Sizes:
        """Of sequences that are computed together: those of one context share it, where the layout lets them."""
        trees: dict[bytes | int, tuple[int, list[int]]] = {}
        trained = 0
        for i, s in enumerate(sequences):
            key = s.context.tobytes() if self.layout == "shared" else i
            trees.setdefault(key, (len(s.context), []))[1].append(len(s.ids))
            trained += int(np.count_nonzero(s.trained))
        return sizes(trees.values(), trained)

    def of(self, sequences: Iterable[Sequence]) -> float:
        """Operations."""
        return float(np.dot(self.sizes(sequences), self.rates))

    def alike(self, sequences: Seq[Sequence], groups: list[list[int]]) -> list[list[int]]:
        """Groups with the most work first: those that several processes compute at a time take equally long."""
        return sorted(groups, key=lambda group: -self.of(sequences[i] for i in group))


def fit(found: Seq[tuple[Sizes, float]], likely: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the sizes, none below 0, by least squares of relative errors; and those errors.

    Args:
        likely: how the coefficients stand to each other, for updates too few or too alike to tell.

    >>> errors = fit([((u, u / 2, u**2, 1.0), 3 * u + 4) for u in (1.0, 2.0, 5.0, 9.0)])[1]
    >>> bool(abs(errors).max() < 1e-9)
    True
    """
    x, seconds = np.array([s for s, _ in found]), np.array([t for _, t in found])
    scale = np.where(x.max(0) > 0, x.max(0), 1.0)
    relative = x / scale / seconds[:, None]
    rows, wanted = relative, np.ones(len(x))
    if likely is not None:
        told = likely * scale * np.median(seconds / (x @ likely))
        rows = np.concatenate([rows, TRUST * np.diag(1 / np.where(told > 0, told, np.median(seconds)))])
        wanted = np.concatenate([wanted, TRUST * (told > 0)])
    weights, _ = nnls(rows, wanted)
    return weights / scale, relative @ weights - 1


@dataclass(frozen=True)
class Law:
    """Seconds of an update by its sizes; off: the median relative error on those that it was fitted to."""

    weights: np.ndarray
    off: float
    updates: int

    @classmethod
    def of(cls, found: Seq[tuple[Sizes, float]], likely: np.ndarray) -> Law:
        """Fitted, and then scaled so that these updates take as long in all as they did: relative errors alone would
        have a slow one count for less than it took."""
        weights, errors = fit(found, likely)
        x, seconds = np.array([s for s, _ in found]), np.array([t for _, t in found])
        return cls(weights * seconds.sum() / (x @ weights).sum(), float(np.median(np.abs(errors))), len(found))

    def seconds(self, sizes: np.ndarray) -> np.ndarray:
        """sizes [..., 4] -> seconds [...]"""
        return sizes @ self.weights

    def as_dict(self) -> dict[str, Any]:
        """The coefficients in seconds, and a sentence of them."""
        names = ("unique_token", "trained_token", "pair", "update")
        found = {k: float(w) for k, w in zip(names, self.weights, strict=True)}
        return found | {"off": self.off, "updates": self.updates, "told": self.told()}

    def told(self) -> str:
        """
        >>> Law(np.array([8.9e-4, 1.6e-4, 2e-7, 0.0]), 0.02, 8).told()
        '0.89 ms a token + 0.16 ms a trained token + 0.2 µs a pair of query and key; 2 % off'
        """
        what = ("a token", "a trained token", "a pair of query and key", "an update")
        parts = [f"{_time(w)} {of}" for w, of in zip(self.weights.tolist(), what, strict=True) if w > 0]
        return f"{' + '.join(parts)}; {100 * self.off:.2g} % off"


def _time(seconds: float) -> str:
    size, unit = next(((s, u) for s, u in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")) if seconds >= s / 10), (1e-9, "ns"))
    return f"{seconds / size:.2g} {unit}"


# -- a run ------------------------------------------------------------------------------------------------------------


def looked_at(batch: Callable[[int], Batch], first: int, stop: int, size: int, work: Work) -> tuple[Any, Any]:
    """Numbers of some updates of `size` examples, evenly spread (of a short run, of all), and their sizes [n, 4]."""
    many = max(16, min(256, LOOKED // size))
    numbers = np.unique(np.linspace(first, stop - 1, many).astype(int))
    return numbers, np.array([work.sizes(batch(n).sequences) for n in numbers.tolist()])


class Clock:
    """How long does the run still take? Updates to come by their sizes, evaluations, and what a step took beside.

    Until enough updates are fitted, and where those to come cannot be looked at, the mean of what was.

    Args:
        schedule: of the updates.
        work: of the model.
        steps: all of the run.
        every: updates between two evaluations; None: only at the end.
    """

    def __init__(self, schedule: Schedule, work: Work, steps: int, every: int | None) -> None:
        self.schedule, self.work, self.steps, self.every = schedule, work, steps, every
        self.done = self.tokens = 0
        self.found: deque[tuple[Sizes, float]] = deque(maxlen=MOST)
        self.law: Law | None = None
        self.rest: np.ndarray | None = None  # seconds of all updates from each one on
        self.coming: tuple[np.ndarray, np.ndarray] | None = None
        self.updating, self.evaluations, self.evaluating = 0.0, 0, 0.0
        self.began = time.monotonic()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation."""
        began = time.monotonic()
        yield
        self.evaluating, self.evaluations = self.evaluating + time.monotonic() - began, self.evaluations + 1

    def tell(self, number: int, batch: Batch, seconds: float) -> tuple[float, float]:
        """Tokens a second since the beginning, and seconds that are left, when so many updates of the run are done.

        Args:
            batch: the last of them, and the seconds that it took.
        """
        self.done, self.updating, self.tokens = (
            self.done + 1,
            self.updating + seconds,
            self.tokens + tokens(batch.sequences),
        )
        if (fitted := self.done - WARM) > 0:
            self.found.append((self.work.sizes(batch.sequences), max(seconds, 1e-9)))
            if fitted in (ENOUGH, 2 * ENOUGH, 4 * ENOUGH) or fitted % (8 * ENOUGH) == 0:
                self._fit(number)
        passed, left = time.monotonic() - self.began, self.steps - number
        ahead = self.updating / self.done * left if self.rest is None else float(self.rest[number])
        beside = (passed - self.updating - self.evaluating) / self.done * left
        if self.evaluations:
            still = 1 + (self.steps // self.every - (number - 1) // self.every if self.every else 0)
            ahead += self.evaluating / self.evaluations * still
        return self.tokens / passed, ahead + beside

    def _fit(self, number: int) -> None:
        if self.law is None and 0 < self.steps - number <= FAR:
            with suppress(IndexError):  # examples that were not tokenised
                schedule = self.schedule
                self.coming = looked_at(schedule.batch, number, self.steps, schedule.batch_size, self.work)
        self.law = Law.of(self.found, self.work.rates)
        if self.coming is not None:
            numbers, found = self.coming
            each = np.interp(np.arange(self.steps), numbers, self.law.seconds(found))
            self.rest = np.append(each[::-1].cumsum()[::-1], 0.0)


def tokens(sequences: Iterable[Sequence]) -> int:
    """Tokens of sequences, each with its whole context."""
    return sum(len(s.context) + len(s.ids) for s in sequences)
