"""`accord eval winrate`, `ratings`, `scores`: synthetic contests whose truth is known, and everybody's layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from accord.cli import main
from accord.data.records import Judgement, Record, Response
from accord.errors import ConfigError, RecordError
from accord.evaluate.contests import Contest, Verdict, collect, games
from accord.evaluate.winrate import (
    _fitted,
    extreme,
    gathered,
    judged_games,
    length_controlled,
    pairing,
    rated,
    scores,
    winrates,
)
from accord.stats import elo, ratings


def write(path: Path, rows: list[dict[str, Any]], *, whole: bool = False) -> str:
    text = json.dumps(rows) if whole else "".join(json.dumps(r) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def accord(*words: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    assert left.value.code == 0


def verdict(prompt: Any, value: float, shown: int | None = None, models=("a", "b"), lengths=None) -> Verdict:
    return Verdict(str(prompt), str(prompt), models, value, shown, 1.0, lengths, "judge")


# -- known truth -------------------------------------------------------------------------------------------------------


def drawn(theta: float, phi: float, n: int = 3000, seed: int = 0) -> list[Verdict]:
    """Verdicts of a judge that likes the first model by theta and what is longer by phi; the first writes more."""
    random = np.random.default_rng(seed)
    d = random.normal(120, 150, n).round()
    won = random.random(n) < expit(theta + phi * np.tanh(d / d.std(ddof=1)))
    return [verdict(i, float(w), lengths=(1000 + int(x), 1000)) for i, (w, x) in enumerate(zip(won, d, strict=True))]


def test_a_judge_that_only_likes_length_gives_a_raw_win_and_a_length_controlled_draw():
    (played,) = gathered(drawn(0, 1)).values()
    found = pairing(played)
    assert found.rate.low > 0.55  # equation: mean sigmoid(tanh(d / sd)) = 0.617 at this d
    assert found.rate.mean == pytest.approx(0.617, abs=0.03)
    assert found.controlled is not None
    assert found.controlled.rate.low < 0.5 < found.controlled.rate.high
    assert found.controlled.rate.mean == pytest.approx(0.5, abs=0.03)
    assert found.controlled.effect == pytest.approx(1, abs=0.15)
    assert found.lengths == pytest.approx((1120, 1000), abs=10)


def test_what_is_better_beside_its_length_stays_better():
    (played,) = gathered(drawn(0.8, -1, seed=1)).values()  # a judge that likes it short, and the longer answers
    found = pairing(played)
    assert found.controlled is not None
    assert found.controlled.rate.low <= expit(0.8) <= found.controlled.rate.high
    assert found.rate.mean < expit(0.8) - 0.08  # the plain rate hides it


def test_the_length_regression_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(3)
    x = np.stack([np.ones(200), np.tanh(random.normal(size=200))], 1)
    y = random.random(200)  # probabilities, as the weighted judge of AlpacaEval gives them
    for strength in (0.05, 1.0, 100.0):
        theirs = LogisticRegression(
            l1_ratio=1, solver="saga", C=strength, fit_intercept=False, tol=1e-9, max_iter=20000
        )
        theirs.fit(np.concatenate([x, x]), np.r_[np.ones(200), np.zeros(200)], np.r_[y, 1 - y])
        assert _fitted(x, y, np.ones(200), strength) == pytest.approx(theirs.coef_[0], abs=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    held = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        d = random.normal(50, 100, 250)
        won = (random.random(250) < expit(0.4 + np.tanh(d / 100))).astype(float)
        found = length_controlled(won, d, range(250), draws=60, seed=seed).rate
        held += found.low <= expit(0.4) <= found.high
    assert held >= 16  # of 20 at 95 %, with what L1 draws in


def test_lengths_that_are_all_alike_leave_the_plain_rate():
    same = length_controlled([1, 0, 1, 1] * 25, [0.0] * 100, range(100), draws=50)
    assert (same.rate.mean, same.effect) == (pytest.approx(0.75, abs=0.02), 0)
    assert not extreme(0.75, same.rate.mean)


TRUTH = {"a": 1150.0, "b": 1050.0, "c": 950.0, "d": 850.0}


def tournament(n: int, seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    verdicts = []
    for i in range(n):
        one, two = random.choice(list(TRUTH), 2, replace=False)
        won = random.random() < 1 / (1 + 10 ** ((TRUTH[two] - TRUTH[one]) / 400))
        verdicts.append(verdict(i, float(won), models=(str(one), str(two))))
    return [g for several in gathered(verdicts).values() for g in several]


def test_ratings_of_four_models_are_those_that_the_games_were_drawn_from():
    held = 0
    for seed in range(10):
        found = rated(tournament(400, seed)).bradley_terry
        held += sum(found[name].low <= rating <= found[name].high for name, rating in TRUTH.items())
    assert held >= 34  # of 40 at 95 %
    played = tournament(4000, 0)
    found = rated(played)
    for name, rating in TRUTH.items():
        assert found.bradley_terry[name].mean == pytest.approx(rating, abs=30)
        assert found.elo[name].mean == pytest.approx(rating, abs=40)
    anchored = rated(played, anchor="d").bradley_terry
    assert anchored["d"].mean == anchored["d"].low == anchored["d"].high == 1000
    apart = found.bradley_terry["a"].mean - found.bradley_terry["d"].mean
    assert anchored["a"].mean - 1000 == pytest.approx(apart)


def test_n18():
    """Two players: 400 log10(w / (n - w)); a cycle is a draw; nobody who never lost has a rating without a ridge."""
    two = ratings({("a", "b"): 30.0, ("b", "a"): 10.0})
    assert two["a"].mean - two["b"].mean == pytest.approx(400 * np.log10(3), abs=1e-3)
    cycle = {pair: 3.0 if pair in {("a", "b"), ("b", "c"), ("c", "a")} else 1.0
             for pair in (("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"), ("a", "c"), ("c", "a"))}  # fmt: skip
    assert [r.mean for r in ratings(cycle).values()] == pytest.approx([1000.0] * 3, abs=1e-3)
    (never,) = gathered([verdict(i, 1.0) for i in range(10)]).values()
    with pytest.raises(ConfigError, match=r"never lost to some of the others.*--ridge 1"):
        rated(never)
    drawn_in = rated(never, ridge=1.0).bradley_terry
    assert 1000 < drawn_in["a"].mean < 1600


def test_elo_does_not_hang_on_the_order_of_the_games():
    games_ = [("a", "b", 1.0)] * 300 + [("a", "b", 0.0)] * 100
    forth, back = (elo(*zip(*order, strict=True), seed=1) for order in (games_, games_[::-1]))  # type: ignore[arg-type]
    assert forth["a"].mean == pytest.approx(back["a"].mean, abs=3)
    assert forth["a"].mean - forth["b"].mean == pytest.approx(190.85, abs=20)
    assert forth["a"].low < forth["a"].mean < forth["a"].high


# -- orders, ties ------------------------------------------------------------------------------------------------------


def test_both_orders_ties_consistency_and_who_stands_first():
    verdicts = [
        *(verdict(i, 1.0, shown) for i in range(6) for shown in (0, 1)),  # a is better in both orders
        *(verdict(i, 1.0 - shown, shown) for i in range(6, 9) for shown in (0, 1)),  # whoever stands first is
        *(verdict(9, v, shown) for v, shown in ((0.5, 0), (0.0, 1))),  # a tie, and b
    ]
    found = {rule: pairing(next(iter(gathered(verdicts, rule).values()))) for rule in ("mean", "agree", "other")}
    assert {k: (f.wins, f.ties, f.losses) for k, f in found.items()} == {
        "mean": (6, 3, 1), "agree": (6, 4, 0), "other": (6, 3, 1),
    }  # fmt: skip
    assert found["mean"].rate.mean == pytest.approx((6 + 1.5 + 0.25) / 10)
    assert found["agree"].rate.mean == pytest.approx(0.8)
    assert found["other"].rate.mean == pytest.approx(0.75)
    mean = found["mean"]
    assert (mean.both, mean.consistent.mean) == (10, 0.6)  # type: ignore[union-attr]
    assert mean.first.mean == pytest.approx((3 * 0.5 + 0.25) / 10)  # type: ignore[union-attr]
    assert mean.sign == pytest.approx(2 * 8 / 2**7)  # 6 of 7 prompts
    text = "\n".join(mean.lines())
    assert "the same verdict in 0.600" in text
    assert "at equal length: not known" in text


def test_a_model_that_always_wins_is_no_surer_than_its_prompts_allow():
    found = pairing(gathered([verdict(i, 1.0, lengths=(5 + i, 5)) for i in range(8)])["a", "b"])
    assert (found.rate.mean, found.rate.high, found.controlled) == (1, 1, None)
    assert found.rate.low == pytest.approx(0.676, abs=1e-3)  # Wilson's for 8 of 8
    assert "every game went the same way" in "\n".join(found.lines())


def test_two_games_of_a_prompt_are_one_prompt():
    twice = [Verdict("p", f"p{i}", ("a", "b"), float(i), None, 1.0, None, "j") for i in (0, 1)]
    found = pairing(gathered(twice)["a", "b"])
    assert (found.prompts, found.games, found.rate.mean, found.rate.low, found.sign) == (1, 2, 0.5, 0.5, 1.0)


# -- layouts -----------------------------------------------------------------------------------------------------------


def test_alpaca_evals_annotations(tmp_path):
    base = {"output_1": "x" * 10, "generator_1": "base", "output_2": "y" * 40, "generator_2": "mine", "annotator": "j"}
    said = [2.0, 1.75, 1, 0, 1.5, None]
    rows = [base | {"instruction": f"q{i}", "preference": p} for i, p in enumerate(said)]
    made = collect([write(tmp_path / "annotations.json", rows, whole=True)])
    (found,) = winrates(made).pairs
    assert (found.model, found.against, found.games) == ("mine", "base", 5)
    assert found.rate.mean == pytest.approx((1 + 0.75 + 0 + 0.5 + 0.5) / 5)
    assert found.lengths == (40, 10)
    assert made.left == {"the judge gave no verdict": 1}
    (turned,) = winrates(made, against="mine").pairs
    assert (turned.model, turned.rate.mean) == ("base", pytest.approx(1 - found.rate.mean))
    with pytest.raises(RecordError, match=r"bad.json, line 1, field 'preference': .*not 3"):
        collect([write(tmp_path / "bad.json", [rows[0] | {"preference": 3}], whole=True)])


def test_arena_hards_judgments_with_answers_for_their_lengths(tmp_path):
    def row(key: str, one: str | None, two: str | None) -> dict[str, Any]:
        return {
            "uid": key,
            "model": "mine",
            "baseline": "base",
            "judge": "j",
            "games": [{"score": one}, {"score": two}],
        }

    def answer(model: str, text: str) -> list[dict[str, Any]]:
        return [{"uid": k, "model": model, "messages": [{"role": "user", "content": k},
                 {"role": "assistant", "content": {"answer": text}}]} for k in "pqr"]  # fmt: skip

    # the baseline is A in the first game, the model in the second: >> counts three times
    rows = [row("p", "B>>A", "A>B"), row("q", "A>B", "A=B"), row("r", None, "A>B")]
    files = [write(tmp_path / "mine.jsonl", rows), write(tmp_path / "a.jsonl", answer("mine", "four")),
             write(tmp_path / "b.jsonl", answer("base", "fourfour"))]  # fmt: skip
    made = collect(files)
    (found,) = winrates(made).pairs
    assert (found.model, found.against, found.prompts) == ("mine", "base", 2)
    assert found.rate.mean == pytest.approx((3 * 1 + 1 * 1 + 1 * 0 + 1 * 0.5) / 6)
    assert found.lengths == (4, 8)
    assert found.consistent.mean == 0.5  # type: ignore[union-attr]
    assert made.left["the judge gave no verdict"] == 1
    with pytest.raises(RecordError, match=r"field 'games.0.score': a verdict is"):
        collect([write(tmp_path / "no.jsonl", [row("p", "A", "B")])])


def test_mt_benchs_pairs_and_scores(tmp_path):
    def row(key: int, one: str, two: str, turn: int = 1) -> dict[str, Any]:
        return {"question_id": key, "model_1": "x", "model_2": "y", "g1_winner": one, "g2_winner": two,
                "judge": ["gpt-4", "pair-v2"], "turn": turn}  # fmt: skip

    rows = [row(81, "model_1", "model_1"), row(81, "model_1", "model_2", 2), row(82, "tie", "model_2"),
            row(83, "error", "model_1")]  # fmt: skip
    made = collect([write(tmp_path / "pair.jsonl", rows)])
    (found,) = winrates(made, ties="agree").pairs  # FastChat: a winner only where both orders agree
    assert (found.wins, found.ties, found.losses, found.prompts) == (1, 2, 0, 2)
    assert made.left["the judge gave no verdict"] == 1
    single = [{"question_id": q, "model": m, "judge": ["gpt-4", "single-v1"], "score": s, "turn": t}
              for q, m, s, t in ((81, "x", 8, 1), (81, "x", 6, 2), (82, "x", -1, 1), (81, "y", 9, 1))]  # fmt: skip
    of = scores(collect([write(tmp_path / "single.jsonl", single)]))
    assert {k: v.mean for k, v in of.models["x"].items()} == {"turn 1": 8, "turn 2": 6, "all": 7}
    assert of.notes == {"the judge gave no score": 1}
    assert of.judges == ["gpt-4, single-v1"]


def test_mt_benchs_answers_of_two_turns_are_judged_as_dialogues(tmp_path):
    asked = write(tmp_path / "question.jsonl", [{"question_id": 81, "category": "w", "turns": ["One?", "And two?"]}])
    files = [write(tmp_path / f"{m}.jsonl", [{"question_id": 81, "model_id": m,
             "choices": [{"index": 0, "turns": [f"{m}1", f"{m}2"]}]}]) for m in "ab"]  # fmt: skip
    (record,) = games(collect(files, questions=asked))
    assert record.prompt == "One?"
    assert [(m.role, m.content) for m in record.responses[0].messages or ()] == [
        ("assistant", "a1"), ("user", "And two?"), ("assistant", "a2"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="no file says what question 81 is; name the file of questions"):
        games(collect(files))


def test_records_with_verdicts_by_whom_they_are_about(tmp_path):
    def one(n: int, value: float, order: tuple[int, int]) -> Record:
        answers = [{"text": "long" * n, "sampler": {"model": "a"}}, {"text": "b", "sampler": {"model": "b"}}]
        said = Judgement(kind="preference", pair=(0, 1), value=value, by="anna", order=order)
        return Record(prompt=f"p{n}", responses=answers, judgements=[said])

    path = tmp_path / "judged.jsonl"
    path.write_text("".join(one(n, 1.0, o).to_json() + "\n" for n in (1, 2) for o in ((0, 1), (1, 0))))
    made = collect([str(path)])
    (found,) = winrates(made).pairs
    assert (found.model, found.wins, found.games, found.both) == ("a", 2, 2, 2)
    with pytest.raises(ConfigError, match=r"--by ann: nobody called so compared answers; did you mean 'anna'\?"):
        winrates(made, by="ann")


# -- judging -----------------------------------------------------------------------------------------------------------


class Biased:
    """A judge that compares: the one that holds `good` wins, else the one it sees first."""

    by, compares = "biased", True

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, records, say=lambda done, of: None):
        self.asked += len(records)
        found = []
        for r in records:
            good = ["good" in a.plain_text for a in r.responses]
            value = 1.0 if good[0] >= good[1] else 0.0
            found.append((Judgement(kind="preference", pair=(0, 1), value=value, by=self.by, order=(0, 1)),))
        return found


def contest() -> Contest:
    made = Contest()
    for n in range(10):
        prompt = Record(prompt=f"p{n}")
        for model, text in (("a", "good" if n < 4 else "fair"), ("b", "fair")):
            made.add(model, prompt.prompt_key, Response(text=text), prompt.prompt)
    return made


def test_a_judge_that_compares_is_asked_in_both_orders_and_nothing_twice(tmp_path):
    judge = Biased()
    (found,) = winrates(judged_games(contest(), judge, tmp_path)).pairs
    assert judge.asked == 20
    assert (found.model, found.rate.mean, found.consistent.mean) == ("a", 0.7, 0.4)  # type: ignore[union-attr]
    assert found.first.mean == pytest.approx(0.3)  # type: ignore[union-attr]
    again = judged_games(contest(), judge, tmp_path)
    assert (judge.asked, winrates(again).pairs[0].rate) == (20, found.rate)
    fixed = winrates(judged_games(contest(), judge, tmp_path, order="fixed")).pairs[0]
    assert (judge.asked, fixed.rate.mean, fixed.first) == (30, 1.0, None)
    drawn_ = winrates(judged_games(contest(), judge, tmp_path, order="random", seed=0)).pairs[0]
    assert (drawn_.model, drawn_.both, drawn_.games) == ("a", 0, 10)
    assert drawn_.rate.mean == 1  # seed 0 turns prompts 1, 2 and 3, where a is better wherever it stands
    assert drawn_.first.mean == pytest.approx((7 * 0.5 - 3 * 0.5) / 10)  # type: ignore[union-attr]


def answers(path: Path, texts: list[str]) -> str:
    return write(path, [{"prompt": f"p{i}", "completion": t} for i, t in enumerate(texts)])


def test_the_command(tmp_path, capsys):
    a = answers(tmp_path / "a.jsonl", ["We fix bikes while waiting."] * 6 + ["Bikes."] * 2)
    b = answers(tmp_path / "b.jsonl", ["Bikes for all."] * 7 + ["Ride on with us today."])
    out = tmp_path / "found"
    accord("eval", "winrate", a, b, "--judge", "slogan:words=5", "--output", str(out))
    said = capsys.readouterr().out
    assert "a against b: win rate 0.750" in said
    assert "6 wins, 0 ties, 2 losses in 8 games of 8 prompts" in said
    assert json.loads((out / "winrate.json").read_text())["pairs"][0]["wins"] == 6
    (judged,) = out.glob("judged-*.jsonl")
    accord("eval", "winrate", str(judged), "--json")  # its output is a file of verdicts
    assert json.loads(capsys.readouterr().out)["pairs"][0]["wins"] == 6
    c = answers(tmp_path / "c.jsonl", ["One two three four."] * 4 + ["One two three four five."] * 4)
    accord("eval", "winrate", a, b, c, "--judge", "slogan:words=5", "--json")
    several = json.loads(capsys.readouterr().out)
    assert [(p["model"], p["against"]) for p in several["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert set(several["ratings"]["bradley_terry"]) == {"a", "b", "c"}
    accord("eval", "ratings", str(judged), "--json")
    two = json.loads(capsys.readouterr().out)["ratings"]["bradley_terry"]
    assert two["a"]["mean"] - two["b"]["mean"] == pytest.approx(400 * np.log10(3), abs=1e-2)
    accord("eval", "scores", a, b, "--judge", "slogan:words=5", "--json")
    of = json.loads(capsys.readouterr().out)["models"]
    assert of["a"]["all"]["mean"] == pytest.approx((6 + 2 * 0.1) / 8)


def test_a_run_folder_is_its_answers_before_and_after(tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [
        {"prompt": f"p{i}", "rule": "r", "before": "Bikes.", "after": "We fix bikes while waiting."} for i in range(3)
    ]
    write(folder / "samples.jsonl", rows)
    accord("eval", "winrate", str(folder), "--judge", "slogan:words=5", "--json")
    (found,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (found["model"], found["against"], found["wins"]) == ("run", "run:before", 3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["A"], "nothing in these files says which answer is better: name a judge"),
        (["A", "--judge", "slogan"], "a comparison needs the answers of two models, and here is a"),
        (["A", "B", "--judge", "slogon"], "slogon"),
        (["A", "X", "--judge", "slogan"], "a and x answer no prompt that is the same"),
        (["A", "B", "--judge", "slogan", "--ties", "mode"], "--ties mode: known: agree, mean, other"),
        (["A", "B", "--judge", "slogan", "--order", "bth"], "--order bth: did you mean 'both'"),
        (["A", "B", "--judge", "slogan", "--against", "c"], "--against c: nobody is called so; known: a, b"),
        (["A", "B", "--judge", "slogan:words=5", "--anchor", "z", "C"], "--anchor z: nobody is called so"),
    ],
)
def test_what_cannot_be_is_said(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = {"A": ["We fix bikes.", "Ho"], "B": ["Hi.", "We go on now"], "C": ["Hi.", "Ho"]}
    files = {name: answers(Path(f"{name.lower()}.jsonl"), said) for name, said in texts.items()}
    files["X"] = write(Path("x.jsonl"), [{"prompt": "?", "completion": "!"}])
    with pytest.raises(SystemExit) as left:
        main(["eval", "winrate", *(files.get(w, w) for w in words), "--json"])
    assert left.value.code == 2
    assert says in capsys.readouterr().err
