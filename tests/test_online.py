"""Loops: killed in any phase they end as if nothing had happened; every preset runs; a round repeats as a run."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import accord.online.loop as room
from accord import config, endpoint
from accord.cli.loop import checked_loop
from accord.data import sources
from accord.data.records import Judgement, Record
from accord.engine import models
from accord.errors import AccordError, ConfigError
from accord.lab.trials import log_probs
from accord.online import judging
from accord.online.loop import Ledger, loop
from accord.online.methods import preset, presets
from accord.training.run import train
from tests import processes  # noqa: F401 - its fork server has everything imported
from tests.conftest import pair_records
from tests.processes import FORKS, join
from tests.servers import Between

torch.set_num_threads(1)
SMALL: dict[str, Any] = {
    "rounds": 2, "samples": 2, "max_new_tokens": 6, "batch_size": 4, "learning_rate": 1e-3, "device": "cpu",
    "precision": "fp32", "tokens_per_micro_batch": 200, "save_steps": 1, "quiet": True, "objective": "dpo",
    "reference": "fixed", "pair": {"rule": "first_second", "label": "soft", "strength_scale": 0.3},
}  # fmt: skip


ANIMALS = ("fox", "dog", "cat", "owl", "bee", "ant", "cow", "hen")


class Listed:
    """Scores an answer by its length, and writes down what it was asked."""

    def __init__(self, words: str, log: Path | None = None) -> None:
        self.by, self.log, self.calls = words, log, 0

    def __call__(self, records, say=None):
        self.calls += 1
        if self.log is not None:
            with self.log.open("a") as log:
                log.writelines(f"{r.prompt}|{[a.token_ids for a in r.responses]}\n" for r in records)
        return [
            tuple(
                Judgement(kind="score", response=i, value=float(len(set(a.plain_text))), by=self.by)
                for i, a in enumerate(r.responses)
            )
            for r in records
        ]


@pytest.fixture
def by_length(monkeypatch):
    monkeypatch.setattr(judging, "find", lambda words, **where: Listed(words))
    monkeypatch.setattr(judging, "check", lambda words: None)


def prompts_file(folder: Path, count: int = 7) -> Path:
    file = folder / "prompts.txt"
    file.write_text("".join(f"tell me about the {a}\n" for a in ANIMALS[:count]))
    return file


# -- killed ------------------------------------------------------------------------------------------------------------

KILLS = [
    "sampling", "a line of the ledger", "sampled", "judging", "judged", "pairing", "paired", "training", "a checkpoint",
    "model saved", "summary", "second round sampling", "second round judging", "second round training",
]  # fmt: skip
RL_KILLS = ["log-probs", "weighed", "training", "critic", "second round log-probs", "second round training"]
PPO: dict[str, Any] = {
    **{k: v for k, v in SMALL.items() if k != "pair"}, "objective": "ppo", "epochs": 2, "temperature": 0.7,
    "advantage": {"rule": "gae", "kl": 0.05, "whiten": True, "kl_target": 0.1, "kl_horizon": 20},
    "critic": {"learning_rate": 1e-3},
}  # fmt: skip


def _killed(settings: dict[str, Any], log: str, place: str | None, environment: dict[str, str]) -> None:
    """A loop in a process of its own, which dies at `place`."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    import accord.training.run as run
    from accord.training.state import Checkpoints
    from accord.training.step import Step

    room.SHARD, room.CHUNK = 6, 2 * SMALL["samples"]  # three chunks of prompts are sampled, four judged
    judges: list[Listed] = []

    def find(words: str, **where: Any) -> Listed:
        judges.append(Listed(words, Path(log)))
        return judges[-1]

    judging.find, judging.check = find, lambda words: None

    def die(after: int, of: Any, name: str, *, before: bool = True) -> None:
        """The process ends at the `after`-th call of a function."""
        whole, calls = getattr(of, name), [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == after and before:
                os.kill(os.getpid(), signal.SIGKILL)
            made = whole(*args, **kwargs)
            if calls[0] == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        setattr(of, name, counted)

    def half_a_line(self: Ledger, name: str, lines: list[str]) -> None:
        self.file.write(json.dumps([name, lines]).encode()[:40])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    match place:
        case "sampling":
            die(2, room, "answer")
        case "a line of the ledger":
            Ledger.add = half_a_line  # type: ignore[method-assign]
        case "sampled":
            die(1, room, "write")
        case "judging":
            die(3, judging, "asked")
        case "judged":
            die(2, room, "write")
        case "pairing":
            die(1, room, "pair")
        case "paired":
            die(3, room, "write", before=False)
        case "log-probs":
            die(2, room, "said_of")
        case "weighed":
            die(3, room, "write", before=False)
        case "critic":
            die(6, Step, "update")
        case "second round log-probs":
            die(5, room, "said_of")
        case "training":
            die(2, Step, "update")
        case "a checkpoint":
            die(1, Checkpoints, "save", before=False)
        case "model saved":
            die(1, run.models, "save", before=False)
        case "summary":
            die(1, run, "write_json", before=False)
        case "second round sampling":
            die(5, room, "answer")
        case "second round judging":
            die(6, judging, "asked")
        case "second round training":
            die(3, Step, "update")
    loop(**settings)


def finish(settings: dict[str, Any], log: Path, place: str | None = None) -> list[int | None]:
    environment = {"ACCORD_CACHE": os.environ["ACCORD_CACHE"], "HF_HUB_OFFLINE": "1"}
    process = FORKS.Process(target=_killed, args=(settings, str(log), place, environment), daemon=True)
    process.start()
    return join([process], timeout=120)


@pytest.fixture(scope="module")
def whole(model_folder, tmp_path_factory):
    """`round` or `rounds` -> settings, the folder and the judge's log of a loop that nobody disturbed."""
    done: dict[str, tuple[dict[str, Any], Path, Path]] = {}

    def get(which: str = "rounds") -> tuple[dict[str, Any], Path, Path]:
        if which not in done:
            folder = tmp_path_factory.mktemp(which)
            known = {"model": str(model_folder), "prompts": str(prompts_file(folder)), "judge": "length"}
            settings = (PPO if which.startswith("ppo") else SMALL) | known
            settings |= {"optimizer": "kept", "schedule": "constant", "warmup": 0.0} if "kept" in which else {}
            settings = settings | {"rounds": 2 if which.endswith("rounds") else 1}
            assert finish(settings | {"output": str(folder / "whole")}, folder / "log") == [0]
            done[which] = settings, folder / "whole", folder / "log"
        return done[which]

    return get


def assert_same(folder: Path, whole: Path) -> None:
    for file in sorted((whole / "records").rglob("*")):
        if file.is_file():
            assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes(), file.name
    assert sorted(p.name for p in (folder / "records").rglob("*")) == sorted(
        p.name for p in (whole / "records").rglob("*")
    )
    for number in sorted(p.name for p in (whole / "rounds").iterdir()):
        a, b = (load_file(f / "rounds" / number / "model" / "model.safetensors") for f in (folder, whole))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
        metrics = [(f / "rounds" / number / "metrics.jsonl").read_bytes() for f in (folder, whole)]
        assert metrics[0] == metrics[1]
    assert (folder / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()
    assert (folder / "model" / "config.json").exists()


@pytest.mark.parametrize("place", KILLS)
def test_killed_in_any_phase_it_ends_as_the_straight_loop_and_asks_no_judge_twice(place, whole, tmp_path):
    settings, straight, log = whole("rounds" if place.startswith("second") else "round")
    given = settings | {"output": str(tmp_path / "loop")}
    assert finish(given, tmp_path / "log", place) == [-signal.SIGKILL]
    assert finish(given, tmp_path / "log") == [0]
    assert_same(tmp_path / "loop", straight)
    asked, straight_asked = (Counter(f.read_text().splitlines()) for f in (tmp_path / "log", log))
    assert asked == straight_asked
    assert set(asked.values()) == {1}


@pytest.mark.parametrize("place", RL_KILLS)
def test_policy_gradients_are_killed_and_go_on_alike(place, whole, tmp_path):
    settings, straight, log = whole("ppo rounds" if place.startswith("second") else "ppo round")
    given = settings | {"output": str(tmp_path / "loop")}
    assert finish(given, tmp_path / "log", place) == [-signal.SIGKILL]
    assert finish(given, tmp_path / "log") == [0]
    assert_same(tmp_path / "loop", straight)
    assert Counter((tmp_path / "log").read_text().splitlines()) == Counter(log.read_text().splitlines())


def test_an_optimizer_that_is_kept_goes_on_alike_after_a_kill_and_when_a_round_is_repeated(whole, accord, tmp_path):
    settings, straight, _ = whole("ppo kept rounds")
    given = settings | {"output": str(tmp_path / "loop")}
    assert finish(given, tmp_path / "log", "second round training") == [-signal.SIGKILL]
    assert finish(given, tmp_path / "log") == [0]
    assert_same(tmp_path / "loop", straight)
    for number in ("2", "2-critic"):
        code, _, err = accord("train", straight / "rounds" / number / "config.yaml", "--output", tmp_path / number)
        assert code == 0, err
        a, b = (load_file(f / "model" / "model.safetensors") for f in (tmp_path / number, straight / "rounds" / number))
        assert all(torch.equal(a[k], b[k]) for k in b)
    assert all(len(list((straight / "rounds" / n / "checkpoints").glob("step-*"))) == 1 for n in ("1", "2", "2-critic"))
    anew = settings | {"optimizer": "anew", "output": str(tmp_path / "anew")}
    assert finish(anew, tmp_path / "log") == [0]
    first, second = (
        [load_file(f / "rounds" / n / "model" / "model.safetensors") for f in (tmp_path / "anew", straight)]
        for n in "12"
    )
    assert all(torch.equal(first[0][k], first[1][k]) for k in first[0])
    assert any(not torch.equal(second[0][k], second[1][k]) for k in second[0])


def test_what_is_compared_is_not_empty(whole):
    _, straight, log = whole()
    told = json.loads((straight / "summary.json").read_text())["rounds"]
    assert [r["round"] for r in told] == [1, 2]
    assert [r["answers"] for r in told] == [14, 14]
    assert all(r["steps"] == 2 for r in told)
    assert len(log.read_text().splitlines()) == 14
    weights = [load_file(straight / "rounds" / n / "model" / "model.safetensors") for n in ("1", "2")]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    sampled = [room.read(straight / "records" / f"round-{n}" / "sampled.jsonl") for n in (1, 2)]
    assert sampled[0][0].responses[0].sampler.model != sampled[1][0].responses[0].sampler.model


# -- a round is a run --------------------------------------------------------------------------------------------------


def test_train_repeats_a_round_from_its_config(whole, accord, tmp_path):
    _, straight, _ = whole()
    for number in ("1", "2"):
        code, _, err = accord("train", straight / "rounds" / number / "config.yaml", "--output", tmp_path / number)
        assert code == 0, err
        a, b = (load_file(f / "model" / "model.safetensors") for f in (tmp_path / number, straight / "rounds" / number))
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_train_repeats_a_round_of_a_policy_gradient_and_its_critic(whole, accord, tmp_path):
    _, straight, _ = whole("ppo rounds")
    for number in ("2", "2-critic"):
        code, _, err = accord("train", straight / "rounds" / number / "config.yaml", "--output", tmp_path / number)
        assert code == 0, err
        both = [f / "model" for f in (tmp_path / number, straight / "rounds" / number)]
        for file in ("model.safetensors", "heads.safetensors")[: 2 if number == "2-critic" else 1]:
            a, b = (load_file(f / file) for f in both)
            assert all(torch.equal(a[k], b[k]) for k in b)


def test_a_round_of_ppo_begins_at_a_ratio_of_one_and_hands_its_price_and_its_critic_on(whole):
    _, straight, _ = whole("ppo rounds")
    rounds = json.loads((straight / "summary.json").read_text())["rounds"]
    assert rounds[0]["advantage"]["kl"] == 0.05
    assert rounds[1]["advantage"]["kl"] == rounds[0]["memory"]["kl"] != 0.05
    assert rounds[0]["memory"]["scores"][0] == rounds[0]["answers"]
    for number in ("1", "2"):
        first = json.loads((straight / "rounds" / number / "metrics.jsonl").read_text().splitlines()[0])
        assert first["kl/old"] == pytest.approx(0.0, abs=1e-10)  # though it sampled at a temperature of 0.7
        assert first["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
        assert first["ratio/clipped"] == 0.0
        records = room.read(straight / "records" / f"round-{number}" / "paired.jsonl")
        flat = [a for r in records for x in r.responses for a in x.advantages]
        assert sum(flat) == pytest.approx(0.0, abs=1e-6)
        values = [v for r in records for x in r.responses for v in x.values]
        assert any(values) == (number == "2"), "a new critic expects nothing, the next round asks what it has learned"
    sampled = room.read(straight / "records" / "round-1" / "sampled.jsonl")
    old = [x.sampling_logprobs for r in sampled for x in r.responses]
    trained = room.read(straight / "records" / "round-1" / "paired.jsonl")
    now = [x.sampling_logprobs for r in trained for x in r.responses]
    assert all(a == pytest.approx(b, abs=1e-3) for a, b in zip(old, now, strict=True))


def test_a_value_head_on_the_policy_learns_over_the_rounds(model_folder, tmp_path, by_length):
    given = {k: v for k, v in PPO.items() if k != "critic"}
    given |= {"objective": [{"name": "ppo", "clip": 0.1}, {"name": "critic", "weight": 0.1, "clip": 0.0}],
              "rounds": 6, "learning_rates": {"head:value": 3e-2}, "epochs": 4}  # fmt: skip
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **given)
    missed = []
    for number in ("1", "6"):
        lines = (done.folder / "rounds" / number / "metrics.jsonl").read_text().splitlines()
        missed.append(json.loads(lines[0])["value/unexplained"])
    assert missed[0] == 1.0  # a new head expects nothing
    assert missed[1] < 0.5


def test_a_critic_begins_as_the_score_of_a_reward_model(model_folder, tmp_path, by_length):
    rewards = tmp_path / "rewards"
    train(
        str(model_folder), pair_records(8), "bradley_terry", output=str(rewards), batch_size=8, max_steps=2,
        learning_rate=1e-2, eval_fraction=0.0, device="cpu", quiet=True,
    )  # fmt: skip
    given = PPO | {"rounds": 1, "critic": {"model": str(rewards), "learning_rate": 1e-6}, "temperature": 1.0}
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **given)
    records = room.read(done.folder / "records" / "round-1" / "paired.jsonl")
    assert all(any(a.values) for r in records for a in r.responses)
    weights = load_file(done.folder / "rounds" / "1-critic" / "model" / "heads.safetensors")
    before = load_file(rewards / "model" / "model.safetensors")["score.weight"]
    assert torch.allclose(weights["value.linear.weight"], before, atol=1e-3)


def test_answers_that_nobody_scored_are_left_out_and_the_greedy_one_is_no_example(model_folder, tmp_path, monkeypatch):
    class Fails(Listed):
        def __call__(self, records, say=None):
            found = super().__call__(records, say)
            return [said[:1] + said[2:] for said in found]  # the second answer of each

    monkeypatch.setattr(judging, "find", lambda words, **where: Fails(words))
    monkeypatch.setattr(judging, "check", lambda words: None)
    given = {k: v for k, v in SMALL.items() if k not in ("pair", "reference")} | {
        "rounds": 1, "samples": 3, "objective": "reinforce", "advantage": {"rule": "greedy"},
    }  # fmt: skip
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **given)
    sampled = room.read(done.folder / "records" / "round-1" / "judged.jsonl")
    assert [a.sampler.temperature for a in sampled[0].responses] == [1.0, 1.0, 1.0, 0.0]
    trained = room.read(done.folder / "records" / "round-1" / "paired.jsonl")
    for before, after in zip(sampled, trained, strict=True):
        assert [a.token_ids for a in after.responses] == [before.responses[i].token_ids for i in (0, 2)]
        score = {j.response: j.value for j in before.judgements}
        for i, a in zip((0, 2), after.responses, strict=True):
            assert a.advantages == pytest.approx([min(max(score[i] - score[3], -5), 5)] * len(a.token_ids))
    assert done.rounds[0]["left"]["left: an answer without a score"]["count"] == 7


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"judge": "sentimental"}, "did you mean 'sentiment'"),
        ({"judge": "slogan:words=x"}, "whole number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"epochs": 0}, "epochs=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_paid_for(wrong, says, model_folder, tmp_path):
    """Nor is a folder made, so that the right setting begins."""
    given = SMALL | {"judge": "slogan:words=3"} | wrong
    with pytest.raises(ConfigError, match=re.escape(says)):
        loop(str(model_folder), str(prompts_file(tmp_path)), output=str(tmp_path / "o"), **given)
    assert not (tmp_path / "o").exists()


def test_what_is_only_trained_with_may_be_put_right_before_a_step(model_folder, tmp_path, by_length):
    """Answers and judgements that are there stay; settings that made them may not change."""
    given = SMALL | {"rounds": 1}
    prompts, place = prompts_file(tmp_path), str(tmp_path / "o")
    with pytest.raises(ConfigError, match=r"beta=-0\.1"):
        loop(str(model_folder), prompts, "length", output=place, **given, beta=-0.1)
    judged = tmp_path / "o" / "records" / "round-1" / "judged.jsonl"
    before = judged.stat().st_mtime_ns
    with pytest.raises(ConfigError, match="temperature"):
        loop(str(model_folder), prompts, "length", output=place, **given, temperature=0.5)
    done = loop(str(model_folder), prompts, "length", output=place, **given, beta=0.2)
    assert done.finished
    assert judged.stat().st_mtime_ns == before
    assert yaml.safe_load((tmp_path / "o" / "loop.yaml").read_text())["beta"] == 0.2
    with pytest.raises(ConfigError, match=r"beta=0\.2, and now beta=0\.3"):
        loop(str(model_folder), prompts, "length", output=place, **given, beta=0.3)


def test_prompts_in_another_encoding_are_named_by_line(model_folder, tmp_path):
    (tmp_path / "p.txt").write_bytes("a\nb\nna\u00efve\n".encode("latin-1"))
    with pytest.raises(AccordError, match=r"p.txt, line 3: this is not UTF-8"):
        loop(str(model_folder), str(tmp_path / "p.txt"), "slogan:words=3", output=str(tmp_path / "o"), **SMALL)


def test_the_judge_who_is_worst_off_rewards_ppo(model_folder, tmp_path, monkeypatch):
    class Harsh(Listed):
        def __call__(self, records, say=None):
            return [tuple(j.model_copy(update={"value": -j.value}) for j in s) for s in super().__call__(records, say)]

    monkeypatch.setattr(judging, "find", lambda words, **where: (Harsh if words == "harsh" else Listed)(words))
    monkeypatch.setattr(judging, "check", lambda words: None)
    given = {k: v for k, v in SMALL.items() if k not in ("pair", "reference")} | {
        "rounds": 1, "objective": "rloo", "advantage": {"rule": "loo"}, "pair": {"together": "group_min"},
    }  # fmt: skip
    done = loop(str(model_folder), prompts_file(tmp_path), ["kind", "harsh"], output=str(tmp_path / "loop"), **given)
    for record in room.read(done.folder / "records" / "round-1" / "paired.jsonl"):
        one, two = ([len(set(a.plain_text)) for a in record.responses][k] for k in (0, 1))
        assert [a.advantages[0] for a in record.responses] == [two - one, one - two]


@pytest.mark.parametrize(
    "given",
    [
        {"objective": "rloo", "advantage": {"rule": "loo"}, "rounds": 15},  # few answers stay inside of its clip
        {"objective": "reinforce", "advantage": {"rule": "loo"}},
        {"objective": "ppo", "advantage": {"rule": "batch_norm"}, "epochs": 2},
        {"objective": "dr_grpo", "longest": 6, "advantage": {"rule": "group_norm"}},
    ],
    ids=lambda given: given["objective"],
)
def test_policy_gradients_learn_what_the_judge_likes(given, model_folder, tmp_path, by_length):
    """As `test_it_learns_what_the_judge_likes`, with the same judge and the same answers a round."""
    settings = {k: v for k, v in SMALL.items() if k not in ("pair", "reference")}
    settings |= {"rounds": 10, "samples": 6, "batch_size": 12, "learning_rate": 3e-3} | given
    done = loop(str(model_folder), prompts_file(tmp_path, 8), "length", output=str(tmp_path / "loop"), **settings)
    means = [r["judges"]["length"]["mean"] for r in done.rounds]
    spread = done.rounds[0]["judges"]["length"]["spread"] / 48**0.5
    assert means[-1] > means[0] + 3 * spread


def test_the_rate_falls_over_the_rounds_and_a_run_stops_where_it_has_gone_too_far(model_folder, tmp_path, by_length):
    given = {k: v for k, v in SMALL.items() if k not in ("pair", "reference")}
    given |= {"objective": "ppo", "advantage": {"rule": "loo"}, "anneal": "linear", "epochs": 20, "target_kl": 1e-3}
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **given)
    held = [yaml.safe_load((done.folder / "rounds" / n / "config.yaml").read_text()) for n in ("1", "2")]
    assert [h["learning_rate"] for h in held] == [1e-3, 5e-4]
    lines = [json.loads(x) for x in (done.folder / "rounds" / "1" / "metrics.jsonl").read_text().splitlines()]
    gone = [line["kl/old"] for line in lines]
    assert 1 < len(gone) < 80
    assert gone[-1] > 1e-3 >= max(gone[:-1])
    summary = json.loads((done.folder / "rounds" / "1" / "summary.json").read_text())
    assert summary["finished"] == "early stop"


