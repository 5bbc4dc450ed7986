"""What is exported computes what was trained, loads without PEFT, and replaces nothing unasked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import accord
from accord.engine import models
from accord.engine.export import export
from accord.errors import AccordError, ConfigError
from tests.conftest import pair_records

TEXT = "tell me about the fox: the fox is quick and brown"


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory) -> accord.training.run.Run:  # type: ignore[name-defined]
    """Two steps of LoRA with a rate that moves it."""
    return accord.train(
        str(model_folder), pair_records(), "dpo", output=str(tmp_path_factory.mktemp("runs") / "lora"), max_steps=2,
        batch_size=8, lora={"rank": 4}, learning_rate=0.05, precision="fp32", device="cpu", quiet=True,
    )  # fmt: skip


def logps(model, tokenizer) -> torch.Tensor:
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        return model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])


def plain(folder: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_a_merged_adapter_gives_the_log_probs_of_the_run(run, model_folder, tmp_path):
    out = export(run.folder, tmp_path / "whole", merge=True)
    assert not (out / "adapter_config.json").exists()
    assert list(out.glob("*.safetensors"))
    model, tokenizer = plain(out)
    assert "peft" not in type(model).__module__
    with models.generating(run.policy) as trained:
        expected = logps(trained, run.policy.tokenizer)
    assert torch.allclose(logps(model, tokenizer), expected, atol=1e-5)
    assert (expected - logps(*plain(model_folder))).abs().max() > 0.01  # two steps did something
    assert tokenizer.chat_template == run.policy.tokenizer.chat_template
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "the adapter merged into its base" in card
    assert models.load(str(out), device="cpu", precision="fp32").told == []


@pytest.mark.parametrize(("dtype", "kind", "near"), [("bf16", torch.bfloat16, 0.3), ("fp16", torch.float16, 0.03)])
def test_weights_are_written_in_the_dtype_that_was_asked_for(dtype, kind, near, run, tmp_path):
    from safetensors.torch import load_file

    out = export(run.folder, tmp_path / "small", merge=True, dtype=dtype)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {kind}
    whole = export(run.folder, tmp_path / "whole", merge=True)
    gap = (logps(*plain(out)) - logps(*plain(whole))).abs().max()
    assert 0 < gap < near


def test_whole_weights_are_exported_too(model_folder, tmp_path):
    out = export(model_folder, tmp_path / "out")
    assert torch.equal(logps(*plain(out)), logps(*plain(model_folder)))


def test_weights_that_fp16_cannot_hold_are_refused(model_folder, tmp_path):
    model, tokenizer = plain(model_folder)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = 1e5
    model.save_pretrained(tmp_path / "big")
    tokenizer.save_pretrained(tmp_path / "big")
    with pytest.raises(
        AccordError, match=r"layers.0.mlp.down_proj.weight holds 1e\+05, which fp16 cannot; use --dtype bf16"
    ):
        export(tmp_path / "big", tmp_path / "out", dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_unasked(run, model_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(model_folder, out)  # an empty folder is free
    (out / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"holds something; .*--overwrite"):
        export(model_folder, out)
    export(model_folder, out, overwrite=True)
    assert not (out / "mine.txt").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        export(model_folder, tmp_path / "file")
    for inside in (run.folder, run.folder / "model"):
        with pytest.raises(ConfigError, match="holds the model itself"):
            export(run.folder, inside, merge=True, overwrite=True)
    with pytest.raises(ConfigError, match="is an adapter: --merge"):
        export(run.folder, tmp_path / "new")
    with pytest.raises(ConfigError, match="dtype='int4' is none of fp32, bf16, fp16"):
        export(run.folder, tmp_path / "new", merge=True, dtype="int4")
    assert not (tmp_path / "new").exists()


CONVERTER = """
import json, pathlib, sys
folder, _, out, _, kind = sys.argv[1:]
assert (pathlib.Path(folder) / "model.safetensors").exists()
if kind == "bf16":
    sys.exit("Model LlamaForCausalLM is not supported")
pathlib.Path(out).write_bytes(b"GGUF" + kind.encode())
"""


def test_gguf_is_made_by_llama_cpp_where_it_is_at_hand(model_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ConfigError, match=r"needs convert_hf_to_gguf.py of llama.cpp: git clone"):
        export(model_folder, tmp_path / "out", gguf=True)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds no convert_hf_to_gguf\.py"):
        export(model_folder, tmp_path / "out", gguf=True)
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    made = export(model_folder, tmp_path / "out", gguf=True)
    assert made == tmp_path / "out" / "out-f32.gguf"
    assert made.read_bytes() == b"GGUFf32"
    with pytest.raises(AccordError, match="Model LlamaForCausalLM is not supported"):
        export(model_folder, tmp_path / "other", gguf=True, dtype="bf16")
    assert not (tmp_path / "other").exists()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.delenv("LLAMA_CPP")
    script = bin_folder / "convert_hf_to_gguf.py"
    script.write_text(f"#!{sys.executable}\n" + CONVERTER)
    script.chmod(0o755)
    assert export(model_folder, tmp_path / "third", gguf=True).name == "third-f32.gguf"


def test_a_head_goes_along(model_folder, tmp_path):
    from safetensors.torch import load_file

    run = accord.train(
        str(model_folder), pair_records(), "pointwise_dpo", output=str(tmp_path / "run"), max_steps=1, batch_size=8,
        log_z="head", precision="fp32", device="cpu", quiet=True,
    )  # fmt: skip
    out = export(run.folder, tmp_path / "out")
    assert load_file(out / "heads.safetensors").keys() == load_file(run.folder / "model" / "heads.safetensors").keys()
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
