"""Who answers? A policy in this process.

Prompts go in shards of fixed composition, each with a seed of its own, so that an interrupted or repeated sampling
gives the same answers. On a CPU the answers to a prompt share what was computed of it; else, and where an architecture
cannot, transformers' `generate` answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TextStreamer,
    TopPLogitsWarper,
)

from accord.data.batches import seeded
from accord.data.chat import Chat
from accord.data.records import Record, Response, Sampler
from accord.engine import attention
from accord.engine.logprobs import finish_logits
from accord.engine.models import Policy, generating, sharing
from accord.errors import AccordError, ConfigError

SHARD = 64
KEPT = 0.875  # answers that have ended leave the batch when they are an eighth of it: leaving copies what is kept


def answer(
    policy: Policy,
    chat: Chat,
    prompts: Seq[Record],
    *,
    samples: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    shard: int = SHARD,
    progress: Callable[[int, int], None] = lambda done, of: None,
    stream: Callable[[str], None] | None = None,
    kept: Path | None = None,
    mixed: tuple[Policy, float] | None = None,
) -> list[list[Response]]:
    """`samples` answers to every prompt.

    Args:
        policy, chat: who answers, and how prompts are rendered.
        prompts: records; their own responses are not looked at.
        samples: answers a prompt.
        max_new_tokens: an answer that reaches it is cut off and says so (`finish="length"`).
        temperature: 0 is greedy.
        top_p: nucleus.
        seed: of all of them; the answers of a shard depend on (seed, shard) alone.
        stream: gets the text as it comes; only for one answer to one prompt.
        kept: a file that gets every shard when it is done, so that the same call goes on where this one is killed;
            shards that another policy, other prompts or settings left there are made anew. The caller removes it.
        mixed: another policy and its share: each token is drawn from policy^(1 - share) * other^share, normalised.

    Returns:
        For each prompt its responses, with text, token_ids under `chat.key`, sampling_logprobs (nats, under the
        distribution that was sampled from), finish and sampler.
    """
    if samples < 1 or max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError("sampling needs samples >= 1, max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1")
    contexts = [chat.context_ids(record) for record in prompts]
    queue = [(len(ids), p, k) for p, ids in enumerate(contexts) for k in range(samples)]
    queue.sort()
    found: dict[tuple[int, int], Response] = {}
    by = Sampler(model=policy.key, temperature=temperature, top_p=top_p, seed=seed)
    if mixed is not None:
        by = by.model_copy(update={"model": f"{policy.key}^{1 - mixed[1]:g}*{mixed[0].key}^{mixed[1]:g}"})
    shards = Shards(kept, repr((by, str(policy.scorer.compute), shard, samples, max_new_tokens, chat.key, contexts)))
    with generating(policy) as model, generating(mixed[0]) if mixed else contextlib.nullcontext() as other:
        for start in range(0, len(queue), shard):
            part = queue[start : start + shard]
            if (made := shards.known.get(start)) is not None:
                found |= {(p, k): response for (_, p, k), response in zip(part, made, strict=True)}
                continue
            draws = int(seeded(seed, "sample", start // shard).integers(2**31))
            torch.manual_seed(draws)
            asked = [contexts[p] for _, p, _ in part]
            mixture = None if mixed is None else _Mixture(other, mixed[1])
            rows = None
            if stream is None and mixed is None:
                rows = together(policy, model, chat, asked, max_new_tokens, temperature, top_p)
            if rows is None:
                torch.manual_seed(draws)
                rows = _generate(policy, model, chat, asked, max_new_tokens, temperature, top_p, stream, mixture)
            for (_, p, k), (ids, logprobs) in zip(part, rows, strict=True):
                ended = bool(ids) and ids[-1] in chat.stop_ids
                words = ids[:-1] if ended else ids
                found[p, k] = Response(
                    text=chat.tokenizer.decode(words, skip_special_tokens=True).strip(),
                    token_ids=tuple(ids),
                    tokenizer=chat.key,
                    sampling_logprobs=tuple(logprobs),
                    finish="stop" if ended else "length",
                    sampler=by,
                )
            shards.add(start, [found[p, k] for _, p, k in part])
            progress(min(start + shard, len(queue)), len(queue))
    return [[found[p, k] for k in range(samples)] for p in range(len(prompts))]


class Shards:
    """Finished shards in a file, under a line that says whose they are. known: answers by where the shard begins."""

    def __init__(self, path: Path | None, whose: str) -> None:
        self.path, self.known = path, dict[int, list[Response]]()
        if path is None:
            return
        first = hashlib.blake2b(whose.encode(), digest_size=16).hexdigest().encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            stream.seek(0)
            whole = [line for line in stream if line.endswith(b"\n")]
            if whole[:1] != [first]:
                whole = []
            stream.truncate(sum(map(len, whole)))
            if not whole:
                stream.write(first)
        for start, answers in map(json.loads, whole[1:]):
            self.known[start] = [Response.model_validate(a) for a in answers]

    def add(self, start: int, answers: Seq[Response]) -> None:
        """Writes a shard that is done."""
        if self.path is None:
            return
        made = [start, [a.model_dump(mode="json", exclude_defaults=True) for a in answers]]
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(made, ensure_ascii=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise AccordError(
                f"{self.path} cannot be written ({error.strerror}); what was sampled before stands in it, and the same "
                "command goes on"
            ) from error


def together(
    policy: Policy, model: Any, chat: Chat, contexts: list[list[int]], limit: int, temperature: float, top_p: float
) -> list[tuple[list[int], list[float]]] | None:
    """Ids up to and with the end token, and their log-probs, for one shard: each prompt is computed once, without
    padding, and answers that have ended leave the batch. None where `generate` must do it."""
    scorer = policy.scorer
    if scorer.layout != "shared" or scorer.device.type != "cpu" or not all(contexts):
        return None
    places: dict[tuple[int, ...], int] = {}
    of = torch.tensor([places.setdefault(tuple(c), len(places)) for c in contexts])
    lengths = torch.tensor([len(c) for c in places])
    ends = lengths.cumsum(0)
    trees = tuple(attention.Tree(int(e - n), int(n), ()) for e, n in zip(ends, lengths, strict=True))
    layout = attention.Layout(trees, kept={}, room=limit)
    shape = LogitsProcessorList()
    if temperature > 0:
        shape += [TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
        shape += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    stop = torch.tensor(sorted(chat.stop_ids), dtype=torch.long)
    none: Any = None  # warpers look at scores alone
    rows: list[tuple[list[int], list[float]]] = [([], []) for _ in contexts]
    order = torch.arange(len(contexts))  # of the answers that are computed, among all
    going = torch.ones(len(contexts), dtype=torch.bool)
    with torch.no_grad(), sharing(model) as causal:
        body, head = getattr(causal, causal.base_model_prefix), causal.get_output_embeddings()

        def states(tokens: Tensor, places: Tensor, within: attention.Layout | attention.Growing) -> Tensor:
            with attention.attending(within):
                return body(input_ids=tokens[None], position_ids=places[None], use_cache=False)[0][0]

        tokens = torch.tensor([token for c in places for token in c])
        try:
            hidden = states(tokens, torch.cat([torch.arange(int(n)) for n in lengths]), layout)
        except attention.UnsupportedAttentionError:
            return None
        hidden = hidden[ends - 1][of]
        growing = attention.Growing(layout, of)
        for step in range(limit):
            scores: Tensor = shape(none, finish_logits(head(hidden).float(), causal.config))
            chances = scores.softmax(-1)
            tokens = _drawn(chances) if temperature > 0 else scores.argmax(-1)
            found = chances.gather(1, tokens[:, None])[:, 0].log()
            for i, token, lp in zip(*(t[going].tolist() for t in (order, tokens, found)), strict=True):
                rows[i][0].append(token)
                rows[i][1].append(lp)
            going &= ~torch.isin(tokens, stop)
            if step + 1 == limit or not bool(going.any()):
                break
            if int(going.sum()) <= len(going) * KEPT:
                growing.keep(going)
                order, tokens, going = order[going], tokens[going], going[going]
            hidden = states(tokens, lengths[growing.of] + step, growing)
            growing.grown()
    return rows


def _drawn(chances: Tensor) -> Tensor:
    """A token of each row of probabilities [N, V], by one uniform number; `multinomial` takes one a token."""
    sums = chances.cumsum(-1, dtype=torch.float64)
    place = torch.rand(len(sums), 1, dtype=torch.float64) * sums[:, -1:]
    return torch.searchsorted(sums, place, right=True)[:, 0].clamp(max=sums.shape[1] - 1)


def _generate(
    policy: Policy,
    model: Any,
    chat: Chat,
    contexts: list[list[int]],
    limit: int,
    temperature: float,
    top_p: float,
    stream: Callable[[str], None] | None = None,
    mixture: _Mixture | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Ids up to and with the end token, and their log-probs, for one left-padded shard."""
    device, width = policy.scorer.device, max(map(len, contexts))
    pad = chat.tokenizer.pad_token_id if chat.tokenizer.pad_token_id is not None else (*chat.stop_ids, 0)[0]
    ids = torch.tensor([[pad] * (width - len(c)) + c for c in contexts], device=device)
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts], device=device)
    # the model's own generation settings would shape the samples unseen, and their log-probs with them
    options: dict[str, Any] = {"do_sample": temperature > 0, "repetition_penalty": 1.0, "min_new_tokens": None}
    if temperature > 0:
        options |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
    if mixture is not None:
        mixture.mask = mask
        options["logits_processor"] = LogitsProcessorList([mixture])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            pad_token_id=pad,
            eos_token_id=list(chat.stop_ids) or None,
            return_dict_in_generate=True,
            output_scores=True,
            streamer=_Streamer(chat, stream) if stream else None,
            **options,
        )
    new = out.sequences[:, width:].cpu()
    logprobs = torch.stack(
        [
            s.float().log_softmax(-1).gather(-1, out.sequences[:, width + t, None])[:, 0]
            for t, s in enumerate(out.scores)
        ],
        1,
    ).cpu()
    rows = []
    for line, lp in zip(new.tolist(), logprobs.tolist(), strict=True):
        stop = next((i + 1 for i, token in enumerate(line) if token in chat.stop_ids), len(line))
        rows.append((line[:stop], lp[:stop]))
    return rows


class _Mixture(LogitsProcessor):
    """Mixes the log-probs of a generating model with those of another, token by token, before temperature and nucleus.

    mask: of the left-padded prompts [B, P].
    """

    mask: Tensor

    def __init__(self, other: Any, share: float) -> None:
        self.other, self.share, self.past = other, share, None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids if self.past is None else input_ids[:, -1:]
        self.mask = torch.nn.functional.pad(self.mask, (0, input_ids.shape[1] - self.mask.shape[1]), value=1)
        places = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        out = self.other(
            input_ids=new, attention_mask=self.mask, position_ids=places, past_key_values=self.past, use_cache=True
        )
        self.past = out.past_key_values
        theirs = out.logits[:, -1].float().log_softmax(-1)
        if theirs.shape != scores.shape:
            raise ConfigError(
                f"policies of {scores.shape[1]:,} and {theirs.shape[1]:,} tokens cannot be mixed token by token; they "
                "need one tokenizer"
            )
        return (1 - self.share) * scores.float().log_softmax(-1) + self.share * theirs


class _Streamer(TextStreamer):
    """Hands on whole words as they come."""

    def __init__(self, chat: Chat, stream: Callable[[str], None]) -> None:
        super().__init__(chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stream = stream

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.stream(text)
