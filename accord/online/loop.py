"""How does a model learn from its own answers? Sample, judge, pair or weigh, train; round after round.

Each round writes records (`records/round-N/`) and is a run of `accord train` on them (`rounds/N/`), which repeats
it exactly. A phase that is done is a file that is whole; sampling and judging keep what they have in a ledger, chunk by
chunk, so that a loop that was killed goes on where it stood, with the same result, and no judge is asked twice.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from accord.data import sources
from accord.data.batches import seeded
from accord.data.chat import Chat
from accord.data.records import Record, Response
from accord.data.rows import many
from accord.data.views import Counts
from accord.endpoint import Failure
from accord.engine import models
from accord.engine.export import export
from accord.errors import AccordError, ConfigError, nearest
from accord.judges.agreement import Agreement
from accord.judges.frame import noted
from accord.online import judging
from accord.online.advantages import AdvantageOptions, Memory
from accord.online.pairing import READS_GIVEN, WITH_REFERENCE, WITHOUT_JUDGE, PairOptions, comparisons, known, pair
from accord.online.rollouts import said_of, weighed
from accord.sampling import revise as revising
from accord.sampling.local import SHARD, answer
from accord.sampling.remote import Remote
from accord.sinks import write_json
from accord.training import plan
from accord.training import run as training
from accord.training.inputs import read as read_data
from accord.training.outcome import plain
from accord.training.state import writing
from accord.training.terms import Term
from accord.training.watch import Console, Quiet

CHUNK = 64  # answers that are judged before what was said is written down


@dataclass
class Loop:
    """What `loop` returns: where everything is, and one row of numbers for each round."""

    folder: Path
    rounds: list[dict[str, Any]]
    finished: bool

    @property
    def model(self) -> Path:
        """The folder of the last round's model."""
        return self.folder / "model"


