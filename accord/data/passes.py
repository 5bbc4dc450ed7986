"""What can be known of files of any size in one pass and little memory?

`Files` goes over the records of several names. `Keys` keep a few numbers a row, so that it can be said what is here
twice; a `Spread` comes from how often each length was seen; a `Reservoir` is a sample of everything that went by.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from accord.data import sources
from accord.data.chat import words
from accord.data.records import CANONICAL, Record, Response
from accord.errors import ConfigError

LIMIT = 1 << 21  # rows of a table: 48 MiB
OFTEN = 256  # records between two words about how far it is
NAMES = 1000  # of sources, attributes, judges; what comes beyond them is counted together
OTHERS = "(others)"
TOLD = 12  # names that are told in one line


class Files:
    """The records of several names, one after the other, each with the number of its name; read anew each time.

    Args:
        names, columns, layout, on_error: as of `sources.stream`.
        on_problem: is called with each row that is left out.
        say: is called now and then with the number of records so far.
    """

    def __init__(
        self,
        names: Iterable[str | Path],
        *,
        columns: Mapping[str, str] | None = None,
        layout: str | None = None,
        on_error: str = "raise",
        on_problem: Callable[[sources.Problem], None] | None = None,
        say: Callable[[int], None] | None = None,
    ) -> None:
        self.names = [str(name) for name in names]
        if self.names.count("-") > 1:
            raise ConfigError("standard input is named twice, and can be read once")
        self.streams = [
            sources.stream(n, columns=columns, layout=layout, on_error=on_error, on_problem=on_problem)
            for n in self.names
        ]
        self.say = say or (lambda done: None)

    def __iter__(self) -> Iterator[tuple[int, Record]]:
        done = 0
        for number, stream in enumerate(self.streams):
            for record in stream:
                yield number, record
                done += 1
                if done % OFTEN == 0:
                    self.say(done)

    def needed_twice(self, what: str) -> None:
        """Refuses standard input where it would have to be read again."""
        if "-" in self.names:
            raise ConfigError(f"{what} reads its files twice, and standard input can be read once: write it to a file")

    @property
    def told(self) -> list[str]:
        """What each name was taken for, once it has been read."""
        return [stream.told for stream in self.streams]


# -- what is the same -------------------------------------------------------------------------------------------------


def hashed(*parts: str) -> int:
    """64 bits that stand for some texts; among ten million, the odds that two share theirs are 1 in 300,000."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return int.from_bytes(digest.digest(), "little")


def content(response: Response) -> str:
    """What makes two responses the same: their turns; a text is one turn of the assistant."""
    if response.text is not None:
        return CANONICAL([{"role": "assistant", "content": response.text}])
    return CANONICAL([m.plain() for m in response.messages or ()])


def near(record: Record) -> str:
    """The words of a prompt without case, punctuation and white space: what is the same to a reader.

    >>> near(Record(prompt="Name a colour!")) == near(Record(prompt=[{"role": "user", "content": "name  a colour"}]))
    True
    """
    text = "\n".join(words(m) for m in record.messages)
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.translate(_punctuation()).split()) or text


@functools.cache
def _punctuation() -> dict[int, str]:
    return {i: " " for i in range(sys.maxunicode + 1) if unicodedata.category(chr(i)).startswith("P")}


@dataclass(frozen=True)
class Sorted:
    """Rows by key, those of one key in the order in which they came; `first` is where a row's key
    begins."""

    keys: np.ndarray
    places: np.ndarray
    values: np.ndarray
    first: np.ndarray

    @property
    def begins(self) -> np.ndarray:
        """Whether a row is the first of its key."""
        return self.first == np.arange(len(self.first))


class Keys:
    """Rows of a key, a place and a value: 24 bytes each, of which it is asked later what stands under the same key.

    Exact up to `limit` rows. Whenever it is full, half of the keys are let go, all rows of a key together: what is
    counted is then an estimate, and `share` says how many of the keys are left.

    >>> words = Keys()
    >>> for place, word in enumerate(["a", "b", "a"]):
    ...     words.add(hashed(word), place)
    >>> rows = words.sorted()
    >>> rows.places[~rows.begins].tolist(), words.count(rows.begins)
    ([2], 2)
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.share, self._bound = limit, 1.0, 1 << 64
        self._keys, self._places, self._values = array("Q"), array("q"), array("d")

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: int, place: int = 0, value: float = 0.0) -> None:
        if key >= self._bound:
            return
        self._keys.append(key)
        self._places.append(place)
        self._values.append(value)
        while len(self) > self.limit and self._bound > 1:
            self._bound //= 2
            self.share /= 2
            keys, places, values = self._columns()
            kept = keys < np.uint64(self._bound)
            self._keys, self._places = array("Q", keys[kept].tobytes()), array("q", places[kept].tobytes())
            self._values = array("d", values[kept].tobytes())

    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.array(self._keys, np.uint64), np.array(self._places, np.int64), np.array(self._values, np.float64)

    def sorted(self) -> Sorted:
        keys, places, values = self._columns()
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        begins = np.append(True, keys[1:] != keys[:-1])[: len(keys)]
        first = np.maximum.accumulate(np.where(begins, np.arange(len(keys)), 0))
        return Sorted(keys, places[order], values[order], first)

    def count(self, which: np.ndarray) -> int:
        """How many rows are so, those that were let go included."""
        return round(float(which.sum()) / self.share)


# -- numbers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Numbers told by their lowest, median, 95th percentile and highest."""

    low: float
    median: float
    high95: float
    high: float

    @classmethod
    def of(cls, counts: Counter[int]) -> Spread:
        """Of how often each number was seen.

        >>> str(Spread.of(Counter([1, 2, 3, 4, 100])))
        '1 to 100, median 3'
        """
        values = np.array(sorted(counts))
        if not len(values):
            return cls(0, 0, 0, 0)
        upto = np.cumsum([counts[v] for v in values.tolist()])
        places = np.maximum(np.ceil(np.array([0, 0.5, 0.95, 1]) * upto[-1]), 1)
        return cls(*(float(v) for v in values[np.searchsorted(upto, places)]))

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:,.0f}"
        return f"{self.low:,.0f} to {self.high:,.0f}, median {self.median:,.0f}"


def bounded(table: Mapping[Any, Any], name: str) -> str:
    """The name under which something is counted: its own, or that of all others where there are too many already."""
    return name if name in table or len(table) < NAMES else OTHERS


def listed(counts: Mapping[str, int]) -> str:
    """The first of many numbers with their names, in one line."""
    more = [f"and {len(counts) - TOLD:,} more"] if len(counts) > TOLD else []
    return ", ".join([*(f"{name} {n:,}" for name, n in islice(counts.items(), TOLD)), *more])


class Reservoir:
    """At most `size` of the records that went by, each as likely as any other."""

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seen = size, 0
        self._kept: list[tuple[int, Record]] = []
        self._random = random.Random(seed)

    def add(self, record: Record) -> None:
        self.seen += 1
        if len(self._kept) < self.size:
            self._kept.append((self.seen, record))
        elif (place := self._random.randrange(self.seen)) < self.size:
            self._kept[place] = self.seen, record

    @property
    def kept(self) -> list[Record]:
        """Those that were drawn, in the order in which they went by."""
        return [record for _, record in sorted(self._kept, key=lambda pair: pair[0])]


NUMBER = re.compile(r"[-\d.,%]*")


def columns_of(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Rows of cells as lines, under a row of heads; columns of numbers stand to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(NUMBER.fullmatch(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in rows:
        cells = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
