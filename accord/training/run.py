"""One run from data to an aligned model in its folder: `accord.train(...)` and `accord train` are this function."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from accord.data.batches import Schedule
from accord.data.chat import Chat
from accord.data.records import Record
from accord.data.store import each, taken
from accord.data.views import Counts, split
from accord.engine import models
from accord.engine.heads import REWARDS
from accord.engine.logprobs import Scorer, flush_denormals
from accord.errors import ConfigError, nearest
from accord.monitors.table import Panel, named
from accord.sinks import JsonLines, Tracked, trackers_of, without_secrets, write_json
from accord.training import meta, parallel, plan
from accord.training.inputs import (
    Walk,
    data_facts,
    data_names,
    data_story,
    held_batches,
    held_story,
    leak_checked,
    one_sided,
    planned,
    read,
    referenced,
    seen_sources,
    source_weights,
    sources_of,
    spec,
    view_terms,
)
from accord.training.loop import Loop, LoopOptions
from accord.training.outcome import (
    card,
    keep_objectives,
    library,
    plain,
    precision_name,
    reward_settings,
    settings_of,
    summarise,
    write_config,
)
from accord.training.parallel import Processes
from accord.training.probes import NoProbes, Probes, fresh_answers
from accord.training.rehearsal import rehearse
from accord.training.sets import linear_heads
from accord.training.sharing import Sharing
from accord.training.start import check_start, references_of
from accord.training.state import Checkpoints, Progress, go_on_with, writing
from accord.training.step import Step
from accord.training.terms import Term
from accord.training.watch import Console, Quiet


@dataclass
class Run:
    """What `train` returns: where everything is, and what came out."""

    folder: Path
    summary: dict[str, Any]
    policy: models.Policy
    records: Seq[Record]
    held_out: Seq[Record]

    @property
    def model(self) -> Any:
        """The trained transformers or PEFT model."""
        return self.policy.model


def train(
    model: Any,
    data: Any,
    objective: Any = "dpo",
    *,
    output: str | None = None,
    tokenizer: Any = None,
    eval_data: Any = None,
    eval_fraction: float = 0.1,
    view: dict[str, Any] | None = None,
    length: Literal["sum", "mean"] | None = None,
    log_z: float | str = "one",
    reference: str | dict[str, str] = "start",
    reference_mode: Literal["cached", "live"] = "cached",
    reference_cache: str | None = None,
    max_length: int = 1024,
    overlong: Literal["cut", "drop"] = "cut",
    chat_template: str | None = None,
    batch_size: int = 32,
    tokens_per_micro_batch: int | Literal["auto"] = "auto",
    epochs: float = 1.0,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    learning_rates: dict[str, float] | None = None,
    weight_decay: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.95,
    adam_epsilon: float = 1e-8,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    warmup: float = 0.05,
    max_grad_norm: float | None = 1.0,
    optimizer_from: str | None = None,
    temperature: float = 1.0,
    update: Literal["plain", "extragradient", "pair_normalised"] | dict[str, Any] | None = None,
    sharing: str | dict[str, Any] = "by_size",
    sharing_on: Literal["head", "adapter", "last_layer", "all"] | None = None,
    lora: bool | dict[str, Any] = False,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    layout: Literal["auto", "shared", "packed", "padded"] = "auto",
    gradient_checkpointing: bool = False,
    compile_layers: bool = False,
    load_in_4bit: bool = False,
    freeze_layers: int = 0,
    frozen_states: Literal["live", "cached"] = "live",
    eval_steps: int | None = None,
    save_steps: int | None = None,
    keep_checkpoints: int = 2,
    patience: int | None = None,
    target_kl: float | None = None,
    best_metric: str = "eval_loss",
    save_best: bool = False,
    monitors: str | list[str] = "all",
    probe_every: int | None = 50,
    probe_samples: int = 0,
    on_verdict: Literal["warn", "stop", "nothing"] = "warn",
    resume: Literal["auto", "never"] = "auto",
    overwrite: bool = False,
    dry_run: bool = False,
    on_bad_record: Literal["raise", "skip"] = "raise",
    trackers: str | list[str] | None = None,
    trust_remote_code: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Run:
    """Aligns a model with feedback and writes a run folder.

    Args:
        model: a folder, a run, a hub name, an adapter's folder, `smollm2`, or a transformers model object.
        data: a file, folder, glob or bundled set (`slogans`, `verses`), a list of them, of records, or of
            maps {path, name, weight, columns, layout}; `weight` is the source's share against its size.
        objective: a name (`accord objectives` lists them), a weighted list, or a map from kind of feedback to one.
        output: the run folder; by default the next free runs/NAME-N.
        tokenizer: only with a model object.
        eval_data: held-out data; without it `eval_fraction` of the prompts is held out.
        eval_fraction: share of the prompts that is held out (0 holds nothing out).
        view: how feedback becomes examples, see `accord.data.views.ViewOptions`.
        length: `sum` or `mean` of token log-probs; by default as each objective was published.
        log_z: log of the partition function for point-wise objectives: `one` (0 nats), a number of nats, or `head`.
        reference: `start` (the policy as the run starts), a folder or a run; or a map of these by name, for
            objectives that compare with several.
        reference_mode: `cached` computes its log-probs once; `live` at every step.
        reference_cache: folder for them, in place of the common cache.
        max_length: longest sequence in tokens. overlong: `cut` or `drop` longer ones; both are counted.
        chat_template: a template to use in place of the model's: its text, or a file.
        batch_size: examples of one update over all processes.
        tokens_per_micro_batch: how many tokens are computed at once; affects speed and memory alone.
        epochs: passes over the examples. max_steps: updates; takes precedence.
        learning_rate: peak; by default 1e-6 for preferences, 1e-5 for demonstrations and reward models, twenty times
            that for LoRA.
        learning_rates: for components of their own, like {"head:log_z": 1e-2}.
        weight_decay, adam_beta1, adam_beta2, adam_epsilon: of AdamW.
        schedule: after the warm-up, `cosine`, `linear` or `constant`. warmup: share of the steps with a rising rate.
        max_grad_norm: gradients are clipped to it; null never clips.
        optimizer_from: a run whose optimizer goes on here, moments and count of updates; by default it begins anew.
        temperature: every log-prob is that of logits divided by it: what answers were sampled with, for ratios.
        update: how a step is made: `plain`; `extragradient`, by the gradient of where a step would lead (two passes);
            `pair_normalised`, by gradients of chosen and rejected made equally long; of reward models, a map {way:
            meta, data, rate, groups} (MetaRM); by default as the objective was published.
        sharing: how sources that disagree share a step: `by_size`, `uniform`, `sequential`, `more` (min-norm),
            `group_min` (the worst gets more), `alone`, `average` or `ensemble` (a model for each source); or a map of
            `rule` and its options.
        sharing_on: which gradients decide in `more`: of the reward `head`, the `adapter`, the `last_layer`, or `all`.
        lora: true, or {rank, alpha, dropout, target_modules}: train adapters and leave the weights.
        seed: of the order of examples and everything drawn.
        device, precision, layout: measured and chosen when `auto`, and written to config.yaml.
        gradient_checkpointing: compute layers again in the backward pass and keep less in memory.
        compile_layers: compile norms and feed-forward parts of the layers at their first use: faster on a GPU.
        load_in_4bit: keep the frozen weights under adapters in 4 bits (bitsandbytes; needs a GPU).
        freeze_layers: leave the lowest so many layers, and embeddings, as they are.
        frozen_states: compute what comes out of them in every pass (`live`), or once for all runs (`cached`, on disk).
        eval_steps: evaluate every so many updates (at start and end in any case). save_steps: the same for checkpoints.
        keep_checkpoints: the newest so many stay.
        patience: stop after so many evaluations without a better `best_metric`.
        target_kl: of rollouts: stop when the policy is further from the one that sampled them, nats a token (`kl/old`).
        best_metric: what is compared between evaluations. save_best: model/ holds the best.
        monitors: who watches: `all`, `none`, or names of `accord monitors`.
        probe_every: updates between two looks at what a step does not say; null never looks. probe_samples: fresh
            answers at each look, the first and last of which the report shows (0: none, they take the longest).
        on_verdict: what a monitor's verdict does: `warn`, `stop` or `nothing` (it is in verdicts.jsonl and the report).
        resume: `auto` goes on from the newest checkpoint in `output`; `never` refuses a folder that holds a run.
        overwrite: removes what `output` holds first.
        dry_run: say what would be trained on, for how long and with how much memory; write nothing.
        on_bad_record: `raise` on the first record that cannot be read, or `skip` it and count it.
        trackers: who is told the metrics beside metrics.jsonl: `tensorboard`, `wandb`, `trackio`, `mlflow`, or a list.
        trust_remote_code: lets the model run its own code.
        quiet: prints nothing.
        options: keywords of the objective: `beta`, `tau`, `label_smoothing`, ...

    Returns:
        The run: its folder, summary, and the trained policy.

    Raises:
        ConfigError: a setting that is unknown, unread, contradictory or impossible.
        RecordError: data that cannot be read; file, line and field are named.
        TrainingError: a loss or gradient that is not finite, or a start that is not where it must be.
    """
    given = {k: v for k, v in locals().items() if k not in ("options", "model", "data", "tokenizer")} | options
    check_types(given)
    processes = parallel.start()
    watcher = Quiet() if quiet or not processes.first else Console()
    say = watcher.note
    settings = translate(options)
    batch_size = settings.pop("batch_size", batch_size) if "batch_size" in settings else batch_size
    if "translated" in settings:
        say(settings.pop("translated"))
    terms = plan.terms(objective, settings, view=view, length=length, log_z=log_z)
    watching = named(monitors)
    share = Sharing.of(sharing, sharing_on)
    if isinstance(update, dict):
        meta.check(update)
    if share.separate:
        from accord.training.separate import separately

        return separately(share, model, data, given)
    rows = [row for term in terms.values() for row, _, _ in term.parts]
    if target_kl is not None and all(row.feeds_on != "Rollouts" for row in rows):
        raise ConfigError("nothing reads target_kl: no objective here learns from rollouts")
    if all(row.beside for row in rows):
        say(f"{rows[0].name} aligns nothing alone; it stands beside {rows[0].beside}")
    check_bounds(given | {"batch_size": batch_size})
    if frozen_states == "cached" and processes.world > 1:
        raise ConfigError("frozen_states: cached is for one process; several compute them in every pass: leave it out")
    tracking = trackers_of(trackers)
    if dry_run:
        folder = Path(output or "runs")
    else:
        folder = run_folder(output, objective_label(terms), processes, resume=resume, overwrite=overwrite)
    began = time.monotonic()
    held_settings = settings_of(folder)
    if held_settings:  # what was measured at the start of an unfinished run is used again
        again = {k: v for k, v in held_settings.items() if given.get(k) == "auto"}
        device, precision = again.get("device", device), again.get("precision", precision)
        layout = again.get("layout", layout)
        tokens_per_micro_batch = again.get("tokens_per_micro_batch", tokens_per_micro_batch)

    # data -----------------------------------------------------------------------------------------------------------
    counts = Counts()
    records, told = read(data, on_bad_record, counts, watcher)
    held_records: Seq[Record] = []
    if eval_data is not None:
        held_records, more = read(eval_data, on_bad_record, counts, watcher)
        told += [f"held out: {t}" for t in more]
        records = leak_checked(records, held_records, counts)
        if eval_fraction not in (0, 0.1):
            say(f"nothing reads eval_fraction={eval_fraction}: eval_data is what is held out")
    elif eval_fraction:
        records, held_records = split(records, eval_fraction, seed)
    told = without_secrets(told)
    for line in told:
        say(line)
    if share.source is not None:
        records = taken(records, np.fromiter((s == share.source for s in each(records, "source")), bool, len(records)))
    with watcher.task("examples") as advance:
        examples = view_terms(terms, records, counts, advance)
    share.check(sources_of(examples), source_weights(data))

    # model ----------------------------------------------------------------------------------------------------------
    if not flush_denormals() and choose_cpu(device):
        say("denormal numbers cannot be flushed on this processor: confident policies may train slowly")
    lora_options = lora_of(lora)
    heads = tuple(dict.fromkeys(h for t in terms.values() for h in t.heads))
    torch.manual_seed(seed)
    policy = models.load(
        model, tokenizer, device=device, precision=precision, lora=lora_options, heads=heads, layout=layout,
        gradient_checkpointing=gradient_checkpointing, compile_layers=compile_layers, load_in_4bit=load_in_4bit,
        freeze_layers=freeze_layers, frozen_states=frozen_states, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    scorer = policy.scorer
    context = getattr(scorer.causal.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and max_length > context:
        say(f"max_length={max_length} is more than the {context} tokens that the model was made for: set max_length: "
            f"{context}, unless no record is as long")  # fmt: skip
    scorer.temperature = temperature
    reward = reward_settings(terms, heads, max_length)
    if not any(t.logps for t in terms.values()):
        models.keep_output(scorer)
    for line in policy.told:
        say(line)
    chat = Chat(
        policy.tokenizer, max_length=max_length, overlong=overlong, template=chat_template, stop_ids=policy.ends,
        closed=reward is not None,
    )  # fmt: skip
    say(chat.told)

    def updates(plan_of_batches: Schedule) -> int:
        return max_steps if max_steps is not None else plan_of_batches.steps_for(epochs)

    corpus, plan_of_batches = planned(
        records, examples, chat, counts, [spec(t, data, equal=share.equal) for t in terms.values()], batch_size, seed,
        updates, watcher, in_turn=share.rule == "sequential",
    )  # fmt: skip
    held = held_batches(terms, held_records, chat, batch_size, seed, counts)
    line, lacking = held_story(records, held_records, held)
    told.append(line)
    say(line)
    if lacking and (patience is not None or save_best):
        raise ConfigError(
            f"patience and save_best compare evaluations, and {lacking}: bring more prompts, or eval_data"
        )
    if lacking and (eval_data is not None or eval_fraction or eval_steps):
        say(f"{lacking}: there are no evaluations" + (", and eval_steps is without effect" if eval_steps else ""))
    steps = updates(plan_of_batches)
    budget = min(processes.gather(token_budget(tokens_per_micro_batch, scorer)))
    if tokens_per_micro_batch == "auto" and budget < usual_budget(scorer):
        say(f"micro-batches of {budget:,} tokens: {usual_budget(scorer):,} would fill the memory that is free")
    if learning_rate is None:
        learning_rate = default_rate(terms, lora_options)
    for what, times in counts.totals().items():
        if not what.startswith(("left:", "no ")) and " from " not in what:  # those are in data.json
            say(f"  {what}: {times:,}")
    for term in terms.values():
        n = len(corpus.items[term.name])
        kinds = ", ".join(term.feedback) if term.feedback else "all feedback"
        say(f"{term.name}: {n:,} {term.feeds_on.lower()} from {kinds}")
        if (side := one_sided(term, corpus)) is not None:
            say(f"  all of them are {side}: view: {{threshold: ...}} or {{rescale: unit}} says where good begins")
    say(
        f"{steps} updates of {batch_size} examples; {policy.name} on {scorer.device.type} in "
        f"{str(scorer.compute).removeprefix('torch.')}, prompts {scorer.layout}, "
        f"{sum(p.numel() for _, p in models.trainable(scorer)):,} trained parameters"
    )

    # reference and optimizer ----------------------------------------------------------------------------------------
    checkpoints = Checkpoints(folder / "checkpoints", processes, keep_checkpoints)
    stored = checkpoints.steps()
    if stored and stored[-1] > steps:
        raise ConfigError(f"max_steps={steps}, but the run stands at step {stored[-1]} already")
    # null is a choice where the default is not null
    first = dict.fromkeys(("model", "data", "objective", "output"))  # the order of config.yaml
    chosen = {k: v for k, v in given.items() if v is not None or k in ("max_grad_norm", "probe_every")}
    resolved = without_secrets(first | chosen | {
        "model": str(model) if isinstance(model, (str, Path)) else policy.name,
        "data": data_names(data), "objective": objective, "batch_size": batch_size, "max_steps": steps,
        "tokens_per_micro_batch": budget, "learning_rate": learning_rate, "layout": scorer.layout,
        "precision": precision_name(scorer.compute), "device": scorer.device.type,
        "output": str(folder),
    } | shared_options(terms))  # fmt: skip
    for gone in GONE:
        resolved.pop(gone, None)
    if processes.first:
        story = {"source_weights": source_weights(data)} | data_story(told, counts, corpus, records, held_records)
        if stored:
            check_settings(held_settings, resolved, say)
            check_data(folder / "data.json", story)
    refs = references_of(
        reference, reference_mode, reference_cache, policy, terms, processes, fresh=not stored, model=model,
        load={"device": device, "layout": layout, "precision": precision, "trust_remote_code": trust_remote_code},
        say=say,
    )  # fmt: skip
    if (blueprint := parallel.shard(scorer, processes)) is not None:
        policy.gathered = functools.partial(parallel.unsharded, blueprint, policy.model)
    sources, beyond = sources_of(corpus.items), None
    if isinstance(update, dict):
        answers, _ = read(update["data"], on_bad_record, counts, watcher)
        beyond = meta.Meta.of(update, answers, chat, counts, seed)
        say(f"MetaRM: {len(beyond.answers):,} prompts with several answers each from {update['data']}")
    rule = share.of_step(bool(linear_heads(scorer)), lora_options is not None)
    if line := share.told(sources, rule, [p for _, p in models.trainable(scorer)], choose_cpu(device)):
        say(line)
    groups, rates = parameter_groups(scorer, learning_rate, learning_rates or {}, weight_decay)
    optimizer = torch.optim.AdamW(
        groups, lr=learning_rate, betas=(adam_beta1, adam_beta2), eps=adam_epsilon, fused=scorer.device.type != "mps"
    )
    step = Step(
        scorer, terms, records, optimizer, references=refs, budget=budget, max_grad_norm=max_grad_norm, seed=seed,
        processes=processes, way="meta" if isinstance(update, dict) else update, meta=beyond, rule=rule,
         partition=share.partition, sources=seen_sources(sources, held),
    )  # fmt: skip
    held_step = step.on(held_records)
    walk = Walk(plan_of_batches, steps)
    wanted = referenced(step, itertools.chain(walk, held)) if refs else {}
    if dry_run:
        evaluations = 1 + (steps // eval_steps if eval_steps else 1) if held else 0
        estimate = rehearse(step, walk, wanted, held, evaluations)
        for line in (*estimate.lines(), "a dry run: nothing was written"):
            say(line)
        return Run(folder, {"finished": "dry run"} | estimate.as_dict(), policy, records, held_records)
    parallel.on_first(processes, lambda: (folder / "examples").mkdir(parents=True, exist_ok=True))
    for name, ref in refs.items():
        if ref.mode == "live":
            continue
        with watcher.task("reference log-probs") as advance:
            computed = ref.prepare(wanted[name], advance)
        say(
            f"reference {ref.name!r} ({ref.key[:8]}): {computed:,} log-probs computed, "
            f"{len(wanted[name]) - computed:,} from the cache"
        )

    # training -------------------------------------------------------------------------------------------------------
    progress = Progress(weights={"policy": policy.start} | {name: ref.key for name, ref in refs.items()})
    if stored:
        weights, progress = progress.weights, checkpoints.load(step, stored[-1])
        check_weights(progress.weights, weights)
        say(f"going on from step {progress.step}")
    else:
        if refs:
            progress.start = check_start(step, plan_of_batches.batch(0), policy)
        if optimizer_from is not None:
            go_on_with(step, optimizer_from)
    if processes.first:
        with writing(folder):
            keep_objectives(folder, terms)
            write_config(folder / "config.yaml", resolved, policy, refs)
            write_json(folder / "data.json", story)
    facts = data_facts(terms, corpus, counts) if watching else {}
    facts |= {k: v for k, v in progress.start.items() if watching and k.endswith("logratios/away")}
    probes = NoProbes(facts)
    if watching and probe_every is not None and processes.world == 1:
        probe, of = (held[0], held_records) if held else (plan_of_batches.batch(0), records)
        speaks = probe_samples and any(t.logps for t in terms.values())
        fresh = functools.partial(fresh_answers, policy, chat, of, probe_samples, seed) if speaks else None
        probes = Probes(step, probe, probe_every, of, facts, fresh, folder / "probe.json")
    elif watching and probe_every is not None:
        say("several processes: nothing is probed, and monitors that ask for it say nothing")
    loop = Loop(
        step, plan_of_batches,
        LoopOptions(
            max_steps=steps, learning_rates=tuple(rates), schedule=schedule, warmup=warmup,
            eval_steps=eval_steps or (max(1, steps // 5) if patience is not None or save_best else None),
            save_steps=save_steps, patience=patience, best_metric=best_metric, on_verdict=on_verdict,
            target_kl=math.inf if target_kl is None else target_kl,
        ),
        folder, checkpoints, processes, watcher, held, Panel(watching, terms), held_step, probes,
    )  # fmt: skip
    names = tracking if processes.first else []
    with (
        writing(folder),
        Tracked(folder / "metrics.jsonl", names, resolved, progress.step, say) as loop.metrics,
        watcher.training(steps, progress.step),
    ):
        finished = loop.run(progress)
    if (
        save_best
        and finished.progress.best_step not in (None, finished.progress.step)
        and finished.reason != "interrupted"
    ):
        checkpoints.load(step, int(finished.progress.best_step or 0))
        finished.evaluation, finished.held = loop.evaluate(finished.progress.step, write=False)
        say(f"model/ holds the best weights, of step {finished.progress.best_step}")
    took = time.monotonic() - began
    summary = summarise(finished, terms, corpus, refs, took, scorer.compute, loop.clock.law)
    if (below := scorer.below) is not None:
        say(
            f"frozen layers: {below.computed:,} tokens computed, {below.read:,} from the cache, {below.states.folder} "
            f"({below.states.size / 2**20:,.0f} MiB)"
        )
    if finished.reason == "interrupted":
        say(f"stopped at step {finished.progress.step} and saved; run the same command again to go on")
    state = parallel.whole_state(scorer)
    if processes.first:
        from accord.report.render import write_report

        with writing(folder):
            if finished.reason != "interrupted":
                text = card(resolved, summary, told, library(policy), reward)
                models.save(policy, folder / "model", state, text, say, reward)
            write_json(folder / "summary.json", summary)
            if said := probes.told(functools.partial(chat.tokenizer.decode, skip_special_tokens=True)):
                samples = JsonLines(folder / "samples.jsonl")
                samples.cut(-1)
                samples.append(said)
            write_report(folder)
    processes.wait()
    watcher.done(folder, summary)
    return Run(folder, summary, policy, records, held_records)


def check_types(given: Mapping[str, Any], function: Callable[..., Any] | None = None) -> None:
    """What the command line checks of words and files, for a call of `train` (or another function) from Python.

    Raises:
        ConfigError: a setting has another type, or none of the words that it may have.
    """
    for name, kind in get_type_hints(function or train).items():
        value = given.get(name)
        if value is None or kind is Any or name not in given:
            continue
        try:
            TypeAdapter(kind).validate_python(os.fspath(value) if isinstance(value, Path) else value, strict=True)
        except ValidationError as error:
            why = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
            raise ConfigError(f"{name}={value!r}: {', or '.join(why)}") from None


SETTINGS = frozenset(inspect.signature(train).parameters) - {"options"}


# -- settings ---------------------------------------------------------------------------------------------------------


TRANSLATED = ("per_device_train_batch_size", "gradient_accumulation_steps")
GONE = (*TRANSLATED, "overwrite", "quiet", "resume", "dry_run")  # what config.yaml does not hold


def translate(options: dict[str, Any]) -> dict[str, Any]:
    """TRL's per-device size times accumulation times processes, as `batch_size`."""
    options = dict(options)
    per_device = options.pop("per_device_train_batch_size", None)
    accumulation = options.pop("gradient_accumulation_steps", None)
    if per_device is None and accumulation is None:
        return options
    world = int(os.environ.get("WORLD_SIZE", "1"))
    size = int(per_device or 8) * int(accumulation or 1) * world
    options["batch_size"] = size
    options["translated"] = (
        f"per_device_train_batch_size {per_device or 8} x gradient_accumulation_steps {accumulation or 1} x "
        f"{world} process{'es' if world > 1 else ''} = batch_size {size}"
    )
    return options


