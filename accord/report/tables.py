"""What stands in the tables of a report? Held-out numbers with intervals, sources, records, decisions, answers."""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from accord.monitors import WINDOW
from accord.monitors.degradation import HALF, PER_TOKEN
from accord.monitors.dispersion import SHARE
from accord.monitors.drop import FAR, FAR_PER_TOKEN
from accord.monitors.table import TABLE
from accord.report.read import Curves, Examples, RunFolder
from accord.stats import Interval, bootstrap, share

WORST, BEST = 6, 3  # records shown of each end
ANSWERS = 4  # shown of each kind: better, worse, drawn
EVERY = 200  # answers that a page holds at most
ALIKE = 0.25  # answers of which less words are the same are not compared word by word


# -- held-out examples ------------------------------------------------------------------------------------------------


def paired(a: Examples, b: Examples) -> tuple[Examples, Examples]:
    """The rows that both have, in the same order: the n-th example that a term makes of a record, with itself.

    Where both have one term, its name does not matter; rows whose lengths differ are other examples.
    """
    if not len(a) or not len(b):
        return Examples(), Examples()
    one = len(set(a["term"])) == len(set(b["term"])) == 1

    def keys(x: Examples) -> list[tuple[str, str, int]]:
        seen: defaultdict[tuple[str, str], int] = defaultdict(int)
        found = []
        for term, record in zip(x["term"].tolist(), x["record"].tolist(), strict=True):
            key = ("" if one else term, record)
            found.append((*key, seen[key]))
            seen[key] += 1
        return found

    places = {key: i for i, key in enumerate(keys(b))}
    both = [(i, places[key]) for i, key in enumerate(keys(a)) if key in places]
    left, right = (np.array(side, int) for side in (zip(*both, strict=True) if both else ((), ())))
    a, b = a.take(left), b.take(right)
    same = np.ones(len(a), bool)
    for name in ("length_chosen", "length_rejected"):
        same &= (a[name] == b[name]) | (np.isnan(a[name]) & np.isnan(b[name]))
    return a.take(np.flatnonzero(same)), b.take(np.flatnonzero(same))


@dataclass(frozen=True)
class Held:
    """What held-out examples say; None where they say nothing of the kind.

    accuracy: share of pairs in which chosen is ahead. margin: mean, in units of the reward. ranking, chosen, rejected:
    change since the start, of the share with the larger log-prob and of log-probs in nats. chosen_token: the same of a
    token of chosen. per_token: change of the log-prob of responses that stand alone, nats a token. loss: its change.
    Intervals are over records.
    """

    examples: int
    records: int
    accuracy: Interval | None = None
    margin: Interval | None = None
    ranking: Interval | None = None
    chosen: Interval | None = None
    rejected: Interval | None = None
    chosen_token: Interval | None = None
    per_token: Interval | None = None
    loss: Interval | None = None


def held(start: Examples, now: Examples) -> Held | None:
    """The numbers of held-out (or trained) examples, and their change since `start`, which may be empty."""
    if not len(now):
        return None
    whole = Held(len(now), len(set(now["record"])))
    found: dict[str, Interval] = {}
    pairs = now.pairs
    if len(pairs):
        margin = pairs.margins
        found["accuracy"] = share(pairs.right, pairs["record"])
        if not np.isnan(pairs["margin"]).any():
            found["margin"] = bootstrap(margin, pairs["record"])
    before, after = paired(start, now)
    if len(before):
        told = ~np.isnan(before["logps_chosen"] + after["logps_chosen"])  # a reward model tells no log-prob
        two = np.flatnonzero(after.two & told)
        one = np.flatnonzero(~after.two & told & (after["length_chosen"] > 0))
        a, b = before.take(two), after.take(two)
        if len(a):
            ahead = [x["logps_chosen"] > x["logps_rejected"] for x in (a, b)]
            found["ranking"] = bootstrap(ahead[1].astype(float) - ahead[0], b["record"])
            for side in ("chosen", "rejected"):
                found[side] = bootstrap(b[f"logps_{side}"] - a[f"logps_{side}"], b["record"])
            tokens = np.maximum(b["length_chosen"], 1)
            gained = (b["logps_chosen"] - a["logps_chosen"]) / tokens
            found["chosen_token"] = bootstrap(gained, b["record"], weights=tokens)
        a, b = before.take(one), after.take(one)
        if len(a):
            tokens = b["length_chosen"]
            gained = (b["logps_chosen"] - a["logps_chosen"]) / tokens
            found["per_token"] = bootstrap(gained, b["record"], weights=tokens)
        found["loss"] = bootstrap(after["loss"] - before["loss"], after["record"])
    return Held(whole.examples, whole.records, **found)


