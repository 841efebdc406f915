"""Stored studies back into records, as one moment of them, without ever making their owner wait.

A study file may come from elsewhere, or from a disk that lost some of it. Every value is checked as it is read, so that
what comes out has the types that its readers count on, and what cannot be read is said to be damaged.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import sys
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from shoal.errors import ShoalError, StorageError, did_you_mean
from shoal.records import Copied, Direction, EpochRow, Event, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.stages import counted
from shoal.storage import _codec
from shoal.storage._database import database_of, whole
from shoal.storage._place import Place
from shoal.storage._tables import (
    DIRECTIONS,
    EPOCH,
    EVENT,
    FORMAT,
    FORMAT_KEY,
    META,
    STUDIES,
    TRAJECTORY,
    TRIAL,
    has_tables,
)

_NOTHING: dict[str, tuple[float, ...]] = {}  # one for all epochs in which nothing moved
_VALUES = (str, int, float, bool, type(None))


def load(place: Place, name: str | None) -> StudyRecord:
    """Read one study of a file or database; see `shoal.storage.load_study`."""
    return whole(lambda: _load(place, name))


def _load(place: Place, name: str | None) -> StudyRecord:
    with _study(place, name) as (connection, study_id, found):
        directions = directions_of(connection, study_id)
        return StudyRecord(
            name=found,
            direction=directions[0],
            directions=directions,
            trials=_trials(connection, place, study_id),
            events=_events(connection, place, study_id),
            meta=_meta(connection, place, study_id),
        )


def load_meta(place: Place, name: str | None) -> tuple[str, dict[str, Any]]:
    """A study's name and facts, without its trials; otherwise as `load`."""

    def read() -> tuple[str, dict[str, Any]]:
        with _study(place, name) as (connection, study_id, found):
            return found, _meta(connection, place, study_id)

    return whole(read)


@contextlib.contextmanager
def _study(place: Place, name: str | None) -> Iterator[tuple[sa.Connection, int, str]]:
    """A connection that sees one moment, and the study's key and name."""
    database = database_of(place)
    with sound(place, "its list of tables"), database.explained("reading"), database.reading() as connection:
        if not has_tables(connection, database):
            raise StorageError(f"{place} is empty and holds no study: check the path.")
        with sound(place, "its list of studies"):
            study_id, found = _find(connection, place, name)
        yield connection, study_id, found


@contextlib.contextmanager
def sound(place: Place, part: str) -> Iterator[None]:
    """Say of what cannot be read that it is damaged, and where."""
    try:
        yield
    except ShoalError:  # what it says is clear already, though a UsageError is a ValueError too
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise StorageError(
            f"{place.what} is damaged: {part} cannot be read ({type(error).__name__}: {error!s:.200}). Restore a copy or "
            "choose another storage."
        ) from error


def study_format(connection: sa.Connection, study_id: int) -> Any:
    """The format of Shoal's own rows of a study, or None when the study is plain Optuna's."""
    if not sa.inspect(connection).has_table(META.name):
        return None
    query = sa.select(META.c.json).where(META.c.study_id == study_id, META.c.key == FORMAT_KEY)
    text = connection.scalar(query)
    return None if text is None else _codec.decode(text)


def check_format(place: Place, name: str, found: object) -> None:
    """Raise `StorageError` unless Shoal's own rows of a study have the format of this version."""
    if found != FORMAT:
        raise StorageError(
            f"the study {name!r} in {place} was written by another version of Shoal (format {found}, this version knows "
            f"{FORMAT}): use that version, or choose another storage or name."
        )


def directions_of(connection: sa.Connection, study_id: int) -> tuple[Direction, ...]:
    """Whether smaller or larger values are better in a study, for each of its objectives."""
    query = sa.select(DIRECTIONS.c.direction).where(DIRECTIONS.c.study_id == study_id).order_by(DIRECTIONS.c.objective)
    found = connection.scalars(query).all()
    return tuple("maximize" if one == "MAXIMIZE" else "minimize" for one in found) or ("minimize",)