def shared_options(terms: Mapping[str, Term]) -> dict[str, Any]:
    """Options of the objectives as they were resolved, where all that have one use the same value."""
    found: dict[str, list[Any]] = {}
    for term in terms.values():
        for _, _, options in term.parts:
            for name, value in options.items():
                found.setdefault(name, []).append(value)
    return {name: values[0] for name, values in found.items() if all(v == values[0] for v in values)}


def check_bounds(given: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: a number out of its bounds, or settings that say nothing together.
    """
    for name, low, high in (
        ("batch_size", 1, math.inf), ("epochs", 1e-9, math.inf), ("max_steps", 1, math.inf),
        ("keep_checkpoints", 1, math.inf), ("eval_steps", 1, math.inf), ("save_steps", 1, math.inf),
        ("patience", 1, math.inf), ("warmup", 0, 1), ("weight_decay", 0, math.inf), ("max_grad_norm", 1e-9, math.inf),
        ("probe_every", 1, math.inf), ("probe_samples", 0, math.inf), ("freeze_layers", 0, math.inf),
        ("temperature", 1e-3, math.inf), ("target_kl", 1e-12, math.inf),
        ("adam_beta1", 0, 1 - 1e-9), ("adam_beta2", 0, 1 - 1e-9), ("adam_epsilon", 0, 1),
    ):  # fmt: skip
        value = given.get(name)
        if value is not None and not low <= value <= high:
            bound = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ConfigError(f"{name}={value} must be {bound}")
    compares = given.get("patience") is not None or given.get("save_best")
    fraction, rate = given.get("eval_fraction", 0.1), given.get("learning_rate")
    if not 0 <= fraction < 1:
        raise ConfigError(f"eval_fraction={fraction} must lie in [0, 1)")
    if compares and given.get("eval_data") is None and not fraction:
        raise ConfigError("patience and save_best compare evaluations: give eval_data, or an eval_fraction above 0")
    if given.get("best_metric", "eval_loss") != "eval_loss" and not compares:
        raise ConfigError(f"nothing reads best_metric={given['best_metric']!r}: set patience or save_best too")
    if given.get("frozen_states") == "cached" and not given.get("freeze_layers"):
        raise ConfigError("nothing reads frozen_states: no layer is frozen; set freeze_layers, or leave it out")
    if rate is not None and not 0 < rate < 1:
        raise ConfigError(f"learning_rate={rate} must lie between 0 and 1, like 1e-6")


def lora_of(lora: bool | dict[str, Any]) -> models.LoraOptions | None:
    """Checked adapter options, or None for full weights."""
    if not lora:
        return None
    given = {} if lora is True else dict(lora)
    known = models.LoraOptions.__dataclass_fields__
    for key in given:
        if key not in known:
            raise ConfigError(f"lora.{key} is not known; {nearest(key, known)}")
    options = models.LoraOptions(**given)
    if isinstance(options.rank, bool) or not isinstance(options.rank, int) or options.rank < 1:
        raise ConfigError(f"lora.rank={options.rank!r} must be a whole number above 0")
    for name, value in (("alpha", options.alpha), ("dropout", options.dropout)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise ConfigError(f"lora.{name}={value!r} must be a number, 0 or more")
    if options.dropout >= 1:
        raise ConfigError(f"lora.dropout={options.dropout} must lie in [0, 1)")
    return options


def default_rate(terms: dict[str, Term], lora: models.LoraOptions | None) -> float:
    """1e-6, or 1e-5 if every term is made of demonstrations or asks for rewards; twenty times that for adapters."""
    faster = all(t.feeds_on == "Demos" or not t.logps for t in terms.values())
    return (1e-5 if faster else 1e-6) * (20 if lora else 1)


def choose_cpu(device: str) -> bool:
    return models.choose_device(device).type == "cpu"  # type: ignore[arg-type]


LEAST_TOKENS = 128  # of a micro-batch: fewer make it slow
ROOM = 0.5  # of the free memory that micro-batches may take; a live reference and other programs want some, too


def usual_budget(scorer: Scorer) -> int:
    """Tokens of a micro-batch where memory is no matter: 16,384 on a GPU, 2,048 on a CPU in bf16 and 768 in float32.

    On a CPU the products of 256 rows are as fast as those of 2,048, and what a token leaves for the backward pass is
    twice as large in float32.
    """
    return 16_384 if scorer.device.type == "cuda" else 768 if scorer.compute == torch.float32 else 2_048


def token_budget(asked: int | str, scorer: Scorer, free: int | None = None) -> int:
    """Tokens of a micro-batch: what the user says; else the usual, or as many as fit.

    What fits: half of the memory that is free beside gradients and two moments of what is trained, over what a token is
    measured to leave (`models.memory_of_a_token`), in steps of 128.

    Args:
        free: bytes, by default those of the device now.
    """
    if asked != "auto":
        if not isinstance(asked, int) or asked < 1:
            raise ConfigError(f"tokens_per_micro_batch={asked!r} must be a number of tokens, or auto")
        return asked
    most = usual_budget(scorer)
    free = models.free_memory(scorer.device) if free is None else free
    if free is None:
        return most
    coming = sum(3 * p.numel() * p.element_size() for p in scorer.parameters() if p.requires_grad)
    room = ROOM * (free - coming - scorer.chunk_bytes)
    each = models.memory_of_a_token(scorer)
    if not each or room >= most * each:
        return most
    return max(LEAST_TOKENS, int(room / each) // LEAST_TOKENS * LEAST_TOKENS)


def parameter_groups(
    scorer: Scorer, rate: float, rates: dict[str, float], decay: float
) -> tuple[list[dict[str, Any]], list[float]]:
    """Optimizer groups: each component with its learning rate; vectors (norms, biases) never decay."""
    groups: dict[tuple[str, bool], list[Any]] = {}
    for name, p in models.trainable(scorer):
        component = (
            f"head:{name.split('.')[1]}" if name.startswith("heads.") else "adapter" if ".lora_" in name else "trunk"
        )
        groups.setdefault((component, p.ndim > 1), []).append(p)
    components = {c for c, _ in groups}
    for key in rates:
        if key not in components:
            raise ConfigError(f"learning_rates: there is no component {key!r}; there are {sorted(components)}")
    # a head starts at zero and is no pretrained weight: unless told otherwise it learns a thousand times faster; one
    # that makes a reward or expects one, a sum over the width of the trunk, or directions in it, ten times, beside
    # adapters as fast as they
    factor = {f"head:{name}": 10 if "trunk" in components else 1 for name in (*REWARDS, "value", "prototypes")}
    own = [rates.get(c, rate * factor.get(c, 1000 if c.startswith("head:") else 1)) for c, _ in groups]
    return [
        {"params": ps, "lr": r, "weight_decay": decay if matrix else 0.0}
        for ((_, matrix), ps), r in zip(groups.items(), own, strict=True)
    ], own


# Settings that may change between a stop and its resume: none of them changes what an update is. Of the data, the
# content is compared.
FREE = (
    "device", "layout", "tokens_per_micro_batch", "reference_cache", "eval_steps", "save_steps",
    "keep_checkpoints", "data", "eval_data", "patience", "on_verdict", "output", "trust_remote_code", "best_metric",
    "monitors", "probe_every", "probe_samples",
    "save_best", "gradient_checkpointing", "compile_layers",
)  # fmt: skip
TOLD = ("max_steps", "epochs")


def check_settings(held: Mapping[str, Any], now: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """An unfinished run goes on as what it was.

    Raises:
        ConfigError: a setting that changes what is trained is another than in the run's config.yaml.
    """
    plain_now = plain(now)
    defaults = {name: p.default for name, p in inspect.signature(train).parameters.items()}
    for name in sorted((held.keys() | plain_now.keys()) - set(FREE)):
        after = plain_now.get(name)
        before = held.get(name, after if after == defaults.get(name) else None)  # a setting that is newer than the run
        if before == after:
            continue
        if name not in TOLD:
            raise ConfigError(
                f"the run in output was started with {name}={before!r}, and now {name}={after!r}: set it back to go "
                "on, choose another output, or start again with overwrite: true"
            )
        say(f"{name} was {before}, and is {after} from here on: the learning rate follows the new schedule")


def check_weights(held: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises:
    ConfigError: the model that an unfinished run was started from, or a reference of it, is another now.
    """
    for name, key in held.items():
        if now.get(name, key) != key:
            what = "model" if name == "policy" else f"reference {name!r}"
            raise ConfigError(
                f"the weights of the {what} are not those that the run was started with (content {key[:8]} then, "
                f"{now[name][:8]} now): put them back to go on, or start again with overwrite: true"
            )


def check_data(path: Path, story: Mapping[str, Any]) -> None:
    """Raises:
    ConfigError: the records are not those that the unfinished run was started with.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(
            f"{path} is damaged or breaks off ({error}), so nothing says which records the run was started with: put "
            "it back, remove it if the data is as it was, or start again with overwrite: true"
        ) from None
    if (before := held.get("source_weights", story["source_weights"])) != story["source_weights"]:
        raise ConfigError(
            f"the run in output was started with source weights {before}, and now they are {story['source_weights']}: "
            "set them back to go on, choose another output, or start again with overwrite: true"
        )
    if held.get("content", story["content"]) != story["content"]:
        raise ConfigError(
            f"the data has changed since the run was started ({held['records']:,} records then, {story['records']:,} "
            "now): put it back to go on, choose another output, or start again with overwrite: true"
        )


def objective_label(terms: dict[str, Term]) -> str:
    return "mixed" if len(terms) > 1 else next(iter(terms))


def run_folder(output: str | None, label: str, processes: Processes, *, resume: str, overwrite: bool) -> Path:
    """The run's folder, made; it never holds half of another run.

    Raises:
        ConfigError: it holds a finished run, or one that may not be resumed.
    """
    import shutil

    if output is None:
        name = "".join(c if c.isalnum() or c in "-_+" else "-" for c in label)
        number = 1
        while (Path("runs") / f"{name}-{number}").exists():
            number += 1
        folder = processes.gather(Path("runs") / f"{name}-{number}")[0]
    else:
        folder = Path(output)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"output={output} is a file, not a folder")
        if overwrite and processes.first:
            known = {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "data.json", "examples"}
            inside = {p.name for p in folder.iterdir()} if folder.exists() else set()
            if inside and not inside & known:
                raise ConfigError(f"output={output} holds other things than a run; they were left alone")
            shutil.rmtree(folder, ignore_errors=True)
        processes.wait()
        done = (folder / "summary.json").exists() and (folder / "model").exists()
        started = (folder / "metrics.jsonl").exists()
        if done:
            ended = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("finished")
            more = (
                ". A monitor ended it (verdicts.jsonl): on_verdict=warn goes past that, monitors=NAMES leaves it out"
            ) if ended == "verdict" else ""  # fmt: skip
            raise ConfigError(f"{folder} holds a finished run; choose another output, or overwrite: true{more}")
        if started and resume == "never":
            raise ConfigError(
                f"{folder} holds an unfinished run; resume: auto goes on with it, overwrite: true removes it"
            )
    above = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"output={folder}: nothing can be written in {above}; choose another output")
    return folder