def by_source(run: RunFolder) -> tuple[str, list[tuple[str, str, Held]]]:
    """(of what, rows of term, source and numbers): of held-out examples, or else of the newest trained ones."""
    now, start, what = run.last, run.first, "held-out examples"
    if not len(now):
        now, start, what = run.newest, Examples(), "the last quarter of the run's training examples"
    rows = []
    for term in dict.fromkeys(now["term"]) if len(now) else ():
        for source in sorted(set(now["source"][now["term"] == term])):
            own = [x.take(np.flatnonzero((x["term"] == term) & (x["source"] == source))) if len(x) else x
                   for x in (start, now)]  # fmt: skip
            if (numbers := held(*own)) is not None:
                rows.append((str(term), str(source), numbers))
    return what, rows


@dataclass(frozen=True)
class Ranked:
    """Held-out pairs of one kind: which of the two does the policy find likelier, at the start and now?

    implicit: share in which chosen has the larger reward. before, now: in which it has the larger log-prob. ideal: the
    same of the policy that the objective would lead to if nothing stood in its way (arXiv 2405.19534), where `AGREE` of
    the people agree with each label.
    """

    kind: str
    pairs: int
    implicit: Interval
    before: Interval | None = None
    now: Interval | None = None
    ideal: Interval | None = None
    margin: Interval | None = None

    @property
    def gap(self) -> float | None:
        return self.ideal.mean - self.now.mean if self.ideal and self.now else None


AGREE = 0.75
KINDS = (("all", lambda d: d == d), ("chosen is longer", lambda d: d > 0), ("chosen is shorter", lambda d: d < 0))


def ranking(run: RunFolder) -> list[Ranked]:
    """Held-out pairs, all and by which response is longer."""
    now = run.last.pairs
    if not len(now):
        return []
    beta = run.settings.get("beta")
    rows = []
    for kind, which in KINDS:
        own = now.take(np.flatnonzero(which(now["length_chosen"] - now["length_rejected"])))
        if not len(own):
            continue
        margin = own.margins
        found: dict[str, Interval] = {"implicit": share(own.right, own["record"])}
        if kind == "all" and (kept := run.summary.get("held_out_accuracy")):  # it knows the noise of the precision
            found["implicit"] = Interval(kept["mean"], kept["low"], kept["high"])
        found["margin"] = bootstrap(margin, own["record"])
        if not np.isnan(own["logps_chosen"]).any():
            found["now"] = share(_right(own["logps_chosen"] - own["logps_rejected"]), own["record"])
            before, _ = paired(run.first, own)
            if len(before):
                ahead = before["logps_chosen"] - before["logps_rejected"]
                found["before"] = share(_right(ahead), before["record"])
                if run.reference.startswith("start of run") and isinstance(beta, float) and beta > 0:
                    found["ideal"] = share(_right(ahead + np.log(AGREE / (1 - AGREE)) / beta), before["record"])
        rows.append(Ranked(kind, len(own), **found))
    return rows


def _right(margin: np.ndarray) -> np.ndarray:
    return np.where(margin == 0, 0.5, margin > 0)


