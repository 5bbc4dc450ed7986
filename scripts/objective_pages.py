"""Writes a page for each objective, in `docs/objectives/`, and the words for its tails, in `accord/objectives/`.

    python scripts/objective_pages.py

Everything on a page is read from the row or computed from its function; tests/test_docs.py says when it has to be run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from accord.errors import ConfigError
from accord.lab import curves, frame
from accord.objectives import facts, relations, table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "objectives"
PARTS = ("Equation", "Args", "Returns", "Raises", "Source", "Example")
FAMILIES = {
    "pairs": "Pairs: links", "offsets": "Pairs: offsets", "divergences": "Pairs: divergences",
    "tokens": "Pairs: tokens", "sums": "Pairs: sums", "coupled": "Batches", "moving": "Moving references and labels",
    "free": "Pairs without a reference", "points": "Single responses", "lists": "Groups", "games": "Games",
    "negatives": "Negatives", "demos": "Demonstrations", "rewards": "Rewards",
    "rollouts": "Sampled answers: policy gradients",
}  # fmt: skip


def tails() -> str:
    """The text of tails.json."""
    return json.dumps({r.name: curves.tails(r) for r in table.rows().values()}, indent=1) + "\n"


def parts(row: table.Row) -> dict[str, str]:
    """The docstring by its headings; what comes before them is `""`."""
    text = row.help.partition(">>>")[0]
    found, name = {"": ""}, ""
    for line in text.splitlines():
        if (head := re.match(rf"({'|'.join(PARTS)}):\s*(.*)", line)) is not None:
            name, line = head[1], head[2]
        found[name] = found.get(name, "") + line + "\n"
    return {k: v.strip("\n") for k, v in found.items()}


def plain(text: str) -> str:
    """Prose of a docstring as markdown: nothing in it is emphasis or a tag."""
    cut = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", text.strip()))
    return "".join(c if c.startswith("`") else re.sub(r"([*_|<\[\]])", r"\\\1", c) for c in cut)


def arguments(text: str) -> list[str]:
    """A list of what the Args part says."""
    found: list[str] = []
    for line in text.splitlines():
        if re.match(r" {4}\w[\w, ]*:", line):
            found.append(line)
        elif found:
            found[-1] += " " + line
    return [f"- `{n.strip().replace(', ', '`, `')}`: {plain(rest)}" for n, _, rest in (f.partition(":") for f in found)]


def linked(names: list[str]) -> str:
    return ", ".join(f"[{n}]({n}.md)" for n in names)


def page(row: table.Row) -> str:
    """The text of a row's page."""
    doc, of = parts(row), relations.relations()
    made = [n for n in of[row.name].rows if n != row.name]
    makes = [n for n, p in of.items() if row.name in p.rows]
    paper = f"[arXiv {row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper[:1].isdigit() else "none"
    options = [f"| `{k}` | `{o.default!r}` | `{o.annotation}` |" for k, o in row.options.items()]
    needs = ", ".join(f"`{n}`" for n in row.needs) or "nothing"
    out = [
        f"# {row.name}", "", plain(doc[""]), "",
        "```text", *[line.removeprefix("    ") for line in doc["Equation"].splitlines()], "```", "",
        "| | |", "|---|---|",
        f"| paper | {paper} |",
        f"| feeds on | `{row.feeds_on}`{' with scores' if row.values == 'scores' else ''} |",
        f"| asks for | {needs} |",
        f"| log-probs | {row.length.replace(' only', ', no choice,')} over tokens; loss per {row.unit} |"
        if row.logps
        else "| log-probs | none: the language-model head is not computed |",
        f"| at {facts.begin(row)} | {plain(facts.start(row))} |",
        f"| invariance | {facts.invariance(row)} |",
        *[f"| {t.partition(':')[0]} | {t.partition(':')[2].strip()} |" for t in facts.tails(row)],
    ]  # fmt: skip
    if row.aliases:
        out.append(f"| also called | {', '.join(f'`{a}`' for a in row.aliases)} |")
    out += ["", f"![Loss and gradient factors of {row.name}]({row.name}.svg)", ""] if curves.drawn(row) else [""]
    if options:
        out += ["| option | default | type |", "|---|---|---|", *options, ""]
    out += [*arguments(doc["Args"]), "", f"Returns: {plain(doc['Returns'])}", ""]
    out += ["## Source, and what codes do otherwise", "", plain(doc["Source"]), ""]
    if made or makes:
        out += ["## Relations", ""]
        out += [f"Made of {linked(made)}."] if made else []
        out += [f"Part of {linked(makes)}."] if makes else []
        out += [""]
    if row.exceptions:
        out += ["## Laws that it breaks on purpose", ""]
        out += [f"- [law {n}](../../ARCHITECTURE.md#laws): {plain(why)}" for n, why in row.exceptions.items()] + [""]
    out += ["## By hand", "", plain(doc["Example"])]
    return "\n".join(out) + "\n"


