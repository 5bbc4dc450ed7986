"""Which examples make an update, how are they packed, in which order after a resume?

The examples of an update are chosen first, as a function of (seed, step) alone; packing them into micro-batches by a
token budget comes after and affects speed, never meaning. Everything here is numpy; the engine moves it to a device.

Shapes: N sequences of an update, B examples of a term, T tokens of a packed row, M predicted tokens.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from accord.data.chat import Chat, Sequence
from accord.data.records import Record
from accord.data.views import Branch, Counts, Example, nothing
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


@dataclass
class Corpus:
    """Records as tokens. `items[name]` are the examples of term `name`; `sequences` are shared by all terms."""

    records: list[Record]
    sequences: list[Sequence]
    branches: list[Branch]
    items: dict[str, list[Item]]
    counts: Counts

    @classmethod
    def build(cls, records: list[Record], examples: dict[str, list[Example]], chat: Chat, counts: Counts) -> Corpus:
        """Tokenises what the examples use, once a branch, cutting all responses of a prompt alike.

        Examples that lose a branch (their record was dropped) are left out; `counts` says why.
        """
        wanted: dict[tuple[int, tuple | None], dict[int, Branch]] = {}
        for example in (e for several in examples.values() for e in several):
            for role in example.branches.values():
                for b in (role,) if isinstance(role, Branch) else role:
                    wanted.setdefault((b.record, b.context), {})[b.response] = b
        place: dict[Branch, int] = {}
        sequences: list[Sequence] = []
        branches: list[Branch] = []
        for (record, _), responses in wanted.items():
            ordered = [responses[i] for i in sorted(responses)]
            for branch, sequence in zip(ordered, chat.encode(records[record], ordered, counts) or (), strict=False):
                place[branch] = len(sequences)
                sequences.append(sequence)
                branches.append(branch)
        items = {name: [i for e in several if (i := _item(e, place))] for name, several in examples.items()}
        return cls(records, sequences, branches, items, counts)


def _item(example: Example, place: dict[Branch, int]) -> Item | None:
    roles: dict[str, int | tuple[int, ...]] = {}
    for name, role in example.branches.items():
        branches = (role,) if isinstance(role, Branch) else role
        if any(b not in place for b in branches):
            return None
        roles[name] = place[role] if isinstance(role, Branch) else tuple(place[b] for b in branches)
    return Item(example.kind, roles, example.values, example.record, example.source, example.weight)


# -- the schedule: which examples make an update ----------------------------------------------------------------------


@dataclass(frozen=True)
class Stratum:
    """Examples that share a quota: one term, one source, and one class where a row needs both.

    share: this stratum's part of the batch before rounding; blocks: items of one record, kept together so that a
    prompt is computed once.
    """

    term: str
    label: str
    items: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    share: float


@dataclass(frozen=True)
class TermSpec:
    """What the schedule has to know of a term: its share of the batch (None: by its number of examples), the shares
    of its sources, and whether both classes must stand in every batch."""

    name: str
    share: float | None = None
    source_weights: dict[str, float] = field(default_factory=dict)
    both_classes: bool = False


class Schedule:
    """A stratified order of examples: `batch(step)` is a function of (seed, step).

    Each stratum has the quota share x batch_size, whole numbers by largest remainder carried over the steps, at least
    one; its examples come in permuted passes.

    Args:
        corpus: the examples.
        terms: what is trained on, in order.
        batch_size: examples of one update over all processes.
        seed: of the order.

    Raises:
        ConfigError: a term without examples, one class only where both are needed, a batch smaller than the strata.
    """

    def __init__(self, corpus: Corpus, terms: Seq[TermSpec], batch_size: int, seed: int) -> None:
        self.corpus, self.batch_size, self.seed = corpus, batch_size, seed
        known = {item.source for t in terms for item in corpus.items[t.name]}
        if unknown := {source for t in terms for source in t.source_weights} - known:
            raise ConfigError(f"weights are given for {sorted(unknown)}, but there are {sorted(known)}")
        self.strata = [s for t in terms for s in self._strata(t, self._shares(terms)[t.name])]
        total = sum(s.share for s in self.strata)
        if batch_size < len(self.strata):
            raise ConfigError(
                f"batch_size={batch_size} is less than the {len(self.strata)} strata "
                f"({', '.join(s.label for s in self.strata)}); each needs at least one example a step"
            )
        ideal = np.array([s.share / total * batch_size for s in self.strata])
        ideal = np.maximum(ideal, 1.0)
        spare = ideal - 1.0
        if spare.sum() > 0:
            ideal = 1.0 + spare * ((batch_size - len(self.strata)) / spare.sum())
        self._whole = np.floor(ideal + 1e-9).astype(int)
        self._part = np.maximum(ideal - self._whole, 0.0)
        self._taken = [np.zeros(len(self.strata), int)]  # examples taken before step s
        self._credit = np.zeros(len(self.strata))

    def _shares(self, terms: Seq[TermSpec]) -> dict[str, float]:
        """Part of the batch of each term: what it was given; what is left, by (weighted) numbers of examples."""
        given = sum(t.share for t in terms if t.share is not None)
        free = [t for t in terms if t.share is None]
        if any(t.share is not None and t.share <= 0 for t in terms) or (free and given >= 1):
            raise ConfigError(
                f"shares must be above 0 and leave something for {', '.join(t.name for t in free) or 'all'}"
            )
        sizes = {
            t.name: sum(t.source_weights.get(item.source, 1.0) for item in self.corpus.items[t.name]) for t in free
        }
        left = (1.0 - given) / max(sum(sizes.values()), 1e-9)
        return {t.name: t.share if t.share is not None else left * sizes[t.name] for t in terms}

    def _strata(self, term: TermSpec, share_of_term: float) -> Iterator[Stratum]:
        items = self.corpus.items[term.name]
        if not items:
            why = nothing(self.corpus.counts, len(self.corpus.records))
            raise ConfigError(f"nothing to train {term.name!r} on: {why}. See `accord data check`")
        by_class: dict[tuple[str, bool | None], list[int]] = {}
        for index, item in enumerate(items):
            good = float(item.values["value"]) >= 0.5 if term.both_classes else None  # type: ignore[arg-type]
            by_class.setdefault((item.source, good), []).append(index)
        if term.both_classes and len({good for _, good in by_class}) < 2:
            which = "good" if next(iter(by_class))[1] else "bad"
            raise ConfigError(
                f"{term.name!r} needs good and bad examples, but all {len(items)} are {which}; "
                "set a threshold for ratings, or train with sft or ulma"
            )
        size = sum(term.source_weights.get(source, 1.0) * len(v) for (source, _), v in by_class.items())
        for (source, good), indices in by_class.items():
            blocks: dict[int, list[int]] = {}
            for index in indices:
                blocks.setdefault(items[index].record, []).append(index)
            part = term.source_weights.get(source, 1.0) * len(indices) / size
            share = part * share_of_term
            label = "/".join(str(x) for x in (term.name, source, {True: "good", False: "bad", None: ""}[good]) if x)
            yield Stratum(term.name, label, tuple(indices), tuple(map(tuple, blocks.values())), share)

    def quotas(self, step: int) -> np.ndarray:
        """Examples of each stratum in update `step` (from 0)."""
        return self._until(step + 1) - self._until(step)

    def _until(self, step: int) -> np.ndarray:
        while len(self._taken) <= step:
            extra = np.zeros(len(self.strata), int)
            self._credit += self._part
            for index in np.argsort(-self._credit, kind="stable")[: self.batch_size - int(self._whole.sum())]:
                extra[index] += 1
                self._credit[index] -= 1
            self._taken.append(self._taken[-1] + self._whole + extra)
        return self._taken[step]

    @functools.lru_cache(maxsize=64)  # noqa: B019 - a schedule lives as long as its run
    def _order(self, stratum: int, turn: int) -> np.ndarray:
        here = self.strata[stratum]
        blocks = seeded(self.seed, here.label, turn).permutation(len(here.blocks))
        return np.concatenate([np.asarray(here.blocks[b]) for b in blocks])

    def batch(self, step: int) -> Batch:
        """The update `step`, counted from 0."""
        chosen: dict[str, list[int]] = {}
        starts, quotas = self._until(step), self.quotas(step)
        for index, stratum in enumerate(self.strata):
            n = len(stratum.items)
            for position in range(starts[index], starts[index] + quotas[index]):
                chosen.setdefault(stratum.term, []).append(int(self._order(index, position // n)[position % n]))
        return gather(self.corpus, chosen)

    @property
    def examples(self) -> int:
        return sum(len(s.items) for s in self.strata)

    def steps_for(self, epochs: float) -> int:
        """Updates until every example has been seen `epochs` times on average."""
        return max(1, int(np.ceil(self.examples * epochs / self.batch_size - 1e-9)))


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

    def used(self, name: str, *, silent: bool = True) -> list[int]:
        """The sequences of a term, role by role; without `silent`, those that are only scored are left out."""
        places = (p for role in self.terms[name].roles.values() for p in self._whole(role.ravel()))
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

    The next example is the first one behind (around the end) whose prompt is another; the new sequences are silent.

    Raises:
        ConfigError: every example of the batch has the same prompt.
    """
    term = batch.terms[name]
    own = term.roles["response"]
    contexts = [batch.sequences[i].context.tobytes() for i in own]
    if len(set(contexts)) < 2:
        raise ConfigError(f"{name!r} compares with other prompts' responses: raise batch_size above {len(own)}")
    added = []
    for i in range(len(own)):
        other = next(j % len(own) for j in range(i + 1, i + len(own)) if contexts[j % len(own)] != contexts[i])
        answer = batch.sequences[own[other]]
        added.append(Sequence(batch.sequences[own[i]].context, answer.ids, answer.trained))
    n = len(batch.sequences)
    roles = {**term.roles, "mismatched": np.arange(n, n + len(added))}
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
    units = _merged(units)
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


def _merged(units: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
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
