"""Every example of the documents runs, every table in them is that of the code, every path and link leads somewhere.

The documents are taken as they stand. A random model stands in for `smollm2` and a few records for `slogans`, and
every training stops after two steps. A fence whose first line names a file (```json pairs.jsonl) is that file. Of
```bash, the lines that begin with `accord ` are run; `<!-- not run -->` above a fence leaves it out. ```text output is
what the command before it printed or, behind ```bash fails, a part of its message.

`python -m tests.test_docs` writes the lists of objectives and judges into docs/objectives.md and docs/judges.md.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import re
import runpy
import shlex
import sys
import types
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from accord import cli, config, functions, migrate
from accord.data import sources
from accord.data.views import ViewOptions
from accord.errors import AccordError
from accord.judges import table as judges
from accord.lab import curves, frame
from accord.objectives import facts, table
from accord.online import advantages, methods, pairing
from accord.stats import proportion
from tests import oracles, test_laws, test_walls
from tests.conftest import ROOT, mixed_records

PACKAGE = ROOT / "accord"
DOCS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LISTED = re.compile(r"(<!-- objectives: .*? -->\n```text\n)(.*?)(```\n<!-- end -->)", re.S)


JUDGES = re.compile(r"(\| judge \| form \| what \|\n\|---\|---\|---\|\n)((?:\|.*\n)*)")


@dataclass(frozen=True)
class Fence:
    """A block of a document. title: what stands behind the language, a file name or a word."""

    line: int
    language: str
    title: str
    text: str
    left_out: bool

    @property
    def is_file(self) -> bool:
        return "." in self.title


def fences(path: Path) -> list[Fence]:
    found: list[Fence] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language, _, title = lines[start][3:].partition(" ")
        text = "\n".join(lines[start + 1 : number]) + "\n"
        found.append(Fence(start + 1, language, title.strip(), text, "<!-- not run -->" in lines[start - 1]))
        start = None
    assert start is None, f"{path.name}: the fence of line {start} is not closed"
    return found


def prose(path: Path) -> str:
    """A document without its fences."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)


def lines_of(fence: Fence) -> list[str]:
    """The lines that begin with `accord `, each with its continuation."""
    return [line for line in fence.text.replace("\\\n", "").splitlines() if line.startswith("accord ")]


def commands(path: Path) -> list[str]:
    blocks = [f for f in fences(path) if f.language == "bash" and not f.left_out and f.title != "fails"]
    return [line for fence in blocks for line in lines_of(fence)]


