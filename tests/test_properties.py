"""What holds for any input: records, views, batches and schedules, and responses whose turns are sequences apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.data.batches import Batch, Corpus, Item, Schedule, TermSpec, gather, micro_batches, pack, padded_cost
from accord.data.chat import Chat, Sequence
from accord.data.records import Judgement, Message, Record, Response, Sampler, from_table, to_table
from accord.data.views import MADE_FROM, NOUNS, Counts, ViewOptions, view
from accord.training.terms import Leaves
from tests.conftest import CHAT, make_tokenizer
from tests.test_training import assert_alike, make

LAYOUTS = ("shared", "packed", "padded")
words = st.text(max_size=8)  # any code points, lone surrogates left out
numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


# -- records ----------------------------------------------------------------------------------------------------------


@st.composite
def responses(draw) -> Response:
    ids = draw(st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple))
    more: dict = {}
    if ids is not None:
        more = {
            "token_ids": ids,
            "tokenizer": "key",
            "sampling_logprobs": draw(st.none() | st.just(tuple(-0.1 * i for i in range(len(ids))))),
            "trained": draw(st.none() | st.just(tuple(i % 2 == 0 for i in range(len(ids))))),
        }
    turns = (Message(role="assistant", content=draw(words), tool_calls=[{"name": "f", "arguments": {"x": [None]}}]),)
    said = draw(st.sampled_from([{"text": draw(words)}, {"messages": turns}]))
    sampler = draw(
        st.none()
        | st.builds(Sampler, model=words, temperature=st.floats(0, 2, allow_subnormal=False), seed=st.integers(0, 9))
    )
    return Response(**said, **more, finish=draw(st.sampled_from(["stop", "length", "unknown"])), sampler=sampler)


@st.composite
def records(draw) -> Record:
    made = draw(st.lists(responses(), max_size=3))
    judgements = []
    for i in range(len(made)):
        value = draw(numbers)
        scale = draw(st.none() | st.just((value - 1, value + 1.5)))
        judgements.append(
            Judgement(kind="score", response=i, value=value, scale=scale, uncertainty=draw(st.none() | numbers))
        )
        judgements.append(Judgement(kind="label", response=i, value=draw(st.sampled_from([0, 1])), span=(0, 1)))
        if i:
            judgements.append(
                Judgement(kind="preference", pair=(i, 0), value=draw(numbers), margin=True, by=draw(words))
            )
    prompt = draw(words | st.just((Message(role="system", content=draw(words)), Message(role="user", content="x"))))
    tools = draw(st.none() | st.just(({"type": "function", "function": {"name": "f"}},)))
    weight = draw(st.floats(1e-3, 1e3, allow_subnormal=False))
    return Record(prompt=prompt, responses=made, judgements=judgements, tools=tools, source=draw(words), weight=weight)


@settings(max_examples=80, deadline=None)
@given(st.lists(records(), max_size=3))
def test_records_come_back_from_json_and_arrow_and_keep_their_ids(made):
    again = [Record.from_json(r.to_json()) for r in made]
    assert again == made == from_table(to_table(made))
    assert [r.id for r in again] == [r.id for r in made]
    assert [r.prompt_key for r in again] == [r.prompt_key for r in made]
    for r in made:
        assert "\n" not in r.to_json()
        assert r.model_copy(update={"weight": 7.0, "origin": None}).id == r.id  # facts make the id, not their place
        other = Record(**{**dict(r), "source": r.source + "x", "id": ""})
        assert other.id != r.id


# -- views ------------------------------------------------------------------------------------------------------------


@st.composite
def crowds(draw) -> Record:
    """Responses judged by several named judges, each rating and comparing some of them."""
    n = draw(st.integers(2, 4))
    judgements = []
    for by in draw(st.sampled_from(["x", "xy", "xyz"])):
        for i in range(n):
            if draw(st.booleans()):
                value = draw(st.integers(0, 3))
                judgements.append(Judgement(kind="score", response=i, value=value, scale=(0, 3), by=by))
            if draw(st.booleans()):
                judgements.append(Judgement(kind="label", response=i, value=draw(st.integers(0, 1)), by=by))
        pair = draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True))
        value = draw(st.sampled_from([0, 0.25, 0.5, 1]))
        judgements.append(Judgement(kind="preference", pair=tuple(pair), value=value, by=by))
    made = [Response(text=t) for t in "abcd"[:n]]
    source = draw(st.sampled_from(["one", "two"]))
    return Record(prompt=draw(st.sampled_from("pq")), responses=made, judgements=judgements, source=source)


OPTIONS = {
    "threshold": [None, 0.5],
    "ties": ["drop", "half"],
    "several": ["mean", "vote", "agreement"],
    "rankings": ["all", "adjacent", "best_worst"],
    "strengths": ["hard", "given", "scores"],
    "rescale": ["none", "unit", "centred"],
    "duplicates": ["keep", "drop"],
    "max_pairs": [None, 2],
}
options = (
    st.fixed_dictionaries({k: st.sampled_from(v) for k, v in OPTIONS.items()})
    .filter(lambda o: (o["several"], o["strengths"]) != ("agreement", "scores"))
    .map(lambda o: ViewOptions(**o))
)
kinds = st.sampled_from(sorted(MADE_FROM))


def turned(said: Record) -> Record:
    """The same facts, every preference stated from the other side."""
    other = [
        j.model_copy(update={"pair": j.pair[::-1], "value": 1 - j.value}) if j.pair else j for j in said.judgements
    ]
    return said.model_copy(update={"judgements": tuple(other)})


def renumbered(said: Record, order: list[int]) -> Record:
    """The same facts, the responses and the judgements in another order."""
    place = {old: new for new, old in enumerate(order)}
    judgements = [
        j.model_copy(
            update={"pair": (place[j.pair[0]], place[j.pair[1]])} if j.pair else {"response": place[j.response]}
        )
        for j in said.judgements[::-1]
    ]
    return said.model_copy(
        update={"responses": tuple(said.responses[i] for i in order), "judgements": tuple(judgements)}
    )


def told(said: list[Record], example) -> tuple:
    """An example by its texts; a tie has no sides."""
    texts = [r.text for r in said[example.record].responses]
    if example.kind == "Groups":
        score = dict(
            zip([texts[b.response] for b in example.branches["responses"]], example.values["score"], strict=True)
        )
        return tuple(sorted((t, round(v, 9)) for t, v in score.items()))
    sides = tuple(texts[b.response] for b in example.branches.values())
    values = {k: round(v, 9) for k, v in example.values.items() if v == v}
    if values.get("strength") == 0.5:
        return tuple(sorted(sides)), 0.5
    return sides, tuple(sorted(values.items()))


@settings(max_examples=150, deadline=None)
@given(crowds(), st.randoms(use_true_random=False), options, kinds)
def test_no_view_looks_at_how_facts_are_numbered_or_which_side_states_them(said, random, chosen, kind):
    order = list(range(len(said.responses)))
    random.shuffle(order)
    if chosen.max_pairs is not None:
        chosen = replace(chosen, max_pairs=None)  # which pairs are left out does depend on their order
    for other in (renumbered(said, order), turned(said)):
        one, two = Counts(), Counts()
        first, second = view([said], kind, chosen, counts=one), view([other], kind, chosen, counts=two)
        assert Counter(told([said], e) for e in first) == Counter(told([other], e) for e in second)
        side = "pair turned round: preference below one half"  # the one count that tells how a pair was stated
        assert {**one.totals(), side: 0} == {**two.totals(), side: 0}


@settings(max_examples=150, deadline=None)
@given(st.lists(crowds(), max_size=5), options, kinds)
def test_every_example_and_every_record_without_one_is_counted(said, chosen, kind):
    counts = Counts()
    made = view(said, kind, chosen, counts=counts)
    noun = NOUNS[kind]
    assert sum(n for name, n in counts.totals().items() if name.startswith(f"{noun} from ")) == len(made)
    nothing = sum(n for name, n in counts.totals().items() if name.startswith(f"no {noun}: "))
    alone = sum(not view([r], kind, replace(chosen, duplicates="keep", max_pairs=None)) for r in said)
    assert nothing == alone
    for example in made:
        assert example.source == said[example.record].source
        if kind == "Pairs":
            strength = example.values["strength"]
            assert 0.5 <= strength <= 1
            assert strength != 0.5 or chosen.ties == "half"
            assert chosen.strengths != "hard" or strength in (0.5, 1)
    if kind == "Pairs" and chosen.max_pairs:
        prompts = Counter(said[e.record].prompt for e in made)
        assert max(prompts.values(), default=0) <= chosen.max_pairs
    if kind == "Pairs" and chosen.duplicates == "drop":
        sides = [(e.source, said[e.record].prompt, *sorted(map(str, told(said, e)[0]))) for e in made]
        assert len(set(sides)) == len(sides)


@settings(max_examples=80, deadline=None)
@given(crowds())
def test_agreement_is_a_share_of_judges(said):
    judges = len({j.by for j in said.judgements})
    for example in view([said], "Pairs", ViewOptions(several="agreement", ties="half"), feedback={"ratings"}):
        strength = example.values["strength"]
        assert any(strength == pytest.approx(k / 2 / n) for n in range(1, judges + 1) for k in range(n, 2 * n + 1))


# -- batches ----------------------------------------------------------------------------------------------------------


@st.composite
def corpora(draw) -> Corpus:
    """Responses of one or several sequences under few contexts, and pairs and demonstrations of them."""
    sequences = []
    for _ in range(draw(st.integers(2, 7))):
        parts = []
        for _ in range(draw(st.integers(1, 3))):
            context = np.arange(draw(st.integers(1, 3)), dtype=np.int32) + 100
            ids = np.array(draw(st.lists(st.integers(1, 50), min_size=1, max_size=5)), np.int32)
            trained = np.array(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), bool)
            trained[-1] = True
            parts.append(Sequence(context, ids, trained))
        sequences.append(replace(parts[0], later=tuple(parts[1:])))
    place = st.integers(0, len(sequences) - 1)
    two = st.lists(place, min_size=2, max_size=2, unique=True)
    pairs = [
        Item("Pairs", {"chosen": a, "rejected": b}, {"strength": 1.0}, 0, draw(st.sampled_from("st")), 1.0)
        for a, b in draw(st.lists(two, min_size=1, max_size=8))
    ]
    demos = [Item("Demos", {"response": p}, {}, p, "s", 1.0) for p in draw(st.lists(place, min_size=1, max_size=8))]
    return Corpus([], sequences, {"pairs": pairs, "demos": demos}, Counts())


@settings(max_examples=100, deadline=None)
@given(corpora())
def test_a_batch_holds_the_turns_of_each_response_it_points_at_once_and_in_order(corpus):
    batch = gather(corpus, {name: range(len(items)) for name, items in corpus.items.items()})
    assert len({id(s) for s in batch.sequences}) == len(batch.sequences)
    for name, number, places in batch.examples():
        item = corpus.items[name][number]
        wanted = [s for p in item.places for s in (corpus.sequences[p], *corpus.sequences[p].later)]
        assert [id(batch.sequences[p]) for p in places] == [id(s) for s in wanted]
    for name, term in batch.terms.items():
        starts = np.concatenate([r.ravel() for r in term.roles.values()])
        assert (batch.parts[starts] == starts).all()
        assert Counter(batch.parts[batch.used(name)]) == Counter(
            {p: n * (1 + len(batch.sequences[p].later)) for p, n in Counter(starts.tolist()).items()}
        )


@settings(max_examples=100, deadline=None)
@given(corpora(), st.sampled_from(LAYOUTS), st.integers(1, 60))
def test_any_budget_and_layout_gives_every_token_to_the_same_response(corpus, layout, budget):
    batch = gather(corpus, {name: range(len(items)) for name, items in corpus.items.items()})
    units = [places for _, _, places in batch.examples()]
    groups = micro_batches(batch.sequences, units, budget, layout)
    seen: dict[int, list[int]] = {}
    for group in groups:
        micro = pack(batch.sequences, group, layout)
        for owner, target in zip(batch.parts[micro.owner], micro.target, strict=True):
            seen.setdefault(int(owner), []).append(int(target))
        whole = [u for u in units if set(u) <= set(group)]
        assert {i for u in whole for i in u} == set(group)  # no example is split
        cost = padded_cost(batch.sequences, group) if layout == "padded" else pack(
            batch.sequences, group, layout, keep_last=True
        ).tokens.size  # fmt: skip
        assert cost <= budget or linked(whole)
    for start, targets in seen.items():
        first = batch.sequences[start]
        wanted = np.concatenate([s.ids[s.trained] for s in (first, *first.later)])
        assert Counter(targets) == Counter(wanted.tolist())


def linked(units: list[tuple[int, ...]]) -> bool:
    """Whether shared sequences join these examples into one, which nothing may split."""
    reached = set(units[0])
    for _ in units:
        reached |= {i for u in units if reached & set(u) for i in u}
    return reached == {i for u in units for i in u}


@settings(max_examples=60, deadline=None)
@given(corpora(), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_statistics_of_a_response_are_those_of_its_turns_joined(corpus, seed, random):
    batch = gather(corpus, {"demos": range(len(corpus.items["demos"]))})
    order = list(range(len(batch.sequences)))
    random.shuffle(order)  # turns come from the engine in any order
    owner = np.concatenate([np.full(int(batch.sequences[i].trained.sum()), i) for i in order])
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=len(owner)))
    leaves = Leaves({"logp": values}, torch.from_numpy(owner), len(order), {"score": torch.arange(len(order)).double()},
                    torch.from_numpy(batch.parts))  # fmt: skip
    matrix, mask = leaves.matrix("logp")
    for start in batch.terms["demos"].roles["response"].tolist():
        places = [start + k for k in range(1 + len(batch.sequences[start].later))]
        own = torch.cat([values[owner == p] for p in places])
        assert matrix[start][mask[start]].tolist() == own.tolist()  # turn after turn
        assert float(leaves.sums("logp")[start]) == pytest.approx(float(own.sum()))
        assert int(leaves.lengths()[start]) == len(own)
        assert int(leaves.last("score")[start]) == places[-1]


# -- responses whose turns are sequences apart ------------------------------------------------------------------------


def dialogues(n: int = 6) -> list[Record]:
    """Pairs of dialogues, labels and demonstrations of dialogues, of two and three turns."""

    def talk(i: int, end: str) -> Response:
        turns = [("assistant", f"hello {i}"), ("user", "the dog?"), ("assistant", f"lazy {end}")]
        turns += [("user", "and?"), ("assistant", "over the fox" + end)] * (i % 2)
        return Response(messages=tuple(Message(role=r, content=c) for r, c in turns))

    found = []
    for i in range(n):
        both = (talk(i, " brown"), talk(i + 1, ""))
        prefer = (Judgement(kind="preference", pair=(0, 1), value=1.0),)
        found.append(Record(prompt=f"how {i}?", responses=both, judgements=prefer, source="pairs"))
        label = (Judgement(kind="label", response=0, value=float(i % 2)),)
        found.append(Record(prompt=f"who {i}?", responses=both[:1], judgements=label, source="labels"))
        found.append(Record(prompt=f"when {i}?", responses=both[1:], source="demos"))
    return found


def apart(whole: Sequence) -> Sequence:
    """A sequence of several turns as a sequence a turn, each under everything before it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], whole.trained.astype(int), [0]])))
    parts = [
        Sequence(np.concatenate([whole.context, whole.ids[:a]]), whole.ids[a:b], whole.trained[a:b])
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]
    return replace(parts[0], later=tuple(parts[1:]))


