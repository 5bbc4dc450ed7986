"""One update: what do we divide by, and when do we stop for NaN?

Phases, each callable on its own: `collect` (count, score the whole batch where a row asks) -> `cotangents` (evaluate
the objectives on detached leaves) -> `backward` (one pass for each set of cotangents) -> `combine` (how sets share
the step) -> `update` (clip, finite check, optimizer). A term's loss is divided once, by its own number of examples or
tokens in the global batch, so its weight means the same whatever stands beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from accord.data.batches import Batch, Micro, TermBatch, micro_batches, pack, seeded, with_mismatched
from accord.data.records import Record
from accord.engine.logprobs import Row, Scorer, adapter_dropout, no_dropout
from accord.engine.models import trainable
from accord.engine.reference import Reference
from accord.errors import AccordError, ConfigError
from accord.training.parallel import Processes, total_norm
from accord.training.terms import Leaves, Outcome, Term, evaluate, measure, statistics

Metrics = dict[str, tuple[float, float]]  # name -> (sum, count): a metric travels with its reduction; count 0: a sum
Gradients = list[Tensor | None]  # one a trained parameter
ENGINE_NEEDS = ("entropy", "hidden", "kl")


class TrainingError(AccordError):
    """Training cannot go on: a loss or a gradient that is not finite."""


@dataclass
class Example:
    """One trained example as it was seen: what `examples/*.parquet` holds."""

    term: str
    record: str
    source: str
    loss: float
    rewards: dict[str, float]
    logps: dict[str, float]
    lengths: dict[str, int]


@dataclass
class Collected:
    """The update's plan for this process, and what had to be known before any gradient.

    direct: objectives are evaluated micro-batch by micro-batch (every example lies in one of them, no term couples
    the batch); else `cotangent` [M] holds the gradient for every token of the batch.
    """

    batch: Batch
    micros: list[Micro]
    owned: list[bool]
    divisors: dict[str, float]
    reference: dict[int, Tensor]
    direct: bool
    extra: dict[str, Any]
    leaves: Leaves | None = None
    stats: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Result:
    """What one update did."""

    metrics: Metrics
    grad_norm: float
    examples: list[Example]
    tokens: int


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


class Step:
    """The update of a policy by terms.

    Args:
        scorer: what is trained.
        terms: by name.
        reference: of the terms that need one.
        budget: tokens of a micro-batch; affects speed and memory alone.
        partition: `all` gives one set of cotangents, `term` or `source` one for each, over one forward pass.
        combine: from the gradients of the sets to the gradient of the step.
    """

    def __init__(
        self,
        scorer: Scorer,
        terms: dict[str, Term],
        records: Seq[Record],
        optimizer: torch.optim.Optimizer | None,
        *,
        reference: Reference | None = None,
        budget: int = 2048,
        max_grad_norm: float | None = 1.0,
        seed: int = 0,
        processes: Processes | None = None,
        partition: Literal["all", "term", "source"] = "all",
        combine: Combine = add_up,
    ) -> None:
        self.scorer, self.terms, self.records, self.optimizer = scorer, terms, records, optimizer
        self.reference, self.budget, self.max_grad_norm, self.seed = reference, budget, max_grad_norm, seed
        self.processes = processes or Processes()
        self.partition, self.combine_rule = partition, combine
        self.objective_state: dict[str, dict[str, Any]] = {name: {} for name in terms}
        self.parameters = [p for _, p in trainable(scorer)]
        asked = {n.removesuffix("_tokens") for t in terms.values() for n in t.needs}
        self.needs = frozenset(n for n in asked if n in ENGINE_NEEDS)
        if "kl" in self.needs and (reference is None or reference.mode != "live"):
            raise ConfigError(
                "the KL over the whole vocabulary needs the reference beside the policy: set reference_mode: live "
                "(one more forward pass a step, and its weights in memory)"
            )
        self.dtype = torch.float32 if scorer.device.type == "mps" else torch.float64

    def __call__(
        self, batch: Batch, number: int, learning_rates: dict[int, float] | None = None, progress: float = 0.0
    ) -> Result:
        """Phases one after another; `number` is the step's, from 0, and `learning_rates` one for each group."""
        torch.manual_seed(int(seeded(self.seed, "torch", number, self.processes.rank).integers(2**31)))
        collected = self.collect(batch, number, progress)
        grads, metrics, examples = self.backward(collected)
        metrics = self.processes.sum_counts(metrics)
        self.combine(grads, collected.batch, metrics)
        norm = self.update(learning_rates)
        return Result(metrics, norm, examples, sum(int((m.predictor >= 0).sum()) for m in collected.micros))

    # -- phases -------------------------------------------------------------------------------------------------------

    def collect(self, batch: Batch, number: int, progress: float = 0.0) -> Collected:
        """Counts, fetches the reference, packs; scores the whole batch if a row asks for it."""
        batch = self.complete(batch)
        divisors = {}
        for name, examples in batch.terms.items():
            by_token = self.terms[name].unit == "token"
            used = [i for role, r in examples.roles.items() if role != "mismatched" for i in r.ravel() if i >= 0]
            divisors[name] = (
                float(sum(int(batch.sequences[i].trained.sum()) for i in used)) if by_token else float(len(examples))
            )
        direct = not any(self.terms[name].scores_batch_first for name in batch.terms)
        units = [places for _, _, places in batch.examples()] if direct else []
        singles = [(i,) for i in range(len(batch.sequences)) if not direct]
        groups = micro_batches(batch.sequences, units or singles, self.budget, self.scorer.layout)
        micros, owned = self._mine(batch, groups)
        extra = {
            "progress": progress,
            "noise": lambda record: seeded(self.seed, number, self.records[record].id).random(),
        }
        collected = Collected(batch, micros, owned, divisors, self._references(batch), direct, extra)
        if not direct:
            collected.leaves = self._score_all(collected)
            for name, examples in batch.terms.items():
                with torch.no_grad():
                    collected.stats[name] = statistics(
                        self.terms[name], examples, collected.leaves, extra, self.objective_state[name]
                    )
        return collected

    def complete(self, batch: Batch) -> Batch:
        """The batch with the sequences that its terms ask for beside their own (mismatched prompts and answers)."""
        for name in list(batch.terms):
            if "mismatched" in self.terms[name].needs and "mismatched" not in batch.terms[name].roles:
                batch = with_mismatched(batch, name)
        return batch

    def backward(self, collected: Collected) -> tuple[list[list[Tensor | None]], Metrics, list[Example]]:
        """Gradients of each set of cotangents, metrics and examples; gradients are left in `.grad` for one set."""
        metrics: Metrics = {}
        examples: list[Example] = []
        for p in self.parameters:  # a step that was given up may have left some
            p.grad = None
        sets = self._set_names(collected.batch)
        stash: list[list[Tensor | None]] = [[None] * len(self.parameters) for _ in sets]
        whole: list[dict[str, Tensor]] | None = None
        if not collected.direct:
            assert collected.leaves is not None
            whole, seen = self.cotangents(collected, collected.leaves, collected.batch.terms, sets)
            if self.processes.first:  # every process computes the same: one reports
                metrics, examples = seen
        for micro, mine in zip(collected.micros, collected.owned, strict=True):
            silent = bool(collected.batch.silent[micro.sequences].all())
            with adapter_dropout(self.scorer):
                out = self._forward(micro)
            if whole is None:
                terms = self._within(collected.batch, micro) if mine else {}
                leaves = self._leaves(collected, micro, out)
                cotangents, (own, shown) = self.cotangents(collected, leaves, terms, sets)
                here = torch.from_numpy(micro.sequences).to(self.scorer.device)
                cotangents = [{k: v if k in leaves.tokens else v[here] for k, v in c.items()} for c in cotangents]
                add_metrics(metrics, own)
                examples += shown
            else:
                cotangents = [self._slice(collected, c, micro, mine and not silent) for c in whole]
            for number, cotangent in enumerate(cotangents):
                names = [n for n in out if out[n].requires_grad]
                torch.autograd.backward(
                    [out[n] for n in names],
                    [cotangent.get(n, torch.zeros_like(out[n])).to(out[n].dtype) for n in names],
                    retain_graph=number < len(cotangents) - 1,
                )
                if self.partition != "all":
                    for i, p in enumerate(self.parameters):
                        if p.grad is not None:
                            held = stash[number][i]
                            stash[number][i] = p.grad if held is None else held + p.grad
                            p.grad = None
        return (stash if self.partition != "all" else [[p.grad for p in self.parameters]]), metrics, examples

    def cotangents(
        self, collected: Collected, leaves: Leaves, terms: dict[str, TermBatch], sets: list[str]
    ) -> tuple[list[dict[str, Tensor]], tuple[Metrics, list[Example]]]:
        """Gradient of the objectives with respect to the leaves, one dict for each set, and what was measured."""
        named = {"logp": leaves.tokens["logp"], **leaves.sequences}
        named |= {k: v for k, v in leaves.tokens.items() if k != "ref_logp"}
        for leaf in named.values():
            leaf.requires_grad_(True)
        totals: dict[str, Tensor] = {}
        metrics: Metrics = {}
        examples: list[Example] = []
        for name, batch in terms.items():
            if not len(batch):
                continue
            term = self.terms[name]
            with torch.enable_grad():
                outcome = evaluate(term, batch, leaves, collected.stats.get(name, {}), collected.extra)
            self._check(term, batch, outcome)
            weight = torch.as_tensor(batch.weight, dtype=outcome.loss.dtype, device=outcome.loss.device)
            scaled = term.weight * weight * outcome.loss / collected.divisors[name]
            for key, which in self._parts(name, batch):
                with torch.enable_grad():
                    part = scaled[which].sum()
                totals[key] = totals[key] + part if key in totals else part
                if self.partition != "all":
                    seen = {
                        f"sets/{key}": (float(part.detach()), 0.0),
                        f"sets/{key}/examples": (float(len(scaled[which])), 0.0),
                    }
                    add_metrics(metrics, seen)
            unit = (
                float(sum(outcome.lengths["response"]))
                if term.unit == "token" and "response" in outcome.lengths
                else float(len(batch))
            )
            add_metrics(metrics, {"loss": (float(scaled.detach().sum()), 0.0)})
            measured = measure(term, batch, outcome, unit)
            if len(self.terms) > 1:
                measured = {f"{name}/{metric}": value for metric, value in measured.items()}
            add_metrics(metrics, {k: v for k, v in measured.items() if k != "loss"})
            examples += self._shown(name, batch, outcome)
        found = []
        keys = list(named)
        for key in sets:
            grads = (
                torch.autograd.grad(totals[key], [named[k] for k in keys], allow_unused=True, retain_graph=True)
                if key in totals and totals[key].requires_grad
                else [None] * len(keys)
            )
            found.append({k: torch.zeros_like(named[k]) if g is None else g for k, g in zip(keys, grads, strict=True)})
        return found, (metrics, examples)

    def combine(self, grads: list[Gradients], batch: Batch, metrics: Metrics) -> None:
        """Puts the gradient of the step where the optimizer looks for it.

        The rule's memory lies under `combine` in the objective state, which is checkpointed.
        """
        if self.partition == "all":
            return
        names = self._set_names(batch)
        losses = [metrics.get(f"sets/{n}", (0.0, 0.0))[0] for n in names]
        counts = [int(metrics.get(f"sets/{n}/examples", (0.0, 0.0))[0]) for n in names]
        sets = Sets(names, grads, losses, counts, [n for n, _ in trainable(self.scorer)])
        memory = self.objective_state.setdefault("combine", {})
        for p, g in zip(self.parameters, self.combine_rule(sets, memory), strict=True):
            p.grad = g

    def update(self, learning_rates: dict[int, float] | None = None) -> float:
        """Clips, checks that everything is finite, steps; returns the norm before clipping.

        Raises:
            TrainingError: the gradient is not finite; nothing has been changed.
        """
        assert self.optimizer is not None
        norm = total_norm(self.parameters)
        if not np.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"the gradient is not finite (norm {norm}), though every loss was; the weights were left as they are. "
                "Lower learning_rate, or train with precision: fp32"
            )
        if self.max_grad_norm is not None and norm > self.max_grad_norm:
            torch._foreach_mul_(
                [p.grad for p in self.parameters if p.grad is not None], self.max_grad_norm / (norm + 1e-6)
            )
        for number, rate in (learning_rates or {}).items():
            self.optimizer.param_groups[number]["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # -- looking ahead and back ---------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Parameters, optimizer and objective state, as they are now."""
        assert self.optimizer is not None
        return {
            "parameters": [p.detach().clone() for p in self.parameters],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "objective": copy.deepcopy(self.objective_state),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Back to a snapshot."""
        assert self.optimizer is not None
        with torch.no_grad():
            for p, saved in zip(self.parameters, snapshot["parameters"], strict=True):
                p.copy_(saved)
        self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))
        self.objective_state = copy.deepcopy(snapshot["objective"])

    def evaluate(self, batch: Batch, number: int = 0) -> tuple[Metrics, list[Example]]:
        """Metrics and examples of a batch, without gradient or update; objective state stays as it is."""
        state, self.objective_state = self.objective_state, copy.deepcopy(self.objective_state)
        try:
            collected = self.collect(batch, number)
        finally:
            self.objective_state = state
        leaves = collected.leaves or self._score_all(collected)
        with no_dropout(self.scorer):
            _, (metrics, examples) = self.cotangents(collected, leaves, collected.batch.terms, [])
        return metrics, examples

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _mine(self, batch: Batch, groups: list[list[int]]) -> tuple[list[Micro], list[bool]]:
        """This process's groups, packed; every process runs equally many, the surplus ones without gradient."""
        rank, world = self.processes.rank, self.processes.world
        rounds = -(-len(groups) // world)
        micros, owned = [], []
        for r in range(rounds):
            own = r * world + rank < len(groups)
            group = groups[r * world + rank] if own else groups[0]
            micros.append(pack(batch.sequences, group, self.scorer.layout, keep_last=self.scorer.keep_last))
            owned.append(own)
        return micros, owned

    def _references(self, batch: Batch) -> dict[int, Tensor]:
        if self.reference is None:
            return {}
        used = sorted(
            {
                int(i)
                for name, term in batch.terms.items()
                if self.terms[name].needs_reference
                for role in term.roles.values()
                for i in role.ravel()
                if i >= 0
            }
        )
        found = self.reference.logp([batch.sequences[i] for i in used], self.budget) if used else []
        return {i: torch.from_numpy(np.asarray(logp)) for i, logp in zip(used, found, strict=True)}

    def _forward(self, micro: Micro) -> dict[str, Tensor]:
        """One pass of the scorer, with the reference beside it where a row asks for the whole vocabulary."""
        row = Row.of(micro, self.scorer.device)
        if "kl" not in self.needs:
            return self.scorer(row, self.needs)
        assert self.reference is not None
        with self.reference.open() as reference:
            beside = reference.against(row)
        return self.scorer(row, self.needs, beside)

    def by_token(self, name: str) -> bool:
        """True if the engine returns `name` for every predicted token, False if for every sequence."""
        head = name.removeprefix("head:")
        return name in ("logp", "entropy", "kl") or (head != name and self.scorer.heads[head].at == "tokens")  # type: ignore[union-attr]

    def _leaves(self, collected: Collected, micro: Micro, out: dict[str, Tensor]) -> Leaves:
        """Detached leaves of one forward pass, in the numbering of the batch's sequences."""
        device = self.scorer.device
        owner = torch.from_numpy(micro.owner).to(device)
        tokens = {k: v.detach().to(self.dtype) for k, v in out.items() if self.by_token(k)}
        leaves = Leaves(tokens, owner, len(collected.batch.sequences))
        self._add_reference(collected, leaves, micro.owner)
        index = torch.from_numpy(micro.sequences).to(device)
        for name, value in out.items():
            if not self.by_token(name):
                shape = (len(collected.batch.sequences), *value.shape[1:])
                full = torch.zeros(shape, dtype=self.dtype, device=device)
                leaves.sequences[name] = full.index_copy(0, index, value.detach().to(self.dtype))
        return leaves

    def _add_reference(self, collected: Collected, leaves: Leaves, owner: np.ndarray) -> None:
        if not collected.reference:
            return
        parts = []
        for i in dict.fromkeys(owner.tolist()):
            n = int((owner == i).sum())
            parts.append(collected.reference.get(i, torch.zeros(n)))
        leaves.tokens["ref_logp"] = torch.cat(parts).to(leaves.owner.device, self.dtype)

    def _score_all(self, collected: Collected) -> Leaves:
        """Every sequence of the global batch scored without gradient and gathered from all processes."""
        found: dict[int, dict[str, Tensor]] = {}
        for micro, own in zip(collected.micros, collected.owned, strict=True):
            with torch.no_grad(), no_dropout(self.scorer):
                out = {k: v.float().cpu() for k, v in self._forward(micro).items()}
            if not own:
                continue
            for place, i in enumerate(micro.sequences.tolist()):
                mine = torch.from_numpy(micro.owner == i)
                found[i] = {k: v[mine] if self.by_token(k) else v[place] for k, v in out.items()}
        for other in self.processes.gather(found):
            found |= other
        order = sorted(found)
        device = self.scorer.device
        owner = np.concatenate([np.full(len(found[i]["logp"]), i) for i in order])
        names = found[order[0]].keys()
        tokens = {k: torch.cat([found[i][k] for i in order]).to(device, self.dtype) for k in names if self.by_token(k)}
        leaves = Leaves(tokens, torch.from_numpy(owner).to(device), len(collected.batch.sequences))
        self._add_reference(collected, leaves, owner)
        for k in names:
            if k not in tokens:
                leaves.sequences[k] = torch.stack([found[i][k] for i in order]).to(device, self.dtype)
        return leaves

    def _slice(self, collected: Collected, cotangent: dict[str, Tensor], micro: Micro, mine: bool) -> dict[str, Tensor]:
        """The part of the batch's cotangents that belongs to one forward pass; zeros if it is not ours."""
        assert collected.leaves is not None
        owner = collected.leaves.owner.cpu().numpy()
        rows = np.concatenate([np.flatnonzero(owner == i) for i in dict.fromkeys(micro.owner.tolist())])
        found = {}
        for name, value in cotangent.items():
            index = rows if name in collected.leaves.tokens else micro.sequences
            piece = value[torch.from_numpy(index).to(value.device)]
            found[name] = piece if mine else torch.zeros_like(piece)
        return found

    def _within(self, batch: Batch, micro: Micro) -> dict[str, TermBatch]:
        """The examples whose sequences lie in this forward pass."""
        here = set(micro.sequences.tolist())
        index: dict[str, list[int]] = {}
        for name, i, places in batch.examples():
            if places[0] in here:
                index.setdefault(name, []).append(i)
        return {name: batch.terms[name].take(np.array(i)) for name, i in index.items()}

    def _set_names(self, batch: Batch) -> list[str]:
        if self.partition == "all":
            return ["all"]
        if self.partition == "term":
            return sorted(batch.terms)
        return sorted({s for t in batch.terms.values() for s in t.sources})

    def _parts(self, name: str, batch: TermBatch) -> list[tuple[str, Any]]:
        if self.partition == "all":
            return [("all", slice(None))]
        if self.partition == "term":
            return [(name, slice(None))]
        return [
            (s, torch.tensor([i for i, o in enumerate(batch.sources) if o == s])) for s in sorted(set(batch.sources))
        ]

    def _check(self, term: Term, batch: TermBatch, outcome: Outcome) -> None:
        bad = (~torch.isfinite(outcome.loss.detach())).nonzero().flatten().tolist()
        if bad:
            record = self.records[int(batch.records[bad[0]])]
            place = f" ({record.origin.file}, line {record.origin.line})" if record.origin else ""
            seen = ", ".join(f"log-prob of {k} {float(v[bad[0]]):.4g}" for k, v in outcome.logps.items())
            raise TrainingError(
                f"the loss of {term.name!r} is not finite on record {record.id}{place}: {seen}. "
                "Lower learning_rate, or look at the record with `accord data show`"
            )

    def _shown(self, name: str, batch: TermBatch, outcome: Outcome) -> list[Example]:
        loss = outcome.loss.detach().tolist()
        columns = [
            {k: v.tolist() for k, v in part.items()} for part in (outcome.rewards, outcome.logps, outcome.lengths)
        ]
        return [
            Example(
                name,
                self.records[int(batch.records[i])].id,
                batch.sources[i],
                loss[i],
                *({k: v[i] for k, v in part.items()} for part in columns),  # type: ignore[arg-type]
            )
            for i in range(len(batch))
        ]


def add_metrics(into: Metrics, other: Metrics) -> None:
    """Adds sums and counts."""
    for name, (value, count) in other.items():
        have = into.get(name, (0.0, 0.0))
        into[name] = (have[0] + value, have[1] + count)


def reduced(metrics: Metrics) -> dict[str, float]:
    """Each metric's value: sum / count, or the sum itself where it was divided already."""
    return {name: value if count == 0 else value / count for name, (value, count) in metrics.items()}
