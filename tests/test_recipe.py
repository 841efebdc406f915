"""The recipe's checks: every way in which its parts may not fit, and what is said about it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn, optim
from torch.nn import functional as F
from torch.optim import lr_scheduler

import shoal
from shoal.errors import RecipeError, UsageError


def parts(**more: Any) -> dict[str, Any]:
    model = more.pop("model", None) or nn.Linear(4, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1) if isinstance(model, nn.Module) else None
    return {"model": model, "optimizer": optimizer, "loss": nn.CrossEntropyLoss(), "batch_size": 8, **more}


def frozen() -> nn.Module:
    return nn.Linear(4, 2).requires_grad_(False)


def plateau(**more: Any) -> dict[str, Any]:
    made = parts(**more)
    return {**made, "schedule": lr_scheduler.ReduceLROnPlateau(made["optimizer"])}


def stepped(**more: Any) -> dict[str, Any]:
    made = parts(**more)
    return {**made, "schedule": lr_scheduler.StepLR(made["optimizer"], 1)}


TABLE: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: parts(model="net"), r"Recipe\(model=...\) must be an nn.Module, not str"),
    (lambda: parts(optimizer=None), r"Recipe\(optimizer=...\) must be a torch.optim optimizer, not None"),
    (lambda: parts(optimizer=0.1), "torch.optim optimizer, not float"),
    (lambda: parts(loss="mse"), r"Recipe\(loss=...\) must be a criterion or a callable, not str"),
    (lambda: parts(loss=nn.MSELoss), r"Recipe\(loss=MSELoss\) is a class; pass an instance: MSELoss\(\)"),
    (lambda: parts(batch_size=0), "at least 1, not 0"),
    (lambda: parts(batch_size=2.0), "whole number of at least 1, not 2.0"),
    (lambda: parts(batch_size=True), "whole number of at least 1, not True"),
    (lambda: parts(schedule_every="batch"), "must be 'epoch', 'step' or 'fraction', not 'batch'"),
    (lambda: parts(schedule=object()), "must be a torch.optim.lr_scheduler over the recipe's own optimizer"),
    (
        lambda: parts(schedule=lr_scheduler.StepLR(optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), 1)),
        "over the recipe's own optimizer",
    ),
    (lambda: plateau(schedule_every="step"), "ReduceLROnPlateau needs a validation result; use schedule_every='epoch'"),
    (lambda: plateau(schedule_every="fraction"), "ReduceLROnPlateau needs a validation result"),
    (
        lambda: stepped(schedule_every="fraction"),
        "'fraction' is for CosineAnnealingWarmRestarts, .* not for torch.optim.lr_scheduler.StepLR; use 'epoch' or 'step'",
    ),
    (
        lambda: parts(clip_norm=-1.0),
        r"Recipe\(clip_norm=...\) must be a finite number of at least 0 \(0 or None for off\), not -1.0",
    ),
    (lambda: parts(clip_norm="1"), r"Recipe\(clip_norm=...\) must be a finite number .*, not '1'"),
    (lambda: parts(clip_value=math.inf), r"Recipe\(clip_value=...\) must be a finite number .*, not inf"),
    (lambda: parts(clip_value=True), r"Recipe\(clip_value=...\) must be a finite number .*, not True"),
    (lambda: parts(l1=math.nan), r"Recipe\(l1=...\) must be a finite number of at least 0 \(0 for off\), not nan"),
    (lambda: parts(l1=None), r"Recipe\(l1=...\) must be a finite number of at least 0 \(0 for off\), not None"),
    (lambda: parts(extensions=[1]), r"Recipe\(extensions=...\) holds int, which is no extension of shoal.extend"),
    (
        lambda: {**parts(), "model": frozen()},
        "the model has no parameter that requires a gradient: there is nothing to train",
    ),
    (
        lambda: parts(optimizer=optim.SGD(nn.Linear(4, 2).parameters(), lr=0.1)),
        r"the optimizer holds 2 tensor\(s\) that are not parameters of this model",
    ),
]


@pytest.mark.parametrize(("make", "message"), TABLE)
def test_parts_that_do_not_fit(make: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        shoal.Recipe(**make())
    assert issubclass(RecipeError, UsageError)


def test_parameters_that_the_optimizer_misses_are_named() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
    optimizer = optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(RecipeError, match=r"misses 4 parameter\(s\) of the model \(1.weight, 1.bias, 2.weight, ...\)"):
        shoal.Recipe(model, optimizer, nn.MSELoss(), 8)
    model[1:].requires_grad_(False)
    shoal.Recipe(model, optimizer, nn.MSELoss(), 8)


def test_functional_losses_are_criteria() -> None:
    recipe = shoal.Recipe(**parts(loss=F.cross_entropy))
    assert isinstance(recipe.loss, nn.CrossEntropyLoss) and recipe.is_criterion
    assert not shoal.Recipe(**parts(loss=lambda model, batch: batch[0].sum())).is_criterion


def test_modules_that_the_user_froze_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    recipe = shoal.Recipe(**parts(model=model))
    model.eval()
    recipe.train_mode()
    assert model.training and model[0].training and not model[1].training and model[2].training


def test_schedules_step_without_an_optimizer_step() -> None:
    made = parts()
    recipe = shoal.Recipe(**made, schedule=lr_scheduler.StepLR(made["optimizer"], 1, gamma=0.5))
    recipe.step_schedule()  # torch's warning about the order of calls would be an error here
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05)
    made = plateau()
    recipe = shoal.Recipe(**made)
    for _ in range(12):
        recipe.step_schedule(loss=1.0, value=0.0)
    assert made["optimizer"].param_groups[0]["lr"] < 0.1
    shoal.Recipe(**parts()).step_schedule()
