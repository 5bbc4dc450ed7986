"""What the founding papers claim, tried on a real language model: short recipes, at least three seeds, one page.

A recipe is a YAML file in `recipes/claims`: what is claimed and by whom, the data, the arms (settings of
`accord.train`, or several one after another), and the cases: which arm is above which, on what. All arms of a recipe
start from the same policy and take as many responses an update. Before anything is trained the tokens are said. Every
arm of every seed is kept when it is done, so that the command can be stopped and goes on where it was.

| measure of held-out data | what |
|---|---|
| `accuracy` | share of pairs whose chosen answer has gained more log-prob than the rejected one since the start |
| `nll` | nats a token of chosen answers |
| `chosen`, `rejected` | change of the log-prob of an answer since the start, nats |
| `rule` | score of new answers to held-out prompts, by the rule of the prompt (bundled slogans alone) |

Where the data are several sources, or one of them by its name, what is trained scores pairs, and is measured as
`accord/lab/scored.py` says: reward models, ensembles of them, and policies by their implicit reward.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import spearmanr

import accord
from accord.data import sources
from accord.data.batches import seeded
from accord.data.records import Judgement, Record
from accord.data.views import Branch, Counts, view
from accord.engine import models
from accord.errors import AccordError, ConfigError, nearest
from accord.lab import scored, trials
from accord.lab.frame import COLOURS, Claim, Findings, panels
from accord.lab.trials import judged, log_probs, size, student, together
from accord.sinks import write_json
from accord.training.run import train
from accord.training.watch import Quiet

RECIPES = Path(accord.__file__).parent.parent / "recipes" / "claims"
MEASURES = ("accuracy", "nll", "chosen", "rejected", "rule")
LARGE = {
    "lora": True,
    "learning_rate": None,
    "precision": "auto",
}  # what a model that is not tiny takes in place of the recipes' rates
TOKENS_AN_HOUR = 500_000  # what two cores train SmolLM2 on


@dataclass(frozen=True)
class Data:
    """What a recipe learns from and is measured on. Slices are disjoint; those of `start` are the same in every seed.

    Args:
        name: a bundled set, or a file below $ACCORD_DATA.
        train, held_out: records. start: records of the shared start. pool: of sources, how many records all seeds draw
            from (0: all), so that they read the same texts.
        held_out_name: other data to be measured on: another domain.
        made: how records are made of those of the set, see `MADE`; an arm may say otherwise.
        sources: name to a file below $ACCORD_DATA, in place of `name`: `train` and `held_out` are then pairs of each
            source, chosen first, and an arm may say which `sources` it learns from and is measured on.
    """

    name: str = "slogans"
    train: int = 300
    held_out: int = 60
    start: int = 100
    pool: int = 0
    held_out_name: str | None = None
    made: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """One claim and how it is tried.

    Args:
        name: the file's. claim, paper: what is said, and its arXiv id. note: what stands in for what, and why.
        policy: what it is tried with, in place of what is given, and with its settings as they are.
        not_testable: why it cannot be tried here; nothing else is then read.
        data: see `Data`. settings: of every training. start: settings of one training before all arms, or none.
        arms: name to settings, or a list of settings one after another; `data` among them is as `made`, `train` there
            the number of records, and `sources` which of the data's.
        cases: name to {more or less, than, in, within}, arms by name or `a - b`; with `within` (0), it holds if the
            difference is sure to be no further on the wrong side than that; or {correlation: [measure, measure]} over
            the arms. every: the claim is all of its cases at once, not each under its condition.
    """

    name: str
    claim: str
    paper: str
    note: str = ""
    policy: str = ""
    not_testable: str = ""
    data: Data = Data("slogans")
    settings: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    every: bool = False

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Raises:
        ConfigError: a key, an arm or a measure that is not known; the file and the nearest are named.
        """

        def known(keys: Any, names: Any, what: str) -> None:
            for key in keys:
                if key not in names:
                    raise ConfigError(f"{path}: {what} {key!r} is not known; {nearest(str(key), names)}")

        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        known(given, cls.__dataclass_fields__, "key")
        known(given.get("data", {}), Data.__dataclass_fields__, "data:")
        arms = {name: arm if isinstance(arm, list) else [arm] for name, arm in given.pop("arms", {}).items()}
        data = Data(**given.pop("data", {}))
        for stage in (s for stages in arms.values() for s in stages):
            known(stage.get("sources", ()), data.sources, "source")
        for case in given.get("cases", {}).values():
            known(case, ("more", "less", "than", "in", "within", "correlation"), "case:")
            sides = [side for key in ("more", "less", "than") if key in case for side in case[key].split(" - ")]
            known(sides, arms, "arm")
            measures = scored.MEASURES if data.sources else MEASURES
            known([case["in"]] if "in" in case else case["correlation"], measures, "measure")
        return cls(path.stem, arms=arms, data=data, **given)

    @property
    def measures(self) -> tuple[str, ...]:
        """What its cases ask for, and what is told in any case."""
        asked = {m for c in self.cases.values() for m in (c.get("correlation") or [c["in"]])}
        if self.data.sources:
            return tuple(m for m in scored.MEASURES if m in asked or m not in scored.TRAIL)
        return tuple(m for m in MEASURES if m in asked | {"accuracy", "nll"})


