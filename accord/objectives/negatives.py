"""Objectives on what should not be said: responses to be forgotten, beside others to be kept.

Notation: rho = log pi(y|x) - log pi_ref(y|x). A value below 0.5 means that the response is to be forgotten; from 0.5 on
it is to be kept, and every row says how. Where nothing is to be kept, only the first line of an equation counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from accord.errors import ConfigError
from accord.objectives._links import finite, not_negative, positive, soft_logistic
from accord.objectives.kinds import Groups, Points, Tokens, require_float32
from accord.objectives.lists import group_ratios
from accord.objectives.points import log_ratio
from accord.objectives.table import row

LOG_2 = math.log(2.0)


@row(paper="none", values="probability", aliases=("unlearning",))
def ga(points: Points) -> Tensor:
    """Gradient ascent on bad responses, likelihood on good ones: a baseline.

    Equation:
        L = log pi      if z < 0.5
            -log pi     else
        dL/dlogp = +1,  -1

    Args:
        points: logp [B] nats, value [B], good from 0.5.

    Returns:
        [B] nats; no fixed value at policy = reference. Unbounded below, and the push on bad responses never fades:
        watch it, or stop early.

    Source: no arXiv id of its own; "Unlikelihood" in the code of arXiv 2312.02554, there on length-averaged log-probs.
    It is not token unlikelihood, -log(1 - p).

    Example: with logp = -10, z = 0: L = -10.0.

    >>> from accord.objectives.example import points
    >>> ga(points(-10, 0)).item()
    -10.0
    """
    require_float32(points.logp)
    return kept_or(points.logp, points, 1.0)


def kept_or(forgotten: Tensor, points: Points, retain: float) -> Tensor:
    """[B]: `forgotten` where the response is bad, `retain` times its NLL where it is good."""
    not_negative(retain=retain)
    return torch.where(points.value >= 0.5, -retain * points.logp, forgotten)


@row(paper="none", length="mean", values="probability")
def graddiff(points: Points, *, retain: float = 1.0) -> Tensor:
    """Gradient difference: ascent on what is to be forgotten, weighted likelihood on what is to be kept, by the token.

    Equation:
        L = log pi / |y|                if z < 0.5
            -retain * log pi / |y|      else
        dL/dlogp = +1,  -retain  (of the mean)

    Args:
        points: logp [B] nats a token, value [B], kept from 0.5.
        retain: weight of the NLL of what is kept, 0 or more; 0 is ascent alone.

    Returns:
        [B] nats; no fixed value at policy = reference. Unbounded below, as `ga`.

    Source: no arXiv id of its own; GradDiff of open-unlearning, which draws one example to keep for each to forget.

    Example: with a mean of -2, z = 0: L = -2.0; with z = 1, retain = 0.5: L = 1.0.

    >>> from accord.objectives.example import points
    >>> graddiff(points(-2, 0)).item()
    -2.0
    >>> graddiff(points(-2, 1), retain=0.5).item()
    1.0
    """
    require_float32(points.logp)
    return kept_or(points.logp, points, retain)


@row(paper="none", length="mean", values="probability")
def kl_retain(points: Points, kl: Points, *, retain: float = 1.0) -> Tensor:
    """Ascent on what is to be forgotten; on what is to be kept, the policy stays near the reference.

    Equation:
        L = log pi / |y|                                                        if z < 0.5
            retain / |y| * sum over t of KL(pi_ref(.|x, y_<t) | pi(.|x, y_<t))  else
        dL/dlogp = +1,  0;  dL/dkl = 0,  retain  (of the means)

    Args:
        points: logp [B] nats a token, value [B], kept from 0.5.
        kl: logp [B], the divergence a token, over the whole vocabulary.
        retain: weight of the divergence on what is kept, 0 or more.

    Returns:
        [B] nats; no fixed value at policy = reference: the mean log-prob of what is to be forgotten, 0 of the others.

    Source: no arXiv id of its own; the KL form of open-unlearning's GradDiff.

    Example: with a mean of -2, z = 0: L = -2.0; with z = 1 and a divergence of 0.3: L = 0.3.

    >>> from accord.objectives.example import points
    >>> kl_retain(points(-2, 0), points(0.3, 0)).item()
    -2.0
    >>> kl_retain(points(-2, 1), points(0.3, 1)).item()
    0.3
    """
    not_negative(retain=retain)
    require_float32(points.logp, kl.logp)
    return torch.where(points.value >= 0.5, retain * kl.logp, points.logp)


@row(paper="2404.05868", values="probability")
def npo(points: Points, ref: Points, *, beta: float = 0.1, retain: float = 1.0) -> Tensor:
    """Negative Preference Optimization: DPO with rejected alone, which stops pushing what is forgotten.

    Equation:
        L = -(2/beta) log sigmoid(-beta * rho)      if z < 0.5
            -retain * log pi                        else
        dL/dlogp = 2 sigmoid(beta * rho),  -retain:  1 at the reference, 0 once forgotten

    Args:
        points: logp [B] nats, value [B], kept from 0.5.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0; near 0 it is `ga`, up to a constant.
        retain: weight of the NLL of what is kept, 0 or more.

    Returns:
        [B]; (2/beta) log 2 of what is to be forgotten at policy = reference, the NLL of the others.

    Source: arXiv 2404.05868 (the official code was read). There what is kept has a term of its own, NLL by the token
    or the divergence from the reference, and NPO alone has none: retain = 0.

    Example: with beta = 0.1, rho = 2, z = 0: L = 20 * log(1 + exp(0.2)) = 15.962777.

    >>> from accord.objectives.example import points
    >>> round(npo(points(-10, 0), points(-12, 0)).item(), 6)
    15.962777
    """
    positive(beta=beta)
    return kept_or(2.0 / beta * soft_logistic(-beta * log_ratio(points, ref)), points, retain)


@row(paper="2410.07163", length="mean", values="probability")
def simnpo(points: Points, *, beta: float = 2.5, gamma: float = 0.0, retain: float = 1.0) -> Tensor:
    """SimNPO: NPO without a reference, on length-averaged log-probs.

    Equation:
        L = -(2/beta) log sigmoid(beta * (-log pi / |y| - gamma))      if z < 0.5
            -retain * log pi / |y|                                     else
        dL/dlogp = 2 sigmoid(beta * (log pi / |y| + gamma)),  -retain  (of the mean)

    Args:
        points: logp [B] nats a token, value [B], kept from 0.5.
        beta: steepness, tokens/nat, above 0.
        gamma: NLL a token at which forgetting has half its force, nats.
        retain: weight of the NLL of what is kept, 0 or more.

    Returns:
        [B]; no fixed value at policy = reference.

    Source: arXiv 2410.07163. The paper prints -beta / |y| log pi - gamma; both codes multiply gamma by beta, as here.
    They weight forgetting by 0.1375 (beta 2.5) or 0.125 (beta 4.5) and keeping by 1: retain = 7 or 8 here.

    Example: with beta = 2.5, gamma = 0, a mean of -2, z = 0: L = 0.8 * log(1 + exp(-5)) = 0.005372.

    >>> from accord.objectives.example import points
    >>> round(simnpo(points(-2, 0)).item(), 6)
    0.005372
    """
    positive(beta=beta)
    finite(gamma=gamma)
    require_float32(points.logp)
    return kept_or(2.0 / beta * soft_logistic(-beta * (points.logp + gamma)), points, retain)


# A divergence D(template | forgotten) from below: what it is minus, of P of a template and of what is to be forgotten.
VARIATIONAL: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "total_variation": (lambda p: -torch.tanh(p) / 2.0, lambda p: torch.tanh(p) / 2.0),
    "kl": (lambda p: -p, lambda p: torch.exp(p - 1.0)),
    "jensen_shannon": (lambda p: soft_logistic(p) - LOG_2, lambda p: soft_logistic(-p) - LOG_2),
    "pearson": (lambda p: -p, lambda p: p + p**2 / 4.0),
}


@row(paper="2410.11143", values="probability")
def flat(
    tokens: Tokens, *, divergence: Literal["total_variation", "kl", "jensen_shannon", "pearson"] = "total_variation"
) -> Tensor:
    """FLAT: raises the mean token probability of template answers, lowers that of the answers to be forgotten.

    Equation:
        P = mean over tokens of pi(y_t|x, y_<t), a probability and not its logarithm
        total_variation:  L = -tanh(P) / 2 if z >= 0.5,         tanh(P) / 2 else
        kl:               L = -P,                               exp(P - 1)
        jensen_shannon:   L = softplus(-P) - log 2,             softplus(P) - log 2
        pearson:          L = -P,                               P + P^2 / 4
        dL/dlogp_t = dL/dP * pi_t / |y|

    Args:
        tokens: logp [B, L] nats, mask [B, L], value [B]: from 0.5 an answer such as "I do not know", below it what is
            to be forgotten. A pair is both.
        divergence: which divergence between the two is driven up.

    Returns:
        [B], bounded; no fixed value at policy = reference.

    Source: arXiv 2410.11143 (the code was read; the Jensen-Shannon form was checked against its conjugates). The code
    divides by the padded length; here it is the number of tokens.

    Example: with probabilities 0.5 and 0.25, z = 0: P = 0.375, L = tanh(0.375) / 2 = 0.179179.

    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> half = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log()
    >>> round(flat(Tokens(half, mask, torch.zeros(1))).item(), 6)
    0.179179
    """
    require_float32(tokens.logp)
    if divergence not in VARIATIONAL:
        raise ConfigError(f"divergence={divergence!r} is unknown; set it to one of {', '.join(VARIATIONAL)}")
    chances = torch.exp(tokens.logp.masked_fill(~tokens.mask, -torch.inf))
    p = chances.sum(-1) / tokens.mask.sum(-1).clamp(min=1)
    good, bad = VARIATIONAL[divergence]
    return torch.where(tokens.value >= 0.5, good(p), bad(p))


@row(paper="2403.03419", init="log(2)", invariance="shift")
def d2o(groups: Groups, ref: Groups, *, beta: float = 0.1, alpha: float = 0.1) -> Tensor:
    """Distributional Dispreference Optimization: away from one bad answer, towards the policy's own average one.

    Equation:
        L = -log sigmoid(M),  M = beta * mean over i of rho_i - alpha * rho_l
        dL/dlogp_i = -beta / K * sigmoid(-M),  dL/dlogp_l = alpha * sigmoid(-M)

    Args:
        groups: logp, score [B, K + 1], mask. The worst-scored response is the bad one, l; the others, whatever their
            scores, are the K that the policy (or the reference) wrote itself.
        ref: the same under the reference.
        beta: strength of the tie to the reference of its own answers, 1/nats, above 0.
        alpha: that of the bad one, 0 or more. Equal to beta a constant of the prompt changes nothing.

    Returns:
        [B], log 2 at policy = reference. With one answer beside the bad one, and alpha = beta, it is `dpo`.

    Source: arXiv 2403.03419 (excerpts of the paper were read): K = 11, alpha = beta = 0.1. The paper allows a reference
    for each side; both are the initial model there, and one here.

    Example: with alpha = beta = 0.1, rho = (1, 3) and rho_l = -1: M = 0.3, L = log(1 + exp(-0.3)) = 0.554355.

    >>> from accord.objectives.example import groups
    >>> scores = [1, 1, 0]
    >>> round(d2o(groups([-10, -8, -12], scores), groups([-11, -11, -11], scores)).item(), 6)
    0.554355
    """
    positive(beta=beta)
    not_negative(alpha=alpha)
    rho = group_ratios(groups, ref)
    worst = groups.score.masked_fill(~groups.mask, torch.inf).argmin(-1, keepdim=True)
    bad = rho.gather(-1, worst)[:, 0]
    others = (rho.sum(-1) - bad) / (groups.mask.sum(-1) - 1).clamp(min=1)
    return soft_logistic(beta * others - alpha * bad)
