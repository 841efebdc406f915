"""Replay: the same recipe from (number, seed, params), and an error when ``define`` asks for something else."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim

import shoal
from shoal.asking import Asker
from shoal.errors import RecipeError, ReplayError, UsageError
from shoal.records import TrialSpec
from shoal.replay import ReplayTrial, check_space, fingerprint, replay, run_define


def make(model: nn.Module) -> shoal.Recipe:
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), batch_size=4)


def define(trial: Any) -> shoal.Recipe:
    trial.set_user_attr("note", 1)
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_float("step", 0.0, 1.0, step=0.25)
    trial.suggest_categorical("kind", ["a", None, 2])
    return make(nn.Linear(3, trial.suggest_int("width", 2, 8)))


def first(define: Callable[[Any], shoal.Recipe] = define) -> tuple[TrialSpec, shoal.Recipe]:
    asker = Asker("random", "minimize", 0)
    trial = asker.ask()
    recipe = run_define(define, trial, asker.trial_seed(0), 10)
    return asker.spec(trial), recipe


def test_a_replayed_recipe_has_the_same_weights() -> None:
    spec, recipe = first()
    torch.rand(3), random.random(), np.random.rand()
    again = replay(define, spec, 10)
    for a, b in zip(recipe.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    check_space(define, [spec], 10)


def test_the_users_generators_are_put_back_even_after_an_error() -> None:
    def draws(trial: Any) -> shoal.Recipe:
        torch.rand(1), random.random(), np.random.rand()
        raise ValueError("no")

    def states() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before = states()
    with pytest.raises(ValueError, match=r"no"):
        replay(draws, TrialSpec(0, 1, {}, {}), 10)
    assert states() == before


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda t: t.suggest_float("momentum", 0, 1),
            r"trial 0 has no parameter 'momentum' \(it has lr, step, kind, width\)",
        ),
        (lambda t: t.suggest_float("lr", 1.0, 2.0), "trial 0 had lr=.*, but define.. now allows 1.0 to 2.0"),
        (lambda t: t.suggest_int("kind", 0, 2), "trial 0 had kind="),
        (lambda t: t.suggest_categorical("width", ["x"]), "trial 0 had width=.*, which is not among .'x'. any more"),
    ],
)
def test_unknown_and_changed_suggestions(ask: Callable[[Any], object], message: str) -> None:
    spec, _ = first()
    spec = TrialSpec(0, spec.seed, {**spec.params, "kind": "a"}, spec.distributions)
    with pytest.raises(ReplayError, match=message + ".*|the code that made"):
        ask(ReplayTrial(spec))


@pytest.mark.parametrize(
    "ask",
    [
        lambda t: t.suggest_float("lr", 1e-5, 1e-1, log=True),
        lambda t: t.suggest_float("lr", 1e-4, 1e-1),
        lambda t: t.suggest_categorical("kind", ["a", None, 2, "b"]),
        lambda t: t.suggest_int("width", 2, 16),
    ],
)
def test_a_search_space_that_changed_around_the_same_values(ask: Callable[[Any], object]) -> None:
    spec, _ = first()

    def other(trial: Any) -> shoal.Recipe:
        ask(trial)
        return make(nn.Linear(3, 2))

    ask(ReplayTrial(spec))  # the values are still allowed, so replay alone sees nothing
    with pytest.raises(ReplayError, match=r"the search space has changed: define.. now suggests"):
        check_space(other, [spec], 10)


def test_what_a_replayed_trial_does_not_have() -> None:
    with pytest.raises(AttributeError, match=r"define\(trial\) uses trial.report, which is not there"):
        ReplayTrial(TrialSpec(0, 1, {}, {})).report(0.5, 1)


def test_steps_per_epoch_knows_the_data_only_inside_define() -> None:
    seen: list[int] = []

    def asks(trial: Any) -> shoal.Recipe:
        seen.append(shoal.steps_per_epoch(trial, 4))
        return make(nn.Linear(3, 2))

    run_define(asks, ReplayTrial(TrialSpec(0, 1, {}, {})), 1, 10)
    assert seen == [3]
    with pytest.raises(UsageError, match=r"only knows the data inside define"):
        shoal.steps_per_epoch(None, 4)

    def wrong(trial: Any) -> shoal.Recipe:
        shoal.steps_per_epoch(trial, 0)
        return make(nn.Linear(3, 2))

    with pytest.raises(UsageError, match=r"needs a batch size of at least 1, not 0"):
        run_define(wrong, ReplayTrial(TrialSpec(0, 1, {}, {})), 1, 10)


def test_what_define_returns_is_checked() -> None:
    trial = ReplayTrial(TrialSpec(5, 1, {}, {}))
    with pytest.raises(RecipeError, match=r"trial 5: define\(trial\) must return a shoal.Recipe, not None"):
        run_define(lambda t: None, trial, 1, 10)  # type: ignore[arg-type, return-value]
    with pytest.raises(RecipeError, match=r"trial 5: batch_size=4 is larger than the training split \(3 samples\)"):
        run_define(lambda t: make(nn.Linear(3, 2)), trial, 1, 3)


def test_the_fingerprint_follows_code_and_closure_and_not_the_line() -> None:
    def made(width: int) -> Callable[[Any], shoal.Recipe]:
        return lambda trial: make(nn.Linear(3, width))

    assert fingerprint(made(2)) == fingerprint(made(2)) != fingerprint(made(3))
    assert fingerprint(define) != fingerprint(made(2))
