"""Data sets to tensors, once: all lanes of all trials read the same tensors, so every check is done here and only here.

Glossary: ``n`` is the number of samples of a split; a split's tensors are each ``(n, ...)``, and the last of two or
more is the target.
"""

from __future__ import annotations

import hashlib
import math
import numbers
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from shoal.errors import DataError, UsageError
from shoal.stages import counted

IGNORE_INDEX = -100  # torch's own mark for targets that a criterion leaves out
_REFETCHES = 32  # a random flip with p = 1/2 slips through with probability 2**-32
_HASH_BYTES = 8 * 2**20  # per tensor: below this all bytes are hashed, above it rows evenly spaced and a checksum

_WHAT_TO_PASS = (
    "Pass a map-style torch Dataset, a tuple of tensors or numpy arrays such as (inputs, targets), "
    "or one tensor or array where there is no target."
)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One split of the data, as tensors that all lanes share.

    ``tensors`` are each ``(n, ...)``; the last one is the target where a criterion (output, target) is used.
    """

    tensors: tuple[Tensor, ...]

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.tensors[0])

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device; nothing is copied if it is there already."""
        return Split(tuple(tensor.to(device) for tensor in self.tensors))


@dataclass(frozen=True, slots=True, eq=False)
class Datasets:
    """All splits of a study. ``fingerprint`` tells on resume whether the data is still the same."""

    train: Split
    valid: Split
    test: Split | None
    fingerprint: str


