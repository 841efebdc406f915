"""Run ``define`` under a trial's seed, the first time with Optuna's trial and ever after from (number, seed, params).

Replay is how a recipe is rebuilt wherever it is needed: as a template for tracing, after a crash, for the best model. The weights a
constructor draws come out the same, because the generators are seeded by the trial's seed and put back afterwards.
"""

from __future__ import annotations

import contextvars
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch

from shoal.batches import Form
from shoal.errors import RecipeError, ReplayError, UsageError
from shoal.keys import digest, fingerprint_key
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec

Define: TypeAlias = Callable[[Any], Recipe]


class ReplayTrial:
    """Answers ``define``'s suggestions with the parameters they had the first time, and rejects any other.

    Raises:
        ReplayError: If a parameter is asked for that the trial never had, or whose value is no longer allowed.
    """

    def __init__(self, spec: TrialSpec, *, exact: bool = False) -> None:
        self.number = spec.number
        self._distributions = dict(spec.distributions) if exact else {}
        self.params: Mapping[str, ParamValue] = dict(spec.params)
        self.user_attrs: dict[str, Any] = {}

    def _known(self, name: str) -> Any:
        if name not in self.params:
            raise ReplayError(
                f"trial {self.number} has no parameter {name!r} (it has {', '.join(self.params) or 'none'}): define() asks for "
                "other parameters than when the trial was made. Use the code that made the study, or start a new one."
            )
        return self.params[name]

    def _within(self, name: str, low: float, high: float) -> Any:
        value = self._known(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ReplayError(
                f"trial {self.number} had {name}={value!r}, but define() now allows {low} to {high}. Use the code that made "
                "the study, or start a new one."
            )
        return value

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self._check(name, "FloatDistribution", low=low, high=high, step=step, log=log)
        return float(self._within(name, low, high))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self._check(name, "IntDistribution", low=low, high=high, step=step, log=log)
        return int(self._within(name, low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._known(name)
        self._check(name, "CategoricalDistribution", choices=choices)
        if not any(c is value or c == value for c in choices):
            raise ReplayError(
                f"trial {self.number} had {name}={value!r}, which is not among {list(choices)!r} any more. Use the code that made "
                "the study, or start a new one."
            )
        return value

    def set_user_attr(self, key: str, value: Any) -> None:
        self.user_attrs[key] = value

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"define(trial) uses trial.{name}, which is not there when a trial is run again; use number, params, the "
            "suggest_float, suggest_int and suggest_categorical methods, and set_user_attr."
        )

    def _check(self, name: str, kind: str, **arguments: Any) -> None:
        """With ``exact``: what is suggested now must be what was suggested then, not only allow the same value."""
        if name not in self._distributions:
            return
        import optuna.distributions as d

        now, then = getattr(d, kind)(**arguments), d.json_to_distribution(self._distributions[name])
        if d.json_to_distribution(d.distribution_to_json(now)) != then:
            raise ReplayError(
                f"the search space has changed: define() now suggests {name!r} from {now}, trial {self.number} had {then}. Use "
                "the code that made the study, or start a new one."
            )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and ``random`` for the duration, and put their states back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            _seed_torch(seed)
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _seed_torch(seed: int) -> None:
    """As ``torch.manual_seed``, which writes down the stack of every call for devices that are not there: a millisecond."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


_N_TRAIN: contextvars.ContextVar[int] = contextvars.ContextVar("n_train")


def steps_per_epoch(trial: Any, batch_size: int) -> int:
    """Optimizer steps in one epoch, for schedules that need to know (``OneCycleLR``, per-step cosine).

    Args:
        trial: The trial that ``define`` was given.
        batch_size: The recipe's batch size.

    Raises:
        UsageError: If called outside ``define``, or with a batch size below 1.
    """
    n_train = _N_TRAIN.get(None)
    if n_train is None:
        raise UsageError("steps_per_epoch(trial, batch_size) only knows the data inside define(trial).")
    if batch_size < 1:
        raise UsageError(f"steps_per_epoch needs a batch size of at least 1, not {batch_size!r}.")
    return math.ceil(n_train / batch_size)


def run_define(define: Define, trial: Any, seed: int, n_train: int, form: Form | None = None) -> Recipe:
    """Call ``define`` under the trial's seed and check what it returns against the data: its size, and how its batches look.

    Raises:
        RecipeError: Naming the trial; anything that ``define`` itself raises passes through.
    """
    token = _N_TRAIN.set(n_train)
    try:
        with seeded(seed):
            recipe = define(trial)
    except RecipeError as error:
        raise RecipeError(str(error), trial=trial.number) from error
    finally:
        _N_TRAIN.reset(token)
    if not isinstance(recipe, Recipe):
        kind = "None (is a return missing?)" if recipe is None else type(recipe).__qualname__
        raise RecipeError(f"define(trial) must return a shoal.Recipe, not {kind}.", trial=trial.number)
    if recipe.batch_size > n_train:
        raise RecipeError(
            f"batch_size={recipe.batch_size} is larger than the training split ({n_train} samples); suggest at most {n_train}.",
            trial=trial.number,
        )
    if form is not None:
        try:
            recipe.fit(form)
        except RecipeError as error:
            raise RecipeError(str(error), trial=trial.number) from error
    return recipe


def replay(define: Define, spec: TrialSpec, n_train: int, form: Form | None = None) -> Recipe:
    """Rebuild a trial's recipe.

    Raises:
        ReplayError: If ``define`` no longer asks for the trial's parameters.
    """
    seed = spec.seed if spec.origin is None else spec.origin
    return run_define(define, ReplayTrial(spec), seed, n_train, form)


def check_space(define: Define, specs: Sequence[TrialSpec], n_train: int) -> None:
    """See that ``define`` still has the search space of earlier trials, helpers and globals that it uses included.

    Raises:
        ReplayError: If it has not.
    """
    for spec in specs:
        try:
            run_define(define, ReplayTrial(spec, exact=True), spec.seed, n_train)
        except ReplayError:
            raise
        except Exception:  # what else define raises concerns the trials that it fails
            continue


def fingerprint(define: Define) -> str:
    """A short hash of ``define``'s code and of what its closure holds."""
    return digest(fingerprint_key(define))
