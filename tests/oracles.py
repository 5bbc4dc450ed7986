"""Each objective a second time, in float64 numpy, written from the papers' equations and not from our code.

One function a row, under the row's name: the kind's fields as arrays, then what the row needs, then options, all by
name. `COEFFICIENTS` holds the closed-form gradients with respect to log-probs where the specification states them
(one table of coefficients): the derivative of each example's loss by field.
"""

from __future__ import annotations

import numpy as np


def sigmoid(t):
    return np.exp(-np.logaddexp(0.0, -t))


def log_sigmoid(t):
    return -np.logaddexp(0.0, -t)


def margin(pairs, ref):
    return np.log(np.exp(pairs.chosen - ref.chosen) / np.exp(pairs.rejected - ref.rejected))


def reward(points, ref, log_z, beta):
    return beta * (points.logp - ref.logp) + beta * log_z


# --- losses -----------------------------------------------------------------------------------------------------------


def sft(demos):
    return -demos.logp


def dpo(pairs, ref, beta):
    """log(1 + (pi_l rho_w / (pi_w rho_l))^beta): the form of 2406.07327, in probabilities."""
    pi_w, pi_l, rho_w, rho_l = (np.exp(t) for t in (pairs.chosen, pairs.rejected, ref.chosen, ref.rejected))
    return np.log(1.0 + (pi_l * rho_w / (pi_w * rho_l)) ** beta)


def cdpo(pairs, ref, beta, label_smoothing):
    u = beta * margin(pairs, ref)
    return -(1.0 - label_smoothing) * log_sigmoid(u) - label_smoothing * log_sigmoid(-u)


def soft_dpo(pairs, ref, beta):
    """KL(Bernoulli(p) | Bernoulli(sigmoid(u))) + H(p)."""
    p, q = pairs.strength, sigmoid(beta * margin(pairs, ref))
    entropy = -p * np.log(p) - (1.0 - p) * np.log(1.0 - p)
    return p * np.log(p / q) + (1.0 - p) * np.log((1.0 - p) / (1.0 - q)) + entropy


def ipo(pairs, ref, tau):
    return (np.log(np.exp(pairs.chosen + ref.rejected - pairs.rejected - ref.chosen)) - 0.5 / tau) ** 2


def slic_hf(pairs, delta, alpha):
    return np.maximum(0.0, delta - pairs.chosen + pairs.rejected) - alpha * pairs.chosen


def flex_dpo(pairs, ref, beta_chosen, beta_rejected):
    u = beta_chosen * (pairs.chosen - ref.chosen) - beta_rejected * (pairs.rejected - ref.rejected)
    return -log_sigmoid(u)


def dpo_sft(pairs, ref, beta, alpha):
    return -log_sigmoid(beta * margin(pairs, ref)) - alpha * pairs.chosen


def simpo(pairs, beta, gamma):
    return -log_sigmoid(beta * (pairs.chosen - pairs.rejected - gamma / beta))


def pointwise_dpo(points, ref, log_z, beta):
    r = reward(points, ref, log_z, beta)
    return -points.value * np.log(sigmoid(r)) - (1.0 - points.value) * np.log(1.0 - sigmoid(r))


def pointwise_dpo_continuous(points, ref, log_z, beta):
    return (points.value - reward(points, ref, log_z, beta)) ** 2


def ulma(points, ref, log_z, beta, threshold, negatives):
    r = reward(points, ref, log_z, beta)
    bad = -np.log(1.0 - sigmoid(r)) if negatives == "binary" else (points.value - r) ** 2
    return np.where(points.value >= threshold, -points.logp, bad)


def kto_anchor(points, ref, mismatched, ref_mismatched):
    return {"z0": max(0.0, float(np.mean(mismatched.logp - ref_mismatched.logp)))}


def kto(points, ref, stats, beta, desirable_weight, undesirable_weight):
    """lambda_y - v(x, y), the paper's value function."""
    rho = points.logp - ref.logp
    good = desirable_weight * (1.0 - sigmoid(beta * (rho - stats["z0"])))
    bad = undesirable_weight * (1.0 - sigmoid(beta * (stats["z0"] - rho)))
    return np.where(points.value >= 0.5, good, bad)


