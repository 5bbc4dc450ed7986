"""What was done, did it work, can I believe it, what next? A run folder in a few numbers and a sentence each."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from accord.monitors.degradation import HALF, PER_TOKEN
from accord.monitors.table import GRAVE, INFORMS, gravity
from accord.report.charts import short
from accord.report.read import RunFolder
from accord.report.tables import LOST, Held, held
from accord.stats import Interval, bootstrap, share

TONES = {"good": "speaks for it", "bad": "speaks against it", "unsure": "to look at", "plain": ""}


@dataclass(frozen=True)
class Fact:
    """A number and what it says. tone: a key of `TONES`; what: for the eye, two or three words."""

    what: str
    value: str
    says: str
    tone: str = "plain"


@dataclass(frozen=True)
class Answer:
    """To one question of the first screen. steps: what to type, if anything, each with a reason."""

    question: str
    answer: str
    tone: str
    facts: list[Fact] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)


def story(run: RunFolder) -> list[Answer]:
    """The four answers of the first screen."""
    worked, numbers = did_it_work(run)
    return [what_was_done(run), worked, can_i_believe_it(run, numbers), what_next(run, worked)]


def what_was_done(run: RunFolder) -> Answer:
    s = run.settings
    made = run.data.get("examples", {})
    facts = []
    if run.train or s:
        facts.append(
            Fact("updates", f"{run.steps:,} of {run.planned:,}", f"of {s.get('batch_size', '?')} examples each.")
        )
    if made:
        kinds = ", ".join(f"{n:,} for {name}" for name, n in made.items())
        sources = sorted({str(x) for x in run.newest["source"]}) if len(run.newest) else []
        shown = ", ".join(sources[:5]) + (", ..." if len(sources) > 5 else "")
        text = f"made of {run.data.get('records', 0):,} records" + (f" of {shown}" if shown else "")
        facts.append(Fact("examples", f"{sum(made.values()):,}", f"{text}." if len(made) == 1 else f"{text}: {kinds}."))
    if "learning_rate" in s:
        beta = f", beta {s['beta']}" if "beta" in s else ""
        kind = "adapters" if s.get("lora") else "all weights"
        facts.append(Fact("learning rate", f"{float(s['learning_rate']):.2g}", f"at its peak; {kind} trained{beta}."))
    if (took := run.summary.get("seconds")) is not None or run.times:
        seconds = took if took is not None else sum(r["seconds"] for r in run.times)
        tokens = sum(r["tokens"] for r in run.times)
        spent = sum(r["seconds"] for r in run.times)
        speed = f"; {tokens / spent:,.0f} tokens a second while it trained" if spent else ""
        if took and spent and run.summary:
            speed += f"; updates are {100 * min(1.0, spent / took):.0f} % of the time"
        if (busy := sum(r.get("processor", 0.0) for r in run.times)) and s.get("device") == "cpu":
            speed += f" and kept {busy / spent:.1f} cores busy"
        if (looked := sum(r.get("probe_seconds", 0.0) for r in run.times)) >= 1:
            speed += f"; looking for the monitors took {clock(looked)}"
        if cost := run.summary.get("cost"):
            speed += f"; an update: {cost['told']}"
        facts.append(Fact("time", clock(seconds), f"on {s.get('device', '?')} in {s.get('precision', '?')}{speed}."))
    model = "/".join(Path(str(s.get("model") or "a model")).parts[-2:])
    return Answer("What was done?", f"{model} was trained with {objective_name(s.get('objective'))}", "plain", facts)


def objective_name(objective: Any) -> str:
    """
    >>> objective_name({"pairs": "dpo", "ratings": {"name": "kto", "weight": 2}}), objective_name("dpo")
    ('dpo on pairs, kto on ratings', 'dpo')
    """
    if isinstance(objective, dict) and "name" in objective:
        return str(objective["name"])
    if isinstance(objective, dict):
        return ", ".join(f"{objective_name(v)} on {k}" for k, v in objective.items())
    if isinstance(objective, list):
        return " + ".join(map(objective_name, objective))
    return str(objective or "an objective that nobody wrote down")


def reward_name(run: RunFolder) -> str:
    return "implicit reward" if run.reference else "reward"


def did_it_work(run: RunFolder) -> tuple[Answer, Held | None]:
    """What the strongest evidence says; where there is none, what is left."""
    numbers = held(run.first, run.last)
    found = evidence(run, numbers)
    spoken = [(fact, words) for fact, words in found if words]
    facts = [fact for fact, _ in found]
    if not spoken:
        answer = "Nobody can say yet" if run.held_out else "Nobody can say: nothing was held out"
        return Answer("Did it work?", answer, "unsure", facts + _from_training(run)), numbers
    fact, words = spoken[0]
    tone, answer = fact.tone, words[fact.tone]
    against = [f for f, _ in spoken[1:] if f.tone == "bad"]
    if tone == "good" and against:
        tone, answer = "unsure", f"In part: {answer.removeprefix('Yes: ')}, but {against[0].what} got worse"
    elif tone == "unsure" and against:
        answer = f"{answer}, and {against[0].what} got worse"
    for v in run.verdicts:
        if v["monitor"] == "labels" and tone != "bad":
            but = "but" if tone == "good" else "and"
            answer = f"{answer.replace('Yes: ', 'In part: ', 1)}, {but} "
            answer += f"the monitor of labels found nothing to learn at step {v['step']:,}"
            tone = "unsure"
            break
    return Answer("Did it work?", answer, tone, facts), numbers


def evidence(run: RunFolder, numbers: Held | None) -> list[tuple[Fact, dict[str, str]]]:
    """Facts, the strongest first, each with what it answers by its tone; nothing where it does not say which way."""
    found: list[tuple[Fact, dict[str, str]]] = []
    if (scored := _scored(run)) is not None:
        before, after, difference, prompts = scored
        says = f"Mean score on {prompts:,} held-out prompts: {before.mean:.3f} before, {after.mean:.3f} after."
        found.append((Fact("score of answers", signed(difference), says, _tone(difference)), {
            "good": "Yes: answers score higher",
            "bad": "No: answers score lower",
            "unsure": "Not shown: the difference of the scores may be chance",
        }))  # fmt: skip
    accuracy, pairs, records = _accuracy(run, numbers)
    if accuracy is not None:
        what = "log-prob" if numbers is not None and numbers.margin is None else reward_name(run)
        among = f"{pairs:,} held-out pairs" + (f" of {records:,} records" if records and records < pairs else "")
        says = f"Chosen has the larger {what} in so many of {among}; chance is 50 %."
        tone = "good" if accuracy.low > 0.5 else "bad" if accuracy.high < 0.5 else "unsure"
        found.append((Fact("held-out accuracy", percent(accuracy), says, tone), {
            "good": "Yes: it tells better from worse on prompts it never saw",
            "bad": "No: on prompts it never saw it prefers the worse response",
            "unsure": "Not shown: on prompts it never saw it may be guessing",
        }))  # fmt: skip
    if numbers is not None and numbers.per_token is not None:
        says = "Change of held-out responses since the start, in nats: above 0 they are likelier."
        words = {
            "good": "Yes: held-out demonstrations are likelier",
            "bad": "No: held-out demonstrations are less likely",
            "unsure": "Not shown: held-out demonstrations are about as likely",
        }
        judged = _judged(run)
        tone = "plain" if judged else _tone(numbers.per_token)
        found.append((Fact("log-prob a token", signed(numbers.per_token), says, tone), {} if judged else words))
    if numbers is not None and numbers.loss is not None and len(found) < 2:
        down = Interval(-numbers.loss.mean, -numbers.loss.high, -numbers.loss.low)
        says = "Mean change of an example since the start: below 0 is better."
        found.append((Fact("held-out loss", signed(numbers.loss), says, _tone(down)), {
            "good": "Yes: the held-out loss fell",
            "bad": "No: the held-out loss rose",
            "unsure": "Not shown: the held-out loss has hardly changed",
        }))  # fmt: skip
    return found


def _judged(run: RunFolder) -> bool:
    """Whether single responses may be bad ones: then likelier is not better."""
    return any("rewards/rejected" in k for row in run.train[:1] for k in row) or bool(run.reference)


def _scored(run: RunFolder) -> tuple[Interval, Interval, Interval, int] | None:
    """Mean score of answers before, after, their difference, and how many prompts."""
    found = [s for s in run.samples if s.get("before_score") is not None and s.get("after_score") is not None]
    prompts = [str(s["prompt"]) for s in found]
    if all(k in run.summary for k in ("before", "after", "difference")):
        parts = [
            Interval(**{k: run.summary[p][k] for k in ("mean", "low", "high")})
            for p in ("before", "after", "difference")
        ]
        return parts[0], parts[1], parts[2], len(set(prompts))
    if not found:
        return None
    a, b = (np.array([s[k] for s in found], float) for k in ("before_score", "after_score"))
    return bootstrap(a, prompts), bootstrap(b, prompts), bootstrap(b - a, prompts), len(set(prompts))


def _accuracy(run: RunFolder, numbers: Held | None) -> tuple[Interval | None, int, int]:
    """The summary's, which knows the noise of the precision; of an unfinished run, that of the last evaluation."""
    kept = run.summary.get("held_out_accuracy")
    if kept:
        return Interval(kept["mean"], kept["low"], kept["high"]), kept["pairs"], kept.get("records", 0)
    if numbers is None or numbers.accuracy is None:
        return None, 0, 0
    pairs = run.last.pairs
    return numbers.accuracy, len(pairs), len(set(pairs["record"]))


