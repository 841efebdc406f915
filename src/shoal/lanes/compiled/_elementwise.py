"""Element-wise operators, and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled import _pointwise
from shoal.lanes.compiled._handlers import expression, given, handles, like, lower
from shoal.lanes.compiled._places import Expr, Unsupported, Value, ctype, dense, number

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_aten = torch.ops.aten


@handles(*_pointwise.EXPRESSIONS)
def _pointwise_expression(to: Lowering, node: fx.Node) -> Value:
    template = _pointwise.EXPRESSIONS[node.target]
    if node.target is _aten.clone.default:
        return to.value(node.args[0])  # nothing is written in place, so nobody can tell a copy from what it is of
    if node.target is _aten.bitwise_not.default and like(node)[1] is not torch.bool:
        raise Unsupported("bitwise_not of integers")
    return expression(to, node, template, [a for a in node.args if a is not None])


@handles(*_pointwise.COMPARISONS)
def _comparison(to: Lowering, node: fx.Node) -> Value:
    parts: list[Any] = [
        torch.empty(like(a)[0], dtype=like(a)[1], device="meta") if isinstance(a, fx.Node) else a for a in node.args
    ]
    common = torch.result_type(*parts)
    return expression(to, node, _pointwise.COMPARISONS[node.target], node.args, common)


@handles(*_pointwise.SUMS)
def _sum_of_two(to: Lowering, node: fx.Node) -> Value:
    template = _pointwise.SUMS[node.target]
    alpha = given(node, 2, "alpha", 1)
    if alpha == 1:
        return expression(to, node, template, node.args[:2])
    scaled = "{1}" if node.target not in (_aten.rsub.Tensor, _aten.rsub.Scalar) else "{0}"
    return expression(to, node, template.replace(scaled, f"({{2}} * {scaled})"), [*node.args[:2], alpha])


@handles(*_pointwise.QUOTIENTS)
def _quotient(to: Lowering, node: fx.Node) -> Value:
    return expression(to, node, _pointwise.QUOTIENTS[node.target], node.args)


@handles(_aten.logit.default)
def _logit(to: Lowering, node: fx.Node) -> Value:
    if given(node, 1, "eps") is not None:
        raise Unsupported("a logit with eps")
    return expression(to, node, "log_of({0} / (T(1) - {0}))", node.args[:1])


@handles(_aten.pow.Tensor_Scalar)
def _power(to: Lowering, node: fx.Node) -> Value:
    exponent: Any = node.args[1]
    template = _pointwise.power(exponent) if like(node)[1].is_floating_point else None
    if template is not None:
        return expression(to, node, template, node.args[:1])
    if not like(node)[1].is_floating_point:
        raise Unsupported("a power of integers")
    return expression(to, node, "std::pow({0}, {1})", node.args)


@handles(_aten.clamp.default)
def _clamp(to: Lowering, node: fx.Node) -> Value:
    low, high = given(node, 1, "min"), given(node, 2, "max")
    template, arguments = "{0}", [node.args[0]]
    for bound, sign in ((low, "<"), (high, ">")):
        if bound is not None:
            k = len(arguments)
            template = f"({template} {sign} {{{k}}} ? {{{k}}} : {template})"
            arguments.append(bound)
    return expression(to, node, template, arguments)


@handles(_aten.hardtanh.default)
def _hardtanh(to: Lowering, node: fx.Node) -> Value:
    bounds = given(node, 1, "min_val", -1), given(node, 2, "max_val", 1)
    return expression(to, node, "({0} < {1} ? {1} : ({0} > {2} ? {2} : {0}))", [node.args[0], *bounds])


@handles(_aten.hardtanh_backward.default)
def _hardtanh_backward(to: Lowering, node: fx.Node) -> Value:
    return expression(to, node, "({1} <= {2} || {1} >= {3} ? T(0) : {0})", node.args)


@handles(_aten.gelu.default, _aten.gelu_backward.default)
def _gelu(to: Lowering, node: fx.Node) -> Value:
    if node.kwargs.get("approximate", "none") != "none":
        raise Unsupported("GELU by tanh")
    back = node.target is _aten.gelu_backward.default
    x = "{1}" if back else "{0}"
    density = f"exp_of(T(-0.5) * {x} * {x})"
    share = f"phi_of({x}, {density})"
    slope = f"({share} + {x} * {density} * T({1 / math.sqrt(2 * math.pi)!r}))"
    return expression(to, node, f"({{0}} * {slope})" if back else f"({x} * {share})", node.args)


@handles(_aten.where.self)
def _where(to: Lowering, node: fx.Node) -> Value:
    whole = expression(to, node, "({0} ? {1} : {2})", node.args)
    return replace(whole, casts=("bool", *whole.casts[1:]))


@handles(_aten.masked_fill.Scalar, _aten.masked_fill.Tensor)
def _masked_fill(to: Lowering, node: fx.Node) -> Value:
    whole = expression(to, node, "({1} ? {2} : {0})", node.args)
    return replace(whole, casts=(whole.casts[0], "bool", whole.casts[2]))


@handles(_aten.leaky_relu.default)
def _leaky(to: Lowering, node: fx.Node) -> Value:
    return expression(to, node, "({0} > T(0) ? {0} : {0} * {1})", [node.args[0], given(node, 1, "slope", 0.01)])


@handles(_aten.leaky_relu_backward.default)
def _leaky_backward(to: Lowering, node: fx.Node) -> Value:
    return expression(to, node, "({1} > T(0) ? {0} : {0} * {2})", node.args[:3])


@handles(_aten._to_copy.default)
def _to_copy(to: Lowering, node: fx.Node) -> Value:
    return expression(to, node, "{0}", node.args[:1])


@handles(_aten.mse_loss.default)
def _squares(to: Lowering, node: fx.Node) -> Value:
    if given(node, 2, "reduction", 1) != 0:
        raise Unsupported("a mean over samples")
    return expression(to, node, "(({0} - {1}) * ({0} - {1}))", node.args[:2])


@handles(_aten._prelu_kernel.default)
def _prelu(to: Lowering, node: fx.Node) -> Value:
    return expression(to, node, "({0} > T(0) ? {0} : {0} * {1})", node.args)


@handles(_aten._prelu_kernel_backward.default)
def _prelu_backward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    grad, x, slope = (to.place(to.value(a)) for a in node.args)
    kind = ctype(x.dtype)
    casts = (kind, kind, kind)
    # That in the slope is summed where it is asked for, and needs no memory.
    in_x, in_slope = (
        Expr(template, (grad, x, slope), casts, kind, x.shape, x.dtype)
        for template in ("({1} > T(0) ? {0} : {0} * {2})", "({1} > T(0) ? T(0) : {0} * {1})")
    )
    return to.place(in_x), in_slope


# What an operator in place does, as one that gives a new value.
_IN_PLACE: dict[Any, Any] = {
    getattr(getattr(_aten, f"{name}_"), kind): getattr(getattr(_aten, name), kind)
    for name, kinds in {
        "add": ("Tensor", "Scalar"),
        "sub": ("Tensor", "Scalar"),
        "mul": ("Tensor", "Scalar"),
        "div": ("Tensor", "Scalar"),
        "masked_fill": ("Scalar", "Tensor"),
        "reciprocal": ("default",),
        "relu": ("default",),
        "hardtanh": ("default",),
        "tanh": ("default",),
        "scatter": ("src",),
        "tril": ("default",),
        "triu": ("default",),
        "sigmoid": ("default",),
        "logical_and": ("default",),
        "logical_or": ("default",),
    }.items()
    for kind in kinds
}
# Views that show all of what they are of: its elements in order, or in another.
_IN_ORDER = {_aten.view.default, _aten._unsafe_view.default, _aten.unsqueeze.default, _aten.squeeze.dim}
_TURNED = {_aten.transpose.int, _aten.permute.default}


@handles(*_IN_PLACE)
def _in_place(to: Lowering, node: fx.Node) -> Value:
    """As a new value, which whoever looks at the memory from there on is given instead; nothing is written over."""
    plain = node.graph.create_node("call_function", _IN_PLACE[node.target], node.args, node.kwargs)
    plain.meta = node.meta
    try:
        value: Value = lower(to, plain)
    finally:
        node.graph.erase_node(plain)
    return _written(to, node, value)


def _written(to: Lowering, node: fx.Node, value: Value) -> Value:
    """Give all that shows the memory that ``node`` writes to its new value.

    Raises:
        Unsupported: If that memory was given rather than computed, or is seen through a view that would keep its old value.
    """
    below, target, in_order = node, node.args[0], True
    while isinstance(target, fx.Node) and target.op == "call_function":
        for user in target.users:
            if user is below:
                continue
            # Who looks from there on is given the new value, if its order is known; who looked before must be done.
            if not (_done(user, node) if user < node else in_order):
                break
        else:
            if any(node < user for user in target.users):
                shape, _ = like(target)
                value = to.place(value)
                to.values[target] = replace(to.whole(value), shape=shape, strides=dense(shape))
            if _fresh(target):
                return value
            if _shows_all(target) or target.target in _IN_PLACE:
                in_order &= target.target not in _TURNED
                below, target = target, target.args[0]
                continue
        break
    raise Unsupported("writing in place to what others may see")


def _done(user: fx.Node, node: fx.Node) -> bool:
    """Whether what looked at memory before ``node`` shows nothing of it afterwards."""
    return _fresh(user) or all(u < node and _done(u, node) for u in user.users)


def _shows_all(view: fx.Node) -> bool:
    """Whether a view shows all of what it is of."""
    if view.target is _aten.select.int:
        base: Any = view.args[0]
        return like(base)[0][int(view.args[1])] == 1  # type: ignore[arg-type]
    return view.target in _IN_ORDER or view.target in _TURNED


def _fresh(node: fx.Node) -> bool:
    """Whether what a node gives lies in memory of its own."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and all(r.alias_info is None for r in schema.returns)


