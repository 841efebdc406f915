"""Optuna's pruners as schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

from shoal.errors import UsageError
from shoal.records import Direction
from shoal.samplers import quiet
from shoal.schedulers import Decision, Observation, Verdict

if TYPE_CHECKING:
    import optuna


@final
class PrunerScheduler:
    """Asks an Optuna pruner, about each trial after each epoch, whether it should stop.

    A pruner sees a private study in which every trial reports its epochs as steps, in the user's own direction. All rows
    of a round are reported before any trial is judged, those of lower numbers first. Most pruners compare with finished
    trials alone, and so stop nobody in a first wave that starts together; "median" and "asha" compare with running
    trials too.

    Args:
        pruner: The pruner.
        direction: The study's.
        max_epochs: Where a trial is finished.

    Raises:
        UsageError: The pruner decides by comparing steps within one trial (``WilcoxonPruner``), which epochs are not.
    """

    def __init__(self, pruner: optuna.pruners.BasePruner, direction: Direction, max_epochs: int) -> None:
        import optuna

        if isinstance(pruner, optuna.pruners.WilcoxonPruner):
            raise UsageError(
                "WilcoxonPruner compares many evaluations of finished configurations, which the epochs of a training are not; "
                "use 'asha' or another pruner."
            )
        self._pruner, self._max_epochs = pruner, max_epochs
        self._sign = 1.0 if direction == "minimize" else -1.0
        with quiet():
            self._study = optuna.create_study(study_name="shoal", direction=direction, pruner=pruner)
        self._trials: list[optuna.Trial] = []
        self._ended: set[int] = set()

    @property
    def name(self) -> str:
        """The pruner's class."""
        return type(self._pruner).__name__

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Report the rows, then ask the pruner about each trial."""
        import optuna

        ordered = sorted(rows, key=lambda row: (row.trial, row.epoch))
        verdicts: dict[int, Verdict] = {}
        with quiet():
            for row in ordered:
                while len(self._trials) <= row.trial:
                    self._trials.append(self._study.ask())
                if row.trial not in self._ended and row.epoch not in self._reports(row.trial):
                    self._trials[row.trial].report(self._sign * row.value, row.epoch)
            for row in ordered:
                if row.trial in self._ended:
                    continue
                if row.epoch >= self._max_epochs:
                    self._study.tell(row.trial, self._sign * row.value)
                elif self._trials[row.trial].should_prune():
                    self._study.tell(row.trial, state=optuna.trial.TrialState.PRUNED)
                    verdicts[row.trial] = Verdict(Decision.STOP, f"{self.name} said so at epoch {row.epoch}")
                else:
                    continue
                self._ended.add(row.trial)
        return verdicts

    def _reports(self, trial: int) -> Mapping[int, float]:
        return self._study._storage.get_trial(self._trials[trial]._trial_id).intermediate_values

    def __repr__(self) -> str:
        return f"PrunerScheduler({self.name})"
