"""Advantages, and the policy gradients that are made of them: exact numbers, exact gradients, exact optima."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from accord.errors import ConfigError
from accord.lab import tabular
from accord.objectives import table
from accord.objectives.kinds import Rollouts, Tokens
from accord.online.advantages import (
    BY_TOKEN,
    IN_GROUP,
    RULES,
    SLOPES,
    AdvantageOptions,
    Answer,
    adapted,
    advantages,
    discounted,
    says,
    whitened,
)

REF, REWARD = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0])


def answers(*scores: float, tokens: int = 2, **more) -> list[Answer]:
    return [Answer(s, np.zeros(tokens), **more) for s in scores]


def weigh(group: list[Answer], **options):
    """What each of a single prompt's answers got, None or a list."""
    (found,), *_ = advantages([group], AdvantageOptions.of(options))
    return [None if w is None else w.advantage.tolist() for w in found]


# -- N11 ---------------------------------------------------------------------------------------------------------------


def gae_of(rewards, values, **options):
    """One answer whose reference makes its tokens earn `rewards` at kl = 1."""
    rewards = np.asarray(rewards, float)
    score = rewards[-1]
    ref = np.append(rewards[:-1], 0.0)  # -kl * (old - ref) with old = 0
    one = Answer(score, np.zeros(len(rewards)), ref=ref, value=np.asarray(values, float))
    (found,), *_ = advantages([[one]], AdvantageOptions.of({"rule": "gae", "kl": 1.0} | options))
    return found[0]


def test_gae_is_reward_to_go_at_one_end_and_the_next_error_at_the_other():
    rewards = [0.3, -0.2, 0.5, 1.0]
    made = gae_of(rewards, [0, 0, 0, 0], lam=1.0)
    assert made.advantage == pytest.approx(np.cumsum(rewards[::-1])[::-1])
    values = np.array([0.4, 0.1, -0.3, 0.6])
    delta = np.array(rewards) + np.append(values[1:], 0) - values
    made = gae_of(rewards, values, lam=0.0)
    assert made.advantage == pytest.approx(delta)
    assert made.returns == pytest.approx(delta + values)
    made = gae_of(rewards, values, lam=0.95, gamma=0.9)  # by its definition, a sum over horizons
    delta = np.array(rewards) + 0.9 * np.append(values[1:], 0) - values
    by_hand = [sum((0.9 * 0.95) ** (s - t) * delta[s] for s in range(t, 4)) for t in range(4)]
    assert made.advantage == pytest.approx(by_hand)


def test_returns_are_those_before_any_whitening():
    one = gae_of([0.0, 1.0], [0.2, 0.1], whiten=True)
    plain = gae_of([0.0, 1.0], [0.2, 0.1])
    assert one.returns == pytest.approx(plain.returns)
    assert one.advantage.mean() == pytest.approx(0.0)
    assert one.advantage.std() == pytest.approx(1.0, abs=1e-6)


def test_the_price_follows_its_target():
    assert adapted(0.2, 12.0, 6.0, 256, 1e4) / 0.2 == pytest.approx(1.00512)
    assert adapted(0.2, 0.0, 6.0, 256, 1e4) / 0.2 == pytest.approx(1 - 0.00512)
    assert adapted(0.2, 6.6, 6.0, 256, 1e4) / 0.2 == pytest.approx(1 + 0.1 * 0.0256)
    far = [Answer(1.0, np.zeros(2), ref=np.full(2, -6.0)), Answer(0.0, np.zeros(2), ref=np.full(2, -6.0))]
    options = AdvantageOptions.of({"rule": "loo", "kl": 0.2, "kl_target": 6.0, "kl_horizon": 100})
    _, memory, told = advantages([far], options)
    assert (told["kl"], told["kl_ref"]) == (0.2, 12.0)
    assert memory.kl == pytest.approx(0.2 * (1 + 0.2 * 2 / 100))
    _, later, told = advantages([far], options, memory)
    assert told["kl"] == memory.kl
    assert later.kl > memory.kl


def test_whitening_without_a_shift_keeps_the_mean():
    values = np.array([0.5, 2.0, -1.0, 3.5])
    assert whitened(values, shift=False).mean() == pytest.approx(values.mean())
    assert whitened(values, shift=False).std() == pytest.approx(1.0, abs=1e-6)
    assert whitened(values, shift=True).mean() == pytest.approx(0.0)


