"""The engine against the plain padded transformers forward: loss and every gradient."""

from __future__ import annotations

import socket
import time

import numpy as np
import pytest
import torch

from accord.bench import equality
from accord.bench.equality import sequences
from accord.data.batches import micro_batches, pack
from accord.data.chat import Sequence
from accord.engine import attention, logprobs, models
from accord.engine.logprobs import Row, flush_denormals
from accord.errors import AccordError
from tests.conftest import make_llama


def plain(model: torch.nn.Module, seqs: list[Sequence]) -> torch.Tensor:
    """Sequence log-probs by one padded forward of the model's own, written as simply as it can be."""
    width = max(len(s.context) + len(s.ids) for s in seqs)
    tokens = torch.zeros(len(seqs), width, dtype=torch.long)
    mask = torch.zeros(len(seqs), width, dtype=torch.long)
    trained = torch.zeros(len(seqs), width, dtype=torch.bool)
    for r, s in enumerate(seqs):
        n = len(s.context) + len(s.ids)
        tokens[r, :n] = torch.from_numpy(np.concatenate([s.context, s.ids]).astype(np.int64))
        mask[r, :n] = 1
        trained[r, len(s.context) : n] = torch.from_numpy(s.trained)
    logp = model(input_ids=tokens, attention_mask=mask).logits.float().log_softmax(-1)
    picked = logp[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return (picked * trained[:, 1:]).sum(1)


def loss_of(logp: torch.Tensor) -> torch.Tensor:
    """DPO of the first two responses of each prompt against a made-up reference, so that margins are not 0."""
    reference = torch.linspace(-60, -10, len(logp)).detach()
    rho = logp - reference
    return torch.nn.functional.softplus(-0.1 * (rho[0::3] - rho[1::3])).mean() + 0.01 * rho[2::3].mean()


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("budget", [10_000, 60])
@pytest.mark.parametrize("chunk_bytes", [1 << 30, 400 * 4 * 7])
def test_loss_and_every_gradient_equal_the_plain_padded_forward(layout, budget, chunk_bytes):
    seqs = sequences()
    model = make_llama()
    expected = loss_of(plain(model, seqs))
    expected.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()

    policy = models.load(model, object(), device="cpu", precision="fp32", layout=layout)
    policy.scorer.chunk_bytes = chunk_bytes
    groups = micro_batches(seqs, [(i,) for i in range(len(seqs))], budget, layout)
    outs, owners = [], []
    for group in groups:
        micro = pack(seqs, group, layout)
        outs.append(policy.scorer(Row.of(micro, "cpu"))["logp"])
        owners.append(torch.from_numpy(micro.owner))
    logp = torch.zeros(len(seqs)).index_add(0, torch.cat(owners), torch.cat(outs))
    loss = loss_of(logp)
    assert abs(float(loss - expected)) < 2e-5
    loss.backward()
    for name, p in model.named_parameters():
        scale = grads[name].abs().max()
        assert (p.grad - grads[name]).abs().max() <= 1e-4 * scale, name


PADDED = {"Gemma2": "attention with softcap", "Bloom": "log-probs differ by", "Mamba": "recurrent layers carry"}
WINDOWED = ("Mistral", "Gemma3Text")  # by 8 tokens: answers to them do not share their prompt


@pytest.mark.parametrize("name", equality.ARCHITECTURES)
def test_every_way_to_a_log_prob_gives_the_same_gradient_or_falls_back_with_a_word(name):
    ways = [way for way in equality.WAYS if way != "compile"]
    for way, apart in equality.measure(name, ways).items():
        if way in ("shared", "packed") and name in PADDED:
            assert PADDED[name] in apart
        elif way == "sampling" and name in (*PADDED, *WINDOWED):
            assert apart == "no: transformers' generate answers"
        elif (way, name) == ("adapters", "Mamba"):
            assert "incompatible" in apart
        elif way == "sampling":
            assert apart == 0
        elif way == "early head" and name in ("Gemma2", "Phi", "Cohere"):  # a cap, a bias, a factor
            assert apart == "no: more than a matrix makes the logits"
        else:
            assert apart < 1e-4
    policy = models.load(equality.tiny(name), object(), device="cpu", precision="fp32")
    assert policy.scorer.layout == ("padded" if name in PADDED else "shared")
    assert [PADDED[name] in word for word in policy.told] == [True] * (name in PADDED)


def test_prompt_sharing_saves_what_it_promises():
    seqs = sequences(contexts=2, responses=4)
    shared = pack(seqs, range(len(seqs)), "shared").tokens.size
    packed = pack(seqs, range(len(seqs)), "packed").tokens.size
    assert packed - shared == 3 * sum(len(s.context) for s in seqs[::4])


def test_denormals_are_flushed_in_every_computing_thread():
    assert flush_denormals()
    tiny = torch.full((1 << 22,), 1e-40)
    assert not bool((tiny * 1.0).any())
    seen = []
    w = torch.full((1 << 22,), 1e-20, requires_grad=True)
    w.register_hook(lambda g: seen.append(bool(g.any())))
    (w * 1e-20 * 1e-4).sum().backward()  # the gradient, 1e-24, is no denormal; the product in the forward is
    assert seen == [True]
    assert not bool((w.detach() * 1e-20).any())


def test_bf16_log_probs_stay_within_the_stated_tolerance():
    seqs = sequences()
    model = make_llama()
    exact = models.load(model, object(), device="cpu", precision="fp32")
    micro = pack(seqs, range(len(seqs)), exact.scorer.layout)
    with torch.no_grad():
        full = exact.scorer(Row.of(micro, "cpu"))["logp"]
        exact.scorer.compute = torch.bfloat16
        low = exact.scorer(Row.of(micro, "cpu"))["logp"]
    assert low.dtype == torch.float32
    gap = torch.zeros(len(seqs)).index_add(0, torch.from_numpy(micro.owner), low - full).abs()
    assert 0 < float(gap.max()) < models.TOLERANCE[torch.bfloat16]


def test_a_pickle_is_refused(tmp_path):
    from accord.errors import AccordError

    model = make_llama()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AccordError, match="safetensors"):
        models.load(tmp_path, object())


