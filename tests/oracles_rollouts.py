"""The oracles of `oracles.py` for sampled answers: loops over tokens, in numpy.

`ROLLOUTS` holds closed-form gradients, as `COEFFICIENTS` there.
"""

from __future__ import annotations

import numpy as np


def _each(rollouts, of):
    """`of(i, t)` summed over the tokens of each answer."""
    n, width = rollouts.mask.shape
    return np.array([sum(of(i, t) for t in range(width) if rollouts.mask[i, t]) for i in range(n)])


def _surrogate(ratio, advantage, clip):
    """By cases: what is gained is cut where the ratio has gone further than the clip in the direction of A."""
    if advantage >= 0:
        return -advantage * min(ratio, 1.0 + clip)
    return -advantage * max(ratio, 1.0 - clip)


def reinforce(rollouts):
    return _each(rollouts, lambda i, t: -rollouts.advantage[i, t] * rollouts.logp[i, t])


def ppo(rollouts, clip):
    def one(i, t):
        ratio = np.exp(rollouts.logp[i, t]) / np.exp(rollouts.old_logp[i, t])
        return _surrogate(ratio, rollouts.advantage[i, t], clip)

    return _each(rollouts, one)


def rloo(rollouts, clip):
    tokens = _each(rollouts, lambda i, t: 1)
    ratio = np.exp(_each(rollouts, lambda i, t: rollouts.logp[i, t] - rollouts.old_logp[i, t]))
    advantage = _each(rollouts, lambda i, t: rollouts.advantage[i, t]) / tokens
    return np.array([_surrogate(*x, clip) for x in zip(ratio, advantage, strict=True)])


def grpo(rollouts, ref_tokens, clip, beta):
    def k3(i, t):
        ratio = np.exp(ref_tokens.logp[i, t]) / np.exp(rollouts.logp[i, t])
        return ratio - np.log(ratio) - 1.0

    return (ppo(rollouts, clip) + beta * _each(rollouts, k3)) / _each(rollouts, lambda i, t: 1)


def dr_grpo(rollouts, clip, longest):
    return ppo(rollouts, clip) / longest


def critic(rollouts, value, returns, old_value, clip):
    def one(i, t):
        v, r, old = value.logp[i, t], returns[i, t], old_value[i, t]
        held = min(max(v, old - clip), old + clip)
        return max((v - r) ** 2, (held - r) ** 2) / 2.0

    return _each(rollouts, one)


ROLLOUTS = {"reinforce": lambda rollouts: {"logp": np.where(rollouts.mask, -rollouts.advantage, 0.0)}}
