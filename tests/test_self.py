"""A model that judges its own answers: both orders, averaged where it counts; taught from pairs; strengths that osp
learns from."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch

from accord.data import sources
from accord.data.chat import Chat
from accord.data.records import Judgement, Record, Response
from accord.data.verdicts import QUESTION, asked
from accord.data.views import Counts, ViewOptions, in_both_orders, view
from accord.engine import models
from accord.errors import ConfigError
from accord.judges.frame import Unjudged
from accord.judges.keep import keep
from accord.judges.own import Own
from accord.judges.table import find
from accord.online.loop import read
from accord.online.pairing import PairOptions, comparisons, known
from tests.conftest import pair_records

torch.set_num_threads(1)


def three() -> Record:
    texts = ("the fox is quick", "hello world", "how are you today")
    return Record(prompt="tell me about the fox", responses=[Response(text=t) for t in texts])


def test_it_is_the_probability_of_the_word_after_the_question(model_folder) -> None:
    """The same number from the model's own logits, over a context that stands here word for word."""
    judge = find(f"self:{model_folder}", device="cpu", precision="fp32")
    (said,) = judge([three()])
    assert judge.by.startswith("self:")
    assert [j.pair for j in said] == [o for p in combinations(range(3), 2) for o in (p, p[::-1])]
    policy = models.load(model_folder, device="cpu", precision="fp32")
    chat = Chat(policy.tokenizer, stop_ids=policy.ends)
    texts = [r.text for r in three().responses]
    for j in said:
        first, second = (texts[i] for i in j.order)
        words = QUESTION.replace("{prompt}", "tell me about the fox").replace("{first}", first)
        ids = chat.context_ids(Record(prompt=words.replace("{second}", second)))
        a, b = (policy.tokenizer(w, add_special_tokens=False)["input_ids"] for w in "AB")
        assert len(a) == len(b) == 1
        with torch.no_grad():
            logits = policy.scorer.causal(torch.tensor([ids])).logits[0, -1]
        assert j.value == pytest.approx(torch.sigmoid(logits[a[0]] - logits[b[0]]).item(), abs=1e-5)
        assert 0 < j.value < 1


def test_a_liking_for_a_place_falls_out_of_what_training_reads() -> None:
    """Verdicts of a judge whose log-odds are a true gap and 0.8 for the first place: pairs and views have the gap."""
    gap, bias = 0.6, 0.8
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    said = [
        Judgement(kind="preference", pair=(0, 1), value=sigmoid(gap + bias), order=(0, 1), by="self"),
        Judgement(kind="preference", pair=(1, 0), value=sigmoid(-gap + bias), order=(1, 0), by="self"),
    ]
    record = Record(prompt="?", responses=[Response(text="a"), Response(text="b")], judgements=said)
    (pair,) = view([record], "Pairs")
    assert pair.branches["chosen"].response == 0
    assert pair.values["strength"] == pytest.approx(sigmoid(gap), abs=1e-12)
    assert known([record], PairOptions(rule="ranked"))[0].beats[0, 1] == pytest.approx(sigmoid(gap), abs=1e-12)
    assert (sigmoid(gap + bias) + 1 - sigmoid(-gap + bias)) / 2 != pytest.approx(sigmoid(gap), abs=0.01)
    other = Judgement(kind="preference", pair=(0, 1), value=0.0, by="somebody else")
    assert len(in_both_orders([*said, other])) == 2  # another judge has a voice of its own


def test_ranked_pairing_takes_k_minus_one_comparisons_in_both_orders(model_folder) -> None:
    (pairs,) = comparisons(PairOptions(rule="ranked"))(4)
    assert len(pairs) == 3
    judge = Own(str(model_folder), device="cpu", precision="fp32")
    found = judge([Record(prompt="x", responses=three().responses[:2])] * 3)
    assert [len(s) for s in found] == [2, 2, 2]


def test_what_it_cannot_judge_is_said(model_folder) -> None:
    judge = find(f"self:{model_folder}", device="cpu", precision="fp32")
    long = Response(text="the lazy dog " * 400)
    alone, too_long = judge(
        [Record(prompt="x", responses=[Response(text="y")]), Record(prompt="x", responses=[Response(text="y"), long])]
    )
    assert isinstance(alone, Unjudged)
    assert "nothing to compare it with" in alone.why
    assert isinstance(too_long, Unjudged)
    assert "longer than" in too_long.why
    assert not too_long


# -- taught ------------------------------------------------------------------------------------------------------------