def run(
    *,
    seeds: int = 3,
    progress: Any = None,
    only: str | None = None,
    policy: str | None = None,
    folder: str = "runs/lab-claims",
    recipes: str | None = None,
    page: str | None = None,
    max_steps: int | None = None,
) -> Findings:
    """Tries every claim, or one, and writes what came out into one page.

    Args:
        seeds: of the split, the order and everything drawn; at least 2, and 3 for a verdict worth the name.
        progress: who shows it, a watcher.
        only: the name of one recipe.
        policy: a folder or smollm2; by default the tiny LM in $ACCORD_DATA, else smollm2, which is trained with LoRA.
        folder: where what is done is kept; the same command goes on from there.
        recipes: their folder; by default that of the repository.
        page: the docs page that is written; by default claims.md in `folder`.
        max_steps: updates of every training, in place of the recipes' own: to try the machinery.

    Returns:
        Every measure of every arm and seed, and how each claim ends.

    Raises:
        ConfigError: one seed, no such claim, or a recipe that says what is not known.
        AccordError: stopped while training, or real data is missing.
    """
    progress = progress or Quiet()
    if seeds < 2:
        raise ConfigError("--seeds 1 has no interval: use 3 or more")
    found = listed(Path(recipes) if recipes else RECIPES)
    if only is not None and only not in found:
        raise ConfigError(f"no claim is called {only!r}; {nearest(only, found)}")
    chosen = [found[only]] if only is not None else list(found.values())
    given = policy or trials.default_policy()
    todo = [r for r in chosen if not r.not_testable]
    policies = dict.fromkeys(r.policy or given for r in todo) or [given]
    by_policy = {p: Trial(p, Path(folder), max_steps) for p in policies}
    of = {r.name: by_policy[r.policy or given] for r in todo}
    told = {r.name: of[r.name].tokens(r, seeds) for r in todo}
    total = sum(told.values())
    slow = sum(n for name, n in told.items() if not of[name].tiny)
    hours = f", at most {slow / TOKENS_AN_HOUR:.1f} hours on two cores" if slow else ""
    progress.note(f"{sum(len(r.arms) for r in todo) * seeds} trainings on about {total:,} tokens{hours}")
    for name, tokens in told.items():
        progress.note(f"  {name}: {tokens:,} tokens")
    results: dict[str, Any] = {}
    apart: dict[str, list[str]] = {}
    claims = []
    for recipe in chosen:
        if recipe.not_testable:
            claims.append(Claim(recipe.claim, "not testable here", recipe.not_testable))
            continue
        with progress.task(recipe.name) as advance:
            results[recipe.name] = of[recipe.name].tried(recipe, seeds, advance)
        if of_each := of[recipe.name].of_each(recipe, seeds):
            apart[recipe.name] = scored.lines(of_each)
        claims.append(verdict(recipe, results[recipe.name]))
    numbers = {
        "settings": {"policy": ", ".join(t.named for t in by_policy.values()), "seeds": seeds, "max_steps": max_steps},
        "recipes": {
            r.name: {"claim": r.claim, "paper": r.paper, "note": " ".join(r.note.split()), "verdict": c.verdict,
                     "because": c.because, "tokens": told.get(r.name, 0), "arms": results.get(r.name, {}),
                     "cases": r.cases, "told": apart.get(r.name, []), "own": of[r.name].named if r.policy else ""}
            for r, c in zip(chosen, claims, strict=True)
        },
    }  # fmt: skip
    text = written(numbers)
    where = Path(page) if page else Path(folder) / "claims.md"
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(text, encoding="utf-8")
    progress.note(f"{where} tells all of it")
    return Findings("claims", numbers, claims, figures)


