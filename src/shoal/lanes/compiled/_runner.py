"""A fleet's epoch on a compiled library: whether it does all that these lanes need, and the call.

Glossary: ``T`` ticks of the epoch; ``q`` slots; ``K`` coefficients; ``G`` groups of parameters.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.extend._by_validation import by_validation
from shoal.lanes import optim
from shoal.lanes.activations import TABLE
from shoal.lanes.compiled._moves import Moves
from shoal.lanes.compiled._moving import Rates
from shoal.lanes.compiled._passes import CompiledPasses
from shoal.lanes.compiled._program import Ticks
from shoal.lanes.native import FAMILIES, NativeKernels
from shoal.lanes.noise_scale import batch_size
from shoal.lanes.regularised._lanes import longest_batch
from shoal.lanes.regularised._passes import Passes
from shoal.lanes.regularised._rule import batch_size as batch_size_of
from shoal.lanes.regularised._rule import moving_of, numbers_of
from shoal.lanes.threads import threads

if TYPE_CHECKING:
    from shoal.lanes.compiled import Compilation
    from shoal.lanes.fleet import Fleet
    from shoal.lanes.lane import LaneTrial
    from shoal.lanes.noise_scale import LaneNoise

# A call into the library is not interrupted: no more than this many ticks of lanes are done at once.
_LANE_TICKS = 20_000
# Where several threads share the lanes: how many parts there are for each of them.
_PARTS = 4
# Ticks that are compared before a library is refused, and how far apart, relatively, each of them may be.
_TRIES, _LOOSE = 3, 0.03

# Trains the lanes through the ticks from the first one on: (first, samples, weights, keys), (ticks, lanes, q) each.
Runner = Callable[[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]], None]


def obstacle(compilation: Compilation, fleet: Fleet) -> str:
    """What the library lacks of all that the lanes need (one update or activation or another), or "" when it suits them."""
    if not isinstance(fleet.kernels, NativeKernels):
        return "the native kernels are not there"
    otherwise = any(t.rule or batch_size(t.recipe) for _, t in fleet.active)
    for _, t in fleet.active:
        if t.family not in FAMILIES:
            return f"optimizers of the family {t.family.name} have no native update"
        if otherwise and by_validation(t.recipe):
            return "regularisation that moves has no compiled form beside learning rates or batch sizes that move"
        moving = moving_of(t, fleet.work.data)
        if moving is not None and moving.asked.shared.method == "unrolled":
            return "a derivative through several updates has no compiled form"
        if moving is not None and not moving.asked.moves <= compilation.moves:
            return "what a number needs that moves has no compiled form"
        for kind in t.kinds:
            if fleet.kernels.code(kind) is None:
                return f"the activation {TABLE[kind].name} has no native form"
    if compilation.variant.tail != fleet.tail or compilation.variant.uses not in (None, fleet.program.uses):
        return "the loss has other numbers than those it was written for"
    return ""


def runner(
    compilation: Compilation,
    fleet: Fleet,
    active: Sequence[tuple[int, LaneTrial]],
    counts: Sequence[int],
    due: NDArray[np.bool_],
    goes_on: NDArray[np.bool_],
    losses: Tensor,
    tail: int,
    rates: Rates | None = None,
    noise: LaneNoise | None = None,
    moves: Moves | None = None,
) -> Runner:
    """What trains lanes of a fleet for one epoch, some ticks at a time.

    Args:
        compilation: With its library there.
        fleet: Whose lanes; nothing of what they need is lacking (``obstacle``).
        active: Those that train, and their trials.
        counts: How many ticks each of them takes.
        due, goes_on: As for ``Kernels.advance``, (T, lanes).
        losses: (T, lanes), written.
        tail: Which tick has the smaller last batch, or -1.
        rates: Learning rates that move; brought up to date.
        noise: What is measured of gradients; written.
        moves: Numbers that move by a hyper-validation gradient; brought up to date.
    """
    epoch = compilation.ready()
    kernels, state = fleet.kernels, fleet.state
    assert epoch is not None and isinstance(kernels, NativeKernels)
    table = _table(compilation, fleet, active, due)
    data = fleet.work.data.train.tensors
    inputs = [*state.inputs, *data]
    rows = (state.params, state.first, state.second, state.mean, state.grads)
    shaping = _shaping(fleet, active)
    lengths = torch.tensor([s.numel() // max(1, s[0]) if len(s) > 1 else 0 for s in fleet.layout.shapes])
    lanes, families = [i for i, _ in active], [FAMILIES[t.family] for _, t in active]
    due_, on_ = due.view(np.uint8), goes_on.view(np.uint8)
    measured, squares = (None, None) if noise is None else (noise.measured, noise.squares)
    if moves is not None and shaping is not None:
        moves.begin(shaping[:, 0])
    longest = 1 if moves is None else longest_batch(goes_on)
    past: tuple[NDArray[Any], ...] = ()  # slots of the ticks before, which a batch may have begun with

    def run(first: int, index: NDArray[np.int64], weights: NDArray[np.float64], keys: NDArray[np.int32]) -> None:
        nonlocal past
        n = len(index)
        here = [min(max(c - first, 0), n) for c in counts]
        slots: tuple[NDArray[Any], ...] = (index, weights, keys)
        if longest > 1:
            slots = tuple(np.concatenate(both) for both in zip(past, slots, strict=True)) if past else slots
            past = tuple(x[1 - longest :].copy() for x in slots)
        n_past = len(slots[0]) - n
        real_weights = torch.from_numpy(slots[1]).to(fleet.layout.dtype)

        def train(some: slice) -> None:
            ticks = Ticks(
                lanes=lanes[some],
                counts=here[some],
                index=slots[0],
                weights=real_weights,
                keys=slots[2],
                losses=losses[first : first + n],
                table=table[some, first:],
                due=due_[first : first + n],
                goes_on=on_[first : first + n],
                families=families[some],
                shaping=None if shaping is None else shaping[some],
                lengths=lengths,
                tail=tail - first if first <= tail < first + n else -1,
                rates=None if rates is None else rates.struct(some, first),
                moves=None if moves is None else moves.struct(some, first),
                past=n_past,
                measured=None if measured is None else measured[first : first + n].view(np.uint8),
                squares=None if squares is None else squares[first : first + n],
            )
            epoch.run(kernels, inputs, len(state.inputs), rows, fleet.offsets, fleet.sizes, ticks)

        n_threads = min(fleet.n_threads, len(lanes))
        size = max(1, _LANE_TICKS // n)
        if n_threads > 1:  # a thread that is done early takes another part
            size = min(size, math.ceil(len(lanes) / (_PARTS * n_threads)))
        parts = [slice(i, i + size) for i in range(0, len(lanes), size)]
        if n_threads == 1:
            for part in parts:
                train(part)
        else:
            list(_threads(n_threads).map(train, parts))

    return run


@functools.cache
def _threads(n: int) -> ThreadPoolExecutor:
    """So many threads, which sleep between epochs. Lanes are apart in memory, so that no bit depends on how many there are."""
    return ThreadPoolExecutor(n, thread_name_prefix="shoal-lanes")


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not outlive a fork


def _table(
    compilation: Compilation, fleet: Fleet, active: Sequence[tuple[int, LaneTrial]], due: NDArray[np.bool_]
) -> Tensor:
    """Coefficients of every lane's updates, (n_lanes, T, K, G)."""
    unused = list(compilation.unused)
    n_groups = compilation.groups(fleet)
    out = np.empty((len(active), len(due), optim.K, n_groups))
    for row, (i, t) in zip(out, active, strict=True):
        row[:] = optim.idle(t.family)[:, None]
        full = np.flatnonzero(due[:, i])
        if len(full):  # a lane that is new has none yet
            c = t.table  # (updates, K, groups)
            if n_groups > 1:
                c = c[:, :, t.group_of] if t.group_of is not None else np.repeat(c, n_groups, axis=2)
            row[full] = c[: len(full)]
        if unused and not (t.recipe.l1 or t.recipe.l2):
            row[:, :, unused] = optim.idle(t.family)[:, None]
    return torch.from_numpy(out).to(fleet.layout.dtype)


