"""A fitted preparation as plain data and back: names, numbers, texts and arrays, and no code.

An object is its class, its parameters, and what it has learnt. Only classes of scikit-learn are written and read, so that no file
can name anything else to be made. Needs NumPy, and scikit-learn to read; an exported folder takes this file along.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np

_ROOT = "sklearn."
_SCORES = "sklearn.feature_selection."  # functions that a selection keeps, and calls only when it is fitted
_ARRAYS = "biuf"  # kinds of arrays that safetensors holds; texts and objects are written out


class NotPlainError(TypeError):
    """A preparation holds something that is no plain data."""


def packed(objects: Mapping[int, Any]) -> tuple[str, dict[str, Any]]:
    """Fitted objects by the place of the input that each prepares.

    Returns:
        (JSON, arrays by name).

    Raises:
        NotPlainError: If one is no class of scikit-learn, or holds more than plain data.
    """
    arrays: dict[str, Any] = {}
    tree = {str(place): _pack(one, f"prepare[{place}]", arrays) for place, one in objects.items()}
    return json.dumps(tree), arrays


def unpacked(text: str, arrays: Mapping[str, Any]) -> dict[int, Any]:
    """What `packed` was given.

    Raises:
        NotPlainError: If the text names anything but estimators of scikit-learn.
    """
    return {int(place): _unpack(one, arrays) for place, one in json.loads(text).items()}


def load_preparation(path: str) -> Any:
    """The fitted object out of ``winner.safetensors``; a dict by the input's position where it is not one for a single input.

    Raises:
        ValueError: If the file holds none.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        text = (file.metadata() or {}).get("prepare")
        if text is None:
            raise ValueError(f"{path} holds no preparation: the search had no prepare=, or one that is no plain data.")
        made = unpacked(text, {name: file.get_tensor(name) for name in file.keys() if name.startswith("prepare.")})  # noqa: SIM118
    return made[0] if set(made) == {0} else made


def _pack(value: Any, where: str, arrays: dict[str, Any]) -> Any:
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, np.ndarray):
        if value.dtype.kind in _ARRAYS:
            name = f"prepare.{len(arrays)}"
            arrays[name] = np.ascontiguousarray(value)
            # A product of matrices rounds otherwise where rows and columns lie otherwise in memory.
            return {"array": name, "shape": list(value.shape), "columns": value.flags.fnc}
        if value.dtype.kind in "UO":
            each = [_pack(one, where, arrays) for one in value.ravel().tolist()]
            return {"texts": each, "shape": list(value.shape), "dtype": value.dtype.str}
    if isinstance(value, np.generic) and value.dtype.kind in _ARRAYS:
        return {"scalar": _pack(value.item(), where, arrays), "dtype": value.dtype.str}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": np.dtype(value).str, "type": isinstance(value, type)}
    if isinstance(value, np.ufunc):
        return {"ufunc": value.__name__}
    if isinstance(value, FunctionType) and value.__module__.startswith(_SCORES):
        return {"scores": f"{value.__module__}.{value.__name__}"}
    if isinstance(value, slice):
        return {"slice": [_pack(one, where, arrays) for one in (value.start, value.stop, value.step)]}
    for kind, name in ((list, "list"), (tuple, "tuple"), (set, "set")):
        if type(value) is kind:
            return {name: [_pack(one, f"{where}[{i}]", arrays) for i, one in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, where, arrays), _pack(v, f"{where}[{k!r}]", arrays)] for k, v in value.items()]}
    return _pack_object(value, where, arrays)


def _pack_object(value: Any, where: str, arrays: dict[str, Any]) -> Any:
    cls = type(value)
    if not cls.__module__.startswith(_ROOT) or not hasattr(value, "get_params"):
        raise NotPlainError(f"{where} is a {cls.__module__}.{cls.__qualname__}, which is no estimator of scikit-learn")
    params = value.get_params(deep=False)
    learnt = {name: one for name, one in vars(value).items() if name not in params}
    return {
        "object": f"{cls.__module__}.{cls.__qualname__}",
        "params": [[k, _pack(v, f"{where}.{k}", arrays)] for k, v in params.items()],
        "learnt": [[k, _pack(v, f"{where}.{k}", arrays)] for k, v in learnt.items()],
    }


def _unpack(tree: Any, arrays: Mapping[str, Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "object" in tree:
        return _unpack_object(tree, arrays)
    if "float" in tree:
        return float(tree["float"])
    if "array" in tree:
        array = arrays[tree["array"]].reshape(tree["shape"])
        return np.asfortranarray(array) if tree["columns"] else array
    if "texts" in tree:
        flat = np.empty(len(tree["texts"]), dtype=np.dtype(tree["dtype"]))
        flat[:] = [_unpack(one, arrays) for one in tree["texts"]]
        return flat.reshape(tree["shape"])
    if "scalar" in tree:
        return np.dtype(tree["dtype"]).type(_unpack(tree["scalar"], arrays))
    if "dtype" in tree:
        return np.dtype(tree["dtype"]).type if tree["type"] else np.dtype(tree["dtype"])
    if "ufunc" in tree:
        found = getattr(np, tree["ufunc"], None)
        if not isinstance(found, np.ufunc):
            raise NotPlainError(
                f"{tree['ufunc']!r:.100} is no function of NumPy that works on arrays element by element"
            )
        return found
    if "scores" in tree:
        module, _, name = str(tree["scores"]).rpartition(".")
        made = getattr(importlib.import_module(module), name, None) if module.startswith(_SCORES) else None
        if not isinstance(made, FunctionType) or made.__module__ != module:
            raise NotPlainError(f"{tree['scores']!r:.100} is no function that scikit-learn scores features by")
        return made
    if "slice" in tree:
        return slice(*(_unpack(one, arrays) for one in tree["slice"]))
    if "dict" in tree:
        return {_unpack(k, arrays): _unpack(v, arrays) for k, v in tree["dict"]}
    for name, kind in (("list", list), ("tuple", tuple), ("set", set)):
        if name in tree:
            return kind(_unpack(one, arrays) for one in tree[name])
    raise NotPlainError(f"a preparation holds {sorted(tree)!r:.100}, which is unknown here")


def _unpack_object(tree: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    module, _, name = str(tree["object"]).rpartition(".")
    if not f"{module}.".startswith(_ROOT):
        raise NotPlainError(f"{tree['object']!r:.100} is no class of scikit-learn")
    from sklearn.base import BaseEstimator

    cls = getattr(importlib.import_module(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, BaseEstimator)):
        raise NotPlainError(f"{tree['object']!r:.100} is no estimator of this version of scikit-learn")
    made = cls(**{k: _unpack(v, arrays) for k, v in tree["params"]})
    for k, v in tree["learnt"]:
        setattr(made, k, _unpack(v, arrays))
    return made