def names(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cells(path: Path, header: str) -> list[list[str]]:
    """The rows of every table whose first column is called `header`."""
    found, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        row = [c.strip() for c in line.strip("|").split(" | ")] if line.startswith("|") else []
        if not row:
            inside = False
        elif inside and not line.startswith("|--"):
            found.append([c.strip(" |") for c in row])
        elif row[0].strip(" |") == header:
            inside = True
    assert found, f"{path.name} has no table of {header}"
    return found


def header(path: Path, first: str) -> list[str]:
    """The other columns of the table whose first one is called `first`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {first} | ")]
    return [c.strip() for c in line.strip("|").split(" | ")][1:]


# -- what is shown runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_ins(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with small things in the place of large ones."""
    import accord.training.run as run

    whole = run.train

    @functools.wraps(whole)
    def few(*args, **settings):
        return whole(*args, **settings | {"max_steps": min(settings.get("max_steps") or 2, 2), "precision": "fp32"})

    slogans = tmp_path / "bundled" / "slogans.jsonl"
    slogans.parent.mkdir()
    slogans.write_text("".join(r.to_json() + "\n" for r in mixed_records(6)), encoding="utf-8")
    monkeypatch.setattr(run, "train", few)
    monkeypatch.setattr("accord.engine.gguf.smollm2", lambda: model_folder)
    monkeypatch.setattr(sources, "bundled", lambda: {"slogans": slogans})
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def accord(line: str, fails: bool = False) -> str:
    """Runs a line that begins with `accord`; what it printed, or said where it must fail."""
    result = CliRunner().invoke(cli.app, shlex.split(line, comments=True)[1:])
    if fails:
        assert isinstance(result.exception, AccordError), f"{line}\n{result.output}\n{result.exception!r}"
        return str(result.exception)
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    return result.output


@pytest.mark.parametrize("path", DOCS, ids=names)
def test_examples_run(path: Path, stand_ins: Path) -> None:
    held = [f for f in fences(path) if not f.left_out]
    files = [f for f in held if f.is_file]
    assert len({f.title for f in files}) == len(files), "two files of one name"
    for fence in files:
        (stand_ins / fence.title).write_text(fence.text, encoding="utf-8")
    known: dict[str, object] = {"__name__": "example"}
    printed, failed = "", False
    for fence in held:
        if fence.language == "python" and not fence.title:
            exec(compile("\n" * fence.line + fence.text, str(path), "exec"), known)
        elif fence.language == "bash":
            failed = fence.title == "fails"
            for line in lines_of(fence):
                printed = accord(line, failed)
        elif fence.title == "output" and failed:
            assert " ".join(fence.text.split()) in " ".join(printed.split())
        elif fence.title == "output":
            assert fence.text.strip() == printed.strip()


YAML = [pytest.param(f, id=f"{names(p)}:{f.line}") for p in DOCS for f in fences(p) if f.language == "yaml"]


@pytest.mark.parametrize("fence", YAML)
def test_settings_that_are_shown_are_settings(fence: Fence, tmp_path: Path) -> None:
    from accord.training import plan

    file = tmp_path / "shown.yaml"
    file.write_text(fence.text, encoding="utf-8")
    checked = config.check({"model": "m", "data": "d"} | config.read(file))
    options = {k: v for k, v in checked.items() if k not in config.settings()}
    assert plan.terms(checked.get("objective", "dpo"), options, view=checked.get("view"))


def test_dpo_by_hand_runs_and_widens_the_margin(model_folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["dpo_by_hand.py", str(model_folder), "", "4"])
    runpy.run_path(str(ROOT / "recipes" / "dpo_by_hand.py"), run_name="__main__")
    told = re.findall(r"loss (\S+), margin (\S+) nats", capsys.readouterr().out)
    losses, margins = zip(*[(float(a), float(b)) for a, b in told], strict=True)
    assert losses[0] == 0.6931
    assert margins[0] == 0
    assert losses[-1] < losses[0]
    assert margins[-1] > margins[0]


def test_mixed_feedback_runs(model_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["mixed_feedback.py", str(model_folder), str(tmp_path / "run")])
    runpy.run_path(str(ROOT / "recipes" / "mixed_feedback.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert "done: {'demonstrations': 5, 'labels': 10, 'ratings': 5, 'pairs': 5, 'rankings': 15}" in told


def test_a_claim_by_hand_ends_in_a_verdict(model_folder, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["claim_by_hand.py", str(model_folder), "2", "0", "1"])
    runpy.run_path(str(ROOT / "recipes" / "claim_by_hand.py"), run_name="__main__")
    told = capsys.readouterr().out
    moved = [float(n) for n in re.findall(r"moved by (\S+) nats", told)]
    assert len(set(moved)) == 4
    assert re.search(r"^(held|not seen|inconclusive): chosen is higher by .* over 2 seeds$", told, re.MULTILINE)


# -- how to add --------------------------------------------------------------------------------------------------------


def _code(title: str) -> str:
    (fence,) = [f for f in fences(ROOT / "CONTRIBUTING.md") if f.title == title]
    return fence.text


def test_the_objective_of_contributing_keeps_every_law(monkeypatch) -> None:
    known: dict[str, object] = {}
    exec(_code("oracle"), known)
    name = next(k for k, v in known.items() if isinstance(v, types.FunctionType))
    monkeypatch.setattr(oracles, name, known[name], raising=False)
    tree = ast.parse(_code("objective"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef))
    module = types.ModuleType("contributed")
    monkeypatch.setitem(sys.modules, "contributed", module)
    exec(compile(tree, "contributed", "exec", flags=__import__("__future__").annotations.compiler_flag), vars(module))
    row = table._read(node, "contributed", functions.marked(node) or {})
    cases = [test_laws.make(row, getattr(module, name), None, options) for options in test_laws.option_sets(row)]
    for number, law in test_laws.WITH_PAPER.items():
        test_laws.judge(law, cases, row.exceptions.get(number))


def test_the_layout_of_contributing_is_read(tmp_path, monkeypatch) -> None:
    known: dict[str, object] = {}
    exec(_code("layout"), known)
    file = tmp_path / "duels.jsonl"
    file.write_text(_code("duels.jsonl"), encoding="utf-8")
    with pytest.raises(AccordError, match="no known layout"):
        sources.load(file)
    monkeypatch.setattr(sources, "LAYOUTS", (known["DUEL"], *sources.LAYOUTS))
    loaded = sources.load(file)
    assert loaded.told == "duels.jsonl: duels, 1 pair"
    assert loaded.records[0].judgements[0].value == 0


# -- what is listed is what there is -----------------------------------------------------------------------------------


def test_layouts_are_all_shown_and_read_as_what_they_are_called(tmp_path) -> None:
    parts = re.split(r"^### ", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    shown = {}
    for part in parts:
        file = tmp_path / "part.md"
        file.write_text(part.split("\n## ")[0], encoding="utf-8")
        shown[part.split("\n")[0].strip("`")] = [f for f in fences(file) if f.is_file]
    assert shown.keys() == {entry.name for entry in sources.LAYOUTS}
    for name, files in shown.items():
        assert files, name
        for fence in files:
            (tmp_path / fence.title).write_text(fence.text, encoding="utf-8")
            assert sources.load(tmp_path / fence.title).layout == name


def _defaults(rows: list[list[str]]) -> dict[str, object]:
    """name to default of a table of settings; `...` where one is required."""
    found: dict[str, object] = {}
    for first, default, *_ in rows:
        for name in re.findall(r"`(\w+)`", first):
            text = default.strip("`")
            tiny = re.fullmatch(r"\d+e-\d+", text)  # YAML takes 1e-8 for text
            found[name] = ... if text == "required" else float(text) if tiny else yaml.safe_load(text)
    return found


def test_settings_of_a_run_are_listed_with_their_defaults() -> None:
    listed = _defaults(cells(ROOT / "docs" / "training.md", "setting"))
    assert listed == {s.name: ... if s.required else s.default for s in config.settings().values()}


def test_options_of_views_are_listed_with_their_defaults() -> None:
    listed = _defaults(cells(ROOT / "docs" / "data.md", "option"))
    assert listed == {f.name: f.default for f in fields(ViewOptions)}


def test_loops_are_told_as_they_are() -> None:
    page = ROOT / "docs" / "online.md"
    known = config.keywords(PACKAGE / "online" / "loop.py", "loop").values()
    assert _defaults(cells(page, "setting of a loop")) == {s.name: ... if s.required else s.default for s in known}
    assert _defaults(cells(page, "option of pairing")) == {f.name: f.default for f in fields(pairing.PairOptions)}
    told = {
        name: {row[0].strip("`"): row[-1] for row in cells(page, name)}
        for name in ("rule", "label", "preset", "advantage")
    }
    assert _defaults(cells(page, "option of advantages")) == {
        f.name: f.default for f in fields(advantages.AdvantageOptions)
    }
    assert told["advantage"] == {rule: advantages.says(rule) for rule in advantages.RULES}
    assert told["rule"] == {rule: pairing.says(rule) for rule in pairing.RULES}
    assert told["label"] == {name: (f.__doc__ or "").strip() for name, f in pairing.LABELS.items()}
    assert told["preset"] == {name: p.about for name, p in methods.presets().items()}


def test_objectives_are_listed_as_the_command_lists_them() -> None:
    listed = LISTED.search((ROOT / "docs" / "objectives.md").read_text(encoding="utf-8"))
    assert listed
    assert listed.group(2) == CliRunner().invoke(cli.app, ["objectives"]).output, "run python -m tests.test_docs"


def listed_judges() -> str:
    return "".join(f"| `{r.name}` | `{r.form}` | {r.summary} |\n" for r in judges.rows().values())


def test_judges_are_listed_as_they_are() -> None:
    listed = JUDGES.search((ROOT / "docs" / "judges.md").read_text(encoding="utf-8"))
    assert listed
    assert listed.group(2) == listed_judges(), "run python -m tests.test_docs"


def test_every_objective_has_a_page_that_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "objective_pages.py"))
    texts, folder = made["texts"](), ROOT / "docs" / "objectives"
    stale = [p.name for p, text in texts.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    assert stale == [], "run python scripts/objective_pages.py"
    pictures = {p.stem: p.stat().st_size for p in folder.glob("*.svg")}
    assert set(pictures) == {name for name, row in table.rows().items() if curves.drawn(row)}
    assert {p.name for p in folder.iterdir()} == {p.name for p in texts} | {f"{n}.svg" for n in pictures}
    assert sum(pictures.values()) < 2_000_000


def test_tails_that_are_told_are_those_of_the_functions() -> None:
    """Computed in float64 far out; a constant is told to four digits."""
    held = json.loads(facts.TAILS.read_text(encoding="utf-8"))
    assert {r.name: curves.tails(r) for r in table.rows().values()} == held, "run python scripts/objective_pages.py"
    assert held["kto"][0] == "good, log-ratio -> -inf: dL/dlogp -> 0"
    assert held["robust"][1] == "margin -> +inf: dL/da -> -0.0125, dL/db -> 0.0125"


def test_what_a_run_writes_is_in_the_tables(stand_ins) -> None:
    import accord as package

    run = package.train(
        "smollm2", "slogans", {"demonstrations": "sft", "ratings": "ulma", "pairs": "dpo", "rankings": "dpo"},
        output="run", eval_steps=1, quiet=True,
    )  # fmt: skip
    files = {re.findall(r"`(.*?)`", row[0])[0].strip("/") for row in cells(ROOT / "README.md", "in the run folder")}
    assert {p.name for p in run.folder.iterdir()} | {"verdicts.jsonl", "samples.jsonl", "probe.json"} == files
    documented, beside = (
        {n for row in cells(ROOT / "docs" / page, column) for n in re.findall(r"`(.*?)`", row[0])}
        for page, column in (("numbers.md", "metric"), ("monitors.md", "number"))
    )
    terms = "|".join(run.summary["examples"])
    lines = [yaml.safe_load(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    written = {re.sub(rf"^(eval_)?(({terms})/)?", "", key) for line in lines for key in line}
    assert written - beside <= documented
    assert documented - written <= {"rewards/accuracies_longer", "rewards/accuracies_shorter"}  # as the lengths fall
    assert {"probe/update", "data/longer", "probe/entanglement/cosine"} <= written
    numbers = prose(ROOT / "docs" / "numbers.md")
    timing = (run.folder / "timing.jsonl").read_text().splitlines()
    told = {k for k in yaml.safe_load(timing[0]) if k != "step"} | {"train", "held_out", "start", "held_out_accuracy"}
    assert {k for k in told if f"`{k}`" not in numbers} == set()
    assert {"held_out_accuracy", "longer_is_better", "train", "held_out", "start"} <= run.summary.keys()


def test_numbers_that_are_printed_are_true() -> None:
    page = ROOT / "docs" / "numbers.md"
    (weight,) = [row[1:] for row in cells(page, "margin") if row[0].startswith("still")]
    (probability,) = [row[1:] for row in cells(page, "margin") if row[0] == "probability"]
    margins, pairs = header(page, "margin"), header(page, "pairs")
    assert probability == [f"{1 / (1 + math.exp(-float(m))):.3f}" for m in margins]
    assert weight == [f"{1 / (1 + math.exp(float(m))):.3f}" for m in margins]
    intervals = [proportion(round(0.7 * int(n)), int(n)) for n in pairs]
    assert [row[1:] for row in cells(page, "pairs")] == [
        [f"{i.low:.3f}" for i in intervals], [f"{i.high:.3f}" for i in intervals]
    ]  # fmt: skip


def test_losses_at_the_start_are_those_of_the_rows() -> None:
    told: dict[str, str] = {}
    for names_, start, *_ in cells(ROOT / "docs" / "numbers.md", "objective"):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names_), start)
    for name in told:
        row = table.find(name)
        values = {k: o.default for k, o in row.options.items()} | {"log": math.log, "exp": math.exp, "value": 1.0}
        if row.init is None or "value**" in row.init:
            assert not re.search(r"\d\.\d|= \d", told[name]), name
        else:
            assert f"{eval(row.init, {}, values):.3g}" in told[name], name


def test_settings_of_trl_become_what_the_page_says() -> None:
    page = ROOT / "docs" / "from-trl.md"
    for theirs, ours, *_ in cells(page, "in TRL"):
        given = yaml.safe_load("\n".join(re.findall(r"`(.*?)`", theirs)))
        whole = {"model_name_or_path": "m", "dataset_name": "d", "loss_type": "sigmoid"} | given
        if ours == "refused":
            with pytest.raises(AccordError):
                migrate.convert(whole, "trl")
            continue
        made = migrate.convert(whole, "trl")
        if ours == "none":
            gone = made.partition("# Without a counterpart:")[2]
            assert [k for k in given if f"\n# {k}: " not in gone] == []
        else:
            expected = yaml.safe_load("\n".join(re.findall(r"`(.*?)`", ours)))
            assert {k: yaml.safe_load(made).get(k) for k in expected} == expected
    layouts = {entry.name for entry in sources.LAYOUTS}
    for *_, layout in cells(page, "format of TRL"):
        assert layout.startswith("none:") or re.findall(r"`(.*?)`", layout)[0] in layouts


@pytest.mark.parametrize("page", ["demonstrations", "labels", "pairs", "rankings"])
def test_rows_of_each_kind_of_feedback_are_that_kind(page: str, tmp_path: Path) -> None:
    kinds = {"labels": {"labels", "ratings"}}.get(page, {page})
    shown = [f for f in fences(ROOT / "docs" / f"{page}.md") if f.title.endswith((".jsonl", ".csv"))]
    assert len(shown) >= 3
    for fence in shown:
        (tmp_path / fence.title).write_text(fence.text, encoding="utf-8")
        loaded = sources.load(tmp_path / fence.title)
        assert loaded.records
        for record in loaded.records:
            assert set(record.kinds) <= kinds | {"ratings"}, fence.title


def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    with (ROOT / "mkdocs.yml").open(encoding="utf-8") as file:
        settings = load_config(file, strict=True, site_dir=str(tmp_path / "site"))
    settings.plugins.on_startup(command="build", dirty=False)
    build(settings)
    built = {p.relative_to(tmp_path / "site").as_posix(): p for p in (tmp_path / "site").rglob("*.html")}
    assert {p.stem + ".html" for p in (ROOT / "docs").glob("*.md")} <= built.keys()
    for name, page in built.items():
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^\s>]+", text)
        assert loaded == [], name
        assert "```" not in text, f"{name}: a fence is shown as text"


def test_every_module_is_in_the_rooms_and_the_tree() -> None:
    rooms = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    modules = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if p.stat().st_size}
    assert {m for m in modules if f"`{m}`" not in rooms} == set(), "ARCHITECTURE.md does not name them"
    (tree,) = [f for f in fences(ROOT / "README.md") if f.text.startswith("accord/")]
    paths = []
    for line in tree.text.splitlines():
        name = line.split()[0]
        paths.append(f"accord/{name}" if line.startswith(" ") else name)
    assert [p for p in paths if not (ROOT / p).exists()] == []
    folders = {f"accord/{p.name}/" for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("[!_]*"))}
    assert folders <= set(paths)


