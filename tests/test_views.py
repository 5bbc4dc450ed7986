"""What feedback counts as: every rule of `accord.data.views`, every count, and what never changes."""

import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accord.data.records import FEEDBACK_KINDS, Judgement, Message, Record, Response
from accord.data.sources import load
from accord.data.views import MADE_FROM, Branch, Counts, ViewOptions, nothing, split, view
from accord.errors import AccordError, ConfigError

DATA = Path(__file__).parents[1] / os.environ.get("ACCORD_DATA", "../shared/data")


def record(*texts, labels=(), scores=(), ranks=(), prefs=(), margins=(), prompt="p", **kwargs) -> Record:
    """A record of responses; None among labels, scores and ranks is a response that nobody judged."""
    judgements = [
        Judgement(kind=kind, response=i, value=value)
        for kind, values in (("label", labels), ("score", scores), ("rank", ranks))
        for i, value in enumerate(values)
        if value is not None
    ]
    judgements += [Judgement(kind="preference", pair=(i, j), value=p) for i, j, p in prefs]
    judgements += [Judgement(kind="preference", pair=(i, j), value=m, margin=True) for i, j, m in margins]
    judgements += kwargs.pop("judgements", [])
    return Record(prompt=prompt, responses=[Response(text=t) for t in texts], judgements=judgements, **kwargs)


def pairs(records, feedback=None, **options) -> tuple[list[tuple[str, str, float]], dict[str, int]]:
    """(chosen, rejected, strength) by text, and the counts."""
    records, counts = records if isinstance(records, list) else [records], Counts()
    made = view(records, "Pairs", ViewOptions(**options), feedback=feedback, counts=counts)
    found = []
    for e in made:
        texts = [records[e.record].responses[e.branches[side].response].text for side in ("chosen", "rejected")]
        found.append((*texts, e.values["strength"]))
    return found, counts.totals()


def values(records, kind="Points", feedback=None, **options) -> tuple[list[tuple[str, float]], dict[str, int]]:
    """(text, value) of points, or the texts of demonstrations."""
    records, counts = records if isinstance(records, list) else [records], Counts()
    made = view(records, kind, ViewOptions(**options), feedback=feedback, counts=counts)
    text = [records[e.record].responses[e.branches["response"].response].text for e in made]
    return [(t, e.values["value"]) if kind == "Points" else t for t, e in zip(text, made, strict=True)], counts.totals()


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_a_plain_preference():
    said = record("a", "b", prefs=[(0, 1, 1)], scores=(5, 3), source="s", weight=2)
    counts = Counts()
    (example,) = view([record("x"), said], "Pairs", counts=counts)
    assert (example.kind, example.record, example.source, example.weight) == ("Pairs", 1, "s", 2)
    assert example.branches == {"chosen": Branch(1, 0), "rejected": Branch(1, 1)}
    assert example.values == {"strength": 1.0, "score_chosen": 5.0, "score_rejected": 3.0}
    assert counts.totals() == {"no pair: only demonstrations": 1, "pair from pairs": 1}


def test_scores_are_nan_where_nobody_scored_or_scores_are_not_asked_for():
    said = record("a", "b", prefs=[(0, 1, 1)], scores=(5, None))
    (example,) = view([said], "Pairs")
    assert example.values["score_chosen"] == 5
    assert math.isnan(example.values["score_rejected"])
    counts = Counts()
    (example,) = view([said], "Pairs", feedback={"pairs"}, counts=counts)
    assert math.isnan(example.values["score_chosen"])
    assert counts["left: ratings, not asked for"] == 1


def test_strengths():
    said = record("a", "b", prefs=[(0, 1, 0.8)], scores=(5, 3))
    assert pairs(said)[0] == [("a", "b", 0.8)]
    assert pairs(said, strengths="hard")[0] == [("a", "b", 1.0)]
    assert pairs(said, strengths="scores", strength_scale=0.5)[0] == [("a", "b", pytest.approx(1 / (1 + math.exp(-1))))]
    assert pairs(record("a", "b", prefs=[(0, 1, 0.8)]), strengths="scores")[0] == [("a", "b", 0.8)]


def test_a_strength_below_one_half_turns_the_pair_round():
    found, counts = pairs(record("a", "b", prefs=[(0, 1, 0.3)]))
    assert found == [("b", "a", 0.7)]
    assert counts["pair turned round: preference below one half"] == 1
    assert "pair turned round: preference below one half" not in pairs(record("a", "b", prefs=[(1, 0, 1)]))[1]


