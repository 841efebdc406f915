"""A ``define`` that changes what earlier trials read while they train is warned of, and no other is."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import class_data
from shoal.recipe import Recipe

SETTINGS = {"scale": 0.5}
COUNTED = [0]
DATA = class_data(40, (6,), 3, torch.float32).train.tensors


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * SETTINGS["scale"])


def tune(define: Any) -> None:
    shoal.tune(define, train=DATA, n_trials=3, max_epochs=1, reproducible=True, progress=False)


def recipe(trial: Any, model: nn.Module, loss: Any = None) -> Recipe:
    lr = trial.suggest_float("lr", 1e-3, 1e-1)
    return Recipe(model, optim.SGD(model.parameters(), lr=lr), loss or nn.CrossEntropyLoss(), 8)


def sets_a_global(trial: Any) -> Recipe:
    SETTINGS["scale"] = trial.suggest_float("scale", 0.1, 1.0)
    return recipe(trial, Scaled(6, 3))


def sets_what_the_loss_reads(trial: Any) -> Recipe:
    SETTINGS["scale"] = trial.suggest_float("scale", 0.1, 1.0)
    return recipe(
        trial, nn.Linear(6, 3), lambda model, b: nn.functional.cross_entropy(model(b[0]), b[1]) * SETTINGS["scale"]
    )


@pytest.mark.parametrize(
    ("define", "where"),
    [
        (sets_a_global, "define.* changes what the code of Scaled refers to"),
        (sets_what_the_loss_reads, "define.* changes what loss refers to"),
    ],
)
def test_a_define_that_sets_what_others_read_is_warned_of(define: Any, where: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tune(define)  # some of its trials may train solo, which is another warning
    said = [str(w.message) for w in caught if re.search(where, str(w.message))]
    assert len(said) == 1 and "which belongs to an earlier trial as well. Trials train at the same" in said[0]


def test_what_only_define_reads_may_change() -> None:
    def define(trial: Any) -> Recipe:
        COUNTED[0] += 1
        return recipe(trial, Scaled(6, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tune(define)
