"""How are trees attended to on a GPU, in two calls a layer?

A call a segment is a kernel a segment, and a row of 16,000 tokens has a hundred of them. FlashAttention's calls for
sequences of different lengths take all at once: one for every context and every response by itself, one for all
responses over their contexts. `pays` decides by measurement, after it has seen that the numbers are the same.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

WIDEST = 256  # numbers of a head that FlashAttention takes
TOLERANCE = 0.02  # of the largest number, between two ways to compute in half precision


@functools.cache
def kernels() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The forward and the backward call."""
    import torch.nn.attention.varlen  # registers them, and brings the compiler: half as long as torch itself

    return torch.ops.torch_attn._varlen_attn, torch.ops.torch_attn._varlen_attn_backward


class Bounds(NamedTuple):
    """Where sequences begin in what is packed: ends [n + 1], int32, from 0; longest: tokens of the longest."""

    ends: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> Bounds:
        return cls(torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32), max(lengths, default=0))


@dataclass(frozen=True)
class Spans:
    """The two calls over a packed row.

    own: every context and every response. A single response is a longer context. rows, behind: the tokens of responses
    that share a context, and how many a tree has. shared, before: the tokens of these contexts, and how many.
    """

    own: Bounds
    rows: Tensor
    behind: Bounds
    shared: Tensor
    before: Bounds

    @classmethod
    def of(cls, trees: tuple[Any, ...], device: torch.device) -> Spans:
        """Spans of `attention.Tree`s, which cover their row without gaps."""
        own: list[int] = []
        behind: list[range] = []
        before: list[range] = []
        for tree in trees:
            responses = [n for n in tree.responses if n]
            if len(responses) <= 1 or not tree.context:
                own += [tree.context + sum(responses)] if tree.context else responses
                continue
            own += [tree.context, *responses]
            before.append(range(tree.start, tree.start + tree.context))
            behind.append(range(tree.start + tree.context, tree.stop))

        def rows(spans: list[range]) -> Tensor:
            return torch.tensor([i for span in spans for i in span], dtype=torch.long, device=device)

        def bounds(spans: list[range]) -> Bounds:
            return Bounds.of([len(span) for span in spans], device)

        own = [n for n in own if n]
        return cls(Bounds.of(own, device), rows(behind), bounds(behind), rows(before), bounds(before))


class Varlen(torch.autograd.Function):
    """Attention over trees: query [1, H, T, d], key and value [1, G, T, d] -> [1, T, H, d].

    Equation:
        o = o_own exp(l_own - l) + o_shared exp(l_shared - l), with l = logsumexp(l_own, l_shared) of the calls'
        log-normalisers; a kernel's backward, given the whole o and l, yields its part of the gradient exactly.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float | None) -> Tensor:
        q, k, v = (t[0].transpose(0, 1).contiguous() for t in (q, k, v))  # [T, H, d]
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out, lse = _call(q, k, v, spans.own, spans.own, True, scale)
        rows, shared = spans.rows, spans.shared
        if len(rows):
            far, far_lse = _call(q[rows], k[shared], v[shared], spans.behind, spans.before, False, scale)
            near_lse = lse[:, rows]
            whole = torch.logaddexp(near_lse, far_lse)
            near, far = (o * (part - whole).exp_().T[..., None] for o, part in ((out[rows], near_lse), (far, far_lse)))
            out[rows] = near.add_(far).to(out.dtype)
            lse[:, rows] = whole
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.spans, ctx.scale = spans, scale
        return out[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        spans, g = ctx.spans, grads[0][0].contiguous()
        rows, shared = spans.rows, spans.shared
        found = _call_back(g, q, k, v, out, lse, spans.own, spans.own, True, ctx.scale)
        if len(rows):
            far = _call_back(
                g[rows], q[rows], k[shared], v[shared], out[rows], lse[:, rows].contiguous(), spans.behind,
                spans.before, False, ctx.scale,
            )  # fmt: skip
            for whole, where, part in zip(found, (rows, shared, shared), far, strict=True):
                whole.index_add_(0, where, part)
        return *(t.transpose(0, 1)[None] for t in found), None, None


def _call(
    q: Tensor, k: Tensor, v: Tensor, queries: Bounds, keys: Bounds, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs [T, H, d] and log-normalisers [H, T]."""
    out, lse, _ = kernels()[0](
        q, k, v, queries.ends, keys.ends, queries.longest, keys.longest, causal, scale, [-1, 0 if causal else -1],
        q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out, lse


def _call_back(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, queries: Bounds, keys: Bounds, causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    nothing = torch.zeros(2, dtype=torch.uint64, device=q.device)  # no dropout, no random numbers
    return kernels()[1](
        g, q, k, v, out, lse, queries.ends, keys.ends, queries.longest, keys.longest, causal, nothing, scale,
        [-1, 0 if causal else -1],
    )  # fmt: skip


def fits(query: Tensor) -> bool:
    """Whether FlashAttention takes such queries: half precision, narrow heads, on CUDA."""
    return query.is_cuda and query.dtype.itemsize == 2 and query.shape[-1] <= WIDEST


@functools.cache
def pays(
    other: Callable[[Tensor, Tensor, Tensor, tuple[Any, ...]], Tensor], trees: tuple[Any, ...], heads: int,
    groups: int, width: int, dtype: torch.dtype, device: torch.device,
) -> bool:  # fmt: skip
    """Whether `Varlen` gives what `other` gives on made-up numbers over `trees`, and faster, with the backward pass.

    Looked at once for each shape. A kernel that fails or differs is named in a warning and never used.
    """
    draw = torch.Generator(device).manual_seed(0)
    size = trees[-1].stop

    def numbers(n: int) -> Tensor:
        return torch.randn(1, n, size, width, device=device, generator=draw).to(dtype).requires_grad_()

    q, k, v, spans = numbers(heads), numbers(groups), numbers(groups), Spans.of(trees, device)
    push = torch.randn(1, size, heads, width, device=device, generator=draw).to(dtype)
    ways = {
        "other": lambda: other(q, k, v, trees),
        "varlen": lambda: Varlen.apply(q, k, v, spans, None),
    }
    found, took = {}, {}
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for name, way in ways.items():
            try:
                out = way()
                found[name] = (out, *torch.autograd.grad(out, (q, k, v), push))
                took[name] = min(_seconds(way, (q, k, v), push) for _ in range(5))
            except (RuntimeError, NotImplementedError) as error:
                if name == "other":
                    raise
                warnings.warn(f"variable-length attention fails here ({error}): a call a segment is used", stacklevel=2)
                return False
    for a, b in zip(found["other"], found["varlen"], strict=True):
        if not bool((a - b).abs().max() <= TOLERANCE * a.abs().max()):
            warnings.warn("variable-length attention gives other numbers here: a call a segment is used", stacklevel=2)
            return False
    return took["varlen"] < took["other"]


def _seconds(way: Callable[[], Tensor], inputs: tuple[Tensor, ...], push: Tensor) -> float:
    if push.is_cuda:
        torch.cuda.synchronize(push.device)
    began = time.perf_counter()
    torch.autograd.grad(way(), inputs, push)
    if push.is_cuda:
        torch.cuda.synchronize(push.device)
    return time.perf_counter() - began
