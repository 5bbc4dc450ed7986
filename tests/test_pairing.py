"""Who is paired with whom, what a pair counts as, what is left out; rejection sampling against the exact optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from accord.data.records import Judgement, Record, Response, Sampler
from accord.data.views import Counts
from accord.errors import ConfigError
from accord.online import judging, pairing
from accord.online.pairing import Known, PairOptions, accepted, beats, comparisons, known, pair

DRAW = np.random.default_rng(0)


def scored(values, **more: Any) -> Record:
    said = [Judgement(kind="score", response=i, value=v, by="judge") for i, v in enumerate(values)]
    answers = [Response(text=f"answer {i}") for i in range(len(values))]
    return Record(prompt="ask", responses=tuple(answers), judgements=tuple(said), **more)


def texts(records) -> list[tuple[str, ...]]:
    return [tuple(a.plain_text.removeprefix("answer ") for a in r.responses) for r in records]


SCORES = (3.0, 5.0, 1.0, 4.0, 0.0, 2.0)  # from best to worst: 1 3 0 5 2 4


@pytest.mark.parametrize(
    ("rule", "more", "expected"),
    [
        ("best_worst", {}, [("1", "4")]),
        ("best_second", {}, [("1", "3")]),
        ("first_second", {}, [("1", "0")]),
        ("halves", {}, [(i, j) for i in "130" for j in "524"]),
        ("ranked", {"among": "adjacent"}, [("1", "3"), ("3", "0"), ("0", "5"), ("5", "2"), ("2", "4")]),
        ("ranked", {"among": "best"}, [("1", j) for j in "30524"]),
        ("ranked", {"among": "baseline"}, [("1", "0"), ("3", "0"), ("0", "5"), ("0", "2"), ("0", "4")]),
        ("ranked", {"among": "baseline", "baseline": "median"}, [(i, "5") for i in "130"] + [("5", "2"), ("5", "4")]),
    ],
)
def test_rules_pair_as_they_say(rule, more, expected):
    assert texts(pair([scored(SCORES)], PairOptions(rule=rule, **more))) == expected


def test_all_pairs_and_the_order_of_ranked_hold_every_two_answers():
    for rule in ("all_pairs", "ranked"):
        made = pair([scored(SCORES)], PairOptions(rule=rule))
        assert len({frozenset(t) for t in texts(made)}) == len(made) == 15
        assert all(SCORES[int(w)] > SCORES[int(l)] for w, l in texts(made))


def test_random_pairs_hold_each_answer_once_and_depend_on_seed_and_record_alone():
    records = [scored(SCORES), scored((1.0, 2.0, 3.0, 4.0))]
    made = pair(records, PairOptions(rule="random"), seed=3)
    assert sorted(t for both in texts(made[:3]) for t in both) == list("012345")
    assert texts(pair(records[::-1], PairOptions(rule="random"), seed=3))[-3:] == texts(made)[:3]
    assert any(texts(pair(records, PairOptions(rule="random"), seed=s)) != texts(made) for s in range(5))


def test_a_record_of_a_pair_says_who_judged_and_trains_as_one_pair():
    from accord.data.views import view

    (made,) = pair([scored((0.0, 2.0), weight=2.0)], PairOptions(label="soft", strength_scale=0.5), judges=["judge"])
    assert made.weight == 2.0
    assert {j.by for j in made.judgements} == {"judge"}
    (example,) = view([made], "Pairs")
    assert example.branches["chosen"].response == 0
    assert example.values["strength"] == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert (example.values["score_chosen"], example.values["score_rejected"]) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("label", "more", "expected"),
    [
        ("hard", {}, 1.0), ("soft", {}, 0.731059), ("smoothed", {"smoothing": 0.2}, 0.8),
        ("smoothed", {"smoothing": 0.2, "smoothed_below": 0.7}, 1.0), ("margin", {}, 1.0), ("weight", {}, 1.0),
    ],
)  # fmt: skip
def test_labels(label, more, expected):
    (made,) = pair([scored((0.0, 1.0))], PairOptions(label=label, **more))
    assert made.judgements[0].value == pytest.approx(expected, abs=1e-6)
    assert made.weight == pytest.approx(2 * 0.731059 - 1 if label == "weight" else 1.0, abs=1e-6)
    gaps = [j.value for j in made.judgements if j.margin]
    assert gaps == ([1.0] if label == "margin" else [])


@pytest.mark.parametrize(("label", "chosen"), [("kept", "0"), ("flipped", "1"), ("hard", "1")])
def test_stated_pairs_are_kept_or_turned_round_where_the_judge_says_the_opposite(label, chosen):
    record = scored((0.0, 1.0))
    stated = Judgement(kind="preference", pair=(0, 1), value=1.0, by="people")
    record = Record(**{**dict(record), "judgements": (stated, *record.judgements)})
    counts = Counts()
    (made,) = pair([record], PairOptions(rule="stated", label=label), judges=["judge"], counts=counts)
    assert texts([made])[0][0] == chosen
    assert counts["turned round: the judge says the opposite"] == int(chosen == "1")


def test_what_is_left_out_is_counted():
    cut = Response(text="cut off", finish="length")
    same = Record(
        prompt="same",
        responses=(Response(text="x"), Response(text="x"), cut),
        judgements=tuple(Judgement(kind="score", response=i, value=float(i), by="j") for i in range(3)),
    )
    unsaid = Record(prompt="unsaid", responses=(Response(text="a"), Response(text="b"), Response(text="c")),
                    judgements=(Judgement(kind="score", response=0, value=1.0),
                                Judgement(kind="score", response=2, value=0.5)))  # fmt: skip
    counts = Counts()
    options = PairOptions(rule="all_pairs", min_margin=0.6, finished=True)
    assert pair([scored((1.0, 1.0)), same, unsaid], options, counts=counts) == []
    assert counts.totals() == {
        "no pair": 3, "left: a pair of less than min_margin": 2, "left: an answer that was cut off at its longest": 1,
        "left: a pair of equal answers": 1, "left: an answer without a score": 1,
    }  # fmt: skip
    counts = Counts()
    assert pair([scored((1.0, 1.0))], PairOptions(), counts=counts) == []
    assert counts["left: a tie"] == 1
    assert pair([scored((1.0, 1.1))], PairOptions(min_confidence=0.6), counts=counts) == []
    assert counts["left: a pair of less than min_confidence"] == 1


def test_win_rates_count_the_answer_itself_as_one_half():
    (made,) = pair([scored((0.0, np.log(3.0)))], PairOptions(rule="none", values="win_rate"))
    assert [j.value for j in made.judgements] == pytest.approx([0.375, 0.625])
    (made,) = pair([scored((0.0, 2.0, 1.0))], PairOptions(rule="none", values="advantage"))
    assert [j.value for j in made.judgements] == pytest.approx([-1.0, 1.0, 0.0])


def test_policy_with_reference_brings_what_the_reference_wrote_as_labels_of_its_own():
    made = pair([scored((1.0, 2.0, 3.0))], PairOptions(rule="policy_vs_ref", policy_answers=1))
    assert texts(made) == [("1", "0"), ("2", "0"), ("1",), ("2",)]
    assert [(r.source, r.judgements[0].kind, r.judgements[0].value) for r in made[2:]] == [
        ("reference", "label", 0)
    ] * 2


def drawn(text: str) -> Response:
    return Response(text=text, sampler=Sampler(model="policy"))


def test_rules_without_a_judge_read_what_the_data_brought():
    stated = Judgement(kind="preference", pair=(1, 0), value=1.0)
    given = (Response(text="bad"), Response(text="good"))
    record = Record(prompt="ask", responses=(*given, drawn("a"), drawn("b")), judgements=(stated,))
    made = pair([record], PairOptions(rule="sampled_vs_bad"))
    assert texts(made) == [("a", "b", "bad")]
    assert [j.value for j in made[0].judgements] == [1, 1, 0]
    made = pair([record], PairOptions(rule="stated_beside_sampled"))
    assert texts(made) == [("good", "bad"), ("a",), ("b",)]
    assert made[1].kinds == {"demonstrations"}
    alone = Record(prompt="ask", responses=(given[1], drawn("a")))
    assert texts(pair([alone], PairOptions(rule="given_vs_sampled"))) == [("good", "a")]
    counts = Counts()
    assert (
        pair([Record(prompt="ask", responses=(drawn("a"),))], PairOptions(rule="sampled_vs_bad"), counts=counts) == []
    )
    assert counts["left: a prompt without an answer that is known to be bad"] == 1


# -- several judges ----------------------------------------------------------------------------------------------------


def test_the_worst_group_of_the_round_decides_and_not_the_worst_of_each_answer():
    """A maxmin game of three answers: r1 = (1, 0, .4), r2 = (0, 1, .4). By the answer, the third is best (.4, the
    published code); by the group, the answer of the group that is worse off is."""
    said = [Judgement(kind="score", response=i, value=v, by=by) for by, of in
            {"one": (1.0, 0.0, 0.4), "two": (0.0, 1.0, 0.4)}.items() for i, v in enumerate(of)]  # fmt: skip
    record = Record(prompt="ask", responses=[{"text": t} for t in "abc"], judgements=said)
    by_answer, mean = (known([record], PairOptions(together=t))[0].score for t in ("sample_min", "mean"))
    assert by_answer.tolist() == [0.0, 0.0, 0.4]
    assert mean.tolist() == [0.5, 0.5, 0.4]
    happy = scored((1.0, 1.0))
    happy = Record(**{**dict(happy), "judgements": tuple(j.model_copy(update={"by": "one"}) for j in happy.judgements)})
    worst = known([record, happy], PairOptions(together="group_min"))[0].score
    assert worst.tolist() == [0.0, 1.0, 0.4]  # group two, whose mean over the round is least


# -- judges that compare -----------------------------------------------------------------------------------------------


class Comparing:
    """Prefers the number that is further on in `order`, and counts what it is asked."""

    compares, by = True, "comparing"

    def __init__(self, order: dict[str, float] | None = None) -> None:
        self.calls, self.asked, self.order = 0, 0, order or {}

    def __call__(self, records, say=None):
        self.calls += 1
        self.asked += len(records)
        found = []
        for r in records:
            a, b = (self.order.get(t.plain_text, float(t.plain_text.rpartition(" ")[2])) for t in r.responses)
            p = 1 / (1 + np.exp(b - a))
            found.append((Judgement(kind="preference", pair=(0, 1), value=p, by=self.by),))
        return found


def unjudged(count: int) -> Record:
    return Record(prompt=f"ask {count}", responses=tuple(Response(text=f"answer {i}") for i in range(count)))


def test_ranking_against_a_baseline_takes_one_comparison_less_than_answers():
    judge, options = Comparing(), PairOptions(rule="ranked", label="soft")
    (record,) = judging.asked([unjudged(5)], judge, pairing.comparisons(options))
    assert (judge.calls, judge.asked) == (1, 4)
    of = known([record], options)[0]
    assert of.score == pytest.approx([0, 1, 2, 3, 4])
    assert of.beats == pytest.approx(beats(np.arange(5.0), 1.0))  # exact: this judge is Bradley and Terry's
    made = pair([record], options)
    assert texts(made)[0] == ("4", "3")
    assert made[0].judgements[0].value == pytest.approx(1 / (1 + np.exp(-1)))


@pytest.mark.parametrize(("count", "comparisons"), [(8, 11), (4, 5), (2, 2), (6, 8)])
def test_a_tournament_finds_best_and_worst_and_confirms_them(count, comparisons):
    judge, options = Comparing(), PairOptions(rule="tournament")
    records = judging.asked([unjudged(count), unjudged(2)], judge, pairing.comparisons(options))
    assert judge.asked == comparisons + 2
    assert judge.calls <= 7  # all prompts' comparisons of a round together
    assert texts(pair(records, options)) == [(str(count - 1), "0"), ("1", "0")]
    asked = {j.pair for j in records[0].judgements}
    assert len(asked) <= comparisons


def test_a_tournament_of_scores_takes_the_same_way():
    assert texts(pair([scored(SCORES)], PairOptions(rule="tournament"))) == [("1", "4")]
    assert pair([scored((1.0,) * 4)], PairOptions(rule="tournament")) == []  # the last comparison confirms nothing


def test_a_liking_for_the_first_place_falls_out_of_two_orders():
    def verdict(p: float, order: tuple[int, int]) -> Judgement:
        return Judgement(kind="preference", pair=(0, 1), value=p, order=order, by="llm")

    bias, truth = 0.8, 1.3
    said = [1 / (1 + np.exp(-truth - bias)), 1 / (1 + np.exp(-truth + bias))]
    record = Record(prompt="ask", responses=[{"text": "a"}, {"text": "b"}],
                    judgements=(verdict(said[0], (0, 1)), verdict(said[1], (1, 0))))  # fmt: skip
    assert known([record], PairOptions())[0].beats[0, 1] == pytest.approx(1 / (1 + np.exp(-truth)), abs=1e-12)


# -- rejection sampling ------------------------------------------------------------------------------------------------


def test_rejection_sampling_draws_from_the_optimum():
    """ref = (.5, .3, .2), r = (0, 1, 2), beta = 1: (0.179, 0.292, 0.529). Equal answers must count as they came."""
    draw, ref, reward = np.random.default_rng(1), [0.5, 0.3, 0.2], np.array([0.0, 1.0, 2.0])
    found = np.zeros(3)
    for _ in range(6000):
        pool = draw.choice(3, size=32, p=ref)
        found[pool[accepted(reward[pool], 1.0, 1, draw)[0]]] += 1
    exact = np.array([0.179000, 0.291944, 0.529056])
    assert found / 6000 == pytest.approx(exact, abs=3 * np.sqrt(0.25 / 6000))


@pytest.mark.parametrize(("beta", "expected"), [(1e-6, {4, 5}), (1e9, None)])
def test_rejection_sampling_at_its_ends_is_the_best_or_everything(beta, expected):
    taken = accepted(np.arange(6.0), beta, 2, np.random.default_rng(0))
    if expected is not None:
        assert set(taken) == expected
    else:
        many = [tuple(accepted(np.arange(6.0), beta, 1, np.random.default_rng(s))) for s in range(600)]
        assert np.bincount(np.array(many)[:, 0]).min() > 60


def test_pairs_after_rejection_hold_only_what_was_taken():
    counts = Counts()
    options = PairOptions(rule="random", reject=2, reject_beta=1e-6)
    assert texts(pair([scored(SCORES)], options, counts=counts)) == [("1", "3")]
    assert counts["left: an answer that rejection sampling did not take"] == 4


# -- wrong options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rule": "halfs"}, "did you mean 'halves'"),
        ({"label": "sofd"}, "did you mean 'soft'"),
        ({"rul": "halves"}, "did you mean 'rule'"),
        ({"smoothing": 0.2}, "nothing reads it under label: hard"),
        ({"reject_beta": 1.0}, "nothing reads it under reject: None"),
        ({"label": "smoothed", "smoothing": 0.5}, "must be a number from 0 to 0.5"),
        ({"rule": "none", "label": "soft"}, "nothing reads it under rule: none"),
        ({"values": "wins"}, "pair.values='wins' is not known"),
        ({"finished": 3}, "must be true or false"),
    ],
)
def test_options_that_cannot_be_are_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        PairOptions.of(given)


def test_every_rule_and_label_says_what_it_does():
    assert all(len(pairing.says(rule)) > 20 for rule in pairing.RULES)
    assert all(f.__doc__ for f in pairing.LABELS.values())
    assert [name for name, _ in pairing.described()][:3] == ["--rule", "--label", "--values"]
    assert isinstance(Known(np.zeros(2), beats(np.zeros(2), 1.0)).take([1]), Known)


def test_nash_md_pairs_the_policys_answers_by_their_win_rates_over_the_mixtures():
    """Two answers of the policy, two of the mixture; P(better) written out: rates 0.75 and 0.4, a gap of 0.35."""
    p = {(0, 2): 0.9, (0, 3): 0.6, (1, 2): 0.5, (1, 3): 0.3}
    said = [Judgement(kind="preference", pair=pair, value=v, by="j") for pair, v in p.items()]
    record = Record(prompt="?", responses=[{"text": t} for t in "abcd"], judgements=said)
    options = PairOptions.of({"rule": "policy_pairs", "values": "against", "policy_answers": 2})
    (pairs,) = comparisons(options)(4)
    assert pairs == list(p)
    (made,) = pair([record], options)
    assert [r.text for r in made.responses] == ["a", "b"]
    scores = {j.response: j.value for j in made.judgements if j.kind == "score"}
    assert scores == pytest.approx({0: 0.75, 1: 0.4})
    for given in ({"rule": "policy_pairs"}, {"values": "against"}):
        with pytest.raises(ConfigError, match="go together"):
            PairOptions.of(given)


def test_an_answer_that_one_of_several_judges_could_not_score_has_no_score():
    """The others' alone would stand on another scale, and a constraint would be gone."""

    def said(values, by):
        return [Judgement(kind="score", response=i, value=v, by=by) for i, v in enumerate(values)]

    answers = tuple(Response(text=f"answer {i}") for i in range(2))
    both = Record(prompt="p", responses=answers, judgements=(*said((0.0, 1.0), "a"), *said((-3.0, -2.0), "b")))
    one = Record(prompt="q", responses=answers, judgements=tuple(said((0.0, 1.0), "a")))
    counts = Counts()
    made = pair([both, one], PairOptions(together="sample_min"), judges=["a", "b"], counts=counts)
    assert [r.prompt for r in made] == ["p"]
    assert counts["left: an answer without a score"] == 2
    assert len(pair([both, one], PairOptions(), judges=["a"])) == 2


def test_equal_win_rates_over_drawn_opponents_are_a_pair_with_a_gap_of_0():
    """Nash-MD regresses on the gap: to leave out those of 0 would select by what the opponents happened to be."""
    verdicts = [Judgement(kind="preference", pair=(i, j), value=v, by="judge")
                for i, j, v in ((0, 2, 1.0), (0, 3, 0.0), (1, 2, 0.0), (1, 3, 1.0))]  # fmt: skip
    answers = tuple(Response(text=f"answer {i}") for i in range(4))
    record = Record(prompt="p", responses=answers, judgements=tuple(verdicts))
    options = PairOptions(rule="policy_pairs", values="against", policy_answers=2)
    (made,) = pair([record], options, judges=["judge"])
    assert [j.value for j in made.judgements if j.kind == "score"] == [0.5, 0.5]


def test_the_best_answer_alone_is_a_demonstration():
    counts = Counts()
    (made,) = pair([scored((0.0, 2.0, 2.0))], PairOptions(rule="best"), counts=counts)
    assert [a.plain_text for a in made.responses] == ["answer 1"]
    assert made.judgements == ()
    assert counts["several answers are the best: the first is taken"] == 1
