"""The study that samplers look at: Optuna's storage in memory, with three liberties that its own has not.

Optuna cannot open a trial again that has ended, ask anew for a trial's parameters, or take a trial back. All three are
done to this private study only; the study file sees none of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import final

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState


@final
class PrivateStorage(InMemoryStorage):
    """A storage in memory for one study."""

    def reopen(self, trial_id: int) -> None:
        """Let a trial that has ended run again. What it reported stays."""
        with self._lock:
            trial = copy.copy(self._get_trial(trial_id))
            trial.state, trial.values, trial.datetime_complete = TrialState.RUNNING, None, None
            self._set_trial(trial_id, trial)

    def forget(self, trial_id: int) -> None:
        """Make a running trial as if it had been asked for no parameter yet."""
        with self._lock:
            trial = copy.copy(self._get_trial(trial_id))
            trial.params, trial.distributions, trial.system_attrs = {}, {}, {}
            self._set_trial(trial_id, trial)

    def put_back(self, study_id: int, trials: Iterable[FrozenTrial]) -> None:
        """Add trials of an earlier session, which are this storage's from now on.

        Optuna's own way copies each to its last float: half a minute for 100,000 trials.
        """
        with self._lock:
            kept = self._studies[study_id].trials
            for trial in trials:
                self._max_trial_id += 1
                trial.number, trial._trial_id = len(kept), self._max_trial_id
                self._trial_id_to_study_id_and_number[trial._trial_id] = (study_id, trial.number)
                kept.append(trial)
                self._update_cache(trial._trial_id, study_id)

    def take_back(self, trial_id: int) -> None:
        """Remove the trial that was asked for last."""
        with self._lock:
            study_id, number = self._trial_id_to_study_id_and_number.pop(trial_id)
            trials = self._studies[study_id].trials
            assert number == len(trials) - 1
            trials.pop()
            self._prev_waiting_trial_number[study_id] = min(self._prev_waiting_trial_number[study_id], len(trials))


def numbered(trial: optuna.Trial, offset: int) -> optuna.Trial:
    """A trial whose number counts from the first one after ``offset`` trials of earlier studies."""

    class Numbered(optuna.Trial):
        @property
        def number(self) -> int:
            return super().number - offset

    trial.__class__ = Numbered
    return trial
