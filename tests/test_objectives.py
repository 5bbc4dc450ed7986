"""What the objectives must be to each other and to the worlds where the answer is known."""

from __future__ import annotations

import ast
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from accord.errors import ConfigError
from accord.objectives import coupled, demos, divergences, example, moving, offsets, pairs, points, sums, table, tokens
from accord.objectives._links import at_quantiles_of
from accord.objectives.example import scalar
from accord.objectives.kinds import Demos, Groups, Pairs, Points
from tests.test_laws import make

ZERO = scalar(0.0)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(n: int, seed: int) -> Tensor:
    return -12 * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_pairs(n: int = 50, seed: int = 0) -> tuple[Pairs, Pairs]:
    """Pairs with random strengths, and their reference."""
    length = torch.full((n,), 5.0, dtype=torch.float64)
    strength = -random(n, seed + 4) / 12
    made = Pairs(random(n, seed), random(n, seed + 1), length, length, strength, length, length)
    return made, replace(made, chosen=random(n, seed + 2), rejected=random(n, seed + 3))


def some_points(value: Tensor | float = 1.0, n: int = 50, seed: int = 0) -> tuple[Points, Points]:
    """Points of one value, and their reference."""
    made = Points(random(n, seed), torch.full((n,), 5.0, dtype=torch.float64), torch.ones(n).double() * value)
    return made, replace(made, logp=random(n, seed + 1))


def swapped(p: Pairs) -> Pairs:
    return replace(p, chosen=p.rejected, rejected=p.chosen, strength=1 - p.strength)


def at_margin(delta: Tensor, strength: float = 1.0) -> tuple[Pairs, Pairs]:
    """Pairs whose Delta is `delta`, against a reference of zeros."""
    zero = torch.zeros_like(delta)
    made = Pairs(delta, zero, zero, zero, zero + strength, zero, zero)
    return made, replace(made, chosen=zero)


