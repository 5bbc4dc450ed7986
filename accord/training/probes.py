"""What do monitors ask for that a step does not say?

Every `every` updates, before the update, on a small probe that stays the same: how likely its responses are and those
of other prompts, how surprised the model is by them, what its likeliest tokens hold, how the gradients of chosen and
rejected lie to each other, what it answers now; and of that update, how far it moves the weights and which part's
gradient is how long. Nothing here draws from the run's random numbers or leaves a gradient behind. Numbers go into the
update's row of metrics.jsonl, seconds into timing.jsonl.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from accord.data.batches import Batch, TermBatch
from accord.data.chat import Chat, Sequence
from accord.data.records import Record
from accord.engine.logprobs import Row, Scorer, no_dropout
from accord.engine.models import Policy, trainable
from accord.engine.reference import plan, score
from accord.sampling.local import answer
from accord.sinks import write_json
from accord.training.parallel import Processes
from accord.training.sharing import set_names
from accord.training.step import Step
from accord.training.terms import SIDES
from accord.training.trail import question

PAIRS = 16  # of a probe, or half of an update's where those are fewer
TOP = 10  # likeliest tokens
ANSWER = 64  # tokens of a fresh answer at most
WEIGHTS = 20_000_000  # numbers of the last layers whose gradients are compared


class NoProbes:
    """Looks at nothing. facts: numbers of the data, which stand in the first update's row."""

    def __init__(self, facts: dict[str, float] | None = None) -> None:
        self.facts = facts or {}
        self._found: dict[str, float] = {}

    def before(self, batch: Batch, number: int) -> None:
        self._found = dict(self.facts) if number == 0 else {}

    def after(self) -> dict[str, float]:
        return self._found

    def cost(self) -> dict[str, float]:
        return {}

    def told(self, decode: Callable[[list[int]], str]) -> list[dict[str, str]]:
        return []


