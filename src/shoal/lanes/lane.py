"""One trial while it trains: its recipe, its place in the epoch, its coefficients. Shared by fleets and the solo loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes import optim, order, rng
from shoal.recipe import Recipe
from shoal.records import TrialSpec


@dataclass(frozen=True, slots=True)
class Measured:
    """What one epoch of one trial gave. ``losses`` are per tick, for the check on admission; ``outputs`` never leave the device."""

    trial: int
    epoch: int
    train_loss: float
    valid_loss: float
    metrics: Mapping[str, float]
    first_loss: float
    finite: bool
    error: str = ""  # what the user's code raised; then nothing was measured, and the trial is over


@dataclass(slots=True)
class LaneTrial:
    """A trial in training. ``epoch`` epochs and ``updates`` optimizer steps are behind it."""

    spec: TrialSpec
    recipe: Recipe
    family: optim.Family
    denominators: NDArray[np.float64] | None
    kinds: tuple[int, ...] = ()
    epoch: int = 0
    updates: int = 0
    expected: float | None = None  # its own plain forward's first loss, until the first tick has confirmed it
    best_value: float | None = None
    best_state: dict[str, Tensor] | None = None
    groups: int = 1
    group_of: NDArray[np.int64] | None = field(default=None, repr=False)

    def coefficients(self, n_updates: int) -> NDArray[np.float64]:
        """This epoch's coefficients, (updates, K, groups); a schedule that steps per update advances here."""
        groups = self.recipe.optimizer.param_groups
        steps = np.arange(self.updates + 1, self.updates + n_updates + 1, dtype=np.float64)
        if self.recipe.schedule is None or self.recipe.schedule_every == "epoch":
            table = [optim.coefficients(self.recipe.optimizer, self.family, g, steps) for g in groups]
            return np.stack(table, axis=-1)
        rows = []
        for t in steps:
            one = np.array([t])
            rows.append(
                np.stack([optim.coefficients(self.recipe.optimizer, self.family, g, one)[0] for g in groups], -1)
            )
            self.recipe.step_schedule()
        return np.stack(rows)

    def sample_order(self, n: int) -> NDArray[np.int64]:
        """The samples in this epoch's order, (n,)."""
        return rng.permutation(self.spec.seed, self.epoch, n)

    def keys(self, n: int) -> NDArray[np.int32]:
        """The random key of each position in this epoch's order, (n,)."""
        return rng.sample_keys(self.spec.seed, self.epoch, n)

    def shape(self, n: int, quantum: int) -> order.EpochShape:
        return order.epoch_shape(n, self.recipe.batch_size, quantum)


# Evaluation draws (a VAE that samples, say) come from an epoch that training never reaches.
EVALUATION_EPOCH = 2**31
# Samples per evaluation chunk: fixed, so that a model which mixes samples sees the same chunks in a lane and alone.
EVALUATION_CHUNK = 512
