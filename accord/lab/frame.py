"""What do the labs share? Findings and claims, intervals over seeds, files and figures, and the list of labs.

A lab is a module of this folder with `run(*, seeds, progress, **options) -> Findings` and `figures(numbers)`, which
draws from the numbers alone. The docstrings of the module and of `run` are its help, the signature its options.
"""

from __future__ import annotations

import ast
import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.errors import ConfigError, nearest
from accord.sinks import write_json
from accord.stats import Interval, bootstrap, proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS = ("held", "held under conditions", "not seen", "inconclusive", "not testable here")

# Okabe and Ito's colours, told apart by colour-blind eyes; with dashes for those who print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 3)))


@dataclass(frozen=True)
class Claim:
    """What is claimed, one of `VERDICTS`, and the numbers behind it in a sentence."""

    claim: str
    verdict: str
    because: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"{self.verdict!r} is none of {', '.join(VERDICTS)}")

    def __str__(self) -> str:
        return f"{self.verdict}: {self.claim}\n    {self.because}"


@dataclass
class Findings:
    """What a lab found. numbers: plain JSON, its settings among them; draw: numbers to figures by name."""

    lab: str
    numbers: dict[str, Any]
    claims: list[Claim]
    draw: Callable[[dict[str, Any]], dict[str, Figure]]

    def figures(self) -> dict[str, Figure]:
        with styled():
            return self.draw(self.numbers)

    def as_dict(self) -> dict[str, Any]:
        return {"lab": self.lab, "claims": [asdict(c) for c in self.claims], "numbers": self.numbers}

    def write(self, folder: Path) -> list[Path]:
        """NAME.json, and every figure as NAME-FIGURE.png and .svg; the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.lab}.json"]
        write_json(paths[0], self.as_dict())
        for name, figure in self.figures().items():
            for ending in ("png", "svg"):
                paths.append(folder / f"{self.lab}-{name}.{ending}")
                save(figure, paths[-1])
        return paths


# -- numbers over seeds ------------------------------------------------------------------------------------------------


def spread(values: Any) -> dict[str, Any]:
    """Median, least and greatest over the first axis (seeds), as plain numbers or lists.

    >>> spread([[1.0, 5.0], [3.0, 6.0], [2.0, 9.0]])
    {'median': [2.0, 6.0], 'low': [1.0, 5.0], 'high': [3.0, 9.0]}
    """
    x = np.asarray(values, float)
    return {"median": brief(np.median(x, 0)), "low": brief(x.min(0)), "high": brief(x.max(0))}


def brief(values: Any) -> Any:
    """Numbers to six significant digits, as JSON has them.

    >>> brief([1 / 3, 2.0])
    [0.333333, 2.0]
    """
    x = np.asarray(values, float)
    return [brief(v) for v in x] if x.ndim else float(f"{x:.6g}")


def thin(values: Any, places: int = 100) -> dict[str, Any]:
    """`spread` of [T, S] values over seeds at about so many of their T places, with these: `step`, `median`, ..."""
    x = np.asarray(values, float)
    every = max(1, (len(x) - 1) // places)
    return {"step": list(range(0, len(x), every)), **spread(x[::every].T)}


def said(found: dict[str, Any], digits: int = 3) -> str:
    """
    >>> said({"median": 2.0, "low": 1.0, "high": 3.25})
    '2 [1, 3.25]'
    """
    median, low, high = (format(found[k], f".{digits}g") for k in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


def how_often(claim: str, true: Any, what: str = "seeds", also: str = "") -> Claim:
    """A claim that is true or false in each seed: held if its 95 % interval lies above one half, not seen if below.

    >>> print(how_often("A beats B", [True] * 10))
    held: A beats B
        10 of 10 seeds (95 % interval of the share 0.72 to 1.00)
    >>> how_often("A beats B", [True, False, True, True]).because
    '3 of 4 seeds (95 % interval of the share 0.30 to 0.95); at this share 16 would decide'
    """
    x = np.asarray(true, bool)
    k, n = int(x.sum()), len(x)
    interval = proportion(k, n)
    told = f"{k} of {n} {what} (95 % interval of the share {interval.low:.2f} to {interval.high:.2f})"
    verdict = "held" if interval.low > 0.5 else "not seen" if interval.high < 0.5 else "inconclusive"
    if verdict == "inconclusive":
        told += needed(k / n) if n else ""
    return Claim(claim, verdict, told + (f"; {also}" if also else ""))


def over_conditions(claim: str, found: dict[str, Claim]) -> Claim:
    """One claim asked under several conditions: held if under all, not seen if under none, else under conditions.

    >>> a, b = Claim("x", "held", "5 of 5 seeds"), Claim("x", "not seen", "0 of 5 seeds")
    >>> print(over_conditions("x", {"relu": a, "tanh": b}))
    held under conditions: x
        relu: held, 5 of 5 seeds; tanh: not seen, 0 of 5 seeds
    """
    verdicts = {c.verdict for c in found.values()}
    verdict = (
        verdicts.pop() if len(verdicts) == 1 else "held under conditions" if "held" in verdicts else "inconclusive"
    )
    shown = [(name, c.verdict, c.because.split(" (95 %")[0].split(";")[0]) for name, c in found.items()]
    return Claim(claim, verdict, "; ".join(f"{name}: {v}, {why}" for name, v, why in shown))


def needed(share: float) -> str:
    """How many seeds would decide, were the share to stay."""
    for n in range(1, 10_001):
        interval = proportion(share * n, n)
        if interval.low > 0.5 or interval.high < 0.5:
            return f"; at this share {n:,} would decide"
    return "; at this share no number of them would decide"


def difference(claim: str, values: Any, what: str = "seeds", *, unit: str = "", digits: int = 3) -> Claim:
    """A claim that a mean of paired differences is above 0, judged by its bootstrap interval over seeds.

    >>> difference("A scores more than B", [0.2, 0.3, 0.25]).because
    '+0.25 [+0.2, +0.3] over 3 seeds'
    """
    x = np.asarray(values, float)
    found = bootstrap(x)
    verdict = "held" if found.low > 0 else "not seen" if found.high < 0 else "inconclusive"
    told = signed(found, unit, digits) + f" over {len(x)} {what}"
    if verdict == "inconclusive" and len(x) > 1 and found.mean:
        n = math.ceil((1.96 * x.std(ddof=1) / found.mean) ** 2)
        told += f"; at this mean and spread about {max(n, len(x) + 1):,} would decide"
    return Claim(claim, verdict, told)


def signed(found: Interval, unit: str = "", digits: int = 3) -> str:
    """
    >>> signed(Interval(0.25, -0.2, 0.3), "nats")
    '+0.25 [-0.2, +0.3] nats'
    """
    mean, low, high = (f"{v:+.{digits}g}" for v in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]" + (f" {unit}" if unit else "")


# -- figures -----------------------------------------------------------------------------------------------------------


STYLE: dict[str, Any] = {
    "svg.hashsalt": "accord", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False, "lines.linewidth": 1.6,
}  # fmt: skip


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Plain, light, and the same on every machine; the user's own settings are left as they are."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("figures need matplotlib: pip install 'accord-align[lab]'") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def panels(columns: int, rows: int = 1, *, width: float = 4.2, height: float = 3.1) -> tuple[Figure, Any]:
    """A figure and its axes [rows, columns]; the size of each in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def curve(axes: Any, x: Any, found: dict[str, Any], number: int, label: str) -> None:
    """A median line in the colour and dashes of its number, within the band from least to greatest."""
    axes.plot(x, found["median"], color=COLOURS[number], linestyle=DASHES[number], label=label)
    axes.fill_between(x, found["low"], found["high"], color=COLOURS[number], alpha=0.15, linewidth=0)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure; the same figure gives the same bytes."""
    plain = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with styled():
        figure.savefig(path, dpi=110, metadata=plain)


# -- the list ----------------------------------------------------------------------------------------------------------


HERE = Path(__file__).parent
LABS = ("three-d", "tabular", "games", "bandit", "sources", "language", "claims")


def file_of(lab: str) -> Path:
    """The module of a lab.

    Raises:
        ConfigError: there is no lab of that name.
    """
    if lab not in LABS:
        raise ConfigError(f"no lab is called {lab!r}; {nearest(lab, LABS)}")
    return HERE / f"{lab.replace('-', '_')}.py"


def summary(lab: str) -> str:
    """The first line of a lab's docstring (imports nothing)."""
    doc = ast.get_docstring(ast.parse(file_of(lab).read_text(encoding="utf-8"))) or ""
    return doc.splitlines()[0]
