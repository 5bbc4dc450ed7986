"""What does a run learn from? Data by name to records, records to each term's examples, the held-out batches."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from accord.data import sources, store
from accord.data.batches import Batch, Corpus, Encoding, Items, Schedule, TermSpec, Tokens, gather, seeded
from accord.data.chat import Chat, Sequence
from accord.data.records import Record
from accord.data.rows import many
from accord.data.store import Store, each, taken
from accord.data.views import Counts, Examples
from accord.data.views import view as view_records
from accord.errors import AccordError, ConfigError
from accord.training.step import Step
from accord.training.terms import Term
from accord.training.watch import Quiet

HELD_AT_MOST = 512
FACTS = 10_000  # pairs that are measured before a run


def read(data: Any, on_error: str, counts: Counts, watcher: Quiet | None = None) -> tuple[Seq[Record], list[str]]:
    """Records of everything that `data` names, and one line on each source; many records are a `Store`."""
    watcher = watcher or Quiet()
    if isinstance(data, (str, Path, Mapping)) or (isinstance(data, Seq) and data and isinstance(data[0], Record)):
        data = [data]
    parts: list[Any] = []  # records, or streams of them
    skipped = Counts()
    named: list[tuple[Any, ...]] = []
    for entry in data:
        if isinstance(entry, Seq) and not isinstance(entry, str):
            parts.append(entry)
            continue
        entry = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        unknown = set(entry) - {"path", "name", "weight", "columns", "layout"}
        if unknown or "path" not in entry:
            raise ConfigError(f"data: an entry is {{path, name, weight, columns, layout}}; got {sorted(entry)}")
        options: dict[str, Any] = {"source": entry.get("name")} | {k: entry.get(k) for k in ("columns", "layout")}
        named.append((str(entry["path"]), *options.values()))
        parts.append(
            sources.stream(
                entry["path"], **options, on_error=on_error, on_problem=lambda p: skipped.add(f"skipped: {p.what}", p)
            )
        )
    called = Counter(
        name
        for stream in parts
        if isinstance(stream, sources.Stream) and stream.source is None
        for name in {part.source for part in stream.found.parts}
    )
    files = [part.file for stream in parts if isinstance(stream, sources.Stream) for part in stream.found.parts]
    key = store.stamp(files, named, on_error) if named and len(named) == len(parts) else None

    def facts() -> dict[str, Any]:
        told = [p.told if isinstance(p, sources.Stream) else f"{many(len(p), 'records')} from memory" for p in parts]
        told += [f"{many(n, 'entries')} of data are called {name!r}: one source" for name, n in called.items() if n > 1]
        return {"told": told, "skipped": skipped.as_dict()}

    records: Seq[Record]
    found = store.opened(key)
    if not named:  # they are in memory as it is
        records = parts[0] if len(parts) == 1 else [*itertools.chain.from_iterable(parts)]
    elif found is not None:
        records = found
    else:
        with watcher.task("reading") as advance:
            records = store.keep(itertools.chain.from_iterable(parts), key, facts, advance)
    if not records:
        raise AccordError("the data holds no record")
    said = found.facts if found is not None else facts()
    counts.recall(said["skipped"])
    if isinstance(records, Store):
        again = "used again while the files stay as they are" if key else "gone when the run ends"
        watcher.note(f"{len(records):,} records are read from {records.folder}, {again}")
    return records, said["told"]


def source_weights(data: Any) -> dict[str, float]:
    """Weights of the sources that were given one; a ConfigError if one source is given two."""
    entries = data if isinstance(data, Seq) and not isinstance(data, str) else [data]
    found: dict[str, float] = {}
    given = set()
    for entry in entries:
        if not isinstance(entry, (str, Path, Mapping)):
            continue
        entry = entry if isinstance(entry, Mapping) else {"path": entry}
        name, weight = entry.get("name") or sources.source_name(entry["path"]), float(entry.get("weight", 1.0))
        given |= {name} if "weight" in entry else set()
        if weight <= 0:
            raise ConfigError(f"data: weight of {name!r} must be above 0")
        if found.setdefault(name, weight) != weight:
            raise ConfigError(
                f"data: two entries are called {name!r}, and a source has one weight, not {found[name]:g} and "
                f"{weight:g}. Give them names of their own, like {{path: {entry['path']}, name: other}}"
            )
    return {name: weight for name, weight in found.items() if name in given}


def data_names(data: Any) -> Any:
    """`data` as it can be written to config.yaml."""
    if isinstance(data, (str, Path)):
        return str(data)
    if isinstance(data, Mapping):
        return {k: str(v) if isinstance(v, Path) else v for k, v in data.items()}
    if isinstance(data, Seq) and data and isinstance(data[0], Record):
        return f"{many(len(data), 'records')} from memory"
    return [data_names(d) for d in data]


def leak_checked(records: Seq[Record], held: Seq[Record], counts: Counts) -> Seq[Record]:
    """Training records whose prompt is not held out."""
    keys = set(each(held, "prompt_key"))
    leaks = np.fromiter((key in keys for key in each(records, "prompt_key")), bool, len(records))
    for place in np.flatnonzero(leaks).tolist():
        counts.add("dropped: the prompt is held out", functools.partial(records.__getitem__, place))
    if leaks.all():
        raise AccordError("every prompt of data is in eval_data too; nothing is left to train on")
    return taken(records, ~leaks)


def view_terms(
    terms: dict[str, Term], records: Seq[Record], counts: Counts,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Examples]:  # fmt: skip
    """What every term is fed with."""
    known = sorted(set(each(records, "source")))
    found = {}
    for name, term in terms.items():
        if term.sources and (missing := set(term.sources) - set(known)):
            raise ConfigError(f"{name}: no source is called {sorted(missing)}; there are {known}")
        seen = view_records(records, term.feeds_on, term.view, feedback=term.feedback, counts=counts, progress=progress)
        if term.sources:
            numbers = [i for i, source in enumerate(seen.names) if source in term.sources]
            seen = seen.take(np.flatnonzero(np.isin(seen.sources, numbers)))
        found[name] = seen
        if term.values_are_probabilities:
            _probabilities(name, seen, records)
        if term.needs_scores:
            _scored(name, seen, records)
    return found


def _probabilities(name: str, examples: Examples, records: Seq[Record]) -> None:
    """Raises a ConfigError if a value that is taken for P(good) is none: 7 of 10 would be as good as 10 of 10."""
    values = np.asarray(examples.values.get("value", []))
    beyond = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(beyond):
        origin = records[int(examples.records[beyond[0]])].origin
        place = f" (the first beyond it: {origin.file}, line {origin.line})" if origin else ""
        low, high = values.min(), values.max()
        digits = max(0, 1 - math.floor(math.log10(high - low or 1)))
        middle = f"{round((low + high) / 2, digits):.10g}"
        raise ConfigError(
            f"{name!r} takes a value for the probability that the response is good, and values here go from "
            f"{low:g} to {high:g}{place}. view: {{threshold: {middle}}} calls {middle} and more good, "
            "view: {rescale: unit} puts ratings on [0, 1]"
        )


def _scored(name: str, examples: Examples, records: Seq[Record]) -> None:
    """Raises a ConfigError if a response of a pair has no score, and the objective reads the gap."""
    gaps = np.asarray(examples.values.get("score_chosen", [])) - np.asarray(examples.values.get("score_rejected", []))
    without = np.flatnonzero(np.isnan(gaps))
    if len(without):
        origin = records[int(examples.records[without[0]])].origin
        place = f" (the first: {origin.file}, line {origin.line})" if origin else ""
        raise ConfigError(
            f"{name!r} reads the scores of both responses, and {len(without):,} of {len(gaps):,} pairs have none{place}"
            ". Bring ratings of both, or take soft_dpo, which reads how strong a preference is"
        )


def spec(term: Term, data: Any, *, equal: bool = False) -> TermSpec:
    """What the schedule has to know of a term; equal: its sources have the same quota."""
    weights = source_weights(data)
    kept = {k: v for k, v in weights.items() if not term.sources or k in term.sources}
    return TermSpec(term.name, term.share, kept, term.both_classes, equal)


def sources_of(items: Mapping[str, Seq[Any]]) -> dict[str, tuple[str, ...]]:
    """Of each term, the sources of its examples (or items), in the order of the data."""
    found = {}
    for name, table in items.items():
        columns = Examples.of(table) if not isinstance(table, Items) else table
        numbers, first = np.unique(columns.sources, return_index=True)
        found[name] = tuple(columns.names[i] for i in numbers[np.argsort(first)])
    return found


def held_batches(
    terms: dict[str, Term], records: Seq[Record], chat: Chat, size: int, seed: int, told: Counts
) -> list[Batch]:
    """The held-out examples in fixed batches, at most `HELD_AT_MOST` a term; what was decided is added to `told`."""
    if not records:
        return []
    counts = Counts()
    found = view_terms(replace_sources(terms), records, counts)
    for name, examples in found.items():
        if len(examples) > HELD_AT_MOST:
            counts.add(f"left: more than {HELD_AT_MOST} examples of {name}", times=len(examples) - HELD_AT_MOST)
            keep = np.sort(seeded(seed, "held", name).permutation(len(examples))[:HELD_AT_MOST])
            found[name] = examples.take(keep)
    corpus = Corpus.build(records, found, chat, counts)
    for what, times in counts.totals().items():
        told.add(f"{what} (held out)", times=times)
    batches = []
    count = max((math.ceil(len(v) / size) for v in corpus.items.values()), default=0)
    for b in range(count):
        chosen = {n: list(range(b, len(v), count)) for n, v in corpus.items.items() if b < len(v)}
        chosen = {
            n: i for n, i in chosen.items() if "mismatched" not in terms[n].needs or _several_prompts(corpus, n, i)
        }
        if chosen:
            batches.append(gather(corpus, chosen))
    return batches


def _several_prompts(corpus: Corpus, name: str, indices: list[int]) -> bool:
    """Whether an objective finds other prompts' responses among these examples."""
    return len({corpus.sequences[p].context.tobytes() for i in indices for p in corpus.items[name][i].places}) > 1


