"""Metrics that follow from counts per class: accuracy, precision, recall, F1, MCC, kappa; and accuracy of the top k.

Counts are kept per class and not as confusion matrices, so memory grows with ``lanes * C`` and not with
``lanes * C * C``. Quotients of nothing by nothing are 0, as in scikit-learn with ``zero_division=0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.metrics._labels import has_nan, read
from shoal.metrics._meter import Source

Score = Callable[["Counts"], Tensor]


class Counts:
    """Per lane and class (or label), in float64: true positives, predictions, true members; and whole matches.

    ``hits`` and ``predicted`` are (lanes, C), ``support`` (C,) and ``n`` () the same in every lane; ``right`` (lanes,) are places
    that are wholly right, all labels of them.
    """

    def __init__(self, source: Source) -> None:
        self.name, self._cut = source.name, 0.0 if source.scale == "logits" else 0.5
        self.labels = False  # whether a place may have several
        self.hits = self.predicted = self.support = self.right = self.n = torch.zeros((), dtype=torch.float64)
        self._bad = torch.zeros((), dtype=torch.bool)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        found = read(self.name, outputs, targets)
        self.labels = found.kind == "labels"
        scores, truth, kept = found.scores, found.truth, found.kept
        zeros = torch.zeros((len(outputs), found.n_classes), dtype=torch.float64, device=outputs.device)
        if self.labels:
            guess, told = scores > self._cut, truth.bool()  # (lanes, m, L), (m, L)
            hits, predicted = (guess & told).sum(1).double(), guess.sum(1).double()
            support, right = told.sum(0).double(), (guess == told).all(2).sum(1).double()
        else:
            # Not argmax, which is slow on a short last axis, and five times as slow where it is not the fastest in memory.
            choice = (
                scores.max(2).indices if found.kind == "classes" else (scores > self._cut).to(torch.int64)
            )  # (lanes, m)
            known = truth.clamp(min=0)
            weight = kept.to(torch.float64).expand(choice.shape)  # (lanes, m)
            hits = zeros.scatter_add(1, choice, weight * (choice == known))
            predicted = zeros.scatter_add(1, choice, weight)
            support = zeros.new_zeros(found.n_classes).scatter_add(0, known, kept.to(torch.float64))
            right = hits.sum(1)
        self.hits, self.predicted, self.support = self.hits + hits, self.predicted + predicted, self.support + support
        self.right, self.n = self.right + right, self.n + kept.sum().double()
        self._bad = self._bad | has_nan(outputs)

    def blame(self, values: Tensor) -> Tensor:
        """NaN for lanes whose outputs have NaN."""
        return values.masked_fill(self._bad, math.nan)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 0.0)


def precision(c: Counts) -> Tensor:
    return _ratio(c.hits, c.predicted)


def recall(c: Counts) -> Tensor:
    return _ratio(c.hits, c.support)


def f1(c: Counts) -> Tensor:
    return _ratio(2 * c.hits, c.predicted + c.support)


def accuracy(c: Counts) -> Tensor:
    """Places that are wholly right."""
    return c.blame(c.right / c.n)


def micro(score: Score, c: Counts) -> Tensor:
    """The score of all classes counted as one. With one label per place that is the accuracy."""
    total = Counts.__new__(Counts)
    total.hits, total.predicted = c.hits.sum(1, keepdim=True), c.predicted.sum(1, keepdim=True)
    total.support = c.support.sum(0, keepdim=True)
    return c.blame(score(total)[:, 0])


def macro(score: Score, c: Counts) -> Tensor:
    """The mean over the classes that occur among targets or predictions; over all labels."""
    present = (c.predicted + c.support) > 0 if not c.labels else torch.ones_like(c.predicted, dtype=torch.bool)
    return c.blame((score(c) * present).sum(1) / present.sum(1))


def weighted(score: Score, c: Counts) -> Tensor:
    """The mean over classes, each weighing as many places as it has."""
    return c.blame(_ratio((score(c) * c.support).sum(1), c.support.sum()))


def of_class(score: Score, name: str, index: int, c: Counts) -> Tensor:
    """The score of one class.

    Raises:
        UsageError: If there is no such class.
    """
    scores = score(c)
    if index >= scores.shape[1]:
        raise UsageError(
            f"metric {name!r}: there is no class {index}; the outputs have {scores.shape[1]} classes "
            f"(0 to {scores.shape[1] - 1})."
        )
    return c.blame(scores[:, index])


def _one_class_each(name: str, c: Counts) -> None:
    if c.labels:
        raise UsageError(
            f"metric {name!r} needs one class per sample; these targets have several labels. Take f1, auroc or "
            "average_precision."
        )


def balanced_accuracy(c: Counts) -> Tensor:
    """The mean recall of the classes that the targets have."""
    _one_class_each("balanced_accuracy", c)
    return c.blame(recall(c).sum(1) / (c.support > 0).sum())


def mcc(c: Counts) -> Tensor:
    """Matthews' correlation of predictions and targets (Gorodkin 2004, eq. 8); 0 where either never varies."""
    _one_class_each("mcc", c)
    both = c.right * c.n - (c.predicted * c.support).sum(1)
    spread = (c.n**2 - c.predicted.square().sum(1)) * (c.n**2 - c.support.square().sum())
    return c.blame(torch.where(spread > 0, both / spread.clamp(min=1).sqrt(), 0.0))


def kappa(c: Counts) -> Tensor:
    """Cohen's kappa: agreement beyond chance (Cohen 1960). 0 where chance alone agrees fully, which scikit-learn leaves NaN."""
    _one_class_each("kappa", c)
    chance = (c.predicted * c.support).sum(1) / c.n
    room = c.n - chance
    return c.blame(torch.where(room > 0, (c.right - chance) / room.clamp(min=1e-300), 0.0))


class TopK:
    """How often the true class is among the k best; equal logits go to the higher class, as in scikit-learn."""

    def __init__(self, k: int, source: Source) -> None:
        self.name, self._k = source.name, k
        self._hits: Tensor | float = 0.0
        self._bad: Tensor | bool = False
        self._n = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        found = read(self.name, outputs, targets)
        if found.kind != "classes" or self._k >= found.n_classes:
            raise UsageError(
                f"metric {self.name!r} needs more than {self._k} classes, or it is always 1; the outputs have "
                f"{found.n_classes}."
            )
        scores, truth = found.scores, found.truth.clamp(min=0)
        score = scores.gather(2, truth[None, :, None].expand(len(outputs), -1, 1))  # (lanes, m, 1)
        higher = torch.arange(found.n_classes, device=outputs.device) > truth[:, None]  # (m, C)
        ahead = ((scores > score) | ((scores == score) & higher)).sum(2)  # (lanes, m)
        self._hits = self._hits + ((ahead < self._k) & found.kept).sum(1).double()
        self._n += int(found.kept.sum())
        self._bad = has_nan(outputs) | self._bad

    def value(self) -> Tensor:
        """(lanes,)."""
        assert isinstance(self._hits, Tensor) and isinstance(self._bad, Tensor)
        return (self._hits / self._n).masked_fill(self._bad, math.nan)
