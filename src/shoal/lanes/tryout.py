"""Trying a signature or a trial out: is a tick cheaper than plain steps, and does a lane start as its recipe alone does?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from shoal.lanes.compiled import Compilation
from shoal.lanes.compiled._runner import compiled_tick, own_tick
from shoal.lanes.fleet import Fleet, Work
from shoal.lanes.lane import LaneTrial
from shoal.lanes.rng import KeyedRandom
from shoal.lanes.solo import Solo
from shoal.lanes.threads import threads
from shoal.recipe import Recipe
from shoal.records import TrialSpec


def time_tick(fleet: Fleet, times: int) -> float:
    """Trace a fleet's training step; seconds of the best of so many runs."""
    data, device = fleet.work.data.train, fleet.work.device
    q, w = fleet.quantum, fleet.width
    index = (torch.arange(w * q) % data.n).view(w, q).to(device)
    weights = torch.full((w, q), 1.0 / q, dtype=fleet.layout.dtype, device=device)
    slots = (index, weights, torch.zeros(w, q, dtype=torch.int32, device=device))
    with threads(fleet.kernel_threads):
        return _best_of(lambda: fleet.program.train(fleet.state.inputs, data.tensors, *slots), times)


def time_solo(spec: TrialSpec, recipe: Recipe, work: Work, quantum: int) -> float:
    """Seconds of a plain step on one micro-batch, forward and backward. Trains the recipe: give one made for this."""
    solo = Solo(spec, recipe, work)
    rows = torch.arange(quantum, device=work.device)
    batch = tuple(t[rows] for t in work.data.train.tensors)
    keys = torch.zeros(quantum, dtype=torch.int32, device=work.device)
    return _best_of(lambda: solo.step(batch, keys), 4)


# So long a stretch of compiled ticks is timed at once, if it has no more than so many: the set-up of a call outweighs a single one.
_STRETCH_S, _STRETCH = 0.02, 32


def time_compiled(compilation: Compilation, fleet: Fleet, times: int) -> float:
    """Seconds of a compiled tick of a fleet, without updates: of the best of so many stretches of ticks."""
    one_s = _best_of(lambda: compiled_tick(compilation, fleet), 1)
    ticks = max(1, min(_STRETCH, int(_STRETCH_S / one_s)))
    return _best_of(lambda: compiled_tick(compilation, fleet, ticks=ticks), times) / ticks


def pays(compilation: Compilation, fleet: Fleet) -> bool:
    """Whether a compiled tick takes no longer than the fleet's own."""
    return time_compiled(compilation, fleet, 2) <= _best_of(lambda: own_tick(fleet), 4)


def expected_loss(trial: LaneTrial, work: Work, quantum: int) -> float:
    """What the recipe's own plain forward gives for the samples of its first tick: the check on admission."""
    recipe, data = trial.recipe, work.data.train
    n = data.n
    shape = trial.shape(n, quantum)
    position = shape.position[0][shape.position[0] >= 0]
    whole_order = trial.sample_order(data)
    order = whole_order[position]
    keys = torch.from_numpy(trial.keys(n)[position]).to(work.device)
    rows = torch.from_numpy(order).to(work.device)
    buffers = {name: b.detach().clone() for name, b in recipe.model.named_buffers()}
    solo = Solo(trial.spec, recipe, work)
    with torch.no_grad(), KeyedRandom(keys):
        loss = float(solo.loss(recipe.transformed(tuple(t[rows] for t in data.tensors))))
    with torch.no_grad():
        for name, b in recipe.model.named_buffers():
            b.copy_(buffers[name])
    if trial.denominators is None:
        return loss
    batch = whole_order[: int(shape.sizes[0])]
    part, whole = float(trial.denominators[order].sum()), float(trial.denominators[batch].sum())
    if part == 0.0 < whole:  # all of this micro-batch is ignored, and its mean alone is 0 / 0
        return 0.0
    return loss * (part / whole if whole else math.nan)


def confirmed(expected: float, got: float, dtype: torch.dtype) -> bool:
    """Whether a lane's first loss is what its recipe gives alone, up to rounding."""
    if expected != expected or got != got or expected in (float("inf"), float("-inf")):
        return (expected != expected) == (got != got)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4 if dtype == torch.float32 else 2e-2
    return abs(expected - got) <= tolerance * max(1.0, abs(expected))


def _best_of(f: Callable[[], object], times: int) -> float:
    f()  # traces, or warms caches up
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        f()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
