"""What was said, by whom, about which responses?

A record states facts and decides nothing: a prompt, its responses, and any number of judgements on them, with
where all of it came from. Whether a tie is a pair, or 7 of 10 is good, is decided in `views.py` and counted there.
One record is one JSON line and one Arrow row.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from accord.errors import RecordError

CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
ROLES = ("system", "developer", "user", "assistant", "tool")


TEXT_ALONE = "a model that reads text alone must not learn answers about what it does not see"


def no_text(part: dict[str, Any]) -> str | None:
    """What a part of a message is if it is no text; None for text.

    >>> no_text({"type": "image", "url": "x"}), no_text({"type": "text", "text": "Hi"})
    ("a part of type 'image' is no text", None)
    """
    kind = part.get("type") or "text"
    if kind not in ("text", "input_text", "output_text"):  # the last two are those of OpenAI's responses
        return f"a part of type {kind!r} is no text"
    return None if isinstance(part.get("text"), str) else f"a part of type {kind!r} without a text"


class _Fact(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Message(_Fact):
    """One turn of a conversation, as chat templates take it; tool calls and what templates add are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)
    role: str
    content: str | list[dict[str, Any]] | None = None

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        return role

    @field_validator("content")
    @classmethod
    def _text_alone(cls, content: Any) -> Any:
        if isinstance(content, list) and (what := next(filter(None, map(no_text, content)), None)):
            raise ValueError(f"{what}: {TEXT_ALONE}")
        return content

    def plain(self) -> dict[str, Any]:
        """The dict that a chat template is given."""
        return self.model_dump(exclude_none=True) | {"content": self.content if self.content is not None else ""}


def words(message: Message) -> str:
    """The text of a message; of content in parts, that of all of them."""
    if isinstance(message.content, list):
        return "".join(part["text"] for part in message.content)
    return message.content or ""


