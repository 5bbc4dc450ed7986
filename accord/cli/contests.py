"""Models against each other on the command line: `eval winrate`, `eval ratings`, `eval scores`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from accord.cli.evaluate import Beta, LengthRule, Longest, Reference, eval_app, finish
from accord.cli.frame import AsJson, DeviceName, Overwrite, Precision, quiet_libraries

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="Answers of a model each, run folders, or verdicts: records, or in the layouts of AlpacaEval, Arena-Hard "
        "and MT-bench.",
    ),
]
Who = Annotated[Optional[str], typer.Option("--judge", metavar="WORDS", help="Who judges; without one, the files say.")]  # noqa: UP045
Questions = Annotated[Optional[str], typer.Option(help="What was asked, where answers only name a question_id.")]  # noqa: UP045
By = Annotated[Optional[str], typer.Option(help="Only what this judge of the files says.")]  # noqa: UP045
Order = Annotated[str, typer.Option(help="both, random or fixed: which answer a judge that compares sees first.")]
Ties = Annotated[str, typer.Option(help="mean, agree or other: what two orders make together.")]
Ridge = Annotated[float, typer.Option(help="Draws Bradley-Terry ratings together; needed where somebody never lost.")]
Anchor = Annotated[Optional[str], typer.Option(help="Who has a rating of exactly 1000.")]  # noqa: UP045
Draw = Annotated[int, typer.Option(help="Of intervals, folds and drawn orders.")]
Output = Annotated[Optional[Path], typer.Option(help="The folder to write [default runs/eval-NAME].")]  # noqa: UP045


@contextlib.contextmanager
def _contest(
    files: list[str], questions: str | None, words: str | None, folder: Path | None, as_json: bool,
    reference: str | None, beta: float, length: str, loading: dict[str, Any], judging: dict[str, Any],
) -> Iterator[Any]:  # fmt: skip
    """What the files say, or what the judge says of the answers in them."""
    from accord.evaluate.contests import collect

    made = collect(files, questions=questions)
    if words is None:
        yield made
        return
    quiet_libraries()
    from accord.evaluate.scorers import find
    from accord.evaluate.winrate import judged_games
    from accord.training.watch import Console, Quiet

    judge = find(words, reference=reference, beta=beta, length=length, **loading)  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        kept = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with (Quiet() if as_json else Console()).task("judging") as say:
            made = judged_games(made, judge, kept, say=say, **judging)
        yield made


@eval_app.command(
    "winrate",
    help="Which of two models, or more, answers better: win rate, both orders, ties, at equal length, with intervals.",
)
def winrate(
    files: Files,
    judge: Who = None,
    questions: Questions = None,
    by: By = None,
    against: Annotated[Optional[str], typer.Option(help="Only games against this model.")] = None,  # noqa: UP045
    order: Order = "both",
    ties: Ties = "mean",
    ridge: Ridge = 0.0,
    anchor: Anchor = None,
    reference: Reference = None,
    beta: Beta = 0.1,
    length: LengthRule = "sum",
    max_length: Longest = None,
    seed: Draw = 0,
    output: Output = None,
    overwrite: Overwrite = False,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    folder = output or (None if as_json else Path("runs/eval-winrate"))
    loading = {"max_length": max_length, "device": device, "precision": precision}
    judging = {"order": order, "seed": seed, "overwrite": overwrite}
    with _contest(files, questions, judge, folder, as_json, reference, beta, length, loading, judging) as made:
        from accord.evaluate.winrate import winrates

        found = winrates(made, by=by, against=against, ties=ties, ridge=ridge, anchor=anchor, seed=seed)
    finish(found, output, Path("runs/eval-winrate"), as_json)


@eval_app.command("ratings", help="Bradley-Terry and Elo ratings of models, by verdicts that stand in files.")
def ratings(
    files: Files,
    by: By = None,
    ties: Ties = "mean",
    ridge: Ridge = 0.0,
    anchor: Anchor = None,
    k: Annotated[float, typer.Option(help="Of Elo: points that a game moves at most.")] = 4.0,
    seed: Draw = 0,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    from accord.evaluate.contests import collect
    from accord.evaluate.winrate import winrates

    found = winrates(collect(files), by=by, ties=ties, rating=True, ridge=ridge, anchor=anchor, k=k, seed=seed)
    finish(found, output, Path("runs/eval-ratings"), as_json)


@eval_app.command("scores", help="Mean score of single answers, by model and by turn, with intervals.")
def scores(
    files: Files,
    judge: Who = None,
    questions: Questions = None,
    by: By = None,
    reference: Reference = None,
    beta: Beta = 0.1,
    length: LengthRule = "sum",
    max_length: Longest = None,
    seed: Draw = 0,
    output: Output = None,
    overwrite: Overwrite = False,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    folder = output or (None if as_json else Path("runs/eval-scores"))
    loading = {"max_length": max_length, "device": device, "precision": precision}
    judging = {"alone": True, "overwrite": overwrite}
    with _contest(files, questions, judge, folder, as_json, reference, beta, length, loading, judging) as made:
        from accord.evaluate.winrate import scores as scored

        found = scored(made, by=by, seed=seed)
    finish(found, output, Path("runs/eval-scores"), as_json)


@eval_app.command(
    "text", help="What answers are like: length, variety, pass@k, shares that a judge finds (refusals), perplexity."
)
def text(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Answers: files, folders, globs, data sets.")],
    model: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--model", help="Perplexity under this model; may be given again, for a reference, say."),
    ] = None,
    k: Annotated[Optional[str], typer.Option(help="Of pass@k, such as 1,5,10; the files say what is right.")] = None,  # noqa: UP045
    by: Annotated[Optional[str], typer.Option(help="Who says what is right.")] = None,  # noqa: UP045
    rate: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="WORDS", help="Share of answers that this judge gives 0.5 or more, by source: refusal."),
    ] = None,
    max_length: Longest = None,
    output: Output = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    from accord.errors import ConfigError

    tries = [int(n) if n.strip().isdecimal() else 0 for n in (k or "").split(",")] if k is not None else []
    if 0 in tries:
        raise ConfigError(f"--k {k}: whole numbers from 1, such as 1,5,10")
    quiet_libraries()
    from accord.data import sources
    from accord.evaluate.scorers import find
    from accord.evaluate.text import Texts, describe
    from accord.training.watch import Console, Quiet

    judges = [find(words, device=device, precision=precision) for words in rate or []]  # type: ignore[arg-type]
    asked: dict[str, Any] = {"ks": tries, "by": by, "judges": judges, "models_": model or []}
    asked |= {"max_length": max_length or 4096, "device": device, "precision": precision}
    with (Quiet() if as_json else Console()).task("measuring") as say:
        found = Texts([describe(name, sources.load(name).records, say=say, **asked) for name in files])
    finish(found, output, Path("runs/eval-text"), as_json)
