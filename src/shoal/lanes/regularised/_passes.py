"""Gradients of a fleet's model that moves ask for, by the fleet's own program.

Glossary: ``W`` lanes; ``P`` elements of a flat row; ``q`` slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shoal.data import Split

if TYPE_CHECKING:
    from shoal.lanes.fleet import Fleet

Slots = tuple[Tensor, Tensor, Tensor]  # samples, weights and keys of a tick, (W, q) each


class Passes:
    """Gradients in parameters or in numbers, at whatever point is given.

    All methods take ``inputs``, a fleet's tensors in its program's order; ``slots``; and ``lanes``, whose gradients are asked for:
    what comes back of the others means nothing.

    Args:
        fleet: Whose lanes.
        held_out: Hyper-validation data.
    """

    def __init__(self, fleet: Fleet, held_out: Split) -> None:
        self._fleet, self._held_out = fleet, held_out

    def held_out(self, inputs: Sequence[Tensor], slots: Slots, lanes: Sequence[int]) -> Tensor:
        """Of the loss in evaluation mode and without label smoothing on hyper-validation samples, (W, P)."""
        return self._flat(self._fleet.program.held_out(inputs, self._held_out.tensors, *slots))

    def training(self, inputs: Sequence[Tensor], slots: Slots, lanes: Sequence[int]) -> Tensor:
        """Of the training loss, (W, P)."""
        out = self._fleet.program.train(inputs, self._fleet.work.data.train.tensors, *slots)
        return self._flat(out[: len(self._fleet.layout.names)])

    def by_numbers(self, names: Sequence[str], inputs: Sequence[Tensor], slots: Slots, lanes: Sequence[int]) -> Tensor:
        """Of the training loss, in label smoothing or rates of dropout, (W, numbers): ``names`` of ``_rule.numbers_of``."""
        found = self._fleet.program.by_numbers(names, inputs, self._fleet.work.data.train.tensors, *slots)
        return torch.stack([found[name] for name in names], 1)

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        """Parameters' own tensors as flat rows, padded with zeros, (W, P)."""
        out = torch.zeros_like(self._fleet.state.params)
        torch._foreach_copy_(self._fleet.layout.views(out), list(parts))
        return out
