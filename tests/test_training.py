"""One update: what it is divided by, in which parts, by which road; and what a run leaves behind."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import accord
from accord.data.batches import Batch, Corpus, Schedule, TermSpec, gather, micro_batches, pack, padded_cost
from accord.data.chat import Chat, Sequence
from accord.data.records import Judgement, Record, Response
from accord.data.views import MADE_FROM, Counts
from accord.engine import models
from accord.engine.logprobs import Row
from accord.engine.reference import Reference
from accord.errors import ConfigError
from accord.objectives import table
from accord.training import inputs, plan, run
from accord.training import terms as terms_
from accord.training.loop import LoopOptions, rate_factor
from accord.training.parallel import Processes
from accord.training.sharing import set_names
from accord.training.start import check_start, references_of
from accord.training.state import Checkpoints, Progress
from accord.training.step import Step, TrainingError
from accord.training.terms import reduced
from tests.conftest import make_llama, make_tokenizer, mixed_records, pair_records

MIXED = {"pairs": "dpo", "demonstrations": "sft", "ratings": "ulma"}
WITH_HEAD = {**MIXED, "ratings": {"name": "ulma", "log_z": "head"}}
WITH_KTO = {**WITH_HEAD, "labels": "kto"}
WITH_BCO = {**WITH_HEAD, "labels": "bco"}
LAYOUTS = ("shared", "packed", "padded")
TINY = {"device": "cpu", "precision": "fp32", "quiet": True}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def all_records(n: int = 8) -> list[Record]:
    """Pairs from two sources, demonstrations, ratings, rankings and labels."""
    found = mixed_records(n) + pair_records(n, "others")
    for i in range(n):
        said = (Judgement(kind="label", response=0, value=float(i % 2)),)
        answer = (Response(text=f"quick dog {i}" + " over the fox" * (i % 3)),)
        found.append(Record(prompt=f"label the dog {i}", responses=answer, judgements=said, source="labels"))
    return found


def moved_llama(by: float = 0.02) -> torch.nn.Module:
    """The random Llama a little away from its start, so that no log-ratio is 0."""
    model = make_llama()
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn(p.shape, generator=draw)
    return model


@dataclass
class Made:
    """A step with what stands behind it."""

    step: Step
    schedule: Schedule
    corpus: Corpus
    policy: models.Policy

    def gradient(self, batch: Batch | None = None) -> list[torch.Tensor]:
        """The update's gradient, zeros where there is none."""
        (gradient,) = self.gradients(batch).values()
        return gradient

    def gradients(self, batch: Batch | None = None) -> dict[str, list[torch.Tensor]]:
        """The gradient of each set by name."""
        batch = self.schedule.batch(0) if batch is None else batch
        prepare(self.step, [batch])
        sets, *_ = self.step.backward(self.step.collect(batch, 0))
        return dict(zip(set_names(self.step.partition, batch), map(self.filled, sets), strict=True))

    def loss(self, batch: Batch | None = None) -> float:
        _, metrics, _ = self.step.backward(self.step.collect(self.schedule.batch(0) if batch is None else batch, 0))
        return reduced(metrics)["loss"]

    def filled(self, grads) -> list[torch.Tensor]:
        pairs = zip(grads, self.step.parameters, strict=True)
        return [torch.zeros_like(p) if g is None else g.detach().clone() for g, p in pairs]


def prepare(step: Step, batches: Iterable[Batch]) -> None:
    for name, sequences in inputs.referenced(step, batches).items():
        step.references[name].prepare(sequences)


def make(
    objective, *, records=None, layout="shared", budget=10_000, batch_size=16, mode="cached", seed=0, heads=(), **more
) -> Made:
    """A step of the moved Llama, with the Llama as its reference."""
    records = all_records() if records is None else records
    terms = plan.terms(objective, {})
    heads = heads or tuple(h for t in terms.values() for h in t.heads)
    tok = make_tokenizer()
    policy = models.load(moved_llama(), tok, device="cpu", precision="fp32", layout=layout, heads=heads)
    other = models.load(make_llama(), tok, device="cpu", precision="fp32", layout=layout)

    import contextlib

    ref = Reference("other", other.key, lambda: contextlib.nullcontext(other.scorer), torch.float32, None, mode)
    counts = Counts()
    corpus = Corpus.build(records, run.view_terms(terms, records, counts), Chat(tok), counts)
    schedule = Schedule(corpus, [run.spec(t, records) for t in terms.values()], batch_size, seed)
    optimizer = torch.optim.AdamW(policy.scorer.parameters(), lr=1e-3)
    step = Step(
        policy.scorer, terms, records, optimizer, references={"ref": ref}, budget=budget, max_grad_norm=None,
        seed=seed, **more,
    )  # fmt: skip
    prepare(step, map(schedule.batch, range(4)))
    return Made(step, schedule, corpus, policy)


def assert_alike(got: list[torch.Tensor], wanted: list[torch.Tensor], slack: float = 2e-4) -> None:
    """Equal within `slack` of each tensor's largest entry (float32, another order of sums)."""
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= slack * max(float(b.abs().max()), 1e-6)


def only(batch: Batch, name: str) -> Batch:
    """The same sequences with the examples of one term."""
    return Batch(batch.sequences, {name: batch.terms[name]}, batch.silent)


# -- laws of the step -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [WITH_HEAD, WITH_KTO, WITH_BCO], ids=["direct", "anchored", "scored first"])
def test_layout_budget_and_reference_mode_change_speed_and_never_the_update(objective):
    plain = make(objective)
    loss, grads = plain.loss(), plain.gradient()
    assert plain.step.collect(plain.schedule.batch(0), 0).direct == (objective is not WITH_BCO)
    head = plain.policy.scorer.heads["log_z"].linear.weight
    assert bool(next(g for g, p in zip(grads, plain.step.parameters, strict=True) if p is head).abs().max() > 0)
    for change in ({"layout": "packed"}, {"layout": "padded"}, {"budget": 1}, {"budget": 90}, {"mode": "live"}):
        other = make(objective, **change)
        assert other.loss() == pytest.approx(loss, rel=1e-5), change
        assert_alike(other.gradient(), grads)


@pytest.mark.parametrize("objective", [WITH_KTO, WITH_BCO], ids=["anchored", "scored first"])
def test_each_terms_gradient_in_a_mixed_run_is_that_of_the_term_alone(objective):
    made = make(objective, partition="term", budget=90)
    batch = made.schedule.batch(0)
    sets = made.gradients(batch)
    whole = make(objective)
    assert sorted(sets) == sorted(objective)
    for name, grads in sets.items():
        alone = make({name: objective[name]}, heads=("log_z",))
        assert_alike(alone.gradient(only(batch, name)), grads)
        first = objective[name] == "bco"  # direct equals scored first
        assert alone.step.collect(only(batch, name), 0).direct != first
    assert_alike([sum(parts) for parts in zip(*sets.values(), strict=True)], whole.gradient(batch))


def test_where_only_other_prompts_answers_must_be_scored_first_the_rest_is_computed_once(monkeypatch):
    made = make({"labels": "kto"}, budget=90)
    passes: list[int] = []
    monkeypatch.setattr(
        made.step,
        "score",
        lambda micro, *given, score=made.step.score: passes.extend(micro.sequences.tolist()) or score(micro, *given),
    )
    loss, grads = made.loss(), made.gradient()
    batch = made.step.complete(made.schedule.batch(0))
    assert sorted(passes) == sorted(2 * list(range(len(batch.sequences))))
    passes.clear()
    monkeypatch.setattr(type(made.step.terms["labels"]), "anchored", False)
    assert made.loss() == pytest.approx(loss, rel=1e-6)
    assert_alike(made.gradient(), grads)
    assert len(passes) / 2 == len(batch.sequences) + (~batch.silent).sum()


