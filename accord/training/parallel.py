"""How many processes are there? The only importer of torch.distributed.

One process needs none of this; under `torchrun` the scorer is sharded by FSDP2 (gloo on CPU, NCCL on GPUs) and
gradients are summed, not averaged: every divisor is known before the backward pass.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from accord.training.terms import Metrics, add_metrics


@dataclass(frozen=True)
class Processes:
    """This process among `world`."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()

    def sum_counts(self, counts: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """(sum, count) of each name over the processes; names may differ between them."""
        if self.world == 1:
            return counts
        total: Metrics = {}
        for part in self.gather(counts):
            add_metrics(total, part)
        return total

    def gather(self, thing: Any) -> list[Any]:
        """`thing` of every process, in order of rank."""
        if self.world == 1:
            return [thing]
        things: list[Any] = [None] * self.world
        dist.all_gather_object(things, thing)
        return things

    def any(self, flag: bool) -> bool:
        """True if it is true anywhere."""
        return any(self.gather(flag)) if self.world > 1 else flag


def start() -> Processes:
    """Joins the processes that torchrun started, if it did."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes()
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Processes(dist.get_rank(), world)


def stop() -> None:
    """Leaves the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(scorer: Any, processes: Processes, *, trained: bool = True) -> nn.Module | None:
    """Shards the scorer with FSDP2, block by block, in place; one process leaves it as it is.

    What is not trained gives back each gathered weight after its use: no backward pass does it later.

    Returns:
        What `unsharded` needs: the model without its weights; None if nothing was sharded.

    Over gloo, summing needs both settings: the divide factor and the forced sum (its default averages).
    """
    if processes.world == 1:
        return None
    empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in scorer.model.parameters()}
    blueprint = copy.deepcopy(scorer.model, empty)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(scorer.device.type, (processes.world,))
    blocks = set(getattr(scorer.causal, "_no_split_modules", None) or ())
    for module in list(scorer.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(scorer, mesh=mesh, reshard_after_forward=not trained)
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return blueprint


def unsharded(blueprint: nn.Module, model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A plain copy of a sharded model in `dtype`, whole in every process (all of them must call it): to sample from."""
    gathered: dict[int, Tensor] = {}
    for p in model.parameters():
        gathered[id(p)] = p.detach().full_tensor().to(dtype)  # type: ignore[attr-defined]
    plain = copy.deepcopy(blueprint)
    state = {name: gathered[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    plain.load_state_dict(state, strict=False, assign=True)
    return plain.eval()


def whole_state(scorer: nn.Module) -> dict[str, Tensor]:
    """The unsharded state on the CPU, in the first process (all of them must call it); tied weights come once."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=False)
    state = get_model_state_dict(scorer, options=options)
    tied = {n for n, _ in scorer.named_parameters(remove_duplicate=False)} - {n for n, _ in scorer.named_parameters()}
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and k not in tied}


def sharded_state(scorer: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer state by parameter name, as sharded as they are: what `save_sharded` writes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    model, optim = get_state_dict(scorer, optimizer, options=StateDictOptions(ignore_frozen_params=True))
    return {"model": model, "optimizer": optim}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One process saving alone is what we mean; torch warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        yield


Beside = dict[str, dict[str, Tensor]]  # further weights by name


def save_sharded(folder: Path, scorer: nn.Module, optimizer: torch.optim.Optimizer, beside: Beside) -> None:
    """Writes model, optimizer and what is `beside` with torch.distributed.checkpoint, which any number of processes
    can read.

    Raises:
        OSError: it cannot be written.
    """
    import torch.distributed.checkpoint as dcp

    try:
        with _quiet():
            state = sharded_state(scorer, optimizer) | beside
            dcp.save(state, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    except dcp.CheckpointException as error:  # no Exception, so nobody above would see it
        first = next(iter(error.failures.values()))[0]
        # where torch's own writer meets a full disk, it says so without a number, or asserts
        raise OSError(
            getattr(first, "errno", None) or errno.EIO, str(getattr(first, "strerror", None) or first)
        ) from error


# What the index of a checkpoint is made of; torch writes it as a pickle, and anything else in it could run code.
INDEX = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size", *(n for n, value in vars(torch).items() if isinstance(value, torch.dtype))),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path"),
}  # fmt: skip


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in INDEX.get(module, ()):
            raise pickle.UnpicklingError(f"its index holds {module}.{name}, which no checkpoint of ours does")
        return super().find_class(module, name)


def _reading(folder: Path) -> dict[str, Any]:
    """How torch.distributed.checkpoint reads a folder without running what is in it."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.metadata import StorageMeta
    from torch.distributed.checkpoint.planner import ReadItem

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with (folder / ".metadata").open("rb") as stream:
                found = _Index(stream).load()
            found.storage_meta = found.storage_meta or StorageMeta()
            found.storage_meta.load_id = self.load_id
            return found

    class Planner(DefaultLoadPlanner):
        def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
            torch.load(value, weights_only=True)  # refuses what is no plain number, text or tensor
            value.seek(0)
            super().load_bytes(read_item, value)

    return {"storage_reader": Reader(str(folder)), "planner": Planner()}


def load_sharded(folder: Path, scorer: nn.Module, optimizer: torch.optim.Optimizer, beside: Beside) -> None:
    """Reads what `save_sharded` wrote, by however many processes; what is `beside` is filled in place.

    Raises:
        RuntimeError: it is damaged or belongs to another model.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    state = sharded_state(scorer, optimizer) | beside
    try:
        with _quiet():
            dcp.load(state, no_dist=not dist.is_initialized(), **_reading(folder))
    except dcp.CheckpointException as error:  # no Exception, so nobody above would see it
        raise RuntimeError("; ".join(repr(e) for e, _ in error.failures.values())) from error
    set_state_dict(
        scorer,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )


def load_optimizer(folder: Path, scorer: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads the optimizer's moments and counts alone of what `save_sharded` wrote; rates and the like stay.

    Raises:
        RuntimeError: it is damaged or belongs to other parameters.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    state = {"optimizer": sharded_state(scorer, optimizer)["optimizer"]}
    try:
        with _quiet():
            dcp.load(state, no_dist=not dist.is_initialized(), **_reading(folder))
    except dcp.CheckpointException as error:  # no Exception, so nobody above would see it
        raise RuntimeError("; ".join(repr(e) for e, _ in error.failures.values())) from error
    options = StateDictOptions(ignore_frozen_params=True, strict=False)
    set_optimizer_state_dict(scorer, optimizer, state["optimizer"], options=options)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)


def total_norm(parameters: list[nn.Parameter]) -> float:
    """2-norm of all gradients, over all shards."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def norms_by_part(module: nn.Module) -> dict[str, float]:
    """2-norm of the gradients of each kind of part: `embeddings`, `attention`, `mlp`, `norms`, `head`, `other`; of each
    extra head under its name."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad and p.grad is not None:
            parts.setdefault(_part(name), []).append(p)
    return {part: total_norm(found) for part, found in parts.items()}


PARTS = {
    "norms": ("norm", "ln_"), "attention": ("attn", "attention"), "mlp": ("mlp", "feed_forward", "experts", "fc"),
    "embeddings": ("embed", "wte", "wpe"), "head": ("lm_head", "embed_out"),
}  # fmt: skip


def _part(name: str) -> str:
    """
    >>> _part("model.layers.3.self_attn.q_proj.weight"), _part("model.layers.3.post_attention_layernorm.weight")
    ('attention', 'norms')
    """
    if name.startswith("heads."):
        return f"head:{name.split('.')[1]}"
    own = name.removesuffix(".weight").removesuffix(".bias")
    last = own.rpartition(".")[2]
    if any(word in last for word in PARTS["norms"]):
        return "norms"
    return next((part for part, words in PARTS.items() if any(word in own for word in words)), "other")


def on_first(processes: Processes, action: Callable[[], None]) -> None:
    """Runs `action` in the first process while the others wait."""
    if processes.first:
        action()
    processes.wait()
