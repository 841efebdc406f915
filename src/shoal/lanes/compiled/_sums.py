"""Sums, means and maxima along axes; softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled._handlers import given, handles, like
from shoal.lanes.compiled._places import Expr, Place, Value, ctype, dense

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_aten = torch.ops.aten


def _axes(node: fx.Node, rank: int) -> set[int]:
    dims: Any = given(node, 1, "dim")
    if isinstance(dims, int):
        dims = [dims]
    return {int(d) % rank for d in dims} if dims else set(range(rank))


def _reduced(to: Lowering, node: fx.Node, value: Value, axes: set[int], start: str, step: str) -> Place:
    """Fold a value along axes; ``step`` says how {a} takes up {x}."""
    shape, dtype = like(node)
    kind, n = ctype(dtype), value.shape
    out = to.new(shape, dtype)
    strides, rest = [], list(dense([s for d, s in enumerate(n) if d not in axes]))
    for d in range(len(n)):
        strides.append(0 if d in axes else rest.pop(0))
    wide = replace(out, shape=n, strides=tuple(strides))  # the result, seen as large as what is summed
    to.fold(wide, out, value, axes, kind, start, step)
    return out


@handles(_aten.sum.dim_IntList, _aten.sum.default)
def _sum(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    axes = set(range(len(value.shape))) if node.target is _aten.sum.default else _axes(node, len(value.shape))
    return _reduced(to, node, value, axes, "0", "{a} += {x};")


@handles(_aten.mean.dim, _aten.mean.default)
def _mean(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    axes = set(range(len(value.shape))) if node.target is _aten.mean.default else _axes(node, len(value.shape))
    total = _reduced(to, node, value, axes, "0", "{a} += {x};")
    count = math.prod(value.shape[d] for d in axes)
    kind = ctype(total.dtype)
    return Expr(f"({{0}} / T({count}))", (total,), (kind,), kind, total.shape, total.dtype)


@handles(_aten.amax.default)
def _amax(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    return _reduced(
        to, node, value, _axes(node, len(value.shape)), "-INFINITY", "{a} = {a} != {a} || {x} <= {a} ? {a} : {x};"
    )


@handles(_aten.any.dim)
def _any(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    return _reduced(to, node, value, _axes(node, len(value.shape)), "false", "{a} = {a} || {x};")


@handles(_aten._softmax.default, _aten._log_softmax.default)
def _softmax(to: Lowering, node: fx.Node) -> Value:
    return _along(to, node, "softmax" if node.target is _aten._softmax.default else "log_softmax", node.args[:1])


@handles(_aten._softmax_backward_data.default, _aten._log_softmax_backward_data.default)
def _softmax_backward(to: Lowering, node: fx.Node) -> Value:
    name = "softmax" if node.target is _aten._softmax_backward_data.default else "log_softmax"
    return _along(to, node, f"{name}_backward", node.args[:2])


def _along(to: Lowering, node: fx.Node, name: str, arguments: Sequence[Any]) -> Value:
    shape, dtype = like(node)
    d = int(node.args[len(arguments)]) % len(shape)  # type: ignore[arg-type]
    places = [to.whole(to.value(a)) for a in arguments]
    out = to.new(shape, dtype)
    sizes = (math.prod(shape[:d]), shape[d], math.prod(shape[d + 1 :]))
    template = f"<{ctype(dtype)}, {', '.join(map(str, sizes))}>"
    to.emit(f"shoal::{name}{template}({', '.join(p.address for p in (*places, out))});", *places, out)
    return out
