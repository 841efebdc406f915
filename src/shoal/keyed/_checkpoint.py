"""Gradient checkpointing under keyed random numbers: what is computed again on the way back draws what it drew at first.

``torch.utils.checkpoint`` puts torch's own generator back before it computes again, which keyed draws do not come from. Inside of
``torch.func``, where tensors cannot be thrown away and made again, a checkpointed part is computed once, like any other.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils import checkpoint as torchs

from shoal.keyed._random import KeyedRandom

# Both ways of checkpointing, as torch has them.
_generator = torchs._checkpoint_without_reentrant_generator
_function = torchs.CheckpointFunction
_Contexts = tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]


def _active() -> KeyedRandom | None:
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return next((m for m in reversed(stack) if isinstance(m, KeyedRandom)), None)


@contextlib.contextmanager
def _again(start: KeyedRandom, *around: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """The draws that followed a mode as it was."""
    with contextlib.ExitStack() as stack:
        for context in around:
            stack.enter_context(context)
        stack.enter_context(copy.copy(start))
        yield


def _without_reentrant(
    function: Callable[..., Any], preserve: bool, context_fn: Callable[[], _Contexts], *more: Any, **kwargs: Any
) -> Iterator[None]:
    mode = _active()
    if mode is None:
        yield from _generator(function, preserve, context_fn, *more, **kwargs)
    elif torch._C._functorch.maybe_current_level() is not None:
        yield
    else:
        start = copy.copy(mode)

        def contexts() -> _Contexts:
            forward, recompute = context_fn()
            return forward, _again(start, recompute)

        yield from _generator(function, preserve, contexts, *more, **kwargs)


class _Reentrant:
    """Stands in place of torch's function, which is told to draw alike the second time."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        mode = _active()
        if mode is None:
            return _function.apply(function, preserve, *args)  # type: ignore[no-untyped-call]
        if torch._C._functorch.maybe_current_level() is not None:
            return function(*args)
        start, ran = copy.copy(mode), False

        def run(*inner: Any) -> Any:
            nonlocal ran
            if not ran:
                ran = True
                return function(*inner)
            with _again(start):
                return function(*inner)

        return _function.apply(run, preserve, *args)  # type: ignore[no-untyped-call]


torchs._checkpoint_without_reentrant_generator = _without_reentrant  # type: ignore[assignment]
torchs.CheckpointFunction = _Reentrant  # type: ignore[assignment,misc]
