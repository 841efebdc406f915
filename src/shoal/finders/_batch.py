"""Which batch size: all that the space has, trained side by side for as many epochs.

Glossary: ``C`` batch sizes, ``S`` seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal._text import format_params
from shoal.errors import StudyError, UsageError
from shoal.finders._lanes import Curves, side_by_side
from shoal.finders._space import named, point
from shoal.finders._start import setting, whole
from shoal.finders._statistics import mean_and_error
from shoal.preparing import PrepareArgument
from shoal.progress import ProgressMode
from shoal.records import Direction, ParamValue
from shoal.replay import Define
from shoal.spaces import values_of


@dataclass(frozen=True, slots=True)
class BatchFinding:
    """What was found about the batch size; printing it is how to read it.

    Attributes:
        param: The hyperparameter.
        sizes: (C,) samples per update, growing.
        curves: What each did, epoch by epoch.
        updates: (C,) updates per epoch.
        fixed: The other hyperparameters.
        suggestion: The batch size to take.
        reason: Why, in a sentence.
    """

    param: str
    sizes: NDArray[np.int64]
    curves: Curves
    updates: NDArray[np.int64]
    fixed: Mapping[str, ParamValue]
    suggestion: int
    reason: str

    @property
    def losses(self) -> NDArray[np.float64]:
        """(C, S): validation losses after the last epoch; NaN where a trial diverged."""
        return self.curves.valid_loss[:, :, -1]

    def __str__(self) -> str:
        mean, error = mean_and_error(self.losses)
        value, _ = mean_and_error(self.curves.value[:, :, -1])
        scored = self.curves.metric != "loss"
        lines = [f"{'batch':>10}  {'updates':>8}  {'validation loss':<20}" + (self.curves.metric if scored else "")]
        for i, size in enumerate(self.sizes):
            shown = "diverged" if math.isnan(mean[i]) else f"{mean[i]:.4g}"
            shown += f" ± {error[i]:.2g}" if error[i] == error[i] else ""
            score = f"{value[i]:.4g}" if scored and value[i] == value[i] else ""
            mark = "*" if size == self.suggestion else ""
            lines.append(f"{size:>10}  {self.updates[i]:>8}  {shown:<20}{score:<10}{mark}".rstrip())
        lines += ["", f"suggestion: {self.param} = {self.suggestion}", self.reason]
        if self.fixed:
            lines.append(f"with {format_params(self.fixed)}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> Path:
        """Draw loss against batch size, as PNG, SVG or PDF; returns the path.

        Raises:
            UsageError: If matplotlib is not installed, or does not know the kind of file.
            StorageError: If the file cannot be written.
        """
        from shoal.finders._figures import plot_batch

        return plot_batch(self, path)


def find_batch_size(
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    prepare: PrepareArgument = None,
    param: str | None = None,
    sizes: Sequence[int] | None = None,
    epochs: int = 30,
    seeds: int = 3,
    params: Mapping[str, ParamValue] | None = None,
    metric: str | Callable[..., float] | None = None,
    direction: Direction | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressMode = True,
) -> BatchFinding:
    """Find a batch size: train each that the space has, side by side, for as many epochs.

    The suggestion is the largest whose mean validation loss is within one standard error of the best one's: larger batches take
    fewer updates per epoch. All train at the same learning rate, and a larger batch often wants a larger one.

    Args:
        define: As for ``tune``; it must suggest the batch size.
        train, valid, prepare: As for ``tune``.
        param: The hyperparameter, if it cannot be told from what it does.
        sizes: Of the space, which to try; by default all choices, or powers of two of a range.
        epochs, seeds, params, metric, direction, seed, device, progress: As for `find_lr`.

    Raises:
        UsageError: If ``define`` suggests no batch size, or there is only one.
        StudyError: If none trained.
    """
    whole(epochs=(epochs, 1), seeds=(seeds, 1))
    start = setting(train, valid, params, metric, direction, seed, device, progress, prepare)
    usual = ("batch_size", "batch")
    name, trial = named("batch size", param, define, start, usual=usual, read=lambda recipe: recipe.batch_size)
    if name in start.given:
        raise UsageError(f"params sets {name!r}, which is what is to be found; leave it out.")
    values: list[Any] = list(sizes) if sizes is not None else _sizes(trial.distributions[name])
    if len(set(values)) < 2:
        raise UsageError(f"there is nothing to compare: {name!r} has one value, {values}. Suggest several batch sizes.")
    made: dict[int, Any] = {}
    for value in values:
        answered, recipe = point(define, {**start.given, name: value}, start.data.train.n)
        made[recipe.batch_size] = answered.params
    tried = np.array(sorted(made))
    curves = side_by_side(
        define,
        start,
        [made[int(b)] for b in tried],
        seeds=seeds,
        epochs=epochs,
        said=f"training {len(tried)} batch sizes",
    )
    mean, error = mean_and_error(curves.valid_loss[:, :, -1])
    if not np.isfinite(mean).any():
        raise StudyError(
            "the loss of every batch size was not finite in some run; choose a smaller learning rate by params=."
        )
    best = int(np.nanargmin(mean))
    slack = float(error[best]) if error[best] == error[best] else 0.0
    chosen = max(i for i in range(len(tried)) if mean[i] <= mean[best] + slack)
    reason = f"validation loss is lowest with {tried[best]}: {mean[best]:.4g}"
    reason += f" ± {slack:.2g} after {epochs} epochs" if slack else f" after {epochs} epochs"
    if chosen != best:
        reason += f"; {tried[chosen]} is within one standard error of that, with fewer updates"
    fixed = {k: v for k, v in trial.params.items() if k != name}
    updates = np.array([math.ceil(start.data.train.n / int(b)) for b in tried])
    return BatchFinding(name, tried, curves, updates, fixed, int(tried[chosen]), reason + ".")


def _sizes(distribution: Any) -> list[int]:
    """All choices; of a range its ends and the powers of two between, where it has more than a dozen values."""
    if not hasattr(distribution, "low"):
        return list(distribution.choices)
    values = [int(v) for v in values_of(distribution)]  # type: ignore[arg-type]
    if len(values) <= 12:
        return values
    powers = {2**k for k in range(1, 20)} & set(values)
    return sorted({values[0], values[-1], *powers})
