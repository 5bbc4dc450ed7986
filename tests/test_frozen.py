"""Frozen layers: what is trained, and that reading what comes out of them changes nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import accord
from accord.data.batches import pack
from accord.data.chat import Sequence
from accord.engine import frozen, models, rewards
from accord.engine.logprobs import Row
from accord.errors import AccordError, ConfigError
from tests.conftest import make_llama, make_tokenizer, pair_records

LAYERS = 4


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "cache"))


def loaded(states="live", model=None, count=2, **more):
    tokenizer = make_tokenizer()
    model = model or make_llama(vocabulary=len(tokenizer), layers=LAYERS)
    heads = ("score",)
    policy = models.load(
        model, tokenizer, device="cpu", precision="fp32", heads=heads, freeze_layers=count, frozen_states=states, **more
    )
    torch.manual_seed(1)
    torch.nn.init.normal_(policy.scorer.heads["score"].linear.weight)
    return policy


def row(layout, numbers=range(6), seed=0):
    draw = np.random.default_rng(seed)
    contexts = [draw.integers(0, 300, n).astype(np.int32) for n in (7, 12, 5)]
    answers = [draw.integers(0, 300, n).astype(np.int32) for n in (5, 3, 6, 4, 8, 1)]
    made = [Sequence(contexts[i // 2], a, np.ones(len(a), bool)) for i, a in enumerate(answers)]
    return Row.of(pack(made, list(numbers), layout, keep_last=True), "cpu")


def gradient(policy, here):
    out = policy.scorer(here)
    policy.scorer.zero_grad()
    (out["logp"].sum() + out["head:score"].square().sum()).backward()
    grads = {n: p.grad.clone() for n, p in policy.scorer.named_parameters() if p.grad is not None}
    return out["logp"].detach(), grads


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_states_from_disk_give_the_forward_pass_and_its_gradient(layout, checkpointing):
    """To 1e-5, computed, read, and read by another process; only the missing ones of a row are computed."""
    options = {"layout": layout, "gradient_checkpointing": checkpointing}
    expected, grads = gradient(loaded(**options), row(layout))
    assert grads.keys() == {f"model.{n}" for n, p in loaded().model.named_parameters() if ".2." in n or ".3." in n} | {
        "model.model.norm.weight", "heads.score.linear.weight",
    }  # fmt: skip
    policy = loaded("cached", **options)
    below = policy.scorer.below
    policy.scorer(row(layout, [0, 1]))
    some = below.computed
    for turn in ("computed in part", "read"):
        logp, own = gradient(policy, row(layout))
        assert (logp - expected).abs().max() < 1e-5, turn
        assert own.keys() == grads.keys()
        assert max(float((own[n] - g).abs().max()) for n, g in grads.items()) < 1e-4, turn
    whole = sum(row(layout).lengths.tolist()) if layout == "padded" else row(layout).tokens.numel()
    assert 0 < some < below.computed == whole
    assert below.read == whole + some
    again = loaded("cached", **options)
    assert (gradient(again, row(layout))[0] - expected).abs().max() < 1e-5
    assert (again.scorer.below.computed, again.scorer.below.read) == (0, whole)


def test_states_belong_to_the_frozen_weights_and_their_number():
    """Those of other lower layers are others; what lies above makes no difference."""
    policy = loaded("cached")
    policy.scorer(row("shared"))
    with torch.no_grad():
        policy.model.model.layers[3].mlp.up_proj.weight += 1
    above = loaded("cached", policy.model)
    above.scorer(row("shared"))
    assert above.scorer.below.computed == 0
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight += 1
    for other in (loaded("cached", policy.model), loaded("cached", count=1)):
        other.scorer(row("shared"))
        assert other.scorer.below.computed > 0


def test_other_architectures():
    """Layers that return tuples or tensors, learned positions, embeddings that are scaled on the way."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

    for model in (
        GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=64)),
        Gemma2ForCausalLM(
            Gemma2Config(vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=8,
                         num_attention_heads=4, num_key_value_heads=2)
        ),
    ):  # fmt: skip
        live = loaded(model=model)
        layout = live.scorer.layout
        expected, grads = gradient(live, row(layout))
        assert not any("embed" in n or "wte" in n or "wpe" in n or ".0." in n or ".1." in n for n in grads)
        logp, own = gradient(loaded("cached", model), row(layout))
        assert own.keys() == grads.keys()
        assert (logp - expected).abs().max() < 1e-5


