"""The C++ text of a signature's epoch, the library that a compiler makes of it, and calling that.

Glossary: ``T`` ticks; ``K`` coefficients of an update; ``G`` groups of parameters; ``P`` elements of a flat row; ``q`` slots.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes.compiled._lower import Lowered
from shoal.lanes.compiled._moves import MovesStruct, room_bytes
from shoal.lanes.compiled._moving import RatesStruct
from shoal.lanes.compiled._places import ctype
from shoal.lanes.native import NativeKernels

_LONG, _POINTER = ctypes.c_int64, ctypes.c_void_p
# What generated programs include, beside this file.
HEADERS = ("lane", "moves", "epoch", "mixture", "windows", "attention", "recurrent")


@dataclass(frozen=True, slots=True)
class Step:
    """One lowered training step: for batches of ``q`` slots, ``n_state`` tensors of a lane and ``n_data`` of the data."""

    lowered: Lowered
    prefix: str
    n_state: int
    n_data: int
    n_parts: int
    buffers: tuple[int, ...]  # inputs that the step renews, in the order of its outputs after the gradients
    inputs: tuple[tuple[str, str], ...]  # (name, C++ type) of every input


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a library: its name, its step for whole batches, and, where there is one, that for a smaller last one.

    ``passes`` are what numbers need that move meanwhile: the hyper-validation gradient, and derivatives in numbers.
    """

    name: str
    step: Step
    tail: Step | None = None
    passes: tuple[Function, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """What its own steps keep for an epoch."""
        return self.step.lowered.kept_bytes + (self.tail.lowered.kept_bytes if self.tail else 0)

    @property
    def all_kept_bytes(self) -> int:
        """The same with what one pass keeps for itself; of training there may be one as well."""
        others = [self, *self.passes] if self.passes else []
        return self.kept_bytes + max((f.kept_bytes for f in others), default=0)

    @property
    def scratch_bytes(self) -> int:
        steps = [s for f in (self, *self.passes) for s in (f.step, f.tail) if s is not None]
        return max(s.lowered.scratch_bytes for s in steps)

    @property
    def pass_text(self) -> str:
        """Its steps as a ``shoal::Pass``."""
        step, last = self.step.prefix, (self.tail or self.step).prefix
        return f"{{{step}_setup, {last}_setup, {step}_tick, {last}_tick}}"

    @property
    def text(self) -> str:
        """Its C++, without what its steps are made of."""
        step, moves = self.step, "true" if self.passes else "false"
        passes = ", ".join(f.pass_text for f in (self, *self.passes))
        return (
            f'extern "C" void shoal_{self.name}(const Job* job, char* kept, char* scratch) {{\n'
            f"  static const shoal::Pass<T> passes[] = {{{passes}}};\n"
            f"  shoal::epoch<T, {step.n_state}, {step.n_data}, {step.n_parts}, {moves}>(*job, passes, kept, "
            f"kept + {step.lowered.kept_bytes}, kept + {self.kept_bytes}, scratch);\n}}\n"
        )


def text(real: torch.dtype, functions: Sequence[Function]) -> str:
    """The whole C++ file; ``real`` is the dtype of the parameters."""
    includes = "".join(f'#include "{name}.h"\n' for name in HEADERS)
    steps = [step for f in functions for step in (f.step, f.tail) if step is not None]
    parts = [
        f"{includes}\nusing T = {ctype(real)};\nnamespace {{\nusing Job = shoal::Job<T>;\n",
        *map(_functions, steps),
        "}  // namespace\n",
        *(f.text for f in functions),
    ]
    return "\n".join(parts)


def _functions(step: Step) -> str:
    low, p = step.lowered, step.prefix
    inputs = "\n".join(f"  {kind}* const {name} = ({kind}*)in[{i}];" for i, (name, kind) in enumerate(step.inputs))
    kept = "\n".join(f"  {kind}* const {name} = ({kind}*)(kept + {at});" for name, kind, at in low.kept)
    scratch = "\n".join(f"  {kind}* const {name} = ({kind}*)(scratch + {at});" for name, kind, at in low.scratch)
    setup, tick = ("\n  ".join(lines) for lines in (low.setup, low.tick))
    ends = [f"  parts[{k}] = {o.address};" for k, o in enumerate(low.outputs[: step.n_parts])]
    after = low.outputs[step.n_parts :]  # new buffers and the loss, or nothing
    for i, o in zip(step.buffers, after[:-1], strict=True):
        name, kind = step.inputs[i]
        if o.pointer != name:
            n = 1
            for size in o.shape:
                n *= size
            ends.append(f"  std::memcpy({name}, {o.address}, {n} * sizeof({kind}));")
    ends.append(f"  *loss = {f'({after[-1].address})[0]' if after else 'T(0)'};")
    # How a tick is called must not change how it is compiled, and so how it rounds.
    return (
        f"void {p}_setup(const Job& job, char* const* in, char* kept) {{\n{inputs}\n{kept}\n  {setup}\n}}\n\n"
        f"__attribute__((noinline)) void {p}_tick(const Job& job, char* const* in, char* kept, char* scratch, T* loss, "
        f"const T** parts) {{\n"
        f"{inputs}\n{kept}\n{scratch}\n  {tick}\n" + "\n".join(ends) + "\n}\n"
    )


class _Kernels(ctypes.Structure):
    _fields_ = [(n, _POINTER) for n in ("forward", "backward", "mask", "loss", "loss_backward", "advance", "through")]


class _Job(ctypes.Structure):
    _fields_ = [
        ("kernels", _POINTER),
        ("n_lanes", _LONG),
        ("lanes", _POINTER),
        ("ticks", _POINTER),
        ("width", _LONG),
        ("inputs", _POINTER),
        ("strides", _POINTER),
        ("index", _POINTER),
        ("weights", _POINTER),
        ("keys", _POINTER),
        ("losses", _POINTER),
        ("row_size", _LONG),
        ("rows", _POINTER * 5),
        ("offsets", _POINTER),
        ("sizes", _POINTER),
        ("table", _POINTER),
        ("n_coefficients", _LONG),
        ("n_groups", _LONG),
        ("n_ticks", _LONG),
        ("family", _POINTER),
        ("due", _POINTER),
        ("goes_on", _POINTER),
        ("tail", _LONG),
        ("slots", _LONG),
        ("codes", _POINTER),
        ("slopes", _POINTER),
        ("shaping", _POINTER),
        ("lengths", _POINTER),
        ("rates", _POINTER),
        ("moves", _POINTER),
        ("room", _POINTER),
        ("measured", _POINTER),
        ("squares", _POINTER),
    ]


@dataclass(frozen=True, slots=True)
class Ticks:
    """Some ticks of an epoch, on the host: first axis ticks, second all lanes of the fleet, where not said otherwise."""

    lanes: Sequence[int]  # which lanes train
    counts: Sequence[int]  # how many of these ticks each of them takes
    index: NDArray[np.int64]  # (T, lanes, q)
    weights: Tensor  # (T, lanes, q)
    keys: NDArray[np.int32]  # (T, lanes, q)
    losses: Tensor  # (T, lanes), written
    table: Tensor  # (n_lanes that train, ticks of the epoch, K, G), from the first of these ticks on
    due: NDArray[np.uint8]
    goes_on: NDArray[np.uint8]
    families: Sequence[int]  # the library's numbers, one per lane that trains
    shaping: (
        Tensor | None
    )  # (n_lanes that train, 5): L1, L2, the largest value and norm of a gradient, the largest norm of a row
    lengths: Tensor  # elements in a row of each parameter, 0 for one without rows
    tail: int  # which tick has the smaller last batch, or -1
    rates: RatesStruct | None = None  # learning rates that move
    moves: MovesStruct | None = None  # other numbers that do
    past: int = 0  # of these ticks, those that are done: a batch may have begun there
    measured: NDArray[np.uint8] | None = None  # at which ticks norms are taken
    squares: Tensor | None = None  # (T, lanes, 2), written: squared norms of a tick's gradient, and of what is added up


class Epoch:
    """A compiled epoch of one signature, or whatever else a function of its library makes of all its ticks.

    Args:
        path: The library.
        real: The dtype of the parameters.
        made: What the function was made from.

    Raises:
        OSError, AttributeError: If the library cannot be loaded.
    """

    def __init__(self, path: Path, real: torch.dtype, made: Function) -> None:
        step, tail = made.step, made.tail
        self._call = getattr(ctypes.CDLL(str(path)), f"shoal_{made.name}")
        self._call.argtypes, self._call.restype = [_POINTER] * 3, None
        self.real, self.has_tail = real, tail is not None
        self.kinds = step.lowered.kinds | (tail.lowered.kinds if tail else frozenset())
        self.moves = bool(made.passes)
        self._bytes = made.all_kept_bytes, made.scratch_bytes
        self._own = (
            threading.local()
        )  # memory of each thread that calls: what setup keeps, scratch, and what moves need

    def run(
        self,
        kernels: NativeKernels,
        inputs: Sequence[Tensor],
        n_state: int,
        rows: Sequence[Tensor],
        offsets: Tensor,
        sizes: Tensor,
        ticks: Ticks,
    ) -> None:
        """Train the lanes through these ticks. Threads may call this at once, each for lanes of its own.

        Args:
            kernels: Shoal's own operations.
            inputs: The fleet's tensors, then the data.
            n_state: How many of them are the fleet's.
            rows: Parameters, first moment, second moment, mean gradient, gradients, (lanes, P) each.
            offsets, sizes: Of each parameter in a row.
            ticks: What to do.
        """
        strides = [t.stride(0) * t.element_size() if i < n_state else 0 for i, t in enumerate(inputs)]
        lanes, counts, families = (np.asarray(v, dtype=np.int64) for v in (ticks.lanes, ticks.counts, ticks.families))
        family = families.astype(np.int32)
        functions = _Kernels(*kernels.addresses(self.real))
        codes, slopes = kernels.activations(self.real)
        pointers = (_POINTER * len(inputs))(*(t.data_ptr() for t in inputs))
        steps = (_LONG * len(inputs))(*strides)
        table = ticks.table
        job = _Job(
            kernels=ctypes.addressof(functions),
            n_lanes=len(lanes),
            lanes=lanes.ctypes.data,
            ticks=counts.ctypes.data,
            width=ticks.index.shape[1],
            inputs=ctypes.addressof(pointers),
            strides=ctypes.addressof(steps),
            index=ticks.index[ticks.past :].ctypes.data,
            weights=ticks.weights[ticks.past :].data_ptr(),
            keys=ticks.keys[ticks.past :].ctypes.data,
            losses=ticks.losses.data_ptr(),
            row_size=rows[0].shape[1],
            rows=(_POINTER * 5)(*(t.data_ptr() for t in rows)),
            offsets=offsets.data_ptr(),
            sizes=sizes.data_ptr(),
            table=table.data_ptr(),
            n_coefficients=table.shape[2] * table.shape[3],
            n_groups=table.shape[3],
            n_ticks=table.stride(0) // (table.shape[2] * table.shape[3]),
            family=family.ctypes.data,
            due=ticks.due.ctypes.data,
            goes_on=ticks.goes_on.ctypes.data,
            tail=ticks.tail,
            slots=ticks.index.shape[2],
            codes=codes.ctypes.data,
            slopes=slopes.data_ptr(),
            shaping=None if ticks.shaping is None else ticks.shaping.data_ptr(),
            lengths=ticks.lengths.data_ptr(),
            rates=None if ticks.rates is None else ctypes.addressof(ticks.rates),
            measured=None if ticks.measured is None else ticks.measured.ctypes.data,
            squares=None if ticks.squares is None else ticks.squares.data_ptr(),
        )
        own = self._own.__dict__
        if not own:
            own["kept"], own["scratch"] = map(_aligned, self._bytes)
        if ticks.moves is not None:
            if "room" not in own:
                own["room"] = torch.zeros(room_bytes(ticks.moves, rows[0], strides), dtype=torch.uint8)
            job.moves, job.room = ctypes.addressof(ticks.moves), own["room"].data_ptr()
        self._call(ctypes.addressof(job), own["kept"].data_ptr(), own["scratch"].data_ptr())


def _aligned(n_bytes: int) -> Tensor:
    """Memory that starts on a cache line: torch allocates so."""
    return torch.empty(max(64, n_bytes), dtype=torch.uint8)
