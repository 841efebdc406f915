"""The study file when things go wrong: kills, a second owner, full disks, files that are not ours."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.exc import OperationalError

from owner_process import OwnerProcess
from shoal.errors import StorageError, StudyLockedError
from shoal.records import EpochRow, Event, TrialSpec, TrialState
from shoal.storage import FilePlace, StudyStore, _lock, _sqlite, _tables, load_study


def store_at(url: str | Path, direction: Any = "maximize") -> StudyStore:
    return StudyStore.open(str(url), name="digits", direction=direction)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(url: str, path: Path) -> None:
    draw = random.Random(0)
    n_before = 0
    for _ in range(4):
        owner = OwnerProcess(url)
        time.sleep(draw.uniform(0.0, 0.4))
        acknowledged = owner.kill()
        record = load_study(url)
        assert len(record.trials) > max(acknowledged, default=n_before - 1)
        n_before = len(record.trials)
        # Whole batches from the tail, in the order of the calls: only the last trial may be less than complete.
        for trial in record.trials[:-1]:
            if trial.state is TrialState.RUNNING:
                continue
            assert (trial.value, trial.epoch, len(trial.rows)) == (trial.spec.number + 0.2, 20, 20)
        running = [t.spec.number for t in record.trials if t.state is TrialState.RUNNING]
        assert len(running) <= 5  # one per kill: the OWNER never goes back to it
        raw = sqlite3.connect(path)
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        raw.close()
        study = optuna.load_study(study_name="digits", storage=url)
        states = [t.state.name for t in study.get_trials(deepcopy=False)]
        assert states == ["RUNNING" if n in running else "COMPLETE" for n in range(n_before)]
    assert n_before > 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_second_owner_is_refused_until_the_first_is_killed(url: str, path: Path) -> None:
    owner = OwnerProcess(url)
    try:
        with pytest.raises(StudyLockedError, match=rf"in use by process {owner.pid} on host \S+: wait until it ends"):
            store_at(url)
        load_study(url)
    finally:
        owner.kill()
    store_at(url).close()
    assert not Path(f"{path}.lock").exists()


def test_two_stores_of_one_process_and_of_another_spelling_meet_in_one_lock(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with store_at(path):
        for spelling in (path, link, tmp_path / "." / "study.db"):
            with pytest.raises(StudyLockedError, match=f"process {os.getpid()} on"):
                store_at(spelling)
    store_at(link).close()


def test_an_owner_that_has_not_written_its_name_yet_is_refused_too(path: Path) -> None:
    with store_at(path):
        os.truncate(f"{path}.lock", 0)
        with pytest.raises(StudyLockedError, match="in use by another process"):
            store_at(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_neither_writes_nor_keeps_the_lock(path: Path) -> None:
    store = store_at(path)
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
        with pytest.raises(StudyLockedError):
            store_at(path)
        store.close()
        store_at(path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_a_lock_that_was_removed_while_we_waited_is_taken_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _lock._lock
    calls: list[int] = []

    def late(fd: int) -> None:
        if not calls:
            os.unlink(f"{path}.lock")  # the former owner leaves between our open and our lock
        calls.append(fd)
        real(fd)

    monkeypatch.setattr(_lock, "_lock", late)
    with store_at(path):
        assert len(calls) == 2
        with pytest.raises(StudyLockedError):
            store_at(path)


def test_a_disk_that_is_full_from_the_start_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"cannot write .*lock \(No space left on device\)\. Free some space"):
            store_at(path)
    assert not Path(f"{path}.lock").exists()
    store_at(path).close()  # nothing is held


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_study_file_that_is_taken_away_from_its_owner(path: Path, how: str) -> None:
    """SQLite would go on writing to a file that nobody can open any more."""
    store_at(path.with_name("other.db")).close()
    store = store_at(path)
    store.asked([TrialSpec(0, 0, {}, {})])
    store.flush()
    if how == "removed":
        path.unlink()
    else:
        path.with_name("other.db").replace(path)
    store.asked([TrialSpec(1, 1, {}, {})])
    for call in (store.flush, store.close):
        with pytest.raises(
            StorageError, match=r"study.db was removed, moved or replaced while this process wrote to it: .* Put"
        ):
            call()


@pytest.mark.parametrize("by", ["another study", "an earlier state", "noise"])
def test_a_study_file_that_is_overwritten_in_place(path: Path, by: str) -> None:
    other, store = path.with_name("other.db"), store_at(path)
    add_trials(store, 0, 200)
    shut(path)  # all of it is in the file now, and nothing in the log
    if by == "noise":
        other.write_bytes(bytes(range(256)) * (path.stat().st_size // 256))
    elif by == "an earlier state":
        shutil.copyfile(path, other)
        add_trials(store, 200, 400)
        shut(path)
        add_trials(store, 400, 600)  # a program that is let in may tidy the log, which is no fault
    else:
        store_at(other).close()
    shutil.copyfile(other, path)
    store.asked([TrialSpec(store.n_trials, 1, {}, {})])
    for call in (store.flush, store.close):
        with pytest.raises(
            StorageError, match=r"study.db was overwritten while this process wrote to it \(.+\): what is"
        ):
            call()


def test_reading_a_study_at_rest_leaves_nothing_beside_it_and_changes_nothing(path: Path) -> None:
    with store_at(path) as store:
        add_trials(store, 0, 3)
    before, there = path.read_bytes(), sorted(path.parent.iterdir())
    assert len(load_study(path).trials) == 3
    with _sqlite.SqliteDatabase(FilePlace(path)).reading() as connection, store_at(path) as owner:  # comes meanwhile
        add_trials(owner, 3, 5)
        with pytest.raises(OperationalError, match="readonly"):
            connection.exec_driver_sql("DELETE FROM trials")
    assert len(load_study(path).trials) == 5
    path.write_bytes(before)
    assert len(load_study(path).trials) == 3
    assert path.read_bytes() == before and sorted(path.parent.iterdir()) == there


def add_trials(store: StudyStore, first: int, last: int) -> None:
    store.asked([TrialSpec(n, n, {}, {}) for n in range(first, last)])
    store.recorded([EpochRow(n, 1, 0.5, 0.25, {"loss": 0.5}) for n in range(first, last)])
    store.flush()


def shut(path: Path) -> None:
    """Move what is in the log to the file, as any program may that has the file open."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_a_power_cut_in_the_first_transaction_leaves_a_path_that_can_be_used(path: Path) -> None:
    """Pages that were never synced, and the journal that takes them back: nothing had been acknowledged."""
    path.write_bytes(bytes(4 * 4096))
    with pytest.raises(StorageError, match="is not an SQLite file"):  # of zeros alone nobody knows whose they are
        store_at(path)
    # https://www.sqlite.org/fileformat2.html#the_rollback_journal: no pages to restore, a file of no pages before
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 7, 0, 512, 4096)
    journal = Path(f"{path}-journal")
    journal.write_bytes(header.ljust(512, b"\0"))
    with store_at(path) as store:
        store.asked([TrialSpec(0, 0, {}, {})])
    assert len(load_study(str(path)).trials) == 1 and not journal.exists()


