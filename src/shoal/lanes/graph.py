"""Tidies a traced graph: removes operations that do nothing, joins pairs that one kernel does, and makes it a plain function.

An eager kernel call costs about 5 microseconds before it does anything; a raw trace of a small network spends a third of its calls
on views that change no shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from shoal.errors import FuseError
from shoal.lanes.kernels import Kernels
from shoal.lanes.recurrent import lane_backward, lane_forward

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default}
_VIEWS = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.expand.default,
    _aten.reshape.default,
    _aten.permute.default,
}


def tidy(gm: fx.GraphModule, *, for_torch: bool = True) -> None:
    """Clean the graph in place. Every rewrite keeps the values; adding a bias inside ``baddbmm`` rounds once less.

    Args:
        gm: The graph.
        for_torch: Whether torch's kernels will run it, and products are to lie as they like it.
    """
    graph = gm.graph
    written = _written(graph)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source = _no_op_source(node)
        if node.target is _aten.clone.default and {node, node.args[0]} & written:
            source = None
        if source is not None:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is _aten.add.Tensor:
            _fuse_bias(graph, node)
    for place in (_align, _turn) if for_torch else ():
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target in (_aten.bmm.default, _aten.baddbmm.default):
                place(graph, node)
    graph.eliminate_dead_code()
    graph.lint()


def _meta(node: fx.Node) -> Any:
    return node.meta.get("tensor_meta")


def _no_op_source(node: fx.Node) -> fx.Node | None:
    args = node.args
    if not args or not isinstance(args[0], fx.Node):
        return None
    source = args[0]
    if node.target in _SAME:
        return source
    mine, theirs = _meta(node), _meta(source)
    if mine is None or theirs is None or not hasattr(mine, "shape") or not hasattr(theirs, "shape"):
        return None
    if node.target is _aten.clone.default and not node.kwargs and mine.stride == theirs.stride:
        return source
    if node.target in _VIEWS and mine.shape == theirs.shape and mine.stride == theirs.stride:
        return source
    if node.target is _aten.mul.Scalar and args[1] == 1 and mine.dtype == theirs.dtype:
        return source
    transposes = node.target is _aten.transpose.int and source.target is _aten.transpose.int
    if transposes and isinstance(source.args[0], fx.Node):
        rank = len(mine.shape)
        if {int(a) % rank for a in args[1:3]} == {int(a) % rank for a in source.args[1:3]}:  # type: ignore[arg-type]
            return source.args[0]
    return None


def _fuse_bias(graph: fx.Graph, node: fx.Node) -> None:
    """``add(bias (lanes, 1, out), bmm(a, b))`` -> ``baddbmm``."""
    if node.kwargs or len(node.args) != 2:
        return
    for bias, product in (node.args, node.args[::-1]):
        if not (isinstance(bias, fx.Node) and isinstance(product, fx.Node)):
            continue
        if product.target is not _aten.bmm.default or len(product.users) != 1:
            continue
        b, p, out = _meta(bias), _meta(product), _meta(node)
        if b is None or p is None or out is None or out.shape != p.shape or len(b.shape) != 3 or b.dtype != p.dtype:
            continue
        with graph.inserting_before(node):
            fused = graph.call_function(_aten.baddbmm.default, (bias, *product.args))
        fused.meta = node.meta
        node.replace_all_uses_with(fused)
        graph.erase_node(node)
        return


_ALIGN_BYTES = 16


def _align(graph: fx.Graph, node: fx.Node) -> None:
    """Pad a product so that every lane's matrices start at a multiple of 16 bytes.

    MKL sums in an order that depends on where a matrix starts: without this, lanes of odd shapes (31 x 10, say) round differently
    by slot. Padding rows of ``a`` and columns of ``b`` adds zeros that are cut off again; the summed axis is left alone.
    """
    *bias, a, b = node.args
    metas: list[Any] = [_meta(x) if isinstance(x, fx.Node) else None for x in (*bias, a, b)]
    if node.kwargs or any(x is None for x in metas) or isinstance(node.target, str):
        return
    left, right = metas[-2:]
    (lanes, m, k), n = left.shape, right.shape[2]
    unit = max(1, _ALIGN_BYTES // left.dtype.itemsize)
    if lanes == 1 or not (left.stride[0] % unit or right.stride[0] % unit or m * n % unit):
        return
    wide = n if n % unit == 0 else -(-n // unit) * unit
    tall = m if m % unit == 0 or k % unit == 0 else -(-m // unit) * unit

    def padded(x: Any, meta: Any, rows: int, columns: int) -> fx.Node:
        if rows or columns:
            return graph.call_function(_aten.constant_pad_nd.default, (x, [0, columns, 0, rows], 0.0))
        return x if meta.stride[0] % unit == 0 else _contiguous(graph, x)

    with graph.inserting_before(node):
        inputs = [
            padded(x, t, tall - m if t.shape[1] > 1 else 0, wide - n if t.shape[2] > 1 else 0)
            for x, t in zip(bias, metas, strict=False)
        ]
        inputs += [padded(a, left, tall - m, 0), padded(b, right, 0, wide - n)]
        out = graph.call_function(node.target, tuple(inputs))
        for axis, (size, full) in enumerate(((m, tall), (n, wide)), 1):
            if full != size:
                out = graph.call_function(_aten.slice.Tensor, (out, axis, 0, size))
        if (tall, wide) != (m, n):
            out = _contiguous(graph, out)
    out.meta = node.meta
    node.replace_all_uses_with(out)
    graph.erase_node(node)


def _turn(graph: fx.Graph, node: fx.Node) -> None:
    """Take a product with a few odd columns the other way round, as ``(b' a')'``.

    MKL is two to three times as slow on (32 x 64) by (64 x 10) as on its mirror image: ten columns fill no vector, 32 do. Only
    where every lane's matrices start on a cache line, or lanes would round differently by slot.
    """
    *bias, a, b = node.args
    out, left, right = (_meta(x) if isinstance(x, fx.Node) else None for x in (node, a, b))
    if node.kwargs or out is None or left is None or right is None:
        return
    m, n = out.shape[1:]
    unit = 64 // out.dtype.itemsize
    if n >= 16 or n % 8 == 0 or m % 8 or left.stride[0] % unit or right.stride[0] % unit or m * n % unit:
        return
    if bias and not (isinstance(bias[0], fx.Node) and len(getattr(_meta(bias[0]), "shape", ())) == 3):
        return
    with graph.inserting_before(node):
        turned = [graph.call_function(_aten.transpose.int, (x, 1, 2)) for x in (*bias, b, a)]
        product = graph.call_function(node.target, tuple(turned))  # type: ignore[arg-type]
        back = graph.call_function(_aten.transpose.int, (product, 1, 2))
    back.meta = node.meta
    node.replace_all_uses_with(back)
    graph.erase_node(node)


def _contiguous(graph: fx.Graph, x: fx.Node) -> fx.Node:
    return graph.call_function(_aten.clone.default, (x,), {"memory_format": torch.contiguous_format})


def check(gm: fx.GraphModule) -> None:
    """Refuse a graph that would not do for every lane what it did for the one that was traced.

    Attention kernels can draw, but do not where their rate of dropout is 0.

    Raises:
        FuseError: If it draws from torch's generator, which no lane owns, or reads a value back to Python.
    """
    for node in gm.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and _argument(node, "dropout_p") != 0.0:
            raise FuseError(f"its forward pass draws random numbers through {node.target}, which has no keyed form")
        if node.op == "get_attr":
            constant = attribute(gm, str(node.target))
            if isinstance(constant, Tensor) and constant.requires_grad:
                raise FuseError(
                    "its forward pass reaches a parameter by another way than as an attribute of its module (a plain list, a "
                    "closure), where lanes cannot follow"
                )
        if node.target in (_aten._local_scalar_dense.default, _aten.item.default):
            raise FuseError("its forward pass reads a tensor's value into Python (.item(), float(), if tensor)")


def _argument(node: fx.Node, name: str) -> Any:
    """What an operator is given as its argument ``name``; None where it has no such argument."""
    for i, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return node.args[i] if i < len(node.args) else node.kwargs.get(name, argument.default_value)
    return None


def unreached(gm: fx.GraphModule, n: int) -> tuple[int, ...]:
    """Which of the first n inputs the loss does not depend on: where autograd found no path, ``grad`` made zeros up.

    Args:
        gm: A training step, whose first n outputs are the gradients of its first n inputs.
        n: How many.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"][:n]
    outputs = next(node for node in gm.graph.nodes if node.op == "output").args[0][:n]
    return tuple(
        i
        for i, (x, g) in enumerate(zip(inputs, outputs, strict=True))
        if g.target is _aten.zeros_like.default and g.args[0] is x
    )


