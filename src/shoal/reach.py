"""What a piece of the user's code can get hold of: attributes, items, closures, defaults, globals, one from another."""

from __future__ import annotations

import collections
import dis
import functools
import types
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shoal.errors import FuseError
from shoal.keys import is_library, names_read

# Nothing that belongs to one trial holds as many objects.
_BUDGET = 50_000
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, np.generic)


def reachable(roots: Iterable[object], beyond: tuple[type, ...] = ()) -> Iterator[object]:
    """Every object that can be reached from some others, each once, but for plain values; tensors and arrays have no inside.

    Code of libraries is not followed, but for what its closures and bound objects hold.

    Args:
        roots: Where to start; they come first.
        beyond: Instances of these are given, and not looked into.

    Raises:
        FuseError: There are too many of them.
    """
    waiting, seen = collections.deque(roots), dict[int, object]()
    while waiting:
        value = waiting.popleft()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        if len(seen) >= _BUDGET:
            raise FuseError("its schedule reaches more objects than Shoal reads; keep large data out of what it holds")
        seen[id(value)] = value  # alive, so that no id is given out twice
        yield value
        if not isinstance(value, (Tensor, np.ndarray, *beyond)):
            waiting.extend(_inside(value))


def _inside(value: Any) -> list[object]:
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if isinstance(value, types.CellType):
        return _contents(value)
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.BuiltinFunctionType):
        return [] if isinstance(value.__self__, types.ModuleType | type) else [value.__self__]
    if isinstance(value, types.ModuleType):
        return []
    if isinstance(value, type):
        return [] if is_library(value.__module__) else [*vars(value).values(), *value.__bases__]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, types.GeneratorType):
        return [] if value.gi_frame is None else list(value.gi_frame.f_locals.values())
    inside: list[object] = []
    if isinstance(value, dict | types.MappingProxyType):
        inside += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        inside += value
    return [*inside, *_attributes(value), type(value)]


def _attributes(value: Any) -> list[object]:
    own = getattr(value, "__dict__", {})
    inside = list(own.values())
    for c in type(value).__mro__:
        slots = vars(c).get("__slots__", ())
        inside += [getattr(value, s, None) for s in ((slots,) if isinstance(slots, str) else slots)]
    return inside


def _of_function(f: types.FunctionType) -> list[object]:
    inside: list[object] = [*(f.__closure__ or ()), *(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    inside += vars(f).values()
    if not is_library(f.__module__):
        inside += [f.__globals__[name] for name in names_read(f.__code__)[0] if name in f.__globals__]
    return inside


def _contents(cell: types.CellType) -> list[object]:
    try:
        return [cell.cell_contents]
    except ValueError:  # an empty cell: the name is bound later
        return []


def globals_written(f: types.FunctionType) -> frozenset[str]:
    """Names of globals that a function's code binds anew."""
    return frozenset(
        i.argval for i in dis.get_instructions(f.__code__) if i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
    )
