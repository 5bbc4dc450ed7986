"""What is a model asked that says which of two answers is better, and what does it answer?

The words stand here once: a judge asks them (`accord.judges.own`), and training teaches them (`view.verdict`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Sequence as Seq

from accord.data.records import Message, words
from accord.errors import ConfigError

FIRST, SECOND = "A", "B"
PLACES = re.compile(r"\{(\w+)\}")
QUESTION = """Which of two answers to a request is better?

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Say A or B alone."""


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its places filled, each once: what stands in a value is never taken for a place.

    >>> filled("{prompt}: {first}", {"prompt": "{first}", "first": "Ho"})
    '{first}: Ho'
    """
    return PLACES.sub(lambda place: values.get(place[1], place[0]), text)


def read(question: bool | str) -> str:
    """The question that a setting names; True is Accord's own.

    Raises:
        ConfigError: it has no place for the prompt, or for one of the answers.
    """
    text = QUESTION if question is True else str(question)
    if missing := {"prompt", "first", "second"} - set(PLACES.findall(text)):
        raise ConfigError(f"the question about two answers has no place {{{min(missing)}}}; write it into the text")
    return text


def dialogue(messages: Seq[Message]) -> str:
    """A prompt as text: a single turn of the user's alone, several with their roles.

    >>> dialogue([Message(role="system", content="Be brief."), Message(role="user", content="Hi")])
    'system: Be brief.\\n\\nuser: Hi'
    """
    if len(messages) == 1 and messages[0].role == "user":
        return words(messages[0])
    return "\n\n".join(f"{m.role}: {words(m)}" for m in messages)


def asked(messages: Seq[Message], first: str, second: str, question: str = QUESTION) -> tuple[Message, ...]:
    """The prompt that asks which of two answers is better."""
    return (
        Message(
            role="user", content=filled(question, {"prompt": dialogue(messages), "first": first, "second": second})
        ),
    )
