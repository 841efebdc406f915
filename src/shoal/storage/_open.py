"""Becoming a study's owner: make or check its rows before anything is changed in the file."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from optuna.storages._rdb import models
from optuna.study import StudyDirection

from shoal.errors import StorageError
from shoal.records import Direction
from shoal.storage import _codec
from shoal.storage._database import Database
from shoal.storage._load import check_format, directions_of, study_format
from shoal.storage._place import Place
from shoal.storage._tables import FORMAT, FORMAT_KEY, META, STUDIES, TRIAL, TRIALS, create_tables


def open_study(
    connection: sa.Connection, database: Database, name: str, directions: Sequence[Direction]
) -> tuple[int, list[int]]:
    """Create a study, or check that an existing one may be continued; inside the caller's transaction.

    Returns:
        The study's key, and Optuna's trial keys by trial number.

    Raises:
        StorageError: the study is not Shoal's, has other directions, or has been continued by Optuna. What is refused
            is not changed.
    """
    create_tables(connection, database)
    study_id = connection.scalar(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name))
    if study_id is None:
        return _create(connection, name, directions), []
    _check(connection, database.place, study_id, name, directions)
    return study_id, _trial_ids(connection, database.place, study_id, name)


def _create(connection: sa.Connection, name: str, directions: Sequence[Direction]) -> int:
    connection.execute(sa.insert(models.StudyModel.__table__).values(study_name=name))
    study_id = int(connection.scalars(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_name == name)).one())
    rows = [
        {"study_id": study_id, "direction": StudyDirection[direction.upper()], "objective": objective}
        for objective, direction in enumerate(directions)
    ]
    connection.execute(sa.insert(models.StudyDirectionModel.__table__), rows)
    mark = {"study_id": study_id, "key": FORMAT_KEY, "json": _codec.encode(FORMAT, "format")}
    connection.execute(sa.insert(META).values(mark))
    return study_id


def _check(connection: sa.Connection, place: Place, study_id: int, name: str, directions: Sequence[Direction]) -> None:
    found = study_format(connection, study_id)
    if found is None:
        raise StorageError(f"the study {name!r} in {place} belongs to plain Optuna; choose another storage or name.")
    check_format(place, name, found)
    own, wanted = directions_of(connection, study_id), tuple(directions)
    if len(own) == len(wanted) == 1 and own != wanted:
        raise StorageError(
            f"the study {name!r} in {place} wants to {own[0]} its value, not to {wanted[0]} it: choose another name, or "
            "the same direction."
        )
    if own != wanted:
        raise StorageError(
            f"the study {name!r} in {place} has the directions {', '.join(own)}, not {', '.join(wanted)}: choose another name, or "
            "the same objectives."
        )


def _trial_ids(connection: sa.Connection, place: Place, study_id: int, name: str) -> list[int]:
    query = sa.select(TRIALS.c.number, TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
    trials = connection.execute(query.order_by(TRIALS.c.number)).all()
    ours = set(connection.scalars(sa.select(TRIAL.c.number).where(TRIAL.c.study_id == study_id)))
    if foreign := [trial.number for trial in trials if trial.number not in ours]:
        raise StorageError(
            f"the study {name!r} in {place} has trials that Optuna added by itself ({len(foreign)}, the first is number "
            f"{foreign[0]}); Shoal cannot replay them: choose another storage or name."
        )
    return [trial.trial_id for trial in trials]
