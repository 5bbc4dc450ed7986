"""Which run is better, and what did they do differently? Several run folders side by side."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from accord.report import charts, tables
from accord.report.read import RunFolder, read
from accord.report.render import cell, templates, write
from accord.report.story import Answer, Fact, clock, count, did_it_work, home, percent, signed
from accord.sinks import flat
from accord.stats import Interval, bootstrap

# measures of a run, the strongest evidence first: title, whether more is better, what it says
MEASURES: dict[str, tuple[str, bool, str]] = {
    "score": ("score of answers", True, "after training, of the same prompts"),
    "accuracy": ("held-out accuracy", True, "share of pairs in which chosen has the larger reward (or log-prob)"),
    "per_token": ("log-prob a token", True, "nats, of held-out responses that stand alone"),
    "chosen": ("log-prob of chosen", True, "nats, of held-out pairs"),
    "loss": ("held-out loss", False, "of an example; only where the objective and its options are the same"),
}


@dataclass(frozen=True)
class Against:
    """A run minus another on what both were measured on. n: examples; groups: records or prompts, which are drawn."""

    measure: str
    difference: Interval
    n: int
    groups: int

    @property
    def tone(self) -> str:
        better = MEASURES[self.measure][1]
        low, high = (
            (self.difference.low, self.difference.high) if better else (-self.difference.high, -self.difference.low)
        )
        return "good" if low > 0 else "bad" if high < 0 else "unsure"


def named(runs: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """Runs by the shortest end of their path that parts them."""
    parts = [run.path.absolute().parts for run in runs]
    deep = next(
        (n for n in range(1, max(map(len, parts)) + 1) if len({p[-n:] for p in parts}) == len(parts)), len(parts[0])
    )
    return {str(Path(*p[-deep:])): run for p, run in zip(parts, runs, strict=True)}


def differing(runs: dict[str, RunFolder]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same everywhere, with the value of each run; the folder is none of them."""
    every = {name: flat(run.settings) for name, run in runs.items()}
    keys = dict.fromkeys(k for found in every.values() for k in found if k != "output")
    rows = [(k, [str(found.get(k, "–")) for found in every.values()]) for k in keys]
    contents = [str(run.data.get("content", "–"))[:8] for run in runs.values()]
    weights = [
        next((n.rpartition(" ")[2][:8] for n in run.notes if n.startswith("policy ")), "–") for run in runs.values()
    ]
    rows += [("content of the data", contents), ("content of the model", weights)]
    return [(k, values) for k, values in rows if len(set(values)) > 1]


def measured(a: RunFolder, b: RunFolder, measure: str, level: float) -> Against | None:
    """`b` minus `a`, paired; None where they share nothing of the kind."""
    if measure == "score":
        sides = [_scores(run) for run in (a, b)]
        shared = [prompt for prompt in sides[0] if prompt in sides[1]]
        if not shared:
            return None
        difference = np.array([sides[1][p] - sides[0][p] for p in shared])
        return Against(measure, bootstrap(difference, level=level), len(shared), len(shared))
    before, after = tables.paired(a.last, b.last)
    if not len(before):
        return None
    pair = after.two
    if measure == "loss":
        if any(k.rpartition(".")[2] not in FREE for k, _ in differing({"a": a, "b": b})):
            return None
        keep = np.ones(len(after), bool)
    else:
        keep = ~pair if measure == "per_token" else pair
    x, y = (side.take(np.flatnonzero(keep)) for side in (before, after))
    if not len(x) or (measure in ("chosen", "per_token") and np.isnan(x["logps_chosen"] + y["logps_chosen"]).any()):
        return None
    weights = None
    if measure == "accuracy":
        difference = y.right - x.right
    elif measure == "loss":
        difference = y["loss"] - x["loss"]
    else:
        difference = y["logps_chosen"] - x["logps_chosen"]
        if measure == "per_token":
            weights = np.maximum(y["length_chosen"], 1)
            difference = difference / weights
    found = bootstrap(difference, y["record"], weights=weights, level=level)
    return Against(measure, found, len(y), len(set(y["record"])))


