"""`accord eval` and `accord data strength`: what is measured on pairs whose truth is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from accord.data import sources
from accord.data.records import STRENGTH, Judgement, Record, Response
from accord.data.views import Counts, ViewOptions, view
from accord.errors import AccordError, ConfigError, RecordError
from accord.evaluate import protocols, ranking
from accord.evaluate.rewards import clusters, evaluate, margins, pairs_of
from accord.evaluate.scorers import Said, find
from accord.evaluate.strength import weigh
from accord.judges.ensemble import Ensemble, together


class Given:
    """A judge whose scores are stated: for each record, of its responses; None is no score."""

    def __init__(self, by: str, scores: list[list[float | None]]) -> None:
        self.by, self.scores = by, scores

    def __call__(self, records, say=lambda done, of: None):
        say(len(records), len(records))
        return [
            tuple(Judgement(kind="score", response=i, value=v, by=self.by) for i, v in enumerate(row) if v is not None)
            for row in self.scores[: len(records)]
        ]


def pair(prompt: str, chosen: str = "yes", rejected: str = "no", value: float = 1.0, source: str = "default") -> Record:
    return Record(
        prompt=prompt, responses=(Response(text=chosen), Response(text=rejected)), source=source,
        judgements=(Judgement(kind="preference", pair=(0, 1), value=value, by="people"),),
    )  # fmt: skip


def drawn(n: int = 1500, scale: float = 1.0, seed: int = 0) -> tuple[list[Record], Given]:
    """Pairs labelled with probability sigmoid(d), and a model whose margins are scale * d."""
    random = np.random.default_rng(seed)
    d = random.normal(scale=1.5, size=n)
    label = random.random(n) < expit(d)
    records = [pair(f"prompt {i}", value=float(label[i])) for i in range(n)]
    return records, Given(f"model {scale:g}", [[scale * v, 0.0] for v in d.tolist()])


# -- rewards -----------------------------------------------------------------------------------------------------------


def test_a_model_that_is_right_and_one_that_is_too_sure():
    records, calibrated = drawn()
    sure = Given("sure", [[3 * a, 0.0] for a, _ in calibrated.scores])
    found = evaluate(records, [calibrated, sure])
    right, wrong = found.models
    assert right.accuracy == wrong.accuracy  # a scale changes no order
    assert not right.calibration.seen
    assert right.calibration.ece.low == 0
    assert wrong.calibration.seen
    assert wrong.calibration.ece.mean == pytest.approx(0.145, abs=0.03)
    assert right.tempered["temperature"] == pytest.approx(1, abs=0.2)
    assert wrong.tempered["temperature"] == pytest.approx(3, abs=0.6)
    assert wrong.tempered["after"].mean < wrong.tempered["before"].mean / 2
    assert right.nll < wrong.nll - 0.1
    (drift,) = found.drifts
    assert (drift.agreement, drift.flips, drift.accuracy.mean) == (1, 0, 0)
    assert drift.rank == drift.margin_rank == pytest.approx(1)
    assert found.clusters == [{"models": ["model 1"], "with": ["sure"], "agreement": 1.0}]


def test_ties_of_people_count_for_calibration_alone_and_ties_of_models_half():
    records = [pair("a"), pair("b"), pair("c", value=0.5), pair("d", value=0.0)]
    model = Given("m", [[1.0, 0.0], [2.0, 2.0], [5.0, 0.0], [0.0, 1.0]])
    found = evaluate(records, [model])
    (m,) = found.models
    assert (found.pairs, found.human_ties, m.pairs, m.ties) == (3, 1, 3, 1)
    assert m.accuracy.mean == pytest.approx(2.5 / 3)
    p = expit(np.array([1.0, 0.0, 5.0, 1.0]))
    assert m.brier == pytest.approx(((p - [1, 1, 0.5, 1]) ** 2).mean())


def test_what_a_model_does_not_score_counts_nowhere_and_is_told():
    records = [pair("a"), pair("b"), pair("c")]
    found = evaluate(records, [Given("m", [[1.0, 0.0], [None, 1.0], [1.0, 2.0]])])
    assert (found.models[0].pairs, found.models[0].unscored) == (2, 1)
    assert "says nothing about 1 pair" in "\n".join(found.lines())
    with pytest.raises(RecordError, match="m says nothing about any of the 3 pairs"):
        evaluate(records, [Given("m", [[None, None]] * 3)])


def test_sources_and_length():
    """A model that likes what is longer is right where chosen is longer, and wrong where it is shorter."""
    records = [
        *(pair(f"a{i}", "long answer", "no", source="a") for i in range(6)),
        *(pair(f"b{i}", "no", "long answer", source="b") for i in range(4)),
    ]
    longer = Given("longer", [[11.0, 2.0]] * 6 + [[2.0, 11.0]] * 4)
    (m,) = evaluate(records, [longer]).models
    assert {k: (s.accuracy.mean, s.pairs) for k, s in m.sources.items()} == {"a": (1, 6), "b": (0, 4)}
    assert {k: s.pairs for k, s in m.by_length.items()} == {"shorter": 4, "longer": 6, "equal": 0}
    assert (m.by_length["shorter"].accuracy.mean, m.by_length["longer"].accuracy.mean) == (0, 1)
    assert (m.prefers_longer, m.people_prefer_longer) == (1, 0.6)
    assert m.score_length == m.margin_length == pytest.approx(1)


def test_scores_that_stand_in_the_file_are_no_truth_of_their_own():
    def score(by: str, i: int, value: float) -> Judgement:
        return Judgement(kind="score", response=i, value=value, by=by)

    records = [
        r.model_copy(update={"judgements": (*r.judgements, score("rm", 0, v), score("rm", 1, 0.0))})
        for r, v in zip([pair("a"), pair("b")], (1.0, -1.0), strict=True)
    ]
    assert evaluate(records, [Said("rm")]).models[0].accuracy.mean == 0.5
    with pytest.raises(ConfigError, match=r"nothing is said by 'reward'.*known: people, rm"):
        evaluate(records, [Said("reward")])


def test_a_judge_that_compares():
    said = (Judgement(kind="preference", pair=(1, 0), value=0.25, by="j"),)
    pairs = pairs_of([pair("a")])
    assert margins(pairs, [said]).tolist() == pytest.approx([math.log(3)])
    gap = (Judgement(kind="preference", pair=(1, 0), value=-2, margin=True, by="j"),)
    assert margins(pairs, [gap]).tolist() == [2.0]


def test_pairs_of_one_prompt_widen_the_interval():
    records, model = drawn(200)
    many = [
        Record(**{**dict(r), "responses": tuple(Response(text=f"{a.text} {k}") for a in r.responses)})
        for r in records for k in range(6)
    ]  # fmt: skip
    repeated = Given("m", [row for row in model.scores for _ in range(6)])
    once, often = (evaluate(*case).models[0].accuracy for case in ((records, [model]), (many, [repeated])))
    assert often.mean == once.mean
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.1)


def test_clusters_join_who_agrees_most():
    records, model = drawn(400)
    random = np.random.default_rng(1)
    near = Given("near", [[a + 0.1 * random.normal(), 0.0] for a, _ in model.scores])
    other = Given("other", [[random.normal(), 0.0] for _ in model.scores])
    found = evaluate(records, [model, other, near])
    assert found.clusters[0]["models"] + found.clusters[0]["with"] == ["model 1", "near"]
    assert found.clusters[0]["agreement"] > 0.9 > found.clusters[1]["agreement"]
    assert clusters(["one"], []) == []


def test_everything_is_written_and_bad_pairs_can_be_traced(tmp_path, accord):
    rows = [{"prompt": f"p{i}", "chosen": "Blue skies.", "rejected": "No.", "score_chosen": i, "score_rejected": 1}
            for i in range(3)]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, out, err = accord("eval", "rewards", "slogan:words=2", "slogan:words=1", "--data", file, "--output", "found")
    assert code == 0, err
    assert "slogan:words=2" in out
    told = json.loads((tmp_path / "found" / "rewards.json").read_text())
    assert told["models"][0]["accuracy"]["mean"] == 1
    assert told["models"][1]["accuracy"]["mean"] == 0
    assert told["drifts"][0]["flips"] == 1
    lines = [json.loads(line) for line in (tmp_path / "found" / "pairs.jsonl").read_text().splitlines()]
    assert [(r["file"], r["line"]) for r in lines] == [(str(file), n) for n in (1, 2, 3)]
    assert lines[0]["margins"]["slogan:words=2"] > 0
    code, out, _ = accord("eval", "rewards", "slogan:words=2", "--data", file, "--json")
    assert code == 0
    assert (json.loads(out)["pairs"], json.loads(out)["human_ties"]) == (2, 1)  # equal scores are a tie
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["slogan:word=2"], "slogan has no option 'word'; did you mean 'words'"),
        (["slogan:words=two"], "words is a whole number, not 'two'"),
        (["slogan:words=2", "slogan:words=2"], "two models are called 'slogan:words=2'"),
        (["slogan", "--protocol", "rewardbench3"], "did you mean"),
        (["slogan", "--length", "median"], "sum or mean"),
        (["by:me"], "no judgement says by whom it is"),
    ],
)
def test_what_cannot_be_measured_is_said(words, said, tmp_path, accord):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "Blue.", "rejected": "Bread."}\n')
    code, _, err = accord("eval", "rewards", *words, "--data", "pairs.jsonl")
    assert code == 2
    assert said in err


# -- models ------------------------------------------------------------------------------------------------------------


def plain_log_prob(folder: Path, record: Record, response: int) -> tuple[float, int]:
    """Of the response's tokens, by the model's own forward."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from accord.data.chat import Chat
    from accord.data.views import Branch

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    (sequence,) = Chat(tokenizer).encode(record, [Branch(0, response)], Counts())
    ids = torch.tensor([[*sequence.context.tolist(), *sequence.ids.tolist()]])
    with torch.no_grad():
        logp = model(ids).logits[0].log_softmax(-1)
    at = range(len(sequence.context), ids.shape[1])
    return sum(float(logp[i - 1, ids[0, i]]) for i in at), len(at)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory) -> Path:
    from tests.conftest import make_llama, make_tokenizer

    folder = tmp_path_factory.mktemp("models") / "other"
    tok = make_tokenizer()
    make_llama(seed=1, vocabulary=len(tok)).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def test_implicit_rewards_are_those_of_the_plain_forward(model_folder, other_folder):
    records = [pair("say hello", "hello world", "the lazy dog"), pair("hello", "today", "the fox")]
    for length in ("sum", "mean"):
        judge = find(str(model_folder), reference=str(other_folder), beta=0.5, length=length, precision="fp32")
        for record, said in zip(records, judge(records), strict=True):
            for i in (0, 1):
                (own, n), (ref, _) = (plain_log_prob(f, record, i) for f in (model_folder, other_folder))
                expected = 0.5 * (own - ref) / (n if length == "mean" else 1)
                assert said[i].value == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def trained(model_folder, tmp_path_factory) -> Path:
    """A folder with pairs.jsonl and a reward model `rm` of three updates on them."""
    from accord.training.run import train
    from tests.conftest import pair_records

    folder = tmp_path_factory.mktemp("rewards")
    (folder / "pairs.jsonl").write_text("".join(r.to_json() + "\n" for r in pair_records(12)))
    train(
        model=str(model_folder), data=str(folder / "pairs.jsonl"), objective="bradley_terry", output=str(folder / "rm"),
        max_steps=3, precision="fp32", learning_rate=1e-5, eval_fraction=0,
    )  # fmt: skip
    return folder


