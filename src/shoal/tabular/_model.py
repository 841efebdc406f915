"""A tuned model together with what turns rows into its inputs and its outputs into answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from shoal.errors import StorageError
from shoal.nn import mlp
from shoal.records import Json
from shoal.tabular._columns import Numbers
from shoal.tabular._file import MAX_SIZE, layer_sizes, read_model, write_model
from shoal.tabular._json import Fields
from shoal.tabular._prepare import Preparation, preparation_from_json
from shoal.tabular._read import need_pandas, read_table
from shoal.tabular._target import Target, target_from_json

KEY: Final = "shoal_table"
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
        facts: dict[str, Json] = {
            "preparation": self.preparation.to_json(),
            "target": self.target.to_json(),
            "network": {**self.arguments, "categories": list(self.arguments["categories"])},
        }
        return write_model(path, KEY, facts, self.network)


def load_table_model(path: str | Path) -> TableModel:
    """Read a model that ``shoal tune`` made of a data file.

    Args:
        path: The model file (``passengers.model.safetensors``), or the study file that it lies beside (``passengers.db``).

    Raises:
        StorageError: If there is none, or it is damaged or of another kind.
    """
    facts, network = read_model(path, KEY, lambda facts: partial(mlp, **mlp_arguments(facts)))
    arguments = mlp_arguments(facts)
    preparation = preparation_from_json(facts.take("preparation", list))
    target = target_from_json(facts.take("target", dict))
    needed = preparation.n_numbers, preparation.sizes, target.n_out
    if needed != (arguments["n_in"], arguments["categories"], arguments["n_out"]):
        raise StorageError(f"the model file {path} is damaged: its columns do not fit its network.")
    return TableModel(preparation, target, arguments, network)


def mlp_arguments(facts: Fields) -> dict[str, Any]:
    """Keywords of ``mlp`` from a description, each checked for its type and size.

    Raises:
        StorageError: If one is missing, or not what it should be.
    """
    fields = Fields(facts.take("network", dict), "the network")
    arguments: dict[str, Any] = {name: fields.whole(name, 0, MAX_SIZE) for name in ("n_in", "n_out", "embedding")}
    arguments["width"], arguments["depth"] = layer_sizes(fields, "width", MAX_SIZE), fields.whole("depth", 0, 100)
    arguments["activation"] = fields.take("activation", str)
    arguments |= {"dropout": fields.maybe("dropout", float), "norm": fields.maybe("norm", str)}
    arguments |= {name: fields.take(name, bool) for name in ("residual", "wide")}
    arguments["categories"] = fields.many("categories", int, MAX_SIZE)
    if sum(arguments["categories"]) > MAX_SIZE or any(size < 1 for size in arguments["categories"]):
        raise StorageError("the model file is damaged: the network has too many categories.")
    return arguments
