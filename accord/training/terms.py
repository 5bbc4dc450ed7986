"""How do tensors of the engine become what an objective feeds on?

A term is an objective with its weight, options and view of the data. `evaluate` assembles the kinds (`Pairs`,
`Points`, ...) from token log-probs by the batch's index tensors, calls the objective, and says what there is to
measure. Everything is computed in float64 on detached leaves; the gradient with respect to those leaves goes back to
the engine as cotangents.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from accord.data.batches import TermBatch
from accord.data.records import Record
from accord.data.views import ViewOptions
from accord.errors import AccordError, ConfigError
from accord.objectives import kinds, table
from accord.objectives._links import whole
from accord.objectives.rewards import mixed, preference


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
        for row, _, options in self.parts:
            found.update(asked(n, options) for n in row.needs + row.stats_needs)
        return frozenset(found)

    @property
    def references(self) -> frozenset[str]:
        """Names of the references whose log-probs the parts ask for."""
        return frozenset(name for row, _, _ in self.parts for name in row.references)

    @property
    def moving(self) -> tuple[tuple[str, float, int], ...]:
        """(name, alpha, tau) of the references that follow the policy, as each part has it."""
        return tuple(
            (name, options["alpha"], options["tau"])
            for row, _, options in self.parts
            for name in sorted(row.references)
            if table.moves(name)
        )

    @property
    def home(self) -> str | None:
        """The reference that implicit rewards are against: `ref`, else one that moves."""
        return "ref" if "ref" in self.references else next((name for name, *_ in self.moving), None)

    @property
    def live(self) -> tuple[str, ...]:
        """What `ref` must stand beside the policy for, in words."""
        stems = {n.removesuffix("_tokens").partition(":")[0] for n in self.needs}
        return tuple(words for need, words in table.LIVE.items() if need in stems)

    @property
    def needs_old(self) -> bool:
        """True if it needs the log-probs that were written down when the responses were sampled."""
        sampled = any(row.feeds_on == "Rollouts" for row, _, _ in self.parts)
        return sampled or not self.needs.isdisjoint({"old", "old_tokens"})

    @property
    def scores_batch_first(self) -> bool:
        return any(row.scores_batch_first for row, _, _ in self.parts)

    @property
    def anchored(self) -> bool:
        """Whether of all that must be scored first nothing is trained."""
        return all(row.anchored for row, _, _ in self.parts if row.scores_batch_first)

    @property
    def both_classes(self) -> bool:
        return any(row.classes == "both" for row, _, _ in self.parts)

    @property
    def values_are_probabilities(self) -> bool:
        return any(row.values == "probability" for row, _, _ in self.parts)

    @property
    def needs_scores(self) -> bool:
        return any(row.values == "scores" for row, _, _ in self.parts)

    @property
    def unit(self) -> str:
        return "token" if all(row.unit == "token" for row, _, _ in self.parts) else "example"

    @property
    def scored(self) -> bool:
        """Whether a response's reward is what a head says of it, and no log-ratio."""
        return not self.needs.isdisjoint(SCORES)

    @property
    def logps(self) -> bool:
        """Whether anything is asked of the next token: else the language-model head is not computed."""
        return any(row.logps for row, _, _ in self.parts)

    @property
    def heads(self) -> tuple[str, ...]:
        """Heads that the parts read, as `heads.build` takes them."""
        wanted: list[str] = [h for h in ("score", "value", "mask", "kl_mask") if h in self.needs]
        for row, _, options in self.parts:
            wanted += [f"{need}:{width(need, options)}" for need in row.needs if need in WIDE and reads(need, options)]
        return (*wanted, "log_z") if "log_z" in self.needs and self.log_z == "head" else tuple(wanted)


SCORES = ("score", "attributes", "embedding")  # heads that a reward is made of
WIDE = ("degree", "attributes", "embedding", "gate", "cuts", "prototypes")  # heads of several numbers, as options say


