"""What a fleet runs Shoal's own operations on: activations that differ between lanes, dropout masks, optimizer updates.

``TorchKernels`` are torch's operators, on any device and dtype. ``shoal.lanes.native`` does the same in fewer passes.

Glossary: ``T`` ticks of an epoch; ``K`` coefficients of an update; ``P`` elements of a flat row; ``G`` parameters whose
coefficients are told apart, or 1; ``rows`` neighbouring lanes of one family; ``q`` samples of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes import optim
from shoal.lanes.activations import apply_runs, apply_runs_backward
from shoal.lanes.crossentropy import gradient_of, loss_of
from shoal.lanes.gates import Gates, TorchGates
from shoal.lanes.rng import mask_of

Runs = Sequence[tuple[int, int, int]]  # (kind, first lane, one past the last)


@dataclass(frozen=True, slots=True)
class Spans:
    """Where each of n parameters lies in a flat row: ``offsets`` and ``sizes`` (n,) int64 on the host, ``owner`` (P,)."""

    offsets: Tensor
    sizes: Tensor
    owner: Tensor

    @property
    def places(self) -> list[tuple[int, int]]:
        """Each parameter's first element and how many it has."""
        return list(zip(self.offsets.tolist(), self.sizes.tolist(), strict=True))

    def spread(self, x: Tensor) -> Tensor:
        """(1 or n,) -> (1 or P,)."""
        return x if len(x) == 1 else x.index_select(0, self.owner)


@dataclass(frozen=True, slots=True)
class Gradients:
    """Where a fleet's gradients are added up over an epoch.

    ``flat`` (lanes, P), of which ``views`` are the parameters' own, (lanes, *shape) each; parameter k has ``sizes[k]``
    elements from ``offsets[k]`` on. ``goes_on`` (T, lanes) uint8 says which lanes add to what earlier ticks of their batch have
    left; the others begin anew. ``shape(t)``, if anything is to be done to a whole batch's gradient, leaves it in the updates' own
    buffer. ``seen(t, parts)``, if anything is to be known of a tick's own gradients, comes first; ``after(t)`` follows the updates.
    """

    flat: Tensor
    views: Sequence[Tensor]
    offsets: Tensor
    sizes: Tensor
    goes_on: Tensor
    shape: Callable[[int], None] | None
    after: Callable[[int], None] | None = None
    seen: Callable[[int, Sequence[Tensor]], None] | None = None


@dataclass(frozen=True, slots=True)
class Updates:
    """The updates of neighbouring lanes of one family over an epoch, the first of which is lane ``first``.

    ``buffers`` are parameters, first moment, second moment, mean gradient and gradients, (rows, P) each; ``table`` (T, K, rows, G)
    the coefficients; ``due`` (T, rows) uint8 says whose batch is full; ``uses`` which optional operations the table needs;
    ``owner`` (P,) maps elements to their parameter. ``own``, for a family that is more than coefficients, carries a tick out.
    """

    family: optim.Family
    first: int
    buffers: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    table: Tensor
    due: Tensor
    uses: frozenset[int]
    owner: Tensor
    own: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """Updates of some of a fleet's W lanes that have just been made, to be differentiated in the gradients that they saw.

    Attributes:
        lanes, families: Which n of them, and whether each is SGD or Adam.
        start, params, first, second, grads: Where the updates started, what they led to, and what they saw, (W, P).
        table: Coefficients, (n, K, G).
        by: What an update was multiplied by after all, (n, G).
        rate: Of weight decay that is decoupled from the gradient; 0 where it is not, (n, G).
        decayed: Which parameters are decayed, (n, parameters).
    """

    lanes: Sequence[int]
    families: Sequence[optim.Family]
    start: Tensor
    params: Tensor
    first: Tensor
    second: Tensor
    grads: Tensor
    table: Tensor
    by: Tensor
    rate: Tensor
    decayed: NDArray[np.bool_]


Advance = Callable[[int, Sequence[Tensor]], None]


