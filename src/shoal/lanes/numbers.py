"""Plain numbers of the user's own modules and losses, made a lane's own: ``self.alpha``, a temperature, the beta of a loss.

A forward pass that reads such a number is traced with a ``LaneFloat`` in its place. Arithmetic on it goes on as arithmetic on a
0-d lane tensor; a comparison is answered with the number of the trial that is traced, and kept as a *guard*: trials share the trace
only if all guards come out the same for them. What needs a true float (``math.exp``, a kernel's scalar argument) raises, and the
number stays in the signature. Whether a lifted number does what the plain one does is tried out first (``rehearsal``).

Plain tensors that a module keeps as attributes are lifted in the same way, as they are.

Glossary: a *place* is an object and the name of an attribute, a cell of a closure, or a keyword of a ``functools.partial``.
"""

from __future__ import annotations

import functools
import math
import operator
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import FuseError
from shoal.keys import MODULE_INTERNALS, derived

Value = float | Tensor
Expression = Callable[[Mapping[str, Value]], Any]


@dataclass(frozen=True, slots=True)
class Guard:
    """A comparison that a forward pass made of lifted numbers, and how it came out."""

    test: Expression
    outcome: bool


@dataclass(slots=True)
class Guards:
    """The guards of one run, in the order in which the forward pass asked."""

    found: list[Guard] = field(default_factory=list)

    def hold(self, values: Mapping[str, Value]) -> bool:
        """Whether other numbers take the same way through the code."""
        return all(bool(g.test(values)) == g.outcome for g in self.found)

    @property
    def outcomes(self) -> tuple[bool, ...]:
        return tuple(g.outcome for g in self.found)


class LaneFloat:
    """A float that is a lane's own while a step is traced.

    Args:
        tensor: What to compute with, 0-d.
        hint: The number of the trial that is traced; it decides comparisons.
        formula: The same number for any trial, from its lifted values.
        guards: Where comparisons are noted.
    """

    __slots__ = ("formula", "guards", "hint", "tensor")

    def __init__(self, tensor: Tensor, hint: float, formula: Expression, guards: Guards) -> None:
        self.tensor, self.hint, self.formula, self.guards = tensor, hint, formula, guards

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*plain(args), **plain(kwargs or {}))

    def _arithmetic(self, f: Callable[..., Any], *others: Any) -> Any:
        """``f(self, *others)``: with plain numbers a new ``LaneFloat``, with tensors a tensor."""
        if any(isinstance(o, Tensor) for o in others):
            return f(self.tensor, *plain(others))
        if not all(isinstance(o, LaneFloat | int | float) for o in others):
            return NotImplemented
        hints = [o.hint if isinstance(o, LaneFloat) else o for o in others]
        formulas = [_formula(o) for o in others]
        mine = self.formula
        return LaneFloat(
            f(self.tensor, *plain(others)),
            f(self.hint, *hints),
            lambda values: f(mine(values), *(g(values) for g in formulas)),
            self.guards,
        )

    def _compared(self, f: Callable[..., bool], *others: Any) -> Any:
        if any(isinstance(o, Tensor) for o in others):
            return f(self.tensor, *others)
        if not all(isinstance(o, LaneFloat | int | float) for o in others):
            return NotImplemented
        formulas, mine = [_formula(o) for o in others], self.formula
        outcome = bool(f(self.hint, *(o.hint if isinstance(o, LaneFloat) else o for o in others)))
        self.guards.found.append(Guard(lambda values: f(mine(values), *(g(values) for g in formulas)), outcome))
        return outcome

    def __bool__(self) -> bool:
        return bool(self._compared(operator.truth))

    def __float__(self) -> float:
        raise FuseError("its forward pass needs a number of the model as a plain float")

    __int__ = __index__ = __round__ = __trunc__ = __floor__ = __ceil__ = __float__
    __hash__ = None  # type: ignore[assignment]


def _binary(f: Callable[..., Any]) -> tuple[Any, Any]:
    return (lambda self, other: self._arithmetic(f, other), lambda self, other: self._arithmetic(_swapped(f), other))


@functools.lru_cache(maxsize=64)
def _swapped(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: f(b, a)


for _name in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv"):
    _plain, _reflected = _binary(getattr(operator, _name))
    setattr(LaneFloat, f"__{_name}__", _plain)
    setattr(LaneFloat, f"__r{_name}__", _reflected)
for _name in ("neg", "abs", "pos"):
    setattr(LaneFloat, f"__{_name}__", functools.partialmethod(LaneFloat._arithmetic, getattr(operator, _name)))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(LaneFloat, f"__{_name}__", functools.partialmethod(LaneFloat._compared, getattr(operator, _name)))


def _formula(value: Any) -> Expression:
    if isinstance(value, LaneFloat):
        return value.formula
    return lambda values: value


def plain(value: Any) -> Any:
    """Arguments with every ``LaneFloat`` replaced by its tensor."""
    if isinstance(value, LaneFloat):
        return value.tensor
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(plain(v) for v in value)
    if type(value) is dict:
        return {k: plain(v) for k, v in value.items()}
    return value


# -- places -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a number is kept: ``owner`` is an object (its ``__dict__``), a closure's cell, or a dict of keywords."""

    owner: Any
    name: str

    def get(self) -> Any:
        if isinstance(self.owner, types.CellType):
            return self.owner.cell_contents
        table = self._table()
        return getattr(self.owner, self.name) if table is None else table[self.name]

    def put(self, value: Any) -> None:
        table = None if isinstance(self.owner, types.CellType) else self._table()
        if isinstance(self.owner, types.CellType):
            self.owner.cell_contents = value
        elif table is None:  # a slot, of a frozen object perhaps
            object.__setattr__(self.owner, self.name, value)
        else:
            table[self.name] = value

    def _table(self) -> dict[str, Any] | None:
        return self.owner if isinstance(self.owner, dict) else getattr(self.owner, "__dict__", None)


_DEPTH = 4  # of callables inside of callables


# Numbers of torch's modules, and the value that is so usual that lifting it would cost something in every network.
_NORM: dict[str, float | None] = {"eps": 1e-5}
_TORCH: dict[type[nn.Module], dict[str, float | None]] = {
    nn.LayerNorm: _NORM,
    nn.RMSNorm: {"eps": None},
    nn.GroupNorm: _NORM,
    **{c: {"eps": 1e-5, "momentum": 0.1} for c in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)},
    **{c: {"eps": 1e-5, "momentum": 0.1} for c in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)},
    nn.Threshold: {"threshold": None, "value": None},
    nn.Hardshrink: {"lambd": None},
    nn.Softshrink: {"lambd": None},
}


