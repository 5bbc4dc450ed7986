"""What is asked of the margin between chosen and rejected? One margin, a link each.

Notation: a, b are the log-probs of chosen and rejected, a_r, b_r the reference's; rho_w = a - a_r,
rho_l = b - b_r; Delta = rho_w - rho_l; m = beta * Delta; l(m) = -log sigmoid(m).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.errors import ConfigError
from accord.objectives._links import hinge, label_noise, not_negative, positive, soft_logistic, square
from accord.objectives.kinds import Pairs, require_float32
from accord.objectives.table import row


def log_ratios(pairs: Pairs, ref: Pairs) -> tuple[Tensor, Tensor]:
    """rho_w, rho_l [B] nats: log-ratios of chosen and rejected to the reference."""
    require_float32(pairs.chosen, pairs.rejected, ref.chosen, ref.rejected)
    return pairs.chosen - ref.chosen, pairs.rejected - ref.rejected


def margin(pairs: Pairs, ref: Pairs, beta: float) -> Tensor:
    """m = beta * Delta [B]: the difference of the implicit rewards of chosen and rejected; beta above 0."""
    positive(beta=beta)
    rho_w, rho_l = log_ratios(pairs, ref)
    return beta * (rho_w - rho_l)


@row(paper="2305.18290", init="log(2)", invariance="shift", aliases=("sigmoid",))
def dpo(pairs: Pairs, ref: Pairs, *, beta: float = 0.1) -> Tensor:
    """Direct Preference Optimization: logistic loss on the difference of log-ratios.

    Equation:
        L = -log sigmoid(beta * Delta),  Delta = (a - a_r) - (b - b_r)
        dL/da = -beta * sigmoid(-beta * Delta) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.

    Returns:
        [B], log 2 at policy = reference.

    Source: arXiv 2305.18290, eq. 7. Summed log-probs. TRL calls it `sigmoid` and ignores `label_smoothing` there;
    here smoothing is `cdpo`.

    Example: with beta = 0.1, a = -10, b = -12, a_r = b_r = -11: Delta = 2, L = log(1 + exp(-0.2)) = 0.598139.

    >>> from accord.objectives.example import pairs
    >>> round(dpo(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.598139
    """
    return soft_logistic(margin(pairs, ref, beta))


@row(paper="none", init="log(2)", invariance="shift")
def cdpo(pairs: Pairs, ref: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.2) -> Tensor:
    """Conservative DPO: DPO that expects a known share of the labels to be the wrong way round.

    Equation:
        L = (1 - eps) l(m) + eps l(-m) = l(m) + eps m,  m = beta * Delta,  eps = label_smoothing
        dL/da = -beta * (sigmoid(-m) - eps) = -dL/db
        Least at m = log((1 - eps) / eps), where it is the entropy of eps: the margin does not run away.

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5); 0 is DPO.

    Returns:
        [B], log 2 at policy = reference.

    Source: a note by E. Mitchell, 2023 (no arXiv id; not read here, the form is that of the codes). The default 0.2 is
    HALOs' cDPO config; other codes default to 0. Newest TRL has none for `sigmoid`; Liger's comments call its `robust`
    cDPO, but that is rDPO (arXiv 2403.00409), another loss.

    Example: with beta = 0.1, label_smoothing = 0.2, Delta = 2: L = 0.598139 + 0.2 * 0.2 = 0.638139.

    >>> from accord.objectives.example import pairs
    >>> round(cdpo(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.638139
    """
    label_noise(label_smoothing)
    return soft_logistic(margin(pairs, ref, beta), 1.0 - label_smoothing)


@row(paper="2403.00409", init="log(2)", invariance="shift")
def robust(pairs: Pairs, ref: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Tensor:
    """Provably robust DPO (rDPO): unbiased where a known share of the labels is the wrong way round.

    Equation:
        L = [(1 - eps) l(m) - eps l(-m)] / (1 - 2 eps) = l(m) - eps / (1 - 2 eps) * m,  eps = label_smoothing
        dL/da = -beta * (sigmoid(-m) + eps / (1 - 2 eps)) = -dL/db
        Over labels that flip with probability eps its mean is DPO on the true ones.

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5); 0 is DPO.

    Returns:
        [B], log 2 at policy = reference. Unbounded below: the push never fades, so watch it, or stop early.

    Source: arXiv 2403.00409 (its abstract, and TRL's and Liger's codes). It is DPO on the soft label
    (1 - eps) / (1 - 2 eps) > 1. eps = 0.1 is TRL's example. One copy in the field lacks the factor 1 / (1 - 2 eps). It
    is neither `cdpo`, which expects the same noise and is biased, nor `r_dpo` (length), nor a rationale-DPO.

    Example: with beta = 0.1, label_smoothing = 0.1, Delta = 2: L = 0.598139 - 0.125 * 0.2 = 0.573139.

    >>> from accord.objectives.example import pairs
    >>> round(robust(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.573139
    """
    label_noise(label_smoothing)
    return soft_logistic(margin(pairs, ref, beta), (1.0 - label_smoothing) / (1.0 - 2.0 * label_smoothing))


@row(paper="2405.14103", init="log(2)", invariance="shift", aliases=("osp_spce",))
def soft_dpo(pairs: Pairs, ref: Pairs, *, beta: float = 0.1) -> Tensor:
    """DPO with a preference strength for each pair: OSP's soft-preference cross-entropy (SPCE).

    Equation:
        L = -p log sigmoid(m) - (1 - p) log sigmoid(-m),  m = beta * Delta,  p = strength
        dL/da = beta * (sigmoid(m) - p) = -dL/db
        Least at m = log(p / (1 - p)), where it is the entropy of p.

    Args:
        pairs: chosen, rejected [B] nats; strength [B], P(chosen is better).
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.

    Returns:
        [B], log 2 at policy = reference, whatever the strength. A pair of strength 1 is DPO to the bit.

    Source: arXiv 2405.14103. Its abstract names a soft-preference cross-entropy; the body and equations were not read,
    and no public code was found: this form is inferred from the name, and beta = 0.1 is DPO's. With strengths
    sigmoid(r_w - r_l) its optimum is pi_ref exp(r / beta) / Z (checked in tabular worlds). At beta = 0.1 a strength of
    0.99 still asks for a margin of 46 nats.

    Example: with beta = 0.1, p = 0.8, Delta = 2: L = 0.598139 + 0.2 * 0.2 = 0.638139.

    >>> from accord.objectives.example import pairs
    >>> round(soft_dpo(pairs(-10, -12, strength=0.8), pairs(-11, -11)).item(), 6)
    0.638139
    """
    return soft_logistic(margin(pairs, ref, beta), pairs.strength)


@row(paper="2310.12036", init="1/(4*tau**2)", invariance="shift")
def ipo(pairs: Pairs, ref: Pairs, *, tau: float = 0.1) -> Tensor:
    """Identity preference optimization: a square that draws the margin to 1/(2 tau) and no further.

    Equation:
        L = (Delta - 1/(2 tau))^2
        dL/da = 2 (Delta - 1/(2 tau)) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        tau: strength of the tie to the reference, 1/nats, above 0; codes call it beta.

    Returns:
        [B] nats^2, 1/(4 tau^2) at policy = reference.

    Source: arXiv 2310.12036 (the codes were read, not the paper). Summed log-probs here, as in
    eric-mitchell/direct-preference-optimization, OpenRLHF and odpo. TRL and HALOs take means over each response's
    tokens, "confirmed with the authors": that is length = mean, called `ipo[mean]`, and wants another tau.

    Example: with tau = 0.1, Delta = 2: L = (2 - 5)^2 = 9.0.

    >>> from accord.objectives.example import pairs
    >>> round(ipo(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    9.0
    """
    positive(tau=tau)
    rho_w, rho_l = log_ratios(pairs, ref)
    return square(rho_w - rho_l, 1.0 / (2.0 * tau))


@row(paper="2305.10425")
def slic_hf(pairs: Pairs, *, delta: float = 1.0, alpha: float = 0.1) -> Tensor:
    """SLiC-HF: hinge on the difference of log-probs, without a reference, and NLL of the chosen response.

    Equation:
        L = max(0, delta - a + b) - alpha * a
        dL/da = -(A + alpha),  dL/db = A,  A = 1 if a - b < delta else 0

    Args:
        pairs: chosen, rejected [B] nats.
        delta: margin at which the hinge rests, nats, 0 or more.
        alpha: weight of the summed NLL of chosen, 0 or more.

    Returns:
        [B] nats; no fixed value at policy = reference.

    Source: arXiv 2305.10425 (its equation was not read; the form is that of the codes and of arXiv 2406.07327).
    delta = 1 and alpha = 0.1 are HALOs', whose regulariser is taken token by token. The paper regularises with an SFT
    target or the best sample, here it is the chosen response. TRL's `hinge` is RSO's hinge with a reference, not this.

    Example: with delta = 1, alpha = 0.1, a = -10, b = -10.5: L = 0.5 + 1 = 1.5.

    >>> from accord.objectives.example import pairs
    >>> round(slic_hf(pairs(-10, -10.5)).item(), 6)
    1.5
    """
    not_negative(delta=delta, alpha=alpha)
    require_float32(pairs.chosen, pairs.rejected)
    return hinge(pairs.chosen - pairs.rejected, delta) - alpha * pairs.chosen


@row(paper="2309.06657", init="1.0", invariance="shift")
def rso_hinge(pairs: Pairs, ref: Pairs, *, beta: float = 0.05) -> Tensor:
    """RSO's hinge on normalised log-probs: a margin of 1 in units of the reward is enough.

    Equation:
        L = max(0, 1 - beta * Delta)
        dL/da = -beta = -dL/db if beta * Delta < 1, else 0

    Args:
        pairs: chosen, rejected [B] nats; in the paper, best drawn by rejection sampling from the reference.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0; the paper's gamma.

    Returns:
        [B], 1 at policy = reference.

    Source: arXiv 2309.06657, hinge-norm (TRL's code was read, not the paper). TRL calls it `hinge`; it is not SLiC-HF,
    which has no reference (`slic_hf`). The default is that of TRL's documentation.

    Example: with beta = 0.05, Delta = 2: L = 1 - 0.1 = 0.9.

    >>> from accord.objectives.example import pairs
    >>> round(rso_hinge(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.9
    """
    return hinge(margin(pairs, ref, beta))


@row(paper="2309.06657", init="log(2)", invariance="shift")
def rso_sigmoid(pairs: Pairs, ref: Pairs, *, beta: float = 0.05) -> Tensor:
    """RSO's sigmoid on normalised log-probs: DPO on pairs drawn by rejection sampling.

    Equation:
        L = -log sigmoid(beta * Delta)
        dL/da = -beta * sigmoid(-beta * Delta) = -dL/db

    Args:
        pairs: chosen, rejected [B] nats: what a reward model prefers among samples of the reference that were accepted
            with probability exp((reward - best reward) / beta). On other pairs it is DPO with another default.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0; the paper's gamma.

    Returns:
        [B], log 2 at policy = reference.

    Source: arXiv 2309.06657, sigmoid-norm (recalled, the paper was not read): 64 samples of which 8 are kept, at
    beta = 0.5 in the sampling.

    Example: with beta = 0.05, Delta = 2: L = log(1 + exp(-0.1)) = 0.644397.

    >>> from accord.objectives.example import pairs
    >>> round(rso_sigmoid(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.644397
    """
    return dpo(pairs, ref, beta=beta)


@row(
    paper="2406.08414",
    init="log(2)/2 + 1/2",
    invariance="shift",
    exceptions={"6": "near m = 0 the loss that was found rises: descent shrinks the margin there"},
    aliases=("lrml",),
)
def discopop(pairs: Pairs, ref: Pairs, *, beta: float = 0.05, tau: float = 0.05) -> Tensor:
    """DiscoPOP: logistic below, exponential above, a blend that was found by a language model.

    Equation:
        L = (1 - g) l(m) + g exp(-m),  g = sigmoid(m / tau),  g has a gradient
        dL/dm = -(1 - g) sigmoid(-m) - g exp(-m) + g (1 - g) (exp(-m) - l(m)) / tau;  dL/da = beta dL/dm = -dL/db
        At tau = 0.05 it rises for m between -0.119 and 0.072, and falls elsewhere: dL/dm at 0 is +0.784.

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        tau: width of the blend, in (0, 1).

    Returns:
        [B], (log 2 + 1) / 2 at policy = reference.

    Source: arXiv 2406.08414 (the code was read). Its repository has other losses that were found, too.

    Example: with beta = tau = 0.05, Delta = 2: m = 0.1, g = 0.880797,
    L = 0.119203 * 0.644397 + 0.880797 * 0.904837 = 0.873792.

    >>> from accord.objectives.example import pairs
    >>> round(discopop(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.873792
    """
    if not 0.0 < tau < 1.0:
        raise ConfigError(f"tau={tau} must be in (0, 1); leave tau out for its default")
    m = margin(pairs, ref, beta)
    blended = torch.exp(F.logsigmoid(m / tau) - m)  # g exp(-m), which would be 0 times infinity far below 0
    return torch.sigmoid(-m / tau) * soft_logistic(m) + blended
