"""Where a study lives: from what the user wrote to a path, or to a sentence about what to write instead.

A URL may carry a password, so a message never repeats one: of a URL it names the scheme only.
"""

from __future__ import annotations

import os
from pathlib import Path

from shoal.errors import StorageError

SUFFIXES = (".db", ".sqlite", ".sqlite3")
_MAGIC = b"SQLite format 3\0"
_ADVICE = 'write storage="sqlite:///study.db" or a path that ends in .db, .sqlite or .sqlite3'


def study_path(url: str) -> Path:
    """The file that a storage URL or a plain path names.

    Args:
        url: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, or a path ending in one of `SUFFIXES`.

    Raises:
        StorageError: another kind of database, a database in memory, or no file name that can be recognised.
    """
    scheme, separator, rest = str(url).partition("://")
    if not separator:
        if str(url).lower().endswith(SUFFIXES):
            return Path(url).expanduser()
        shown = "this storage" if "@" in str(url) else f"storage {str(url)!r}"
        raise StorageError(f"{shown} is neither an SQLite URL nor a path to a study file: {_ADVICE}.")
    if scheme not in ("sqlite", "sqlite+pysqlite"):
        raise StorageError(
            f"a storage of the kind {scheme}:// cannot be used: only sqlite works in this version; {_ADVICE}."
        )
    if rest in ("", "/", "/:memory:"):
        raise StorageError(f"a study must live in a file, not in a database in memory: {_ADVICE}.")
    if not rest.startswith("/"):
        raise StorageError(f"an SQLite URL has three slashes before the path, four before an absolute one: {_ADVICE}.")
    if "?" in rest:
        raise StorageError(f"options after '?' in an SQLite URL are not supported: {_ADVICE}.")
    return Path(rest[1:])


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
    if magic not in (b"", _MAGIC):
        raise StorageError(f"{path} is not an SQLite file: choose another path, nothing in it was changed.")
