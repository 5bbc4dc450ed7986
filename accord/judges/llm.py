"""What does a model behind a URL say? An LLM as a judge: asked by a template, both orders, its words read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from accord.data.records import Judgement, Record
from accord.data.verdicts import dialogue
from accord.endpoint import Answer, Failure, Server
from accord.errors import ConfigError, ServerError
from accord.judges.frame import Judge, Say, Unjudged
from accord.judges.table import row
from accord.judges.templates import Template

UNREAD = "its verdict cannot be read"
SHOWN = 3  # unreadable answers that are shown


@dataclass(frozen=True)
class Question:
    """What is asked of one record: about a response, or about a pair in the order in which it is shown."""

    record: int
    messages: list[dict[str, str]]
    order: tuple[int, ...]


@dataclass
class LLM:
    """A model behind a URL that says which of two answers is better, or how good one is.

    Args:
        server, template: who is asked, and what.
        known: right answers to a record's prompt. reference: where they are from, in words.
        both: whether pairs are shown in both orders.
        among: `all` pairs of a record's responses, or each with the `first`.
        leave: of pairs, what is left out: `ties`, and `turned`, those that are decided by their order.
        unparsed: what becomes of an answer that cannot be read: `leave`, `tie`, or `stop`.
        again: how often it is asked again where it cannot be read.
    """

    server: Server
    template: Template
    known: Callable[[Record], list[str]] | None = None
    reference: str = ""
    both: bool = True
    among: str = "all"
    leave: tuple[str, ...] = ()
    unparsed: str = "leave"
    again: int = 1
    temperature: float | None = 0.0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        self.compares = self.template.kind == "pairs"
        how = (self.template.key, self.reference, self.both, self.among, self.leave, self.unparsed, self.again)
        asked = hashlib.blake2b(repr((*how, self.temperature, self.max_tokens)).encode(), digest_size=3).hexdigest()
        self.by = f"llm:{self.server.named()}:{self.template.name}:{asked}"
        self.unread: list[str] = []
        self.times = 0

    def notes(self) -> list[str]:
        """What it took, and what could not be read, for a person."""
        told = [f"{self.server.url}: {self.server.spent}"]
        if self.times:
            told.append(f"{self.times:,} answers could not be read, such as {self.unread[0]!r}")
        return told

    def __call__(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
        asked = [q for n, record in enumerate(records) for q in self._questions(n, record)]
        values = self._answers(asked, lambda done, of: say(len(records) * done // max(of, 1), len(records)))
        found: list[list[tuple[Question, float | str]]] = [[] for _ in records]
        for question, value in zip(asked, values, strict=True):
            found[question.record].append((question, value))
        return [self._said(record, answers) for record, answers in zip(records, found, strict=True)]

    def _questions(self, number: int, record: Record) -> list[Question]:
        known = self.known(record) if self.known else []
        values = {"prompt": dialogue(record.messages), "reference": known[0] if known else ""}
        texts = [r.plain_text for r in record.responses]
        if not self.compares:
            return [
                Question(number, self.template.messages(**values, answer=text), (i,)) for i, text in enumerate(texts)
            ]
        pairs = [(0, j) for j in range(1, len(texts))] if self.among == "first" else combinations(range(len(texts)), 2)
        return [
            Question(number, self.template.messages(**values, first=texts[i], second=texts[j]), (i, j))
            for pair in pairs
            for i, j in ([pair, pair[::-1]] if self.both else [pair])
        ]

    def _answers(self, asked: Seq[Question], done: Callable[[int, int], None]) -> list[float | str]:
        """P(the one shown first is better) or a score of each question; why, where there is none."""
        talks = [list(q.messages) for q in asked]
        found: list[float | str] = [UNREAD] * len(asked)
        left = list(range(len(asked)))
        for turn in range(self.again + 1):
            said = self.server.ask([self._body(talks[n]) for n in left], done if not turn else lambda done, of: None)
            unread = []
            for n, answer in zip(left, said, strict=True):
                found[n] = self._read(answer)
                if found[n] == UNREAD and isinstance(answer, Answer):
                    unread.append(n)
                    talks[n] += [
                        {"role": "assistant", "content": answer.text}, {"role": "user", "content": self.template.again},
                    ]  # fmt: skip
            if not (left := unread):
                return found
        self.times += len(left)
        self.unread = (self.unread + [talks[n][-2]["content"][:200] for n in left])[:SHOWN]
        if self.unparsed == "stop":
            raise ServerError(
                f"{self.server.url}: {UNREAD} after {self.again + 1} tries, and unparsed=stop: {self.unread[0]!r}"
            )
        if self.unparsed == "tie":
            for n in left:
                found[n] = 0.5
        return found

    def _body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": messages, "max_tokens": self.max_tokens}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        return body | ({"seed": 0} if self.temperature else {})

    def _read(self, answer: Answer | Failure) -> float | str:
        if isinstance(answer, Failure):
            return f"{self.server.url}: {answer.why}"
        value = self.template.read(answer.text)
        return UNREAD if math.isnan(value) else value

    def _said(self, record: Record, answers: Seq[tuple[Question, float | str]]) -> tuple[Judgement, ...]:
        if self.compares and len(record.responses) < 2:
            return Unjudged("it has one response, and nothing to compare it with")
        why = [value for _, value in answers if isinstance(value, str)]
        said: list[Judgement] = []
        if not self.compares:
            said = [
                Judgement(kind="score", response=q.order[0], value=v, scale=self.template.scale, by=self.by,
                          attribute="llm")
                for q, v in answers
                if not isinstance(v, str)
            ]  # fmt: skip
            return Unjudged(why[0], tuple(said)) if why else tuple(said)
        pairs: dict[frozenset[int], list[tuple[Question, float | str]]] = {}
        for q, v in answers:
            pairs.setdefault(frozenset(q.order), []).append((q, v))
        for verdicts in pairs.values():
            values = {(v if q.order[0] < q.order[1] else 1 - v) for q, v in verdicts if not isinstance(v, str)}
            if any(isinstance(v, str) for _, v in verdicts):
                continue  # one order alone would count the judge's liking for a place
            if "ties" in self.leave and values == {0.5}:
                why.append("a tie, and ties=leave")
            elif "turned" in self.leave and {0.0, 1.0} <= values:
                why.append("its verdict turns round with the order, and turned=leave")
            else:
                said += [
                    Judgement(
                        kind="preference", pair=(q.order[0], q.order[1]), value=float(v), order=q.order, by=self.by,
                        attribute="llm",
                    )
                    for q, v in verdicts
                ]  # fmt: skip
        return Unjudged(why[0], tuple(said)) if why else tuple(said)


@row()
def llm(
    url: str,
    *,
    model: str = "",
    template: str = "pairs",
    reference: str | None = None,
    orders: Literal["both", "one"] = "both",
    among: Literal["all", "first"] = "all",
    ties: Literal["keep", "leave"] = "keep",
    turned: Literal["keep", "leave"] = "keep",
    unparsed: Literal["leave", "tie", "stop"] = "leave",
    again: int = 1,
    temperature: float | None = 0.0,
    max_tokens: int = 512,
    key: str = "",
    at_once: int = 8,
    timeout: float = 120.0,
    tries: int = 6,
    most_tokens: int | None = None,
    most_cost: float | None = None,
    price_in: float = 0.0,
    price_out: float = 0.0,
    cache: bool = True,
) -> Judge:
    """A model behind a URL (vLLM, SGLang, llama.cpp, OpenAI and whatever speaks its protocol), asked by a template.

    Pairs are shown in both orders, and both verdicts are kept: where they differ, they come to a tie. An answer that
    cannot be read is asked for again, and then left out with the other order of its pair, or as `unparsed` says. What
    was answered is kept in the cache by all that was sent, and never asked or paid for twice.

    Args:
        url: of the server, like http://localhost:8000.
        model: its name there; needed where the server has several.
        template: `pairs`, `score`, or a YAML file of one's own (see accord/judges/templates).
        reference: right answers: a file with demonstrations of the same prompts, or `reference`, the best answer of the
            record by the judgements that it came with.
        orders: `both`, or `one`, in which a judge's liking for a place stays.
        among: of more than two responses: all pairs, or each with the first.
        ties, turned: keep or leave out pairs that are even, or that are decided by their order.
        unparsed: what becomes of a verdict that cannot be read.
        again: how often it is asked for again.
        temperature: none sends none, for servers that take none.
        max_tokens: of its answer.
        key: the name of the environment variable that holds the server's key.
        at_once: requests at the same time. timeout: seconds. tries: of a request that a server fails on.
        most_tokens, most_cost: a limit to all that a command asks of the server, with price_in and price_out of a
            million tokens.
        cache: false asks anew: for a server that has another model under the same name.
    """
    if again < 0 or max_tokens < 1:
        raise ConfigError(f"llm: again={again} must be at least 0, and max_tokens={max_tokens} at least 1")
    asked = Template.of(template)
    if asked.kind == "score" and unparsed == "tie":
        raise ConfigError(f"unparsed=tie is for pairs, and template={template} asks for scores; use leave or stop")
    known = None
    if reference is not None:
        if "{reference}" not in asked.text:
            raise ConfigError(f"template={template} has no place {{reference}}; leave reference out")
        from accord.judges.relevance import References

        known = References(None if reference == "reference" else reference)
    server = Server(
        url, model, key=key, at_once=at_once, timeout=timeout, tries=tries, most_tokens=most_tokens,
        most_cost=most_cost, price_in=price_in, price_out=price_out, cache=cache,
    )  # fmt: skip
    leave = tuple(name for name, what in (("ties", ties), ("turned", turned)) if what == "leave")
    return LLM(
        server, asked, known, reference or "", both=orders == "both", among=among, leave=leave, unparsed=unparsed,
        again=again, temperature=temperature, max_tokens=max_tokens,
    )  # fmt: skip
