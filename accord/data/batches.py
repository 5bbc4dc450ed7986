"""Which examples make an update, how are they packed, in which order after a resume?

The examples of an update are chosen first, as a function of (seed, step) alone; packing them into micro-batches by a
token budget comes after and affects speed, never meaning. Everything here is numpy; the engine moves it to a device.

Shapes: N sequences of an update, B examples of a term, T tokens of a packed row, M predicted tokens.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from accord.data.chat import Chat, Sequence
from accord.data.records import Record
from accord.data.store import Column, Making, Store, Table, Tuples, cache_root, spread
from accord.data.views import Branch, Counts, Example, Examples, nothing
from accord.errors import ConfigError


def seeded(*parts: object) -> np.random.Generator:
    """A generator that depends on `parts` alone (seed, step, name, ...), on any machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


# -- the corpus: every branch as tokens, every example pointing at branches -------------------------------------------


@dataclass(frozen=True)
class Item:
    """An example whose branches are places in a corpus: roles maps a role to one place, or several (a group)."""

    kind: str
    roles: dict[str, int | tuple[int, ...]]
    values: dict[str, float | tuple[float, ...]]
    record: int
    source: str
    weight: float

    @property
    def places(self) -> tuple[int, ...]:
        return tuple(p for r in self.roles.values() for p in ((r,) if isinstance(r, int) else r))


@dataclass(frozen=True, eq=False)
class Items(Table[Item]):
    """Items in columns; a branch is a place in the corpus, or -1 where no sequence was made."""

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """The same in columns."""
        if isinstance(items, Items):
            return items
        made = Making()
        for item in items:
            made.add(item, item.roles)
        return cls(**made.done())

    def _row(self, i: int) -> Item:
        roles = {role: column.item(i) for role, column in self.branches.items()}
        values = {name: column.item(i) for name, column in self.values.items()}
        source, weight = self.names[int(self.sources[i])], float(self.weights[i])
        return Item(self.kind, roles, values, int(self.records[i]), source, weight)


class Tokens(Seq[Sequence]):
    """Sequences in a file: four bytes a token, and a context once for the responses that share it.

    Each stands as a head (how far back its context begins, lengths of context and response, flags, number of later
    turns), its ids (those that are not trained as ~id) and, if they are known, the log-probs of who sampled it.
    """

    HEAD = 5

    def __init__(self) -> None:
        cache_root().mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=cache_root())  # noqa: SIM115 - it goes when this object goes
        self._heads = array("q")
        self._end = 0

    def __len__(self) -> int:
        return len(self._heads)

    def __iadd__(self, sequences: Iterable[Sequence]) -> Tokens:
        """Adds sequences; those of one call may share contexts."""
        pieces: list[np.ndarray] = []
        contexts: dict[bytes, int] = {}
        end = self._end
        for first in sequences:
            turns = (first, *first.later)
            for s in turns:
                if s.context.tobytes() not in contexts:
                    contexts[s.context.tobytes()] = end
                    pieces.append(s.context)
                    end += len(s.context)
            self._heads.append(end)
            for s in turns:
                back, flags = end - contexts[s.context.tobytes()], s.cut + 2 * (s.old is not None)
                pieces.append(np.array([back, len(s.context), len(s.ids), flags, len(s.later)]))
                pieces.append(np.where(s.trained, s.ids, ~s.ids))
                pieces += [] if s.old is None else [s.old.astype(np.float32).view(np.int32)]
                end += self.HEAD + len(s.ids) * (1 if s.old is None else 2)
        self._file.seek(4 * self._end)
        self._file.write(np.concatenate(pieces).astype(np.int32).tobytes())
        self._end = end
        return self

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first, at = self._at(self._heads[index])
        later = []
        for _ in range(first[1]):
            turn, at = self._at(at)
            later.append(turn[0])
        return replace(first[0], later=tuple(later))

    def _at(self, head: int) -> tuple[tuple[Sequence, int], int]:
        """The sequence at a place of the file, how many later turns it has, and where the next one stands."""
        back, p, n, flags, later = self._read(head, self.HEAD).tolist()
        at = head + self.HEAD
        raw = self._read(at, n)
        old = self._read(at + n, n).view(np.float32) if flags & 2 else None
        context = self._read(head - back, p)
        found = Sequence(context, np.where(raw < 0, ~raw, raw), raw >= 0, bool(flags & 1), old)
        return (found, later), at + (2 * n if flags & 2 else n)

    def _read(self, at: int, n: int) -> np.ndarray:
        self._file.seek(4 * at)
        return np.frombuffer(self._file.read(4 * n), np.int32)


