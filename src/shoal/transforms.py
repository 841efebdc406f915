"""Random changes of training batches, for ``Recipe(transform=...)``.

Each changes the first tensor of the tuple that it is given and leaves the others as they are, unless it says otherwise; ``On``
says which parts of a batch it is given, and is needed where batches are dicts. All draw one number or more per sample, so that a
sample's draw does not depend on who else is in its batch. Their strengths (``p``, ``padding``, ``std``, ``size``, ``alpha``) may be
hyperparameters: trials that differ in them share a fleet.

Glossary: ``x`` is (q, C, H, W), images of a batch of ``q`` samples; noise and mixup take any shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.errors import UsageError, did_you_mean

__all__ = ["Compose", "Crop", "Cutout", "Flip", "Mixup", "Noise", "On"]

Transform: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Flip:
    """Mirror an image left to right with probability ``p`` (0 to 1).

    Args:
        p: How often.
        alike: How many of the first tensors are mirrored together, such as 2 for an image and its mask (q, ..., W).
    """

    p: float = 0.5
    alike: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 1.0:
            raise UsageError(f"Flip(p=...) must be a probability from 0 to 1, not {self.p!r}.")
        object.__setattr__(self, "p", float(self.p))
        _check_alike("Flip", self.alike)

    def __call__(self, batch: Any) -> Any:
        together = _first(self, batch, self.alike)
        flipped = torch.rand(len(together[0]), device=together[0].device) < self.p  # (q,)
        return *(torch.where(_column(flipped, x), x.flip(-1), x) for x in together), *batch[self.alike :]


@dataclass(frozen=True, slots=True)
class Crop:
    """Shift an image by up to ``padding`` pixels each way, with zeros where nothing was: pad it, and cut its own size out of it.

    Args:
        padding: Pixels on each side; a whole number.
        alike: How many of the first tensors, (q, C, H, W) or (q, H, W), are shifted together.
    """

    padding: float = 4
    alike: int = 1

    def __post_init__(self) -> None:
        _check_pixels("Crop(padding=...)", self.padding)
        object.__setattr__(self, "padding", float(self.padding))  # a float, so that each lane may have its own
        _check_alike("Crop", self.alike)

    def __call__(self, batch: Any) -> Any:
        together, k = _first(self, batch, self.alike), self.padding
        x = together[0]
        # A draw is below 1, so that floor gives 0 to 2 k.
        at = (torch.rand(len(x), 2, device=x.device) * (2 * k + 1)).floor() - k  # (q, 2)
        return *(_shifted(x, at[:, :1], at[:, 1:]) for x in together), *batch[self.alike :]


@dataclass(frozen=True, slots=True)
class Cutout:
    """Set a square of ``size`` pixels a side to zero, around a random pixel; what of it lies outside the image is lost.

    References:
        DeVries and Taylor 2017, Improved regularization of convolutional neural networks with cutout.
    """

    size: float = 8

    def __post_init__(self) -> None:
        _check_pixels("Cutout(size=...)", self.size)
        object.__setattr__(self, "size", float(self.size))  # as for Crop

    def __call__(self, batch: Any) -> Any:
        (x,), half = _first(self, batch), self.size / 2
        height, width = x.shape[-2:]
        centre = torch.rand(len(x), 2, device=x.device)  # (q, 2)
        rows = torch.arange(height, device=x.device) - (centre[:, :1] * height).floor()  # (q, H)
        columns = torch.arange(width, device=x.device) - (centre[:, 1:] * width).floor()  # (q, W)
        inside = _within(rows, half)[:, :, None] & _within(columns, half)[:, None, :]  # (q, H, W)
        return torch.where(inside.view(len(x), *(1 for _ in x.shape[1:-2]), height, width), 0.0, x), *batch[1:]


@dataclass(frozen=True, slots=True)
class Noise:
    """Add normal noise of standard deviation ``std`` (0 or more)."""

    std: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.std < math.inf:
            raise UsageError(f"Noise(std=...) must be a finite number of at least 0, not {self.std!r}.")
        object.__setattr__(self, "std", float(self.std))

    def __call__(self, batch: Any) -> Any:
        (x,) = _first(self, batch)
        return x + self.std * torch.randn_like(x), *batch[1:]


@dataclass(frozen=True, slots=True)
class Mixup:
    """Mix each sample with its neighbour in the batch, inputs and target alike: x' = t x + (1 - t) x_other.

    t is drawn from Beta(alpha, alpha) for each sample. The first tensor and the last one are changed. A target of classes becomes
    their probabilities (q, classes), which ``CrossEntropyLoss`` takes; other targets are mixed as they are. Batches are whole.

    Args:
        alpha: Above 0; the larger, the more is mixed. 0.2 is usual.
        classes: How many there are, where the target is whole numbers.

    t is drawn in closed form, from two uniform numbers: 1/2 + c / (2 sqrt(u^(1/alpha) / (1 - u^(1/alpha)) + c^2)) with
    c = cos(2 pi v), which is a t-distributed number in other words.

    References:
        Zhang et al. 2018, mixup: beyond empirical risk minimization. Devroye 1996, Random variate generation in one line of code.
    """

    alpha: float = 0.2
    classes: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha < math.inf:
            raise UsageError(f"Mixup(alpha=...) must be a finite number above 0, not {self.alpha!r}.")
        object.__setattr__(self, "alpha", float(self.alpha))
        whole = isinstance(self.classes, int) and not isinstance(self.classes, bool) and self.classes >= 2
        if self.classes is not None and not whole:
            raise UsageError(f"Mixup(classes=...) must be a whole number of at least 2, or None; got {self.classes!r}.")

    def __call__(self, batch: Any) -> Any:
        (x,) = _first(self, batch)
        target = batch[-1]
        if len(batch) < 2:
            raise UsageError(
                "Mixup() mixes inputs and target, and was given one tensor: On((input, target), Mixup(...))."
            )
        if not target.is_floating_point():
            if self.classes is None:
                raise UsageError(
                    "Mixup() makes probabilities of classes: say how many there are, Mixup(alpha, classes=10)."
                )
            target = F.one_hot(target, self.classes).to(x.dtype)
        precise = torch.promote_types(x.dtype, torch.float32)
        u, v = torch.rand(len(x), 2, device=x.device, dtype=precise).unbind(1)
        h, c = u ** (1.0 / self.alpha), torch.cos(2.0 * math.pi * v)
        share = (0.5 + 0.5 * c * torch.rsqrt(h / (1.0 - h) + c * c + 1e-30)).to(x.dtype)  # (q,)
        mixed = (torch.lerp(t.roll(1, 0), t, _column(share.to(t.dtype), t)) for t in (x, target))
        first, last = mixed
        return first, *batch[1:-1], last


@dataclass(frozen=True, slots=True)
class Compose:
    """One transform after the other."""

    transforms: tuple[Transform, ...]

    def __init__(self, *transforms: Transform) -> None:
        object.__setattr__(self, "transforms", transforms)

    def __call__(self, batch: Any) -> Any:
        for transform in self.transforms:
            batch = transform(batch)
        return batch


@dataclass(frozen=True, slots=True)
class On:
    """Apply a transform to parts of a batch: it is given the tuple of them.

    Args:
        parts: A key of a dict or a position in a tuple; or several, as a tuple.
        transform: What to apply.

    Example:
        >>> batch = {"image": torch.ones(2, 1, 1, 3), "mask": torch.ones(2, 3), "label": torch.tensor([0, 1])}
        >>> sorted(On(("image", "mask"), Flip(0.5, alike=2))(batch))
        ['image', 'label', 'mask']
    """

    parts: str | int | tuple[str | int, ...]
    transform: Transform

    def __call__(self, batch: Any) -> Any:
        parts = self.parts if isinstance(self.parts, tuple) else (self.parts,)
        known = list(batch) if isinstance(batch, Mapping) else list(range(len(batch)))
        for part in parts:
            if part not in known:
                hint = did_you_mean(part, [k for k in known if isinstance(k, str)]) if isinstance(part, str) else ""
                raise UsageError(f"On({part!r}, ...) names no part of the batch, which has {known}.{hint}")
        out = self.transform(tuple(batch[part] for part in parts))
        if not isinstance(out, tuple | list) or len(out) != len(parts):
            raise UsageError(f"On({self.parts!r}, ...) wants {len(parts)} tensor(s) back from its transform.")
        changed = dict(zip(parts, out, strict=True))
        if isinstance(batch, Mapping):
            return {name: changed.get(name, tensor) for name, tensor in batch.items()}
        return tuple(changed.get(place, tensor) for place, tensor in enumerate(batch))


def by_sample(transform: object) -> bool:
    """Whether a transform is known to change each sample by itself, so that a batch may be split."""
    if isinstance(transform, Compose):
        return all(by_sample(t) for t in transform.transforms)
    return by_sample(transform.transform) if type(transform) is On else type(transform) in (Flip, Crop, Cutout, Noise)


def _first(transform: object, batch: Any, n: int = 1) -> tuple[Tensor, ...]:
    """The tensors that are changed: the first ``n`` of a tuple."""
    name = type(transform).__name__
    if isinstance(batch, Mapping):
        raise UsageError(
            f"{name}() was given a dict of {list(batch)}; say which part it changes: On({next(iter(batch))!r}, {name}(...))."
        )
    if len(batch) < n:
        raise UsageError(f"{name}(alike={n}) was given {len(batch)} tensor(s).")
    return tuple(batch[:n])


def _column(flag: Tensor, x: Tensor) -> Tensor:
    """(q,) as (q, 1, ...), one for each axis of ``x``."""
    return flag.view(-1, *(1 for _ in x.shape[1:]))


def _shifted(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images (q, ..., H, W) moved by whole numbers (q, 1) each, zero where nothing was."""
    height, width = x.shape[-2:]
    middle = tuple(1 for _ in x.shape[1:-2])
    rows = (down + torch.arange(height, device=x.device)).long()  # (q, H)
    columns = (right + torch.arange(width, device=x.device)).long()  # (q, W)
    there = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]  # (q, H, W)
    rows = rows.clamp(0, height - 1).view(-1, *middle, height, 1).expand(x.shape)
    columns = columns.clamp(0, width - 1).view(-1, *middle, 1, width).expand(x.shape)
    moved = x.gather(-2, rows).gather(-1, columns)
    return torch.where(there.view(-1, *middle, height, width), moved, torch.zeros((), dtype=x.dtype, device=x.device))


def _within(distance: Tensor, half: Any) -> Tensor:
    inside: Tensor = (distance >= -1.0 * half) & (distance < half)
    return inside


def _check_pixels(what: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value) or value < 1:  # type: ignore[operator, call-overload]
        raise UsageError(f"{what} must be a whole number of at least 1, not {value!r}.")


def _check_alike(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name}(alike=...) must be a whole number of at least 1, not {value!r}.")
