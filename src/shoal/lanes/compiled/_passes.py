"""The gradients that moves of regularisers ask for, by the functions of a compiled library: what is compared before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shoal.data import Split
from shoal.lanes import optim
from shoal.lanes.compiled._program import Epoch, Ticks
from shoal.lanes.native import NativeKernels
from shoal.lanes.regularised._passes import Passes, Slots
from shoal.lanes.regularised._rule import numbers_of

if TYPE_CHECKING:
    from shoal.lanes.compiled import Compilation
    from shoal.lanes.fleet import Fleet


class CompiledPasses(Passes):
    """``Passes`` of the lanes that are asked for alone; what has no compiled form is left to the fleet's program.

    Args:
        compilation: With its library there.
        fleet, held_out: As for ``Passes``.
    """

    def __init__(self, compilation: Compilation, fleet: Fleet, held_out: Split) -> None:
        super().__init__(fleet, held_out)
        self._compilation = compilation

    def held_out(self, inputs: Sequence[Tensor], slots: Slots, lanes: Sequence[int]) -> Tensor:
        call = self._compilation.ready("held_out")
        if call is None:
            return super().held_out(inputs, slots, lanes)
        out = torch.zeros_like(self._fleet.state.params)
        places = (self._fleet.offsets, self._fleet.sizes)
        self._run(call, [*inputs, *self._held_out.tensors], len(inputs), slots, lanes, out, *places)
        return out

    def by_numbers(self, names: Sequence[str], inputs: Sequence[Tensor], slots: Slots, lanes: Sequence[int]) -> Tensor:
        for name, known in numbers_of(self._compilation.variant.moves).items():
            call = self._compilation.ready(name)
            if call is not None and set(names) <= set(known):
                given = [*inputs, *self._fleet.work.data.train.tensors]
                out = torch.zeros(self._fleet.width, len(known), dtype=self._fleet.layout.dtype)
                places = torch.arange(len(known)), torch.ones(len(known), dtype=torch.int64)
                self._run(call, given, len(inputs), slots, lanes, out, *places)
                return out[:, [known.index(n) for n in names]]
        return super().by_numbers(names, inputs, slots, lanes)

    def _run(
        self,
        call: Epoch,
        inputs: Sequence[Tensor],
        n_state: int,
        slots: Slots,
        lanes: Sequence[int],
        out: Tensor,
        offsets: Tensor,
        sizes: Tensor,
    ) -> None:
        """One tick of these lanes, after which nothing is due; ``out`` is where gradients are added up."""
        kernels, (width, q), n = self._fleet.kernels, slots[0].shape, len(lanes)
        assert isinstance(kernels, NativeKernels)
        never = np.zeros((1, width), dtype=np.uint8)
        ticks = Ticks(
            lanes=lanes,
            counts=[1] * n,
            index=slots[0].numpy()[None],
            weights=slots[1][None],
            keys=slots[2].numpy()[None],
            losses=torch.zeros(1, width, dtype=out.dtype),
            table=torch.zeros(n, 1, optim.K, 1, dtype=out.dtype),
            due=never,
            goes_on=never,
            families=[0] * n,
            shaping=None,
            lengths=torch.zeros(len(sizes), dtype=torch.int64),
            tail=0 if call.has_tail and q != self._fleet.quantum else -1,
        )
        call.run(kernels, inputs, n_state, (out,) * 5, offsets, sizes, ticks)
