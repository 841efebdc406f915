"""Becoming a study's owner: make or check its rows before anything is changed in the file."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.study import StudyDirection

from shoal.errors import StorageError
from shoal.records import Direction
from shoal.storage import _codec
from shoal.storage._load import check_format, direction_of, study_format
from shoal.storage._tables import FORMAT, FORMAT_KEY, META, STUDIES, TRIAL, TRIALS, create_tables, transaction


def open_study(connection: sa.Connection, path: Path, name: str, direction: Direction) -> tuple[int, list[int]]:
    """Create a study, or check that an existing one may be continued.

    Returns:
        The study's key, and Optuna's trial keys by trial number.

    Raises:
        StorageError: the study is not Shoal's, has the other direction, or has been continued by Optuna. A file that is
            refused is not changed.
    """
    with transaction(connection):
        create_tables(connection, path)
        study_id = connection.scalar(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name))
        if study_id is None:
            study_id, trial_ids = _create(connection, name, direction), []
        else:
            _check(connection, path, study_id, name, direction)
            trial_ids = _trial_ids(connection, path, study_id, name)
    # Readers and the writer never wait for each other in a write-ahead log; the setting stays with the file.
    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    # NORMAL would wait for the disk at checkpoints only: a power cut could take back what was acknowledged.
    connection.exec_driver_sql("PRAGMA synchronous=FULL")
    return study_id, trial_ids


def _create(connection: sa.Connection, name: str, direction: Direction) -> int:
    connection.execute(sa.insert(models.StudyModel.__table__).values(study_name=name))
    study_id = int(connection.scalars(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)).one())
    value = StudyDirection.MAXIMIZE if direction == "maximize" else StudyDirection.MINIMIZE
    row = {"study_id": study_id, "direction": value, "objective": 0}
    connection.execute(sa.insert(models.StudyDirectionModel.__table__).values(row))
    mark = {"study_id": study_id, "key": FORMAT_KEY, "json": _codec.encode(FORMAT, "format")}
    connection.execute(sa.insert(META).values(mark))
    return study_id


def _check(connection: sa.Connection, path: Path, study_id: int, name: str, direction: Direction) -> None:
    found = study_format(connection, study_id)
    if found is None:
        raise StorageError(f"the study {name!r} in {path} belongs to plain Optuna; choose another storage or name.")
    check_format(path, name, found)
    if (own := direction_of(connection, study_id)) != direction:
        raise StorageError(
            f"the study {name!r} in {path} wants to {own} its value, not to {direction} it: choose another name, or "
            "the same direction."
        )


def _trial_ids(connection: sa.Connection, path: Path, study_id: int, name: str) -> list[int]:
    query = sa.select(TRIALS.c.number, TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    trials = connection.execute(query.order_by(TRIALS.c.number)).all()
    ours = set(connection.scalars(sa.select(TRIAL.c.number).where(TRIAL.c.study_id == study_id)))
    if foreign := [trial.number for trial in trials if trial.number not in ours]:
        raise StorageError(
            f"the study {name!r} in {path} has trials that Optuna added by itself ({len(foreign)}, the first is number "
            f"{foreign[0]}); Shoal cannot replay them: choose another storage or name."
        )
    return [trial.trial_id for trial in trials]