def _from_training(run: RunFolder) -> list[Fact]:
    """What training batches say: not whether anything was learned that holds elsewhere."""
    found = []
    seen = run.metrics
    for key, what, says in (
        ("loss", "training loss", "on the batches of the first and of the last tenth of the steps."),
        ("rewards/margins", "training margin", "reward of chosen minus rejected, the same."),
    ):
        if key in seen and len(seen[key][1]) > 1:
            y = seen[key][1]
            tenth = max(1, len(y) // 10)
            with np.errstate(all="ignore"):
                found.append(
                    Fact(what, f"{short(float(np.nanmean(y[:tenth])))} → {short(float(np.nanmean(y[-tenth:])))}", says)
                )
    return found


def can_i_believe_it(run: RunFolder, numbers: Held | None) -> Answer:
    """What speaks for and against the numbers, the gravest first."""
    facts = [
        *_unfinished(run),
        *_verdicts(run),
        *_length_bias(run, numbers),
        *_ties(run),
        *_drop(numbers),
        *_gap(run, numbers),
        *_answers(run),
        *_start(run),
        *_lost(run),
    ]
    if not run.verdicts:
        facts.append(Fact("monitors", "silent", "None of them had anything to say."))
    facts.sort(key=lambda f: ("bad", "unsure", "good", "plain").index(f.tone))
    bad, unsure = (sum(f.tone == t for f in facts) for t in ("bad", "unsure"))
    question, shown = "Can I believe it?", facts[: max(6, bad + unsure)]  # what is counted is shown
    if not len(run.last) and _scored(run) is None:
        return Answer(question, "There is nothing to believe yet: no number comes from held-out data", "unsure", shown)
    if bad or unsure:
        return Answer(
            question, f"With care: {count(bad + unsure, 'point')} to look at", "bad" if bad else "unsure", shown
        )
    return Answer(question, "Nothing that was measured speaks against it", "good", shown)


def gravest(run: RunFolder, most: int = 3) -> list[dict[str, Any]]:
    """The verdicts that matter most."""
    return sorted(run.verdicts, key=lambda v: (gravity(v["monitor"]), v["step"]))[:most]


def _verdicts(run: RunFolder) -> list[Fact]:
    found = [
        Fact(
            f"{v['monitor']}, step {v['step']:,}", "", sentence(str(v["says"])),
            "bad" if v["monitor"] in GRAVE else "plain" if v["monitor"] in INFORMS else "unsure",
        )
        for v in gravest(run)
    ]  # fmt: skip
    if more := len(run.verdicts) - len(found):
        found.append(Fact(f"and {count(more, 'verdict')} more", "", "below, with the monitors.", "unsure"))
    return found


def _unfinished(run: RunFolder) -> list[Fact]:
    if run.steps >= run.planned or run.summary.get("finished") == "early stop":
        return []
    says = f"It stands at step {run.steps:,} of {run.planned:,}; the numbers are those so far."
    return [Fact("run", str(run.summary.get("finished", "not finished")), says, "unsure")]


def _length_bias(run: RunFolder, numbers: Held | None) -> list[Fact]:
    """Whether the accuracy is more than that of choosing the longer response."""
    accuracy, _, _ = _accuracy(run, numbers)
    longer = _longer(run)
    if accuracy is None or longer is None:
        return []
    pairs = run.last.pairs
    pairs = pairs.take(np.flatnonzero(pairs["length_chosen"] != pairs["length_rejected"])) if len(pairs) else pairs
    says, tone = "of these pairs are right by that rule alone: ", "plain"
    if accuracy.low > longer.mean:
        says, tone = says + "the model is better than it.", "good"
    elif accuracy.low <= 0.5:
        says += "the model is not shown to be better than it, nor than chance."
    elif longer.low <= 0.5:
        says += "it may be no better than chance, and the model is not shown to be better than it."
    else:
        says += "the model is not shown to be better than it"
        if len(pairs):
            as_rule = pairs.right == (pairs["length_chosen"] > pairs["length_rejected"])
            follows = share(as_rule, pairs["record"])
            says += f", and takes the longer in {percent(follows)} of those that differ in length: length "
            says += "may be all that was learned" if follows.low > 0.5 else "is not shown to be what was learned"
            tone = "unsure" if follows.low > 0.5 else "plain"
        says += "."
    if len(pairs):
        says += f" {len(pairs):,} of {len(run.last.pairs):,} pairs differ in length."
    return [Fact("choosing the longer", percent(longer), says, tone)]


def _ties(run: RunFolder) -> list[Fact]:
    found = run.summary.get("held_out_accuracy") or {}
    ties, pairs = found.get("ties", 0), found.get("pairs", 0)
    says = "held-out margins are within the noise of the precision: the model has hardly moved."
    return [Fact("ties", f"{ties:,} of {pairs:,}", says, "unsure")] if 2 * ties > pairs else []


WHY_CHOSEN_FALLS = (
    "Most losses on pairs ask only that the difference grows, and pushing rejected down takes along what chosen has in "
    "common with it. That is a fault if the alarm is passed, if chosen falls further than rejected, or if answers get "
    "worse."
)


def _drop(numbers: Held | None) -> list[Fact]:
    """The most asked question: why do the log-probs of chosen fall?"""
    if numbers is None or numbers.chosen is None or numbers.rejected is None:
        return []
    chosen, rejected = numbers.chosen, numbers.rejected
    fell = chosen.high < 0
    says = (
        "Both fell, the rejected ones faster." if rejected.mean < chosen.mean else "They fell more than the rejected."
    )
    says = says if fell else "They rose." if chosen.low > 0 else "They may have fallen or risen."
    says = f"since the start, on held-out pairs; rejected {signed(rejected, 1)}. {says}"
    if fell and (token := numbers.chosen_token) is not None:
        alarm = max(PER_TOKEN, HALF * token.mean / chosen.mean)
        says += f" Chosen fell {-token.mean:.2g} nats a token; the alarm is at {alarm:.2g}. {WHY_CHOSEN_FALLS}"
    return [Fact("chosen responses", f"{signed(chosen, 1)} nats", says, "unsure" if fell else "good")]


def _answers(run: RunFolder) -> list[Fact]:
    """Whether answers became shorter or alike."""
    facts = []
    if length := run.summary.get("length"):
        moved = abs(length["after"] / max(length["before"], 1e-9) - 1) > 0.2
        says = "A score may change with length alone." if moved else "About as before."
        value = f"{length['before']} → {length['after']} words"
        facts.append(Fact("length of answers", value, says, "unsure" if moved else "good"))
    if distinct := run.summary.get("distinct_2"):
        fell = distinct["after"] < 0.85 * distinct["before"]
        says = "The answers repeat one another more." if fell else "The answers are about as various."
        value = f"{distinct['before']} → {distinct['after']}"
        facts.append(Fact("share of distinct word pairs", value, says, "unsure" if fell else "good"))
    return facts


def _start(run: RunFolder) -> list[Fact]:
    """Whether the reference is what it should be."""
    start = run.summary.get("start") or {}
    known = next((k for k in start if k.endswith("/expected_loss")), None)
    if known is None:
        return []
    loss = start.get(known.replace("expected_loss", "loss"), start.get("loss"))
    says = f"{short(start[known])} is what policy = reference gives: the reference is the right one."
    return [Fact("loss of step 0", short(loss), says, "good")]


def _longer(run: RunFolder) -> Interval | None:
    if kept := run.summary.get("longer_is_better"):
        return Interval(kept["mean"], kept["low"], kept["high"])
    if not len(run.last):
        return None
    two = run.last.pairs
    ahead = np.sign(two["length_chosen"] - two["length_rejected"]) / 2 + 0.5
    return share(ahead, two["record"]) if len(two) else None


def _gap(run: RunFolder, numbers: Held | None) -> list[Fact]:
    """Accuracy on training batches against held-out accuracy."""
    accuracy, _, _ = _accuracy(run, numbers)
    seen = [y for key, (_, y) in run.metrics.items() if f"/{key}".endswith("/rewards/accuracies")]
    tail = np.concatenate([y[-max(1, len(y) // 10) :] for y in seen]) if seen else np.array([])
    tail = tail[np.isfinite(tail)]
    if accuracy is None or not len(tail):
        return []
    wide = tail.mean() > accuracy.high + 0.1
    says = "In the last tenth of the steps" + (": much of it is learned by heart." if wide else ".")
    return [Fact("accuracy in training", f"{100 * tail.mean():.1f} %", says, "unsure" if wide else "plain")]


def _lost(run: RunFolder) -> list[Fact]:
    """What the data lost on its way, ties and held-out records aside."""
    found = {
        what: int(told["count"])
        for what, told in run.data.get("decisions", {}).items()
        if LOST.search(what) and "tie" not in what and "held out" not in what
    }
    if not found:
        return []
    of, most = sum(run.data.get("examples", {}).values()), max(found, key=lambda k: found[k])
    says = f"dropped or cut, beside {of:,} examples; most often “{most}”. Section Data says where."
    lost = sum(found.values())
    return [Fact("data lost", f"{lost:,}", says, "unsure" if lost > 0.1 * of else "plain")]


NARROWER = "For a narrower interval hold out more prompts (`eval_fraction`, `eval_data`): four times as many halve it."
LARGER = "For a larger effect train longer (`max_steps`) or with a higher `learning_rate`."
WORSE = (
    "Look at the worst records below first: labels that are the wrong way round look like this. Then try a smaller "
    "`learning_rate`."
)


def what_next(run: RunFolder, worked: Answer) -> Answer:
    """The next step, with the command to type."""
    folder = shlex.quote(home(run))
    goes_on = run.steps < run.planned and run.summary.get("finished") not in ("done", "early stop")
    steps: list[tuple[str, str]] = []
    if goes_on:
        steps.append((f"accord train {folder}/config.yaml", "goes on from the last checkpoint, if there is one."))
    nothing = not run.held_out and not run.samples
    if nothing and run.path.parent.name == "rounds":  # of a loop, whose next round measures this one
        steps.append((f"accord report {shlex.quote(str(run.path.parent.parent))}", "tells of all rounds."))
    elif nothing:
        command = f"accord train {folder}/config.yaml eval_fraction=0.1 output=..."
        steps.append((command, "holds prompts out, so that there is something to believe."))
    alarms = [v for v in run.verdicts if v["monitor"] not in INFORMS]
    steps += _remedies(run, informs=False)
    if not nothing and not goes_on and worked.tone in ("unsure", "bad"):
        if worked.tone == "bad":
            steps.append(("", WORSE))
        else:  # a monitor that spoke knows better than to train on
            steps.append(("", NARROWER if alarms else f"{NARROWER} {LARGER}"))
    if (run.path / "model").exists() and run.scores:
        steps.append((f"accord eval rewards {folder} --data FILE", "measures it on other pairs."))
        steps.append((f"accord judge FILE --judge reward:{folder} --output FILE", "scores answers with it."))
    elif (run.path / "model").exists():
        steps.append((f"accord chat {folder}", "talks to it."))
        if worked.tone == "good":
            steps.append((f"accord export {folder}", "writes it out for other programs."))
        if worked.tone == "good" and isinstance(beta := run.settings.get("beta"), float):
            command = f"accord train {folder}/config.yaml beta={beta / 2:g},{beta * 2:g} output=..."
            steps.append((command, "tries the neighbours, and compares them."))
    steps += _remedies(run, informs=True)
    answer = {"good": "Use it, or try to do better", "bad": "Find out why before you go on"}.get(
        worked.tone, "Get more evidence"
    )
    if goes_on:
        answer = "Let it finish"
    elif alarms:
        answer = f"Read what the {'monitor' if len(alarms) == 1 else 'monitors'} said first"
    return Answer("What next?", answer, "plain", [], steps)


def _remedies(run: RunFolder, *, informs: bool) -> list[tuple[str, str]]:
    """Those of the gravest verdicts; `informs`: of those that are no alarm."""
    told = (str(v.get("remedy", "")) for v in gravest(run) if (v["monitor"] in INFORMS) == informs)
    return [("", sentence(r)) for r in dict.fromkeys(told) if r]


# -- words ------------------------------------------------------------------------------------------------------------


def home(run: RunFolder) -> str:
    """The run's folder as it was named when it was started."""
    named = str(run.settings.get("output") or "")
    return named if Path(named).name == run.path.name else str(run.path)


def _tone(x: Interval) -> str:
    return "good" if x.low > 0 else "bad" if x.high < 0 else "unsure"


def signed(x: Interval, digits: int = 3) -> str:
    """
    >>> signed(Interval(0.1066, 0.0619, 0.1499))
    '+0.107 [+0.062, +0.150]'
    """
    mean, low, high = (f"{round(v, digits) + 0.0:+.{digits}f}" for v in (x.mean, x.low, x.high))  # no minus at 0
    return f"{mean} [{low}, {high}]".replace("-", "−")


def percent(x: Interval) -> str:
    """
    >>> percent(Interval(0.57, 0.4881, 0.648))
    '57.0 % [48.8, 64.8]'
    """
    return f"{100 * x.mean:.1f} % [{100 * x.low:.1f}, {100 * x.high:.1f}]"


def count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
