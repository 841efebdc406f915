"""What extensions moved while trials trained, thinned to what a figure shows: at most some values per epoch.

Glossary: a *path* is one hyperparameter of one lane over its trial's epochs. All paths have ``per_epoch`` values for each of
their trial's rows, one after the other; value j of epoch e belongs to ``e - 1 + (j + 1) / per_epoch``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shoal.records import Json, TrialRecord
from shoal.report._numbers import packed, rounded

# Of all paths together: 3 MB as base64.
MAX_POINTS: Final = 600_000
MOST_PER_EPOCH: Final = 8


def trajectories(trials: Sequence[TrialRecord]) -> dict[str, Json]:
    """Every path of a study, by hyperparameter.

    Args:
        trials: In the order of the page. The paths of a trial's folds and seeds (``"lr@1"``) count as the hyperparameter's own.

    Returns:
        ``{"per_epoch", "moved"}``, the latter with ``{"name", "trials", "first", "data"}`` for each hyperparameter: a trial
        index and the first value of each path, and the values of all paths as float32 in base64; NaN where a row has none.
        Beyond `MAX_POINTS` at one value per epoch, later trials are left out.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    n_points, longest = 0, 1
    for index, trial in enumerate(trials):
        for full in sorted({name for row in trial.rows for name in row.trajectories}, key=_by_part):
            if n_points + len(trial.rows) > MAX_POINTS:
                break
            n_points += len(trial.rows)
            longest = max(longest, *(len(row.trajectories.get(full, ())) for row in trial.rows))
            found.setdefault(full.partition("@")[0], []).append((index, full))
    per_epoch = max(1, min(MOST_PER_EPOCH, longest, MAX_POINTS // max(n_points, 1)))
    moved: list[Json] = []
    for name, paths in found.items():
        values = [_path(trials[index], full, per_epoch) for index, full in paths]
        first = [
            next((row.trajectories[full][0] for row in trials[index].rows if row.trajectories.get(full)), None)
            for index, full in paths
        ]
        moved.append(
            {
                "name": name,
                "trials": [index for index, _ in paths],
                "first": [rounded(value) for value in first],
                "data": packed(value for path in values for value in path),
            }
        )
    return {"per_epoch": per_epoch, "moved": moved}


def _by_part(full: str) -> tuple[str, int]:
    name, _, part = full.partition("@")
    return name, int(part) if part.isdecimal() else 0


def _path(trial: TrialRecord, full: str, per_epoch: int) -> list[float]:
    """The values of one path, ``per_epoch`` for each row: the last of each share of the epoch's updates."""
    values: list[float] = []
    for row in trial.rows:
        part = row.trajectories.get(full, ())
        for j in range(per_epoch):
            values.append(part[-(-(j + 1) * len(part) // per_epoch) - 1] if part else float("nan"))
    return values
