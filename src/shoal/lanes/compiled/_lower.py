"""A traced step of one lane as C++ statements: element-wise chains become loops, products calls of ``lane.h``, views nothing.

The graph is traced for one lane, so lanes are an axis of one element in every shape. What follows from a lane's fixed numbers
alone is computed once per epoch (``setup``), the rest at every tick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from shoal.lanes.compiled import _operations
from shoal.lanes.compiled._places import (
    Expr,
    Loops,
    Place,
    Unsupported,
    Value,
    ctype,
    dense,
    expanded,
    literal,
    number,
    render,
)
from shoal.lanes.graph import attribute, unchanging

_ALIGN_BYTES = 64


@dataclass(slots=True)
class Buffer:
    """Scratch memory of one value: the statements that use it decide how long it lives."""

    n_bytes: int
    kind: str
    setup: bool
    first: int
    last: int = 0
    at: int = 0


@dataclass(frozen=True, slots=True)
class Lowered:
    """C++ for one step: statements, what memory they need, and where what the step gives lies.

    ``kept`` and ``scratch`` are names, C++ types and places in bytes of what lives for an epoch and for a part of a tick.
    """

    setup: list[str]
    tick: list[str]
    kept: list[tuple[str, str, int]]
    scratch: list[tuple[str, str, int]]
    kept_bytes: int
    scratch_bytes: int
    outputs: tuple[Place, ...]
    kinds: frozenset[int] = frozenset()  # inputs that hold the kind of an activation


@dataclass(slots=True)
class Lowering:
    """Goes through a graph once, in order.

    Args:
        inputs: Where each placeholder lies: ``in[i]`` of the C++ function, with the shape of one lane.
        fixed: Placeholders that keep their values during an epoch.
        real: The dtype of the parameters.
    """

    gm: fx.GraphModule
    inputs: Sequence[Tensor]
    fixed: set[fx.Node]
    real: torch.dtype
    prefix: str
    values: dict[fx.Node, Any] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)
    tick: list[str] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    kinds: set[int] = field(default_factory=set)
    still: bool = False

    # -- memory -----------------------------------------------------------------------------------------------------------

    def new(self, shape: Sequence[int], dtype: torch.dtype) -> Place:
        """Scratch memory for a value, its elements in order."""
        size = math.prod(shape) * dtype.itemsize + _ALIGN_BYTES  # products may read a vector past the end
        number = len(self.buffers)
        n_bytes = -(-size // _ALIGN_BYTES) * _ALIGN_BYTES
        self.buffers.append(Buffer(n_bytes, ctype(dtype), self.still, len(self.tick)))
        return Place(f"{self.prefix}{number}", tuple(shape), dense(shape), dtype, owner=number)

    def emit(self, text: str, *places: Place) -> None:
        """Add a statement that uses these places."""
        (self.setup if self.still else self.tick).append(text)
        self.touch(*places)

    def touch(self, *places: Place) -> None:
        for p in places:
            if p.owner >= 0 and not self.still:
                self.buffers[p.owner].last = max(self.buffers[p.owner].last, len(self.tick))

    def loops(
        self, shape: Sequence[int], places: Sequence[Place], body: Callable[[Callable[[Place], str]], str]
    ) -> str:
        """A nest of loops over a shape; ``body(access)`` gives the innermost statement, which writes to the first place.

        What it reads is read first, whatever it makes of it: a compiler makes no vectors of a read that depends on a condition.
        """
        nest = Loops.over(tuple(shape), places)
        order = {id(p): i for i, p in enumerate(places)}
        read: dict[str, tuple[str, str, bool]] = {}  # where -> name, C++ type, whether it is the same in all rounds

        def access(p: Place) -> str:
            k = order[id(p)]
            terms = [f"i{d} * {s[k]}" if s[k] != 1 else f"i{d}" for d, s in enumerate(nest.strides) if s[k]]
            where = " + ".join([*([str(p.offset)] if p.offset else []), *terms]) or "0"
            if k == 0:
                return f"{p.pointer}[{where}]"
            return read.setdefault(_read(p, f"{p.pointer}[{where}]"), (f"x{len(read)}", ctype(p.dtype), not terms))[0]

        text = body(access)
        first, each = (
            "".join(f"const {kind} {name} = {where}; " for where, (name, kind, same) in read.items() if same is which)
            for which in (True, False)
        )
        text = f"{{ {each}{text} }}"
        for d in reversed(range(len(nest.sizes))):
            pragma = '_Pragma("GCC ivdep") ' if d == len(nest.sizes) - 1 else ""
            text = f"{pragma}for (int64_t i{d} = 0; i{d} < {nest.sizes[d]}; ++i{d}) {text}"
        return f"{{ {first}{text} }}" if first else text

    def fill(self, out: Place, value: Value | str, how: str = "=") -> None:
        """``out = value``, element by element."""
        whole = expanded(value, out.shape)
        # Two operands may be one place: each access has to know its own.
        places = [out, *(self._leaves(whole))]
        cast = ctype(out.dtype)
        self.emit(
            self.loops(out.shape, places, lambda at: f"{at(out)} {how} {cast}({render(whole, at)});"),
            *places,
        )

    @staticmethod
    def _leaves(value: Value | str) -> list[Place]:
        if isinstance(value, str):
            return []
        return [value] if isinstance(value, Place) else list(value.places)

    def place(self, value: Value) -> Place:
        """A value in memory."""
        if isinstance(value, Place):
            return value
        out = self.new(value.shape, value.dtype)
        self.fill(out, value)
        return out

    def whole(self, value: Value) -> Place:
        """A value in memory with its elements in order."""
        place = self.place(value)
        if place.contiguous:
            return place
        out = self.new(place.shape, place.dtype)
        self.fill(out, place)
        return out

    def own(self, value: Value) -> Place:
        """A value in scratch memory, its elements in order: products may read a vector past its end."""
        place = self.whole(value)
        if place.owner >= 0:
            return place
        out = self.new(place.shape, place.dtype)
        self.fill(out, place)
        return out

    def fold(self, wide: Place, out: Place, value: Value, axes: set[int], kind: str, start: str, step: str) -> None:
        """Reduce a value along axes into ``out``, of which ``wide`` is the view that has the value's shape."""
        whole = expanded(value, value.shape)
        assert not isinstance(whole, str)
        rank = len(value.shape)
        inner = next((d for d in reversed(range(rank)) if value.shape[d] > 1), rank - 1)
        if inner not in axes:  # neighbours in memory go to neighbouring results
            self.fill(out, start)
            places = [wide, *self._leaves(whole)]
            text = self.loops(value.shape, places, lambda at: step.format(a=at(wide), x=f"{kind}({render(whole, at)})"))
            self.emit(text, *places)
            return
        order = [d for d in range(rank) if d not in axes] + sorted(axes)
        turned = [_reordered(p, order) for p in (wide, *self._leaves(whole))]
        names = dict(zip(map(id, [wide, *self._leaves(whole)]), turned, strict=True))
        n_kept = rank - len(axes)
        index = [f"i{d}" for d in range(rank)]
        read: dict[str, tuple[str, str]] = {}

        def access(p: Place) -> str:
            return read.setdefault(_read(p, names[id(p)].at(index)), (f"x{len(read)}", ctype(p.dtype)))[0]

        x = f"{kind}({render(whole, access)})"
        each = "".join(f"const {held} {name} = {where}; " for where, (name, held) in read.items())
        text = f"{{ {each}{step.format(a='a', x=x)} }}"
        sizes = [value.shape[d] for d in order]
        for d in reversed(range(n_kept, rank)):
            reduction = '_Pragma("omp simd reduction(+ : a)") ' if d == rank - 1 and "+=" in step else ""
            text = f"{reduction}for (int64_t i{d} = 0; i{d} < {sizes[d]}; ++i{d}) {text}"
        text = f"{{ {kind} a = {start}; {text} {turned[0].at(index)} = a; }}"
        for d in reversed(range(n_kept)):
            text = f"for (int64_t i{d} = 0; i{d} < {sizes[d]}; ++i{d}) {text}"
        self.emit(text, wide, *self._leaves(whole))

    def multiply(self, out: Place, a: Place, b: Place, c: Place | None, m: int, n: int, k: int) -> None:
        """``out (N, m, n) = c + a (N, m, k) b (N, k, n)``, matrix by matrix."""
        kind, vector = ctype(out.dtype), 32 // out.dtype.itemsize
        count = out.shape[0]
        prepare, source, step = "", b.address, b.strides[1]
        where = f" + b * {b.strides[0]}" if count > 1 else ""
        extra: list[Place] = []
        if b.strides[2] != 1 or not (b.owner >= 0 or n % vector == 0):
            step = -(-n // vector) * vector
            packed = self.new((k, step), out.dtype)
            extra.append(packed)
            prepare = f"shoal::pack<{kind}, {k}, {n}>({source}{where}, {b.strides[1]}, {b.strides[2]}, {packed.pointer}, {step}); "
            source, where = packed.pointer, ""
        bias = "nullptr, 0, 0"
        if c is not None:
            bias = f"{c.address}{f' + b * {c.strides[0]}' if count > 1 else ''}, {c.strides[1]}, {c.strides[2]}"
            extra.append(c)
        from_a = f"{a.address}{f' + b * {a.strides[0]}' if count > 1 else ''}"
        to_c = f"{out.address}{f' + b * {out.strides[0]}' if count > 1 else ''}"
        call = (
            f"{prepare}shoal::product<{kind}, {m}, {n}, {k}, {a.strides[1]}, {a.strides[2]}, {step}, {n}>"
            f"({from_a}, {source}{where}, {to_c}, {bias});"
        )
        self.emit(f"for (int64_t b = 0; b < {count}; ++b) {{ {call} }}" if count > 1 else call, a, b, out, *extra)

    def kind(self, argument: Any) -> tuple[str, str]:
        """The library's number of a lane's activation, and its slope, as C++."""
        source = self.place(self.value(argument))
        if source.owner >= 0 or source.dtype is not torch.int64:
            raise Unsupported("an activation whose kind is computed")
        self.kinds.add(self.fleet_input(source))
        return f"job.codes[{source.pointer}[0]]", f"job.slopes[{source.pointer}[0]]"

    def fleet_input(self, place: Place) -> int:
        """Which input a place is."""
        return int(place.pointer.removeprefix(f"{self.prefix}in"))

    # -- nodes ------------------------------------------------------------------------------------------------------------

    def run(self) -> Lowered:
        """Lower the whole graph.

        Raises:
            Unsupported: If something in it has no compiled form.
        """
        nodes = list(self.gm.graph.nodes)
        still = unchanging(self.gm.graph, self.fixed)
        placeholders = [n for n in nodes if n.op == "placeholder"]
        for i, (node, t) in enumerate(zip(placeholders, self.inputs, strict=True)):
            self.values[node] = Place(f"{self.prefix}in{i}", tuple(t.shape), dense(t.shape), t.dtype)
        outputs: tuple[Place, ...] = ()
        for node in nodes:
            self.still = node in still
            if node.op == "get_attr":
                self.values[node] = self._constant(attribute(self.gm, str(node.target)))
            elif node.op == "call_function":
                self.values[node] = self._node(node)
                self._keep(node, still)
            elif node.op == "output":
                self.still = False
                outputs = tuple(self.whole(self.value(v)) for v in node.args[0])
        for p in outputs:
            if p.owner >= 0:
                self.buffers[p.owner].last = len(self.tick) + 1
        n_kept, n_scratch = self._assign()
        names = [(b.setup, (f"{self.prefix}{i}", b.kind, b.at)) for i, b in enumerate(self.buffers)]
        kept, scratch = ([entry for setup, entry in names if setup is which] for which in (True, False))
        return Lowered(self.setup, self.tick, kept, scratch, n_kept, n_scratch, outputs, frozenset(self.kinds))

    def _node(self, node: fx.Node) -> Any:
        value = _operations.lower(self, node)
        several = len(node.users) > 1
        # What one loop alone looks at is computed there; what several look at, or anything but a loop, once.
        if isinstance(value, Expr) and any(True for _ in value.places) and several:
            return self.place(value)
        return value

    def _keep(self, node: fx.Node, still: set[fx.Node]) -> None:
        """What ticks use of the setup is in memory before the first of them."""
        value = self.values[node]
        if node in still and isinstance(value, Expr) and any(u not in still for u in node.users):
            self.values[node] = self.place(value)

    def value(self, argument: Any) -> Value:
        """What a node or number stands for."""
        if isinstance(argument, fx.Node):
            return self.values[argument]  # type: ignore[no-any-return]
        raise Unsupported(f"an argument {argument!r}")

    def _constant(self, value: Any) -> Value:
        if not isinstance(value, Tensor):
            raise Unsupported("a constant that is no tensor")
        if value.numel() == 1:
            return literal(value.item(), tuple(value.shape), value.dtype)
        if value.numel() > 4096:
            raise Unsupported(f"a constant of {value.numel()} elements")
        out = self.new(value.shape, value.dtype)
        text = ", ".join(number(v, value.dtype) for v in value.flatten().tolist())
        kind = ctype(value.dtype)
        self.emit(
            f"{{ static const {kind} c[] = {{{text}}}; std::memcpy({out.pointer}, c, sizeof c); }}",
            out,
        )
        return out

    def _assign(self) -> tuple[int, int]:
        """Give every buffer its place: those of the setup for good, the others for as long as something uses them."""
        kept = 0
        for b in self.buffers:
            if b.setup:
                b.at, kept = kept, kept + b.n_bytes
        live: list[Buffer] = []
        top = 0
        for b in (b for b in self.buffers if not b.setup):
            live = sorted((x for x in live if x.last > b.first), key=lambda x: x.at)
            at = 0
            for x in live:
                if at + b.n_bytes <= x.at:
                    break
                at = max(at, x.at + x.n_bytes)
            b.at = at
            live.append(b)
            top = max(top, at + b.n_bytes)
        return kept, top


def _read(place: Place, element: str) -> str:
    """An element's value. Truth values are read as bytes: g++ 12 makes no vectors of loops that read them as they are."""
    return f"*(const uint8_t*)&{element} != 0" if place.dtype is torch.bool else element


def _reordered(p: Place, order: Sequence[int]) -> Place:
    return replace(p, shape=tuple(p.shape[d] for d in order), strides=tuple(p.strides[d] for d in order))
