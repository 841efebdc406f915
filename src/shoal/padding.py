"""Sequences of different lengths: padded once, as they are read, with their lengths beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shoal import memory
from shoal.batches import target_of
from shoal.errors import DataError, UsageError

IGNORE_INDEX = -100  # torch's own mark for targets that a criterion leaves out

Part = int | str


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """A data set whose items are sequences of different lengths, for ``train``, ``valid`` and ``test``.

    Each sequence ``(length, ...)`` is padded at its end to the longest of all splits, and its length becomes a part of the batch
    right after it: items ``(words, label)`` give batches ``(words (q, L), lengths (q,), label (q,))``, and a model is called as
    ``model(words, lengths)``, ready for ``torch.nn.utils.rnn.pack_padded_sequence``. In a dict, ``"words"`` is joined by
    ``"words_lengths"``. A target that is itself a sequence (tags) has no lengths of its own: integers are padded with -100, which
    ``CrossEntropyLoss`` leaves out.

    Args:
        data: A map-style data set of items (a tuple or a dict of parts), a list of such items, or a tuple or dict of columns, of
            which some are lists of sequences: ``(list_of_sequences, labels)``.
        value: What sequences are padded with.
        length: Pad to this many steps, and cut off what is longer. By default the longest sequence of all splits decides, which
            takes fetching every item twice.
        parts: Which parts are sequences, by position or name. By default those whose lengths differ.
        lengths: Whether the lengths become a part of the batch.

    Raises:
        UsageError: If an argument makes no sense.

    Example:
        >>> from shoal.data import load
        >>> texts = [torch.tensor([4, 2]), torch.tensor([7]), torch.tensor([1, 5, 3])]
        >>> data = load(Padded((texts, torch.tensor([0, 1, 0]))), valid=Padded(([torch.tensor([9])], torch.tensor([1]))))
        >>> [t.tolist() for t in data.train.tensors]
        [[[4, 2, 0], [7, 0, 0], [1, 5, 3]], [2, 1, 3], [0, 1, 0]]
    """

    data: Any
    value: float = 0
    length: int | None = None
    parts: Sequence[Part] | None = None
    lengths: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, Real):
            raise UsageError(f"Padded(value=...) must be a number, not {self.value!r}.")
        whole = isinstance(self.length, int) and not isinstance(self.length, bool)
        if self.length is not None and not (whole and self.length >= 1):
            raise UsageError(f"Padded(length=...) must be a whole number of at least 1, or None; got {self.length!r}.")
        if self.parts is not None and (
            isinstance(self.parts, str) or not all(type(p) in (int, str) for p in self.parts)
        ):
            raise UsageError(
                f"Padded(parts=...) must be positions or names of parts, such as (0,) or ('words',); got {self.parts!r}."
            )

    def alike(self, other: Padded) -> bool:
        """Whether two splits are padded in the same way."""
        mine, theirs = (
            (p.value, p.length, None if p.parts is None else tuple(p.parts), p.lengths) for p in (self, other)
        )
        return mine == theirs


@dataclass(slots=True)
class Lengths:
    """How long the parts of a data set's items are.

    Args:
        names: Of the parts; empty where they have none.
        steps: Per part the length of each item, (n,); None for a part without an axis.
    """

    names: tuple[str, ...]
    steps: list[npt.NDArray[np.int64] | None] = field(default_factory=list)

    def differing(self) -> set[int]:
        """The parts that are not the same length in all items."""
        return {k for k, n in enumerate(self.steps) if n is not None and len(n) and n.min() != n.max()}


Fetch = Callable[[int], tuple[tuple[str, ...], tuple[Tensor, ...]]]


def measure(fetch: Fetch, indices: Sequence[int] | Any, n: int) -> Lengths:
    """The lengths of all parts of all items: ``fetch(i)`` gives the names and parts of item i."""
    found: Lengths | None = None
    for index in indices:
        names, parts = fetch(index)
        if found is None:
            found = Lengths(names, [np.zeros(n, dtype=np.int64) if part.ndim else None for part in parts])
        for steps, part in zip(found.steps, parts, strict=True):
            if steps is not None and part.ndim:
                steps[index] = len(part)
    assert found is not None  # an empty data set has been refused
    return found


def plan(padded: Mapping[str, Padded], lengths: Mapping[str, Lengths]) -> dict[int, int]:
    """Which parts are sequences, and how many steps each gets: the same for all splits.

    Raises:
        DataError: If there are none, or one has no steps.
        UsageError: If ``parts`` names what is not there.
    """
    first, of = next(iter(padded.items()))[1], next(iter(lengths.values()))
    parts = set().union(*(found.differing() for found in lengths.values()))
    if first.parts is not None:
        parts = {_position(part, of) for part in first.parts}
    if not parts:
        raise DataError(
            f"all items of {', '.join(lengths)} have one length, so that there is nothing to pad. Leave Padded out, or say which "
            "parts are sequences: Padded(data, parts=(0,))."
        )
    out: dict[int, int] = {}
    for part in sorted(parts):
        longest = 0
        for name, found in lengths.items():
            steps = found.steps[part]
            if steps is None:
                raise DataError(
                    f"{_label(name, found, part)} is a single number and no sequence; leave it out of parts."
                )
            if steps.min() == 0:
                raise DataError(
                    f"item {int(steps.argmin())} of {_label(name, found, part)} is a sequence of no steps, and there is nothing "
                    "to read in it. Leave it out, or give it one step of padding."
                )
            longest = max(longest, int(steps.max()))
        out[part] = first.length or longest
    return out


def _position(part: Part, found: Lengths) -> int:
    known: Sequence[Part] = found.names or range(len(found.steps))
    if part not in known:
        raise UsageError(f"Padded(parts=...) names {part!r}, but the parts of an item are {list(known)}.")
    return list(known).index(part)


def _label(name: str, found: Lengths, part: int) -> str:
    return f"{name}[{found.names[part]!r}]" if found.names else f"{name}[{part}]"


class Columns:
    """The padded columns of a split while they are filled, item by item.

    Args:
        padded: How.
        steps: Per sequence part, its steps in the padded column.
        names, first: Names and parts of the first item.
        n: Items.
    """

    def __init__(
        self, padded: Padded, steps: Mapping[int, int], names: tuple[str, ...], first: Sequence[Tensor], n: int
    ) -> None:
        self._steps = steps
        target = target_of(names)
        last = names.index(target) if target is not None else -1 if names or len(first) < 2 else len(first) - 1
        self._columns: list[Tensor] = []
        self._lengths: dict[int, Tensor] = {}
        for k, part in enumerate(first):
            shape = (n, steps[k], *part.shape[1:]) if k in steps else (n, *part.shape)
            column = memory.empty(shape, part.dtype, part.device)
            if k in steps:
                whole = not (part.is_floating_point() or part.is_complex())
                column.fill_(IGNORE_INDEX if k == last and whole else _cast(padded.value, part.dtype))
                if padded.lengths and k != last:
                    self._lengths[k] = torch.empty(n, dtype=torch.int64)
            self._columns.append(column)
        self._names = names

    def put(self, index: int, parts: Sequence[Tensor]) -> None:
        """Item ``index``."""
        for k, (column, part) in enumerate(zip(self._columns, parts, strict=True)):
            if k not in self._steps:
                column[index] = part
                continue
            n = min(len(part), self._steps[k])
            column[index, :n] = part[:n]
            if k in self._lengths:
                self._lengths[k][index] = n

    def shape(self, part: int) -> tuple[int | None, ...]:
        """What every item's part must be like; None stands for any length."""
        rest = tuple(self._columns[part].shape[1:])
        return (None, *rest[1:]) if part in self._steps else rest

    def finished(self) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """Names and columns, lengths after what they are the lengths of."""
        names: list[str] = []
        out: list[Tensor] = []
        for k, column in enumerate(self._columns):
            out.append(column)
            names += [self._names[k]] if self._names else []
            if k in self._lengths:
                out.append(self._lengths[k])
                names += [f"{self._names[k]}_lengths"] if self._names else []
        return tuple(names), tuple(out)


def _cast(value: float, dtype: torch.dtype) -> float:
    if not dtype.is_floating_point and value != int(value):
        raise UsageError(f"Padded(value={value!r}) cannot pad sequences of {dtype}; choose a whole number.")
    return value