def triple_first(sets, state):
    """A rule with a memory: three times the first set; what it may know of the sets is there."""
    assert len(sets.losses) == len(sets.mass) == len(sets.names)
    assert all(m > 0 for m in sets.mass)
    assert all(loss > 0 for loss in sets.losses)
    state["called"] = sets.names
    return [None if g is None else 3 * g for g in sets.grads[0]]


@pytest.mark.parametrize("labels", [None, "kto", "bco"])
def test_sources_have_gradients_of_their_own_and_the_rule_combines_them(labels):
    objective = {"pairs": "dpo", "labels": labels} if labels else {"pairs": "dpo"}
    made = make(objective, partition="source", combine=triple_first)
    batch = made.schedule.batch(0)
    names = ["labels", "others", "pairs"] if labels else ["others", "pairs"]
    sets = made.gradients(batch)
    assert list(sets) == names
    whole = make(objective)
    assert_alike([sum(parts) for parts in zip(*sets.values(), strict=True)], whole.gradient(batch))
    pairs = batch.terms["pairs"]
    own = np.array([i for i, s in enumerate(pairs.sources) if s == "others"])
    alone = Batch(batch.sequences, {"pairs": pairs.take(own)}, batch.silent)
    share = len(own) / len(pairs)
    assert_alike([share * g for g in make({"pairs": "dpo"}).gradient(alone)], sets["others"])
    collected = made.step.collect(batch, 0)
    grads, metrics, _ = made.step.backward(collected)
    made.step.combine(grads, collected, metrics)
    assert_alike([p.grad for p in made.step.parameters], [3 * g for g in sets[names[0]]])
    assert made.step.objective_state["combine"] == {"called": names}


def test_a_sum_of_objectives_is_the_sum_of_their_gradients():
    both = make([{"name": "dpo", "weight": 0.5}, {"name": "ipo", "weight": 0.001}])
    batch = both.schedule.batch(0)
    name = next(iter(batch.terms))
    total = both.gradient(batch)
    parts = []
    for objective, weight in (("dpo", 0.5), ("ipo", 0.001)):
        one = make(objective)
        alone = Batch(batch.sequences, {objective: batch.terms[name]}, batch.silent)
        parts.append([weight * g for g in one.gradient(alone)])
    assert_alike(total, [a + b for a, b in zip(*parts, strict=True)])


def test_a_terms_weight_means_the_same_whatever_stands_beside_it():
    records = all_records()
    alone = make({"pairs": "dpo"}, records=records)
    three = make({"pairs": {"name": "dpo", "weight": 3.0}, "demonstrations": "sft"}, records=records, partition="term")
    batch = three.schedule.batch(0)
    assert_alike(three.gradients(batch)["pairs"], [3 * g for g in alone.gradient(only(batch, "pairs"))])
    collected = three.step.collect(batch, 0)
    demos = batch.terms["demonstrations"]
    trained = sum(int(batch.sequences[i].trained.sum()) for i in demos.roles["response"])
    assert collected.divisors == {"pairs": len(batch.terms["pairs"]), "demonstrations": trained}


def test_the_mean_over_accumulated_micro_batches_is_the_mean_over_one_batch():
    """Examples of different lengths: averaging micro-batch means would be off."""
    for objective in ({"demonstrations": "sft"}, {"pairs": "dpo"}):
        one, many = make(objective, batch_size=8), make(objective, batch_size=8, budget=1)
        batch = one.schedule.batch(0)
        assert len(many.step.collect(batch, 0).micros) == sum(map(len, batch.terms.values()))
        assert many.loss(batch) == pytest.approx(one.loss(batch), rel=1e-6)
        assert_alike(many.gradient(batch), one.gradient(batch))
    demos = make({"demonstrations": "sft"})
    batch = demos.schedule.batch(0)
    metrics, examples, losses = demos.step.evaluate(batch)
    tokens = sum(e.lengths["response"] for e in examples)
    assert reduced(metrics)["loss"] == pytest.approx(sum(e.loss for e in examples) / tokens)
    assert reduced(metrics)["nll_per_token"] == pytest.approx(reduced(metrics)["loss"])
    assert losses["demonstrations"] == pytest.approx((sum(e.loss for e in examples), tokens))


def test_a_terms_own_loss_is_that_of_its_tokens_in_any_micro_batches():
    objective = {"demonstrations": "sft", "pairs": "simpo"}
    found = []
    for budget in (10_000, 60):
        made = make(objective, budget=budget)
        _, metrics, _ = made.step.backward(made.step.collect(made.schedule.batch(0), 0))
        found.append(reduced(metrics))
    assert found[1]["demonstrations/loss"] == pytest.approx(found[0]["demonstrations/nll_per_token"], rel=1e-5)
    assert found[1]["demonstrations/loss"] == pytest.approx(found[0]["demonstrations/loss"], rel=1e-5)


def test_record_weights_scale_their_examples():
    records = [r.model_copy(update={"weight": 2.0 if r.source == "others" else 1.0}) for r in all_records()]
    weighted = make({"pairs": "dpo"}, records=records, partition="source")
    plain = make({"pairs": "dpo"}, partition="source")
    assert_alike(weighted.gradients()["others"], [2 * g for g in plain.gradients()["others"]])
    assert_alike(weighted.gradients()["pairs"], plain.gradients()["pairs"])


# -- state between steps ----------------------------------------------------------------------------------------------


@pytest.fixture
def kto_with_memory(monkeypatch):
    """KTO whose anchor is a running mean: an objective with state, which no row of the table has yet."""

    def anchor(points, ref, mismatched, ref_mismatched, state):
        now = (mismatched.logp - ref_mismatched.logp).mean()
        mean = now if state is None else 0.9 * state["mean"] + 0.1 * now
        return {"z0": mean.clamp(min=0)}, {"mean": mean, "steps": 1 if state is None else state["steps"] + 1}

    def build(**more) -> Made:
        made = make({"labels": "kto"}, batch_size=4, **more)
        term = made.step.terms["labels"]
        row = replace(term.parts[0][0], stats_needs=("ref", "mismatched", "ref_mismatched", "state"))
        made.step.terms["labels"] = replace(term, parts=((row, *term.parts[0][1:]),))
        return made

    monkeypatch.setattr(terms_.table, "stats_function", lambda name: anchor)
    return build


def test_snapshot_and_restore_put_everything_back_exactly(kto_with_memory):
    made = kto_with_memory()
    step, batch = made.step, made.schedule.batch
    step(batch(0), 0)
    held = step.snapshot()
    after = [step(batch(n), n).metrics for n in (1, 2)]
    weights = [p.detach().clone() for p in step.parameters]
    assert step.objective_state["labels"]["0"]["steps"] == 3
    for _ in range(2):  # a snapshot can be used again
        step.restore(held)
        assert step.objective_state["labels"]["0"]["steps"] == 1
        assert [step(batch(n), n).metrics for n in (1, 2)] == after
        assert all(torch.equal(p, w) for p, w in zip(step.parameters, weights, strict=True))


def test_evaluation_leaves_objective_state_and_weights_alone(kto_with_memory):
    made = kto_with_memory()
    made.step(made.schedule.batch(0), 0)
    held_step = made.step.on(made.step.records)
    held_step.objective_state = made.step.objective_state
    before = made.step.snapshot()
    held_step.evaluate(made.schedule.batch(1))
    made.step.evaluate(made.schedule.batch(1))
    assert made.step.objective_state == before["objective"]
    assert all(torch.equal(a, b) for a, b in zip(made.step.parameters, before["parameters"], strict=True))


