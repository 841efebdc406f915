"""L1, L2, clipping by value and by norm, in this order, then max norm: once per update, per lane, for the whole batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from lanes_helpers import (
    assert_same_trail,
    class_data,
    datasets,
    made,
    open_fleet,
    ready,
    rebuild,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from shoal.lanes import clip
from shoal.lanes.clip import Shaping
from shoal.lanes.fleet import Work
from shoal.lanes.max_norm import MaxNorm
from shoal.lanes.rng import permutation
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec

OPTIMIZERS: dict[str, Any] = {
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "maximize": lambda p: optim.SGD(p, lr=0.001, maximize=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
}

# Limits that bite in most updates, in some, and in none.
SHAPES: list[dict[str, ParamValue]] = [
    {},
    {"l1": 0.01},
    {"clip_value": 0.02},
    {"clip_norm": 0.3},
    {"clip_norm": 0.9},
    {"l2": 0.05},
    {"l1": 0.01, "l2": 0.05},
    {"max_norm": 0.5},
    {"clip_norm": 1e9, "clip_value": 1e9},
    {"l1": 0.05, "l2": 0.02, "clip_value": 0.05, "clip_norm": 0.2, "max_norm": 0.6},
    {"l1": 0, "l2": 0, "clip_value": None, "clip_norm": 0, "max_norm": 0},
]


def define(trial: Any) -> Recipe:
    got = dict(trial.params)
    dtype = getattr(torch, got.pop("dtype", "float64"))
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 4)).to(dtype)
    optimizer = OPTIMIZERS[got.pop("opt")](model.parameters())
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), got.pop("batch"), **got)


def written_out(spec: TrialSpec, work: Work, epochs: int) -> list[dict[str, Tensor]]:
    """The loop that a user would write, penalty in the loss and all: parameters after each epoch."""
    got = dict(spec.params)
    names = ("l1", "l2", "clip_value", "clip_norm", "max_norm")
    l1, l2, value, norm, row = (float(got.get(name) or 0.0) for name in names)
    torch.manual_seed(spec.seed)
    model = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 4)).double()
    optimizer, (x, y), states = OPTIMIZERS[str(got["opt"])](model.parameters()), work.data.train.tensors, []
    for epoch in range(epochs):
        order = torch.from_numpy(permutation(spec.seed, epoch, len(x)))
        for rows in torch.split(order, int(got["batch"] or 0)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            if l1:
                loss = loss + l1 * sum(p.abs().sum() for p in model.parameters())
            if l2:
                loss = loss + l2 / 2 * sum(p.square().sum() for p in model.parameters())
            loss.backward()  # type: ignore[no-untyped-call]
            if value:
                nn.utils.clip_grad_value_(model.parameters(), value)
            if norm:
                nn.utils.clip_grad_norm_(model.parameters(), norm)
            optimizer.step()
            if row:
                with torch.no_grad():
                    for layer in (model[0], model[2]):
                        layer.weight.copy_(torch.renorm(layer.weight, 2, 0, row))  # type: ignore[operator, arg-type]
        states.append({name: t.detach().clone() for name, t in model.state_dict().items()})
    return states


def test_lanes_and_plain_loop_do_what_one_would_write() -> None:
    # 44 samples in batches of 20 and 40, in micro-batches of 20: some lanes are in the middle of a batch, and the last is smaller.
    work, epochs = work_of(class_data(44)), 3
    params = [{**s, "opt": o, "batch": b} for s, o, b in itertools.product(SHAPES, OPTIMIZERS, (20, 40))]
    specs = specs_of(params)
    fused = train_fused(define, specs, work, epochs, width=24)
    by_params: dict[str, dict[str, Tensor]] = {}
    for spec in specs:
        expected = written_out(spec, work, epochs)
        solo = train_solo(define, spec, work, epochs)
        assert_same_trail(fused[spec.number], solo, 1e-10)
        for state, other in zip(solo.states, expected, strict=True):
            for name, tensor in other.items():
                assert torch.allclose(state[name], tensor, rtol=1e-10, atol=1e-12), f"{name} of {spec.params}"
        by_params[str({k: v for k, v in spec.params.items() if v})] = expected[-1]
    # And each limit made a difference: no two of the first eight ways end alike.
    for o, b in itertools.product(OPTIMIZERS, (20, 40)):
        ends = [by_params[str({**s, "opt": o, "batch": b})]["0.weight"] for s in SHAPES[:8]]
        assert all(not torch.allclose(p, q, rtol=1e-6) for p, q in itertools.combinations(ends, 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_lane_that_clips_changes_no_bit_of_its_neighbours(threads: int) -> None:
    work = work_of(class_data(50, dtype=torch.float32))
    shaped = [{**s, "opt": o, "batch": 40, "dtype": "float32"} for s in SHAPES for o in ("momentum", "adamw")]
    specs = specs_of(shaped)
    fleet = open_fleet(define, specs[0], len(specs), work)

    def train(present: Sequence[TrialSpec]) -> dict[int, dict[str, Tensor]]:
        fleet.lanes = [None] * fleet.width
        for spec in present:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        fleet.run_epoch()
        fleet.run_epoch()
        return {s.number: fleet.state.state_dict(fleet.lane_of(s.number)) for s in present}

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = train(specs)
        rounds = [train(specs[::-1]), train(specs[:2]), train(specs[:1])]
        fleet.state.flat.fill_(math.inf)  # what tenants that diverged have left behind, padding included
        fleet.state.grads.fill_(math.inf)
        rounds += [train(specs[6:8]), train(specs[9:])]
    finally:
        torch.set_num_threads(before)
    for states in rounds:
        for number, state in states.items():
            for key, tensor in state.items():
                assert torch.equal(tensor, together[number][key]), f"{key} of {specs[number].params}"


def test_an_infinite_gradient_is_clipped_by_value_in_the_middle_of_a_batch_too() -> None:
    # The gradient of each micro-batch overflows, the loss does not, and clipping makes it a number again.
    def saturating(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh())
        nn.init.constant_(model[0].weight, 1e-39)  # type: ignore[arg-type]
        optimizer = OPTIMIZERS[trial.params["opt"]](model.parameters())
        return Recipe(model, optimizer, nn.MSELoss(reduction="sum"), trial.params["batch"], clip_value=0.5)

    x, y = torch.full((80, 1), 3e38), 1.0 + made(80, 1, dtype=torch.float32).abs()
    work = work_of(datasets((x, y), (x[:9], y[:9])))
    specs = specs_of([{"opt": o, "batch": b} for o in OPTIMIZERS for b in (20, 40)])
    fused = train_fused(saturating, specs, work, 2)
    for spec in specs:
        solo = train_solo(saturating, spec, work, 2)
        recipe = rebuild(saturating, spec, work)
        nn.functional.mse_loss(recipe.model(x[:20]), y[:20], reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert all(torch.isinf(p.grad).all() for p in recipe.model.parameters() if p.grad is not None)
        assert solo.rows[-1].finite
        assert_same_trail(fused[spec.number], solo, 1e-6)


def test_a_norm_that_overflows_is_no_matter_to_a_lane_that_does_not_clip() -> None:
    def steep(trial: Any) -> Recipe:
        model = nn.Linear(3, 1, bias=False)
        optimizer = optim.SGD(model.parameters(), lr=1e-30)
        return Recipe(model, optimizer, nn.L1Loss(), 20, clip_norm=trial.params["clip"])

    x, y = made(40, 3, dtype=torch.float32) * 1e28, torch.zeros(40, 1)
    work = work_of(datasets((x, y), (x[:9], y[:9])))
    specs = specs_of([{"clip": None}, {"clip": 1.0}])
    fused, alone = train_fused(steep, specs, work, 2), train_fused(steep, specs[:1], work, 2, width=2)
    assert torch.equal(fused[0].states[-1]["weight"], alone[0].states[-1]["weight"])
    assert fused[0].rows[-1].finite and not torch.equal(*(fused[0].states[e]["weight"] for e in (0, 1)))
    # In torch a norm that overflows makes the whole gradient zero, and so it does in a lane.
    assert_same_trail(fused[1], train_solo(steep, specs[1], work, 2), 1e-6)


def test_a_fleet_in_which_nobody_clips_pays_nothing() -> None:
    work, spec = (
        work_of(class_data(50)),
        specs_of([{"opt": "adamw", "batch": 20, "clip_norm": 0, "l1": 0.0, "l2": 0, "max_norm": 0}])[0],
    )
    fleet = open_fleet(define, spec, 2, work)
    recipe = rebuild(define, spec, work)
    due = np.ones((3, 2), dtype=bool)
    assert Shaping.of([recipe, None], due, fleet.state) is None
    assert MaxNorm.of([recipe, None], due, fleet.state) is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_max_norm_limits_rows_of_every_kind_of_weight(dtype: str) -> None:
    def deep(trial: Any) -> Recipe:
        conv = nn.Conv1d(3, 4, 2)
        model = nn.Sequential(conv, nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 4)).to(
            getattr(torch, dtype)
        )
        return Recipe(model, optim.SGD(model.parameters(), lr=0.3), nn.CrossEntropyLoss(), 20, **trial.params)

    work = work_of(class_data(40, features=(3, 5), dtype=getattr(torch, dtype)))
    specs = specs_of([{"max_norm": 0.4}, {"max_norm": None}, {"max_norm": 0.7}])
    fused = train_fused(deep, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(deep, spec, work, 2), 1e-5 if dtype == "float32" else 1e-11)
    for state, most in zip((fused[s.number].states[-1] for s in specs), (0.4, math.inf, 0.7), strict=True):
        longest = max(float(state[k].flatten(1).norm(dim=1).max()) for k in ("0.weight", "2.weight", "4.weight"))
        assert longest <= min(most, 2.0) * (1 + 1e-6)
        assert longest > 0.39


def test_l1_reaches_a_parameter_that_the_loss_does_not() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(10, 4), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    def spare(trial: Any) -> Recipe:
        model = Spare().double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 20, l1=trial.params["l1"])

    work, specs = work_of(class_data(40)), specs_of([{"l1": 0.1}, {"l1": 0.0}])
    fused = train_fused(spare, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(spare, spec, work, 2), 1e-12)
    shrunk, kept = (fused[s.number].states[-1]["spare.weight"] for s in specs)
    start, untouched = (rebuild(spare, s, work).model.state_dict()["spare.weight"] for s in specs)
    assert (shrunk.abs() <= start.abs() + 0.01).all() and not torch.equal(shrunk, start)
    assert torch.equal(kept, untouched)


def test_the_penalty_is_over_all_parameters_that_train() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    [*model.parameters()][-1].requires_grad_(False)
    recipe = Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 4, l1=0.5, l2=0.3)
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    assert len(trained) == 3
    expected = sum(0.5 * float(p.abs().sum()) + 0.15 * float(p.square().sum()) for p in trained)
    assert float(clip.penalty(recipe)) == pytest.approx(expected)
    model(made(4, 3, dtype=torch.float32)).sum().backward()
    clip.plain(recipe)
    assert [p.grad is None for p in model.parameters()] == [False, False, False, True]
