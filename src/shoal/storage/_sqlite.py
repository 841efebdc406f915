"""Studies in an SQLite file: a write-ahead log, an advisory lock beside it, and a file that may not be what it seems."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from shoal.errors import StorageError
from shoal.storage._lock import OwnerLock
from shoal.storage._place import FilePlace, check_folder, check_header

_MAX_CELL_BYTES = 256 * 2**20  # a damaged length must not become an allocation

_LAST_TRIAL = "SELECT max(trial_id) FROM trials"

_ADVICE = {
    "full": "Free some space, then resume the study.",
    "locked": "Another program holds the file for writing: close it, then resume the study.",
    "readonly": "Change the permissions of the file and of its folder, or choose another storage.",
    "unable to open": "Check that the folder exists and can be written.",
    "not a database": "The file is damaged or not SQLite: restore a copy or choose another storage.",
    "malformed": "The file is damaged: restore a copy or choose another storage.",
}


@final
class SqliteDatabase:
    """A study file."""

    def __init__(self, place: FilePlace) -> None:
        self.place = place

    @contextlib.contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn a database's error into a `StorageError` that says what to do about it."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, sqlite3.Warning) as error:
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            advice = next((advice for word, advice in _ADVICE.items() if word in cause), "Check the disk and the file.")
            raise StorageError(f"{doing} {self.place.what} failed: {cause}. {advice}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of all tables, blocks nobody and can change nothing."""
        path = self.place.path
        check_header(path)
        if not path.exists():
            raise StorageError(f"there is no study file at {path}: check the path.")
        with _reader(path) as connection, transaction(connection, "DEFERRED"):
            _check_schema(connection, path)
            yield connection

    def may_create(self, tables: Sequence[str]) -> None:
        """Raise `StorageError` unless Optuna's tables may be created beside these."""
        if tables:
            raise StorageError(f"{self.place} is an SQLite file but holds no Optuna study: choose another storage.")

    def stamp(self) -> object:
        """Times and sizes of the file and of its log."""
        return tuple(_stamp(f"{self.place.path}{suffix}") for suffix in ("", "-wal"))

    def own(self, study: str) -> SqliteOwner:
        """Become the owner of the file, whichever of its studies is meant."""
        check_folder(self.place.path)
        return SqliteOwner(self)


