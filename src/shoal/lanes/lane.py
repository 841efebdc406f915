"""One trial while it trains: its recipe, its place in the epoch, its coefficients. Shared by fleets and the solo loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shoal.data import Split
from shoal.extend import Activation, LabelSmoothing, LearningRate
from shoal.extend._by_validation import by_validation
from shoal.lanes import noise_scale, optim, order, rng, tables
from shoal.lanes.criteria import denominators, is_known
from shoal.lanes.parts import Rows
from shoal.lanes.sampling import Sampling
from shoal.lanes.watch import Watch
from shoal.recipe import Recipe
from shoal.records import TrialSpec

if TYPE_CHECKING:
    from shoal.lanes.regularised._rule import Moving


@dataclass(frozen=True, slots=True)
class Measured:
    """What one epoch of one trial gave; ``first_loss`` is its first tick's, for the check on admission.

    Inside pools ``trial`` is the key of one part (`TrialSpec.key`). The last three are of a trial with several parts: which of them
    is not finite, all their values, and the standard error of the mean.
    """

    trial: int
    epoch: int
    train_loss: float
    valid_loss: float
    metrics: Mapping[str, float]
    first_loss: float
    finite: bool
    error: str = ""  # what the user's code raised; then nothing was measured, and the trial is over
    where: str = ""
    lanes: tuple[float, ...] = ()
    standard_error: float | None = None
    trajectories: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of what extensions moved, by name
    why: str = ""  # what was not finite, where it is not simply the loss


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
    groups: int = 1
    table: NDArray[np.float64] = field(
        default_factory=lambda: np.empty((0, optim.K, 1)), repr=False
    )  # (updates, K, groups)
    carried: list[dict[str, float]] = field(
        default_factory=list, repr=False
    )  # per group: scalars of the optimizer's state
    group_of: NDArray[np.int64] | None = field(default=None, repr=False)
    valid_weight: float | None = (
        None  # of a sample of the validation split; None until it is measured for the first time
    )

    base_rate: NDArray[np.float64] = field(
        default_factory=lambda: np.empty((0, 1)), repr=False
    )  # (updates, groups): learning rates without what an extension adds; where one moves them, they are 1 in the table
    numbers: list[tables.Numbers] = field(default_factory=list, repr=False)  # per group, once there is no schedule
    valid_keys: NDArray[np.int32] | None = field(default=None, repr=False)  # of the validation split, likewise
    even: float | None = None  # the denominator of every sample, if they are all the same
    size: int = 0  # its batch size, where that moves and has moved; else 0
    rows: Rows | None = None  # of the training split that it trains on; None for all
    valid_rows: Rows | None = None  # of the validation split, likewise
    sampling: Sampling | None = field(default=None, repr=False)  # once an order has been asked for
    moving: Moving | None = field(default=None, repr=False)  # once its regularisers have moved
    watch: Watch | None = field(init=False, repr=False)  # of a schedule that is the user's own

    def __post_init__(self) -> None:
        self.watch = Watch.of(self.recipe)
        d = self.denominators
        if d is not None and d.size and d[0] > 0 and bool((d == d[0]).all()):
            self.even = float(d[0])

    def afresh(self, recipe: Recipe) -> LaneTrial:
        """The same trial before its first epoch.

        Args:
            recipe: Its recipe, replayed.
        """
        made = LaneTrial(self.spec, recipe, self.family, self.denominators, self.kinds)
        made.groups, made.group_of = self.groups, self.group_of
        made.rows, made.valid_rows = self.rows, self.valid_rows
        return made

    def tabulate(self, n_updates: int, n: int) -> None:
        """Make the coming epoch's coefficients. Call once per epoch: schedules that step per update advance here.

        Args:
            n_updates: Of the epoch.
            n: Samples of the training split.
        """
        recipe = self.recipe
        groups = recipe.optimizer.param_groups
        steps = np.arange(self.updates + 1, self.updates + n_updates + 1, dtype=np.float64)
        if recipe.schedule is None:  # nobody moves the numbers: they are read once
            numbers = self.numbers = self.numbers or [tables.stacked([tables.numbers(g)]) for g in groups]
        elif recipe.schedule_every == "epoch":
            numbers = [tables.stacked([tables.numbers(g)]) for g in groups]
        else:
            snapshots: list[list[Mapping[str, float | tuple[float, ...]]]] = [[] for _ in groups]
            clock, n_steps = noise_scale.clock_of(self.batch_size, recipe.batch_size, self.n_train(n))
            with self.looking_on():
                for i in range(n_steps):
                    for taken, g in zip(snapshots, groups, strict=True):
                        taken.append(tables.numbers(g))
                    recipe.step_schedule(progress=self.epoch + i / n_steps)
            if self.looks:
                return
            numbers = [tables.stacked([taken[i] for i in clock]) for taken in snapshots]
        if (factor := noise_scale.factor_of(self.batch_size, recipe)) != 1.0:
            numbers = [{**h, "lr": h["lr"] * factor} for h in numbers]
        if recipe.extensions:
            self.base_rate = np.stack([np.broadcast_to(h["lr"], steps.shape) for h in numbers], axis=-1)
        if learning_rate(recipe) is not None:
            numbers = [{**h, "lr": 1.0} for h in numbers]
        while len(self.carried) < len(groups):
            self.carried.append({})
        per_group = [
            tables.coefficients(recipe.optimizer, self.family, h, steps, carried)
            for h, carried in zip(numbers, self.carried, strict=True)
        ]
        self.table = np.stack(per_group, axis=-1)

    def looking_on(self) -> AbstractContextManager[None]:
        """The schedule is stepped in here."""
        return nullcontext() if self.watch is None else self.watch.looking_on()

    @property
    def looks(self) -> str:
        """What its schedule has done that a lane cannot follow, or "": then it must go on alone."""
        return "" if self.watch is None else self.watch.reason

    def n_train(self, n: int) -> int:
        """How many of the training split's ``n`` samples it trains on."""
        return n if self.rows is None else len(self.rows)

    @property
    def rule(self) -> int:
        """How its learning rate moves: lanes of one rule stand side by side."""
        extension = learning_rate(self.recipe)
        return 0 if extension is None else 1 if extension.rule == "additive" else 2

    def sample_order(self, split: Split) -> NDArray[np.int64]:
        """The samples that it trains on in this epoch's order, (n_train,), of a split that may have more."""
        if self.sampling is None:
            self.sampling = Sampling.of(self.recipe, split, self.rows)
        return self.sampling.order(self.spec.seed, self.epoch)

    def keys(self, n: int) -> NDArray[np.int32]:
        """The random key of each position in this epoch's order, (n_train,)."""
        return rng.sample_keys(self.spec.seed, self.epoch, self.n_train(n))

    def evaluation_keys(self, n: int) -> NDArray[np.int32]:
        """The random key of each sample of the validation split, (n,)."""
        if self.valid_keys is None or len(self.valid_keys) != n:
            self.valid_keys = rng.sample_keys(self.spec.seed, EVALUATION_EPOCH, n)
        return self.valid_keys

    def weights(self, n: int, quantum: int, order_: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each slot of this epoch counts for, (T, q)."""
        if self.even is not None:
            return order.even_weights(self.n_train(n), self.batch_size, quantum, self.even, self._halve)
        return order.slot_weights(self.shape(n, quantum), order_, self.denominators)

    def shape(self, n: int, quantum: int) -> order.EpochShape:
        return order.epoch_shape(self.n_train(n), self.batch_size, quantum, self._halve)

    @property
    def batch_size(self) -> int:
        """Samples per update in this epoch."""
        return self.size or self.recipe.batch_size

    @property
    def _halve(self) -> int:
        extension = noise_scale.batch_size(self.recipe)
        return 0 if extension is None else extension.every


def learning_rate(recipe: Recipe) -> LearningRate | None:
    """A recipe's extension of the learning rate, unless it is off."""
    return next((e for e in recipe.extensions if isinstance(e, LearningRate) and e.on), None)


def has_shapes(recipe: Recipe) -> bool:
    """Whether a recipe's activations are learned."""
    return any(isinstance(e, Activation) and e.on for e in recipe.extensions)


def smooths(recipe: Recipe) -> bool:
    """Whether a recipe's label smoothing moves, so that it is looked at also where it is 0."""
    return any(isinstance(e, LabelSmoothing) for e in by_validation(recipe))


# Evaluation draws (a VAE that samples, say) come from an epoch that training never reaches.
EVALUATION_EPOCH = 2**31
_CHUNK_BYTES = 2**20


def evaluation_chunk(data: Sequence[Tensor]) -> int:
    """Samples per evaluation chunk: at most 512, and fewer where samples are large, since every lane's activations of a chunk are
    in memory at once. It depends on the data alone, so that a model which mixes samples sees the same chunks in a lane and alone.
    """
    per_sample = sum(t[0].numel() * t.element_size() for t in data)
    fits = max(1, _CHUNK_BYTES // max(1, per_sample))
    return int(max(8, min(512, 1 << (fits.bit_length() - 1))))


def evaluation_weight(recipe: Recipe, target: Tensor) -> float:
    """With it, a known criterion's numerators sum to its mean over a whole split."""
    if not is_known(recipe.loss):
        return 1.0
    if recipe.loss.reduction == "sum":  # type: ignore[union-attr]
        return 1.0 / len(target)
    total = float(denominators(recipe.loss, target).sum())
    return 1.0 / total if total else math.inf  # all targets ignored: 0 / 0 as in torch
