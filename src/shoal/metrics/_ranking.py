"""Metrics that look at scores and not only at choices: AUROC, average precision, log loss.

Outputs may be logits or probabilities. With one score per place (or two classes) a rank is all that counts, and it is the same
for both. With more classes, a lane whose rows are no distributions is put through a softmax first, so that scores of different
samples can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.metrics._labels import has_nan, read
from shoal.metrics._meter import Scale, Source, Whole

Rank = Callable[[Tensor, Tensor], Tensor]


def auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under the ROC curve: scores (lanes, m), positive (m,) bool -> (lanes,) float64.

    The share of pairs of a positive and a negative in which the positive has the higher score, ties counting half: the
    statistic of Mann and Whitney, exact with any ties.
    """
    negatives, positives = scores[:, ~positive].sort(1).values, scores[:, positive].contiguous()
    below = torch.searchsorted(negatives, positives) + torch.searchsorted(negatives, positives, right=True)
    return below.double().mean(1) / (2 * negatives.shape[1])


def average_precision(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under precision over recall, as a sum of steps: scores (lanes, m), positive (m,) bool -> (lanes,) float64.

    A step in recall is a positive, so the sum is the mean over positives of the precision at their score.
    """
    ranked, positives = scores.sort(1).values, scores[:, positive].sort(1).values
    at_least = ranked.shape[1] - torch.searchsorted(ranked, positives)  # places scored as high or higher
    hits = positives.shape[1] - torch.searchsorted(positives, positives)
    return (hits.double() / at_least).mean(1)


def ranked(rank: Rank, by_support: bool, w: Whole) -> Tensor:
    """A rank statistic of every class against the rest, averaged: (lanes,) float64.

    Args:
        rank: ``auroc`` or ``average_precision``.
        by_support: Whether classes weigh as many places as they have, or all the same.
        w: All outputs.

    Raises:
        UsageError: If there is nothing to rank: no class has members and non-members.
    """
    return torch.cat([_ranked(rank, by_support, w.name, outputs, w.targets) for outputs in w.lanes()])


def _ranked(rank: Rank, by_support: bool, name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    found = read(name, outputs, targets)
    kept = found.kept.nonzero()[:, 0]
    truth = found.truth[kept]
    scores = found.scores.index_select(1, kept)
    # Half precision has no sort on every device; what is exact in half is exact in float32.
    scores = scores.float() if scores.element_size() < 4 else scores
    total, weight = torch.zeros(len(outputs), dtype=torch.float64, device=outputs.device), 0.0
    for score, positive in _against_the_rest(found.kind, scores, truth, found.n_classes):
        support = int(positive.sum())
        if 0 < support < len(positive):
            share = float(support) if by_support else 1.0
            total, weight = total + share * rank(score, positive), weight + share
    if weight == 0.0:
        raise UsageError(
            f"metric {name!r} needs targets of at least two classes in the split it is measured on; there is one only."
        )
    return (total / weight).masked_fill(has_nan(outputs), math.nan)


def _against_the_rest(kind: str, scores: Tensor, truth: Tensor, n_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (lanes, m) and which places are positive (m,), for each class that counts."""
    if kind == "binary":
        yield scores, truth == 1
    elif kind == "labels":
        for k in range(n_classes):
            yield scores[..., k], truth[:, k] == 1
    elif n_classes == 2:
        yield scores[..., 1].double() - scores[..., 0].double(), truth == 1
    else:
        chances = probabilities(scores)
        for k in range(n_classes):
            yield chances[..., k], truth == k


def probabilities(scores: Tensor) -> Tensor:
    """scores (lanes, m, C) as distributions: a lane whose rows are such already is left as it is."""
    scores = scores.double()
    are = ((scores >= 0).all(2) & ((scores.sum(2) - 1).abs() < 1e-4)).all(1)  # (lanes,)
    return torch.where(are[:, None, None], scores, scores.softmax(2))


class LogLoss:
    """The mean negative log-likelihood of the true class, in natural logarithms."""

    def __init__(self, source: Source) -> None:
        self.name, self._scale = source.name, source.scale
        self._total: Tensor | float = 0.0
        self._n = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        found = read(self.name, outputs, targets)
        if found.kind == "labels":
            raise UsageError(
                f"metric {self.name!r} needs one class per sample; these targets have several labels. Take 'loss'."
            )
        kept = found.kept.nonzero()[:, 0]
        truth, scores = found.truth[kept], found.scores.index_select(1, kept)
        if found.kind == "binary":
            losses = _binary_losses(scores, truth, self._scale)
        else:
            at = truth[None, :, None].expand(len(scores), -1, 1)
            tiny = torch.finfo(scores.dtype).eps if scores.is_floating_point() else 1e-16
            raw = scores.double()
            are = ((raw >= 0).all(2) & ((raw.sum(2) - 1).abs() < 1e-4)).all(1)
            losses = -torch.where(
                are[:, None],
                raw.gather(2, at)[..., 0].clamp(tiny, 1 - tiny).log(),
                raw.log_softmax(2).gather(2, at)[..., 0],
            )
        self._total = self._total + losses.sum(1)
        self._n += len(kept)

    def value(self) -> Tensor:
        """(lanes,)."""
        assert isinstance(self._total, Tensor)
        return self._total / self._n


def _binary_losses(scores: Tensor, truth: Tensor, scale: Scale) -> Tensor:
    """scores (lanes, m), truth (m,) -> (lanes, m) float64."""
    tiny = torch.finfo(scores.dtype).eps if scores.is_floating_point() else 1e-16
    scores = scores.double()
    if scale == "probabilities":
        p = scores.clamp(tiny, 1 - tiny)
        return -torch.where(truth == 1, p, 1 - p).log()
    return torch.nn.functional.softplus(torch.where(truth == 1, -scores, scores))
