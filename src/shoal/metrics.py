"""Metrics over lanes: scikit-learn's values, computed for all trials of a fleet at once.

Glossary: ``outputs`` is ``(lanes, n, ...)``, one model output per trial and sample; ``targets`` is ``(n, ...)``, the
same for all lanes; ``C`` is the number of classes. Counts are kept per class and not as confusion matrices, so memory
grows with ``lanes * C`` and not with ``lanes * C * C``.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from shoal.errors import UsageError, did_you_mean
from shoal.records import Direction

IGNORE_INDEX = -100
_TOP_K = re.compile(r"top_([1-9]\d*)_accuracy")

Compute: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number per lane. ``compute`` maps outputs (lanes, n, ...) and targets (n, ...) to (lanes,) float64."""

    name: str
    direction: Direction
    compute: Compute


def resolve(
    metric: str | Callable[[Tensor, Tensor], float | Tensor] | None,
    *,
    targets: Tensor | None,
    direction: Direction | None = None,
) -> Metric | None:
    """The metric that the user meant.

    Classification metrics take logits, ``(n, C)`` by argmax, or ``(n,)`` and ``(n, 1)`` by their sign; outputs may have
    more dimensions after the classes, as in ``CrossEntropyLoss``, and targets of -100 are left out. precision, recall
    and f1 are averaged over the classes that occur in targets or predictions (macro), with 0 where a quotient is 0/0,
    as in scikit-learn with ``zero_division=0``; ``_micro`` and ``_weighted`` choose the other averages. A lane with NaN
    among its outputs is given NaN; it does not touch the others.

    Args:
        metric: a name; a callable on one trial's outputs (n, ...) and targets (n, ...) that returns a number; or None:
            "accuracy" if the targets are 1-D integers, otherwise "loss".
        targets: what the metric will be computed on, or None if the data has no target.
        direction: overrides a name's own direction; a callable has none and needs it.

    Returns:
        The metric, or None for "loss": the engine measures the validation loss itself, with the recipe's own criterion.

    Raises:
        UsageError: the name is unknown, the targets do not suit the metric, or a callable came without a direction.
            The metric's ``compute`` raises it too, when the outputs do not suit.

    Example:
        >>> accuracy = resolve("accuracy", targets=torch.tensor([0, 1]))
        >>> accuracy.direction, accuracy.compute(torch.eye(2).expand(3, 2, 2), torch.tensor([0, 1])).tolist()
        ('maximize', [1.0, 1.0, 1.0])
    """
    if direction not in (None, "minimize", "maximize"):
        raise UsageError(f"direction must be 'minimize' or 'maximize'; got {direction!r}.")
    if metric is None:
        metric = "accuracy" if _is_classes(targets) else "loss"
    if isinstance(metric, str):
        return None if metric == "loss" else _named(metric, targets, direction)
    if not callable(metric):
        raise UsageError(f"metric must be a name or a callable (outputs, targets) -> number; got {metric!r}.")
    name = getattr(metric, "__name__", type(metric).__name__)
    name = "metric" if name == "<lambda>" else name
    if direction is None:
        raise UsageError(f"metric {name!r} is a callable, so say what is better: direction='minimize' or 'maximize'.")
    return Metric(name, direction, partial(_each_lane, name, metric))


def standard_metrics(targets: Tensor | None) -> tuple[Metric, ...]:
    """What is recorded beside the chosen metric.

    Args:
        targets: as for ``resolve``.

    Returns:
        accuracy and f1 for 1-D integer targets; mae, rmse and r2 for floating targets; nothing for others or for None.
        Their ``compute`` raises ``UsageError`` if the model's outputs do not suit, as with a criterion of one's own.
    """
    names: tuple[str, ...] = ()
    if _is_classes(targets):
        names = ("accuracy", "f1")
    elif targets is not None and targets.is_floating_point():
        names = ("mae", "rmse", "r2")
    return tuple(_named(name, targets, None) for name in names)


def _is_classes(targets: Tensor | None) -> bool:
    return targets is not None and targets.ndim == 1 and _is_whole(targets)


def _is_whole(targets: Tensor) -> bool:
    return not (targets.is_floating_point() or targets.is_complex())


