r"""Batch sizes that move by the gradient noise scale, per lane and plain: what ``shoal.extend.BatchSize`` asks for.

A batch of ``b`` samples is taken in micro-batches of ``b_i``, whose shares ``p_i`` of the batch's mean gradient ``g`` add up to it.
With the gradient ``G`` of all samples and the trace ``S`` of the covariance of one sample's::

    E |g|^2 = |G|^2 + S / b;    E sum |p_i|^2 = a |G|^2 + S / b,   a = sum (b_i / b)^2

so that, without bias, ``|G|^2 = (|g|^2 - sum |p_i|^2) / (1 - a)`` and ``S = b (sum |p_i|^2 - a |g|^2) / (1 - a)``. With
micro-batches of one size these are the estimators of McCandlish et al. 2018, appendix A.1. Weights of classes do not count.

Glossary: ``T`` ticks; a tick is *measured* if its batch is taken in several; ``kept`` (4,) of a lane: the offset, which is the
logarithm of the batch size over its base value, the smoothed ``S`` and ``|G|^2``, and the weight that these means have so far.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.extend import BatchSize
from shoal.extend._batch_size import FOLLOWS
from shoal.lanes.order import EpochShape
from shoal.lanes.state import LaneState
from shoal.recipe import Recipe

if TYPE_CHECKING:
    from shoal.lanes.lane import LaneTrial

# What a lane keeps beside its row (``LaneState.own``).
KEPT = "batch.noise"
_LARGEST_STEP = 4.0  # a measurement is never believed to be further off than that

Paths = dict[str, tuple[float, ...]]


def batch_size(recipe: Recipe) -> BatchSize | None:
    """A recipe's extension of the batch size, unless it is off."""
    return next((e for e in recipe.extensions if isinstance(e, BatchSize) and e.on), None)