def test_a_trained_reward_model_is_measured_by_its_own_scores(trained, tmp_path, accord):
    from accord.engine import rewards
    from tests.conftest import pair_records

    rm = str(trained / "rm")
    expected = [s[0] - s[1] for s in rewards.load(rm, precision="fp32").scores(pair_records(12))]
    words = ["eval", "rewards", rm, "--data", trained / "pairs.jsonl", "--output", "found", "--precision", "fp32"]
    code, _, err = accord(*words)
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "found" / "pairs.jsonl").read_text().splitlines()]
    assert [r["margins"][rm] for r in lines] == pytest.approx(expected, abs=1e-5)
    told = json.loads((tmp_path / "found" / "rewards.json").read_text())["models"][0]
    assert told["accuracy"]["mean"] == np.mean(np.array(expected) > 0)
    assert told["nll"] == pytest.approx(np.mean(np.log1p(np.exp(-np.array(expected)))), abs=1e-5)


def test_dropout_passes_are_drawn_models_around_the_reward(trained):
    from accord.engine import rewards
    from accord.judges.ensemble import own_scores, passes
    from tests.conftest import pair_records

    records = pair_records(6)
    load = lambda: rewards.load(str(trained / "rm"), precision="fp32")  # noqa: E731
    plain = np.array(load().scores(records))
    for rate, tolerance in ((0.1, 0.05), (0.5, 0.15)):
        judges = passes(load(), 400, rate, seed=1)
        drawn_ = np.array([[own_scores(said, 2) for said in judge(records)] for judge in judges])  # [T, N, 2]
        assert drawn_.mean(0) == pytest.approx(plain, abs=tolerance * np.abs(plain).max())
        assert (drawn_.std(0) > 0).all()
    twice = [[j.value for said in passes(load(), 3, 0.1)[2](records) for j in said] for _ in range(2)]
    assert twice[0] == twice[1]
    one, other = records[0], records[3]  # a mask is one model: a response has its score in any company
    first, third = passes(load(), 2, 0.1)[1]([one, other]), passes(load(), 2, 0.1)[1]([other])
    assert [j.value for j in first[1]] == pytest.approx([j.value for j in third[0]], abs=1e-5)
    for arguments in ((1, 0.1), (3, 0.0), (3, 1.0)):
        with pytest.raises(ConfigError, match="passes"):
            passes(load(), *arguments)