# settings under which the loss still means the same
FREE = (
    "learning_rate", "max_steps", "epochs", "batch_size", "seed", "schedule", "warmup", "max_grad_norm", "weight_decay",
    "eval_steps", "save_steps", "patience", "device", "layout", "tokens_per_micro_batch", "rank", "alpha", "dropout",
    "lora", "adam_beta1", "adam_beta2", "adam_epsilon", "keep_checkpoints", "save_best", "best_metric",
    "gradient_checkpointing", "compile_layers", "precision", "freeze_layers", "frozen_states",
)  # fmt: skip


def _scores(run: RunFolder) -> dict[tuple[str, str], float]:
    """Mean score after training of each prompt and rule."""
    found: dict[tuple[str, str], list[float]] = {}
    for s in run.samples:
        if s.get("after_score") is not None:
            found.setdefault((str(s["prompt"]), str(s.get("rule", ""))), []).append(s["after_score"])
    return {key: float(np.mean(values)) for key, values in found.items()}


@dataclass(frozen=True)
class Row:
    """A run minus `baseline`, measure by measure."""

    name: str
    baseline: str
    found: list[Against]


def shares(a: RunFolder, b: RunFolder) -> bool:
    """Whether two runs were measured on anything in common."""
    if not _scores(a).keys().isdisjoint(_scores(b)):
        return True
    records = [set(run.last["record"]) if len(run.last) else set[str]() for run in (a, b)]
    return not records[0].isdisjoint(records[1]) and len(tables.paired(a.last, b.last)[0]) > 0


def comparable(runs: dict[str, RunFolder]) -> list[list[str]]:
    """Groups of runs, the largest first. The first of each shares something with all others of it: the baseline.

    It is the run that shares with most; where several do, the first that was named.
    """
    common = {(a, b): shares(runs[a], runs[b]) for a, b in combinations(runs, 2)}
    common |= {(b, a): yes for (a, b), yes in common.items()}
    left, groups = [*runs], list[list[str]]()
    while left:
        near = {a: [b for b in left if b != a and common[a, b]] for a in left}
        first = max(left, key=lambda a: len(near[a]))
        groups.append([first, *near[first]])
        left = [a for a in left if a not in groups[-1]]
    return groups


def against(runs: dict[str, RunFolder]) -> list[Row]:
    """Of every group of runs that share, each minus its baseline; all intervals hold together. Others share nothing."""
    groups = comparable(runs)
    level = 1 - 0.05 / max(1, sum(len(g) - 1 for g in groups))
    rows = []
    for baseline, *others in groups:
        for name in others:
            each = (measured(runs[baseline], runs[name], m, level) for m in MEASURES)
            rows.append(Row(name, baseline, [found for found in each if found is not None]))
        if not others:
            rows.append(Row(baseline, "", []))
    return rows


def which_is_better(runs: dict[str, RunFolder]) -> tuple[Answer, str]:
    """The best run by the strongest measure that all that can be compared share, and its name."""
    question = "Which is better?"
    every, groups = runs, comparable(runs)
    runs = {name: every[name] for name in groups[0]}
    rest = [
        Fact(
            ", ".join(group), "", "shares no held-out examples and no scored prompts with any other." if len(group) == 1
            else "share with one another alone: compare them by themselves.", "unsure",
        )
        for group in groups[1:]
    ]  # fmt: skip
    among = f", among {', '.join(runs)}" if rest else ""
    level = 1 - 0.05 / max(1, len(runs) - 1)
    first, *others = runs
    for m, (title, more, _) in MEASURES.items():
        seen = {name: measured(runs[first], runs[name], m, level) for name in others}
        if not seen or m == "chosen" or any(found is None for found in seen.values()):  # likelier is not better
            continue
        gains = {first: 0.0} | {name: found.difference.mean for name, found in seen.items() if found is not None}
        best = max(gains, key=lambda name: gains[name] if more else -gains[name])
        found = {name: measured(runs[name], runs[best], m, level) for name in runs if name != best}
        group = "prompt" if m == "score" else "record"
        facts = [
            Fact(f"against {name}", signed(x.difference), f"{title}, on {count(x.groups, group)} of both.", x.tone)
            for name, x in found.items() if x is not None
        ]  # fmt: skip
        sure = [f for f in facts if f.tone == "good"]
        if len(sure) == len(facts):
            return Answer(question, f"{best}, by its {title}{among}", "good", facts[:5] + rest), best
        which = (
            f"{best} is ahead, but not for certain"
            if not sure
            else f"{best} is ahead, for certain of {len(sure)} of {len(facts)}"
        )
        return Answer(question, f"{which}{among}", "unsure", facts[:5] + rest), best
    why = "they share no held-out examples and no scored prompts" if not others else (
        f"{', '.join(runs)} share examples, but no measure that says which is better"
    )  # fmt: skip
    return Answer(
        question, f"Nobody can say: {why}", "unsure",
        [Fact("to compare runs", "", "give them the same data, seed and eval_fraction, or the same eval_data.")],
    ), ""  # fmt: skip


