"""Does an objective obey the laws? Random examples of whatever it feeds on, and one check for each law.

`check(row)` judges any row, also one in a file of the user's. Laws 11 (agreement with a second version written from the
paper) and 12 (the docstring's worked number) need more than the function, and are kept by the test suite.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from accord.objectives import kinds, table
from accord.objectives.kinds import Demos, Groups, Kind, Pairs, Points, Rollouts, Tokens
from accord.objectives.table import Row
from accord.training.terms import width

# fields that are log-probs under the policy; ("logp",) for all other kinds
LOGPS: dict[type, tuple[str, ...]] = {Pairs: ("chosen", "rejected")}
# needs that carry a gradient
LEARNED = {
    "log_z",
    "kl",
    "kl_tokens",
    "entropy",
    "tokens",
    "distance",
    "mask",
    "kl_mask",
    "hidden",
    "score",
    "degree",
    "attributes",
    "embedding",
    "gate",
    "cuts",
    "prototypes",
    "value",
    "revised",
    "kept",
}
BY_TOKEN = (
    "tokens",
    "distance",
    "mask",
    "activation",
    "value",
)  # needs, or ends of them, that have a number for each token
HEADS = (
    "score",
    "attributes",
    "embedding",
    "value",
)  # needs that stand in the place of log-probs where a row reads none
TINY = 1e-12
RISES = "a higher log-prob of what is good raises the loss"


def logps(kind: Kind) -> tuple[str, ...]:
    return LOGPS.get(type(kind), ("logp",))


# --- random inputs ----------------------------------------------------------------------------------------------------


def draw(kind: type[Kind], n: int, g: torch.Generator) -> Kind:
    """`n` random examples in float64: log-probs in [-12, -0.5], half of the points good."""

    def logp(*shape: int) -> Tensor:
        return -0.5 - 11.5 * torch.rand(shape, generator=g, dtype=torch.float64)

    def length(*shape: int) -> Tensor:
        return torch.randint(2, 20, shape, generator=g).double()

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def value() -> Tensor:
        share = torch.rand(n, generator=g, dtype=torch.float64)
        return torch.where(torch.arange(n) % 2 == 0, 0.5 + share / 2, share / 2)

    def mask(width: int) -> Tensor:
        return torch.arange(width) < torch.randint(2, width + 1, (n, 1), generator=g)

    if kind is Demos:
        return Demos(logp(n), length(n))
    if kind is Points:
        return Points(logp(n), length(n), value())
    if kind is Pairs:
        strength = 0.5 + 0.5 * torch.rand(n, generator=g, dtype=torch.float64)
        return Pairs(logp(n), logp(n), length(n), length(n), strength, normal(n) + 2.0, normal(n))
    if kind is Groups:
        return Groups(logp(n, 4), length(n, 4), normal(n, 4), mask(4))
    if kind is Tokens:
        return Tokens(logp(n, 6), mask(6), value())
    if kind is Rollouts:
        old = logp(n, 6)
        return Rollouts(old + 0.05 * normal(n, 6), old, normal(n, 6), mask(6))
    raise NotImplementedError(f"no random {kind.__name__}: add them here")


def fill(kind: Any, new: Callable[[Tensor], Tensor]) -> Any:
    """The same examples with other log-probs: `new` of each."""
    return replace(kind, **{name: new(getattr(kind, name)) for name in logps(kind)})


def holes(kind: Kind) -> dict[str, Tensor]:
    """Name of each field to where there is nothing to read: beyond a group's responses, or a response's tokens."""
    if (mask := getattr(kind, "mask", None)) is None:
        lengths = {name: getattr(kind, f"{name}_length".removeprefix("logp_")) for name in logps(kind)}
        return {name: ~length for name, length in lengths.items() if length.dtype == torch.bool}
    fields = {f.name: getattr(kind, f.name) for f in dataclasses.fields(kind)}
    return {name: ~mask for name, t in fields.items() if t.is_floating_point() and t.shape == mask.shape}


def by_token(kind: Kind, width: int = 20) -> Kind:
    """The same examples with a place for each token: log-probs [B, L] of zeros, and masks in place of lengths."""
    if holes(kind):
        return kind
    names = {name: f"{name}_length".removeprefix("logp_") for name in logps(kind)}
    lengths = {length: torch.arange(width) < getattr(kind, length)[..., None] for length in names.values()}
    return replace(kind, **{name: lengths[length].double() * 0 for name, length in names.items()}, **lengths)


@dataclass
class Case:
    """A row with options, and everything it asks for, on random examples."""

    row: Row
    function: Callable[..., Any]
    stats: Callable[..., Any] | None
    options: dict[str, Any]
    first: Any
    pool: dict[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(getattr(self.first, logps(self.first)[0]))

    def statistics(self) -> Any:
        """What the stats function makes of this batch."""
        if self.stats is None:
            return None
        known = {k: v for k, v in self.options.items() if k in inspect.signature(self.stats).parameters}
        found = self.stats(self.first, *[self.pool[name] for name in self.row.stats_needs], **known)
        return found[0] if "state" in self.row.stats_needs else found

    def loss(self, stats: Any = None) -> Tensor:
        """[B], with the stats of this batch unless others are given."""
        pool = self.pool
        if self.stats is not None:
            pool = {**pool, "stats": self.statistics() if stats is None else stats}
        return self.function(self.first, *[pool[name] for name in self.row.needs], **self.options)

    def map(self, function: Callable[[Tensor], Tensor]) -> Case:
        """`function` on every tensor that has a row for each example."""

        def each(value: Any) -> Any:
            if isinstance(value, Kind):
                return value.map(function)
            return function(value) if isinstance(value, Tensor) and value.ndim else value

        return replace(self, first=each(self.first), pool={k: each(v) for k, v in self.pool.items()})

    def leaves(self) -> tuple[list[str], list[Tensor], Callable[..., Case]]:
        """Names and values of what carries a gradient, and the case with others in their place."""
        places = [("", name) for name in logps(self.first)]
        for need in self.row.needs:
            if need in LEARNED:
                value = self.pool[need]
                places += [(need, name) for name in logps(value)] if isinstance(value, Kind) else [(need, "")]

        def get(need: str, name: str) -> Any:
            holder = self.pool[need] if need else self.first
            return getattr(holder, name) if name else holder

        def put(*tensors: Tensor) -> Case:
            first, pool = self.first, dict(self.pool)
            for (need, name), tensor in zip(places, tensors, strict=True):
                if not need:
                    first = replace(first, **{name: tensor})
                else:
                    pool[need] = replace(pool[need], **{name: tensor}) if name else tensor
            return replace(self, first=first, pool=pool)

        tensors = [get(*place).detach().clone().requires_grad_() for place in places]
        return [".".join(p for p in place if p) for place in places], tensors, put

    def gradient(self, stats: Any = None) -> dict[str, Tensor]:
        """Gradient of the summed loss with respect to each leaf."""
        names, tensors, put = self.leaves()
        total = put(*tensors).loss(self.statistics() if stats is None else stats).sum()
        return dict(zip(names, torch.autograd.grad(total, tensors, materialize_grads=True), strict=True))


def make(row: Row, function: Callable[..., Any], stats: Callable[..., Any] | None, options: dict, n=12, seed=0) -> Case:
    g = torch.Generator().manual_seed(seed)
    kind = kinds.KINDS[row.feeds_on]
    case = Case(row, function, stats, options, draw(kind, n, g))
    annotations = {
        p.name: str(p.annotation)
        for f in (function, stats)
        if f is not None
        for p in inspect.signature(f).parameters.values()
    }
    for need in (*row.needs, *row.stats_needs):
        if need == "stats":
            continue
        plain: dict[str, Any] = {
            "log_z": torch.randn(n, generator=g, dtype=torch.float64),
            "score": torch.randn(n, generator=g, dtype=torch.float64),
            "hidden": torch.randn(n, 8, generator=g, dtype=torch.float64),
            "progress": 0.5,
            "noise": torch.rand(n, generator=g, dtype=torch.float64),
            "state": None,
            "gate": torch.randn(n, wide("gate", options), generator=g, dtype=torch.float64),
            "cuts": torch.randn(n, wide("cuts", options), generator=g, dtype=torch.float64),
            "attribute": torch.arange(n) % wide("attributes", options),
            "returns": torch.randn(n, 6, generator=g, dtype=torch.float64),
            "old_value": torch.randn(n, 6, generator=g, dtype=torch.float64),
        }
        if annotations[need] not in kinds.KINDS and need in plain:
            case.pool[need] = plain[need]
            continue
        if need == "prototypes":
            case.pool[need] = torch.randn(n, 8 * wide(need, options), generator=g, dtype=torch.float64)
            continue
        if need in ("degree", "attributes", "embedding", "hidden"):
            shape = (8 if need == "hidden" else wide(need, options),)
            case.pool[need] = fill(
                case.first,
                lambda t, shape=shape: torch.randn(*t.shape, *shape, generator=g, dtype=torch.float64),  # type: ignore[misc]
            )
            continue
        shares = dict.fromkeys(("mask", "kl_mask", "activation"), -1 / 12)
        scale = {"kl": -1.0, "kl_tokens": -1.0, "entropy": -1.0, "distance": -1 / 6, **shares}.get(need, 1.0)
        like = by_token(case.first) if need.endswith(BY_TOKEN) else case.first
        case.pool[need] = fill(like, lambda t, s=scale: s * _logp_like(t, g))  # type: ignore[misc]
    return case


def wide(need: str, options: dict[str, Any]) -> int:
    """Numbers of a head of several, 1 where the options say of none."""
    try:
        return width(need, options)
    except KeyError:
        return 1


def _logp_like(t: Tensor, g: torch.Generator) -> Tensor:
    return -0.5 - 11.5 * torch.rand(t.shape, generator=g, dtype=torch.float64)


def option_sets(row: Row) -> Iterator[dict[str, Any]]:
    """The defaults; every number a tenth smaller; every other choice of each `Literal` and switch."""
    defaults = {name: option.default for name, option in row.options.items()}
    yield defaults
    numbers = {name: 0.9 * v for name, v in defaults.items() if isinstance(v, float) and v}
    if numbers:
        yield {**defaults, **numbers}
    for name, option in row.options.items():
        choices: tuple[Any, ...] = (True, False) if isinstance(option.default, bool) else ()
        if option.annotation.startswith("Literal"):
            choices = typing.get_args(eval(option.annotation, {"Literal": Literal}))
        yield from ({**defaults, name: choice} for choice in choices if choice != option.default)


def at_reference(case: Case) -> Case:
    """The case with policy = reference = sampler, log Z = 0 and no KL."""
    pool = dict(case.pool)
    for name, value in pool.items():
        if name.endswith("ref") or name == "old":
            pool[name] = fill(case.first, torch.Tensor.clone)
        elif name.endswith("_ref_tokens"):
            pool[name] = pool["tokens"]
        elif name in ("kl", "kl_tokens"):
            pool[name] = fill(value, torch.zeros_like)
        elif name in ("score", "attributes"):  # of a new head
            pool[name] = fill(value, torch.zeros_like) if isinstance(value, Kind) else torch.zeros_like(value)
        elif name in ("log_z", "gate", "cuts"):
            pool[name] = torch.zeros_like(value)
    for name in ("mismatched", "tokens", "revised", "kept"):
        if f"ref_{name}" in pool:
            pool[f"ref_{name}"] = pool.get(name, case.first)
    first = replace(case.first, old_logp=case.first.logp) if isinstance(case.first, Rollouts) else case.first
    return replace(case, first=first, pool=pool)


def near_zero_margin(case: Case, spread: float, good: bool) -> Case:
    """Policy, reference and all responses of an example within `spread` nats; feedback clearly good, or clearly bad."""
    g = torch.Generator().manual_seed(1)
    base = _logp_like(torch.empty(case.n), g)

    def around(t: Tensor) -> Tensor:
        noise = spread * (2 * torch.rand(t.shape, generator=g, dtype=torch.float64) - 1)
        return base.reshape(-1, *[1] * (t.ndim - 1)) + noise

    first = fill(case.first, around)
    if "value" in (names := [f.name for f in dataclasses.fields(first)]):
        first = replace(first, value=0.75 + first.value / 4 if good else torch.zeros_like(first.value))
    if "strength" in names:
        first = replace(first, strength=0.5 + first.strength / 2 if good else torch.ones_like(first.strength))
        first = replace(first, score_chosen=first.score_rejected + 0.5 + first.score_chosen.abs())
    if isinstance(first, Rollouts):
        first = replace(first, old_logp=around(first.logp))
    near = at_reference(replace(case, first=first))
    for name in near.pool:
        if name.endswith("ref") or name in ("old", "mismatched", "ref_mismatched"):
            near.pool[name] = fill(near.pool[name], around)
        elif name in HEADS and isinstance(near.pool[name], Kind):
            near.pool[name] = fill(near.pool[name], lambda t: around(t) - base.reshape(-1, *[1] * (t.ndim - 1)))
    return near


# --- the laws ---------------------------------------------------------------------------------------------------------


def hold(fact: Any, otherwise: str = "") -> None:
    """Raises:
    AssertionError: it is not so (also under `python -O`, which drops assert statements).
    """
    if not bool(fact):
        raise AssertionError(otherwise)


def one_loss_per_example(case: Case) -> None:
    """[B] in, [B] out, in the inputs' precision, for no examples, one and many; the inputs are left as they were."""
    stats = case.statistics()
    for n in (0, 1, case.n):
        part = case.map(lambda t, n=n: t[:n].clone())  # type: ignore[misc]
        if n or not case.row.scores_batch_first:
            loss = part.loss(stats)
            hold(loss.shape == (n,), f"{n} examples give {tuple(loss.shape)}, not ({n},)")
            hold(loss.dtype == torch.float64, f"float64 in gives {loss.dtype}")
        for name in logps(case.first):
            hold(
                torch.equal(getattr(part.first, name), getattr(case.first, name)[:n]), "it writes into what it is given"
            )


