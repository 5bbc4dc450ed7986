"""What do models say that were trained on real sources? Pairs of each source, who judges them, and what that is worth.

| measure of held-out pairs | what |
|---|---|
| `accuracy` | share of pairs in which people's choice has the larger reward, the mean over sources |
| `ece`, `floor` | calibration error (10 bins, both orders), and what a model that is exactly right would show |
| `seen` | 1 where the error is larger than 97.5 % of exactly right models would show, else 0 |
| `tempered` | the error on half of the prompts, once a temperature is fitted on the others |
| `loss` | nats a pair: -log sigmoid(margin); no opinion has 0.693 |
| `margin`, `spread` | mean size of a pair's margin; standard deviation of rewards |
| `wobble` | mean change of held-out accuracy from one look while training to the next, up or down |
| `lost` | how much held-out accuracy is lower at the end than at the best look |
| `peak` | largest gradient norm of the training over the median one |

A reward model's reward is its score; a policy's, beta times its log-ratio to where it started.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np

from accord.data.records import Judgement, Record
from accord.data.views import view
from accord.engine import classifiers, rewards
from accord.evaluate.rewards import Evaluation, evaluate
from accord.judges.frame import Judge
from accord.judges.reward import Reward, trained

MEASURES = ("accuracy", "ece", "floor", "seen", "tempered", "loss", "margin", "spread", "wobble", "lost", "peak")
TRAIL = ("wobble", "lost", "peak")  # of a training that looks at what is held out, `eval_steps`
EACH = 3  # pairs of one record at most, so that no long ranking stands for a whole source


def pairs(records: Seq[Record], source: str, random: np.random.Generator) -> list[Record]:
    """Each record's pairs, at most `EACH` of them, as records of their own, chosen first."""
    found: dict[int, list[Record]] = {}
    for e in view(records, "Pairs"):
        sides = [records[e.record].responses[e.branches[s].response] for s in ("chosen", "rejected")]  # type: ignore[union-attr]
        said = Judgement(kind="preference", pair=(0, 1), value=1.0)
        one = Record(prompt=records[e.record].prompt, responses=tuple(sides), judgements=(said,), source=source)
        found.setdefault(e.record, []).append(one)
    return [own[i] for own in found.values() for i in random.permutation(len(own))[:EACH]]


def parted(found: Seq[Record], train: int, held_out: int) -> tuple[list[Record], list[Record]]:
    """Pairs for training and held-out ones, no prompt among both."""
    place: dict[str, int] = {}
    for record in found:
        place.setdefault(record.prompt_key, len(place))
    order = sorted(found, key=lambda r: place[r.prompt_key])
    asked = {r.prompt_key for r in order[:held_out]}
    return [r for r in order if r.prompt_key not in asked][:train], order[:held_out]


def judge(model: str, start: str, by: str, beta: float, **load: Any) -> Judge:
    """Who scores: the models of an ensemble, a reward model (load: how it is loaded, by default in fp32), or a policy
    beside where it started."""
    folder = Path(model)
    if rewards.ensemble(folder) is not None or classifiers.settings_of(folder) is not None:
        return trained(folder, by=by, **{"precision": "fp32"} | load)
    return Reward(rewards.implicit(folder, start, beta=beta, precision="fp32"), by=by)


def numbers(model: str, start: str, held: Seq[Record], beta: float, **load: Any) -> dict[str, Any]:
    """What one trained model is worth on held-out pairs: the measures above, and the accuracy on each source."""
    (found,) = evaluate(held, [judge(model, start, "model", beta, **load)]).models
    sources = {name: share.accuracy.mean for name, share in found.sources.items()}
    c = found.calibration
    return {
        "accuracy": float(np.mean([*sources.values()])), "ece": c.ece.mean, "floor": c.floor["ece"].mean,
        "seen": float(c.seen), "loss": found.nll, "margin": found.margin["mean"], "spread": found.score["std"],
        "tempered": found.tempered["after"].mean if found.tempered else float("nan"), "sources": sources,
    }  # fmt: skip


