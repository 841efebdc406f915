"""Several pools as one: what two of them give is what one gives, and they go when they should."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

import shoal
from shoal.asking import Asker
from shoal.data import load
from shoal.errors import StudyError
from shoal.lanes.fleet import Work
from shoal.lanes.lane import Measured
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.workers import n_workers, pools
from shoal.metrics import standard_metrics
from shoal.records import TrialSpec
from shoal.replay import replay, run_define
from shoal.session import candidate
from shoal.signature import Signer

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="workers are forked")

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(dim=1)
CPU = torch.device("cpu")


def define(trial: Any) -> shoal.Recipe:
    width = trial.suggest_categorical("width", [4, 8])
    model = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    if trial.number % 5 == 0:  # some that train solo
        model = nn.Sequential(nn.BatchNorm1d(4, momentum=None), model)
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=32)


class Bench:
    """What ``tune`` would put round the pools."""

    def __init__(self, define: Callable[[Any], shoal.Recipe] = define) -> None:
        self.define, self.data = define, load((X, Y), (X, Y))
        self.work = Work(self.data, tuple(standard_metrics(Y)), CPU)
        self.signer = Signer(self.data.train.tensors)

    def rebuild(self, spec: TrialSpec) -> shoal.Recipe:
        return replay(self.define, spec, self.data.train.n)

    def candidate(self, spec: TrialSpec) -> Candidate:
        return candidate(spec, self.rebuild(spec), self.signer, Y)

    def pool(self) -> Pool:
        return Pool(self.work, self.rebuild, measure=False)

    def specs(self, n: int) -> list[TrialSpec]:
        asker, out = Asker("random", "minimize", 0), []
        for _ in range(n):
            trial = asker.ask()
            run_define(define, trial, asker.trial_seed(trial.number), 96)
            out.append(asker.spec(trial))
        return out


def close(a: list[Measured], b: list[Measured]) -> bool:
    def numbers(m: Measured) -> list[float]:
        return [m.train_loss, m.valid_loss, m.first_loss]

    return [(m.trial, m.epoch, m.finite, m.error) for m in a] == [
        (m.trial, m.epoch, m.finite, m.error) for m in b
    ] and all(numbers(x) == pytest.approx(numbers(y), rel=1e-4) for x, y in zip(a, b, strict=True))


@pytest.mark.filterwarnings("ignore:.*trains solo:RuntimeWarning")
def test_two_pools_give_what_one_gives() -> None:
    bench = Bench()
    specs = bench.specs(20)
    gave: list[list[list[Measured]]] = []
    weights: list[dict[str, torch.Tensor]] = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        with pools(bench.pool, bench.candidate, count) as pool:
            assert torch.get_num_threads() == (threads if count == 1 else 1)
            pool.admit([bench.candidate(s) for s in specs[:16]])
            rounds = [pool.run_epoch()]
            assert pool.n_running == 16 and pool.n_lanes >= 16 and pool.n_fleets >= 2
            for m in rounds[0]:
                pool.epoch_done(m.trial, m.valid_loss, 0.0)
                pool.remember(m.trial)
            for number in range(0, 8):
                pool.remove(number)
            pool.admit([bench.candidate(s) for s in specs[16:]])
            rounds.append(pool.run_epoch())
            assert pool.n_running == 12
            weights.append({f"{n}.{k}": t for n in (8, 9, 10, 11) for k, t in pool.state_dict(n).items()})
            first = {f"{n}.{k}": t for n in (8, 9) for k, t in pool.state_dict(n, remembered=True).items()}
            assert any(not torch.equal(first[k], weights[-1][k]) for k in first)
            gave.append(rounds)
            events = pool.drain_events()
            assert {e.trial for e in events if e.kind in ("admitted", "solo")} == set(range(20))
        assert torch.get_num_threads() == threads
    for rounds, state in zip(gave[1:], weights[1:], strict=True):
        assert all(close(a, b) for a, b in zip(rounds, gave[0], strict=True))
        assert state.keys() == weights[0].keys()
        for name, t in state.items():
            assert t.dtype == weights[0][name].dtype and torch.allclose(t, weights[0][name], atol=1e-4), name


def test_half_precision_weights_cross_the_pipe() -> None:
    def half(trial: Any) -> shoal.Recipe:
        trial.suggest_categorical("width", [4, 8]), trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        model = nn.Sequential(nn.Linear(4, 3))
        model.register_buffer("scale", torch.full((2, 2), 1.5, dtype=torch.bfloat16))
        model.register_buffer("count", torch.tensor(3))
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 32)

    bench = Bench(half)
    with pools(bench.pool, bench.candidate, 2) as pool:
        pool.admit([bench.candidate(s) for s in bench.specs(60)])
        pool.run_epoch()
        assert set(pool._where.values()) == {0, 1}
        for number in (0, next(n for n, k in pool._where.items() if k == 1)):
            state = pool.state_dict(number)
            assert state["scale"].dtype == torch.bfloat16 and state["scale"].tolist() == [[1.5, 1.5]] * 2
            assert state["count"].shape == () and int(state["count"]) == 3


def test_workers_go_with_the_context_also_after_an_error() -> None:
    bench, processes = Bench(), []
    with pytest.raises(ZeroDivisionError), pools(bench.pool, bench.candidate, 3) as pool:
        processes = [r.process for r in pool._remotes]
        assert len(processes) == 2 and all(p.is_alive() for p in processes)
        raise ZeroDivisionError
    assert not any(p.is_alive() for p in processes)


def test_a_worker_that_dies_is_a_clear_error() -> None:
    bench = Bench()
    with pools(bench.pool, bench.candidate, 2) as pool:
        pool.admit([])
        os.kill(pool._remotes[0].process.pid, signal.SIGKILL)
        time.sleep(0.1)
        with pytest.raises(StudyError, match=r"a worker process died \(exit code -9.*resume the study to go on"):
            pool.run_epoch()


def test_a_worker_carries_its_error_home() -> None:
    bench = Bench()
    with pools(bench.pool, bench.candidate, 2) as pool:
        pool._remotes[0].send("remove", 12345)
        with pytest.raises(KeyError):
            pool._remotes[0].receive()


def test_a_trial_whose_replay_raises_in_a_worker_fails_alone() -> None:
    bench = Bench()
    specs = bench.specs(4)

    def admission(spec: TrialSpec) -> Candidate:
        if spec.number == 1:
            raise ValueError("not again")
        return bench.candidate(spec)

    with pools(bench.pool, admission, 2) as pool:
        remote = pool._remotes[0]
        for spec in specs[1:3]:
            remote.later("prepare", spec)
        remote.later("admit", [])
        remote.send("run_epoch")
        measured, _ = remote.receive()
    assert [m.trial for m in measured] == [1, 2]
    assert "trial 1: define raised ValueError: not again" in measured[0].error and not measured[1].error


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert [n_workers(lanes, device=CPU, reproducible=False) for lanes in (1, 4, 8, 16, 128)] == [1, 1, 2, 4, 4]
    assert n_workers(128, device=CPU, reproducible=True) == 1
    assert n_workers(128, device=torch.device("cuda"), reproducible=False) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert n_workers(128, device=CPU, reproducible=False) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    assert n_workers(128, device=CPU, reproducible=False) == 1
