"""What it costs to store every epoch of 1,000 concurrent lanes: the same study in memory and in a file, turn by turn.

    python benchmarks/storage_load.py                                  # an SQLite file
    python benchmarks/storage_load.py --storage postgresql://ann@localhost/tuning

Every lane reports five metrics per epoch, and each batch of rows is on the disk before the next one is begun. A round is
one epoch of all lanes, the first three left out. Of each round two things are taken: how long it was, and the computing time of
the process that stores, training and all its threads included, which other work on the machine hardly moves. Their medians are
of rows alone; the mean computing time has the snapshots in it as well. With several processes the others wait for this one while
it stores, so that its computing time is what a round takes longer.

Two studies choose by measured time what their lanes run on, so that their rounds may differ by more than storing costs. Therefore
what storing itself computes is added up as well: in the thread that trains, which hands rows over, and in the one that commits.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import torch
from torch import nn, optim

import shoal
from shoal.records import Progress
from shoal.snapshots import Snapshots
from shoal.storage import StudyStore, load_study
from shoal.storage._writer import BatchWriter


def define(trial: optuna.Trial) -> shoal.Recipe:
    """A perceptron on data of the size of scikit-learn's digits, of one of 16 signatures: a fleet has 128 lanes at most."""
    hidden = trial.suggest_int("hidden", 24, 39)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=32)


@dataclass(frozen=True, slots=True)
class Rounds:
    """What rounds took: medians, and the mean computing time."""

    wall_s: float
    computing_s: float
    mean_computing_s: float
    snapshots_s: tuple[float, ...]  # what each snapshot made the study wait
    whole_s: float
    handing_s: float  # of storing, per round, in the thread that trains
    committing_s: float  # and in the one that commits


@contextlib.contextmanager
def adding_up(spent: dict[str, float]) -> Iterator[None]:
    """Meanwhile the computing time of handing rows over and of the whole thread that commits is added up."""

    def counted(whole: Callable[..., None], what: str) -> Callable[..., None]:
        def called(*args: Any, **keywords: Any) -> None:
            began = time.thread_time()
            try:
                whole(*args, **keywords)
            finally:
                spent[what] = spent.get(what, 0.0) + time.thread_time() - began

        return called

    with contextlib.ExitStack() as stack:
        for name in ("happened", "recorded", "ended"):
            stack.enter_context(mock.patch.object(StudyStore, name, counted(getattr(StudyStore, name), "handing")))
        stack.enter_context(mock.patch.object(BatchWriter, "_run", counted(BatchWriter._run, "committing")))
        yield


def run(storage: str | None, n_lanes: int, n_epochs: int, name: str) -> Rounds:
    """One study."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(1797, 64, generator=drawn)
    seen: list[tuple[float, float]] = []
    taken: list[float] = []
    take = Snapshots.counted

    @contextlib.contextmanager
    def timed(self: Snapshots) -> Iterator[None]:
        began = time.perf_counter()
        with take(self):
            yield
        taken.append(time.perf_counter() - began)

    def note(_: Progress) -> None:
        seen.append((time.perf_counter(), time.process_time()))

    keywords: dict[str, Any] = {"sampler": "random", "scheduler": "none", "progress": note}
    # All at once, where a study of so many would take turns in 128 lanes.
    wide = mock.patch("shoal.tuning.total_lanes", lambda *_, **__: n_lanes)
    spent: dict[str, float] = {}
    with wide, mock.patch.object(Snapshots, "counted", timed), adding_up(spent):
        shoal.tune(
            define,
            train=(x, x[:, :10].argmax(dim=1)),
            n_trials=n_lanes,
            max_epochs=n_epochs,
            storage=storage,
            study_name=name,
            **keywords,
        )
    if storage is not None:  # every row of every lane must be there
        assert sum(len(t.rows) for t in load_study(storage, name).trials) == n_lanes * n_epochs
    pairs = list(itertools.pairwise(seen[3:]))
    wall, computing = [b[0] - a[0] for a, b in pairs], [b[1] - a[1] for a, b in pairs]
    whole_s = seen[-1][0] - seen[0][0]
    storing = [spent.get(what, 0.0) / len(seen) for what in ("handing", "committing")]
    medians = statistics.median(wall), statistics.median(computing), statistics.fmean(computing)
    return Rounds(*medians, tuple(taken), whole_s, *storing)


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--storage", default=None)
    arguments = parser.parse_args()
    ratios: list[tuple[float, float, float]] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for pair in range(arguments.pairs):
            storage = arguments.storage or str(Path(folder) / f"{pair}.db")
            name = f"load {pair} {int(time.time())}"
            found = {}
            for where in (None, storage) if pair % 2 == 0 else (storage, None):
                found[where] = run(where, arguments.lanes, arguments.epochs, name)
            a, b = found[None], found[storage]
            ratios.append((b.wall_s / a.wall_s, b.computing_s / a.computing_s, b.mean_computing_s / a.mean_computing_s))
            print(
                f"in memory {a.wall_s * 1e3:.0f} ms per round, computing {a.computing_s * 1e3:.0f}; "
                f"stored {b.wall_s * 1e3:.0f}, computing {b.computing_s * 1e3:.0f}: "
                f"{ratios[-1][0]:.3f} and {ratios[-1][1]:.3f}, with snapshots {ratios[-1][2]:.3f}",
                flush=True,
            )
            shares.append((b.handing_s + b.committing_s) / a.computing_s)
            print(
                f"storing {b.handing_s * 1e3:.1f} + {b.committing_s * 1e3:.1f} ms per round, {shares[-1]:.3f} of all computing"
            )
            print(f"{len(b.snapshots_s)} snapshots took {sum(b.snapshots_s):.2f} s of {b.whole_s:.1f}", flush=True)
    wall, computing, mean = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median: a round takes {wall:.3f} times as long, computing {computing:.3f}, with snapshots {mean:.3f}")
    print(f"median: storing itself takes {statistics.median(shares):.3f} of a round's computing")


if __name__ == "__main__":
    main()
