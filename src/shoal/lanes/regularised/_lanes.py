"""Regularisers of a fleet's lanes that move by a hyper-validation gradient.

Glossary: ``W`` lanes; ``P`` elements of a flat row; ``R`` numbers that may move (``_rule``); ``T`` ticks of the epoch; ``K``
coefficients of an update; ``G`` parameters whose coefficients are told apart, or 1; ``rows`` lanes of one stretch; ``v`` the
hyper-validation gradient, ``w`` the direction along which the training gradient's derivative in each number is asked for, (W, P).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.lanes import optim
from shoal.lanes.hypergradient import LaneRates
from shoal.lanes.kernels import Made, Spans
from shoal.lanes.optim import DECAY, L2
from shoal.lanes.regularised import _rule as rule
from shoal.lanes.regularised._passes import Passes, Slots
from shoal.lanes.regularised._plan import Moved, Plan
from shoal.lanes.regularised._rule import DECAY_, L1_, LR_, Moving, Slopes

if TYPE_CHECKING:
    from shoal.lanes.clip import Shaping
    from shoal.lanes.fleet import Fleet
    from shoal.lanes.lane import LaneTrial

# What a lane keeps beside its row (``LaneState.own``).
KEPT, VALUE = "regulariser.kept", "regulariser.value"


@dataclass(frozen=True, slots=True)
class _Decays:
    """Coefficients of some lanes, and which of those are weight decay that moves."""

    lanes: Sequence[int]  # (rows,)
    table: Tensor  # (T, K, rows, G)
    coupled: Tensor  # (T, rows, G) bool: an update whose L2 is what moves
    apart: Tensor  # likewise, decay that is decoupled from the gradient
    lr: Tensor  # (T, rows, G), as the table has it


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Neighbouring lanes of one family."""

    family: optim.Family
    decays: _Decays
    rates: LaneRates | None


