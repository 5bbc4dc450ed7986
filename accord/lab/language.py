"""The four scenarios of 3D-Properties (arXiv 2406.07327) on a small real language model and bundled slogans.

| scenario | chosen | rejected |
|---|---|---|
| S1 | the policy's own | the policy's own |
| S2 | another's | the policy's own |
| S3 | the policy's own | another's |
| S4 | another's | another's |

For every prompt the policy answers several times, and another model's answers lie beside (by default those of the
bundled set, which SmolLM2-135M-Instruct wrote). The rule of the prompt says which of each are best and worst: chosen
and rejected. Only prompts where all four scenarios have a pair are used, so that they differ in nothing but who wrote
the answers. Seen through training: log-probs of chosen, of rejected, and of unseen answers (the policy's own to the
same prompts, in no pair); before and after: the rule's score of new answers to held-out prompts.

A policy that cannot write slogans yet (`warm_up`) first learns their form from the other half of the prompts, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from accord.data import sources
from accord.data.records import Judgement, Record, Response
from accord.engine import models
from accord.errors import ConfigError
from accord.judges.rules import words
from accord.lab import trials
from accord.lab.frame import COLOURS, Claim, Findings, curve, panels, spread
from accord.lab.trials import Asked, judged, log_probs, size, student, together, train_with_looks
from accord.training.watch import Quiet

# scenario -> places of chosen and rejected in a prompt's record
PLACES = {"S1": (0, 1), "S2": (2, 1), "S3": (0, 3), "S4": (2, 3)}
ROLES = ("chosen", "rejected", "unseen")


def run(
    *,
    seeds: int = 3,
    progress: Any = None,
    policy: str | None = None,
    other: str = "bundled",
    warm_up: int | None = None,
    prompts: int = 64,
    samples: int = 8,
    held_out: int = 84,
    steps: int = 30,
    batch_size: int = 16,
    learning_rate: float | None = None,
    limit: int = 24,
    temperature: float = 1.0,
    every: int = 5,
    objective: str = "dpo",
    **options: Any,
) -> Findings:
    """Trains one policy by the four scenarios, in every seed, and measures what it does to answers seen and unseen.

    Args:
        seeds: of sampling and of the order of the pairs; the policy is the same.
        progress: who shows it, a watcher.
        policy: a folder or smollm2; by default the tiny LM in $ACCORD_DATA, else smollm2.
        other: who wrote the off-policy answers: `bundled` (SmolLM2), or a folder. For smollm2 name another model.
        warm_up: updates of plain likelihood on the other half of the prompts; by default 100 for a model under ten
            million parameters, else none.
        prompts: at most so many that have a pair in every scenario. samples: answers to each.
        held_out: prompts that are scored before and after, four answers each.
        steps: updates. batch_size: pairs of each.
        learning_rate: peak; by default 3e-4 for a model under ten million parameters, else 5e-6.
        limit: tokens of an answer. temperature: of sampling.
        every: updates between two looks.
        objective: any row that can be fed with pairs, and that needs no head, rollout or second reference.
        options: of the objective.

    Returns:
        Changes of log-probs through training by scenario and role, rule scores before and after, lengths in words.

    Raises:
        ConfigError: fewer than two prompts have a pair in every scenario, or the other model is the policy itself.
    """
    progress = progress or Quiet()
    start = models.load(policy or trials.default_policy(), precision="fp32")
    tiny = size(start) < trials.TINY
    warm_up = (100 if tiny else 0) if warm_up is None else warm_up
    learning_rate = learning_rate or (3e-4 if tiny else 5e-6)
    if other == "bundled" and start.name == "smollm2":
        raise ConfigError("the bundled answers are SmolLM2's own: name the folder of another model with --other")
    asked, theirs = _bundled()
    half = len(asked) // 2
    if warm_up:
        _warm_up(start, asked[:half], theirs[:half], warm_up, progress)
    asked, theirs = asked[half:], theirs[half:]
    if other != "bundled":
        stranger = models.load(other, precision="fp32")
        sampling = {"samples": samples, "limit": limit, "temperature": temperature}
        theirs = trials.answered(stranger, asked, seed=1, **sampling)  # type: ignore[arg-type]
    weights = [p.detach().clone() for p in start.model.parameters()]
    judged_by = trials.bundled("slogans", "held_out")[:held_out]

    def again() -> models.Policy:
        for p, before in zip(start.model.parameters(), weights, strict=True):
            p.data.copy_(before)
        return start

    def scores(seed: int) -> tuple[np.ndarray, float]:
        found = trials.answered(start, judged_by, samples=4, limit=limit, temperature=temperature, seed=1000 + seed)
        lengths = [len(words(a.plain_text)) for several in found for a in several]
        return np.array([np.mean(a.scores(f)) for a, f in zip(judged_by, found, strict=True)]), float(np.mean(lengths))

    looks = sorted({0, *range(every, steps, every), steps})
    change: dict[str, dict[str, list[Any]]] = {s: {r: [] for r in ROLES} for s in PLACES}
    a_token: dict[str, dict[str, list[Any]]] = {s: {r: [] for r in ROLES} for s in PLACES}
    rules: dict[str, list[float]] = {s: [] for s in ("before", *PLACES)}
    length: dict[str, list[float]] = {s: [] for s in ("before", *PLACES)}
    used: list[int] = []
    with progress.task("scenarios") as advance:
        for seed in range(seeds):
            again()
            own = trials.answered(start, asked, samples=samples, limit=limit, temperature=temperature, seed=seed)
            records = list(_records(asked, own, theirs))[:prompts]
            if len(records) < 2:
                raise ConfigError(
                    f"only {len(records)} of {len(asked)} prompts have a pair in every scenario: ask for more samples, "
                    "or warm the policy up for longer"
                )
            used.append(len(records))
            score, words_said = scores(seed)
            rules["before"].append(float(score.mean()))
            length["before"].append(words_said)
            for number, (scenario, (chosen, rejected)) in enumerate(PLACES.items()):
                seen: list[np.ndarray] = []
                train_with_looks(
                    again(), [_pair(r, chosen, rejected) for r in records], objective, options,
                    steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed, every=every,
                    look=lambda n, seen=seen, r=records: seen.append(np.stack(log_probs(start, r))),  # type: ignore[misc]
                )  # fmt: skip
                summed = np.stack(seen)  # [looks, prompts, responses, (nats, tokens)]
                for role, place in zip(ROLES, ([chosen], [rejected], [4, 5]), strict=True):
                    nats, tokens = summed[:, :, place, 0], summed[0, :, place, 1]
                    change[scenario][role].append((nats - nats[0]).reshape(len(seen), -1).mean(1))
                    a_token[scenario][role].append([nats[i].sum() / tokens.sum() for i in (0, -1)])
                score, words_said = scores(seed)
                rules[scenario].append(float(score.mean()))
                length[scenario].append(words_said)
                advance(seed * 4 + number + 1, 4 * seeds)
    again()
    final = {s: {r: [float(v[-1]) for v in change[s][r]] for r in ROLES} for s in PLACES}
    numbers = {
        "settings": {
            "policy": _name(start.name), "other": _name(other), "warm_up": warm_up, "samples": samples, "steps": steps,
            "batch_size": batch_size, "learning_rate": learning_rate, "limit": limit, "temperature": temperature,
            "objective": objective, "options": options, "seeds": seeds, "parameters": size(start),
        },
        "prompts": used,
        "updates": looks,
        "change": {s: {r: spread(change[s][r]) for r in ROLES} for s in PLACES},
        "per_token": {s: {r: np.mean(a_token[s][r], 0).tolist() for r in ROLES} for s in PLACES},
        "final": final,
        "from_peak": {s: [float(v[-1] - v.max()) for v in change[s]["chosen"]] for s in PLACES},
        "rule": rules,
        "gain": {s: (np.array(rules[s]) - rules["before"]).tolist() for s in PLACES},
        "words": length,
    }  # fmt: skip
    return Findings("language", numbers, _claims(numbers), figures)


def _name(path: str) -> str:
    """A folder's last two parts: enough to know it by, and nobody's business where it lies."""
    return "/".join(path.rstrip("/").split("/")[-2:])


def _bundled() -> tuple[list[Asked], list[list[Response]]]:
    """The training prompts of the slogans with their rules, and the answers that come with them."""
    rules = {a.prompt: a for a in trials.bundled("slogans", "train")}
    found: dict[str, list[Response]] = {}
    for record in sources.load("slogans").records:
        if isinstance(record.prompt, str) and record.prompt in rules:
            found.setdefault(record.prompt, []).extend(Response(text=r.plain_text) for r in record.responses)
    return [rules[p] for p in found], list(found.values())


def _warm_up(
    policy: models.Policy, asked: Sequence[Asked], answers: Sequence[Sequence[Response]], steps: int, progress: Any
) -> None:
    demos = [
        Record(prompt=a.prompt, responses=(r,)) for a, several in zip(asked, answers, strict=True) for r in several
    ]
    with progress.task("learning the form") as advance:
        train_with_looks(
            policy, demos, "sft", {}, steps=steps, batch_size=32, learning_rate=3e-3, seed=0, every=10,
            look=lambda n: advance(n, steps),
        )  # fmt: skip


def _records(asked: Sequence[Asked], own: Any, theirs: Any) -> Any:
    """Prompts with a pair in all four scenarios: own best and worst, the other's best and worst, two unseen."""
    for a, mine, others in zip(asked, own, theirs, strict=True):
        kept = []
        for several in (mine, others):
            order = np.argsort([-s for s in a.scores(several)], kind="stable")
            kept.append((several[order[0]], several[order[-1]]))
        (best, worst), (their_best, their_worst) = kept
        unseen = [r for r in mine if r.plain_text not in (best.plain_text, worst.plain_text)][:2]
        responses = (best, worst, their_best, their_worst, *unseen)
        scores = a.scores(responses)
        if len(unseen) == 2 and all(scores[w] > scores[l] for w, l in PLACES.values()):
            yield Record(prompt=a.prompt, responses=responses)


