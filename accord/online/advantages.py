"""How much better than expected was an answer, token by token? From scores and log-probs to advantages.

`advantages` is a pure function of a round's answers: the score and the price of leaving the reference become a reward
at each token, a rule (`RULES`) compares what followed with a baseline. An answer that nobody scored is in no mean.
Everything is in units of the reward; log-probs are nats.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from accord.errors import ConfigError, nearest

FAR = 20.0  # nats: probabilities further apart than e^20 are taken as if they were that far


@dataclass(frozen=True)
class AdvantageOptions:
    """How judged answers get their advantages.

    Args:
        rule: what an answer is compared with, see `RULES`.
        kl: price of leaving the reference, in units of the reward a nat; each token pays for itself. Of `f_dpg` it is
            the temperature of the policy that is aimed at, reference * exp(score / kl).
        kl_estimator: of a token's divergence, with d = log pi - log ref: `k1` is d, `k3` is exp(-d) - 1 + d.
        kl_credit: which of it a token answers for: `to_go`, its own and what followed, which is the gradient of the
            divergence; `local`, its own alone, as ReMax' code has it, which is not.
        kl_target: nats of an answer; `kl` follows so that answers come to it (adaptive). kl_horizon: answers in which
            it follows.
        unfinished_score: the score of an answer that was cut off at its longest, in place of the judge's.
        unfinished_penalty: taken off the score of such an answer.
        score_norm: of the scores: `batch` takes off the mean of the round and divides by its standard deviation,
            `running` divides by that of all rounds so far.
        score_clip: scores are then held within this of 0.
        whiten_rewards: divide the tokens' rewards by their standard deviation over the round; their mean stays.
        gamma: discount a token. lam: of `gae`: 1 is all that followed, 0 the next value alone.
        greedy_clip: of `greedy`: the difference of the scores is held within this of 0; null does not hold it.
        divergence: of `f_dpg`: from the policy that is aimed at; `forward_kl` is the mean of log p / pi over p,
            `reverse_kl` that of log pi / p over pi; also `js`, `tv`, `chi2`, `reverse_chi2`.
        whiten: take the mean of all tokens' advantages off and divide by their standard deviation, over the round.
        clip: advantages are then held within this of 0.
    """

    rule: str = "loo"
    kl: float = 0.0
    kl_estimator: Literal["k1", "k3"] = "k1"
    kl_credit: Literal["to_go", "local"] = "to_go"
    kl_target: float | None = None
    kl_horizon: float = 10_000.0
    unfinished_score: float | None = None
    unfinished_penalty: float = 0.0
    score_norm: Literal["none", "batch", "running"] = "none"
    score_clip: float | None = None
    whiten_rewards: bool = False
    gamma: float = 1.0
    lam: float = 0.95
    greedy_clip: float | None = 5.0
    divergence: Literal["forward_kl", "reverse_kl", "js", "tv", "chi2", "reverse_chi2"] = "js"
    whiten: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"advantage.rule={self.rule!r} is not known; {nearest(self.rule, RULES)}")
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if (known := get_args(hint)) and isinstance(known[0], str) and value not in known:
                raise ConfigError(f"advantage.{name}={value!r} is not known; {nearest(str(value), known)}")
            if hint is bool and not isinstance(value, bool):
                raise ConfigError(f"advantage.{name}={value!r} must be true or false")
        bounds = (
            ("kl", 0, math.inf), ("kl_target", 1e-12, math.inf), ("kl_horizon", 1, math.inf), ("gamma", 0, 1),
            ("unfinished_score", -math.inf, math.inf), ("unfinished_penalty", 0, math.inf), ("lam", 0, 1),
            ("score_clip", 1e-12, math.inf), ("greedy_clip", 1e-12, math.inf), ("clip", 1e-12, math.inf),
        )  # fmt: skip
        for name, low, high in bounds:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"advantage.{name}={value!r} must be a number from {low:g} to {high:g}")
        if self.rule == "f_dpg" and not self.kl:
            raise ConfigError("advantage.rule: f_dpg aims at reference * exp(score / kl): set advantage.kl above 0")

    @classmethod
    def of(cls, given: dict[str, Any]) -> AdvantageOptions:
        """Checked options.

        Raises:
            ConfigError: unknown ones (the nearest is named), none that says the rule, or ones that nothing reads.
        """
        known = {f.name: f.default for f in fields(cls)}
        for key in given:
            if key not in known:
                raise ConfigError(f"advantage.{key} is not known; {nearest(key, known)}")
        if "rule" not in given:
            raise ConfigError(f"advantage.rule is missing: what is an answer compared with? {', '.join(RULES)}")
        made = cls(**given)
        by_token, dpg = made.rule in BY_TOKEN, made.rule == "f_dpg"
        read_by = {
            "kl_estimator": (made.kl > 0 and not dpg, "kl" if not made.kl else "rule"),
            "kl_credit": (made.kl > 0 and by_token and made.rule != "gae", "kl" if not made.kl else "rule"),
            "kl_target": (made.kl > 0 and not dpg, "kl" if not made.kl else "rule"),
            "kl_horizon": (made.kl_target is not None, "kl_target"), "gamma": (by_token, "rule"),
            "lam": (made.rule == "gae", "rule"), "greedy_clip": (made.rule == "greedy", "rule"),
            "divergence": (dpg, "rule"), "whiten_rewards": (not dpg and made.rule != "greedy", "rule"),
        }  # fmt: skip
        if made.whiten_rewards and made.kl_credit == "local":
            raise ConfigError(
                "advantage.whiten_rewards divides what tokens earn, the price of all that follows among it, and "
                "kl_credit: local keeps that apart; set one"
            )
        for name, (read, by) in read_by.items():
            if not read and getattr(made, name) != known[name]:
                raise ConfigError(
                    f"advantage.{name} is set, and nothing reads it under {by}: {getattr(made, by)}; leave it out"
                )
        return made

    @property
    def compares(self) -> bool:
        """Whether log-probs of a reference are asked for."""
        return self.kl > 0


@dataclass
class Answer:
    """An answer of n tokens: score, NaN where nobody scored it; log-probs under the policy that gave it (old) and the
    reference [n] nats; what a critic expected [n]; whether it ended; whether it is the greedy one, which is trained on
    by nobody."""

    score: float
    old: np.ndarray
    ref: np.ndarray | None = None
    value: np.ndarray | None = None
    finished: bool = True
    greedy: bool = False


@dataclass
class Weighed:
    """What an answer got, [n] each; returns of `gae` alone."""

    advantage: np.ndarray
    returns: np.ndarray | None = None


@dataclass
class Memory:
    """What rounds remember. kl: the price now; returns: (sum, count) of what answers returned; scores: (count, mean,
    sum of squared distances from it)."""

    kl: float | None = None
    returns: tuple[float, int] = (0.0, 0)
    scores: tuple[int, float, float] = (0, 0.0, 0.0)


@dataclass
class Rewarded:
    """An answer with what its tokens earned: rewards [n], to_go [n] (all that followed), divergence [n] nats, score."""

    answer: Answer
    score: float
    divergence: np.ndarray
    rewards: np.ndarray
    to_go: np.ndarray

    @property
    def total(self) -> float:
        return float(self.rewards.sum())


@dataclass
class Round:
    """What the rules see: the answers that count, prompt by prompt; the score of each prompt's greedy answer."""

    groups: list[list[Rewarded]]
    greedy: list[float | None]
    options: AdvantageOptions
    kl: float
    memory: Memory
    told: dict[str, float] = field(default_factory=dict)

    @property
    def answers(self) -> list[Rewarded]:
        return [a for group in self.groups for a in group]