# -- where probability goes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Property:
    """One of the three D. asks: its question; spoke: when its monitor did; numbers: how far it went, and the alarm."""

    name: str
    asks: str
    spoke: str
    numbers: str


def three_d(run: RunFolder) -> list[Property]:
    """Drop, degradation and dispersion, each with its number beside that from which on its monitor speaks."""
    watching = run.settings.get("monitors", "all")
    terms = [*run.data.get("examples", {})] if len(run.data.get("examples", {})) > 1 else []
    found = []
    for name, measure in (("drop", _dropped), ("degradation", _degraded), ("dispersion", _dispersed)):
        spoke = [f"verdict {i}, at step {v['step']:,}" for i, v in enumerate(run.verdicts, 1) if v["monitor"] == name]
        silent = "not seen" if watching == "all" or name in watching else "nobody watched"
        told, measured = list[str](), False
        for term in ("", *terms):
            prefix = f"{term}/" if term else ""
            if f"{prefix}logratios/rejected" in run.metrics:
                text = measure(run.metrics, prefix)
                measured |= bool(text)
                text = text or f"it takes {WINDOW} updates of pairs"
                told.append(f"{term}: {text}" if term else text)
        silent = "not measured" if told and not measured else silent
        found.append(Property(name, TABLE[name].question, "; ".join(spoke) or silent, "; ".join(told)))
    return found


def _steady(metrics: Curves, prefix: str, *names: str) -> list[np.ndarray]:
    """Metrics where all are finite; none where that is in fewer updates than monitors average."""
    each = [metrics.get(prefix + name) for name in names]
    if any(e is None or len(e[0]) != len(each[0][0]) for e in each if each[0] is not None) or each[0] is None:
        return []
    y = np.array([e[1] for e in each if e is not None])
    y = y[:, np.isfinite(y).all(0)]
    return [*y] if y.shape[1] >= WINDOW else []


def _means(y: np.ndarray) -> np.ndarray:
    """Of each value and those before it, as many as monitors average [n].

    >>> _means(np.arange(12.0))[[0, 1, 9, 11]].tolist()
    [0.0, 0.5, 4.5, 6.5]
    """
    total = np.concatenate([[0.0], np.cumsum(y)])
    high = np.arange(1, len(y) + 1)
    low = np.maximum(high - WINDOW, 0)
    return (total[high] - total[low]) / (high - low)


def _fell(who: str, by: float, unit: str, alarm: float, but: str) -> str:
    far = f"{who} fell by {by:.2g} nats a {unit}" if by > 0 else f"{who} never fell"
    return f"{far}; the alarm is at {alarm:.2g}" + (f", and {but}" if by >= alarm else "")


def _dropped(metrics: Curves, prefix: str) -> str:
    names = ("logratios/rejected", "lengths/rejected", "logratios/chosen", "lengths/chosen")
    if not (found := _steady(metrics, prefix, *names)):
        return ""
    rejected, chosen = -_means(found[0] * found[1]), -_means(found[2] * found[3])
    i = WINDOW - 1 + int(rejected[WINDOW - 1 :].argmax())
    alarm = max(FAR, FAR_PER_TOKEN * float(found[1][i]))
    return _fell(
        "rejected", float(rejected[i]), "response", alarm,
        f"chosen fell by {chosen[i]:.2g}" if chosen[i] > 0 else f"chosen rose by {-chosen[i]:.2g}",
    )  # fmt: skip


def _degraded(metrics: Curves, prefix: str) -> str:
    if not (found := _steady(metrics, prefix, "probability/chosen", "probability/rejected", "lengths/chosen")):
        return ""
    chosen, rejected = (np.log(np.maximum(_means(y), 1e-30)) for y in found[:2])
    below = np.maximum.accumulate(chosen) - chosen
    i = WINDOW - 1 + int(below[WINDOW - 1 :].argmax())
    alarm = max(HALF / max(1.0, float(found[2][i])), PER_TOKEN)
    lower = "lower still" if rejected[i] <= chosen[i] else "higher, which is no alarm"
    return _fell("chosen", float(below[i]), "token", alarm, f"rejected was {lower}")