def test_rloo_is_the_mean_less_with_a_factor_and_its_advantages_sum_to_nothing():
    scores = np.array([1.0, 4.0, 2.5, -3.0])
    found = np.array(weigh(answers(*scores), rule="loo"))[:, 0]
    others = [(scores.sum() - s) / 3 for s in scores]
    assert found == pytest.approx(scores - others)
    assert found == pytest.approx(4 / 3 * (scores - scores.mean()))
    assert found == pytest.approx(4 / 3 * np.array(weigh(answers(*scores), rule="mean"))[:, 0])
    assert found.sum() == pytest.approx(0.0)


def test_grpo_of_equal_rewards_is_nothing_and_that_is_told():
    assert weigh(answers(0.1, 0.1, 0.1), rule="group_norm") == [[0.0, 0.0]] * 3
    groups = [answers(1.0, 1.0), answers(1.0, 2.0)]
    _, _, told = advantages(groups, AdvantageOptions("group_norm"))
    assert told["flat"] == 0.5
    found = np.array(weigh(answers(1.0, 4.0), rule="group_norm"))[:, 0]
    assert found == pytest.approx(np.array([-1.5, 1.5]) / (math.sqrt(4.5) + 1e-4))


# -- who is in a mean --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_an_answer_that_nobody_scored_is_in_no_mean(rule):
    more = {"ref": np.full(2, -0.3), "value": np.full(2, 0.1)}
    kl = {"kl": 0.5} if rule == "f_dpg" else {}
    best = [Answer(0.5, np.zeros(2), greedy=True, **more)] if rule == "greedy" else []
    with_ = weigh([*answers(1.0, math.nan, 4.0, **more), *best], rule=rule, **kl)
    without = weigh([*answers(1.0, 4.0, **more), *best], rule=rule, **kl)
    assert with_[1] is None
    assert [with_[0], *with_[2:]] == without


def test_an_answer_alone_cannot_be_compared_and_one_whose_greedy_counterpart_failed_neither():
    for rule in IN_GROUP:
        kl = {"kl": 1.0} if rule == "f_dpg" else {}
        assert weigh(answers(1.0, math.nan, ref=np.zeros(2)), rule=rule, **kl) == [
            None, None,
        ]  # fmt: skip
    assert weigh([*answers(1.0), Answer(math.nan, np.zeros(2), greedy=True)], rule="greedy") == [None, None]
    assert weigh([*answers(1.0), Answer(0.25, np.zeros(1), greedy=True)], rule="greedy") == [[0.75, 0.75], None]


def test_remax_clips_the_difference_and_has_the_price_beside_it():
    best = Answer(0.0, np.zeros(2), greedy=True)
    one = Answer(9.0, np.array([0.0, 1.0]), ref=np.zeros(2))
    assert weigh([one, best], rule="greedy", kl=0.5, kl_credit="local") == [[5.0, 4.5], None]
    assert weigh([one, best], rule="greedy", kl=0.5) == [[4.5, 4.5], None]
    assert weigh([one, best], rule="greedy", greedy_clip=None) == [[9.0, 9.0], None]


def test_a_running_mean_is_over_the_rounds():
    options = AdvantageOptions("running")
    first, memory, _ = advantages([answers(1.0), answers(3.0)], options)
    assert [w.advantage[0] for (w,) in first] == [-1.0, 1.0]
    second, memory, _ = advantages([answers(8.0)], options, memory)
    assert second[0][0].advantage[0] == 4.0
    assert memory.returns == (12.0, 3)


def test_scores_of_answers_that_did_not_end_and_scores_that_are_normed():
    cut = answers(2.0, finished=False) + answers(4.0)
    assert weigh(cut, rule="none", unfinished_score=-1.0) == [[-1.0, -1.0], [4.0, 4.0]]
    assert weigh(cut, rule="none", unfinished_penalty=1.5) == [[0.5, 0.5], [4.0, 4.0]]
    assert weigh(answers(1.0, 3.0), rule="none", score_norm="batch")[1] == pytest.approx([1.0, 1.0])
    assert weigh(answers(1.0, 30.0), rule="none", score_clip=5.0) == [[1.0, 1.0], [5.0, 5.0]]
    assert weigh(answers(1.0, 3.0), rule="none", score_norm="running")[1] == pytest.approx([3 / math.sqrt(2)] * 2)
    assert weigh(answers(-9.0, 3.0), rule="none", clip=0.5) == [[-0.5, -0.5], [0.5, 0.5]]
    groups = [[Answer(1.0, np.zeros(3)), Answer(5.0, np.zeros(1))]]
    (found,), *_ = advantages(groups, AdvantageOptions("none", whiten_rewards=True))
    flat = np.array([0.0, 0.0, 1.0, 5.0])
    scaled = (flat - flat.mean()) / flat.std() + flat.mean()
    assert found[0].advantage == pytest.approx(discounted(scaled[:3], 1.0))