def slope(loss, x: Tensor) -> Tensor:
    """d loss / d x, element by element."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x).sum(), x)[0]


close = torch.testing.assert_close


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_rows_that_are_dpo_at_one_setting_are_dpo_to_the_bit() -> None:
    p, ref = some_pairs()
    plain = pairs.dpo(p, ref)
    assert torch.equal(pairs.cdpo(p, ref, label_smoothing=0.0), plain)
    assert torch.equal(pairs.soft_dpo(replace(p, strength=torch.ones(50).double()), ref), plain)
    assert torch.equal(sums.dpo_sft(p, ref, alpha=0.0), plain)
    close(offsets.flex_dpo(p, ref, beta_chosen=0.1, beta_rejected=0.1), plain)


def test_a_strength_of_one_minus_epsilon_is_label_smoothing() -> None:
    p, ref = some_pairs()
    soft = pairs.soft_dpo(replace(p, strength=torch.full((50,), 0.9, dtype=torch.float64)), ref)
    close(soft, pairs.cdpo(p, ref, label_smoothing=0.1))


def test_swapping_the_pair_and_its_strength_changes_nothing() -> None:
    p, ref = some_pairs()
    close(pairs.soft_dpo(swapped(p), swapped(ref)), pairs.soft_dpo(p, ref))


def test_dpo_of_the_swapped_pair_is_that_of_the_negative_margin() -> None:
    p, ref = some_pairs()
    margin = 0.1 * ((p.chosen - ref.chosen) - (p.rejected - ref.rejected))
    close(pairs.dpo(swapped(p), swapped(ref)), -F.logsigmoid(-margin))
    close(pairs.dpo(swapped(p), swapped(ref)) - pairs.dpo(p, ref), margin)


def test_dpo_ranks_a_pair_right_exactly_when_its_loss_is_below_the_reference_s_bound() -> None:
    """2405.19534, theorem 4.1: a >= b iff L <= -log sigmoid(beta c), c = log pi_ref(y_l) / pi_ref(y_w)."""
    p, ref = some_pairs(500)
    bound = -F.logsigmoid(0.1 * (ref.rejected - ref.chosen))
    assert torch.equal(p.chosen >= p.rejected, pairs.dpo(p, ref) <= bound)


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.4])
def test_cdpo_rests_at_the_log_odds_of_its_labels(eps: float) -> None:
    delta = vector(math.log((1 - eps) / eps) / 0.1)
    close(slope(lambda d: pairs.cdpo(*at_margin(d), label_smoothing=eps), delta), vector(0.0))
    entropy = -eps * math.log(eps) - (1 - eps) * math.log(1 - eps)
    close(pairs.cdpo(*at_margin(delta), label_smoothing=eps), vector(entropy))


@pytest.mark.parametrize(("p", "nats"), [(0.55, 2.0), (0.6, 4.05), (0.7, 8.5), (0.9, 22.0), (0.99, 46.0)])
def test_soft_dpo_rests_at_the_log_odds_of_the_strength(p: float, nats: float) -> None:
    delta = vector(math.log(p / (1 - p)) / 0.1)
    assert delta.item() == pytest.approx(nats, abs=0.06)
    close(slope(lambda d: pairs.soft_dpo(*at_margin(d, p)), delta), vector(0.0))


def test_soft_dpo_of_even_strength_draws_the_margin_to_zero_from_both_sides() -> None:
    delta = vector(-30.0, -2.0, 2.0, 30.0)
    loss = pairs.soft_dpo(*at_margin(delta, 0.5))
    close(loss, loss.flip(0))
    assert slope(lambda d: pairs.soft_dpo(*at_margin(d, 0.5)), delta).sign().tolist() == [-1, -1, 1, 1]


def test_soft_dpo_with_a_bradley_terry_judge_has_the_rlhf_optimum() -> None:
    """OSP with a Bradley-Terry judge: any connected set of pairs gives pi_ref exp(r / beta) / Z."""
    ref = torch.log_softmax(random(6, 0) / 4, 0)
    reward = torch.linspace(-0.2, 0.2, 6).double()
    best = torch.softmax(ref + reward / 0.1, 0)
    for edges in ([(i, i + 1) for i in range(5)], [(i, j) for i in range(6) for j in range(i)]):
        w, l = torch.tensor(edges).T
        zero = torch.zeros(len(edges)).double()

        def loss(logits: Tensor, w=w, l=l, zero=zero) -> Tensor:
            logp = torch.log_softmax(logits, 0)
            strength = torch.sigmoid(reward[w] - reward[l])
            p = Pairs(logp[w], logp[l], zero, zero, strength, zero, zero)
            return pairs.soft_dpo(p, replace(p, chosen=ref[w], rejected=ref[l])).mean()

        found = torch.softmax(minimise(loss, ref.clone()), 0)
        assert 0.5 * (found - best).abs().sum() < 1e-6


def test_ipo_is_least_at_half_over_tau_and_symmetric_about_it() -> None:
    target = 1 / (2 * 0.2)
    close(pairs.ipo(*at_margin(vector(target)), tau=0.2), vector(0.0))
    low, high = pairs.ipo(*at_margin(vector(target - 3, target + 3)), tau=0.2)
    close(low, high)


def test_slic_hinge_rests_beyond_delta_and_is_a_perceptron_at_zero() -> None:
    p, _ = some_pairs()
    margin = p.chosen - p.rejected
    grad = slope(lambda b: pairs.slic_hf(replace(p, rejected=b), delta=2.0), p.rejected)
    assert torch.equal(grad, (margin < 2.0).double())
    close(pairs.slic_hf(p, delta=0.0, alpha=0.0), (-margin).clamp(min=0))


def test_flex_dpo_without_a_push_on_rejected_is_point_wise_on_chosen() -> None:
    p, ref = some_pairs()
    as_points = Points(p.chosen, p.chosen_length, torch.ones(50).double())
    one_sided = offsets.flex_dpo(p, ref, beta_rejected=0.0)
    close(one_sided, points.pointwise_dpo(as_points, replace(as_points, logp=ref.chosen), ZERO))


def test_flex_dpo_scales_the_push_on_rejected() -> None:
    p, ref = some_pairs()
    up = slope(lambda a: offsets.flex_dpo(replace(p, chosen=a), ref), p.chosen)
    down = slope(lambda b: offsets.flex_dpo(replace(p, rejected=b), ref), p.rejected)
    close(down / up, torch.full((50,), -0.8).double())


def test_dpo_sft_adds_alpha_to_the_pull_on_chosen_and_keeps_it_on_solved_pairs() -> None:
    p, ref = some_pairs()
    with_sft = slope(lambda a: sums.dpo_sft(replace(p, chosen=a), ref, alpha=0.3), p.chosen)
    plain = slope(lambda a: pairs.dpo(replace(p, chosen=a), ref), p.chosen)
    close(with_sft, plain - 0.3)
    solved = at_margin(vector(1e4))
    close(slope(lambda a: sums.dpo_sft(replace(solved[0], chosen=a), solved[1], alpha=0.3), vector(1e4)), vector(-0.3))


@pytest.mark.parametrize(("beta", "powers"), [(0.1, (0.1, -0.9)), (0.5, (0.5, -0.5)), (1.0, (1.0, 0.0))])
def test_degradation_in_probability_space_has_the_exponents_of_3d_properties(beta: float, powers: tuple) -> None:
    """2406.07327, corollaries 1 and 2: as pi- -> 0, dL/dpi+ ~ (pi-)^beta and dL/dpi- ~ (pi-)^(beta - 1)."""

    def gradients(worse: float) -> tuple[float, float]:
        probability = vector(0.5, worse).requires_grad_()
        a, b = probability.log()
        p = replace(at_margin(vector(0.0))[0], chosen=a[None], rejected=b[None])
        ref = replace(p, chosen=vector(0.12).log(), rejected=vector(0.12).log())
        grad = torch.autograd.grad(pairs.dpo(p, ref, beta=beta).sum(), probability)[0]
        assert (grad[1] / grad[0]).item() == pytest.approx(-0.5 / worse)
        return grad[0].item(), grad[1].item()

    (up, down), (up_later, down_later) = gradients(1e-40), gradients(1e-42)
    assert math.log(up_later / up) / math.log(1e-2) == pytest.approx(powers[0], abs=1e-3)
    assert math.log(down_later / down) / math.log(1e-2) == pytest.approx(powers[1], abs=1e-3)


# --- rows that become DPO, and links that are not DPO's ---------------------------------------------------------------


def test_every_row_of_the_family_is_dpo_where_its_piece_is_taken_out() -> None:
    p, ref = some_pairs()
    plain, sure = pairs.dpo(p, ref), replace(p, strength=torch.ones(50).double())
    kl, noise = replace(p, chosen=-p.chosen, rejected=-p.rejected), torch.rand(50).double()
    stats, _ = coupled.dynamic_beta(p, ref, noise, None, sensitivity=0.0, keep=1.0)
    same = {
        "robust": pairs.robust(p, ref, label_smoothing=0.0),
        "rso_sigmoid": pairs.rso_sigmoid(p, ref, beta=0.1),
        "fdpo": divergences.fdpo(p, ref, divergence="reverse_kl"),
        "odpo": offsets.odpo(replace(p, score_chosen=p.chosen_length + 1), ref, alpha=0.0),
        "dpop": offsets.dpop(p, ref, beta=0.1, penalty=0.0),
        "dpo_norm": offsets.dpo_norm(p, ref, beta=0.1),
        "dpo_gamma": offsets.dpo_gamma(p, ref, gamma=1.0),
        "r_dpo": offsets.r_dpo(p, ref),  # lengths are equal here
        "tdpo2": tokens.tdpo2(p, ref, kl, alpha=0.0),
        "wpo": tokens.wpo(p, ref, p, beta=0.1),  # log-probs are what a draw is expected to have
        "irpo": sums.irpo(p, ref, alpha=0.0),
        "mpo": sums.mpo(p, ref, dpo_weight=1.0, bco_weight=0.0, sft_weight=0.0),
        "anchored_dpo": sums.anchored_dpo(p, ref, weight=0.0),
        "beta_dpo": coupled.beta_dpo(p, ref, noise, stats),
        "upo": moving.upo(sure, ref, alpha=0.0),
        "selfie": moving.selfie(p, ref, p, {"threshold": scalar(-1e9), "doubt": scalar(0.3)}),
        "spin": moving.spin(p, ref),
        "tr_dpo": moving.tr_dpo(p, ref),
    }
    for name, loss in same.items():
        close(loss, plain, msg=name)


@pytest.mark.parametrize("eps", [0.05, 0.2, 0.4])
def test_robust_is_unbiased_under_flipped_labels_and_its_push_never_fades(eps: float) -> None:
    p, ref = some_pairs()
    right = pairs.robust(p, ref, label_smoothing=eps)
    wrong = pairs.robust(swapped(p), swapped(ref), label_smoothing=eps)
    close((1 - eps) * right + eps * wrong, pairs.dpo(p, ref))
    strength = torch.full((50,), (1 - eps) / (1 - 2 * eps)).double()
    close(pairs.soft_dpo(replace(p, strength=strength), ref), right)
    solved = vector(1e4)
    push = slope(lambda d: pairs.robust(*at_margin(d), label_smoothing=eps), solved)
    close(push, vector(-0.1 * eps / (1 - 2 * eps)))


def test_rso_s_hinge_rests_beyond_a_reward_of_one() -> None:
    delta = vector(-100.0, 19.0, 21.0)
    close(slope(lambda d: pairs.rso_hinge(*at_margin(d)), delta), vector(-0.05, -0.05, 0.0))


@pytest.mark.parametrize("eps", [0.001, 0.1])
def test_exo_rests_where_cdpo_does_at_zero_and_gives_up_on_hopeless_pairs(eps: float) -> None:
    delta = vector(math.log((1 - eps) / eps) / 0.1)
    close(divergences.exo_pref(*at_margin(delta), label_smoothing=eps), vector(0.0))
    close(slope(lambda d: pairs.cdpo(*at_margin(d), label_smoothing=eps), delta), vector(0.0))
    pull = slope(lambda d: divergences.exo_pref(*at_margin(d), label_smoothing=eps), vector(-1e3, 0.0, 1e3))
    assert pull[0].abs() < 1e-30 < pull[1].abs()
    assert pull[2].abs() < 1e-30


def test_exo_on_two_scored_responses_is_exo_on_the_pair() -> None:
    p, ref = some_pairs()
    scores = torch.tensor([0.5 * math.log(0.9 / 0.1), 0.0]).double().expand(50, 2)
    group = Groups(torch.stack([p.chosen, p.rejected], 1), scores, scores, torch.ones(50, 2, dtype=torch.bool))
    base = replace(group, logp=torch.stack([ref.chosen, ref.rejected], 1))
    close(divergences.exo_rw(group, base), divergences.exo_pref(p, ref, beta=0.5, label_smoothing=0.1))


def test_discopop_rises_where_the_margin_is_small_and_nowhere_else() -> None:
    m = torch.linspace(-2, 2, 4001).double()
    rise = slope(lambda d: pairs.discopop(*at_margin(d)), m / 0.05) / 0.05
    assert rise[2000].item() == pytest.approx(0.784, abs=1e-3)
    rising = m[rise > 0]
    assert rising.min().item() == pytest.approx(-0.119, abs=2e-3)
    assert rising.max().item() == pytest.approx(0.072, abs=2e-3)
    assert rise.min() > -1
    assert rise.max() < 0.82
    far = at_margin(vector(-400.0, 400.0))
    close(pairs.discopop(*far), vector(F.softplus(scalar(20.0)).item(), math.exp(-20)))


def test_reward_aware_losses_are_zero_at_the_gap_of_the_scores_and_are_kin_to_soft_labels_and_exo() -> None:
    p, ref = some_pairs()
    p = replace(p, score_chosen=random(50, 8) / 4, score_rejected=random(50, 9) / 4)
    gap = p.score_chosen - p.score_rejected
    at_gap = replace(p, chosen=gap / 0.1, rejected=gap * 0), replace(p, chosen=gap * 0, rejected=gap * 0)
    for distance in ("backward_kl", "forward_kl", "square"):
        close(divergences.rpo_reward_aware(*at_gap, distance=distance), gap * 0, atol=1e-12, rtol=0)
    t = torch.sigmoid(gap)
    entropy = -t * t.log() - (1 - t) * (1 - t).log()
    close(divergences.rpo_reward_aware(p, ref), pairs.soft_dpo(replace(p, strength=t), ref) - entropy)
    nine = replace(p, score_chosen=gap * 0 + math.log(9), score_rejected=gap * 0)
    close(
        divergences.rpo_reward_aware(nine, ref, distance="forward_kl"),
        divergences.exo_pref(p, ref, label_smoothing=0.1),
    )


def test_f_divergences_meet_at_their_ends() -> None:
    p, ref = some_pairs()
    close(divergences.fdpo(p, ref, divergence="alpha", alpha=1e-9), pairs.dpo(p, ref), rtol=1e-5, atol=0)
    close(divergences.fdpo(p, ref, divergence="alpha", alpha=1.0), divergences.fdpo(p, ref, divergence="forward_kl"))
    at_zero = [
        slope(lambda d, k=k: divergences.fdpo(*at_margin(d), divergence=k), vector(0.0)) for k in ("js", "alpha")
    ]
    plain = slope(lambda d: pairs.dpo(*at_margin(d)), vector(0.0))
    close(at_zero[0], plain / 2)
    close(at_zero[1], plain)


# --- offsets ----------------------------------------------------------------------------------------------------------


def test_an_offset_moves_the_margin_by_itself_and_a_gap_of_nothing_asks_for_nothing() -> None:
    delta, gap = vector(3.0, 3.0, 3.0), vector(5.0, 0.0, -1.0)
    p, ref = at_margin(delta)
    p = replace(p, score_chosen=gap)
    moved = offsets.odpo(p, ref, scale="identity", alpha=2.0)
    close(moved, pairs.dpo(*at_margin(delta - 2.0 * gap / 0.1)))
    log = offsets.odpo(p, ref)
    close(log, vector(pairs.dpo(*at_margin(vector(3.0 - 10 * math.log(5))))[0].item(), 0.0, 0.0))
    close(slope(lambda a: offsets.odpo(replace(p, chosen=a), ref), p.chosen)[1:], vector(0.0, 0.0))


def test_dpop_is_dpo_above_the_reference_and_pulls_chosen_up_where_it_fell() -> None:
    p, ref = some_pairs()
    risen = replace(p, chosen=ref.chosen + 1.0)
    close(offsets.dpop(risen, ref, beta=0.1), pairs.dpo(risen, ref))
    fallen = replace(p, chosen=ref.chosen - 1.0)
    up = slope(lambda a: offsets.dpop(replace(fallen, chosen=a), ref), fallen.chosen)
    down = slope(lambda b: offsets.dpop(replace(fallen, rejected=b), ref), fallen.rejected)
    close(up / down, torch.full((50,), -51.0).double())


def test_dpo_norm_on_equal_lengths_is_dpo_of_a_smaller_beta_and_with_an_even_reference_it_is_simpo() -> None:
    p, ref = some_pairs()
    mean = {name: replace(q, chosen=q.chosen / 5, rejected=q.rejected / 5) for name, q in (("p", p), ("ref", ref))}
    close(offsets.dpo_norm(mean["p"], mean["ref"]), pairs.dpo(p, ref, beta=1.0))
    even = replace(p, chosen=p.chosen * 0 - 3.0, rejected=p.chosen * 0 - 3.0)
    close(offsets.dpo_norm(p, even, beta=2.0), table.function("simpo")(p, beta=2.0, gamma=0.0))


def test_a_share_of_the_reference_of_zero_is_none_and_a_hybrid_one_chooses() -> None:
    p, ref = some_pairs()
    without = -F.logsigmoid(0.1 * (p.chosen - p.rejected))
    close(offsets.dpo_gamma(p, ref, gamma=0.0), without)
    right = ref.chosen >= ref.rejected
    assert 0 < right.sum() < 50
    close(offsets.hybrid_dpo(p, ref), torch.where(right, pairs.dpo(p, ref), without))


def test_length_regularised_dpo_finds_the_optimum_of_the_reward_less_a_price_a_token() -> None:
    """max E[R - alpha |y|] - beta KL has log pi = log pi_ref + (R - alpha |y|) / beta + const, R that of the labels."""
    beta, alpha, length = 0.5, 0.1, vector(2, 9, 5, 14)
    reward = vector(0.3, 0.9, -0.2, 1.0)
    best = torch.softmax(REF.log() + (reward - alpha * length) / beta, 0)
    w, l = torch.tensor([(i, j) for i in range(4) for j in range(4) if i != j]).T
    zero = torch.zeros(len(w)).double()

    def loss(logits: Tensor) -> Tensor:
        logp = torch.log_softmax(logits, 0)
        p = Pairs(logp[w], logp[l], length[w], length[l], zero + 1, zero, zero)
        ref = replace(p, chosen=REF.log()[w], rejected=REF.log()[l])
        return (torch.sigmoid(reward[w] - reward[l]) * offsets.r_dpo(p, ref, beta=beta, alpha=alpha)).sum()

    close(torch.softmax(minimise(loss, REF.log()), 0), best, atol=1e-5, rtol=0)


# --- tokens -----------------------------------------------------------------------------------------------------------


def some_tokens(seed: int = 0, n: int = 20, width: int = 6) -> Pairs:
    """Token log-probs of pairs of different lengths."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.Generator().manual_seed(99)
    values = [-2 * torch.rand(n, width, generator=g, dtype=torch.float64) for _ in range(2)]
    masks = [torch.arange(width) < torch.randint(1, width + 1, (n, 1), generator=lengths) for _ in range(2)]
    one = torch.ones(n).double()
    return Pairs(*values, *masks, one, one, one)


