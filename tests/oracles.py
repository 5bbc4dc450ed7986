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


def unlearning(points):
    return np.where(points.value >= 0.5, -1.0, 1.0) * points.logp


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


COEFFICIENTS = {
    "sft": lambda demos: {"logp": -np.ones_like(demos.logp)},
    "unlearning": lambda points: {"logp": np.where(points.value >= 0.5, -1.0, 1.0)},
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
