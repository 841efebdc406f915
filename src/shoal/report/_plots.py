"""Each figure as a function that draws a study on an empty figure, or returns False when there is nothing to draw."""

from __future__ import annotations

import math
from typing import Any

from shoal.records import TrialRecord, TrialState
from shoal.report._axes import (
    BEST,
    COLOURS,
    DASHES,
    MAX_BANDS,
    MAX_CURVES,
    MAX_PANELS,
    STATE_COLOURS,
    View,
    axis_labels,
    clip,
    from_unit,
    panels,
    ring_best,
    set_scale_of,
    spread,
    state_legend,
    unit,
)
from shoal.report._medians import median_curve
from shoal.report._numbers import unpacked

# Where a trial stands on an axis on which it has no value: below its ends.
_NONE = -0.09


def curves(figure: Any, study: View) -> bool | None:
    trained = [t for t in study.trials if t.rows]
    if not trained:
        return False
    axes = figure.subplots()
    trained.sort(key=lambda t: (study.is_best(t), t.state is TrialState.FINISHED))
    stride, banded = math.ceil(len(trained) / MAX_CURVES), False
    for trial in [t for k, t in enumerate(trained) if k % stride == 0 or study.is_best(t)]:
        x, y = [row.epoch for row in trial.rows], [row.value for row in trial.rows]
        errors = [math.nan if row.standard_error is None else row.standard_error for row in trial.rows]
        if any(map(math.isfinite, errors)) and (study.is_best(trial) or len(trained) <= MAX_BANDS):
            low, high = ([v + sign * e for v, e in zip(y, errors, strict=True)] for sign in (-1, 1))
            colour = BEST if study.is_best(trial) else STATE_COLOURS[trial.state]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            banded = True
        if study.is_best(trial):
            axes.plot(x, y, color=BEST, linewidth=2.4, label=f"best: trial {trial.spec.number}")
        else:
            thin = trial.state is TrialState.STOPPED
            alpha = min(0.8, max(0.06, (30 if thin else 60) / len(trained)))
            axes.plot(x, y, color=STATE_COLOURS[trial.state], linewidth=0.7 if thin else 1.0, alpha=alpha)
    clip(axes, [row.value for t in trained for row in t.rows])
    axes.set(xlabel="epoch", ylabel=study.metric)
    if banded:
        axes.set_title("band: mean ± standard error over folds or seeds", fontsize=9, loc="left")
    axes.xaxis.get_major_locator().set_params(integer=True)
    state_legend(axes, {t.state for t in trained}, with_best=study.best is not None)
    return None


def history(figure: Any, study: View) -> bool | None:
    if not study.judged:
        return False
    axes = figure.subplots()
    for state in (TrialState.STOPPED, TrialState.RUNNING, TrialState.FINISHED):
        some = [i for i in study.judged if study.trials[i].state is state]
        face = STATE_COLOURS[state] if state is TrialState.FINISHED else "none"
        axes.scatter(
            [study.trials[i].spec.number for i in some],
            [study.value(i) for i in some],
            s=12,
            facecolors=face,
            edgecolors=STATE_COLOURS[state],
            linewidths=0.8,
        )
    steps: list[tuple[int, float]] = []
    for i in study.judged:
        trial, value = study.trials[i], study.value(i)
        allowed = trial.state is TrialState.FINISHED and trial.outcome.feasible
        if allowed and (not steps or (value > steps[-1][1]) is study.maximize):
            steps.append((trial.spec.number, value))
    if steps:
        steps.append((study.trials[-1].spec.number, steps[-1][1]))
        axes.step(*zip(*steps, strict=True), where="post", color=BEST, linewidth=1.8, label="best so far")
    clip(axes, [study.value(i) for i in study.judged])
    axes.set(xlabel="trial", ylabel=study.metric)
    state_legend(axes, {study.trials[i].state for i in study.judged}, with_best=False)
    return None


def importances(figure: Any, study: View) -> bool | None:
    if not study.importances:
        return False
    axes = figure.subplots()
    shares = list(study.importances.items())[:20][::-1]
    bars = axes.barh([name for name, _ in shares], [share for _, share in shares], color=COLOURS[0])
    axes.bar_label(bars, [f"{100 * share:.0f} %" for _, share in shares], padding=3)
    axes.grid(visible=False)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("share in being among the best tenth (PED-ANOVA)", fontsize=9, loc="left")
    return None


def choices(figure: Any, study: View) -> bool | None:
    columns = [p for p in study.params if p.choices][:MAX_PANELS]
    if not columns or not any(t.rows for t in study.trials):
        return False
    last = max(t.rows[-1].epoch for t in study.trials if t.rows)
    for axes, p in zip(panels(figure, len(columns), 3.4, 2.6), columns, strict=True):
        for k, label in enumerate(p.choices[: len(COLOURS)]):
            members = [t for t, v in zip(study.trials, p.values, strict=True) if v == k and t.rows]
            curve = median_curve(members, last, maximize=study.maximize)
            if not curve:
                continue
            x = [point.epoch for point in curve]
            axes.fill_between(x, [c.low for c in curve], [c.high for c in curve], color=COLOURS[k], alpha=0.15, lw=0)
            name = f"{label} ({len(members)})"
            axes.plot(x, [c.median for c in curve], color=COLOURS[k], ls=DASHES[k % 4], label=name)
        axes.set(title=p.name, xlabel="epoch", ylabel=f"median {study.metric}")
        axes.legend(fontsize=7, frameon=False)
    return None


