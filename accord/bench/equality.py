"""Do all ways to compute a log-prob agree, and on which architectures? Small random models of each, against a plain
padded forward of their own."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accord.data.batches import LayoutName, micro_batches, pack, seeded
from accord.data.chat import Sequence
from accord.engine import compiled, models
from accord.engine.logprobs import Given, Row, Scorer
from accord.errors import AccordError
from accord.sampling import local

WORDS = 199
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# by the name of their config; windows are shorter than the sequences
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Mistral": {"sliding_window": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"sliding_window": 8, "head_dim": 8},
    "Gemma3Text": {"sliding_window": 8, "head_dim": 8},
    "Phi": {},
    "Phi3": {},
    "GPT2": {},
    "GPTNeoX": {},
    "Cohere": {},
    "Granite": {},
    "Olmo2": {},
    "Bloom": {},
    "Mamba": {"state_size": 4},
}
LAYOUTS: tuple[LayoutName, ...] = ("shared", "packed", "padded")
WAYS = (*LAYOUTS, "chunked head", "early head", "checkpointing", "adapters", "compile", "sampling")


def tiny(name: str, seed: int = 0) -> nn.Module:
    """A random model of an architecture, of weights large enough to have opinions."""
    import transformers

    sizes = (
        SIZES if name not in ("GPT2", "Bloom", "Mamba") else {k: v for k, v in SIZES.items() if "key_value" not in k}
    )
    config = getattr(transformers, f"{name}Config")(**(sizes | ARCHITECTURES[name]))
    if name == "Mamba":
        config.intermediate_size = config.expand * config.hidden_size
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.1)
    return model


def sequences(seed: int = 0, contexts: int = 3, responses: int = 3) -> list[Sequence]:
    """Answers to prompts, some with tokens that are not trained."""
    draw = seeded(seed, "equality")

    def ids(n: int) -> np.ndarray:
        return draw.integers(3, WORDS, n).astype(np.int32)

    found = []
    for _ in range(contexts):
        context = ids(int(draw.integers(4, 40)))
        for _ in range(responses):
            answer = ids(int(draw.integers(1, 20)))
            trained = np.ones(len(answer), bool)
            if len(answer) > 6:
                trained[2:4] = False
            found.append(Sequence(context, answer, trained))
    return found


def plain(model: Any, several: list[Sequence]) -> Tensor:
    """Sums of the trained tokens' log-probs [N], each sequence by a forward of its own."""
    found = []
    for s in several:
        tokens = torch.from_numpy(np.concatenate([s.context, s.ids]).astype(np.int64))[None]
        logp = model(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)[:-1]
        own = logp.gather(-1, tokens[0, 1:, None])[len(s.context) - 1 :, 0]
        found.append(own[torch.from_numpy(s.trained)].sum())
    return torch.stack(found)


def loss_of(logp: Tensor) -> Tensor:
    """DPO of the first two answers of each prompt, and the likelihood of the third, beside made-up references."""
    rho = logp - torch.linspace(-60, -10, len(logp))
    return nn.functional.softplus(-0.1 * (rho[0::3] - rho[1::3])).mean() + 0.01 * rho[2::3].mean()


def measure(name: str, ways: Seq[str] = WAYS) -> dict[str, float | str]:
    """Of each way, the largest difference of a gradient as a part of the largest of its tensor, and 1 if the loss is
    more than 2e-5 away; a word where the architecture has no such way.

    Of `sampling`: the part of the greedy answers that are not those of `generate`.
    """
    return {way: _way(name, way) for way in ways}


