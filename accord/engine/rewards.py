"""What is an answer worth, under a model that was trained to say so?

    model = rewards.load("runs/bradley_terry-1")
    for record, values in zip(records, model.scores(records)):
        ...                                       # one number a response, NaN where nothing could be scored

A reward model is a run of Accord, or any *ForSequenceClassification checkpoint of a causal language model. A dialogue
is scored at its last token as the chat template renders it (the end token, and what the template writes behind it, like
ChatML's newline): where transformers, TRL and RewardBench look. Responses of one prompt are scored in one packed pass.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from accord.data.batches import micro_batches, pack
from accord.data.chat import Chat, Sequence, tokenizer_key
from accord.data.records import Record
from accord.data.views import Branch, Counts
from accord.engine import classifiers, models
from accord.engine.logprobs import Row, no_dropout
from accord.engine.reference import plan, score
from accord.errors import AccordError

Say = Callable[[int, int], None]  # records done, of how many
TOGETHER = 256  # records that are tokenised and packed at once
BUDGET = {"cpu": 4096}  # tokens of a forward pass, 32,768 elsewhere


@dataclass
class RewardModel:
    """A model that scores responses.

    settings: what `reward.json` says. calibrated: whether `scores` are on the scale of the saved calibration.
    counts: what was cut or could not be scored, with places.
    """

    policy: models.Policy
    chat: Chat
    settings: dict[str, Any]
    calibrated: bool = True
    counts: Counts = field(default_factory=Counts)

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def kind(self) -> str:
        """`score`: a number a response. `attributes`: several, in the order of `attributes`. `mixture`: these, weighed
        by the prompt into one. `preference`: what it says is of pairs (`margins`)."""
        names = [str(h).partition(":")[0] for h in self.settings["heads"]]
        if "embedding" in names:
            return "preference"
        return "mixture" if {"attributes", "gate"} <= set(names) else "attributes" if "attributes" in names else "score"

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes, where there are several and they have names."""
        return tuple(self.settings.get("attributes") or ())

    @property
    def key(self) -> str:
        """Content of the weights, heads included."""
        digest = hashlib.blake2b(self.policy.key.encode(), digest_size=16)
        for name, tensor in sorted(self.policy.scorer.heads.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def scores(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[np.ndarray]:
        """The rewards of each record's responses, [K] or (for attributes) [K, d] float64.

        A preference model has no reward of one response: it is the mean margin over the record's, 0 alone.
        NaN where a response has nothing to score; why stands in `counts`.
        """
        if self.kind == "preference":
            return [_nearest(m) for m in self.margins(records, say)]
        scale = self.settings.get("calibration") if self.calibrated and self.kind != "attributes" else None
        gain, bias = (scale["gain"], scale["bias"]) if scale else (1.0, 0.0)
        return [gain * self._rewards(out) + bias for out in self._read(records, say)]

    def margins(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[np.ndarray]:
        """log-odds [K, K] that response i is better than j, of each record; without the calibration's scale.

        Raises:
            AccordError: the model has several attributes and no mixture of them.
        """
        if self.kind == "attributes":
            raise AccordError(
                f"{self.name} scores several attributes, of which none decides alone: read `scores`, or train a "
                "mixture of them (gated_bradley_terry)"
            )
        found = []
        for out in self._read(records, say):
            if self.kind == "preference":
                found.append(preference(out["embedding"], out.get("gate"), self.settings["options"]))
            else:
                r = self._rewards(out)
                found.append(r[:, None] - r[None])
        return found

    def _rewards(self, out: dict[str, np.ndarray]) -> np.ndarray:
        if self.kind != "mixture":
            return out["attributes" if self.kind == "attributes" else "score"]
        weights = np.exp(out["gate"] - out["gate"].max(-1, keepdims=True))
        return (out["attributes"] * weights / weights.sum(-1, keepdims=True)).sum(-1)

    def _read(self, records: Seq[Record], say: Say) -> list[dict[str, np.ndarray]]:
        """What the heads give of each record's responses, [K] or [K, d] each."""
        return [out for part, told in _in_parts(records, say) for out in self._read_part(part, told)]

    def _read_part(self, records: Seq[Record], say: Callable[[int], None]) -> list[dict[str, np.ndarray]]:
        whole, places = encoded(self.chat, records, self.counts)
        sequences = [s.later[-1] if s.later else s for s in whole]
        units = [tuple(at) for at in places if at]
        scorer = self.policy.scorer
        values: dict[str, np.ndarray] = {}
        budget, done = BUDGET.get(scorer.device.type, 32768), 0
        widths = {name: int(head.width) for name, head in scorer.heads.items()}  # type: ignore[arg-type]
        for name, width in widths.items():
            values[name] = np.full((len(sequences), width) if width > 1 else len(sequences), np.nan)
        for group in micro_batches(sequences, units, budget, scorer.layout):
            micro = pack(sequences, group, scorer.layout, keep_last=True)
            with torch.no_grad(), no_dropout(scorer):
                out = scorer(Row.of(micro, scorer.device), logp=False)
            for name in widths:
                values[name][micro.sequences] = out[f"head:{name}"].detach().double().cpu().numpy()
            done += len(group)
            say(len(records) * done // max(1, len(sequences)))
        found = []
        for record, at in zip(records, places, strict=True):
            lost = {n: np.full((len(record.responses), *v.shape[1:]), np.nan) for n, v in values.items()}
            found.append({n: v[at] for n, v in values.items()} if at else lost)
        return found


@dataclass
class Implicit:
    """The reward that a policy has learned without one: beta times the log-ratio to its reference (arXiv 2305.18290).

    r(x, y) = beta * (log pi(y|x) - log pi_ref(y|x)), up to a constant of the prompt. Without a reference it is beta *
    log pi(y|x), which RewardBench calls reference-free. A step of the answer has the part of the sum that its tokens
    have (process rewards, arXiv 2412.01981): steps add up to the whole.

    beta: 1/nats; length: `sum` of log-ratios, or their `mean` over a response's tokens; separator: what stands between
    the steps of an answer.
    """

    policy: models.Policy
    reference: models.Policy | None
    chat: Chat
    beta: float = 0.1
    length: str = "sum"
    separator: str = "\n\n"
    counts: Counts = field(default_factory=Counts)
    kind = "score"

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def key(self) -> str:
        """Content of both models and how they are read."""
        parts = (self.policy.key, self.reference and self.reference.key, self.beta, self.length)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def scores(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[np.ndarray]:
        """The implicit rewards of each record's responses, [K] float64; NaN where a response has nothing to score."""
        return [np.array([self._total(turns) for turns in found]) for found in self._ratios(records, say)]

    def margins(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[np.ndarray]:
        """log-odds [K, K] that response i is better than j, of each record: differences of rewards."""
        return [r[:, None] - r[None] for r in self.scores(records, say)]

    def steps(self, records: Seq[Record], say: Say = lambda done, of: None) -> list[list[list[tuple[str, float]]]]:
        """(text, reward) of every step of each record's responses, in order; rewards are sums, and add up to `scores`
        where `length` is sum. A step holds the separator behind it, the last one the end token."""
        return [[self._steps(turns) for turns in found] for found in self._ratios(records, say)]

    def _total(self, turns: list[tuple[Sequence, np.ndarray]]) -> float:
        ratios = np.concatenate([r for _, r in turns]) if turns else np.array([np.nan])
        return float(self.beta * (ratios.sum() if self.length == "sum" else ratios.mean()))

    def _steps(self, turns: list[tuple[Sequence, np.ndarray]]) -> list[tuple[str, float]]:
        found: list[tuple[str, float]] = []
        for sequence, ratios in turns:
            ids, step, reward = sequence.ids[sequence.trained].tolist(), 0, 0.0
            for place, ratio in enumerate(ratios.tolist()):
                reward += self.beta * ratio
                text = self.policy.tokenizer.decode(ids[step : place + 1])
                if place == len(ids) - 1 or (text.endswith(self.separator) and text.strip()):
                    found.append((text, reward))
                    step, reward = place + 1, 0.0
        return found

    def _ratios(self, records: Seq[Record], say: Say) -> list[list[list[tuple[Sequence, np.ndarray]]]]:
        """(sequence, log-ratio of each trained token [n]) of every turn of every response of each record."""
        return [out for part, told in _in_parts(records, say) for out in self._ratios_of(part, told)]

    def _ratios_of(
        self, records: Seq[Record], say: Callable[[int], None]
    ) -> list[list[list[tuple[Sequence, np.ndarray]]]]:
        whole, places = encoded(self.chat, records, self.counts)
        turns = [(s, *s.later) for s in whole]
        flat = [t for several in turns for t in several]
        first = np.concatenate([[0], np.cumsum([len(t) for t in turns])]).astype(int)
        logp = [np.zeros(0)] * len(flat)
        models_ = [m for m in (self.policy, self.reference) if m is not None]
        done = 0
        for sign, model in zip((1.0, -1.0), models_, strict=False):
            budget = BUDGET.get(model.scorer.device.type, 32768)
            for i, found in score(model.scorer, plan(flat, model.scorer, budget)):
                logp[i] = sign * found.astype(np.float64) + (logp[i] if len(logp[i]) else 0.0)
                done += 1
                say(len(records) * done // (len(flat) * len(models_)))
        return [
            [[(flat[t], logp[t]) for t in range(first[i], first[i + 1])] for i in at]
            if at
            else [[] for _ in record.responses]
            for record, at in zip(records, places, strict=True)
        ]


def encoded(chat: Chat, records: Seq[Record], counts: Counts) -> tuple[list[Sequence], list[list[int]]]:
    """Every response as tokens, and where those of each record stand: nowhere if they cannot be scored (counted)."""
    sequences: list[Sequence] = []
    places: list[list[int]] = []
    for record in records:
        branches = [Branch(0, k) for k in range(len(record.responses))]
        made = chat.encode(record, branches, counts) if branches else []
        places.append([] if made is None else [len(sequences) + k for k in range(len(made))])
        sequences += made or []
    return sequences, places


def _in_parts(records: Seq[Record], say: Say) -> Iterator[tuple[Seq[Record], Callable[[int], None]]]:
    """Records in parts that are packed together, each with what is told of its progress."""
    for start in range(0, len(records), TOGETHER):
        yield records[start : start + TOGETHER], lambda done, start=start: say(start + done, len(records))  # type: ignore[misc]


def _nearest(margins: np.ndarray) -> np.ndarray:
    """[K, K] to the mean over all K, itself included, [K]: the rewards whose differences are nearest to the margins."""
    return margins.mean(1)


def preference(embedding: np.ndarray, gate: np.ndarray | None, options: dict[str, Any]) -> np.ndarray:
    """log-odds [K, K] of embeddings [K, 2k]: the sum over blocks of c (v_0 w_1 - v_1 w_0) / tau; see `gpm`."""
    if options.get("normalise"):
        embedding = embedding / np.maximum(np.linalg.norm(embedding, axis=-1, keepdims=True), 1e-12)
    blocks = embedding.reshape(len(embedding), -1, 2)
    first, second = blocks[..., 0], blocks[..., 1]
    scale = np.ones_like(first)
    if gate is not None and options.get("prompt_head", "none") != "none":
        weights = np.exp(gate.reshape(first.shape) - gate.reshape(first.shape).max(-1, keepdims=True))
        scale = (
            weights / weights.sum(-1, keepdims=True) * (first.shape[-1] if options["prompt_head"] == "scaled" else 1)
        )
    return ((scale * first) @ second.T - (scale * second) @ first.T) / options.get("tau", 1.0)


def load(
    model: str | Path,
    *,
    device: models.Device = "auto",
    precision: models.Precision = "auto",
    max_length: int | None = None,
    layout: Any = "auto",
    calibrated: bool = True,
    freeze_layers: int = 0,
    trust_remote_code: bool = False,
) -> RewardModel:
    """Loads a reward model: a run, a folder, an adapter's folder, or a name on the hub.

    Args:
        max_length: longest dialogue in tokens, by default that of its training, or 4,096; what was cut is counted.
        calibrated: put rewards on the scale of the calibration that is saved with the model, if one is.
        freeze_layers: as it was trained with: what is known of these layers is read from disk, see `models.freeze`.

    Raises:
        AccordError: nothing there, or no head in it was trained to score.
    """
    source = models.resolve(model)
    folder = source if isinstance(source, Path) else models.downloaded(source)
    settings = classifiers.settings_of(folder)
    if settings is None:
        raise AccordError(
            f"{model} is no reward model: it has no head that was trained to score. Train one (accord train "
            "--objective bradley_terry), give a *ForSequenceClassification checkpoint, or read a policy as an implicit "
            "reward"
        )
    policy = models.load(
        folder, device=device, precision=precision, heads=tuple(settings["heads"]), layout=layout,
        freeze_layers=freeze_layers, frozen_states="cached" if freeze_layers else "live",
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    policy.name = str(model)
    known = {key.partition(".")[0] for key in classifiers.held(folder, settings)}
    if lacking := sorted(set(policy.scorer.heads) - known):
        raise AccordError(
            f"{model}: its files hold no weights of the head {lacking[0]!r}, which would start at random and score "
            "nothing. Put back the file, or train the model (accord train --objective bradley_terry)"
        )
    length = max_length or int(settings.get("max_length") or 4096)
    chat = Chat(policy.tokenizer, max_length=length, stop_ids=policy.ends, closed=True)
    return RewardModel(policy, chat, settings, calibrated)


def ensemble(run: str | Path) -> tuple[str, list[Path]] | None:
    """How the rewards of an ensemble's models become one, `mean` or `min`, and their folders; None if it is none."""
    if not (file := Path(run) / "ensemble.json").exists():
        return None
    held = json.loads(file.read_text(encoding="utf-8"))
    return held["score"], [Path(run) / member for member in held["members"]]


def implicit(
    policy: str | Path,
    reference: str | Path | None = None,
    *,
    beta: float = 0.1,
    length: Literal["sum", "mean"] = "sum",
    separator: str = "\n\n",
    device: models.Device = "auto",
    precision: models.Precision = "auto",
    max_length: int = 4096,
    trust_remote_code: bool = False,
) -> Implicit:
    """Loads a policy to be read as a reward; see `Implicit`.

    Raises:
        AccordError: one of both is no language model, or they read other tokens.
    """
    load_ = functools.partial(models.load, device=device, precision=precision, trust_remote_code=trust_remote_code)
    first = load_(policy)
    second = load_(reference) if reference is not None else None
    if second is not None and tokenizer_key(first.tokenizer) != tokenizer_key(second.tokenizer):
        raise AccordError(
            f"{policy} and {reference} have tokenizers of their own, so there is no log-ratio of a token: give the "
            "model that the policy was trained from (a density ratio compares sums over each one's own tokens)"
        )
    chat = Chat(first.tokenizer, max_length=max_length, stop_ids=first.ends)
    return Implicit(first, second, chat, beta, length, separator)


def calibrated(
    model: RewardModel, records: Seq[Record], what: str, *, center: bool = False, say: Say = lambda done, of: None
) -> dict[str, Any]:
    """The calibration under which the rewards of these responses have mean 0 and standard deviation 1.

    A reward model knows differences within a prompt; where 0 lies, and how large 1 is, came with its head. Policies
    that are trained on rewards, and people who read them, want both fixed: as OpenAI's first reward models had it
    (arXiv 1909.08593), by a gain and a bias over answers of the reference policy; or by demonstrations.

    Args:
        records: what is scored: every response counts.
        what: where they are from, for whoever reads `reward.json`.
        center: the mean alone; the gain is then 1.

    Raises:
        AccordError: the model has not one reward a response, or all of them are equal.
    """
    if model.kind not in ("score", "mixture"):
        raise AccordError(f"{model.name} gives no single reward to a response, so there is no scale to put it on")
    raw = replace(model, calibrated=False).scores(records, say)
    values = np.concatenate([*raw, np.zeros(0)])
    values = values[np.isfinite(values)]
    deviation = float(values.std()) if len(values) else 0.0
    if (not deviation and not center) or not len(values):
        raise AccordError(f"{what}: {len(values)} answers could be scored, all alike; bring more of them")
    mean, gain = float(values.mean()), 1.0 if center else 1.0 / deviation
    return {
        "gain": gain, "bias": -gain * mean, "mean": mean, "deviation": deviation, "responses": len(values), "on": what,
    }  # fmt: skip


def keep_calibration(model: str | Path, calibration: dict[str, Any] | None) -> Path:
    """Writes a calibration into `reward.json` of a model's folder, or takes it out; gives the folder.

    Raises:
        AccordError: the model is in no folder of the user's, or no reward model.
    """
    folder = models.resolve(model)
    if not isinstance(folder, Path) or (settings := classifiers.settings_of(folder)) is None:
        raise AccordError(f"{model} is no folder with a reward model: a calibration is kept in the folder")
    settings = {k: v for k, v in settings.items() if k != "calibration"}
    models.write_whole(
        folder / classifiers.FILE,
        json.dumps(settings | ({"calibration": calibration} if calibration else {}), indent=2),
    )
    return folder