def finite_at_ten_thousand_nats(case: Case) -> None:
    """Value and gradient are finite when log-probs differ by 10,000 nats, in float64 and float32."""
    g = torch.Generator().manual_seed(2)

    def far(t: Tensor) -> Tensor:
        return torch.where(torch.rand(t.shape, generator=g) < 0.5, -1e4, -1.0).to(t.dtype)

    value = replace(case.first, value=case.first.value.round()) if hasattr(case.first, "value") else case.first
    pool = {k: fill(v, far) if isinstance(v, Kind) else far(v) if k == "log_z" else v for k, v in case.pool.items()}
    extreme = replace(case, first=fill(value, far), pool=pool)
    for dtype in (torch.float64, torch.float32):
        cast = extreme.map(lambda t, dtype=dtype: t.to(dtype) if t.is_floating_point() else t)  # type: ignore[misc]
        hold(cast.loss().isfinite().all(), f"the loss is not finite in {dtype}; clamp what is exponentiated")
        hold(all(x.isfinite().all() for x in cast.gradient().values()), f"the gradient is not finite in {dtype}")


def gradient_is_finite_difference(case: Case) -> None:
    """float64 gradients are those of the value."""
    _, tensors, put = case.leaves()
    stats = case.statistics()
    equal = torch.autograd.gradcheck(lambda *t: put(*t).loss(stats), tensors, raise_exception=False)
    hold(equal, "the gradient is not that of finite differences: is something detached, or not smooth?")


