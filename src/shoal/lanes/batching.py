"""What the batching rules of Shoal's own operators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def lanes_first(info: Any, in_dims: Sequence[int | None], arguments: Sequence[Any]) -> list[Any]:
    """The arguments of an operator under vmap as its form over lanes takes them.

    Args:
        info: What ``torch.library.register_vmap`` hands to a rule; its ``batch_size`` is the number of lanes.
        in_dims: Which axis of each argument the lanes are; None where all lanes share it.
        arguments: Tensors, and whatever else the operator takes.

    Returns:
        Every tensor with lanes as its first axis, a shared one expanded; what is no tensor as it is.
    """
    return [
        a if not isinstance(a, Tensor) else a.expand(info.batch_size, *a.shape) if d is None else a.movedim(d, 0)
        for d, a in zip(in_dims, arguments, strict=True)
    ]