@pytest.mark.parametrize("reference", ["fixed", "previous"])
def test_the_reference_is_the_one_that_was_chosen(reference, model_folder, tmp_path, by_length):
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"),
                **SMALL | {"reference": reference, "quiet": True, "objective": "dpo"})  # fmt: skip
    held = [yaml.safe_load((done.folder / "rounds" / n / "config.yaml").read_text())["reference"] for n in ("1", "2")]
    assert held == ["start", str(model_folder) if reference == "fixed" else "start"]
    started = [json.loads((done.folder / "rounds" / n / "summary.json").read_text())["start"] for n in ("1", "2")]
    margin = started[1]["rewards/margins"]
    assert abs(margin) < 1e-6 if reference == "previous" else abs(margin) > 1e-6


def test_a_previous_reference_beside_the_first_is_each_rounds_start(model_folder, tmp_path, by_length):
    settings = {k: v for k, v in SMALL.items() if k != "objective"} | {"pair": {"rule": "tournament"}, "samples": 4}
    done = loop(str(model_folder), prompts_file(tmp_path), "length", "inpo", output=str(tmp_path / "loop"), **settings)
    held = [yaml.safe_load((done.folder / "rounds" / n / "config.yaml").read_text())["reference"] for n in ("1", "2")]
    assert held == [{"previous_ref": "start", "ref": "start"}, {"previous_ref": "start", "ref": str(model_folder)}]


