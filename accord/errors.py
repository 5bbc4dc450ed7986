"""Errors that speak like a colleague: what, where, why, what to do.

Everything a user can cause is an `AccordError`; the command line prints its message without a traceback
and exits with status 2. Anything else that escapes is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AccordError(Exception):
    """A mistake a user can mend; the message says what, where, why and what to do."""


class RecordError(AccordError):
    """A record that cannot be read.

    Args:
        what: what is wrong, in one clause.
        file, line, field: where it stands; each is left out of the message when unknown.
        remedy: what to type or change.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | None = None,
        line: int | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.file, self.line, self.field, self.remedy = what, file, line, field, remedy
        place = ", ".join(
            part
            for part in (
                f"{file}" if file else "",
                f"line {line}" if line is not None else "",
                f"field {field!r}" if field else "",
            )
            if part
        )
        super().__init__((f"{place}: " if place else "") + what + (f". {remedy}" if remedy else ""))


class ConfigError(AccordError):
    """A setting that is unknown, unread, contradictory or impossible."""


class ServerError(AccordError):
    """A server that cannot be asked, or not any more; no record is to blame."""


def nearest(name: str, known: Iterable[str], see: str = "") -> str:
    """A sentence that names what `name` was probably meant to be, else all known names, or where they are listed.

    >>> nearest("bata", ["beta", "alpha"])
    "did you mean 'beta'?"
    >>> nearest("x", ["beta", "alpha"]), nearest("x", ["beta", "alpha"], "accord objectives")
    ('known: alpha, beta', 'see `accord objectives`')
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"see `{see}`" if see else "known: " + ", ".join(known)
