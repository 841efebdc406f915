"""A tuned model together with what turns rows into its inputs and its outputs into answers, in one safe file.

The file is safetensors: weights as tensors, all else as JSON in its metadata. Nothing in it is executed, and names,
shapes and types of the tensors are compared with those of the model that the JSON describes before any is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from shoal.errors import StorageError, UsageError
from shoal.nn import mlp
from shoal.records import Json
from shoal.tabular._columns import Numbers
from shoal.tabular._json import Fields
from shoal.tabular._prepare import Preparation, preparation_from_json
from shoal.tabular._read import need_pandas, read_table
from shoal.tabular._target import Target, target_from_json

SUFFIX: Final = ".model.safetensors"
_KEY: Final = "shoal_table"
_FORMAT: Final = 1
_MAX_JSON: Final = 64 * 2**20  # characters
_MAX_SIZE: Final = 1_000_000  # units, inputs, categories in all
_CHUNK: Final = 8192  # rows


@dataclass(frozen=True, slots=True, eq=False)
class TableModel:
    """A model for the rows of a table.

    Attributes:
        preparation: What turns rows into inputs.
        target: What the outputs mean.
        arguments: Keywords of ``shoal.nn.mlp`` that the network was made with.
        network: The network, in evaluation mode.
    """

    preparation: Preparation
    target: Target
    arguments: Mapping[str, Any]
    network: nn.Module

    def predict(self, source: Any) -> Any:
        """Predictions for new rows, as a pandas data frame in the order of the rows.

        Args:
            source: A CSV or Parquet file, or a data frame. Columns that the model does not know are not looked at.

        Returns:
            For classes a column with the class, and ``p(CLASS)`` with the probability of each; for labels a column with the
            value of each, and ``p(LABEL)``; for numbers a column for each target.

        Raises:
            DataError: If the rows cannot be read, or have none of the columns.
        """
        return self.predict_with_notes(source)[0]

    def predict_with_notes(self, source: Any) -> tuple[Any, list[str]]:
        """`predict`, and sentences about what was not as in training: missing columns, unknown categories."""
        table = read_table(source)
        inputs, notes = self.preparation.apply(table)
        return self._frame(self.scores(inputs)), [*table.notes, *notes]

    def scores(self, inputs: tuple[Tensor, ...]) -> Numbers:
        """Probabilities, or numbers in their own units, for prepared inputs."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(inputs[0]), _CHUNK):
                parts.append(self.network(*(tensor[start : start + _CHUNK] for tensor in inputs)))
        return self.target.scores(torch.cat(parts))

    def _frame(self, scores: Numbers) -> Any:
        target, decided = self.target, self.target.decide(scores)
        columns: dict[str, Any] = {}
        if target.task == "classes":
            columns[target.names[0]] = [target.values[i] for i in decided]
            columns.update({f"p({value})": scores[:, i] for i, value in enumerate(target.values)})
        elif target.task == "labels":
            for i, name in enumerate(target.names):
                columns[name] = [target.values[2 * i + int(yes)] for yes in decided[:, i]]
            columns.update({f"p({name})": scores[:, i] for i, name in enumerate(target.names)})
        else:
            columns.update({name: scores[:, i] for i, name in enumerate(target.names)})
        return need_pandas().DataFrame(columns)

    def save(self, path: str | Path) -> Path:
        """Write everything into one safetensors file; returns its path.

        Raises:
            StorageError: If it cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        facts: dict[str, Json] = {
            "format": _FORMAT,
            "preparation": self.preparation.to_json(),
            "target": self.target.to_json(),
            "network": {**self.arguments, "categories": list(self.arguments["categories"])},
        }
        path = Path(path)
        part = path.with_name(path.name + ".part")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        try:
            save_file(state, part, metadata={_KEY: json.dumps(facts, allow_nan=False)})
            os.replace(part, path)  # whole or not at all
        except (OSError, SafetensorError) as error:  # the latter is what a full disk gives
            raise StorageError(f"cannot write the model to {path}: {error}") from error
        return path


def load_table_model(path: str | Path) -> TableModel:
    """Read a model that ``shoal tune`` made of a data file.

    Args:
        path: The model file (``passengers.model.safetensors``), or the study file that it lies beside (``passengers.db``).

    Raises:
        StorageError: If there is none, or it is damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = model_path(path)
    if not path.is_file():
        raise StorageError(
            f"there is no model {str(path)!r}. `shoal tune FILE.csv --target NAME` writes one beside its study."
        )
    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts((file.metadata() or {}).get(_KEY), path)
            arguments = _arguments(facts)
            expected = _expected(arguments)
            found = {name: _described(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if found != expected:
                raise StorageError(
                    f"the model file {path} is damaged: its tensors are not those of the network it describes."
                )
            state = {name: file.get_tensor(name) for name in found}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the model file {path} cannot be read: {error}") from error
    preparation, target = (
        preparation_from_json(facts.take("preparation", list)),
        target_from_json(facts.take("target", dict)),
    )
    if (preparation.n_numbers, preparation.sizes, target.n_out) != (
        arguments["n_in"],
        arguments["categories"],
        arguments["n_out"],
    ):
        raise StorageError(f"the model file {path} is damaged: its columns do not fit its network.")
    network = mlp(**arguments)
    network.load_state_dict(state)
    return TableModel(preparation, target, arguments, network.eval())


def model_path(path: str | Path) -> Path:
    """The model file: itself, or the one beside a study file.

    >>> model_path("runs/passengers.db")
    PosixPath('runs/passengers.model.safetensors')
    """
    from shoal.storage._place import study_path

    return Path(path) if str(path).endswith(".safetensors") else study_path(str(path)).with_suffix(SUFFIX)


def _facts(text: str | None, path: Path) -> Fields:
    if text is None:
        raise StorageError(
            f"{path} holds no model of a table; weights of a trial alone cannot predict from a data file."
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


def _arguments(facts: Fields) -> dict[str, Any]:
    """Keywords of ``mlp``, each checked for its type and size."""
    fields = Fields(facts.take("network", dict), "the network")
    raw = facts.take("network", dict)
    arguments: dict[str, Any] = {name: fields.whole(name, 0, _MAX_SIZE) for name in ("n_in", "n_out", "embedding")}
    if isinstance(raw.get("width"), list):
        arguments["width"] = list(fields.many("width", int, 100))
        arguments["depth"] = len(arguments["width"])
        if any(not 1 <= size <= _MAX_SIZE for size in arguments["width"]):
            raise StorageError("the model file is damaged: the network has a layer of no size.")
    else:
        arguments |= {"width": fields.whole("width", 1, _MAX_SIZE), "depth": fields.whole("depth", 0, 100)}
    arguments["activation"] = fields.take("activation", str)
    for name, kind in (("dropout", float), ("norm", str)):
        arguments[name] = None if raw.get(name) is None else fields.take(name, kind)
    arguments |= {name: fields.take(name, bool) for name in ("residual", "wide")}
    arguments["categories"] = fields.many("categories", int, _MAX_SIZE)
    if sum(arguments["categories"]) > _MAX_SIZE or any(size < 1 for size in arguments["categories"]):
        raise StorageError("the model file is damaged: the network has too many categories.")
    return arguments


def _expected(arguments: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and types of the network's tensors, found without taking memory for them."""
    try:
        with torch.device("meta"):
            network = mlp(**arguments)
    except UsageError as error:
        raise StorageError(f"the model file is damaged: its network cannot be made ({error})") from error
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in network.state_dict().items()}


def _described(tensor: Any) -> tuple[tuple[int, ...], torch.dtype]:
    types = {"F32": torch.float32, "I64": torch.int64}
    return tuple(tensor.get_shape()), types.get(tensor.get_dtype(), torch.uint8)
