"""Owning a study in PostgreSQL: an advisory lock, and a mark in the study that every commit counts up.

The lock belongs to the connection, so the server drops it with the process, however that ends, and it names its holder
by the connection's own name. A lock alone is not enough: when a connection is lost the lock goes with it, and another
owner may come before this one is back. Hence the mark. Each transaction changes it from this owner's last one to its
next, and does nothing when it finds anything else: then another owner has taken over, or, after a connection that was
lost during a commit, the transaction is there already and must not be done twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from shoal.errors import StorageError, StudyLockedError
from shoal.storage._postgres import PostgresDatabase, me, passes
from shoal.storage._tables import META, OWNER_KEY

# So long is a connection tried for before the study gives up; what is recorded meanwhile waits in memory.
PATIENCE_S = 600.0
_PAUSE_S, _MAX_PAUSE_S = 0.1, 5.0
_TABLES_LOCK: Final = 0x73686F616C  # held while tables are made

_log = logging.getLogger("shoal.storage")
_live: weakref.WeakSet[PostgresOwner] = weakref.WeakSet()


@final
class PostgresOwner:
    """A study that belongs to this process, from construction to `release` or the end of its connection.

    Args:
        database: where the study lies or will lie.
        study: its name.

    Raises:
        StudyLockedError: another owner has it; the message names that process and host.
    """

    def __init__(self, database: PostgresDatabase, study: str) -> None:
        self._database, self._study = database, study
        self._key = int.from_bytes(hashlib.sha256(f"shoal\0{study}".encode()).digest()[:8], "big", signed=True)
        self._token, self._count, self._study_id = secrets.token_hex(8), 0, -1
        self._connection: sa.Connection | None = None
        self._backend = 0
        with database.explained("opening"):
            self._connect()
        _live.add(self)

    @property
    def connection(self) -> sa.Connection:
        """Used by one thread at a time."""
        assert self._connection is not None
        return self._connection

    @contextlib.contextmanager
    def opening(self) -> Iterator[sa.Connection]:
        """One transaction, in which tables and the study's rows are made or checked."""
        with self._database.explained("opening"), self.connection.begin():
            # Two owners may come to an empty database at once.
            self.connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TABLES_LOCK)))
            yield self.connection

    def settle(self, study_id: int) -> None:
        """Put this owner's mark into the study."""
        self._study_id = study_id
        row = {"study_id": study_id, "key": OWNER_KEY, "json": self._mark()}
        put = insert(META).values(row)
        with self._database.explained("opening"), self.connection.begin():
            self.connection.execute(put.on_conflict_do_update(index_elements=["study_id", "key"], set_=row))

    def commit(self, work: Callable[[sa.Connection], None]) -> None:
        """Do ``work`` in one transaction, durably and exactly once, however often the connection is lost meanwhile."""
        failed_s: float | None = None
        pause_s = _PAUSE_S
        while True:
            try:
                if self._connection is None:
                    self._connect()
                with self.connection.begin():
                    if self._advance():
                        work(self.connection)
                self._count += 1
                if failed_s is not None:
                    _log.warning("%s answers again; nothing was lost.", self._database.place.what)
                return
            except SQLAlchemyError as error:
                cause = self._database.cause(error)
                self._disconnect()
                if not passes(error):
                    raise StorageError(f"writing to {self._database.place.what} failed: {cause}") from None
            if failed_s is None:
                failed_s = time.monotonic()
                _log.warning(
                    "%s cannot be written to (%s) Training goes on, and it is tried again for %.0f s.",
                    self._database.place.what,
                    cause,
                    PATIENCE_S,
                )
            if time.monotonic() - failed_s > PATIENCE_S:
                raise StorageError(
                    f"{self._database.place.what} could not be written to for {PATIENCE_S:.0f} s: {cause}"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def insert(self, table: Any) -> Any:
        """An insert that has ``on_conflict_do_update``."""
        return insert(table)

    def new_trial_ids(self, connection: sa.Connection, count: int) -> Sequence[int]:
        """A block of keys out of the table's own sequence, which other owners and Optuna take from at the same time."""
        query = sa.text("SELECT nextval(pg_get_serial_sequence('trials', 'trial_id')) FROM generate_series(1, :n)")
        return list(connection.scalars(query, {"n": count}))

    def release(self) -> None:
        """Give the ownership back. A second call does nothing."""
        self._disconnect()

    def _connect(self) -> None:
        self._connection = self._database.connect()
        try:
            with self._connection.begin():
                while not self._connection.scalar(sa.select(sa.func.pg_try_advisory_lock(self._key))):
                    self._clear_the_way(self._connection)
                self._backend = int(self._connection.scalar(sa.select(sa.func.pg_backend_pid())) or 0)
        except BaseException:
            self._disconnect()
            raise

    def _clear_the_way(self, connection: sa.Connection) -> None:
        """The lock is taken. If by our own former connection, which the server has not missed yet, end that."""
        holder = connection.execute(
            sa.text(
                "SELECT l.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
                "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
                "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND l.classid::bigint = :high AND l.objid::bigint = :low"
            ),
            {"high": self._key >> 32 & 0xFFFFFFFF, "low": self._key & 0xFFFFFFFF},
        ).first()
        if holder is not None and tuple(holder) == (self._backend, me()):
            connection.execute(sa.select(sa.func.pg_terminate_backend(self._backend)))
            time.sleep(_PAUSE_S)
        elif holder is not None:
            self._refuse(str(holder[1]))

    def _refuse(self, holder: str) -> None:
        name = holder.removeprefix("shoal: ") if holder.startswith("shoal: ") else "another program"
        if self._study_id < 0:
            raise StudyLockedError(
                f"the study {self._study!r} in {self._database.place} is in use by {name}: wait until it ends or stop "
                "it, or choose another name or storage. Reading the study is possible meanwhile."
            )
        raise StudyLockedError(
            f"{name} took the study {self._study!r} in {self._database.place} over while the connection was lost."
        )

    def _mark(self, ahead: int = 0) -> str:
        return json.dumps({"by": me(), "token": self._token, "count": self._count + ahead})

    def _advance(self) -> bool:
        """Count one commit; False when it has been counted already, which means that all of it is stored."""
        mine = sa.and_(META.c.study_id == self._study_id, META.c.key == OWNER_KEY)
        old, new = self._mark(), self._mark(1)
        step = sa.update(META).where(mine, META.c.json == old).values(json=new)
        if self.connection.execute(step).rowcount == 1:
            return True
        found = self.connection.scalar(sa.select(META.c.json).where(mine))
        if found != new:
            by = json.loads(found).get("by", "") if found else ""
            self._refuse(str(by))
        return False

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                connection.invalidate()  # a server that is gone is not asked to roll back first
            with contextlib.suppress(SQLAlchemyError):
                connection.close()

    def _leave_in_child(self) -> None:
        # A child that outlives its parent would keep the connection, and with it the lock, alive.
        if self._connection is not None:
            with contextlib.suppress(Exception):
                os.close(self._connection.connection.driver_connection.fileno())  # type: ignore[union-attr]


def _close_in_child() -> None:
    for owner in list(_live):
        owner._leave_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