def advantages(
    groups: Seq[Seq[Answer]], options: AdvantageOptions, memory: Memory | None = None
) -> tuple[list[list[Weighed | None]], Memory, dict[str, float]]:
    """Advantages of a round's answers, those to a prompt together.

    Returns:
        For each answer what it got, None where it cannot be learned from (nobody scored it, or it is the greedy one, or
        it has none to be compared with); what the next round is told; the round in numbers.

    >>> def said(*scores): return [[Answer(s, np.zeros(2)) for s in scores]]
    >>> [w and w.advantage.tolist() for w in advantages(said(1.0, 4.0, math.nan), AdvantageOptions("loo"))[0][0]]
    [[-3.0, -3.0], [3.0, 3.0], None]
    """
    memory = memory or Memory()
    kl = options.kl if memory.kl is None else memory.kl
    scores, seen = normed(groups, options, memory)
    inside = [[k for k, a in enumerate(g) if not math.isnan(a.score) and not a.greedy] for g in groups]
    made = [[_rewarded(g[k], s[k], options, kl) for k in i] for g, s, i in zip(groups, scores, inside, strict=True)]
    if options.whiten_rewards and any(made):
        _whiten_rewards(made, options)
    greedy = [
        next((s for a, s in zip(g, own, strict=True) if a.greedy and not math.isnan(s)), None)
        for g, own in zip(groups, scores, strict=True)
    ]
    totals = [a.total for group in made for a in group]
    before = memory.returns
    now = Memory(memory.kl, (before[0] + sum(totals), before[1] + len(totals)), seen)
    shown = Round(made, greedy, options, kl, now)
    found = RULES[options.rule](shown)
    _finish([w for group in found for w in group if w is not None], options)
    told = shown.told | _told(shown)
    if options.kl_target is not None and "kl_ref" in told:
        now.kl = adapted(kl, told["kl_ref"], options.kl_target, len(totals), options.kl_horizon)
    back: list[list[Weighed | None]] = [[None] * len(g) for g in groups]
    for n, places in enumerate(inside):
        for k, weighed in zip(places, found[n], strict=True):
            back[n][k] = weighed
    return back, now, told


