"""Which learning rate: a grid of rates trained side by side, and the classic range test beside it.

Glossary: ``C`` rates of the grid, ``S`` seeds, ``T`` updates of the range test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shoal._text import format_number, format_params
from shoal.errors import StudyError, UsageError
from shoal.finders._lanes import Curves, seed_of, side_by_side
from shoal.finders._space import named
from shoal.finders._start import Setting, setting, whole
from shoal.finders._statistics import mean_and_error
from shoal.keyed import permutation, sample_keys
from shoal.lanes.fleet import Work
from shoal.lanes.solo import Solo
from shoal.preparing import PrepareArgument
from shoal.progress import ProgressMode
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec
from shoal.replay import Define, replay

_SMOOTHING = 0.9  # of the range test's losses, an exponential mean
_BEYOND = 10.0  # the range test goes on to so many times the largest rate of the grid
_CLEAR = 0.03  # a fall by less than this share of the first loss is noise
_DIVERGED = 4.0  # the range test ends when the loss is so many times its best


@dataclass(frozen=True, slots=True)
class RangeTest:
    """The classic test: one run whose rate grows with every update, from the smallest of the grid to ten times its
    largest.

    Attributes:
        rates: (T,).
        losses: (T,), smoothed training losses, averaged over seeds.
        suggestion: The rate at which the loss falls fastest, on a logarithmic axis; None if it never clearly falls.

    References:
        Smith (2017), Cyclical learning rates for training neural networks, section 3.3.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    suggestion: float | None


@dataclass(frozen=True, slots=True)
class LrFinding:
    """What was found about the learning rate; printing it is how to read it.

    Attributes:
        param: The hyperparameter.
        rates: (C,), the grid.
        curves: What each rate did, epoch by epoch.
        fixed: The other hyperparameters.
        suggestion: The rate to take.
        plateau: The smallest and largest rate around it whose loss cannot be told from the best.
        reason: Why, in a sentence.
        range_test: The classic test, beside it.
    """

    param: str
    rates: NDArray[np.float64]
    curves: Curves
    fixed: Mapping[str, ParamValue]
    suggestion: float
    plateau: tuple[float, float]
    reason: str
    range_test: RangeTest

    @property
    def losses(self) -> NDArray[np.float64]:
        """(C, S): validation losses after the last epoch; NaN where a trial diverged."""
        return self.curves.valid_loss[:, :, -1]

    def __str__(self) -> str:
        mean, error = mean_and_error(self.losses)
        value, _ = mean_and_error(self.curves.value[:, :, -1])
        scored = self.curves.metric != "loss"
        lines = [f"{'rate':>10}  {'validation loss':<20}" + (f"  {self.curves.metric}" if scored else "")]
        for i, rate in enumerate(self.rates):
            shown = "diverged" if math.isnan(mean[i]) else f"{mean[i]:.4g}"
            shown += f" ± {error[i]:.2g}" if error[i] == error[i] else ""
            inside = self.plateau[0] <= rate <= self.plateau[1]
            score = f"  {value[i]:.4g}" if scored and value[i] == value[i] else ""
            lines.append(f"{format_number(float(rate), 3):>10}  {shown:<20}{score:<12}{'*' if inside else ''}".rstrip())
        swept = self.range_test.suggestion
        lines += [
            "",
            f"suggestion: {self.param} = {format_number(self.suggestion, 3)}",
            self.reason,
            "range test: the loss never clearly fell"
            if swept is None
            else f"range test: the loss falls fastest at {format_number(swept, 3)}",
        ]
        if self.fixed:
            lines.append(f"with {format_params(self.fixed)}")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> Path:
        """Draw loss against rate, from the grid and from the range test, as PNG, SVG or PDF; returns the path.

        Raises:
            UsageError: If matplotlib is not installed, or does not know the kind of file.
            StorageError: If the file cannot be written.
        """
        from shoal.finders._figures import plot_lr

        return plot_lr(self, path)


