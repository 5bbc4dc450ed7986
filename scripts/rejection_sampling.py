"""Does fine-tuning on the best of n help, and is it the choice of the best that helps?

    python scripts/rejection_sampling.py [SEED ...] [--model smollm2] [--samples 8] [--steps 24] [--learning-rate 5e-5]

For every seed: n answers of the model to each bundled training prompt, judged by the rule that the prompt states
(judge `asked`); fine-tuning on the best of each, and, as a control, on the first of each; then the rule score of both
on held-out prompts against the model's own. Prints differences with 95 % intervals (bootstrap over prompts), for every
seed and for the mean over the seeds. The tokens that it takes are said first.
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
from accord.judges.keep import judged_and_kept
from accord.judges.table import find
from accord.quickstart import held_out
from accord.sampling.local import answer
from accord.training.run import train

NEW_TOKENS, TEMPERATURE, ASKED = 16, 0.7, 4
Scores = list[list[float]]


def answered(policy: models.Policy, prompts: list[Record], samples: int, seed: int) -> list[Record]:
    """The prompts with new answers."""
    chat = Chat(policy.tokenizer, max_length=256, stop_ids=policy.ends)
    found = answer(
        policy, chat, prompts, samples=samples, max_new_tokens=NEW_TOKENS, temperature=TEMPERATURE, seed=seed
    )
    return [Record(prompt=r.prompt, responses=tuple(a), source="slogans") for r, a in zip(prompts, found, strict=True)]


def scores(policy: models.Policy, seed: int) -> Scores:
    """The rule score of each answer to each held-out prompt."""
    records = answered(policy, [Record(prompt=p) for p, _ in held_out()], ASKED, seed)
    return [[j.value for j in said] for said in find("asked")(records)]


def one_seed(model: str, samples: int, steps: int, rate: float, seed: int, folder: Path) -> dict[str, Any]:
    """Scores of held-out prompts before and after both trainings, and mean scores of what was trained on."""
    policy = models.load(model)
    records = answered(policy, sources.load("slogans").records, samples, seed)
    first = [r.model_copy(update={"responses": r.responses[:1]}) for r in records]
    best, story, counts = judged_and_kept(records, find("asked"), "best")
    found: dict[str, Any] = {"before": scores(policy, seed + 100), "sampled": story.tallies[0].mean}
    found["ties"] = counts.totals()
    for name, chosen in (("best", best), ("first", first)):
        found[f"trained_on/{name}"] = float(np.mean([j.value for said in find("asked")(chosen) for j in said]))
        file = folder / f"{name}-{seed}.jsonl"
        file.write_text("".join(r.to_json() + "\n" for r in chosen), encoding="utf-8")
        run = train(
            model, str(file), "sft", output=str(folder / f"{name}-{seed}"), seed=seed, batch_size=24, max_steps=steps,
            learning_rate=rate, warmup=0.1, max_length=256, eval_fraction=0.0, quiet=True, overwrite=True,
        )  # fmt: skip
        found[name] = scores(run.policy, seed + 100)
    return found


def told(name: str, before: Scores, after: Scores) -> str:
    """One comparison in words."""
    c = compare(before, after)
    d = c.difference
    return f"{name}: {c.before.mean:.3f} -> {c.after.mean:.3f}, difference {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--output", type=Path, default=Path("runs/rejection-sampling"))
    given = parser.parse_args()
    quiet_libraries()
    prompts = len(sources.load("slogans").records)
    sampled = len(given.seeds) * NEW_TOKENS * (prompts * given.samples + 3 * ASKED * len(held_out()))
    print(f"at most {sampled:,} tokens sampled and {2 * len(given.seeds) * given.steps * 24:,} sequences trained")
    given.output.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in given.seeds:
        began = time.monotonic()
        found.append(one_seed(given.model, given.samples, given.steps, given.learning_rate, seed, given.output))
        f = found[-1]
        took, chosen = time.monotonic() - began, f["trained_on/best"]
        print(f"seed {seed}, {took:.0f} s: all answers {f['sampled']:.3f}, the best of each prompt {chosen:.3f}")
        for name in ("best", "first"):
            print("  " + told(name, f["before"], f[name]), flush=True)
        (given.output / "scores.json").write_text(json.dumps(found), encoding="utf-8")
    mean = {n: np.mean([f[n] for f in found], axis=0).tolist() for n in ("before", "best", "first")}
    for before, after in (("before", "best"), ("before", "first"), ("first", "best")):
        print(told(f"mean over seeds, {before} to {after}", mean[before], mean[after]))


if __name__ == "__main__":
    main()
