"""Hyper-validation gradients of one recipe through its last few updates, around its own optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.data import Split
from shoal.lanes.hypergradient import PlainRates
from shoal.lanes.regularised import _rule as rule
from shoal.lanes.regularised._plain import PlainRegularisers, _along, _dot, _norm, _Vector
from shoal.lanes.regularised._rule import DECAY_, L1_, LR_, RATES_, SMOOTHING_
from shoal.recipe import Batch, Recipe


@dataclass(slots=True)
class _Update:
    """What one update saw and did; lists have one tensor per trainable parameter."""

    number: int  # of the trial, from 1
    start: _Vector
    grads: list[Tensor | None]
    batch: Batch = ()
    keys: Tensor | None = None
    params: _Vector | None = None
    states: list[dict[str, Any]] | None = None
    groups: list[dict[str, Any]] | None = None  # settings of each parameter's group
    rates: list[float] | None = None


class UnrolledPlain(PlainRegularisers):
    """What ``UnrolledLanes`` does, for one recipe in the plain loop."""

    def __init__(self, recipe: Recipe, held_out: Split, seed: int, rates: PlainRates | None) -> None:
        super().__init__(recipe, held_out, seed, rates)
        self._made: list[_Update] = []
        self._at = [self._group(name) for name in self._named]

    @torch.no_grad()
    def before(self) -> None:
        super().before()
        shared = self._asked.shared
        if (self._updates - 1) % shared.every >= shared.every - shared.unroll:
            named = self._named.values()
            grads = [None if p.grad is None else p.grad.detach().clone() for p in named]
            self._made.append(_Update(self._updates, [p.detach().clone() for p in named], grads))

    def after(self, batch: Batch, keys: Tensor) -> None:
        if self._made and self._made[-1].number == self._updates:
            self._keep(self._made[-1], batch, keys)
        super().after(batch, keys)
        if self._asked.moves_after(self._updates):
            self._made = []

    def finish(self) -> tuple[dict[str, tuple[float, ...]], str]:
        self._made = []
        return super().finish()

    def _keep(self, update: _Update, batch: Batch, keys: Tensor) -> None:
        update.batch, update.keys = batch, keys
        update.params = [p.detach().clone() for p in self._named.values()]
        state = self._recipe.optimizer.state
        update.states = [
            {k: x.detach().clone() if isinstance(x, Tensor) else x for k, x in state.get(p, {}).items()}
            for p in self._named.values()
        ]
        update.groups = [{k: x for k, x in self._groups[g].items() if k != "params"} for g in self._at]
        update.rates = [self._rate(g) for g in self._at]

    def _hypergradient(self, batch: Batch, keys: Tensor) -> Tensor:
        out = torch.zeros_like(self._value)
        p = self._held_out()
        m, v = ([torch.zeros_like(x) for x in p] for _ in range(2))
        for update in reversed(self._made):
            p, w = self._through(update, p, m, v, out)
            self._through_gradient(update, w, p, out)
        out[LR_] /= self._base[LR_]
        return out

    def _through(self, update: _Update, p: _Vector, m: _Vector, v: _Vector, out: Tensor) -> tuple[_Vector, _Vector]:
        """Back through torch's SGD or Adam: the derivative before the update at the same gradient, and that in the gradient.

        Moments are written in place, and what the update has of numbers is added to (R,)."""
        assert update.params is not None and update.states is not None
        assert update.groups is not None and update.rates is not None
        before, along = [], []
        for k, (start, g, after) in enumerate(zip(update.start, update.grads, update.params, strict=True)):
            group, state, lr, own = update.groups[k], update.states[k], update.rates[k], p[k]
            if g is None:
                before.append(own)
                along.append(torch.zeros_like(own))
                continue
            apart, decay = group.get("decoupled_weight_decay", False), group["weight_decay"]
            d = g if apart else g + decay * start
            if "betas" in group:
                b1, b2 = group["betas"]
                t, root = float(state["step"]), state["exp_avg_sq"].sqrt()
                below = root / (1 - b2**t) ** 0.5 + group["eps"]
                top = state["exp_avg"] / (1 - b1**t)
                first = m[k] - lr / (1 - b1**t) / below * own
                second = v[k] + torch.where(
                    root > 0, lr * top / below.square() / (2 * root * (1 - b2**t) ** 0.5) * own, 0.0
                )
                on_d = (1 - b1) * first + 2 * (1 - b2) * d * second
                m[k], v[k] = b1 * first, b2 * second
            else:
                momentum, step = group["momentum"], -lr * own
                fresh = update.number == 1
                enters = 1.0 if fresh or not momentum else 1.0 - group["dampening"]
                held = m[k] + (momentum * step if group["nesterov"] else step)
                on_d = enters * held + (step if group["nesterov"] else 0.0)
                m[k] = 0.0 * held if fresh else momentum * held
            out[L1_] += _dot([on_d], [start.sign()])
            out[LR_] += _dot([own], [after - start])
            if self._decays[self._at[k]]:
                out[DECAY_] += _dot([-lr * own if apart else on_d], [start])
            kept = own * (1 - lr * decay) if apart else own + decay * on_d
            before.append(kept + self._recipe.l2 * on_d)
            along.append(on_d)
        return before, along

    def _through_gradient(self, update: _Update, w: _Vector, p: _Vector, out: Tensor) -> None:
        """Back through the batch's gradient: the Hessian times w is added to p, in place, and derivatives in numbers to (R,)."""
        assert update.keys is not None
        point = update.start
        far = float(rule.nudge(_norm(point), _norm(w), point[0].dtype))
        if far == 0:
            return
        onward, weights = update is not self._made[0], self._weights(update.batch)
        for sign in (1.0, -1.0):
            there, share = _along(point, w, sign * far), sign / (2 * far)
            if onward:
                curved = self._gradient(there, update.batch, update.keys, weights, evaluate=False)
                for k, c in enumerate(curved):
                    p[k] = p[k] + share * c
            if bool(self._on[SMOOTHING_]) or bool(self._on[RATES_:].any()):
                numbers, places = self._by_numbers(there, update.batch, update.keys), list(self._numbers.values())
                out[places] += share * numbers[places]
