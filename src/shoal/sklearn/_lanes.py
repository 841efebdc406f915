"""Training many estimators at once: every candidate on every fold is a lane, under the estimator's own seed.

A *run* is one candidate on one fold. What a run gives is what ``fit`` on the fold's training rows would: the same initial weights,
order of samples and dropout, in a lane in place of the plain loop.

What trains where follows from counts alone, so that a search gives the same again: few updates are not worth a trace and go through
the plain loop; many are worth a compiler, and wait for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import nn

from shoal import planner
from shoal.data import Datasets, Split
from shoal.devices import device_named
from shoal.errors import UsageError
from shoal.lanes import native
from shoal.lanes.fleet import Work
from shoal.lanes.lane import Measured
from shoal.lanes.parts import Parts
from shoal.lanes.pool import Candidate, Pool
from shoal.recipe import Recipe
from shoal.records import TrialSpec, part_of
from shoal.session import candidate
from shoal.signature import Signer
from shoal.sklearn._estimators import Problem, ShoalEstimator, not_finite

# Runs of one program that take fewer updates than this in all train in the plain loop: a trace takes as long.
_FEW_UPDATES: Final = 1000
# A program that would train for longer than this is compiled first.
_COMPILE_FROM_S: Final = 2.0
# What that is told from, measured once on small networks: seconds per tick of a lane, and per sample and parameter.
_TICK_S, _ELEMENT_S = 12e-6, 0.3e-9


@dataclass(slots=True, eq=False)
class Run:
    """One candidate on one fold, before and after its training.

    ``block`` tells apart the data that runs train on: equal blocks are one and the same tensors.
    """

    estimator: ShoalEstimator
    problem: Problem
    block: int
    error: Exception | None = None
    model: nn.Module | None = None
    seconds: float = 0.0  # its share of the time that all took


def train(runs: Sequence[Run]) -> None:
    """Train all runs, filling in each one's `model` or `error`. Runs of one shape of data and one device are trained together."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        data = run.problem
        key = (data.inputs.shape[1], data.inputs.dtype, data.target.shape[1:], data.target.dtype, run.estimator.device)
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        started = time.perf_counter()
        _Together(group).train()
        for run in group:
            run.seconds = (time.perf_counter() - started) / len(group)


@dataclass(slots=True)
class _Cost:
    """What runs of one signature take: updates, and about how many seconds in lanes that are not compiled."""

    updates: int = 0
    seconds: float = 0.0

    def add(self, made: Candidate, epochs: int) -> None:
        """One run more."""
        if made.lane is None or made.lane.rows is None:
            return
        n = len(made.lane.rows)
        size = sum(p.numel() for p in made.recipe.model.parameters())
        self.updates += epochs * math.ceil(n / made.recipe.batch_size)
        self.seconds += epochs * n * (_TICK_S / made.quantum + _ELEMENT_S * size)


class _Together:
    """Runs whose data can stand in one set of tensors, one block after the other."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._specs: dict[int, TrialSpec] = {}
        blocks = list({run.block: run.problem for run in runs}.items())
        ends = np.cumsum([len(problem.inputs) for _, problem in blocks])
        rows = [np.arange(end - len(problem.inputs), end) for end, (_, problem) in zip(ends, blocks, strict=True)]
        parts = Parts(tuple((mine, mine[:0]) for mine in rows))
        self._part = {block: i for i, (block, _) in enumerate(blocks)}
        inputs = torch.cat([problem.inputs for _, problem in blocks])
        target = torch.cat([problem.target for _, problem in blocks])
        device = device_named(runs[0].estimator.device)
        self._target, self._parts = target, parts
        data = Split((inputs, target))
        self._signer = Signer(data.tensors, [len(mine) for mine in rows])
        data = data.to(device)
        if device.type == "cpu":
            native.prepare()
        # Scores are made by scikit-learn, afterwards.
        work = Work(Datasets(data, data, None, ""), (), device, parts, judged=False)
        self._pool = Pool(work, self._rebuild, measure=False, native=True, by_clock=False)

    def _rebuild(self, spec: TrialSpec) -> Recipe:
        run = self._runs[spec.number]
        return run.estimator.rebuild(spec, run.problem)

    def train(self) -> None:
        """Every run for its own number of epochs; lanes that become free take the next."""
        waiting = list(enumerate(self._runs))
        epochs: dict[int, int] = {}  # of runs in training, by their key
        while waiting or epochs:
            fresh: list[Candidate] = []
            while waiting and len(epochs) < planner.WIDEST:
                number, run = waiting.pop(0)
                if (made := self._start(number, run)) is not None:
                    fresh.append(made)
                    epochs[made.spec.key] = run.estimator.epochs()
            self._admit(fresh)
            for m in self._pool.run_epoch():
                if self._ended(m, epochs[m.trial]):
                    self._pool.remove(m.trial)
                    del epochs[m.trial]

    def _admit(self, fresh: Sequence[Candidate]) -> None:
        """Start runs: in lanes where enough of them share a program, compiled where there is much to do."""
        costs: dict[str, _Cost] = {}
        for made in fresh:
            cost = costs.setdefault(made.signature, _Cost())
            cost.add(made, self._runs[made.spec.number].estimator.epochs())
        known = self._pool.signatures
        for made in fresh:
            if made.lane is not None and made.signature not in known and costs[made.signature].updates < _FEW_UPDATES:
                made.lane, made.reason = None, "too few updates to be worth a trace"
        if any(made.lane is not None for made in fresh):
            native.wait()
            self._pool.upgrade()
        self._pool.admit(fresh)
        self._pool.compile_now(key for key, cost in costs.items() if cost.seconds > _COMPILE_FROM_S)

    def _start(self, number: int, run: Run) -> Candidate | None:
        try:
            run.estimator.epochs()
            spec, recipe = run.estimator.start(run.problem, number)
        except Exception as error:  # a parameter that makes no sense fails its own candidate
            run.error = error
            return None
        spec = replace(spec, part=self._part[run.block])
        self._specs[spec.key] = spec
        return candidate(spec, recipe, self._signer, self._target, self._parts)

    def _ended(self, m: Measured, epochs: int) -> bool:
        """Whether a run is over; then it has its model, or the reason why there is none."""
        run = self._runs[part_of(m.trial)[0]]
        if m.error:
            run.error = UsageError(m.error)
        elif not math.isfinite(m.train_loss):
            run.error = UsageError(not_finite(m.epoch))
        else:
            self._pool.epoch_done(m.trial, m.train_loss, m.train_loss)
            if m.epoch < epochs:
                return False
            run.model = self._trained(m.trial, run)
        return True

    def _trained(self, key: int, run: Run) -> nn.Module:
        spec = self._specs[key]
        model = self._rebuild(spec).model
        model.load_state_dict(self._pool.state_dict(key), strict=False)
        return model