class Kernels(Gates, Protocol):
    """Where a fleet's own operations run. ``tier`` is what the journal calls it."""

    @property
    def tier(self) -> str: ...

    def forward(self, x: Tensor, runs: Runs) -> Tensor:
        """Activations, run by run: x (lanes, ...) -> (lanes, ...)."""
        ...

    def backward(self, grad: Tensor, x: Tensor, y: Tensor, runs: Runs) -> Tensor:
        """Their gradient: grad, x, y (lanes, ...) -> (lanes, ...)."""
        ...

    def take_over(self, at: Spans, g: Tensor, u: Tensor, p: Tensor, due: Tensor, norms: bool) -> Tensor:
        """g, u, p (rows, P), due (rows,) uint8: u becomes p in rows that are due. Returns what g and the old u add up to in each
        parameter, (rows, n, 3) in float64: g u, and with ``norms`` also g g and u u. What it says of other rows means nothing."""
        ...

    def give_back(self, at: Spans, u: Tensor, p: Tensor, rate: Tensor, due: Tensor) -> None:
        """u, p (rows, P), rate (rows, 1 or n): in rows that are due, u becomes u - p, and p moves by its rate times that."""
        ...

    def through_update(self, at: Spans, made: Made, v: Tensor) -> tuple[Tensor, Tensor]:
        """v (W, P), the gradient of something after the updates, times the derivative of each in its own gradient, (W, P); and the
        derivatives of that something in L1, in weight decay, and in the learning rate, times that, with the squared norms of the
        former and of where the updates started: (n, 5) in float64."""
        ...

    def mask(self, keys: Tensor, element: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        """Dropout: keys (lanes, q), element (n,), threshold and scale (lanes,) -> (lanes, q, n), scale where kept, else 0."""
        ...

    def loss(
        self, scores: Tensor, target: Tensor, weight: Tensor | None, smoothing: Tensor | None, ignore: int
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy per sample, and log p; shapes as in ``shoal.lanes.crossentropy``."""
        ...

    def loss_backward(
        self,
        grad: Tensor,
        log_p: Tensor,
        target: Tensor,
        weight: Tensor | None,
        smoothing: Tensor | None,
        ignore: int,
    ) -> Tensor:
        """Its gradient in the scores, (lanes, q, C)."""
        ...

    def advance(self, gradients: Gradients, updates: Sequence[Updates]) -> Advance:
        """A function of a tick and its gradients, (lanes, *shape) each: adds them up and carries out the updates that are due."""
        ...


class TorchKernels(TorchGates):
    """Torch's own operators."""

    tier = "traced"

    def forward(self, x: Tensor, runs: Runs) -> Tensor:
        return apply_runs(x, runs)

    def backward(self, grad: Tensor, x: Tensor, y: Tensor, runs: Runs) -> Tensor:
        return apply_runs_backward(grad, x, y, runs)

    def take_over(self, at: Spans, g: Tensor, u: Tensor, p: Tensor, due: Tensor, norms: bool) -> Tensor:
        places = at.places
        out = torch.zeros(len(p), len(places), 3, dtype=torch.float64, device=p.device)
        for k, (a, b) in enumerate([(g, u), (g, g), (u, u)] if norms else [(g, u)]):
            product = a * b
            out[:, :, k] = torch.stack([product[:, o : o + n].sum(1) for o, n in places], 1)
        if bool(due.all()):
            u.copy_(p)
        else:
            torch.where(due.bool()[:, None].to(p.device), p, u, out=u)
        return out

    def give_back(self, at: Spans, u: Tensor, p: Tensor, rate: Tensor, due: Tensor) -> None:
        rate = rate.to(p.dtype)
        if rate.shape[1] > 1:
            rate = rate.index_select(1, at.owner)  # (rows, P)
        if bool(due.all()):
            p.addcmul_(u.sub_(p), rate)
        else:
            on = due.bool()[:, None].to(p.device)
            torch.where(on, u - p, u, out=u)
            torch.where(on, torch.addcmul(p, u, rate), p, out=p)

    def through_update(self, at: Spans, made: Made, v: Tensor) -> tuple[Tensor, Tensor]:
        w, out = torch.zeros_like(v), torch.zeros(len(made.lanes), 5, dtype=torch.float64, device=v.device)
        # Lane by lane: a row stays in the nearest caches, and no sum depends on who else moves.
        for r, i in enumerate(made.lanes):
            c, (by, rate) = [at.spread(x) for x in made.table[r]], (at.spread(x[r]) for x in (made.by, made.rate))
            start, along = made.start[i], v[i]
            if made.families[r] is optim.Family.ADAM:
                g = c[optim.SIGN] * made.grads[i] + c[optim.L2] * start
                root = made.second[i].sqrt()
                below = c[optim.C5] * root + c[optim.C6]
                falls = torch.where(root > 0, g * made.first[i] * (c[optim.C5] * c[optim.C4]) / root, 0.0)
                slope = by * c[optim.C7] * (c[optim.C3] - falls / below) / below
            else:
                slope = by * c[optim.C7] * (c[optim.C5] + c[optim.C6] * c[optim.C4])
            w[i] = along * slope
            decaying = torch.where(rate != 0, -rate * along, w[i]) * start
            each = (w[i] * start.sign(), decaying, along * (made.params[i] - start), w[i] * w[i], start * start)
            for k, product in enumerate(each):
                parts = [product[o : o + n].sum(dtype=torch.float64) for o, n in at.places]
                out[r, k] = sum(x for x, decays in zip(parts, made.decayed[r], strict=True) if k != 1 or decays)
        return w, out

    def mask(self, keys: Tensor, element: Tensor, threshold: Tensor, scale: Tensor) -> Tensor:
        return mask_of(keys, element, threshold, scale)

    loss = staticmethod(loss_of)
    loss_backward = staticmethod(gradient_of)

    def advance(self, gradients: Gradients, updates: Sequence[Updates]) -> Advance:
        flat, views = gradients.flat, list(gradients.views)
        adds = gradients.goes_on.any(1).tolist()
        keep = gradients.goes_on.to(flat.device, flat.dtype)[:, :, None].unbind(0)
        steps = [(u.due.any(1).tolist(), self.updater(u)) for u in updates]

        def advance(t: int, parts: Sequence[Tensor]) -> None:
            if gradients.seen is not None:
                gradients.seen(t, parts)
            if adds[t]:
                flat.mul_(keep[t])
                torch._foreach_add_(views, list(parts))
            else:
                torch._foreach_copy_(views, list(parts))
            if gradients.shape is not None:
                gradients.shape(t)
            for due, update in steps:
                if due[t]:
                    update(t)
            if gradients.after is not None:
                gradients.after(t)

        return advance

    def updater(self, u: Updates) -> Callable[[int], None]:
        """A function that carries out one stretch's updates of a tick."""
        if u.own is not None:
            return u.own
        rows = u.table.flatten(0, 1).unbind(0)  # T x K tensors (rows, G)
        step = optim.UPDATES[u.family]

        def update(t: int) -> None:
            c: Sequence[Tensor] = rows[t * optim.K : (t + 1) * optim.K]
            if u.table.shape[-1] > 1:
                c = [x.index_select(-1, u.owner) for x in c]  # (rows, P) each
            step(*u.buffers, c, u.uses)

        return update
