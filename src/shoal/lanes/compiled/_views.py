"""Operators that see memory in another shape, and those that copy: joining, padding, rows of a table."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled._handlers import given, handles, like
from shoal.lanes.compiled._places import Expr, Place, Shape, Unsupported, Value, broadcast, ctype, dense, number, viewed

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_aten = torch.ops.aten


@handles(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default)
def _view(to: Lowering, node: fx.Node) -> Value:
    value, (shape, _) = to.value(node.args[0]), like(node)
    if isinstance(value, Expr) and not any(True for _ in value.places):
        return replace(value, shape=shape)
    place = to.place(value)
    return viewed(place, shape) or viewed(to.whole(copy_of(place)), shape) or _fail("a view")


def copy_of(place: Place) -> Expr:
    kind = ctype(place.dtype)
    return Expr("{0}", (place,), (kind,), kind, place.shape, place.dtype)


def _fail(what: str) -> Any:
    raise Unsupported(what)


@handles(_aten.expand.default)
def _expand(to: Lowering, node: fx.Node) -> Value:
    value, (shape, _) = to.value(node.args[0]), like(node)
    if isinstance(value, Expr) and not any(True for _ in value.places):
        return replace(value, shape=shape)
    return broadcast(to.place(value), shape)


@handles(_aten.transpose.int, _aten.t.default, _aten.permute.default)
def _permute(to: Lowering, node: fx.Node) -> Value:
    place = to.place(to.value(node.args[0]))
    axes = list(range(len(place.shape)))
    if node.target is _aten.permute.default:
        order: Any = node.args[1]
        axes = [int(d) % len(axes) for d in order]
    elif len(axes) > 1:
        a, b = (0, 1) if node.target is _aten.t.default else (int(d) % len(axes) for d in node.args[1:3])  # type: ignore[arg-type]
        axes[a], axes[b] = axes[b], axes[a]
    return replace(place, shape=tuple(place.shape[d] for d in axes), strides=tuple(place.strides[d] for d in axes))


@handles(_aten.unsqueeze_.default)
def _unsqueeze_in_place(to: Lowering, node: fx.Node) -> Value:
    target: Any = node.args[0]
    if set(target.users) != {node}:
        raise Unsupported("a shape changed in place that others may see")
    return _squeeze(to, node)  # type: ignore[no-any-return]


@handles(_aten.unsqueeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default)
def _squeeze(to: Lowering, node: fx.Node) -> Value:
    value, (shape, _) = to.value(node.args[0]), like(node)
    if isinstance(value, Expr) and not any(True for _ in value.places):
        return replace(value, shape=shape)
    place = to.place(value)
    kept = [s for n, s in zip(place.shape, place.strides, strict=True) if n != 1]
    strides = [kept.pop(0) if n != 1 else 0 for n in shape]
    return replace(place, shape=shape, strides=tuple(strides))


@handles(_aten.select.int)
def _select(to: Lowering, node: fx.Node) -> Value:
    place = to.place(to.value(node.args[0]))
    d, i = int(node.args[1]) % len(place.shape), int(node.args[2])  # type: ignore[arg-type]
    i += place.shape[d] if i < 0 else 0
    keep = [k for k in range(len(place.shape)) if k != d]
    return replace(
        place,
        shape=tuple(place.shape[k] for k in keep),
        strides=tuple(place.strides[k] for k in keep),
        offset=place.offset + i * place.strides[d],
    )


def _bounds(size: int, start: Any, end: Any) -> tuple[int, int]:
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


def cut(place: Place, d: int, first: int, last: int, step: int = 1) -> Place:
    shape, strides = list(place.shape), list(place.strides)
    shape[d] = -(-(last - first) // step)
    offset = place.offset + first * strides[d]
    strides[d] *= step
    return replace(place, shape=tuple(shape), strides=tuple(strides), offset=offset)


@handles(_aten.slice.Tensor)
def _slice(to: Lowering, node: fx.Node) -> Value:
    place = to.place(to.value(node.args[0]))
    d = int(given(node, 1, "dim", 0)) % len(place.shape)
    first, last = _bounds(place.shape[d], given(node, 2, "start"), given(node, 3, "end"))
    return cut(place, d, first, last, int(given(node, 4, "step", 1)))


@handles(_aten.split.Tensor, _aten.unsafe_split.Tensor, _aten.split_with_sizes.default, _aten.unbind.int)
def _split(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    place = to.place(to.value(node.args[0]))
    if node.target is _aten.unbind.int:
        d = int(given(node, 1, "dim", 0)) % len(place.shape)
        keep = [k for k in range(len(place.shape)) if k != d]
        parts = [cut(place, d, i, i + 1) for i in range(place.shape[d])]
        return tuple(
            replace(p, shape=tuple(p.shape[k] for k in keep), strides=tuple(p.strides[k] for k in keep)) for p in parts
        )
    sizes: Any = node.args[1]
    d = int(given(node, 2, "dim", 0)) % len(place.shape)
    if isinstance(sizes, int):
        n = place.shape[d]
        sizes = [min(sizes, n - i) for i in range(0, n, sizes)]
    out, first = [], 0
    for size in sizes:
        out.append(cut(place, d, first, first + size))
        first += size
    return tuple(out)


@handles(operator.getitem)
def _getitem(to: Lowering, node: fx.Node) -> Value:
    source: Any = node.args[0]
    return to.values[source][node.args[1]]  # type: ignore[no-any-return]


# -- copies --------------------------------------------------------------------------------------------------------------


@handles(_aten.cat.default)
def _cat(to: Lowering, node: fx.Node) -> Value:
    parts: Any = node.args[0]
    shape, dtype = like(node)
    d = int(given(node, 1, "dim", 0)) % len(shape)
    out, first = to.new(shape, dtype), 0
    for part in parts:
        value = to.value(part)
        if math.prod(value.shape) == 0:
            continue
        to.fill(cut(out, d, first, first + value.shape[d]), value)
        first += value.shape[d]
    return out


@handles(_aten.stack.default)
def _stack(to: Lowering, node: fx.Node) -> Value:
    parts: Any = node.args[0]
    shape, dtype = like(node)
    d = int(given(node, 1, "dim", 0)) % len(shape)
    out = to.new(shape, dtype)
    keep = [k for k in range(len(shape)) if k != d]
    for i, part in enumerate(parts):
        slot = cut(out, d, i, i + 1)
        slot = replace(slot, shape=tuple(shape[k] for k in keep), strides=tuple(slot.strides[k] for k in keep))
        to.fill(slot, to.value(part))
    return out


def _zeroed(to: Lowering, node: fx.Node) -> Place:
    out = to.new(*like(node))
    to.fill(out, "0")
    return out


@handles(_aten.constant_pad_nd.default)
def _pad(to: Lowering, node: fx.Node) -> Value:
    source, (shape, dtype) = to.place(to.value(node.args[0])), like(node)
    pads: Any = node.args[1]
    out = to.new(shape, dtype)
    to.fill(out, number(given(node, 2, "value", 0), dtype))
    inside = out
    for k in range(len(pads) // 2):
        d, before, after = len(shape) - 1 - k, pads[2 * k], pads[2 * k + 1]
        inside = cut(inside, d, max(0, before), shape[d] - max(0, after))
        source = cut(source, d, max(0, -before), source.shape[d] - max(0, -after))  # less than nothing cuts off
    to.fill(inside, source)
    return out


@handles(_aten.repeat.default)
def _repeat(to: Lowering, node: fx.Node) -> Value:
    x, (shape, dtype) = to.place(to.value(node.args[0])), like(node)
    missing = len(shape) - len(x.shape)
    sizes, steps = (1,) * missing + x.shape, (0,) * missing + x.strides
    # Every axis as two: how often, and what of.
    apart = tuple(n for whole, size in zip(shape, sizes, strict=True) for n in (whole // max(1, size), size))
    strides = tuple(s for step in steps for s in (0, step))
    out = to.new(shape, dtype)
    to.fill(replace(out, shape=apart, strides=dense(apart)), replace(x, shape=apart, strides=strides))
    return out


@handles(_aten.tril.default, _aten.triu.default)
def _triangle(to: Lowering, node: fx.Node) -> Value:
    x = to.whole(to.value(node.args[0]))
    out = to.new(x.shape, x.dtype)
    rows, columns = x.shape[-2:]
    keeps = f"c - r {'<=' if node.target is _aten.tril.default else '>='} {int(given(node, 1, 'diagonal', 0))}"
    at = f"(i * {rows} + r) * {columns} + c"
    to.emit(
        f"for (int64_t i = 0; i < {math.prod(x.shape[:-2])}; ++i) for (int64_t r = 0; r < {rows}; ++r) "
        f"for (int64_t c = 0; c < {columns}; ++c) {out.pointer}[{at}] = {keeps} ? ({x.address})[{at}] : {ctype(x.dtype)}(0);",
        x,
        out,
    )
    return out


@handles(_aten.slice_backward.default)
def _slice_backward(to: Lowering, node: fx.Node) -> Value:
    value, out = to.value(node.args[0]), _zeroed(to, node)
    d = int(node.args[2]) % len(out.shape)  # type: ignore[arg-type]
    first, last = _bounds(out.shape[d], node.args[3], node.args[4])
    to.fill(cut(out, d, first, last, int(node.args[5])), value)  # type: ignore[arg-type]
    return out


@handles(_aten.select_backward.default)
def _select_backward(to: Lowering, node: fx.Node) -> Value:
    value, out = to.value(node.args[0]), _zeroed(to, node)
    d, i = int(node.args[2]) % len(out.shape), int(node.args[3])  # type: ignore[arg-type]
    slot = cut(out, d, i % out.shape[d], i % out.shape[d] + 1)
    keep = [k for k in range(len(out.shape)) if k != d]
    to.fill(replace(slot, shape=tuple(out.shape[k] for k in keep), strides=tuple(slot.strides[k] for k in keep)), value)
    return out


@handles(_aten.sort.default)
def _sort(to: Lowering, node: fx.Node) -> tuple[Value, Value]:
    x = to.whole(to.value(node.args[0]))
    axis = int(given(node, 1, "dim", -1)) % max(1, len(x.shape))
    if axis != len(x.shape) - 1:
        raise Unsupported("sorting along another axis than the last")
    n = x.shape[-1]
    out, order = to.new(x.shape, x.dtype), to.new(x.shape, torch.int64)
    falling = str(bool(given(node, 2, "descending", False))).lower()
    kind = f"{ctype(x.dtype)}, {math.prod(x.shape[:-1])}, {n}, {falling}"
    to.emit(f"shoal::sort<{kind}>({x.address}, {out.pointer}, {order.pointer});", x, out, order)
    return out, order


@handles(_aten.index_select.default)
def _index_select(to: Lowering, node: fx.Node) -> Value:
    shape, dtype = like(node)
    if int(node.args[1]) % len(shape) != 0:  # type: ignore[arg-type]
        source, out = to.place(to.value(node.args[0])), to.new(shape, dtype)
        at = _numbers_along(to, node, shape)
        _by_number(to, node, at, source, lambda index, there: f"{out.at(index)} = {source.at(there)};", out)
        return out
    return _rows(to, node, to.value(node.args[0]), to.value(node.args[2]))


@handles(_aten.index_add.default)
def _index_add(to: Lowering, node: fx.Node) -> Value:
    (shape, dtype), added = like(node), to.place(to.value(node.args[3]))
    if given(node, 4, "alpha", 1) != 1:
        raise Unsupported("index_add with a factor")
    out = to.new(shape, dtype)
    to.fill(out, to.value(node.args[0]))
    at = _numbers_along(to, node, added.shape)
    _by_number(to, node, at, out, lambda index, there: f"{out.at(there)} += {added.at(index)};", added)
    return out


def _numbers_along(to: Lowering, node: fx.Node, shape: Shape) -> Place:
    """The numbers (n,) of a node's third argument, seen along the axis that it names of a shape."""
    at = to.place(to.value(node.args[2]))
    steps = [0] * len(shape)
    steps[int(node.args[1]) % len(shape)] = at.strides[0]  # type: ignore[arg-type]
    return replace(at, shape=shape, strides=tuple(steps))


