"""What the figures for papers share: a study seen as columns, colours, axes and legends.

matplotlib's own types say less than they should about what ``subplots`` returns, so its objects are ``Any`` here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shoal._text import format_number
from shoal.records import StudyRecord, TrialRecord, TrialState
from shoal.report._data import report_data
from shoal.report._numbers import metric_name

# Okabe and Ito's colours, as on the page; each state also has its own line or marker.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a87900", "#56b4e9", "#16191d", "#8a6bb8")
STATE_COLOURS: Final = {
    TrialState.FINISHED: "#0072b2",
    TrialState.STOPPED: "#8a949e",
    TrialState.FAILED: "#cc5200",
    TrialState.RUNNING: "#009e73",
}
BEST: Final = "#e69f00"
DASHES: Final = ("-", "--", ":", "-.")
MAX_CURVES: Final = 2000
MAX_BANDS: Final = 8  # beyond which only the best trial's is drawn
MAX_PANELS: Final = 12


@dataclass(frozen=True, slots=True)
class Column:
    """A parameter by trial index: numbers, or positions in ``choices``; None where a trial lacks it."""

    name: str
    log: bool
    choices: tuple[str, ...]
    values: tuple[float | None, ...]


def _column(p: Any) -> Column:
    numbers = tuple(None if v is None or not math.isfinite(float(v)) else float(v) for v in p["values"])
    return Column(p["name"], p["log"], tuple(p["choices"] or ()), numbers)


class View:
    """A study as figures want it: the page's own columns, beside the records."""

    def __init__(self, record: StudyRecord, importances: Mapping[str, float]) -> None:
        self.record, self.importances = record, importances
        self.metric = metric_name(record)
        data: Any = report_data(record, importances)
        self.lanes, self.residuals, self.trajectories = data["lanes"], data["residuals"], data["trajectories"]
        self.trials = sorted(record.trials, key=lambda trial: trial.spec.number)
        self.best = record.best()
        self.maximize = record.direction == "maximize"
        self.judged = [i for i, t in enumerate(self.trials) if t.value is not None and math.isfinite(t.value)]
        ordered = sorted(self.value(i) for i in self.judged) or [0.0]
        self._span = ordered[round(0.02 * (len(ordered) - 1))], ordered[round(0.98 * (len(ordered) - 1))]
        columns = [_column(p) for p in data["params"]]
        order = [*importances]
        self.params = sorted(
            (p for p in columns if len({v for v in p.values if v is not None}) > 1),
            key=lambda p: order.index(p.name) if p.name in order else len(order),
        )

    def value(self, i: int) -> float:
        return float(self.trials[i].value or 0.0)

    def is_best(self, trial: TrialRecord) -> bool:
        return self.best is not None and trial.spec.number == self.best.spec.number

    def shade(self, i: int) -> float:
        """0 for the worst trial and 1 for the best, between the ends of the values' middle 96 %."""
        low, high = self._span
        share = (self.value(i) - low) / (high - low) if high > low else 0.5
        return min(max(share if self.maximize else 1 - share, 0.0), 1.0)


def panels(figure: Any, n: int, width: float, height: float) -> list[Any]:
    columns = min(n, 3)
    rows = math.ceil(n / columns)
    figure.set_size_inches(max(width * columns, 4.0), height * rows)
    every = figure.subplots(rows, columns, squeeze=False).ravel()
    for spare in every[n:]:
        spare.set_visible(False)
    return list(every[:n])


def spread(p: Column, i: int, number: int) -> float:
    # As on the page: choices are spread sideways by a fixed rule.
    return (p.values[i] or 0.0) + (((number * 0.618034) % 1 - 0.5) * 0.62 if p.choices else 0.0)


def set_scale_of(axis: Any, set_scale: Callable[[str], None], p: Column) -> None:
    """Choices by name, numbers on a logarithm where the search was."""
    values = [v for v in p.values if v is not None]
    if p.choices:
        long = sum(map(len, p.choices)) > 18 and axis.axis_name == "x"
        axis.set_ticks(range(len(p.choices)), p.choices, **({"rotation": 25, "ha": "right"} if long else {}))
    elif p.log and min(values) > 0:
        set_scale("log")
        # matplotlib's own labels of powers are mathematics, which is switched off for the sake of the user's texts.
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")


def unit(values: Any, log: bool) -> Any:
    """Values on 0..1, as they lie on an axis."""
    import numpy as np

    scaled = np.log(values) if log and np.nanmin(values) > 0 else values
    low, high = np.nanmin(scaled), np.nanmax(scaled)
    return (scaled - low) / (high - low) if high > low else np.full(len(values), 0.5)


def from_unit(at: Any, values: Any, log: bool) -> Any:
    import numpy as np

    if log and values.min() > 0:
        return np.exp(np.log(values.min()) + at * (np.log(values.max()) - np.log(values.min())))
    return values.min() + at * (values.max() - values.min())


def axis_labels(p: Column) -> list[tuple[str, float]]:
    if p.choices:
        return [(label, (k + 0.5) / len(p.choices)) for k, label in enumerate(p.choices)]
    values = [v for v in p.values if v is not None]
    return [(format_number(float(min(values)), 3), 0.0), (format_number(float(max(values)), 3), 1.0)]


def ring_best(axes: Any, study: View, some: Sequence[int], x: Sequence[float], y: Sequence[float]) -> None:
    for k, i in enumerate(some):
        if study.is_best(study.trials[i]):
            axes.scatter([x[k]], [y[k]], s=48, color=BEST, edgecolors="white", linewidths=1.2, zorder=5)


def clip(axes: Any, values: Sequence[float]) -> None:
    """As on the page: a few wild values must not flatten the rest."""
    ordered = sorted(v for v in values if math.isfinite(v))
    if not ordered:
        return
    low, high = ordered[round(0.02 * (len(ordered) - 1))], ordered[round(0.98 * (len(ordered) - 1))]
    if high > low and ordered[-1] - ordered[0] > 2.5 * (high - low):
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def state_legend(axes: Any, states: set[TrialState], *, with_best: bool) -> None:
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], color=BEST, lw=2.4, label="best")] if with_best else []
    handles, _ = axes.get_legend_handles_labels()
    entries = [h for h in handles if isinstance(h, Line2D)] or entries
    entries += [Line2D([], [], color=STATE_COLOURS[s], lw=1.4, label=str(s)) for s in TrialState if s in states]
    axes.legend(handles=entries, fontsize=8, frameon=False)
