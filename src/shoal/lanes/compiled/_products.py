"""Products of matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled._handlers import given, handles, like
from shoal.lanes.compiled._places import Place, Unsupported, Value, broadcast

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_aten = torch.ops.aten


@handles(_aten.bmm.default, _aten.mm.default)
def _product(to: Lowering, node: fx.Node) -> Value:
    return _matmul(to, node, None, *node.args[:2])


@handles(_aten.baddbmm.default, _aten.addmm.default)
def _product_and_bias(to: Lowering, node: fx.Node) -> Value:
    if given(node, 3, "beta", 1) != 1 or given(node, 4, "alpha", 1) != 1:
        raise Unsupported("a product with factors")
    return _matmul(to, node, *node.args[:3])


def _matmul(to: Lowering, node: fx.Node, bias: Any, left: Any, right: Any) -> Value:
    shape, dtype = like(node)
    a, b = to.place(to.value(left)), to.place(to.value(right))
    if not dtype.is_floating_point or a.dtype != dtype or b.dtype != dtype:
        raise Unsupported("a product of other numbers than real ones of one kind")
    c = None if bias is None else broadcast(to.place(to.value(bias)), shape)
    if len(shape) == 2:
        a, b = _batched(a), _batched(b)
        c = None if c is None else _batched(c)
    n, (m, k), columns = a.shape[0], a.shape[1:], b.shape[2]
    if min(n, m, k, columns) == 0:
        raise Unsupported("a product of nothing")
    vector = 32 // dtype.itemsize
    # The rows of what is streamed must be whole vectors in memory; otherwise they are packed, unless the mirror image fits.
    if _streams(b, 2, vector) or not _streams(a, 1, vector):
        out = to.new((n, m, columns), dtype)
        to.multiply(out, a, b, c, m, columns, k)
    else:
        mirror = to.new((n, columns, m), dtype)
        to.multiply(mirror, _turned(b), _turned(a), None if c is None else _turned(c), columns, m, k)
        out = _turned(mirror)
    if len(shape) == 2:
        out = replace(out, shape=out.shape[1:], strides=out.strides[1:])
    return out


def _batched(p: Place) -> Place:
    return replace(p, shape=(1, *p.shape), strides=(0, *p.strides))


def _turned(p: Place) -> Place:
    return replace(p, shape=(p.shape[0], p.shape[2], p.shape[1]), strides=(p.strides[0], p.strides[2], p.strides[1]))


def _streams(p: Place, axis: int, vector: int) -> bool:
    return p.strides[axis] == 1 and (p.owner >= 0 or p.shape[axis] % vector == 0)