def slices(figure: Any, study: View) -> bool | None:
    columns = study.params[:MAX_PANELS]
    if not columns or not study.judged:
        return False
    for axes, p in zip(panels(figure, len(columns), 2.6, 2.2), columns, strict=True):
        some = [i for i in study.judged if p.values[i] is not None]
        x = [spread(p, i, study.trials[i].spec.number) for i in some]
        finished = [study.trials[i].state is TrialState.FINISHED for i in some]
        colours = [STATE_COLOURS[study.trials[i].state] for i in some]
        faces = [c if full else "none" for c, full in zip(colours, finished, strict=True)]
        axes.scatter(x, [study.value(i) for i in some], s=9, facecolors=faces, edgecolors=colours, linewidths=0.7)
        ring_best(axes, study, some, x, [study.value(i) for i in some])
        set_scale_of(axes.xaxis, axes.set_xscale, p)
        clip(axes, [study.value(i) for i in some])
        axes.set(title=p.name)
    figure.supylabel(study.metric)
    return None


def contour(figure: Any, study: View) -> bool | None:
    numeric = [p for p in study.params if not p.choices][:2]
    if len(numeric) < 2:
        return False
    import numpy as np

    px, py = numeric
    some = [i for i in study.judged if all(p.values[i] is not None for p in numeric)]
    if len(some) < 4:
        return False
    x, y = (unit(np.array([p.values[i] for i in some], float), p.log) for p in (px, py))
    shades = np.array([study.shade(i) for i in some])
    ticks = np.linspace(0, 1, 80)
    sigma = min(max(0.42 / math.sqrt(len(some)) + 0.02, 0.03), 0.12)
    bell_x, bell_y = (np.exp(-(((ticks[:, None] - at) / sigma) ** 2) / 2) for at in (x, y))  # (80, trials)
    weight = bell_y @ bell_x.T  # (80, 80)
    field = np.ma.masked_where(weight < 0.06, (bell_y * shades) @ bell_x.T / np.maximum(weight, 1e-12))
    axes = figure.subplots()
    at_x, at_y = (from_unit(ticks, np.array([p.values[i] for i in some], float), p.log) for p in (px, py))
    axes.contourf(at_x, at_y, field, levels=np.linspace(0, 1, 11), cmap="viridis", vmin=0, vmax=1)
    raw_x, raw_y = ([p.values[i] or 0.0 for i in some] for p in (px, py))
    axes.scatter(raw_x, raw_y, s=8, facecolors="white", edgecolors="black", linewidths=0.5)
    ring_best(axes, study, some, raw_x, raw_y)
    set_scale_of(axes.xaxis, axes.set_xscale, px)
    set_scale_of(axes.yaxis, axes.set_yscale, py)
    axes.grid(visible=False)
    axes.set(xlabel=px.name, ylabel=py.name)
    axes.set_title(f"average {study.metric} nearby, brighter is better", fontsize=9, loc="left")
    return None


