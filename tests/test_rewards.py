"""Reward models: what their losses come to, that their folder is transformers' own, and who reads them."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification
from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel

import accord
from accord.data.chat import Chat
from accord.data.records import Judgement, Record, Response
from accord.data.views import Counts, ViewOptions, view
from accord.engine import classifiers, models, rewards
from accord.engine.export import export
from accord.errors import AccordError, ConfigError
from accord.judges.reward import Reward
from accord.objectives import example, table
from accord.objectives.kinds import Pairs
from accord.objectives.rewards import preference
from accord.training.terms import add_metrics, reduced
from tests.conftest import data_file, make_llama, make_tokenizer, pair_records
from tests.processes import finish
from tests.test_moving import stop_at
from tests.test_parallel import assert_same_curve, curve
from tests.test_training import TINY, make

D = torch.float64


# --- what the losses come to ------------------------------------------------------------------------------------------


def least(loss, start: float = 0.1) -> float:
    """Where a convex loss of one number is least, by Newton's method."""
    x = torch.tensor([start], dtype=D, requires_grad=True)
    for _ in range(60):
        (slope,) = torch.autograd.grad(loss(x).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x)
        x = (x - slope / bend).detach().requires_grad_()
    return float(x)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def at(pairs: Pairs, m: torch.Tensor) -> Pairs:
    """Rewards m/2 and -m/2."""
    return replace(pairs, chosen=m / 2, rejected=-m / 2)


@pytest.mark.parametrize(
    ("name", "options", "target"),
    [
        ("bradley_terry", {"label_smoothing": 0.1}, logit(0.9)),
        ("soft_bradley_terry", {}, logit(0.8)),
        ("margin_bradley_terry", {"scale": 0.5}, 0.5 * 2 + logit(0.8)),
        ("reward_difference", {"scale": 0.5}, 0.5 * 2),
    ],
)
def test_the_margin_comes_to_rest_where_the_labels_say(name, options, target):
    pair = example.pairs(-1, -2, strength=0.8, scores=(3.0, 1.0))
    found = least(lambda m: table.function(name)(pair, at(pair, m), **options))
    assert found == pytest.approx(target, abs=1e-9)
    assert least(
        lambda s: table.function("reward_binary")(example.points(-1, 0.3), replace(example.points(0), logp=s))
    ) == (pytest.approx(logit(0.3), abs=1e-9))


def test_the_robust_loss_is_on_average_that_of_the_right_labels():
    pair, m = example.pairs(-1, -2), torch.linspace(-4, 4, 9, dtype=D)
    robust, plain = table.function("robust_bradley_terry"), table.function("bradley_terry")
    right, wrong = (robust(pair, at(pair, s * m), label_smoothing=0.2) for s in (1, -1))
    torch.testing.assert_close(0.8 * right + 0.2 * wrong, plain(pair, at(pair, m)))


def test_both_sides_are_pulled_alike_and_centring_takes_the_freedom_out():
    """A constant of the prompt changes nothing; with `center` the sum of both rewards goes to 0."""
    pair = example.pairs(-1, -2)
    w, l = (torch.tensor([x], dtype=D, requires_grad=True) for x in (1.2, 0.7))
    loss = table.function("bradley_terry")
    gw, gl = torch.autograd.grad(loss(pair, replace(pair, chosen=w, rejected=l)).sum(), (w, l))
    assert float(gw) == pytest.approx(-1 / (1 + math.exp(0.5)))
    assert float(gw + gl) == pytest.approx(0.0, abs=1e-15)
    moved = least(lambda c: loss(pair, replace(pair, chosen=0.5 + c, rejected=c - 0.2), center=0.01), 3.0)
    assert 0.5 + moved + moved - 0.2 == pytest.approx(0.0, abs=1e-9)