def width(need: str, options: dict[str, Any]) -> int:
    """Numbers of a head of several; of prototypes how many there are.

    >>> width("gate", {"dimensions": 6}), width("gate", {"count": 4}), width("cuts", {"levels": 5})
    (3, 4, 4)
    """
    if need == "gate":  # of a mixture a weight for each attribute, of preferences one for each two dimensions
        return int(options["count"]) if "count" in options else int(options["dimensions"]) // 2
    if need == "cuts":
        return int(options["levels"]) - 1
    named = {"degree": "degrees", "embedding": "dimensions", "attributes": "count", "prototypes": "clusters"}[need]
    whole(**{named: options[named]})
    return int(options[named])


def reads(need: str, options: dict[str, Any]) -> bool:
    """Whether a row with these options reads a head that it may do without."""
    return need != "gate" or options.get("prompt_head") != "none"


def asked(need: str, options: dict[str, Any]) -> str:
    """A need as the engine knows it: `extrapolated` has the row's option in its name, and is `logp` where that is 0.

    >>> asked("extrapolated", {"extrapolation": 0.5}), asked("extrapolated", {"extrapolation": 0.0})
    ('extrapolated:0.5', 'logp')
    """
    if need != "extrapolated":
        return need
    step = float(options["extrapolation"])
    return f"{need}:{step}" if step else "logp"


SIDES = ("chosen", "rejected")
AFTER = ("revised", "kept")  # roles of the same responses where the other, or they themselves, had been said
# An example of the first kind is also one (or two) of the second: what a sum of objectives on pairs may hold.
DERIVED = {"Pairs": ("Demos", "Points"), "Points": (), "Demos": ("Points",), "Groups": (), "Rollouts": ("Demos",)}


