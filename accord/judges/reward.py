"""What does a model say that was trained to judge? A reward model, or the reward that a policy learned on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np

from accord.data.records import Judgement, Record
from accord.engine import rewards
from accord.engine.rewards import Implicit, RewardModel
from accord.judges.ensemble import Ensemble
from accord.judges.frame import Judge, Say
from accord.judges.table import row


class Reward:
    """Scores of a reward model; of one that only prefers, P(i is better than j) of every two responses.

    Args:
        model: what `engine.rewards.load` or `implicit` gives. by: by default its name and the key of its weights.
        steps: of an implicit reward, a score for every step of a response beside that of the whole.

    What cannot be scored has no judgement; why, stands in the model's `counts`.
    """

    def __init__(self, model: RewardModel | Implicit, by: str = "", steps: bool = False) -> None:
        self.model, self.per_step = model, steps and isinstance(model, Implicit)
        self.by = by or f"{'implicit' if isinstance(model, Implicit) else 'reward'}:{model.name}:{model.key[:8]}"

    def __call__(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
        if self.model.kind == "preference":
            return [self._preferences(m) for m in self.model.margins(records, say)]
        found = [self._scores(np.asarray(values)) for values in self.model.scores(records, say)]
        if self.per_step and isinstance(self.model, Implicit):
            steps = self.model.steps(records, say)
            found = [(*whole, *self._steps(parts)) for whole, parts in zip(found, steps, strict=True)]
        return found

    def _scores(self, values: np.ndarray) -> tuple[Judgement, ...]:
        """[K] or [K, attributes]."""
        if values.ndim == 1:
            return tuple(self._score(i, v) for i, v in enumerate(values.tolist()) if math.isfinite(v))
        named = getattr(self.model, "attributes", ()) or [f"attribute {a}" for a in range(values.shape[1])]
        return tuple(
            self._score(i, v, attribute=name)
            for i, row in enumerate(values.tolist())
            for name, v in zip(named, row, strict=True)
            if math.isfinite(v)
        )

    def _steps(self, parts: list[list[tuple[str, float]]]) -> list[Judgement]:
        return [self._score(i, v, step=n) for i, steps in enumerate(parts) for n, (_, v) in enumerate(steps)]

    def _score(self, response: int, value: float, **more: object) -> Judgement:
        return Judgement(kind="score", response=response, value=value, by=self.by, **more)  # type: ignore[arg-type]

    def _preferences(self, margins: np.ndarray) -> tuple[Judgement, ...]:
        """log-odds [K, K]."""
        return tuple(
            Judgement(kind="preference", pair=(i, j), value=1 / (1 + math.exp(-min(700.0, max(-700.0, m)))), by=self.by)
            for i in range(len(margins))
            for j in range(i + 1, len(margins))
            if math.isfinite(m := float(margins[i, j]))
        )


def trained(model: str | Path, *, by: str = "", **load: Any) -> Judge:
    """A reward model as a judge; the models of a run of `sharing: ensemble`, as one judge.

    Args:
        by: its name. load: as of `engine.rewards.load`.
    """
    if (found := rewards.ensemble(model)) is None:
        return Reward(rewards.load(model, **load), by)
    judge = Ensemble([Reward(rewards.load(m, **load)) for m in found[1]], "worst" if found[0] == "min" else "mean")
    judge.by = by or judge.by
    return judge


@row()
def reward(model: str, device: str = "auto", precision: str = "auto") -> Judge:
    """Scores of a reward model: a run that trained one or an ensemble, or a *ForSequenceClassification folder.

    Args:
        model: the run, folder or hub name.
    """
    return trained(model, device=device, precision=precision)


@row()
def implicit(
    policy: str,
    *,
    reference: str,
    beta: float = 0.1,
    length: str = "sum",
    steps: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> Judge:
    """The reward that a policy has learned without one: beta times its log-ratio to a reference.

    Args:
        policy, reference: runs, folders or hub names.
        beta: 1/nats. length: sum of the tokens' log-ratios, or their mean.
        steps: a score for every step of an answer as well (process rewards).
    """
    found = rewards.implicit(policy, reference, beta=beta, length=length, device=device, precision=precision)  # type: ignore[arg-type]
    return Reward(found, steps=steps)
