"""A study that was killed and resumed ends as one that was not: every value, verdict, event and weight, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from shoal.lanes import native, pool, workers
from shoal.lanes.compiled import Compilation
from shoal.lanes.native._build import compiler
from shoal.lanes.pool import Pool
from shoal.lanes.snapshot import thaw
from shoal.lanes.tryout import time_tick
from shoal.records import Progress, StudyRecord
from shoal.snapshots import Snapshots
from shoal.storage import load_study

G = torch.Generator().manual_seed(0)
X = torch.randn(160, 6, generator=G)
Y = X[:, :3].argmax(dim=1)

pytestmark = pytest.mark.filterwarnings("ignore:.*trains solo:RuntimeWarning")


class Branches(nn.Module):
    """Looks at values to decide, so it has no lane form."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().abs().sum()) >= 0.0 else -x


def lanes(trial: Any) -> shoal.Recipe:
    """Two signatures, three families of optimizers, schedules per step and per epoch."""
    width = trial.suggest_categorical("width", [4, 8])
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    kind = trial.suggest_categorical("optimizer", ["sgd", "nadam", "adagrad"])
    optimizer: optim.Optimizer
    if kind == "sgd":
        optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        schedule: Any = optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total_steps=9 * shoal.steps_per_epoch(trial, 32), div_factor=4
        )
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, schedule=schedule, schedule_every="step")
    optimizer = {"nadam": optim.NAdam, "adagrad": optim.Adagrad}[kind](model.parameters(), lr=lr)
    schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, schedule=schedule)


def mixed(trial: Any) -> shoal.Recipe:
    """Some trials have no lane form: their optimizers keep lists of tensors, or schedules that cannot be stored."""
    first = Branches() if trial.suggest_categorical("solo", [False, True]) else nn.Identity()
    model = nn.Sequential(first, nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    kind = trial.suggest_categorical("optimizer", ["adam", "lbfgs", "lambda"])
    if kind == "lbfgs":
        return shoal.Recipe(model, optim.LBFGS(model.parameters(), lr=lr, max_iter=3), nn.CrossEntropyLoss(), 80)
    optimizer = optim.Adam(model.parameters(), lr=lr)
    schedule: Any = optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)
    if kind == "adam":
        schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 40, schedule=schedule)


class Killed(Exception):
    pass


class Study:
    """A study that is killed after some of its rounds and resumed, until it is over."""

    def __init__(self, folder: Path, define: Callable[[Any], shoal.Recipe], **options: Any) -> None:
        self.folder, self.define = folder, define
        self.options = {"train": (X, Y), "n_trials": 40, "max_epochs": 9, "reproducible": True, **options}

    def run(self, name: str, kills: Mapping[int, int] | None = None) -> StudyRecord:
        """``kills``: round of a session at which it is killed -> snapshots are taken every so many rounds of it."""
        path = self.folder / f"{name}.db"
        for at, every in [*(kills or {}).items(), (10**9, 10**9)]:
            self._session(path, at, every)
        return load_study(str(path))

    def _session(self, path: Path, at: int, every: int) -> None:
        rounds = 0

        def due(self: Snapshots) -> bool:
            return rounds > 0 and rounds % every == 0

        def report(p: Progress) -> None:
            nonlocal rounds
            rounds += 1
            if rounds == at:
                raise Killed

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Snapshots, "due", due)
            shoal.tune(self.define, storage=path, progress=report, **self.options)


def same(a: StudyRecord, b: StudyRecord, folder: Path) -> None:
    def bare(record: StudyRecord) -> Iterator[Any]:
        for t in record.trials:
            yield replace(t, time_s=0.0, rows=tuple(replace(r, time_s=0.0) for r in t.rows))

    def journal(record: StudyRecord) -> list[Any]:
        return [(e.tick, e.kind, e.trial, e.fleet, e.lane, dict(e.data)) for e in record.events]

    for ours, theirs in zip(bare(a), bare(b), strict=True):
        assert repr(ours) == repr(theirs)  # so that NaN is NaN
    assert journal(a) == journal(b)
    for name in ("test", "test_trial", "space"):
        assert a.meta.get(name) == b.meta.get(name)