def robust(pairs, ref, beta, label_smoothing):
    u, eps = beta * margin(pairs, ref), label_smoothing
    return (-(1.0 - eps) * log_sigmoid(u) + eps * log_sigmoid(-u)) / (1.0 - 2.0 * eps)


def rso_hinge(pairs, ref, beta):
    return np.clip(1.0 - beta * margin(pairs, ref), 0.0, None)


def rso_sigmoid(pairs, ref, beta):
    return -np.log(sigmoid(beta * margin(pairs, ref)))


def discopop(pairs, ref, beta, tau):
    u = beta * margin(pairs, ref)
    g = 1.0 / (1.0 + np.exp(-u / tau))
    return (1.0 - g) * np.log(1.0 + np.exp(-u)) + g * np.exp(-u)


def bernoulli_kl(q, p):
    return q * np.log(q / p) + (1.0 - q) * np.log((1.0 - q) / (1.0 - p))


def exo_pref(pairs, ref, beta, label_smoothing):
    return bernoulli_kl(sigmoid(beta * margin(pairs, ref)), 1.0 - label_smoothing)


def exo_rw(groups, ref, beta, beta_reward):
    found = []
    for logp, base, score, mask in zip(groups.logp, ref.logp, groups.score, groups.mask, strict=True):
        q = np.exp(beta * (logp[mask] - base[mask]))
        p = np.exp(score[mask] / beta_reward)
        q, p = q / q.sum(), p / p.sum()
        found.append(np.sum(q * np.log(q / p)))
    return np.array(found)


def rpo_reward_aware(pairs, ref, beta, eta, distance):
    u, gap = beta * margin(pairs, ref), eta * (pairs.score_chosen - pairs.score_rejected)
    if distance == "square":
        return (u - gap) ** 2
    return (
        bernoulli_kl(sigmoid(gap), sigmoid(u)) if distance == "backward_kl" else bernoulli_kl(sigmoid(u), sigmoid(gap))
    )


def fdpo(pairs, ref, beta, divergence, alpha):
    """f'(u) of the paper's table, at the ratios themselves."""
    derivative = {
        "reverse_kl": lambda u: np.log(u) + 1.0,
        "forward_kl": lambda u: -1.0 / u,
        "js": lambda u: np.log(2.0 * u / (1.0 + u)),
        "alpha": lambda u: (1.0 - u**-alpha) / alpha,
    }[divergence]
    w, l = derivative(np.exp(pairs.chosen - ref.chosen)), derivative(np.exp(pairs.rejected - ref.rejected))
    return -log_sigmoid(beta * w - beta * l)


def odpo(pairs, ref, beta, alpha, scale):
    gap = pairs.score_chosen - pairs.score_rejected
    u = beta * margin(pairs, ref)
    if scale == "log":
        return np.array([-log_sigmoid(m - alpha * np.log(g)) if g > 0 else 0.0 for m, g in zip(u, gap, strict=True)])
    return -log_sigmoid(u - alpha * (gap if scale == "identity" else np.log(1.0 + np.exp(gap))))


def dpop(pairs, ref, beta, penalty):
    fall = np.maximum(0.0, np.log(np.exp(ref.chosen) / np.exp(pairs.chosen)))
    return -log_sigmoid(beta * (margin(pairs, ref) - penalty * fall))


def dpo_norm(pairs, ref, beta):
    return -log_sigmoid(beta * (pairs.chosen - ref.chosen) - beta * (pairs.rejected - ref.rejected))


def dpo_gamma(pairs, ref, beta, gamma):
    return -log_sigmoid(beta * ((pairs.chosen - pairs.rejected) - gamma * (ref.chosen - ref.rejected)))


def r_dpo(pairs, ref, beta, alpha):
    """DPO on rewards beta rho + alpha |y|."""
    w = beta * (pairs.chosen - ref.chosen) + alpha * pairs.chosen_length
    l = beta * (pairs.rejected - ref.rejected) + alpha * pairs.rejected_length
    return -log_sigmoid(w - l)


