"""A Gaussian process over hyperparameters and time whose memory fades: what PB2 believes of how much an epoch improves.

Glossary: ``n`` observations, ``d`` hyperparameters in the unit cube, ``m`` candidates; ``t`` counts comparisons, not epochs.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

# What is tried for the kernel; the likelihood chooses. Values of y have unit variance.
_LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
_FADING = (0.0, 0.05, 0.2, 0.5)
_NOISE = (0.05, 0.2, 0.6)


@final
@dataclass(frozen=True, slots=True)
class FadingGp:
    r"""Regression with the kernel of PB2.

    .. math:: k((x, t), (x', t')) = \exp(-|x - x'|^2 / 2 l^2) \, (1 - \epsilon)^{|t - t'| / 2}

    Attributes:
        x, t, y: What was observed, (n, d), (n,), (n,); y is standardised.
        length, fading, noise: The kernel's l and epsilon, and the variance of what it does not explain.

    References:
        Parker-Holder et al., "Provably Efficient Online Hyperparameter Optimization with Population-Based Bandits", 2020.
    """

    x: Array
    t: Array
    y: Array
    length: float
    fading: float
    noise: float

    @classmethod
    def fitted(cls, x: Array, t: Array, y: Array) -> FadingGp:
        """The one whose kernel makes the observations most likely.

        >>> x = np.linspace(0, 1, 20)[:, None]
        >>> model = FadingGp.fitted(x, np.zeros(20), np.sin(3 * x[:, 0]))
        >>> mean, deviation = model.predict(np.array([[0.5]]), 0.0)
        >>> bool(abs(mean[0] - np.sin(1.5)) < 0.1)
        True
        """
        made = (cls(x, t, y, *kernel) for kernel in itertools.product(_LENGTHS, _FADING, _NOISE))
        return max(made, key=lambda model: model.log_likelihood)

    def _kernel(self, x: Array, t: Array) -> Array:
        """Between the observations and others, (n, m)."""
        apart = ((self.x[:, None] - x[None]) ** 2).sum(-1)
        return np.asarray(
            np.exp(-0.5 * apart / self.length**2) * (1.0 - self.fading) ** (np.abs(self.t[:, None] - t[None]) / 2)
        )

    def _factor(self) -> Array:
        return np.asarray(np.linalg.cholesky(self._kernel(self.x, self.t) + (self.noise + 1e-8) * np.eye(len(self.x))))

    @property
    def log_likelihood(self) -> float:
        """Of the observations, up to a constant."""
        factor = self._factor()
        white = np.linalg.solve(factor, self.y)
        return float(-0.5 * white @ white - np.log(np.diag(factor)).sum())

    def predict(self, x: Array, t: float) -> tuple[Array, Array]:
        """Mean and standard deviation at candidates (m, d), at one time: (m,) each."""
        factor, between = self._factor(), self._kernel(x, np.full(len(x), t))
        white = np.linalg.solve(factor, between)
        mean = white.T @ np.linalg.solve(factor, self.y)
        return mean, np.sqrt(np.maximum(1.0 - (white**2).sum(0), 0.0))

    def with_pending(self, x: Array, t: float) -> FadingGp:
        """The same with a candidate that is about to be tried, as if it gave what is expected of it: no second one goes there."""
        mean, _ = self.predict(x[None], t)
        return FadingGp(
            np.vstack([self.x, x]),
            np.append(self.t, t),
            np.append(self.y, mean),
            self.length,
            self.fading,
            self.noise,
        )

    def best(self, near: Array, t: float, seed: int) -> Array:
        """The candidate (d,) with the highest upper confidence bound, among random ones and those around a given one."""
        rng, d = np.random.default_rng(seed), self.x.shape[1]
        close = np.clip(near + rng.normal(0.0, 0.1, (200, d)), 0.0, 1.0)
        candidates = np.vstack([near[None], close, rng.random((500, d))])
        mean, deviation = self.predict(candidates, t)
        beta = 0.2 + max(0.0, math.log(0.4 * len(self.x)))
        return np.asarray(candidates[int(np.argmax(mean + math.sqrt(beta) * deviation))])
