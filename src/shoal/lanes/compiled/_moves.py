"""Numbers that move by a hyper-validation gradient, as a compiled epoch reads and writes them (moves.h).

Glossary: as in ``shoal.lanes.regularised._plan``; ``n`` lanes that train, the first axis of what is here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes.regularised._plan import Moved
from shoal.lanes.regularised._rule import L1_, numbers_of

if TYPE_CHECKING:
    from shoal.lanes.compiled import Compilation
    from shoal.lanes.fleet import Fleet
    from shoal.lanes.regularised import LaneRegularisers

_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p
# Rows of a lane's parameters that a move works with: where the update began, v, w, a point; for the Neumann series three more.
_ROWS = 7
_BY_LANE = (
    *("update", "every", "terms", "scale", "index", "weights", "keys", "on", "base", "step", "low", "high", "warmup"),
    *("aimed", "apart", "decayed", "fixed"),
)
_WRITTEN = ("kept", "value", "record", "sums", "counts", "bad")


class MovesStruct(ctypes.Structure):
    """``shoal::Moves`` of moves.h."""

    _fields_ = [
        ("n", _LONG),
        ("n_moves", _LONG),
        ("move", _POINTER),
        ("update", _POINTER),
        ("every", _POINTER),
        ("terms", _POINTER),
        ("scale", _POINTER),
        ("data", _POINTER),
        ("slots", _LONG),
        ("index", _POINTER),
        ("weights", _POINTER),
        ("keys", _POINTER),
        ("on", _POINTER),
        ("base", _POINTER),
        ("step", _POINTER),
        ("low", _POINTER),
        ("high", _POINTER),
        ("warmup", _POINTER),
        ("logarithmic", _POINTER),
        ("input", _POINTER),
        ("item", _POINTER),
        ("n_passes", _LONG),
        ("given", _POINTER),
        ("place", _POINTER),
        ("aimed", _POINTER),
        ("apart", _POINTER),
        ("rate", _POINTER),
        ("decayed", _POINTER),
        ("fixed", _POINTER),
        ("first_buffer", _LONG),
        ("n_buffers", _LONG),
        ("kept", _POINTER),
        ("value", _POINTER),
        ("record", _POINTER),
        ("sums", _POINTER),
        ("counts", _POINTER),
        ("bad", _POINTER),
    ]


def room_bytes(moves: MovesStruct, row: Tensor, strides: Sequence[int]) -> int:
    """What a thread's moves need: rows like ``row`` (lanes, P), a few numbers, and a lane's buffers, ``strides`` bytes each."""
    n, first, n_buffers = int(moves.n), int(moves.first_buffer), int(moves.n_buffers)
    return _ROWS * row.shape[1] * row.element_size() + 2 * 8 * n + sum(strides[first : first + n_buffers]) + 64


class Moves:
    """The moves of the lanes that train over one epoch.

    Args:
        compilation: With its library there, which lacks nothing of what they need.
        fleet: Whose lanes.
        regularisers: What moves.
        lanes: Which lanes train.
    """

    def __init__(
        self, compilation: Compilation, fleet: Fleet, regularisers: LaneRegularisers, lanes: Sequence[int]
    ) -> None:
        plan = regularisers.plan(compilation.groups(fleet), compilation.unused)
        self._plan, self._regularisers, self._lanes, dtype = plan, regularisers, list(lanes), fleet.layout.dtype
        real = np.float64 if dtype == torch.float64 else np.float32
        held: dict[str, NDArray[Any]] = {}
        for name in (*_BY_LANE, "move", "rate", "kept", "value"):
            held[name] = getattr(plan, name)[self._lanes]
        for name in ("weights", "fixed"):
            held[name] = held[name].astype(real)
        n, n_moves, size = len(lanes), plan.update.shape[1], len(plan.logarithmic)
        held["record"] = np.repeat(held["value"][:, None], n_moves + 1, axis=1)
        held["sums"], held["counts"], held["bad"] = (
            np.zeros((n, size), dtype=d) for d in (np.float64, np.float64, np.int64)
        )
        self._held = {name: np.ascontiguousarray(x) for name, x in held.items()}

        layout, state = fleet.layout, fleet.state
        self._first_buffer = len(layout.names) + len(layout.frozen) + len(layout.lifted)
        self._n_buffers = len(layout.buffers)
        names = (*layout.names, *layout.frozen, *layout.lifted, *layout.buffers, *layout.values)
        passes = list(numbers_of(compilation.moves).values())
        of_number = {place: names.index(name) for name, place in plan.places.items() if name in state.extra}
        self._shared = {
            "logarithmic": plan.logarithmic,
            "input": np.array([of_number.get(r, -1) for r in range(size)]),
            "item": np.array([state.inputs[of_number[r]].element_size() if r in of_number else 0 for r in range(size)]),
            "given": np.array([len(known) for known in passes], dtype=np.int64),
            "place": np.array([plan.places[name] for known in passes for name in known], dtype=np.int64),
        }
        self._data = (_POINTER * len(plan.data))(*(t.data_ptr() for t in plan.data))

    def begin(self, l1: Tensor) -> None:
        """Let penalties of L1, (n,), be what they have moved to."""
        on = torch.from_numpy(self._held["on"][:, L1_])
        l1.copy_(torch.where(on, torch.from_numpy(self._held["value"][:, L1_]).to(l1.dtype), l1))

    def struct(self, some: slice, first: int) -> MovesStruct:
        """For some of the lanes, from a tick on. What it points into belongs to this object."""
        found: dict[str, int] = {name: x.ctypes.data for name, x in self._shared.items()}
        found |= {name: self._held[name][some].ctypes.data for name in (*_BY_LANE, *_WRITTEN)}
        found |= {name: self._held[name][some, first:].ctypes.data for name in ("move", "rate")}
        return MovesStruct(
            n=len(self._plan.logarithmic),
            n_moves=self._plan.update.shape[1],
            data=ctypes.addressof(self._data),
            slots=self._plan.index.shape[2],
            n_passes=len(self._shared["given"]),
            first_buffer=self._first_buffer,
            n_buffers=self._n_buffers,
            **found,
        )

    def back(self) -> None:
        """The epoch is over: hand over where the numbers are and were."""
        plan, size = self._plan, self._plan.value.shape
        out = Moved(
            kept=plan.kept.copy(),
            value=plan.value.copy(),
            record=np.repeat(plan.value[:, None], plan.update.shape[1] + 1, axis=1),
            sums=np.zeros(size),
            counts=np.zeros(size),
            bad=np.zeros(size, dtype=np.int64),
        )
        for name in _WRITTEN:
            getattr(out, name)[self._lanes] = self._held[name]
        self._regularisers.take_back(out)
