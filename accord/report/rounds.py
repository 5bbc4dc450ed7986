"""What became of the answers, round after round? A loop's folder as a page."""

from __future__ import annotations

import json
import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from accord.errors import AccordError
from accord.monitors.table import INFORMS
from accord.report import charts
from accord.report.read import RunFolder, read, runs_of
from accord.report.render import cell, templates, write
from accord.report.story import Answer, Fact, count, objective_name, signed
from accord.sinks import JsonLines
from accord.stats import Interval, bootstrap

SHOWN = 4  # prompts of which the first and the last answers are shown
Scores = dict[str, dict[str, list[float]]]  # judge -> prompt -> scores of the policy's answers


@dataclass(frozen=True)
class Round:
    """What a round says of the answers that it began with. scores: by judge, over prompts; kl: from the reference, nats
    an answer, where it was measured."""

    number: int
    numbers: dict[str, Any]
    run: RunFolder | None
    by_prompt: Scores
    answers: dict[str, str]

    @property
    def scores(self) -> dict[str, Interval]:
        found = {}
        for judge, prompts in self.by_prompt.items():
            every = [(v, p) for p, values in prompts.items() for v in values]
            found[judge] = bootstrap([v for v, _ in every], [p for _, p in every])
        return found

    @property
    def kl(self) -> float | None:
        return (self.numbers.get("advantage") or {}).get("kl_ref")


def is_loop(path: Path) -> bool:
    return (path / "loop.yaml").exists() and not (path / "metrics.jsonl").exists()


