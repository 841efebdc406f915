"""A study file back into records, as one moment of it, without ever making its owner wait."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from shoal.errors import StorageError, did_you_mean
from shoal.records import Direction, EpochRow, Event, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.storage import _codec
from shoal.storage._place import check_header
from shoal.storage._tables import (
    DIRECTIONS,
    EPOCH,
    EVENT,
    FORMAT,
    FORMAT_KEY,
    META,
    STUDIES,
    TRIAL,
    connect,
    explained,
    has_tables,
    transaction,
)


def load(path: Path, name: str | None) -> StudyRecord:
    """Read one study of a file; see `shoal.storage.load_study`."""
    check_header(path)
    if not path.exists():
        raise StorageError(f"there is no study file at {path}: check the path.")
    with explained(path, "reading"), _reader(path) as connection, transaction(connection, "DEFERRED"):
        if not has_tables(connection, path):
            raise StorageError(f"{path} is empty and holds no study: check the path.")
        study_id, name = _find(connection, path, name)
        return StudyRecord(
            name=name,
            direction=direction_of(connection, study_id),
            trials=_trials(connection, study_id),
            events=_events(connection, study_id),
            meta=_meta(connection, study_id),
        )


def _reader(path: Path) -> sa.Connection:
    connection = connect(path, "mode=ro")
    try:
        connection.exec_driver_sql("SELECT 1 FROM sqlite_master").fetchall()
    except OperationalError:
        connection.close()
        if Path(f"{path.resolve()}-wal").exists():
            raise
        # A closed study in a folder that cannot be written: SQLite wants to share memory with writers that cannot be.
        return connect(path, "mode=ro&immutable=1")
    return connection


def study_format(connection: sa.Connection, study_id: int) -> Any:
    """The format of Shoal's own rows of a study, or None when the study is plain Optuna's."""
    if not sa.inspect(connection).has_table(META.name):
        return None
    query = sa.select(META.c.json).where(META.c.study_id == study_id, META.c.key == FORMAT_KEY)
    text = connection.scalar(query)
    return None if text is None else _codec.decode(text)


def check_format(path: Path, name: str, found: object) -> None:
    """Raise `StorageError` unless Shoal's own rows of a study have the format of this version."""
    if found != FORMAT:
        raise StorageError(
            f"the study {name!r} in {path} was written by another version of Shoal (format {found}, this version knows "
            f"{FORMAT}): use that version, or choose another storage or name."
        )


def direction_of(connection: sa.Connection, study_id: int) -> Direction:
    """Whether smaller or larger values are better in a study."""
    query = sa.select(DIRECTIONS.c.direction).where(DIRECTIONS.c.study_id == study_id)
    return "maximize" if connection.scalar(query) == "MAXIMIZE" else "minimize"


def _find(connection: sa.Connection, path: Path, name: str | None) -> tuple[int, str]:
    studies = connection.execute(sa.select(STUDIES.c.study_id, STUDIES.c.study_name).order_by(STUDIES.c.study_id)).all()
    formats = {row.study_name: study_format(connection, row.study_id) for row in studies}
    ids = {row.study_name: int(row.study_id) for row in studies}
    ours = [study for study, found in formats.items() if found is not None]
    if name is None:
        if len(ours) > 1:
            raise StorageError(f"{path} holds {len(ours)} studies: name one of {', '.join(map(repr, ours))}.")
        if not ours:
            raise StorageError(f"{path} holds no study of Shoal's: read it with optuna.load_study.")
        name = ours[0]
    if name not in ids:
        raise StorageError(f"{path} holds no study {name!r}.{did_you_mean(name, ours) if ours else ''}")
    if formats[name] is None:
        raise StorageError(f"the study {name!r} in {path} belongs to plain Optuna: read it with optuna.load_study.")
    check_format(path, name, formats[name])
    return ids[name], name


def _trials(connection: sa.Connection, study_id: int) -> tuple[TrialRecord, ...]:
    # Columns by position: a study of 10,000 trials has 300,000 rows, and access by name doubles the time.
    epochs = connection.execute(
        sa.select(EPOCH.c.trial, EPOCH.c.epoch, EPOCH.c.train_loss, EPOCH.c.value, EPOCH.c.metrics, EPOCH.c.time_s)
        .where(EPOCH.c.study_id == study_id)
        .order_by(EPOCH.c.trial, EPOCH.c.epoch)
    )
    rows = {
        trial: tuple(EpochRow(trial, e[1], _number(e[2]), _number(e[3]), _codec.decode(e[4]), e[5]) for e in group)
        for trial, group in itertools.groupby(epochs, key=lambda epoch: int(epoch[0]))
    }
    trials = connection.execute(sa.select(TRIAL).where(TRIAL.c.study_id == study_id).order_by(TRIAL.c.number))
    return tuple(_trial(row, rows.get(row.number, ())) for row in trials)


def _trial(row: Any, rows: tuple[EpochRow, ...]) -> TrialRecord:
    spec = _codec.decode(row.spec)
    state = TrialState(row.state)
    return TrialRecord(
        spec=TrialSpec(row.number, int(row.seed), spec["params"], spec["distributions"]),
        state=state,
        value=None if row.value is None else float(_codec.decode(row.value)),
        epoch=rows[-1].epoch if state is TrialState.RUNNING and rows else row.epoch,
        reason=row.reason,
        rows=rows,
        time_s=row.time_s,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _events(connection: sa.Connection, study_id: int) -> tuple[Event, ...]:
    rows = connection.execute(sa.select(EVENT).where(EVENT.c.study_id == study_id).order_by(EVENT.c.seq))
    return tuple(Event(r.tick, r.kind, r.trial, r.fleet, r.lane, _codec.decode(r.data), r.time_s) for r in rows)


def _meta(connection: sa.Connection, study_id: int) -> dict[str, Any]:
    rows = connection.execute(sa.select(META.c.key, META.c.json).where(META.c.study_id == study_id)).all()
    return {row.key: _codec.decode(row.json) for row in rows if not row.key.startswith("_")}
