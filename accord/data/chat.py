"""Which tokens are the prompt, which the response? The only place that knows chat templates.

The context (the prompt as the model sees it before it answers) is tokenised once and on its own, so its ids are a
prefix of every sequence by construction. A response's ids follow; the end-of-turn token is trained exactly when the
response ended. Masks are made here and carried; nobody guesses them from values later.

Example:
    a model with a template renders [user "Hi"] and the answer "Hello" as
    `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n` (context) and `Hello<|im_end|>` (trained).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from accord.data.records import Message, Record, Response
from accord.data.views import Branch, Counts
from accord.errors import ConfigError, RecordError


@dataclass(frozen=True, eq=False)
class Sequence:
    """One branch as tokens. context [P], ids [R], trained [R] (True where a token's log-prob counts)."""

    context: np.ndarray
    ids: np.ndarray
    trained: np.ndarray
    cut: bool = False

    @property
    def key(self) -> bytes:
        """Identity of the tokens: what a cached log-prob belongs to."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.context, self.ids, self.trained.astype(np.int32)):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(part, dtype=np.int32).tobytes())
        return digest.digest()


def tokenizer_key(tokenizer: Any) -> str:
    """Identity of a tokenizer, made from its vocabulary and rules: token ids carry it with them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    text = text[max(text.find('"added_tokens"'), 0) :]  # before it stand cutting and padding as they were last used
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


# A model without a template gets messages as the transcripts that base models have seen; strings stay as they are.
PLAIN = {"system": "", "developer": "", "user": "\n\nHuman: ", "assistant": "\n\nAssistant:", "tool": "\n\nTool: "}


def words(message: Message) -> str:
    """The text of a message; of content in parts, the parts that are text."""
    if isinstance(message.content, list):
        return "".join(str(part.get("text") or "") for part in message.content)
    return message.content or ""


def _after(context: str, text: str) -> str:
    """An answer as it follows a transcript: with a space after `Assistant:`, unless it begins with white space."""
    return " " + text if context.endswith(PLAIN["assistant"]) and text[:1] not in (" ", "\n") else text


@dataclass
class Chat:
    """Turns records into tokens for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer; its chat template is used where it has one.
        max_length: longest sequence in tokens, context and response together.
        overlong: `cut` drops the oldest turns, then the oldest tokens of the context (never its last turn's end), and
            cuts what remains too long at the end of the response, which then trains no end token; all responses of a
            prompt keep the same context. `drop` leaves the whole record out. Both are counted.
        stop_ids: ids that end a response; by default the tokenizer's end token and the template's end of turn.
    """

    tokenizer: Any
    max_length: int = 1024
    overlong: Literal["cut", "drop"] = "cut"
    stop_ids: tuple[int, ...] = ()
    template: str | None = None
    key: str = field(init=False)
    end_id: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise ConfigError(f"max_length={self.max_length} leaves no room for a prompt and an answer; use 8 or more")
        if self.template is not None:
            self.tokenizer.chat_template = self.template
        self.key = tokenizer_key(self.tokenizer)
        self.end_id = self._end_of_turn()
        known = [i for i in (self.end_id, self.tokenizer.eos_token_id, *self.stop_ids) if i is not None]
        self.stop_ids = tuple(dict.fromkeys(known))

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def told(self) -> str:
        """How prompts are rendered, in one line for the user."""
        if self.has_template:
            return "prompts are rendered with the model's chat template"
        return "the model has no chat template: texts stay as they are, messages become Human/Assistant transcripts"

    # -- text ---------------------------------------------------------------------------------------------------------

    def render(self, messages: Seq[Message], tools: Any = None, *, opening: bool) -> str:
        """Messages as text; with `opening`, up to where the assistant starts to speak."""
        if self.has_template:
            return self.tokenizer.apply_chat_template(
                [m.plain() for m in messages],
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=opening,
            )
        turns = [PLAIN[m.role] + _after(PLAIN[m.role], words(m)) for m in messages]
        return "".join(turns) + (PLAIN["assistant"] if opening else "")

    def _render(self, record: Record, messages: Seq[Message], *, opening: bool) -> str:
        """The same for messages of a record; a text prompt stays as it is where there is no template."""
        if not self.has_template and isinstance(record.prompt, str) and tuple(messages[:1]) == record.messages:
            text, later = record.prompt, messages[1:]
            if later and later[0].role == "assistant":
                text, later = text + _after(text, words(later[0])), later[1:]
            return text + self.render(later, opening=opening and len(messages) > 1)
        try:
            return self.render(messages, record.tools, opening=opening)
        except (TemplateError, TypeError, ValueError) as error:
            raise RecordError(
                f"the chat template refuses these turns ({', '.join(m.role for m in messages)}): {error}",
                file=record.origin.file if record.origin else None,
                line=record.origin.line if record.origin else None,
                remedy="Mend the record, or give another chat_template",
            ) from error

    def _end_of_turn(self) -> int | None:
        """The token that the template writes after an assistant's turn; else the tokenizer's end token."""
        if self.has_template:
            marker = "zqxj"
            try:
                text = self.render(
                    [Message(role="user", content="a"), Message(role="assistant", content=marker)], opening=False
                )
            except TemplateSyntaxError as error:
                raise ConfigError(f"chat_template, line {error.lineno}: {error.message}") from error
            except (TemplateError, TypeError, ValueError):  # it refuses this one; it is asked about real ones later
                return self.tokenizer.eos_token_id
            tail = self._ids(text[text.rfind(marker) + len(marker) :])
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
            for token in tail:
                if token in special:
                    return token
        return self.tokenizer.eos_token_id

    # -- tokens -------------------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _context_ids(self, text: str) -> list[int]:
        """Ids of a context; the beginning-of-text token stands once, whether template or tokenizer writes it."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        ids = self._ids(text) if self.has_template else self.tokenizer(text, verbose=False)["input_ids"]
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]  # a text that brings its own
        if not self.has_template and ids and eos is not None and ids[-1] == eos and eos != bos:
            ids = ids[:-1]  # some tokenizers close every text; a prompt is not closed
        if not ids:
            opener = bos if bos is not None else eos
            if opener is None:
                raise ConfigError("an empty prompt needs a tokenizer with a bos or eos token")
            ids = [opener]
        return ids

    def context_ids(self, record: Record) -> list[int]:
        """The prompt as the model sees it before it answers, at most `max_length` - 1 tokens."""
        messages = list(record.messages)
        ids = self._context_ids(self._render(record, messages, opening=True))
        room = self.max_length - 1
        return ids if len(ids) <= room else self._cut_context(record, messages, ids, room)

    def _tail_ids(self, context: str, context_ids: list[int], tail: str) -> list[int]:
        """Ids of what follows the context: as the tokenizer splits the whole, if that keeps the context's ids."""
        whole = self._ids(context + tail) if self.has_template else self._context_ids(context + tail)
        return whole[len(context_ids) :] if whole[: len(context_ids)] == context_ids else self._piece(tail)

    def _piece(self, text: str) -> list[int]:
        """Ids of a text that stands after others: a newline in front keeps a tokenizer from adding a space."""
        newline, behind = self._ids("\n"), self._ids("\n" + text)
        return behind[len(newline) :] if behind[: len(newline)] == newline else self._ids(text)

    def _ended(self, ids: list[int], ended: bool) -> list[int]:
        """Ids with one end token after them if the turn ended, and none if it did not, whatever the text brought."""
        while ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        return [*ids, self.end_id] if ended and self.end_id is not None else ids

    def _response(
        self, record: Record, messages: Seq[Message], response: Response, context: str, context_ids: list[int]
    ) -> tuple[list[int], list[bool]] | None:
        """Ids and mask of one response, uncut; None if the template does not show its turns as one sequence."""
        ended = response.finish != "length"
        if response.token_ids is not None and response.tokenizer == self.key:
            ids = list(response.token_ids)
            trained = list(response.trained or [True] * len(ids))
            if ended and self.end_id is not None and (not ids or ids[-1] not in self.stop_ids):
                ids.append(self.end_id)
                trained.append(True)
            return ids, trained
        if response.messages is not None and len(response.messages) > 1:
            return self._turns(record, messages, response, context, context_ids)
        turn = response.messages[0] if response.messages else Message(role="assistant", content=response.plain_text)
        ids = self._tail_ids(context, context_ids, self._spoken(record, messages, turn, context))
        ids = self._ended(ids, ended)
        return ids, [True] * len(ids)

    def _spoken(self, record: Record, messages: Seq[Message], turn: Message, context: str) -> str:
        """What stands between the context and the end of the turn: the words as the template shows them."""
        text = words(turn)
        if not self.has_template:
            return _after(context, text)
        whole = self._render(record, [*messages, turn], opening=False)
        if not whole.startswith(context):  # the template shows an answer otherwise than it asks for one
            both = (n for n in range(len(text), 0, -1) if context.endswith(text[:n]) and text[:n].strip())
            return text[next(both, 0) :]  # a block of thoughts that the context has opened is not opened again
        shown = whole[len(context) :]
        end = self.tokenizer.convert_ids_to_tokens(self.end_id) if self.end_id is not None else None
        if end and end in shown:
            return shown[: shown.rfind(end)]
        at = shown.rfind(text.strip())
        return shown[: at + len(text.strip())] if text.strip() and at >= 0 else shown

    def _turns(
        self, record: Record, messages: Seq[Message], response: Response, context: str, context_ids: list[int]
    ) -> tuple[list[int], list[bool]] | None:
        """Several turns: assistant turns are trained with their end token, what stands between them is not."""
        ids: list[int] = []
        trained: list[bool] = []
        history, seen = list(messages), context
        turns = response.messages or ()
        last = _last(turns)
        for number, turn in enumerate(turns[: last + 1]):
            if turn.role == "assistant":
                opened = self._render(record, history, opening=True) if number else context
                if not opened.startswith(seen):
                    return None
                spoken = self._spoken(record, history, turn, opened)
                if ids:
                    between = self._piece(opened[len(seen) :])
                    if between[:1] == [self.end_id]:
                        between = between[1:]  # the end token of the turn before is trained with that turn
                    ids += between
                    trained += [False] * len(between)
                own = self._piece(spoken) if ids else self._tail_ids(context, context_ids, spoken)
                own = self._ended(own, number < last or response.finish != "length")
                ids += own
                trained += [True] * len(own)
                seen = opened + spoken
            history.append(turn)
        return ids, trained

    def encode(self, record: Record, branches: Seq[Branch], counts: Counts) -> list[Sequence] | None:
        """The branches of one record under one context, as tokens, cut together; None if the record is left out.

        Every branch must have the same `context`. What is cut or dropped is added to `counts`.
        """
        messages = list(branches[0].context or record.messages)
        responses = [record.responses[b.response] for b in branches]
        found = self._under(record, messages, responses)
        if found is None:  # a template that rewrites earlier turns shows the last turn alone as it will be asked for
            before, responses = map(list, zip(*map(_parted, responses), strict=True))
            if any(b != before[0] for b in before):
                counts.add("dropped: the template rewrites earlier turns, and the responses differ in them", record)
                return None
            counts.add("trained on the last turn alone: the template rewrites earlier turns", record)
            messages += before[0]
            found = self._under(record, messages, responses)
            assert found is not None
        context_ids, made = found
        if any(not any(trained) for _, trained in made):
            counts.add("dropped: a response without a token to train", record)
            return None
        longest = max(len(ids) for ids, _ in made)
        if len(context_ids) + longest <= self.max_length:
            return [self._sequence(context_ids, ids, trained) for ids, trained in made]
        if self.overlong == "drop":
            counts.add(f"dropped: longer than max_length={self.max_length}", record)
            return None
        counts.add(f"cut to max_length={self.max_length}", record)
        room = max(self.max_length - longest, self.max_length // 2)
        context_ids = self._cut_context(record, messages, context_ids, room)
        left = self.max_length - len(context_ids)
        if any(not any(trained[:left]) for _, trained in made):
            counts.add("dropped: nothing left to train after cutting", record)
            return None
        return [self._sequence(context_ids, ids[:left], trained[:left], cut=len(ids) > left) for ids, trained in made]

    def _under(
        self, record: Record, messages: Seq[Message], responses: Seq[Response]
    ) -> tuple[list[int], list[tuple[list[int], list[bool]]]] | None:
        """The ids of a context, and ids and mask of every response under it."""
        context = self._render(record, messages, opening=True)
        context_ids = self._context_ids(context)
        made = [self._response(record, messages, r, context, context_ids) for r in responses]
        whole = [m for m in made if m is not None]
        return (context_ids, whole) if len(whole) == len(made) else None

    def _cut_context(self, record: Record, messages: list[Message], ids: list[int], room: int) -> list[int]:
        """Oldest turns first (a system message stays), then oldest tokens; the first token stays if it is a bos."""
        fixed = [m for m in messages[:1] if m.role in ("system", "developer")]
        turns = messages[len(fixed) :]
        while len(ids) > room and len(turns) > 1:
            turns = turns[1:]
            while len(turns) > 1 and turns[0].role != "user":
                turns = turns[1:]
            try:
                ids = self._context_ids(self._render(record, [*fixed, *turns], opening=True))
            except RecordError:  # a dialogue that the template refuses without its beginning
                break
        if len(ids) > room:
            keep_bos = ids[0] == self.tokenizer.bos_token_id and room > 1
            ids = [ids[0], *ids[-(room - 1) :]] if keep_bos else ids[-room:]
        return ids

    def _sequence(self, context: list[int], ids: list[int], trained: list[bool], *, cut: bool = False) -> Sequence:
        return Sequence(np.asarray(context, np.int32), np.asarray(ids, np.int32), np.asarray(trained, bool), cut)


def _last(turns: Seq[Message]) -> int:
    """Place of the last assistant turn."""
    return max(i for i, turn in enumerate(turns) if turn.role == "assistant")


def _parted(response: Response) -> tuple[tuple[Message, ...], Response]:
    """The turns before the last assistant turn, and a response of that turn alone."""
    if response.messages is None:
        return (), response
    last = _last(response.messages)
    return response.messages[:last], response.model_copy(update={"messages": response.messages[last : last + 1]})