def hybrid_dpo(pairs, ref, beta):
    return -log_sigmoid(beta * ((pairs.chosen - pairs.rejected) - np.maximum(0.0, ref.chosen - ref.rejected)))


def tdpo1(pairs, ref, kl, beta):
    return -log_sigmoid(beta * (margin(pairs, ref) - (kl.rejected - kl.chosen)))


def tdpo2(pairs, ref, kl, beta, alpha):
    return -log_sigmoid(beta * (margin(pairs, ref) - alpha * (kl.rejected - kl.chosen)))


def sparsepo(pairs, tokens, ref_tokens, kl_tokens, mask, beta, sparsity):
    return sparsepo_independent(pairs, tokens, ref_tokens, kl_tokens, mask, mask, beta, sparsity)


def sparsepo_independent(pairs, tokens, ref_tokens, kl_tokens, mask, kl_mask, beta, sparsity):
    found = []
    for i in range(len(pairs.chosen)):
        u, d, norm = {}, {}, []
        for side in ("chosen", "rejected"):
            there = getattr(tokens, f"{side}_length")[i]
            logp, base, kl = (getattr(p, side)[i][there] for p in (tokens, ref_tokens, kl_tokens))
            m, n = (np.maximum(0.0, 1.0 + getattr(p, side)[i][there]) for p in (mask, kl_mask))
            u[side], d[side] = np.sum(m * (logp - base)), np.sum(n * kl)
            norm += [*m, *n]
        u = u["chosen"] - u["rejected"] - (d["rejected"] - d["chosen"])
        found.append(-log_sigmoid(beta * u) + sparsity * np.mean(norm))
    return np.array(found)


def sparsepo_mapo(pairs, tokens, ref_tokens, kl_tokens, activation, beta):
    """TDPO1 whose rewards and divergences are both weighed token by token."""
    total = np.zeros(len(pairs.chosen))
    for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
        m = np.where(getattr(tokens, f"{side}_length"), getattr(activation, side), 0.0)
        reward = np.where(m != 0, m * (getattr(tokens, side) - getattr(ref_tokens, side)), 0.0)
        held = np.where(m != 0, m * getattr(kl_tokens, side), 0.0)
        total += sign * (reward.sum(-1) + held.sum(-1))
    return -log_sigmoid(beta * total)


def sparse_pair(pairs, tokens, ref_tokens, mask, beta, sparsity):
    loss = []
    for i in range(len(pairs.chosen)):
        there = {side: getattr(tokens, f"{side}_length")[i] for side in ("chosen", "rejected")}
        m = {side: np.maximum(0.0, 1.0 + getattr(mask, side)[i][here]) for side, here in there.items()}
        ratio = {s: (getattr(tokens, s)[i] - getattr(ref_tokens, s)[i])[here] @ m[s] for s, here in there.items()}
        p = 1.0 / (1.0 + np.exp(beta * (ratio["rejected"] - ratio["chosen"])))
        loss.append(sparsity * np.concatenate(list(m.values())).mean() - np.log(p))
    return np.array(loss)


def ld_dpo(pairs, ref, tokens, ref_tokens, beta, alpha):
    """Full sums are those of the rows; what lies beyond the public length is taken down to alpha."""
    found = []
    for i in range(len(pairs.chosen)):
        n = min(tokens.chosen_length[i].sum(), tokens.rejected_length[i].sum())
        sums = {}
        for side in ("chosen", "rejected"):
            there = getattr(tokens, f"{side}_length")[i]
            policy = getattr(pairs, side)[i] - (1.0 - alpha) * getattr(tokens, side)[i][there][n:].sum()
            base = getattr(ref, side)[i] - (1.0 - alpha) * getattr(ref_tokens, side)[i][there][n:].sum()
            sums[side] = policy - base
        found.append(-log_sigmoid(beta * (sums["chosen"] - sums["rejected"])))
    return np.array(found)


