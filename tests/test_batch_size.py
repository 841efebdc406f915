"""Batch sizes that move by the gradient noise scale: the estimators, the rule, lanes and plain loop, what comes of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import (
    COMPILED,
    KERNELS,
    Trail,
    assert_same_trail,
    class_data,
    datasets,
    made,
    open_fleet,
    ready,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from shoal.errors import RecipeError
from shoal.extend import BatchSize, LearningRate
from shoal.lanes import native
from shoal.lanes.compiled._runner import obstacle
from shoal.lanes.noise_scale import clock_of, estimates, factor_of, renewed, size_of
from shoal.lanes.order import epoch_shape, quantum
from shoal.recipe import Recipe

WORK = work_of(class_data(150))
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
}


def define(trial: Any) -> Recipe:
    got = dict(trial.params)
    dtype = getattr(torch, got.pop("dtype", "float64"))
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 4)).to(dtype)
    optimizer = OPTIMIZERS[got.pop("opt", "momentum")](model.parameters())
    batch, every = got.pop("batch", 20), got.pop("schedule", "")
    schedule = None
    if every == "step":
        schedule = optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4 * math.ceil(150 / batch))
    elif every == "epoch":
        schedule = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)  # type: ignore[assignment]
    elif every == "fraction":
        schedule = optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2)  # type: ignore[assignment]
    extensions: list[Any] = [LearningRate(step=got.pop("rate"))] if "rate" in got else []
    shape = {k: got.pop(k) for k in ("l1", "clip_norm", "max_norm") if k in got}
    if got:
        got.setdefault("bounds", (4, 100))
        extensions.append(BatchSize(**got))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=dtype))
    return Recipe(model, optimizer, loss, batch, schedule, every or "epoch", **shape, extensions=extensions)


# Sizes rise with a step of 1, fall below a micro-batch where the noise is small, and rest during a warm-up.
CASES: list[dict[str, Any]] = [
    {"step": 1.0, "batch": 20},
    {"step": 0.5, "batch": 40, "every": 2, "smoothing": 0.5, "opt": "adamw", "learning_rate": "linear"},
    {"step": 1.0, "batch": 40, "bounds": (8, 40), "learning_rate": "none", "smoothing": 0.0},
    {"step": 1.0, "batch": 20, "every": 3, "schedule": "step", "opt": "adamw"},
    {"step": 1.0, "batch": 18, "schedule": "fraction", "warmup": 8},
    {"step": 1.0, "batch": 40, "schedule": "epoch", "rate": 0.1, "opt": "adamw"},
    {"step": 1.0, "batch": 40, "l1": 0.01, "clip_norm": 0.5, "max_norm": 0.6},
    {"batch": 40},
    {"step": 0.0, "batch": 20},
]


def sizes(trail: Trail) -> list[float]:
    return [row.trajectories["batch_size"][0] for row in trail.rows]


# -- the estimators ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(8, 8), (16, 16, 16, 16), (20, 20, 3), (1, 1)])
def test_estimators_are_unbiased(parts: tuple[int, ...]) -> None:
    """Gradients with a known mean and covariance: the mean of many estimates is S and |G|^2."""
    rng, (n, b) = np.random.default_rng(0), (40_000, sum(parts))
    mean, deviation = np.array([0.3, -0.2, 0.1]), np.array([1.0, 0.5, 0.25])
    shares = [mean * (s / b) + rng.normal(size=(n, 3)) * deviation * math.sqrt(s) / b for s in parts]
    of_parts = sum((p * p).sum(1) for p in shares)
    whole = (sum(shares) ** 2).sum(1)
    found = estimates(
        np.asarray(of_parts), np.asarray(whole), np.full(n, sum((s / b) ** 2 for s in parts)), np.full(n, float(b))
    )
    for column, expected in zip(found.T, (np.square(deviation).sum(), np.square(mean).sum()), strict=True):
        error = column.std() / math.sqrt(n)
        assert abs(column.mean() - expected) < 4 * error


def test_they_are_those_of_the_paper() -> None:
    """McCandlish et al. 2018, A.1, with two batch sizes: here the small one's norm is the mean over the micro-batches."""
    big, small, of_big, of_small = 64.0, 16.0, 2.0, 3.5
    signal = (big * of_big - small * of_small) / (big - small)
    noise = (of_small - of_big) / (1 / small - 1 / big)
    found = estimates(np.array([4 * of_small / 16]), np.array([of_big]), np.array([4 / 16]), np.array([big]))
    assert found[0] == pytest.approx([noise, signal])


