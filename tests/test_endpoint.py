"""A client of servers: what they do wrong is tried again and counted, nothing is paid twice, and limits hold."""

from __future__ import annotations

import json
import os
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from accord import endpoint
from accord.data import sources
from accord.data.chat import Chat
from accord.data.records import Record, Response
from accord.data.views import ViewOptions, view
from accord.endpoint import SPENT, Answer, Failure, Server
from accord.engine import models
from accord.errors import AccordError, ConfigError, ServerError
from accord.judges.files import judge_into
from accord.judges.frame import Unjudged
from accord.judges.llm import UNREAD
from accord.judges.table import find
from accord.judges.templates import Template
from accord.online.loop import loop, read
from accord.sampling.local import answer
from accord.sampling.remote import Remote
from tests.conftest import ROOT, data_file
from tests.servers import Between, free_port, serving, storyteller


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """An empty cache, short pauses, and nothing spent."""
    monkeypatch.setenv("ACCORD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.02)
    SPENT.clear()


@pytest.fixture(scope="session")
def stories(tmp_path_factory):
    """`transformers serve` (its URL) and the folder of a small model of stories."""
    folder = tmp_path_factory.mktemp("served")
    model = storyteller(folder / "model", data_file("tiny-lm/hf"))
    with serving(folder / "log") as url:
        body = {"model": str(model), "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=120).raise_for_status()  # it is loaded now
        yield url, str(model)


def ask(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}


def records(n: int, count: int = 2) -> list[Record]:
    names = ("Tom", "Lily", "Ben", "Sue", "Max", "Mia")
    return [
        Record(prompt=f"Tell me about {names[i % 6]} and day {i}.",
               responses=[Response(text=f"{names[(i + k) % 6]} had {k + 1} red balls.") for k in range(count)])
        for i in range(n)
    ]  # fmt: skip


LETTERS = ", ".join(f"{c}: {'first' if c.lower() < 'n' else 'second'}" for c in string.ascii_letters)
FIRST_LETTER = f"""
kind: pairs
text: "{{prompt}} {{first}} {{second}} One day, "
verdict: '^\\W*(\\w)'
says: {{{LETTERS}}}
again: Once more.
"""


# -- a real server -----------------------------------------------------------------------------------------------------


def test_faults_between_change_nothing_but_the_number_of_tries(stories, tmp_path) -> None:
    url, model = stories
    (tmp_path / "letters.yaml").write_text(FIRST_LETTER)
    words = f"model={model},template={tmp_path / 'letters.yaml'},max_tokens=4,timeout=4,cache=false"
    given = records(6)
    with Between(url) as plain:
        straight = find(f"llm:{plain.url},{words}")(given)
        assert len(plain.asked) == 12
    faults = ["slow", "drop", 429, 500, "malformed", "cut", "none", 503]
    with Between(url, lambda request, time: faults[request % 8] if not time else "drop" if time == 1 else None) as ill:
        judge = find(f"llm:{ill.url},{words}")
        found = judge(given)
        assert len(ill.asked) == 36
        assert judge.server.spent.again == 24
        assert ill.most <= 9  # at_once, and one that was given up
    assert found == straight
    assert all(len(said) == 2 for said in found)
    assert {j.value for said in found for j in said} <= {0.0, 1.0}
    assert [j.order for j in found[0]] == [(0, 1), (1, 0)]


def test_what_a_server_says_of_itself_is_counted(stories) -> None:
    url, model = stories
    server = Server(url, model)
    (one,) = server.ask([ask("Once upon a time", temperature=0)])
    assert isinstance(one, Answer)
    assert one.text
    assert (one.finish, one.said) == ("length", 8)
    assert (server.spent.requests, server.spent.said) == (1, 8)
    assert "/load_model" in server.routes
    assert (
        server.ask([ask("Once upon a time", temperature=0)] * 2) == [Answer(one.text, "length", one.asked, 8, True)] * 2
    )
    assert (server.spent.requests, server.spent.kept) == (1, 1)


def test_killed_and_started_again_no_question_is_answered_twice(stories, tmp_path) -> None:
    """But for those that were under way, at most at_once for each kill."""
    url, model = stories
    (tmp_path / "letters.yaml").write_text(FIRST_LETTER)
    given = tmp_path / "given.jsonl"
    given.write_text("".join(r.to_json() + "\n" for r in records(40)))
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    with Between(url) as between:
        judge = f"llm:{between.url},model={model},template=letters.yaml,max_tokens=2,at_once=2"
        words = [sys.executable, "-m", "accord", "judge", str(given), "--judge", judge, "--output", "o.jsonl"]
        kills = 0
        for wanted in (15, 45, 10**9):
            run = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            until = time.monotonic() + 120
            while run.poll() is None and time.monotonic() < until:
                if sum(between.answered.values()) >= wanted:
                    run.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.005)
            out = run.communicate(timeout=60)[0].decode()
        assert run.returncode == 0, out
        assert kills == 2
        twice = Counter(between.answered)
        assert len(twice) == 80
        assert sum(twice.values()) - 80 <= kills * 2
    assert len(sources.load(tmp_path / "o.jsonl").records) == 40
    assert "of 40 pairs turn round with their order" in out


# -- scripted servers --------------------------------------------------------------------------------------------------


def test_a_dead_server_is_named_with_what_to_do(accord) -> None:
    Path("a.jsonl").write_text("".join(r.to_json() + "\n" for r in records(3)))
    url = f"http://127.0.0.1:{free_port()}"
    code, out, err = accord("judge", "a.jsonl", "--judge", f"llm:{url},model=m,tries=2", "--output", "o.jsonl")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{url}/v1: nobody answers there" in err
    assert "start the server" in err


def test_a_server_that_dies_loses_nothing_that_was_judged(tmp_path) -> None:
    given = records(20)
    with Between(lambda body: "[[A]]") as well:
        port = well.server.server_port
        judge = find(f"llm:{well.url},model=m,at_once=1,tries=2,timeout=0.5")
        dying = iter(range(100))
        whole = well.behind

        def dies(body):
            if next(dying) == 12:
                well.server.shutdown()
            return whole(body)

        well.behind = dies
        with pytest.raises(ServerError, match="the same command"):
            judge_into(tmp_path / "o.jsonl", given, [judge], batch=4)
        before = len(sources.load(tmp_path / "o.jsonl").records)
        asked = len(well.asked)
    assert 0 < before < 20
    again = Between(lambda body: "[[A]]")
    again.__enter__()
    judge.server.url = again.url + "/v1"  # the address is part of what is kept
    story = judge_into(tmp_path / "o.jsonl", given, [judge], batch=4)
    again.__exit__()
    assert (story.kept, story.judged) == (before, 20 - before)
    assert asked + len(again.asked) <= 40 + 8
    assert port


def test_a_key_stands_in_the_environment_and_nowhere_else(tmp_path, monkeypatch) -> None:
    seen = []

    def behind(body):
        return "[[A]]"

    monkeypatch.setenv("MY_KEY", "secret-1234")
    with Between(behind) as server:
        hand_on = server._behind
        server._behind = lambda handler, sent: (seen.append(handler.headers["authorization"]), hand_on(handler, sent))[
            1
        ]
        judge_into(tmp_path / "o.jsonl", records(1), [find(f"llm:{server.url},model=m,key=MY_KEY")])
    assert set(seen) == {"Bearer secret-1234"}
    files = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    assert not any(b"secret-1234" in content for content in files)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("llm:localhost:8000,model=m", "is no URL of a server; write it as http://localhost:8000"),
        ("llm:http://me:pw@host,model=m", "name it: key=NAME"),
        ("llm:http://host,model=m,key=NO_SUCH_KEY", "export NO_SUCH_KEY=..."),
        ("llm:http://host,model=m,most_cost=1", "needs price_in and price_out"),
        ("llm:http://host,model=m,template=pears", "did you mean 'pairs'"),
        ("llm:http://host,model=m,at_once=0", "at_once=0"),
        ("llm:http://host,model=m,template=score,unparsed=tie", "unparsed=tie is for pairs"),
        ("llm", "url is missing; write llm:URL"),
        ("self", "it is not known whose answers these are; write self:MODEL"),
    ],
)
def test_mistakes(words, says) -> None:
    with pytest.raises(ConfigError, match="(?s)" + says.replace("(", r"\(")):
        find(words)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ((401, {}, b'{"error": {"message": "no key"}}'), "says 401: no key; name the variable that holds its key"),
        ((404, {}, b'{"detail": "no such model"}'), "says 404: no such model; is model=m what it is called there"),
        ((307, {"location": "http://other"}, b""), "sends elsewhere, to http://other"),
        ((429, {"retry-after": "3600"}, b'{"error": "quota"}'), r"asks to wait 3,600 s \(quota\)"),
    ],
)
def test_what_no_other_request_would_fare_better_with_stops_at_once(reply, says) -> None:
    with Between(lambda body: reply) as server, pytest.raises(ServerError, match=says):
        Server(server.url, "m", at_once=1).ask([ask(str(i)) for i in range(5)])
    assert len(server.asked) == 1


