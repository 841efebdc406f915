"""Losses that differ between lanes, and batches in parts: the same as alone, and the same bits whoever the neighbours are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import shoal
from lanes_helpers import assert_same_trail, datasets, labels, made, sign, specs_of, train_fused, train_solo, work_of
from shoal.data import Datasets
from shoal.lanes.fleet import Work
from shoal.recipe import Recipe
from shoal.records import ParamValue
from shoal.replay import Define

WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)

LOSSES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.CrossEntropyLoss(),
    "smoothed": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    "more smoothed": lambda: nn.CrossEntropyLoss(label_smoothing=0.4),
    "weighted": lambda: nn.CrossEntropyLoss(WEIGHT),
    "both": lambda: nn.CrossEntropyLoss(WEIGHT.flip(0), label_smoothing=0.2),
    "ignoring": lambda: nn.CrossEntropyLoss(ignore_index=1),
    "ignoring, weighted": lambda: nn.CrossEntropyLoss(WEIGHT, ignore_index=1, label_smoothing=0.1),
    "mse": lambda: nn.MSELoss(),
    "l1": lambda: nn.L1Loss(),
    "smooth l1": lambda: nn.SmoothL1Loss(beta=0.5),
    "huber": lambda: nn.HuberLoss(delta=0.3),
    "wide huber": lambda: nn.HuberLoss(delta=3.0),
    "poisson": lambda: nn.PoissonNLLLoss(),
    "bce": lambda: nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
    "kl": lambda: nn.KLDivLoss(reduction="batchmean"),
    "multi margin": lambda: nn.MultiMarginLoss(weight=WEIGHT),
    "labels": lambda: nn.MultiLabelSoftMarginLoss(),
}


def define(trial: Any) -> Recipe:
    model: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    if trial.params["loss"] == "kl":
        model = nn.Sequential(model, nn.LogSoftmax(1))
    optimizer = optim.Adam(model.parameters(), lr=0.02)
    return Recipe(model, optimizer, LOSSES[trial.params["loss"]](), trial.params.get("batch", 20))


def some(targets: Tensor, n: int = 50) -> Datasets:
    x = made(len(targets), 6)
    return datasets((x[:n], targets[:n]), (x[n:], targets[n:]))


CLASSES = labels(75, 4).masked_fill(torch.arange(75) % 7 == 0, -100)
CLASSES[:9] = -100
NUMBERS = made(75, 4, seed=5)
BITS = (NUMBERS > 0).double()
SHARES = NUMBERS.softmax(1)


def check(params: Sequence[Mapping[str, ParamValue]], work: Work, epochs: int = 2, define: Define = define) -> None:
    specs = specs_of(params)
    assert len({sign(define, spec, work).key for spec in specs}) == 1
    fused = train_fused(define, specs, work, epochs)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, epochs), 1e-11)


@pytest.mark.parametrize(
    ("losses", "target"),
    [
        (["plain", "smoothed", "more smoothed"], CLASSES),
        (["smoothed", "plain"], CLASSES),
        (["plain", "weighted"], CLASSES),
        (["weighted", "plain", "both", "smoothed"], CLASSES),
        (["mse", "l1", "smooth l1", "huber", "wide huber"], NUMBERS),
        (["l1", "mse"], NUMBERS),
        (["huber", "wide huber"], NUMBERS),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else "",
)
def test_losses_side_by_side(losses: list[str], target: Tensor) -> None:
    check([{"loss": loss} for loss in losses], work_of(some(target)))


def test_a_loss_of_pixels_may_differ_too() -> None:
    def pixels(trial: Any) -> Recipe:
        model = nn.Conv2d(1, 4, 3).double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), LOSSES[trial.params["loss"]](), 8)

    x, y = made(40, 1, 5, 5), labels(40 * 9, 4).view(40, 3, 3)
    work = work_of(datasets((x[:30], y[:30]), (x[30:], y[30:])))
    check([{"loss": loss} for loss in ("plain", "smoothed", "weighted", "both")], work, 1, pixels)


def test_a_lane_without_smoothing_has_the_same_bits_beside_one_that_smooths() -> None:
    work = work_of(some(CLASSES))
    quiet = specs_of([{"loss": "plain"}, {"loss": "plain"}])
    loud = [quiet[0], specs_of([{"loss": "plain"}, {"loss": "both"}])[1]]
    a, b = (train_fused(define, specs, work, 2)[0] for specs in (quiet, loud))
    for one, other in zip(a.states, b.states, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_add_up_to_the_batch(loss: str) -> None:
    """Batches of 40, 80 and 50 in parts of at most 32, the last one partial: the plain loop takes them whole."""
    target = {"poisson": NUMBERS.exp().round(), "bce": BITS, "kl": SHARES, "labels": BITS}.get(
        loss, CLASSES.clamp(min=0) if "margin" in loss else NUMBERS
    )
    if isinstance(LOSSES[loss](), nn.CrossEntropyLoss):
        target = CLASSES if "ignoring" not in loss else CLASSES.clamp(min=0)
    data = some(torch.cat([target, target]), 130)
    for batch in (40, 80, 50):
        check([{"loss": loss, "batch": batch}, {"loss": loss, "batch": batch}], work_of(data), 1)


def test_a_micro_batch_of_ignored_targets_is_no_reason_to_train_alone() -> None:
    """The first 32 slots of a batch of 64 may all be ignored: their own mean is 0 / 0, the batch's is not."""
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = torch.full((64,), -100)
    y[0] = 1

    def one(trial: Any) -> Recipe:
        model = nn.Linear(4, 3)
        lr = trial.suggest_float("lr", 0.01, 0.1)
        return Recipe(model, optim.SGD(model.parameters(), lr=lr), nn.CrossEntropyLoss(), 64)

    study = shoal.tune(
        one, train=(x, y), valid=(x, y), n_trials=8, max_epochs=1, metric="loss", reproducible=True, progress=False
    )
    assert not [event for event in study.record.events if event.kind == "solo"]


