"""Optuna's tree-structured Parzen estimator, without reading a study's whole history again for every trial.

``TPESampler`` turns every trial's parameters into numbers and sorts all of them anew for each suggestion, in Python: 12
milliseconds at 1,000 trials, more than training one takes. Here an ended trial is read once, into arrays. What is suggested
is the same to the last bit (``tests/test_tpe.py`` compares); whatever this shortcut does not cover is left to Optuna.

Glossary: ``n`` trials; ``d`` parameters of a search space; *below* the better trials, *above* the others and the running ones.

Reference: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011, section 4; Optuna 5 for all details.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.samplers import TPESampler
from optuna.samplers._tpe import _truncnorm
from optuna.samplers._tpe.sampler import default_gamma
from optuna.search_space import IntersectionSearchSpace
from optuna.search_space.intersection import _calculate
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution


class _Table:
    """The parameters of trials as numbers, for one search space: ``rows`` (n, d), NaN where a trial lacks one."""

    def __init__(self, space: dict[str, BaseDistribution]) -> None:
        self._space = dict(space)
        self.rows = np.full((256, len(space)), np.nan)
        self._read = np.zeros(256, dtype=bool)
        self._better: tuple[bytes, Any] = (b"", None)  # rows of the better trials, and their estimator

    def update(self, trials: Sequence[FrozenTrial], numbers: NDArray[np.intp], params_of: Any) -> None:
        """Read what is new. A trial that has been given all parameters never changes them."""
        while len(trials) > len(self.rows):
            self.rows = np.concatenate([self.rows, np.full_like(self.rows, np.nan)])
            self._read = np.concatenate([self._read, np.zeros_like(self._read)])
        for i in numbers[~self._read[numbers]].tolist():
            t = trials[i]
            own = self._space.keys() <= t.params.keys()
            params = t.params if own or t.state.is_finished() else params_of(t)
            if own or self._space.keys() <= params.keys():
                self.rows[i] = [d.to_internal_repr(params[name]) for name, d in self._space.items()]
            self._read[i] = own or t.state.is_finished()

    def better(self, rows: NDArray[np.float64], make: Callable[[NDArray[np.float64]], Any]) -> Any:
        """The estimator of the better trials, which stays what it is from one told trial to the next."""
        key = rows.tobytes()
        if self._better[1] is None or self._better[0] != key:
            self._better = key, make(rows)
        return self._better[1]


_ABSENT, _RUNNING, _COMPLETE, _PRUNED, _FAILED = range(5)
_CODES = {
    TrialState.RUNNING: _RUNNING,
    TrialState.COMPLETE: _COMPLETE,
    TrialState.PRUNED: _PRUNED,
    TrialState.FAIL: _FAILED,
    TrialState.WAITING: _ABSENT,
}


class _Ranks:
    """How trials sort, by number: ``state`` (n,) and, of ended ones, ``keys`` (n, 2), the best of each state first."""

    def __init__(self) -> None:
        self.state = np.full(256, _ABSENT, dtype=np.int8)
        self.keys = np.zeros((256, 2))
        self._size: dict[int, tuple[int, int]] = {}  # of pruned trials: how many reports and system attributes they had
        self.plain = True  # no trial has had constraints so far

    def update(self, trials: Sequence[FrozenTrial], sign: float) -> None:
        """Read what is new. A complete trial never changes; one that was paused, and so pruned, may get further."""
        while len(trials) > len(self.state):
            self.state = np.concatenate([self.state, np.full_like(self.state, _ABSENT)])
            self.keys = np.concatenate([self.keys, np.zeros_like(self.keys)])
        state = self.state[: len(trials)]
        for i in np.flatnonzero((state != _COMPLETE) & (state != _FAILED)).tolist():
            t = trials[i]
            code = _CODES[t.state]
            if code == _COMPLETE:
                self.keys[i] = 0.0, sign * float(t.value or 0.0)
            elif code == _PRUNED:
                size = len(t.intermediate_values), len(t.system_attrs)
                if self._size.get(i) == size:
                    continue
                self._size[i] = size
                self.keys[i] = _furthest(t, sign)
            else:
                self._size.pop(i, None)
            state[i] = code
            if code in (_COMPLETE, _PRUNED):
                self.plain &= not any(v > 0 for v in t.constraints.values())


def _furthest(t: FrozenTrial, sign: float) -> tuple[float, float]:
    """The key of a pruned trial: who got furthest comes first, then who was best there."""
    if not t.intermediate_values:
        return 1.0, 0.0
    step, value = max(t.intermediate_values.items())
    return float(-step), math.inf if math.isnan(value) else sign * value


class _Intersection(IntersectionSearchSpace):
    """Optuna's, without a copy of all distributions for every ask: nobody here changes them."""

    def calculate(self, study: Study, use_cache: bool = False) -> dict[str, BaseDistribution]:
        """The parameters that all trials have had so far, by name."""
        self._search_space, self._cached_trial_number = _calculate(
            study._get_trials(deepcopy=False, use_cache=use_cache),
            self._include_pruned,
            self._search_space,
            self._cached_trial_number,
        )
        return dict(sorted((self._search_space or {}).items()))


