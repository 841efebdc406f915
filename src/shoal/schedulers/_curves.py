"""What the rest of a learning curve will be: straight lines in a falling function of the epoch, averaged by how well they fit.

Glossary: ``v_t`` value after epoch t, minimised; ``T`` the last epoch; a *shape* is a function of t that falls from 1 to 0. For
each shape ``phi`` and level of noise, ``v_t = a + b phi(t) + noise`` with normal priors on a and b has a normal prediction in
closed form; predictions are mixed by the likelihood of what was seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

# Powers of the epoch, as in Domhan et al. 2015, and exponentials, as in Swersky et al. 2014 (so many of them in all epochs).
_POWERS = (0.25, 0.5, 1.0, 2.0)
_DECAYS = (2.0, 5.0, 15.0)
# Standard deviations, in units of the spread of final values over trials: noise of an epoch, and priors of a and b.
_NOISE = (0.02, 0.1, 0.3)
_LEVEL, _SLOPE = 2.0, 3.0
# What lies further back tells less of what is to come.
_RECALL = 0.85
_STANDARD = NormalDist()


@final
@dataclass(frozen=True, slots=True)
class Forecast:
    """A normal belief about a final value."""

    mean: float
    deviation: float

    def improvement(self, best: float) -> float:
        """How much below ``best`` the value is expected to come out, counting what comes out above it as nothing.

        >>> round(Forecast(0.0, 1.0).improvement(0.0), 4), Forecast(1.0, 0.0).improvement(0.0)
        (0.3989, 0.0)
        """
        if not math.isfinite(self.mean):
            return 0.0
        if self.deviation <= 0:
            return max(0.0, best - self.mean)
        z = (best - self.mean) / self.deviation
        return (best - self.mean) * _STANDARD.cdf(z) + self.deviation * _STANDARD.pdf(z)


@functools.cache
def _shapes(max_epochs: int) -> tuple[tuple[float, ...], ...]:
    """Each shape at the epochs 0 to ``max_epochs``; index 0 is not used."""
    powers = [tuple(max(t, 1) ** -c for t in range(max_epochs + 1)) for c in _POWERS]
    decays = [tuple(math.exp(-k * t / max_epochs) for t in range(max_epochs + 1)) for k in _DECAYS]
    return (*powers, *decays)


def forecast(values: Sequence[float], max_epochs: int, centre: float, spread: float) -> Forecast:
    """The final value of a curve.

    Args:
        values: Those of the epochs from 1 on, finite.
        max_epochs: T.
        centre, spread: Where final values of trials lie, by what is known of them.

    Returns:
        Mean and standard deviation of the mixture.

    Example:
        >>> found = forecast([1 + 2 / t for t in range(1, 11)], 100, centre=1.0, spread=1.0)
        >>> abs(found.mean - 1.02) < 0.05, found.deviation < 0.2
        (True, True)
    """
    y = [(v - centre) / spread for v in values]
    parts = [_line(y, phi, noise, max_epochs) for phi in _shapes(max_epochs) for noise in _NOISE]
    most = max(evidence for evidence, _, _ in parts)
    weights = [math.exp(evidence - most) for evidence, _, _ in parts]
    total = sum(weights)
    mean = sum(w * m for w, (_, m, _) in zip(weights, parts, strict=True)) / total
    square = sum(w * (v + m * m) for w, (_, m, v) in zip(weights, parts, strict=True)) / total
    return Forecast(centre + spread * mean, spread * math.sqrt(max(square - mean * mean, 0.0)))


def _line(y: Sequence[float], phi: Sequence[float], noise: float, last: int) -> tuple[float, float, float]:
    """Log evidence of a shape, mean and variance of its value at the end: Bayesian regression on (1, phi)."""
    n = len(y)
    counts = [_RECALL ** (n - t) for t in range(1, n + 1)]
    precision = 1.0 / noise**2
    p00, p01, p11 = 1.0 / _LEVEL**2, 0.0, 1.0 / _SLOPE**2
    prior = math.log(p00 * p11)
    q0 = q1 = yy = used = 0.0
    for t, (v, count) in enumerate(zip(y, counts, strict=True), start=1):
        w, f = precision * count, phi[t]
        p00, p01, p11 = p00 + w, p01 + w * f, p11 + w * f * f
        q0, q1, yy, used = q0 + w * v, q1 + w * f * v, yy + w * v * v, used + count
    det = p00 * p11 - p01 * p01
    a, b = (p11 * q0 - p01 * q1) / det, (p00 * q1 - p01 * q0) / det
    evidence = 0.5 * (a * q0 + b * q1 - yy) + 0.5 * (prior - math.log(det)) - used * math.log(noise)
    f = phi[last]
    variance = (p11 - 2 * f * p01 + f * f * p00) / det
    return evidence, a + b * f, variance
