"""`lab claims`: the machinery on a budget of few updates; every recipe that is shipped is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from accord.data.records import Record, Response
from accord.errors import AccordError, ConfigError
from accord.judges.ensemble import own_scores
from accord.lab import claims, scored, trials
from accord.lab.claims import MADE, Recipe, listed, run, verdict, written
from accord.lab.frame import VERDICTS
from accord.training.watch import Quiet
from tests.conftest import DATA, data_file

RECIPE = """
claim: Soft labels teach more than hard ones.
paper: "2405.14103"
note: A test.
data: {name: slogans, start: 4, train: 6, held_out: 5}
start: {objective: sft, responses: 4, max_steps: 9, learning_rate: 0.001, data: {as: answers}}
settings: {max_steps: 9, learning_rate: 0.001, responses: 4, beta: 0.1}
arms:
  hard: {objective: dpo, data: {as: judged, labels: hard}}
  twice:
    - {objective: dpo, data: {as: judged, labels: soft}}
    - {objective: soft_dpo, data: {as: judged, labels: soft}}
cases:
  accuracy: {more: twice, than: hard, in: accuracy}
  rule: {more: twice, than: hard, in: rule, within: 0.1}
"""
UNTESTED = """
claim: A claim that needs a large judge.
paper: "2312.02554"
not_testable: There is no judge.
"""


@pytest.fixture(scope="module")
def tiny():
    return str(data_file("tiny-lm/hf/config.json").parent)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claims")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "soft.yaml").write_text(RECIPE)
    (folder / "recipes" / "judge.yaml").write_text(UNTESTED)
    return folder


@pytest.fixture(scope="module")
def found(tiny, place):
    return run(seeds=2, policy=tiny, folder=str(place / "kept"), recipes=str(place / "recipes"), max_steps=2)


def test_every_claim_ends_and_the_page_says_how(found, place):
    ends = {c.claim: c.verdict for c in found.claims}
    assert ends["A claim that needs a large judge."] == "not testable here"
    assert set(ends.values()) <= set(VERDICTS)
    page = (place / "kept" / "claims.md").read_text()
    assert "Only 2 updates each" in page
    assert "| [soft](#soft) | 2405.14103 |" in page
    assert "There is no judge." in page


def test_every_seed_of_every_arm_was_measured(found):
    arms = found.numbers["recipes"]["soft"]["arms"]
    assert set(arms) == {"hard", "twice"}
    for measures in arms.values():
        assert set(measures) == {"accuracy", "nll", "rule"}
        assert all(len(v) == 2 and np.isfinite(v).all() for v in measures.values())
    assert arms["hard"]["nll"] != arms["twice"]["nll"]


def test_what_is_done_is_not_repeated_and_a_stop_is_gone_on_from(found, tiny, place, monkeypatch):
    trained = []
    real = claims.train
    monkeypatch.setattr(claims, "train", lambda *a, **k: (trained.append(k["output"]), real(*a, **k))[1])
    again = run(seeds=2, policy=tiny, folder=str(place / "kept"), recipes=str(place / "recipes"), max_steps=2)
    assert not trained
    assert json.dumps(again.numbers) == json.dumps(found.numbers)
    monkeypatch.chdir(place)  # the same folder by another name
    run(seeds=2, policy=tiny, folder="kept", recipes=str(place / "recipes"), max_steps=2)
    assert not trained
    lost = place / "kept" / "soft" / "seed-1" / "twice"
    (lost / "measured.json").unlink()
    import shutil

    shutil.rmtree(lost / "1")
    again = run(seeds=2, policy=tiny, folder=str(place / "kept"), recipes=str(place / "recipes"), max_steps=2)
    assert [Path(t).parts[-3:] for t in trained] == [("seed-1", "twice", "1")]
    assert json.dumps(again.numbers) == json.dumps(found.numbers)


def test_a_recipe_that_has_changed_is_trained_anew(found, tiny, place, monkeypatch):
    other = place / "changed"
    other.mkdir()
    (other / "soft.yaml").write_text(RECIPE.replace("beta: 0.1", "beta: 0.2"))
    trained = []

    def stop(*a, **k):
        trained.append(Path(k["output"]).parts[-3:])
        raise AccordError("enough")

    monkeypatch.setattr(claims, "train", stop)
    with pytest.raises(AccordError, match="enough"):
        run(seeds=2, policy=tiny, folder=str(place / "kept"), recipes=str(other), max_steps=2)
    assert trained == [("seed-0", "hard", "0")]  # the start, which has no beta, is still good


def test_tokens_are_responses_times_updates_times_length(tiny, place):
    trial = claims.Trial(tiny, place / "none", 2)
    recipe = listed(place / "recipes")["soft"]
    assert trial.tokens(recipe, 3) == int(trial._mean_length("slogans") * 4 * 2 * 3 * 3)  # three trainings a seed
    assert trial.settings(recipe, recipe.arms["hard"][0])["max_steps"] == 2


def test_slices_are_disjoint_and_the_start_is_in_none(tiny):
    trial = claims.Trial(tiny, Path("none"))
    data = claims.Data("slogans", train=50, held_out=20, start=30)
    start = {r.id for r in trial.records("slogans")[:30]}
    seen = []
    for seed in (0, 1):
        train, held = ({r.id for r in part} for part in trial.slices(data, seed))
        assert (len(train), len(held)) == (50, 20)
        assert not train & held
        assert not start & (train | held)
        seen.append(train)
    assert seen[0] != seen[1]


SOURCES = """
claim: Sharing by min-norm is calmer than an ensemble.
paper: "2312.07401"
data:
  sources: {people: hh/harmless-base.test.jsonl.gz, raters: pairwise/ultrafeedback-binarized.eval200.jsonl.gz}
  start: 0
  train: 8
  held_out: 6
