"""Known criteria as sums over samples, so that a batch can be split into micro-batches without changing its gradient.

A mean-reduced criterion is ``sum_i numerator_i / sum_i denominator_i``. The denominators need only the targets, so they are known
before the forward pass: each slot of a micro-batch carries the weight ``1 / sum_i denominator_i`` of its whole batch, and gradients
of micro-batches simply add up (means of halves would be wrong with class weights or ``ignore_index``).

What a criterion has of numbers belongs to its lane: class weights (ones where a recipe has none), label smoothing, and, among the
losses of a difference, which one it is and its beta or delta. A fleet's program computes only what some lane of it makes use of
(``used``), so that a fleet without class weights pays for none.

Glossary: ``n`` samples; ``q`` samples in a micro-batch; ``C`` classes; ``d`` output minus target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.keys import module_key
from shoal.lanes.crossentropy import class_loss
from shoal.metrics import Scale
from shoal.recipe import Recipe

_Elementwise = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]

# Losses of a difference, in the order of their numbers. They may stand side by side in one fleet.
_DISTANCES: tuple[type[nn.Module], ...] = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_ELEMENTWISE: dict[type[nn.Module], _Elementwise] = {
    nn.MSELoss: lambda c, out, y, v: F.mse_loss(out, y, reduction="none"),
    nn.L1Loss: lambda c, out, y, v: F.l1_loss(out, y, reduction="none"),
    nn.SmoothL1Loss: lambda c, out, y, v: F.smooth_l1_loss(out, y, reduction="none", beta=c.beta),
    nn.HuberLoss: lambda c, out, y, v: F.huber_loss(out, y, reduction="none", delta=c.delta),
    nn.BCELoss: lambda c, out, y, v: F.binary_cross_entropy(out, y, _as(v.get("loss.weight"), out), reduction="none"),
    nn.BCEWithLogitsLoss: lambda c, out, y, v: F.binary_cross_entropy_with_logits(
        out, y, _as(v.get("loss.weight"), out), reduction="none", pos_weight=_as(v.get("loss.pos_weight"), out)
    ),
    nn.PoissonNLLLoss: lambda c, out, y, v: F.poisson_nll_loss(
        out, y, log_input=c.log_input, full=c.full, eps=c.eps, reduction="none"
    ),
    nn.KLDivLoss: lambda c, out, y, v: F.kl_div(out, y, reduction="none", log_target=c.log_target),
    nn.SoftMarginLoss: lambda c, out, y, v: F.softplus(-y * out),
    nn.HingeEmbeddingLoss: lambda c, out, y, v: (
        torch.where(y == -1, (c.margin - out).clamp(min=0), 0.0) + torch.where(y == 1, out, 0.0)
    ),
}
_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss)
_BY_SAMPLE = (nn.MultiLabelSoftMarginLoss, nn.MultiMarginLoss)
SMOOTHING = "loss.label_smoothing"
_WEIGHTED = (*_CLASS, nn.BCELoss, nn.BCEWithLogitsLoss, *_BY_SAMPLE)


def is_known(criterion: object) -> bool:
    """Whether the criterion is a sum over samples that this module can take apart."""
    if not isinstance(criterion, nn.Module) or "forward" in vars(criterion):
        return False
    if criterion._forward_hooks or criterion._forward_pre_hooks or criterion._backward_hooks:
        return False
    reductions = ("mean", "sum", "batchmean") if type(criterion) is nn.KLDivLoss else ("mean", "sum")
    if getattr(criterion, "reduction", None) not in reductions:
        return False
    return type(criterion) in _CLASS or type(criterion) in _BY_SAMPLE or type(criterion) in _ELEMENTWISE


def scale_of(recipe: Recipe) -> Scale:
    """What the outputs that metrics see are: ``BCELoss`` is the one criterion that wants probabilities."""
    return "probabilities" if type(recipe.loss) is nn.BCELoss and recipe.predict is None else "logits"


def criterion_key(criterion: Any) -> object:
    """The structural key of a known criterion, blind to what ``criterion_values`` lifts."""
    if type(criterion) in _DISTANCES:
        return ("distance", criterion.reduction)
    if type(criterion) in _CLASS:
        return (type(criterion).__name__, criterion.reduction, criterion.ignore_index)
    return module_key(criterion)  # of weights, their shapes


def criterion_values(criterion: Any) -> dict[str, Tensor]:
    """Numbers of a known criterion that may differ between lanes; class weights that a recipe has not are a single one."""
    out: dict[str, Tensor] = {}
    if type(criterion) in _DISTANCES:
        out["loss.kind"] = torch.tensor(_DISTANCES.index(type(criterion)))
        out["loss.bend"] = torch.tensor(_bend(criterion), dtype=torch.float64)
    for name in ("weight", "pos_weight") if type(criterion) in _WEIGHTED else ():
        weight = getattr(criterion, name, None)
        if weight is not None:
            out[f"loss.{name}"] = weight.detach().double()
        elif name == "weight" and type(criterion) in _CLASS:
            out["loss.weight"] = torch.ones((), dtype=torch.float64)
    if type(criterion) is nn.CrossEntropyLoss:
        out["loss.label_smoothing"] = torch.tensor(criterion.label_smoothing, dtype=torch.float64)
    return out


def _bend(criterion: Any) -> float:
    """Where a loss of a difference turns from a square to a line: beta or delta, or 1 where it does not turn."""
    return float(getattr(criterion, "beta", getattr(criterion, "delta", 1.0)))


def wants_classes(criterion: object) -> bool:
    """Whether a lane's class weights are as many as the outputs have classes, and this recipe does not say how many."""
    return is_known(criterion) and type(criterion) in _CLASS and getattr(criterion, "weight", None) is None


