"""How likely is this text under this model?

`Scorer` runs trunk, language-model head and extra heads in one forward and returns small named tensors: per predicted
token `logp` [M] (nats, float32) and, if asked, `entropy` [M]; per sequence `hidden` [n, h] and the heads' outputs.
Logits exist only for predicted tokens, and in chunks. No objective is known here: whoever wants a gradient hands back
cotangents, `torch.autograd.backward([out["logp"]], [cotangent])`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accord.data.batches import LayoutName, Micro
from accord.engine import attention
from accord.errors import ConfigError

if TYPE_CHECKING:
    from accord.engine.frozen import Below

CHUNK_BYTES = 384 * 2**20  # float32 logits alive at once in the head
EARLY_BYTES = {"cpu": 96 * 2**20}  # the same, 1 GiB elsewhere, where chunks cost nothing: see `Given` and `_Frozen`


@dataclass
class Row:
    """A `Micro` on a device."""

    micro: Micro
    layout: LayoutName
    tokens: Tensor
    positions: Tensor
    trees: tuple[attention.Tree, ...]
    predictor: Tensor
    target: Tensor
    owner: Tensor
    opens: Tensor
    ends: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, micro: Micro, device: torch.device | str) -> Row:
        def put(a: Any) -> Tensor:
            return torch.from_numpy(a).to(device, non_blocking=True)

        return cls(
            micro,
            micro.layout,
            put(micro.tokens) if micro.layout == "padded" else put(micro.tokens)[None],
            put(micro.positions) if micro.layout == "padded" else put(micro.positions)[None],
            tuple(attention.Tree(*t) for t in micro.trees),
            put(micro.predictor),
            put(micro.target),
            put(micro.owner),
            put(micro.opens),
            put(micro.ends),
            put(micro.lengths),
        )


class Against(NamedTuple):
    """A reference on the same row: hidden states [M, h], their way to logits, and `activation` [M] if it was asked."""

    hidden: Tensor
    logits: Callable[[Tensor], Tensor]
    activation: Tensor | None = None


class Given(NamedTuple):
    """Coefficients of the log-probs, known before any logits are let go.

    rows: places [m] of predicted tokens, chunk by chunk; together all. coefficients: from a chunk's number and its
    log-probs [m] to d loss / d log-prob [m].
    """

    rows: list[Tensor]
    coefficients: Callable[[int, Tensor], Tensor]


class Scorer(nn.Module):
    """A causal language model with heads, as the one module that is run, sharded and differentiated.

    Args:
        model: a transformers causal LM, or the PEFT model around one.
        heads: extra heads by name, see `accord.engine.heads`.
        layout: how prompts and responses are laid out: `shared`, `packed` or `padded` (`models.choose_layout`).
        compute: dtype of the matrix products (weights stay as they are).
        chunk_bytes: memory for logits; rows beyond it are computed again in the backward pass.
        temperature: logits are divided by it, as they are where answers are sampled.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: nn.ModuleDict | None = None,
        layout: LayoutName = "shared",
        compute: torch.dtype = torch.float32,
        chunk_bytes: int = CHUNK_BYTES,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.model = model
        self.heads = heads if heads is not None else nn.ModuleDict()
        self.layout: LayoutName = layout
        self.compute = compute
        self.chunk_bytes = chunk_bytes
        self.below: Below | None = None  # the frozen layers, if what comes out of them is kept
        self.trims = False  # whether the last layer computes what is read alone; see `attention.trim`
        self._checkpointed: list[Any] = []

    def checkpoint_layers(self) -> None:
        """From now on layers keep no activations, but are computed again in the backward pass: less memory, more time.

        Raises:
            ConfigError: the architecture cannot do it.
        """
        if not getattr(self.causal, "supports_gradient_checkpointing", False):
            raise ConfigError(f"gradient_checkpointing: {type(self.causal).__name__} does not support it")
        enable = getattr(self.causal, "activation_checkpointing_enable", self.causal.gradient_checkpointing_enable)
        enable({"use_reentrant": False, "context_fn": attention.again})
        self._checkpointed = [m for m in self.model.modules() if getattr(m, "gradient_checkpointing", None) is True]

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

    def forward(
        self, row: Row, needs: Collection[str] = (), against: Against | None = None, *, logp: bool = True,
        given: Given | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Scores one row.

        Args:
            row: what to score.
            needs: `entropy`, `collision`, `distance`, `hidden`, `kl`, `activation`, `extrapolated:X` with a number X;
                every head always comes.
            logp: whether anything is asked of the next token at all; else the language-model head is not computed.
            against: the reference on the same row (its own `against(row, needs)`), for the last three.
            given: coefficients that are known early, of a head that is `plain_head`; nothing else comes then but
                `given`, a number to which 1 is handed back.

        Returns:
            `logp` [M], `entropy` [M], `collision` [M] (log of the sum of squared probabilities, no gradient),
            `distance` [M] (see `_distance`), `kl` [M] (KL(reference | policy) of next-token distributions, sum of
            p_ref log(p_ref / p), nats), `activation` [M] (the reference's, see `_activation`), `extrapolated:X` [M]
            (log-prob of the target where logits are h + X * (h - h_ref), no gradient), `hidden` [n, h], `head:NAME`
            [n] or [n, d]; float32.
        """
        with self._computing(row):
            hidden, _ = self._trunk(row, read=self._read(row, logp=logp, ends="hidden" in needs))
            out = {}
            if given is not None:
                places = hidden.index_select(0, row.predictor)
                return {"given": _Early.apply(places, self.plain_head, row.target, given)}
            if logp:
                out = self._tokens(hidden.index_select(0, row.predictor), row.target, needs, against)
            if "activation" in needs:
                assert against is not None
                assert against.activation is not None
                out["activation"] = against.activation
            if "hidden" in needs:
                out["hidden"] = hidden.index_select(0, row.ends).float()
            for name, head in self.heads.items():
                where = str(head.at)
                place = row.predictor if where == "tokens" else getattr(row, where)
                out[f"head:{name}"] = head(hidden.index_select(0, place))
        return out

    def against(self, row: Row, needs: Collection[str] = ()) -> Against:
        """What another scorer needs for its KL from this one, and for the rest of `needs` that is about a reference."""
        layers = "activation" in needs
        with torch.no_grad(), no_dropout(self), self._computing(row):
            hidden, states = self._trunk(row, layers, None if layers else self._read(row))
            active = _activation(states, row) if layers else None
            return Against(hidden.index_select(0, row.predictor), self._logits, active)

    def logits(self, row: Row) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits [m, V], targets [m]) of the row's predicted tokens, some at a time, without gradient."""
        with torch.no_grad(), no_dropout(self), self._computing(row):
            hidden, _ = self._trunk(row, read=self._read(row))
            vocabulary = self.causal.get_output_embeddings().weight.shape[0]
            size = max(1, self.chunk_bytes // (4 * vocabulary * 4))
            for h, target in zip(
                hidden.index_select(0, row.predictor).split(size), row.target.split(size), strict=True
            ):
                yield self._logits(h), target

    @contextlib.contextmanager
    def _computing(self, row: Row) -> Iterator[None]:
        kind = row.tokens.device.type
        with torch.autocast(kind, self.compute, enabled=self.compute != torch.float32):
            yield

    def _trunk(self, row: Row, layers: bool = False, read: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Hidden states of every place of the row, flat, or of those alone that are `read`; if asked, of every layer
        too (the last one's after the final norm), as the model has them."""
        if self.below is None or layers:
            out = self._run(row, layers, read)
        else:
            with self.below.given(self.below.output(row, self._run)):
                out = self._run(row, read=read)
        return out[0].flatten(0, 1), out.hidden_states[1:] if layers else ()

    def _run(self, row: Row, layers: bool = False, read: Tensor | None = None) -> Any:
        body = getattr(self.causal, self.causal.base_model_prefix)
        for layer in self._checkpointed:  # transformers' layers do it in training mode only; dropouts are not asked
            layer.training = torch.is_grad_enabled()
        inputs: dict[str, Tensor] = {"input_ids": row.tokens}
        if row.layout == "padded":
            width = row.tokens.shape[1]
            inputs["attention_mask"] = (
                torch.arange(width, device=row.tokens.device)[None] < row.lengths[:, None]
            ).long()
        else:
            inputs["position_ids"] = row.positions
        with self._attending(row, read):
            return body(**inputs, use_cache=False, **({"output_hidden_states": True} if layers else {}))

    def _attending(self, row: Row, read: Tensor | None) -> contextlib.AbstractContextManager:
        if row.layout == "padded":
            return contextlib.nullcontext()
        return attention.attending(attention.Layout(row.trees, read=read))

    def _read(self, row: Row, *, logp: bool = True, ends: bool = False) -> Tensor | None:
        """The places of a packed row behind whose last layer something is read: `Layout.read`."""
        if not self.trims:
            return None
        tokens = logp or any(head.at == "tokens" for head in self.heads.values())
        places = row.micro.predictor if tokens else row.micro.predictor[:0]
        if ends or self.heads:
            places = np.concatenate([places, row.micro.ends, row.micro.opens])
        return torch.from_numpy(np.unique(places)).to(row.tokens.device, non_blocking=True)

    def _tokens(
        self, hidden: Tensor, target: Tensor, needs: Collection[str], against: Against | None
    ) -> dict[str, Tensor]:
        """hidden [M, h], target [M] -> token statistics [M], by chunks when the logits would not fit."""
        vocabulary = self.causal.get_output_embeddings().weight.shape[0]
        steps = {n: float(n.partition(":")[2]) for n in needs if n.startswith("extrapolated:")}
        beside = "kl" in needs or bool(steps)
        copies = 1 + len({"kl", "distance"} & set(needs)) + len(steps)
        rows = max(1, self.chunk_bytes // (4 * vocabulary * copies))
        names = ("logp", *(n for n in ("entropy", "collision", "distance", "kl") if n in needs), *steps)
        if names == ("logp",) and (weight := self.plain_head) is not None and not weight.requires_grad:
            return {"logp": _Frozen.apply(hidden, weight, target)}
        if beside and against is None:
            raise ValueError("a statistic beside a reference is asked for, but no reference was given")

        def chunk(h: Tensor, t: Tensor, other: Tensor | None) -> tuple[Tensor, ...]:
            if names == ("logp",):
                logits = self._finished(h)
                return (_Picked.apply(logits, t),)
            logp = self._logits(h).log_softmax(-1)
            found = {"logp": logp.gather(-1, t[:, None]).squeeze(-1)}
            if "entropy" in needs:
                found["entropy"] = -(logp.exp() * logp).sum(-1)
            if "collision" in needs:
                found["collision"] = (2 * logp.detach()).logsumexp(-1)
            if "distance" in needs:
                found["distance"] = self._distance(logp, t)
            if other is not None and against is not None:
                ref = against.logits(other).log_softmax(-1).detach()
                if "kl" in needs:
                    found["kl"] = (ref.exp() * (ref - logp)).sum(-1)
                for name, step in steps.items():
                    mixed = torch.lerp(ref, logp.detach(), 1.0 + step).log_softmax(-1)
                    found[name] = mixed.gather(-1, t[:, None]).squeeze(-1)
            return tuple(found[n] for n in names)

        others = against.hidden.split(rows) if beside and against is not None else [None] * -(-len(target) // rows)
        parts = []
        for h, t, other in zip(hidden.split(rows), target.split(rows), others, strict=True):
            whole = len(target) <= rows or not torch.is_grad_enabled()
            parts.append(chunk(h, t, other) if whole else checkpoint(chunk, h, t, other, use_reentrant=False))
        return {name: torch.cat([p[i] for p in parts]) for i, name in enumerate(names)}

    @property
    def plain_head(self) -> Tensor | None:
        """The head's weight [V, h] if it is all that there is to the logits."""
        head = self.causal.get_output_embeddings()
        plain = self.temperature == 1.0 and not finishes(self.causal.config)
        return head.weight if plain and type(head) is nn.Linear and head.bias is None else None

    @property
    def chunk_rows(self) -> int:
        """Predicted tokens whose logits are alive at once where coefficients are known early."""
        return early_rows(self.causal.get_output_embeddings().weight)

    def _distance(self, logp: Tensor, target: Tensor) -> Tensor:
        """logp [M, V], target [M] -> 1 - <e_target, sum over v of p_v e_v> [M], in [0, 2]: how far the next token is
        from the target on average; e_v are the rows of the output embedding made of length 1, without gradient."""
        with torch.autocast(logp.device.type, enabled=False):
            rows = self.causal.get_output_embeddings().weight.detach().float()
            norms = rows.norm(dim=-1).clamp(min=1e-12)
            mean = (logp.exp() / norms) @ rows
            return 1.0 - (mean * rows[target]).sum(-1) / norms[target]

    def _logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, h] -> logits [M, V], float32."""
        return self._finished(hidden).float()

    def _finished(self, hidden: Tensor) -> Tensor:
        """The same as the head made them, or in float32 where the architecture or a temperature changes them."""
        logits, config = self.causal.get_output_embeddings()(hidden), self.causal.config
        logits = finish_logits(logits.float(), config) if finishes(config) else logits
        return logits if self.temperature == 1.0 else logits.float() / self.temperature


PIECE = 1 << 18  # logits that are looked at together: they stay in a processor's cache


def _pieces(logits: Tensor) -> range:
    return range(0, len(logits), max(1, (PIECE if logits.device.type == "cpu" else 1 << 26) // logits.shape[1]))


class _Picked(torch.autograd.Function):
    """logits [M, V], target [M] -> log-probs [M]; the gradient is made in the place of the logits.

    Equation:
        d logp_t / d logits = onehot(target_t) - softmax(logits_t)

    So one copy of the logits is kept, in the dtype in which the head made them, where a log-softmax keeps three.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        logp, norm = _picked(logits, target, torch.promote_types(logits.dtype, torch.float32))
        ctx.save_for_backward(logits, target, norm)
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits, target, norm = ctx.saved_tensors
        # where the graph is kept, the logits are asked for again
        found = torch.empty_like(logits) if torch._C._autograd._get_current_graph_task_keep_graph() else logits
        _to_gradient(logits, target, norm, grads[0], found)
        return found, None


def _picked(logits: Tensor, target: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and log-normalisers, [M]."""
    norm = torch.empty(len(logits), dtype=kind, device=logits.device)
    pieces = _pieces(logits)
    for i in pieces:
        norm[i : i + pieces.step] = logits[i : i + pieces.step].to(kind).logsumexp(-1)
    return logits.gather(1, target[:, None])[:, 0].to(kind) - norm, norm


def _to_gradient(logits: Tensor, target: Tensor, norm: Tensor, grad: Tensor, into: Tensor) -> None:
    """The gradient of sum(grad * logp) with respect to the logits."""
    pieces = _pieces(logits)
    for i in pieces:
        here = slice(i, i + pieces.step)
        part = (logits[here] - norm[here, None]).exp_().mul_(-grad[here, None])
        into[here] = part.scatter_add_(1, target[here, None], grad[here, None].to(part.dtype))


class _Frozen(torch.autograd.Function):
    """hidden [M, h], a head's weight [V, h] that is not trained, target [M] -> log-probs [M]; no logits are kept.

    Equation:
        d logp_t / d hidden_t = W[target_t] - softmax(W hidden_t) W, kept [M, h] and scaled by what comes back
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.empty(len(hidden), dtype=kind, device=hidden.device)
        unit = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = early_rows(weight)
        for i in range(0, len(hidden), rows):
            here = slice(i, i + rows)
            logits = nn.functional.linear(hidden[here], weight).to(kind)
            logits = logits.sub_(logits.logsumexp(-1, keepdim=True))
            logp[here] = logits.gather(1, target[here, None])[:, 0]
            if unit is not None:
                unit[here] = weight[target[here]] - logits.exp_().to(weight.dtype) @ weight
        ctx.save_for_backward(unit)
        return logp

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (unit,) = ctx.saved_tensors
        return unit * grads[0][:, None].to(unit.dtype), None, None


class _Early(torch.autograd.Function):
    """hidden [M, h], a head's weight [V, h], target [M], given -> 0, which carries the gradient.

    Equation:
        with c = d loss / d logp: d hidden = G W, d W = G^T hidden, G = c (onehot(target) - softmax(W hidden))

    A chunk's logits become its G in place, and are gone when the next chunk's are made.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, given: Given) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        kind = torch.promote_types(hidden.dtype, torch.float32)
        narrow = weight.to(dtype)
        back = torch.zeros_like(hidden)
        own: Tensor | None = None
        for number, places in enumerate(given.rows):
            rows = places.to(hidden.device)
            h, t = hidden.index_select(0, rows).to(dtype), target.index_select(0, rows)
            logits = nn.functional.linear(h, narrow)
            logp, norm = _picked(logits, t, kind)
            with torch.enable_grad(), torch.autocast(device, enabled=False):
                c = given.coefficients(number, logp).to(hidden.device, kind)
            _to_gradient(logits, t, norm, c, logits)
            back.index_copy_(0, rows, (logits @ narrow).to(hidden.dtype))
            if ctx.needs_input_grad[1]:
                part = (logits.T @ h).to(weight.dtype)
                own = part if own is None else own.add_(part)
        ctx.save_for_backward(back, own)
        return hidden.new_zeros((), dtype=kind)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.saved_tensors, None, None


def early_rows(weight: Tensor) -> int:
    """Rows of logits [., V] that fit `EARLY_BYTES` in float32."""
    return max(1, EARLY_BYTES.get(weight.device.type, 1 << 30) // (4 * len(weight)))


def _activation(states: tuple[Tensor, ...], row: Row) -> Tensor:
    """How active the layers are where each token is predicted, [M]: per layer the mean of its hidden state, put on
    [0, 1] over the predicted tokens of a sequence; then the mean over layers. 1 where a sequence has no spread."""
    mean = torch.stack([s.flatten(0, 1).index_select(0, row.predictor).float().mean(-1) for s in states])
    sequences, own = row.owner.unique(return_inverse=True)
    index, none = own.expand_as(mean), mean.new_zeros(len(mean), len(sequences))
    low, high = (none.scatter_reduce(1, index, mean, how, include_self=False) for how in ("amin", "amax"))
    width = (high - low).gather(1, index)
    return torch.where(width > 0, (mean - low.gather(1, index)) / width, 1.0).mean(0)


def base_model(module: Any) -> Any:
    """The transformers model inside PEFT's wrapper, or the module itself."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def finishes(config: Any) -> bool:
    """Whether `finish_logits` does anything."""
    config = config.get_text_config()
    plain = {"logits_scaling": (None, 1), "logit_scale": (None, 1), "final_logit_softcapping": (None,)}
    return any(getattr(config, name, None) not in values for name, values in plain.items())


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