def test_a_request_that_the_server_refuses_spoils_no_other() -> None:
    long = (400, {}, b'{"error": {"message": "too long"}}')
    with Between(lambda body: long if body["messages"][0]["content"] == "3" else "yes") as server:
        found = Server(server.url, "m").ask([ask(str(i)) for i in range(6)])
        assert found[3] == Failure("it says 400: too long")
        assert [a.text for a in found if isinstance(a, Answer)] == ["yes"] * 5
        assert len(server.asked) == 6


def test_a_server_that_fails_on_everything_is_ill() -> None:
    with Between(lambda body: "yes", lambda request, time: 500) as server:
        with pytest.raises(ServerError, match=f"{endpoint.ILL} requests in a row came to nothing.*fault 500, 2 times"):
            Server(server.url, "m", at_once=2, tries=2).ask([ask(str(i)) for i in range(50)])
        assert len(server.asked) <= 2 * (endpoint.ILL + 2)


def test_everybody_waits_as_long_as_the_server_asks_for() -> None:
    began = time.monotonic()
    with Between(lambda body: "yes", lambda request, time: 429 if request == 0 and not time else None) as server:
        one = Server(server.url, "m", at_once=1)
        assert one.ask([ask("a"), ask("b")])[1] == Answer("yes", "stop", 10, 5)
    assert time.monotonic() - began >= 0.1


