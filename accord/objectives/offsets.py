"""How is the margin shifted or bent before it is judged? By scores, lengths, sides and shares of the reference.

Notation as in `pairs.py`: a, b log-probs of chosen and rejected, rho_w, rho_l their log-ratios, Delta = rho_w - rho_l;
Delta_pi = a - b, Delta_ref = a_r - b_r, so that Delta = Delta_pi - Delta_ref.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.errors import ConfigError
from accord.objectives._links import not_negative, positive, soft_logistic
from accord.objectives.kinds import Pairs
from accord.objectives.pairs import dpo, log_ratios, margin
from accord.objectives.table import row


@row(paper="2402.10571", invariance="shift", values="scores")
def odpo(
    pairs: Pairs,
    ref: Pairs,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    scale: Literal["log", "identity", "softplus"] = "log",
) -> Tensor:
    """DPO with an offset: the more one response is worth, the larger the margin that is asked for.

    Equation:
        L = -log sigmoid(beta * Delta - alpha * f(s_w - s_l)),  f = log, identity or softplus
        dL/da = -beta * sigmoid(alpha * f - beta * Delta) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats; score_chosen, score_rejected [B], both there.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        alpha: weight of the offset, 0 or more; 0 is DPO.
        scale: f. With log a pair whose gap is 0 or less asks for nothing, and its loss is 0: the limit of the equation
            at a gap of 0.

    Returns:
        [B]; no fixed value at policy = reference: -log sigmoid(-alpha f).

    Source: arXiv 2402.10571 (the official code was read), f = log and alpha = 1 there. The code leaves out pairs of no
    positive gap; a variant's offset is alpha * log(s_w / s_l), which needs positive scores.

    Example: with beta = 0.1, Delta = 2, scores 8 and 3: M = 0.2 - log 5 = -1.409438, L = log(1 + exp(1.409438)) =
    1.627995.

    >>> from accord.objectives.example import pairs
    >>> round(odpo(pairs(-10, -12, scores=(8, 3)), pairs(-11, -11)).item(), 6)
    1.627995
    """
    not_negative(alpha=alpha)
    if scale not in ("log", "identity", "softplus"):
        raise ConfigError(f"scale={scale!r} is unknown; set it to 'log', 'identity' or 'softplus'")
    m, gap = margin(pairs, ref, beta), pairs.score_chosen - pairs.score_rejected
    if scale == "log":
        asks = gap > 0
        return torch.where(asks, soft_logistic(m - alpha * torch.where(asks, gap, 1.0).log()), 0.0)
    return soft_logistic(m - alpha * (gap if scale == "identity" else F.softplus(gap)))


@row(paper="2402.13228", init="log(2)", aliases=("smaug",))
def dpop(pairs: Pairs, ref: Pairs, *, beta: float = 0.3, penalty: float = 50.0) -> Tensor:
    """DPO-Positive (Smaug): DPO that pays where chosen falls below the reference.

    Equation:
        L = -log sigmoid(M),  M = beta * (Delta - penalty * max(0, -rho_w))
        dL/da = -beta * (1 + penalty) * sigmoid(-M) if rho_w < 0, else -beta * sigmoid(-M);  dL/db = beta * sigmoid(-M)

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        penalty: weight of chosen's fall, 0 or more; the paper's lambda, 0 is DPO.

    Returns:
        [B], log 2 at policy = reference. It is DPO wherever chosen is above the reference. Not invariant to a shift.

    Source: arXiv 2402.13228 (excerpts and the official readme; the code is not public). beta = 0.3 is recalled. Some
    ports add the penalty outside of the sigmoid, without beta.

    Example: with beta = 0.3, penalty = 50, rho_w = -0.1, rho_l = -2: M = 0.3 * (1.9 - 5) = -0.93,
    L = log(1 + exp(0.93)) = 1.262574.

    >>> from accord.objectives.example import pairs
    >>> round(dpop(pairs(-11.1, -13), pairs(-11, -11)).item(), 6)
    1.262574
    """
    positive(beta=beta)
    not_negative(penalty=penalty)
    rho_w, rho_l = log_ratios(pairs, ref)
    return soft_logistic(beta * (rho_w - rho_l - penalty * F.relu(-rho_w)))


@row(paper="2406.07327", init="log(2)")
def flex_dpo(pairs: Pairs, ref: Pairs, *, beta_chosen: float = 0.1, beta_rejected: float = 0.08) -> Tensor:
    """Flex-DPO: DPO with a strength of its own for each side, to soften the push on rejected.

    Equation:
        L = -log sigmoid(M),  M = beta_chosen * rho_w - beta_rejected * rho_l
        dL/da = -beta_chosen * sigmoid(-M),  dL/db = beta_rejected * sigmoid(-M)

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta_chosen: 1/nats, above 0.
        beta_rejected: 1/nats, 0 or more; equal to beta_chosen it is DPO, 0 leaves rejected alone.

    Returns:
        [B], log 2 at policy = reference. Not invariant to a shift of both log-ratios unless the betas are equal.

    Source: arXiv 2406.07327, sec. B.2.1 (formulas rederived; no public code). The paper holds beta_chosen fixed and
    sweeps beta_rejected downward; that 0.08 is its best was read in reviews, not in the paper.

    Example: with the defaults, rho_w = 1, rho_l = -1: M = 0.18, L = log(1 + exp(-0.18)) = 0.607192.

    >>> from accord.objectives.example import pairs
    >>> round(flex_dpo(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.607192
    """
    positive(beta_chosen=beta_chosen)
    not_negative(beta_rejected=beta_rejected)
    rho_w, rho_l = log_ratios(pairs, ref)
    return soft_logistic(beta_chosen * rho_w - beta_rejected * rho_l)


@row(paper="2411.15124", length="mean", init="log(2)", invariance="shift", aliases=("ln_dpo", "sigmoid_norm"))
def dpo_norm(pairs: Pairs, ref: Pairs, *, beta: float = 5.0) -> Tensor:
    """Length-normalised DPO (Tulu 3): DPO on the mean log-ratio of a response's tokens.

    Equation:
        L = -log sigmoid(beta * Delta),  Delta of means over each response's tokens
        dL/da = -beta * sigmoid(-beta * Delta) = -dL/db,  a and b means

    Args:
        pairs: chosen, rejected [B] nats a token.
        ref: the same under the reference.
        beta: strength of the tie to the reference, tokens/nat, above 0.

    Returns:
        [B], log 2 at policy = reference. On responses of n tokens each it is DPO with beta / n.

    Source: arXiv 2411.15124 (the codes were read): `dpo_norm` in open-instruct, `sigmoid_norm` in TRL.

    Example: with beta = 5, mean log-ratios 0.2 and -0.2: L = log(1 + exp(-2)) = 0.126928.

    >>> from accord.objectives.example import pairs
    >>> round(dpo_norm(pairs(-1.0, -1.4), pairs(-1.2, -1.2)).item(), 6)
    0.126928
    """
    return dpo(pairs, ref, beta=beta)


@row(paper="2405.19534", invariance="shift")
def dpo_gamma(pairs: Pairs, ref: Pairs, *, beta: float = 0.1, gamma: float = 0.5) -> Tensor:
    """DPO with a share of the reference: the reference's own ranking counts less, or not at all.

    Equation:
        L = -log sigmoid(M),  M = beta * (Delta_pi - gamma * Delta_ref)
        dL/da = -beta * sigmoid(-M) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: scale of the margin, 1/nats, above 0.
        gamma: share of the reference, 0 or more: 1 is DPO, 0 is the preference term of CPO.

    Returns:
        [B]; no fixed value at policy = reference.

    Source: arXiv 2405.19534 (excerpts and the code, where it is `alpha_scaling`); the paper sweeps gamma, and 0.5 is
    ours. It is the remedy for pairs that the reference ranks the wrong way round, which DPO seldom turns.

    Example: with beta = 0.1, gamma = 0.5, a - b = 2, a_r - b_r = -4: M = 0.4, L = log(1 + exp(-0.4)) = 0.513015.

    >>> from accord.objectives.example import pairs
    >>> round(dpo_gamma(pairs(-10, -12), pairs(-14, -10)).item(), 6)
    0.513015
    """
    not_negative(gamma=gamma)
    return soft_logistic(margin(pairs, ref, beta) + beta * (1.0 - gamma) * (ref.chosen - ref.rejected))


@row(paper="2403.19159", invariance="shift")
def r_dpo(pairs: Pairs, ref: Pairs, *, beta: float = 0.1, alpha: float = 0.01) -> Tensor:
    """Length-regularised DPO (R-DPO): what a response owes to its length is taken out of the reward.

    Equation:
        L = -log sigmoid(M),  M = beta * Delta + alpha * (|y_w| - |y_l|)
        dL/da = -beta * sigmoid(-M) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats; chosen_length, rejected_length [B] tokens.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        alpha: reward that a token is held to bring by being there, 1/tokens, 0 or more; 0 is DPO.

    Returns:
        [B]; no fixed value at policy = reference: log 2 where the lengths are equal, less where chosen is longer.

    Source: arXiv 2403.19159 (not read). The sign is derived: with the reward less alpha * |y|, the optimum's reward is
    beta * rho + alpha * |y| + a constant, so a pair that length explains asks for less margin. alpha = 0.01 is
    recalled. It is not `robust`, nor a rationale-DPO, which are called rDPO, too.

    Example: with beta = 0.1, alpha = 0.01, Delta = 2, lengths 30 and 10: M = 0.4, L = log(1 + exp(-0.4)) = 0.513015.

    >>> from accord.objectives.example import pairs
    >>> round(r_dpo(pairs(-10, -12, lengths=(30, 10)), pairs(-11, -11)).item(), 6)
    0.513015
    """
    not_negative(alpha=alpha)
    return soft_logistic(margin(pairs, ref, beta) + alpha * (pairs.chosen_length - pairs.rejected_length))


@row(paper="2602.11902", invariance="shift")
def hybrid_dpo(pairs: Pairs, ref: Pairs, *, beta: float = 0.1) -> Tensor:
    """Hybrid-DPO: the reference counts only where it ranks the pair right.

    Equation:
        L = -log sigmoid(M),  M = beta * (Delta_pi - max(0, Delta_ref))
        dL/da = -beta * sigmoid(-M) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.

    Returns:
        [B]; no fixed value at policy = reference: log 2 where the reference ranks the pair right.

    Source: arXiv 2602.11902 (its abstract alone was read). Its short name collides with that of 2406.01462 (`hypo`).

    Example: with beta = 0.1, a - b = 2, a_r - b_r = -4: M = 0.2, L = log(1 + exp(-0.2)) = 0.598139.

    >>> from accord.objectives.example import pairs
    >>> round(hybrid_dpo(pairs(-10, -12), pairs(-14, -10)).item(), 6)
    0.598139
    """
    return soft_logistic(margin(pairs, ref, beta) - beta * F.relu(ref.rejected - ref.chosen))
