"""Preparation that is learnt: scalers, imputers, encoders, fitted on training rows and on no other.

Folds that are prepared apart are different data. They stand one after the other in one set of tensors, each fold's training
rows and then its validation rows, so that lanes index one data set as they do without.

Glossary: a *place* is the position of an input among a split's tensors; ``K`` folds.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from torch import Tensor

from shoal import reading
from shoal.data import Datasets, Origin, Split, check
from shoal.errors import DataError, ShoalError, UsageError, blame, did_you_mean
from shoal.lanes.parts import Parts
from shoal.replay import seeded

# An object with scikit-learn's fit and transform, or such objects by input: position, or name where data are dicts.
PrepareArgument: TypeAlias = "Any | Mapping[int | str, Any] | None"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Preparation:
    """What was learnt from one set of training rows.

    Attributes:
        fitted: Place of an input -> the object that prepares it.
    """

    fitted: Mapping[int, Any]

    def split(self, split: Split, what: str) -> Split:
        """Another split, prepared likewise; ``what`` is what messages call it."""
        return _checked(Split(self.inputs(split.tensors, what), split.names), what)

    def inputs(self, tensors: Sequence[Tensor], what: str) -> tuple[Tensor, ...]:
        """Tensors at the places of a split's, prepared."""
        out = list(tensors)
        for place, one in self.fitted.items():
            out[place] = _tensor(_called(one.transform, what, _plain(out[place])), out[place], what)
        return tuple(out)

    @property
    def objects(self) -> Any:
        """The object that prepares the inputs, or, where it is not one for a single input, all by place."""
        return self.fitted[0] if set(self.fitted) == {0} else dict(self.fitted)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A study's data as trials see them.

    Attributes:
        raw: As they were read.
        data: What trials train on and are judged on; with folds, all folds one after the other if they are prepared apart.
        parts: The trials' parts, in rows of ``data``.
        whole: What the winner is trained, measured and used with: with folds, all rows prepared as one.
        preparation: As it was fitted to ``whole.train``; None without ``prepare=``.
    """

    raw: Datasets
    data: Datasets
    parts: Parts | None
    whole: Datasets
    preparation: Preparation | None
    prepare: Mapping[int, Any]
    seed: int

    @classmethod
    def of(cls, prepare: PrepareArgument, raw: Datasets, parts: Parts | None, seed: int) -> Prepared:
        """Fit to each fold's training rows, and to all of the training split.

        Args:
            prepare: The user's; it is cloned, and stays as it is.
            raw: With ``raw=True``, if it is not None.
            parts: In rows of ``raw.train``.
            seed: Of NumPy, torch and ``random`` while it is fitted.

        Raises:
            UsageError: If it is no such object, or raises.
            DataError: If what it gives cannot be trained on.
        """
        if prepare is None:
            return cls(raw, raw, parts, raw, None, {}, seed)
        known = _by_place(prepare, raw.train)
        data, preparation = prepared_whole(known, raw, seed)
        whole = data
        if parts is not None and parts.folds:
            if raw.held_out is not None:
                raise UsageError(
                    "prepare= with folds= prepares each fold apart, and hyper_valid= is one set of samples for all of them; leave "
                    "one of the three out."
                )
            stacked, parts = _folds(known, raw.train, parts, seed)
            data = Datasets(stacked, stacked, None, raw.fingerprint)
        return cls(raw, data, parts, whole, preparation, known, seed)

    def to(self, device: torch.device) -> Prepared:
        """The same with tensors on a device; what is raw stays where it is."""
        data = self.data.to(device)
        whole = data if self.whole is self.data else self.whole.to(device)
        return Prepared(self.raw, data, self.parts, whole, self.preparation, self.prepare, self.seed)

    def joined(self) -> tuple[Datasets, Preparation | None]:
        """All but the test rows as one training split, prepared as one: what a refit trains on."""
        if self.parts is not None and self.parts.folds:
            return self.whole, self.preparation
        source = self.raw if self.prepare else self.whole
        tensors = zip(source.train.tensors, source.valid.tensors, strict=True)
        both = Split(tuple(torch.cat(pair) for pair in tensors), source.train.names)
        joined = Datasets(both, both, source.test, source.fingerprint, source.held_out)
        return prepared_whole(self.prepare or None, joined, self.seed)


def prepared_whole(prepare: PrepareArgument, raw: Datasets, seed: int) -> tuple[Datasets, Preparation | None]:
    """All splits, prepared by what is learnt from all of the training split; a ``valid`` that is ``train`` itself stays that.

    Raises:
        UsageError, DataError: As `Prepared.of`.
    """
    if prepare is None:
        return raw, None
    preparation, train = fit(_by_place(prepare, raw.train), raw.train, seed, "train")
    valid = train if raw.valid is raw.train else preparation.split(raw.valid, "valid")
    test = None if raw.test is None else preparation.split(raw.test, "test")
    held_out = None if raw.held_out is None else preparation.split(raw.held_out, "hyper_valid")
    return Datasets(train, valid, test, raw.fingerprint, held_out), preparation


def fit(prepare: Mapping[int, Any], train: Split, seed: int, what: str) -> tuple[Preparation, Split]:
    """Clones of the objects, fitted to a split, and the split as they make it.

    Like scikit-learn's ``Pipeline``, it takes what ``fit_transform`` gives for the rows that it is fitted to, if there is such a
    method: target encoders give these rows something else than later ones, so that targets do not leak into them.
    """
    tensors, fitted = list(train.tensors), {}
    target = None if train.target is None else _plain(train.target)
    for place, one in prepare.items():
        rows = _plain(tensors[place])
        with seeded(seed):
            made = _clone(one)
            together = getattr(made, "fit_transform", None)
            if callable(together):
                out = _called(together, what, rows, target)
            else:
                _called(made.fit, what, rows, target)
                out = _called(made.transform, what, rows)
        fitted[place] = made
        tensors[place] = _tensor(out, tensors[place], what)
    return Preparation(fitted), _checked(Split(tuple(tensors), train.names), what)


def _folds(prepare: Mapping[int, Any], raw: Split, parts: Parts, seed: int) -> tuple[Split, Parts]:
    """Every fold, prepared by its own training rows, in one split; and the parts in its rows."""
    blocks: list[Split] = []
    rows: list[tuple[Any, Any]] = []
    at = 0
    for k, (train, valid) in enumerate(parts.folds, 1):
        preparation, mine = fit(prepare, raw.take(train), seed, f"fold {k}'s training rows")
        theirs = preparation.split(raw.take(valid), f"fold {k}'s validation rows")
        blocks += [mine, theirs]
        middle, end = at + len(train), at + len(train) + len(valid)
        rows.append((np.arange(at, middle), np.arange(middle, end)))
        at = end
    for place, first in enumerate(blocks[0].tensors):
        for k, block in enumerate(blocks):
            here = block.tensors[place]
            if (here.shape[1:], here.dtype) != (first.shape[1:], first.dtype):
                raise UsageError(
                    f"prepare= must make the same of every fold, but samples of fold {k // 2 + 1} are {_described(here)} and those "
                    f"of fold 1 {_described(first)}. What depends on the rows at hand (categories, selected columns) must be "
                    "fixed: OneHotEncoder(categories=[...]), a number of components, a number of columns."
                )
    samples = np.concatenate([part for fold in parts.folds for part in fold])
    tensors = tuple(torch.cat(columns) for columns in zip(*(b.tensors for b in blocks), strict=True))
    return Split(tensors, raw.names, Origin(samples, raw.n)), Parts(tuple(rows), parts.n_seeds)


def described(prepare: PrepareArgument) -> str:
    """What a study file says of it: the same for the same object in another session."""
    if isinstance(prepare, Mapping):
        return ", ".join(f"{name}: {described(one)}" for name, one in sorted(prepare.items(), key=lambda p: str(p[0])))
    if hasattr(prepare, "get_params"):
        return " ".join(repr(prepare).split())
    return f"{type(prepare).__module__}.{type(prepare).__qualname__}"


# -- the user's object --------------------------------------------------------------------------------------------------


def _by_place(prepare: Any, train: Split) -> dict[int, Any]:
    """The objects by the place of the input that each prepares."""
    n_inputs = len(train.tensors) - (train.target is not None)
    if not isinstance(prepare, Mapping):
        _check_object(prepare)
        if n_inputs > 1:
            names: list[Any] = list(train.names[:n_inputs]) or list(range(n_inputs))
            raise UsageError(
                f"the data have {n_inputs} inputs, so prepare= must say which it is for: prepare={{{names[0]!r}: ...}}, of {names}."
            )
        return {0: prepare}
    if not prepare:
        raise UsageError("prepare= is an empty dict; leave it out, or name an input: prepare={0: StandardScaler()}.")
    found = {}
    for name, one in prepare.items():
        known: Sequence[Any] = train.names[:n_inputs] if train.names else range(n_inputs)
        if train.names and type(name) is int and 0 <= name < n_inputs:
            name = train.names[name]  # a position will do as well
        if name not in known or isinstance(name, bool):
            raise UsageError(
                f"prepare= names the input {name!r}; the data have the inputs {list(known)}"
                + (", and the target is not prepared." if name in (*train.names, n_inputs) else ".")
                + (did_you_mean(name, list(train.names)) if isinstance(name, str) and train.names else "")
            )
        _check_object(one)
        found[list(known).index(name)] = one
    return dict(sorted(found.items()))


def _check_object(one: Any) -> None:
    if isinstance(one, type):
        raise UsageError(f"prepare={one.__name__} is a class; pass an instance, such as {one.__name__}().")
    missing = [name for name in ("fit", "transform") if not callable(getattr(one, name, None))]
    if missing:
        raise UsageError(
            f"prepare= needs an object with fit(X, y) and transform(X), like scikit-learn's StandardScaler(); "
            f"{type(one).__qualname__} has no {' and no '.join(missing)}."
        )


def _clone(one: Any) -> Any:
    if hasattr(one, "get_params"):
        try:
            from sklearn.base import clone
        except ImportError:  # an object of one's own that looks like theirs
            pass
        else:
            return clone(one)
    return copy.deepcopy(one)


def _called(method: Any, what: str, *given: Any) -> Any:
    """Call it, without the target if it takes none."""
    try:
        taken = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # compiled code may not say
        n = len(given)
    else:
        n = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in taken)
        n = len(given) if any(p.kind is p.VAR_POSITIONAL for p in taken) else max(1, n)
    try:
        return method(*given[:n])
    except ShoalError:
        raise
    except Exception as error:  # whatever the user's object says to these data
        owner = type(getattr(method, "__self__", method)).__qualname__
        raise UsageError(f"prepare= ({owner}) raised on {what}: {blame(error)}") from error


# -- between tensors and arrays -----------------------------------------------------------------------------------------


def _plain(tensor: Tensor) -> Any:
    """A copy, since an object may be told to work in place."""
    tensor = tensor.detach().cpu()
    return tensor.float().numpy() if tensor.dtype is torch.bfloat16 else tensor.numpy().copy()


def _tensor(out: Any, raw: Tensor, what: str) -> Tensor:
    """What an object gave, as a tensor with as many rows, on the CPU; floats keep the type that they had."""
    if hasattr(out, "toarray") or hasattr(out, "to_numpy"):
        out = out.toarray() if hasattr(out, "toarray") else out.to_numpy()
    label = f"what prepare= made of {what}"
    _, (made,) = reading.read({label: (out,)})[label]
    if isinstance(out, np.ndarray) and out.dtype == np.float64:  # reading makes torch's default type of it
        made = torch.from_numpy(np.ascontiguousarray(out)).to(made.dtype if not raw.is_floating_point() else raw.dtype)
    elif raw.is_floating_point() and made.is_floating_point():
        made = made.to(raw.dtype)
    if made.ndim == 0 or len(made) != len(raw):
        raise UsageError(
            f"prepare= must keep one row per sample: of {len(raw)} of {what} it made shape {tuple(made.shape)}."
        )
    return made.detach().contiguous()


def _checked(split: Split, what: str) -> Split:
    try:
        check(split, f"prepared {what}")
    except DataError as error:
        raise DataError(f"after prepare=: {error}") from error
    return split


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape[1:])} of {str(tensor.dtype).removeprefix('torch.')}"