def used(criterion: Any, values: Mapping[str, Tensor]) -> frozenset[str]:
    """What a program must compute for these lanes.

    Args:
        criterion: The template's.
        values: Name -> values of the lanes that train, (lanes, ...); others than the criterion's are not looked at.

    Returns:
        Names of values that some lane makes use of. For losses of a difference nothing while all are the template's own, and
        otherwise "loss.kind K" for every kind K there is.
    """
    own = criterion_values(criterion)
    if type(criterion) in _DISTANCES:
        if all(bool((values[name] == own[name].to(values[name].device)).all()) for name in own):
            return frozenset()
        return frozenset(f"loss.kind {k}" for k in values["loss.kind"].tolist())
    neutral = {"loss.label_smoothing": 0.0, "loss.weight": 1.0}
    return frozenset(
        name for name in own if not (type(criterion) in _CLASS and bool((values[name] == neutral[name]).all()))
    )


def numerators(
    criterion: Any,
    out: Tensor,
    target: Tensor,
    values: Mapping[str, Tensor],
    uses: frozenset[str] | None = None,
    slopes: bool = False,
) -> Tensor:
    """Per sample: out (q, ...), target (q, ...) -> (q,).

    Args:
        criterion: The template's.
        out, target: A micro-batch.
        values: One lane's numbers, from ``criterion_values``.
        uses: Which of them to look at, from ``used``; by default all.
        slopes: Whether the result is to have a gradient in label smoothing as well.

    Raises:
        ValueError: If an element-wise criterion gets outputs and targets of different shapes. torch would broadcast, with a
            warning, and hide the mistake: (q, 1) against (q,) becomes (q, q).
    """
    name = type(criterion).__name__
    kept = values if uses is None else {key: v for key, v in values.items() if key in uses}
    if type(criterion) in _CLASS:
        return _class_numerators(criterion, out, target, kept, slopes)
    if type(criterion) is nn.MultiMarginLoss:
        return _multi_margin(criterion, out, target, kept.get("loss.weight"))
    if out.shape != target.shape:
        raise ValueError(
            f"{name} got outputs of shape {tuple(out.shape)} and targets of shape "
            f"{tuple(target.shape)}; they must be equal (squeeze the output or unsqueeze the target)."
        )
    weight = kept.get("loss.weight")
    if weight is not None and weight.dim() >= out.dim() and weight.shape[0] != 1:
        raise ValueError(
            f"{name} has a weight of shape {tuple(weight.shape)} for outputs of shape {tuple(out.shape)}: one per sample of a "
            "batch, so it means other samples in every batch. Give weights per feature, or use a callable loss."
        )
    if type(criterion) is nn.MultiLabelSoftMarginLoss:
        losses = F.softplus(out) - target * out  # binary cross-entropy of logits
        losses = losses if weight is None else losses * weight.to(out.dtype)
        return _per_sample(losses.mean(-1))
    if uses is not None and type(criterion) in _DISTANCES and uses:
        return _per_sample(_distances(out - target, values, sorted(int(use.split()[-1]) for use in uses)))
    return _per_sample(_ELEMENTWISE[type(criterion)](criterion, out, target, kept))


def _as(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.dtype)


