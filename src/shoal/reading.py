"""Data sets of every kind as columns: one tensor per part of an item, (n, ...) each, read once and item by item.

A column that is larger than what memory should hold lies in a file (``memory``) from its first item on.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from shoal import memory, padding
from shoal.errors import DataError
from shoal.padding import Columns, Padded
from shoal.stages import counted

_REFETCHES = 32  # a random flip with p = 1/2 slips through with probability 2**-32

_WHAT_TO_PASS = (
    "Pass a map-style torch Dataset, a tuple of tensors or numpy arrays such as (inputs, targets), a dict of them, or one "
    "tensor or array where there is no target."
)

# Names of the parts (empty where they have none), and the parts of one item, or of all of them.
Parts: TypeAlias = tuple[tuple[str, ...], tuple[Tensor, ...]]


def read(sources: Mapping[str, object]) -> dict[str, Parts]:
    """Every split's columns by the split's name; splits of sequences are padded to one length.

    Raises:
        DataError: A source cannot be read; the message names the split and the item and says what to do.
    """
    padded = {name: source for name, source in sources.items() if isinstance(source, Padded)}
    steps = _steps(padded, sources) if padded else {}
    return {
        name: _read_items(_items(source, name), steps) if isinstance(source, Padded) else _columns(source, name)
        for name, source in sources.items()
    }


def label(name: str, names: Sequence[str], place: int, n: int) -> str:
    """What a part is called in messages: ``train['image']``, ``train[0]``, or ``train`` where it is the only one."""
    if names:
        return f"{name}[{names[place]!r}]"
    return f"{name}[{place}]" if n > 1 else name


# --- columns -----------------------------------------------------------------------------------------------------


def _columns(source: object, name: str) -> Parts:
    if isinstance(source, Tensor | np.ndarray):
        return (), (_tensor(source, name),)
    if isinstance(source, dict):
        _check_names(source, name)
        return tuple(source), tuple(_column(part, name, key, source) for key, part in source.items())
    if isinstance(source, tuple | list):
        if not source:
            raise DataError(f"{name} is an empty {type(source).__name__}. {_WHAT_TO_PASS}")
        return (), tuple(_column(part, name, place, source) for place, part in enumerate(source))
    if isinstance(source, DataLoader):
        raise DataError(f"{name} is a DataLoader; Shoal makes its own batches. Pass loader.dataset instead.")
    if isinstance(source, IterableDataset):
        raise DataError(
            f"{name} is an IterableDataset, which has no length and no order to shuffle. Read it into tensors first, "
            "for example TensorDataset(*map(torch.stack, zip(*dataset)))."
        )
    fast = _known_tensors(source)
    if fast is not None:
        return (), fast
    if _is_sparse(source):
        return (), (_tensor(source, name),)
    if not isinstance(source, Dataset) and hasattr(source, "to_numpy"):
        raise DataError(
            f"{name} is {_kind(source)}; pass inputs and targets apart, such as (frame.drop(columns='y'), frame['y']), or "
            f"{name}.to_numpy() where there is no target."
        )
    if isinstance(source, str | bytes | set) or not hasattr(source, "__getitem__"):
        raise DataError(f"{name} is {_kind(source)}, which is no data set. {_WHAT_TO_PASS}")
    return _read_items(_Items(source.__getitem__, _length(source, name), name))


def _column(part: object, name: str, place: int | str, source: object) -> Tensor:
    where = f"{name}[{place!r}]"
    if isinstance(part, Tensor | np.ndarray) or _is_frame(part) or _is_sparse(part):
        return _tensor(part, where)
    kind = f"part {place} is {_kind(part)}" if isinstance(place, int) else f"{place!r} is {_kind(part)}"
    sequences = isinstance(part, list) and any(isinstance(x, Tensor | np.ndarray | list | tuple) for x in part[:1])
    advice = f"Sequences of different lengths are padded by shoal.Padded({name}_set)." if sequences else _WHAT_TO_PASS
    raise DataError(
        f"{name} is a {type(source).__name__}, so each of its parts must be a tensor or a numpy array with "
        f"one row per sample; {kind}. {advice}"
    )


def _check_names(source: Mapping[Any, object], where: str) -> None:
    if not source:
        raise DataError(f"{where} is an empty {type(source).__name__}. {_WHAT_TO_PASS}")
    for key in source:
        if not isinstance(key, str):
            raise DataError(f"{where} is a {type(source).__name__} whose keys must be strings; got {_kind(key)}.")


def _known_tensors(source: object) -> tuple[Tensor, ...] | None:
    """Tensors of a TensorDataset, or of a Subset of one, without fetching items; None for everything else."""
    # A subclass may override __getitem__, and then its items are not its tensors' rows.
    get = getattr(type(source), "__getitem__", None)
    if isinstance(source, TensorDataset) and get is TensorDataset.__getitem__:
        return tuple(source.tensors)
    if isinstance(source, Subset) and get is Subset.__getitem__:
        tensors = _known_tensors(source.dataset)
        if tensors is not None:
            index = torch.as_tensor(np.asarray(source.indices, dtype=np.int64))
            return tuple(memory.taken(tensor, index) for tensor in tensors)
    return None


def _length(source: object, name: str) -> int:
    try:
        return len(source)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError) as error:
        raise DataError(f"{name} is {_kind(source)} without a length (__len__). {_WHAT_TO_PASS}") from error


# --- items -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Items:
    """A map-style data set of ``n`` items, called ``name`` in messages; ``padded`` if its items are sequences."""

    get: Callable[[int], object]
    n: int
    name: str
    padded: Padded | None = None

    def fetch(self, index: int) -> Parts:
        """Names and parts of an item."""
        where = f"{self.name}[{index}]"
        try:
            item = self.get(index)
        except Exception as error:
            raise DataError(f"{where} could not be fetched: {type(error).__name__}: {error}") from error
        if isinstance(item, Mapping):
            _check_names(item, where)
            return tuple(item), tuple(self._part(part, f"{where}[{key!r}]") for key, part in item.items())
        if isinstance(item, tuple | list):
            if not item:
                raise DataError(
                    f"{where} is an empty {type(item).__name__}; an item must hold a tensor, array or number."
                )
            return (), tuple(self._part(part, f"{where}[{place}]") for place, part in enumerate(item))
        return (), (self._part(item, where),)

    def _part(self, part: object, where: str) -> Tensor:
        if self.padded is not None and isinstance(part, list | tuple):  # a sequence of numbers
            try:
                part = np.asarray(part) if part else np.zeros(0, dtype=np.int64)
            except ValueError as error:
                raise DataError(f"{where} is a list whose rows differ in length: {error}") from error
        return _tensor(part, where)

    def like(self, first: Parts, index: int) -> Parts:
        """An item in the order of the first one's names.

        Raises:
            DataError: If it has other parts than the first.
        """
        names, parts = self.fetch(index)
        if set(names) != set(first[0]) or len(parts) != len(first[1]):
            mine, theirs = (list(n) if n else len(p) for n, p in (first, (names, parts)))
            raise DataError(
                f"items of {self.name} must all have as many parts of the same names: item 0 has {mine}, item {index} has {theirs}."
            )
        if names != first[0]:
            parts = tuple(parts[names.index(name)] for name in first[0])
        return first[0], parts


def _items(padded: Padded, name: str) -> _Items:
    """The items of sequences: of a data set, or row by row of columns."""
    source = padded.data
    if isinstance(source, tuple | dict):
        if isinstance(source, dict):
            _check_names(source, name)
        keyed = list(source.items()) if isinstance(source, dict) else list(enumerate(source))
        columns = {key: _rows(column, f"{name}[{key!r}]") for key, column in keyed}
        sizes = [len(column) for column in columns.values()]
        if not sizes or len(set(sizes)) > 1:
            raise DataError(f"the columns of {name} must have one row per sample, but their lengths are {sizes}.")
        if isinstance(source, dict):
            return _Items(lambda i: {key: column[i] for key, column in columns.items()}, sizes[0], name, padded)
        return _Items(lambda i: tuple(column[i] for column in columns.values()), sizes[0], name, padded)
    if isinstance(source, str | bytes | set | DataLoader | IterableDataset) or not hasattr(source, "__getitem__"):
        raise DataError(
            f"{name} is Padded({_kind(source)}), which has no items to pad. Pass a map-style data set, a list of items, or a tuple "
            "or dict of columns."
        )
    return _Items(source.__getitem__, _length(source, name), name, padded)


def _rows(column: Any, where: str) -> Any:
    if not hasattr(column, "__getitem__") or not hasattr(column, "__len__") or isinstance(column, str | dict):
        raise DataError(f"{where} is {_kind(column)}; it must be a list of sequences, a tensor or an array.")
    return column.to_numpy() if _is_frame(column) else column


def _steps(padded: Mapping[str, Padded], sources: Mapping[str, object]) -> dict[int, int]:
    """How many steps each sequence part is padded to, in all splits."""
    bare = [name for name in sources if name not in padded]
    if bare:
        raise DataError(f"{next(iter(padded))} is Padded, and {bare[0]} is not. Wrap all splits in shoal.Padded(...).")
    first = next(iter(padded.values()))
    for name, one in padded.items():
        if not first.alike(one):
            raise DataError(
                f"{name} must be Padded as {next(iter(padded))} is: with the same value, length, parts and lengths."
            )
    found: dict[str, padding.Lengths] = {}
    for name, one in padded.items():
        items = _items(one, name)
        start = _first(items)
        found[name] = padding.measure(
            lambda i, items=items, start=start: items.like(start, i),  # type: ignore[misc]
            counted(range(items.n), f"measuring {name}", items.n),
            items.n,
        )
    return padding.plan(padded, found)


def _first(items: _Items) -> Parts:
    if items.n == 0:
        raise DataError(f"{items.name} is empty: its length is 0.")
    return items.fetch(0)


def _read_items(items: _Items, steps: Mapping[int, int] | None = None) -> Parts:
    """All items as columns, padded where ``steps`` says how far."""
    name, n = items.name, items.n
    names, first = start = _first(items)
    # Before the long read, so that a random transform is reported at once. A small data set is asked repeatedly.
    for index in np.linspace(0, n - 1, _REFETCHES).round().astype(int).tolist():
        _check_same(items.fetch(index)[1], items.fetch(index)[1], index, name)
    columns = Columns(items.padded or Padded(None), steps or {}, names, first, n)
    for index in counted(range(n), f"reading {name}", n):
        parts = items.like(start, index)[1]
        for place, part in enumerate(parts):
            _check_part(columns.shape(place), first[place], part, _of_items(name, names, place, len(first)), index)
        columns.put(index, parts)
    return columns.finished()


def _of_items(name: str, names: Sequence[str], place: int, n: int) -> str:
    if names:
        return f"part {names[place]!r} of the items of {name}"
    return f"part {place} of the items of {name}" if n > 1 else f"items of {name}"


def _check_part(shape: tuple[int | None, ...], first: Tensor, part: Tensor, what: str, index: int) -> None:
    wanted = tuple(p if s is None else s for s, p in zip(shape, part.shape, strict=False))
    if len(shape) != part.ndim or tuple(part.shape) != wanted:
        ragged = first.ndim == part.ndim and first.ndim > 0 and first.shape[1:] == part.shape[1:]
        advice = (
            "If these are sequences of different lengths, wrap all splits: shoal.Padded(data_set)."
            if ragged and None not in shape
            else "Pad, crop or resize them to one shape first."
        )
        raise DataError(
            f"{what} must all have one shape: item 0 has {tuple(first.shape)}, item {index} has {tuple(part.shape)}. {advice}"
        )
    if part.dtype != first.dtype:
        raise DataError(
            f"{what} must all have one dtype: item 0 has {first.dtype}, item {index} has {part.dtype}. "
            "Convert them in the data set, for example with float(...)."
        )


def _check_same(once: tuple[Tensor, ...], again: tuple[Tensor, ...], index: int, name: str) -> None:
    same = len(once) == len(again) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(once, again, strict=False)
    )
    if not same:
        raise DataError(
            f"{name}[{index}] was fetched twice and differed: the data set is random, as with augmentation in its "
            "transform. Shoal reads it once, so every epoch would see the same draw. Give the data set a deterministic "
            "transform and put the random part into Recipe(transform=...)."
        )


# --- tensors -----------------------------------------------------------------------------------------------------


def _tensor(value: object, where: str) -> Tensor:
    """One tensor, array, number or image as a tensor."""
    if isinstance(value, Tensor):
        return dense(value, where).detach()
    if isinstance(value, bool | int | float | complex) and not isinstance(value, np.generic):
        return torch.tensor(value)
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array_interface__"):
        return _from_numpy(value if isinstance(value, np.memmap) else np.asarray(value), where)
    if _is_frame(value):
        return _from_frame(value, where)
    if _is_sparse(value):
        raise DataError(
            f"{where} is a sparse matrix of scipy ({type(value).__name__}); lanes read dense rows: use .toarray() if it fits "
            "memory, or fewer features (sklearn.decomposition.TruncatedSVD)."
        )
    known: dict[type, str] = {
        dict: "Flatten nested items.",
        str: "Encode text as integers first, for example with a tokenizer or a vocabulary.",
        tuple: "Flatten nested items, or stack them into one tensor.",
        list: "Flatten nested items, or make one tensor of the list with torch.tensor(...).",
    }
    advice = known.get(type(value), "Leave such items out, or convert them first.")
    raise DataError(f"{where} is {_kind(value)}; it must be a tensor, a numpy array or a number. {advice}")


def _is_frame(value: object) -> bool:
    """Whether this is a data frame or a column of one (pandas, polars), by what it can do."""
    return hasattr(value, "to_numpy") and hasattr(value, "dtypes" if hasattr(value, "columns") else "dtype")


def _is_sparse(value: object) -> bool:
    return hasattr(value, "toarray") and hasattr(value, "nnz")


def _from_frame(frame: Any, where: str) -> Tensor:
    """A frame as (n, columns), a column as (n,): whole numbers if all of it is whole, else torch's default dtype."""
    if hasattr(frame, "columns"):
        columns = {name: np.asarray(frame[name]) for name in frame.columns}
        for name, column in columns.items():
            _check_column(column, f"column {name!r} of {where}")
        if not columns:
            raise DataError(f"{where} is a data frame without columns.")
        return _from_numpy(np.stack(list(columns.values()), axis=1), where)
    column = np.asarray(frame)
    _check_column(column, where)
    return _from_numpy(column, where)


