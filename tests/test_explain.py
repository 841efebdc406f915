"""``explain``: fleets, what keeps them apart, and why a trial would train solo."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from shoal.errors import UsageError
from shoal.lanes.native._build import compiler

X = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(dim=1)


def made(model: nn.Module, **more: Any) -> shoal.Recipe:
    keywords = {"loss": nn.CrossEntropyLoss(), "batch_size": 16, **more}
    return shoal.Recipe(model=model, optimizer=optim.Adam(model.parameters()), **keywords)


def explain(define: Any, n_trials: int = 8) -> shoal.Explanation:
    return shoal.explain(define, train=(X, Y), n_trials=n_trials)


def test_what_does_not_split() -> None:
    def define(trial: Any) -> shoal.Recipe:
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh}[trial.suggest_categorical("activation", ["relu", "tanh"])]
        dropout = nn.Dropout(trial.suggest_float("dropout", 0, 0.5))
        model = nn.Sequential(nn.Linear(4, 8), activation(), dropout, nn.Linear(8, 3))
        kind = {"adam": optim.Adam, "sgd": optim.SGD}[trial.suggest_categorical("optimizer", ["adam", "sgd"])]
        optimizer = kind(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1))
        batch_size = trial.suggest_categorical("batch_size", [32, 64])
        return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=batch_size)

    found = explain(define)
    assert [g.reason for g in found.groups] == [""] and found.groups[0].trials == tuple(range(8))
    assert "8 sampled trials: 8 fuse into 1 fleet(s)." in str(found)
    assert "Sequential with 67 parameters, micro-batches of up to" in str(found)


def test_what_splits_is_named_with_its_parameter() -> None:
    def define(trial: Any) -> shoal.Recipe:
        width = trial.suggest_categorical("width", [4, 8])
        trial.suggest_float("unused", 0, 1)
        return made(nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3)))

    found = explain(define)
    assert len(found.groups) == 2 and sum(len(g.trials) for g in found.groups) == 8
    ((a, b, parts),) = found.splits
    assert (a, b) == (0, 1) and "shapes" in parts
    assert "fleets 0 and 1 differ in:" in str(found) and "(parameter width)" in str(found)


def test_batch_norm_trains_whole_batches_and_splits_by_their_size() -> None:
    def define(trial: Any) -> shoal.Recipe:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        return made(model, batch_size=trial.suggest_categorical("batch_size", [16, 32]))

    text = str(explain(define))
    assert "whole batches of 16 samples" in text and "whole batches of 32 samples" in text
    assert "whole batches, because BatchNorm1d (layer '1') follows statistics of whole batches" in text
    assert "batch size 32 / 16, because BatchNorm1d" in text or "batch size 16 / 32, because BatchNorm1d" in text
    assert "equal batch sizes would join them" in text
    assert "differ in: batch size (parameter batch_size)" in text


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, scale: float, power: int = 1) -> None:
        super().__init__()
        self.inner, self.scale, self.power = inner, scale, power

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x) ** self.power  # type: ignore[no-any-return]


def frozen() -> nn.Module:
    model = layers()
    model[0].weight.requires_grad = False
    return model


def layers(width: int = 8, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), *more, nn.Linear(width, 3))


def convolving() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))


def deep_image() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 2, 2, 1)), nn.Conv3d(1, 2, (2, 1, 1)), nn.Flatten(), nn.Linear(4, 3))


PAIRS: dict[str, tuple[Any, str]] = {
    "width": (lambda first: made(layers(8 if first else 6)), r"weight of layer '0' is 8 x 4 / 6 x 4"),
    "depth": (
        lambda first: made(layers(8, *([] if first else [nn.Linear(8, 8)]))),
        r"layer '3' \(Linear\) is in one of them only",
    ),
    "attribute": (lambda first: made(Scaled(layers(), 0.5, 1 if first else 2)), r"power of the model is 1 / 2"),
    "frozen": (lambda first: made(layers() if first else frozen()), r"weight of layer '0' is trained / frozen"),
    "layer": (
        lambda first: made(layers(8, nn.LayerNorm(8) if first else nn.RMSNorm(8))),
        r"'2' is LayerNorm / RMSNorm",
    ),
    "mode": (
        lambda first: made(layers(8, nn.Dropout(0.2).train(first), nn.LayerNorm(8).train(first))),
        r"is in train\(\) / eval\(\) mode",
    ),
    "loss": (
        lambda first: made(layers(), loss=nn.CrossEntropyLoss() if first else nn.MultiMarginLoss()),
        r"the loss is CrossEntropyLoss / MultiMarginLoss",
    ),
    "loss options": (
        lambda first: made(layers(), loss=nn.CrossEntropyLoss(ignore_index=-100 if first else 0)),
        r"the loss CrossEntropyLoss has other options",
    ),
    "batch size": (
        lambda first: made(layers(), batch_size=16 if first else 10),
        r"batch size 16 / 10, which make micro-batches of 16 / 10 samples; sizes that are multiples of 32 share a fleet",
    ),
    "predict": (
        lambda first: made(layers(), predict=None if first else lambda model, batch: model(batch[0])),
        r"predict has other code",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_tells_two_fleets_apart_is_said_in_words(name: str) -> None:
    build, words = PAIRS[name]
    found = explain(lambda trial: build(trial.number == 0), 2)
    assert len(found.groups) == 2 and not any(g.reason for g in found.groups), str(found)
    ((sentences),) = found.differences
    assert any(re.search(words, sentence) for sentence in sentences), sentences
    assert all(f"\n    {sentence}" in str(found) for sentence in sentences)


def test_what_each_lane_has_for_itself_is_named() -> None:
    found = explain(lambda trial: made(Scaled(layers(), trial.suggest_float("scale", 0.1, 1))), 3)
    assert "each lane has its own: model.scale" in str(found)
    (group,) = found.groups
    assert group.lifted == ("model.scale",) and group.width >= 3
    assert f"{group.width} lanes wide, tier {group.tier}" in str(found)


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("model", "optimizer", "tier", "why"),
    [
        (lambda: layers(), optim.Adam, "compiled", ""),
        (lambda: layers(), optim.Adagrad, "native", "optimizers of the family ADAGRAD have no native update"),
        (lambda: layers(8, nn.Softsign()), optim.Adam, "native", "the activation Softsign has no native form"),
        (lambda: deep_image(), optim.Adam, "native", "a convolution over 3 dimensions has no compiled form"),
    ],
)
def test_the_tier_is_said_and_why_no_better_one(model: Any, optimizer: Any, tier: str, why: str) -> None:
    def define(trial: Any) -> shoal.Recipe:
        net = model()
        return shoal.Recipe(net, optimizer(net.parameters(), lr=0.1), nn.CrossEntropyLoss(), 16)

    found = explain(define, 2)
    (group,) = found.groups
    assert not group.reason and (group.tier, group.uncompiled) == (tier, why)
    assert f"tier {tier} " in str(found) and (f"    not compiled: {why}\n" in f"{found}\n") == bool(why)


def test_without_native_kernels_the_tier_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_NATIVE", "0")
    monkeypatch.setattr("shoal.lanes.native._loaded", None)
    (group,) = explain(lambda trial: made(layers()), 2).groups
    assert (group.tier, group.uncompiled) == ("traced", "the native kernels are not there")


def test_what_a_lane_has_for_itself_tells_no_fleets_apart() -> None:
    def define(trial: Any) -> shoal.Recipe:
        first = trial.number == 0
        more = nn.ReLU() if first else nn.Tanh(), nn.Dropout(0.1 if first else 0.2)
        return made(Scaled(layers(8 if first else 6, *more), 0.5 if first else 0.7))

    ((sentences),) = explain(define, 2).differences
    assert [s.split(" is ")[1] for s in sentences] == ["8 / 6", "8 x 4 / 6 x 4", "3 x 8 / 3 x 6"]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out if float(out.sum()) > 0 else -out


class Broken(Branching):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("no such thing")


def lbfgs(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3)
    return shoal.Recipe(model, optim.LBFGS(model.parameters()), nn.CrossEntropyLoss(), 16)


@pytest.mark.parametrize(
    ("define", "reason"),
    [
        (
            lambda trial: made(Branching()),
            r"reads a tensor's value into Python, with float\(\) \(test_explain.py, line \d+: return out if float",
        ),
        (
            lambda trial: made(Broken()),
            r"its forward pass raises ZeroDivisionError: no such thing \(test_explain.py, line",
        ),
        (lbfgs, "LBFGS"),
        (lambda trial: made(nn.Sequential(nn.Linear(4, 8), nn.RNN(8, 8))), "."),
    ],
)
def test_why_a_trial_trains_solo(define: Any, reason: str) -> None:
    found = explain(define, 2)
    assert [g.trials for g in found.groups] == [(0, 1)]
    assert "2 sampled trials: 0 fuse into 0 fleet(s)." in str(found) and "solo: 2 trials" in str(found)
    (group,) = found.groups
    assert re.search(reason, group.reason), group.reason


def test_what_it_cannot_explain() -> None:
    with pytest.raises(UsageError, match=r"trial 0: define\(trial\) must return a shoal.Recipe, not None"):
        explain(lambda trial: None)
