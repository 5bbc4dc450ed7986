"""What if each source trains a model of its own?

average   the mean of their weights is the model
ensemble  they stand side by side; the reward of a response is the mean of theirs, or the least (`score: min`)

Each is a run of `sharing: alone` in `sources/NAME` of the run folder, from the same start, with the same prompts held
out. An ensemble costs as many models wherever it is used; `ensemble.json` names them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
import yaml

from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.store import each
from accord.data.views import Counts, split
from accord.engine import models
from accord.errors import ConfigError
from accord.sinks import without_secrets, write_json
from accord.training import parallel, plan, run
from accord.training.inputs import data_names, held_batches, read, seen_sources, source_weights
from accord.training.loop import evaluated
from accord.training.outcome import card, held_out_accuracy, library, plain
from accord.training.sharing import Sharing
from accord.training.start import references_of
from accord.training.state import writing
from accord.training.step import Step
from accord.training.terms import Example
from accord.training.watch import Console, Quiet


def separately(share: Sharing, model: Any, data: Any, given: dict[str, Any]) -> run.Run:
    """Trains a model on each source, and makes one of them or lets them stand side by side.

    Args:
        share: `average` or `ensemble`.
        model, data: as for `train`. given: its other settings; each model trains for `epochs`, or `max_steps`.

    Raises:
        ConfigError: the model is an object in memory, or there is one source only.
    """
    began = time.monotonic()
    if not isinstance(model, str | Path):
        raise ConfigError(
            f"sharing={share.rule}: each source starts from the model anew, so give it as a folder or a "
            "name, not as an object"
        )
    processes = parallel.start()
    watcher = Quiet() if given["quiet"] or not processes.first else Console()
    say = watcher.note
    records, _ = read(data, given["on_bad_record"], Counts())
    share.check({"all": tuple(dict.fromkeys(each(records, "source")))}, source_weights(data))
    sources = list(dict.fromkeys(each(records, "source")))
    options = run.translate({k: v for k, v in given.items() if k not in run.SETTINGS})
    options.pop("translated", None)
    size = options.pop("batch_size", given["batch_size"])
    terms = plan.terms(given["objective"], options, **{k: given[k] for k in ("view", "length", "log_z")})
    label = run.objective_label(terms)
    dry = given["dry_run"]
    folder = Path(given["output"] or "runs")
    if not dry:
        resume, overwrite = given["resume"], given["overwrite"]
        folder = run.run_folder(given["output"], label, processes, resume=resume, overwrite=overwrite)
    members = {source: folder / "sources" / name for source, name in _folders(sources).items()}
    steps, seconds = 0, 0.0
    for source in sources:
        done = members[source] / "summary.json"
        if done.exists() and (members[source] / "model").exists():
            _same(members[source], given)
            steps += json.loads(done.read_text(encoding="utf-8"))["steps"]
            continue
        alone = {"sharing": {"rule": "alone", "source": source}, "sharing_on": None, "overwrite": False}
        finished = run.train(model, data, **given | alone | {"output": str(members[source])})
        if finished.summary["finished"] == "interrupted":
            return finished
        if dry:
            seconds += finished.summary["seconds"]
            continue
        steps += finished.summary["steps"]
    if dry:
        return run.Run(folder, finished.summary | {"seconds": seconds}, finished.policy, records, [])
    counts = Counts()
    held: Seq[Record] = []
    if given["eval_data"] is not None:
        held, _ = read(given["eval_data"], given["on_bad_record"], counts)
    elif given["eval_fraction"]:
        _, held = split(records, given["eval_fraction"], given["seed"])
    scored: list[list[Example]] = []
    values: dict[str, float] = {}
    load = {k: given[k] for k in ("device", "precision", "layout", "trust_remote_code")}
    heads = tuple(dict.fromkeys(h for t in terms.values() for h in t.heads))

    def measured(policy: models.Policy) -> tuple[dict[str, float], list[Example]]:
        """A whole model on what is held out, in every process alike."""
        chat = Chat(
            policy.tokenizer, max_length=given["max_length"], overlong=given["overlong"],
            template=given["chat_template"], stop_ids=policy.ends, closed=policy.reward is not None,
        )  # fmt: skip
        batches = held_batches(terms, held, chat, size, given["seed"], Counts())
        started = {k: str(model) if v == "start" else v for k, v in asked.items()} if asked else "start"
        refs = references_of(
            started, "live" if needed else "cached", None, policy, terms, parallel.Processes(), fresh=False,
            model=model, load=load, say=say,
        )  # fmt: skip
        step = Step(
            policy.scorer, terms, held, None, references=refs, seed=given["seed"],
            budget=run.token_budget(given["tokens_per_micro_batch"], policy.scorer),
            sources=seen_sources(dict.fromkeys(terms, ()), batches),
        )  # fmt: skip
        return evaluated(step, batches) if batches else ({}, [])

    reference = given["reference"]
    needed = {r for t in terms.values() for r in t.references} | (
        {"ref"} if any(t.live for t in terms.values()) else set()
    )
    asked = dict(reference) if isinstance(reference, Mapping) else dict.fromkeys(sorted(needed), reference)
    with writing(folder):
        policy = models.load(members[sources[0]], heads=heads, **load)
        if share.rule == "average":
            mean = {k: v.double() for k, v in policy.scorer.state_dict().items()}
            for source in sources[1:]:
                for k, v in models.load(members[source], heads=heads, **load).scorer.state_dict().items():
                    mean[k] += v.double()
            whole = {k: (v / len(sources)).float() for k, v in mean.items()}
            with torch.no_grad():
                for k, v in policy.scorer.state_dict().items():
                    v.copy_(whole[k])
            values, examples = measured(policy)
        else:
            for source in sources:
                policy = models.load(members[source], heads=heads, **load)
                scored.append(measured(policy)[1])
            examples = together(scored, share.score)
            values = agreement(examples)
        summary: dict[str, Any] = {
            "finished": "done", "steps": steps, "members": {s: str(p.relative_to(folder)) for s, p in members.items()},
            "train": {}, "held_out": values, "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
        summary |= held_out_accuracy(examples, terms, policy.scorer.compute)
        first = dict.fromkeys(("model", "data"))
        resolved = without_secrets(first | {k: v for k, v in given.items() if v is not None and k not in run.GONE} | {
            "model": str(model), "data": data_names(data), "output": str(folder),
            "batch_size": size,
        })  # fmt: skip
        if processes.first:
            body = yaml.safe_dump(plain(resolved), sort_keys=False, allow_unicode=True)
            models.write_whole(folder / "config.yaml", body)
            if share.rule == "average":
                told = [f"the mean of {len(sources)} models, one a source: {', '.join(sources)}"]
                state = parallel.whole_state(policy.scorer)
                text = card(resolved, summary, told, library(policy), policy.reward)
                models.save(policy, folder / "model", state, text, say, policy.reward)
            else:
                listed = [str(p.relative_to(folder) / "model") for p in members.values()]
                write_json(folder / "ensemble.json", {"score": share.score, "members": listed})
            write_json(folder / "summary.json", summary)
    processes.wait()
    watcher.done(folder, summary)
    return run.Run(folder, summary, policy, records, held)


def _folders(sources: Seq[str]) -> dict[str, str]:
    """A folder's name for each source: its own, with a number where two would have the same.

    >>> _folders(["x y", "x-y", "z"])
    {'x y': 'x-y', 'x-y': 'x-y-2', 'z': 'z'}
    """
    found: dict[str, str] = {}
    for source in sources:
        plain_name = "".join(c if c.isalnum() or c in "-_." else "-" for c in source)
        name, count = plain_name, 1
        while name.lower() in {n.lower() for n in found.values()}:
            count += 1
            name = f"{plain_name}-{count}"
        found[source] = name
    return found


FREE = ("output", "sharing", "sharing_on", "overwrite", "resume", "quiet", "device", "layout", "precision", "trackers",
        "tokens_per_micro_batch", "keep_checkpoints", "reference_cache", "model", "data", "dry_run")  # fmt: skip


def _same(member: Path, given: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: this model was trained with other settings than it would be now.
    """
    held = run.settings_of(member)
    for name, value in given.items():
        if (
            name not in FREE
            and value is not None
            and name in held
            and plain({name: value}) != plain({name: held[name]})
        ):
            raise ConfigError(
                f"{member} was trained with {name}={held[name]!r}, and now {name}={value!r}: set it back, choose "
                "another output, or say overwrite: true"
            )


