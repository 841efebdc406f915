"""What an entry of the zoo is, and the small made-up data that entries train on.

Glossary: ``n`` samples of an entry, training and validation together; every tensor has ``n`` as its first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim

import shoal

N_TRAIN, N_VALID = 20, 6
N = N_TRAIN + N_VALID
CLASSES = 3

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        name: As people call it.
        build: ``build(trial)`` returns the model; it may ask the trial for hyperparameters.
        data: Makes the tensors, (n, ...) each, the last one the target.
        loss: Makes the loss; a criterion, or a function of (model, batch).
        predict: What metrics would see, for a loss that is a function of (model, batch).
        batch_size: Samples per update; 20 training samples leave a last batch that is smaller.
        solo: A regular expression for the reason why the model trains solo; empty if it fuses.
    """

    name: str
    build: Callable[[Any], nn.Module]
    data: Callable[[], Batch]
    loss: Callable[[], Any] = nn.CrossEntropyLoss
    predict: Callable[[nn.Module, Batch], Tensor] | None = None
    batch_size: int = 8
    solo: str = ""

    def define(self, trial: Any) -> shoal.Recipe:
        """A trial: learning rate and momentum vary for every model, beside what ``build`` asks for."""
        model = self.build(trial)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = optim.SGD(
            trained,
            lr=trial.suggest_float("lr", 1e-3, 3e-2, log=True),
            momentum=trial.suggest_float("momentum", 0.0, 0.9),
        )
        return shoal.Recipe(model, optimizer, self.loss(), self.batch_size, predict=self.predict)


def floats(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, (n, *shape), in torch's default type."""
    drawn = torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(torch.get_default_dtype())


def whole(high: int, *shape: int, seed: int = 1) -> Tensor:
    """Whole numbers from 0 to ``high`` - 1, (n, *shape)."""
    return torch.randint(0, high, (N, *shape), generator=torch.Generator().manual_seed(seed))


def classes_of(*inputs: Callable[[], Tensor]) -> Callable[[], Batch]:
    """Inputs, and one of three classes for each sample."""
    return lambda: (*(make() for make in inputs), whole(CLASSES, seed=9))


def numbers_of(*inputs: Callable[[], Tensor]) -> Callable[[], Batch]:
    """Inputs, and one number to predict for each sample."""
    return lambda: (*(make() for make in inputs), floats(1, seed=9))


def vectors(features: int = 6) -> Callable[[], Batch]:
    """Feature vectors and classes."""
    return classes_of(lambda: floats(features))


def images(channels: int = 1, side: int = 8) -> Callable[[], Batch]:
    """Square images and classes."""
    return classes_of(lambda: floats(channels, side, side))


def series(channels: int = 2, length: int = 8) -> Callable[[], Batch]:
    """Signals, channels first, and classes."""
    return classes_of(lambda: floats(channels, length))


def tokens(vocabulary: int = 11, length: int = 6) -> Callable[[], Batch]:
    """Sequences of whole numbers and classes."""
    return classes_of(lambda: whole(vocabulary, length))


def text(vocabulary: int = 11, length: int = 6) -> Callable[[], Batch]:
    """Sequences of whole numbers, and the same one step later."""

    def make() -> Batch:
        drawn = whole(vocabulary, length + 1)
        return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()

    return make


def inputs_only(*shape: int) -> Callable[[], Batch]:
    """Inputs without a target."""
    return lambda: (floats(*shape),)