def test_content_key_changes_with_one_weight(tmp_path):
    model = make_llama()
    model.save_pretrained(tmp_path / "a")
    before = models.content_key(tmp_path / "a")
    assert models.content_key(tmp_path / "a") == before
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "b")
    assert models.content_key(tmp_path / "b") != before


@pytest.mark.parametrize("frozen", [False, True])
def test_a_temperature_divides_the_logits(frozen):
    torch.manual_seed(0)
    model = make_llama()
    if frozen:
        model.get_output_embeddings().weight.requires_grad_(False)
    scorer = logprobs.Scorer(model, layout="padded", temperature=0.7)
    seqs = sequences()
    micro = pack(seqs, micro_batches(seqs, [(i,) for i in range(len(seqs))], 10**6, "padded")[0], "padded")
    out = scorer(Row.of(micro, "cpu"))["logp"]
    plainly = torch.cat([t / 0.7 for t, _ in logprobs.Scorer(model, layout="padded").logits(Row.of(micro, "cpu"))])
    target = torch.from_numpy(micro.target)
    expected = plainly.log_softmax(-1).gather(-1, target[:, None])[:, 0]
    assert torch.allclose(out, expected, atol=1e-5)
    weight = model.model.layers[0].mlp.up_proj.weight
    (slope,) = torch.autograd.grad(out.sum(), weight)
    step = torch.zeros_like(weight)
    step[0, 0] = 1e-2
    with torch.no_grad():
        weight += step
        up = scorer(Row.of(micro, "cpu"))["logp"].double().sum()
        weight -= 2 * step
        down = scorer(Row.of(micro, "cpu"))["logp"].double().sum()
    assert float(slope[0, 0]) == pytest.approx(float(up - down) / 2e-2, rel=0.05, abs=1e-2)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 400 * 4 * 14])