def test_reinforce_plus_plus_is_normalised_over_tokens_not_answers():
    groups = [[Answer(1.0, np.zeros(3)), Answer(5.0, np.zeros(1))]]
    (found,), *_ = advantages(groups, AdvantageOptions("batch_norm"))
    flat = np.concatenate([w.advantage for w in found])
    assert (flat.mean(), flat.std()) == (pytest.approx(0.0), pytest.approx(1.0, abs=1e-6))
    assert flat[0] == pytest.approx((1.0 - 2.0) / math.sqrt(3.0))


@pytest.mark.parametrize(
    ("given", "says_"),
    [
        ({}, "rule is missing"),
        ({"rule": "lo"}, "did you mean 'loo'"),
        ({"rule": "loo", "klx": 1}, "did you mean 'kl'"),
        ({"rule": "loo", "lam": 0.5}, "nothing reads it under rule: loo"),
        ({"rule": "gae", "kl_target": 6.0}, "nothing reads it under kl: 0.0"),
        ({"rule": "gae", "kl": 0.1, "kl_horizon": 5}, "nothing reads it under kl_target: None"),
        ({"rule": "loo", "kl": -1}, "a number from 0"),
        ({"rule": "f_dpg"}, "set advantage.kl above 0"),
        ({"rule": "loo", "whiten": 1}, "must be true or false"),
        ({"rule": "none", "kl": 0.1, "kl_credit": "globl"}, "'globl' is not known"),
    ],
)
def test_options_that_cannot_be_are_refused(given, says_):
    with pytest.raises(ConfigError, match=says_):
        AdvantageOptions.of(given)


def test_every_rule_says_what_it_does():
    assert all(says(rule).endswith(".") for rule in RULES)
    assert {*BY_TOKEN, *IN_GROUP} == set(RULES)


# -- exact gradients of a chain of two tokens (N10) --------------------------------------------------------------------


FIRST, SECOND = [0.3, -0.2], [[0.5, -0.5], [-1.0, 0.7]]
CHAIN = list(itertools.product((0, 1), (0, 1)))


def chain(first: torch.Tensor) -> torch.Tensor:
    """[4, 2] log-probs of both tokens of every answer."""
    one, two = torch.log_softmax(first, 0), torch.log_softmax(torch.tensor(SECOND, dtype=torch.float64), 1)
    return torch.stack([torch.stack([one[a], two[a, b]]) for a, b in CHAIN])


def expected_slope(name: str, options: dict, score: list[float], group: int = 1) -> np.ndarray:
    """Slope of the expected loss by the first token's logits, summed over all draws of `group` answers."""
    first = torch.tensor(FIRST, dtype=torch.float64, requires_grad=True)
    logp = chain(first)
    old = logp.detach()
    p = old.sum(1).exp().numpy()
    ref = np.full(2, math.log(0.5))
    total = torch.zeros((), dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=group):
        made = [Answer(score[i], old[i].numpy(), ref=ref, value=np.zeros(2)) for i in drawn]
        (found,), *_ = advantages([made], AdvantageOptions.of(options))
        advantage = torch.tensor(np.array([w.advantage for w in found]))
        here = list(drawn)
        rollouts = Rollouts(logp[here], old[here], advantage, torch.ones(group, 2, dtype=torch.bool))
        total = total + float(np.prod(p[here])) * table.function(name)(rollouts).mean()
    return torch.autograd.grad(total, first)[0].numpy()


TRUE, LOCAL = (0.081822, -0.081822), (0.117502, -0.117502)


@pytest.mark.parametrize(
    ("name", "options", "group", "wanted"),
    [
        ("reinforce", {"rule": "none", "kl": 1.0}, 1, TRUE),
        ("reinforce", {"rule": "none", "kl": 1.0, "kl_credit": "local"}, 1, LOCAL),
        ("reinforce", {"rule": "loo", "kl": 1.0}, 2, TRUE),
        ("rloo", {"rule": "loo", "kl": 1.0}, 2, TRUE),
        ("ppo", {"rule": "gae", "kl": 1.0, "lam": 1.0}, 1, TRUE),
        ("ppo", {"rule": "loo", "kl": 1.0}, 2, TRUE),
        ("reinforce", {"rule": "mean", "kl": 1.0}, 2, tuple(0.5 * t for t in TRUE)),
    ],
)
def test_the_price_in_the_reward_has_the_slope_of_the_divergence(name, options, group, wanted):
    """Of the whole answer: what a token costs later counts; a token's own alone is another gradient (N10)."""
    assert expected_slope(name, options, [0.0] * 4, group) == pytest.approx(wanted, abs=1e-6)


