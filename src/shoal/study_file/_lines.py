"""On which line of a TOML file a key stands, for messages; Python's own reader does not say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Final, TypeAlias

Path: TypeAlias = tuple[str, ...]
_HEADER: Final = re.compile(r"\s*(\[\[?[^\[\]]+\]?\])")
_KEY: Final = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")


def lines_of(text: str) -> dict[Path, int]:
    """Line numbers, counted from 1, of tables and keys by their path; of several of one path, the first.

    What only looks like a key (a line of a text over several lines) may be among them.

    >>> lines_of('[space]\\nlr = 0.1\\n"a b".c = 1')
    {('space',): 1, ('space', 'lr'): 2, ('space', 'a b'): 3, ('space', 'a b', 'c'): 3}
    """
    found: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _path(header[1])
            place: Path = table
        elif key := _KEY.match(line):
            place = (*table, *_path(f"{key[1]} = 0"))
        else:
            continue
        for depth in range(1, len(place) + 1):
            found.setdefault(place[:depth], number)
    return found


def _path(statement: str) -> Path:
    """The path that one statement of TOML names."""
    try:
        found: object = tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return ()
    names: list[str] = []
    while isinstance(found, list | Mapping) and found:
        if isinstance(found, list):
            found = found[0]
            continue
        ((name, found),) = found.items()
        names.append(name)
    return tuple(names)