@handles(_aten.gather.default)
def _gather(to: Lowering, node: fx.Node) -> Value:
    """Elements by their numbers along one axis."""
    (shape, dtype), source, at = like(node), to.place(to.value(node.args[0])), to.place(to.value(node.args[2]))
    out = to.new(shape, dtype)
    _by_number(to, node, at, source, lambda index, there: f"{out.at(index)} = {source.at(there)};", out)
    return out


@handles(_aten.scatter.value)
def _scatter(to: Lowering, node: fx.Node) -> Value:
    """A number at places that are given by their numbers along one axis."""
    shape, dtype = like(node)
    at, out = to.place(to.value(node.args[2])), to.new(shape, dtype)
    to.fill(out, to.value(node.args[0]))
    written = number(node.args[3], dtype)  # type: ignore[arg-type]
    _by_number(to, node, at, out, lambda _, there: f"{out.at(there)} = {written};", out)
    return out


@handles(_aten.scatter_add.default, _aten.scatter.src)
def _scatter_of(to: Lowering, node: fx.Node) -> Value:
    """Puts elements to their places, or adds up what belongs to the same one; in order, as torch does on one thread."""
    shape, dtype = like(node)
    at, given_, out = to.place(to.value(node.args[2])), to.place(to.value(node.args[3])), to.new(shape, dtype)
    to.fill(out, to.value(node.args[0]))
    how = "+=" if node.target is _aten.scatter_add.default else "="
    _by_number(to, node, at, out, lambda index, there: f"{out.at(there)} {how} {given_.at(index)};", given_)
    return out


