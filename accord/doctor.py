"""Is this machine, a run, or what is about to be trained well? Every line ok, warn or fail, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from accord.errors import AccordError

GB = 2**30
NAME = "accord-align"
TRIAL = 20  # steps before a run
SURE = 0.01  # nats of log-ratio, so that what a unit of reward takes can be read off
LITTLE_MEMORY, LITTLE_DISK = 4 * GB, 5 * GB  # the quickstart, with its converted model, fits


@dataclass(frozen=True)
class Line:
    """What one check found."""

    name: str
    status: Literal["ok", "warn", "fail"]
    says: str
    remedy: str = ""


def examine() -> Iterator[Line]:
    """Every check in turn; one that breaks is a line that says so."""
    for check in (versions, extras, processor, threads, gpus, memory, disk, cache, distributed, attention):
        try:
            yield from check()
        except Exception as error:
            yield Line(check.__name__, "fail", f"the check broke: {type(error).__name__}: {error}", "report it")


def versions() -> Iterator[Line]:
    """Accord, Python, and each library that Accord needs, held against the range that it asks for."""
    from packaging.requirements import Requirement

    yield Line("accord", "ok", f"{importlib.metadata.version(NAME)}, Python {platform.python_version()}")
    here, wrong = [], []
    for text in importlib.metadata.requires(NAME) or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = _version(wanted.name)
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            wrong.append((wanted, version))
        else:
            here.append(f"{wanted.name} {version}")
    yield Line("libraries", "ok", ", ".join(here))
    for wanted, version in wrong:
        has = f"{version}, and Accord is made for {wanted.specifier}" if version else "not installed"
        how = f"pip install '{wanted.name}{wanted.specifier}'"
        yield Line(wanted.name, "warn" if version else "fail", has, how)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> Iterator[Line]:
    from packaging.requirements import Requirement

    there: dict[str, bool] = {}
    for text in importlib.metadata.requires(NAME) or []:
        wanted = Requirement(text)
        extra = re.search(r"extra == [\"'](.*?)[\"']", str(wanted.marker or ""))
        if extra and extra[1] != "dev":
            there[extra[1]] = there.get(extra[1], True) and _version(wanted.name) is not None
    here = [k for k, v in there.items() if v]
    missing = [k for k, v in there.items() if not v]
    says = f"{', '.join(here) or 'none'}; not installed: {', '.join(missing) or 'none'}"
    yield Line(
        "extras", "ok", says, f"pip install '{NAME}[{missing[0]}]' and so on, if you want them" if missing else ""
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> Iterator[Line]:
    import torch

    from accord.engine.logprobs import flush_denormals
    from accord.engine.models import choose_precision

    bf16 = choose_precision("auto", torch.device("cpu")) == torch.bfloat16
    native = "bf16 is native" if bf16 else "bf16 would be emulated, so fp32 is used"
    yield Line("processor", "ok", f"{platform.machine()}, {cores()} cores; {native}")
    if not flush_denormals():
        yield Line("denormals", "warn", "cannot be flushed to zero: a confident policy may train slowly", "use a GPU")


def threads() -> Iterator[Line]:
    import torch

    n, policy = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "unset")
    says = f"{n} of torch, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}, OMP_WAIT_POLICY {policy}"
    if n > cores():
        yield Line("threads", "warn", f"{says}: more than cores", f"export OMP_NUM_THREADS={cores()}")
    elif policy.upper() == "ACTIVE":
        yield Line("threads", "warn", f"{says}: waiting threads spin", "unset OMP_WAIT_POLICY; Accord sets PASSIVE")
    else:
        yield Line("threads", "ok", says)


def gpus() -> Iterator[Line]:
    import torch

    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        native = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no native bf16: fp32 is used"
        says = f"{torch.cuda.get_device_name(i)}, {free / GB:.0f} of {total / GB:.0f} GB free, {native}"
        crowded = free < total / 2
        remedy = "something else uses it: see nvidia-smi" if crowded else ""
        yield Line(f"gpu {i}", "warn" if crowded else "ok", says, remedy)
    if torch.cuda.device_count():
        return
    if torch.backends.mps.is_available():
        yield Line("gpu", "ok", "Apple silicon (mps), in fp32")
    elif Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        built = torch.version.cuda or torch.version.hip
        why = "it sees no GPU" if built else "it is a build for CPUs"
        how = "check the driver with nvidia-smi" if built else "install a build for GPUs, see pytorch.org/get-started"
        yield Line("gpu", "warn", f"there seems to be one, but torch does not use it: {why}", how)
    else:
        yield Line("gpu", "ok", "none; everything runs on the CPU")


def memory() -> Iterator[Line]:
    """What is free now, within the limit of a container if there is one."""
    try:
        rows = (line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = {name: int(value.split()[0]) * 1024 for name, value in rows}
        available, total = free["MemAvailable"], free["MemTotal"]
    except (OSError, KeyError):
        if "SC_PHYS_PAGES" not in os.sysconf_names:
            yield Line("memory", "ok", "unknown on this system")
            return
        available = total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        total, available = min(total, limit), min(available, limit - used)
    except (OSError, ValueError):
        pass  # no container, or one without a limit
    says = f"{available / GB:.1f} of {total / GB:.1f} GB free"
    little = available < LITTLE_MEMORY
    yield Line(
        "memory", "warn" if little else "ok", says, "close something, or train with lora: true" if little else ""
    )


def disk() -> Iterator[Line]:
    from accord.engine.models import cache_root

    for name, path in (("disk here", Path.cwd()), ("disk of cache", cache_root())):
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        little = free < LITTLE_DISK
        yield Line(name, "warn" if little else "ok", f"{free / GB:.0f} GB free", "make room" if little else "")


def cache() -> Iterator[Line]:
    from accord.engine.models import cache_root

    root = cache_root()
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) if root.exists() else 0
    says = f"{root}, {size / GB:.2f} GB"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        yield Line("cache", "fail", f"{says}: not writable ({error.strerror})", "set ACCORD_CACHE to a folder that is")
    else:
        yield Line("cache", "ok", says)


def distributed() -> Iterator[Line]:
    import torch

    d = torch.distributed
    here = [n for n in ("gloo", "nccl", "mpi") if d.is_available() and getattr(d, f"is_{n}_available")()]
    if not here:
        yield Line("processes", "warn", "torch has no backend for several; one works", "install torch from pytorch.org")
    elif torch.cuda.device_count() > 1 and "nccl" not in here:
        yield Line("processes", "warn", f"{', '.join(here)}, but no nccl for the GPUs", "install torch for your GPUs")
    else:
        yield Line("processes", "ok", f"{', '.join(here)}; torchrun -m accord train ...")


def attention() -> Iterator[Line]:
    """A random Llama of two layers: shared prompts against its own forward, on the device that a run would take."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from accord.engine import models

    began = time.monotonic()
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    try:
        policy = models.load(model, tokenizer="none is needed")
    except AccordError as error:
        yield Line("attention", "fail", str(error), "pip install the tested versions of constraints.txt")
        return
    took = f"in {time.monotonic() - began:.1f} s on {policy.scorer.device.type}"
    if policy.scorer.layout == "shared":
        yield Line("attention", "ok", f"shared prompts give the log-probs of the plain forward, {took}")
    else:
        yield Line("attention", "warn", f"{policy.told[-1]}; slower, but right", "use the versions of constraints.txt")


