"""What can a compiler join? Norms and feed-forward parts: their element-wise steps become few passes over memory.

Attention stays as it is: its layout changes from row to row. One compiled graph serves all layers and all lengths.
"""

from __future__ import annotations

import functools
import importlib.util
import types
from typing import Any

import torch
import torch._functorch.config
import torch.compiler.config
from torch import nn

from accord.engine.frozen import layers_of
from accord.errors import ConfigError

NORMS, FEED_FORWARD = ("norm", "ln_"), ("mlp", "feed_forward", "ffn")


def compile_layers(causal: Any, device: torch.device) -> int:
    """From now on norms and feed-forward parts of a transformers causal LM's layers are compiled, at their first use,
    where a gradient is asked for; what is scored or sampled without one (references, evaluations) is as ever.

    Returns:
        How many parts.

    Raises:
        ConfigError: there is nothing to compile, or nothing to compile it with.
    """
    check(device)
    parts = [
        part
        for layer in layers_of(causal)[1]
        for name, part in layer.named_children()
        if any(word in name for word in (*NORMS, *FEED_FORWARD))
    ]
    if not parts:
        raise ConfigError(f"compile_layers: no norm or feed-forward part is known of {type(causal).__name__}")
    torch._functorch.config.donated_buffer = False  # sets of gradients and probes go back through a graph again,
    torch.compiler.config.cache_key_tag = "accord"  # and what others keep on disk may not be made for that
    for part in parts:
        part.forward = types.MethodType(_forward, part)  # type: ignore[method-assign]
    return len(parts)


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The architecture's own, without what may stand in its place: the compiler sees more in it. Hooks stay outside."""
    own = type(self).forward
    return (_compiled(own) if torch.is_grad_enabled() else own)(self, *args, **kwargs)


@functools.cache
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


def check(device: torch.device) -> None:
    """Raises:
    ConfigError: what compiles for the device is not here.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("compile_layers needs triton on a GPU: install it, or leave compile_layers out")
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise ConfigError(
            "compile_layers needs a C++ compiler, and there is none: install g++ or clang++ (CXX names another), or "
            "leave compile_layers out"
        ) from error
