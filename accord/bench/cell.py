"""One cell of the race, in a process of its own: the gate of equality, updates in turn, the reference pass, memory."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from accord.bench import answers, device, plain
from accord.bench.baselines import BASELINES, Theirs
from accord.bench.sides import Ours, Turn
from accord.bench.work import Update, compared, draw, least_work
from accord.errors import AccordError

LOSS, GRADIENT, CONTROL = 2e-5, 1e-4, 0.05  # what the gates allow


@dataclass(frozen=True)
class Cell:
    """What is raced.

    objective: what is trained, or `sample`: answers are sampled.
    against: a name of `BASELINES`, or `itself`: the control, in which Accord races Accord.
    warm: updates of each side that are not timed.
    batch: examples that TRL sees at a time; 0: one if it is tuned, else the whole update.
    compiled: whether Accord compiles norms and feed-forward parts.
    """

    model: str
    objective: str = "dpo"
    mix: str = "balanced"
    against: str = "tuned"
    k: int = 2
    lora: bool = False
    prompts: int = 8
    updates: int = 6
    threads: int = 1
    warm: int = 1
    batch: int = 0
    compiled: bool = False

    @property
    def name(self) -> str:
        parts = [Path(self.model).name, self.objective, self.mix, self.against, f"k{self.k}"]
        parts += ["lora"] if self.lora else []
        parts += ["compiled"] if self.compiled else []
        parts += [f"{self.prompts}x{self.updates}", f"t{self.threads}"]
        parts += [f"w{self.warm}"] if self.warm != 1 else []
        return "-".join([*parts, f"b{self.batch}"] if self.batch else parts)

    def side(self, updates: list[Update], folder: Path, precision: str | None = None) -> Ours:
        """Accord on these updates."""
        return Ours(
            Path(self.model), updates, self.objective, precision=precision or self.ours, lora=self.lora,
            compiled=self.compiled, folder=folder,
        )  # fmt: skip

    @property
    def examples(self) -> int:
        """How many an update has, as TRL counts them."""
        return self.prompts * {"sft": 1, "kto": self.k}.get(self.objective, self.k * (self.k - 1) // 2)

    @property
    def ours(self) -> str:
        """Accord's precision."""
        if self.against == "itself":
            return "fp32" if device.name() == "cpu" else "auto"
        return BASELINES[self.against].ours


def vocabulary(model: str) -> int:
    return int(json.loads((Path(model) / "config.json").read_text())["vocab_size"])


def work_of(cell: Cell) -> list[Update]:
    return draw(cell.mix, cell.k, cell.prompts, cell.updates + cell.warm, vocabulary(cell.model))


def sides_of(cell: Cell, folder: Path, who: str = "both") -> tuple[Ours | None, Theirs | Ours | plain.Plain | None]:
    """Accord, and whom it races."""
    updates, model = work_of(cell), Path(cell.model)
    ours: Ours | None = None
    theirs: Theirs | Ours | plain.Plain | None = None
    if who != "theirs":
        ours = cell.side(updates, folder / "a")
    if who != "ours" and cell.against == "itself":
        theirs = cell.side(updates, folder / "b")
    elif who != "ours" and cell.against == "plain":
        theirs = plain.Plain(model, updates, cell.objective)
    elif who != "ours":
        adapter = dict(ours.policy.model.named_parameters()) if cell.lora and ours else None
        theirs = Theirs(
            model, updates, cell.objective, cell.against, lora=cell.lora, folder=folder / "b", adapter=adapter,
            batch=cell.batch,
        )  # fmt: skip
    return ours, theirs


# -- the gate ---------------------------------------------------------------------------------------------------------


def gate(cell: Cell, folder: Path) -> dict[str, float]:
    """Loss and gradients of a perturbed policy by Accord in fp32, and by a padded forward, simply written.

    Returns:
        The loss, its difference, and the largest difference of a gradient as a part of the largest of its tensor.

    Raises:
        AccordError: a difference is above `LOSS` or `GRADIENT`: no time would mean anything.
    """
    update = draw(cell.mix, cell.k, 3, 1, vocabulary(cell.model), seed=1)[0]
    ours = cell.side([update], folder, "fp32")
    ours.prepare()
    scorer, step = ours.policy.scorer, ours.step
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in step.parameters:
            spread = p.std() if p.numel() > 1 and p.std() > 0 else torch.tensor(0.02)
            p.add_(0.02 * spread.to(p.device) * torch.randn(p.shape, generator=draws).to(p.device))
    batch = ours.schedule.batch(0)
    (_, metrics, _) = step.backward(collected := step.collect(batch, 0))
    found = {n: p.grad.clone() for n, p in scorer.named_parameters() if p.grad is not None}
    loss = metrics["loss"][0]
    for p in step.parameters:
        p.grad = None
    known = {i: float(x.sum()) for i, x in collected.fixed.get("ref_logp", {}).items()}
    reference = torch.tensor([known.get(i, 0.0) for i in range(len(collected.batch.sequences))], device=scorer.device)
    head = getattr(scorer.heads, "score", None)
    plainly = plain.loss(cell.objective, scorer.model, head, collected.batch, reference)
    plainly.backward()
    worst = 0.0
    for name, p in scorer.named_parameters():
        if p.grad is not None and (scale := float(p.grad.abs().max())) > 0:
            worst = max(worst, float((found[name] - p.grad).abs().max()) / scale if name in found else 1.0)
    apart = abs(loss - float(plainly.detach()))
    if not (apart <= LOSS * max(1.0, abs(loss)) and worst <= GRADIENT):
        raise AccordError(
            f"{cell.name}: the gate of equality failed: the loss {loss:.6f} is {apart:.2g} from that of a plain padded "
            f"forward (allowed: {LOSS}), a gradient {worst:.2g} of its tensor's largest (allowed: {GRADIENT})"
        )
    return {"loss": loss, "loss_apart": apart, "gradient_apart": worst}


