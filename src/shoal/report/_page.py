"""The page around the data: header, best configuration and facts are plain HTML, so they read without JavaScript.

Everything that a user can choose (names, parameters, metrics, paths, reasons) is hostile until escaped: text goes
through `html.escape`, data goes into a JSON block in which ``<``, ``>`` and ``&`` cannot occur, and the script writes
it back with ``textContent`` only. A content security policy in the page forbids any network access.
"""

from __future__ import annotations

import json
import os
import re
import string
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Final

from shoal._text import format_duration
from shoal.errors import StorageError
from shoal.optimism import optimism
from shoal.records import Json, StudyRecord, TrialState
from shoal.report._best import best_section, interval_of, lanes_in_words
from shoal.report._data import report_data
from shoal.report._front import front_section
from shoal.report._html import note, pairs, tile
from shoal.report._numbers import elapsed_s, metric_name, text
from shoal.report._predictions import predictions_section

# In the order of the page; each file draws one figure, the first five are what they stand on.
SCRIPTS: Final = (
    "text.js",
    "scales.js",
    "study.js",
    "filter.js",
    "chart.js",
    "curves.js",
    "history.js",
    "importances.js",
    "groups.js",
    "slices.js",
    "contour.js",
    "moved.js",
    "parallel.js",
    "residuals.js",
    "lanes.js",
    "pareto.js",
    "table.js",
    "start.js",
)


_SHOWN_ELSEWHERE: Final = frozenset(
    {"metric", "test", "test_trial", "weights", "space", "elapsed_s", "winner", "comparison", "folds", "snapshots"}
)
_MAX_ALIKE: Final = 3