def test_margins():
    assert pairs(record("a", "b", margins=[(0, 1, -2)]))[0] == [("b", "a", 1.0)]
    plain = record("a", "b", prefs=[(0, 1, 1)], margins=[(1, 0, -2)])
    assert pairs(plain)[0] == [("a", "b", 1.0)]
    assert pairs(plain, strengths="scores")[0] == [("a", "b", pytest.approx(1 / (1 + math.exp(-2))))]


def test_scores_that_say_the_opposite_are_counted():
    said = record("a", "b", prefs=[(0, 1, 1)], scores=(3, 5))
    found, counts = pairs(said)
    assert (found, counts["pair whose scores say the opposite"]) == ([("a", "b", 1.0)], 1)
    found, counts = pairs(said, strengths="scores")
    assert found == [("b", "a", pytest.approx(1 / (1 + math.exp(-2))))]
    assert counts["pair turned round: preference below one half"] == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (record("a", "b", prefs=[(0, 1, 0.5)]), "preference of one half"),
        (record("a", "b", prefs=[(0, 1, 1)], scores=(4, 4)), "equal scores"),
        (record("a", "b", margins=[(0, 1, 0)]), "equal scores"),
        (record("a", "b", scores=(4, 4)), "equal ratings"),
        (record("a", "b", labels=(1, 1)), "equal labels"),
        (record("a", "b", ranks=(0, 0)), "equal rankings"),
        (record("a", "b", prefs=[(0, 1, 1), (1, 0, 1)]), "preference of one half"),
    ],
)
def test_ties(said, why):
    assert pairs(said) == ([], pairs(said)[1])
    assert pairs(said)[1][f"tie dropped: {why}"] == 1
    assert pairs(said)[1]["no pair: all ties"] == 1
    found, counts = pairs(said, ties="half", strengths="hard")
    assert found == [("a", "b", 0.5)]
    assert counts[f"tie kept at one half: {why}"] == 1


@pytest.mark.parametrize("ties", ["drop", "half"])
def test_equal_texts_are_no_pair(ties):
    for said in (record("a", "a", prefs=[(0, 1, 1)]), record("a", "a", scores=(1, 2))):
        found, counts = pairs(said, ties=ties)
        assert (found, counts["dropped: chosen equals rejected"]) == ([], 1)
    one_turn = Response(messages=[Message(role="assistant", content="a"), Message(role="assistant", content="b")])
    same = Record(prompt="p", responses=[one_turn, one_turn], judgements=record("a", "b", prefs=[(0, 1, 1)]).judgements)
    assert view([same], "Pairs", ViewOptions(ties=ties)) == []


def test_several_judges_are_averaged():
    found, counts = pairs(record("a", "b", prefs=[(0, 1, 1), (1, 0, 1), (0, 1, 1), (0, 1, 1)]))
    assert found == [("a", "b", 0.75)]
    assert counts["averaged: several judgements of one target (preference)"] == 1
    assert counts["contradiction: the same pair in both directions"] == 1


def test_a_vote_is_what_most_say():
    said = record("a", "b", prefs=[(0, 1, 0.9), (1, 0, 0.8), (0, 1, 0.6)])  # two for a, one for b
    found, counts = pairs(said, several="vote")
    assert found == [("a", "b", 1.0)]
    assert counts["voted: several judgements of one target (preference)"] == 1
    even = record("a", "b", prefs=[(0, 1, 1), (1, 0, 0.9)])
    assert pairs(even, several="vote")[0] == []
    assert pairs(even, several="vote", ties="half")[0] == [("a", "b", 0.5)]
    assert pairs(even)[0] == [("a", "b", pytest.approx(0.55))]  # the mean is not a vote
    labels = [Judgement(kind="label", response=0, value=v) for v in (1, 0, 1)]
    assert values(record("a", judgements=labels), several="vote")[0] == [("a", 1.0)]
    assert values(record("a", judgements=labels))[0] == [("a", pytest.approx(2 / 3))]
    found, counts = values(record("a", judgements=labels[:2]), several="vote")
    assert found == []
    assert counts["tie dropped: even votes"] == counts["no point: all ties"] == 1
    assert values(record("a", judgements=labels[:2]), several="vote", ties="half")[0] == [("a", 0.5)]
    scores = [Judgement(kind="score", response=0, value=v) for v in (1, 8, 9)]
    assert values(record("a", judgements=scores), several="vote")[0] == [("a", 8.0)]
    margins = record("a", "b", margins=[(0, 1, 9), (0, 1, -1), (0, 1, -2)])
    assert pairs(margins, several="vote")[0] == [("b", "a", 1.0)]
    assert pairs(margins)[0] == [("a", "b", 1.0)]


