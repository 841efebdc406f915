"""Transforms of training batches: what they do, and the same in a lane and alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from lanes_helpers import (
    assert_same_trail,
    class_data,
    datasets,
    labels,
    made,
    sign,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from shoal.errors import FuseError, RecipeError, UsageError
from shoal.lanes.rng import KeyedRandom
from shoal.recipe import Recipe
from shoal.transforms import Compose, Crop, Cutout, Flip, Mixup, Noise, On

N = 4000
X = torch.zeros(6, 10)


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


def test_a_cutout_is_a_square_of_its_size() -> None:
    cut = drawn(Cutout(3), torch.ones(N, 2, 9, 9)) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), rows * columns)
    assert (int(rows.min()), int(rows.max())) == (2, 3)  # less where it lies over the edge
    centre = cut[:, 0, 4, 4].double().mean().item()
    assert centre == pytest.approx((3 / 9) ** 2, abs=0.03)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_mixes_neighbours_by_a_beta_distribution(alpha: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    x, y = torch.eye(N, dtype=torch.float64), torch.arange(N) % 3
    with KeyedRandom(torch.arange(N, dtype=torch.int32) * 7919):
        mixed, target = Mixup(alpha, classes=3)((x, y))
    share = mixed.diagonal()
    assert torch.equal(mixed.sum(1), torch.ones(N).double())
    assert torch.allclose(target, share[:, None] * torch.eye(3)[y] + (1 - share)[:, None] * torch.eye(3)[y.roll(1)])
    assert scipy_stats.kstest(share.numpy(), scipy_stats.beta(alpha, alpha).cdf).pvalue > 0.001


def test_several_tensors_are_changed_alike() -> None:
    image = torch.arange(N * 25.0).reshape(N, 1, 5, 5)
    batch = {"image": image, "mask": image[:, 0], "label": torch.zeros(N)}
    with KeyedRandom(torch.arange(N, dtype=torch.int32) * 7919):
        out = On(("image", "mask"), Compose(Flip(alike=2), Crop(2, alike=2)))(batch)
    assert torch.equal(out["image"][:, 0], out["mask"]) and not torch.equal(out["image"], image)
    assert out["label"] is batch["label"] and list(out) == list(batch)


def images(lr: float, transform: Any, loss: Any = None, batch_size: int = 16) -> Recipe:
    layers = (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(108, 4))
    model = nn.Sequential(*layers).double()
    optimizer = optim.Adam(model.parameters(), lr=lr)
    return Recipe(model, optimizer, loss or nn.CrossEntropyLoss(), batch_size, transform=transform)


STRENGTHS: dict[str, Callable[[float], Any]] = {
    "flip": Flip,
    "crop": lambda s: Crop(1 + int(4 * s)),
    "cutout": lambda s: Cutout(2 + int(4 * s)),
    "noise": Noise,
    "several": lambda s: Compose(Flip(s), Crop(1 + int(4 * s)), Noise(s), Cutout(3)),
    "mixup": lambda s: Mixup(s + 0.1, classes=4),
    "on a part": lambda s: On(0, Noise(s)),
    "one's own": lambda s: lambda batch: (batch[0] * (1 + s * torch.randn_like(batch[0])), *batch[1:]),
}


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_lane_transforms_as_the_trial_does_alone_and_strengths_share_a_fleet(name: str) -> None:
    def define(trial: Any) -> Recipe:
        return images(trial.params["lr"], STRENGTHS[name](trial.params["s"]))

    work = work_of(class_data(50, features=(1, 8, 8)), "accuracy")
    specs = specs_of([{"lr": 0.001, "s": 0.2}, {"lr": 0.01, "s": 0.5}, {"lr": 0.02, "s": 0.9}])
    assert len({sign(define, spec, work).key for spec in specs}) == 1
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-9)


def test_trials_of_other_batch_sizes_share_a_fleet_unless_a_transform_mixes_samples() -> None:
    work, specs = work_of(class_data(150, features=(1, 8, 8))), specs_of([{"b": 32}, {"b": 64}])
    for transform, n_fleets in ((Compose(Flip(0.3), Noise(0.1)), 1), (Mixup(0.2, 4), 2), (lambda b: b, 2)):

        def define(trial: Any, transform: Any = transform) -> Recipe:
            return images(0.01, transform, batch_size=trial.params["b"])

        assert len({sign(define, spec, work).key for spec in specs}) == n_fleets


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_targets_may_be_changed(reduction: str, weighted: bool) -> None:
    """Weights of classes, smoothing and ignored targets count by what the transform has made of the targets."""

    def forgetful(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        forgot = torch.rand(len(batch[1]), device=batch[1].device) < 0.4
        return batch[0], torch.where(forgot, -100, 3 - batch[1])

    def define(trial: Any) -> Recipe:
        weight = torch.tensor([0.5, 1.0, 2.0, trial.params["w"]]).double() if weighted else None
        loss = nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=trial.params["smooth"])
        return images(0.01, forgetful, loss)

    work = work_of(class_data(50, features=(1, 8, 8)))
    specs = specs_of([{"w": 1.0, "smooth": 0.0}, {"w": 3.0, "smooth": 0.2}])
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-9)


def test_an_image_and_its_mask_are_augmented_together_in_lanes() -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Conv2d(1, 3, 3, padding=1).double()
        both = On(("image", "mask"), Flip(trial.params["p"], alike=2))
        return Recipe(model, optim.Adam(model.parameters()), nn.CrossEntropyLoss(), 8, transform=both)

    x, y = made(40, 1, 6, 6), labels(40 * 36, 3).view(40, 6, 6)

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["image"]), batch["mask"])

    def by_hand(trial: Any) -> Recipe:
        recipe = define(trial)
        return Recipe(
            recipe.model, recipe.optimizer, loss, 8, transform=recipe.transform, predict=lambda m, b: m(b["image"])
        )

    data = datasets((x[:30], y[:30]), (x[30:], y[30:]), ("image", "mask"))
    specs = specs_of([{"p": 0.3}, {"p": 0.8}])
    fused = train_fused(by_hand, specs, work_of(data), 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(by_hand, spec, work_of(data), 2), 1e-9)


def recipe(transform: Any) -> Callable[[Any], Recipe]:
    def define(trial: Any) -> Recipe:
        model = nn.Linear(10, 4).double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 10, transform=transform)

    return define


def test_other_transforms_are_another_fleet() -> None:
    work, spec = work_of(class_data()), specs_of([{}])[0]
    one, same, other, none = (sign(recipe(t), spec, work) for t in (Noise(0.1), Noise(0.2), On(0, Noise(0.1)), None))
    assert one.key == same.key and not one.exact and not none.exact
    assert "transform" in one.differs(other) and "transform" in one.differs(none)


class Counting:
    """A transform whose strength follows how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.calls += 1
        return batch[0] * self.calls, *batch[1:]


