"""Objectives on single judged responses: thumbs, labels, ratings.

Notation: rho = log pi(y|x) - log pi_ref(y|x); z = value; r = beta * (rho + log Z(x)) is the implicit reward, where
Z(x) = sum_y pi_ref(y|x) exp(reward / beta) is the prompt's partition function; softplus(t) = log(1 + exp(t)).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from accord.errors import ConfigError
from accord.objectives._links import finite, not_negative, positive, soft_logistic, square
from accord.objectives.kinds import Points, require_float32
from accord.objectives.table import row


def log_ratio(points: Points, ref: Points) -> Tensor:
    """rho [B] nats: log-ratio to the reference."""
    require_float32(points.logp, ref.logp)
    return points.logp - ref.logp


def implicit_reward(points: Points, ref: Points, log_z: Tensor, beta: float) -> Tensor:
    """r = beta * (rho + log Z) [B]; log_z [B] or 0-dim, nats."""
    positive(beta=beta)
    require_float32(log_z)
    return beta * (log_ratio(points, ref) + log_z)


@row(paper="2312.02554", init="log(2)")
def pointwise_dpo(points: Points, ref: Points, log_z: Tensor, *, beta: float = 0.1) -> Tensor:
    """Point-wise DPO on labels: the implicit reward is the logit of "this response is good".

    Equation:
        L = -z log sigmoid(r) - (1 - z) log sigmoid(-r),  r = beta * (rho + log Z)
        dL/dlogp = dL/dlog_z = beta * (sigmoid(r) - z)

    Args:
        points: logp [B] nats, value [B] in [0, 1], P(good).
        ref: the same under the reference.
        log_z: log Z of each example's prompt, [B] or 0-dim, nats. Z = 1 is far off at small beta: it costs 0.55 of
            total variation at beta = 0.1 in a world of four responses, where a learned one costs nothing.
        beta: strength of the tie to the reference, 1/nats, above 0.

    Returns:
        [B], log 2 at policy = reference and log_z = 0.

    Source: arXiv 2312.02554 (the authors' code was read; of the paper only the abstract and digests). The gradient is
    derived: a digest has the weights of good and bad exchanged. The code averages log-probs over tokens, has a
    constant for beta * log Z, 0 by default, and adds the mean over good to the mean over bad of each micro-batch.

    Example: with beta = 0.1, rho = 2, log_z = 0, z = 1: r = 0.2, L = log(1 + exp(-0.2)) = 0.598139.

    >>> from accord.objectives.example import points, scalar
    >>> round(pointwise_dpo(points(-10, 1), points(-12, 1), scalar(0)).item(), 6)
    0.598139
    """
    return soft_logistic(implicit_reward(points, ref, log_z, beta), points.value)


@row(paper="2312.02554", init="value**2")
def pointwise_dpo_continuous(points: Points, ref: Points, log_z: Tensor, *, beta: float = 0.1) -> Tensor:
    """Point-wise DPO on ratings: the implicit reward is drawn to the rating by a square.

    Equation:
        L = (z - r)^2,  r = beta * (rho + log Z)
        dL/dlogp = dL/dlog_z = -2 beta * (z - r)

    Args:
        points: logp [B] nats, value [B], a rating on any scale. Centre it: 0 draws to the reference, it does not
            suppress.
        ref: the same under the reference.
        log_z: log Z of each example's prompt, [B] or 0-dim, nats.
        beta: strength of the tie to the reference, 1/nats, above 0.

    Returns:
        [B], value^2 at policy = reference and log_z = 0.

    Source: arXiv 2312.02554 (the authors' code was read, not the paper's body). The code has this square only for
    responses that are not golden, and averages log-probs over tokens; on all responses it is inferred.

    Example: with beta = 0.1, rho = 2, log_z = 0, z = 1: L = (1 - 0.2)^2 = 0.64.

    >>> from accord.objectives.example import points, scalar
    >>> round(pointwise_dpo_continuous(points(-10, 1), points(-12, 1), scalar(0)).item(), 6)
    0.64
    """
    return square(implicit_reward(points, ref, log_z, beta), points.value)


@row(paper="2312.02554")
def ulma(
    points: Points,
    ref: Points,
    log_z: Tensor,
    *,
    beta: float = 0.1,
    threshold: float = 0.5,
    negatives: Literal["binary", "continuous"] = "binary",
) -> Tensor:
    """ULMA: plain likelihood on good responses, point-wise DPO on the others.

    Equation:
        L = -log pi                   if z >= threshold
            softplus(r)               else, negatives = binary
            (z - r)^2                 else, negatives = continuous;  r = beta * (rho + log Z)
        dL/dlogp = -1,  beta * sigmoid(r),  -2 beta * (z - r)

    Args:
        points: logp [B] nats, value [B], a label or a rating.
        ref: the same under the reference.
        log_z: log Z of each example's prompt, [B] or 0-dim, nats.
        beta: strength of the tie to the reference on bad responses, 1/nats, above 0.
        threshold: value from which a response is a demonstration.
        negatives: what is asked of the others: to be bad, or to have their rating as reward.

    Returns:
        [B]; no fixed value at policy = reference: the NLL of good ones, log 2 or value^2 of the others at log_z = 0.

    Source: arXiv 2312.02554 (the authors' code was read, not the paper's body). The code calls score == 1 good; a
    digest reports 8 for ratings of red-team data, on a scale that was not found; 0.5 is ours, for labels in [0, 1].
    The code averages log-probs over tokens and adds the mean over good to the mean over bad of each micro-batch.

    Example: with beta = 0.1, rho = 2, log_z = 0, z = 0: r = 0.2, L = log(1 + exp(0.2)) = 0.798139.

    >>> from accord.objectives.example import points, scalar
    >>> round(ulma(points(-10, 0), points(-12, 0), scalar(0)).item(), 6)
    0.798139
    """
    finite(threshold=threshold)
    if negatives not in ("binary", "continuous"):
        raise ConfigError(f"negatives={negatives!r} is unknown; set it to 'binary' or 'continuous'")
    r = implicit_reward(points, ref, log_z, beta)
    bad = soft_logistic(r, 0.0) if negatives == "binary" else square(r, points.value)
    return torch.where(points.value >= threshold, -points.logp, bad)


def kto_anchor(points: Points, ref: Points, mismatched: Points, ref_mismatched: Points) -> dict[str, Tensor]:
    """KTO's reference point, an estimate of KL(pi | pi_ref) from responses to other prompts.

    Equation:
        z0 = max(0, mean of log pi(y'|x) - log pi_ref(y'|x)),  y' a response to another prompt

    Args:
        points, ref: not used; every stats function is given what its row feeds on.
        mismatched: logp [B] nats of each prompt followed by another prompt's response, for the whole global batch.
        ref_mismatched: the same under the reference.

    Returns:
        {"z0": 0-dim nats, detached, 0 or more}.

    Source: arXiv 2402.01306, as TRL and HALOs estimate it. They roll the responses by one within each device's
    batch; old `kto_pair` codes anchored chosen on rejected and the reverse, another estimator.

    >>> from accord.objectives.example import points
    >>> kto_anchor(points(-9), points(-9), points(-10), points(-10.5))["z0"].item()
    0.5
    """
    del points, ref
    return {"z0": log_ratio(mismatched, ref_mismatched).detach().mean().clamp(min=0.0)}


@row(
    paper="2402.01306",
    init="(value >= 0.5) * desirable_weight / 2 + (value < 0.5) * undesirable_weight / 2",
    stats="kto_anchor",
    classes="both",
)
def kto(
    points: Points,
    ref: Points,
    stats: dict[str, Tensor],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky Optimization: good above, bad below a moving reference point, with a value that saturates.

    Equation:
        L = desirable_weight * sigmoid(-v)     if z >= 0.5,  v = beta * (rho - z0)
            undesirable_weight * sigmoid(v)    else
        dL/dlogp = -+ weight * beta * sigmoid(v) * sigmoid(-v): it vanishes in both tails

    Args:
        points: logp [B] nats, value [B], desirable from 0.5.
        ref: the same under the reference.
        stats: z0 of the whole global batch, from `kto_anchor`.
        beta: strength of the tie to the reference, 1/nats, above 0.
        desirable_weight, undesirable_weight: 0 or more. Rule of thumb: desirable_weight times the number of desirable
            over the same of undesirable in [1, 4/3].

    Returns:
        [B], half the example's weight at policy = reference.

    Source: arXiv 2402.01306 (TRL's and HALOs' codes were read, not the paper). One align-anything snapshot has the
    undesirable term with the wrong sign; Liger divides by the batch.

    Example: with beta = 0.1, rho = 2, z0 = 0.5, z = 1: v = 0.15, L = 1 - sigmoid(0.15) = 0.46257.

    >>> from accord.objectives.example import points, scalar
    >>> round(kto(points(-10, 1), points(-12, 1), {"z0": scalar(0.5)}).item(), 6)
    0.46257
    """
    positive(beta=beta)
    not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    v = beta * (log_ratio(points, ref) - stats["z0"])
    good = points.value >= 0.5
    return torch.where(good, desirable_weight * torch.sigmoid(-v), undesirable_weight * torch.sigmoid(v))


@row(paper="none")
def unlearning(points: Points) -> Tensor:
    """Gradient ascent on bad responses, likelihood on good ones: a baseline.

    Equation:
        L = -log pi  if z >= 0.5,  log pi  else
        dL/dlogp = -1,  +1

    Args:
        points: logp [B] nats, value [B], good from 0.5.

    Returns:
        [B] nats; no fixed value at policy = reference. Unbounded below, and the push on bad responses never fades:
        watch it, or stop early.

    Source: no arXiv id of its own; "Unlikelihood" in the code of arXiv 2312.02554, there on length-averaged log-probs.
    It is not token unlikelihood, -log(1 - p).

    Example: with logp = -10, z = 0: L = -10.0.

    >>> from accord.objectives.example import points
    >>> unlearning(points(-10, 0)).item()
    -10.0
    """
    require_float32(points.logp)
    return torch.where(points.value >= 0.5, -points.logp, points.logp)
