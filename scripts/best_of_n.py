"""Is what a trained reward model finds best also best to another one, and does fine-tuning on it help?

    python scripts/best_of_n.py DATA --model FOLDER [SEED ...] [--samples 8] [--updates 40] [--learning-rate 2e-3]

MORE's downstream test (arXiv 2312.07401): best-of-n by a reward model, and fine-tuning on that. For every seed two
reward models learn from pairs of different prompts of DATA: the first one judges, the second one measures. The policy
starts as the model fine-tuned on the better answers to the first one's prompts. Printed, in standard deviations of each
reward model over the policy's answers to held-out prompts, with 95 % intervals (bootstrap over prompts): what the
choice of the best of n gains over the mean, and what a policy gains that is fine-tuned on the best of n, and, as a
control, on the first. The tokens that it takes are said first.
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
from accord.data.batches import seeded
from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.views import view
from accord.engine import models, rewards
from accord.evaluate.rewards import evaluate
from accord.judges.keep import judged_and_kept
from accord.judges.reward import Reward
from accord.sampling.local import answer
from accord.stats import bootstrap
from accord.training.run import train

NEW_TOKENS, ASKED, LENGTH, BATCH = 32, 100, 192, 20


def parts(records: list[Record], seed: int, each: int) -> tuple[list[Record], list[Record], list[Record]]:
    """Two halves to learn from, `each` records long, and `ASKED` held-out records; every prompt in one of them."""
    once = list({r.prompt_key: r for r in records}.values())
    order = [once[i] for i in seeded("best of n", seed).permutation(len(once))]
    held, first, second = order[:ASKED], order[ASKED : ASKED + each], order[ASKED + each : ASKED + 2 * each]
    if len(second) < each:
        raise SystemExit(f"{len(once)} prompts are too few for {ASKED} held-out ones and two halves of {each}")
    return first, second, held


def answered(policy: models.Policy, prompts: list[Record], samples: int, seed: int) -> list[Record]:
    """The prompts with new answers."""
    chat = Chat(policy.tokenizer, max_length=LENGTH - NEW_TOKENS, stop_ids=policy.ends)
    found = answer(policy, chat, prompts, samples=samples, max_new_tokens=NEW_TOKENS, seed=seed)
    return [Record(prompt=r.prompt, responses=tuple(a)) for r, a in zip(prompts, found, strict=True)]


def better(records: list[Record]) -> list[Record]:
    """The preferred answer of each record, as a demonstration."""
    found = {}
    for e in view(records, "Pairs"):
        chosen = records[e.record].responses[e.branches["chosen"].response]  # type: ignore[union-attr]
        found.setdefault(e.record, Record(prompt=records[e.record].prompt, responses=(chosen,)))
    return list(found.values())


def one_seed(given: argparse.Namespace, records: list[Record], seed: int) -> dict[str, Any]:
    folder = given.output / f"seed-{seed}"
    first, second, held = parts(records, seed, given.records)
    common = {
        "seed": seed, "batch_size": BATCH, "max_steps": given.updates, "learning_rate": given.learning_rate,
        "max_length": LENGTH, "eval_fraction": 0.0, "precision": "fp32", "warmup": 0.1, "probe_every": None,
        "quiet": True, "overwrite": True,
    }  # fmt: skip

    def trained(name: str, model: Any, data: list[Record], objective: str) -> Any:
        return train(str(model), data, objective, output=str(folder / name), **common)  # type: ignore[arg-type]

    trained("judge", given.model, first, "bradley_terry")
    trained("measure", given.model, second, "bradley_terry")
    by = {name: rewards.load(folder / name, precision="fp32") for name in ("judge", "measure")}
    found: dict[str, Any] = {
        m.name: m.accuracy.mean for m in evaluate(held, [Reward(r, by=name) for name, r in by.items()]).models
    }
    start = trained("start", given.model, better(first), "sft")
    sampled = answered(start.policy, held, given.samples, seed)
    scores = {name: np.stack(r.scores(sampled)) for name, r in by.items()}  # [prompts, n]
    spread = {name: float(s.std()) for name, s in scores.items()}
    best = scores["judge"].argmax(1)[:, None]
    for name, s in scores.items():
        found[f"choice/{name}"] = ((np.take_along_axis(s, best, 1)[:, 0] - s.mean(1)) / spread[name]).tolist()
    length = np.array([[len(a.plain_text) for a in r.responses] for r in sampled], float)
    found["choice/characters"] = (np.take_along_axis(length, best, 1)[:, 0] - length.mean(1)).tolist()
    asked = answered(start.policy, first, given.samples, seed + 1)
    chosen = {
        "best": judged_and_kept(asked, Reward(by["judge"], by="judge"), "best")[0],
        "first": [r.model_copy(update={"responses": r.responses[:1]}) for r in asked],
    }
    before = answered(start.policy, held, given.samples, seed + 2)
    for what, data in chosen.items():
        after = answered(trained(what, folder / "start", data, "sft").policy, held, given.samples, seed + 2)
        for name, r in by.items():
            a, b = (np.stack(r.scores(x)).mean(1) for x in (after, before))
            found[f"tuned on {what}/{name}"] = ((a - b) / spread[name]).tolist()
    return found


def told(found: list[dict[str, Any]]) -> list[str]:
    """Each difference, of one seed or as the mean over seeds."""
    lines = []
    for key in (k for k in found[0] if isinstance(found[0][k], list)):
        c = bootstrap(np.mean([f[key] for f in found], axis=0), range(ASKED))
        lines.append(f"  {key}: {c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}]")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--model", required=True)
    parser.add_argument("--records", type=int, default=400, help="of each half")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--output", type=Path, default=Path("runs/best-of-n"))
    given = parser.parse_args()
    quiet_libraries()
    records = [r for r in sources.load(given.data, on_error="skip").records if len(r.responses) > 1]
    sampled = NEW_TOKENS * given.samples * (4 * ASKED + given.records)
    sequences = given.updates * BATCH * (2 * 2 + 3)
    print(f"a seed: at most {sampled:,} tokens sampled and {sequences:,} sequences trained", flush=True)
    given.output.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in given.seeds:
        began = time.monotonic()
        found.append(one_seed(given, records, seed))
        f = found[-1]
        took = time.monotonic() - began
        print(f"seed {seed}, {took:.0f} s: held-out accuracy of judge {f['judge']:.3f}, measure {f['measure']:.3f}")
        print("\n".join(told([f])), flush=True)
        (given.output / "found.json").write_text(json.dumps(found), encoding="utf-8")
    print("mean over seeds", *told(found), sep="\n")


if __name__ == "__main__":
    main()
