"""The parts of a trial where folds and seeds give it several lanes: which rows each trains on, under which seed.

Glossary: ``K`` folds, 1 without; ``S`` seeds; a trial has K * S parts, and part s * K + k is fold k under seed s; *rows* are
indices into the study's one data set, which all lanes share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from shoal.lanes.rng import derive
from shoal.records import TrialSpec

Rows: TypeAlias = NDArray[np.int64]

_SEED_STREAM = 0x5EED  # seeds of a trial after its first, apart from all else that is derived from the trial's seed


@final
@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Folds and seeds of a study.

    Attributes:
        folds: (rows to train on, rows to validate on) of each fold; empty where all parts share the study's own splits.
        n_seeds: Seeds per fold.
    """

    folds: tuple[tuple[Rows, Rows], ...] = ()
    n_seeds: int = 1

    @property
    def n_folds(self) -> int:
        return max(1, len(self.folds))

    def __len__(self) -> int:
        return self.n_folds * self.n_seeds

    def rows(self, part: int) -> tuple[Rows | None, Rows | None]:
        """Rows that a part trains on and is validated on; None for all of the split."""
        return self.folds[part % self.n_folds] if self.folds else (None, None)

    def n_train(self, part: int, n: int) -> int:
        """How many of ``n`` training samples a part trains on."""
        rows, _ = self.rows(part)
        return n if rows is None else len(rows)

    def split(self, spec: TrialSpec) -> list[TrialSpec]:
        """A trial's parts. Its first seed is its own, so that part 0 of a study without folds is the trial as it is alone."""
        out = []
        for part in range(len(self)):
            s = part // self.n_folds
            origin = None if spec.origin is None else self._seed(spec.origin, s)
            out.append(replace(spec, part=part, seed=self._seed(spec.seed, s), origin=origin))
        return out

    @staticmethod
    def _seed(seed: int, s: int) -> int:
        return seed if s == 0 else derive(seed, _SEED_STREAM, s)

    def name(self, part: int) -> str:
        """What people call a part, counted from 1."""
        fold = f"fold {part % self.n_folds + 1}" if self.folds else ""
        seed = f"seed {part // self.n_folds + 1}" if self.n_seeds > 1 else ""
        return ", ".join(word for word in (fold, seed) if word)

    def standard_error(self, values: Sequence[float]) -> float | None:
        r"""The standard error of the mean of all parts' values.

        .. math:: \sqrt{\frac{1}{m (m - 1)} \sum_i (v_i - \bar v)^2}

        over the ``m`` folds' means, since seeds of a fold share its validation rows; over the seeds where there are no folds. Folds
        share training rows, so it is somewhat too small, and no estimate without that bias exists.

        Args:
            values: One per part, (S * K,).

        Returns:
            None with a single fold or seed.

        References:
            Bengio and Grandvalet, No unbiased estimator of the variance of k-fold cross-validation, JMLR 5, 2004.

        >>> Parts(n_seeds=2).standard_error([1.0, 3.0])
        1.0
        """
        table = np.asarray(values, dtype=np.float64).reshape(self.n_seeds, self.n_folds)
        each = table.mean(0) if self.folds else table[:, 0]
        if len(each) < 2:
            return None
        return float(each.std(ddof=1) / math.sqrt(len(each)))
