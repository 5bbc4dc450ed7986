"""What the user types. Every command is a few lines over the rooms below; heavy imports happen inside commands."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from accord import config
from accord.errors import AccordError, ConfigError
from accord.objectives import table

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Align a causal language model with whatever feedback there is, and see what that did to it.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at feedback before training on it.")
app.add_typer(data_app, name="data")
ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Train(TyperCommand):
    """Its options are the settings of a run: read from where they are declared, when help is asked for."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Settings"):
            formatter.write_dl([_setting(s) for s in config.settings().values() if s.name not in config.PYTHON_ONLY])
        with formatter.section("Options of the objective"):
            formatter.write_text("--beta 0.2 and such: see `accord objectives NAME`.")
        super().format_options(ctx, formatter)


def _setting(s: config.Setting) -> tuple[str, str]:
    default = "required" if s.required else "" if s.default in (None, False) else f"default {s.default}"
    form = "" if s.form == "bool" else s.form
    return f"--{s.name.replace('_', '-')} {form}".strip(), s.help + (f" [{default}]" if default else "")


@app.command(
    cls=_Train,
    context_settings={**ANYTHING, "max_content_width": 100},
    options_metavar="[CONFIG.yaml] [--KEY VALUE | KEY=VALUE ...]",
)
def train(context: typer.Context) -> None:
    """Align a model, by a file of settings, by options, or by both.

    `view.threshold=7` sets a key within a setting, and --data may be given several times. The config.yaml of a finished
    run repeats it into the next free folder.
    """
    words = list(context.args)
    values: dict[str, Any] = {}
    if words and not words[0].startswith("--") and "=" not in words[0]:
        path = Path(words.pop(0))
        values = config.read(path)
        given = config.parse(words)
        if "output" not in given and not given.get("overwrite") and _is_own_config(path, values):
            given["output"] = _next_to(path.parent)
            if not (given.get("quiet") or int(os.environ.get("RANK", "0"))):
                typer.echo(f"{path.parent} is finished; it is repeated in {given['output']}")
    else:
        given = config.parse(words)
    checked = config.check(_merged(values, given))
    _quiet_libraries()
    from accord.training import parallel
    from accord.training.run import train as run

    try:
        finished = run(**checked)
    finally:
        parallel.stop()
    if finished.summary["finished"] == "interrupted":
        raise typer.Exit(130)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    both = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict) and key != "objective":
            both[key] = {**old[key], **new[key]}
    return both


def _is_own_config(path: Path, values: dict[str, Any]) -> bool:
    finished = (path.parent / "summary.json").exists() and (path.parent / "model").exists()
    return finished and Path(str(values.get("output", ""))).resolve() == path.parent.resolve()


def _next_to(folder: Path) -> str:
    """The next free folder of that name: after runs/dpo-1 comes runs/dpo-2."""
    stem, _, last = folder.name.rpartition("-")
    if not (stem and last.isdigit()):
        stem, last = folder.name, "1"
    number = int(last) + 1
    while folder.with_name(f"{stem}-{number}").exists():
        number += 1
    return str(folder.with_name(f"{stem}-{number}"))


def _quiet_libraries() -> None:
    """Bars and warnings that a user cannot act on; downloads keep their bars."""
    import warnings

    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft|torch")


@app.command(help="List the objectives, or print one: equation, options, source.")
def objectives(name: Annotated[Optional[str], typer.Argument()] = None, as_json: AsJson = False) -> None:  # noqa: UP045
    rows = [table.find(name)] if name else list(table.rows().values())
    if as_json:
        listed = [
            {
                "name": r.name, "feeds_on": r.feeds_on, "needs_reference": r.needs_reference, "paper": r.paper,
                "options": {k: o.default for k, o in r.options.items()}, "length": r.length, "unit": r.unit,
                "aliases": list(r.aliases), "summary": r.summary,
            }
            for r in rows
        ]  # fmt: skip
        typer.echo(json.dumps(listed, indent=2))
    elif name:
        typer.echo(_objective_page(rows[0]))
    else:
        width = max(len(r.name) for r in rows)
        for r in rows:
            ref = "ref" if r.needs_reference else "   "
            typer.echo(f"{r.name:<{width}}  {r.feeds_on:<6} {ref}  {r.paper:<11} {r.summary}")


def _objective_page(r: table.Row) -> str:
    options = "\n".join(f"    {k}: {o.annotation} = {o.default!r}" for k, o in r.options.items()) or "    none"
    reference = "needs a reference" if r.needs_reference else "needs no reference"
    facts = f"feeds on {r.feeds_on}; {reference}; {r.length} of token log-probs; loss per {r.unit}"
    also = f"\nalso called {', '.join(r.aliases)}" if r.aliases else ""
    paper = f"arXiv {r.paper}" if r.paper[:1].isdigit() else r.paper
    return f"{r.name}  ({paper})\n{facts}{also}\n\n{r.help.strip()}\n\nOptions\n{options}"


