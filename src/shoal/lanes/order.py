"""Which samples each lane sees at each tick of an epoch, with what weight, and when its batch is full.

Glossary: ``n`` training samples; ``B`` a trial's batch size; ``q`` (quantum) sample slots of a micro-batch; ``T`` ticks of an
epoch. A batch of B samples takes ceil(B / q) micro-batches; slots that stay empty hold sample 0 with weight 0.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Micro-batches larger than this gain nothing on a CPU: a tick of 32 samples keeps the work of a lane inside its cache.
MAX_QUANTUM = 32
_CLASSES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)


def quantum(batch_size: int) -> int:
    """Slots per micro-batch for a batch size: a function of nothing else, since it decides how sums are rounded.

    The classes are close enough that less than a fifth of the slots is wasted.

    >>> [quantum(b) for b in (1, 9, 32, 40, 64, 100)]
    [1, 10, 32, 20, 32, 28]
    """
    micro = math.ceil(batch_size / MAX_QUANTUM)
    return next(c for c in _CLASSES if c >= math.ceil(batch_size / micro))


@dataclass(frozen=True, slots=True)
class EpochShape:
    """The part of an epoch that depends on (n, B, q) only.

    ``position`` (T, q): where in the epoch's order a slot's sample stands, -1 for an empty slot. ``batch`` (T,): which batch a tick
    belongs to. ``starts``, ``due`` (T,): whether a tick opens a batch, and whether the update follows it. ``sizes`` (batches,).
    ``parts_of`` (batches,): in how many ticks a batch is taken; ``share`` (batches,): the sum of the squares of their shares of it.
    """

    position: NDArray[np.int64]
    batch: NDArray[np.int64]
    starts: NDArray[np.bool_]
    due: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    parts_of: NDArray[np.int64]
    share: NDArray[np.float64]

    @property
    def n_ticks(self) -> int:
        return len(self.batch)

    @property
    def n_updates(self) -> int:
        return len(self.sizes)


@functools.lru_cache(maxsize=256)
def epoch_shape(n: int, batch_size: int, q: int, halve: int = 0) -> EpochShape:
    """Lay the batches of one epoch out over ticks.

    Args:
        n: Samples.
        batch_size: Of all batches but perhaps the last.
        q: Slots of a tick.
        halve: Of batches that fit into one tick, the first and every so many are taken in two halves; 0 for none.
    """
    rows: list[NDArray[np.int64]] = []
    batch: list[int] = []
    starts: list[bool] = []
    due: list[bool] = []
    sizes: list[int] = []
    share: list[float] = []
    for b, first in enumerate(range(0, n, batch_size)):
        size = min(batch_size, n - first)
        sizes.append(size)
        most = micro_batch(b, size, q, halve)
        ticks = math.ceil(size / most)
        slots = np.full((ticks, q), -1, dtype=np.int64)
        for t, at in enumerate(range(0, size, most)):
            slots[t, : min(most, size - at)] = np.arange(first + at, first + min(at + most, size))
        share.append(float(np.square((slots >= 0).sum(1) / size).sum()))
        rows.append(slots)
        batch += [b] * ticks
        starts += [True] + [False] * (ticks - 1)
        due += [False] * (ticks - 1) + [True]
    return EpochShape(
        np.concatenate(rows),
        np.array(batch),
        np.array(starts),
        np.array(due),
        np.array(sizes, dtype=np.int64),
        np.bincount(batch),
        np.array(share),
    )


def micro_batch(batch: int, size: int, q: int, halve: int = 0) -> int:
    """Samples of a batch that are taken at a time.

    Args:
        batch: Which batch of its epoch.
        size: Its samples.
        q, halve: As for `epoch_shape`.

    >>> [micro_batch(b, 20, 32, halve=4) for b in range(5)]
    [10, 32, 32, 32, 10]
    """
    return math.ceil(size / 2) if halve and size <= q and batch % halve == 0 else q


@functools.lru_cache(maxsize=256)
def even_weights(n: int, batch_size: int, q: int, denominator: float, halve: int = 0) -> NDArray[np.float64]:
    """``slot_weights`` where every sample has the same denominator: they do not depend on the order, and are shared."""
    shape = epoch_shape(n, batch_size, q, halve)
    out = slot_weights(shape, np.arange(n), np.full(n, denominator))
    out.flags.writeable = False
    return out


def slot_weights(
    shape: EpochShape, order: NDArray[np.int64], denominators: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """(T, q): one over the sum of the denominators of the slot's whole batch; 1 where there is no denominator; 0 if empty."""
    filled = shape.position >= 0
    if denominators is None:
        return filled.astype(np.float64)
    per_sample = denominators[order]
    firsts = np.concatenate([[0], np.cumsum(shape.sizes)[:-1]])
    total = np.add.reduceat(per_sample, firsts)  # (batches,)
    # A batch in which every target is ignored has no loss: torch gives NaN there, and so does 0 / 0 here.
    with np.errstate(divide="ignore"):
        weight = 1.0 / total
    return np.where(filled, weight[shape.batch][:, None], 0.0)