@dataclass
class Leaves:
    """What the engine returned for N sequences. tokens: name -> [M]; owner [M]; sequences: name -> [N].

    parts [N]: the sequence that stands for each one's response (`Batch.parts`); statistics of a response stand there.
    """

    tokens: dict[str, Tensor]
    owner: Tensor
    count: int
    sequences: dict[str, Tensor] = field(default_factory=dict)
    parts: Tensor | None = None

    @property
    def response(self) -> Tensor:
        """[M] the sequence that stands for each token's response."""
        return self.owner if self.parts is None else self.parts[self.owner]

    @property
    def dtype(self) -> torch.dtype:
        return next(iter((*self.tokens.values(), *self.sequences.values()))).dtype

    def sums(self, name: str) -> Tensor:
        """Sum of a token statistic over each response, [N]; NaN of log-probs where nobody asked for them."""
        if name == "logp" and name not in self.tokens:
            return torch.full((self.count,), float("nan"), dtype=self.dtype, device=self.owner.device)
        values = self.tokens[name]
        return torch.zeros(self.count, dtype=values.dtype, device=values.device).index_add(0, self.response, values)

    def lengths(self) -> Tensor:
        """Trained tokens of each response, [N]."""
        ones = torch.ones_like(self.owner, dtype=self.dtype)
        return torch.zeros(self.count, dtype=ones.dtype, device=ones.device).index_add(0, self.response, ones)

    def last(self, name: str) -> Tensor:
        """A statistic of last tokens [N], each response's: of several turns apart, the last one's."""
        values = self.sequences[name]
        if self.parts is None:
            return values
        places = torch.arange(self.count, device=values.device)
        return values[torch.zeros_like(places).scatter_reduce(0, self.parts, places, "amax")]

    def matrix(self, name: str) -> tuple[Tensor, Tensor]:
        """A token statistic as [N, L] and the mask that is True where there is a token."""
        values = self.tokens.get(name)
        if values is None and name == "logp":  # nobody asked for them
            values = torch.full_like(self.owner, math.nan, dtype=self.dtype)
        assert values is not None
        order = torch.argsort(self.owner, stable=True)
        owner = self.response[order]
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
    """A statistic of the sequences [N] as `kind`, by the batch's index tensors.

    For statistics of tokens, `statistic` is [N, L] and `lengths` its mask, and so are what the kind holds of them.
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
    if kind == "Tokens":
        known = value("value") if "value" in batch.values else statistic.new_full((len(batch),), float("nan"))
        return kinds.Tokens(statistic[i], lengths[i], known)
    raise ConfigError(f"nothing is seen as {kind}")


def per_token(values: np.ndarray, mask: Tensor, like: Tensor) -> Tensor:
    """What the batch holds of each example [B], or of its trained tokens [B, n], as [B, L]; 0 outside of `mask`.

    Raises:
        ConfigError: tokens that are trained have no number.
    """
    found = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if found.ndim == 1:
        found = found[:, None].expand(mask.shape)
    width = mask.shape[1]
    found = torch.nn.functional.pad(found[:, :width], (0, max(0, width - found.shape[1])), value=float("nan"))
    if bool(found[mask].isnan().any()):
        raise ConfigError("a rollout has fewer advantages (or returns) than trained tokens")
    return torch.where(mask, found, 0.0)


def derive(row: table.Row, batch: TermBatch) -> TermBatch:
    """The batch as the row feeds on it: chosen responses (or what the row reads of a pair) as demonstrations; chosen,
    and behind them rejected, as good and bad points."""
    kind = row.feeds_on
    if kind == batch.kind:
        return batch
    roles = {
        ("Pairs", "Demos"): (row.reads or "chosen",),
        ("Pairs", "Points"): ("chosen", "rejected"),
        ("Demos", "Points"): ("response",),
        ("Rollouts", "Demos"): ("response",),
    }.get((batch.kind, kind))
    if roles is None:
        raise ConfigError(f"{batch.kind} cannot be seen as {kind}")
    copies = len(roles)
    values = [np.full(len(batch), float(role != "rejected")) for role in roles]
    return TermBatch(
        kind,
        {"response": np.concatenate([batch.roles[role] for role in roles])},
        {"value": np.concatenate(values)} if kind == "Points" else {},
        np.tile(batch.weight, copies),
        np.tile(batch.records, copies),
        batch.sources * copies,
    )


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
    by_token = kind in ("Tokens", "Rollouts")

    def sequence(name: str, role: dict[str, str] | None = None) -> Any:
        if by_token:
            return matrix(name)
        total = leaves.sums(name)
        return assemble(kind, batch, total / lengths.clamp(min=1) if mean else total, lengths, role)

    def matrix(name: str) -> Any:
        values, mask = leaves.matrix(name)
        return assemble("Tokens" if by_token else kind, batch, values, mask)

    def rollouts() -> kinds.Rollouts:
        now, old = matrix("logp"), matrix("old_logp")
        return kinds.Rollouts(now.logp, old.logp, per_token(batch.values["advantage"], now.mask, now.logp), now.mask)

    def need(name: str) -> Any:
        if name == "noise":
            return torch.tensor(
                [extra["noise"](int(r)) for r in batch.records], dtype=lengths.dtype, device=lengths.device
            )
        if name in extra:
            return extra[name]
        if name == "log_z":
            zero = torch.zeros(len(batch), dtype=lengths.dtype, device=lengths.device)
            if term.log_z == "head":
                index = torch.as_tensor(next(iter(batch.roles.values())), device=lengths.device)
                return leaves.sequences["head:log_z"][index]
            return zero if term.log_z == "one" else zero + float(term.log_z)
        if name in ("score", "degree", "attributes", "embedding", "hidden"):
            return assemble(kind, batch, leaves.last(name if name == "hidden" else f"head:{name}"), lengths)
        if name in ("gate", "cuts", "prototypes"):  # one for an example, whichever of its responses is asked
            if not reads(name, options):
                return torch.zeros(len(batch), width(name, options), dtype=lengths.dtype, device=lengths.device)
            first = torch.as_tensor(next(iter(batch.roles.values())), device=lengths.device)
            out = leaves.sequences[f"head:{name}"][first if first.ndim == 1 else first[:, 0]]
            return out if out.ndim == 2 else out[:, None]
        if name == "attribute":
            return torch.as_tensor(batch.values[name], dtype=torch.long, device=lengths.device)
        if name in ("returns", "old_value"):
            if name not in batch.values:
                raise ConfigError(
                    f"{row.name} needs what each token returned and was expected to: `returns` and `values` of a "
                    "response, which accord loop writes where advantage.rule is gae"
                )
            now = matrix("logp")
            return per_token(batch.values[name], now.mask, now.logp)
        whose, _, how = name.rpartition("_")
        if how in AFTER:
            return sequence(f"{whose}_logp".lstrip("_"), {role: f"{role}_{how}" for role in SIDES})
        stem = name.removesuffix("_mismatched")
        if stem in ("value", "mask", "kl_mask"):
            return matrix(f"head:{stem}")
        if stem in ("tokens", "kl_tokens") or stem.endswith(("ref_tokens", "old_tokens")):
            found = stem.removesuffix("tokens").rstrip("_")
            return matrix(found if found == "kl" else f"{found}_logp".lstrip("_"))
        if stem in ("distance", "activation"):
            return matrix(stem)
        if stem == "extrapolated":
            return sequence(asked(stem, options))
        if stem in ("entropy", "collision", "kl"):
            return sequence(stem)
        if stem in ("mismatched", "old") or table.reference_named(stem):
            if "mismatched" not in name:
                return sequence(f"{stem}_logp")
            return sequence("logp" if stem == "mismatched" else f"{stem}_logp", {"response": "mismatched"}).map(
                Tensor.detach
            )
        raise ConfigError(f"objective {row.name!r} needs {name!r} ({table.NEEDS.get(name, 'unknown')}), not available")

    arguments = [rollouts() if kind == "Rollouts" else sequence("logp"), *map(need, _needs_of(function))]
    if (side := extra.get("side")) is not None:
        arguments = [_only(side, a) for a in arguments]
    known = {k: v for k, v in options.items() if k in inspect.signature(function).parameters}
    try:
        return function(*arguments, **known)
    except Exception as error:
        if isinstance(error, AccordError) or not row.module.endswith(".py"):
            raise
        places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == row.module]
        line = f", line {places[-1].lineno}" if places else ""
        raise ConfigError(f"{row.module}{line}: {type(error).__name__}: {error}") from error  # a function of the user's


def _only(side: str, value: Any) -> Any:
    """The same, and of pairs one side alone with a gradient."""
    if not isinstance(value, kinds.Pairs):
        return value
    (other,) = set(SIDES) - {side}
    return replace(value, **{other: getattr(value, other).detach()})


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
        seen = derive(row, batch)
        out = _call(function, row, term, seen, leaves, options, {**extra, "state": state.get(part)})
        if "state" in row.stats_needs:
            out, state[part] = out
        found[part] = out
    return found


@dataclass
class Outcome:
    """loss [B] float64, before weights and divisor; rewards [B] of each role: beta x log-ratio, or the score of a head;
    orders: name -> (right, all) over the pairs of groups; references [B] of each role: log-probs under the reference
    that rewards are against, empty without one."""

    loss: Tensor
    logps: dict[str, Tensor]
    rewards: dict[str, Tensor]
    lengths: dict[str, Tensor]
    orders: dict[str, tuple[float, float]]
    references: dict[str, Tensor] = field(default_factory=dict)

    def take(self, index: np.ndarray) -> Outcome:
        """That of the examples at `index`; orders, which are sums over all, stay behind."""
        at = torch.as_tensor(index, device=self.loss.device)
        logps, rewards, lengths = ({k: v[at] for k, v in d.items()} for d in (self.logps, self.rewards, self.lengths))
        return Outcome(self.loss[at], logps, rewards, lengths, {})


# Noise of a log-ratio in units of the compute dtype's eps and the root of its tokens. Measured in bf16 on answers of 5
# to 33 tokens by SmolLM2-135M: 0.055 nats, 7 eps, where the ratio itself was a hundredth of that.
NOISE = {torch.bfloat16: 8.0}
EXACT = 64.0  # the same of float32: 1e-5 nats, which is the rounding of a logit of 20


def tie_width(term: Term, chosen: Tensor, rejected: Tensor, compute: torch.dtype) -> Tensor:
    """How large a margin of rewards [B] the noise of `compute` makes of none, from the lengths of both sides.

    A score of a head has no such width: 0. For log-ratios of 18 and 18 tokens in bf16, and beta = 0.1:

    >>> from accord.training import plan
    >>> round(float(tie_width(plan.terms("dpo", {})["dpo"], torch.tensor(18), torch.tensor(18), torch.bfloat16)), 4)
    0.0375
    """
    if term.scored:
        return torch.zeros_like(chosen, dtype=torch.float64)
    tokens = chosen.double().clamp(min=1), rejected.double().clamp(min=1)
    mean = by_mean(term)
    spread = sum(1 / n if mean else n for n in tokens)
    return reward_scale(term, "chosen") * noise(compute) * torch.as_tensor(spread).sqrt()


def noise(compute: torch.dtype) -> float:
    """Nats by which rounding moves a token's log-prob.

    >>> noise(torch.bfloat16), round(noise(torch.float32), 8)
    (0.0625, 7.63e-06)
    """
    return NOISE.get(compute, EXACT) * torch.finfo(compute).eps


def right(margin: Tensor, width: Tensor) -> Tensor:
    """1 where chosen has the larger reward, 0 where rejected has, 1/2 where noise may have decided.

    >>> right(torch.tensor([0.3, 0.01, -0.01, -0.3]), torch.tensor(0.02)).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    return torch.where(margin.abs() <= width.to(margin.device), 0.5, (margin > 0).double())