@dataclass
class Corpus:
    """Records as tokens. `items[name]` are the examples of term `name`; `sequences` are shared by all terms, and
    `tokens` counts what they hold: `context` and `trained`."""

    records: Seq[Record]
    sequences: Seq[Sequence]
    items: dict[str, Seq[Item]]
    counts: Counts
    tokens: Counter[str] = field(default_factory=Counter)

    @classmethod
    def build(
        cls, records: Seq[Record], examples: Mapping[str, Seq[Example]], chat: Chat, counts: Counts,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> Corpus:  # fmt: skip
        """Tokenises what the examples use, once a branch, cutting all responses of a prompt alike.

        Examples that lose a branch (their record was dropped), and pairs of which both sides are the same tokens, are
        left out; `counts` says why.
        """
        encoding = Encoding(records, examples, chat, counts)
        encoding.encode(progress=progress)
        encoding.finish()
        return encoding.corpus


READY, OPEN, LOST = 1, 0, -1  # of an example: it has all its sequences; not yet; it never will


class Encoding:
    """The branches that examples point at, on their way to the sequences of `corpus`.

    They are numbered: the responses of the first record, those of the second, ..., then branches under other contexts.
    `place` [branches] says where in `sequences` each stands: -1 not yet, -2 its record was dropped.
    """

    def __init__(self, records: Seq[Record], examples: Mapping[str, Seq[Example]], chat: Chat, counts: Counts) -> None:
        self.records, self.chat, self.counts = records, chat, counts
        self.sequences: Any = Tokens() if isinstance(records, Store) else []
        self.examples = {name: Examples.of(several) for name, several in examples.items()}
        width = np.zeros(len(records), np.int32)
        for table in self.examples.values():
            for b in table.others:
                width[b.record] = max(width[b.record], b.response + 1)
            for column in table.branches.values():
                flat, owner = _flat(column, table.records)
                np.maximum.at(width, owner[flat >= 0], flat[flat >= 0] + 1)
        self.first = np.concatenate([[0], np.cumsum(width, dtype=np.int64)])  # number of each record's first response
        self.others: dict[Branch, int] = {}
        self.numbers = {name: self._numbered(table) for name, table in self.examples.items()}
        self.place = np.full(self.first[-1] + len(self.others), -1, np.int32)
        self.wanted = np.zeros(len(self.place), bool)
        for items in self.numbers.values():
            for column in items.branches.values():
                self.wanted[_flat(column, items.records)[0]] = True
        self.apart: dict[tuple[int, Any], list[Branch]] = {}  # branches under other contexts, by what is cut together
        for branch in self.others:
            self.apart.setdefault((branch.record, branch.context), []).append(branch)
        self.corpus = Corpus(records, self.sequences, dict(self.numbers), counts)
        self.twins: dict[int, int] = {}  # a branch of the same tokens as another one, to the first of these
        self.told: set[tuple[Any, ...]] = set()  # pairs of twins that were counted

    def _numbered(self, table: Examples) -> Items:
        """The examples with the numbers of their branches."""

        def numbers(column: Column) -> Column:
            flat, owner = _flat(column, table.records)
            found = np.where(flat >= 0, self.first[owner] + flat, flat).astype(np.int32)
            for i in np.flatnonzero(flat < 0):
                found[i] = self._number(table.others[~flat[i]])
            return Tuples(found, column.stops) if isinstance(column, Tuples) else found

        branches = {role: numbers(column) for role, column in table.branches.items()}
        return Items(table.kind, branches, table.values, table.records, table.sources, table.weights, table.names)

    def _number(self, branch: Branch) -> int:
        if branch.context is None:
            return int(self.first[branch.record]) + branch.response
        return self.others.setdefault(branch, int(self.first[-1]) + len(self.others))

    def encode(
        self, numbers: np.ndarray | None = None, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> None:
        """Makes the sequences of these branches (None: of all), and of those that are cut together with them."""
        own = self.place[: self.first[-1]]
        asked = np.flatnonzero(self.wanted[: len(own)] & (own == -1)) if numbers is None else numbers
        asked = asked[(asked < len(own)) & (self.place[asked] == -1)]
        records = np.unique(np.searchsorted(self.first, asked, side="right") - 1)
        for done, r in enumerate(records.tolist(), 1):
            start, stop = self.first[r : r + 2].tolist()
            found = (start + np.flatnonzero(self.wanted[start:stop])).tolist()
            self._encode(r, [Branch(r, number - start) for number in found], found)
            if done % 100 == 0 or done == len(records):
                progress(done, len(records))
        for (r, _), branches in self.apart.items():
            found = [self.others[b] for b in branches]
            if self.place[found[0]] == -1 and (numbers is None or np.isin(found, numbers).any()):
                self._encode(r, branches, found)

    def _encode(self, record: int, branches: list[Branch], numbers: list[int]) -> None:
        """One record's responses under one context."""
        order = sorted(range(len(branches)), key=lambda i: branches[i].response)
        numbers = [numbers[i] for i in order]
        made = self.chat.encode(self.records[record], [branches[i] for i in order], self.counts)
        if made is None:
            self.place[numbers] = -2
            return
        self.place[numbers] = len(self.sequences) + np.arange(len(made))
        self.sequences += made
        known: dict[Any, int] = {}
        for number, sequence in zip(numbers, made, strict=True):
            turns = (sequence, *sequence.later)
            alike = tuple(part.tobytes() for s in turns for part in (s.context, s.ids, s.trained))
            first = known.setdefault(alike, number)
            if first != number:
                self.twins[number] = first
            self.corpus.tokens["context"] += sum(len(s.context) for s in turns)
            self.corpus.tokens["trained"] += sum(int(s.trained.sum()) for s in turns)

    def state(self, name: str, index: np.ndarray | None = None) -> np.ndarray:
        """READY, OPEN or LOST for each example of a term, or for those at `index`; what is lost is counted once."""
        items: Items = self.numbers[name] if index is None else self.numbers[name].take(index)
        worst = np.zeros(len(items), np.int32)
        for column in items.branches.values():
            places = self.place[_flat(column, items.records)[0]]
            if isinstance(column, Tuples):
                places = np.minimum.reduceat(places, column.starts)
            worst = np.minimum(worst, places)
        found = np.where(worst == 0, READY, np.where(worst == -1, OPEN, LOST))
        if self.twins and items.kind == "Pairs":
            sides = np.stack([np.asarray(items.branches[side]) for side in ("chosen", "rejected")], 1)
            for i in np.flatnonzero((found == READY) & np.isin(sides, list(self.twins)).any(1)):
                pair = (name, *sides[i].tolist())
                if len({self.twins.get(number, number) for number in pair[1:]}) == 1:
                    found[i] = LOST
                    if pair not in self.told:
                        about = self.records[int(items.records[i])]
                        self.counts.add("dropped: chosen and rejected are the same tokens", about)
                    self.told.add(pair)
        return found

    def encode_for(
        self, schedule: Schedule, steps: int, progress: Callable[[int, int], None] = lambda done, of: None
    ) -> bool:
        """Makes what the first `steps` updates take; examples that cannot be made give way to the next ones.

        False if that leaves nothing of a stratum: then the schedule is not the one that the whole would have.
        """
        while True:
            missing = []
            for name, index in schedule.asked(steps).items():
                state = self.state(name, index)
                if (state == LOST).any() and not schedule.leave_out(name, index[state == LOST]):
                    return False
                items = self.numbers[name].take(index[state != READY])
                missing += [_flat(column, items.records)[0] for column in items.branches.values()]
            numbers = np.concatenate(missing)
            if not len(numbers):
                return True
            self.encode(numbers, progress)

    def finish(self, *, whole: bool = True) -> None:
        """Points the corpus's examples at what was made. `whole`: everything was, and examples that have not all of
        their sequences are left out."""
        for name, items in self.numbers.items():
            if whole and not (ready := self.state(name) == READY).all():
                items = items.take(np.flatnonzero(ready))
            branches = {
                role: Tuples(self.place[column.flat], column.stops)
                if isinstance(column, Tuples)
                else self.place[column]
                for role, column in items.branches.items()
            }
            self.corpus.items[name] = replace(items, branches=branches)


def _flat(column: Column, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a column one after another, and the record that each belongs to."""
    if isinstance(column, Tuples):
        return column.flat, np.repeat(owner, column.stops - column.starts)
    return column, owner


# -- the schedule: which examples make an update ----------------------------------------------------------------------


@dataclass(frozen=True)
class Stratum:
    """Examples that share a quota: one term, one source, and one class where a row needs both.

    share: this stratum's part of the batch before rounding; starts: where in `items` those of the next record begin,
    which stand side by side so that a prompt is computed once; it closes with the number of items.
    """

    term: str
    source: str
    label: str
    items: np.ndarray
    starts: np.ndarray
    share: float


@dataclass(frozen=True)
class TermSpec:
    """What the schedule has to know of a term: its share of the batch (None: by its number of examples), the shares
    of its sources (against their sizes, or `equal` ones), and whether both classes must stand in every batch."""

    name: str
    share: float | None = None
    source_weights: dict[str, float] = field(default_factory=dict)
    both_classes: bool = False
    equal: bool = False


class Schedule:
    """A stratified order of examples: `batch(step)` is a function of (seed, step).

    Each stratum has the quota share x batch_size, whole numbers by largest remainder carried over the steps, at least
    one; its examples come in permuted passes.

    Args:
        corpus: the examples.
        terms: what is trained on, in order.
        batch_size: examples of one update over all processes.
        seed: of the order.
        in_turn: given, sources come one after another, in the order of their first examples, each over its part (by
            weighted numbers of examples) of as many updates as this says.

    Raises:
        ConfigError: a term without examples, one class only where both are needed, a batch smaller than the strata.
    """

    def __init__(
        self, corpus: Corpus, terms: Seq[TermSpec], batch_size: int, seed: int,
        in_turn: Callable[[Schedule], int] | None = None,
    ) -> None:  # fmt: skip
        self.corpus, self.batch_size, self.seed = corpus, batch_size, seed
        tables = {t.name: Items.of(corpus.items[t.name]) for t in terms}
        known = {items.names[i] for items in tables.values() for i in np.unique(items.sources)}
        if unknown := {source for t in terms for source in t.source_weights} - known:
            raise ConfigError(
                f"weights are given for {sorted(unknown)}, but there is something to train on from {sorted(known)} "
                "alone (are all prompts of a small source held out? eval_fraction: 0 holds out none)"
            )
        shares = self._shares(terms, tables)
        self._places = {t.name: place for place, t in enumerate(terms)}
        self.strata = [s for t in terms for s in self._strata(t, tables[t.name], shares[t.name])]
        self._phases = [(0, self._ideal(np.ones(len(self.strata), bool)))]  # from which update on, how many of each
        self._taken = [np.zeros(len(self.strata), int)]  # examples taken before step s
        self._credit = np.zeros(len(self.strata))
        self._sizes = [len(s.items) for s in self.strata]
        self._lost: dict[str, np.ndarray] = {}
        self._order = functools.lru_cache(2 * len(self.strata))(self._drawn)
        if in_turn is not None:
            self._phases = self._in_turn(in_turn(self))

    def _ideal(self, there: np.ndarray) -> np.ndarray:
        """Examples of each stratum in an update, before rounding, if only these are in it."""
        count = int(there.sum())
        if self.batch_size < count:
            labels = ", ".join(s.label for s, here in zip(self.strata, there, strict=True) if here)
            raise ConfigError(
                f"batch_size={self.batch_size} is less than the {count} strata ({labels}); each needs at least one "
                f"example a step: set batch_size to {count} or more, or train on fewer kinds or sources at once"
            )
        shares = [s.share if here else 0.0 for s, here in zip(self.strata, there, strict=True)]
        ideal = np.where(there, np.maximum(np.array(shares) / sum(shares) * self.batch_size, 1.0), 0.0)
        spare = np.where(there, ideal - 1.0, 0.0)
        if spare.sum() > 0:
            ideal = there + spare * ((self.batch_size - count) / spare.sum())
        return ideal

    def _in_turn(self, steps: int) -> list[tuple[int, np.ndarray]]:
        """A phase for each source, of `steps` updates in all."""
        sources = list(dict.fromkeys(s.source for s in self.strata))
        if steps < len(sources):
            raise ConfigError(f"{steps} updates are fewer than the {len(sources)} sources that come one after another")
        sizes = np.array([sum(s.share for s in self.strata if s.source == source) for source in sources])
        starts = np.round(np.concatenate([[0.0], np.cumsum(sizes)[:-1]]) / sizes.sum() * steps).astype(int)
        for i in range(len(starts)):  # one update at least
            low = starts[i - 1] + 1 if i else 0
            starts[i] = min(max(starts[i], low), steps - len(starts) + i)
        there = [np.array([s.source == source for s in self.strata]) for source in sources]
        return [(int(start), self._ideal(here)) for start, here in zip(starts, there, strict=True)]

    @staticmethod
    def _shares(terms: Seq[TermSpec], tables: Mapping[str, Items]) -> dict[str, float]:
        """Part of the batch of each term: what it was given; what is left, by (weighted) numbers of examples."""
        given = sum(t.share for t in terms if t.share is not None)
        free = [t for t in terms if t.share is None]
        if any(t.share is not None and t.share <= 0 for t in terms) or (free and given >= 1):
            raise ConfigError(
                f"shares must be above 0 and leave something for {', '.join(t.name for t in free) or 'all'}"
            )
        sizes = {}
        for t in free:
            items = tables[t.name]
            weights = [t.source_weights.get(source, 1.0) for source in items.names]
            sizes[t.name] = sum(weights[source] for source in array("i", items.sources.tobytes()))
        left = (1.0 - given) / max(sum(sizes.values()), 1e-9)
        return {t.name: t.share if t.share is not None else left * sizes[t.name] for t in terms}

    def _strata(self, term: TermSpec, items: Items, share_of_term: float) -> Iterator[Stratum]:
        if not items:
            why = nothing(self.corpus.counts, len(self.corpus.records))
            raise ConfigError(f"nothing to train {term.name!r} on: {why}. See `accord data check`")
        good = np.asarray(items.values["value"]) >= 0.5 if term.both_classes else np.zeros(len(items), bool)
        classes = 2 * items.sources + good
        found, first = np.unique(classes, return_index=True)
        found = found[np.argsort(first)].tolist()
        if term.both_classes and len({number % 2 for number in found}) < 2:
            which = "good" if good[0] else "bad"
            raise ConfigError(
                f"{term.name!r} needs good and bad examples, but all {len(items)} are {which}; "
                "set a threshold for ratings, or train with sft or ulma"
            )
        by_class = {(items.names[n // 2], n % 2): np.flatnonzero(classes == n).astype(np.int32) for n in found}
        weights = {source: term.source_weights.get(source, 1.0) for source, _ in by_class}
        if term.equal:
            sizes: Counter[str] = Counter()
            for (source, _), indices in by_class.items():
                sizes[source] += len(indices)
            weights = {source: 1.0 / n for source, n in sizes.items()}
        size = sum(weights[source] * len(v) for (source, _), v in by_class.items())
        for (source, is_good), indices in by_class.items():
            share = weights[source] * len(indices) / size * share_of_term
            name = ("bad", "good")[is_good] if term.both_classes else ""
            label = "/".join(x for x in (term.name, source, name) if x)
            yield Stratum(term.name, source, label, *_by_record(indices, items.records[indices]), share)

    def quotas(self, step: int) -> np.ndarray:
        """Examples of each stratum in update `step` (from 0)."""
        return self._until(step + 1) - self._until(step)

    def _until(self, step: int) -> np.ndarray:
        while len(self._taken) <= step:
            ideal = next(found for start, found in reversed(self._phases) if start < len(self._taken))
            whole = np.floor(ideal + 1e-9).astype(int)
            extra = np.zeros(len(self.strata), int)
            self._credit += np.maximum(ideal - whole, 0.0)
            order = np.argsort(np.where(ideal > 0, -self._credit, np.inf), kind="stable")
            for index in order[: self.batch_size - int(whole.sum())]:
                extra[index] += 1
                self._credit[index] -= 1
            self._taken.append(self._taken[-1] + whole + extra)
        return self._taken[step]

    def _drawn(self, stratum: int, turn: int) -> np.ndarray:
        """The order of a stratum's items in a pass over them."""
        here = self.strata[stratum]
        what = here.label.removeprefix(here.term)  # objectives are compared in the same order of examples
        blocks = seeded(self.seed, self._places[here.term], what, turn).permutation(len(here.starts) - 1)
        alone = len(here.starts) > len(here.items)
        order = here.items[blocks if alone else spread(here.starts[blocks], here.starts[blocks + 1])]
        lost = self._lost.get(here.term)
        return order if lost is None else order[~lost[order]]

    def batch(self, step: int) -> Batch:
        """The update `step`, counted from 0."""
        chosen: dict[str, list[int]] = {}
        starts, quotas = self._until(step), self.quotas(step)
        for index, stratum in enumerate(self.strata):
            n = self._sizes[index]
            for position in range(starts[index], starts[index] + quotas[index]):
                chosen.setdefault(stratum.term, []).append(int(self._order(index, position // n)[position % n]))
        return gather(self.corpus, chosen)

    def asked(self, steps: int) -> dict[str, np.ndarray]:
        """The items of each term that the first `steps` updates take."""
        found: dict[str, list[np.ndarray]] = {}
        for index, (stratum, taken) in enumerate(zip(self.strata, self._until(steps).tolist(), strict=True)):
            found.setdefault(stratum.term, []).append(self._order(index, 0)[:taken])
        return {term: np.concatenate(parts) for term, parts in found.items()}

    def leave_out(self, term: str, items: np.ndarray) -> bool:
        """Leaves out items that turn out to have no sequences: in every order the next ones take their places.

        False if that leaves nothing of a stratum.
        """
        lost = self._lost.setdefault(term, np.zeros(len(self.corpus.items[term]), bool))
        lost[items] = True
        self._order.cache_clear()
        for index, stratum in enumerate(self.strata):
            if stratum.term == term:
                self._sizes[index] = int((~lost[stratum.items]).sum())
        return all(self._sizes)

    @property
    def examples(self) -> int:
        return sum(len(s.items) for s in self.strata)

    def steps_for(self, epochs: float) -> int:
        """Updates until every example has been seen `epochs` times on average."""
        return max(1, int(np.ceil(self.examples * epochs / self.batch_size - 1e-9)))


def _by_record(indices: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items with those of one record side by side, records as they first come; and where each record's begin."""
    if (np.diff(records) < 0).any():
        _, first, inverse = np.unique(records, return_index=True, return_inverse=True)
        order = np.argsort(first[inverse], kind="stable")
        indices, records = indices[order], records[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(records)) + 1, [len(indices)]])
    return indices, starts.astype(np.int32)


# -- a batch: examples and the sequences they point at ----------------------------------------------------------------


@dataclass
class TermBatch:
    """The examples of one term. roles: index tensors into the batch's sequences, [B], or [B, K] padded with -1."""

    kind: str
    roles: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    weight: np.ndarray
    records: np.ndarray
    sources: list[str]

    def __len__(self) -> int:
        return len(self.weight)

    def take(self, index: np.ndarray) -> TermBatch:
        """The examples at `index`, pointing at the same sequences."""
        return TermBatch(
            self.kind,
            {k: v[index] for k, v in self.roles.items()},
            {k: v[index] for k, v in self.values.items()},
            self.weight[index],
            self.records[index],
            [self.sources[i] for i in index],
        )


@dataclass
class Batch:
    """One update: N sequences, each once, and the terms' examples that point at them.

    silent [N] is True for sequences that are only scored (no gradient), such as mismatched pairs of prompt and answer.
    A response whose turns are sequences of their own stands at its first turn, the later ones right behind it.
    """

    sequences: list[Sequence]
    terms: dict[str, TermBatch]
    silent: np.ndarray

    @functools.cached_property
    def parts(self) -> np.ndarray:
        """[N] the sequence that stands for each one's response: itself, or the response's first turn."""
        found = np.arange(len(self.sequences))
        for i, s in enumerate(self.sequences):
            found[i + 1 : i + 1 + len(s.later)] = i
        return found

    def examples(self) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """(term, example, its sequences)"""
        for name, term in self.terms.items():
            for i in range(len(term)):
                yield name, i, tuple(p for r in term.roles.values() for p in self._whole(np.atleast_1d(r[i])))

    def used(self, examples: str | TermBatch, *, silent: bool = True) -> list[int]:
        """The sequences of a term (or of some of its examples), role by role; without `silent`, those that are only
        scored are left out."""
        term = self.terms[examples] if isinstance(examples, str) else examples
        places = (p for role in term.roles.values() for p in self._whole(role.ravel()))
        return [p for p in places if silent or not self.silent[p]]

    def _whole(self, role: np.ndarray) -> Iterator[int]:
        """The sequences of the responses at these places."""
        return (p + k for p in role.tolist() if p >= 0 for k in range(1 + len(self.sequences[p].later)))


def gather(corpus: Corpus, chosen: Mapping[str, Seq[int]]) -> Batch:
    """Examples by term and index as a batch; a branch that several of them use stands in it once."""
    where: dict[int, int] = {}
    sequences: list[Sequence] = []
    terms = {}
    for name, indices in chosen.items():
        items = [corpus.items[name][i] for i in indices]
        for item in items:
            for place in item.places:
                if place < 0:
                    raise IndexError("this example lies beyond the updates that were tokenised")
                if place not in where:
                    where[place] = len(sequences)
                    sequences += [corpus.sequences[place], *corpus.sequences[place].later]
        roles = {
            role: _index([item.roles[role] for item in items], where) for role in (items[0].roles if items else {})
        }
        values = {key: _pad([item.values[key] for item in items]) for key in (items[0].values if items else {})}
        terms[name] = TermBatch(
            items[0].kind if items else "Demos",
            roles,
            values,
            np.array([item.weight for item in items]),
            np.array([item.record for item in items]),
            [item.source for item in items],
        )
    return Batch(sequences, terms, np.zeros(len(sequences), bool))


def _index(role: list, where: dict[int, int]) -> np.ndarray:
    if isinstance(role[0], int):
        return np.array([where[p] for p in role])
    width = max(map(len, role))
    return np.array([[where[p] for p in several] + [-1] * (width - len(several)) for several in role])


def _pad(values: list) -> np.ndarray:
    if not isinstance(values[0], tuple):
        return np.array(values, np.float64)
    width = max(map(len, values))
    return np.array([list(v) + [np.nan] * (width - len(v)) for v in values], np.float64)


def with_mismatched(batch: Batch, name: str) -> Batch:
    """Adds to term `name` the role `mismatched`: each example's prompt followed by the next example's response (its
    first turn, where its turns are sequences of their own).

    The next example is the first one behind (around the end) whose prompt is another; the new sequences are silent, and
    examples of one prompt that come to the same response share one.

    Raises:
        ConfigError: every example of the batch has the same prompt.
    """
    term = batch.terms[name]
    own = term.roles["response"]
    contexts = [batch.sequences[i].context.tobytes() for i in own]
    if len(set(contexts)) < 2:
        raise ConfigError(
            f"{name!r} compares with other prompts' responses, but all {len(own)} examples of an update have the same "
            "prompt: raise batch_size, or bring feedback on more prompts"
        )
    added: list[Sequence] = []
    places: dict[tuple[bytes, int], int] = {}
    index = []
    for i in range(len(own)):
        other = next(j % len(own) for j in range(i + 1, i + len(own)) if contexts[j % len(own)] != contexts[i])
        key = contexts[i], int(own[other])
        if key not in places:
            places[key] = len(batch.sequences) + len(added)
            answer = batch.sequences[own[other]]
            added.append(Sequence(batch.sequences[own[i]].context, answer.ids, answer.trained))
        index.append(places[key])
    roles = {**term.roles, "mismatched": np.array(index)}
    return Batch(
        [*batch.sequences, *added],
        {**batch.terms, name: TermBatch(term.kind, roles, term.values, term.weight, term.records, term.sources)},
        np.concatenate([batch.silent, np.ones(len(added), bool)]),
    )


# -- packing ----------------------------------------------------------------------------------------------------------

LayoutName = Literal["shared", "packed", "padded"]


@dataclass
class Micro:
    """Sequences as one forward pass.

    tokens, positions: [T] of a packed row, or [n, L] padded on the right. trees: (start, context, responses) of the
    packed row. For each predicted token: predictor [M] (flat place of the token before it), target [M] (its id),
    owner [M] (its sequence in the batch). ends [n], opens [n]: flat places of each sequence's last token and of its
    context's last token; sequences [n]: which sequences of the batch these are.
    """

    layout: LayoutName
    tokens: np.ndarray
    positions: np.ndarray
    trees: tuple[tuple[int, int, tuple[int, ...]], ...]
    predictor: np.ndarray
    target: np.ndarray
    owner: np.ndarray
    sequences: np.ndarray
    opens: np.ndarray
    ends: np.ndarray
    lengths: np.ndarray  # [n] tokens of a padded row


def micro_batches(
    sequences: Seq[Sequence],
    units: Iterable[tuple[int, ...]],
    budget: int,
    layout: LayoutName,
) -> list[list[int]]:
    """Groups sequence numbers so that each group costs at most `budget` tokens and no unit is split.

    A unit is the sequences of one example (or a single one); units that share a sequence end up together. Units with
    the same context go together where they fit, since a shared context costs once. A unit above the budget is a
    group of its own. Deterministic.
    """
    units = merged(units)
    cost = (lambda group: padded_cost(sequences, group)) if layout == "padded" else None
    order = sorted(
        units,
        key=lambda u: (-len(sequences[u[0]].context), sequences[u[0]].context.tobytes(), -_tokens(sequences, u), u),
    )
    groups: list[list[int]] = []
    contexts: list[set[bytes]] = []
    used: list[int] = []
    for unit in order:
        own = {sequences[i].context.tobytes() for i in unit}
        lengths = {sequences[i].context.tobytes(): len(sequences[i].context) for i in unit}
        responses = _tokens(sequences, unit)
        best = None
        for g in range(len(groups)):
            if cost is not None:
                extra = cost([*groups[g], *unit]) - used[g]
            elif layout == "shared":
                extra = responses + sum(n for c, n in lengths.items() if c not in contexts[g])
            else:
                extra = responses + sum(len(sequences[i].context) for i in unit)
            if used[g] + extra <= budget and (best is None or extra < best[1]):
                best = (g, extra)
        if best is None:
            groups.append([])
            contexts.append(set())
            used.append(0)
            if cost is not None:
                extra = cost(list(unit))
            elif layout == "shared":
                extra = responses + sum(lengths.values())
            else:
                extra = responses + sum(len(sequences[i].context) for i in unit)
            best = (len(groups) - 1, extra)
        groups[best[0]] += unit
        contexts[best[0]] |= own
        used[best[0]] += best[1]
    return groups


def _tokens(sequences: Seq[Sequence], unit: Iterable[int]) -> int:
    return sum(len(sequences[i].ids) for i in unit)


def padded_cost(sequences: Seq[Sequence], group: Seq[int]) -> int:
    return len(group) * max(len(sequences[i].context) + len(sequences[i].ids) for i in group)


def merged(units: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Units that share a sequence, joined (union-find)."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for unit in units:
        for i in unit:
            parent.setdefault(i, i)
            parent[root(i)] = root(unit[0])
    joined: dict[int, list[int]] = {}
    for i in parent:
        joined.setdefault(root(i), []).append(i)
    return [tuple(v) for v in joined.values()]


def pack(sequences: Seq[Sequence], group: Seq[int], layout: LayoutName, *, keep_last: bool = False) -> Micro:
    """One group as tokens. The last token of a response predicts nothing and is left out, unless `keep_last`
    (heads read the hidden state there)."""
    if layout == "padded":
        return _pack_padded(sequences, group)
    trees: list[list[int]] = []
    by_context: dict[bytes, int] = {}
    for i in group:
        key = sequences[i].context.tobytes()
        if layout == "shared" and key in by_context:
            trees[by_context[key]].append(i)
        else:
            by_context[key] = len(trees)
            trees.append([i])
    tokens, positions, predictor, target, owner, shape, opens, ends, order = [], [], [], [], [], [], [], [], []
    at = 0
    for members in trees:
        context = sequences[members[0]].context
        p = len(context)
        tokens.append(context)
        positions.append(np.arange(p))
        lengths = []
        begin = at + p
        for i in members:
            s = sequences[i]
            n = len(s.ids) if keep_last else len(s.ids) - 1
            tokens.append(s.ids[:n])
            positions.append(np.arange(p, p + n))
            places = np.concatenate([[at + p - 1], np.arange(begin, begin + len(s.ids) - 1)])[s.trained]
            predictor.append(places)
            target.append(s.ids[s.trained])
            owner.append(np.full(len(places), i))
            opens.append(at + p - 1)
            ends.append(begin + n - 1 if n else at + p - 1)
            order.append(i)
            lengths.append(n)
            begin += n
        shape.append((at, p, tuple(lengths)))
        at = begin
    return Micro(
        layout,
        np.concatenate(tokens).astype(np.int64),
        np.concatenate(positions).astype(np.int64),
        tuple(shape),
        np.concatenate(predictor).astype(np.int64),
        np.concatenate(target).astype(np.int64),
        np.concatenate(owner).astype(np.int64),
        np.array(order),
        np.array(opens),
        np.array(ends),
        np.array([], np.int64),
    )


def _pack_padded(sequences: Seq[Sequence], group: Seq[int]) -> Micro:
    lengths = np.array([len(sequences[i].context) + len(sequences[i].ids) for i in group])
    width = int(lengths.max())
    tokens = np.zeros((len(group), width), np.int64)
    predictor, target, owner, opens = [], [], [], []
    for r, i in enumerate(group):
        s = sequences[i]
        p = len(s.context)
        tokens[r, : lengths[r]] = np.concatenate([s.context, s.ids])
        places = (r * width + p - 1 + np.arange(len(s.ids)))[s.trained]
        predictor.append(places)
        target.append(s.ids[s.trained])
        owner.append(np.full(len(places), i))
        opens.append(r * width + p - 1)
    return Micro(
        "padded",
        tokens,
        np.minimum(np.arange(width)[None], lengths[:, None] - 1),
        (),
        np.concatenate(predictor).astype(np.int64),
        np.concatenate(target).astype(np.int64),
        np.concatenate(owner).astype(np.int64),
        np.array(group),
        np.array(opens),
        np.arange(len(group)) * width + lengths - 1,
        lengths,
    )
