"""Builds C++ with the machine's own compiler, once, and keeps the result in the user's cache."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO

# Neither flag changes a result: no errno, no floating-point traps. Flags that reorder or assume finite numbers stay out.
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-fPIC", "-shared")


def cache_folder() -> Path:
    """``$SHOAL_CACHE``, or ``shoal`` in the user's cache folder."""
    if os.environ.get("SHOAL_CACHE"):
        return Path(os.environ["SHOAL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal"


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or the first of the usual names on the path."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((found for found in map(shutil.which, names) if found), None)


def wanted() -> bool:
    """Whether native kernels are to be used: not when ``SHOAL_NATIVE`` is 0."""
    return os.environ.get("SHOAL_NATIVE", "1") != "0"


class Build:
    """One library on its way: a file that is there already, or a compiler at work in the background.

    A process sees the file appear as soon as another has built it.

    Args:
        name: What the file's name begins with.
        source: C++.
        headers: Files that it includes.
        flags: For the compiler, besides those that all libraries are built with.
        loss: What a warning says is missing where there is no library.
    """

    def __init__(
        self, name: str, source: str, headers: Sequence[Path], flags: Sequence[str] = (), *, loss: str
    ) -> None:
        self._name, self._source, self._loss = name, source, loss
        self._headers, self._flags = tuple(headers), (*_FLAGS, *flags)
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._partial: Path | None = None
        self._said: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None  # held while the compiler is at work
        self._failed = False
        self._path: Path | None = None
        self._whole = False

    def path(self) -> Path:
        """Where the library lies: its name holds all that it depends on."""
        if self._path is None:
            included = [h.read_text(encoding="utf-8") for h in self._headers]
            machine = (platform.machine(), platform.system(), _processor())
            text = "\0".join((self._source, *included, *self._flags, *machine))
            self._path = cache_folder() / f"{self._name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
        return self._path

    def start(self, *, anyway: bool = False) -> None:
        """Start the compiler, unless there is nothing to do, nothing to do it with, or another process is at it (but `anyway`)."""
        if not wanted() or self._failed or self._process is not None or self._there():
            return
        cxx = compiler()
        if cxx is None:
            self.give_up("this machine has no C++ compiler (c++, g++ or clang++ on the path, or CXX)")
            return
        try:
            folder = cache_folder()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(self.path().with_suffix(".lock"))
            if self._lock is None and not anyway:
                return
            handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
            os.close(handle)
            self._partial = Path(name)
            self._owner = os.getpid()
            folders = dict.fromkeys(f"-I{h.parent}" for h in self._headers)
            command = [cxx, *self._flags, *folders, "-x", "c++", "-", "-o", name]
            # Not a pipe, which a talkative compiler would fill and wait for. It is closed when the compiler is done.
            self._said = tempfile.TemporaryFile()  # noqa: SIM115
            with tempfile.TemporaryFile() as given:
                given.write(self._source.encode())
                given.seek(0)
                self._process = subprocess.Popen(command, stdin=given, stdout=self._said, stderr=subprocess.STDOUT)
            atexit.register(self.wait)  # a process that ends early leaves the library to the next one
        except OSError as error:
            if self._partial is not None:
                self._partial.unlink(missing_ok=True)
            self._unlock()
            self.give_up(str(error))

    @property
    def failed(self) -> bool:
        """Whether there will be no library."""
        return self._failed

    def ready(self) -> Path | None:
        """The library's path once it is there."""
        if not wanted() or self._failed:
            return None
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is not None:
            self._finish()
        return self.path() if self._there() else None

    def _there(self) -> bool:
        """Whether the library is this user's own and whole; a damaged one is built again."""
        path = self.path()
        if not _own_file(path):
            return False
        if not self._whole:
            try:
                self._whole = _is_signed(path.read_bytes())
            except OSError:
                return False
        return self._whole

    def insist(self) -> Path | None:
        """Like ``wait``, but where another process is at work on it, which may take any time, builds it here as well."""
        if self._owner != os.getpid():  # a compiler that the process was forked beside
            self._process = None
        self.start(anyway=True)
        return self.wait()

    def wait(self) -> Path | None:
        """Like ``ready``, but lets a compiler that is at work come to its end first."""
        if self._process is not None and self._owner == os.getpid():
            self._process.wait()
        return self.ready()

    def _finish(self) -> None:
        process, partial, said = self._process, self._partial, self._said
        assert process is not None and partial is not None and said is not None
        said.seek(0)
        output = said.read().decode(errors="replace").strip()
        said.close()
        self._process = None
        self._unlock()
        try:
            if process.returncode == 0:
                library = partial.read_bytes()
                partial.write_bytes(
                    library + hashlib.sha256(library).digest()
                )  # a loader looks at no more than it names
                partial.chmod(0o700)  # whatever the umask is
                os.replace(partial, self.path())  # at once and whole, for whoever looks meanwhile
                return
            partial.unlink(missing_ok=True)
        except OSError as error:  # the folder is gone, or the disk is full
            self.give_up(str(error))
            return
        lines = output.splitlines()
        said_first = next((line for line in lines if "error" in line), lines[0] if lines else "")
        self.give_up(said_first or f"the compiler ended with exit code {process.returncode}")

    def _unlock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.path().with_suffix(".lock").unlink()
            self._lock.close()
            self._lock = None

    def give_up(self, reason: str) -> None:
        """Say once, and only in the process that would have built it, why there is no library."""
        self._failed = True
        if self._owner == os.getpid():
            warnings.warn(f"{self._loss}, training is slower: {reason}", RuntimeWarning, stacklevel=3)


def _locked(path: Path) -> IO[bytes] | None:
    """The file, locked until it is closed or its process ends; None if another process has it."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _own_file(path: Path) -> bool:
    """A library is loaded only if it is this user's own and nobody else may write to it."""
    try:
        status = path.stat()
    except OSError:
        return False
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _is_signed(data: bytes) -> bool:
    """Whether a library ends with its own digest: loading one that a full disk or a bad one has cut short kills the process."""
    size = hashlib.sha256().digest_size
    return hashlib.sha256(data[:-size]).digest() == data[-size:]


def _processor() -> str:
    """What ``-march=native`` stands for: a home folder may be shared by machines of different kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