def rated_by(**judges: tuple) -> Record:
    """Responses a, b, ... rated by named judges; None is not rated."""
    given = [
        Judgement(kind="score", response=i, value=v, by=name)
        for name, scores in judges.items() for i, v in enumerate(scores) if v is not None
    ]  # fmt: skip
    return record(*"abc"[: max(map(len, judges.values()))], judgements=given)


def test_agreement_is_the_strength_of_a_pair():
    said = record("a", "b", prefs=[(0, 1, 0.9), (1, 0, 0.8), (0, 1, 0.6), (0, 1, 0.5)])
    assert pairs(said, several="agreement")[0] == [("a", "b", 0.625)]  # two for a, one against, one for neither
    assert pairs(said, several="agreement", strengths="hard")[0] == [("a", "b", 1.0)]
    three = rated_by(x=(5, 3), y=(4, 2), z=(1, 2))
    assert pairs(three, several="agreement")[0] == [("a", "b", pytest.approx(2 / 3))]
    assert pairs(three)[0] == [("a", "b", 1.0)]
    one_loud = rated_by(x=(9, 1), y=(2, 3), z=(2, 3))  # the mean says a, two of three say b
    found, counts = pairs(one_loud, several="agreement")
    assert found == [("b", "a", pytest.approx(2 / 3))]
    assert counts["pair turned round: most judges say the opposite of the mean"] == 1
    found, counts = pairs(rated_by(x=(5, 1), y=(2, 3)), several="agreement")
    assert found == []
    assert counts["tie dropped: judges are divided evenly"] == 1
    apart = rated_by(x=(5, None), y=(None, 3))  # nobody rated both: the order stands
    assert pairs(apart, several="agreement")[0] == [("a", "b", 1.0)]
    ranks = [Judgement(kind="rank", response=i, value=v, by=b) for b, r in (("x", (0, 1)), ("y", (0, 1)), ("z", (1, 0)))
             for i, v in enumerate(r)]  # fmt: skip
    assert pairs(record("a", "b", judgements=ranks), several="agreement")[0] == [("a", "b", pytest.approx(2 / 3))]


def test_a_pair_in_several_records_is_put_to_the_vote():
    def said(*sides: int, source: str = "crowd") -> list[Record]:
        return [record("a", "b", prefs=[(0, 1, side)], source=source) for side in sides]

    found, counts = pairs(said(1, 0, 1), several="vote")
    assert (found, counts["judged once: a pair that several records bring"]) == ([("a", "b", 1.0)], 2)
    assert pairs(said(0, 1, 0), several="agreement")[0] == [("b", "a", pytest.approx(2 / 3))]
    every = [("a", "b", 1.0), ("b", "a", 1.0), ("a", "b", 1.0)]
    assert pairs(said(1, 0, 1), several="agreement", duplicates="keep")[0] == every
    found, counts = pairs(said(1, 0), several="agreement")
    assert (found, counts["tie dropped: judges are divided evenly"]) == ([], 1)
    assert pairs(said(1, 0), several="vote", ties="half")[0] == [("a", "b", 0.5)]
    apart = said(1) + said(0, source="others")  # sources may disagree
    assert pairs(apart, several="vote")[0] == [("a", "b", 1.0), ("b", "a", 1.0)]