def evaluate(term: Term, batch: TermBatch, leaves: Leaves, stats: dict[str, Any], extra: dict[str, Any]) -> Outcome:
    """The term's unreduced loss on the examples of `batch`, and what there is to measure."""
    loss = torch.zeros(len(batch), dtype=leaves.dtype, device=leaves.owner.device)
    for number, (row, weight, options) in enumerate(term.parts):
        known = {**extra, "stats": stats.get(str(number))}
        seen = derive(row, batch)
        part = _call(table.function(row.name), row, term, seen, leaves, options, known)
        if part.shape != (len(seen),):
            raise ConfigError(
                f"{row.name} gives a loss of shape {list(part.shape)} for {len(seen)} examples: give one number an "
                "example, without a mean or sum over them"
            )
        loss = loss + weight * part.view(-1, len(batch)).sum(0)  # an example seen as two has the loss of both
    with torch.no_grad():
        total, lengths, reward = leaves.sums("logp"), leaves.lengths(), rewards_of(term, batch, leaves)
        scored = "logp" in leaves.tokens
        names = [r for r in batch.roles if r in (*SIDES, "response") and batch.roles[r].ndim == 1]
        index = {r: torch.as_tensor(batch.roles[r], device=total.device) for r in names}
        rewards = {r: reward_scale(term, r) * reward[i] for r, i in index.items()} if reward is not None else {}
        orders = {}
        if batch.kind == "Groups":
            for name, values in (("accuracies/ranking", total if scored else None), ("rewards/accuracies", reward)):
                if values is not None:
                    orders[name] = right_order(assemble("Groups", batch, values, lengths))
        ref = leaves.sums(f"{term.home}_logp") if f"{term.home}_logp" in leaves.tokens and scored else None
        references = {r: ref[i] for r, i in index.items()} if ref is not None else {}
        if batch.kind == "Rollouts":
            orders |= moved_since(term, batch, leaves)
    logps = {r: total[i] for r, i in index.items() if scored}
    return Outcome(loss, logps, rewards, {r: lengths[i] for r, i in index.items()}, orders, references)