def permuting_permutes(case: Case) -> None:
    """Permuted examples give permuted losses; the stats, and the total of a coupled row, do not move at all."""
    order = torch.randperm(case.n, generator=torch.Generator().manual_seed(3))
    permuted, stats = case.map(lambda t: t[order]), case.statistics()
    if case.row.couples:
        torch.testing.assert_close(permuted.loss().sum(), case.loss().sum())
    else:
        torch.testing.assert_close(permuted.loss(stats), case.loss(stats)[order])
    torch.testing.assert_close(permuted.statistics(), stats)


def masked_is_unread(case: Case) -> None:
    """Where the mask is False, or nothing is read, there may be NaN: losses and gradients stay, those there are 0."""

    def poison(value: Any) -> Any:
        if not isinstance(value, Kind):
            return value
        return replace(value, **{n: getattr(value, n).masked_fill(hole, math.nan) for n, hole in holes(value).items()})

    poisoned = replace(case, first=poison(case.first), pool={k: poison(v) for k, v in case.pool.items()})
    if not case.row.logps:
        poisoned.first = fill(poisoned.first, lambda t: torch.full_like(t, math.nan))
    torch.testing.assert_close(poisoned.loss(), case.loss())
    clean = case.gradient()
    for name, grad in poisoned.gradient().items():
        torch.testing.assert_close(grad, clean[name])
        need, _, place = name.rpartition(".")
        hole = holes(case.pool.get(need, case.first)).get(place)
        hold(hole is None or not grad[hole].any(), "what is masked has a gradient")


