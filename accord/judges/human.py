"""What does a person say? A page of this machine's own, on which answers are judged by the keyboard, and a file of it.

Each judgement is a record in a JSON lines file, added and synced before the page shows the next: a kill, a reload or a
full disk loses nothing that was judged. The answers stand in a drawn order that depends on the seed and the record
alone, and is kept with the judgement.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations, product
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from accord.data import sources
from accord.data.records import Judgement, Record
from accord.data.rows import many
from accord.errors import AccordError, ConfigError, nearest
from accord.judges.frame import Judge, Say, Unjudged
from accord.judges.table import row

FORMS = {
    "pairs": "which of two answers is better, or neither",
    "strengths": "how surely one of two answers is better: 0.95, 0.75, 0.5, 0.25, 0.05",
    "ratings": "a number for each answer",
    "rankings": "all answers from best to worst, ties allowed",
}
SURENESS = (0.95, 0.75, 0.5, 0.25, 0.05)  # P(the first that is shown is better), by the keys 1 to 5
KINDS = {"pairs": "preference", "strengths": "preference", "ratings": "score", "rankings": "rank"}
LONGEST = 1 << 16  # bytes of what the page sends


@dataclass(frozen=True)
class Item:
    """What is shown at once: a record without judgements, and the order in which its answers stand."""

    record: Record
    order: tuple[int, ...]


def items(records: Iterable[Record], form: str, seed: int = 0) -> tuple[list[Item], Counter[str]]:
    """What a person is asked, in the order of the records, and what cannot be asked, by reason.

    Of a record with more than two answers, pairs and strengths ask about every two.

    >>> found, left = items([Record(prompt="Hi", responses=[{"text": t} for t in "abc"])], "pairs")
    >>> len(found), found[0].order == items([found[0].record], "pairs")[0][0].order
    (3, True)
    """
    if form not in FORMS:
        raise ConfigError(f"--form {form}: {nearest(form, FORMS)}")
    found, left = [], Counter[str]()
    for record in records:
        different = {a.plain_text: a for a in record.responses}
        answers = tuple(a.model_copy(update={"revised_from": None}) for a in different.values())
        if alike := len(record.responses) - len(answers):
            left["answers that say what another one says"] += alike
        if len(answers) < (1 if form == "ratings" else 2):
            left["too few answers"] += 1
            continue
        if form == "rankings" and len(answers) > 9:
            left["more than nine answers, which have no keys"] += 1
            continue
        for shown in combinations(answers, 2) if KINDS[form] == "preference" else [answers]:
            asked = Record(**{**dict(record), "responses": shown, "judgements": ()})
            order = list(range(len(shown)))
            random.Random(f"{seed} {asked.id}").shuffle(order)
            found.append(Item(asked, tuple(order)))
    return found, left


class Session:
    """What is asked and what was said, with its file. Its methods may be called by several threads.

    Args:
        output: a .jsonl file; what stands in it counts as judged.
        by: who judges. scale: lowest and highest rating, whole numbers, at most ten of them.

    Raises:
        ConfigError: the file holds something else, or what somebody else said.
    """

    def __init__(
        self, asked: Seq[Item], output: Path, *, form: str = "pairs", by: str = "human",
        scale: tuple[int, int] = (1, 5), overwrite: bool = False,
    ) -> None:  # fmt: skip
        if output.suffix != ".jsonl":
            raise ConfigError(f"{output}: judgements are added to a .jsonl file")
        if not 0 <= scale[0] < scale[1] <= 9:
            raise ConfigError(f"--scale {scale[0]},{scale[1]}: two whole numbers from 0 to 9, which are the keys")
        self.asked, self.output, self.form, self.by, self.scale = list(asked), output, form, by, scale
        self.lock = threading.Lock()
        self.skipped: set[int] = set()
        self.done: list[int] = []  # places of what is judged, the last one last
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            if overwrite:
                output.unlink(missing_ok=True)
            self.foreign = self._held()
        except OSError as error:
            raise AccordError(f"{output} cannot be written ({error.strerror})") from None

    def _held(self) -> int:
        """Marks what the file holds as done and cuts off a half-written line; how much of it was not asked."""
        places: dict[str, list[int]] = {}
        for n, item in enumerate(self.asked):
            places.setdefault(item.record.id, []).append(n)
        foreign = end = 0
        if not self.output.exists():
            return 0
        with self.output.open("rb+") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                record = Record.from_json(line.decode("utf-8"), file=str(self.output), number=number)
                if wrong := [j for j in record.judgements if j.by != self.by or j.kind != KINDS[self.form]]:
                    raise ConfigError(
                        f"{self.output}, line {number}: a {wrong[0].kind} by {wrong[0].by!r}, and now {self.form} by "
                        f"{self.by!r} are asked for; choose another --output, or say --overwrite"
                    )
                free = places.get(Record(**{**dict(record), "judgements": ()}).id)
                if free:
                    self.done.append(free.pop(0))
                else:
                    foreign += 1
            stream.truncate(end)
        return foreign

    def state(self) -> dict[str, Any]:
        """What the page shows: the next item, progress, and how it is answered."""
        with self.lock:
            done = set(self.done)
            n = next((i for i in range(len(self.asked)) if i not in done | self.skipped), None)
            found: dict[str, Any] = {
                "form": self.form, "scale": self.scale, "done": len(done), "of": len(self.asked),
                "skipped": len(self.skipped - done), "item": n,
            }  # fmt: skip
            if n is not None:
                record = self.asked[n].record
                said = [{"role": m.role, "text": _words(m.content)} for m in record.messages]
                texts = [record.responses[i] for i in self.asked[n].order]
                found |= {"prompt": said, "answers": [_turns(a) for a in texts]}
            return found

    def answer(self, n: int, said: Any) -> None:
        """Writes what was said of item `n`.

        Raises:
            ValueError: it is no answer to that, or it was answered before.
            OSError: the file cannot be written; it is as it was.
        """
        with self.lock:
            if not 0 <= n < len(self.asked):
                raise ValueError(f"there is no item {n}")
            if n in self.done:
                raise ValueError("this was judged already, perhaps on another page")
            item = self.asked[n]
            record = Record(**{**dict(item.record), "judgements": tuple(self._judgements(item, said))})
            self._write(record.to_json() + "\n")
            self.done.append(n)
            self.skipped.discard(n)

    def _write(self, line: str) -> None:
        with self.output.open("ab") as stream:
            before = stream.tell()
            try:
                stream.write(line.encode("utf-8", "surrogatepass"))
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                os.truncate(self.output, before)
                raise

    def _judgements(self, item: Item, said: Any) -> list[Judgement]:
        """`said` is of the answers as they are shown; judgements are of the answers as the record has them."""
        order, by = item.order, self.by
        if self.form in ("pairs", "strengths"):
            values = (1.0, 0.5, 0.0) if self.form == "pairs" else SURENESS
            if not isinstance(said, int | float) or said not in values:
                raise ValueError(f"one of {values} is expected, not {said!r}")
            value = float(said) if order[0] == 0 else round(1 - float(said), 6)
            return [Judgement(kind="preference", pair=(0, 1), value=value, by=by, order=order)]
        if not isinstance(said, list) or len(said) != len(order) or not all(type(v) is int for v in said):
            raise ValueError(f"{many(len(order), 'whole numbers')} are expected, one for each answer")
        low, high = self.scale if self.form == "ratings" else (0, len(order) - 1)
        if not all(low <= v <= high for v in said):
            raise ValueError(f"numbers from {low} to {high} are expected")
        values_ = sorted(zip(order, said, strict=True))
        if self.form == "ratings":
            return [
                Judgement(kind="score", response=i, value=v, scale=(float(low), float(high)), by=by, order=order)
                for i, v in values_
            ]
        return [Judgement(kind="rank", response=i, value=v, by=by, order=order) for i, v in values_]

    def skip(self, n: int) -> None:
        """Leaves item `n` for another time: nothing is written, and the next session asks again."""
        with self.lock:
            if 0 <= n < len(self.asked) and n not in self.done:
                self.skipped.add(n)

    def undo(self) -> None:
        """Takes the last judgement out of the file again; without one, brings back what was skipped."""
        with self.lock:
            if not self.done:
                self.skipped.clear()
                return
            with self.output.open("rb+") as stream:
                text = stream.read()
                stream.truncate(text.rstrip(b"\n").rfind(b"\n") + 1)
                os.fsync(stream.fileno())
            self.skipped.discard(self.done.pop())

    def lines(self) -> list[str]:
        """What came of it, for a person."""
        left = len(self.asked) - len(self.done)
        told = [f"{many(len(self.done), 'judgements')} in {self.output}" + (f", {left:,} to go" if left else "")]
        if self.foreign:
            told.append(f"{many(self.foreign, 'records')} of {self.output} are not among those that were given")
        if left:
            told.append("the same command goes on")
        return told


def _words(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _turns(answer: Any) -> list[dict[str, str]]:
    if answer.messages is None or len(answer.messages) == 1:
        return [{"role": "assistant", "text": answer.plain_text}]
    return [{"role": m.role, "text": _words(m.content)} for m in answer.messages]


# -- the page ----------------------------------------------------------------------------------------------------------


class Page(ThreadingHTTPServer):
    """A server of this machine alone. Whoever lacks the token of its address, or comes by another name, is refused.

    Args:
        port: 0 for a free one.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.token = session, secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), _Asked)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--port {port} cannot be had ({getattr(error, 'strerror', error)})") from None

    @property
    def address(self) -> str:
        """Where it is, with its token."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"

    @cached_property
    def html(self) -> str:
        """The page, with everything in it."""
        return Path(__file__).with_name("human.html").read_text(encoding="utf-8")


class _Asked(BaseHTTPRequestHandler):
    server: Page

    def do_GET(self) -> None:
        """The page, and what it shows."""
        if (path := self._allowed()) is None:
            return
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            policy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
            policy += f"frame-ancestors 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'"
            self._send(self.server.html.replace("NONCE", nonce), "text/html", {"Content-Security-Policy": policy})
        elif path == "/state":
            self._send(json.dumps(self.server.session.state()))
        else:
            self._send("{}", status=HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """An answer, or what else the page asks for; back comes what it shows next."""
        if (path := self._allowed()) is None:
            return
        session = self.server.session
        try:
            size = int(self.headers.get("Content-Length") or 0)
            if not 0 < size <= LONGEST or self.headers.get_content_type() != "application/json":
                raise ValueError("a small JSON object is expected")
            sent = json.loads(self.rfile.read(size))
            if not isinstance(sent, dict):
                raise ValueError("a small JSON object is expected")
            if path == "/answer":
                session.answer(int(sent.get("item", -1)), sent.get("said"))
            elif path == "/skip":
                session.skip(int(sent.get("item", -1)))
            elif path == "/undo":
                session.undo()
            elif path == "/finish":
                threading.Thread(target=self.server.shutdown, daemon=True).start()
            else:
                raise ValueError(f"{path} is nothing that can be asked")
        except (ValueError, TypeError) as error:
            self._send(json.dumps({"error": str(error)}), status=HTTPStatus.CONFLICT)
        except OSError as error:
            why = f"{session.output} cannot be written ({error.strerror}); what was judged before stands in it"
            self._send(json.dumps({"error": why}), status=HTTPStatus.INSUFFICIENT_STORAGE)
        else:
            self._send(json.dumps(session.state()))

    def _allowed(self) -> str | None:
        parts = urlsplit(self.path)
        given = parse_qs(parts.query).get("token", [""])[0]
        here = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        if self.headers.get("Host") in here and secrets.compare_digest(given.encode(), self.server.token.encode()):
            return parts.path
        self._send('{"error": "use the address that accord annotate printed"}', status=HTTPStatus.FORBIDDEN)
        return None

    def _send(
        self, text: str, kind: str = "application/json", headers: dict[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:  # fmt: skip
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        common = {
            "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
        }  # fmt: skip
        for name, value in (common | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests hold the token."""