def listed(folder: Path) -> dict[str, Recipe]:
    """Every recipe by name.

    Raises:
        ConfigError: there is none.
    """
    found = {path.stem: Recipe.read(path) for path in sorted(folder.glob("*.yaml"))}
    if not found:
        raise ConfigError(f"{folder} holds no recipe: name the folder with --recipes (they come with the repository)")
    return found


@dataclass
class Trial:
    """What the recipes are tried with. folder: where finished arms are kept."""

    policy: str
    folder: Path
    max_steps: int | None = None

    def __post_init__(self) -> None:
        loaded = models.load(self.policy, precision="fp32")
        self.parameters, self.key = size(loaded), loaded.start
        self.tiny = self.parameters < trials.TINY
        self.chat = trials.chat_of(loaded)
        self.named = f"`{'/'.join(Path(self.policy).parts[-2:])}` ({self.parameters:,} parameters)"

    # -- data ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _sets(self) -> dict[str, list[Record]]:
        return {}

    def records(self, name: str) -> list[Record]:
        """A set in an order of its own, the same in every seed; what cannot be read is left out."""
        if name not in self._sets:
            place = name
            if name not in sources.bundled():
                folder = trials.data_folder()
                if folder is None or not (folder / name).exists():
                    raise AccordError(f"the recipe needs {name}: set ACCORD_DATA to the folder that holds it")
                place = str(folder / name)
            found = [r for r in sources.load(place, on_error="skip").records if len(r.responses) > 1]
            self._sets[name] = [found[i] for i in seeded("claims", name).permutation(len(found))]
        return self._sets[name]

    def slices(self, data: Data, seed: int) -> tuple[list[Record], list[Record]]:
        """Training and held-out records of a seed; those of the start are in neither."""
        if data.sources:
            lots = [self.pairs_of(name, file, data, seed) for name, file in data.sources.items()]
            return [r for train, _ in lots for r in train], [r for _, held in lots for r in held]
        rest = self.records(data.name)[data.start :]
        rest = [rest[i] for i in seeded("claims", seed).permutation(len(rest))]
        other = data.held_out_name
        held = self.records(other)[: data.held_out] if other else rest[: data.held_out]
        return rest[0 if other else data.held_out :][: data.train], held

    def pairs_of(self, name: str, file: str, data: Data, seed: int) -> tuple[list[Record], list[Record]]:
        """Training and held-out pairs of one source in a seed."""
        random = seeded("claims", seed, name)
        rest = self.records(file)[data.start :][: data.pool or None]
        return scored.parted(
            scored.pairs([rest[i] for i in random.permutation(len(rest))], name, random), data.train, data.held_out
        )

    def pairs(self, records: Sequence[Record], seed: int) -> list[Record]:
        """One pair a record, chosen first, to measure on: the widest that its judgements or its rule give."""
        found = []
        for record in records:
            made = MADE["widest"]([record], seeded("held", seed, record.id))
            found += made if _bundled_rule(record) else _first_pair(record)
        return found

    # -- trainings -----------------------------------------------------------------------------------------------------

    def settings(self, recipe: Recipe, stage: Mapping[str, Any]) -> dict[str, Any]:
        """Of one training."""
        found = {"max_length": 256, "eval_fraction": 0.0, "precision": "fp32", "warmup": 0.1} | recipe.settings
        found |= {k: v for k, v in stage.items() if k not in ("data", "train", "sources")}
        if "eval_steps" in found:
            del found["eval_fraction"]
        if not self.tiny:
            found = LARGE | found if recipe.policy else found | LARGE
        if self.max_steps is not None:
            found["max_steps"] = self.max_steps
        return {k: v for k, v in found.items() if v is not None}

    def tokens(self, recipe: Recipe, seeds: int) -> int:
        """About how many tokens its trainings see: responses an update x updates x mean length, without the start."""
        of = recipe.data.sources
        mean = {name: self._mean_length(file) for name, file in of.items()} or self._mean_length(recipe.data.name)
        total = 0.0
        for stages in recipe.arms.values():
            for stage in stages:
                s = self.settings(recipe, stage)
                lengths = [mean[n] for n in stage.get("sources", of)] if isinstance(mean, dict) else [mean]
                trainings = len(lengths) if _separate(s) else 1
                total += s["max_steps"] * s["responses"] * float(np.mean(lengths)) * trainings
        return int(total * seeds)

    def _mean_length(self, name: str) -> float:
        counts, lengths = Counts(), []
        for record in self.records(name)[:40]:
            for s in self.chat.encode(record, [Branch(0, k) for k in range(len(record.responses))], counts) or ():
                lengths.append(len(s.context) + len(s.ids))
        return float(np.mean(lengths))

    def trained(
        self, recipe: Recipe, stage: Mapping[str, Any], records: Any, model: str, output: Path, seed: int,
        held: Sequence[Record] = (),
    ) -> str:  # fmt: skip
        """The model of one training; a finished one is not repeated. held: what it looks at, with `eval_steps`."""
        settings = self.settings(recipe, stage)
        responses = settings.pop("responses")
        settings["batch_size"] = responses // 2 if _on_pairs(settings["objective"]) else responses
        made = dict(stage.get("data") or recipe.data.made)
        records = MADE[made.pop("as", "given")](records, seeded("made", seed), **made) if made else records
        before = Path(model).parent / "claim.json"  # a training of ours is known by what it was, not by where it lies
        of = json.loads(before.read_text())["identity"] if before.exists() else self.key
        identity = {"settings": settings, "records": [r.id for r in records], "model": of}
        if "eval_steps" in settings:
            identity["held"] = [r.id for r in held]
        mark = output / "claim.json"
        text = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()
        same = mark.exists() and json.loads(mark.read_text())["identity"] == text
        if same and (found := _finished(output)):
            return found
        if output.exists() and not same:
            shutil.rmtree(output)
        output.mkdir(parents=True, exist_ok=True)
        write_json(mark, {"identity": text})
        looks: dict[str, Any] = {"eval_data": list(held)} if "eval_steps" in settings else {}
        run = train(model, records, output=str(output), seed=seed, quiet=True, save_steps=None, **looks, **settings)
        if run.summary["finished"] == "interrupted":
            raise AccordError("stopped; the same command goes on from here")
        for left in output.rglob("checkpoints"):
            shutil.rmtree(left, ignore_errors=True)
        return str(_finished(output))

    def started(self, recipe: Recipe) -> str:
        """The policy that all arms start from: trained once for all recipes that ask for the same."""
        if not recipe.start or not self.tiny:
            return self.policy
        bare = Recipe("start", "", "", data=Data(recipe.data.name))
        records = self.records(recipe.data.name)[: recipe.data.start]
        words = json.dumps([recipe.data.name, recipe.data.start, self.settings(bare, recipe.start)], sort_keys=True)
        name = hashlib.blake2b(words.encode(), digest_size=4).hexdigest()
        return self.trained(bare, recipe.start, records, self.policy, self.folder / f"start-{name}", 0)

    def tried(
        self, recipe: Recipe, seeds: int, advance: Callable[[int, int], None]
    ) -> dict[str, dict[str, list[float]]]:
        """Every measure of every arm, one number a seed."""
        start = self.started(recipe)
        found: dict[str, dict[str, list[float]]] = {arm: {m: [] for m in recipe.measures} for arm in recipe.arms}
        before: dict[int, Any] = {}
        done = 0
        for seed in range(seeds):
            records, held = self.slices(recipe.data, seed)
            for arm, stages in recipe.arms.items():
                here, model = self.folder / recipe.name / f"seed-{seed}" / arm, start
                for number, stage in enumerate(stages):
                    taken = _from(records, stage)[: stage.get("train", len(records))]
                    model = self.trained(recipe, stage, taken, model, here / str(number), seed, _from(held, stage))
                kept = here / "measured.json"
                identity = [json.loads((here / str(n) / "claim.json").read_text()) for n in range(len(stages))]
                identity += [asdict(recipe.data), list(recipe.measures)]
                measured = json.loads(kept.read_text()) if kept.exists() else {}
                if measured.get("identity") != identity:
                    if recipe.data.sources:
                        last = self.settings(recipe, stages[-1])
                        own = _from(held, stages[-1])
                        worth = scored.numbers(model, start, own, last.get("beta", 0.1), **_loaded(last))
                        worth |= scored.trail(here / str(len(stages) - 1))
                    elif seed not in before:
                        pairs = self.pairs(held, seed)
                        before[seed] = (pairs, log_probs(models.load(start, precision="fp32"), pairs))
                    if not recipe.data.sources:
                        worth = self.measured(recipe, model, before[seed], seed)
                    measured = {"identity": identity, "numbers": worth}
                    write_json(kept, measured)
                for m in recipe.measures:
                    value = measured["numbers"][m]
                    found[arm][m].append(float("nan") if value is None else value)  # JSON has no NaN
                done += 1
                advance(done, seeds * len(recipe.arms))
        return found

    def of_each(self, recipe: Recipe, seeds: int) -> list[dict[str, Any]]:
        """What the models of one source each have in common, seed by seed: those of the first ensemble of all."""
        of = recipe.data.sources
        arm = next((a for a, s in recipe.arms.items() if _separate(s[-1]) and not s[-1].get("sources")), None)
        if not of or arm is None:
            return []
        found = []
        for seed in range(seeds):
            run = self.folder / recipe.name / f"seed-{seed}" / arm / str(len(recipe.arms[arm]) - 1)
            kept = run / "apart.json"
            if not kept.exists():
                last = self.settings(recipe, recipe.arms[arm][-1])
                write_json(kept, scored.apart(run, self.slices(recipe.data, seed)[1], **_loaded(last)))
            found.append(json.loads(kept.read_text()))
        return found

    def measured(self, recipe: Recipe, model: str, start: tuple[list[Record], list[np.ndarray]], seed: int) -> Any:
        """Of one trained policy on held-out pairs, chosen first."""
        pairs, before = start
        policy = models.load(model, precision="fp32")
        now = np.stack(log_probs(policy, pairs))
        change = now[..., 0] - np.stack(before)[..., 0]
        found = {
            "accuracy": float(np.mean((change[:, 0] > change[:, 1]) + 0.5 * (change[:, 0] == change[:, 1]))),
            "nll": float(-now[:, 0, 0].sum() / now[:, 0, 1].sum()),
            "chosen": float(change[:, 0].mean()),
            "rejected": float(change[:, 1].mean()),
        }
        if "rule" in recipe.measures:
            asked = trials.bundled("slogans", "held_out")
            answers = trials.answered(policy, asked, samples=2, limit=24, temperature=1.0, seed=seed)
            found["rule"] = float(np.mean([a.scores(f) for a, f in zip(asked, answers, strict=True)]))
        return found


