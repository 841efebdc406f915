"""What ``import shoal`` costs on top of ``import torch``, and what its first use then loads, in fresh processes.

usage: import_time.py [--repeats 5] [--max-s SECONDS]
Exits with 1 when the median of ``import shoal`` is above ``--max-s``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

_CHILD = """
import time
import torch
start = time.perf_counter()
import shoal
imported = time.perf_counter()
shoal.Recipe, shoal.tune
print(imported - start, time.perf_counter() - imported)
"""


def import_times_s() -> tuple[float, float]:
    """Seconds of ``import shoal`` in a new process that has torch, and of naming ``Recipe`` and ``tune`` after that."""
    child = subprocess.run([sys.executable, "-c", _CHILD], check=True, capture_output=True, text=True)
    imported_s, first_use_s = child.stdout.split()
    return float(imported_s), float(first_use_s)


def main() -> int:
    """Print the median and the range; return the exit status."""
    parser = argparse.ArgumentParser(description="Time `import shoal` on top of `import torch`, in fresh processes.")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes to take the median of")
    parser.add_argument("--max-s", type=float, default=float("inf"), help="exit with 1 above this many seconds")
    args = parser.parse_args()
    # One more than asked for, first: it may have to write the bytecode and read the files from disk.
    times_s = [import_times_s() for _ in range(args.repeats + 1)][1:]
    medians_s = [statistics.median(column) for column in zip(*times_s, strict=True)]
    for what, median_s in zip(
        ("import shoal, on top of torch", "then shoal.Recipe and shoal.tune"), medians_s, strict=True
    ):
        print(f"{what}: {median_s:.3f} s (median of {args.repeats})")
    return int(medians_s[0] > args.max_s)


if __name__ == "__main__":
    sys.exit(main())