def test_the_noise_scale_of_a_lane_is_that_of_gradients_sample_by_sample() -> None:
    """At a step of 0 and a learning rate of 0 the true values are known: lanes and plain loop estimate them."""

    def still(trial: Any) -> Recipe:
        model = nn.Linear(10, 4).double()
        moves = BatchSize(step=0.0, smoothing=0.999, every=1, bounds=(2, 150))
        return Recipe(
            model,
            optim.SGD(model.parameters(), lr=0.0),
            nn.CrossEntropyLoss(),
            trial.params["batch"],
            extensions=[moves],
        )

    x, _ = WORK.data.train.tensors
    y = x[:, :4].argmax(1)
    work = work_of(datasets((x, y), (x[:9], y[:9])))
    specs = specs_of([{"batch": 20}, {"batch": 40}])
    fused = train_fused(still, specs, work, 30)
    for spec in specs:
        model = ready(still, spec, work).recipe.model
        each = []
        for i in range(len(x)):
            model.zero_grad()
            nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()  # type: ignore[no-untyped-call]
            each.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        grads = torch.stack(each)
        # Drawn without replacement, parts of a batch say what holds where the samples come from, not in these alone.
        noise = float(grads.var(0).sum())
        expected = noise / (float(grads.mean(0).square().sum()) - noise / len(x))
        got = fused[spec.number].rows[-1].trajectories["noise_scale"][0]
        assert got == pytest.approx(expected, rel=0.1)
        solo = train_solo(still, spec, work, 3)
        for a, b in zip(fused[spec.number].rows, solo.rows, strict=False):
            assert a.trajectories["noise_scale"] == pytest.approx(b.trajectories["noise_scale"], rel=1e-9)


# -- the rule ---------------------------------------------------------------------------------------------------------------


def recipe_of(batch: int = 40, **asked: Any) -> Recipe:
    model = nn.Linear(3, 2)
    return Recipe(
        model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), batch, extensions=[BatchSize(**asked)]
    )


@given(st.floats(-6, 6), st.integers(2, 500), st.integers(2, 300), st.integers(0, 700), st.integers(30, 2000))
def test_sizes_stay_within_their_bounds(offset: float, base: int, low: int, more: int, n: int) -> None:
    low, n = min(low, base), max(n, base)
    recipe, q = recipe_of(base, bounds=(low, base + more + 1)), quantum(base)
    size = size_of(offset, recipe, q, n)
    assert low <= size <= min(base + more + 1, n)
    assert size == base if offset == 0 else True
    if offset and low + q <= size <= min(base + more + 1, n) - q:
        assert abs(math.log(size / base) - offset) < q / (size - q) if size > q else True


