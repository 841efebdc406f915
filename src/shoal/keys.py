"""Structural keys: two Python objects have the same key only if a trace of one holds for the other.

A trace bakes in whatever Python it ran: attributes, closures, globals, plain tensors, modules kept in lists. A ``Reader`` therefore
reads all of it, and the code of the user's own functions and classes with it. Libraries are known by the names of what they offer.
What cannot be read (an iterator, an object of an extension) is told apart by identity and noted in ``unread``: too many programs
are slow, a wrong one is not allowed.
"""

from __future__ import annotations

import collections
import contextlib
import dis
import enum
import functools
import hashlib
import itertools
import logging
import pathlib
import random
import sys
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What nn.Module keeps for itself; parameters, buffers and children are described one by one instead.
MODULE_INTERNALS = frozenset(vars(nn.Module()))
_HOOKS = tuple(sorted(name for name in MODULE_INTERNALS if name.endswith("_hooks")))
# Objects beyond this many are not read: nothing that belongs to one trial is as large.
_BUDGET = 50_000


def digest(key: object) -> str:
    """A short, stable name for a key (16 hexadecimal digits)."""
    return hashlib.blake2b(repr(key).encode(), digest_size=8).hexdigest()


def object_key(value: object) -> object:
    """A hashable, printable key of any Python value."""
    return Reader().key(value)


def fingerprint_key(value: object) -> object:
    """A key that is the same in another process: code, defaults and closures, without the globals behind them."""
    return Reader(deep=False).key(value)


def module_key(module: nn.Module, *, skip: Iterable[str] = ()) -> object:
    """One module without its children: class, mode, own parameters and buffers by shape, every other attribute by value."""
    return Reader().module(module, skip=skip)


