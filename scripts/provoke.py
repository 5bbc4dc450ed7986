"""Does `accord train` name what is wrong? Runs broken on purpose, and healthy ones, of a tiny pretrained model.

    python scripts/provoke.py MODEL TEXTS --seeds 10 --healthy 20

MODEL: a small causal model that loads at once. TEXTS: a file of pairs that another model wrote (they are off policy).
A world: of three answers of the model to each prompt, cut at random lengths, those with the most and the fewest tokens
of one half of the vocabulary, which the seed draws. So labels say nothing of length, and can be learned. Each fault
changes one thing.
Prints a table: in how many seeds each fault was named by its monitor, and every verdict of the healthy runs.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import accord
from accord.data import sources
from accord.data.chat import Chat
from accord.data.records import Judgement, Record, Response
from accord.engine import models
from accord.sampling.local import answer
from accord.sinks import JsonLines

PROMPTS, SHORT, LONG = 540, 8, 24
HEALTHY: dict[str, Any] = {
    "objective": "dpo", "learning_rate": 1e-4, "batch_size": 16, "max_steps": 30, "precision": "fp32", "device": "cpu",
    "quiet": True,
}  # fmt: skip
FAULTS = {  # what is wrong -> the monitor that must say so
    "beta too small": "beta", "wrong reference": "reference", "shuffled labels": "labels",
    "learning rate too high": "rate", "off-policy data": "on_policy", "length-biased data": "length",
}  # fmt: skip
NAMES = ("Lily", "Tom", "Sue", "Ben", "Mia", "Max", "Anna", "Sam")
PLACES = ("park", "shop", "lake", "zoo", "house", "garden", "school", "beach", "forest", "farm", "river", "hill")
TIMES = ("One day", "Once upon a time", "In the morning", "After lunch", "One night", "Yesterday")


def prompts(count: int, seed: int) -> list[Record]:
    every = [f"{t}, {n} went to the {p}." for t, n, p in itertools.product(TIMES, NAMES, PLACES)]
    draw = np.random.default_rng(seed)
    return [Record(prompt=every[i]) for i in draw.permutation(len(every))[:count]]


@functools.cache
def loaded(model: str) -> tuple[models.Policy, Chat]:
    policy = models.load(model, device="cpu", precision="fp32")
    return policy, Chat(policy.tokenizer, stop_ids=policy.ends)


def tokens_of_others(model: str, texts: str) -> list[list[int]]:
    """Answers that the model did not write."""
    _, chat = loaded(model)
    found = []
    for record in sources.load(texts).records:
        for response in record.responses:
            ids = chat.tokenizer(response.plain_text, add_special_tokens=False)["input_ids"]
            found.append(ids[: LONG + 8])
    return [f for f in found if len(f) >= LONG]


@functools.lru_cache(maxsize=1)
def sampled(model: str, seed: int) -> tuple[list[Record], list[list[list[int]]]]:
    """Prompts, and the tokens of three answers to each."""
    policy, chat = loaded(model)
    asked = prompts(PROMPTS, seed)
    drawn = answer(policy, chat, asked, samples=3, max_new_tokens=LONG, seed=seed, shard=512)
    return asked, [[list(a.token_ids or ()) for a in several] for several in drawn]


def world(model: str, seed: int, fault: str | None = None, texts: str | None = None) -> list[Record]:
    """Pairs, each of the records with the ids that were sampled."""
    policy, chat = loaded(model)
    draw = np.random.default_rng(seed)
    asked, said = sampled(model, seed)
    if fault == "off-policy data":
        others = tokens_of_others(model, str(texts))
        said = [[others[i] for i in draw.integers(len(others), size=3)] for _ in said]
    good = draw.permutation(int(policy.scorer.causal.config.vocab_size)) % 2 == 0
    found = []
    for record, every in zip(asked, said, strict=True):
        cut = [ids[: int(draw.integers(SHORT, LONG + 1))] for ids in every]
        scores = [float(good[ids].mean()) for ids in cut]
        cut = [cut[int(np.argmax(scores))], cut[int(np.argmin(scores))]]
        better = True
        if fault == "shuffled labels":
            better = bool(draw.random() < 0.5)
        elif fault == "length-biased data" and draw.random() < 0.8:
            better = len(cut[0]) > len(cut[1])
        if min(scores) == max(scores):
            continue
        answers = tuple(
            Response(text=chat.tokenizer.decode(ids), token_ids=tuple(ids), tokenizer=chat.key, finish="length")
            for ids in cut
        )
        judged = Judgement(kind="preference", pair=(0, 1), value=float(better))
        found.append(Record(prompt=record.prompt, responses=answers, judgements=(judged,), source="world"))
    return found


def settings(fault: str | None, other: str) -> dict[str, Any]:
    """What the fault changes in the settings."""
    return {
        "beta too small": {"beta": 0.001}, "wrong reference": {"reference": other},
        "learning rate too high": {"learning_rate": 1e-2},
    }.get(str(fault), {})  # fmt: skip


def verdicts(model: str, fault: str | None, seed: int, texts: str, other: str, folder: Path) -> list[dict[str, Any]]:
    """Trains one and gives what its monitors said."""
    run = folder / f"{(fault or 'healthy').replace(' ', '-')}-{seed}"
    options = HEALTHY | settings(fault, other)
    accord.train(model, world(model, seed, fault, texts), output=str(run), seed=seed, overwrite=True, **options)
    return JsonLines(run / "verdicts.jsonl").read()


def another_model(model: str, texts: str, folder: Path) -> str:
    """The model after demonstrations of something else."""
    target = folder / "other"
    if not target.exists():
        options = {k: v for k, v in HEALTHY.items() if k != "objective"} | {"learning_rate": 1e-3}
        accord.train(model, texts, "sft", output=str(target), max_length=64, **options)
    return str(target)


def provoked(model: str, texts: str, folder: Path, seeds: int, healthy: int, first: int) -> Iterator[tuple[Any, ...]]:
    """(fault or None, seed, monitors that spoke), one run after another."""
    other = another_model(model, texts, folder)
    for seed in range(first, first + max(seeds, healthy)):
        tried = [*(FAULTS if seed < first + seeds else ()), *([None] if seed < first + healthy else ())]
        for fault in tried:
            said = verdicts(model, fault, seed, texts, other, folder)
            yield fault, seed, [v["monitor"] for v in said]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--healthy", type=int, default=20)
    parser.add_argument(
        "--first", type=int, default=300, help="the first seed; thresholds were fixed on seeds below 300"
    )
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp())
    began = time.monotonic()
    named: Counter[str] = Counter()
    beside: dict[str, Counter[str]] = {f: Counter() for f in FAULTS}
    alarms: dict[int, list[str]] = {}
    for fault, seed, said in provoked(given.model, given.texts, folder, given.seeds, given.healthy, given.first):
        print(json.dumps({"fault": fault, "seed": seed, "said": said}), flush=True)
        if fault is None:
            alarms |= {seed: said} if said else {}
        else:
            named[fault] += FAULTS[fault] in said
            beside[fault].update(set(said) - {FAULTS[fault]})
    print("\n| fault | monitor | named | others that spoke |\n| --- | --- | --- | --- |")
    for fault, monitor in FAULTS.items():
        others = ", ".join(f"{m} {n}" for m, n in beside[fault].most_common()) or "none"
        print(f"| {fault} | `{monitor}` | {named[fault]} of {given.seeds} | {others} |")
    print(f"\nhealthy runs with a verdict: {len(alarms)} of {given.healthy} {alarms or ''}")
    print(f"{time.monotonic() - began:.0f} s")
    if given.keep is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
