"""The winner of a study with folds, trained once more on all folds' rows together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from shoal.lanes.fleet import Work
from shoal.lanes.solo import Solo
from shoal.recipe import Recipe
from shoal.records import TrialRecord, TrialSpec
from shoal.weights import WeightStore


class Refitter:
    """Trains a trial again, on every row that is no test row, for as many epochs as it was judged by.

    It does so under the trial's own seed, in a plain loop. No row is left to watch it, so a schedule that watches the validation is
    shown what the folds had, on average, after the same epoch.

    Args:
        rebuild: Replays a trial's recipe for all rows.
        work: What the study trained with.
        weights: Where the weights go.
    """

    def __init__(self, rebuild: Callable[[TrialSpec], Recipe], work: Work, weights: WeightStore) -> None:
        self._rebuild, self._work, self._weights = rebuild, replace(work, parts=None), weights

    def __call__(self, trial: TrialRecord) -> None:
        """Leave a trial's weights in the store, unless they are there already."""
        number = trial.spec.number
        if number not in self._weights:
            assert trial.value is not None  # only a finished trial wins
            self._weights.offer(number, trial.values, lambda: self._train(trial))

    def _train(self, trial: TrialRecord) -> dict[str, Tensor]:
        solo = Solo(trial.spec, self._rebuild(trial.spec), self._work)
        for row in trial.rows[: trial.epoch]:
            solo.train_epoch()
            if solo.recipe.schedule_every == "epoch":
                solo.recipe.step_schedule(loss=row.metrics["loss"], value=row.value)
        return solo.state_dict()
