"""Objectives on several scored responses to one prompt: the order, and by how much.

Notation: K responses y_i with scores R_i; rho_i = log pi(y_i|x) - log pi_ref(y_i|x); r_i = beta * rho_i;
p = softmax(R / alpha) over the group; places beyond a group's responses count for nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accord.objectives._links import log_softmax, positive, soft_logistic
from accord.objectives.kinds import Groups, require_float32
from accord.objectives.table import row


def group_ratios(groups: Groups, ref: Groups) -> Tensor:
    """rho [B, K] nats: log-ratios to the reference, 0 where there is no response."""
    require_float32(groups.logp, ref.logp)
    return torch.where(groups.mask, groups.logp - ref.logp, 0.0)


def targets(groups: Groups, alpha: float) -> Tensor:
    """p = softmax(R / alpha) [B, K], 0 where there is no response; alpha above 0, in units of the scores."""
    positive(alpha=alpha)
    return torch.where(groups.mask, log_softmax(groups.score / alpha, groups.mask).exp(), 0.0)


@row(paper="2402.05369", init="log(K)", invariance="shift")
def infonca(groups: Groups, ref: Groups, *, beta: float = 0.01, alpha: float = 1.0) -> Tensor:
    """InfoNCA: the implicit rewards of a group are classified as its scores are.

    Equation:
        L = -sum_i p_i log softmax(r)_i
        dL/dlogp_i = beta * (softmax(r)_i - p_i): only differences of rewards matter

    Args:
        groups: logp, score [B, K], mask.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        alpha: temperature of the scores, in their unit, above 0: near 0 the best takes all.

    Returns:
        [B] nats, log K at policy = reference, K the group's own; least, the entropy of p, where softmax(r) = p.

    Source: arXiv 2402.05369; beta = 0.01 is the official code's, which trains groups of 4, scales rewards by a
    constant of its own and adds 0.01 to the best; alpha = 1 is ours. Of two responses it is `soft_dpo` with strength
    sigmoid((R_1 - R_2) / alpha), and `dpo` as alpha goes to 0.

    Example: with beta = 0.01, alpha = 1, rho = (1, -1), R = (1, 0): p_1 = 0.731059,
    L = 0.731059 * 0.683197 + 0.268941 * 0.703197 = 0.688576.

    >>> from accord.objectives.example import groups
    >>> round(infonca(groups([-10, -12], [1, 0]), groups([-11, -11], [1, 0])).item(), 6)
    0.688576
    """
    positive(beta=beta)
    log_q = log_softmax(beta * group_ratios(groups, ref), groups.mask)
    return -(targets(groups, alpha) * log_q).sum(-1)


@row(paper="2402.05369", init="2*log(2)")
def nca(groups: Groups, ref: Groups, *, beta: float = 0.01, alpha: float = 1.0) -> Tensor:
    """NCA: each response of a group is told by itself from the reference's; rewards have a place, not just an order.

    Equation:
        L = -sum_i [p_i log sigmoid(r_i) + log sigmoid(-r_i) / K]
        dL/dlogp_i = beta * ((p_i + 1/K) * sigmoid(r_i) - p_i)
        Least at r_i = log(K p_i): a response of average score stays where it is.

    Args:
        groups: logp, score [B, K], mask.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        alpha: temperature of the scores, in their unit, above 0: near 0 the best takes all.

    Returns:
        [B], 2 log 2 at policy = reference.

    Source: arXiv 2402.05369; beta = 0.01 is the official code's, which adds 0.01 to the best score (TRL does not);
    alpha = 1 is ours.

    Example: with beta = 0.01, alpha = 1, rho = (1, -1), R = (1, 0): p_1 = 0.731059, L = 0.731059 * 0.68816 +
    0.69816 / 2 + 0.268941 * 0.69816 + 0.68816 / 2 = 1.384009.

    >>> from accord.objectives.example import groups
    >>> round(nca(groups([-10, -12], [1, 0]), groups([-11, -11], [1, 0])).item(), 6)
    1.384009
    """
    positive(beta=beta)
    r, p = beta * group_ratios(groups, ref), targets(groups, alpha)
    noise = groups.mask.to(r.dtype) / groups.mask.sum(-1, keepdim=True).clamp(min=1)
    return (p * soft_logistic(r) + noise * soft_logistic(-r)).sum(-1)