def _find(connection: sa.Connection, place: Place, name: str | None) -> tuple[int, str]:
    studies = connection.execute(sa.select(STUDIES.c.study_id, STUDIES.c.study_name).order_by(STUDIES.c.study_id)).all()
    formats = {str(row.study_name): study_format(connection, row.study_id) for row in studies}
    ids = {str(row.study_name): int(row.study_id) for row in studies}
    ours = [study for study, found in formats.items() if found is not None]
    if name is None:
        if len(ours) > 1:
            raise StorageError(f"{place} holds {len(ours)} studies: name one of {', '.join(map(repr, ours))}.")
        if not ours:
            raise StorageError(f"{place} holds no study of Shoal's: read it with optuna.load_study.")
        name = ours[0]
    if name not in ids:
        raise StorageError(f"{place} holds no study {name!r}.{did_you_mean(name, ours) if ours else ''}")
    if formats[name] is None:
        raise StorageError(f"the study {name!r} in {place} belongs to plain Optuna: read it with optuna.load_study.")
    check_format(place, name, formats[name])
    return ids[name], name


def _trials(connection: sa.Connection, place: Place, study_id: int) -> tuple[TrialRecord, ...]:
    # Columns by position: a study of 100,000 trials has a million rows, and access by name doubles the time.
    epochs = connection.execute(
        sa.select(EPOCH.c.trial, EPOCH.c.epoch, EPOCH.c.train_loss, EPOCH.c.value, EPOCH.c.metrics, EPOCH.c.time_s)
        .where(EPOCH.c.study_id == study_id)
        .order_by(EPOCH.c.trial, EPOCH.c.epoch)
    )
    moved = _trajectories(connection, place, study_id)
    n_trials = connection.scalar(sa.select(sa.func.count()).select_from(TRIAL).where(TRIAL.c.study_id == study_id)) or 0
    with sound(place, "an epoch"):
        by_trial = itertools.groupby(epochs, key=lambda epoch: int(epoch[0]))
        rows = {
            trial: tuple(_epoch(trial, *epoch[1:], moved.get((trial, epoch[1]), _NOTHING)) for epoch in group)
            for trial, group in counted(by_trial, "reading trials", n_trials)
        }
    trials = []
    for row in connection.execute(sa.select(TRIAL).where(TRIAL.c.study_id == study_id).order_by(TRIAL.c.number)):
        with sound(place, f"trial {row.number!r:.20}"):
            trials.append(_trial(row, rows.get(row.number, ())))
    return tuple(trials)


def _epoch(
    trial: int, epoch: Any, train_loss: Any, value: Any, metrics: Any, time_s: Any, moved: dict[str, tuple[float, ...]]
) -> EpochRow:
    if type(epoch) is not int:
        raise TypeError(f"epoch {epoch!r:.40} of trial {trial}")
    numbers: dict[str, float] = _codec.decode(metrics)
    whole = type(numbers) is dict
    values, error = _lanes(numbers.pop(_codec.LANES, None) if whole else None)
    copied = _copied(numbers.pop(_codec.COPIED, None) if whole else None)
    if type(numbers) is not dict or not all(type(number) in (float, int) for number in (*numbers.values(), *values)):
        raise TypeError(f"metrics {metrics!r:.40} of trial {trial}")
    measured = (_number(train_loss), _number(value), numbers, _number(time_s))
    return EpochRow(trial, epoch, *measured, values, error, moved, copied)


def _copied(found: Any) -> Copied | None:
    """How a trial goes on after an epoch, if not as it was."""
    if found is None:
        return None
    source, params = found["source"], found["params"]
    if type(source) is not int or source < 0 or type(params) is not dict:
        raise TypeError(f"copied {found!r:.40}")
    if not all(type(name) is str and isinstance(value, _VALUES) for name, value in params.items()):
        raise TypeError(f"copied {found!r:.40}")
    return Copied(source, params, int(found["origin"]))


def _lanes(found: Any) -> tuple[tuple[float, ...], float | None]:
    """The values of a trial's lanes, and the standard error of their mean; none where a trial is a single lane."""
    if found is None:
        return (), None
    error = found["standard_error"]
    if type(error) not in (float, int, type(None)):
        raise TypeError(f"standard error {error!r:.40}")
    return tuple(found["values"]), error