def test_kl_from_the_reference_is_exact_in_value_and_gradient(chunk_bytes):
    seqs = sequences(contexts=2)
    policy = models.load(make_llama(1), object(), device="cpu", precision="fp32")
    reference = models.load(make_llama(2), object(), device="cpu", precision="fp32")
    policy.scorer.chunk_bytes = chunk_bytes
    row = Row.of(pack(seqs, range(len(seqs)), "shared"), "cpu")
    out = policy.scorer(row, {"kl"}, reference.scorer.against(row))
    with torch.no_grad():
        hidden, logits, _ = policy.scorer.against(row)
        other, ref_logits, _ = reference.scorer.against(row)
        p, q = logits(hidden).log_softmax(-1), ref_logits(other).log_softmax(-1)
        expected = (q.exp() * (q - p)).sum(-1)
    assert torch.allclose(out["kl"], expected, atol=1e-5)
    assert bool((out["kl"] > 0).all())
    out["kl"].sum().backward()
    weight = policy.model.model.embed_tokens.weight
    analytic = weight.grad[7, 3].item()
    with torch.no_grad():
        kls = []
        for step in (1e-2, -2e-2):
            weight[7, 3] += step
            kls.append(policy.scorer(row, {"kl"}, reference.scorer.against(row))["kl"].sum().item())
    assert analytic == pytest.approx((kls[0] - kls[1]) / 2e-2, rel=0.05, abs=1e-2)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 400 * 4 * 14])
def test_the_distance_of_the_next_token_is_exact_in_value_and_gradient(chunk_bytes):
    seqs = sequences(contexts=2)
    scorer = models.load(make_llama(1), object(), device="cpu", precision="fp32").scorer
    scorer.chunk_bytes = chunk_bytes
    row = Row.of(pack(seqs, range(len(seqs)), "shared"), "cpu")
    found = scorer(row, {"distance"})["distance"]
    hidden, logits, _ = scorer.against(row)
    weight = scorer.causal.get_output_embeddings().weight.detach()
    unit = weight / weight.norm(dim=1, keepdim=True)
    apart = 1.0 - unit[row.target] @ unit.T  # [M, V]
    here = hidden.requires_grad_()
    expected = (logits(here).softmax(-1) * apart).sum(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert 0.0 < found.min().item() < found.max().item() < 2.0
    got = scorer._tokens(here, row.target, {"distance"}, None)["distance"]
    ours, theirs = (torch.autograd.grad(x.sum(), here)[0] for x in (got, expected))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_distance_between_orthogonal_tokens_is_what_the_right_one_lacks():
    policy = models.load(make_llama(1), object(), device="cpu", precision="fp32")
    head = policy.model.get_output_embeddings()
    logp = torch.randn(5, head.weight.shape[0], generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    target = torch.arange(5)
    head.weight = torch.nn.Parameter(3.0 * torch.eye(head.weight.shape[0]))
    found = policy.scorer._distance(logp, target)
    assert torch.allclose(found, 1 - logp.exp()[target, target], atol=1e-6)
    sure = torch.full_like(logp, -torch.inf).scatter(1, target[:, None], 0.0)
    assert torch.allclose(policy.scorer._distance(sure, target), torch.zeros(5), atol=1e-6)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 400 * 4 * 7])
