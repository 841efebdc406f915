"""Optimizers that estimate their own learning rate from the way they have come, per lane: Prodigy and D-Adaptation.

The estimate is one number per lane, made out of sums over all of its parameters at each update, so it is no coefficient that could
be tabulated. ``shoal.optim`` has the same as plain optimizers.

Glossary: ``rows`` neighbouring lanes of one family; ``P`` elements of a flat row; ``G`` parameters whose coefficients are told
apart, or 1; ``d`` estimates, ``rate`` learning rates, (rows, 1) each; ``s`` sums of gradients, ``start`` where training began,
(rows, P) each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes.activations import runs_of
from shoal.lanes.lane import LaneTrial
from shoal.lanes.optim import C3, C4, C5, C6, C7, L2, SIGN, Family
from shoal.lanes.state import LaneState

FAMILIES = (Family.PRODIGY, Family.DADAPT)
_START, _SUM, _NUMBERS = "distance.start", "distance.sum", "distance.numbers"


def begin(state: LaneState, lane: int, trial: LaneTrial) -> None:
    """Let a fresh trial begin in a lane, whose parameters are there already."""
    d0 = float(trial.recipe.optimizer.param_groups[0]["d0"])
    row = (state.layout.size,)
    state.own(_START, row, state.layout.dtype)[lane].copy_(state.params[lane])
    state.own(_SUM, row, state.layout.dtype)
    state.own(_NUMBERS, (3,), torch.float64)[lane] = torch.tensor([d0, d0, 0.0], dtype=torch.float64)


class Distances:
    """The updates of a stretch of lanes over one epoch.

    Args:
        state: The fleet's tensors.
        family: Which of the two.
        first: The first of the lanes.
        trials: Those in the lanes.
        due: Whose batch is full at which tick, (T, rows).
        table: Coefficients, (T, K, rows, G).
        grads: Gradients as they are given to the optimizer, (rows, P).
        owner: (P,), maps elements to their parameter.
    """

    def __init__(
        self,
        state: LaneState,
        family: Family,
        first: int,
        trials: Sequence[LaneTrial],
        due: NDArray[np.bool_],
        table: Tensor,
        grads: Tensor,
        owner: Tensor,
    ) -> None:
        layout, rows = state.layout, slice(first, first + len(trials))
        self._family, self._table, self._owner, self._grads = family, table, owner, grads
        self._params, self._first, self._second = (x[rows] for x in (state.params, state.first, state.second))
        self._start, self._sum = (state.own(name, (layout.size,), layout.dtype)[rows] for name in (_START, _SUM))
        self._numbers = state.own(_NUMBERS, (3,), torch.float64)[rows]  # d, d_max, numerator
        self._spans = [(o, o + s.numel()) for o, s in zip(layout.offsets, layout.shapes, strict=True)]
        self._due = [[slice(i, j) for on, i, j in runs_of(row.astype(int).tolist()) if on] for row in due]
        leads = [t.recipe.optimizer.param_groups[0] for t in trials]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=grads.device)[:, None]

        self._d0 = column([g["d0"] for g in leads])
        self._coef = column([g.get("d_coef", 1.0) for g in leads])
        self._growth = column([g["growth_rate"] for g in leads])
        self._kept = column([g["betas"][1] ** 0.5 for g in leads])
        self._safe = column([float(g.get("safeguard_warmup", False)) for g in leads])

    def __call__(self, t: int) -> None:
        """The updates that are due at tick t, a stretch of lanes at a time."""
        for rows in self._due[t]:
            self._update(self._table[t][:, rows], rows)

    def _update(self, table: Tensor, rows: slice) -> None:
        p, m, v, s = self._params[rows], self._first[rows], self._second[rows], self._sum[rows]
        numbers = self._numbers[rows]
        d, d_max, numerator = (x[:, None] for x in numbers.unbind(1))
        lr = table[C7].amax(1, keepdim=True).double()  # a parameter that the loss does not reach has 0
        rate = d * lr
        c = [x.index_select(1, self._owner) if x.shape[1] > 1 else x for x in table.unbind(0)]
        g = (self._grads[rows] * c[SIGN]).addcmul_(p, c[L2])
        kept, scale = self._kept[rows], d / self._d0[rows]
        if self._family is Family.PRODIGY:
            gained = scale * rate * self._total(g * (self._start[rows] - p))
            m.mul_(c[C3]).addcmul_(g, d.to(g.dtype) * (1.0 - c[C3]))
            v.mul_(c[C4]).addcmul_(g * g, (d * d).to(g.dtype) * (1.0 - c[C4]))
            s.mul_(c[C4].sqrt()).addcmul_(g, (scale * torch.where(self._safe[rows] > 0, d, rate)).to(g.dtype))
            length = self._total(s.abs())
            numerator = kept * numerator + gained
            found = self._coef[rows] * numerator / length
            grown = torch.where(d == self._d0[rows], torch.maximum(d, found), d)
            d_max = torch.maximum(d_max, found)
            new = torch.minimum(d_max, grown * self._growth[rows])
            denominator = torch.addcmul(v.sqrt(), new.to(g.dtype), c[C5])
            step = m * rate.to(g.dtype)
        else:
            gained = rate * self._total(g * s / (v.sqrt() + c[C5]))
            m.mul_(c[C3]).addcmul_(g, rate.to(g.dtype) * (1.0 - c[C3]))
            v.mul_(c[C4]).addcmul_(g * g, 1.0 - c[C4])
            s.mul_(c[C4].sqrt()).addcmul_(g, rate.to(g.dtype) * (1.0 - c[C4].sqrt()))
            length = self._total(s.abs())
            numerator = kept * numerator + (1.0 - kept) * gained
            found = numerator / ((1.0 - kept) * length)
            new = torch.maximum(d, torch.minimum(found, d * self._growth[rows]))
            denominator = v.sqrt() + c[C5]
            step = m
        go = length != 0  # without any gradient so far there is nothing to go by
        after = torch.cat([new, d_max, numerator], 1)
        numbers.copy_(torch.where(go, after, numbers))
        moved = (p * (1.0 - c[C6] * rate.to(g.dtype))).sub_(step / denominator)
        p.copy_(torch.where(go, moved, p))

    def _total(self, x: Tensor) -> Tensor:
        """(rows, P) -> (rows, 1), padding left out."""
        return torch.stack([x[:, i:j].sum(1) for i, j in self._spans], 1).double().sum(1, keepdim=True)
