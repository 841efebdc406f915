"""Scaled dot-product attention (``attention.h``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled._handlers import given, handles, like_each
from shoal.lanes.compiled._places import Place, Unsupported, Value, broadcast, ctype

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_aten = torch.ops.aten


def _types(node: fx.Node, q: Place, k: Place, v: Place, mask: Place | None, dropout: Any, causal: Any) -> str:
    """The template arguments of both ways, as C++."""
    if dropout != 0.0:
        raise Unsupported("attention whose dropout has no keys")
    if any(p.dtype != q.dtype for p in (k, v, *([] if mask is None else [mask]))):
        raise Unsupported("attention over numbers of several kinds")
    samples, heads, n_queries, size = q.shape
    n_keys, values = v.shape[2:]
    strides = (0, 0, 0, 0) if mask is None else mask.strides
    where = f"shoal::Mask<{heads}, {', '.join(map(str, strides))}>"
    sizes = (samples * heads, n_queries, n_keys, size, values, _padded(q, n_keys))
    return f"{ctype(q.dtype)}, {where}, {', '.join(map(str, sizes))}, {str(bool(causal)).lower()}"


def _padded(q: Place, n_keys: int) -> int:
    """What a row of scores is padded to: whole vectors, so that products can read it."""
    vector = 32 // q.dtype.itemsize
    return -(-n_keys // vector) * vector


def _masked(to: Lowering, node: fx.Node, q: Place, k: Place) -> Place | None:
    mask = node.kwargs.get("attn_mask")
    if mask is None:
        return None
    return broadcast(to.place(to.value(mask)), (*q.shape[:3], k.shape[2]))


def _scale(node: fx.Node, q: Place) -> str:
    scale: Any = node.kwargs.get("scale")
    return repr(float(1 / math.sqrt(q.shape[3]) if scale is None else scale))


@handles(_aten._scaled_dot_product_flash_attention_for_cpu.default)
def _attention(to: Lowering, node: fx.Node) -> tuple[Value, Value]:
    q, k, v = (to.own(to.value(a)) for a in node.args[:3])
    mask = _masked(to, node, q, k)
    types = _types(node, q, k, v, mask, given(node, 3, "dropout_p", 0.0), given(node, 4, "is_causal", False))
    (shape, dtype), _ = like_each(node)
    out, logs = to.new(shape, dtype), to.new(q.shape[:3], dtype)
    padded = _padded(q, k.shape[2])
    memory = to.new(((q.shape[3] + q.shape[2]) * padded,), dtype)
    at = "nullptr" if mask is None else mask.address
    to.emit(
        f"shoal::attention<{types}>({q.address}, {k.address}, {v.address}, {at}, {_scale(node, q)}, {out.pointer}, "
        f"{logs.pointer}, {memory.pointer});",
        *(p for p in (q, k, v, mask, out, logs, memory) if p is not None),
    )
    return out, logs


@handles(_aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def _attention_backward(to: Lowering, node: fx.Node) -> tuple[Value, ...]:
    g, q, k, v = (to.own(to.value(a)) for a in node.args[:4])
    logs = to.whole(to.value(node.args[5]))
    mask = _masked(to, node, q, k)
    types = _types(node, q, k, v, mask, *node.args[6:8])
    dq, dk, dv = (to.new(p.shape, p.dtype) for p in (q, k, v))
    padded = _padded(q, k.shape[2])
    memory = to.new(((max(q.shape[3], v.shape[3]) + 2 * q.shape[2]) * padded,), q.dtype)
    at = "nullptr" if mask is None else mask.address
    to.emit(
        f"shoal::attention_back<{types}>({g.address}, {q.address}, {k.address}, {v.address}, {logs.address}, {at}, "
        f"{_scale(node, q)}, {dq.pointer}, {dk.pointer}, {dv.pointer}, {memory.pointer});",
        *(p for p in (g, q, k, v, logs, mask, dq, dk, dv, memory) if p is not None),
    )
    return dq, dk, dv
