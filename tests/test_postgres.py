"""Studies in PostgreSQL, against a real server: one owner, connections that are lost, and a password that stays secret."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy as sa
import torch
from sqlalchemy.exc import OperationalError

import shoal
from owner_process import OwnerProcess
from postgres_server import PASSWORD, USER, Server
from postgres_server import server as shared_server
from shoal.cli import main
from shoal.errors import StorageError, StudyLockedError, UsageError
from shoal.records import EpochRow, StudyRecord, TrialResult, TrialSpec, TrialState
from shoal.storage import StudyStore, _database, _load, _postgres_owner, has_password, load_study, place_of, study_stamp
from shoal.study_file import _summary
from test_front_report import study as several

SECRET = quote(PASSWORD, safe="")
SRC = str(Path(__file__).parents[1] / "src")


@pytest.fixture
def server() -> Server:
    return shared_server()


@pytest.fixture
def url(server: Server) -> str:
    return server.url()


def store_at(url: str, name: str = "digits") -> StudyStore:
    return StudyStore.open(url, name=name, direction="maximize")


def add(store: StudyStore, number: int, epochs: int = 3) -> None:
    store.asked([TrialSpec(number, number, {}, {})])
    store.recorded([EpochRow(number, e, 0.5, number + e / 100, {"loss": 0.5}) for e in range(1, epochs + 1)])
    store.ended([TrialResult(number, TrialState.FINISHED, number + epochs / 100, epochs)])


def check_whole(record: StudyRecord, n: int, epochs: int = 3) -> None:
    """Every trial once, with all its epochs."""
    assert [t.spec.number for t in record.trials] == list(range(n))
    assert all(t.state is TrialState.FINISHED and t.value == t.spec.number + epochs / 100 for t in record.trials)
    assert all([row.epoch for row in t.rows] == list(range(1, epochs + 1)) for t in record.trials)


def owner_of(store: StudyStore) -> _postgres_owner.PostgresOwner:
    assert isinstance(store._owner, _postgres_owner.PostgresOwner)
    return store._owner


def test_a_second_owner_is_refused_by_name_and_other_studies_are_free(url: str) -> None:
    with store_at(url) as store, store_at(url, "other") as other:
        with pytest.raises(
            StudyLockedError, match=rf"'digits' in .* in use by process {os.getpid()} on host \S+: wait"
        ):
            store_at(url)
        add(store, 0)
        add(other, 0)
        store.flush()
        load_study(url, "digits")
    store_at(url).close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_owner_leaves_nothing_behind_but_what_it_wrote(url: str) -> None:
    draw = random.Random(0)
    n_before = 0
    for _ in range(2):
        owner = OwnerProcess(url)
        with pytest.raises(StudyLockedError, match=f"in use by process {owner.pid} on host"):
            store_at(url)
        time.sleep(draw.uniform(0.2, 0.6))
        acknowledged = owner.kill()
        record = load_study(url)
        assert len(record.trials) > max(acknowledged, default=n_before - 1)
        n_before = len(record.trials)
        for trial in record.trials:
            if trial.state is not TrialState.RUNNING:
                assert (trial.value, len(trial.rows)) == (trial.spec.number + 0.2, 20)
        until = time.monotonic() + 20  # the server drops the lock once it has read to the end of the connection
        while time.monotonic() < until:
            with contextlib.suppress(StudyLockedError):
                store_at(url).close()
                break
            time.sleep(0.02)
    assert n_before > 0


def test_connections_that_are_cut_lose_nothing_and_repeat_nothing(server: Server, url: str) -> None:
    done, cuts = threading.Event(), [0]

    def cut() -> None:
        draw = random.Random(1)
        while cuts[0] < 6 and not done.wait(draw.uniform(0.05, 0.4)):
            cuts[0] += server.cut(url)

    number = 0
    with store_at(url) as store:
        thread = threading.Thread(target=cut)
        thread.start()
        try:
            while cuts[0] < 6 or number < 40:
                add(store, number)
                number += 1
                if number % 4 == 0:
                    store.flush()
        finally:
            done.set()
            thread.join()
        store.flush()
    check_whole(load_study(url), number)


@pytest.mark.parametrize("where", ["_trials", "_events", "_meta"])
def test_what_is_cut_off_while_it_is_read_is_read_again(
    server: Server, url: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_at(url) as store:
        add(store, 0)
    read = getattr(_load, where)
    cuts: list[int] = []

    def cut_off(*args: Any) -> Any:
        if not cuts:
            cuts.append(server.cut(url))
        return read(*args)

    monkeypatch.setattr(_load, where, cut_off)
    check_whole(load_study(url), 1)
    assert cuts == [1]


def test_what_is_cut_off_while_it_is_opened_is_opened_again(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = _postgres_owner.PostgresOwner.settle
    cuts: list[int] = []

    def cut_off(owner: _postgres_owner.PostgresOwner, study_id: int) -> None:
        if len(cuts) < 2:
            cuts.append(server.cut(url))
        settle(owner, study_id)

    monkeypatch.setattr(_postgres_owner.PostgresOwner, "settle", cut_off)
    with store_at(url) as store:
        add(store, 0)
    assert cuts == [1, 1]
    check_whole(load_study(url), 1)
    monkeypatch.setattr(_database, "_PAUSES_S", ())
    cuts.clear()
    with pytest.raises(StorageError, match=r"opening the database .* failed: .*connection"):
        store_at(url)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shutdown", "crash"])
def test_a_server_that_restarts_is_waited_for(
    server: Server, url: str, how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    with store_at(url) as store:
        add(store, 0)
        store.flush()
        server.stop(how)
        try:
            for number in range(1, 20):  # none of these calls waits
                add(store, number)
            time.sleep(0.5)
        finally:
            server.start()
        store.flush()
        check_whole(load_study(url), 20)
    said = [r.getMessage() for r in caplog.records if r.name == "shoal.storage" and r.levelno == logging.WARNING]
    assert len(said) == 2 and "cannot be written to" in said[0] and "nothing was lost" in said[1]
    assert SECRET not in str(said) and PASSWORD not in str(said)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(url: str) -> None:
    with store_at(url) as store:
        add(store, 0)
        store.flush()
        owner = owner_of(store)
        calls: list[int] = []
        owner.commit(lambda _: calls.append(1))
        owner._count -= 1  # as if the connection had been lost before the server's answer came
        owner.commit(lambda _: calls.append(2))
        owner.commit(lambda _: calls.append(3))
        assert calls == [1, 3]
        add(store, 1)
    check_whole(load_study(url), 2)


def test_an_owner_that_was_replaced_while_it_was_cut_off_stops(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store_at(url)
    add(first, 0)
    first.flush()
    real = _postgres_owner.PostgresOwner._connect
    cut_off = [True]

    def connect(owner: _postgres_owner.PostgresOwner) -> None:
        if owner is first._owner and cut_off[0]:
            raise OperationalError("", None, Exception("no route"))
        real(owner)

    monkeypatch.setattr(_postgres_owner.PostgresOwner, "_connect", connect)
    server.cut(url)
    first.set_meta({"late": 1})
    with store_at(url) as second:
        add(second, 1)
        second.flush()
        cut_off[0] = False
        with pytest.raises(
            StorageError, match=rf"process {os.getpid()} on host \S+ took the study 'digits' in .* over"
        ):
            first.flush()
    with pytest.raises(StorageError, match="over while the connection was lost"):
        first.close()
    with store_at(url):  # also once the other has gone again
        pass
    record = load_study(url)
    check_whole(record, 2)
    assert "late" not in record.meta


def test_a_mark_that_is_another_owners_is_respected_without_its_lock(url: str) -> None:
    with store_at(url) as store, pytest.raises(StorageError, match=r"process 1 on host far took the study"):
        other = place_of(url).optuna_url
        engine = sa.create_engine(other)
        with engine.begin() as connection:
            connection.execute(
                sa.text("""UPDATE shoal_meta SET json = '{"by": "shoal: process 1 on host far"}'
                                          WHERE key = '_owner'""")
            )
        engine.dispose()
        owner_of(store).commit(lambda _: None)


def test_its_own_stale_connection_is_ended(url: str) -> None:
    with store_at(url) as store:
        owner = owner_of(store)
        stale = owner._connection  # a network that was cut: the server has noticed nothing and keeps the lock
        assert stale is not None
        owner._connection = None
        add(store, 0)
        store.flush()
        with contextlib.suppress(sa.exc.SQLAlchemyError):
            stale.invalidate()
        stale.close()
    check_whole(load_study(url), 1)


def test_a_server_that_does_not_come_back_is_given_up(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgres_owner, "PATIENCE_S", 0.3)
    store = store_at(url)
    server.stop()
    try:
        add(store, 0)
        with pytest.raises(StorageError, match=r"could not be written to for 0 s: .*Check that the server runs"):
            store.flush()
        with pytest.raises(StorageError, match="since the last commit is not in the study"):
            store.close()
    finally:
        server.start()
    assert load_study(url).trials == ()
    store_at(url).close()


def test_what_a_server_will_not_take_is_reported_at_once(url: str) -> None:
    store = store_at(url)
    with store._owner.connection.begin():
        store._owner.connection.exec_driver_sql("SET default_transaction_read_only = on")
    add(store, 0)
    with pytest.raises(StorageError, match=r"writing to the database .* failed: .*read-only.* takes no writes"):
        store.flush()
    with pytest.raises(StorageError):
        store.close()


def test_owners_that_come_to_an_empty_database_at_once(url: str) -> None:
    failures: list[BaseException] = []

    def fill(name: str) -> None:
        try:
            with store_at(url, name) as store:
                for number in range(5):
                    add(store, number)
                    store.flush()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=fill, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for name in "abcd":
        check_whole(load_study(url, name), 5)
    # Keys rise within a study, which is how Optuna counts its trials.
    storage = optuna.storages.RDBStorage(place_of(url).optuna_url)
    for name in "abcd":
        trials = storage.get_all_trials(storage.get_study_id_from_name(name))
        assert [t.number for t in sorted(trials, key=lambda t: t._trial_id)] == list(range(5))
    storage.remove_session()
    storage.engine.dispose()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_neither_writes_nor_keeps_the_lock(url: str) -> None:
    store = store_at(url)
    store.flush()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            store.flush()
        except StorageError as error:
            os.write(write, str(error).encode())
        store.close()  # does nothing here
        time.sleep(60)
        os._exit(0)
    try:
        assert f"was opened by process {os.getpid()}: write to it from there" in os.read(read, 1000).decode()
        add(store, 0)
        store.close()
        store_at(url).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_a_database_without_a_study_and_one_with_other_tables(server: Server, url: str) -> None:
    with pytest.raises(StorageError, match=r"is empty and holds no study"):
        load_study(url)
    server.run("CREATE TABLE bookmarks (url TEXT)", url.rpartition("/")[2])
    assert study_stamp(url) is None
    with store_at(url) as store:  # a database may serve other purposes too
        before = study_stamp(url)
        assert study_stamp(url) == before
        add(store, 0)
        store.flush()
        assert study_stamp(url) != before


def test_names_that_cannot_be(url: str) -> None:
    for name in ("x" * 121, "a\nb"):
        with pytest.raises(StorageError, match="a study's name has at most 120 characters, all printable"):
            store_at(url, name)
    with store_at(url) as store:
        for param in ("x" * 513, "a\0b", "\udce9"):
            with pytest.raises(StorageError, match=r"trial 0: the parameter name .* cannot be stored"):
                store.asked([TrialSpec(0, 0, {param: 1}, {param: ""})])
        add(store, 0)
        store.ended([TrialResult(0, TrialState.FAILED, None, 1, "zero \0 byte")])
    assert load_study(url).trials[0].reason == "zero \\x00 byte"


def wrong(server: Server, what: str) -> str:
    good = f"postgresql://{USER}:{SECRET}@127.0.0.1:{server.port}/postgres"
    return {
        "password": good.replace(SECRET, "secret2"),
        "user": good.replace(f"{USER}:", "nobody:"),
        "database": good.replace("/postgres", "/none"),
        "port": good.replace(str(server.port), "1"),
        "option": f"{good}?no_such_option=1",
        "host": good.replace("127.0.0.1", "no-such-host.invalid"),
    }[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("password", "password authentication failed .*Give the password in PGPASSWORD"),
        ("user", 'password authentication failed for user "nobody"'),
        ("database", 'database "none" does not exist.*createdb'),
        ("port", "Check that the server runs"),
        ("option", "invalid connection option .*after '\\?' in the URL"),
        ("host", "Check the host's name"),
    ],
)
def test_a_server_that_cannot_be_used_is_explained_without_the_password(
    server: Server, what: str, message: str
) -> None:
    url = wrong(server, what)
    for attempt, doing in ((lambda: store_at(url), "opening"), (lambda: load_study(url), "reading")):
        with pytest.raises(
            StorageError, match=rf"(?s){doing} the database postgresql://\S+ failed: .*{message}"
        ) as caught:
            attempt()
        said = "".join(traceback.format_exception(caught.value))
        assert not any(secret in said for secret in (PASSWORD, SECRET, "secret2"))


def test_debug_logs_and_process_arguments_show_no_password(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)  # where the weights go

    def define(trial: optuna.Trial) -> shoal.Recipe:
        model = torch.nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1))
        return shoal.Recipe(model, optimizer, torch.nn.CrossEntropyLoss(), 16)

    arguments: set[str] = set()

    def look(_: object) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # gone in the meantime
                arguments.add(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    caplog.set_level(logging.DEBUG)
    for name in ("sqlalchemy", "sqlalchemy.engine", "sqlalchemy.pool", "psycopg", "optuna"):
        caplog.set_level(logging.DEBUG, logger=name)
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(0))
    data = (x, x[:, :3].argmax(dim=1))
    shoal.tune(define, train=data, n_trials=3, max_epochs=2, storage=url, progress=look, reproducible=True)
    load_study(url)
    assert "INSERT INTO" in caplog.text  # the loggers were heard
    shown = "\n".join([caplog.text, *arguments])
    assert arguments and PASSWORD not in shown and SECRET not in shown


def test_a_place_shows_no_password() -> None:
    url = f"postgresql://ann:{SECRET}@db.example:5433/tuning?sslmode=require&sslpassword=hidden"
    place = place_of(url)
    assert str(place) == "postgresql://ann@db.example:5433/tuning?sslmode=require"
    assert PASSWORD not in repr(place) and "hidden" not in repr(place)
    assert has_password(url) and not has_password(str(place)) and not has_password("digits.db")
    assert has_password("postgresql://ann:a/b@host/x")  # cannot be read, and looks as if it had one
    assert str(place_of(place.optuna_url)) == str(place) and f":{SECRET}@" in place.optuna_url
    assert str(place_of("postgresql://[::1]:5432/a?password=hidden")) == "postgresql://[::1]:5432/a"
    assert has_password("postgresql:///a?password=hidden") and has_password("postgresql:///a?sslpassword=hidden")
    assert _summary._storage(url) == str(place)  # `shoal check` prints where a study will lie


def test_without_psycopg_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"needs psycopg: run `pip install 'shoal\[postgresql\]'`"):
        load_study("postgresql://ann@db.example/tuning")


FILE = """
import os
import torch
from torch import nn, optim