class Sampler(_Fact):
    """Who answered: `model` is a content key (or a name where no key is known)."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


class Response(_Fact):
    """One answer to the record's prompt.

    Exactly one of `text` and `messages` is given; messages may hold several assistant turns (and the user and tool
    turns between them, which are never trained). `token_ids`, made under the tokenizer whose key is `tokenizer`,
    are used as they are and never tokenised again; `trained` says which of them count (all, if it is absent).
    `finish`: `stop` (it ended: the end token is trained), `length` (it was cut off: no end token is trained),
    `unknown` (taken as ended). `advantages`, `returns` and `values` are what a policy gradient was given at each token.
    """

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    tokenizer: str | None = None
    sampling_logprobs: tuple[float, ...] | None = None  # nats, one a token of token_ids
    advantages: tuple[float, ...] | None = None  # one a token of token_ids, in units of the reward
    returns: tuple[float, ...] | None = None  # the same: what the token returned
    values: tuple[float, ...] | None = None  # the same: what a critic expected of it when it was sampled
    trained: tuple[bool, ...] | None = None  # one a token of token_ids: False where others spoke (tools, users)
    finish: Literal["stop", "length", "unknown"] = "unknown"
    sampler: Sampler | None = None
    revised_from: int | None = None  # index of the response of this record that it rewrites
    rationale: str | None = None  # why it is better than what it was compared with

    @model_validator(mode="after")
    def _consistent(self) -> Response:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        if self.messages is not None and not any(m.role == "assistant" for m in self.messages):
            raise ValueError("messages without an assistant turn are not a response")
        if self.token_ids is not None and self.tokenizer is None:
            raise ValueError("token_ids need the key of their tokenizer in 'tokenizer'")
        if self.trained is not None and len(self.trained) != len(self.token_ids or ()):
            raise ValueError("trained must be one a token of token_ids")
        if self.token_ids is not None and len(self.messages or ()) > 1 and self.trained is None:
            raise ValueError("token_ids of several turns need 'trained', which says whose tokens they are")
        for name in ("sampling_logprobs", "advantages", "returns", "values"):
            numbers = getattr(self, name)
            if numbers is not None and len(numbers) != len(self.token_ids or ()):
                raise ValueError(f"{name} must be one a token of token_ids")
        return self

    @property
    def plain_text(self) -> str:
        """The words of the answer, for rules, judges and people."""
        if self.text is not None:
            return self.text
        return "\n\n".join(str(m.content or "") for m in self.messages or () if m.role == "assistant")


class Judgement(_Fact):
    """Something said about a response, a pair of responses, or a part of a response.

    kind:
        `label`       value 1 (good) or 0 (bad) of `response`.
        `score`       value of `response`, on `scale` = (lowest, highest) where it is known.
        `rank`        value of `response` among its siblings; 0 is best; equal values are ties.
        `preference`  on `pair` = (i, j). With `scale` absent, value is P(i is better than j) in [0, 1]: 1 is a plain
                      preference, 0.5 a tie, 0 prefers j. With `margin=True`, value is a signed gap in score units.

    Target: `response` or `pair` indexes the record's responses; `step` or `span` (characters, half open) narrow a
    response to a part. `order` is the order in which the judge saw the responses; `uncertainty` is a standard
    deviation in units of `value`.
    """

    kind: Literal["label", "score", "rank", "preference"]
    value: float
    response: int | None = None
    pair: tuple[int, int] | None = None
    step: int | None = None
    span: tuple[int, int] | None = None
    margin: bool = False
    scale: tuple[float, float] | None = None
    attribute: str = "overall"
    by: str | None = None
    order: tuple[int, ...] | None = None
    uncertainty: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Judgement:
        on_pair = self.kind == "preference"
        if on_pair != (self.pair is not None) or on_pair == (self.response is not None):
            raise ValueError(f"a {self.kind} judges " + ("a pair, not a response" if on_pair else "a response"))
        if self.pair is not None and self.pair[0] == self.pair[1]:
            raise ValueError("a pair needs two different responses")
        if self.margin and not on_pair:
            raise ValueError("margin belongs to a preference")
        if on_pair and not self.margin and not 0 <= self.value <= 1:
            raise ValueError("a preference's value is a probability in [0, 1]; for a score gap set margin")
        if self.kind == "label" and self.value not in (0, 1):
            raise ValueError("a label is 1 (good) or 0 (bad)")
        if self.scale is not None:
            low, high = self.scale
            if not low < high:
                raise ValueError("scale is (lowest, highest)")
            if not low <= self.value <= high:
                raise ValueError(f"value {self.value:g} lies outside its scale {low:g} to {high:g}")
        return self


class Origin(_Fact):
    """Where a record was read: the file as the user named it, and its line or row (from 1)."""

    file: str
    line: int | None = None


class Record(_Fact):
    """A prompt, its responses, and judgements on them.

    >>> r = Record(prompt="Hi", responses=[Response(text="Hello!")])
    >>> r.id == Record(prompt="Hi", responses=[Response(text="Hello!")], weight=2).id
    True
    """

    prompt: str | tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    tools: tuple[dict[str, Any], ...] | None = None
    source: str = "default"
    weight: float = Field(default=1.0, gt=0)
    origin: Origin | None = None
    id: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        n = len(self.responses)
        for judgement in self.judgements:
            for index in judgement.pair or (judgement.response,):
                if index is None or not 0 <= index < n:
                    raise ValueError(f"a judgement names response {index}, but there are {n} (counted from 0)")
        for i, response in enumerate(self.responses):
            before = response.revised_from
            if before is not None and (before == i or not 0 <= before < n):
                raise ValueError(f"response {i} is revised from {before}, which is no other response")
        object.__setattr__(self, "id", self._content_id())
        return self

    def _content_id(self) -> str:
        facts = self.model_dump(mode="json", exclude={"id", "origin", "weight"}, exclude_defaults=True)
        text = CANONICAL(facts)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as messages; a plain text is one user turn."""
        return (Message(role="user", content=self.prompt),) if isinstance(self.prompt, str) else self.prompt

    @property
    def prompt_key(self) -> str:
        """What splits are made by: the same prompt never stands on both sides."""
        turns = [m.plain() for m in self.messages]
        text = json.dumps([turns, self.tools], sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of feedback in it, of `FEEDBACK_KINDS`; `demonstrations` are responses of a record nobody judged."""
        if not self.judgements:
            return frozenset({"demonstrations"} if self.responses else ())
        return frozenset(KIND_OF_JUDGEMENT[j.kind] for j in self.judgements if j.attribute != STRENGTH)

    def to_json(self) -> str:
        """One JSON line; `from_json` gives the same record back, and so does a file of any name that holds it."""
        line = self.model_dump_json(exclude_defaults=True)[:-1]
        line += ',"source":"default"' if self.source == "default" else ""  # else the file's name becomes its source
        return line + ("}" if self.responses else ',"responses":[]}')  # else a prompt with a source is no record

    @classmethod
    def from_json(cls, line: str, *, file: str | None = None, number: int | None = None) -> Record:
        """Reads one line; a record that breaks the rules is a `RecordError` that names file, line and field."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise explain(error, file, number) from None


STRENGTH = "strength"  # attribute of margins that say how far an ensemble believes a pair; no feedback of their own
KIND_OF_JUDGEMENT = {"label": "labels", "score": "ratings", "preference": "pairs", "rank": "rankings"}
FEEDBACK_KINDS = ("demonstrations", "labels", "ratings", "pairs", "rankings")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("weight", pa.float64()),
        ("kinds", pa.list_(pa.string())),
        ("record", pa.string()),  # the JSON line: tool calls and template extras have no fixed Arrow type
    ]
)


def to_table(records: list[Record]) -> pa.Table:
    """Records as an Arrow table with `SCHEMA`; `from_table` gives them back."""
    columns = {
        "id": [r.id for r in records],
        "source": [r.source for r in records],
        "weight": [r.weight for r in records],
        "kinds": [sorted(r.kinds) for r in records],
        "record": [r.to_json() for r in records],
    }
    return pa.table(columns, schema=SCHEMA)


def from_table(table: pa.Table) -> list[Record]:
    """The records of an Arrow table written by `to_table`."""
    return [Record.from_json(line) for line in table.column("record").to_pylist()]


def explain(error: ValidationError, file: str | None = None, line: int | None = None) -> RecordError:
    """A pydantic error as one sentence: field, fault, place. The deepest of several says most."""
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    kinds = ("str", "tuple[Message, ...]")  # a prompt is one or the other; the user knows no such field
    field = ".".join(str(part) for part in first["loc"] if part not in kinds) or None
    what = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        what = "this field is not part of a record"
    return RecordError(what + more, file=file, line=line, field=field)
