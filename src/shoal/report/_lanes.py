"""Who was in which lane from when to when, and what the lanes gained, out of the journal's events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.records import Event, Json, StudyRecord, TrialRecord, TrialState
from shoal.report._numbers import elapsed_s, rounded


@dataclass(slots=True)
class _Bar:
    """One trial's stay in a lane; ``end_s`` is None while it is open."""

    trial: int
    fleet: int | None  # None: solo
    lane: int
    start_s: float
    end_s: float | None = None


def lanes(record: StudyRecord, trials: Sequence[TrialRecord]) -> dict[str, Json]:
    """Which trial was in which lane from when to when."""
    end_s = elapsed_s(record)
    index = {trial.spec.number: i for i, trial in enumerate(trials)}
    # Who was moved to another fleet between two epochs has been in the first one for no time: nothing to see.
    bars = [bar for bar in _bars(record.events, trials, end_s) if bar.trial in index and bar.end_s != bar.start_s]
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
        "end": rounded(end_s),
        "group": ["solo" if solo else f"fleet {fleet}" for solo, fleet, _ in keys],
        "lane": [lane for _, _, lane in keys],
        "row": [rows[bar.fleet is None, bar.fleet or 0, bar.lane] for bar in bars],
        "trial": [index[bar.trial] for bar in bars],
        "start": [rounded(bar.start_s) for bar in bars],
        "stop": [rounded(end_s if bar.end_s is None else bar.end_s) for bar in bars],
    }


def _bars(events: Sequence[Event], trials: Sequence[TrialRecord], end_s: float) -> list[_Bar]:
    """Bars in order of start. Whatever was killed left no ``left`` event, so a newcomer also ends who was there."""
    bars: list[_Bar] = []
    by_trial: dict[tuple[int, Json], _Bar] = {}  # a trial with folds or seeds has several parts, each in a lane
    by_place: dict[tuple[int, int], _Bar] = {}

    def close(bar: _Bar | None, time_s: float) -> None:
        if bar is not None and bar.end_s is None:
            bar.end_s = max(time_s, bar.start_s)

    for event in sorted(events, key=lambda event: event.time_s):
        if event.trial is None or event.kind not in {"admitted", "left", "solo"}:
            continue
        who = (event.trial, event.data.get("part", 0))
        close(by_trial.pop(who, None), event.time_s)
        if event.kind == "admitted":
            place = (event.fleet or 0, event.lane or 0)
            close(by_place.get(place), event.time_s)
            bar = _Bar(event.trial, place[0], place[1], event.time_s)
            by_place[place] = by_trial[who] = bar
            bars.append(bar)
        elif event.kind == "solo":
            by_trial[who] = bar = _Bar(event.trial, None, 0, event.time_s)
            bars.append(bar)

    ended_s = {trial.spec.number: trial.time_s for trial in trials if trial.state is not TrialState.RUNNING}
    for bar in bars:
        # A solo trial need not leave a lane: it ends when its trial does.
        if bar.fleet is None and bar.end_s is None and ended_s.get(bar.trial, 0.0) > bar.start_s:
            close(bar, min(ended_s[bar.trial], end_s))
    return bars


def speedups(record: StudyRecord) -> list[Json]:
    """What the engine measured when it opened each fleet: a tick of all lanes against one plain step per lane.

    Args:
        record: The study; a fleet that was not measured (``reproducible=True``) is left out.

    Returns:
        ``{"fleet", "lanes", "tick_s", "solo_step_s"}`` for each measured fleet, in the order they were opened.
    """
    found: list[Json] = []
    for event in record.events:
        tick_s, step_s, n_lanes = (event.data.get(key) for key in ("tick_s", "solo_step_s", "tick_lanes"))
        numbers = [x for x in (tick_s, step_s, n_lanes) if isinstance(x, int | float) and math.isfinite(x) and x > 0]
        if event.kind == "fleet" and len(numbers) == 3:
            found.append({"fleet": event.fleet, "tick_s": numbers[0], "solo_step_s": numbers[1], "lanes": numbers[2]})
    return found
