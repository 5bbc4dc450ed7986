"""Does a policy find the better answer likelier, and could it? Ranking accuracy (arXiv 2405.19534).

This is the likelihood of the policy itself, and not the accuracy of its implicit reward, which trainers log as
`rewards/accuracies`: a policy may have every log-ratio right and still rank the pair wrongly, because its reference
ranked it far more wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_expit, logit

from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.rows import many
from accord.data.views import Counts
from accord.engine import models
from accord.engine.reference import PASS_TOKENS, plan, score
from accord.engine.rewards import TOGETHER, encoded
from accord.errors import ConfigError
from accord.evaluate.rewards import Pairs, accuracy_of, pairs_of
from accord.evaluate.scorers import quiet
from accord.judges.frame import Say
from accord.sinks import jsonable, write_json
from accord.stats import Interval

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
SURE = 1e-3  # a preference of 1 has no finite log-odds
NEAR = math.log(1.05)


def idealised(ref_ratio: np.ndarray, agreement: np.ndarray | float, beta: float) -> np.ndarray:
    """log pi*(y_w | x) / pi*(y_l | x) of the policy that training with DPO would reach if nothing stood in its way.

    Equation:
        log pi*(y_w) / pi*(y_l) = log ref(y_w) / ref(y_l) + log(alpha / (1 - alpha)) / beta

    Args:
        ref_ratio: log ref(y_w) / ref(y_l), nats. agreement: alpha, the share of people who prefer y_w (1 is taken as
            0.999). beta: strength of the tie to the reference.

    >>> round(float(idealised(np.array(-20.0), 0.75, 0.1)), 6)
    -9.013877
    """
    return ref_ratio + logit(np.clip(agreement, SURE, 1 - SURE)) / beta


def needed_loss(ref_ratio: np.ndarray, beta: float) -> np.ndarray:
    """The DPO loss at or below which a pair is ranked correctly: -log sigmoid(beta * c), c = -ref_ratio.

    >>> round(float(needed_loss(np.array(-20.0), 0.1)), 6)
    0.126928
    """
    return -log_expit(-beta * ref_ratio)


@dataclass(frozen=True)
class Ideal:
    """What the best policy under one beta would reach. near: share of its pairs whose ratio lies within 5 % of 1."""

    beta: float
    accuracy: Interval
    near: float


@dataclass(frozen=True)
class Ranking:
    """What `rank` found.

    summed, averaged: share of pairs with log pi(y_w) >= log pi(y_l), of the sum and of the mean over tokens. Of the
    reference the same. implicit: share of pairs whose log-ratio is larger for chosen. ideal: by beta. wrong: pairs
    that the reference ranks wrongly (by the sum), and how many of them the policy ranks rightly.
    """

    told: list[str]
    policy: str
    reference: str | None
    pairs: int
    summed: Interval
    averaged: Interval
    ref_summed: Interval | None
    ref_averaged: Interval | None
    implicit: Interval | None
    ideal: list[Ideal]
    wrong: dict[str, int]
    notes: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return jsonable(asdict(self))

    def write(self, folder: Path) -> list[Path]:
        """ranking.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "ranking.json", self.as_dict())
        return [folder / "ranking.json"]

    def lines(self) -> list[str]:
        found = [*self.told, "", f"{many(self.pairs, 'pairs')}: how often chosen is at least as likely"]
        found.append(f"{self.policy}: {self.summed} by the sum over tokens, {self.averaged} by their mean")
        if self.reference is not None:
            found.append(f"{self.reference}: {self.ref_summed} by the sum, {self.ref_averaged} by the mean")
            found.append(f"implicit reward (what trainers log as rewards/accuracies): {self.implicit}")
            found.append(
                f"of {self.wrong['pairs']:,} pairs that the reference ranks wrongly the policy ranks "
                f"{self.wrong['mended']:,} rightly"
            )
            found += [
                f"idealised, beta {i.beta:g}: {i.accuracy}"
                + (f" ({i.near:.1%} of pairs within 5 % of even)" if i.near else "")
                for i in self.ideal
            ]
        return [*found, *(f"{what}: {n:,}" for what, n in self.notes.items())]


