"""Objectives on sampled answers with an advantage at each token: policy gradients, and the critic beside them.

A is the advantage, held fixed (`accord loop` writes it beside the answer, see `accord.online.advantages`; of answers
that are merely rated a view makes it), rho_t = pi(y_t) / pi_old(y_t) with the log-probs that were written down when the
answer was sampled. Where policy = pi_old all of these have the slope -A_t along logp_t, but for what they divide by.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accord.objectives._links import not_negative, positive, share
from accord.objectives.kinds import Rollouts, Tokens, require_float32
from accord.objectives.table import row

MOST = 20.0  # nats: a ratio beyond e^20 is held there, without a gradient


def _clipped(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(rho A, clip(rho) A) with rho = exp(logp - old)."""
    require_float32(logp, old)
    share(clip=clip)
    ratio = (logp - old).clamp(max=MOST).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def _by_token(rollouts: Rollouts, clip: float) -> Tensor:
    """`_clipped` of each token, [B, L], 0 where there is none."""
    logp, old, advantage = (
        torch.where(rollouts.mask, t, 0.0) for t in (rollouts.logp, rollouts.old_logp, rollouts.advantage)
    )
    return _clipped(logp, old, advantage, clip)


@row(paper="none", length="sum only", aliases=("remax", "f_dpg"))
def reinforce(rollouts: Rollouts) -> Tensor:
    """REINFORCE: the log-prob of each token, weighed by its advantage.

    Equation:
        L = -sum over t of A_t * logp_t;  dL/dlogp_t = -A_t

    Args:
        rollouts: logp, advantage [B, L], mask. What the policy was when it sampled is not looked at: one pass over
            fresh answers.

    Returns:
        [B] nats times the unit of the reward: no fixed value.

    Source: no arXiv id (Williams, 1992). With a baseline of the greedy answer it is ReMax (arXiv 2310.10505), with one
    of the other answers to the prompt RLOO without a clip, with the slope of a divergence from reference *
    exp(score / kl) in place of the score f-DPG (2302.08215); which one is chosen where advantages are made.

    Example: log-probs -1, -2 and advantages 2, 0.5: L = 2 * 1 + 0.5 * 2 = 3.0.

    >>> from accord.objectives.example import rollouts
    >>> reinforce(rollouts([-1, -2], [2, 0.5])).item()
    3.0
    """
    require_float32(rollouts.logp)
    logp, advantage = (torch.where(rollouts.mask, t, 0.0) for t in (rollouts.logp, rollouts.advantage))
    return -(advantage * logp).sum(-1)


@row(paper="1707.06347", length="sum only", unit="token", aliases=("ppo_clip", "reinforce_plus_plus"))
def ppo(rollouts: Rollouts, *, clip: float = 0.2) -> Tensor:
    """PPO: the clipped ratio of each token to the policy that sampled it, weighed by its advantage; a mean over tokens.

    Equation:
        L = sum over t of max(-rho_t A_t, -clip(rho_t, 1 - clip, 1 + clip) A_t),  divided by the tokens of the update
        dL/dlogp_t = -rho_t A_t while rho_t has not left the clip in the direction of A_t, else 0

    Args:
        rollouts: logp, old_logp, advantage [B, L], mask.
        clip: how far a ratio may go from 1 and still be pushed, in [0, 1].

    Returns:
        [B]; -A summed over the tokens at policy = pi_old.

    Source: arXiv 1707.06347; for language models the codes of arXiv 1909.08593 and 2009.01325, TRL and MOSS were read.
    The critic is `critic`, a term of its own beside this one. With advantages of whole answers, normalised over the
    round, it is REINFORCE++ (arXiv 2501.03262), with DAPO's division of GRPO (2503.14476).

    Example: ratios 1.5 and 1, advantages 2 and -1, clip = 0.2: L = -1.2 * 2 + 1 = -1.4.

    >>> from accord.objectives.example import rollouts
    >>> import math
    >>> round(ppo(rollouts([-1, -2], [2, -1], old=[-1 - math.log(1.5), -2])).item(), 6)
    -1.4
    """
    return _by_token(rollouts, clip).sum(-1)


@row(
    paper="2402.14740",
    length="sum only",
    exceptions={"6": "one ratio for the answer: its advantage is the mean of its tokens', as they all have the same"},
)
def rloo(rollouts: Rollouts, *, clip: float = 0.2) -> Tensor:
    """RLOO: the clipped ratio of whole answers, weighed by how much better one was than the others.

    Equation:
        L = max(-rho A, -clip(rho, 1 - clip, 1 + clip) A),  rho = prod over t of rho_t,  A = mean over t of A_t
        dL/dlogp_t = -rho A inside of the clip

    Args:
        rollouts: logp, old_logp, advantage [B, L], mask.
        clip: how far a ratio may go from 1 and still be pushed, in [0, 1].

    Returns:
        [B]; -A at policy = pi_old.

    Source: arXiv 2402.14740 (TRL's code was read). The paper makes one step on fresh answers, where the ratio is 1.

    Example: two tokens of ratio 1.5 and 1, advantage -2: rho = 1.5, L = 1.5 * 2 = 3.0.

    >>> from accord.objectives.example import rollouts
    >>> import math
    >>> round(rloo(rollouts([-1, -2], [-2, -2], old=[-1 - math.log(1.5), -2])).item(), 6)
    3.0
    """
    logp, old, advantage = (
        torch.where(rollouts.mask, t, 0.0).sum(-1) for t in (rollouts.logp, rollouts.old_logp, rollouts.advantage)
    )
    return _clipped(logp, old, advantage / rollouts.mask.sum(-1).clamp(min=1), clip)


