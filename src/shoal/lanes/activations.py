"""Element-wise activations as a lane hyperparameter: one operator that applies to each lane the function it asked for.

Glossary: ``kind`` an index into the process-wide table of activations, one int64 per lane, (lanes,); ``x`` (lanes, ...).

The operator is opaque to tracing, so a graph does not depend on which activations its lanes use. On a CPU it runs each stretch
of neighbouring lanes with the same kind through torch's own kernel (a fleet keeps such lanes together); a fleet in which all
lanes agree pays for nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.lanes.batching import lanes_first

Forward = Callable[..., Tensor]
Backward = Callable[..., Tensor]
_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Activation:
    """An element-wise function y: ``forward(x, *args)``, and its gradient ``backward(grad, x, y, *args)``.

    Where the gradient follows from y alone, x is not looked at: tanh is the dearest kernel in a small network.
    """

    name: str
    forward: Forward
    backward: Backward
    args: tuple[float | str | bool, ...]


def _elu_grad(g: Tensor, x: Tensor, y: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    out: Tensor = _aten.elu_backward.default(g, alpha, scale, input_scale, False, x)
    return out


def _celu_grad(g: Tensor, x: Tensor, y: Tensor, alpha: float, scale: float, input_scale: float) -> Tensor:
    # torch's own derivative rounds alpha to float32 here, whatever the dtype: a lane does as the trial alone would.
    out: Tensor = _aten.elu_backward.default(g, alpha, scale, 1.0 / float(np.float32(alpha)), False, x)
    return out


_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)

# class -> (attributes that make up its arguments, forward, backward). Only classes whose forward is exactly this call.
_CLASSES: dict[type[nn.Module], tuple[Callable[[Any], tuple[Any, ...]], Forward, Backward]] = {
    nn.Identity: (lambda m: (), lambda x: x.clone(), lambda g, x, y: g.clone()),
    nn.ReLU: (lambda m: (), torch.relu, lambda g, x, y: _aten.threshold_backward.default(g, y, 0)),
    nn.ReLU6: (
        lambda m: (),
        lambda x: _aten.hardtanh(x, 0, 6),
        lambda g, x, y: _aten.hardtanh_backward.default(g, x, 0, 6),
    ),
    nn.Hardtanh: (
        lambda m: (m.min_val, m.max_val),
        _aten.hardtanh,
        lambda g, x, y, low, high: _aten.hardtanh_backward.default(g, x, low, high),
    ),
    nn.LeakyReLU: (
        lambda m: (m.negative_slope,),
        _aten.leaky_relu,
        lambda g, x, y, slope: _aten.leaky_relu_backward.default(g, x, slope, False),
    ),
    nn.ELU: (lambda m: (m.alpha, 1.0, 1.0), _aten.elu, _elu_grad),
    nn.CELU: (lambda m: (m.alpha, 1.0, 1.0 / m.alpha), _aten.elu, _celu_grad),
    nn.SELU: (lambda m: _SELU, _aten.elu, _elu_grad),
    nn.GELU: (
        lambda m: (m.approximate,),
        lambda x, approximate: _aten.gelu(x, approximate=approximate),
        lambda g, x, y, approximate: _aten.gelu_backward.default(g, x, approximate=approximate),
    ),
    nn.SiLU: (lambda m: (), _aten.silu, lambda g, x, y: _aten.silu_backward.default(g, x)),
    nn.Mish: (lambda m: (), _aten.mish, lambda g, x, y: _aten.mish_backward.default(g, x)),
    nn.Tanh: (lambda m: (), torch.tanh, lambda g, x, y: _aten.tanh_backward.default(g, y)),
    nn.Sigmoid: (lambda m: (), torch.sigmoid, lambda g, x, y: _aten.sigmoid_backward.default(g, y)),
    nn.Softplus: (
        lambda m: (m.beta, m.threshold),
        _aten.softplus,
        lambda g, x, y, beta, threshold: _aten.softplus_backward.default(g, x, beta, threshold),
    ),
    nn.Hardswish: (lambda m: (), _aten.hardswish, lambda g, x, y: _aten.hardswish_backward.default(g, x)),
    nn.Hardsigmoid: (lambda m: (), _aten.hardsigmoid, lambda g, x, y: _aten.hardsigmoid_backward.default(g, x)),
    nn.Softsign: (lambda m: (), lambda x: x / (1 + x.abs()), lambda g, x, y: g / (1 + x.abs()).square()),
    nn.Tanhshrink: (lambda m: (), lambda x: x - torch.tanh(x), lambda g, x, y: g * (x - y).square()),
    nn.LogSigmoid: (lambda m: (), F.logsigmoid, lambda g, x, y: g * torch.sigmoid(-x)),
}

# Process-wide and append-only: an index never changes its meaning, so graphs and lanes may keep it.
TABLE: list[Activation] = []
_INDEX: dict[tuple[type[nn.Module], tuple[Any, ...]], int] = {}


def kind_of(module: nn.Module) -> int | None:
    """The table index of an activation module, or None when it is not one that can vary between lanes.

    In-place activations change a tensor that others may still read, and hooks are code of their own: neither is swapped.
    """
    cls = type(module)
    if cls not in _CLASSES or getattr(module, "inplace", False) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if module._backward_hooks or module._backward_pre_hooks or "forward" in vars(module):
        return None
    arguments, forward, backward = _CLASSES[cls]
    args = arguments(module)
    key = (cls, args)
    if key not in _INDEX:
        _INDEX[key] = len(TABLE)
        TABLE.append(Activation(cls.__name__, forward, backward, args))
    return _INDEX[key]


class LaneActivation(nn.Module):
    """Stands where an activation module stood in a template; its kind arrives as a lane tensor."""

    kind: Tensor

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.register_buffer("kind", torch.tensor(kind))

    def forward(self, input: Tensor) -> Tensor:
        return activation(input, self.kind)


def runs_of(kinds: Sequence[int]) -> list[tuple[int, int, int]]:
    """``[(kind, first lane, one past the last), ...]`` for stretches of equal neighbours."""
    out, start = [], 0
    for kind, group in itertools.groupby(kinds):
        stop = start + len(list(group))
        out.append((kind, start, stop))
        start = stop
    return out


def apply_runs(x: Tensor, runs: Sequence[tuple[int, int, int]]) -> Tensor:
    """Forward over lanes, run by run: x (lanes, ...) -> (lanes, ...)."""
    if len(runs) == 1:
        a = TABLE[runs[0][0]]
        return a.forward(x, *a.args)
    parts = torch.split(x, [j - i for _, i, j in runs])
    return torch.cat([TABLE[r[0]].forward(part, *TABLE[r[0]].args) for r, part in zip(runs, parts, strict=True)])


def apply_runs_backward(grad: Tensor, x: Tensor, y: Tensor, runs: Sequence[tuple[int, int, int]]) -> Tensor:
    """Gradient over lanes, run by run: grad, x, y (lanes, ...) -> (lanes, ...)."""
    if len(runs) == 1:
        a = TABLE[runs[0][0]]
        return a.backward(grad, x, y, *a.args)
    sizes = [j - i for _, i, j in runs]
    parts = zip(runs, torch.split(grad, sizes), torch.split(x, sizes), torch.split(y, sizes), strict=True)
    return torch.cat([TABLE[r[0]].backward(g, a, b, *TABLE[r[0]].args) for r, g, a, b in parts])


# Operators without an autograd rule of their own (``_Apply`` gives it): ``custom_op`` would add one that ``torch.func`` refuses.
_SCHEMAS = {
    "lane_activation": "(Tensor x, Tensor kind) -> Tensor",
    "lane_activation_backward": "(Tensor grad, Tensor x, Tensor y, Tensor kind) -> Tensor",
    "activation": "(Tensor x, Tensor kind) -> Tensor",
    "activation_backward": "(Tensor grad, Tensor x, Tensor y, Tensor kind) -> Tensor",
}
for _name, _schema in _SCHEMAS.items():
    torch.library.define(f"shoal::{_name}", _schema)


@torch.library.impl("shoal::lane_activation", "CompositeExplicitAutograd")
def _lane_activation(x: Tensor, kind: Tensor) -> Tensor:
    """x (lanes, ...), kind (lanes,) -> (lanes, ...)."""
    return apply_runs(x, runs_of(kind.tolist()))


@torch.library.impl("shoal::lane_activation_backward", "CompositeExplicitAutograd")
def _lane_activation_backward(grad: Tensor, x: Tensor, y: Tensor, kind: Tensor) -> Tensor:
    """grad, x, y (lanes, ...), kind (lanes,) -> (lanes, ...)."""
    return apply_runs_backward(grad, x, y, runs_of(kind.tolist()))


@torch.library.impl("shoal::activation", "CompositeExplicitAutograd")
def _activation(x: Tensor, kind: Tensor) -> Tensor:
    """One lane: x (...), kind () -> (...)."""
    a = TABLE[int(kind)]
    return a.forward(x, *a.args)


@torch.library.impl("shoal::activation_backward", "CompositeExplicitAutograd")
def _activation_backward(grad: Tensor, x: Tensor, y: Tensor, kind: Tensor) -> Tensor:
    """One lane: grad, x, y (...), kind () -> (...)."""
    a = TABLE[int(kind)]
    return a.backward(grad, x, y, *a.args)


for _name in _SCHEMAS:
    torch.library.register_fake(f"shoal::{_name}", lambda *args: torch.empty_like(args[0]))


@torch.library.register_vmap("shoal::activation")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], x: Tensor, kind: Tensor) -> tuple[Tensor, int]:
    lanes = lanes_first(info, in_dims, (x, kind))
    return torch.ops.shoal.lane_activation(*lanes), 0


@torch.library.register_vmap("shoal::activation_backward")  # type: ignore[untyped-decorator]
def _(
    info: Any, in_dims: tuple[int | None, ...], grad: Tensor, x: Tensor, y: Tensor, kind: Tensor
) -> tuple[Tensor, int]:
    lanes = lanes_first(info, in_dims, (grad, x, y, kind))
    return torch.ops.shoal.lane_activation_backward(*lanes), 0


class _Apply(torch.autograd.Function):
    """Ties the two operators together; ``torch.func`` transforms need it as a Function with its context set apart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kind: Tensor) -> Tensor:
        return torch.ops.shoal.activation(x, kind)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        x, kind = inputs
        ctx.save_for_backward(x, output, kind)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, y, kind = ctx.saved_tensors
        return torch.ops.shoal.activation_backward(grad, x, y, kind), None


def activation(x: Tensor, kind: Tensor) -> Tensor:
    """The activation that ``kind`` names, differentiable and vmappable: x (...), kind () -> (...)."""
    return _Apply.apply(x, kind)  # type: ignore[no-any-return, no-untyped-call]
