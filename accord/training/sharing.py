"""How do disagreeing sources share one step?

Each set (a source, or a term) has a gradient of its own. A rule says how much of each makes the step:

by_size     as much as its examples are of the batch: one loss, nothing to decide
uniform     all alike
more        the min-norm point of the convex hull of their gradients (MORE, arXiv 2312.07401)
group_min   what is worst now gets more from step to step (arXiv 1911.08731; MaxMin-RLHF, 2402.08925, in expectation)

Shares of `by_size`, `uniform` and `group_min` are known before the backward pass; those of `more` on the reward head
follow from cotangents and hidden states. Then one backward pass is enough, each example's loss times the factor of its
set. Where other parameters decide, a backward pass is made for each set.

Rules that train more than one model are in `separate.py`; one source after another is an order (`data/batches.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from accord.data.batches import Batch, TermBatch
from accord.engine import models
from accord.errors import ConfigError, nearest
from accord.training.terms import SIDES

Gradients = list[Tensor | None]  # one a trained parameter
Normalise = Literal["none", "l2", "l2_unscaled"]
NORMALISE = get_args(Normalise)
On = Literal["head", "adapter", "last_layer", "all"]
TINY = 1e-6  # a gradient is 0 if it is so much shorter than the longest: no more than the rounding of float32
Memory = dict[str, Any]  # of a rule, from step to step; it is checkpointed


@dataclass
class Sets:
    """What a rule may know of the sets of a batch.

    names: terms or sources. mass: how much of the update each is, its part of each term's divisor summed over terms.
    losses: each one's mean loss (a term's weight included), where it is known. grads: each one's part of the gradient.
    """

    names: list[str]
    mass: list[float]
    losses: list[float]
    grads: list[Gradients]


Partition = Literal["all", "term", "source", "side"]


def set_names(partition: Partition, batch: Batch) -> list[str]:
    """The sets that a batch is cut into: all of it, its terms, its sources, or the two sides of its pairs."""
    if partition == "all":
        return ["all"]
    if partition == "side":
        return list(SIDES)
    if partition == "term":
        return sorted(batch.terms)
    return sorted({s for t in batch.terms.values() for s in t.sources})


def parts(partition: Partition, term: str, batch: TermBatch) -> list[tuple[str, Any]]:
    """(set, which examples of a term are in it)."""
    every = np.arange(len(batch))
    if partition in ("all", "term"):
        return [("all" if partition == "all" else term, every)]
    if partition == "side":
        return [(side, every) for side in SIDES]
    sources = np.array(batch.sources)
    return [(s, np.flatnonzero(sources == s)) for s in sorted(set(batch.sources))]


Combine = Callable[[Sets, Memory], Gradients]


def add_up(sets: Sets, state: Memory) -> Gradients:
    """The plain way to combine sets of gradients: their sum."""
    return weighted(sets.grads, [1.0] * len(sets.grads))


def weighted(grads: list[Gradients], weights: list[float] | np.ndarray) -> Gradients:
    """The sum of the sets' gradients, each with its weight; a set of weight 0 is not read."""
    total: Gradients = [None] * len(grads[0])
    for own, weight in zip(grads, map(float, weights), strict=True):
        if weight:
            parts = [g if g is None or weight == 1.0 else weight * g for g in own]
            total = [b if a is None else a if b is None else a + b for a, b in zip(total, parts, strict=True)]
    return total


def pair_normalised(sets: Sets, state: Memory) -> Gradients:
    """Against gradient entanglement (arXiv 2410.13828): each set's gradient as long as they are on average.

    Equation:
        g = c * (g_w / ||g_w|| + g_l / ||g_l||),  c = (||g_w|| + ||g_l||) / 2
        Of sets `chosen` and `rejected`, g_w points against grad a and g_l along grad b: a step along -g raises the
        one and lowers the other, to first order, unless they are parallel.

    The paper does it pair by pair (an excerpt and a third party's summary were read); here it is done on the gradients
    of the batch, which for one pair is the same. c is ours: the step stays as long as it was, by and large.
    """
    length = np.sqrt(np.diag(gram(sets.grads)))
    there = length > 0
    if not there.any():
        return add_up(sets, state)
    return weighted(sets.grads, np.divide(length[there].mean(), length, out=np.zeros(len(length)), where=there))


