"""What happens to a gradient between ``backward`` and the optimizer: L1 and L2, then clipping by value, then clipping by norm.

Once per update, on the gradient of the whole batch, over all trainable parameters of the recipe:

    g += l1 * sign(p) + l2 * p;    g = clamp(g, -clip_value, clip_value);    g *= min(1, clip_norm / (|g| + 1e-6))

with ``|g|`` the norm over all of them together, as ``torch.nn.utils.clip_grad_norm_`` has it. ``plain`` does it to a model,
``Shaping`` to lanes, each with its own numbers.

Glossary: ``g`` gradients and ``p`` parameters, (lanes, P); ``on`` (lanes, 1), whether a lane's batch is full at this tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.lanes.state import LaneState
from shoal.recipe import Recipe


def penalty(recipe: Recipe) -> Tensor | float:
    """What L1 and L2 add to the loss: ``l1`` times the sum of absolute values, ``l2 / 2`` times that of squares."""
    if not recipe.l1 and not recipe.l2:
        return 0.0
    trained = [p.detach() for p in recipe.model.parameters() if p.requires_grad]
    return recipe.l1 * sum(p.abs().sum() for p in trained) + 0.5 * recipe.l2 * sum(p.square().sum() for p in trained)


@torch.no_grad()
def plain(recipe: Recipe) -> None:
    """Shape the gradients that ``backward`` has left in a model."""
    parameters = [p for p in recipe.model.parameters() if p.requires_grad]
    if recipe.l1:
        for p in parameters:
            slope = p.sign() * recipe.l1
            p.grad = slope if p.grad is None else p.grad.add_(slope)
    if recipe.l2:
        for p in parameters:
            p.grad = p * recipe.l2 if p.grad is None else p.grad.add_(p, alpha=recipe.l2)
    if recipe.clip_value:
        nn.utils.clip_grad_value_(parameters, recipe.clip_value)
    if recipe.clip_norm:
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)


@dataclass(frozen=True, slots=True)
class Shaping:
    """The same for the lanes of a fleet over one epoch. What no lane asks for is None, and costs nothing.

    Shaped gradients go into a buffer of their own: a lane in the middle of its batch goes on adding to the raw ones.
    """

    state: LaneState
    shaped: Tensor  # (lanes, P)
    on: tuple[Tensor, ...]  # per tick
    any_on: tuple[bool, ...]  # per tick, on the host
    l1: Tensor | None  # (lanes, 1), 0 where it is off
    l2: Tensor | None  # (lanes, 1), 0 where it is off
    clip_value: Tensor | None  # (lanes, 1), infinite where it is off
    clip_norm: Tensor | None  # (lanes, 1), infinite where it is off

    @classmethod
    def of(cls, recipes: Sequence[Recipe | None], due: NDArray[np.bool_], state: LaneState) -> Shaping | None:
        """For the recipes in each lane (None: free) and the ticks at which their batches are full, (T, lanes)."""
        device, dtype = state.grads.device, state.grads.dtype

        def column(values: Sequence[float], off: float) -> Tensor | None:
            if all(v == off for v in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device)[:, None]

        l1 = column([r.l1 if r is not None else 0.0 for r in recipes], 0.0)
        l2 = column([r.l2 if r is not None else 0.0 for r in recipes], 0.0)
        infinite = float("inf")
        value = column([(r.clip_value if r is not None else None) or infinite for r in recipes], infinite)
        norm = column([(r.clip_norm if r is not None else None) or infinite for r in recipes], infinite)
        if l1 is None and l2 is None and value is None and norm is None:
            return None
        on = torch.from_numpy(due).to(device)[:, :, None].unbind(0)
        any_on = tuple(bool(row.any()) for row in due)
        return cls(state, torch.zeros_like(state.grads), on, any_on, l1, l2, value, norm)

    def apply(self, t: int) -> None:
        """Shape the gradients at tick t; those of lanes in the middle of their batch are not asked for."""
        if not self.any_on[t]:
            return
        g, p = self.shaped, self.state.params
        g.copy_(self.state.grads)
        # A batch starts from zero, even where the last one's gradient was infinite.
        self.state.grads.masked_fill_(self.on[t], 0.0)
        if self.l1 is not None:
            g.addcmul_(p.sign(), self.l1)
        if self.l2 is not None:
            g.addcmul_(p, self.l2)
        if self.clip_value is not None:
            torch.clamp(g, -self.clip_value, self.clip_value, out=g)
        if self.clip_norm is not None:
            layout = self.state.layout
            norms = [
                torch.linalg.vector_norm(g[:, o : o + s.numel()], dim=1)
                for o, s in zip(layout.offsets, layout.shapes, strict=True)
            ]
            total = torch.linalg.vector_norm(torch.stack(norms, 1), dim=1, keepdim=True)  # (lanes, 1)
            share = torch.clamp(self.clip_norm / (total + 1e-6), max=1.0)
            # A lane that does not clip may have a gradient whose norm overflows.
            g.mul_(torch.where(self.clip_norm.isinf(), 1.0, share))
