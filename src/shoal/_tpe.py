"""Optuna's tree-structured Parzen estimator, without reading a study's whole history again for every trial.

``TPESampler`` turns every trial's parameters into numbers and sorts all of them anew for each suggestion, in Python: 12
milliseconds at 1,000 trials, more than training one takes. Here an ended trial is read once, into arrays. What is suggested
is the same to the last bit (``tests/test_tpe.py`` compares); whatever this shortcut does not cover is left to Optuna.

Glossary: ``n`` trials; ``d`` parameters of a search space; *below* the better trials, *above* the others and the running ones.

Reference: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, section 4; Optuna 5 for all details.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import TPESampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_STATES = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


class _Table:
    """The parameters of trials as numbers, for one search space: ``rows`` (n, d), NaN where a trial lacks one."""

    def __init__(self, space: dict[str, BaseDistribution]) -> None:
        self._space = dict(space)
        self.rows = np.full((256, len(space)), np.nan)
        self._read = np.zeros(256, dtype=bool)

    def update(self, trials: Sequence[FrozenTrial], params_of: Any) -> None:
        """Read what is new. A trial that has been given all parameters never changes them."""
        while trials and trials[-1].number >= len(self.rows):
            self.rows = np.concatenate([self.rows, np.full_like(self.rows, np.nan)])
            self._read = np.concatenate([self._read, np.zeros_like(self._read)])
        for t in trials:
            if self._read[t.number]:
                continue
            own = self._space.keys() <= t.params.keys()
            params = t.params if own or t.state.is_finished() else params_of(t)
            if own or self._space.keys() <= params.keys():
                self.rows[t.number] = [d.to_internal_repr(params[name]) for name, d in self._space.items()]
            self._read[t.number] = own or t.state.is_finished()


class Memory:
    """What samplers of one study have read so far, shared by the fresh sampler of every ask."""

    def __init__(self) -> None:
        self.search_space = IntersectionSearchSpace(include_pruned=True)
        self._tables: dict[tuple[tuple[str, Any], ...], _Table] = {}
        # (Ended trial, reports of it if it was pruned, how many system attributes it has, constraints among them) -> how it sorts
        # among its like, best first. A trial that was paused, and so pruned, may get further.
        self._keys: dict[tuple[int, int, int], tuple[float, float]] = {}
        self.plain = True  # no trial has had constraints so far

    def table(self, space: dict[str, BaseDistribution]) -> _Table:
        """The table of a search space."""
        key = tuple((name, repr(d)) for name, d in space.items())
        if key not in self._tables:
            self._tables[key] = _Table(space)
        return self._tables[key]

    def split(self, trials: Sequence[FrozenTrial], sign: float, n_below: int) -> NDArray[np.bool_]:
        """Which trials are below, (n,): the best complete ones, then the pruned ones that got furthest."""
        below = np.zeros(len(trials), dtype=bool)
        for state in (TrialState.COMPLETE, TrialState.PRUNED):
            at = [i for i, t in enumerate(trials) if t.state is state]
            keys = np.array([self._key(trials[i], sign) for i in at]).reshape(-1, 2)
            order = np.lexsort((keys[:, 1], keys[:, 0]))[: max(0, n_below)]
            below[np.asarray(at, dtype=np.int64)[order]] = True
            n_below -= len(order)
        return below

    def _key(self, t: FrozenTrial, sign: float) -> tuple[float, float]:
        at = (t.number, -1 if t.state is TrialState.COMPLETE else len(t.intermediate_values), len(t.system_attrs))
        found = self._keys.get(at)
        if found is None:
            if t.state is TrialState.COMPLETE:
                found = (0.0, sign * float(t.value or 0.0))
            elif t.intermediate_values:
                step, value = max(t.intermediate_values.items())
                found = (float(-step), math.inf if math.isnan(value) else sign * value)
            else:
                found = (1.0, 0.0)
            self.plain &= not any(v > 0 for v in t.constraints.values())
            self._keys[at] = found
        return found


class Tpe(TPESampler):
    """``optuna.samplers.TPESampler`` with Optuna's defaults, reading through a ``Memory``.

    Args:
        memory: Shared by all samplers of one study.
        seed: Of this sampler.
    """

    def __init__(self, memory: Memory, seed: int) -> None:
        super().__init__(seed=seed)
        self._memory = memory
        self._search_space = memory.search_space

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        trials = [t for t in study._get_trials(deepcopy=False, states=_STATES) if t.number != trial.number]
        if study._is_multi_objective():
            return super()._sample(study, trial, search_space)
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        ended = sum(t.state is not TrialState.RUNNING for t in trials)
        if self._gamma is None:
            from optuna.samplers._tpe.sampler import default_gamma

            self._gamma = default_gamma
        below = self._memory.split(trials, sign, self._gamma(ended))
        if not self._memory.plain:  # infeasible trials rank by other rules
            return super()._sample(study, trial, search_space)
        table = self._memory.table(search_space)
        table.update(trials, lambda t: self._get_params(t, study))
        rows = table.rows[[t.number for t in trials]]  # (n, d)
        whole = ~np.isnan(rows[:, 0])
        estimators = [self._estimator(rows[whole & part], search_space) for part in (below, ~below)]
        samples = estimators[0].sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, *estimators))
        return {name: d.to_external_repr(best[name]) for name, d in search_space.items()}

    def _estimator(self, rows: NDArray[np.float64], space: dict[str, BaseDistribution]) -> Any:
        observed = {name: rows[:, j] for j, name in enumerate(space)}
        return self._parzen_estimator_cls(observed, space, self._parzen_estimator_parameters)
