"""A person judges, on a page of this machine: `annotate`."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from accord.cli.data import Columns, LayoutName, OnBadRecord, renamed
from accord.cli.frame import Overwrite, app
from accord.errors import ConfigError


@app.command(help="Judge answers yourself, on a local page, by the keyboard; the file is one that accord train reads.")
def annotate(
    file: Annotated[str, typer.Argument(help="Answers: a file, folder, glob, bundled or hub data set.")],
    output: Annotated[Path, typer.Option(help="A .jsonl file; what stands in it is not asked again.")],
    form: Annotated[str, typer.Option(help="pairs, strengths, ratings or rankings.")] = "pairs",
    scale: Annotated[str, typer.Option(help="Lowest and highest rating, from 0 to 9.")] = "1,5",
    by: Annotated[str, typer.Option(help="Who judges; stands in the records.")] = "human",
    seed: Annotated[int, typer.Option(help="Of the order in which answers stand on the page.")] = 0,
    port: Annotated[int, typer.Option(help="Of the page; 0 for a free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Print the page's address, and open no browser.")] = False,
    overwrite: Overwrite = False,
    columns: Columns = None,
    layout: LayoutName = None,
    on_bad_record: OnBadRecord = "raise",
) -> None:
    from accord.data import sources
    from accord.judges.human import Page, Session, items

    ends = scale.split(",")
    if len(ends) != 2 or not all(e.strip().isdecimal() for e in ends):
        raise ConfigError(f"--scale {scale}: two whole numbers, such as 1,5")
    if Path(file).resolve() == output.resolve():
        raise ConfigError(f"--output {output} is the file that is judged; choose another name")
    loaded = sources.load(file, columns=renamed(columns), layout=layout, on_error=on_bad_record)
    asked, left = items(loaded.records, form, seed)
    typer.echo(loaded.told)
    for why, n in left.items():
        typer.echo(f"  left out, {why}: {n:,}")
    if not asked:
        raise ConfigError(f"{file}: no record has enough answers for {form}")
    low, high = (int(e) for e in ends)
    session = Session(asked, output, form=form, by=by, scale=(low, high), overwrite=overwrite)
    with Page(session, port) as page:
        typer.echo(f"{page.address}\nStop with Ctrl-C, or with Enter when all is judged; nothing is lost.")
        if not no_open:
            webbrowser.open(page.address)
        with contextlib.suppress(KeyboardInterrupt):
            page.serve_forever()
    typer.echo("\n".join(session.lines()))
