"""Convolutions and pools over windows of an image (``windows.h``); one dimension is an image of one row.

A transposed convolution is a convolution's way back: what it computes is the gradient of an image, and its own gradient of the
input is a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from shoal.lanes.compiled._handlers import given, handles, like, like_each
from shoal.lanes.compiled._places import Place, Shape, Unsupported, Value, ctype

if TYPE_CHECKING:
    from shoal.lanes.compiled._lower import Lowering

_aten = torch.ops.aten
_FLOATS = 24576  # elements of unfolded images that are kept at once, so that they stay in the second cache


@dataclass(frozen=True, slots=True)
class _Window:
    """A window that goes over an image of (channels, height, width): pairs are for rows and columns."""

    image: Shape
    size: Shape
    step: Shape
    padding: Shape
    dilation: Shape
    places: Shape

    @property
    def at_once(self) -> tuple[int, int, int]:
        """What is unfolded at once: rows of places, images where all rows are, and elements of both."""
        row = math.prod(self.image[:1] + self.size) * self.places[1]
        rows = min(self.places[0], max(1, _FLOATS // row))
        images = max(1, _FLOATS // (row * rows)) if rows == self.places[0] else 1
        return rows, images, row * rows * images

    @property
    def text(self) -> str:
        """The type that describes it in C++."""
        every = (*self.image, *self.size, *self.step, *self.padding, *self.dilation, *self.places, *self.at_once[:2])
        return f"shoal::Window<{', '.join(map(str, every))}>"


def _pair(values: Any, rank: int, default: Sequence[int] = ()) -> Shape:
    """Rows and columns of an option; ``rank`` 1 has no rows, and says so by ``default``."""
    out = tuple(int(v) for v in values) or tuple(default)
    out = out * rank if len(out) == 1 else out
    return out if rank == 2 else (int(default[0]), *out)


def _flat(shape: Shape, rank: int) -> Shape:
    """The shape with rows, which one dimension lacks."""
    return shape if rank == 2 else (*shape[:-1], 1, shape[-1])


@dataclass(frozen=True, slots=True)
class _Convolution:
    """A convolution as ``windows.h`` sees it: from an image to places, whichever of them the operator calls its input."""

    window: _Window
    samples: int
    groups: int
    filters: int  # of one group
    dtype: torch.dtype

    @classmethod
    def of(cls, image: Shape, weight: Shape, places: Shape, options: Sequence[Any], dtype: torch.dtype) -> _Convolution:
        """Of the shapes that a convolution has that is not transposed; options are stride, padding, dilation, and groups."""
        rank = len(image) - 2
        if rank not in (1, 2):
            raise Unsupported(f"a convolution over {rank} dimensions")
        groups = int(options[3])
        image, weight, places = (_flat(s, rank) for s in (image, weight, places))
        if 0 in (*image, *weight, *places):
            raise Unsupported("a convolution of nothing")
        defaults = ((1,), (0,), (1,))
        step, padding, dilation = (_pair(o, rank, d) for o, d in zip(options[:3], defaults, strict=True))
        window = _Window((weight[1], *image[2:]), weight[2:], step, padding, dilation, places[2:])
        return cls(window, image[0], groups, weight[0] // groups, dtype)

    def emit(self, to: Lowering, function: str, arguments: Sequence[Place | None], out: Place) -> Place:
        """Call one of the functions on these arguments and memory for a band of unfolded columns."""
        w = self.window
        columns = to.new((w.at_once[2],), self.dtype)
        names = ["nullptr" if a is None else a.address for a in arguments]
        types = f"{ctype(self.dtype)}, {w.text}, {self.samples}, {self.groups}, {self.filters}"
        used = [a for a in arguments if a is not None]
        to.emit(
            f"shoal::{function}<{types}>({', '.join([*names, out.pointer, columns.pointer])});",
            *used,
            out,
            columns,
        )
        return out


def _options(node: fx.Node, at: int) -> tuple[list[Any], bool]:
    """Stride, padding, dilation and groups of a convolution's node, from argument ``at`` on; and whether it is transposed."""
    stride, padding, dilation, transposed, _, groups = node.args[at : at + 6]
    return [stride, padding, dilation, groups], bool(transposed)


@handles(_aten.convolution.default)
def _convolution(to: Lowering, node: fx.Node) -> Value:
    shape, dtype = like(node)
    x, weight = to.own(to.value(node.args[0])), to.whole(to.value(node.args[1]))
    options, transposed = _options(node, 3)
    if not dtype.is_floating_point or x.dtype != dtype or weight.dtype != dtype:
        raise Unsupported("a convolution of other numbers than real ones of one kind")
    out = to.new(shape, dtype)
    if transposed:
        if node.args[2] is not None:
            raise Unsupported("a transposed convolution with a bias of its own")
        same = _Convolution.of(shape, weight.shape, x.shape, options, dtype)
        return same.emit(to, "convolve_back", (x, weight), out)
    bias = None if node.args[2] is None else to.whole(to.value(node.args[2]))
    return _Convolution.of(x.shape, weight.shape, shape, options, dtype).emit(to, "convolve", (x, weight, bias), out)


