"""The remembering TPE against Optuna's own: the same suggestions, to the last bit."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import optuna
import pytest

from shoal._tpe import Memory, Tpe, log_density

optuna.logging.set_verbosity(optuna.logging.ERROR)


def plain(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -5.0, 5.0)
    lr = trial.suggest_float("lr", 1e-5, 1.0, log=True)
    depth = trial.suggest_int("depth", 1, 6)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    return (x - 1.0) ** 2 + abs(math.log10(lr) + 2.0) + 0.1 * depth + (kind == "b")


def conditional(trial: optuna.Trial) -> float:
    if trial.suggest_categorical("which", [True, False]):
        return trial.suggest_float("u", 0.0, 1.0)
    return 0.5 + trial.suggest_int("v", 1, 9, step=2) * trial.suggest_float("w", 0.1, 0.9, step=0.1)


def single(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0.0, 1.0) + trial.suggest_float("fixed", 2.0, 2.0)


def history(
    define: Any,
    direction: Literal["minimize", "maximize"],
    *,
    remembering: bool,
    wave: int,
    ends: str,
    constrained: bool = False,
) -> list[dict[str, Any]]:
    """Parameters of 60 trials, asked in waves and told together, as an engine does."""
    memory = Memory()
    study = optuna.create_study(direction=direction)
    out = []
    for first in range(0, 60, wave):
        trials = []
        for number in range(first, min(first + wave, 60)):
            study.sampler = Tpe(memory, 7 + number) if remembering else optuna.samplers.TPESampler(seed=7 + number)
            trial = study.ask()
            trials.append((trial, define(trial)))
            out.append(dict(trial.params))
        for trial, value in trials:
            if constrained:
                trial.set_constraint("room", value - 1.0)
            if ends == "mixed" and trial.number % 3 == 0:
                trial.report(math.nan if trial.number % 9 == 0 else value, 1 + trial.number % 4)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            elif ends == "mixed" and trial.number % 11 == 5:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            elif ends == "mixed" and trial.number % 7 == 2:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)  # pruned before it reported anything
            else:
                study.tell(trial, round(value, 1))  # rounded: ties are common
    return out


@pytest.mark.parametrize("define", [plain, conditional, single])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("wave", [1, 8, 25])
@pytest.mark.parametrize("ends", ["complete", "mixed"])
def test_suggests_what_optuna_suggests(
    define: Any, direction: Literal["minimize", "maximize"], wave: int, ends: str
) -> None:
    ours = history(define, direction, remembering=True, wave=wave, ends=ends)
    assert ours == history(define, direction, remembering=False, wave=wave, ends=ends)


def wide(trial: optuna.Trial) -> float:
    x, y = trial.suggest_float("x", -5.0, 5.0), trial.suggest_float("y", 0.0, 1.0)
    lr = trial.suggest_float("lr", 1e-5, 1.0, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    return (x - 1.0) ** 2 + y + abs(math.log10(lr) + 2.0) + (kind == "b")


def test_suggests_the_same_from_hundreds_of_trials() -> None:
    # Above 2,000 numbers at once, Optuna takes another way through the error function.
    def run(sampler: Any) -> list[dict[str, Any]]:
        study, out = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), []
        for _ in range(900):
            trial = study.ask()
            study.tell(trial, wide(trial))
        for number in range(6):
            study.sampler = sampler(number)
            trial = study.ask()
            value = wide(trial)
            out.append(dict(trial.params))
            if number % 2:
                study.tell(trial, value)
        return out

    memory = Memory()
    assert run(lambda n: Tpe(memory, n)) == run(lambda n: optuna.samplers.TPESampler(seed=n))


@pytest.mark.parametrize("n", [1, 5, 60, 700])
@pytest.mark.parametrize("define", [wide, plain, single])
def test_densities_are_optunas_to_the_last_bit(define: Any, n: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=n))
    for _ in range(n):
        trial = study.ask()
        study.tell(trial, define(trial))
    space = {k: d for k, d in study.trials[0].distributions.items() if not d.single()}
    observed = {k: np.array([d.to_internal_repr(t.params[k]) for t in study.trials]) for k, d in space.items()}
    sampler = optuna.samplers.TPESampler(seed=0)
    estimator = sampler._parzen_estimator_cls(observed, space, sampler._parzen_estimator_parameters)
    samples = estimator.sample(np.random.RandomState(3), 24)
    assert np.array_equal(log_density(estimator, samples), estimator.log_pdf(samples))


def test_leaves_constraints_to_optuna() -> None:
    ours = history(plain, "minimize", remembering=True, wave=4, ends="complete", constrained=True)
    assert ours == history(plain, "minimize", remembering=False, wave=4, ends="complete", constrained=True)


def test_leaves_several_objectives_to_optuna() -> None:
    def run(remembering: bool) -> list[dict[str, Any]]:
        memory, out = Memory(), []
        study = optuna.create_study(directions=["minimize", "maximize"])
        for number in range(30):
            study.sampler = Tpe(memory, number) if remembering else optuna.samplers.TPESampler(seed=number)
            trial = study.ask()
            value = plain(trial)
            out.append(dict(trial.params))
            study.tell(trial, (value, -value + trial.params["depth"]))
        return out

    assert run(True) == run(False)
