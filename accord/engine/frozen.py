"""What need not be computed twice? The lowest layers of a model, where they are not trained.

What comes out of them for a token depends on the tokens up to it alone: it is the same at every update, in every run
that freezes as many layers of the same weights, and for the context under all of its responses. `States` keeps it on
disk by the tokens; `Below` hands it to the layers above.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accord.engine.attention import Tree
from accord.engine.logprobs import Row
from accord.errors import AccordError, ConfigError

KEY = np.dtype([("key", "V16"), ("tokens", "<i8")])  # an entry of an index


def layers_of(causal: Any) -> tuple[str, nn.ModuleList]:
    """A transformers causal LM's layers, from the lowest up, and the name of their list.

    Raises:
        ConfigError: it has no such list.
    """
    count = causal.config.get_text_config().num_hidden_layers
    for name, module in causal.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise ConfigError(f"freeze_layers: {type(causal).__name__} has no list of {count} layers; leave it out")


def last_layer(causal: Any) -> nn.Module | None:
    """The model's last layer, if it has a list of them."""
    try:
        return layers_of(causal)[1][-1]
    except ConfigError:
        return None


def checked(causal: Any, count: int) -> nn.ModuleList:
    """The model's layers, of which `count` can be frozen.

    Raises:
        ConfigError: they cannot.
    """
    _, layers = layers_of(causal)
    if not 1 <= count < len(layers):
        raise ConfigError(
            f"freeze_layers={count}: the model has {len(layers)} layers, of which 1 to {len(layers) - 1} can be frozen"
        )
    return layers


def freeze(causal: Any, count: int, run: Callable[[], Any]) -> list[str]:
    """Takes the lowest layers, and all that their output is made of (embeddings; output embeddings that are tied to
    them), out of training; gives the names of what is frozen.

    Args:
        run: a forward pass through the layers.
    """
    layers = checked(causal, count)
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    with _hooked(layers[count].register_forward_pre_hook(look, with_kwargs=True)), torch.enable_grad():
        run()
    named = dict(causal.named_parameters())
    held = {id(p) for layer in layers[:count] for p in layer.parameters()}
    held.add(id(causal.get_input_embeddings().weight))
    trained = [p for p in named.values() if p.requires_grad]
    if seen[0].requires_grad:
        grads = torch.autograd.grad(seen[0].float().sum(), trained, allow_unused=True)
        held |= {id(p) for p, g in zip(trained, grads, strict=True) if g is not None}
    found = [n for n, p in named.items() if id(p) in held]
    for n in found:
        named[n].requires_grad_(False)
    return found


def below(causal: Any, count: int, folder: Path, run: Callable[[], Any]) -> Below:
    """The frozen layers of a model, with the states that lie in a folder; run: a forward pass through the layers."""
    layers = checked(causal, count)
    seen: list[Any] = []
    with _hooked(layers[count - 1].register_forward_hook(lambda module, args, out: seen.append(out))):
        run()
    tuples = len(seen[0]) if isinstance(seen[0], tuple) else 0
    hidden = seen[0][0] if tuples else seen[0]
    return Below([*layers], count, States(folder, hidden.shape[-1]), hidden.dtype, tuples)


@contextlib.contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


# -- what comes out of them --------------------------------------------------------------------------------------------