def of_run(folder: Path, name: str = "run") -> Iterator[Line]:
    """What monitors say of a run, finished or not, from its folder: its metrics are shown to them again.

    Args:
        name: what the first line calls it, where the folder is not the user's.

    Raises:
        AccordError: it is no run.
    """
    from accord.monitors.table import TABLE, Panel
    from accord.sinks import JsonLines

    rows = JsonLines(folder / "metrics.jsonl").read()
    if not rows and (folder / "loop.yaml").exists():
        raise AccordError(f"{folder} is a loop: its rounds are the runs, like {folder / 'rounds' / '1'}")
    if not rows:
        raise AccordError(f"{folder} is no run folder, or one before its first step: it has no metrics.jsonl")
    summary = folder / "summary.json"
    held = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    ended = f"{held['finished']} after {held['steps']} steps" if held else f"not finished, at step {rows[-1]['step']}"
    yield Line(name, "ok", f"{folder}: {ended}" if name == "run" else ended)
    yield from _on_policy(rows)
    yield from _foretold(rows)
    yield from _scale(rows)
    panel = Panel(TABLE, held.get("examples", ()))
    spoke = [(row["step"], verdict) for row in rows for verdict in panel.see(row["step"], row)]
    for step, verdict in spoke:
        yield Line(verdict.monitor, "warn", f"step {step}: {verdict.says}", verdict.remedy)
    told = {verdict.monitor for _, verdict in spoke}
    known = {key.split("eval_")[-1].split("/", 1)[-1] for row in rows for key in row} | {k for row in rows for k in row}
    asked = [name for name, m in TABLE.items() if all(need in known for need in m.needs)]
    silent = [name for name in asked if name not in told]
    yield Line("nothing to say", "ok", ", ".join(silent) or "nobody")
    if unasked := [name for name in TABLE if name not in asked and name not in told]:
        yield Line("not asked", "ok", f"{', '.join(unasked)}: what they read was not measured in this run")
    yield from _stubborn(folder)


def _on_policy(rows: list[dict[str, Any]]) -> Iterator[Line]:
    """How far from the model the answers are that it is trained on, whether a monitor minds or not."""
    first = next((row for row in rows if any("probe/surprise/" in key for key in row)), {})
    told = []
    for key, value in first.items():
        if "probe/surprise/" in key:
            error = 2 * first[key.replace("surprise", "surprise_error")]
            told.append(f"{key.replace('probe/surprise/', '')} {value:+.2f} (± {error:.2f})")
    if told:
        yield Line("on-policyness", "ok", f"surprise in nats a token, 0 for the model's own answers: {', '.join(told)}")


