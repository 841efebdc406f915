"""Folds for ``tune(folds=...)``: scikit-learn's splitters, asked once, and every row index they give checked."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

from shoal.data import Split
from shoal.errors import UsageError
from shoal.lanes.parts import Parts, Rows

if TYPE_CHECKING:
    from shoal.records import Json

# A fleet has at most so many lanes, and a trial's parts run side by side.
MAX_PARTS: Final = 128


@runtime_checkable
class Splitter(Protocol):
    """A splitter of ``sklearn.model_selection``, or anything that splits likewise."""

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Any:
        """Pairs of arrays: rows to train on, rows to validate on."""
        ...


FoldsArgument: TypeAlias = "int | Splitter | Iterable[tuple[Any, Any]] | None"


def make_parts(folds: FoldsArgument, seeds: int, groups: object, train: Split, seed: int) -> Parts | None:
    """What parts the trials of a study have; None where each is a single lane.

    A number of folds means ``StratifiedKFold`` for a target of classes and ``KFold`` for any other, with ``groups``
    ``StratifiedGroupKFold`` and ``GroupKFold``, all with ``shuffle=True`` and ``random_state=seed``.

    Args:
        folds: A number of folds; a splitter of scikit-learn; pairs of row indices (train, valid); or None.
        seeds: Training runs per fold, each under a seed of its own.
        groups: Rows of one group stay in one fold, (n,).
        train: All rows that folds are made of.
        seed: The study's.

    Raises:
        UsageError: An argument makes no sense, scikit-learn is not installed, or a fold is not fit to train on.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UsageError(f"seeds must be a whole number of at least 1, not {seeds!r}.")
    if folds is None:
        if groups is not None:
            raise UsageError("groups= says which rows stay in one fold, so it needs folds=, such as folds=5.")
        if seeds > MAX_PARTS:
            raise UsageError(f"seeds={seeds} is more than {MAX_PARTS}, the most lanes that one trial may have.")
        return Parts(n_seeds=seeds) if seeds > 1 else None
    pairs = _pairs(folds, train, _groups(groups, train.n), seed)
    checked = tuple(_checked(k, pair, train.n) for k, pair in enumerate(pairs, 1))
    if not checked:
        raise UsageError(f"folds={_shown(folds)} gave no fold.")
    if len(checked) * seeds > MAX_PARTS:
        raise UsageError(
            f"{len(checked)} folds under {seeds} seed(s) are {len(checked) * seeds} lanes per trial, and {MAX_PARTS} is the most; "
            "use fewer folds or seeds."
        )
    return Parts(checked, seeds)


def refuse_folds(options: Mapping[str, Any]) -> None:
    """See that neither folds nor a preparation are wanted of data whose preparation is learnt once.

    Raises:
        UsageError: They are.
    """
    if options.get("prepare") is not None:
        raise UsageError(
            "prepare= is for shoal.tune: a data file or folder is prepared by what is learnt from its training rows, and its model "
            "file holds that. Leave it out, or prepare arrays yourself."
        )
    if options.get("folds") is not None or options.get("groups") is not None:
        raise UsageError(
            "folds= is for shoal.tune: what a data file or folder is prepared with (scales, categories, vocabularies) is learnt "
            "from the training rows once, so a fold would be validated on rows that its preparation has seen. Leave it out, use "
            "seeds= (--seeds) for repeated runs, or prepare arrays yourself."
        )


def _pairs(folds: FoldsArgument, train: Split, groups: Any, seed: int) -> list[Any]:
    if isinstance(folds, bool) or (isinstance(folds, numbers.Number) and not isinstance(folds, int)):
        raise UsageError(f"folds must be a whole number of at least 2 or a splitter of scikit-learn, not {folds!r}.")
    target = _classes(train)
    splitter = _default(folds, target is not None, groups is not None, seed) if isinstance(folds, int) else folds
    if isinstance(splitter, type):
        raise UsageError(f"folds={splitter.__name__} is a class; pass an instance, such as {splitter.__name__}(5).")
    if isinstance(splitter, str) or not isinstance(splitter, Splitter):  # text has a method of that name too
        if isinstance(splitter, str) or not isinstance(splitter, Iterable):
            raise UsageError(
                f"folds must be a number of folds, a splitter of scikit-learn, or pairs of row indices, not {splitter!r}."
            )
        if groups is not None:
            raise UsageError(
                "groups= is for splitters; folds= given as row indices say themselves which rows stay together."
            )
        return list(splitter)
    try:
        return list(splitter.split(_plain(train.tensors[0]), target if target is not None else _target(train), groups))
    except (ValueError, TypeError) as error:
        raise UsageError(f"folds={_shown(folds)} does not fit the {train.n} rows to split: {error}") from error


