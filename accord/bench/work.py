"""What is timed: made-up token ids in three mixes of lengths, a random model of 10 million weights, and the least
work that an update of them takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accord.data.batches import seeded

MIXES = {"prompt": (330, 40), "balanced": (150, 100), "response": (60, 180)}  # median tokens of prompt and of answer
OBJECTIVES = ("dpo", "kto", "ulma", "bradley_terry", "sft")
VOCABULARY = 8192


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

    def repeated(self) -> int:
        """Tokens of the same pairs with each prompt written out before each answer."""
        return sum(
            2 * len(self.prompts[p]) + len(self.answers[p][i]) + len(self.answers[p][j]) for p, i, j in self.pairs()
        )


def draw(mix: str, k: int, prompts: int, updates: int, vocabulary: int, seed: int = 0) -> list[Update]:
    """Updates of `prompts` prompts with `k` answers each; log-normal lengths, those of a prompt's answers correlated.

    >>> update = draw("balanced", 2, 8, 1, 100)[0]
    >>> len(update.pairs()), update.unique < update.repeated()
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


def random_model(folder: Path) -> Path:
    """A random Llama of 10.9 million weights with a tokenizer of as many words, made once."""
    if (folder / "config.json").exists():
        return folder
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=688, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<eos>")), pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


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
    chosen = [several[:1] if objective == "sft" else several for several in update.answers]
    answers = sum(len(a) - 1 for several in chosen for a in several)
    seen = sum(area(several, p, True) for several, p in zip(chosen, sizes, strict=True))
    once = forward(sum(sizes) + answers, seen, answers + sum(map(len, chosen)))
    total = (2 if lora else 3) * once
    if objective == "kto":
        others = [several[:1] for several in (*chosen[1:], chosen[0])]  # both see the first of the next prompt's
        seen = sum(area(several, p, False) for several, p in zip(others, sizes, strict=True))
        tokens = sum(len(several[0]) for several in others)
        total += forward(tokens - len(others), seen, tokens)
    return total


def peak(dtype: torch.dtype, seconds: float = 0.4) -> float:
    """Operations a CPU second of a product of two 2048 x 2048 matrices here."""
    import time

    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    a @ b
    began, times = time.process_time(), 0
    while time.process_time() - began < seconds:
        a @ b
        times += 1
    return 2 * 2048**3 * times / (time.process_time() - began)
