"""Hyper-validation gradients through the last few updates: against autograd, finite differences and the plain loop; refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import COMPILED, KERNELS, assert_same_trail, labels, made, rebuild, specs_of, train_fused, train_solo
from shoal.data import Datasets, Split
from shoal.errors import RecipeError, UsageError
from shoal.extend import L1, Dropout, WeightDecay
from shoal.lanes import native
from shoal.lanes.fleet import Work
from shoal.lanes.regularised._rule import rows_of
from shoal.lanes.rng import permutation, sample_keys
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from test_regularisers import ALL, OPTIMIZERS, WORK, Step, assert_same_paths, define, splits

UNROLLED: dict[str, Any] = {"method": "unrolled", "batch": 11, "moved": ALL}
NAMES = ("l1", "weight_decay", "label_smoothing", "lr", "dropout/0", "dropout/1")


class Window(Step):
    """The last ``unroll`` of a trial's first three updates, as plain PyTorch does them, as a function of the six numbers."""

    def __init__(self, spec: TrialSpec, unroll: int) -> None:
        self.recipe = rebuild(define, spec, WORK)
        self.model, self.optimizer, self.name = self.recipe.model, self.recipe.optimizer, str(spec.params["opt"])
        x, y = WORK.data.train.tensors
        order = torch.split(torch.from_numpy(permutation(spec.seed, 0, len(x))), 11)[:3]
        keys = torch.split(torch.from_numpy(sample_keys(spec.seed, 0, len(x))), 11)[:3]
        batches = [((x[rows], y[rows]), k) for rows, k in zip(order, keys, strict=True)]
        for self.batch, self.keys in batches[: 3 - unroll]:
            self.set_gradient(self.at)
            self.optimizer.step()
        self.window = batches[3 - unroll :]
        held_out = WORK.data.held_out
        assert held_out is not None
        self.held = [t[torch.from_numpy(rows_of(spec.seed, 1, held_out)[0])] for t in held_out.tensors]
        group = self.optimizer.param_groups[0]
        self.at = torch.tensor([1e-3, group["weight_decay"], 0.1, group["lr"], 0.25, 0.5], dtype=torch.float64)

    def gradient(self, at: Tensor, params: dict[str, Tensor], *, graph: bool) -> list[Tensor]:
        """With L1; by ordinary masks wherever the parameters are, but with the relaxed ones' derivative in the rates."""
        base, leaves = [torch.tensor(0.25), torch.tensor(0.5)], list(params.values())
        losses = (
            self.loss(params, at[2], base, False),
            self.loss(params, self.at[2], list(at[4:]), True),
            self.loss(params, self.at[2], list(self.at[4:]), True),
        )
        hard, soft, there = (torch.autograd.grad(loss, leaves, create_graph=graph) for loss in losses)
        return [h + s - o + at[0] * p.sign() for h, s, o, p in zip(hard, soft, there, leaves, strict=True)]

    def by_autograd(self) -> list[float]:
        at, old = self.at.clone().requires_grad_(), list(self.model.parameters())
        params = {k: p.detach().requires_grad_() for k, p in self.model.named_parameters()}
        state = [self.optimizer.state[p] for p in old]
        zeros = [torch.zeros_like(p) for p in old]
        m = [s.get("exp_avg", s.get("momentum_buffer")) for s in state]
        first = [z if x is None else x for x, z in zip(m, zeros, strict=True)]
        second = [s.get("exp_avg_sq", z) for s, z in zip(state, zeros, strict=True)]
        lr, decay, decoupled = at[3], at[1], self.name == "adamw"
        for number, window in enumerate(self.window, 4 - len(self.window)):
            self.batch, self.keys = window
            moved = {}
            for k, ((name, p), g) in enumerate(zip(params.items(), self.gradient(at, params, graph=True), strict=True)):
                d = g if decoupled else g + decay * p
                if self.name.startswith("adam"):
                    first[k], second[k] = 0.9 * first[k] + 0.1 * d, 0.999 * second[k] + 0.001 * d * d
                    d = first[k] / (1 - 0.9**number) / ((second[k] / (1 - 0.999**number)).sqrt() + 1e-8)
                elif self.name != "sgd":
                    enters = 0.7 if self.name == "damped" and number > 1 else 1.0
                    mu = 0.8 if self.name == "damped" else 0.9
                    first[k] = mu * first[k] + enters * d
                    d = d + mu * first[k] if self.name == "nesterov" else first[k]
                moved[name] = (p * (1 - lr * decay) if decoupled else p) - lr * d
            params = moved
        return torch.autograd.grad(self.outer(params), at)[0].tolist()

    def by_differences(self) -> list[float]:
        """Of the fourth order."""
        out = []
        for k, far in enumerate([2e-6, 1e-5, 1e-5, 1e-5, 1e-6, 1e-6]):
            slope = 0.0
            for times, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                other, at = copy.deepcopy(self), self.at.clone()
                at[k] += times * far
                other.optimizer.param_groups[0].update(weight_decay=float(at[1]), lr=float(at[3]))
                for other.batch, other.keys in self.window:
                    other.set_gradient(at)
                    other.optimizer.step()
                slope += weight * other.outer(dict(other.model.named_parameters())).item() / (12 * far)
            out.append(slope)
        return out


