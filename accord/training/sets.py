"""What do rules see of an update, and how do their shares come into its gradient?

An update is cut into sets, its sources or its terms. A rule (`sharing.py`) sees their masses and, as it asks, their
gradients on some of the parameters; its shares become factors of each set's part of the gradient. Where they are known
before the backward pass, one pass is enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from accord.data.batches import Batch, TermBatch
from accord.engine.logprobs import Scorer, adapter_dropout
from accord.training.sharing import Gradients, Rule, Sets, factors, layers, parts, set_names, watched, weighted
from accord.training.terms import BY_SOURCE, Metrics, Outcome, Term, measure

if TYPE_CHECKING:
    from accord.training.step import Collected, Step

Cotangents = list[dict[str, Tensor]]  # one dict for each set


def measured(step: Step, whole: Batch, term: Term, batch: TermBatch, outcome: Outcome) -> Metrics:
    """What there is to say of a term's examples, of all and of each source where it has several."""
    name, compute = term.name, step.scorer.compute
    found = measure(term, batch, outcome, step.units(name, whole, batch), compute)
    if len(step.sources.get(name, ())) > 1:
        for source, which in parts("source", name, batch):
            own, some = batch.take(which), outcome.take(which)
            one = measure(term, own, some, step.units(name, whole, own), compute)
            found |= {f"sources/{source}/{k}": v for k, v in one.items() if k in BY_SOURCE}
    return found


def masses(step: Step, collected: Collected, names: list[str]) -> list[float]:
    """How much of the update each set is: its part of each term's divisor, summed over terms."""
    found = dict.fromkeys(names, 0.0)
    for name, batch in collected.batch.terms.items():
        for key, which in parts(step.partition, name, batch):
            found[key] += step.units(name, collected.batch, batch.take(which)) / collected.divisors[name]
    return [found[n] for n in names]


def shares(step: Step, collected: Collected, names: list[str], grads: list[Gradients]) -> np.ndarray:
    """What the rule says of the sets, by the gradients that it looks at."""
    assert step.rule is not None
    seen = Sets(names, masses(step, collected, names), [], grads)
    return step.rule(seen, step.objective_state.setdefault("combine", {}))


def ahead(step: Step, collected: Collected, names: list[str], whole: Cotangents | None) -> np.ndarray | None:
    """The shares, where they are known before the backward pass; else None."""
    if step.rule is None or step.apart:
        return None
    if step.rule.on is None:
        return shares(step, collected, names, [])
    if step.rule.on == "last_layer":
        return shares(step, collected, names, _look(step, collected, names, whole))
    if whole is None:
        return None
    assert collected.leaves is not None
    hidden = collected.leaves.sequences["hidden"].detach()
    return shares(step, collected, names, _of_heads(step, whole, hidden))


def from_heads(
    step: Step, collected: Collected, names: list[str], cotangents: Cotangents, out: dict[str, Tensor]
) -> np.ndarray:
    """The shares of a batch that is one micro-batch in every process: their parts of the heads' gradients add up."""
    own = _of_heads(step, cotangents, out["hidden"].detach().cpu().to(step.dtype))
    every = step.processes.gather([[g.cpu() for g in grads if g is not None] for grads in own])
    grads = [[torch.stack(p).sum(0) for p in zip(*several, strict=True)] for several in zip(*every, strict=True)]
    return shares(step, collected, names, grads)  # type: ignore[arg-type]


def _of_heads(step: Step, cotangents: Cotangents, hidden: Tensor) -> list[Gradients]:
    """Of each set, the gradient of the (linear) heads at the ends of responses: sum_j dL/dscore_j * hidden_j."""
    heads = [f"head:{name}" for name in linear_heads(step.scorer)]
    return [[c[h].to(hidden.dtype).reshape(len(hidden), -1).T @ hidden for h in heads] for c in cotangents]


