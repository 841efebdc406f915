"""Max norm: after each update, the weights that come into a unit are shortened to a largest norm, per lane and plain.

    w *= c / (|w| + 1e-7)   where |w| > c

for each row ``w`` (along the first axis) of every trainable parameter with two axes or more, as ``torch.renorm(p, 2, 0, c)`` has it
and as Srivastava et al. 2014, section 5.1, describe it for use with dropout.

Glossary: ``c`` the largest norm; ``T`` ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes.state import LaneState
from shoal.recipe import Recipe

_SLACK = 1e-7  # torch.renorm's


@torch.no_grad()
def plain(recipe: Recipe) -> None:
    """Shorten the rows of a model's parameters, in place."""
    if recipe.max_norm:
        for p in recipe.model.parameters():
            if p.requires_grad and p.ndim > 1:
                p.copy_(torch.renorm(p, 2, 0, recipe.max_norm))


@dataclass(frozen=True, slots=True)
class MaxNorm:
    """The same for the lanes of a fleet over one epoch."""

    weights: tuple[Tensor, ...]  # (lanes, rows, ...) each, the parameters' own memory
    limit: Tensor  # (lanes, 1), infinite where it is off
    on: tuple[Tensor, ...]  # per tick, (lanes, 1)
    any_on: tuple[bool, ...]  # per tick, on the host

    @classmethod
    def of(cls, recipes: Sequence[Recipe | None], due: NDArray[np.bool_], state: LaneState) -> MaxNorm | None:
        """For the recipes in each lane (None: free) and the ticks at which their batches are full, (T, lanes)."""
        limits = [(r.max_norm if r is not None else None) or float("inf") for r in recipes]
        asked = np.isfinite(limits)
        if not asked.any():
            return None
        device = state.params.device
        on = due & asked
        return cls(
            tuple(v for v in state.layout.views(state.params) if v.ndim > 2),
            torch.tensor(limits, dtype=state.params.dtype, device=device)[:, None],
            torch.from_numpy(on).to(device)[:, :, None].unbind(0),
            tuple(bool(row.any()) for row in on),
        )

    def apply(self, t: int) -> None:
        """Shorten what is too long in lanes that have made an update at tick t."""
        if not self.any_on[t]:
            return
        for w in self.weights:
            norm = torch.linalg.vector_norm(w.flatten(2), dim=2)  # (lanes, rows)
            share = torch.where(self.on[t] & (norm > self.limit), self.limit / (norm + _SLACK), 1.0)
            w.mul_(share.view(*share.shape, *[1] * (w.ndim - 2)))
