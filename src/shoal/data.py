"""Data sets to tensors, once: all lanes of all trials read the same tensors, so every check is done here and only here.

Glossary: ``n`` is the number of samples of a split; a split's tensors are each ``(n, ...)``, and the target, where there is one, is
the last.
"""

from __future__ import annotations

import hashlib
import math
import numbers
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal import memory, reading
from shoal.batches import Form, target_of
from shoal.errors import DataError, UsageError
from shoal.padding import IGNORE_INDEX

HELD_OUT = "hyper_valid"  # what users call it
_HASH_BYTES = 8 * 2**20  # per tensor: below this all bytes are hashed, above it rows evenly spaced and a checksum


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Which sample each row of a split is, (rows,), where folds that are prepared apart stand one after the other; of ``n``."""

    samples: npt.NDArray[np.int64]
    n: int


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One split of the data, as tensors that all lanes share.

    ``tensors`` are each ``(n, ...)``; the last one is the target where a criterion (output, target) is used. ``names`` are what
    they are called in batches that are dicts, and empty where batches are tuples. ``origin`` is None where row i is sample i.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.tensors[0])

    @property
    def form(self) -> Form:
        """How its batches reach the user's code."""
        has_target = target_of(self.names) is not None if self.names else len(self.tensors) > 1
        return Form(self.names, has_target)

    @property
    def target(self) -> Tensor | None:
        """What outputs are compared with, (n, ...), if there is such a thing."""
        return self.tensors[-1] if self.form.has_target else None

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device; nothing is copied if it is there already."""
        return Split(tuple(tensor.to(device) for tensor in self.tensors), self.names, self.origin)

    def take(self, rows: npt.NDArray[np.int64]) -> Split:
        """Some of its rows, in their order."""
        index = torch.from_numpy(rows)
        return Split(tuple(memory.taken(tensor, index) for tensor in self.tensors), self.names)


@dataclass(frozen=True, slots=True, eq=False)
class Datasets:
    """All splits of a study. ``fingerprint`` tells on resume whether the data is still the same; ``held_out`` is what extensions
    take a validation gradient on, out of the training data and in no other split."""

    train: Split
    valid: Split
    test: Split | None
    fingerprint: str
    held_out: Split | None = None

    def to(self, device: torch.device | str) -> Datasets:
        """The same on another device; one split that stands for two stays one."""
        train = self.train.to(device)
        valid = train if self.valid is self.train else self.valid.to(device)
        test, held_out = (None if split is None else split.to(device) for split in (self.test, self.held_out))
        return Datasets(train, valid, test, self.fingerprint, held_out)


def load(
    train: object,
    valid: object = None,
    test: object = None,
    *,
    seed: int = 0,
    valid_default: float = 0.2,
    hyper_valid: object = None,
    raw: bool = False,
) -> Datasets:
    """Read every split into tensors and check it.

    float64 from numpy becomes torch's default dtype; tensors keep theirs, but an integer or bool target becomes int64.

    Args:
        train: a map-style torch ``Dataset`` whose items are tensors, numbers, tuples or dicts of them; a tuple, list or dict of
            tensors or numpy arrays; a single tensor or array; ``shoal.Padded`` sequences; or a ``Split``.
        valid: the same; or a fraction of ``train`` in (0, 1) to split off; or None for ``valid_default``. A split off
            part is drawn by ``seed``, with the classes in the same proportions if the target is 1-D integers and every
            class has two samples or more.
        test: as ``valid``, as a fraction of what ``train`` was at first; None means no test set.
        seed: of the splits, 0 or more.
        valid_default: the fraction for ``valid=None``.
        hyper_valid: as ``test``; drawn last, so that the other two do not depend on it.
        raw: whether inputs may hold NaN and inf, since they are still to be prepared (``shoal.preparing``).

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
    given = {"valid": valid, "test": test, HELD_OUT: hyper_valid}
    fractions = {name: _fraction(part, name) for name, part in given.items() if _is_number(part)}

    parts = _read_all({"train": train, **{k: v for k, v in given.items() if _is_data(v)}}, raw)
    whole = parts.pop("train")
    parts = {name: _alike(whole, part, name) for name, part in parts.items()}
    if fractions:
        chosen = _draw(whole, fractions, seed)
        parts |= {name: whole.take(index) for name, index in chosen.items() if name != "train"}
        whole = whole.take(chosen["train"])
    held_out = parts.get(HELD_OUT)
    return Datasets(
        whole, parts["valid"], parts.get("test"), _seal(whole, parts["valid"], parts.get("test"), held_out), held_out
    )


def load_whole(
    train: object, test: object = None, *, seed: int = 0, hyper_valid: object = None, raw: bool = False
) -> Datasets:
    """As `load`, for folds: nothing is split off to validate on, and ``valid`` is ``train`` itself, of which folds take rows.

    Args:
        train, test, seed, hyper_valid, raw: As for `load`. What is held out is in no fold.

    Raises:
        DataError: As for `load`.

    Example:
        >>> data = load_whole((torch.zeros(10, 3), torch.tensor([0, 1] * 5)), test=0.2)
        >>> data.train.n, data.valid is data.train
        (8, True)
    """
    given = {"test": test, HELD_OUT: hyper_valid}
    parts = _read_all({"train": train, **{k: v for k, v in given.items() if _is_data(v)}}, raw)
    whole = parts.pop("train")
    parts = {name: _alike(whole, part, name) for name, part in parts.items()}
    fractions = {name: _fraction(part, name) for name, part in given.items() if _is_number(part)}
    if fractions:
        chosen = _draw(whole, fractions, seed)
        parts |= {name: whole.take(index) for name, index in chosen.items() if name != "train"}
        whole = whole.take(chosen["train"])
    test_, held_out = parts.get("test"), parts.get(HELD_OUT)
    return Datasets(whole, whole, test_, _seal(whole, None, test_, held_out), held_out)


