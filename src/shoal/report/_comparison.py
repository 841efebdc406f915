"""What scikit-learn's models score on the same test rows, beside the winner and where they are better, as plain HTML."""

from __future__ import annotations

from html import escape

from shoal._text import format_number
from shoal.records import StudyRecord
from shoal.report._html import grid, note


def comparison_section(record: StudyRecord) -> str:
    """A table of test scores and a sentence on who is best; empty when nothing was compared with this winner."""
    found, best = record.meta.get("comparison"), record.best()
    if not isinstance(found, dict) or best is None or found.get("trial") != best.spec.number:
        return ""
    try:
        scores: dict[str, dict[str, float]] = found["scores"]  # type: ignore[assignment]
        winner, n = str(found["winner"]), int(found["n_test"])  # type: ignore[arg-type]
        names, measures = list(scores), list(scores[winner])
        rows = [[name, *(format_number(float(scores[name][m]), 4) for m in measures)] for name in names]
        first = measures[0]
        others = ", ".join(f"{name} {format_number(float(scores[name][first]), 4)}" for name in names if name != winner)
        said = f"Of these, {winner} has the best {first}, {format_number(float(scores[winner][first]), 4)} ({others})."
    except (KeyError, TypeError, ValueError, IndexError):  # the file is the user's: a report must not fail on it
        return note("What the study file says of other models cannot be read.")
    table = grid(f"Test scores, {n:,} rows", ["", *measures], rows, marked=names.index(winner))
    return f'<h3>Beside scikit-learn\'s models</h3>{table}<p class="sure">{escape(said)}</p>'
