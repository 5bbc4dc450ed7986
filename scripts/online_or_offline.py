"""Is it better to learn from fresh answers than from as many that the model gave before it learned?

    python scripts/online_or_offline.py MODEL [SEED ...] [--rounds 4] [--prompts 48] [--samples 4] [--output FOLDER]

Offline DPO samples everything at the start, as does best-of-n fine-tuning (the baseline); online DPO, RLOO and PPO
sample as many answers to the same prompts, round by round. Slogans, judged by the rule that each prompt states (judge
`asked`). Every way takes the rate of `RATES` that was best with a seed that is not among those reported. Prints the
rule score on held-out prompts less the model's own, with 95 % intervals (bootstrap over prompts; of the mean Student's
over seeds, too), and how far the policy went, for every seed and the mean over them. The tokens that it takes are said
first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from accord.cli.frame import quiet_libraries
from accord.data import sources
from accord.data.chat import Chat
from accord.data.records import Record
from accord.engine import models
from accord.evaluate.compare import compare
from accord.judges.table import find
from accord.lab.trials import student
from accord.online.loop import loop
from accord.online.rollouts import said_of
from accord.quickstart import held_out
from accord.report.story import signed
from accord.sampling.local import answer

NEW_TOKENS, ASKED, TUNING = 24, 4, 99
RATES = (3e-4, 1e-3, 3e-3)
PPO: dict[str, Any] = {"rule": "gae", "kl": 0.05, "whiten": True}
WAYS: dict[str, dict[str, Any]] = {
    "best of n": {"objective": "sft", "pair": {"rule": "none"}},
    "offline DPO": {"objective": "dpo", "beta": 0.1, "reference": "fixed"},
    "online DPO": {"objective": "dpo", "beta": 0.1, "reference": "fixed"},
    "RLOO": {"objective": "rloo", "reference": "fixed", "advantage": {"rule": "loo", "kl": 0.05}},
    "PPO": {"objective": ["ppo", {"name": "critic", "weight": 0.1}], "reference": "fixed", "advantage": PPO},
}
OFFLINE = ("best of n", "offline DPO")
Scores = list[list[float]]


def learned(model: str, way: str, rate: float, seed: int, given: argparse.Namespace) -> str:
    """The folder of the model that a way makes, in as many updates as the others make."""
    offline, settings = way in OFFLINE, WAYS[way]
    prompts = [Record(prompt=r.prompt) for r in sources.load("slogans").records][: given.rounds * given.prompts]
    examples = given.prompts * (given.samples if "advantage" in settings else 1)  # of a round
    done = loop(
        model, prompts, "asked", output=str(given.output / f"{way}-{rate:g}-{seed}".replace(" ", "-")), seed=seed,
        rounds=1 if offline else given.rounds, prompts_per_round=len(prompts) if offline else given.prompts,
        samples=given.samples, max_new_tokens=NEW_TOKENS, learning_rate=rate, epochs=2, batch_size=examples // 2,
        schedule="constant", warmup=0.0, device="cpu", precision="fp32", probe_every=None, keep_models=1, quiet=True,
        **settings,
    )  # fmt: skip
    return str(done.model)


def looked_at(policy: models.Policy, start: models.Policy, seed: int) -> tuple[Scores, float]:
    """Rule scores of answers to each held-out prompt, and nats a token that they are likelier than at the start."""
    chat = Chat(policy.tokenizer, max_length=1024, stop_ids=policy.ends)
    prompts = [Record(prompt=p) for p, _ in held_out()]
    said = answer(policy, chat, prompts, samples=ASKED, max_new_tokens=NEW_TOKENS, seed=seed)
    records = [Record(prompt=r.prompt, responses=tuple(a)) for r, a in zip(prompts, said, strict=True)]
    now, then = ([s["logp"] for r in said_of(p, chat, records) for s in r if s is not None] for p in (policy, start))
    apart = sum(float((a - b).sum()) for a, b in zip(now, then, strict=True)) / sum(map(len, now))
    return [[j.value for j in of] for of in find("asked")(records)], apart


def opened(model: str) -> models.Policy:
    return models.load(model, device="cpu", precision="fp32")


def told(name: str, before: Scores, after: Scores, apart: float) -> str:
    """One comparison in words."""
    c = compare(before, after)
    d = c.difference
    return f"{name:<12} {c.after.mean:.3f}, {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}], {apart:.2f} nats a token"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=48, help="of a round")
    parser.add_argument("--samples", type=int, default=4, help="answers to a prompt")
    parser.add_argument("--output", type=Path, default=Path("runs/online-or-offline"))
    given = parser.parse_args()
    quiet_libraries()
    runs, answers = len(WAYS) * (len(RATES) + len(given.seeds)), given.rounds * given.prompts * given.samples
    print(f"{runs} runs of {answers:,} answers: at most {runs * answers * NEW_TOKENS:,} tokens sampled, and twice that"
          " trained", flush=True)  # fmt: skip
    start = opened(given.model)
    seeds = [TUNING, *given.seeds]
    before = {seed: looked_at(start, start, seed + 100)[0] for seed in seeds}
    best: dict[str, float] = {}
    for way in WAYS:
        means = {}
        for rate in RATES:
            scores, _ = looked_at(opened(learned(given.model, way, rate, TUNING, given)), start, TUNING + 100)
            means[rate] = float(np.mean(scores))
        best[way] = max(means, key=lambda rate: means[rate])
        print(f"{way:<12} rates {', '.join(f'{r:g}: {m:.3f}' for r, m in means.items())}", flush=True)
    found: dict[str, list[tuple[Scores, float]]] = {way: [] for way in WAYS}
    for seed in given.seeds:
        began = time.monotonic()
        for way in WAYS:
            found[way].append(looked_at(opened(learned(given.model, way, best[way], seed, given)), start, seed + 100))
        print(f"seed {seed}, {time.monotonic() - began:.0f} s; the start {np.mean(before[seed]):.3f}")
        for way in WAYS:
            print("  " + told(way, before[seed], *found[way][-1]), flush=True)
    (given.output / "scores.json").write_text(json.dumps({"rates": best, "scores": found}), encoding="utf-8")
    mean = {way: np.mean([s for s, _ in seen], axis=0).tolist() for way, seen in found.items()}
    whole = np.mean([before[seed] for seed in given.seeds], axis=0).tolist()
    print("mean over seeds, less the start")
    for way, seen in found.items():
        print("  " + told(way, whole, mean[way], float(np.mean([a for _, a in seen]))))
    print("the same, Student's 95 % over seeds")
    for way, seen in found.items():
        print(f"  {way:<12} {signed(student([float(np.mean(s)) - float(np.mean(whole)) for s, _ in seen]))}")
    print("less offline DPO")
    for way in [w for w in WAYS if w not in OFFLINE]:
        print("  " + told(way, mean["offline DPO"], mean[way], float(np.mean([a for _, a in found[way]]))))


if __name__ == "__main__":
    main()
