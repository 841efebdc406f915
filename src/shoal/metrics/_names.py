"""From what the user wrote to a metric: names, callables, and what is measured unasked."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from shoal.errors import UsageError, did_you_mean
from shoal.metrics import _counts, _ranking, _regression
from shoal.metrics._labels import check, is_bits, is_whole
from shoal.metrics._meter import Metric, Whole
from shoal.records import Direction

Own: TypeAlias = Callable[[Tensor, Tensor], float | Tensor]

_TOP_K = re.compile(r"top_([1-9]\d*)_accuracy")
_OF_CLASS = re.compile(r"(precision|recall|f1)_class_(\d+)")
_SCORES: dict[str, _counts.Score] = {"precision": _counts.precision, "recall": _counts.recall, "f1": _counts.f1}

_FROM_COUNTS: dict[str, Callable[[_counts.Counts], Tensor]] = {
    "accuracy": _counts.accuracy,
    "balanced_accuracy": _counts.balanced_accuracy,
    "mcc": _counts.mcc,
    "kappa": _counts.kappa,
}
for _name, _score in _SCORES.items():
    _FROM_COUNTS[_name] = partial(_counts.macro, _score)
    _FROM_COUNTS[f"{_name}_macro"] = partial(_counts.macro, _score)
    _FROM_COUNTS[f"{_name}_micro"] = partial(_counts.micro, _score)
    _FROM_COUNTS[f"{_name}_weighted"] = partial(_counts.weighted, _score)

_RANKED: dict[str, Callable[[Whole], Tensor]] = {
    "auroc": partial(_ranking.ranked, _ranking.auroc, False),
    "auroc_weighted": partial(_ranking.ranked, _ranking.auroc, True),
    "average_precision": partial(_ranking.ranked, _ranking.average_precision, False),
    "average_precision_weighted": partial(_ranking.ranked, _ranking.average_precision, True),
}

_REGRESSION: dict[str, tuple[Direction, Callable[[_regression.Errors], Tensor]]] = {
    "mae": ("minimize", _regression.mae),
    "mse": ("minimize", _regression.mse),
    "rmse": ("minimize", _regression.rmse),
    "r2": ("maximize", _regression.r2),
}

# What others call them. Not accepted, so that a study file has one name for one thing, but pointed at.
_ELSEWHERE = {
    "acc": "accuracy",
    "auc": "auroc",
    "roc_auc": "auroc",
    "ap": "average_precision",
    "pr_auc": "average_precision",
    "matthews_corrcoef": "mcc",
    "cohen_kappa": "kappa",
    "cross_entropy": "log_loss",
    "mean_absolute_error": "mae",
    "mean_squared_error": "mse",
}


def resolve(metric: str | Own | None, *, targets: Tensor | None, direction: Direction | None = None) -> Metric | None:
    """The metric that the user meant.

    Classification metrics take logits ``(n, C)`` by argmax, or ``(n,)`` and ``(n, 1)`` by their sign (after ``BCELoss``, which
    takes probabilities, by one half). Outputs may have more dimensions after the classes, as in ``CrossEntropyLoss``, and
    integer targets of -100 are left out. Outputs and targets of one shape ``(n, L)`` are L labels, of which a sample may have
    several; accuracy is then the share of samples with all labels right. precision, recall and f1 are averaged over the classes
    that occur in targets or predictions (macro), with 0 where a quotient is 0/0, as in scikit-learn with ``zero_division=0``;
    ``_micro`` and ``_weighted`` choose the other averages, ``_class_K`` one class. auroc and average_precision average classes
    against the rest. A lane with NaN among its outputs is given NaN; it does not touch the others.

    Args:
        metric: a name; a callable on one trial's outputs (n, ...) and targets (n, ...) that returns a number; or None:
            "accuracy" if the targets are 1-D integers, otherwise "loss".
        targets: what the metric will be computed on, or None if the data has no target.
        direction: overrides a name's own direction; a callable has none and needs it.

    Returns:
        The metric, or None for "loss": the engine measures the validation loss itself, with the recipe's own criterion.

    Raises:
        UsageError: the name is unknown, the targets do not suit the metric, or a callable came without a direction.
            Measuring raises it too, when the outputs do not suit.

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
    name = _name_of(metric, "metric")
    if direction is None:
        raise UsageError(f"metric {name!r} is a callable, so say what is better: direction='minimize' or 'maximize'.")
    return _own(name, metric, direction)