def summed(t: Pairs) -> Pairs:
    sums_of = [
        torch.where(m, x, 0.0).sum(-1) for x, m in ((t.chosen, t.chosen_length), (t.rejected, t.rejected_length))
    ]
    return replace(
        t, chosen=sums_of[0], rejected=sums_of[1],
        chosen_length=t.chosen_length.sum(-1), rejected_length=t.rejected_length.sum(-1),
    )  # fmt: skip


def test_tdpo_forms_have_one_value_and_two_gradients() -> None:
    p, ref = some_pairs()
    kl = replace(p, chosen=-random(50, 6), rejected=-random(50, 7))
    close(tokens.tdpo1(p, ref, kl), tokens.tdpo2(p, ref, kl, alpha=1.0))
    first = slope(lambda k: tokens.tdpo1(p, ref, replace(kl, chosen=k)), kl.chosen)
    assert (first < 0).all()
    leaf = kl.chosen.clone().requires_grad_()
    assert not tokens.tdpo2(p, ref, replace(kl, chosen=leaf)).requires_grad


def test_a_mask_of_ones_is_tdpo_and_one_of_zeros_learns_nothing() -> None:
    t, ref, kl = some_tokens(0), some_tokens(1), some_tokens(2)
    kl = replace(kl, chosen=-kl.chosen, rejected=-kl.rejected)
    none = replace(t, chosen=t.chosen * 0, rejected=t.rejected * 0)
    shut = replace(none, chosen=none.chosen - 1, rejected=none.rejected - 1)
    close(tokens.sparsepo(summed(t), t, ref, kl, none, sparsity=0.0), tokens.tdpo1(summed(t), summed(ref), summed(kl)))
    close(tokens.sparsepo(summed(t), t, ref, none, none, sparsity=0.0), pairs.dpo(summed(t), summed(ref)))

    def closed(x: Tensor) -> Tensor:
        return tokens.sparsepo(summed(t), replace(t, chosen=x), ref, kl, shut)

    close(closed(t.chosen), torch.full((20,), math.log(2)).double())
    assert not slope(closed, t.chosen).any()