def test_a_checkpoint_carries_objective_state(kto_with_memory, tmp_path):
    made, fresh = kto_with_memory(), kto_with_memory()
    made.step(made.schedule.batch(0), 0)
    checkpoints = Checkpoints(tmp_path / "checkpoints", Processes())
    checkpoints.save(made.step, Progress(step=1))
    assert checkpoints.load(fresh.step, 1).step == 1
    for m in (made, fresh):
        m.result = m.step(m.schedule.batch(1), 1)
    assert made.result.metrics == fresh.result.metrics
    assert fresh.step.objective_state["labels"]["0"]["mean"] == made.step.objective_state["labels"]["0"]["mean"]
    assert all(torch.equal(a, b) for a, b in zip(made.step.parameters, fresh.step.parameters, strict=True))


def test_a_checkpoint_is_complete_or_absent_and_the_best_one_stays(tmp_path):
    made = make({"pairs": "dpo"})
    checkpoints = Checkpoints(tmp_path, Processes(), keep=2)
    for n in range(1, 6):
        checkpoints.save(made.step, Progress(step=n, best_step=2 if n >= 2 else None))
    assert checkpoints.steps() == [2, 4, 5]
    (tmp_path / ".writing-6" / "state").mkdir(parents=True)
    assert Checkpoints(tmp_path, Processes()).steps() == [2, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-2", "step-4", "step-5"]
    (tmp_path / "step-5" / "state" / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(accord.errors.AccordError, match="Remove it to go on from step-4"):
        checkpoints.load(made.step, 5)


# -- step 0 -----------------------------------------------------------------------------------------------------------

WITH_REFERENCE = [
    r.name
    for r in table.rows().values()
    if "ref" in r.needs and r.references == {"ref"} and r.feeds_on in MADE_FROM and r.values != "scores"
]


@pytest.fixture(scope="module")
def adapter_folder(model_folder, tmp_path_factory):
    """An adapter on the tiny model that is not zero."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapters") / "one"
    torch.manual_seed(3)
    module = models.load(model_folder, device="cpu", precision="fp32").model
    module.set_attn_implementation("sdpa")
    adapted = get_peft_model(module, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", ["full", "lora", "stacked"])
def test_at_step_0_rewards_are_zero_and_losses_known(weights, layout, model_folder, adapter_folder, tmp_path):
    source = adapter_folder if weights == "stacked" else model_folder
    lora = None if weights == "full" else models.LoraOptions(rank=2)
    load = {"device": "cpu", "precision": "fp32", "layout": layout}
    policy = models.load(source, lora=lora, **load)
    records = all_records(4)
    seen = set()
    for name in WITH_REFERENCE:
        terms = plan.terms(name, {})
        counts = Counts()
        corpus = Corpus.build(records, run.view_terms(terms, records, counts), Chat(policy.tokenizer), counts)
        batch = Schedule(corpus, [run.spec(t, records) for t in terms.values()], 12, 0).batch(0)
        refs = references_of(
            "start", "cached", str(tmp_path), policy, terms, Processes(), fresh=True, model=source, load=load
        )
        step = Step(policy.scorer, terms, records, None, references=refs, budget=200)
        prepare(step, [batch])
        values = check_start(step, batch, policy)
        examples = step.evaluate(batch).examples
        assert all(abs(r) < 1e-4 for e in examples for r in e.rewards.values()), name
        assert any(e.rewards for e in examples) or table.find(name).feeds_on == "Groups", name
        expected = values.get(f"{name}/expected_loss")
        assert (expected is None) == (table.find(name).init is None), name
        if expected is not None:
            assert values["loss"] == pytest.approx(expected, abs=1e-4, rel=1e-6), name
            seen.add(name)
    assert {"dpo", "ipo", "kto", "pointwise_dpo"} <= seen


def test_a_corrupt_reference_cache_stops_the_run_at_step_0_with_a_sentence(model_folder, tmp_path):
    def train(output):
        return accord.train(
            str(model_folder), pair_records(8), "dpo", output=str(tmp_path / output), max_steps=1, batch_size=4,
            reference_cache=str(tmp_path / "cache"), eval_fraction=0, **TINY,
        )  # fmt: skip

    train("a")
    (shard,) = (tmp_path / "cache").rglob("*.safetensors")
    held = load_file(shard)
    held["logp"] = held["logp"] - 0.5
    save_file(held, shard)
    with pytest.raises(TrainingError, match=r"at step 0 the log-ratio of record \w+ \((chosen|rejected)\)") as error:
        train("b")
    assert "if that starts, remove the cache" in str(error.value)
    assert not (tmp_path / "b" / "model").exists()
    (meta,) = (tmp_path / "cache").rglob("reference.json")
    meta.write_text(json.dumps({"key": "another", "dtype": "torch.float32"}))
    with pytest.raises(accord.errors.AccordError, match="holds log-probs of another model"):
        train("c")


# -- the schedule -----------------------------------------------------------------------------------------------------


def corpus_of(objective, records) -> tuple[Corpus, list[TermSpec]]:
    terms = plan.terms(objective, {})
    counts = Counts()
    corpus = Corpus.build(records, run.view_terms(terms, records, counts), Chat(make_tokenizer()), counts)
    return corpus, [run.spec(t, records) for t in terms.values()]


CORPUS, SPECS = corpus_of(WITH_KTO, all_records())


@settings(max_examples=30, deadline=None)
@given(batch_size=st.integers(6, 40), seed=st.integers(0, 3), start=st.integers(0, 60))
def test_quotas_fill_every_batch_and_follow_the_shares(batch_size, seed, start):
    schedule = Schedule(CORPUS, SPECS, batch_size, seed)
    quotas = np.array([schedule.quotas(s) for s in range(start, start + 60)])
    assert (quotas.sum(1) == batch_size).all()
    assert (quotas >= 1).all()
    shares = np.array([s.share for s in schedule.strata])
    ideal = np.maximum(shares / shares.sum() * batch_size, 1)
    if (ideal > 1).all():  # nothing had to be raised to one: the shares are exact in the long run
        assert np.abs(quotas.sum(0) - 60 * ideal).max() < len(shares)


def test_the_order_is_a_function_of_seed_and_step_and_passes_cover_everything_once():
    def keys(batch: Batch):
        return [(n, t.records.tolist(), t.values.get("value", np.zeros(0)).tolist()) for n, t in batch.terms.items()]

    schedule, again, other = (Schedule(CORPUS, SPECS, 7, seed) for seed in (0, 0, 1))
    straight = [keys(schedule.batch(s)) for s in range(30)]
    assert straight == [keys(again.batch(s)) for s in reversed(range(30))][::-1]  # in any order, as after a resume
    assert straight != [keys(other.batch(s)) for s in range(30)]
    for s in range(30):
        assert len({v >= 0.5 for v in schedule.batch(s).terms["labels"].values["value"]}) == 2
    for index, stratum in enumerate(schedule.strata):
        steps = next(s for s in range(1, 500) if schedule._until(s)[index] >= 3 * len(stratum.items))
        records = Counter(CORPUS.items[stratum.term][i].record for i in stratum.items)
        drawn: Counter[int] = Counter()
        for s in range(steps):
            term = schedule.batch(s).terms[stratum.term]
            drawn.update(int(r) for r in term.records if int(r) in records)
        extra = schedule._until(steps)[index] - 3 * len(stratum.items)
        assert sum(abs(drawn[r] - 3 * n) for r, n in records.items()) == extra


def test_entries_of_one_name_are_one_source_with_one_weight(tmp_path):
    """The later weight must not win without a word."""
    row = json.dumps({"prompt": "p", "completion": "a"}) + "\n"
    for name in ("a/train.jsonl", "b/train.jsonl.gz", "b/train.2.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(row.encode()) if name.endswith(".gz") else row.encode())
    one, other, third = (str(tmp_path / name) for name in ("a/train.jsonl", "b/train.jsonl.gz", "b/train.2.jsonl"))
    records, told = inputs.read([one, other, third], "raise", Counts())
    assert [r.source for r in records] == ["train", "train", "train.2"]
    assert told[3:] == ["2 entries of data are called 'train': one source"]
    assert inputs.read([{"path": one, "name": "x"}, other], "raise", Counts())[1][2:] == []
    for data in ([{"path": one, "weight": 2}, other], [{"path": one, "weight": 2}, {"path": other, "weight": 3}]):
        with pytest.raises(ConfigError, match=r"two entries are called 'train'.*name: other"):
            inputs.source_weights(data)
    assert inputs.source_weights([{"path": one, "weight": 2}, {"path": other, "weight": 2}, third]) == {"train": 2.0}
    assert inputs.source_weights([{"path": one, "weight": 2}, {"path": other, "name": "x", "weight": 3}]) == {
        "train": 2,
        "x": 3,
    }


def test_a_batch_too_small_and_a_class_that_is_missing_are_refused_with_a_sentence():
    with pytest.raises(ConfigError, match="less than the 6 strata"):
        Schedule(CORPUS, SPECS, 5, 0)
    good = [r for r in all_records() if r.source != "labels" or r.judgements[0].value == 1]
    corpus, specs = corpus_of({"labels": "kto"}, good)
    with pytest.raises(ConfigError, match="all 4 are good"):
        Schedule(corpus, specs, 4, 0)
    weights = TermSpec("pairs", source_weights={"nobody": 2.0})
    with pytest.raises(ConfigError, match="nobody"):
        Schedule(CORPUS, [weights], 8, 0)


def test_weights_of_sources_set_their_part_of_the_batch():
    corpus, _ = corpus_of({"pairs": "dpo"}, all_records())
    schedule = Schedule(corpus, [TermSpec("pairs", source_weights={"others": 3.0})], 8, 0)
    assert dict(zip([s.label for s in schedule.strata], schedule.quotas(0), strict=True)) == {
        "pairs/pairs": 2, "pairs/others": 6,
    }  # fmt: skip


@st.composite
def many_sequences(draw) -> list[Sequence]:
    """Sequences over a few shared contexts, with untrained tokens among them."""
    found = []
    for context in range(draw(st.integers(1, 3))):
        prompt = np.arange(draw(st.integers(1, 6)), dtype=np.int32) + 100 * (context + 1)
        for _ in range(draw(st.integers(1, 3))):
            ids = np.array(draw(st.lists(st.integers(1, 50), min_size=1, max_size=7)), np.int32)
            trained = np.array(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))), bool)
            trained[draw(st.integers(0, len(ids) - 1))] = True
            found.append(Sequence(prompt, ids, trained))
    return found


@settings(max_examples=80, deadline=None)
@given(seqs=many_sequences(), layout=st.sampled_from(LAYOUTS), keep_last=st.booleans(), data=st.data())
def test_packing_keeps_every_sequence_whole(seqs, layout, keep_last, data):
    group = data.draw(st.permutations(range(len(seqs))))
    micro = pack(seqs, group, layout, keep_last=keep_last)
    tokens, positions = micro.tokens.ravel(), micro.positions.ravel()
    assert sorted(micro.sequences.tolist()) == sorted(group)
    for place, i in enumerate(micro.sequences.tolist()):
        s = seqs[i]
        whole = np.concatenate([s.context, s.ids])
        mine = micro.owner == i
        assert micro.target[mine].tolist() == s.ids[s.trained].tolist()
        where = len(s.context) - 1 + np.flatnonzero(s.trained)  # of the token before each trained one
        assert tokens[micro.predictor[mine]].tolist() == whole[where].tolist()
        assert positions[micro.predictor[mine]].tolist() == where.tolist()
        assert tokens[micro.opens[place]] == s.context[-1]
        assert positions[micro.opens[place]] == len(s.context) - 1
        last = whole[-1] if keep_last or layout == "padded" else whole[-2]
        assert tokens[micro.ends[place]] == last
    cost = sum(len(s.ids) if keep_last else len(s.ids) - 1 for s in seqs)
    prompts = [s.context for s in seqs]
    if layout == "shared":
        prompts = list({p.tobytes(): p for p in prompts}.values())
    if layout != "padded":
        assert tokens.size == cost + sum(map(len, prompts))
        for start, context, responses in micro.trees:  # each tree is a prompt followed by its responses
            assert positions[start : start + context].tolist() == list(range(context))
            at = start + context
            for n in responses:
                assert positions[at : at + n].tolist() == list(range(context, context + n))
                at += n


@settings(max_examples=80, deadline=None)
@given(seqs=many_sequences(), layout=st.sampled_from(LAYOUTS), budget=st.integers(1, 60), data=st.data())
def test_micro_batches_split_no_example_and_keep_the_budget(seqs, layout, budget, data):
    one = st.integers(0, len(seqs) - 1)
    units = data.draw(st.lists(st.lists(one, min_size=1, max_size=3, unique=True).map(tuple), min_size=1, max_size=6))
    groups = micro_batches(seqs, units, budget, layout)
    assert sorted(i for g in groups for i in g) == sorted({i for u in units for i in u})
    where = {i: n for n, g in enumerate(groups) for i in g}
    assert all(len({where[i] for i in u}) == 1 for u in units)
    for g in groups:
        cost = padded_cost(seqs, g) if layout == "padded" else pack(seqs, g, layout, keep_last=True).tokens.size
        joined = len({frozenset(u) for u in units if set(u) <= set(g)}) == 1 or _linked(g, units)
        assert cost <= budget or joined
    assert groups == micro_batches(seqs, units, budget, layout)


def _linked(group: list[int], units: list[tuple[int, ...]]) -> bool:
    """Whether sequences that examples share join the whole group."""
    reached = {group[0]}
    for _ in group:
        reached |= {i for u in units if reached & set(u) for i in u}
    return reached >= set(group)


def test_the_learning_rate_warms_up_and_comes_down():
    o = LoopOptions(max_steps=100, learning_rates=(1.0,), schedule="cosine", warmup=0.1)
    factors = [rate_factor(s, o) for s in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.001
    assert rate_factor(99, replace(o, schedule="constant")) == 1.0


# -- NaN --------------------------------------------------------------------------------------------------------------


class Broken:
    """A reference that is not a number on one call's first sequence."""

    mode, name, key = "live", "broken", ""

    def __init__(self, inner: Reference) -> None:
        self.inner = inner

    def logp(self, sequences, budget):
        found = [a.copy() for a in self.inner.logp(sequences, budget)]
        found[-1][0] = np.nan
        return found


@pytest.mark.parametrize("objective", ["dpo", {"pairs": "dpo", "labels": "kto"}, "aot_paired"])
def test_a_loss_that_is_not_finite_names_the_record_and_leaves_the_weights(objective, tmp_path):
    file = tmp_path / "feedback.jsonl"
    file.write_text("".join(r.to_json() + "\n" for r in all_records()))
    from accord.data import sources

    records = sources.load(str(file)).records
    made = make(objective, records=records, budget=60)
    step, before = made.step, made.step.snapshot()
    step.references["ref"] = Broken(step.references["ref"])
    with pytest.raises(TrainingError, match="not finite on record") as error:
        step(made.schedule.batch(0), 0)
    assert "feedback.jsonl, line " in str(error.value)
    assert "log-prob of" in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(step.parameters, before["parameters"], strict=True))
    step.references["ref"] = step.references["ref"].inner  # what the failed step left behind is not added to the next
    again = make(objective, records=records, budget=60)
    assert step(made.schedule.batch(0), 0).grad_norm == again.step(again.schedule.batch(0), 0).grad_norm


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    made = make({"pairs": "dpo"})
    before = made.step.snapshot()
    made.step.parameters[0].grad = torch.full_like(made.step.parameters[0], math.inf)
    with pytest.raises(TrainingError, match="the weights were left as they are"):
        made.step.update()
    assert all(torch.equal(a, b) for a, b in zip(made.step.parameters, before["parameters"], strict=True))


def test_gradients_are_clipped_to_the_norm():
    free, bound = make({"pairs": "dpo"}), make({"pairs": "dpo"})
    bound.step.max_grad_norm = 1e-3
    norms = []
    for m in (free, bound):
        m.step.optimizer = torch.optim.SGD(m.step.parameters, lr=1.0)
        before = [p.detach().clone() for p in m.step.parameters]
        result = m.step(m.schedule.batch(0), 0)
        moved = [p.detach() - b for p, b in zip(m.step.parameters, before, strict=True)]
        norms.append((result.grad_norm, float(torch.nn.utils.get_total_norm(moved))))
    assert norms[0][0] == norms[1][0] == pytest.approx(norms[0][1], rel=1e-3)
    assert norms[1][1] == pytest.approx(1e-3, rel=1e-2)


# -- whole runs -------------------------------------------------------------------------------------------------------


def train(model, output, records=None, objective="dpo", **more):
    given = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, **TINY, **more}
    return accord.train(str(model), records or pair_records(), objective, output=str(output), **given)


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_rate_of_5e_7_moves_weights_under_bf16_as_under_fp32(model_folder, tmp_path):
    moved = {}
    for precision in ("fp32", "bf16"):
        start = models.load(model_folder, precision=precision).model.state_dict()  # bf16 moves weights off its ties
        more = {"precision": precision, "learning_rate": 5e-7, "schedule": "constant", "warmup": 0.0, "max_steps": 6}
        train(model_folder, tmp_path / precision, **more)
        end = load_file(tmp_path / precision / "model" / "model.safetensors")
        assert all(t.dtype == torch.float32 for t in end.values())
        moved[precision] = torch.cat([(end[k] - start[k]).ravel() for k in sorted(end)]).double()
    exact, low = moved["fp32"], moved["bf16"]
    changed = [float((m != 0).double().mean()) for m in (exact, low)]
    assert changed[0] > 0.5
    assert changed[1] == pytest.approx(changed[0], abs=0.02)
    assert float(low.norm() / exact.norm()) == pytest.approx(1, abs=0.05)
    assert float(exact @ low / exact.norm() / low.norm()) > 0.9
    rounded = torch.cat([(start[k].bfloat16() + 5e-7 - start[k].bfloat16()).ravel() for k in sorted(end)])
    assert float((rounded != 0).double().mean()) < 0.1  # bf16 weights would hardly have moved at all


