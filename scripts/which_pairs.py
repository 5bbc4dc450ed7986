"""Which pairs teach? Two questions, one command each, on slogans judged by the rule that each prompt states.

    python scripts/which_pairs.py scenarios MODEL [SEED ...]
    python scripts/which_pairs.py strengths MODEL [SEED ...]

`scenarios` (3D-Properties): DPO on pairs whose chosen and rejected answer are the policy's own or somebody else's
(SmolLM2's, as bundled), four ways, on the same prompts. The answers from elsewhere are those whose rule scores are
next to the policy's best and worst, so that the ways differ in whose answers they are, and hardly in how good.

`strengths` (OSP): an online loop whose judge sees the rule's score with noise. It ranks four answers; DPO learns the
order, soft DPO how sure the judge is (calibrated on answers of the start), smoothed DPO the same doubt of every pair.
Each has the beta of three that is best for it, since a strength p stops at a margin of logit(p) / beta.

What is chosen by looking (a rate, a beta) is chosen with a seed that is not among those reported. The tokens are said
first. Intervals are Student's, over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from online_or_offline import NEW_TOKENS, TUNING, looked_at, opened

from accord.cli.frame import quiet_libraries
from accord.data import sources
from accord.data.batches import seeded
from accord.data.records import Judgement, Record
from accord.engine import models
from accord.judges.rules import asked
from accord.lab.trials import chat_of, log_probs, student, train_with_looks
from accord.online.loop import loop
from accord.report.story import signed
from accord.sampling.local import answer
from accord.stats import temperature

SEEDS = [0, 1, 2, 3, 4]
Numbers = dict[str, float]
BEFORE: dict[int, float] = {}


def gained(policy: models.Policy, start: models.Policy, seed: int) -> Numbers:
    """The rule score of held-out prompts less the start's, and nats a token that the answers are likelier than then."""
    if seed not in BEFORE:
        BEFORE[seed] = float(np.mean(looked_at(start, start, seed + 100)[0]))
    after, apart = looked_at(policy, start, seed + 100)
    return {"rule": float(np.mean(after)) - BEFORE[seed], "apart": apart}


# -- whose answers? ----------------------------------------------------------------------------------------------------

SCENARIOS = {"own, own": (0, 0), "other, own": (1, 0), "own, other": (0, 1), "other, other": (1, 1)}
STEPS, EVERY, BATCH, RATES = 48, 12, 24, (1e-4, 3e-4, 1e-3)
ROLES = ("chosen", "rejected", "unseen own", "unseen other")


def matched(start: models.Policy, seed: int) -> list[tuple[Record, list[int]]]:
    """Eight answers of the policy and eight from elsewhere to each prompt, and the places of six of them: own and other
    chosen, own and other rejected, own and other that no pair holds. Left out where a pair would not be one."""
    given = [r for r in sources.load("slogans").records if len(r.responses) == 8]
    prompts = [Record(prompt=r.prompt) for r in given]
    said = answer(start, chat_of(start), prompts, samples=8, max_new_tokens=NEW_TOKENS, temperature=1.0, seed=seed)
    found = []
    for record, own in zip(given, said, strict=True):
        both = Record(prompt=record.prompt, responses=(*own, *record.responses))
        scores = np.array(asked(both))
        best, worst = int(scores[:8].argmax()), int(scores[:8].argmin())
        other_best, other_worst = (8 + int(np.abs(scores[8:] - scores[k]).argmin()) for k in (best, worst))
        pairs = [(w, l) for w in (best, other_best) for l in (worst, other_worst)]
        if all(scores[w] > scores[l] for w, l in pairs):
            places = [best, other_best, worst, other_worst]
            found.append((both, places + [next(k for k in of if k not in places) for of in (range(8), range(8, 16))]))
    return found


def preferred(record: Record, chosen: int, rejected: int) -> Record:
    two = (record.responses[chosen], record.responses[rejected])
    return Record(prompt=record.prompt, responses=two, judgements=[Judgement(kind="preference", pair=(0, 1), value=1)])


