"""How is a curve drawn? Numbers to lines of an SVG: which belong together, which points are kept, where ticks stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from accord.report.read import Curves, RunFolder
from accord.stats import Confidence

KEPT = 1000  # points of a line that are drawn; the extremes are among them
WIDE = 22  # numbers of marks that stand beside one another from left to right
SMOOTHED = 60  # points from which on a line has its mean beside it
TALL = 1000  # units of the drawing from bottom to top
ROLES = ("chosen", "rejected", "unseen")
STYLES = (*ROLES, "started")
SUMMED = ("data/pairs", "data/longer", "data/shorter", "data/duplicates", "data/contradictions")  # once, in step 1
# metrics that make one drawing: title, note, names
DRAWN: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Log-probs",
        "Nats of a whole response under the policy. They move with what is in a batch; rewards do not.",
        tuple(f"logps/{role}" for role in ROLES),
    ),
    (
        "Rewards",
        "Beta times the change of the log-prob since the reference: above 0 a response has become likelier.",
        tuple(f"rewards/{role}" for role in ROLES),
    ),
    ("Margin", "Reward of chosen minus reward of rejected: what the objective widens.", ("rewards/margins",)),
    (
        "Accuracy",
        "Share of pairs in which chosen has the larger reward; by ranking, the larger log-prob.",
        ("rewards/accuracies", "accuracies/ranking"),
    ),
    ("Loss", "What is minimised.", ("loss",)),
    ("Loss per token", "Nats a token of demonstrations.", ("nll_per_token",)),
    ("Gradient norm", "Before clipping. Spikes mean single batches with a hard pull.", ("grad_norm",)),
    ("Learning rate", "After warm-up and schedule.", ("learning_rate",)),
)
# where probability goes; names of `derived` among them
THREE_D: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "A token since the reference",
        "Mean change of the log-prob, nats a token. Below 0: less likely than under the reference.",
        tuple(f"logratios/{role}" for role in ROLES),
    ),
    (
        "A response since the reference",
        "The same of whole responses, nats. Drop: rejected falls far, and further than chosen.",
        tuple(f"three_d/response/{role}" for role in ROLES),
    ),
    (
        "The probe since its first look",
        "Nats a token, always the same prompts. Unseen: other prompts' responses; started: what the model answered as "
        "the run began.",
        tuple(f"three_d/probe/{role}" for role in (*ROLES, "started")),
    ),
    (
        "Pairs that lost their mass",
        "Share of pairs in which both responses together lost half of their probability, and 0.3 nats a token: it "
        "went elsewhere. Dispersion: more than half of them.",
        ("dispersed",),
    ),
    ("Mass of the pair", "Nats that both responses together have won or lost.", ("logratios/pair",)),
    (
        "Pull of the loss",
        "Slope of the loss along the log-prob of chosen (c+) and of rejected (c−); 0: settled.",
        ("factors/chosen", "factors/rejected"),
    ),
    (
        "Pull along probabilities",
        "Powers of ten of |c| / probability, of mean log-probs. Their distance is how many times harder rejected is "
        "pushed than chosen is pulled.",
        ("three_d/push/chosen", "three_d/push/rejected"),
    ),
    (
        "Pairs that count",
        "Share of the batch that does the pulling: (mean |c|)² / mean c². Times the batch size it is the effective "
        "batch.",
        ("three_d/count",),
    ),
)
# what is drawn on demand, with a title; all else has its name for one
PROBED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "Entanglement",
        "Of a plain step on the probe's own pairs: above 0 chosen rises, or rejected rises.",
        ("probe/entanglement/chosen_rises", "probe/entanglement/rejected_rises"),
    ),
    (
        "Entropy of the likeliest",
        "Bits over the ten likeliest tokens. That it turns from rising to falling is a sign of over-optimisation.",
        ("probe/topk_entropy",),
    ),
    ("Mass of the likeliest", "Probability that the ten likeliest tokens hold.", ("probe/topk_mass",)),
    ("Length of fresh answers", "Tokens.", ("probe/samples/length",)),
    ("Variety of fresh answers", "Distinct n-grams, over how many chance would give.", ("probe/samples/distinct",)),
    ("KL of fresh answers", "Nats an answer, from the reference: mean log-ratio (k1).", ("probe/samples/kl",)),
    (
        "KL of the first answers",
        "Nats a token that the policy has left the answers it began with: KL(start | policy).",
        ("probe/started/kl_per_token",),
    ),
    (
        "Surprise",
        "Nats a token by which responses are less likely than what the model says itself. 0: on policy.",
        ("probe/surprise/chosen", "probe/surprise/rejected"),
    ),
    ("Update", "How far a step moves the last layers, as a share of their norm.", ("probe/update",)),
)


@dataclass(frozen=True)
class Line:
    """Values over steps. style: its class in the page. points: dots. pale: drawn behind its own running mean."""

    name: str
    style: str
    x: np.ndarray
    y: np.ndarray
    points: bool = False
    pale: bool = False
    mean: bool = False
    path: str = ""

    def told(self) -> str:
        seen = np.isfinite(self.y)
        x, y = self.x[seen], self.y[seen]
        low, high = int(y.argmin()), int(y.argmax())
        return (
            f"{self.name} {short(y[0])} at step {x[0]}, {short(y[-1])} at step {x[-1]}; "
            f"lowest {short(y[low])} at step {x[low]}, highest {short(y[high])} at step {x[high]}"
        )


@dataclass(frozen=True)
class Chart:
    """One drawing. x0, x1, y0, y1: what it spans; marks: steps of verdicts, with their numbers and
    the row in which a number stands, so that they do not cover one another."""

    title: str
    note: str
    lines: list[Line]
    x0: float
    x1: float
    y0: float
    y1: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, int, int]] = field(default_factory=list)
    left_out: int = 0  # values that are not finite

    @property
    def legend(self) -> list[Line]:
        return [line for line in self.lines if not line.mean]

    @property
    def told(self) -> str:
        """The drawing in words."""
        return ". ".join(line.told() for line in self.legend) + "."

    def place(self, y: float) -> float:
        return round((self.y1 - y) / (self.y1 - self.y0) * TALL, 2)

    def rows(self, most: int = 12) -> list[tuple[int, list[str]]]:
        """Values at some of the steps, as a table."""
        steps = np.unique(np.concatenate([line.x for line in self.legend]))
        some = steps[np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))]
        found = [dict(zip(line.x.tolist(), line.y.tolist(), strict=True)) for line in self.legend]
        return [(int(s), [short(values.get(int(s))) for values in found]) for s in some]


def chart(title: str, note: str, lines: Iterable[Line], marks: Sequence[tuple[float, int]] = ()) -> Chart | None:
    """A drawing of lines; None if there is nothing to draw."""
    kept = [line for line in lines if np.isfinite(line.y).any()]
    if not kept or sum(len(line.x) for line in kept) < 2:
        return None
    x = np.concatenate([line.x for line in kept])
    every = np.concatenate([line.y for line in kept])
    y = every[np.isfinite(every)]
    x0, x1 = float(x.min()), float(max(x.max(), x.min() + 1))
    y0, y1 = float(y.min()), float(y.max())
    spread = (y1 - y0) or abs(y0) or 1.0
    y0, y1 = y0 - 0.05 * spread, y1 + 0.05 * spread
    empty = Chart(title, note, [], x0, x1, y0, y1, [], [])
    drawn = []
    for line in kept:
        if not line.points and len(line.x) > SMOOTHED:
            drawn.append(replace(line, path=path(empty, line), pale=True))
            name = f"{line.name} (mean of {window(len(line.y))})"
            mean = replace(line, name=name, y=smooth(line.y), mean=True)
            drawn.append(replace(mean, path=path(empty, mean)))
        else:
            drawn.append(replace(line, path=path(empty, line)))
    return replace(
        empty,
        lines=drawn,
        x_ticks=ticks(x0, x1, 5, whole=True),
        y_ticks=ticks(y0, y1, 4),
        marks=staggered([m for m in marks if x0 <= m[0] <= x1], (x1 - x0) / WIDE),
        left_out=len(every) - len(y),
    )


def staggered(marks: Sequence[tuple[float, int]], near: float) -> list[tuple[float, int, int]]:
    """Marks with the first row in which the one before stands at least `near` steps to the left.

    >>> staggered([(1, 1), (2, 2), (40, 3)], 5.0)
    [(1, 1, 0), (2, 2, 1), (40, 3, 0)]
    """
    last: list[float] = []
    found = []
    for step, number in sorted(marks):
        row = next((r for r, at in enumerate(last) if step - at >= near), len(last))
        last[row : row + 1] = [step]
        found.append((step, number, row))
    return found


def path(frame: Chart, line: Line) -> str:
    """The line as an SVG path: x in steps from the first, y in `TALL`ths downwards; gaps where nothing is finite."""
    text, gap = [], True
    for i in kept_points(line.y, KEPT):
        if not math.isfinite(line.y[i]):
            gap = True
            continue
        place = f"{int(line.x[i] - frame.x0)} {frame.place(line.y[i]):g}"
        text.append(f"M{place}h0" if line.points or (gap and len(line.x) == 1) else f"{'M' if gap else 'L'}{place}")
        gap = False
    return "".join(text)


def kept_points(y: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most about `most` values that draw the same line: of each stretch the first, lowest, highest, last.

    >>> kept_points(np.array([0.0, 1.0, 9.0, 1.0, 0.0, 0.0, -5.0, 0.0]), 6).tolist()
    [0, 2, 3, 4, 6, 7]
    """
    if len(y) <= most:
        return np.arange(len(y))
    found: set[int] = set()
    for part in np.array_split(np.arange(len(y)), max(1, -(-most // 4))):
        seen = part[np.isfinite(y[part])]
        found |= {int(part[0]), int(part[-1])}
        if len(seen):
            found |= {int(seen[y[seen].argmin()]), int(seen[y[seen].argmax()])}
    return np.array(sorted(found))


def window(n: int) -> int:
    """How many steps a mean is over, so that a line of n has about forty of them."""
    return max(5, n // 40) | 1


def smooth(y: np.ndarray) -> np.ndarray:
    """Running mean over `window` values around each, or as many as there are; what is not finite is left out."""
    half = window(len(y)) // 2
    seen = np.isfinite(y)
    total = np.concatenate([[0.0], np.cumsum(np.where(seen, y, 0.0))])
    count = np.concatenate([[0], np.cumsum(seen)])
    low, high = np.maximum(np.arange(len(y)) - half, 0), np.minimum(np.arange(len(y)) + half + 1, len(y))
    n = count[high] - count[low]
    return np.where(n > 0, (total[high] - total[low]) / np.maximum(n, 1), np.nan)


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[tuple[float, str]]:
    """Round numbers within [low, high], with their text.

    >>> ticks(0.0, 0.93, 4)
    [(0.0, '0.0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8')]
    """
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    size = next(size * k for k in (1, 2, 5, 10) if (high - low) / (size * k) <= most + 1)
    size = max(size, 1.0) if whole else size
    digits = max(0, -math.floor(math.log10(size) + 1e-9))
    places = np.arange(math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9) + 1) * size
    plain = digits <= 4 and max(abs(low), abs(high)) < 1e6
    return [
        (float(round(t, 12)), (f"{t:,.{digits}f}" if plain else f"{t:.3g}").replace("-", "−")) for t in places + 0.0
    ]


def short(value: float | None) -> str:
    """A number as people write it: three digits that matter, a true minus, thousands parted.

    >>> short(-0.01234), short(12345.6), short(1.5e-6), short(None)
    ('−0.0123', '12,346', '1.5e−06', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e7):
        text = f"{value:.3g}"
    else:
        text = f"{value:,.{0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3}f}"
        text = f"{value:.4f}".rstrip("0") if 0 < size < 0.1 else text
    return text.replace("-", "−")


# -- of runs ----------------------------------------------------------------------------------------------------------


def terms_of(run: RunFolder) -> list[str]:
    """Names that metrics begin with: none in a run of one term."""
    names = list(run.data.get("examples", {}))
    return names if len(names) > 1 else []


def curves(run: RunFolder) -> tuple[list[tuple[str, list[Chart]]], list[Chart]]:
    """The drawings of a run: those that everybody asks for, by term, and all others."""
    train, held = run.metrics, run.held_metrics
    marks = marks_of(run)

    def lines(keys: Iterable[tuple[str, str]]) -> list[Line]:
        return lines_of(train, held, keys)

    used = set(SUMMED)
    for prefix in prefixes(run):
        used |= {
            prefix + key for _, _, keys in THREE_D for key in keys if prefix + key in train or prefix + key in held
        }
    parts = []
    for prefix in prefixes(run):
        drawn = []
        for title, note, metrics in DRAWN:
            keys = [m for m in metrics if prefix + m in train or prefix + m in held]
            names = {m: m.rpartition("/")[2] for m in keys}
            names |= {"rewards/accuracies": "by reward", "accuracies/ranking": "by log-prob", "loss": "training"}
            names |= dict.fromkeys(("rewards/margins", "nll_per_token", "grad_norm", "learning_rate"), "training")
            note = note if run.reference or title != "Rewards" else "What the head scores."
            if title == "Accuracy":
                drawn_lines = [
                    replace(line, style="one" if "reward" in line.name else "two")
                    for line in lines((names[m], prefix + m) for m in keys)
                ]
            else:
                drawn_lines = lines((names[m], prefix + m) for m in keys)
            if (found := chart(title, note, drawn_lines, marks)) is not None:
                drawn.append(found)
                used |= {prefix + m for m in keys}
        if drawn:
            parts.append((prefix.rstrip("/"), drawn))
    rest = []
    for prefix in prefixes(run):
        for title, note, metrics in PROBED:
            keys = [m for m in metrics if prefix + m in train]
            shown = [k.rpartition("/")[2].removesuffix("_rises") if len(metrics) > 1 else "training" for k in keys]
            found = chart(
                f"{prefix[:-1]}: {title}" if prefix else title,
                note,
                lines(zip(shown, (prefix + k for k in keys), strict=True)),
                marks,
            )
            if found is not None:
                rest.append(found)
                used |= {prefix + k for k in keys}
    for key in [k for k in {**train, **held} if k not in used]:
        if (found := chart(key, "", lines([("training", key)]), marks)) is not None:
            rest.append(found)
    return parts, rest


def marks_of(run: RunFolder) -> list[tuple[float, int]]:
    return [(v["step"], i) for i, v in enumerate(run.verdicts, 1)]


def prefixes(run: RunFolder) -> list[str]:
    return ["", *(f"{t}/" for t in terms_of(run))]


def lines_of(train: Curves, held: Curves, keys: Iterable[tuple[str, str]]) -> list[Line]:
    """A line of training values and dots of held-out ones for each (name, metric)."""
    found = []
    for name, key in keys:
        style = name if name in STYLES else "one"
        for there, points in ((train, False), (held, True)):
            if key in there:
                text = ("held out" if name == "training" else f"{name}, held out") if points else name
                found.append(Line(text, "two" if style == "one" and points else style, *there[key], points=points))
    return found


def three_d(run: RunFolder) -> list[tuple[str, list[Chart]]]:
    """The drawings of where probability goes, by term; none where nothing is compared with a reference."""
    parts = []
    for prefix in prefixes(run):
        train, held = (derived(found, prefix) for found in (run.metrics, run.held_metrics))
        if f"{prefix}logratios/chosen" not in train:
            continue
        drawn = []
        for title, note, metrics in THREE_D:
            names = {m: m.rpartition("/")[2] if len(metrics) > 1 else "training" for m in metrics}
            found = chart(
                title, note, lines_of(train, held, ((n, prefix + m) for m, n in names.items())), marks_of(run)
            )
            if found is not None and len({x for line in found.lines for x in line.x}) > 1:  # one look shows no change
                drawn.append(found)
        parts.append((prefix.rstrip("/"), drawn))
    return parts


def derived(found: Curves, prefix: str) -> Curves:
    """The metrics of a term, and what `THREE_D` draws that follows from them."""
    new: Curves = {}

    def put(name: str, of: Sequence[str], how: Callable[..., np.ndarray]) -> None:
        each = [found.get(prefix + key) for key in of]
        if all(e is not None for e in each):
            first = each[0]
            assert first is not None
            if all(e is not None and len(e[0]) == len(first[0]) for e in each):
                with np.errstate(all="ignore"):
                    new[f"{prefix}three_d/{name}"] = first[0], how(*(e[1] for e in each if e is not None))

    for role in ROLES[:2]:
        put(f"response/{role}", (f"logratios/{role}", f"lengths/{role}"), np.multiply)
        put(
            f"push/{role}", (f"factors/{role}", f"logps/{role}"),
            lambda c, logp: (np.log(np.abs(c)) - logp) / math.log(10),
        )  # fmt: skip
    for role in (*ROLES, "started"):
        put(f"probe/{role}", (f"probe/logps/{role}",), lambda y: y - y[0])
    put(
        "count", ("factors/chosen", "factors/rejected", "factors/squares"),
        lambda c, r, squares: ((np.abs(c) + np.abs(r)) / 2) ** 2 / squares,
    )  # fmt: skip
    return found | new


def speed(run: RunFolder) -> Chart | None:
    """Tokens a second of each step."""
    seen = [r for r in run.times if r.get("seconds")]
    x, y = np.array([r["step"] for r in seen]), np.array([r["tokens"] / r["seconds"] for r in seen], float)
    return chart(
        "Tokens a second",
        "Prompts and responses; slow steps are often other programs.",
        [Line("training", "one", x, y)],
    )


def overlaid(runs: Mapping[str, RunFolder]) -> list[Chart]:
    """Each metric once, with a line for each run; held-out values where there are any, else those of training."""
    train = {name: run.metrics for name, run in runs.items()}
    held = {name: run.held_metrics for name, run in runs.items()}
    known = {metric: (i, title, note) for i, (title, note, metrics) in enumerate(DRAWN) for metric in metrics}
    keys = dict.fromkeys(k for found in (*held.values(), *train.values()) for k in found)
    charts: list[tuple[int, Chart]] = []
    for key in keys:
        metric = next((m for m in known if key == m or key.endswith("/" + m)), "")
        if not metric:
            continue
        number, title, note = known[metric]
        on_held = all(key in found for found in held.values() if found) and any(key in found for found in held.values())
        there = held if on_held else train
        lines = [Line(name, f"run-{i % 8}", *there[name][key]) for i, name in enumerate(runs) if key in there[name]]
        leaf = metric.rpartition("/")[2]
        whole = f"{title}: {leaf}" if leaf in ROLES or title == "Accuracy" else title
        before = key.removesuffix(metric).rstrip("/")
        if before.rpartition("/")[2] == "probe":  # of the probe every number is a token's
            note = "Nats a token under the policy, always of the same prompts."
        whole = f"{before}: {whole}" if before else whole
        if (found := chart(whole + (", held out" if on_held else ""), note, lines)) is not None:
            charts.append((number, found))
    return [c for _, c in sorted(charts, key=lambda pair: pair[0])]


# -- of distributions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bars:
    """Counts side by side. bars: left, width, and of each series the height, in hundredths of the drawing."""

    title: str
    note: str
    series: list[str]
    edges: np.ndarray
    counts: list[np.ndarray]
    x_ticks: list[tuple[float, str]]

    @property
    def most(self) -> int:
        return max(int(c.max()) for c in self.counts)

    def x(self, value: float) -> float:
        return round((value - self.edges[0]) / (self.edges[-1] - self.edges[0]) * 100, 3)

    def rows(self) -> list[tuple[str, list[int]]]:
        spans = zip(self.edges, self.edges[1:], strict=False)
        return [
            (f"{short(a)} to {short(b)}", [int(c[i]) for c in self.counts])
            for i, (a, b) in enumerate(spans)
            if any(c[i] for c in self.counts)
        ]


def bars(title: str, note: str, values: Mapping[str, np.ndarray], most: int = 24) -> Bars | None:
    """Histograms on common edges, of which one lies at 0; None where there is nothing, or one value alone."""
    seen = {name: v[np.isfinite(v)] for name, v in values.items()}
    seen = {name: v for name, v in seen.items() if len(v)}
    if not seen:
        return None
    every = np.concatenate(list(seen.values()))
    low, high = float(every.min()), float(every.max())
    if high <= low:
        return None
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    size = next(size * k for k in (1, 2, 5, 10) if size * k >= rough)
    edges = np.arange(math.floor(low / size), math.ceil(high / size) + 1) * size
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + size])
    edges[-1] = max(edges[-1], high)
    return Bars(
        title, note, list(seen), edges, [np.histogram(v, edges)[0] for v in seen.values()],
        ticks(float(edges[0]), float(edges[-1]), 5),
    )  # fmt: skip


def calibrated(found: Confidence) -> list[tuple[float, float, int]]:
    """Points of a reliability drawing: confidence, share that was right, how many."""
    return [(float(c), float(r), int(n)) for c, r, n in zip(found.confidence, found.right, found.count, strict=True)]