settings: {objective: bradley_terry, max_steps: 4, learning_rate: 0.001, responses: 8, max_length: 96, eval_steps: 1}
arms:
  more: {sharing: {rule: more, normalise: none}}
  apart: {sharing: ensemble, max_steps: 2}
  policy: {objective: dpo, beta: 0.5, sources: [people]}
cases:
  ece: {less: more, than: apart, in: ece}
  wobble: {less: more, than: policy, in: wobble}
"""


def test_models_of_real_sources_are_measured_by_their_rewards(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCORD_DATA", str(DATA))
    (tmp_path / "sources.yaml").write_text(SOURCES)
    notes: list[str] = []
    found = run(seeds=2, policy=tiny, folder=str(tmp_path / "kept"), recipes=str(tmp_path), progress=Notes(notes))
    arms = found.numbers["recipes"]["sources"]["arms"]
    for arm, measures in arms.items():
        assert set(measures) == {*scored.MEASURES} - {"lost", "peak"}  # which no case asks for
        assert np.isnan(measures.pop("wobble")).all() == (arm == "apart")
        assert np.isfinite([*measures.values()]).all()
    trial = claims.Trial(tiny, tmp_path / "kept")
    recipe = listed(tmp_path)["sources"]
    train, held = trial.slices(recipe.data, 1)
    assert [r.source for r in train] == ["people"] * 8 + ["raters"] * 8
    assert not {r.prompt_key for r in train} & {r.prompt_key for r in held}
    judge = scored.judge(str(tmp_path / "kept/sources/seed-1/policy/0/model"), tiny, "x", 0.5)
    people = [r for r in held if r.source == "people"]
    right = [own_scores(said, 2) for said in judge(people)]
    assert arms["policy"]["accuracy"][1] == pytest.approx(np.mean([a > b for a, b in right]))
    (tokens,) = [int(n.split(": ")[1].split()[0].replace(",", "")) for n in notes if n.startswith("  sources:")]
    of = [trial._mean_length(f) for f in recipe.data.sources.values()]
    assert tokens == int(2 * 8 * (4 * np.mean(of) + 2 * 2 * np.mean(of) + 4 * of[0]))  # two models of two updates
    page = (tmp_path / "kept" / "claims.md").read_text()
    assert "| trained on | people | raters |" in page


def test_a_recipe_may_name_its_policy_and_freeze_layers(tiny, tmp_path, monkeypatch):
    """States of frozen layers are read by later seeds and measurements, and change no number."""
    monkeypatch.setenv("ACCORD_DATA", str(DATA))
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "cache"))
    frozen = "probe_every: null, freeze_layers: 3, frozen_states: cached}"
    text = SOURCES.replace("eval_steps: 1}", frozen).replace("paper:", f"policy: {tiny}\npaper:")
    text = text.replace("start: 0", "start: 0\n  pool: 14")
    text = "\n".join(line for line in text.splitlines() if "policy: {" not in line and "wobble" not in line)
    (tmp_path / "own.yaml").write_text(text)
    found = run(seeds=2, policy="smollm2-is-not-read", folder=str(tmp_path / "kept"), recipes=str(tmp_path))
    recipe = listed(tmp_path)["own"]
    trial = claims.Trial(tiny, tmp_path / "kept")
    assert len({r.prompt_key for seed in range(2) for part in trial.slices(recipe.data, seed) for r in part}) <= 28
    _, held = trial.slices(recipe.data, 1)
    model = str(tmp_path / "kept/own/seed-1/more/0/model")
    plain = scored.numbers(model, tiny, held, 0.1)
    for measure in ("accuracy", "ece", "margin", "loss"):
        assert found.numbers["recipes"]["own"]["arms"]["more"][measure][1] == pytest.approx(plain[measure], abs=1e-5)
    assert f"tried with `{'/'.join(Path(tiny).parts[-2:])}`" in (tmp_path / "kept" / "claims.md").read_text()
    assert len(list((tmp_path / "cache" / "states").iterdir())) == 1


class Notes(Quiet):
    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_source_that_is_not_there_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text(SOURCES.replace("[people]", "[peeple]"))
    with pytest.raises(ConfigError, match="people"):
        listed(tmp_path)
    (tmp_path / "x.yaml").write_text(SOURCES.replace("in: ece", "in: nll"))
    with pytest.raises(ConfigError, match="measure 'nll'"):
        listed(tmp_path)


@pytest.mark.parametrize("name", sorted(p.stem for p in claims.RECIPES.glob("*.yaml")))
def test_a_shipped_recipe_can_be_read_and_its_settings_are_known(name):
    """Every arm's settings pass what `train` checks, and every source that is named is what the cases need."""
    from accord import config
    from accord.training import plan

    recipe = listed(claims.RECIPES)[name]
    assert len(recipe.claim) > 20
    assert recipe.paper in ("2312.02554", "2406.07327", "2405.14103", "2312.07401")
    if recipe.not_testable:
        return
    assert recipe.cases
    for stages in [*recipe.arms.values(), *([[recipe.start]] if recipe.start else [])]:
        apart = claims._separate(stages[-1])  # each source's model takes its part of the updates
        updates = sum((recipe.settings | s)["max_steps"] for s in stages) * (len(recipe.data.sources) if apart else 1)
        if stages != [recipe.start]:
            assert updates == recipe.settings["max_steps"], "equal compute"
        for stage in stages:
            own = {} if stages == [recipe.start] else recipe.settings
            settings = {k: v for k, v in (own | stage).items() if k not in ("data", "train", "responses", "sources")}
            known = config.settings().keys()
            options = {k: v for k, v in settings.items() if k not in known}
            given = {k: settings[k] for k in ("view", "length", "log_z") if k in settings}
            plan.terms(settings["objective"], options, **given)
            assert MADE[(stage.get("data") or recipe.data.made).get("as", "given")]


