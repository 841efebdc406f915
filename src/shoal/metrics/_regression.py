"""Metrics of regression, from sums of errors per feature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal.errors import UsageError
from shoal.metrics._meter import Source


class Errors:
    """Sums over samples in float64: ``absolute`` and ``squared`` (lanes, features); ``spread`` (features,) of the targets."""

    def __init__(self, source: Source) -> None:
        self.name, self._targets = source.name, source.targets
        self.n = len(source.targets)
        self.absolute: Tensor | float = 0.0
        self.squared: Tensor | float = 0.0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        n = len(targets)
        want, came = tuple(targets.shape), tuple(outputs.shape[1:])
        if came != want and not {came, want} <= {(n,), (n, 1)}:
            raise UsageError(
                f"metric {self.name!r} needs outputs of the targets' shape: targets are {want}, outputs {came}. "
                "For class logits take accuracy or f1."
            )
        truth = targets.to(device=outputs.device, dtype=torch.float64).reshape(n, -1)  # (n, features)
        error = outputs.to(torch.float64).reshape(len(outputs), *truth.shape) - truth
        self.absolute = self.absolute + error.abs().sum(1)
        self.squared = self.squared + error.square().sum(1)

    def mean(self, sums: Tensor | float) -> Tensor:
        """(lanes, features)."""
        assert isinstance(sums, Tensor)
        return sums / self.n

    def spread(self) -> Tensor:
        """Squared distance of the targets from their mean, (features,)."""
        truth = self._targets.to(torch.float64).reshape(self.n, -1)
        return (truth - truth.mean(0)).square().sum(0)


def mae(e: Errors) -> Tensor:
    return e.mean(e.absolute).mean(1)


def mse(e: Errors) -> Tensor:
    return e.mean(e.squared).mean(1)


def rmse(e: Errors) -> Tensor:
    """The root per feature and then the mean over features, as in scikit-learn."""
    return e.mean(e.squared).sqrt().mean(1)


def r2(e: Errors) -> Tensor:
    """1 - residual / spread, the mean over features. A constant target gives 1 for a perfect output and 0 for any other."""
    assert isinstance(e.squared, Tensor)
    spread = e.spread().to(e.squared.device)
    constant = torch.where(e.squared == 0, 1.0, torch.where(torch.isnan(e.squared), math.nan, 0.0))
    return torch.where(spread > 0, 1 - e.squared / spread, constant).mean(1)
