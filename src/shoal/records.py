"""The data that crosses Shoal's seams: frozen, plain, free of torch, Optuna, clocks and files.

Glossary: a *value* is the metric a study is judged by, in the user's own direction (of several objectives, the first); an *epoch*
is counted from 1 (``epoch=3`` is what was measured after three epochs of training); ``time_s`` is seconds since the study was first
opened, for figures only: no decision reads it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from shoal.pareto import Point, front

Direction: TypeAlias = Literal["minimize", "maximize"]
ParamValue: TypeAlias = str | int | float | bool | None
Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


# A pool keeps the parts of a trial apart under one number each: part * _PARTS + trial.
_PARTS = 1 << 32


class TrialState(enum.StrEnum):
    """Where a trial stands. ``stopped`` is early stopping or a loss that is not finite; ``failed`` is an error."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """All that is needed to run a trial again anywhere: ``define`` is replayed from it.

    ``distributions`` maps a parameter's name to its Optuna distribution as JSON (``distribution_to_json``). ``part`` tells apart
    the lanes of one trial, where folds and seeds give it several; the seed is then the part's own. ``origin`` is the seed under
    which ``define`` is run, where that is not ``seed``: of a trial that goes on from what another one had learnt.
    """

    number: int
    seed: int
    params: Mapping[str, ParamValue]
    distributions: Mapping[str, str]
    part: int = 0
    origin: int | None = None

    @property
    def key(self) -> int:
        """What a pool knows this part by: the trial's number, if it is part 0."""
        return part_key(self.number, self.part)


def part_key(trial: int, part: int) -> int:
    """What a pool knows a part of a trial by."""
    return part * _PARTS + trial


def part_of(key: int) -> tuple[int, int]:
    """(trial, part) of a key.

    >>> part_of(part_key(17, 4))
    (17, 4)
    """
    part, trial = divmod(key, _PARTS)
    return trial, part


