"""The tables of a study, and whether a file or database has the ones we know.

Optuna's tables are created from Optuna's own models and stamped as Optuna stamps new ones, so that Optuna neither
migrates nor complains. Only writing needs Optuna: what reading needs of its tables is named here by hand.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from shoal.errors import StorageError
from shoal.storage._database import Database

# The revision of Optuna's tables that this version was written against and tested with.
REVISION = "v3.2.0.a"
# Raised when shoal's own tables change their meaning.
FORMAT = 1
# A key of shoal_meta that begins with an underscore is Shoal's own and is not part of a `StudyRecord`.
FORMAT_KEY = "_format"
# Under which a database that several may write to keeps its present owner's mark.
OWNER_KEY = "_owner"

_metadata = sa.MetaData()
META = sa.Table(
    "shoal_meta",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("json", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)
TRIAL = sa.Table(
    "shoal_trial",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("seed", sa.Text, nullable=False),  # text: a seed of 64 bits overflows SQLite's signed integers
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # JSON: a NULL could not tell "no value" from "the value is NaN". Where there is more to say, an object (`_codec.judged`).
    sa.Column("value", sa.Text),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
EPOCH = sa.Table(
    "shoal_epoch",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("trial", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("train_loss", sa.Float),  # here NULL is NaN, as SQLite has it; infinities are stored as they are
    sa.Column("value", sa.Float),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
# Trials whose hyperparameters moved. A file of an earlier version has no such table until it is opened for writing.
TRAJECTORY = sa.Table(
    "shoal_trajectory",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("trial", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("moved", sa.Text, nullable=False),  # JSON: name -> list of numbers
    sqlite_with_rowid=False,
)
EVENT = sa.Table(
    "shoal_event",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("tick", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("trial", sa.Integer),
    sa.Column("fleet", sa.Integer),
    sa.Column("lane", sa.Integer),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("time_s", sa.Float, nullable=False),
    sqlite_with_rowid=False,
)
_ALEMBIC = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
STUDIES = sa.table("studies", sa.column("study_id"), sa.column("study_name"))
DIRECTIONS = sa.table("study_directions", sa.column("study_id"), sa.column("direction"), sa.column("objective"))
TRIALS = sa.table("trials", sa.column("trial_id"), sa.column("number"), sa.column("study_id"))


def has_tables(connection: sa.Connection, database: Database) -> bool:
    """True for a place with Optuna's tables, False for one that may get them.

    Raises:
        StorageError: other tables in an SQLite file, or a revision of Optuna's tables that this version does not know.
    """
    names = set(sa.inspect(connection).get_table_names())
    if "studies" not in names:
        database.may_create(sorted(names))
        return False
    found = connection.scalar(sa.select(_ALEMBIC.c.version_num)) if _ALEMBIC.name in names else None
    if found != REVISION:
        raise StorageError(
            f"the tables of {database.place} have the schema revision {found or 'none'}, which is unknown here (this "
            f"version of Shoal knows {REVISION}): choose another storage, or bring the tables up to date with "
            "'optuna storage upgrade'."
        )
    return True


def create_tables(connection: sa.Connection, database: Database) -> None:
    """Create what is missing of Optuna's and of Shoal's tables, inside the caller's transaction.

    Raises:
        StorageError: the place, or the Optuna that is installed, has tables that this version does not know.
    """
    import optuna
    from optuna.storages._rdb import models

    if (head := installed_revision()) != REVISION:
        raise StorageError(
            f"Optuna {optuna.__version__} writes tables of the schema revision {head}, which is unknown here (this "
            f"version of Shoal knows {REVISION}): update Shoal or install an older Optuna."
        )
    if not has_tables(connection, database):
        models.BaseModel.metadata.create_all(connection)
        version: dict[str, Any] = {"schema_version": models.SCHEMA_VERSION, "library_version": optuna.__version__}
        connection.execute(sa.insert(models.VersionInfoModel).values(version_info_id=1, **version))
        _ALEMBIC.create(connection)
        connection.execute(sa.insert(_ALEMBIC).values(version_num=REVISION))
    _metadata.create_all(connection)


def installed_revision() -> str:
    """The newest revision among the migrations of the Optuna that is installed.

    Read from their text: asking Alembic means importing it, which takes longer than creating the file.
    """
    from optuna.storages import _rdb

    folder = Path(_rdb.__file__).parent / "alembic" / "versions"
    texts = [file.read_text() for file in folder.glob("*.py")]
    revisions, downs = (
        {match[1] for text in texts if (match := re.search(rf'^{word}\s*=\s*"([^"]+)"', text, re.MULTILINE))}
        for word in ("revision", "down_revision")
    )
    return ", ".join(sorted(revisions - downs)) or "none"
