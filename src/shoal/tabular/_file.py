"""One safe file for a model and all that its inputs and outputs need: tensors, and JSON in the file's metadata.

Nothing in it is executed. Names, shapes and types of the tensors are compared with those of the network that the JSON
describes before any is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from shoal.errors import StorageError, UsageError
from shoal.records import Json
from shoal.storage import DEFAULT_NAME, file_beside, place_of
from shoal.tabular._json import Fields

SUFFIX: Final = ".model.safetensors"
MAX_SIZE: Final = 1_000_000  # of anything that a description counts
_FORMAT: Final = 1
_MAX_JSON: Final = 64 * 2**20  # characters

Make = Callable[[], nn.Module]


def model_path(path: str | Path, study: str = DEFAULT_NAME) -> Path:
    """The model file: itself, or the one beside a study.

    >>> model_path("runs/passengers.db")
    PosixPath('runs/passengers.model.safetensors')
    """
    return Path(path) if str(path).endswith(".safetensors") else file_beside(place_of(path), study, SUFFIX)


def write_model(path: str | Path, key: str, facts: Mapping[str, Json], network: nn.Module) -> Path:
    """Write network and description into one file; returns its path.

    Raises:
        StorageError: If it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    part = path.with_name(path.name + ".part")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    try:
        save_file(state, part, metadata={key: json.dumps({"format": _FORMAT, **facts}, allow_nan=False)})
        os.replace(part, path)  # whole or not at all
    except (OSError, SafetensorError) as error:  # the latter is what a full disk gives
        raise StorageError(f"cannot write the model to {path}: {error}") from error
    return path


def read_model(path: str | Path, key: str, describe: Callable[[Fields], Make]) -> tuple[Fields, nn.Module]:
    """Read a file that `write_model` wrote.

    Args:
        path: The model file, or the study file that it lies beside.
        key: Under which the description lies.
        describe: Checks the description, and returns a function that makes its network.

    Returns:
        The description, and the network with its weights, in evaluation mode.

    Raises:
        StorageError: If there is none, or it is damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = model_path(path)
    if not path.is_file():
        raise StorageError(
            f"there is no model {str(path)!r}. `shoal tune` writes one beside its study for a data file."
        )
    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts((file.metadata() or {}).get(key), path)
            make = describe(facts)
            found = {name: _described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if found != _expected(make):
                raise StorageError(
                    f"the model file {path} is damaged: its tensors are not those of the network it describes."
                )
            state = {name: file.get_tensor(name) for name in found}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the model file {path} cannot be read: {error}") from error
    network = make()
    network.load_state_dict(state)
    return facts, network.eval()


def holds(path: str | Path, key: str) -> bool:
    """Whether a model file can be opened and has a description under this key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(model_path(path), framework="pt") as file:
            return key in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def layer_sizes(fields: Fields, name: str, at_most: int) -> int | list[int]:
    """A number of units, or a list with one per layer, each within bounds."""
    if not fields.is_list(name):
        return fields.whole(name, 1, at_most)
    sizes = list(fields.many(name, int, 100))
    if any(not 1 <= size <= at_most for size in sizes):
        raise StorageError("the model file is damaged: the network has a layer of no size.")
    return sizes


def _facts(text: str | None, path: Path) -> Fields:
    if text is None:
        raise StorageError(
            f"{path} holds no model of such data; weights of a trial alone cannot predict from a data file."
        )
    if len(text) > _MAX_JSON:
        raise StorageError(f"the model file {path} is damaged: its description has {len(text)} characters.")
    try:
        facts = Fields(json.loads(text), "the description")
    except (ValueError, RecursionError) as error:
        raise StorageError(f"the model file {path} is damaged: its description is no JSON.") from error
    form = facts.take("format", int)
    if form != _FORMAT:
        raise StorageError(f"the model file {path} has format {form}; this version of Shoal reads {_FORMAT}.")
    return facts


def _expected(make: Make) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and types of the network's tensors, found without taking memory for them."""
    try:
        with torch.device("meta"):
            network = make()
    except UsageError as error:
        raise StorageError(f"the model file is damaged: its network cannot be made ({error})") from error
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in network.state_dict().items()}


def _described(tensor: Any) -> tuple[tuple[int, ...], torch.dtype]:
    types = {"F32": torch.float32, "I64": torch.int64}
    return tuple(tensor.get_shape()), types.get(tensor.get_dtype(), torch.uint8)