def test_ratings_of_several_scales_are_said():
    def rated(*judged, source="default"):
        given = [Judgement(kind="score", response=0, value=v, scale=s, attribute=a) for v, s, a in judged]
        return record("a", judgements=given, source=source)

    both = rated((4, (1, 5), "help"), (40, (0, 100), "truth"))
    kept = "ratings of several scales stand in one record as they are: `rescale` puts them on one"
    assert values(both)[1][kept] == 1
    found, counts = values(both, rescale="unit")
    assert (found, kept in counts) == ([("a", pytest.approx((0.75 + 0.4) / 2))], False)
    stars, percent = rated((4, (1, 5), "x"), source="stars"), rated((40, (0, 100), "x"), source="percent")
    told = "one threshold for ratings of several scales: `rescale` puts them on one"
    found, counts = values([stars, percent], threshold=5)
    assert ([v for _, v in found], counts[told]) == ([0, 1], 1)
    found, counts = values([stars, percent], threshold=0.5, rescale="unit")
    assert ([v for _, v in found], told in counts) == ([1, 0], False)


def test_attributes_are_averaged_one_by_one():
    def score(value, attribute, **kwargs):
        return Judgement(kind="score", response=0, value=value, attribute=attribute, **kwargs)

    said = record("a", judgements=[score(2, "help"), score(4, "help"), score(9, "truth")])
    assert values(said)[0] == [("a", 6.0)]
    assert values(said, attribute="help")[0] == [("a", 3.0)]
    found, counts = values(said, attribute="style")
    assert found == []
    assert counts["left: a judgement that is not on 'style'"] == 3
    part = record("a", judgements=[score(2, "help", step=1), score(4, "help", span=(0, 1))])
    assert values(part)[1]["left: a judgement on a part of a response"] == 2


def test_pairs_from_an_order():
    said = record("a", "b", "c", "d", scores=(1, 9, 5, 5))
    every = {("b", "a"), ("b", "c"), ("b", "d"), ("c", "a"), ("d", "a")}
    found, counts = pairs(said)
    assert ({f[:2] for f in found}, counts["tie dropped: equal ratings"]) == (every, 1)
    assert {f[:2] for f in pairs(said, rankings="adjacent")[0]} == every - {("b", "a")}
    assert pairs(said, rankings="best_worst")[0] == [("b", "a", 1.0)]
    assert {f[:2] for f in pairs(record("a", "b", "c", "d", ranks=(3, 0, 1, 1)))[0]} == every
    assert pairs(record("a", "b", labels=(0, 1)))[0] == [("b", "a", 1.0)]
    assert pairs(record("a", "b", scores=(1, 3)), strengths="scores")[0][0][2] == pytest.approx(1 / (1 + math.exp(-2)))


def test_what_was_stated_goes_before_what_scores_say():
    said = record("a", "b", "c", prefs=[(0, 1, 1)], scores=(3, 5, 4))
    found, counts = pairs(said)
    assert found == [("a", "b", 1.0), ("b", "c", 1.0), ("c", "a", 1.0)]
    assert (counts["pair from pairs"], counts["pair from ratings"]) == (1, 2)
    assert pairs(said, feedback=["pairs"])[0] == [("a", "b", 1.0)]
    assert ("b", "a", 1.0) in pairs(said, feedback=["ratings"])[0]


def test_duplicates_and_contradictions_across_records():
    first, again = record("a", "b", prefs=[(0, 1, 1)]), record("b", "a", prefs=[(1, 0, 1)])
    other, turned = record("a", "b", prefs=[(0, 1, 1)], source="other"), record("a", "b", prefs=[(0, 1, 0)])
    found, counts = pairs([first, again, other])
    assert (len(found), counts["duplicate pair dropped"]) == (2, 1)
    assert len(pairs([first, again, other], duplicates="keep")[0]) == 3
    found, counts = pairs([first, turned, other])
    assert found == [("a", "b", 1.0)]
    assert counts["contradiction: the same pair in both directions"] == 1
    assert counts["tie dropped: the same pair in both directions"] == 1
    assert pairs([first, turned], ties="half")[0] == [("a", "b", 0.5)]
    assert len(pairs([first, turned], duplicates="keep")[0]) == 2
    assert len(pairs([first, record("a", "b", prefs=[(0, 1, 1)], prompt="q")])[0]) == 2


def test_max_pairs_of_a_prompt_are_spread():
    said = record(*"abcd", ranks=(0, 1, 2, 3))
    everything, _ = pairs(said)
    found, counts = pairs(said, max_pairs=3)
    assert found == [everything[0], everything[2], everything[5]]
    assert counts["left: a pair above max_pairs=3"] == 3
    assert counts["pair from rankings"] == 3
    assert len(pairs([said, record("x", "y", ranks=(0, 1))], max_pairs=1)[0]) == 1  # one prompt, two records
    assert len(pairs(said, max_pairs=6)[0]) == 6