def test_collision_is_the_log_of_summed_squares_and_has_no_gradient(chunk_bytes):
    seqs = sequences(contexts=2)
    policy = models.load(make_llama(1), object(), device="cpu", precision="fp32")
    policy.scorer.chunk_bytes = chunk_bytes
    row = Row.of(pack(seqs, range(len(seqs)), "shared"), "cpu")
    out = policy.scorer(row, {"collision"})
    with torch.no_grad():
        hidden, logits, _ = policy.scorer.against(row)
        expected = logits(hidden).softmax(-1).square().sum(-1).log()
    assert torch.allclose(out["collision"], expected, atol=1e-5)
    assert out["logp"].requires_grad
    assert not out["collision"].requires_grad


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_activation_is_the_reference_s_layers_put_on_0_to_1_over_each_response(layout):
    seqs = [
        *sequences(contexts=2),
        Sequence(np.arange(1, 5, dtype=np.int32), np.array([7], np.int32), np.ones(1, bool)),
    ]
    policy, other = make_llama(1), make_llama(2)
    scorer, reference = (models.load(m, object(), device="cpu", precision="fp32").scorer for m in (policy, other))
    micro = pack(seqs, range(len(seqs)), layout)
    row = Row.of(micro, "cpu")
    found = scorer(row, {"activation", "kl"}, reference.against(row, {"activation", "kl"}))
    assert torch.equal(found["kl"], scorer(row, {"kl"}, reference.against(row))["kl"])
    assert not found["activation"].requires_grad
    assert 0.0 <= found["activation"].min().item() < 0.5 < found["activation"].max().item() <= 1.0
    for i, s in enumerate(seqs):
        ids = torch.from_numpy(np.concatenate([s.context, s.ids]).astype(np.int64))[None]
        with torch.no_grad():
            _, *layers = other(ids, output_hidden_states=True).hidden_states
        before = len(s.context) - 1 + np.flatnonzero(s.trained)
        masks = [] if len(before) > 1 else [torch.ones(1)]
        for states in layers if len(before) > 1 else ():
            h = states[0, before].mean(-1)
            z = (h - h.mean()) / h.std()
            masks.append((z - z.min()) / (z.max() - z.min()))
        expected = torch.stack(masks).mean(0)
        assert torch.allclose(found["activation"][torch.from_numpy(micro.owner == i)], expected, atol=1e-4)


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 400 * 4 * 14])
def test_extrapolated_log_probs_are_those_of_mixed_logits_and_have_no_gradient(chunk_bytes):
    seqs = sequences(contexts=2)
    policy, reference = (models.load(make_llama(k), object(), device="cpu", precision="fp32").scorer for k in (1, 2))
    policy.chunk_bytes = chunk_bytes
    row = Row.of(pack(seqs, range(len(seqs)), "shared"), "cpu")
    names = {"extrapolated:0.5", "extrapolated:-1.0"}
    found = policy(row, names, reference.against(row, names))
    with torch.no_grad():
        own, other = (logits(hidden) for hidden, logits, _ in (policy.against(row), reference.against(row)))
        expected = (1.5 * own - 0.5 * other).log_softmax(-1).gather(1, row.target[:, None])[:, 0]
        of_ref = reference(row)["logp"]
    assert torch.allclose(found["extrapolated:0.5"], expected, atol=1e-4)
    assert torch.allclose(found["extrapolated:-1.0"], of_ref, atol=1e-4)
    assert found["logp"].requires_grad
    assert not found["extrapolated:0.5"].requires_grad
    with pytest.raises(ValueError, match="no reference was given"):
        policy(row, names)


def test_a_model_is_no_distance_from_itself():
    seqs = sequences(contexts=2)
    policy = models.load(make_llama(1), object(), device="cpu", precision="fp32")
    row = Row.of(pack(seqs, range(len(seqs)), "shared"), "cpu")
    assert float(policy.scorer(row, {"kl"}, policy.scorer.against(row))["kl"].abs().max()) < 1e-6


def test_a_loaded_model_can_be_used_outside_of_accord():
    seqs = sequences()
    model = make_llama()
    with torch.no_grad():
        expected = plain(model, seqs)
        policy = models.load(model, object(), device="cpu", precision="fp32")
        assert policy.scorer.layout == "shared"
        assert torch.allclose(plain(policy.model, seqs), expected, atol=1e-4)


# -- a hub that is not there ------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """Sets where the hub is, and forgets what was known of it."""
    from huggingface_hub import constants

    def set_to(endpoint: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)

    models._hub_fails.cache_clear()
    yield set_to
    models._hub_fails.cache_clear()


def test_a_hub_that_takes_no_connection_is_said_at_once(hub, monkeypatch, model_folder):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    hub(f"http://127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(AccordError, match=r"the hub cannot be reached \(.*\), and its cache does not hold the model"):
        models.load("someone/something")
    assert time.monotonic() - began < models.HUB_SECONDS
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: str(model_folder / file))
    assert models.resolve("someone/something") == model_folder


