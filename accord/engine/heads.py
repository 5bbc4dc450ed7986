"""What is learned beside the trunk: small modules on hidden states, each a named component with its own learning rate.

A head starts at zero, so adding one changes nothing until it has learned something; only `embedding`, whose scores are
products of its numbers, and `prototypes`, which are directions, cannot: at zero they have no slope.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from accord.errors import AccordError, ConfigError

Place = Literal["opens", "ends", "tokens"]


class Head(nn.Module):
    """A linear read-out of hidden states in float32.

    Args:
        hidden: width of the hidden states.
        width: numbers per place.
        at: `opens` reads the last token of the prompt (log Z), `ends` the last token of the response (rewards),
            `tokens` the token before each predicted one (values).
        bias: whether a constant is added; heads that transformers' sequence classification has a place for have none.
        spread: standard deviation of the weights at the start.
    """

    def __init__(
        self, hidden: int, width: int = 1, at: Place = "ends", *, bias: bool = True, spread: float = 0.0
    ) -> None:
        super().__init__()
        self.at: Place = at
        self.width = width
        self.linear = nn.Linear(hidden, width, bias=bias)
        nn.init.normal_(self.linear.weight, std=spread) if spread else nn.init.zeros_(self.linear.weight)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [n, h] -> [n, width], or [n] where width is 1."""
        with torch.autocast(hidden.device.type, enabled=False):
            out = self.linear(hidden.float())
        return out.squeeze(-1) if out.shape[-1] == 1 else out


class Free(nn.Module):
    """Numbers that depend on nothing that is read: the same for every response, float32, [n, width].

    spread: standard deviation at the start.
    """

    def __init__(self, width: int, spread: float = 0.0) -> None:
        super().__init__()
        self.at: Place = "ends"
        self.width = width
        self.free = nn.Parameter(spread * torch.randn(width) if spread else torch.zeros(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.free.expand(len(hidden), -1)


PLACES: dict[str, Place] = {
    "log_z": "opens", "score": "ends", "degree": "ends", "attributes": "ends", "embedding": "ends", "gate": "opens",
    "cuts": "ends", "prototypes": "ends", "value": "tokens", "mask": "tokens", "kl_mask": "tokens",
}  # fmt: skip
CLASSIFIERS = ("score", "attributes")  # saved as the `score` of transformers' *ForSequenceClassification, without bias
REWARDS = (*CLASSIFIERS, "embedding", "gate", "cuts")


def _new(name: str, hidden: int, width: int) -> nn.Module:
    if name == "cuts":
        return Free(width)
    if name == "prototypes":  # each about 1 long
        return Free(width * hidden, hidden**-0.5)
    spread = 1 / (hidden + 1) if name == "embedding" else 0.0
    return Head(hidden, width, PLACES[name], bias=name not in (*CLASSIFIERS, "embedding"), spread=spread)


def build(names: tuple[str, ...], hidden: int) -> nn.ModuleDict:
    """The heads called `names` (see `PLACES`), ready to train; `degree:4` is one of four numbers.

    Raises:
        ConfigError: one head of several widths.
    """
    widths: dict[str, int] = {}
    for name, _, width in (n.partition(":") for n in names):
        if widths.setdefault(name, int(width or 1)) != int(width or 1):
            raise ConfigError(
                f"the head {name!r} has one width, not {widths[name]} and {width}: make the options equal"
            )
    return nn.ModuleDict({name: _new(name, hidden, width) for name, width in widths.items()})


def load(built: nn.ModuleDict, held: dict[str, Tensor], where: str) -> set[str]:
    """Loads those of the heads that `held` holds, each whole; gives the names of all that it holds.

    Raises:
        AccordError: a head in it is another than the one that was built.
    """
    names = {key.partition(".")[0] for key in held}
    for name in names & set(built):
        own = {k.removeprefix(f"{name}."): v for k, v in held.items() if k.startswith(f"{name}.")}
        try:
            built[name].load_state_dict(own)
        except RuntimeError as error:
            raise unloadable(where, error) from error
    return names


def begin_as_score(held: dict[str, Tensor]) -> bool:
    """Puts a `value` that is the `score` of a reward model among the heads of its folder, if it has no value yet: what
    an answer earns is a first guess at what its tokens will return. False if nothing was put there."""
    score = held.get("score.linear.weight")
    if score is None or len(score) != 1 or "value.linear.weight" in held:
        return False
    held |= {"value.linear.weight": score.clone(), "value.linear.bias": torch.zeros(1)}
    return True


def read(file: Path) -> dict[str, Tensor]:
    """The heads of a file, as `load` takes them.

    Raises:
        AccordError: it is damaged.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise unloadable(str(file), error) from error


def unloadable(where: str, error: Exception) -> AccordError:
    why = " ".join(str(error).split())
    return AccordError(
        f"{where}: a head cannot be loaded ({why}). Put back the file of this model, or remove it to learn the head "
        "anew"
    )