def moved_since(term: Term, batch: TermBatch, leaves: Leaves) -> Metrics:
    """How far the policy is from the one that sampled its answers, and from the reference; what the critic missed.

    `kl/old` is 1/2 (log ratio)^2 a token, `ratio/clipped` the share of tokens whose ratio is beyond the clip, `kl/ref`
    an answer's sum of k3, exp(-d) - 1 + d; `value/unexplained` the squares of errors over those of returns.
    """
    i = torch.as_tensor(batch.roles["response"], device=leaves.owner.device)
    count, mask = float(len(batch)), leaves.matrix("old_logp")[1][i]
    tokens = float(mask.sum())
    found: Metrics = {}
    if "value" in batch.values:
        found["rewards/mean"] = (float(batch.values["value"].sum()), count)
    if "logp" in leaves.tokens:
        now, old = (leaves.matrix(name)[0][i] for name in ("logp", "old_logp"))
        ratio = (now - old).clamp(-20.0, 20.0)[mask]
        found |= {"kl/old": (float(ratio.square().sum() / 2), tokens), "ratio/mean": (float(ratio.exp().sum()), tokens)}
        found["entropy/sampled"] = (float(-now[mask].sum()), tokens)
        clip = next((o["clip"] for row, _, o in term.parts if "clip" in o and row.logps), None)
        if clip is not None:
            found["ratio/clipped"] = (float(((ratio.exp() - 1).abs() > clip).sum()), tokens)
        if "ref_logp" in leaves.tokens:
            apart = (now - leaves.matrix("ref_logp")[0][i])[mask]
            found["kl/ref"] = (float(((-apart).clamp(max=20.0).exp() - 1 + apart).sum()), count)
    if "head:value" in leaves.tokens and "returns" in batch.values:
        wanted = per_token(batch.values["returns"], mask, leaves.tokens["head:value"])[mask]
        missed = (leaves.matrix("head:value")[0][i][mask] - wanted).square().sum()
        found["value/unexplained"] = (float(missed), float(wanted.square().sum()))
    return found


