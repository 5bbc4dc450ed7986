"""Which examples were seen, and where do they stand in the data?

`examples/` holds every trained example, `held_out/` the held-out ones of each evaluation. Each row names file and line
of its record; the most and the least agreeing ones of a file of rows bring prompt and responses with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from accord.data.batches import Batch
from accord.data.records import Message, Record
from accord.sinks import write_examples
from accord.training.parallel import Processes
from accord.training.terms import Example

EXTREMES = 6  # of each term and end, in each file of rows
LONGEST = 600  # characters of a text that is written down with a row
RESPONSES = 10  # so many of a record


class Trail:
    """Rows of `examples/` and `held_out/` in a run folder.

    Args:
        folder: the run's.
        records, held: what indices in training and held-out batches mean.
    """

    def __init__(self, folder: Path, records: Sequence[Record], held: Sequence[Record], processes: Processes) -> None:
        self.folder, self.records, self.held, self.processes = folder, records, held, processes
        self.seen: list[tuple[int, Example]] = []
        self.numbers: set[int] = set()

    def add(self, step: int, batch: Batch, examples: Iterable[Example]) -> None:
        """Remembers what this process saw in a step; `batch` is that of all processes."""
        self.seen += [(step, e) for e in examples]
        self.numbers |= numbers_of([batch])

    def flush(self) -> None:
        """Writes what was seen since the last flush, by all processes."""
        seen, numbers, self.seen, self.numbers = self.seen, self.numbers, [], set()
        rows = sorted((x for part in self.processes.gather(seen) for x in part), key=lambda x: x[0])
        if self.processes.first and rows:
            name = f"steps-{rows[0][0]:07d}-{rows[-1][0]:07d}.parquet"
            write_examples(self.folder / "examples" / name, rows, described(rows, self.records, numbers))

    def evaluated(self, step: int, batches: Sequence[Batch], examples: Sequence[Example]) -> None:
        """Writes the held-out examples of an evaluation; they are alike in every process, and the first one calls."""
        rows = [(step, e) for e in examples]
        told = described(rows, self.held, numbers_of(batches))
        write_examples(self.folder / "held_out" / f"step-{step:07d}.parquet", rows, told)

    def cut(self, step: int) -> None:
        """Removes what was seen after `step`."""
        for folder in ("examples", "held_out"):
            for file in (self.folder / folder).glob("step*-*.parquet"):
                if int(file.stem.split("-")[1]) > step:
                    file.unlink()


def numbers_of(batches: Iterable[Batch]) -> set[int]:
    """Indices of the records of batches."""
    return {int(i) for batch in batches for term in batch.terms.values() for i in term.records}


def described(rows: list[tuple[int, Example]], records: Sequence[Record], numbers: set[int]) -> list[dict[str, Any]]:
    """For each row the file and line of its record and, of the extreme ones, `text`: JSON of prompt and responses."""
    places, index = {}, {}
    for number in sorted(numbers):
        record = records[number]
        index[record.id], places[record.id] = number, record.origin
    by_term: dict[str, list[int]] = {}
    for i, (_, e) in enumerate(rows):
        by_term.setdefault(e.term, []).append(i)
    with_text: set[int] = set()
    for found in by_term.values():
        found.sort(key=lambda i: agreement(rows[i][1]))
        with_text |= {*found[:EXTREMES], *found[-EXTREMES:]}
    told = []
    for i, (_, e) in enumerate(rows):
        origin = places[e.record]
        text = json.dumps(excerpt(records[index[e.record]]), ensure_ascii=False) if i in with_text else None
        told.append({"file": origin and origin.file, "line": origin and origin.line, "text": text})
    return told


def agreement(e: Example) -> float:
    """How well the policy agrees with what was said: the margin of a pair; without one, minus the loss."""
    for values in (e.rewards, e.logps):
        if "rejected" in values:
            return values["chosen"] - values["rejected"]
    return -e.loss


def excerpt(record: Record) -> dict[str, Any]:
    """What a person needs to recognise a record: the last turn of the prompt, each response and what was said of it.

    >>> from accord.data.records import Judgement, Response
    >>> hi = Record(prompt="Hi", responses=(Response(text="Hello!"), Response(text="No.")),
    ...             judgements=(Judgement(kind="preference", pair=(0, 1), value=1.0),))
    >>> excerpt(hi)["responses"]
    [{'text': 'Hello!', 'said': 'preferred to 2'}, {'text': 'No.', 'said': ''}]
    """
    said: list[list[str]] = [[] for _ in record.responses]
    for j in record.judgements:
        if j.pair is None:
            said[int(j.response or 0)].append(f"{j.kind} {j.value:g}")
            continue
        middle = 0.0 if j.margin else sum(j.scale) / 2 if j.scale else 0.5
        better, worse = j.pair if j.value >= middle else j.pair[::-1]
        said[better].append(f"tied with {worse + 1}" if j.value == middle else f"preferred to {worse + 1}")
    return {
        "prompt": question(record),
        "responses": [
            {"text": _short(r.plain_text), "said": ", ".join(s)}
            for r, s in zip(record.responses[:RESPONSES], said, strict=False)
        ],
        "more": max(0, len(record.responses) - RESPONSES),
    }


def _content(turn: Message) -> str:
    if isinstance(turn.content, list):
        return " ".join(str(part.get("text", "")) for part in turn.content)
    return turn.content or ""


def question(record: Record) -> str:
    """The last thing that was said before the responses, cut if it is long."""
    return _short(_content(record.messages[-1])) if record.messages else ""


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