def _way(name: str, way: str) -> float | str:
    layout: LayoutName = way if way in LAYOUTS else "shared"  # type: ignore[assignment]
    lora = models.LoraOptions(rank=4) if way == "adapters" else None
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "lora": lora}
    try:
        model = tiny(name)
        policy = models.load(model, object(), layout="auto" if way not in LAYOUTS else layout, **options)
        if way == "checkpointing":
            policy.scorer.checkpoint_layers()
    except (AccordError, ValueError) as error:
        return "no: " + str(error).splitlines()[0]
    if way == "sampling":
        return _sampled(policy)
    scorer, several = policy.scorer, sequences()
    if lora is not None:
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for n, p in policy.model.named_parameters():
                if "lora_B" in n:
                    p.normal_(std=0.1, generator=draws)
    with models.generating(policy) as whole:
        expected = loss_of(plain(whole, several))
        expected.backward()
    grads = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    policy.model.zero_grad()
    if way == "chunked head":
        scorer.chunk_bytes = WORDS * 4 * 7
    if way == "compile":
        compiled.compile_layers(scorer.causal, scorer.device)
    if way == "early head" and scorer.plain_head is None:
        return "no: more than a matrix makes the logits"
    loss = _early(scorer, several) if way == "early head" else _late(scorer, several)
    apart = float(abs(loss - float(expected.detach())) > 2e-5)
    for n, p in policy.model.named_parameters():
        if n in grads and (scale := float(grads[n].abs().max())) > 0:
            apart = max(apart, float((p.grad - grads[n]).abs().max()) / scale if p.grad is not None else 1.0)
    return apart


def _late(scorer: Scorer, several: list[Sequence]) -> float:
    """The loss, from log-probs of all; its gradient is left in `.grad`."""
    found = torch.zeros(len(several))
    for group in micro_batches(several, [(i,) for i in range(len(several))], 60, scorer.layout):
        micro = pack(several, group, scorer.layout)
        found = found.index_add(0, torch.from_numpy(micro.owner), scorer(Row.of(micro, "cpu"))["logp"])
    loss = loss_of(found)
    loss.backward()
    return float(loss.detach())


def _early(scorer: Scorer, several: list[Sequence]) -> float:
    """The same, with the coefficients of a prompt's answers known as soon as their log-probs are."""
    losses: list[float] = []
    found = torch.zeros(len(several))
    prompts = [tuple(range(i, i + 3)) for i in range(0, len(several), 3)]
    for group in micro_batches(several, prompts, 60, scorer.layout):
        micro = pack(several, group, scorer.layout)
        whose = [torch.from_numpy(np.flatnonzero(micro.owner // 3 == n)) for n in dict.fromkeys(micro.owner // 3)]

        def coefficients(number: int, logp: Tensor, micro: Any = micro, whose: list[Tensor] = whose) -> Tensor:
            owner = torch.from_numpy(micro.owner)[whose[number]]
            with torch.enable_grad():
                own = found.index_add(0, owner, leaf := logp.detach().requires_grad_(True))
                chosen, rejected, third = ((own - torch.linspace(-60, -10, len(own)))[i::3] for i in range(3))
                each = nn.functional.softplus(-0.1 * (chosen - rejected)) + 0.01 * third
                loss = each[int(owner[0]) // 3] / len(prompts)
                losses.append(float(loss.detach()))
                return torch.autograd.grad(loss, leaf)[0]

        scorer(Row.of(micro, "cpu"), given=Given(whose, coefficients))["given"].backward()
    return sum(losses)


class _Words:
    """As much of a chat as sampling asks for: when to stop."""

    stop_ids = (2,)


def _sampled(policy: models.Policy) -> float | str:
    asked = [s.context.tolist() for s in sequences(contexts=5)]
    chat: Any = _Words()
    with models.generating(policy) as model:
        ours = local.together(policy, model, chat, asked, 12, 0.0, 1.0)
        if ours is None:
            return "no: transformers' generate answers"
        theirs = []
        for ids in asked:
            with torch.no_grad():
                out = model.generate(
                    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=12,
                    do_sample=False, eos_token_id=2, pad_token_id=0,
                )  # fmt: skip
            theirs.append(out[0, len(ids) :].tolist())
    return sum(a != b for (a, _), b in zip(ours, theirs, strict=True)) / len(asked)


def lines(say: Callable[[str], None] = lambda line: None) -> list[str]:
    """The table of all architectures, in Markdown."""
    rows = [f"| architecture | {' | '.join(WAYS)} |", "|---" * (len(WAYS) + 1) + "|"]
    for name in ARCHITECTURES:
        say(f"{name} ...")
        cells = [
            f"{v:.0e}" if isinstance(v, float) and v else "equal" if v == 0 else "-" for v in measure(name).values()
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows
