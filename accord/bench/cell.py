"""One cell of the race, in a process of its own: the gate of equality, updates in turn, the reference pass, memory."""

from __future__ import annotations

import json
import platform
import resource
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from accord.bench import answers, plain
from accord.bench.baselines import BASELINES, Theirs
from accord.bench.sides import Ours, Turn
from accord.bench.work import Update, draw, least_work, peak
from accord.errors import AccordError

LOSS, GRADIENT, CONTROL = 2e-5, 1e-4, 0.05  # what the gates allow


@dataclass(frozen=True)
class Cell:
    """What is raced.

    objective: what is trained, or `sample`: answers are sampled.
    against: a name of `BASELINES`, or `itself`: the control, in which Accord races Accord.
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

    @property
    def name(self) -> str:
        parts = [Path(self.model).name, self.objective, self.mix, self.against, f"k{self.k}"]
        parts += ["lora"] if self.lora else []
        return "-".join([*parts, f"{self.prompts}x{self.updates}", f"t{self.threads}"])

    @property
    def ours(self) -> str:
        """Accord's precision."""
        return "fp32" if self.against == "itself" else BASELINES[self.against].ours


def _vocabulary(model: str) -> int:
    return int(json.loads((Path(model) / "config.json").read_text())["vocab_size"])


def work_of(cell: Cell) -> list[Update]:
    return draw(cell.mix, cell.k, cell.prompts, cell.updates + 1, _vocabulary(cell.model))


def sides_of(cell: Cell, folder: Path, who: str = "both") -> tuple[Ours | None, Theirs | Ours | plain.Plain | None]:
    """Accord, and whom it races."""
    updates, model = work_of(cell), Path(cell.model)
    ours: Ours | None = None
    theirs: Theirs | Ours | plain.Plain | None = None
    if who != "theirs":
        ours = Ours(model, updates, cell.objective, precision=cell.ours, lora=cell.lora, folder=folder / "a")
    if who != "ours" and cell.against == "itself":
        theirs = Ours(model, updates, cell.objective, precision=cell.ours, lora=cell.lora, folder=folder / "b")
    elif who != "ours" and cell.against == "plain":
        theirs = plain.Plain(model, updates, cell.objective)
    elif who != "ours":
        adapter = dict(ours.policy.model.named_parameters()) if cell.lora and ours else None
        theirs = Theirs(
            model, updates, cell.objective, cell.against, lora=cell.lora, folder=folder / "b", adapter=adapter
        )
    return ours, theirs


# -- the gate ---------------------------------------------------------------------------------------------------------


def gate(cell: Cell, folder: Path) -> dict[str, float]:
    """Loss and gradients of a perturbed policy by Accord in fp32, and by a padded forward, simply written.

    Returns:
        The loss, its difference, and the largest difference of a gradient as a part of the largest of its tensor.

    Raises:
        AccordError: a difference is above `LOSS` or `GRADIENT`: no time would mean anything.
    """
    update = draw(cell.mix, cell.k, 3, 1, _vocabulary(cell.model), seed=1)[0]
    ours = Ours(Path(cell.model), [update], cell.objective, precision="fp32", lora=cell.lora, folder=folder)
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
        return {"cell": asdict(cell), "machine": machine()} | answers.race(cell, work_of(cell))
    equal = gate(cell, folder / "gate")
    ours, theirs = sides_of(cell, folder)
    assert ours is not None
    assert theirs is not None
    prepared = ours.prepare()
    theirs_prepared = theirs.prepare() if isinstance(theirs, Ours) else theirs.reference
    before = peak(ours.policy.scorer.compute)
    a, b = ours.turn(), theirs.turn("other")
    order = [t for i in range(cell.updates + 1) for t in ((a, b) if i % 2 == 0 else (b, a))]
    with _counted() as counts:
        for turn in order[:2]:  # the first update of each warms up, and its operations are counted
            counts.of(turn)
    for turn in order[2:]:
        turn.go()
    after = peak(ours.policy.scorer.compute)
    updates = work_of(cell)
    least = [least_work(ours.policy.model, u, cell.objective, cell.lora) for u in updates]
    rate = max(before, after)
    a.stop()
    b.stop()
    ratios = [y / x for x, y in zip(a.cpu[1:], b.cpu[1:], strict=True)]
    apart = max(abs(x - y) for x, y in zip(a.losses[:3], b.losses[:3], strict=True))
    middle = statistics.median
    return {
        "cell": asdict(cell), "machine": machine(), "gate": equal, "ratio": middle(ratios), "ratios": ratios,
        "wall_ratio": middle(y / x for x, y in zip(a.wall[1:], b.wall[1:], strict=True)),
        "cpu": {"accord": a.cpu[1:], "other": b.cpu[1:]}, "wall": {"accord": a.wall[1:], "other": b.wall[1:]},
        "losses": {"accord": a.losses, "other": b.losses}, "losses_apart": apart,
        "utilisation": {
            side: middle(w / t / rate for w, t in zip(least[1:], turn.cpu[1:], strict=True))
            for side, turn in (("accord", a), ("other", b))
        },
        "peak": [before, after], "least": least,
        "products": {"accord": counts.found[0] / least[0], "other": counts.found[1] / least[0]},
        "tokens": {"unique": [u.unique for u in updates], "repeated": [u.repeated() for u in updates]},
        "speed": middle(u.unique / t for u, t in zip(updates[1:], a.cpu[1:], strict=True)),
        "reference": {"accord": prepared, "other": theirs_prepared},
    }  # fmt: skip


class _counted:  # noqa: N801 - a context
    """Operations of the matrix products of an update; the mode belongs to a thread, so the loop's body runs in it."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def __enter__(self) -> _counted:
        return self

    def __exit__(self, *args: object) -> None: ...

    def of(self, turn: Turn) -> None:
        body, counter = turn.body, FlopCounterMode(display=False)

        def counting(ended: Any) -> None:
            counter.__enter__()
            first = True

            def once(loss: float) -> None:
                nonlocal first
                if first:
                    counter.__exit__(None, None, None)
                    first = False
                ended(loss)

            body(once)

        turn.body = counting
        turn.go()
        self.found.append(float(counter.get_total_flops()))


def memory(cell: Cell, folder: Path, who: str) -> dict[str, float]:
    """Bytes that a side holds at its peak over three updates, alone in this process, and when it was ready to go."""
    torch.set_num_threads(cell.threads)
    ours, theirs = sides_of(cell, folder, who)
    side = ours or theirs
    assert side is not None
    if isinstance(side, Ours):
        side.prepare()
    ready = _resident()
    turn = side.turn()
    for _ in range(3):
        turn.go()
    turn.stop()
    return {"ready": ready, "peak": _resident()}


def _resident() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")  # what `getrusage` says begins with the peak of the parent process
    if status.exists():
        return next(float(x.split()[1]) * 1024 for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl", "peft", "accord-align")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {"device": device, "python": platform.python_version()} | {n: version(n) for n in names}


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), platform.processor())


def main(words: list[str]) -> None:
    """`python -m accord.bench.cell WHAT JSON`: prints what was found as the last line."""
    what, cell = words[0], Cell(**json.loads(words[1]))
    with tempfile.TemporaryDirectory() as folder:
        found = race(cell, Path(folder)) if what == "race" else memory(cell, Path(folder), what)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