# -- rules -------------------------------------------------------------------------------------------------------------


def factors(share: np.ndarray, mass: Seq[float]) -> np.ndarray:
    """What each set's part of the gradient is multiplied by, so that its mean makes `share` of the step.

    1 for all where shares are those of the masses: of one term's sources, those of their sizes; of terms, equal ones.

    >>> factors(np.array([0.5, 0.5]), [0.25, 0.75]).round(4).tolist()  # two sources of one term, 1 : 3
    [2.0, 0.6667]
    """
    own = np.asarray(mass, float)
    return np.divide(share * own.sum(), own, out=np.zeros(len(own)), where=own > 0)


@dataclass(frozen=True)
class Uniform:
    """Every set of the batch has the same share."""

    on: On | None = None

    def __call__(self, sets: Sets, memory: Memory) -> np.ndarray:
        return np.full(len(sets.names), 1.0 / len(sets.names))

    def after(self, sets: Sets, memory: Memory) -> None: ...


@dataclass(frozen=True)
class GroupMin:
    """The set that is worst in expectation gets more: weights by exponentiated gradient on the sets' mean losses.

    Equation:
        w_i <- w_i * exp(rate * L_i), normalised; the step goes along sum_i w_i grad L_i
        Averaged over steps this comes to min over theta of max over i of L_i (arXiv 1911.08731, Algorithm 1).

    The weights of a step come from the losses of the steps before it, so they cost no pass over the batch (the
    published code uses the batch's own). A set's first weight is that of the mean of the others.

    Args:
        rate: of the weights; 0 leaves them alike, a very large one takes the worst of the last step alone.
    """

    rate: float = 0.1
    on: On | None = None

    def __call__(self, sets: Sets, memory: Memory) -> np.ndarray:
        known = [memory[n] for n in sets.names if n in memory]
        log = np.array([memory.get(n, float(np.mean(known)) if known else 0.0) for n in sets.names])
        weights = np.exp(log - log.max())
        return weights / weights.sum()

    def after(self, sets: Sets, memory: Memory) -> None:
        """Remembers what the losses of this step say of the next one."""
        log = np.log(np.maximum(self(sets, memory), 1e-300)) + self.rate * np.asarray(sets.losses)
        memory |= dict(zip(sets.names, (log - log.max()).tolist(), strict=True))


@dataclass(frozen=True)
class MinNorm:
    """MORE's rule (arXiv 2312.07401): sets share the step so that what they disagree on weighs as little as can be.

    The shares are solved on the mean gradient of each set's examples and applied to the whole of it, as the official
    code does. A set without examples or gradient has no share.

    Args:
        normalise: see `shares`.
        momentum: how much of a moving average of each set's gradient is this step's: 0.99 in the official code, whose
            averages start from a random head; here the first one is the first gradient. 1 remembers nothing.
        on: which gradients are looked at: of the heads at a response's end, the adapter, the last layer, or all.
    """

    normalise: Normalise = "l2"
    momentum: float = 1.0
    on: On | None = "head"

    def __call__(self, sets: Sets, memory: Memory) -> np.ndarray:
        means = [[None if g is None else g / m for g in own] for own, m in zip(sets.grads, sets.mass, strict=True)]
        if self.momentum != 1.0:
            means = [self._moved(name, own, memory) for name, own in zip(sets.names, means, strict=True)]
        return shares(gram(means), self.normalise)

    def _moved(self, name: str, own: Gradients, memory: Memory) -> Gradients:
        before = memory.get(name, own)
        memory[name] = [
            g if g is None or b is None else b.lerp(g, self.momentum) for b, g in zip(before, own, strict=True)
        ]
        return memory[name]

    def after(self, sets: Sets, memory: Memory) -> None: ...


Rule = Uniform | GroupMin | MinNorm