def test_a_slow_hub_is_a_hub(hub, monkeypatch):
    monkeypatch.setattr(models, "HUB_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and never answers
        hub(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert models.resolve("someone/something") == "someone/something"


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_attention_by_branches_is_attention_under_one_dense_mask(heads, dtype, bound):
    draw = torch.Generator().manual_seed(0)
    shapes = [(17, (5, 9, 0, 13)), (30, (7,)), (1, (70, 40)), (20, (0,))]
    trees, at = [], 0
    for context, responses in shapes:
        trees.append(attention.Tree(at, context, responses))
        at = trees[-1].stop
    layout = attention.Layout(tuple(trees))
    leaves = [
        torch.randn(1, n, at, 8, generator=draw, dtype=dtype).requires_grad_() for n in (heads[0], *2 * heads[1:])
    ]
    module = torch.nn.Module()
    with attention.attending(layout):
        found = attention.tree_attention(module, *leaves, None)[0]
    mask = torch.zeros(at, at, dtype=torch.bool)
    for tree in trees:
        here = slice(tree.start, tree.stop)
        mask[here, here] = layout.mask(tree, None, torch.device("cpu"))
    plain = torch.nn.functional.scaled_dot_product_attention(
        *leaves, attn_mask=mask, enable_gqa=heads[0] != heads[1]
    ).transpose(1, 2)
    assert torch.allclose(found, plain, rtol=0, atol=bound)
    weight = torch.randn(found.shape, generator=draw, dtype=dtype)
    for ours, theirs in zip(*(torch.autograd.grad((x * weight).sum(), leaves) for x in (found, plain)), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=bound)


def test_the_head_s_two_ways_to_a_log_prob_are_a_log_softmax_s_to_1e_12():
    """In float64, a second backward pass over a kept graph among them, and a head that is not trained."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 6, generator=draw, dtype=torch.float64).requires_grad_()
    weight = torch.randn(900, 6, generator=draw, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 900, (700,), generator=draw)
    coefficient = torch.randn(700, generator=draw, dtype=torch.float64)
    coefficient[::3] = 0.0
    plain = (hidden @ weight.T).log_softmax(-1).gather(1, target[:, None])[:, 0]
    expected = torch.autograd.grad(plain, (hidden, weight), coefficient)
    kept = logprobs._Picked.apply(hidden @ weight.T, target)
    frozen = logprobs._Frozen.apply(hidden, weight.detach(), target)
    for logp in (kept, frozen):
        assert torch.allclose(logp, plain, rtol=0, atol=1e-12)
    for again in (True, False):
        for got, want in zip(
            torch.autograd.grad(kept, (hidden, weight), coefficient, retain_graph=again), expected, strict=True
        ):
            assert torch.allclose(got, want, rtol=0, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(frozen, hidden, coefficient)[0], expected[0], rtol=0, atol=1e-12)


def test_a_trained_head_keeps_one_copy_of_its_logits_and_a_frozen_one_none():
    seqs = sequences()
    row = Row.of(pack(seqs, range(len(seqs)), "shared"), "cpu")
    kept: dict[bool, int] = {}
    for lora in (False, True):
        scorer = models.load(
            make_llama(), object(), device="cpu", precision="fp32", lora=models.LoraOptions() if lora else None
        ).scorer
        held: dict[int, int] = {}

        def keep(t: torch.Tensor, held: dict[int, int] = held) -> torch.Tensor:
            if t.ndim == 2 and t.shape == (len(row.target), 400):
                held[t.untyped_storage().data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            scorer(row)
        kept[lora] = sum(held.values())
    assert kept == {False: len(row.target) * 400, True: 0}


def test_windows_that_the_mask_alone_knows_are_not_overlooked():
    """Phimoe tells its attention nothing of them; windows longer than what is tried at loading would be ignored."""
    import transformers

    torch.manual_seed(0)
    config = transformers.PhimoeConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, sliding_window=24,
    )  # fmt: skip
    policy = models.load(transformers.PhimoeForCausalLM(config).eval(), object(), device="cpu", precision="fp32")
    assert policy.scorer.layout == "padded"
    assert any("windows that the mask alone knows" in line for line in policy.told)
