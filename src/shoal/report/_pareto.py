"""The Pareto front as a figure for papers: the first objective against each other one."""

from __future__ import annotations

import math
from typing import Any

from shoal.records import TrialRecord, TrialState
from shoal.report._axes import BEST, STATE_COLOURS, View, panels


def pareto(figure: Any, study: View) -> bool | None:
    """Finished trials as dots, the front ringed and joined, trials that break a constraint as crosses."""
    record = study.record
    finished = [t for t in study.trials if t.state is TrialState.FINISHED and _drawable(t, len(record.directions))]
    if len(record.directions) < 2 or not finished:
        return False
    front = [t for t in record.front() if _drawable(t, len(record.directions))]
    numbers = {t.spec.number for t in front}
    others = range(1, len(record.directions))
    for axes, k in zip(panels(figure, len(others), 4.6, 3.4), others, strict=True):
        kept = [t for t in finished if t.outcome.feasible and t.spec.number not in numbers]
        broken = [t for t in finished if not t.outcome.feasible]
        blue = STATE_COLOURS[TrialState.FINISHED]
        axes.scatter(*_xy(kept, k), s=14, color=blue, alpha=0.6, linewidths=0, label="finished")
        if broken:
            axes.scatter(
                *_xy(broken, k), s=16, marker="x", color="#8a949e", linewidths=0.9, label="breaks a constraint"
            )
        x, y = _xy(sorted(front, key=lambda t: t.values[k]), k)
        if len(record.directions) == 2:
            where = "post" if record.directions[k] == "minimize" else "pre"
            axes.step(x, y, where=where, color=BEST, linewidth=1.6, zorder=3)
        axes.scatter(x, y, s=40, color=BEST, edgecolors="white", linewidths=1.0, zorder=4, label="Pareto front")
        spread = [t.values[k] for t in finished]
        if min(spread) > 0 and max(spread) > 30 * min(spread):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set(xlabel=record.objectives[k], ylabel=record.objectives[0])
        axes.legend(fontsize=8, frameon=False)
    return None


def _drawable(trial: TrialRecord, n: int) -> bool:
    return len(trial.values) == n and all(map(math.isfinite, trial.values))


def _xy(trials: list[TrialRecord], k: int) -> tuple[list[float], list[float]]:
    return [t.values[k] for t in trials], [t.values[0] for t in trials]
