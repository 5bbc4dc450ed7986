"""What may attend to what, on which backend?

A packed row holds trees: a context, then its responses one after another. A response sees the context and itself;
nothing sees another tree. Attention is registered through transformers' attention interface under the name `accord`,
so that models keep their own modules; the trees of the row being computed are set by `attending`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from accord.engine import varlen

NAME = "accord"
DENSE_TOKENS = 640  # trees up to here take one call with one mask; longer ones a call for each segment


class UnsupportedAttentionError(RuntimeError):
    """The architecture asks for something that tree attention does not do; the engine falls back."""


@dataclass(frozen=True)
class Tree:
    """start: first row of the context. context: its length. responses: lengths of the responses behind it."""

    start: int
    context: int
    responses: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + self.context + sum(self.responses)


@dataclass
class Layout:
    """The trees of one packed row of T tokens, and the masks made for them.

    kept: takes keys and values [1, G, T, d] of every layer, if the contexts will be continued by `room` tokens.
    read: the places [m] of which anything is read behind the last layer, in order; None: all.
    windows: where one was met: in the model's `mask`, which is not made here, and in its calls of `attention`.
    """

    trees: tuple[Tree, ...]
    masks: dict[tuple[int, int | None, torch.device], Tensor] = field(default_factory=dict)
    spans: dict[torch.device, varlen.Spans] = field(default_factory=dict)
    kept: dict[int, tuple[Tensor, Tensor]] | None = None
    room: int = 0
    read: Tensor | None = None
    windows: set[str] = field(default_factory=set)

    def spans_on(self, device: torch.device) -> varlen.Spans:
        if device not in self.spans:
            self.spans[device] = varlen.Spans.of(self.trees, device)
        return self.spans[device]

    @property
    def longest(self) -> int:
        """Tokens of the longest context with one of its responses."""
        return max(t.context + max(t.responses, default=0) for t in self.trees) + self.room

    def mask(self, tree: Tree, window: int | None, device: torch.device) -> Tensor:
        """[n, n] True where a query (row) may see a key (column) of the tree; `window` counts positions back."""
        key = (tree.start, window, device)
        if key not in self.masks:
            lengths = torch.tensor(tree.responses, device=device)
            branch = torch.repeat_interleave(torch.arange(1, len(lengths) + 1, device=device), lengths)
            branch = torch.cat([torch.zeros(tree.context, dtype=branch.dtype, device=device), branch])
            inside = [torch.arange(n, device=device) + tree.context for n in tree.responses]
            position = torch.cat([torch.arange(tree.context, device=device), *inside])
            back = position[:, None] - position[None, :]
            mask = (back >= 0) & ((branch[None, :] == 0) | (branch[:, None] == branch[None, :]))
            self.masks[key] = mask if window is None else mask & (back < window)
        return self.masks[key]


LOOKED_AT = tuple(Tree(at, 400, (200, 200)) for at in range(0, 8000, 800))  # where ways to attend on a GPU are compared


class Growing:
    """N answers that grow by a token a pass, beside keys and values of their contexts, which are kept once.

    A row of N tokens, one of each answer, is computed within `attending(growing)`; `grown` is called behind it.

    Args:
        contexts: what was computed of P contexts, with `kept`.
        of: the context of each answer, [N].
    """

    def __init__(self, contexts: Layout, of: Tensor) -> None:
        assert contexts.kept is not None
        self.done, self.room = 0, contexts.room
        lengths = torch.tensor([t.context for t in contexts.trees])
        width = int(lengths.max())
        self.mask: Tensor | None = None
        if int(lengths.min()) < width:
            self.mask = torch.zeros(len(lengths), 1, 1, width)
            self.mask.masked_fill_(torch.arange(width) >= lengths[:, None, None, None], float("-inf"))
        self.contexts = {
            layer: tuple(_rows(t, contexts.trees, width) for t in _wide(*pair)) for layer, pair in contexts.kept.items()
        }
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self._place(of)

    def _place(self, of: Tensor) -> None:
        """Where each answer's query stands beside the others of its context, for `attend`."""
        self.of = of
        counts = torch.bincount(of, minlength=int(of.max()) + 1)
        order = torch.argsort(of, stable=True)
        within = torch.empty_like(of)
        within[order] = torch.arange(len(of)) - (counts.cumsum(0) - counts)[of[order]]
        self.widest = int(counts.max())
        self.flat = of * self.widest + within

    def grown(self) -> None:
        """A token has been added to every answer."""
        self.done += 1

    def keep(self, which: Tensor) -> None:
        """From now on only these answers go on."""
        self.own = {layer: (k[which], v[which]) for layer, (k, v) in self.own.items()}
        self._place(self.of[which])

    def _with_room(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the answers' own tokens, [N, G, R, d], with R above `done`; R doubles where it must."""
        held = self.own.get(layer)
        if held is not None and held[0].shape[2] > self.done:
            return held
        size = min(self.room, max(32, 2 * self.done))
        wider = [t.new_empty(t.shape[2], t.shape[1], size, t.shape[3]) for t in (k, v)]
        for new, old in zip(wider, held or (), strict=False):
            new[:, :, : self.done] = old[:, :, : self.done]
        return wider[0], wider[1]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """q [1, H, N, d], k and v [1, G, N, d] of the new tokens -> [1, N, H, d].

        Equation:
            o = sum_i o_i exp(l_i - l), l = logsumexp(l_1, l_2), of one call over the context, in which all of its
            answers' queries stand together, and one over the answer's own tokens; heads that share keys are rows too.
        """
        heads, groups, answers, width = q.shape[1], k.shape[1], q.shape[2], q.shape[3]
        dtype = q.dtype
        q, k, v = _wide(q, k, v)
        keys, values = self.own[layer] = self._with_room(layer, k, v)
        keys[:, :, self.done], values[:, :, self.done] = k[0].transpose(0, 1), v[0].transpose(0, 1)
        q = q[0].transpose(0, 1).reshape(answers, groups, heads // groups, width)
        here = self.done + 1
        near, near_norm = _flash(q, keys[:, :, :here], values[:, :, :here], 0.0, False, scale=scale)
        old_keys, old_values = self.contexts[layer]
        contexts = len(old_keys)
        rows = q.new_zeros(contexts * self.widest, *q.shape[1:]).index_copy_(0, self.flat, q)
        rows = rows.view(contexts, self.widest, *q.shape[1:]).transpose(1, 2).flatten(2, 3)
        far, far_norm = _flash(rows, old_keys, old_values, 0.0, False, attn_mask=self.mask, scale=scale)

        def back(t: Tensor) -> Tensor:
            t = t.unflatten(2, (self.widest, -1)).transpose(1, 2).flatten(0, 1)
            return t.index_select(0, self.flat)

        far, far_norm = back(far), back(far_norm)
        whole = torch.logaddexp(far_norm, near_norm)
        out = near * (near_norm - whole).exp_()[..., None]
        out.addcmul_(far, (far_norm - whole).exp_()[..., None])
        return out.reshape(1, answers, heads, -1).to(dtype)


def _rows(t: Tensor, trees: tuple[Tree, ...], width: int) -> Tensor:
    """[1, G, T, d] of packed contexts -> [P, G, width, d], filled up on the right."""
    out = t.new_zeros(len(trees), t.shape[1], width, t.shape[3])
    for i, tree in enumerate(trees):
        out[i, :, : tree.context] = t[0, :, tree.start : tree.start + tree.context]
    return out


_current: ContextVar[Layout | Growing | None] = ContextVar("accord_layout", default=None)


def again() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """What a checkpointed layer runs in, now and when it is computed again: under the layout that holds now."""
    now = _current.get()
    return contextlib.nullcontext(), _Again(now) if now is not None else contextlib.nullcontext()


class _Again(contextlib.AbstractContextManager):
    """`attending`, entered at every pass back through the layer: sets of gradients and probes make several."""

    def __init__(self, layout: Layout | Growing) -> None:
        self.layout = layout

    def __enter__(self) -> None:
        self.within = attending(self.layout)
        self.within.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.within.__exit__(*error)


def within() -> bool:
    """Whether one of Accord's own passes over trees is going on."""
    return _current.get() is not None


@contextlib.contextmanager
def attending(layout: Layout | Growing) -> Iterator[None]:
    """Within, attention named `accord` follows this layout.

    Raises:
        UnsupportedAttentionError: the model has windows or chunks in its masks, and does not tell its attention.
    """
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)
    if isinstance(layout, Layout) and layout.windows == {"mask"}:
        raise UnsupportedAttentionError("windows that the mask alone knows")


def trim(layer: torch.nn.Module | None) -> None:
    """From now on a model's last layer computes its feed-forward part, and what makes its queries and takes its
    attention further, for those places alone that are read (`Layout.read`); elsewhere they yield 0. A prompt's tokens
    have keys and values there, and nothing else of them is asked."""
    attends = getattr(layer, "self_attn", None)
    for part in (getattr(layer, "mlp", None), getattr(attends, "q_proj", None), getattr(attends, "o_proj", None)):
        if part is None:
            continue
        for inner in part.modules():  # adapters may have come around what was trimmed before
            for hooks, own in ((inner._forward_pre_hooks, _narrowed), (inner._forward_hooks, _widened)):
                for number in [n for n, hook in hooks.items() if hook is own]:
                    del hooks[number]
        part.register_forward_pre_hook(_narrowed)
        part.register_forward_hook(_widened)


def _reading(args: tuple[Any, ...]) -> tuple[Tensor, int] | None:
    """The places that are read, if only some are, and how many there are in all."""
    layout = _current.get()
    if not isinstance(layout, Layout) or layout.read is None or not args:
        return None
    return layout.read, layout.trees[-1].stop


def _narrowed(module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    reading = _reading(args)
    return None if reading is None else (args[0].index_select(1, reading[0]), *args[1:])


def _widened(module: torch.nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
    reading = _reading(args)
    if reading is None:
        return None
    return out.new_zeros(1, reading[1], out.shape[-1]).index_copy(1, reading[0], out)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the trees of the current layout: query [1, H, T, d], key and value [1, G, T, d] -> [1, T, H, d].

    Grouped queries are handled without expanding keys and values. Dropout is off: shared and repeated prompts would
    otherwise differ.

    Raises:
        UnsupportedAttentionError: soft caps, attention sinks, position biases; the caller falls back to padding.
    """
    layout = _current.get()
    if layout is None:
        plain = AttentionInterface()["sdpa"]  # a model used outside of Accord attends as transformers does
        return plain(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
            sliding_window=sliding_window, **kwargs,
        )  # fmt: skip
    for extra in ("softcap", "s_aux", "position_bias", "head_mask"):
        if kwargs.get(extra) is not None:
            raise UnsupportedAttentionError(f"attention with {extra}")
    if kwargs.get("is_causal", True) is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttentionError("attention that is not causal")
    if sliding_window is not None and isinstance(layout, Layout):
        layout.windows.add("attention")
    if isinstance(layout, Growing):
        return layout.attend(module.layer_idx, query, key, value, scaling), None  # type: ignore[arg-type]
    if layout.kept is not None:
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in layout.kept:
            raise UnsupportedAttentionError("layers that cannot be told apart")
        if sliding_window is not None and sliding_window < layout.longest:
            raise UnsupportedAttentionError("a window that is shorter than a context with its answer")
        layout.kept[layer] = key, value
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (t.to(torch.get_autocast_dtype(query.device.type)) for t in (query, key, value))
    if sliding_window is None or sliding_window >= layout.longest:
        shape = query.shape[1], key.shape[1], query.shape[3], query.dtype, query.device
        if varlen.fits(query) and varlen.pays(_calls, LOOKED_AT, *shape):
            return varlen.Varlen.apply(query, key, value, layout.spans_on(query.device), scaling), None
        if query.device.type == "cpu":
            return _Branches.apply(query, key, value, layout.trees, scaling), None
    return by_calls(query, key, value, layout, scaling, sliding_window), None


def by_calls(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """A call of scaled dot-product attention for each tree, or for each segment of a long one: -> [1, T, H, d]."""
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    pieces = []
    for tree in layout.trees:
        here = slice(tree.start, tree.stop)
        length = tree.stop - tree.start
        longest = tree.context + max(tree.responses, default=0)
        window = sliding_window if sliding_window is not None and sliding_window < longest else None
        q, k, v = query[:, :, here], key[:, :, here], value[:, :, here]
        if window is None and len(tree.responses) <= 1:
            pieces.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, **options))
        elif window is not None or length <= DENSE_TOKENS:
            mask = layout.mask(tree, window, query.device)
            pieces.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options))
        else:
            pieces += _by_segment(q, k, v, tree, options)
    return torch.cat(pieces, 2).transpose(1, 2).contiguous()


def _calls(query: Tensor, key: Tensor, value: Tensor, trees: tuple[Tree, ...]) -> Tensor:
    return by_calls(query, key, value, Layout(trees), None, None)


def _by_segment(q: Tensor, k: Tensor, v: Tensor, tree: Tree, options: dict[str, Any]) -> list[Tensor]:
    """The context causally, then each response over context and itself."""
    p = tree.context
    pieces = [F.scaled_dot_product_attention(q[:, :, :p], k[:, :, :p], v[:, :, :p], is_causal=True, **options)]
    at = p
    for n in tree.responses:
        if n:
            keys = torch.cat([k[:, :, :p], k[:, :, at : at + n]], 2)
            values = torch.cat([v[:, :, :p], v[:, :, at : at + n]], 2)
            mask = torch.ones(n, p + n, dtype=torch.bool, device=q.device).tril(p)
            pieces.append(F.scaled_dot_product_attention(q[:, :, at : at + n], keys, values, attn_mask=mask, **options))
        at += n
    return pieces


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Branches(torch.autograd.Function):
    """Attention over trees by the CPU's fused kernel, each pair of query and key computed once and none in vain.

    Equation:
        a response's query sees its context and, causally, its own tokens: two calls, o = sum_i o_i exp(l_i - l) with
        l = logsumexp(l_1, l_2) of the calls' log-normalisers; the kernel's backward, given the whole o and l, yields
        each part of the gradient exactly.

    Without masks, zero-filled slices or repeated keys. bf16 is computed in float32: the kernel is faster so, unless the
    processor has matrix tiles.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, trees: tuple[Tree, ...], scale: float | None) -> Tensor:
        out = q.new_empty(1, q.shape[2], q.shape[1], q.shape[3])
        saved = q, k, v, out
        ctx.trees, ctx.scale = trees, scale
        q, k, v = _wide(q, k, v)
        lse = q.new_empty(out.shape[:3], dtype=torch.float64 if q.dtype == torch.float64 else torch.float32)
        ctx.save_for_backward(*saved, lse)
        o, norm = out.transpose(1, 2), lse.transpose(1, 2)
        for tree in trees:
            context, behind, own = _parts(tree)
            o[:, :, context], norm[:, :, context] = _call(q, k, v, context, context, True, scale)
            if not own:
                continue
            far, far_norm = _call(q, k, v, behind, context, False, scale)
            for here in own:
                near, near_norm = _call(q, k, v, here, here, True, scale)
                there = slice(here.start - behind.start, here.stop - behind.start)
                whole = torch.logaddexp(far_norm[:, :, there], near_norm)
                near *= (near_norm - whole).exp_()[..., None]
                near.addcmul_(far[:, :, there], (far_norm[:, :, there] - whole).exp_()[..., None])
                o[:, :, here], norm[:, :, here] = near, whole
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
        q, k, v, o, g = _wide(q, k, v, out.transpose(1, 2), grads[0].transpose(1, 2))
        norm = lse.transpose(1, 2)

        def call(queries: slice, keys: slice, causal: bool) -> tuple[Tensor, ...]:
            qs, ks = (slice(None), slice(None), queries), (slice(None), slice(None), keys)
            return _flash_backward(g[qs], q[qs], k[ks], v[ks], o[qs], norm[qs], 0.0, causal, scale=ctx.scale)

        for tree in ctx.trees:
            context, behind, own = _parts(tree)
            first = call(context, context, True)
            if own:
                far = call(behind, context, False)
                first = (first[0], first[1].add_(far[1]), first[2].add_(far[2]))
            for into, part in zip((dq, dk, dv), first, strict=True):
                into[:, :, context] = part
            for here in own:
                there = slice(here.start - behind.start, here.stop - behind.start)
                near = call(here, here, True)
                dq[:, :, here] = near[0].add_(far[0][:, :, there])
                dk[:, :, here], dv[:, :, here] = near[1:]
        return dq, dk, dv, None, None


def _parts(tree: Tree) -> tuple[slice, slice, list[slice]]:
    """Where a tree's context lies, all that is behind it, and each response; a single response is a longer context."""
    if sum(map(bool, tree.responses)) <= 1:
        return slice(tree.start, tree.stop), slice(tree.stop, tree.stop), []
    at = tree.start + tree.context
    own = []
    for n in filter(None, tree.responses):
        own.append(slice(at, at + n))
        at += n
    return slice(tree.start, tree.start + tree.context), slice(tree.start + tree.context, tree.stop), own


def _wide(*tensors: Tensor) -> list[Tensor]:
    """bf16 as float32, unless the processor has tiles for it."""
    narrow = tensors[0].dtype.itemsize == 2 and not torch.cpu._is_amx_tile_supported()
    return [t.float() for t in tensors] if narrow else [*tensors]


def _call(
    q: Tensor, k: Tensor, v: Tensor, queries: slice, keys: slice, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    return _flash(q[:, :, queries], k[:, :, keys], v[:, :, keys], 0.0, causal, scale=scale)


def _no_mask(*args: Any, **kwargs: Any) -> Any:
    """Trees need no mask of transformers'; outside of `attending`, its own is made."""
    layout = _current.get()
    if layout is None:
        return AttentionMaskInterface()["sdpa"](*args, **kwargs)
    if kwargs.get("local_size") is not None and isinstance(layout, Layout):
        layout.windows.add("mask")
    return None


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, _no_mask)
