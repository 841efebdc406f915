"""What the winner gets right and wrong, class by class, as plain HTML: it reads aloud, prints, and needs no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from shoal.records import Json, StudyRecord
from shoal.report._html import grid, note, scrolled

# Names of classes that are longer stand upright above their columns.
_MOST_LETTERS: Final = 3


def predictions_section(record: StudyRecord) -> str:
    """The confusion matrix and each class's precision, recall and F1; empty when the winner predicts no classes."""
    winner = record.meta.get("winner")
    found = winner.get("classes") if isinstance(winner, dict) else None
    if not isinstance(winner, dict) or not isinstance(found, dict):
        return ""
    try:
        scores = per_class(found)
        where = f"trial {winner.get('trial')} on the {'test' if winner.get('split') == 'test' else 'validation'} split"
        names = _names(found, len(scores))
        shown = _matrix(found["matrix"], names, where) if "matrix" in found else _confusions(found, names, where)
        rows = [
            [name, *(f"{x:.3f}" for x in score[:3]), f"{score[3]:,}"]
            for name, score in zip(names, scores, strict=True)
            if score[3] or score[0]
        ]
    except (KeyError, TypeError, ValueError, IndexError):  # the file is the user's: a report must not fail on it
        return note("What the study file says of the winner's predictions cannot be read.")
    table = grid("Per class", ["Class", "precision", "recall", "F1", "samples"], rows)
    return f'<div class="predictions"><div>{shown}</div><div>{table}</div></div>'


def per_class(found: dict[str, Any]) -> list[tuple[float, float, float, int]]:
    """(precision, recall, F1, support) of each class; 0 where a quotient is 0/0, as in scikit-learn."""
    return [
        (_ratio(hit, guessed), _ratio(hit, there), _ratio(2 * hit, guessed + there), int(there))
        for hit, guessed, there in zip(found["hits"], found["predicted"], found["support"], strict=True)
    ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _names(found: dict[str, Json], count: int) -> list[str]:
    given = found.get("names")
    if isinstance(given, list) and len(given) == count:
        return [str(name) for name in given]
    return [str(i) for i in range(count)]


def _matrix(matrix: Any, names: Sequence[str], where: str) -> str:
    """A table whose cells are shaded by their share of the row, so that rare classes show their errors too."""
    head = "".join(f'<th scope="col" title="{escape(name)}">{escape(name)}</th>' for name in names)
    rows = []
    for i, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        total = sum(counts)
        cells = []
        for j, count in enumerate(counts):
            share = _ratio(count, total)
            kind = "hit" if i == j else "miss"
            # A single mistake must be seen at once among hundreds, hence the root.
            style = f' style="--p:{share**0.5:.3f}"' if count else ""
            label = f"{count:,} of {total:,} of class {name} predicted as {names[j]}"
            cells.append(f'<td class="{kind}"{style} title="{escape(label)}">{int(count) or ""}</td>')
        rows.append(f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{"".join(cells)}</tr>')
    caption = f"Confusion matrix of {where}: rows are true classes, columns are predictions"
    size = "small" if len(names) > 20 else "large" if len(names) <= 4 else ""
    if size != "large" and max(map(len, names)) > _MOST_LETTERS:
        size += " named"
    top = f'<thead><tr><td class="corner"></td>{head}</tr></thead>'
    return scrolled(caption, f'class="confusion {size}">{top}<tbody>{"".join(rows)}</tbody>')


def _confusions(found: dict[str, Any], names: Sequence[str], where: str) -> str:
    rows = [
        [names[true], names[guess], f"{count:,}", f"{100 * _ratio(count, found['support'][true]):.1f} %"]
        for true, guess, count in found.get("confusions", [])[:30]
    ]
    return grid(f"Most frequent confusions of {where}", ["true class", "predicted", "samples", "of the class"], rows)