def better_is_not_worse(case: Case) -> None:
    """Near margin 0 raising what was called good never raises the loss; at 0, nor does lowering what was called bad."""

    def side(name: str) -> str:
        """Of a head's output that stands in the place of log-probs, the side that it is of; embeddings have none."""
        need, _, of = name.partition(".")
        return of if need in ("score", "attributes") else name

    near = near_zero_margin(case, 0.02, good=True)
    for name, grad in near.gradient().items():
        name = side(name)
        if name == "chosen" or (name == "logp" and isinstance(near.first, Demos | Points | Tokens)):
            hold((grad <= TINY).all(), RISES)
        if name == "logp" and isinstance(near.first, Groups):
            best = near.first.score.masked_fill(~near.first.mask, -math.inf).argmax(-1)
            hold((grad[torch.arange(near.n), best] <= TINY).all(), RISES)
        if name == "logp" and isinstance(near.first, Rollouts):
            hold((grad[near.first.mask & (near.first.advantage > 0)] <= TINY).all(), RISES)
    for name, grad in near_zero_margin(case, 0.0, good=False).gradient().items():
        name = side(name)
        if name == "rejected" or (name == "logp" and isinstance(near.first, Points | Tokens)):
            hold((grad >= -TINY).all(), "a higher log-prob of what is bad lowers the loss")


