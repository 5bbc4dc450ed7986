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
from accord.objectives import demos, example, pairs, points, table
from accord.objectives.example import scalar
from accord.objectives.kinds import Demos, Pairs, Points
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
    assert torch.equal(pairs.dpo_sft(p, ref, alpha=0.0), plain)
    close(pairs.flex_dpo(p, ref, beta_chosen=0.1, beta_rejected=0.1), plain)


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
    one_sided = pairs.flex_dpo(p, ref, beta_rejected=0.0)
    close(one_sided, points.pointwise_dpo(as_points, replace(as_points, logp=ref.chosen), ZERO))


def test_flex_dpo_scales_the_push_on_rejected() -> None:
    p, ref = some_pairs()
    up = slope(lambda a: pairs.flex_dpo(replace(p, chosen=a), ref), p.chosen)
    down = slope(lambda b: pairs.flex_dpo(replace(p, rejected=b), ref), p.rejected)
    close(down / up, torch.full((50,), -0.8).double())


def test_dpo_sft_adds_alpha_to_the_pull_on_chosen_and_keeps_it_on_solved_pairs() -> None:
    p, ref = some_pairs()
    with_sft = slope(lambda a: pairs.dpo_sft(replace(p, chosen=a), ref, alpha=0.3), p.chosen)
    plain = slope(lambda a: pairs.dpo(replace(p, chosen=a), ref), p.chosen)
    close(with_sft, plain - 0.3)
    solved = at_margin(vector(1e4))
    close(slope(lambda a: pairs.dpo_sft(replace(solved[0], chosen=a), solved[1], alpha=0.3), vector(1e4)), vector(-0.3))


def test_simpo_on_equal_means_starts_at_its_margin_and_without_one_is_the_logistic_of_log_probs() -> None:
    p, _ = some_pairs()
    close(pairs.simpo(*at_margin(vector(0.0))[:1]), F.softplus(vector(1.0)))
    close(pairs.simpo(p, beta=0.1, gamma=0.0), -F.logsigmoid(0.1 * (p.chosen - p.rejected)))


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


def test_unlearning_pushes_both_ways_with_force_one() -> None:
    value = (torch.arange(50) % 2).double()
    p, _ = some_points(value)
    grad = slope(lambda t: points.unlearning(replace(p, logp=t)), p.logp)
    assert torch.equal(grad, 1 - 2 * value)


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
    ],
    *[("cdpo", "label_smoothing", value) for value in (-0.1, 0.5, 1.0)],
    *[("slic_hf", option, -0.1) for option in ("delta", "alpha")],
    ("flex_dpo", "beta_rejected", -0.1),
    ("dpo_sft", "alpha", -0.1),
    ("simpo", "gamma", -0.1),
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


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kto'"):
        table.find("ktoo")


def test_objectives_import_torch_errors_and_each_other_and_nothing_else() -> None:
    for path in Path(table.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                ours = name == "accord.errors" or name.startswith("accord.objectives")
                assert ours or name.partition(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path.name}: {name}"