def index() -> str:
    """The text of the list of pages."""
    out = [
        "# Objectives one by one", "",
        "A page for each row of the table: equation, source, options, and what it does along its margin, with the "
        "defaults. [Which objective for my data](../choosing.md) compares them; [Objectives](../objectives.md) says "
        "how to read a row.", "",
        "Pictures and tails: a pair is moved away from its reference, chosen up and rejected down by half of the "
        "margin each (a, b their log-probs); a single response up by its log-ratio, or without a reference along its "
        "log-prob; a sampled answer by its log-ratio to the policy that sampled it, with advantages of 1 and -1; of a "
        "group, the best up and the worst down. Statistics of the batch are those at the reference, and "
        "far out every response is unlikely. Strengths are 1 (`soft_dpo` at 1 is `dpo`; below 1 it turns back beyond "
        "its margin), scores 1 and 0 (of a group, from 1 down to 0), all answers have 20 tokens: a number that stands "
        "for a tail is one of these. Rewards are moved as log-probs are, from 0; a row on hidden states has "
        "neither picture nor tails.", "",
    ]  # fmt: skip
    for module, title in FAMILIES.items():
        members = [r for r in table.rows().values() if r.module == f"accord.objectives.{module}"]
        out += [f"## {title}", "", "| row | feeds on | what it is |", "|---|---|---|"]
        out += [f"| [{r.name}]({r.name}.md) | {r.feeds_on} | {plain(r.summary)} |" for r in members] + [""]
    return "\n".join(out)


def texts() -> dict[Path, str]:
    """Every file but the pictures."""
    if unlisted := {r.module.rpartition(".")[2] for r in table.rows().values()} - set(FAMILIES):
        raise ConfigError(f"give the family {sorted(unlisted)[0]!r} a title in scripts/objective_pages.py")
    return {PAGES / "index.md": index()} | {PAGES / f"{r.name}.md": page(r) for r in table.rows().values()}


def svg(path: Path) -> None:
    """Smaller: no metadata, no more digits than a screen shows."""
    text = re.sub(r"<metadata>.*?</metadata>\n?", "", path.read_text(), flags=re.S)
    text = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.1f}", text)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.S).replace("; stroke-linecap: square", "")
    text = re.sub(r"font-family: [^;]*;", "font-family: sans-serif;", text)
    path.write_text(re.sub(r"\n\s*", "\n", text))


def write() -> None:
    PAGES.mkdir(exist_ok=True)
    facts.TAILS.write_text(tails())
    facts._tails.cache_clear()
    for old in PAGES.iterdir():
        old.unlink()
    for path, text in texts().items():
        path.write_text(text)
    for row in filter(curves.drawn, table.rows().values()):
        frame.save(curves.draw(row), PAGES / f"{row.name}.svg")
        svg(PAGES / f"{row.name}.svg")


if __name__ == "__main__":
    write()