def find_lr(
    define: Define,
    *,
    train: Any,
    valid: Any = None,
    prepare: PrepareArgument = None,
    param: str | None = None,
    low: float | None = None,
    high: float | None = None,
    n_rates: int = 21,
    epochs: int = 30,
    seeds: int = 3,
    params: Mapping[str, ParamValue] | None = None,
    metric: str | Callable[..., float] | None = None,
    direction: Any = None,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressMode = True,
) -> LrFinding:
    """Find a learning rate: train a grid of them at once, as lanes, and run the classic range test beside it.

    The suggestion is the middle of the rates around the best whose mean validation loss is within one standard error of its.

    Args:
        define: As for ``tune``; it must suggest a learning rate as a float.
        train, valid, prepare: As for ``tune``.
        param: The hyperparameter, if it cannot be told from what it does.
        low, high: Ends of the grid; by default those of the search space.
        n_rates: Rates of the grid, evenly on a logarithmic axis, 3 to 128.
        epochs: Each is trained for: as many as the model will be, since the best rate after few epochs is often too large for many.
        seeds: Runs of each rate, with weights and orders of their own.
        params: Values of other hyperparameters; the rest is in the middle of its range, or its first choice.
        metric, direction: What to show beside the loss, as for ``tune``.
        seed: Everything random follows from it.
        device, progress: As for ``tune``.

    Returns:
        What was found.

    Raises:
        UsageError: If ``define`` suggests no learning rate, or an argument makes no sense.
        StudyError: If no rate trained.
    """
    whole(n_rates=(n_rates, 3), epochs=(epochs, 1), seeds=(seeds, 1))
    if n_rates > 128:
        raise UsageError(f"n_rates must be at most 128, not {n_rates}.")
    start = setting(train, valid, params, metric, direction, seed, device, progress, prepare)
    name, trial = named("learning rate", param, define, start, usual=("lr", "learning_rate"), read=_rates_of)
    if name in start.given:
        raise UsageError(f"params sets {name!r}, which is what the grid is over; leave it out.")
    distribution: Any = trial.distributions[name]
    if not hasattr(distribution, "low") or isinstance(distribution.low, int):
        raise UsageError(
            f"{name!r} is suggested from {distribution}; a grid of rates needs a suggest_float, or try shoal.compare."
        )
    ends = distribution.low if low is None else low, distribution.high if high is None else high
    if not 0 < ends[0] < ends[1] < math.inf:
        raise UsageError(f"a grid of rates needs 0 < low < high; got low={ends[0]!r} and high={ends[1]!r}.")
    if ends[0] < distribution.low or ends[1] > distribution.high:
        raise UsageError(
            f"define() allows {name} from {distribution.low:g} to {distribution.high:g}; a grid from {ends[0]:g} to {ends[1]:g} "
            "leaves that. Widen the range in define(), or narrow the grid."
        )
    rates = np.geomspace(*ends, n_rates).clip(*ends)
    fixed = {k: v for k, v in trial.params.items() if k != name}
    curves = side_by_side(
        define,
        start,
        [{**trial.params, name: float(rate)} for rate in rates],
        seeds=seeds,
        epochs=epochs,
        said=f"training {n_rates} learning rates",
    )
    suggestion, plateau, reason = suggest(rates, curves.valid_loss[:, :, -1], epochs)
    swept = _range_test(define, start, {**trial.params, name: float(rates[0])}, rates, seeds)
    return LrFinding(name, rates, curves, fixed, suggestion, plateau, reason, swept)


def _rates_of(recipe: Recipe) -> object:
    return [g.get("initial_lr", g.get("lr")) for g in recipe.optimizer.param_groups]


