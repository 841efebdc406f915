"""Layer norm and batch norm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled._handlers import handles, like_each
from shoal.lanes.compiled._places import Unsupported, Value, ctype

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_aten = torch.ops.aten


@handles(_aten.native_layer_norm.default)
def _layer_norm(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    x = to.whole(to.value(node.args[0]))
    normalized: Any = node.args[1]
    n = math.prod(normalized)
    rows = math.prod(x.shape) // n
    out = to.new(x.shape, x.dtype)
    stats = tuple(x.shape[: len(x.shape) - len(normalized)]) + (1,) * len(normalized)
    mean, rstd = to.new(stats, x.dtype), to.new(stats, x.dtype)
    weight, bias = (None if a is None else to.whole(to.value(a)) for a in node.args[2:4])
    given = [p for p in (x, weight, bias, out, mean, rstd) if p is not None]
    names = ", ".join("nullptr" if p is None else p.address for p in (x, weight, bias, out, mean, rstd))
    to.emit(f"shoal::layer_norm<{ctype(x.dtype)}, {rows}, {n}>({names}, {float(node.args[4])!r});", *given)  # type: ignore[arg-type]
    return out, mean, rstd


@handles(_aten.native_layer_norm_backward.default)
def _layer_norm_backward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    grad, x = (to.whole(to.value(a)) for a in node.args[:2])
    normalized: Any = node.args[2]
    n = math.prod(normalized)
    rows = math.prod(x.shape) // n
    mean, rstd = (to.whole(to.value(a)) for a in node.args[3:5])
    weight = None if node.args[5] is None else to.whole(to.value(node.args[5]))
    mask: Any = node.args[7]
    out = to.new(x.shape, x.dtype)
    dw = to.new(normalized, x.dtype) if mask[1] else None
    db = to.new(normalized, x.dtype) if mask[2] else None
    every = (grad, x, mean, rstd, weight, out, dw, db)
    names = ", ".join("nullptr" if p is None else p.address for p in every)
    to.emit(
        f"shoal::layer_norm_backward<{ctype(x.dtype)}, {rows}, {n}>({names});", *(p for p in every if p is not None)
    )
    return out, dw, db  # type: ignore[return-value]


@handles(_aten.native_group_norm.default)
def _group_norm(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    x = to.whole(to.value(node.args[0]))
    if node.args[1] is not None or node.args[2] is not None:
        raise Unsupported("GroupNorm with weights of its own")
    rows = int(node.args[3]) * int(node.args[6])  # type: ignore[arg-type]
    out, mean, rstd = to.new(x.shape, x.dtype), *(to.new(shape, x.dtype) for shape, _ in like_each(node)[1:])
    types = f"{ctype(x.dtype)}, {rows}, {math.prod(x.shape) // rows}"
    given = f"{x.address}, nullptr, nullptr, {out.pointer}, {mean.pointer}, {rstd.pointer}, {float(node.args[7])!r}"  # type: ignore[arg-type]
    to.emit(f"shoal::layer_norm<{types}>({given});", x, out, mean, rstd)
    return out, mean, rstd


@handles(_aten.native_group_norm_backward.default)
def _group_norm_backward(to: Lowering, node: fx.Node) -> tuple[Value | None, ...]:
    grad, x, mean, rstd = (to.whole(to.value(a)) for a in node.args[:4])
    mask: Any = node.args[9]
    if node.args[4] is not None or mask[1] or mask[2]:
        raise Unsupported("GroupNorm with weights of its own")
    rows = int(node.args[5]) * int(node.args[8])  # type: ignore[arg-type]
    out = to.new(x.shape, x.dtype)
    types = f"{ctype(x.dtype)}, {rows}, {math.prod(x.shape) // rows}"
    given = f"{grad.address}, {x.address}, {mean.address}, {rstd.address}, nullptr, {out.pointer}, nullptr, nullptr"
    to.emit(f"shoal::layer_norm_backward<{types}>({given});", grad, x, mean, rstd, out)
    return out, None, None


@handles(_aten.native_batch_norm.default)
def _batch_norm(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    x = to.whole(to.value(node.args[0]))
    training = bool(node.args[5])
    sizes = (x.shape[0], x.shape[1], math.prod(x.shape[2:]))
    if training and sizes[0] * sizes[2] < 2:
        raise Unsupported("BatchNorm over one value")
    weight, bias = (None if a is None else to.whole(to.value(a)) for a in node.args[1:3])
    # A graph works on copies of the running statistics, which are this lane's own memory here, and are renewed in it.
    running = [None if a is None else to.place(to.value(a)) for a in node.args[3:5]]
    if any(p is not None and (p.owner >= 0 or not p.contiguous) for p in running):
        raise Unsupported("BatchNorm whose running statistics are computed")
    out = to.new(x.shape, x.dtype)
    stats = (x.shape[1],) if training else (0,)
    mean, rstd = to.new(stats, x.dtype), to.new(stats, x.dtype)
    every = (x, weight, bias, *running)
    names = ", ".join("nullptr" if p is None else p.address for p in every)
    how = f"{str(training).lower()}, {float(node.args[6])!r}, {float(node.args[7])!r}"  # type: ignore[arg-type]
    to.emit(
        f"shoal::batch_norm<{ctype(x.dtype)}, {', '.join(map(str, sizes))}>({names}, {how}, {out.pointer}, {mean.pointer}, "
        f"{rstd.pointer});",
        *(p for p in every if p is not None),
        out,
        mean,
        rstd,
    )
    return out, mean, rstd


@handles(_aten.native_batch_norm_backward.default)
def _batch_norm_backward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    grad, x = (to.whole(to.value(a)) for a in node.args[:2])
    given = [None if a is None else to.whole(to.value(a)) for a in node.args[2:7]]
    training, mask = bool(node.args[7]), node.args[9]
    assert isinstance(mask, list | tuple)
    sizes = (x.shape[0], x.shape[1], math.prod(x.shape[2:]))
    out = to.new(x.shape, x.dtype)
    dw, db = (to.new((x.shape[1],), x.dtype) if wanted else None for wanted in mask[1:3])
    before, after = (grad, x, *given), (out, dw, db)
    names = [", ".join("nullptr" if p is None else p.address for p in part) for part in (before, after)]
    how = f"{str(training).lower()}, {float(node.args[8])!r}"  # type: ignore[arg-type]
    to.emit(
        f"shoal::batch_norm_backward<{ctype(x.dtype)}, {', '.join(map(str, sizes))}>({names[0]}, {how}, {names[1]});",
        *(p for p in (*before, *after) if p is not None),
    )
    return out, dw, db  # type: ignore[return-value]
