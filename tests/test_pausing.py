"""Paused trials: what they hold, that pausing changes nothing, and what the study, the file and samplers make of them."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import Bench
from shoal.asking import Asker
from shoal.lanes import paused
from shoal.lanes.pool import Candidate
from shoal.lanes.workers import pools
from shoal.records import Event, Progress, TrialResult, TrialState
from shoal.replay import run_define
from shoal.schedulers import Asha, Decision, Observation, Room, TopK, Verdict, rungs_of

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(96, 4, generator=GENERATOR, dtype=torch.float64)
Y = X[:, :3].argmax(dim=1)
CPU = torch.device("cpu")


class Branches(nn.Module):
    """Looks at values to decide, so it has no lane form."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().abs().sum()) >= 0.0 else -x


def define(trial: Any) -> shoal.Recipe:
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[trial.suggest_categorical("act", ["relu", "tanh"])]
    first = Branches() if trial.suggest_categorical("solo", [False, True]) else nn.Identity()
    model = nn.Sequential(first, nn.Linear(4, 9), act(), nn.Dropout(0.2), nn.Linear(9, 3)).double()
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    optimizer = optim.AdamW(model.parameters(), lr=lr)
    schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, schedule=schedule)


class Asking(Bench):
    """That also asks for trials."""

    def __init__(self) -> None:
        super().__init__(define, X, Y)

    def candidates(self, n: int, *, solo: bool) -> list[Candidate]:
        asker, out = Asker("random", "minimize", 0), []
        for _ in range(n):
            trial = asker.ask()
            trial.suggest_categorical("act", ["relu", "tanh"])
            fixed = optuna.distributions.CategoricalDistribution([False, True])
            asker.study._storage.set_trial_param(trial._trial_id, "solo", float(solo), fixed)
            trial._cached_frozen_trial = asker.study._storage.get_trial(trial._trial_id)
            run_define(define, trial, asker.trial_seed(trial.number), 96)
            out.append(self.candidate(asker.spec(trial)))
        return out