def size_of(offset: float, recipe: Recipe, quantum: int, n: int) -> int:
    """The batch size of an epoch.

    Args:
        offset: 0 for the base value.
        recipe: With the extension.
        quantum: Samples of a whole micro-batch.
        n: Training samples.
    """
    extension, base = batch_size(recipe), recipe.batch_size
    if extension is None or offset == 0:
        return base
    low, high = math.ceil(extension.bounds[0]), int(min(extension.bounds[1], n))
    wanted = base * math.exp(offset)
    size = quantum * round(wanted / quantum) if wanted >= quantum else round(wanted)
    if size > high:
        size = quantum * (high // quantum) or high
    return min(max(size, low), high)


def factor_of(size: int, recipe: Recipe) -> float:
    """What the learning rate is multiplied with at a batch size."""
    extension = batch_size(recipe)
    if extension is None or size == recipe.batch_size:
        return 1.0
    return float((size / recipe.batch_size) ** FOLLOWS[extension.learning_rate])


def clock_of(size: int, base: int, n: int) -> tuple[NDArray[np.int64], int]:
    """How often a schedule that steps per update has stepped in this epoch before each update, (updates,), and how often in all.

    >>> clock_of(64, 32, 160)
    (array([0, 2, 4]), 5)
    """
    steps = -(-n // base)
    return np.minimum(np.arange(0, n, size) // base, steps - 1), steps


def estimates(
    parts: NDArray[np.float64], whole: NDArray[np.float64], share: NDArray[np.float64], size: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``S`` and ``|G|^2`` of batches, (batches, 2, ...).

    Args:
        parts: The sum of ``|p_i|^2``, (batches, ...).
        whole: ``|g|^2``.
        share: ``a``, below 1.
        size: ``b``.
    """
    with np.errstate(invalid="ignore"):  # infinite less infinite: the trial ends with it
        return np.stack([size * (parts - share * whole), whole - parts], 1) / np.expand_dims(1.0 - share, 1)


def renewed(
    kept: NDArray[np.float64], found: NDArray[np.float64], recipe: Recipe, n: int, updates: int
) -> tuple[NDArray[np.float64], float]:
    """What is kept after an epoch, and the noise scale; infinite while noise is all that there is.

    Args:
        kept: Before, (4,).
        found: ``S`` and ``|G|^2`` of the epoch's measured batches in their order, (batches, 2).
        recipe: With the extension.
        n: Training samples.
        updates: That the trial has made.
    """
    extension = batch_size(recipe)
    assert extension is not None
    c, k = extension.smoothing, len(found)
    offset, means, weight = float(kept[0]), kept[1:3] * c**k, float(kept[3]) * c**k
    if k:
        ages = _ages(c, k)
        means, weight = means + (1.0 - c) * (ages @ found), weight + (1.0 - c) * float(ages.sum())
    noise, signal = float(means[0]), float(means[1])
    scale = math.inf if signal <= 0 else max(noise, 0.0) / signal
    if weight > 0 and updates >= extension.warmup and extension.step > 0 and not math.isnan(scale):
        base = recipe.batch_size
        ratio = min(max(scale / (base * math.exp(offset)), 1 / _LARGEST_STEP), _LARGEST_STEP)
        low, high = extension.bounds
        offset += extension.step * math.log(ratio)
        offset = min(max(offset, math.log(low / base)), math.log(max(low, min(high, n)) / base))
    return np.array([offset, noise, signal, weight]), scale if weight > 0 else math.nan


@functools.lru_cache(maxsize=256)  # every lane asks for them
def _ages(smoothing: float, k: int) -> NDArray[np.float64]:
    """What each of the last k measurements counts for."""
    return np.asarray(smoothing ** np.arange(k - 1, -1, -1.0))


def paths_of(
    size: int, scale: float, found: NDArray[np.float64], measured: Sequence[int] | NDArray[np.int64]
) -> tuple[Paths, str]:
    """The trajectories of an epoch, and what went wrong or "".

    Args:
        size: The batch size.
        scale: The noise scale after it.
        found: As for `renewed`.
        measured: Which updates of the trial these are, counted from 0.
    """
    bad = np.flatnonzero(~np.isfinite(found).all(1))
    why = f"its gradient noise scale was not finite at update {int(measured[int(bad[0])]) + 1}" if len(bad) else ""
    return {"batch_size": (float(size),), "noise_scale": (scale,)}, why


class LaneNoise:
    """The gradient norms of lanes with the extension over one epoch.

    Args:
        state: The fleet's tensors.
        lanes: Those with the extension: their trials, and how their epochs are laid out.
        ticks: Of the epoch.
        n: Samples of the training split.
    """

    def __init__(self, state: LaneState, lanes: Mapping[int, tuple[LaneTrial, EpochShape]], ticks: int, n: int) -> None:
        self._state, self._lanes, self._n = state, lanes, n
        self.measured = np.zeros((ticks, state.width), dtype=bool)
        for i, (_, shape) in lanes.items():
            self.measured[: shape.n_ticks, i] = shape.parts_of[shape.batch] > 1
        self._any = [bool(row.any()) for row in self.measured]
        # Of each tick: squared norms of its own gradient, and of what has been added up of its batch.
        self.squares = torch.zeros(ticks, state.width, 2, dtype=torch.float64, device=state.flat.device)
        self._kept = state.own(KEPT, (4,), torch.float64)

    @classmethod
    def of(cls, state: LaneState, trials: Sequence[tuple[int, LaneTrial]], q: int, n: int) -> LaneNoise | None:
        """For those of the trials in the lanes that have the extension; None if nobody has."""
        lanes = {i: (t, t.shape(n, q)) for i, t in trials if batch_size(t.recipe) is not None}
        ticks = max((t.shape(n, q).n_ticks for _, t in trials), default=0)
        return cls(state, lanes, ticks, n) if lanes else None

    def of_tick(self, t: int, parts: Sequence[Tensor]) -> None:
        """Look at a tick's gradients, (lanes, *shape) each."""
        if self._any[t]:
            self.squares[t, :, 0] = _squares(parts)

    def of_batch(self, t: int) -> None:
        """Look at what has been added up."""
        if self._any[t]:
            self.squares[t, :, 1] = _squares(self._state.grad_views)

    def finish(self) -> dict[int, tuple[Paths, str]]:
        """The epoch is over, its updates counted: by trial, its batch size and noise scale, and what went wrong with them or ""."""
        squares, before, out = self.squares.cpu().numpy(), self._kept.cpu().numpy(), {}
        after = before.copy()
        alike: dict[int, list[int]] = {}  # lanes whose epochs are laid out in one way
        for i, (_, shape) in self._lanes.items():
            alike.setdefault(id(shape), []).append(i)
        for lanes in alike.values():
            shape = self._lanes[lanes[0]][1]
            at = np.flatnonzero(shape.parts_of > 1)
            firsts = np.cumsum(shape.parts_of) - shape.parts_of
            mine = squares[: shape.n_ticks, lanes]  # (ticks, lanes, 2)
            parts = np.add.reduceat(mine[:, :, 0], firsts)[at]  # (batches, lanes)
            whole, sizes = mine[shape.due, :, 1][at], shape.sizes[at].astype(np.float64)
            found = estimates(parts, whole, shape.share[at, None], sizes[:, None])  # (batches, 2, lanes)
            for k, i in enumerate(lanes):
                trial = self._lanes[i][0]
                n, own = trial.n_train(self._n), found[:, :, k]
                after[i], scale = renewed(before[i], own, trial.recipe, n, trial.updates)
                first = trial.updates - shape.n_updates
                out[trial.spec.key] = paths_of(trial.batch_size, scale, own, at + first)
        self._kept.copy_(torch.from_numpy(after))
        return out


def _squares(parts: Sequence[Tensor]) -> Tensor:
    """Squared norms over all parameters: (lanes, *shape) each -> (lanes,)."""
    return torch.stack([p.reshape(len(p), -1).square().sum(1) for p in parts]).double().sum(0)


class PlainNoise:
    """The same for one recipe."""

    def __init__(self, recipe: Recipe, n: int, quantum: int) -> None:
        self._recipe, self._n, self.quantum = recipe, n, quantum
        self._kept = np.zeros(4)
        self._found: list[tuple[float, float, float, float]] = []
        self._measured: list[int] = []
        self._updates = 0

    @property
    def size(self) -> int:
        """The batch size of this epoch."""
        return size_of(float(self._kept[0]), self._recipe, self.quantum, self._n)

    def saw(self, sizes: Sequence[int], parts: Sequence[Sequence[Tensor]]) -> None:
        """One update, of micro-batches of so many samples.

        Args:
            sizes: ``b_i``.
            parts: What each adds to the batch's gradient; not looked at where there is one.
        """
        if len(sizes) > 1:
            b = float(sum(sizes))
            whole = [sum(column[1:], column[0]) for column in zip(*parts, strict=True)]
            of_parts = sum(float(g.square().sum()) for part in parts for g in part)
            of_whole = sum(float(g.square().sum()) for g in whole)
            self._found.append((of_parts, of_whole, sum((s / b) ** 2 for s in sizes), b))
            self._measured.append(self._updates)
        self._updates += 1

    def finish(self) -> tuple[Paths, str]:
        """As for lanes, of the one trial."""
        size, table = self.size, np.array(self._found, dtype=np.float64).reshape(-1, 4)
        found, measured = estimates(*table.T), self._measured
        self._found, self._measured = [], []
        self._kept, scale = renewed(self._kept, found, self._recipe, self._n, self._updates)
        return paths_of(size, scale, found, measured)
