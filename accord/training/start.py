"""Compared with which policies does a run train, and does it start where it must?"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from accord.data.batches import Batch
from accord.engine import models
from accord.engine.logprobs import Scorer
from accord.engine.reference import Moving, Reference
from accord.errors import ConfigError, nearest
from accord.objectives import table
from accord.training import parallel
from accord.training.parallel import Processes
from accord.training.step import Step, TrainingError
from accord.training.terms import Example, Term, by_mean, noise, reduced, reward_scale


def references_of(
    asked: str | Mapping[str, str],
    mode: Literal["cached", "live"],
    cache: str | None,
    policy: models.Policy,
    terms: Mapping[str, Term],
    processes: Processes,
    *,
    fresh: bool,
    model: Any,
    load: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Reference]:
    """The references that the terms compare with, by name, each with its identity; empty if there is no such term.

    Args:
        asked: what `ref` is (and what one that moves is at first), or what each name is: `start`, a folder or a run.
        fresh: the policy is still as the run starts.
        model, load: where the run's model comes from, and how it was loaded.
        say: is told what a reference beside the policy costs, and a reference that moves.

    Raises:
        ConfigError: a reference that is needed has no name, one that is named is not needed, it has no identity, or it
            should move in two ways, or be kept though it moves.
    """
    live = list(dict.fromkeys(words for t in terms.values() for words in t.live))
    needed = {r for t in terms.values() for r in t.references} | ({"ref"} if live else set())
    if not isinstance(asked, Mapping) and str(asked) != "start" and not needed:
        raise ConfigError(f"nothing reads reference={str(asked)!r}: no objective here compares with one; leave it out")
    for setting, value in (("reference_mode", None if mode == "cached" else mode), ("reference_cache", cache)):
        if value is not None and not needed:
            raise ConfigError(
                f"nothing reads {setting}={value!r}: no objective here compares with a reference; leave it out"
            )
    plain = [name for name in needed if name == "ref" or table.moves(name)]
    named = dict(asked) if isinstance(asked, Mapping) else dict.fromkeys(plain, asked)
    for name in sorted(named.keys() - needed if isinstance(asked, Mapping) else ()):
        raise ConfigError(f"reference: no objective here compares with {name!r}; {nearest(name, needed)}")
    for name in sorted(needed - named.keys()):
        raise ConfigError(f"reference: the objective compares with {name!r} too; write reference: {{{name}: PATH}}")
    if cache is not None and needed and all(map(table.moves, needed)):
        raise ConfigError("nothing reads reference_cache: log-probs of a reference that moves cannot be kept")
    found = {}
    for name in sorted(needed):
        if table.moves(name):
            ways = dict.fromkeys(m[1:] for t in terms.values() for m in t.moving if m[0] == name)
            if len(ways) > 1:
                raise ConfigError(
                    f"{name} is one reference and follows in one way, but the objectives ask for (alpha, tau) = "
                    f"{' and '.join(map(str, ways))}: give them the same"
                )
            found[name] = _moving(named[name], *next(iter(ways)), policy, processes, model=model, load=load, say=say)
            continue
        own = mode
        if name == "ref" and live and mode == "cached":
            own = "live"
            apart = policy.lora is None or named[name] != "start"
            size = sum(p.numel() * p.element_size() for p in policy.model.parameters()) / 2**30
            say(
                f"{' and '.join(live)} needs the reference beside the policy: one more forward pass at every step"
                + (f", and {size:.1f} GiB for its weights" if apart else "")
            )
        found[name] = _reference(named[name], own, cache, policy, processes, fresh=fresh, model=model, load=load)
    return found


def _reference(
    asked: str, mode: Literal["cached", "live"], cache: str | None, policy: models.Policy, processes: Processes,
    *, fresh: bool, model: Any, load: dict[str, Any],
) -> Reference:  # fmt: skip
    start = asked == "start"
    name = "start of run" if start else str(asked)
    if not start and not isinstance(models.resolve(asked), Path):
        raise ConfigError(f"reference={asked!r}: give a folder or a run, whose weights have an identity, or start")

    @contextlib.contextmanager
    def itself() -> Iterator[Scorer]:
        yield policy.scorer

    @contextlib.contextmanager
    def adapters_off() -> Iterator[Scorer]:
        with policy.model.disable_adapter():
            yield policy.scorer

    held: list[Scorer] = []

    @contextlib.contextmanager
    def apart() -> Iterator[Scorer]:
        """The reference as a model of its own; a live one is loaded once."""
        if held:
            yield held[0]
            return
        scorer = models.load(model if start else asked, **load).scorer.requires_grad_(False)
        scorer.temperature = policy.scorer.temperature
        if mode == "live":
            held.append(scorer)
        yield scorer

    opened: Callable[[], contextlib.AbstractContextManager[Scorer]] = apart
    if start and policy.lora is not None:
        opened, name = adapters_off, "adapters off"
    elif start and fresh and mode == "cached":
        opened = itself
    elif start and not isinstance(model, (str, Path)):
        held.append(copy.deepcopy(policy.scorer).requires_grad_(False))
    return Reference(
        name,
        policy.start if start else models.content_key(models.resolve(asked)),
        opened,
        policy.scorer.compute,
        Path(cache) if cache else models.cache_root() / "reference",
        mode,
        processes.rank,
        processes.world,
        processes.gather,
        temperature=policy.scorer.temperature,
    )


def _moving(
    asked: str, alpha: float, tau: int, policy: models.Policy, processes: Processes,
    *, model: Any, load: dict[str, Any], say: Callable[[str], None],
) -> Reference:  # fmt: skip
    """A reference that follows the policy: a model of its own from the start on, sharded as the policy is."""
    if asked == "start":
        apart = processes.world > 1  # shards are each module's own; else what is not trained is held once
        frozen = {} if apart else {id(p): p for p in policy.scorer.parameters() if not p.requires_grad}
        heads, policy.scorer.heads = policy.scorer.heads, torch.nn.ModuleDict()
        scorer = copy.deepcopy(policy.scorer, frozen)
        policy.scorer.heads = heads
        key = policy.start
    else:
        if not isinstance(models.resolve(asked), Path):
            raise ConfigError(f"reference={asked!r}: give a folder or a run, whose weights have an identity, or start")
        scorer, key = models.load(asked, **load).scorer, models.content_key(models.resolve(asked))
        scorer.temperature = policy.scorer.temperature
        shapes = {name: p.shape for name, p in scorer.named_parameters()}
        for name, p in models.trainable(policy.scorer):
            if not name.startswith("heads.") and shapes.get(name) != p.shape:
                raise ConfigError(
                    f"reference={asked!r} cannot follow the policy, which trains {name} of shape {list(p.shape)}: give "
                    "a model of the same architecture, or start" + (", as adapters do" if policy.lora else "")
                )
    scorer.requires_grad_(False)
    parallel.shard(scorer, processes, trained=False)
    moving = Moving(alpha, tau, scorer, policy.scorer)
    size = sum(p.numel() * p.element_size() for p in moving.weights.values()) / 2**30
    say(
        f"the reference follows the policy, {alpha:g} of the way every {tau} steps: its log-probs are computed at "
        f"every step (reference_mode: live), and {size:.2g} GiB of weights stand beside the policy's"
    )
    return Reference(
        "start of run, moving" if asked == "start" else f"{asked}, moving", key,
        lambda: contextlib.nullcontext(scorer), policy.scorer.compute, None, "live", moving=moving,
    )  # fmt: skip


def check_start(step: Step, batch: Batch, policy: models.Policy) -> dict[str, float]:
    """Before the first update: implicit rewards and loss where they must be.

    If every reference is the policy itself, every log-ratio must be 0 within what rounding makes (0.002 nats in float32
    and 2.5 in bf16 for 100 tokens, by the root of the length), and a single objective's loss its known value.

    Beside them stands, of each term whose reference is another model, `logratios/away` (see `away`).

    Raises:
        TrainingError: it is not so; the message says what was measured.
    """
    seen = step.evaluate(batch)
    values = reduced(seen.metrics)
    if any(ref.key != policy.start for ref in step.references.values()):
        return values | away(step, seen.examples, policy.start)
    for example in seen.examples:
        term = step.terms[example.term]
        for role, reward in example.rewards.items() if not term.scored else ():
            ratio = reward / reward_scale(term, role)
            root = math.sqrt(example.lengths[role])
            rounding = 4 * noise(step.scorer.compute) * root  # the greatest of a batch is 2 or 3 of them
            allowed = max(models.TOLERANCE[torch.float32] * max(1.0, root / 10), rounding)
            if abs(ratio) > allowed:
                raise TrainingError(
                    f"policy and reference are the same weights ({policy.start[:8]}), yet at step 0 the log-ratio of "
                    f"record {example.record} ({role}) is {ratio:.3g} nats, more than {allowed:.2g}. "
                    "With reference_mode: live both are computed side by side; if that starts, remove the cache"
                )
    for name, term in step.terms.items():
        known = known_start(term, batch)
        if known is not None:
            losses = [e.loss for e in seen.examples if e.term == name]
            mean = sum(losses) / len(losses)
            slack = (0.02 if step.scorer.compute == torch.float32 else 0.2) * max(1.0, abs(known))
            if abs(mean - known) > slack:
                raise TrainingError(
                    f"the loss of {name} at policy = reference is {mean:.4f}, but it must be {known:.4f}"
                )
            values[f"{name}/expected_loss"] = known
    return values


def away(step: Step, examples: Iterable[Example], start: str) -> dict[str, float]:
    """`logratios/away` of each term whose reference is not the weights `start`: how many nats a token a response is
    from it on average, up or down. Signs that cancel in the mean of log-ratios do not cancel here."""
    found = {}
    for name, term in step.terms.items():
        ref = step.references.get(term.home or "")
        if term.scored or ref is None or ref.key == start:
            continue
        sizes = [
            abs(reward / scale) / (1 if by_mean(term) else max(1, e.lengths[role]))
            for e in examples if e.term == name
            for role, reward in e.rewards.items() if (scale := reward_scale(term, role))
        ]  # fmt: skip
        whole = np.sum(step.processes.gather((sum(sizes), len(sizes))), 0)
        if whole[1]:
            found[(f"{name}/" if len(step.terms) > 1 else "") + "logratios/away"] = float(whole[0] / whole[1])
    return found


def known_start(term: Term, batch: Batch) -> float | None:
    """The value of a term of one row at policy = reference, averaged over the batch; None if it has none."""
    row, _, options = term.parts[0]
    if len(term.parts) > 1 or row.init is None or term.name not in batch.terms or term.log_z != "one":
        return None
    examples = batch.terms[term.name]
    names = {**options, "log": np.log, "exp": np.exp, **examples.values}
    if "responses" in examples.roles:
        names["K"] = (examples.roles["responses"] >= 0).sum(1)
    return float(np.mean(eval(row.init, {"__builtins__": {}}, names)))  # our own rows' expressions
