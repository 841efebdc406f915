"""The sampler of `shoal.GradientRefine`: it keeps nothing, so that every ask follows from the trials that there are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from shoal.refine import SLOPES, GradientRefine

_LENGTHS = (1.0, 2.0, 0.5, 4.0, 0.25)


@final
class RefiningSampler(optuna.samplers.BaseSampler):
    """Random points, then moves of the best ones.

    Args:
        refine: What the user asked for.
        seed: Of what is drawn.
    """

    def __init__(self, refine: GradientRefine, seed: int) -> None:
        self._refine, self._random = refine, optuna.samplers.RandomSampler(seed=seed)
        self._next: dict[str, Any] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if trial.number < self._refine.wave:
            return {}
        trials = study.get_trials(deepcopy=False)
        sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
        ended = [t for t in trials if t.state is TrialState.COMPLETE and t.system_attrs.get(SLOPES)]
        best = sorted(ended, key=lambda t: (sign * float(t.value or 0.0), t.number))[: self._refine.points]
        tried = {_key(t.params) for t in trials}
        for length in _LENGTHS:
            for t in best:
                point = moved(t, length * self._refine.step)
                if _key(point) not in tried:
                    self._next = point
                    return dict(t.distributions)
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {name: self._next[name] for name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def moved(trial: FrozenTrial, far: float) -> dict[str, Any]:
    """A trial's parameters, those with slopes moved against them; ``far`` is a share of their ranges."""
    slopes: Mapping[str, float] = trial.system_attrs[SLOPES]
    ranges = {name: _range(trial.distributions[name]) for name in slopes}
    along = {}
    for name, slope in slopes.items():
        low, high, logarithmic = ranges[name]
        along[name] = slope * (high - low) * (trial.params[name] if logarithmic else 1.0)
    norm = math.hypot(*along.values())
    out = dict(trial.params)
    for name, d in along.items():
        low, high, logarithmic = ranges[name]
        here = math.log(out[name]) if logarithmic else out[name]
        there = min(max(here - (far * d / norm if norm else 0.0) * (high - low), low), high)
        bounds = trial.distributions[name]
        value = math.exp(there) if logarithmic else there
        out[name] = min(max(value, bounds.low), bounds.high)  # type: ignore[attr-defined]
    return out


def _range(distribution: BaseDistribution) -> tuple[float, float, bool]:
    """Where a parameter lies, in the logarithm where it is sampled so."""
    assert isinstance(distribution, FloatDistribution)
    if distribution.log:
        return math.log(distribution.low), math.log(distribution.high), True
    return distribution.low, distribution.high, False


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, repr(value)) for name, value in params.items()))
