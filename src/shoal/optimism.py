"""How much of the winner's validation value is luck: the best of N trials looks better than it is.

Glossary: ``C`` *candidates*, what the winner was chosen among: finished trials at the epoch they are judged by, or at every epoch
where ``value="best"`` chooses the epoch as well; ``K`` folds that share no validation row; ``values`` is (C, K), lower is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shoal.records import StudyRecord, TrialRecord, TrialState

Values: TypeAlias = NDArray[np.float64]

_EXACT_FOLDS = 7  # up to here all ways to draw K folds are gone through: 1,716 for seven
_DRAWS = 2000
_MAX_WORK = 50_000_000  # candidates x draws x folds


@dataclass(frozen=True, slots=True)
class Optimism:
    """The winner's validation value, and what to expect of it on new data, in the study's own direction.

    Attributes:
        value: The winner's validation value.
        standard_error: Of that value over folds or seeds; None with a single lane.
        n_trials: How many finished trials it is the best of.
        corrected: What the best of so many trials has on folds that did not choose it (`bias_corrected`); None without folds.
        held_out: What the winner has on the test set, which chose nothing; None without one.
    """

    value: float
    standard_error: float | None
    n_trials: int
    corrected: float | None
    held_out: float | None

    @property
    def expected(self) -> float | None:
        """The better founded of the two estimates: held out, else corrected."""
        return self.corrected if self.held_out is None else self.held_out

    @property
    def source(self) -> str:
        """Where ``expected`` comes from, in words."""
        if self.held_out is not None:
            return "test set"
        return "" if self.corrected is None else "bootstrap over folds (Tsamardinos et al. 2018)"


def optimism(record: StudyRecord) -> Optimism | None:
    """What is known of a study's winner beyond its validation value; None as long as no trial has finished."""
    best = record.best()
    if best is None or best.value is None:
        return None
    finished = [t for t in record.trials if t.state is TrialState.FINISHED and t.value is not None]
    row = best.judged
    return Optimism(
        value=best.value,
        standard_error=None if row is None else row.standard_error,
        n_trials=len(finished),
        corrected=_corrected(record, finished),
        held_out=_held_out(record, best),
    )


def _held_out(record: StudyRecord, best: TrialRecord) -> float | None:
    test = record.meta.get("test")
    if not isinstance(test, Mapping) or record.meta.get("test_trial") not in (None, best.spec.number):
        return None
    found = test.get(str(record.meta.get("metric")))
    return float(found) if isinstance(found, int | float) else None


def _corrected(record: StudyRecord, finished: list[TrialRecord]) -> float | None:
    folds = record.meta.get("folds")
    if not isinstance(folds, Mapping):
        return None
    n_folds, n_seeds, repeats = folds.get("n"), folds.get("seeds"), folds.get("repeats")
    if not isinstance(n_folds, int) or not isinstance(n_seeds, int) or not isinstance(repeats, list) or n_folds < 2:
        return None
    sign = 1.0 if record.direction == "minimize" else -1.0
    options = record.meta.get("options")
    any_epoch = isinstance(options, Mapping) and options.get("value") == "best"
    rows = [row for t in finished for row in t.rows if any_epoch or row.epoch == t.epoch]
    lanes = [row.lanes for row in rows if len(row.lanes) == n_folds * n_seeds and all(map(math.isfinite, row.lanes))]
    if not lanes:
        return None
    values = sign * np.asarray(lanes).reshape(len(lanes), n_seeds, n_folds).mean(1)  # (C, K); seeds share a fold's rows
    estimates = [bias_corrected(values[:, list(some)]) for some in repeats if isinstance(some, list)]
    known = [e for e in estimates if e is not None]
    return sign * sum(known) / len(known) if known else None


def bias_corrected(values: Values) -> float | None:
    r"""The value to expect of the best of C candidates on folds that did not choose it.

    .. math:: E_b \left[ \frac{1}{|O_b|} \sum_{k \in O_b} v_{c(b), k} \right], \qquad c(b) = \arg\min_c \sum_{k \in b} v_{c, k}

    where ``b`` is a draw of K folds with replacement and ``O_b`` the folds that it left out. The expectation is exact for up to
    seven folds, and over 2,000 draws beyond.

    This is bootstrap bias-corrected cross-validation with folds in the place of samples: samples would need every candidate's
    predictions to be kept. As there, a draw chooses by fewer folds than the study did, so it errs on the careful side.

    Args:
        values: (C, K), lower is better; no fold shares a validation row with another.

    Returns:
        None with fewer than three folds.

    References:
        Tsamardinos, Greasidou and Borboudakis, Bootstrapping the out-of-sample predictions for efficient and accurate
        cross-validation, Machine Learning 107, 2018, algorithm 5 (BBC-CV).

    Example:
        >>> lucky = np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
        >>> round(bias_corrected(lucky), 3), float(lucky.mean(1).min().round(3))
        (1.0, 0.667)
    """
    n, k = values.shape
    if k < 3:
        return None
    counts, weights = _draws(k, max(50, min(_DRAWS, _MAX_WORK // (n * k))))
    total = 0.0
    for first in range(0, len(counts), 256):
        drawn = counts[first : first + 256]
        chosen = (values @ drawn.T).argmin(0)  # (draws,)
        left_out = drawn == 0
        each = (values[chosen] * left_out).sum(1) / left_out.sum(1)
        total += float((each * weights[first : first + 256]).sum())
    return total


def _draws(k: int, n: int) -> tuple[NDArray[np.float64], Values]:
    """How often each fold was drawn, (draws, K), and the draws' probabilities; draws that leave no fold out have none."""
    if k <= _EXACT_FOLDS:
        every = (np.bincount(draw, minlength=k) for draw in itertools.combinations_with_replacement(range(k), k))
        counts = np.array([c for c in every if (c == 0).any()], dtype=np.float64)
        weights = np.array([math.factorial(k) / math.prod(math.factorial(int(c)) for c in row) for row in counts])
    else:
        counts = np.random.default_rng(0).multinomial(k, [1 / k] * k, size=n).astype(np.float64)
        counts = counts[(counts == 0).any(1)]
        weights = np.ones(len(counts))
    return counts, weights / weights.sum()
