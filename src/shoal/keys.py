"""Structural keys: two Python objects have the same key only if a trace of one holds for the other.

A trace bakes in whatever Python it ran: attributes, closures, plain tensors, modules kept in lists. The key therefore reads all
of it. What it cannot read, it tells apart by identity: too many programs are slow, a wrong one is not allowed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import itertools
import sys
import types
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What nn.Module keeps for itself; parameters, buffers and children are described one by one instead.
_MODULE_INTERNALS = frozenset(vars(nn.Module()))
_HOOKS = tuple(name for name in _MODULE_INTERNALS if name.endswith("_hooks"))


def digest(key: object) -> str:
    """A short, stable name for a key (16 hexadecimal digits)."""
    return hashlib.blake2b(repr(key).encode(), digest_size=8).hexdigest()


def tensor_key(t: Tensor) -> tuple[object, ...]:
    """Shape, dtype and content."""
    data = t.detach().cpu().contiguous()
    raw = data.flatten().view(torch.uint8).numpy().tobytes() if data.numel() else b""
    return ("tensor", tuple(t.shape), str(t.dtype), t.requires_grad, hashlib.blake2b(raw, digest_size=8).hexdigest())


def object_key(value: object, _seen: frozenset[int] = frozenset()) -> object:
    """A hashable, printable key of any Python value. Cycles are cut where they close."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return (type(value).__name__, repr(value))
    if isinstance(value, torch.dtype | torch.device | torch.Size | enum.Enum | np.dtype | slice | range):
        return (type(value).__name__, repr(value))
    if id(value) in _seen:
        return ("cycle", type(value).__qualname__)
    seen = _seen | {id(value)}
    if isinstance(value, Tensor):
        return tensor_key(value)
    if isinstance(value, np.ndarray):
        return ("array", value.shape, str(value.dtype), hashlib.blake2b(value.tobytes(), digest_size=8).hexdigest())
    if isinstance(value, list | tuple):
        return (type(value).__qualname__, tuple(object_key(v, seen) for v in value))
    if isinstance(value, dict):
        return ("dict", tuple((object_key(k, seen), object_key(v, seen)) for k, v in value.items()))
    if isinstance(value, set | frozenset):
        return ("set", tuple(sorted(repr(object_key(v, seen)) for v in value)))
    if isinstance(value, functools.partial):
        return ("partial", object_key(value.func, seen), object_key(value.args, seen), object_key(value.keywords, seen))
    if isinstance(value, types.MethodType):
        return ("method", object_key(value.__func__, seen), object_key(value.__self__, seen))
    if isinstance(value, types.FunctionType):
        return function_key(value, seen)
    if isinstance(value, types.BuiltinFunctionType | types.ModuleType):
        return (type(value).__name__, getattr(value, "__module__", None), value.__name__)
    if isinstance(value, type):
        return class_key(value, seen)
    if isinstance(value, nn.Module):
        return module_key(value, seen)
    if dataclasses.is_dataclass(value):
        fields = tuple((f.name, object_key(getattr(value, f.name, None), seen)) for f in dataclasses.fields(value))
        return ("dataclass", class_key(type(value), seen), fields)
    return ("object", type(value).__qualname__, _serial(value))


_SERIALS: dict[int, tuple[weakref.ref[Any], int]] = {}
_COUNTER = itertools.count()


def _serial(value: object) -> int:
    """A number that only this very object ever has: an address may be given to another one after it is gone."""
    known = _SERIALS.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    number = next(_COUNTER)
    # What cannot be watched gets a new number each time, so it is never taken for anything else.
    with contextlib.suppress(TypeError):
        _SERIALS[id(value)] = (weakref.ref(value), number)
    return number


def function_key(f: types.FunctionType, _seen: frozenset[int] = frozenset()) -> object:
    """Code, defaults, and what the closure holds."""
    cells = tuple(object_key(_cell(c), _seen | {id(f)}) for c in (f.__closure__ or ()))
    return (
        "function",
        code_key(f.__code__),
        object_key(f.__defaults__, _seen),
        object_key(f.__kwdefaults__, _seen),
        cells,
    )


def code_key(code: types.CodeType) -> tuple[object, ...]:
    """Byte code, names and constants, nested code included; not the line numbers."""
    consts = tuple(code_key(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts)
    body = hashlib.blake2b(code.co_code, digest_size=8).hexdigest()
    return (code.co_name, body, code.co_names, code.co_varnames, code.co_freevars, consts)


def class_key(cls: type, _seen: frozenset[int] = frozenset()) -> object:
    """The name of an importable class; for one made inside a function, the code of its methods as well."""
    name = (cls.__module__, cls.__qualname__)
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is cls:
        return ("class", *name)
    seen = _seen | {id(cls)}
    body = tuple(
        (k, object_key(v, seen))
        for k, v in sorted(vars(cls).items())
        if k not in ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__")
        and not isinstance(v, types.GetSetDescriptorType | types.MemberDescriptorType)
    )
    return ("local class", *name, body, tuple(class_key(b, seen) for b in cls.__bases__))


def module_key(module: nn.Module, _seen: frozenset[int] = frozenset(), *, skip: Iterable[str] = ()) -> object:
    """One module without its children: class, mode, own parameters and buffers by shape, every other attribute by value."""
    seen, skipped = _seen | {id(module)}, frozenset(skip)
    tensors = tuple(
        (kind, name, None if t is None else (tuple(t.shape), str(t.dtype), t.requires_grad))
        for kind, table in (("p", module._parameters), ("b", module._buffers))
        for name, t in table.items()
    )
    attributes = tuple(
        (name, object_key(v, seen))
        for name, v in sorted(vars(module).items())
        if name not in _MODULE_INTERNALS and name not in skipped
    )
    hooks = tuple(
        (name, object_key(list(getattr(module, name, {}).values()), seen))
        for name in _HOOKS
        if getattr(module, name, None)
    )
    children = tuple((name, type(child).__qualname__) for name, child in module._modules.items())
    return ("module", class_key(type(module), seen), module.training, tensors, attributes, hooks, children)


def _cell(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell: the name is bound later
        return None
