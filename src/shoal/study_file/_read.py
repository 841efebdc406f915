"""A study file read and checked, before any data is: every fault with its line, its key, and what to do about it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shoal.errors import UsageError, did_you_mean
from shoal.nn import Range, extensions
from shoal.nn._extensions import fields_of
from shoal.study_file._keys import FREE, KEYS, OPTIONS, SECTIONS, Key, Source, home_of, keys_of
from shoal.study_file._lines import lines_of

_MOST_FAULTS: Final = 10
_MAX_BYTES: Final = 1_000_000
_RANGE: Final = ("low", "high", "log", "step")
_UNITS: Final[Mapping[Source, str]] = {
    "code": "a file of code",
    "table": "a CSV or Parquet file",
    "folder": "a folder of class-named folders",
}


@dataclass(frozen=True, slots=True)
class StudyFile:
    """What a study file says, checked as far as that goes without its data.

    Attributes:
        path: Of the file itself.
        source: What kind of data it names.
        given: Values by Python keyword; ``sampler`` and ``scheduler`` are names, or dicts of a name and options. Paths are as
            one would type them.
        knobs: What ``[model]``, ``[space]`` and ``[extensions]`` say, as ``shoal.nn.mlp_space`` takes it.
        lines: Where keys stand, by (section, key).
    """

    path: Path
    source: Source
    given: Mapping[str, Any]
    knobs: Mapping[str, Any]
    lines: Mapping[tuple[str, ...], int] = field(repr=False)

    def place(self, *path: str) -> str:
        """``"study.toml, line 7, [space] lr"``: where something stands."""
        return place_of(self.path, self.lines, *path)

    def section_of(self, keyword: str) -> tuple[str, ...]:
        """Where a Python keyword is set: (section, key)."""
        key = next((key for key in KEYS if key.keyword == keyword), None)
        return (key.section, key.name) if key is not None else (keyword,)


def is_study_file(spec: str | Path) -> bool:
    """Whether what was typed as FILE names a study file."""
    return str(spec).lower().endswith(".toml")


def place_of(path: Path, lines: Mapping[tuple[str, ...], int], *where: str) -> str:
    """A place in a file, for the beginning of a message."""
    number = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), None)
    name = f" [{where[0]}]" + "".join(f" {part}" for part in where[1:]) if where else ""
    return f"{path}" + (f", line {number}" if number is not None else "") + (f",{name}" if name else "")


def read_study_file(path: str | Path) -> StudyFile:
    """Read a study file.

    Args:
        path: Of the file; paths in it are relative to its folder.

    Raises:
        UsageError: If it is missing, is no TOML, or says something that makes no sense; the message has up to ten faults, each
            with its line.
    """
    path = Path(path)
    text = _text(path)
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {_said(error)}.") from error
    reader = _Reader(path, lines_of(text))
    made = reader.read(found)
    if reader.faults:
        shown, more = reader.faults[:_MOST_FAULTS], len(reader.faults) - _MOST_FAULTS
        raise UsageError("\n".join([*shown, *([f"and {more} more."] if more > 0 else [])]))
    assert made is not None  # else there were faults
    return made


def _text(path: Path) -> str:
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder. Name the study file in it.")
    if not path.is_file():
        near = [other.name for other in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else " `shoal init` writes one."
        raise UsageError(f"there is no file {str(path)!r}.{hint}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > _MAX_BYTES:
        raise UsageError(f"{path} has {len(content):,} bytes, too many for a study file.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {number}: not UTF-8 text. Save the file in UTF-8.") from error


def _said(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error).rstrip(".")


class _Reader:
    """One reading: gathers faults instead of stopping at the first."""

    def __init__(self, path: Path, lines: Mapping[tuple[str, ...], int]) -> None:
        self.path, self.lines = path, lines
        self.faults: list[str] = []

    def fault(self, text: str, *where: str) -> None:
        self.faults.append(f"{place_of(self.path, self.lines, *where)}: {text}")

    def read(self, found: Mapping[str, Any]) -> StudyFile | None:
        for name, value in found.items():
            if name not in SECTIONS:
                home = home_of(name)
                self.fault(f"there is no table [{name}].{home or did_you_mean(name, SECTIONS)}", name)
            elif name == "enqueue":
                if not (isinstance(value, list) and all(isinstance(point, dict) for point in value)):
                    self.fault("write each as [[enqueue]], with double brackets.", name)
            elif not isinstance(value, dict):
                self.fault(f"must be a table, written as [{name}]; it is {value!r:.60}.", name)
        tables = {name: value for name, value in found.items() if name in SECTIONS and isinstance(value, dict)}
        given = {key.keyword: value for key, value in self._values(tables)}
        source = self._source(given)
        if source is not None:
            self._check_sources(tables, source)
        knobs = self._knobs(tables)
        points = found.get("enqueue")
        if isinstance(points, list) and points:
            given["enqueue"] = points
        self._options(tables, given)
        if source is None or self.faults:
            return None
        for keyword in ("data", "storage", "warm_start"):
            if keyword in given:
                given[keyword] = self._beside(given[keyword])
        if source == "code":
            given["define"] = self._beside(given["define"])
        for name in ("metrics", "constraints"):
            if isinstance(given.get(name), str):
                given[name] = [given[name]]
        return StudyFile(self.path, source, given, knobs, self.lines)

    def _values(self, tables: Mapping[str, Mapping[str, Any]]) -> list[tuple[Key, Any]]:
        out = []
        for section, table in tables.items():
            if section in FREE:
                continue
            known = keys_of(section)
            for name, value in table.items():
                if name in known:
                    if self._fits(known[name], value):
                        out.append((known[name], value))
                elif section not in OPTIONS:
                    hint = home_of(name) if name not in known and not _close(name, known) else ""
                    self.fault(f"there is no such key.{hint or did_you_mean(name, known)}", section, name)
        return out

    def _fits(self, key: Key, value: object) -> bool:
        if not key.kind.fits(value):
            self.fault(f"must be {key.kind.words}, not {value!r:.60}.", key.section, key.name)
            return False
        if value == "":
            self.fault("is empty.", key.section, key.name)
            return False
        for entry in value if isinstance(value, list) and key.choices else [value]:
            if key.choices and entry not in key.choices:
                self.fault(f"{entry!r} is not known.{did_you_mean(str(entry), key.choices)}", key.section, key.name)
                return False
        return True

    def _source(self, given: Mapping[str, Any]) -> Source | None:
        if "data" in given and "define" in given:
            self.fault("name either a file or code, not both.", "data", "code")
            return None
        if "define" in given:
            return "code"
        if "data" in given:
            return "folder" if os.path.isdir(self._beside(given["data"])) else "table"  # which takes any text
        if not self.faults:  # else the fault may be the very key
            self.fault('say what to learn from: file = "data.csv" or code = "study.py".', "data")
        return None

    def _check_sources(self, tables: Mapping[str, Mapping[str, Any]], source: Source) -> None:
        for section, table in tables.items():
            known = keys_of(section)
            for name in table:
                if name in known and source not in known[name].sources:
                    fits = " or ".join(_UNITS[s] for s in known[name].sources)
                    self.fault(f"is for {fits}, not for {_UNITS[source]}.", section, name)
            if section in ("model", "space", "extensions") and source == "code" and table:
                self.fault(
                    "with code, define(trial) decides on model, space and extensions; leave this table out.", section
                )
        if source == "table" and "target" not in tables.get("data", {}):
            self.fault('name the column to predict: target = "...".', "data")

    def _knobs(self, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in tables.get("model", {}).items():
            if name in extensions():
                self.fault(f"is an extension; give its fields under [extensions.{name}].", "model", name)
            elif isinstance(value, dict):
                self.fault("is fixed here; a range belongs under [space].", "model", name)
            else:
                # A list is a fixed one, such as the widths of layers; for the space, a choice among one.
                out[name] = [_none(value)] if isinstance(value, list) else _none(value)
        for name, value in tables.get("space", {}).items():
            if name in extensions():
                self.fault(f"is an extension; give its fields under [extensions.{name}].", "space", name)
            elif name in tables.get("model", {}):
                self.fault("is fixed under [model] already; give it in one of the two.", "space", name)
            else:
                out |= self._knob(value, "space", name)
        return {**out, **self._extensions(tables.get("extensions", {}))}

    def _extensions(self, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        for name, fields in table.items():
            if name not in extensions():
                hint = did_you_mean(name, extensions())
                self.fault(f"shoal.extend has no extension of that name.{hint}", "extensions", name)
            elif not isinstance(fields, dict):
                self.fault(
                    f"must be a table, written as [extensions.{name}]; it is {fields!r:.60}.", "extensions", name
                )
            else:
                out[name] = {}
                for field, value in fields.items():
                    if field not in fields_of(name):
                        hint = did_you_mean(field, fields_of(name))
                        self.fault(f"shoal.extend.{name} has no such field.{hint}", "extensions", name, field)
                    out[name] |= self._knob(value, "extensions", name, field)
        return out

    def _knob(self, value: Any, *where: str) -> dict[str, Any]:
        """One part of the space under its name, the last of `where`; nothing if it is at fault."""
        if isinstance(value, dict):
            made = self._range(value, *where)
            return {} if made is None else {where[-1]: made}
        if isinstance(value, list) and not value:
            self.fault("leaves nothing to choose from.", *where)
        return {where[-1]: [_none(choice) for choice in value] if isinstance(value, list) else _none(value)}

    def _range(self, value: Mapping[str, Any], *where: str) -> Range | None:
        for part in value:
            if part not in _RANGE:
                self.fault(f"a range has no {part!r}.{did_you_mean(part, _RANGE)}", *where)
                return None
        numbers = [value.get("low"), value.get("high"), value.get("step", 1)]
        if any(
            isinstance(n, bool) or not isinstance(n, int | float) or abs(n) == float("inf") or n != n for n in numbers
        ):
            self.fault("a range is {low = NUMBER, high = NUMBER}, perhaps with log = true or step = NUMBER.", *where)
            return None
        if not isinstance(value.get("log", False), bool) or not value.get("step", 1) > 0:
            self.fault("log must be true or false, and step greater than 0.", *where)
            return None
        try:
            return Range(**value)
        except UsageError as error:
            self.fault(str(error), *where)
            return None

    def _options(self, tables: Mapping[str, Mapping[str, Any]], given: dict[str, Any]) -> None:
        """Put the options of a sampler and a scheduler beside its name."""
        for section in OPTIONS:
            table, known = tables.get(section, {}), keys_of(section)
            options = {name: value for name, value in table.items() if name not in known}
            if options and "name" not in table:
                self.fault(f"options need the name of a {section}: name = {known['name'].example}.", section)
            elif options and section in given:
                given[section] = {"name": given[section], **options}

    def _beside(self, text: str) -> str:
        """A path of the file as seen from here."""
        if "://" in text or Path(text).is_absolute() or self.path.parent == Path():
            return text
        return str(self.path.parent / text)


def _none(value: Any) -> Any:
    """TOML has no None."""
    return None if value == "none" else value


def _close(name: str, known: Sequence[str] | Mapping[str, Any]) -> bool:
    return "Did you mean" in did_you_mean(name, known)
