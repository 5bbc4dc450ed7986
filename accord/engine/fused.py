"""Which parts of a layer keep more than they need, or pass over memory too often?

Two that nearly every architecture has: the root-mean-square norm, and the feed-forward part gated by SiLU. Here each is
one function with the backward written out. `install` puts them in the place of a module's own, where that computes the
same; what the architecture does otherwise stays as it is.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAME = 1e-5  # how far outputs and gradients may be apart, of their largest entry


class _Norm(torch.autograd.Function):
    """x [..., h], weight [h] -> [..., h]; of what was computed, one number a row is kept.

    Equation:
        y = w x r,  r = (mean(x^2) + eps)^(-1/2);  dx = r (w dy - x r mean(w dy x r)),  dw = sum(dy x r)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rate = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        return (x * rate).mul_(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rate = ctx.saved_tensors
        unit = x * rate
        along = grads[0] * unit
        own = along.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, own, None
        mean = (along @ weight).div_(x.shape[-1]).unsqueeze(-1)
        return (grads[0] * weight).sub_(unit.mul_(mean)).mul_(rate), own, None


class _Gated(torch.autograd.Function):
    """gate, up [..., i] -> silu(gate) * up; only the two are kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return _through(grads[0], *ctx.saved_tensors)


class _Down(torch.autograd.Function):
    """gate, up [..., i], weight [h, i] -> (silu(gate) * up) weight^T [..., h]; the product is computed again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(gate.dtype)
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        own = None
        if ctx.needs_input_grad[2]:
            own = grads[0].flatten(0, -2).T @ F.silu(gate).mul_(up).flatten(0, -2)
        return *_through(grads[0] @ weight, gate, up), own


def _through(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of silu(gate) * up with respect to both."""
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != self.weight.dtype or hidden_states.dtype.itemsize < 4:
        return type(self).forward(self, hidden_states)
    return _Norm.apply(hidden_states, self.weight, self.variance_epsilon)


def _feed_forward(self: Any, x: Tensor) -> Tensor:
    gate, up, down = self.gate_proj(x), self.up_proj(x), self.down_proj
    if type(down) is nn.Linear and down.bias is None:
        return _Down.apply(gate, up, down.weight)
    return down(_Gated.apply(gate, up))


def install(module: nn.Module) -> list[str]:
    """Puts both in the place of the module's own parts; the names of the classes that they replace.

    A class is compared once: outputs and gradients of one of its modules, on random numbers in float32.
    """
    same: dict[type, bool] = {}
    for part in module.modules():
        ours: Callable[..., Tensor] | None = None
        weight = getattr(part, "weight", None)
        if hasattr(part, "variance_epsilon") and isinstance(weight, nn.Parameter):
            ours, width = _norm, weight.shape[-1]
        elif all(hasattr(part, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            ours, width = _feed_forward, int(getattr(part.gate_proj, "in_features", 0))
        if ours is None or "forward" in part.__dict__:
            continue
        kind = type(part)
        if kind not in same:
            same[kind] = _same(part, ours, width)
        if same[kind]:
            part.forward = types.MethodType(ours, part)  # type: ignore[method-assign]
    return sorted(kind.__name__ for kind, found in same.items() if found)


def _same(part: nn.Module, ours: Callable[..., Tensor], width: int) -> bool:
    """Whether it computes what the module does."""
    weight = next(part.parameters())
    x = torch.linspace(-2, 3, 6 * width, device=weight.device).view(1, 6, width).sin_().requires_grad_(True)
    try:
        with torch.enable_grad(), torch.autocast(weight.device.type, enabled=False):
            found = []
            for out in (part(x), ours(part, x)):
                found.append((out.detach(), torch.autograd.grad((out * x.detach().cos()).sum(), x)[0]))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return all(float((a - b).abs().max()) <= SAME * float(a.abs().max()) for a, b in zip(*found, strict=True))
