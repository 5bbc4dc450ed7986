"""What would another model make of an answer? Its revision, which stands beside the answer that it revises."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from accord.data.records import Message, Record, Response
from accord.endpoint import Failure
from accord.errors import AccordError


def questions(records: Seq[Record], request: str) -> list[Record]:
    """For each response of the records, one after another: the dialogue with it, and the request to revise it.

    >>> (asked,) = questions([Record(prompt="2+2?", responses=[{"text": "5"}])], "Improve your answer.")
    >>> [(m.role, m.content) for m in asked.messages]
    [('user', '2+2?'), ('assistant', '5'), ('user', 'Improve your answer.')]
    """
    made = []
    for record in records:
        for response in record.responses:
            turns = response.messages or (Message(role="assistant", content=response.text),)
            prompt = (*record.messages, *turns, Message(role="user", content=request))
            made.append(Record(prompt=prompt, tools=record.tools, source=record.source))
    if not made:
        raise AccordError("none of the records has a response, so there is nothing to revise; sample some first")
    return made


def beside(records: Seq[Record], answers: Seq[list[Response] | Failure]) -> list[Record]:
    """The records with the revisions behind their responses (`revised_from`); what was said of these stays.

    A record none of whose responses was revised is left out.
    """
    made, left = [], iter(answers)
    for record in records:
        new = [
            revision.model_copy(update={"revised_from": i})
            for i, found in zip(range(len(record.responses)), left, strict=False)
            if not isinstance(found, Failure)
            for revision in found
        ]
        if new:
            made.append(Record(**{**dict(record), "responses": (*record.responses, *new)}))
    return made
