"""Cross-entropy per sample as one operator with a gradient of its own, so that a fleet may compute it in one pass.

loss_i = (1 - s) w_y (-log p_y) + s / C sum_c w_c (-log p_c), with p = softmax(scores_i); zero for an ignored target
(torch.nn.CrossEntropyLoss with reduction="none"; label smoothing of Szegedy et al. 2016, section 7, as torch states it).

Glossary: ``q`` samples of a micro-batch; ``C`` classes; ``w`` (C,) weights of classes; ``s`` () label smoothing; with lanes as
another first axis outside vmap. log p has classes before samples, (C, q).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shoal.lanes.batching import lanes_first


def loss_of(
    scores: Tensor, target: Tensor, weight: Tensor | None, smoothing: Tensor | None, ignore: int
) -> tuple[Tensor, Tensor]:
    """Loss and log p: scores (..., q, C), target (..., q), weight (..., C), smoothing (...) -> (..., q) and (..., C, q)."""
    # Classes before samples: along a short last axis, torch's softmax kernels are 15 times slower on a CPU.
    log_p = torch.log_softmax(scores.transpose(-1, -2).contiguous(), -2)
    hot, w, s = _parts(log_p, target, weight, smoothing, ignore)
    weighted = log_p if w is None else log_p * w
    # Chosen, not multiplied: a class that is impossible (log p = -inf) must not make 0 x inf of a sample it is not the class of.
    loss = -torch.where(hot, weighted, 0.0).sum(-2)
    if smoothing is not None and s is not None:
        share = smoothing.unsqueeze(-1).to(log_p.dtype)  # (..., 1)
        spread = torch.where(hot.any(-2) & (share > 0), -weighted.sum(-2), 0.0)
        loss = (1.0 - share) * loss + share / log_p.shape[-2] * spread
    return loss, log_p


def gradient_of(
    grad: Tensor, log_p: Tensor, target: Tensor, weight: Tensor | None, smoothing: Tensor | None, ignore: int
) -> Tensor:
    """Grad (..., q), the others as above -> (..., q, C)."""
    hot, w, s = _parts(log_p, target, weight, smoothing, ignore)
    p, classes = log_p.exp(), log_p.shape[-2]
    own = hot.to(p.dtype) if w is None else torch.where(hot, w, 0.0)
    slope = own.sum(-2, keepdim=True) * p - own
    if s is not None:
        even = classes * p - 1.0 if w is None else w.sum(-2, keepdim=True) * p - w
        slope = (1.0 - s) * slope + s / classes * torch.where(hot.any(-2, keepdim=True), even, 0.0)
    return (slope * grad.unsqueeze(-2)).transpose(-1, -2).contiguous()


def _parts(
    log_p: Tensor, target: Tensor, weight: Tensor | None, smoothing: Tensor | None, ignore: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Which class is whose (..., C, q), weights (..., C, 1), smoothing (..., 1, 1)."""
    classes = log_p.shape[-2]
    number = torch.arange(classes, device=log_p.device).unsqueeze(-1)
    hot = target.unsqueeze(-2) == number  # an ignored target matches no class
    if 0 <= ignore < classes:
        hot = hot & (target != ignore).unsqueeze(-2)
    w = None if weight is None else weight.unsqueeze(-1).to(log_p.dtype)
    return hot, w, None if smoothing is None else smoothing[..., None, None].to(log_p.dtype)


_SCHEMAS = {
    "class_loss": "(Tensor scores, Tensor target, Tensor? weight, Tensor? smoothing, int ignore) -> (Tensor, Tensor)",
    "class_loss_backward": (
        "(Tensor grad, Tensor log_p, Tensor target, Tensor? weight, Tensor? smoothing, int ignore) -> Tensor"
    ),
}
for _name, _schema in _SCHEMAS.items():
    for _prefix in ("", "lane_"):
        torch.library.define(f"shoal::{_prefix}{_name}", _schema)
        torch.library.impl(
            f"shoal::{_prefix}{_name}",
            "CompositeExplicitAutograd",
            loss_of if _name == "class_loss" else gradient_of,
        )


def _fake_loss(scores: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(target, dtype=scores.dtype), scores.new_empty(
        (*target.shape[:-1], scores.shape[-1], target.shape[-1])
    )


def _fake_gradient(grad: Tensor, log_p: Tensor, *_: Any) -> Tensor:
    return grad.new_empty((*grad.shape, log_p.shape[-2]))


for _prefix in ("", "lane_"):
    torch.library.register_fake(f"shoal::{_prefix}class_loss", _fake_loss)
    torch.library.register_fake(f"shoal::{_prefix}class_loss_backward", _fake_gradient)


@torch.library.register_vmap("shoal::class_loss")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    return torch.ops.shoal.lane_class_loss(*lanes_first(info, in_dims, arguments)), (0, 0)


@torch.library.register_vmap("shoal::class_loss_backward")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    return torch.ops.shoal.lane_class_loss_backward(*lanes_first(info, in_dims, arguments)), 0


class _Apply(torch.autograd.Function):
    """Ties the two operators together; ``torch.func`` transforms need it as a Function with its context set apart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        scores: Tensor, target: Tensor, weight: Tensor | None, smoothing: Tensor | None, ignore: int
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.shoal.class_loss(scores, target, weight, smoothing, ignore)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, target, weight, smoothing, ignore = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], target, weight, smoothing)
        ctx.ignore = ignore

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.shoal.class_loss_backward(grad, *ctx.saved_tensors, ctx.ignore), None, None, None, None


def class_loss(scores: Tensor, target: Tensor, weight: Tensor | None, smoothing: Tensor | None, ignore: int) -> Tensor:
    """Cross-entropy per sample, differentiable in the scores and vmappable: scores (q, C), target (q,) int64 -> (q,)."""
    loss: Tensor = _Apply.apply(scores, target, weight, smoothing, ignore)[0]  # type: ignore[no-untyped-call]
    return loss