def test_a_second_mask_that_is_shut_makes_dpo_and_activations_of_one_make_tdpo() -> None:
    t, ref, kl = some_tokens(0), some_tokens(1), some_tokens(2)
    kl = replace(kl, chosen=-kl.chosen, rejected=-kl.rejected)
    none = replace(t, chosen=t.chosen * 0, rejected=t.rejected * 0)
    one, shut = (replace(none, chosen=none.chosen + x, rejected=none.rejected + x) for x in (1, -1))
    given = (summed(t), t, ref, kl)
    close(tokens.sparsepo_independent(*given, none, shut, sparsity=0.0), pairs.dpo(summed(t), summed(ref)))
    held = tokens.sparsepo_independent(*given, shut, none, sparsity=0.0)
    close(held, torch.log1p(torch.exp(-0.1 * (summed(kl).chosen - summed(kl).rejected))))
    close(tokens.sparsepo_mapo(*given, one), tokens.tdpo1(summed(t), summed(ref), summed(kl)))
    close(tokens.sparsepo_mapo(*given, none), torch.full((20,), math.log(2)).double())


def test_a_mask_head_of_zeros_has_a_gradient() -> None:
    t, ref, kl = some_tokens(0), some_tokens(1), some_tokens(2)
    none = replace(t, chosen=t.chosen * 0, rejected=t.rejected * 0)
    grad = slope(lambda h: tokens.sparsepo(summed(t), t, ref, kl, replace(none, chosen=h)), none.chosen)
    assert (grad != 0).equal(t.chosen_length)


