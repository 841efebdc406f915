"""State of an optimizer as plain data: a tree of JSON whose leaves may be tensors, kept apart by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shoal.errors import StorageError
from shoal.records import Json


def pack(value: object, name: str, tensors: dict[str, Tensor]) -> Json:
    """A tree of numbers, text, lists, tuples, dicts and tensors as JSON.

    Args:
        value: The tree.
        name: What the names of its tensors begin with.
        tensors: They are added here, as copies in the host's memory.

    Raises:
        TypeError: There is something else in it.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value  # type: ignore[return-value]
    if isinstance(value, Tensor):
        at = f"{name}/{len(tensors)}"
        tensors[at] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": at}
    if type(value) in (list, tuple):
        parts: list[Json] = [pack(v, name, tensors) for v in value]  # type: ignore[attr-defined]
        return {"list" if type(value) is list else "tuple": parts}
    if isinstance(value, dict):
        pairs: list[Json] = [[pack(k, name, tensors), pack(v, name, tensors)] for k, v in value.items()]
        return {"dict": pairs}
    raise TypeError(f"{type(value).__qualname__} is no plain data")


def unpack(value: Any, take: Callable[[str], Tensor]) -> Any:
    """What ``pack`` was given.

    Args:
        value: JSON.
        take: Name -> tensor.

    Raises:
        StorageError: It is not what ``pack`` gives.
    """
    if not isinstance(value, dict):
        return value
    (kind, inside), *more = value.items() or [("", None)]
    if not more:
        if kind == "tensor" and isinstance(inside, str):
            return take(inside)
        if kind in ("list", "tuple") and isinstance(inside, list):
            parts = [unpack(v, take) for v in inside]
            return parts if kind == "list" else tuple(parts)
        if kind == "dict" and isinstance(inside, list) and all(isinstance(p, list) and len(p) == 2 for p in inside):
            return {unpack(k, take): unpack(v, take) for k, v in inside}
    raise StorageError(f"{str(value)[:100]} is not what state is stored as: the snapshot is damaged.")