def _pair(record: Record, chosen: int, rejected: int) -> Record:
    better = Judgement(kind="preference", pair=(0, 1), value=1.0)
    responses = (record.responses[chosen], record.responses[rejected])
    return Record(prompt=record.prompt, responses=responses, judgements=(better,))


def _claims(numbers: dict[str, Any]) -> list[Claim]:
    final = {s: {r: np.array(v) for r, v in roles.items()} for s, roles in numbers["final"].items()}
    gain = {s: np.array(v) for s, v in numbers["gain"].items()}

    def over(claim: str, values: dict[str, np.ndarray], unit: str, sign: int) -> Claim:
        return together(claim, {s: judged(claim, v, unit, sign) for s, v in values.items()})

    def falls(a: str, b: str) -> Claim:
        claim = f"the rejected answer falls less in {a} (on policy) than in {b} (off policy)"
        return judged(claim, final[a]["rejected"] - final[b]["rejected"], "nats")

    return [
        over(
            "Property 1: the rejected answer falls by more than the chosen one moves",
            {s: -v["rejected"] - np.abs(v["chosen"]) for s, v in final.items()}, "nats", 1,
        ),
        falls("S1", "S3"),
        falls("S2", "S4"),
        over(
            "Property 2: the chosen answer falls as well, from its peak",
            {s: np.array(v) for s, v in numbers["from_peak"].items()}, "nats", -1,
        ),
        over("the chosen answer ends lower than it began", {s: v["chosen"] for s, v in final.items()}, "nats", -1),
        over("Property 3: unseen answers rise", {s: v["unseen"] for s, v in final.items()}, "nats", 1),
        over("new answers keep the rule better than before", gain, "of the rule's score", 1),
        over("S1 keeps the rule better than the others", {s: gain["S1"] - gain[s] for s in ("S2", "S3", "S4")}, "", 1),
    ]  # fmt: skip


