"""The study file that ``shoal init`` writes: every key, explained, all but the needed ones commented out."""

from __future__ import annotations

import json
import math
from typing import Final

from shoal.nn import extensions
from shoal.nn._extensions import fields_of
from shoal.study_file._keys import FREE, KEYS, SECTIONS

_NEEDED: Final = ("file", "target")
_WIDTH: Final = 34
_SAMPLES: Final = {
    "model": ["# depth = 2"],
    "space": [
        "# width = [32, 64]",
        "# lr = {low = 1e-4, high = 1e-1, log = true}",
        "# dropout = {low = 0.0, high = 0.5}",
    ],
    "enqueue": ["# lr = 0.001"],
}


def template(file: str = "data.csv", target: str = "target") -> str:
    """A study file for a table.

    Args:
        file: The table.
        target: The column to predict.

    Returns:
        Its text, as TOML.
    """
    said = {"file": json.dumps(file, ensure_ascii=False), "target": json.dumps(target, ensure_ascii=False)}
    lines = [
        "# A study for Shoal. `shoal check study.toml` says what would run, `shoal tune study.toml` runs it.",
        "# Paths are relative to this file. What is commented out shows an example; left out, Shoal chooses.",
    ]
    for section in SECTIONS:
        lines.append("")
        if section == "extensions":
            lines += _extensions()
            continue
        if section in FREE:
            head = f"[{section}]" if section != "enqueue" else "# [[enqueue]]"
            lines += [f"# {FREE[section][0]}", head, *_SAMPLES[section]]
            continue
        lines.append(f"[{section}]")
        for key in (key for key in KEYS if key.section == section):
            needed = key.name in _NEEDED and section == "data"
            line = f"{'' if needed else '# '}{key.name} = {said.get(key.name, key.example) if needed else key.example}"
            remark = key.help + (f" ({', '.join(key.choices)})" if key.choices else "")
            lines.append(f"{line:<{_WIDTH}}  # {remark}")
    return "\n".join(lines) + "\n"


def _extensions() -> list[str]:
    """A table for each extension that there is, its fields at their defaults."""
    lines = [f"# {FREE['extensions'][0]}"]
    for name, kind in extensions().items():
        lines += [f"# [extensions.{name}]", f"# # {(kind.__doc__ or '').splitlines()[0]}"]
        for field in fields_of(name).values():
            if isinstance(field.default, bool | int | float | str | tuple):
                lines.append(f"# {field.name} = {_toml(field.default)}")
    return lines


def _toml(value: object) -> str:
    """A plain value as TOML."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)
