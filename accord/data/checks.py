"""What is in this file, and what is odd in it? `accord data check` and `accord data show`.

Nothing here decides: the layout is recognised by `sources`, what feedback counts as is decided and counted by `views`,
tokens are made by `chat`. This file asks all three and tells the user what they said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.data import sources
from accord.data.records import FEEDBACK_KINDS, Record
from accord.data.views import NOUNS, Branch, Counts, view

if TYPE_CHECKING:
    from rich.text import Text

    from accord.data.chat import Chat

# Decisions of a view that a person would want to look at; the others are what every file makes a view do.
ODD = (
    "tie",
    "dropped",
    "duplicate",
    "contradiction",
    "pair whose",
    "pair turned",
    "rescaled to the middle",
    "group kept",
)
PLACES = 3


@dataclass(frozen=True)
class Spread:
    """Numbers told by their lowest, median, 95th percentile and highest."""

    low: float
    median: float
    high95: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """
        >>> str(Spread.of([1, 2, 3, 4, 100]))
        '1 to 100, median 3'
        """
        found = np.fromiter(values, float)
        if not len(found):
            return cls(0, 0, 0, 0)
        return cls(*(float(q) for q in np.quantile(found, (0, 0.5, 0.95, 1), method="inverted_cdf")))

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:,.0f}"
        return f"{self.low:,.0f} to {self.high:,.0f}, median {self.median:,.0f}"


@dataclass(frozen=True)
class Odd:
    """Something that is odd: how often, and the first few places."""

    what: str
    count: int
    places: tuple[str, ...]

    def __str__(self) -> str:
        lines: dict[str, list[str]] = {}
        for place in self.places[:PLACES]:
            file, _, line = place.rpartition(":")
            lines.setdefault(file, []).append(line)
        where = ", ".join(f"{file}:{','.join(of_file)}" for file, of_file in lines.items())
        more = ", ..." if self.count > PLACES else ""
        return f"{self.what}: {self.count:,}" + (f" ({where}{more})" if where else "")


@dataclass(frozen=True)
class Use:
    """What a view makes of the records: how many examples, from what, and why the others make none."""

    examples: int
    made: dict[str, int]
    left: dict[str, int]


@dataclass(frozen=True)
class Story:
    """What a file was taken for, what it would give, and everything odd in it."""

    told: str
    records: int
    prompts: int
    kinds: dict[str, int]
    sources: dict[str, int]
    responses: Spread
    prompt_words: Spread
    response_words: Spread
    chosen_longer: float | None
    uses: dict[str, Use]
    oddities: list[Odd] = field(default_factory=list)

    @property
    def odd(self) -> bool:
        return bool(self.oddities)

    def as_dict(self) -> dict[str, Any]:
        """The story for a program to read."""
        return {"odd": self.odd, **asdict(self)}

    def lines(self) -> list[str]:
        """The story for a person to read."""
        found = [self.told, ""]
        rows = {
            "records": f"{self.records:,} of {self.prompts:,} prompts",
            "feedback": _listed(self.kinds) or "none",
            "sources": _listed(self.sources),
            "responses": f"{self.responses} a record",
            "words": f"prompts {self.prompt_words}; responses {self.response_words}",
        }
        if self.chosen_longer is not None:
            rows["length"] = f"the chosen response is the longer one in {self.chosen_longer:.0%} of the pairs"
        found += [f"{name:<10} {text}" for name, text in rows.items()]
        found += ["", "it gives"]
        for kind, use in self.uses.items():
            why = _listed(use.made or use.left)
            found.append(f"  {kind:<7} {use.examples:>9,}" + (f"  {why}" if why else ""))
        found.append("")
        found += ["odd", *(f"  {o}" for o in self.oddities)] if self.oddities else ["nothing odd"]
        return found


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def check(file: str | Path, columns: Mapping[str, str] | None = None) -> Story:
    """Reads a file as training would, and tells what it found.

    Args:
        file: whatever `sources.load` reads.
        columns: what a column is, by our name.

    Raises:
        RecordError: nothing in it can be read, or it is damaged as a whole.
    """
    loaded = sources.load(file, columns=columns, on_error="skip")
    records = loaded.records
    uses: dict[str, Use] = {}
    oddities: dict[str, Odd] = {}
    longer: float | None = None
    for kind in ("Demos", "Points", "Pairs", "Groups"):
        counts = Counts()
        examples = view(records, kind, counts=counts)
        made = {
            k.removeprefix(f"{NOUNS[kind]} from "): n for k, n in counts.totals().items() if f"{NOUNS[kind]} from" in k
        }
        nothing = f"no {NOUNS[kind]}: "
        left = {k.removeprefix(nothing): n for k, n in counts.totals().items() if k.startswith(nothing)}
        uses[kind] = Use(len(examples), made, left)
        for odd in _odd(counts):
            oddities.setdefault(odd.what, odd)
        if kind == "Pairs" and examples:
            sides = [[_length(records[e.record], e.branches[s]) for s in ("chosen", "rejected")] for e in examples]
            longer = sum((a > b) + (a == b) / 2 for a, b in sides) / len(sides)
    rows = Counts()
    for problem in loaded.problems:
        rows.add("cannot be read: " + problem.what + (f" in {problem.field!r}" if problem.field else ""), problem)
    return Story(
        told=loaded.told,
        records=len(records),
        prompts=len({r.prompt_key for r in records}),
        kinds={k: n for k in FEEDBACK_KINDS if (n := sum(k in r.kinds for r in records))},
        sources=dict(Counter(r.source for r in records).most_common()),
        responses=Spread.of(len(r.responses) for r in records),
        prompt_words=Spread.of(len(_prompt(r).split()) for r in records),
        response_words=Spread.of(len(a.plain_text.split()) for r in records for a in r.responses),
        chosen_longer=longer,
        uses=uses,
        oddities=[*_all(rows), *oddities.values(), *_all(_strange(records))],
    )


def _odd(counts: Counts) -> Iterator[Odd]:
    return (odd for odd in _all(counts) if odd.what.startswith(ODD))


def _all(counts: Counts) -> Iterator[Odd]:
    for what, found in counts.as_dict().items():
        places = tuple(f"{e['file']}:{e['line']}" if "line" in e else e.get("file", "") for e in found["examples"])
        yield Odd(what, found["count"], tuple(dict.fromkeys(p for p in places if p)))


def _strange(records: list[Record]) -> Counts:
    """What no view asks about: the same record again, nothing said, characters that are no text."""
    counts = Counts()
    seen: set[str] = set()
    for record in records:
        prompt, answers = _prompt(record), [a.plain_text for a in record.responses]
        if record.id in seen:
            counts.add("the same record again", record)
        seen.add(record.id)
        if not prompt.strip():
            counts.add("an empty prompt", record)
        if any(a.text is not None and not a.text.strip() for a in record.responses):  # turns may be tool calls alone
            counts.add("an empty response", record)
        if any(c in text for text in (prompt, *answers) for c in "\0\ufffd"):
            counts.add("characters that are no text (NUL, or the sign for one that could not be read)", record)
        if len(prompt.split()) > 2 and any(a.startswith(prompt) for a in answers):
            counts.add("a response that repeats its whole prompt", record)
    return counts


def _prompt(record: Record) -> str:
    return record.prompt if isinstance(record.prompt, str) else "\n".join(str(m.content or "") for m in record.prompt)


def _length(record: Record, branch: Any) -> int:
    return len(record.responses[branch.response].plain_text)


# -- as the model sees it ---------------------------------------------------------------------------------------------


def shown(record: Record, chat: Chat) -> list[Text]:
    """A record as tokens, one text for each response under a heading: context dim, trained bold green, what is seen and
    not trained yellow; special tokens in reverse, line breaks visible.
    """
    from rich.text import Text

    place = f"{record.origin.file}:{record.origin.line}" if record.origin else ""
    name = " ".join(part for part in (record.id, place) if part)
    counts = Counts()
    if not record.responses:
        ids = chat.context_ids(record)
        return [
            Text(f"{name}  no response; {len(ids):,} context tokens", "bold"),
            Text.assemble(*_pieces(chat, ids, "dim")),
        ]
    made = chat.encode(record, [Branch(0, i) for i in range(len(record.responses))], counts)
    why = "; ".join(counts.totals())
    if made is None:
        return [Text(f"{name}  {why}", "bold red")]
    found: list[Text] = []
    turns = [(number, turn) for number, first in enumerate(made) for turn in (first, *first.later)]
    for number, sequence in turns:
        trained = int(sequence.trained.sum())
        parts = [f"{len(sequence.context):,} context + {len(sequence.ids):,} tokens", f"{trained:,} trained"]
        parts += ["its end is cut off"] * sequence.cut + ([why] if why else [])
        found.append(Text(f"{name}  response {number}: {', '.join(parts)}", "bold"))
        body = Text.assemble(*_pieces(chat, sequence.context.tolist(), "dim"))
        for learns, run in _runs(sequence.ids.tolist(), sequence.trained.tolist()):
            body.append_text(Text.assemble(*_pieces(chat, run, "bold green" if learns else "yellow")))
        found.append(body)
    return found


def _runs(ids: list[int], trained: list[bool]) -> Iterator[tuple[bool, list[int]]]:
    """Stretches of tokens that are trained, and that are not."""
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or trained[i] != trained[start]:
            yield trained[start], ids[start:i]
            start = i


def _pieces(chat: Chat, ids: list[int], style: str) -> Iterator[tuple[str, str]]:
    """Text and style of each stretch of ordinary tokens (decoded together) and of each special one."""
    tokenizer = chat.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder) | set(chat.stop_ids)
    for is_special, run in _runs(ids, [i in special for i in ids]):
        text = tokenizer.decode(run, skip_special_tokens=False)
        yield text.replace("\n", "↵\n"), f"{style} reverse" if is_special else style
