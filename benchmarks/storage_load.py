"""What it costs to store every epoch of 1,000 concurrent lanes: the same study in memory and in a file, turn by turn.

    python benchmarks/storage_load.py                                  # an SQLite file
    python benchmarks/storage_load.py --storage postgresql://ann@localhost/tuning

Every lane reports five metrics per epoch, and each batch of rows is on the disk before the next one is begun. A round is
one epoch of all lanes; its length is the time between the rows of one round and the next, the first three left out. The
computing time is that of all processes of the study. The ratio of each pair is printed, and the median of the pairs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn, optim

import shoal
from shoal.storage import load_study


def define(trial: optuna.Trial) -> shoal.Recipe:
    """A perceptron on data of the size of scikit-learn's digits."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=32)


def computed_s() -> float:
    """Computing time of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def run(storage: str | None, n_lanes: int, n_epochs: int, name: str) -> tuple[float, float]:
    """Seconds per round, and computing seconds of the whole study."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(1797, 64, generator=drawn)
    keywords: dict[str, Any] = {"sampler": "random", "scheduler": "none", "progress": False}
    before = computed_s()
    study = shoal.tune(
        define,
        train=(x, x[:, :10].argmax(dim=1)),
        n_trials=n_lanes,
        max_epochs=n_epochs,
        storage=storage,
        study_name=name,
        **keywords,
    )
    spent_s = computed_s() - before
    times = sorted({row.time_s for trial in study.record.trials for row in trial.rows})
    if storage is not None:  # every row of every lane must be there
        assert sum(len(t.rows) for t in load_study(storage, name).trials) == n_lanes * n_epochs
    rounds = [later - earlier for earlier, later in itertools.pairwise(times[3:])]
    return statistics.median(rounds), spent_s


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--storage", default=None)
    arguments = parser.parse_args()
    ratios, computing = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for pair in range(arguments.pairs):
            storage = arguments.storage or str(Path(folder) / f"{pair}.db")
            name = f"load {pair} {int(time.time())}"
            found = {}
            for where in (None, storage) if pair % 2 == 0 else (storage, None):
                found[where] = run(where, arguments.lanes, arguments.epochs, name)
            (plain_s, plain_cpu_s), (stored_s, stored_cpu_s) = found[None], found[storage]
            ratios.append(stored_s / plain_s)
            computing.append(stored_cpu_s / plain_cpu_s)
            print(
                f"in memory {plain_s * 1e3:6.0f} ms per round, stored {stored_s * 1e3:6.0f}: {ratios[-1]:.3f}; "
                f"computing {plain_cpu_s:.1f} and {stored_cpu_s:.1f} s: {computing[-1]:.3f}",
                flush=True,
            )
    print(
        f"median: a round takes {statistics.median(ratios):.3f} times as long, computing {statistics.median(computing):.3f}"
    )


if __name__ == "__main__":
    main()