def test_lists_of_two_are_pairs_and_ordinal_of_two_levels_is_a_label():
    group, pair = example.groups([-1, -2], [1, 0]), example.pairs(-1, -2)
    for a, b in itertools.product((-2.0, 0.3), (1.5, 0.0)):
        plain = table.function("bradley_terry")(pair, example.pairs(a, b))
        for name in ("plackett_luce", "reward_all_pairs"):
            torch.testing.assert_close(table.function(name)(group, example.groups([a, b], [1, 0])), plain)
        for value in (0.0, 0.4, 1.0):
            point, cut = example.points(-1, value), torch.tensor([[b]], dtype=D)
            found = table.function("reward_ordinal")(point, example.points(a), cut, levels=2)
            torch.testing.assert_close(found, table.function("reward_binary")(point, example.points(a - b)))


def test_a_cycle_is_learned_by_planes_and_by_no_reward():
    """N4: three unit vectors, each 120 degrees from the next."""
    angles = torch.arange(3, dtype=D) * 2 * math.pi / 3
    v = torch.stack([angles.cos(), angles.sin()], 1)
    gate = torch.zeros(3, 1, dtype=D)
    m = preference(v, v.roll(-1, 0), gate, 1.0, True)
    assert m.tolist() == pytest.approx([math.sqrt(3) / 2] * 3)
    assert m.sigmoid()[0].item() == pytest.approx(0.703918, abs=1e-6)
    tenth = preference(v, v.roll(-1, 0), gate, 0.1, True)
    assert tenth.sigmoid()[0].item() == pytest.approx(0.999827, abs=1e-6)
    kind = Pairs(*[torch.zeros(3, dtype=D)] * 2, *[torch.ones(3, dtype=D)] * 5)
    loss = table.function("gpm")(kind, replace(kind, chosen=v, rejected=v.roll(-1, 0)), gate, dimensions=2)
    assert loss.tolist() == pytest.approx([1.733e-4] * 3, rel=1e-3)
    for r in torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=D):
        of = table.function("bradley_terry")(kind, replace(kind, chosen=r, rejected=r.roll(-1)))
        assert of.mean() > math.log(2)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("prompt_head", ["none", "softmax", "scaled"])
def test_preferences_are_antisymmetric_hold_rewards_and_are_read_as_they_were_trained(normalise, prompt_head):
    g = torch.Generator().manual_seed(1)
    v, gate = torch.randn(5, 6, generator=g, dtype=D), torch.randn(1, 3, generator=g, dtype=D)
    i, j = (torch.tensor(x) for x in zip(*itertools.product(range(5), repeat=2), strict=True))
    m = preference(v[i], v[j], gate.expand(25, 3), 0.3, normalise, prompt_head).view(5, 5)
    torch.testing.assert_close(m, -m.T)
    assert m.diagonal().abs().max() == 0
    options = {"tau": 0.3, "normalise": normalise, "prompt_head": prompt_head}
    np.testing.assert_allclose(rewards.preference(v.numpy(), gate.expand(5, 3).numpy(), options), m.numpy(), atol=1e-12)
    r = torch.randn(5, generator=g, dtype=D)
    as_rewards = torch.stack([r, torch.ones(5, dtype=D)], 1)
    torch.testing.assert_close(
        preference(as_rewards[i], as_rewards[j], torch.zeros(25, 1, dtype=D), 1.0, False).view(5, 5), r[:, None] - r
    )


# --- what feedback is to them -----------------------------------------------------------------------------------------


def rated(n: int = 12) -> list[Record]:
    """Answers rated from 1 to 5 in two attributes that disagree."""
    found = []
    for i in range(n):
        texts = ("the quick", "the quick brown fox", "the quick brown fox jumps over the lazy dog")
        said = [
            Judgement(kind="score", response=k, value=v, scale=(1, 5), attribute=a)
            for k in range(3)
            for a, v in (("long", 1.0 + 2 * k), ("short", 5.0 - 2 * k))
        ]
        answers = tuple(Response(text=t) for t in texts)
        found.append(Record(prompt=f"say it {i}", responses=answers, judgements=tuple(said)))
    return found


