"""Schedules of hyperparameters that a search found while it trained: which values a model had in which epochs.

A trial that goes on from another trial's weights owes what it has learnt to that trial's hyperparameters. So the schedule of a
trial is read backwards: its own values since it was copied over, before that those of the trial that it was copied from, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from shoal.records import ParamValue, StudyRecord, TrialRecord


@final
@dataclass(frozen=True, slots=True)
class Step:
    """Hyperparameters from an epoch on.

    Attributes:
        epoch: The first epoch that they are for, counted from 1.
        params: All hyperparameters.
        trial: Which trial's these were.
    """

    epoch: int
    params: Mapping[str, ParamValue]
    trial: int


@final
@dataclass(frozen=True, slots=True)
class Schedule:
    """The hyperparameters of one model over the epochs.

    Attributes:
        trial: Whose weights it led to.
        steps: In order; the first one is for epoch 1.

    Example:
        >>> found = Schedule(3, (Step(1, {"lr": 0.1}, 7), Step(4, {"lr": 0.08}, 3)))
        >>> found.at(3), found.at(4)
        ({'lr': 0.1}, {'lr': 0.08})
        >>> found.table()
        [(1, 7, {'lr': 0.1}), (4, 3, {'lr': 0.08})]
    """

    trial: int
    steps: tuple[Step, ...]

    @property
    def first(self) -> Mapping[str, ParamValue]:
        """What training begins with."""
        return self.steps[0].params

    @property
    def moved(self) -> tuple[str, ...]:
        """The hyperparameters that change, by name."""
        names = dict.fromkeys(name for step in self.steps for name in step.params)
        return tuple(n for n in names if any(s.params.get(n) != self.first.get(n) for s in self.steps))

    def at(self, epoch: int) -> Mapping[str, ParamValue]:
        """The hyperparameters of an epoch, counted from 1."""
        return next(step.params for step in reversed(self.steps) if step.epoch <= max(1, epoch))

    def table(self) -> list[tuple[int, int, dict[str, ParamValue]]]:
        """Rows of (first epoch, trial, hyperparameters)."""
        return [(step.epoch, step.trial, dict(step.params)) for step in self.steps]

    def to_csv(self, path: str | Path) -> Path:
        """Write the table, with a line of names; returns the path. Numbers read back to the same bits."""
        import csv

        names = list(dict.fromkeys(name for step in self.steps for name in step.params))
        with Path(path).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["epoch", "trial", *names])
            for step in self.steps:
                values = (step.params.get(name) for name in names)
                cells = ["" if v is None else repr(v) if isinstance(v, float) else v for v in values]
                writer.writerow([step.epoch, step.trial, *cells])
        return Path(path)


def schedules_of(study: StudyRecord) -> dict[int, Schedule]:
    """The schedules of a study's trials whose hyperparameters were changed while they trained, by trial number.

    Each leads up to the epoch that its trial is judged by.
    """
    trials = {t.spec.number: t for t in study.trials}
    found = {n: Schedule(n, _steps(trials, n, t.epoch)) for n, t in trials.items()}
    return {n: schedule for n, schedule in found.items() if len(schedule.steps) > 1}


def _steps(trials: Mapping[int, TrialRecord], number: int, epoch: int) -> tuple[Step, ...]:
    """The steps that lead to what a trial was in an epoch."""
    out: list[Step] = []
    while True:
        trial = trials[number]
        row = next((r for r in reversed(trial.rows) if r.copied is not None and r.epoch < epoch), None)
        if row is None or row.copied is None:
            out.append(Step(1, trial.spec.params, number))
            return tuple(reversed(out))
        out.append(Step(row.epoch + 1, row.copied.params, number))
        number, epoch = row.copied.source, row.epoch
