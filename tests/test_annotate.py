"""`accord annotate`: a person's judgements by the keyboard of a real browser, its file, and `human:` as a judge."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accord.cli import main
from accord.data import sources
from accord.data.records import Record
from accord.errors import ConfigError, RecordError
from accord.judges import table
from accord.judges.human import Page, Session, items

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def records(n: int, answers: int = 2) -> list[Record]:
    return [
        Record(
            prompt=f"Question {i}?", responses=[{"text": f"Answer {'abcdefghij'[k]} to {i}."} for k in range(answers)]
        )
        for i in range(n)
    ]


def asked(n: int = 3, form: str = "pairs", answers: int = 2) -> list:
    return items(records(n, answers), form)[0]


def said(path: Path) -> list[Record]:
    return sources.load(path).records


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_order_is_drawn_kept_and_undone_in_what_is_written(tmp_path):
    found = asked(40)
    assert 8 < sum(item.order == (0, 1) for item in found) < 32
    session = Session(found, tmp_path / "j.jsonl", by="anna")
    for n in range(40):
        session.answer(n, 1)  # always the one that stands first
    for item, record in zip(found, said(tmp_path / "j.jsonl"), strict=True):
        (j,) = record.judgements
        assert (j.pair, j.order, j.by) == ((0, 1), item.order, "anna")
        assert j.value == (1.0 if item.order[0] == 0 else 0.0)


@pytest.mark.parametrize(
    ("form", "value", "kinds"),
    [("strengths", 0.75, {"pairs"}), ("ratings", [1, 5, 3], {"ratings"}), ("rankings", [0, 1, 1], {"rankings"})],
)
def test_each_form_says_what_it_shows(form, value, kinds, tmp_path):
    (item,) = asked(1, form, 3 if isinstance(value, list) else 2)
    Session([item], tmp_path / "j.jsonl", form=form).answer(0, value)
    (record,) = said(tmp_path / "j.jsonl")
    assert record.kinds == kinds
    if isinstance(value, list):
        assert {j.response: j.value for j in record.judgements} == dict(zip(item.order, value, strict=True))
    else:
        assert record.judgements[0].value == (0.75 if item.order[0] == 0 else 0.25)


@pytest.mark.parametrize(
    ("form", "value"),
    [("pairs", 0.7), ("pairs", "1"), ("strengths", 1), ("ratings", [6, 1]), ("ratings", [1]), ("rankings", [0, 2]),
     ("ratings", [1.5, 1]), ("rankings", None), ("pairs", None)],
)  # fmt: skip
def test_what_is_no_answer_is_not_written(form, value, tmp_path):
    session = Session(asked(1, form), tmp_path / "j.jsonl", form=form)
    with pytest.raises(ValueError, match="expected"):
        session.answer(0, value)
    assert not (tmp_path / "j.jsonl").exists()


def test_it_goes_on_where_it_was_killed_and_cuts_off_half_a_line(tmp_path):
    path, found = tmp_path / "j.jsonl", asked(4)
    first = Session(found, path)
    for n in (0, 2):
        first.answer(n, 0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"prompt": "Ques')
    second = Session(found, path)
    assert path.read_bytes() == whole
    assert (second.state()["item"], second.state()["done"]) == (1, 2)
    with pytest.raises(ValueError, match="judged already"):
        second.answer(2, 1)
    second.skip(1)
    assert (second.state()["item"], second.state()["skipped"]) == (3, 1)
    second.undo()  # takes the judgement of item 2 back
    assert second.state()["item"] == 2
    assert len(said(path)) == 1
    assert Session(found, path).state()["item"] == 1  # what is skipped is asked again


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    session = Session(asked(), tmp_path / "j.jsonl")
    session.answer(0, 1)
    before = (tmp_path / "j.jsonl").read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            session.answer(1, 1)
    assert (tmp_path / "j.jsonl").read_bytes() == before
    session.answer(1, 1)
    assert len(said(tmp_path / "j.jsonl")) == 2


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    Session(asked(), path, by="anna").answer(0, 1)
    with pytest.raises(ConfigError, match=r"j.jsonl, line 1: a preference by 'anna', and now pairs by 'ben'"):
        Session(asked(), path, by="ben")
    with pytest.raises(ConfigError, match="now ratings by 'anna'"):
        Session(asked(1, "ratings"), path, form="ratings", by="anna")
    path.write_text('{"what": 1}\n')
    with pytest.raises(RecordError, match="line 1"):
        Session(asked(), path)


def test_what_cannot_be_asked_is_counted():
    found, left = items([*records(2, 1), *records(1, 10)], "rankings")
    assert (found, dict(left)) == ([], {"too few answers": 2, "more than nine answers, which have no keys": 1})
    assert len(items(records(1, 4), "strengths")[0]) == 6


# -- the server --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(session: Session) -> Iterator[Page]:
    with Page(session) as page:
        thread = threading.Thread(target=page.serve_forever, daemon=True)
        thread.start()
        yield page
        page.shutdown()
        thread.join()


def get(url: str, body: Any = None, **headers: str) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_only_its_own_page_reaches_it(tmp_path):
    with serving(Session(asked(), tmp_path / "j.jsonl")) as page:
        assert page.server_address[0] == "127.0.0.1"
        bare, mine = page.address.split("?")
        assert get(page.address)[0] == 200
        assert get(f"{bare}state?{mine}")[0] == 200
        for url, headers in (
            (bare, {}), (f"{bare}state?token=x", {}), (f"{bare}state", {}),
            (page.address, {"Host": "evil.example"}),  # another name for this machine
        ):  # fmt: skip
            assert get(url, **headers)[0] == 403
        assert get(f"{bare}answer?token=x", {"item": 0, "said": 1})[0] == 403
        assert get(f"{bare}answer?{mine}", {"item": 0, "said": 1}, **{"Content-Type": "text/plain"})[0] == 409
        assert get(f"{bare}answer?{mine}", [1])[0] == 409
        assert get(f"{bare}answer?{mine}", {"item": 9, "said": 1})[0] == 409
        assert get(f"{bare}nothing?{mine}")[0] == 404
        assert not (tmp_path / "j.jsonl").exists()
        assert get(f"{bare}answer?{mine}", {"item": 0, "said": 1})[0] == 200
        status, text = get(f"{bare}answer?{mine}", {"item": 0, "said": 1})  # a second page
        assert (status, json.loads(text)["error"]) == (409, "this was judged already, perhaps on another page")
    assert len(said(tmp_path / "j.jsonl")) == 1


# -- a real browser ----------------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium over its debugging pipe: pages, keys, scripts, and what the console says."""

    def __init__(self, profile: Path, *flags: str) -> None:
        if CHROMIUM is None:
            assert not os.environ.get("ACCORD_CI"), "CI must install chromium"
            pytest.skip("no chromium")
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
                 "--disable-background-networking", f"--user-data-dir={profile}", *flags]  # fmt: skip
        joined = " ".join(f"'{w}'" for w in words)
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {joined} 3<&{their_in} 4>&{their_out}"], pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(their_in)
        os.close(their_out)
        self.out, self.inn = os.fdopen(our_out, "wb", 0), os.fdopen(our_in, "rb")
        self.number, self.console = 0, list[str]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> Any:
        self.number += 1
        sent = {"id": self.number, "method": method, "params": given}
        if getattr(self, "session", None):
            sent["sessionId"] = self.session
        self.out.write(json.dumps(sent).encode() + b"\0")
        while True:
            found = self._message()
            if found.get("id") == self.number:
                assert "error" not in found, found
                return found["result"]

    def _message(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self.inn.read(1)) != b"\0":
            assert byte, "the browser went away"
            text += byte
        found = json.loads(text)
        if found.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.console.append(json.dumps(found["params"])[:500])
        return found

    def run(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, value: Any = True, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while (seen := self.run(script)) != value:
            assert time.monotonic() < end, f"{script} is {seen!r}, not {value!r}; console: {self.console}"
            time.sleep(0.02)

    def open(self, url: str | None = None) -> None:
        """A page, or the same one again; returns when it is there."""
        self.run("window.before = true")
        self.call("Page.navigate", url=url) if url else self.call("Page.reload")
        self.until("window.before === undefined && document.readyState == 'complete'")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def names(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader finds."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        seen = ((n.get("role", {}).get("value"), n.get("name", {}).get("value")) for n in nodes if not n["ignored"])
        return [(str(role), str(name or "")) for role, name in seen]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.out.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.inn.close()


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


DONE = "document.getElementById('bar').value"


def start(*words: str) -> tuple[subprocess.Popen[str], str]:
    run = subprocess.Popen(
        [sys.executable, "-m", "accord", "annotate", *words, "--no-open"], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("http://127.0.0.1:"):
            return run, line.strip()
    raise AssertionError("no address")


def test_twenty_judgements_by_keyboard_with_a_reload_and_a_kill(tmp_path, browser, request):
    data, out = tmp_path / "answers.jsonl", tmp_path / "mine.jsonl"
    data.write_text("".join(r.to_json() + "\n" for r in records(20)))
    words = (str(data), "--output", str(out), "--by", "anna")
    run, address = start(*words)
    request.addfinalizer(run.kill)
    browser.open(address)
    browser.until("!!document.querySelector('article')")
    pressed = []
    for n in range(20):
        browser.until(DONE, n)
        if n == 7:
            browser.run("window.before = true")
            browser.call("Page.reload")
            browser.until("window.before === undefined && document.readyState == 'complete'")
        if n == 12:  # the program is killed, and started again
            run.send_signal(signal.SIGKILL)
            run.wait()
            browser.press("1")
            browser.until("!document.getElementById('fault').hidden")
            assert "nothing is lost" in browser.run("document.getElementById('fault').textContent")
            run, address = start(*words)
            request.addfinalizer(run.kill)
            browser.open(address)
        browser.until(f"{DONE} === {n} && document.querySelectorAll('article').length == 2")
        first = browser.run("document.querySelector('article .text').textContent")
        prompt = browser.run("document.getElementById('prompt').textContent")
        key = ("1", "2", "0", "ArrowLeft", "ArrowRight")[n % 5]
        browser.press(key)
        pressed.append((prompt, first, {"1": 1, "2": 0, "0": 0.5, "ArrowLeft": 1, "ArrowRight": 0}[key]))
    browser.until("document.getElementById('asked').textContent", "All is judged")
    browser.press("Enter")
    output, _ = run.communicate(timeout=20)
    assert run.returncode == 0
    assert "20 judgements in" in output
    found = said(out)
    assert len(found) == 20
    for (prompt, first, value), record in zip(pressed, found, strict=True):
        (j,) = record.judgements
        assert (record.prompt, j.by) == (prompt, "anna")
        assert record.responses[j.order[0]].text == first
        assert (j.value if j.order[0] == 0 else 1 - j.value) == value
    assert len({j.order for r in found for j in r.judgements}) == 2
    assert [c for c in browser.console if "ERR_CONNECTION" not in c] == []
    request.getfixturevalue("trains")(out)


@pytest.fixture
def trains(tmp_path, model_folder):
    """Whether a file is one that training reads."""

    def train(path: Path) -> None:
        from accord.training.run import train as run

        short: dict[str, Any] = {"max_steps": 1, "batch_size": 4, "output": tmp_path / "run"}
        run(model=str(model_folder), data=str(path), objective="dpo", **short)
        assert (tmp_path / "run" / "model" / "config.json").exists()

    return train


def test_ratings_and_rankings_by_keyboard_undone_and_skipped(tmp_path, browser):
    ratings = asked(2, "ratings", 3)
    with serving(Session(ratings, tmp_path / "r.jsonl", form="ratings")) as page:
        browser.open(page.address)
        browser.until("document.querySelectorAll('article').length", 3)
        for key in "52":
            browser.press(key)
        browser.press("Backspace")
        for key in "41":
            browser.press(key)
        browser.until(DONE, 1)
        browser.press("u")  # the whole item back
        browser.until(DONE, 0)
        for key in "513":
            browser.press(key)
        browser.until(DONE, 1)
        browser.press("s")
        browser.until("document.getElementById('asked').textContent", "Only skipped ones are left")
    (record,) = said(tmp_path / "r.jsonl")
    assert {j.response: j.value for j in record.judgements} == dict(zip(ratings[0].order, (5, 1, 3), strict=True))
    rankings = asked(1, "rankings", 4)
    with serving(Session(rankings, tmp_path / "k.jsonl", form="rankings")) as page:
        browser.open(page.address)
        browser.until("document.querySelectorAll('article').length", 4)
        for key in "31=42":  # the third is best; then the first and the fourth, level; then the second
            browser.press(key)
        browser.until(DONE, 1)
    (record,) = said(tmp_path / "k.jsonl")
    shown = [{j.response: j.value for j in record.judgements}[i] for i in rankings[0].order]
    assert shown == [1, 3, 0, 1]
    assert browser.console == []


@pytest.mark.parametrize("light", ["light", "dark"])
def test_everybody_can_read_it(light, tmp_path, browser):
    hostile = Record(
        prompt="<img src=x onerror=alert(1)>", responses=[{"text": "</p><script>1</script>"}, {"text": "b"}]
    )
    with serving(Session(items([hostile], "strengths")[0], tmp_path / "j.jsonl", form="strengths")) as page:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": light}])
        browser.open(page.address)
        browser.until("document.querySelectorAll('article').length", 2)
        assert browser.run("document.images.length + document.scripts.length") == 1
        names = browser.names()
        for wanted in (
            ("heading", "How surely is one better?"), ("progressbar", "Judged so far"), ("article", "Answer 1"),
            ("group", "What you say"), ("button", "1answer 1 surely"), ("region", "Prompt"),
        ):  # fmt: skip
            assert any(r.lower() == wanted[0].lower() and n.strip() == wanted[1] for r, n in names), (wanted, names)
        assert browser.run("document.activeElement.id") == "asked"
        assert "1. How surely" in browser.run("document.querySelector('[role=status]').textContent")
        # contrast of text and of what is quiet with the page: WCAG's ratio, 4.5 at least
        script = """(() => { const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255;
          return x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });
          return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
          const page = light(getComputedStyle(document.body).backgroundColor), out = [page];
          for (const q of ['#asked', '#count', 'article .text', 'button', 'h3, h2']) {
            const e = document.querySelector(q), a = light(getComputedStyle(e).color);
            out.push((Math.max(a, page) + .05) / (Math.min(a, page) + .05)); } return out; })()"""
        paper, *contrasts = browser.run(script)
        assert (paper > 0.5) == (light == "light")
        assert min(contrasts) >= 4.5
    assert browser.console == []


# -- as a judge --------------------------------------------------------------------------------------------------------


def test_human_as_a_judge_waits_for_the_file_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(r.to_json() + "\n" for r in records(3, 3)))
    command = ["judge", "a.jsonl", "--judge", "human:mine.jsonl", "--output", "judged.jsonl"]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    waits = "3 records wait for a person: accord annotate mine.todo.jsonl --output mine.jsonl, and then"
    assert waits in capsys.readouterr().err
    todo = items(sources.load("mine.todo.jsonl").records, "ratings")[0]
    session = Session(todo, Path("mine.jsonl"), form="ratings")
    for n in range(3):
        session.answer(n, [1, 2, 3])
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 0
    for item, record in zip(todo, said(Path("judged.jsonl")), strict=True):
        assert {j.response: j.value for j in record.judgements} == dict(zip(item.order, (1, 2, 3), strict=True))
        assert {j.by for j in record.judgements} == {"human:mine.jsonl"}
    assert not Path("mine.todo.jsonl").exists()


def test_pairs_of_several_answers_find_their_record_again(tmp_path):
    asked_ = records(1, 3)
    todo, _ = items(asked_, "pairs")
    session = Session(todo, tmp_path / "mine.jsonl")
    judge = table.find(f"human:{tmp_path / 'mine.jsonl'}")
    for n in range(3):
        with pytest.raises(ConfigError, match="1 record wait"):
            judge(asked_)
        session.answer(n, 1)
    (found,) = judge(asked_)
    assert sorted(j.pair for j in found) == [(0, 1), (0, 2), (1, 2)]  # type: ignore[type-var]


def test_answers_that_say_the_same_are_asked_once_and_judged_alike(tmp_path):
    record = Record(prompt="p", responses=[{"text": t} for t in ("a", "b", "a")])
    todo, left = items([record], "pairs")
    assert (len(todo), dict(left)) == (1, {"answers that say what another one says": 1})
    Session(todo, tmp_path / "mine.jsonl").answer(0, 1.0 if todo[0].order[0] == 0 else 0.0)  # a is better
    same = Record(prompt="q", responses=[{"text": "a"}, {"text": "a"}])
    found, none = table.find(f"human:{tmp_path / 'mine.jsonl'}")([record, same])
    assert sorted((j.pair, j.value) for j in found) == [((0, 1), 1.0), ((2, 1), 1.0)]  # type: ignore[type-var]
    assert none.why == "its answers all say the same"  # type: ignore[attr-defined]


def test_a_loop_waits_for_a_person_and_goes_on(tmp_path, model_folder, monkeypatch):
    from accord.online.loop import loop

    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(6)))
    settings: dict[str, Any] = {
        "model": str(model_folder), "prompts": "prompts.jsonl", "judge": "human:mine.jsonl", "output": "loop",
        "rounds": 1, "samples": 2, "max_new_tokens": 6, "batch_size": 2, "max_steps": 1, "reference": "fixed",
        "objective": "dpo", "pair": {"rule": "best_worst"}, "device": "cpu", "precision": "fp32", "quiet": True,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"wait for a person: accord annotate mine.todo.jsonl --output mine.jsonl"):
        loop(**settings)
    todo, _ = items(sources.load("mine.todo.jsonl").records, "pairs")
    session = Session(todo, Path("mine.jsonl"))
    for n in range(len(todo)):
        session.answer(n, 1)
    assert loop(**settings).finished


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a.jsonl", "--output", "a.jsonl"], "is the file that is judged"),
        (["a.jsonl", "--output", "o.json"], "o.json: judgements are added to a .jsonl file"),
        (["a.jsonl", "--output", "o.jsonl", "--form", "pair"], "--form pair: did you mean 'pairs'"),
        (["a.jsonl", "--output", "o.jsonl", "--scale", "5"], "--scale 5: two whole numbers, such as 1,5"),
        (["a.jsonl", "--output", "o.jsonl", "--scale", "5,1"], "two whole numbers from 0 to 9"),
        (["one.jsonl", "--output", "o.jsonl"], "one.jsonl: no record has enough answers for pairs"),
        (["a.jsonl", "--output", "o.jsonl", "--port", "99999"], "--port 99999 cannot be had"),
    ],
)
def test_what_cannot_be_is_said(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(records(1)[0].to_json() + "\n")
    Path("one.jsonl").write_text(records(1, 1)[0].to_json() + "\n")
    with pytest.raises(SystemExit) as left:
        main(["annotate", *words, "--no-open"])
    assert left.value.code == 2
    assert says in capsys.readouterr().err
