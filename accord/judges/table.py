"""Which judges are there, and what do the words `NAME:MAIN,option=value` mean?

A judge is a function decorated with `@row()` in a file of this folder, or any function in a file of the user's
(`my.py:mine`). Its signature says most of what there is to know:

- first argument `text: str`: a value of an answer's text alone, `-> float`;
- first argument `record: Record`: a value of each response of a record, `-> list[float]`; NaN where there is none;
- `-> Judge`: it makes a judge, of models, say; its first positional argument, a text, stands behind the colon;
- the other arguments are its options, with their defaults; the docstring is its help.

Words may be added and multiplied: `0.5*sentiment + slogan:words=5`. All of it is read from the syntax tree, so that
listing the table imports no torch; `find` imports the module that holds the function.
"""

from __future__ import annotations

import ast
import functools
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord import functions
from accord.errors import ConfigError, nearest
from accord.functions import Option

if TYPE_CHECKING:
    from accord.judges.frame import Judge

TEXT, RECORD, MAKER = "text", "record", "judge"
WHERE = ("device", "precision")  # arguments of makers that the caller gives for all judges
REQUIRED = ...


@dataclass(frozen=True)
class Row:
    """What is known of a judge.

    kind: what the function is given: `text`, `record`, or nothing (`judge`: it makes one).
    main: the argument that stands right behind the colon, or None; main_default: what it is where it is left out
        (`...`: required).
    scale: lowest and highest value, where they are known.
    """

    name: str
    module: str
    kind: str
    main: str | None
    options: dict[str, Option]
    doc: str
    scale: tuple[float, float] | None = None
    main_default: Any = REQUIRED

    @property
    def summary(self) -> str:
        return self.doc.strip().splitlines()[0] if self.doc.strip() else ""

    @property
    def help(self) -> str:
        first, _, rest = self.doc.partition("\n")
        return first + "\n" + textwrap.dedent(rest)

    @property
    def form(self) -> str:
        """How it is called: `similarity:MODEL[,to=prompt]`.

        >>> rows()["slogan"].form
        'slogan[:words=5]'
        """
        given = [f"{k}={'...' if o.default is REQUIRED else o.default}" for k, o in self.options.items()]
        needed = [g for g in given if g.endswith("=...")]
        free = [g for g in given if g not in needed]
        main = [self.main.upper()] if self.main else []
        needed, free = (main + needed, free) if self.main_default is REQUIRED else (needed, main + free)
        said = ",".join(needed)
        mark = ":" if not said else ","
        return self.name + (":" + said if said else "") + (f"[{mark}{','.join(free)}]" if free else "")


