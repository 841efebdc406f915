"""What every scheduler takes and gives: plain rows in, verdicts out.

Schedulers are pure: no torch, no clock, no files, no randomness but what follows from a seed and the row in question.
Their whole state follows from the rows that they were given, so ``resume`` rebuilds a scheduler by feeding it the
recorded rows again, and tests need no training.

Glossary: a *value* is minimised here, whatever the user's direction (the engine flips it at the boundary); an *epoch*
is counted from 1.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from shoal.errors import UsageError
from shoal.records import ParamValue

Rank: TypeAlias = "tuple[bool, float, int]"


class Decision(enum.StrEnum):
    """What happens to a trial next."""

    CONTINUE = "continue"
    STOP = "stop"  # for good
    PAUSE = "pause"  # copied out of its lane, which is free for another; it may be promoted later
    PROMOTE = "promote"  # of a paused trial: back into a lane, to train on where it was
    COPY = "copy"  # it goes on from what another trial has learnt, with hyperparameters of its own


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and why; the reason is shown to the user, so it names no value (signs are flipped in here).

    ``source`` and ``params`` belong to COPY: the trial that is copied (which may be the trial itself), and all
    hyperparameters to go on with.
    """

    decision: Decision
    reason: str
    source: int | None = None
    params: Mapping[str, ParamValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """One trial's value after one epoch. The value is minimised; NaN counts as the worst there is.

    ``params`` is what it trained with in this epoch. Only an `Explorer` is told; only it is also shown values that are not
    finite.
    """

    trial: int
    epoch: int
    value: float
    params: Mapping[str, ParamValue] = field(default_factory=dict)


@runtime_checkable
class Scheduler(Protocol):
    """Decides who trains on."""

    @property
    def name(self) -> str:
        """What the user calls it, as in ``tune(scheduler=...)``."""

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """Take the rows of one round and say which of their trials should stop.

        Args:
            rows: what arrived together; their order carries no meaning.

        Returns:
            Trial number -> verdict. A trial that is not named continues.
        """


@dataclass(frozen=True, slots=True)
class Room:
    """What there is to fill, asked about once per round, after every verdict of the round was carried out.

    Attributes:
        free: Lanes in which nobody trains, 0 or more.
        running: Trials that train now.
        paused: Trial -> the epoch it was paused at.
        n_asked: Trials that have been started so far; their numbers are 0 to ``n_asked - 1``.
        more: Whether new trials can still be started.
    """

    free: int
    running: frozenset[int]
    paused: Mapping[int, int]
    n_asked: int
    more: bool


@runtime_checkable
class Promoter(Protocol):
    """A scheduler that pauses trials and lets some of them go on later."""

    @property
    def name(self) -> str:
        """As in ``Scheduler``."""

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """As in ``Scheduler``; a verdict may be PAUSE."""

    def promote(self, room: Room) -> Mapping[int, Verdict]:
        """Say which paused trials go on now, and which have no chance any more.

        Args:
            room: what there is to fill.

        Returns:
            Trial number -> a verdict of PROMOTE (at most ``room.free`` of them, most wanted first) or STOP. A paused
            trial that is not named stays paused. When nothing runs, nothing is promoted and no new trial can be
            started, the engine stops what is still paused.
        """


@dataclass(frozen=True, slots=True)
class Space:
    """The hyperparameters that ``define`` asks for.

    Attributes:
        distributions: Name -> distribution, as Optuna writes it to JSON.
        fixed: Those that cannot be changed while a model trains -> why.
        on_request: Those that can, but should only where the user has named them.
    """

    distributions: Mapping[str, str]
    fixed: Mapping[str, str] = field(default_factory=dict)
    on_request: frozenset[str] = frozenset()


@runtime_checkable
class Explorer(Protocol):
    """A scheduler that changes hyperparameters while trials train."""

    @property
    def name(self) -> str:
        """As in ``Scheduler``."""

    def begin(self, space: Space, seed: int) -> None:
        """Called before anything else.

        Args:
            space: What ``define`` asks for.
            seed: Of the study.

        Raises:
            UsageError: It is to change what cannot be changed.
        """

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        """As in ``Scheduler``; a verdict may be COPY, and a trial whose value is not finite ends unless it is copied over."""


def rank(row: Observation) -> Rank:
    """A sort key, best first: NaN is worst, the lower trial number wins a tie."""
    return (True, 0.0, row.trial) if math.isnan(row.value) else (False, row.value, row.trial)


def in_order(rows: Sequence[Observation]) -> list[Observation]:
    """The rows by epoch, then best first, so that no decision can depend on the order in which lanes reported."""
    return sorted(rows, key=lambda row: (row.epoch, rank(row)))


def check_whole(what: str, value: object, *, at_least: int) -> int:
    """``value`` if it is a whole number not below ``at_least``.

    Raises:
        UsageError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UsageError(f"{what} must be a whole number, {at_least} or more; got {value!r}.")
    return value