def test_a_float16_checkpoint_shows_the_same_margins_under_bf16_as_under_fp32(model_folder, tmp_path):
    """One weight in eight of it lies half way between two bf16 numbers: the smallest update would tip them all."""
    half, margins = tmp_path / "half", {}
    shutil.copytree(model_folder, half)
    weights = {k: v.half().float() for k, v in load_file(half / "model.safetensors").items()}
    ties = torch.cat([((v.view(torch.int32) & 0xFFFF) == 0x8000).ravel() for v in weights.values()])
    assert 0.1 < float(ties.double().mean()) < 0.15
    save_file(weights, half / "model.safetensors", metadata={"format": "pt"})
    for precision in ("fp32", "bf16"):
        more = {"precision": precision, "learning_rate": 1e-6, "schedule": "constant", "warmup": 0.0, "max_steps": 3}
        run = train(half, tmp_path / precision, **more)
        margins[precision] = [row["rewards/margins"] for row in rows_of(run.folder) if "grad_norm" in row][-1]
    assert 5e-4 < margins["fp32"] < 3e-3
    assert margins["bf16"] == pytest.approx(margins["fp32"], abs=3e-3)  # 0.024 with the ties left as they are


def whole_logp(model, s: Sequence) -> float:
    """Log-prob of the trained tokens by the model's own plain forward."""
    ids = torch.from_numpy(np.concatenate([s.context, s.ids]).astype(np.int64))[None]
    with torch.no_grad():
        logp = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    return float(logp[len(s.context) - 1 :][torch.from_numpy(s.trained)].sum())