def test_limits_hold_for_all_that_a_process_asks() -> None:
    with Between(lambda body: "yes") as server:
        one = Server(server.url, "m", at_once=1, most_tokens=200)
        with pytest.raises(ServerError, match=r"could pass most_tokens=200 \(\d+ tokens so far"):
            one.ask([ask(f"number {i}") for i in range(50)])
        asked = len(server.asked)
        assert 5 < asked < 14  # 15 tokens each
        with pytest.raises(ServerError, match="most_tokens"):  # another judge of the same server
            Server(server.url, "n", most_tokens=200).ask([ask("more" * 100)])
        assert len(server.asked) == asked
        assert len(Server(server.url, "m").ask([ask(f"number {i}") for i in range(asked)])) == asked
        assert len(server.asked) == asked
        cost = Server(server.url, "m", at_once=1, most_cost=1e-3, price_in=10, price_out=20)
        SPENT[cost.url].asked = SPENT[cost.url].said = 0
        with pytest.raises(ServerError, match=r"most_cost=0.001 \(\d+ tokens, cost 0.000"):
            cost.ask([ask(f"else {i}") for i in range(50)])
        assert cost.spent.cost <= 1e-3
        assert cost.spent.cost == pytest.approx((cost.spent.asked * 10 + cost.spent.said * 20) / 1e6)


def test_a_server_that_calls_the_limit_otherwise_is_understood() -> None:
    def behind(body):
        if "max_tokens" in body:
            return 400, {}, b'{"error": {"message": "use max_completion_tokens instead of max_tokens"}}'
        return f"limit {body['max_completion_tokens']}"

    with Between(behind) as server:
        one = Server(server.url, "m", at_once=1)
        assert [a.text for a in one.ask([ask("a"), ask("b")])] == ["limit 8"] * 2
        assert len(server.asked) == 3


def test_the_only_model_of_a_server_needs_no_name() -> None:
    class Lists(Between):
        def _behind(self, handler, sent):
            if sent is None:
                return 200, {}, json.dumps({"data": [{"id": n} for n in self.names]}).encode()
            return super()._behind(handler, sent)

    with Lists(lambda body: body["model"]) as server:
        server.names = ["only"]
        assert Server(server.url).ask([ask("a")])[0].text == "only"
        server.names = ["one", "two"]
        with pytest.raises(ConfigError, match=r"has 2 models \(one, two\); name one: model=NAME"):
            Server(server.url).ask([ask("a")])


# -- an LLM as a judge -------------------------------------------------------------------------------------------------