class Probes(NoProbes):
    """What is computed for monitors beside the steps of a run in one process.

    Args:
        step: the run's.
        probe: examples that are looked at again and again, at most `PAIRS` a term; of reward models none, which have
            no log-probs.
        every: updates between two looks; the first is before the first update.
        records: those of the probe.
        facts: numbers of the data, which stand in the first update's row.
        answers: fresh answers of the policy to the probe's prompts, each with its record; None: nobody asks for them.
        kept: a file for the answers of the run's start, so that a resumed run has them.
    """

    def __init__(
        self, step: Step, probe: Batch, every: int, records: Seq[Record], facts: dict[str, float] | None = None,
        answers: Callable[[], Answers] | None = None, kept: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(facts)
        self.step, self.every, self.answers = step, every, answers
        self.own = step.on(records)
        self.probes = {name: small(probe, name) for name in probe.terms if step.terms[name].logps}
        self.weights = last_weights(step.scorer)
        self.kept = kept
        self.started: list[Started] = []
        self._held: list[Tensor] = []
        self._seconds = 0.0

    def before(self, batch: Batch, number: int) -> None:
        """Looks, if it is time, at the policy as it is before update `number` (from 0)."""
        super().before(batch, number)
        self._held, self._seconds = [], 0.0
        self.step.look_at_parts = number % self.every == 0
        if not self.step.look_at_parts:
            return
        start = time.monotonic()
        self.own.objective_state = self.step.objective_state
        for name, probe in self.probes.items():
            prefix = f"{name}/" if len(self.step.terms) > 1 else ""
            seen = likelihoods(self.step, probe) | entanglement(self.own, probe.batch, number, self.weights)
            self._found |= {f"{prefix}probe/{k}": v for k, v in seen.items()}
        if self.answers is not None:
            given = self.answers()
            if given:
                self._found |= {f"probe/samples/{k}": v for k, v in samples(self.step, [s for s, _ in given]).items()}
            self._found |= {f"probe/{k}": v for k, v in self._since_start(given, number).items()}
        self._held = [w.detach().clone() for w in self.weights]
        self._seconds = time.monotonic() - start

    def _since_start(self, given: Answers, number: int) -> dict[str, float]:
        """Log-prob a token of what the policy answered as the run began, and how far it has left it."""
        if number and not self.started and self.kept is not None and self.kept.exists():
            self.started = [Started(**row) for row in json.loads(self.kept.read_text(encoding="utf-8"))]
        if not self.started and (number or not given):
            return {}
        known = [Sequence.of(s.context, s.ids, [True] * len(s.ids)) for s in self.started] or [s for s, _ in given]
        now = [part[0] for part in tokens(self.step.scorer, known, self.step.budget)]
        if not self.started:
            self.started = [
                Started(prompt, s.context.tolist(), s.ids.tolist(), logp.tolist())
                for (s, prompt), logp in zip(given, now, strict=True)
            ]
            if self.kept is not None:
                write_json(self.kept, [vars(s) for s in self.started])
        then = np.concatenate([np.array(s.logp) for s in self.started])
        _, _, k3 = divergences(then - np.concatenate(now))
        return {"logps/started": float(np.concatenate(now).mean()), "started/kl_per_token": float(k3.mean())}

    def told(self, decode: Callable[[list[int]], str]) -> list[dict[str, str]]:
        """Each prompt with the answer of the run's start and that of now."""
        if self.answers is None or not self.started:
            return []
        before = {tuple(s.context): decode(s.ids) for s in self.started}
        return [
            {"prompt": prompt, "before": before[key], "after": decode(s.ids.tolist())}
            for s, prompt in self.answers()
            if (key := tuple(s.context.tolist())) in before
        ]

    def after(self) -> dict[str, float]:
        """What was seen, with what the update did."""
        if self._held:
            start = time.monotonic()
            moved = sum(float((w.detach() - h).square().sum()) for w, h in zip(self.weights, self._held, strict=True))
            size = sum(float(h.square().sum()) for h in self._held)
            self._found["probe/update"] = (moved / size) ** 0.5 if size else 0.0
            self._found |= {f"probe/grad_norm/{part}": norm for part, norm in self.step.norms.items()}
            self._held = []
            self._seconds += time.monotonic() - start
        return self._found

    def cost(self) -> dict[str, float]:
        return {"probe_seconds": self._seconds} if self._seconds else {}


Answers = list[tuple[Sequence, str]]


@dataclass(frozen=True)
class Started:
    """An answer of the policy that the run began with: its prompt, ids of context and answer, log-prob of each."""

    prompt: str
    context: list[int]
    ids: list[int]
    logp: list[float]


@dataclass
class Probe:
    """A term's part of a batch; beside it responses of other prompts, and which role each sequence plays."""

    batch: Batch
    unseen: list[Sequence] = field(default_factory=list)
    roles: dict[str, list[int]] = field(default_factory=dict)


def small(batch: Batch, name: str, most: int = PAIRS) -> Probe:
    """The first examples of a term, with the sequences that they use and no others; responses in one piece."""
    term = batch.terms[name]
    places = [
        [p for r in term.roles.values() for p in np.atleast_1d(r[i]).tolist() if p >= 0] for i in range(len(term))
    ]
    whole = [i for i, own in enumerate(places) if not any(batch.sequences[p].later for p in own)]
    keep = whole[: min(most, max(4, len(term) // 2))]
    used = sorted({p for i in keep for p in places[i]})
    number = {p: n for n, p in enumerate(used)}
    number[-1] = -1
    taken = term.take(np.array(keep, int))
    renumbered = {r: np.vectorize(number.__getitem__, otypes=[int])(v) if len(v) else v for r, v in taken.roles.items()}
    own = TermBatch(taken.kind, renumbered, taken.values, taken.weight, taken.records, taken.sources)
    found = Probe(Batch([batch.sequences[p] for p in used], {name: own}, np.zeros(len(used), bool)))
    if own.kind == "Pairs":
        found.roles = {side: own.roles[side].tolist() for side in SIDES}
    elif own.kind in ("Points", "Tokens", "Demos"):
        good = own.values["value"] >= 0.5 if "value" in own.values else np.ones(len(own), bool)
        found.roles = {
            "chosen": own.roles["response"][good].tolist(),
            "rejected": own.roles["response"][~good].tolist(),
        }
    chosen = [found.batch.sequences[p] for p in found.roles.get("chosen", ())]
    contexts = [s.context.tobytes() for s in chosen]
    for i, s in enumerate(chosen):
        others = (j % len(chosen) for j in range(i + 1, i + len(chosen)))
        other = next((j for j in others if contexts[j] != contexts[i]), None)
        if other is not None:
            found.unseen.append(Sequence(s.context, chosen[other].ids, chosen[other].trained))
    return found


def last_weights(scorer: Scorer) -> list[nn.Parameter]:
    """Trained weights from the last layer backwards, as many as are no more than `WEIGHTS` numbers (one at least)."""
    found: list[nn.Parameter] = []
    for name, p in reversed([*trainable(scorer)]):
        if not name.startswith("heads.") and (not found or sum(x.numel() for x in (*found, p)) <= WEIGHTS):
            found.append(p)
    return found


def likelihoods(step: Step, probe: Probe) -> dict[str, float]:
    """Log-probs a token of each side and of other prompts' responses; entropy, and what the likeliest tokens hold, over
    chosen; surprise of each side (see `accord/monitors/on_policy.py`), with its standard error."""
    sequences = [*probe.batch.sequences, *probe.unseen]
    seen = tokens(step.scorer, sequences, step.budget)
    n = len(probe.batch.sequences)
    found = {}
    for role, places in {**probe.roles, "unseen": list(range(n, n + len(probe.unseen)))}.items():
        if not places:
            continue
        logp, entropy, variance, top_entropy, top_mass = np.concatenate([seen[p] for p in places], 1)
        found[f"logps/{role}"] = float(logp.mean())
        if role != "unseen":
            found[f"surprise/{role}"] = float((-logp - entropy).mean())
            found[f"surprise_error/{role}"] = float(np.sqrt(variance.sum()) / len(logp))
        if role == "chosen":
            found |= {
                "entropy": float(entropy.mean()), "topk_entropy": float(top_entropy.mean()),
                "topk_mass": float(top_mass.mean()),
            }  # fmt: skip
    return found


def tokens(scorer: Scorer, sequences: Seq[Sequence], budget: int) -> list[np.ndarray]:
    """Of each sequence, [5, R]: log-prob of each trained token; entropy (nats) and variance of log p of the
    distribution that it was taken from; entropy (bits) over its ten likeliest tokens, -sum p log2 p, and their mass."""
    found: dict[int, np.ndarray] = {}
    for micro in plan(sequences, scorer, budget):
        row = Row.of(micro, scorer.device)
        with torch.no_grad(), no_dropout(scorer):
            parts = torch.cat([statistics(*chunk) for chunk in scorer.logits(row)], 1).float().cpu().numpy()
        for i in dict.fromkeys(micro.owner.tolist()):
            found[i] = parts[:, micro.owner == i]
    return [found[i] for i in range(len(sequences))]


def statistics(values: Tensor, target: Tensor) -> Tensor:
    """Logits [m, V] and targets [m] to what `tokens` says, [5, m].

    Of two tokens with probabilities 3/4 and 1/4, where the second came: log 1/4, the entropy, its variance, and 0.811
    bits over the likeliest, which hold everything.

    >>> [round(x, 3) for x in statistics(torch.tensor([[3.0, 1.0]]).log(), torch.tensor([1]))[:, 0].tolist()]
    [-1.386, 0.562, 0.226, 0.811, 1.0]
    """
    logp = values.log_softmax(-1)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    variance = (p * (logp - mean[:, None]).square()).sum(-1)
    top = logp.topk(min(TOP, logp.shape[-1])).values
    bits = -(top.exp() * top).sum(-1) / np.log(2)
    return torch.stack([logp.gather(-1, target[:, None])[:, 0], -mean, variance, bits, top.exp().sum(-1)])


def entanglement(step: Step, batch: Batch, number: int, weights: Seq[nn.Parameter]) -> dict[str, float]:
    """How the gradients of chosen and rejected lie to each other, each weighted as the loss weighs it, on `weights`.

    g_w, g_l: the directions in which the loss raises chosen and lowers rejected, with g_l turned round. `inner` is
    <g_w, g_l>, `norm_chosen` and `norm_rejected` their norms; `chosen_rises` 1 - <g_w, g_l> / |g_w|^2, `rejected_rises`
    <g_w, g_l> / |g_l|^2 - 1: a plain step along the loss on these pairs changes chosen and rejected by these, times
    the squared norms. {} if there are no pairs, log-probs are not asked for, or one side has no gradient.
    """
    sides = copy.copy(step)
    sides.partition, sides.processes = "side", Processes()
    sides.objective_state = copy.deepcopy(step.objective_state)
    (name,) = batch.terms
    if batch.terms[name].kind != "Pairs" or not len(batch.terms[name]) or not step.terms[name].logps:
        return {}
    random = torch.get_rng_state()
    with no_dropout(step.scorer):
        collected = sides.collect(batch, number, train=False)
        whole = None
        names = set_names("side", collected.batch)
        if not collected.direct and collected.leaves is not None:
            whole, _ = sides.cotangents(collected, collected.leaves, collected.batch.terms, names)
        sums = {side: [torch.zeros_like(w) for w in weights] for side in names}
        for micro in collected.micros:
            out = sides.score(micro)
            if whole is None:
                leaves = sides._leaves(collected, micro, out)
                given, _ = sides.cotangents(collected, leaves, sides._within(collected.batch, micro), names)
            else:
                given = [sides._slice(collected, c, micro, True) for c in whole]
            for side, cotangent in zip(names, given, strict=True):
                push = cotangent["logp"].to(out["logp"])
                grads = torch.autograd.grad(out["logp"], weights, push, retain_graph=True, allow_unused=True)
                for total, g in zip(sums[side], grads, strict=True):
                    total += 0 if g is None else g
    torch.set_rng_state(random)
    w, l = (torch.cat([g.flatten() for g in sums[side]]).double() for side in names)
    inner, of_w, of_l = -float(w @ l), float(w.norm()), float(l.norm())
    if not of_w or not of_l:
        return {}
    return {
        "entanglement/inner": inner, "entanglement/norm_chosen": of_w, "entanglement/norm_rejected": of_l,
        "entanglement/cosine": inner / (of_w * of_l), "entanglement/chosen_rises": 1 - inner / of_w**2,
        "entanglement/rejected_rises": inner / of_l**2 - 1,
    }  # fmt: skip


def fresh_answers(policy: Policy, chat: Chat, records: Seq[Record], count: int, seed: int) -> Answers:
    """One answer of the policy as it is now to each of the first prompts, drawn with the same random numbers each
    time, with what was asked."""
    asked = [records[i] for i in range(min(count, len(records)))]
    given = answer(policy, chat, asked, max_new_tokens=ANSWER, seed=seed)
    ids = [list(found.token_ids or ()) for (found,) in given]
    return [
        (Sequence.of(chat.context_ids(r), i, [True] * len(i)), question(r))
        for r, i in zip(asked, ids, strict=True)
        if i
    ]


def samples(step: Step, answers: list[Sequence]) -> dict[str, float]:
    """Length, variety and KL of fresh answers; KL where the reference is at hand (live, or adapters switched off)."""
    lengths = [len(s.ids) for s in answers]
    vocabulary = int(step.scorer.causal.get_output_embeddings().weight.shape[0])
    found = {"length": float(np.mean(lengths)), "distinct": distinct([s.ids.tolist() for s in answers], vocabulary)}
    ref = step.references.get("ref")
    if ref is not None and (ref.mode == "live" or ref.name == "adapters off"):
        now = dict(score(step.scorer, plan(answers, step.scorer, step.budget)))
        with ref.open() as scorer:
            then = dict(score(scorer, plan(answers, scorer, step.budget)))
        ratios = [now[i].astype(float) - then[i] for i in range(len(answers))]
        k1, _, k3 = divergences(np.concatenate(ratios))
        found |= {"kl": float(k1.sum() / len(answers)), "kl_per_token": float(k3.mean())}
    return found


def divergences(ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates of KL(policy | reference) from log policy/reference of what the policy sampled: k1 = ratio, k2 =
    ratio^2 / 2, k3 = exp(-ratio) - 1 + ratio. k1 and k3 are KL on average, k3 is never negative; k2 is neither.

    >>> [round(float(x), 4) for x in divergences(np.array(0.5))]
    [0.5, 0.125, 0.1065]
    """
    return ratio, ratio**2 / 2, np.exp(-ratio) - 1 + ratio


def distinct(texts: Seq[Seq[int]], vocabulary: int) -> float:
    """Distinct n-grams over how many that many draws from `vocabulary` would give, the mean of n = 1 to 5.

    >>> round(distinct([[1, 2, 3], [1, 2, 3]], 100), 2), distinct([[1], [2]], 1)
    (0.51, 2.0)
    """
    found = []
    for n in range(1, 6):
        grams = [tuple(t[i : i + n]) for t in texts for i in range(len(t) - n + 1)]
        if grams:
            expected = vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** len(grams))
            found.append(len(set(grams)) / expected)
    return float(np.mean(found)) if found else 0.0
