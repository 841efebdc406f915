"""Where the values of a lane's program lie, and loops over them.

Glossary: a ``Place`` is strided memory; an ``Expr`` is computed element by element where it is needed, and has no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

Shape: TypeAlias = tuple[int, ...]

CTYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.int64: "int64_t",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}


class Unsupported(Exception):
    """A graph has no compiled form; the text says what in it."""


def ctype(dtype: torch.dtype) -> str:
    """The C++ type of a dtype."""
    if dtype not in CTYPES:
        raise Unsupported(f"tensors of {dtype}")
    return CTYPES[dtype]


@dataclass(frozen=True, slots=True)
class Place:
    """Strided memory: element (i, j, ...) lies at ``pointer[offset + i strides[0] + j strides[1] + ...]``.

    ``owner`` is the number of the scratch buffer it lies in, -1 for memory of the fleet's.
    """

    pointer: str
    shape: Shape
    strides: Shape
    dtype: torch.dtype
    offset: int = 0
    owner: int = -1

    @property
    def address(self) -> str:
        return f"{self.pointer} + {self.offset}" if self.offset else self.pointer

    @property
    def contiguous(self) -> bool:
        return all(n == 1 or s == d for n, s, d in zip(self.shape, self.strides, dense(self.shape), strict=True))

    def at(self, index: Sequence[str]) -> str:
        """The element with these index expressions, one per axis."""
        terms = [i if s == 1 else f"{i} * {s}" for i, s in zip(index, self.strides, strict=True) if s and i != "0"]
        place = " + ".join([*([str(self.offset)] if self.offset else []), *terms]) or "0"
        return f"{self.pointer}[{place}]"


@dataclass(frozen=True, slots=True)
class Expr:
    """``template`` over operands that are converted to ``casts`` first; ``T(`` in it stands for ``compute``."""

    template: str
    operands: tuple[Value | str, ...]
    casts: tuple[str, ...]
    compute: str
    shape: Shape
    dtype: torch.dtype

    @property
    def places(self) -> Iterator[Place]:
        for o in self.operands:
            if isinstance(o, Place):
                yield o
            elif isinstance(o, Expr):
                yield from o.places


Value: TypeAlias = Place | Expr


def dense(shape: Sequence[int]) -> Shape:
    """Row-major strides."""
    out, step = [], 1
    for n in reversed(shape):
        out.append(step)
        step *= n
    return tuple(reversed(out))


def broadcast(place: Place, shape: Shape) -> Place:
    """The place seen as a larger shape, as torch expands it."""
    missing = len(shape) - len(place.shape)
    strides = [0] * missing
    for n, s, wanted in zip(place.shape, place.strides, shape[missing:], strict=True):
        if n != wanted and n != 1:
            raise Unsupported(f"a shape of {place.shape} expanded to {shape}")
        strides.append(s if n == wanted and n != 1 else 0)
    return replace(place, shape=shape, strides=tuple(strides))


def viewed(place: Place, shape: Shape) -> Place | None:
    """The place under another shape of as many elements, or None where that needs a copy."""
    if place.contiguous:
        return replace(place, shape=shape, strides=dense(shape))
    if math.prod(shape) == 0:
        return None
    # Both shapes are cut into groups of axes with equally many elements; within a group, the old axes must lie densely.
    old = [(n, s) for n, s in zip(place.shape, place.strides, strict=True) if n != 1]
    strides: list[int] = []
    at = 0
    group: list[tuple[int, int]] = []
    todo = 1
    for n in reversed(shape):
        if n == 1:
            strides.append(0)
            continue
        if todo == 1:
            if at >= len(old):
                return None
            size, step = old[-1 - at]
            at += 1
            group = [(size, step)]
            todo, base = size, step
        while todo % n and at < len(old):
            size, step = old[-1 - at]
            if step != group[-1][0] * group[-1][1]:
                return None
            group.append((size, step))
            todo *= size
            at += 1
        if todo % n:
            return None
        strides.append(base)
        base *= n
        todo //= n
    if at != len(old) or todo != 1:
        return None
    return replace(place, shape=shape, strides=tuple(reversed(strides)))


@dataclass(frozen=True, slots=True)
class Loops:
    """A nest of loops over a shape: axes of one element left out, axes that every place runs through as one joined."""

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]  # per axis, of every place

    @classmethod
    def over(cls, shape: Shape, places: Sequence[Place]) -> Loops:
        sizes: list[int] = []
        strides: list[tuple[int, ...]] = []
        for d, n in enumerate(shape):
            mine = tuple(p.strides[d] for p in places)
            if n == 1:
                continue
            if sizes and all(a == b * n for a, b in zip(strides[-1], mine, strict=True)):
                sizes[-1] *= n
                strides[-1] = mine
            else:
                sizes.append(n)
                strides.append(mine)
        return cls(tuple(sizes), tuple(strides))


def render(value: Value | str, access: Callable[[Place], str]) -> str:
    """An expression of one element, given how the element of each place is written."""
    if isinstance(value, str):
        return value
    if isinstance(value, Place):
        return access(value)
    parts = []
    for o, cast in zip(value.operands, value.casts, strict=True):
        text = render(o, access)
        same = not isinstance(o, str) and CTYPES.get(o.dtype) == cast
        parts.append(text if same else f"{cast}({text})")
    return value.template.replace("T(", f"{value.compute}(").format(*parts)


def expanded(value: Value | str, shape: Shape) -> Value | str:
    """An expression with all its places seen as one shape."""
    if isinstance(value, str):
        return value
    if isinstance(value, Place):
        return broadcast(value, shape)
    return replace(value, operands=tuple(expanded(o, shape) for o in value.operands), shape=shape)


def literal(value: float | int | bool, shape: Sequence[int], dtype: torch.dtype) -> Expr:
    """One number for a whole shape."""
    kind = ctype(dtype)
    return Expr("{0}", (number(value, dtype),), (kind,), kind, tuple(shape), dtype)


def number(value: float | int | bool, dtype: torch.dtype) -> str:
    """A number in C++."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and not dtype.is_floating_point:
        return f"{value}LL" if abs(value) >= 2**31 else str(value)
    v = float(value)
    if math.isnan(v):
        return "NAN"
    if math.isinf(v):
        return "INFINITY" if v > 0 else "-INFINITY"
    return repr(v)
