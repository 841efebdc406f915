"""Choices side by side over seeds, and which of their differences are real.

Glossary: ``C`` choices, ``S`` seeds, ``E`` epochs. Choices of one seed start from the same draws wherever their models are the
same, and see samples in the same order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal._text import format_param, format_params
from shoal.errors import UsageError, did_you_mean
from shoal.finders._lanes import Curves, side_by_side
from shoal.finders._space import point
from shoal.finders._start import setting, whole
from shoal.finders._statistics import holm, mean_and_error, seeds_for, sign_flip_p, t_half
from shoal.preparing import PrepareArgument
from shoal.progress import ProgressMode
from shoal.records import Direction, ParamValue
from shoal.replay import Define
from shoal.spaces import is_discrete, values_of

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Pair:
    """Two choices, the better one first.

    Attributes:
        better, worse: Places in ``Comparison.choices``.
        difference: Of their mean values, in the direction of the better one: above 0.
        low, high: Ends of its 95 % interval over seeds (Student's t), not corrected for the number of pairs.
        p: Of a paired sign-flip test, corrected by Holm for the number of pairs; NaN where a run of either diverged.
        real: Whether p is at most 0.05.
    """

    better: int
    worse: int
    difference: float
    low: float
    high: float
    p: float
    real: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """How choices of one hyperparameter compare; printing it is how to read it.

    Attributes:
        over: The hyperparameter.
        choices: Its values.
        curves: What each did, seed by seed and epoch by epoch.
        seeds: How many runs each had.
        fixed: The other hyperparameters, as far as all choices have them.
        pairs: Every two choices.
    """

    over: str
    choices: tuple[ParamValue, ...]
    curves: Curves
    seeds: int
    fixed: Mapping[str, ParamValue]
    pairs: tuple[Pair, ...]

    @property
    def order(self) -> list[int]:
        """Places of the choices, the best mean first; those with a run that diverged last."""
        mean, _ = mean_and_error(self.curves.value[:, :, -1])
        sign = -1.0 if self.curves.direction == "maximize" else 1.0
        return sorted(
            range(len(self.choices)), key=lambda c: (math.isnan(mean[c]), sign * float(np.nan_to_num(mean[c])))
        )

    def __str__(self) -> str:
        values = self.curves.value[:, :, -1]
        mean, error = mean_and_error(values)
        loss, _ = mean_and_error(self.curves.valid_loss[:, :, -1])
        names = [format_param(c) for c in self.choices]
        width = max(len(self.over), *map(len, names))
        name = "validation loss" if self.curves.metric == "loss" else self.curves.metric
        lines = [
            f"{self.over:<{width}}  {name + ' (95 % interval)':<34}" + ("" if name == "validation loss" else "loss")
        ]
        for c in self.order:
            gone = int(np.isnan(values[c]).sum())
            half = t_half(self.seeds) * error[c]
            shown = f"{mean[c]:.4g} ({mean[c] - half:.4g} to {mean[c] + half:.4g})"
            shown = f"diverged in {gone} of {self.seeds} runs" if gone else shown
            tail = "" if gone or name == "validation loss" else f"{loss[c]:.4g}"
            lines.append(f"{names[c]:<{width}}  {shown:<34}{tail}".rstrip())
        lines.append("")
        lines += [self._said(pair, names) for pair in self.pairs]
        lines.append(
            f"{self.seeds} seeds, {self.curves.value.shape[2]} epochs; paired sign-flip tests, p corrected for {len(self.pairs)} "
            f"pair{'s' if len(self.pairs) > 1 else ''} (Holm). Seeds vary weights and orders, not which samples are held out."
        )
        if self.fixed:
            lines.append(f"with {format_params(self.fixed)}")
        return "\n".join(lines)

    def _said(self, pair: Pair, names: Sequence[str]) -> str:
        better, worse = names[pair.better], names[pair.worse]
        if math.isnan(pair.p):
            return f"{better} and {worse}: not compared, since a run diverged"
        what = f"{pair.difference:.4g} ({pair.low:.4g} to {pair.high:.4g}), p = {pair.p:.3g}"
        if pair.real:
            return f"{better} is better than {worse}: by {what}"
        return f"{better} and {worse}: no difference shown ({what})"

    def plot(self, path: str | Path) -> Path:
        """Draw loss curves with confidence bands and final values, as PNG, SVG or PDF; returns the path.

        Raises:
            UsageError: If matplotlib is not installed, or does not know the kind of file.
            StorageError: If the file cannot be written.
        """
        from shoal.finders._figures import plot_comparison

        return plot_comparison(self, path)


def compare(
    define: Define,
    *,
    over: str,
    train: Any,
    valid: Any = None,
    prepare: PrepareArgument = None,
    choices: Sequence[ParamValue] | None = None,
    epochs: int = 30,
    seeds: int | None = None,
    params: Mapping[str, ParamValue] | None = None,
    metric: str | Callable[..., float] | None = None,
    direction: Direction | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: ProgressMode = True,
) -> Comparison:
    """Train the choices of one hyperparameter side by side over several seeds, and say which differences are real.

    Runs of one seed are paired. The test flips the signs of their differences at random (all patterns, up to 14 seeds), so it
    assumes no distribution; p values are corrected for the number of pairs.

    Args:
        define: As for ``tune``.
        over: The hyperparameter.
        train, valid, prepare: As for ``tune``.
        choices: Its values to compare; by default all that it has, if they are categories or at most 12 numbers.
        epochs: Each is trained for.
        seeds: Runs of each; by default as many as the test needs to tell every pair apart, and 8 at least.
        params: Values of other hyperparameters; the rest is in the middle of its range, or its first choice.
        metric, direction: To judge by, as for ``tune``.
        seed: Everything random follows from it.
        device, progress: As for ``tune``.

    Raises:
        UsageError: If ``define`` does not ask for ``over``, or there are not two choices of it.
        StudyError: If no choice trained.
    """
    whole(epochs=(epochs, 1), **({} if seeds is None else {"seeds": (seeds, 2)}))
    start = setting(train, valid, params, metric, direction, seed, device, progress, prepare)
    if over in start.given:
        raise UsageError(f"params sets {over!r}, which is what is compared; leave it out.")
    trial, _ = point(define, start.given, start.data.train.n)
    if over not in trial.distributions:
        raise UsageError(f"define() does not ask for {over!r}.{did_you_mean(over, trial.distributions)}")
    values = _choices(over, trial.distributions[over], choices)
    points = [point(define, {**start.given, over: value}, start.data.train.n)[0].params for value in values]
    n_seeds = seeds_for(len(values)) if seeds is None else seeds
    said = f"training {len(values)} choices of {over} with {n_seeds} seeds"
    curves = side_by_side(define, start, points, seeds=n_seeds, epochs=epochs, said=said)
    fixed = {k: v for k, v in points[0].items() if k != over and all(p.get(k, _NOTHING) == v for p in points)}
    return Comparison(over, tuple(values), curves, n_seeds, fixed, _pairs(curves))


_NOTHING = object()


def _choices(over: str, distribution: Any, choices: Sequence[ParamValue] | None) -> list[ParamValue]:
    if choices is not None and (isinstance(choices, str) or not isinstance(choices, Sequence)):
        raise UsageError(f"choices must be a list of values of {over!r}, not {choices!r}.")
    values = list(choices) if choices is not None else values_of(distribution) if is_discrete(distribution) else []
    if choices is None and not 1 <= len(values) <= 12:
        raise UsageError(f"{over!r} is suggested from {distribution}; say which values to compare: choices=[...].")
    if len(set(values)) != len(values):
        raise UsageError(f"choices has a value twice: {values}.")
    if len(values) < 2:
        raise UsageError(
            f"there is nothing to compare: {over!r} has one choice, {values}. Give it another in define()."
        )
    return values


def _pairs(curves: Curves) -> tuple[Pair, ...]:
    sign = 1.0 if curves.direction == "maximize" else -1.0
    last = sign * curves.value[:, :, -1]  # (C, S), larger is better
    n = last.shape[1]
    found: list[tuple[int, int, Any]] = []
    for a, b in itertools.combinations(range(len(last)), 2):
        d = last[a] - last[b]
        found.append((a, b, d) if not d.mean() < 0 else (b, a, -d))
    tested = [i for i, (_, _, d) in enumerate(found) if np.isfinite(d).all()]
    corrected = dict(zip(tested, holm([sign_flip_p(found[i][2]) for i in tested]), strict=True))
    pairs = []
    for i, (a, b, d) in enumerate(found):
        half, p = t_half(n) * d.std(ddof=1) / math.sqrt(n), corrected.get(i, math.nan)
        pairs.append(Pair(a, b, float(d.mean()), float(d.mean() - half), float(d.mean() + half), p, p <= LEVEL))
    return tuple(sorted(pairs, key=lambda pair: (math.isnan(pair.p), pair.p, -pair.difference)))