def held_story(records: Seq[Record], held: Seq[Record], batches: Seq[Batch]) -> tuple[str, str]:
    """One line on what is trained on and what is held out, and why nothing of that can be evaluated, if so."""
    examples = sum(len(term) for batch in batches for term in batch.terms.values())
    prompts = len(set(each(held, "prompt_key")))
    line = f"trained on: {many(len(records), 'records')}; held out: "
    line += f"{many(len(held), 'records')} of {many(prompts, 'prompts')}" if held else "none"
    if batches:
        return f"{line}, {many(examples, 'examples')}", ""
    why = f"of the {len(held):,} held-out records none gives an example" if held else "nothing is held out"
    one = "" if held or len(set(each(records, "prompt_key"))) > 1 else ": there is a single prompt"
    return line, why + one


def replace_sources(terms: dict[str, Term]) -> dict[str, Term]:
    """The same terms without source filters: held-out data may have other names."""
    return {k: replace(t, sources=None) for k, t in terms.items()}


def seen_sources(trained: Mapping[str, Seq[str]], held: Seq[Batch]) -> dict[str, tuple[str, ...]]:
    """Of each term, the sources that are trained on or held out."""
    found = {name: dict.fromkeys(several) for name, several in trained.items()}
    for batch in held:
        for name, examples in batch.terms.items():
            found[name] |= dict.fromkeys(examples.sources)
    return {name: tuple(several) for name, several in found.items()}