# -- the race ---------------------------------------------------------------------------------------------------------


def race(cell: Cell, folder: Path) -> dict[str, Any]:
    """Gate, then updates in the order A B B A, each once by either side, and what the two reference passes took."""
    torch.set_num_threads(cell.threads)
    if cell.objective == "sample":
        return {"cell": asdict(cell), "machine": device.machine()} | answers.race(cell, work_of(cell))
    equal = gate(cell, folder / "gate")
    device.let_go()
    ours, theirs = sides_of(cell, folder)
    assert ours is not None
    assert theirs is not None
    prepared = ours.prepare()
    theirs_prepared = theirs.prepare() if isinstance(theirs, Ours) else theirs.reference
    a, b = ours.turn(), theirs.turn("other")
    counters = [counted(turn, cell.warm - 1) for turn in (a, b)]  # when all that is chosen by trying is chosen
    compute = ours.policy.scorer.compute
    before = device.peak(compute)
    for i in range(cell.warm + cell.updates):
        for turn in (a, b) if i % 2 == 0 else (b, a):
            turn.go()
    after = device.peak(compute)
    a.stop()
    b.stop()
    updates = [u.seen(cell.objective) for u in work_of(cell)]
    least = [least_work(ours.policy.model, u, cell.objective, cell.lora) for u in updates]
    about = device.machine()
    sheet = device.sheet(about["device"], compute)
    found = compared(cell.warm, [a.seconds, b.seconds], [a.wall, b.wall], least, max(before, after), sheet)
    unique, repeated = [u.unique for u in updates], [u.repeated(cell.objective) for u in updates]
    timed = found["seconds"]["accord"]
    work = [float(c.get_total_flops()) / least[cell.warm - 1] for c in counters]
    return {
        "cell": asdict(cell), "machine": about, "gate": equal, **found,
        "losses": {"accord": a.losses, "other": b.losses},
        "losses_apart": max(abs(x - y) for x, y in zip(a.losses[:3], b.losses[:3], strict=True)),
        "peak": [before, after], "sheet": sheet, "least": least, "products": {"accord": work[0], "other": work[1]},
        "tokens": {"unique": unique, "repeated": repeated},
        "speed": statistics.median(n / t for n, t in zip(unique[cell.warm :], timed, strict=True)),
        "effective": statistics.median(n / t for n, t in zip(repeated[cell.warm :], timed, strict=True)),
        "reference": {"accord": prepared, "other": theirs_prepared},
    }  # fmt: skip


def counted(turn: Turn, at: int) -> FlopCounterMode:
    """Counts the operations of the matrix products of update `at` of a loop, which has not begun.

    The mode belongs to a thread, so the loop's own enters and leaves it.
    """
    body, counter, done = turn.body, FlopCounterMode(display=False), 0

    def counting(ended: Callable[[float], None]) -> None:
        def once(loss: float) -> None:
            nonlocal done
            if done == at:
                counter.__exit__(None, None, None)
            done += 1
            ended(loss)
            if done == at:
                counter.__enter__()

        if at == 0:
            counter.__enter__()
        body(once)

    turn.body = counting
    return counter


def memory(cell: Cell, folder: Path, who: str) -> dict[str, float]:
    """Bytes that a side holds at its peak over three updates, alone in this process, and when it was ready to go."""
    torch.set_num_threads(cell.threads)
    ours, theirs = sides_of(cell, folder, who)
    side = ours or theirs
    assert side is not None
    if isinstance(side, Ours):
        side.prepare()
    ready = device.held()["peak"]
    turn = side.turn()
    for _ in range(3):
        turn.go()
    turn.stop()
    return {"ready": ready, **device.held()}


def pace(cell: Cell, folder: Path) -> dict[str, float]:
    """Seconds of an update of the opponent's, alone in this process: the least of three, behind one that warms up."""
    torch.set_num_threads(cell.threads)
    theirs = sides_of(cell, folder, "theirs")[1]
    assert theirs is not None
    turn = theirs.turn()
    for _ in range(4):
        turn.go()
    turn.stop()
    return {"seconds": min(turn.seconds[1:])}


def main(words: list[str]) -> None:
    """`python -m accord.bench.cell WHAT JSON`: prints what was found as the last line."""
    what, cell = words[0], Cell(**json.loads(words[1]))
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Any] = {"race": race, "pace": pace}
        found = ways[what](cell, Path(folder)) if what in ways else memory(cell, Path(folder), what)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
