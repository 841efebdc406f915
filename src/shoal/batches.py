"""How a batch reaches the user's code: as a tuple of tensors, or as a dict of them by name.

Inside Shoal a batch is always a tuple of tensors, each ``(q, ...)``; where there is a target, it is the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

# The key of a dict that a criterion compares outputs with, if there is exactly one of these.
TARGETS: Final = ("target", "targets", "label", "labels", "y")


@dataclass(frozen=True, slots=True)
class Form:
    """What the tensors of a batch are called.

    Args:
        names: One per tensor if batches are dicts, the target's last; empty if they are tuples.
        has_target: Whether the last tensor is what a criterion compares outputs with.
    """

    names: tuple[str, ...] = ()
    has_target: bool = True

    def batch(self, tensors: Sequence[Tensor]) -> Any:
        """The tensors as a loss, ``predict`` or a transform is given them.

        >>> list(Form(("image", "label")).batch([1, 2]).items())
        [('image', 1), ('label', 2)]
        """
        return dict(zip(self.names, tensors, strict=True)) if self.names else tuple(tensors)

    def tensors(self, batch: object, n: int) -> tuple[Any, ...] | None:
        """The ``n`` values of a batch that user code has returned, in order; None if it is none of this form."""
        if self.names:
            if not isinstance(batch, Mapping) or batch.keys() != set(self.names):
                return None
            return tuple(batch[name] for name in self.names)
        return tuple(batch) if isinstance(batch, tuple | list) and len(batch) == n else None

    def inputs(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """What a model is called with beside a criterion: (positional, by keyword).

        Inputs of a dict go by keyword, so that their order does not matter; a single one goes by position, for what it is called
        says nothing of the model's argument.

        >>> Form(("ids", "mask", "label")).inputs([1, 2, 3])
        ((), {'ids': 1, 'mask': 2})
        >>> Form(("image", "label")).inputs([1, 2])
        ((1,), {})
        """
        inputs = tuple(tensors[:-1])
        if len(self.names) > 2:
            return (), dict(zip(self.names[:-1], inputs, strict=True))
        return inputs, {}


def target_of(names: Sequence[str]) -> str | None:
    """The one name that means the target, if there is exactly one."""
    found = [name for name in names if name in TARGETS]
    return found[0] if len(found) == 1 else None
