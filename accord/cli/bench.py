"""The race against TRL on the command line: `bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from accord.cli.frame import LOOK, AsJson, app, quiet_libraries
from accord.errors import ConfigError, nearest


@app.command(help="Race Accord against TRL on the same weights, ids and batches.", rich_help_panel=LOOK)
def bench(
    model: Annotated[
        str | None, typer.Option(help="tiny (10.8 million random weights), a larger shape, smollm2, or a folder.")
    ] = None,
    preset: Annotated[str, typer.Option(help="ci, small, full or gpu: which cells.")] = "small",
    objective: Annotated[list[str] | None, typer.Option(help="dpo, kto, bradley_terry, sft, ulma, sample.")] = None,
    mix: Annotated[list[str] | None, typer.Option(help="Which part is long: balanced, prompt, response.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="tuned, tuned-bf16, fp32, box, plain, itself.")] = None,
    answers: Annotated[int, typer.Option(help="Answers a prompt; all their pairs are trained.")] = 2,
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters.")] = False,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Norms and feed-forward parts, in Accord; as the preset has it."),
    ] = None,
    updates: Annotated[
        int, typer.Option(help="Updates that are timed; 0: as many as the preset has, on a GPU 20.")
    ] = 0,
    threads: Annotated[int, typer.Option(help="Threads that compute.")] = 1,
    output: Annotated[Path, typer.Option(help="Where cells are kept; the command goes on behind them.")] = Path(
        "runs/bench"
    ),
    equality: Annotated[
        bool, typer.Option("--equality", help="Race nothing: compare every way to a log-prob, on 16 architectures.")
    ] = False,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Race nobody: what more tokens, answers, data and larger batches cost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    quiet_libraries()
    from accord.bench import figures, table
    from accord.bench.baselines import BASELINES
    from accord.bench.work import MIXES, OBJECTIVES

    def tell(line: str) -> None:
        typer.echo(line, err=True)

    if equality:
        from accord.bench.equality import lines

        typer.echo("\n".join(lines(tell)))
        return
    if scaling:
        from accord.bench import scaling as scales

        measured = scales.kept(table.folder_of(model or "tiny"), output, tell)
        typer.echo(json.dumps(measured, indent=2) if as_json else "\n".join(scales.lines(measured)))
        figures.write(figures.scaling, measured, output / "scaling", tell)
        return
    for what, given, known in (
        ("preset", [preset], table.PRESETS), ("objective", objective or [], {*OBJECTIVES, "sample"}),
        ("mix", mix or [], MIXES), ("against", against or [], {*BASELINES, "itself"}),
    ):  # fmt: skip
        for name in given:
            if name not in known:
                raise ConfigError(f"--{what} {name}: there is no such one; {nearest(name, known)}")
    if answers < 2 or threads < 1 or updates < 0:
        raise ConfigError("--answers is 2 or more, --threads 1 or more, --updates 0 or more")
    chosen = table.PRESETS[preset]
    cells = table.cells_of(
        chosen, model, objectives=objective or [], mixes=mix or [], against=against or [], k=answers, lora=lora,
        threads=threads, updates=updates, compiled=compiled,
    )  # fmt: skip
    cells_found = table.run(cells, output, chosen.memory, tell)
    typer.echo(json.dumps(cells_found, indent=2) if as_json else "\n".join(table.lines(cells_found)))
    if any("skipped" not in f for f in cells_found):
        figures.write(figures.race, cells_found, output / "race", tell)
    for line in (void := table.control_fails(cells_found)):
        typer.echo(f"the control fails, so these ratios are void: {line}", err=True)
    raise typer.Exit(int(bool(void)))
