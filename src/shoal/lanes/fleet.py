"""A fleet: lanes of one signature that step together, from admission to epoch results.

Glossary: ``lanes`` the width; ``T`` ticks of this epoch; ``q`` slots of a micro-batch; ``K`` coefficients; ``G`` parameter groups
told apart (1, or one per parameter tensor when some lane has several).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data import Datasets
from shoal.errors import blame
from shoal.extend import shapes_of
from shoal.lanes import averaging, distance, optim
from shoal.lanes.activations import runs_of
from shoal.lanes.by_fold import by_fold
from shoal.lanes.clip import Shaping
from shoal.lanes.compiled import Compilation
from shoal.lanes.compiled._moves import Moves
from shoal.lanes.compiled._moving import Rates
from shoal.lanes.compiled._runner import Runner, obstacle, runner
from shoal.lanes.criteria import SMOOTHING, is_known, scale_of, used, wants_classes
from shoal.lanes.graph import Blueprint
from shoal.lanes.hypergradient import LaneRates
from shoal.lanes.kernels import Advance, Gradients, Kernels, Spans, TorchKernels, Updates
from shoal.lanes.lane import LaneTrial, Measured, evaluation_chunk, evaluation_weight, has_shapes, smooths
from shoal.lanes.lift import lift_values
from shoal.lanes.max_norm import MaxNorm
from shoal.lanes.noise_scale import KEPT, LaneNoise, batch_size, size_of
from shoal.lanes.parts import Parts, Rows
from shoal.lanes.probe import output_classes
from shoal.lanes.regularised import LaneRegularisers
from shoal.lanes.state import LaneRow, LaneState
from shoal.lanes.step import Layout, Program, values_by_name
from shoal.lanes.tables import first_second
from shoal.lanes.threads import kernel_threads, threads
from shoal.lanes.unrolled import lane_regularisers
from shoal.metrics import Meter, Metric
from shoal.recipe import Recipe

# By trial: what its extensions moved, by name, and what went wrong with it or "".
Moved = dict[int, tuple[dict[str, tuple[float, ...]], str]]
_NOTHING: dict[str, tuple[float, ...]] = {}  # one for all epochs in which nothing moved: rows hold on to it
_RULES = 3  # ways in which a learning rate may move, none included; see ``LaneTrial.rule``
# Only this many sample slots are tabulated at once, so that an epoch of a million samples needs no gigabyte of indices.
_SEGMENT_SLOTS = 2_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """What all fleets of a study share: the data, what is measured on it, and what parts trials have where they have several.

    Where nobody is ``judged``, nothing is measured on the validation split, and its loss is 0.
    """

    data: Datasets
    metrics: tuple[Metric, ...]
    device: torch.device
    parts: Parts | None = None
    judged: bool = True

    def rows(self, part: int) -> tuple[Rows | None, Rows | None]:
        """Rows that a part of a trial trains on and is validated on; None for all of the split."""
        return (None, None) if self.parts is None else self.parts.rows(part)


def tensors_of(recipe: Recipe) -> dict[str, Tensor]:
    """Everything of a recipe that a lane holds, by name."""
    out: dict[str, Tensor] = {**dict(recipe.model.named_parameters()), **dict(recipe.model.named_buffers())}
    out.update(lift_values(recipe.model))
    out.update(values_by_name(recipe))
    return out


def example_of(template: Recipe, spare: Callable[[], Recipe], work: Work) -> dict[str, Tensor]:
    """One lane's tensors, for shapes and dtypes: class weights for every class, also where the template has none.

    Args:
        template: Not lifted yet.
        spare: Makes a recipe like it, to look at what its model gives.
        work: Data to look with.
    """
    like = {name: t.detach().clone() for name, t in tensors_of(template).items()}
    if wants_classes(template.loss):
        with contextlib.suppress(
            Exception
        ):  # a forward pass that raises does so again when it is traced, which says why
            recipe = spare()
            recipe.model.to(work.device)
            like["loss.weight"] = like["loss.weight"].repeat(output_classes(recipe, work.data.train.tensors))
    return like


class Fleet:
    """Lanes of one signature that step together.

    Args:
        number: The fleet's number in the journal.
        template: A lifted template recipe (``Program.prepare``).
        layout: The signature's layout.
        width: Lanes.
        quantum: Slots per micro-batch; for an exact signature, the batch size itself.
        exact: Whether batches must be whole (layers mix samples, or the loss is not a sum over samples).
        work: Data and metrics.
        like: One lane's tensors by name, for shapes and dtypes.
        blueprints: What fleets of the signature have traced so far, shared between them.
    """

    def __init__(
        self,
        number: int,
        template: Recipe,
        layout: Layout,
        width: int,
        quantum: int,
        exact: bool,
        work: Work,
        like: Mapping[str, Tensor],
        blueprints: dict[tuple[str, int], Blueprint | None] | None = None,
    ) -> None:
        self.number, self.width, self.quantum, self.exact, self.work = number, width, quantum, exact, work
        self.layout = layout
        self.kernels: Kernels = TorchKernels()
        self.compiled: Compilation | None = None  # with its library there
        self.program = Program(
            template,
            layout,
            width,
            lambda: self.kernels,
            self.runs,
            {} if blueprints is None else blueprints,
            lambda w: LaneState(layout, w, like, work.device).inputs,
        )
        self.state = LaneState(layout, width, like, work.device)
        self.lanes: list[LaneTrial | None] = [None] * width
        self._runs: dict[str, list[tuple[int, int, int]]] = {}
        self._kind_names = [name for name in layout.lifted if name.endswith(".kind")]
        self._owner = torch.zeros(layout.size, dtype=torch.int64, device=work.device)  # element -> parameter
        for k, (o, s) in enumerate(zip(layout.offsets, layout.shapes, strict=True)):
            self._owner[o : o + s.numel()] = k
        inputs = work.data.train.tensors[:-1]
        self.n_threads = torch.get_num_threads()  # that may share the lanes
        self.kernel_threads = kernel_threads(layout.size, width, quantum, inputs)
        self.offsets = torch.tensor(layout.offsets)
        self.sizes = torch.tensor([s.numel() for s in layout.shapes])
        self.arrange()

    def runs(self, name: str) -> list[tuple[int, int, int]]:
        """Runs of lanes that use the same activation at a lifted place."""
        return self._runs[name]

    @property
    def tail(self) -> int:
        """Samples of the last batch of an epoch where that may not be filled up; the quantum where it may."""
        # Lanes of an exact signature train on as many samples each.
        n = next((t.n_train(self.work.data.train.n) for _, t in self.active), self.work.data.train.n)
        last = n % self.quantum
        return last if self.exact and last else self.quantum

    @property
    def tier(self) -> str:
        """What the journal calls that on which the fleet's program runs."""
        return self.kernels.tier if self.compiled is None else "compiled"

    @property
    def active(self) -> list[tuple[int, LaneTrial]]:
        """Lanes that train, and their trials."""
        return [(i, t) for i, t in enumerate(self.lanes) if t is not None]

    @property
    def n_active(self) -> int:
        return sum(lane is not None for lane in self.lanes)

    def lane_of(self, trial: int) -> int:
        """The lane that a part of a trial is in, by its key."""
        return next(i for i, t in enumerate(self.lanes) if t is not None and t.spec.key == trial)

    def admit(self, trial: LaneTrial) -> int:
        """Let a fresh trial into a free lane; returns the lane."""
        lane = self.lanes.index(None)
        recipe = trial.recipe
        self.state.put(lane, tensors_of(recipe), first_second(recipe.model, recipe.optimizer))
        if trial.family is optim.Family.SCHEDULE_FREE:
            averaging.begin(self.state, lane)
        if trial.family in distance.FAMILIES:
            distance.begin(self.state, lane, trial)
        self.lanes[lane] = trial
        return lane

    def readmit(self, trial: LaneTrial, row: LaneRow) -> int:
        """Let a trial that was paused go on in a free lane; returns the lane."""
        lane = self.lanes.index(None)
        self.state.restore(lane, row)
        self.lanes[lane] = trial
        return lane

    def leave(self, lane: int) -> LaneTrial:
        """Free a lane. What it held stays in place until someone else is let in, and touches nobody."""
        trial = self.lanes[lane]
        if trial is None:
            raise ValueError(f"lane {lane} of fleet {self.number} is already free")
        self.lanes[lane] = None
        return trial

    def arrange(self) -> None:
        """Put lanes that share an update family and activations side by side. No lane's result depends on where it stands."""

        def rank(i: int) -> tuple[object, ...]:
            t = self.lanes[i]
            if t is None:
                return (1, i)
            # Kinds run up in one family and down in the next, so that a run goes on across the border.
            turn = 1 if t.family % 2 == 0 else -1
            return (0, int(t.family), t.rule, tuple(turn * k for k in t.kinds), i)

        wanted = sorted(range(self.width), key=rank)
        if wanted != list(range(self.width)):
            self.state.rearrange(wanted)
            self.lanes = [self.lanes[i] for i in wanted]
        self.settle()

    def settle(self) -> None:
        """Make the program fit the trials that are in the lanes now."""
        for name in self._kind_names:
            self._runs[name] = runs_of(self.state.extra[name].tolist())
        active = [i for i, t in enumerate(self.lanes) if t is not None]
        loss = self.program._recipe.loss
        if active and is_known(loss):
            uses = used(loss, {name: self.state.extra[name][active] for name in self.layout.values})
            if any(smooths(t.recipe) for t in self.lanes if t is not None):
                uses |= {SMOOTHING}  # which may be 0 yet
            self.program.refresh(uses)
        else:
            self.program.refresh()

    def move_to(self, other: Fleet) -> None:
        """Hand every trial over to a fleet of the same signature and another width."""
        for i, trial in enumerate(self.lanes):
            if trial is not None:
                lane = other.lanes.index(None)
                other.state.restore(lane, self.state.take(i))
                other.lanes[lane] = trial
                self.lanes[i] = None
        other.arrange()

    def run_epoch(self) -> list[Measured]:
        """Train every lane for one epoch, then measure it on the validation split."""
        active, out = self._tabulate()
        if not active:
            return out
        with torch.no_grad(), self.program.kernels(), threads(self.kernel_threads):
            averaging.swap(self.state, self.lanes, averaged=False)
            losses, train_loss, moved = self._train(active)
            averaging.swap(self.state, self.lanes, averaged=True)
            for _, t in active:
                t.epoch += 1
            valid_loss, metrics = self._validate()
        shapes: list[dict[str, tuple[float, ...]]] = []
        if has_shapes(active[0][1].recipe):  # as have all of a signature, or none
            lanes = [i for i, _ in active]
            shapes = shapes_of([t.recipe.model for _, t in active], lambda name: self.state.parameter(name)[lanes])
        for k, (i, t) in enumerate(active):
            named = {name: float(values[i]) for name, values in metrics.items()}
            paths, why = moved.get(t.spec.key, (_NOTHING, ""))
            if shapes:
                paths = {**paths, **shapes[k]}
            train, valid, first = float(train_loss[i]), float(valid_loss[i]), float(losses[i])
            finite = math.isfinite(train) and math.isfinite(valid) and not why
            out.append(Measured(t.spec.key, t.epoch, train, valid, named, first, finite, trajectories=paths, why=why))
        return out

    def _tabulate(self) -> tuple[list[tuple[int, LaneTrial]], list[Measured]]:
        """Make every lane's coefficients; a trial whose schedule raises is over, and the others go on without it."""
        active: list[tuple[int, LaneTrial]] = []
        broken: list[Measured] = []
        n, nan = self.work.data.train.n, math.nan
        for i, t in enumerate(self.lanes):
            if t is None:
                continue
            if batch_size(t.recipe) is not None:
                offset = float(self.state.own(KEPT, (4,), torch.float64)[i, 0])
                t.size = size_of(offset, t.recipe, self.quantum, t.n_train(n))
            try:
                t.tabulate(t.shape(n, self.quantum).n_updates, n)
            except Exception as error:
                message = f"trial {t.spec.number}: its schedule raised {blame(error)}"
                broken.append(Measured(t.spec.key, t.epoch, nan, nan, {}, nan, False, message))
            else:
                if not t.looks:  # else its pool lets it go on alone
                    active.append((i, t))
        return active, broken

    def _train(self, active: Sequence[tuple[int, LaneTrial]]) -> tuple[Tensor, Tensor, Moved]:
        """All ticks of an epoch: first tick's loss (lanes,), mean loss over samples (lanes,), both on the host; and what moved."""
        n, q, device, dtype = self.work.data.train.n, self.quantum, self.work.device, self.layout.dtype
        shapes = {i: t.shape(n, q) for i, t in active}
        ticks = max(s.n_ticks for s in shapes.values())
        orders, keys = self._samples(active)
        due = np.zeros((ticks, self.width), dtype=bool)
        goes_on = np.zeros((ticks, self.width), dtype=bool)  # the tick adds to a batch that an earlier one opened
        for i, s in shapes.items():
            due[: s.n_ticks, i] = s.due
            goes_on[: s.n_ticks, i] = ~s.starts
        recipes: list[Recipe | None] = [None] * self.width
        for i, trial in active:
            recipes[i] = trial.recipe
        shaping = Shaping.of(recipes, due, self.state)
        limit = MaxNorm.of(recipes, due, self.state)
        noise = LaneNoise.of(self.state, active, q, n)
        spans = Spans(self.offsets, self.sizes, self._owner)
        rates = {
            i: LaneRates(self.state, i, [t for t in self.lanes[i:j] if t is not None], due[:, i:j], self.kernels, spans)
            for code, i, j in runs_of(self._codes())
            if code % _RULES
        }
        regularisers = lane_regularisers(self, due, goes_on, shaping)
        advance: Advance | None = None
        tail = self.tail
        share = torch.zeros(ticks, self.width, dtype=torch.float64)  # of the epoch's samples, per tick
        for i, s in shapes.items():
            share[: s.n_ticks, i] = torch.from_numpy(s.sizes[s.batch] / len(orders[i]))
        losses = torch.empty(ticks, self.width, dtype=dtype, device=device)
        loss_rows = losses.unbind(0)
        data = self.work.data.train.tensors
        state, program = self.state, self.program
        n_grads = len(state.grad_views)
        segment = max(1, _SEGMENT_SLOTS // (self.width * q))
        weights_of = {i: t.weights(n, q, orders[i]) for i, t in active}
        run: Runner | None = None
        moving: Rates | None = None
        moves: Moves | None = None
        if self.compiled is not None and not obstacle(self.compiled, self):
            counts = [shapes[i].n_ticks for i, _ in active]
            last_tick = ticks - 1 if tail != q else -1
            trained = [i for i, _ in active]
            moving = Rates(rates, trained, state) if rates else None
            moves = None if regularisers is None else Moves(self.compiled, self, regularisers, trained)
            run = runner(self.compiled, self, active, counts, due, goes_on, losses, last_tick, moving, noise, moves)
        for first in range(0, ticks, segment):
            last = min(first + segment, ticks)
            idx, weights, key = (
                np.zeros((last - first, self.width, q), dtype=d) for d in (np.int64, np.float64, np.int32)
            )
            twins: dict[tuple[int, int], int] = {}  # the first lane of an order and a batch size
            for i, trial in active:
                s = shapes[i]
                stop = min(last, s.n_ticks)
                if stop > first:
                    weights[: stop - first, i] = weights_of[i][first:stop]
                if (twin := twins.setdefault((id(orders[i]), id(s)), i)) != i:
                    idx[:, i], key[:, i] = idx[:, twin], key[:, twin]
                    continue
                if trial.rows is not None:  # empty slots too hold a sample that the lane may see
                    idx[:, i] = trial.rows[0]
                if stop > first:
                    position = s.position[first:stop]
                    idx[: stop - first, i] = np.where(position >= 0, orders[i][position], idx[: stop - first, i])
                    key[: stop - first, i] = keys[i][position]
            if run is not None:
                run(first, idx, weights, key)
                continue
            idx_t = torch.from_numpy(idx).to(device).unbind(0)
            key_t = torch.from_numpy(key).to(device).unbind(0)
            weight_t = torch.from_numpy(weights).to(device, dtype).unbind(0)
            for t in range(first, last):
                at = t - first
                slots = (idx_t[at], weight_t[at], key_t[at])
                if self.exact and t == ticks - 1 and tail != q:  # the last batch is smaller, and may not be padded
                    slots = tuple(x[:, :tail].contiguous() for x in slots)  # type: ignore[assignment]
                if regularisers is not None:
                    regularisers.saw(slots)
                outputs = program.train(state.inputs, data, *slots)
                if advance is None:  # only now is there a graph, which tells what the loss reaches
                    advance = self._advance(active, due, goes_on, shaping, rates, limit, noise, regularisers)
                if state.buffers:
                    torch._foreach_copy_(state.buffers, outputs[n_grads:-1])
                loss_rows[t].copy_(outputs[-1])
                advance(t, outputs[:n_grads])
        if moving is not None:
            moving.back()
        if moves is not None:
            moves.back()
        for i, trial in active:
            trial.updates += shapes[i].n_updates
        moved = {trial: found for r in rates.values() for trial, found in r.finish().items()}
        for trial_, (paths, why) in {} if noise is None else noise.finish().items():
            others, wrong = moved.get(trial_, ({}, ""))
            moved[trial_] = ({**others, **paths}, wrong or why)
        for of, (paths, why) in ({} if regularisers is None else regularisers.finish()).items():
            others, other = moved.get(of, ({}, ""))
            moved[of] = ({**others, **paths}, other or why)
        host = losses.double().cpu()
        # Ticks after a lane's epoch is over hold whatever padding gave; their share is zero, and zero times NaN is not.
        return host[0], torch.where(share > 0, host * share, 0.0).sum(0), moved

    def _samples(
        self, active: Sequence[tuple[int, LaneTrial]]
    ) -> tuple[dict[int, NDArray[np.int64]], dict[int, NDArray[np.int32]]]:
        """Each lane's samples in this epoch's order, and their random keys; lanes of one seed and the same rows share them."""
        data = self.work.data.train
        orders: dict[int, NDArray[np.int64]] = {}
        keys: dict[int, NDArray[np.int32]] = {}
        first: dict[tuple[int, int, int], int] = {}
        for i, t in active:
            plain = t.recipe.sample_weights is None  # else who is drawn may differ
            twin = first.setdefault((t.spec.seed, t.epoch, id(t.rows)), i) if plain else i
            orders[i] = orders[twin] if twin != i else t.sample_order(data)
            keys[i] = keys[twin] if twin != i else t.keys(data.n)
        return orders, keys

    def _codes(self) -> list[int]:
        """Family and rule of each lane, as one number."""
        return [int(optim.Family.SGD) if t is None else int(t.family) * _RULES + t.rule for t in self.lanes]

    def _advance(
        self,
        active: Sequence[tuple[int, LaneTrial]],
        due: NDArray[np.bool_],
        goes_on: NDArray[np.bool_],
        shaping: Shaping | None,
        rates: Mapping[int, LaneRates],
        limit: MaxNorm | None,
        noise: LaneNoise | None,
        regularisers: LaneRegularisers | None,
    ) -> Advance:
        """What follows the gradients of a tick: adding them up, and this epoch's updates, one per stretch of lanes of one family.

        Args:
            active: Lanes and their trials.
            due: Whose batch is full at which tick, (T, lanes).
            goes_on: Whose batch an earlier tick has opened, (T, lanes).
            shaping: What happens to a batch's gradient before the optimizer sees it.
            rates: Learning rates that move, by the first lane of each stretch.
            limit: What happens to parameters after an update.
            noise: What is measured of gradients.
            regularisers: What moves by a hyper-validation gradient.
        """
        families = [optim.Family.SGD if t is None else t.family for t in self.lanes]
        unused = list(self.program.unused)
        n_groups = len(self.layout.names) if unused or any(t.groups > 1 for _, t in active) else 1
        table = np.empty((len(due), optim.K, self.width, n_groups))
        for i, family in enumerate(families):
            table[:, :, i] = optim.idle(family)[:, None]
        for i, t in active:
            c = t.table  # (updates, K, groups)
            if n_groups > 1:
                c = c[:, :, t.group_of] if t.group_of is not None else np.repeat(c, n_groups, axis=2)
            table[np.flatnonzero(due[:, i]), :, i] = c
            if unused and not (t.recipe.l1 or t.recipe.l2):
                table[:, :, i, unused] = optim.idle(t.family)[:, None]
        state = self.state
        grads = state.grads if shaping is None else shaping.shaped
        updates = []
        for code, i, j in runs_of(self._codes()):
            part = table[:, :, i:j]
            params = rates[i].update if i in rates else state.params[i:j]
            family, full = optim.Family(code // _RULES), due[:, i:j]
            coefficients = torch.from_numpy(np.ascontiguousarray(part)).to(self.work.device, self.layout.dtype)
            own: distance.Distances | None = None
            if family in distance.FAMILIES:
                trials = [t for t in self.lanes[i:j] if t is not None]
                own = distance.Distances(state, family, i, trials, full, coefficients, grads[i:j], self._owner)
            needed = optim.uses(np.moveaxis(part, 1, -1))
            if regularisers is not None:
                needed |= regularisers.follow(family, i, coefficients, rates.get(i))
            updates.append(
                Updates(
                    family,
                    i,
                    (params, state.first[i:j], state.second[i:j], state.mean[i:j], grads[i:j]),
                    coefficients,
                    torch.from_numpy(np.ascontiguousarray(full).view(np.uint8)),
                    needed,
                    self._owner,
                    own,
                )
            )
        before: list[Callable[[int], None]] = [r.before for r in rates.values()]  # of the raw gradients
        if noise is not None:
            before.append(noise.of_batch)
        if shaping is not None:
            before.append(shaping.apply)
        after: list[Callable[[int], None]] = [r.after for r in rates.values()]
        if limit is not None:
            after.append(limit.apply)
        if regularisers is not None:
            before.append(regularisers.before)
            after.append(regularisers.after)
        gradients = Gradients(
            state.grads,
            state.grad_views,
            self.offsets,
            self.sizes,
            torch.from_numpy(goes_on.view(np.uint8)),
            _one_after_another(before),
            _one_after_another(after),
            None if noise is None else noise.of_tick,
        )
        return self.kernels.advance(gradients, updates)

    def _validate(self) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss (lanes,), metric name -> (lanes,)), on the host."""
        if not self.work.judged:
            return torch.zeros(self.width, dtype=torch.float64), {}
        split, recipe = self.work.data.valid, self.program._recipe
        if self.work.parts is not None and self.work.parts.folds:
            return by_fold(self, split.tensors, scale_of(recipe))
        meter = Meter(self.work.metrics, split.tensors[-1], scale_of(recipe))
        loss = self.measure(split.tensors, meter)
        return loss, meter.results()

    def measure(self, data: Sequence[Tensor], meter: Meter) -> Tensor:
        """The validation loss of every lane, (lanes,) on the host; ``meter`` is shown all outputs, chunk by chunk."""
        n, size = data[0].shape[0], evaluation_chunk(data)
        keys = np.zeros((self.width, n), dtype=np.int32)
        each = np.zeros(self.width)  # what a sample's numerator counts for
        for i, t in enumerate(self.lanes):
            if t is not None:
                keys[i] = t.evaluation_keys(n)
                if t.valid_weight is None:
                    t.valid_weight = evaluation_weight(t.recipe, data[-1])
                each[i] = t.valid_weight
        key_t = torch.from_numpy(keys).to(self.work.device)
        weight = torch.from_numpy(each).to(self.work.device, self.layout.dtype)[:, None]  # (lanes, 1)
        total = torch.zeros(self.width, dtype=torch.float64)
        known = is_known(self.program._recipe.loss)
        for first in range(0, n, size):
            chunk = [t[first : first + size] for t in data]
            q = chunk[0].shape[0]
            slots = weight.expand(-1, q).contiguous(), key_t[:, first : first + q].contiguous()
            out = self.program.evaluate(self.state.inputs, chunk, *slots)
            total += out[-1].double().cpu() * (1.0 if known else q / n)
            if len(out) > 1:
                meter.add(out[0], q)
        return total


def _one_after_another(calls: Sequence[Callable[[int], None]]) -> Callable[[int], None] | None:
    """All of the calls as one; None if there are none."""
    if len(calls) < 2:
        return calls[0] if calls else None

    def all_of_them(t: int) -> None:
        for call in calls:
            call(t)

    return all_of_them