@pytest.mark.parametrize("budget", [60, 10_000])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "objective",
    [
        {"pairs": "dpo", "demonstrations": "sft"},
        {"pairs": {"name": "ipo", "length": "mean"}, "demonstrations": {"name": "sft", "weight": 0.5}},
        {"labels": "kto"},  # scores the batch first
    ],
)
def test_a_response_in_sequences_apart_trains_as_the_one_sequence_does(objective, layout, budget):
    made = make(objective, records=dialogues(), layout=layout, budget=budget, batch_size=12)
    whole = made.schedule.batch(0)
    assert all(not s.later for s in whole.sequences)
    if "labels" in objective:  # the mismatched answer of turns apart is the first turn alone: the whole is held to it
        whole = made.step.complete(whole)
    loss, gradient = made.loss(whole), made.gradient(whole)
    made.corpus.sequences[:] = map(apart, made.corpus.sequences)
    split = made.schedule.batch(0)
    assert len(split.sequences) > len(whole.sequences[: int((~whole.silent).sum())])
    if "labels" in objective:
        split = with_silent(split, whole)
    assert made.gradient(split) is not None
    assert made.loss(split) == pytest.approx(loss, rel=1e-5)
    assert_alike(made.gradient(split), gradient)


def with_silent(split: Batch, whole: Batch) -> Batch:
    """The batch with the mismatched sequences of another one."""
    (name,) = split.terms
    added = [whole.sequences[i] for i in np.flatnonzero(whole.silent)]
    n = len(split.sequences)
    term = replace(split.terms[name], roles={**split.terms[name].roles, "mismatched": np.arange(n, n + len(added))})
    silent = np.concatenate([split.silent, np.ones(len(added), bool)])
    return Batch([*split.sequences, *added], {name: term}, silent)