def test_one_model_under_dropout_weighs_as_an_ensemble(trained, accord):
    words = ["data", "strength", trained / "pairs.jsonl", trained / "rm", "--output", "out.jsonl", "--json"]
    code, out, err = accord(*words, "--passes", 4, "--dropout", 0.2)
    assert code == 0, err
    found = json.loads(out)
    assert len(found["models"]) == 4
    parts = list(found["parts"].values())
    assert all(p["deviation"] > 0 for p in parts)
    assert all(0 < p["bald"] < math.log(2) for p in parts)
    code, _, err = accord("data", "strength", trained / "pairs.jsonl", "slogan", "--output", "b.jsonl", "--passes", 4)
    assert code == 2
    assert "slogan is no reward model" in err


def test_a_policy_without_a_reference_is_no_reward_model(model_folder):
    with pytest.raises(AccordError, match="--reference"):
        find(str(model_folder))


# -- ranking -----------------------------------------------------------------------------------------------------------


def test_oracle_n8_ranking():
    assert float(ranking.needed_loss(np.array(-20.0), 0.1)) == pytest.approx(0.126928, abs=1e-6)
    shift = float(ranking.idealised(np.array(0.0), 0.75, 0.1))
    assert shift == pytest.approx(10.986, abs=1e-3)
    for ratio in (-3.0, 0.5):  # a pair is ranked rightly exactly where its DPO loss is at or below that one
        for policy in (-1.0, 1.0):
            loss = math.log1p(math.exp(-0.1 * (policy - ratio)))
            assert (loss <= float(ranking.needed_loss(np.array(ratio), 0.1))) == (policy >= 0)
    assert np.isfinite(ranking.idealised(np.array(0.0), 1.0, 0.1))


