"""Runs in processes of their own, forked from one that has everything imported, so that each starts at once.

`start(settings)` is `accord.train(**settings)` in a child; `start(settings, world=2)` does to two of them what torchrun
does. `command(...)` is the real command line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - what a run imports late is imported here, before the forks
import psutil
import torch
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import transformers.models.llama.modeling_llama  # noqa: F401

import accord.report.render  # noqa: F401
import accord.training.run as run
from accord.training import parallel

torch.set_num_threads(1)  # in whoever imports this: bit for bit means with the same number of threads
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


Then = Callable[[run.Run, Path], None]


def _child(settings: dict[str, Any], environment: dict[str, str], then: Then | None) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(os.devnull if "ACCORD_LOUD" in os.environ else f"{settings['output']}.log", "a") as log:
        if "ACCORD_LOUD" not in os.environ:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
    try:
        done = run.train(**settings)
        if then is not None:
            then(done, Path(settings["output"]))
    finally:
        parallel.stop()
    sys.exit(130 if done.summary["finished"] == "interrupted" else 0)


def start(settings: dict[str, Any], world: int = 1, then: Then | None = None) -> list[Any]:
    """`world` started processes, rank by rank; `then` is called in each with its run and the run's folder."""
    shared = {**ONE_THREAD, "ACCORD_CACHE": os.environ["ACCORD_CACHE"], "HF_HUB_OFFLINE": "1"}
    if world > 1:
        shared |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        started.append(FORKS.Process(target=_child, args=(settings, shared | own, then), daemon=True))
        started[-1].start()
    return started


def join(started: list[Any], timeout: float = 60) -> list[int | None]:
    """Exit codes; what has not ended by then is killed and counts as None."""
    end = time.monotonic() + timeout
    for p in started:
        p.join(max(0.0, end - time.monotonic()))
    codes = [p.exitcode for p in started]
    kill(started)
    return codes


def kill(started: list[Any]) -> None:
    for p in started:
        p.kill()
        p.join()


def finish(settings: dict[str, Any], world: int = 1, then: Then | None = None) -> Path:
    """The folder of a run that ended well."""
    codes = join(start(settings, world, then))
    assert codes == [0] * world, (codes, Path(f"{settings['output']}.log").read_text()[-3000:])
    return Path(settings["output"])


def command(settings: dict[str, Any], world: int = 1) -> subprocess.Popen[str]:
    """`python -m accord train ...`, under torchrun for more than one process."""
    words = ["train"]
    for key, value in settings.items():
        for one in value if isinstance(value, list) else [value]:
            words.append(f"{key}={str(one).lower() if isinstance(one, bool) else one}")
    head = [sys.executable, "-m", "accord"]
    if world > 1:
        torchrun = ["torch.distributed.run", "--nproc-per-node", str(world), "--master-port", str(free_port())]
        head = [sys.executable, "-m", *torchrun, "-m", "accord"]
    return subprocess.Popen(
        [*head, *words], env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the command and everything that it started (torchrun's workers first: they would outlive it)."""
    family = psutil.Process(process.pid)
    for p in [*family.children(recursive=True), family]:
        p.send_signal(signal.SIGKILL)
    process.communicate()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
