"""Learning rates that move by their hypergradient, per lane and plain: what ``shoal.extend.LearningRate`` asks for.

An update with the learning rate ``a`` is ``p + a u``, with ``u`` the update at the learning rate 1: all of torch's optimizers that
may carry the extension are proportional to it. So the optimizer works on a copy of the parameters with the learning rate 1, which
gives ``u`` without a division; and the derivative of the next batch's loss in ``a`` is ``g . u``, per parameter group.

Glossary: ``rows`` neighbouring lanes of one family and one rule; ``P`` elements of a flat row; ``G`` parameters, told apart where
some lane has several parameter groups, else 1; ``T`` ticks; ``p, g, u`` parameters, gradients and updates, (rows, P).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.extend import LearningRate
from shoal.lanes.kernels import Kernels, Spans
from shoal.lanes.lane import LaneTrial, learning_rate
from shoal.lanes.state import LaneState
from shoal.recipe import Recipe

# What a lane keeps beside its row (``LaneState.own``).
UPDATE, OFFSET = "lr.update", "lr.offset"


def moved(
    offset: Tensor, base: Tensor, dots: tuple[Tensor, ...], step: Tensor, low: Tensor, high: Tensor, rule: str
) -> tuple[Tensor, Tensor]:
    """The rule itself, all in float64 and of one shape, or of shapes that broadcast.

    Args:
        offset: Before the move: a difference, or the logarithm of a factor.
        base: What the schedule says.
        dots: ``g . u``, and for the multiplicative rule ``g . g`` and ``u . u`` as well.
        step: Step size; 0 leaves the offset as it is.
        low, high: Bounds.
        rule: "additive" or "multiplicative".

    Returns:
        The offset, and the learning rate. Where a bound holds the learning rate, the offset stops there with it.
    """
    if rule == "additive":
        offset = offset - torch.where(step > 0, step * dots[0], 0.0)
        rate = torch.clamp(base + offset, low, high)
        return rate - base, rate
    scale = (dots[1] * dots[2]).sqrt()
    cosine = torch.where(scale == 0, 0.0, -dots[0] / scale)  # no gradient or no last update: nothing to go by
    offset = offset + torch.where(step > 0, torch.log1p(step * cosine), 0.0)
    rate = torch.clamp(base * offset.exp(), low, high)
    return torch.where((base > 0) & (rate > 0), (rate / base).log(), offset), rate


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What decides how learning rates move over an epoch: ``R`` of a lane, which are 1 or n.

    ``base`` (T, rows, R), ``step`` (T, rows), ``low``, ``high`` (rows,), ``sense`` and ``of`` (rows, n), ``offset`` (rows, R).
    """

    base: NDArray[np.float64]
    step: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    sense: NDArray[np.float64]
    of: NDArray[np.int64]
    offset: NDArray[np.float64]