@pytest.mark.parametrize("unroll", [2, 3])
def test_it_is_the_derivative_of_the_last_updates(unroll: int) -> None:
    asked = {**UNROLLED, "moved": f"rate {ALL}", "every": 3, "slopes": True, "unroll": unroll}
    specs = specs_of([{**asked, "opt": name} for name in OPTIMIZERS])
    fused = train_fused(define, specs, WORK, 1)
    for spec in specs:
        window = Window(spec, unroll)
        expected = window.by_autograd()
        if unroll == 2 or not window.name.startswith("adam"):  # Adam's first update bends where a gradient is next to 0
            assert window.by_differences() == pytest.approx(expected, rel=1e-6, abs=1e-9), spec.params
        for row in (fused[spec.number].rows[0], train_solo(define, spec, WORK, 1).rows[0]):
            found = [row.trajectories[f"slope/{name}"][0] for name in NAMES]
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), spec.params


def test_through_one_update_it_is_that_of_t1t2() -> None:
    asked: dict[str, Any] = {"batch": 11, "moved": f"rate {ALL}", "every": 2, "slopes": True}
    methods: list[dict[str, Any]] = [{}, {"method": "unrolled", "unroll": 1}]
    specs = [
        TrialSpec(2 * k + n, 50 + k, {**asked, **method, "opt": name}, {})
        for k, name in enumerate(OPTIMIZERS)
        for n, method in enumerate(methods)
    ]
    fused = train_fused(define, specs, WORK, 1)
    for k, name in enumerate(OPTIMIZERS):
        a, b = (fused[2 * k + n].rows[0].trajectories for n in range(2))
        assert a.keys() == b.keys()
        for path, values in a.items():
            assert values == pytest.approx(b[path], rel=1e-9, abs=1e-12), (path, name)


CASES: list[dict[str, Any]] = [
    *(
        {**UNROLLED, "opt": o, "every": 3, "unroll": 3} for o in ("damped", "nesterov", "adamw")
    ),  # cut off where epochs begin
    {**UNROLLED, "opt": "adam", "batch": 40, "every": 2, "unroll": 2},  # batches of several ticks
    {**UNROLLED, "opt": "nesterov", "every": 1, "unroll": 1, "groups": True},
    {**UNROLLED, "opt": "adamw", "every": 2, "unroll": 2, "groups": True, "moved": f"lr {ALL}"},
    {**UNROLLED, "opt": "sgd", "every": 2, "unroll": 1, "moved": "decay", "warmup": 3},
    {"opt": "adam", "batch": 11, "moved": ALL, "every": 2},  # neighbours by the other methods, and by none
    {"opt": "sgd", "batch": 11, "moved": ALL, "every": 2, "method": "implicit", "terms": 3},
    {"opt": "adam", "batch": 11},
]


def test_lanes_are_the_plain_loop() -> None:
    specs = specs_of(CASES)
    fused = train_fused(define, specs, WORK, 2, width=len(CASES) + 1)
    for spec in specs:
        solo = train_solo(define, spec, WORK, 2)
        assert_same_paths(fused[spec.number], solo, 1e-7, spec.params)
        assert_same_trail(fused[spec.number], solo, 1e-7)
        for name, path in solo.rows[-1].trajectories.items():
            assert path[-1] != solo.rows[0].trajectories[name][0], (name, spec.params)
    again = train_fused(define, specs[::-1][:5], WORK, 2, width=len(CASES) + 1)  # other neighbours, other lanes
    for number, trail in again.items():
        assert [r.train_loss for r in trail.rows] == [r.train_loss for r in fused[number].rows]
        assert [r.trajectories for r in trail.rows] == [r.trajectories for r in fused[number].rows]


def test_compiled_epochs_pause_for_it() -> None:
    native.prepare()
    native.wait()
    if (found := native.kernels()) is None:
        pytest.skip("no compiler")
    specs = specs_of([CASES[k] for k in (1, 2, 3, 7, 9)])
    KERNELS.append(found)
    COMPILED.append(True)
    try:
        fused = train_fused(define, specs, WORK, 2)
    finally:
        COMPILED.pop()
        KERNELS.pop()
    for spec in specs:
        solo = train_solo(define, spec, WORK, 2)
        assert_same_paths(fused[spec.number], solo, 1e-7, spec.params)
        assert_same_trail(fused[spec.number], solo, 1e-7)


