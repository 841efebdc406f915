"""What outputs and targets of a classification are to each other, from their shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shoal.errors import UsageError

IGNORE_INDEX = -100  # torch's own mark for targets that a criterion leaves out

Kind = Literal["classes", "binary", "labels"]


@dataclass(frozen=True, slots=True)
class Labels:
    """Scores and truth of the places that are scored.

    ``classes``: scores (lanes, m, C), truth (m,). ``binary``: (lanes, m), (m,). ``labels``: (lanes, m, L), (m, L). Truth is
    int64; where it is ``IGNORE_INDEX``, ``kept`` (m,) is False.
    """

    kind: Kind
    scores: Tensor
    truth: Tensor
    kept: Tensor
    n_classes: int


def is_whole(targets: Tensor) -> bool:
    """Whether targets are of an integer dtype or bool."""
    return not (targets.is_floating_point() or targets.is_complex())


def is_bits(targets: Tensor) -> bool:
    """Whether real targets are 0 and 1 only: ``BCEWithLogitsLoss`` wants its classes as floats."""
    return targets.is_floating_point() and bool(((targets == 0) | (targets == 1)).all())


def check(name: str, targets: Tensor) -> None:
    """Refuse targets that are no classes.

    Raises:
        UsageError: If they are neither integers nor all 0 or 1.
    """
    if not (is_whole(targets) or is_bits(targets)):
        raise UsageError(
            f"metric {name!r} needs classes as targets: integers, or for binary logits floats that are all 0 or "
            f"1; got {targets.dtype} of shape {tuple(targets.shape)}. For regression take mae, mse, rmse or r2."
        )


def read(name: str, outputs: Tensor, targets: Tensor) -> Labels:
    """Outputs (lanes, n, ...) and targets (n, ...) as scores and truth.

    Raises:
        UsageError: If they do not fit each other.
    """
    check(name, targets)
    shape, n = tuple(outputs.shape[1:]), len(targets)
    flat = {(n,), (n, 1)}
    truth = targets.to(device=outputs.device, dtype=torch.int64)
    if shape in flat and tuple(targets.shape) in flat:
        return _binary(name, outputs.flatten(1), truth.flatten())
    if shape == tuple(targets.shape):  # (n, L, ...): every label by itself
        n_labels = shape[1]
        scores = outputs.movedim(2, -1).reshape(len(outputs), -1, n_labels)
        truth = truth.movedim(1, -1).reshape(-1, n_labels)
        if n_labels == 1:
            return _binary(name, scores.flatten(1), truth.flatten())
        if truth.numel() and (int(truth.max()) > 1 or int(truth.min()) < 0):
            raise UsageError(
                f"metric {name!r}: outputs and targets both have shape {shape}, so every entry is a label of its own and its "
                f"target must be 0 or 1; the targets go from {int(truth.min())} to {int(truth.max())}."
            )
        kept = torch.ones(len(truth), dtype=torch.bool, device=truth.device)
        return Labels("labels", scores, truth, kept, n_labels)
    if is_whole(targets) and len(shape) == targets.ndim + 1 and (shape[0], *shape[2:]) == tuple(targets.shape):
        n_classes = shape[1]
        if n_classes == 1:
            return _binary(name, outputs.flatten(1), truth.flatten())
        _check_range(name, truth, n_classes)
        scores = outputs.movedim(2, -1).reshape(len(outputs), -1, n_classes)
        truth = truth.flatten()
        return Labels("classes", scores, truth, truth != IGNORE_INDEX, n_classes)
    raise UsageError(
        f"metric {name!r} needs logits (n, C), or binary logits (n,) or (n, 1), for integer targets (n,), or outputs of the "
        f"shape of targets that are 0 or 1; got outputs {shape} for {targets.dtype} targets {tuple(targets.shape)}."
    )


def _binary(name: str, scores: Tensor, truth: Tensor) -> Labels:
    _check_range(name, truth, 2)
    return Labels("binary", scores, truth, truth != IGNORE_INDEX, 2)


def _check_range(name: str, truth: Tensor, n_classes: int) -> None:
    if truth.numel() and int(truth.max()) >= n_classes:
        raise UsageError(
            f"metric {name!r}: targets have class {int(truth.max())}, but the outputs have {n_classes} classes "
            f"(0 to {n_classes - 1})."
        )


def has_nan(outputs: Tensor) -> Tensor:
    """(lanes,): the argmax of a lane with NaN means nothing, so its metric is NaN; it does not touch the others."""
    return torch.isnan(outputs).flatten(1).any(dim=1)
