"""What does a run learn from? Data by name to records, records to each term's examples, the held-out batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

from accord.data import sources
from accord.data.batches import Batch, Corpus, Schedule, TermSpec, gather, seeded
from accord.data.chat import Chat, Sequence
from accord.data.records import Record
from accord.data.views import Counts, Example
from accord.data.views import view as view_records
from accord.errors import AccordError, ConfigError
from accord.training.step import Step
from accord.training.terms import Term

HELD_AT_MOST = 512


def read(data: Any, on_error: str, counts: Counts) -> tuple[list[Record], list[str]]:
    """Records of everything that `data` names, and one line on each source."""
    if isinstance(data, (str, Path, Mapping)) or (isinstance(data, Seq) and data and isinstance(data[0], Record)):
        data = [data]
    records: list[Record] = []
    told: list[str] = []
    for entry in data:
        if isinstance(entry, Seq) and not isinstance(entry, str):
            records += entry
            told.append(f"{len(entry):,} records from memory")
            continue
        entry = dict(entry) if isinstance(entry, Mapping) else {"path": entry}
        unknown = set(entry) - {"path", "name", "weight", "columns", "layout"}
        if unknown or "path" not in entry:
            raise ConfigError(f"data: an entry is {{path, name, weight, columns, layout}}; got {sorted(entry)}")
        loaded = sources.load(
            entry["path"],
            source=entry.get("name"),
            columns=entry.get("columns"),
            layout=entry.get("layout"),
            on_error=on_error,
        )
        for problem in loaded.problems:
            counts.add(f"skipped: {problem.what}", problem)
        records += loaded.records
        told.append(loaded.told)
    if not records:
        raise AccordError("the data holds no record")
    return records, told


def source_weights(data: Any) -> dict[str, float]:
    """Weights of the sources that were given one."""
    entries = data if isinstance(data, Seq) and not isinstance(data, str) else [data]
    found = {}
    for entry in entries:
        if isinstance(entry, Mapping) and "weight" in entry:
            name = entry.get("name") or sources.source_name(entry["path"])
            found[name] = float(entry["weight"])
            if found[name] <= 0:
                raise ConfigError(f"data: weight of {name!r} must be above 0")
    return found


def data_names(data: Any) -> Any:
    """`data` as it can be written to config.yaml."""
    if isinstance(data, (str, Path)):
        return str(data)
    if isinstance(data, Mapping):
        return {k: str(v) if isinstance(v, Path) else v for k, v in data.items()}
    if isinstance(data, Seq) and data and isinstance(data[0], Record):
        return f"{len(data)} records from memory"
    return [data_names(d) for d in data]


def leak_checked(records: list[Record], held: list[Record], counts: Counts) -> list[Record]:
    """Training records whose prompt is not held out."""
    keys = {r.prompt_key for r in held}
    kept = [r for r in records if r.prompt_key not in keys]
    for r in records:
        if r.prompt_key in keys:
            counts.add("dropped: the prompt is held out", r)
    if not kept:
        raise AccordError("every prompt of data is in eval_data too; nothing is left to train on")
    return kept


def view_terms(terms: dict[str, Term], records: list[Record], counts: Counts) -> dict[str, list[Example]]:
    """What every term is fed with."""
    known = sorted({r.source for r in records})
    found = {}
    for name, term in terms.items():
        if term.sources and (missing := set(term.sources) - set(known)):
            raise ConfigError(f"{name}: no source is called {sorted(missing)}; there are {known}")
        seen = view_records(records, term.feeds_on, term.view, feedback=term.feedback, counts=counts)
        found[name] = [e for e in seen if not term.sources or e.source in term.sources]
    return found


def spec(term: Term, data: Any) -> TermSpec:
    """What the schedule has to know of a term."""
    weights = source_weights(data)
    kept = {k: v for k, v in weights.items() if not term.sources or k in term.sources}
    return TermSpec(term.name, term.share, kept, term.both_classes)


def held_batches(terms: dict[str, Term], records: list[Record], chat: Chat, size: int, seed: int) -> list[Batch]:
    """The held-out examples in fixed batches, at most `HELD_AT_MOST` a term."""
    if not records:
        return []
    counts = Counts()
    found = view_terms(replace_sources(terms), records, counts)
    for name, examples in found.items():
        if len(examples) > HELD_AT_MOST:
            keep = sorted(seeded(seed, "held", name).permutation(len(examples))[:HELD_AT_MOST])
            found[name] = [examples[i] for i in keep]
    corpus = Corpus.build(records, found, chat, counts)
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


def replace_sources(terms: dict[str, Term]) -> dict[str, Term]:
    """The same terms without source filters: held-out data may have other names."""
    return {k: replace(t, sources=None) for k, t in terms.items()}


def walk(schedule: Schedule, steps: int) -> Iterator[Batch]:
    """Every batch of the run, at most once a distinct one."""
    for number in range(steps):
        yield schedule.batch(number)


def referenced(step: Step, batches: Iterable[Batch]) -> dict[str, list[Sequence]]:
    """The sequences of complete batches that are compared with each reference, each once."""
    found: dict[str, dict[bytes, Sequence]] = {}
    for batch in map(step.complete, batches):
        for which, used in step.referenced(batch).items():
            found.setdefault(which, {}).update({batch.sequences[i].key: batch.sequences[i] for i in used})
    return {which: list(unique.values()) for which, unique in found.items()}


def data_story(
    told: list[str], counts: Counts, corpus: Corpus, records: list[Record], held: list[Record]
) -> dict[str, Any]:
    """What was taken, cut and dropped, with examples."""
    sequences = [s for first in corpus.sequences for s in (first, *first.later)]
    return {
        "told": told,
        "records": len(records),
        "held_out": len(held),
        "sequences": len(corpus.sequences),
        "tokens": {
            "context": int(sum(len(s.context) for s in sequences)),
            "trained": int(sum(s.trained.sum() for s in sequences)),
        },
        "examples": {name: len(items) for name, items in corpus.items.items()},
        "decisions": counts.as_dict(),
        "content": content([*records, *held]),
    }


def content(records: Iterable[Record]) -> str:
    """Identity of the records: what a resumed run must find again."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(f"{record.id} {record.weight}".encode())
    return digest.hexdigest()