def planned(
    records: Seq[Record], examples: Mapping[str, Examples], chat: Chat, counts: Counts, terms: Seq[TermSpec],
    batch_size: int, seed: int, steps: Callable[[Schedule], int], watcher: Quiet | None = None,
    *, in_turn: bool = False,
) -> tuple[Corpus, Schedule]:  # fmt: skip
    """The corpus of a run and its order.

    Everything is tokenised, so that examples that come to nothing are known before the order is drawn. But of a store
    of which `steps` updates take less than half, only what they take is: the order is that of all examples, and the
    next ones take the places of those that come to nothing. in_turn: one source after another.
    """
    watcher = watcher or Quiet()
    order = steps if in_turn else None
    encoding = Encoding(records, examples, chat, counts)
    with watcher.task("tokenising") as advance:
        if isinstance(records, Store):
            schedule = Schedule(encoding.corpus, terms, batch_size, seed, order)
            asked = steps(schedule) * batch_size
            if 2 * asked < schedule.examples:
                watcher.note(f"{asked:,} of {schedule.examples:,} examples are asked for: only they are tokenised")
                if encoding.encode_for(schedule, steps(schedule), advance):
                    encoding.finish(whole=False)
                    return encoding.corpus, schedule
        encoding.encode(progress=advance)
    encoding.finish()
    return encoding.corpus, Schedule(encoding.corpus, terms, batch_size, seed, order)