def test_adapters_go_on_over_rounds_against_the_model_of_the_beginning(model_folder, tmp_path, by_length):
    settings = SMALL | {"lora": {"rank": 2}, "learning_rate": 1e-2}
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **settings)
    started = [json.loads((done.folder / "rounds" / n / "summary.json").read_text())["start"] for n in ("1", "2")]
    assert abs(started[0]["rewards/margins"]) < 1e-6
    assert abs(started[1]["rewards/margins"]) > 1e-6  # the second round begins away from the reference


def test_every_answer_of_the_policy_meets_every_one_of_the_reference(model_folder, tmp_path, by_length):
    settings = SMALL | {"rounds": 1, "samples": 3, "reference_samples": 2, "pair": {"rule": "policy_vs_ref"}}
    settings |= {"objective": {"pairs": "dpo", "labels": {"name": "ga", "weight": 1e-5, "sources": "reference"}}}
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **settings)
    records = room.read(done.folder / "records" / "round-1" / "paired.jsonl")
    sampled = room.read(done.folder / "records" / "round-1" / "sampled.jsonl")
    assert {len(r.responses) for r in sampled} == {5}
    theirs = {(r.prompt, a.token_ids) for r in sampled for a in r.responses[3:]}
    assert {(r.prompt, r.responses[0].token_ids) for r in records if r.source == "reference"} <= theirs
    for r in records:
        assert len(r.responses) == 1 or sum((r.prompt, a.token_ids) in theirs for a in r.responses) == 1


