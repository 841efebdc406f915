"""Whole searches in simulated time, samplers included: thousands of trials in seconds, none of which is trained.

A forest learns what curve a configuration has from recorded ones. Shoal's side is its own asker and scheduler in rounds, as in
``shoal.engine``; Optuna's is ask and tell, one trial after the other.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import optuna
from curves import Curves
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, json_to_distribution
from sklearn.ensemble import ExtraTreesRegressor

from shoal.asking import Asker
from shoal.records import TrialResult, TrialState
from shoal.samplers import SamplerArgument
from shoal.schedulers import Decision, Observation, Promoter, Room, Scheduler, rungs_of

# Epochs spent in all and the best value of a finished trial by then.
Trajectory = list[tuple[int, float]]
# Trials that Optuna's TPE wants to have seen before its model draws.
_STARTUP = 10


class Found(NamedTuple):
    """What a simulated search came to. ``modelled`` trials were drawn after the sampler's start-up was over."""

    trajectory: Trajectory
    modelled: int


class Surrogate:
    """Curves of configurations that nobody trained: a forest's mean, and the residual of some recorded one."""

    def __init__(self, curves: Curves) -> None:
        self.space = {name: json_to_distribution(text) for name, text in curves.space.items()}
        whole = np.isfinite(curves.loss).all(axis=1)
        self.cap = float(np.quantile(curves.loss[whole].max(axis=1), 0.99))
        y = np.log(np.minimum(curves.loss, self.cap))  # (trials, epochs)
        x = np.array([self._row(p) for p in curves.params])
        self._forest = ExtraTreesRegressor(16, min_samples_leaf=2, bootstrap=True, oob_score=True, random_state=0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Some inputs do not have OOB scores")  # they are left out below
            self._forest.fit(x, y)
        self.explained = float(self._forest.oob_score_)
        self._residuals = (y - self._forest.oob_prediction_) * 0.5
        self._residuals = self._residuals[np.isfinite(self._residuals).all(axis=1)]
        self._known: dict[str, list[float]] = {}

    def _row(self, params: Mapping[str, Any]) -> list[float]:
        row: list[float] = []
        for name, d in self.space.items():
            if isinstance(d, CategoricalDistribution):
                row += [float(params[name] == c) for c in d.choices]
            else:
                value = float(params[name])
                row.append(np.log(value) if isinstance(d, FloatDistribution) and d.log else value)
        return row

    def curve(self, params: Mapping[str, Any]) -> list[float]:
        """Its loss after each epoch; always the same for the same configuration."""
        key = json.dumps(dict(params), sort_keys=True)
        if key not in self._known:
            row = np.array([self._row(params)], dtype=np.float32)
            trees = [
                tree.predict(row, check_input=False)[0] for tree in self._forest.estimators_
            ]  # quicker than the forest
            mean: NDArray[np.float64] = np.mean(trees, axis=0)
            residual = self._residuals[zlib.crc32(key.encode()) % len(self._residuals)]
            self._known[key] = np.exp(mean + residual).tolist()
        return self._known[key]


def suggest(trial: Any, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """All parameters of a space, asked for one by one as ``define`` does."""
    out: dict[str, Any] = {}
    for name, d in space.items():
        if isinstance(d, CategoricalDistribution):
            out[name] = trial.suggest_categorical(name, d.choices)
        elif isinstance(d, FloatDistribution):
            out[name] = trial.suggest_float(name, d.low, d.high, log=d.log, step=d.step)
        else:
            assert isinstance(d, optuna.distributions.IntDistribution)
            out[name] = trial.suggest_int(name, d.low, d.high, log=d.log, step=d.step)
    return out


def shoal_search(
    surrogate: Surrogate,
    scheduler: Scheduler,
    *,
    n_trials: int,
    lanes: int,
    seed: int,
    max_epochs: int,
    sampler: SamplerArgument = "tpe",
    shows: str = "rungs",
) -> Found:
    """One study as ``shoal.engine`` runs it.

    Args:
        shows: What the sampler sees of unfinished trials: "rungs", as the engine does; "paused" only; or "nothing", as in a
            study of Optuna's in which they are running.
    """
    asker, rungs = Asker(sampler, "minimize", seed), rungs_of(scheduler)
    curves: dict[int, list[float]] = {}
    done: dict[int, int] = {}
    running: set[int] = set()
    paused: dict[int, int] = {}
    seen: set[int] = set()
    best, spent, modelled, out = float("inf"), 0, 0, Trajectory()

    def tell(trial: int, state: TrialState) -> None:
        asker.tell(TrialResult(trial, state, curves[trial][done[trial] - 1], done[trial]))
        seen.add(trial)

    while True:
        if paused and isinstance(scheduler, Promoter):
            room = Room(lanes - len(running), frozenset(running), dict(paused), len(curves), len(curves) < n_trials)
            for trial, verdict in scheduler.promote(room).items():
                del paused[trial]
                if verdict.decision is Decision.PROMOTE:
                    running.add(trial)
        while len(curves) < n_trials and len(running) < lanes:
            number = len(curves)
            modelled += len(seen) >= _STARTUP
            curves[number] = surrogate.curve(suggest(asker.ask(), surrogate.space))
            done[number] = 0
            running.add(number)
        if not running:
            return Found(out, modelled)
        for trial in running:
            done[trial] += 1
        spent += len(running)
        verdicts = scheduler.observe([Observation(t, done[t], curves[t][done[t] - 1]) for t in sorted(running)])
        for trial in sorted(running):
            decision = verdicts[trial].decision if trial in verdicts else Decision.CONTINUE
            if done[trial] == max_epochs:
                tell(trial, TrialState.FINISHED)
                best = min(best, curves[trial][-1])
            elif decision is Decision.PAUSE:
                paused[trial] = done[trial]
                if shows != "nothing":
                    tell(trial, TrialState.STOPPED)
            elif decision is Decision.STOP:
                tell(trial, TrialState.STOPPED)
            else:
                if shows == "rungs" and done[trial] in rungs:
                    tell(trial, TrialState.STOPPED)
                continue
            running.discard(trial)
        out.append((spent, best))


def optuna_search(
    surrogate: Surrogate,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
    *,
    budget: int,
    max_epochs: int,
) -> Trajectory:
    """One study by ask and tell, until the budget of epochs is spent."""
    study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner)
    best, spent, out = float("inf"), 0, Trajectory()
    while spent < budget:
        trial = study.ask()
        curve = surrogate.curve(suggest(trial, surrogate.space))
        for epoch, value in enumerate(curve[:max_epochs], 1):
            spent += 1
            trial.report(value, epoch)
            if epoch < max_epochs and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, curve[max_epochs - 1])
            best = min(best, curve[max_epochs - 1])
        out.append((spent, best))
    return out


def at(trajectory: Trajectory, budget: float) -> float:
    """The best value of a finished trial once so many epochs were spent."""
    return min((value for spent, value in trajectory if spent <= budget), default=float("inf"))
