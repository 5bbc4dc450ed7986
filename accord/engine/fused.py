"""Which parts of a layer keep more than they need, or pass over memory too often?

Two that nearly every architecture has: the root-mean-square norm, and the feed-forward part gated by SiLU. Here each is
one function with the backward written out. `install` puts them in the place of a module's own, where that computes the
same; what the architecture does otherwise stays as it is.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from accord.engine import attention

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


def _norm(self: Any, x: Tensor) -> Tensor:
    if not attention.within() or x.dtype != self.weight.dtype or x.dtype.itemsize < 4:
        return type(self).forward(self, x)
    return _Norm.apply(x, self.weight, self.variance_epsilon)


def _feed_forward(self: Any, x: Tensor) -> Tensor:
    down = self.down_proj
    if not attention.within() or _watched(down) or _watched(self.act_fn):
        return type(self).forward(self, x)
    gate, up = self.gate_proj(x), self.up_proj(x)
    if type(down) is nn.Linear and down.bias is None:
        return _Down.apply(gate, up, down.weight)
    return down(_Gated.apply(gate, up))


def _watched(part: Any) -> bool:
    """Whether someone has put a hook on it, which must be called."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name, None) for name in hooks)


def install(module: nn.Module) -> list[str]:
    """Puts both in the place of the module's own parts, within Accord's passes; outside of them, and under hooks, the
    parts compute as ever. The names of the classes that they replace.

    A class is compared once: outputs and all gradients of a copy of one of its modules, with random weights.
    """
    same: dict[type, bool] = {}
    for part in module.modules():
        ours: Callable[..., Tensor] | None = None
        weight = getattr(part, "weight", None)
        if hasattr(part, "variance_epsilon") and isinstance(weight, nn.Parameter):
            ours, width = _norm, weight.shape[-1]
        elif all(hasattr(part, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            ours, width = _feed_forward, int(getattr(part.gate_proj, "in_features", 0))
        kind = type(part)
        if ours is None or "forward" in part.__dict__ or len(inspect.signature(kind.forward).parameters) != 2:
            continue
        if kind not in same:
            same[kind] = _same(part, ours, width)
        if same[kind]:
            part.forward = functools.partial(ours, part)  # type: ignore[method-assign]
    return sorted(kind.__name__ for kind, found in same.items() if found)


def _same(part: nn.Module, ours: Callable[..., Tensor], width: int) -> bool:
    """Whether it computes what the module does."""
    try:
        part = copy.deepcopy(part).float()
        weights = [p.requires_grad_(True) for p in part.parameters()]
        draws = torch.Generator().manual_seed(0)
        device = weights[0].device
        with torch.no_grad():
            for w in weights:
                w.copy_((torch.randn(w.shape, generator=draws) + 0.5) / w.shape[-1] ** 0.5)
        x, up = (torch.randn(1, 6, width, generator=draws).to(device) for _ in range(2))
        x.requires_grad_(True)
        found = []
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            out = part(x)
            found.append((out.detach(), *torch.autograd.grad((out * up).sum(), [x, *weights])))
            with attention.attending(attention.Layout(())):
                out = ours(part, x)
            found.append((out.detach(), *torch.autograd.grad((out * up).sum(), [x, *weights])))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False
    return all(0 < float(a.abs().max()) >= float((a - b).abs().max()) / SAME for a, b in zip(*found, strict=True))