def scenario(
    name: str, rate: float, seed: int, model: str, start: models.Policy, data: list[tuple[Record, list[int]]]
) -> Numbers:
    """What DPO on such pairs does to rule score and log-probs (nats a token, less those of the start)."""
    policy = opened(model)
    w, l = SCENARIOS[name]
    pairs = [preferred(record, at[w], at[2 + l]) for record, at in data]
    looked_for = [
        Record(prompt=record.prompt, responses=tuple(record.responses[at[k]] for k in (w, 2 + l, 4, 5)))
        for record, at in data
    ]
    looks: list[np.ndarray] = []  # [4] mean log-prob a token

    def look(step: int) -> None:
        found = np.array(log_probs(policy, looked_for))
        looks.append((found[..., 0] / found[..., 1]).mean(0))

    train_with_looks(
        policy, pairs, "dpo", {"beta": 0.1}, steps=STEPS, batch_size=BATCH, learning_rate=rate, seed=seed, every=EVERY,
        look=look,
    )  # fmt: skip
    moved = np.array(looks) - looks[0]
    told = gained(policy, start, seed)
    told |= {f"start {role}": float(v) for role, v in zip(ROLES, looks[0], strict=True)}
    told |= dict(zip(ROLES, map(float, moved[-1]), strict=True))
    return told | {"peak of chosen": float(moved[:, 0].max()), "margin": float(moved[-1, 0] - moved[-1, 1])}


