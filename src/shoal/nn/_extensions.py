"""The extensions of ``shoal.extend`` by name, and their fields as parts of a search space.

Nothing here names one of them: what ``shoal.extend`` exports is there, with the fields that it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from shoal import extend
from shoal.errors import UsageError, did_you_mean
from shoal.extend import Extension
from shoal.nn._knobs import value_of


def extensions() -> dict[str, type[Extension]]:
    """Every extension that ``shoal.extend`` exports, by the name of its class.

    >>> extensions()["LearningRate"].HYPERPARAMETER
    'lr'
    """
    named = {name: getattr(extend, name) for name in extend.__all__}
    return {
        name: kind
        for name, kind in named.items()
        if isinstance(kind, type) and issubclass(kind, Extension) and kind is not Extension
    }


def fields_of(name: str) -> dict[str, Field[Any]]:
    """The fields of an extension by name; a field whose default is a tuple takes a list of numbers for it."""
    return {field.name: field for field in fields(extensions()[name]) if field.init}


def checked(name: str, knobs: object) -> dict[str, Any]:
    """What was given for the fields of an extension, lists made pairs where a field is one.

    Raises:
        UsageError: If that is no table of fields, or a field is unknown or missing.
    """
    if not isinstance(knobs, Mapping):
        raise UsageError(f"{name} is an extension: give its fields by name, as in {name}={{}}, not {knobs!r:.60}.")
    known = fields_of(name)
    for field in knobs:
        if field not in known:
            raise UsageError(f"shoal.extend.{name} has no field {field!r}.{did_you_mean(str(field), known)}")
    needed = [f.name for f in known.values() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [field for field in needed if field not in knobs]:
        raise UsageError(f"shoal.extend.{name} needs a value for {missing[0]!r}.")
    return {field: _paired(value, known[field].default) for field, value in knobs.items()}


def extension(trial: Any, name: str, knobs: object) -> Extension:
    """One extension, each of its fields fixed or suggested as ``NAME.field``.

    Args:
        trial: What ``define`` was given.
        name: Of the extension.
        knobs: Its fields by name: a list is a choice, a ``Range`` a range, and anything else is fixed.

    Raises:
        UsageError: If a field is unknown or missing.
        RecipeError: If a value is out of its range.

    Example:
        >>> extension(None, "LearningRate", {"step": 0.05, "bounds": [1e-6, 1.0]}).bounds
        (1e-06, 1.0)
    """
    given = {field: value_of(trial, f"{name}.{field}", knob, None) for field, knob in checked(name, knobs).items()}
    return extensions()[name](**given)


def _paired(knob: Any, default: Any) -> Any:
    """A list for a field that is a pair: the pair itself, or, as a list of lists, a choice among pairs."""
    if not isinstance(default, tuple) or not isinstance(knob, list):
        return knob
    if knob and all(isinstance(choice, list | tuple) for choice in knob):
        return [tuple(choice) for choice in knob]
    return tuple(knob)
