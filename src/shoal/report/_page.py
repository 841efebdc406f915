"""The page around the data: header, best configuration and facts are plain HTML, so they read without JavaScript.

Everything that a user can choose (names, parameters, metrics, paths, reasons) is hostile until escaped: text goes
through `html.escape`, data goes into a JSON block in which ``<``, ``>`` and ``&`` cannot occur, and the script writes
it back with ``textContent`` only. A content security policy in the page forbids any network access.
"""

from __future__ import annotations

import json
import math
import os
import string
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path

from shoal._text import format_duration, format_number
from shoal.errors import StorageError
from shoal.records import Json, StudyRecord, TrialRecord, TrialState
from shoal.report._data import elapsed_s, metric_name, report_data


def write_report(record: StudyRecord, path: str | Path) -> Path:
    """Write a study as one self-contained HTML file.

    Args:
        record: The study, running or finished, empty or large.
        path: The file to write; missing folders are made, an existing file is replaced in one step.

    Returns:
        The path that was written.

    Raises:
        StorageError: The file cannot be written.
    """
    path = Path(path)
    # A lone surrogate in a name has no UTF-8 form; a "?" in its place beats no report.
    content = render_report(record).encode("utf-8", "replace")
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


def render_report(record: StudyRecord) -> str:
    """The page as text.

    Args:
        record: The study.

    Returns:
        A complete HTML document.
    """
    data = json.dumps(report_data(record), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return string.Template(_asset("page.html")).substitute(
        name=escape(record.name),
        summary=escape(_summary(record)),
        css=_asset("page.css"),
        script="".join(_asset(name) for name in ("charts.js", "page.js", "table.js")),
        tiles=_tiles(record),
        best=_best(record),
        facts=_facts(record),
        data=data,
    )


def _asset(name: str) -> str:
    return resources.files("shoal.report").joinpath(name).read_text(encoding="utf-8")


def _summary(record: StudyRecord) -> str:
    verb = "Maximizes" if record.direction == "maximize" else "Minimizes"
    parts = [f"{verb} {metric_name(record)} on the validation set"]
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
    rate = f"{epochs / wall_s:,.0f} per second" if wall_s > 0 and epochs else ""
    total = len(record.trials)
    bar = "".join(
        f'<i class="s-{state}" style="flex-grow:{counts[state]}"></i>' for state in TrialState if counts[state]
    )
    legend = ", ".join(
        f'<span class="key s-{state}">{counts[state]:,} {state}</span>' for state in TrialState if counts[state]
    )
    return "".join(
        (
            _tile(
                f"Best {metric_name(record)}",
                _number(best.value) if best is not None else "none yet",
                f"trial {best.spec.number}, epoch {best.epoch}" if best is not None else "no trial has finished",
            ),
            f'<div class="tile wide"><dt>Trials</dt><dd>{total:,}</dd>'
            f'<div class="statebar" aria-hidden="true">{bar}</div><small>{legend}</small></div>',
            _tile("Wall time", format_duration(wall_s) if wall_s else "unknown", ""),
            _tile("Epochs trained", f"{epochs:,}", rate),
        )
    )


def _tile(label: str, value: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<div class="tile"><dt>{escape(label)}</dt><dd>{escape(value)}</dd>{small}</div>'


def _best(record: StudyRecord) -> str:
    best = record.best()
    if best is None:
        return '<p class="note">No trial has finished yet, so there is no best configuration.</p>'
    # Parameters in full and not rounded: this is where people copy them from.
    parts = [
        _pairs("Parameters", {name: _exact(value) for name, value in best.spec.params.items()}),
        _pairs(f"Validation, epoch {best.epoch}", _validation(best, metric_name(record))),
    ]
    test = record.meta.get("test")
    if isinstance(test, dict) and test:
        parts.append(_pairs("Test", {name: _number(value) for name, value in test.items()}))
    return f'<div class="columns">{"".join(parts)}</div>{_snippet(record, best)}'


def _validation(best: TrialRecord, metric: str) -> dict[str, str]:
    metrics: dict[str, str] = {metric: _number(best.value)}
    row = next((row for row in best.rows if row.epoch == best.epoch), None)
    if row is not None:
        metrics.update({name: _number(value) for name, value in row.metrics.items() if name != metric})
        metrics["train loss"] = _number(row.train_loss)
    return metrics


def _snippet(record: StudyRecord, best: TrialRecord) -> str:
    weights = record.meta.get("weights")
    file = weights.get(str(best.spec.number)) if isinstance(weights, dict) else None
    if not isinstance(file, str):
        return '<p class="note">The study kept no weights of this trial.</p>'
    code = (
        "from safetensors.torch import load_file\n"
        "model = ...  # the same nn.Module that define() builds from the parameters above\n"
        f"model.load_state_dict(load_file({file!r}))"
    )
    return (
        "<h3>Load its weights in plain PyTorch</h3>"
        f'<div class="code"><pre tabindex="0"><code id="snippet">{escape(code)}</code></pre>'
        '<button type="button" id="copy" aria-label="Copy the snippet">Copy</button></div>'
    )


def _facts(record: StudyRecord) -> str:
    """The rest of ``meta``: what somebody needs who wants to run the study again."""
    facts: dict[str, str] = {}
    for key, value in record.meta.items():
        if key in {"metric", "test", "weights", "space", "elapsed_s"}:
            continue
        if isinstance(value, dict):
            facts.update({f"{key}: {name}": _plain(item) for name, item in value.items()})
        else:
            facts[key] = _plain(value)
    reasons = Counter(trial.reason for trial in record.trials if trial.reason)
    parts = [_pairs("Options", facts)] if facts else []
    if reasons:
        top: Iterable[tuple[str, int]] = reasons.most_common(12)
        parts.append(_pairs("Why trials ended", {reason: f"{count:,}" for reason, count in top}))
    return f'<div class="columns">{"".join(parts)}</div>' if parts else '<p class="note">None recorded.</p>'


def _pairs(title: str, pairs: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs.items()
    )
    return f'<table class="pairs"><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>'


def _exact(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _plain(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    return format_number(value) if isinstance(value, int | float) else str(value)
