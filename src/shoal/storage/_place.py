"""Where a study lives: from what the user wrote to a file or a server, or to a sentence about what to write instead.

A URL may carry a password, so no message repeats one: a place is shown without it, and of a URL that cannot be used only
the scheme is named.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias, final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from shoal.errors import StorageError

SUFFIXES = (".db", ".sqlite", ".sqlite3")
DEFAULT_NAME: Final = "shoal"
_MAGIC = b"SQLite format 3\0"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_MISTYPED = re.compile(r"\s*postgres\w*(\+\w+)?:", re.IGNORECASE)  # a URL that lacks a slash, and may have a password
_MAX_NAME = 120  # characters: names of files are made of it
_ADVICE = 'write storage="sqlite:///study.db", "postgresql://user@host/database", or a path that ends in .db, .sqlite or .sqlite3'


@final
@dataclass(frozen=True, slots=True)
class FilePlace:
    """A study file, of SQLite's format."""

    path: Path

    @property
    def what(self) -> str:
        """What a message calls it."""
        return f"the study file {self.path}"

    @property
    def optuna_url(self) -> str:
        """What Optuna opens it by."""
        return f"sqlite:///{self.path}"

    @property
    def stem(self) -> Path:
        """Beside which files of the study lie."""
        return self.path.with_suffix("")

    def __str__(self) -> str:
        return str(self.path)


@final
@dataclass(frozen=True, slots=True)
class ServerPlace:
    """A database of a PostgreSQL server. What is missing here, libpq finds in its environment and in ``~/.pgpass``."""

    database: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # of libpq, such as sslmode

    @property
    def what(self) -> str:
        """What a message calls it."""
        return f"the database {self}"

    @property
    def optuna_url(self) -> str:
        """What Optuna opens it by; it has the password in it."""
        secret = "" if self.password is None else f":{quote(self.password, safe='')}"
        return self._url("postgresql+psycopg", secret, self.options)

    @property
    def stem(self) -> Path:
        """Beside which files of the study lie: a name in the current folder."""
        return Path(quote(self.database, safe=" "))

    def __str__(self) -> str:
        return self._url("postgresql", "", [option for option in self.options if not _is_secret(option[0])])

    def _url(self, scheme: str, secret: str, options: Iterable[tuple[str, str]]) -> str:
        user = "" if self.user is None else f"{quote(self.user, safe='')}{secret}@"
        host = self.host or ""
        host = f"[{host}]" if ":" in host else host
        port = "" if self.port is None else f":{self.port}"
        query = "&".join(f"{quote(key)}={quote(value, safe='')}" for key, value in options)
        return f"{scheme}://{user}{host}{port}/{quote(self.database, safe='')}{'?' if query else ''}{query}"


def _is_secret(option: str) -> bool:
    return any(word in option.lower() for word in ("password", "passwd", "secret"))


Place: TypeAlias = "FilePlace | ServerPlace"


def place_of(url: str | Path) -> Place:
    """The file or database that a storage URL or a plain path names.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, a path ending in one of `SUFFIXES`, or
            ``postgresql://user:password@host:port/database``.

    Raises:
        StorageError: another kind of database, a database in memory, or nothing that can be recognised.

    >>> str(place_of("postgresql://ann:secret@db.example/tuning"))
    'postgresql://ann@db.example/tuning'
    """
    scheme, separator, rest = str(url).partition("://")
    if separator and not _SCHEME.fullmatch(scheme):
        raise StorageError(f"this storage is neither a database's URL nor a path to a study file: {_ADVICE}.")
    if not separator:
        if str(url).lower().endswith(SUFFIXES) and not _MISTYPED.match(str(url)):
            return FilePlace(Path(url).expanduser())
        shown = "this storage" if "@" in str(url) else f"storage {str(url)!r}"
        raise StorageError(f"{shown} is neither a database's URL nor a path to a study file: {_ADVICE}.")
    if scheme in ("postgresql", "postgresql+psycopg"):
        return _server(str(url))
    if scheme == "postgres" or scheme.startswith("postgresql+"):
        raise StorageError(f"a storage of the kind {scheme}:// cannot be used: write postgresql:// instead.")
    if scheme not in ("sqlite", "sqlite+pysqlite"):
        raise StorageError(f"a storage of the kind {scheme}:// cannot be used, only SQLite and PostgreSQL: {_ADVICE}.")
    if rest in ("", "/", "/:memory:"):
        raise StorageError(f"a study must live in a file, not in a database in memory: {_ADVICE}.")
    if not rest.startswith("/"):
        raise StorageError(f"an SQLite URL has three slashes before the path, four before an absolute one: {_ADVICE}.")
    if "?" in rest:
        raise StorageError(f"options after '?' in an SQLite URL are not supported: {_ADVICE}.")
    return FilePlace(Path(rest[1:]))