def _from(records: list[Record], stage: Mapping[str, Any]) -> list[Record]:
    """Those of the sources that a stage names; all, where it names none."""
    named = stage.get("sources")
    return [r for r in records if r.source in named] if named else records


def _separate(stage: Mapping[str, Any]) -> bool:
    """Whether each source trains a model of its own."""
    return bool(stage.get("sharing") == "ensemble")


def _loaded(stage: Mapping[str, Any]) -> dict[str, Any]:
    """How models with frozen layers are loaded: as they were trained, so that known states are read."""
    return {k: stage[k] for k in ("freeze_layers", "precision")} if "freeze_layers" in stage else {}


def _finished(run: Path) -> str | None:
    """What a finished training left: its model, or the folder of an ensemble; None if it is not finished."""
    if (run / "ensemble.json").exists():
        return str(run)
    return str(run / "model") if (run / "model").exists() else None


def _on_pairs(objective: Any) -> bool:
    from accord.training import plan

    return any(t.feeds_on == "Pairs" for t in plan.terms(objective, {}).values())


# -- records that are made of others -----------------------------------------------------------------------------------


def _bundled_rule(record: Record) -> Any:
    """The rule of a bundled prompt, or None."""
    return _rules().get(record.prompt) if isinstance(record.prompt, str) else None