def test_a_pair_makes_two_verdicts_that_are_asked_as_the_judge_asks() -> None:
    record = pair_records(1)[0]
    one, two = view([record], "Demos", ViewOptions(verdict=True))
    good, bad = (r.text for r in record.responses)
    for example, first, second, word in ((one, good, bad, "A"), (two, bad, good, "B")):
        branch = example.branches["response"]
        assert branch.context == asked(record.messages, first, second)
        assert branch.said(record).text == word
    own = "{prompt} A: {first} B: {second} ?"
    assert view([record], "Demos", ViewOptions(verdict=own))[0].branches["response"].context[0].content.endswith(" ?")


def test_ties_have_no_verdict_and_wrong_questions_are_refused() -> None:
    tie = Record(
        prompt="x", responses=[Response(text="a"), Response(text="b")],
        judgements=[Judgement(kind="preference", pair=(0, 1), value=0.5)],
    )  # fmt: skip
    counts = Counts()
    assert not len(view([tie], "Demos", ViewOptions(verdict=True, ties="half"), counts=counts))
    assert counts["left: a tie, which has no verdict"] == 1
    with pytest.raises(ConfigError, match=r"no place \{first\}"):
        ViewOptions(verdict="{prompt} {second}")
    with pytest.raises(ConfigError, match=r"view.verdict makes demonstrations, and these are pairs"):
        view([tie], "Pairs", ViewOptions(verdict=True))


def test_a_model_learns_to_judge_from_pairs_and_osp_learns_from_how_sure_it_is(accord, model_folder, tmp_path) -> None:
    """The first stage of OSP: verdicts made from pairs. Then the preset, whose judge is the model itself."""
    records = pair_records(24)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(r.to_json() + "\n" for r in records))
    held_out = [Record(prompt=r.prompt, responses=r.responses) for r in pair_records(8)]

    def right(model) -> float:
        judge = find(f"self:{model}", device="cpu", precision="fp32")
        return float(np.mean([in_both_orders(said)[0].value for said in judge(held_out)]))

    before = right(model_folder)
    code, _, err = accord(
        "train", "--model", model_folder, "--data", data, "--objective", "sft", "--view.verdict", "true", "--output",
        tmp_path / "judge", "--max-steps", 40, "--batch-size", 16, "--learning-rate", "3e-3", "--eval-fraction", 0,
        "--precision", "fp32",
    )  # fmt: skip
    assert code == 0, err
    after = right(tmp_path / "judge")
    assert after > max(0.8, before + 0.2)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(Record(prompt=r.prompt).to_json() + "\n" for r in records[:6]))
    code, out, err = accord(
        "loop", "--preset", "osp", "--model", tmp_path / "judge", "--prompts", prompts, "--rounds", 1,
        "--prompts-per-round", 6, "--samples", 3, "--max-new-tokens", 6, "--batch-size", 4, "--max-steps", 2, "--lora",
        "false", "--precision", "fp32", "--output", tmp_path / "osp",
    )  # fmt: skip
    assert code == 0, err
    paired = read(tmp_path / "osp" / "records" / "round-1" / "paired.jsonl")
    strengths = [j.value for r in paired for j in r.judgements if j.kind == "preference"]
    assert strengths
    assert all(0.5 < p < 1 for p in strengths)
    row = json.loads((tmp_path / "osp" / "records" / "round-1" / "round.json").read_text())
    ((by, told),) = row["judges"].items()
    assert by.startswith("self:")
    assert told["both_orders"] == 12
    assert 0 <= told["turned_round"] <= 1
    assert told["agreement"] in out


def test_accord_sample_asks_the_model_that_answers(accord, model_folder, tmp_path) -> None:
    data = tmp_path / "prompts.txt"
    data.write_text("tell me about the fox\ntell me about the dog\n")
    code, out, err = accord(
        "sample", "--model", model_folder, "--prompts", data, "-n", 3, "--max-new-tokens", 5, "--judge", "self",
        "--keep", "all", "--precision", "fp32", "--output", "o.jsonl",
    )  # fmt: skip
    assert code == 0, err
    held = sources.load("o.jsonl").records
    assert [len(r.judgements) for r in held] == [6, 6]
    assert "triples go round in a circle" in out
    counts = Counts()
    for record in held:
        best = keep(record, record.judgements[0].by, "best", counts)
        won = {i: [] for i in range(3)}
        for j in in_both_orders(record.judgements):
            won[j.pair[0]].append(j.value)
            won[j.pair[1]].append(1 - j.value)
        assert best.responses[0] == record.responses[max(won, key=lambda i: sum(won[i]))]
