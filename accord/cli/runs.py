"""Looking at runs on the command line: `report`, `watch`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from accord.cli.frame import LOOK, app, run_folders
from accord.errors import ConfigError


@app.command(rich_help_panel=LOOK)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, a sweep's, or a loop's.", autocompletion=run_folders),
    ],
    format: Annotated[Literal["html", "md"], typer.Option(help="A page, or Markdown on the screen.")] = "html",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write it here [default RUN/report.html; of several, comparison.html beside them]."),
    ] = None,
) -> None:
    """Tell the story of a run in one page, or compare several.

    Made from the run folders alone, also of runs that go on or were killed.
    """
    from accord.report import compare, render, rounds
    from accord.report.read import runs_of

    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}")
    if len(runs) == 1 and rounds.is_loop(runs[0]):
        text = rounds.markdown(runs[0]) if format == "md" else ""
        done = render.write(output, text) if text and output else text or rounds.write_rounds(runs[0], output)
        typer.echo(done, nl=not text or bool(output))
        return
    folders = list(dict.fromkeys(folder for run in runs for folder in runs_of(run)))
    if format == "md":
        text = render.markdown(folders[0]) if len(folders) == 1 else compare.markdown(folders)
        typer.echo(render.write(output, text) if output else text, nl=bool(output))
        return
    if len(folders) == 1:
        typer.echo(render.write_report(folders[0], output))
        return
    for folder in folders:  # the comparison leads to them
        render.write_report(folder)
    beside = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
    target = output or Path(os.path.relpath(beside)) / "comparison.html"
    typer.echo(compare.write_comparison(folders, target))


@app.command(rich_help_panel=LOOK)
def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=run_folders)],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Follow a run in the terminal, from any machine that sees its folder; Ctrl-C ends the watching, not the run."""
    from accord.report.watch import watch as follow

    follow(run, every=every, once=once)