# -- points -----------------------------------------------------------------------------------------------------------


def test_points_from_labels_ratings_pairs_demonstrations():
    found, counts = values(
        [
            record("a", "b", labels=(1, 0)),
            record("c", scores=(7,)),
            record("d", "e", prefs=[(0, 1, 0.9)]),
            record("f"),
            record("g", "h", ranks=(0, 1)),
            Record(prompt="p"),
        ],
        demonstration_value=0.9,
    )
    assert found == [("a", 1), ("b", 0), ("c", 7), ("d", 1), ("e", 0), ("f", 0.9)]
    assert {k: v for k, v in counts.items() if k.startswith(("point", "no"))} == {
        "point from labels": 2, "point from pairs": 2, "point from ratings": 1, "point from demonstrations": 1,
        "no point: only rankings": 1, "no point: a prompt without responses": 1,
    }  # fmt: skip


def test_seven_of_ten():
    said = record("a", "b", "c", scores=(6, 7, None))
    found, counts = values(said, threshold=7)
    assert (found, counts["left: a response that nobody judged"]) == ([("a", 0.0), ("b", 1.0)], 1)


def test_rescaling():
    def rated(value, scale=None, source="s"):
        return Record(
            prompt="p", responses=[Response(text="a")], source=source,
            judgements=[Judgement(kind="score", response=0, value=value, scale=scale)],
        )  # fmt: skip

    said = [rated(3, (1, 5)), rated(10), rated(20), rated(40), rated(7, source="t")]
    found, counts = values(said, rescale="unit")
    assert [v for _, v in found] == [0.5, 0, pytest.approx(1 / 3), 1, 0.5]
    assert counts["rescaled to the middle: the source gave one value only"] == 1
    assert [v for _, v in values(said, rescale="centred")[0]] == [0, -1, pytest.approx(-1 / 3), 1, 0]
    assert [v for _, v in values(said, rescale="unit", threshold=0.5)[0]] == [1, 0, 0, 1, 1]


def test_pairs_as_points():
    said = record("a", "b", "c", prefs=[(0, 1, 1), (1, 2, 1)])
    assert values(said)[0] == [("a", 1), ("b", 0.5), ("c", 0)]
    found, counts = values(said, pairs_as_points=False)
    assert (found, counts["left: preferences (pairs_as_points is off)"]) == ([], 1)
    rated = record("a", "b", prefs=[(0, 1, 1)], scores=(9, 3))
    assert values(rated)[0] == [("a", 9), ("b", 3)]
    assert values(rated, feedback={"pairs"})[0] == [("a", 1), ("b", 0)]


# -- demonstrations and groups ----------------------------------------------------------------------------------------


def test_demonstrations_from_everything():
    said = [
        record("a"),
        record("b", "c", labels=(1, 0)),
        record("d", "e", prefs=[(0, 1, 0)]),
        record("f", "g", "h", scores=(1, 5, 5)),
        record("i", "j", ranks=(1, 0)),
        record("k", scores=(9,)),
        record("l", "m", scores=(4, 4)),
        record("n", labels=(0,)),
    ]
    found, counts = values(said, "Demos")
    assert found == ["a", "b", "e", "g", "h", "j"]
    assert counts["demonstration from demonstrations"] == counts["demonstration from pairs"] == 1
    assert counts["demonstration from ratings"] == 2
    assert counts["left: one response with ratings, and nothing to compare it with"] == 1
    assert counts["tie dropped: equal ratings"] == counts["no demonstration: all ties"] == 1
    assert counts["no demonstration: no response is known to be good"] == 2
    assert values(said, "Demos", threshold=4)[0] == ["a", "b", "e", "g", "h", "j", "k", "l", "m"]
    assert values(said, "Demos", feedback={"demonstrations"})[0] == ["a"]


def test_a_tie_that_is_kept_shows_nothing_worth_imitating():
    assert values(record("a", "b", prefs=[(0, 1, 0.5)]), "Demos", ties="half")[0] == []


def test_a_response_is_one_demonstration_however_often_it_is_praised():
    assert values(record("a", "b", "c", scores=(5, 3, 1), prefs=[(0, 1, 1), (0, 2, 1)]), "Demos")[0] == ["a"]