def _started(summary: dict[str, Any], policy: str) -> str:
    """What was checked before the first update, or why nothing was."""
    start = summary["start"]
    other = [f"{ref['name']} ({ref['key'][:8]})" for ref in summary["references"].values() if ref["key"] != policy]
    if other:
        away = " and ".join(f"{v:.2g}" for k, v in start.items() if k.endswith("logratios/away"))
        told = f"; responses are {away} nats a token from it on average" if away else ""
        return (
            f"not checked: the reference {' and '.join(other)} is another model than the run starts from, so that "
            f"nobody knows log-ratios and losses beforehand{told}"
        )
    if not start:
        return "not checked: nothing here compares with a reference, so there are no log-ratios that must be 0"
    known = [f"{k.removesuffix('/expected_loss')} {v:.4g}" for k, v in start.items() if k.endswith("expected_loss")]
    what = [w for w, there in (("log-ratios", any("logratios/" in k for k in start)), ("losses", known)) if there]
    if not what:
        return "not checked: this objective has neither log-ratios of single responses nor a known loss"
    return f"{' and '.join(what)} are where they must be ({', '.join(known) or 'no known loss'})"


def _scale(rows: list[dict[str, Any]]) -> Iterator[Line]:
    """How many nats a margin of 1 takes, beside what a whole answer has: where it is more, no pair is ever settled."""
    from accord.monitors.beta import Beta

    ends = "rewards/margins"
    terms = dict.fromkeys(k.removesuffix(ends) for row in rows for k in row if k.endswith(ends))
    for term in (t for t in terms if not t.startswith("eval_")):
        best, reward, logp = 0.0, 0.0, 0.0
        for row in rows:
            if all(isinstance(row.get(term + need), float) for need in Beta.needs):
                chosen, rejected, long, other, *read = (row[term + need] for need in Beta.needs)
                if abs(margin := chosen * long - rejected * other) > abs(best):
                    best, (reward, logp) = margin, read
        if abs(best) < SURE or reward * best <= 0:
            continue
        says = f"a margin of 1 takes {best / reward:,.0f} nats of log-ratio, and a whole chosen answer has {-logp:,.0f}"
        if best / reward > -logp:
            says += ": more than there are, so that no pair is ever settled and the reference holds little"
        yield Line("scale", "ok", f"{term.removesuffix('/')}: {says}" if term else says)


def _foretold(rows: list[dict[str, Any]]) -> Iterator[Line]:
    """How often the probe's responses moved, from one look to the next, as their gradients said."""
    rises = "probe/entanglement/chosen_rises"
    for key in dict.fromkeys(k for row in rows for k in row if k.endswith(rises)):
        term = key.removesuffix(rises)
        looks = [row for row in rows if f"{term}probe/logps/chosen" in row]
        told = []
        for side in ("chosen", "rejected"):
            name = f"{term}probe/logps/{side}"
            moved = [
                (now[f"{term}probe/entanglement/{side}_rises"] > 0) == (then[name] > now[name])
                for now, then in pairwise(looks)
                if key in now and now[name] != then[name]
            ]
            told += [f"{side} as foretold {sum(moved)} times of {len(moved)}"] if moved else []
        if told:
            says = f"from look to look the probe's {', '.join(told)}: it foretells a plain step on these pairs alone"
            yield Line("entanglement", "ok", f"{term.removesuffix('/')}: {says}" if term else says)


def _stubborn(folder: Path) -> Iterator[Line]:
    """Pairs that were wrong whenever they were trained on again: suspects of a wrong label."""
    from accord.report.read import read
    from accord.report.tables import stubborn

    found = stubborn(read(folder))
    if found is not None:
        says = f"{found.count:,} of {found.again:,} pairs that were trained on again were wrong each time, though "
        says += f"{100 * found.right:.0f} % of such looks were right" + "".join(f"; {s}" for s in found.shown[:3])
        remedy = "look at them: their labels may be wrong; `objective=cdpo` believes labels less"
        yield Line("labels that stay wrong", "warn" if found.doubtful else "ok", says, remedy if found.doubtful else "")


def before(settings: dict[str, Any]) -> Iterator[Line]:
    """A model, its data and an objective before they are trained: time and memory, the check of step 0, and what
    monitors say to twenty steps (or as many as the run has), which are taken in a folder that is removed.

    Raises:
        AccordError: as the run would.
    """
    from accord.training.run import train

    with tempfile.TemporaryDirectory() as place:
        whole = train(**settings | {"dry_run": True, "quiet": True}).summary
        yield Line(
            "cost", "ok", f"{whole['steps']:,} updates, about {whole['seconds'] / 60:.1f} minutes and "
            f"{whole['memory'] / GB:.2f} GB beside the data",
        )  # fmt: skip
        steps = {"max_steps": min(TRIAL, whole["steps"]), "probe_every": TRIAL // 2, "quiet": True}
        tried = train(**settings | steps | {"output": str(Path(place) / "trial"), "overwrite": False})
        yield Line("step 0", "ok", _started(tried.summary, tried.policy.start))
        yield from of_run(tried.folder, "trial")
