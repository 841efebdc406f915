"""What ``import shoal`` costs on top of ``import torch``: the median over fresh processes.

usage: import_time.py [--repeats 5] [--max-s SECONDS]
Exits with 1 when the median is above ``--max-s``.
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
print(time.perf_counter() - start)
"""


def import_time_s() -> float:
    """Seconds that ``import shoal`` takes in a new process in which torch is imported already."""
    child = subprocess.run([sys.executable, "-c", _CHILD], check=True, capture_output=True, text=True)
    return float(child.stdout)


def main() -> int:
    """Print the median and the range; return the exit status."""
    parser = argparse.ArgumentParser(description="Time `import shoal` on top of `import torch`, in fresh processes.")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes to take the median of")
    parser.add_argument("--max-s", type=float, default=float("inf"), help="exit with 1 above this many seconds")
    args = parser.parse_args()
    # One more than asked for, first: it may have to write the bytecode and read the files from disk.
    times_s = [import_time_s() for _ in range(args.repeats + 1)][1:]
    median_s = statistics.median(times_s)
    low_s, high_s = min(times_s), max(times_s)
    print(f"import shoal, on top of torch: median {median_s:.3f} s of {args.repeats} ({low_s:.3f} to {high_s:.3f})")
    return int(median_s > args.max_s)


if __name__ == "__main__":
    sys.exit(main())
