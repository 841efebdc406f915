"""Search spaces of a ``define``: found out by dry runs, since nothing declares them; and grids over discrete ones.

Glossary: a *point* is a parameter assignment, name -> value; a *space* maps names to Optuna distributions.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np

from shoal.errors import UsageError, blame, did_you_mean
from shoal.records import ParamValue

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    Space: TypeAlias = dict[str, BaseDistribution]

PointKey: TypeAlias = tuple[tuple[str, str, ParamValue], ...]

# So many dry runs are taken to show every branch of a conditional space.
DRY_RUNS = 20
# A grid is shuffled as a whole.
_MOST_POINTS = 1_000_000


def probe(define: Callable[[Any], Any]) -> tuple[Space, frozenset[str]]:
    """The parameters that ``define`` asks for, and which of them it asks for in every run.

    Args:
        define: Called with random trials; a run that raises still shows what it asked for before.
    """
    import optuna

    from shoal.samplers import quiet

    with quiet():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        space: Space = {}
        always: set[str] | None = None
        for _ in range(DRY_RUNS):
            trial = study.ask()
            try:
                define(trial)
            except Exception:  # it will raise again, and be told of, when a trial of the study has these parameters
                continue
            space.update(trial.distributions)
            always = set(trial.distributions) if always is None else always & set(trial.distributions)
    return space, frozenset(always or ())


def is_discrete(distribution: BaseDistribution) -> bool:
    """Whether a distribution has finitely many values on purpose: categories, whole numbers, floats with a step."""
    return not hasattr(distribution, "low") or getattr(distribution, "step", None) is not None


def values_of(distribution: BaseDistribution) -> list[ParamValue]:
    """All values of a discrete distribution, in order.

    >>> from optuna.distributions import FloatDistribution, IntDistribution
    >>> values_of(IntDistribution(1, 5, step=2)), values_of(FloatDistribution(0.0, 0.3, step=0.1))
    ([1, 3, 5], [0.0, 0.1, 0.2, 0.3])
    """
    if not hasattr(distribution, "low"):
        return list(distribution.choices)  # type: ignore[attr-defined]
    low, high, step = distribution.low, distribution.high, distribution.step  # type: ignore[attr-defined]
    if isinstance(step, int):
        return list(range(low, high + 1, step))
    n = round((high - low) / step) + 1
    return [float(f"{low + i * step:.12g}") for i in range(n)]


@final
@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of values, in an order shuffled by a seed.

    Attributes:
        values: Name -> the values it takes.
        order: Which combination comes when.
    """

    values: Mapping[str, Sequence[ParamValue]]
    order: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def of(cls, space: Space, always: frozenset[str], given: Mapping[str, Sequence[ParamValue]], seed: int) -> Grid:
        """A grid over a space.

        Args:
            space, always: What ``probe`` found.
            given: Values of some parameters; the others must be discrete.
            seed: Of the order.

        Raises:
            UsageError: A parameter has no finite set of values, is not always asked for, or is not there.
        """
        for name in given:
            if name not in space:
                raise UsageError(
                    f"the grid's space names {name!r}, which define() does not ask for.{did_you_mean(name, space)}"
                )
            cls._check(name, space[name], given[name])
        if conditional := sorted(set(space) - always):
            raise UsageError(
                f"sampler='grid' needs the same parameters in every trial, but {', '.join(conditional)} depends on others; use "
                "sampler='brute_force', which knows branches."
            )
        open_ended = [name for name, d in sorted(space.items()) if name not in given and not is_discrete(d)]
        if open_ended:
            example = f'{{"name": "grid", "space": {{"{open_ended[0]}": [...]}}}}'
            raise UsageError(
                f"sampler='grid' needs values for {', '.join(open_ended)}, which may be any number: give them, as in "
                f"sampler={example}, or suggest them with a step."
            )
        values = {name: list(given[name]) if name in given else values_of(d) for name, d in space.items()}
        n_points = math.prod(len(v) for v in values.values())
        if n_points > _MOST_POINTS:
            raise UsageError(
                f"the grid has {n_points:,} points, more than {_MOST_POINTS:,}; use sampler='random' or 'tpe'."
            )
        return cls(values, np.random.default_rng(seed).permutation(n_points))

    @staticmethod
    def _check(name: str, distribution: BaseDistribution, values: Sequence[ParamValue]) -> None:
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UsageError(f"the grid's values of {name!r} must be a list of at least one value, not {values!r}.")
        for value in values:
            if not holds(distribution, value):
                raise UsageError(f"the grid's value {value!r} of {name!r} is not in {distribution}.")

    def __len__(self) -> int:
        return len(self.order)

    def point(self, index: int) -> dict[str, ParamValue]:
        """The combination whose turn it is, 0 <= index < len."""
        at, out = int(self.order[index]), {}
        for name, values in self.values.items():
            at, k = divmod(at, len(values))
            out[name] = values[k]
        return out


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a distribution has a value."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError, KeyError):
        return False


def point_key(params: Mapping[str, ParamValue], distributions: Mapping[str, str]) -> PointKey | None:
    """What two trials share when they are the same configuration; None when a parameter is continuous, or there is none.

    Args:
        params: Name -> value.
        distributions: Name -> Optuna distribution as JSON.
    """
    if not params or not all(_is_discrete_json(text) for text in distributions.values()):
        return None
    return tuple((name, type(value).__name__, value) for name, value in sorted(params.items()))  # 1 and True differ


@functools.lru_cache(maxsize=1024)
def _is_discrete_json(text: str) -> bool:
    from optuna.distributions import json_to_distribution

    return is_discrete(json_to_distribution(text))


def check_points(define: Callable[[Any], Any], points: Sequence[Mapping[str, Any]]) -> None:
    """See that every point that is to be tried first is one that ``define`` can ask for.

    Raises:
        UsageError: A point is no dict of names, names what is not asked for, or has a value that is out of range.
    """
    import optuna

    from shoal.samplers import quiet

    for index, point in enumerate(points):
        what = f"enqueue[{index}]"
        if not isinstance(point, Mapping) or not all(isinstance(name, str) for name in point):
            raise UsageError(f"{what} must be a dict of parameter names and values, not {point!r}.")
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns of a value out of range, which is an error here
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
            study.enqueue_trial(dict(point))
            trial, problem = study.ask(), ""
            try:
                define(trial)
            except Exception as error:
                problem = blame(error)
        for name, value in point.items():
            if name in trial.distributions:
                if not holds(trial.distributions[name], value):
                    raise UsageError(f"{what}: {name}={value!r} is not in {trial.distributions[name]}.")
            elif problem:
                raise UsageError(f"{what}: define() raised {problem}")
            else:
                raise UsageError(
                    f"{what} sets {name!r}, which define() does not ask for with these parameters."
                    f"{did_you_mean(name, trial.distributions)}"
                )
