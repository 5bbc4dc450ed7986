"""On what is it timed, by which clock, and what can that do at best? CPU seconds on a CPU; on a GPU the seconds of a
clock that waits for it."""

from __future__ import annotations

import gc
import platform
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch

WARM, TIMED = 5, 20  # on a GPU: updates that are left out, and the fewest that are timed
# operations a second of dense products in 16 bits, by the makers' data sheets; the first name that fits
SHEETS = (
    ("GB200", 2500e12), ("B200", 2250e12), ("H200 NVL", 835e12), ("H200", 989e12), ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("L4", 121e12),
)  # fmt: skip


def name() -> Literal["cuda", "cpu"]:
    """Where both sides compute: on the GPU that CUDA names, else on the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def kind() -> str:
    """GPU or CPU: whose seconds `now` counts."""
    return "GPU" if name() == "cuda" else "CPU"


def now() -> float:
    """Seconds: of this process on the CPU, which bear other programs; on a GPU of a clock, when all that was asked of
    the GPU is done."""
    if name() == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak(dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Operations a second (of `now`) in products of two matrices, 2048 x 2048 on a CPU and 8192 x 8192 on a GPU."""
    size, at_once = (8192, 8) if name() == "cuda" else (2048, 1)
    a, b = (torch.randn(size, size, device=name()).to(dtype) for _ in range(2))
    for _ in range(at_once):
        a @ b
    began, times = now(), 0
    while (took := now() - began) < seconds or not times:
        for _ in range(at_once):
            a @ b
        times += at_once
    return 2 * size**3 * times / took


def sheet(card: str, dtype: torch.dtype) -> float | None:
    """What a card of this name reaches by its data sheet, in products of 16 bits; None if it is not in `SHEETS`.

    >>> sheet("NVIDIA H200", torch.bfloat16), sheet("NVIDIA H200", torch.float32), sheet("EPYC", torch.bfloat16)
    (989000000000000.0, None, None)
    """
    fits = (rate for word, rate in SHEETS if re.search(rf"\b{word}\b", card))
    return next(fits, None) if dtype.itemsize == 2 else None


def held() -> dict[str, float]:
    """Bytes at the peak so far: of the process, or of the GPU, there also what PyTorch kept for itself (`reserved`)."""
    if name() == "cuda":
        return {"peak": float(torch.cuda.max_memory_allocated()), "reserved": float(torch.cuda.max_memory_reserved())}
    status = Path("/proc/self/status")  # what `getrusage` says begins with the peak of the parent process
    if status.exists():
        rows = (line.split() for line in status.read_text().splitlines())
        return {"peak": next(float(row[1]) * 1024 for row in rows if row[0] == "VmHWM:")}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}


def let_go() -> None:
    """Gives back the memory of what nobody holds any more."""
    gc.collect()
    if name() == "cuda":
        torch.cuda.empty_cache()


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    from importlib.metadata import version

    names = ("torch", "transformers", "trl", "peft", "accord-align")
    device = torch.cuda.get_device_name() if name() == "cuda" else _processor()
    return {"device": device, "python": platform.python_version()} | {n: version(n) for n in names}


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), platform.processor())