def test_it_learns_what_the_judge_likes(model_folder, tmp_path, by_length):
    """More different letters, over ten rounds of a random model: the judge's mean must rise well beyond its noise."""
    settings = SMALL | {"rounds": 10, "samples": 6, "pair": {"rule": "best_worst"}, "learning_rate": 3e-3,
                        "reference": "previous"}  # fmt: skip
    done = loop(str(model_folder), prompts_file(tmp_path, 8), "length", output=str(tmp_path / "loop"), **settings)
    means = [r["judges"]["length"]["mean"] for r in done.rounds]
    spread = done.rounds[0]["judges"]["length"]["spread"] / 48**0.5
    assert means[-1] > means[0] + 3 * spread


def test_a_run_on_other_data_may_come_first(model_folder, tmp_path, by_length):
    file = tmp_path / "demos.jsonl"
    file.write_text(
        "".join(Record(prompt=r.prompt, responses=r.responses[:1]).to_json() + "\n" for r in pair_records(8))
    )
    settings = SMALL | {"rounds": 1, "first": {"data": str(file), "max_steps": 2}}
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **settings)
    before = yaml.safe_load((done.folder / "rounds" / "0" / "config.yaml").read_text())
    assert (before["objective"], before["max_steps"]) == ("sft", 2)
    assert yaml.safe_load((done.folder / "rounds" / "1" / "config.yaml").read_text())["model"] == str(
        done.folder / "rounds" / "0" / "model"
    )