def adapted(kl: float, seen: float, target: float, answers: int, horizon: float) -> float:
    """The price of the next round: up where answers are further away than the target, by at most a fifth a horizon.

    >>> round(adapted(0.2, 12.0, 6.0, 256, 10_000) / 0.2, 5)
    1.00512
    """
    return kl * (1.0 + min(max(seen / target - 1.0, -0.2), 0.2) * answers / horizon)


# -- scores and rewards ------------------------------------------------------------------------------------------------


def normed(
    groups: Seq[Seq[Answer]], options: AdvantageOptions, memory: Memory
) -> tuple[list[list[float]], tuple[int, float, float]]:
    """Scores as the options have them, NaN where there is none, and the running (count, mean, squares)."""

    def of(a: Answer) -> float:
        if a.finished or math.isnan(a.score):
            return a.score
        return (a.score if options.unfinished_score is None else options.unfinished_score) - options.unfinished_penalty

    raw = [[of(a) for a in g] for g in groups]
    known = [s for g, own in zip(groups, raw, strict=True) for a, s in zip(g, own, strict=True)
             if not a.greedy and not math.isnan(s)]  # fmt: skip
    count, mean, squares = memory.scores
    for s in known:
        count, step = count + 1, s - mean
        mean += step / count
        squares += step * (s - mean)
    shift, unit = 0.0, 1.0
    if options.score_norm == "batch" and known:
        shift, unit = float(np.mean(known)), float(np.std(known)) + 1e-8
    if options.score_norm == "running" and count > 1:
        unit = math.sqrt(squares / (count - 1)) + 1e-8
    most = math.inf if options.score_clip is None else options.score_clip

    def held(s: float) -> float:
        return s if math.isnan(s) else min(max((s - shift) / unit, -most), most)

    return [[held(s) for s in own] for own in raw], (count, mean, squares)


def _rewarded(a: Answer, score: float, options: AdvantageOptions, kl: float) -> Rewarded:
    apart = a.old - a.ref if a.ref is not None else np.zeros(len(a.old))
    if options.kl_estimator == "k3":
        apart = np.exp(np.minimum(-apart, FAR)) - 1.0 + apart
    rewards = -kl * apart if options.rule != "f_dpg" else 0.0 * apart
    rewards[-1] += score
    return Rewarded(a, score, apart, rewards, _to_go(rewards, score, kl * apart, options))


def _to_go(rewards: np.ndarray, score: float, price: np.ndarray, options: AdvantageOptions) -> np.ndarray:
    if options.kl_credit == "local":
        return score * options.gamma ** np.arange(len(rewards))[::-1] - price
    return discounted(rewards, options.gamma)


