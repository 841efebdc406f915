"""``shoal watch``: this machine only, read-only, never in the owner's way, and up to date without a reload."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
import torch
from optuna.exceptions import StorageInternalError
from torch import nn, optim

import shoal
from shoal.cli import main
from shoal.errors import StorageError, UsageError
from shoal.records import EpochRow, Progress, TrialResult, TrialSpec, TrialState
from shoal.storage import StudyStore, load_study
from shoal.watching import LivePage, WatchServer

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StudyStore]:
    with StudyStore.open(str(tmp_path / "digits.db"), name="shoal", direction="maximize") as owner:
        add(owner, 0)
        yield owner


def add(store: StudyStore, number: int) -> None:
    """Another finished trial, committed."""
    store.asked([TrialSpec(number, number, {}, {})])
    store.recorded([EpochRow(number, 1, 0.5, 0.25 + number / 100, {"loss": 0.5})])
    store.ended([TrialResult(number, TrialState.FINISHED, 0.25 + number / 100, 1)])
    store.flush()


@pytest.fixture
def server(store: StudyStore, tmp_path: Path) -> Iterator[WatchServer]:
    with WatchServer(LivePage(str(tmp_path / "digits.db")), 0) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(
    server: WatchServer, method: str = "GET", path: str = "/", host: str | None = "", **headers: str
) -> tuple[int, http.client.HTTPResponse, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer, text


def test_it_serves_the_report(server: WatchServer) -> None:
    status, answer, text = ask(server)
    assert status == 200 and "<h1>digits</h1>" in text and "connect-src 'self'" in text and "fetch(" in text
    assert answer.getheader("Access-Control-Allow-Origin") is None
    assert answer.getheader("X-Frame-Options") == "DENY" and answer.getheader("X-Content-Type-Options") == "nosniff"
    assert "Python" not in (answer.getheader("Server") or "")
    status, answer, text = ask(server, "HEAD", host=f"localhost:{server.server_port}")
    assert status == 200 and text == "" and int(answer.getheader("Content-Length") or 0) > 10_000


def test_it_listens_on_this_machine_only(server: WatchServer) -> None:
    assert server.server_address[0] == "127.0.0.1" and server.url == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:80", "[::1]", None]
)
def test_other_names_are_refused(server: WatchServer, host: str | None) -> None:
    status, _, text = ask(server, host=host)
    assert status == 403 and "refused" in text and "digits" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(server: WatchServer, method: str) -> None:
    status, answer, _ = ask(server, method)
    assert status == 405 and answer.getheader("Allow") == "GET, HEAD"


@pytest.mark.parametrize("path", ["/digits.db", "/../digits.db", "/static", "/%2e%2e/x", "http://evil.example/"])
def test_there_is_one_page(server: WatchServer, path: str) -> None:
    assert ask(server, path=path)[0] == 404


def test_it_sends_only_what_is_new(server: WatchServer, store: StudyStore) -> None:
    first = ask(server)[1].getheader("ETag") or ""
    status, _, text = ask(server, If_None_Match=first)
    assert (status, text) == (304, "")
    add(store, 1)
    status, answer, text = ask(server, path="/?again", If_None_Match=first)
    assert status == 200 and answer.getheader("ETag") != first and "2 finished" in text


def test_the_file_is_read_again_only_when_it_changed(
    tmp_path: Path, store: StudyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    monkeypatch.setattr("shoal.watching.load_study", lambda url, _: reads.append(url) or load_study(url))  # type: ignore[func-returns-value]
    page = LivePage(str(tmp_path / "digits.db"))
    assert page.current() == page.current() and len(reads) == 1
    add(store, 1)
    assert b"2 finished" in page.current()[0] and len(reads) == 2


def test_a_file_that_is_gone_is_said_so(server: WatchServer, store: StudyStore, tmp_path: Path) -> None:
    store.close()
    (tmp_path / "digits.db").unlink()
    status, _, text = ask(server)
    assert status == 503 and "there is no study file" in text


def test_a_taken_port_is_explained(server: WatchServer) -> None:
    with pytest.raises(UsageError, match=rf"port {server.server_port} cannot be used: .*--port"):
        WatchServer(server.page, server.server_port)


def test_what_cannot_be_watched_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "none.db")]) == 1
    assert "there is no study file" in capsys.readouterr().err
    assert main(["watch", "x.db", "--port", "70000"]) == 2
    assert "must be a port, 0 to 65535" in capsys.readouterr().err
    with pytest.raises(StorageError, match="neither a database's URL nor a path"):
        LivePage("study")


def test_ctrl_c_ends_it_well(store: StudyStore, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "shoal", "watch", str(tmp_path / "digits.db"), "--port", "0"]

    def heed() -> None:  # tests that run in the background of a shell are started with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)

    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("http://127.0.0.1:")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 0 and "Traceback" not in errors


def states(app: Any) -> list[str]:
    """Of a study's trials, as a dashboard shows them; raises if it does not."""
    environ: dict[str, Any] = {"PATH_INFO": "/api/studies/1", "QUERY_STRING": "after=0"}
    setup_testing_defaults(environ)
    answered: list[str] = []
    body = b"".join(app(environ, lambda status, headers, *_: answered.append(status)))
    assert answered == ["200 OK"], body
    return [trial["state"] for trial in json.loads(body)["trials"]]