class Memory:
    """What samplers of one study have read so far, shared by the fresh sampler of every ask."""

    def __init__(self) -> None:
        self.search_space = _Intersection(include_pruned=True)
        self.ranks = _Ranks()
        self._tables: dict[tuple[tuple[str, Any], ...], _Table] = {}

    def table(self, space: dict[str, BaseDistribution]) -> _Table:
        """The table of a search space."""
        key = tuple((name, repr(d)) for name, d in space.items())
        if key not in self._tables:
            self._tables[key] = _Table(space)
        return self._tables[key]

    def split(self, numbers: NDArray[np.intp], n_below: Callable[[int], int]) -> NDArray[np.bool_]:
        """Which of these trials are below, (n,): the best complete ones, then the pruned ones that got furthest."""
        state, keys = self.ranks.state[numbers], self.ranks.keys[numbers]
        below = np.zeros(len(numbers), dtype=bool)
        left = n_below(int((state != _RUNNING).sum()))
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
            self._gamma = default_gamma
        trials = study._get_trials(deepcopy=False)
        ranks = self._memory.ranks
        ranks.update(trials, sign)
        if not ranks.plain:  # infeasible trials rank by other rules
            return super()._sample(study, trial, search_space)
        state = ranks.state[: len(trials)]
        seen = (state == _RUNNING) | (state == _COMPLETE) | (state == _PRUNED)
        seen[trial.number] = False
        numbers = np.flatnonzero(seen)
        below = self._memory.split(numbers, self._gamma)
        table = self._memory.table(search_space)
        table.update(trials, numbers, lambda t: self._get_params(t, study))
        rows = table.rows[numbers]  # (n, d)
        whole = ~np.isnan(rows[:, 0])

        def estimator(of: NDArray[np.float64]) -> Any:
            observed = {name: of[:, j] for j, name in enumerate(search_space)}
            return self._parzen_estimator_cls(observed, search_space, self._parzen_estimator_parameters)

        better = table.better(rows[whole & below], estimator)
        others = estimator(rows[whole & ~below])
        samples = better.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, log_density(better, samples) - log_density(others, samples))
        return {name: d.to_external_repr(best[name]) for name, d in search_space.items()}


def log_density(estimator: Any, samples: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """``estimator.log_pdf(samples)`` to the last bit, (m,), with a logarithm per kernel instead of one per kernel and sample.

    Glossary: ``m`` samples, ``n`` kernels, ``d`` parameters.
    """
    mixture = estimator._mixture_distribution
    x = np.array([samples[name] for name in estimator._search_space])  # (d, m)
    ranged = [(d, v) for d, v in zip(mixture.distributions, x, strict=True) if hasattr(d, "mu")]
    inside = all(((v >= d.low) & (v <= d.high)).all() for d, v in ranged)
    if any(d.step for d, _ in ranged) or not inside:
        return np.asarray(estimator.log_pdf(samples))
    total = np.zeros((x.shape[1], len(mixture.weights)))  # (m, n)
    for d, v in zip(mixture.distributions, x, strict=True):
        if not hasattr(d, "mu"):
            total += np.ascontiguousarray(np.log(d.weights).T)[v.astype(np.int64)]
    if ranged:
        mu, sigma = (np.asarray([getattr(d, name) for d, _ in ranged]).T for name in ("mu", "sigma"))  # (n, d)
        low, high = (np.asarray([getattr(d, name) for d, _ in ranged]) for name in ("adapted_low", "adapted_high"))
        scale = _truncnorm._log_gauss_mass((low - mu) / sigma, (high - mu) / sigma), np.log(sigma)
        each = [_log_normal(d, v, *(part[:, k] for part in scale)) for k, (d, v) in enumerate(ranged)]
        total += functools.reduce(np.add, each)
    total += np.log(mixture.weights[np.newaxis])
    peak = total.max(axis=1)
    peak[np.isneginf(peak)] = 0.0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(total - peak[:, None]).sum(axis=1)) + peak)


def _log_normal(
    d: Any, x: NDArray[np.float64], log_mass: NDArray[np.float64], log_sigma: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Logarithm of a normal density, cut off at a range that has a mass of ``exp(log_mass)``: (m, n)."""
    z: NDArray[np.float64] = (np.log(x) if d.is_log else x)[:, np.newaxis] - d.mu
    z /= d.sigma
    z *= z
    z *= -0.5
    z -= _truncnorm._norm_pdf_logC
    z -= np.ascontiguousarray(log_mass)
    z -= np.ascontiguousarray(log_sigma)
    return z