def wpo(pairs, ref, collision, beta, max_weight):
    w = np.exp(pairs.chosen - collision.chosen) ** (1.0 / pairs.chosen_length)
    w = w * np.exp(pairs.rejected - collision.rejected) ** (1.0 / pairs.rejected_length)
    return np.minimum(max_weight, w) * -log_sigmoid(beta * margin(pairs, ref))


def irpo(pairs, ref, beta, alpha):
    return -log_sigmoid(beta * margin(pairs, ref)) - alpha * pairs.chosen / pairs.chosen_length


def cal_dpo(pairs, ref, beta, calibration):
    rho_w, rho_l = pairs.chosen - ref.chosen, pairs.rejected - ref.rejected
    squares = (rho_w - 0.5 / beta) ** 2 + (rho_l + 0.5 / beta) ** 2
    return -log_sigmoid(rho_w - rho_l) + calibration * squares


def mpo(pairs, ref, beta, dpo_weight, bco_weight, sft_weight):
    r_w, r_l = beta * (pairs.chosen - ref.chosen), beta * (pairs.rejected - ref.rejected)
    quality = -np.log(sigmoid(r_w)) - np.log(1.0 - sigmoid(r_l))
    generation = -pairs.chosen / pairs.chosen_length
    return dpo_weight * -log_sigmoid(r_w - r_l) + bco_weight * quality + sft_weight * generation


def anchored_dpo(pairs, ref, beta, weight, level, kind):
    r_w, r_l = beta * (pairs.chosen - ref.chosen), beta * (pairs.rejected - ref.rejected)
    logistic = -log_sigmoid(r_w - level) - log_sigmoid(-(r_l - level))
    square = (r_w - level) ** 2 + (r_l - level) ** 2
    return -log_sigmoid(r_w - r_l) + weight * (logistic if kind == "logistic" else square)


def aot_paired(pairs, ref, beta, label_smoothing):
    """Sorted margins of the policy less sorted ones of the reference; each loss put back where its margin came from."""
    policy, base = pairs.chosen - pairs.rejected, ref.chosen - ref.rejected
    u = beta * (np.sort(policy) - np.sort(base))
    found = np.empty_like(u)
    found[np.argsort(policy)] = -(1.0 - label_smoothing) * log_sigmoid(u) - label_smoothing * log_sigmoid(-u)
    return found


def aot_unpaired(points, ref, beta, label_smoothing):
    rho, good = points.logp - ref.logp, points.value >= 0.5

    def quantiles(values, n):
        """numpy's `hazen` quantiles: the i-th of n values lies at (i + 1/2) / n."""
        return np.quantile(values, (np.arange(n) + 0.5) / n, method="hazen")

    u = np.empty_like(rho)
    for mine, sign in ((good, 1.0), (~good, -1.0)):
        where = np.flatnonzero(mine)[np.argsort(rho[mine])]
        u[where] = beta * sign * (rho[where] - quantiles(rho[~mine], len(where)))
    return -(1.0 - label_smoothing) * log_sigmoid(u) - label_smoothing * log_sigmoid(-u)


def _draw(delta, noise, mean, std):
    return -0.5 * ((delta - mean) / std) ** 2 - np.log(-np.log(noise))


def dynamic_beta(pairs, ref, noise, state, beta, sensitivity, keep, momentum):
    assert state is None
    delta = margin(pairs, ref)
    mean, std = delta.mean(), delta.std(ddof=1)
    drawn, k = _draw(delta, noise, mean, std), int(keep * len(delta))
    order = np.argsort(-drawn)
    return {
        "beta": max(1e-3, beta * (1.0 + sensitivity * (delta[order[:k]].mean() - mean))),
        "mean": mean,
        "std": std,
        "least": 0.5 * (drawn[order[k - 1]] + drawn[order[k]]),
        "weight": len(delta) / k,
    }


def beta_dpo(pairs, ref, noise, stats, beta, sensitivity, keep, momentum):
    delta = margin(pairs, ref)
    k = int(keep * len(delta))
    kept = np.argsort(-_draw(delta, noise, stats["mean"], stats["std"]))[:k]
    found = np.zeros_like(delta)
    found[kept] = -log_sigmoid(stats["beta"] * delta[kept]) * len(delta) / k
    return found