def load(
    train: object, valid: object = None, test: object = None, *, seed: int = 0, valid_default: float = 0.2
) -> Datasets:
    """Read every split into tensors and check it.

    float64 from numpy becomes torch's default dtype; tensors keep theirs, but an integer or bool target becomes int64.

    Args:
        train: a map-style torch ``Dataset``, a tuple or list of tensors or numpy arrays, a single tensor or array, or a
            ``Split``.
        valid: the same; or a fraction of ``train`` in (0, 1) to split off; or None for ``valid_default``. A split off
            part is drawn by ``seed``, with the classes in the same proportions if the target is 1-D integers and every
            class has two samples or more.
        test: as ``valid``, as a fraction of what ``train`` was at first; None means no test set.
        seed: of the splits, 0 or more.
        valid_default: the fraction for ``valid=None``.

    Returns:
        The splits. They may share memory with what was passed; nothing writes to them.

    Raises:
        DataError: the data cannot be trained on; the message names the split and the item and says what to do.
        UsageError: the seed is not a whole number, 0 or more.

    Example:
        >>> data = load((torch.zeros(10, 3), torch.tensor([0, 1] * 5)), valid=0.4)
        >>> data.train.n, data.valid.n, data.valid.tensors[1].bincount().tolist()
        (6, 4, [2, 2])
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed must be a whole number, 0 or more; got {seed!r}.")
    valid = valid_default if valid is None else valid
    fractions = {name: _fraction(part, name) for name, part in (("valid", valid), ("test", test)) if _is_number(part)}

    whole = _read(train, "train")
    parts = {name: _read(part, name) for name, part in (("valid", valid), ("test", test)) if _is_data(part)}
    for name, part in parts.items():
        _check_alike(whole, part, name)
    if fractions:
        chosen = _draw(whole, fractions, seed)
        parts |= {name: _take(whole, index) for name, index in chosen.items() if name != "train"}
        whole = _take(whole, chosen["train"])
    return Datasets(whole, parts["valid"], parts.get("test"), _fingerprint(whole, parts["valid"], parts.get("test")))


def load_whole(train: object, test: object = None, *, seed: int = 0) -> Datasets:
    """As `load`, for folds: nothing is split off to validate on, and ``valid`` is ``train`` itself, of which folds take rows.

    Args:
        train, test, seed: As for `load`.

    Raises:
        DataError: As for `load`.

    Example:
        >>> data = load_whole((torch.zeros(10, 3), torch.tensor([0, 1] * 5)), test=0.2)
        >>> data.train.n, data.valid is data.train
        (8, True)
    """
    whole, held_out = _read(train, "train"), None
    if _is_number(test):
        chosen = _draw(whole, {"test": _fraction(test, "test")}, seed)
        held_out, whole = _take(whole, chosen["test"]), _take(whole, chosen["train"])
    elif test is not None:
        held_out = _read(test, "test")
        _check_alike(whole, held_out, "test")
    return Datasets(whole, whole, held_out, _fingerprint(whole, None, held_out))


def _is_number(part: object) -> bool:
    return isinstance(part, numbers.Real)


def _is_data(part: object) -> bool:
    return part is not None and not _is_number(part)


# --- reading -----------------------------------------------------------------------------------------------------


def _read(source: object, name: str) -> Split:
    tensors = _columns(source, name)
    if len(tensors) > 1 and not (tensors[-1].is_floating_point() or tensors[-1].is_complex()):
        tensors = (*tensors[:-1], tensors[-1].to(torch.int64))
    _check(tensors, name)
    return Split(tuple(tensor.detach().contiguous() for tensor in tensors))


def _columns(source: object, name: str) -> tuple[Tensor, ...]:
    if isinstance(source, Split):
        return source.tensors
    if isinstance(source, Tensor | np.ndarray):
        return (_tensor(source, name),)
    if isinstance(source, tuple | list):
        if not source:
            raise DataError(f"{name} is an empty {type(source).__name__}. {_WHAT_TO_PASS}")
        for place, part in enumerate(source):
            if not (isinstance(part, Tensor | np.ndarray) or _is_frame(part) or _is_sparse(part)):
                raise DataError(
                    f"{name} is a {type(source).__name__}, so each of its parts must be a tensor or a numpy array with "
                    f"one row per sample; part {place} is {_kind(part)}. {_WHAT_TO_PASS}"
                )
        return tuple(_tensor(part, f"{name}[{place}]") for place, part in enumerate(source))
    if isinstance(source, DataLoader):
        raise DataError(f"{name} is a DataLoader; Shoal makes its own batches. Pass loader.dataset instead.")
    if isinstance(source, IterableDataset):
        raise DataError(
            f"{name} is an IterableDataset, which has no length and no order to shuffle. Read it into tensors first, "
            "for example TensorDataset(*map(torch.stack, zip(*dataset)))."
        )
    fast = _known_tensors(source)
    if fast is not None:
        return fast
    if _is_sparse(source):
        return (_tensor(source, name),)
    if not isinstance(source, Dataset) and hasattr(source, "to_numpy"):
        raise DataError(
            f"{name} is {_kind(source)}; pass inputs and targets apart, such as (frame.drop(columns='y'), frame['y']), or "
            f"{name}.to_numpy() where there is no target."
        )
    if isinstance(source, str | bytes | dict | set) or not hasattr(source, "__getitem__"):
        raise DataError(f"{name} is {_kind(source)}, which is no data set. {_WHAT_TO_PASS}")
    return _read_items(source.__getitem__, _length(source, name), name)


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
            return tuple(tensor[index.to(tensor.device)] for tensor in tensors)
    return None


def _length(source: object, name: str) -> int:
    try:
        return len(source)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError) as error:
        raise DataError(f"{name} is {_kind(source)} without a length (__len__). {_WHAT_TO_PASS}") from error


def _read_items(get: Callable[[int], object], n: int, name: str) -> tuple[Tensor, ...]:
    if n == 0:
        raise DataError(f"{name} is empty: its length is 0.")

    def fetch(index: int) -> tuple[Tensor, ...]:
        where = f"{name}[{index}]"
        try:
            item = get(index)
        except Exception as error:
            raise DataError(f"{where} could not be fetched: {type(error).__name__}: {error}") from error
        if isinstance(item, tuple | list):
            return tuple(_tensor(field, f"{where}[{place}]") for place, field in enumerate(item))
        return (_tensor(item, where),)

    first = fetch(0)
    if not first:
        raise DataError(f"{name}[0] is an empty {type(get(0)).__name__}; an item must hold a tensor, array or number.")
    # Before the long read, so that a random transform is reported at once. A small data set is asked repeatedly.
    for index in np.linspace(0, n - 1, _REFETCHES).round().astype(int).tolist():
        _check_same(fetch(index), fetch(index), index, name)

    columns = [torch.empty((n, *field.shape), dtype=field.dtype, device=field.device) for field in first]
    for index in counted(range(n), f"reading {name}", n):
        fields = fetch(index)
        if len(fields) != len(first):
            raise DataError(
                f"items of {name} must all have as many parts: item 0 has {len(first)}, item {index} has {len(fields)}."
            )
        for place, (column, field) in enumerate(zip(columns, fields, strict=True)):
            part = f"part {place} of the items of {name}" if len(first) > 1 else f"items of {name}"
            if field.shape != column.shape[1:]:
                raise DataError(
                    f"{part} must all have one shape: item 0 has {tuple(column.shape[1:])}, item {index} has "
                    f"{tuple(field.shape)}. Pad, crop or resize them to one shape first."
                )
            if field.dtype != column.dtype:
                raise DataError(
                    f"{part} must all have one dtype: item 0 has {column.dtype}, item {index} has {field.dtype}. "
                    "Convert them in the data set, for example with float(...)."
                )
            column[index] = field
    return tuple(columns)


def _tensor(value: object, where: str) -> Tensor:
    """One tensor, array, number or image as a tensor."""
    if isinstance(value, Tensor):
        return _dense(value, where).detach()
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
        dict: "Return a tuple of its values in a fixed order instead.",
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


def _dense(tensor: Tensor, where: str) -> Tensor:
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


# --- checking ----------------------------------------------------------------------------------------------------


def _check(tensors: tuple[Tensor, ...], name: str) -> None:
    labels = [f"{name}[{place}]" if len(tensors) > 1 else name for place in range(len(tensors))]
    for label, tensor in zip(labels, tensors, strict=True):
        if _dense(tensor, label).ndim == 0:
            raise DataError(f"{label} is a single number; it must have one row per sample: shape (n, ...).")
    lengths = [len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise DataError(
            f"the tensors of {name} must have one row per sample, but their lengths are {lengths} "
            f"(shapes {[tuple(tensor.shape) for tensor in tensors]})."
        )
    if lengths[0] == 0:
        raise DataError(f"{name} is empty: it has 0 samples.")
    for label, tensor in zip(labels, tensors, strict=True):
        if tensor.numel() == 0:
            raise DataError(f"{label} has shape {tuple(tensor.shape)}: its samples have no elements.")
        if tensor.is_floating_point() or tensor.is_complex():
            _check_finite(tensor, label)
    if len(tensors) > 1 and tensors[-1].dtype is torch.int64:
        _check_classes(tensors[-1], labels[-1])


def _check_finite(tensor: Tensor, label: str) -> None:
    bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(dim=1)  # (n,)
    n_bad = int(bad.sum())
    if n_bad:
        row = int(bad.nonzero()[0])
        what = "NaN" if bool(torch.isnan(tensor[row]).any()) else "inf"
        raise DataError(
            f"{label} must be finite, but {n_bad} of {len(tensor)} rows have NaN or inf; the first is row {row} "
            f"({what}). Drop these rows or fill them in (numpy.nan_to_num, or the mean of the column); an inf may also "
            f"be a number too large for {tensor.dtype}: scale it."
        )


def _check_classes(target: Tensor, label: str) -> None:
    bad = ((target < 0) & (target != IGNORE_INDEX)).reshape(len(target), -1).any(dim=1)  # (n,)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise DataError(
            f"{label} is an integer target, so it must hold classes from 0 up ({IGNORE_INDEX} means: ignore), but "
            f"{int(bad.sum())} rows are negative; the first is row {row} with {int(target[row].min())}. "
            "Renumber the classes from 0 (-1/+1 becomes 0/1), or make a regression target floating: .float()."
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


def _check_alike(train: Split, other: Split, name: str) -> None:
    def describe(split: Split) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in split.tensors]

    ours, theirs = describe(train), describe(other)
    if len(ours) != len(theirs):
        raise DataError(f"{name} must have as many tensors as train: train has {len(ours)}, {name} has {len(theirs)}.")
    for place, (want, came) in enumerate(zip(ours, theirs, strict=True)):
        if want != came:
            raise DataError(
                f"{name}[{place}] must be like train[{place}]: items of shape {want[0]} and {want[1]}; got {came[0]} "
                f"and {came[1]}. Prepare all splits in the same way."
            )


# --- splitting ---------------------------------------------------------------------------------------------------


def _fraction(value: object, name: str) -> float:
    if isinstance(value, bool) or not 0.0 < float(value) < 1.0:  # type: ignore[arg-type]
        raise DataError(f"{name} as a number is a fraction of train strictly between 0 and 1; got {value!r}.")
    return float(value)  # type: ignore[arg-type]


def _draw(split: Split, fractions: dict[str, float], seed: int) -> dict[str, npt.NDArray[np.int64]]:
    """Which rows go where; each part's rows stay in their old order."""
    sizes = {name: round(fraction * split.n) for name, fraction in fractions.items()}
    sizes["train"] = split.n - sum(sizes.values())
    for name, size in sizes.items():
        if size < 1:
            wanted = ", ".join(f"{other}={fraction:g}" for other, fraction in fractions.items())
            raise DataError(
                f"splitting {split.n} samples by {wanted} leaves {name} with {max(size, 0)}; every split needs "
                "at least one. Choose other fractions, or pass the splits yourself."
            )
    rng = np.random.default_rng(seed)
    labels = _classes(split)
    rest = np.arange(split.n, dtype=np.int64)
    chosen: dict[str, npt.NDArray[np.int64]] = {}
    for name in sorted(fractions):  # the test set first: it then does not depend on valid's fraction
        mask = _pick(labels[rest], sizes[name], rng)
        chosen[name], rest = rest[mask], rest[~mask]
    return chosen | {"train": rest}


