"""Optuna's searches, many studies side by side: each asks, reports and prunes one trial after the other; their trials share lanes.

A study of Optuna trains one trial at a time, so that ten seeds of four methods would take an hour in plain loops. What a trial
gives in a lane is what it gives alone (``tests/test_equality.py``), so that only time differs, and that comes from ``plain.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import torch
from optuna.distributions import distribution_to_json
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from tasks import MAX_EPOCHS, Task

from shoal.data import load
from shoal.lanes.fleet import Work
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.rng import derive
from shoal.lanes.workers import n_workers, pools
from shoal.records import TrialSpec
from shoal.replay import replay, run_define
from shoal.session import candidate
from shoal.signature import Signer

# Optuna's defaults, but for the highest resource, which Hyperband would otherwise learn from the first trial.
RIVALS: Mapping[str, Callable[[int], tuple[BaseSampler, BasePruner]]] = {
    "Optuna TPE + halving": lambda seed: (TPESampler(seed=seed), SuccessiveHalvingPruner()),
    "Optuna TPE + Hyperband": lambda seed: (TPESampler(seed=seed), HyperbandPruner(max_resource=MAX_EPOCHS)),
    "Optuna TPE": lambda seed: (TPESampler(seed=seed), NopPruner()),
    "random": lambda seed: (RandomSampler(seed=seed), NopPruner()),
}

# Epochs spent in all, and the best value of a finished trial by then.
Trajectory = list[tuple[int, float]]


@dataclass(slots=True)
class Search:
    """One study of Optuna, until its epochs are spent."""

    study: optuna.Study
    trial: optuna.Trial | None = None
    spent: int = 0
    best: float = math.inf
    trajectory: Trajectory = field(default_factory=list)

    @classmethod
    def of(cls, method: str, seed: int) -> Search:
        sampler, pruner = RIVALS[method](seed)
        return cls(optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner))

    def report(self, epoch: int, value: float) -> bool:
        """Take in an epoch; True when the trial ends with it. One whose loss is not finite fails, and costs no further epochs."""
        assert self.trial is not None
        self.spent += 1
        self.trial.report(value, epoch)
        over = True
        if not math.isfinite(value):
            self.study.tell(self.trial, state=TrialState.FAIL)
        elif epoch == MAX_EPOCHS:
            self.study.tell(self.trial, value)
            if value < self.best:
                self.best = value
                self.trajectory.append((self.spent, value))
        elif self.trial.should_prune():
            self.study.tell(self.trial, state=TrialState.PRUNED)
        else:
            over = False
        if over:
            self.trial = None
        return over


def run(task: Task, searches: Sequence[Search], budget: int) -> None:
    """Train until every study has spent its epochs, all of them at once."""
    train, valid = task.data()
    data = load(train, valid)
    cpu = torch.device("cpu")
    work, signer, n = Work(data, (), cpu), Signer(data.train.tensors, ()), data.train.n

    def rebuild(spec: TrialSpec) -> Any:
        return replay(task.define, spec, n, data.train.form)

    def admission(spec: TrialSpec) -> Candidate:
        return candidate(spec, rebuild(spec), signer, data.train.tensors[-1])

    def make_pool() -> Pool:
        return Pool(work, rebuild, measure=True, native=True)

    running: dict[int, Search] = {}  # trial, numbered over all studies -> the study that it belongs to
    asked = 0
    with pools(make_pool, admission, n_workers(len(searches), device=cpu, reproducible=False)) as pool:
        while left := [s for s in searches if s.spent < budget]:
            fresh = []
            for search in left:
                if search.trial is None:
                    search.trial = trial = search.study.ask()
                    recipe = run_define(task.define, trial, seed := derive(asked, 1), n, data.train.form)
                    texts = {name: distribution_to_json(d) for name, d in trial.distributions.items()}
                    spec = TrialSpec(asked, seed, dict(trial.params), texts)
                    fresh.append(candidate(spec, recipe, signer, data.train.tensors[-1]))
                    running[asked] = search
                    asked += 1
            pool.admit(fresh)
            for m in pool.run_epoch():
                value = m.valid_loss if m.finite else math.nan
                pool.epoch_done(m.trial, m.valid_loss, value)
                if running[m.trial].report(m.epoch, value):
                    pool.remove(m.trial)
                    del running[m.trial]
            pool.drain_events()