@dataclass(frozen=True, slots=True)
class Copied:
    """With what a trial goes on after an epoch: a copy of all that trial ``source`` (maybe itself) had learnt by then, and
    hyperparameters ``params``. ``origin`` is the seed that ``source``'s model was made with."""

    source: int
    params: Mapping[str, ParamValue]
    origin: int


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One trial, one epoch. ``metrics`` are measured on the validation split and include ``loss``; ``trajectories`` are the values
    that extensions gave to hyperparameters in this epoch, by name: one per update, or a single one.

    With folds or seeds, all are means over the trial's lanes; ``lanes`` has each lane's value, seed by seed and in each seed fold
    by fold, and ``standard_error`` is that of the mean (None where one lane is all there is). ``copied`` says how the trial goes
    on, if not as it was.
    """

    trial: int
    epoch: int
    train_loss: float
    value: float
    metrics: Mapping[str, float]
    time_s: float = 0.0
    lanes: tuple[float, ...] = ()
    standard_error: float | None = None
    trajectories: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    copied: Copied | None = None


def spec_in(spec: TrialSpec, rows: Sequence[EpochRow], epoch: int) -> TrialSpec:
    """What a trial trains with in an epoch.

    Args:
        spec: What it began with.
        rows: Its epochs, in order.
        epoch: Counted from 1.
    """
    last = next((row.copied for row in reversed(rows) if row.copied is not None and row.epoch < epoch), None)
    if last is None:
        return spec
    known = {name: spec.distributions[name] for name in last.params if name in spec.distributions}
    return replace(spec, params=last.params, distributions=known, origin=last.origin)


def changes_of(rows: Sequence[EpochRow]) -> tuple[Json, ...]:
    """The changes of a trial's hyperparameters as JSON, for people who read the study with Optuna."""
    return tuple(
        {"after_epoch": row.epoch, "source": row.copied.source, "params": dict(row.copied.params)}
        for row in rows
        if row.copied is not None
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial is judged by beside its value: nothing, unless its study has several objectives or constraints.

    Attributes:
        values: Of all objectives, in their order and in the user's directions; () for one objective, or a trial that was stopped.
        constraints: "latency_ms <= 2" -> by how much it is broken; 0 or less means that it holds.
        measured: What was measured of the model once, at the end: "n_parameters", "latency_ms".
    """

    values: tuple[float, ...] = ()
    constraints: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether no constraint is broken."""
        return all(value <= 0 for value in self.constraints.values())


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended. ``value`` is None for a failed trial; ``epoch`` is the epoch that ``value`` was measured at.

    ``lanes`` and ``standard_error`` are those of that epoch's `EpochRow`. ``schedule`` has, of a trial whose hyperparameters were
    changed while it trained, each change as JSON.
    """

    number: int
    state: TrialState
    value: float | None
    epoch: int
    reason: str = ""
    time_s: float = 0.0
    lanes: tuple[float, ...] = ()
    standard_error: float | None = None
    outcome: Outcome = Outcome()
    schedule: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the journal: what happened to the lanes, at which tick.

    ``tick`` counts epochs that the engine has run (lanes change at epoch boundaries only). Kinds: ``fleet`` (opened:
    width, signature, tier), ``admitted`` (trial, fleet, lane), ``left`` (trial, fleet, lane), ``solo`` (trial, reason).
    """

    tick: int
    kind: str
    trial: int | None = None
    fleet: int | None = None
    lane: int | None = None
    data: Mapping[str, Json] = field(default_factory=dict)
    time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial with all that is known of it."""

    spec: TrialSpec
    state: TrialState
    value: float | None
    epoch: int
    reason: str
    rows: tuple[EpochRow, ...]
    time_s: float = 0.0
    outcome: Outcome = Outcome()

    @property
    def number(self) -> int:
        """The trial's number."""
        return self.spec.number

    @property
    def params(self) -> Mapping[str, ParamValue]:
        """Its parameters."""
        return self.spec.params

    @property
    def values(self) -> tuple[float, ...]:
        """Its values, one per objective; () without any."""
        if self.outcome.values or self.value is None:
            return self.outcome.values
        return (self.value,)

    @property
    def judged(self) -> EpochRow | None:
        """The epoch that the value was measured at."""
        return next((row for row in self.rows if row.epoch == self.epoch), None)

    @property
    def trained(self) -> TrialSpec:
        """What it trained with in the epoch that it is judged by: its weights belong to that."""
        return spec_in(self.spec, self.rows, self.epoch)


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """A whole study as data: what the report, the command line and ``resume`` read.

    ``meta`` holds JSON facts under these keys: ``metric`` (name), ``options`` (keywords of ``tune``), ``fingerprint``
    (of ``define``'s code), ``space`` (name -> distribution JSON), ``test`` (metric name -> value on the test split, of
    the winner), ``weights`` (trial number as str -> file), ``hardware``, ``elapsed_s``, ``winner`` (see `shoal.winner`). Of a study
    with several objectives also ``objectives`` (their names; ``metric`` and ``direction`` are the first one's), of one with
    constraints ``constraints`` (such as "latency_ms <= 2").
    """

    name: str
    direction: Direction
    trials: tuple[TrialRecord, ...]
    events: tuple[Event, ...]
    meta: Mapping[str, Json]
    directions: tuple[Direction, ...] = ()  # of all objectives; by default that of the only one

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", self.directions or (self.direction,))

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of what trials are judged by, one per direction."""
        names = self.meta.get("objectives")
        return tuple(map(str, names)) if isinstance(names, list) else (str(self.meta.get("metric") or "value"),)

    def point(self, trial: TrialRecord) -> Point:
        """A trial's values, signed so that lower is better."""
        return signed(trial.values, self.directions)

    def best(self) -> TrialRecord | None:
        """The finished trial with the best value (the lower number wins a tie), or None when nothing has finished.

        Trials that break a constraint are left out. Of several objectives the first decides, among the trials of the front.
        """
        sign = 1.0 if self.direction == "minimize" else -1.0
        finished = self.front() if len(self.directions) > 1 else self._feasible()
        return min(finished, key=lambda t: (sign * (t.value or 0.0), t.spec.number), default=None)

    def front(self) -> tuple[TrialRecord, ...]:
        """The Pareto front, by trial number: finished trials that break no constraint and that no such trial dominates."""
        finished = [t for t in self._feasible() if len(t.values) == len(self.directions)]
        on = front([self.point(t) for t in finished])
        return tuple(t for t, here in zip(finished, on, strict=True) if here)

    def _feasible(self) -> list[TrialRecord]:
        finished = (t for t in self.trials if t.state is TrialState.FINISHED and t.value is not None)
        return [t for t in finished if t.outcome.feasible]


def signed(values: tuple[float, ...], directions: tuple[Direction, ...]) -> Point:
    """Values, turned so that lower is better.

    >>> signed((0.5, 3.0), ("maximize", "minimize"))
    (-0.5, 3.0)
    """
    return tuple(v if d == "minimize" else -v for v, d in zip(values, directions, strict=True))


@dataclass(frozen=True, slots=True)
class Progress:
    """What a live table shows; made by the engine once per round, never per tick."""

    n_trials: int
    running: int
    finished: int
    stopped: int
    failed: int
    lanes_busy: int
    lanes_total: int
    fleets: int
    best_number: int | None
    best_value: float | None
    best_params: Mapping[str, ParamValue]
    metric: str
    epochs_done: int
    epochs_per_s: float
    elapsed_s: float
    remaining_s: float | None
    paused: int = 0
    message: str = ""
