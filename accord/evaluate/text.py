"""What are answers like? How likely, how varied, how often right within k tries, how often of a kind?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.rows import many
from accord.data.views import Counts
from accord.engine import models
from accord.engine.rewards import TOGETHER
from accord.errors import ConfigError
from accord.evaluate.ranking import log_probs
from accord.evaluate.scorers import quiet
from accord.judges.frame import Judge, Say
from accord.judges.rules import distinct_n, words
from accord.sinks import jsonable, write_json
from accord.stats import Interval, bootstrap, proportion

LONGEST = 4  # n-grams of BLEU
MISSED = 0.1  # n-grams that are said to match where none does (Chen and Cherry 2014, smoothing 1)


def pass_at_k(n: int, c: int, k: int) -> float:
    """P(at least one of k answers is right), without bias, where c of n drawn answers are.

    Equation:
        1 - C(n - c, k) / C(n, k)

    Source: arXiv 2107.03374.

    >>> round(pass_at_k(10, 3, 5), 6), round(pass_at_k(10, 3, 1), 6)
    (0.916667, 0.3)
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@{k} of {c} right ones among {n} cannot be known")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def self_bleu(texts: Seq[str]) -> list[float]:
    """Of each text its BLEU-4 against all the others: 1 where they say the same, near 0 where nothing is shared.

    Equation:
        BP * exp(1/4 sum over n = 1..4 of log p_n),  p_n: share of the text's n-grams that some other text has as often
        BP = min(1, exp(1 - r / c)),  c words of the text, r of the other one that is nearest in length

    Words are in lower case, as `words` of accord.judges.rules cuts them. A text without n words counts up to its own
    length; n-grams of which none is shared count as 0.1 of one.

    Source: arXiv 1802.01886.

    >>> self_bleu(["we fix your bikes today", "we fix your bikes today"])
    [1.0, 1.0]
    >>> [round(v, 3) for v in self_bleu(["we fix your bikes", "bread is what they eat"])]
    [0.035, 0.03]
    """
    said = [[w.lower() for w in words(t)] for t in texts]
    grams = [[_grams(line, n) for n in range(1, LONGEST + 1)] for line in said]
    most: list[dict[tuple[str, ...], list[tuple[int, int]]]] = [{} for _ in range(LONGEST)]
    for i, several in enumerate(grams):
        for n, found in enumerate(several):
            for gram, count in found.items():  # the two texts that have it most often
                best = most[n].setdefault(gram, [])
                best.append((count, i))
                if len(best) > 2:
                    best.sort(reverse=True)
                    best.pop()
    sizes = Counter(map(len, said))
    return [_bleu(i, line, grams[i], most, sizes) for i, line in enumerate(said)]