def _named(name: str, targets: Tensor | None, direction: Direction | None) -> Metric:
    top_k = _TOP_K.fullmatch(name)
    if top_k is None and name not in _CLASSIFICATION and name not in _REGRESSION:
        known = ["loss", "top_5_accuracy", *_CLASSIFICATION, *_REGRESSION]
        raise UsageError(f"Unknown metric {name!r}.{did_you_mean(name, known)}")
    if targets is None:
        raise UsageError(
            f"metric {name!r} compares outputs with targets, but the data has none (one tensor only). "
            "Pass (inputs, targets), or metric='loss', or a callable."
        )
    if name in _REGRESSION:
        own, measure = _REGRESSION[name]
        if targets.is_complex():
            raise UsageError(f"metric {name!r} needs real targets; got {targets.dtype}.")
        return Metric(name, direction or own, partial(_regression, name, measure))
    _check_labels(name, targets)
    compute: Compute
    if top_k:
        compute = partial(_top_k_accuracy, name, int(top_k[1]))
    else:
        compute = partial(_classification, name, _CLASSIFICATION[name])
    return Metric(name, direction or "maximize", compute)


def _each_lane(
    name: str, metric: Callable[[Tensor, Tensor], float | Tensor], outputs: Tensor, targets: Tensor
) -> Tensor:
    values: list[float] = []
    for lane in outputs:  # a user's callable sees plain tensors, so here lanes go one by one
        try:
            value = metric(lane, targets)
        except Exception:
            # scikit-learn refuses NaN; one diverged trial must not end the others.
            if bool(torch.isfinite(lane).all()):
                raise
            value = math.nan
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if not isinstance(value, numbers.Real):
            raise UsageError(f"metric {name!r} must return one number per call; got {value!r:.80}.")
        values.append(float(value))
    return torch.tensor(values, dtype=torch.float64, device=outputs.device)


# --- classification ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Counts:
    """Per lane and class, float64: true positives, predictions, and true members (the same in every lane)."""

    hits: Tensor  # (lanes, C)
    predicted: Tensor  # (lanes, C)
    support: Tensor  # (C,)


def _check_labels(name: str, targets: Tensor) -> None:
    if _is_whole(targets):
        return
    # BCEWithLogitsLoss wants its classes as floats: that is classification too, if they are only 0 and 1.
    flat = targets.ndim == 1 or (targets.ndim == 2 and targets.shape[1] == 1)
    if not (flat and targets.is_floating_point() and bool(((targets == 0) | (targets == 1)).all())):
        raise UsageError(
            f"metric {name!r} needs classes as targets: integers, or for binary logits floats (n,) that are all 0 or "
            f"1; got {targets.dtype} of shape {tuple(targets.shape)}. For regression take mae, mse, rmse or r2."
        )