def rewards_of(term: Term, batch: TermBatch, leaves: Leaves) -> Tensor | None:
    """What the term takes for a response's reward [N], before `reward_scale`: the score of a head, or the log-ratio.

    Of a preference between two it is half of it to either side; of several attributes without a mixture there is none.
    """
    if "score" in term.needs:
        return leaves.last("head:score")
    if {"attributes", "gate"} <= term.needs:
        return mixed(leaves.last("head:attributes"), leaves.last("head:gate"))
    if "embedding" in term.needs and batch.kind == "Pairs":
        options = next(o for row, _, o in term.parts if "embedding" in row.needs)
        w, l = (torch.as_tensor(batch.roles[side], device=leaves.owner.device) for side in SIDES)
        held, shape = leaves.last("head:embedding"), (len(batch), width("gate", options))
        gate = leaves.last("head:gate")[w].view(shape) if "head:gate" in leaves.sequences else held.new_zeros(shape)
        margin = preference(held[w], held[l], gate, options["tau"], options["normalise"], options["prompt_head"])
        return held.new_zeros(leaves.count).index_copy(0, w, margin / 2).index_copy(0, l, -margin / 2)
    if term.scored:
        return None
    if term.home is None or f"{term.home}_logp" not in leaves.tokens:
        return None
    ratio = leaves.sums("logp") - leaves.sums(f"{term.home}_logp")
    return ratio / leaves.lengths().clamp(min=1) if by_mean(term) else ratio


def by_mean(term: Term) -> bool:
    return any((term.length or row.length) == "mean" for row, _, _ in term.parts if term.home in row.references)


def reward_scale(term: Term, role: str) -> float:
    """beta of the first part that has a reference: what turns a log-ratio into an implicit reward."""
    for row, _, options in term.parts:
        if term.home in row.references and not term.scored:
            for name in (f"beta_{role}", "beta"):
                if name in options:
                    return float(options[name])
    return 1.0