@handles(_aten.copy_.default)
def _copy(to: Lowering, node: fx.Node) -> Value:
    return _written(to, node, expression(to, node, "{0}", node.args[1:2]))


# -- constants -----------------------------------------------------------------------------------------------------------


def _filled(to: Lowering, node: fx.Node, value: Any) -> Value:
    shape, dtype = like(node)
    return Expr("{0}", (number(value, dtype),), (ctype(dtype),), ctype(dtype), shape, dtype)


@handles(_aten.ones_like.default, _aten.ones.default, _aten.new_ones.default)
def _ones(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, 1)


# Memory that is not written yet may as well be 0.
@handles(
    *(_aten.zeros_like.default, _aten.zeros.default, _aten.new_zeros.default),
    *(_aten.empty_like.default, _aten.empty.memory_format, _aten.new_empty.default),
)
def _zeros(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, 0)


@handles(_aten.fill_.Scalar)
def _fill(to: Lowering, node: fx.Node) -> Value:
    return _written(to, node, _filled(to, node, node.args[1]))


@handles(_aten.full_like.default, _aten.full.default)
def _full(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, node.args[1])


@handles(_aten.scalar_tensor.default)
def _scalar(to: Lowering, node: fx.Node) -> Value:
    return _filled(to, node, node.args[0])


@handles(_aten.arange.default, _aten.arange.start, _aten.arange.start_step)
def _arange(to: Lowering, node: fx.Node) -> Value:
    args: Sequence[Any] = node.args
    start, step = (0, 1) if len(args) == 1 else (args[0], args[2] if len(args) > 2 else 1)
    shape, dtype = like(node)
    out = to.new(shape, dtype)
    to.emit(f"for (int64_t i = 0; i < {shape[0]}; ++i) {out.pointer}[i] = {ctype(dtype)}({start} + i * {step});", out)
    return out
