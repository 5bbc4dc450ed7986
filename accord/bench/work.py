"""What is timed: made-up token ids in three mixes of lengths, and the least work that an update of them takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from accord.bench import device
from accord.data.batches import seeded

MIXES = {"prompt": (330, 40), "balanced": (150, 100), "response": (60, 180)}  # median tokens of prompt and of answer
OBJECTIVES = ("dpo", "kto", "ulma", "bradley_terry", "sft")
PAIRED = ("dpo", "bradley_terry")


@dataclass(frozen=True)
class Update:
    """Prompts [P] and their answers [P][K], the first of them the best."""

    prompts: list[np.ndarray]
    answers: list[list[np.ndarray]]

    def pairs(self) -> list[tuple[int, int, int]]:
        """(prompt, better answer, worse answer), all of each prompt."""
        return [(p, i, j) for p, several in enumerate(self.answers) for i, j in combinations(range(len(several)), 2)]

    @property
    def unique(self) -> int:
        """Tokens that have to be computed: a prompt once, an answer without its last token, which predicts nothing."""
        return sum(map(len, self.prompts)) + sum(len(a) - 1 for several in self.answers for a in several)

    @property
    def trained(self) -> int:
        return sum(len(a) for several in self.answers for a in several)

    def seen(self, objective: str) -> Update:
        """What an objective sees of it: likelihood the best answers alone."""
        return Update(self.prompts, [several[:1] for several in self.answers]) if objective == "sft" else self

    def repeated(self, objective: str) -> int:
        """Tokens of the same examples with a prompt written out before each answer, a pair's two each."""
        if objective in PAIRED:
            return sum(
                2 * len(self.prompts[p]) + len(self.answers[p][i]) + len(self.answers[p][j]) for p, i, j in self.pairs()
            )
        answers = zip(self.prompts, self.seen(objective).answers, strict=True)
        return sum(len(prompt) + len(a) for prompt, several in answers for a in several)


def draw(mix: str, k: int, prompts: int, updates: int, vocabulary: int, seed: int = 0) -> list[Update]:
    """Updates of `prompts` prompts with `k` answers each; log-normal lengths, those of a prompt's answers correlated.

    >>> update = draw("balanced", 2, 8, 1, 100)[0]
    >>> len(update.pairs()), update.unique < update.repeated("dpo")
    (8, True)
    """
    rng = seeded(seed, "bench", mix, k)
    prompt, answer = MIXES[mix]

    def length(median: int, deviation: float) -> int:
        return int(np.clip(round(median * np.exp(deviation)), median / 4, median * 3))

    found = []
    for _ in range(updates):
        contexts = [rng.integers(3, vocabulary, length(prompt, 0.5 * rng.normal())) for _ in range(prompts)]
        several = []
        for _ in range(prompts):
            common = rng.normal()
            sizes = [length(answer, 0.6 * common + 0.5 * rng.normal()) for _ in range(k)]
            several.append([rng.integers(3, vocabulary, n) for n in sizes])
        found.append(Update(contexts, several))
    return found


def least_work(model: Any, update: Update, objective: str, lora: bool = False) -> float:
    """The floating point operations that an update takes at least.

    Equation:
        forward = 2 W U + 4 h A + 2 V h R: W weights of the layers' matrices, U unique tokens, A the pairs of query and
        key in a layer, h the width of the heads together, times layers; V words, R trained tokens. Backward is twice
        that, once with frozen weights. KTO's mismatched answers, one a prompt, are a further forward pass.

    A reference costs nothing here: it is computed once per data set.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    skipped = {id(head), id(model.get_input_embeddings().weight)}
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and id(p) not in skipped and "lora_" not in n
    )
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )

    def area(several: list[np.ndarray], p: int, own: bool) -> float:
        return p * (p + 1) / 2 * own + sum((len(a) - 1) * (p + len(a) / 2) for a in several)

    def forward(tokens: float, seen: float, predicted: float) -> float:
        body = 2 * matrices * tokens + 4 * width * config.num_hidden_layers * seen
        return body + (2 * head.numel() * predicted if objective != "bradley_terry" else 0)

    sizes = [len(p) for p in update.prompts]
    chosen = update.seen(objective).answers
    answers = sum(len(a) - 1 for several in chosen for a in several)
    seen = sum(area(several, p, True) for several, p in zip(chosen, sizes, strict=True))
    once = forward(sum(sizes) + answers, seen, answers + sum(map(len, chosen)))
    adapters = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    total = (2 if lora else 3) * once + 6 * adapters * (sum(sizes) + answers)
    if objective == "kto":
        others = [several[:1] for several in (*chosen[1:], chosen[0])]  # both see the first of the next prompt's
        seen = sum(area(several, p, False) for several, p in zip(others, sizes, strict=True))
        tokens = sum(len(several[0]) for several in others)
        total += forward(tokens - len(others), seen, tokens)
    return total


def compared(
    warm: int, seconds: list[list[float]], wall: list[list[float]], least: list[float], rate: float, sheet: float | None
) -> dict[str, Any]:
    """Both sides' times, ours first, and what follows from them; the first `warm` updates are left out.

    Args:
        least: operations of each update. rate, sheet: operations a second, as measured and by the data sheet.

    >>> found = compared(1, [[9, 2, 2], [9, 4, 6]], [[9, 2, 2], [9, 4, 6]], [8, 8, 8], 8, 16)
    >>> found["ratio"], found["utilisation"]["accord"], found["mfu"]["accord"]
    (2.5, 0.5, 0.25)
    """

    def median(values: Iterable[float]) -> float:
        return statistics.median(list(values))

    sides = ("accord", "other")
    timed, clock = [s[warm:] for s in seconds], [s[warm:] for s in wall]
    ratios = [y / x for x, y in zip(*timed, strict=True)]
    done = {
        side: median(w / t for w, t in zip(least[warm:], s, strict=True)) for side, s in zip(sides, timed, strict=True)
    }
    return {
        "clock": device.kind(), "ratio": median(ratios), "ratios": ratios,
        "wall_ratio": median(y / x for x, y in zip(*clock, strict=True)),
        "seconds": dict(zip(sides, timed, strict=True)), "wall": dict(zip(sides, clock, strict=True)),
        "utilisation": {side: w / rate for side, w in done.items()},
        "mfu": {side: w / sheet for side, w in done.items()} if sheet else None,
    }  # fmt: skip