def together(scored: list[list[Example]], score: str) -> list[Example]:
    """The examples with the mean or the least of what each model scored.

    >>> from accord.training.terms import Example
    >>> def one(r): return [Example("t", "r", "s", 0.0, {"chosen": r, "rejected": 1.0}, {}, {})]
    >>> [together([one(3.0), one(1.0)], s)[0].rewards["chosen"] for s in ("mean", "min")]
    [2.0, 1.0]
    """
    found = []
    for same in zip(*scored, strict=True):
        rewards = {k: [e.rewards[k] for e in same] for k in same[0].rewards}
        joint = {k: sum(v) / len(v) if score == "mean" else min(v) for k, v in rewards.items()}
        found.append(Example(same[0].term, same[0].record, same[0].source, float("nan"), joint, {}, same[0].lengths))
    return found


def agreement(examples: list[Example]) -> dict[str, float]:
    """Accuracy and margins of joint rewards on pairs, of all and of each source."""
    pairs = [e for e in examples if {"chosen", "rejected"} <= e.rewards.keys()]
    lots = {"": pairs} | {
        f"sources/{s}/": [e for e in pairs if e.source == s] for s in sorted({e.source for e in pairs})
    }
    found = {}
    for front, several in lots.items():
        margins = [e.rewards["chosen"] - e.rewards["rejected"] for e in several]
        if margins:
            found[f"eval_{front}rewards/margins"] = sum(margins) / len(margins)
            found[f"eval_{front}rewards/accuracies"] = sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)
    return found