def figures(numbers: dict[str, Any]) -> dict[str, Any]:
    """Log-probs through training, one panel a scenario; the rule's score before and after."""
    who = {"S1": "own / own", "S2": "other's / own", "S3": "own / other's", "S4": "other's / other's"}
    figure, axes = panels(4, width=2.9, height=2.9)
    for ax, (scenario, roles) in zip(axes[0], numbers["change"].items(), strict=True):
        if ax is not axes[0][0]:
            ax.sharey(axes[0][0])
        for i, role in enumerate(ROLES):
            curve(ax, numbers["updates"], roles[role], i, role)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"{scenario}: {who[scenario]}", fontsize=9)
        ax.set_xlabel("updates")
    axes[0][0].set_ylabel("change of log-prob, nats an answer")
    axes[0][0].legend()
    scores, (row,) = panels(1, width=4.6)
    shown = {"before": numbers["rule"]["before"]} | {s: numbers["rule"][s] for s in PLACES}
    for i, values in enumerate(shown.values()):
        found = student(values)
        row[0].plot([i] * len(values), values, "o", color=COLOURS[i], alpha=0.5)
        if len(values) > 1:
            row[0].errorbar(i + 0.2, found.mean, found.mean - found.low, color=COLOURS[i], capsize=4, fmt="s")
    row[0].set_xticks(range(len(shown)), list(shown))
    row[0].set_ylabel("rule score of held-out prompts, 0 to 1")
    row[0].set_title("circles: seeds; squares: mean with 95 % interval", fontsize=9)
    return {"log-probs": figure, "rules": scores}