def test_ranking_accuracy_of_a_policy(model_folder, other_folder):
    records = [pair(f"say hello {i}", "hello world", "the lazy dog jumps over" if i % 2 else "you") for i in range(4)]
    records.append(pair("tie", value=0.5))
    found = ranking.rank(str(model_folder), records, reference=str(other_folder), precision="fp32")
    own, ref = ([[plain_log_prob(f, r, i) for i in (0, 1)] for r in records[:4]] for f in (model_folder, other_folder))
    gap = np.array([a - b for (a, _), (b, _) in own])
    base = np.array([a - b for (a, _), (b, _) in ref])
    assert found.pairs == 4
    assert found.summed.mean == (gap >= 0).mean()
    assert found.averaged.mean == np.mean([a / n >= b / m for (a, n), (b, m) in own])
    assert found.ref_summed.mean == (base >= 0).mean()
    assert found.implicit.mean == (gap > base).mean()
    assert found.wrong == {"pairs": int((base < 0).sum()), "mended": int((gap[base < 0] >= 0).sum())}
    for ideal in found.ideal:
        assert ideal.accuracy.mean == (base + math.log(3) / ideal.beta > 0).mean()
    alone = ranking.rank(str(model_folder), records, precision="fp32")
    assert (alone.summed, alone.ideal, alone.implicit) == (found.summed, [], None)