def trajectories(figure: Any, study: View) -> bool | None:
    moved = study.trajectories["moved"][:MAX_PANELS]
    if not moved:
        return False
    for axes, one in zip(panels(figure, len(moved), 4.6, 3.0), moved, strict=True):
        lines = _moved_lines(study, one)
        drawn = [k for k in range(len(lines)) if k % math.ceil(len(lines) / MAX_CURVES) == 0]
        for k in sorted(drawn, key=lambda k: study.is_best(lines[k][0])):
            trial, x, y = lines[k]
            if study.is_best(trial):
                axes.plot(x, y, color=BEST, linewidth=2.4)
            else:
                alpha = min(0.75, max(0.12, 60 / len(drawn)))
                axes.plot(x, y, color=STATE_COLOURS[trial.state], linewidth=0.9, alpha=alpha)
        values = [v for _, _, y in lines for v in y if math.isfinite(v)]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set(title=one["name"], xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        state_legend(axes, {trial.state for trial, _, _ in lines}, with_best=any(study.is_best(t) for t, _, _ in lines))
    return None


def _moved_lines(study: View, one: Any) -> list[tuple[TrialRecord, list[float], list[float]]]:
    """(trial, epochs, values) of each path of a hyperparameter that moved."""
    many = study.trajectories["per_epoch"]
    values = iter(unpacked(one["data"]))
    lines = []
    for i, first in zip(one["trials"], one["first"], strict=True):
        epochs = [row.epoch for row in study.trials[i].rows]
        x = [e - 1 + (j + 1) / many for e in epochs for j in range(many)]
        y = [next(values) for _ in x]
        if many > 1 and isinstance(first, int | float):
            x, y = [epochs[0] - 1.0, *x], [float(first), *y]
        lines.append((study.trials[i], x, y))
    return lines


def parallel(figure: Any, study: View) -> bool | None:
    columns = study.params[: MAX_PANELS - 1]
    if not columns or not study.judged:
        return False
    import numpy as np
    from matplotlib import colormaps

    axes = figure.subplots()
    heights: list[Any] = []
    for p in columns:
        values = np.array([math.nan if p.values[i] is None else p.values[i] for i in study.judged], float)
        heights.append((values + 0.5) / len(p.choices) if p.choices else unit(values, p.log))
    heights.append(unit(np.array([study.value(i) for i in study.judged]), log=False))
    found = np.stack(heights, axis=1)  # (trials, axes)
    lines = np.where(np.isfinite(found), found, _NONE)
    ranked = sorted(range(len(study.judged)), key=lambda k: study.shade(study.judged[k]))
    for k in ranked[:: math.ceil(len(ranked) / MAX_CURVES)]:
        colour = colormaps["viridis"](0.94 * study.shade(study.judged[k]))
        axes.plot(lines[k], color=colour, linewidth=0.7, alpha=min(0.8, max(0.1, 90 / len(ranked))))
    for k, i in enumerate(study.judged):
        if study.is_best(study.trials[i]):
            axes.plot(lines[k], color=BEST, linewidth=2.4)
    axes.grid(axis="y", visible=False)
    axes.yaxis.set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    names = [p.name for p in columns] + [study.metric]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    tick: dict[str, Any] = {"fontsize": 7, "va": "center", "bbox": {"fc": "white", "ec": "none", "pad": 0.5}}
    for at, p in enumerate(columns):
        for text, height in axis_labels(p):
            axes.text(at + 0.03, height, text, **tick)
    for at in np.flatnonzero(~np.isfinite(found).all(axis=0)).tolist():
        axes.text(at + 0.03, _NONE, "none", **tick)
    return None


def confusion(figure: Any, study: View) -> bool | None:
    winner = study.record.meta.get("winner")
    classes = winner.get("classes") if isinstance(winner, dict) else None
    matrix = classes.get("matrix") if isinstance(classes, dict) else None
    if not isinstance(matrix, list) or not isinstance(winner, dict):
        return False
    import numpy as np

    counts = np.array(matrix, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes = figure.subplots()
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= 20:
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    axes.text(
                        j, i, f"{count:.0f}", ha="center", va="center", color="white" if shares[i, j] > 0.4 else "black"
                    )
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_xticks(range(len(counts)) if len(counts) <= 20 else [])
    axes.set_yticks(range(len(counts)) if len(counts) <= 20 else [])
    axes.set_title(f"trial {winner.get('trial')}, {winner.get('split')} split", fontsize=9, loc="left")
    return None


def residuals(figure: Any, study: View) -> bool | None:
    found = study.residuals
    if not isinstance(found, dict):
        return False
    import numpy as np

    left, right = figure.subplots(1, 2)
    low, high = found["range"]
    grid = np.array(found["grid"], float)
    left.imshow(
        np.ma.masked_equal(np.log1p(grid), 0),
        origin="lower",
        extent=(low, high, low, high),
        cmap="viridis",
        aspect="auto",
    )
    left.plot([low, high], [low, high], color="black", linestyle="--", linewidth=1)
    left.set(xlabel="true", ylabel="predicted")
    edges = np.linspace(found["span"][0], found["span"][1], len(found["counts"]) + 1)
    right.bar(edges[:-1], found["counts"], width=np.diff(edges) * 0.92, align="edge", color=COLOURS[0])
    right.axvline(0, color="black", linestyle="--", linewidth=1)
    right.set(xlabel="predicted minus true", ylabel="values")
    return None


def lanes(figure: Any, study: View) -> bool | None:
    lanes = study.lanes
    if not lanes["row"]:
        return False
    axes = figure.subplots()
    by_colour: dict[str, list[tuple[int, float, float]]] = {}
    for row, i, start, stop in zip(lanes["row"], lanes["trial"], lanes["start"], lanes["stop"], strict=True):
        trial = study.trials[i]
        colour = BEST if study.is_best(trial) else STATE_COLOURS[trial.state]
        by_colour.setdefault(colour, []).append((row, float(start), float(stop)))
    for colour, bars in by_colour.items():
        rows, starts, stops = zip(*bars, strict=True)
        widths = [stop - start for start, stop in zip(starts, stops, strict=True)]
        axes.barh(rows, widths, left=starts, height=0.85, color=colour, alpha=0.5 if colour == "#8a949e" else 0.95)
    axes.invert_yaxis()
    axes.set(xlabel="seconds since the study began", ylabel="lane")
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    state_legend(axes, {study.trials[i].state for i in lanes["trial"]}, with_best=False)
    return None