def trail(run: Path) -> dict[str, float]:
    """How quietly a training went, of its metrics; NaN where it looked at what is held out less than twice, and of an
    ensemble, which is several.

    >>> import tempfile; folder = Path(tempfile.mkdtemp())
    >>> looks = [{"eval_rewards/accuracies": a} for a in (0.5, 0.6, 0.7, 0.6)]
    >>> rows = [*looks, *({"grad_norm": g} for g in (1.0, 2.0, 6.0))]
    >>> _ = (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + chr(10) for r in rows))
    >>> {k: round(v, 3) for k, v in trail(folder).items()}  # the step from the untrained model, 0.5, is none of them
    {'wobble': 0.1, 'lost': 0.1, 'peak': 3.0}
    """
    file = run / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    looks = np.array([r["eval_rewards/accuracies"] for r in rows if "eval_rewards/accuracies" in r][1:])
    norms = np.array([r["grad_norm"] for r in rows if "grad_norm" in r])
    if len(looks) < 2:
        return dict.fromkeys(TRAIL, float("nan"))
    return {
        "wobble": float(np.abs(np.diff(looks)).mean()), "lost": float(looks.max() - looks[-1]),
        "peak": float(norms.max() / np.median(norms)),
    }  # fmt: skip


# -- models of one source each -----------------------------------------------------------------------------------------


def apart(run: Path, held: Seq[Record], **load: Any) -> dict[str, Any]:
    """What the models of an ensemble, one a source, have in common on everybody's held-out pairs.

    Returns:
        accuracy: of each model (row) on each source's pairs (column). agreement: share of pairs that two models put in
        one order. rewards: of each model, their mean, standard deviation, least and largest. joins: which are alike.
    """
    members = json.loads((run / "summary.json").read_text(encoding="utf-8"))["members"]
    models = [rewards.load(run / place, **{"precision": "fp32"} | load) for place in members.values()]
    found = evaluate(held, [Reward(model, by=name) for name, model in zip(members, models, strict=True)])
    return {
        "accuracy": {m.name: {s: share.accuracy.mean for s, share in m.sources.items()} for m in found.models},
        "agreement": _agreement(found), "rewards": {m.name: m.score for m in found.models}, "joins": found.clusters,
    }  # fmt: skip


def _agreement(found: Evaluation) -> dict[str, dict[str, float]]:
    same = {m.name: {m.name: 1.0} for m in found.models}
    for d in found.drifts:
        same[d.a][d.b] = same[d.b][d.a] = d.agreement
    return same


def lines(seeds: Seq[Mapping[str, Any]]) -> list[str]:
    """Tables of `apart`, means over seeds."""
    names = list(seeds[0]["accuracy"])
    found = ["", "Models of one source each, means over seeds. Accuracy on the held-out pairs of every source:", ""]
    found += _table("trained on", names, [s["accuracy"] for s in seeds])
    found += ["", "Share of all held-out pairs that two of them put in one order (0.5: nothing in common):", ""]
    found += _table("", names, [s["agreement"] for s in seeds])
    found += ["", "Rewards of all held-out answers, as each model gives them:", ""]
    found += _table("trained on", ["mean", "std", "min", "max"], [s["rewards"] for s in seeds])
    first = [" + ".join(s["joins"][0]["models"] + s["joins"][0]["with"]) for s in seeds if s["joins"]]
    if len(names) > 2:
        found += ["", "Most alike, seed by seed: " + "; ".join(first) + "."]
    return found


def _table(corner: str, columns: Seq[str], seeds: Seq[Mapping[str, Mapping[str, float]]]) -> list[str]:
    rows = ["| " + " | ".join([corner, *columns]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in seeds[0]:
        cells = [f"{np.mean([s[name][c] for s in seeds]):.3f}" for c in columns]
        rows.append("| " + " | ".join([name, *cells]) + " |")
    return rows
