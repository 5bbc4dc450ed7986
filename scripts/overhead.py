"""What do the default monitors cost? Their share of a run's processor time, which other programs do not change.

    python scripts/overhead.py MODEL DATA [SETTING=VALUE ...]

Probes: what they take, spread over the updates between two of them. What every update measures, and what the monitors
make of it: the functions that do it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import accord
from accord import config
from accord.monitors.table import TABLE, Panel
from accord.sinks import JsonLines
from accord.training import probes, sets, terms
from accord.training import step as steps

EVERY = 50


def main() -> None:
    model, data, *more = sys.argv[1:]
    spent = {"factors": 0.0, "measure": 0.0, "probe": 0.0}

    def timed(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **options)
            finally:
                spent[name] += time.process_time() - began

        return call

    steps.factors, sets.measure = timed("factors", terms.factors), timed("measure", terms.measure)  # type: ignore[attr-defined]
    probes.Probes.before = timed("probe", probes.Probes.before)  # type: ignore[method-assign]
    probes.Probes.after = timed("probe", probes.Probes.after)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        given = {"max_steps": 6, "probe_every": 2, "eval_fraction": 0, "quiet": True} | config.parse(more)
        run = accord.train(model, data, "dpo", output=str(Path(place) / "run"), **given).folder
        timing, rows = JsonLines(run / "timing.jsonl").read(), JsonLines(run / "metrics.jsonl").read()
    update = median(t["processor"] for t in timing[1:])
    probe = spent.pop("probe") / sum("probe_seconds" in t for t in timing)
    panel, began = Panel(TABLE), time.process_time()
    for number in range(100):
        panel.see(number, rows[0])
    seen = (time.process_time() - began) / 100
    measured = sum(spent.values()) / len(timing)
    share = (probe / EVERY + seen + measured) / update
    print(json.dumps({"update": update, "probe": probe, "monitors": seen, "measured": measured, "share": share}))


if __name__ == "__main__":
    main()
