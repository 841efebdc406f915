"""Transforms of training batches: what they do, and the same in a lane and alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import assert_same_trail, class_data, sign, specs_of, train_fused, train_solo, work_of
from shoal.errors import RecipeError, UsageError
from shoal.lanes.rng import KeyedRandom
from shoal.recipe import Recipe
from shoal.transforms import Compose, Crop, Flip, Noise

N = 4000


def drawn(transform: Callable[..., Any], x: Tensor) -> Tensor:
    with KeyedRandom(torch.arange(len(x), dtype=torch.int32) * 7919):
        out, y = transform((x, x))
    assert y is x
    return out  # type: ignore[no-any-return]


def test_a_flip_mirrors_as_often_as_it_says() -> None:
    x = torch.arange(3.0).expand(N, 1, 1, 3)
    out = drawn(Flip(0.3), x)[:, 0, 0]
    mirrored = (out == torch.tensor([2.0, 1.0, 0.0])).all(1)
    assert bool((mirrored | (out == torch.arange(3.0)).all(1)).all())
    assert abs(mirrored.double().mean().item() - 0.3) < 0.03


def test_a_crop_takes_every_place_equally_often() -> None:
    x = torch.zeros(N, 1, 5, 5)
    x[:, 0, 2, 2] = 1.0
    out = drawn(Crop(1), x)
    assert bool((out.sum((1, 2, 3)) == 1).all())
    share = out.mean(0)[0]
    assert bool((share[1:4, 1:4] - 1 / 9).abs().max() < 0.02) and share.sum() == pytest.approx(1.0)


def test_noise_is_normal() -> None:
    out = drawn(Noise(0.5), torch.ones(N, 4))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02) and out.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "transform", [Flip(), Crop(2), Noise(0.2), Compose(Flip(0.4), Crop(1), Noise(0.1))], ids=lambda t: type(t).__name__
)
def test_a_lane_transforms_as_the_trial_does_alone(transform: Callable[..., Any]) -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(108, 4)).double()
        optimizer = optim.Adam(model.parameters(), lr=trial.params["lr"])
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, transform=transform)

    work = work_of(class_data(50, features=(1, 8, 8)), "accuracy")
    specs = specs_of([{"lr": lr} for lr in (0.001, 0.01, 0.02)])
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-9)


def recipe(transform: Any) -> Callable[[Any], Recipe]:
    def define(trial: Any) -> Recipe:
        model = nn.Linear(10, 4).double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 10, transform=transform)

    return define


def test_trials_share_a_fleet_when_their_transforms_are_equal() -> None:
    work, spec = work_of(class_data()), specs_of([{}])[0]
    one, same, other, none = (sign(recipe(t), spec, work) for t in (Noise(0.1), Noise(0.1), Noise(0.2), None))
    assert one.key == same.key and one.exact and not none.exact
    assert one.differs(other) == ["transform"]


def test_a_transform_that_changes_targets_trains_alone() -> None:
    def swapped(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return batch[0], 3 - batch[1]

    data = class_data()
    with pytest.warns(RuntimeWarning, match="its transform changes the targets"):
        study = shoal.tune(
            recipe(swapped), train=data.train.tensors, n_trials=2, max_epochs=1, reproducible=True, progress=False
        )
    assert all(str(trial.state) == "finished" for trial in study.record.trials)


@pytest.mark.parametrize("bad", [lambda b: None, lambda b: b[:1], lambda b: (b[0][:3], b[1]), lambda b: ("x", b[1])])
def test_a_transform_must_return_a_batch(bad: Callable[..., Any]) -> None:
    x = torch.zeros(6, 10)
    with pytest.raises(
        RecipeError, match=r"must return a batch like the one it is given, 2 tensor\(s\) of as many rows"
    ):
        recipe(bad)(None).transformed((x, x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Flip(1.5), "must be a probability from 0 to 1, not 1.5"),
        (lambda: Crop(0), "must be a whole number of at least 1, not 0"),
        (lambda: Noise(-1.0), "must be a finite number of at least 0, not -1.0"),
        (lambda: recipe(3)(None), "must be a callable on a batch, not int"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
