"""How does a run folder become a page? Tables to one HTML file that needs nothing else, or to Markdown.

Curves are SVG that Jinja writes and 130 lines of script let one point at and enlarge: as real text they print, are
read aloud and follow the light, and the page is complete before any script runs. ARCHITECTURE.md says what was weighed.
"""

from __future__ import annotations

import os
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from accord.report import charts, tables
from accord.report.read import RunFolder, read
from accord.report.story import TONES, count, home, percent, sentence, signed, story
from accord.stats import confidence

HERE = Path(__file__).parent


@cache
def templates(kind: str) -> Environment:
    """Templates of pages (`html`, where everything is escaped) or of texts (`md`)."""
    page = kind == "html"
    found = Environment(loader=FileSystemLoader(HERE), autoescape=page, trim_blocks=not page, lstrip_blocks=not page)
    found.globals |= {
        "tones": TONES, "short": charts.short, "signed": signed, "percent": percent, "sentence": sentence,
        "compared": tables.compared, "cell": cell, "ends": ends, "coded": coded if page else str,
    }  # fmt: skip
    if page:
        from markupsafe import Markup

        found.globals |= {n: Markup((HERE / f"page.{n}").read_text(encoding="utf-8")) for n in ("css", "js")}
    return found


def write_report(folder: Path, target: Path | None = None) -> Path:
    """Writes report.html, into the run folder unless told otherwise, and returns its path."""
    page = templates("html").get_template("report.html").render(view(read(folder)))
    return write(target or folder / "report.html", page)


def markdown(folder: Path) -> str:
    """The report as Markdown: numbers and sentences, without drawings."""
    return templates("md").get_template("report.md").render(view(read(folder)))


def write(target: Path, text: str) -> Path:
    """A whole file or none; what is no text (half of a surrogate pair) is a question mark."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    temporary.replace(target)
    return target


def view(run: RunFolder) -> dict[str, Any]:
    """Everything that the templates of one run show."""
    drawn, rest = charts.curves(run)
    where = charts.three_d(run)
    worst, best = tables.extremes(run)
    of_what, sources = tables.by_source(run)
    answers = tables.answers(run)
    scored = tables.scores(run)
    found: dict[str, Any] = {
        "run": run, "story": story(run), "ended": ended(run), "curves": drawn, "rest": rest,
        "ranked": tables.ranking(run), "agree": tables.AGREE, "stubborn": tables.stubborn(run),
        "three_d": where, "three_said": tables.three_d(run),
        "smoothed": any(line.mean for _, several in (*drawn, *where) for c in several for line in c.lines),
        "answers": answers, "shown": sum(len(s) for _, s in answers), "every": tables.EVERY, "scores": scored,
        "score_bars": score_bars(run) if scored else None, "of_what": of_what, "sources": sources, "worst": worst,
        "best": best, "many_terms": len({t for t, _, _ in sources}) > 1, "decisions": tables.decisions(run),
        "repeat": repeat(run), "speed": charts.speed(run), "version": version(run),
        "settings": "\n".join(line for line in run.config.splitlines() if not line.startswith("# ")),
    } | margins(run)  # fmt: skip
    there = (
        ("verdicts", "Monitors", run.verdicts), ("three-d", "Three D", where), ("curves", "Curves", drawn),
        ("samples", "Answers", answers), ("scores", "Scores", scored),
        ("margins", "Margins", found["margin_bars"] or found["calibration"]), ("sources", "By source", sources),
        ("records", "Records", worst), ("data", "Data", run.data), ("settings", "Settings", True),
    )  # fmt: skip
    found["sections"] = [(id, title) for id, title, what in there if what]
    return found


def ended(run: RunFolder) -> str:
    how = run.summary.get("finished")
    if how:
        return f"Finished ({how}) after {count(run.steps, 'step')}."
    return f"Not finished: {run.steps:,} of {count(run.planned, 'step')} so far."


def version(run: RunFolder) -> str:
    """Of Accord as the run was made."""
    return next((f" {n.split()[1].rstrip(';')}" for n in run.notes if n.startswith("accord ")), "")


def repeat(run: RunFolder) -> str:
    """The command that makes the run again; none where its data or model was an object in memory."""
    data = str(run.settings.get("data", ""))
    if not run.settings or data.endswith(" from memory"):
        return ""
    done = bool(run.summary) and (run.path / "model").exists()
    return f"accord train {shlex.quote(home(run) + '/config.yaml')}" + ("" if done else " overwrite=true")


def margins(run: RunFolder) -> dict[str, Any]:
    """Histogram of held-out margins and their calibration; of the newest training pairs where nothing is held out."""
    now, what = (run.last, "held-out pairs") if len(run.last) else (run.newest, "the newest training pairs")
    pairs = now.pairs
    if not len(pairs):
        return {"margin_bars": None, "calibration": None}
    rewards = not np.isnan(pairs["margin"]).any()
    unit = "reward of chosen minus rejected" if rewards else "log-prob of chosen minus rejected"
    values = {"margin": pairs.margins}
    note = f"Of {what}: {unit}. Left of 0 the policy is wrong."
    if not rewards and len(run.first):
        before, after = tables.paired(run.first, pairs)
        values = {"at the start": before.margins, "now": after.margins}
    found = confidence(pairs.margins) if rewards and len(run.last) else None
    return {
        "margin_bars": charts.bars("Margins", note, values),
        "calibration": found,
        "points": charts.calibrated(found) if found else [],
    }


def score_bars(run: RunFolder) -> charts.Bars | None:
    values = {
        name: np.array([s[f"{name}_score"] for s in run.samples if s.get(f"{name}_score") is not None], float)
        for name in ("before", "after")
    }
    return charts.bars("Scores of answers", "How many answers got which score.", values)


def coded(text: Any) -> str:
    """What stands between backticks as code; everything else escaped.

    >>> str(coded("Lower it: `a<b`."))
    'Lower it: <code>a&lt;b</code>.'
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def cell(text: Any) -> str:
    """A text within a table of Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def ends(line: charts.Line) -> list[str]:
    """First, last, lowest and highest value of a line."""
    y = line.y[np.isfinite(line.y)]
    return [charts.short(float(v)) for v in (y[0], y[-1], y.min(), y.max())]
