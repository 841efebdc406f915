"""Which function lowers which operator, and what all of them need.

A handler takes the lowering and the node, and returns where the value lies (``Place``), how it is computed (``Expr``), or a
tuple of these for operators with several results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled._places import Expr, Unsupported, Value, ctype, number

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering


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


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    """Register a handler of these operators."""

    def register(f: Handler) -> Handler:
        for t in targets:
            _HANDLERS[t] = f
        return f

    return register


def like(node: fx.Node) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what a node gives."""
    meta: Any = node.meta.get("tensor_meta")
    if meta is None or not hasattr(meta, "shape"):
        raise Unsupported(f"{node.target}, whose shape is not known")
    return tuple(int(n) for n in meta.shape), meta.dtype


def like_each(node: fx.Node) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor that a node with several results gives."""
    metas: Any = node.meta.get("val", node.meta.get("tensor_meta"))
    if not isinstance(metas, tuple | list) or not all(hasattr(m, "shape") for m in metas[:2]):
        raise Unsupported(f"{node.target}, whose shapes are not known")
    return [(tuple(int(n) for n in m.shape), m.dtype) for m in metas if hasattr(m, "shape")]


def given(node: fx.Node, i: int, name: str, default: Any = None) -> Any:
    """A node's i-th argument, by place or by name."""
    return node.args[i] if i < len(node.args) else node.kwargs.get(name, default)


def operand(to: Lowering, argument: Any, dtype: torch.dtype) -> Value | str:
    """A tensor, or a number as it is written in C++."""
    if isinstance(argument, fx.Node):
        return to.value(argument)
    if isinstance(argument, bool | int | float):
        return number(argument, dtype)
    raise Unsupported(f"an argument {argument!r}")


def expression(
    to: Lowering, node: fx.Node, template: str, arguments: Sequence[Any], compute: torch.dtype | None = None
) -> Expr:
    """An element-wise expression over arguments of a node, computed in its own dtype if not told otherwise."""
    shape, dtype = like(node)
    compute = compute or dtype
    operands = tuple(operand(to, a, compute) for a in arguments)
    kind = ctype(compute)
    return Expr(template, operands, (kind,) * len(operands), kind, shape, dtype)
