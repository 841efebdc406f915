"""Many small trials in one process: do memory, open files, threads and speed stay where they are? ``make soak``.

    python benchmarks/soak.py [--trials 20000] [--epochs 2]

Prints a line per twentieth of the trials. Ends with exit code 1 if, from the first fifth to the last, memory grows by more
than 4 KiB per trial (what a trial leaves in memory: its parameters, rows and result), a file or a thread stays open, or the
last fifth takes half as much computing time again as the second.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

import shoal
from shoal.records import Progress

X = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :4].argmax(dim=1)


def define(trial: Any) -> shoal.Recipe:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 64)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process takes at some moment."""

    ended: int
    at_s: float
    computed_s: float  # CPU time, which other work on the machine leaves alone
    memory_bytes: int
    files: int
    threads: int


def sample(ended: int) -> Sample:
    """Take one."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    return Sample(
        ended, time.monotonic(), time.process_time(), memory, len(os.listdir("/proc/self/fd")), threading.active_count()
    )


def main() -> int:
    """Run it; see the module's text."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    samples: list[Sample] = []

    def report(p: Progress) -> None:
        ended = p.finished + p.stopped + p.failed
        if ended >= given.trials * (len(samples) + 1) // 20:
            samples.append(sample(ended))
            s = samples[-1]
            before = samples[-2] if len(samples) > 1 else s
            n = s.ended - before.ended
            speed, ms = n / max(1e-9, s.at_s - before.at_s), 1e3 * (s.computed_s - before.computed_s) / max(1, n)
            memory = s.memory_bytes / 2**20
            print(
                f"{s.ended:6d} trials, {memory:6.0f} MiB, {s.files} files, {s.threads} threads, {speed:.0f}/s, "
                f"{ms:.2f} ms of computing a trial",
                flush=True,
            )

    with tempfile.TemporaryDirectory() as folder:
        shoal.tune(
            define,
            train=(X, Y),
            n_trials=given.trials,
            max_epochs=given.epochs,
            sampler="random",
            scheduler="none",
            storage=Path(folder) / "soak.db",
            progress=report,
            reproducible=True,
        )
    n = len(samples)
    first, last = samples[n // 5], samples[-1]
    grown = (last.memory_bytes - first.memory_bytes) / max(1, last.ended - first.ended)
    took = [samples[k].computed_s - samples[k - n // 5].computed_s for k in (2 * (n // 5), n - 1)]
    print(f"{grown:.0f} bytes a trial; the last fifth took {took[1] / took[0]:.2f} times the computing of the second")
    bad = grown > 4096 or last.files > first.files or last.threads > first.threads or took[1] > 1.5 * took[0]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
