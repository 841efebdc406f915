"""Known criteria as sums over samples, so that a batch can be split into micro-batches without changing its gradient.

A mean-reduced criterion is ``sum_i numerator_i / sum_i denominator_i``. The denominators need only the targets, so they are known
before the forward pass: each slot of a micro-batch carries the weight ``1 / sum_i denominator_i`` of its whole batch, and gradients
of micro-batches simply add up (means of halves would be wrong with class weights or ``ignore_index``).

Glossary: ``n`` samples; ``q`` samples in a micro-batch; ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.keys import module_key
from shoal.lanes.crossentropy import class_loss
from shoal.metrics import Scale
from shoal.recipe import Recipe

_ELEMENTWISE: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.MSELoss: lambda c, out, y: F.mse_loss(out, y, reduction="none"),
    nn.L1Loss: lambda c, out, y: F.l1_loss(out, y, reduction="none"),
    nn.SmoothL1Loss: lambda c, out, y: F.smooth_l1_loss(out, y, reduction="none", beta=c.beta),
    nn.HuberLoss: lambda c, out, y: F.huber_loss(out, y, reduction="none", delta=c.delta),
    nn.BCELoss: lambda c, out, y: F.binary_cross_entropy(out, y, reduction="none"),
    nn.BCEWithLogitsLoss: lambda c, out, y: F.binary_cross_entropy_with_logits(out, y, reduction="none"),
}
_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)


def is_known(criterion: object) -> bool:
    """Whether the criterion is a sum over samples that this module can take apart."""
    if not isinstance(criterion, nn.Module) or criterion._forward_hooks or "forward" in vars(criterion):
        return False
    if getattr(criterion, "reduction", None) not in ("mean", "sum"):
        return False
    if type(criterion) in _CLASS:
        return True
    if type(criterion) not in _ELEMENTWISE:
        return False
    return getattr(criterion, "weight", None) is None and getattr(criterion, "pos_weight", None) is None


def scale_of(recipe: Recipe) -> Scale:
    """What the outputs that metrics see are: ``BCELoss`` is the one criterion that wants probabilities."""
    return "probabilities" if type(recipe.loss) is nn.BCELoss and recipe.predict is None else "logits"


def criterion_key(criterion: nn.Module) -> object:
    """The structural key of a known criterion, blind to what ``criterion_values`` lifts."""
    skip = ("label_smoothing",) if type(criterion) is nn.CrossEntropyLoss else ()
    return module_key(criterion, skip=skip)


def criterion_values(criterion: Any) -> dict[str, Tensor]:
    """Numbers of a known criterion that may differ between lanes."""
    out: dict[str, Tensor] = {}
    if type(criterion) in _CLASS and criterion.weight is not None:
        out["loss.weight"] = criterion.weight.detach()
    if type(criterion) is nn.CrossEntropyLoss and criterion.label_smoothing > 0.0:
        out["loss.label_smoothing"] = torch.tensor(criterion.label_smoothing, dtype=torch.float64)
    return out


def numerators(criterion: Any, out: Tensor, target: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Per sample: out (q, ...), target (q, ...) -> (q,).

    Raises:
        ValueError: If an element-wise criterion gets outputs and targets of different shapes. torch would broadcast, with a
            warning, and hide the mistake: (q, 1) against (q,) becomes (q, q).
    """
    if type(criterion) in _CLASS:
        return _class_numerators(criterion, out, target, values)
    if out.shape != target.shape:
        raise ValueError(
            f"{type(criterion).__name__} got outputs of shape {tuple(out.shape)} and targets of shape "
            f"{tuple(target.shape)}; they must be equal (squeeze the output or unsqueeze the target)."
        )
    losses: Tensor = _ELEMENTWISE[type(criterion)](criterion, out, target)
    return losses.flatten(1).sum(1) if losses.dim() > 1 else losses


def _class_numerators(criterion: Any, out: Tensor, target: Tensor, values: dict[str, Tensor]) -> Tensor:
    if type(criterion) is nn.CrossEntropyLoss and out.dim() == 2 and not target.is_floating_point():
        smoothing = values.get("loss.label_smoothing")
        return class_loss(out, target, values.get("loss.weight"), smoothing, criterion.ignore_index)
    # Classes first, (C, q, ...): along a short last axis, torch's softmax kernels are 15 times slower on a CPU.
    scores = out.movedim(1, 0).contiguous()
    log_p = torch.log_softmax(scores, 0) if type(criterion) is nn.CrossEntropyLoss else scores
    classes = log_p.shape[0]
    shape = (classes,) + (1,) * (log_p.dim() - 1)
    weight, smoothing = values.get("loss.weight"), values.get("loss.label_smoothing")
    weighted = log_p if weight is None else log_p * weight.view(shape)
    if target.is_floating_point():  # class probabilities, (q, C, ...)
        p = target.movedim(1, 0)
        p = p if smoothing is None else p * (1.0 - smoothing) + smoothing / classes
        return _per_sample(-(weighted * p).sum(0))
    hot = target.unsqueeze(0) == torch.arange(classes, device=out.device).view(
        shape
    )  # an ignored target matches no class
    if 0 <= criterion.ignore_index < classes:
        hot = hot & (target != criterion.ignore_index)
    # Chosen, not multiplied: a class that is impossible (log p = -inf) must not make 0 x inf of a sample it is not the class of.
    loss = -torch.where(hot, weighted, 0.0).sum(0)
    if smoothing is not None:
        spread = torch.where(hot.any(0), -weighted.sum(0), 0.0)
        loss = (1.0 - smoothing) * loss + (smoothing / classes) * spread
    return _per_sample(loss)


def _per_sample(loss: Tensor) -> Tensor:
    return loss.flatten(1).sum(1) if loss.dim() > 1 else loss


def denominators(criterion: Any, target: Tensor) -> Tensor:
    """Per sample, from the targets alone: target (n, ...) -> (n,) float64, zero for an ignored sample."""
    n = target.shape[0]
    if criterion.reduction == "sum":
        return torch.zeros(n, dtype=torch.float64)  # a sum has no denominator
    if type(criterion) in _CLASS and not target.is_floating_point():
        kept = (target != criterion.ignore_index).cpu()
        per = kept.to(torch.float64)
        if criterion.weight is not None:
            # Where an ignored target stands, any class will do: its weight is multiplied by zero.
            per = criterion.weight.double().cpu()[torch.where(kept, target.cpu(), 0)] * kept
        total: Tensor = per.reshape(n, -1).sum(1)
        return total
    if type(criterion) in _CLASS:  # probabilities (n, C, ...): one per position
        return torch.full((n,), float(target[0, 0].numel()), dtype=torch.float64)
    return torch.full((n,), float(target[0].numel()), dtype=torch.float64)