@cache
def _rules() -> dict[str, trials.Asked]:
    return {a.prompt: a for name in ("slogans", "verses") for a in trials.bundled(name, "train")}


def _preferred(record: Record, chosen: int, rejected: int, value: float = 1.0) -> Record:
    responses = (record.responses[chosen], record.responses[rejected])
    judgement = Judgement(kind="preference", pair=(0, 1), value=value)
    return Record(prompt=record.prompt, responses=responses, judgements=(judgement,), source=record.source)


def _first_pair(record: Record) -> list[Record]:
    """The pair of a record that its judgements tell apart most."""
    found = view([record], "Pairs")
    if not found:
        return []

    def gap(example: Any) -> float:
        difference = example.values["score_chosen"] - example.values["score_rejected"]
        return example.values["strength"] if np.isnan(difference) else difference

    best = max(found, key=gap).branches
    return [_preferred(record, best["chosen"].response, best["rejected"].response)]  # type: ignore[union-attr]


def _scored(records: Sequence[Record]) -> list[tuple[Record, np.ndarray]]:
    """Bundled records with the score of every answer."""
    rules = [_bundled_rule(r) for r in records]
    return [(r, np.array(a.scores(r.responses))) for r, a in zip(records, rules, strict=True) if a is not None]


def _given(records: Sequence[Record], random: np.random.Generator) -> list[Record]:
    """As they are."""
    return list(records)


