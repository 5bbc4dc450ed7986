"""How are records judged so that nothing is asked twice, and nothing that was judged is lost?

Judged records are added to a JSON lines file, whole lines, some at a time. Whoever is killed and started again reads
what stands there, cuts off a half-written line, and goes on with the records that are missing.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from accord.data.records import Judgement, Record
from accord.data.rows import many
from accord.data.views import in_both_orders
from accord.errors import AccordError, ConfigError, ServerError
from accord.judges.agreement import Agreement
from accord.judges.frame import Judge, Say, Unjudged, noted, reason, said_beside

BATCH = 64  # records that are judged and written together: what a kill loses at most
NAMED = 20  # failures that are named


@dataclass
class Tally:
    """What one judge said, in numbers.

    values: number, mean and standard deviation of its scores (of preferences, P(first is better)); pairs: of responses
    of one record that can be compared, ties: of equal value among them; failures: reason to number of records;
    agreement: of its verdicts with each other.
    """

    by: str
    records: int = 0
    values: int = 0
    mean: float = 0.0
    squares: float = 0.0
    pairs: int = 0
    ties: int = 0
    missing: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    named: list[dict[str, Any]] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)

    def add(self, record: Record, said: Seq[Judgement]) -> None:
        """Counts what was said of one record."""
        self.records += 1
        scores = [j for j in said if j.kind != "preference"]
        self.missing += len(record.responses) - len({j.response for j in scores}) if scores else 0
        for j in said:
            self.values += 1
            step = j.value - self.mean
            self.mean += step / self.values
            self.squares += step * (j.value - self.mean)
        for a, b in combinations(scores, 2):
            self.pairs += 1
            self.ties += a.value == b.value
        self.agreement.add(said)
        preferences = in_both_orders(j for j in said if j.kind == "preference")
        self.pairs += len(preferences)
        self.ties += sum(j.value == (0.0 if j.margin else 0.5) for j in preferences)

    def fail(self, record: Record, why: str) -> None:
        """Counts a record that could not be judged, or not as a whole."""
        self.failures[why] += 1
        if len(self.named) < NAMED:
            place = {k: v for k, v in (record.origin.model_dump() if record.origin else {}).items() if v is not None}
            self.named.append({"id": record.id, **place, "why": why})

    @property
    def spread(self) -> float:
        """Standard deviation of all values."""
        return math.sqrt(self.squares / self.values) if self.values else 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "by": self.by, "records": self.records, "values": self.values, "mean": self.mean, "spread": self.spread,
            "pairs": self.pairs, "ties": self.ties, "responses_without": self.missing,
            "failures": dict(self.failures), "failed": self.named, **self.agreement.as_dict(),
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The same for a person."""
        if not self.values:
            told = [f"{self.by}: nothing judged"]
        else:
            ties = f", {self.ties / self.pairs:.0%} of {many(self.pairs, 'pairs')} tied" if self.pairs else ""
            told = [
                f"{self.by}: {many(self.values, 'judgements')} of {many(self.records, 'records')}, mean "
                f"{self.mean:.4g}, spread {self.spread:.4g}{ties}"
            ]
        told += [f"  {line}" for line in self.agreement.lines()]
        if self.missing:
            told.append(f"  {many(self.missing, 'responses')} of these without a judgement")
        for why, n in self.failures.most_common():
            first = next(one for one in self.named if one["why"] == why) if n else {}
            at = f", first {first['file']}, line {first['line']}" if "line" in first else ""
            told.append(f"  {many(n, 'records')} not judged as a whole: {why}{at}")
        return told


@dataclass
class Story:
    """What came of judging files. kept: records that were judged before; foreign: of these, not among the records;
    notes: what judges say of their own work."""

    output: str
    records: int = 0
    judged: int = 0
    kept: int = 0
    left: int = 0
    foreign: int = 0
    tallies: list[Tally] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
        known = {k: getattr(self, k) for k in ("output", "records", "judged", "kept", "left", "foreign")}
        return known | {"judges": [t.as_dict() for t in self.tallies], "notes": self.notes}

    def lines(self) -> list[str]:
        """For a person."""
        before = f", {self.kept:,} of them before" if self.kept else ""
        told = [f"{many(self.kept + self.judged, 'records')} judged{before}: {self.output}"]
        if self.left:
            told.append(
                f"{many(self.left, 'records')} could not be judged and are not in it; the same command tries again"
            )
        if self.foreign:
            told.append(f"{many(self.foreign, 'records')} of {self.output} are not among those that were given")
        return told + [line for t in self.tallies for line in t.lines()] + self.notes


