"""Learning from its own answers on the command line: `loop`, `pair`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from accord import config
from accord.cli.frame import ANYTHING, app, quiet_libraries, setting_help
from accord.errors import AccordError, ConfigError, nearest
from accord.objectives import table

LOOP = Path(config.__file__).parent / "online" / "loop.py"
PATHS = ("model", "prompts", "beside")


class _Loop(TyperCommand):
    """Its options are the settings of a loop, read from where they are declared."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        from accord.online.methods import presets

        with formatter.section("Presets: --preset NAME"):
            formatter.write_dl([(name, f"{p.about} ({p.paper})") for name, p in presets().items()])
        with formatter.section("Settings"):
            formatter.write_dl([setting_help(s) for s in config.keywords(LOOP, "loop").values()])
        with formatter.section("Settings of training"):
            formatter.write_text(
                "--learning-rate 1e-6 and such: see `accord train --help`; --beta 0.2 and such: see `accord objectives "
                "NAME`; --pair.rule and such: see `accord pair --help`."
            )
        super().format_options(ctx, formatter)


@app.command(
    cls=_Loop,
    context_settings={**ANYTHING, "max_content_width": 100},
    options_metavar="[CONFIG.yaml] [--KEY VALUE | KEY=VALUE ...]",
)
def loop(context: typer.Context) -> None:
    """Learn from the model's own answers: sample, judge, pair, train, round after round.

    Settings come from a preset, over it a file, over it what is typed. Run the same command again to go on with a loop
    that was stopped.
    """
    words = list(context.args)
    values: dict[str, Any] = {}
    if words and not words[0].startswith("--") and "=" not in words[0]:
        file = Path(words[0])
        values, words = _beside(config.read(file), file), words[1:]
    values.pop("content", None)  # of a loop.yaml
    given = config.merged(values, config.parse(words))
    name = given.pop("preset", None)
    if name is not None:
        from accord.online.methods import preset

        given = _over(preset(name).settings, given)
    checked = checked_loop(given)
    quiet_libraries()
    from accord.online.loop import loop as run

    if not run(**checked).finished:
        raise typer.Exit(130)


def _over(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What is given over a preset; the options of the preset's objective go with another objective."""
    if "objective" in given and given["objective"] != settings.get("objective"):
        row = given["objective"]
        known = set(config.settings()) | set(config.keywords(LOOP, "loop"))
        known |= set(table.find(row).options) if isinstance(row, str) else set()
        settings = {k: v for k, v in settings.items() if k in known}
    return config.merged(settings, given)


def checked_loop(given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a loop and of its training, with their types.

    Raises:
        ConfigError: one is unknown, missing, or of another type.
    """
    given = {str(k).replace("-", "_"): v for k, v in given.items()}
    names = config.keywords(LOOP, "loop")
    own = {k: v for k, v in given.items() if k in names}
    rest = {k: v for k, v in given.items() if k not in names}
    if "data" in rest or "eval_data" in rest:
        raise ConfigError("a loop learns from its own answers: give prompts, not data")
    stand_in = {"model": "m", "data": "d", "objective": own.get("objective", "dpo")}
    checked = config.check(stand_in | rest, beside=names)
    return config.typed(own, LOOP, "loop") | {k: v for k, v in checked.items() if k not in stand_in}


def _beside(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Paths of a file elsewhere: what is not below the working folder is looked for beside the file."""
    for key in PATHS:
        name = values.get(key)
        if isinstance(name, str) and not Path(name).exists() and (file.parent / name).exists():
            values[key] = str(file.parent / name)
    return values


class _Pair(TyperCommand):
    """Its options are those of pairing, read from where they are declared."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        from accord.online import pairing

        with formatter.section("Settings"):
            formatter.write_dl([("--output FILE", "A .jsonl file (also .gz, .bz2, .xz, .zst), or .parquet. [required]"),
                                ("--judges NAMES", "Whose judgements count; by default everybody's."),
                                ("--seed int", "Of what is drawn. [default 0]"),
                                ("--overwrite", "Replace what is there.")])  # fmt: skip
            formatter.write_dl(pairing.described())
        for name, rows in (("Rules", {r: pairing.says(r) for r in pairing.RULES}),
                           ("Labels", {k: (f.__doc__ or "").strip() for k, f in pairing.LABELS.items()})):  # fmt: skip
            with formatter.section(name):
                formatter.write_dl(list(rows.items()))
        super().format_options(ctx, formatter)


@app.command(
    cls=_Pair,
    context_settings={**ANYTHING, "max_content_width": 100},
    options_metavar="FILE... --output FILE [--KEY VALUE | KEY=VALUE ...]",
)
def pair(context: typer.Context) -> None:
    """Pairs for training from judged answers: who with whom, and how surely."""
    words = list(context.args)
    first = next((i for i, w in enumerate(words) if w.startswith("--") or "=" in w), len(words))
    files, given = words[:first], config.parse(words[first:])
    own = {k: given.pop(k, None) for k in ("output", "judges", "seed", "overwrite", "json")}
    if not files or own["output"] is None:
        raise ConfigError("name the files of judged records, and --output FILE")
    from accord.data import sources
    from accord.data.views import Counts
    from accord.data.write import Writer
    from accord.online import pairing

    options = pairing.PairOptions.of(given)
    judges = [own["judges"]] if isinstance(own["judges"], str) else own["judges"]
    counts = Counts()
    records = [r for file in files for r in sources.load(file).records]
    if judges and (unheard := set(judges) - (heard := {j.by for r in records for j in r.judgements})):
        raise ConfigError(f"nobody called {min(unheard)!r} judged in {', '.join(files)}; "
                          f"{nearest(min(unheard), [h for h in heard if h])}")  # fmt: skip
    made = pairing.pair(records, options, seed=int(own["seed"] or 0), judges=judges, counts=counts)
    if not made:
        left = "; ".join(f"{what}: {times:,}" for what, times in counts.totals().items())
        raise AccordError(f"none of {len(records):,} records makes a pair ({left})")
    with Writer(Path(own["output"]), overwrite=bool(own["overwrite"])) as writer:
        for record in made:
            writer.add(record)
    found = {"records": len(records), "made": len(made), "output": str(own["output"]), "left": counts.totals()}
    if own["json"]:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    typer.echo(f"{len(made):,} records from {len(records):,}: {own['output']}")
    for what, times in counts.totals().items():
        typer.echo(f"  {what}: {times:,}")
