"""Objectives on pairs without a reference: chosen above rejected, by the policy's own measure.

Notation: a, b are the log-probs of chosen and rejected; under `length = mean` they are means over each response's
tokens, p = exp(a), q = exp(b); o(t) = t - log(1 - exp(t)) are the log-odds of exp(t); l(m) = -log sigmoid(m).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from accord.objectives._links import (
    finite,
    log1mexp,
    log_odds,
    mean_nll,
    not_negative,
    positive,
    powered,
    share,
    soft_logistic,
)
from accord.objectives.kinds import Groups, Pairs, require_float32
from accord.objectives.table import row


@row(paper="2405.14734", length="mean", invariance="shift")
def simpo(pairs: Pairs, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """SimPO: logistic loss on length-averaged log-probs with a target margin, without a reference.

    Equation:
        L = -log sigmoid(M),  M = beta * (a - b) - gamma,  a and b means over each response's tokens
        dL/da = -beta * sigmoid(-M) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats a token.
        beta: scale of the margin, tokens/nat, above 0.
        gamma: target margin, 0 or more.

    Returns:
        [B]; no fixed value at policy = reference, log(1 + exp(gamma)) where both means are equal.

    Source: arXiv 2405.14734. The defaults are the official README's for Llama-3-base: beta 2, gamma/beta 0.5; its code
    takes that ratio as `gamma_beta_ratio`. Other tuned runs use beta 2 to 10. TRL's CPO trainer defaults to beta 0.1,
    gamma 0.5 and adds NLL unless `cpo_alpha` is 0; Liger takes 0.1 and 0.5; torchtune 2 and 0.5.

    Example: with beta = 2, gamma = 1, a = -1, b = -2 (means): M = 1, L = log(1 + exp(-1)) = 0.313262.

    >>> from accord.objectives.example import pairs
    >>> round(simpo(pairs(-1, -2)).item(), 6)
    0.313262
    """
    positive(beta=beta)
    not_negative(gamma=gamma)
    require_float32(pairs.chosen, pairs.rejected)
    return soft_logistic(beta * (pairs.chosen - pairs.rejected) - gamma)


@row(paper="2403.07691", length="mean")
def orpo(pairs: Pairs, *, lam: float = 0.1) -> Tensor:
    """ORPO: likelihood of the chosen response, and a logistic loss on the ratio of the odds.

    Equation:
        L = -a + lam * l(M),  M = o(a) - o(b),  a and b means over each response's tokens
        dL/da = -1 - lam * sigmoid(-M) / (1 - p),  dL/db = lam * sigmoid(-M) / (1 - q)

    Args:
        pairs: chosen, rejected [B] nats a token, below 0; from -1e-7 up the odds are held.
        lam: weight of the odds ratio, 0 or more; 0 is likelihood of chosen.

    Returns:
        [B] nats; no fixed value at policy = reference.

    Source: arXiv 2403.07691 (codes read, not the paper). 0.1 is what the official scripts set; their code's own
    default is 1. TRL calls it `beta`. There and in the official code the likelihood goes over the prompt's tokens
    too; here, as in LLaMA-Factory, over the response's.

    Example: with lam = 0.1, a = log 0.5, b = log 0.25: M = 0 + log 3, L = 0.693147 + 0.1 * log(4 / 3) = 0.721915.

    >>> import math
    >>> from accord.objectives.example import pairs
    >>> round(orpo(pairs(math.log(0.5), math.log(0.25))).item(), 6)
    0.721915
    """
    not_negative(lam=lam)
    require_float32(pairs.chosen, pairs.rejected)
    return -pairs.chosen + lam * soft_logistic(log_odds(pairs.chosen) - log_odds(pairs.rejected))


@row(paper="2409.10571", length="mean", aliases=("aligned_sft",))
def asft(pairs: Pairs, *, lam: float = 0.1) -> Tensor:
    """Aligned supervised fine-tuning: likelihood of chosen, unlikelihood of rejected, each for itself.

    Equation:
        L = -a + lam * [-log sigmoid(o(a)) - log sigmoid(-o(b))] = -(1 + lam) * a - lam * log(1 - q)
        dL/da = -(1 + lam),  dL/db = lam * q / (1 - q): the push fades as rejected is forgotten

    Args:
        pairs: chosen, rejected [B] nats a token, below 0; rejected from -1e-7 up is held.
        lam: weight of the part that compares, 0 or more; 0 is likelihood of chosen.

    Returns:
        [B] nats; no fixed value at policy = reference. At least `orpo` of the same lam.

    Source: arXiv 2409.10571 by way of arXiv 2502.01237, which was read; no official code was found, and the default is
    ORPO's. Not Anchored SFT (2509.23753), which shares the letters.

    Example: with lam = 0.1, a = log 0.5, b = log 0.25: L = 1.1 * 0.693147 + 0.1 * 0.287682 = 0.79123.

    >>> import math
    >>> from accord.objectives.example import pairs
    >>> round(asft(pairs(math.log(0.5), math.log(0.25))).item(), 6)
    0.79123
    """
    not_negative(lam=lam)
    require_float32(pairs.chosen, pairs.rejected)
    return -(1.0 + lam) * pairs.chosen - lam * log1mexp(pairs.rejected)


@row(paper="2401.08417", length="sum only")
def cpo(pairs: Pairs, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """Contrastive Preference Optimization: DPO without its reference, and NLL of the chosen response.

    Equation:
        L = -log sigmoid(beta * (a - b)) - alpha * a / |y_w|
        dL/da = -beta * sigmoid(-beta * (a - b)) - alpha / |y_w|,  dL/db = beta * sigmoid(-beta * (a - b))

    Args:
        pairs: chosen, rejected [B] nats, sums; chosen_length [B] tokens. (Under length = mean the NLL would be divided
            by the length twice: take a sum of `simpo` and `sft` there, which is CPO-SimPO.)
        beta: scale of the margin, 1/nats, above 0.
        alpha: weight of the NLL a token, 0 or more.

    Returns:
        [B] nats; no fixed value at policy = reference.

    Source: arXiv 2401.08417 (its official code was read). There and in TRL (`cpo_alpha`) the NLL is a mean over the
    batch's tokens: long responses weigh more; here it is a mean over each response's.

    Example: with beta = 0.1, alpha = 1, a = -10 of 5 tokens, b = -12: L = log(1 + exp(-0.2)) + 2 = 2.598139.

    >>> from accord.objectives.example import pairs
    >>> round(cpo(pairs(-10, -12)).item(), 6)
    2.598139
    """
    positive(beta=beta)
    not_negative(alpha=alpha)
    require_float32(pairs.chosen, pairs.rejected)
    return soft_logistic(beta * (pairs.chosen - pairs.rejected)) + alpha * mean_nll(pairs.chosen, pairs.chosen_length)


@row(paper="2310.13639")
def cpl(pairs: Pairs, *, alpha: float = 0.1, bias: float = 0.5) -> Tensor:
    """Contrastive Preference Learning: the log-probs are the advantages, and rejected is discounted by a bias.

    Equation:
        L = -log(e^(alpha a) / (e^(alpha a) + e^(alpha bias b))) = -log sigmoid(M),  M = alpha * (a - bias * b)
        dL/da = -alpha * sigmoid(-M),  dL/db = alpha * bias * sigmoid(-M)

    Args:
        pairs: chosen, rejected [B] nats.
        alpha: temperature of the advantages, 1/nats, above 0.
        bias: the paper's lambda, in [0, 1]. Below 1 a pair that is likely as a whole has the lower loss, which draws to
            what the data hold; at 1 it is the margin alone.

    Returns:
        [B]; no fixed value at policy = reference.

    Source: arXiv 2310.13639 (the official code was read). There a and b are sums over a segment's actions, with a
    discount that tokens do not have, and all ordered pairs of the batch are compared. Tuned runs: bias 0.5; bias 1
    with an `sft` of weight 1 to 1.5; alpha 0.2 with bias 0.75.

    Example: with alpha = 0.1, bias = 0.5, a = -10, b = -12: M = -1 + 0.6 = -0.4, L = log(1 + exp(0.4)) = 0.913015.

    >>> from accord.objectives.example import pairs
    >>> round(cpl(pairs(-10, -12)).item(), 6)
    0.913015
    """
    positive(alpha=alpha)
    share(bias=bias)
    require_float32(pairs.chosen, pairs.rejected)
    return soft_logistic(alpha * (pairs.chosen - bias * pairs.rejected))


@row(paper="2501.03884", length="mean")
def alphapo(pairs: Pairs, *, beta: float = 2.0, gamma: float = 1.0, alpha: float = 0.25) -> Tensor:
    """AlphaPO: SimPO with a reward whose shape is a power of the probability instead of its logarithm.

    Equation:
        L = -log sigmoid(M),  M = beta * (s(a) - s(b)) - gamma,  s(t) = (1 - exp(-alpha t)) / alpha,  s(t) = t at 0
        dL/da = -beta * sigmoid(-M) * exp(-alpha a),  dL/db = beta * sigmoid(-M) * exp(-alpha b)

    Args:
        pairs: chosen, rejected [B] nats a token; where -alpha times it is above 80 it is held there.
        beta: scale of the margin, above 0.
        gamma: target margin, 0 or more.
        alpha: shape, any number: above 0 unlikely responses are pushed harder than likely ones; 0 is `simpo`.

    Returns:
        [B]; no fixed value at policy = reference, log(1 + exp(gamma)) where both means are equal.

    Source: arXiv 2501.03884 by way of TRL, whose CPO trainer has it as `alphapo`; the paper was not read. beta and
    gamma are `simpo`'s, alpha = 0.25 is recalled and not checked; TRL's default is 0, which is SimPO.

    Example: with the defaults, a = -1, b = -2: s = -1.136102 and -2.594885, M = 1.917567, L = 0.137119.

    >>> from accord.objectives.example import pairs
    >>> round(alphapo(pairs(-1, -2)).item(), 6)
    0.137119
    """
    finite(alpha=alpha)
    require_float32(pairs.chosen, pairs.rejected)
    shaped = replace(pairs, chosen=powered(pairs.chosen, alpha), rejected=powered(pairs.rejected, alpha))
    return simpo(shaped, beta=beta, gamma=gamma)


def triple(groups: Groups) -> Tensor:
    """Places [B, 3] of the best, the second best and the worst response of each group; of two, the best stands twice.

    >>> from accord.objectives.example import groups
    >>> triple(groups([-1, -1, -1, -1], [2, 4, 1, 3])).tolist(), triple(groups([-1, -1], [1, 2])).tolist()
    ([[1, 3, 2]], [[1, 1, 0]])
    """
    count = groups.mask.sum(-1)
    order = groups.score.masked_fill(~groups.mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    places = torch.stack([torch.zeros_like(count), (count > 2).long(), (count - 1).clamp(min=0)], -1)
    return order.gather(-1, places)


@row(paper="2405.16681", length="sum only")
def tpo(groups: Groups, *, beta: float = 0.01, alpha: float = 1.0) -> Tensor:
    """Triple Preference Optimization: learn the best response, and prefer the second best to the worst.

    Equation:
        L = -log sigmoid(beta * (a - b)) - alpha * g / |y_g|,  g, a, b the log-probs of best, second best and worst
        dL/dg = -alpha / |y_g|,  dL/da = -beta * sigmoid(-beta * (a - b)) = -dL/db

    Args:
        groups: logp [B, K] nats, sums; length [B, K] tokens; score [B, K]. Three responses make the triple; of more,
            those between are left out; of two, the best is also the preferred one, which is `cpo`.
        beta: scale of the margin, 1/nats, above 0.
        alpha: weight of the best one's NLL a token, 0 or more.

    Returns:
        [B] nats; no fixed value at policy = reference.

    Source: arXiv 2405.16681 by way of TRL's experimental trainer; the paper was not read. There the best response
    stands in a column of its own (`reference`) and its NLL is a mean over the batch's tokens, here over its own.

    Example: with the defaults, log-probs -10, -12, -14 of 5 tokens: L = log(1 + exp(-0.02)) + 2 = 2.683197.

    >>> from accord.objectives.example import groups
    >>> round(tpo(groups([-10, -12, -14], [3, 2, 1])).item(), 6)
    2.683197
    """
    positive(beta=beta)
    not_negative(alpha=alpha)
    require_float32(groups.logp)
    places = triple(groups)
    gold, a, b = groups.logp.gather(-1, places).unbind(-1)
    length = groups.length.gather(-1, places)[:, 0]
    return soft_logistic(beta * (a - b)) + alpha * mean_nll(gold, length)


@row(paper="2405.16681", length="mean")
def tpo_l(groups: Groups, *, beta: float = 0.01, gamma: float = 0.5, alpha: float = 1.0) -> Tensor:
    """TPO-L: Triple Preference Optimization on length-averaged log-probs with a target margin.

    Equation:
        L = -log sigmoid(M) - alpha * g,  M = beta * (a - b) - gamma,  all means over each response's tokens
        dL/dg = -alpha,  dL/da = -beta * sigmoid(-M) = -dL/db

    Args:
        groups: logp [B, K] nats a token; score [B, K]. The triple is that of `tpo`.
        beta: scale of the margin, tokens/nat, above 0.
        gamma: target margin, 0 or more.
        alpha: weight of the best one's NLL a token, 0 or more.

    Returns:
        [B] nats; no fixed value at policy = reference.

    Source: arXiv 2405.16681 by way of TRL's experimental trainer (`tpo-l`); the paper was not read. beta is the one
    that goes with sums; `simpo`, which has the same margin, takes 2 to 10.

    Example: with the defaults, means -1, -2, -3: M = -0.49, L = log(1 + exp(0.49)) + 1 = 1.967864.

    >>> from accord.objectives.example import groups
    >>> round(tpo_l(groups([-1, -2, -3], [3, 2, 1])).item(), 6)
    1.967864
    """
    positive(beta=beta)
    not_negative(alpha=alpha, gamma=gamma)
    require_float32(groups.logp)
    gold, a, b = groups.logp.gather(-1, triple(groups)).unbind(-1)
    return soft_logistic(beta * (a - b) - gamma) - alpha * gold