def discounted(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Each place's reward and what follows it, discounted.

    >>> discounted(np.array([1.0, 0.0, 4.0]), 0.5).tolist()
    [2.0, 2.0, 4.0]
    """
    found, later = np.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        later = rewards[t] + gamma * later
        found[t] = later
    return found


def whitened(values: np.ndarray, *, shift: bool) -> np.ndarray:
    """Divided by their standard deviation (of the population); with `shift` without their mean, else around it.

    >>> whitened(np.array([1.0, 3.0]), shift=True).round(6).tolist(), whitened(np.array([1, 5]), shift=False).round(6)
    ([-1.0, 1.0], array([2., 4.]))
    """
    mean = values.mean()
    found = (values - mean) / np.sqrt(values.var() + 1e-8)
    return found if shift else found + mean


def _whiten_rewards(made: list[list[Rewarded]], options: AdvantageOptions) -> None:
    every = [a for group in made for a in group]
    parts = _parts(whitened(np.concatenate([a.rewards for a in every]), shift=False), every)
    for a, rewards in zip(every, parts, strict=True):
        a.rewards, a.to_go = rewards, discounted(rewards, options.gamma)


def _parts(flat: np.ndarray, answers: Seq[Any]) -> list[np.ndarray]:
    lengths = [len(a.rewards if isinstance(a, Rewarded) else a.advantage) for a in answers]
    return np.split(flat, np.cumsum(lengths)[:-1])


def _finish(weighed: list[Weighed], options: AdvantageOptions) -> None:
    if not weighed:
        return
    flat = np.concatenate([w.advantage for w in weighed])
    if options.whiten:
        flat = whitened(flat, shift=True)
    if options.clip is not None:
        flat = flat.clip(-options.clip, options.clip)
    for w, part in zip(weighed, _parts(flat, weighed), strict=True):
        w.advantage = part


def _told(shown: Round) -> dict[str, float]:
    answers = shown.answers
    if not answers:
        return {}
    found = {"score": float(np.mean([a.score for a in answers])), "return": float(np.mean([a.total for a in answers]))}
    if answers[0].answer.ref is not None:
        apart = [a.answer.old - a.answer.ref for a in answers]  # type: ignore[operator]
        found |= {"kl": shown.kl, "kl_ref": float(np.mean([d.sum() for d in apart]))}
        found["kl_ref_k3"] = float(np.mean([(np.exp(np.minimum(-d, FAR)) - 1.0 + d).sum() for d in apart]))
    return found


# -- rules: what an answer is compared with ----------------------------------------------------------------------------

Made = list[list[Weighed | None]]


def none(shown: Round) -> Made:
    """Nothing: what followed each token."""
    return [[Weighed(a.to_go.copy()) for a in group] for group in shown.groups]


def running(shown: Round) -> Made:
    """The mean of what all answers returned, those of earlier rounds and of this one (REINFORCE with a baseline)."""
    total, count = shown.memory.returns
    return [[Weighed(a.to_go - total / count) for a in group] for group in shown.groups]


def mean(shown: Round) -> Made:
    """The mean of the answers to the prompt, its own among them (Dr. GRPO)."""
    return _within(shown, lambda r: r - r.mean())


def loo(shown: Round) -> Made:
    """The mean of the other answers to the prompt (RLOO): K / (K - 1) of what `mean` gives."""
    return _within(shown, lambda r: (r - r.mean()) * len(r) / (len(r) - 1))


def group_norm(shown: Round) -> Made:
    """As `mean`, divided by the standard deviation of the answers to the prompt, plus 1e-4 (GRPO)."""
    return _within(shown, lambda r: (r - r.mean()) / (r.std(ddof=1) + 1e-4))


def batch_norm(shown: Round) -> Made:
    """All tokens of the round: what followed each, less their mean, by their standard deviation (REINFORCE++)."""
    every = shown.answers
    if not every:
        return [[] for _ in shown.groups]
    parts = iter(_parts(whitened(np.concatenate([a.to_go for a in every]), shift=True), every))
    return [[Weighed(next(parts)) for _ in group] for group in shown.groups]


def greedy(shown: Round) -> Made:
    """The score of the likeliest answer to the prompt (ReMax), which is sampled and judged beside the others."""
    most = math.inf if shown.options.greedy_clip is None else shown.options.greedy_clip

    def one(a: Rewarded, base: float) -> Weighed:
        ahead = shown.options.gamma ** np.arange(len(a.to_go))[::-1]
        return Weighed(a.to_go + ahead * (min(max(a.score - base, -most), most) - a.score))

    return [
        [None if base is None else one(a, base) for a in group]
        for group, base in zip(shown.groups, shown.greedy, strict=True)
    ]


def gae(shown: Round) -> Made:
    """What a critic expected (PPO): a mean over all horizons, later ones weighing lam more little each (GAE)."""
    return [[_gae(a, shown.options) for a in group] for group in shown.groups]


def f_dpg(shown: Round) -> Made:
    """What the other answers to the prompt have of -f'(pi / p), p = reference * exp(score / kl) / Z: the slope of the
    divergence from p; Z is estimated from the answers."""
    if not shown.kl:
        raise ConfigError("f_dpg needs kl above 0")

    def slopes(group: list[Rewarded]) -> np.ndarray:
        ratio = np.array([(a.answer.old - a.answer.ref).sum() - a.score / shown.kl for a in group])  # type: ignore[operator]
        least = (-ratio).max()
        log_z = least + math.log(np.exp(-ratio - least).mean())
        return -SLOPES[shown.options.divergence]((ratio + log_z).clip(-FAR, FAR))

    return _by_group(shown, slopes, lambda r: (r - r.mean()) * len(r) / (len(r) - 1))


RULES: dict[str, Callable[[Round], Made]] = {
    "none": none, "running": running, "mean": mean, "loo": loo, "greedy": greedy, "group_norm": group_norm,
    "batch_norm": batch_norm, "gae": gae, "f_dpg": f_dpg,
}  # fmt: skip
BY_TOKEN = ("none", "running", "greedy", "batch_norm", "gae")  # rules by which tokens of an answer may differ
IN_GROUP = ("mean", "loo", "group_norm", "f_dpg")  # rules that compare the answers to a prompt

# f'(t) of log t, t = pi / p
SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "forward_kl": lambda x: -np.exp(-x),
    "reverse_kl": lambda x: x + 1.0,
    "tv": lambda x: 0.5 * np.sign(x),
    "js": lambda x: math.log(2.0) - np.logaddexp(0.0, -x),
    "chi2": lambda x: 1.0 - np.exp(-2.0 * x),
    "reverse_chi2": lambda x: 2.0 * (np.exp(x) - 1.0),
}


def _within(shown: Round, compare: Callable[[np.ndarray], np.ndarray]) -> Made:
    return _by_group(shown, lambda group: np.array([a.total for a in group]), compare)


def _by_group(
    shown: Round, values: Callable[[list[Rewarded]], np.ndarray], compare: Callable[[np.ndarray], np.ndarray]
) -> Made:
    """One number for each answer, the same at its tokens; None where it is alone. `flat` counts prompts whose answers
    are all as good."""
    made: Made = []
    several = flat = 0
    for group in shown.groups:
        if len(group) < 2:
            made.append([None] * len(group))
            continue
        own = values(group)
        several, flat = several + 1, flat + bool(np.ptp(own) == 0)
        compared = compare(own) if np.ptp(own) else np.zeros(len(own))
        made.append([Weighed(np.full(len(a.rewards), v)) for a, v in zip(group, compared, strict=True)])
    shown.told["flat"] = flat / several if several else 0.0
    return made


def _gae(a: Rewarded, options: AdvantageOptions) -> Weighed:
    """
    >>> reward = Rewarded(Answer(2.0, np.zeros(2), value=np.array([0.5, 1.0])), 2.0, np.zeros(2), np.array([0.0, 2.0]),
    ...                   np.array([2.0, 2.0]))
    >>> [x.tolist() for x in vars(_gae(reward, AdvantageOptions("gae", lam=0.5))).values()]
    [[1.0, 1.0], [1.5, 2.0]]
    """
    value = a.answer.value
    assert value is not None, "gae needs values"
    delta = a.rewards + options.gamma * np.append(value[1:], 0.0) - value
    found = discounted(delta, options.gamma * options.lam)
    return Weighed(found, found + value)


def says(rule: str) -> str:
    """A rule in one sentence."""
    return " ".join((inspect.getdoc(RULES[rule]) or "").split())