def write_report(
    record: StudyRecord, path: str | Path, importances: Mapping[str, float] | None = None, *, title: str | None = None
) -> Path:
    """Write a study as one self-contained HTML file.

    Args:
        record: The study, running or finished, empty or large.
        path: The file to write; missing folders are made, an existing file is replaced in one step.
        importances: Parameter name -> share, as from `shoal.importances`; without it that figure is left out.
        title: What the page is headed with; by default the study's name.

    Returns:
        The path that was written.

    Raises:
        StorageError: The file cannot be written.
    """
    path = Path(path)
    # A lone surrogate in a name has no UTF-8 form; a "?" in its place beats no report.
    content = render_report(record, importances, title=title).encode("utf-8", "replace")
    scratch: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(scratch, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(scratch, path)
        scratch = None
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(
            f"the report cannot be written to {str(path)!r}: {reason}. Give a path to a file."
        ) from error
    finally:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
    return path


def render_report(
    record: StudyRecord,
    importances: Mapping[str, float] | None = None,
    *,
    title: str | None = None,
    live: bool = False,
) -> str:
    """The page as text.

    Args:
        record: The study.
        importances: Parameter name -> share; without it that figure is left out.
        title: What the page is headed with; by default the study's name.
        live: The page is served by ``shoal watch`` and asks its server for news; otherwise it asks nobody for anything.

    Returns:
        A complete HTML document.
    """
    data = json.dumps(report_data(record, importances), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return string.Template(_asset("page.html")).substitute(
        name=escape(title or record.name),
        overline="Shoal study, live" if live else "Shoal study",
        summary=escape(_summary(record)),
        css=_asset("page.css") + _asset("figures.css"),
        script="".join(_asset(name) for name in (*SCRIPTS, *(("live.js",) if live else ()))),
        connect="; connect-src 'self'" if live else "",
        tiles=_tiles(record),
        best=best_section(record),
        front=front_section(record),
        predictions=predictions_section(record),
        facts=_facts(record),
        data=data,
    )


def _asset(name: str) -> str:
    return resources.files("shoal.report").joinpath("page", name).read_text(encoding="utf-8")


def _summary(record: StudyRecord) -> str:
    wanted = zip(record.objectives, record.directions, strict=True)
    verbs = [f"{'aximizes' if way == 'maximize' else 'inimizes'} {name}" for name, way in wanted]
    lanes = lanes_in_words(record)
    parts = [
        " and ".join(f"{'m' if k else 'M'}{verb}" for k, verb in enumerate(verbs))
        + " "
        + (f"over {lanes}" if lanes else "on the validation set")
    ]
    fleets = {event.fleet for event in record.events if event.kind == "admitted"}
    if fleets:
        parts.append(f"{len(fleets)} fleet" + ("s" if len(fleets) > 1 else ""))
    hardware = record.meta.get("hardware")
    if isinstance(hardware, str) and hardware:
        parts.append(hardware)
    return " · ".join(parts)


def _tiles(record: StudyRecord) -> str:
    best = record.best()
    counts = Counter(trial.state for trial in record.trials)
    epochs = sum(len(trial.rows) for trial in record.trials)
    wall_s = elapsed_s(record)
    speed = epochs / wall_s if wall_s > 0 else 0.0
    rate = f"{speed:,.0f} per second" if speed >= 10 else f"{speed:.2g} per second" if speed else ""
    total = len(record.trials)
    held_out = _held_out(record)
    bar = "".join(
        f'<i class="s-{state}" style="flex-grow:{counts[state]}"></i>' for state in TrialState if counts[state]
    )
    legend = ", ".join(
        f'<span class="key s-{state}">{counts[state]:,} {state}</span>' for state in TrialState if counts[state]
    )
    return "".join(
        (
            tile(
                f"Best {metric_name(record)}",
                text(best.value) if best is not None else "none yet",
                f"trial {best.spec.number}, epoch {best.epoch}" if best is not None else "no trial has finished",
            ),
            held_out,
            f'<div class="tile wide"><dt>Trials</dt><dd>{total:,}</dd>'
            f'<div class="statebar" aria-hidden="true">{bar}</div><small>{legend}</small></div>',
            tile("Wall time", format_duration(wall_s) if wall_s else "unknown", ""),
            tile("Epochs trained", f"{epochs:,}", rate),
        )
    )


def _held_out(record: StudyRecord) -> str:
    """The winner's score on samples that no trial was chosen by, when the study had some."""
    test, metric = record.meta.get("test"), metric_name(record)
    score = test.get(metric) if isinstance(test, dict) else None
    if not isinstance(score, int | float) or record.best() is None:
        known = optimism(record)
        if known is None or known.corrected is None or known.n_trials < 2:
            return ""
        return tile(f"Expected {metric}", text(known.corrected), "on new data: bootstrap over folds")
    found = interval_of(record, "test")
    remark = "on the test split" if found is None else f"95 % interval {found[0]:.3g} to {found[1]:.3g}"
    return tile(f"Held-out {metric}", text(score), remark)


def _facts(record: StudyRecord) -> str:
    """The rest of ``meta``: what somebody needs who wants to run the study again."""
    facts: dict[str, str] = {}
    parts: list[str] = []
    for key, value in record.meta.items():
        if key in _SHOWN_ELSEWHERE:
            continue
        if isinstance(value, dict):
            parts.append(pairs(key.capitalize(), {name: _plain(item) for name, item in value.items() if _says(item)}))
        elif _says(value):
            facts[key] = _plain(value)
    if facts:
        parts.append(pairs("Made with", facts))
    reasons = _alike(trial.reason for trial in record.trials if trial.reason)
    if reasons:
        parts.append(pairs("Why trials ended", {reason: f"{count:,}" for reason, count in reasons.most_common(12)}))
    return f'<div class="columns">{"".join(parts)}</div>' if parts else note("None recorded.")


def _alike(reasons: Iterable[str]) -> Counter[str]:
    """How often each reason is given; reasons that differ in their numbers only count as one where they are many.

    >>> _alike(["at epoch 1", "at epoch 1", "at epoch 4"])
    Counter({'at epoch 1': 2, 'at epoch 4': 1})
    >>> _alike(f"place {place} of 54" for place in range(51, 55))
    Counter({'place … of …': 4})
    """
    found: dict[str, Counter[str]] = {}
    for reason in reasons:
        found.setdefault(re.sub(r"\d+(?:\.\d+)?", "…", reason), Counter())[reason] += 1
    counts: Counter[str] = Counter()
    for form, some in found.items():
        counts.update(some if len(some) <= _MAX_ALIKE else {form: some.total()})
    return counts


def _says(value: Json) -> bool:
    """Whether there is anything to read: an option that was left alone says nothing."""
    return value is not None and value != [] and value != {}


def _plain(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