def test_revisions_stand_beside_what_they_revise_and_are_not_asked_for_twice(model_folder, tmp_path, monkeypatch):
    """Nobody judges: each revision is chosen over its answer; stopped among the revisions it goes on alike."""
    monkeypatch.setattr(room, "SHARD", 6)
    given = SMALL | {"rounds": 1, "pair": {"rule": "revised"}, "revise": {"request": "Again, please."}}
    straight = loop(str(model_folder), prompts_file(tmp_path), output=str(tmp_path / "whole"), **given)
    before, after, pairs = (
        room.read(straight.folder / "records" / "round-1" / f"{name}.jsonl")
        for name in ("sampled", "revised", "paired")
    )
    for one, more in zip(before, after, strict=True):
        assert more.responses[:2] == one.responses
        assert [a.revised_from for a in more.responses] == [None, None, 0, 1]
    texts = {(r.responses[a.revised_from].text, a.text) for r in after for a in r.responses[2:]}
    assert {(p.responses[1].text, p.responses[0].text) for p in pairs} <= texts
    assert all(p.responses[0].revised_from == 1 and p.judgements[0].value == 1 for p in pairs)
    asked, calls = room.answer, []

    def stopped(policy, chat, prompts, **how):
        calls.append([r.messages[-1].content for r in prompts])
        if len(calls) == 5:  # three parts were sampled, one revised
            raise KeyboardInterrupt
        return asked(policy, chat, prompts, **how)

    monkeypatch.setattr(room, "answer", stopped)
    where = str(tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        loop(str(model_folder), prompts_file(tmp_path), output=where, **given)
    calls = [[]] * 9  # no further call is stopped
    done = loop(str(model_folder), prompts_file(tmp_path), output=where, **given)
    assert len(calls) == 9 + 2  # of three parts of revisions the first was there
    assert_same(done.folder, straight.folder)


def test_revisions_are_judged_beside_the_answers_by_another_rule(model_folder, tmp_path, by_length):
    given = SMALL | {"rounds": 1, "samples": 1, "pair": {"rule": "best_worst"}, "revise": {"by": str(model_folder)}}
    done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / "loop"), **given)
    judged = room.read(done.folder / "records" / "round-1" / "judged.jsonl")
    assert {len([j for j in r.judgements if j.response is not None]) for r in judged} == {2}


