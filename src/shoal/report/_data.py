"""A study as compact arrays for the page: 10,000 trials must stay a file that a browser opens without a pause.

Glossary: everything here is *columnar*, one list per field and one entry per trial, in the order of trial numbers; a
*trial index* is a position in these lists and not a trial number. Numbers are rounded to five significant digits;
numbers that JSON does not have become strings (see `shoal._text`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal._text import format_param, json_ready
from shoal.records import Event, Json, ParamValue, StudyRecord, TrialRecord, TrialState

STATES: Final = tuple(TrialState)


def report_data(record: StudyRecord) -> dict[str, Json]:
    """Everything that the page's script draws.

    Args:
        record: The study. Trials may come in any order and may lack rows, parameters and distributions.

    Returns:
        JSON with the keys ``metric``, ``direction``, ``best`` (a trial index or -1), ``states``, ``trials``,
        ``params``, ``curves`` and ``lanes``.
    """
    trials = sorted(record.trials, key=lambda trial: trial.spec.number)
    best = record.best()
    reasons: dict[str, int] = {}
    return {
        "metric": metric_name(record),
        "direction": record.direction,
        "best": -1 if best is None else [trial.spec.number for trial in trials].index(best.spec.number),
        "states": [str(state) for state in STATES],
        "trials": {
            "number": [trial.spec.number for trial in trials],
            "state": [STATES.index(trial.state) for trial in trials],
            "value": [_round(trial.value) for trial in trials],
            "epoch": [trial.epoch for trial in trials],
            # Reasons repeat ("stopped at rung 3"), so each text is stored once.
            "reason": [reasons.setdefault(trial.reason, len(reasons)) for trial in trials],
            "reasons": list[Json](reasons),
        },
        "params": _params(trials, record.meta.get("space")),
        "curves": _curves(trials),
        "lanes": _lanes(record, trials),
    }


def metric_name(record: StudyRecord) -> str:
    """The metric that the study is judged by."""
    return str(record.meta.get("metric") or "value")


def elapsed_s(record: StudyRecord) -> float:
    """How long the study ran: what it says itself, or the latest time anywhere in it."""
    said = record.meta.get("elapsed_s")
    times = [event.time_s for event in record.events]
    times += [trial.time_s for trial in record.trials]
    times += [trial.rows[-1].time_s for trial in record.trials if trial.rows]
    if isinstance(said, int | float):
        times.append(float(said))
    return max((t for t in times if math.isfinite(t)), default=0.0)


def _round(value: float | None) -> Json:
    if value is None or not math.isfinite(value):
        return json_ready(value)
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _curves(trials: Sequence[TrialRecord]) -> dict[str, Json]:
    """Three series per trial. Epochs are written only for the rare trial whose rows are not epochs 1, 2, 3, ..."""
    odd: dict[str, Json] = {}
    for index, trial in enumerate(trials):
        epochs = [row.epoch for row in trial.rows]
        if epochs != list(range(1, len(epochs) + 1)):
            odd[str(index)] = list[Json](epochs)
    return {
        "value": [[_round(row.value) for row in trial.rows] for trial in trials],
        "loss": [[_round(row.metrics.get("loss")) for row in trial.rows] for trial in trials],
        "train": [[_round(row.train_loss) for row in trial.rows] for trial in trials],
        "epochs": odd,
    }


def _params(trials: Sequence[TrialRecord], space: Json) -> list[Json]:
    """One column per parameter, in the order of the search space and then of first use."""
    names: dict[str, None] = dict.fromkeys(space if isinstance(space, dict) else ())
    for trial in trials:
        names.update(dict.fromkeys(trial.spec.params))
    columns: list[Json] = []
    for name in names:
        distributions = {trial.spec.distributions[name] for trial in trials if name in trial.spec.distributions}
        if isinstance(space, dict) and isinstance(text := space.get(name), str):
            distributions.add(text)
        columns.append(
            _param(name, [trial.spec.params.get(name) for trial in trials], _has(name, trials), distributions)
        )
    return columns


def _has(name: str, trials: Sequence[TrialRecord]) -> list[bool]:
    return [name in trial.spec.params for trial in trials]


def _param(name: str, values: Sequence[ParamValue], present: Sequence[bool], distributions: Iterable[str]) -> Json:
    """A column of numbers, or one of choices when its distribution is categorical or some value is not a number."""
    parsed = [_distribution(text) for text in sorted(distributions)]
    used = [value for value, here in zip(values, present, strict=True) if here]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in used)
    if not numeric or any("choices" in attributes for attributes in parsed):
        labels: dict[str, int] = {}
        for attributes in parsed:
            choices = attributes.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                labels.setdefault(format_param(choice), len(labels))
        indices: list[Json] = [
            labels.setdefault(format_param(value), len(labels)) if here else None
            for value, here in zip(values, present, strict=True)
        ]
        return {"name": name, "log": False, "choices": list[Json](labels), "values": indices}
    log = any(attributes.get("log") is True for attributes in parsed)
    numbers: list[Json] = [
        _round(value) if here and isinstance(value, int | float) else None
        for value, here in zip(values, present, strict=True)
    ]
    return {"name": name, "log": log, "choices": None, "values": numbers}


def _distribution(text: str) -> Mapping[str, Json]:
    """An Optuna distribution's attributes; empty for anything else, since a report must not fail on an odd study."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    attributes = data.get("attributes") if isinstance(data, dict) else None
    return attributes if isinstance(attributes, dict) else {}