def test_length_desensitised_dpo_counts_the_tail_less_or_not_at_all() -> None:
    t, ref = some_tokens(0), some_tokens(1)
    p, base = summed(t), summed(ref)
    close(tokens.ld_dpo(p, base, t, ref, alpha=1.0), pairs.dpo(p, base))
    even = p.chosen_length == p.rejected_length
    assert even.any()
    close(tokens.ld_dpo(p, base, t, ref, alpha=0.3)[even], pairs.dpo(p, base)[even])

    def whole(x: Tensor) -> Tensor:
        moved = replace(t, chosen=x)
        return tokens.ld_dpo(summed(moved), base, moved, ref, alpha=0.0)

    grad = slope(whole, t.chosen)
    public = torch.arange(6) < torch.minimum(p.chosen_length, p.rejected_length)[:, None]
    assert torch.equal(grad != 0, public)


def test_weights_of_wpo_are_one_for_an_even_policy_cut_at_one_and_carry_no_gradient() -> None:
    p, ref = some_pairs()
    even = replace(p, chosen=p.chosen_length * -math.log(7), rejected=p.rejected_length * -math.log(7))
    close(tokens.wpo(even, ref, even), pairs.dpo(even, ref, beta=0.01))
    greedy = replace(p, chosen=p.chosen - 10.0)  # collisions below the log-probs: tokens likelier than a draw's
    close(tokens.wpo(p, ref, greedy), pairs.dpo(p, ref, beta=0.01))
    close(tokens.wpo(p, ref, greedy, max_weight=100.0), math.exp(2) * pairs.dpo(p, ref, beta=0.01), rtol=1e-9, atol=0)
    rare = replace(p, chosen=p.chosen + 10.0)
    pull = slope(lambda a: tokens.wpo(replace(p, chosen=a), ref, rare), p.chosen)
    close(pull, math.exp(-2) * slope(lambda a: pairs.dpo(replace(p, chosen=a), ref, beta=0.01), p.chosen))


# --- sums -------------------------------------------------------------------------------------------------------------


def test_cal_dpo_is_dpo_of_beta_one_and_hard_sppo() -> None:
    p, ref = some_pairs()
    expected = pairs.dpo(p, ref, beta=1.0) + 0.3 * table.function("sppo_hard")(p, ref, beta=0.1)
    close(sums.cal_dpo(p, ref, beta=0.1, calibration=0.3), expected)


def test_mpo_and_anchors_are_sums_of_dpo_and_point_wise_dpo_of_each_side() -> None:
    p, ref = some_pairs()
    good, bad = (Points(x, p.chosen_length, torch.full((50,), z).double()) for x, z in ((p.chosen, 1), (p.rejected, 0)))
    sides = points.pointwise_dpo(good, replace(good, logp=ref.chosen), ZERO) + points.pointwise_dpo(
        bad, replace(bad, logp=ref.rejected), ZERO
    )
    close(sums.anchored_dpo(p, ref, weight=0.7), pairs.dpo(p, ref) + 0.7 * sides)
    close(sums.mpo(p, ref), 0.8 * pairs.dpo(p, ref) + 0.2 * sides - p.chosen / 5)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_sorting_keeps_the_sum_of_the_margins_and_a_batch_of_one_is_dpo() -> None:
    p, ref = some_pairs()
    one = p[:1], ref[:1]
    close(coupled.aot_paired(*one), pairs.dpo(*one, beta=0.01))
    linear = torch.expm1(coupled.aot_paired(p, ref)).log() / -0.01  # the margin of each loss
    close(linear.sum(), ((p.chosen - ref.chosen) - (p.rejected - ref.rejected)).sum())
    other = torch.randperm(50, generator=torch.Generator().manual_seed(5))
    shuffled = replace(ref, chosen=ref.chosen[other], rejected=ref.rejected[other])
    close(coupled.aot_paired(p, shuffled), coupled.aot_paired(p, ref), msg="which reference is whose does not matter")


def test_unpaired_transport_is_indifferent_to_who_is_compared_and_takes_unequal_counts() -> None:
    value = (torch.arange(50) % 2).double()
    p, ref = some_points(value)
    loss = coupled.aot_unpaired(p, ref)
    good, rho = value > 0.5, p.logp - ref.logp
    expected = -F.logsigmoid(0.01 * (rho[good].sort().values - rho[~good].sort().values)).mean()
    close(loss.mean(), expected)
    close(loss[good].mean(), loss[~good].mean())
    few = torch.cat([torch.arange(50)[good], torch.arange(50)[~good][:7]])
    uneven = coupled.aot_unpaired(p[few], ref[few])
    assert uneven.shape == (32,)
    assert uneven.isfinite().all()
    close(at_quantiles_of(vector(0.0, 1.0), of=vector(5.0, 7.0, 6.0, 9.0)), vector(0.0, 0.75, 0.25, 1.0))


def test_the_dynamic_beta_follows_the_margin_and_outliers_are_left_out() -> None:
    delta = torch.cat([torch.linspace(-1, 1, 49).double(), vector(1e3)])
    p, ref = at_margin(delta)
    state = {"mean": scalar(0.0), "std": scalar(0.5)}
    noise = torch.rand(50, generator=torch.Generator().manual_seed(0)).double()
    stats, after = coupled.dynamic_beta(p, ref, noise, state)
    close(after["mean"], 0.1 * delta.mean())
    loss = coupled.beta_dpo(p, ref, noise, stats)
    assert int((loss == 0).sum()) == 10
    assert loss[-1] == 0
    kept = loss != 0
    close(stats["beta"], (0.1 * (1 + 0.6 * (delta[kept].mean() - after["mean"]))).clamp(min=1e-3))
    close(loss[kept], 1.25 * pairs.dpo(p[kept], ref[kept], beta=stats["beta"].item()))


