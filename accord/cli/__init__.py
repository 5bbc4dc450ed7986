"""What the user types. Every command is a few lines over the rooms below; heavy imports happen inside commands."""

# ruff: noqa: F401  (modules are imported for their commands)
from __future__ import annotations

import sys

import typer

from accord.cli import (
    annotate,
    bench,
    contests,
    data,
    evaluate,
    judging,
    look,
    loop,
    models,
    monitors,
    people,
    rewards,
    runs,
    train,
)
from accord.cli.frame import app
from accord.errors import AccordError


def main(words: list[str] | None = None) -> None:
    """The command `accord`: mistakes of the user are one sentence and exit status 2."""
    try:
        app(words, prog_name="accord")  # whatever it was started as: the scripts of completion are made of it
    except AccordError as error:
        typer.echo(f"accord: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