def test_what_a_recipe_says_wrongly_is_named(tmp_path):
    def read(old, new):
        (tmp_path / "x.yaml").write_text(RECIPE.replace(old, new))
        return Recipe.read(tmp_path / "x.yaml")

    with pytest.raises(ConfigError, match="twice"):
        read("more: twice", "more: twise")
    with pytest.raises(ConfigError, match="accuracy"):
        read("in: accuracy", "in: acuracy")
    with pytest.raises(ConfigError, match="settings"):
        read("settings:", "setings:")
    with pytest.raises(ConfigError, match="held_out"):
        read("held_out: 5", "heldout: 5")
    with pytest.raises(ConfigError, match="no recipe"):
        listed(tmp_path / "nothing")


def recipe_of(every=False, **cases):
    return Recipe("x", "A claim.", "", cases=cases, every=every)


def test_verdicts():
    arms = {
        "a": {"nll": [1.0, 1.1, 0.9], "rule": [0.5, 0.6, 0.55]},
        "b": {"nll": [2.0, 2.1, 1.95], "rule": [0.5, 0.6, 0.54]},
    }
    less = {"less": "a", "than": "b", "in": "nll"}
    assert verdict(recipe_of(one=less), arms).verdict == "held"
    assert verdict(recipe_of(one={**less, "less": "b", "than": "a"}), arms).verdict == "not seen"
    unsure = {"more": "a", "than": "b", "in": "rule"}
    assert verdict(recipe_of(one=unsure), arms).verdict == "inconclusive"
    assert "seeds would decide" in verdict(recipe_of(one=unsure), arms).because
    assert verdict(recipe_of(one=less, two=unsure), arms).verdict == "held under conditions"
    assert verdict(recipe_of(one={**unsure, "within": 0.05}), arms).verdict == "held"
    gains = {"more": "a - b", "than": "b - a", "in": "nll"}
    assert verdict(recipe_of(one=gains), arms).verdict == "not seen"
    order = verdict(recipe_of(one={"correlation": ["nll", "nll"]}), arms)
    assert order.verdict == "inconclusive"  # the same in every seed
    assert "+1 [+1, +1]" in order.because
    every = {"every": True}
    assert verdict(recipe_of(**every, one=less, two=unsure), arms).verdict == "inconclusive"
    assert verdict(recipe_of(**every, one=less, two={**less, "less": "b", "than": "a"}), arms).verdict == "not seen"
    assert verdict(recipe_of(**every, one=less), arms).verdict == "held"


