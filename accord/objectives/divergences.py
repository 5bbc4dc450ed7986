"""Which divergence draws the policy to its labels, and which ties it to the reference?

Notation as in `pairs.py`: m = beta * Delta, l(m) = -log sigmoid(m), rho = log pi / pi_ref; KL(p | q) = sum p log p / q.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from accord.errors import ConfigError
from accord.objectives._links import (
    kl_from_label,
    kl_to_label,
    label_noise,
    log_softmax,
    not_negative,
    positive,
    powered,
    soft_logistic,
)
from accord.objectives._links import square as square_to
from accord.objectives.kinds import Groups, Pairs, require_float32
from accord.objectives.pairs import log_ratios, margin
from accord.objectives.table import row


@row(
    paper="2402.00856",
    init="-log(2) - log(label_smoothing * (1 - label_smoothing)) / 2",
    invariance="shift",
    aliases=("exo_pair",),
)
def exo_pref(pairs: Pairs, ref: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.001) -> Tensor:
    """EXO on pairs: the reverse KL of the policy's preference from the smoothed label.

    Equation:
        L = KL(q | p),  q = (sigmoid(m), sigmoid(-m)),  p = (1 - eps, eps),  eps = label_smoothing
        dL/da = beta * sigmoid(m) sigmoid(-m) * (m - log((1 - eps) / eps)) = -dL/db
        Least, and 0, where cdpo is: at m = log((1 - eps) / eps). The gradient vanishes in both tails.

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        label_smoothing: probability that a label is wrong, in (0, 0.5); at 0 the divergence is infinite.

    Returns:
        [B]; -log 2 - log(eps (1 - eps)) / 2 at policy = reference.

    Source: arXiv 2402.00856 (the official code, TRL's and Liger's were read). TRL and Liger call it `exo_pair`, with
    eps = 0.001. The official code takes log p = (0, -10), which is not normalised.

    Example: with beta = 0.1, eps = 0.001, Delta = 2: m = 0.2, q = (0.549834, 0.450166),
    L = 0.549834 * (-0.598139 + 0.001) + 0.450166 * (-0.798139 + 6.907755) = 2.422015.

    >>> from accord.objectives.example import pairs
    >>> round(exo_pref(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    2.422015
    """
    positive(label_smoothing=label_smoothing)
    label_noise(label_smoothing)
    return kl_to_label(margin(pairs, ref, beta), math.log((1.0 - label_smoothing) / label_smoothing))


@row(paper="2402.00856", invariance="shift")
def exo_rw(groups: Groups, ref: Groups, *, beta: float = 0.5, beta_reward: float = 0.5) -> Tensor:
    """EXO on scored groups: the reverse KL of the policy's distribution over K responses from that of their scores.

    Equation:
        L = KL(q | p),  q = softmax(beta * rho_i),  p = softmax(R_i / beta_reward),  over the K responses
        dL/dlogp_i = beta * q_i * (log q_i - log p_i - L)

    Args:
        groups: logp [B, K] nats, score [B, K], the reward R.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        beta_reward: temperature of the scores, in their unit, above 0.

    Returns:
        [B]; no fixed value at policy = reference: KL of the even distribution from p. 0 for one response.

    Source: arXiv 2402.00856 (the official code was read); both betas are 0.5 there for HH and TL;DR, 0.1 for IMDb. With
    K = 2 and a score gap of beta_reward * log((1 - eps) / eps) it is `exo_pref`.

    Example: with beta = 0.5, rho = (1, -1), scores equal: q = (0.731059, 0.268941), L = log 2 - 0.582203 = 0.110944.

    >>> from accord.objectives.example import groups
    >>> round(exo_rw(groups([-10, -12], [1, 1]), groups([-11, -11], [1, 1])).item(), 6)
    0.110944
    """
    positive(beta=beta, beta_reward=beta_reward)
    require_float32(groups.logp, ref.logp, groups.score)
    there = groups.mask
    log_q = log_softmax(beta * (groups.logp - ref.logp), there)
    log_p = log_softmax(groups.score / beta_reward, there)
    return torch.where(there, log_q.exp() * (log_q - log_p), 0.0).sum(-1)


@row(paper="2406.11704", invariance="shift", values="scores", aliases=("rpo_nemotron",))
def rpo_reward_aware(
    pairs: Pairs,
    ref: Pairs,
    *,
    beta: float = 0.1,
    eta: float = 1.0,
    distance: Literal["backward_kl", "forward_kl", "square"] = "backward_kl",
) -> Tensor:
    """Reward-aware preference optimization (Nemotron's RPO): the implicit reward gap is drawn to that of the scores.

    Equation:
        g = eta * (s_w - s_l),  t = sigmoid(g)
        L = KL(t | sigmoid(m))  backward_kl,  KL(sigmoid(m) | t)  forward_kl,  (m - g)^2  square
        dL/da = beta * (sigmoid(m) - t),  beta * sigmoid(m) sigmoid(-m) (m - g),  2 beta (m - g) = -dL/db
        Each is 0 at m = g, and only there.

    Args:
        pairs: chosen, rejected [B] nats; score_chosen, score_rejected [B], both there.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        eta: scale of the scores, 1/score, 0 or more.
        distance: how the two gaps are compared.

    Returns:
        [B]; no fixed value at policy = reference.

    Source: arXiv 2406.11704 (NeMo-Aligner's and NeMo-RL's codes were read, where they are `bwd_kl`, `fwd_kl` and `sq`;
    they may average log-probs and add an SFT term). backward_kl is `soft_dpo` with t for a strength, less the entropy
    of t. It is not `dpo_sft` (regularised) nor `irpo`, which are called RPO, too.

    Example: with beta = 0.1, eta = 1, Delta = 2, scores 3 and 2: m = 0.2, t = 0.731059,
    L = 0.598139 + 0.268941 * 0.2 - 0.582203 = 0.069724.

    >>> from accord.objectives.example import pairs
    >>> round(rpo_reward_aware(pairs(-10, -12, scores=(3, 2)), pairs(-11, -11)).item(), 6)
    0.069724
    """
    not_negative(eta=eta)
    found = {"backward_kl": kl_from_label, "forward_kl": kl_to_label, "square": square_to}.get(distance)
    if found is None:
        raise ConfigError(f"distance={distance!r} is unknown; set it to 'backward_kl', 'forward_kl' or 'square'")
    return found(margin(pairs, ref, beta), eta * (pairs.score_chosen - pairs.score_rejected))


@row(
    paper="2309.16240",
    init="log(2)",
    exceptions={"8": "reverse_kl is DPO, which a shift does not change; the others it does"},
    aliases=("f_dpo",),
)
def fdpo(
    pairs: Pairs,
    ref: Pairs,
    *,
    beta: float = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "js",
    alpha: float = 0.5,
) -> Tensor:
    """f-DPO: DPO whose tie to the reference is another divergence than the reverse KL.

    Equation:
        L = -log sigmoid(M),  M = beta * (h(rho_w) - h(rho_l)),  h(rho) = f'(exp(rho))
        h = rho  reverse_kl,  -exp(-rho)  forward_kl,  log sigmoid(rho)  js,  (1 - exp(-alpha rho)) / alpha  alpha
        dL/da = -beta * sigmoid(-M) * h'(rho_w),  dL/db = beta * sigmoid(-M) * h'(rho_l)
        h' = 1,  exp(-rho),  sigmoid(-rho),  exp(-alpha rho)

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        divergence: f; reverse_kl is DPO.
        alpha: that of the alpha-divergence, in (0, 1]: near 0 it is the reverse KL, at 1 the forward KL. Only alpha
            reads it.

    Returns:
        [B], log 2 at policy = reference; for js the gradient there is half of DPO's.

    Source: arXiv 2309.16240 (the official code and TRL's were read). The paper's beta is 0.1 or 0.3, its alpha 0.3 to
    0.7. Newest TRL's alpha is 1 minus the paper's; an older one has 1 for a default and no forward KL. On summed
    log-probs exp(-rho) overflows: exponents are clamped at 80, as in TRL, and beyond there is no gradient.

    Example: with js, beta = 0.1, rho_w = 1, rho_l = -1: M = 0.1 * (-0.313262 + 1.313262), L = log(1 + exp(-0.1)) =
    0.644397.

    >>> from accord.objectives.example import pairs
    >>> round(fdpo(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.644397
    """
    positive(beta=beta)
    if not 0.0 < alpha <= 1.0:
        raise ConfigError(f"alpha={alpha} must be in (0, 1]; leave alpha out for its default")
    if divergence not in ("reverse_kl", "forward_kl", "js", "alpha"):
        raise ConfigError(f"divergence={divergence!r} is unknown; set it to reverse_kl, forward_kl, js or alpha")

    def h(rho: Tensor) -> Tensor:
        if divergence in ("reverse_kl", "js"):
            return rho if divergence == "reverse_kl" else torch.nn.functional.logsigmoid(rho)
        power = 1.0 if divergence == "forward_kl" else alpha
        return powered(rho, power)

    rho_w, rho_l = log_ratios(pairs, ref)
    return soft_logistic(beta * (h(rho_w) - h(rho_l)))
