"""Does the program do what was asked? It is run with its tests, confined (`confined.py`), and never by this process.

An answer's program is what stands in its fenced Python blocks, or all of it where there are none. Only the standard
library is there to be imported.
"""

# ruff: noqa: PT028  (tests is a judge)
from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from accord.data.files import bundled, find
from accord.data.records import Record
from accord.data.rows import Row
from accord.errors import ConfigError, RecordError
from accord.judges.confined import Limits, Outcome, refused, run
from accord.judges.frame import Judge, Numbers, Say, Scored, Unjudged
from accord.judges.table import row

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def program(text: str) -> str:
    """The program of an answer.

    >>> program("Here it is:\\n```python\\nx = 1\\n```\\nThat is all.")
    'x = 1\\n'
    """
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in ("", "python", "py", "python3")]
    return "\n".join(blocks) if blocks else text


def parted(code: str) -> tuple[str, list[str]]:
    """A program without its tests, and these: asserts and functions `test...` that stand at its top level.

    >>> parted("def f(): return 1\\nassert f() == 1")
    ('def f(): return 1', ['assert f() == 1'])

    Raises:
        SyntaxError: it is no Python.
    """
    rest, tests = [], []
    for node in ast.parse(code).body:
        text = ast.get_source_segment(code, node) or ""
        if isinstance(node, ast.Assert):
            tests.append(text)
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            tests.append(f"{text}\n{node.name}()")
        else:
            rest.append(text)
    return "\n".join(rest), tests


@dataclass(frozen=True)
class Task:
    """The tests of a prompt. entry: a function that the answer defines, or, if it does not, goes on from `before`."""

    tests: tuple[str, ...]
    setup: str = ""
    before: str = ""
    entry: str = ""

    def program(self, answer: str) -> str:
        """What is run: the answer, behind what it may presuppose."""
        code = program(answer)
        if self.entry and not re.search(rf"^\s*def {re.escape(self.entry)}\b", code, re.MULTILINE):
            code = self.before + code
        return f"{self.setup}\n{code}" if self.setup else code


def tasks(name: str) -> tuple[dict[str, Task], str]:
    """Tests by the key of their prompt, and the key of all of them.

    Rows hold `prompt` (or `text`, `question`) with `tests` (a program, or a list of them); MBPP's `test_list` and
    `test_setup_code`, and HumanEval's `test` and `entry_point`, are read, too.

    Raises:
        RecordError: a row without tests, or with two sets for one prompt.
    """
    found: dict[str, Task] = {}
    whole = hashlib.blake2b(digest_size=16)
    for part in find(name, bundled()).parts:
        for number, data in part.rows():
            if isinstance(data, RecordError):
                raise data
            given = Row(data, part.file, number, set(), flat=part.flat)
            asked = given.prompt("prompt", "text", "question")
            before = asked if isinstance(asked, str) else ""
            key = Record(prompt=asked).prompt_key  # type: ignore[arg-type]
            if key in found:
                given.fail("this prompt has tests already", "prompt", "Put all its tests into one row")
            entry = given.get("entry_point")[1]
            field, said = given.need("tests", "test_list", "test")
            several = given.items(field, said) if isinstance(said, list) else [said]
            texts = [given.text(field, one) for one in several]
            if not texts:
                given.fail("there is no test in it", field)
            if field == "test" and entry:
                texts = [f"{texts[0]}\ncheck({entry})"]
            setup = given.get("setup", "test_setup_code")[1]
            found[key] = Task(tuple(texts), str(setup or ""), before, str(entry or ""))
            whole.update(json.dumps([key, texts, setup, entry]).encode())
    return found, whole.hexdigest()


def _allowed(unsafe_exec: bool) -> None:
    if not unsafe_exec and (why := refused()) is not None:
        raise ConfigError(
            f"answers are not run: this system does not let a program be confined ({why}). Run it on Linux where users "
            "may make namespaces; or, if you trust the answers with all that you may do here, add unsafe_exec=true"
        )


def _each(programs: Seq[tuple[str, Seq[str]]], limits: Limits, confined: bool) -> list[Outcome]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda one: run(one[0], one[1], limits, confined=confined), programs))