def tr_dpo(pairs, moving_ref, beta, alpha, tau):
    return -log_sigmoid(beta * margin(pairs, moving_ref))


def spin(pairs, ref, beta):
    return -log_sigmoid(beta * margin(pairs, ref))


def upo(pairs, ref, beta, alpha):
    u, noise = beta * margin(pairs, ref), 1.0 - pairs.strength
    return -(1.0 - noise) * log_sigmoid(u) - noise * log_sigmoid(-u) - alpha * pairs.chosen / pairs.chosen_length


def least_confident(pairs, ref, extrapolated, state, progress, beta, label_smoothing, quantile, warmup, extrapolation):
    assert state is None
    doubt = 0.0 if progress < warmup else label_smoothing
    return {"threshold": np.quantile(beta * margin(extrapolated, ref), quantile), "doubt": doubt}


def selfie(pairs, ref, extrapolated, stats, beta, label_smoothing, quantile, warmup, extrapolation):
    u = beta * margin(pairs, ref)
    eps = np.where(beta * margin(extrapolated, ref) > stats["threshold"], 0.0, stats["doubt"])
    return -(1.0 - eps) * log_sigmoid(u) - eps * log_sigmoid(-u)


def mean_log_ratio(demos, ref):
    return {"mean": np.mean(demos.logp - ref.logp), "count": len(demos.logp)}


def hypo(demos, ref, stats):
    """KL(pi | pi_ref), one sample each."""
    return demos.logp - ref.logp


# --- closed-form gradients --------------------------------------------------------------------------------------------


def _opposite(c):
    return {"chosen": c, "rejected": -c}


def _flex(pairs, ref, beta_chosen, beta_rejected):
    s = sigmoid(beta_rejected * (pairs.rejected - ref.rejected) - beta_chosen * (pairs.chosen - ref.chosen))
    return {"chosen": -beta_chosen * s, "rejected": beta_rejected * s}


def _dpo_sft(pairs, ref, beta, alpha):
    s = sigmoid(-beta * margin(pairs, ref))
    return {"chosen": -beta * s - alpha, "rejected": beta * s}


def _slic(pairs, delta, alpha):
    active = (delta - pairs.chosen + pairs.rejected > 0.0).astype(float)
    return {"chosen": -(active + alpha), "rejected": active}


def _ulma(points, ref, log_z, beta, threshold, negatives):
    r = reward(points, ref, log_z, beta)
    bad = beta * sigmoid(r) if negatives == "binary" else -2.0 * beta * (points.value - r)
    return {"logp": np.where(points.value >= threshold, -1.0, bad)}


def _kto(points, ref, stats, beta, desirable_weight, undesirable_weight):
    v = beta * (points.logp - ref.logp - stats["z0"])
    weight = np.where(points.value >= 0.5, -desirable_weight, undesirable_weight)
    return {"logp": weight * beta * sigmoid(v) * sigmoid(-v)}


def _others(demos, ref, stats):
    rho = demos.logp - ref.logp
    return {"logp": np.array([rho[i] - np.delete(rho, i).mean() for i in range(len(rho))])}


def _dpop(pairs, ref, beta, penalty):
    rho = pairs.chosen - ref.chosen
    s = sigmoid(-beta * (margin(pairs, ref) - penalty * np.maximum(0.0, -rho)))
    return {"chosen": -beta * np.where(rho < 0.0, 1.0 + penalty, 1.0) * s, "rejected": beta * s}


def _fdpo(pairs, ref, beta, divergence, alpha):
    def slope(rho):
        power = {"reverse_kl": 0.0, "forward_kl": 1.0, "alpha": alpha}.get(divergence)
        return sigmoid(-rho) if power is None else np.exp(-power * rho)

    s = 1.0 - np.exp(-fdpo(pairs, ref, beta, divergence, alpha))
    w, l = slope(pairs.chosen - ref.chosen), slope(pairs.rejected - ref.rejected)
    return {"chosen": -beta * s * w, "rejected": beta * s * l}