def _check_column(column: npt.NDArray[np.generic], what: str) -> None:
    if column.dtype.kind not in "biuf":
        raise DataError(
            f"{what} has dtype {column.dtype}, and must hold numbers without gaps. Encode categories and text as numbers "
            "(pandas.get_dummies, .cat.codes), fill what is missing, and make dates a number of days."
        )


def dense(tensor: Tensor, where: str) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise DataError(f"{where} is a sparse or nested tensor; it must be dense: use .to_dense(), or pad it.")
    return tensor


def _from_numpy(array: npt.NDArray[np.generic], where: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        raise DataError(
            f"{where} is a numpy array of dtype {array.dtype}; it must hold numbers. Encode text as integers, "
            "and stack an array of objects into an array of numbers with numpy.stack."
        )
    wider = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(array.dtype.name)  # torch barely has these
    if wider is not None:
        array = array.astype(wider)
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    mapped = isinstance(array, np.memmap) and array.flags.c_contiguous and array.dtype.isnative
    if not mapped and not (array.flags.writeable and array.flags.c_contiguous and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
    with warnings.catch_warnings():
        # A file that is mapped read-only stays on the disk: nothing here writes to data.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)
        tensor = torch.from_numpy(array)
    # In torch and not in numpy, where a value beyond float32 is a warning: the check for inf then names its row.
    return tensor.to(torch.get_default_dtype()) if tensor.dtype is torch.float64 else tensor


def _kind(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, str | numbers.Number):
        return f"{type(value).__name__} {value!r:.40}"
    return f"of type {type(value).__name__}"