def places(model: nn.Module, functions: Mapping[str, Any]) -> dict[str, Place]:
    """Every place whose number or tensor may be lifted, by name: ``"model.block.alpha"``, ``"loss.beta"``.

    Args:
        model: Modules of the user's own classes are looked at; torch's pass their numbers on to kernels.
        functions: A recipe's callables by name: functions with closures, partials, and plain objects with attributes.
    """
    out: dict[str, Place] = {}
    owned = {id(t) for t in (*model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            known = _TORCH.get(type(module), {})
            names = [name for name, default in known.items() if getattr(module, name) != default]
        else:
            names = [name for name in vars(module) if name not in MODULE_INTERNALS]
        passing = derived(module)
        for name in names:
            if name not in passing and _may_lift(vars(module)[name], owned):
                out[".".join(filter(None, ("model", path, name)))] = Place(module, name)
    for what, f in functions.items():
        out.update({f"{what}.{path}": p for path, p in _inside(f) if _may_lift(p.get(), owned)})
    return out


def _inside(f: Any, depth: int = 0) -> Iterator[tuple[str, Place]]:
    """Places in a callable, by path: what it holds itself, and what callable objects in it hold (the parts of a ``Compose``)."""
    if isinstance(f, functools.partial):
        yield from ((name, Place(f.keywords, name)) for name in f.keywords)
        f = f.func
    if isinstance(f, types.MethodType):
        f = f.__self__
    if isinstance(f, types.FunctionType):
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            if cell != types.CellType():
                yield name, Place(cell, name)
    elif isinstance(f, nn.Module) and not type(f).__module__.startswith("torch."):
        yield from ((name, Place(f, name)) for name in vars(f) if name not in MODULE_INTERNALS)
    elif _is_plain(f):
        for name, value in _attributes(f).items():
            yield name, Place(f, name)
            inner = list(enumerate(value)) if isinstance(value, tuple | list) else [("", value)]
            for at, part in inner:
                if depth < _DEPTH and _is_plain(part) and callable(part):
                    below = f"{name}.{at}" if at != "" else name
                    yield from ((f"{below}.{path}", place) for path, place in _inside(part, depth + 1))


def _is_plain(value: object) -> bool:
    """An object with attributes, and no function, module, class or part of torch."""
    functions = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)
    if isinstance(value, (nn.Module, type, *functions)) or type(value).__module__.startswith(("torch", "builtins")):
        return False
    return hasattr(value, "__dict__") or any("__slots__" in vars(c) for c in type(value).__mro__)


def _attributes(value: object) -> dict[str, object]:
    """What an object holds, in its ``__dict__`` or, where it has none, in slots."""
    if hasattr(value, "__dict__"):
        return dict(vars(value))
    slots = (name for c in type(value).__mro__ for name in vars(c).get("__slots__", ()))
    return {name: getattr(value, name) for name in slots if hasattr(value, name)}


def _may_lift(value: object, owned: Collection[int]) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is Tensor and not value.requires_grad and id(value) not in owned and not value.is_sparse


def values_of(found: Mapping[str, Place], names: Collection[str]) -> dict[str, Value]:
    """What the named places hold."""
    return {name: found[name].get() for name in names}


def tensors(values: Mapping[str, Value], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Lifted values as tensors: a float becomes 0-d, of the parameters' type."""
    return {
        name: v.detach() if isinstance(v, Tensor) else torch.tensor(v, dtype=dtype, device=device)
        for name, v in values.items()
    }


@contextmanager
def filled(found: Mapping[str, Place], given: Mapping[str, Tensor], guards: Guards) -> Iterator[None]:
    """Put lane tensors where the numbers were, for the duration."""
    before = {name: found[name].get() for name in given}
    try:
        for name, tensor in given.items():
            was = before[name]
            found[name].put(tensor if isinstance(was, Tensor) else LaneFloat(tensor, was, _value(name), guards))
        yield
    finally:
        for name, was in before.items():
            found[name].put(was)


@contextmanager
def holding(found: Mapping[str, Place], values: Mapping[str, object]) -> Iterator[None]:
    """Put other plain values in, for the duration."""
    before = {name: found[name].get() for name in values}
    try:
        for name, value in values.items():
            found[name].put(value)
        yield
    finally:
        for name, was in before.items():
            found[name].put(was)


def _value(name: str) -> Expression:
    return lambda values: values[name]