def shown(body: dict) -> tuple[str, str]:
    text = body["messages"][0]["content"]
    first, _, second = text.partition("[Answer A]\n")[2].partition("\n\n[Answer B]\n")
    return first, second.partition("\n")[0]


def test_both_orders_cycles_and_the_first_place_are_told(tmp_path) -> None:
    """A judge that likes rock, paper, scissors in a circle, and that takes the first of two it cannot tell apart."""
    beats = {("paper", "rock"), ("scissors", "paper"), ("rock", "scissors")}

    def verdict(body):
        one, two = shown(body)
        return "[[A]]" if (one, two) in beats or {one, two} == {"stone", "rock"} else "I say [[B]]"

    def record(*texts):
        return Record(prompt="Your move.", responses=[Response(text=t) for t in texts])

    given = [record("rock", "paper", "scissors"), record("stone", "rock")]
    with Between(verdict) as server:
        (tally,) = judge_into(tmp_path / "o.jsonl", given, [find(f"llm:{server.url},model=m")]).tallies
    told = tally.as_dict()
    assert (told["both_orders"], told["turned_round"], told["triples"], told["cycles"]) == (4, 0.25, 1, 1.0)
    assert told["first_place"] == 5 / 8
    assert tally.ties == 1
    held = sources.load(tmp_path / "o.jsonl").records
    pairs = view(held, "Pairs")
    assert [(p.record, p.branches["chosen"].response) for p in pairs] == [(0, 1), (0, 0), (0, 2)]
    (tied,) = [p for p in view(held, "Pairs", ViewOptions(ties="half")) if p.record == 1]
    assert tied.values["strength"] == 0.5


@pytest.mark.parametrize(
    ("more", "values", "why"),
    [
        ("", {(0, 1): [1.0]}, UNREAD),
        ("unparsed=tie", {(0, 1): [1.0], (0, 2): [0.5, 0.5], (1, 2): [0.5, 1.0]}, None),
        ("unparsed=tie,ties=leave", {(0, 1): [1.0], (1, 2): [0.5, 1.0]}, "a tie, and ties=leave"),
        ("orders=one", {(0, 1): [1.0]}, UNREAD),
        ("among=first", {(0, 1): [1.0]}, UNREAD),
    ],
)
def test_what_cannot_be_read_is_asked_again_and_then_left_out_with_its_pair(more, values, why) -> None:
    """x and y is clear the second time; x and z never; y and z in one order only."""

    def verdict(body):
        one, two = shown(body)
        if {one, two} == {"x", "y"}:
            return "[[A]] or [[B]]" if len(body["messages"]) == 1 else "[[A]]" if one == "x" else "[[B]]"
        return "[[A]]" if (one, two) == ("y", "z") and len(body["messages"]) == 3 else "well, well"

    record = Record(prompt="?", responses=[Response(text=t) for t in "xyz"])
    with Between(verdict) as server:
        judge = find(f"llm:{server.url},model=m,{more}")
        (said,) = judge([record])
        if not more:
            assert len(server.asked) == 12
            assert any("could not be read, such as 'well, well'" in note for note in judge.notes())
    found: dict = {}
    for j in said:
        low = j.pair[0] < j.pair[1]
        found.setdefault(j.pair if low else j.pair[::-1], []).append(j.value if low else 1 - j.value)
    if "orders=one" in more:
        values = {(0, 1): [1.0], (1, 2): [1.0]}
    assert {k: sorted(set(v)) if len(set(v)) == 1 and v[0] == 1 else sorted(v) for k, v in found.items()} == values
    assert (said.why if isinstance(said, Unjudged) else None) == why


def test_a_verdict_that_must_be_read_stops() -> None:
    with (
        Between(lambda body: "hm") as server,
        pytest.raises(ServerError, match="after 3 tries, and unparsed=stop: 'hm'"),
    ):
        find(f"llm:{server.url},model=m,unparsed=stop,again=2")(records(1))


def test_pairs_that_turn_round_may_be_left_out() -> None:
    with Between(lambda body: "[[A]]") as server:
        (said,) = find(f"llm:{server.url},model=m,turned=leave")(records(1))
    assert isinstance(said, Unjudged)
    assert said.why == "its verdict turns round with the order, and turned=leave"
    assert not said