# -- as a judge --------------------------------------------------------------------------------------------------------


class Human:
    """A person by way of a file: what is there is taken, what is missing is written down to be judged.

    Args:
        file: what `accord annotate` made. todo: where records go that nobody has judged.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        if self.file.suffix != ".jsonl":
            raise ConfigError(f"human:{file}: a .jsonl file is expected, the output of accord annotate")
        self.todo = self.file.with_name(f"{self.file.stem}.todo.jsonl")
        self.by = f"human:{file}"

    def __call__(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
        said = self._said()
        found = [self._of(record, said) for record in records]
        missing = [r for r, judged in zip(records, found, strict=True) if not _whole(r, judged)]
        if missing:
            lines = [Record(**{**dict(r), "judgements": ()}).to_json() + "\n" for r in missing]
            try:
                self.todo.parent.mkdir(parents=True, exist_ok=True)
                self.todo.write_text("".join(lines), encoding="utf-8")
            except OSError as error:
                raise AccordError(f"{self.todo} cannot be written ({error.strerror})") from None
            raise ConfigError(
                f"{many(len(missing), 'records')} wait for a person: accord annotate {self.todo} --output {self.file}, "
                "and then this command again, which goes on"
            )
        self.todo.unlink(missing_ok=True)
        return found

    def _said(self) -> dict[str, list[Record]]:
        """Judged records by the key of their prompt."""
        held: dict[str, list[Record]] = {}
        for record in sources.load(self.file).records if self.file.exists() else []:
            held.setdefault(record.prompt_key, []).append(record)
        return held

    def _of(self, record: Record, said: dict[str, list[Record]]) -> tuple[Judgement, ...]:
        """What the file says of a record's answers; of those that say the same, of each."""
        place: dict[str, list[int]] = {}
        for i, answer in enumerate(record.responses):
            place.setdefault(answer.plain_text, []).append(i)
        if len(place) < len(record.responses) and len(place) == 1:
            return Unjudged("its answers all say the same")
        found = []
        for other in said.get(record.prompt_key, []):
            moved = [place.get(a.plain_text, []) for a in other.responses]
            if not all(moved):
                continue
            for j in other.judgements:
                order = tuple(moved[i][0] for i in j.order) if j.order else None
                for where in product(*(moved[i] for i in j.pair or (j.response,) if i is not None)):
                    target = {"pair": where} if j.pair else {"response": where[0]}
                    found.append(j.model_copy(update={"by": self.by, "order": order, **target}))
        return tuple(found)


def _whole(record: Record, said: Seq[Judgement]) -> bool:
    """Whether every different answer, or every two of them, is judged, or there is nothing to judge."""
    if isinstance(said, Unjudged):
        return True
    different = {a.plain_text for a in record.responses}
    texts = [a.plain_text for a in record.responses]
    pairs = {frozenset(texts[i] for i in j.pair) for j in said if j.pair}
    single = {texts[j.response] for j in said if j.response is not None}
    return single == different or len(pairs) == len(different) * (len(different) - 1) // 2 > 0


@row()
def human(file: str) -> Judge:
    """A person, by way of a file that accord annotate makes: what nobody has judged yet is written to FILE.todo.jsonl.

    Args:
        file: judged records; answers are found in them by prompt and text.
    """
    return Human(file)
