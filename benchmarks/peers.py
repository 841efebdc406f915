"""Shoal beside what others make of the same work: microseconds per lane-step of the MLP 64-h-h-10 (steady_state.py), taking turns.

`jax`: jax_lanes.py, by hand for exactly this model and optimizer, every lane alike. It runs in an environment of its own, which
`make bench-peers` makes; evaluation, orders of samples and bookkeeping, which Shoal's figure includes, are not in it.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from cores import cores_at_work
from steady_state import make_define, shoal_us

HERE = Path(__file__).resolve().parent


def jax_us(python: str, h: int, lanes: int) -> tuple[float, float]:
    """Microseconds per lane-step, and seconds of compiling."""
    command = [python, str(HERE / "jax_lanes.py"), str(h), str(lanes)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout
    us, compile_s = map(float, out.split())
    return us, compile_s


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=str(HERE.parent / ".venv-peers/bin/python"), help="that has jax and optax")
    parser.add_argument("--h", type=int, nargs="+", default=[32, 64, 256], help="hidden sizes")
    parser.add_argument("--lanes", type=int, nargs="+", default=[8, 32, 128], help="lanes of the hand-written program")
    parser.add_argument("--trials", type=int, default=32, help="trials of Shoal's study")
    parser.add_argument("--seconds", type=float, nargs=2, default=[4, 8], help="for about how long Shoal's runs train")
    args = parser.parse_args()
    few, many = args.seconds
    print(f"2 busy processes do {cores_at_work(2):.1f} times the work of one\n", flush=True)
    print("| us per lane-step | jax, best width | compile s | Shoal | Shoal / jax |\n|" + " --- |" * 5, flush=True)
    for h in args.h:
        theirs = [jax_us(args.python, h, lanes) for lanes in args.lanes]
        ours = shoal_us(make_define(h), args.trials, (few, many))
        theirs += [jax_us(args.python, h, lanes) for lanes in args.lanes]
        us, compile_s = min(theirs)
        print(f"| h={h} | {us:.1f} | {compile_s:.1f} | {ours:.1f} | {ours / us:.2f} |", flush=True)


if __name__ == "__main__":
    main()