def _shaping(fleet: Fleet, active: Sequence[tuple[int, LaneTrial]]) -> Tensor | None:
    """Penalties, bounds of clipping and largest norms of weights of every lane, (n_lanes, 5); None where no lane has any."""
    recipes = [t.recipe for _, t in active]
    if not any(r.l1 or r.l2 or r.clip_value or r.clip_norm or r.max_norm for r in recipes):
        return None
    off = float("inf")
    how = [(r.l1, r.l2, r.clip_value or off, r.clip_norm or off, r.max_norm or off) for r in recipes]
    return torch.tensor(how, dtype=fleet.layout.dtype)


def agrees(compilation: Compilation, fleet: Fleet) -> bool:
    """Whether compiled ticks give the gradients and the losses that the fleet's own program gives, on its lanes as they are.

    In every tick up to a little, and in one of some up to rounding: where two numbers are next to equal, or one is next to 0,
    rounding decides which of them a pool takes, or whether a unit is off, and a gradient goes another way.
    """
    lanes = [i for i, _ in fleet.active]
    exact = torch.zeros(len(lanes), dtype=torch.bool)
    for attempt in range(_TRIES):
        apart = _apart(
            own_tick(fleet, attempt), compiled_tick(compilation, fleet, attempt), len(fleet.state.grad_views)
        )[lanes]
        if bool((apart > _LOOSE).any()):
            return False
        exact |= apart <= (1e-9 if fleet.layout.dtype == torch.float64 else 1e-4)
        if bool(exact.all()):
            return _same_passes(compilation, fleet, lanes)
    return False


