"""How do the numbers look? The race as bars; the cost of more as three panels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accord.bench.baselines import BASELINES
from accord.errors import ConfigError
from accord.lab.frame import COLOURS, panels, save, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = {2: "o", 4: "s", 8: "^"}
NEAR = 0.05  # how far a time may be from the law


def write(draw: Callable[[Any], Figure], found: Any, stem: Path, say: Callable[[str], None]) -> None:
    """The figure as STEM.svg and STEM.png; without matplotlib a sentence."""
    try:
        with styled():
            figure = draw(found)
    except ConfigError as error:
        say(f"no figure: {error}")
        return
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".svg", ".png"):
        save(figure, stem.with_suffix(ending))
    say(f"figure: {stem.with_suffix('.svg')}")


def race(found: list[dict[str, Any]]) -> Figure:
    """The ratio of each cell, and a line from the lowest to the highest of its pairs."""
    done = [f for f in found if "skipped" not in f]
    figure, axes = panels(1, width=7.5, height=0.9 + 0.27 * len(done))
    plot, places = axes[0, 0], np.arange(len(done))[::-1]
    many = len({f["cell"]["model"] for f in done}) > 1
    names = []
    for f in done:
        cell = f["cell"]
        words = [Path(cell["model"]).name] if many else []
        words += [cell["objective"] + (" lora" if cell["lora"] else ""), cell["mix"], f"K={cell['k']}"]
        names.append(
            f"{' '.join(words)}: {BASELINES[cell['against']].says if cell['against'] in BASELINES else 'control'}"
        )
    ratios = [f["ratio"] for f in done]
    colours = [COLOURS[7 if f["cell"]["against"] == "itself" else 0] for f in done]
    plot.barh(places, ratios, color=colours, height=0.62)
    plot.hlines(places, [min(f["ratios"]) for f in done], [max(f["ratios"]) for f in done], color="black", linewidth=1)
    for place, f in zip(places, done, strict=True):
        plot.annotate(f"{f['ratio']:.2f}", (max(f["ratios"]), place), (4, 0), textcoords="offset points", va="center")
    plot.axvline(1, color="black", linestyle="--", linewidth=0.8)
    plot.set_yticks(places, names)
    plot.grid(axis="y", visible=False)
    plot.set_xlim(0, 1.12 * max(max(f["ratios"]) for f in done))
    plot.set_xlabel(f"times as many {done[0]['clock']} seconds as Accord")
    return figure


def scaling(found: dict[str, Any]) -> Figure:
    """Measured beside fitted time; time by unique tokens; peak memory by data and batch."""
    from matplotlib.ticker import LogLocator, NullLocator

    updates, clock = found["updates"], found["clock"]
    seconds = np.array([f["seconds"] for f in updates])
    fitted = seconds * (1 + np.array(found["errors"]))
    figure, axes = panels(3, width=3.9, height=3.4)
    law, tokens, memory = axes[0]
    ends = np.array([seconds.min() / 1.3, seconds.max() * 1.3])
    law.fill_between(ends, ends * (1 - NEAR), ends * (1 + NEAR), color=COLOURS[7], alpha=0.3, linewidth=0,
                     label=f"within {NEAR:.0%}")  # fmt: skip
    law.plot(ends, ends, color=COLOURS[7], linewidth=0.8)
    mixes = list(dict.fromkeys(f["mix"] for f in updates))
    for i, f in enumerate(updates):
        look: dict[str, Any] = {"color": COLOURS[mixes.index(f["mix"])], "marker": MARKS[f["k"]], "markersize": 5}
        law.plot(fitted[i], seconds[i], linestyle="none", **look)
        tokens.plot(f["sizes"][0], seconds[i], linestyle="none", **look)
    for i, mix in enumerate(mixes):
        tokens.plot([], [], color=COLOURS[i], linewidth=4, label=mix)
    for k, mark in MARKS.items():
        tokens.plot([], [], color=COLOURS[6], linestyle="none", marker=mark, label=f"{k} answers a prompt")
    law.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"{clock} seconds by the law",
            ylabel=f"{clock} seconds of an update", title="measured and fitted")  # fmt: skip
    tokens.set(xlabel="unique tokens of an update", ylabel=f"{clock} seconds of an update", title="time by tokens",
               xlim=(0, None), ylim=(0, None))  # fmt: skip
    for axis in (law.xaxis, law.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    law.legend(loc="lower right")
    tokens.legend(loc="upper left", fontsize=8)
    names = [name.replace(" an update, ", "\nan update,\n") for name in found["memory"]]
    memory.bar(names, [peak / 2**20 for peak in found["memory"].values()], color=COLOURS[0], width=0.55)
    memory.set(ylabel="MiB at the peak", title="memory by data and batch")
    memory.tick_params("x", labelsize=8)
    memory.grid(axis="x", visible=False)
    return figure
