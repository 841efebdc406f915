"""The command line as a person uses it: processes, files, and the real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.cli import main

FILE = """
import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import shoal


def define(trial):
    width = trial.suggest_categorical("width", [8, 16])
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=32)


def data():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(384, 4, generator=generator)
    targets = inputs[:, :3].argmax(dim=1)
    return tuple(TensorDataset(inputs[k : k + 128], targets[k : k + 128]) for k in (0, 128, 256))


options = {"metric": "accuracy", "max_epochs": 3, "n_trials": 100}
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which takes seconds to import torch."""
    return subprocess.run(
        [sys.executable, "-m", "shoal", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@dataclass(frozen=True)
class Done:
    """What a command did in this process."""

    returncode: int
    stdout: str
    stderr: str


class Here:
    """Runs commands in this process, in the study's folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> Done:
        self._capsys.readouterr()
        code = main(list(words))
        return Done(code, *self._capsys.readouterr())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "small_study.py").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("small_study", None)


@pytest.fixture
def here(folder: Path, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(capsys)


def test_a_study_from_start_to_report(folder: Path, here: Here) -> None:
    further = ("--metrics", "auroc,recall_class_2")
    done = run(folder, "tune", "small_study.py", "--n-trials", "6", "--report", "r.html", *further)
    assert done.returncode == 0, done.stderr
    assert "best trial" in done.stdout and "validation  accuracy" in done.stdout and "test        " in done.stdout
    assert "small_study.db" in done.stdout and (folder / "small_study.db").is_file()
    assert "Best configuration" in (folder / "r.html").read_text(encoding="utf-8")

    best = here("best", "small_study.db", "--json")
    assert best.returncode == 0, best.stderr
    facts = json.loads(best.stdout)
    assert set(facts["params"]) == {"width", "lr"} and 0 <= facts["value"] <= 1 and 0 <= facts["test"]["accuracy"] <= 1
    assert (folder / facts["weights"]).is_file() and {"auroc", "recall_class_2"} <= set(facts["valid"])

    more = here("resume", "small_study.db", "small_study.py", "--n-trials", "9", "--json")
    assert more.returncode == 0, more.stderr
    lines = [json.loads(line) for line in more.stdout.splitlines()]
    assert lines[-1]["event"] == "result" and lines[-1]["value"] >= facts["value"]
    last = [line for line in lines if line["event"] == "progress"][-1]
    assert last["n_trials"] == last["finished"] + last["stopped"] == 9

    report = here("report", "small_study.db")
    assert report.returncode == 0, report.stderr
    assert report.stdout.strip() == "small_study.html" and (folder / "small_study.html").is_file()


def test_explain(folder: Path, here: Here) -> None:
    done = here("explain", "small_study.py", "--n-trials", "4")
    assert done.returncode == 0, done.stderr
    assert "fleet" in done.stdout and not (folder / "small_study.db").exists()


def test_errors_are_one_message_and_no_traceback(folder: Path, here: Here) -> None:
    done = run(folder, "tune", "small_study.py", "--metric", "acuracy")
    assert done.returncode == 2 and done.stderr.startswith("shoal: error: ") and "Traceback" not in done.stderr
    there = here("resume", "nowhere.db", "small_study.py")
    assert there.returncode == 1 and there.stderr.startswith("shoal: error: ") and "Traceback" not in there.stderr


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_and_resume(folder: Path, here: Here) -> None:
    words = ["tune", "small_study.py", "--n-trials", "100", "--max-epochs", "12", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    deadline_s = time.monotonic() + 120
    for line in process.stdout:
        facts = json.loads(line)
        assert time.monotonic() < deadline_s and facts["event"] != "result"
        if facts["event"] == "progress" and facts["finished"] >= 1:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "go on with: shoal resume small_study.db small_study.py" in err
    assert json.loads(out.splitlines()[-1])["interrupted"] is True

    # A time limit is no failure; what is left is said in the same way.
    done = here("resume", "small_study.db", "small_study.py", "--timeout", "0.2", "--quiet")
    assert done.returncode == 0 and "best trial" in done.stdout, done.stderr
    assert "shoal: out of time; go on with: shoal resume small_study.db small_study.py" in done.stderr

    done = here("resume", "small_study.db", "small_study.py", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    last = [line for line in lines if line["event"] == "progress"][-1]
    assert last["finished"] + last["stopped"] == last["n_trials"] == 100
