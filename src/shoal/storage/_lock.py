"""One owner per study file: an advisory lock that names its holder and that no kill can leave behind.

The operating system drops the lock with the process, however that ends, so there is no stale lock to clean up. On
POSIX the lock is ``flock``, not ``lockf``: the latter is lost when *any* descriptor of the file is closed, and does not
stop the same process from opening a study twice. The price is that ``flock`` is inherited by ``fork``: a DataLoader
worker that outlives its parent would keep the study locked, so a forked child closes its copy at once.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import weakref
from pathlib import Path

from shoal.errors import StorageError, StudyLockedError

if sys.platform == "win32":
    import msvcrt

    def _lock(fd: int) -> None:
        # Locks on Windows are mandatory: one far behind the text leaves the text readable for the one who is refused.
        os.lseek(fd, 1 << 30, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    _HELD: tuple[type[OSError], ...] = (PermissionError, OSError)
else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    _HELD: tuple[type[OSError], ...] = (BlockingIOError,)

_live: weakref.WeakSet[OwnerLock] = weakref.WeakSet()


class OwnerLock:
    """Ownership of one study file, from construction to `release` or the end of the process.

    Args:
        study: the study file; the lock is taken on ``<file>.lock`` beside it.

    Raises:
        StudyLockedError: another owner has it; the message names that process and host.
        StorageError: the lock file cannot be made.
    """

    def __init__(self, study: Path) -> None:
        # Two spellings of one path, or a link to it, must meet in the same lock.
        real = study.resolve()
        self._path = real.with_name(real.name + ".lock")
        self._fd: int | None = None
        self._study = study
        self._take()
        _live.add(self)

    def _take(self) -> None:
        fd = None
        while fd is None:
            fd = self._try(self._study)
        try:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.write(fd, f"{os.getpid()}\n{platform.node()}\n".encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(fd)
            raise StorageError(
                f"cannot write {self._path} ({error.strerror}). Free some space or choose another storage, then try again."
            ) from error
        self._fd = fd

    def keep(self) -> None:
        """See that the lock is still what others look at: a lock file that somebody has removed locks nobody out.

        Raises:
            StudyLockedError: it was removed, and another owner has come since.
            StorageError: it cannot be made again.
        """
        assert self._fd is not None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                return
        self._drop()
        self._take()

    def _try(self, study: Path) -> int | None:
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StorageError(
                f"cannot write in the folder {self._path.parent} of the study file ({error.strerror}): change its "
                "permissions or choose another storage."
            ) from error
        try:
            _lock(fd)
            # A former owner may have removed the file between our open and our lock: then we hold a lock on nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self._path)):
                    return fd
        except _HELD as error:
            os.lseek(fd, 0, os.SEEK_SET)
            owner = os.read(fd, 512)
            os.close(fd)
            raise StudyLockedError(_locked(study, owner.decode(errors="replace"))) from error
        except OSError as error:
            os.close(fd)
            raise StorageError(
                f"the file system of {self._path.parent} cannot lock files ({error.strerror}): put the study on a "
                "local disk."
            ) from error
        os.close(fd)
        return None

    def release(self) -> None:
        """Give the ownership back and remove the lock file. A second call does nothing."""
        if self._fd is None:
            return
        with contextlib.suppress(OSError):  # Windows does not remove an open file; the empty file does no harm.
            self._path.unlink()
        self._drop()

    def _drop(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _locked(study: Path, text: str) -> str:
    pid, _, host = text.strip().partition("\n")
    owner = f"process {pid} on host {host}" if host else "another process"
    return (
        f"the study file {study} is in use by {owner}: wait until it ends or stop it, or choose another storage. "
        "Reading the study is possible meanwhile."
    )


def _close_in_child() -> None:
    for lock in list(_live):
        lock._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
