"""The tensors of a fleet, allocated once per (signature, width) and written in place ever after.

Glossary: ``P`` elements of a flat parameter row, padding included; first axis ``lanes`` everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal.lanes.step import Layout

# No parameter, buffer or number of a recipe has a name that begins so.
OWN = "extend:"


@dataclass(frozen=True, slots=True)
class LaneRow:
    """One lane, copied out: all that has to move when a trial changes its lane."""

    flat: Tensor  # (4, P): parameters, first moment, second moment, mean gradient
    extra: dict[str, Tensor]  # frozen parameters, buffers, lane hyperparameters; what extensions keep is under ``OWN``

    def to_host(self) -> LaneRow:
        """The same in the host's memory."""
        return LaneRow(self.flat.cpu(), {name: t.cpu() for name, t in self.extra.items()})

    @property
    def memory_bytes(self) -> int:
        """What it takes to keep."""
        return sum(t.numel() * t.element_size() for t in (self.flat, *self.extra.values()))


class LaneState:
    """Stacked parameters, optimizer state, buffers and lane hyperparameters of one fleet."""

    def __init__(self, layout: Layout, width: int, like: Mapping[str, Tensor], device: torch.device) -> None:
        self.layout, self.width = layout, width
        self.flat = torch.zeros(4, width, layout.size, dtype=layout.dtype, device=device)
        self.params, self.first, self.second, self.mean = self.flat.unbind(0)  # (lanes, P) each
        self.grads = torch.zeros(width, layout.size, dtype=layout.dtype, device=device)
        self.grad_views = layout.views(self.grads)
        names = (*layout.frozen, *layout.lifted, *layout.buffers, *layout.values)
        self.extra = {name: like[name].detach().to(device).expand(width, *like[name].shape).clone() for name in names}
        self.inputs: list[Tensor] = [*layout.views(self.params), *(self.extra[name] for name in names)]
        self.buffers = [self.extra[name] for name in layout.buffers]

    def own(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor (lanes, *shape) that an extension or an optimizer keeps: zero in a fresh lane, and moved with its lane.

        It is made when it is first asked for, so that a fleet in which nobody needs it has none.
        """
        key = OWN + name
        if key not in self.extra:
            self.extra[key] = torch.zeros(self.width, *shape, dtype=dtype, device=self.flat.device)
        return self.extra[key]

    def put(self, lane: int, tensors: Mapping[str, Tensor], second: Mapping[str, Tensor | float] | None = None) -> None:
        """Let a fresh trial into a lane.

        Args:
            lane: A free one.
            tensors: Everything that it holds, by name.
            second: Where its optimizer's second row starts, by parameter; all other optimizer state starts at zero.
        """
        self.flat[:, lane].zero_()
        for view, name in zip(self.layout.views(self.params), self.layout.names, strict=True):
            view[lane].copy_(tensors[name].detach())
        if second:
            for view, name in zip(self.layout.views(self.second), self.layout.names, strict=True):
                view[lane] = second[name]
        for name, stacked in self.extra.items():
            if name.startswith(OWN):
                stacked[lane].zero_()
            else:
                stacked[lane].copy_(tensors[name].detach())

    def take(self, lane: int) -> LaneRow:
        """Copy a lane out."""
        return LaneRow(self.flat[:, lane].clone(), {name: t[lane].clone() for name, t in self.extra.items()})

    def restore(self, lane: int, row: LaneRow) -> None:
        """Copy a lane back in, here or in another fleet of the signature."""
        self.flat[:, lane].copy_(row.flat)
        for name, kept in row.extra.items():
            if name.startswith(OWN):
                self.own(name.removeprefix(OWN), tuple(kept.shape), kept.dtype)
        for name, stacked in self.extra.items():
            if name in row.extra:
                stacked[lane].copy_(row.extra[name])
            else:  # what this trial has not asked for
                stacked[lane].zero_()

    def rearrange(self, order: Sequence[int]) -> None:
        """Lane i becomes what lane ``order[i]`` was."""
        index = torch.tensor(order, device=self.flat.device)
        self.flat.copy_(self.flat.index_select(1, index))
        for stacked in self.extra.values():
            stacked.copy_(stacked.index_select(0, index))

    def parameter(self, name: str) -> Tensor:
        """One parameter of all lanes, (lanes, ...)."""
        return self.inputs[(*self.layout.names, *self.layout.frozen).index(name)]

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """The lane's parameters and buffers under the model's own names, on the CPU."""
        la = self.layout
        out = {n: v[lane].detach().cpu().clone() for n, v in zip(la.names, la.views(self.params), strict=True)}
        out.update({n: self.extra[n][lane].detach().cpu().clone() for n in (*la.frozen, *la.buffers)})
        return out
