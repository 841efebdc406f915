"""JSON that keeps every float, because a diverged trial is a result too.

Strict JSON has no NaN and no infinity, and SQLite turns NaN into NULL. A float that is not finite becomes
``{"$float": "nan"}``; a user's own key that begins with ``$`` gets a second one, so that nothing is ambiguous.
Finite floats are written with ``repr``, which reads back to the same bits. Nothing is ever pickled.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

from shoal.errors import StorageError
from shoal.records import Json, Outcome

_KEY = "$float"
_PLAIN = (float, int, str)
_strict = json.JSONEncoder(allow_nan=False).encode
LANES = "(lanes)"  # beside an epoch's metrics: what there is of the trial's lanes; no metric has such a name
COPIED = "(copied)"  # likewise: how the trial goes on after the epoch, if not as it was


def encode(value: object, what: str) -> str:
    """``value`` as strict JSON text.

    Args:
        value: JSON data, tuples and mappings included, in which floats may be NaN or infinite.
        what: its name in an error message.

    Raises:
        StorageError: something in it is not JSON data.
    """
    # The common cases are flat dicts, of finite floats above all: an encoder is made anew for every call, which takes longer.
    if type(value) is dict and (text := _finite_floats(value)) is not None:
        return text
    if type(value) is dict and _is_plain(value):
        try:
            return _strict(value)
        except ValueError:  # a float that is not finite
            pass
    return _strict(_pack(value, what))


def judged(value: float | None, outcome: Outcome) -> str | None:
    """What a trial is judged by as text: its value alone, or an object where its study has several objectives or constraints."""
    if outcome == Outcome():
        return None if value is None else encode(value, "value")
    told = {"value": value, "values": outcome.values, "constraints": outcome.constraints, "measured": outcome.measured}
    return encode(told, "what it is judged by")


def unjudged(text: str | None) -> tuple[Any, Outcome]:
    """What `judged` was given; the value is not checked.

    Raises:
        TypeError: A number is none.
    """
    found = None if text is None else decode(text)
    if type(found) is not dict:
        return found, Outcome()
    values, constraints, measured = tuple(found["values"]), found["constraints"], found["measured"]
    if not all(type(number) in (float, int) for number in (*values, *constraints.values(), *measured.values())):
        raise TypeError(f"what it is judged by: {text!r:.80}")
    return found["value"], Outcome(values, constraints, measured)


def decode(text: str) -> Any:
    """What `encode` was given; tuples come back as lists."""
    if "$" not in text:  # nothing to unpack: the common case again
        return json.loads(text)
    return json.loads(text, object_hook=_unpack)


def _finite_floats(value: dict[Any, Any]) -> str | None:
    """A flat dict of finite floats as text; None if it is something else."""
    out = []
    for key, item in value.items():
        if type(item) is not float or item - item != 0.0 or type(key) is not str:
            return None
        out.append(f"{_quoted(key)}{item!r}")
    return "{" + ", ".join(out) + "}"


@functools.lru_cache(maxsize=1024)
def _quoted(key: str) -> str:
    """A key as it stands before its value."""
    return f"{json.dumps(f'${key}' if key.startswith('$') else key)}: "


def _is_plain(value: dict[Any, Any]) -> bool:
    # Of 1,000 lanes every epoch, a generator would take twice as long.
    for key, item in value.items():  # noqa: SIM110
        if type(item) not in _PLAIN or type(key) is not str or key[:1] == "$":
            return False
    return True


def _pack(value: object, what: str) -> Json:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_KEY: repr(float(value))}
    if isinstance(value, list | tuple):
        return [_pack(item, what) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {f"${key}" if key.startswith("$") else key: _pack(item, what) for key, item in value.items()}
    raise StorageError(
        f"{what} must be JSON data (text, numbers, true, false, null, lists, and mappings with text as keys), "
        f"got {type(value).__name__}: convert it first."
    )


def _unpack(value: dict[str, Any]) -> Any:
    if len(value) == 1 and _KEY in value:
        return float(value[_KEY])
    return {key.removeprefix("$"): item for key, item in value.items()}