@dataclass(slots=True)
class _Bar:
    """One trial's stay in a lane; ``end_s`` is None while it is open."""

    trial: int
    fleet: int | None  # None: solo
    lane: int
    start_s: float
    end_s: float | None = None


def _lanes(record: StudyRecord, trials: Sequence[TrialRecord]) -> dict[str, Json]:
    """Which trial was in which lane from when to when."""
    end_s = elapsed_s(record)
    index = {trial.spec.number: i for i, trial in enumerate(trials)}
    bars = [bar for bar in _bars(record.events, trials, end_s) if bar.trial in index]
    # Solo trials have no lane of their own: they share as few rows as do not overlap.
    free_from_s: list[float] = []
    for bar in bars:
        if bar.fleet is None:
            row = next((i for i, free_s in enumerate(free_from_s) if free_s <= bar.start_s), len(free_from_s))
            free_from_s[row : row + 1] = [end_s if bar.end_s is None else bar.end_s]
            bar.lane = row
    keys = sorted({(bar.fleet is None, bar.fleet or 0, bar.lane) for bar in bars})
    rows = {key: i for i, key in enumerate(keys)}
    return {
        "end": _round(end_s),
        "group": ["solo" if solo else f"fleet {fleet}" for solo, fleet, _ in keys],
        "lane": [lane for _, _, lane in keys],
        "row": [rows[bar.fleet is None, bar.fleet or 0, bar.lane] for bar in bars],
        "trial": [index[bar.trial] for bar in bars],
        "start": [_round(bar.start_s) for bar in bars],
        "stop": [_round(end_s if bar.end_s is None else bar.end_s) for bar in bars],
    }


def _bars(events: Sequence[Event], trials: Sequence[TrialRecord], end_s: float) -> list[_Bar]:
    """Bars in order of start. Whatever was killed left no ``left`` event, so a newcomer also ends who was there."""
    bars: list[_Bar] = []
    by_trial: dict[int, _Bar] = {}
    by_place: dict[tuple[int, int], _Bar] = {}

    def close(bar: _Bar | None, time_s: float) -> None:
        if bar is not None and bar.end_s is None:
            bar.end_s = max(time_s, bar.start_s)

    for event in sorted(events, key=lambda event: event.time_s):
        if event.trial is None or event.kind not in {"admitted", "left", "solo"}:
            continue
        close(by_trial.pop(event.trial, None), event.time_s)
        if event.kind == "admitted":
            place = (event.fleet or 0, event.lane or 0)
            close(by_place.get(place), event.time_s)
            bar = _Bar(event.trial, place[0], place[1], event.time_s)
            by_place[place] = by_trial[event.trial] = bar
            bars.append(bar)
        elif event.kind == "solo":
            by_trial[event.trial] = bar = _Bar(event.trial, None, 0, event.time_s)
            bars.append(bar)

    ended_s = {trial.spec.number: trial.time_s for trial in trials if trial.state is not TrialState.RUNNING}
    for bar in bars:
        # A solo trial need not leave a lane: it ends when its trial does.
        if bar.fleet is None and bar.end_s is None and ended_s.get(bar.trial, 0.0) > bar.start_s:
            close(bar, min(ended_s[bar.trial], end_s))
    return bars