class Reader:
    """Reads objects to keys. One reader reads a recipe as a whole, so that what is shared inside it is part of its key.

    Args:
        known: What has a name already (the modules and tensors of a model), by ``id``; a reference to it reads as that name.
        deep: Whether to follow code to the globals and classes that it uses.

    Attributes:
        unread: (where, what) of everything that was told apart by identity.
        hidden: Where modules with parameters are kept that torch does not see, because no module owns them.
    """

    def __init__(self, known: Mapping[int, str] | None = None, *, deep: bool = True) -> None:
        self._deep = deep
        self.unread: list[tuple[str, str]] = []
        self.hidden: list[str] = []
        self._known = known or {}
        self._first: dict[int, int] = {}
        self._kept: list[object] = []  # temporaries stay alive, so that no id is given out twice
        self._path: list[str] = []

    def key(self, value: object, name: str = "") -> object:
        """The key of a value; ``name`` says where it was found."""
        with self.at(name):
            return self._read(value)

    @contextlib.contextmanager
    def at(self, name: str) -> Iterator[None]:
        """What is read meanwhile lies under this name."""
        self._path.append(name)
        try:
            yield
        finally:
            self._path.pop()

    def module(self, module: nn.Module, *, skip: Iterable[str] = (), content: bool = False) -> tuple[object, ...]:
        """A module without its children; ``content`` reads its parameters and buffers by value instead of by shape."""
        skipped = frozenset(skip)
        tensors = tuple(
            (kind, name, None if t is None else tensor_key(t) if content else _shape_key(t))
            for kind, table in (("p", module._parameters), ("b", module._buffers))
            for name, t in table.items()
        )
        attributes = tuple(
            (name, self.key(v, f".{name}"))
            for name, v in sorted(vars(module).items())
            if name not in MODULE_INTERNALS and name not in skipped
        )
        hooks = tuple(
            (name, tuple(self.key(hook, f"'s {name}") for hook in getattr(module, name).values()))
            for name in _HOOKS
            if getattr(module, name, None)
        )
        children = tuple((name, type(child).__qualname__) for name, child in module._modules.items())
        return ("module", self.key(type(module)), module.training, tensors, attributes, hooks, children)

    # -- one kind of value after the other --------------------------------------------------------------------------------

    def _read(self, value: Any) -> object:
        kind = type(value)
        if value is None or kind in _PLAIN:
            return (kind.__name__, repr(value))
        if isinstance(value, _NAMED):
            return (kind.__name__, repr(value))
        if id(value) in self._known:
            return ("of the model", self._known[id(value)])
        if kind is tuple or kind is frozenset:  # immutable, and often one object by accident
            parts = [self._read(v) for v in value]
            return (kind.__name__, tuple(parts if kind is tuple else sorted(parts, key=repr)))
        if id(value) in self._first:
            return ("again", self._first[id(value)])
        if len(self._first) >= _BUDGET:
            return self._by_identity(value, "more than Shoal reads")
        self._first[id(value)] = len(self._first)
        self._kept.append(value)
        for types_, read in _READERS:
            if isinstance(value, types_):
                return read(self, value)
        return self._object(value)

    def _items(self, value: Iterable[object]) -> object:
        return (_class_name(type(value)), tuple(self.key(v, f"[{i}]") for i, v in enumerate(value)), self._extra(value))

    def _mapping(self, value: Mapping[object, object]) -> object:
        # Ints and strings as keys of a dict are read as they are; the order of entries is what a forward pass may follow.
        items = tuple((self._read(k), self.key(v, f"[{k!r}]")) for k, v in value.items())
        factory = getattr(value, "default_factory", None)
        return (_class_name(type(value)), items, self._read(factory), self._extra(value))

    def _set(self, value: Iterable[object]) -> object:
        return (_class_name(type(value)), tuple(sorted(repr(self._read(v)) for v in value)))

    def _extra(self, value: object) -> object:
        """What a subclass of a container keeps beside its items."""
        own = getattr(value, "__dict__", None)
        return (self.key(type(value)), self._attributes(value)) if own is not None else ()

    def _array(self, value: Any) -> object:
        if value.dtype.hasobject:
            return ("array", value.shape, tuple(self._read(v) for v in value.flat))
        return ("array", value.shape, str(value.dtype), _hash(np.ascontiguousarray(value).tobytes()))

    def _partial(self, value: functools.partial[Any]) -> object:
        parts = (self._read(value.func), self.key(value.args, ".args"), self.key(value.keywords, ".keywords"))
        return ("partial", *parts)

    def _method(self, value: Any) -> object:
        return ("method", self._read(value.__func__), self._read(value.__self__))

    def _builtin(self, value: Any) -> object:
        owner = getattr(value, "__self__", None)
        bound = None if owner is None or isinstance(owner, types.ModuleType | type) else self._read(owner)
        return ("builtin", getattr(value, "__module__", None), value.__qualname__, bound)

    def function(self, f: types.FunctionType) -> object:
        """Code, defaults, what the closure holds, and the globals that the code reads, if it is the user's."""
        code = _code_key(f.__code__)
        if is_library(f.__module__) and not f.__closure__ and "<locals>" not in f.__qualname__:
            return ("function", f.__module__, f.__qualname__, self._read(f.__defaults__), self._read(f.__kwdefaults__))
        names = f.__code__.co_freevars
        cells = tuple(self.key(_cell(c), n) for n, c in zip(names, f.__closure__ or (), strict=True))
        defaults = self.key(f.__defaults__, "'s defaults"), self.key(f.__kwdefaults__, "'s defaults")
        return ("function", code, *defaults, cells, self._globals(f), self._attributes(f))

    def _globals(self, f: types.FunctionType) -> object:
        if not self._deep or is_library(f.__module__):
            return ()
        names, attributes = names_read(f.__code__)
        out: list[object] = []
        for name in names:
            value = f.__globals__.get(name, _Missing)
            if value is _Missing:
                continue
            if isinstance(value, types.ModuleType):
                if not is_library(value.__name__):
                    own = ((a, vars(value)[a]) for a in attributes if a in vars(value))
                    out += [
                        (name, a, self.key(v, f"{name}.{a}")) for a, v in own if not isinstance(v, types.ModuleType)
                    ]
                continue
            out.append((name, self.key(value, f"the global {name}")))
        return tuple(out)

    def cls(self, cls: type) -> object:
        """A library's class by name; the user's own with everything that is in it."""
        name = (cls.__module__, cls.__qualname__)
        if (not self._deep or is_library(cls.__module__)) and _found(cls):
            return ("class", *name)
        body = tuple(
            (k, self.key(v, f"{cls.__name__}.{k}"))
            for k, v in sorted(vars(cls).items())
            if k not in _CLASS_INTERNALS and not isinstance(v, types.GetSetDescriptorType | types.MemberDescriptorType)
        )
        return ("class", *name, body, tuple(self._read(b) for b in cls.__bases__))

    def _generator(self, value: Any) -> object:
        state: Any
        if isinstance(value, torch.Generator):
            state = value.get_state().numpy().tobytes()
        elif isinstance(value, random.Random):
            state = repr(value.getstate()).encode()
        else:
            bits = value.bit_generator if isinstance(value, np.random.Generator) else value
            state = repr(bits.get_state() if isinstance(bits, np.random.RandomState) else bits.state).encode()
        return ("generator", type(value).__name__, _hash(state))

    def _unowned(self, value: nn.Module) -> object:
        """A module that no module of the model owns: its tensors are constants to a trace, so they are read by value."""
        if any(True for _ in value.parameters()):
            self.hidden.append(self._where())
        parts = []
        for name, m in value.named_modules():
            parts.append((name, self.module(m, content=True)))
            self._first.setdefault(id(m), len(self._first))
        return ("unowned", tuple(parts))

    def _object(self, value: Any) -> object:
        cls = type(value)
        if isinstance(value, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
            return self._by_identity(value, f"{_article(cls.__name__)}, whose numbers change while it trains")
        if cls.__module__.startswith(("optuna.", "shoal.replay")) and "Trial" in cls.__name__:
            return self._by_identity(value, "the trial itself (take its parameters out in define, and keep those)")
        fixed = [b for b in cls.__mro__ if not b.__flags__ & _HEAP_TYPE and b is not object]
        slotted = any("__slots__" in vars(c) for c in cls.__mro__)
        if fixed or not (hasattr(value, "__dict__") or slotted):
            return self._by_identity(value, f"{_article(cls.__name__)}, whose state Shoal cannot read")
        return ("object", self.key(cls), self._attributes(value))

    def _attributes(self, value: object) -> object:
        own = dict(getattr(value, "__dict__", {}))
        for c in type(value).__mro__:
            slots = vars(c).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                with contextlib.suppress(AttributeError):
                    own[slot] = getattr(value, slot)
        return tuple(
            (k, self.key(v, f".{k}"))
            for k, v in sorted(own.items())
            if k not in ("__dict__", "__weakref__", "__wrapped__")
        )

    def _by_identity(self, value: object, what: str) -> object:
        self.unread.append((self._where(), what))
        return ("unread", type(value).__qualname__, _serial(value))

    def _where(self) -> str:
        path = ""
        for name in self._path:
            path += name if not path or not name or name.startswith((".", "[", "'")) else f", {name}"
        return path.lstrip(".")


class _Missing:
    pass


def _pass(reader: Reader, value: Any) -> object:
    return (type(value).__qualname__, getattr(value, "name", ""))


def _referent(reader: Reader, value: Any) -> object:
    return ("weak", reader._read(value()))


def _found(cls: type) -> bool:
    """Whether a class is what importing its name gives."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is cls


_HEAP_TYPE = 1 << 9  # CPython's flag of classes that are made while it runs
_PLAIN = frozenset({bool, int, float, complex, str, bytes})
_CLASS_INTERNALS = frozenset(
    {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__", "__annotations__"}
    | {"__parameters__", "__orig_bases__", "__slotnames__", "__abstractmethods__", "_abc_impl", "__annotate_func__"}
    | {"__annotations_cache__", "__annotate__", "__conditional_annotations__"}
)
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
# Values whose ``repr`` says all there is to say.
_NAMED: tuple[type, ...] = (
    *(
        torch.dtype,
        torch.device,
        torch.Size,
        torch.layout,
        torch.memory_format,
        enum.Enum,
        np.dtype,
        np.generic,
        np.ufunc,
    ),
    *(slice, range, type(Ellipsis), type(NotImplemented), types.GenericAlias, types.UnionType, *_OPERATORS),
    *(pathlib.PurePath, int, float, complex, str, bytes),
)

_READERS: tuple[tuple[Any, Any], ...] = (
    (Tensor, lambda r, v: tensor_key(v)),
    (np.ndarray, Reader._array),
    (list | tuple | collections.deque, Reader._items),
    (dict | types.MappingProxyType, Reader._mapping),
    (set | frozenset, Reader._set),
    (functools.partial, Reader._partial),
    (types.MethodType, Reader._method),
    (types.FunctionType, Reader.function),
    (types.BuiltinFunctionType, Reader._builtin),
    (types.MethodDescriptorType | types.WrapperDescriptorType | types.MethodWrapperType, Reader._builtin),
    (types.ModuleType, lambda r, v: ("python module", v.__name__)),
    (type, Reader.cls),
    (nn.Module, Reader._unowned),
    (torch.Generator | np.random.Generator | np.random.RandomState | random.Random, Reader._generator),
    (staticmethod | classmethod, lambda r, v: (type(v).__name__, r._read(v.__func__))),
    (property, lambda r, v: ("property", r._read(v.fget), r._read(v.fset), r._read(v.fdel))),
    (functools.cached_property, lambda r, v: ("cached property", r._read(v.func))),
    (functools._lru_cache_wrapper, lambda r, v: ("cached", r._read(v.__wrapped__))),
    (weakref.ref, _referent),
    (logging.Logger | type(__import__("threading").Lock()), _pass),
)


def derived(module: nn.Module) -> frozenset[str]:
    """Attributes that are computed from parameters before each forward pass: the weight under an old-style norm."""
    hooks = module._forward_pre_hooks.values()
    return frozenset(
        str(h.name) for h in hooks if type(h).__name__ in ("WeightNorm", "SpectralNorm") and hasattr(h, "name")
    )


def tensor_key(t: Tensor) -> tuple[object, ...]:
    """Shape, dtype and content."""
    data = t.detach().cpu().contiguous()
    raw = data.flatten().view(torch.uint8).numpy().tobytes() if data.numel() else b""
    return ("tensor", tuple(t.shape), str(t.dtype), t.requires_grad, _hash(raw))


def _shape_key(t: Tensor) -> tuple[object, ...]:
    return (tuple(t.shape), str(t.dtype), t.requires_grad)


def _hash(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _class_name(cls: type) -> str:
    return cls.__qualname__


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


@functools.lru_cache(maxsize=4096)
def is_library(module: str | None) -> bool:
    """Whether a module is torch's, Python's, or otherwise installed: its own state is not what tells trials apart."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    if top in ("torch", "numpy", "shoal", "optuna"):
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


_CODES: dict[int, tuple[types.CodeType, object]] = {}
_READS: dict[int, tuple[types.CodeType, tuple[tuple[str, ...], tuple[str, ...]]]] = {}


def _code_key(code: types.CodeType) -> object:
    """Byte code, names and constants, nested code included; not the line numbers. Read once per code object."""
    known = _CODES.get(id(code))
    if known is None:
        consts = tuple(_constant_key(c) for c in code.co_consts)
        names = (code.co_names, code.co_varnames, code.co_freevars)
        known = _CODES[id(code)] = (code, (code.co_name, _hash(repr((code.co_code, names, consts)).encode())))
    return known[1]


def _constant_key(value: object) -> object:
    if isinstance(value, types.CodeType):
        return _code_key(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)  # a set's order changes by process


def names_read(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of globals, names of attributes) that a piece of code reads, nested code included."""
    known = _READS.get(id(code))
    if known is None:
        names, attributes = set[str](), set[str]()
        for c in _nested(code):
            for instruction in dis.get_instructions(c):
                if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                    names.add(instruction.argval)
                elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                    attributes.add(instruction.argval)
        known = _READS[id(code)] = (code, (tuple(sorted(names)), tuple(sorted(attributes))))
    return known[1]


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _cell(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell: the name is bound later
        return None
