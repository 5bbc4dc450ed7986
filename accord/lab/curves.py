"""What does an objective do along its margin? Loss and gradient factors, computed from the function; tails in words.

One example is moved away from its reference: chosen up and rejected down by half of the margin each; a single response
up by all of it (without a reference: along its log-prob, up to 0); of a group, the best up and the worst down. What
else a row asks for stands as at the reference: no KL, log Z = 0, scores 1 and 0, twenty tokens, stats of a batch there.
A sampled answer has advantages of 1 (good) or -1 (bad). A row on rewards goes along those in their place: all
attributes alike, an embedding by its first number beside a 1. A row on hidden states has no curve.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from accord.lab import laws
from accord.objectives import table
from accord.objectives.kinds import Demos, Groups, Kind, Pairs, Points, Rollouts, Tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS = 20
FAR = 1e6  # nats; twice as far tells a constant from a line


@dataclass(frozen=True)
class Curve:
    """Along margins [B] nats: the loss [B], and its slope by each log-prob that the margin moves, [B] each."""

    name: str
    margin: Tensor
    loss: Tensor
    slopes: dict[str, Tensor]


def moved(row: table.Row) -> dict[str, dict[str, float]]:
    """Name of each curve to how far a margin of 1 moves what it is about."""
    if row.feeds_on in ("Points", "Tokens", "Rollouts") and "value" not in row.needs:
        return {"good": {"logp": 1.0}, "bad": {"logp": 1.0}}
    return {"": {"logp": 1.0} if row.feeds_on in ("Demos", "Rollouts") else {"chosen": 0.5, "rejected": -0.5}}


def drawn(row: table.Row) -> bool:
    """False of a row on hidden states, which has neither log-probs nor rewards to go along."""
    return row.logps or not set(laws.HEADS).isdisjoint(row.needs)


def absolute(row: table.Row) -> bool:
    """True if a curve goes along the log-prob itself, which ends at 0: a single response without a reference."""
    return row.logps and row.feeds_on in ("Demos", "Points", "Tokens") and not row.needs_reference


def curve(row: table.Row, name: str, margin: Tensor) -> Curve:
    """The row with its defaults along margins [B] nats."""
    shares = moved(row)[name]
    options = {k: o.default for k, o in row.options.items()}
    case = laws.make(row, table.function(row.name), table.stats_function(row.name), options, n=2)
    case = case.map(lambda t: t[:1].expand(len(margin), *t.shape[1:]).clone())
    base = 0.0 if absolute(row) else -float(margin.abs().max()) - 1.0
    case = laws.at_reference(still(case, base, 1.0 if name in ("", "good") else 0.0))
    stats = case.statistics()
    leaves = {side: margin.double() * 0 for side in shares}
    for leaf in leaves.values():
        leaf.requires_grad_()

    def sides(kind: Kind, each: float, by_token: bool) -> Any:
        steps = {side: leaf + shares[side] * margin for side, leaf in leaves.items()}
        if isinstance(kind, Pairs):
            put = {s: spread(getattr(kind, s), step, by_token, each) for s, step in steps.items()}
            return replace(kind, **put)
        if isinstance(kind, Groups):
            add = torch.stack([steps["chosen"], *[0 * margin] * (kind.logp.shape[1] - 2), steps["rejected"]], 1)
            return replace(kind, logp=kind.logp + add)
        return replace(kind, logp=spread(kind.logp, steps["logp"], by_token, each))  # type: ignore[attr-defined,call-arg]

    if not row.logps:
        (head,) = (need for need in row.needs if need in laws.HEADS)
        wide = [f for f in laws.logps(case.first) if getattr(case.pool[head], f).ndim > case.first.__dict__[f].ndim]
        moved_ = sides(laws.fill(case.first, torch.zeros_like), 1.0, bool(laws.holes(case.first)))
        put = {f: getattr(moved_, f) for f in laws.logps(moved_)}
        for f in wide:
            other = getattr(case.pool[head], f) * 0
            if head == "embedding":
                put[f] = torch.cat([put[f][:, None], other[:, :1] + 1.0, other[:, 2:]], 1)
            else:
                put[f] = other + put[f][:, None]
        case.pool = {**case.pool, head: replace(case.pool[head], **put)}
    tokens = isinstance(case.first, Tokens | Rollouts)
    at = (
        case
        if not row.logps
        else replace(case, first=sides(case.first, 1 / TOKENS if not tokens else 1 / case.first.logp.shape[1], tokens))
    )
    if "tokens" in case.pool:
        at.pool = {**case.pool, "tokens": sides(case.pool["tokens"], 1 / TOKENS, True)}
    if "extrapolated" in case.pool:  # by no step, as by default
        at.pool = {**case.pool, "extrapolated": at.first}
    singly = [at.map(lambda t, i=i: t[i : i + 1] if t.ndim else t) for i in range(len(margin))]  # type: ignore[misc]
    loss = torch.cat([part.loss(stats) for part in singly])
    total = loss.sum() + sum(0 * leaf.sum() for leaf in leaves.values())  # a row may look at no log-prob at all
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return Curve(name, margin, loss.detach(), dict(zip(leaves, found, strict=True)))


def spread(t: Tensor, step: Tensor, by_token: bool, each: float) -> Tensor:
    """t + step, or each token its part of it."""
    return t + each * step[:, None] if by_token else t + step


def still(case: laws.Case, base: float, value: float) -> laws.Case:
    """Everything in its place: log-probs `base`, equal lengths, one good answer."""
    first = laws.fill(case.first, lambda t: torch.full_like(t, base))
    n = case.n
    plain: dict[str, Any] = {}
    if isinstance(first, Pairs):
        one = torch.ones(n, dtype=torch.float64)
        plain = {"strength": one, "score_chosen": one, "score_rejected": one * 0}
        plain |= dict.fromkeys(("chosen_length", "rejected_length"), one * TOKENS)
    if isinstance(first, Groups):
        ranks = torch.linspace(1, 0, first.logp.shape[1], dtype=torch.float64).expand(n, -1).clone()
        plain = {"score": ranks, "mask": torch.ones_like(first.mask), "length": torch.full_like(first.length, TOKENS)}
    if isinstance(first, Points | Demos):
        plain["length"] = torch.full_like(first.length, TOKENS)
    if isinstance(first, Points | Tokens):
        plain["value"] = torch.full_like(first.value, value)
    if isinstance(first, Tokens):
        width = first.logp.shape[1]
        plain |= {"mask": torch.ones_like(first.mask), "logp": torch.full_like(first.logp, base / width)}
    if isinstance(first, Rollouts):
        each = torch.full_like(first.logp, base / first.logp.shape[1])
        sign = torch.full_like(each, 1.0 if value else -1.0)
        plain = {"mask": torch.ones_like(first.mask), "logp": each, "old_logp": each.clone(), "advantage": sign}
    first = replace(first, **plain)
    pool = dict(case.pool)
    for need, kind in pool.items():
        if not isinstance(kind, Kind):
            pool[need] = kind * 0 if isinstance(kind, Tensor) and need != "noise" else kind
        elif need in ("degree", *laws.HEADS):
            pool[need] = laws.fill(kind, torch.zeros_like)
        elif need.endswith(laws.BY_TOKEN) or need == "kl_tokens":
            at = {"tokens": base / TOKENS, "distance": 0.5, "activation": 1.0}.get(need.removeprefix("ref_"), 0.0)
            pool[need] = laws.fill(laws.by_token(first, TOKENS), lambda t, at=at: torch.full_like(t, at))  # type: ignore[misc]
        else:
            pool[need] = laws.fill(first, lambda t, at=base: torch.full_like(t, at))  # type: ignore[misc]
    return replace(case, first=first, pool=pool)


def reach(row: table.Row) -> float:
    """How far a picture goes, nats: eight units of the reward, or five nats a token."""
    if row.length == "mean":
        return 5.0
    if row.feeds_on == "Rollouts":
        return 3.0
    if not row.logps:
        return 8.0
    scale = next((row.options[n].default for n in ("beta", "tau", "beta_chosen", "alpha") if n in row.options), 0.1)
    return min(8.0 / scale, 1000.0) if scale else 80.0


def curves(row: table.Row, points: int = 33) -> list[Curve]:
    """All curves of a row over what a picture shows."""
    far = reach(row)
    margin = torch.linspace(-far, -1e-3 if absolute(row) else far, points, dtype=torch.float64)
    return [curve(row, name, margin) for name in moved(row)]


# -- tails in words ----------------------------------------------------------------------------------------------------


def tails(row: table.Row) -> list[str]:
    """What becomes of the gradient factors as the margin goes to minus and to plus infinity, a line for each; no
    line of a row that is not drawn."""
    lines: list[str] = []
    if not drawn(row):
        return lines
    ends = (-1e-6, -1e-6) if absolute(row) else (FAR, 2 * FAR)
    for name in moved(row):
        far = curve(row, name, torch.tensor([-2 * FAR, -FAR, *ends], dtype=torch.float64))
        for end, (near, beyond) in {"-inf": (1, 0), "0" if absolute(row) else "+inf": (2, 3)}.items():
            said = [f"{letter(row, side)} {word(float(s[near]), float(s[beyond]))}" for side, s in far.slopes.items()]
            where = f"{f'{name}, ' if name else ''}{along(row)} -> {end}"
            lines.append(f"{where}: " + HELD.get(row.name, {}).get(where, ", ".join(said)))
    return lines


# What no slope at the far end tells: a row that is held at the end of float32 on its way there.
HELD = {
    "alphapo": {
        "margin -> -inf": "dL/da falls as -exp(-alpha a) does, to -1e34, where float32 ends; beyond it is held at 0"
    }
}


def along(row: table.Row) -> str:
    """What a curve goes along."""
    single = "chosen" not in next(iter(moved(row).values()))
    if "value" in row.needs:
        return "value beyond the return"
    if not row.logps:
        return "reward" if single else "margin of rewards"
    return "log-prob" if absolute(row) else "log-ratio" if single else "margin"


LETTERS = {"chosen": "dL/da", "rejected": "dL/db", "logp": "dL/dlogp"}


def letter(row: table.Row, side: str) -> str:
    """How the slope by a side is written in the row's equation."""
    if "value" in row.needs:
        return "dL/dv"
    return LETTERS[side] if row.logps else {"chosen": "dL/ds_w", "rejected": "dL/ds_l"}.get(side, "dL/ds")