def test_the_price_as_a_loss_has_the_same_slope():
    """`hypo`, and k2 of whole answers; a token's own k3 in GRPO's loss does not."""
    first = torch.tensor(FIRST, dtype=torch.float64, requires_grad=True)
    logp = chain(first)
    old, p = logp.detach(), logp.detach().sum(1).exp()
    whole = (logp - math.log(0.5)).sum(1)
    k2 = torch.autograd.grad((p * whole**2 / 2).sum(), first, retain_graph=True)[0]
    assert k2.tolist() == pytest.approx(TRUE, abs=1e-6)
    drawn = p * (whole.detach() * logp.sum(1))  # hypo's slope with a baseline of 0
    assert torch.autograd.grad(drawn.sum(), first, retain_graph=True)[0].tolist() == pytest.approx(TRUE, abs=1e-6)
    every, there = torch.zeros(4, 2, dtype=torch.float64), torch.ones(4, 2, dtype=torch.bool)
    ref = Tokens(torch.full_like(old, math.log(0.5)), there, every[:, 0])
    loss = (p * table.function("grpo")(Rollouts(logp, old, every, there), ref, beta=1.0)).sum()
    assert torch.autograd.grad(loss, first)[0].tolist() != pytest.approx(TRUE, abs=1e-2)


# -- exact optima (N1) -------------------------------------------------------------------------------------------------


def learned(
    name: str, options: dict, *, group: int = 1, steps: int = 300, rate: float = 0.5, epochs: int = 1,
    falls: bool = False, **own,
) -> np.ndarray:  # fmt: skip
    """The policy over three answers after descent on the loss that is expected over all draws of `group` of them."""
    theta = torch.tensor(np.log(REF), requires_grad=True)
    value = torch.zeros((), dtype=torch.float64, requires_grad=True)
    row, asked = table.find(name), AdvantageOptions.of(options)
    sets = list(itertools.combinations_with_replacement(range(3), group))
    ways = [math.factorial(group) / math.prod(math.factorial(s.count(i)) for i in range(3)) for s in sets]
    flat = [i for s in sets for i in s]
    there = torch.ones(len(flat), 1, dtype=torch.bool)
    ref = torch.tensor(np.log(REF))[flat][:, None]
    for step in range(steps):
        old = torch.log_softmax(theta, 0).detach()
        p = old.exp().numpy()
        weight = torch.tensor([w * np.prod(p[list(s)]) / group for w, s in zip(ways, sets, strict=True) for _ in s])

        def said(i: int, old=old, value=value, **more) -> Answer:
            return Answer(
                REWARD[i], old[i : i + 1].numpy(), np.log(REF[i : i + 1]), value.detach().numpy()[None], **more
            )

        best = [said(int(p.argmax()), greedy=True)] if asked.rule == "greedy" else []
        found = [w for s in sets for w in advantages([[*map(said, s), *best]], asked)[0][0][:group]]
        advantage = torch.tensor(np.array([w.advantage for w in found]))
        for _ in range(epochs):
            logp = torch.log_softmax(theta, 0)[flat][:, None]
            rollouts = Rollouts(logp, old[flat][:, None], advantage, there)
            needs = [Tokens(ref, there, ref[:, 0])] if row.needs else []
            losses = table.function(name)(rollouts, *needs, **own)
            if asked.rule == "gae":
                returns = torch.tensor(np.array([w.returns for w in found]))
                now = Tokens(value.expand_as(returns), there, ref[:, 0])
                losses = losses + table.function("critic")(rollouts, now, returns, returns, clip=0.0)
            slopes = torch.autograd.grad((weight * losses).sum(), [theta, value], allow_unused=True)
            with torch.no_grad():
                theta -= rate / (1 + falls * step / 10) * slopes[0]
                value -= 0.0 if slopes[1] is None else 0.5 * slopes[1]
    return torch.softmax(theta, 0).detach().numpy()