@given(
    st.lists(st.tuples(st.floats(0, 1e3), st.floats(-1e3, 1e3)), max_size=5),
    st.floats(0, 1),
    st.floats(0, 0.99),
    st.integers(0, 20),
)
def test_an_epoch_moves_the_offset_by_a_bounded_step(
    found: list[tuple[float, float]], step: float, smoothing: float, warmup: int
) -> None:
    recipe = recipe_of(step=step, smoothing=smoothing, warmup=warmup)
    kept = np.array([0.1, 5.0, 0.05, 0.5])
    table = np.array(found, dtype=np.float64).reshape(-1, 2)
    after, scale = renewed(kept, table, recipe, 1000, updates=10)
    assert abs(after[0] - kept[0]) <= step * math.log(4) + 1e-12
    assert after[0] == kept[0] if warmup > 10 or step == 0 else True
    noise, signal, weight = 5.0, 0.05, 0.5
    for s, g in found:
        noise, signal, weight = (c * smoothing + (1 - smoothing) * v for c, v in ((noise, s), (signal, g), (weight, 1)))
    assert after[1:] == pytest.approx([noise, signal, weight])
    if signal > 1e-9:
        assert scale == pytest.approx(noise / signal, rel=1e-6)
    # Nothing measured yet: nothing moves.
    assert renewed(np.zeros(4), np.empty((0, 2)), recipe, 1000, 50)[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("rule, expected", [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_the_learning_rate_follows(rule: Any, expected: float) -> None:
    assert factor_of(160, recipe_of(learning_rate=rule)) == expected
    assert factor_of(40, recipe_of(learning_rate=rule)) == 1.0


def test_the_clock_counts_samples() -> None:
    for size, base, n in itertools.product((7, 20, 64), (7, 20, 64), (64, 150)):
        clock, steps = clock_of(size, base, n)
        assert steps == math.ceil(n / base) and len(clock) == math.ceil(n / size)
        assert [int(k) for k in clock] == [min(at // base, steps - 1) for at in range(0, n, size)]


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 12), st.integers(0, 4))
def test_halves_take_every_sample_once(n: int, batch: int, q: int, halve: int) -> None:
    plain, shape = epoch_shape(n, batch, q), epoch_shape(n, batch, q, halve)
    assert sorted(shape.position[shape.position >= 0].tolist()) == list(range(n))
    assert shape.sizes.tolist() == plain.sizes.tolist() and shape.due.sum() == shape.starts.sum() == len(shape.sizes)
    filled = (shape.position >= 0).sum(1)
    for b, size in enumerate(shape.sizes):
        mine = filled[shape.batch == b]
        halved = halve > 0 and size <= q and b % halve == 0 and size > 1
        assert len(mine) == shape.parts_of[b] == (2 if halved else math.ceil(size / q))
        assert shape.share[b] == pytest.approx(float(np.square(mine / size).sum()))


# -- lanes and plain loop ---------------------------------------------------------------------------------------------------


def test_lanes_are_the_plain_loop() -> None:
    specs = specs_of([*CASES, {"opt": "adamw"}, {"opt": "momentum", "schedule": "step"}])
    fused = train_fused(define, specs, WORK, 4, width=len(specs))
    moved = set()
    for spec in specs:
        solo = train_solo(define, spec, WORK, 4)
        assert_same_trail(fused[spec.number], solo, 1e-9)
        for a, b in zip(fused[spec.number].rows, solo.rows, strict=True):
            assert a.trajectories.keys() == b.trajectories.keys()
            for name, path in a.trajectories.items():
                assert path == pytest.approx(b.trajectories[name], rel=1e-8), (name, spec.params)
        if "step" in spec.params:
            found = sizes(solo)
            assert found[0] == spec.params["batch"]
            moved |= {math.copysign(1, b - a) for a, b in itertools.pairwise(found) if a != b}
            if spec.params.get("step") == 0:
                assert found == [20.0] * 4
    assert moved == {1.0, -1.0}  # some grew, some shrank


def test_compiled_epochs_measure_and_move_too() -> None:
    native.prepare()
    native.wait()
    found = native.kernels()
    if found is None:
        pytest.skip("no compiler")
    KERNELS.append(found)
    COMPILED.append(True)
    try:
        specs = specs_of([CASES[0], CASES[1], CASES[3], CASES[5], CASES[6], {"opt": "adamw"}])
        fleet = open_fleet(define, specs[0], 2, WORK)
        fleet.admit(ready(define, specs[0], WORK))
        assert fleet.compiled is not None and not obstacle(fleet.compiled, fleet)
        fused = train_fused(define, specs, WORK, 4)
    finally:
        COMPILED.pop()
        KERNELS.pop()
    for spec in specs:
        solo = train_solo(define, spec, WORK, 4)
        assert_same_trail(fused[spec.number], solo, 1e-9)
        for a, b in zip(fused[spec.number].rows, solo.rows, strict=True):
            assert a.trajectories.keys() == b.trajectories.keys()
            for name, path in a.trajectories.items():
                assert path == pytest.approx(b.trajectories[name], rel=1e-8), (name, spec.params)


def test_neighbours_change_no_bit_whether_they_move_or_not() -> None:
    work = work_of(class_data(150, dtype=torch.float32))
    cases: list[dict[str, Any]] = [{**c, "dtype": "float32"} for c in (*CASES[:3], {"batch": 20}, {"batch": 40})]
    cases[3:] = [{"opt": "momentum", "dtype": "float32"}, {"opt": "adamw", "dtype": "float32"}]
    specs = specs_of(cases)
    fleet = open_fleet(define, specs[0], len(specs), work)

    def train(present: list[Any]) -> dict[int, tuple[dict[str, Tensor], list[Any]]]:
        fleet.lanes = [None] * fleet.width
        for spec in present:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        rows = [row for _ in range(3) for row in fleet.run_epoch()]
        return {
            s.number: (
                fleet.state.state_dict(fleet.lane_of(s.number)),
                [r.trajectories for r in rows if r.trial == s.number],
            )
            for s in present
        }

    together = train(specs)
    rounds = [train(specs[::-1]), train(specs[3:])]
    fleet.state.flat.fill_(math.inf)
    fleet.state.grads.fill_(math.inf)
    for kept in fleet.state.extra.values():
        kept.fill_(math.inf if kept.is_floating_point() else 0)
    rounds += [train(specs[1:2]), train(specs[2:4])]
    for found in rounds:
        for number, (state, paths) in found.items():
            assert paths == together[number][1], specs[number].params
            for key, tensor in state.items():
                assert torch.equal(tensor, together[number][0][key]), f"{key} of {specs[number].params}"


def test_a_paused_lane_goes_on_with_its_size() -> None:
    specs = specs_of(CASES[:5])
    whole = train_fused(define, specs, WORK, 4, width=8)
    fleet, other = (open_fleet(define, specs[0], w, WORK) for w in (5, 8))
    for spec in specs:
        fleet.admit(ready(define, spec, WORK))
    fleet.arrange()
    fleet.run_epoch()
    fleet.run_epoch()
    for spec in specs[2:] + specs[:2]:
        lane = fleet.lane_of(spec.number)
        row = fleet.state.take(lane).to_host()
        other.readmit(fleet.leave(lane), row)
    other.arrange()
    for row_ in other.run_epoch():
        expected = whole[row_.trial].rows[2]
        assert row_.trajectories["batch_size"] == expected.trajectories["batch_size"]
        assert row_.train_loss == pytest.approx(expected.train_loss, rel=1e-12)


# -- in a study -------------------------------------------------------------------------------------------------------------


def search(trial: Any) -> Recipe:
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    steps = 3 * shoal.steps_per_epoch(trial, 16)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    moves = BatchSize(
        on=trial.suggest_categorical("on", [True, False]), step=trial.suggest_float("step", 0.2, 1.0), bounds=(8, 80)
    )
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule, "step", extensions=[moves])


def test_a_search_chooses_whether_it_moves(tmp_path: Any) -> None:
    x = made(160, 10, dtype=torch.float32)
    study = shoal.tune(
        search, train=(x, x[:, :4].argmax(1)), n_trials=8, max_epochs=3, scheduler="none", storage=tmp_path / "s.db",
        progress=False, reproducible=True,
    )  # fmt: skip
    for t in study.record.trials:
        assert t.state == "finished", t.reason
        mine = study.trajectories(t.spec.number)
        assert set(mine) == ({"batch_size", "noise_scale"} if t.spec.params["on"] else set())
        if mine:
            assert len(mine["batch_size"].values) == 3 and mine["batch_size"].values[0] == 16
    fleets = [e for e in study.record.events if e.kind == "fleet"]
    assert len({e.data["signature"] for e in fleets}) == 1


def test_batches_that_cannot_be_taken_in_parts_are_refused() -> None:
    def mixing(trial: Any) -> Recipe:
        trial.suggest_float("nothing", 0, 1)
        model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 16, extensions=[BatchSize()])

    x = made(80, 10, dtype=torch.float32)
    study = shoal.tune(mixing, train=(x, x[:, :4].argmax(1)), n_trials=2, max_epochs=2, progress=False)
    for t in study.record.trials:
        assert t.state == "failed"
        assert "BatchSize needs batches that can be taken in parts, and here they cannot" in t.reason
        assert "follows statistics of whole batches" in t.reason


def test_a_noise_scale_that_is_not_finite_ends_its_trial_alone() -> None:
    def steep(trial: Any) -> Recipe:
        model = nn.Linear(3, 1, bias=False).double()
        optimizer = optim.SGD(model.parameters(), lr=1e-300)
        return Recipe(model, optimizer, nn.L1Loss(), 20, extensions=[BatchSize(every=1)] if trial.params["on"] else [])

    x = made(60, 3) * 1e200
    work = work_of(
        datasets((x, torch.zeros(60, 1, dtype=torch.float64)), (x[:9], torch.zeros(9, 1, dtype=torch.float64)))
    )
    specs = specs_of([{"on": True}, {"on": False}])
    fused = train_fused(steep, specs, work, 1)
    for row in (fused[0].rows[0], train_solo(steep, specs[0], work, 1).rows[0]):
        assert math.isfinite(row.train_loss) and not row.finite
        assert row.why == "its gradient noise scale was not finite at update 1"
    assert fused[1].rows[0].finite


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: BatchSize(step=1.5), r"BatchSize\(step=...\) must be at most 1, all the way to the noise scale, not 1.5"),
    (lambda: BatchSize(step=math.nan), r"BatchSize\(step=...\) must be a number of at least 0 and finite, not nan"),
    (lambda: BatchSize(bounds=(1, 64)), r"BatchSize\(bounds=...\) must begin at 2 or above, not 1"),
    (lambda: BatchSize(learning_rate="root"), r"must be 'linear', 'sqrt' or 'none', not 'root'"),  # type: ignore[arg-type]
    (lambda: BatchSize(smoothing=1.0), r"BatchSize\(smoothing=...\) must be a number of at least 0 and less than 1"),
    (lambda: BatchSize(every=0), r"BatchSize\(every=...\) must be a whole number of updates of at least 1, not 0"),
    (
        lambda: recipe_of(8, bounds=(16, 64)),
        r"BatchSize\(bounds=...\) = \(16, 64\) exclude the batch size, 8; widen them, or start inside",
    ),
]


@pytest.mark.parametrize("make, message", BAD)
def test_bad_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