def rounds_of(folder: Path) -> list[Round]:
    """The rounds whose answers are judged, in order; those that are not yet trained have no run."""
    runs = {int(run.name): read(run) for run in runs_of(folder) if run.name.isdecimal()}
    found = []
    for place in sorted((folder / "records").glob("round-*"), key=lambda p: int(p.name.rpartition("-")[2])):
        if not (place / "round.json").exists():
            continue
        number = int(place.name.rpartition("-")[2])
        try:
            numbers = json.loads((place / "round.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise AccordError(f"{place / 'round.json'} is damaged ({error}): remove it to see the rest") from None
        found.append(Round(number, numbers, runs.get(number), *judged(place / "judged.jsonl")))
    return found


def judged(path: Path) -> tuple[Scores, dict[str, str]]:
    """Scores by judge and prompt, and the first answer to each prompt; empty where the file is gone."""
    scores: Scores = {}
    answers: dict[str, str] = {}
    for row in JsonLines(path).read():
        given = row["prompt"]
        prompt = given if isinstance(given, str) else str(given[-1].get("content", ""))
        if row.get("responses"):
            answers.setdefault(prompt, str(row["responses"][0].get("text") or ""))
        for said in row.get("judgements", ()):
            if said.get("kind") == "score":
                scores.setdefault(str(said.get("by") or "judge"), {}).setdefault(prompt, []).append(said["value"])
    return scores, answers


def gained(a: Round, b: Round, judge: str) -> tuple[Interval, int] | None:
    """Mean score of `b` less that of `a`, paired by prompt, and how many prompts both had."""
    x, y = (r.by_prompt.get(judge, {}) for r in (a, b))
    both = [p for p in x if p in y]
    return (bootstrap([float(np.mean(y[p]) - np.mean(x[p])) for p in both]), len(both)) if both else None


def story(folder: Path, settings: dict[str, Any], rounds: list[Round]) -> list[Answer]:
    first, last = rounds[0], rounds[-1]
    whole = int(settings.get("rounds") or len(rounds))
    name = "/".join(Path(str(settings.get("model") or "a model")).parts[-2:])
    asked = count(first.numbers.get("prompts", 0), "prompt")
    trained = f"{sum(r.run is not None for r in rounds)} of {whole}"
    what = Answer("What was done?", f"{name} learned from its own answers, by {method(settings)}", "plain", [
        Fact("rounds", trained, "are sampled, judged and trained."),
        Fact("answers", f"{first.numbers.get('answers', 0):,}", f"to {asked} in the first round."),
        Fact("judged by", "", f"{', '.join(last.scores) or 'nobody who scores'}."),
    ])  # fmt: skip
    facts = []
    for judge in first.scores if len(rounds) > 1 else ():
        if (found := gained(first, last, judge)) is not None:
            difference, prompts = found
            tone = "good" if difference.low > 0 else "bad" if difference.high < 0 else "unsure"
            says = f"by {judge}: those of round {last.number} less those of round {first.number}, to "
            says += f"{count(prompts, 'prompt')} of both."
            facts.append(Fact("score of answers", signed(difference), says, tone))
    tones = {f.tone for f in facts}
    answers = {
        "good": "Yes: answers score higher round after round",
        "bad": "No: answers score lower",
        "unsure": "Not shown: the difference of the scores may be chance",
    }
    if not facts:
        worked = Answer(
            "Did it work?", "Nobody can say yet: there are no two rounds with scores of the same prompts", "unsure"
        )
    elif len(tones) == 1:
        worked = Answer("Did it work?", answers[facts[0].tone], facts[0].tone, facts)
    else:
        worked = Answer("Did it work?", "In part: the judges differ", "unsure", facts)
    return [what, worked, belief(rounds), after(folder, rounds, whole, worked)]


def method(settings: dict[str, Any]) -> str:
    return str(settings.get("preset") or objective_name(settings.get("objective")))


def belief(rounds: list[Round]) -> Answer:
    """What else became of the answers: length, variety, ends, distance from the reference."""
    first, last = rounds[0].numbers, rounds[-1].numbers
    facts = [Fact(
        "the judge", "", "scored what it also taught: these scores may rise without the answers getting better. Score "
        "them by a judge that had no part in it (`accord judge`).", "unsure",
    )]  # fmt: skip
    for key, what, unit, wrong in (
        ("tokens", "length of answers", " tokens", lambda a, b: not a / 1.2 <= b <= a * 1.2),
        ("distinct", "share of distinct answers", "", lambda a, b: b < 0.85 * a),
        ("finished", "share that came to an end", "", lambda a, b: b < a - 0.1),
    ):
        if len(rounds) > 1 and first.get(key) is not None and last.get(key) is not None:
            moved = wrong(first[key], last[key])
            says = "A score may rise with that alone." if moved else "About as before."
            value = f"{charts.short(first[key])} → {charts.short(last[key])}{unit}"
            facts.append(Fact(what, value, says, "unsure" if moved else "plain"))
    if rounds[-1].kl is not None:
        facts.append(
            Fact("from the reference", f"{charts.short(rounds[-1].kl)} nats", "an answer: KL, by its own samples.")
        )
    for r in rounds:
        if r.run is not None and r.run.verdicts:
            said = list(dict.fromkeys(str(v["monitor"]) for v in r.run.verdicts))
            tone = "plain" if set(said) <= {*INFORMS} else "unsure"
            facts.append(Fact(f"round {r.number}", count(len(r.run.verdicts), "verdict"), f"{', '.join(said)}.", tone))
    points = sum(f.tone == "unsure" for f in facts)
    return Answer("Can I believe it?", f"With care: {count(points, 'point')} to look at", "unsure", facts[:6])


def after(folder: Path, rounds: list[Round], whole: int, worked: Answer) -> Answer:
    place = shlex.quote(str(folder))
    steps = []
    if sum(r.run is not None for r in rounds) < whole:
        steps.append((f"accord loop {place}/loop.yaml", "goes on where it stopped."))
    if (folder / "model").exists():
        steps.append((f"accord chat {place}/model", "talks to the last policy."))
    if worked.tone != "good":
        steps.append(("", "More answers a prompt (`samples`) and more prompts make the scores surer; a higher "
                      "`learning_rate` or more `rounds` the effect larger."))  # fmt: skip
    return Answer(
        "What next?", "Read the answers" if worked.tone == "good" else "Get more evidence", "plain", [], steps
    )


def view(folder: Path, target: Path) -> dict[str, Any]:
    """Everything that the templates of a loop show.

    Raises:
        AccordError: no round has been judged yet, or a file is damaged.
    """
    try:
        settings = yaml.safe_load((folder / "loop.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError:
        settings = None
    settings = settings if isinstance(settings, dict) else {}
    rounds = rounds_of(folder)
    if not rounds:
        raise AccordError(f"{folder} is a loop of which no round has been judged yet")
    judges = list(dict.fromkeys(j for r in rounds for j in r.scores))
    rows = []
    for r in rounds:
        n = r.numbers
        own = r.run.path / "report.html" if r.run else None
        rows.append({
            "number": r.number, "link": os.path.relpath(own, target.parent) if own and own.exists() else "",
            "cells": [
                f"{n.get('prompts', 0):,}", f"{n.get('answers', 0):,}",
                *(interval(r.scores[j]) if j in r.scores else "–" for j in judges),
                *(charts.short(n.get(k)) for k in ("tokens", "distinct", "finished")),
                charts.short(r.kl), f"{r.run.steps:,}" if r.run else "not yet",
                str(len(r.run.verdicts)) if r.run else "–",
            ],
        })  # fmt: skip
    return {
        "title": folder.name, "story": story(folder, settings, rounds), "rows": rows,
        "heads": ["prompts", "answers", *judges, "tokens", "distinct", "finished", "KL", "updates", "verdicts"],
        "points": against_kl(rounds), "samples": samples(rounds), "settings": yaml.safe_dump(settings, sort_keys=False),
        "curves": charts.overlaid({f"round {r.number}": r.run for r in rounds if r.run is not None}),
    }  # fmt: skip


def interval(x: Interval) -> str:
    """
    >>> interval(Interval(0.5, 0.25, 0.75))
    '0.500 [0.250, 0.750]'
    """
    return f"{x.mean:.3f} [{x.low:.3f}, {x.high:.3f}]".replace("-", "−")


def against_kl(rounds: list[Round]) -> dict[str, Any] | None:
    """Mean score over sqrt(KL), round by round: (x, y, round) in shares of the drawing; None without two KLs.

    A reward that is bought with ever more KL shows as a curve that flattens, or turns: over-optimisation.
    """
    seen = []
    for r in rounds:
        if r.kl is not None and r.scores:
            seen.append((math.sqrt(max(0.0, r.kl)), next(iter(r.scores.values())).mean, r.number))
    if len(seen) < 2 or max(x for x, _, _ in seen) <= 0:
        return None
    x1 = max(x for x, _, _ in seen) * 1.05
    low, high = min(y for _, y, _ in seen), max(y for _, y, _ in seen)
    room = 0.1 * ((high - low) or 1.0)
    y0, y1 = low - room, high + room
    return {
        "judge": next(iter(rounds[0].scores), ""),
        "points": [(x / x1, (y - y0) / (y1 - y0), n, charts.short(x), charts.short(y)) for x, y, n in seen],
        "x": [(t / x1, text) for t, text in charts.ticks(0, x1, 5)],
        "y": [((t - y0) / (y1 - y0), text) for t, text in charts.ticks(y0, y1, 4)],
    }


def samples(rounds: list[Round]) -> list[dict[str, Any]]:
    """The first answer to some prompts in the first round and in the last that had them."""
    found: list[dict[str, Any]] = []
    for prompt, before in rounds[0].answers.items():
        later = [r for r in rounds[1:] if prompt in r.answers]
        if later and len(found) < SHOWN:
            found.append(
                {"prompt": prompt, "before": before, "after": later[-1].answers[prompt], "round": later[-1].number}
            )
    return found


def write_rounds(folder: Path, target: Path | None = None) -> Path:
    """Writes report.html, into the loop's folder unless told otherwise."""
    target = target or folder / "report.html"
    return write(target, templates("html").get_template("rounds.html").render(view(folder, target)))


def markdown(folder: Path) -> str:
    """The same as Markdown."""
    return templates("md").get_template("rounds.md").render(view(folder, folder / "report.md") | {"cell": cell})
