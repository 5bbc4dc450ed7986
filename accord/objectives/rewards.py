"""What is asked of a reward? What heads say at a response's last token, and no log-prob.

Notation: s_w, s_l are the rewards of chosen and rejected, s that of a single response; m = s_w - s_l;
l(m) = -log sigmoid(m); p = strength, P(chosen is better); R a score that somebody gave.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from accord.errors import ConfigError
from accord.objectives._links import finite, label_noise, log1mexp, not_negative, positive, soft_logistic, square, whole
from accord.objectives.kinds import Groups, Pairs, Points, require_float32
from accord.objectives.table import row


def margin(score: Pairs) -> Tensor:
    """m [B] of the rewards of a pair."""
    require_float32(score.chosen, score.rejected)
    return score.chosen - score.rejected


def centred(score: Pairs, center: float) -> Tensor:
    """center * (s_w + s_l)^2 [B]: holds rewards at 0, where differences alone would leave them anywhere."""
    not_negative(center=center)
    return center * (score.chosen + score.rejected).square()


@row(paper="1706.03741", init="log(2)", invariance="shift", logps=False)
def bradley_terry(pairs: Pairs, score: Pairs, *, label_smoothing: float = 0.0, center: float = 0.0) -> Tensor:
    """A reward model: the probability that chosen is better is the logistic of the difference of rewards.

    Equation:
        L = (1 - label_smoothing) * l(m) + label_smoothing * l(-m) + center * (s_w + s_l)^2
        dL/ds_w = sigmoid(m) - 1 + label_smoothing = -dL/ds_l at center = 0: as steep for either side
        Least at m = log((1 - label_smoothing) / label_smoothing), and with center where s_w + s_l = 0.

    Args:
        pairs: not read beyond its size.
        score: the rewards of chosen and rejected [B], logits.
        label_smoothing: how often a label is taken to be wrong, in [0, 0.5).
        center: weight of the pull of the rewards to 0, 0 or more (arXiv 2312.09244 recommends 0.01).

    Returns:
        [B], log 2 where both rewards are equal and sum to 0: a new head gives 0 to all.

    Source: arXiv 1706.03741, eq. 1; as a language model's head in 2009.01325, smoothed in 2401.06080. TRL's
    RewardTrainer calls `center` center_rewards_coefficient, and smooths nothing.

    Example: s_w = 1.5, s_l = 0.5, center = 0.01: L = log(1 + exp(-1)) + 0.01 * 4 = 0.353262.

    >>> from accord.objectives.example import pairs
    >>> round(bradley_terry(pairs(-10, -12), pairs(1.5, 0.5), center=0.01).item(), 6)
    0.353262
    """
    label_noise(label_smoothing)
    return soft_logistic(margin(score), 1.0 - label_smoothing) + centred(score, center)


@row(paper="2401.06080", init="log(2)", invariance="shift", logps=False)
def soft_bradley_terry(pairs: Pairs, score: Pairs, *, center: float = 0.0) -> Tensor:
    """Bradley-Terry with soft labels: the share of the judges who took chosen is what the logistic goes to.

    Equation:
        L = p * l(m) + (1 - p) * l(-m) + center * (s_w + s_l)^2
        dL/ds_w = sigmoid(m) - p = -dL/ds_l at center = 0
        Least at m = log(p / (1 - p)).

    Args:
        pairs: strength [B], P(chosen is better): of votes, of a judge, or of an ensemble of reward models.
        score: the rewards of chosen and rejected [B], logits.
        center: weight of the pull of the rewards to 0, 0 or more.

    Returns:
        [B], log 2 where both rewards are equal and sum to 0. Where p is 1 it is `bradley_terry`.

    Source: arXiv 2401.06080 (soft labels from an ensemble of reward models).

    Example: s_w = 1.5, s_l = 0.5, p = 0.8: L = 0.8 * 0.313262 + 0.2 * 1.313262 = 0.513262.

    >>> from accord.objectives.example import pairs
    >>> round(soft_bradley_terry(pairs(-10, -12, strength=0.8), pairs(1.5, 0.5)).item(), 6)
    0.513262
    """
    return soft_logistic(margin(score), pairs.strength) + centred(score, center)


@row(paper="2403.00409", init="log(2)", invariance="shift", logps=False)
def robust_bradley_terry(pairs: Pairs, score: Pairs, *, label_smoothing: float = 0.1, center: float = 0.0) -> Tensor:
    """Bradley-Terry of labels that are wrong at a known rate: on average it is the loss of the right labels.

    Equation:
        L = [(1 - eps) * l(m) - eps * l(-m)] / (1 - 2 eps) + center * (s_w + s_l)^2,  eps = label_smoothing
        dL/ds_w = -sigmoid(-m) - eps / (1 - 2 eps) = -dL/ds_l at center = 0: it never rests
        The mean over labels that are flipped with probability eps is l(m) of the right label.

    Args:
        pairs: not read beyond its size.
        score: the rewards of chosen and rejected [B], logits.
        label_smoothing: how often a label is wrong, in [0, 0.5).
        center: weight of the pull of the rewards to 0, 0 or more.

    Returns:
        [B], log 2 where both rewards are equal and sum to 0. A pair that is always judged alike draws its margin
        without bound.

    Source: arXiv 2403.00409 (rDPO, see `robust`), its loss on a reward model's margin in place of a policy's.

    Example: s_w = 1.5, s_l = 0.5, eps = 0.1: L = (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8 = 0.188262.

    >>> from accord.objectives.example import pairs
    >>> round(robust_bradley_terry(pairs(-10, -12), pairs(1.5, 0.5)).item(), 6)
    0.188262
    """
    label_noise(label_smoothing)
    right = (1.0 - label_smoothing) / (1.0 - 2.0 * label_smoothing)
    return soft_logistic(margin(score), right) + centred(score, center)


@row(paper="2307.09288", invariance="shift", values="scores", logps=False)
def margin_bradley_terry(pairs: Pairs, score: Pairs, *, scale: float = 1.0, center: float = 0.0) -> Tensor:
    """Bradley-Terry with a margin: the more chosen was judged to be better, the further the rewards go apart.

    Equation:
        L = p * l(m - d) + (1 - p) * l(d - m) + center * (s_w + s_l)^2,  d = scale * (R_w - R_l)
        dL/ds_w = sigmoid(m - d) - p = -dL/ds_l at center = 0
        Least at m = d + log(p / (1 - p)).

    Args:
        pairs: score_chosen, score_rejected [B], R, or a stated margin for their difference; strength [B], p.
        score: the rewards of chosen and rejected [B], logits.
        scale: logits for a unit of R.
        center: weight of the pull of the rewards to 0, 0 or more.

    Returns:
        [B], log(1 + exp(d)) at equal rewards where p is 1.

    Source: arXiv 2307.09288 (Llama 2), with margins 1, 2/3, 1/3, 0 for four degrees of better, or 3, 2, 1, 0; TRL's
    RewardTrainer takes a column `margin`. In 2401.06080 the margin is an ensemble's mean, with soft labels too; its
    eq. 6 prints it outside of the logistic.

    Example: s_w = 1.5, s_l = 0.5, R_w - R_l = 2: L = log(1 + exp(-(1 - 2))) = 1.313262.

    >>> from accord.objectives.example import pairs
    >>> round(margin_bradley_terry(pairs(-10, -12, scores=(3.0, 1.0)), pairs(1.5, 0.5)).item(), 6)
    1.313262
    """
    finite(scale=scale)
    gap = pairs.score_chosen - pairs.score_rejected
    return soft_logistic(margin(score) - scale * gap, pairs.strength) + centred(score, center)


@row(
    paper="2410.02197",
    init="(scale*(score_chosen - score_rejected))**2/2",
    invariance="shift",
    values="scores",
    logps=False,
)
def reward_difference(pairs: Pairs, score: Pairs, *, scale: float = 1.0, center: float = 0.0) -> Tensor:
    """Pairwise difference regression: rewards lie as far apart as the scores of the answers do.

    Equation:
        L = 1/2 * (m - scale * (R_w - R_l))^2 + center * (s_w + s_l)^2
        dL/ds_w = m - scale * (R_w - R_l) = -dL/ds_l at center = 0

    Args:
        pairs: score_chosen, score_rejected [B], R, or a stated margin for their difference.
        score: the rewards of chosen and rejected [B].
        scale: of rewards for a unit of R.
        center: weight of the pull of the rewards to 0, 0 or more.

    Returns:
        [B], half the square of the target where both rewards are equal and sum to 0.

    Source: arXiv 2410.02197 (the official code was read: m is divided by a temperature tau there, which is scale = tau
    and a loss by tau^2 smaller, and the target may be 5 sigmoid(R_w - R_l)).

    Example: s_w = 1.5, s_l = 0.5, R_w - R_l = 2: L = 1/2 * (1 - 2)^2 = 0.5.

    >>> from accord.objectives.example import pairs
    >>> round(reward_difference(pairs(-10, -12, scores=(3.0, 1.0)), pairs(1.5, 0.5)).item(), 6)
    0.5
    """
    finite(scale=scale)
    gap = pairs.score_chosen - pairs.score_rejected
    return 0.5 * square(margin(score), scale * gap) + centred(score, center)


@row(paper="2311.09528", init="value**2/2", logps=False)
def reward_regression(points: Points, score: Points) -> Tensor:
    """Regression: a response's reward is the rating that it got.

    Equation:
        L = 1/2 * (s - value)^2
        dL/ds = s - value

    Args:
        points: value [B], a rating on any scale, or a label.
        score: the reward [B], in the rating's units.

    Returns:
        [B], half the square of the value at a new head, which gives 0 to all; `view: {rescale: centred}` puts the
        middle of the scale there.

    Source: arXiv 2311.09528 (HelpSteer), which regresses several attributes (`reward_attributes`).

    Example: s = 1.5, value = 3: L = 1/2 * 1.5^2 = 1.125.

    >>> from accord.objectives.example import points
    >>> round(reward_regression(points(-10, 3.0), points(1.5)).item(), 6)
    1.125
    """
    require_float32(score.logp)
    return 0.5 * square(score.logp, points.value)


@row(paper="2110.14168", init="log(2)", values="probability", logps=False)
def reward_binary(points: Points, score: Points) -> Tensor:
    """Right or wrong: the logistic of a response's reward is the probability that it is good (an outcome reward model).

    Equation:
        L = value * l(s) + (1 - value) * l(-s)
        dL/ds = sigmoid(s) - value
        Least at s = log(value / (1 - value)).

    Args:
        points: value [B], P(good) in [0, 1]: a label, or the share of those who found it good.
        score: the reward [B], a logit.

    Returns:
        [B], log 2 at a new head.

    Source: arXiv 2110.14168 (verifiers), here at the last token of a solution; there every token is scored.

    Example: s = 1.5, value = 1: L = log(1 + exp(-1.5)) = 0.201413.

    >>> from accord.objectives.example import points
    >>> round(reward_binary(points(-10, 1.0), points(1.5)).item(), 6)
    0.201413
    """
    require_float32(score.logp)
    return soft_logistic(score.logp, points.value)


@row(paper="2312.07401", init="log(2)", invariance="shift", logps=False)
def reward_all_pairs(groups: Groups, score: Groups) -> Tensor:
    """All pairs of a group: the mean Bradley-Terry loss over every two responses of which one was scored higher.

    Equation:
        L = mean over i, j with R_i > R_j of l(s_i - s_j)
        dL/ds_i = [sum over better j of sigmoid(s_i - s_j) - sum over worse j of sigmoid(s_j - s_i)] / number of pairs

    Args:
        groups: score [B, K], R, of which the order alone counts; mask.
        score: the rewards [B, K], logits.

    Returns:
        [B], log 2 at a new head; 0 for a group of equal scores, which says nothing.

    Source: arXiv 2312.07401 (MORE; the official code was read: pairs that are padding are masked); a mean over a
    prompt's pairs is arXiv 2203.02155's, too. Of two responses it is `bradley_terry`.

    Example: s = (1.5, 0.5), R = (1, 0): L = log(1 + exp(-1)) = 0.313262.

    >>> from accord.objectives.example import groups
    >>> round(reward_all_pairs(groups([-10, -12], [1, 0]), groups([1.5, 0.5], [1, 0])).item(), 6)
    0.313262
    """
    require_float32(score.logp)
    s = torch.where(groups.mask, score.logp, 0.0)
    both = groups.mask[:, :, None] & groups.mask[:, None]
    pairs = both & (groups.score[:, :, None] > groups.score[:, None])
    each = torch.where(pairs, soft_logistic(s[:, :, None] - s[:, None]), 0.0)
    return each.sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


@row(paper="2305.18290", invariance="shift", logps=False)
def plackett_luce(groups: Groups, score: Groups) -> Tensor:
    """Plackett-Luce: the best is taken by a softmax of rewards, then the next one of those that are left.

    Equation:
        L = -sum over i of log [exp(s_i) / sum over j with R_j <= R_i of exp(s_j)]
        dL/ds_i = sum over k with R_k >= R_i of softmax(s over R_j <= R_k)_i - 1

    Args:
        groups: score [B, K], R, of which the order alone counts; mask. Equal scores compete with each other.
        score: the rewards [B, K], logits.

    Returns:
        [B] nats, log K! at a new head and without ties.

    Source: arXiv 2305.18290, appendix A.3 (there for the implicit rewards of a policy); ties as Breslow has them in
    Cox's partial likelihood. Of two responses it is `bradley_terry`.

    Example: s = (1.5, 0.5, 0), R = (2, 1, 0): L = log(1 + e^-1 + e^-1.5) + log(1 + e^-0.5) = 0.938446.

    >>> from accord.objectives.example import groups
    >>> round(plackett_luce(groups([-9, -10, -12], [2, 1, 0]), groups([1.5, 0.5, 0], [2, 1, 0])).item(), 6)
    0.938446
    """
    require_float32(score.logp)
    least = torch.finfo(score.logp.dtype).min
    s = torch.where(groups.mask, score.logp, 0.0)
    left = groups.mask[:, None] & ~(groups.score[:, None] > groups.score[:, :, None])  # [B, i, j]: not better than i
    among = torch.where(left, s[:, None], least).logsumexp(-1)
    return torch.where(groups.mask, among - s, 0.0).sum(-1)


@row(paper="none", values="probability", logps=False)
def reward_ordinal(points: Points, score: Points, cuts: Tensor, *, levels: int = 5) -> Tensor:
    """Ordinal regression: rewards stand on a line, and learned cuts part the ratings on it.

    Equation:
        P(level > k) = sigmoid(s - b_k),  b_1 = u_1 - (levels - 2)/2 * log 2,  b_k+1 = b_k + log(1 + exp(u_k+1))
        L = -sum over levels j of w_j log P(j),  w on the two levels next to value * (levels - 1), by nearness
        dL/ds = sum over j of w_j (sigmoid(s - b_j) + sigmoid(s - b_j+1) - 1),  b_0 = -inf, b_levels = inf

    Args:
        points: value [B] in [0, 1], 0 the lowest level and 1 the highest (`view: {rescale: unit}`); between two levels,
            like the mean of several who rated, both count.
        score: the reward [B], a logit.
        cuts: u [B, levels - 1], learned, the same for all.
        levels: how many ratings there are, 2 or more.

    Returns:
        [B] nats. How far ratings are apart is learned; one more of s makes the odds of being above any cut e times
        as large.

    Source: no arXiv id: P. McCullagh, Regression Models for Ordinal Data, 1980 (proportional odds); the form of the
    cuts is ours.

    Example: levels = 3, u = (0, 0), s = 0, value = 1: b_2 = 0.346574, L = -log sigmoid(-0.346574) = 0.881374.

    >>> from accord.objectives.example import points
    >>> round(reward_ordinal(points(-10, 1.0), points(0.0), torch.zeros(1, 2).double(), levels=3).item(), 6)
    0.881374
    """
    require_float32(score.logp)
    whole(levels=levels - 1)
    gaps, first = F.softplus(cuts[:, 1:]), cuts[:, :1] - (levels - 2) / 2 * F.softplus(cuts[:, :1] * 0)
    above = score.logp[:, None] - torch.cat([first, first + gaps.cumsum(-1)], -1)  # s - b
    end = torch.zeros_like(first)  # log of 1
    low, high = torch.cat([end, F.logsigmoid(above)], -1), torch.cat([F.logsigmoid(-above), end], -1)
    log_p = low + high + torch.cat([end, log1mexp(-gaps), end], -1)
    apart = (points.value * (levels - 1))[:, None] - torch.arange(levels, dtype=log_p.dtype, device=log_p.device)
    return -((1.0 - apart.abs()).clamp(min=0.0) * log_p).sum(-1)


@row(paper="2311.09528", init="value**2/2", logps=False)
def reward_attributes(points: Points, attributes: Points, attribute: Tensor, *, count: int = 5) -> Tensor:
    """Regression of several attributes: helpfulness, correctness, verbosity, each a number of its own.

    Equation:
        L = 1/2 * (s_k - value)^2,  k the attribute that the rating is of
        dL/ds_k = s_k - value; 0 for every other

    Args:
        points: value [B], the rating of a response in one attribute; a response has as many examples as ratings.
        attributes: the rewards [B, count].
        attribute: which of them the rating is of, [B], from 0.
        count: how many there are: as many as `view: {attributes: [...]}` names.

    Returns:
        [B], half the square of the value at a new head.

    Source: arXiv 2311.09528 (HelpSteer, SteerLM); 2406.12845 (ArmoRM) trains such a head first, and a mixture of it
    then (`gated_bradley_terry`).

    Example: s = (1.5, 0, 2), value = 3 of the first: L = 1/2 * 1.5^2 = 1.125.

    >>> from dataclasses import replace
    >>> from accord.objectives.example import points
    >>> heads = replace(points(0), logp=torch.tensor([[1.5, 0.0, 2.0]]))
    >>> round(reward_attributes(points(-10, 3.0), heads, torch.tensor([0]), count=3).item(), 6)
    1.125
    """
    require_float32(attributes.logp)
    whole(count=count)
    return 0.5 * square(attributes.logp.gather(-1, attribute[:, None]).squeeze(-1), points.value)


def mixed(attributes: Tensor, gate: Tensor) -> Tensor:
    """The rewards of several attributes [..., A], weighed by softmax(gate) [..., A], as one [...]."""
    return (gate.softmax(-1) * attributes).sum(-1)


@row(paper="2406.12845", init="log(2)", invariance="shift", logps=False)
def gated_bradley_terry(
    pairs: Pairs, attributes: Pairs, gate: Tensor, *, count: int = 5, center: float = 0.0
) -> Tensor:
    """A gated mixture: the prompt says how much each attribute counts, and the mixtures of two responses are compared.

    Equation:
        s = sum over k of softmax(g)_k * (reward in attribute k),  g from the last token of the prompt
        L = l(m) + center * (s_w + s_l)^2

    Args:
        pairs: not read beyond its size.
        attributes: the rewards of chosen and rejected in each attribute, [B, count].
        gate: g [B, count], of the prompt that both answer.
        count: how many attributes there are.
        center: weight of the pull of the mixture to 0, 0 or more.

    Returns:
        [B], log 2 at new heads, which weigh all attributes alike.

    Source: arXiv 2406.12845 (ArmoRM; its abstract was read): there a gate of several layers over attributes that are
    held, and a penalty for verbosity. Here it is one layer, and all of it learns: {ratings: reward_attributes, pairs:
    gated_bradley_terry}.

    Example: (2, 0) against (0, 1), g = (0, 0): m = 1 - 0.5, L = log(1 + exp(-0.5)) = 0.474077.

    >>> from dataclasses import replace
    >>> from accord.objectives.example import pairs
    >>> heads = replace(pairs(0, 0), chosen=torch.tensor([[2.0, 0.0]]), rejected=torch.tensor([[0.0, 1.0]]))
    >>> round(gated_bradley_terry(pairs(-10, -12), heads, torch.zeros(1, 2), count=2).item(), 6)
    0.474077
    """
    require_float32(attributes.chosen, attributes.rejected)
    whole(count=count)
    w, l = mixed(attributes.chosen, gate), mixed(attributes.rejected, gate)
    not_negative(center=center)
    return soft_logistic(w - l) + center * (w + l).square()


def preference(
    chosen: Tensor, rejected: Tensor, gate: Tensor, tau: float, normalise: bool, prompt_head: str = "none"
) -> Tensor:
    """log-odds [B] that chosen is better: sum over blocks b of c_b (v_2b w_2b+1 - v_2b+1 w_2b) / tau.

    chosen, rejected: embeddings v, w [B, 2k]; gate [B, k] makes c: 1 where `prompt_head` is none, softmax(gate), or k
    times that where it is `scaled`.
    """
    if normalise:
        chosen, rejected = F.normalize(chosen, dim=-1), F.normalize(rejected, dim=-1)
    v, w = chosen.unflatten(-1, (-1, 2)), rejected.unflatten(-1, (-1, 2))
    turned = v[..., 0] * w[..., 1] - v[..., 1] * w[..., 0]
    if prompt_head != "none":
        turned = turned * gate.softmax(-1) * (gate.shape[-1] if prompt_head == "scaled" else 1)
    return turned.sum(-1) / tau


@row(paper="2410.02197", logps=False, aliases=("general_preference",))
def gpm(
    pairs: Pairs,
    embedding: Pairs,
    gate: Tensor,
    *,
    dimensions: int = 6,
    tau: float = 0.1,
    normalise: bool = True,
    prompt_head: Literal["none", "softmax", "scaled"] = "none",
) -> Tensor:
    """General Preference Model: responses are embedded in planes, and what is preferred may go in circles.

    Equation:
        m = sum over blocks b of c_b (v_2b w_2b+1 - v_2b+1 w_2b) / tau,  v of chosen, w of rejected
        L = p * l(m) + (1 - p) * l(-m)
        m(y, y') = -m(y', y), so nothing is better than itself. With v = (r, 1), not normalised, it is `bradley_terry`.

    Args:
        pairs: strength [B], p.
        embedding: of chosen and rejected, [B, dimensions].
        gate: [B, dimensions / 2], of the prompt; read unless prompt_head is none.
        dimensions: 2k, an even number: k blocks hold any skew-symmetric scores of rank 2k.
        tau: temperature, above 0.
        normalise: whether embeddings are made of length 1 first.
        prompt_head: what the gate makes c: `none` 1, `softmax` of it, `scaled` k times that.

    Returns:
        [B] nats. A response alone has no reward; over a set, its mean margin stands for one.

    Source: arXiv 2410.02197 (the official code was read: it normalises in its example of inference and not in its
    training, and has two scales of the prompt head; both are options here, and are saved with the model). The head
    starts at random, with deviation 1 / (width + 1): at zero it would have no slope.

    Example: unit vectors at 0 and 120 degrees, tau = 1: m = sin(120 degrees) = 0.866025, L = log(1 + e^-m) = 0.351093.

    >>> from dataclasses import replace
    >>> from accord.objectives.example import pairs
    >>> heads = replace(pairs(0, 0), chosen=torch.tensor([[1.0, 0.0]]), rejected=torch.tensor([[-0.5, 0.75**0.5]]))
    >>> round(gpm(pairs(-10, -12), heads, torch.zeros(1, 1), dimensions=2, tau=1.0).item(), 6)
    0.351093
    """
    require_float32(embedding.chosen, embedding.rejected)
    positive(tau=tau)
    if dimensions < 2 or dimensions % 2:
        raise ConfigError(f"dimensions={dimensions} must be an even number, 2 or more: preferences turn in planes")
    m = preference(embedding.chosen, embedding.rejected, gate, tau, normalise, prompt_head)
    return soft_logistic(m, pairs.strength)


def views(hidden: Pairs, noise: Tensor, of: str, dropout: float) -> Tensor:
    """The two texts of each pair under two dropout masks, of length 1: [2 masks, B, 2 texts, h].

    Of `responses` the texts are h_w and h_l, of `differences` h_w - h_l and h_l - h_w. noise [B] draws the masks.
    """
    require_float32(hidden.chosen, hidden.rejected)
    if not 0 <= dropout < 1:
        raise ConfigError(
            f"dropout={dropout} must be in [0, 1): the share of numbers that a mask hides; leave it out for 0.05"
        )
    if of not in ("differences", "responses"):
        raise ConfigError(f"of={of!r} must be differences or responses")
    w, l = hidden.chosen, hidden.rejected
    x = torch.stack([w - l, l - w] if of == "differences" else [w, l], 1)
    drawn = [torch.Generator().manual_seed(int(u * 2**53)) for u in noise.tolist()]
    masks = torch.stack([torch.rand(2, *x.shape[1:], generator=g) for g in drawn], 1) >= dropout
    return F.normalize(x * masks.to(x.device), dim=-1)


@row(
    paper="2401.06080",
    invariance="shift",
    couples="batch",
    logps=False,
    beside="an objective on rewards: [bradley_terry, {name: simcse, weight: 1.0}]",
    exceptions={"13": "a text is nearest to itself from the start, and little is left to learn"},
)
def simcse(
    pairs: Pairs,
    hidden: Pairs,
    noise: Tensor,
    *,
    of: Literal["differences", "responses"] = "differences",
    temperature: float = 0.05,
    dropout: float = 0.05,
) -> Tensor:
    """SimCSE beside a reward model: a text is nearest to itself under another dropout mask, and far from all others.

    Equation:
        x_i of `responses`: h_w and h_l of every pair; of `differences`: h_w - h_l and h_l - h_w
        a_i, b_i = x_i under two dropout masks;  s_ij = cos(a_i, b_j) / temperature
        L = mean over the two x_i of a pair of -log(e^s_ii / sum_j e^s_ij)

    Args:
        pairs: not read beyond its size.
        hidden: of the last tokens of chosen and rejected, [B, h].
        noise: in [0, 1), [B]: draws the masks of each pair.
        of: what is told apart.
        temperature: of the cosines, above 0.
        dropout: share of the hidden state's numbers that a mask hides, in [0, 1).

    Returns:
        [B] nats, at most about log(2B) for cosines without meaning, over the whole batch.

    Source: arXiv 2401.06080 (dropout 0.05 and weight 1; the paper, whose code is not released, masks within the trunk
    and puts the reward loss on both views as well; here the last hidden state is masked, which takes one pass). The
    temperature is that of SimCSE (arXiv 2104.08821).

    Example: one pair, h_w = (1, 0), h_l = (0, 1), of responses, temperature 1, dropout 0: L = log(1 + 1/e) = 0.313262.

    >>> from dataclasses import replace
    >>> from accord.objectives.example import pairs
    >>> h = replace(pairs(0, 0), chosen=torch.tensor([[1.0, 0.0]]), rejected=torch.tensor([[0.0, 1.0]]))
    >>> round(simcse(pairs(-10, -12), h, torch.zeros(1), of="responses", temperature=1.0, dropout=0.0).item(), 6)
    0.313262
    """
    positive(temperature=temperature)
    a, b = views(hidden, noise, of, dropout).flatten(1, 2)
    own = torch.arange(len(a), device=a.device)
    return F.cross_entropy(a @ b.T / temperature, own, reduction="none").view(-1, 2).mean(1)


def nearness(hidden: Pairs, noise: Tensor, prototypes: Tensor, of: str, clusters: int, dropout: float) -> Tensor:
    """Cosines of the texts of each pair, under two masks, with the prototypes: [2 masks, B, 2 texts, clusters]."""
    whole(clusters=clusters)
    directions = F.normalize(prototypes.unflatten(-1, (clusters, -1)), dim=-1)
    return torch.einsum("vbth,bkh->vbtk", views(hidden, noise, of, dropout), directions)


def swav_balance(
    pairs: Pairs,
    hidden: Pairs,
    noise: Tensor,
    prototypes: Tensor,
    *,
    of: Literal["differences", "responses"] = "differences",
    clusters: int = 20,
    epsilon: float = 0.05,
    dropout: float = 0.05,
) -> dict[str, Tensor]:
    """log of the factors [2 masks, clusters], of sum 1, by which three rounds of Sinkhorn make the prototypes' shares
    of the batch alike."""
    positive(epsilon=epsilon)
    near = nearness(hidden, noise, prototypes, of, clusters, dropout).flatten(1, 2) / epsilon  # [2, 2B, clusters]
    text = torch.zeros_like(near[..., :1])
    for _ in range(3):
        factor = -(near + text).logsumexp(1, keepdim=True)
        text = -(near + factor).logsumexp(2, keepdim=True)
    return {"log_factor": factor[:, 0].log_softmax(-1)}


@row(
    paper="2401.06080",
    invariance="shift",
    stats="swav_balance",
    logps=False,
    beside="an objective on rewards: [bradley_terry, {name: swav, weight: 0.5}]",
    exceptions={"3": "the codes are what is predicted, and held"},
)
def swav(
    pairs: Pairs,
    hidden: Pairs,
    noise: Tensor,
    prototypes: Tensor,
    stats: dict[str, Tensor],
    *,
    of: Literal["differences", "responses"] = "differences",
    clusters: int = 20,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    dropout: float = 0.05,
) -> Tensor:
    """SwAV beside a reward model: which of some learned directions a text is near to is told from another dropout mask.

    Equation:
        a_i, b_i: the two texts of each pair under two dropout masks, of length 1, as in `simcse`;  c_k of length 1
        p(a)_k = softmax over k of a c_k / temperature;  q(a)_k = softmax over k of a c_k / epsilon + log f_k, held
        L = mean over the two texts of a pair of -sum over k of [q(b_i)_k log p(a_i)_k + q(a_i)_k log p(b_i)_k]
        f_k: three rounds of Sinkhorn, after which all prototypes have about the same share of the batch's texts.

    Args:
        pairs: not read beyond its size.
        hidden: of the last tokens of chosen and rejected, [B, h].
        noise: in [0, 1), [B]: draws the masks of each pair.
        prototypes: c, [B, clusters * h], learned, the same for all.
        stats: log_factor [2, clusters], log f of both masks.
        of: `differences` h_w - h_l and h_l - h_w are clustered, or `responses` h_w and h_l.
        clusters: how many prototypes there are.
        temperature: of the prediction, above 0.
        epsilon: temperature of the codes, above 0.
        dropout: share of the hidden state's numbers that a mask hides, in [0, 1).

    Returns:
        [B] nats, about 2 log(clusters) where nothing is known.

    Source: arXiv 2401.06080 (20 clusters and weight 0.5 for differences, 50 and 0.1 for responses; what it masks, see
    `simcse`). Temperature, epsilon and rounds are those of SwAV (arXiv 2006.09882; the official code was read: it takes
    half of the sum over both masks, and keeps texts of earlier batches to fill small ones, which is not done here).

    Example: one pair, h_w = c_1 = (1, 0), h_l = c_2 = (0, 1), of responses, both temperatures 1, dropout 0: p = q =
    (0.731059, 0.268941) of w, L = 2 * (0.731059 * 0.313262 + 0.268941 * 1.313262) = 1.164406.

    >>> from dataclasses import replace
    >>> from accord.objectives.example import pairs
    >>> h = replace(pairs(0, 0), chosen=torch.tensor([[1.0, 0.0]]), rejected=torch.tensor([[0.0, 1.0]]))
    >>> given = {"of": "responses", "clusters": 2, "epsilon": 1.0, "dropout": 0.0}
    >>> seen = pairs(-10, -12), h, torch.zeros(1), torch.eye(2).view(1, 4)
    >>> round(swav(*seen, swav_balance(*seen, **given), temperature=1.0, **given).item(), 6)
    1.164406
    """
    positive(temperature=temperature, epsilon=epsilon)
    near = nearness(hidden, noise, prototypes, of, clusters, dropout)
    codes = (near.detach() / epsilon + stats["log_factor"][:, None, None]).softmax(-1)
    return -(codes.flip(0) * (near / temperature).log_softmax(-1)).sum((0, 3)).mean(1)
