"""How each operator of a traced step is lowered.

Every handler takes the lowering and the node, and returns where the value lies (``Place``), how it is computed (``Expr``), or a
tuple of these for operators with several results.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes import activations, crossentropy, rng
from shoal.lanes.compiled import _pointwise
from shoal.lanes.compiled._places import (
    Expr,
    Place,
    Unsupported,
    Value,
    broadcast,
    ctype,
    dense,
    viewed,
)

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_DEFINE = (activations, crossentropy, rng)  # loaded for the operators that they define
_aten = torch.ops.aten
_lane = torch.ops.shoal

Handler = Callable[["Lowering", fx.Node], Any]
_HANDLERS: dict[Any, Handler] = {}


def lower(to: Lowering, node: fx.Node) -> Any:
    """The value of a node.

    Raises:
        Unsupported: If its operator has no compiled form, or not with these arguments.
    """
    handler = _HANDLERS.get(node.target)
    if handler is None:
        raise Unsupported(f"the operator {node.target}")
    return handler(to, node)


def _handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(f: Handler) -> Handler:
        for t in targets:
            _HANDLERS[t] = f
        return f

    return register


def _like(node: fx.Node) -> tuple[tuple[int, ...], torch.dtype]:
    meta: Any = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "shape"):
        raise Unsupported(f"{node.target}, whose shape is not known")
    return tuple(int(n) for n in meta.shape), meta.dtype


def _argument(node: fx.Node, i: int, name: str, default: Any = None) -> Any:
    return node.args[i] if i < len(node.args) else node.kwargs.get(name, default)


def _number(value: Any, dtype: torch.dtype) -> str:
    from shoal.lanes.compiled._lower import number

    return number(value, dtype)


def _operand(to: Lowering, argument: Any, dtype: torch.dtype) -> Value | str:
    """A tensor, or a number as it is written in C++."""
    if isinstance(argument, fx.Node):
        return to.value(argument)
    if isinstance(argument, bool | int | float):
        return _number(argument, dtype)
    raise Unsupported(f"an argument {argument!r}")


def _expr(
    to: Lowering, node: fx.Node, template: str, arguments: Sequence[Any], compute: torch.dtype | None = None
) -> Expr:
    shape, dtype = _like(node)
    compute = compute or dtype
    operands = tuple(_operand(to, a, compute) for a in arguments)
    kind = ctype(compute)
    return Expr(template, operands, (kind,) * len(operands), kind, shape, dtype)


# -- element by element ---------------------------------------------------------------------------------------------------


@_handles(*_pointwise.EXPRESSIONS)
def _pointwise_expression(to: Lowering, node: fx.Node) -> Value:
    template = _pointwise.EXPRESSIONS[node.target]
    if node.target is _aten.clone.default:
        return to.value(node.args[0])  # nothing is written in place, so nobody can tell a copy from what it is of
    if node.target is _aten.bitwise_not.default and _like(node)[1] is not torch.bool:
        raise Unsupported("bitwise_not of integers")
    return _expr(to, node, template, [a for a in node.args if a is not None])


@_handles(*_pointwise.COMPARISONS)
def _comparison(to: Lowering, node: fx.Node) -> Value:
    parts: list[Any] = [
        torch.empty(_like(a)[0], dtype=_like(a)[1], device="meta") if isinstance(a, fx.Node) else a for a in node.args
    ]
    common = torch.result_type(*parts)
    return _expr(to, node, _pointwise.COMPARISONS[node.target], node.args, common)


@_handles(*_pointwise.SUMS)
def _sum_of_two(to: Lowering, node: fx.Node) -> Value:
    template = _pointwise.SUMS[node.target]
    alpha = _argument(node, 2, "alpha", 1)
    if alpha == 1:
        return _expr(to, node, template, node.args[:2])
    scaled = "{1}" if node.target not in (_aten.rsub.Tensor, _aten.rsub.Scalar) else "{0}"
    return _expr(to, node, template.replace(scaled, f"({{2}} * {scaled})"), [*node.args[:2], alpha])


@_handles(*_pointwise.QUOTIENTS)
def _quotient(to: Lowering, node: fx.Node) -> Value:
    return _expr(to, node, _pointwise.QUOTIENTS[node.target], node.args)


@_handles(_aten.pow.Tensor_Scalar)
def _power(to: Lowering, node: fx.Node) -> Value:
    exponent: Any = node.args[1]
    template = _pointwise.power(exponent) if _like(node)[1].is_floating_point else None
    if template is not None:
        return _expr(to, node, template, node.args[:1])
    if not _like(node)[1].is_floating_point:
        raise Unsupported("a power of integers")
    return _expr(to, node, "std::pow({0}, {1})", node.args)


@_handles(_aten.clamp.default)
def _clamp(to: Lowering, node: fx.Node) -> Value:
    low, high = _argument(node, 1, "min"), _argument(node, 2, "max")
    template, arguments = "{0}", [node.args[0]]
    for bound, sign in ((low, "<"), (high, ">")):
        if bound is not None:
            k = len(arguments)
            template = f"({template} {sign} {{{k}}} ? {{{k}}} : {template})"
            arguments.append(bound)
    return _expr(to, node, template, arguments)


@_handles(_aten.where.self)
def _where(to: Lowering, node: fx.Node) -> Value:
    whole = _expr(to, node, "({0} ? {1} : {2})", node.args)
    return replace(whole, casts=("bool", *whole.casts[1:]))


@_handles(_aten.masked_fill.Scalar, _aten.masked_fill.Tensor)
def _masked_fill(to: Lowering, node: fx.Node) -> Value:
    whole = _expr(to, node, "({1} ? {2} : {0})", node.args)
    return replace(whole, casts=(whole.casts[0], "bool", whole.casts[2]))


@_handles(_aten.leaky_relu.default)
def _leaky(to: Lowering, node: fx.Node) -> Value:
    return _expr(to, node, "({0} > T(0) ? {0} : {0} * {1})", [node.args[0], _argument(node, 1, "slope", 0.01)])


@_handles(_aten.leaky_relu_backward.default)
def _leaky_backward(to: Lowering, node: fx.Node) -> Value:
    return _expr(to, node, "({1} > T(0) ? {0} : {0} * {2})", node.args[:3])


@_handles(_aten._to_copy.default)
def _to_copy(to: Lowering, node: fx.Node) -> Value:
    return _expr(to, node, "{0}", node.args[:1])


@_handles(_aten.mse_loss.default)
def _squares(to: Lowering, node: fx.Node) -> Value:
    if _argument(node, 2, "reduction", 1) != 0:
        raise Unsupported("a mean over samples")
    return _expr(to, node, "(({0} - {1}) * ({0} - {1}))", node.args[:2])


@_handles(_aten._prelu_kernel.default)
def _prelu(to: Lowering, node: fx.Node) -> Value:
    return _expr(to, node, "({0} > T(0) ? {0} : {0} * {1})", node.args)


@_handles(_aten._prelu_kernel_backward.default)
def _prelu_backward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    grad, x, slope = (to.place(to.value(a)) for a in node.args)
    kind = ctype(x.dtype)
    casts = (kind, kind, kind)
    return tuple(
        to.place(Expr(template, (grad, x, slope), casts, kind, x.shape, x.dtype))
        for template in ("({1} > T(0) ? {0} : {0} * {2})", "({1} > T(0) ? T(0) : {0} * {1})")
    )


# What an operator in place does, as one that gives a new value.
_IN_PLACE: dict[Any, Any] = {
    getattr(getattr(_aten, f"{name}_"), kind): getattr(getattr(_aten, name), kind)
    for name, kinds in {
        "add": ("Tensor", "Scalar"),
        "sub": ("Tensor", "Scalar"),
        "mul": ("Tensor", "Scalar"),
        "div": ("Tensor", "Scalar"),
        "masked_fill": ("Scalar", "Tensor"),
        "relu": ("default",),
        "tanh": ("default",),
        "sigmoid": ("default",),
        "logical_and": ("default",),
        "logical_or": ("default",),
    }.items()
    for kind in kinds
}
_OWN = {
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten.clone.default,
    *_pointwise.EXPRESSIONS,
    *_pointwise.COMPARISONS,
    *_pointwise.SUMS,
    *_pointwise.QUOTIENTS,
}


@_handles(*_IN_PLACE)
def _in_place(to: Lowering, node: fx.Node) -> Value:
    """As a new value, where nobody else can see the old one: it is of memory of its own, and used here only."""
    target: Any = node.args[0]
    if set(target.users) != {node} or target.target not in _OWN:
        raise Unsupported("writing in place to what others may see")
    plain = node.graph.create_node("call_function", _IN_PLACE[node.target], node.args, node.kwargs)
    plain.meta = node.meta
    try:
        return lower(to, plain)  # type: ignore[no-any-return]
    finally:
        node.graph.erase_node(plain)


# -- constants ------------------------------------------------------------------------------------------------------------


def _filled(to: Lowering, node: fx.Node, value: Any) -> Value:
    shape, dtype = _like(node)
    return Expr("{0}", (_number(value, dtype),), (ctype(dtype),), ctype(dtype), shape, dtype)


@_handles(_aten.ones_like.default, _aten.ones.default, _aten.new_ones.default)
def _ones(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, 1)


@_handles(_aten.zeros_like.default, _aten.zeros.default, _aten.new_zeros.default)
def _zeros(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, 0)


@_handles(_aten.full_like.default, _aten.full.default)
def _full(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, node.args[1])


@_handles(_aten.scalar_tensor.default)
def _scalar(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, node.args[0])


@_handles(_aten.arange.default, _aten.arange.start, _aten.arange.start_step)
def _arange(to: Lowering, node: fx.Node) -> Value:
    args: Sequence[Any] = node.args
    start, step = (0, 1) if len(args) == 1 else (args[0], args[2] if len(args) > 2 else 1)
    shape, dtype = _like(node)
    out = to.new(shape, dtype)
    to.emit(f"for (int64_t i = 0; i < {shape[0]}; ++i) {out.pointer}[i] = {ctype(dtype)}({start} + i * {step});", out)
    return out


# -- views ----------------------------------------------------------------------------------------------------------------


@_handles(_aten.view.default, _aten._unsafe_view.default, _aten.reshape.default)
def _view(to: Lowering, node: fx.Node) -> Value:
    value, (shape, _) = to.value(node.args[0]), _like(node)
    if isinstance(value, Expr) and not any(True for _ in value.places):
        return replace(value, shape=shape)
    place = to.place(value)
    return viewed(place, shape) or viewed(to.whole(_copy(place)), shape) or _fail("a view")


def _copy(place: Place) -> Expr:
    kind = ctype(place.dtype)
    return Expr("{0}", (place,), (kind,), kind, place.shape, place.dtype)


def _fail(what: str) -> Any:
    raise Unsupported(what)


@_handles(_aten.expand.default)
def _expand(to: Lowering, node: fx.Node) -> Value:
    value, (shape, _) = to.value(node.args[0]), _like(node)
    if isinstance(value, Expr) and not any(True for _ in value.places):
        return replace(value, shape=shape)
    return broadcast(to.place(value), shape)


@_handles(_aten.transpose.int, _aten.t.default, _aten.permute.default)
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


@_handles(_aten.unsqueeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.squeeze.default)
def _squeeze(to: Lowering, node: fx.Node) -> Value:
    value, (shape, _) = to.value(node.args[0]), _like(node)
    if isinstance(value, Expr) and not any(True for _ in value.places):
        return replace(value, shape=shape)
    place = to.place(value)
    kept = [s for n, s in zip(place.shape, place.strides, strict=True) if n != 1]
    strides = [kept.pop(0) if n != 1 else 0 for n in shape]
    return replace(place, shape=shape, strides=tuple(strides))


@_handles(_aten.select.int)
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


def _cut(place: Place, d: int, first: int, last: int, step: int = 1) -> Place:
    shape, strides = list(place.shape), list(place.strides)
    shape[d] = -(-(last - first) // step)
    offset = place.offset + first * strides[d]
    strides[d] *= step
    return replace(place, shape=tuple(shape), strides=tuple(strides), offset=offset)


@_handles(_aten.slice.Tensor)
def _slice(to: Lowering, node: fx.Node) -> Value:
    place = to.place(to.value(node.args[0]))
    d = int(_argument(node, 1, "dim", 0)) % len(place.shape)
    first, last = _bounds(place.shape[d], _argument(node, 2, "start"), _argument(node, 3, "end"))
    return _cut(place, d, first, last, int(_argument(node, 4, "step", 1)))


@_handles(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.unbind.int)
def _split(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    place = to.place(to.value(node.args[0]))
    if node.target is _aten.unbind.int:
        d = int(_argument(node, 1, "dim", 0)) % len(place.shape)
        keep = [k for k in range(len(place.shape)) if k != d]
        parts = [_cut(place, d, i, i + 1) for i in range(place.shape[d])]
        return tuple(
            replace(p, shape=tuple(p.shape[k] for k in keep), strides=tuple(p.strides[k] for k in keep)) for p in parts
        )
    sizes: Any = node.args[1]
    d = int(_argument(node, 2, "dim", 0)) % len(place.shape)
    if isinstance(sizes, int):
        n = place.shape[d]
        sizes = [min(sizes, n - i) for i in range(0, n, sizes)]
    out, first = [], 0
    for size in sizes:
        out.append(_cut(place, d, first, first + size))
        first += size
    return tuple(out)


@_handles(operator.getitem)
def _getitem(to: Lowering, node: fx.Node) -> Value:
    source: Any = node.args[0]
    return to.values[source][node.args[1]]  # type: ignore[no-any-return]


# -- copies ---------------------------------------------------------------------------------------------------------------


@_handles(_aten.cat.default)
def _cat(to: Lowering, node: fx.Node) -> Value:
    parts: Any = node.args[0]
    shape, dtype = _like(node)
    d = int(_argument(node, 1, "dim", 0)) % len(shape)
    out, first = to.new(shape, dtype), 0
    for part in parts:
        value = to.value(part)
        if math.prod(value.shape) == 0:
            continue
        to.fill(_cut(out, d, first, first + value.shape[d]), value)
        first += value.shape[d]
    return out


@_handles(_aten.stack.default)
def _stack(to: Lowering, node: fx.Node) -> Value:
    parts: Any = node.args[0]
    shape, dtype = _like(node)
    d = int(_argument(node, 1, "dim", 0)) % len(shape)
    out = to.new(shape, dtype)
    keep = [k for k in range(len(shape)) if k != d]
    for i, part in enumerate(parts):
        slot = _cut(out, d, i, i + 1)
        slot = replace(slot, shape=tuple(shape[k] for k in keep), strides=tuple(slot.strides[k] for k in keep))
        to.fill(slot, to.value(part))
    return out


def _zeroed(to: Lowering, node: fx.Node) -> Place:
    out = to.new(*_like(node))
    to.fill(out, "0")
    return out


@_handles(_aten.constant_pad_nd.default)
def _pad(to: Lowering, node: fx.Node) -> Value:
    source, (shape, dtype) = to.place(to.value(node.args[0])), _like(node)
    pads: Any = node.args[1]
    out = to.new(shape, dtype)
    to.fill(out, _number(_argument(node, 2, "value", 0), dtype))
    inside = out
    for k in range(len(pads) // 2):
        d, before, after = len(shape) - 1 - k, pads[2 * k], pads[2 * k + 1]
        inside = _cut(inside, d, max(0, before), shape[d] - max(0, after))
        source = _cut(source, d, max(0, -before), source.shape[d] - max(0, -after))  # less than nothing cuts off
    to.fill(inside, source)
    return out


@_handles(_aten.slice_backward.default)
def _slice_backward(to: Lowering, node: fx.Node) -> Value:
    value, out = to.value(node.args[0]), _zeroed(to, node)
    d = int(node.args[2]) % len(out.shape)  # type: ignore[arg-type]
    first, last = _bounds(out.shape[d], node.args[3], node.args[4])
    to.fill(_cut(out, d, first, last, int(node.args[5])), value)  # type: ignore[arg-type]
    return out


@_handles(_aten.select_backward.default)
def _select_backward(to: Lowering, node: fx.Node) -> Value:
    value, out = to.value(node.args[0]), _zeroed(to, node)
    d, i = int(node.args[2]) % len(out.shape), int(node.args[3])  # type: ignore[arg-type]
    slot = _cut(out, d, i % out.shape[d], i % out.shape[d] + 1)
    keep = [k for k in range(len(out.shape)) if k != d]
    to.fill(replace(slot, shape=tuple(out.shape[k] for k in keep), strides=tuple(slot.strides[k] for k in keep)), value)
    return out


@_handles(_aten.index_select.default)
def _index_select(to: Lowering, node: fx.Node) -> Value:
    if int(node.args[1]) != 0:  # type: ignore[arg-type]
        raise Unsupported("index_select along another axis than the first")
    return _rows(to, node, to.value(node.args[0]), to.value(node.args[2]))


@_handles(_aten.embedding.default)
def _embedding(to: Lowering, node: fx.Node) -> Value:
    return _rows(to, node, to.value(node.args[0]), to.value(node.args[1]))


def _rows(to: Lowering, node: fx.Node, table: Value, index: Value) -> Value:
    """Rows of a table, by their numbers. Tables hold what they were checked to hold, but a wrong number must not read elsewhere."""
    (shape, dtype), source, at = _like(node), to.whole(table), to.whole(index)
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


@_handles(_aten.embedding_dense_backward.default)
def _embedding_backward(to: Lowering, node: fx.Node) -> Value:
    grad, at = to.whole(to.value(node.args[0])), to.whole(to.value(node.args[1]))
    out, padding = _zeroed(to, node), node.args[3]
    n, width = math.prod(at.shape), out.shape[1]
    row = f"const int64_t r = {at.pointer}[{at.offset} + i]; if (r < 0 || r >= {out.shape[0]} || r == {padding}) continue;"
    add = f"for (int64_t j = 0; j < {width}; ++j) {out.pointer}[r * {width} + j] += ({grad.address})[i * {width} + j];"
    to.emit(f"for (int64_t i = 0; i < {n}; ++i) {{ {row} {add} }}", grad, at, out)
    return out


# -- sums -----------------------------------------------------------------------------------------------------------------


def _axes(node: fx.Node, rank: int) -> set[int]:
    dims: Any = _argument(node, 1, "dim")
    if isinstance(dims, int):
        dims = [dims]
    return {int(d) % rank for d in dims} if dims else set(range(rank))


def _reduced(to: Lowering, node: fx.Node, value: Value, axes: set[int], start: str, step: str) -> Place:
    """Fold a value along axes; ``step`` says how {a} takes up {x}."""
    shape, dtype = _like(node)
    kind, n = ctype(dtype), value.shape
    out = to.new(shape, dtype)
    strides, rest = [], list(dense([s for d, s in enumerate(n) if d not in axes]))
    for d in range(len(n)):
        strides.append(0 if d in axes else rest.pop(0))
    wide = replace(out, shape=n, strides=tuple(strides))  # the result, seen as large as what is summed
    to.fold(wide, out, value, axes, kind, start, step)
    return out


@_handles(_aten.sum.dim_IntList, _aten.sum.default)
def _sum(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    axes = set(range(len(value.shape))) if node.target is _aten.sum.default else _axes(node, len(value.shape))
    return _reduced(to, node, value, axes, "0", "{a} += {x};")


@_handles(_aten.mean.dim, _aten.mean.default)
def _mean(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    axes = set(range(len(value.shape))) if node.target is _aten.mean.default else _axes(node, len(value.shape))
    total = _reduced(to, node, value, axes, "0", "{a} += {x};")
    count = math.prod(value.shape[d] for d in axes)
    kind = ctype(total.dtype)
    return Expr(f"({{0}} / T({count}))", (total,), (kind,), kind, total.shape, total.dtype)


@_handles(_aten.amax.default)
def _amax(to: Lowering, node: fx.Node) -> Value:
    value = to.value(node.args[0])
    return _reduced(
        to, node, value, _axes(node, len(value.shape)), "-INFINITY", "{a} = {a} != {a} || {x} <= {a} ? {a} : {x};"
    )


@_handles(_aten._softmax.default, _aten._log_softmax.default)
def _softmax(to: Lowering, node: fx.Node) -> Value:
    return _along(to, node, "softmax" if node.target is _aten._softmax.default else "log_softmax", node.args[:1])


@_handles(_aten._softmax_backward_data.default, _aten._log_softmax_backward_data.default)
def _softmax_backward(to: Lowering, node: fx.Node) -> Value:
    name = "softmax" if node.target is _aten._softmax_backward_data.default else "log_softmax"
    return _along(to, node, f"{name}_backward", node.args[:2])


def _along(to: Lowering, node: fx.Node, name: str, arguments: Sequence[Any]) -> Value:
    shape, dtype = _like(node)
    d = int(node.args[len(arguments)]) % len(shape)  # type: ignore[arg-type]
    places = [to.whole(to.value(a)) for a in arguments]
    out = to.new(shape, dtype)
    sizes = (math.prod(shape[:d]), shape[d], math.prod(shape[d + 1 :]))
    template = f"<{ctype(dtype)}, {', '.join(map(str, sizes))}>"
    to.emit(f"shoal::{name}{template}({', '.join(p.address for p in (*places, out))});", *places, out)
    return out


# -- products -------------------------------------------------------------------------------------------------------------


@_handles(_aten.bmm.default, _aten.mm.default)
def _product(to: Lowering, node: fx.Node) -> Value:
    return _matmul(to, node, None, *node.args[:2])


@_handles(_aten.baddbmm.default, _aten.addmm.default)
def _product_and_bias(to: Lowering, node: fx.Node) -> Value:
    if _argument(node, 3, "beta", 1) != 1 or _argument(node, 4, "alpha", 1) != 1:
        raise Unsupported("a product with factors")
    return _matmul(to, node, *node.args[:3])


def _matmul(to: Lowering, node: fx.Node, bias: Any, left: Any, right: Any) -> Value:
    shape, dtype = _like(node)
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


# -- norms ----------------------------------------------------------------------------------------------------------------


@_handles(_aten.native_layer_norm.default)
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


@_handles(_aten.native_layer_norm_backward.default)
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


@_handles(_aten.native_batch_norm.default)
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


@_handles(_aten.native_batch_norm_backward.default)
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


# -- Shoal's own ----------------------------------------------------------------------------------------------------------


@_handles(_lane.lane_activation.default)
def _activation(to: Lowering, node: fx.Node) -> Value:
    x = to.whole(to.value(node.args[0]))
    out = to.new(x.shape, x.dtype)
    code, slope = to.kind(node.args[1])
    to.emit(f"job.kernels->forward({code}, {slope}, 1, {math.prod(x.shape)}, {x.address}, {out.pointer});", x, out)
    return out


@_handles(_lane.lane_activation_backward.default)
def _activation_backward(to: Lowering, node: fx.Node) -> Value:
    places = [to.whole(to.value(a)) for a in node.args[:3]]
    out = to.new(places[0].shape, places[0].dtype)
    code, slope = to.kind(node.args[3])
    names = ", ".join(p.address for p in (*places, out))
    to.emit(f"job.kernels->backward({code}, {slope}, 1, {math.prod(out.shape)}, {names});", *places, out)
    return out


@_handles(_lane.lane_keep_mask.default)
def _mask(to: Lowering, node: fx.Node) -> Value:
    shape, dtype = _like(node)
    places = [to.whole(to.value(a)) for a in node.args[:4]]
    out = to.new(shape, dtype)
    names = ", ".join(p.address for p in (*places, out))
    to.emit(f"job.kernels->mask(1, {shape[1]}, {shape[2]}, {names});", *places, out)
    return out


def _as(to: Lowering, argument: Any, dtype: torch.dtype) -> Place:
    value = to.value(argument)
    if value.dtype != dtype:
        kind = ctype(dtype)
        value = Expr("{0}", (value,), (kind,), kind, value.shape, dtype)
    return to.whole(value)


@_handles(_lane.lane_class_loss.default)
def _class_loss(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    scores, target = (to.whole(to.value(a)) for a in node.args[:2])
    weight, smoothing = (None if a is None else _as(to, a, scores.dtype) for a in node.args[2:4])
    if target.dtype is not torch.int64:
        raise Unsupported("cross-entropy with these types")
    lanes, q, classes = scores.shape
    loss, log_p = to.new((lanes, q), scores.dtype), to.new((lanes, classes, q), scores.dtype)
    given = (scores, target, weight, smoothing)
    names = ", ".join("nullptr" if p is None else p.address for p in given)
    to.emit(
        f"job.kernels->loss(1, {q}, {classes}, {names}, {node.args[4]}, {loss.pointer}, {log_p.pointer});",
        *(p for p in given if p is not None),
        loss,
        log_p,
    )
    return loss, log_p


@_handles(_lane.lane_class_loss_backward.default)
def _class_loss_backward(to: Lowering, node: fx.Node) -> Value:
    grad, log_p, target = (to.whole(to.value(a)) for a in node.args[:3])
    weight, smoothing = (None if a is None else _as(to, a, log_p.dtype) for a in node.args[3:5])
    if target.dtype is not torch.int64:
        raise Unsupported("cross-entropy with these types")
    lanes, classes, q = log_p.shape
    out = to.new((lanes, q, classes), log_p.dtype)
    given = (grad, log_p, target, weight, smoothing)
    names = ", ".join("nullptr" if p is None else p.address for p in given)
    to.emit(
        f"job.kernels->loss_backward(1, {q}, {classes}, {names}, {node.args[5]}, {out.pointer});",
        *(p for p in given if p is not None),
        out,
    )
    return out