def test_a_rating_in_each_attribute_is_a_point_of_its_own():
    counts = Counts()
    made = view(rated(1), "Points", ViewOptions(attributes=["short", "long"], rescale="unit"), counts=counts)
    assert [(e.values["attribute"], e.values["value"]) for e in made] == [
        (0, 1.0), (1, 0.0), (0, 0.5), (1, 0.5), (0, 0.0), (1, 1.0),
    ]  # fmt: skip
    lacking = replace_judgements(rated(1)[0], lambda j: j.response != 1)
    assert len(view([lacking], "Points", ViewOptions(attributes=["short", "long"]), counts=counts)) == 4
    assert counts["left: a response that nobody rated in these attributes"] == 1
    for wrong in (["long"], ["long", "long"], "long"):
        with pytest.raises(ConfigError, match="names two or more, each once"):
            ViewOptions(attributes=wrong)


def replace_judgements(record: Record, keep) -> Record:
    return Record(**{**dict(record), "judgements": tuple(j for j in record.judgements if keep(j))})


def test_a_stated_margin_is_the_gap_of_a_pair_without_ratings():
    answers = (Response(text="the quick fox"), Response(text="the lazy dog"))
    said = (Judgement(kind="preference", pair=(1, 0), value=2.0, margin=True),)
    (pair,) = view([Record(prompt="a", responses=answers, judgements=said)], "Pairs", ViewOptions(), counts=Counts())
    assert pair.branches["chosen"].response == 1
    assert pair.values["score_chosen"] - pair.values["score_rejected"] == 2.0