@app.command(help="Answers of a model to prompts, as records.")
def sample(
    model: Annotated[str, typer.Option(help="A run, folder, hub name or smollm2.")],
    prompts: Annotated[str, typer.Option(help="A file of records, prompts, or one prompt a line (.txt).")],
    output: Annotated[Optional[Path], typer.Option(help="Write records here, not to the screen.")] = None,  # noqa: UP045
    samples: Annotated[int, typer.Option(help="Answers to a prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="An answer is cut off here.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    max_prompts: Annotated[Optional[int], typer.Option(help="Only the first so many.")] = None,  # noqa: UP045
    max_length: Annotated[int, typer.Option(help="Longest prompt in tokens; the oldest turns are cut.")] = 4096,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    as_json: AsJson = False,
) -> None:
    from accord.data import sources
    from accord.data.chat import Chat
    from accord.data.records import Record
    from accord.engine import models
    from accord.sampling.local import answer
    from accord.training.watch import Console, Quiet

    if prompts.endswith(".txt"):
        try:
            lines = Path(prompts).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise AccordError(f"{prompts}: {getattr(error, 'strerror', None) or error}") from None
        asked = [Record(prompt=line, source=Path(prompts).stem) for line in lines if line.strip()]
    else:
        asked = sources.load(prompts).records
    asked = asked[:max_prompts]
    if not asked:
        raise AccordError(f"{prompts} holds no prompt")
    _quiet_libraries()
    policy = models.load(model, device=device, precision=precision)  # type: ignore[arg-type]
    chat = Chat(policy.tokenizer, max_length=max_length)
    with (Quiet() if as_json else Console()).task("sampling") as advance:
        answers = answer(
            policy, chat, asked, samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            seed=seed, progress=advance,
        )  # fmt: skip
    made = [
        Record(prompt=r.prompt, tools=r.tools, responses=tuple(a), source=r.source)
        for r, a in zip(asked, answers, strict=True)
    ]
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        models.write_whole(output, "".join(r.to_json() + "\n" for r in made))
        told = {"prompts": len(made), "answers": sum(len(r.responses) for r in made), "output": str(output)}
        typer.echo(json.dumps(told) if as_json else "{prompts:,} prompts, {answers:,} answers: {output}".format(**told))
    elif as_json:
        for r in made:
            typer.echo(r.to_json())
    else:
        for r in made:
            typer.echo(f"> {r.prompt if isinstance(r.prompt, str) else r.prompt[-1].content}")
            for a in r.responses:
                typer.echo(f"  {a.plain_text}\n")


@data_app.command("check", help="What a file was taken for, and everything odd in it.")
def data_check(
    file: str,
    columns: Annotated[Optional[str], typer.Option(help="Rename columns: prompt=question,chosen=good.")] = None,  # noqa: UP045
    strict: Annotated[bool, typer.Option(help="Fail if anything is odd.")] = False,
    as_json: AsJson = False,
) -> None:
    from accord.data import checks

    if columns and not re.fullmatch(r"[^=,]+=[^=,]+(,[^=,]+=[^=,]+)*", columns):
        raise ConfigError(f"--columns {columns}: write it as prompt=question,chosen=good")
    story = checks.check(file, columns=dict(p.split("=") for p in columns.split(",")) if columns else None)
    if as_json:
        typer.echo(json.dumps(story.as_dict(), indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(story.lines()))
    if strict and story.odd:
        raise typer.Exit(1)


@data_app.command("show", help="Records as the model sees them: which tokens are trained, special tokens visible.")
def data_show(
    file: str,
    model: Annotated[str, typer.Option(help="Whose tokenizer and template.")],
    records: Annotated[int, typer.Option(help="How many.")] = 3,
    max_length: Annotated[int, typer.Option(help="Longest sequence in tokens, as in training.")] = 1024,
) -> None:
    from rich.console import Console as Terminal

    from accord.data import checks, sources
    from accord.data.chat import Chat
    from accord.engine import models

    found = sources.load(file).records[:records]
    _quiet_libraries()
    chat = Chat(models.load_tokenizer(model), max_length=max_length)
    out = Terminal(highlight=False, soft_wrap=True)
    out.print(chat.told)
    out.print("[dim]context[/dim]  [bold green]trained[/bold green]  [yellow]seen, not trained[/yellow]")
    for record in found:
        for text in ("", *checks.shown(record, chat)):
            out.print(text)


@app.command(help="First success: align SmolLM2-135M-Instruct with the bundled slogans and show before and after.")
def quickstart(
    output: Annotated[str, typer.Option(help="The run folder.")] = "runs/quickstart",
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier quickstart.")] = True,
) -> None:
    _quiet_libraries()
    from accord.quickstart import quickstart as run

    run(output=output, seed=seed, precision=precision, overwrite=overwrite)  # type: ignore[arg-type]


@app.command(help="Write report.html of runs again from their folders.")
def report(runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]) -> None:
    from accord.report.render import write_report

    for run in runs:
        typer.echo(write_report(run))


def main(words: list[str] | None = None) -> None:
    """The command `accord`: mistakes of the user are one sentence and exit status 2."""
    try:
        app(words)
    except AccordError as error:
        typer.echo(f"accord: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
