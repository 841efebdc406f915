"""Optuna's tree-structured Parzen estimator, without reading a study's whole history again for every trial.

``TPESampler`` turns every trial's parameters into numbers and sorts all of them anew for each suggestion, in Python: 12
milliseconds at 1,000 trials, more than training one takes. Here an ended trial is read once, into arrays. What is suggested
is the same to the last bit (``tests/test_tpe.py`` compares); whatever this shortcut does not cover is left to Optuna.

Glossary: ``n`` trials; ``d`` parameters of a search space; *below* the better trials, *above* the others and the running ones.

Reference: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, section 4; Optuna 5 for all details.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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

    def update(self, trials: Sequence[FrozenTrial], numbers: NDArray[np.int64], params_of: Any) -> None:
        """Read what is new. A trial that has been given all parameters never changes them."""
        while len(numbers) and numbers.max() >= len(self.rows):
            self.rows = np.concatenate([self.rows, np.full_like(self.rows, np.nan)])
            self._read = np.concatenate([self._read, np.zeros_like(self._read)])
        for i in np.flatnonzero(~self._read[numbers]).tolist():
            t = trials[i]
            own = self._space.keys() <= t.params.keys()
            params = t.params if own or t.state.is_finished() else params_of(t)
            if own or self._space.keys() <= params.keys():
                self.rows[t.number] = [d.to_internal_repr(params[name]) for name, d in self._space.items()]
            self._read[t.number] = own or t.state.is_finished()


_RUNNING, _COMPLETE, _PRUNED = range(3)


class _Ranks:
    """How ended trials sort, by number: ``state`` (n,) and ``keys`` (n, 2), the best of each state first."""

    def __init__(self) -> None:
        self.state = np.full(256, _RUNNING, dtype=np.int8)
        self.keys = np.zeros((256, 2))
        self._size: dict[int, tuple[int, int]] = {}  # of pruned trials: how many reports and system attributes they had
        self.plain = True  # no trial has had constraints so far

    def update(self, trials: Sequence[FrozenTrial], numbers: NDArray[np.int64], sign: float) -> None:
        """Read what is new. A complete trial never changes; one that was paused, and so pruned, may get further."""
        while len(numbers) and numbers.max() >= len(self.state):
            self.state = np.concatenate([self.state, np.full_like(self.state, _RUNNING)])
            self.keys = np.concatenate([self.keys, np.zeros_like(self.keys)])
        for i in np.flatnonzero(self.state[numbers] != _COMPLETE).tolist():
            t = trials[i]
            if t.state is TrialState.COMPLETE:
                self.state[t.number], self.keys[t.number] = _COMPLETE, (0.0, sign * float(t.value or 0.0))
            elif t.state is TrialState.PRUNED:
                size = len(t.intermediate_values), len(t.system_attrs)
                if self._size.get(t.number) == size:
                    continue
                self._size[t.number] = size
                self.state[t.number], self.keys[t.number] = _PRUNED, _furthest(t, sign)
            else:
                self.state[t.number] = _RUNNING
                self._size.pop(t.number, None)
                continue
            self.plain &= not any(v > 0 for v in t.constraints.values())


def _furthest(t: FrozenTrial, sign: float) -> tuple[float, float]:
    """The key of a pruned trial: who got furthest comes first, then who was best there."""
    if not t.intermediate_values:
        return 1.0, 0.0
    step, value = max(t.intermediate_values.items())
    return float(-step), math.inf if math.isnan(value) else sign * value


class Memory:
    """What samplers of one study have read so far, shared by the fresh sampler of every ask."""

    def __init__(self) -> None:
        self.search_space = IntersectionSearchSpace(include_pruned=True)
        self._tables: dict[tuple[tuple[str, Any], ...], _Table] = {}
        self._ranks = _Ranks()

    @property
    def plain(self) -> bool:
        """Whether no trial has had constraints so far."""
        return self._ranks.plain

    def table(self, space: dict[str, BaseDistribution]) -> _Table:
        """The table of a search space."""
        key = tuple((name, repr(d)) for name, d in space.items())
        if key not in self._tables:
            self._tables[key] = _Table(space)
        return self._tables[key]

    def split(
        self, trials: Sequence[FrozenTrial], numbers: NDArray[np.int64], sign: float, gamma: Callable[[int], int]
    ) -> NDArray[np.bool_]:
        """Which trials are below, (n,): the best complete ones, then the pruned ones that got furthest."""
        ranks = self._ranks
        ranks.update(trials, numbers, sign)
        state, keys = ranks.state[numbers], ranks.keys[numbers]
        below = np.zeros(len(trials), dtype=bool)
        left = gamma(int((state != _RUNNING).sum()))
        for one in (_COMPLETE, _PRUNED):
            at = np.flatnonzero(state == one)
            order = np.lexsort((keys[at, 1], keys[at, 0]))[: max(0, left)]
            below[at[order]] = True
            left -= len(order)
        return below


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
        if study._is_multi_objective():
            return super()._sample(study, trial, search_space)
        sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
        if self._gamma is None:
            from optuna.samplers._tpe.sampler import default_gamma

            self._gamma = default_gamma
        trials = [t for t in study._get_trials(deepcopy=False, states=_STATES) if t.number != trial.number]
        numbers = np.array([t.number for t in trials], dtype=np.int64)
        below = self._memory.split(trials, numbers, sign, self._gamma)
        if not self._memory.plain:  # infeasible trials rank by other rules
            return super()._sample(study, trial, search_space)
        table = self._memory.table(search_space)
        table.update(trials, numbers, lambda t: self._get_params(t, study))
        rows = table.rows[numbers]  # (n, d)
        whole = ~np.isnan(rows[:, 0])
        estimators = [self._estimator(rows[whole & part], search_space) for part in (below, ~below)]
        samples = estimators[0].sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, *estimators))
        return {name: d.to_external_repr(best[name]) for name, d in search_space.items()}

    def _estimator(self, rows: NDArray[np.float64], space: dict[str, BaseDistribution]) -> Any:
        observed = {name: rows[:, j] for j, name in enumerate(space)}
        return self._parzen_estimator_cls(observed, space, self._parzen_estimator_parameters)
