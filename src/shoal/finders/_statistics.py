"""Means over seeds with intervals, and paired tests that assume no distribution, corrected for how many there are.

Glossary: ``S`` seeds; ``d`` (S,) differences of two configurations under the same seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# 97.5 % points of Student's t with 1, 2, ... 30 degrees of freedom.
_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
_EXACT = 14  # 2^14 sign patterns are all tried; beyond that as many are drawn
_DRAWN = 20_000


def t_half(n: int) -> float:
    """How many standard errors a 95 % interval of the mean of ``n`` numbers reaches to each side.

    >>> t_half(2), t_half(11), round(t_half(1000), 3)
    (12.7062, 2.2281, 1.962)
    """
    if n < 2:
        return math.nan
    # Beyond the table by the expansion of Cornish and Fisher, which is right to 1e-5 there.
    z, df = 1.959964, n - 1
    return _T[df - 1] if df <= len(_T) else z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def mean_and_error(values: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and standard error over the axis of seeds (1), of numbers that are there: (C, S, ...) -> (C, ...) twice.

    Where some seed diverged the mean is NaN: a configuration that fails at times has no mean to speak of.
    """
    n = values.shape[1]
    error = values.std(axis=1, ddof=1) / math.sqrt(n) if n > 1 else np.full_like(values[:, 0], np.nan)
    return values.mean(axis=1), error


def sign_flip_p(d: Numbers, seed: int = 0) -> float:
    """Two-sided p of a paired randomisation test: how often the mean of ``d`` with random signs is as large as it is.

    Under the hypothesis that two configurations do equally well, a difference is as likely as its opposite. With up to 14 seeds
    all 2^S patterns of signs are tried, beyond that 20,000 are drawn.

    Args:
        d: (S,), finite.
        seed: Of the draws.

    Example:
        >>> sign_flip_p(np.array([0.1, 0.2, 0.15, 0.3, 0.1]))
        0.0625

    References:
        Fisher (1935), The design of experiments, section 21.
    """
    n, seen = len(d), abs(float(d.sum()))
    if n <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        sums = np.abs(signs @ d)
        # As large means no smaller than rounding leaves it.
        return float((sums >= seen * (1 - 1e-12) - 1e-300).mean())
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(_DRAWN, n))
    return float(((np.abs(signs @ d) >= seen * (1 - 1e-12)).sum() + 1) / (_DRAWN + 1))


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected for their number, so that all claims at 0.05 together are wrong in at most 5 % of cases.

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]

    References:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order, out, worst = sorted(range(len(p)), key=p.__getitem__), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        out[i] = worst
    return out


def seeds_for(n_choices: int) -> int:
    """Seeds with which the test can tell every pair of so many choices apart at 0.05: 2^(1 - S) n_pairs <= 0.05, and 8 at least.

    >>> seeds_for(2), seeds_for(4), seeds_for(6)
    (8, 8, 10)
    """
    pairs = n_choices * (n_choices - 1) // 2
    return max(8, math.ceil(1 + math.log2(pairs / 0.05)))
