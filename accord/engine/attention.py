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

NAME = "accord"
DENSE_TOKENS = 640  # trees up to here take one call with one mask; longer ones a call for each segment


class UnsupportedAttentionError(RuntimeError):
    """The architecture asks for something that tree attention does not do; the engine falls back."""


@dataclass
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
    """The trees of one packed row of T tokens, and the masks made for them."""

    trees: tuple[Tree, ...]
    masks: dict[tuple[int, int | None, torch.device], Tensor] = field(default_factory=dict)

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


_current: ContextVar[Layout | None] = ContextVar("accord_layout", default=None)


def again() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """What a checkpointed layer runs in, now and when it is computed again: under the layout that holds now."""
    now = _current.get()
    return contextlib.nullcontext(), attending(now) if now is not None else contextlib.nullcontext()


@contextlib.contextmanager
def attending(layout: Layout) -> Iterator[None]:
    """Within, attention named `accord` follows this layout."""
    token = _current.set(layout)
    try:
        yield
    finally:
        _current.reset(token)


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
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


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


def _no_mask(*args: Any, **kwargs: Any) -> Any:
    """Trees need no mask of transformers'; outside of `attending`, its own is made."""
    return None if _current.get() is not None else AttentionMaskInterface()["sdpa"](*args, **kwargs)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, _no_mask)
