"""A schedule that an earlier search found, followed again by every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from shoal.errors import UsageError, did_you_mean
from shoal.records import ParamValue
from shoal.schedulers._base import Decision, Observation, Space, Verdict
from shoal.schedules import Schedule


@final
class PopulationBasedTrainingReplay:
    """Trains every trial with a schedule of hyperparameters, from its first epoch to its last.

    ``tune`` starts all trials with the schedule's first values (unless ``enqueue`` says otherwise), and each has weights,
    order of samples and dropout masks of its own: with several trials, or ``seeds=``, one sees what the schedule is worth
    without the luck of the run that it was found in.

    Args:
        schedule: One of ``Study.schedules``.

    Raises:
        UsageError: It is no schedule.

    Example:
        >>> from shoal.schedules import Step
        >>> found = Schedule(3, (Step(1, {"lr": 0.1}, 7), Step(3, {"lr": 0.08}, 3)))
        >>> verdict = PopulationBasedTrainingReplay(found).observe([Observation(0, 2, 0.5)])[0]
        >>> verdict.source, verdict.params
        (0, {'lr': 0.08})
    """

    def __init__(self, schedule: Schedule) -> None:
        if not isinstance(schedule, Schedule):
            raise UsageError(
                f"PopulationBasedTrainingReplay takes one of a study's schedules, as in study.schedules[3]; got {schedule!r:.80}."
            )
        self.schedule = schedule

    @property
    def name(self) -> str:
        """ "pbt_replay"."""
        return "pbt_replay"

    @property
    def first(self) -> Mapping[str, ParamValue]:
        """What every trial begins with."""
        return self.schedule.first

    def begin(self, space: Space, seed: int) -> None:
        """See that all that the schedule moves can be moved.

        Raises:
            UsageError: It cannot, or ``define`` does not ask for it.
        """
        for step in self.schedule.steps:
            for name in step.params:
                if name not in space.distributions:
                    hint = did_you_mean(name, space.distributions)
                    raise UsageError(f"the schedule names {name!r}, which define() does not ask for.{hint}")
        for name in self.schedule.moved:
            if name in space.fixed:
                raise UsageError(
                    f"the schedule moves {name!r}, which cannot move while a model trains: {space.fixed[name]}."
                )

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Hand out the values of the next epoch where the schedule has a step."""
        steps = {step.epoch - 1: step for step in self.schedule.steps[1:]}
        return {
            row.trial: Verdict(
                Decision.COPY,
                f"the schedule's values from epoch {row.epoch + 1} on",
                row.trial,
                steps[row.epoch].params,
            )
            for row in rows
            if row.epoch in steps and row.value - row.value == 0  # what diverged ends
        }

    def __repr__(self) -> str:
        return f"PopulationBasedTrainingReplay(<schedule of trial {self.schedule.trial}, {len(self.schedule.steps)} steps>)"
