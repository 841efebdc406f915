"""Shoal's own operations as compiled C++: one pass over memory where torch's operators take several.

The library is built once per machine by its own compiler, in the background, and kept in the user's cache; until it is there, and
where there is no compiler, fleets run on ``TorchKernels``.

Glossary: as in ``shoal.lanes.kernels``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes import optim
from shoal.lanes.activations import TABLE
from shoal.lanes.kernels import Advance, Gradients, Made, Runs, Spans, TorchKernels, Updates
from shoal.lanes.native._build import Build

_TYPES = {torch.float32: "f32", torch.float64: "f64"}
FAMILIES = {optim.Family.SGD: 0, optim.Family.ADAM: 1, optim.Family.RMS: 2, optim.Family.RMS_CENTERED: 3}
_ADD_UP = -1  # no family: gradients are added up, and that is all
# Activations by name and, for GELU, its approximation -> the library's number; a leaky slope goes along as an argument.
_KINDS = {"Identity": 0, "ReLU": 1, "Tanh": 2, "Sigmoid": 3, "SiLU": 4, "GELU none": 5, "GELU tanh": 6, "LeakyReLU": 7}
_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_REAL = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


@final
class NativeKernels:
    """The compiled operations, on the CPU; whatever they do not cover goes to ``TorchKernels``.

    Args:
        path: The shared library.

    Raises:
        OSError: If it cannot be loaded.
    """

    tier = "native"

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._torch = TorchKernels()
        self._codes: dict[int, tuple[int, float] | None] = {}
        self._advance = {
            t: _function(library, f"shoal_advance_{s}", _INT, *[_LONG] * 5, *[_POINTER] * 11) for t, s in _TYPES.items()
        }
        self._rates_before = {
            t: _function(library, f"shoal_rate_before_{s}", *[_LONG] * 3, *[_POINTER] * 2, _INT, *[_POINTER] * 5)
            for t, s in _TYPES.items()
        }
        self._rates_after = {
            t: _function(library, f"shoal_rate_after_{s}", *[_LONG] * 4, *[_POINTER] * 6) for t, s in _TYPES.items()
        }
        self._through = {
            t: _function(library, f"shoal_through_{s}", _LONG, *[_POINTER] * 2, *[_LONG] * 3, *[_POINTER] * 14)
            for t, s in _TYPES.items()
        }
        self._masks = {
            t: _function(library, f"shoal_mask_{s}", *[_LONG] * 3, *[_POINTER] * 5) for t, s in _TYPES.items()
        }
        self._losses = {
            t: _function(library, f"shoal_loss_{s}", *[_LONG] * 3, *[_POINTER] * 4, _LONG, *[_POINTER] * 2)
            for t, s in _TYPES.items()
        }
        self._loss_slopes = {
            t: _function(library, f"shoal_loss_backward_{s}", *[_LONG] * 3, *[_POINTER] * 5, _LONG, _POINTER)
            for t, s in _TYPES.items()
        }
        self._lstm = _function(library, "shoal_lstm_f32", *[_LONG] * 3, *[_POINTER, _LONG] * 5)
        self._lstm_backward = _function(library, "shoal_lstm_backward_f32", *[_LONG] * 3, *[_POINTER, _LONG] * 6)
        self._forward = {
            t: _function(library, f"shoal_forward_{s}", _INT, _REAL[t], *[_LONG] * 2, *[_POINTER] * 2)
            for t, s in _TYPES.items()
        }
        self._backward = {
            t: _function(library, f"shoal_backward_{s}", _INT, _REAL[t], *[_LONG] * 2, *[_POINTER] * 4)
            for t, s in _TYPES.items()
        }

    def code(self, kind: int) -> tuple[int, float] | None:
        """The library's number of an activation, and its slope; None when it has none."""
        if kind not in self._codes:
            a = TABLE[kind]
            name = f"{a.name} {a.args[0]}" if a.name == "GELU" else a.name
            slope = float(a.args[0]) if a.name == "LeakyReLU" else 0.0
            self._codes[kind] = (_KINDS[name], slope) if name in _KINDS else None
        return self._codes[kind]

    def addresses(self, dtype: torch.dtype) -> list[int]:
        """Where forward, backward, mask, loss, loss_backward, advance and through lie, for compiled epochs to call."""
        losses = (self._losses, self._loss_slopes)
        tables = (self._forward, self._backward, self._masks, *losses, self._advance, self._through)
        return [ctypes.cast(t[dtype], _POINTER).value or 0 for t in tables]

    def activations(self, dtype: torch.dtype) -> tuple[NDArray[np.int32], Tensor]:
        """The library's number of every activation that there is (-1 for none), and its slope."""
        known = [self.code(kind) or (-1, 0.0) for kind in range(len(TABLE))] or [(-1, 0.0)]
        return np.array([code for code, _ in known], dtype=np.int32), torch.tensor([s for _, s in known], dtype=dtype)

    def forward(self, x: Tensor, runs: Runs) -> Tensor:
        if x.dtype not in _TYPES:
            return self._torch.forward(x, runs)
        x = x.contiguous()
        y = torch.empty_like(x)
        n, call = x[0].numel(), self._forward[x.dtype]
        source, to = x.data_ptr(), y.data_ptr()
        for kind, i, j in runs:
            code = self.code(kind)
            if code is None:
                y[i:j] = self._torch.forward(x[i:j], [(kind, 0, j - i)])
            else:
                at = x.element_size() * i * n
                call(*code, j - i, n, source + at, to + at)
        return y

    def backward(self, grad: Tensor, x: Tensor, y: Tensor, runs: Runs) -> Tensor:
        if x.dtype not in _TYPES:
            return self._torch.backward(grad, x, y, runs)
        grad, x, y = grad.contiguous(), x.contiguous(), y.contiguous()
        out = torch.empty_like(x)
        n, call = x[0].numel(), self._backward[x.dtype]
        g, a, b, to = grad.data_ptr(), x.data_ptr(), y.data_ptr(), out.data_ptr()
        for kind, i, j in runs:
            code = self.code(kind)
            if code is None:
                out[i:j] = self._torch.backward(grad[i:j], x[i:j], y[i:j], [(kind, 0, j - i)])
            else:
                at = x.element_size() * i * n
                call(*code, j - i, n, g + at, a + at, b + at, to + at)
        return out

    def take_over(self, at: Spans, g: Tensor, u: Tensor, p: Tensor, due: Tensor, norms: bool) -> Tensor:
        if p.dtype not in _TYPES:
            return self._torch.take_over(at, g, u, p, due, norms)
        n = len(at.offsets)
        out = torch.zeros(len(p), n, 3, dtype=torch.float64)
        places = (at.offsets.data_ptr(), at.sizes.data_ptr())
        rows = (g.data_ptr(), u.data_ptr(), p.data_ptr(), due.data_ptr(), out.data_ptr())
        self._rates_before[p.dtype](*p.shape, n, *places, int(norms), *rows)
        return out

    def give_back(self, at: Spans, u: Tensor, p: Tensor, rate: Tensor, due: Tensor) -> None:
        if p.dtype not in _TYPES:
            self._torch.give_back(at, u, p, rate, due)
            return
        rate = rate.to(p.dtype).contiguous()
        places = (at.offsets.data_ptr(), at.sizes.data_ptr())
        rows = (u.data_ptr(), p.data_ptr(), rate.data_ptr(), due.data_ptr())
        self._rates_after[p.dtype](*p.shape, rate.shape[1], len(at.offsets), *places, *rows)

    def through_update(self, at: Spans, made: Made, v: Tensor) -> tuple[Tensor, Tensor]:
        if v.dtype not in _TYPES:
            return self._torch.through_update(at, made, v)
        w, out = torch.zeros_like(v), torch.zeros(len(made.lanes), 5, dtype=torch.float64)
        lanes = np.asarray(made.lanes, dtype=np.int64)
        families = np.asarray([FAMILIES[f] for f in made.families], dtype=np.int32)
        rows = (made.start, made.params, made.first, made.second, made.grads, v, w)
        own = [t.to(v.dtype).contiguous() for t in (made.table, made.by, made.rate)]
        decayed = np.ascontiguousarray(made.decayed)
        n_groups, places = made.table.shape[2], (at.offsets.data_ptr(), at.sizes.data_ptr())
        self._through[v.dtype](
            *(len(lanes), lanes.ctypes.data, families.ctypes.data, v.shape[1], n_groups, len(at.offsets), *places),
            *(t.data_ptr() for t in (*rows, *own)),
            *(decayed.ctypes.data, out.data_ptr()),
        )
        return w, out

    def mask(self, keys: Tensor, element: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        if scale.dtype not in _TYPES:
            return self._torch.mask(keys, element, threshold, scale)
        keys, element, threshold, scale = (t.contiguous() for t in (keys, element, threshold, scale))
        out = torch.empty(*keys.shape, element.shape[0], dtype=scale.dtype)
        sources = (keys.data_ptr(), element.data_ptr(), threshold.data_ptr(), scale.data_ptr())
        self._masks[scale.dtype](*keys.shape, element.shape[0], *sources, out.data_ptr())
        return out

    def loss(
        self, scores: Tensor, target: Tensor, weight: Tensor | None, smoothing: Tensor | None, ignore: int
    ) -> tuple[Tensor, Tensor]:
        dtype = scores.dtype
        if dtype not in _TYPES or target.dtype != torch.int64:
            return self._torch.loss(scores, target, weight, smoothing, ignore)
        lanes, q, classes = scores.shape
        held = [scores.contiguous(), target.contiguous(), *_numbers(weight, smoothing, dtype)]
        loss = torch.empty(lanes, q, dtype=dtype)
        log_p = torch.empty(lanes, classes, q, dtype=dtype)
        pointers = [None if t is None else t.data_ptr() for t in held]
        outs = (loss.data_ptr(), log_p.data_ptr())
        self._losses[dtype](lanes, q, classes, *pointers, ignore, *outs)
        return loss, log_p

    def loss_backward(
        self,
        grad: Tensor,
        log_p: Tensor,
        target: Tensor,
        weight: Tensor | None,
        smoothing: Tensor | None,
        ignore: int,
    ) -> Tensor:
        dtype = log_p.dtype
        if dtype not in _TYPES or target.dtype != torch.int64:
            return self._torch.loss_backward(grad, log_p, target, weight, smoothing, ignore)
        lanes, classes, q = log_p.shape
        held = [grad.contiguous(), log_p.contiguous(), target.contiguous(), *_numbers(weight, smoothing, dtype)]
        out = torch.empty(lanes, q, classes, dtype=dtype)
        pointers = [None if t is None else t.data_ptr() for t in held]
        self._loss_slopes[dtype](lanes, q, classes, *pointers, ignore, out.data_ptr())
        return out

    def lstm(self, g: Tensor, c: Tensor, gates: Tensor, cell: Tensor, out: Tensor) -> None:
        tensors = (g, c, gates, cell, out)
        if not _are_rows(tensors):
            self._torch.lstm(*tensors)
            return
        self._lstm(*c.shape, *_places(tensors))

    def lstm_backward(self, dh: Tensor, dc: Tensor, gates: Tensor, cell: Tensor, c: Tensor, dg: Tensor) -> None:
        tensors = (dh, dc, gates, cell, c, dg)
        if not _are_rows(tensors):
            self._torch.lstm_backward(*tensors)
            return
        self._lstm_backward(*c.shape, *_places(tensors))

    def advance(self, gradients: Gradients, updates: Sequence[Updates]) -> Advance:
        g, dtype = gradients, gradients.flat.dtype
        if dtype not in _TYPES:
            return self._torch.advance(gradients, updates)
        # A family without a native form is torch's, and changes nothing for the others.
        foreign = [(u.due.any(1).tolist(), self._torch.updater(u)) for u in updates if u.family not in FAMILIES]
        updates = [u for u in updates if u.family in FAMILIES]
        call = self._advance[dtype]
        lanes, size = g.flat.shape
        places = (len(g.views), g.offsets.data_ptr(), g.sizes.data_ptr())
        goes_on, pointers = g.goes_on.contiguous(), _POINTER * len(g.views)
        on, mine = goes_on.data_ptr(), g.flat.data_ptr()
        tables = [u.table.contiguous() for u in updates]
        dues = [u.due.contiguous() for u in updates]
        steps = [
            (
                (FAMILIES[u.family], u.table.shape[2], size, u.table.shape[3], u.first, *places),
                tuple(b.data_ptr() for b in u.buffers),
                (table.data_ptr(), table[0].numel() * table.element_size()),
                (due.data_ptr(), u.table.shape[2]),
            )
            for u, table, due in zip(updates, tables, dues, strict=True)
        ]
        # What the pointers point into has to live as long as the function.
        held: Any = (gradients, updates, goes_on, tables, dues)

        def advance(t: int, parts: Sequence[Tensor], _held: Any = held) -> None:
            whole = [p.contiguous() for p in parts]
            if g.seen is not None:
                g.seen(t, whole)
            sources: Any = pointers(*(p.data_ptr() for p in whole))
            begun = on + t * lanes
            if g.shape is not None or foreign:  # first all of it is added up
                call(_ADD_UP, lanes, size, 1, 0, *places, *[None] * 4, mine, None, None, sources, begun)
                if g.shape is not None:
                    g.shape(t)
                sources, begun = None, 0
            for sizes, buffers, (table, step), (due, rows) in steps:
                full = due + t * rows
                call(*sizes, *buffers, table + t * step, full, sources, begun + sizes[4] if begun else None)
            for due_at, update in foreign:
                if due_at[t]:
                    update(t)
            if g.after is not None:
                g.after(t)

        return advance


def _numbers(weight: Tensor | None, smoothing: Tensor | None, dtype: torch.dtype) -> list[Tensor | None]:
    """Weights of classes and label smoothing as the library reads them."""
    return [None if t is None else t.to(dtype).contiguous() for t in (weight, smoothing)]


def _are_rows(tensors: Sequence[Tensor]) -> bool:
    """Whether all are float32 (lanes, B, n) without gaps inside a lane."""
    return all(t.dtype == torch.float32 and t.stride(2) == 1 and t.stride(1) == t.shape[2] for t in tensors)


def _places(tensors: Sequence[Tensor]) -> list[int]:
    return [number for t in tensors for number in (t.data_ptr(), t.stride(0))]


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    f = getattr(library, name)
    f.argtypes, f.restype = list(arguments), None
    return f


def library() -> Build:
    """The build of the library."""
    folder = Path(__file__).parent
    source = (folder / "kernels.cpp").read_text(encoding="utf-8")
    return Build("kernels", source, [folder / "functions.h"], loss="native kernels are not used")


_build = library()
_loaded: NativeKernels | None = None


def prepare() -> None:
    """Start to build the library, if this machine has not done so before. Returns at once."""
    _build.start()


def wait() -> None:
    """Let a compiler that is at work come to its end."""
    _build.wait()


def insist() -> None:
    """Have the library, if this machine can build it, however long that takes."""
    _build.insist()


def kernels() -> NativeKernels | None:
    """The library, or None while it is being built and where it cannot be."""
    global _loaded
    if _loaded is None:
        path = _build.ready()
        if path is not None:
            try:
                _loaded = NativeKernels(path)
            except (OSError, AttributeError) as error:
                path.unlink(missing_ok=True)  # the next process builds it again
                _build.give_up(f"{path.name} cannot be loaded ({error})")
    return _loaded
