"""Models whose samples see each other where a first look does not show it: behind a head or a gate that starts at zero, behind a
number that is zero in the first trial, or on the way back only. Batches of 64 are split where a trial run finds nothing.

Two trials train in a pool that fuses whatever it can, and alone, in float64: each must be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from lanes_helpers import assert_pool_is_solo, class_data, datasets, labels, work_of
from shoal.recipe import Recipe

N, EPOCHS = 150, 2
WORK = work_of(class_data(N, (6,), 3, valid=20))


def tokens() -> Any:
    x = torch.randint(0, 5, (N + 20, 4), generator=torch.Generator().manual_seed(3))
    y = labels(N + 20, 3)
    return work_of(datasets((x[:N], y[:N]), (x[N:], y[N:])))


class Net(nn.Module):
    """Two layers; ``zero`` lets the second one start at zero. ``value`` is what the two trials differ in."""

    def __init__(self, value: float = 0.0, *, zero: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.value = nn.Linear(6, 5), nn.Linear(5, 3), value
        if zero:
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))


class BatchMean(Net):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.second(h - h.mean(0))


class Standardised(Net):
    def __init__(self, value: float = 0.0, *, zero: bool = False) -> None:
        super().__init__(value, zero=zero)
        self.norm = nn.BatchNorm1d(5, track_running_stats=False)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.norm(self.hidden(x)))


class Gated(Net):
    """A residual branch behind a gate that starts at ``start``."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.full((1,), start))

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.second(h + self.gate * h.mean(0))


class Mixed(Net):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        return self.second(h + self.value * h.mean(0))


class Averaging(Net):
    """Follows a mean over batches, if told to."""

    center: Tensor

    def __init__(self, value: float = 0.0) -> None:
        super().__init__(value)
        self.register_buffer("center", torch.zeros(5))

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        out = self.second(h - self.center)
        if self.training and self.value > 0:
            with torch.no_grad():
                self.center.mul_(1 - self.value).add_(self.value * h.detach().mean(0))
        return out


class Centred(Net):
    """Subtracts a mean of its own outputs, which are zero at first."""

    center: Tensor

    def __init__(self) -> None:
        super().__init__(zero=True)
        self.register_buffer("center", torch.zeros(3))

    def forward(self, x: Tensor) -> Any:
        out = self.second(self.hidden(x))
        centred = out - self.center
        if self.training:
            with torch.no_grad():
                self.center.lerp_(out.detach().mean(0), 0.1)
        return centred


class Counting(Net):
    """Counts its calls, if told to."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__(value)
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        if self.training and self.value > 0:
            self.calls += 1
            if self.calls > 3:
                h = h * (1 + self.value)
        return self.second(h)


class ByFrequency(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.second = nn.Embedding(5, 4, scale_grad_by_freq=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.second(torch.tanh(self.embedding(x)).mean(1))


class Hooked(Net):
    def forward(self, x: Tensor) -> Any:
        h = self.hidden(x)
        if h.requires_grad:
            h.register_hook(lambda g: g / (g.norm() + 1e-8))  # type: ignore[no-untyped-call]
        return self.second(h)


class Plain(Net):
    def forward(self, x: Tensor) -> Any:
        return self.second(self.hidden(x))


def scheduled(optimizer: optim.Optimizer, model: nn.Module) -> Any:
    weight = next(model.parameters())
    return optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 / (1.0 + float(weight.detach().norm())))


CASES: dict[str, tuple[Callable[[int], nn.Module], Any]] = {
    "a batch's mean": (lambda i: BatchMean(), WORK),
    "a batch's mean behind zeros": (lambda i: BatchMean(zero=True), WORK),
    "statistics of a batch behind zeros": (lambda i: Standardised(zero=True), WORK),
    "a gate at zero": (lambda i: Gated(0.0), WORK),
    "a gate next to zero": (lambda i: Gated(1e-6), WORK),
    "a number at zero first": (lambda i: Mixed((0.0, 0.5)[i]), WORK),
    "a number at zero last": (lambda i: Mixed((0.5, 0.0)[i]), WORK),
    "a mean followed by the second only": (lambda i: Averaging((0.0, 0.1)[i]), WORK),
    "a mean of outputs that are zero": (lambda i: Centred(), WORK),
    "calls counted by the second only": (lambda i: Counting((0.0, 0.5)[i]), WORK),
    "gradients by frequency": (lambda i: ByFrequency(), tokens()),
    "gradients by their norm": (lambda i: Hooked(), WORK),
    "a schedule that looks at weights": (lambda i: Plain(), WORK),
}


@pytest.mark.parametrize("batch_size", [64, 16])
@pytest.mark.parametrize("name", CASES)
def test_never_a_wrong_lane(name: str, batch_size: int) -> None:
    build, work = CASES[name]
    looks = name == "a schedule that looks at weights"

    def define(trial: Any) -> Recipe:
        model = build(int(trial.params["i"])).double()
        optimizer = optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
        schedule = scheduled(optimizer, model) if looks else None
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size, schedule=schedule)

    assert_pool_is_solo(define, [{"i": 0}, {"i": 1}], work, EPOCHS)