def _answers(records: Sequence[Record], random: np.random.Generator) -> list[Record]:
    """Every answer as a demonstration."""
    return [Record(prompt=r.prompt, responses=(a,), source=r.source) for r in records for a in r.responses]


def _widest(records: Sequence[Record], random: np.random.Generator) -> list[Record]:
    """The best answer by the rule above the worst."""
    order = [(r, s, np.argsort(-s, kind="stable")) for r, s in _scored(records)]
    return [_preferred(r, int(o[0]), int(o[-1])) for r, s, o in order if s[o[0]] > s[o[-1]]]


def _positives(
    records: Sequence[Record], random: np.random.Generator, *, quality: str, wrong: float = 0.3
) -> list[Record]:
    """The worst answer below another: the `best`, any (`random`), or the best but swapped for a share (`noisy`)."""
    found = []
    for record, scores in _scored(records):
        order = np.argsort(-scores, kind="stable")
        best, worst = int(order[0]), int(order[-1])
        if scores[best] == scores[worst]:
            continue
        if quality == "random":
            best = int(random.choice(order[:-1]))
        swap = quality == "noisy" and random.random() < wrong
        found.append(_preferred(record, *((worst, best) if swap else (best, worst))))
    return found


def _judged(
    records: Sequence[Record], random: np.random.Generator, *, labels: str, scale: float = 4.0, each: int = 2
) -> list[Record]:
    """Random pairs and a noisy judge who prefers i with the probability sigmoid(scale x gap of the rule's scores).

    `soft` labels are that probability; `hard` ones are one vote drawn from it.
    """
    found = []
    for record, scores in _scored(records):
        for _ in range(each):
            i, j = (int(v) for v in random.permutation(len(scores))[:2])
            p = 1.0 / (1.0 + np.exp(-scale * (scores[i] - scores[j])))
            vote = float(random.random() < p)
            if record.responses[i].plain_text != record.responses[j].plain_text:
                found.append(_preferred(record, i, j, float(p) if labels == "soft" else vote))
    return found


MADE: dict[str, Callable[..., list[Record]]] = {
    "given": _given, "answers": _answers, "widest": _widest, "positives": _positives, "judged": _judged,
}  # fmt: skip


UNITS = {
    "accuracy": "of the pairs", "rule": "of the score", "nll": "nats a token", "loss": "nats a pair", "ece": "",
    "tempered": "", "wobble": "of the pairs", "lost": "of the pairs", "peak": "times the median", "margin": "logits",
    "spread": "logits",
}  # fmt: skip


# -- verdicts and the page ---------------------------------------------------------------------------------------------


