"""What the report says of several objectives and of constraints; nothing where one metric is all."""

from __future__ import annotations

import math
from html import escape
from typing import Any, Final

from shoal._text import format_param, format_value
from shoal.records import Json, StudyRecord, TrialRecord, TrialState
from shoal.report._html import grid, note
from shoal.report._numbers import rounded

# Rows of the table; the table of all trials below it has the others.
MAX_ROWS: Final = 50


def front_data(record: StudyRecord, trials: list[TrialRecord]) -> Json:
    """What the page's script draws: values by objective and trial index, who is on the front."""
    if len(record.directions) < 2:
        return None
    on = {t.spec.number for t in record.front()}
    return {
        "names": list(record.objectives),
        "directions": list(record.directions),
        "values": [
            [_number(t.values[k]) if len(t.values) > k else None for t in trials] for k in range(len(record.directions))
        ],
        "front": [i for i, t in enumerate(trials) if t.spec.number in on],
    }


def _number(value: float) -> Json:
    """Counts in full, all else as in the rest of the page."""
    return int(value) if value.is_integer() else rounded(value)


def front_section(record: StudyRecord) -> str:
    """A section with the figure's place and the table of the front; of one objective what its constraints came to."""
    constraints = record.meta.get("constraints")
    several = len(record.directions) > 1
    if not several and not constraints:
        return ""
    finished = [t for t in record.trials if t.state is TrialState.FINISHED]
    broken = sum(not t.outcome.feasible for t in finished)
    said = []
    if isinstance(constraints, list):
        verb = "break one and are" if broken != 1 else "breaks one and is"
        said.append(
            f"Constraints: {', '.join(map(str, constraints))}. {broken:,} of {len(finished):,} finished trials {verb} left out."
        )
    if not several:
        body = note(" ".join(said))
        return _section("Constraints", body)
    front = sorted(record.front(), key=lambda t: (record.point(t), t.spec.number))
    count = f"{len(front):,} trial{'s' if len(front) != 1 else ''}"
    said.insert(
        0,
        f"No finished trial is as good as one of these {count} in every objective and better in one." if front else "",
    )
    controls = (
        '<div class="controls"><label class="field" id="pareto-x-field">Across <select id="pareto-x" '
        'aria-label="Objective on the horizontal axis"></select></label><label class="field" id="pareto-y-field">Up '
        '<select id="pareto-y" aria-label="Objective on the vertical axis"></select></label>'
        '<ul class="legend" id="pareto-legend" aria-label="What the marks mean"></ul></div>'
    )
    figure = f'{controls}<div id="pareto" class="chart"></div><p class="note" id="pareto-note"></p>'
    table = (
        _table(record, front)
        if front
        else note("No finished trial keeps every constraint yet." if broken else "No trial has finished yet.")
    )
    return _section("Pareto front", figure + table + note(" ".join(filter(None, said))), "figure")


def _section(title: str, body: str, kind: str = "") -> str:
    made = f' class="{kind}"' if kind else ""
    return (
        f'\n\n<section aria-labelledby="h-front"{made}>\n  <h2 id="h-front">{escape(title)}</h2>\n  {body}\n</section>'
    )


def _table(record: StudyRecord, front: list[TrialRecord]) -> str:
    shown = front[:MAX_ROWS]
    params = list(dict.fromkeys(name for t in shown for name in t.spec.params))
    beside = [n for n in dict.fromkeys(n for t in shown for n in t.outcome.measured) if n not in record.objectives]
    weights = record.meta.get("weights")
    rows = []
    for t in shown:
        measured = [format_value(t.outcome.measured.get(name, math.nan)) for name in beside]
        own = [format_param(t.spec.params[n]) if n in t.spec.params else "-" for n in params]
        kept = "kept" if isinstance(weights, dict) and str(t.spec.number) in weights else "-"
        rows.append([f"Trial {t.spec.number}", *map(format_value, t.values), *measured, str(t.epoch), *own, kept])
    head = [
        "",
        *(_arrow(n, d) for n, d in zip(record.objectives, record.directions, strict=True)),
        *beside,
        "epochs",
        *params,
        "weights",
    ]
    more = "" if len(front) <= MAX_ROWS else f", the first {MAX_ROWS} of {len(front):,}"
    return grid(f"The front, best {record.objectives[0]} first{more}", head, rows)


def _arrow(name: str, direction: Any) -> str:
    return f"{name} {'↑' if direction == 'maximize' else '↓'}"
