"""Reading plain data that a file brought: every value's type and size is checked before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from shoal.errors import StorageError

T = TypeVar("T")


class Fields:
    """A JSON object whose fields are taken out one by one, each under a type.

    Raises:
        StorageError: If it is no object, or a field is missing or of another type.
    """

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, Mapping):
            raise StorageError(f"the model file is damaged: {what} must be an object, not {type(value).__name__}.")
        self._value, self._what = value, what

    def take(self, name: str, kind: type[T]) -> T:
        """One field, of exactly this type (a whole number passes for a float, a bool for neither)."""
        found = self._value.get(name)
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            found = float(found)
        fits = isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
        if not fits or (isinstance(found, float) and not math.isfinite(found)):
            raise StorageError(
                f"the model file is damaged: {self._what} needs {name!r} as {kind.__name__}; it has {found!r:.60}."
            )
        return found  # type: ignore[return-value]

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """One field of this type, or None where it is null or not there."""
        return None if self._value.get(name) is None else self.take(name, kind)

    def is_list(self, name: str) -> bool:
        """Whether a field is a list."""
        return isinstance(self._value.get(name), list)

    def many(self, name: str, kind: type[T], at_most: int) -> tuple[T, ...]:
        """A list of values of one type, of bounded length."""
        found: list[Any] = self.take(name, list)
        if len(found) > at_most:
            raise StorageError(f"the model file is damaged: {self._what} has {len(found)} entries in {name!r}.")
        each = f"{self._what}, {name}"
        return tuple(Fields({"entry": entry}, each).take("entry", kind) for entry in found)

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number within bounds."""
        found = self.take(name, int)
        if not low <= found <= high:
            raise StorageError(f"the model file is damaged: {self._what} has {name}={found}, not {low} to {high}.")
        return found
