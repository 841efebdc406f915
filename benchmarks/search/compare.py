"""Searches on real training, at equal epochs: the default of ``shoal.tune``, Optuna's pruners, random search, one epoch then top K.

Results go to a file of JSON lines, one per method and seed: ``task``, ``method``, ``seed``, ``trajectory`` ([epochs spent in all,
best validation loss of a finished trial by then], wherever that changed), ``epochs`` and ``trials``. What is there already is kept,
so that an interrupted comparison goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rivals import RIVALS, Search, Trajectory, run
from tasks import MAX_EPOCHS, Split, Task

import shoal

DEFAULT: Final = "Shoal's default"
TOP_K: Final = "one epoch, then top K"
METHODS: Final = (DEFAULT, *RIVALS, TOP_K)


class Result(NamedTuple):
    """One search. ``epochs`` were spent in all, on ``trials`` trials."""

    task: str
    method: str
    seed: int
    trajectory: Trajectory
    epochs: int
    trials: int

    def at(self, epochs: float) -> float:
        """The best validation loss of a trial that had finished by then; infinity before the first."""
        return min((value for spent, value in self.trajectory if spent <= epochs), default=float("inf"))


def trajectory_of(study: shoal.Study) -> Trajectory:
    """Epochs spent in all and the best finished trial, after each round in which that changed."""
    rounds: dict[float, list[Any]] = {}
    for t in study.record.trials:
        for row in t.rows:
            rounds.setdefault(row.time_s, []).append(row)
    spent, best, out = 0, float("inf"), Trajectory()
    for _, rows in sorted(rounds.items()):
        spent += len(rows)
        value = min((row.value for row in rows if row.epoch == MAX_EPOCHS), default=best)
        if value < best:
            best = value
            out.append((spent, best))
    return out


def search(task: Task, splits: tuple[Split, Split], n_trials: int, seed: int, **options: Any) -> shoal.Study:
    """One study of ``shoal.tune``, of which ``options`` are chosen and nothing else."""
    train, valid = splits
    return shoal.tune(
        task.define,
        train=train,
        valid=valid,
        metric="loss",
        n_trials=n_trials,
        max_epochs=MAX_EPOCHS,
        seed=seed,
        progress=False,
        **options,
    )


def ours(task: Task, method: str, n_trials: int, seed: int) -> Result:
    """One study of Shoal's: with nothing chosen, or random trials of one epoch of which the best K go on."""
    options: Mapping[str, Any] = {} if method == DEFAULT else {"sampler": "random", "scheduler": "top_k"}
    study = search(task, task.data(), n_trials, seed, **options)
    if study.interrupted:
        raise KeyboardInterrupt  # half a search is no result
    trials = study.record.trials
    return Result(task.name, method, seed, trajectory_of(study), sum(len(t.rows) for t in trials), len(trials))


def top_k_trials(budget: int) -> int:
    """How many trials of one epoch, and K of them to the end, as ``scheduler="top_k"`` chooses K, cost this many epochs."""
    n = 3
    while (n + 1) + max(3, (n + 1) // 50) * (MAX_EPOCHS - 1) <= budget:
        n += 1
    return n


def compare(task: Task, out: Path, methods: Sequence[str], seeds: Sequence[int], n_trials: int, budget: int) -> None:
    """Run what is missing.

    ``n_trials`` are the default's; top K gets as many as cost the epochs that the default spent under the same seed, since it
    finishes nothing before; Optuna's searches go on for ``budget`` epochs.
    """
    done = {(r.task, r.method, r.seed) for r in load(out)}
    todo = [(m, s) for s in seeds for m in methods if (task.name, m, s) not in done]
    start = time.perf_counter()
    for method, seed in todo:
        if method == DEFAULT:
            write(out, ours(task, method, n_trials, seed))
    spent = {r.seed: r.epochs for r in load(out) if r.task == task.name and r.method == DEFAULT}
    for method, seed in todo:
        if method == TOP_K:
            write(out, ours(task, method, top_k_trials(spent[seed]), seed))
    searches = {(m, s): Search.of(m, s) for m, s in todo if m in RIVALS}
    if searches:
        run(task, list(searches.values()), budget)
    for (method, seed), search in searches.items():
        write(out, Result(task.name, method, seed, search.trajectory, search.spent, len(search.study.trials)))
    print(f"{task.name}: {len(todo)} searches, {time.perf_counter() - start:.0f} s", flush=True)


def write(out: Path, result: Result) -> None:
    """Append one line."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result._asdict()) + "\n")


def load(path: Path) -> list[Result]:
    """All results of a file; none if there is no such file."""
    return list(_read(path)) if path.exists() else []


def _read(path: Path) -> Iterator[Result]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield Result(**{**row, "trajectory": [(int(e), float(v)) for e, v in row["trajectory"]]})