def test_attributes_must_be_named_and_are_counted(model_folder, tmp_path):
    given = {"output": str(tmp_path / "run"), "max_steps": 1, **TINY}
    with pytest.raises(ConfigError, match=r"name them, like view: \{attributes"):
        accord.train(str(model_folder), rated(), "reward_attributes", **given)
    with pytest.raises(ConfigError, match=r"view\.attributes names 2: leave count out"):
        accord.train(str(model_folder), rated(), "reward_attributes", view={"attributes": ["a", "b"]}, count=3, **given)
    with pytest.raises(ConfigError, match="no objective here reads it"):
        accord.train(str(model_folder), rated(), "reward_regression", view={"attributes": ["a", "b"]}, **given)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(model_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "both.jsonl"
    file.write_text("".join(r.to_json() + "\n" for r in [*pair_records(16), *rated()]))
    return {
        "model": str(model_folder), "data": str(file), "objective": "bradley_terry", "max_steps": 6, "batch_size": 12,
        "learning_rate": 1e-3, "learning_rates": {"head:score": 3e-2}, "save_steps": 3, "schedule": "constant",
        "tokens_per_micro_batch": 120, **TINY,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory) -> Path:
    return finish(settings | {"output": str(tmp_path_factory.mktemp("runs") / "reward")})


def dialogue(record: Record, k: int) -> list[dict[str, str]]:
    question = {"role": "user", "content": str(record.prompt)}
    return [question, {"role": "assistant", "content": str(record.responses[k].text)}]


def plainly(model, tokenizer, records: list[Record]) -> np.ndarray:
    """Scores by transformers alone, in one padded batch."""
    chats = [dialogue(r, k) for r in records for k in range(len(r.responses))]
    batch = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
    assert (batch["attention_mask"] == 0).any()
    with torch.no_grad():
        return model.eval()(**batch).logits.squeeze(-1).double().numpy()


@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_loads_the_folder_and_gives_the_same_scores(trained, side):
    folder = trained / "model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LlamaForSequenceClassification)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert not (folder / "heads.safetensors").exists()
    tokenizer.padding_side = side
    records = [*pair_records(5), *rated(3)]
    mine = rewards.load(trained, device="cpu", precision="fp32").scores(records)
    assert [len(s) for s in mine] == [2] * 5 + [3] * 3
    assert np.concatenate(mine).std() > 0.1
    np.testing.assert_allclose(np.concatenate(mine), plainly(model, tokenizer, records), atol=1e-5)


@pytest.mark.parametrize("head", ["score", "value_head"])
def test_openrlhf_finds_the_head_by_its_name_for_it(trained, head):
    """Its reward model: the trunk under its usual name, a linear head without bias called as --value_head_prefix says
    (`score`; `value_head` in its first versions), read where the attention mask ends."""
    folder = trained / "model"

    class RewardModel(LlamaPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            setattr(self, self.base_model_prefix, LlamaModel(config))
            setattr(self, head, torch.nn.Linear(config.hidden_size, 1, bias=False))
            self.post_init()

    model, loaded = RewardModel.from_pretrained(folder, output_loading_info=True)
    if head == "value_head":  # it would be drawn at random, and transformers warns
        assert set(loaded["missing_keys"]) == {"value_head.weight"}
        assert set(loaded["unexpected_keys"]) == {"score.weight"}
        return
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    records = [*pair_records(5), *rated(3)]
    texts = [
        tokenizer.apply_chat_template(dialogue(r, k), tokenize=False) for r in records for k in range(len(r.responses))
    ]
    batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    mask = batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    last = mask.shape[1] - 1 - mask.fliplr().argmax(-1)
    with torch.no_grad():
        hidden = model.eval().model(input_ids=batch["input_ids"], attention_mask=mask, position_ids=positions)[0]
        theirs = model.score(hidden)[torch.arange(len(last)), last, 0].double().numpy()
    mine = rewards.load(trained, device="cpu", precision="fp32").scores(records)
    np.testing.assert_allclose(np.concatenate(mine), theirs, atol=1e-5)


def test_rewardbench_scores_rendered_texts_as_we_do(trained):
    """Its default pipeline: the chat template's text tokenized again, padded on the left, the logits as they are."""
    folder = trained / "model"
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    records = pair_records(6)
    texts = [tokenizer.apply_chat_template(dialogue(r, k), tokenize=False) for r in records for k in (0, 1)]
    inputs = tokenizer(texts, truncation=True, max_length=2048, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        theirs = model.eval()(**inputs).logits[:, 0].double().numpy()
    mine = rewards.load(trained, device="cpu", precision="fp32").scores(records)
    np.testing.assert_allclose(np.concatenate(mine), theirs, atol=1e-5)


def test_shared_packed_and_padded_scores_are_equal(trained):
    records = rated(6)
    found = [
        np.concatenate(rewards.load(trained, device="cpu", precision="fp32", layout=layout).scores(records))
        for layout in ("shared", "packed", "padded")
    ]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


def test_it_learns_and_says_so_in_rewards_and_no_log_probs(trained):
    rows = curve(trained)
    assert rows[-1]["eval_loss"] < rows[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    step = next(r for r in rows if r["step"] == 6 and "grad_norm" in r)
    known = {"chosen", "rejected", "margins", "accuracies", "min", "mean", "max"}
    found = {k.removeprefix("rewards/") for k in step if k.startswith("rewards/")}
    assert found - {"accuracies_longer", "accuracies_shorter"} == known  # those two where the batch has such pairs
    assert not any(k.startswith("probe/") and "grad_norm" not in k and k != "probe/update" for r in rows for k in r)
    assert step["rewards/min"] < step["rewards/mean"] < step["rewards/max"]
    assert step["rewards/mean"] == pytest.approx((step["rewards/chosen"] + step["rewards/rejected"]) / 2)
    assert not any("logps" in k or "ranking" in k for k in step)
    card = (trained / "model" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "writes no text" in card


def test_it_is_resumed_sharded_and_trained_on(settings, trained, tmp_path):
    finish(settings | {"output": str(tmp_path / "run"), "max_steps": 3})
    stop_at(tmp_path / "run", 3)
    finish(settings | {"output": str(tmp_path / "run")})
    assert curve(tmp_path / "run") == curve(trained)
    for name, tensor in load_file(trained / "model" / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "run" / "model" / "model.safetensors")[name], tensor), name
    assert_same_curve(finish(settings | {"output": str(tmp_path / "two")}, 2), trained)
    again = finish(settings | {"model": str(trained), "max_steps": 1, "output": str(tmp_path / "again")})
    assert curve(again)[0]["eval_loss"] == pytest.approx(curve(trained)[-1]["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_the_smallest_and_largest_are_those_of_the_whole_batch(count):
    """However many micro-batches there are."""
    made = make("bradley_terry", records=pair_records(12), batch_size=12, budget=10_000 if count == 1 else 60)
    torch.nn.init.normal_(made.policy.scorer.heads["score"].linear.weight, generator=torch.Generator().manual_seed(3))
    seen = made.step.evaluate(made.schedule.batch(0))
    scores = [v for e in seen.examples for v in e.rewards.values()]
    found = reduced(seen.metrics)
    assert (found["rewards/min"], found["rewards/max"]) == pytest.approx((min(scores), max(scores)), abs=1e-5)
    collected = made.step.collect(made.schedule.batch(0), 0)
    assert (len(collected.micros) > 1) == (count > 1)
    trained = reduced(made.step.backward(collected)[1])
    assert trained["rewards/max"] == pytest.approx(max(scores), abs=1e-5)
    doubled = dict(seen.metrics)
    add_metrics(doubled, seen.metrics)
    assert reduced(doubled)["rewards/min"] == found["rewards/min"]


@pytest.mark.parametrize(
    ("objective", "times"), [("bradley_terry", 0), ("gpm", 0), (["bradley_terry", {"name": "sft", "weight": 0.1}], 1)]
)
def test_the_language_model_head_is_computed_where_log_probs_are_read_alone(objective, times):
    made = make(objective, records=pair_records(8), batch_size=8)
    called = []
    made.policy.scorer.causal.get_output_embeddings().register_forward_hook(lambda *_: called.append(1))
    made.step.gradient(made.schedule.batch(0), 0)
    assert bool(called) == bool(times)


# --- other heads, other roads -----------------------------------------------------------------------------------------


def run_of(settings, folder: Path, objective, **more) -> Path:
    rate = {"learning_rates": None, "max_steps": 4}
    return finish(settings | rate | {"objective": objective, "output": str(folder)} | more)


def test_attributes_and_their_mixture(settings, tmp_path):
    named = {"view": {"attributes": ["long", "short"], "rescale": "centred"}}
    both = {"ratings": "reward_attributes", "pairs": "gated_bradley_terry"}
    alone = rewards.load(run_of(settings, tmp_path / "a", "reward_attributes", **named), device="cpu")
    assert (alone.kind, alone.attributes) == ("attributes", ("long", "short"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a" / "model")
    assert plain.config.num_labels == 2
    assert alone.scores(rated(2))[0].shape == (3, 2)
    judged = Reward(alone)(rated(1))[0]
    assert [j.attribute for j in judged] == ["long", "short"] * 3
    with pytest.raises(AccordError, match="several attributes"):
        alone.margins(rated(1))
    mixture = rewards.load(run_of(settings, tmp_path / "m", both, **named), device="cpu", precision="fp32")
    assert mixture.kind == "mixture"
    assert mixture.scores(rated(2))[0].shape == (3,)
    assert set(load_file(tmp_path / "m" / "model" / "heads.safetensors")) == {"gate.linear.weight", "gate.linear.bias"}
    seen = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    assert "pairs/rewards/accuracies" in next(row for row in seen if row["step"] == 4)


def test_preferences_and_levels_keep_their_own_heads(settings, tmp_path):
    folder = run_of(settings, tmp_path / "gpm", "gpm", dimensions=4, prompt_head="scaled", learning_rate=1e-2)
    model = rewards.load(folder, device="cpu", precision="fp32")
    assert model.kind == "preference"
    assert json.loads((folder / "model" / "reward.json").read_text())["options"]["normalise"] is True
    for m in model.margins(rated(3)):
        np.testing.assert_allclose(m, -m.T, atol=1e-12)
    assert abs(model.margins(rated(1))[0]).max() > 0.01
    (judged,) = Reward(model)(rated(1))
    assert [j.pair for j in judged] == [(0, 1), (0, 2), (1, 2)]
    levels = run_of(settings, tmp_path / "o", "reward_ordinal", view={"rescale": "unit", "attribute": "long"})
    assert set(load_file(levels / "model" / "heads.safetensors")) == {"cuts.free"}
    assert rewards.load(levels, device="cpu").scores(rated(1))[0].shape == (3,)
    assert load_file(levels / "model" / "heads.safetensors")["cuts.free"].abs().max() > 0


@pytest.mark.parametrize(
    "part", [{"name": "simcse", "of": "responses", "dropout": 0.5}, {"name": "swav"}], ids=lambda p: p["name"]
)
def test_a_contrastive_term_falls_on_held_out_pairs_beside_a_reward(part, tmp_path):
    """Real pairs, the tiny pretrained model: what the loss is above that of its rewards, before and after."""
    file = tmp_path / "pairs.jsonl"
    with gzip.open(data_file("pairwise/ultrafeedback-binarized.train1000.jsonl.gz"), "rt", encoding="utf-8") as lines:
        file.write_text("".join(itertools.islice(lines, 64)))
    given = {"max_steps": 20, "batch_size": 8, "max_length": 64, "learning_rate": 3e-4, **TINY}
    model, folder = data_file("tiny-lm/hf"), tmp_path / "run"
    accord.train(str(model), str(file), ["bradley_terry", part], output=str(folder), **given)
    apart = []
    for rows in (pq.read_table(f).to_pylist() for f in sorted((folder / "held_out").glob("*.parquet"))):
        margin = np.array([row["rewards_chosen"] - row["rewards_rejected"] for row in rows])
        apart.append(np.mean([row["loss"] for row in rows] - np.logaddexp(0.0, -margin)))
    assert 0 < apart[-1] < apart[0]
    assert json.loads((folder / "model" / "reward.json").read_text())["heads"] == ["score"]
    assert rewards.load(folder, device="cpu").scores(rated(1))[0].shape == (3,)


def test_what_was_measured_in_training_is_what_the_folder_says(settings, tmp_path):
    """The margins of the last evaluation, of preferences and of a mixture."""
    for name in ("bradley_terry", "gpm"):
        run = accord.train(**settings | {"objective": name, "output": str(tmp_path / name), "learning_rates": None})
        model = rewards.load(run.folder, device="cpu", precision="fp32")
        margins = [float(m[0, 1]) for m in model.margins([r for r in run.held_out if len(r.responses) == 2])]
        held = [e for e in run.held_out if len(e.responses) == 2]
        assert held
        seen = curve(run.folder)[-1]["eval_rewards/margins"]
        every = [m[a, b] for r, m in zip(run.held_out, model.margins(run.held_out), strict=True) for a, b in ranked(r)]
        assert np.mean(every) == pytest.approx(seen, abs=1e-4)
        assert len(margins) == len(held)


def ranked(record: Record) -> list[tuple[int, int]]:
    """The pairs that a record's judgements make, chosen first."""
    made = view([record], "Pairs", ViewOptions(), counts=Counts())
    return [(e.branches["chosen"].response, e.branches["rejected"].response) for e in made]


def test_an_adapter_is_peft_s_own_and_is_merged_by_export(settings, trained, tmp_path, model_folder):
    from peft import PeftModel

    folder = run_of(settings, tmp_path / "lora", "bradley_terry", lora=True, learning_rate=1e-2, max_steps=6)
    records = rated(3)
    mine = np.concatenate(rewards.load(folder, device="cpu", precision="fp32").scores(records))
    assert mine.std() > 1e-3
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    base.config.pad_token_id = tokenizer.pad_token_id
    peft = PeftModel.from_pretrained(base, folder / "model")
    np.testing.assert_allclose(plainly(peft, tokenizer, records), mine, atol=1e-5)
    whole = export(folder, tmp_path / "whole", merge=True)
    merged = AutoModelForSequenceClassification.from_pretrained(whole)
    np.testing.assert_allclose(plainly(merged, AutoTokenizer.from_pretrained(whole), records), mine, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate(rewards.load(whole, device="cpu", precision="fp32").scores(records)), mine, atol=1e-5
    )
    again = run_of(settings, tmp_path / "stacked", "bradley_terry", model=str(folder), lora=True, max_steps=1)
    assert (again / "model" / "config.json").exists()
    with pytest.raises(ConfigError, match="writes no text"):
        export(trained, tmp_path / "gguf", gguf=True)


def test_a_checkpoint_of_others_with_output_embeddings_of_its_own(settings, tmp_path):
    """Untied, so that the files hold no way to text; trained on, and scored."""
    tokenizer = make_tokenizer()
    config = make_llama(vocabulary=len(tokenizer)).config
    config.tie_word_embeddings, config.num_labels, config.pad_token_id = False, 1, 1
    torch.manual_seed(5)
    theirs = LlamaForSequenceClassification(config)
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    records = rated(3)
    for layout in ("shared", "padded"):
        mine = rewards.load(tmp_path / "theirs", device="cpu", precision="fp32", layout=layout)
        assert mine.policy.scorer.causal.get_output_embeddings() is None
        tokens = [np.concatenate([s.context, s.ids]) for s in rewards.encoded(mine.chat, records, Counts())[0]]
        with torch.no_grad():
            expected = [float(theirs.eval()(input_ids=torch.from_numpy(t).long()[None]).logits) for t in tokens]
        np.testing.assert_allclose(np.concatenate(mine.scores(records)), expected, atol=1e-5)
    folder = run_of(settings, tmp_path / "on", "bradley_terry", model=str(tmp_path / "theirs"))
    assert "score.weight" in load_file(folder / "model" / "model.safetensors")
    with pytest.raises(AccordError, match="is a reward model: it scores answers and writes none"):
        models.load(tmp_path / "theirs", device="cpu")


def test_a_model_without_such_a_class_keeps_its_head_beside_it(settings, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "classifier", lambda causal, labels: None)
    run = accord.train(**settings | {"output": str(tmp_path / "run"), "quiet": True})
    assert "score.linear.weight" in load_file(run.folder / "model" / "heads.safetensors")
    same = [
        np.concatenate(rewards.load(f, device="cpu", precision="fp32").scores(rated(2))) for f in (run.folder, trained)
    ]
    np.testing.assert_allclose(*same, atol=1e-6)
    with pytest.raises(AccordError, match="is a reward model"):
        models.load(run.folder, device="cpu")


def test_a_language_model_with_a_score_writes_and_scores(settings, tmp_path):
    both = ["bradley_terry", {"name": "sft", "weight": 0.1}]
    folder = run_of(settings, tmp_path / "both", both)
    assert json.loads((folder / "model" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert rewards.load(folder, device="cpu").scores(rated(1))[0].shape == (3,)
    assert models.load(folder, device="cpu").scorer.heads.keys() == set()


def test_what_is_no_reward_model_is_refused(trained, model_folder, tmp_path):
    with pytest.raises(AccordError, match="no head that was trained to score"):
        rewards.load(model_folder)
    with pytest.raises(AccordError, match="is a reward model"):
        accord.train(str(trained), pair_records(8), "dpo", output=str(tmp_path / "dpo"), **TINY)
    headless = tmp_path / "headless"
    made = load_file(trained / "model" / "model.safetensors")
    shutil.copytree(trained / "model", headless)
    save_file({k: v for k, v in made.items() if k != "score.weight"}, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(AccordError, match="no weights of the head 'score', which would start at random"):
        rewards.load(headless)


def test_commands_refuse_it_in_a_sentence(trained, accord, tmp_path):
    (tmp_path / "prompts.txt").write_text("the quick fox\n")
    for words in (("sample", "--model", trained, "--prompts", tmp_path / "prompts.txt"), ("chat", trained)):
        status, _, said = accord(*words)
        assert status == 2
        assert "is a reward model: it scores answers and writes none" in said


# --- calibration, implicit rewards, judges ----------------------------------------------------------------------------


def test_calibration_puts_rewards_on_a_scale_and_is_taken_out_again(trained, accord, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(r.to_json() + "\n" for r in rated(8)))
    raw = np.concatenate(rewards.load(tmp_path / "run", device="cpu", precision="fp32").scores(rated(8)))
    words = ("calibrate", tmp_path / "run", "--data", answers, "--device", "cpu", "--precision", "fp32")
    status, out, said = accord(*words, "--json")
    assert status == 0, said
    kept = json.loads(out)
    assert (kept["responses"], kept["mean"]) == (24, pytest.approx(raw.mean(), abs=1e-6))
    model = rewards.load(tmp_path / "run", device="cpu", precision="fp32")
    scaled = np.concatenate(model.scores(rated(8)))
    assert (scaled.mean(), scaled.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    np.testing.assert_allclose(scaled, kept["gain"] * raw + kept["bias"], atol=1e-9)
    assert model.margins(rated(1))[0][0, 1] == pytest.approx(
        raw[0] - raw[1], abs=1e-6
    )  # odds stay as they were trained
    assert accord(*words, "--center")[0] == 0
    moved = np.concatenate(rewards.load(tmp_path / "run", device="cpu", precision="fp32").scores(rated(8)))
    np.testing.assert_allclose(moved, raw - raw.mean(), atol=1e-6)
    assert accord("calibrate", tmp_path / "run", "--remove")[0] == 0
    again = np.concatenate(rewards.load(tmp_path / "run", device="cpu", precision="fp32").scores(rated(8)))
    np.testing.assert_array_equal(again, raw)
    assert accord("calibrate", tmp_path / "run")[0] == 2


@pytest.fixture(scope="module")
def moved_folder(model_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moved") / "model"
    policy = models.load(model_folder, device="cpu", precision="fp32")
    with torch.no_grad():
        for p in policy.model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def log_probs(folder: Path, record: Record) -> list[tuple[float, int]]:
    """log pi(y|x) and tokens of every response, by transformers alone."""
    policy = models.load(folder, device="cpu", precision="fp32", layout="padded")
    chat = Chat(policy.tokenizer, max_length=4096, stop_ids=policy.ends)
    found = []
    for s in rewards.encoded(chat, [record], Counts())[0]:
        ids = torch.from_numpy(np.concatenate([s.context, s.ids])).long()[None]
        with torch.no_grad():
            logp = policy.model(input_ids=ids).logits[0].double().log_softmax(-1)
        here = torch.arange(len(s.context), ids.shape[1])
        found.append((float(logp[here - 1, ids[0, here]].sum()), len(here)))
    return found


def test_an_implicit_reward_is_beta_times_the_log_ratio_and_its_steps_add_up(model_folder, moved_folder):
    text = "the quick brown fox\n\njumps over\n\nthe lazy dog"
    record = Record(prompt="say it", responses=(Response(text=text), Response(text="the dog")))
    given = {"beta": 0.5, "device": "cpu", "precision": "fp32"}
    for length in ("sum", "mean"):
        model = rewards.implicit(moved_folder, model_folder, length=length, **given)
        pairs = zip(log_probs(moved_folder, record), log_probs(model_folder, record), strict=True)
        expected = [0.5 * (a - b) / (n if length == "mean" else 1) for (a, n), (b, _) in pairs]
        np.testing.assert_allclose(model.scores([record])[0], expected, atol=1e-4)
    free = rewards.implicit(moved_folder, **given)
    np.testing.assert_allclose(
        free.scores([record])[0], [0.5 * a for a, _ in log_probs(moved_folder, record)], atol=1e-4
    )
    same = rewards.implicit(model_folder, model_folder, **given)
    assert np.abs(same.scores([record])[0]).max() == 0
    whole = rewards.implicit(moved_folder, model_folder, **given)
    (first, second), totals = whole.steps([record])[0], whole.scores([record])[0]
    assert len(first) == 3
    assert len(second) == 1
    assert "".join(t for t, _ in first).startswith(text)
    assert [sum(v for _, v in steps) for steps in (first, second)] == pytest.approx(totals.tolist(), abs=1e-9)
    (judged,) = Reward(whole, steps=True)([record])
    assert [j.step for j in judged] == [None, None, 0, 1, 2, 0]
    assert len({j.by for j in judged}) == 1


def test_a_judge_says_nothing_of_what_cannot_be_scored(trained):
    model = rewards.load(trained, device="cpu", precision="fp32")
    whole = pair_records(1)[0]
    told = []
    found = Reward(model)([whole, whole], lambda done, of: told.append((done, of)))
    assert [j.value for j in found[0]] == pytest.approx([j.value for j in found[1]])
    assert found[0][0].by.endswith(model.key[:8])
    assert told[-1] == (2, 2)
    silent = Record(prompt="a", responses=(Response(messages=({"role": "assistant", "content": "x", "weight": 0},)),))
    assert np.isnan(model.scores([silent])[0]).all()
    assert Reward(model)([silent]) == [()]
    assert model.counts["dropped: a response without a token to train"] >= 1
