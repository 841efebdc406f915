"""Tidies a traced graph: removes operations that do nothing, joins pairs that one kernel does, and makes it a plain function.

An eager kernel call costs about 5 microseconds before it does anything; a raw trace of a small network spends a third of its calls
on views that change no shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from shoal.errors import FuseError

_aten = torch.ops.aten
_SAME = {_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default, _aten.reshape.default, _aten.permute.default}


def tidy(gm: fx.GraphModule) -> None:
    """Clean the graph in place. Every rewrite keeps the values; adding a bias inside ``baddbmm`` rounds once less."""
    graph = gm.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source = _no_op_source(node)
        if source is not None:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is _aten.add.Tensor:
            _fuse_bias(graph, node)
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


def check(gm: fx.GraphModule) -> None:
    """Refuse a graph that would not do for every lane what it did for the one that was traced.

    Raises:
        FuseError: If it draws from torch's generator, which no lane owns, or reads a value back to Python.
    """
    for node in gm.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            raise FuseError(f"its forward pass draws random numbers through {node.target}, which has no keyed form")
        if node.target in (_aten._local_scalar_dense.default, _aten.item.default):
            raise FuseError("its forward pass reads a tensor's value into Python (.item(), float(), if tensor)")


def specialise(gm: fx.GraphModule, runs: Callable[[str], Any], kind_names: dict[fx.Node, str]) -> None:
    """Point lane activations at the fleet's own table of runs, so that no tick asks a tensor for its values."""
    from shoal.lanes.activations import apply_runs, apply_runs_backward

    def forward(x: Tensor, name: str) -> Tensor:
        return apply_runs(x, runs(name))

    def backward(grad: Tensor, x: Tensor, name: str) -> Tensor:
        return apply_runs_backward(grad, x, runs(name))

    for node in list(gm.graph.nodes):
        if node.target is torch.ops.shoal.lane_activation.default:
            node.args = (node.args[0], kind_names[node.args[1]])
            node.target = forward
        elif node.target is torch.ops.shoal.lane_activation_backward.default:
            node.args = (*node.args[:2], kind_names[node.args[2]])
            node.target = backward


def flat_function(gm: fx.GraphModule) -> Callable[..., Any]:
    """The graph as a plain Python function of positional tensors."""
    gm.graph.set_codegen(fx.graph.CodeGen())
    gm.recompile()
    return gm.forward