def _default(folds: int, classes: bool, grouped: bool, seed: int) -> Splitter:
    if folds < 2:
        raise UsageError(f"folds must be at least 2, not {folds}; without folds=, one part of the rows is split off.")
    try:
        from sklearn import model_selection
    except ImportError as error:
        raise UsageError("a number of folds needs scikit-learn: run `pip install scikit-learn`.") from error
    name = f"{'Stratified' if classes else ''}{'Group' if grouped else ''}KFold"
    made: Splitter = getattr(model_selection, name)(folds, shuffle=True, random_state=seed & 0xFFFFFFFF)
    return made


def _classes(train: Split) -> Any:
    """The target as an array if it is one class per row, else None."""
    target = train.target
    if target is not None and target.ndim == 1 and target.dtype is torch.int64:
        return target.cpu().numpy()
    return None


def _target(train: Split) -> Any:
    return None if train.target is None else _plain(train.target)


def _plain(tensor: torch.Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy()


def _groups(groups: object, n: int) -> Any:
    if groups is None:
        return None
    found = groups.cpu().numpy() if isinstance(groups, torch.Tensor) else np.asarray(groups)
    if found.shape != (n,):
        raise UsageError(f"groups must name a group for each of the {n} rows of train, but its shape is {found.shape}.")
    return found


def _checked(k: int, pair: Any, n: int) -> tuple[Rows, Rows]:
    """One fold as two arrays of row indices."""
    if not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
        raise UsageError(f"fold {k} must be a pair of row indices (train, valid), not {_shown(pair)}.")
    rows = [np.asarray(part.cpu() if isinstance(part, torch.Tensor) else part) for part in pair]
    for part, what in zip(rows, ("train", "validate"), strict=True):
        if part.ndim != 1 or part.dtype.kind not in "iu":
            raise UsageError(
                f"fold {k}: the rows to {what} on must be whole numbers, one axis of them, not {part.dtype} of shape {part.shape}."
            )
        if not len(part):
            raise UsageError(f"fold {k} has no row to {what} on; use fewer folds, or more rows.")
        if part.min() < 0 or part.max() >= n:
            raise UsageError(
                f"fold {k} has row {int(part.min() if part.min() < 0 else part.max())} to {what} on, of {n} rows."
            )
    train, valid = (np.ascontiguousarray(part, dtype=np.int64) for part in rows)
    both = np.intersect1d(train, valid)
    if len(both):
        raise UsageError(
            f"fold {k} trains on {len(both)} of the rows that it is validated on, the first of which is row {int(both[0])}: its "
            "value would say nothing about new data."
        )
    return train, valid


def facts_of(parts: Parts, folds: FoldsArgument) -> dict[str, Json]:
    """What a study file says of its folds and seeds.

    Returns:
        ``n`` folds (0 without), ``seeds``, ``splitter`` in words, ``digest`` of all row indices, and ``repeats``: the folds whose
        validation rows do not overlap, together.
    """
    digest = hashlib.blake2b(digest_size=16)
    for train, valid in parts.folds:
        for rows in (train, valid):
            digest.update(len(rows).to_bytes(8, "little") + rows.tobytes())
    return {
        "n": len(parts.folds),
        "seeds": parts.n_seeds,
        "splitter": _shown(folds),
        "digest": digest.hexdigest(),
        "repeats": [list(some) for some in repeats_of(parts)],
    }


def repeats_of(parts: Parts) -> list[list[int]]:
    """Folds in runs that no row is validated in twice: one run of K for K folds, one per repetition for repeated ones."""
    runs: list[list[int]] = []
    seen: set[int] = set()
    for k, (_, valid) in enumerate(parts.folds):
        rows = set(valid.tolist())
        if not runs or rows & seen:
            runs.append([])
            seen = set()
        runs[-1].append(k)
        seen |= rows
    return runs


def _shown(folds: object) -> str:
    # A list of row indices is of no use in a message.
    return repr(folds) if isinstance(folds, int | str | Splitter) or folds is None else type(folds).__name__
