"""How fast does a policy answer? Batches of prompts, several answers each, beside transformers' `generate`, which is
asked prompt by prompt for as many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from accord.bench import device
from accord.bench.work import MIXES, Update, compared, least_work
from accord.engine import models
from accord.errors import AccordError
from accord.sampling import local

if TYPE_CHECKING:
    from accord.bench.cell import Cell


class _Endless:
    """As much of a chat as sampling asks for: nothing ends an answer, so that both sides sample equally many tokens."""

    stop_ids: tuple[int, ...] = ()


def ours(policy: models.Policy, prompts: list[list[int]], k: int, new: int, temperature: float) -> list[list[int]]:
    """Ids of `k` answers of `new` tokens to each prompt.

    Raises:
        AccordError: this model or device is not answered by Accord's own loop.
    """
    chat: Any = _Endless()
    found = local.together(policy, policy.model, chat, [p for p in prompts for _ in range(k)], new, temperature, 1.0)
    if found is None:
        raise AccordError(f"{policy.name} is answered by transformers' generate here: there is nothing to race")
    return [ids for ids, _ in found]


def plainly(policy: models.Policy, prompts: list[list[int]], k: int, new: int, temperature: float) -> list[list[int]]:
    """The same by `generate`, a call a prompt."""
    options: dict[str, Any] = {"do_sample": temperature > 0, "num_return_sequences": k if temperature > 0 else 1}
    options |= {"temperature": temperature, "top_k": 0} if temperature > 0 else {}
    found: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=policy.scorer.device)
        with torch.no_grad():
            out = policy.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                eos_token_id=None,
                pad_token_id=0,
                **options,
            )
        answers = out[:, len(prompt) :].tolist()
        found += answers if temperature > 0 else answers * k
    return found


def race(cell: Cell, updates: list[Update]) -> dict[str, Any]:
    """Greedy answers must be the same, else nothing is timed; then batches of sampled ones in the order A B B A.

    Raises:
        AccordError: a greedy answer is another than that of `generate`.
    """
    policy = models.load(cell.model, device=device.name(), precision="fp32")
    policy.model.generation_config.eos_token_id = None
    new = MIXES[cell.mix][1]
    batches = [[p.tolist() for p in sorted(update.prompts, key=len)] for update in updates]
    order: list[Callable[..., list[list[int]]]] = [ours, ours if cell.against == "itself" else plainly]
    torch.manual_seed(0)
    seconds: list[list[float]] = [[], []]
    wall: list[list[float]] = [[], []]
    with models.generating(policy):
        greedy = [f(policy, batches[0][:4], 2, new, 0.0) for f in (ours, plainly)]
        if other := sum(a != b for a, b in zip(*greedy, strict=True)):
            raise AccordError(f"{cell.name}: {other} of {len(greedy[0])} greedy answers are not those of generate")
        before = device.peak(policy.scorer.compute)
        for i, batch in enumerate(batches):
            for side in (0, 1) if i % 2 == 0 else (1, 0):
                began = device.now(), time.perf_counter()
                order[side](policy, batch, cell.k, new, 1.0)
                seconds[side].append(device.now() - began[0])
                wall[side].append(time.perf_counter() - began[1])
    rate = max(before, device.peak(policy.scorer.compute))
    answers = [np.zeros(new, dtype=int)] * cell.k  # work goes by lengths; a forward is a third of an update
    least = [least_work(policy.model, Update(u.prompts, [answers] * len(u.prompts)), "dpo") / 3 for u in updates]
    timed = list(zip(batches, seconds[0], strict=True))[cell.warm :]
    return {
        "gate": {"greedy": 0.0}, **compared(cell.warm, seconds, wall, least, rate, None), "peak": rate,
        "speed": statistics.median(cell.k * new * len(batch) / t for batch, t in timed),
    }  # fmt: skip