def test_l2_is_part_of_the_way_back() -> None:
    """``Recipe(l2=...)`` is SGD's weight decay by another name, and so is its curvature."""

    def plain(trial: Any) -> Recipe:
        got, model = dict(trial.params), nn.Linear(10, 4).double()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=got["decay"])
        moves = [L1(method="unrolled", every=3, unroll=3, step=0.0, slopes=True)]
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 11, l1=1e-3, l2=got["l2"], extensions=moves)

    ways = [{"decay": 0.5, "l2": 0.0}, {"decay": 0.0, "l2": 0.5}, {"decay": 0.0, "l2": 0.0}]
    specs = [TrialSpec(i, 3, p, {}) for i, p in enumerate(ways)]
    fused = train_fused(plain, specs, WORK, 1)
    found = [[trail.rows[0], train_solo(plain, specs[n], WORK, 1).rows[0]] for n, trail in fused.items()]
    a, b, without = ([row.trajectories["slope/l1"][0] for row in rows] for rows in found)
    assert a == pytest.approx(b, rel=1e-8) and a[0] == pytest.approx(a[1], rel=1e-8)
    assert a[0] != pytest.approx(without[0], rel=1e-3)


def test_a_hypergradient_that_is_not_finite_ends_its_trial_alone() -> None:
    data = splits()
    assert data.held_out is not None
    x, y = data.held_out.tensors
    work = Work(Datasets(data.train, data.valid, None, "", Split((x * 1e308, y))), (), torch.device("cpu"))
    specs = specs_of(
        [{**UNROLLED, "opt": "sgd", "moved": "decay", "every": 3, "unroll": 2}, {"opt": "sgd", "batch": 11}]
    )
    fused = train_fused(define, specs, work, 1)
    for row in (fused[0].rows[0], train_solo(define, specs[0], work, 1).rows[0]):
        assert not row.finite and row.why == "the hypergradient of its weight_decay was not finite at update 3"
    assert fused[1].rows[0].finite and not fused[1].rows[0].why


def searched(trial: Any) -> Recipe:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(trial.suggest_float("p", 0.0, 0.6)), nn.Linear(8, 3))
    lr, decay = trial.suggest_float("lr", 1e-4, 1.0, log=True), trial.suggest_float("decay", 1e-6, 1e-1, log=True)
    return Recipe(model, optim.SGD(model.parameters(), lr=lr, weight_decay=decay), nn.CrossEntropyLoss(), 20)


def test_a_study_refines_along_it() -> None:
    x, y = made(140, 6, dtype=torch.float32), labels(140, 3)
    study = shoal.tune(
        searched,
        train=(x[:100], y[:100]),
        valid=(x[100:], y[100:]),
        metric="loss",
        sampler={"name": "gradient_refine", "wave": 4, "points": 2, "method": "unrolled", "unroll": 4},
        n_trials=7,
        max_epochs=2,
        scheduler="none",
        reproducible=True,
        progress=False,
    )
    assert {t.state.value for t in study.record.trials} == {"finished"}
    for number in range(7):  # 5 updates an epoch: at most so many from one measurement to the next
        paths = study.trajectories(number)
        assert {"slope/lr", "slope/weight_decay", "slope/dropout"} <= set(paths) and len(paths["slope/lr"].values) == 2


BAD: list[tuple[Callable[[], object], type[Exception], str]] = [
    (
        lambda: WeightDecay(method="unroled"),  # type: ignore[arg-type]
        RecipeError,
        r"WeightDecay\(method=...\) must be 't1t2', 'unrolled' or 'implicit', not 'unroled'. Did you mean 'unrolled'",
    ),
    (lambda: Dropout(unroll=0), RecipeError, r"Dropout\(unroll=...\) must be a whole number of at least 1, not 0"),
    (
        lambda: WeightDecay(method="unrolled", every=4),
        RecipeError,
        r"WeightDecay\(unroll=...\) must be at most every=4, the updates from one move to the next, not 5",
    ),
    (
        lambda: shoal.GradientRefine(method="unrolled", unroll=11),
        UsageError,
        r"GradientRefine\(unroll=...\) must be at most every=10, .* not 11",
    ),
    (
        lambda: shoal.GradientRefine(unroll=1.5),  # type: ignore[arg-type]
        UsageError,
        r"GradientRefine\(unroll=...\) must be a whole number of at least 1, not 1.5",
    ),
]


@pytest.mark.parametrize(("make", "kind", "message"), BAD)
def test_bad_input(make: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
