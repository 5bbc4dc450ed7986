"""Models on the command line: `sample`, `chat`, `export`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from accord.cli.frame import (
    MODELS,
    AsJson,
    DeviceName,
    JudgeWords,
    MaxNewTokens,
    Overwrite,
    Precision,
    RunName,
    TopP,
    app,
    quiet_libraries,
)
from accord.errors import AccordError, ConfigError


@app.command(help="Answers of a model to prompts, as records.", rich_help_panel=MODELS)
def sample(
    prompts: Annotated[
        str, typer.Option(help="A file of records, prompts, or one prompt a line (.txt); - reads either.")
    ],
    model: Annotated[Optional[str], typer.Option(help="A run, folder, hub name or smollm2.")] = None,  # noqa: UP045
    sampler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="URL[,model=M,...]", help="A server that answers in place of --model."),
    ] = None,
    output: Annotated[Optional[Path], typer.Option(help="Write records here, not to the screen.")] = None,  # noqa: UP045
    samples: Annotated[int, typer.Option("--samples", "-n", help="Answers to a prompt.")] = 1,
    revise: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="TEXT", help="Revise the answers of the file, at this request: 'Improve your answer.'"),
    ] = None,
    judge: JudgeWords = None,
    keep: Annotated[
        Optional[str], typer.Option(help="Of judged answers: all, best (demonstrations) or best_worst (pairs).")  # noqa: UP045
    ] = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_p: TopP = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    max_prompts: Annotated[Optional[int], typer.Option(help="Only the first so many.")] = None,  # noqa: UP045
    max_length: Annotated[int, typer.Option(help="Longest prompt in tokens; the oldest turns are cut.")] = 4096,
    device: DeviceName = "auto",
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    from accord.data.chat import Chat
    from accord.data.records import Record
    from accord.data.rows import many
    from accord.endpoint import Failure
    from accord.engine import models
    from accord.judges import table
    from accord.judges.keep import forget, judged_and_kept, known
    from accord.sampling import revise as revising
    from accord.sampling.local import answer
    from accord.sampling.remote import Remote
    from accord.training.watch import Console, Quiet

    if (model is None) == (sampler is None):
        raise ConfigError("say who answers: --model MODEL, or --sampler http://localhost:8000")
    if keep and judge is None:
        raise ConfigError(f"--keep {keep} keeps judged answers: name who judges them with --judge")
    what = known(keep or "all")
    asked = _asked(prompts)[:max_prompts]
    if not asked:
        raise AccordError(f"{prompts} holds no prompt")
    quiet_libraries()
    who = None if judge is None else table.find(judge, device=device, precision=precision, policy=model or "")
    remote = None if sampler is None else Remote(sampler)
    ask: Any = remote and remote.answer
    if model is not None:
        policy = models.load(model, device=device, precision=precision)  # type: ignore[arg-type]
        ask = partial(answer, policy, Chat(policy.tokenizer, max_length=max_length, stop_ids=policy.ends))
    shown = Quiet() if as_json else Console()
    shards = output and output.with_name(f".{output.name}.answers")
    questions = asked if revise is None else revising.questions(asked, revise)
    with shown.task("sampling") as advance:
        answers = ask(
            questions, samples=samples, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
            progress=advance, kept=shards,
        )  # fmt: skip
    made = (
        revising.beside(asked, answers)
        if revise is not None
        else [
            Record(prompt=r.prompt, tools=r.tools, responses=tuple(a), source=r.source)
            for r, a in zip(asked, answers, strict=True)
            if not isinstance(a, Failure)
        ]
    )
    failed = Counter(a.why for a in answers if isinstance(a, Failure))
    if not made:
        raise AccordError(f"none of {many(len(answers), 'prompts')} was answered: {failed.most_common(1)[0][0]}")
    told: dict[str, Any] = {"prompts": len(made), "answers": sum(len(a) for a in answers if not isinstance(a, Failure))}
    lines = [f"{many(told['prompts'], 'prompts')}, {many(told['answers'], 'answers')}"]
    if remote is not None:
        told |= {"failed": dict(failed), "server": remote.server.spent.as_dict()}
        lines += [f"{many(n, 'prompts')} not answered, and left out: {why}" for why, n in failed.items()]
        lines.append(f"{remote.server.url}: {remote.server.spent}")
    if who is not None:
        with shown.task("judging") as advance:
            made, story, counts = judged_and_kept(made, who, what, output, advance)
        told |= {"kept": len(made), "judge": story.tallies[0].as_dict(), "counts": counts.totals()}
        lines[0] += f", {many(len(made), 'records')} kept"
        lines += story.tallies[0].lines() + story.notes + [f"{what}: {n:,}" for what, n in counts.totals().items()]
    if output and shards:
        models.write_whole(output, "".join(r.to_json() + "\n" for r in made))
        shards.unlink()
        forget(output)
        lines[0] += f": {output}"
        typer.echo(json.dumps(told | {"output": str(output)}) if as_json else "\n".join(lines))
    elif as_json:
        for r in made:
            typer.echo(r.to_json())
    else:
        for r in made:
            typer.echo(f"> {r.prompt if isinstance(r.prompt, str) else r.prompt[-1].content}")
            for a in r.responses:
                typer.echo(f"  {a.plain_text}\n")
        for line in lines[1:]:
            typer.echo(line, err=True)


def _asked(prompts: str) -> Any:
    """Records with the prompts of a file, or of standard input: records and rows begin with a brace."""
    from accord.data import sources
    from accord.data.records import Record

    stdin: Any = sys.stdin.buffer
    if prompts == "-" and stdin.peek(1)[:1] != b"{":
        lines = list(_piped())
    elif prompts.endswith(".txt"):
        try:
            lines = Path(prompts).read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise AccordError(f"{prompts}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise AccordError(f"{prompts}: this is not UTF-8; iconv -f latin1 -t utf-8 makes it so") from None
    elif any(c.isspace() for c in prompts) and not Path(prompts).exists():
        raise AccordError(
            f"--prompts {prompts!r}: a file is expected, and there is none of that name; a prompt itself is given by "
            "standard input: echo 'Name a colour.' | accord sample --prompts - ..."
        )
    else:
        return sources.load(prompts).records
    return [Record(prompt=line.strip(), source=sources.source_name(prompts)) for line in lines if line.strip()]


@app.command(help="Talk to a model or run.", rich_help_panel=MODELS)
def chat(
    run: RunName,
    system: Annotated[Optional[str], typer.Option(help="A system message.")] = None,  # noqa: UP045
    max_new_tokens: MaxNewTokens = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.7,
    top_p: TopP = 1.0,
    seed: Annotated[int, typer.Option(help="The same words with the same seed get the same answers.")] = 0,
    max_length: Annotated[int, typer.Option(help="Longest dialogue in tokens; the oldest turns are cut.")] = 4096,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> None:
    quiet_libraries()
    from accord.data.chat import Chat
    from accord.engine import models
    from accord.sampling.talk import COMMANDS, Talk

    policy = models.load(run, device=device, precision=precision)  # type: ignore[arg-type]
    chat = Chat(policy.tokenizer, max_length=max_length, stop_ids=policy.ends)
    talk = Talk(policy, chat, system, max_new_tokens, temperature, top_p, seed)
    if sys.stdin.isatty():
        typer.echo(f"{run}: type, or {', '.join(COMMANDS)}; Ctrl-C stops an answer, Ctrl-D ends", err=True)

    def note(text: str) -> None:
        typer.echo(text, err=True)

    talk.converse(_typed(), lambda text: typer.echo(text, nl=False), note)


def _typed() -> Iterator[str]:
    """Lines of a person, or of a pipe."""
    if not sys.stdin.isatty():
        yield from _piped()
        return
    from rich.console import Console as Terminal

    terminal = Terminal()
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield terminal.input("[bold]> [/bold]")


def _piped() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            remedy = "pass it through iconv -f latin1 -t utf-8"
            raise AccordError(f"standard input, line {number}: this is not UTF-8; {remedy}") from None


@app.command(help="A run as a plain model folder, adapters merged; as GGUF, too.", rich_help_panel=MODELS)
def export(
    run: RunName,
    output: Annotated[Path, typer.Option(help="The folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Add an adapter to its base.")] = False,
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    gguf: Annotated[bool, typer.Option("--gguf", help="Write a GGUF file too, with llama.cpp's converter.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Let the model run its own code.")] = False,
) -> None:
    quiet_libraries()
    from accord.engine.export import export as write

    made = write(
        run, output, merge=merge, dtype=dtype, gguf=gguf, overwrite=overwrite, trust_remote_code=trust_remote_code,  # type: ignore[arg-type]
        say=lambda text: typer.echo(text, err=True),
    )  # fmt: skip
    typer.echo(made)