def _trajectories(
    connection: sa.Connection, place: Place, study_id: int
) -> dict[tuple[int, int], dict[str, tuple[float, ...]]]:
    """By trial and epoch; none where a version that had no extensions was the last to write."""
    if not sa.inspect(connection).has_table(TRAJECTORY.name):
        return {}
    columns = (TRAJECTORY.c.trial, TRAJECTORY.c.epoch, TRAJECTORY.c.moved)
    with sound(place, "a trajectory"):
        rows = connection.execute(sa.select(*columns).where(TRAJECTORY.c.study_id == study_id))
        return {(r[0], r[1]): {str(name): _path(v) for name, v in _codec.decode(r[2]).items()} for r in rows}


def _path(values: Any) -> tuple[float, ...]:
    if type(values) is not list or not all(type(v) in (float, int) for v in values):
        raise TypeError(f"trajectory {values!r:.40}")
    return tuple(values)


def _trial(row: Any, rows: tuple[EpochRow, ...]) -> TrialRecord:
    spec = _codec.decode(row.spec)
    params, distributions = spec["params"], spec["distributions"]
    if type(params) is not dict or type(distributions) is not dict or params.keys() != distributions.keys():
        raise TypeError("its parameters have no distributions")
    if not all(type(value) in _VALUES for value in params.values()):
        raise TypeError("its parameters are no plain values")
    for name, text in distributions.items():
        _check_distribution(text)
        distributions[name] = sys.intern(text)  # most trials have the same
    state = TrialState(row.state)
    value, outcome = _codec.unjudged(row.value)
    if type(row.number) is not int or type(row.epoch) is not int or type(row.reason) is not str:
        raise TypeError("number, epoch or reason")
    return TrialRecord(
        spec=TrialSpec(row.number, int(row.seed), params, distributions),
        state=state,
        value=None if value is None else _number(value),
        epoch=rows[-1].epoch if state is TrialState.RUNNING and rows else row.epoch,
        reason=row.reason,
        rows=rows,
        time_s=_number(row.time_s),
        outcome=outcome,
    )


@functools.lru_cache(maxsize=1024)
def _check_distribution(text: str) -> None:
    """Raise unless a distribution has the fields that Optuna's have: Optuna's own check would import it."""
    found = json.loads(text)
    attributes = found["attributes"]
    if found["name"] == "CategoricalDistribution":
        if type(attributes["choices"]) is not list or not attributes["choices"]:
            raise ValueError(f"distribution {text:.80}")
        return
    if found["name"] not in ("FloatDistribution", "IntDistribution"):
        raise ValueError(f"distribution {text:.80}")
    low, high = _number(attributes["low"]), _number(attributes["high"])
    if not -math.inf < low <= high < math.inf or (attributes["log"] and low <= 0):
        raise ValueError(f"distribution {text:.80}")


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise TypeError(f"{value!r:.40} is no number")


def _events(connection: sa.Connection, place: Place, study_id: int) -> tuple[Event, ...]:
    rows = connection.execute(
        sa.select(EVENT.c.tick, EVENT.c.kind, EVENT.c.trial, EVENT.c.fleet, EVENT.c.lane, EVENT.c.data, EVENT.c.time_s)
        .where(EVENT.c.study_id == study_id)
        .order_by(EVENT.c.seq)
    )
    with sound(place, "an event"):
        return tuple(_event(*row) for row in rows)


def _event(tick: Any, kind: Any, trial: Any, fleet: Any, lane: Any, data: Any, time_s: Any) -> Event:
    if type(tick) is not int or type(kind) is not str:
        raise TypeError(f"tick {tick!r:.40} of {kind!r:.40}")
    if not all(number is None or type(number) is int for number in (trial, fleet, lane)):
        raise TypeError(f"trial, fleet or lane of {kind!r:.40}")
    details = {} if data == "{}" else _codec.decode(data)
    if type(details) is not dict:
        raise TypeError(f"data {data!r:.40} of {kind!r:.40}")
    return Event(tick, kind, trial, fleet, lane, details, _number(time_s))


def _meta(connection: sa.Connection, place: Place, study_id: int) -> dict[str, Any]:
    rows = connection.execute(sa.select(META.c.key, META.c.json).where(META.c.study_id == study_id)).all()
    with sound(place, "what it says about itself"):
        return {row.key: _codec.decode(row.json) for row in rows if not row.key.startswith("_")}
