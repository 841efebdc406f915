"""What a trial costs beside its training: planning, judging, recording and storing it; and what asking for it costs.

    python benchmarks/bookkeeping.py              # 1,000 trials of 20 reports in an SQLite file, random search
    python benchmarks/bookkeeping.py --n-trials 2000 --sampler tpe --scheduler asha --rows 1437

Times the loop round the training from inside, in one process: *asking* is the sampler, *preparing* the user's ``define``, its
signature and the admission to a lane, *training* the epochs and their validation, and *bookkeeping* all the rest of the loop, with
the computing time of the thread that commits. Everything is on disk when it ends.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import torch
from torch import nn

import shoal
from shoal.asking import Asker
from shoal.engine import Engine
from shoal.lanes.workers import PoolSet
from shoal.session import Session
from shoal.storage import load_study
from shoal.storage._writer import BatchWriter

FEATURES, CLASSES, BATCH = 64, 10, 32


def define(trial: optuna.Trial) -> shoal.Recipe:
    """A perceptron with six hyperparameters."""
    activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[trial.suggest_categorical("activation", ["relu", "tanh"])]
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    model = nn.Sequential(nn.Linear(FEATURES, 32), activation(), nn.Dropout(dropout), nn.Linear(32, CLASSES))
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-6, 1e-2, log=True),
        betas=(trial.suggest_float("beta1", 0.8, 0.95), 0.999),
    )
    loss = nn.CrossEntropyLoss(label_smoothing=trial.suggest_float("smoothing", 0.0, 0.2))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=loss, batch_size=BATCH)


class Spent:
    """Seconds by name of what is going on, without what is going on inside it under another name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """``call``, with its time counted under ``name``."""

        def called(*args: Any, **keywords: Any) -> Any:
            self._inside.append(0.0)
            began = time.perf_counter()
            try:
                return call(*args, **keywords)
            finally:
                took = time.perf_counter() - began
                self.seconds[name] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return called

    def committing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The computing time of a whole thread."""

        def called(*args: Any, **keywords: Any) -> Any:
            try:
                return call(*args, **keywords)
            finally:
                self.seconds["committing"] += time.thread_time()

        return called


def run(n_trials: int, max_epochs: int, sampler: str, scheduler: str, rows: int) -> tuple[dict[str, float], int]:
    """Seconds by part of one study, and its reports."""
    spent = Spent()
    parts = [
        (Engine, "run", "bookkeeping"),
        (Asker, "ask", "asking"),
        (Asker, "ask_again", "asking"),
        (Session, "_candidates", "preparing"),
        (PoolSet, "admit", "preparing"),
        (PoolSet, "run_epoch", "training"),
    ]
    x = torch.randn(rows, FEATURES, generator=torch.Generator().manual_seed(0))
    y = x[:, :CLASSES].argmax(dim=1)

    def asked(trial: optuna.Trial) -> shoal.Recipe:  # the sampler is asked when the first parameter is
        spent.counted(lambda: getattr(trial, "relative_params", None), "asking")()
        recipe: shoal.Recipe = spent.counted(define, "preparing")(trial)
        return recipe

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(mock.patch.object(owner, name, spent.counted(getattr(owner, name), part)))
        stack.enter_context(mock.patch.object(BatchWriter, "_run", spent.committing(BatchWriter._run)))
        path = str(Path(folder) / "study.db")
        keywords: dict[str, Any] = {"sampler": sampler, "scheduler": scheduler}
        shoal.tune(
            asked,
            train=(x, y),
            valid=(x, y),
            n_trials=n_trials,
            max_epochs=max_epochs,
            storage=path,
            progress=False,
            seed=0,
            **keywords,
        )
        reports = sum(len(t.rows) for t in load_study(path, "shoal").trials)
    return dict(spent.seconds), reports


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--scheduler", default="none")
    parser.add_argument(
        "--rows", type=int, default=BATCH, help="samples: one batch, or more where training should count"
    )
    args = parser.parse_args()
    if torch.get_num_threads() > 1 or os.environ.get("OMP_NUM_THREADS") != "1":
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    seconds, reports = run(args.n_trials, args.epochs, args.sampler, args.scheduler, args.rows)
    whole = sum(seconds.values())
    print(f"{args.n_trials} trials, {reports} reports, {args.sampler}, {args.scheduler}, {args.rows} samples\n")
    print("| part | s | ms per trial | share |\n| --- | --- | --- | --- |")
    for name in ("asking", "preparing", "training", "bookkeeping", "committing"):
        s = seconds.get(name, 0.0)
        print(f"| {name} | {s:.1f} | {1e3 * s / args.n_trials:.2f} | {100 * s / whole:.0f} % |")


if __name__ == "__main__":
    main()
