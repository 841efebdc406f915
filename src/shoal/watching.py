"""``shoal watch``: the report of a study while it runs, served to this machine's own browser and to nobody else.

The server listens on 127.0.0.1 only. A web page from elsewhere that has its own name point to 127.0.0.1 (DNS rebinding)
sends that name as ``Host`` and is refused. There is one page and no way to change anything: the study file is opened
read-only, which never makes its owner wait, and only when it has changed.
"""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from shoal.errors import ShoalError, UsageError
from shoal.importances import importances
from shoal.records import StudyRecord, TrialState
from shoal.report import render_report
from shoal.storage import load_study, place_of, study_stamp, title_of

ADDRESS: Final = "127.0.0.1"
PORT: Final = 8765
_NAMES: Final = ("127.0.0.1", "localhost")
_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class LivePage:
    """The report of a study as it is now; written again only when what is stored has changed.

    Args:
        study: The study file, its URL or that of a database.
        name: The study's, if the place holds several.
    """

    def __init__(self, study: str, name: str | None = None) -> None:
        self._study, self._name, self._place = study, name, place_of(study)
        self._lock = threading.Lock()
        self._stamp: object = None
        self._content, self._tag = b"", ""
        self._shares: dict[str, float] = {}
        self._n_ended = 0

    def current(self) -> tuple[bytes, str]:
        """The page and a tag that changes with it.

        Raises:
            StorageError: The file cannot be read.
        """
        with self._lock:
            stamp = study_stamp(self._study)
            if stamp != self._stamp or not self._content:
                record = load_study(self._study, self._name)
                title = title_of(self._place, record.name)
                page = render_report(record, self._importances(record), title=title, live=True)
                self._content = page.encode("utf-8", "replace")
                self._tag = f'"{hashlib.sha256(self._content).hexdigest()[:32]}"'
                self._stamp = stamp  # taken before the file was read: what came later is read next time
            return self._content, self._tag

    def _importances(self, record: StudyRecord) -> dict[str, float]:
        """Shares, brought up to date with every tenth of the trials: they change slowly and are the dear part."""
        n_ended = sum(trial.state is not TrialState.RUNNING for trial in record.trials)
        if n_ended >= 1.1 * self._n_ended + 1:
            self._shares, self._n_ended = importances(record), n_ended
        return self._shares


class WatchServer(ThreadingHTTPServer):
    """Serves a `LivePage` to browsers on this machine.

    Args:
        page: What to serve.
        port: To listen on; 0 for any that is free.

    Raises:
        UsageError: The port is taken or may not be used.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, port: int = PORT) -> None:
        self.page = page
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(
                f"port {port} cannot be used: {reason}. Choose another with --port, or 0 for any."
            ) from error

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a browser that goes away in the middle of an answer is no error of the study's."""


class _Handler(BaseHTTPRequestHandler):
    server: WatchServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "shoal", ""
    timeout = 30.0  # seconds for a browser to say what it wants

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _refuse(self) -> None:
        self.close_connection = True  # whatever body came along is not read
        self._say(405, "This server only shows a study.", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, *, with_body: bool) -> None:
        if self.headers.get("Host", "") not in {f"{name}:{self.server.server_port}" for name in _NAMES}:
            self._say(403, f"Open {self.server.url} itself: other names of this machine are refused.")
            return
        if self.path.partition("?")[0] != "/":
            self._say(404, f"There is one page here: {self.server.url}")
            return
        try:
            content, tag = self.server.page.current()
        except ShoalError as error:
            self._say(503, str(error))
            return
        if self.headers.get("If-None-Match") == tag:
            self._send(304, "text/html; charset=utf-8", b"", {"ETag": tag})
            return
        self._send(200, "text/html; charset=utf-8", content, {"ETag": tag}, with_body=with_body)

    def _say(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = f"{text}\n".encode("utf-8", "replace")
        self._send(status, "text/plain; charset=utf-8", body, headers or {}, with_body=self.command != "HEAD")

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers, "Content-Type": kind}.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the page asks every two seconds, and nobody wants to read that."""
