"""The quickstart over several seeds: is the improvement real?

    python scripts/quickstart_seeds.py [SEED ...] [--precision fp32]

Prints before, after and the paired difference with its 95 % interval for every seed; exits with 1 if one includes 0.
"""

from __future__ import annotations

import argparse
import sys

from accord.quickstart import quickstart

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--precision", default="auto")
    asked = parser.parse_args()
    found = {s: quickstart(output=f"runs/quickstart-seed{s}", seed=s, precision=asked.precision) for s in asked.seeds}
    for seed, summary in found.items():
        d, b, a = summary["difference"], summary["before"]["mean"], summary["after"]["mean"]
        took = sum(summary["stages"].values())
        between = f"[{d['low']:+.3f}, {d['high']:+.3f}]"
        print(f"seed {seed}: {b:.3f} -> {a:.3f}, difference {d['mean']:+.3f} {between}, {took:.0f} s")
    sys.exit(any(s["difference"]["low"] <= 0 for s in found.values()))
