"""What bad input gets: an error that names the trial and says what to do, and a study that is still whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.data import Dataset

import shoal
from shoal.errors import DataError, StorageError, StudyError, UsageError
from shoal.records import TrialState
from shoal.storage import load_study

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(dim=1)


def recipe(trial: Any, *, n_in: int = 4, n_out: int = 3, batch_size: int = 16) -> shoal.Recipe:
    model = nn.Sequential(nn.Linear(n_in, 8), nn.ReLU(), nn.Linear(8, n_out))
    optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=batch_size)


def tune(define: Callable[[Any], Any] = recipe, **more: Any) -> shoal.Study:
    keywords: dict[str, Any] = {"train": (X, Y), "valid": (X, Y), "n_trials": 8, "max_epochs": 1, "progress": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*trains solo", category=RuntimeWarning)
        return shoal.tune(define, **{**keywords, "reproducible": True, **more})


def foreign(trial: Any) -> shoal.Recipe:
    a, b = nn.Linear(4, 3), nn.Linear(4, 3)
    return shoal.Recipe(a, optim.SGD([*a.parameters(), *b.parameters()], lr=0.1), nn.CrossEntropyLoss(), 16)


def missing(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3)
    return shoal.Recipe(model, optim.SGD([model.weight], lr=0.1), nn.CrossEntropyLoss(), 16)


def broken(trial: Any) -> shoal.Recipe:
    raise KeyError("width")


def endless(trial: Any) -> shoal.Recipe:
    made = recipe(trial)
    with torch.no_grad():
        made.model[0].weight.fill_(float("inf"))  # type: ignore[index]
    return made


class Picky(nn.Module):
    """Raises in its forward pass; ``when`` says on which rows."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.linear, self.when = nn.Linear(4, 3), when

    def forward(self, x: Tensor) -> Tensor:
        if self.when == "always" or (self.when == "evaluating" and not self.training):
            raise ZeroDivisionError("no such thing")
        return self.linear(x)  # type: ignore[no-any-return]


def picky(when: str) -> Callable[[Any], shoal.Recipe]:
    def define(trial: Any) -> shoal.Recipe:
        model = Picky(when)
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 16)

    return define


ALWAYS: list[tuple[Callable[[Any], Any], str]] = [
    (broken, r"trial 0: define raised KeyError: 'width' \(test_bad_input.py, line \d+\)"),
    (lambda trial: None, r"trial 0: define\(trial\) must return a shoal.Recipe, not None \(is a return missing\?\)"),
    (lambda trial: nn.Linear(4, 3), r"trial 0: define\(trial\) must return a shoal.Recipe, not Linear"),
    (foreign, r"trial 0: the optimizer holds 2 tensor\(s\) that are not parameters of this model"),
    (missing, r"trial 0: the optimizer misses 1 parameter\(s\) of the model \(bias\); pass model.parameters\(\)"),
    (lambda trial: recipe(trial, batch_size=0), "trial 0: .*must be a whole number of at least 1, not 0"),
    (
        lambda trial: recipe(trial, batch_size=65),
        r"trial 0: batch_size=65 is larger than the training split \(64 samples\)",
    ),
    (endless, "trial 0: its loss was not finite from the first step: check the loss and the targets' range"),
    (lambda trial: recipe(trial, n_in=5), "trial 0: training raised RuntimeError: .*shapes cannot be multiplied"),
    (lambda trial: recipe(trial, n_out=2), "trial 0: training raised IndexError: Target 2 is out of bounds"),
    (picky("always"), r"trial 0: training raised ZeroDivisionError: no such thing \(test_bad_input.py, line \d+\)"),
    (picky("evaluating"), r"trial 0: training raised ZeroDivisionError: no such thing \(test_bad_input.py, line \d+\)"),
]