def view(folders: Sequence[Path], target: Path) -> dict[str, Any]:
    """Everything that the templates of several runs show."""
    runs = named([read(folder) for folder in folders])
    rows = differing(runs)
    most = [f"{key}: {', '.join(dict.fromkeys(values))}" for key, values in rows[:4]]
    what = Answer(
        "What was compared?", f"{count(len(runs), 'run')}, which differ in {count(len(rows), 'setting')}", "plain",
        [Fact(key, "", f"{', '.join(dict.fromkeys(values))}.") for key, values in rows[:5]],
    ) if most else Answer("What was compared?", f"{count(len(runs), 'run')} of the same settings", "plain")  # fmt: skip
    belief = Answer("Can I believe it?", "Of these weights; not of other seeds", "plain", [
        Fact("intervals", "", "are over records or prompts, paired, and hold together at 95 %. They say nothing of the "
             "luck of a seed: repeat the best ones with other seeds before you trust a small difference."),
    ])  # fmt: skip
    better, best = which_is_better(runs)
    folder = shlex.quote(home(runs[best])) if best else ""
    steps = [("", "Give them the same held-out data, and compare again.")] if not best else []
    if best and better.tone == "good":
        steps.append((f"accord chat {folder}", "talks to the best."))
    if best:
        steps.append(
            (f"accord train {folder}/config.yaml seed=1,2,3 output=...", "shows what the luck of a seed is worth.")
        )
    after = Answer(
        "What next?", "Repeat the best with other seeds" if best else "Compare like with like", "plain", [], steps
    )
    outcomes = []
    for name, run in runs.items():
        numbers = tables.held(run.first, run.last)
        took = run.summary.get("seconds")
        link = os.path.relpath(run.path / "report.html", target.parent) if (run.path / "report.html").exists() else ""
        kept = run.summary.get("held_out_accuracy")
        accuracy = Interval(kept["mean"], kept["low"], kept["high"]) if kept else numbers.accuracy if numbers else None
        scored = run.summary.get("difference")
        outcomes.append({
            "name": name, "link": link, "finished": run.summary.get("finished", "not finished"), "steps": run.steps,
            "answer": did_it_work(run)[0].answer, "verdicts": len(run.verdicts),
            "accuracy": percent(accuracy) if accuracy else "–",
            "margin": signed(numbers.margin, 2) if numbers and numbers.margin else "–",
            "chosen": signed(numbers.chosen, 1) if numbers and numbers.chosen else "–",
            "per_token": signed(numbers.per_token) if numbers and numbers.per_token else "–",
            "score": signed(Interval(**scored)) if scored else "–",
            "time": clock(took) if took is not None else "–",
        })  # fmt: skip
    return {
        "title": " · ".join(runs) if len(runs) < 4 else f"{len(runs)} runs", "names": list(runs),
        "story": [what, better, belief, after], "rows": rows, "outcomes": outcomes,
        "against": against(runs), "measures": MEASURES, "curves": charts.overlaid(runs),
    }  # fmt: skip


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Writes a page that compares runs; links to their own reports are relative to it."""
    return write(target, templates("html").get_template("comparison.html").render(view(folders, target)))


def markdown(folders: Sequence[Path]) -> str:
    """The comparison as Markdown."""
    return templates("md").get_template("comparison.md").render(view(folders, Path()) | {"cell": cell})