def loop(
    model: str,
    prompts: Any,
    judge: str | list[str] | None = None,
    objective: Any = "dpo",
    *,
    output: str = "runs/loop",
    rounds: int = 1,
    max_prompts: int | None = None,
    prompts_per_round: int | None = None,
    samples: int = 2,
    reference_samples: int = 0,
    mixture: float = 1.0,
    sampler: str | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    pair: dict[str, Any] | None = None,
    advantage: dict[str, Any] | None = None,
    critic: dict[str, Any] | None = None,
    reference: Literal["fixed", "previous"] | None = None,
    first: dict[str, Any] | None = None,
    revise: dict[str, str] | None = None,
    beside: str | list[str] | None = None,
    anneal: Literal["none", "linear"] = "none",
    optimizer: Literal["anew", "kept"] = "anew",
    keep_models: int | None = None,
    seed: int = 0,
    resume: Literal["auto", "never"] = "auto",
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Loop:
    """Rounds of sampling, judging, pairing and training, each on the model of the round before.

    Args:
        model: a folder, a run, a hub name, or `smollm2`.
        prompts: a file of records or prompts (their own answers are looked at by pairing rules that say so), or of one
            prompt a line (.txt).
        judge: who judges, in words such as `slogan:words=5`; several are put together as `pair.together` says.
            `{policy}` in them is the model that the round begins with, `{model}` the one that was given.
        objective: what each round is trained on, as in `accord train`.
        output: the folder of the loop.
        rounds: how many.
        max_prompts: only the first so many of the file.
        prompts_per_round: so many a round, all if there are fewer, drawn without repeating until all were used; by
            default all of them.
        samples: answers of the policy to a prompt.
        reference_samples: answers of the reference to it, beside these.
        mixture: of these: each token is drawn from policy^(1 - mixture) * reference^mixture (Nash-MD); 1 is the
            reference itself.
        sampler: a server that answers as the policy, such as `http://localhost:8000`: it is handed the weights of each
            round, or the loop is refused; `URL,model=M,weights=fixed` learns from the answers of another policy.
        temperature: of sampling; 0 takes the likeliest token. top_p: sample from the likeliest tokens of this share.
        max_new_tokens: an answer is cut off here.
        pair: how judged answers become records, see `accord.online.pairing.PairOptions`.
        advantage: of policy gradients: how judged answers get their advantages, see
            `accord.online.advantages.AdvantageOptions`; nothing is paired.
        critic: settings of a model apart that learns what tokens return, like {model: FOLDER, learning_rate: 1e-5}
            (without `model` it begins as the policy does); by default a head on the policy's own trunk, as the
            objective `[ppo, critic]` has it.
        reference: what a round's policy is compared with: `fixed`, the model that the loop began with, or `previous`,
            the one that the round begins with. Published methods differ in it: there is no default.
        first: settings of a run on other data, like {data: FILE, objective: sft}: round 0, and the loop begins with
            what comes out.
        revise: each answer is rewritten once, and the revision stands beside it (`revised_from`): {by: MODEL, request:
            Improve your answer.}; `by` is a model, a server's URL, or `policy` (the round's own, the default).
        beside: data that every round is trained on beside its own answers, for a term of their own, like objective:
            {ratings: rloo, demonstrations: {name: sft, weight: 0.1}} (PPO-ptx).
        anneal: `linear` takes the learning rate of a round down over the rounds, from the whole of it towards 0.
        optimizer: of a round: begins `anew`, or is `kept` from the round before (its moments and count of updates; each
            round then keeps its last checkpoint).
        keep_models: only the newest so many rounds keep their models; by default all.
        seed: of everything drawn.
        resume: `auto` goes on with what `output` holds; `never` refuses a folder that holds a loop.
        overwrite: removes what `output` holds first.
        quiet: prints nothing.
        settings: of training, as in `accord train`: `beta`, `learning_rate`, `batch_size`, ...

    Returns:
        The loop: its folder, and the numbers of its rounds.

    Raises:
        ConfigError: a setting that is unknown, missing, contradictory, or another than the unfinished loop had.
        AccordError: a round that leaves nothing to train on; what was left out is named.
    """
    given = {k: v for k, v in locals().items() if k != "settings"} | settings
    training.check_types(given, loop)
    watcher = Quiet() if quiet else Console()
    options = PairOptions.of(({} if advantage is None else {"rule": "none"}) | (pair or {}))
    if options.rule in WITH_REFERENCE and "policy_answers" not in (pair or {}):
        options = replace(options, policy_answers=samples)
    weighing = None if advantage is None else AdvantageOptions.of(advantage)
    terms = _checked(given, options, weighing, settings)
    if any(term.needs_old for term in terms.values()):
        settings = {"temperature": temperature} | settings
    named = [judge] if isinstance(judge, str) else judge or []
    folder = Path(output)
    remote = Remote(sampler) if sampler is not None else None
    asked = prompts_of(prompts)[:max_prompts]
    if not asked:
        raise AccordError(f"{prompts} holds no prompt")
    further = [beside] if isinstance(beside, str) else beside or []
    held = read_data(further, "raise", Counts(), watcher)[0] if further else ()
    with writing(folder):
        _begin(folder, given, [*asked, *held], overwrite, resume)
        base = str(models.resolve(model))
        whole = base
        if remote is not None:
            remote.check(_chat(base, settings), settings.get("chat_template"))
        if first is not None:
            base = _first(base, first, folder, seed, settings, watcher)
        told: list[dict[str, Any]] = []
        start = base
        expects = None if critic is None else str(models.resolve(critic.get("model", base)))
        for number in range(1, rounds + 1):
            one = Round(folder, number, start, base if reference != "previous" else start, seed, expects)
            mine = asked if prompts_per_round is None else window(asked, prompts_per_round, number, seed)
            if not one.paired.exists():
                watcher.note(f"round {number} of {rounds}: {many(len(mine), 'prompts')}")
                drawn = one.sample(
                    mine, settings, watcher, samples=samples, reference_samples=reference_samples,
                    temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens,
                    keep_given=options.rule in READS_GIVEN, greedy=weighing is not None and weighing.rule == "greedy",
                    mixture=mixture, remote=remote,
                )  # fmt: skip
                if revise is not None:
                    drawn = one.revise(
                        drawn, revise, settings, watcher, temperature=temperature, top_p=top_p,
                        max_new_tokens=max_new_tokens,
                    )  # fmt: skip
                judges = [
                    judging.find(_filled(words, start, whole), policy=start, **where_of(settings)) for words in named
                ]
                said = one.judge(drawn, judges, options, watcher)
                by = [j.by for j in judges]
                del judges  # a model among them would stand beside the one that is trained
                if weighing is None:
                    one.pair(said, by, options)
                else:
                    one.weigh(said, by, options, weighing, settings, watcher)
            row = json.loads(one.numbers.read_text(encoding="utf-8"))
            for line in _lines(row):
                watcher.note(line)
            if not one.done:
                references = references_of(terms, reference, one)
                if optimizer == "kept" and number > 1:
                    references["optimizer_from"] = str(folder / "rounds" / str(number - 1))
                if anneal == "linear":
                    references["learning_rate"] = settings["learning_rate"] * (1 - (number - 1) / rounds)
                done = training.train(
                    one.start, [str(one.paired), *further] if further else str(one.paired), objective,
                    output=str(one.run), seed=seed + number - 1, quiet=quiet,
                    **({"eval_fraction": 0.0} | settings | references),
                )  # fmt: skip
                if done.summary["finished"] == "interrupted":
                    return Loop(folder, told, finished=False)
            if critic is not None:
                own = {"learning_rate": 1e-5} | {k: v for k, v in critic.items() if k != "model"}
                if optimizer == "kept" and number > 1:
                    own["optimizer_from"] = str(folder / "rounds" / f"{number - 1}-critic")
                if not one.learn(own, where_of(settings) | _shape(settings), quiet):
                    return Loop(folder, told, finished=False)
                expects = str(one.critic_run / "model")
            summary = json.loads((one.run / "summary.json").read_text(encoding="utf-8"))
            told.append(row | {"steps": summary["steps"], "train": summary["train"]})
            start = str(one.model)
            _tidy(folder, number, keep_models, needed={base, start, str(expects)}, last=optimizer == "kept")
        from accord.report.rounds import write_rounds

        _end(folder, told)
        page = write_rounds(folder)
    watcher.note(f"{many(rounds, 'rounds')}: {folder}  (open {page})")
    return Loop(folder, told, finished=True)


@dataclass
class Round:
    """One round: its files, and the phases that make them."""

    folder: Path
    number: int
    start: str
    reference: str
    seed: int
    critic: str | None = None

    @property
    def records(self) -> Path:
        return self.folder / "records" / f"round-{self.number}"

    @property
    def run(self) -> Path:
        return self.folder / "rounds" / str(self.number)

    @property
    def critic_run(self) -> Path:
        return self.run.with_name(f"{self.number}-critic")

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def done(self) -> bool:
        """Whether it is trained."""
        return self.model.exists() and (self.run / "summary.json").exists()

    @property
    def sampled(self) -> Path:
        return self.records / "sampled.jsonl"

    @property
    def revised(self) -> Path:
        return self.records / "revised.jsonl"

    @property
    def judged(self) -> Path:
        return self.records / "judged.jsonl"

    @property
    def paired(self) -> Path:
        return self.records / "paired.jsonl"

    @property
    def numbers(self) -> Path:
        return self.records / "round.json"

    def sample(
        self, prompts: Seq[Record], settings: Mapping[str, Any], watcher: Quiet, *, samples: int,
        reference_samples: int, temperature: float, top_p: float, max_new_tokens: int, keep_given: bool,
        greedy: bool = False, mixture: float = 1.0, remote: Remote | None = None,
    ) -> list[Record]:  # fmt: skip
        """Answers to the prompts, the policy's (those of `remote`, if there is one) and behind them the reference's;
        `keep_given` leaves those that the prompts brought in front, `greedy` adds the policy's likeliest answer."""
        if self.sampled.exists():
            return Ledger.made(self.sampled)
        self.records.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(self.sampled)
        asked, found, counts, unanswered = list(prompts), dict[int, list[Response]](), Counts(), set[int]()
        for who, count in (("policy", samples), ("greedy", int(greedy)), ("reference", reference_samples)):
            if not count:
                continue
            server = remote if who != "reference" else None
            ask: Callable[..., Seq[list[Response] | Failure]]
            if server is not None:
                chat, ask = _chat(self.start, settings), server.answer
            else:
                mixed = who == "reference" and mixture < 1
                policy, chat = _policy(self.reference if who == "reference" and not mixed else self.start, settings)
                with_ = (_policy(self.reference, settings)[0], mixture) if mixed else None
                ask = partial(answer, policy, chat, mixed=with_)
                del policy, with_
            asked, order = _that_fit(prompts, chat, max_new_tokens, counts)
            if not asked:
                raise AccordError(
                    f"no prompt leaves room for max_new_tokens={max_new_tokens} within max_length={chat.max_length}"
                )
            parts = math.ceil(len(order) / max(1, SHARD // count))
            if server is not None and any(f"{who} {place}" not in ledger.done for place in range(parts)):
                server.take(self._served(), chat)
            how = {"max_new_tokens": max_new_tokens, "temperature": 0.0 if who == "greedy" else temperature}
            with watcher.task(f"sampling, {who}") as advance:
                for i, own in self._drawn(ledger, who, ask, asked, order, count, advance, how | {"top_p": top_p}):
                    if isinstance(own, Failure):
                        counts.add(f"left: a prompt without an answer of the server ({own.why})", asked[i])
                        unanswered.add(i)
                    else:
                        found.setdefault(i, []).extend(own)
            del ask, chat
            gc.collect()
        made = []
        for i, record in enumerate(asked):
            if i not in unanswered:
                made.append(_answered(record, found[i], keep_given))
        if not made:
            raise AccordError(f"none of {many(len(asked), 'prompts')} was answered: {next(iter(counts.totals()))}")
        if remote is not None:
            watcher.note(f"  {remote.server.url}: {remote.server.spent}")
        shutil.rmtree(self.records / "served", ignore_errors=True)
        write_json(self.records / "sampling.json", counts.as_dict())
        return ledger.finish(made)

    def revise(
        self, records: list[Record], by: Mapping[str, str], settings: Mapping[str, Any], watcher: Quiet, **how: Any
    ) -> list[Record]:
        """The records with a revision of each answer behind their answers; of one that has none, why, is counted."""
        if self.revised.exists():
            return Ledger.made(self.revised)
        ledger, counts, who = Ledger(self.revised), Counts(), by.get("by", "policy")
        server = Remote(who) if who.startswith(("http://", "https://")) else None
        ask: Callable[..., Seq[list[Response] | Failure]]
        if server is not None:
            chat, ask = _chat(self.start, settings), server.answer
        else:
            own = settings if who == "policy" else {k: v for k, v in settings.items() if k != "chat_template"}
            policy, chat = _policy(self.start if who == "policy" else who, own)
            ask = partial(answer, policy, chat)
            del policy
        asked = revising.questions(records, by.get("request", plan.REVISE))
        room, order = _that_fit(asked, chat, how["max_new_tokens"], counts, "not revised: an answer behind which a "
                                "revision has no room within max_length")  # fmt: skip
        fits = {id(record): i for i, record in enumerate(room)}
        found: dict[int, list[Response] | Failure] = {}
        with watcher.task("revising") as advance:
            for i, revision in self._drawn(ledger, "revision", ask, room, order, 1, advance, how):
                if isinstance(revision, Failure):
                    counts.add(f"not revised: {revision.why}", room[i])
                found[i] = revision
        del ask, chat
        gc.collect()
        none = Failure("no room")
        made = revising.beside(records, [found[fits[id(q)]] if id(q) in fits else none for q in asked])
        if not made:
            raise AccordError(f"no answer was revised: {next(iter(counts.totals()))}")
        if len(made) < len(records):
            counts.add("left: a prompt none of whose answers was revised", times=len(records) - len(made))
        if server is not None:
            watcher.note(f"  {server.server.url}: {server.server.spent}")
        write_json(self.records / "revising.json", counts.as_dict())
        return ledger.finish(made)

    def _drawn(
        self, ledger: Ledger, who: str, ask: Callable[..., Seq[list[Response] | Failure]], asked: Seq[Record],
        order: Seq[int], count: int, advance: Callable[[int, int], None], how: Mapping[str, Any],
    ) -> Iterator[tuple[int, list[Response] | Failure]]:  # fmt: skip
        """`count` answers to each of `asked`, by its place; a part that the ledger holds is not asked for again."""
        size = max(1, SHARD // count)
        for place, start in enumerate(range(0, len(order), size)):
            part, name = order[start : start + size], f"{who} {place}"
            if name not in ledger.done:
                drawn = int(seeded(self.seed, who, self.number, place).integers(2**31))
                answers = ask([asked[i] for i in part], samples=count, seed=drawn, **how)
                ledger.add(name, [line for a in answers for line in _written(a, count)])
            lines = ledger.done[name]
            for k, i in enumerate(part):
                own = lines[k * count : (k + 1) * count]
                if own[0].startswith('"'):
                    yield i, Failure(json.loads(own[0]))
                else:
                    yield i, [Response.model_validate_json(line) for line in own]
            advance(min(start + size, len(order)), len(order))

    def _served(self) -> str:
        """The folder of the round's start as a server can read it: an adapter is added to its base."""
        if not (Path(self.start) / "adapter_config.json").exists():
            return self.start
        return str(export(self.start, self.records / "served", merge=True, overwrite=True))

    def judge(
        self, records: list[Record], judges: Seq[judging.Judge], options: PairOptions, watcher: Quiet
    ) -> list[Record]:
        """The records with what each judge says beside it."""
        if not judges:
            return records
        if self.judged.exists():
            return Ledger.made(self.judged)
        ledger, asking, counts = Ledger(self.judged), comparisons(options), Counts()
        made: list[Record] = []
        with watcher.task("judging") as advance:
            size = max(1, CHUNK // max(len(r.responses) for r in records))
            for place in range(0, len(records), size):
                part = records[place : place + size]
                for judge in judges:
                    name = f"{judge.by} {place}"
                    if name not in ledger.done:
                        why: dict[int, str] = {}
                        found = judging.asked(part, judge, asking, why)
                        if why:
                            ledger.add(f"why {name}", [json.dumps([n, text]) for n, text in why.items()])
                        ledger.add(name, [r.to_json() for r in found])
                    for n, text in map(json.loads, ledger.done.get(f"why {name}", ())):
                        counts.add(f"not judged as a whole by {judge.by}: {text}", part[n])
                    part = [Record.from_json(line) for line in ledger.done[name]]
                made += part
                advance(len(made), len(records))
        for note in (line for judge in judges for line in noted(judge)):
            watcher.note(f"  {note}")
        write_json(self.records / "judging.json", counts.as_dict())
        return ledger.finish(made)

    def pair(self, records: list[Record], judges: Seq[str], options: PairOptions) -> None:
        """Writes the records of training and, before them, the round in numbers."""
        counts = Counts()
        made = pair(records, options, seed=self.seed + self.number - 1, judges=judges or None, counts=counts)
        self._recall(counts)
        self._write(made, records, judges, counts)

    def weigh(
        self, records: list[Record], judges: Seq[str], options: PairOptions, weighing: AdvantageOptions,
        settings: Mapping[str, Any], watcher: Quiet,
    ) -> None:  # fmt: skip
        """Writes the records of training with the advantages of their answers, and the round in numbers."""
        counts = Counts()
        self._recall(counts)
        scores = [k.values(options.values) for k in known(records, options, list(judges))]
        for record, own in zip(records, scores, strict=True):
            for k, response in enumerate(record.responses):
                if options.finished and response.finish == "length":
                    own[k] = np.nan
        shared = weighing.rule == "gae" and self.critic is None
        old = self._asked(self.start, records, settings, watcher, ("value",) if shared else ())
        ref = critic = None
        if weighing.compares:
            same = self.reference == self.start
            ref = old if same else self._asked(self.reference, records, settings, watcher)
        if weighing.rule == "gae":
            critic = old if shared else self._asked(str(self.critic), records, settings, watcher, ("value",))
        made, memory, told = weighed(
            records, scores, old, weighing, self._memory(), counts, by="+".join(judges), ref=ref, critic=critic
        )
        self._write(made, records, judges, counts, {"advantage": told, "memory": asdict(memory)})

    def _asked(
        self,
        model: str,
        records: list[Record],
        settings: Mapping[str, Any],
        watcher: Quiet,
        heads: tuple[str, ...] = (),
    ) -> Any:
        policy, chat = _policy(model, settings, heads)
        with watcher.task("log-probs" if not heads else "values") as advance:
            found = said_of(policy, chat, records, advance)
        del policy, chat
        gc.collect()
        return found

    def _recall(self, counts: Counts) -> None:
        """Adds what sampling, revising and judging left out."""
        for phase in ("sampling", "revising", "judging"):
            if (file := self.records / f"{phase}.json").exists():
                counts.recall(json.loads(file.read_text(encoding="utf-8")))

    def _memory(self) -> Memory:
        """What the round before left."""
        before = self.records.with_name(f"round-{self.number - 1}") / "round.json"
        if not before.exists():
            return Memory()
        held = json.loads(before.read_text(encoding="utf-8"))["memory"]
        return Memory(held["kl"], tuple(held["returns"]), tuple(held["scores"]))

    def _write(
        self, made: list[Record], records: list[Record], judges: Seq[str], counts: Counts,
        more: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if not made:
            left = counts.totals()
            remedy = "sample more answers to a prompt (samples=...)"
            if left.keys() <= {"left: a tie", "left: a pair of equal answers", "no pair"}:
                remedy = (
                    "the judge finds all answers as good, or they are the same: ask another judge, sample at a higher "
                    "temperature, or, where the policy judges against its own start, train it first (first: ...)"
                )
            told = "; ".join(f"{what}: {times:,}" for what, times in left.items())
            raise AccordError(
                f"round {self.number} leaves nothing to train on ({told}): {remedy}, or look at "
                f"{self.judged if judges else self.sampled}"
            )
        write_json(self.numbers, {"round": self.number, **numbers(records, judges), **(more or {}),
                                  "records": len(made), "left": counts.as_dict()})  # fmt: skip
        write(self.paired, made)

    def learn(self, own: Mapping[str, Any], shared: Mapping[str, Any], quiet: bool) -> bool:
        """Trains the critic on what the answers returned; False if it was stopped."""
        if (self.critic_run / "model").exists() and (self.critic_run / "summary.json").exists():
            return True
        done = training.train(
            self.critic, str(self.paired), "critic", output=str(self.critic_run), seed=self.seed + self.number - 1,
            quiet=quiet, **({"eval_fraction": 0.0} | dict(shared) | dict(own)),
        )  # fmt: skip
        return bool(done.summary["finished"] != "interrupted")


# -- what lies on the disk ---------------------------------------------------------------------------------------------


class Ledger:
    """What is done of a file that is being made: one line a chunk, and only whole lines count."""

    def __init__(self, target: Path) -> None:
        self.target, self.path = target, _part(target)
        self.done: dict[str, list[str]] = {}
        whole = 0
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                try:
                    name, lines = json.loads(line)
                except ValueError:
                    break
                self.done[name] = lines
                whole += len(line)
            os.truncate(self.path, whole)
        self.file = self.path.open("ab")

    def add(self, name: str, lines: list[str]) -> None:
        """Writes down a chunk."""
        self.file.write(json.dumps([name, lines], ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.done[name] = lines

    def finish(self, records: list[Record]) -> list[Record]:
        """Writes the file that is made; the ledger goes."""
        write(self.target, records)
        self.file.close()
        self.path.unlink()
        return records

    @staticmethod
    def made(target: Path) -> list[Record]:
        """The records of a file that is made."""
        _part(target).unlink(missing_ok=True)
        return read(target)


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def write(path: Path, records: Iterable[Record]) -> None:
    """A file of records, there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    models.write_whole(path, "".join(r.to_json() + "\n" for r in records))


def read(path: Path) -> list[Record]:
    """The records of a file that a round wrote."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Record.from_json(line, file=str(path), number=n) for n, line in enumerate(lines, 1) if line]


def prompts_of(prompts: Any) -> list[Record]:
    """Records with the prompts of a file; what is a list of records already is left as it is."""
    if not isinstance(prompts, (str, Path)):
        return list(prompts)
    if not str(prompts).endswith(".txt"):
        return list(sources.load(str(prompts)).records)
    try:
        lines = Path(prompts).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise AccordError(f"{prompts}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise AccordError(f"{prompts}, line {line}: this is not UTF-8; save the file as UTF-8") from None
    return [Record(prompt=line.strip(), source=sources.source_name(prompts)) for line in lines if line.strip()]


def window(prompts: Seq[Record], count: int, number: int, seed: int) -> list[Record]:
    """The prompts of a round: no more than there are, of an order drawn anew for each pass.

    >>> records = [Record(prompt=p) for p in "abcd"]
    >>> sorted(r.prompt for number in (1, 2) for r in window(records, 2, number, 0))
    ['a', 'b', 'c', 'd']
    >>> len(window(records, 128, 1, 0))
    4
    """
    found, count = [], min(count, len(prompts))
    for place in range((number - 1) * count, number * count):
        turn, at = divmod(place, len(prompts))
        found.append(prompts[int(seeded(seed, "prompts", turn).permutation(len(prompts))[at])])
    return found


# -- pieces ------------------------------------------------------------------------------------------------------------

OWN = (
    "data",
    "output",
    "reference",
    "optimizer_from",
    "seed",
    "resume",
    "overwrite",
    "quiet",
    "dry_run",
    "model",
    "objective",
)
SAMPLED = ("max_length", "chat_template", "precision", "trust_remote_code")  # settings of training that answers are by
FREE = ("rounds", "quiet", "resume", "overwrite", "output", "keep_models", "device", "layout", "tokens_per_micro_batch")


def _checked(
    given: Mapping[str, Any], options: PairOptions, weighing: AdvantageOptions | None, settings: Mapping[str, Any]
) -> dict[str, Term]:
    """The terms of every round; raises a ConfigError for settings that cannot be."""
    for name in ("rounds", "samples", "max_prompts", "prompts_per_round", "max_new_tokens", "keep_models"):
        if given[name] is not None and (isinstance(given[name], bool) or given[name] < 1):
            raise ConfigError(f"{name}={given[name]} must be at least 1")
    if given["reference_samples"] < 0:
        raise ConfigError(f"reference_samples={given['reference_samples']} must be 0 or more")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a loop samples and trains in one process: start it without torchrun")
    if given["anneal"] == "linear" and settings.get("learning_rate") is None:
        raise ConfigError("anneal: linear takes learning_rate down: set learning_rate")
    for name in settings.keys() & set(OWN):
        raise ConfigError(f"{name} is the loop's own; leave it out")
    if given["judge"] in (None, []) and options.rule not in WITHOUT_JUDGE:
        raise ConfigError(f"judge is missing: who says which answer is better, like slogan:words=5? (pair.rule: "
                          f"{options.rule}; {', '.join(WITHOUT_JUDGE)} need none)")  # fmt: skip
    if given["judge"] and options.rule in WITHOUT_JUDGE:
        raise ConfigError(f"nothing reads judge under pair.rule: {options.rule}; leave it out")
    _check_revise(given["revise"], options, given["advantage"])
    own = inspect.signature(training.train).parameters
    known = training.translate({k: v for k, v in settings.items() if k not in own})
    known.pop("batch_size", None)
    known.pop("translated", None)
    common = {k: settings[k] for k in ("view", "length", "log_z") if k in settings}
    training.check_bounds(dict(settings))
    for words in [given["judge"]] if isinstance(given["judge"], str) else given["judge"] or []:
        judging.check(words)
    for name, low, high in (("temperature", 0.0, math.inf), ("top_p", 1e-9, 1.0)):
        if not low <= given[name] <= high:
            raise ConfigError(f"{name}={given[name]} must be from {low:g} to {high:g}")
    terms = plan.terms(given["objective"], known, **common)
    _check_weighing(given, options, weighing, terms)
    needed = {name for term in terms.values() for name in term.references} | (
        {"ref"} if any(term.live for term in terms.values()) or (weighing and weighing.compares) else set()
    )
    if needed and given["reference"] is None:
        raise ConfigError(
            "reference is missing, and published methods differ in it: fixed (the model that the loop begins with) or "
            "previous (the one that each round begins with)"
        )
    if given["reference"] is not None and not needed and not given["reference_samples"]:
        raise ConfigError(f"nothing reads reference={given['reference']!r}: no objective here compares with one")
    if options.rule in WITH_REFERENCE and not given["reference_samples"]:
        raise ConfigError(f"pair.rule: {options.rule} compares with answers of the reference: set reference_samples")
    if not 0 < given["mixture"] <= 1:
        raise ConfigError(f"mixture={given['mixture']} must be above 0 (the policy), and at most 1 (the reference)")
    if given["mixture"] != 1 and not given["reference_samples"]:
        raise ConfigError("mixture says who gives the answers of the reference: set reference_samples")
    return terms


def _check_revise(revise: Mapping[str, str] | None, options: PairOptions, advantage: Any) -> None:
    """Raises a ConfigError where revisions would be taken for something else."""
    if revise is None:
        return
    if unknown := sorted(revise.keys() - {"by", "request"}):
        raise ConfigError(f"revise.{unknown[0]} is not known; {nearest(unknown[0], ('by', 'request'))}")
    if advantage is not None:
        raise ConfigError(
            "revise rewrites answers, and a policy gradient learns from those that were drawn: leave it out"
        )
    if options.rule in (*WITH_REFERENCE, *READS_GIVEN) and options.rule != "revised":
        raise ConfigError(f"pair.rule: {options.rule} would take revisions for somebody else's answers: use `revised`, "
                          "or a rule that compares all answers to a prompt")  # fmt: skip


def _check_weighing(
    given: Mapping[str, Any], options: PairOptions, weighing: AdvantageOptions | None, terms: Mapping[str, Term]
) -> None:
    """Raises a ConfigError where objective, advantages and critic do not fit together."""
    sampled = [term for term in terms.values() if term.needs_old]
    if weighing is None:
        if sampled:
            raise ConfigError(f"advantage is missing: {sampled[0].name} learns from advantages; say advantage: "
                              "{rule: loo}, or another rule")  # fmt: skip
        if given["critic"] is not None:
            raise ConfigError("nothing reads critic: it is for advantage.rule: gae")
        return
    if not sampled:
        raise ConfigError(f"nothing reads advantage: {', '.join(terms)} is no policy gradient like ppo or rloo")
    if options.rule != "none":
        raise ConfigError(f"pair.rule: {options.rule} makes pairs, and {sampled[0].name} learns from advantages: leave "
                          "it out")  # fmt: skip
    if given["reference_samples"]:
        raise ConfigError("reference_samples are answers of another policy: a policy gradient learns from its own")
    if given["temperature"] == 0:
        raise ConfigError("temperature=0 samples nothing: a policy gradient needs answers that were drawn")
    learns = any("value" in term.needs for term in terms.values())
    if weighing.rule == "gae" and learns == (given["critic"] is not None):
        raise ConfigError(
            "advantage.rule: gae needs one critic: a head on the policy, objective: [ppo, {name: critic, weight: 0.1}],"
            " or a model apart, critic: {model: FOLDER}" + ("; it has both" if learns else "")
        )
    if weighing.rule != "gae" and (learns or given["critic"] is not None):
        raise ConfigError(f"nothing reads a critic under advantage.rule: {weighing.rule}; gae does")


def references_of(terms: Mapping[str, Term], asked: str | None, one: Round) -> dict[str, Any]:
    """`reference` of a round's run: `ref` is the loop's choice, `previous_ref` what the round begins with."""
    names = {name for term in terms.values() for name in term.references}
    names |= {"ref"} if any(term.live for term in terms.values()) else set()
    if not names:
        return {}
    ref = "start" if one.reference == one.start else one.reference
    found = {name: "start" if name == "previous_ref" else ref for name in sorted(names)}
    return {"reference": found if "previous_ref" in found else ref}


def _begin(folder: Path, given: Mapping[str, Any], prompts: Seq[Record], overwrite: bool, resume: str) -> None:
    """The loop's folder with its loop.yaml; refuses one that holds something else."""
    file = folder / "loop.yaml"
    if overwrite and folder.exists():
        if any(folder.iterdir()) and not file.exists():
            raise ConfigError(f"output={folder} holds other things than a loop; they were left alone")
        shutil.rmtree(folder)
    kept = {k: v for k, v in given.items() if v is not None and k not in ("resume", "overwrite", "quiet")}
    now = plain(kept | {"prompts": given["prompts"] if isinstance(given["prompts"], (str, Path)) else "from memory"})
    now["content"] = content(prompts)
    if file.exists():
        if resume == "never":
            raise ConfigError(f"{folder} holds a loop; resume: auto goes on with it, overwrite: true removes it")
        held = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        every = held.keys() | now.keys()
        if not any((folder / "rounds").glob("*/metrics.jsonl")):  # what is only trained with may be put right
            every -= every - inspect.signature(loop).parameters.keys() - {"content", *SAMPLED}
        for name in sorted(every - set(FREE)):
            if _placeless(held.get(name)) != _placeless(now.get(name)):
                also = "prompts, or what stands beside them," if now.get("beside") else "prompts"
                what = f"{also} have changed since" if name == "content" else (
                    f"loop was started with {name}={held.get(name)!r}, and now {name}={now.get(name)!r}"
                )  # fmt: skip
                raise ConfigError(
                    f"{folder}: the {what}: set it back to go on, choose another output, or start again with "
                    "overwrite: true"
                )
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"output={folder} holds other things than a loop; choose another output")
    folder.mkdir(parents=True, exist_ok=True)
    models.write_whole(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def _placeless(value: Any) -> str:
    """A setting without the addresses in it: a server may have moved since."""
    return re.sub(r"https?://[^\s,'\"]+", "URL", repr(value))


def content(records: Iterable[Record]) -> str:
    """Identity of the prompts."""
    digest = hashlib.blake2b(digest_size=10)
    for record in records:
        digest.update(record.id.encode())
    return digest.hexdigest()


def where_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Where models are computed, as the settings have it."""
    return {k: settings[k] for k in ("device", "precision") if k in settings}


def _shape(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a critic apart has of the policy's settings."""
    same = ("batch_size", "max_length", "epochs", "layout", "chat_template", "tokens_per_micro_batch", "save_steps")
    return {k: settings[k] for k in same if k in settings}


def _policy(name: str, settings: Mapping[str, Any], heads: tuple[str, ...] | None = None) -> tuple[models.Policy, Chat]:
    """Who answers, or with `heads` who is asked of answers; loaded as training loads it."""
    code = {k: settings[k] for k in ("trust_remote_code",) if k in settings}
    if heads is not None:
        code |= {"heads": heads} | {k: settings[k] for k in ("layout",) if k in settings}
    policy = models.load(name, **where_of(settings), **code)
    policy.scorer.temperature = 1.0 if heads is None else settings.get("temperature", 1.0)
    chat = Chat(
        policy.tokenizer, max_length=settings.get("max_length", 1024), template=settings.get("chat_template"),
        stop_ids=policy.ends,
    )  # fmt: skip
    return policy, chat


def _chat(name: str, settings: Mapping[str, Any]) -> Chat:
    """How the prompts of a model are rendered that answers elsewhere."""
    tokenizer = models.load_tokenizer(name, **{k: settings[k] for k in ("trust_remote_code",) if k in settings})
    return Chat(tokenizer, max_length=settings.get("max_length", 1024), template=settings.get("chat_template"))


def _written(answers: list[Response] | Failure, count: int) -> list[str]:
    """The answers to a prompt as lines of a ledger; of one that failed, why, as often."""
    if isinstance(answers, Failure):
        return [json.dumps(answers.why)] * count
    return [a.model_dump_json(exclude_defaults=True) for a in answers]


def _that_fit(
    prompts: Seq[Record], chat: Chat, max_new_tokens: int, counts: Counts,
    left: str = "left: a prompt that leaves no room for an answer within max_length",
) -> tuple[list[Record], list[int]]:  # fmt: skip
    """The prompts behind which an answer fits into max_length, and their places by length: what is sampled together is
    about as long."""
    whole = replace(chat, max_length=1 << 30)
    kept, lengths = [], []
    for record in prompts:
        length = len(whole.context_ids(record))
        if length + max_new_tokens > chat.max_length:
            counts.add(left, record)
        else:
            kept.append(record)
            lengths.append(length)
    return kept, np.argsort(lengths, kind="stable").tolist() if kept else []


def _answered(record: Record, answers: Seq[Response], keep_given: bool) -> Record:
    given = {"responses": record.responses, "judgements": record.judgements} if keep_given else {"judgements": ()}
    return Record(**{**dict(record), **given, "responses": (*given.get("responses", ()), *answers)})


def _filled(words: str, policy: str, model: str) -> str:
    return words.replace("{policy}", policy).replace("{model}", model)


def numbers(records: Seq[Record], judges: Seq[str]) -> dict[str, Any]:
    """A round's answers in numbers: how many, how long, how many ended, and each judge's scores."""
    drawn = [a for r in records for a in r.responses if a.sampler is not None]
    lengths = [len(a.token_ids) for a in drawn if a.token_ids]
    found: dict[str, Any] = {
        "prompts": len(records), "answers": len(drawn),
        "tokens": float(np.mean(lengths)) if lengths else None,
        "finished": float(np.mean([a.finish == "stop" for a in drawn])),
        "distinct": len({a.plain_text for a in drawn}) / len(drawn),
    }  # fmt: skip
    said = {by: [j.value for r in records for j in r.judgements if j.by == by and j.response is not None]
            for by in judges}  # fmt: skip
    found["judges"] = {by: {"mean": float(np.mean(v)), "spread": float(np.std(v)), "scores": len(v)}
                       for by, v in said.items() if v}  # fmt: skip
    for by in judges:
        agreement = Agreement()
        for record in records:
            agreement.add(j for j in record.judgements if j.by == by)
        if told := agreement.as_dict():
            found["judges"].setdefault(by, {}).update(told, agreement=agreement.lines()[0])
    return found


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    ended = f"{row['finished']:.0%} of them ended" if row["finished"] < 1 else "all of them ended"
    tokens = f" of {row['tokens']:.1f} tokens" if row["tokens"] is not None else ""
    yield f"  {many(row['answers'], 'answers')}{tokens}, {ended}"
    for by, said in row["judges"].items():
        if "mean" in said:
            yield f"  {by}: mean {said['mean']:.4g}, spread {said['spread']:.4g}"
        if "agreement" in said:
            yield f"  {by}: {said['agreement']}"
    yield f"  {many(row['records'], 'records')} to train on"
    for what, of in row["left"].items():
        yield f"    {what}: {of['count']:,}"


def _first(
    base: str, first: Mapping[str, Any], folder: Path, seed: int, settings: Mapping[str, Any], watcher: Quiet
) -> str:
    """The model that the loop begins with where another run comes first."""
    if "data" not in first:
        raise ConfigError("first: data is missing; write it as {data: FILE, objective: sft}")
    if taken := sorted(first.keys() & {"model", "output"}):
        raise ConfigError(f"first: {taken[0]} is the loop's own; leave it out")
    run = folder / "rounds" / "0"
    if not ((run / "model").exists() and (run / "summary.json").exists()):
        watcher.note("round 0: what comes first")
        shared = ("batch_size", "max_length", "lora", "device", "precision", "layout", "chat_template", "overlong")
        known: dict[str, Any] = {
            "objective": "sft",
            "seed": seed,
            "eval_fraction": 0.0,
            "quiet": not isinstance(watcher, Console),
        }
        done = training.train(
            base, output=str(run), **known | {k: settings[k] for k in shared if k in settings} | dict(first)
        )
        if done.summary["finished"] == "interrupted":
            raise KeyboardInterrupt
    return str(run / "model")


def _tidy(folder: Path, number: int, keep: int | None, needed: set[str], last: bool) -> None:
    """A finished round needs no checkpoints (but the last, where its optimizer is handed on); of models the newest
    stay, and those that are still compared with."""
    for run in (str(number), f"{number}-critic"):
        checkpoints = folder / "rounds" / run / "checkpoints"
        steps = sorted(checkpoints.glob("step-*"), key=lambda p: int(p.name.removeprefix("step-")))
        for gone in steps[:-1] if last else [checkpoints]:
            shutil.rmtree(gone, ignore_errors=True)
    if keep is None:
        return
    for old in range(1, number - keep + 1):
        for run in (str(old), f"{old}-critic"):
            model = folder / "rounds" / run / "model"
            shutil.rmtree(model.with_name("checkpoints"), ignore_errors=True)
            if str(model) not in needed and model.exists() and any(model.iterdir()):
                for file in model.glob("*.safetensors"):
                    file.unlink()


def _end(folder: Path, told: list[dict[str, Any]]) -> None:
    """summary.json, and `model`, the last round's."""
    write_json(folder / "summary.json", {"rounds": told})
    link, target = folder / "model", Path("rounds") / str(told[-1]["round"]) / "model"
    if link.is_symlink() or link.exists():
        link.unlink()
    link.symlink_to(target, target_is_directory=True)