def test_who_is_kept_is_drawn_by_weight() -> None:
    delta = torch.tensor([0.0, 1.0]).double()
    p, ref = at_margin(delta)
    state = {"mean": scalar(0.0), "std": scalar(1.0)}
    seen = torch.zeros(2).double()
    for seed in range(2000):
        noise = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        stats, _ = coupled.dynamic_beta(p, ref, noise, state, keep=0.5, momentum=1.0)
        seen += (coupled.beta_dpo(p, ref, noise, stats) != 0).double()
    close(seen / 2000, torch.softmax(vector(0.0, -0.5), 0), atol=0.03, rtol=0)


# --- what moves -------------------------------------------------------------------------------------------------------


def test_selfie_doubts_the_least_confident_after_its_warm_up_and_remembers() -> None:
    p, ref = some_pairs()
    stats, margins = moving.least_confident(p, ref, p, None, 0.5)
    loss, m = moving.selfie(p, ref, p, stats), 0.1 * ((p.chosen - ref.chosen) - (p.rejected - ref.rejected))
    doubted = m <= stats["threshold"]
    assert int(doubted.sum()) == 5
    cdpo = pairs.cdpo(p, ref, label_smoothing=0.1)
    close(loss, torch.where(doubted, cdpo, pairs.dpo(p, ref)))
    early, _ = moving.least_confident(p, ref, p, None, 0.1)
    close(moving.selfie(p, ref, p, early), pairs.dpo(p, ref))
    _, later = moving.least_confident(p[:8], ref[:8], p[:8], margins, 0.5)
    close(later, torch.cat([margins[8:], m[:8]]))


def test_selfie_looks_at_labels_by_the_extrapolated_margin_and_learns_by_its_own() -> None:
    p, ref = some_pairs()
    turned = replace(p, chosen=p.rejected, rejected=p.chosen)
    stats, margins = moving.least_confident(p, ref, turned, None, 0.5)
    m = 0.1 * ((turned.chosen - ref.chosen) - (turned.rejected - ref.rejected))
    close(margins, m)
    cdpo, dpo = pairs.cdpo(p, ref, label_smoothing=0.1), pairs.dpo(p, ref)
    close(moving.selfie(p, ref, turned, stats), torch.where(m <= stats["threshold"], cdpo, dpo))


def test_hypo_s_gradient_is_that_of_the_kl_and_nothing_at_the_reference() -> None:
    logits = REF.log() + vector(0.5, -1.0, 0.2, 0.9)
    leaf = logits.clone().requires_grad_()
    logp = torch.log_softmax(leaf, 0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - REF.log())).sum(), leaf)

    def expected(baseline: float) -> Tensor:
        """Over every sample at its probability, with a fixed mean of the others."""
        leaf = logits.clone().requires_grad_()
        logp = torch.log_softmax(leaf, 0)
        stats = {"mean": scalar(baseline), "count": scalar(1e12)}
        each = moving.hypo(Demos(logp, vector(1, 1, 1, 1)), Demos(REF.log(), vector(1, 1, 1, 1)), stats)
        return torch.autograd.grad((logp.detach().exp() * each).sum(), leaf)[0]

    close(expected(0.0), exact)
    close(expected(3.0), exact, rtol=1e-4, atol=1e-6)
    d = Demos(random(9, 0), torch.ones(9).double())
    assert not slope(lambda t: moving.hypo(replace(d, logp=t), d, moving.mean_log_ratio(d, d)), d.logp).any()


# --- points -----------------------------------------------------------------------------------------------------------


def test_pointwise_dpo_on_a_pair_is_the_sum_of_two_logistics() -> None:
    good, ref_good = some_points(1.0)
    bad, ref_bad = some_points(0.0, seed=5)
    both = points.pointwise_dpo(good, ref_good, ZERO) + points.pointwise_dpo(bad, ref_bad, ZERO)
    r_w, r_l = 0.1 * (good.logp - ref_good.logp), 0.1 * (bad.logp - ref_bad.logp)
    close(both, -F.logsigmoid(r_w) - F.logsigmoid(-r_l))
    assert (both >= -F.logsigmoid(r_w - r_l)).all()  # BCO's bound on DPO


def test_pointwise_gradients_rest_where_the_reward_is_the_feedback() -> None:
    value = 0.8
    at_rest = {
        points.pointwise_dpo: math.log(value / (1 - value)) / 0.1,
        points.pointwise_dpo_continuous: value / 0.1,
    }
    for loss, rho in at_rest.items():
        p, ref = example.points(rho, value), example.points(0.0, value)
        close(slope(lambda t, p=p, ref=ref, loss=loss: loss(replace(p, logp=t), ref, ZERO), p.logp), vector(0.0))


def test_a_rating_of_zero_draws_to_the_reference_and_does_not_push_below() -> None:
    p, ref = some_points(0.0)
    rho = p.logp - ref.logp
    close(points.pointwise_dpo_continuous(p, ref, ZERO), 0.1**2 * rho**2)
    grad = slope(lambda t: points.pointwise_dpo_continuous(replace(p, logp=t), ref, ZERO), p.logp)
    assert torch.equal(grad.sign(), rho.sign())


def test_log_z_is_one_number_or_one_for_each_prompt() -> None:
    p, ref = some_points(0.0)
    for loss in (points.pointwise_dpo, points.pointwise_dpo_continuous, points.ulma):
        close(loss(p, ref, scalar(2.0)), loss(p, ref, torch.full((50,), 2.0).double()))
        close(loss(p, ref, scalar(2.0)), loss(replace(p, logp=p.logp + 2.0), ref, ZERO))


@pytest.mark.parametrize("negatives", ["binary", "continuous"])
def test_ulma_is_sft_on_the_good_and_point_wise_dpo_on_the_others(negatives: str) -> None:
    good, ref = some_points(1.0)
    assert torch.equal(points.ulma(good, ref, ZERO, negatives=negatives), demos.sft(Demos(good.logp, good.length)))
    bad, ref = some_points(0.0)
    pointwise = {"binary": points.pointwise_dpo, "continuous": points.pointwise_dpo_continuous}[negatives]
    close(points.ulma(bad, ref, ZERO, negatives=negatives), pointwise(bad, ref, ZERO))