def test_a_server_revises_and_what_it_leaves_is_counted(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.02)
    given = SMALL | {"rounds": 1, "samples": 1, "pair": {"rule": "revised"}, "batch_size": 2}
    broken = lambda request, time: "none" if request == 1 else None  # noqa: E731 - one request, however often it comes
    with Between(lambda body: f"better, {body['seed']}", broken) as server:
        given["revise"] = {"by": f"{server.url},model=m", "request": "Again."}
        done = loop(str(model_folder), prompts_file(tmp_path), output=str(tmp_path / "loop"), **given)
    assert {tuple(m["role"] for m in b["messages"]) for b in server.asked} == {("user", "assistant", "user")}
    pairs = room.read(done.folder / "records" / "round-1" / "paired.jsonl")
    assert len(pairs) == 6
    assert all(
        p.responses[0].text.startswith("better, ") and p.responses[0].sampler.model.startswith("m@") for p in pairs
    )
    left = done.rounds[0]["left"]
    assert left["left: a prompt none of whose answers was revised"]["count"] == 1
    assert sum(of["count"] for what, of in left.items() if what.startswith("not revised: ")) == 1


def test_an_answer_without_room_for_a_revision_is_counted(model_folder, tmp_path):
    """The question is longer than the prompt by the answer and the request: with this max_length none has room."""
    given = SMALL | {"rounds": 1, "pair": {"rule": "revised"}, "revise": {"request": "again " * 40}, "max_length": 120}
    with pytest.raises(AccordError, match="no answer was revised: not revised: an answer behind which a revision has"):
        loop(str(model_folder), prompts_file(tmp_path), output=str(tmp_path / "loop"), **given)


def test_demonstrations_beside_a_policy_gradient_are_learned_in_every_round(model_folder, accord, tmp_path, by_length):
    """PPO-ptx: with them their log-prob rises over what it is without, and a round repeats as a run."""
    file = tmp_path / "demos.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"what is a {a}", "completion": "a bird"}) + "\n" for a in ANIMALS))
    rollouts = {"advantage": {"rule": "loo"}, "learning_rate": 3e-3, "epochs": 4}
    known = {k: v for k, v in SMALL.items() if k not in ("pair", "reference")} | rollouts
    mixed = {"ratings": {"name": "rloo", "share": 0.5}, "demonstrations": {"name": "sft", "weight": 0.5, "share": 0.5}}
    ways = {"alone": {"objective": "rloo"}, "beside": {"objective": mixed, "beside": str(file)}}
    logp = {}
    for name, more in ways.items():
        done = loop(str(model_folder), prompts_file(tmp_path), "length", output=str(tmp_path / name), **known | more)
        policy = models.load(done.model, device="cpu", precision="fp32")
        logp[name] = np.mean([of[0, 0] for of in log_probs(policy, list(sources.load(str(file)).records))])
    assert logp["beside"] > logp["alone"] + 1
    rounds = [json.loads((tmp_path / "beside" / "rounds" / n / "data.json").read_text()) for n in ("1", "2")]
    assert all("demos" in json.dumps(r) for r in rounds)
    code, _, err = accord("train", tmp_path / "beside" / "rounds" / "2" / "config.yaml", "--output", tmp_path / "again")
    assert code == 0, err
    a, b = (load_file(f / "model" / "model.safetensors") for f in (tmp_path / "again", tmp_path / "beside/rounds/2"))
    assert all(torch.equal(a[k], b[k]) for k in b)
    file.write_text(file.read_text().replace("bird", "fish"))
    with pytest.raises(ConfigError, match="prompts, or what stands beside them, have changed since"):
        loop(
            str(model_folder),
            prompts_file(tmp_path),
            "length",
            output=str(tmp_path / "beside"),
            **known | ways["beside"],
        )


def test_prompts_of_rounds_come_without_repeating_until_all_were_used(model_folder, tmp_path, by_length):
    settings = SMALL | {"rounds": 3, "prompts_per_round": 2}
    done = loop(str(model_folder), prompts_file(tmp_path, 4), "length", output=str(tmp_path / "loop"), **settings)
    seen = [{r.prompt for r in room.read(done.folder / "records" / f"round-{n}" / "sampled.jsonl")} for n in (1, 2, 3)]
    assert [len(s) for s in seen] == [2, 2, 2]
    assert not seen[0] & seen[1]


def test_models_of_old_rounds_go_where_asked_and_none_that_is_needed(model_folder, tmp_path, by_length):
    settings = SMALL | {"rounds": 3, "keep_models": 1}
    done = loop(str(model_folder), prompts_file(tmp_path, 4), "length", output=str(tmp_path / "loop"), **settings)
    held = [(done.folder / "rounds" / n / "model" / "model.safetensors").exists() for n in ("1", "2", "3")]
    assert held == [False, False, True]
    assert not list(done.folder.glob("rounds/*/checkpoints"))
    again = loop(str(model_folder), prompts_file(tmp_path, 4), "length", output=str(tmp_path / "loop"), **settings)
    assert again.rounds == done.rounds