def _dispersed(metrics: Curves, prefix: str) -> str:
    if not (found := _steady(metrics, prefix, "dispersed")):
        return ""
    most = float(_means(found[0])[WINDOW - 1 :].max())
    return f"{100 * most:.0f} % of the pairs lost their mass; the alarm is at {100 * SHARE:.0f} % for certain"


# -- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """A record of the data. number: its margin, or of no pair its loss; text: prompt and responses, if kept."""

    place: str
    record: str
    term: str
    source: str
    step: int
    kind: str
    number: float
    text: dict[str, Any] | None


def extremes(run: RunFolder) -> tuple[list[Shown], list[Shown]]:
    """The trained records that the policy agrees with least and most, late in the run; each record once."""
    seen = run.newest
    if not len(seen):
        return [], []
    margins = seen.margins
    worst, best = [], []
    for term in dict.fromkeys(seen["term"]):
        own = np.flatnonzero(seen["term"] == term)
        agreed = np.where(np.isnan(margins[own]), -seen["loss"][own], margins[own])
        order = own[np.argsort(agreed, kind="stable")]
        low = _firsts(order, seen["record"], WORST)
        high = _firsts(order[::-1], seen["record"], BEST, without=low)
        worst += [_shown(seen, i, margins) for i in low.values()]
        best += [_shown(seen, i, margins) for i in high.values()]
    return worst, best


def _firsts(order: np.ndarray, records: np.ndarray, most: int, without: Collection[str] = ()) -> dict[str, int]:
    """The first `most` records in this order, each with its first place."""
    found: dict[str, int] = {}
    for i in order:
        if len(found) == most:
            break
        if records[i] not in without:
            found.setdefault(records[i], int(i))
    return found


def _shown(seen: Examples, i: int, margins: np.ndarray) -> Shown:
    pair = not np.isnan(margins[i])
    file, line = str(seen["file"][i]), int(seen["line"][i] or 0)
    return Shown(
        f"{file}, line {line}" if file and line else file,
        str(seen["record"][i]),
        str(seen["term"][i]),
        str(seen["source"][i]),
        int(seen["step"][i]),
        "margin" if pair else "loss",
        float(margins[i] if pair else seen["loss"][i]),
        json.loads(seen["text"][i]) if seen["text"][i] else None,
    )


@dataclass(frozen=True)
class Stubborn:
    """Pairs that stayed wrong each time they were trained on again, of `again`; right: share of those looks that were
    right. shown: file and line (or id) of the worst."""

    count: int
    again: int
    right: float
    shown: list[str]

    @property
    def doubtful(self) -> bool:
        return self.count > 0.02 * self.again


LEARNED = 0.6  # right among pairs that were seen before: else nothing was learned, and nothing stands out


def stubborn(run: RunFolder) -> Stubborn | None:
    """Suspects of a wrong label: pairs that are wrong whenever they come again, in a run that gets others right."""
    seen = run.every.pairs
    if not len(seen):
        return None
    seen = seen.take(np.argsort(seen["step"], kind="stable"))
    known: dict[str, int] = {}  # by the order in which they come: to sort texts takes long
    place = np.array([known.setdefault(r, len(known)) for r in seen["record"]])
    _, first = np.unique(place, return_index=True)
    later = np.ones(len(seen), bool)
    later[first] = False
    margins = seen.margins
    looks = np.bincount(place[later], minlength=len(first))
    again = looks > 0
    if not again.any() or (right := float((margins[later] > 0).mean())) < LEARNED:
        return None
    best = np.full(len(first), -np.inf)
    np.maximum.at(best, place[later], margins[later])
    wrong = np.flatnonzero(again & (best < 0))
    rows = [first[i] for i in wrong[np.argsort(best[wrong], kind="stable")][:WORST]]
    shown = [
        f"{seen['file'][i]}, line {int(seen['line'][i])}" if seen["file"][i] else str(seen["record"][i]) for i in rows
    ]
    return Stubborn(len(wrong), int(again.sum()), right, shown)