def policy_logp(policy: models.Policy, seqs: list[Sequence]) -> list[float]:
    micro = pack(seqs, range(len(seqs)), policy.scorer.layout, keep_last=policy.scorer.keep_last)
    with torch.no_grad():
        logp = policy.scorer(Row.of(micro, "cpu"))["logp"]
    return torch.zeros(len(seqs)).index_add(0, torch.from_numpy(micro.owner), logp).tolist()


@pytest.mark.parametrize("weights", ["full", "lora", "stacked"])
def test_the_saved_model_is_the_trained_one_for_transformers_and_peft(weights, model_folder, adapter_folder, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = adapter_folder if weights == "stacked" else model_folder
    lora = False if weights == "full" else {"rank": 4}
    done = train(source, tmp_path / "run", lora=lora, learning_rate=3e-3)
    saved = tmp_path / "run" / "model"
    auto = AutoPeftModelForCausalLM if weights == "lora" else AutoModelForCausalLM
    reloaded = auto.from_pretrained(saved)
    tok = AutoTokenizer.from_pretrained(saved)
    assert tok.chat_template == make_tokenizer().chat_template
    counts = Counts()
    terms = plan.terms("dpo", {})
    records = pair_records(4)
    corpus = Corpus.build(records, run.view_terms(terms, records, counts), Chat(tok), counts)
    before = policy_logp(models.load(source, device="cpu", precision="fp32"), corpus.sequences)
    trained = policy_logp(done.policy, corpus.sequences)
    assert [whole_logp(reloaded, s) for s in corpus.sequences] == pytest.approx(trained, abs=2e-4)
    assert max(abs(a - b) for a, b in zip(before, trained, strict=True)) > 0.1
    again = models.load(tmp_path / "run", device="cpu", precision="fp32")  # a run folder is a model too
    assert policy_logp(again, corpus.sequences) == pytest.approx(trained, abs=2e-4)
    card = (saved / "README.md").read_text()
    for said in (str(source), "objective `dpo`", "- 24 records from memory", "Held-out accuracy", "| eval_loss |"):
        assert said in card
    assert ("library_name: peft" in card) == (weights == "lora")


def test_a_head_is_trained_saved_and_never_made_anew(model_folder, tmp_path):
    records, objective = all_records(), {"labels": "pointwise_dpo"}
    first = train(model_folder, tmp_path / "a", records, objective, log_z="head", eval_fraction=0)
    held = load_file(tmp_path / "a" / "model" / "heads.safetensors")
    assert set(held) == {"log_z.linear.weight", "log_z.linear.bias"}
    assert all(bool(t.abs().max() > 0) for t in held.values())
    again = models.load(tmp_path / "a", device="cpu", heads=("log_z",))
    state = again.scorer.heads.state_dict()
    assert all(torch.equal(state[k], held[k]) for k in held)
    assert f"heads of {tmp_path / 'a'}, loaded: log_z" in again.told
    rate = {"head:log_z": 1e-9}
    train(tmp_path / "a", tmp_path / "b", records, objective, log_z="head", learning_rates=rate, eval_fraction=0)
    later = load_file(tmp_path / "b" / "model" / "heads.safetensors")
    assert all(torch.allclose(later[k], held[k], atol=1e-7) for k in held)
    assert first.summary["steps"] == 4
    with pytest.raises(ConfigError, match="no component 'head:logz'"):
        train(model_folder, tmp_path / "c", records, objective, log_z="head", learning_rates={"head:logz": 1.0})


def test_patience_stops_early_and_model_holds_the_best(model_folder, tmp_path):
    more = {"eval_steps": 1, "patience": 2, "save_best": True, "max_steps": 30, "learning_rate": 0.3}
    done = train(model_folder, tmp_path / "run", objective={"pairs": "sft"}, **more)
    rows = rows_of(tmp_path / "run")
    losses = {r["step"]: r["eval_loss"] for r in rows if "eval_loss" in r and r["step"]}
    best = min(losses, key=losses.get)
    assert done.summary["finished"] == "early stop"
    assert done.summary["steps"] == max(losses) == best + 2 < 30
    assert done.summary["best_step"] == best
    assert done.summary["held_out"]["eval_loss"] == losses[best]
    assert Checkpoints(tmp_path / "run" / "checkpoints", Processes()).steps()[0] == best
    scored = train(tmp_path / "run", tmp_path / "again", objective={"pairs": "sft"}, max_steps=1, learning_rate=1e-9)
    first = next(r for r in rows_of(scored.folder) if r["step"] == 0)
    assert first["eval_loss"] == pytest.approx(losses[best], rel=1e-5)
    with pytest.raises(ConfigError, match=r"best_metric='eval_los' is not measured; there are .*eval_loss"):
        train(model_folder, tmp_path / "d", best_metric="eval_los", patience=1, eval_steps=1)


def test_what_compares_evaluations_needs_a_held_out_example(model_folder, tmp_path, capsys):
    one = [r.model_copy(update={"prompt": "a b c"}) for r in pair_records(6)]
    loud = {k: v for k, v in TINY.items() if k != "quiet"}
    for setting in ({"patience": 1}, {"save_best": True}):
        with pytest.raises(ConfigError, match="compare evaluations, and nothing is held out: there is a single prompt"):
            train(model_folder, tmp_path / "none", one, **setting)
    assert not (tmp_path / "none" / "config.yaml").exists()
    accord.train(str(model_folder), one, output=str(tmp_path / "one"), max_steps=1, batch_size=4, eval_steps=1, **loud)
    out = capsys.readouterr().out
    assert "trained on: 6 records; held out: none\n" in out
    assert out.count("nothing is held out: there is a single prompt: there are no evaluations, and eval_steps is") == 1
    others = [Record(prompt=r.prompt, responses=r.responses[:1]) for r in pair_records(4, source="more")]
    with pytest.raises(ConfigError, match="of the 4 held-out records none gives an example"):
        train(model_folder, tmp_path / "none", one, eval_data=others, patience=1)


def test_what_is_held_out_is_told_apart(model_folder, tmp_path, capsys):
    loud = {k: v for k, v in TINY.items() if k != "quiet"}
    run = accord.train(
        str(model_folder), pair_records(20), output=str(tmp_path / "run"), max_steps=1, batch_size=4,
        eval_fraction=0.2, **loud,
    )  # fmt: skip
    other = [r.model_copy(update={"prompt": f"held {r.prompt}"}) for r in pair_records(4)]
    accord.train(str(model_folder), pair_records(4), eval_data=other, eval_fraction=0.3, dry_run=True, **loud)
    prompts = len({r.prompt_key for r in run.held_out})
    line = (
        f"trained on: {len(run.records)} records; held out: {len(run.held_out)} records of {prompts} prompts, "
        f"{len(run.held_out)} examples"
    )
    out = capsys.readouterr().out
    assert line in out
    assert "nothing reads eval_fraction=0.3: eval_data is what is held out" in out
    assert f"- {line}\n" in (run.folder / "model" / "README.md").read_text()
    assert list(yaml.safe_load((run.folder / "config.yaml").read_text()))[:4] == [
        "model",
        "data",
        "objective",
        "output",
    ]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"objective": {"pairs": "sft"}, "reference_mode": "live"}, "nothing reads reference_mode='live'"),
        ({"objective": {"pairs": "simpo"}, "reference_cache": "there"}, "nothing reads reference_cache='there'"),
        (
            {"objective": {"pairs": "dpo", "demonstrations": "sft"}, "records": mixed_records(), "batch_size": 1},
            "set batch_size to 2 or more",
        ),
    ],
)
def test_settings_without_effect_are_refused(more, says, model_folder, tmp_path):
    with pytest.raises(ConfigError, match=says):
        train(model_folder, tmp_path / "run", **more)