# Kills: round of a session at which it is killed -> a snapshot is taken every so many rounds of it. And how often that was used.
CASES: dict[str, tuple[Callable[[Any], shoal.Recipe], dict[str, Any], dict[int, int], int]] = {
    "asha and tpe": (lanes, {"scheduler": "asha", "n_trials": 34}, {2: 100, 6: 4}, 1),
    "best epochs, some solo, folds, hyperband": (
        mixed,
        {"scheduler": "hyperband", "value": "best", "sampler": "random", "n_trials": 8, "max_epochs": 5, "folds": 2},
        {4: 2},
        1,
    ),
    "a population, some solo": (
        mixed,
        {"scheduler": "pbt", "value": "best", "sampler": "random", "n_trials": 8, "max_epochs": 5},
        {4: 2},
        1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_uninterrupted(case: str, tmp_path: Path) -> None:
    define, options, kills, n_thawed = CASES[case]
    study = Study(tmp_path, define, **options)
    straight = study.run("straight")
    copies = [e for e in straight.events if e.kind == "copied"]
    assert len({t.state for t in straight.trials}) >= 2 or len(copies) >= 6
    with pytest.MonkeyPatch.context() as patch:
        thawed: list[Any] = []

        def spy(*args: Any) -> None:
            thawed.append(args)
            thaw(*args)

        patch.setattr(workers, "thaw", spy)
        killed = study.run("killed", kills)
    assert len(thawed) == n_thawed
    same(killed, straight, tmp_path)
    for path in sorted((tmp_path / "straight.weights").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed.weights" / path.name).read_bytes(), path.name
    assert not (tmp_path / "killed.snapshots").exists()


def plain(trial: Any) -> shoal.Recipe:
    """Two signatures, all of which has a compiled form."""
    width = trial.suggest_categorical("width", [4, 8])
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32)


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("n_pools", [1, 2])
def test_across_the_change_to_compiled_epochs(n_pools: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed from the start and from a snapshot, a study changes over in the rounds in which it did before."""
    see_to, ready = Pool._see_to_compiling, Compilation.ready

    def built(self: Compilation) -> Any:
        self._build.wait()
        return ready(self)

    def from_round_three_on(self: Pool, g: Any) -> None:
        if self._rounds >= 3:
            see_to(self, g)

    def timed(*args: Any) -> float:
        time_tick(*args)
        return 0.001

    # What the clock decides is the same in every session: fused, native at once, and compiled as soon as that may be.
    monkeypatch.setattr(Pool, "_see_to_compiling", from_round_three_on)
    monkeypatch.setattr(pool, "_COMPILE_AFTER_S", -1.0)
    monkeypatch.setattr(pool, "time_solo", lambda *args: 1.0)
    monkeypatch.setattr(pool, "time_tick", timed)
    monkeypatch.setattr(pool, "pays", lambda *args: True)
    monkeypatch.setattr(Compilation, "ready", built)
    monkeypatch.setattr("shoal.tuning.n_workers", lambda *args, **kwargs: n_pools)
    monkeypatch.setenv("SHOAL_NATIVE", "1")
    native.prepare()
    native.wait()
    study = Study(tmp_path, plain, reproducible=False, n_trials=16, max_epochs=7, scheduler="halving", sampler="random")
    straight = study.run("straight")
    changes = [(e.tick, (e.fleet or 0) % n_pools) for e in straight.events if e.kind == "tier" and e.fleet is not None]
    assert {pool for _, pool in changes} == set(range(n_pools)) and min(changes)[0] == 3
    killed = study.run("killed", {4: 100, 5: 2})
    same(killed, straight, tmp_path)
    for path in sorted((tmp_path / "straight.weights").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed.weights" / path.name).read_bytes(), path.name
