"""Learning curves of random configurations: recorded once, opened by ``numpy.load`` without pickle.

A file holds ``loss`` and ``accuracy`` (trials, epochs) as float32, NaN from where a trial diverged; ``params`` (trials,), ``space``
and ``task`` as text, the first two in JSON (a distribution as Optuna writes it).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tasks import MAX_EPOCHS, Task

import shoal


class Curves(NamedTuple):
    """What was recorded of one task."""

    task: str
    params: list[dict[str, Any]]
    space: dict[str, str]  # name -> distribution
    loss: NDArray[np.float64]  # (trials, epochs), infinity where a trial had diverged
    accuracy: NDArray[np.float64]


def record(task: Task, out: Path, n_trials: int, seed: int = 0) -> None:
    """Train random configurations to the end and write their curves down."""
    train, valid = task.data()
    start = time.perf_counter()
    study = shoal.tune(
        task.define,
        train=train,
        valid=valid,
        metric="loss",
        metrics=["accuracy"],
        n_trials=n_trials,
        max_epochs=MAX_EPOCHS,
        sampler="random",
        scheduler="none",
        seed=seed,
        progress=False,
    )
    trials = study.record.trials
    curves = {name: np.full((len(trials), MAX_EPOCHS), np.nan, dtype=np.float32) for name in ("loss", "accuracy")}
    for t in trials:
        for row in t.rows:
            for name, array in curves.items():
                array[t.spec.number, row.epoch - 1] = row.metrics[name]
    params = np.array([json.dumps(dict(t.spec.params)) for t in trials])
    space = np.array(json.dumps(dict(trials[0].spec.distributions)))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, task=np.array(task.name), params=params, space=space, **curves)  # type: ignore[arg-type]
    print(f"{out}: {len(trials)} trials of {MAX_EPOCHS} epochs, {time.perf_counter() - start:.0f} s", flush=True)


def load(path: Path) -> Curves:
    """Read a file that ``record`` wrote."""
    with np.load(path, allow_pickle=False) as data:
        loss, accuracy = (data[name].astype(np.float64) for name in ("loss", "accuracy"))
        return Curves(
            str(data["task"]),
            [json.loads(p) for p in data["params"]],
            json.loads(str(data["space"])),
            np.nan_to_num(loss, nan=np.inf),
            np.nan_to_num(accuracy, nan=0.0),
        )
