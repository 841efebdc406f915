"""The finders' pictures, drawn by matplotlib, which is imported only then. Colours are Okabe and Ito's, as in the report."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal._text import format_number, format_param
from shoal.errors import StorageError, UsageError
from shoal.finders._statistics import mean_and_error, t_half
from shoal.report import BEST, COLOURS, DASHES, STYLE

if TYPE_CHECKING:
    from shoal.finders._batch import BatchFinding
    from shoal.finders._compare import Comparison
    from shoal.finders._epochs import EpochsFinding
    from shoal.finders._lr import LrFinding

_BAND = 0.18  # opacity


def _draw(path: str | Path, size: tuple[float, float], draw: Callable[[Any], None]) -> Path:
    """Draw on a new figure and write it.

    Raises:
        UsageError: matplotlib is not installed, or does not know the kind of file.
        StorageError: The file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("figures are drawn by matplotlib: run `pip install matplotlib`.") from error
    path = Path(path)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        known = figure.canvas.get_supported_filetypes()
        if path.suffix[1:].lower() not in known:
            raise UsageError(f"a figure's file must end in .png, .svg or .pdf; got {path.name!r}.")
        draw(figure)
        try:
            figure.savefig(path, dpi=160)
        except OSError as error:
            raise StorageError(f"the figure cannot be written to {str(path)!r}: {error.strerror or error}.") from error
    return path


def _plain(axis: Any) -> None:
    """Labels of a logarithmic axis as numbers: mathematics is switched off for the sake of the user's texts."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def _upto(axes: Any, means: Any) -> None:
    """A few rates that barely train must not flatten the rest: the axis ends a little above what most do."""
    there = means[np.isfinite(means)]
    low, high = float(there.min()), float(np.quantile(there, 0.9))
    if high > low > 0:
        axes.set_ylim(low * (low / high) ** 0.08, high * (high / low) ** 0.12)


def _errors(axes: Any, x: Any, mean: Any, error: Any, colour: str, label: str) -> None:
    bars = None if np.isnan(error).all() else error
    axes.errorbar(x, mean, yerr=bars, fmt="o-", ms=3.5, lw=1.3, capsize=2, color=colour, label=label)


def _diverged(axes: Any, x: Any, mean: Any) -> None:
    gone = np.asarray(x)[np.isnan(mean)]
    if len(gone):
        top = axes.get_ylim()[1]
        axes.plot(gone, np.full(len(gone), top), "x", color=COLOURS[1], ms=6, clip_on=False, label="diverged")


def plot_lr(finding: LrFinding, path: str | Path) -> Path:
    """Loss against rate: the grid on the left, the range test on the right."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        mean, error = mean_and_error(finding.losses)
        n_epochs, n_seeds = finding.curves.valid_loss.shape[2], finding.losses.shape[1]
        label = f"mean of {n_seeds} seeds ± standard error" if n_seeds > 1 else "validation loss"
        if finding.plateau[0] < finding.plateau[1]:
            left.axvspan(*finding.plateau, color=COLOURS[2], alpha=_BAND, lw=0, label="as good as the best")
        _errors(left, finding.rates, mean, error, COLOURS[0], label)
        left.axvline(finding.suggestion, color=BEST, lw=2, label=f"suggestion: {format_number(finding.suggestion, 3)}")
        left.set_title(f"Grid: {len(finding.rates)} rates, {n_epochs} epochs each", fontsize=10, loc="left")
        left.set_ylabel("validation loss")
        left.set_yscale("log")
        _upto(left, mean)
        _ticks(left)
        swept = finding.range_test
        right.plot(swept.rates, swept.losses, color=COLOURS[0], lw=1.4, label="training loss, smoothed")
        if swept.suggestion is not None:
            steepest = f"falls fastest: {format_number(swept.suggestion, 3)}"
            # Above the grid's suggestion, which may lie in the same place.
            right.axvline(swept.suggestion, color=COLOURS[3], lw=1.6, ls="--", label=steepest, zorder=3)
        right.axvline(finding.suggestion, color=BEST, lw=2, label="suggestion of the grid")
        right.set_title(f"Range test: the rate grows over {len(swept.rates)} updates", fontsize=10, loc="left")
        right.set_ylabel("training loss")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlim(finding.rates[0] / 1.15, max(finding.rates[-1], *swept.rates[-1:]) * 1.15)
            axes.set_xlabel(f"learning rate ({finding.param})")
            _plain(axes.xaxis)
        _diverged(left, finding.rates, mean)
        for axes in (left, right):
            # Wherever the valley lies, it is what the picture is for: the legend goes below.
            axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)

    return _draw(path, (9.6, 4.0), draw)