def test_mismatched_answers_of_turns_apart_are_first_turns():
    made = make({"labels": "kto"}, records=dialogues(), batch_size=6)
    made.corpus.sequences[:] = map(apart, made.corpus.sequences)
    batch = made.step.complete(made.schedule.batch(0))
    term = batch.terms["labels"]
    firsts = {batch.sequences[i].ids.tobytes() for i in term.roles["response"]}
    assert {batch.sequences[i].ids.tobytes() for i in term.roles["mismatched"]} <= firsts
    assert all(bool(g.isfinite().all()) for g in made.gradient(batch))


def test_a_corpus_of_a_template_that_rewrites_history_holds_turns_apart():
    rewrites = CHAT.replace("{{ m['content'] }}", "{{ '<think></think>' if loop.last }}{{ m['content'] }}")
    counts, said = Counts(), dialogues()
    corpus = Corpus.build(said, {"pairs": view(said, "Pairs")}, Chat(make_tokenizer(rewrites)), counts)
    why = "a sequence a turn: the template shows earlier turns otherwise than they were said"
    assert counts[why] == len(corpus.items["pairs"]) == 6
    assert sorted({1 + len(s.later) for s in corpus.sequences}) == [2, 3]
    assert len(gather(corpus, {"pairs": [0]}).sequences) == 2 + 3