def test_groups():
    said = [
        record("a", "b", "c", scores=(1, None, 3), ranks=(1, 0, 2)),
        record("d", "e", ranks=(1, 0)),
        record("f", "g", labels=(1, 0)),
        record("h", "i", scores=(2, 2)),
        record("j", scores=(1,)),
    ]
    counts = Counts()
    made = view(said, "Groups", counts=counts)
    assert [e.values["score"] for e in made] == [(1, 3), (-1, 0), (1, 0), (2, 2)]
    assert made[0].branches["responses"] == (Branch(0, 0), Branch(0, 2))
    assert counts["left: a response that nobody scored"] == counts["group kept: all scores equal"] == 1
    assert counts["no group: only one response, with ratings"] == 1
    assert counts["group from ratings"] == 2


# -- options and counts -----------------------------------------------------------------------------------------------


def test_refusals():
    for wrong, right in (
        ({"ties": "halve"}, "'half'"),
        ({"rankings": "best"}, "known"),
        ({"strength_scale": 0}, "above 0"),
        ({"several": "median"}, "known"),
        ({"several": "agreement", "strengths": "scores"}, "choose one"),
    ):
        with pytest.raises(ConfigError, match=right):
            ViewOptions(**wrong)
    with pytest.raises(ConfigError, match="not a number"):
        ViewOptions(threshold="7")
    with pytest.raises(ConfigError, match="max_pairs"):
        ViewOptions(max_pairs=0)
    with pytest.raises(ConfigError, match="did you mean 'Pairs'"):
        view([], "Pair")
    with pytest.raises(ConfigError, match="did you mean 'ratings'"):
        view([], "Pairs", feedback={"rating"})
    with pytest.raises(ConfigError, match="Pairs cannot be made from demonstrations"):
        view([], "Pairs", feedback={"demonstrations"})


@pytest.mark.parametrize(
    ("said", "kind", "options", "says"),
    [
        ([record("a", scores=(1,))], "Pairs", {}, "only one response, with ratings: 1.*kto, ulma"),
        ([record("a", "b")] * 3, "Pairs", {}, "none of 3 records.*only demonstrations: 3.*sft"),
        ([record("a", "b", scores=(1, 1))], "Pairs", {}, "all ties: 1.*ties: half"),
        ([record("a", "b", scores=(1, None))], "Pairs", {}, "fewer than two of its responses are judged"),
        ([record("a", scores=(1,))], "Points", {"attribute": "truth"}, "no judgement is left that counts.*attribute"),
        ([record("a", scores=(1,))], "Demos", {"threshold": 2}, "known to be good.*threshold"),
        ([record()], "Points", {}, "a prompt without responses: 1"),
        ([], "Points", {}, "none of 0 records.*none of that kind"),
    ],
)
def test_why_there_is_nothing_and_what_may_be_done(said, kind, options, says):
    counts = Counts()
    assert view(said, kind, ViewOptions(**options), counts=counts) == []
    assert re.search(says, nothing(counts, len(said)))


def test_counts_keep_a_few_examples():
    counts = Counts()
    for line in range(7):
        counts.add("cut", Record(prompt="p", origin={"file": "a.jsonl", "line": line}))
    counts.add("cut")
    entry = counts.as_dict()["cut"]
    assert (entry["count"], len(entry["examples"]), entry["examples"][4]["line"]) == (8, 5, 4)


# -- invariants -------------------------------------------------------------------------------------------------------


@st.composite
def judged(draw):
    n = draw(st.integers(2, 5))
    small = st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=n, max_size=n)
    two = st.lists(st.integers(0, n - 1), min_size=2, max_size=2, unique=True)
    prefs = draw(st.lists(st.tuples(two, st.sampled_from([0, 0.3, 0.5, 1])), max_size=3))
    return record(
        *"abcdefg"[:n], scores=draw(small), ranks=draw(small), prefs=[(i, j, p) for (i, j), p in prefs],
        prompt=draw(st.sampled_from("pq")),
    )  # fmt: skip


options = st.builds(
    ViewOptions, ties=st.sampled_from(["drop", "half"]), rankings=st.sampled_from(["all", "adjacent", "best_worst"]),
    strengths=st.sampled_from(["hard", "given", "scores"]), rescale=st.sampled_from(["none", "unit", "centred"]),
    threshold=st.sampled_from([None, 2]), duplicates=st.sampled_from(["keep", "drop"]),
)  # fmt: skip