@pytest.mark.parametrize(
    ("name", "options", "group", "more"),
    [
        ("reinforce", {"rule": "none", "kl": 1.0}, 1, {}),
        ("ppo", {"rule": "gae", "kl": 1.0}, 1, {}),
        ("ppo", {"rule": "gae", "kl": 1.0}, 1, {"epochs": 4, "rate": 0.3}),
        ("reinforce", {"rule": "greedy", "kl": 1.0, "greedy_clip": 5.0}, 1, {}),
        ("rloo", {"rule": "loo", "kl": 1.0}, 2, {}),
        ("rloo", {"rule": "loo", "kl": 1.0}, 3, {"epochs": 4, "rate": 0.3, "steps": 100}),
        ("dr_grpo", {"rule": "mean", "kl": 1.0}, 2, {"longest": 1, "rate": 1.0}),
        ("grpo", {"rule": "group_norm", "kl": 1.0}, 3, {"beta": 0.0, "falls": True}),
    ],
)
def test_with_the_price_in_the_reward_they_find_the_optimum(name, options, group, more):
    """N1: pi* = ref exp(r / kl) / Z = (0.179, 0.291944, 0.529056)."""
    best, _ = tabular.optimum(REF, REWARD, 1.0)
    assert best == pytest.approx([0.179000, 0.291944, 0.529056], abs=1e-6)
    close = 2e-3 if options["rule"] == "group_norm" else 1e-4  # of one size however near: the rate falls
    assert learned(name, options, group=group, **more) == pytest.approx(best, abs=close)


@pytest.mark.parametrize("divergence", SLOPES)
def test_every_divergence_of_f_dpg_has_the_same_end(divergence):
    best, _ = tabular.optimum(REF, REWARD, 1.0)
    rate = {"tv": 0.02, "chi2": 0.1, "reverse_chi2": 0.1}.get(divergence, 0.5)
    found = learned("reinforce", {"rule": "f_dpg", "kl": 1.0, "divergence": divergence}, group=3, steps=300, rate=rate)
    assert found == pytest.approx(best, abs=0.02 if divergence == "tv" else 1e-3)


def test_f_dpg_of_the_reverse_divergence_is_rloo_of_reward_over_price():
    logp = np.log(REF * np.array([1.5, 0.5, 0.5]))
    made = [Answer(r, logp[i : i + 1], np.log(REF[i : i + 1])) for i, r in enumerate(REWARD)]
    dpg = weigh(made, rule="f_dpg", kl=0.5, divergence="reverse_kl")
    loo = weigh(made, rule="loo", kl=0.5)
    assert np.array(dpg) == pytest.approx(np.array(loo) / 0.5)


def test_reinforce_plus_plus_finds_the_optimum_from_samples():
    """Its advantages are of one size however near it is: a rate that falls, and what sampling leaves."""
    best, _ = tabular.optimum(REF, REWARD, 1.0)
    theta, draw, options = np.log(REF), np.random.default_rng(0), AdvantageOptions.of({"rule": "batch_norm", "kl": 1.0})
    for step in range(150):
        p = np.exp(theta) / np.exp(theta).sum()
        drawn = draw.choice(3, size=400, p=p)
        logp = np.log(p)
        found, *_ = advantages([[Answer(REWARD[i], logp[i : i + 1], np.log(REF[i : i + 1]))] for i in drawn], options)
        advantage = np.array([w.advantage[0] for (w,) in found])
        onehot = np.eye(3)[drawn]
        theta = theta + 0.5 / (1 + step) * ((onehot - p) * advantage[:, None]).mean(0) * 3
    p = np.exp(theta) / np.exp(theta).sum()
    assert p == pytest.approx(best, abs=0.01)


def test_the_worst_group_decides_as_maxmin_has_it():
    """N9: rewards of the group that is worst off make (1/2, 1/2, 0); the least of each answer makes the third."""
    groups = np.array([[1.0, 0.0, 0.4], [0.0, 1.0, 0.4]])

    def run(group_level: bool) -> np.ndarray:
        theta = np.array([0.3, 0.0, 0.1])
        mean, count = np.zeros(3), 0
        for step in range(4000):
            p = np.exp(theta) / np.exp(theta).sum()
            reward = groups[int((groups @ p).argmin())] if group_level else groups.min(0)
            theta = theta + 0.5 / math.sqrt(1 + step / 50) * p * (reward - p @ reward)
            if step >= 2000:
                mean, count = mean + p, count + 1
        return mean / count

    found = run(True)
    assert found[:2] == pytest.approx([0.5, 0.5], abs=0.03)
    assert (groups @ found).min() > 0.48
    assert run(False)[2] > 0.9


def test_best_of_n_is_as_far_from_the_reference_as_said():
    """N12."""
    best = tabular.best_of(REF, REWARD, 4)
    assert tabular.divergence(best, REF) == pytest.approx(0.559751, abs=1e-6)
    assert math.log(4) - 3 / 4 == pytest.approx(0.636294, abs=1e-6)  # its bound
