"""Looking things up on the command line: `objectives`, `lab`, `doctor`."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from accord import config
from accord.cli.frame import ANYTHING, LOOK, AsJson, app, objective_names, quiet_libraries, setting_help
from accord.errors import ConfigError, nearest
from accord.objectives import table


def _lab_names(incomplete: str) -> list[str]:
    return [n for n in _labs() if n.startswith(incomplete)]


@app.command(
    help="List the objectives, or print one: equation, options, source; `check NAME` judges one by the laws.",
    rich_help_panel=LOOK,
)
def objectives(
    name: Annotated[str | None, typer.Argument(autocompletion=objective_names)] = None,
    checked: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What to check, like my.py:name.")] = None,
    tree: Annotated[bool, typer.Option("--tree", help="How they relate.")] = False,
    as_json: AsJson = False,
) -> None:
    if tree:
        from accord.objectives import relations

        typer.echo("\n".join(relations.tree()))
        return
    if name == "check":
        raise typer.Exit(_judge(checked, as_json))
    if checked:
        raise ConfigError(f"{checked!r}: name one objective, or write `accord objectives check {checked}`")
    rows = [table.find(name)] if name else list(table.rows().values())
    if as_json:
        from accord.objectives import facts

        listed = [
            {
                "name": r.name, "feeds_on": r.feeds_on, "needs_reference": r.needs_reference, "paper": r.paper,
                "options": {k: o.default for k, o in r.options.items()}, "length": r.length, "unit": r.unit,
                "aliases": list(r.aliases), "summary": r.summary,
                "needs": list(r.needs), "invariance": r.invariance, "init": r.init, "tails": facts.tails(r),
                "exceptions": r.exceptions, "help": r.help.strip(),
            }
            for r in rows
        ]  # fmt: skip
        typer.echo(json.dumps(listed, indent=2))
    elif name:
        typer.echo(_objective_page(rows[0]))
    else:
        width = max(len(r.name) for r in rows)
        typer.echo(f"{'name':<{width}}  {'fed on':<6} ref  {'arXiv':<11} what it is; ref: compared with a reference")
        for _, family in groupby(sorted(rows, key=_family), _family):
            typer.echo()
            for r in family:
                ref = "ref" if r.needs_reference else "   "
                typer.echo(f"{r.name:<{width}}  {r.feeds_on:<6} {ref}  {r.paper:<11} {r.summary}")


FAMILIES = (
    "demos", "pairs", "offsets", "divergences", "tokens", "sums", "free", "coupled", "moving", "points", "lists",
    "games", "negatives", "rewards", "rollouts",
)  # fmt: skip


def _family(row: table.Row) -> int:
    return FAMILIES.index(row.module.rpartition(".")[2])


def _judge(name: str | None, as_json: bool) -> int:
    """Runs the laws on one objective; 1 if it breaks one that it does not declare."""
    if name is None:
        raise ConfigError("name what to check, like my.py:name")
    row = table.find(name)
    from accord.lab.laws import LAWS, check

    found = check(row)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    for number, seen in found.items() if not as_json else ():
        law = (LAWS[number].__doc__ or "").split(": ")[0].strip().splitlines()[0].rstrip(".")
        declared = f" (declared: {row.exceptions[number]})" if number in row.exceptions else ""
        typer.echo(f"{'ok  ' if seen is None else 'FAIL'} {number:>2} {law}{declared}")
        if seen:
            typer.echo(f"        {seen}")
    return int(any(found.values()))


def _objective_page(r: table.Row) -> str:
    from accord.objectives.facts import lines

    options = "\n".join(f"    {k}: {o.annotation} = {o.default!r}" for k, o in r.options.items()) or "    none"
    reference = "needs a reference" if r.needs_reference else "needs no reference"
    facts = f"feeds on {r.feeds_on}; {reference}; {r.length} of token log-probs; loss per {r.unit}"
    also = f"\nalso called {', '.join(r.aliases)}" if r.aliases else ""
    paper = f"arXiv {r.paper}" if r.paper[:1].isdigit() else r.paper
    known = "\n".join(f"    {line}" for line in lines(r))
    return f"{r.name}  ({paper})\n{facts}{also}\n\n{r.help.strip()}\n\nOptions\n{options}\n\nFacts\n{known}"


class _Lab(TyperCommand):
    """Its options are the keywords of each lab's `run`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for name, file in _labs().items():
            with formatter.section(f"Options of {name}"):
                found = [s for s in config.keywords(file, "run").values() if s.name not in ("seeds", "progress")]
                formatter.write_dl([setting_help(s) for s in found])
        with formatter.section("Options of an objective"):
            formatter.write_text("--beta 0.2 and such, where a lab has --objective.")
        super().format_options(ctx, formatter)


