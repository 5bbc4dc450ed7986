"""What does a file of functions say, without being run?

Objectives and judges are functions, and their tables are made of them. A function is found in the syntax tree of its
file, Accord's own or a user's, so that a table is listed without torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.errors import ConfigError, nearest


@dataclass(frozen=True)
class Option:
    """A keyword of a function: its annotation as written, and its default (`...`: required)."""

    annotation: str
    default: Any


def read(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions of a file by name, in their order."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def marked(node: ast.FunctionDef) -> dict[str, Any] | None:
    """What its decorator `@row(...)` says, in literals; None without one."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "row":
            return {str(k.arg): ast.literal_eval(k.value) for k in decorator.keywords}
    return None


def own(name: str, what: str) -> tuple[ast.FunctionDef, dict[str, ast.FunctionDef], str]:
    """A function of a user's, `my.py:mine`, all functions of its file, and the file as `module` takes it.

    Args:
        what: what the function is to be, for messages.

    Raises:
        ConfigError: no such file or function, or the file is no Python.
    """
    file, _, wanted = name.rpartition(":")
    path = Path(file).expanduser()
    try:
        functions = read(path)
    except OSError as error:
        raise ConfigError(f"{what} {name!r}: the file cannot be read ({error.strerror})") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{file}{line}: this is no Python ({error})") from None
    if wanted not in functions:
        raise ConfigError(f"{file} holds no function {wanted!r}; {nearest(wanted, functions)}")
    return functions[wanted], functions, str(path.resolve())


@functools.cache
def module(name: str) -> Any:
    """A module by its name, or by its file.

    Raises:
        ConfigError: a user's file fails when it is run.
    """
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    except Exception as error:  # whatever the user's file does
        raise ConfigError(f"{name} cannot be imported ({type(error).__name__}: {error})") from error
    return made