def test_margins_within_the_noise_are_half_right(model_folder, tmp_path, capsys):
    """A rate so small that no margin is more than rounding: no knowledge, whatever the signs."""
    loud = {k: v for k, v in TINY.items() if k != "quiet"} | {"precision": "bf16"}
    run = accord.train(
        str(model_folder), pair_records(24), output=str(tmp_path / "run"), max_steps=2, batch_size=8,
        learning_rate=1e-9, eval_fraction=0.5, **loud,
    )  # fmt: skip
    told = run.summary["held_out_accuracy"]
    assert told["mean"] == run.summary["held_out"]["eval_rewards/accuracies"] == 0.5
    assert told["ties"] == told["pairs"] > 0
    line = f"the margins of {told['ties']} of these pairs are within the noise of bf16 and count as half right"
    assert line in capsys.readouterr().out
    moved = train(model_folder, tmp_path / "moved", pair_records(24), max_steps=20, learning_rate=1e-2)
    assert moved.summary["held_out_accuracy"]["ties"] == 0


@pytest.mark.parametrize(
    ("objective", "length", "width"),
    [
        ("dpo", None, 0.5 * 8 * 2**-7 * 5.0),
        ("dpo", "mean", 0.5 * 8 * 2**-7 * (1 / 9 + 1 / 16) ** 0.5),
    ],
)
def test_the_width_of_a_tie(objective, length, width):
    (term,) = plan.terms(objective, {"beta": 0.5}, length=length).values()
    got = terms_.tie_width(term, torch.tensor([9]), torch.tensor([16]), torch.bfloat16)
    assert got.tolist() == pytest.approx([width])


def test_a_run_folder_tells_everything(model_folder, tmp_path):
    train(model_folder, tmp_path / "run", all_records(), WITH_KTO, eval_fraction=0.2)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "timing.jsonl", "summary.json", "data.json", "examples", "checkpoints",
        "model", "report.html", "verdicts.jsonl", "held_out",
    }  # fmt: skip
    import yaml

    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["layout"] == "shared"
    assert config["tokens_per_micro_batch"] == 768
    assert config["objective"] == WITH_KTO
    with pytest.raises(ConfigError, match="holds a finished run"):
        train(model_folder, tmp_path / "run")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match="other things than a run"):
        train(model_folder, tmp_path / "own", overwrite=True)
    assert (tmp_path / "own" / "thesis.txt").exists()


def test_kto_trains_when_only_one_prompt_is_held_out(model_folder, tmp_path):
    done = train(model_folder, tmp_path / "run", pair_records(8), "kto", max_steps=1)
    assert done.summary["finished"] == "done"
    assert len(done.held_out) == 1
    assert not any("eval_loss" in r for r in rows_of(done.folder))


# -- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "options", "says"),
    [
        ("dpoo", {}, "no objective is called 'dpoo'; did you mean 'dpo'"),
        ("dpo", {"bata": 0.1}, "'bata' is not an option of dpo; did you mean 'beta'"),
        ("dpo", {"tau": 0.1}, "'tau' is not an option of dpo"),
        ("dpo", {"beta": "much"}, "dpo.beta must be a number, not 'much'"),
        ({"name": "dpo", "bata": 0.1}, {}, "did you mean 'beta'"),
        ({"name": "dpo", "wieght": 0.1}, {}, "did you mean 'weight'"),
        ({"pears": "dpo"}, {}, "'pears' is no kind of feedback; did you mean 'pairs'"),
        ({}, {}, "the map is empty"),
        ([], {}, "the list is empty"),
        ([{"weight": 1.0}], {}, "an entry needs a name"),
        ([3], {}, "an entry needs a name.*; got 3"),
        (None, {}, "an entry needs a name"),
        (["sft", {"name": "kto"}], {}, "give it its own kind of feedback|cannot share examples"),
        (["dpo", "kto"], {}, "give it its own kind of feedback"),
        ({"name": "dpo", "view": {"tie": "half"}}, {}, "view.tie is not known; did you mean 'ties'"),
        ({"name": "dpo", "length": "median"}, {}, "neither sum nor mean"),
        ({"name": "dpo", "log_z": "head"}, {}, "dpo does not read it"),
        ({"name": "ulma", "log_z": "heed"}, {}, "use one, head, or a number"),
        ({"name": "ulma", "negatives": "trinary"}, {}, "none of binary, continuous"),
        ({"name": "dpo", "weight": "heavy"}, {}, "weight of dpo must be a number"),
    ],
)
def test_a_wrong_plan_names_what_is_nearest(objective, options, says):
    with pytest.raises(ConfigError, match=says):
        plan.terms(objective, options)


