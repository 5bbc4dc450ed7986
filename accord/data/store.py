"""How are ten million records, and the examples made of them, held on a small machine?

A few records are a list. More than `KEPT` are a `Store`: an Arrow file in the cache, written once while the data is
read, of which a block at a time is in memory. What is made of records is held in columns (`Table`): numbers side by
side, and where all of them are equal, one. Both look like sequences of what they hold.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import operator
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Generic, Self, TypeVar, overload

import numpy as np
import pyarrow as pa

from accord.data.records import Record
from accord.errors import AccordError

KEPT = 50_000  # records; a list of so many takes about 300 MB
BLOCK = 512  # records that are read together
STALE = 24 * 3600  # seconds after which a folder that nobody writes to was left by an import that was killed
FORMAT = 1  # of the folder of a store
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("weight", pa.float64()),
        ("prompt_key", pa.string()),
        ("record", pa.string()),  # the JSON line
    ]
)


def cache_root() -> Path:
    """What is kept between runs (records, converted models, log-probs) lies in $ACCORD_CACHE, or ~/.cache/accord."""
    return Path(os.environ.get("ACCORD_CACHE") or Path.home() / ".cache" / "accord")


# -- records ----------------------------------------------------------------------------------------------------------


class Store(Seq[Record]):
    """Records in an Arrow file; indexing and iterating parse those that are asked for.

    rows: places in the file, ascending, of the records that are meant; None: all of them.
    """

    def __init__(self, folder: Path, rows: np.ndarray | None = None, *, held: Any = None) -> None:
        self.folder, self._rows, self._held = folder, rows, held  # `held` keeps a temporary folder for as long as us
        self._file = pa.OSFile(str(folder / "records.arrow"))  # no memory map: what was read once need not stay
        self._readers: dict[str, pa.RecordBatchFileReader] = {}
        self._block: tuple[int, pa.StringArray] = (-1, pa.array([], pa.string()))
        self._all = int(self.facts["records"])

    @property
    def facts(self) -> dict[str, Any]:
        """What was noted when the records were written."""
        return json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return self._all if self._rows is None else len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        row = index if self._rows is None else int(self._rows[index])
        if self._block[0] != row // BLOCK:
            self._block = (row // BLOCK, self._read("record", row // BLOCK))
        return Record.from_json(self._block[1][row % BLOCK].as_py())

    def __iter__(self) -> Iterator[Record]:
        return map(Record.from_json, self.column("record"))

    def column(self, name: str) -> Iterator[Any]:
        """`id`, `source`, `weight`, `prompt_key` or the JSON `record` of each, and no record is parsed."""
        for number in range(-(-self._all // BLOCK)):
            if self._rows is None:
                yield from self._read(name, number).to_pylist()
                continue
            start, stop = np.searchsorted(self._rows, [number * BLOCK, (number + 1) * BLOCK])
            if start < stop:
                yield from self._read(name, number).take(self._rows[start:stop] - number * BLOCK).to_pylist()

    def take(self, places: np.ndarray) -> Store:
        """The records at these places, ascending."""
        places = places.astype(np.int32 if self._all < 2**31 else np.int64)
        return Store(self.folder, places if self._rows is None else self._rows[places], held=self._held)

    def _read(self, name: str, block: int) -> pa.Array:
        if name not in self._readers:
            options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name)])
            self._readers[name] = pa.ipc.open_file(self._file, options=options)
        return self._readers[name].get_batch(block).column(0)


def each(records: Seq[Record], name: str) -> Iterator[Any]:
    """An attribute of every record: from its column, where a store has one."""
    if isinstance(records, Store) and name in SCHEMA.names:
        return records.column(name)
    return (getattr(record, name) for record in records)


def taken(records: Seq[Record], chosen: np.ndarray) -> Seq[Record]:
    """Records for which `chosen` [n] is True."""
    places = np.flatnonzero(chosen)
    return records.take(places) if isinstance(records, Store) else [records[i] for i in places.tolist()]


def stamp(files: Iterable[str], *options: Any) -> str | None:
    """Identity of files as they lie there, by name, size and times; None if one of them is no file."""
    try:
        seen = [(str(Path(file).resolve()), os.stat(file)) for file in files]
    except OSError:
        return None
    found = [(name, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in seen]
    return hashlib.blake2b(repr((FORMAT, found, options)).encode(), digest_size=16).hexdigest()


def opened(key: str | None) -> Store | None:
    """The store that an earlier run wrote under this stamp."""
    folder = cache_root() / "records" / str(key)
    return Store(folder) if key and (folder / "facts.json").exists() else None


def keep(
    records: Iterable[Record],
    key: str | None,
    facts: Callable[[], dict[str, Any]],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Seq[Record]:
    """The records as a list, or as a store if they are more than `KEPT`.

    Args:
        records: are gone over once.
        key: the store's stamp; without one it lies in a temporary folder and is not found again.
        facts: is asked at the end what `Store.facts` holds.
        progress: is told how many were written.
    """
    few: list[Record] = []
    collecting = gc.isenabled()
    gc.disable()  # records hold no cycles, and looking for some in a million of them takes longer than reading them
    try:
        rest = iter(records)
        for record in rest:
            few.append(record)
            if len(few) > KEPT:
                break
        else:
            return few
        return _written(few, rest, key, facts, progress)
    finally:
        if collecting:
            gc.enable()


def _written(
    few: list[Record], rest: Iterator[Record], key: str | None, facts: Callable[[], dict[str, Any]],
    progress: Callable[[int, int], None],
) -> Store:  # fmt: skip
    root = cache_root() / "records"
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    temporary = tempfile.TemporaryDirectory(prefix=".", dir=root, ignore_cleanup_errors=True)
    folder = Path(temporary.name)
    with contextlib.ExitStack() as stack:
        stack.callback(temporary.cleanup)
        lock = _locked(folder)
        number = 0
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with (
            pa.OSFile(str(folder / "records.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA, options=options) as to,
        ):
            for block in _blocks(few, rest):
                columns = [[getattr(r, name) for r in block] for name in SCHEMA.names[:-1]]
                made = pa.record_batch([*columns, [r.to_json() for r in block]], schema=SCHEMA)
                try:
                    to.write_batch(made)
                except OSError as error:
                    raise AccordError(
                        f"records cannot be kept in {root} ({error}): make room, or set ACCORD_CACHE to another folder"
                    ) from error
                number += len(block)
                progress(number, 0)
        said = json.dumps({"records": number} | facts(), ensure_ascii=False)
        (folder / "facts.json").write_text(said, encoding="utf-8")
        if key is None:
            stack.pop_all()
            return Store(folder, held=(temporary, lock))
        (folder / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process was first: its store is the same
            os.rename(folder, root / key)
            folder.mkdir()  # what the temporary folder's end removes
    return Store(root / key)


def _sweep(root: Path) -> None:
    """Removes the temporary folders of imports that were killed: old ones that no process holds."""
    for folder in root.glob(".*"):
        with contextlib.suppress(OSError):
            newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if time.time() - newest > STALE and (lock := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()


def _locked(folder: Path) -> IO[bytes] | None:
    """A lock on a folder, held as long as it is open; None if another process has it, or there are no locks here."""
    try:
        import fcntl
    except ImportError:
        return None
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _blocks(few: list[Record], rest: Iterator[Record]) -> Iterator[list[Record]]:
    """All of them, in blocks; `few` is emptied."""
    few.reverse()
    block: list[Record] = []
    while few:
        block.append(few.pop())
        if len(block) == BLOCK:
            yield block
            block = []
    for record in rest:
        block.append(record)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


# -- what is made of records ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuples:
    """A column of tuples of numbers: `flat` holds one after another, and `stops` says where each ends."""

    flat: np.ndarray
    stops: np.ndarray

    def __len__(self) -> int:
        return len(self.stops)

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate([np.zeros(min(len(self), 1), np.int64), self.stops[:-1]])

    def item(self, i: int) -> tuple[Any, ...]:
        return tuple(self.flat[self.stops[i - 1] if i else 0 : self.stops[i]].tolist())

    def take(self, index: np.ndarray) -> Tuples:
        starts, stops = self.starts[index], self.stops[index]
        return Tuples(self.flat[spread(starts, stops)], np.cumsum(stops - starts))


Column = np.ndarray | Tuples


def spread(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """starts[0], ..., stops[0] - 1, starts[1], ...

    >>> spread(np.array([5, 0]), np.array([7, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    lengths = stops - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


class Growing:
    """A column while it grows. Equal numbers stand once: a million strengths of 1 take no memory.

    >>> column = Growing("d")
    >>> for value in (1.0, 1.0, 0.5):
    ...     column.append(value)
    >>> column.done()
    array([1. , 1. , 0.5])
    """

    def __init__(self, code: str) -> None:
        self.code, self.n = code, 0
        self.first: Any = 0
        self.flat = array(code)
        self.stops = array("q")
        self.several = False  # different numbers, or tuples of them

    def append(self, value: Any) -> None:
        if isinstance(value, tuple) != bool(self.stops) and self.n:
            raise AccordError(
                "of some examples there is a number for each token (or response), of others there is one: rollouts "
                "that carry advantages and such that are merely rated cannot be mixed; train on them apart"
            )
        if isinstance(value, tuple):
            self.flat.extend(value)
            self.stops.append(len(self.flat))
            self.several = True
        elif self.several:
            self.flat.append(value)
        elif self.n == 0:
            self.first = value
        elif value != self.first and (value == value or self.first == self.first):  # NaN is NaN
            self.flat = array(self.code, [self.first]) * self.n
            self.flat.append(value)
            self.several = True
        self.n += 1

    def done(self) -> Column:
        kind = np.dtype(self.code)
        if self.stops:
            return Tuples(np.frombuffer(self.flat, kind), np.frombuffer(self.stops, np.int64))
        return np.frombuffer(self.flat, kind) if self.several else np.broadcast_to(kind.type(self.first), self.n)


Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)
class Table(Seq[Row], Generic[Row]):
    """Examples in columns. A row is made when it is asked for, by `_row`.

    branches: role to numbers of what it points at; values: name to values; records [n], sources [n] (places in
    `names`), weights [n].
    """

    kind: str
    branches: dict[str, Column]
    values: dict[str, Column]
    records: np.ndarray
    sources: np.ndarray
    weights: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        return self._row(range(len(self))[index])

    def __eq__(self, other: object) -> bool:
        """Whether a table or list holds the same rows."""
        return isinstance(other, Seq) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def _row(self, i: int) -> Row:
        raise NotImplementedError

    def take(self, index: np.ndarray) -> Self:
        """The rows at `index`."""
        return replace(
            self,
            branches={k: v.take(index) for k, v in self.branches.items()},
            values={k: v.take(index) for k, v in self.values.items()},
            records=self.records.take(index), sources=self.sources.take(index), weights=self.weights.take(index),
        )  # fmt: skip


class Making:
    """A table while it is made: columns that grow."""

    def __init__(self) -> None:
        self.kind = ""
        self.records, self.sources, self.weights = Growing("i"), Growing("i"), Growing("d")
        self.branches: dict[str, Growing] = {}
        self.values: dict[str, Growing] = {}
        self.names: dict[str, int] = {}

    def add(self, row: Any, branches: Mapping[str, int | tuple[int, ...]]) -> None:
        """A row that has a kind, values, a record, a source and a weight, and points at `branches`."""
        if not self.kind:
            self.kind = row.kind
            self.branches = {role: Growing("i") for role in branches}
            self.values = {name: Growing("d") for name in row.values}
        for role, column in self.branches.items():
            column.append(branches[role])
        for name, column in self.values.items():
            column.append(row.values[name])
        self.records.append(row.record)
        self.sources.append(self.names.setdefault(row.source, len(self.names)))
        self.weights.append(row.weight)

    def done(self) -> dict[str, Any]:
        """The fields of the table."""
        return {
            "kind": self.kind,
            "branches": {role: column.done() for role, column in self.branches.items()},
            "values": {name: column.done() for name, column in self.values.items()},
            "records": self.records.done(), "sources": self.sources.done(), "weights": self.weights.done(),
            "names": tuple(self.names),
        }  # fmt: skip