def row(*, scale: tuple[float, float] | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a function as a judge; the arguments are fields of `Row` and must be literals."""
    del scale  # read elsewhere
    return lambda function: function


@functools.cache
def rows() -> dict[str, Row]:
    """Every judge by name, in the order of the files and of the functions within."""
    found: dict[str, Row] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for name, node in functions.read(path).items():
            if (facts := functions.marked(node)) is not None:
                found[name] = _read(node, f"accord.judges.{path.stem}", facts)
    return found


def _read(node: ast.FunctionDef, module: str, facts: dict[str, Any]) -> Row:
    plain = node.args.posonlyargs + node.args.args
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults))
    defaults += node.args.defaults
    pairs = [*zip(plain, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    known = {a.arg: Option(_written(a.annotation), REQUIRED if d is None else ast.literal_eval(d)) for a, d in pairs}
    first = next(iter(plain), None)
    kind = {"str": TEXT, "Record": RECORD}.get(_written(first.annotation)) if first is not None else None
    main = None
    if _written(node.returns).rpartition(".")[2] == "Judge":
        kind = MAKER
        main = first.arg if first is not None and _is_main(known[first.arg]) else None
    if kind is None:
        raise ConfigError(
            f"{module}:{node.name}: say what it is given by annotations: (text: str) -> float, (record: Record) -> "
            "list[float], or -> Judge"
        )
    if kind != MAKER and first is not None:
        del known[first.arg]
    options = {k: o for k, o in known.items() if k != main and not (kind == MAKER and k in WHERE)}
    free = known[main].default if main else REQUIRED
    return Row(node.name, module, kind, main, options, ast.get_docstring(node) or "", facts.get("scale"), free)


def _is_main(option: Option) -> bool:
    return option.default is REQUIRED or isinstance(option.default, str)


def _written(annotation: ast.expr | None) -> str:
    return ast.unparse(annotation).strip("'\"") if annotation is not None else "Any"


# -- words ------------------------------------------------------------------------------------------------------------


def find(words: str, *, device: str = "auto", precision: str = "auto", policy: str = "") -> Judge:
    """The judge that the words name: a row, a function of the user's, or a sum of products of such.

    Args:
        words: `slogan:words=5`, `similarity:MODEL,to=prompt`, `my.py:mine`, `0.5*sentiment + slogan:words=5`; a folder
            alone is a reward model in it.
        device, precision: of judges that are models.
        policy: the model whose answers are judged, for a judge that is asked to be it.

    Raises:
        ConfigError: no such judge or option (the nearest is named), or a value that cannot be.

    >>> find("sentimint")
    Traceback (most recent call last):
    accord.errors.ConfigError: judge 'sentimint': there is no judge 'sentimint'; did you mean 'sentiment'?
    """
    from accord.judges.frame import Sum

    if words and words not in rows() and Path(words).is_dir():  # a run, or a model's folder, by its path alone
        words = f"reward:{words}"
    terms = _terms(words)
    parts = {name: _one(name, words, device, precision, policy) for _, names in terms for name in names}
    if len(terms) == 1 and terms[0][0] == 1 and len(terms[0][1]) == 1:
        return parts[terms[0][1][0]]
    return Sum([(factor, [parts[name] for name in names]) for factor, names in terms], words.strip())


def check(words: str) -> None:
    """Raises what `find` raises of the words alone: no judge is made, and no model is loaded."""
    if words and words not in rows() and Path(words).is_dir():
        return
    for name in (name for _, names in _terms(words) for name in names):
        found, options = _called(name, words)
        if found.kind == TEXT:
            _text(found, options, words)


def row_of(name: str) -> Row:
    """The row of one judge, without its options."""
    return _called(name, name, complete=False)[0]


def rule(words: str) -> Callable[[str], float]:
    """The function of a text that the words name.

    >>> rule("slogan:words=3")("Bikes made better.")
    1.0
    >>> rule("slogan:word=3")
    Traceback (most recent call last):
    accord.errors.ConfigError: judge 'slogan:word=3': slogan has no option 'word'; did you mean 'words'?
    """
    found, options = _called(words, words)
    if found.kind != TEXT:
        raise ConfigError(f"judge {words!r}: {found.name} judges more than a text; it is no rule")
    return _text(found, options, words)


def _terms(words: str) -> list[tuple[float, list[str]]]:
    """Factor and names of each term of a sum.

    >>> _terms("0.5*sentiment - slogan:words=5 * length")
    [(0.5, ['sentiment']), (-1.0, ['slogan:words=5', 'length'])]
    """
    pieces = re.split(r"\s([+-])\s", f" {words.strip()} ")
    signs, texts = ["+", *pieces[1::2]], [pieces[0], *pieces[2::2]]
    found = []
    for sign, text in zip(signs, texts, strict=True):
        factor, names = -1.0 if sign == "-" else 1.0, []
        for piece in (p.strip() for p in text.split("*")):
            if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", piece):
                factor *= float(piece)
            elif piece or len(signs) + text.count("*") == 1:
                names.append(piece)
            else:
                raise ConfigError(f"judge {words!r}: a part of the sum is empty; write it as 0.5*sentiment + length")
        if not names:
            raise ConfigError(f"judge {words!r}: {text.strip()!r} is a number without a judge; write 0.5*sentiment")
        found.append((factor, names))
    return found


def _one(name: str, words: str, device: str, precision: str, policy: str) -> Judge:
    from accord.judges.frame import Scored

    found, options = _called(name, words)
    if found.kind == MAKER:
        if found.main and options.get(found.main, found.main_default) == "{policy}":
            if not policy:
                raise ConfigError(f"judge {words!r}: it is not known whose answers these are; write {name}:MODEL")
            options[found.main] = policy
        options |= {k: v for k, v in (("device", device), ("precision", precision)) if k in _arguments(found)}
        judge = _function(found)(**options)
        if isinstance(judge, Scored) and not judge.by:
            judge.attribute = name
            judge.by = name + (f"#{judge.key[:12]}" if judge.key else "")
        if not callable(judge) or not getattr(judge, "by", None):
            raise ConfigError(f"judge {words!r}: {found.name} made no judge: an object with `by` that can be called")
        return judge
    if found.kind == TEXT:
        score = _text(found, options, words)
        each = lambda records, say: [[score(a.plain_text) for a in r.responses] for r in records]  # noqa: E731
    else:
        function = partial(_function(found), **options)
        each = lambda records, say: [function(r) for r in records]  # noqa: E731
    return Scored(each, name, scale=found.scale, alone=True, attribute=name)


def _text(found: Row, options: dict[str, Any], words: str) -> Callable[[str], float]:
    score = partial(_function(found), **options)
    if found.module.startswith("accord."):
        try:
            score("")  # impossible values are said now, and not in the middle of a run
        except ConfigError as error:
            raise ConfigError(f"judge {words!r}: {error}") from None
    return score


def _called(name: str, words: str, complete: bool = True) -> tuple[Row, dict[str, Any]]:
    """The row of one name, and what is given to it."""
    own = re.match(r"\s*([^,=]+\.py:\w+)(?:,|\s*$)", name)
    if own:
        found, rest = _own(own[1]), name[own.end(1) + 1 :]
    else:
        called, _, rest = (part.strip() for part in name.partition(":"))
        if called not in rows():
            raise ConfigError(f"judge {words!r}: there is no judge {called!r}; {nearest(called, rows())}")
        found = rows()[called]
    given: dict[str, Any] = {}
    for place, item in enumerate(filter(None, (part.strip() for part in rest.split(",")))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if found.main and place == 0 and key not in found.options and not (equals and key == found.main):
            key, equals, value = found.main, "=", item
        if key not in found.options and key != found.main:
            known = nearest(key, found.options) if found.options else "it has none"
            raise ConfigError(f"judge {words!r}: {found.name} has no option {key!r}; {known}")
        if key in given:
            raise ConfigError(f"judge {words!r}: {key!r} is given twice")
        annotation = "str" if key == found.main else found.options[key].annotation
        given[key] = _value(value if equals else "true", annotation, f"judge {words!r}: {key}")
    main = [found.main] if found.main and found.main_default is REQUIRED else []
    needed = main + [k for k, o in found.options.items() if o.default is REQUIRED]
    if complete and (missing := [key for key in needed if key not in given]):
        raise ConfigError(f"judge {words!r}: {missing[0]} is missing; write {found.form}")
    return found, given


def _value(text: str, annotation: str, what: str) -> Any:
    """What is written, as the annotation has it."""
    kinds = [kind.strip() for kind in annotation.split("|")] if "[" not in annotation else [annotation]
    if text.lower() == "none" and "None" in kinds:
        return None
    if annotation.startswith("Literal["):
        known = ast.literal_eval(annotation.removeprefix("Literal"))
        if text not in known:
            raise ConfigError(f"{what}={text!r} is not known; {nearest(text, known)}")
        return text
    if "bool" in kinds:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{what} is true or false, not {text!r}")
        return text.lower() == "true"
    for kind, form, says in (("int", int, "a whole number"), ("float", float, "a number")):
        if kind in kinds:
            try:
                return form(text)
            except ValueError:
                raise ConfigError(f"{what} is {says}, not {text!r}") from None
    if not text:
        raise ConfigError(f"{what} needs a value")
    return text


# -- functions --------------------------------------------------------------------------------------------------------


@functools.cache
def _own(name: str) -> Row:
    """A function in a file of the user's as a row."""
    node, _, module = functions.own(name, "judge")
    try:
        return _read(node, module, functions.marked(node) or {})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: defaults of options and what @row says must be literals ({error})") from None


def _function(found: Row) -> Callable[..., Any]:
    return getattr(functions.module(found.module), found.name)


def _arguments(found: Row) -> tuple[str, ...]:
    code = _function(found).__code__
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
