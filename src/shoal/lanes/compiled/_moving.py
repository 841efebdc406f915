"""What extensions need of a compiled epoch: learning rates that move, and norms of gradients, as the library reads them.

Glossary: ``T`` ticks of the epoch; ``R`` learning rates of a lane: one, or one per parameter where some lane has several groups.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shoal.lanes.state import LaneState

if TYPE_CHECKING:
    from shoal.lanes.hypergradient import LaneRates

_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p


class RatesStruct(ctypes.Structure):
    """``shoal::Rates`` of lane.h."""

    _fields_ = [
        ("n", _LONG),
        ("rule", _POINTER),
        ("base", _POINTER),
        ("step", _POINTER),
        ("low", _POINTER),
        ("high", _POINTER),
        ("sense", _POINTER),
        ("of", _POINTER),
        ("offset", _POINTER),
        ("record", _POINTER),
        ("update", _POINTER),
    ]


class Rates:
    """Learning rates of the lanes that train over one epoch.

    Args:
        rates: By the first lane of each stretch.
        lanes: Which lanes train.
        state: The fleet's tensors.
    """

    def __init__(self, rates: Mapping[int, LaneRates], lanes: Sequence[int], state: LaneState) -> None:
        self._rates, self._lanes = rates, {lane: row for row, lane in enumerate(lanes)}
        n, first = len(lanes), next(iter(rates.values()))
        ticks, width = first.n_ticks, max(r.width for r in rates.values())
        self._update = first.update_of(state)
        self.rule = np.zeros(n, dtype=np.int32)
        self.base, self.step = np.ones((n, ticks, width)), np.zeros((n, ticks))
        self.low, self.high = np.zeros(n), np.zeros(n)
        self.sense, self.of = np.ones((n, width)), np.zeros((n, width), dtype=np.int64)
        self.offset, self.record = np.zeros((n, width)), np.zeros((n, ticks, width))
        for start, r in rates.items():
            rows = [self._lanes[start + i] for i in range(r.n_lanes)]
            found = r.plan()
            self.rule[rows] = 1 if r.rule == "additive" else 2
            self.base[rows], self.step[rows] = np.moveaxis(found.base, 0, 1), found.step.T
            self.low[rows], self.high[rows] = found.low, found.high
            self.sense[rows], self.of[rows] = found.sense[:, :width], found.of[:, :width] if width > 1 else 0
            self.offset[rows] = found.offset

    def struct(self, some: slice, first: int) -> RatesStruct:
        """For some of the lanes, from a tick on. What it points into belongs to this object."""

        def at(x: NDArray[np.generic]) -> int:
            return int(x[some].ctypes.data)

        def from_tick(x: NDArray[np.generic]) -> int:
            return int(x[some, first:].ctypes.data)

        return RatesStruct(
            self.offset.shape[1],
            at(self.rule),
            from_tick(self.base),
            from_tick(self.step),
            at(self.low),
            at(self.high),
            at(self.sense),
            at(self.of),
            at(self.offset),
            from_tick(self.record),
            self._update.data_ptr(),
        )

    def back(self) -> None:
        """The epoch is over: hand over where the learning rates are and were."""
        for start, r in self._rates.items():
            rows = [self._lanes[start + i] for i in range(r.n_lanes)]
            r.take_back(self.offset[rows], np.moveaxis(self.record[rows], 0, 1))
