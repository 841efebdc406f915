"""How many epochs: one configuration over several seeds, and the epoch from which nothing is gained.

Glossary: ``S`` seeds, ``E`` epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal._text import format_params
from shoal.errors import StudyError
from shoal.finders._lanes import Curves, side_by_side
from shoal.finders._space import point
from shoal.finders._start import setting, whole
from shoal.finders._statistics import mean_and_error
from shoal.preparing import PrepareArgument
from shoal.progress import ProgressMode
from shoal.records import Direction, ParamValue
from shoal.replay import Define


@dataclass(frozen=True, slots=True)
class EpochsFinding:
    """What was found about the number of epochs; printing it is how to read it.

    Attributes:
        curves: One configuration (C = 1), epoch by epoch.
        params: The hyperparameters.
        suggestion: Epochs to train for.
        best_epoch: Where the mean validation loss is lowest.
        reason: Why, in a sentence.
    """

    curves: Curves
    params: Mapping[str, ParamValue]
    suggestion: int
    best_epoch: int
    reason: str

    def __str__(self) -> str:
        mean, error = (x[0] for x in mean_and_error(self.curves.valid_loss))
        train, _ = (x[0] for x in mean_and_error(self.curves.train_loss))
        n = len(mean)
        shown = sorted({1, self.suggestion, self.best_epoch, n, *(round(n * k / 8) for k in range(1, 8))} - {0})
        lines = [f"{'epoch':>6}  {'training loss':<15}validation loss"]
        for epoch in shown:
            spread = f" ± {error[epoch - 1]:.2g}" if error[epoch - 1] == error[epoch - 1] else ""
            mark = " *" if epoch == self.suggestion else ""
            lines.append(f"{epoch:>6}  {train[epoch - 1]:<15.4g}{mean[epoch - 1]:.4g}{spread}{mark}")
        lines += ["", f"suggestion: {self.suggestion} epochs", self.reason]
        if self.params:
            lines.append(f"with {format_params(self.params)}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> Path:
        """Draw training and validation loss against epochs, as PNG, SVG or PDF; returns the path.

        Raises:
            UsageError: If matplotlib is not installed, or does not know the kind of file.
            StorageError: If the file cannot be written.
        """
        from shoal.finders._figures import plot_epochs

        return plot_epochs(self, path)


def find_epochs(
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    prepare: PrepareArgument = None,
    max_epochs: int = 60,
    seeds: int = 5,
    params: Mapping[str, ParamValue] | None = None,
    metric: str | Callable[..., float] | None = None,
    direction: Direction | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressMode = True,
) -> EpochsFinding:
    """Find how many epochs to train for: one configuration, several seeds, and where validation loss stops falling.

    The suggestion is the first epoch whose mean validation loss is within one standard error of the lowest.

    Args:
        define: As for ``tune``. A schedule that is laid out for a number of epochs keeps its own.
        train, valid, prepare: As for ``tune``.
        max_epochs: To train for.
        seeds: Runs, with weights and orders of their own.
        params: Values of hyperparameters; the rest is in the middle of its range, or its first choice.
        metric, direction, seed, device, progress: As for `find_lr`.

    Raises:
        UsageError: If an argument makes no sense.
        StudyError: If the loss did not stay finite.
    """
    whole(max_epochs=(max_epochs, 2), seeds=(seeds, 1))
    start = setting(train, valid, params, metric, direction, seed, device, progress, prepare)
    trial, _ = point(define, start.given, start.data.train.n)
    curves = side_by_side(
        define,
        start,
        [trial.params],
        seeds=seeds,
        epochs=max_epochs,
        said=f"training {seeds} seeds for {max_epochs} epochs",
    )
    suggestion, best, reason = enough(curves.valid_loss[0])
    return EpochsFinding(curves, trial.params, suggestion, best, reason)


def enough(losses: NDArray[np.float64]) -> tuple[int, int, str]:
    """Epochs to train for, the epoch of the lowest mean loss, and why.

    Args:
        losses: (S, E), NaN where a run diverged.

    Raises:
        StudyError: If the first epoch already diverged.
    """
    mean, error = (x[0] for x in mean_and_error(losses[None]))
    if not np.isfinite(mean).any():
        raise StudyError(
            "the loss was not finite in the first epoch of some run; choose a smaller learning rate by params=."
        )
    best = int(np.nanargmin(mean))
    slack = float(error[best]) if error[best] == error[best] else 0.0
    first = int(np.argmax(mean <= mean[best] + slack))
    reason = f"mean validation loss is lowest at epoch {best + 1}: {mean[best]:.4g}"
    if slack:
        reason += f" ± {slack:.2g}, and from epoch {first + 1} on within one standard error of that"
    if best == len(mean) - 1:
        reason += "; it was still falling at the end, so more epochs may gain more"
    elif np.isfinite(mean[-1]) and mean[-1] > mean[best] + 2 * slack:
        reason += f"; it rises after that, to {mean[-1]:.4g} at epoch {len(mean)}"
    return first + 1, best + 1, reason + "."
