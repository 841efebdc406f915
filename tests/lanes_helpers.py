"""What the tests of lanes share: small data, fleets built by hand, and the plain loop to compare them with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal.data import Datasets, Split, load
from shoal.lanes import native
from shoal.lanes.compiled import Compilation, Variant
from shoal.lanes.fleet import Fleet, Work, example_of
from shoal.lanes.kernels import Kernels, TorchKernels
from shoal.lanes.lane import LaneTrial, Measured
from shoal.lanes.order import slot_weights
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.rng import KeyedRandom
from shoal.lanes.solo import Solo
from shoal.lanes.step import Layout, Program
from shoal.metrics import resolve, standard_metrics
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec
from shoal.replay import Define, replay
from shoal.session import candidate
from shoal.signature import Signature, Signer, lane_trial


def specs_of(params: Sequence[Mapping[str, ParamValue]]) -> list[TrialSpec]:
    """Trials 0, 1, ... with seeds of their own."""
    return [TrialSpec(i, 1000 + 7 * i, p, {}) for i, p in enumerate(params)]


def made(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(n: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


def datasets(train: Sequence[Tensor], valid: Sequence[Tensor], names: tuple[str, ...] = ()) -> Datasets:
    return Datasets(Split(tuple(train), names), Split(tuple(valid), names), None, "")


def class_data(
    n: int = 50,
    features: tuple[int, ...] = (10,),
    classes: int = 4,
    dtype: torch.dtype = torch.float64,
    valid: int = 23,
) -> Datasets:
    """Random inputs (n, *features) and classes (n,): nothing to learn, everything to compare."""
    x, y = made(n + valid, *features, dtype=dtype), labels(n + valid, classes)
    return datasets((x[:n], y[:n]), (x[n:], y[n:]))


def work_of(data: Datasets, metric: str | None = None) -> Work:
    found = None if metric is None else resolve(metric, targets=data.train.tensors[-1])
    return Work(data, () if found is None else (found,), torch.device("cpu"))


def rebuild(define: Define, spec: TrialSpec, work: Work) -> Recipe:
    return replay(define, spec, work.data.train.n, work.data.train.form)


class Bench:
    """What ``tune`` would put round the pools, on a training split that is its own validation split."""

    def __init__(self, define: Define, x: Tensor, y: Tensor) -> None:
        self.define, self.data = define, load((x, y), (x, y))
        self.work = Work(self.data, tuple(standard_metrics(y)), torch.device("cpu"))
        self.signer = Signer(self.data.train.tensors)

    def rebuild(self, spec: TrialSpec) -> Recipe:
        return replay(self.define, spec, self.data.train.n)

    def candidate(self, spec: TrialSpec) -> Candidate:
        return candidate(spec, self.rebuild(spec), self.signer, self.data.train.tensors[-1])

    def pool(self) -> Pool:
        return Pool(self.work, self.rebuild, measure=False)


def sign(define: Define, spec: TrialSpec, work: Work) -> Signature:
    return Signer(work.data.train.tensors).sign(rebuild(define, spec, work))


# What fleets opened here run their own operations on; tests of native kernels change it for their time.
KERNELS: list[Kernels] = [TorchKernels()]
# Whether they are compiled, which needs native kernels.
COMPILED: list[bool] = [False]


@contextmanager
def compiled_lanes() -> Iterator[None]:
    """Fleets that are opened meanwhile have compiled epochs."""
    native.prepare()
    native.wait()
    if (found := native.kernels()) is None:
        pytest.skip("no compiler")
    KERNELS.append(found)
    COMPILED.append(True)
    try:
        yield
    finally:
        COMPILED.pop()
        KERNELS.pop()


def open_fleet(define: Define, spec: TrialSpec, width: int, work: Work, recipes: Sequence[Recipe] = ()) -> Fleet:
    """An empty fleet of the signature of ``spec``; where it is compiled, for these recipes too."""
    template = rebuild(define, spec, work)
    signature = Signer(work.data.train.tensors).sign(template)
    layout = Layout.of(template)
    like = example_of(template, lambda: rebuild(define, spec, work), work)
    fleet = Fleet(0, Program.prepare(template), layout, width, signature.quantum, signature.exact, work, like)
    fleet.kernels = KERNELS[-1]
    if COMPILED[-1]:
        fleet.compiled = Compilation(fleet.program, work.data, fleet.quantum, Variant.of(fleet, recipes))
        fleet.compiled.start()
        assert fleet.compiled.wait() is not None
    return fleet


def ready(define: Define, spec: TrialSpec, work: Work) -> LaneTrial:
    recipe = rebuild(define, spec, work)
    Signer(work.data.train.tensors).sign(recipe)
    return lane_trial(spec, recipe, work.data.train.tensors[-1])


@dataclass
class Trail:
    """What became of one trial: a row per epoch, and its tensors at the end of each."""

    rows: list[Measured] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)


def step_schedule(recipe: Recipe, row: Measured) -> None:
    if recipe.schedule_every == "epoch":
        recipe.step_schedule(loss=row.valid_loss, value=next(iter(row.metrics.values()), 0.0))


def train_fused(
    define: Define,
    specs: Sequence[TrialSpec],
    work: Work,
    epochs: int,
    *,
    width: int | None = None,
    stops: Mapping[int, int] | None = None,
) -> dict[int, Trail]:
    """Train trials in one fleet, in the order given, refilling lanes as they become free.

    Args:
        epochs: Of each trial, but for those in ``stops``.
        width: Lanes; by default as many as trials.
        stops: trial -> epochs after which it leaves.
    """
    recipes = [rebuild(define, s, work) for s in specs] if COMPILED[-1] else []
    fleet = open_fleet(define, specs[0], width or len(specs), work, recipes)
    waiting, trails = list(specs), {s.number: Trail() for s in specs}
    while waiting or fleet.n_active:
        while waiting and fleet.n_active < fleet.width:
            fleet.admit(ready(define, waiting.pop(0), work))
        fleet.arrange()
        for row in fleet.run_epoch():
            lane = fleet.lane_of(row.trial)
            trial = fleet.lanes[lane]
            assert trial is not None
            trails[row.trial].rows.append(row)
            trails[row.trial].states.append(fleet.state.state_dict(lane))
            step_schedule(trial.recipe, row)
            if row.epoch == (stops or {}).get(row.trial, epochs):
                fleet.leave(lane)
    return trails


def train_solo(define: Define, spec: TrialSpec, work: Work, epochs: int) -> Trail:
    solo, trail = Solo(spec, rebuild(define, spec, work), work), Trail()
    for _ in range(epochs):
        row = solo.run_epoch()
        trail.rows.append(row)
        trail.states.append(solo.state_dict())
        step_schedule(solo.recipe, row)
    return trail


def assert_close(lane: float, solo: float, tolerance: float, what: str) -> None:
    assert abs(lane - solo) <= tolerance * max(1.0, abs(solo)), f"{what}: {lane!r} in a lane, {solo!r} alone"


def assert_same_trail(lane: Trail, solo: Trail, tolerance: float, *, loose: Sequence[str] = ()) -> None:
    """Rows and tensors agree; parameters in ``loose`` have a gradient that is rounding noise, and may wander a little."""
    assert len(lane.rows) == len(lane.states) and 0 < len(lane.rows) <= len(solo.rows)
    for a, b, state, expected in zip(lane.rows, solo.rows, lane.states, solo.states, strict=False):
        where = f"trial {a.trial}, epoch {a.epoch}"
        assert (a.trial, a.epoch, a.finite) == (b.trial, b.epoch, b.finite), where
        assert_close(a.train_loss, b.train_loss, tolerance, f"train loss, {where}")
        assert_close(a.valid_loss, b.valid_loss, tolerance, f"validation loss, {where}")
        assert a.metrics.keys() == b.metrics.keys()
        for name, value in a.metrics.items():
            assert_close(value, b.metrics[name], tolerance, f"{name}, {where}")
        assert state.keys() == expected.keys(), where
        for name, tensor in state.items():
            error = (tensor.double() - expected[name].double()).abs().max().item()
            limit = (1e-5 if name in loose else tolerance) * max(1.0, expected[name].abs().max().item())
            assert error <= limit, f"{name} differs by {error:.2e}, {where}"


def gradient_deviation(fleet: Fleet, define: Define, work: Work) -> float:
    """Largest deviation of a first batch's gradients, fresh lane against solo, relative to the scale of that tensor's gradient.

    A gradient that is nothing but rounding noise (a bias before a norm) has no scale: it is floored at a ten thousandth of the
    recipe's largest one.
    """
    data, n, dtype = work.data.train.tensors, work.data.train.n, fleet.layout.dtype
    largest = 0.0
    for lane, trial in enumerate(fleet.lanes):
        if trial is None:
            continue
        solo = Solo(trial.spec, rebuild(define, trial.spec, work), work)
        shape, order, keys = trial.shape(n, fleet.quantum), trial.sample_order(work.data.train), trial.keys(n)
        weights = slot_weights(shape, order, trial.denominators)
        summed = [torch.zeros(s, dtype=dtype) for s in fleet.layout.shapes]
        with torch.no_grad():
            for t in np.flatnonzero(shape.batch == 0):
                position = shape.position[t]
                idx = np.where(position >= 0, order[position], 0)
                slots = (
                    torch.from_numpy(idx),
                    torch.from_numpy(weights[t]).to(dtype),
                    torch.from_numpy(keys[position]),
                )
                out = fleet.program.train(
                    fleet.state.inputs, data, *(s.expand(fleet.width, -1).contiguous() for s in slots)
                )
                for total, g in zip(summed, out, strict=False):
                    total += g[lane]
        size = trial.recipe.batch_size
        with KeyedRandom(torch.from_numpy(keys[:size])):
            loss = solo.loss(tuple(t[torch.from_numpy(order[:size])] for t in data))
        loss.backward()  # type: ignore[no-untyped-call]
        named = dict(solo.recipe.model.named_parameters())
        grads = [named[name].grad for name in fleet.layout.names]
        scale = max(g.abs().max().item() for g in grads if g is not None)
        for mine, theirs in zip(summed, grads, strict=True):
            expected = torch.zeros_like(mine) if theirs is None else theirs
            size_of = max(expected.abs().max().item(), 1e-4 * scale)
            largest = max(largest, (mine - expected).abs().max().item() / size_of)
    return largest


def assert_pool_is_solo(
    define: Define, params: Sequence[Mapping[str, ParamValue]], work: Work, epochs: int, tolerance: float = 1e-9
) -> list[str]:
    """Train trials in a pool that fuses whatever it can, and each alone: losses and tensors agree after every epoch.

    Returns:
        Why each trial trained alone, or "" for those that were in a lane to the end.
    """
    specs = specs_of(params)
    signer, target = Signer(work.data.train.tensors), work.data.train.tensors[-1]
    pool = Pool(work, lambda spec: rebuild(define, spec, work), measure=False)
    pool.admit([candidate(spec, rebuild(define, spec, work), signer, target) for spec in specs])
    trails = {spec.number: Trail() for spec in specs}
    for _ in range(epochs):
        for m in pool.run_epoch():
            assert not m.error, m.error
            trails[m.trial].rows.append(m)
            trails[m.trial].states.append(pool.state_dict(m.trial))
            pool.epoch_done(m.trial, m.valid_loss, m.valid_loss)
    for spec in specs:
        assert len(trails[spec.number].rows) == epochs
        assert_same_trail(trails[spec.number], train_solo(define, spec, work, epochs), tolerance)
    alone = {e.trial: str(e.data["reason"]) for e in pool.drain_events() if e.kind == "solo"}
    return [alone.get(spec.number, "") for spec in specs]