@handles(_aten.convolution_backward.default)
def _convolution_backward(to: Lowering, node: fx.Node) -> tuple[Value | None, ...]:
    grad, x = (to.own(to.value(a)) for a in node.args[:2])
    weight = to.whole(to.value(node.args[2]))
    options, transposed = _options(node, 4)
    mask: Any = node.args[10]
    if mask[2]:
        raise Unsupported("a convolution with a bias of its own")
    image, places = (grad, x) if transposed else (x, grad)
    same = _Convolution.of(image.shape, weight.shape, places.shape, options, x.dtype)
    dx = dw = None
    if mask[0]:
        dx = to.new(x.shape, x.dtype)
        if transposed:
            same.emit(to, "convolve", (grad, weight, None), dx)
        else:
            same.emit(to, "convolve_back", (grad, weight), dx)
    if mask[1]:
        dw = same.emit(to, "convolve_filters", (places, image), to.new(weight.shape, x.dtype))
    return dx, dw, None


def _pool(node: fx.Node, image: Shape, places: Shape, at: int, dilation: Any = (1,)) -> tuple[str, int]:
    """The window of a pool whose size is argument ``at`` of its node, as C++, and how many planes it goes over."""
    size = _pair(given(node, at, "kernel_size"), 2)
    step = _pair(given(node, at + 1, "stride", ()), 2, size)
    padding = _pair(given(node, at + 2, "padding", (0,)), 2)
    window = _Window((1, *image[-2:]), size, step, padding, _pair(dilation, 2), places[-2:])
    planes = math.prod(image[:-2])
    if planes == 0 or 0 in window.places:
        raise Unsupported("a pool of nothing")
    return window.text, planes


@handles(_aten.max_pool2d_with_indices.default)
def _max_pool(to: Lowering, node: fx.Node) -> tuple[Value, Value]:
    x = to.whole(to.value(node.args[0]))
    shape = like_each(node)[0][0]
    window, planes = _pool(node, x.shape, shape, 1, given(node, 4, "dilation", (1,)))
    out, at = to.new(shape, x.dtype), to.new(shape, torch.int64)
    to.emit(
        f"shoal::max_pool<{ctype(x.dtype)}, {window}, {planes}>({x.address}, {out.pointer}, {at.pointer});", x, out, at
    )
    return out, at


@handles(_aten.max_pool2d_with_indices_backward.default)
def _max_pool_backward(to: Lowering, node: fx.Node) -> Value:
    grad, at = to.whole(to.value(node.args[0])), to.whole(to.value(node.args[7]))
    shape, dtype = like(node)
    window, planes = _pool(node, shape, grad.shape, 2, node.args[5])
    out = to.new(shape, dtype)
    given_ = f"{grad.address}, {at.address}, {out.pointer}"
    to.emit(f"shoal::max_pool_back<{ctype(dtype)}, {window}, {planes}>({given_});", grad, at, out)
    return out


def _call(to: Lowering, node: fx.Node, function: str, types: Callable[[Shape, Shape], str]) -> Value:
    """One of the functions, from a node's first argument to what it gives; ``types`` says what else it needs, by both shapes."""
    x = to.whole(to.value(node.args[0]))
    shape, dtype = like(node)
    out = to.new(shape, dtype)
    to.emit(f"shoal::{function}<{ctype(dtype)}, {types(x.shape, shape)}>({x.address}, {out.pointer});", x, out)
    return out


def _means(node: fx.Node, image: Shape, places: Shape, at: int) -> str:
    """What means are taken over, as C++: the window and planes, whether padding counts, and what is divided by instead."""
    window, planes = _pool(node, image, places, at)
    padded, divisor = given(node, at + 4, "count_include_pad", True), given(node, at + 5, "divisor_override")
    return f"{window}, {planes}, {str(bool(padded)).lower()}, {int(divisor or 0)}"


@handles(_aten.avg_pool2d.default)
def _mean_pool(to: Lowering, node: fx.Node) -> Value:
    return _call(to, node, "mean_pool", lambda x, out: _means(node, x, out, 1))


@handles(_aten.avg_pool2d_backward.default)
def _mean_pool_backward(to: Lowering, node: fx.Node) -> Value:
    return _call(to, node, "mean_pool_back", lambda grad, out: _means(node, out, grad, 2))


def _parts(image: Shape, places: Shape) -> str:
    """What an adaptive pool goes over, as C++."""
    sizes = (math.prod(image[:-2]), *image[-2:], *places[-2:])
    if 0 in sizes:
        raise Unsupported("a pool of nothing")
    return ", ".join(map(str, sizes))


@handles(_aten._adaptive_avg_pool2d.default)
def _adaptive_mean(to: Lowering, node: fx.Node) -> Value:
    return _call(to, node, "adaptive_mean", _parts)


@handles(_aten._adaptive_avg_pool2d_backward.default)
def _adaptive_mean_backward(to: Lowering, node: fx.Node) -> Value:
    return _call(to, node, "adaptive_mean_back", lambda grad, out: _parts(out, grad))


def _factors(small: Shape, large: Shape) -> str:
    """Planes, size and factors of an image that is enlarged, as C++."""
    factors = [n // max(1, k) for k, n in zip(small[-2:], large[-2:], strict=True)]
    if 0 in small or any(k * f != n for k, f, n in zip(small[-2:], factors, large[-2:], strict=True)):
        raise Unsupported("an image enlarged by no whole number")
    return ", ".join(map(str, (math.prod(small[:-2]), *small[-2:], *factors)))


@handles(_aten.upsample_nearest2d.default)
def _enlarge(to: Lowering, node: fx.Node) -> Value:
    return _call(to, node, "enlarge", _factors)


@handles(_aten.upsample_nearest2d_backward.default)
def _enlarge_backward(to: Lowering, node: fx.Node) -> Value:
    return _call(to, node, "enlarge_back", lambda grad, out: _factors(out, grad))
