"""The walls of the house, held by reading the syntax trees: what a room may import, and where the seams are."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import accord

ROOT = Path(accord.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# What every wing stands on; it may import these and what they stand on. Everybody may import errors.
STANDS_ON: dict[str, set[str]] = {
    "errors": set(),
    "stats": set(),
    "sinks": set(),
    "data": {"stats"},
    "functions": set(),
    "objectives": {"functions"},
    "monitors": set(),
    "report": {"stats", "sinks", "monitors"},
    "endpoint": {"data"},
    "engine": {"data"},
    "sampling": {"engine", "endpoint"},
    "people": {"engine", "stats"},
    "judges": {"people", "endpoint", "functions"},
    "evaluate": {"sampling", "judges", "sinks", "stats"},
    "training": {"sampling", "objectives", "monitors", "sinks", "stats"},
    "online": {"training", "sampling", "judges"},
    "lab": {"online", "evaluate", "report"},
    "bench": {"lab"},
    "config": {"lab"},
    "sweeps": {"config"},
    "quickstart": {"lab"},
    "doctor": {"training", "report"},
    "migrate": {"config"},
    "cli": {"config", "sweeps", "quickstart", "doctor", "migrate", "bench"},
    "__init__": {"lab", "sweeps"},
    "__main__": {"cli"},
}
# A run, and a loop, writes its report as its last act: the only imports that point upwards, inside the functions.
SEAMS = {("training/run.py", "accord.report.render"), ("online/loop.py", "accord.report.rounds")}
# What third parties a wing may know; None: any but torch.distributed.
OUTSIDE: dict[str, set[str] | None] = {
    "errors": set(),
    "stats": {"numpy", "scipy"},
    "sinks": {"pyarrow", "torch", "wandb", "trackio", "mlflow"},  # examples are Parquet; trackers are imported if asked
    "objectives": {"torch"},
    "monitors": {"numpy"},
    "report": {"jinja2", "markupsafe", "numpy", "pyarrow", "rich", "yaml"},
    "data": {"numpy", "scipy", "pyarrow", "pydantic", "jinja2", "rich", "datasets", "huggingface_hub"},
    "endpoint": {"httpx2"},
    "config": {"yaml", "pydantic"},
    "doctor": {"torch", "transformers", "packaging", "pyarrow"},
    "migrate": {"yaml"},
    "cli": {"typer", "rich", "transformers", "huggingface_hub"},
}


@dataclass(frozen=True)
class Import:
    """A module that a file imports; `lazy` inside a function, `typing` under TYPE_CHECKING."""

    file: str
    module: str
    lazy: bool
    typing: bool

    @property
    def wing(self) -> str:
        return Path(self.file).parts[0].removesuffix(".py")


def imports() -> Iterator[Import]:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from _within(tree, path.relative_to(ROOT).as_posix(), False, False)


def _within(node: ast.AST, file: str, lazy: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(file, a.name, lazy, typing) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}: write imports in full"
            for a in child.names:
                whole = f"{child.module}.{a.name}"
                is_module = (ROOT.parent / (whole.replace(".", "/") + ".py")).exists() or child.module == "accord"
                yield Import(file, whole if is_module else str(child.module), lazy, typing)
        else:
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            guarded = typing or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING")
            yield from _within(child, file, inside, guarded)


IMPORTS = list(imports())


def below(wing: str) -> set[str]:
    """A wing, and everything that it stands on."""
    found = {wing, "errors"}
    for other in STANDS_ON[wing]:
        found |= below(other)
    return found


def test_every_wing_has_its_place():
    wings = {Path(p.relative_to(ROOT)).parts[0].removesuffix(".py") for p in FILES}
    assert wings <= STANDS_ON.keys(), "a new wing: say in STANDS_ON what it stands on"


def test_a_wing_imports_only_what_stands_below_it():
    wrong = []
    for i in IMPORTS:
        parts = i.module.split(".")
        if parts[0] != "accord" or (len(parts) == 1):
            continue
        if parts[1] not in below(i.wing) and not (i.lazy and (i.file, i.module) in SEAMS):
            wrong.append(f"{i.file} imports {i.module}")
    assert not wrong


def test_seams_are_still_there():
    assert {(i.file, i.module) for i in IMPORTS} >= SEAMS, "a seam is gone: take it out of the list"


def test_nothing_imports_the_command_line():
    assert {i.wing for i in IMPORTS if i.module.startswith("accord.cli")} <= {"cli", "__main__"}


def test_torch_distributed_has_one_importer():
    assert {i.file for i in IMPORTS if i.module.startswith("torch.distributed")} == {"training/parallel.py"}


@pytest.mark.parametrize("wing", OUTSIDE)
def test_what_a_wing_knows_of_the_world(wing):
    import sys

    allowed = OUTSIDE[wing]
    found = {i.module.split(".")[0] for i in IMPORTS if i.wing == wing} - {"accord"} - sys.stdlib_module_names
    assert allowed is None or found <= allowed


def test_the_table_and_the_config_import_no_torch():
    light = {"objectives/table.py", "functions.py", "config.py", "errors.py"}
    light |= {i.file for i in IMPORTS if i.wing == "cli"}
    assert not [i for i in IMPORTS if i.file in light and i.module.split(".")[0] == "torch"]


def test_the_command_line_imports_heavy_libraries_inside_its_commands():
    slow = {"torch", "transformers", "peft", "huggingface_hub", "rich"}
    assert not [i.module for i in IMPORTS if i.wing == "cli" and i.module.split(".")[0] in slow and not i.lazy]
    rooms = ("accord.engine", "accord.sampling", "accord.training", "accord.data", "accord.report")
    assert not [i.module for i in IMPORTS if i.wing == "cli" and i.module.startswith(rooms) and not i.lazy]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_module_imports_and_says_what_it_is(path):
    name = ".".join(("accord", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    if path.name == "__main__.py":
        return  # importing it runs the command
    importlib.import_module(name)
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "say at its top what the file is"


def test_the_training_loop_stays_small():
    lines = [line for f in ("loop.py", "step.py") for line in (ROOT / "training" / f).read_text().splitlines()]
    assert sum(bool(line.strip()) for line in lines) <= 700
