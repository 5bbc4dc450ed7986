"""Which tokens are the prompt, which the response? The only place that knows chat templates.

The context (the prompt as the model sees it before it answers) is tokenised once and on its own, so its ids are a
prefix of every sequence by construction. A response's ids follow; the end-of-turn token is trained exactly when the
response ended. Masks are made here and carried; nobody guesses them from values later.

A model reads what its template shows, so a response of several turns is one sequence only if that is what the template
renders. Else (it removes the thoughts of earlier turns, or closes them otherwise than the last) each turn is a sequence
of its own, under the context that the model would see; together they are the response, and its log-prob is their sum.

Special tokens are the template's alone. A text of the data that spells one (`<|im_end|>` in a question) is read letter
by letter, as text, and counted; end tokens that close an answer's text are its end and stand once. Without a template,
texts are taken as they are, special tokens too.

Example:
    a model with a template renders [user "Hi"] and the answer "Hello" as
    `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n` (context) and `Hello<|im_end|>` (trained).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from accord.data.records import Message, Record, Response, words
from accord.data.views import Branch, Counts
from accord.errors import ConfigError, RecordError


@dataclass(frozen=True, eq=False)
class Sequence:
    """One branch as tokens.

    context [P], ids [R], trained [R] (True where a token's log-prob counts). old [R]: nats under whoever sampled the
    response, NaN where a token was not sampled (the end token that we add, tokens of others); None if nobody knows.
    later: the response's further turns, where a template that rewrites earlier turns gives each a context of its own.
    """

    context: np.ndarray
    ids: np.ndarray
    trained: np.ndarray
    cut: bool = False
    old: np.ndarray | None = None
    later: tuple[Sequence, ...] = ()

    @classmethod
    def of(cls, context: Seq[int], ids: Seq[int], trained: Seq[bool], old: Seq[float] | None = None) -> Sequence:
        """The same from lists; what is left out of `old` at its end was not sampled."""
        said = None if old is None else np.full(len(ids), np.nan, np.float32)
        if said is not None and old is not None:
            said[: len(old)] = np.where(trained[: len(old)], old, np.nan)
        return cls(np.asarray(context, np.int32), np.asarray(ids, np.int32), np.asarray(trained, bool), old=said)

    def fitted(self, context: Seq[int], room: int) -> Sequence:
        """The response under a shorter context, cut after `room` tokens."""
        old = None if self.old is None else self.old[:room]
        new = np.asarray(context, np.int32)
        return Sequence(new, self.ids[:room], self.trained[:room], len(self.ids) > room, old)

    def followed(self, ids: Seq[int]) -> Sequence:
        """The same with more tokens at its end, which are not trained."""
        more = len(ids)
        old = None if self.old is None else np.append(self.old, np.full(more, np.nan, np.float32))
        whole = np.append(self.ids, np.asarray(ids, np.int32))
        return replace(self, ids=whole, trained=np.append(self.trained, np.zeros(more, bool)), old=old)

    @property
    def key(self) -> bytes:
        """Identity of the tokens, without `later`: what a cached log-prob belongs to."""
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

# Ends that no probe finds: Llama 3.1 writes them after calls of its built-in tools, and expects to be answered.
OTHER_ENDS = ("<|eom_id|>", "<|eom|>")
# A special token that a text spells is held apart as a number between these while the template renders the text.
OPEN, CLOSE = "\u2045", "\u2046"
APART = re.compile(f"{OPEN}([0-9]+){CLOSE}")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields of a message, beside its content
NO_CALLS = "the template does not show tool calls: they are not trained"
CALL = {"id": "callzqxj1", "type": "function", "function": {"name": "zqxj", "arguments": {"a": 1}}}


def _after(context: str, text: str) -> str:
    """An answer as it follows a transcript: with a space after `Assistant:`, unless it begins with white space."""
    return " " + text if context.endswith(PLAIN["assistant"]) and text[:1] not in (" ", "\n") else text


_Turn = tuple[list[Message], Sequence]  # what was said before a sequence, and the sequence


@dataclass
class Chat:
    """Turns records into tokens for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer; its chat template is used where it has one.
        max_length: longest sequence in tokens, context and response together.
        overlong: `cut` drops the oldest turns, then the oldest tokens of the context (never its last turn's end), and
            cuts what remains too long at the end of the response, which then trains no end token; all responses of a
            prompt keep the same context. `drop` leaves the whole record out. Both are counted.
        stop_ids: ids that end a response, beside the tokenizer's end token and what the template writes at the end of
            a turn or of a tool call.
        closed: what the template writes behind the end token of a finished dialogue stands at the end of a response too
            and is not trained: its last token is then the last one of the whole dialogue as the template renders it.
    """

    tokenizer: Any
    max_length: int = 1024
    overlong: Literal["cut", "drop"] = "cut"
    stop_ids: tuple[int, ...] = ()
    template: str | None = None
    closed: bool = False
    key: str = field(init=False)
    end_id: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.max_length < 8:
            raise ConfigError(f"max_length={self.max_length} leaves no room for a prompt and an answer; use 8 or more")
        if self.template is not None:
            self.tokenizer.chat_template = _template(self.template)
        self.key = tokenizer_key(self.tokenizer)
        self._added = {str(token): i for i, token in self.tokenizer.added_tokens_decoder.items()}
        self.end_id, calls_end = self._ends()
        others = (self._added.get(name) for name in OTHER_ENDS)
        known = [self.end_id, self.tokenizer.eos_token_id, *self.stop_ids, calls_end, *others]
        self.stop_ids = tuple(dict.fromkeys(i for i in known if i is not None))
        ends = {str(self.tokenizer.convert_ids_to_tokens(i)): i for i in self.stop_ids}
        self._stops = ends
        self._stop = re.compile("|".join(map(re.escape, ends)) or "(?!)")
        self._closing = re.compile(rf"(?:(?:{self._stop.pattern})\s*)+\Z")
        special = {str(t) for t in self.tokenizer.added_tokens_decoder.values() if t.special} | set(ends)
        special |= set(self.tokenizer.all_special_tokens)
        self._special = [OPEN, *sorted(filter(str.strip, special), key=len, reverse=True)]
        self._spelled = re.compile("|".join(map(re.escape, self._special)))
        self._letters: dict[int, list[int]] = {}
        self._behind = self._behind_end() if self.closed else []

    @property
    def has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def told(self) -> str:
        """How prompts are rendered, in one line for the user."""
        endless = "" if self.end_id is not None else "; no end of an answer is trained: the tokenizer has no eos_token"
        if self.has_template:
            return "prompts are rendered with the model's chat template" + endless
        how = "texts stay as they are, messages become Human/Assistant transcripts"
        return f"the model has no chat template: {how}{endless}"

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
            lacks = re.search("'([a-z]+_token)' is undefined", str(error))
            raise RecordError(
                f"the chat template refuses these turns ({', '.join(m.role for m in messages)}): {error}",
                file=record.origin.file if record.origin else None,
                line=record.origin.line if record.origin else None,
                remedy=(f"Give the tokenizer a {lacks[1]}" if lacks else "Mend the record")
                + ", or give another chat_template",
            ) from error

    def _ends(self) -> tuple[int | None, int | None]:
        """The tokens that the template writes after an assistant's words, and after its tool calls."""
        if not self.has_template:
            return self.tokenizer.eos_token_id, None
        after_words = self._tail([Message(role="assistant", content="zqxj")])
        calls = Message(role="assistant", content="", tool_calls=[CALL])  # type: ignore[call-arg]
        return next(iter(after_words), self.tokenizer.eos_token_id), next(reversed(self._tail([calls])), None)

    def _behind_end(self) -> list[int]:
        """What the template writes behind the end token of an answer, like the newline of ChatML."""
        if not self.has_template or self.end_id is None:
            return []
        turns = [Message(role="user", content="a"), Message(role="assistant", content="zqxj")]
        try:
            ids = self._ids(self.render(turns, opening=False).rpartition("zqxj")[2])
        except (TemplateError, TypeError, ValueError):  # it refuses these, as in `_tail`
            return []
        return ids[ids.index(self.end_id) + 1 :] if self.end_id in ids else []

    def _tail(self, turns: list[Message]) -> list[int]:
        """The special tokens that the template writes behind the last `zqxj` of these turns."""
        try:
            text = self.render([Message(role="user", content="a"), *turns], opening=False)
        except TemplateSyntaxError as error:
            raise ConfigError(f"chat_template, line {error.lineno}: {error.message}") from error
        except (TemplateError, TypeError, ValueError):  # it refuses these; it is asked about real ones later
            return []
        special = set(self.tokenizer.all_special_ids) | set(self._added.values())
        _, found, behind = text.rpartition("zqxj")
        return [i for i in self._ids(behind) if i in special] if found else []

    # -- special tokens that texts spell ------------------------------------------------------------------------------

    def _read(self, record: Record, counts: Counts) -> Record:
        """The record with special tokens that its texts spell held apart, so that no template sees them."""
        everything = (record.prompt, record.tools, [(r.text, r.messages) for r in record.responses])
        if not self.has_template or not any(self._spelled.search(text) for text in _strings(everything)):
            return record
        found: dict[str, None] = {}

        def apart(value: Any) -> Any:
            if isinstance(value, str):
                found.update(dict.fromkeys(self._spelled.findall(value)))
                return self._spelled.sub(lambda m: f"{OPEN}{self._special.index(m[0])}{CLOSE}", value)
            if isinstance(value, dict):
                return {apart(k): apart(v) for k, v in value.items()}
            return [apart(v) for v in value] if isinstance(value, list | tuple) else value

        def turn(message: Message) -> Message:
            plain = message.model_dump(exclude_none=True)
            if message.role == "assistant" and isinstance(message.content, str):
                plain["content"] = closed(message.content)
            return Message(**{k: v if k == "role" else apart(v) for k, v in plain.items()})

        def closed(text: str) -> str:
            kept = self._closing.sub("", text)
            if kept != text:
                counts.add("an end token that closed an answer's text stands once", record)
            return kept

        responses = []
        for r in record.responses:
            said = {"text": apart(closed(r.text))} if r.text is not None else {}
            turns = {"messages": tuple(map(turn, r.messages))} if r.messages is not None else {}
            responses.append(r.model_copy(update={**said, **turns}))
        prompt = apart(record.prompt) if isinstance(record.prompt, str) else tuple(map(turn, record.prompt))
        tools = tuple(apart(record.tools)) if record.tools is not None else None
        for token in found:
            if token != OPEN:
                how = "the token, for this tokenizer cannot spell it" if self._is_itself(token) else "text"
                counts.add(f"a text spells the special token {token}: read as {how}", record)
        return record.model_copy(update={"prompt": prompt, "responses": tuple(responses), "tools": tools})

    def _is_itself(self, token: str) -> bool:
        """Whether the tokenizer can read the spelling of a special token as that token only."""
        return self.tokenizer.convert_tokens_to_ids(token) in self._spelling(self._special.index(token))

    def _spelling(self, number: int) -> list[int]:
        """The ids of a special token's letters."""
        if number not in self._letters:
            token = self._special[number]
            newline, behind, alone = (
                self.tokenizer(t, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
                for t in ("\n", "\n" + token, token)
            )
            self._letters[number] = behind[len(newline) :] if behind[: len(newline)] == newline else alone
        return self._letters[number]

    # -- tokens -------------------------------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        first, *rest = APART.split(text) if self.has_template and OPEN in text else [text]
        ids = self.tokenizer(first, add_special_tokens=False, verbose=False)["input_ids"]
        for number, behind in zip(rest[::2], rest[1::2], strict=True):
            ids = [*ids, *self._spelling(int(number)), *(self._piece(behind) if behind else [])]
        return ids

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
        record = self._read(record, Counts())
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

    def _ended(self, ids: list[int], end: int | None) -> list[int]:
        """Ids with the end token `end` after them, or with none, whatever the text brought."""
        while ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        return ids if end is None else [*ids, end]

    def _response(
        self, record: Record, messages: Seq[Message], response: Response, context: str, context_ids: list[int],
        notes: set[str],
    ) -> Sequence | None:  # fmt: skip
        """One response, uncut; None if the template does not show its turns as one sequence."""
        ended = response.finish != "length"
        if response.token_ids is not None and response.tokenizer == self.key:
            ids = list(response.token_ids)
            trained = list(response.trained or [True] * len(ids))
            if ended and self.end_id is not None and (not ids or ids[-1] not in self.stop_ids):
                ids.append(self.end_id)
                trained.append(True)
            return Sequence.of(context_ids, ids, trained, response.sampling_logprobs)
        if response.messages is not None and len(response.messages) > 1:
            return self._turns(record, messages, response, context, context_ids, notes)
        turn = response.messages[0] if response.messages else Message(role="assistant", content=response.plain_text)
        spoken, end, _ = self._spoken(record, messages, turn, context, notes)
        ids = self._tail_ids(context, context_ids, spoken)
        ids = self._ended(ids, end if ended else None)
        return Sequence.of(context_ids, ids, [self._learns(turn, spoken, notes)] * len(ids))

    @staticmethod
    def _learns(turn: Message, spoken: str, notes: set[str]) -> bool:
        """Whether a turn is trained: not if it is marked so, as OpenAI's and axolotl's files do, and not if it is calls
        of which nothing is shown: all that is left is its end, and the model would learn to fall silent."""
        if _called(turn) and not spoken.strip():
            notes.add(NO_CALLS)
            return False
        said = turn.model_extra or {}
        if said.get("weight") == 0 or said.get("train") is False:
            notes.add("a turn marked weight: 0 or train: false is not trained")
            return False
        return True

    def _spoken(
        self, record: Record, messages: Seq[Message], turn: Message, context: str, notes: set[str]
    ) -> tuple[str, int | None, str]:
        """What stands between the context and the end of the turn, the end token, and how the template shows that.

        What the template does to the words is added to `notes`.
        """
        text = words(turn)
        if not self.has_template:
            self._shows(record, messages, turn, context + text, notes)
            return _after(context, text), self.end_id, ""
        whole = self._render(record, [*messages, turn], opening=False)
        shown = whole[len(context) :] if whole.startswith(context) else ""
        stop = self._stop.search(shown)
        if stop:
            shown = shown[: stop.start()]
        elif text.strip() and (at := shown.rfind(text.strip())) >= 0:
            shown = shown[: at + len(text.strip())]
        self._shows(record, messages, turn, whole, notes)
        said, told = "".join(text.split()), "".join(shown.split())
        if whole.startswith(context) and (told == said or not said.endswith(told) or not said):
            return (shown, self._stops[stop[0]], stop[0]) if stop else (shown, self.end_id, "")
        # the template shows an answer otherwise than it asks for one, or leaves out its thoughts
        notes.add("trained as it was said: the template shows an answer otherwise than it asks for one")
        if context.rstrip().endswith("<think>") and "</think>" not in text:
            notes.add("the template opens thoughts, and the answer closes none: it is trained in their place")
        both = (n for n in range(len(text), 0, -1) if context.endswith(text[:n]) and text[:n].strip())
        return (
            text[next(both, 0) :],
            self.end_id,
            "",
        )  # a block of thoughts that the context has opened is not opened again

    def _shows(self, record: Record, messages: Seq[Message], turn: Message, whole: str, notes: set[str]) -> None:
        """Notes what a turn says beside its words, and `whole`, which ends with the turn, does not show."""
        said = turn.model_extra or {}
        if called := _called(turn):
            try:  # the names of tools may stand before the turn, too
                bare = self._render(record, [*messages, Message(role=turn.role, content=turn.content)], opening=False)
            except RecordError:  # it refuses a turn that says nothing
                bare = ""
            if any(whole.count(name) <= bare.count(name) for name in called):
                notes.add(NO_CALLS)
        for name in THOUGHTS:
            if isinstance(thought := said.get(name), str) and thought.strip() not in whole:
                notes.add(f"the template does not show {name}: it is not trained")

    def _turns(
        self, record: Record, messages: Seq[Message], response: Response, context: str, context_ids: list[int],
        notes: set[str],
    ) -> Sequence | None:  # fmt: skip
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
                between = self._piece(opened[len(seen) :]) if opened != seen else []
                spoken, end, shown = self._spoken(record, history, turn, opened, notes)
                if self.has_template and not shown and number < last:
                    return None  # what is asked after this turn does not show its end
                own = self._piece(spoken) if opened != context else self._tail_ids(context, context_ids, spoken)
                own = self._ended(own, end if number < last or response.finish != "length" else None)
                ids += between + own
                trained += [False] * len(between) + [self._learns(turn, spoken, notes)] * len(own)
                seen = opened + spoken + shown
            history.append(turn)
        return Sequence.of(context_ids, ids, trained)

    def encode(self, record: Record, branches: Seq[Branch], counts: Counts) -> list[Sequence] | None:
        """The branches of one record under one context, as tokens, cut together; None if the record is left out.

        Every branch must have the same `context`. What is cut or dropped is added to `counts`.
        """
        under = branches[0].context
        record = self._read(record if under is None else record.model_copy(update={"prompt": under}), counts)
        messages = list(record.messages)
        context = self._render(record, messages, opening=True)
        context_ids = self._context_ids(context)
        made: list[list[_Turn]] = []
        notes: set[str] = set()
        if record.tools and not all(name in context for name in _named(record.tools)):
            notes.add("the template does not show the tools")
        for response in (b.said(record) for b in branches):
            whole = self._response(record, messages, response, context, context_ids, notes)
            if whole is None:
                notes.add("a sequence a turn: the template shows earlier turns otherwise than they were said")
                apart = list(self._apart(record, messages, response, notes))
                made.append([turn for turn in apart if turn[1].trained.any()] or apart)
            else:
                made.append([(messages, whole)])
            if self._behind and response.finish != "length":
                history, last = made[-1][-1]
                made[-1][-1] = history, last.followed(self._behind)
        for note in sorted(notes):
            counts.add(note, record)
        if any(not s.trained.any() for turns in made for _, s in turns):
            counts.add("dropped: a response without a token to train", record)
            return None
        if any(len(s.context) + len(s.ids) > self.max_length for turns in made for _, s in turns):
            if self.overlong == "drop":
                counts.add(f"dropped: longer than max_length={self.max_length}", record)
                return None
            counts.add(f"cut to max_length={self.max_length}", record)
            made = self._cut(record, made)
            if any(not s.trained.any() for turns in made for _, s in turns):
                counts.add("dropped: nothing left to train after cutting", record)
                return None
        return [replace(turns[0][1], later=tuple(s for _, s in turns[1:])) for turns in made]

    def _apart(self, record: Record, messages: Seq[Message], response: Response, notes: set[str]) -> Iterator[_Turn]:
        """Each assistant turn of a response as it would be asked for, with the turns before it as its context."""
        turns = response.messages or ()
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                history = [*messages, *turns[:number]]
                context = self._render(record, history, opening=True)
                finish = response.finish if number == _last(turns) else "stop"
                alone = Response(messages=(turn,), finish=finish)
                sequence = self._response(record, history, alone, context, self._context_ids(context), notes)
                assert sequence is not None
                yield history, sequence

    def _cut(self, record: Record, made: list[list[_Turn]]) -> list[list[_Turn]]:
        """Everything cut to `max_length`; what had one context keeps one."""
        longest: dict[bytes, int] = {}
        for _, s in (turn for turns in made for turn in turns):
            longest[s.context.tobytes()] = max(len(s.ids), longest.get(s.context.tobytes(), 0))
        contexts: dict[bytes, list[int]] = {}

        def fitted(history: list[Message], s: Sequence) -> Sequence:
            key = s.context.tobytes()
            if key not in contexts:
                ids = s.context.tolist()
                room = max(self.max_length - longest[key], self.max_length // 2)
                short = len(ids) + longest[key] <= self.max_length
                contexts[key] = ids if short else self._cut_context(record, history, ids, room)
            return s.fitted(contexts[key], self.max_length - len(contexts[key]))

        return [[(history, fitted(history, s)) for history, s in turns] for turns in made]

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


def _template(given: str) -> str:
    """The text of a template, given as it is or as a file. A name of a file that is not there is no template."""
    if "{" in given or "\n" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"chat_template={given!r} has no braces, so it is no template, and as a file it cannot be read "
            f"({error.strerror}); give a template's text or its file"
        ) from error


def _strings(value: Any) -> Iterator[str]:
    """Every text in messages, tools, and lists of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield from _strings(value.__dict__ | (value.model_extra or {}))
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _named(functions: Any) -> list[str]:
    """The names of tools, or of calls of them; each is a function, or holds one."""
    inner = [f.get("function", f) for f in functions or () if isinstance(f, dict)]
    return [str(f["name"]) for f in inner if isinstance(f, dict) and "name" in f]


def _called(turn: Message) -> list[str]:
    """The names of the functions that a turn calls."""
    return _named((turn.model_extra or {}).get("tool_calls"))


def _last(turns: Seq[Message]) -> int:
    """Place of the last assistant turn."""
    return max(i for i, turn in enumerate(turns) if turn.role == "assistant")