def test_options_reach_every_part_that_has_them():
    made = plan.terms(["dpo", {"name": "ipo", "tau": 0.3}, {"name": "sft", "weight": 0.1}], {"beta": 0.2})
    (term,) = made.values()
    assert term.name == "dpo+ipo+sft"
    assert [(row.name, weight, options) for row, weight, options in term.parts] == [
        ("dpo", 1.0, {"beta": 0.2}), ("ipo", 1.0, {"tau": 0.3}), ("sft", 0.1, {}),
    ]  # fmt: skip
    (mean,) = plan.terms("ipo", {}, length="mean").values()
    assert mean.name == "ipo[mean]"
    kinds = plan.terms({"demos": "sft", "preferences": {"name": "dpo", "weight": 2}, "thumbs": "kto"}, {})
    assert {n: (t.feeds_on, t.weight, t.feedback) for n, t in kinds.items()} == {
        "demonstrations": ("Demos", 1.0, ("demonstrations",)),
        "pairs": ("Pairs", 2.0, ("pairs",)),
        "labels": ("Points", 1.0, ("labels",)),
    }


def test_gather_shares_a_branch_that_several_examples_use():
    corpus, _ = corpus_of({"pairs": "dpo", "demonstrations": "sft"}, all_records())
    batch = gather(corpus, {"pairs": [0, 0, 1], "demonstrations": [0]})
    assert len(batch.sequences) == 5
    assert batch.terms["pairs"].roles["chosen"].tolist()[:2] == [0, 0]


def test_kl_and_masks_reach_an_objective_token_by_token(model_folder, tmp_path, monkeypatch, capsys):
    """SparsePO's needs on the contracts: a learned mask, token log-probs of both policies, token KL, live reference."""
    from accord.objectives import pairs as family
    from accord.objectives import table

    seen = {}

    def masked(pairs, ref_tokens, tokens, kl_tokens, mask, *, beta: float = 0.1):
        seen["shapes"] = (tokens.chosen.shape, kl_tokens.chosen.shape, mask.chosen.shape)
        seen["kl"] = float(kl_tokens.chosen.detach().abs().max())

        def side(name):
            m = 0.5 + getattr(mask, name)
            return (m * (getattr(tokens, name) - getattr(ref_tokens, name)) - m * getattr(kl_tokens, name)).sum(-1)

        return torch.nn.functional.softplus(-beta * (side("chosen") - side("rejected")))

    row = replace(
        table.find("dpo"), name="masked", needs=("ref_tokens", "tokens", "kl_tokens", "mask"), init="log(2)", aliases=()
    )
    monkeypatch.setattr(family, "masked", masked, raising=False)
    monkeypatch.setattr(table, "rows", lambda: {"masked": row})
    run_ = accord.train(
        str(model_folder), pair_records(16), "masked", output=str(tmp_path / "r"), reference_mode="live", max_steps=3,
        batch_size=4, learning_rate=1e-2, precision="fp32", device="cpu", eval_fraction=0.0, quiet=True,
    )  # fmt: skip
    assert run_.summary["finished"] == "done"
    assert run_.summary["start"]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert seen["kl"] > 0
    assert len(set(seen["shapes"])) == 1

    cached = accord.train(
        str(model_folder), pair_records(16), "masked", output=str(tmp_path / "c"), max_steps=1, batch_size=4,
        device="cpu", precision="fp32",
    )  # fmt: skip
    assert cached.summary["references"]["ref"]["mode"] == "live"  # it cannot be cached
    assert "one more forward pass at every step, and 0.0 GiB" in capsys.readouterr().out


def test_a_learned_mask_starts_open_and_learns(model_folder, tmp_path):
    run_ = accord.train(
        str(model_folder), pair_records(16), "sparsepo", output=str(tmp_path / "r"), max_steps=3, batch_size=4,
        learning_rate=1e-3, learning_rates={"head:mask": 1e-2}, sparsity=0.5, eval_fraction=0.0, **TINY,
    )  # fmt: skip
    assert run_.summary["start"]["loss"] == pytest.approx(np.log(2) + 0.5, abs=1e-4)
    assert load_file(run_.folder / "model" / "heads.safetensors")["mask.linear.weight"].abs().max() > 0


def test_two_masks_apart_learn_and_the_reference_s_activations_need_no_head(model_folder, tmp_path):
    given = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "eval_fraction": 0.0, **TINY}
    rates = {"head:mask": 1e-2, "head:kl_mask": 1e-2}
    run_ = accord.train(
        str(model_folder), pair_records(16), "sparsepo_independent", output=str(tmp_path / "two"),
        learning_rates=rates, **given,
    )  # fmt: skip
    heads = load_file(run_.folder / "model" / "heads.safetensors")
    assert heads["mask.linear.weight"].abs().max() > 0
    assert heads["kl_mask.linear.weight"].abs().max() > 0
    assert not torch.equal(heads["mask.linear.weight"], heads["kl_mask.linear.weight"])
    run_ = accord.train(
        str(model_folder), pair_records(16), "sparsepo_mapo", output=str(tmp_path / "mapo"), lora={"rank": 4}, **given
    )
    assert run_.summary["start"]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    assert run_.summary["references"]["ref"]["mode"] == "live"
    assert not (run_.folder / "model" / "heads.safetensors").exists()


def test_selfie_extrapolates_where_it_is_asked_to_and_pays_for_it_only_then(model_folder, tmp_path, capsys):
    """The margins that it remembers are those of logits 1.5 h - 0.5 h_ref."""

    def margins(extrapolation: float) -> torch.Tensor:
        run_ = accord.train(
            str(model_folder), pair_records(8), "selfie", output=str(tmp_path / str(extrapolation)), max_steps=3,
            batch_size=4, learning_rate=1e-2, eval_fraction=0.0, extrapolation=extrapolation, **TINY | {"quiet": False},
        )  # fmt: skip
        assert run_.summary["references"]["ref"]["mode"] == ("live" if extrapolation else "cached")
        (kept,) = run_.folder.glob("checkpoints/*/progress.json")
        return torch.tensor(json.loads(kept.read_text())["objective_state"]["selfie"]["0"]["tensor"])

    without, mixed = margins(0.0), margins(0.5)
    assert "the extrapolation away from the reference needs the reference beside" in capsys.readouterr().out
    assert not without[:4].any()
    assert torch.allclose(mixed[:4], without[:4], atol=1e-5)  # the policy is the reference yet
    assert not torch.allclose(mixed[4:], without[4:], rtol=0.1)


