"""How many threads torch's kernels use: those that share a kernel of microseconds spend longer meeting each other than working.

On a core that another program wants as well they wait for each other for milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# A step of fewer floating-point operations has one thread; two gain next to nothing at 10 million (8 lanes of 9,000 parameters).
_SMALL = 1e8


def kernel_threads(n_parameters: int, lanes: int, samples: int, data: Sequence[Tensor]) -> int:
    """Threads for the kernels of a step: 1 if it is small, as far as its size is known, else all there are.

    Args:
        n_parameters: Of a lane. A sample of plain features meets each once; images and sequences meet them more often.
        lanes: How many there are.
        samples: Of each lane in one step.
        data: The inputs, (n, ...) each.
    """
    flat = all(t.ndim <= 2 and t.is_floating_point() for t in data)
    return 1 if flat and 6.0 * n_parameters * lanes * samples < _SMALL else torch.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """In here, kernels use so many threads."""
    before = torch.get_num_threads()
    if n != before:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        if n != before:
            torch.set_num_threads(before)
