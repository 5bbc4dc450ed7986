"""Who answers behind a URL? A client for servers that speak OpenAI's protocol (vLLM, SGLang, llama.cpp, `transformers
serve`, or one that is paid for).

Many requests go out at once; what a server does wrong is tried again with growing pauses; what it said is kept in the
cache by its content, so that nothing is paid twice; and limits on tokens and cost hold for all that this process asks
of a server. A request that comes to nothing is a `Failure` that says why, for the caller to count; what would spoil
every request (nobody there, no such model, a limit reached) is a `ServerError` that names the URL and the remedy.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2

from accord.data.store import cache_root
from accord.errors import AccordError, ConfigError, ServerError, nearest

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)  # another try may go well
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds, of pauses that double
LONGEST_TOLD = 600.0  # a server that asks for a longer one is not waited for
ILL = 8  # so many requests in a row that come to nothing, and the server is taken for ill
BYTES = 3  # of a token, where a server has not yet told how many there were


@dataclass(frozen=True)
class Answer:
    """text; finish: stop, length or unknown; tokens of the question and of the answer; kept: it was not paid for."""

    text: str
    finish: str = "unknown"
    asked: int = 0
    said: int = 0
    kept: bool = False


@dataclass(frozen=True)
class Failure:
    """A request that came to nothing, and why; ill: it is the server that did not do what it should."""

    why: str
    ill: bool = False


@dataclass
class Spent:
    """What was asked of a server in this process. cost is in the currency of the prices."""

    requests: int = 0
    kept: int = 0
    again: int = 0
    failed: int = 0
    asked: int = 0
    said: int = 0
    cost: float = 0.0
    under_way: dict[int, tuple[int, float]] = field(default_factory=dict)  # tokens and cost that may come of them
    lock: threading.Lock = field(default_factory=threading.Lock)

    def as_dict(self) -> dict[str, Any]:
        known = {k: getattr(self, k) for k in ("requests", "kept", "again", "failed", "asked", "said")}
        return known | ({"cost": round(self.cost, 6)} if self.cost else {})

    def __str__(self) -> str:
        told = f"{self.requests:,} requests, {self.asked:,} tokens asked, {self.said:,} answered"
        known = ((self.kept, "kept from before"), (self.again, "tried again"), (self.failed, "without an answer"))
        more = [f"{n:,} {what}" for n, what in known if n]
        return ", ".join([told, *more, *([f"cost {self.cost:.4g}"] if self.cost else [])])


SPENT: dict[str, Spent] = {}  # by URL: limits hold for all judges and samplers of a process


@dataclass
class Server:
    """One model behind a URL.

    Args:
        url: such as http://localhost:8000; `/v1` is added where it has no path.
        model: its name there; without one, the only model that the server has.
        key: the environment variable that holds the key of the server; the key itself is nowhere written.
        at_once: requests under way at the same time.
        timeout: seconds that an answer may take.
        tries: how often a request is made until it comes to nothing.
        most_tokens: no request is made that could bring this process above so many tokens, asked and answered.
        most_cost: the same for the cost, by price_in and price_out (of a million tokens).
        cache: whether answers are kept, and looked up, by what was asked of whom.

    Raises:
        ConfigError: it is no URL, the key is not set, or a number cannot be.
    """

    url: str
    model: str = ""
    key: str = ""
    at_once: int = 8
    timeout: float = 120.0
    tries: int = 6
    most_tokens: int | None = None
    most_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0
    cache: bool = True

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{self.url!r} is no URL ({error}); write it as http://localhost:8000") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"{self.url!r} is no URL of a server; write it as http://localhost:8000")
        if url.userinfo:
            raise ConfigError(
                "a URL with a name and password in it would stand in every file that is written; put the key into an "
                "environment variable and name it: key=NAME"
            )
        self.root = f"{url.scheme}://{url.netloc.decode()}"
        path = url.path.rstrip("/").removesuffix("/chat/completions")
        self.url = self.root + (path or "/v1")
        for name, low in (("at_once", 1), ("tries", 1), ("timeout", 1e-3), ("price_in", 0), ("price_out", 0)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)} of {self.url} must be at least {low:g}")
        if self.most_cost is not None and not self.price_in + self.price_out:
            raise ConfigError(f"most_cost of {self.url} needs price_in and price_out, of a million tokens")
        headers = {}
        if self.key:
            if not (secret := os.environ.get(self.key)):
                raise ConfigError(f"key={self.key}: the environment holds no such variable; export {self.key}=...")
            headers["Authorization"] = f"Bearer {secret}"
        self.http = httpx2.Client(
            headers=headers, timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, 10.0)),
            limits=httpx2.Limits(max_connections=self.at_once + 1),
        )  # fmt: skip
        self.spent = SPENT.setdefault(self.url, Spent())
        self._until, self._row, self._limit = 0.0, 0, "max_tokens"
        self._stop = threading.Event()

    @classmethod
    def of(cls, words: str, **more: str) -> tuple[Server, dict[str, str]]:
        """The server that `URL,model=M,at_once=4` names, and those of `more` (options with their defaults) as given.

        >>> server, own = Server.of("http://host:8000,model=m,weights=fixed", weights="update")
        >>> server.url, server.model, own
        ('http://host:8000/v1', 'm', {'weights': 'fixed'})
        """
        url, *items = (part.strip() for part in words.split(","))
        forms: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": lambda text: text.lower() != "false"}
        kinds = {f.name: f.type for f in fields(cls) if f.name != "url"} | dict.fromkeys(more, "str")
        given: dict[str, Any] = {}
        for item in items:
            key, _, value = (part.strip() for part in item.partition("="))
            if key not in kinds:
                raise ConfigError(f"{words!r}: there is no option {key!r}; {nearest(key, kinds)}")
            try:
                given[key] = forms[str(kinds[key]).partition(" |")[0]](value)
            except ValueError:
                raise ConfigError(f"{words!r}: {key}={value!r} is no number") from None
        own = {key: given.pop(key, default) for key, default in more.items()}
        return cls(url, **given), own

    # -- answers -------------------------------------------------------------------------------------------------------

    def ask(
        self, bodies: Seq[dict[str, Any]], done: Callable[[int, int], None] = lambda done, of: None
    ) -> list[Answer | Failure]:
        """An answer to each request, in their order; equal ones are made once.

        Args:
            bodies: of `chat/completions`, without the model: messages, max_tokens, temperature, seed, ...
            done: is told how many of how many have come.

        Raises:
            ServerError: nobody is there, the model or the key is not known, a limit is reached, or nothing that is
                asked comes to anything. What was answered until then is in the cache.
        """
        whole = [{"model": self.named(), **body} for body in bodies]
        keys = [self._key(body) for body in whole]
        found: dict[str, Answer | Failure] = dict(self._kept.get(keys)) if self._kept else {}
        self._more("kept", len(found))
        wanted = {key: body for key, body in zip(keys, whole, strict=True) if key not in found}
        self._stop.clear()
        with self._pool() as pool:
            running: dict[Future[Answer | Failure], str] = {}
            waiting = iter(wanted.items())
            for key, body in waiting:
                running[pool.submit(self._one, body)] = key
                if len(running) < self.at_once:
                    continue
                self._gather(running, found)
                done(len(found), len(keys))
            while running:
                self._gather(running, found)
                done(len(found), len(keys))
        return [found[key] for key in keys]

    @contextlib.contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self.at_once)
        try:
            yield pool
        except BaseException as error:
            self._stop.set()
            if not isinstance(error, Exception):  # Ctrl-C does not wait for answers
                self.http.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, running: dict[Future[Answer | Failure], str], found: dict[str, Answer | Failure]) -> None:
        ready, _ = wait(running, return_when=FIRST_COMPLETED)
        trouble: BaseException | None = None
        for future in ready:
            key = running.pop(future)
            if (error := future.exception()) is not None:
                trouble = trouble or error
                continue
            found[key] = answer = future.result()
            if self._kept and isinstance(answer, Answer):
                self._kept.put(key, answer)
        if trouble is None:
            return
        self._stop.set()  # those under way are waited for: they are paid for
        for future in list(running):
            with contextlib.suppress(AccordError):
                if self._kept and isinstance(answer := future.result(), Answer):
                    self._kept.put(running[future], answer)
        raise trouble

    def _one(self, body: dict[str, Any]) -> Answer | Failure:
        """One request, tried until it comes to something."""
        mark = id(body)
        self._begin(body, mark)
        try:
            made = self._tried("POST", f"{self.url}/chat/completions", body)
        finally:
            with self.spent.lock:
                self.spent.under_way.pop(mark, None)
        if isinstance(made, Failure):
            self._more("failed")
            self._row = self._row + 1 if made.ill else 0
            if self._row >= ILL:
                raise ServerError(
                    f"{self.url}: {ILL} requests in a row came to nothing, the last because of this: {made.why}; look "
                    f"at the server, and {self._once_more}"
                )
            return made
        self._row = 0
        return made

    def _tried(self, method: str, url: str, body: dict[str, Any] | None, tries: int | None = None) -> Any:
        """What the server sends, read by `_read`; a Failure after so many tries."""
        why, began = "", time.monotonic()
        for number in range(tries or self.tries):
            if number:
                self._more("again")
                self._pause(min(FIRST_PAUSE * 2 ** (number - 1), LONGEST_PAUSE) * random.uniform(0.75, 1.25))
            self._pause(self._until - time.monotonic())
            if self._stop.is_set():
                return Failure("it was stopped")
            try:
                reply = self.http.request(method, url, json=self._worded(body))
                if body is not None:
                    self._more("requests")
                if reply.status_code in AGAIN:
                    why = f"it says {reply.status_code}: {_told(reply)}"
                    self._heed(reply)
                    continue
                if body is not None:
                    self._refuse(reply)
                if reply.status_code >= 400:
                    if "max_completion_tokens" in _told(reply) and self._limit == "max_tokens":
                        self._limit = "max_completion_tokens"  # what newer models of OpenAI call it
                        continue
                    return Failure(f"it says {reply.status_code}: {_told(reply)}")
                return self._read(reply, body)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                why = f"what it sends is no answer ({type(error).__name__}: {error})"
                if body is not None:
                    self._count(*self._guess(body))  # it was paid for, whatever it is
            except httpx2.ConnectError as error:
                why = f"nobody answers there ({error})"
                if number + 1 == (tries or self.tries):
                    raise ServerError(
                        f"{self.url}: {why}, {number + 1} times in {time.monotonic() - began:.0f} s; start the server "
                        f"(vllm serve MODEL, or transformers serve), or correct the URL, and {self._once_more}"
                    ) from None
            except httpx2.TimeoutException:
                why = f"it takes longer than timeout={self.timeout:g} seconds"
            except httpx2.HTTPError as error:
                why = f"it breaks off ({type(error).__name__}: {error})"
        return Failure(f"{why}, {tries or self.tries} times", ill=True)

    def _worded(self, body: dict[str, Any] | None) -> dict[str, Any] | None:
        """The request in the words of the server."""
        return body and {self._limit if k == "max_tokens" else k: v for k, v in body.items()}

    def _refuse(self, reply: httpx2.Response) -> None:
        """What no other request would fare better with."""
        if reply.status_code in (401, 403):
            remedy = f"look at what {self.key} holds" if self.key else "name the variable that holds its key: key=NAME"
            raise ServerError(f"{self.url} says {reply.status_code}: {_told(reply)}; {remedy}")
        if reply.status_code == 404:
            raise ServerError(f"{self.url} says 404: {_told(reply)}; is model={self.model or '...'} what it is called "
                              "there, and is this the URL up to /v1?")  # fmt: skip
        if 300 <= reply.status_code < 400:
            raise ServerError(f"{self.url} sends elsewhere, to {reply.headers.get('location')}; give that URL")

    def _read(self, reply: httpx2.Response, body: dict[str, Any] | None) -> Any:
        made = reply.json()
        if body is None:
            return made
        if "choices" not in made:
            raise ValueError(f"no choices in {_told(reply)}")
        choice = made["choices"][0]
        text = choice["message"]["content"]
        if text is None and choice["message"].get("reasoning_content"):
            text = ""  # it thought until it was cut off
        if not isinstance(text, str):
            raise ValueError("an answer without a text")
        finish = choice.get("finish_reason")
        usage, guess = made.get("usage") or {}, self._guess(body, text)
        asked = usage.get("prompt_tokens") or guess[0]
        said = usage.get("completion_tokens")
        said = guess[1] if said is None else said
        self._count(asked, said)
        return Answer(text, finish if finish in ("stop", "length") else "unknown", asked, said)

    # -- limits --------------------------------------------------------------------------------------------------------

    def _guess(self, body: dict[str, Any], text: str | None = None) -> tuple[int, int]:
        """Tokens of a question, and of its answer or the most that it may have."""
        asked = len(json.dumps(body["messages"], ensure_ascii=False).encode()) // BYTES
        return asked, len(text.encode()) // BYTES if text is not None else int(body.get("max_tokens") or 1024)

    def _more(self, name: str, by: int = 1) -> None:
        with self.spent.lock:
            setattr(self.spent, name, getattr(self.spent, name) + by)

    @property
    def _once_more(self) -> str:
        return "start the same command again" + (": what was answered is kept" if self.cache else "")

    def _price(self, asked: int, said: int) -> float:
        return (asked * self.price_in + said * self.price_out) / 1e6

    def _count(self, asked: int, said: int) -> None:
        with self.spent.lock:
            self.spent.asked += asked
            self.spent.said += said
            self.spent.cost += self._price(asked, said)

    def _begin(self, body: dict[str, Any], mark: int) -> None:
        guess = self._guess(body)
        with self.spent.lock:
            running = self.spent.under_way.values()
            tokens = self.spent.asked + self.spent.said + sum(guess) + sum(t for t, _ in running)
            cost = self.spent.cost + self._price(*guess) + sum(c for _, c in running)
            for name, value, most in (("tokens", tokens, self.most_tokens), ("cost", cost, self.most_cost)):
                if most is not None and value > most:
                    spent = f"{self.spent.asked + self.spent.said:,} tokens" + (
                        f", cost {self.spent.cost:.4g}" if self.spent.cost else ""
                    )
                    raise ServerError(
                        f"{self.url}: the next request could pass most_{name}={most:g} ({spent} so far in this "
                        f"command); raise it, and {self._once_more}"
                    )
            self.spent.under_way[mark] = (sum(guess), self._price(*guess))

    # -- pauses --------------------------------------------------------------------------------------------------------

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self._stop.wait(seconds)

    def _heed(self, reply: httpx2.Response) -> None:
        """Nobody asks before the time that the server tells (Retry-After, in seconds or as a date)."""
        told = reply.headers.get("retry-after")
        if told is None:
            return
        try:
            seconds = float(told)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
            except ValueError:
                return
        if seconds > LONGEST_TOLD:
            raise ServerError(
                f"{self.url} says {reply.status_code} and asks to wait {seconds:,.0f} s ({_told(reply)}); then "
                f"{self._once_more}"
            )
        self._until = max(self._until, time.monotonic() + seconds)

    # -- what the server is --------------------------------------------------------------------------------------------

    def get(self, url: str) -> Any:
        """What stands at a URL of the server, or a Failure."""
        return self._tried("GET", url, None, min(self.tries, 3))

    def post(self, url: str, body: dict[str, Any]) -> httpx2.Response:
        """What the server says to a command that is given once.

        Raises:
            ServerError: it says no, or nothing.
        """
        try:
            reply = self.http.post(url, json=body, timeout=max(self.timeout, 600.0))
        except httpx2.HTTPError as error:
            raise ServerError(f"{url}: {type(error).__name__}: {error}") from None
        if reply.status_code >= 400:
            raise ServerError(f"{url} says {reply.status_code}: {_told(reply)}")
        return reply

    def named(self) -> str:
        """The model, found out where it was not given.

        Raises:
            ConfigError: the server has several, or none. ServerError: it does not say.
        """
        self.model = self.model or self._only_model()
        return self.model

    def _only_model(self) -> str:
        made = self.get(f"{self.url}/models")
        if isinstance(made, Failure):
            raise ServerError(f"{self.url}/models: {made.why}; name the model: model=NAME")
        known = [m.get("id") for m in made.get("data", [])] if isinstance(made, dict) else []
        if len(known) != 1:
            listed = ", ".join(map(str, known[:10])) if known else "none"
            raise ConfigError(f"{self.url} has {len(known)} models ({listed}); name one: model=NAME")
        return str(known[0])

    @cached_property
    def routes(self) -> frozenset[str]:
        """The paths that the server says it has (openapi.json, as vLLM, SGLang and `transformers serve` have it)."""
        made = self.get(f"{self.root}/openapi.json")
        return frozenset(made.get("paths", ())) if isinstance(made, dict) else frozenset()

    # -- what is kept --------------------------------------------------------------------------------------------------

    def _key(self, body: dict[str, Any]) -> str:
        text = json.dumps([self.url, body], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @cached_property
    def _kept(self) -> Kept | None:
        return Kept(cache_root() / "answers.sqlite") if self.cache else None


def _told(reply: httpx2.Response) -> str:
    """The server's own words, in a line."""
    try:
        made = reply.json()
        error = made.get("error") or made.get("detail") or made
        text = error.get("message") or json.dumps(error) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError):
        text = reply.text
    return " ".join(text.split())[:300] or reply.reason_phrase


class Kept:
    """Answers by what was asked, in a file that several processes may use and a kill leaves whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._plainly():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self.file.execute("PRAGMA journal_mode=WAL")
            self.file.execute("PRAGMA synchronous=NORMAL")
            self.file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text, finish, asked, said)")

    def get(self, keys: Seq[str]) -> Iterator[tuple[str, Answer]]:
        """(key, answer) of those that are known."""
        with self._plainly():
            for key in dict.fromkeys(keys):
                found = self.file.execute("SELECT text, finish, asked, said FROM answers WHERE key = ?", (key,))
                if (row := found.fetchone()) is not None:
                    text, finish, asked, said = row
                    yield key, Answer(text, finish, asked, said, kept=True)

    def put(self, key: str, answer: Answer) -> None:
        row = (key, answer.text, answer.finish, answer.asked, answer.said)
        with self._plainly():
            self.file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ServerError(
                f"{self.path} cannot keep answers ({error}); free space, or set ACCORD_CACHE to another folder: what "
                "was answered before is kept"
            ) from error