def linear_heads(scorer: Scorer) -> list[str]:
    """Names of the heads that read the end of a response linearly: rewards."""
    return [name for name, head in scorer.heads.items() if str(head.at) == "ends" and hasattr(head, "linear")]


def _look(step: Step, collected: Collected, names: list[str], whole: Cotangents | None) -> list[Gradients]:
    """Gradients of the watched parameters, for each set: a forward pass, and backward no further than to them.

    Shards have no place in the graph: among several processes the backward passes go all the way.
    """
    found: list[Gradients] = [[None] * len(step.parameters) for _ in names]
    until = [step.parameters[i] for i in step.watched] if step.processes.world == 1 else None
    for place, (micro, mine) in enumerate(zip(collected.micros, collected.owned, strict=True)):
        with adapter_dropout(step.scorer):
            step.draw(collected, place)
            out = step.score(micro)
            cotangents, _ = step.cotangents_of(collected, micro, mine, out, names, whole)
            for number, cotangent in enumerate(cotangents):
                hand_back(out, cotangent, again=number < len(cotangents) - 1, until=until)
                put_aside(step, found[number])
    return [[own[i] for i in step.watched] for own in found]


def blend(
    step: Step, collected: Collected, names: list[str], cotangents: Cotangents, share: np.ndarray
) -> dict[str, Tensor]:
    """The cotangents of all sets as one, each with the factor of its share."""
    by = factors(share, masses(step, collected, names))
    return {
        name: torch.stack([float(f) * c[name] for f, c in zip(by, cotangents, strict=True)]).sum(0)
        for name in cotangents[0]
    }


def hand_back(
    out: dict[str, Tensor], cotangent: dict[str, Tensor], *, again: bool, until: list[Any] | None = None
) -> None:
    """The backward pass of one forward pass; no further than to the parameters `until`."""
    names = [n for n in out if out[n].requires_grad]
    given = [cotangent.get(n, torch.zeros_like(out[n])).to(out[n]) for n in names]
    torch.autograd.backward([out[n] for n in names], given, retain_graph=again, inputs=until)


def put_aside(step: Step, held: Gradients) -> None:
    """Adds what a backward pass left to what is held, and clears it."""
    for i, p in enumerate(step.parameters):
        if p.grad is not None:
            held[i] = p.grad if held[i] is None else held[i] + p.grad  # type: ignore[operator]
            p.grad = None


def watched_by(rule: Rule | None, scorer: Scorer, names: list[str]) -> list[int]:
    """The trained parameters whose gradients the rule looks at, by place."""
    if rule is None:
        return []
    return watched(rule.on, names, layers(scorer, getattr(scorer.causal, "_no_split_modules", None) or ()))


def combine(step: Step, grads: list[Gradients], collected: Collected, metrics: Metrics) -> None:
    """Puts gradients that were held apart together where the optimizer looks for them, and tells the rule what the step
    was; takes the sets' losses out of the metrics, and says what their shares were."""
    names = set_names(step.partition, collected.batch)
    mass = masses(step, collected, names)
    own = [metrics.pop(f"sets/{n}", (0.0, 0.0))[0] for n in names]
    losses = [loss / m if m else 0.0 for loss, m in zip(own, mass, strict=True)]
    memory = step.objective_state.setdefault("combine", {})
    if step.apart:
        if step.rule is None:
            combined = step.combine_rule(Sets(names, mass, losses, grads), memory)
        else:
            share = shares(step, collected, names, [[own[i] for i in step.watched] for own in grads])
            combined = weighted(grads, factors(share, mass))
            metrics |= told(names, share)
        for p, g in zip(step.parameters, combined, strict=True):
            p.grad = g
    if step.rule is not None:
        step.rule.after(Sets(names, mass, losses, []), memory)


def told(names: list[str], share: np.ndarray) -> Metrics:
    """The shares as metrics."""
    return {f"shares/{n}": (float(x), 0.0) for n, x in zip(names, share, strict=True)}