def suggest(
    rates: NDArray[np.float64], losses: NDArray[np.float64], epochs: int
) -> tuple[float, tuple[float, float], str]:
    """A rate, the plateau around it, and why.

    Args:
        rates: (C,), growing.
        losses: (C, S), NaN where a run diverged.
        epochs: They were trained for.

    Raises:
        StudyError: If every rate diverged.
    """
    mean, error = mean_and_error(losses)
    if not np.isfinite(mean).any():
        raise StudyError("the loss of every learning rate was not finite in some run; choose a smaller low and high.")
    best = int(np.nanargmin(mean))
    slack = float(error[best]) if error[best] == error[best] else 0.0
    near = np.isfinite(mean) & (mean <= mean[best] + slack)
    first = last = best
    while first > 0 and near[first - 1]:
        first -= 1
    while last < len(rates) - 1 and near[last + 1]:
        last += 1
    low, high = float(rates[first]), float(rates[last])
    suggestion = math.sqrt(low) * math.sqrt(high)
    counted = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    reason = f"validation loss is lowest at {rates[best]:.3g}: {mean[best]:.4g}"
    reason += f" ± {slack:.2g} after {counted}" if slack else f" after {counted}"
    if last > first:
        reason += f"; from {low:.3g} to {high:.3g} it is within one standard error of that, and this is their middle"
    if best in (0, len(rates) - 1):
        side = "smallest" if best == 0 else "largest"
        reason += f". That is the {side} rate that was tried: the best may lie beyond it"
    return suggestion, (low, high), reason + "."


def _range_test(
    define: Define, start: Setting, params: Mapping[str, ParamValue], rates: NDArray[np.float64], seeds: int
) -> RangeTest:
    """Train with a rate that grows geometrically from update to update, in a plain loop, until the loss explodes."""
    data, device, n = start.data, start.device, start.data.train.n
    probe = replay(define, TrialSpec(0, 0, dict(params), {}), n, data.train.form)
    size = probe.batch_size
    n_updates = int(min(300, max(100, 3 * math.ceil(n / size))))
    swept = np.geomspace(rates[0], _BEYOND * rates[-1], n_updates)
    runs = np.full((seeds, n_updates), np.nan)
    for s in range(seeds):
        spec = TrialSpec(s, seed_of(start, s), dict(params), {})
        solo = Solo(spec, replay(define, spec, n, data.train.form), Work(data, (), device))
        solo.recipe.train_mode()
        groups = solo.recipe.optimizer.param_groups
        shares = [float(g["lr"]) / float(groups[0]["lr"] or 1.0) for g in groups]
        smooth, least, epoch, at = 0.0, math.inf, -1, n
        for t, rate in enumerate(swept):
            if at >= n:
                epoch, at = epoch + 1, 0
                order = torch.from_numpy(permutation(spec.seed, epoch, n)).to(device)
                keys = torch.from_numpy(sample_keys(spec.seed, epoch, n)).to(device)
            for group, share in zip(groups, shares, strict=True):
                group["lr"] = float(rate) * share
            rows = order[at : at + size]
            loss = float(solo.step(tuple(x[rows] for x in data.train.tensors), keys[at : at + size]))
            at += size
            smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
            shown = smooth / (1 - _SMOOTHING ** (t + 1))
            if not math.isfinite(shown) or (t > 10 and shown > _DIVERGED * least):
                break
            runs[s, t], least = shown, min(least, shown)
    done = int(np.isfinite(runs).all(axis=0).sum())
    losses = runs[:, :done].mean(axis=0)
    return RangeTest(swept[:done], losses, steepest(swept[:done], losses))


def steepest(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> float | None:
    """The rate at which the loss falls fastest on a logarithmic axis, over two fifteenths of the sweep; or None.

    >>> rates = np.geomspace(1e-4, 1.0, 50)
    >>> 0.009 < steepest(rates, 1 / (1 + np.exp(6 * np.log10(rates / 0.01)))) < 0.012
    True
    """
    span = max(2, len(losses) // 15)
    if len(losses) <= 2 * span:
        return None
    falls = losses[: -2 * span] - losses[2 * span :]
    # The first losses are means of few, and jump about.
    at = span + int(np.argmax(falls[span:])) if len(falls) > span else 0
    return float(rates[at + span]) if falls[at] > _CLEAR * abs(losses[0]) else None