def plot_batch(finding: BatchFinding, path: str | Path) -> Path:
    """Loss against batch size on the left, curves on the right."""

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        mean, error = mean_and_error(finding.losses)
        n_epochs, n_seeds = finding.curves.valid_loss.shape[2], finding.losses.shape[1]
        label = f"mean of {n_seeds} seeds ± standard error" if n_seeds > 1 else "validation loss"
        _errors(left, finding.sizes, mean, error, COLOURS[0], label)
        left.axvline(finding.suggestion, color=BEST, lw=2, zorder=1, label=f"suggestion: {finding.suggestion}")
        left.set_xscale("log", base=2)
        left.set_xticks(finding.sizes)
        _plain(left.xaxis)
        left.set_xlabel(f"batch size ({finding.param}), samples per update")
        left.set_ylabel(f"validation loss after {n_epochs} epochs")
        _diverged(left, finding.sizes, mean)
        _curves(right, finding.curves.valid_loss, [str(size) for size in finding.sizes])
        right.set_ylabel("validation loss")
        right.set_title(_banded(n_seeds), fontsize=10, loc="left")
        # Below, where it hides neither the line of the suggestion nor a point.
        left.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        right.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", title="batch size", title_fontsize=8)

    return _draw(path, (9.6, 3.8), draw)


def plot_epochs(finding: EpochsFinding, path: str | Path) -> Path:
    """Training and validation loss against epochs."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        both = np.concatenate([finding.curves.train_loss, finding.curves.valid_loss])
        _curves(axes, both, ["training", "validation"])
        suggestion = f"suggestion: {finding.suggestion} epochs"
        axes.axvline(finding.suggestion, color=BEST, lw=2, label=suggestion)
        axes.set_ylabel("loss")
        axes.set_title(_banded(finding.curves.valid_loss.shape[1]), fontsize=10, loc="left")
        axes.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")

    return _draw(path, (6.4, 3.8), draw)


def plot_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Loss curves with bands on the left, final values seed by seed on the right."""

    def draw(figure: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        curves, names = comparison.curves, [format_param(c) for c in comparison.choices]
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _curves(left, curves.valid_loss, names)
        left.set_ylabel("validation loss")
        values = curves.value[:, :, -1]
        mean, error = mean_and_error(values)
        n, order = comparison.seeds, comparison.order
        for place, c in enumerate(reversed(order)):
            colour = COLOURS[c % len(COLOURS)]
            spread = (np.arange(n) * 0.618034 % 1 - 0.5) * 0.34
            right.scatter(values[c], place + spread, s=9, color=colour, alpha=0.55, lw=0)
            if math.isfinite(mean[c]):
                half = t_half(n) * error[c]
                right.errorbar(mean[c], place, xerr=half, fmt="D", ms=5, capsize=4, lw=1.6, color=colour)
        right.set_yticks(range(len(order)), [names[c] for c in reversed(order)])
        right.set_ylim(-0.6, len(order) - 0.4)
        name = "validation loss" if curves.metric == "loss" else f"validation {curves.metric}"
        right.set_xlabel(f"{name} after {curves.value.shape[2]} epochs")
        right.set_title(f"{n} seeds each; mean and 95 % interval", fontsize=10, loc="left")
        right.xaxis.set_major_locator(MaxNLocator(5))
        left.set_title(_banded(n), fontsize=10, loc="left")
        left.legend(fontsize=8, frameon=True, framealpha=0.9, edgecolor="none", title=comparison.over, title_fontsize=8)

    height = max(3.8, 0.42 * len(comparison.choices) + 1.6)
    return _draw(path, (9.6, height), draw)


def _banded(n_seeds: int) -> str:
    """What a figure of curves shows."""
    return f"Mean and 95 % band over {n_seeds} seeds" if n_seeds > 1 else "One run each"


def _curves(axes: Any, losses: Any, names: list[str]) -> None:
    """Mean and 95 % band over seeds of (C, S, E) losses."""
    from matplotlib.ticker import MaxNLocator

    mean, error = mean_and_error(losses)
    epochs = np.arange(1, losses.shape[2] + 1)
    for c, name in enumerate(names):
        colour, dash = COLOURS[c % len(COLOURS)], DASHES[c % len(DASHES)]
        gone = f"{name} (diverged)" if np.isnan(mean[c]).any() else name
        axes.plot(epochs, mean[c], color=colour, ls=dash, lw=1.5, label=gone, marker="." if len(epochs) == 1 else None)
        if losses.shape[1] > 1:
            half = t_half(losses.shape[1]) * error[c]
            axes.fill_between(epochs, mean[c] - half, mean[c] + half, color=colour, alpha=_BAND, lw=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yscale("log")
    _ticks(axes)


def _ticks(axes: Any) -> None:
    """A logarithmic axis of losses, with as many numbers as it takes to read it."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs = (1, 1.5, 2, 3, 5, 7) if decades < 0.9 else (1, 2, 5) if decades < 3 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