@pytest.mark.parametrize(("options", "said"), [({"agreement": 0.5}, "0.5"), ({"betas": (0.0,)}, "--beta 0")])
def test_ranking_refuses_what_cannot_be(options, said, model_folder):
    with pytest.raises(ConfigError, match=said):
        ranking.rank(str(model_folder), [pair("a")], **options)


# -- protocols ---------------------------------------------------------------------------------------------------------


def benchmark(tmp_path: Path, rows: list[dict]) -> list[Record]:
    file = tmp_path / "benchmark.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return sources.load(file).records


def test_rewardbench_sections_weights_and_strictness(tmp_path):
    def row(i: int, subset: str) -> dict:
        return {"prompt": f"p{i}", "chosen": "a", "rejected": "b", "subset": subset, "id": i,
                "chosen_model": "m", "rejected_model": "n"}  # fmt: skip

    names = ["math-prm", "math-prm", "hep-cpp", "alpacaeval-easy", "mt-bench-easy", "mt-bench-easy"]
    records = benchmark(tmp_path, [row(i, s) for i, s in enumerate(names)])
    model = Given("m", [[1, 0], [0, 0], [0, 1], [1, 0], [1, 0], [None, 0]])
    found = protocols.run("rewardbench", records, [model])
    (m,) = found.models
    assert m.sections["Reasoning"] == pytest.approx((984 * 0.5 + 164 * 0) / (984 + 164))  # equal is wrong
    assert m.sections["Chat"] == pytest.approx((100 * 1 + 28 * 0.5) / 128)
    assert m.overall == pytest.approx((m.sections["Reasoning"] + m.sections["Chat"]) / 2)
    assert (m.ties, m.unscored) == (1, 1)
    assert len(found.missing) == 23 - 4
    sizes = {name: sum(part.values()) for name, part in protocols.SECTIONS.items()}
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    with pytest.raises(RecordError, match=r"'math-pmr' is no subset of rewardbench\. Did you mean 'math-prm'"):
        protocols.run("rewardbench", benchmark(tmp_path, [row(0, "math-pmr")]), [model])


def test_rewardbench_2_best_of_four_and_ties(tmp_path):
    def row(name: str, subset: str, chosen: int, rejected: int) -> dict:
        return {"id": name, "prompt": f"{subset} {name}", "chosen": [f"c{i}" for i in range(chosen)],
                "rejected": [f"r{i}" for i in range(rejected)], "subset": subset}  # fmt: skip

    records = benchmark(
        tmp_path,
        [row("1", "Math", 1, 3), row("2", "Math", 1, 3), row("3", "Focus", 1, 3), row("ref:0", "Ties", 1, 2),
         row("tied:0", "Ties", 2, 2), row("ref:1", "Ties", 1, 1), row("tied:1", "Ties", 2, 1)],
    )  # fmt: skip
    model = Given("m", [[4, 3, 2, 1], [4, 4, 2, 1], [1, 2, 0, 0],
                        [5, 3, 0], [6, 5, 2, 1],  # gap 2; spread 1, gap 3: min 2 > 1
                        [1, 2], [3, 1, 0]])  # fmt: skip  # gap -1; spread 2, gap 1: neither
    (m,) = protocols.run("rewardbench2", records, [model]).models
    assert {k: s.score for k, s in m.subsets.items() if k != "Ties"} == {"Math": 0.75, "Focus": 0.0}
    margin = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 2 - 1)) / 2
    assert m.subsets["Ties"].parts == pytest.approx(
        {"tied": 1.0, "ref": 0.5, "preferred": 0.5, "hard": 0.5, "margin": margin}
    )
    assert m.subsets["Ties"].score == pytest.approx(0.3 + 0.15 + 0.1 + 0.1 + 0.01 * margin)
    assert m.overall == pytest.approx((0.75 + 0.0 + m.subsets["Ties"].score) / 3)
    assert m.ties == 1


