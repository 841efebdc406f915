"""Choices about data as hyperparameters: each shares a fleet or splits as docs/data.md says, and is equal to the trial alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import assert_same_trail, datasets, labels, made, sign, specs_of, train_fused, train_solo, work_of
from shoal.recipe import Recipe
from shoal.transforms import Noise

WORK = work_of(datasets((made(40, 6), labels(40, 3)), (made(11, 6, seed=2), labels(11, 3, seed=3))), "accuracy")


class Masked(nn.Linear):
    def __init__(self, k: int) -> None:
        super().__init__(6, 3)
        self.mask = (torch.arange(6) != k).double()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.mask)


class Chosen(nn.Linear):
    def __init__(self, *columns: int) -> None:
        super().__init__(len(columns), 3)
        self.columns = torch.tensor(columns)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, self.columns])


class Cut(nn.Linear):
    def __init__(self, steps: int) -> None:
        super().__init__(steps, 3)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, : self.steps])


class Shortened(nn.Linear):
    def __init__(self, steps: float) -> None:
        super().__init__(6, 3)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.where(torch.arange(6) < self.steps, x, 0.0))


# (model, other fields of the recipe) of trial 0 and 1, and how many fleets they make.
CASES: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], dict[str, Any]], int]] = {
    "strength of an augmentation": (lambda i: nn.Linear(6, 3), lambda i: {"transform": Noise(0.1 + i)}, 1),
    "weights of samples": (lambda i: nn.Linear(6, 3), lambda i: {"sample_weights": torch.arange(40.0) ** i}, 1),
    "features by a mask": (Masked, lambda i: {}, 1),
    "as many features by index": (lambda i: Chosen(i, 3, 5), lambda i: {}, 1),
    "how many features": (lambda i: Chosen(*range(2 + i)), lambda i: {}, 2),
    "how much of a sequence, as a shape": (lambda i: Cut(3 + i), lambda i: {}, 2),
    "how much of a sequence, at one shape": (lambda i: Shortened(2.0 + i), lambda i: {}, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_shares_or_splits_as_documented(name: str) -> None:
    build, fields, n_fleets = CASES[name]

    def define(trial: Any) -> Recipe:
        model = build(trial.params["i"]).double()
        return Recipe(
            model, optim.Adam(model.parameters(), 0.05), nn.CrossEntropyLoss(), 16, **fields(trial.params["i"])
        )

    specs = specs_of([{"i": 0}, {"i": 1}])
    assert len({sign(define, spec, WORK).key for spec in specs}) == n_fleets
    alone = [train_solo(define, spec, WORK, 2) for spec in specs]
    for together in [specs] if n_fleets == 1 else [[spec] for spec in specs]:
        for number, trail in train_fused(define, together, WORK, 2).items():
            assert_same_trail(trail, alone[number], 1e-10)
    assert alone[0].rows[-1].train_loss != alone[1].rows[-1].train_loss


def test_explain_names_the_choice_that_splits() -> None:
    def define(trial: Any) -> Recipe:
        model = Cut(trial.suggest_categorical("steps", [3, 4])).double()
        noise = Noise(trial.suggest_float("noise", 0.1, 0.5))
        return Recipe(model, optim.Adam(model.parameters()), nn.CrossEntropyLoss(), 16, transform=noise)

    text = str(shoal.explain(define, train=WORK.data.train.tensors, n_trials=8))
    assert "(parameter steps)" in text and "transform.std" in text and "solo" not in text