def rank(
    policy: str,
    records: Seq[Record],
    *,
    reference: str | None = None,
    betas: Seq[float] = BETAS,
    agreement: float = 0.75,
    max_length: int = 1024,
    device: models.Device = "auto",
    precision: models.Precision = "auto",
    told: Seq[str] = (),
    say: Say = quiet,
) -> Ranking:
    """Ranking accuracy of a policy on the pairs that the records make; with a reference the idealised one, too.

    Args:
        betas: of the idealised accuracy.
        agreement: share of people who prefer chosen, of pairs whose strength is 1 because nobody was counted.

    Raises:
        ConfigError: no pair; an agreement outside (1/2, 1]; a beta that is not above 0; different tokenizers.
    """
    if not 0.5 < agreement <= 1:
        raise ConfigError(f"--agreement {agreement:g}: chosen is preferred by more than half, so it lies in (0.5, 1]")
    if any(not b > 0 for b in betas):
        raise ConfigError(f"--beta {min(betas):g} must be above 0")
    pairs = pairs_of(records)
    counts = Counts()
    mine = _read(policy, records, pairs, max_length, device, precision, counts, say)
    theirs = (
        mine if reference is None else _read(reference, records, pairs, max_length, device, precision, Counts(), say)
    )
    if theirs.key != mine.key:
        raise ConfigError(f"{policy} and {reference} have different tokenizers: no log-ratio can be taken")
    use = ~np.isnan(mine.summed) & (pairs.y != 0.5)
    prompt = pairs.prompt[use]

    def share(right: np.ndarray) -> Interval:
        return accuracy_of(right[use].astype(float), prompt)

    ratio, alpha = theirs.summed[use], np.where(pairs.y == 1, agreement, pairs.y)[use]
    wrong = ratio < 0
    best = {b: idealised(ratio, alpha, b) for b in betas}
    given = reference is not None
    return Ranking(
        told=list(told),
        policy=policy,
        reference=reference,
        pairs=int(use.sum()),
        summed=share(mine.summed >= 0),
        averaged=share(mine.averaged >= 0),
        ref_summed=share(theirs.summed >= 0) if given else None,
        ref_averaged=share(theirs.averaged >= 0) if given else None,
        implicit=share(_half(mine.summed - theirs.summed)) if given else None,
        ideal=[
            Ideal(b, accuracy_of((v > 0).astype(float), prompt), float((np.abs(v) < NEAR).mean()))
            for b, v in best.items()
        ]
        if given
        else [],
        wrong={"pairs": int(wrong.sum()), "mended": int((mine.summed[use][wrong] >= 0).sum())} if given else {},
        notes=pairs.counts.totals() | counts.totals(),
    )


def _half(margin: np.ndarray) -> np.ndarray:
    return (margin > 0) + 0.5 * (margin == 0)


@dataclass(frozen=True)
class _Ratios:
    """log pi(first) - log pi(second) of each pair, by the sum and the mean over tokens; key of the tokenizer."""

    summed: np.ndarray
    averaged: np.ndarray
    key: str


def _read(
    model: str, records: Seq[Record], pairs: Pairs, max_length: int, device: models.Device,
    precision: models.Precision, counts: Counts, say: Say,
) -> _Ratios:  # fmt: skip
    policy = models.load(model, device=device, precision=precision)
    chat = Chat(policy.tokenizer, max_length=max_length, stop_ids=policy.ends)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(records), TOGETHER):
        found += log_probs(policy, chat, records[start : start + TOGETHER], counts)
        say(len(found), len(records))
    total, mean = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    for n, (r, i, j) in enumerate(zip(pairs.record, pairs.first, pairs.second, strict=True)):
        logp, tokens = found[r]
        if len(logp):
            total[n], mean[n] = logp[i] - logp[j], logp[i] / tokens[i] - logp[j] / tokens[j]
    return _Ratios(total, mean, chat.key)


def log_probs(
    policy: models.Policy, chat: Chat, records: Seq[Record], counts: Counts
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each record's responses the summed log-probs of their trained tokens [K] nats, and how many these are [K];
    nothing of a record that cannot be used."""
    whole, places = encoded(chat, records, counts)
    turns = [(s, *s.later) for s in whole]
    owner = np.repeat(np.arange(len(turns)), [len(t) for t in turns])
    total, tokens = np.zeros(len(turns)), np.zeros(len(turns))
    scorer = policy.scorer
    flat = [t for several in turns for t in several]
    for i, logp in score(scorer, plan(flat, scorer, PASS_TOKENS.get(scorer.device.type, 16384)) if flat else []):
        total[owner[i]] += logp.astype(np.float64).sum()
        tokens[owner[i]] += len(logp)
    return [(total[at], tokens[at]) for at in places]