def test_class_weights_of_another_number_raise_alone_as_in_torch() -> None:
    def wrong(trial: Any) -> Recipe:
        model = nn.Linear(6, 4)
        weight = torch.ones(3 if trial.number % 2 else 4)
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(weight), 16)

    x, y = made(40, 6, dtype=torch.float32), labels(40, 4)
    with pytest.warns(RuntimeWarning, match="its loss has 3 class weights for 4 outputs"):
        study = shoal.tune(wrong, train=(x, y), n_trials=4, max_epochs=1, reproducible=True, progress=False)
    states = [str(trial.state) for trial in study.record.trials]
    assert states == ["finished", "failed", "finished", "failed"]
    assert "weight tensor should be defined" in study.record.trials[1].reason


@pytest.mark.parametrize(
    ("loss", "kind", "attribute"),
    [
        (functools.partial(F.cross_entropy, label_smoothing=0.2), nn.CrossEntropyLoss, ("label_smoothing", 0.2)),
        (functools.partial(F.huber_loss, delta=0.5), nn.HuberLoss, ("delta", 0.5)),
        (F.kl_div, nn.KLDivLoss, ("reduction", "mean")),
        (F.multi_margin_loss, nn.MultiMarginLoss, ("margin", 1.0)),
    ],
)
def test_a_functional_loss_stands_for_its_module(loss: Any, kind: type[nn.Module], attribute: tuple[str, Any]) -> None:
    model = nn.Linear(2, 2)
    found = Recipe(model, optim.SGD(model.parameters(), lr=0.1), loss, 2).loss
    assert type(found) is kind and getattr(found, attribute[0]) == attribute[1]


def test_a_functional_loss_with_unknown_options_is_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(shoal.RecipeError, match=r"Recipe\(loss=partial\(mse_loss, ...\)\): .*beta"):
        Recipe(model, optim.SGD(model.parameters(), lr=0.1), functools.partial(F.mse_loss, beta=1), 2)  # type: ignore[call-arg]