def test_adapters_stand_above_the_frozen_layers(tmp_path):
    policy = loaded("cached", lora=models.LoraOptions(rank=2))
    trained = [n for n, _ in models.trainable(policy.scorer)]
    assert trained
    assert all("layers.2." in n or "layers.3." in n for n in trained if "lora" in n)
    assert not any("layers.0." in n or "layers.1." in n for n, _ in policy.model.named_parameters() if "lora" in n)
    expected, _ = gradient(loaded(lora=models.LoraOptions(rank=2)), row("shared"))
    assert (gradient(policy, row("shared"))[0] - expected).abs().max() < 1e-5


def test_states_of_a_run_with_adapters_are_known_to_what_it_saves(tmp_path):
    """Also in bf16, where weights half way between two numbers are settled at load."""
    folder, tokenizer = tmp_path / "model", make_tokenizer()
    model = make_llama(vocabulary=len(tokenizer), layers=LAYERS)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float() * (1 + 2.0**-8) if p.dim() > 1 else p)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    records = pair_records(8)
    run = accord.train(
        str(folder), records, "bradley_terry", output=str(tmp_path / "run"), max_steps=2, batch_size=4, quiet=True,
        freeze_layers=3, frozen_states="cached", lora={"rank": 2}, device="cpu", precision="bf16", eval_fraction=0.0,
    )  # fmt: skip
    assert run.policy.scorer.below.computed > 0
    saved = rewards.load(run.folder, device="cpu", precision="bf16", freeze_layers=3)
    saved.scores(records)
    assert (saved.policy.scorer.below.computed, saved.policy.scorer.below.read > 0) == (0, True)


@pytest.mark.parametrize("objective", ["bradley_terry", "dpo"])
def test_a_run_with_states_from_disk_is_the_run_without(objective, tmp_path):
    folder, tokenizer = tmp_path / "model", make_tokenizer()
    make_llama(vocabulary=len(tokenizer), layers=LAYERS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    runs = {}
    for name in ("live", "cached", "again"):
        runs[name] = accord.train(
            str(folder), pair_records(24), objective, output=str(tmp_path / name), max_steps=4, batch_size=8,
            quiet=True, learning_rate=1e-3, freeze_layers=3, device="cpu",
            frozen_states="live" if name == "live" else "cached",
        )  # fmt: skip
    before = dict(models.load(folder, device="cpu").model.named_parameters())
    for name, run in runs.items():
        after = dict(run.model.named_parameters())
        moved = {n for n, p in before.items() if not torch.equal(p, after[n])}
        assert moved
        assert all(".3." in n or n == "model.norm.weight" for n in moved), name
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        if name == "live":
            first = rows
        assert [r.get("loss") for r in rows] == pytest.approx([r.get("loss") for r in first], abs=1e-6)
    assert runs["cached"].policy.scorer.below.computed > 0
    assert runs["again"].policy.scorer.below.computed == 0


def test_what_cannot_be_frozen_or_kept_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"freeze_layers=4: the model has 4 layers, of which 1 to 3 can be frozen"):
        loaded(count=4)
    with pytest.raises(ConfigError, match="nothing reads frozen_states"):
        accord.train("nowhere", pair_records(4), output=str(tmp_path / "run"), frozen_states="cached")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "states").write_text("a file")
    with pytest.raises(AccordError, match=r"states of the frozen layers cannot be kept in .*frozen_states: live"):
        loaded("cached")


def test_layers_that_read_more_of_those_below_are_refused():
    """An upper layer that looks at the embeddings, as some architectures do."""
    model = make_llama(vocabulary=len(make_tokenizer()), layers=LAYERS)
    seen = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["hidden_states"]), with_kwargs=True
    )
    top = model.model.layers[3]
    top.register_forward_hook(lambda module, args, out: out + (seen.pop() if seen else 0.0))
    with pytest.raises(ConfigError, match="read more of the frozen ones than their output"):
        loaded("cached", model)


def test_an_index_that_breaks_off_is_read_as_far_as_it_goes(tmp_path):
    states = frozen.States(tmp_path / "s", 3)
    data = np.arange(12, dtype=np.float32).reshape(4, 3)
    states.put(b"a" * 16, data[:1])
    states.put(b"b" * 16, data[1:])
    assert np.array_equal(states[b"b" * 16], data[1:])
    index = next((tmp_path / "s").glob("*.index"))
    index.write_bytes(index.read_bytes()[:-1])
    again = frozen.States(tmp_path / "s", 3)
    assert b"b" * 16 not in again
    assert np.array_equal(again[b"a" * 16], data[:1])
    again.put(b"b" * 16, data[1:])  # in files of its own
    assert np.array_equal(frozen.States(tmp_path / "s", 3)[b"b" * 16], data[1:])
    assert again.size == 48
