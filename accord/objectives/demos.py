"""Objectives on demonstrations: what a good response looks like."""

from __future__ import annotations

from torch import Tensor

from accord.objectives.kinds import Demos, require_float32
from accord.objectives.table import row


@row(paper="none", unit="token")
def sft(demos: Demos) -> Tensor:
    """Supervised fine-tuning: negative log-likelihood of the response, prompt tokens left out.

    Equation:
        L = -log pi(y|x)
        dL/dlogp = -1

    Args:
        demos: logp [B] nats.

    Returns:
        [B], summed over each response's tokens and divided by the step's total of trained tokens (unit `token`), so
        the run's loss is nats per token. No fixed value at policy = reference: it is the data's NLL.

    Source: the baseline of the field, no arXiv id. Published codes differ in the divisor: TRL's
    `sft` loss and CPO's NLL divide by the batch's tokens, as here; RPO sums; IRPO averages within each response.

    Example: with logp = -10, L = 10.0.

    >>> from accord.objectives.example import demos
    >>> sft(demos(-10)).item()
    10.0
    """
    require_float32(demos.logp)
    return -demos.logp