def _same_passes(compilation: Compilation, fleet: Fleet, lanes: Sequence[int]) -> bool:
    """Whether what the library gives to moves is, up to a little, what the fleet's own program gives."""
    held_out = fleet.work.data.held_out
    if not compilation.variant.moves or held_out is None:
        return True
    size, inputs = batch_size_of(held_out), fleet.state.inputs
    shape = (fleet.width, size)
    held = (torch.arange(size).repeat(fleet.width, 1), torch.full(shape, 1 / size), torch.zeros(shape))
    index, weights, keys = (torch.from_numpy(x[0]) for x in _slots(fleet, 0))

    def found(passes: Passes) -> list[Tensor]:
        slots = (held[0], held[1].to(fleet.layout.dtype), held[2].int())
        train = (index, weights.to(fleet.layout.dtype), keys)
        numbers = numbers_of(compilation.variant.moves).values()
        return [
            passes.held_out(inputs, slots, lanes),
            *(passes.by_numbers(names, inputs, train, lanes) for names in numbers),
        ]

    with torch.no_grad(), fleet.program.kernels():
        expected, got = found(Passes(fleet, held_out)), found(CompiledPasses(compilation, fleet, held_out))
    apart = [_largest(x - y) / _largest(y).clamp(min=1e-3) for x, y in zip(got, expected, strict=True)]
    return all(bool((a[lanes].nan_to_num(0.0) <= _LOOSE).all()) for a in apart)


def own_tick(fleet: Fleet, attempt: int = 0) -> Sequence[Tensor]:
    """What ``compiled_tick`` gives, by the fleet's own program."""
    index, weights, keys = _slots(fleet, attempt)
    slots = (torch.from_numpy(index[0]), torch.from_numpy(weights[0]).to(fleet.layout.dtype), torch.from_numpy(keys[0]))
    with torch.no_grad(), fleet.program.kernels(), threads(fleet.kernel_threads):
        out: Sequence[Tensor] = fleet.program.train(fleet.state.inputs, fleet.work.data.train.tensors, *slots)
    return out


def _slots(
    fleet: Fleet, attempt: int = 0, ticks: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]:
    """Samples, weights and keys of ticks that are only tried, (ticks, width, q) each."""
    shape = ticks, fleet.width, fleet.quantum
    slots = np.arange(math.prod(shape)).reshape(shape)
    index = (slots + attempt * (fleet.quantum // 2 + 1)) % fleet.work.data.train.n
    return index, np.full(shape, 1.0 / fleet.quantum), slots.astype(np.int32)


def compiled_tick(compilation: Compilation, fleet: Fleet, attempt: int = 0, ticks: int = 1) -> list[Tensor]:
    """Gradients, new buffers and losses of the last of some compiled ticks, after which the lanes are as they were."""
    active, state = fleet.active, fleet.state
    losses = torch.zeros(ticks, fleet.width, dtype=fleet.layout.dtype)
    never = np.zeros((ticks, fleet.width), dtype=bool)
    before = [b.clone() for b in state.buffers]
    with torch.no_grad():
        run = runner(compilation, fleet, active, [ticks] * len(active), never, never, losses, -1)
        run(0, *_slots(fleet, attempt, ticks))
        after = [b.clone() for b in state.buffers]
        for b, was in zip(state.buffers, before, strict=True):
            b.copy_(was)
    return [*state.grad_views, *after, losses[-1]]


def _apart(expected: Sequence[Tensor], got: Sequence[Tensor], n_grads: int) -> Tensor:
    """How far apart two ticks are in every lane, on the scale of each tensor's largest element, (lanes)."""
    # A gradient that is 0 but for rounding (a bias before BatchNorm) is compared on the scale of the others.
    largest = torch.stack([_largest(y) for y in expected[:n_grads]]).amax(0)
    out = torch.zeros_like(largest)
    for k, (x, y) in enumerate(zip(got, expected, strict=True)):
        if not x.is_floating_point():
            out[(x != y).reshape(len(x), -1).any(1)] = math.inf
            continue
        scale = _largest(y)
        floor = 0.05 * largest if k < n_grads else torch.zeros_like(scale)
        ratio = _largest(x - y) / torch.maximum(scale, floor).clamp(min=1e-3)
        # A lane that has diverged has nothing to compare.
        ratio = torch.where(scale.isfinite(), ratio.nan_to_num(nan=math.inf), 0.0)
        out = torch.maximum(out, ratio.to(out.dtype))
    return out


def _largest(x: Tensor) -> Tensor:
    """Every lane's largest element, (lanes)."""
    return x.abs().reshape(len(x), -1).amax(1)
