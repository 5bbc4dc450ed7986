"""Objectives on pairs: chosen above rejected.

Notation: a, b are the log-probs of chosen and rejected, a_r, b_r the reference's; rho_w = a - a_r,
rho_l = b - b_r; Delta = rho_w - rho_l; l(m) = -log sigmoid(m).
"""

from __future__ import annotations

from torch import Tensor

from accord.objectives._links import soft_logistic
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
        beta: strength of the tie to the reference, 1/nats.

    Returns:
        [B], log 2 at policy = reference.

    Source: arXiv 2305.18290, eq. 7. Summed log-probs. TRL calls it `sigmoid` and ignores `label_smoothing` there;
    here smoothing is `cdpo`.

    Example: with beta = 0.1, a = -10, b = -12, a_r = b_r = -11: Delta = 2, L = log(1 + exp(-0.2)) = 0.598139.

    >>> from accord.objectives.example import pairs
    >>> round(dpo(pairs(-10, -12), pairs(-11, -11)).item(), 6)
    0.598139
    """
    rho_w, rho_l = log_ratios(pairs, ref)
    return soft_logistic(beta * (rho_w - rho_l))
