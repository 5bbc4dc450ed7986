"""Many records on a small machine: a store is the list that it stands for, and a run over it is the same run."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import accord
from accord.data import store
from accord.data.batches import Batch, Corpus, Item, Items, Schedule, TermSpec, Tokens, gather, seeded
from accord.data.chat import Chat, Sequence
from accord.data.records import Message, Record
from accord.data.store import Store
from accord.data.views import MADE_FROM, Branch, Counts, Example, Examples, ViewOptions, split, view
from accord.errors import RecordError
from accord.training import inputs, plan
from accord.training.inputs import content, leak_checked, planned, read, spec, view_terms
from accord.training.step import Step
from tests.conftest import make_tokenizer, mixed_records, pair_records

MIXED = {
    "pairs": "dpo",
    "labels": {"name": "kto", "weight": 0.5},
    "demonstrations": "sft",
    "rankings": "infonca",
}


def labelled(n: int) -> list[Record]:
    return [
        Record(
            prompt=f"label {i // 2}",
            responses=[{"text": f"the fox {i}"}],
            judgements=[{"kind": "label", "response": 0, "value": float(i % 3 == 0)}],
            source="labels",
        )
        for i in range(n)
    ]


def everything() -> list[Record]:
    """All kinds of feedback, in no order, with pairs that come again, in both directions, and prompts of several."""
    again = [r.model_copy(update={"weight": 2.0}) for r in pair_records(6, "pairs")]
    turned = [
        Record(prompt=r.prompt, responses=r.responses[::-1], judgements=r.judgements, source="pairs")
        for r in pair_records(9, "pairs")[6:]
    ]
    found = [*mixed_records(12), *labelled(11), *again, *turned]
    random.Random(0).shuffle(found)
    return found


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "all.jsonl"
    path.write_text("".join(r.to_json() + "\n" for r in everything()), encoding="utf-8")
    return path


@pytest.fixture
def both(file, monkeypatch) -> tuple[list[Record], Store]:
    """The records of one file as a list, and as a store of many blocks."""
    few, _ = read(str(file), "raise", Counts())
    monkeypatch.setattr(store, "KEPT", 5)
    monkeypatch.setattr(store, "BLOCK", 7)
    many, _ = read(str(file), "raise", Counts())
    assert isinstance(few, list)
    assert isinstance(many, Store)
    return few, many


# -- a store is a list ------------------------------------------------------------------------------------------------


def test_a_store_is_the_list_of_its_records(both):
    few, many = both
    assert len(many) == len(few)
    assert list(many) == few
    assert [many[i] for i in range(-len(few), len(few))] == few + few
    assert many[3:17:4] == few[3:17:4]
    assert many[5].origin == few[5].origin
    for name in ("id", "source", "weight", "prompt_key"):
        assert list(store.each(many, name)) == [getattr(r, name) for r in few]
    with pytest.raises(IndexError):
        many[len(few)]
    chosen = np.arange(len(few)) % 3 == 1
    part, again = store.taken(many, chosen), store.taken(store.taken(many, chosen), np.arange(chosen.sum()) % 2 == 0)
    assert list(part) == store.taken(few, chosen) == few[1::3]
    assert [part[i] for i in range(len(part))] == few[1::3]
    assert list(again) == few[1::6]
    assert list(store.each(again, "id")) == [r.id for r in few[1::6]]


def test_a_store_is_found_again_while_the_files_are_the_same(file, monkeypatch):
    monkeypatch.setattr(store, "KEPT", 5)
    first, told = read(str(file), "raise", Counts())
    written = os.stat(first.folder / "records.arrow").st_mtime_ns
    again, told_again = read(str(file), "raise", Counts())
    assert (again.folder, told_again) == (first.folder, told)
    assert os.stat(again.folder / "records.arrow").st_mtime_ns == written
    assert read(str(file), "skip", Counts())[0].folder != first.folder
    assert read({"path": str(file), "name": "mine"}, "raise", Counts())[0].folder != first.folder
    with file.open("a") as out:
        out.write(Record(prompt="one more").to_json() + "\n")
    more, _ = read(str(file), "raise", Counts())
    assert more.folder != first.folder
    assert more[-1].prompt == "one more"


def test_what_was_skipped_is_counted_when_a_store_is_found_again(file, monkeypatch):
    file.write_text(file.read_text() + '{"prompt": 3}\n' * 7)
    listed, first, again = Counts(), Counts(), Counts()
    _, told = read(str(file), "skip", listed)
    monkeypatch.setattr(store, "KEPT", 5)
    assert read(str(file), "skip", first)[1] == told == read(str(file), "skip", again)[1]
    assert listed.as_dict() == first.as_dict() == again.as_dict()
    assert sum(listed.totals().values()) == 7


def test_what_a_killed_import_left_is_removed_and_nothing_that_is_in_use(file, monkeypatch):
    pytest.importorskip("fcntl", reason="there are no locks on folders here")
    monkeypatch.setattr(store, "KEPT", 5)
    monkeypatch.setenv("ACCORD_CACHE", str(file.parent / "cache"))
    root = store.cache_root() / "records"
    killed, young, busy = (root / f".{name}" for name in ("killed", "young", "busy"))
    for folder in (killed, young, busy):
        folder.mkdir(parents=True)
        (folder / "records.arrow").write_bytes(b"half")
        if folder != young:
            for path in (folder / "records.arrow", folder):
                os.utime(path, (0, 0))
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); "
         "print('held', flush=True); time.sleep(600)", str(busy / "lock")],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == b"held\n"
        for path in (busy / "lock", busy):
            os.utime(path, (0, 0))
        found, _ = read(str(file), "raise", Counts())
        assert {path.name for path in root.iterdir()} == {".young", ".busy", found.folder.name}
        assert {path.name for path in found.folder.iterdir()} == {"records.arrow", "facts.json"}
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_records_that_break_off_leave_no_store(file, monkeypatch):
    monkeypatch.setattr(store, "KEPT", 5)
    file.write_text(file.read_text() + "{\n")
    root = store.cache_root() / "records"
    before = sorted(root.iterdir()) if root.exists() else []
    with pytest.raises(RecordError, match=r"all\.jsonl"):
        read(str(file), "raise", Counts())
    assert sorted(root.iterdir()) == before


def test_records_in_memory_lie_in_a_folder_that_goes_with_them(file, monkeypatch):
    monkeypatch.setattr(store, "KEPT", 5)
    said = everything()
    many, told = read([said, str(file)], "raise", Counts())
    folder = many.folder
    assert list(many)[: len(said)] == said
    assert len(many) == 2 * len(said)
    assert told[0] == f"{len(said):,} records from memory"
    part = store.taken(many, np.arange(len(many)) < 3)
    del many
    assert list(part) == said[:3]  # the folder stays as long as somebody reads it
    del part
    assert not folder.exists()


# -- what is made of a store is what is made of a list ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"duplicates": "keep", "max_pairs": 2},
        {"several": "vote", "ties": "half"},
        {"several": "agreement", "max_pairs": 1},
        {"rescale": "unit", "threshold": 0.5},
    ],
)
def test_views_of_a_store(both, options):
    few, many = both
    for kind in MADE_FROM:
        told, counted = Counts(), Counts()
        one, other = (view(r, kind, ViewOptions(**options), counts=c) for r, c in ((few, told), (many, counted)))
        assert len(one) or kind == "Rollouts"
        assert list(map(repr, one)) == list(map(repr, other))  # scores that nobody gave are NaN
        assert told.as_dict() == counted.as_dict()


def test_splits_of_a_store(both):
    few, many = both
    for fraction in (0.0, 0.1, 0.6):
        sides, others = split(few, fraction, 3), split(many, fraction, 3)
        assert [list(s) for s in sides] == [list(s) for s in others]
        assert content(*sides) == content(*others)
    train, held = sides
    dropped, counted = Counts(), Counts()
    assert list(leak_checked(many, held, counted)) == list(leak_checked(few, split(many, 0.6, 3)[1], dropped)) == train
    assert counted.as_dict() == dropped.as_dict()


def made(records, steps: int, objective=MIXED, batch_size: int = 9, **chat) -> tuple[Corpus, Schedule, Counts]:
    terms, counts = plan.terms(objective, {}), Counts()
    examples = view_terms(terms, records, counts)
    specs = [spec(t, "") for t in terms.values()]
    tokenizer = Chat(make_tokenizer(), **chat)
    return *planned(records, examples, tokenizer, counts, specs, batch_size, 3, lambda schedule: steps), counts


def seen(batch: Batch) -> list:
    tokens = [[x.tolist() for x in (s.context, s.ids, s.trained)] for s in batch.sequences]
    return [tokens] + [
        (name, t.kind, {k: v.tolist() for k, v in t.roles.items()}, repr({k: v.tolist() for k, v in t.values.items()}),
         t.weight.tolist(), t.records.tolist(), t.sources)
        for name, t in batch.terms.items()
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [2, 30])  # a small part of the examples, and several passes
def test_batches_of_a_store_are_those_of_a_list(both, steps):
    few, many = both
    corpus, schedule, counts = made(few, steps)
    other, same, counted = made(many, steps)
    assert [seen(schedule.batch(s)) for s in range(steps)] == [seen(same.batch(s)) for s in range(steps)]
    assert schedule.steps_for(1.0) == same.steps_for(1.0)
    if steps == 2:
        used = {p for batch in map(same.batch, range(steps)) for p in range(len(batch.sequences))}
        assert len(used) <= len(other.sequences) < len(corpus.sequences)
        with pytest.raises(IndexError, match="beyond the updates"):
            [same.batch(s) for s in range(20)]
    else:
        assert (len(other.sequences), other.tokens) == (len(corpus.sequences), corpus.tokens)
        assert counted.as_dict() == counts.as_dict()


def test_what_cannot_be_tokenised_gives_way_to_the_next_and_every_batch_is_full(tmp_path, monkeypatch):
    long = [r.responses[0].model_copy(update={"text": "fox " * 60}) for r in pair_records(60)]
    said = [
        r.model_copy(update={"responses": (answer, r.responses[1])}) if i % 3 == 0 else r
        for i, (r, answer) in enumerate(zip(pair_records(60), long, strict=True))
    ]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(r.to_json() + "\n" for r in said))
    monkeypatch.setattr(store, "KEPT", 5)
    many, _ = read(str(path), "raise", Counts())
    _, short, counts = made(many, 2, "dpo", max_length=90, overlong="drop")
    _, longer, _ = made(many, 3, "dpo", max_length=90, overlong="drop")  # as a run that goes on for longer
    batches = [short.batch(s) for s in range(2)]
    assert list(map(seen, batches)) == [seen(longer.batch(s)) for s in range(2)]
    records = [int(r) for b in batches for r in b.terms["dpo"].records]
    assert len(set(records)) == len(records) == 18
    assert all(r % 3 for r in records)
    assert counts["dropped: longer than max_length=90"] > 0
    _, whole, _ = made(said, 30, "dpo", max_length=90, overlong="drop")
    assert all(int(r) % 3 for s in range(30) for r in whole.batch(s).terms["dpo"].records)


def test_pairs_of_which_both_sides_are_the_same_tokens_are_left_out_alike(tmp_path, monkeypatch):
    said = [
        Record(
            prompt=f"say {i}",
            responses=[{"text": "the fox " * 40 + "one"}, {"text": ("the fox " * 40 if i % 2 else "") + "other"}],
            judgements=[{"kind": "preference", "pair": (0, 1), "value": 1}],
        )
        for i in range(40)
    ]
    path = tmp_path / "alike.jsonl"
    path.write_text("".join(r.to_json() + "\n" for r in said))
    why = "dropped: chosen and rejected are the same tokens"
    corpus, _, counts = made(said, 1, "dpo", max_length=60)
    assert (counts[why], len(corpus.items["dpo"])) == (20, 20)
    monkeypatch.setattr(store, "KEPT", 5)
    many, _ = read(str(path), "raise", Counts())
    _, schedule, counts = made(many, 1, "dpo", max_length=60)
    records = schedule.batch(0).terms["dpo"].records
    assert len(records) == 9
    assert not any(int(r) % 2 for r in records)
    assert 0 < counts[why] < 20


def test_where_nothing_of_a_source_is_left_everything_is_tokenised(tmp_path, monkeypatch):
    gone = [r.model_copy(update={"prompt": r.prompt + " long" * 90}) for r in pair_records(3, "gone")]
    said = [*gone, *pair_records(60, "kept")]
    path = tmp_path / "two.jsonl"
    path.write_text("".join(r.to_json() + "\n" for r in said))
    monkeypatch.setattr(store, "KEPT", 5)
    many, _ = read(str(path), "raise", Counts())
    corpus, schedule, counts = made(many, 1, "dpo", max_length=90, overlong="drop")
    _, same, counted = made(said, 1, "dpo", max_length=90, overlong="drop")
    assert [s.label for s in schedule.strata] == [s.label for s in same.strata] == ["dpo/kept"]
    assert seen(schedule.batch(0)) == seen(same.batch(0))
    assert len(corpus.items["dpo"]) == 60
    assert counts["dropped: longer than max_length=90"] == counted["dropped: longer than max_length=90"] == 3


# -- columns ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_examples_come_back_from_columns(data):
    context = (Message(role="user", content="else"),)
    branch = st.builds(Branch, st.integers(0, 2), st.integers(0, 3), st.sampled_from([None, None, context]))
    groups = data.draw(st.booleans())
    role = st.lists(branch, min_size=1, max_size=3).map(tuple) if groups else branch
    number = st.floats(allow_nan=False, allow_subnormal=False)
    value = st.lists(number, min_size=1, max_size=3).map(tuple) if groups else number
    row = st.builds(
        Example, st.just("Groups" if groups else "Points"), st.fixed_dictionaries({"response": role}),
        st.fixed_dictionaries({"value": value}), st.integers(0, 2), st.sampled_from("st"), st.sampled_from([1.0, 2.0]),
    )  # fmt: skip
    rows = data.draw(st.lists(row, max_size=8))
    table = Examples.of(rows)
    assert table == rows
    assert table[2:5] == rows[2:5]
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    assert table.take(np.array(index, int)) == [rows[i] for i in index]


def test_an_example_takes_some_tens_of_bytes():
    made = view(pair_records(400), "Pairs")
    columns = [made.records, made.sources, made.weights, *made.branches.values(), *made.values.values()]
    assert sum(c.nbytes if c.strides[0] else c.itemsize for c in columns) < 10 * len(made)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sequences_come_back_from_their_file(data):
    contexts = [np.arange(n, dtype=np.int32) for n in (1, 4, 9)]

    def one(later: bool) -> Sequence:
        n = data.draw(st.integers(1, 6))
        ids = np.array(data.draw(st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n)), np.int32)
        trained = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
        old = np.where(trained, np.float32(-0.1), np.nan).astype(np.float32) if data.draw(st.booleans()) else None
        turns = tuple(one(False) for _ in range(data.draw(st.integers(0, 2)))) if later else ()
        return Sequence(data.draw(st.sampled_from(contexts)), ids, trained, data.draw(st.booleans()), old, turns)

    def told(s: Sequence) -> list:
        parts = [x.tolist() for x in (s.context, s.ids, s.trained)]
        return [*parts, s.cut, None if s.old is None else repr(s.old.tolist()), s.key, [told(t) for t in s.later]]

    kept, listed = Tokens(), []
    for _ in range(data.draw(st.integers(1, 4))):
        together = [one(True) for _ in range(data.draw(st.integers(1, 3)))]
        kept += together
        listed += together
        assert told(kept[len(listed) - 1]) == told(listed[-1])  # reading and writing take turns
    assert [told(s) for s in kept] == [told(s) for s in listed]
    assert [told(s) for s in kept[-2:]] == [told(s) for s in listed[-2:]]


# -- the order, by hand -----------------------------------------------------------------------------------------------


def order_by_hand(items: list[Item], chosen: list[int], what: str, seed: int, turn: int) -> list[int]:
    blocks: dict[int, list[int]] = {}
    for index in chosen:
        blocks.setdefault(items[index].record, []).append(index)
    several = list(blocks.values())
    return [i for b in seeded(seed, 0, what, turn).permutation(len(several)) for i in several[b]]  # of the first term


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("st"), st.booleans()), min_size=4, max_size=30),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_pass_is_the_permuted_records_of_a_stratum(rows, seed, both_classes):
    rows = [*rows, *((0, source, good) for source in "st" for good in (True, False))]
    items = [
        Item("Points", {"response": 0}, {"value": float(good)}, record, source, 1.0) for record, source, good in rows
    ]
    one = Sequence(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, bool))
    schedule = Schedule(Corpus([], [one], {"t": items}, Counts()), [TermSpec("t", both_classes=both_classes)], 8, seed)
    labels: dict[str, list[int]] = {}
    for index, (_, source, good) in enumerate(rows):
        labels.setdefault(f"t/{source}/{'good' if good else 'bad'}" if both_classes else f"t/{source}", []).append(
            index
        )
    assert [s.label for s in schedule.strata] == list(labels)
    for stratum, (label, chosen) in enumerate(labels.items()):
        for turn in (0, 1):
            assert schedule._order(stratum, turn).tolist() == order_by_hand(items, chosen, label[1:], seed, turn)
    assert Items.of(items) == items
    assert math.isclose(sum(s.share for s in schedule.strata), 1.0)
    assert gather(schedule.corpus, {"t": range(3)}).terms["t"].records.tolist() == [r for r, _, _ in rows[:3]]


# -- runs -------------------------------------------------------------------------------------------------------------


def rows(folder: Path) -> list[dict]:
    """Metrics, but how many chosen answers are longer: of a store, among those that were tokenised, not among all."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(("data/longer", "data/shorter"))} for row in found]