def right_order(groups: kinds.Groups) -> tuple[float, float]:
    """(how many, of how many) pairs of differently scored responses of a group have their log-probs in that order."""
    better = groups.score[:, :, None] > groups.score[:, None, :]
    better &= groups.mask[:, :, None] & groups.mask[:, None, :]
    right = better & (groups.logp[:, :, None] > groups.logp[:, None, :])
    return float(right.sum()), float(better.sum())


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


def shown(name: str, batch: TermBatch, outcome: Outcome, records: Seq[Record]) -> list[Example]:
    """The examples of a term as they were seen."""
    loss = outcome.loss.detach().tolist()
    columns = [{k: v.tolist() for k, v in part.items()} for part in (outcome.rewards, outcome.logps, outcome.lengths)]
    return [
        Example(
            name,
            records[int(batch.records[i])].id,
            batch.sources[i],
            loss[i],
            *({k: v[i] for k, v in part.items()} for part in columns),  # type: ignore[arg-type]
        )
        for i in range(len(batch))
    ]


# name -> (sum, count): a metric travels with its reduction; count 0: a sum; LEAST, MOST: the smallest or largest value
Metrics = dict[str, tuple[float, float]]
LEAST, MOST = -1.0, -2.0
BY_SOURCE = ("loss", "rewards/accuracies", "rewards/margins")  # what is told of each source, where there are several


def lost(length: Tensor) -> Tensor:
    """Nats [B] by which a response of `length` tokens [B] must fall to count as half gone: log 2, and 0.3 a token."""
    return (0.3 * length).clamp(min=math.log(2))


def measure(
    term: Term, batch: TermBatch, outcome: Outcome, unit_count: float, compute: torch.dtype = torch.float32
) -> Metrics:
    """What there is to say of these examples, under TRL's names: `rewards/chosen`, `logps/rejected`, ..."""
    weight = torch.as_tensor(batch.weight, device=outcome.loss.device)
    found: Metrics = {"loss": (float((weight * outcome.loss.detach()).sum()), unit_count)}
    found |= {name: (right, of) for name, (right, of) in outcome.orders.items() if of}

    def put(name: str, values: Tensor | None) -> None:
        if values is not None and len(values):
            found[name] = (float(values.double().sum()), float(len(values)))

    def moved(name: str, role: str, which: Tensor | slice = slice(None)) -> None:
        if role in outcome.references and len(tokens := outcome.lengths[role][which]):
            now, then = outcome.logps[role][which], outcome.references[role][which]
            found[f"logratios/{name}"] = (float((now - then).sum()), float(tokens.sum()))
            each = tokens.clamp(min=1)
            found[f"probability/{name}"] = (float((now / each).exp().sum()), float((then / each).exp().sum()))

    logps, refs, lengths = outcome.logps, outcome.references, outcome.lengths
    if term.scored and outcome.rewards:
        scores = torch.cat(list(outcome.rewards.values())).double()
        put("rewards/mean", scores)
        found |= {"rewards/min": (float(scores.min()), LEAST), "rewards/max": (float(scores.max()), MOST)}
    if batch.kind == "Pairs":
        longer = lengths["chosen"] - lengths["rejected"]
        for side in SIDES:
            put(f"logps/{side}", logps.get(side))
            put(f"lengths/{side}", lengths[side])
            moved(side, side)
        if refs:
            mass, before = (torch.logaddexp(x["chosen"], x["rejected"]) for x in (logps, refs))
            put("logratios/pair", mass - before)
            put("dispersed", (before - mass > lost(torch.minimum(*(lengths[s] for s in SIDES)))).double())
        if outcome.rewards:
            chosen, rejected = outcome.rewards["chosen"], outcome.rewards["rejected"]
            put("rewards/chosen", chosen)
            put("rewards/rejected", rejected)
            put("rewards/margins", chosen - rejected)
            won = right(chosen - rejected, tie_width(term, lengths["chosen"], lengths["rejected"], compute))
            put("rewards/accuracies", won)
            put("rewards/accuracies_longer", won[longer > 0])
            put("rewards/accuracies_shorter", won[longer < 0])
        if logps:
            put("accuracies/ranking", (logps["chosen"] > logps["rejected"]).double())
    elif batch.kind in ("Points", "Tokens"):
        value = batch.values["value"]
        good = torch.as_tensor(value >= 0.5, device=outcome.loss.device)
        rated = term.scored and bool(((value < 0) | (value > 1)).any())  # 1 to 5: half of nothing
        for name, which in (("chosen", good), ("rejected", ~good)) if not rated else ():
            put(f"logps/{name}", logps["response"][which] if logps else None)
            put(f"lengths/{name}", lengths["response"][which])
            moved(name, "response", which)
            if outcome.rewards:
                put(f"rewards/{name}", outcome.rewards["response"][which])
    elif batch.kind == "Rollouts":
        put("logps/sampled", logps.get("response"))
        put("lengths/sampled", lengths["response"])
    elif batch.kind == "Demos" and logps:
        put("logps/chosen", logps["response"])
        found["nll_per_token"] = (
            float(-outcome.logps["response"].sum()),
            float(outcome.lengths["response"].sum()),
        )
    return found


