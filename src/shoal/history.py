"""A study's history while it is open: every trial, epoch, result and event, in memory and in order. Plain data only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from shoal.records import (
    Direction,
    EpochRow,
    Event,
    Json,
    StudyRecord,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
    spec_in,
)


@dataclass(slots=True)
class History:
    """What happened so far. A session writes it; everyone else reads ``record``.

    Attributes:
        meta: JSON facts (see ``StudyRecord.meta``).
        specs, rows, results: By trial number; a trial without a result is still running.
    """

    name: str
    direction: Direction
    meta: dict[str, Json]
    specs: dict[int, TrialSpec] = field(default_factory=dict)
    rows: dict[int, list[EpochRow]] = field(default_factory=dict)
    results: dict[int, TrialResult] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    directions: tuple[Direction, ...] = ()  # of all objectives; by default that of the only one

    def __post_init__(self) -> None:
        self.directions = self.directions or (self.direction,)

    @classmethod
    def of(cls, record: StudyRecord, meta: dict[str, Json]) -> History:
        """The history that a record holds."""
        history = cls(record.name, record.direction, meta, events=list(record.events), directions=record.directions)
        for t in record.trials:
            number = t.spec.number
            history.specs[number] = t.spec
            if t.rows:
                history.rows[number] = list(t.rows)
            if t.state is not TrialState.RUNNING:
                history.results[number] = ended(t)
        return history

    def spec(self, number: int) -> TrialSpec:
        """What a trial trains with from here on."""
        rows = self.rows.get(number, ())
        return spec_in(self.specs[number], rows, rows[-1].epoch + 1 if rows else 1)

    @property
    def current(self) -> dict[int, TrialSpec]:
        """The same of all trials."""
        return {number: self.spec(number) for number in self.specs}

    @property
    def sign(self) -> float:
        """1 when lower values are better, -1 when higher ones are."""
        return 1.0 if self.direction == "minimize" else -1.0

    @property
    def finished(self) -> int:
        """How many trials have finished."""
        return sum(r.state is TrialState.FINISHED for r in self.results.values())

    @property
    def tick(self) -> int:
        """The last tick that the journal knows."""
        return max((e.tick for e in self.events), default=0)

    @property
    def elapsed_s(self) -> float:
        """Seconds of work on the study so far; time goes on from here, so that it never goes back."""
        spent = self.meta.get("elapsed_s")
        known = float(spent) if isinstance(spent, int | float) and 0 <= spent < math.inf else 0.0
        last = (rows[-1] for rows in self.rows.values())
        return max(
            known, *(max((x.time_s for x in xs), default=0.0) for xs in (last, self.results.values(), self.events))
        )

    @property
    def record(self) -> StudyRecord:
        """All of it, frozen."""
        trials = []
        for number, spec in sorted(self.specs.items()):
            r = self.results.get(number)
            rows = tuple(self.rows.get(number, ()))
            if r is None:
                epoch = rows[-1].epoch if rows else 0
                trials.append(TrialRecord(spec, TrialState.RUNNING, None, epoch, "", rows))
            else:
                trials.append(TrialRecord(spec, r.state, r.value, r.epoch, r.reason, rows, r.time_s, r.outcome))
        return StudyRecord(
            self.name, self.direction, tuple(trials), tuple(self.events), dict(self.meta), self.directions
        )


def ended(t: TrialRecord) -> TrialResult:
    """How a trial that is not running ended."""
    return TrialResult(t.spec.number, t.state, t.value, t.epoch, t.reason, t.time_s, outcome=t.outcome)