def permuted(said: Record, order: list[int]) -> Record:
    place = {old: new for new, old in enumerate(order)}
    judgements = [
        j.model_copy(
            update={"pair": (place[j.pair[0]], place[j.pair[1]])} if j.pair else {"response": place[j.response]}
        )
        for j in said.judgements
    ]
    return Record(prompt=said.prompt, responses=[said.responses[i] for i in order], judgements=judgements)


def told(records, example):
    """An example by texts: the same whatever the responses are numbered."""
    texts = [r.text for r in records[example.record].responses]
    if example.kind == "Groups":
        scores = zip(example.branches["responses"], example.values["score"], strict=True)
        return tuple(sorted((texts[b.response], s) for b, s in scores))
    sides = tuple(texts[b.response] for b in example.branches.values())
    if example.values.get("strength") == 0.5:
        return tuple(sorted(sides))
    return sides, tuple((k, round(v, 9) if v == v else None) for k, v in example.values.items())


@settings(max_examples=150, deadline=None)
@given(judged(), st.randoms(use_true_random=False), options, st.sampled_from(sorted(MADE_FROM)))
def test_numbering_the_responses_otherwise_changes_nothing(said, random, chosen, kind):
    order = list(range(len(said.responses)))
    random.shuffle(order)
    other = permuted(said, order)
    one, two = Counts(), Counts()
    first = view([said], kind, chosen, counts=one)
    second = view([other], kind, chosen, counts=two)
    assert sorted(map(repr, (told([said], e) for e in first))) == sorted(map(repr, (told([other], e) for e in second)))
    assert one.totals() == two.totals()


@settings(max_examples=100, deadline=None)
@given(st.lists(judged(), max_size=5), options, st.sampled_from(sorted(MADE_FROM)))
def test_what_every_view_keeps(said, chosen, kind):
    counts, again = Counts(), Counts()
    made = view(said, kind, chosen, counts=counts)
    assert repr(made) == repr(view(said, kind, chosen, counts=again))  # pure (repr: NaN is not NaN)
    assert counts.as_dict() == again.as_dict()
    assert [e.record for e in made] == sorted(e.record for e in made)
    from_somewhere = sum(n for name, n in counts.totals().items() if " from " in name)
    assert from_somewhere == len(made)  # every example is counted once
    nothing = sum(n for name, n in counts.totals().items() if name.startswith("no "))
    assert nothing + len({e.record for e in made}) <= len(said)
    for e in made:
        if kind == "Pairs":
            assert 0.5 <= e.values["strength"] <= 1
            assert e.branches["chosen"] != e.branches["rejected"]
            assert chosen.ties == "half" or e.values["strength"] > 0.5
    for name in FEEDBACK_KINDS:
        if name in MADE_FROM[kind]:
            assert len(view(said, kind, chosen, feedback={name})) >= 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=40),
    st.floats(0, 0.9, allow_subnormal=False),
    st.integers(0, 3),
    st.randoms(),
)
def test_split_is_by_prompt_and_stable(prompts, fraction, seed, random):
    said = [record("a", prompt=str(p), source=str(i)) for i, p in enumerate(prompts)]
    train, held = split(said, fraction, seed)
    assert not {r.prompt for r in train} & {r.prompt for r in held}
    assert len(train) + len(held) == len(said)
    count = len(set(prompts))
    assert len({r.prompt for r in held}) == min(round(fraction * count), max(count - 1, 0))
    shuffled = random.sample(said, len(said))
    assert {r.id for r in split(shuffled, fraction, seed)[1]} == {r.id for r in held}


def test_split_counts_prompts_not_records_and_knows_a_text_from_its_turn():
    said = [record("a", prompt=str(i)) for i in range(100)]
    assert len(split(said, 0.1, 0)[1]) == 10
    assert split(said, 0.1, 0)[1] != split(said, 0.1, 1)[1]
    same = [record("a", prompt="x"), record("b", prompt=[Message(role="user", content="x")]), record("c", prompt="y")]
    assert sorted(len(side) for side in split(same, 0.5, 0)) == [1, 2]
    assert split([], 0.1, 0) == ([], [])
    with pytest.raises(ConfigError, match="less than 1"):
        split(said, 1, 0)


# -- real files -------------------------------------------------------------------------------------------------------