def test_more_rounds_go_on_where_it_ended(model_folder, tmp_path, by_length):
    given = {"output": str(tmp_path / "loop"), "prompts": str(prompts_file(tmp_path)), "judge": "length",
             "model": str(model_folder)}  # fmt: skip
    loop(**given | SMALL | {"rounds": 1})
    more = loop(**given | SMALL | {"rounds": 2})
    once = loop(**given | SMALL | {"rounds": 2, "output": str(tmp_path / "once")})
    assert more.rounds == once.rounds


# -- presets -----------------------------------------------------------------------------------------------------------

# What is made smaller for a test, and what a preset needs that a test cannot have.
SMALLER: dict[str, Any] = {
    "rounds": 1, "max_new_tokens": 6, "batch_size": 4, "max_steps": 2, "max_prompts": 6, "prompts_per_round": 6,
    "device": "cpu", "precision": "fp32", "quiet": True, "max_length": 256,
}  # fmt: skip


@pytest.mark.parametrize("name", presets())
def test_every_preset_runs_a_round(name, model_folder, tmp_path, by_length):
    held = preset(name)
    data = tmp_path / "prompts.jsonl"
    records = pair_records(6)
    rule = held.settings.get("pair", {}).get("rule")
    if rule == "given_vs_sampled":
        records = [Record(prompt=r.prompt, responses=r.responses[:1]) for r in records]
    data.write_text("".join(r.to_json() + "\n" for r in records))
    given = config.merged(held.settings, SMALLER | {"model": str(model_folder), "prompts": str(data)})
    if "lora" in given:
        given["lora"] = {"rank": 2}
    if rule not in ("given_vs_sampled", "sampled_vs_bad", "stated_beside_sampled"):
        given["judge"] = "length"
    done = loop(**checked_loop(given | {"output": str(tmp_path / "loop")}))
    summary = json.loads((done.folder / "rounds" / "1" / "summary.json").read_text())
    assert summary["finished"] == "done"
    assert summary["steps"] == 2
    assert done.model.exists()
    assert room.read(done.folder / "records" / "round-1" / "paired.jsonl")


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_where_it_is_from_and_what_is_inferred(name):
    held = preset(name)
    assert held.about
    assert held.paper == "none" or held.paper[4] == "."
    assert set(held.inferred) <= set(held.settings), "what is inferred is a setting of it"
    row = held.settings["objective"]
    assert ("reference" in held.settings) == (row not in ("sft", "dr_grpo")), "the reference is never a silent default"


def test_the_settings_of_a_preset_are_those_that_were_published():
    """Numbers of the specification, one by one, where a paper or its code gives them."""
    said = {
        "online_dpo": {"samples": 2, "temperature": 0.9, "max_new_tokens": 64, "beta": 0.1, "learning_rate": 5e-7},
        "iterative_dpo": {"rounds": 3, "prompts_per_round": 20000, "label_smoothing": 0.1, "epochs": 2},
        "rso": {"samples": 64, "temperature": 0.7, "beta": 0.05, "batch_size": 32},
        "sppo": {"samples": 5, "beta": 0.001, "rounds": 3, "learning_rate": 5e-7, "reference": "previous"},
        "inpo": {"samples": 8, "eta": 0.005, "rounds": 3, "batch_size": 128, "warmup": 0.03},
        "d2o": {"samples": 11, "alpha": 0.1, "beta": 0.1},
        "ppo": {"clip": 0.2, "epochs": 4, "temperature": 0.7, "learning_rate": 3e-6, "adam_epsilon": 1e-5},
        "rloo": {"samples": 4, "clip": 0.2, "learning_rate": 1e-6},
        "remax": {"temperature": 1.0, "top_p": 0.9},
        "f_dpg": {"learning_rate": 1.41e-5},
    }  # fmt: skip
    for name, numbers in said.items():
        held = preset(name).settings
        assert {k: held[k] for k in numbers} == numbers, name
    assert preset("inpo").settings["tau"] == pytest.approx(preset("inpo").settings["eta"] / 3)
    ppo = preset("ppo").settings["advantage"]
    assert (ppo["kl"], ppo["gamma"], ppo["lam"], ppo["unfinished_score"]) == (0.05, 1.0, 0.95, -1.0)
    assert preset("rloo").settings["advantage"]["kl"] == 0.03
    assert preset("remax").settings["advantage"]["kl_credit"] == "local"
    assert preset("rso").settings["pair"] == {"rule": "random", "reject": 8, "reject_beta": 0.5}


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_runs_a_preset_and_goes_on(accord, model_folder, tmp_path):
    words = ["loop", "--preset", "online_dpo", "--model", model_folder, "--prompts", prompts_file(tmp_path), "--judge",
             "slogan:words=5", "--rounds", 1, "--max-prompts", 7, "--prompts-per-round", 7, "--samples", 8, "--device",
             "cpu", "--pair.rule", "best_worst", "--max-new-tokens", 12, "--output", "runs/o"]  # fmt: skip
    code, out, err = accord(*words)
    assert code == 0, err
    assert "56 answers" in out
    assert Path("runs/o/model/config.json").exists()
    code, again, err = accord(*words)
    assert code == 0, err
    assert "sampling" not in again
    held = Path("runs/o/loop.yaml").read_bytes()
    assert accord("loop", "runs/o/loop.yaml")[0] == 0
    assert Path("runs/o/loop.yaml").read_bytes() == held
    code, _, err = accord(*words, "--judge", "slogan:words=6")
    assert "judge=['slogan:words=5', 'slogan:words=6']" in err
    code, _, err = accord(*words, "--temperature", 0.5)
    assert code == 2
    assert "loop was started with temperature=0.9, and now temperature=0.5" in err


