"""One update: what do we divide by, and when do we stop for NaN?

Phases, each callable on its own: `collect` (count, score the whole batch where a row asks) -> `cotangents` (evaluate
the objectives on detached leaves) -> `backward` (one pass for each set of cotangents) -> `combine` (how sets share
the step) -> `update` (clip, finite check, optimizer). A term's loss is divided once, by its own number of examples or
tokens in the global batch, so its weight means the same whatever stands beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accord.data.batches import Batch, Micro, TermBatch, micro_batches, pack, seeded, with_mismatched
from accord.data.records import Record
from accord.engine.logprobs import Given, Row, Scorer, adapter_dropout, no_dropout
from accord.engine.models import trainable
from accord.engine.reference import Reference
from accord.errors import AccordError, ConfigError
from accord.objectives import table
from accord.training import cost, early, sets
from accord.training.meta import Meta
from accord.training.parallel import Processes, norms_by_part, total_norm
from accord.training.sharing import Combine, Gradients, Partition, Rule, add_up, pair_normalised, parts, set_names
from accord.training.terms import (
    Example,
    Leaves,
    Metrics,
    Outcome,
    Seen,
    Term,
    add_metrics,
    evaluate,
    factors,
    shown,
    statistics,
)
from accord.training.ways import GRADIENTS, Way, way_of

ENGINE_NEEDS = ("entropy", "collision", "distance", "hidden", *table.LIVE)


class TrainingError(AccordError):
    """Training cannot go on: a loss or a gradient that is not finite."""


@dataclass
class Collected:
    """The update's plan for this process, and what had to be known before any gradient.

    direct: objectives are evaluated micro-batch by micro-batch (every example lies in one of them, no term couples
    the batch, or but for statistics of `silent` micro-batches, which get no gradient); else the batch is scored first.
    leaves: what was scored first. fixed: log-probs that are no leaves (references, sampling) by name and sequence.
    """

    batch: Batch
    number: int
    micros: list[Micro]
    owned: list[bool]
    silent: list[Micro]
    divisors: dict[str, float]
    fixed: dict[str, dict[int, Tensor]]
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


class Step:
    """The update of a policy by terms.

    Args:
        scorer: what is trained.
        terms: by name.
        references: by name; `ref` is the one that is meant where none is named.
        budget: tokens of a micro-batch; affects speed and memory alone.
        partition: `all` gives one set of cotangents, `term` or `source` one for each, over one forward pass; `side` one
            for chosen and one for rejected responses.
        combine: from the gradients of the sets to the gradient of the step.
        rule: how much of each set makes the step, in place of `combine`; see `sharing.py`.
        sources: of each term, its sources, if they are to be measured one by one.
        way: see `ways.py`; None: as the rows were published. meta: the policy's answers, for the way of that name.
    """

    def __init__(
        self,
        scorer: Scorer,
        terms: dict[str, Term],
        records: Seq[Record],
        optimizer: torch.optim.Optimizer | None,
        *,
        references: Mapping[str, Reference] | None = None,
        budget: int = 2048,
        max_grad_norm: float | None = 1.0,
        seed: int = 0,
        processes: Processes | None = None,
        partition: Partition = "all",
        combine: Combine = add_up,
        rule: Rule | None = None,
        sources: Mapping[str, Seq[str]] | None = None,
        way: Way | None = None,
        meta: Meta | None = None,
    ) -> None:
        self.scorer, self.terms, self.records, self.optimizer = scorer, terms, records, optimizer
        self.references: dict[str, Reference] = dict(references or {})
        self.budget, self.max_grad_norm, self.seed = budget, max_grad_norm, seed
        self.processes = processes or Processes()
        self.way = way_of(way, terms)
        sides = self.way == "pair_normalised"
        if sides and rule is not None:
            raise ConfigError(
                "update: pair_normalised and sharing both say how much of a gradient makes the step: leave one out"
            )
        self.partition, self.combine_rule = ("side", pair_normalised) if sides else (partition, combine)
        self.rule, self.sources, self.meta = rule, dict(sources or {}), meta
        self.objective_state: dict[str, dict[str, Any]] = {name: {} for name in terms}
        named = list(trainable(scorer))
        self.parameters = [p for _, p in named]
        self.look_at_parts, self.norms = False, dict[str, float]()  # of the gradient, before it was clipped
        self.watched = sets.watched_by(rule, scorer, [n for n, _ in named])
        self.apart = self.partition != "all" and (rule is None or rule.on in ("adapter", "all"))
        asked = {n.removesuffix("_tokens") for t in terms.values() for n in t.needs}
        self.needs = frozenset(n for n in asked if n.partition(":")[0] in ENGINE_NEEDS)
        if rule is not None and rule.on == "head":
            self.needs |= {"hidden"}
        self.keep_last = scorer.keep_last or "hidden" in self.needs
        self.logps = any(t.logps for t in terms.values())
        if unnamed := {r for t in terms.values() for r in t.references} - self.references.keys():
            raise ConfigError(f"no reference is called {sorted(unnamed)[0]!r}; name it: reference: {{NAME: path}}")
        self.live = [words for t in terms.values() for words in t.live]
        if self.live and ("ref" not in self.references or self.references["ref"].mode != "live"):
            raise ConfigError(
                f"{self.live[0]} needs the reference beside the policy: set reference_mode: live (one more forward "
                "pass a step, and its weights in memory)"
            )
        self.dtype = torch.float64  # of leaves, which lie on the CPU: a device is waited for once a micro-batch
        self.work = cost.Work(scorer)

    def __call__(
        self, batch: Batch, number: int, learning_rates: dict[int, float] | None = None, progress: float = 0.0
    ) -> Result:
        """Phases one after another; `number` is the step's, from 0, and `learning_rates` one for each group."""
        how = GRADIENTS.get(self.way, Step.gradient)
        metrics, examples = how(self, batch, number, learning_rates, progress)
        norm = self.update(learning_rates)
        for reference in self.references.values():
            reference.follow(number + 1)
        return Result(metrics, norm, examples)

    def gradient(
        self, batch: Batch, number: int, learning_rates: dict[int, float] | None = None, progress: float = 0.0
    ) -> tuple[Metrics, list[Example]]:
        """The phases up to the gradient of the step, which is left in `.grad`; metrics and examples."""
        collected = self.collect(batch, number, progress)
        grads, metrics, examples = self.backward(collected)
        metrics = self.processes.sum_counts(metrics)
        self.combine(grads, collected, metrics)
        return metrics, examples

    # -- phases -------------------------------------------------------------------------------------------------------

    def collect(self, batch: Batch, number: int, progress: float = 0.0, *, train: bool = True) -> Collected:
        """Counts, fetches the references, packs; scores the whole batch if a row asks for it."""
        batch = self.complete(batch)
        divisors = {name: self.units(name, batch, examples) for name, examples in batch.terms.items()}
        coupled = [term for name in batch.terms if (term := self.terms[name]).scores_batch_first]
        anchored = bool(coupled) and train and self.rule is None and self.way == "plain"
        anchored &= all(term.anchored for term in coupled)
        direct = anchored or not coupled
        trained: list[tuple[int, ...]] = [(i,) for i in range(len(batch.sequences)) if not batch.silent[i]]
        units = [tuple(i for i in p if not (anchored and batch.silent[i])) for _, _, p in batch.examples()]
        units = units if direct else trained
        micros, owned = self.mine(batch, units)
        if train and direct and self.rule is not None and self.rule.on == "head" and len(micros) > 1:
            direct = False  # shares are known when all of the batch has been scored
            micros, owned = self.mine(batch, trained)
        ahead = anchored or not direct
        silent, _ = self.mine(batch, [(int(i),) for i in np.flatnonzero(batch.silent)] if ahead else [])
        extra = {"progress": progress, "noise": lambda r: seeded(self.seed, number, self.records[r].id).random()}
        collected = Collected(batch, number, micros, owned, silent, divisors, self._fixed(batch), direct, extra)
        if ahead:
            collected.leaves = leaves = self._score_all(collected, train, silent=anchored)
            state = self.objective_state
            with torch.no_grad():
                for name, examples in batch.terms.items():
                    collected.stats[name] = statistics(self.terms[name], examples, leaves, extra, state[name])
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
        names = set_names(self.partition, collected.batch)
        stash: list[list[Tensor | None]] = [[None] * len(self.parameters) for _ in names]
        whole: list[dict[str, Tensor]] | None = None
        if not collected.direct:
            assert collected.leaves is not None
            whole, seen = self.cotangents(collected, collected.leaves, collected.batch.terms, names)
            if self.processes.first:  # every process computes the same: one reports
                metrics, examples = seen.metrics, seen.examples
        share = sets.ahead(self, collected, names, whole)
        known_early = early.known(self, collected)
        here: Seen | None
        for place, (micro, mine) in enumerate(zip(collected.micros, collected.owned, strict=True)):
            with adapter_dropout(self.scorer):  # a checkpointed layer is computed again in the backward pass
                self.draw(collected, place)
                if known_early:
                    out, cotangents, here = early.score(self, collected, micro, mine)
                else:
                    out = self.score(micro)
                    cotangents, here = self.cotangents_of(collected, micro, mine, out, names, whole)
                if here is not None:
                    add_metrics(metrics, here.metrics)
                    examples += here.examples
                if self.rule is not None and not self.apart:
                    if share is None:  # the one micro-batch holds all of this process
                        share = sets.from_heads(self, collected, names, cotangents, out)
                    cotangents = [sets.blend(self, collected, names, cotangents, share)]
                for number, cotangent in enumerate(cotangents):
                    sets.hand_back(out, cotangent, again=number < len(cotangents) - 1)
                    if self.apart:
                        sets.put_aside(self, stash[number])
        if share is not None and self.processes.first:
            metrics |= sets.told(names, share)
        return (stash if self.apart else [[p.grad for p in self.parameters]]), metrics, examples

    def cotangents_of(
        self, collected: Collected, micro: Micro, mine: bool, out: dict[str, Tensor], names: list[str],
        whole: list[dict[str, Tensor]] | None,
    ) -> tuple[list[dict[str, Tensor]], Seen | None]:  # fmt: skip
        """What is handed back to one forward pass for each set; of a batch that was scored first, its part."""
        if whole is not None:
            return [self._slice(collected, c, micro, mine) for c in whole], None
        terms = self._within(collected.batch, micro) if mine else {}
        leaves = self._leaves(collected, micro, out)
        cotangents, seen = self.cotangents(collected, leaves, terms, names)
        here = torch.from_numpy(micro.sequences)
        return [{k: v if k in leaves.tokens else v[here] for k, v in c.items()} for c in cotangents], seen

    def cotangents(
        self, collected: Collected, leaves: Leaves, terms: dict[str, TermBatch], names: list[str]
    ) -> tuple[list[dict[str, Tensor]], Seen]:
        """Gradient of the objectives with respect to the leaves, one dict for each set, and what was measured."""
        named = dict(leaves.sequences)
        named |= {k: v for k, v in leaves.tokens.items() if not k.endswith("_logp")}  # those are fixed
        for leaf in named.values():
            leaf.requires_grad_(True)
        totals: dict[str, Tensor] = {}
        metrics: Metrics = {}
        examples: list[Example] = []
        losses: Metrics = {}
        for name, batch in terms.items():
            if not len(batch):
                continue
            term = self.terms[name]
            with torch.enable_grad():
                outcome = evaluate(term, batch, leaves, collected.stats.get(name, {}), collected.extra)
            self._check(term, batch, outcome)
            if not outcome.loss.requires_grad:
                rows = " + ".join(row.name for row, _, _ in term.parts)
                raise ConfigError(
                    f"the loss of {rows} does not depend on what the model gives, so nothing would be learned: look "
                    "for a detach(), an item() or a no_grad() in it"
                )
            weight = torch.as_tensor(batch.weight, dtype=outcome.loss.dtype, device=outcome.loss.device)
            scaled = term.weight * weight * outcome.loss / collected.divisors[name]
            for key, which in parts(self.partition, name, batch) if names else ():
                with torch.enable_grad():
                    if self.partition == "side":
                        only = collected.extra | {"side": key}
                        one = evaluate(term, batch, leaves, collected.stats.get(name, {}), only).loss
                        part = (term.weight * weight * one / collected.divisors[name]).sum()
                    else:
                        part = scaled[which].sum()
                totals[key] = totals[key] + part if key in totals else part
                if self.partition in ("term", "source"):
                    add_metrics(metrics, {f"sets/{key}": (float(part.detach()), 0.0)})
            add_metrics(metrics, {"loss": (float(scaled.detach().sum()), 0.0)})
            measured = sets.measured(self, collected.batch, term, batch, outcome)
            add_metrics(losses, {name: measured["loss"]})
            if len(self.terms) > 1:
                measured = {f"{name}/{metric}": value for metric, value in measured.items()}
            add_metrics(metrics, {k: v for k, v in measured.items() if k != "loss"})
            examples += shown(name, batch, outcome, self.records)
        found = []
        keys = list(named)
        for key in names:
            grads = (
                torch.autograd.grad(totals[key], [named[k] for k in keys], allow_unused=True, retain_graph=True)
                if key in totals and totals[key].requires_grad
                else [None] * len(keys)
            )
            found.append({k: torch.zeros_like(named[k]) if g is None else g for k, g in zip(keys, grads, strict=True)})
        add_metrics(metrics, factors(self.terms, terms, leaves, found, collected.divisors))
        return found, Seen(metrics, examples, losses)

    def combine(self, grads: list[Gradients], collected: Collected, metrics: Metrics) -> None:
        """Puts the gradient of the step where the optimizer looks for it, and tells the rule what the step was.

        The rule's memory lies under `combine` in the objective state, which is checkpointed.
        """
        if self.partition != "all":
            sets.combine(self, grads, collected, metrics)

    def update(self, learning_rates: dict[int, float] | None = None) -> float:
        """Clips, checks that everything is finite, steps; returns the norm before clipping.

        Raises:
            TrainingError: the gradient is not finite; nothing has been changed.
        """
        assert self.optimizer is not None
        norm = total_norm(self.parameters)
        if self.look_at_parts or not np.isfinite(norm):
            self.norms = norms_by_part(self.scorer)
        if not np.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            where = ", ".join(part for part, own in self.norms.items() if not np.isfinite(own))
            raise TrainingError(
                f"the gradient is not finite (norm {norm}, in {where}), though every loss was; the weights were left "
                "as they are. Lower learning_rate, or train with precision: fp32"
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

    def evaluate(self, batch: Batch, number: int = 0) -> Seen:
        """What is measured on a batch, without gradient, dropout or update; objective state stays as it is."""
        state, self.objective_state = self.objective_state, copy.deepcopy(self.objective_state)
        try:
            collected = self.collect(batch, number, train=False)
        finally:
            self.objective_state = state
        leaves = collected.leaves or self._score_all(collected, train=False)
        return self.cotangents(collected, leaves, collected.batch.terms, [])[1]

    def on(self, records: Seq[Record]) -> Step:
        """The same step on batches of other records: for held-out data."""
        other = copy.copy(self)
        other.records = records
        return other

    def referenced(self, batch: Batch) -> dict[str, list[int]]:
        """Which sequences of a complete batch are compared with each reference."""
        found: dict[str, set[int]] = {}
        for name in batch.terms:
            for which in self.terms[name].references:
                found.setdefault(which, set()).update(batch.used(name))
        return {which: sorted(used) for which, used in found.items()}

    # -- pieces -------------------------------------------------------------------------------------------------------

    def units(self, name: str, batch: Batch, examples: TermBatch) -> float:
        """What the term's loss is divided by: its examples, or their trained tokens."""
        if self.terms[name].unit == "example":
            return float(len(examples))
        return float(sum(int(batch.sequences[i].trained.sum()) for i in batch.used(examples, silent=False)))

    def mine(self, batch: Batch, units: Seq[tuple[int, ...]]) -> tuple[list[Micro], list[bool]]:
        """This process's micro-batches; every process runs equally many, the surplus ones without gradient."""
        groups = micro_batches(batch.sequences, units, self.budget, self.scorer.layout)
        rank, world = self.processes.rank, self.processes.world
        groups = self.work.alike(batch.sequences, groups) if world > 1 else groups
        rounds = -(-len(groups) // world)
        micros, owned = [], []
        for r in range(rounds):
            own = r * world + rank < len(groups)
            group = groups[r * world + rank] if own else groups[-1]
            micros.append(pack(batch.sequences, group, self.scorer.layout, keep_last=self.keep_last))
            owned.append(own)
        return micros, owned

    def draw(self, collected: Collected, place: int) -> None:
        """Seeds what dropout draws for a micro-batch: a batch that is scored first draws the same in both passes."""
        rank = self.processes.rank
        torch.manual_seed(int(seeded(self.seed, "torch", collected.number, rank, place).integers(2**31)))

    def _fixed(self, batch: Batch) -> dict[str, dict[int, Tensor]]:
        """Log-probs of every reference, and those that were written down when the responses were sampled."""
        found: dict[str, dict[int, Tensor]] = {}
        for which, used in self.referenced(batch).items():
            logp = self.references[which].logp([batch.sequences[i] for i in used], self.budget)
            found[f"{which}_logp"] = {i: torch.from_numpy(np.asarray(x)) for i, x in zip(used, logp, strict=True)}
        for name in batch.terms:
            if self.terms[name].needs_old:
                for i in set(batch.used(name, silent=False)):
                    sequence = batch.sequences[i]
                    if sequence.old is None or np.isnan(sequence.old[sequence.trained]).any():
                        raise ConfigError(
                            f"{name!r} needs the log-probs under which its responses were sampled (sampling_logprobs "
                            "beside token_ids), for every trained token; `accord sample` writes them"
                        )
                    found.setdefault("old_logp", {})[i] = torch.from_numpy(sequence.old[sequence.trained])
        return found

    def score(self, micro: Micro, given: Given | None = None) -> dict[str, Tensor]:
        """One pass of the scorer, with the reference beside it where a row asks for that."""
        row = Row.of(micro, self.scorer.device)
        if not self.live:
            return self.scorer(row, self.needs, logp=self.logps, given=given)
        with self.references["ref"].open() as reference:
            if (own := self.scorer.layout) != reference.layout:
                both = f"the policy's prompts are laid out {own!r}, the reference's {reference.layout!r}"
                raise ConfigError(f"{self.live[0]} needs both on the same tokens, but {both}: set layout: padded")
            beside = reference.against(row, self.needs)
        return self.scorer(row, self.needs, beside)

    def by_token(self, name: str) -> bool:
        """True if the engine returns `name` for every predicted token, False if for every sequence."""
        what, _, head = name.partition(":")
        if what == "head":
            return self.scorer.heads[head].at == "tokens"  # type: ignore[union-attr]
        return what == "logp" or (what in ENGINE_NEEDS and what != "hidden")

    def _leaves(self, collected: Collected, micro: Micro, out: dict[str, Tensor]) -> Leaves:
        """Detached leaves of one forward pass, in the numbering of the batch's sequences."""
        owner, parts = torch.from_numpy(micro.owner), torch.from_numpy(collected.batch.parts)
        out = {k: v.detach().cpu().to(self.dtype) for k, v in out.items()}
        tokens = {k: v for k, v in out.items() if self.by_token(k)}
        leaves = Leaves(tokens, owner, len(parts), parts=parts)
        self._add_fixed(collected, leaves, micro.owner)
        index = torch.from_numpy(micro.sequences)
        for name, value in out.items():
            if not self.by_token(name):
                shape = (len(collected.batch.sequences), *value.shape[1:])
                leaves.sequences[name] = torch.zeros(shape, dtype=self.dtype).index_copy(0, index, value)
        return leaves

    def _add_fixed(self, collected: Collected, leaves: Leaves, owner: np.ndarray) -> None:
        order, counts = np.unique(owner, return_counts=True)
        size = dict(zip(order.tolist(), counts.tolist(), strict=True))
        for name, known in collected.fixed.items():
            parts = [known.get(i, torch.zeros(size[i])) for i in dict.fromkeys(owner.tolist())]
            leaves.tokens[name] = torch.cat(parts).to(self.dtype)

    def _score_all(self, collected: Collected, train: bool, silent: bool = False) -> Leaves:
        """Every sequence of the global batch, or silent one, scored without gradient, gathered from all processes.

        Under `train` adapters drop out what they will drop out in the backward pass.
        """
        found: dict[int, dict[str, Tensor]] = {}
        every = [*zip(collected.micros, collected.owned, strict=True), *((m, True) for m in collected.silent)]
        for number, (micro, own) in [*enumerate(every)][len(collected.micros) if silent else 0 :]:
            with torch.no_grad(), adapter_dropout(self.scorer) if train else no_dropout(self.scorer):
                self.draw(collected, number)
                out = {k: v.float().cpu() for k, v in self.score(micro).items()}
            if not own:
                continue
            for place, i in enumerate(micro.sequences.tolist()):
                mine = torch.from_numpy(micro.owner == i)
                found[i] = {k: v[mine] if self.by_token(k) else v[place] for k, v in out.items()}
        for other in self.processes.gather(found):
            found |= other
        order = sorted(found)
        owner = np.repeat(order, [int(collected.batch.sequences[i].trained.sum()) for i in order])
        names = found[order[0]].keys()
        tokens = {k: torch.cat([found[i][k] for i in order]).to(self.dtype) for k in names if self.by_token(k)}
        parts = torch.from_numpy(collected.batch.parts)
        leaves = Leaves(tokens, torch.from_numpy(owner), len(parts), parts=parts)
        self._add_fixed(collected, leaves, owner)
        for k in names:
            if k not in tokens:
                leaves.sequences[k] = torch.stack([found[i][k] for i in order]).to(self.dtype)
        return leaves

    def _slice(self, collected: Collected, cotangent: dict[str, Tensor], micro: Micro, mine: bool) -> dict[str, Tensor]:
        """The part of the batch's cotangents that belongs to one forward pass; zeros if it is not ours."""
        assert collected.leaves is not None
        owner = collected.leaves.owner.cpu().numpy()
        rows = np.concatenate([np.flatnonzero(owner == i) for i in dict.fromkeys(micro.owner.tolist())])
        found = {}
        for name, value in cotangent.items():
            index = rows if name in collected.leaves.tokens else micro.sequences
            piece = value[torch.from_numpy(index)]
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

    def _check(self, term: Term, batch: TermBatch, outcome: Outcome) -> None:
        bad = (~torch.isfinite(outcome.loss.detach())).nonzero().flatten().tolist()
        if bad:
            record = self.records[int(batch.records[bad[0]])]
            place = f" ({record.origin.file}, line {record.origin.line})" if record.origin else ""
            named = [("log-prob", outcome.logps), ("reward", outcome.rewards if term.scored else {})]
            seen = ", ".join(f"{what} of {k} {float(v[bad[0]]):.4g}" for what, found in named for k, v in found.items())
            raise TrainingError(
                f"the loss of {term.name!r} is not finite on record {record.id}{place}: {seen}. "
                "Lower learning_rate, or look at the record with `accord data show`"
            )
