"""How likely is this text under this model?

`Scorer` runs trunk, language-model head and extra heads in one forward and returns small named tensors: per predicted
token `logp` [M] (nats, float32) and, if asked, `entropy` [M]; per sequence `hidden` [n, h] and the heads' outputs.
Logits exist only for predicted tokens, and in chunks. No objective is known here: whoever wants a gradient hands back
cotangents, `torch.autograd.backward([out["logp"]], [cotangent])`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accord.data.batches import LayoutName, Micro
from accord.engine import attention

CHUNK_BYTES = 384 * 2**20  # float32 logits alive at once in the head


@dataclass
class Row:
    """A `Micro` on a device."""

    layout: LayoutName
    tokens: Tensor
    positions: Tensor
    trees: tuple[attention.Tree, ...]
    predictor: Tensor
    target: Tensor
    opens: Tensor
    ends: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, micro: Micro, device: torch.device | str) -> Row:
        def put(a: Any) -> Tensor:
            return torch.from_numpy(a).to(device, non_blocking=True)

        return cls(
            micro.layout,
            put(micro.tokens) if micro.layout == "padded" else put(micro.tokens)[None],
            put(micro.positions) if micro.layout == "padded" else put(micro.positions)[None],
            tuple(attention.Tree(*t) for t in micro.trees),
            put(micro.predictor),
            put(micro.target),
            put(micro.opens),
            put(micro.ends),
            put(micro.lengths),
        )


class Scorer(nn.Module):
    """A causal language model with heads, as the one module that is run, sharded and differentiated.

    Args:
        model: a transformers causal LM, or the PEFT model around one.
        heads: extra heads by name, see `accord.engine.heads`.
        layout: how prompts and responses are laid out: `shared`, `packed` or `padded` (`models.choose_layout`).
        compute: dtype of the matrix products (weights stay as they are).
        chunk_bytes: memory for logits; rows beyond it are computed again in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: nn.ModuleDict | None = None,
        layout: LayoutName = "shared",
        compute: torch.dtype = torch.float32,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = heads if heads is not None else nn.ModuleDict()
        self.layout: LayoutName = layout
        self.compute = compute
        self.chunk_bytes = chunk_bytes

    @property
    def causal(self) -> Any:
        """The transformers model, inside PEFT's wrapper if there is one."""
        return base_model(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def keep_last(self) -> bool:
        """True if a head reads the last token of a response, which must then be computed."""
        return any(head.at == "ends" for head in self.heads.values())

    def forward(self, row: Row, needs: Collection[str] = ()) -> dict[str, Tensor]:
        """Scores one row.

        Args:
            row: what to score.
            needs: `entropy`, `hidden`; `logp` and every head always come.

        Returns:
            `logp` [M], `entropy` [M], `hidden` [n, h], `head:NAME` [n] or [n, d]; float32.
        """
        kind = row.tokens.device.type
        with torch.autocast(kind, self.compute, enabled=self.compute != torch.float32), self._attending(row):
            body = getattr(self.causal, self.causal.base_model_prefix)
            inputs: dict[str, Tensor] = {"input_ids": row.tokens}
            if row.layout == "padded":
                width = row.tokens.shape[1]
                inputs["attention_mask"] = (
                    torch.arange(width, device=row.tokens.device)[None] < row.lengths[:, None]
                ).long()
            else:
                inputs["position_ids"] = row.positions
            hidden = body(**inputs, use_cache=False)[0].flatten(0, 1)
            out = self._tokens(hidden.index_select(0, row.predictor), row.target, "entropy" in needs)
            if "hidden" in needs:
                out["hidden"] = hidden.index_select(0, row.ends).float()
            for name, head in self.heads.items():
                where = str(head.at)
                place = row.predictor if where == "tokens" else getattr(row, where)
                out[f"head:{name}"] = head(hidden.index_select(0, place))
        return out

    def _attending(self, row: Row) -> contextlib.AbstractContextManager:
        if row.layout == "padded":
            return contextlib.nullcontext()
        return attention.attending(attention.Layout(row.trees))

    def _tokens(self, hidden: Tensor, target: Tensor, entropy: bool) -> dict[str, Tensor]:
        """hidden [M, h], target [M] -> logp [M] (and entropy [M]), by chunks when the logits would not fit."""
        vocabulary = self.causal.get_output_embeddings().weight.shape[0]
        rows = max(1, self.chunk_bytes // (4 * vocabulary))
        if len(target) <= rows:
            parts = [self._chunk(hidden, target, entropy)]
        else:
            parts = [
                checkpoint(self._chunk, h, t, entropy, use_reentrant=False) if torch.is_grad_enabled()
                else self._chunk(h, t, entropy)
                for h, t in zip(hidden.split(rows), target.split(rows), strict=True)
            ]  # fmt: skip
        names = ("logp", "entropy") if entropy else ("logp",)
        return {name: torch.cat([p[i] for p in parts]) for i, name in enumerate(names)}

    def _chunk(self, hidden: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, ...]:
        logits = self.causal.get_output_embeddings()(hidden)
        logits = finish_logits(logits.float(), self.causal.config)
        total = logits.logsumexp(-1)
        logp = logits.gather(-1, target[:, None]).squeeze(-1) - total
        if not entropy:
            return (logp,)
        return logp, total - (logits.softmax(-1) * logits).sum(-1)


def base_model(module: Any) -> Any:
    """The transformers model inside PEFT's wrapper, or the module itself."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def finish_logits(logits: Tensor, config: Any) -> Tensor:
    """What some architectures do to the head's output: Granite divides, Cohere multiplies, Gemma caps."""
    config = config.get_text_config()
    if (divisor := getattr(config, "logits_scaling", None)) not in (None, 1):
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) not in (None, 1):
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@contextlib.contextmanager
def no_dropout(module: nn.Module) -> Iterator[None]:
    """Within, the module is in evaluation mode: what is compared must be computed alike."""
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)


@contextlib.contextmanager
def adapter_dropout(module: nn.Module) -> Iterator[None]:
    """Within, adapters drop out as they were asked to; the model's own dropout stays off, as in its reference."""
    layers = [m for name, m in module.named_modules() if ".lora_dropout." in name]
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


def flush_denormals() -> bool:
    """Flushes denormal numbers in every thread that computes; True if all of them do.

    Softmax rows of a confident policy hold denormals, and a matrix product over them takes minutes instead of seconds
    on a CPU. The flag belongs to a thread; workers of a thread pool inherit it when they start, so it is set at
    import of the engine, and checked here by a product large enough to use all of them.
    """
    if not torch.set_flush_denormal(True):
        return False
    tiny = torch.full((1 << 21,), 1e-40)
    return not bool((tiny * 1.0).any())


flush_denormals()
