"""The job of ``optuna_digits.py tensor N 30 sqlite:///x.db 2`` with Shoal: same space, same split, no early stopping.

usage: shoal_digits.py TRIALS EPOCHS STORAGE [SEED]
Prints one line like the baseline's, which ``whole_process.py`` reads.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import shoal

# Examples are no package, and a spawned process must find `define` under the same name.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from digits import define


def main(n_trials: int, max_epochs: int, storage: str, seed: int) -> None:
    """Tune, and print trials, epochs trained, wall seconds and the best validation accuracy."""
    start = time.perf_counter()
    if storage.startswith("sqlite:///"):
        Path(storage.removeprefix("sqlite:///")).unlink(missing_ok=True)
    # As in the baseline: 1,437 train and 360 valid, no test set.
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    train, valid = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=y)
    study = shoal.tune(
        define,
        train=(x[train], y[train]),
        valid=(x[valid], y[valid]),
        metric="accuracy",
        direction="maximize",
        n_trials=n_trials,
        max_epochs=max_epochs,
        scheduler="none",
        storage=storage,
        seed=seed,
    )
    wall_s = time.perf_counter() - start
    trials = study.optuna_study.trials
    epochs = sum(len(trial.intermediate_values) for trial in trials)
    rate = epochs / wall_s
    best = study.best_value
    print(f"shoal trials={len(trials)} epochs={epochs} wall={wall_s:.1f}s epochs/s={rate:.1f} best={best:.4f}")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