def test_wings_stand_on_what_the_walls_say() -> None:
    listed = {row[0]: row[2:] for row in cells(ROOT / "ARCHITECTURE.md", "wing")}
    on = {_wing(name): {_wing(n) for n in re.findall(r"`(.*?)`", " ".join(rest))} for name, rest in listed.items()}

    def below(wing: str) -> set[str]:
        return {wing, "errors"}.union(*(below(other) for other in on[wing]))

    here = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert on.keys() == here
    assert {wing: below(wing) for wing in on} == {wing: test_walls.below(wing) & here for wing in on}


def _wing(name: str) -> str:
    return name.strip("`").removesuffix(".py")


# -- what is named is there --------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCS, ids=names)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(other), re.M)
            assert anchor in {slug(h) for h in headings}, target


@pytest.mark.parametrize("path", DOCS, ids=names)
def test_files_and_tests_that_are_named_are_there(path: Path) -> None:
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|html|txt|toml))(?:::\w+)?`", prose(path)):
        assert (ROOT / name).exists() or (PACKAGE / name).exists(), name
    for file, test in re.findall(r"`(tests/\w+\.py)::(\w+)`", prose(path)):
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


@pytest.mark.parametrize("path", DOCS, ids=names)
def test_commands_and_options_that_are_named_are_there(path: Path) -> None:
    group = typer.main.get_command(cli.app)
    flat = dict(group.commands)  # type: ignore[attr-defined]
    flat |= {f"{group} {k}": v for group in ("data", "eval", "people") for k, v in flat[group].commands.items()}
    known = {*config.settings(), *config.TRANSLATED, "help"} | {o for r in table.rows().values() for o in r.options}
    known |= {o.strip("-").replace("-", "_") for c in (group, *flat.values()) for p in c.params for o in p.opts}
    known |= {*config.keywords(PACKAGE / "online" / "loop.py", "loop"), "preset", "judges", "pair"}
    known |= {f.name for f in fields(pairing.PairOptions)}
    known |= {o for lab in frame.LABS for o in config.keywords(frame.file_of(lab), "run")}
    text = [*re.findall(r"`([^`\n]+)`", prose(path)), *commands(path)]
    for line in text:
        if line.startswith("accord "):
            assert line.split()[1] in {*flat, "--help", *(o for p in group.params for o in p.opts)}, line
        if line.startswith(("accord ", "--")):
            for option in re.findall(r"(?:^|\s)--([a-z][\w.-]*)", line):
                assert option.split(".")[0].replace("-", "_") in known, line
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for target in re.findall(r"\bmake ([a-z]+)`|^make ([a-z]+)", path.read_text(encoding="utf-8"), re.M):
        assert set(target) - {""} <= targets, target


def write() -> None:
    """Puts the output of `accord objectives` into docs/objectives.md, and the judges into docs/judges.md."""
    path = ROOT / "docs" / "objectives.md"
    listed = CliRunner().invoke(cli.app, ["objectives"]).output
    text = LISTED.sub(lambda m: m.group(1) + listed + m.group(3), path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    path = ROOT / "docs" / "judges.md"
    text = JUDGES.sub(lambda m: m.group(1) + listed_judges(), path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
