"""Population-based bandits: population-based training that chooses new hyperparameters by what it has seen them do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

from shoal.records import ParamValue
from shoal.schedulers._base import Observation, Space
from shoal.schedulers.pbt import PopulationBasedTraining

if TYPE_CHECKING:
    from shoal.schedulers._gp import FadingGp

# Older ones count for little, and fitting takes the cube of their number.
_MOST_OBSERVATIONS = 150
# With fewer, random perturbation is as good.
_FEWEST_OBSERVATIONS = 4


@final
class PB2(PopulationBasedTraining):
    """As ``PopulationBasedTraining``, but numbers are chosen by a Gaussian process that looks at how much each trial improved
    from one comparison to the next, with which hyperparameters.

    The process forgets as training goes on, since what helps early may hurt late. A replaced trial takes the values
    with the highest upper confidence bound; several that are replaced at once keep apart, each as if what is expected of the ones
    before it had been seen. Categories are perturbed at random. For small populations, where random perturbation needs luck.

    Args:
        max_epochs, perturbation_interval, hyperparameters: As for ``PopulationBasedTraining``.
        quantile_fraction, burn_in_period: As there.
        resample_probability, perturbation_factors: As there, but for categories, and until there are four observations.

    Raises:
        UsageError: An argument is out of its range.

    Example:
        >>> PB2(max_epochs=40)
        PB2(40, perturbation_interval=4)

    References:
        Parker-Holder et al., "Provably Efficient Online Hyperparameter Optimization with Population-Based Bandits",
        NeurIPS 2020, algorithm 1. Differs in that the worst tenth of the improvements is clipped, since a trial that
        diverges would dwarf all others.
    """

    _NAME = "pb2"

    def begin(self, space: Space, seed: int) -> None:
        """As for ``PopulationBasedTraining``."""
        super().begin(space, seed)
        self._start: dict[int, float] = {}  # trial -> its value at the last comparison, or at its first row
        self._seen: list[tuple[float, tuple[float, ...], float]] = []  # (comparison, hyperparameters, gain)
        self._model: FadingGp | None = None

    def _numbers(self) -> list[str]:
        return [name for name in self._moving if self._space[name].numeric]

    def _place(self, params: Mapping[str, ParamValue]) -> tuple[float, ...] | None:
        """Where hyperparameters lie in the unit cube; None where some are missing, as in a branch of a conditional space."""
        names = self._numbers()
        if not names or any(name not in params for name in names):
            return None
        return tuple(self._space[name].share(params[name]) for name in names)

    def _learn(self, rows: Sequence[Observation], chosen: Mapping[int, Observation]) -> None:
        """Note how much each trial has improved since the last comparison."""
        self._model = None
        for row in sorted(rows, key=lambda r: (r.epoch, r.trial)):
            due = row.epoch % self.interval == 0
            if due and row.trial in self._start:
                gain, place = self._start[row.trial] - row.value, self._place(row.params)
                if place is not None and not math.isnan(gain):
                    self._seen.append((row.epoch / self.interval, place, gain))
            goes_on = chosen.get(row.trial, row)
            if math.isfinite(goes_on.value) and (due or row.trial not in self._start):
                self._start[row.trial] = goes_on.value
        self._seen = self._seen[-_MOST_OBSERVATIONS:]

    def _explored(self, row: Observation, source: Observation) -> dict[str, ParamValue]:
        params = super()._explored(row, source)
        near = self._place(source.params)
        if near is None or len(self._seen) < _FEWEST_OBSERVATIONS:
            return params
        import numpy as np

        from shoal.schedulers._gp import FadingGp

        now = row.epoch / self.interval + 1
        if self._model is None:
            t, x, gains = zip(*self._seen, strict=True)
            y = np.clip(gains, *np.quantile(gains, (0.1, 1.0)))  # how bad the worst were tells nothing of the best
            self._model = FadingGp.fitted(np.array(x), np.array(t), (y - y.mean()) / (y.std() or 1.0))
        best = self._model.best(np.array(near), now, self._rng("bandit", row).getrandbits(63))
        self._model = self._model.with_pending(best, now)
        return params | {
            name: self._space[name].at(float(share)) for name, share in zip(self._numbers(), best, strict=True)
        }
