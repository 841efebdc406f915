"""A model tuned from a folder, with what turns files into its inputs, in one safe file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from shoal.errors import DataError, StorageError
from shoal.folders._files import Kind, new_files
from shoal.folders._images import Images, images_from_json
from shoal.folders._texts import Texts, texts_from_json
from shoal.nn import cnn, mlp
from shoal.records import Json
from shoal.tabular._columns import Numbers
from shoal.tabular._file import Make, holds, layer_sizes, read_model, write_model
from shoal.tabular._json import Fields
from shoal.tabular._model import mlp_arguments
from shoal.tabular._read import need_pandas
from shoal.tabular._target import Target, target_from_json

KEY: Final = "shoal_folder"
_CHUNK: Final = 1024  # files


@dataclass(frozen=True, slots=True, eq=False)
class FolderModel:
    """A model for images or texts in files.

    Attributes:
        preparation: What turns files into inputs.
        target: The classes.
        arguments: Keywords of ``shoal.nn.cnn`` (images) or ``shoal.nn.mlp`` (texts) that the network was made with.
        network: The network, in evaluation mode.
    """

    preparation: Images | Texts
    target: Target
    arguments: Mapping[str, Any]
    network: nn.Module

    @property
    def kind(self) -> Kind:
        """Whether it takes images or texts."""
        return "images" if isinstance(self.preparation, Images) else "texts"

    def predict(self, source: str | Path) -> Any:
        """Predictions for a file, or for all files of a folder in order of their names, as a pandas data frame.

        Args:
            source: An image or text, or a folder of them; its own folders are looked through as well.

        Returns:
            Columns ``file``, ``class``, and ``p(CLASS)`` with the probability of each.

        Raises:
            DataError: If none of the files can be read.
        """
        return self.predict_with_notes(source)[0]

    def predict_with_notes(self, source: str | Path) -> tuple[Any, list[str]]:
        """`predict`, and sentences about files that cannot be read, which are left out."""
        files = new_files(source, self.kind)
        inputs, bad = self.preparation.apply(files)
        kept = [i for i in range(len(files)) if i not in set(bad)]
        if not kept:
            raise DataError(f"none of {len(files)} {self.kind} can be read, such as {str(files[0])!r}.")
        scores = self.scores((inputs[kept],))
        columns: dict[str, Any] = {"file": [str(files[i]) for i in kept]}
        columns["class"] = [self.target.values[i] for i in self.target.decide(scores)]
        columns.update({f"p({value})": scores[:, i] for i, value in enumerate(self.target.values)})
        return need_pandas().DataFrame(columns), unreadable([files[i] for i in bad])

    def scores(self, inputs: tuple[Tensor, ...]) -> Numbers:
        """Probabilities (n, C) for prepared inputs."""
        with torch.no_grad():
            parts = [self.network(inputs[0][start : start + _CHUNK]) for start in range(0, len(inputs[0]), _CHUNK)]
        return self.target.scores(torch.cat(parts))

    def save(self, path: str | Path) -> Path:
        """Write everything into one safetensors file; returns its path.

        Raises:
            StorageError: If it cannot be written.
        """
        network = {name: list(v) if isinstance(v, tuple) else v for name, v in self.arguments.items()}
        facts: dict[str, Json] = {
            "kind": self.kind,
            "preparation": self.preparation.to_json(),
            "target": self.target.to_json(),
            "network": network,
        }
        return write_model(path, KEY, facts, self.network)


def load_folder_model(path: str | Path) -> FolderModel:
    """Read a model that ``shoal tune`` made of a folder.

    Args:
        path: The model file (``photos.model.safetensors``), or the study file that it lies beside (``photos.db``).

    Raises:
        StorageError: If there is none, or it is damaged or of another kind.
    """
    facts, network = read_model(path, KEY, _make)
    raw, target = facts.take("preparation", dict), target_from_json(facts.take("target", dict))
    arguments = _arguments(facts)
    preparation: Images | Texts
    if facts.take("kind", str) == "images":
        preparation = images_from_json(raw)
        fits = preparation.shape == arguments["in_shape"]
    else:
        preparation = texts_from_json(raw)
        fits = len(preparation.words) == len(preparation.weights) == arguments["n_in"] and not arguments["categories"]
    if not fits or target.n_out != arguments["n_out"] or target.task != "classes":
        raise StorageError(f"the model file of {path} is damaged: its inputs or classes do not fit its network.")
    return FolderModel(preparation, target, arguments, network)


def is_folder_model(path: str | Path) -> bool:
    """Whether a model file, or the one beside a study file, was made of a folder."""
    return holds(path, KEY)


def unreadable(files: list[Path]) -> list[str]:
    """A note about files that are left out, if there are any."""
    return [f"{len(files)} files cannot be read and are left out, such as {str(files[0])!r}"] if files else []


def _make(facts: Fields) -> Make:
    builder = cnn if facts.take("kind", str) == "images" else mlp
    return partial(builder, **_arguments(facts))


def _arguments(facts: Fields) -> dict[str, Any]:
    """Keywords of the builder, each checked for its type and size."""
    kind = facts.take("kind", str)
    if kind not in ("images", "texts"):
        raise StorageError(f"the model file is damaged: {kind!r:.60} is neither 'images' nor 'texts'.")
    if kind == "texts":
        return mlp_arguments(facts)
    fields = Fields(facts.take("network", dict), "the network")
    shape = fields.many("in_shape", int, 3)
    if len(shape) != 3 or not all(1 <= side <= 4096 for side in shape):
        raise StorageError(f"the model file is damaged: the network takes images of shape {shape}.")
    return {
        "in_shape": shape,
        "n_out": fields.whole("n_out", 1, 10_000),
        "channels": layer_sizes(fields, "channels", 4096),
        "depth": fields.whole("depth", 1, 8),
        "kernel": fields.whole("kernel", 1, 99),
        "pool": fields.whole("pool", 1, 99),
        "activation": fields.take("activation", str),
        "dropout": fields.maybe("dropout", float),
        "norm": fields.maybe("norm", str),
        "residual": fields.take("residual", bool),
        "head": fields.take("head", str),
    }