@row(scale=(0, 1))
def tests(
    file: str,
    *,
    seconds: float = 5.0,
    memory: int = 512,
    processes: int = 8,
    unsafe_exec: bool = False,
) -> Judge:
    """The share of its prompt's tests that an answer's program passes, run without network, home or a way to write.

    Args:
        file: prompts with tests.
        seconds: of a program with all its tests; what is not reached by then is not passed.
        memory: MiB of each process. processes: at once, threads among them.
        unsafe_exec: run them under limits alone where the system confines nothing.
    """
    known, key = tasks(file)
    limits = _limits(seconds, memory, processes)
    _allowed(unsafe_exec)

    def score(records: Seq[Record], say: Say) -> list[Numbers]:
        asked = [
            (n, known[r.prompt_key], a.plain_text)
            for n, r in enumerate(records)
            if r.prompt_key in known
            for a in r.responses
        ]
        said = _each([(task.program(text), task.tests) for _, task, text in asked], limits, not unsafe_exec)
        values: dict[int, list[float]] = {}
        for (n, _, _), found in zip(asked, said, strict=True):
            values.setdefault(n, []).append(sum(found.passed) / len(found.passed))
        say(len(records), len(records))
        return [values.get(n, Unjudged(f"{file} has no tests of this prompt")) for n in range(len(records))]

    return Scored(score, key=key, scale=(0.0, 1.0))


@row(scale=(0, 1))
def dstc(*, seconds: float = 5.0, memory: int = 512, processes: int = 8, unsafe_exec: bool = False) -> Judge:
    """Programs and tests that a model wrote itself (DSTC): each program with the tests of all answers to its prompt.

    Equation:
        s_i = m_ii * mean over j of m_ij,  m_ij: share of the tests of answer j that the program of answer i passes

    An answer is worth what its program passes of everybody's tests, times what it passes of its own. Tests are asserts
    and functions `test...` at the top level; an answer without tests, or that is no Python, gets 0 and is no test of
    others. The paper's selection is not printed in what we read (arXiv 2411.13611); this one is ours.

    Args:
        seconds: of a program with everybody's tests. memory: MiB of each process. processes: at once.
        unsafe_exec: as of `tests`.
    """
    limits = _limits(seconds, memory, processes)
    _allowed(unsafe_exec)

    def score(records: Seq[Record], say: Say) -> list[Numbers]:
        parts = [[_parts(a.plain_text) for a in r.responses] for r in records]
        programs = [(code, [t for _, own in several for t in own]) for several in parts for code, own in several if own]
        said = iter(_each(programs, limits, not unsafe_exec))
        say(len(records), len(records))
        return [matched([own for _, own in several], said) for several in parts]

    return Scored(score, scale=(0.0, 1.0))


def _parts(text: str) -> tuple[str, list[str]]:
    try:
        return parted(program(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # what ast.parse says of texts that are no program
        return "", []


def matched(tests_of: Seq[Seq[str]], outcomes: Iterator[Outcome]) -> list[float]:
    """The values of the answers to one prompt; `outcomes` gives those of answers that have tests, one after another.

    >>> matched([["a"], ["b"], []], iter([Outcome((True, True)), Outcome((True, False))]))
    [1.0, 0.0, 0.0]
    """
    values = []
    own = [i for i, several in enumerate(tests_of) if several]
    for i in range(len(tests_of)):
        if i not in own:
            values.append(0.0)
            continue
        passed, shares = iter(next(outcomes).passed), {}
        for j in own:
            shares[j] = sum(next(passed) for _ in tests_of[j]) / len(tests_of[j])
        values.append(shares[i] * sum(shares.values()) / len(own))
    return values


def _share(found: Outcome) -> float:
    return sum(found.passed) / len(found.passed)


def _limits(seconds: float, memory: int, processes: int) -> Limits:
    if not seconds > 0 or memory < 64 or processes < 1:
        raise ConfigError("a program needs seconds above 0, memory of 64 MiB or more, and at least one process")
    return Limits(seconds, memory, processes)
