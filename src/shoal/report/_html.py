"""Small pieces of HTML. Every text goes through `html.escape` here, and nowhere else is HTML put together from texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def tile(label: str, value: str, note: str) -> str:
    """A big number with its name above and a remark below."""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f'<div class="tile"><dt>{escape(label)}</dt><dd>{escape(value)}</dd>{small}</div>'


def pairs(title: str, items: Mapping[str, str]) -> str:
    """A table of names and values."""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in items.items()
    )
    return f'<table class="pairs"><caption>{escape(title)}</caption><tbody>{rows}</tbody></table>'


def grid(title: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, marked: int | None = None) -> str:
    """A table with a header row; the first cell of each row names the row.

    Args:
        title: Its caption.
        head: Column names.
        rows: Cells as texts.
        marked: Index of a row that is set in bold.
    """
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = []
    for index, (first, *rest) in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        kind = ' class="marked"' if index == marked else ""
        body.append(f'<tr{kind}><th scope="row">{escape(first)}</th>{cells}</tr>')
    return scrolled(title, f'class="grid"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody>')


def scrolled(title: str, table: str) -> str:
    """A table that scrolls by itself where it is wider than the page, below a caption that stays.

    Args:
        title: Its caption, and its name for those who do not see it.
        table: Its attributes, ">" and its rows, as HTML.
    """
    name = escape(title)
    return (
        f'<p class="caption" aria-hidden="true">{name}</p><div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f'<table aria-label="{name}" {table}</table></div>'
    )


def note(text: str) -> str:
    """A remark in small type."""
    return f'<p class="note">{escape(text)}</p>'
