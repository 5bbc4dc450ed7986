"""What may the user set? The keywords of the functions that use it; this file collects and checks them.

Names, types, defaults and help of a run's settings are read from the signature and docstring of
`accord.training.run.train`, and an objective's options from its row: nothing is declared twice, and reading them
imports no torch.
"""

from __future__ import annotations

import ast
import builtins
import functools
import re
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, ValidationError, create_model

from accord.errors import ConfigError, nearest
from accord.objectives import table

TRAIN = Path(__file__).parent / "training" / "run.py"
TRANSLATED = ("per_device_train_batch_size", "gradient_accumulation_steps")
PYTHON_ONLY = ("tokenizer",)


@dataclass(frozen=True)
class Setting:
    """One keyword of `train`."""

    name: str
    annotation: str
    default: Any
    required: bool
    help: str


@functools.cache
def settings() -> dict[str, Setting]:
    """Every setting of a run, in the order of the signature."""
    tree = ast.parse(TRAIN.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "train")
    helps = _helps(ast.get_docstring(node) or "")
    found: dict[str, Setting] = {}
    plain = node.args.args
    defaults = [None] * (len(plain) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    for argument, default in pairs:
        found[argument.arg] = Setting(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else "Any",
            None if default is None else ast.literal_eval(default),
            default is None,
            helps.get(argument.arg, ""),
        )
    return found


def _helps(doc: str) -> dict[str, str]:
    """name -> sentence, from the Args section; `a, b: text` and `a: text. b: text` give both."""
    section = re.search(r"Args:\n(.*?)\n\n", doc, re.S)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w)", section.group(1)) if section else []:
        text = " ".join(entry.split())
        for match in re.finditer(r"(?:^|(?<=\. ))([a-z_, 0-9]+?): (.*?)(?=(?:(?<=\. )[a-z_]+: )|$)", text):
            for name in match.group(1).split(","):
                found[name.strip()] = match.group(2).strip()
    return found


@functools.cache
def _model() -> type:
    names = {**vars(typing), **vars(builtins)}
    fields: dict[str, Any] = {}
    for s in settings().values():
        kind = eval(s.annotation, {"__builtins__": {}}, names)  # our own signature's annotations
        fields[s.name] = (kind, ... if s.required else s.default)
    return create_model("Config", __config__=ConfigDict(extra="allow", arbitrary_types_allowed=True), **fields)


def check(given: dict[str, Any]) -> dict[str, Any]:
    """The settings with their types checked ("1e-6" is a number); unknown ones are refused with the nearest right name.

    Raises:
        ConfigError: names the setting, what is wrong, and what it could be.
    """
    known = set(settings()) | set(TRANSLATED) | {o for r in table.rows().values() for o in r.options}
    given = {k.replace("-", "_"): v for k, v in given.items()}
    for key in given:
        if key not in known:
            raise ConfigError(f"{key!r} is no setting; {nearest(key, known)}")
    try:
        checked = _model().model_validate(given)  # type: ignore[attr-defined]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "missing":
            raise ConfigError(f"{name} is missing: {settings()[name].help}") from None
        raise ConfigError(f"{name}={given.get(name)!r}: {first['msg'][0].lower() + first['msg'][1:]}") from None
    values = checked.model_dump(include=set(given))
    return {k: _number(v) if k not in settings() else v for k, v in values.items()}


def _number(value: Any) -> Any:
    """YAML reads 1e-6 as text; an option that looks like a number is one."""
    if isinstance(value, str):
        try:
            return float(value) if not value.lstrip("+-").isdigit() else int(value)
        except ValueError:
            return value
    return value


def read(path: Path) -> dict[str, Any]:
    """A YAML file of settings.

    Raises:
        ConfigError: not there, not YAML, not a map; the line is named.
    """
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file")
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(held, dict):
        raise ConfigError(f"{path}: a map of settings is expected, like `model: smollm2`")
    return held


def parse(words: list[str]) -> dict[str, Any]:
    """`key=value`, `--key value`, `--key=value`, `--flag`; `view.threshold=7` sets a key within; values are YAML.

    >>> parse(["--max-steps", "10", "beta=0.2", "--save-best", "--view.ties", "half"])
    {'max_steps': 10, 'beta': 0.2, 'save_best': True, 'view': {'ties': 'half'}}
    """
    found: dict[str, Any] = {}
    several: dict[str, list[Any]] = {}
    i = 0
    while i < len(words):
        word = words[i]
        i += 1
        dashed = word.startswith("--")
        key, equals, value = (word[2:] if dashed else word).partition("=")
        if not equals:
            if not dashed:
                raise ConfigError(f"{word!r}: write a setting as key=value or --key value")
            if i < len(words) and not words[i].startswith("--"):
                value = words[i]
                i += 1
            else:
                value = "true"
        try:
            parsed = _number(yaml.safe_load(value)) if value != "" else ""
        except yaml.YAMLError:
            parsed = value
        head, *rest = key.replace("-", "_").split(".")
        if head == "data" and not rest:
            several.setdefault(head, []).append(parsed)
            continue
        if rest:
            found.setdefault(head, {})[".".join(rest)] = parsed
        else:
            found[head] = parsed
    return found | {k: v[0] if len(v) == 1 else v for k, v in several.items()}