class LaneRates:
    """The learning rates of a stretch of lanes over one epoch.

    Args:
        state: The fleet's tensors.
        first: The first of the lanes.
        trials: Those in the lanes, all with the extension and with its rule.
        due: Whose batch is full at which tick, (T, rows).
        kernels: What the two passes over the rows run on.
        at: Where parameters lie.
    """

    def __init__(
        self,
        state: LaneState,
        first: int,
        trials: Sequence[LaneTrial],
        due: NDArray[np.bool_],
        kernels: Kernels,
        at: Spans,
    ) -> None:
        self._kernels, self._at = kernels, at
        layout, device = state.layout, state.flat.device
        i, j, n = first, first + len(trials), len(layout.names)
        extensions = [_asked(t.recipe) for t in trials]
        self.rule = extensions[0].rule
        self._grouped = any(t.groups > 1 for t in trials)
        width = n if self._grouped else 1
        # Groups by parameter: (rows, n), and each group's sense, -1 where the optimizer maximises.
        of = np.stack([np.zeros(n, dtype=np.int64) if t.group_of is None else t.group_of for t in trials])
        sense = np.stack([_senses(t)[of[r]] for r, t in enumerate(trials)])
        base, step = np.ones((*due.shape, width)), np.zeros((*due.shape, 1))
        for r, (t, e) in enumerate(zip(trials, extensions, strict=True)):
            ticks = np.flatnonzero(due[:, r])
            base[ticks, r] = t.base_rate[:, of[r]] if self._grouped else t.base_rate
            step[ticks, r, 0] = np.where(t.updates + np.arange(len(ticks)) >= max(1, e.warmup), e.step, 0.0)

        self._plan = (base, step[:, :, 0], sense, of)

        def on_device(x: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(x)).to(device)

        self._low = on_device(np.array([[e.bounds[0]] for e in extensions]))
        self._high = on_device(np.array([[e.bounds[1]] for e in extensions]))
        self._sense, self._of = on_device(sense), torch.from_numpy(of).to(device)
        self._any, self._all = (np.asarray(x).tolist() for x in (due.any(1), due.all(1)))
        self._p, self._g = state.params[i:j], state.grads[i:j]
        self.update = self.update_of(state)[i:j]
        self._kept = state.own(OFFSET, (n,), torch.float64)[i:j]
        self._offset = self._kept[:, :width].clone()
        self._rate = torch.zeros(len(trials), width, dtype=torch.float64, device=device)
        self._record = torch.zeros(*due.shape, width, dtype=torch.float64, device=device)
        self._trials, self._when, self._first_of = trials, due, of

    @cached_property
    def _by_tick(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Of every tick what the schedule says, step sizes, and whose batch is full, (rows, 1) and (rows,) uint8."""
        base, step = (torch.from_numpy(np.ascontiguousarray(x)) for x in (self._plan[0], self._plan[1][:, :, None]))
        due = torch.from_numpy(np.ascontiguousarray(self._when))
        device = self._offset.device
        columns = (base.to(device), step.to(device), due.to(device)[:, :, None], due.view(torch.uint8))
        return list(zip(*(x.unbind(0) for x in columns), strict=True))

    def before(self, t: int) -> None:
        """Move the learning rates by the gradients of tick t, and hand the parameters to the optimizer."""
        if not self._any[t]:
            return
        norms = self.rule == "multiplicative"
        base, step, due, full = self._by_tick[t]
        dots = self._by_group(self._kernels.take_over(self._at, self._g, self.update, self._p, full, norms))
        offset, rate = moved(self._offset, base, dots, step, self._low, self._high, self.rule)
        if self._all[t]:
            self._offset, self._rate = offset, rate
        else:
            self._offset = torch.where(due, offset, self._offset)
            self._rate = torch.where(due, rate, 0.0)
        self._record[t] = self._rate

    def after(self, t: int) -> None:
        """What the optimizer made of its copy of the parameters is the update at the learning rate 1."""
        if self._any[t]:
            self._kernels.give_back(self._at, self.update, self._p, self._rate, self._by_tick[t][3])

    @property
    def n_lanes(self) -> int:
        return len(self._trials)

    @property
    def n_ticks(self) -> int:
        return len(self._when)

    @property
    def width(self) -> int:
        """Learning rates of a lane, ``R``."""
        return int(self._offset.shape[1])

    def plan(self) -> Plan:
        """All that decides the epoch, for who carries it out elsewhere and hands it over with ``take_back``."""
        base, step, sense, of = self._plan
        low, high = self._low[:, 0].cpu().numpy(), self._high[:, 0].cpu().numpy()
        return Plan(base, step, low, high, sense, of, self._offset.cpu().numpy())

    @staticmethod
    def update_of(state: LaneState) -> Tensor:
        """The last updates of all lanes of a fleet, (lanes, P)."""
        return state.own(UPDATE, (state.layout.size,), state.layout.dtype)

    def take_back(self, offset: NDArray[np.float64], record: NDArray[np.float64]) -> None:
        """Offsets (rows, R) after the epoch, and the learning rates that were used, (T, rows, R); more than R are alike."""
        width = self.width
        self._offset = torch.from_numpy(np.ascontiguousarray(offset[:, :width])).to(self._offset.device)
        self._record = torch.from_numpy(np.ascontiguousarray(record[:, :, :width])).to(self._record.device)

    def finish(self) -> dict[int, tuple[dict[str, tuple[float, ...]], str]]:
        """The epoch is over: by trial, its learning rates at each update by name, and what went wrong with them or ""."""
        self._kept.copy_(self._offset.expand_as(self._kept))
        record = self._record.cpu().numpy()
        out = {}
        for r, trial in enumerate(self._trials):
            rates = record[self._when[:, r], r]  # (updates, 1 or n)
            columns = [int(np.flatnonzero(self._first_of[r] == k)[0]) for k in range(trial.groups)]
            out[trial.spec.key] = named(rates[:, columns] if self._grouped else rates, trial.updates)
        return out

    @property
    def now(self) -> Tensor:
        """The learning rates of the last update, (rows, 1 or n), float64; what they say of rows that were not due means nothing."""
        return self._rate

    def _by_group(self, sums: Tensor) -> tuple[Tensor, ...]:
        """(rows, n, 3) -> three of (rows, 1), or of (rows, n): each parameter then has the sum of its whole group."""
        gu, gg, uu = sums.unbind(2)
        if not self._grouped:
            return self._sense[:, :1] * gu.sum(1, keepdim=True), gg.sum(1, keepdim=True), uu.sum(1, keepdim=True)
        whole = [torch.zeros_like(x).scatter_add_(1, self._of, x).gather(1, self._of) for x in (gu, gg, uu)]
        return self._sense * whole[0], whole[1], whole[2]


class PlainRates:
    """The same for one recipe, around its own optimizer."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._extension = recipe, _asked(recipe)
        self._groups = recipe.optimizer.param_groups
        self._offset = torch.zeros(len(self._groups), dtype=torch.float64)
        self._rate = self._offset
        self._updates: list[dict[int, Tensor]] = [{} for _ in self._groups]
        self._n_updates = 0
        self._record: list[list[float]] = []

    @torch.no_grad()
    def before(self) -> None:
        """Move the learning rates by the gradients that ``backward`` has left in the model."""
        e, dots = self._extension, torch.zeros(3, len(self._groups), dtype=torch.float64)
        for k, (group, held) in enumerate(zip(self._groups, self._updates, strict=True)):
            sense = -1.0 if group.get("maximize", False) else 1.0
            for p in group["params"]:
                u = held.get(id(p))
                if u is not None:  # a penalty may have moved what the loss does not reach: its gradient is zero
                    g = torch.zeros_like(p) if p.grad is None else p.grad
                    both = torch.stack([sense * (g * u).sum(), g.square().sum(), u.square().sum()])
                    dots[:, k] += both.double().cpu()
        base = torch.tensor([float(group["lr"]) for group in self._groups], dtype=torch.float64)
        step = torch.tensor(e.step if self._n_updates >= max(1, e.warmup) else 0.0, dtype=torch.float64)
        low, high = (torch.tensor(bound, dtype=torch.float64) for bound in e.bounds)
        self._offset, self._rate = moved(self._offset, base, tuple(dots), step, low, high, e.rule)
        self._record.append(self._rate.tolist())
        self._n_updates += 1

    @torch.no_grad()
    def step(self) -> None:
        """The optimizer's own step at the learning rate 1, of which each parameter then takes its share."""
        held = [(k, p, p.detach().clone()) for k, g in enumerate(self._groups) for p in g["params"]]
        base = [group["lr"] for group in self._groups]
        for group in self._groups:
            group["lr"] = 1.0
        try:
            self._recipe.optimizer.step()
        finally:
            for group, lr in zip(self._groups, base, strict=True):
                group["lr"] = lr
        for k, p, start in held:
            if p.grad is not None:
                u = self._updates[k][id(p)] = p - start
                p.copy_(start.add_(u, alpha=float(self._rate[k])))

    @property
    def now(self) -> list[float]:
        """The learning rate of each parameter group at the last update."""
        return [float(rate) for rate in self._rate]

    def finish(self) -> tuple[dict[str, tuple[float, ...]], str]:
        """As for lanes, of the one trial."""
        record, self._record = np.array(self._record, dtype=np.float64), []
        return named(record, self._n_updates)


def named(rates: NDArray[np.float64], updates: int) -> tuple[dict[str, tuple[float, ...]], str]:
    """Rates (updates of the epoch, groups) by name, and what went wrong, given how many updates the trial has made now."""
    columns = rates.T.tolist()
    names = ["lr"] if len(columns) == 1 else [f"lr/{k}" for k in range(len(columns))]
    bad = np.flatnonzero(~np.isfinite(rates).all(1))
    why = ""
    if len(bad):
        at = updates - len(rates) + int(bad[0]) + 1
        why = f"the hypergradient of its learning rate was not finite at update {at}"
    return {name: tuple(column) for name, column in zip(names, columns, strict=True)}, why


def _asked(recipe: Recipe) -> LearningRate:
    found = learning_rate(recipe)
    assert found is not None
    return found


def _senses(trial: LaneTrial) -> NDArray[np.float64]:
    """-1 for each group whose optimizer maximises, else 1."""
    return np.array([1.0 - 2.0 * float(g.get("maximize", False)) for g in trial.recipe.optimizer.param_groups])
