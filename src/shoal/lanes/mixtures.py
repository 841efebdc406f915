"""A learned mixture of activations as one operator, for compiled epochs: its activations have most of their work in common.

Glossary: ``x`` the input (...); ``K`` activations, their ``weights`` (K,) and ``kinds`` (K,) int64, indices into the table of
``shoal.lanes.activations``; over lanes, all with a first axis more.

Elsewhere a mixture is the sum that its module writes out: each activation is an operator of its own there, run over stretches of
lanes, and what runs it tells apart which of them lanes share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.extend._shapes import LearnedMixture
from shoal.lanes.activations import TABLE, LaneActivation
from shoal.lanes.batching import lanes_first

_whole: list[bool] = [False]


@contextmanager
def as_one() -> Iterator[None]:
    """Mixtures that are traced meanwhile become one operator each."""
    _whole.append(True)
    try:
        yield
    finally:
        _whole.pop()


class LaneMixture(LearnedMixture):
    """Stands where a mixture stood in a template, whose activations are `LaneActivation`."""

    @classmethod
    def stand_in(cls, model: nn.Module) -> None:
        """Let mixtures of a template be such ones, in place."""
        for module in model.modules():
            if type(module) is LearnedMixture and all(isinstance(a, LaneActivation) for a in module.acts):
                module.__class__ = cls

    def forward(self, input: Tensor) -> Tensor:
        if not _whole[-1]:
            return super().forward(input)
        kinds = torch.stack([act.kind for act in self.acts])  # type: ignore[misc]
        out: Tensor = _Apply.apply(input, F.softmax(self.shape(), 0), kinds)[0]  # type: ignore[no-untyped-call]
        return out


def _values(x: Tensor, kinds: Tensor) -> list[Tensor]:
    return [TABLE[k].forward(x, *TABLE[k].args) for k in kinds.tolist()]


def _mixture(x: Tensor, weights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """The sum (...), and what is kept for the way back: of every activation its value, and two more, (K + 2, ...)."""
    parts = _values(x, kinds)
    out = sum((w * y for w, y in zip(weights, parts, strict=True)), torch.zeros_like(x))
    return out, torch.stack([*parts, torch.zeros_like(x), torch.zeros_like(x)])


def _mixture_backward(grad: Tensor, x: Tensor, kept: Tensor, weights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in x (...), and in the weights (K,)."""
    acts = [TABLE[k] for k in kinds.tolist()]
    slopes = [a.backward(grad * w, x, y, *a.args) for a, w, y in zip(acts, weights, kept, strict=False)]
    return sum(slopes, torch.zeros_like(x)), torch.stack([(grad * y).sum() for y in kept[: len(acts)]])


def _over_lanes(f: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def each(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        first, second = zip(*(f(*lane) for lane in zip(*arguments, strict=True)), strict=True)
        return torch.stack(first), torch.stack(second)

    return each


_SCHEMAS: dict[str, tuple[str, Callable[..., tuple[Tensor, Tensor]]]] = {
    "mixture": ("(Tensor x, Tensor weights, Tensor kinds) -> (Tensor, Tensor)", _mixture),
    "mixture_backward": (
        "(Tensor grad, Tensor x, Tensor kept, Tensor weights, Tensor kinds) -> (Tensor, Tensor)",
        _mixture_backward,
    ),
}
for _name, (_schema, _function) in _SCHEMAS.items():
    for _prefix, _made in (("", _function), ("lane_", _over_lanes(_function))):
        torch.library.define(f"shoal::{_prefix}{_name}", _schema)
        torch.library.impl(f"shoal::{_prefix}{_name}", "CompositeExplicitAutograd", _made)


def _fake(x: Tensor, weights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    lanes = weights.shape[:-1]
    return torch.empty_like(x), x.new_empty(*lanes, weights.shape[-1] + 2, *x.shape[len(lanes) :])


def _fake_backward(grad: Tensor, x: Tensor, kept: Tensor, weights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weights)


for _prefix in ("", "lane_"):
    torch.library.register_fake(f"shoal::{_prefix}mixture", _fake)
    torch.library.register_fake(f"shoal::{_prefix}mixture_backward", _fake_backward)


@torch.library.register_vmap("shoal::mixture")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    return torch.ops.shoal.lane_mixture(*lanes_first(info, in_dims, arguments)), (0, 0)


@torch.library.register_vmap("shoal::mixture_backward")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    return torch.ops.shoal.lane_mixture_backward(*lanes_first(info, in_dims, arguments)), (0, 0)


class _Apply(torch.autograd.Function):
    """Ties the two operators together; ``torch.func`` transforms need it as a Function with its context set apart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weights: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.shoal.mixture(x, weights, kinds)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weights, kinds = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1], weights, kinds)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.ops.shoal.mixture_backward(grad, *ctx.saved_tensors), None