def _distances(d: Tensor, values: Mapping[str, Tensor], kinds: list[int]) -> Tensor:
    """The lane's own loss of a difference, out of the kinds that the fleet has now."""
    size, bend = d.abs(), values["loss.bend"].to(d.dtype)
    # Smooth L1 with beta 0 is L1; a division by it must not reach the gradient of what is not chosen.
    safe = torch.where(bend > 0, bend, 1.0)
    of_kind: tuple[Callable[[], Tensor], ...] = (
        lambda: d * d,
        lambda: size,
        lambda: torch.where(size < bend, 0.5 * d * d / safe, size - 0.5 * bend),
        lambda: torch.where(size < bend, 0.5 * d * d, bend * (size - 0.5 * bend)),
    )
    loss = of_kind[kinds[0]]()
    for kind in kinds[1:]:
        loss = torch.where(values["loss.kind"] == kind, of_kind[kind](), loss)
    return loss


def _multi_margin(criterion: Any, out: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """sum over the other classes j of max(0, margin - out_y + out_j)^p / C, weighted by the true class y."""
    classes = out.shape[1]
    hot = target.unsqueeze(1) == torch.arange(classes, device=out.device)  # (q, C)
    own = torch.where(hot, out, 0.0).sum(1, keepdim=True)
    gap = (criterion.margin - own + out).clamp(min=0)
    gap = gap if criterion.p == 1 else gap * gap
    loss = torch.where(hot, 0.0, gap).sum(1) / classes
    return loss if weight is None else loss * torch.where(hot, weight.to(out.dtype), 0.0).sum(1)


def _class_numerators(
    criterion: Any, out: Tensor, target: Tensor, values: Mapping[str, Tensor], slopes: bool
) -> Tensor:
    if type(criterion) is nn.CrossEntropyLoss and out.dim() == 2 and not target.is_floating_point() and not slopes:
        weight, smoothing = _spread(values.get("loss.weight"), out.shape[1], out), values.get("loss.label_smoothing")
        return class_loss(out, target, weight, smoothing, criterion.ignore_index)
    # Classes first, (C, q, ...): along a short last axis, torch's softmax kernels are 15 times slower on a CPU.
    scores = out.movedim(1, 0).contiguous()
    log_p = torch.log_softmax(scores, 0) if type(criterion) is nn.CrossEntropyLoss else scores
    classes = log_p.shape[0]
    shape = (classes,) + (1,) * (log_p.dim() - 1)
    weight, smoothing = _spread(values.get("loss.weight"), classes, out), values.get("loss.label_smoothing")
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
        counts = hot.any(0) if slopes else hot.any(0) & (smoothing > 0)
        spread = torch.where(counts, -weighted.sum(0), 0.0)
        loss = (1.0 - smoothing) * loss + (smoothing / classes) * spread
    return _per_sample(loss)


def _spread(weight: Tensor | None, classes: int, like: Tensor) -> Tensor | None:
    """Class weights (C,) in the outputs' dtype; a single one stands for all classes."""
    return None if weight is None else weight.to(like.dtype).expand(classes)


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
    return torch.full((n,), float(_positions(criterion, target)), dtype=torch.float64)


def denominator(
    criterion: Any, out: Tensor, target: Tensor, values: Mapping[str, Tensor], uses: frozenset[str] | None = None
) -> Tensor | float:
    """Of a whole batch in a lane, whose targets are not the data's own: what its numerators' sum is divided by, ().

    Args:
        criterion, out, target, values, uses: As for ``numerators``.
    """
    if criterion.reduction == "sum":
        return 1.0
    if type(criterion) not in _CLASS or target.is_floating_point():
        return float(_positions(criterion, target) * target.shape[0])
    kept: Tensor = target != criterion.ignore_index
    weighted = uses is None or "loss.weight" in uses
    weight = _spread(values.get("loss.weight"), out.shape[1], out) if weighted else None
    total: Tensor = (kept if weight is None else weight[torch.where(kept, target, 0)] * kept).sum()
    return total


def _positions(criterion: Any, target: Tensor) -> int:
    """What the targets (n, ...) of a sample count for, where that is the same for all of them."""
    if type(criterion) in _CLASS:  # probabilities (n, C, ...): one per position
        return target[0, 0].numel()
    if type(criterion) is nn.MultiLabelSoftMarginLoss:  # the mean over labels is in the numerator
        return target[0].numel() // target.shape[-1]
    return 1 if criterion.reduction == "batchmean" else target[0].numel()