def test_ulma_s_negatives_are_npo_up_to_scale_and_fade_as_they_are_forgotten() -> None:
    p, ref = some_points(0.0)
    npo = (2 / 0.1) * F.softplus(0.1 * (p.logp - ref.logp))
    close(points.ulma(p, ref, ZERO), (0.1 / 2) * npo)
    rho = vector(-100.0, -200.0)
    far = Points(rho, rho, torch.zeros(2).double())
    fading = slope(lambda t: points.ulma(replace(far, logp=t), replace(far, logp=rho * 0), ZERO), rho)
    close(fading, 0.1 * torch.exp(0.1 * rho), rtol=1e-4, atol=0)


def test_ulma_pulls_twenty_times_harder_on_the_good_than_point_wise_dpo_at_the_start() -> None:
    p = example.points(-3.0, 1.0)
    hard = slope(lambda t: points.ulma(replace(p, logp=t), p, ZERO), p.logp)
    soft = slope(lambda t: points.pointwise_dpo(replace(p, logp=t), p, ZERO), p.logp)
    assert (hard / soft).item() == pytest.approx(2 / 0.1)


def test_ulma_s_threshold_decides_who_is_a_demonstration() -> None:
    ratings = Points(vector(-1, -2, -3), vector(5, 5, 5), vector(8, 7.9, 10))
    loss = points.ulma(ratings, ratings, ZERO, threshold=8.0)
    close(loss, vector(1.0, math.log(2), 3.0))


# --- KTO --------------------------------------------------------------------------------------------------------------


def kto(p: Points, ref: Points, z0: float = 0.0, **options: float) -> Tensor:
    return points.kto(p, ref, {"z0": scalar(z0)}, **options)


def test_kto_without_anchor_on_a_pair_is_apo_zero() -> None:
    good, ref_good = some_points(1.0)
    bad, ref_bad = some_points(0.0, seed=5)
    r_w, r_l = 0.1 * (good.logp - ref_good.logp), 0.1 * (bad.logp - ref_bad.logp)
    close(kto(good, ref_good) + kto(bad, ref_bad), 1 - torch.sigmoid(r_w) + torch.sigmoid(r_l))


def test_kto_starts_at_half_its_weights() -> None:
    p = Points(vector(-3, -4), vector(5, 5), vector(1, 0))
    close(kto(p, p, desirable_weight=1.5, undesirable_weight=0.5), vector(0.75, 0.25))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_kto_s_pull_is_strongest_at_the_anchor_and_gone_in_both_tails(value: float) -> None:
    rho = torch.linspace(-400, 400, 801).double()
    p = Points(rho, rho, torch.full_like(rho, value))
    pull = slope(lambda t: kto(replace(p, logp=t), replace(p, logp=rho * 0), z0=3.0), rho).abs()
    assert rho[pull.argmax()] == 3.0
    assert pull.max().item() == pytest.approx(0.1 / 4)
    assert pull[[0, -1]].max() < 1e-15


def test_kto_does_not_move_when_all_log_ratios_move_together_above_zero() -> None:
    p, ref = some_points((torch.arange(50) % 2).double())
    mismatched, ref_mismatched = replace(p, logp=ref.logp + 1.0), ref

    def loss(by: float) -> Tensor:
        policy, other = replace(p, logp=p.logp + by), replace(mismatched, logp=mismatched.logp + by)
        return points.kto(policy, ref, points.kto_anchor(policy, ref, other, ref_mismatched))

    close(loss(2.0), loss(0.0))
    assert (loss(-2.0) - loss(0.0)).abs().max() > 1e-3, "below zero the anchor is held at zero"


def test_kto_s_anchor_is_the_mean_log_ratio_of_mismatched_answers_never_negative_and_without_gradient() -> None:
    p, ref = some_points()
    logp = (ref.logp + 0.5).requires_grad_()
    z0 = points.kto_anchor(p, ref, replace(p, logp=logp), ref)["z0"]
    assert z0.item() == pytest.approx(0.5)
    assert not z0.requires_grad
    assert z0.shape == ()
    assert points.kto_anchor(p, ref, replace(p, logp=ref.logp - 0.5), ref)["z0"] == 0


# --- demonstrations ---------------------------------------------------------------------------------------------------


def test_sft_is_a_sum_in_nats_and_counts_tokens() -> None:
    assert demos.sft(example.demos(-10, length=4)).item() == 10.0
    assert table.find("sft").unit == "token"


# --- a world of four responses ----------------------------------------------------------------------------------------


