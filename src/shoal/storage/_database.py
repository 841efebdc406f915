"""The seam between studies and databases: what SQLite and PostgreSQL do differently, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar, final

import sqlalchemy as sa

from shoal.errors import StorageError
from shoal.storage._place import FilePlace, Place


class Database(Protocol):
    """A place where studies lie."""

    @property
    def place(self) -> Place:
        """Where it is."""
        ...

    def explained(self, doing: str) -> AbstractContextManager[None]:
        """Turn a database's error into a `StorageError` that says what to do about it."""
        ...

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """A connection that sees one moment of all tables, blocks nobody and can change nothing."""
        ...

    def may_create(self, tables: Sequence[str]) -> None:
        """Raise `StorageError` unless Optuna's tables may be created beside these."""
        ...

    def stamp(self) -> object:
        """Something that differs when what is stored may differ, and is cheap to get."""
        ...

    def own(self, study: str) -> Owner:
        """Become the owner.

        Raises:
            StudyLockedError: another process, or another store of this process, is.
        """
        ...


class Owner(Protocol):
    """A database whose study belongs to this process until it is released."""

    @property
    def connection(self) -> sa.Connection:
        """Used by one thread at a time."""
        ...

    def opening(self) -> AbstractContextManager[sa.Connection]:
        """One transaction, in which tables and the study's rows are made or checked."""
        ...

    def settle(self, study_id: int) -> None:
        """The study is there: from now on `commit` may be called."""
        ...

    def commit(self, work: Callable[[sa.Connection], None]) -> None:
        """Do ``work`` in one transaction, durably and exactly once.

        Args:
            work: Called with a connection, and again when that was lost before the transaction was complete.

        Raises:
            StorageError: it could not be done; then nothing of it is stored.
        """
        ...

    def insert(self, table: Any) -> Any:
        """An insert that has ``on_conflict_do_update``."""
        ...

    def new_trial_ids(self, connection: sa.Connection, count: int) -> Sequence[int]:
        """Keys for new rows of Optuna's ``trials``, rising, taken by nobody else; inside a transaction."""
        ...

    def release(self) -> None:
        """Give the ownership back. A second call does nothing."""
        ...


@final
class ConnectionCut(StorageError):
    """The connection was lost in the middle of something."""


# Reading and opening are begun again when they are cut off: first soon, then when a server may have been started again.
_PAUSES_S: Final = (0.1, 0.5, 2.0, 5.0)
_T = TypeVar("_T")


def whole(work: Callable[[], _T]) -> _T:
    """What ``work`` returns, begun again when the connection is cut off meanwhile.

    Raises:
        ConnectionCut: It is cut off again and again.
    """
    for pause_s in _PAUSES_S:
        try:
            return work()
        except ConnectionCut:
            time.sleep(pause_s)
    return work()


def database_of(place: Place) -> Database:
    """The database at a place; nothing is opened yet."""
    if isinstance(place, FilePlace):
        from shoal.storage._sqlite import SqliteDatabase

        return SqliteDatabase(place)
    from shoal.storage._postgres import PostgresDatabase

    return PostgresDatabase(place)