@final
class SqliteOwner:
    """A study file that belongs to this process."""

    def __init__(self, database: SqliteDatabase) -> None:
        self._database = database
        self._path = database.place.path.resolve()
        self._lock = OwnerLock(database.place.path)
        try:
            with database.explained("opening"):
                self.connection = connect(database.place.path, "mode=rwc")
            self._file = os.stat(self._path)
            # Of our last commit: time and size of the file, and the last trial's key.
            self._left: tuple[int, int] | None = None
            self._last_trial: int | None = None
        except BaseException:
            self._lock.release()
            raise

    @contextlib.contextmanager
    def opening(self) -> Iterator[sa.Connection]:
        """One transaction, in which tables and the study's rows are made or checked."""
        with self._database.explained("opening"), transaction(self.connection):
            _check_schema(self.connection, self._database.place.path)
            yield self.connection

    def settle(self, study_id: int) -> None:
        """Set what makes commits durable and readers free."""
        with self._database.explained("opening"):
            # Readers and the writer never wait for each other in a write-ahead log; the setting stays with the file.
            self.connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            # NORMAL would wait for the disk at checkpoints only: a power cut could take back what was acknowledged.
            self.connection.exec_driver_sql("PRAGMA synchronous=FULL")

    def commit(self, work: Callable[[sa.Connection], None]) -> None:
        """Do ``work`` in one transaction, and wait for the disk once."""
        self._lock.keep()
        self._check_content()
        with self._database.explained("writing to"), transaction(self.connection):
            work(self.connection)
            last: int | None = self.connection.exec_driver_sql(_LAST_TRIAL).scalar()
        self._check_in_place()  # afterwards: what is acknowledged has to be in the file that others open
        self._left, self._last_trial = _stamp(str(self._path)), last

    def _check_content(self) -> None:
        """Who writes to the file between commits is let in (a note in optuna-dashboard), or overwrites it, and then SQLite would
        put its own pages between the new ones."""
        if self._left is None or _stamp(str(self._path)) == self._left:
            return
        self._check_in_place()
        cause = "it holds another study or an earlier state of this one"
        try:
            with connect(self._path, "mode=ro") as fresh:  # our own connection remembers pages
                found = fresh.exec_driver_sql(_LAST_TRIAL).scalar()
                said = str(fresh.exec_driver_sql("PRAGMA quick_check(1)").scalar()).splitlines()[-1]
            if found == self._last_trial and said == "ok":
                return
            cause = cause if said == "ok" else said
        except (SQLAlchemyError, sqlite3.Error) as error:
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StorageError(
            f"the study file {self._path} was overwritten while this process wrote to it ({cause}): what is in it now cannot be "
            "relied on. Put a copy back, if there is one, and resume the study."
        )

    def _check_in_place(self) -> None:
        """SQLite goes on writing to a file that was removed or replaced, which is gone when it is closed."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._file, os.stat(self._path)):
                return
        raise StorageError(
            f"the study file {self._path} was removed, moved or replaced while this process wrote to it: what came since is not "
            "in it. Put the file back, if there is a copy, and resume the study."
        )

    def insert(self, table: Any) -> Any:
        """An insert that has ``on_conflict_do_update``."""
        return insert(table)

    def new_trial_ids(self, connection: sa.Connection, count: int) -> Sequence[int]:
        """The next keys: nobody else can take one inside an immediate transaction."""
        trials = sa.table("trials", sa.column("trial_id"))
        first = (connection.scalar(sa.select(sa.func.max(trials.c.trial_id))) or 0) + 1
        return range(first, first + count)

    def release(self) -> None:
        """Give the ownership back. A second call does nothing."""
        self.connection.close()
        self._lock.release()


def connect(path: Path, mode: str) -> sa.Connection:
    """A connection without implicit transactions: SQLAlchemy's begin late, and then fail where another could wait.

    Args:
        path: the study file.
        mode: SQLite's URI options, such as ``mode=ro``.
    """

    def raw() -> sqlite3.Connection:
        uri = f"file:{quote(str(path.resolve()))}?{mode}"
        made = sqlite3.connect(uri, uri=True, timeout=30.0, check_same_thread=False)
        # As SQLite advises for files from elsewhere: nothing that a schema names is run, and pages are checked.
        made.execute("PRAGMA trusted_schema=OFF")
        made.execute("PRAGMA cell_size_check=ON")
        made.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_CELL_BYTES)
        return made

    engine = sa.create_engine("sqlite://", creator=raw, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    return engine.connect()


@contextlib.contextmanager
def transaction(connection: sa.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """All of it or nothing. A reader takes ``DEFERRED``: it sees one moment of the file and blocks nobody."""
    connection.exec_driver_sql(f"BEGIN {kind}")
    try:
        yield
        connection.exec_driver_sql("COMMIT")
    except BaseException:
        with contextlib.suppress(SQLAlchemyError):  # after a full disk SQLite has rolled back by itself
            connection.exec_driver_sql("ROLLBACK")
        raise


def _reader(path: Path) -> sa.Connection:
    # Read-only connections cannot remove the log and its index, which they make where there are none: a study that is at rest is
    # opened so that SQLite tidies up, and nothing else is written.
    at_rest = not any(Path(f"{path.resolve()}{suffix}").exists() for suffix in ("-wal", "-journal"))
    connection = connect(path, "mode=rw" if at_rest else "mode=ro")
    try:
        if at_rest:
            connection.exec_driver_sql("PRAGMA query_only=ON")
        connection.exec_driver_sql("SELECT 1 FROM sqlite_master").fetchall()
    except OperationalError:
        connection.close()
        if Path(f"{path.resolve()}-wal").exists():
            raise
        # A closed study in a folder that cannot be written: SQLite wants to share memory with writers that cannot be.
        return connect(path, "mode=ro&immutable=1")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_schema(connection: sa.Connection, path: Path) -> None:
    """A file can hold SQL of its own, which runs when it is read or written; a study has none."""
    query = (
        "SELECT type, name FROM sqlite_master WHERE type IN ('view', 'trigger') "
        "OR (type = 'table' AND sql LIKE 'CREATE VIRTUAL%') LIMIT 1"
    )
    found = connection.exec_driver_sql(query).first()
    if found is not None:
        kind = "virtual table" if found[0] == "table" else found[0]
        raise StorageError(f"{path} holds a {kind}, {found[1]!r:.80}, which no study has: it is not opened.")


def _stamp(path: str) -> tuple[int, int]:
    try:
        facts = os.stat(path)
    except OSError:
        return (0, 0)
    return (facts.st_mtime_ns, facts.st_size)