def _read_all(sources: dict[str, object], raw: bool) -> dict[str, Split]:
    """Every split, checked but for what the splits must have in common."""
    known = {name: source for name, source in sources.items() if isinstance(source, Split)}
    found = reading.read({name: source for name, source in sources.items() if name not in known})
    parts = {name: (s.names, s.tensors) for name, s in known.items()} | found
    return {name: _split(*parts[name], name, raw) for name in sources}


def _split(names: tuple[str, ...], tensors: tuple[Tensor, ...], name: str, raw: bool) -> Split:
    target = target_of(names)
    if target is not None:  # goes last
        order = sorted(range(len(names)), key=lambda k: names[k] == target)
        names, tensors = tuple(names[k] for k in order), tuple(tensors[k] for k in order)
    found = Split(tensors, names)
    if found.target is not None and not (found.target.is_floating_point() or found.target.is_complex()):
        found = Split((*tensors[:-1], found.target.to(torch.int64)), names)
    check(found, name, raw=raw)
    return Split(tuple(tensor.detach().contiguous() for tensor in found.tensors), names)


def _is_number(part: object) -> bool:
    return isinstance(part, numbers.Real)


def _is_data(part: object) -> bool:
    return part is not None and not _is_number(part)


# --- checking ----------------------------------------------------------------------------------------------------


def check(split: Split, name: str, *, raw: bool = False) -> None:
    """See that a split can be trained on.

    Args:
        split: One of the splits.
        name: What messages call it.
        raw: Whether its inputs may hold NaN and inf.

    Raises:
        DataError: If it cannot.
    """
    tensors = split.tensors
    labels = [reading.label(name, split.names, place, len(tensors)) for place in range(len(tensors))]
    for label, tensor in zip(labels, tensors, strict=True):
        if reading.dense(tensor, label).ndim == 0:
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
        if (tensor.is_floating_point() or tensor.is_complex()) and not (raw and tensor is not split.target):
            _check_finite(tensor, label)
    if split.target is not None and split.target.dtype is torch.int64:
        _check_classes(split.target, labels[-1])


def _check_finite(tensor: Tensor, label: str) -> None:
    rows = [~torch.isfinite(tensor[c]).reshape(c.stop - c.start, -1).all(dim=1) for c in memory.chunks(tensor)]
    bad = torch.cat(rows)  # (n,)
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


def _alike(train: Split, other: Split, name: str) -> Split:
    """Another split in the order of ``train``'s names.

    Raises:
        DataError: If it is not like ``train``.
    """
    if set(train.names) != set(other.names):
        mine, theirs = (f"a dict of {list(s.names)}" if s.names else "no dict" for s in (train, other))
        raise DataError(f"{name} must have the same keys as train: train is {mine}, {name} is {theirs}.")
    if train.names != other.names:
        other = Split(tuple(other.tensors[other.names.index(n)] for n in train.names), train.names)
    ours, theirs_ = ([(tuple(t.shape[1:]), t.dtype) for t in s.tensors] for s in (train, other))
    if len(ours) != len(theirs_):
        raise DataError(f"{name} must have as many tensors as train: train has {len(ours)}, {name} has {len(theirs_)}.")
    for place, (want, came) in enumerate(zip(ours, theirs_, strict=True)):
        if want != came:
            here, there = (reading.label(n, train.names, place, 2) for n in (name, "train"))
            ragged = want[1] == came[1] and want[0][1:] == came[0][1:] and len(want[0]) == len(came[0]) > 0
            raise DataError(
                f"{here} must be like {there}: items of shape {want[0]} and {want[1]}; got {came[0]} "
                f"and {came[1]}. Prepare all splits in the same way"
                + (
                    "; sequences of different lengths are padded alike by shoal.Padded around each split."
                    if ragged
                    else "."
                )
            )
    return other


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
    # The test set first: it then does not depend on valid's fraction; and neither on what is held out.
    for name in sorted(fractions, key=("test", "valid", HELD_OUT).index):
        mask = _pick(labels[rest], sizes[name], rng)
        chosen[name], rest = rest[mask], rest[~mask]
    return chosen | {"train": rest}


def _classes(split: Split) -> npt.NDArray[np.int64]:
    """Each row's class for stratifying; all the same class where that makes no sense."""
    target = split.target
    if target is not None and target.ndim == 1 and target.dtype is torch.int64:
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


def _seal(train: Split, valid: Split | None, test: Split | None, held_out: Split | None) -> str:
    """The fingerprint of all splits; without hyper-validation data that of the others."""
    return _fingerprint(train, valid, test, *([] if held_out is None else [held_out]))


def _fingerprint(*splits: Split | None) -> str:
    """A hash of shapes, dtypes and content: any change of a byte shows, and so does most reordering."""
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        digest.update(b"|" if split else b"-")
        digest.update(repr(split.names).encode() if split and split.names else b"")
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