def _tdpo2(pairs, ref, kl, beta, alpha):
    s = sigmoid(-beta * (margin(pairs, ref) - alpha * (kl.rejected - kl.chosen)))
    return {
        "chosen": -beta * s,
        "rejected": beta * s,
        "kl.chosen": np.zeros_like(s),
        "kl.rejected": alpha * beta * s,
    }


def _wpo(pairs, ref, collision, beta, max_weight):
    plain = -log_sigmoid(beta * margin(pairs, ref))
    return _opposite(-beta * sigmoid(-beta * margin(pairs, ref)) * wpo(pairs, ref, collision, beta, max_weight) / plain)


def _cal(pairs, ref, beta, calibration):
    s = sigmoid(-margin(pairs, ref))
    return {
        "chosen": -s + 2.0 * calibration * (pairs.chosen - ref.chosen - 0.5 / beta),
        "rejected": s + 2.0 * calibration * (pairs.rejected - ref.rejected + 0.5 / beta),
    }


def _exo(pairs, ref, beta, label_smoothing):
    u, eps = beta * margin(pairs, ref), label_smoothing
    return _opposite(beta * sigmoid(u) * sigmoid(-u) * (u - np.log((1.0 - eps) / eps)))


def _irpo(pairs, ref, beta, alpha):
    s = sigmoid(-beta * margin(pairs, ref))
    return {"chosen": -beta * s - alpha / pairs.chosen_length, "rejected": beta * s}


COEFFICIENTS = {
    "robust": lambda pairs, ref, beta, label_smoothing: _opposite(
        -beta * (sigmoid(-beta * margin(pairs, ref)) + label_smoothing / (1.0 - 2.0 * label_smoothing))
    ),
    "rso_hinge": lambda pairs, ref, beta: _opposite(-beta * (beta * margin(pairs, ref) < 1.0)),
    "exo_pref": _exo,
    "dpop": _dpop,
    "fdpo": _fdpo,
    "tdpo2": _tdpo2,
    "wpo": _wpo,
    "cal_dpo": _cal,
    "irpo": _irpo,
    "hypo": _others,
    "sft": lambda demos: {"logp": -np.ones_like(demos.logp)},
    "dpo": lambda pairs, ref, beta: _opposite(-beta * sigmoid(-beta * margin(pairs, ref))),
    "cdpo": lambda pairs, ref, beta, label_smoothing: _opposite(
        -beta * (sigmoid(-beta * margin(pairs, ref)) - label_smoothing)
    ),
    "soft_dpo": lambda pairs, ref, beta: _opposite(-beta * (pairs.strength - sigmoid(beta * margin(pairs, ref)))),
    "flex_dpo": _flex,
    "dpo_sft": _dpo_sft,
    "ipo": lambda pairs, ref, tau: _opposite(2.0 * (margin(pairs, ref) - 0.5 / tau)),
    "slic_hf": _slic,
    "simpo": lambda pairs, beta, gamma: _opposite(-beta * sigmoid(gamma - beta * (pairs.chosen - pairs.rejected))),
    "pointwise_dpo": lambda points, ref, log_z, beta: {
        "logp": beta * (sigmoid(reward(points, ref, log_z, beta)) - points.value)
    },
    "pointwise_dpo_continuous": lambda points, ref, log_z, beta: {
        "logp": -2.0 * beta * (points.value - reward(points, ref, log_z, beta))
    },
    "ulma": _ulma,
    "kto": _kto,
}

from tests.oracles_more import *  # noqa: E402, F403
from tests.oracles_more import MORE  # noqa: E402
from tests.oracles_rewards import *  # noqa: E402, F403
from tests.oracles_rewards import REWARDS  # noqa: E402
from tests.oracles_rollouts import *  # noqa: E402, F403
from tests.oracles_rollouts import ROLLOUTS  # noqa: E402

COEFFICIENTS |= MORE | REWARDS | ROLLOUTS