# -- the schedule -----------------------------------------------------------------------------------------------------


@st.composite
def schedules(draw) -> tuple[Corpus, list[TermSpec], int, int]:
    """Terms of any size and share, from one or two sources."""
    items, specs = {}, []
    names = draw(st.sampled_from(["a", "ab", "abc"]))
    given_share = draw(st.booleans()) and len(names) > 1
    for number, name in enumerate(names):
        sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))
        items[name] = [
            Item("Demos", {"response": 0}, {}, record, source, 1.0)
            for source, n in zip("st", sizes, strict=False) for record in range(n)
        ]  # fmt: skip
        specs.append(TermSpec(name, share=draw(st.floats(0.05, 0.6)) if given_share and number == 0 else None))
    strata = sum(len({i.source for i in several}) for several in items.values())
    one = Sequence(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, bool))
    return (
        Corpus([], [one], items, Counts()),
        specs,
        draw(st.integers(strata, strata + 20)),
        draw(st.integers(0, 9)),
    )


@settings(max_examples=100, deadline=None)
@given(schedules(), st.integers(0, 40))
def test_quotas_are_whole_fill_the_batch_and_never_stray_from_their_shares(made, start):
    corpus, specs, size, seed = made
    schedule = Schedule(corpus, specs, size, seed)
    quotas = np.array([schedule.quotas(s) for s in range(start, start + 30)])
    assert (quotas.sum(1) == size).all()
    assert (quotas >= 1).all()
    assert (quotas.max(0) - quotas.min(0) <= 1).all()  # largest remainder: a quota is one of two neighbours
    taken, ideal = np.array([schedule._until(s) for s in range(1, 31)]), schedule._phases[0][1]
    assert np.abs(taken - np.arange(1, 31)[:, None] * ideal).max() < len(schedule.strata)
    shares = np.array([s.share for s in schedule.strata])
    if (shares / shares.sum() * size > 1).all():  # nothing had to be raised to one
        assert ideal == pytest.approx(shares / shares.sum() * size)


@settings(max_examples=60, deadline=None)
@given(schedules(), st.integers(1, 25))
def test_a_pass_brings_every_example_once_and_a_resumed_schedule_goes_on(made, at):
    corpus, specs, size, seed = made
    schedule, resumed = Schedule(corpus, specs, size, seed), Schedule(corpus, specs, size, seed)

    def drawn(schedule: Schedule, step: int) -> dict[str, list[tuple[int, str]]]:
        batch = schedule.batch(step)
        return {n: list(zip(t.records.tolist(), t.sources, strict=True)) for n, t in batch.terms.items()}

    assert drawn(resumed, at) == drawn(schedule, at)  # a function of the step alone
    for index, stratum in enumerate(schedule.strata):
        seen: list[tuple[int, str]] = []
        source = corpus.items[stratum.term][stratum.items[0]].source
        step = 0
        while schedule._until(step)[index] < 2 * len(stratum.items):
            seen += [e for e in drawn(schedule, step)[stratum.term] if e[1] == source]
            step += 1
        n = len(stratum.items)
        assert len(set(seen[:n])) == len(set(seen[n : 2 * n])) == n