@pytest.mark.parametrize("name", ["wpo", "beta_dpo", "selfie", "aot_paired", "tdpo2", "sparsepo_mapo"])
def test_objectives_that_ask_for_more_than_log_probs_are_the_same_in_one_piece_and_in_many(
    name, model_folder, tmp_path
):
    """Statistics of tokens and of batches, state and noise: what a row asks for does not depend on the packing."""
    losses = []
    for budget in (60, 10_000):
        given = {"output": str(tmp_path / str(budget)), "max_steps": 4, "batch_size": 6, "learning_rate": 1e-2, **TINY}
        run_ = accord.train(str(model_folder), pair_records(24), name, tokens_per_micro_batch=budget, **given)
        lines = [json.loads(line) for line in (run_.folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-5)
    assert len(set(losses[0])) > 1


def test_scores_are_asked_for_and_lengths_are_not_chosen_twice(model_folder, tmp_path):
    given = {"output": str(tmp_path / "r"), "max_steps": 1, **TINY}
    with pytest.raises(ConfigError, match=r"reads the scores of both responses, and 8 of 8 pairs have none"):
        accord.train(str(model_folder), pair_records(8), "odpo", eval_fraction=0, **given)
    with pytest.raises(ConfigError, match="irpo is on sums and takes lengths into account itself"):
        plan.terms("irpo", {}, length="mean")
    assert plan.terms("irpo", {}, length="sum").keys() == {"irpo"}


# -- less memory ------------------------------------------------------------------------------------------------------


def test_what_a_token_leaves_is_measured(model_folder):
    """As much as a row of twenty times as many tokens leaves, by token; less where layers are computed again."""
    plain, again = (
        models.load(str(model_folder), device="cpu", precision="fp32", gradient_checkpointing=c).scorer
        for c in (False, True)
    )
    draw = np.random.default_rng(0)

    def sequences(times):
        return [Sequence(*(draw.integers(0, 300, n).astype(np.int32) for n in (20 * times, 10 * times)),
                         np.ones(10 * times, bool)) for _ in range(3)]  # fmt: skip

    (less, few), (more, many) = (models._left(plain, sequences(times)) for times in (1, 10))
    each = models.memory_of_a_token(plain)
    assert 0.8 < each / ((more - less) / (many - few)) < 1.25
    assert 0 < models.memory_of_a_token(again) < each / 2


def test_micro_batches_are_as_large_as_memory_allows(model_folder, tmp_path, monkeypatch, capsys):
    scorer = models.load(str(model_folder), device="cpu", precision="fp32").scorer
    beside = scorer.chunk_bytes + 12 * sum(p.numel() for p in scorer.parameters())
    each = models.memory_of_a_token(scorer)

    def tokens(free):
        return run.token_budget("auto", scorer, int(free))

    assert tokens(1e12) == run.usual_budget(scorer) == 768
    assert tokens(beside + 2 * 500 * each) == 384  # 500 fit into half of it, in steps of 128
    assert tokens(0) == 128
    assert run.token_budget(50, scorer, 0) == 50
    monkeypatch.setattr(models, "free_memory", lambda device: int(beside + 2 * 500 * each))
    loud = {k: v for k, v in TINY.items() if k != "quiet"}
    accord.train(str(model_folder), pair_records(8), "dpo", output=str(tmp_path / "r"), max_steps=1, **loud)
    assert "micro-batches of 384 tokens" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["tokens_per_micro_batch"] == 384


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("lora", [None, models.LoraOptions(rank=2, dropout=0.3)])
def test_gradient_checkpointing_changes_memory_and_no_gradient(layout, lora, model_folder):
    kept: list[int] = []
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        policy = models.load(
            str(model_folder), device="cpu", precision="fp32", lora=lora, layout=layout, gradient_checkpointing=again
        )
        with torch.no_grad():  # adapters start at zero, and so would half of their gradients
            for name, p in policy.scorer.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        records = pair_records(6)
        terms = plan.terms("simpo", {})
        corpus = Corpus.build(records, inputs.view_terms(terms, records, Counts()), Chat(policy.tokenizer), Counts())
        batch = Schedule(corpus, [inputs.spec(t, records) for t in terms.values()], 6, 0).batch(0)
        step = Step(policy.scorer, terms, records, None, budget=100)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            (grads,), *_ = step.backward(step.collect(batch, 0))
        kept.append(sum(sizes))
        found.append([g.clone() for g in grads if g is not None])
    assert len(found[0]) == len(found[1]) > 0
    assert_alike(found[1], found[0], 1e-6)
    assert kept[1] < 0.9 * kept[0]


def test_layers_that_are_computed_again_can_be_gone_back_through_twice(model_folder, tmp_path):
    """Probes do: they ask for the gradient of each answer over one forward pass."""
    given = {"output": str(tmp_path / "r"), "max_steps": 2, "gradient_checkpointing": True, "probe_every": 1, **TINY}
    done = accord.train(str(model_folder), pair_records(12), **given)
    assert any("probe_seconds" in line for line in (done.folder / "timing.jsonl").read_text().splitlines())


def test_four_bits_are_refused_where_they_cannot_be(model_folder, tmp_path):
    given = {"output": str(tmp_path / "r"), "load_in_4bit": True, "max_steps": 1, **TINY}
    with pytest.raises(ConfigError, match="adapters must be trained: add lora: true"):
        accord.train(str(model_folder), pair_records(8), **given)
    with pytest.raises(ConfigError, match="needs a GPU, and the device is cpu"):
        accord.train(str(model_folder), pair_records(8), lora=True, **given)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(model_folder, tmp_path, capsys):
    given = {"max_steps": 40, "batch_size": 8, "device": "cpu", "precision": "fp32", "eval_steps": 10}
    rehearsed = accord.train(str(model_folder), pair_records(40), output=str(tmp_path / "r"), dry_run=True, **given)
    said = capsys.readouterr().out
    assert not (tmp_path / "r").exists()
    for words in ("dpo: 36 pairs", "40 updates of 8 examples", "time: about", "memory: about", "nothing was written"):
        assert words in said, said
    weights = sum(p.numel() * 4 for p in rehearsed.model.parameters())
    assert rehearsed.summary["weights"] == rehearsed.summary["gradients"] == weights
    assert rehearsed.summary["optimizer"] == 2 * weights
    assert rehearsed.summary["activations"] > 0
    held = load_file(model_folder / "model.safetensors")
    assert all(torch.equal(p, held[n]) for n, p in rehearsed.model.named_parameters() if n in held)
    assert 0 < rehearsed.summary["off"] < 2
    assert "each within" in said
    done = accord.train(str(model_folder), pair_records(40), output=str(tmp_path / "r"), **given | {"quiet": True})
    timed = [json.loads(line)["seconds"] for line in (done.folder / "timing.jsonl").read_text().splitlines()]
    assert 0.2 < rehearsed.summary["step_seconds"] / np.median(timed) < 5


def test_a_dry_run_leaves_what_it_would_overwrite(model_folder, tmp_path):
    given = {"output": str(tmp_path / "r"), "max_steps": 1, **TINY}
    done = accord.train(str(model_folder), pair_records(8), **given)
    before = (done.folder / "metrics.jsonl").read_text()
    assert accord.train(str(model_folder), pair_records(8), dry_run=True, overwrite=True, **given).summary["memory"] > 0
    assert (done.folder / "metrics.jsonl").read_text() == before


def test_ratings_on_one_side_of_the_threshold_are_told(model_folder, tmp_path, capsys):
    rated = [
        Record(
            prompt=f"Say {i}",
            responses=(Response(text="hello"),),
            judgements=(Judgement(kind="score", response=0, value=5 + i % 4),),
        )
        for i in range(8)
    ]
    given = {"max_steps": 1, "batch_size": 4, "device": "cpu", "precision": "fp32"}
    accord.train(str(model_folder), rated, {"ratings": "ulma"}, output=str(tmp_path / "a"), **given)
    assert "all of them are good: view: {threshold: ...}" in capsys.readouterr().out
    accord.train(
        str(model_folder), rated, {"ratings": "ulma"}, view={"rescale": "unit"}, output=str(tmp_path / "b"), **given
    )
    assert "all of them are good" not in capsys.readouterr().out


def test_log_z_of_the_run_is_for_the_terms_that_read_it():
    made = plan.terms({"pairs": "dpo", "labels": "pointwise_dpo"}, {}, log_z="head")
    assert {name: term.log_z for name, term in made.items()} == {"pairs": "one", "labels": "head"}
    with pytest.raises(ConfigError, match="no objective here reads it"):
        plan.terms({"pairs": "dpo"}, {}, log_z="head")
    with pytest.raises(ConfigError, match="dpo does not read it"):
        plan.terms({"pairs": {"name": "dpo", "log_z": "head"}}, {})