def minimise(loss, *start: Tensor) -> Tensor | list[Tensor]:
    """Where the loss is least, by L-BFGS in float64."""
    found = [s.clone().requires_grad_() for s in start]
    optimizer = torch.optim.LBFGS(
        found, max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(*found)
        value.backward()
        return value

    optimizer.step(closure)
    return found[0].detach() if len(found) == 1 else [f.detach() for f in found]


REF = vector(0.4, 0.3, 0.2, 0.1)
GOOD = vector(0.2, 0.5, 0.7, 0.9)  # P(z = 1)


@pytest.mark.parametrize(
    ("name", "beta", "log_z", "error"),
    [
        ("pointwise_dpo", 0.1, 19.67, 0.549),
        ("pointwise_dpo", 0.3, 5.045, 0.563),
        ("pointwise_dpo", 1.0, 0.569, 0.194),
        ("pointwise_dpo", 3.0, 0.025, 0.008),
        ("pointwise_dpo_continuous", 0.1, None, 0.573),
        ("pointwise_dpo_continuous", 0.3, None, 0.211),
        ("pointwise_dpo_continuous", 1.0, None, 0.033),
        ("pointwise_dpo_continuous", 3.0, None, 0.005),
    ],
)
def test_a_learned_log_z_finds_the_optimum_and_z_of_one_does_not(
    name: str, beta: float, log_z: float | None, error: float
) -> None:
    """log Z in ULMA; the loss is expected under pi_ref and over labels drawn with GOOD."""
    objective = table.function(name)
    reward = torch.logit(GOOD) if name == "pointwise_dpo" else GOOD
    optimum = torch.softmax(REF.log() + reward / beta, 0)

    def loss(logits: Tensor, learned: Tensor = ZERO) -> Tensor:
        p = Points(torch.log_softmax(logits, 0), torch.ones(4).double(), torch.ones(4).double())
        ref = replace(p, logp=REF.log())
        yes, no = (
            objective(p, ref, learned, beta=beta),
            objective(replace(p, value=p.value * 0), ref, learned, beta=beta),
        )
        return (REF * (GOOD * yes + (1 - GOOD) * no)).sum()

    logits, learned = minimise(loss, REF.log(), ZERO)
    close(torch.softmax(logits, 0), optimum, atol=1e-4, rtol=0)
    close(learned, torch.logsumexp(REF.log() + reward / beta, 0), atol=1e-3, rtol=0)
    if log_z is not None:
        assert learned.item() == pytest.approx(log_z, abs=6e-3)
    fixed = torch.softmax(minimise(loss, REF.log()), 0)
    assert (0.5 * (fixed - optimum).abs().sum()).item() == pytest.approx(error, abs=0.005)


# --- options and names ------------------------------------------------------------------------------------------------


def call(name: str, **options: object) -> Tensor:
    """The row on random examples, with these options."""
    row = table.find(name)
    defaults = {name: option.default for name, option in row.options.items()}
    return make(row, table.function(name), table.stats_function(name), {**defaults, **options}).loss()


IMPOSSIBLE = [
    *[
        (row.name, option, value)
        for row in table.rows().values()
        for option in row.options
        for value in (0.0, -1.0, math.inf)
        if option in ("beta", "tau", "beta_chosen")
        if (row.name, value) != ("grpo", 0.0)  # where beta is a weight, it may be none
    ],
    *[("cdpo", "label_smoothing", value) for value in (-0.1, 0.5, 1.0)],
    *[("robust", "label_smoothing", value) for value in (-0.1, 0.5)],
    *[("exo_pref", "label_smoothing", value) for value in (0.0, 0.5)],
    ("exo_rw", "beta_reward", 0.0),
    *[("fdpo", "alpha", value) for value in (0.0, 1.1)],
    ("fdpo", "divergence", "kl"),
    ("rpo_reward_aware", "eta", -0.1),
    ("rpo_reward_aware", "distance", "kl"),
    ("discopop", "tau", 1.0),
    ("odpo", "alpha", -0.1),
    ("odpo", "scale", "sqrt"),
    ("dpop", "penalty", -0.1),
    ("dpo_gamma", "gamma", -0.1),
    ("r_dpo", "alpha", -0.1),
    ("tdpo2", "alpha", -0.1),
    *[(name, "sparsity", -0.1) for name in ("sparsepo", "sparsepo_independent", "sparse_pair")],
    *[("tr_dpo", "alpha", value) for value in (0.0, 1.1)],
    ("tr_dpo", "tau", 2.5),
    *[("srpo", "alpha", value) for value in (-0.1, 1.1)],
    *[("spo_degree", "degrees", value) for value in (0, 2.5)],
    *[("ld_dpo", "alpha", value) for value in (-0.1, 1.1)],
    ("wpo", "max_weight", 0.0),
    ("cal_dpo", "calibration", -0.1),
    *[("mpo", f"{part}_weight", -0.1) for part in ("dpo", "bco", "sft")],
    ("anchored_dpo", "kind", "cubic"),
    ("anchored_dpo", "weight", -0.1),
    *[(name, "alpha", -0.1) for name in ("irpo", "upo")],
    *[("aot_paired", "label_smoothing", value) for value in (-0.1, 0.5)],
    *[("beta_dpo", "keep", value) for value in (0.0, 1.1)],
    ("beta_dpo", "momentum", 1.1),
    ("selfie", "quantile", 1.1),
    ("selfie", "extrapolation", -0.1),
    *[("slic_hf", option, -0.1) for option in ("delta", "alpha")],
    ("flex_dpo", "beta_rejected", -0.1),
    ("dpo_sft", "alpha", -0.1),
    *[("kto", f"{side}_weight", -1.0) for side in ("desirable", "undesirable")],
    ("ulma", "threshold", math.inf),
    ("ulma", "negatives", "binray"),
    *[
        (row.name, name, math.nan)
        for row in table.rows().values()
        for name, option in row.options.items()
        if isinstance(option.default, float)
    ],
]


@pytest.mark.parametrize(("name", "option", "value"), IMPOSSIBLE)
def test_an_impossible_option_is_refused_with_its_name_its_value_and_a_remedy(name: str, option: str, value) -> None:
    with pytest.raises(ConfigError) as refusal:
        call(name, **{option: value})
    assert f"{option}={value!r}" in str(refusal.value)
    assert "leave" in str(refusal.value) or "set" in str(refusal.value)


@pytest.mark.parametrize("alias", [("sigmoid", "dpo"), ("osp_spce", "soft_dpo"), ("rpo_reg", "dpo_sft")])
def test_names_of_other_codes_are_known(alias: tuple[str, str]) -> None:
    assert table.find(alias[0]).name == alias[1]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("rdpo", ["robust", "r_dpo", "rationale"]),
        ("R-DPO", ["robust", "r_dpo", "rationale"]),
        ("RPO", ["dpo_sft", "rpo_reward_aware", "irpo"]),
        ("HyPO", ["hypo", "hybrid_dpo"]),
        ("hinge", ["rso_hinge", "slic_hf"]),
        ("aot", ["aot_paired", "aot_unpaired"]),
    ],
)
def test_a_name_that_means_several_is_refused_with_what_could_be_meant(name: str, meant: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"several objectives are called '{name}'") as refusal:
        table.find(name)
    for row in meant:
        assert f"{row} ({table.find(row).paper}): {table.find(row).summary}" in str(refusal.value)


def test_ambiguous_names_mean_rows_and_are_none() -> None:
    for name, meant in table.AMBIGUOUS.items():
        assert {*meant} <= {*table.rows()}, name
        assert not any(name in row.aliases for row in table.rows().values())


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kto'"):
        table.find("ktoo")


def test_objectives_import_torch_errors_and_each_other_and_nothing_else() -> None:
    for path in Path(table.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names += [f"accord.{a.name}" for a in node.names] if node.module == "accord" else [str(node.module)]
            for name in names:
                ours = name in ("accord.errors", "accord.functions") or name.startswith("accord.objectives")
                assert ours or name.partition(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path.name}: {name}"