def define(trial: Any) -> shoal.Recipe:
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.MSELoss(), 8)


def test_optuna_dashboard_reads_along_and_locks_nothing(store: StudyStore, tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")

    first = dashboard.wsgi(f"sqlite:///{tmp_path / 'digits.db'}")
    assert states(first) == ["Complete"]
    for number in range(1, 6):
        add(store, number)  # returns when its rows are committed, which a lock would prevent
    store.asked([TrialSpec(6, 6, {}, {})])
    store.recorded([EpochRow(6, 1, 0.5, 0.5, {"loss": 0.5})])
    store.flush()
    # The first one answers from memory for some seconds; one that is opened now sees the study as it is.
    assert states(dashboard.wsgi(f"sqlite:///{tmp_path / 'digits.db'}")) == ["Complete"] * 6 + ["Running"]


def test_optuna_dashboard_can_be_asked_in_every_round_of_a_study(tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(StorageInternalError):
        dashboard.wsgi(url)  # too early, which leaves an empty file for Shoal to find
    assert (tmp_path / "study.db").stat().st_size == 0
    apps: list[Any] = []
    shown: list[int] = []

    def poll(progress: Progress) -> None:
        apps.append(dashboard.wsgi(url))  # a new one knows nothing from before
        shown.extend(len(states(app)) for app in (apps[0], apps[-1]))

    x = torch.arange(64.0).reshape(32, 2) / 64
    shoal.tune(define, train=(x, x[:, :1]), n_trials=24, max_epochs=3, storage=url, progress=poll, reproducible=True)
    assert len(shown) >= 6
    assert set(states(dashboard.wsgi(url))) <= {"Complete", "Pruned"} and len(states(dashboard.wsgi(url))) == 24


@pytest.mark.skipif(BROWSER is None and os.environ.get("SHOAL_BROWSER") != "required", reason="needs Chromium")
def test_an_open_page_follows_the_study(server: WatchServer, store: StudyStore) -> None:
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(server.url)
        assert page.inner_text("#count") == "1 of 1 trial"
        page.get_by_label("Mark trial 0 in the figures").check()
        page.evaluate("window.same = true")
        for number in range(1, 30):
            add(store, number)
        page.wait_for_function(
            "() => document.getElementById('count').textContent.includes('30 trials')", timeout=30_000
        )
        assert page.evaluate("window.same") and page.inner_text("#unpin") == "Unmark 1"  # no reload, no place lost
        assert page.inner_text("#tiles dd >> nth=0") == "0.54"
        assert "up to date" in page.inner_text("#live")
        browser.close()
    assert said == []