def scenarios(given: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    start = opened(given.model)
    prompts = len([r for r in sources.load("slogans").records if len(r.responses) == 8])
    runs = len(SCENARIOS) * (len(RATES) + len(given.seeds))
    tokens = ((1 + len(given.seeds)) * (prompts * 8 + 336) + runs * 336) * NEW_TOKENS
    print(f"{runs} runs of {STEPS} updates of {BATCH} pairs: {tokens:,} tokens sampled, "
          f"at most {runs * STEPS * BATCH * 2 * 32:,} trained", flush=True)  # fmt: skip
    data = matched(start, TUNING)
    tried = {rate: {name: scenario(name, rate, TUNING, given.model, start, data)["rule"] for name in SCENARIOS}
             for rate in RATES}  # fmt: skip
    for rate, of in tried.items():
        print(f"rate {rate:g}: " + "; ".join(f"{name} {v:+.3f}" for name, v in of.items()), flush=True)
    rate = max(RATES, key=lambda rate: sum(tried[rate].values()))
    print(f"all at {rate:g}")
    found: dict[str, dict[str, Any]] = {name: {} for name in SCENARIOS}
    for seed in given.seeds:
        data = matched(start, seed)
        scores = np.array([np.array(asked(record))[at] for record, at in data]).mean(0)
        print(f"seed {seed}: {len(data)} prompts; rule score of chosen {scores[0]:.3f} own, {scores[1]:.3f} other; "
              f"rejected {scores[2]:.3f} own, {scores[3]:.3f} other", flush=True)  # fmt: skip
        for name in SCENARIOS:
            told = scenario(name, rate, seed, given.model, start, data)
            for key, value in told.items():
                found[name].setdefault(key, []).append(value)
            print(f"  {name:<13}" + ", ".join(f"{k} {v:+.3f}" for k, v in told.items()), flush=True)
    return found, [("own, own", other) for other in list(SCENARIOS)[1:]]


# -- how sure is the judge? --------------------------------------------------------------------------------------------

ROUNDS, PROMPTS, SAMPLES, RATE, BETAS = 4, 48, 4, 1e-3, (0.1, 0.03, 0.01)


def noisy(record: Record, spread: float = 0.2, seed: int = 0) -> list[float]:
    """The score of the rule that the prompt states, with normal noise of that spread."""
    noise = seeded(seed, "noisy", record.id).normal(size=len(record.responses))
    return [score + spread * float(e) for score, e in zip(asked(record), noise, strict=True)]


def judge_of_start(start: models.Policy) -> tuple[float, float, float]:
    """Of the judge on pairs of the start's answers: the scale by which its gaps are log-odds of being right, how often
    it is right where the scores differ, and how much it doubts a pair in the mean."""
    prompts = [Record(prompt=r.prompt) for r in sources.load("slogans").records[: ROUNDS * PROMPTS]]
    said = answer(start, chat_of(start), prompts, samples=SAMPLES, max_new_tokens=NEW_TOKENS, seed=TUNING)
    records = [Record(prompt=r.prompt, responses=tuple(a)) for r, a in zip(prompts, said, strict=True)]
    i, j = np.triu_indices(SAMPLES, 1)
    true, seen = (np.concatenate([np.array(f(r))[i] - np.array(f(r))[j] for r in records]) for f in (asked, noisy))
    scale = 1 / float(temperature(seen, (np.sign(true) + 1) / 2))
    right = float((np.sign(true) == np.sign(seen))[true != 0].mean())
    return scale, right, float((1 / (1 + np.exp(scale * np.abs(seen)))).mean())


def strength(way: dict[str, Any], beta: float, seed: int, start: models.Policy, given: argparse.Namespace,
             name: str) -> Numbers:  # fmt: skip
    """What a loop with the noisy judge does to the rule's score."""
    words = f"{Path(__file__).resolve()}:noisy,seed={seed}"
    prompts = [Record(prompt=r.prompt) for r in sources.load("slogans").records][: ROUNDS * PROMPTS]
    done = loop(
        given.model, prompts, words, output=str(given.output / f"{name}-{beta:g}-{seed}"), seed=seed, rounds=ROUNDS,
        prompts_per_round=PROMPTS, samples=SAMPLES, max_new_tokens=NEW_TOKENS, learning_rate=RATE, beta=beta,
        epochs=2, batch_size=PROMPTS * math.comb(SAMPLES, 2) // 2, reference="fixed", schedule="constant",
        warmup=0.0, device="cpu", precision="fp32", probe_every=None, keep_models=1, quiet=True, **way,
    )  # fmt: skip
    return gained(opened(str(done.model)), start, seed)


def strengths(given: argparse.Namespace) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    start = opened(given.model)
    scale, right, doubt = judge_of_start(start)
    ranked = {"rule": "ranked", "strength_scale": scale}
    ways: dict[str, dict[str, Any]] = {
        "hard": {"objective": "dpo", "pair": ranked | {"label": "hard"}},
        "smoothed": {"objective": "soft_dpo", "pair": ranked | {"label": "smoothed", "smoothing": doubt}},
        "soft": {"objective": "soft_dpo", "pair": ranked | {"label": "soft"}},
    }
    runs, answers = len(ways) * (len(BETAS) + len(given.seeds)), ROUNDS * PROMPTS * SAMPLES
    print(f"{runs} runs of {answers} answers: at most {runs * (answers + 336) * NEW_TOKENS:,} tokens sampled")
    print(f"the judge is right on {right:.3f} of the start's pairs that differ; a gap of 1 is "
          f"{scale:.2f} of log-odds; it doubts a pair by {doubt:.3f}", flush=True)  # fmt: skip
    best = {}
    for name, way in ways.items():
        tried = {beta: strength(way, beta, TUNING, start, given, name) for beta in BETAS}
        best[name] = max(BETAS, key=lambda beta: tried[beta]["rule"])
        print(f"{name:<9} beta " + "; ".join(f"{b:g}: {t['rule']:+.3f} at {t['apart']:.2f} nats a token"
                                             for b, t in tried.items()), flush=True)  # fmt: skip
    found: dict[str, dict[str, Any]] = {name: {} for name in ways}
    for seed in given.seeds:
        for name, way in ways.items():
            told = strength(way, best[name], seed, start, given, name)
            for key, value in told.items():
                found[name].setdefault(key, []).append(value)
            print(f"seed {seed} {name:<9}" + ", ".join(f"{k} {v:+.3f}" for k, v in told.items()), flush=True)
    return found, [("soft", "hard"), ("soft", "smoothed")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("scenarios", "strengths"))
    parser.add_argument("model")
    parser.add_argument("seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--output", type=Path, default=Path("runs/which-pairs"))
    given = parser.parse_args()
    quiet_libraries()
    found, against = (scenarios if given.question == "scenarios" else strengths)(given)
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / f"{given.question}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"over {len(given.seeds)} seeds")
    for name, of in found.items():
        print(f"  {name:<13}" + ", ".join(f"{key} {signed(student(v))}" for key, v in of.items()))
    for one, other in against:
        for key in (k for k in found[one] if not k.startswith("start ")):
            apart = student(np.subtract(found[one][key], found[other][key]))
            print(f"  {one} less {other}: {key} {signed(apart)}")


if __name__ == "__main__":
    main()
