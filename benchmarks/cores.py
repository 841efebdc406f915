"""Which cores a benchmark runs on, and whether they are really there.

On a shared or virtual machine two cores may at times do the work of one. Whatever runs in two threads that wait for
each other then slows down far more than two processes that do not, so no ratio should be believed without this check.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
from multiprocessing.queues import SimpleQueue


def hold_to_cores(n_cores: int) -> str:
    """Keep this process and its children on ``n_cores`` cores; return in words what was done."""
    if not hasattr(os, "sched_setaffinity"):
        return f"{os.cpu_count()} cores (this system cannot hold a process to some of them)"
    cores = sorted(os.sched_getaffinity(0))[:n_cores]
    os.sched_setaffinity(0, cores)
    return f"{len(cores)} cores"


def _count(duration_s: float, counts: SimpleQueue[int]) -> None:
    end = time.monotonic() + duration_s
    n = 0
    while time.monotonic() < end:
        n += 1
    counts.put(n)


def cores_at_work(n_processes: int, duration_s: float = 1.0) -> float:
    """How many times the work of one busy process ``n_processes`` do: near that number if all cores are free."""
    context = mp.get_context("spawn")
    totals = []
    for n in (1, n_processes):
        counts: SimpleQueue[int] = context.SimpleQueue()
        processes = [context.Process(target=_count, args=(duration_s, counts)) for _ in range(n)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        totals.append(sum(counts.get() for _ in processes))
    return totals[1] / totals[0]
