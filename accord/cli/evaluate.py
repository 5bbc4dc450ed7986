"""Evaluation on the command line: `eval rewards`, `eval ranking`, `data strength`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from accord.cli.data import Columns, LayoutName, OnBadRecord, renamed
from accord.cli.frame import (
    LOOK,
    AsJson,
    DeviceName,
    Overwrite,
    Precision,
    RecordsFile,
    app,
    data_app,
    quiet_libraries,
    tell,
)
from accord.errors import ConfigError

eval_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="How good is a model, and how sure is that?")
app.add_typer(eval_app, name="eval", rich_help_panel=LOOK)

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Reward models; policies (with --reference); by:NAME, scores in the file; rules (slogan:words=5).",
    ),
]
DataFile = Annotated[
    list[str],
    typer.Option(help="A file, folder, glob, bundled or hub data set, with pairs; may be given several times."),
]
Reference = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Whose log-probs a policy's are held against: its reward is beta * log-ratio."),
]
Beta = Annotated[float, typer.Option(help="Of implicit rewards.")]
Longest = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Longest dialogue in tokens [default: as the reward model was trained, else 4096]."),
]
LengthRule = Annotated[str, typer.Option(help="sum or mean of a policy's log-probs over tokens.")]


def _read(data: list[str], columns: str | None, layout: str | None, on_bad_record: str) -> tuple[list[Any], list[str]]:
    """The records of all files, and what is told of each."""
    from accord.data import sources

    loaded = [sources.load(d, columns=renamed(columns), layout=layout, on_error=on_bad_record) for d in data]
    return [r for one in loaded for r in one.records], [one.told for one in loaded]


def _judges(words: list[str], reference: str | None, beta: float, length: str, **loading: Any) -> list[Any]:
    if length not in ("sum", "mean"):
        raise ConfigError(f"--length {length}: sum or mean")
    if not beta > 0:
        raise ConfigError(f"--beta {beta:g} must be above 0")
    quiet_libraries()
    from accord.evaluate.scorers import find

    return [find(w, reference=reference, beta=beta, length=length, **loading) for w in words]  # type: ignore[arg-type]


@eval_app.command(
    "rewards", help="Reward models on pairs: accuracy, calibration with its floor, length bias, agreement, drift."
)
def rewards(
    models: Models,
    data: DataFile,
    protocol: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="rewardbench, rewardbench2 or rag-rewardbench: their sections and weights, over a file."),
    ] = None,
    reference: Reference = None,
    beta: Beta = 0.1,
    length: LengthRule = "sum",
    attribute: Annotated[Optional[str], typer.Option(help="Only what people said of this attribute.")] = None,  # noqa: UP045
    output: Annotated[Optional[Path], typer.Option(help="The folder to write [default runs/eval-rewards].")] = None,  # noqa: UP045
    max_length: Longest = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    columns: Columns = None,
    layout: LayoutName = None,
    on_bad_record: OnBadRecord = "raise",
    as_json: AsJson = False,
) -> None:
    records, told = _read(data, columns, layout, on_bad_record)
    if protocol is not None:
        from accord.evaluate import protocols

        protocols.find(protocol)
    loading = {"max_length": max_length, "device": device, "precision": precision}
    judges = _judges(models, reference, beta, length, **loading)
    from accord.data.views import ViewOptions
    from accord.evaluate.rewards import evaluate
    from accord.training.watch import Console, Quiet

    with (Quiet() if as_json else Console()).task("scoring") as say:
        if protocol is not None:
            found: Any = protocols.run(protocol, records, judges, told=told, say=say)
        else:
            options = ViewOptions(ties="half", attribute=attribute)
            found = evaluate(records, judges, told=told, options=options, say=say)
    finish(found, output, Path("runs/eval-rewards"), as_json)


def finish(found: Any, output: Path | None, usual: Path, as_json: bool) -> None:
    """Writes what was found, unless it is only wanted as JSON, and tells it."""
    paths = found.write(output or usual) if output or not as_json else []
    tell(found, as_json)
    if paths and not as_json:
        typer.echo(f"\n{output or usual}: {', '.join(p.name for p in paths)}")


@eval_app.command("ranking", help="Whether a policy finds the better answer likelier, and what training could reach.")
def ranking(
    policy: Annotated[str, typer.Argument(help="A run, folder, hub name or smollm2.")],
    data: DataFile,
    reference: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What it was trained from: for the idealised accuracy and the loss that a pair needs."),
    ] = None,
    beta: Annotated[Optional[float], typer.Option(help="Only this one [default 0.01, 0.1, 1, 5 and 10].")] = None,  # noqa: UP045
    agreement: Annotated[
        float, typer.Option(help="Share of people who prefer chosen, where the data do not say.")
    ] = 0.75,
    output: Annotated[Optional[Path], typer.Option(help="The folder to write [default runs/eval-ranking].")] = None,  # noqa: UP045
    max_length: Longest = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    columns: Columns = None,
    layout: LayoutName = None,
    on_bad_record: OnBadRecord = "raise",
    as_json: AsJson = False,
) -> None:
    records, told = _read(data, columns, layout, on_bad_record)
    quiet_libraries()
    from accord.evaluate.ranking import BETAS, rank
    from accord.training.watch import Console, Quiet

    with (Quiet() if as_json else Console()).task("scoring") as say:
        found = rank(
            policy, records, reference=reference, betas=(beta,) if beta is not None else BETAS,
            agreement=agreement, max_length=max_length or 4096, device=device, precision=precision, told=told,  # type: ignore[arg-type]
            say=say,
        )  # fmt: skip
    finish(found, output, Path("runs/eval-ranking"), as_json)


@data_app.command(
    "strength", help="How far an ensemble of reward models believes each pair: mean margin and deviation."
)
def data_strength(
    file: Annotated[str, typer.Argument(help="A file, folder, glob, bundled or hub data set, with pairs.")],
    models: Models,
    output: RecordsFile,
    passes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Each reward model so many times, its head under dropout: one model as an ensemble."),
    ] = None,
    dropout: Annotated[float, typer.Option(help="Share of hidden units that a pass drops.")] = 0.1,
    reference: Reference = None,
    beta: Beta = 0.1,
    length: LengthRule = "sum",
    max_length: Longest = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    columns: Columns = None,
    layout: LayoutName = None,
    on_bad_record: OnBadRecord = "raise",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    records, told = _read([file], columns, layout, on_bad_record)
    loading = {"max_length": max_length, "device": device, "precision": precision}
    judges = _judges(models, reference, beta, length, **loading)
    if passes is not None:
        from accord.evaluate.scorers import dropped

        judges = [judge for one in judges for judge in dropped(one, passes, dropout)]
    from accord.evaluate.strength import weigh
    from accord.training.watch import Console, Quiet

    with (Quiet() if as_json else Console()).task("weighing") as say:
        found = weigh(records, judges, output, overwrite=overwrite, told=told, say=say)
    tell(found, as_json)
