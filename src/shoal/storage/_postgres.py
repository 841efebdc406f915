"""Studies in a PostgreSQL database, by psycopg 3: connecting, reading, and saying what went wrong without the password."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from shoal.errors import StorageError, UsageError
from shoal.storage._database import ConnectionCut
from shoal.storage._place import ServerPlace

if TYPE_CHECKING:
    from shoal.storage._postgres_owner import PostgresOwner

# A connection that has died silently is noticed after a minute; without these, after hours.
_DEFAULTS: Final[dict[str, Any]] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_SETTINGS: Final = (
    # The server notices a dead owner as soon.
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
    # What is acknowledged has to be on the disk, whatever the server's default is.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)
_ADVICE: Final = {
    "refused": "Check that the server runs, and host and port.",
    "could not translate": "Check the host's name.",
    "failed to resolve": "Check the host's name.",
    "No such file": "Check that the server runs, and host and port.",
    "timeout": "Check that the server runs, and host and port.",
    "password": "Give the password in PGPASSWORD or ~/.pgpass, or choose another user.",
    "authentication": "Check user, password and the server's pg_hba.conf.",
    "database": "Check the database's name, or create it: createdb NAME.",
    "role": "Check the user's name.",
    "permission": "The user needs the rights to create tables and to write to them: ask who runs the server.",
    "read-only": "This server takes no writes (a standby?): connect to the one that does.",
    "space": "Free some space on the server, then resume the study.",
    "too many": "Close other connections, or raise max_connections.",
    "connection option": "Check what stands after '?' in the URL.",
}


@final
class PostgresDatabase:
    """A database of a PostgreSQL server."""

    def __init__(self, place: ServerPlace) -> None:
        self.place = place

    @contextlib.contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Turn a database's error into a `StorageError` that says what to do about it."""
        try:
            yield
        except SQLAlchemyError as error:
            kind = ConnectionCut if _was_cut(error) else StorageError
            raise kind(f"{doing} {self.place.what} failed: {self.cause(error)}") from None

    def cause(self, error: SQLAlchemyError) -> str:
        """What the server said, and advice."""
        text = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
        cause = text.splitlines()[0]
        if self.place.password:  # no message of libpq has it; should one ever, it goes no further
            cause = cause.replace(self.place.password, "***")
        advice = next((advice for word, advice in _ADVICE.items() if word in text), "Check the server and its log.")
        return f"{cause.removesuffix('.')}. {advice}"

    def connect(self) -> sa.Connection:
        """A new connection, which shows up at the server as this process of this host."""
        place = self.place
        try:
            engine = sa.create_engine(
                sa.URL.create("postgresql+psycopg", place.user, place.password, place.host, place.port, place.database),
                connect_args={**_DEFAULTS, **dict(place.options), "application_name": me()},
                poolclass=NullPool,
                hide_parameters=True,
            )
        except ImportError as error:
            raise UsageError("a study in PostgreSQL needs psycopg: run `pip install 'shoal[postgresql]'`.") from error
        connection = engine.connect()
        try:
            with connection.begin():
                for setting in _SETTINGS:
                    connection.exec_driver_sql(setting)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one moment of all tables, blocks nobody and can change nothing."""
        with self.connect() as connection:
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    def may_create(self, tables: Sequence[str]) -> None:
        """A database may hold other things beside studies."""

    def stamp(self) -> object:
        """How often each study of the database has been written to."""
        from shoal.storage._tables import META, OWNER_KEY

        with self.explained("reading"), self.reading() as connection:
            if not sa.inspect(connection).has_table(META.name):
                return None
            query = sa.select(META.c.study_id, META.c.json).where(META.c.key == OWNER_KEY).order_by(META.c.study_id)
            return tuple(map(tuple, connection.execute(query)))

    def own(self, study: str) -> PostgresOwner:
        """Become the owner of one study; others of the database may have others."""
        from shoal.storage._postgres_owner import PostgresOwner

        return PostgresOwner(self, study)


def me() -> str:
    """How this process calls itself at a server, which keeps 63 bytes of it."""
    return f"shoal: process {os.getpid()} on host {platform.node()}"[:63]


def _was_cut(error: SQLAlchemyError) -> bool:
    """Whether there was a connection, or a server about to answer, and it has gone."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or str(getattr(error.orig, "sqlstate", None)).startswith("57P")


def passes(error: SQLAlchemyError) -> bool:
    """Whether doing it once more may help: the connection was lost, or the server restarts, is full or saw a deadlock."""
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no answer came from the server
        return error.connection_invalidated or isinstance(error, sa.exc.OperationalError)
    # Connection exception, transaction rollback, insufficient resources, operator intervention.
    return error.connection_invalidated or str(state)[:2] in ("08", "40", "53", "57")
