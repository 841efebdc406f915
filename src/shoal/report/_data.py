"""A study as compact arrays for the page: 10,000 trials must stay a file that a browser opens without a pause.

Glossary: everything here is *columnar*, one list per field and one entry per trial, in the order of trial numbers; a
*trial index* is a position in these lists and not a trial number. Curves are one flat array per *series* (the value,
each recorded metric, the train loss): all epochs of the first trial, then all of the second, as little-endian float32
in base64, which is half of what the same numbers take as text and needs no parsing. Where that is too much for a page, all
trials keep the same epochs, in a grid that is as fine as there is room for: 1, n, 2 n, 3 n, ... and their last, n being
``every``. Where folds or seeds give the value a standard error, the first series has that as well, under ``errors``.
Other numbers are rounded to five significant digits; those that JSON does not have become strings (see `shoal._text`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from shoal._text import format_param
from shoal.records import EpochRow, Json, ParamValue, StudyRecord, TrialRecord, TrialState
from shoal.report._front import front_data
from shoal.report._lanes import lanes, speedups
from shoal.report._numbers import metric_name, packed, rounded
from shoal.report._trajectories import trajectories
from shoal.stages import counted

STATES: Final = tuple(TrialState)
# Of all series together: 8 MB as base64. Beyond it epochs are left out, and then metrics that were recorded beside the study's own.
MAX_POINTS: Final = 1_500_000
# How many series a page keeps before it leaves out epochs: the value, the loss, the train loss, and one more.
_SERIES: Final = 4


def report_data(record: StudyRecord, importances: Mapping[str, float] | None = None) -> dict[str, Json]:
    """Everything that the page's script draws.

    Args:
        record: The study. Trials may come in any order and may lack rows, parameters and distributions.
        importances: Parameter name -> share, as from `shoal.importances`.

    Returns:
        JSON with the keys ``metric``, ``direction``, ``best`` (a trial index or -1), ``broken`` (indices of trials that break a
        constraint), ``states``, ``trials``, ``params``, ``curves``, ``importances``, ``lanes``, ``speedups``, ``residuals`` and
        ``trajectories``.
    """
    trials = sorted(record.trials, key=lambda trial: trial.spec.number)
    every = max(1, math.ceil(_SERIES * sum(len(trial.rows) for trial in trials) / MAX_POINTS))
    trained = [_thinned(trial, every) for trial in trials]
    best = record.best()
    reasons: dict[str, int] = {}
    winner = record.meta.get("winner")
    return {
        "metric": metric_name(record),
        "direction": record.direction,
        **({"objectives": front_data(record, trials)} if len(record.directions) > 1 else {}),
        "best": -1 if best is None else [trial.spec.number for trial in trials].index(best.spec.number),
        "broken": [i for i, trial in enumerate(trials) if not trial.outcome.feasible],
        "states": [str(state) for state in STATES],
        "trials": {
            "number": [trial.spec.number for trial in trials],
            "state": [STATES.index(trial.state) for trial in trials],
            "value": [rounded(trial.value) for trial in trials],
            "epoch": [trial.epoch for trial in trials],
            # Reasons repeat ("stopped at rung 3"), so each text is stored once.
            "reason": [reasons.setdefault(trial.reason, len(reasons)) for trial in trials],
            "reasons": list[Json](reasons),
        },
        "params": _params(trials, record.meta.get("space")),
        "curves": _curves(record, trained, every),
        "importances": {name: rounded(share) for name, share in (importances or {}).items()},
        "lanes": lanes(record, trials),
        "speedups": speedups(record),
        "residuals": winner.get("residuals") if isinstance(winner, dict) else None,
        "trajectories": trajectories(trained),
    }


def _thinned(trial: TrialRecord, every: int) -> TrialRecord:
    """A trial with the epochs of a grid."""
    if every == 1 or not trial.rows:
        return trial
    last = len(trial.rows) - 1
    rows = tuple(row for k, row in enumerate(trial.rows) if row.epoch == 1 or row.epoch % every == 0 or k == last)
    return replace(trial, rows=rows)


def _grid(last: int, every: int) -> list[int]:
    """The epochs of a trial that trained without a gap until epoch ``last``.

    >>> _grid(9, 1), _grid(9, 4), _grid(8, 4), _grid(2, 4), _grid(1, 4)
    ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 4, 8, 9], [1, 4, 8], [1, 2], [1])
    """
    return sorted({1, last, *range(every, last + 1, every)})


def _is_grid(epochs: Sequence[int], every: int) -> bool:
    """Whether a trial trained without a gap; a damaged file may say that its last epoch is any number.

    >>> _is_grid([1, 4, 8, 9], 4), _is_grid([1, 8, 9], 4), _is_grid([1, 2**62], 1)
    (True, False, False)
    """
    return epochs[-1] // every <= len(epochs) and list(epochs) == _grid(epochs[-1], every)


def _curves(record: StudyRecord, trials: Sequence[TrialRecord], every: int) -> dict[str, Json]:
    """Series as flat arrays. Epochs are written only for the rare trial that lacks some of the grid's."""
    odd: dict[str, Json] = {}
    for index, trial in enumerate(counted(trials, "packing trials", len(trials))):
        epochs = [row.epoch for row in trial.rows]
        if epochs and not _is_grid(epochs, every):
            odd[str(index)] = list[Json](epochs)
    rows = [row for trial in trials for row in trial.rows]
    judged = metric_name(record)
    others: dict[str, None] = {"loss": None}
    for row in rows:
        others.update(dict.fromkeys(row.metrics))
    room = MAX_POINTS // max(len(rows), 1) - 2
    kept = [name for name in others if name != judged][: max(room, 1)]
    first: dict[str, Json] = {"name": judged, "loss": "loss" in judged.lower(), "data": packed(r.value for r in rows)}
    if any(row.standard_error is not None for row in rows):
        first["errors"] = packed(math.nan if r.standard_error is None else r.standard_error for r in rows)
    series: list[Json] = [first]
    for name in counted(kept, "packing curves", len(kept)):
        # On a validation split every metric is the validation's; only losses have a twin on the training data.
        label = "validation loss" if name == "loss" else name
        values = packed(_metric(row, name) for row in rows)
        series.append({"name": label, "loss": name == "loss", "data": values})
    series.append({"name": "train loss", "loss": True, "data": packed(row.train_loss for row in rows)})
    ends: list[Json] = [trial.rows[-1].epoch if trial.rows else 0 for trial in trials]
    lengths: list[Json] = [len(trial.rows) for trial in trials]
    return {"lengths": lengths, "every": every, "ends": ends if every > 1 else [], "epochs": odd, "series": series}


def _metric(row: EpochRow, name: str) -> float:
    return row.metrics.get(name, float("nan"))


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
        rounded(value) if here and isinstance(value, int | float) else None
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