def real(name: str, **kwargs) -> list[Record]:
    if not (DATA / name).exists():
        pytest.skip(f"real data {name} is absent (ACCORD_DATA)")
    return load(DATA / name, on_error="skip", **kwargs).records


def test_real_ultrafeedback():
    said = real("pairwise/ultrafeedback-binarized.train1000.jsonl.gz")
    found, counts = pairs(said)
    assert len(found) == counts["pair from pairs"]
    lost = [n for name, n in counts.items() if name.startswith(("tie dropped", "dropped", "duplicate"))]
    assert len(found) + sum(lost) == 998
    assert counts["dropped: chosen equals rejected"] == 4
    points, _ = values(said, threshold=7)
    assert len(points) == 2 * 998
    assert {v for _, v in points} == {0.0, 1.0}


def test_real_ties_of_webgpt():
    said = real("multi-source/webgpt.test.jsonl.gz", columns={"prompt": "question", "responses": "answers"})
    _, counts = pairs(said)
    assert counts["tie dropped: equal ratings"] + counts.get("dropped: chosen equals rejected", 0) >= 245


def test_real_hh():
    said = real("hh/harmless-base.test.jsonl.gz")
    found, _ = pairs(said)
    assert len(found) >= 2300
    assert len(values(said, "Demos")[0]) >= len(found)
    train, held = split(said, 0.1, 0)
    assert not {r.prompt_key for r in train} & {r.prompt_key for r in held}


# -- token by token ---------------------------------------------------------------------------------------------------


def sampled_record(values, sampled=(True, True, True)):
    said = {"token_ids": (5, 6), "tokenizer": "k", "sampling_logprobs": (-1.0, -2.0)}
    responses = [
        Response(text=f"t{i}", **(said if s else {})) for i, s in zip(range(len(values)), sampled, strict=False)
    ]
    scores = [Judgement(kind="score", response=i, value=v) for i, v in enumerate(values)]
    return Record(prompt="Hi", responses=responses, judgements=scores)


@pytest.mark.parametrize(
    ("advantages", "expected"),
    [("centred", [-2, 1, 1]), ("normalised", [-2 / 3**0.5, 3**-0.5, 3**-0.5]), ("value", [1, 4, 4])],
)
def test_rollouts_have_advantages_over_their_siblings(advantages, expected):
    made = view([sampled_record([1, 4, 4])], "Rollouts", ViewOptions(advantages=advantages))
    assert [e.values["advantage"] for e in made] == pytest.approx(expected)
    assert [e.values["value"] for e in made] == [1, 4, 4]


def test_what_nobody_sampled_or_has_no_sibling_is_no_rollout():
    counts = Counts()
    made = view([sampled_record([1, 4, 5], (True, True, False)), sampled_record([3])], "Rollouts", counts=counts)
    assert [(e.record, e.values["advantage"]) for e in made] == [(0, -1.5), (0, 1.5)]
    assert counts["left: a response that carries no sampling_logprobs"] == 1
    assert counts["left: a single rollout, which has no advantage over others"] == 1


def test_rollouts_carry_what_was_made_for_their_tokens():
    record = sampled_record([1, 4, 5])
    first = record.responses[0].model_copy(
        update={"advantages": (0.5, -0.5), "returns": (1.0, 2.0), "values": (0.5, 2.5)}
    )
    masked = first.model_copy(update={"trained": (False, True)})
    counts = Counts()
    made = view(
        [record.model_copy(update={"responses": (first, masked, record.responses[2])})], "Rollouts", counts=counts
    )
    assert [e.values for e in made] == [
        {"value": 1, "advantage": (0.5, -0.5), "returns": (1.0, 2.0), "old_value": (0.5, 2.5)},
        {"value": 4, "advantage": (-0.5,), "returns": (2.0,), "old_value": (2.5,)},
    ]
    assert counts["left: a response without advantages beside others that have them"] == 1
    with pytest.raises(AccordError, match="cannot be mixed; train on them apart"):
        view([record.model_copy(update={"responses": (first,) * 3}), record], "Rollouts")


def test_tokens_are_points_that_are_looked_at_one_by_one():
    records = [sampled_record([0, 1])]
    points = view(records, "Points")
    assert [replace(e, kind="Points") for e in view(records, "Tokens")] == points
    assert {e.kind for e in view(records, "Tokens")} == {"Tokens"}
