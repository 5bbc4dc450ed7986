"""Every wrong input gets its file, its line, its field and a remedy, and good rows beside it are kept and counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.data.sources import LAYOUTS, load, stream
from accord.errors import RecordError
from tests.bad_inputs import COMPRESS, FILES, LINES, ROWS, Bad, Ruined, written


def refused(file: Path, **options) -> RecordError:
    with pytest.raises(RecordError) as caught:
        load(file, **options)
    error = caught.value
    assert error.file == str(file)
    assert str(file) in str(error)
    assert error.remedy
    assert str(error).endswith(error.remedy)
    return error


def place(form: str) -> int:
    """The line of the second row: the first line of a table is its header."""
    return 3 if form.startswith((".csv", ".tsv")) else 2


def skipped(file: Path, error: RecordError, good: int) -> None:
    """The same file with bad rows left out: the good ones are there, the bad one is counted and named."""
    found = stream(file, on_error="skip")
    records = [*found]
    assert len(records) == good
    assert error.line not in {record.origin.line for record in records if record.origin}
    (problem,) = found.problems
    assert (problem.file, problem.line, problem.field) == (error.file, error.line, error.field)
    assert (problem.what, problem.remedy) == (error.what, error.remedy)
    assert (found.rows_left, found.reasons) == (1, {(error.what, error.field): 1})
    assert "1 row skipped (" + error.what in found.told


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_a_bad_row(case: Bad, tmp_path):
    file = tmp_path / f"a{case.form}"
    file.write_bytes(written([case.rows[0]], case.form))
    good = load(file)
    assert good.layout == case.layout
    file.write_bytes(written(case.rows, case.form))
    error = refused(file)
    assert (error.line, error.field) == (place(case.form), case.field)
    assert case.what in error.what
    assert case.remedy in error.remedy
    skipped(file, error, 2 * len(good.records))


@pytest.mark.parametrize(("form", "line", "field", "what", "remedy"), LINES)
def test_a_line_that_is_no_row(form, line, field, what, remedy, tmp_path):
    kind, _, packed = form[1:].partition(".")
    first, row = {"csv": (b"prompt,completion\n", b"p,a"), "tsv": (b"prompt\tcompletion\n", b"p\ta")}.get(
        kind, (b"", b'{"prompt": "p", "completion": "a"}')
    )
    file = tmp_path / f"a{form}"
    file.write_bytes(COMPRESS[packed](first + row + b"\n" + line + b"\n" + row))
    error = refused(file)
    assert (error.line, error.field) == (place(form), field)
    assert what in error.what
    assert remedy in error.remedy
    skipped(file, error, 2)


@pytest.mark.parametrize("case", FILES, ids=lambda case: f"{case.name}-{case.what}")
def test_a_ruined_file(case: Ruined, tmp_path):
    file = tmp_path / case.name
    file.write_bytes(case.raw)
    for on_error in ("raise", "skip"):
        error = refused(file, **({"on_error": on_error} | (case.options or {})))
        if case.line == -1:  # how far it can be read depends on the compression
            assert error.line is not None
            assert error.line >= 1
        else:
            assert error.line == case.line
        assert error.field == case.field
        assert case.what in error.what
        assert case.remedy in error.remedy


def test_every_layout_has_bad_rows_and_every_case_is_another():
    assert {case.layout for case in ROWS} == {entry.name for entry in LAYOUTS}
    names = [str(case) for case in ROWS]
    assert len(set(names)) == len(names)
    assert len(ROWS) + len(LINES) + len(FILES) >= 300
