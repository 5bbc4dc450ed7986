"""How do tensors of the engine become what an objective feeds on?

A term is an objective with its weight, options and view of the data. `evaluate` assembles the kinds (`Pairs`,
`Points`, ...) from token log-probs by the batch's index tensors, calls the objective, and says what there is to
measure. Everything is computed in float64 on detached leaves; the gradient with respect to those leaves goes back to
the engine as cotangents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from accord.data.batches import TermBatch
from accord.data.views import ViewOptions
from accord.errors import ConfigError
from accord.objectives import kinds, table


@dataclass
class Term:
    """One objective at work.

    parts: (row, weight, options) of the objectives that are summed; all see the same examples.
    feeds_on: kind of the examples. length: `sum` or `mean` for every part, or None for each row's own.
    log_z: `one` (log Z = 0), a number of nats, or `head` (learned from the prompt's last hidden state).
    """

    name: str
    parts: tuple[tuple[table.Row, float, dict[str, Any]], ...]
    weight: float = 1.0
    feeds_on: str = "Pairs"
    length: str | None = None
    log_z: str | float = "one"
    view: ViewOptions = field(default_factory=ViewOptions)
    feedback: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    share: float | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Everything the parts ask for."""
        found: set[str] = set()
        for row, _, _ in self.parts:
            found.update(row.needs + row.stats_needs)
        return frozenset(found)

    @property
    def needs_reference(self) -> bool:
        return any(n == "ref" or n.startswith("ref_") for n in self.needs)

    @property
    def scores_batch_first(self) -> bool:
        return any(row.scores_batch_first for row, _, _ in self.parts)

    @property
    def both_classes(self) -> bool:
        return any(row.classes == "both" for row, _, _ in self.parts)

    @property
    def unit(self) -> str:
        return "token" if all(row.unit == "token" for row, _, _ in self.parts) else "example"

    @property
    def heads(self) -> tuple[str, ...]:
        wanted = [h for h in ("score", "value", "mask") if h in self.needs]
        return (*wanted, "log_z") if "log_z" in self.needs and self.log_z == "head" else tuple(wanted)


# An example of the first kind is also one (or two) of the second: what a sum of objectives on pairs may hold.
DERIVED = {"Pairs": ("Demos", "Points"), "Points": (), "Demos": ("Points",), "Groups": ()}


@dataclass
class Leaves:
    """What the engine returned for N sequences. tokens: name -> [M]; owner [M]; sequences: name -> [N]."""

    tokens: dict[str, Tensor]
    owner: Tensor
    count: int
    sequences: dict[str, Tensor] = field(default_factory=dict)

    def sums(self, name: str) -> Tensor:
        """Sum of a token statistic over each sequence, [N]."""
        values = self.tokens[name]
        return torch.zeros(self.count, dtype=values.dtype, device=values.device).index_add(0, self.owner, values)

    def lengths(self) -> Tensor:
        """Trained tokens of each sequence, [N]."""
        ones = torch.ones_like(self.owner, dtype=self.tokens["logp"].dtype)
        return torch.zeros(self.count, dtype=ones.dtype, device=ones.device).index_add(0, self.owner, ones)

    def matrix(self, name: str) -> tuple[Tensor, Tensor]:
        """A token statistic as [N, L] and the mask that is True where there is a token."""
        values = self.tokens[name]
        order = torch.argsort(self.owner, stable=True)
        owner = self.owner[order]
        counts = torch.bincount(owner, minlength=self.count)
        column = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
        width = int(counts.max()) if len(owner) else 0
        out = values.new_zeros(self.count, width).index_put((owner, column), values[order])
        mask = torch.zeros(self.count, width, dtype=torch.bool, device=owner.device).index_put(
            (owner, column), torch.ones_like(owner, dtype=torch.bool)
        )
        return out, mask


def assemble(
    kind: str, batch: TermBatch, statistic: Tensor, lengths: Tensor, roles: dict[str, str] | None = None
) -> Any:
    """A per-sequence statistic [N] as `kind`, by the batch's index tensors.

    roles: which role stands for `response`; by default itself.
    """

    def at(role: str) -> Tensor:
        return torch.as_tensor(batch.roles[(roles or {}).get(role, role)], device=statistic.device)

    def value(name: str) -> Tensor:
        return torch.as_tensor(batch.values[name], dtype=statistic.dtype, device=statistic.device)

    if kind == "Pairs":
        w, l = at("chosen"), at("rejected")
        return kinds.Pairs(
            statistic[w], statistic[l], lengths[w], lengths[l],
            value("strength"), value("score_chosen"), value("score_rejected"),
        )  # fmt: skip
    i = at("responses" if kind == "Groups" else "response")
    if kind == "Demos":
        return kinds.Demos(statistic[i], lengths[i])
    if kind == "Points":
        return kinds.Points(statistic[i], lengths[i], value("value"))
    if kind == "Groups":
        mask = i >= 0
        safe = i.clamp(min=0)
        zero = torch.zeros((), dtype=statistic.dtype, device=statistic.device)
        return kinds.Groups(
            torch.where(mask, statistic[safe], zero), torch.where(mask, lengths[safe], zero), value("score"), mask
        )
    raise ConfigError(f"nothing makes {kind} from offline data")


def derive(kind: str, batch: TermBatch) -> list[tuple[str, TermBatch]]:
    """The batch seen as `kind`: chosen responses as demonstrations; chosen and rejected as good and bad points."""
    if kind == batch.kind:
        return [(kind, batch)]

    def seen(role: str, value: float) -> TermBatch:
        import numpy as np

        return TermBatch(
            kind,
            {"response": batch.roles[role]},
            {"value": np.full(len(batch), value)} if kind == "Points" else {},
            batch.weight,
            batch.records,
            batch.sources,
        )

    if batch.kind == "Pairs" and kind == "Demos":
        return [(kind, seen("chosen", 1.0))]
    if batch.kind == "Pairs" and kind == "Points":
        return [(kind, seen("chosen", 1.0)), (kind, seen("rejected", 0.0))]
    if batch.kind == "Demos" and kind == "Points":
        return [(kind, seen("response", 1.0))]
    raise ConfigError(f"{batch.kind} cannot be seen as {kind}")


def _needs_of(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY)


def _call(
    function: Callable[..., Any], row: table.Row, term: Term, batch: TermBatch, leaves: Leaves, options: dict[str, Any],
    extra: dict[str, Any],
) -> Any:  # fmt: skip
    """Calls an objective or its stats function with what its signature asks for."""
    lengths = leaves.lengths()
    mean = (term.length or row.length) == "mean"
    kind = row.feeds_on

    def sequence(name: str, role: dict[str, str] | None = None) -> Any:
        total = leaves.sums(name)
        return assemble(kind, batch, total / lengths.clamp(min=1) if mean else total, lengths, role)

    def need(name: str) -> Any:
        if name == "noise":
            return torch.tensor(
                [extra["noise"](int(r)) for r in batch.records], dtype=lengths.dtype, device=lengths.device
            )
        if name in extra:
            return extra[name]
        if name == "ref":
            return sequence("ref_logp")
        if name in ("mismatched", "ref_mismatched"):
            return sequence("logp" if name == "mismatched" else "ref_logp", {"response": "mismatched"})
        if name == "log_z":
            zero = torch.zeros(len(batch), dtype=lengths.dtype, device=lengths.device)
            if term.log_z == "head":
                index = torch.as_tensor(next(iter(batch.roles.values())), device=lengths.device)
                return leaves.sequences["head:log_z"][index]
            return zero if term.log_z == "one" else zero + float(term.log_z)
        if name in ("score", "hidden"):
            return assemble(kind, batch, leaves.sequences["head:score" if name == "score" else name], lengths)
        if name in ("value", "mask"):
            return assemble(kind, batch, *leaves.matrix(f"head:{name}"))
        if name in ("entropy", "kl"):
            return sequence(name)
        if name in ("tokens", "ref_tokens", "kl_tokens"):
            return assemble(kind, batch, *leaves.matrix({"tokens": "logp", "ref_tokens": "ref_logp"}.get(name, "kl")))
        raise ConfigError(f"objective {row.name!r} needs {name!r} ({table.NEEDS.get(name, 'unknown')}), not available")

    arguments = [need(name) for name in _needs_of(function)]
    known = {k: v for k, v in options.items() if k in inspect.signature(function).parameters}
    return function(sequence("logp"), *arguments, **known)


def statistics(
    term: Term, batch: TermBatch, leaves: Leaves, extra: dict[str, Any], state: dict[str, Any]
) -> dict[str, Any]:
    """Stats of each part over the whole global batch, by the part's number; `state` is read and renewed in place."""
    found: dict[str, Any] = {}
    for number, (row, _, options) in enumerate(term.parts):
        function = table.stats_function(row.name)
        if function is None:
            continue
        part = str(number)  # the same row may stand in a sum twice, with other options
        out = _call(function, row, term, batch, leaves, options, {**extra, "state": state.get(part)})
        if "state" in row.stats_needs:
            out, state[part] = out
        found[part] = out
    return found


@dataclass
class Outcome:
    """loss [B] float64, before weights and divisor; rewards: beta x log-ratio of each role, [B]."""

    loss: Tensor
    logps: dict[str, Tensor]
    rewards: dict[str, Tensor]
    lengths: dict[str, Tensor]


def evaluate(term: Term, batch: TermBatch, leaves: Leaves, stats: dict[str, Any], extra: dict[str, Any]) -> Outcome:
    """The term's unreduced loss on the examples of `batch`, and what there is to measure."""
    loss = torch.zeros(len(batch), dtype=torch.float64, device=leaves.owner.device)
    loss = loss.to(leaves.tokens["logp"].dtype)
    for number, (row, weight, options) in enumerate(term.parts):
        function = table.function(row.name)
        known = {**extra, "stats": stats.get(str(number))}
        for _, seen in derive(row.feeds_on, batch):
            loss = loss + weight * _call(function, row, term, seen, leaves, options, known)
    with torch.no_grad():
        total, lengths = leaves.sums("logp"), leaves.lengths()
        reference = leaves.sums("ref_logp") if "ref_logp" in leaves.tokens else None
        names = [r for r in batch.roles if r != "mismatched" and batch.roles[r].ndim == 1]
        index = {r: torch.as_tensor(batch.roles[r], device=total.device) for r in names}
        logps = {r: total[i] for r, i in index.items()}
        rewards = {}
        if reference is not None and term.needs_reference:
            for r, i in index.items():
                ratio = total[i] - reference[i]
                if any((term.length or row.length) == "mean" for row, _, _ in term.parts if "ref" in row.needs):
                    ratio = ratio / lengths[i].clamp(min=1)
                rewards[r] = reward_scale(term, r) * ratio
    return Outcome(loss, logps, rewards, {r: lengths[i] for r, i in index.items()})


def reward_scale(term: Term, role: str) -> float:
    """beta of the first part that has a reference: what turns a log-ratio into an implicit reward."""
    for row, _, options in term.parts:
        if "ref" in row.needs:
            for name in (f"beta_{role}", "beta"):
                if name in options:
                    return float(options[name])
    return 1.0


def measure(term: Term, batch: TermBatch, outcome: Outcome, unit_count: float) -> dict[str, tuple[float, float]]:
    """Metrics as (sum, count), under TRL's names: `rewards/chosen`, `logps/rejected`, `rewards/accuracies`, ..."""
    weight = torch.as_tensor(batch.weight, device=outcome.loss.device)
    found: dict[str, tuple[float, float]] = {"loss": (float((weight * outcome.loss.detach()).sum()), unit_count)}

    def put(name: str, values: Tensor) -> None:
        if len(values):
            found[name] = (float(values.double().sum()), float(len(values)))

    if batch.kind == "Pairs":
        put("logps/chosen", outcome.logps["chosen"])
        put("logps/rejected", outcome.logps["rejected"])
        if outcome.rewards:
            chosen, rejected = outcome.rewards["chosen"], outcome.rewards["rejected"]
            put("rewards/chosen", chosen)
            put("rewards/rejected", rejected)
            put("rewards/margins", chosen - rejected)
            put("rewards/accuracies", (chosen > rejected).double())
        put("accuracies/ranking", (outcome.logps["chosen"] > outcome.logps["rejected"]).double())
    elif batch.kind == "Points":
        good = torch.as_tensor(batch.values["value"] >= 0.5, device=outcome.loss.device)
        for name, which in (("chosen", good), ("rejected", ~good)):
            put(f"logps/{name}", outcome.logps["response"][which])
            if outcome.rewards:
                put(f"rewards/{name}", outcome.rewards["response"][which])
    elif batch.kind == "Demos":
        put("logps/chosen", outcome.logps["response"])
        found["nll_per_token"] = (
            float(-outcome.logps["response"].sum()),
            float(outcome.lengths["response"].sum()),
        )
    return found
