"""Compared with which policy, exactly?

A reference has a name and an identity (the content key of its weights). Its token log-probs are computed once per
(weights, dtype, token ids) and cached on disk, so a sweep over learning rates or objectives pays for them once, and
another cut or template is a miss, never a stale hit. `live` computes them at every step instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from accord.data.batches import Micro, micro_batches, pack
from accord.data.chat import Sequence
from accord.engine.logprobs import Row, Scorer, no_dropout
from accord.engine.models import trainable, write_whole
from accord.errors import AccordError, ConfigError

SHARD_TOKENS = 1 << 16
PASS_TOKENS = {"cpu": 2048}  # a forward pass of the cache, 16,384 elsewhere; in bf16 log-probs depend on it a little
Open = Callable[[], contextlib.AbstractContextManager[Scorer]]


def plan(sequences: Seq[Sequence], scorer: Scorer, budget: int, rank: int = 0, world: int = 1) -> list[Micro]:
    """This rank's forward passes over the sequences, one unit each; every rank gets the same number of them."""
    groups = micro_batches(sequences, [(i,) for i in range(len(sequences))], budget, scorer.layout)
    rounds = -(-len(groups) // world)
    mine = [groups[r * world + rank] if r * world + rank < len(groups) else groups[0] for r in range(rounds)]
    return [pack(sequences, g, scorer.layout, keep_last=scorer.keep_last) for g in mine]


def score(scorer: Scorer, micros: Seq[Micro]) -> Iterator[tuple[int, np.ndarray]]:
    """(sequence number, token log-probs [R] float32) for everything in `micros`, without gradient or dropout."""
    for micro in micros:
        with torch.no_grad(), no_dropout(scorer):
            logp = scorer(Row.of(micro, scorer.device))["logp"].float().cpu().numpy()
        for i in dict.fromkeys(micro.owner.tolist()):
            yield i, logp[micro.owner == i]


@dataclass
class Moving:
    """How a reference follows the policy (trust regions, arXiv 2404.09656).

    Equation:
        every tau updates: weights = alpha * policy + (1 - alpha) * weights;  alpha = 1 is a copy

    Args:
        alpha: in (0, 1]. tau: updates, 1 or more.
        scorer: the reference, a model of its own. policy: who is followed; its heads are not.

    Of adapters each factor is averaged, which is the average of the weights where alpha is 1.
    """

    alpha: float
    tau: int
    scorer: Scorer
    policy: Scorer

    @property
    def weights(self) -> dict[str, Tensor]:
        """What moves, by name: the reference's counterparts of what the policy trains."""
        own = dict(self.scorer.named_parameters())
        return {name: own[name] for name, _ in trainable(self.policy) if not name.startswith("heads.")}

    @torch.no_grad()
    def step(self) -> None:
        """Moves once."""
        now, own = dict(trainable(self.policy)), self.weights
        torch._foreach_lerp_([_local(p) for p in own.values()], [_local(now[name]) for name in own], self.alpha)


def _local(p: Any) -> Tensor:
    """The process's own shard; policy and reference are sharded alike."""
    return p.to_local() if hasattr(p, "to_local") else p


@dataclass
class Reference:
    """Log-probs of a named policy that is not trained.

    Args:
        name: how the user knows it: `start of run`, a path, `adapters off`, `previous round`.
        key: content key of its weights.
        open: gives its scorer for a while; for `start of run` before the first step that is the policy itself.
        dtype: compute dtype; part of a cache entry's identity.
        folder: root of the cache, or None for memory only.
        mode: `cached` (computed ahead of the steps that need them) or `live` (computed within each step).
        gather: gives what every process passes to it, in order of rank.
        temperature: of its scorer; part of a cache entry's identity.
        moving: how it follows the policy; None if it is fixed. The key is then that of its first weights.

    Raises:
        ConfigError: log-probs of a reference that moves should be kept.
    """

    name: str
    key: str
    open: Open
    dtype: torch.dtype
    folder: Path | None = None
    mode: Literal["cached", "live"] = "cached"
    rank: int = 0
    world: int = 1
    gather: Callable[[Any], list[Any]] = lambda thing: [thing]
    moving: Moving | None = None
    temperature: float = 1.0
    _known: dict[bytes, np.ndarray] = field(default_factory=dict)
    computed: int = 0

    def __post_init__(self) -> None:
        if self.moving is not None and self.mode == "cached":
            raise ConfigError(
                f"the reference {self.name!r} moves, so its log-probs are others at each step and cannot be kept: set "
                "reference_mode: live"
            )
        if self.folder is not None and self.mode == "cached":
            warm = "" if self.temperature == 1.0 else f"-T{self.temperature:g}"
            self.folder = self.folder / f"{self.key}-{str(self.dtype).removeprefix('torch.')}{warm}"
            with self._keeping():
                self.folder.mkdir(parents=True, exist_ok=True)
                self._check_meta(self.folder / "reference.json")

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise AccordError(
                f"log-probs of the reference cannot be kept in {self.folder} ({error}): make room, name another folder "
                "with reference_cache, or set reference_mode: live"
            ) from error

    def _check_meta(self, path: Path) -> None:
        facts = {"key": self.key, "dtype": str(self.dtype)}
        if path.exists():
            try:
                held = json.loads(path.read_text())
            except ValueError as error:
                raise AccordError(f"{path} breaks off; remove {path.parent}, and it is computed again") from error
            if {k: held.get(k) for k in facts} != facts:
                raise AccordError(f"{path.parent} holds log-probs of another model or dtype ({held}), not {facts}")
        elif self.rank == 0:
            write_whole(path, json.dumps(facts | {"name": self.name}))

    def prepare(self, sequences: Seq[Sequence], progress: Callable[[int, int], None] = lambda done, of: None) -> int:
        """Makes sure that the log-probs of `sequences` are known; returns how many had to be computed.

        The pass has a packing of its own, whatever the run's, and writes whole shards: a killed one loses one at most.
        """
        if self.mode == "live":
            return 0
        self._read()
        place = {s.key: i for i, s in enumerate(sequences)}  # they may lie in a file
        unknown = self.gather(place.keys() - self._known.keys())  # the cache may grow while processes read it
        length = {k: len(sequences[place[k]].ids) for k in set().union(*unknown)}
        missing = sorted(length, key=lambda k: (length[k], k))
        if not missing:
            return 0
        shards: list[list[bytes]] = [[]]
        size = 0
        for key in missing:
            sequence = sequences[place[key]]
            size += len(sequence.context) + len(sequence.ids)
            shards[-1].append(key)
            if size >= SHARD_TOKENS:
                shards.append([])
                size = 0
        done = 0
        with self.open() as scorer:
            budget = PASS_TOKENS.get(scorer.device.type, 16384)
            for shard in filter(None, shards):
                own = [sequences[place[k]] for k in shard]
                found: dict[bytes, np.ndarray] = {}
                for i, logp in score(scorer, plan(own, scorer, budget, self.rank, self.world)):
                    found[shard[i]] = logp
                self._write(found)
                self._known |= found
                done += len(shard)
                progress(done, len(missing))
        if self.world > 1:
            self.gather(None)
            self._read(again=True)
        self.computed += len(missing)
        return len(missing)

    def missing(self, sequences: Seq[Sequence]) -> dict[bytes, Sequence]:
        """Those that the cache does not know, by key."""
        self._read()
        return {s.key: s for s in sequences if s.key not in self._known}

    def logp(self, sequences: Seq[Sequence], budget: int) -> list[np.ndarray]:
        """Token log-probs [R] nats, float32, of each sequence's trained tokens.

        Raises:
            AccordError: `prepare` was not asked for one of them.
        """
        if self.mode == "live":
            with self.open() as scorer:
                micros = plan(sequences, scorer, budget)
                found = dict(score(scorer, micros))
            return [found[i] for i in range(len(sequences))]
        try:
            return [self._known[s.key] for s in sequences]
        except KeyError:
            raise AccordError(f"the reference {self.name!r} has no log-probs for a sequence of this batch") from None

    def follow(self, done: int) -> None:
        """Moves towards the policy if that is due after `done` updates of the run."""
        if self.moving is not None and done % self.moving.tau == 0:
            self.moving.step()

    def _read(self, again: bool = False) -> None:
        if self.folder is None or (self._known and not again):
            return
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                shard = load_file(file)
            except SafetensorError as error:
                raise AccordError(
                    f"{file} is damaged or cut off ({error}); remove it, and its log-probs are computed again"
                ) from error
            stops = np.cumsum(shard["lengths"])
            for key, start, stop in zip(shard["keys"], stops - shard["lengths"], stops, strict=True):
                self._known[key.tobytes()] = shard["logp"][start:stop]

    def _write(self, found: dict[bytes, np.ndarray]) -> None:
        if self.folder is None or not found:
            return
        keys = sorted(found)
        name = hashlib.blake2b(b"".join(keys), digest_size=12).hexdigest()
        temporary = self.folder / f".{name}.{self.rank}.writing"
        shard: dict[str, np.ndarray] = {
            "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 16).copy(),
            "lengths": np.array([len(found[k]) for k in keys], np.int64),
            "logp": np.concatenate([found[k] for k in keys]).astype(np.float32),
        }
        with self._keeping():
            save_file(shard, temporary)
            temporary.replace(self.folder / f"{name}.safetensors")
