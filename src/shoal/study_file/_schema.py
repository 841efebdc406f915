"""JSON schema of study files, for editors: completion, descriptions, and faults underlined while one types."""

from __future__ import annotations

from typing import Final, cast

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
_FREE: Final[dict[str, Json]] = {
    "model": {"type": "object", "additionalProperties": {"type": [*_PLAIN, "array"]}},
    "space": {
        "type": "object",
        "additionalProperties": {"anyOf": [_RANGE, {"type": "array", "minItems": 1}, {"type": _PLAIN}]},
    },
    "enqueue": {"type": "array", "items": {"type": "object", "additionalProperties": {"type": _PLAIN}}},
}


def json_schema() -> dict[str, Json]:
    """The schema, as JSON schema of draft 7, which TOML editors read."""
    properties: dict[str, Json] = {}
    for section in SECTIONS:
        if section in FREE:
            properties[section] = {"description": FREE[section][0], **cast("dict[str, Json]", _FREE[section])}
            continue
        keys: dict[str, Json] = {key.name: key.schema for key in KEYS if key.section == section}
        properties[section] = {"type": "object", "additionalProperties": section == OPTIONS, "properties": keys}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Shoal study file",
        "type": "object",
        "required": ["data"],
        "additionalProperties": False,
        "properties": properties,
    }
