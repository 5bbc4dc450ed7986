"""What does it say to me? A dialogue with a policy that can be kept as a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from accord.data.chat import Chat
from accord.data.records import Message, Record, Response
from accord.engine.models import Policy
from accord.sampling.local import answer

COMMANDS = ("/reset", "/system TEXT", "/save FILE", "/quit")


@dataclass
class Talk:
    """The turns so far; each answer is sampled after all of them, with a seed of its own.

    system: what stands before the dialogue. seed: the same words with the same seed get the same answers.
    """

    policy: Policy
    chat: Chat
    system: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int = 0
    turns: list[tuple[str, Response]] = field(default_factory=list)
    saved: int = 0

    def messages(self, asked: str | None = None, upto: int | None = None) -> tuple[Message, ...]:
        """System, the first `upto` turns (all without it), and a new question."""
        said = [Message(role="system", content=self.system)] if self.system else []
        for question, response in self.turns[:upto]:
            said += [
                Message(role="user", content=question), Message(role="assistant", content=response.plain_text),
            ]  # fmt: skip
        return (*said, Message(role="user", content=asked)) if asked is not None else tuple(said)

    def ask(self, question: str, stream: Callable[[str], None] | None = None) -> Response:
        """The answer, which becomes part of the dialogue; `stream` gets its words as they come."""
        ((response,),) = answer(
            self.policy, self.chat, [Record(prompt=self.messages(question))], max_new_tokens=self.max_new_tokens,
            temperature=self.temperature, top_p=self.top_p, seed=self.seed + len(self.turns), stream=stream,
        )  # fmt: skip
        self.turns.append((question, response))
        return response

    def reset(self) -> None:
        """Forgets every turn; the system message stays."""
        self.turns.clear()
        self.saved = 0

    def save(self, path: Path) -> int:
        """Adds a record for each answer since the last time, with token ids and sampler, to a JSONL file; how many."""
        records = [
            Record(prompt=self.messages(question, i), responses=(response,), source="chat")
            for i, (question, response) in enumerate(self.turns)
        ][self.saved :]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.writelines(r.to_json() + "\n" for r in records)
        self.saved = len(self.turns)
        return len(records)

    def converse(self, lines: Iterable[str], write: Callable[[str], None], note: Callable[[str], None]) -> None:
        """Answers each line until they end; lines that begin with / are commands.

        Args:
            write: gets the words of answers as they come, and a newline after each answer.
            note: gets what is said about the dialogue.
        """
        for line in (raw.strip() for raw in lines):
            if line.startswith("/"):
                word, _, rest = line.partition(" ")
                if word == "/quit":
                    return
                self._command(word, rest.strip(), note)
            elif line:
                before = len(self.turns)
                if self._cut(line):
                    note(f"(longer than {self.chat.max_length} tokens by now: the oldest turns are cut off)")
                try:
                    self.ask(line, write)
                except KeyboardInterrupt:
                    del self.turns[before:]
                    note("\nstopped; this turn is forgotten")
                    continue
                write("\n")

    def _cut(self, question: str) -> bool:
        record = Record(prompt=self.messages(question))
        whole = replace(self.chat, max_length=1 << 30).context_ids(record)
        return len(whole) > len(self.chat.context_ids(record))

    def _command(self, word: str, rest: str, note: Callable[[str], None]) -> None:
        if word == "/reset":
            self.reset()
            note("all turns are forgotten")
        elif word == "/system":
            self.system = rest or None
            self.reset()
            note("a new dialogue" + (f" under: {rest}" if rest else " without a system message"))
        elif word == "/save" and rest:
            try:
                note(f"{self.save(Path(rest))} answers added to {rest}")
            except OSError as error:
                note(f"{rest}: {error.strerror}")
        else:
            note(f"{word} is no command; there are {', '.join(COMMANDS)}")