def epoch(pool: Any) -> dict[int, tuple[float, float]]:
    out = {}
    for m in pool.run_epoch():
        assert not m.error
        pool.epoch_done(m.trial, m.valid_loss, m.valid_loss)
        out[m.trial] = (m.train_loss, m.valid_loss)
    return out


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.filterwarnings("ignore:.*trains solo:RuntimeWarning")
@pytest.mark.parametrize("solo", [False, True], ids=["lanes", "solo"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_paused_and_promoted_trial_is_bitwise_one_that_ran_through(solo: bool, count: int) -> None:
    if count > 1 and "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("workers are forked")
    bench = Asking()
    with pools(bench.pool, bench.candidate, count) as pool:
        pool.admit(bench.candidates(16, solo=solo))
        straight = [epoch(pool) for _ in range(4)]
        weights = {n: pool.state_dict(n) for n in range(16)}
    with pools(bench.pool, bench.candidate, count) as pool:
        pool.admit(bench.candidates(16, solo=solo))
        epoch(pool)
        for trial in (3, 10):
            pool.pause(trial)
        assert pool.n_running == 14
        pool.admit([])
        for at in (1, 2):
            assert epoch(pool) == {n: v for n, v in straight[at].items() if n not in (3, 10)}
        pool.admit([], [10])
        pool.remove(0)  # those that are done make room, and the lanes are arranged anew
        assert pool.n_running == 14
        assert epoch(pool)[10] == straight[1][10]
        pool.pause(10)  # once more
        pool.admit([], [3])
        assert epoch(pool)[3] == straight[1][3]
        pool.admit([], [10])
        for at in (2, 3):
            got = epoch(pool)
            assert [got[n] for n in (3, 10)] == [straight[at][n] for n in (3, 10)]
        for trial in (3, 10):
            assert same(pool.state_dict(trial), weights[trial])
        pool.pause(3)
        pool.remove(3)
        assert pool.n_running == 14
        widths = {e.data["width"] for e in pool.drain_events() if e.kind == "fleet"}
        assert widths == (set() if solo else {16} if count == 1 else {8, 6})


def test_what_cannot_be_kept_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paused, "LIMIT_BYTES", 0)
    bench = Asking()
    pool = bench.pool()
    pool.admit(bench.candidates(4, solo=False))
    first = epoch(pool)
    pool.pause(2)
    pool.admit([], [2])
    again = epoch(pool)[2]
    assert again == pytest.approx(first[2], rel=1e-9)  # its first epoch, solo
    reasons = [e.data.get("reason") for e in pool.drain_events() if e.kind == "solo"]
    assert reasons == ["its paused state could not be kept, or its fleet has no lane for it"]


def test_a_trial_whose_fleet_broke_meanwhile_starts_again() -> None:
    bench = Asking()
    pool = bench.pool()
    pool.admit(bench.candidates(3, solo=False))
    first = epoch(pool)
    pool.pause(0)
    (group,) = pool._groups.values()
    group.solo_reason, group.fleet = "its fleet raised something", None
    pool.admit([], [0])
    assert epoch(pool)[0] == pytest.approx(first[0], rel=1e-9)


class Shuffle:
    """Pauses everyone after every epoch, and promotes in turn: whoever waits longest."""

    name = "shuffle"

    def __init__(self) -> None:
        self.waiting: list[int] = []

    def observe(self, rows: Sequence[Observation]) -> Mapping[int, Verdict]:
        self.waiting += sorted(row.trial for row in rows)
        return {row.trial: Verdict(Decision.PAUSE, "") for row in rows}

    def promote(self, room: Room) -> Mapping[int, Verdict]:
        self.waiting = [trial for trial in self.waiting if trial in room.paused]
        # New trials first, as long as there are any.
        n = 0 if room.more else room.free
        chosen, self.waiting = self.waiting[:n], self.waiting[n:]
        return {trial: Verdict(Decision.PROMOTE, "its turn") for trial in chosen}


def tune(**more: Any) -> shoal.Study:
    keywords: dict[str, Any] = {"train": (X, Y), "valid": (X, Y), "metric": "loss", "n_trials": 40, "max_epochs": 9}
    keywords |= {"reproducible": True, "progress": False, "sampler": "random"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*trains solo", RuntimeWarning)
        return shoal.tune(define, **{**keywords, **more})


def values(study: shoal.Study) -> dict[int, list[float]]:
    return {t.spec.number: [r.value for r in t.rows] for t in study.record.trials}


@pytest.mark.parametrize("value", ["last", "best"])
def test_pausing_everyone_all_the_time_changes_no_result(value: str) -> None:
    plain = tune(scheduler="none", value=value, n_trials=16, max_epochs=5)
    study = tune(scheduler=Shuffle(), value=value, n_trials=16, max_epochs=5)
    for number, curve in values(plain).items():
        assert values(study)[number] == pytest.approx(curve, rel=1e-9)
    assert study.best_value == pytest.approx(plain.best_value, rel=1e-9)
    mine, theirs = study.best_model().state_dict(), plain.best_model().state_dict()
    assert all(torch.allclose(mine[name].double(), theirs[name].double(), rtol=1e-6) for name in theirs)


def kinds(events: Sequence[Event], kind: str) -> list[int | None]:
    return [e.trial for e in events if e.kind == kind]


@pytest.mark.parametrize("scheduler", ["asha", "halving", "hyperband", "top_k"])
def test_every_trial_ends_and_the_file_says_how(scheduler: str, tmp_path: Path) -> None:
    study = tune(scheduler=scheduler, storage=tmp_path / "s.db")
    record = study.record
    states = {t.spec.number: t.state for t in record.trials}
    assert set(states.values()) == {TrialState.FINISHED, TrialState.STOPPED} and not study.interrupted
    paused, promoted = kinds(record.events, "paused"), kinds(record.events, "promoted")
    assert len(paused) > len(promoted) and (promoted or scheduler == "asha")  # asha goes on without a pause when it can
    for t in record.trials:
        assert [r.epoch for r in t.rows] == list(range(1, len(t.rows) + 1))
        assert (len(t.rows) == 9) == (t.state is TrialState.FINISHED)
        if t.state is TrialState.STOPPED:
            assert t.value == t.rows[-1].value and t.epoch == len(t.rows) and t.reason
    in_file = optuna.load_study(study_name="shoal", storage=f"sqlite:///{tmp_path / 's.db'}")
    assert {t.state.name for t in in_file.trials} == {"COMPLETE", "PRUNED"}
    assert [t.state is optuna.trial.TrialState.COMPLETE for t in in_file.trials] == [
        states[n] is TrialState.FINISHED for n in range(40)
    ]
    again = tune(scheduler=scheduler)
    assert values(again) == values(study)


def test_samplers_see_a_paused_trial_as_pruned_where_it_is() -> None:
    asker = Asker("tpe", "maximize", 0)
    for _ in range(2):
        asker.ask().suggest_float("x", 0.0, 1.0)
    provisional = TrialResult(0, TrialState.STOPPED, 0.5, 1)
    asker.tell(provisional)
    assert asker.study.trials[0].state.name == "PRUNED" and asker.study.trials[0].value == 0.5
    asker.tell(TrialResult(0, TrialState.STOPPED, 0.625, 3))
    assert asker.study.trials[0].intermediate_values == {1: 0.5, 3: 0.625}
    asker.tell(TrialResult(0, TrialState.FINISHED, 0.75, 9))
    assert asker.study.trials[0].state.name == "COMPLETE" and asker.study.best_value == 0.75
    asker.tell(provisional)  # also what had ended may be told of again
    assert asker.study.trials[1].state.name == "RUNNING"


def test_samplers_see_a_trial_that_passes_a_rung_as_pruned_there(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[int, list[TrialResult]] = {}
    tell = Asker.tell

    def spy(asker: Asker, result: TrialResult, rows: Any = ()) -> None:
        told.setdefault(result.number, []).append(result)
        tell(asker, result, rows)

    monkeypatch.setattr(Asker, "tell", spy)
    study = tune(scheduler="asha", n_trials=40)
    rungs = Asha(9).rungs
    through = [t for t in study.record.trials if t.state is TrialState.FINISHED]
    assert through and rungs_of(Asha(9)) == set(rungs) and not rungs_of(TopK(5))
    for t in through:
        *first, last = told[t.spec.number]
        assert {(r.state, r.epoch, r.value) for r in first} == {
            (TrialState.STOPPED, epoch, t.rows[epoch - 1].value) for epoch in rungs
        }
        assert last.state is TrialState.FINISHED


class Halt(Exception):
    """Ends a study from outside."""


@pytest.mark.parametrize("at", [1, 5])
def test_paused_trials_outlive_an_interruption(at: int, tmp_path: Path) -> None:
    seen = 0

    def halt(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            raise Halt

    with pytest.raises(Halt):
        tune(scheduler=TopK(5), storage=tmp_path / "s.db", progress=halt, n_trials=20)
    study = tune(scheduler=TopK(5), storage=tmp_path / "s.db", n_trials=20)
    whole = tune(scheduler=TopK(5), n_trials=20)
    for number, curve in values(whole).items():
        assert values(study)[number] == pytest.approx(curve, rel=1e-9)
    assert [t.state for t in study.record.trials] == [t.state for t in whole.record.trials]
    # What was paused after its epoch trained it once more only if it was among those that go on.
    epochs = [e.trial for e in study.record.events if e.kind in ("admitted", "solo")]
    assert len(epochs) < 20 * 2
