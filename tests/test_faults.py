"""What goes wrong while a study trains: each fault is put in on purpose, and what docs/reliability.md promises of it is held."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from shoal import sealed_file, session, snapshots, tuning
from shoal.asking import Asker
from shoal.errors import StorageError, UsageError
from shoal.lanes.fleet import Fleet
from shoal.lanes.workers import PoolSet, WorkerDied
from shoal.records import Progress, StudyRecord, TrialState
from shoal.snapshots import Snapshots
from shoal.storage import StudyStore, _rows, load_study

G = torch.Generator().manual_seed(0)
X = torch.randn(64, 4, generator=G)
Y = X[:, :3].argmax(dim=1)
OPTIONS: dict[str, Any] = {
    "train": (X, Y),
    "max_epochs": 3,
    "scheduler": "none",
    "sampler": "random",
    "progress": False,
    "reproducible": True,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*trains solo:RuntimeWarning"),
    pytest.mark.skipif(os.name != "posix", reason="sends signals"),
]


def define(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3)
    return shoal.Recipe(
        model, optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.01, 1.0)), nn.CrossEntropyLoss(), 32
    )


class Slow(nn.Module):
    """Looks at values, so that it trains alone; in training it takes its time, once it is told to."""

    sleep_s = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(x.detach().abs().sum()) >= 0.0:
            time.sleep(Slow.sleep_s)
        return x


def some_slow(trial: Any) -> shoal.Recipe:
    recipe = define(trial)
    if trial.number != 1:
        return recipe
    model = nn.Sequential(Slow(), nn.Linear(4, 3))
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 32)


@pytest.fixture(autouse=True)
def awake() -> Iterator[None]:
    yield
    Slow.sleep_s = 0.0


def outcomes(record: StudyRecord) -> list[Any]:
    return [
        (t.spec.number, t.state, t.value, [(r.epoch, r.train_loss, r.value) for r in t.rows]) for t in record.trials
    ]


@pytest.fixture(scope="module")
def straight() -> list[Any]:
    return outcomes(shoal.tune(define, n_trials=6, **OPTIONS).record)


# -- trials -------------------------------------------------------------------------------------------------------------------


def test_trials_that_raise_or_diverge_end_alone(straight: list[Any]) -> None:
    def faulty(trial: Any) -> shoal.Recipe:
        recipe = define(trial)
        if trial.number == 1:
            raise KeyError("no such layer")
        if trial.number == 2:
            recipe.model.register_forward_pre_hook(lambda *_: 1 / 0)
        if trial.number == 3:
            recipe.optimizer.param_groups[0]["lr"] = 3e38
        return recipe

    record = shoal.tune(faulty, n_trials=6, **OPTIONS).record
    states = [t.state.value for t in record.trials]
    assert states[:3] + states[4:] == ["finished", "failed", "failed", "finished", "finished"]
    assert "trial 1: define raised KeyError: 'no such layer'" in record.trials[1].reason
    assert "ZeroDivisionError" in record.trials[2].reason and "trial 2" in record.trials[2].reason
    diverged = record.trials[3]
    assert (states[3] == "failed") == (diverged.value is None) and "not finite" in diverged.reason
    for n in (0, 4, 5):  # in a fleet of another width
        assert [r[2] for r in outcomes(record)[n][3]] == pytest.approx([r[2] for r in straight[n][3]], rel=1e-4)


# -- time ---------------------------------------------------------------------------------------------------------------------


def test_a_define_that_hangs_fails_its_trial_and_no_other(straight: list[Any]) -> None:
    def hangs(trial: Any) -> shoal.Recipe:
        if trial.number == 2:
            time.sleep(60)
        return define(trial)

    record = shoal.tune(hangs, n_trials=6, trial_timeout_s=1.0, **OPTIONS).record
    assert record.trials[2].state is TrialState.FAILED
    assert "trial 2: define raised OutOfTime: it took longer than 1 s (trial_timeout_s)" in record.trials[2].reason
    assert [o[:2] for o in outcomes(record) if o[0] != 2] == [o[:2] for o in straight if o[0] != 2]


def test_an_epoch_that_hangs_fails_its_trial_and_no_other() -> None:
    def slow(p: Progress) -> None:
        Slow.sleep_s = 60.0

    record = shoal.tune(some_slow, n_trials=4, trial_timeout_s=1.0, **(OPTIONS | {"progress": slow})).record
    assert [t.state for t in record.trials] == [TrialState.FINISHED, TrialState.FAILED, *[TrialState.FINISHED] * 2]
    assert "trial 1: training raised OutOfTime: it took longer than 1 s" in record.trials[1].reason
    assert [e.trial for e in record.events if e.kind == "cut off"] == [1]


def test_a_fleet_that_hangs_is_taken_apart(monkeypatch: pytest.MonkeyPatch, straight: list[Any]) -> None:
    epoch, calls = Fleet.run_epoch, []

    def hangs(self: Fleet) -> Any:
        calls.append(self)
        if len(calls) == 2:
            time.sleep(60)
        return epoch(self)

    monkeypatch.setattr(Fleet, "run_epoch", hangs)
    record = shoal.tune(define, n_trials=6, trial_timeout_s=0.3, **OPTIONS).record
    assert len(calls) == 2 and all(t.state is TrialState.FINISHED for t in record.trials)
    for ours, theirs in zip(outcomes(record), straight, strict=True):  # alone from the start, their first epoch unseen
        assert [r[0] for r in ours[3]] == [1, 2, 3]
        assert [r[2] for r in ours[3]] == pytest.approx([r[2] for r in theirs[3]], rel=1e-4)


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(UsageError, match="trial_timeout_s must be a positive number of seconds, not 0"):
        shoal.tune(define, trial_timeout_s=0, **OPTIONS)


def test_a_clock_that_jumps_moves_nothing(monkeypatch: pytest.MonkeyPatch, straight: list[Any]) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600.0 * next(jumps))
    record = shoal.tune(define, n_trials=6, timeout_s=600, **OPTIONS).record
    assert outcomes(record) == straight
    times = [row.time_s for t in record.trials for row in t.rows]
    assert all(0 <= at < 600 for at in times) and all(0 <= e.time_s < 600 for e in record.events)


# -- memory -------------------------------------------------------------------------------------------------------------------

NO_MEMORY = (
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
)


@pytest.mark.parametrize("error", NO_MEMORY, ids=["python", "torch"])
def test_a_fleet_without_memory_gets_narrower(
    error: Exception, monkeypatch: pytest.MonkeyPatch, straight: list[Any]
) -> None:
    epoch, rounds = Fleet.run_epoch, []

    def hungry(self: Fleet) -> Any:
        rounds.append(self.width)
        if self.width > 4 and len(rounds) >= 2:
            raise error
        return epoch(self)

    monkeypatch.setattr(Fleet, "run_epoch", hungry)
    record = shoal.tune(define, n_trials=6, **OPTIONS).record
    (narrowed,) = [e for e in record.events if e.kind == "narrowed"]
    assert narrowed.data["width"] == 2 and "there was no memory for 6 lanes" in str(narrowed.data["reason"])
    assert rounds[:2] == [6, 6] and set(rounds[2:]) == {2}
    assert all(t.state is TrialState.FINISHED for t in record.trials)
    for ours, theirs in zip(outcomes(record), straight, strict=True):
        assert [r[0] for r in ours[3]] == [1, 2, 3]
        assert [r[2] for r in ours[3]] == pytest.approx([r[2] for r in theirs[3]], rel=1e-4)


def test_a_trial_without_memory_fails_alone() -> None:
    def hungry(trial: Any) -> shoal.Recipe:
        recipe = some_slow(trial)
        if trial.number == 1:
            recipe.model.register_forward_pre_hook(lambda *_: torch.empty(2**55))
        return recipe

    record = shoal.tune(hungry, n_trials=3, **OPTIONS).record
    assert [t.state.value for t in record.trials] == ["finished", "failed", "finished"]
    assert "trial 1: training raised RuntimeError" in record.trials[1].reason


# -- processes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are forked")
@pytest.mark.parametrize("stored", [True, False])
def test_a_study_outlives_a_worker_that_is_killed(
    stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "n_workers", lambda *_, **__: 2)
    monkeypatch.setattr(Snapshots, "due", lambda self: True)
    pools: list[PoolSet] = []
    monkeypatch.setattr(PoolSet, "recall", lambda self, decisions: pools.append(self))
    rounds, restores = [], []
    restore = PoolSet.restore

    def kill(p: Progress) -> None:
        rounds.append(p)
        if len(rounds) == 2:
            os.kill(pools[0]._remotes[0].process.pid, signal.SIGKILL)

    def killed_again(self: PoolSet, *args: Any) -> None:
        restores.append(self)
        if len(restores) == 1:  # also the worker that is to go on from the snapshot
            os.kill(self._remotes[0].process.pid, signal.SIGKILL)
            self._remotes[0].process.join()
        restore(self, *args)

    monkeypatch.setattr(PoolSet, "restore", killed_again)

    options = OPTIONS | {"n_trials": 16, "progress": kill, "storage": tmp_path / "s.db" if stored else None}
    with pytest.warns(RuntimeWarning, match=r"a worker process died \(exit code -9.*goes on by itself"):
        record = shoal.tune(define, **options).record
    assert len(pools) == 2 and len(restores) == 2 * stored
    if stored:
        rounds[:] = [rounds[0]] * 2
        whole = shoal.tune(define, **(options | {"storage": None})).record
        assert outcomes(record) == outcomes(whole)  # from the snapshot: to the last bit
    assert [(t.state, [r.epoch for r in t.rows]) for t in record.trials] == [(TrialState.FINISHED, [1, 2, 3])] * 16


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are forked")
def test_workers_that_always_die_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "n_workers", lambda *_, **__: 2)
    owner = os.getpid()

    def deadly(trial: Any) -> shoal.Recipe:
        if os.getpid() != owner:
            os.kill(os.getpid(), signal.SIGKILL)
        return define(trial)

    with pytest.raises(WorkerDied, match="resume the study to go on"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        shoal.tune(deadly, n_trials=16, **OPTIONS)
    assert sum("goes on by itself" in str(w.message) for w in said) == 2


def test_sigterm_ends_the_round_and_takes_a_snapshot(tmp_path: Path, straight: list[Any]) -> None:
    rounds = []

    def terminate(p: Progress) -> None:
        rounds.append(p)
        if len(rounds) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    options = OPTIONS | {"n_trials": 6, "storage": tmp_path / "s.db"}
    study = shoal.tune(define, **(options | {"progress": terminate}))
    assert study.interrupted and study.terminated and not study.timed_out
    assert [len(t.rows) for t in study.record.trials] == [2] * 6
    study = shoal.tune(define, **options)
    assert outcomes(study.record) == straight and not study.interrupted


def test_a_second_ctrl_c_ends_at_once_and_what_was_queued_is_kept(tmp_path: Path) -> None:
    rounds = []

    def interrupt(p: Progress) -> None:
        rounds.append(p)
        if len(rounds) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        shoal.tune(define, n_trials=6, storage=tmp_path / "s.db", **(OPTIONS | {"progress": interrupt}))
    assert [len(t.rows) for t in load_study(str(tmp_path / "s.db")).trials] == [2] * 6


def test_sigterm_does_not_wait_for_an_epoch_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "GRACE_S", 0.3)
    path = tmp_path / "s.db"
    rounds: list[threading.Timer] = []

    def terminate(p: Progress) -> None:
        Slow.sleep_s = 60.0
        rounds.append(threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]))
        rounds[-1].start()

    started = time.monotonic()
    with pytest.raises(session.Terminated) as raised:
        shoal.tune(some_slow, storage=path, n_trials=3, **(OPTIONS | {"progress": terminate}))
    assert raised.value.code == 143 and time.monotonic() - started < 30
    assert [len(t.rows) for t in load_study(str(path)).trials] == [1, 1, 1]


# -- disks --------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_study_and_loses_nothing_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: list[Any]
) -> None:
    commit = _rows.RowWriter.commit
    full: list[Progress] = []

    def fills(self: _rows.RowWriter, batch: Any) -> None:
        if full:
            raise StorageError(
                "writing to the study file failed: database or disk is full. Free some space, then resume the study."
            )
        commit(self, batch)

    def fill(p: Progress) -> None:
        if p.epochs_done >= 12:
            full.append(p)

    path = tmp_path / "s.db"
    with monkeypatch.context() as patch:
        patch.setattr(_rows.RowWriter, "commit", fills)
        patch.setattr(Snapshots, "due", lambda self: True)  # waits for the disk, and so hears of it at once
        with pytest.raises(StorageError, match="Free some space, then resume the study"):
            shoal.tune(define, n_trials=6, storage=path, **(OPTIONS | {"progress": fill}))
    assert [len(t.rows) for t in load_study(str(path)).trials] == [1] * 6  # the second round was not acknowledged
    assert outcomes(shoal.tune(define, n_trials=6, storage=path, **OPTIONS).record) == straight


def interrupted(path: Path, snapshots_at: Callable[[int], bool] = lambda _: True) -> None:
    """A study with two rounds behind it that was killed."""

    class Killed(Exception):
        pass

    rounds = []

    def report(p: Progress) -> None:
        rounds.append(p)
        if len(rounds) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Snapshots, "due", lambda self: bool(rounds) and snapshots_at(len(rounds)))
        shoal.tune(define, n_trials=6, storage=path, **(OPTIONS | {"progress": report}))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "s.db"
    interrupted(path)
    return path


@pytest.fixture
def copied(killed: Path, tmp_path: Path) -> Path:
    """A study that was killed after its second round, with a snapshot of the first."""
    shutil.copytree(killed.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / killed.name


def rewritten(path: Path, key: str, change: Callable[[Any], Any]) -> None:
    """Change a fact of a study file."""
    connection = sqlite3.connect(path)
    ((text,),) = connection.execute("SELECT json FROM shoal_meta WHERE key = ?", (key,)).fetchall()
    connection.execute("UPDATE shoal_meta SET json = ? WHERE key = ?", (json.dumps(change(json.loads(text))), key))
    connection.commit()
    connection.close()


def test_a_snapshot_that_cannot_be_written_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: list[Any]
) -> None:
    (tmp_path / "s.snapshots").write_text("in the way", encoding="utf-8")
    monkeypatch.setattr(snapshots, "MIN_INTERVAL_S", 0.0)
    with pytest.warns(
        RuntimeWarning, match="no snapshot was taken, so after an interruption the study goes on from round 0"
    ):
        study = shoal.tune(define, n_trials=6, storage=tmp_path / "s.db", **OPTIONS)
    assert outcomes(study.record) == straight


@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_snapshot_is_said_and_not_used(how: str, copied: Path, straight: list[Any]) -> None:
    (file,) = copied.with_suffix(".snapshots").iterdir()
    raw = file.read_bytes()
    if how == "cut":
        file.write_bytes(raw[:-7])
    elif how == "flipped":
        file.write_bytes(raw[:-7] + bytes([raw[-7] ^ 1]) + raw[-6:])
    else:
        file.unlink()
    what = {"cut": f"has {len(raw) - 7} bytes, not the", "flipped": "checksum is not", "gone": "cannot be read"}[how]
    with pytest.warns(RuntimeWarning, match=f"a snapshot cannot be used: .*{what}"):
        study = shoal.tune(define, n_trials=6, storage=copied, **OPTIONS)
    assert outcomes(study.record) == straight  # from their first epochs, and all of them together: the same width


def test_a_snapshot_of_another_model_is_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bias = nn.Linear.__init__
    monkeypatch.setattr(nn.Linear, "__init__", lambda self, a, b: bias(self, a, b, bias=False))
    with pytest.raises(
        StorageError, match="trial 0 has another model, loss or optimizer than when the study was interrupted"
    ):
        shoal.tune(define, n_trials=6, storage=copied, **OPTIONS)


@pytest.mark.parametrize("after", ["the snapshot is forgotten", "the rows are gone"])
def test_a_kill_while_a_study_starts_again_roughly(after: str, tmp_path: Path, straight: list[Any]) -> None:
    """With other options, rounds cannot be repeated: trials start again, and the snapshot must not be gone back to without them."""
    path = tmp_path / "s.db"
    interrupted(path, lambda round_: round_ == 1)

    class Killed(Exception):
        pass

    def kill(*args: Any) -> None:
        raise Killed

    forgotten = after == "the snapshot is forgotten"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(StudyStore if forgotten else Asker, "restart" if forgotten else "restore", kill)
        shoal.tune(define, n_trials=7, storage=path, **OPTIONS)
    assert {len(t.rows) for t in load_study(str(path)).trials} == {2 if forgotten else 0}
    assert outcomes(shoal.tune(define, n_trials=6, storage=path, **OPTIONS).record) == straight


@pytest.mark.parametrize(
    "wrong",
    [
        {"tick": -1},
        {"tick": {"$float": "inf"}},
        {"time_s": {"$float": "nan"}},
        {"n_asked": 3},
        {"open": {"0": True}},
        {"open": []},
        {"open": {"2000": 1}},
        {"paused": {"0": 1}, "open": {}},
        {"bare": [0]},
        {"pending": [0]},
        {"pool": {"files": [{"name": "../x", "bytes": 1, "sha256": "00"}]}},
        {"pool": 3},
    ],
    ids=repr,
)
def test_a_snapshot_that_makes_no_sense_is_refused(wrong: dict[str, Any], copied: Path) -> None:
    rewritten(copied, "snapshots", lambda found: [{**found[0], **wrong}])
    with pytest.raises(StorageError, match=r"describes no snapshot|does not describe a file of a snapshot"):
        shoal.tune(define, n_trials=6, storage=copied, **OPTIONS)


@pytest.mark.parametrize("wrong", [{"running": {"0": 7}}, {"costs": {}}, {"paused": []}, {"costs": {"0": 1}}], ids=repr)
def test_a_snapshot_whose_trials_are_nowhere_is_refused(wrong: dict[str, Any], copied: Path) -> None:
    rewritten(copied, "snapshots", lambda found: [{**found[0], "pool": {**found[0]["pool"], **wrong}}])
    with pytest.raises(StorageError, match="the study file describes no snapshot"):
        shoal.tune(define, n_trials=6, storage=copied, **OPTIONS)


@pytest.mark.parametrize(
    ("key", "held"),
    [("storage", "x.db"), ("train", []), ("n_trials", "9"), ("max_epochs", None), ("device", True), ("no_such", 1)],
)
def test_options_that_tune_does_not_store_are_not_passed_on(key: str, held: Any, copied: Path) -> None:
    rewritten(copied, "options", lambda found: {**found, key: held})
    with pytest.raises(
        StorageError, match=rf"holds '{key}'=.* as an option, which tune\(\) does not store: it is damaged, or"
    ):
        shoal.resume(copied, define, train=OPTIONS["train"])


def test_what_a_seal_may_say() -> None:
    good = {"name": "tick_000001.0.safetensors", "bytes": 8, "sha256": "00"}
    assert sealed_file.Seal.of(good).as_json() == good
    for bad in (
        {**good, "name": "../etc/passwd"},
        {**good, "name": ""},
        {**good, "bytes": "8"},
        {**good, "more": 1},
        None,
    ):
        with pytest.raises(StorageError, match="does not describe a file of a snapshot"):
            sealed_file.Seal.of(bad)


def test_every_test_that_the_page_on_reliability_names_is_there() -> None:
    tests = Path(__file__).parent
    page = (tests.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:tests/)?(test_\w+)\.py(?:::(test_\w+))?`", page)
    assert sum(bool(test) for _, test in named) >= 12
    for file, test in named:
        assert not test or f"def {test}(" in (tests / f"{file}.py").read_text(encoding="utf-8"), test