@row(paper="2402.03300", length="sum only")
def grpo(rollouts: Rollouts, ref_tokens: Tokens, *, clip: float = 0.2, beta: float = 0.04) -> Tensor:
    """GRPO: PPO's clipped ratios, a mean over each answer's tokens, held near the reference by k3.

    Equation:
        L = mean over t of [max(-rho_t A_t, -clip(rho_t) A_t) + beta * k3_t]
        k3_t = exp(-d_t) - 1 + d_t,  d_t = logp_t - logp_ref,t;  dk3_t/dlogp_t = 1 - exp(-d_t)

    Args:
        rollouts: logp, old_logp, advantage [B, L], mask.
        ref_tokens: log-probs under the reference, [B, L] nats.
        clip: how far a ratio may go from 1 and still be pushed, in [0, 1].
        beta: weight of k3, 0 or more.

    Returns:
        [B]; -A averaged over the tokens at policy = pi_old = reference.

    Source: arXiv 2402.03300 (TRL's code was read). TRL's beta is 0, and it divides by the
    tokens of the update (`ppo` does). Over answers of the policy the slope of k3 is that of KL(reference | policy), not
    of KL(policy | reference); for that one stand `hypo` beside `dr_grpo`, or have the KL in the reward.

    Example: one token, ratio 1, advantage 2, d = log 2, beta = 0.04: L = -2 + 0.04 * (0.5 - 1 + 0.693147) = -1.992274.

    >>> from accord.objectives.example import rollouts
    >>> import math
    >>> round(grpo(rollouts([-1], [2]), rollouts([-1 - math.log(2)], [2])).item(), 6)
    -1.992274
    """
    not_negative(beta=beta)
    require_float32(ref_tokens.logp)
    logp, ref = (torch.where(rollouts.mask, t, 0.0) for t in (rollouts.logp, ref_tokens.logp))
    apart = logp - ref
    k3 = (-apart).clamp(max=MOST).exp() - 1.0 + apart
    return (_by_token(rollouts, clip) + beta * k3).sum(-1) / rollouts.mask.sum(-1).clamp(min=1)


@row(paper="2503.20783", length="sum only")
def dr_grpo(rollouts: Rollouts, *, clip: float = 0.2, longest: int = 1024) -> Tensor:
    """Dr. GRPO: GRPO that divides every answer by the same length, so that long bad ones are no cheaper.

    Equation:
        L = (1 / longest) * sum over t of max(-rho_t A_t, -clip(rho_t, 1 - clip, 1 + clip) A_t)
        dL/dlogp_t = -rho_t A_t / longest inside of the clip

    Args:
        rollouts: logp, old_logp, advantage [B, L], mask.
        clip: how far a ratio may go from 1 and still be pushed, in [0, 1].
        longest: tokens, say the `max_new_tokens` of sampling; above 0.

    Returns:
        [B]; -A summed over the tokens and divided by `longest` at policy = pi_old.

    Source: arXiv 2503.20783 (its division and its advantages without a standard deviation are known from TRL's code;
    the paper was not read).

    Example: two tokens of ratio 1, advantages -3, longest = 1024: L = 6 / 1024 = 0.005859.

    >>> from accord.objectives.example import rollouts
    >>> round(dr_grpo(rollouts([-1, -2], [-3, -3])).item(), 6)
    0.005859
    """
    positive(longest=longest)
    return _by_token(rollouts, clip).sum(-1) / longest


@row(
    paper="1909.08593",
    length="sum only",
    unit="token",
    logps=False,
    beside="ppo, on rollouts: [ppo, {name: critic, weight: 0.1}]",
)
def critic(rollouts: Rollouts, value: Tokens, returns: Tensor, old_value: Tensor, *, clip: float = 0.2) -> Tensor:
    """The critic beside PPO: what each token will return, by a value head, clipped around what it said when sampling.

    Equation:
        L = sum over t of 1/2 max((v_t - R_t)^2, (c_t - R_t)^2),  c_t = v_old,t + clip(v_t - v_old,t, -clip, clip)
        dL/dv_t = v_t - R_t where that is the larger one, else 0;  divided by the tokens of the update

    Args:
        rollouts: whose answers they are; log-probs are not read.
        value: v_t, output of the value head, [B, L], in units of the reward.
        returns: R_t, advantages before any whitening plus old values, [B, L].
        old_value: v_old, the head's output when the answer was sampled, [B, L].
        clip: how far a value may go in a round, in units of the reward, 0 or more; 0 does not hold it.

    Returns:
        [B] of squared units of the reward: no fixed value.

    Source: arXiv 1909.08593 (its code, TRL's and MOSS' were read). Its weight there is 0.1 on the policy's own trunk,
    and 1 of a model apart (MOSS).

    Example: v = 0.5, R = 1, v_old = 0: held at 0.2 it would be further away, L = 0.5 * 0.8^2 = 0.32.

    >>> from accord.objectives.example import rollouts
    >>> one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    >>> round(critic(rollouts([-1], [0]), rollouts([0.5], [0]), one, zero).item(), 6)
    0.32
    """
    not_negative(clip=clip)
    require_float32(value.logp)
    v, r, old = (torch.where(rollouts.mask, t, 0.0) for t in (value.logp, returns, old_value))
    error = (v - r) ** 2
    if clip:
        error = torch.maximum(error, (old + (v - old).clamp(-clip, clip) - r) ** 2)
    return 0.5 * error.sum(-1)