def parts_sum_to_the_whole(case: Case) -> None:
    """Split into parts of 1, 4 and the rest, with the stats of the whole: the same total and gradient."""
    if case.row.couples:
        return
    stats, whole = case.statistics(), case.gradient()
    parts = [case.map(lambda t, s=s: t[s]) for s in (slice(0, 1), slice(1, 5), slice(5, None))]  # type: ignore[misc]
    torch.testing.assert_close(sum(p.loss(stats).sum() for p in parts), case.loss(stats).sum())
    for name, grad in whole.items():
        torch.testing.assert_close(torch.cat([p.gradient(stats)[name] for p in parts]), grad)


def declared_invariance(case: Case) -> None:
    """A constant of the prompt on all its log-probs, or rewards, changes nothing if `shift` is declared, and something
    if not."""
    constant = torch.randn(case.n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def shift(kind: Kind, share: float = 1.0) -> Kind:
        return fill(kind, lambda t: t + share * constant.reshape(-1, *[1] * (t.ndim - 1)))

    shifted = replace(case, first=shift(case.first))
    if "tokens" in case.pool:
        shifted.pool = {**case.pool, "tokens": shift(case.pool["tokens"], 0.1)}
    heads = {name: shift(value) for name, value in case.pool.items() if name in HEADS and isinstance(value, Kind)}
    shifted.pool = {**shifted.pool, **heads}
    stats = case.statistics()
    difference = (shifted.loss(stats) - case.loss(stats)).abs().max()
    declared = case.row.invariance == "shift"
    hold(
        (difference < 1e-9) == declared,
        f"it changes the loss by {difference:.3g}, but shift is declared"
        if declared
        else 'it changes nothing: declare @row(invariance="shift")',
    )


def declared_start(case: Case) -> None:
    """At policy = reference the loss is `init`; without `init` it has no one value there."""
    start = at_reference(case)
    loss = start.loss()
    if case.row.init is None:
        hold(loss.max() - loss.min() > 1e-6, f'it is {float(loss[0]):.6g}: declare it, like @row(init="log(2)")')
        return
    names = {"__builtins__": {}, "log": np.log, "exp": np.exp, **case.options}
    names |= {f.name: getattr(start.first, f.name).numpy() for f in dataclasses.fields(start.first)}
    if isinstance(start.first, Groups):
        names["K"] = start.first.mask.sum(-1).numpy()
    expected = torch.as_tensor(eval(case.row.init, names), dtype=torch.float64).expand(case.n)
    torch.testing.assert_close(loss, expected)


def refuses_low_precision(case: Case) -> None:
    """bfloat16 and float16 log-probs are refused, wherever they come in."""

    def low(t: Tensor, dtype: torch.dtype) -> Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    for dtype in (torch.bfloat16, torch.float16):
        first = case.first.map(lambda t, d=dtype: low(t, d))  # type: ignore[misc]
        spoiled = [replace(case, first=first)] if case.row.logps else []
        for name, value in case.pool.items():
            if isinstance(value, Kind):
                spoiled.append(replace(case, pool={**case.pool, name: value.map(lambda t, d=dtype: low(t, d))}))
            elif name == "log_z":
                spoiled.append(replace(case, pool={**case.pool, name: low(value, dtype)}))
        for each in spoiled:
            try:
                each.loss()
            except TypeError:
                continue
            raise AssertionError(f"{dtype} was taken")


LAWS: dict[str, Callable[[Case], None]] = {
    "1": one_loss_per_example,
    "2": finite_at_ten_thousand_nats,
    "3": gradient_is_finite_difference,
    "4": permuting_permutes,
    "5": masked_is_unread,
    "6": better_is_not_worse,
    "7": parts_sum_to_the_whole,
    "8": declared_invariance,
    "9": declared_start,
    "10": refuses_low_precision,
}


def judge(law: Callable[[Case], None], cases: list[Case], exception: str | None = None) -> None:
    """Every case obeys the law; or, where its row declares an exception, some case really breaks it.

    Raises:
        AssertionError: it is not so.
    """
    broken = None
    for case in cases:
        try:
            law(case)
        except AssertionError as error:
            broken = error
    if broken is not None and exception is None:
        raise broken
    hold(broken is not None or exception is None, "a stale exception: the law holds")


def check(row: Row) -> dict[str, str | None]:
    """What became of each law: None where it holds (or breaks as the row declares), else what was seen."""
    cases = [make(row, table.function(row.name), table.stats_function(row.name), o) for o in option_sets(row)]
    found: dict[str, str | None] = {}
    for number, law in LAWS.items():
        try:
            judge(law, cases, row.exceptions.get(number))
            found[number] = None
        except Exception as error:  # whatever a function of the user's does
            found[number] = " ".join(str(error).split()) or type(error).__name__
    return found