def test_equal_right_answers_in_ties_divide_by_no_spread():
    score, parts = protocols.ties_score({"0": (0, 0.0), "1": (0, 1.0)}, {"0": (0.0, 0.0), "1": (0.0, 1.0)})
    assert parts["margin"] == pytest.approx((0 + 1) / 2)  # 0 / 0 is 0, 1 / 0 is the most
    assert score == pytest.approx(0.3 * 0.5 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.005)


def test_rag_rewardbench_goes_by_the_subsets_of_the_file(tmp_path, accord):
    kinds = [("a b", "conflict"), ("x", "citation"), ("x", "citation")]
    rows = [{"prompt": f"p{i}", "chosen": "one two", "rejected": r, "type": t} for i, (r, t) in enumerate(kinds)]
    (tmp_path / "rag.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ["eval", "rewards", "slogan:words=2", "--protocol", "rag-rewardbench", "--data", "rag.jsonl"]
    code, out, err = accord(*words, "--columns", "source=type", "--json")
    assert code == 0, err
    (m,) = json.loads(out)["models"]
    assert m["overall"] == pytest.approx(2 / 3)
    assert m["sections"] == {"mean of subsets": 0.5}
    assert {k: s["score"] for k, s in m["subsets"].items()} == {"citation": 1.0, "conflict": 0.0}
    assert "--columns source=COLUMN" in accord(*words)[1]


# -- ensembles and strength --------------------------------------------------------------------------------------------


def test_oracle_n6_conservative_ensembles():
    assert [float(together(np.array([1.0, 3.0]), how, 0.5)) for how in ("mean", "worst", "uncertainty")] == [2, 1, 1.5]
    members = [Given("a", [[1.0, 5.0]]), Given("b", [[3.0, None]])]
    (said,) = Ensemble(members, "uncertainty")([pair("p")])
    assert [(j.response, j.value, j.uncertainty) for j in said] == [(0, 1.5, 1.0)]  # one of two is none
    assert said[0].by == "uncertainty 0.5 of a + b"
    for arguments, message in (
        ((members[:1],), "two judges"), ((members, "least"), "least"), ((members, "mean", -1.0), "penalty"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            Ensemble(*arguments)


@pytest.fixture
def weighed(tmp_path) -> list[Record]:
    """Four pairs with the mean margins 2, -1, 0.5 and -3."""
    records = [pair(f"p{i}") for i in range(4)]
    means = (2.0, -1.0, 0.5, -3.0)
    models = [Given(name, [[m + more, 0.0] for m in means]) for name, more in (("a", 1.0), ("b", 0.0), ("c", -1.0))]
    found = weigh(records, models, tmp_path / "out.jsonl")
    assert (found.pairs, found.negative.mean, found.models) == (4, 0.5, ["a", "b", "c"])
    assert found.parts["lowest 20 %"]["high"] == -3
    assert found.parts["next 20 %"]["deviation"] == pytest.approx(math.sqrt(2 / 3))
    return sources.load(tmp_path / "out.jsonl").records


def made(records: list[Record], **options) -> tuple[list[tuple], Counts]:
    counts = Counts()
    found = view(records, "Pairs", ViewOptions(**options), counts=counts)
    return [
        (e.branches["chosen"].response, round(e.values["strength"], 4), e.values["score_chosen"]) for e in found
    ], counts


def test_strength_is_written_beside_what_was_said_and_changes_nothing_by_itself(weighed):
    (said,) = [j for j in weighed[0].judgements if j.attribute == STRENGTH]
    assert (said.value, said.pair, said.by) == (2.0, (0, 1), "a + b + c")
    assert said.uncertainty == pytest.approx(math.sqrt(2 / 3))
    plain, counts = made(weighed)
    assert [p[:2] for p in plain] == [(0, 1.0)] * 4
    assert set(counts.totals()) == {"pair from pairs"}
    assert weighed[0].kinds == {"pairs"}


@pytest.mark.parametrize(
    ("options", "expected", "counted"),
    [
        ({"ensemble": "flip"}, [(0, 1), (1, 1), (0, 1), (1, 1)],
         {"pair turned round: an ensemble says the opposite": 2}),
        ({"ensemble": "flip", "ensemble_below": -2}, [(0, 1), (0, 1), (0, 1), (1, 1)],
         {"pair turned round: an ensemble says the opposite": 1}),
        ({"ensemble": "smooth", "ensemble_smoothing": 0.2}, [(0, 1), (0, 0.8), (0, 1), (0, 0.8)],
         {"strength smoothed: an ensemble doubts the pair": 2}),
        ({"ensemble": "drop"}, [(0, 1), (0, 1)],
         {"dropped: an ensemble doubts the pair": 2, "no pair: an ensemble doubts all of its pairs": 2}),
        ({"ensemble": "soft"}, [(0, 0.8808), (1, 0.7311), (0, 0.6225), (1, 0.9526)],
         {"pair turned round: an ensemble says the opposite": 2}),
        ({"ensemble": "margin"}, [(0, 1, 2.0), (0, 1, -1.0), (0, 1, 0.5), (0, 1, -3.0)], {}),
        ({"ensemble": "flip+margin"}, [(0, 1, 2.0), (1, 1, 1.0), (0, 1, 0.5), (1, 1, 3.0)], {}),
        ({"ensemble": "soft+margin"}, [(0, 0.8808, 2.0), (1, 0.7311, 1.0), (0, 0.6225, 0.5), (1, 0.9526, 3.0)], {}),
    ],
)  # fmt: skip
def test_what_a_view_makes_of_strength(weighed, options, expected, counted):
    found, counts = made(weighed, **options)
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected
    assert counts["pair weighed by an ensemble"] == 4
    for name, n in counted.items():
        assert counts[name] == n


def test_strength_that_nobody_wrote_or_that_is_undone_is_refused(weighed):
    with pytest.raises(ConfigError, match="accord data strength writes it"):
        made([pair("a")], ensemble="flip")
    with pytest.raises(ConfigError, match="strengths=hard undoes"):
        ViewOptions(ensemble="soft", strengths="hard")
    with pytest.raises(ConfigError, match="ensemble_smoothing"):
        ViewOptions(ensemble="smooth", ensemble_smoothing=0.5)
    with pytest.raises(ConfigError, match="decides about pairs"):
        view(weighed, "Points", ViewOptions(ensemble="flip"))
    mixed, counts = made([*weighed, pair("new")], ensemble="flip")
    assert len(mixed) == 5
    assert counts["pair as it was: no ensemble has weighed it"] == 1


def test_weighing_again_replaces_and_turned_pairs_are_read_from_their_better_side(tmp_path, weighed):
    again = tmp_path / "again.jsonl"
    weigh(weighed, [Given("z", [[0.0, 1.0]] * 4)], again)
    records = sources.load(again).records
    assert [sum(j.attribute == STRENGTH for j in r.judgements) for r in records] == [1] * 4
    assert records[0].judgements[-1].uncertainty is None
    turned = [pair("t", value=0.0)]  # people prefer response 1
    weigh(turned, [Given("z", [[0.0, 3.0]])], tmp_path / "turned.jsonl")
    assert made(sources.load(tmp_path / "turned.jsonl").records, ensemble="margin")[0] == [(1, 1.0, 3.0)]


def test_strength_on_the_command_line(tmp_path, accord):
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "p", "chosen": "one two", "rejected": "one"}\n{"prompt": "q", "chosen": "one", "rejected": "a b"}\n'
    )
    words = ["data", "strength", "pairs.jsonl", "slogan:words=2", "--output", "out.jsonl"]
    code, out, err = accord(*words)
    assert code == 0, err
    assert "2 pairs weighed by 1 model" in out
    assert [r.judgements[-1].value > 0 for r in sources.load("out.jsonl").records] == [True, False]
    assert "--overwrite" in accord(*words)[2]
    code, _, err = accord("data", "convert", "out.jsonl", "--to", "pairs", "--output", "rows.jsonl")
    assert code == 2  # a strength is none of what rows of pairs hold
    code, out, _ = accord("data", "convert", "out.jsonl", "--to", "pairs", "--lossy", "--output", "rows.jsonl")
    assert "margin" not in (tmp_path / "rows.jsonl").read_text()
