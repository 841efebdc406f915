"""A schedule of the user's own in a lane: it runs as ordinary Python on a recipe whose model is not trained, so it is looked on.

A lane trains rows of a fleet's tensors. The recipe's own parameters stay what they were at first, and its optimizer has neither
gradients nor state. A schedule that only computes numbers is none the wiser; one that reads or writes a weight, a gradient or the
optimizer's state is caught in the act, and its trial goes on alone. So is one that changes what the model reads.
"""

from __future__ import annotations

import collections
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from shoal.errors import FuseError, own_line
from shoal.keys import Reader, is_library
from shoal.lanes.tables import family_of
from shoal.reach import globals_written, reachable
from shoal.recipe import Recipe

# What is the same of a parameter that is trained and of one that is not.
_HARMLESS = frozenset(
    {
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.element_size, Tensor.__len__),
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_leaf")),
    }
)
_HOLDS = "its schedule holds a module or a parameter, which a lane trains elsewhere"
# What cannot change, or is code.
_FIXED = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, tuple, frozenset)


@final
class Watch:
    """Looks on while a schedule is stepped.

    Attributes:
        reason: What it did that a lane cannot follow, in words; "" as long as there is nothing.
    """

    def __init__(self, recipe: Recipe, shared: Sequence[object], names: Sequence[tuple[dict[str, Any], str]]) -> None:
        self.reason = ""
        self._recipe, self._shared, self._names = recipe, shared, names
        self._family = family_of(recipe.optimizer, recipe.schedule)
        self._was = self._now()

    @classmethod
    def of(cls, recipe: Recipe) -> Watch | None:
        """For a schedule that runs code which is not torch's; None for one that does not, or if there is none.

        Raises:
            FuseError: It holds what a lane trains.
        """
        if recipe.schedule is None:
            return None
        own = _own(recipe)
        found = list(reachable([recipe.schedule], (optim.Optimizer, nn.Module)))
        if any(isinstance(x, nn.Module | nn.Parameter) or _lies_in(x, own) for x in found):
            raise FuseError(_HOLDS)
        if any(x is recipe.optimizer.state for x in found):
            raise FuseError("its schedule holds its optimizer's state, which a lane keeps elsewhere")
        if not any(_is_foreign(x) for x in found):
            return None
        roots = (recipe.model, recipe.loss, recipe.predict, recipe.transform)
        read = {id(x): x for x in reachable(roots, (optim.Optimizer,))}
        both = [x for x in found if id(x) in read]
        shared = [
            x for x in both if not isinstance(x, _FIXED) and not isinstance(x, types.ModuleType | optim.Optimizer)
        ]
        shared += [x for x in both if isinstance(x, type) and not is_library(x.__module__)]
        shared += [x for x in both if isinstance(x, types.ModuleType) and not is_library(x.__name__)]
        functions = [x for x in found if isinstance(x, types.FunctionType) and not is_library(x.__module__)]
        return cls(recipe, shared, [(f.__globals__, name) for f in functions for name in globals_written(f)])

    @contextmanager
    def looking_on(self) -> Iterator[None]:
        """Step the schedule in here; what it raises because of what it looks at is not its fault, and goes no further."""
        optimizer = self._recipe.optimizer
        held, state = _held(optimizer), optimizer.state
        optimizer.state = _Guarded(state, self._saw_state)
        try:
            with _Sees(_own(self._recipe), self._saw):
                yield
        except Exception:
            if not self.reason:
                raise
        finally:
            optimizer.state = state
        if not self.reason and _held(optimizer) != held:
            self.reason = "its schedule changes which parameters its optimizer holds"
        if not self.reason:
            self.reason = self._changed()

    def _saw(self) -> None:
        self.reason = (
            self.reason or f"its schedule looks at a tensor of the model, which a lane trains elsewhere{_line()}"
        )

    def _saw_state(self) -> None:
        self.reason = (
            self.reason or f"its schedule looks at its optimizer's state, which a lane keeps elsewhere{_line()}"
        )

    def _changed(self) -> str:
        try:
            if family_of(self._recipe.optimizer, self._recipe.schedule) is not self._family:
                return "its schedule changes the kind of updates that its optimizer makes"
        except FuseError as error:
            return f"after a step of its schedule, {error}"
        if self._was is not None and self._now() != self._was:
            return "its schedule changes what the forward pass reads, which a trace would not follow"
        return ""

    def _now(self) -> object:
        if not self._shared and not self._names:
            return None
        values = [vars(x) if isinstance(x, types.ModuleType) else _contents(x) for x in self._shared]
        return Reader().key([*values, *(where.get(name) for where, name in self._names)])


class _Sees(TorchFunctionMode):
    """Says when a function of torch is given a tensor that lies in certain memory."""

    def __init__(self, own: Mapping[int, int], saw: Any) -> None:
        super().__init__()
        self._own, self._saw = own, saw

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _HARMLESS and any(_lies_in(x, self._own) for x in tree_leaves((args, kwargs))):
            self._saw()
        return func(*args, **(kwargs or {}))


class _Guarded(collections.defaultdict[Any, Any]):
    """An optimizer's state that says when it is looked at."""

    def __init__(self, state: Mapping[Any, Any], saw: Any) -> None:
        super().__init__(dict, state)
        self.saw = saw


def _telling(name: str) -> Any:
    def method(self: _Guarded, *args: Any) -> Any:
        self.saw()
        return getattr(collections.defaultdict, name)(self, *args)

    return method


for _name in ("__getitem__", "__setitem__", "__contains__", "__iter__", "__len__", "__eq__", "__repr__", "__reduce__"):
    setattr(_Guarded, _name, _telling(_name))
for _name in ("keys", "values", "items", "get", "pop", "copy", "clear", "update", "setdefault", "__copy__"):
    setattr(_Guarded, _name, _telling(_name))


def _own(recipe: Recipe) -> dict[int, int]:
    """Where the tensors of a recipe lie: first byte -> number of bytes."""
    modules = [m for m in (recipe.model, recipe.loss) if isinstance(m, nn.Module)]
    tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
    storages = [t.untyped_storage() for t in tensors if not nn.parameter.is_lazy(t)]
    return {s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}


def _lies_in(value: object, own: Mapping[int, int]) -> bool:
    if isinstance(value, Tensor):
        return value.layout is torch.strided and value.untyped_storage().data_ptr() in own
    if isinstance(value, np.ndarray):
        at = value.__array_interface__["data"][0]
        return any(first <= at < first + size for first, size in own.items())
    return False


def _held(optimizer: optim.Optimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def _is_foreign(value: object) -> bool:
    """Whether it is code that is not torch's or Python's."""
    if not isinstance(value, types.FunctionType | type):
        return False
    top = (value.__module__ or "").partition(".")[0]
    return top == "__main__" or (top not in ("torch", "shoal") and top not in sys.stdlib_module_names)


def _contents(value: object) -> object:
    return getattr(value, "cell_contents", None) if isinstance(value, types.CellType) else value


def _line() -> str:
    """The user's line that is running now, in brackets."""
    frame = sys._getframe(2)
    while frame is not None:
        if found := own_line(frame.f_code.co_filename, frame.f_lineno):
            return f" ({found})"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
