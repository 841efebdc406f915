"""Hyper-validation gradients of a fleet's lanes through their last few updates.

Glossary: ``W`` lanes; ``n`` those of them that are gone back through together; ``P`` elements of a flat row; ``R`` numbers that may
move; ``T`` ticks; ``K`` coefficients of an update, ``c``; ``G`` parameters whose coefficients are told apart, or 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes import optim
from shoal.lanes.optim import C3, C4, C5, C6, C7, DECAY, L2, SIGN
from shoal.lanes.regularised._lanes import LaneRegularisers
from shoal.lanes.regularised._passes import Slots
from shoal.lanes.regularised._rule import DECAY_, L1_, LR_, Moving

if TYPE_CHECKING:
    from shoal.lanes.clip import Shaping
    from shoal.lanes.fleet import Fleet


@dataclass(frozen=True, slots=True)
class _Update:
    """What one lane's update saw and did: ``start``, ``params``, ``first``, ``second``, ``grads`` (P,); ``table`` (K, G); ``by``,
    ``rate`` (G,), all as for ``kernels.Made``; ``adam``, whether it is of that family."""

    start: Tensor
    params: Tensor
    first: Tensor
    second: Tensor
    grads: Tensor
    table: Tensor
    by: Tensor
    rate: Tensor
    adam: Tensor


@dataclass(frozen=True, slots=True)
class _Adjoint:
    """The derivative in what the lanes held after an update, (n, P) each."""

    params: Tensor
    first: Tensor
    second: Tensor


class UnrolledLanes(LaneRegularisers):
    """``LaneRegularisers`` some of whose lanes look back through several updates. Within an epoch only: what a lane keeps of its
    updates is neither paused nor stored."""

    def __init__(
        self,
        fleet: Fleet,
        found: Mapping[int, Moving],
        due: NDArray[np.bool_],
        goes_on: NDArray[np.bool_],
        shaping: Shaping | None,
    ) -> None:
        super().__init__(fleet, found, due, goes_on, shaping)
        self._unroll = {i: a.shared.unroll for i, a in self._found.items() if a.shared.method == "unrolled"}
        self._window = np.zeros_like(due)  # the updates that some move looks back through
        for i, unroll in self._unroll.items():
            every = self._found[i].shared.every
            self._window[:, i] = due[:, i] & ((self._update[:, i] - 1) % every >= every - unroll)
        self._any = [bool(row.any()) for row in self._moves | self._window]
        self._seen = deque(maxlen=(self._seen.maxlen or 1) * max(self._unroll.values()))
        self._made_at: dict[int, dict[int, _Update]] = {}  # tick -> lane -> its update

    def after(self, t: int) -> None:
        """After the updates of a tick: keep those that are looked back through, and move the numbers of lanes whose turn it is."""
        lanes = [i for i in self._unroll if self._window[t, i]]
        if lanes:
            made = self._made(t, lanes)
            self._made_at[t] = {
                i: _Update(
                    start=made.start[i].clone(),
                    params=made.params[i].clone(),
                    first=made.first[i].clone(),
                    second=made.second[i].clone(),
                    grads=made.grads[i].clone(),
                    table=made.table[r].clone(),
                    by=made.by[r].clone(),
                    rate=made.rate[r].clone(),
                    adam=torch.tensor(made.families[r] is optim.Family.ADAM, device=self._device),
                )
                for r, i in enumerate(made.lanes)
            }
        if self._moves[t].any():
            super().after(t)
            oldest = t - (self._seen.maxlen or 0)
            self._made_at = {tick: made for tick, made in self._made_at.items() if tick > oldest}

    def _hypergradient(self, t: int) -> Tensor:
        lanes = [i for i in self._unroll if self._moves[t, i]]
        others = any(self._moves[t, i] for i in self._found if i not in self._unroll)
        out = super()._hypergradient(t) if others else torch.zeros_like(self._value)
        if lanes:
            out[lanes] = self._back_through(t, lanes)[lanes]
        return out

    def _back_through(self, t: int, lanes: Sequence[int]) -> Tensor:
        """The derivative of these lanes, whose batches are full at tick t, (W, R); what it says of others means nothing."""
        ticks = {i: np.flatnonzero(self._due[: t + 1, i])[::-1][: self._unroll[i]].tolist() for i in lanes}
        out = torch.zeros_like(self._value)
        p = self._held_out(t, lanes)  # (W, P)
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        for back in range(max(map(len, ticks.values()))):
            at = {i: on[back] for i, on in ticks.items() if back < len(on)}
            those = list(at)
            made = _stacked([self._made_at[tick][i] for i, tick in at.items()])
            w = torch.zeros_like(p)
            before, w[those], numbers = self._through(made, _Adjoint(p[those], m[those], v[those]), those)
            p[those], m[those], v[those] = before.params, before.first, before.second
            for place, found in numbers.items():
                out[those, place] += found
            point = self._state.params.clone()
            point[those] = made.start
            onward = [i for i in those if back + 1 < len(ticks[i])]
            self._through_gradient(self._batch_at(t, at), w, point, those, onward, p, out)
        out[:, LR_] /= self._base[:, LR_]
        return out

    def _through(
        self, made: _Update, after: _Adjoint, lanes: Sequence[int]
    ) -> tuple[_Adjoint, Tensor, dict[int, Tensor]]:
        """Back through an update alone: the derivative in what there was before it at the same gradient, that in the gradient,
        (n, P), and what numbers of its own have from it, by place, (n,); the learning rate's is times itself."""
        c = [self._spread(x) for x in made.table.unbind(1)]  # K of (n, 1 or P)
        by, rate, adam = self._spread(made.by), self._spread(made.rate), made.adam[:, None]
        d = c[SIGN] * made.grads + c[L2] * made.start
        # Adam: p + by C7 m / (C5 sqrt(v) + C6), with m and v moved towards d and d^2 by C3 and C4.
        root = made.second.sqrt()
        below = torch.where(adam, c[C5] * root + c[C6], 1.0)
        on_first = after.first + by * c[C7] / below * after.params
        falls = torch.where(root > 0, c[C5] * by * c[C7] * made.first / (2 * root * below.square()), 0.0)
        on_second = after.second - falls * after.params
        by_adam = c[C3] * on_first + 2 * c[C4] * d * on_second, (1 - c[C3]) * on_first, (1 - c[C4]) * on_second
        # SGD: p + by C7 (C5 d + C6 m), with m = C3 m + C4 d.
        along = by * c[C7] * after.params
        held = after.first + c[C6] * along
        by_sgd = c[C4] * held + c[C5] * along, c[C3] * held, torch.zeros_like(held)
        on_d, first, second = (torch.where(adam, a, s) for a, s in zip(by_adam, by_sgd, strict=True))
        params = (1 + by * (c[DECAY] - 1)) * after.params + c[L2] * on_d
        w = c[SIGN] * on_d
        decayed = torch.from_numpy(self._decayed[list(lanes)]).to(self._device)
        by_decay = torch.where(rate != 0, -rate * after.params, on_d) * self._spread(decayed)
        numbers = {
            L1_: self._dot(w, made.start.sign()),
            DECAY_: self._dot(by_decay, made.start),
            LR_: self._dot(after.params, made.params - made.start),
        }
        penalties = self._column([self._trials[i].recipe.l2 for i in lanes]).to(w.dtype)
        return _Adjoint(params + penalties * w, first, second), w, numbers

    def _through_gradient(
        self,
        batch: Sequence[Slots],
        w: Tensor,
        point: Tensor,
        lanes: Sequence[int],
        onward: Sequence[int],
        p: Tensor,
        out: Tensor,
    ) -> None:
        """Back through the gradient of a batch at a point: add the Hessian times w to p (W, P) of lanes that go further back, and
        the derivatives in numbers of loss and model to (W, R)."""
        far = self._nudge(point, w)
        for sign in (1.0, -1.0):
            there = self._inputs(point + sign * far * w)
            share = torch.where(far > 0, sign / (2 * far), 0.0)
            for slots in batch:
                if onward:
                    p[onward] += (share * self._passes.training(there, slots, onward))[onward]
                for names in self._mixing.values():
                    found = share.double() * self._passes.by_numbers(names, there, slots, lanes).double()
                    for column, name in enumerate(names):
                        out[lanes, self._numbers[name]] += found[lanes, column]

    def _batch_at(self, t: int, at: Mapping[int, int]) -> list[Slots]:
        """The ticks of the batches that were full at each lane's tick; weights of lanes that have none are 0."""
        out: list[Slots] = []
        inside = dict(at)
        while inside:
            like = self._seen[-1 - (t - max(inside.values()))]
            idx, weights, keys = (torch.zeros_like(x) for x in like)
            for i, tick in inside.items():
                for mine, seen in zip((idx, weights, keys), self._seen[-1 - (t - tick)], strict=True):
                    mine[i] = seen[i]
            out.append((idx, weights, keys))
            inside = {i: tick - 1 for i, tick in inside.items() if self._goes_on[tick, i]}
        return out


def _stacked(updates: Sequence[_Update]) -> _Update:
    """The updates of n lanes as one, with a first axis more."""
    return _Update(*(torch.stack([getattr(u, name) for u in updates]) for name in _Update.__slots__))
