"""Shoal's own operators: calls of the native library."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes import activations, crossentropy, mixtures, rng
from shoal.lanes.compiled._handlers import handles, like
from shoal.lanes.compiled._places import Expr, Place, Unsupported, Value, ctype

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_DEFINE = (activations, crossentropy, mixtures, rng)  # loaded for the operators that they define
_lane = torch.ops.shoal


@handles(_lane.lane_activation.default)
def _activation(to: Lowering, node: fx.Node) -> Value:
    x = to.whole(to.value(node.args[0]))
    out = to.new(x.shape, x.dtype)
    code, slope = to.kind(node.args[1])
    to.emit(f"job.kernels->forward({code}, {slope}, 1, {math.prod(x.shape)}, {x.address}, {out.pointer});", x, out)
    return out


@handles(_lane.lane_activation_backward.default)
def _activation_backward(to: Lowering, node: fx.Node) -> Value:
    places = [to.whole(to.value(a)) for a in node.args[:3]]
    out = to.new(places[0].shape, places[0].dtype)
    code, slope = to.kind(node.args[3])
    names = ", ".join(p.address for p in (*places, out))
    to.emit(f"job.kernels->backward({code}, {slope}, 1, {math.prod(out.shape)}, {names});", *places, out)
    return out


@handles(_lane.lane_keep_mask.default)
def _mask(to: Lowering, node: fx.Node) -> Value:
    shape, dtype = like(node)
    places = [to.whole(to.value(a)) for a in node.args[:4]]
    out = to.new(shape, dtype)
    names = ", ".join(p.address for p in (*places, out))
    to.emit(f"job.kernels->mask(1, {shape[1]}, {shape[2]}, {names});", *places, out)
    return out


@handles(_lane.lane_mixture.default)
def _mixture(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    x, weights, kinds = (to.whole(to.value(a)) for a in node.args[:3])
    n, k = math.prod(x.shape), math.prod(weights.shape)
    out, kept = to.new(x.shape, x.dtype), to.new((1, k + 2, *x.shape[1:]), x.dtype)
    names = ", ".join(p.address for p in (kinds, weights, x, out, kept))
    to.emit(f"shoal::mixture<{ctype(x.dtype)}, {n}, {k}>(job, {names});", x, weights, kinds, out, kept)
    return out, kept


@handles(_lane.lane_mixture_backward.default)
def _mixture_backward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    grad, x, kept, weights, kinds = (to.whole(to.value(a)) for a in node.args[:5])
    n, k = math.prod(x.shape), math.prod(weights.shape)
    out, slopes, spare = to.new(x.shape, x.dtype), to.new(weights.shape, x.dtype), to.new((n,), x.dtype)
    places = (kinds, weights, grad, x, kept, out, slopes, spare)
    names = ", ".join(p.address for p in places)
    to.emit(f"shoal::mixture_backward<{ctype(x.dtype)}, {n}, {k}>(job, {names});", *places)
    return out, slopes


def _as(to: Lowering, argument: Any, dtype: torch.dtype) -> Place:
    value = to.value(argument)
    if value.dtype != dtype:
        kind = ctype(dtype)
        value = Expr("{0}", (value,), (kind,), kind, value.shape, dtype)
    return to.whole(value)


@handles(_lane.lane_class_loss.default)
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


@handles(_lane.lane_class_loss_backward.default)
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