def test_a_lock_file_that_is_removed_is_made_again(path: Path) -> None:
    lock = Path(f"{path}.lock")
    with store_at(path) as store:
        lock.unlink()
        store.asked([TrialSpec(0, 0, {}, {})])
        store.flush()
        with pytest.raises(StudyLockedError, match=f"process {os.getpid()} on"):
            store_at(path)
    assert not lock.exists()
    store = store_at(path)
    lock.unlink()
    with store_at(path) as second:  # who came first writes no more
        store.asked([TrialSpec(1, 1, {}, {})])
        for call in (store.flush, store.close):
            with pytest.raises(StorageError, match=r"in use by process \d+ on host .*What was queued since"):
                call()
        second.asked([TrialSpec(1, 1, {}, {})])
        assert len(second.load().trials) == 2


def test_names_that_are_too_long_for_a_file_are_cut(path: Path) -> None:
    made = set()
    for name in ("é" * 120, "é" * 119 + "e", "a/" * 60):
        with StudyStore.open(str(path), name=name, direction="minimize") as store:
            store.beside(".snapshots").mkdir()
            made.add(store.beside(".snapshots").name)
    assert len(made) == 3 and all(len(name) < 150 for name in made)


def test_a_folder_or_disk_that_cannot_lock_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    def no_locks(fd: int) -> None:
        raise OSError(37, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", denied)
        with pytest.raises(StorageError, match=r"cannot write in the folder .* \(Permission denied\): change its"):
            store_at(path)
    monkeypatch.setattr(_lock, "_lock", no_locks)
    with pytest.raises(StorageError, match=r"cannot lock files \(No locks available\): put the study on a local disk"):
        store_at(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgres://me:secret@host/db", "kind postgres:// cannot be used: write postgresql:// instead"),
        (
            "postgresql+psycopg2://me:secret@host/db",
            r"kind postgresql\+psycopg2:// cannot be used: write postgresql://",
        ),
        ("postgresql://me:secret@host", "a PostgreSQL URL names a database"),
        ("postgresql://me:sec/secret@host/db", "the PostgreSQL URL cannot be read"),
        ("postgresql://me:12/secret@host/db", "the PostgreSQL URL cannot be read"),
        ("postgresql://me:secret#@host/db", "the PostgreSQL URL cannot be read"),
        ("postgresql:/me:secret@host/study.db", "this storage is neither a database's URL nor a path to a study file"),
        (" Postgres+psycopg:me:secret@host/study.sqlite", "this storage is neither a database's URL nor a path"),
        ("me:secret@host://study.db", "this storage is neither a database's URL nor a path"),
        ("mysql+pymysql://me:secret@host/db", r"kind mysql\+pymysql:// cannot be used, only SQLite and PostgreSQL"),
        ("me:secret@host.txt", "this storage is neither a database's URL nor a path to a study file"),
        ("study.txt", "storage 'study.txt' is neither"),
        ("sqlite://", "must live in a file, not in a database in memory"),
        ("sqlite:///:memory:", "must live in a file, not in a database in memory"),
        ("sqlite://study.db", "three slashes before the path, four before an absolute one"),
        ("sqlite:///study.db?timeout=3", "options after '\\?' in an SQLite URL are not supported"),
        ("sqlite:////no/such/folder/x.db", "the folder /no/such/folder of the study file x.db does not exist"),
    ],
)
def test_a_place_that_cannot_be_used_is_explained(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        store_at(url)
    assert "secret" not in str(caught.value)


def not_sqlite(path: Path) -> None:
    path.write_text("a, b\n1, 2\n" * 100)


def directory(path: Path) -> None:
    path.mkdir()


def damaged(path: Path) -> None:
    store_at(path).close()
    with path.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff" * 4000)


def other_tables(path: Path) -> None:
    run_sql(path, "CREATE TABLE bookmarks (url TEXT)")


def plain_study(path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.create_study(study_name="digits", storage=f"sqlite:///{path}", direction="maximize")


def unknown_revision(path: Path) -> None:
    plain_study(path)
    run_sql(path, "UPDATE alembic_version SET version_num = 'v9.0.0.a'")


def no_revision(path: Path) -> None:
    plain_study(path)
    run_sql(path, "DROP TABLE alembic_version")


def newer_shoal(path: Path) -> None:
    store_at(path).close()
    run_sql(path, "UPDATE shoal_meta SET json = '2' WHERE key = '_format'")


def other_direction(path: Path) -> None:
    store_at(path, "minimize").close()


def run_sql(path: Path, sql: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


REFUSED: list[tuple[Callable[[Path], None], str, str | None]] = [
    (not_sqlite, "is not an SQLite file: choose another path", "is not an SQLite file"),
    (directory, "is not a file: choose another path", "is not a file"),
    (damaged, r"opening the study file .* failed: .*\. The file is damaged", "reading the study file .* failed"),
    (other_tables, "is an SQLite file but holds no Optuna study", "holds no Optuna study"),
    (
        plain_study,
        "'digits' in .* belongs to plain Optuna; choose another storage or name",
        "holds no study of Shoal's",
    ),
    (unknown_revision, "schema revision v9.0.0.a, which is unknown here", "schema revision v9.0.0.a"),
    (no_revision, "schema revision none, which is unknown here", "schema revision none"),
    (
        newer_shoal,
        r"written by another version of Shoal \(format 2, this version knows 1\)",
        "another version of Shoal",
    ),
    (other_direction, "wants to minimize its value, not to maximize it", None),
]


@pytest.mark.parametrize(("make", "opening", "reading"), REFUSED, ids=[make.__name__ for make, _, _ in REFUSED])
def test_a_file_that_is_not_ours_is_refused_and_not_changed(
    path: Path, make: Callable[[Path], None], opening: str, reading: str | None
) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(StorageError, match=opening):
        store_at(path)
    if reading is not None:
        with pytest.raises(StorageError, match=reading):
            load_study(str(path))
    assert (path.read_bytes() if path.is_file() else b"") == before
    assert not Path(f"{path}.lock").exists()


def test_an_optuna_with_newer_tables_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "installed_revision", lambda: "v9.0.0.a")
    with pytest.raises(
        StorageError, match=r"Optuna \S+ writes tables of the schema revision v9.0.0.a, which is unknown"
    ):
        store_at(path)


def test_reading_what_is_not_there_is_explained(path: Path) -> None:
    with pytest.raises(StorageError, match=re.escape(f"there is no study file at {path}")):
        load_study(str(path))
    path.touch()
    with pytest.raises(StorageError, match="is empty and holds no study"):
        load_study(str(path))
    store_at(path).close()
    with pytest.raises(StorageError, match=r"holds no study 'digit'. Did you mean 'digits'\?"):
        load_study(str(path), "digit")


def test_unreadable_and_readonly_files_are_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_at(path).close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # root, who runs some of these tests, may write anything
        with pytest.raises(StorageError, match="cannot be written: change its permissions"):
            store_at(path)

    def denied(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(StorageError, match=r"cannot be read: Permission denied"):
        load_study(str(path))


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write in any folder")
def test_a_closed_study_in_a_readonly_folder_can_be_read(path: Path) -> None:
    store_at(path).close()
    path.parent.chmod(0o555)
    try:
        assert load_study(str(path)).name == "digits"
    finally:
        path.parent.chmod(0o755)


def test_a_closed_store_and_an_empty_name_are_refused(path: Path) -> None:
    store = store_at(path)
    store.close()
    store.close()
    with pytest.raises(StorageError, match="'digits' is closed: open it again"):
        store.set_meta({"metric": "accuracy"})
    with pytest.raises(StorageError, match="a study needs a name"):
        StudyStore.open(str(path), name="", direction="minimize")


def test_a_full_disk_is_reported_by_every_later_call_and_frees_the_lock(path: Path) -> None:
    store = store_at(path)
    store.asked([TrialSpec(0, 0, {}, {})])
    store.flush()
    pages = store._owner.connection.exec_driver_sql("PRAGMA page_count").scalar()
    store._owner.connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    store.happened([Event(0, "solo", data={"reason": "x" * 100_000})])
    for call in (store.flush, store.load, lambda: store.asked([TrialSpec(1, 1, {}, {})]), store.close):
        with pytest.raises(
            StorageError, match=r"writing to the study file .* full. Free some space.*since the last commit"
        ):
            call()
    with store_at(path) as again:
        assert len(again.load().trials) == 1
        assert again.load().events == ()