import shoal


def define(trial):
    model = nn.Linear(4, 3)
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=16)


def data():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, x[:, :3].argmax(dim=1))


options = {"n_trials": 6, "max_epochs": 2, "seed": 3, "storage": os.environ["STORAGE"]}
"""


@pytest.fixture
def folder(tmp_path: Path, url: str) -> Path:
    (tmp_path / "small.py").write_text(FILE, encoding="utf-8")
    return tmp_path


def test_a_whole_study_from_the_command_line(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = str(place_of(url))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("STORAGE", url)

    def shoal(*words: str) -> tuple[int, str, str]:
        code = main(words)
        said = capfd.readouterr()
        assert PASSWORD not in said.out + said.err and SECRET not in said.out + said.err
        return code, said.out, said.err

    command = [sys.executable, "-m", "shoal", "tune", "small.py", "--study-name", "first", "--report", "r.html"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SRC}, check=False)
    assert done.returncode == 0 and plain in done.stdout, done.stderr
    for text in (done.stdout, done.stderr, (folder / "r.html").read_text(encoding="utf-8")):
        assert PASSWORD not in text and SECRET not in text
    assert shoal("resume", plain, "small.py", "--study-name", "first", "--n-trials", "8", "--quiet")[0] == 0
    record = load_study(url, "first")
    assert len(record.trials) == 8 and PASSWORD not in str(record.meta) and SECRET not in str(record.meta)
    assert '"trial"' in shoal("best", plain, "--study-name", "first", "--json")[1]
    weights = sorted(path.name for path in (folder / f"{url.rpartition('/')[2]}.first.weights").iterdir())
    assert len(weights) == 5
    assert shoal("report", plain)[:2] == (0, f"{url.rpartition('/')[2]}.first.html\n")
    for words in (("tune", "small.py", "--storage", url), ("report", url), ("resume", url, "small.py")):
        code, _, error = shoal(*words)
        assert code == 2 and "leave the password out of the command line" in error
    storage = optuna.storages.RDBStorage(place_of(url).optuna_url)
    assert len(optuna.load_study(study_name="first", storage=storage).trials) == 8
    storage.remove_session()
    storage.engine.dispose()


def test_the_same_study_as_in_a_file(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn, optim

    from shoal.watching import LivePage

    monkeypatch.chdir(tmp_path)

    def define(trial: Any) -> shoal.Recipe:
        model = nn.Linear(4, 3)
        optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
        return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=16)

    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    found = {}
    for storage in (tmp_path / "a.db", url):
        keywords: dict[str, Any] = {"n_trials": 6, "max_epochs": 4, "reproducible": True, "progress": False}
        study = shoal.tune(define, train=(x, x[:, :3].argmax(dim=1)), storage=storage, **keywords)
        found[storage] = [
            (t.spec, t.state, t.value, [(r.epoch, r.train_loss, r.value, r.metrics) for r in t.rows])
            for t in load_study(storage).trials
        ]
        assert study.path == (storage if isinstance(storage, Path) else None)
        assert study.best_model() is not None and PASSWORD not in repr(study)
        optuna_study = study.optuna_study
        assert optuna_study.best_value == study.best_value
        backend = optuna_study._storage._backend  # type: ignore[attr-defined]
        backend.remove_session()
        backend.engine.dispose()
    assert found[tmp_path / "a.db"] == found[url]
    page = LivePage(url)
    assert page.current() is not None and page.current()[1] == page.current()[1]
    assert url.rpartition("/")[2].encode() in page.current()[0]
    with pytest.raises(StorageError, match="there is no study file"):
        load_study("none.db")


def test_a_front_is_what_optuna_finds_there(url: str) -> None:
    record = several(20)  # of two objectives, with a constraint
    ends = [TrialResult(t.number, t.state, t.value, t.epoch, outcome=t.outcome) for t in record.trials]
    with StudyStore.open(url, name="two", directions=record.directions) as store:
        store.asked([t.spec for t in record.trials])
        store.recorded([row for t in record.trials for row in t.rows])
        store.ended(ends)
        store.restart([7])
        store.ended([ends[7]])
        assert [t.outcome for t in store.load().trials] == [t.outcome for t in record.trials]
    theirs = optuna.load_study(study_name="two", storage=place_of(url).optuna_url)
    assert [d.name.lower() for d in theirs.directions] == list(record.directions)
    assert [t.number for t in theirs.best_trials] == [t.number for t in record.front()]
    assert [t.constraints for t in theirs.trials] == [dict(t.outcome.constraints) for t in record.trials]
    backend = theirs._storage._backend  # type: ignore[attr-defined]
    backend.remove_session()
    backend.engine.dispose()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    yield
