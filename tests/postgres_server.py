"""A real PostgreSQL server on this machine's loopback, started by the first test that asks and stopped with the tests.

Its binaries are Debian's (``postgresql``) or any on the path. PostgreSQL refuses to run as root; then it runs as the
user ``postgres``, or ``nobody``. With ``SHOAL_POSTGRES=required`` no test skips for want of one.
"""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

USER = "tuner"
PASSWORD = "s3cr:et/@ü"  # with all that a URL has to escape


def _binaries() -> Path | None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (found := shutil.which("initdb")) is not None:
        places.append(Path(found).resolve().parent)
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


def _user() -> str | None:
    """As whom to run it: as ourselves, or as somebody else when that is root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


class Server:
    """One server with databases of its own, as many as one asks for."""

    def __init__(self, binaries: Path) -> None:
        self._binaries, self._user = binaries, _user()
        # Not pytest's folder, which root keeps to itself.
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-postgres-"))
        secret = self.folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            for path in (self.folder, secret):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        words = ("--auth=scram-sha-256", f"--pwfile={secret}", f"--username={USER}", "--no-sync", "--encoding=UTF8")
        done = self._run("initdb", f"--pgdata={self.folder / 'data'}", "--locale=C", *words)
        if done.returncode:
            raise RuntimeError(done.stderr)
        self._n_databases = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        atexit.register(self._remove, os.getpid())

    def _as_user(self) -> dict[str, Any]:
        return {"cwd": self.folder} | ({} if self._user is None else {"user": self._user, "group": None})

    def _run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._binaries / name), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, **self._as_user())

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.folder / "data"), *words],
                stdout=log,
                stderr=log,
                **self._as_user(),
            )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self._process.poll() is None, (self.folder / "log").read_text(encoding="utf-8")
            try:
                self.run("SELECT 1", database="postgres")
                return
            except Exception:
                time.sleep(0.05)
        raise RuntimeError("PostgreSQL does not answer: " + (self.folder / "log").read_text(encoding="utf-8")[-2000:])

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT is its fast shutdown, which cuts all connections off; SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=60)
            self._process = None

    def _remove(self, pid: int) -> None:
        if os.getpid() == pid:
            self.stop(signal.SIGQUIT)
            shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str | None = None, password: str = PASSWORD, user: str = USER) -> str:
        """The storage URL of a database, by default of a new one."""
        if database is None:
            self._n_databases += 1
            database = f"study_{self._n_databases}_{secrets.token_hex(3)}"
            self.run(f"CREATE DATABASE {database}", database="postgres")
        secret = quote(password, safe="")
        return f"postgresql://{user}:{secret}@127.0.0.1:{self.port}/{database}"

    def run(self, query: str, database: str) -> list[Any]:
        """The rows of a query."""
        import psycopg

        address: dict[str, Any] = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": PASSWORD}
        with psycopg.connect(dbname=database, autocommit=True, connect_timeout=5, **address) as connection:
            cursor = connection.execute(query)
            return list(cursor.fetchall()) if cursor.description else []

    def cut(self, url: str) -> int:
        """End all connections to a database, as an administrator would; returns how many."""
        database = url.rpartition("/")[2]
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        return len(self.run(query, database="postgres"))


@functools.cache
def server() -> Server:
    """The server; skips the test when none can be had, and fails it when one is required."""
    binaries = _binaries()
    if binaries is None:
        reason = "needs PostgreSQL's initdb and postgres (Debian: apt-get install postgresql)"
        if os.environ.get("SHOAL_POSTGRES") == "required":
            pytest.fail(f"SHOAL_POSTGRES=required, and this {reason}")
        pytest.skip(reason)
    return Server(binaries)
