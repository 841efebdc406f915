"""The recipe of a table: a deep and wide perceptron with embeddings, and the space that it is searched in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn, optim

from shoal.nn import Range, mlp, mlp_space, optimizer
from shoal.recipe import Recipe
from shoal.tabular._target import Task

IMBALANCED: Final = 4.0  # the largest class has more than so many times the rows of the smallest
_SMALL, _LARGE = 2_000, 50_000  # training rows


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the recipes of a table depend on: plain data, so that it can be compared and stored.

    ``counts`` are the training rows of each class (empty unless the task is "classes"); ``space`` are parts of
    ``shoal.nn.mlp_space`` that the user set, as pairs.
    """

    task: Task
    n_numbers: int
    sizes: tuple[int, ...]
    n_out: int
    n_train: int
    counts: tuple[int, ...]
    space: tuple[tuple[str, Any], ...] = ()

    @property
    def imbalanced(self) -> bool:
        """Whether some class has far fewer rows than another."""
        present = [count for count in self.counts if count]
        return bool(present) and max(present) > IMBALANCED * min(present)

    @property
    def metric(self) -> str:
        """What trials are judged by unless the user says otherwise."""
        if self.task == "classes":
            if self.imbalanced:
                return "f1"
            # Of a few hundred validation rows, many trials get the same ones right; the loss still tells them apart.
            return "loss" if self.n_train < _SMALL else "accuracy"
        return "loss" if self.task == "labels" else "r2"

    @property
    def budget(self) -> dict[str, int]:
        """Trials and epochs that suit the number of rows: some tens of seconds on two cores up to 50,000 of them."""
        if self.n_train < _SMALL:
            return {"n_trials": 100, "max_epochs": 40}
        return {"n_trials": 40, "max_epochs": 15} if self.n_train < _LARGE else {"n_trials": 24, "max_epochs": 8}


def make_define(plan: Plan) -> Callable[[Any], Recipe]:
    """``define(trial)`` for a table."""

    def define(trial: Any) -> Recipe:
        arguments, training = choose(plan, trial)
        model = mlp(**arguments)
        return training(model)

    return define


def choose(plan: Plan, trial: Any) -> tuple[dict[str, Any], Callable[[nn.Module], Recipe]]:
    """What a trial suggests: keywords of ``shoal.nn.mlp``, and a function that makes the recipe of such a model."""
    # Few shapes and one batch size make few, wide fleets; what else is searched costs none.
    batch_size = min(32 if plan.n_train < _SMALL else 128, plan.n_train)
    knobs: dict[str, Any] = {
        "width": [32, 64] if plan.n_train < _SMALL else [64, 128],
        "depth": [1, 2],
        "lr": Range(1e-4, 3e-2, log=True),
        "weight_decay": Range(1e-5, 1e-1, log=True),
        "optimizer": ["adamw", "adam"],
        "init": "default",
        "batch_size": batch_size,
        "wide": True,
        "embedding": 6,
    }
    pick = mlp_space(trial, **{**knobs, **dict(plan.space)})
    # Where some class is rare, how much its rows should count is part of the search. Weights of one do not split fleets.
    balance = trial.suggest_categorical("balance", [0.0, 0.5, 1.0]) if plan.imbalanced else None
    decay = trial.suggest_float("lr_decay", 0.8, 1.0)
    arguments = {"n_in": plan.n_numbers, "n_out": plan.n_out, "categories": plan.sizes, **pick.model}

    def training(model: nn.Module) -> Recipe:
        made = optimizer(model, **pick.optimizer)
        schedule = optim.lr_scheduler.ExponentialLR(made, decay)
        criterion = _criterion(plan, balance)
        return Recipe(model, made, criterion, pick.batch_size, schedule=schedule, extensions=pick.extensions)

    return arguments, training


def class_weights(counts: tuple[int, ...], balance: float) -> torch.Tensor:
    """Weights (C,) in proportion to rows ** -balance, with mean 1 over the training rows.

    >>> class_weights((30, 10), 1.0)
    tensor([0.6667, 2.0000])
    """
    rows = torch.tensor(counts, dtype=torch.float64)
    weights = rows.clamp(min=1) ** -balance
    return (weights * rows.sum() / (weights * rows).sum()).float()


def _criterion(plan: Plan, balance: float | None) -> nn.Module:
    if plan.task == "classes":
        return nn.CrossEntropyLoss(weight=None if balance is None else class_weights(plan.counts, balance))
    return nn.BCEWithLogitsLoss() if plan.task == "labels" else nn.MSELoss()


def space_of(space: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...]:
    """The user's parts of the space as `Plan` holds them."""
    return tuple(sorted((space or {}).items()))
