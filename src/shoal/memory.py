"""Tensors that may be larger than memory: beyond a limit they lie in a temporary file that the system maps."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_CHUNK_BYTES = 2**26


def limit_bytes() -> int:
    """What one tensor may take before it is mapped from a file: a quarter of the machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return 2**31


def empty(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    limit: int | None = None,
) -> Tensor:
    """An uninitialised tensor, in memory or, on the CPU and beyond the limit, in a file without a name.

    The file lies in the system's folder for temporary files (``TMPDIR``). It has no name from the start, so it goes with the last
    process that maps it, however that ends.

    Args:
        shape: Of the tensor.
        dtype: Of its elements.
        device: Only tensors on the CPU are mapped.
        limit: Bytes that may be in memory; by default ``limit_bytes()``.

    Example:
        >>> empty((2, 3), torch.float32, limit=0).zero_().sum().item()
        0.0
    """
    n_elements = math.prod(shape)
    n_bytes = n_elements * dtype.itemsize
    small = n_bytes <= (limit_bytes() if limit is None else limit)
    if small or n_elements == 0 or torch.device(device).type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    with tempfile.NamedTemporaryFile(prefix="shoal-") as file:
        # The mapping outlives the name, which the end of this block takes away.
        flat = torch.from_file(file.name, shared=True, size=n_elements, dtype=dtype)
    return flat.view(tuple(shape))


def taken(tensor: Tensor, rows: Tensor) -> Tensor:
    """The named rows of a tensor; a result beyond the limit is written to a file a part at a time, and never held in memory.

    Example:
        >>> taken(torch.arange(4) * 10, torch.tensor([3, 1])).tolist()
        [30, 10]
    """
    rows = rows.to(tensor.device)
    n_bytes = len(rows) * math.prod(tensor.shape[1:]) * tensor.element_size()
    if n_bytes <= limit_bytes() or tensor.device.type != "cpu":
        return tensor[rows]
    out = empty((len(rows), *tensor.shape[1:]), tensor.dtype)
    for part in chunks(out):
        out[part] = tensor[rows[part]]
    return out


def chunks(tensor: Tensor) -> Iterator[slice]:
    """Slices of its rows of some 64 MiB each, for work that must not make a copy of all of it.

    Example:
        >>> list(chunks(torch.zeros(2, 3)))
        [slice(0, 2, None)]
    """
    per_row = max(1, math.prod(tensor.shape[1:]) * tensor.element_size())
    size = max(1, _CHUNK_BYTES // per_row)
    return (slice(at, min(at + size, len(tensor))) for at in range(0, len(tensor), size))
