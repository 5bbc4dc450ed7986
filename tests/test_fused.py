"""Parts of a layer written out, the last layer where it is read, and coefficients that are known early: each is what it
replaces, and does less."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from accord.bench.equality import sequences, tiny
from accord.data.batches import micro_batches, pack
from accord.engine import attention, fused, logprobs, models
from accord.engine.logprobs import Row
from accord.training import early
from tests.test_training import assert_alike, make


def loaded(name: str = "Llama", **options) -> models.Policy:
    return models.load(tiny(name), object(), device="cpu", precision="fp32", **options)


def parts_of(name: str) -> list[nn.Module]:
    model = tiny(name)
    fused.install(model)
    return [m for m in model.modules() if "forward" in m.__dict__]


def by_class(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return type(m).forward(m, x)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral", "Olmo2", "Granite"])
def test_parts_written_out_have_the_value_and_all_gradients_of_the_model_s_own(name):
    found = parts_of(name)
    assert {type(m).__name__.removeprefix(name) for m in found} == {"RMSNorm", "MLP"}
    draws = torch.Generator().manual_seed(0)
    for m in found:
        for p in m.parameters():
            p.data.normal_(generator=draws)
        m.double()
        width = m.weight.shape[0] if hasattr(m, "weight") else m.gate_proj.in_features
        x = torch.randn(2, 5, width, generator=draws, dtype=torch.float64, requires_grad=True)
        up = torch.randn(2, 5, width, generator=draws, dtype=torch.float64)
        leaves = [x, *m.parameters()]
        with attention.attending(attention.Layout(())):
            here = m(x)
        there = by_class(m, x)
        assert torch.allclose(here, there, rtol=1e-6)  # a norm of transformers' computes in float32
        for a, b in zip(torch.autograd.grad(here, leaves, up), torch.autograd.grad(there, leaves, up), strict=True):
            assert float((a - b).abs().max()) <= 2e-6 * float(b.abs().max())


def test_what_computes_otherwise_stays_as_it_is():
    assert {type(m).__name__ for m in parts_of("Gemma")} == set()  # its norm is 1 + weight, its gate is GELU
    assert parts_of("GPT2") == []


@pytest.mark.parametrize("name", ["Gemma", "Llama"])
def test_a_part_whose_output_is_nothing_yet_is_not_taken_for_another(name):
    """A residual that begins at zero looks like any other."""
    model = tiny(name)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.zero_()
        layer.mlp.act_fn = nn.GELU()
    assert "MLP" not in "".join(fused.install(model))


def test_a_norm_with_a_gate_stays_as_it_is():
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

    assert fused.install(nn.ModuleList([MambaRMSNormGated(8, group_size=8)])) == []


def test_outside_of_accord_s_passes_and_under_hooks_the_parts_are_the_model_s_own():
    model = tiny("Llama")
    policy = models.load(model, object(), device="cpu", precision="fp32")
    seen: list[int] = []
    for part in (model.model.layers[0].mlp.down_proj, model.model.layers[1].mlp.act_fn):
        part.register_forward_hook(lambda module, args, out: seen.append(1))
    several = sequences()
    policy.scorer(Row.of(pack(several, range(len(several)), "shared"), "cpu"))
    assert len(seen) == 2
    for part in (model.model.layers[0].mlp.down_proj, model.model.layers[1].mlp.act_fn):
        part._forward_hooks.clear()
    ids = torch.arange(3, 20)[None]
    twice = []
    for own in (model, pickle.loads(pickle.dumps(model)), tiny("Llama")):
        own.set_attn_implementation("eager")  # the other has no second derivative
        w = own.model.layers[0].mlp.up_proj.weight
        (slope,) = torch.autograd.grad(own(input_ids=ids).logits.square().sum(), w, create_graph=True)
        twice.append(torch.autograd.grad(slope.square().sum(), w)[0])
    assert torch.equal(twice[0], twice[1])
    assert torch.allclose(twice[0], twice[2], rtol=1e-4, atol=1e-4 * float(twice[2].abs().max()))


def test_adapters_under_a_feed_forward_part_are_used():
    policy = loaded(lora=models.LoraOptions(rank=2))
    row = Row.of(pack(several := sequences(), range(len(several)), "shared"), "cpu")
    before = policy.scorer(row)["logp"]
    for n, p in policy.model.named_parameters():
        if "down_proj" in n and "lora_B" in n:
            p.data.fill_(0.5)
    assert float((policy.scorer(row)["logp"] - before).detach().abs().max()) > 1e-3


def kept_by(model: nn.Module, x: torch.Tensor) -> int:
    sizes: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(t: torch.Tensor) -> torch.Tensor:
        if (place := t.untyped_storage()).data_ptr() not in weights:
            sizes[place.data_ptr()] = place.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), attention.attending(attention.Layout(())):
        model(x)
    return sum(sizes.values())


def test_they_keep_less_for_the_backward_pass():
    layer = tiny("Llama").model.layers[0]
    x = torch.randn(1, 50, 32, requires_grad=True)
    for part, most in ((layer.mlp, 0.65), (layer.input_layernorm, 0.55)):
        plain = kept_by(part, x)
        fused.install(part)
        assert kept_by(part, x) <= most * plain


# -- the last layer ---------------------------------------------------------------------------------------------------


def operations(policy: models.Policy, row: Row, **asked) -> int:
    with FlopCounterMode(display=False) as counter:
        policy.scorer(row, **asked)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Phi", "GPT2", "GPTNeoX", "Cohere"])
def test_the_last_layer_computes_what_is_read_alone(name):
    policy = loaded(name)
    assert policy.scorer.trims
    several = sequences(contexts=4, responses=2)
    row = Row.of(pack(several, range(len(several)), "shared"), "cpu")
    trimmed, found = operations(policy, row), policy.scorer(row)["logp"]
    policy.scorer.trims = False
    whole, expected = operations(policy, row), policy.scorer(row)["logp"]
    assert torch.allclose(found, expected, atol=1e-5)
    unread = row.tokens.numel() - len(np.unique(row.micro.predictor))
    (feed_forward,) = (m for n, m in policy.scorer.causal.named_modules() if n.endswith(".1.mlp"))
    products = sum(p.numel() for p in feed_forward.parameters() if p.ndim == 2)
    assert unread > 0
    assert whole - trimmed >= 2 * unread * products


def test_a_reward_head_has_its_last_layer_computed_at_ends_alone():
    policy = loaded(heads=("score",))
    several = sequences()
    row = Row.of(pack(several, range(len(several)), "shared", keep_last=True), "cpu")
    with torch.no_grad():
        policy.scorer.heads["score"].linear.weight.normal_()
    read = policy.scorer._read(row, logp=False)
    assert set(read.tolist()) == {*row.ends.tolist(), *row.opens.tolist()}
    found = policy.scorer(row, logp=False)["head:score"]
    policy.scorer.trims = False
    assert torch.allclose(found, policy.scorer(row, logp=False)["head:score"], atol=1e-5)


def test_a_model_outside_of_accord_is_not_trimmed_and_loading_it_twice_trims_it_once():
    model = tiny("Llama")
    for _ in range(2):
        policy = models.load(model, object(), device="cpu", precision="fp32")
    hooks = model.model.layers[-1].mlp._forward_pre_hooks
    assert len(hooks) == 1
    several = sequences()
    row = Row.of(pack(several, range(len(several)), "shared"), "cpu")
    policy.scorer(row)
    whole = model(input_ids=torch.arange(3, 20)[None], output_hidden_states=True).hidden_states[-1]
    assert float(whole.detach().abs().sum(-1).min()) > 0


def test_adapters_around_a_layer_that_was_trimmed_are_trimmed_with_it():
    model = tiny("Llama")
    models.load(model, object(), device="cpu", precision="fp32")
    again = models.load(model, object(), device="cpu", precision="fp32", lora=models.LoraOptions(rank=2))
    assert again.scorer.layout == "shared"
    assert again.scorer.trims


# -- coefficients known early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [10_000, 100])
@pytest.mark.parametrize("words", [400 * 4 * 9, 400 * 4 * 40])
@pytest.mark.parametrize(
    "objective",
    ["dpo", "sft", "simpo", "orpo", {"labels": "kto", "pairs": "dpo"}, {"pairs": "dpo", "demonstrations": "sft"}],
)
def test_coefficients_that_are_known_early_are_those_that_are_known_late(objective, words, budget, monkeypatch):
    found = []
    for soon in (True, False):
        made = make(objective, budget=budget, batch_size=8)
        monkeypatch.setitem(logprobs.EARLY_BYTES, "cpu", words)
        batch = made.schedule.batch(0)
        collected = made.step.collect(batch, 0)
        assert early.known(made.step, collected)
        if not soon:
            monkeypatch.setattr(early, "known", lambda step, collected: False)
        (grads,), metrics, examples = made.step.backward(collected)
        found.append((grads, metrics, sorted(examples, key=str)))
        monkeypatch.undo()
    (grads, metrics, examples), (late, expected, shown) = found
    assert_alike(grads, late, 1e-5)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    assert [e.record for e in examples] == [e.record for e in shown]


def test_chunks_hold_whole_examples_and_every_predicted_token_once():
    made = make("dpo", budget=10_000, batch_size=8)
    batch = made.schedule.batch(0)
    (group,) = micro_batches(batch.sequences, [p for _, _, p in batch.examples()], 10_000, "shared")
    micro = pack(batch.sequences, group, "shared")
    found = early.chunks(batch, micro, 30)
    assert len(found) > 2
    assert sorted(torch.cat([rows for rows, _ in found]).tolist()) == list(range(len(micro.owner)))
    where = {i: n for n, (_, part) in enumerate(found) for i in part.sequences.tolist()}
    assert all(len({where[i] for i in p}) == 1 for _, _, p in batch.examples())
    pair = max(sum(int(batch.sequences[i].trained.sum()) for i in p) for _, _, p in batch.examples())
    assert all(len(rows) <= max(30, pair) for rows, _ in found)


@pytest.mark.parametrize("objective", ["cal_dpo", "beta_dpo"])
def test_a_batch_that_is_coupled_or_asks_for_more_is_not_early(objective):
    made = make(objective, batch_size=8)
    collected = made.step.collect(made.schedule.batch(0), 0)
    assert early.known(made.step, collected) == (collected.direct and not made.step.needs)
    if objective == "beta_dpo":
        assert not early.known(made.step, collected)