def verdict(recipe: Recipe, found: Mapping[str, Mapping[str, Sequence[float]]]) -> Claim:
    """How the claim ends, case by case."""

    def side(formula: str, measure: str) -> np.ndarray:
        first, *rest = (np.array(found[arm][measure]) for arm in formula.split(" - "))
        return first - sum(rest, np.zeros(len(first)))

    cases = {}
    for name, case in recipe.cases.items():
        if "correlation" in case:
            a, b = (np.array([found[arm][m] for arm in found]) for m in case["correlation"])
            values = [float(spearmanr(a[:, s], b[:, s]).statistic) for s in range(a.shape[1])]
            cases[name] = judged(name, np.nan_to_num(values), "rank correlation")
        else:
            asked = "more" if "more" in case else "less"
            difference = side(case[asked], case["in"]) - side(case["than"], case["in"])
            unit = UNITS.get(case["in"], "nats")
            cases[name] = judged(name, difference, unit, 1 if asked == "more" else -1, case.get("within", 0.0))
    return together(" ".join(recipe.claim.split()), cases, recipe.every)


def written(numbers: Mapping[str, Any]) -> str:
    """The page."""
    s = numbers["settings"]
    lines = [
        "# What the papers claim, tried here", "",
        f"Written by `accord lab claims`: policy {s['policy']}, {s['seeds']} seeds; "
        "means with 95 % Student intervals over seeds."
        + (f" Only {s['max_steps']} updates each: the machinery is tried, nothing is shown." if s["max_steps"] else ""),
        "A policy this small says whether an effect is there in it, and nothing of models that people use.", "",
        "| claim | paper | ends as |", "|---|---|---|",
        *(f"| [{n}](#{n}) | {r['paper']} | {r['verdict']} |" for n, r in numbers["recipes"].items()),
    ]  # fmt: skip
    for name, r in numbers["recipes"].items():
        lines += ["", f"## {name}", "", " ".join(r["claim"].split()), "", f"**{r['verdict']}**: {r['because']}"]
        if r["note"]:
            lines += ["", r["note"]]
        if r["arms"]:
            measures = list(next(iter(r["arms"].values())))
            hours = r["tokens"] / TOKENS_AN_HOUR
            who = f"tried with {r['own']}" if r["own"] else f"of SmolLM2 at most {hours:.1f} hours on two cores"
            lines += ["", f"About {r['tokens']:,} tokens; {who}.", ""]
            lines += ["| arm | " + " | ".join(measures) + " |", "|---" * (len(measures) + 1) + "|"]
            for arm, values in r["arms"].items():
                lines.append(f"| {arm} | " + " | ".join(_cell(values[m]) for m in measures) + " |")
            lines += r["told"]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    return "" if np.isnan(values).any() else str(student(values))


def figures(numbers: dict[str, Any]) -> dict[str, Any]:
    """One panel a recipe: the first measure that its cases ask for, arm by arm."""
    drawn = {n: r for n, r in numbers["recipes"].items() if r["arms"]}
    if not drawn:
        return {}
    columns = min(3, len(drawn))
    figure, axes = panels(columns, -(-len(drawn) // columns), width=4.2, height=2.6)
    for ax in axes.flat[len(drawn) :]:
        ax.set_visible(False)
    labels = {"accuracy": "accuracy, held-out pairs", "nll": "nats a token", "rule": "rule score, 0 to 1"}
    labels |= {"ece": "ECE, 10 bins", "wobble": "change of accuracy, look to look", "loss": "nats a pair"}
    for ax, (name, r) in zip(axes.flat, drawn.items(), strict=False):
        case = next(iter(r["cases"].values()))
        measure = case.get("in") or case["correlation"][-1]
        for i, values in enumerate(r["arms"].values()):
            found = student(values[measure])
            ax.plot(values[measure], [i] * len(values[measure]), "o", color=COLOURS[i % 8], alpha=0.4, markersize=4)
            ax.errorbar(found.mean, i, xerr=found.mean - found.low, fmt="s", color=COLOURS[i % 8], capsize=3)
        ax.set_yticks(range(len(r["arms"])), list(r["arms"]))
        ax.invert_yaxis()
        ax.set_title(f"{name}: {r['verdict']}", fontsize=9)
        ax.set_xlabel(labels.get(measure, f"change of {measure}, nats"))
    return {"arms": figure}
