"""Random changes of training batches, for ``Recipe(transform=...)``: the first tensor of a batch is changed, the others are not.

All draw one number or more per sample, so that a sample's draw does not depend on who else is in its batch. Two with
equal arguments are equal, and trials that use them share a fleet.

Glossary: ``x`` is (q, C, H, W), images of a batch of ``q`` samples; noise takes any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.errors import UsageError

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Flip:
    """Mirror an image left to right with probability ``p`` (0 to 1)."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise UsageError(f"Flip(p=...) must be a probability from 0 to 1, not {self.p!r}.")

    def __call__(self, batch: Batch) -> Batch:
        x = batch[0]
        flipped = torch.rand(x.shape[0], device=x.device) < self.p  # (q,)
        return torch.where(_column(flipped, x), x.flip(-1), x), *batch[1:]


@dataclass(frozen=True, slots=True)
class Crop:
    """Pad an image by ``padding`` zeros on each side, and cut its own size out of it at random."""

    padding: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.padding, bool) or not isinstance(self.padding, int) or self.padding < 1:
            raise UsageError(f"Crop(padding=...) must be a whole number of at least 1, not {self.padding!r}.")

    def __call__(self, batch: Batch) -> Batch:
        x, k = batch[0], self.padding
        q, channels, height, width = x.shape
        wide = F.pad(x, (k, k, k, k))
        # A draw is below 1, so that floor gives 0 to 2 k.
        at = (torch.rand(q, 2, device=x.device) * (2 * k + 1)).floor().long()  # (q, 2)
        rows = at[:, :1] + torch.arange(height, device=x.device)  # (q, H)
        columns = at[:, 1:] + torch.arange(width, device=x.device)  # (q, W)
        tall = wide.gather(2, rows[:, None, :, None].expand(q, channels, height, width + 2 * k))
        return tall.gather(3, columns[:, None, None, :].expand(q, channels, height, width)), *batch[1:]


@dataclass(frozen=True, slots=True)
class Noise:
    """Add normal noise of standard deviation ``std`` (0 or more)."""

    std: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.std < math.inf:
            raise UsageError(f"Noise(std=...) must be a finite number of at least 0, not {self.std!r}.")

    def __call__(self, batch: Batch) -> Batch:
        return batch[0] + self.std * torch.randn_like(batch[0]), *batch[1:]


@dataclass(frozen=True, slots=True)
class Compose:
    """One transform after the other."""

    transforms: tuple[Callable[[Batch], Batch], ...]

    def __init__(self, *transforms: Callable[[Batch], Batch]) -> None:
        object.__setattr__(self, "transforms", transforms)

    def __call__(self, batch: Batch) -> Batch:
        for transform in self.transforms:
            batch = transform(batch)
        return batch


def _column(flag: Tensor, x: Tensor) -> Tensor:
    """(q,) as (q, 1, ...), one for each axis of ``x``."""
    return flag.view(-1, *(1 for _ in x.shape[1:]))