def judge_into(
    output: Path, records: Iterable[Record], judges: Seq[Judge], *, overwrite: bool = False, batch: int = BATCH,
    say: Say = lambda done, of: None,
) -> Story:  # fmt: skip
    """Judges records that `output` does not hold yet, and adds them to it.

    A record that one of the judges cannot judge at all is left out, counted and named: without its judgement it would
    pass for a demonstration. It is tried again the next time.

    Args:
        output: a .jsonl file; what stands there must have been judged by the same judges.
        records: what is to be judged; what the same judges said of them before is replaced.
        say: is told how many records are done.

    Raises:
        ConfigError: `output` holds something else, or its name is not .jsonl.
        AccordError: none of the records of the first batch can be judged, or the file cannot be written.
    """
    names = [j.by for j in judges]
    if twice := [n for n in names if names.count(n) > 1]:
        raise ConfigError(f"the judge {twice[0]} is named twice")
    if output.suffix != ".jsonl":
        raise ConfigError(f"{output}: judged records are added to a .jsonl file (accord data convert packs it)")
    story = Story(str(output), tallies=[Tally(n) for n in names])
    try:
        held = Counter() if overwrite else _held(output, names, story)
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb" if overwrite else "ab") as stream:
            missing = _missing(records, names, held, story)
            while part := list(islice(missing, batch)):
                lines = _judged(part, judges, story, lambda done, of: say(story.kept + story.judged + done, 0))
                stream.write("".join(line + "\n" for line in lines).encode())
                stream.flush()
                os.fsync(stream.fileno())
                say(story.kept + story.judged, 0)
                _stop_if_none(story)
        _stop_if_none(story)
    except OSError as error:
        raise AccordError(f"{output} cannot be written ({error.strerror}); what was judged stands in it") from error
    story.foreign = held.total()
    story.notes = [note for judge in judges for note in noted(judge)]
    return story


def _stop_if_none(story: Story) -> None:
    if story.left and not story.kept + story.judged:
        first = next(t for t in story.tallies if t.failures)
        none = f"judge {first.by}: none of the first {many(story.left, 'records')} can be judged"
        raise AccordError(f"{none}: {first.failures.most_common(1)[0][0]}")


def _held(output: Path, names: Seq[str], story: Story) -> Counter[str]:
    """Keys of the records that are there, which count as judged; a half-written line goes."""
    found: Counter[str] = Counter()
    if not output.exists():
        return found
    with output.open("rb+") as stream:
        end = 0
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            record = Record.from_json(line.decode("utf-8"), file=str(output), number=number)
            said = [[j for j in record.judgements if j.by == name] for name in names]
            if not all(said):
                lacks = next(n for n, s in zip(names, said, strict=True) if not s)
                raise ConfigError(
                    f"{output}, line {number}: {lacks} has not judged this record, so it is no file to go on with; "
                    "choose another name, or say --overwrite"
                )
            for tally, one in zip(story.tallies, said, strict=True):
                tally.add(record, one)
            story.kept += 1
            found[_key(record, names)] += 1
        stream.truncate(end)
    return found


def _key(record: Record, names: Seq[str]) -> str:
    """Identity of a record without what these judges said."""
    return said_beside(record, (), names).id if any(j.by in names for j in record.judgements) else record.id


def _missing(records: Iterable[Record], names: Seq[str], held: Counter[str], story: Story) -> Iterator[Record]:
    for record in records:
        story.records += 1
        key = _key(record, names)
        if held[key]:
            held[key] -= 1
        elif not record.responses:
            story.left += 1
            for tally in story.tallies:
                tally.fail(record, "it has no response")
        else:
            yield record


def _judged(records: Seq[Record], judges: Seq[Judge], story: Story, say: Say) -> Iterator[str]:
    found = [tried(judge, records, say) for judge in judges]
    for n, record in enumerate(records):
        for tally, several in zip(story.tallies, found, strict=True):
            if isinstance(said := several[n], Unjudged):
                tally.fail(record, said.why)
        if not all(several[n] for several in found):
            story.left += 1
            continue
        for tally, several in zip(story.tallies, found, strict=True):
            tally.add(record, several[n])
        story.judged += 1
        yield said_beside(record, [j for s in found for j in s[n]], [j.by for j in judges]).to_json()


def tried(judge: Judge, records: Seq[Record], say: Say = lambda done, of: None) -> list[tuple[Judgement, ...]]:
    """What the judge says; where it fails, the records one by one, so that what spoils one spoils no other.

    Raises:
        ConfigError, ServerError: as the judge does: a setting is wrong, or it cannot be asked; no record is to blame.
    """
    try:
        found = judge(records, say)
    except (ConfigError, ServerError):
        raise
    except Exception as error:
        if len(records) > 1:
            return [said for r in records for said in tried(judge, [r])]
        return [Unjudged(reason(error))]
    return [said or (said if isinstance(said, Unjudged) else Unjudged("it says nothing of it")) for said in found]