def test_scores_and_a_reference_answer(tmp_path) -> None:
    Path(tmp_path / "right.jsonl").write_text('{"prompt": "2+2?", "response": "It is four {answer}."}\n')
    given = [Record(prompt=p, responses=[Response(text="4"), Response(text="5")]) for p in ("2+2?", "3+3?")]
    seen = []

    def score(body):
        seen.append(body["messages"][0]["content"])
        return "Right. [[10]]" if "[Answer]\n4" in seen[-1] else "[[11]]" if "3+3" in seen[-1] else "[[2.5]]"

    with Between(score) as server:
        words = f"llm:{server.url},model=m,template=score,reference={tmp_path / 'right.jsonl'},again=0"
        one, two = find(words)(given)
    assert [(j.response, j.value, j.scale) for j in one] == [(0, 10.0, (1.0, 10.0)), (1, 2.5, (1.0, 10.0))]
    assert isinstance(two, Unjudged)  # 11 is beyond the scale
    assert [j.value for j in two] == [10.0]
    assert sum("known to be right]\nIt is four {answer}.\n" in text for text in seen) == 2


def test_a_template_of_ones_own_is_checked(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    for text, says in (
        ("kind: pairs", "mine.yaml: text is missing"),
        ("kind: pears\ntext: x\nverdict: (x)", "did you mean 'pairs'"),
        ("kind: score\ntext: x\nverdict: (x)", r"the text has no place \{answer\}"),
        ("kind: score\ntext: '{prompt} {answer}'\nverdict: x", "verdict has 0 groups"),
        ("kind: score\ntext: '{prompt} {answer}'\nverdict: (x", "no regular expression"),
        ("kind: score\ntext: '{prompt} {answer}'\nverdict: (x)", "scale is the lowest"),
        ("kind: pairs\ntext: '{prompt} {first} {second}'\nverdict: (x)\nsays: {A: best}", "says names the verdicts"),
        ("kind: pairs\ntext: '{prompt} {first} {second}'\nverdit: (x)", "did you mean 'verdict'"),
        ("[1, 2", "this is no template"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=says):
            Template.of(str(file))


# -- a server as a sampler ---------------------------------------------------------------------------------------------


def prompts_file(folder: Path, count: int = 4) -> Path:
    file = folder / "prompts.txt"
    file.write_text(
        "".join(f"Once upon a time, {name} went\n" for name in ("Tom", "Lily", "Ben", "Sue", "Max")[:count])
    )
    return file


def test_answers_of_a_server_are_records_and_go_on_where_they_were_killed(stories, accord, tmp_path) -> None:
    url, model = stories
    with Between(url, lambda request, time: 500 if request % 3 == 0 and not time else None) as between:
        code, out, err = accord(
            "sample", "--sampler", f"{between.url},model={model}", "--prompts", prompts_file(tmp_path), "-n", 2,
            "--max-new-tokens", 6, "--judge", "length", "--keep", "best", "--output", "o.jsonl",
        )  # fmt: skip
        assert code == 0, err
        assert len(between.asked) == 8 + 3
        assert {b["max_tokens"] for b in between.asked} == {6}
        assert len({b["seed"] for b in between.asked}) == 8
    assert "3 tried again" in out
    held = sources.load("o.jsonl").records
    assert [len(r.responses) for r in held] == [1] * 4
    assert held[0].responses[0].sampler.model.startswith(model + "@http://127.0.0.1")
    assert not list(Path().glob(".o.jsonl*"))
    remote = Remote(f"{url},model={model}")
    given = [Record(prompt=f"Number {i}, once upon a time") for i in range(40)]

    def killed(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remote.answer(given, samples=2, max_new_tokens=2, progress=killed, kept=tmp_path / "kept")
    before = remote.server.spent.requests
    found = remote.answer(given, samples=2, max_new_tokens=2, kept=tmp_path / "kept")
    assert [len(answers) for answers in found] == [2] * 40
    assert remote.server.spent.requests - before == 80 - 64


def test_each_round_is_answered_by_the_weights_of_the_round(stories, tmp_path) -> None:
    """Greedy answers of the server are those of the round's model in this process, before and after it has moved."""
    url, model = stories
    done = loop(
        model, prompts_file(tmp_path), "length", "sft", sampler=url, rounds=2, samples=1, temperature=0.0,
        max_new_tokens=12, pair={"rule": "none"}, batch_size=4, max_steps=6, learning_rate=3e-3, device="cpu",
        view={"threshold": 0.0}, precision="fp32", quiet=True, output=str(tmp_path / "loop"), max_length=128,
    )  # fmt: skip
    texts = []
    for number, folder in ((1, model), (2, done.folder / "rounds" / "1" / "model")):
        records = read(done.folder / "records" / f"round-{number}" / "sampled.jsonl")
        policy = models.load(folder, device="cpu", precision="fp32")
        chat = Chat(policy.tokenizer, max_length=128, stop_ids=policy.ends)
        here = answer(policy, chat, records, max_new_tokens=12, temperature=0.0)
        texts.append([r.responses[0].text for r in records])
        assert texts[-1] == [a[0].text for a in here]
    assert texts[0] != texts[1]
    assert done.rounds[0]["tokens"] is None


def test_adapters_are_handed_over_with_their_base(stories, tmp_path) -> None:
    url, model = stories
    done = loop(
        model, prompts_file(tmp_path), "length", "dpo", reference="fixed", sampler=url, rounds=2, samples=3,
        max_new_tokens=8, pair={"rule": "best_worst"}, batch_size=4, max_steps=2, lora={"rank": 2}, device="cpu",
        precision="fp32", quiet=True, output=str(tmp_path / "loop"), max_length=128,
    )  # fmt: skip
    assert [r["answers"] for r in done.rounds] == [12, 12]
    assert not list(done.folder.glob("records/*/served"))


class Takes(Between):
    """A server that takes weights as SGLang does, by its documentation."""

    taken: tuple[str, ...] = ()
    success = True

    def _behind(self, handler, sent):
        if handler.path == "/openapi.json":
            return 200, {}, b'{"paths": {"/update_weights_from_disk": {}}}'
        if handler.path == "/update_weights_from_disk":
            self.taken += (json.loads(sent)["model_path"],)
            return 200, {}, json.dumps({"success": self.success, "message": "no room"}).encode()
        return super()._behind(handler, sent)


def test_a_server_is_told_where_the_weights_of_each_round_lie(stories, tmp_path) -> None:
    _, model = stories
    settings = {
        "sampler": "", "rounds": 2, "samples": 2, "max_new_tokens": 4, "pair": {"rule": "best_worst"}, "batch_size": 4,
        "max_steps": 1, "device": "cpu", "precision": "fp32", "quiet": True, "max_length": 128, "reference": "fixed",
        "output": str(tmp_path / "loop"),
    }  # fmt: skip
    with Takes(lambda body: "red " * (1 + body["seed"] % 7) + body["messages"][-1]["content"]) as server:
        settings["sampler"] = f"{server.url},model=m"
        server.success = False
        with pytest.raises(ServerError, match=r"is not loaded \(no room\)"):
            loop(model, prompts_file(tmp_path), "length", "dpo", **settings)
        assert not server.asked
        server.success, server.taken = True, ()
        loop(model, prompts_file(tmp_path), "length", "dpo", **settings | {"rounds": 1})
    with Takes(server.behind) as elsewhere:  # another port is no other loop
        settings["sampler"] = f"{elsewhere.url},model=m"
        done = loop(model, prompts_file(tmp_path), "length", "dpo", **settings)
        assert server.taken == (model,)
        assert elsewhere.taken == (str(done.folder / "rounds" / "1" / "model"),)
        assert {(b["top_k"], b["repetition_penalty"]) for b in elsewhere.asked} == {(-1, 1.0)}
        with pytest.raises(ConfigError, match="loop was started with sampler="):
            loop(model, prompts_file(tmp_path), "length", "dpo", **settings | {"sampler": f"{elsewhere.url},model=n"})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", "has no way to be given weights.*so every round would be answered by those of the beginning"),
        (",model=m,wieghts=fixed", "did you mean 'weights'"),
        (",model=m,weights=none", "weights is update or fixed"),
        (",cache=true", "never in the cache"),
    ],
)
def test_a_server_that_takes_no_weights_is_refused_before_anything_is_sampled(more, says, stories, tmp_path) -> None:
    _, model = stories
    with Between(lambda body: "yes") as server, pytest.raises(AccordError, match=says):
        loop(model, prompts_file(tmp_path), "length", "dpo", reference="fixed", output=str(tmp_path / "loop"),
             sampler=f"{server.url}{more or ',model=m'}", quiet=True)  # fmt: skip
    assert not server.asked
    assert not (tmp_path / "loop" / "records").exists()


def test_prompts_that_a_server_would_render_otherwise_are_refused(stories, tmp_path) -> None:
    url, _ = stories
    with pytest.raises(ConfigError, match=r"the model has no chat template, and .* of its own"):
        loop(str(data_file("tiny-lm/hf")), prompts_file(tmp_path), "length", "dpo", reference="fixed", sampler=url,
             output=str(tmp_path / "loop"), quiet=True)  # fmt: skip


def test_another_policys_answers_may_be_learned_from(stories, tmp_path) -> None:
    """What the server refuses is counted and left out; all that was answered is paired."""
    _, model = stories
    long = (400, {}, b'{"error": {"message": "too long"}}')

    def story(body):
        text = body["messages"][-1]["content"]
        return long if "Ben" in text else "red " * (1 + body["seed"] % 7)

    with Between(story) as server:
        done = loop(
            model, prompts_file(tmp_path), "length", "dpo", reference="fixed", samples=4, max_new_tokens=8,
            sampler=f"{server.url},model=m,weights=fixed", batch_size=2, max_steps=1, device="cpu", precision="fp32",
            pair={"rule": "best_worst"}, quiet=True, output=str(tmp_path / "loop"), max_length=128,
        )  # fmt: skip
    assert done.rounds[0]["prompts"] == 3
    left = done.rounds[0]["left"]["left: a prompt without an answer of the server (it says 400: too long)"]
    assert (left["count"], left["examples"][0]["id"]) == (1, left["examples"][0]["id"])


def test_a_server_that_does_not_sample_is_found_out() -> None:
    given = [Record(prompt=str(i)) for i in range(5)]
    with Between(lambda body: body["messages"][-1]["content"]) as server:
        remote = Remote(f"{server.url},model=m")
        with pytest.raises(ServerError, match="gives the same answer every time, at temperature=1"):
            remote.answer(given, samples=2)
        assert len(remote.answer(given, samples=2, temperature=0.0)) == 5


def test_who_answers_must_be_said_once(accord) -> None:
    Path("p.txt").write_text("Hi\n")
    for more in ([], ["--model", "m", "--sampler", "http://host,model=m"]):
        code, _, err = accord("sample", "--prompts", "p.txt", *more)
        assert code == 2
        assert "say who answers: --model MODEL, or --sampler http://localhost:8000" in err


# -- in a loop ---------------------------------------------------------------------------------------------------------


def test_a_loop_counts_what_a_judge_leaves_out_and_asks_nothing_twice(stories, tmp_path) -> None:
    """Longer is better; one prompt's verdicts cannot be read. The same loop again finds every verdict in the cache."""
    _, model = stories

    def verdict(body):
        one, two = shown(body)
        return (
            "hm"
            if "Once upon a time, Lily went" in body["messages"][0]["content"]
            else "[[A]]"
            if len(one) > len(two)
            else "[[B]]"
        )

    with Between(verdict) as server:
        settings = {
            "samples": 4, "max_new_tokens": 12, "pair": {"rule": "ranked", "label": "soft"}, "batch_size": 2,
            "max_steps": 1, "device": "cpu", "precision": "fp32", "quiet": True, "max_length": 128,
            "reference": "fixed",
        }  # fmt: skip
        judge = f"llm:{server.url},model=m,again=0"
        done = loop(model, prompts_file(tmp_path), judge, "soft_dpo", output=str(tmp_path / "a"), **settings)
        asked = len(server.asked)
        assert asked == 4 * 3 * 2  # K - 1 comparisons in both orders
        loop(model, prompts_file(tmp_path), judge, "soft_dpo", output=str(tmp_path / "b"), **settings)
        assert len(server.asked) == asked
    (row,) = done.rounds
    ((by, told),) = row["judges"].items()
    assert by.startswith("llm:m:pairs:")
    assert told["both_orders"] == 9
    assert row["left"][f"not judged as a whole by {by}: {UNREAD}"]["count"] == 1
    paired = read(done.folder / "records" / "round-1" / "paired.jsonl")
    assert {r.prompt for r in paired} <= {p for p in prompts_file(tmp_path).read_text().splitlines() if "Lily" not in p}
    for record in paired:
        assert len(record.responses[0].plain_text) >= len(record.responses[1].plain_text)