def _server(url: str) -> ServerPlace:
    mistake = StorageError(
        "the PostgreSQL URL cannot be read: write postgresql://user@host:5432/database; in a user name or password the "
        "characters @ : / ? # % [ ] are written as urllib.parse.quote(text, safe='') has them."
    )
    try:
        parts = urlsplit(url)
        port = parts.port
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:  # its text repeats parts of the URL
        raise mistake from None
    database = unquote(parts.path.removeprefix("/"))
    if "@" in parts.path or parts.fragment or "@" in (parts.username or "") or "/" in database:
        raise mistake
    if not database:
        raise StorageError("a PostgreSQL URL names a database: postgresql://user@host:5432/database.")
    given = dict(options)
    password = None if parts.password is None else unquote(parts.password)
    return ServerPlace(
        database,
        parts.hostname,
        port,
        None if parts.username is None else unquote(parts.username),
        given.pop("password", None) if password is None else password,
        tuple(given.items()),
    )


def has_password(url: str | Path) -> bool:
    """Whether a storage URL carries a password; False for whatever is no such URL."""
    try:
        place = place_of(url)
    except StorageError:
        return "@" in str(url) and "://" in str(url)
    if not isinstance(place, ServerPlace):
        return False
    return place.password is not None or any(_is_secret(key) for key, _ in place.options)


def shown(url: str | Path) -> str:
    """A storage as it may be printed: as it was given, but without a password."""
    return str(place_of(url)) if "://" in str(url) and not str(url).startswith("sqlite") else str(url)


def file_beside(place: Place, study: str, suffix: str) -> Path:
    """Where a file or folder of a study lies; a study with a name of its own has files of its own.

    >>> file_beside(FilePlace(Path("runs/digits.db")), "shoal", ".weights")
    PosixPath('runs/digits.weights')
    >>> file_beside(FilePlace(Path("runs/digits.db")), "a/b", ".weights")
    PosixPath('runs/digits.a%2Fb.weights')
    """
    own = "" if study == DEFAULT_NAME else f".{quote(study, safe=' ')}"
    if len(own) > _MAX_NAME:  # systems have names of 255 bytes, and a letter may be quoted as twelve
        own = f"{own[:80]}~{hashlib.sha256(study.encode()).hexdigest()[:16]}"
    return place.stem.with_name(f"{place.stem.name}{own}{suffix}")


def title_of(place: Place, study: str) -> str:
    """What a report of a study is headed with."""
    name = place.database if isinstance(place, ServerPlace) else place.path.stem
    return name if study == DEFAULT_NAME else f"{name}: {study}"


def check_name(name: str) -> None:
    """Raise `StorageError` unless a study may have this name."""
    if not name:
        raise StorageError("a study needs a name: the given one is empty.")
    if len(name) > _MAX_NAME or not name.isprintable():
        raise StorageError(f"a study's name has at most {_MAX_NAME} characters, all printable: choose another.")


def check_folder(path: Path) -> None:
    """Raise `StorageError` unless a study file may be created or opened for writing at ``path``."""
    if not path.parent.is_dir():
        raise StorageError(f"the folder {path.parent} of the study file {path.name} does not exist: create it first.")
    if path.exists() and not os.access(path, os.W_OK):
        raise StorageError(
            f"the study file {path} cannot be written: change its permissions or choose another storage."
        )
    check_header(path)


def check_header(path: Path) -> None:
    """Raise `StorageError` when something other than an SQLite file (or an empty file) lies at ``path``."""
    if not path.exists():
        return
    if not path.is_file():
        raise StorageError(f"{path} is not a file: choose another path for the study.")
    try:
        with path.open("rb") as stream:
            magic = stream.read(len(_MAGIC))
    except OSError as error:
        raise StorageError(f"the study file {path} cannot be read: {error.strerror}.") from error
    # The power was cut in the first transaction: a file with its length and nothing in it, and a journal that says so.
    unborn = not any(magic) and Path(f"{path.resolve()}-journal").exists()
    if magic not in (b"", _MAGIC) and not unborn:
        raise StorageError(f"{path} is not an SQLite file: choose another path, nothing in it was changed.")
