"""Kills: of the whole study at any moment, and of one of its workers. What was finished stays, and ``resume`` goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from shoal.errors import StorageError
from shoal.records import StudyRecord, TrialState
from shoal.storage import load_study

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")

FILE = """
import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import shoal


def define(trial):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=4)


def data():
    x = torch.randn(2048, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(dim=1)
    return TensorDataset(x[:1024], y[:1024]), TensorDataset(x[1024:], y[1024:])


options = {"metric": "loss", "n_trials": 64, "max_epochs": 2, "scheduler": "none", "sampler": "random"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "killed.py").write_text(FILE, encoding="utf-8")
    return tmp_path


def shoal(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "shoal", *words], cwd=folder, capture_output=True, text=True)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    words = (sys.executable, "-m", "shoal", "tune", "killed.py", *words)
    env = os.environ | {"OMP_NUM_THREADS": "2"}  # one thread, as these tests have, would mean one process
    return subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """The workers of a process, which are forked: a compiler, say, has a command line of its own."""
    found, command = [], Path(f"/proc/{pid}/cmdline")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text(encoding="utf-8")
            same = (stat.parent / "cmdline").read_bytes() == command.read_bytes()
        except OSError:  # gone in the meantime
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if int(parent) == pid and state != "Z" and same:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(path: Path, n_rows: int, process: subprocess.Popen[str], deadline_s: float = 180) -> None:
    """Until so many epochs are in the file."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        assert process.poll() is None, "the study was over before it could be killed"
        try:
            if sum(len(t.rows) for t in load_study(str(path)).trials) >= n_rows:
                return
        except StorageError:  # no file yet, or no table in it
            pass
        time.sleep(0.02)
    raise AssertionError(f"not {n_rows} epochs within {deadline_s} s")


def ended(record: StudyRecord) -> dict[int, object]:
    """Trials that are over; rounds that are run again after a kill have times of their own."""
    return {
        t.spec.number: (t.spec, t.state, t.value, t.epoch, [replace(r, time_s=0.0) for r in t.rows])
        for t in record.trials
        if t.state is not TrialState.RUNNING
    }


def test_sigkill_and_resume_again_and_again(folder: Path) -> None:
    path = folder / "killed.db"
    order = random.Random(0)
    words: tuple[str, ...] = ("--storage", "killed.db", "--n-trials", "80", "--max-epochs", "6", "--sampler", "tpe")
    earlier: dict[int, object] = {}
    for n_rows in (1, 240):  # 32 trials of 6 epochs end together, after 192
        process = start(folder, *words)  # tune with the same file and options continues it as resume does
        wait_for(path, n_rows, process)
        time.sleep(order.uniform(0, 0.5))
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        before = ended(load_study(str(path)))
        until = time.monotonic() + 5
        while any(alive(w) for w in workers):
            assert time.monotonic() < until, "a worker outlived the study that was killed"
            time.sleep(0.05)
        assert all(before[number] == trial for number, trial in earlier.items())
        earlier = before
    done = shoal(folder, "resume", "killed.db", "killed.py", "--quiet")
    assert done.returncode == 0, done.stderr
    record = load_study(str(path))
    assert earlier and all(ended(record)[number] == trial for number, trial in earlier.items())
    assert [t.spec.number for t in record.trials] == list(range(80))
    assert all(t.state is TrialState.FINISHED and [r.epoch for r in t.rows] == list(range(1, 7)) for t in record.trials)
    best = record.best()
    assert best is not None and (folder / "killed.weights" / f"trial_{best.spec.number:06d}.safetensors").is_file()
    assert optuna.load_study(study_name=None, storage=f"sqlite:///{path}").best_value == best.value


def test_a_worker_that_is_killed(folder: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core has no workers")
    process = start(folder, "--n-trials", "64", "--max-epochs", "150", "--storage", "killed.db")
    wait_for(folder / "killed.db", 1, process)
    workers = children(process.pid)
    assert workers
    os.kill(workers[0], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "a worker process died (exit code -9" in error and "It goes on by itself now" in error
    trials = load_study(str(folder / "killed.db")).trials
    assert [(t.state, len(t.rows)) for t in trials] == [(TrialState.FINISHED, 150)] * 64
