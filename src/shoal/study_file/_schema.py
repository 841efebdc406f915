"""JSON schema of study files, for editors: completion, descriptions, and faults underlined while one types."""

from __future__ import annotations

from typing import Final, cast

from shoal.nn import extensions
from shoal.nn._extensions import fields_of
from shoal.records import Json
from shoal.study_file._keys import FREE, KEYS, OPTIONS, SECTIONS

_RANGE: Final[dict[str, Json]] = {
    "type": "object",
    "required": ["low", "high"],
    "additionalProperties": False,
    "properties": {
        "low": {"type": "number"},
        "high": {"type": "number"},
        "log": {"type": "boolean"},
        "step": {"type": "number", "exclusiveMinimum": 0},
    },
}
_PLAIN: Final[list[Json]] = ["string", "number", "boolean"]
_KNOB: Final[dict[str, Json]] = {"anyOf": [_RANGE, {"type": "array", "minItems": 1}, {"type": _PLAIN}]}
_FREE: Final[dict[str, Json]] = {
    "model": {"type": "object", "additionalProperties": {"type": [*_PLAIN, "array"]}},
    "space": {"type": "object", "additionalProperties": _KNOB},
    "enqueue": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": _PLAIN}}},
}


def json_schema() -> dict[str, Json]:
    """The schema, as JSON schema of draft 7, which TOML editors read."""
    properties: dict[str, Json] = {}
    for section in SECTIONS:
        if section == "extensions":
            properties[section] = {"description": FREE[section][0], **_extensions()}
            continue
        if section in FREE:
            properties[section] = {"description": FREE[section][0], **cast("dict[str, Json]", _FREE[section])}
            continue
        keys: dict[str, Json] = {key.name: key.schema for key in KEYS if key.section == section}
        properties[section] = {"type": "object", "additionalProperties": section in OPTIONS, "properties": keys}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Shoal study file",
        "type": "object",
        "required": ["data"],
        "additionalProperties": False,
        "properties": properties,
    }


def _extensions() -> dict[str, Json]:
    """A table for each extension that there is, with its fields."""
    found: dict[str, Json] = {
        name: {
            "description": (kind.__doc__ or "").split("\n")[0],
            "type": "object",
            "additionalProperties": False,
            "properties": dict.fromkeys(fields_of(name), _KNOB),
        }
        for name, kind in extensions().items()
    }
    return {"type": "object", "additionalProperties": False, "properties": found}