@pytest.mark.parametrize(("define", "message"), ALWAYS)
def test_what_fails_every_time_stops_the_study(tmp_path: Path, define: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(
        StudyError, match="first 5 trials all failed, so the study was stopped. The first one: " + message
    ):
        tune(define, storage=tmp_path / "s.db")
    stored = load_study(str(tmp_path / "s.db"))
    assert len(stored.trials) in (5, 8) and all(t.state is TrialState.FAILED for t in stored.trials[:5])
    assert all(t.reason.startswith(f"trial {t.spec.number}: ") for t in stored.trials[:5])


@pytest.mark.parametrize(("define", "message"), ALWAYS)
@pytest.mark.parametrize("reproducible", [True, False])
def test_what_fails_sometimes_fails_those_trials_only(
    define: Callable[[Any], Any], message: str, reproducible: bool
) -> None:
    def sometimes(trial: Any) -> Any:
        return define(trial) if trial.number % 2 == 0 else recipe(trial)

    study = tune(sometimes, n_trials=16, reproducible=reproducible)
    states = [t.state for t in study.record.trials]
    assert states == [TrialState.FAILED, TrialState.FINISHED] * 8
    assert study.best_trial.spec.number % 2 == 1


def test_a_fleet_that_raises_in_the_middle_harms_no_other() -> None:
    fused = recipe

    def later(trial: Any) -> shoal.Recipe:
        made = fused(trial)
        if trial.number % 2:
            return made
        # The schedule is the user's code too, and runs between epochs.
        schedule = optim.lr_scheduler.LambdaLR(made.optimizer, lambda epoch: 1.0 if epoch < 2 else 1 / 0)
        return shoal.Recipe(made.model, made.optimizer, made.loss, made.batch_size, schedule=schedule)

    study = tune(later, max_epochs=4, scheduler="none")
    for t in study.record.trials:
        if t.spec.number % 2:
            assert t.state is TrialState.FINISHED and len(t.rows) == 4
        else:
            assert t.state is TrialState.FAILED and "its schedule raised ZeroDivisionError" in t.reason


class Ragged(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(index + 1)


class Augmented(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(4) + random.random()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((X[:0], Y[:0]), "train is empty"),
        ((X, Y[:-1]), "one row per sample, but their lengths are"),
        (Ragged(), "must all have one shape"),
        (Augmented(), r"was fetched twice and differed.*Recipe\(transform=...\)"),
        ((torch.where(X > 2, torch.nan, X), Y), "must be finite"),
    ],
)
def test_data_that_cannot_be_trained_on(tmp_path: Path, train: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tune(train=train, valid=None, storage=tmp_path / "s.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"scheduler": "ahsa"}, "Did you mean 'asha'"),
        ({"metric": ["accuracy", "acc"]}, "Unknown metric 'acc'. Did you mean 'accuracy'?"),
        ({"direction": ("minimize", "maximize")}, "and direction has 2 entries: give one for each"),
        ({"sampler": "tpee"}, "Did you mean 'tpe'"),
        ({"sampler": 3}, "a dict with a name, or an optuna.samplers object, not int"),
        ({"n_trials": 0}, "n_trials must be a whole number of at least 1, not 0"),
        ({"max_epochs": 2.5}, "max_epochs must be a whole number of at least 1, not 2.5"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"timeout_s": 0}, "timeout_s must be a positive number of seconds, not 0"),
        ({"value": "mean"}, "value must be 'last' or 'best', not 'mean'"),
        ({"direction": "up"}, "direction must be 'minimize' or 'maximize', not 'up'"),
        ({"device": "quantum"}, "device='quantum' cannot be used here"),
        ({"define": 7}, "define must be a function of a trial, not int"),
    ],
)
def test_arguments(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tune(**keywords)


def test_an_unknown_keyword_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'metrc'"):
        tune(metrc="accuracy")


def test_choices_that_no_file_can_hold() -> None:
    def define(trial: Any) -> shoal.Recipe:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna has something to say about them as well
            trial.suggest_categorical("activation", [nn.ReLU, nn.Tanh])
        return recipe(trial)

    with pytest.raises(UsageError, match=r"trial 0: the choices of 'activation' cannot be stored.*suggest names"):
        tune(define)


def test_files_that_are_no_study(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one" * 100, encoding="utf-8")
    with pytest.raises(StorageError, match=r"text\.db"):
        tune(storage=tmp_path / "text.db")
    with pytest.raises(StorageError, match=r"no/such/folder|folder"):
        tune(storage=tmp_path / "no" / "such" / "folder" / "s.db")
    with pytest.raises(StorageError, match=r"no study file"):
        shoal.resume(tmp_path / "nowhere.db", recipe, train=(X, Y))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    tune(storage=tmp_path / "s.db", n_trials=1)
    (tmp_path / "s.db").chmod(0o400)
    with pytest.raises(StorageError):
        tune(storage=tmp_path / "s.db", n_trials=2)


FILE = """
import torch, shoal
from torch import nn, optim
from torch.utils.data import TensorDataset

def define(trial):
    model = nn.Linear(4, 3)
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), batch_size=999)

def data():
    return TensorDataset(torch.zeros(8, 4), torch.arange(8) % 3)
"""


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["tune", "f.py"], 1, "shoal: error: the first 5 trials all failed"),
        (["tune", "f.py", "--metrc", "loss"], 2, "unrecognized arguments: --metrc loss. Did you mean '--metric'?"),
        (["resume", "f.db", "f.py", "--n-trial", "3"], 2, "Did you mean '--n-trials'?"),
    ],
)
def test_the_command_line_says_so_too(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    (tmp_path / "f.py").write_text(FILE, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "shoal", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
