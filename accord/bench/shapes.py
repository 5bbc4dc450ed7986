"""What is raced where no weights are at hand? Random Llamas of the widths, layers and vocabularies of known models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from accord.bench import device
from accord.data.store import cache_root
from accord.engine.models import free_memory, replace_folder
from accord.errors import AccordError

NAMES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "tiny": (8192, 256, 688, 12, 8, 4, True),
    "smollm2-135m": (49152, 576, 1536, 30, 9, 3, True),
    "smollm2-360m": (49152, 960, 2560, 32, 15, 5, True),
    "llama-3.2-1b": (128256, 2048, 8192, 16, 32, 8, True),
    "smollm2-1.7b": (49152, 2048, 8192, 24, 32, 32, True),
    "qwen2.5-3b": (151936, 2048, 11008, 36, 16, 2, True),
    "llama-3.1-8b": (128256, 4096, 14336, 32, 32, 8, False),
}


def folder_of(shape: str) -> Path:
    """Where its weights lie once they are made."""
    return cache_root() / "bench" / shape


def config_of(shape: str) -> Any:
    from transformers import LlamaConfig

    known: dict[str, Any] = dict(zip(NAMES, SHAPES[shape], strict=True))
    return LlamaConfig(**known, max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def weights(shape: str) -> int:
    """How many it has, counted without making them.

    >>> weights("tiny"), weights("llama-3.1-8b")
    (10803456, 8030261248)
    """
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in LlamaForCausalLM(config_of(shape)).parameters())


def make(shape: str) -> Path:
    """Its weights, with a tokenizer of as many words, made once; in bf16, but for `tiny`, so that 8 billion are 16 GB.

    Raises:
        AccordError: the disk has no room for them.
    """
    folder = folder_of(shape)
    if (folder / "config.json").exists():
        return folder
    from tokenizers import Tokenizer, models
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    dtype = torch.float32 if shape == "tiny" else torch.bfloat16
    size, words = weights(shape) * dtype.itemsize, SHAPES[shape][0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder.parent).free) < 1.1 * size:
        raise AccordError(
            f"{shape} takes {size / 1e9:.0f} GB on the disk of {folder.parent}, where {free / 1e9:.0f} are free"
        )
    half = folder.with_name(f".{shape}.half")
    shutil.rmtree(half, ignore_errors=True)
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device("cpu" if shape == "tiny" else device.name()):
            model = LlamaForCausalLM(config_of(shape))
    finally:
        torch.set_default_dtype(usual)
    model.save_pretrained(half)
    known = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, words)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(known, unk_token="<eos>")), pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(half)
    replace_folder(half, folder)
    return folder


def lacking(shape: str, lora: bool) -> str | None:
    """Why a race of two full sides has no room on the GPU, or None if it may have.

    Weights in float32 on both sides; in full training also their gradients, two moments, and a reference of TRL's.
    Activations come on top, so what passes here may still run out of memory.

    >>> lacking("tiny", False) is None
    True
    """
    if device.name() == "cpu":
        return None
    need, free = weights(shape) * (8 if lora else 36), free_memory(torch.device("cuda")) or 0
    if need <= free:
        return None
    return f"two sides take {need / 1e9:,.0f} GB before any activation, and {free / 1e9:,.0f} GB of the GPU are free"
