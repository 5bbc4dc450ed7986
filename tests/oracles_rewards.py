"""The oracles of `oracles.py` for rewards: probabilities of orders, of levels and of turns, in numpy.

`REWARDS` holds closed-form gradients, as `COEFFICIENTS` there.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch


def _sigmoid(t):
    return 1.0 / (1.0 + np.exp(-t))


def _wins(score):
    """P(chosen is better) as a ratio of exponentials."""
    w, l = np.exp(score.chosen), np.exp(score.rejected)
    return w / (w + l)


def _pull(score, center):
    return center * (score.chosen + score.rejected) ** 2


def bradley_terry(pairs, score, label_smoothing, center):
    q = _wins(score)
    return -(1.0 - label_smoothing) * np.log(q) - label_smoothing * np.log(1.0 - q) + _pull(score, center)


def soft_bradley_terry(pairs, score, center):
    q = _wins(score)
    return -pairs.strength * np.log(q) - (1.0 - pairs.strength) * np.log(1.0 - q) + _pull(score, center)


def robust_bradley_terry(pairs, score, label_smoothing, center):
    """Solved for: l(m) = (1 - eps) L(right) + eps L(wrong), and the same with right and wrong exchanged."""
    q, eps = _wins(score), label_smoothing
    mixing = np.array([[1.0 - eps, eps], [eps, 1.0 - eps]])
    return np.linalg.solve(mixing, -np.log([q, 1.0 - q]))[0] + _pull(score, center)


def margin_bradley_terry(pairs, score, scale, center):
    q = _sigmoid(score.chosen - score.rejected - scale * pairs.score_chosen + scale * pairs.score_rejected)
    return -pairs.strength * np.log(q) - (1.0 - pairs.strength) * np.log(1.0 - q) + _pull(score, center)


def reward_difference(pairs, score, scale, center):
    w, l = score.chosen - scale * pairs.score_chosen, score.rejected - scale * pairs.score_rejected
    return (w - l) ** 2 / 2.0 + _pull(score, center)


def reward_regression(points, score):
    return (score.logp**2 - 2.0 * score.logp * points.value + points.value**2) / 2.0


def reward_binary(points, score):
    q = _sigmoid(score.logp)
    return -points.value * np.log(q) - (1.0 - points.value) * np.log(1.0 - q)


def _each(groups, score, loss):
    found = []
    for i, here in enumerate(groups.mask):
        places = np.flatnonzero(here)
        found.append(loss(groups.score[i, places], score.logp[i, places]))
    return np.array(found)


def reward_all_pairs(groups, score):
    def loss(rank, s):
        pairs = [(i, j) for i, j in itertools.permutations(range(len(s)), 2) if rank[i] > rank[j]]
        return np.mean([-np.log(_sigmoid(s[i] - s[j])) for i, j in pairs])

    return _each(groups, score, loss)


def plackett_luce(groups, score):
    """-log of the probability that drawing without replacement, by exp(s), gives the order."""

    def loss(rank, s):
        weights, p = np.exp(s)[np.argsort(-rank)], 1.0
        for k in range(len(weights)):
            p *= weights[k] / weights[k:].sum()
        return -np.log(p)

    return _each(groups, score, loss)


def reward_ordinal(points, score, cuts, levels):
    """Cross-entropy with the level, which is drawn between two where the value lies between."""
    found = []
    for value, s, u in zip(points.value, score.logp, cuts, strict=True):
        first = u[0] - (levels - 2) / 2 * np.log(2)
        b = first + np.concatenate([[0.0], np.cumsum(np.log1p(np.exp(u[1:])))])
        p = -np.diff(np.concatenate([[1.0], _sigmoid(s - b), [0.0]]))
        place = value * (levels - 1)
        low = min(int(place), levels - 2)
        found.append(-(low + 1 - place) * np.log(p[low]) - (place - low) * np.log(p[low + 1]))
    return np.array(found)


def reward_attributes(points, attributes, attribute, count):
    chosen = np.array([row[k] for row, k in zip(attributes.logp, attribute, strict=True)])
    return (points.value - chosen) ** 2 / 2.0


def gated_bradley_terry(pairs, attributes, gate, count, center):
    weights = np.exp(gate) / np.exp(gate).sum(1, keepdims=True)
    w, l = (np.einsum("bk,bk->b", weights, side) for side in (attributes.chosen, attributes.rejected))
    return np.log(1.0 + np.exp(l - w)) + center * (w + l) ** 2


def gpm(pairs, embedding, gate, dimensions, tau, normalise, prompt_head):
    """<R v, w> with R block-skew, as a matrix for every example."""
    found = []
    for v, w, g, p in zip(embedding.chosen, embedding.rejected, gate, pairs.strength, strict=True):
        scale = np.ones(dimensions // 2)
        if prompt_head != "none":
            scale = np.exp(g) / np.exp(g).sum() * (dimensions // 2 if prompt_head == "scaled" else 1)
        turn = np.kron(np.diag(scale), np.array([[0.0, 1.0], [-1.0, 0.0]]))
        if normalise:
            v, w = v / np.linalg.norm(v), w / np.linalg.norm(w)
        m = v @ turn @ w / tau
        found.append(p * np.logaddexp(0.0, -m) + (1.0 - p) * np.logaddexp(0.0, m))
    return np.array(found)


def _pair(score, slope, center):
    both = 2.0 * center * (score.chosen + score.rejected)
    return {"score.chosen": slope + both, "score.rejected": -slope + both}


def _views(hidden, noise, of, dropout):
    """Two lists of the texts of pair after pair; the masks are drawn as the row says, by the noise of the pair."""
    w, l = hidden.chosen, hidden.rejected
    texts = [t for a, b in zip(w, l, strict=True) for t in ((a - b, b - a) if of == "differences" else (a, b))]
    views = [[], []]
    for i, u in enumerate(noise):
        drawn = torch.rand(2, 2, w.shape[1], generator=torch.Generator().manual_seed(int(float(u) * 2**53)))
        for view, masks in zip(views, (drawn >= dropout).numpy(), strict=True):
            view += [texts[2 * i + side] * masks[side] for side in (0, 1)]
    return views


def simcse(pairs, hidden, noise, of, temperature, dropout):
    """Pair by pair and text by text."""
    views = _views(hidden, noise, of, dropout)

    def likeness(a, b):
        return np.exp(a @ b / np.sqrt((a @ a) * (b @ b)) / temperature)

    own = np.array([likeness(a, b) for a, b in zip(*views, strict=True)])
    everyone = np.array([sum(likeness(a, b) for b in views[1]) for a in views[0]])
    return -np.log(own / everyone).reshape(-1, 2).mean(1)


def _near(texts, prototypes, clusters):
    found = np.empty((len(texts), clusters))
    for i, t in enumerate(texts):
        for k, c in enumerate(np.split(prototypes[i // 2], clusters)):
            found[i, k] = t @ c / np.sqrt((t @ t) * (c @ c))
    return found


def _codes(near, epsilon):
    """The scaled matrix of arXiv 2006.09882, rows of texts and columns of prototypes, each row of sum 1."""
    codes = np.exp(near / epsilon)
    for _ in range(3):
        codes = codes / codes.sum(0) / codes.shape[1]
        codes = codes / codes.sum(1, keepdims=True) / codes.shape[0]
    return codes * len(codes)


def swav_balance(pairs, hidden, noise, prototypes, of, clusters, epsilon, dropout):
    """What the codes of the first text have become by, beside a factor of its own."""
    nears = [_near(view, prototypes, clusters) for view in _views(hidden, noise, of, dropout)]
    factors = np.array([_codes(near, epsilon)[0] / np.exp(near[0] / epsilon) for near in nears])
    return {"log_factor": np.log(factors / factors.sum(1, keepdims=True))}


def swav(pairs, hidden, noise, prototypes, stats, of, clusters, temperature, epsilon, dropout):
    a, b = (_near(view, prototypes, clusters) for view in _views(hidden, noise, of, dropout))
    p_a, p_b = (np.exp(x / temperature) / np.exp(x / temperature).sum(1, keepdims=True) for x in (a, b))
    each = (_codes(b, epsilon) * np.log(p_a) + _codes(a, epsilon) * np.log(p_b)).sum(1)
    return -each.reshape(-1, 2).mean(1)


REWARDS = {
    "bradley_terry": lambda pairs, score, label_smoothing, center: _pair(
        score, label_smoothing - _sigmoid(score.rejected - score.chosen), center
    ),
    "soft_bradley_terry": lambda pairs, score, center: _pair(score, _wins(score) - pairs.strength, center),
    "robust_bradley_terry": lambda pairs, score, label_smoothing, center: _pair(
        score, _wins(score) - 1.0 - label_smoothing / (1.0 - 2.0 * label_smoothing), center
    ),
    "reward_difference": lambda pairs, score, scale, center: _pair(
        score, score.chosen - score.rejected - scale * (pairs.score_chosen - pairs.score_rejected), center
    ),
    "reward_regression": lambda points, score: {"score.logp": score.logp - points.value},
    "reward_binary": lambda points, score: {"score.logp": _sigmoid(score.logp) - points.value},
}