def _labels(name: str, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
    """Outputs as (lanes, m, C) or binary (lanes, m), targets as (m,), and C."""
    _check_labels(name, targets)
    n_lanes, shape = len(outputs), outputs.shape[1:]
    column = (len(targets), 1)
    if shape in (targets.shape, (len(targets),), column) and targets.shape in ((len(targets),), column):
        outputs, n_classes = outputs.reshape(n_lanes, -1), 2
    elif _is_whole(targets) and len(shape) == targets.ndim + 1 and (shape[0], *shape[2:]) == targets.shape:
        n_classes = shape[1]
        outputs = outputs.movedim(2, -1).reshape(n_lanes, -1, n_classes)
    else:
        raise UsageError(
            f"metric {name!r} needs logits (n, C), or binary logits (n,) or (n, 1), for integer targets (n,); got "
            f"outputs {tuple(shape)} for {targets.dtype} targets {tuple(targets.shape)}."
        )
    targets = targets.reshape(-1).to(device=outputs.device, dtype=torch.int64)
    if targets.numel() and int(targets.max()) >= n_classes:
        raise UsageError(
            f"metric {name!r}: targets have class {int(targets.max())}, but the outputs have {n_classes} classes "
            f"(0 to {n_classes - 1})."
        )
    return outputs, targets, n_classes


def _classification(name: str, measure: Callable[[_Counts], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    outputs, targets, n_classes = _labels(name, outputs, targets)
    predictions = outputs.argmax(dim=2) if outputs.ndim == 3 else (outputs > 0).to(torch.int64)  # (lanes, m)
    kept = targets != IGNORE_INDEX  # (m,)
    targets = targets.clamp(min=0)
    weight = kept.to(torch.float64).expand(predictions.shape)  # (lanes, m)
    empty = torch.zeros((len(outputs), n_classes), dtype=torch.float64, device=outputs.device)
    counts = _Counts(
        hits=empty.scatter_add(1, predictions, weight * (predictions == targets)),
        predicted=empty.scatter_add(1, predictions, weight),
        support=empty.new_zeros(n_classes).scatter_add(0, targets, kept.to(torch.float64)),
    )
    return _blame(measure(counts), outputs)


def _blame(values: Tensor, outputs: Tensor) -> Tensor:
    """NaN for a lane that has NaN among its outputs: its argmax means nothing."""
    return values.masked_fill(torch.isnan(outputs).flatten(1).any(dim=1), math.nan)


def _top_k_accuracy(name: str, k: int, outputs: Tensor, targets: Tensor) -> Tensor:
    outputs, targets, n_classes = _labels(name, outputs, targets)
    if outputs.ndim != 3 or k >= n_classes:
        raise UsageError(
            f"metric {name!r} needs more than {k} classes, or it is always 1; the outputs have {n_classes}."
        )
    kept = targets != IGNORE_INDEX
    targets = targets.clamp(min=0)
    at_target = targets[None, :, None].expand(len(outputs), -1, 1)  # (lanes, m, 1)
    score = outputs.gather(2, at_target)  # (lanes, m, 1)
    # Equal logits go to the higher class, as in scikit-learn.
    higher = torch.arange(n_classes, device=outputs.device) > targets[:, None]  # (m, C)
    ahead = ((outputs > score) | ((outputs == score) & higher)).sum(dim=2)  # (lanes, m)
    hits = ((ahead < k) & kept).sum(dim=1, dtype=torch.float64)
    return _blame(hits / kept.sum(), outputs)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 0.0)


def _precision(c: _Counts) -> Tensor:
    return _ratio(c.hits, c.predicted)


def _recall(c: _Counts) -> Tensor:
    return _ratio(c.hits, c.support)


def _f1(c: _Counts) -> Tensor:
    return _ratio(2 * c.hits, c.predicted + c.support)


def _micro(c: _Counts) -> Tensor:
    # With one label per sample, micro-averaged precision, recall and F1 are all the accuracy.
    return c.hits.sum(dim=1) / c.support.sum()


def _macro(score: Callable[[_Counts], Tensor], c: _Counts) -> Tensor:
    present = (c.predicted + c.support) > 0  # (lanes, C)
    return (score(c) * present).sum(dim=1) / present.sum(dim=1)


def _weighted(score: Callable[[_Counts], Tensor], c: _Counts) -> Tensor:
    return (score(c) * c.support).sum(dim=1) / c.support.sum()


_CLASSIFICATION: dict[str, Callable[[_Counts], Tensor]] = {"accuracy": _micro}
for _name, _score in (("precision", _precision), ("recall", _recall), ("f1", _f1)):
    _CLASSIFICATION[_name] = partial(_macro, _score)
    _CLASSIFICATION[f"{_name}_micro"] = _micro
    _CLASSIFICATION[f"{_name}_weighted"] = partial(_weighted, _score)


# --- regression --------------------------------------------------------------------------------------------------


def _regression(name: str, measure: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
    n = len(targets)
    want, came = tuple(targets.shape), tuple(outputs.shape[1:])
    if came != want and not {came, want} <= {(n,), (n, 1)}:
        raise UsageError(
            f"metric {name!r} needs outputs of the targets' shape: targets are {want}, outputs {came}. "
            "For class logits take accuracy or f1."
        )
    truth = targets.to(device=outputs.device, dtype=torch.float64).reshape(n, -1)  # (n, features)
    return measure(outputs.to(torch.float64).reshape(len(outputs), *truth.shape), truth)


def _mae(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean(dim=(1, 2))


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(dim=(1, 2))


def _rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    # The root per feature and then the mean over features, as in scikit-learn.
    return (outputs - targets).square().mean(dim=1).sqrt().mean(dim=1)


def _r2(outputs: Tensor, targets: Tensor) -> Tensor:
    residual = (outputs - targets).square().sum(dim=1)  # (lanes, features)
    total = (targets - targets.mean(dim=0)).square().sum(dim=0)  # (features,)
    # A constant target leaves nothing to explain: 1 for a perfect output and 0 for any other, as in scikit-learn.
    constant = torch.where(residual == 0, 1.0, torch.where(torch.isnan(residual), math.nan, 0.0))
    return torch.where(total > 0, 1 - residual / total, constant).mean(dim=1)


_REGRESSION: dict[str, tuple[Direction, Callable[[Tensor, Tensor], Tensor]]] = {
    "mae": ("minimize", _mae),
    "mse": ("minimize", _mse),
    "rmse": ("minimize", _rmse),
    "r2": ("maximize", _r2),
}