LOST = re.compile(r"\b(dropped|skipped|cut)\b")


def decisions(run: RunFolder) -> dict[str, list[tuple[str, int, list[str]]]]:
    """What was decided of the data, by kind: what, how often, the first few places."""
    found: dict[str, list[tuple[str, int, list[str]]]] = {
        "Dropped or cut": [],
        "Left out by the settings": [],
        "Made": [],
    }
    for what, told in run.data.get("decisions", {}).items():
        places = [f"{e['file']}, line {e['line']}" for e in told.get("examples", []) if e.get("file") and e.get("line")]
        if LOST.search(what):
            kind = "Dropped or cut"
        else:
            kind = "Left out by the settings" if what.startswith(("left", "no ")) else "Made"
        found[kind].append((what, int(told["count"]), list(dict.fromkeys(places))))
    return {kind: rows for kind, rows in found.items() if rows}


# -- answers ----------------------------------------------------------------------------------------------------------


def compared(before: str, after: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Both texts as parts ("same" | "gone" | "new", text), word by word.

    >>> compared("Fresh coffee daily", "Fresh bread daily")[1]
    [('same', 'Fresh '), ('new', 'bread'), ('same', ' daily')]
    """
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    match = difflib.SequenceMatcher(None, a, b, autojunk=False)
    words = [sum(t.isalnum() for t in side) for side in (a, b)]
    same = sum(t.isalnum() for i, _, n in match.get_matching_blocks() for t in a[i : i + n])
    if max(len(a), len(b)) > 4000 or same < ALIKE * max(words):
        return [("same", before)], [("same", after)]
    left, right = [], []
    for kind, i, j, k, l in match.get_opcodes():
        if i < j:
            left.append(("same" if kind == "equal" else "gone", "".join(a[i:j])))
        if k < l:
            right.append(("same" if kind == "equal" else "new", "".join(b[k:l])))
    return left, right


def gain(sample: dict[str, Any]) -> float:
    before, after = sample.get("before_score"), sample.get("after_score")
    return after - before if before is not None and after is not None else 0.0


def answers(run: RunFolder) -> list[tuple[str, list[dict[str, Any]]]]:
    """Answers before and after by heading: the most improved, the most worsened, some drawn without looking, all."""
    samples = [s for s in run.samples if "before" in s and "after" in s]
    if not samples:
        return []
    order = sorted(range(len(samples)), key=lambda i: gain(samples[i]))
    scored = any("before_score" in s for s in samples)
    drawn = np.random.default_rng(0).permutation(len(samples))[:ANSWERS]
    found = [("Drawn without looking", sorted(drawn.tolist()))]
    if scored:
        found.append(("Improved the most", [i for i in order[::-1][:ANSWERS] if gain(samples[i]) > 0]))
        found.append(("Worsened the most", [i for i in order[:ANSWERS] if gain(samples[i]) < 0]))
    return [(heading, [samples[i] for i in chosen]) for heading, chosen in found if chosen]


def scores(run: RunFolder) -> list[tuple[str, int, Interval, Interval, Interval]]:
    """By rule or judge: how many prompts, mean score before, after, difference; intervals are over prompts."""
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for s in run.samples:
        if s.get("before_score") is not None and s.get("after_score") is not None:
            groups[str(s.get("rule") or s.get("judge") or "score")].append(s)
    rows = []
    for name, found in sorted(groups.items(), key=lambda g: -len(g[1])):
        prompts = [str(s["prompt"]) for s in found]
        a, b = (np.array([s[k] for s in found], float) for k in ("before_score", "after_score"))
        rows.append((name, len(set(prompts)), bootstrap(a, prompts), bootstrap(b, prompts), bootstrap(b - a, prompts)))
    return rows
