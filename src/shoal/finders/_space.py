"""A configuration to look around from: what ``define`` asks for, answered by the middle of each range unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shoal.errors import RecipeError, UsageError, blame, did_you_mean
from shoal.finders._start import Setting
from shoal.recipe import Recipe
from shoal.records import ParamValue
from shoal.replay import Define, run_define
from shoal.spaces import holds, is_discrete, values_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class MiddleTrial:
    """Answers ``define`` with given values, and with the middle of a range or the first of the choices for the rest.

    Args:
        given: Name -> value.

    Attributes:
        params, distributions: What ``define`` has asked for so far.
    """

    number = 0

    def __init__(self, given: Mapping[str, ParamValue]) -> None:
        self._given = dict(given)
        self.params: dict[str, ParamValue] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        self.user_attrs: dict[str, Any] = {}

    def _answer(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._given[name] if name in self._given else _middle(distribution)
        if not holds(distribution, value):
            raise UsageError(f"{name}={value!r} is not in {distribution}, which define() suggests it from.")
        self.params[name], self.distributions[name] = value, distribution
        return value

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        from optuna.distributions import FloatDistribution

        return float(self._answer(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        from optuna.distributions import IntDistribution

        return int(self._answer(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        from optuna.distributions import CategoricalDistribution

        return self._answer(name, CategoricalDistribution(tuple(choices)))

    def set_user_attr(self, name: str, value: Any) -> None:
        self.user_attrs[name] = value


def _middle(distribution: BaseDistribution) -> Any:
    """The first choice; of a range the middle, on its own scale.

    >>> from optuna.distributions import FloatDistribution, IntDistribution
    >>> _middle(FloatDistribution(1e-4, 1e-2, log=True)), _middle(IntDistribution(1, 9, step=2))
    (0.001, 5)
    """
    if not hasattr(distribution, "low"):
        return distribution.choices[0]  # type: ignore[attr-defined]
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    log = bool(getattr(distribution, "log", False))
    at = float(f"{math.sqrt(low) * math.sqrt(high) if log else (low + high) / 2:.12g}")
    if is_discrete(distribution):
        return min(values_of(distribution), key=lambda v: (abs(float(v or 0) - at), -float(v or 0)))
    return at


def point(define: Define, given: Mapping[str, ParamValue], n_train: int) -> tuple[MiddleTrial, Recipe]:
    """One configuration: the trial that answered, and the recipe.

    Raises:
        UsageError: If ``define`` raises, does not ask for what is given, or suggests it from a range without that value.
    """
    trial = MiddleTrial(given)
    try:
        recipe = run_define(define, trial, 0, n_train)
    except (UsageError, RecipeError):
        raise
    except Exception as error:
        shown = ", ".join(f"{k}={v!r}" for k, v in trial.params.items())
        raise UsageError(f"define() raised {blame(error)} with {shown or 'no parameters'}.") from error
    for name in given:
        if name not in trial.params:
            raise UsageError(f"define() does not ask for {name!r}.{did_you_mean(name, trial.params)}")
    return trial, recipe


def named(
    what: str,
    param: str | None,
    define: Define,
    start: Setting,
    *,
    usual: Sequence[str],
    read: Callable[[Recipe], object],
) -> tuple[str, MiddleTrial]:
    """The hyperparameter that moves something of the recipe.

    Args:
        what: In words, for errors: "learning rate".
        param: Its name, as the user gave it; None to find it.
        define: Suggests it.
        start: Values of other hyperparameters, and the data.
        usual: Names that it usually has.
        read: What it moves.

    Raises:
        UsageError: If ``param`` is not there or moves nothing; if nothing or several move it.
    """
    n_train = start.data.train.n
    trial, recipe = point(define, start.given, n_train)
    asked = trial.distributions
    if param is not None and param not in asked:
        raise UsageError(f"define() does not ask for {param!r}.{did_you_mean(param, asked)}")
    before, movers = read(recipe), []
    for name in [param] if param is not None else asked:
        other = _other(asked[name], trial.params[name])
        if other is not None and read(point(define, {**start.given, name: other}, n_train)[1]) != before:
            movers.append(name)
    if param is not None and not movers:
        raise UsageError(f"{param!r} does not change the {what} of the recipe that define() returns.")
    if not movers:
        known = f"it suggests {', '.join(asked)}" if asked else "it suggests nothing"
        raise UsageError(
            f"define() suggests no {what}: {known}, and none of them changes the {what} of its recipe. Suggest one, for example "
            f"with {_EXAMPLES[what]}."
        )
    found = [name for name in usual if name in movers] or movers
    if len(found) > 1:
        raise UsageError(
            f"several hyperparameters change the {what}: {', '.join(found)}. Say which: param={found[0]!r}."
        )
    return found[0], trial


_EXAMPLES = {
    "learning rate": 'trial.suggest_float("lr", 1e-4, 1e-1, log=True)',
    "batch size": 'trial.suggest_categorical("batch_size", [16, 32, 64])',
}


def _other(distribution: BaseDistribution, value: ParamValue) -> ParamValue:
    """Another value of a distribution; None if it has none."""
    if not hasattr(distribution, "low"):
        return next((c for c in distribution.choices if c != value), None)  # type: ignore[attr-defined]
    low, high = distribution.low, distribution.high  # type: ignore[attr-defined]
    return None if low == high else low if value != low else high