def _grams(line: Seq[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(line[i : i + n]) for i in range(len(line) - n + 1))


def _bleu(
    i: int, line: Seq[str], grams: Seq[Counter[tuple[str, ...]]],
    most: Seq[Mapping[tuple[str, ...], Seq[tuple[int, int]]]], sizes: Counter[int],
) -> float:  # fmt: skip
    if not line or sizes.total() < 2:
        return 0.0
    logs = []
    for n, found in enumerate(grams):
        if total := found.total():
            shared = sum(
                min(count, max((other for other, whose in most[n][gram] if whose != i), default=0))
                for gram, count in found.items()
            )
            logs.append(math.log((shared or MISSED) / total))
    others = [size for size, several in sizes.items() if several > (size == len(line))]
    nearest = min(others, key=lambda size: (abs(size - len(line)), size))
    return min(1.0, math.exp(1 - nearest / len(line))) * math.exp(sum(logs) / len(logs))


@dataclass(frozen=True)
class Perplexity:
    """How likely answers are under a model, two ways: they differ, and papers report either.

    mean: mean over answers of exp(mean NLL of its tokens). corpus: exp(sum of NLL / number of tokens).
    """

    mean: Interval
    corpus: float
    answers: int
    tokens: int


def perplexity(
    name: str, records: Seq[Record], *, max_length: int = 4096, device: models.Device = "auto",
    precision: models.Precision = "auto", counts: Counts | None = None, say: Say = quiet,
) -> Perplexity:  # fmt: skip
    """Of the answers of records under a model; prompts are read and not counted."""
    policy = models.load(name, device=device, precision=precision)
    chat = Chat(policy.tokenizer, max_length=max_length, stop_ids=policy.ends)
    counts = Counts() if counts is None else counts
    nll, tokens, prompts = [], [], []
    for start in range(0, len(records), TOGETHER):
        part = records[start : start + TOGETHER]
        for record, (logp, several) in zip(part, log_probs(policy, chat, part, counts), strict=True):
            nll += (-logp).tolist()
            tokens += several.tolist()
            prompts += [record.prompt_key] * len(logp)
        say(min(start + TOGETHER, len(records)), len(records))
    if not nll:
        raise ConfigError(f"{name} can read none of these answers ({'; '.join(counts.totals()) or 'there is none'})")
    each = np.exp(np.array(nll) / np.array(tokens))
    return Perplexity(
        bootstrap(each, prompts), float(np.exp(sum(nll) / sum(tokens))), len(nll), int(sum(tokens))
    )  # fmt: skip


@dataclass(frozen=True)
class Described:
    """What the answers of one file are like.

    length: words. distinct: of n-grams over all answers, by n. self_bleu: of answers to one prompt where prompts have
    several, else of all answers (`within` says which). passed: pass@k by k. rates: judge, then source, then the share
    of answers that it gives one half or more. perplexity: by model.
    """

    file: str
    prompts: int
    answers: int
    length: Interval
    distinct: dict[int, float]
    self_bleu: Interval
    within: str
    passed: dict[int, Interval]
    rates: dict[str, dict[str, Interval]]
    perplexity: dict[str, Perplexity]
    notes: dict[str, int]

    def lines(self) -> list[str]:
        """For a person."""
        told = [
            f"{self.file}: {many(self.answers, 'answers')} to {many(self.prompts, 'prompts')}",
            f"  words {self.length.mean:.1f} [{self.length.low:.1f}, {self.length.high:.1f}]",
            "  different n-grams " + ", ".join(f"{v:.3f} of n = {n}" for n, v in self.distinct.items()),
            f"  self-BLEU of {self.within} {self.self_bleu}",
        ]
        told += [f"  pass@{k} {v}" for k, v in self.passed.items()]
        for name, by in self.rates.items():
            told.append(f"  {name}: " + ", ".join(f"{source} {v}" for source, v in by.items()))
        for name, p in self.perplexity.items():
            told.append(
                f"  perplexity under {name}: {p.mean.mean:.3f} [{p.mean.low:.3f}, {p.mean.high:.3f}] as the mean of "
                f"answers, {p.corpus:.3f} over all {many(p.tokens, 'tokens')}"
            )
        return told + [f"  {what}: {n:,}" for what, n in self.notes.items()]


def describe(
    file: str, records: Seq[Record], *, ks: Seq[int] = (), by: str | None = None, judges: Seq[Judge] = (),
    models_: Seq[str] = (), say: Say = quiet, **loading: Any,
) -> Described:  # fmt: skip
    """All that `accord eval text` says of one file.

    Args:
        ks: of pass@k, for which labels, or scores of which 1 is right, must stand in the records (of `by`, if given).
        judges: whose shares are told. models_: under which answers are measured.

    Raises:
        ConfigError: no answer; a k above the number of answers that prompts have; nothing that says what is right.
    """
    texts: dict[str, list[str]] = {}
    for record in records:
        texts.setdefault(record.prompt_key, []).extend(a.plain_text for a in record.responses)
    every = [t for several in texts.values() for t in several]
    if not every:
        raise ConfigError(f"{file} holds no answers")
    counts = Counts()
    several = {key: found for key, found in texts.items() if len(found) > 1}
    groups = list(several.values()) or [every]
    bleu = [v for group in groups for v in self_bleu(group)]
    of = [n for n, group in enumerate(groups) for _ in group] if several else list(range(len(bleu)))
    sizes = [len(words(t)) for t in every]
    keys = [key for key, found in texts.items() for _ in found]
    return Described(
        file=file, prompts=len(texts), answers=len(every), length=bootstrap(sizes, keys),
        distinct={n: distinct_n(every, n) for n in (1, 2, 3)},
        self_bleu=bootstrap(bleu, of), within="answers to one prompt" if several else "all answers",
        passed=passed(file, records, ks, by, counts) if ks else {},
        rates={judge.by: rates(judge, records, counts) for judge in judges},
        perplexity={name: perplexity(name, records, counts=counts, say=say, **loading) for name in models_},
        notes=counts.totals(),
    )  # fmt: skip


def passed(file: str, records: Seq[Record], ks: Seq[int], by: str | None, counts: Counts) -> dict[int, Interval]:
    """pass@k by k, mean over prompts; an answer is right if its label is 1, or its score 1 or more."""
    right: dict[str, list[bool]] = {}
    heard: dict[str, None] = {}
    for record in records:
        for i in range(len(record.responses)):
            said = [
                j for j in record.judgements
                if j.response == i and j.kind in ("label", "score") and j.step is None and by in (None, j.by)
            ]  # fmt: skip
            heard |= dict.fromkeys(j.by or "nobody who is named" for j in said)
            if said:
                right.setdefault(record.prompt_key, []).append(said[0].value >= 1)
            else:
                counts.add("answers that nobody says are right or wrong", record)
    if not right:
        raise ConfigError(
            f"{file}: no label or score says which answer is right{f' by {by!r}' if by else ''}; judge it before, for "
            "example accord judge FILE --judge asked --output judged.jsonl"
        )
    if len(heard) > 1:
        raise ConfigError(f"{file}: {', '.join(heard)} say which answer is right; choose one by --by")
    fewest = min(map(len, right.values()))
    if max(ks) > fewest:
        raise ConfigError(f"{file}: pass@{max(ks)} needs {max(ks)} judged answers of each prompt; one has {fewest}")
    return {k: bootstrap([pass_at_k(len(v), sum(v), k) for v in right.values()]) for k in ks}


def rates(judge: Judge, records: Seq[Record], counts: Counts) -> dict[str, Interval]:
    """The share of answers to which a judge gives one half or more, of all, and by source where there are several."""
    found: dict[str, list[tuple[bool, str]]] = {}
    for record, said in zip(records, judge(records), strict=True):
        scores = [j for j in said if j.kind in ("score", "label")]
        if len(scores) < len(record.responses):
            counts.add(f"answers of which {judge.by} says nothing", record, len(record.responses) - len(scores))
        found.setdefault(record.source, []).extend((j.value >= 0.5, record.prompt_key) for j in scores)
    if not any(found.values()):
        raise ConfigError(f"{judge.by} gives none of these answers a number, so there is no share")
    found = (found if len(found) > 1 else {}) | {"all": [one for several in found.values() for one in several]}
    return {source: _share(several) for source, several in found.items() if several}


def _share(said: Seq[tuple[bool, str]]) -> Interval:
    hits, prompts = [float(hit) for hit, _ in said], [key for _, key in said]
    if len(set(hits)) == 1 or len(set(prompts)) == len(prompts):
        n = len(set(prompts))
        return proportion(float(np.mean(hits)) * n, n)
    return bootstrap(hits, prompts)


@dataclass(frozen=True)
class Texts:
    """Several files beside each other."""

    files: list[Described]

    def as_dict(self) -> dict[str, Any]:
        return jsonable(asdict(self))

    def write(self, folder: Path) -> list[Path]:
        """text.json."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "text.json", self.as_dict())
        return [folder / "text.json"]

    def lines(self) -> list[str]:
        return [line for file in self.files for line in file.lines()]