def test_a_run_over_a_store_is_the_run_over_a_list_also_when_it_is_resumed(file, model_folder, tmp_path, monkeypatch):
    def train(output, **more):
        return accord.train(
            str(model_folder), str(file), MIXED, output=str(tmp_path / output), batch_size=8, max_steps=2,
            eval_fraction=0.2, save_steps=1, device="cpu", precision="fp32", max_length=128, quiet=True, **more,
        )  # fmt: skip

    train("list")
    monkeypatch.setattr(store, "KEPT", 5)
    run = train("store")
    assert isinstance(run.records, Store)
    for a, b in zip(rows(tmp_path / "store"), rows(tmp_path / "list"), strict=True):
        assert a == b, {k: (a.get(k), b.get(k)) for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    stories = [json.loads((tmp_path / name / "data.json").read_text()) for name in ("list", "store")]
    for key in ("told", "records", "held_out", "examples", "content"):
        assert stories[0][key] == stories[1][key]
    assert stories[1]["sequences"] < stories[0]["sequences"]
    update, calls = Step.update, []

    def stops(self, rates=None):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return update(self, rates)

    monkeypatch.setattr(Step, "update", stops)
    with pytest.raises(KeyboardInterrupt):
        train("stopped")
    train("stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "list")


def test_a_walk_is_every_batch_of_the_run():
    _, schedule, _ = made(pair_records(20), 5, "dpo")
    walk = inputs.Walk(schedule, 5)
    assert [seen(b) for b in walk] == [seen(schedule.batch(s)) for s in range(5)] == [seen(b) for b in walk[:]]
    assert len(walk) == 5
    assert replace(walk[0]).silent.tolist() == walk[0].silent.tolist()