def factors(
    terms: dict[str, Term], batches: dict[str, TermBatch], leaves: Leaves, cotangents: Seq[dict[str, Tensor]],
    divisors: dict[str, float],
) -> Metrics:  # fmt: skip
    """c+ and c- of a loss on pairs: its slope along the log-prob of chosen, and of rejected, as means over the pairs;
    and the mean square of their size (|c+| + |c-|) / 2, which says how many of them still count.

    Of a run of one term on pairs; {} of others, whose cotangents cannot be told apart, and of reward models, which have
    no log-probs. cotangents: of each set, `logp` [M]. For dpo at policy = reference the slopes are -beta/2 and beta/2.
    """
    batch = next(iter(batches.values()), None)
    if batch is None or batch.kind != "Pairs" or len(terms) > 1 or not cotangents or not len(batch):
        return {}
    if "logp" not in cotangents[0]:  # rewards are heads' outputs
        return {}
    ((name, term),) = terms.items()
    if not term.logps:
        return {}
    whole = torch.stack([c["logp"] for c in cotangents]).sum(0)
    slope = replace(leaves, tokens={"c": whole}).sums("c") / leaves.lengths().clamp(min=1)
    found = {}
    for side in SIDES:  # a response may stand in several pairs
        times = np.bincount(batch.roles[side], minlength=leaves.count)[batch.roles[side]]
        index = torch.as_tensor(batch.roles[side], device=slope.device)
        found[side] = slope[index] / torch.as_tensor(times, device=slope.device) * divisors[name] / term.weight
    found["squares"] = (sum(x.abs() for x in found.values()) / 2) ** 2  # type: ignore[assignment]
    return {f"factors/{k}": (float(v.sum()), float(len(batch))) for k, v in found.items()}


class Seen(NamedTuple):
    """What was measured. losses: of each term, before its weight, as (sum, units)."""

    metrics: Metrics
    examples: list[Example]
    losses: Metrics


def add_metrics(into: Metrics, other: Metrics) -> None:
    """Adds sums and counts, and keeps the smallest and largest of values that are no sums.

    >>> found = {"loss": (1.0, 2.0), "rewards/min": (0.5, LEAST)}
    >>> add_metrics(found, {"loss": (3.0, 2.0), "rewards/min": (-1.0, LEAST)}); reduced(found)
    {'loss': 1.0, 'rewards/min': -1.0}
    """
    for name, (value, count) in other.items():
        if name not in into:
            into[name] = (value, count)
        elif count in (LEAST, MOST):
            into[name] = ((min if count == LEAST else max)(into[name][0], value), count)
        else:
            into[name] = (into[name][0] + value, into[name][1] + count)


def reduced(metrics: Metrics) -> dict[str, float]:
    """Each metric's value: sum / count, or the sum itself where it was divided already."""
    return {name: value if count <= 0 else value / count for name, (value, count) in metrics.items()}
