"""What is to be predicted: classes, several yes-or-no labels, or numbers; learnt once, plain data ever after.

Glossary: ``n`` rows; ``k`` target columns; ``C`` classes. As tensors, classes are int64 ``(n,)``, labels and numbers
float32 ``(n, k)``; numbers are scaled to mean 0 and standard deviation 1 of the training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal.errors import DataError, StorageError, UsageError, did_you_mean
from shoal.records import Json
from shoal.tabular._columns import Numbers, as_numbers, as_texts
from shoal.tabular._json import Fields
from shoal.tabular._read import Table

Task: TypeAlias = Literal["classes", "labels", "numbers"]
TASKS: Final = get_args(Task)
MAX_CLASSES: Final = 1000
_MAX_TARGETS: Final = 1000
_FEW: Final = 20  # whole numbers with at most so many different values are classes unless the task says otherwise


@dataclass(frozen=True, slots=True)
class Target:
    """What the model's outputs mean.

    ``values`` are the classes as text, or for labels each column's (no, yes) one after the other; ``mean`` and ``std``
    scale numbers.
    """

    task: Task
    names: tuple[str, ...]
    values: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def n_out(self) -> int:
        """How many outputs a model has."""
        return len(self.values) if self.task == "classes" else len(self.names)

    def encode(self, table: Table) -> npt.NDArray[Any]:
        """Targets of all rows: classes or labels as int64, numbers as float64 and not scaled; (n,) or (n, k)."""
        columns = [table.column(name, "a target") for name in self.names]
        if self.task == "numbers":
            return np.stack([as_numbers(column) for column in columns], axis=1)
        if self.task == "classes":
            return _places(as_texts(columns[0]), self.values)
        return np.stack([_places(as_texts(c), self.values[2 * i : 2 * i + 2]) for i, c in enumerate(columns)], axis=1)

    def scaled_to(self, train: Numbers) -> Target:
        """The target of a regression with mean and standard deviation of its training rows (n, k)."""
        if self.task != "numbers":
            return self
        std = np.std(train, axis=0)
        return replace(
            self,
            mean=tuple(float(m) for m in np.mean(train, axis=0)),
            std=tuple(float(s) if s > 0 else 1.0 for s in std),
        )

    def tensor(self, encoded: npt.NDArray[Any]) -> Tensor:
        """What a criterion is given."""
        if self.task == "classes":
            return torch.from_numpy(encoded.astype(np.int64))
        if self.task == "numbers":
            encoded = (encoded - np.asarray(self.mean)) / np.asarray(self.std)
        return torch.from_numpy(encoded.astype(np.float32))

    def scores(self, outputs: Tensor) -> Numbers:
        """Outputs of a model as probabilities, (n, C) or (n, k), or as numbers in their own units (n, k)."""
        outputs = outputs.double().cpu()
        if self.task == "classes":
            made: Numbers = torch.softmax(outputs, 1).numpy()
        elif self.task == "labels":
            made = torch.sigmoid(outputs).numpy()
        else:
            made = outputs.numpy() * np.asarray(self.std) + np.asarray(self.mean)
        return made

    def decide(self, scores: Numbers) -> npt.NDArray[Any]:
        """Classes (n,), labels (n, k) or numbers (n, k) as `encode` gives them."""
        if self.task == "classes":
            return np.asarray(scores.argmax(axis=1))
        return (scores > 0.5).astype(np.int64) if self.task == "labels" else scores

    def to_json(self) -> dict[str, Json]:
        """As plain data."""
        return {
            "task": self.task,
            "names": list(self.names),
            "values": list(self.values),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def target_from_json(value: object) -> Target:
    """A target from its plain data.

    Raises:
        StorageError: If the data are not those of a target.
    """
    fields = Fields(value, "the target")
    task, names = fields.take("task", str), fields.many("names", str, _MAX_TARGETS)
    values = fields.many("values", str, max(MAX_CLASSES, 2 * _MAX_TARGETS))
    mean, std = fields.many("mean", float, _MAX_TARGETS), fields.many("std", float, _MAX_TARGETS)
    k = len(names)
    fits = {
        "classes": k == 1 and len(values) >= 2 and not mean,
        "labels": k >= 1 and len(values) == 2 * k and not mean,
        "numbers": k >= 1 and not values and len(mean) == k,
    }
    if not fits.get(task, False) or len(std) != len(mean):
        raise StorageError("the model file is damaged: the parts of its target do not fit each other.")
    return Target(cast(Task, task), names, values, mean, std)


# -- learning ----------------------------------------------------------------------------------------------------------


def learn_target(table: Table, names: Sequence[str], task: str | None) -> Target:
    """What the target columns ask for.

    Args:
        table: All rows.
        names: Target columns, one or more.
        task: "classes", "labels" or "numbers", or None to go by the columns: several columns of two values each are
            labels; text, and whole numbers with at most 20 different values, are classes; all else are numbers.

    Raises:
        UsageError: If a column is not there, or the task is unknown.
        DataError: If nothing can be learnt from the columns; the message says why.
    """
    if not names:
        raise UsageError("name the column to predict: target='...' (on the command line, --target NAME).")
    if len(set(names)) < len(names):
        raise UsageError(f"each target can be named once; got {', '.join(map(repr, names))}.")
    if len(names) > _MAX_TARGETS:
        raise UsageError(f"at most {_MAX_TARGETS} targets; got {len(names)}.")
    if task is not None and task not in TASKS:
        raise UsageError(f"unknown task {task!r}.{did_you_mean(task, TASKS)}")
    columns = {name: table.column(name, "the target") for name in names}
    for name, column in columns.items():
        if all(text is None for text in as_texts(column)):
            raise DataError(f"the target {name!r} is empty: every cell is missing.")
    kind = task or _guess(columns)
    if kind == "numbers":
        for name, column in columns.items():
            _check_numbers(name, column)
        return Target("numbers", tuple(names))
    values = [v for name, column in columns.items() for v in _classes(name, column, 2 if kind == "labels" else None)]
    if kind == "classes" and len(names) > 1:
        raise UsageError(
            f"several targets can be labels of two values each, or numbers; {', '.join(map(repr, names))} are neither. "
            "Tune one study per column."
        )
    return Target(cast(Task, kind), tuple(names), tuple(values))


def _guess(columns: dict[str, Any]) -> Task:
    distinct = {name: {t for t in as_texts(column) if t is not None} for name, column in columns.items()}
    if len(columns) > 1 and all(len(found) <= 2 for found in distinct.values()):
        return "labels"

    def counts(name: str) -> bool:
        """Whether a column holds numbers that are more than names of a few classes."""
        numbers = as_numbers(np.asarray(sorted(distinct[name]), dtype=object))
        if np.isnan(numbers).mean() > 0.05:
            return False
        finite = numbers[~np.isnan(numbers)]
        return len(distinct[name]) > _FEW or bool((finite != np.round(finite)).any())

    return "numbers" if all(counts(name) for name in columns) else "classes"


def _check_numbers(name: str, column: Any) -> None:
    numbers, texts = as_numbers(column), as_texts(column)
    odd = [str(text) for text, number in zip(texts, numbers, strict=True) if text is not None and np.isnan(number)]
    if len(odd) > 0.05 * len(texts):
        raise DataError(f"the target {name!r} must be numbers, but {len(odd)} cells are none, such as {odd[0]!r:.60}.")
    present = numbers[~np.isnan(numbers)]
    if len(present) and float(np.abs(present).max()) > 1e30:
        raise DataError(f"the target {name!r} has values beyond 1e30; give it in larger units.")
    if len(set(present.tolist())) < 2:
        raise DataError(f"the target {name!r} is the same in every row; there is nothing to learn.")


def _classes(name: str, column: Any, exactly: int | None) -> list[str]:
    """The different values in order: numbers by size, all else by the alphabet."""
    texts = [str(text) for text in as_texts(column) if text is not None]
    found = sorted(set(texts))
    if len(found) < 2:
        raise DataError(f"the target {name!r} has one class only ({found[0]!r:.60}); there is nothing to learn.")
    if exactly is not None and len(found) != exactly:
        raise DataError(f"as a label, the target {name!r} must have two different values; it has {len(found)}.")
    if len(found) > MAX_CLASSES or (len(found) > _FEW and len(found) > len(texts) / 2):
        raise DataError(
            f"the target {name!r} has {len(found)} different values in {len(texts)} rows, too many for classes. Is it the "
            "right column? For numbers, say task='numbers' (--task numbers)."
        )
    numbers = as_numbers(np.asarray(found, dtype=object))
    return found if np.isnan(numbers).any() else [found[i] for i in np.argsort(numbers, kind="stable")]


def _places(texts: npt.NDArray[np.object_], values: Sequence[str]) -> npt.NDArray[np.int64]:
    place = {value: i for i, value in enumerate(values)}
    return np.asarray([-1 if text is None else place.get(text, -1) for text in texts], dtype=np.int64)


def missing_rows(encoded: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Rows whose target, or any of several, is missing: (n,)."""
    bad = np.isnan(encoded) if encoded.dtype.kind == "f" else encoded < 0
    return np.asarray(bad.any(axis=1) if bad.ndim == 2 else bad)
