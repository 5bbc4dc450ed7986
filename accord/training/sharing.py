"""How do disagreeing sources share one step?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Gradients = list[Tensor | None]  # one a trained parameter


@dataclass
class Sets:
    """What a rule that combines sets of gradients may know: of each set its name (a term or a source), gradient, loss
    (its part of the step's) and number of examples; and the names of the parameters."""

    names: list[str]
    grads: list[Gradients]
    losses: list[float]
    counts: list[int]
    parameters: list[str]


Combine = Callable[[Sets, dict[str, Any]], Gradients]  # the dict is the rule's memory; it is checkpointed


def add_up(sets: Sets, state: dict[str, Any]) -> Gradients:
    """The plain way to combine sets of gradients: their sum."""
    total = list(sets.grads[0])
    for other in sets.grads[1:]:
        total = [b if a is None else a if b is None else a + b for a, b in zip(total, other, strict=True)]
    return total