class LaneRegularisers:
    """The regularisers of a fleet's lanes over one epoch.

    Args:
        fleet: Whose lanes; coefficients are tabulated.
        found: What lanes ask for, by lane.
        due, goes_on: Whose batch is full at which tick, and whose an earlier tick has opened, (T, W).
        shaping: What happens to a batch's gradient; has L1's column where some lane moves it.
    """

    def __init__(
        self,
        fleet: Fleet,
        found: Mapping[int, Moving],
        due: NDArray[np.bool_],
        goes_on: NDArray[np.bool_],
        shaping: Shaping | None,
    ) -> None:
        self._fleet, self._shaping = fleet, shaping
        self._found = {i: m.asked for i, m in found.items()}
        self._held = dict(found)
        self._state, self._program, self._layout = fleet.state, fleet.program, fleet.layout
        device = self._device = fleet.state.flat.device
        width = fleet.width
        self._trials: dict[int, LaneTrial] = {i: t for i, t in fleet.active if i in self._found}
        example = next(iter(self._trials.values()))
        self._data = rule.held_out_of(example.recipe, fleet.work.data)
        self._numbers = rule.numbers_at(example.recipe)
        self._log = rule.logarithms(example.recipe).to(device)
        size = len(self._log)

        on = np.zeros((width, size), dtype=bool)
        base, step, low, high = (np.full((width, size), x) for x in (1.0, 0.0, 0.0, 1.0))
        warmup = np.zeros((width, size), dtype=np.int64)
        for i, a in self._found.items():
            for place, (e, value) in a.at.items():
                on[i, place], base[i, place], step[i, place] = True, value, e.step
                warmup[i, place], (low[i, place], high[i, place]) = e.warmup, e.bounds
        self._on, self._base, self._step, self._low, self._high = (
            torch.from_numpy(x).to(device) for x in (on, base, step, low, high)
        )
        self._mixing = rule.numbers_of(name for name, place in self._numbers.items() if on[:, place].any())

        self._update = np.zeros((len(due), width), dtype=np.int64)  # which update of its trial follows the tick, from 1
        self._moves = np.zeros((len(due), width), dtype=bool)
        for i, a in self._found.items():
            self._update[:, i] = self._trials[i].updates + np.cumsum(due[:, i])
            self._moves[:, i] = due[:, i] & (self._update[:, i] % a.shared.every == 0)
        self._any = [bool(row.any()) for row in self._moves]
        self._nth = np.cumsum(self._moves, 0)  # how many moves of the epoch there have been after a tick
        self._due, self._goes_on, self._warmup = due, goes_on, warmup

        shared = {i: a.shared for i, a in self._found.items()}
        self._implicit = self._column([i in shared and shared[i].method == "implicit" for i in range(width)])
        self._scale = self._column([shared[i].scale if i in shared else 0.0 for i in range(width)])
        self._terms = {i: e.terms for i, e in shared.items() if e.method == "implicit"}
        self._spans = Spans(fleet.offsets, fleet.sizes, fleet._owner)
        self._passes = Passes(fleet, self._data)
        self._real = torch.zeros(self._layout.size, dtype=torch.bool, device=device)
        for o, n in self._spans.places:
            self._real[o : o + n] = True
        self._fixed = self._decay_of_groups()  # (W, parameters)
        self._decayed = (self._fixed != 0).numpy(force=True)

        kept = fleet.state.own(KEPT, (3, size), torch.float64)
        fresh = self._column([i in self._trials and self._trials[i].updates == 0 for i in range(width)])
        self._kept = kept.clone()
        self._value = torch.where(fresh, self._base, fleet.state.own(VALUE, (size,), torch.float64))
        self._bad = torch.zeros_like(self._value, dtype=torch.int64)  # the update whose hypergradient was not finite
        # The numbers after so many moves of the epoch, (W, moves + 1, R).
        self._record = self._value[:, None].repeat(1, int(self._nth.max(initial=0)) + 1, 1)
        self._slopes = Slopes.none(self._value)
        self._stretches: list[_Stretch] = []
        self._seen: deque[Slots] = deque(maxlen=longest_batch(goes_on))
        self._write(0)

    @classmethod
    def of(
        cls, fleet: Fleet, due: NDArray[np.bool_], goes_on: NDArray[np.bool_], shaping: Shaping | None
    ) -> LaneRegularisers | None:
        """For the trials in a fleet's lanes; None where none of them asks for anything."""
        found = {i: m for i, t in fleet.active if (m := rule.moving_of(t, fleet.work.data)) is not None}
        return cls(fleet, found, due, goes_on, shaping) if found else None

    # -- what the fleet's epoch tells -----------------------------------------------------------------------------------

    def follow(self, family: optim.Family, first: int, table: Tensor, rates: LaneRates | None) -> frozenset[int]:
        """Learn of a stretch's coefficients, which are written to whenever weight decay moves.

        Args:
            family: Of the stretch.
            first: Its first lane.
            table: (T, K, rows, G).
            rates: What moves its learning rates, if anything.

        Returns:
            Which optional operations its updates need, beside what the table says.
        """
        decays = self._decays_in(range(first, first + table.shape[2]), table)
        self._stretches.append(_Stretch(family, decays, rates))
        return frozenset({L2, DECAY} if decays.coupled.any() or decays.apart.any() else ())

    @cached_property
    def _start(self) -> Tensor:
        """Where the latest updates began, (W, P)."""
        return torch.zeros_like(self._state.params)

    @cached_property
    def _grads(self) -> Tensor:
        """The gradients that they saw, (W, P)."""
        return torch.zeros_like(self._state.params)

    def plan(self, groups: int, unused: Sequence[int]) -> Plan:
        """What compiled ticks need to know in order to move the numbers themselves.

        Args:
            groups: Parameters whose coefficients are told apart, or 1.
            unused: Those that the loss does not reach.
        """
        ticks, width = self._due.shape
        n_moves, size = self._record.shape[1] - 1, rule.batch_size(self._data)
        update = np.ones((width, n_moves), dtype=np.int64)
        index = np.zeros((width, n_moves, size), dtype=np.int64)
        weights, keys = np.ones(index.shape), np.zeros(index.shape, dtype=np.int32)
        aimed, rate = np.zeros((width, groups), dtype=bool), np.ones((width, ticks, groups))
        apart = np.zeros(width, dtype=bool)
        for i, trial in self._trials.items():
            when = self._update[self._moves[:, i], i]
            k = len(when)
            update[i, :k] = when
            if k:
                index[i, :k], weights[i, :k], keys[i, :k] = self._hyper_validation(i, int(when[0]), k)
            rate[i, self._due[:, i]] = trial.base_rate[:, _groups(trial, groups)]
            if DECAY_ in self._found[i].at:
                aimed[i], apart[i] = self._decaying_groups(trial, groups, unused), not _is_coupled(trial)
        every = [self._found[i].shared.every if i in self._found else 1 for i in range(width)]
        terms = [self._terms.get(i, 0) for i in range(width)]
        return Plan(
            np.where(self._moves, self._nth - 1, -1).T,
            update,
            np.array(every),
            np.array(terms),
            self._scale[:, 0].double().numpy(),
            self._data.tensors,
            index,
            weights,
            keys,
            self._on.numpy(),
            self._base.numpy(),
            self._step.numpy(),
            self._low.numpy(),
            self._high.numpy(),
            self._warmup,
            self._log.numpy(),
            aimed,
            apart,
            rate,
            self._decayed,
            self._fixed.double().numpy(),
            self._kept.numpy(),
            self._value.numpy(),
            dict(self._numbers),
        )

    def take_back(self, moved: Moved) -> None:
        """Compiled ticks have moved the numbers."""
        self._kept, self._value, self._record = map(torch.from_numpy, (moved.kept, moved.value, moved.record))
        self._slopes = Slopes(torch.from_numpy(moved.sums), torch.from_numpy(moved.counts))
        self._bad = torch.from_numpy(moved.bad)
        self._write_numbers()

    def _decays_in(self, lanes: Sequence[int], table: Tensor) -> _Decays:
        """What weight decay that moves is in a table, (T, K, rows, G), from now on."""
        ticks, _, rows, groups = table.shape
        coupled, apart = (np.zeros((ticks, rows, groups), dtype=bool) for _ in range(2))
        lr = np.ones((ticks, rows, groups))
        for r, lane in enumerate(lanes):
            trial = self._trials.get(lane)
            if trial is None:
                continue
            when = np.flatnonzero(self._due[:, lane])
            if trial.rule == 0:  # else the table has the learning rate 1
                lr[when, r] = trial.base_rate[:, _groups(trial, groups)]
            if DECAY_ in self._found[lane].at:
                where = self._decaying_groups(trial, groups, self._program.unused)
                aimed = coupled if _is_coupled(trial) else apart
                aimed[when[:, None], r, np.flatnonzero(where)] = True
        tensors = (torch.from_numpy(x).to(table.device) for x in (coupled, apart, lr))
        found = _Decays(lanes, table, *tensors)
        self._write_decay(found, 0)
        return found

    def saw(self, slots: Slots) -> None:
        """The samples, weights and keys of a tick, (W, q) each."""
        self._seen.append(slots)

    def before(self, t: int) -> None:
        """Before the updates of a tick: keep where they start, and the gradients that they see."""
        if self._any[t]:
            self._start.copy_(self._state.params)
            self._grads.copy_(self._state.grads if self._shaping is None else self._shaping.shaped)

    def after(self, t: int) -> None:
        """After the updates of a tick: move the numbers of the lanes whose turn it is."""
        if not self._any[t]:
            return
        slope = self._hypergradient(t)
        on = self._on & self._column(self._moves[t].tolist())  # (W, R)
        finite = torch.isfinite(slope)
        self._slopes.add(slope, on)
        update = torch.from_numpy(self._update[t]).to(self._device)[:, None]
        self._bad = torch.where(on & ~finite & (self._bad == 0), update, self._bad)
        resting = torch.from_numpy(self._update[t][:, None] <= self._warmup).to(self._device)
        every = [self._found[i].shared.every if i in self._found else 1 for i in range(len(on))]
        count = (update // self._column(every)).clamp(min=1).double()
        kept, value = rule.moved(
            (self._kept[:, 0], self._kept[:, 1], self._kept[:, 2]),
            self._value,
            torch.where(finite, slope, 0.0),
            count,
            torch.where(resting, 0.0, self._step),
            self._base,
            (self._low, self._high),
            self._log,
        )
        self._kept = torch.where(on[:, None], torch.stack(kept, 1), self._kept)
        self._value = torch.where(on, value, self._value)
        those = np.flatnonzero(self._moves[t])
        self._record[those, self._nth[t, those]] = self._value[those]
        self._write(t + 1)

    def finish(self) -> dict[int, tuple[dict[str, tuple[float, ...]], str]]:
        """The epoch is over: by trial, its numbers at each update by name, and what went wrong with them or ""."""
        self._state.own(KEPT, tuple(self._kept.shape[1:]), torch.float64).copy_(self._kept)
        self._state.own(VALUE, tuple(self._value.shape[1:]), torch.float64).copy_(self._value)
        record, before = self._record.cpu().numpy(), self._nth - self._moves
        bad = self._bad.cpu().numpy()
        out = {}
        for i, a in self._found.items():
            at = before[self._due[:, i], i]  # a move shows from the next update on
            paths = {name: tuple(record[i, at, place].tolist()) for place, name in a.names.items()}
            paths |= self._slopes.of(a, (i,))
            out[self._trials[i].spec.key] = (paths, rule.why(a, bad[i].tolist()))
        return out

    # -- the derivative -------------------------------------------------------------------------------------------------

    def _hypergradient(self, t: int) -> Tensor:
        """Of the hyper-validation loss in every number, (W, R); what it says of lanes whose turn it is not means nothing."""
        lanes = [i for i in self._found if self._moves[t, i]]
        v = self._held_out(t, lanes)
        out, made = torch.zeros_like(self._value), self._made(t, lanes)
        lanes = list(made.lanes)
        w, sums = self._fleet.kernels.through_update(self._spans, made, v)
        for k, place in enumerate((L1_, DECAY_, LR_)):
            out[lanes, place] = sums[:, k]
        out[:, LR_] /= self._base[:, LR_]
        distant = [i for i in lanes if i in self._terms]
        point = self._start
        if distant:
            point = self._start.clone()
            point[distant] = self._state.params[distant]
            implicit = self._neumann(t, v, distant)
            w[distant] = implicit[distant]
            for i in distant:
                out[i, L1_] = self._dot(w[i : i + 1], point[i : i + 1].sign())
                out[i, DECAY_] = self._dot(w[i : i + 1] * (self._spread(self._fixed[i : i + 1]) != 0), point[i : i + 1])
        if self._mixing:
            squares = torch.ones(2, len(v), dtype=torch.float64, device=v.device)
            squares[:, lanes] = sums[:, [4, 3]].T
            for k, x in enumerate((point, w) if distant else ()):
                squares[k, distant] = self._dot(x[distant], x[distant])
            norms = squares.sqrt()[:, :, None]
            far = rule.nudge(norms[0], norms[1], v.dtype).to(v.dtype)
            self._mixed(t, w, point, far, lanes, out)
        return out

    def _made(self, t: int, lanes: Sequence[int]) -> Made:
        """The updates of tick t, of lanes in the order of their stretches."""
        wanted, dtype = set(lanes), self._layout.dtype
        rows = [(s, [r for r, i in enumerate(s.decays.lanes) if i in wanted]) for s in self._stretches]
        rows = [(s, at) for s, at in rows if at]
        tables, by, apart = [], [], []
        for s, at in rows:
            rate = (s.decays.lr[t] if s.rates is None else s.rates.now)[at].to(dtype)  # (n, 1 or G)
            n_groups = s.decays.table.shape[3]
            tables.append(s.decays.table[t][:, at].movedim(1, 0))
            by.append((torch.ones_like(rate) if s.rates is None else rate).expand(-1, n_groups))
            decoupled = s.decays.apart[t][at].any(1, keepdim=True)
            apart.append(torch.where(decoupled, rate, 0.0).expand(-1, n_groups))
        those = [s.decays.lanes[r] for s, at in rows for r in at]
        return Made(
            those,
            [s.family for s, at in rows for _ in at],
            self._start,
            self._state.params,
            self._state.first,
            self._state.second,
            self._grads,
            torch.cat(tables),
            torch.cat(by),
            torch.cat(apart),
            self._decayed[those],
        )

    def _held_out(self, t: int, lanes: Sequence[int]) -> Tensor:
        """The gradient of each lane's hyper-validation batch, (W, P)."""
        size, width = rule.batch_size(self._data), self._fleet.width
        idx, keys = np.zeros((width, size), dtype=np.int64), np.zeros((width, size), dtype=np.int32)
        weights = np.ones((width, size))
        for i in lanes:
            idx[i : i + 1], weights[i : i + 1], keys[i : i + 1] = self._hyper_validation(i, int(self._update[t, i]))
        slots = (
            torch.from_numpy(idx).to(self._device),
            torch.from_numpy(weights).to(self._device, self._layout.dtype),
            torch.from_numpy(keys).to(self._device),
        )
        return self._passes.held_out(self._state.inputs, slots, lanes)

    def _hyper_validation(
        self, lane: int, update: int, count: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
        """The samples of a lane's move after an update and of those that follow it, (count, q), what they count for, and keys."""
        held = self._held[lane]
        rows = rule.rows_of(self._trials[lane].spec.seed, update // held.asked.shared.every, self._data, count)
        whole = np.ones((len(rows), 1)) if held.shares is None else held.shares[rows].sum(1, keepdims=True)
        return rows, np.where(whole > 0, 1.0 / np.where(whole > 0, whole, 1.0), np.inf), held.keys[rows]

    def _neumann(self, t: int, v: Tensor, lanes: Sequence[int]) -> Tensor:
        """-scale * sum over k of (1 - scale H)^k v, (W, P), with H the training loss's Hessian, L2 included."""
        scale = self._scale.to(v.dtype)
        moving = (self._fixed != 0) & self._on[:, DECAY_ : DECAY_ + 1]
        decay = self._spread(torch.where(moving, self._value[:, DECAY_ : DECAY_ + 1].to(v.dtype), self._fixed))
        term, total = v, v
        terms = self._column([self._terms.get(i, 0) for i in range(len(v))])
        for k in range(max(self._terms[i] for i in lanes)):
            term = term - scale * (self._curvature(t, term, lanes) + decay * term)
            total = torch.where(k < terms, total + term, total)
        return -scale * total

    def _curvature(self, t: int, along: Tensor, lanes: Sequence[int]) -> Tensor:
        """The latest batch's Hessian times a direction, (W, P)."""
        point = self._state.params
        far = self._nudge(point, along)
        sides = []
        for sign in (1.0, -1.0):
            there = self._inputs(point + sign * far * along)
            sides.append(sum(self._passes.training(there, slots, lanes) for slots in self._batch(t)))
        return torch.where(far > 0, (sides[0] - sides[1]) / (2 * far), 0.0)

    def _mixed(self, t: int, w: Tensor, point: Tensor, far: Tensor, lanes: Sequence[int], out: Tensor) -> None:
        """Fill in numbers of loss and model: the derivative along w of the training loss's derivative in each, in (W, R).

        It is a difference between ``far`` (W, 1) times w one way and the other.
        """
        for sign in (1.0, -1.0):
            there = self._inputs(point + sign * far * w)
            share = torch.where(far > 0, sign / (2 * far), 0.0).double()
            for slots in self._batch(t):
                for names in self._mixing.values():
                    found = self._passes.by_numbers(names, there, slots, lanes)
                    out[:, [self._numbers[name] for name in names]] += share * found.double()

    def _batch(self, t: int) -> list[Slots]:
        """The ticks of the batches that are full at tick t; the weights of lanes that a tick does not belong to are 0."""
        inside = np.ones(self._fleet.width, dtype=bool)
        out: list[Slots] = []
        for back, (idx, weights, keys) in enumerate(reversed(self._seen)):
            if back:
                inside &= self._goes_on[t - back + 1]
                if not (inside & self._moves[t]).any():
                    break
                weights = torch.where(self._column(inside.tolist()), weights, 0.0)
            out.append((idx, weights, keys))
        return out

    # -- small things ---------------------------------------------------------------------------------------------------

    def _write(self, t: int) -> None:
        """Let the numbers hold from tick t on."""
        value, on = self._value, self._on
        if self._shaping is not None and self._shaping.l1 is not None:
            l1 = self._shaping.l1
            l1.copy_(torch.where(on[:, L1_ : L1_ + 1], value[:, L1_ : L1_ + 1].to(l1.dtype), l1))
        self._write_numbers()
        for s in self._stretches:
            self._write_decay(s.decays, t)

    def _write_numbers(self) -> None:
        """The tensors of lanes that hold numbers."""
        value, on = self._value, self._on
        for name, place in self._numbers.items():
            number = self._state.extra.get(name)
            if number is not None:
                number.copy_(torch.where(on[:, place], value[:, place].to(number.dtype), number))
        if self._mixing:
            self._program.refresh(self._program.uses)

    def _write_decay(self, d: _Decays, t: int) -> None:
        if not (d.coupled.any() or d.apart.any()):
            return
        decay = self._value[list(d.lanes), DECAY_ : DECAY_ + 1]  # (rows, 1)
        for column, where, number in ((L2, d.coupled, decay), (DECAY, d.apart, 1.0 - d.lr[t:] * decay)):
            held = d.table[t:, column]
            held.copy_(torch.where(where[t:], number.to(held.dtype), held))

    def _decaying_groups(self, trial: LaneTrial, groups: int, unused: Sequence[int]) -> NDArray[np.bool_]:
        """Which parameters of a trial are decayed, (G,)."""
        decays = np.array([g["weight_decay"] != 0 for g in trial.recipe.optimizer.param_groups])[_groups(trial, groups)]
        if groups > 1 and unused and not trial.recipe.l1:
            decays[list(unused)] = False
        return decays

    def _decay_of_groups(self) -> Tensor:
        """Weight decay of every parameter as its group has it, (W, parameters)."""
        n = len(self._layout.names)
        out = np.zeros((self._fleet.width, n))
        for i, trial in self._trials.items():
            decays = np.array([float(g["weight_decay"]) for g in trial.recipe.optimizer.param_groups])
            out[i] = decays[_groups(trial, n)]
        return torch.from_numpy(out).to(self._device, self._layout.dtype)

    def _column(self, values: Sequence[float | bool]) -> Tensor:
        return torch.tensor(values, device=self._device)[:, None]

    def _spread(self, x: Tensor) -> Tensor:
        """(rows, 1 or n) -> (rows, 1 or P)."""
        return x if x.shape[1] == 1 else x.index_select(1, self._fleet._owner)

    def _inputs(self, params: Tensor) -> list[Tensor]:
        return [*self._layout.views(params), *self._state.inputs[len(self._layout.names) :]]

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """(W,) in float64; padding may hold anything."""
        return torch.where(self._real, a * b, 0.0).sum(1, dtype=torch.float64)

    def _nudge(self, point: Tensor, along: Tensor) -> Tensor:
        """(W, 1)."""
        norms = [self._dot(x, x).sqrt()[:, None] for x in (point, along)]
        return rule.nudge(norms[0], norms[1], point.dtype).to(point.dtype)


def _groups(trial: LaneTrial, groups: int) -> NDArray[np.int64]:
    """Which parameter group each told-apart parameter belongs to, (G,)."""
    return np.zeros(groups, dtype=np.int64) if trial.group_of is None or groups == 1 else trial.group_of


def _is_coupled(trial: LaneTrial) -> bool:
    return not any(g.get("decoupled_weight_decay", False) for g in trial.recipe.optimizer.param_groups)


def longest_batch(goes_on: NDArray[np.bool_]) -> int:
    """Ticks of the longest batch."""
    longest = run = np.zeros(goes_on.shape[1], dtype=np.int64)
    for row in goes_on:
        run = np.where(row, run + 1, 0)
        longest = np.maximum(longest, run)
    return int(longest.max(initial=0)) + 1
