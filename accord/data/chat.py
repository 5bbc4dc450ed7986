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
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


# A model without a template gets messages as the transcripts that base models have seen; strings stay as they are.
PLAIN = {"system": "{}", "developer": "{}", "user": "\n\nHuman: {}", "assistant": "\n\nAssistant: {}", "tool": "\n\nTool: {}"}
PLAIN_OPENING = "\n\nAssistant:"


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
        return "the model has no chat template: text prompts stay as they are, messages become Human/Assistant transcripts"

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
        return "".join(PLAIN[m.role].format(m.content or "") for m in messages) + (PLAIN_OPENING if opening else "")

    def _context_text(self, record: Record, messages: Seq[Message]) -> str:
        if isinstance(record.prompt, str) and not self.has_template and list(messages) == list(record.messages):
            return record.prompt
        return self.render(messages, record.tools, opening=True)

    def _end_of_turn(self) -> int | None:
        """The token that the template writes after an assistant's turn; else the tokenizer's end token."""
        if self.has_template:
            marker = "zqxj"
            try:
                text = self.render(
                    [Message(role="user", content="a"), Message(role="assistant", content=marker)], opening=False
                )
            except Exception:  # a template may refuse this conversation; it is asked about real ones later
                return self.tokenizer.eos_token_id
            tail = self._ids(text[text.rfind(marker) + len(marker) :])
            special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
            for token in tail:
                if token in special:
                    return token
        return self.tokenizer.eos_token_id

    # -- tokens -------------------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _context_ids(self, text: str) -> list[int]:
        """Ids of a context; the beginning-of-text token stands once, whether template or tokenizer writes it."""
        bos = self.tokenizer.bos_token_id
        ids = self._ids(text) if self.has_template else self.tokenizer(text)["input_ids"]
        eos = self.tokenizer.eos_token_id
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
        ids = self._context_ids(self._context_text(record, messages))
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

    def _response(
        self, record: Record, messages: Seq[Message], response: Response, context: str, context_ids: list[int]
    ) -> tuple[list[int], list[bool]]:
        """Ids and mask of one response, uncut."""
        if response.token_ids is not None and response.tokenizer == self.key:
            ids = list(response.token_ids)
            if response.finish != "length" and self.end_id is not None and (not ids or ids[-1] not in self.stop_ids):
                ids.append(self.end_id)
            return ids, [True] * len(ids)
        if response.messages is not None and len(response.messages) > 1:
            return self._turns(record, messages, response, context, context_ids)
        turn = response.messages[0] if response.messages else Message(role="assistant", content=response.plain_text)
        ids = self._tail_ids(context, context_ids, self._spoken(record, messages, turn, context))
        if response.finish != "length" and self.end_id is not None:
            ids = [*ids, self.end_id]
        return ids, [True] * len(ids)

    def _spoken(self, record: Record, messages: Seq[Message], turn: Message, context: str) -> str:
        """What stands between the context and the end of the turn: the words as the template shows them."""
        text = str(turn.content or "")
        if not self.has_template:
            return " " + text if context.endswith(PLAIN_OPENING) and not text.startswith((" ", "\n")) else text
        whole = self.render([*messages, turn], record.tools, opening=False)
        if not whole.startswith(context):
            return text  # the template writes something else before an answer than before asking for one
        shown = whole[len(context) :]
        end = self.tokenizer.convert_ids_to_tokens(self.end_id) if self.end_id is not None else None
        if end and end in shown:
            return shown[: shown.rfind(end)]
        at = shown.rfind(text.strip())
        return shown[: at + len(text.strip())] if text.strip() and at >= 0 else shown

    def _turns(
        self, record: Record, messages: Seq[Message], response: Response, context: str, context_ids: list[int]
    ) -> tuple[list[int], list[bool]]:
        """Several turns: assistant turns are trained with their end token, what stands between them is not."""
        ids: list[int] = []
        trained: list[bool] = []
        history, seen = list(messages), context
        turns = list(response.messages or ())
        last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
        for number, turn in enumerate(turns[: last + 1]):
            if turn.role == "assistant":
                opened = self.render(history, record.tools, opening=True) if ids else context
                if not opened.startswith(seen):
                    raise RecordError(
                        "the template rewrites earlier turns, so this dialogue is not one sequence",
                        file=record.origin.file if record.origin else None,
                        line=record.origin.line if record.origin else None,
                        remedy="give one record for each assistant turn",
                    )
                spoken = self._spoken(record, history, turn, opened)
                if ids:
                    between = self._piece(opened[len(seen) :])
                    if self.end_id is not None and between[:1] == [self.end_id]:
                        between = between[1:]  # the end token of the turn before is trained with that turn
                    ids += between
                    trained += [False] * len(between)
                own = self._piece(spoken) if ids else self._tail_ids(context, context_ids, spoken)
                if self.end_id is not None and (number < last or response.finish != "length"):
                    own = [*own, self.end_id]
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
        context = self._context_text(record, messages)
        context_ids = self._context_ids(context)
        made = [
            self._response(record, messages, record.responses[b.response], context, context_ids) for b in branches
        ]
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

    def _cut_context(self, record: Record, messages: list[Message], ids: list[int], room: int) -> list[int]:
        """Oldest turns first (a system message stays), then oldest tokens; the first token stays if it is a bos."""
        fixed = [m for m in messages[:1] if m.role in ("system", "developer")]
        turns = messages[len(fixed) :]
        while len(ids) > room and len(turns) > 1:
            turns = turns[1:]
            while len(turns) > 1 and turns[0].role != "user":
                turns = turns[1:]
            ids = self._context_ids(self._context_text(record, [*fixed, *turns]))
        if len(ids) > room:
            keep_bos = ids[0] == self.tokenizer.bos_token_id and room > 1
            ids = [ids[0], *ids[-(room - 1) :]] if keep_bos else ids[-room:]
        return ids

    def _sequence(self, context: list[int], ids: list[int], trained: list[bool], *, cut: bool = False) -> Sequence:
        return Sequence(
            np.asarray(context, np.int32), np.asarray(ids, np.int32), np.asarray(trained, bool), cut
        )