def slogan_records():
    rules = [a for a in trials.bundled("slogans", "train") if a.rule == "slogan:words=3"][:20]
    texts = ("one two three", "one two", "one two three four five six")
    return [Record(prompt=a.prompt, responses=tuple(Response(text=t) for t in texts)) for a in rules]


def test_records_that_are_made():
    records = slogan_records()
    random = np.random.default_rng(0)
    widest = MADE["widest"](records, random)
    assert {(r.responses[0].text, r.responses[1].text) for r in widest} == {
        ("one two three", "one two three four five six")
    }
    noisy = MADE["positives"](records, random, quality="noisy", wrong=0.5)
    assert {r.responses[0].text for r in noisy} == {"one two three", "one two three four five six"}
    soft = MADE["judged"](records, random, labels="soft")
    for r in soft:
        a, b = (claims._bundled_rule(r).scores([x])[0] for x in r.responses)
        assert r.judgements[0].value == pytest.approx(1 / (1 + np.exp(-4 * (a - b))))
    hard = MADE["judged"](records, random, labels="hard", each=8)
    assert {r.judgements[0].value for r in hard} == {0.0, 1.0}
    sure = [r for r in hard if {x.text for x in r.responses} == {"one two three", "one two three four five six"}]
    right = np.mean([(r.judgements[0].value == 1) == (r.responses[0].text == "one two three") for r in sure])
    assert 0.9 < right <= 1.0  # sigmoid(4 * 1) = 0.98
    assert len(MADE["answers"](records, random)) == 3 * len(records)


def test_the_page_is_made_of_the_numbers_alone(found, place):
    assert written(json.loads(json.dumps(found.numbers))) == (place / "kept" / "claims.md").read_text()
    pytest.importorskip("matplotlib")
    assert claims.figures(json.loads(json.dumps(found.numbers)))["arms"].axes
