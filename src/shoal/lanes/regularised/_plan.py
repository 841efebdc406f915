"""What decides how the numbers of a fleet's lanes move over an epoch, as arrays: what compiled ticks are told.

Glossary: ``W`` lanes; ``R`` numbers that may move (``_rule``); ``T`` ticks of the epoch; ``M`` moves of a lane, at most; ``G``
parameters whose coefficients are told apart, or 1; ``q`` hyper-validation samples of a move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]
Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The moves of an epoch.

    Attributes:
        move: Which move of the epoch follows a tick, from 0, or -1 for none, (W, T).
        update: After which update of its trial each move comes, from 1, (W, M).
        every, terms, scale: Updates from one move to the next; terms of the Neumann series, 0 for T1-T2; its scale; (W,) each.
        data: Hyper-validation data.
        index, weights, keys: Its samples, their weights and keys, (W, M, q) each.
        on, base, step, low, high, warmup: Of each number, (W, R).
        logarithmic: Of which numbers the offset is a logarithm, (R,).
        aimed: Parameters whose weight decay moves, (W, G).
        apart: Whether that is decoupled from the gradient, (W,).
        rate: Learning rates, (W, T, G).
        decayed: Which parameters are decayed, (W, parameters).
        fixed: Weight decay of each as its group has it, (W, parameters).
        kept, value: Offset and moments, (W, 3, R), and the numbers, (W, R), as the epoch begins.
        places: By the name of a lane's tensor that holds a number, where among the R numbers that stands.
    """

    move: Counts
    update: Counts
    every: Counts
    terms: Counts
    scale: Numbers
    data: tuple[Tensor, ...]
    index: Counts
    weights: Numbers
    keys: NDArray[np.int32]
    on: Flags
    base: Numbers
    step: Numbers
    low: Numbers
    high: Numbers
    warmup: Counts
    logarithmic: Flags
    aimed: Flags
    apart: Flags
    rate: Numbers
    decayed: Flags
    fixed: Numbers
    kept: Numbers
    value: Numbers
    places: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What came of it.

    Attributes:
        kept, value: Offset and moments, (W, 3, R), and the numbers, (W, R), as the epoch ends.
        record: The numbers after so many moves of the epoch, (W, M + 1, R).
        sums, counts: Derivatives, added up, and how many, (W, R).
        bad: The first update whose derivative was not finite, or 0, (W, R).
    """

    kept: Numbers
    value: Numbers
    record: Numbers
    sums: Numbers
    counts: Numbers
    bad: Counts