def _classes(split: Split) -> npt.NDArray[np.int64]:
    """Each row's class for stratifying; all the same class where that makes no sense."""
    target = split.tensors[-1]
    if len(split.tensors) > 1 and target.ndim == 1 and target.dtype is torch.int64:
        _, classes, counts = np.unique(target.cpu().numpy(), return_inverse=True, return_counts=True)
        if counts.min() >= 2:
            return classes.astype(np.int64)
    return np.zeros(split.n, dtype=np.int64)


def _pick(classes: npt.NDArray[np.int64], size: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A mask of ``size`` random rows, shared among the classes by largest remainder."""
    n = len(classes)
    counts = np.bincount(classes)
    exact = counts * (size / n)
    # One sample of every class stays behind where that is possible at all: a class nobody trains on cannot be learned.
    room = np.maximum(counts - 1, 0)
    room = counts if room.sum() < size else room
    quota = np.minimum(np.floor(exact).astype(np.int64), room)
    ties = rng.permutation(len(counts))
    while (missing := size - int(quota.sum())) > 0:
        order = np.lexsort((ties, -(exact - quota)))
        quota[order[quota[order] < room[order]][:missing]] += 1
    shuffled = rng.permutation(n)
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    place = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)  # place of each row within its class
    mask = np.zeros(n, dtype=np.bool_)
    mask[by_class[place < np.repeat(quota, counts)]] = True
    return mask


def _take(split: Split, rows: npt.NDArray[np.int64]) -> Split:
    index = torch.from_numpy(rows)
    return Split(tuple(tensor[index.to(tensor.device)] for tensor in split.tensors))


def _fingerprint(*splits: Split | None) -> str:
    """A hash of shapes, dtypes and content: any change of a byte shows, and so does most reordering."""
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        digest.update(b"|" if split else b"-")
        for tensor in split.tensors if split else ():
            digest.update(f"{tuple(tensor.shape)}{tensor.dtype};".encode())
            n_bytes = tensor.numel() * tensor.element_size()
            if n_bytes > _HASH_BYTES:
                data = tensor.reshape(-1).view(torch.uint8)[: n_bytes // 8 * 8]  # the rest is in the last row
                words = (data.clone() if data.storage_offset() % 8 else data).view(torch.int64)
                digest.update(str(int(words.sum())).encode())  # wraps round, so it is exact on every device
                n_rows = max(2, math.floor(len(tensor) * _HASH_BYTES / n_bytes))
                tensor = tensor[torch.linspace(0, len(tensor) - 1, n_rows).long().to(tensor.device)]
            digest.update(tensor.reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
