"""Objectives on pairs: chosen above rejected.

Notation: a, b are the log-probs of chosen and rejected, a_r, b_r the reference's; rho_w = a - a_r,
rho_l = b - b_r; Delta = rho_w - rho_l; l(m) = -log sigmoid(m).
"""

from __future__ import annotations

from torch import Tensor

from accord.errors import ConfigError
from accord.objectives._links import hinge, not_negative, positive, soft_logistic, square
from accord.objectives.kinds import Pairs, require_float32
from accord.objectives.table import row


def log_ratios(pairs: Pairs, ref: Pairs) -> tuple[Tensor, Tensor]:
    """rho_w, rho_l [B] nats: log-ratios of chosen and rejected to the reference."""
    require_float32(pairs.chosen, pairs.rejected, ref.chosen, ref.rejected)
    return pairs.chosen - ref.chosen, pairs.rejected - ref.rejected


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
    positive(beta=beta)
    rho_w, rho_l = log_ratios(pairs, ref)
    return soft_logistic(beta * (rho_w - rho_l))


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
    positive(beta=beta)
    if not 0.0 <= label_smoothing < 0.5:
        raise ConfigError(
            f"label_smoothing={label_smoothing} must be in [0, 0.5): from 0.5 on the labels say nothing, or the "
            "opposite; set a smaller one, or swap chosen and rejected"
        )
    rho_w, rho_l = log_ratios(pairs, ref)
    return soft_logistic(beta * (rho_w - rho_l), 1.0 - label_smoothing)


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
    positive(beta=beta)
    rho_w, rho_l = log_ratios(pairs, ref)
    return soft_logistic(beta * (rho_w - rho_l), pairs.strength)


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


@row(paper="2405.16436", aliases=("rpo_reg",))
def dpo_sft(pairs: Pairs, ref: Pairs, *, beta: float = 0.1, alpha: float = 0.0005) -> Tensor:
    """DPO plus NLL of the chosen response, which keeps chosen from sinking along with rejected.

    Equation:
        L = -log sigmoid(beta * Delta) - alpha * a
        dL/da = -beta * sigmoid(-beta * Delta) - alpha,  dL/db = beta * sigmoid(-beta * Delta)

    Args:
        pairs: chosen, rejected [B] nats.
        ref: the same under the reference.
        beta: strength of the tie to the reference, 1/nats, above 0.
        alpha: weight of the summed NLL of chosen, 0 or more; the papers' eta is alpha / beta.

    Returns:
        [B]; no fixed value at policy = reference: log 2 plus alpha times the NLL.

    Source: arXiv 2405.16436, whose weight is eta * beta with eta = 0.005 (beta 0.01 or 0.05 there; the default is
    0.005 * 0.1), and arXiv 2406.07327, sec. B.2.2, whose alpha is not stated. OpenRLHF takes the mean NLL at 0.2 (beta
    0.5); TRL's recipe takes 0.005 times the mean NLL over the batch's tokens, without beta; LLaMA-Factory's
    `pref_ftx` multiplies a mean NLL.

    Example: with beta = 0.1, alpha = 0.0005, a = -10, Delta = 2: L = 0.598139 + 0.005 = 0.603139.

    >>> from accord.objectives.example import pairs
    >>> round(dpo_sft(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.603139
    """
    not_negative(alpha=alpha)
    return dpo(pairs, ref, beta=beta) - alpha * pairs.chosen


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