def watched(on: On | None, names: Seq[str], blocks: Seq[str]) -> list[int]:
    """The trained parameters that decide, by place in `names`; blocks: names of the model's layers, in order.

    Raises:
        ConfigError: there is none, with what to set instead.
    """
    if on in (None, "head"):
        return []
    if on == "all":
        return [*range(len(names))]
    if on == "adapter":
        found = [i for i, name in enumerate(names) if ".lora_" in name]
        remedy = "no adapter is trained: set lora: true, or sharing_on: last_layer"
    else:
        found = [i for i, name in enumerate(names) if blocks and name.startswith(f"{blocks[-1]}.")]
        remedy = "nothing of the last layer is trained: set sharing_on: all" + (", or adapter" if blocks else "")
    if not found:
        raise ConfigError(f"sharing_on={on!r}: {remedy}")
    return found


def layers(scorer: nn.Module, kinds: Seq[str]) -> list[str]:
    """Names of the modules of these types, in the order of the model."""
    return [n for n, m in scorer.named_modules() if any(c.__name__ in kinds for c in type(m).__mro__)]  # also sharded


def gram(grads: list[Gradients]) -> np.ndarray:
    """Inner products [K, K] of K gradients, float64; parameters without a gradient count as 0."""
    found = np.zeros((len(grads), len(grads)))
    for i, j in zip(*np.triu_indices(len(grads)), strict=True):
        both = [(a, b) for a, b in zip(grads[i], grads[j], strict=True) if a is not None and b is not None]
        parts: list[Any] = [(a.double() * b.double()).sum() for a, b in both]
        whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parts]  # of shards
        found[i, j] = found[j, i] = sum(map(float, whole))
    return found


def shares(inner: np.ndarray, normalise: Normalise = "none") -> np.ndarray:
    """How much of each set's mean gradient makes the step, [K], summing to 1.

    Args:
        inner: inner products of the gradients, [K, K].
        normalise: `none`: the min-norm point of the gradients as they are, so that no set is hurt (to first order);
            sets with small gradients, which are fitted already, get most. `l2`: the point is solved on gradients of
            length 1 and its weights are put on the gradients as they are: the official code; long gradients count
            again, and the step may hurt a set. `l2_unscaled`: the same, and each weight is divided by its gradient's
            length: the step has the direction of the solved point, and hurts none.

    A gradient of 0 would take the whole step and stall it, so it has no share (unless all are 0: then all alike).

    >>> shares(np.diag([1.0, 4.0, 16.0])).round(3).tolist()  # orthogonal: in proportion to 1 / length^2
    [0.762, 0.19, 0.048]
    >>> shares(np.diag([1.0, 4.0, 16.0]), "l2_unscaled").round(3).tolist()
    [0.571, 0.286, 0.143]
    """
    if normalise not in NORMALISE:
        raise ConfigError(f"normalise={normalise!r} is not known; {nearest(normalise, NORMALISE)}")
    length = np.sqrt(np.diag(inner))
    there = length > TINY * length.max(initial=0.0)
    if not there.any():
        return np.full(len(length), 1.0 / len(length))
    found = np.zeros(len(length))
    kept, length = inner[np.ix_(there, there)], length[there]
    if normalise == "none":
        found[there] = min_norm(kept)
    else:
        weights = min_norm(kept / np.outer(length, length))
        weights = weights / length if normalise == "l2_unscaled" else weights
        found[there] = weights / weights.sum()
    return found


def min_norm(inner: np.ndarray) -> np.ndarray:
    """Weights [K] on the simplex whose combination of K vectors is shortest.

    Equation:
        min over l >= 0, sum l = 1 of l^T G l,  G = inner products
        At the solution p = sum l_i g_i: <p, g_i> >= ||p||^2, with equality where l_i > 0.

    Exact, by non-negative least squares: the minimum of ||A x||^2 + (sum x - 1)^2 over x >= 0, where A^T A = G, is a
    multiple of it. The official code of arXiv 2312.07401 (sec. B) walks there by Frank-Wolfe instead, from the best of
    the pairs, and holds the weights of a pair within 0.001 and 0.999.

    Args:
        inner: G [K, K], symmetric and positive semidefinite.

    >>> min_norm(np.array([[4.0, 0.0], [0.0, 1.0]])).round(6).tolist()  # (2, 0) and (0, 1)
    [0.2, 0.8]
    """
    scale = np.diag(inner)
    if not (scale > 0).all():
        at_zero = (scale <= 0).astype(float)
        return at_zero / at_zero.sum()
    values, vectors = np.linalg.eigh(inner / scale.min())
    root = np.sqrt(values.clip(min=0.0))[:, None] * vectors.T
    found, _ = nnls(np.vstack([root, np.ones(len(inner))]), np.append(np.zeros(len(inner)), 1.0))
    return found / found.sum()