def further(metrics: Sequence[str | Own], *, targets: Tensor | None) -> tuple[Metric, ...]:
    """Metrics to record beside the one that decides. They need no direction.

    Args:
        metrics: Names and callables; "loss" is always recorded and may be named.
        targets: As for ``resolve``.

    Raises:
        UsageError: If they are not in a list, one of them is unknown or does not suit the targets, or two have one name.
    """
    if isinstance(metrics, str) or not isinstance(metrics, Sequence):
        raise UsageError(
            f"metrics must be a list of names and callables to record, such as ['f1']; got {metrics!r:.80}."
        )
    out: list[Metric] = []
    for metric in metrics:
        if metric == "loss":
            continue
        if isinstance(metric, str):
            found = _named(metric, targets, None)
        else:
            found = _own(_name_of(metric, "each of metrics"), metric, "minimize")
        if any(found.name == other.name for other in out):
            raise UsageError(f"metrics has {found.name!r} twice. Give each callable a name of its own (its __name__).")
        out.append(found)
    return tuple(out)


def standard_metrics(targets: Tensor | None) -> tuple[Metric, ...]:
    """What is recorded beside the chosen metric.

    Args:
        targets: as for ``resolve``.

    Returns:
        accuracy and f1 for 1-D integer targets and for floats ``(n,)`` or ``(n, k)`` that are all 0 or 1; mae, rmse and r2 for
        other floats; nothing for others or for None. They are left out where the model's outputs do not suit.
    """
    names: tuple[str, ...] = ()
    if targets is not None and (_is_classes(targets) or (targets.ndim <= 2 and is_bits(targets))):
        names = ("accuracy", "f1")
    elif targets is not None and targets.is_floating_point():
        names = ("mae", "rmse", "r2")
    return tuple(replace(_named(name, targets, None), asked=False) for name in names)


def _is_classes(targets: Tensor | None) -> bool:
    return targets is not None and targets.ndim == 1 and is_whole(targets)


def _named(name: str, targets: Tensor | None, direction: Direction | None) -> Metric:
    top_k, of_class = _TOP_K.fullmatch(name), _OF_CLASS.fullmatch(name)
    known = ["loss", "log_loss", "top_5_accuracy", "f1_class_1", *_FROM_COUNTS, *_RANKED, *_REGRESSION]
    if not (top_k or of_class or name in known):
        hint = f" Did you mean {_ELSEWHERE[name]!r}?" if name in _ELSEWHERE else did_you_mean(name, known)
        raise UsageError(f"Unknown metric {name!r}.{hint}")
    if targets is None:
        raise UsageError(
            f"metric {name!r} compares outputs with targets, but the data has none (one tensor only). "
            "Pass (inputs, targets), or metric='loss', or a callable."
        )
    if name in _REGRESSION:
        own, score = _REGRESSION[name]
        if targets.is_complex():
            raise UsageError(f"metric {name!r} needs real targets; got {targets.dtype}.")
        return Metric(name, direction or own, _regression.Errors, score)
    check(name, targets)
    better = direction or "maximize"
    if name == "log_loss":
        return Metric(name, direction or "minimize", _ranking.LogLoss, _ranking.LogLoss.value)
    if top_k:
        return Metric(name, better, partial(_counts.TopK, int(top_k[1])), _counts.TopK.value)
    if name in _RANKED:
        return Metric(name, better, Whole, _RANKED[name])
    if of_class:
        one = partial(_counts.of_class, _SCORES[of_class[1]], name, int(of_class[2]))
        return Metric(name, better, _counts.Counts, one)
    return Metric(name, better, _counts.Counts, _FROM_COUNTS[name])


def _name_of(metric: Any, keyword: str) -> str:
    if not callable(metric):
        raise UsageError(f"{keyword} must be a name or a callable (outputs, targets) -> number; got {metric!r}.")
    name = str(getattr(metric, "__name__", type(metric).__name__))
    return "metric" if name == "<lambda>" else name


def _own(name: str, metric: Own, direction: Direction) -> Metric:
    return Metric(name, direction, Whole, partial(_each_lane, name, metric))


def _each_lane(name: str, metric: Own, w: Whole) -> Tensor:
    values: list[float] = []
    for group in w.lanes():
        for lane in group:  # a user's callable sees plain tensors, so here lanes go one by one
            try:
                value = metric(lane, w.targets)
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
    return torch.tensor(values, dtype=torch.float64)
