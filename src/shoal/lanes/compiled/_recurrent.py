"""Recurrent layers (``recurrent.h``): the two operators of ``lanes.recurrent``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes import recurrent
from shoal.lanes.cells import GATES
from shoal.lanes.compiled._handlers import handles
from shoal.lanes.compiled._places import Place, Unsupported, Value, ctype

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

assert recurrent  # defines the operators
_shoal = torch.ops.shoal
_KINDS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN_TANH", "rnn_relu": "RNN_RELU"}
_KEPT = {"lstm": 4, "gru": 4, "rnn_tanh": 0, "rnn_relu": 0}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One direction of one layer, from its operator's arguments: sizes as in ``recurrent.h``."""

    kind: str
    reverse: bool
    steps: int
    samples: int
    features: int
    units: int
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Place, w_hh: Place, w_hr: Any, kind: Any, reverse: Any) -> _Layer:
        if w_hr is not None:
            raise Unsupported("a recurrent layer with a projection")
        _, steps, samples, features = x.shape
        if 0 in x.shape or not x.dtype.is_floating_point or w_hh.dtype != x.dtype:
            raise Unsupported("a recurrent layer over nothing, or over several kinds of numbers")
        return cls(str(kind), bool(reverse), steps, samples, features, w_hh.shape[2], x.dtype)

    @property
    def types(self) -> str:
        """The template arguments, as C++."""
        sizes = f"{self.steps}, {self.samples}, {self.features}, {self.units}"
        reverse = str(self.reverse).lower()
        return f"{ctype(self.dtype)}, shoal::Layer<shoal::{_KINDS[self.kind]}, {sizes}, {reverse}>"

    @property
    def wide(self) -> int:
        """Columns before the gates."""
        return GATES[self.kind] * self.units

    @property
    def kept(self) -> int:
        """Columns of gates that are kept for the way back."""
        return _KEPT[self.kind] * self.units


def _names(*places: Place | None) -> str:
    return ", ".join("nullptr" if p is None else p.address for p in places)


def _maybe(to: Lowering, argument: Any) -> Place | None:
    return None if argument is None else to.whole(to.value(argument))


@handles(_shoal.lane_recurrent.default)
def _forward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    inputs: Any = node.args[:7]
    x, h0, c0, w_ih, w_hh, b_ih, b_hh = (_maybe(to, a) for a in inputs)
    keep = _maybe(to, node.args[8])
    assert x is not None and h0 is not None and w_ih is not None and w_hh is not None
    layer = _Layer.of(x, w_hh, node.args[7], *node.args[9:11])
    n, b, h, dtype = layer.steps, layer.samples, layer.units, layer.dtype
    vector = 32 // dtype.itemsize
    lstm = layer.kind == "lstm"
    y, last_h = to.new((1, n, b, h), dtype), to.new((1, b, h), dtype)
    last_c = to.new((1, b, h) if lstm else (1, 0), dtype)
    cells, gates = to.new((1, n, b, h) if lstm else (1, 0), dtype), to.new((1, n, b, layer.kept), dtype)
    padded = -(-layer.wide // (2 * vector)) * 2 * vector
    size = padded * (layer.features + h + 1) + (n + 1) * b * layer.wide
    memory = to.new((size,), dtype)
    every = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, keep, y, last_h, last_c, cells, gates, memory)
    to.emit(f"shoal::recurrent<{layer.types}>({_names(*every)});", *(p for p in every if p is not None))
    return y, last_h, last_c, cells, gates


@handles(_shoal.lane_recurrent_backward.default)
def _backward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    grads: Any = node.args[:3]
    dy, dh_n, dc_n = (_maybe(to, a) for a in grads)
    _, h0, c0, _, _, b_ih, b_hh, w_hr, keep = node.args[3:12]
    x, w_ih, w_hh, y = (to.own(to.value(node.args[i])) for i in (3, 6, 7, 12))
    state, cell, masked = _maybe(to, h0), _maybe(to, c0), _maybe(to, keep)
    cells, gates = (to.whole(to.value(node.args[i])) for i in (13, 14))
    layer = _Layer.of(x, w_hh, w_hr, *node.args[15:17])
    dtype = layer.dtype

    def gradient(of: Any, shape: tuple[int, ...]) -> Place | None:
        return None if of is None or of is False else to.new(shape, dtype)

    dx = gradient(node.args[17], x.shape)
    dh, dc = to.new((1, layer.samples, layer.units), dtype), to.new((1, layer.samples, layer.units), dtype)
    dw_ih, dw_hh = to.new(w_ih.shape, dtype), to.new(w_hh.shape, dtype)
    db_ih, db_hh = (gradient(b, (1, layer.wide)) for b in (b_ih, b_hh))
    rows = layer.steps * layer.samples
    size = 2 * rows * layer.wide + (rows + layer.samples) * layer.units + 2 * 64 // dtype.itemsize
    memory = to.new((size,), dtype)
    given = (dy, dh_n, dc_n, x, state, cell, w_ih, w_hh, masked, y, cells, gates)
    every = (*given, dx, dh, dc, dw_ih, dw_hh, db_ih, db_hh, memory)
    to.emit(f"shoal::recurrent_back<{layer.types}>({_names(*every)});", *(p for p in every if p is not None))
    nothing = to.new((1, 0), dtype)
    out = (dx, dh, dc if layer.kind == "lstm" else None, dw_ih, dw_hh, db_ih, db_hh, None)
    return tuple(nothing if p is None else p for p in out)