# -- the setting -------------------------------------------------------------------------------------------------------


RULES: dict[str, tuple[str, ...]] = {  # and the options of each
    "by_size": (),
    "uniform": ("sets", "quota"),
    "sequential": (),
    "more": ("sets", "quota", "normalise", "momentum"),
    "group_min": ("sets", "quota", "rate", "level"),
    "alone": ("source",),
    "average": (),
    "ensemble": ("score",),
}
PLACES = {"head": "the reward head", "adapter": "the adapter", "last_layer": "the last layer", "all": "all weights"}
WORDS = {
    "sets": ("sources", "terms"), "quota": ("equal", "by_size"), "normalise": NORMALISE, "score": ("mean", "min"),
    "level": ("expectation", "sample"),
}  # fmt: skip


@dataclass(frozen=True)
class Sharing:
    """The settings `sharing` and `sharing_on`, read and checked.

    Args:
        rule: one of `RULES`.
        sets: what shares a step: `sources`, or `terms` of the objective.
        quota: how many examples of each source stand in a batch: `equal` numbers, or `by_size` and weight.
        normalise, momentum: see `MinNorm`; None: 0.99 on the head, 1 elsewhere. rate: see `GroupMin`.
        source: of `alone`: the one that is trained on. score: of an ensemble: the `mean` or `min` over its models.
        on: which gradients decide; None: the reward head, else the adapter, else the last layer.
    """

    rule: str = "by_size"
    sets: str = "sources"
    quota: str = "equal"
    normalise: Normalise = "l2"
    momentum: float | None = None
    rate: float = 0.1
    level: str = "expectation"
    source: str | None = None
    score: str = "mean"
    on: On | None = None

    @classmethod
    def of(cls, asked: str | Mapping[str, Any], on: On | None = None) -> Sharing:
        """From a word, or a map with `rule` and its options.

        Raises:
            ConfigError: an unknown rule, option or value, or an option of another rule.
        """
        given = {"rule": asked} if isinstance(asked, str) else dict(asked)
        rule = given.pop("rule", None)
        if rule not in RULES:
            raise ConfigError(
                f"sharing={rule!r} is no rule; {nearest(str(rule), RULES)}"
                if rule is not None
                else f"sharing: name the rule, like {{rule: more}}; there are {', '.join(RULES)}"
            )
        for key, value in given.items():
            if key not in RULES[rule]:
                of = next((r for r, options in RULES.items() if key in options), None)
                why = f"it belongs to {of}" if of else nearest(key, RULES[rule] or RULES)
                raise ConfigError(f"sharing.{key} is no option of {rule}; {why}")
            if key in WORDS and value not in WORDS[key]:
                raise ConfigError(f"sharing.{key}={value!r} is none of {', '.join(WORDS[key])}")
            size = value if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
            if key == "momentum" and value is not None and not 0 < size <= 1:
                raise ConfigError(f"sharing.momentum={value!r} must lie in (0, 1]; 1 takes each step's gradient alone")
            if key == "rate" and not size >= 0:
                raise ConfigError(f"sharing.rate={value!r} must be a number, 0 or more")
        if given.get("level") == "sample":
            raise ConfigError(
                "sharing.level=sample: the least reward of each sample is no share of a step but another reward, that "
                "of separate models; set sharing: {rule: ensemble, score: min}"
            )
        if rule == "alone" and not isinstance(given.get("source"), str):
            raise ConfigError("sharing=alone: name the source that is trained on, like {rule: alone, source: panel}")
        if on is not None and rule != "more":
            raise ConfigError(f"nothing reads sharing_on={on!r}: {rule} looks at no gradients; set sharing: more")
        return cls(rule, **given, on=on)

    @property
    def equal(self) -> bool:
        """True if every source has the same quota of a batch."""
        return self.sets == "sources" and self.quota == "equal" and self.rule in ("uniform", "more", "group_min")

    def check(self, names: Mapping[str, Seq[str]], weights: Mapping[str, float]) -> None:
        """Raises a ConfigError if there is nothing to share, or what says so contradicts itself.

        Args:
            names: of each term, its sources. weights: of the sources, where they were given.
        """
        sources = sorted({s for several in names.values() for s in several})
        if self.rule == "by_size":
            return
        if self.rule == "alone":
            if self.source not in sources:
                raise ConfigError(f"sharing.source={self.source!r} is no source; {nearest(str(self.source), sources)}")
            return
        if self.sets == "terms":
            if len(names) < 2:
                raise ConfigError(
                    f"sharing={self.rule} between terms, and there is one, {next(iter(names))!r}: give each kind of "
                    "feedback its objective, like {pairs: dpo, ratings: ulma}, or leave sharing.sets out"
                )
            return
        if len(sources) < 2:
            raise ConfigError(
                f"sharing={self.rule} between sources, and there is one, {sources[0]!r}: bring others, like data: "
                "[{path: a.jsonl, name: a}, {path: b.jsonl, name: b}], or leave sharing out"
            )
        if weights and self.equal:
            raise ConfigError(
                f"sharing={self.rule} gives every source the same quota, and data gives weights ({', '.join(weights)})"
                ": leave the weights out, or set sharing.quota: by_size"
            )

    @property
    def separate(self) -> bool:
        """True if each source trains a model of its own."""
        return self.rule in ("average", "ensemble")

    @property
    def partition(self) -> Partition:
        """What a step is cut into for the rule."""
        if self.rule not in ("uniform", "more", "group_min"):
            return "all"
        return "term" if self.sets == "terms" else "source"

    def told(self, names: Mapping[str, Seq[str]], rule: Rule | None, trained: Seq[Tensor], cpu: bool) -> str:
        """One line on who shares and what that takes; empty where nothing was asked for.

        Raises:
            ConfigError: the gradients of the sets do not fit into what is free of memory.
        """
        if self.rule == "by_size":
            return ""
        who = sorted(names) if self.sets == "terms" else list(dict.fromkeys(s for n in names.values() for s in n))
        line = f"sharing: {self.rule} of {', '.join(who)}"
        if rule is None or rule.on is None:
            return line
        line += f", by the gradients of {PLACES[rule.on]}"
        if rule.on not in ("adapter", "all"):
            return line
        size = len(who) * sum(p.numel() * p.element_size() for p in trained)
        needs = f"{len(who)} backward passes an update, and {size / 2**30:.1f} GiB for a gradient of each"
        free = models.free_memory(torch.device("cpu" if cpu or not torch.cuda.is_available() else "cuda"))
        if free is not None and size > free:
            raise ConfigError(
                f"sharing_on={rule.on!r} takes {needs}, and {free / 2**30:.1f} GiB are free: set sharing_on: last_layer"
                ", or head for a reward model, or train with lora: true"
            )
        return f"{line}: {needs}"

    def of_step(self, heads: bool, adapter: bool) -> Rule | None:
        """The rule of a step, or None where a step adds up what it holds.

        Args:
            heads: whether a head reads the ends of responses. adapter: whether adapters are trained.

        Raises:
            ConfigError: the gradients that shall decide are not there.
        """
        if self.rule == "uniform":
            return Uniform()
        if self.rule == "group_min":
            return GroupMin(float(self.rate))
        if self.rule != "more":
            return None
        on: On = self.on or ("head" if heads else "adapter" if adapter else "last_layer")
        if on == "head" and not heads:
            raise ConfigError(
                "sharing_on=head: no objective here reads a head at a response's end, and what the language-model head "
                "would get is as large as the vocabulary times the width; set sharing_on: "
                + ("adapter" if adapter else "last_layer")
            )
        if on != "head" and self.momentum not in (None, 1, 1.0):
            raise ConfigError(
                f"sharing.momentum={self.momentum} keeps a gradient of each source; that is for sharing_on: head, "
                f"where they are small. Leave it out for sharing_on: {on}"
            )
        return MinNorm(self.normalise, float(self.momentum or 0.99) if on == "head" else 1.0, on)