def _labs() -> dict[str, Path]:
    from accord.lab import frame

    return {name: frame.file_of(name) for name in frame.LABS}


@app.command(
    cls=_Lab,
    context_settings={**ANYTHING, "max_content_width": 100},
    options_metavar="[--KEY VALUE | KEY=VALUE ...]",
    rich_help_panel=LOOK,
)
def lab(
    context: typer.Context,
    name: Annotated[
        Optional[str], typer.Argument(help="Which one; without it they are listed.", autocompletion=_lab_names)  # noqa: UP045
    ] = None,
    seeds: Annotated[Optional[int], typer.Option(help="So many repetitions, seeds 0, 1, ...")] = None,  # noqa: UP045
    out: Annotated[
        Optional[Path], typer.Option(help="The folder of numbers and figures [default runs/lab-NAME].")  # noqa: UP045
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What an objective really does, in worlds small enough to know the truth.

    Claims are printed in words; numbers (JSON) and figures (PNG, SVG) are written. --json prints the numbers instead.
    """
    from accord.lab import frame

    if name is None:
        for each in frame.LABS:
            typer.echo(f"{each:<{max(map(len, frame.LABS))}}  {frame.summary(each)}")
        return
    file = frame.file_of(name)
    words = list(context.args)
    only = words.pop(0) if words and not words[0].startswith("--") and "=" not in words[0] else None
    given = config.parse(words) | ({"only": only} if only else {}) | ({"seeds": seeds} if seeds is not None else {})
    known = config.keywords(file, "run").keys() - {"progress"}
    of_rows = {o for r in table.rows().values() for o in r.options} if "objective" in known else set()
    for key in given:
        if key not in known | of_rows:
            raise ConfigError(f"{key!r} is no option of lab {name}; {nearest(key, known)}")
    if seeds is not None and seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least 1 is needed")
    if out and "folder" in known:
        given.setdefault("folder", str(out))
    import importlib

    from accord.sinks import jsonable
    from accord.training.watch import Console, Quiet

    run = importlib.import_module(f"accord.lab.{file.stem}").run
    if "transformers" in sys.modules:  # a lab on text
        quiet_libraries()
    found = run(**config.typed(given | {"progress": Quiet() if as_json else Console()}, file, "run"))
    folder = out or Path("runs") / f"lab-{name}"
    paths = found.write(folder) if out or not as_json else []
    if as_json:
        typer.echo(json.dumps(jsonable(found.as_dict()), indent=2))
        return
    for claim in found.claims:
        typer.echo(f"{claim}\n")
    typer.echo(f"{len(paths)} files in {folder}: {paths[0].name}, and figures as PNG and SVG")


@app.command(
    context_settings={**ANYTHING, "max_content_width": 100},
    options_metavar="[RUN | --KEY VALUE ...]",
    rich_help_panel=LOOK,
)
def doctor(context: typer.Context, as_json: AsJson = False) -> None:
    """Whether this machine is ready: versions, processor, GPUs, memory, and a test.

    With the folder of a run: what monitors say of it. With --model, --data and other settings of a run: what it would
    cost, whether it starts where it must, and what monitors say to twenty steps of it.
    """
    words = list(context.args)
    run = Path(words.pop(0)) if words and not words[0].startswith("--") and "=" not in words[0] else None
    if run is not None and words:
        raise ConfigError("the doctor looks at a run, or at settings before a run: leave out one of them")
    given = config.check(config.merged({}, config.parse(words))) if words else {}
    quiet_libraries()
    from accord.doctor import before, examine, of_run

    lines = []
    for line in of_run(run) if run is not None else before(given) if given else examine():
        lines.append(line)
        if not as_json:
            typer.echo(
                f"{line.status:<5} {line.name}: {line.says}" + (f"\n      -> {line.remedy}" if line.remedy else "")
            )
    if as_json:
        typer.echo(json.dumps([vars(line) for line in lines], indent=2))
    if any(line.status == "fail" for line in lines):
        raise typer.Exit(1)