def of_numpy(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return batch[0] * float(np.random.rand()), *batch[1:]


@pytest.mark.parametrize(
    ("make", "reason"),
    [(Counting, "changes what transform refers to"), (lambda: of_numpy, "draws random numbers from NumPy")],
)
def test_a_transform_that_a_trace_would_run_only_once_trains_alone(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(FuseError, match=reason):
        sign(recipe(make()), specs_of([{}])[0], work_of(class_data()))


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
        (lambda: Crop(math.inf), "must be a whole number of at least 1, not inf"),
        (lambda: Cutout(2.5), r"Cutout\(size=...\) must be a whole number of at least 1, not 2.5"),
        (lambda: Flip(alike=0), r"Flip\(alike=...\) must be a whole number of at least 1, not 0"),
        (lambda: Flip(alike=3)((X, X)), r"Flip\(alike=3\) was given 2 tensor\(s\)"),
        (lambda: Mixup(0.0), "must be a finite number above 0, not 0.0"),
        (lambda: Mixup(0.2, 1), "must be a whole number of at least 2, or None; got 1"),
        (lambda: Mixup()((X,)), "mixes inputs and target, and was given one tensor"),
        (lambda: Mixup()((X, X[:, 0].long())), "say how many there are, "),
        (
            lambda: Noise()({"image": X}),
            r"was given a dict of \['image'\]; say which part it changes: On\('image', Noise",
        ),
        (lambda: On("imag", Noise())({"image": X}), r"names no part of the batch, which has \['image'\]. Did you mean"),
        (lambda: On(2, Noise())((X, X)), r"On\(2, ...\) names no part of the batch, which has \[0, 1\]"),
        (lambda: On(0, lambda b: None)((X, X)), r"On\(0, ...\) wants 1 tensor\(s\) back from its transform"),
        (lambda: Noise(-1.0), "must be a finite number of at least 0, not -1.0"),
        (lambda: recipe(3)(None), "must be a callable on a batch, not int"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