class Walk(Seq[Batch]):
    """Every batch of the run, made when it is looked at."""

    def __init__(self, schedule: Schedule, steps: int) -> None:
        self.schedule, self.steps = schedule, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: Any) -> Any:
        numbers = range(self.steps)[index]
        return [*map(self.schedule.batch, numbers)] if isinstance(index, slice) else self.schedule.batch(numbers)


def referenced(step: Step, batches: Iterable[Batch]) -> dict[str, Seq[Sequence]]:
    """The sequences of complete batches that are compared with each reference, each once."""
    found: dict[str, Any] = {}
    known: dict[str, set[bytes]] = {}
    for batch in map(step.complete, batches):
        for which, used in step.referenced(batch).items():
            if which not in found:
                found[which], known[which] = Tokens() if isinstance(step.records, Store) else [], set()
            for sequence in (batch.sequences[i] for i in used):
                if (key := sequence.key) not in known[which]:
                    known[which].add(key)
                    found[which] += [replace(sequence, later=())]
    return found


def one_sided(term: Term, corpus: Corpus) -> str | None:
    """`good` or `bad` if ratings that a row parts at a threshold all lie on one side of it."""
    at = next((o["threshold"] for row, _, o in term.parts if "threshold" in o and row.feeds_on == "Points"), None)
    if at is None or term.feeds_on != "Points" or term.feedback == ("demonstrations",):
        return None
    items = corpus.items[term.name]
    values = items.values["value"] if isinstance(items, Items) else [i.values["value"] for i in items]
    good = np.asarray(values, np.float64) >= at
    return None if good.any() and not good.all() else "good" if good.all() else "bad"


def data_facts(terms: Mapping[str, Term], corpus: Corpus, counts: Counts) -> dict[str, float]:
    """Numbers of the pairs of each term, for monitors: how many there are; of them (or of `FACTS` of them, spread over
    all; of a store, those that were tokenised) how many have the longer or the shorter answer chosen; what was left
    out as a duplicate or a contradiction."""
    found: dict[str, float] = {}
    left = counts.totals()
    for name, term in terms.items():
        items = corpus.items[name]
        if term.feeds_on != "Pairs" or not len(items):
            continue
        longer = shorter = 0
        for i in np.unique(np.linspace(0, len(items) - 1, min(len(items), FACTS)).astype(int)).tolist():
            chosen, rejected = (items[i].roles[side] for side in ("chosen", "rejected"))
            if isinstance(chosen, int) and isinstance(rejected, int) and min(chosen, rejected) >= 0:
                more = len(corpus.sequences[chosen].ids) - len(corpus.sequences[rejected].ids)
                longer, shorter = longer + (more > 0), shorter + (more < 0)
        own = {"pairs": len(items), "longer": longer, "shorter": shorter}
        own |= {"duplicates": left.get("duplicate pair dropped", 0)}
        own |= {"contradictions": sum(n for what, n in left.items() if what.startswith("contradiction: the same pair"))}
        found |= {(f"{name}/" if len(terms) > 1 else "") + f"data/{k}": float(v) for k, v in own.items()}
    return found


def data_story(
    told: list[str], counts: Counts, corpus: Corpus, records: Seq[Record], held: Seq[Record]
) -> dict[str, Any]:
    """What was taken, cut and dropped, with examples."""
    return {
        "told": told,
        "records": len(records),
        "held_out": len(held),
        "sequences": len(corpus.sequences),
        "tokens": {name: corpus.tokens[name] for name in ("context", "trained")},
        "examples": {name: len(items) for name, items in corpus.items.items()},
        "decisions": counts.as_dict(),
        "content": content(records, held),
    }


def content(*sides: Seq[Record]) -> str:
    """Identity of the records: what a resumed run must find again."""
    digest = hashlib.blake2b(digest_size=16)
    for records in sides:
        for name, weight in zip(each(records, "id"), each(records, "weight"), strict=True):
            digest.update(f"{name} {weight}".encode())
    return digest.hexdigest()