class States:
    """Hidden states by the tokens that they stand for, float32, on disk.

    Each process appends to two files of its own, the states [n, h] and behind them an index of keys and lengths; it
    knows what lay in the folder when it began, and what it has put there. A killed process loses nothing but the last
    entry: what the index does not name is never read.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self._known: dict[bytes, tuple[Path, int, int]] = {}
        self._own: Path | None = None
        self._end = 0
        with self._keeping():
            folder.mkdir(parents=True, exist_ok=True)
            for index in sorted(folder.glob("*.index")):
                self._read(index)

    def _read(self, index: Path) -> None:
        data = index.with_suffix(".states")
        entries = index.read_bytes()
        held = np.frombuffer(entries[: len(entries) // KEY.itemsize * KEY.itemsize], KEY)
        stops = np.cumsum(held["tokens"])
        room = data.stat().st_size // (4 * self.width) if data.exists() else 0
        for key, stop, n in zip(held["key"], stops.tolist(), held["tokens"].tolist(), strict=True):
            if stop <= room:
                self._known[key.tobytes()] = (data, stop - n, n)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise AccordError(
                f"states of the frozen layers cannot be kept in {self.folder} ({error}): make room, name another cache "
                "with ACCORD_CACHE, or set frozen_states: live"
            ) from error

    def __deepcopy__(self, memo: Any) -> States:
        return self  # a copy would write where this one does

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    @property
    def size(self) -> int:
        """Bytes of all that is known."""
        return sum(4 * self.width * n for _, _, n in self._known.values())

    def __getitem__(self, key: bytes) -> np.ndarray:
        """[n, h], a view of the file."""
        file, start, n = self._known[key]
        with self._keeping():
            return np.memmap(file, np.float32, "r", 4 * self.width * start, (n, self.width))

    def put(self, key: bytes, states: np.ndarray) -> None:
        """Keeps [n, h] for tokens that are not known yet."""
        with self._keeping():
            if self._own is None:
                self._own = self.folder / f"{os.getpid()}-{os.urandom(6).hex()}.states"
            with self._own.open("ab") as data:
                data.write(np.ascontiguousarray(states, np.float32).tobytes())
            with self._own.with_suffix(".index").open("ab") as index:
                index.write(np.array([(key, len(states))], KEY).tobytes())
        self._known[key] = (self._own, self._end, len(states))
        self._end += len(states)


class Below:
    """The frozen layers of a model, whose output is computed once.

    Args:
        layers: all layers of the model. count: the lowest so many are frozen.
        states: where their output is kept.
        dtype: of it, in the model. tuples: how many things a layer returns, 0 for a tensor.

    computed, read: tokens that went through the frozen layers, and that were known.
    """

    def __init__(self, layers: Seq[nn.Module], count: int, states: States, dtype: torch.dtype, tuples: int) -> None:
        self.layers, self.count, self.states = layers, count, states
        self.dtype, self.tuples = dtype, tuples
        self.computed = self.read = 0

    def output(self, row: Row, run: Callable[[Row], Any]) -> Tensor:
        """What comes out of the frozen layers, shaped as the row's tokens and [h]; run: the trunk on a row."""
        trees = _pieces(row)
        missing = [i for i, own in enumerate(trees) if any(key not in self.states for key, _ in own)]
        new = 0
        if missing:
            lower = _only(row, missing)
            got = self._computed(lower, run).flatten(0, -2).float().cpu().numpy()
            for key, place in chain(*_pieces(lower)):
                new += place.stop - place.start
                if key not in self.states:
                    self.states.put(key, got[place])
        found = np.zeros((row.tokens.numel(), self.states.width), np.float32)
        for key, place in chain(*trees):
            found[place] = self.states[key]
            self.read += place.stop - place.start
        self.computed += new
        self.read -= new
        return torch.from_numpy(found).to(row.tokens.device, self.dtype).unflatten(0, row.tokens.shape)

    def _computed(self, row: Row, run: Callable[[Row], Any]) -> Tensor:
        """The same without the cache: the layers above hand on what they are given."""
        seen: list[Tensor] = []

        def keep(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.append(hidden_states)
            return self._returned(hidden_states)

        with torch.no_grad(), _instead(self.layers[self.count :], keep):
            run(row)
        return seen[0]

    @contextlib.contextmanager
    def given(self, output: Tensor) -> Iterator[None]:
        """Within, the frozen layers do nothing and hand on `output`."""
        with _instead(self.layers[: self.count], lambda *args, **kwargs: self._returned(output)):
            yield

    def _returned(self, hidden: Tensor) -> Any:
        return (hidden, *[None] * (self.tuples - 1)) if self.tuples else hidden


@contextlib.contextmanager
def _instead(modules: Seq[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the modules compute `forward`."""
    before = [m.__dict__.get("forward") for m in modules]
    for m in modules:
        m.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for m, own in zip(modules, before, strict=True):
            if own is None:
                del m.forward  # type: ignore[misc]
            else:
                m.forward = own  # type: ignore[method-assign]


def _key(context: np.ndarray, response: np.ndarray) -> bytes:
    digest = hashlib.blake2b(len(context).to_bytes(8, "little"), digest_size=16)
    digest.update(context.astype("<i4").tobytes() + response.astype("<i4").tobytes())
    return digest.digest()


def _pieces(row: Row) -> list[list[tuple[bytes, slice]]]:
    """For each tree of a packed row, or line of a padded one: its context and responses by key, and where they lie
    among the row's tokens, flat."""
    ids = row.tokens.flatten().cpu().numpy()
    none = ids[:0]
    if row.layout == "padded":
        width = row.tokens.shape[1]
        lines = [slice(i * width, i * width + n) for i, n in enumerate(row.lengths.tolist())]
        return [[(_key(ids[line], none), line)] for line in lines]
    found = []
    for tree in row.trees:
        at = tree.start + tree.context
        context = ids[tree.start : at]
        own = [(_key(context, none), slice(tree.start, at))] if tree.context else []
        for n in filter(None, tree.responses):
            own.append((_key(context, ids[at : at + n]), slice(at, at + n)))
            at += n
        found.append(own)
    return found


def _only(row: Row, which: Seq[int]) -> Row:
    """Some trees, or lines, of a row: as much of it as the trunk reads."""
    if row.layout == "padded":
        lines = torch.tensor(which, device=row.tokens.device)
        return replace(row, tokens=row.tokens[lines], positions=row.positions[lines], lengths=row.lengths[lines])
    trees, places, at = [], [], 0
    for tree in (row.trees[i] for i in which):
        trees.append(Tree(at, tree.context, tree.responses))
        places.append(torch.arange(tree.start, tree.stop))
        at += tree.stop - tree.start
    index = torch.cat(places).to(row.tokens.device)
    return replace(row, tokens=row.tokens[:, index], positions=row.positions[:, index], trees=tuple(trees))
