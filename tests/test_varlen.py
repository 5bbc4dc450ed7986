"""Attention in two calls a layer, for a GPU: its arithmetic, with the kernels' contract written out on the CPU."""

from __future__ import annotations

import math

import pytest
import torch

from accord.engine import attention, varlen
from accord.engine.attention import Layout, Tree
from tests.conftest import make_llama


def _parts(ends_q, ends_k):
    a, b = ends_q.tolist(), ends_k.tolist()
    return zip(map(slice, a, a[1:]), map(slice, b, b[1:]), strict=False)


def _scores(q, k, causal, scale):
    """[H, n, m] of one sequence: n queries and m keys, the last of each at the same place if causal."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("nhd,mhd->hnm", q, k) * scale
    if causal:
        scores = scores.masked_fill(
            torch.ones(q.shape[0], k.shape[0]).triu(1 + k.shape[0] - q.shape[0]).bool(), -math.inf
        )
    return scores


def _forward(q, k, v, ends_q, ends_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *rest):
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float))
    assert max_q == ends_q.diff().max()
    assert max_k == ends_k.diff().max()
    for a, b in _parts(ends_q, ends_k):
        scores = _scores(q[a], k[b], is_causal, scale)
        lse[:, a] = scores.logsumexp(-1)
        values = v[b].repeat_interleave(q.shape[1] // v.shape[1], 1)
        out[a] = torch.einsum("hnm,mhd->nhd", scores.softmax(-1), values)
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def _backward(g, q, k, v, out, lse, ends_q, ends_k, max_q, max_k, is_causal, rng_state, scale=None, window_size=None):
    """The kernel's: probabilities are exp(score - lse) for the lse that is given, and D = sum(g out)."""
    dq, dk, dv = (torch.zeros_like(t) for t in (q, k, v))
    times = q.shape[1] // k.shape[1]
    for a, b in _parts(ends_q, ends_k):
        p = (_scores(q[a], k[b], is_causal, scale) - lse[:, a, None]).exp()
        keys, values = (t[b].repeat_interleave(times, 1) for t in (k, v))
        ds = p * (torch.einsum("nhd,mhd->hnm", g[a], values) - (g[a] * out[a]).sum(-1).T[..., None]) * scale
        dq[a] = torch.einsum("hnm,mhd->nhd", ds, keys)
        for into, part in ((dk, torch.einsum("hnm,nhd->mhd", ds, q[a])), (dv, torch.einsum("hnm,nhd->mhd", p, g[a]))):
            into[b] = part.unflatten(1, (-1, times)).sum(2)
    return dq, dk, dv


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.setattr(varlen, "kernels", lambda: (_forward, _backward))


def test_the_kernels_are_called_as_torch_declares_them():
    """Names and order of the arguments: the stand-ins of this file are called in the kernels' place."""
    for ours, theirs in zip((_forward, _backward), varlen.kernels(), strict=True):
        names = [a.name for a in theirs.default._schema.arguments]
        ours_names = list(ours.__code__.co_varnames[: ours.__code__.co_argcount])
        same = {"g": "grad_out", "q": "query", "k": "key", "v": "value", "ends_q": "cu_seq_q", "ends_k": "cu_seq_k"}
        assert [same.get(n, n) for n in ours_names] == names[: len(ours_names)]
    assert names[-1] == "window_size"
    assert [a.name for a in varlen.kernels()[0].default._schema.arguments][10] == "enable_gqa"


TREES = {
    "pairs": ((5, (3, 4)), (2, (1, 6))),
    "lists": ((4, (3, 1, 5, 2)),),
    "singles among pairs": ((6, (3,)), (4, (2, 2)), (7, ())),
    "an empty response": ((3, (2, 0, 4)), (3, (0, 2))),
    "only singles": ((6, (3,)), (4, (2,))),
}


def trees_of(shapes) -> tuple[Tree, ...]:
    found, at = [], 0
    for context, responses in shapes:
        found.append(Tree(at, context, responses))
        at = found[-1].stop
    return tuple(found)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("shapes", TREES.values(), ids=list(TREES))
def test_two_calls_a_layer_give_what_masks_give(shapes, groups, kernels):
    trees = trees_of(shapes)
    draw = torch.Generator().manual_seed(1)
    q, k, v = (
        torch.randn(1, n, trees[-1].stop, 8, dtype=torch.float64, generator=draw).requires_grad_()
        for n in (4, groups, groups)
    )
    layout = Layout(trees)
    expected = attention.by_calls(q, k, v, layout, 0.3, None)
    found = varlen.Varlen.apply(q, k, v, layout.spans_on(q.device), 0.3)
    push = torch.randn(expected.shape, dtype=torch.float64, generator=draw)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(o, (q, k, v), push) for o in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_whole_model_goes_that_way(kernels, monkeypatch):
    """Loss and gradients of a packed row are those of the CPU's own kernel."""
    called = []
    monkeypatch.setattr(varlen, "pays", lambda *a: True)
    trees = trees_of(TREES["singles among pairs"])
    model = make_llama()
    model.set_attn_implementation(attention.NAME)
    ids = torch.randint(400, (1, trees[-1].stop), generator=torch.Generator().manual_seed(0))
    found = []
    for here in (False, True):
        monkeypatch.setattr(varlen, "fits", lambda query, here=here: called.append(here) or here)
        model.zero_grad()
        with attention.attending(Layout(trees)):
            logits = model(input_ids=ids, use_cache=False).logits
        logits.square().mean().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    assert called == [False] * 2 + [True] * 2  # once a layer
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


LOOK = (attention._calls, trees_of(TREES["pairs"]), 4, 2, 8, torch.float32, torch.device("cpu"))


def test_the_way_is_chosen_by_the_clock(kernels, monkeypatch):
    """Equal ways: the faster one is taken."""
    took = iter([*[1.0] * 5, *[2.0] * 5, *[2.0] * 5, *[1.0] * 5])
    monkeypatch.setattr(varlen, "_seconds", lambda *a: next(took))
    assert varlen.pays.__wrapped__(*LOOK) is False
    assert varlen.pays.__wrapped__(*LOOK) is True


def test_a_kernel_that_differs_or_fails_is_never_used(kernels, monkeypatch):
    def wrong(*given):
        out, lse, state = _forward(*given)
        return out * 1.1, lse, state

    monkeypatch.setattr(varlen, "kernels", lambda: (wrong, _backward))
    with pytest.warns(UserWarning, match="other numbers"):
        assert varlen.pays.__wrapped__(*LOOK) is False

    def broken(*given):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(varlen, "kernels", lambda: (broken, _backward))
    with pytest.warns(UserWarning, match="no kernel"):
        assert varlen.pays.__wrapped__(*LOOK) is False