class WidthError(FuseError):
    """A graph depends on the number of lanes in another way than by multiples of it."""


class Blueprint:
    """One graph for every width, from traces at two widths.

    The traces must be the same but for whole numbers. A number that is equal in both does not depend on the width; one that is
    k times the width in both is k times the width. Anything else, and there is no blueprint: such a step is traced at each
    width by itself.

    Args:
        traces: Width -> tidied graph, for two different widths.

    Raises:
        WidthError: If the two do not agree.
    """

    def __init__(self, traces: dict[int, fx.GraphModule]) -> None:
        (self._w1, self._first), (self._w2, second) = traces.items()
        pairs = list(zip(self._first.graph.nodes, second.graph.nodes, strict=False))
        if len(self._first.graph.nodes) != len(second.graph.nodes):
            raise WidthError("its graph depends on the number of lanes")
        twin = dict(pairs)
        self._arguments: dict[fx.Node, tuple[Any, Any]] = {}
        for a, b in pairs:
            same_target = a.target == b.target or (a.op in ("placeholder", "output") and a.op == b.op)
            if a.op != b.op or not same_target:
                raise WidthError("its graph depends on the number of lanes")
            if a.op == "get_attr" and not _equal(
                attribute(self._first, str(a.target)), attribute(second, str(b.target))
            ):
                raise WidthError("a constant of its graph depends on the number of lanes")
            self._arguments[a] = (self._solve(a.args, b.args, twin), self._solve(a.kwargs, b.kwargs, twin))

    def _solve(self, a: Any, b: Any, twin: dict[fx.Node, fx.Node]) -> Any:
        if isinstance(a, fx.Node):
            if twin[a] is not b:
                raise WidthError("its graph depends on the number of lanes")
            return a
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {k: self._solve(a[k], b[k], twin) for k in a}
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return type(a)([self._solve(x, y, twin) for x, y in zip(a, b, strict=True)])
        if type(a) is type(b) and a == b:
            return a
        if type(a) is type(b) is int and a * self._w2 == b * self._w1 and a % self._w1 == 0:
            return _PerLane(a // self._w1)
        raise WidthError("a number in its graph depends on the number of lanes in no simple way")

    def at(self, width: int) -> fx.GraphModule:
        """The graph for a width."""
        graph, copy = fx.Graph(), dict[fx.Node, fx.Node]()

        def fill(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return copy[value]
            if isinstance(value, _PerLane):
                return value.factor * width
            if isinstance(value, dict):
                return {k: fill(v) for k, v in value.items()}
            if isinstance(value, list | tuple):
                return type(value)([fill(v) for v in value])
            return value

        for node, (args, kwargs) in self._arguments.items():
            copy[node] = graph.create_node(node.op, node.target, fill(args), fill(kwargs), node.name)
        # Kernels choose the layout of what they return by sizes too: what was a view at one width may need a copy at another.
        written = _written(graph)
        for node in graph.nodes:
            if node.target is _aten.view.default and node not in written:
                node.target = _aten.reshape.default
        return fx.GraphModule(self._first, graph)


@dataclass(frozen=True, slots=True)
class _PerLane:
    factor: int


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
    return bool(a is b)


def specialise(
    gm: fx.GraphModule, kernels: Callable[[], Kernels], runs: Callable[[str], Any], kind_names: dict[fx.Node, str]
) -> None:
    """Point Shoal's own operations at the fleet's kernels and its table of runs, so that no tick asks a tensor for its values."""

    def forward(x: Tensor, name: str) -> Tensor:
        return kernels().forward(x, runs(name))

    def backward(grad: Tensor, x: Tensor, y: Tensor, name: str) -> Tensor:
        return kernels().backward(grad, x, y, runs(name))

    def mask(keys: Tensor, element: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        return kernels().mask(keys, element, threshold, scale)

    def loss(*arguments: Any) -> tuple[Tensor, Tensor]:
        return kernels().loss(*arguments)

    def loss_backward(*arguments: Any) -> Tensor:
        return kernels().loss_backward(*arguments)

    def recurrent(*arguments: Any) -> tuple[Tensor, ...]:
        return lane_forward(kernels(), *arguments)

    def recurrent_backward(*arguments: Any) -> tuple[Tensor, ...]:
        return lane_backward(kernels(), *arguments)

    lane = torch.ops.shoal
    others = {
        lane.lane_recurrent.default: recurrent,
        lane.lane_recurrent_backward.default: recurrent_backward,
        lane.lane_keep_mask.default: mask,
        lane.lane_class_loss.default: loss,
        lane.lane_class_loss_backward.default: loss_backward,
    }
    for node in gm.graph.nodes:
        if node.target is lane.lane_activation.default:
            node.args = (node.args[0], kind_names[node.args[1]])
            node.target = forward
        elif node.target is lane.lane_activation_backward.default:
            node.args = (*node.args[:3], kind_names[node.args[3]])
            node.target = backward
        else:
            node.target = others.get(node.target, node.target)


class Tick:
    """A traced graph as two plain Python functions: what stays the same from tick to tick, and the rest.

    ``setup`` is everything that follows from constants and from the placeholders named fixed (dropout thresholds, counters of
    random numbers): it runs when lanes change. Calling the object runs the rest.

    Args:
        gm: The tidied graph.
        fixed: Which placeholders keep their values between calls of ``refresh``.
    """

    def __init__(self, gm: fx.GraphModule, fixed: set[fx.Node]) -> None:
        self.nodes = [n for n in gm.graph.nodes if n.op != "placeholder"]
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        still = unchanging(gm.graph, fixed)
        early = [n for n in self.nodes if n in still]
        late = [n for n in self.nodes if n not in still]
        kept = [n for n in early if any(u not in still for u in n.users)]
        self._setup = _function(gm, "setup", placeholders, early, kept)
        self._tick = _function(gm, "tick", [*placeholders, *kept], late, None)
        self._kept: list[Tensor] | None = None

    def refresh(self) -> None:
        """Forget what was computed ahead: a lane has changed."""
        self._kept = None

    def __call__(self, *inputs: Tensor) -> Any:
        if self._kept is None:
            self._kept = self._setup(*inputs)
        return self._tick(*inputs, *self._kept)


_NORMS = {_aten.native_batch_norm.default, _aten.cudnn_batch_norm.default, _aten.miopen_batch_norm.default}


def _written(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose memory some operation writes to, by whatever view of it."""
    first: dict[fx.Node, fx.Node] = {}  # a node, and the one whose memory it shares; itself if the memory is its own
    targets: list[fx.Node] = []

    def source(node: fx.Node) -> fx.Node:
        while first[node] is not node:
            node = first[node]
        return node

    for node in graph.nodes:
        first[node] = node
        shared, changed = _memory(node)
        for other in shared:
            first[source(other)] = source(node)
        targets += changed
    written = {source(node) for node in targets}
    return {node for node in graph.nodes if source(node) in written}


def _memory(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """(inputs that the result may share memory with, inputs that are written to)."""
    if node.op != "call_function":
        return [], []
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # Python's own, such as taking one of several results
        return list(node.all_input_nodes), []
    shared: list[fx.Node] = []
    written: list[fx.Node] = []
    views = any(r.alias_info is not None for r in schema.returns)
    for i, argument in enumerate(schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        inside = [v for v in (given if isinstance(given, list | tuple) else [given]) if isinstance(v, fx.Node)]
        if argument.alias_info is not None:
            shared += inside if views else []
            written += inside if argument.alias_info.is_write else []
        elif node.target in _NORMS and i in (3, 4):  # they follow the statistics in place, and do not say so
            written += inside
    return shared, written


def unchanging(graph: fx.Graph, fixed: set[fx.Node]) -> set[fx.Node]:
    """Nodes that depend on nothing but constants and fixed placeholders, and that no operation writes to."""
    written = _written(graph)
    still = set(fixed)
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op == "call_function" and node not in written and all(a in still for a in node.all_input_nodes)
        ):
            still.add(node)
    return still - fixed


# The same kernels by their Python bindings, which cost half as much to call as an operator of ``torch.ops``.
_BINDINGS: dict[Any, Callable[..., Any]] = {
    _aten.bmm.default: torch.bmm,
    _aten.baddbmm.default: torch.baddbmm,
    _aten.mul.Tensor: torch.mul,
    _aten.add.Tensor: torch.add,
    _aten.sub.Tensor: torch.sub,
    _aten.div.Tensor: torch.div,
    _aten.neg.default: torch.neg,
    _aten.view.default: Tensor.view,
    _aten.reshape.default: Tensor.reshape,
    _aten.expand.default: Tensor.expand,
    _aten.transpose.int: torch.transpose,
    _aten.permute.default: torch.permute,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.squeeze.dims: torch.squeeze,
    _aten.sum.dim_IntList: torch.sum,
    _aten.index_select.default: torch.index_select,
    _aten._log_softmax.default: torch._log_softmax,
    _aten._log_softmax_backward_data.default: torch._log_softmax_backward_data,
    _aten.bitwise_xor.Tensor: torch.bitwise_xor,
    _aten.__rshift__.Scalar: torch.bitwise_right_shift,
    _aten.ge.Tensor: torch.ge,
    _aten.eq.Tensor: torch.eq,
    _aten.where.self: torch.where,
}


def _function(
    gm: fx.GraphModule, name: str, inputs: list[fx.Node], nodes: list[fx.Node], outputs: list[fx.Node] | None
) -> Callable[..., Any]:
    """Write nodes as one Python function; a value is dropped after its last use, so that its memory serves the next."""
    names = {n: f"v{i}" for i, n in enumerate(dict.fromkeys([*inputs, *nodes]))}
    space: dict[str, Any] = {}
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for a in node.all_input_nodes:
            last[a] = node
    kept = set(outputs or ())
    lines = [f"def {name}({', '.join(names[n] for n in inputs)}):"]

    def write(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, tuple | list):
            inner = ", ".join(write(v) for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
        if value is None or isinstance(value, bool | int | str):
            return repr(value)
        constant = f"c{len(space)}"
        space[constant] = value
        return constant

    for node in nodes:
        if node.op == "output":
            lines.append(f"    return {write(node.args[0])}")
            continue
        if node.op == "get_attr":
            space[f"a{names[node]}"] = attribute(gm, str(node.target))
            lines.append(f"    {names[node]} = a{names[node]}")
            continue
        f = f"f{names[node]}"
        space[f] = _BINDINGS.get(node.target, node.target)
        arguments = [*(write(a) for a in node.args), *(f"{k}={write(v)}" for k, v in node.kwargs.items())]
        lines.append(f"    {names[node]} = {f}({', '.join(arguments)})")
        dead = [
            names[a] for a in node.all_input_nodes if last.get(a) is node and a not in kept and a.op != "placeholder"
        ]
        if dead:
            lines.append(f"    {' = '.join(dead)} = None")
    if outputs is not None:
        lines.append(f"    return [{', '.join(names[n] for n in outputs)}]")
    exec(compile("\n".join(lines), f"<shoal {name}>", "exec"), space)
    return space[name]  # type: ignore[no-any-return]


def attribute(gm: fx.GraphModule, target: str) -> Any:
    """What a ``get_attr`` node of a graph reads."""
    value: Any = gm
    for part in target.split("."):
        value = getattr(value, part)
    return value
