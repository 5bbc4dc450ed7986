"""Compiled norms and feed-forward parts: the same gradients, and nothing compiled where none is asked for."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import cpp_builder, exc

from accord.bench import equality
from accord.data.batches import pack
from accord.engine import compiled, models
from accord.engine.logprobs import Row
from accord.errors import ConfigError


@pytest.fixture
def compiler() -> None:
    """One is here, and has compiled nothing in this process yet."""
    torch.compiler.reset()
    compiled._compiled.cache_clear()
    try:
        compiled.check(torch.device("cpu"))
    except ConfigError as error:
        if "CI" not in os.environ:
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("name", ["Llama", "GPT2"])  # `accord bench --equality` has the others
def test_compiled_parts_give_the_gradient_of_the_plain_forward(name, compiler):
    before = counters["stats"]["unique_graphs"]
    assert equality.measure(name, ["compile"])["compile"] < 1e-4
    assert 1 <= counters["stats"]["unique_graphs"] - before <= 2  # one of each part, for both layers and all rows


def _gradients(checkpointing: bool, compile_layers: bool) -> dict[str, torch.Tensor]:
    """Of adapters, with a hook on a feed-forward part."""
    policy = models.load(
        equality.tiny("Llama"), object(), device="cpu", precision="fp32", lora=models.LoraOptions(rank=4),
        gradient_checkpointing=checkpointing, compile_layers=compile_layers,
    )  # fmt: skip
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.1, generator=draws)
    policy.scorer.causal.model.layers[0].mlp.register_forward_hook(lambda module, args, out: 2 * out)
    several = equality.sequences()
    row = Row.of(pack(several, range(len(several)), policy.scorer.layout), "cpu")
    loss = policy.scorer(row)["logp"].square().mean()
    loss.backward(retain_graph=True)  # sets of gradients go back more than once
    policy.scorer.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_hooks_and_layers_that_are_computed_again_go_with_it(checkpointing, compiler):
    plain, fast = _gradients(False, False), _gradients(checkpointing, True)
    assert plain.keys() == fast.keys()
    for name, grad in plain.items():
        assert (fast[name] - grad).abs().max() <= 1e-4 * grad.abs().max(), name


def test_what_asks_for_no_gradient_is_not_compiled_and_a_copy_has_its_own_weights(compiler):
    policy = models.load(equality.tiny("Llama"), object(), device="cpu", precision="fp32", compile_layers=True)
    several = equality.sequences()
    row = Row.of(pack(several, range(len(several)), policy.scorer.layout), "cpu")
    before = counters["stats"]["unique_graphs"]
    plain = models.load(equality.tiny("Llama"), object(), device="cpu", precision="fp32").scorer
    with torch.no_grad():
        assert torch.allclose(policy.scorer(row)["logp"], plain(row)["logp"], atol=1e-5)
        part = policy.scorer.causal.model.layers[0].mlp
        copied, x = copy.deepcopy(part), torch.randn(1, 3, 32)
        before_it = part(x)
        part.down_proj.weight.zero_()
        assert torch.equal(copied(x), before_it)
        assert not part(x).any()
    assert counters["stats"]["unique_graphs"] == before


def test_without_a_compiler_it_says_so(monkeypatch):
    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and there is none: install g\+\+"):
        models.load(equality.tiny("Llama"), object(), device="cpu", compile_layers=True)


def test_dropout_of_adapters_is_refused():
    with pytest.raises(ConfigError, match="set lora dropout to 0"):
        models.load(
            equality.tiny("Llama"), object(), device="cpu", compile_layers=True, lora=models.LoraOptions(dropout=0.1)
        )