def test_pairs_on_the_command_line(accord, tmp_path):
    said = [Judgement(kind="score", response=i, value=float(v), by="judge") for i, v in enumerate((1, 3, 2))]
    record = Record(prompt="ask", responses=[{"text": t} for t in "abc"], judgements=said)
    Path("judged.jsonl").write_text(record.to_json() + "\n")
    code, out, err = accord("pair", "judged.jsonl", "--output", "pairs.jsonl", "--rule", "ranked", "--label", "soft")
    assert code == 0, err
    assert "3 records from 1: pairs.jsonl" in out
    assert [r.responses[0].text for r in room.read(Path("pairs.jsonl"))] == ["b", "b", "c"]
    code, _, err = accord("pair", "judged.jsonl", "--output", "pairs.jsonl")
    assert code == 2
    assert "there already" in err
    code, _, err = accord("pair", "judged.jsonl", "--output", "p.jsonl", "--judges", "judgge")
    assert "did you mean 'judge'" in err
    code, _, err = accord("pair", "judged.jsonl", "--output", "p.jsonl", "--min-margin", 9)
    assert code == 2
    assert "left: a pair of less than min_margin: 1" in err
    code, out, _ = accord("pair", "judged.jsonl", "--output", "p.jsonl", "--json")
    assert json.loads(out)["made"] == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"reference": None}, "reference is missing, and published methods differ in it: fixed"),
        ({"judge": None}, "judge is missing"),
        ({"pair": {"rule": "given_vs_sampled"}}, "nothing reads judge under pair.rule: given_vs_sampled"),
        ({"pair": {"rule": "policy_vs_ref"}}, "set reference_samples"),
        ({"objective": "sft", "pair": {"rule": "none"}}, "nothing reads reference='fixed'"),
        ({"bta": 0.1}, "did you mean 'beta'"),
        ({"data": "x.jsonl"}, "give prompts, not data"),
        ({"round": 3}, "did you mean 'rounds'"),
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"first": {"max_steps": 3}}, "first: data is missing"),
        ({"objective": "ppo"}, "advantage is missing: ppo learns from advantages"),
        ({"advantage": {"rule": "loo"}}, "nothing reads advantage: dpo is no policy gradient"),
        ({"objective": "rloo", "advantage": {"rule": "loo"}}, "pair.rule: first_second makes pairs"),
        ({"objective": "ppo", "advantage": {"rule": "gae"}, "pair": None}, "gae needs one critic"),
        ({"objective": "ppo", "advantage": {"rule": "loo"}, "pair": None, "critic": {}}, "nothing reads a critic"),
        ({"objective": "ppo", "advantage": {"rule": "loo"}, "pair": None, "temperature": 0}, "temperature=0"),
        ({"objective": "ppo", "advantage": {"rule": "loo"}, "pair": None}, "nothing reads reference='fixed'"),
        (
            {"objective": "ppo", "advantage": {"rule": "loo"}, "pair": None, "reference_samples": 1},
            "learns from its own",
        ),
        ({"critic": {}}, "nothing reads critic"),
        ({"revise": {"who": "policy"}}, "revise.who is not known"),
        ({"revise": {}, "pair": {"rule": "stated"}}, "would take revisions for somebody else's answers"),
        (
            {"objective": "ppo", "advantage": {"rule": "loo"}, "pair": None, "reference": None, "revise": {}},
            "a policy gradient learns from those that were drawn",
        ),
        ({"beside": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"anneal": "linear", "learning_rate": None}, "set learning_rate"),
        ({"target_kl": 0.1}, "nothing reads target_kl"),
        ({"max_new_tokens": 250, "max_length": 250}, "no prompt leaves room for max_new_tokens=250"),
    ],
)
def test_wrong_settings_are_said_plainly(given, says, model_folder, tmp_path, by_length):
    known = SMALL | {"model": str(model_folder), "prompts": str(prompts_file(tmp_path)), "judge": "length"}
    known = {k: v for k, v in (known | given | {"output": str(tmp_path / "loop")}).items() if v is not None}
    with pytest.raises((ConfigError, AccordError), match=says):
        loop(**checked_loop(known))


def test_a_round_without_pairs_says_what_was_left_out(model_folder, tmp_path, monkeypatch):
    class Indifferent(Listed):
        def __call__(self, records, say=None):
            return [tuple(Judgement(kind="score", response=i, value=1.0, by="same") for i in (0, 1)) for r in records]

    monkeypatch.setattr(judging, "find", lambda words, **where: Indifferent("same"))
    monkeypatch.setattr(judging, "check", lambda words: None)
    with pytest.raises(AccordError, match=r"round 1 leaves nothing to train on \(.*left: a tie: 7"):
        loop(str(model_folder), prompts_file(tmp_path), "same", output=str(tmp_path / "loop"), **SMALL)


def test_it_leaves_a_folder_alone_that_holds_something_else(model_folder, tmp_path, by_length):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for more in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match="holds other things than a loop"):
            loop(str(model_folder), prompts_file(tmp_path), "length", output=str(other), **SMALL, **more)
    assert (other / "thesis.txt").read_text() == "years of work"
