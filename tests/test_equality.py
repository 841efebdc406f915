"""A trial in a lane does what it does alone: the same gradients, the same updates, the same trajectory.

The plain loop (``Solo``) is the reference, and is itself held against a loop written out here in nothing but torch.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from lanes_helpers import (
    assert_close,
    assert_same_trail,
    class_data,
    datasets,
    labels,
    made,
    open_fleet,
    ready,
    rebuild,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from optimizer_tables import OPTIMIZERS
from shoal.data import Datasets
from shoal.lanes.order import slot_weights
from shoal.lanes.rng import KeyedRandom, permutation
from shoal.lanes.solo import Solo
from shoal.recipe import Recipe
from shoal.records import ParamValue
from shoal.replay import Define, steps_per_epoch

# --- what is trained ---------------------------------------------------------------------------------------------

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def mlp(act: type[nn.Module], p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), act(), nn.Linear(12, 9), act(), nn.Linear(9, 4))


def mlp_dropout(act: type[nn.Module], p: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(10, 12), act(), nn.Dropout(p), nn.Linear(12, 9), nn.Dropout(p / 2), act(), nn.Linear(9, 4)
    )


def mlp_norm(act: type[nn.Module], p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), act(), nn.Dropout(p), nn.Linear(12, 4))


def layer_norm(act: type[nn.Module], p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.LayerNorm(12), act(), nn.Dropout(p), nn.Linear(12, 4))


def cnn_norm(act: type[nn.Module], p: float) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        act(),
        nn.Dropout2d(p),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 2),
        act(),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


class Autoencoder(nn.Module):
    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 5), act())
        self.decoder = nn.Linear(5, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


def autoencoder(act: type[nn.Module], p: float) -> nn.Module:
    return Autoencoder(act)


def regressor(act: type[nn.Module], p: float) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 8), act(), nn.Linear(8, 3))


def reconstruction(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return (model(batch[0]) - batch[0]).square().mean()  # type: ignore[no-any-return]


SCHEDULES: dict[str, tuple[str, Callable[[optim.Optimizer, int], Any]]] = {
    "step": ("epoch", lambda o, n: lr_scheduler.StepLR(o, 1, gamma=0.5)),
    "cosine": ("epoch", lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=3)),
    "plateau": ("epoch", lambda o, n: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.3, threshold=0.5)),
    "exponential": ("epoch", lambda o, n: lr_scheduler.ExponentialLR(o, 0.7)),
    "onecycle": ("step", lambda o, n: lr_scheduler.OneCycleLR(o, max_lr=0.05, total_steps=3 * n)),
    "exponential step": ("step", lambda o, n: lr_scheduler.ExponentialLR(o, 0.98)),
    "cosine step": ("step", lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=3 * n)),
}

LOSSES: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "ce": lambda d: nn.CrossEntropyLoss(),
    "ce smoothed": lambda d: nn.CrossEntropyLoss(label_smoothing=0.1),
    "ce weighted": lambda d: nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=d)),
    "ce ignoring": lambda d: nn.CrossEntropyLoss(ignore_index=0),
    "ce all": lambda d: nn.CrossEntropyLoss(
        weight=torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=d), ignore_index=2, label_smoothing=0.2
    ),
    "ce sum": lambda d: nn.CrossEntropyLoss(reduction="sum"),
    "mse": lambda d: nn.MSELoss(),
    "mse sum": lambda d: nn.MSELoss(reduction="sum"),
    "l1": lambda d: nn.L1Loss(),
    "huber": lambda d: nn.HuberLoss(delta=0.7),
    "smooth l1": lambda d: nn.SmoothL1Loss(beta=0.5),
    "bce": lambda d: nn.BCEWithLogitsLoss(),
}


@dataclass(frozen=True)
class Kind:
    """A model with data that suits it. ``loose`` names what has no gradient but rounding: a bias before a norm."""

    build: Callable[[type[nn.Module], float], nn.Module]
    data: Callable[[torch.dtype], Datasets]
    loss: str | Callable[..., Tensor] = "ce"
    metric: str | None = "accuracy"
    loose: tuple[str, ...] = ()


def _classes(dtype: torch.dtype) -> Datasets:
    return class_data(60, dtype=dtype)  # a last batch of 2 would make batch norm all rounding noise


def _images(dtype: torch.dtype) -> Datasets:
    return class_data(60, features=(1, 8, 8), dtype=dtype)


def _numbers(dtype: torch.dtype) -> Datasets:
    x, y = made(73, 10, dtype=dtype), made(73, 3, seed=5, dtype=dtype)
    return datasets((x[:50], y[:50]), (x[50:], y[50:]))


def _bits(dtype: torch.dtype) -> Datasets:
    data = _numbers(dtype)
    x, v = data.train.tensors, data.valid.tensors
    return datasets((x[0], (x[1] > 0).to(dtype)), (v[0], (v[1] > 0).to(dtype)))


def _inputs(dtype: torch.dtype) -> Datasets:
    x = made(73, 10, dtype=dtype)
    return datasets((x[:50],), (x[50:],))


KINDS: dict[str, Kind] = {
    "mlp": Kind(mlp, _classes),
    "mlp dropout": Kind(mlp_dropout, _classes),
    "mlp batchnorm": Kind(mlp_norm, _classes, loose=("0.bias", "1.running_mean")),
    "layernorm": Kind(layer_norm, _classes),
    "cnn batchnorm": Kind(cnn_norm, _images, loose=("0.bias", "1.running_mean")),
    "autoencoder": Kind(autoencoder, _inputs, loss=reconstruction, metric=None),
    "regression": Kind(regressor, _numbers, loss="mse", metric="rmse"),
}


def definition(kind: Kind, dtype: torch.dtype) -> Define:
    """A define whose every hyperparameter comes from the trial."""

    def define(trial: Any) -> Recipe:
        got = trial.params
        model = kind.build(ACTIVATIONS[got.get("act", "relu")], got.get("p", 0.0)).to(dtype)
        optimizer = OPTIMIZERS[got.get("opt", "sgd")](model)
        batch = int(got.get("batch", 16))
        schedule, every = None, "epoch"
        if "schedule" in got:
            every, make = SCHEDULES[got["schedule"]]
            schedule = make(optimizer, steps_per_epoch(trial, batch))
        named = got.get("loss", kind.loss)
        loss = LOSSES[named](dtype) if isinstance(named, str) else named
        return Recipe(model, optimizer, loss, batch, schedule=schedule, schedule_every=every)  # type: ignore[arg-type]

    return define


def mixed(n: int, **fixed: ParamValue) -> list[dict[str, ParamValue]]:
    """n trials that differ in activation, dropout rate and optimizer."""
    opts, acts = itertools.cycle(OPTIMIZERS), itertools.cycle(ACTIVATIONS)
    return [{"act": next(acts), "p": 0.15 * (i % 4), "opt": next(opts), **fixed} for i in range(n)]


# --- the oracle --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opt", ["momentum", "adamw", "rmsprop"])
def test_the_plain_loop_is_the_loop_one_would_write(opt: str) -> None:
    kind, epochs = KINDS["mlp batchnorm"], 3
    work = work_of(kind.data(torch.float64), "accuracy")
    spec = specs_of([{"opt": opt, "batch": 16}])[0]
    trail = train_solo(definition(kind, torch.float64), spec, work, epochs)

    torch.manual_seed(spec.seed)
    model = kind.build(nn.ReLU, 0.0).double()
    optimizer, criterion = OPTIMIZERS[opt](model), nn.CrossEntropyLoss()
    (x, y), (vx, vy) = work.data.train.tensors, work.data.valid.tensors
    for epoch in range(epochs):
        model.train()
        order, total = torch.from_numpy(permutation(spec.seed, epoch, len(x))), 0.0
        for rows in torch.split(order, 16):
            loss = criterion(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        model.eval()
        with torch.no_grad():
            out = model(vx)
        row = trail.rows[epoch]
        assert_close(row.train_loss, total / len(x), 1e-14, "train loss")
        assert_close(row.valid_loss, criterion(out, vy).item(), 1e-14, "validation loss")
        assert row.metrics["accuracy"] == (out.argmax(1) == vy).double().mean().item()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, trail.states[epoch][name]), name


# --- (a) gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_from_the_same_state_gradients_agree(name: str, dtype: torch.dtype) -> None:
    kind = KINDS[name]
    define, work = definition(kind, dtype), work_of(kind.data(dtype))
    batches = [20, 40] if name in ("mlp", "mlp dropout", "layernorm", "regression") else [16]
    specs = specs_of([{**m, "batch": batches[i % len(batches)]} for i, m in enumerate(mixed(6))])
    fleet = open_fleet(define, specs[0], len(specs), work)
    trials = [ready(define, spec, work) for spec in specs]
    for trial in trials:
        fleet.admit(trial)
    fleet.arrange()
    data, n = work.data.train.tensors, work.data.train.n
    tolerance, eps = (1e-12 if dtype == torch.float64 else 1e-5), torch.finfo(dtype).eps
    for spec, trial in zip(specs, trials, strict=True):
        solo = Solo(spec, rebuild(define, spec, work), work)
        lane = fleet.lane_of(spec.number)
        shape, order, keys = trial.shape(n, fleet.quantum), trial.sample_order(work.data.train), trial.keys(n)
        weights = slot_weights(shape, order, trial.denominators)
        for b in range(shape.n_updates):
            tensors: Mapping[str, Tensor] = {
                **dict(solo.recipe.model.named_parameters()),
                **dict(solo.recipe.model.named_buffers()),
            }
            for view, key in zip(fleet.layout.views(fleet.state.params), fleet.layout.names, strict=True):
                view[lane].copy_(tensors[key].detach())
            for key in fleet.layout.buffers:
                fleet.state.extra[key][lane].copy_(tensors[key])
            summed = [torch.zeros(s, dtype=dtype) for s in fleet.layout.shapes]
            for t in np.flatnonzero(shape.batch == b):
                position = shape.position[t]
                if fleet.exact:
                    position = position[position >= 0]
                idx = np.where(position >= 0, order[position], 0)
                slots = (
                    torch.from_numpy(idx),
                    torch.from_numpy(weights[t][: len(idx)]).to(dtype),
                    torch.from_numpy(keys[position]),
                )
                wide = [s.expand(fleet.width, -1).contiguous() for s in slots]
                out = fleet.program.train(fleet.state.inputs, data, *wide)
                for total, g in zip(summed, out, strict=False):
                    total += g[lane]
            rows = order[b * trial.recipe.batch_size : (b + 1) * trial.recipe.batch_size]
            at = b * trial.recipe.batch_size
            solo.recipe.optimizer.zero_grad()
            with KeyedRandom(torch.from_numpy(keys[at : at + len(rows)])):
                loss = solo.loss(tuple(t[torch.from_numpy(rows)] for t in data))
            loss.backward()  # type: ignore[no-untyped-call]
            grads = [p.grad for p in solo.recipe.model.parameters() if p.grad is not None]
            largest = max(g.abs().max().item() for g in grads)
            for key, mine, theirs in zip(fleet.layout.names, summed, grads, strict=True):
                # What is nothing but rounding noise (a bias before a norm) has no scale of its own; it sums up 16 roundings.
                floor = eps * largest * (16 if key in kind.loose else 1)
                limit = max(tolerance * theirs.abs().max().item(), floor)
                error = (mine - theirs).abs().max().item()
                assert error <= limit, f"{key} of trial {spec.number}, step {b}: {error:.1e} > {limit:.1e}"
            solo.recipe.optimizer.step()


# --- (b) trajectories --------------------------------------------------------------------------------------------


def check(
    kind: Kind,
    params: Sequence[Mapping[str, ParamValue]],
    *,
    epochs: int = 3,
    width: int | None = None,
    stops: Mapping[int, int] | None = None,
    tolerance: float = 1e-9,
) -> None:
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64), kind.metric)
    specs = specs_of(params)
    fused = train_fused(define, specs, work, epochs, width=width, stops=stops)
    for spec in specs:
        solo = train_solo(define, spec, work, len(fused[spec.number].rows))
        assert_same_trail(fused[spec.number], solo, tolerance, loose=kind.loose)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_takes_the_same_path(name: str) -> None:
    check(KINDS[name], mixed(len(OPTIMIZERS)), epochs=2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str) -> None:
    opts = ["sgd", "nesterov", "adamw", "groups", "rmsprop momentum"]
    if schedule == "onecycle":
        opts = ["nesterov", "adamw"]  # it moves momentum or betas, so it wants an optimizer that has them
    check(KINDS["mlp dropout"], [{"opt": o, "p": 0.2, "schedule": schedule} for o in opts])


def test_trials_with_and_without_schedules_share_a_fleet() -> None:
    params: list[dict[str, ParamValue]] = [{"opt": "adamw"}, {"opt": "adamw", "schedule": "step"}]
    check(KINDS["mlp"], [*params, {"opt": "nesterov", "schedule": "onecycle"}, {"opt": "sgd", "schedule": "plateau"}])


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: str) -> None:
    numbers = Kind(regressor, _bits if loss == "bce" else _numbers, metric=None)
    kind = KINDS["mlp"] if loss.startswith("ce") else numbers
    # A batch of 40 takes two micro-batches of 20: means of halves would not be the mean.
    check(kind, [{"loss": loss, "opt": o, "batch": b} for o in ("momentum", "adam") for b in (20, 40)], epochs=2)


def test_label_smoothing_is_a_lanes_own() -> None:
    def define(trial: Any) -> Recipe:
        model = mlp(nn.ReLU, 0.0).double()
        loss = nn.CrossEntropyLoss(label_smoothing=trial.params["s"])
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), loss, 16)

    work, specs = work_of(_classes(torch.float64)), specs_of([{"s": s} for s in (0.05, 0.1, 0.3)])
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-12)


@pytest.mark.parametrize("batches", [(1, 1), (7, 7), (20, 40, 20), (25, 50, 49), (32, 31, 29)], ids=str)
@pytest.mark.parametrize("name", ["mlp", "mlp dropout"])
def test_batch_sizes_within_one_fleet(name: str, batches: tuple[int, ...]) -> None:
    opts = ["momentum", "adam", "rmsprop"]
    if 1 in batches:
        opts = ["sgd", "adam"]
    params: list[dict[str, ParamValue]] = [
        {"batch": b, "opt": o, "p": 0.3} for b, o in itertools.product(batches, opts[:2])
    ]
    from shoal.lanes.order import quantum

    alike = [p for p in params if quantum(int(p["batch"] or 0)) == quantum(batches[0])]
    assert len(alike) > 1
    check(KINDS[name], alike, epochs=2, tolerance=1e-8 if 1 in batches else 1e-9)


@pytest.mark.parametrize("width", [1, 2, 7, 32])
def test_widths_with_refills_and_stops(width: int) -> None:
    n = {1: 3, 2: 5, 7: 12, 32: 36}[width]
    params = [{**p, "batch": (20, 40)[i % 2]} for i, p in enumerate(mixed(n))]
    check(KINDS["mlp dropout"], params, epochs=2, width=width, stops={0: 1, 2: 1, 5: 1, 8: 1})


@pytest.mark.parametrize("width", [2, 7])
def test_refills_of_a_batchnorm_fleet(width: int) -> None:
    check(KINDS["mlp batchnorm"], mixed(width + 3), width=width, stops={0: 1, 1: 2})


@pytest.mark.parametrize("batch", [20, 40])
def test_a_lane_that_diverged_leaves_nothing_behind(batch: int) -> None:
    # With several micro-batches to a batch gradients add up in place: what the last tenant left there must be gone.
    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        return Recipe(model, optim.SGD(model.parameters(), lr=trial.params["lr"]), nn.MSELoss(), trial.params["batch"])

    work = work_of(_numbers(torch.float64))
    specs = specs_of([{"lr": lr, "batch": batch} for lr in (0.1, 1e200, 0.05, 1e200, 0.2, 0.15)])
    fused = train_fused(define, specs, work, 3, width=2, stops={1: 2, 3: 2})
    assert not math.isfinite(fused[1].rows[-1].train_loss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says of an overflow is not the point here
        for i in (0, 2, 4, 5):
            assert_same_trail(fused[i], train_solo(define, specs[i], work, 3), 1e-10)


def test_a_lane_that_waits_for_longer_epochs_keeps_its_state() -> None:
    # With batches of 50 an epoch is 2 ticks, with batches of 25 also 2, with batches of 1 it is 50: idle ticks do nothing.
    check(KINDS["mlp"], [{"batch": b, "opt": o} for b in (26, 50) for o in ("adam", "nesterov", "rmsprop centered")])


def test_float32_trajectories_stay_close() -> None:
    kind = KINDS["mlp dropout"]
    define, work = definition(kind, torch.float32), work_of(kind.data(torch.float32), "accuracy")
    specs = specs_of(mixed(8))
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        solo = train_solo(define, spec, work, 2)
        assert_close(fused[spec.number].rows[0].first_loss, solo.rows[0].first_loss, 1e-5, "first loss")
        assert_close(fused[spec.number].rows[1].train_loss, solo.rows[1].train_loss, 1e-3, "train loss")


def test_data_of_more_than_one_input_and_of_no_target() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(10, 3), nn.Linear(10, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            out: Tensor = self.left(a) * torch.sigmoid(self.right(b))
            return out

    def define(trial: Any) -> Recipe:
        model = Two().double()
        return Recipe(model, OPTIMIZERS[trial.params["opt"]](model), nn.CrossEntropyLoss(), 16)

    x, z, y = made(70, 10), made(70, 10, seed=3), labels(70, 3)
    work = work_of(datasets((x[:50], z[:50], y[:50]), (x[50:], z[50:], y[50:])), "accuracy")
    specs = specs_of([{"opt": o} for o in ("adam", "sgd")])
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-10)