def word(near: float, beyond: float) -> str:
    """
    >>> word(0.1, 0.1), word(-3e-12, 0.0), word(2.0, 4.0), word(-1e3, -1e3)
    ('-> 0.1', '-> 0', 'grows without bound', '-> -1000')
    """
    if abs(beyond) < 1e-9:
        return "-> 0"
    if abs(beyond) > 1.5 * abs(near):
        return "grows without bound" if beyond > 0 else "falls without bound"
    if abs(beyond) < 0.75 * abs(near):
        return "-> 0"
    return f"-> {beyond:.4g}"


# -- the picture -------------------------------------------------------------------------------------------------------


def draw(row: table.Row) -> Figure:
    """Loss on the left, gradient factors on the right."""
    from accord.lab import frame

    with frame.styled():
        figure, ((left, right),) = frame.panels(2, width=3.3, height=2.2)
        for c in curves(row):
            x = c.margin.numpy()
            left.plot(x, c.loss.numpy(), label=c.name or None)
            for side, slope in c.slopes.items():
                label = " ".join(filter(None, (c.name, letter(row, side))))
                right.plot(x, slope.numpy(), label=label)
        for axes, title in ((left, "loss"), (right, "gradient factors")):
            axes.set_title(title, loc="left", fontsize=9)
            axes.grid(visible=False)
            axes.locator_params(nbins=4)
            axes.set_xlabel(f"{along(row)}, nats" if row.logps else along(row))
        if len(moved(row)) > 1:
            left.legend()
        right.legend()
        return figure