def _by_number(
    to: Lowering, node: fx.Node, at: Place, along: Place, body: Callable[[list[str], list[str]], str], other: Place
) -> None:
    """``body(index, there)`` for every element of ``at``, a number along an axis; a wrong one must not reach elsewhere."""
    axis = int(node.args[1]) % len(at.shape)  # type: ignore[arg-type]
    index = [f"i{d}" for d in range(len(at.shape))]
    there = [*index[:axis], "r", *index[axis + 1 :]]
    row = f"int64_t r = {at.at(index)}; r = r < 0 || r >= {along.shape[axis]} ? 0 : r;"
    text = f"{{ {row} {body(index, there)} }}"
    for d in reversed(range(len(at.shape))):
        text = f"for (int64_t i{d} = 0; i{d} < {at.shape[d]}; ++i{d}) {text}"
    to.emit(text, along, at, other)


@handles(_aten.embedding.default)
def _embedding(to: Lowering, node: fx.Node) -> Value:
    return _rows(to, node, to.value(node.args[0]), to.value(node.args[1]))


def _rows(to: Lowering, node: fx.Node, table: Value, index: Value) -> Value:
    """Rows of a table, by their numbers. Tables hold what they were checked to hold, but a wrong number must not read elsewhere."""
    (shape, dtype), source, at = like(node), to.whole(table), to.whole(index)
    out = to.new(shape, dtype)
    n, width = math.prod(at.shape), math.prod(source.shape[1:])
    row = f"int64_t r = {at.pointer}[{at.offset} + i]; r = r < 0 || r >= {source.shape[0]} ? 0 : r;"
    copy = (
        f"{out.pointer}[i] = ({source.address})[r];"
        if width == 1
        else f"std::memcpy({out.pointer} + i * {width}, {source.address} + r * {width}, {width * dtype.itemsize});"
    )
    to.emit(f"for (int64_t i = 0; i < {n}; ++i) {{ {row} {copy} }}", source, at, out)
    return out


@handles(_aten.embedding_dense_backward.default)
def _embedding_backward(to: Lowering, node: fx.Node) -> Value:
    grad, at = to.whole(to.value(node.args[0])), to.whole(to.value(node.args[1]))
    out, padding = _zeroed(to, node), node.args[3]
    n, width = math.prod(at.shape), out.shape[1]
    row = f"const int64_t r = {at.pointer}[{at.offset} + i]; if (r < 0 || r >= {out.shape[0]} || r == {padding}) continue;"
    add = f"for (int64_t j = 0; j < {width}; ++j) {out.pointer}[r * {width} + j] += ({grad.address})[i * {width} + j];"
    to.emit(f"for (int64_t i = 0; i < {n}; ++i) {{ {row} {add} }}", grad, at, out)
    return out
