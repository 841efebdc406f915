"""Regularisation that moves by a hyper-validation gradient: the derivative itself, lanes and plain loop, data and refusals."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.func import functional_call

import shoal
from lanes_helpers import (
    Trail,
    assert_same_trail,
    compiled_lanes,
    datasets,
    labels,
    made,
    open_fleet,
    ready,
    rebuild,
    specs_of,
    train_fused,
    train_solo,
)
from shoal.data import Datasets, Split, load, load_whole
from shoal.errors import RecipeError, UsageError
from shoal.extend import L1, BatchSize, Dropout, LabelSmoothing, LearningRate, WeightDecay
from shoal.extend._base import Extension
from shoal.extend._by_validation import Rate
from shoal.lanes import fleet as fleets
from shoal.lanes.compiled._passes import CompiledPasses
from shoal.lanes.compiled._runner import agrees, obstacle
from shoal.lanes.fleet import Work
from shoal.lanes.regularised import LaneRegularisers
from shoal.lanes.regularised._rule import rows_of
from shoal.lanes.rng import KeyedRandom, permutation, sample_keys
from shoal.lanes.solo import Solo
from shoal.recipe import Recipe
from shoal.records import TrialSpec


def splits(n: int = 44, held_out: int = 17, dtype: torch.dtype = torch.float64) -> Datasets:
    """Random inputs and classes: training rows, 13 to validate on, and hyper-validation rows."""
    x, y = made(n + 13 + held_out, 10, dtype=dtype), labels(n + 13 + held_out, 4)
    cut = (slice(n), slice(n, n + 13), slice(n + 13, None))
    train, valid, held = (Split((x[c], y[c])) for c in cut)
    return Datasets(train, valid, None, "", held)


WORK = Work(splits(), (), torch.device("cpu"))
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "damped": lambda p: optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.01),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
}
EXTENSIONS: dict[str, Any] = {
    "decay": WeightDecay,
    "l1": L1,
    "smoothing": LabelSmoothing,
    "dropout": Dropout,
    "rate": Rate,
}


def define(trial: Any) -> Recipe:
    got = dict(trial.params)
    model = nn.Sequential(
        nn.Linear(10, 12), nn.Tanh(), nn.Dropout(0.25), nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 4)
    )
    model = model.to(getattr(torch, got.get("dtype", "float64")))
    shared = {
        k: got[k] for k in ("method", "every", "unroll", "terms", "scale", "warmup", "on", "step", "slopes") if k in got
    }
    moved = got.get("moved", "").split()
    extensions: list[Extension] = [EXTENSIONS[name](**shared) for name in moved if name != "lr"]
    extensions += [LearningRate(step=0.1)] if "lr" in moved else []
    groups: Any = list(model.parameters())
    if got.get("groups"):
        groups = [{"params": groups[:2], "lr": 0.02}, {"params": groups[2:], "weight_decay": 0.0}]
    loss = nn.CrossEntropyLoss(label_smoothing=got.get("smoothing", 0.1))
    return Recipe(
        model, OPTIMIZERS[got["opt"]](groups), loss, got["batch"], l1=got.get("l1", 1e-3), extensions=extensions
    )


ALL = "decay l1 smoothing dropout"
CASES: list[dict[str, Any]] = [
    *({"opt": o, "batch": b, "moved": ALL, "every": 2} for o, b in itertools.product(OPTIMIZERS, (11, 40))),
    *({"opt": o, "batch": 11, "moved": ALL, "every": 2, "method": "implicit", "terms": 3} for o in ("sgd", "adamw")),
    *({"opt": o, "batch": 40, "moved": f"lr {ALL}", "every": 1} for o in ("nesterov", "adamw")),
    *({"opt": o, "batch": 11, "moved": ALL, "every": 1, "groups": True} for o in ("nesterov", "adamw")),
    {"opt": "adam", "batch": 11, "moved": "decay", "every": 2},
    {"opt": "adam", "batch": 11, "moved": "smoothing dropout", "every": 2, "smoothing": 0.0, "warmup": 2},
    *({"opt": o, "batch": 11, "moved": f"rate {ALL}", "every": 2, "slopes": True} for o in ("nesterov", "adamw")),
    {"opt": "sgd", "batch": 40},
    {"opt": "adam", "batch": 11},
]


def assert_same_paths(lane: Trail, solo: Trail, tolerance: float, what: object) -> None:
    for a, b in zip(lane.rows, solo.rows, strict=True):
        assert a.trajectories.keys() == b.trajectories.keys(), what
        for name, path in a.trajectories.items():
            assert path == pytest.approx(b.trajectories[name], rel=tolerance, abs=tolerance), (name, what)


def test_lanes_are_the_plain_loop() -> None:
    specs = specs_of(CASES)
    fused = train_fused(define, specs, WORK, 2, width=16)
    for spec in specs:
        solo = train_solo(define, spec, WORK, 2)
        assert_same_paths(fused[spec.number], solo, 1e-7, spec.params)
        assert_same_trail(fused[spec.number], solo, 1e-7)
        paths = solo.rows[-1].trajectories
        assert bool(paths) is bool(spec.params.get("moved"))
        for name, path in paths.items():
            assert path[0] != path[-1] or len(path) < 3 or path[0] != solo.rows[0].trajectories[name][0], (
                name,
                spec.params,
            )


def test_compiled_lanes_are_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [c for c in CASES if "lr" not in c.get("moved", "").split()]
    specs = specs_of(cases)
    with compiled_lanes():
        fleet = open_fleet(define, specs[0], len(cases), WORK, [rebuild(define, s, WORK) for s in specs])
        for spec in specs:
            fleet.admit(ready(define, spec, WORK))
        assert fleet.compiled is not None and not obstacle(fleet.compiled, fleet)
        assert all(fleet.compiled.ready(name) for name in ("held_out", "losses", "rates"))
        assert agrees(fleet.compiled, fleet)
        for name in ("held_out", "by_numbers"):  # a library that gives another gradient is not used
            with monkeypatch.context() as patch:
                right = getattr(CompiledPasses, name)
                patch.setattr(CompiledPasses, name, lambda *args, right=right: 1.1 * right(*args))
                assert not agrees(fleet.compiled, fleet)
        with monkeypatch.context() as patch:
            patch.setattr(fleet.compiled, "moves", frozenset({"held_out"}))
            assert "what a number needs that moves has no compiled form" in obstacle(fleet.compiled, fleet)
        fleet.leave(0)
        fleet.admit(ready(define, specs_of([{"opt": "sgd", "batch": 11, "moved": "lr"}])[0], WORK))
        assert "no compiled form beside learning rates" in obstacle(fleet.compiled, fleet)
        fleet.leave(0)
        unrolled: dict[str, Any] = {"opt": "sgd", "batch": 11, "moved": "decay", "method": "unrolled", "every": 5}
        fleet.admit(ready(define, specs_of([unrolled])[0], WORK))
        assert "through several updates" in obstacle(fleet.compiled, fleet)

        with monkeypatch.context() as patch:  # what Python would do instead
            for name in ("before", "after"):
                patch.setattr(LaneRegularisers, name, lambda *args: pytest.fail("lanes have left their epoch"))
            fused = train_fused(define, specs, WORK, 2)
            patch.setattr(fleets, "_SEGMENT_SLOTS", 1)  # batches begin in one call and end in another
            apart = train_fused(define, specs, WORK, 2)
    for spec in specs:
        solo = train_solo(define, spec, WORK, 2)
        assert_same_paths(fused[spec.number], solo, 1e-7, spec.params)
        assert_same_trail(fused[spec.number], solo, 1e-7)
        assert apart[spec.number].rows == fused[spec.number].rows


def define_whole(trial: Any) -> Recipe:
    """Batches must be whole here, and the last one of an epoch is smaller; training renews buffers."""
    model = nn.Sequential(
        nn.Linear(10, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 4)
    ).double()
    moves = [make(every=2, **trial.params) for make in (WeightDecay, LabelSmoothing, Dropout)]
    optimizer = optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return Recipe(model, optimizer, nn.CrossEntropyLoss(label_smoothing=0.1), 12, extensions=moves)


def test_compiled_lanes_with_buffers_and_a_smaller_last_batch_are_the_plain_loop() -> None:
    specs = specs_of([{"method": "t1t2"}, {"method": "implicit", "terms": 2}])
    with compiled_lanes():
        fused = train_fused(define_whole, specs, WORK, 2)
    for spec in specs:
        solo = train_solo(define_whole, spec, WORK, 2)
        assert_same_paths(fused[spec.number], solo, 1e-7, spec.params)
        assert_same_trail(fused[spec.number], solo, 1e-7)


# -- the derivative ---------------------------------------------------------------------------------------------------------

# One move in the first epoch, after the third of four updates; Adam's first moment is then a tenth of the derivative.
ONCE: dict[str, Any] = {"batch": 11, "moved": f"rate {ALL}", "every": 3}


def slopes(specs: Sequence[TrialSpec], make: Any = define) -> list[tuple[list[float], list[float]]]:
    """By trial, the derivative in (L1, decay, smoothing, lr, rates...): as lanes have it, and as the plain loop."""
    fleet = open_fleet(make, specs[0], len(specs) + 1, WORK)
    for spec in specs:
        fleet.admit(ready(make, spec, WORK))
    fleet.arrange()
    fleet.run_epoch()
    kept = fleet.state.extra["extend:regulariser.kept"]
    out = []
    for spec in specs:
        solo = Solo(spec, rebuild(make, spec, WORK), WORK)
        solo.run_epoch()
        assert solo._regularisers is not None
        base = solo._regularisers._base.tolist()
        lane, plain = (
            [s / b if k in (0, 1, 3) else s for k, (s, b) in enumerate(zip((first / 0.1).tolist(), base, strict=True))]
            for first in (kept[fleet.lane_of(spec.number), 1], solo._regularisers._kept[1])
        )
        out.append((lane, plain))
    return out


class Step:
    """A trial's third update, as plain PyTorch does it, as a function of (L1, decay, smoothing, learning rate, two rates)."""

    def __init__(self, spec: TrialSpec) -> None:
        self.recipe = rebuild(define, spec, WORK)
        self.model, self.optimizer, self.name = self.recipe.model, self.recipe.optimizer, str(spec.params["opt"])
        x, y = WORK.data.train.tensors
        order = torch.split(torch.from_numpy(permutation(spec.seed, 0, len(x))), 11)
        keys = torch.split(torch.from_numpy(sample_keys(spec.seed, 0, len(x))), 11)
        for rows, k in zip(order[:2], keys[:2], strict=True):
            self.batch, self.keys = (x[rows], y[rows]), k
            self.set_gradient(self.at)
            self.optimizer.step()
        self.batch, self.keys = (x[order[2]], y[order[2]]), keys[2]
        held_out = WORK.data.held_out
        assert held_out is not None
        rows = torch.from_numpy(rows_of(spec.seed, 1, held_out)[0])
        self.held = [t[rows] for t in held_out.tensors]
        group = self.optimizer.param_groups[0]
        self.at = torch.tensor([1e-3, group["weight_decay"], 0.1, group["lr"], 0.25, 0.5], dtype=torch.float64)

    at = torch.tensor(
        [1e-3, 0.0, 0.1, 0.0, 0.25, 0.5], dtype=torch.float64
    )  # decay is the optimizer's own affair until then

    def loss(self, params: dict[str, Tensor], smoothing: Tensor, rates: Sequence[Tensor], relaxed: bool) -> Tensor:
        drops = [m for m in self.model.modules() if isinstance(m, nn.Dropout)]
        held = [m.p for m in drops]
        for module, rate in zip(drops, rates, strict=True):
            object.__setattr__(module, "p", rate if relaxed else float(rate))
        with KeyedRandom(self.keys, relaxed=relaxed):
            out = functional_call(self.model, params, (self.batch[0],))
        for module, p in zip(drops, held, strict=True):
            module.p = p
        log_p = out.log_softmax(1)
        own = -log_p.gather(1, self.batch[1][:, None])[:, 0]
        loss: Tensor = ((1 - smoothing) * own - smoothing / 4 * log_p.sum(1)).mean()
        return loss

    def gradient(self, at: Tensor, params: dict[str, Tensor], *, graph: bool) -> list[Tensor]:
        """With L1; by ordinary masks, but with the relaxed ones' derivative in the rates."""
        base = [torch.tensor(0.25), torch.tensor(0.5)]
        leaves = list(params.values())

        def of(loss: Tensor) -> Sequence[Tensor]:
            return torch.autograd.grad(loss, leaves, create_graph=graph)

        hard = of(self.loss(params, at[2], base, False))
        soft, there = (of(self.loss(params, self.at[2], rates, True)) for rates in (list(at[4:]), list(self.at[4:])))
        return [h + s - o.detach() + at[0] * p.sign() for h, s, o, p in zip(hard, soft, there, leaves, strict=True)]

    def set_gradient(self, at: Tensor) -> None:
        params: dict[str, Tensor] = dict(self.model.named_parameters())
        for p, g in zip(params.values(), self.gradient(at, params, graph=False), strict=True):
            p.grad = g.detach()

    def outer(self, params: dict[str, Tensor]) -> Tensor:
        self.model.eval()
        out = functional_call(self.model, params, (self.held[0],))
        self.model.train()
        return nn.functional.cross_entropy(out, self.held[1])

    def by_autograd(self) -> list[float]:
        at = self.at.clone().requires_grad_()
        params = {k: p.detach().requires_grad_() for k, p in self.model.named_parameters()}
        after = {}
        lr, decoupled = at[3], self.name == "adamw"
        for (k, p), g, old in zip(
            params.items(), self.gradient(at, params, graph=True), self.model.parameters(), strict=True
        ):
            s, d = self.optimizer.state[old], g if decoupled else g + at[1] * p
            if self.name.startswith("adam"):
                m, v = 0.9 * s["exp_avg"] + 0.1 * d, 0.999 * s["exp_avg_sq"] + 0.001 * d * d
                d = m / (1 - 0.9**3) / ((v / (1 - 0.999**3)).sqrt() + 1e-8)
            elif self.name == "nesterov":
                d = d + 0.9 * (0.9 * s["momentum_buffer"] + d)
            elif self.name == "damped":
                d = 0.8 * s["momentum_buffer"] + 0.7 * d
            after[k] = (p * (1 - lr * at[1]) if decoupled else p) - lr * d
        return torch.autograd.grad(self.outer(after), at)[0].tolist()

    def by_differences(self) -> list[float]:
        """Of the fourth order: what Adam makes of L1 bends."""
        out = []
        for k, far in enumerate([2e-6, 1e-5, 1e-5, 1e-5, 1e-6, 1e-6]):
            slope = 0.0
            for times, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                other = copy.deepcopy(self)
                at = self.at.clone()
                at[k] += times * far
                other.set_gradient(at)
                other.optimizer.param_groups[0].update(weight_decay=float(at[1]), lr=float(at[3]))
                other.optimizer.step()
                slope += weight * other.outer(dict(other.model.named_parameters())).item() / (12 * far)
            out.append(slope)
        return out


def test_t1t2_is_the_derivative_of_one_update() -> None:
    specs = specs_of([{**ONCE, "opt": name} for name in OPTIMIZERS])
    for spec, (lane, plain) in zip(specs, slopes(specs), strict=True):
        step = Step(spec)
        expected = step.by_autograd()
        assert step.by_differences() == pytest.approx(expected, rel=1e-6, abs=1e-9), spec.params
        assert lane == pytest.approx(expected, rel=1e-6, abs=1e-9), spec.params
        assert plain == pytest.approx(expected, rel=1e-6, abs=1e-9), spec.params


def optimum(decay: float, smoothing: float) -> Tensor:
    """Where softmax regression on the training rows is at its best, (10 * 4 + 4,), by Newton's method."""
    theta = torch.zeros(44, dtype=torch.float64)

    def loss(theta: Tensor) -> Tensor:
        return inner(theta, decay, smoothing)

    for _ in range(12):
        (slope,) = torch.autograd.grad(loss(at := theta.clone().requires_grad_()), at)
        theta = theta - torch.linalg.solve(torch.autograd.functional.hessian(loss, theta), slope)  # type: ignore[no-untyped-call]
    return theta


def inner(theta: Tensor, decay: float | Tensor, smoothing: float) -> Tensor:
    x, y = WORK.data.train.tensors
    out = x @ theta[:40].view(4, 10).T + theta[40:]
    return nn.functional.cross_entropy(out, y, label_smoothing=smoothing) + decay / 2 * theta.square().sum()


def at_its_best(trial: Any) -> Recipe:
    model, theta = nn.Linear(10, 4).double(), optimum(0.1, 0.2)
    with torch.no_grad():
        model.weight.copy_(theta[:40].view(4, 10))
        model.bias.copy_(theta[40:])
    shared: dict[str, Any] = {"method": "implicit", "every": 1, "terms": 400, "scale": 0.8}
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    return Recipe(model, optimizer, loss, 44, extensions=[WeightDecay(**shared), LabelSmoothing(**shared)])


def test_the_implicit_gradient_is_that_of_the_optimum() -> None:
    held_out = WORK.data.held_out
    assert held_out is not None
    x, y = held_out.tensors

    def outer(theta: Tensor) -> float:
        return nn.functional.cross_entropy(x @ theta[:40].view(4, 10).T + theta[40:], y).item()

    far = 1e-4
    by_decay = (outer(optimum(0.1 + far, 0.2)) - outer(optimum(0.1 - far, 0.2))) / (2 * far)
    by_smoothing = (outer(optimum(0.1, 0.2 + far)) - outer(optimum(0.1, 0.2 - far))) / (2 * far)
    for found in slopes(specs_of([{}]), make=at_its_best)[0]:
        assert found[1:3] == pytest.approx([by_decay, by_smoothing], rel=1e-6)


# -- lanes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True])
def test_neighbours_change_no_bit(compiled: bool) -> None:
    with compiled_lanes() if compiled else nullcontext():
        _neighbours_change_no_bit()


def _neighbours_change_no_bit() -> None:
    work = Work(splits(dtype=torch.float32), (), torch.device("cpu"))
    specs = specs_of([{**c, "dtype": "float32"} for c in CASES if c["batch"] == 11])
    fleet = open_fleet(define, specs[0], len(specs), work, [rebuild(define, s, work) for s in specs])

    def train(present: Sequence[TrialSpec]) -> dict[int, tuple[dict[str, Tensor], list[Any]]]:
        fleet.lanes = [None] * fleet.width
        for spec in present:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        rows = [*fleet.run_epoch(), *fleet.run_epoch()]
        return {
            s.number: (
                fleet.state.state_dict(fleet.lane_of(s.number)),
                [r.trajectories for r in rows if r.trial == s.number],
            )
            for s in present
        }

    together = train(specs)
    rounds = [train(specs[::-1]), train(specs[2:3])]
    fleet.state.flat.fill_(float("inf"))  # what tenants that diverged have left behind, padding included
    fleet.state.grads.fill_(float("inf"))
    rounds.append(train([specs[0], specs[5], specs[-1]]))
    for found in rounds:
        for number, (state, paths) in found.items():
            assert paths == together[number][1], specs[number].params
            for key, tensor in state.items():
                assert torch.equal(tensor, together[number][0][key]), f"{key} of {specs[number].params}"


def test_a_lane_without_has_the_bits_that_it_has_among_its_like() -> None:
    without = [c for c in CASES if not c.get("moved")]
    moving = next(c for c in CASES if c.get("moved"))
    alone, beside = (train_fused(define, specs_of([*without, c]), WORK, 2) for c in (without[0], moving))
    for number in range(len(without)):
        assert [r.train_loss for r in alone[number].rows] == [r.train_loss for r in beside[number].rows]
        for name, tensor in alone[number].states[-1].items():
            assert torch.equal(tensor, beside[number].states[-1][name]), name


def test_a_paused_lane_goes_on_where_it_was() -> None:
    specs = specs_of(CASES[:6])
    whole = train_fused(define, specs, WORK, 2, width=6)
    fleet = open_fleet(define, specs[0], 6, WORK)
    for spec in specs:
        fleet.admit(ready(define, spec, WORK))
    fleet.arrange()
    fleet.run_epoch()
    held = []
    for spec in specs:
        lane = fleet.lane_of(spec.number)
        row = fleet.state.take(lane).to_host()
        held.append((fleet.leave(lane), row))
    for trial, row in held[3:] + held[:3]:
        fleet.readmit(trial, row)
    fleet.arrange()
    for found in fleet.run_epoch():
        expected = whole[found.trial].rows[-1]
        assert found.train_loss == expected.train_loss and found.trajectories == expected.trajectories


# -- studies ----------------------------------------------------------------------------------------------------------------


def search(trial: Any) -> Recipe:
    model = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4))
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=trial.suggest_float("decay", 1e-4, 1e-2, log=True))
    shared: dict[str, Any] = {"on": trial.suggest_categorical("on", [True, False]), "every": 2}
    moves = [WeightDecay(step=trial.suggest_float("step", 0.01, 0.5), **shared), Dropout(**shared)]
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), 8, extensions=moves)


def options(**changes: Any) -> dict[str, Any]:
    x, y = made(90, 10, dtype=torch.float32), labels(90, 4)
    common: dict[str, Any] = {"train": (x, y), "n_trials": 5, "max_epochs": 3, "scheduler": "none", "progress": False}
    return {**common, "reproducible": True, "hyper_valid": 0.2, **changes}


def test_a_study_that_was_cut_short_goes_on_exactly(tmp_path: Path) -> None:
    whole = shoal.tune(search, **options())
    part = shoal.tune(search, **options(storage=tmp_path / "s.db", max_total_epochs=5))
    assert part.stop_reason
    data = options()
    rest = shoal.resume(tmp_path / "s.db", search, train=data["train"], max_total_epochs=100, progress=False)
    on = 0
    for a, b in zip(whole.record.trials, rest.record.trials, strict=True):
        assert (a.spec.params, a.value) == (b.spec.params, b.value)
        paths = whole.trajectories(a.spec.number)
        assert paths == rest.trajectories(a.spec.number)
        assert set(paths) == ({"weight_decay", "dropout"} if a.spec.params["on"] else set())
        on += bool(paths)
    assert on > 0


def test_hyper_validation_data_are_in_no_other_split() -> None:
    x = torch.arange(100.0)[:, None]
    y = torch.arange(100) % 2
    without, with_ = (load((x, y), 0.2, 0.1, hyper_valid=h) for h in (None, 0.25))
    assert with_.held_out is not None and without.held_out is None
    assert with_.held_out.n == 25 and with_.train.n == 45
    assert torch.equal(without.valid.tensors[0], with_.valid.tensors[0])
    assert without.test is not None and with_.test is not None
    assert torch.equal(without.test.tensors[0], with_.test.tensors[0])
    parts = (with_.train, with_.valid, with_.test, with_.held_out)
    assert sorted(v for s in parts for v in s.tensors[0][:, 0].tolist()) == x[:, 0].tolist()
    whole = load_whole((x, y), 0.1, hyper_valid=0.25)
    assert whole.held_out is not None and whole.train.n == 65
    assert without.fingerprint != with_.fingerprint


def test_folds_leave_hyper_validation_data_alone() -> None:
    study = shoal.tune(search, **options(folds=2, n_trials=2, max_epochs=1))
    assert all(t.value is not None for t in study.record.trials)
    with pytest.raises(
        UsageError, match=r"hyper_valid=0.2 draws rows at random, and what is left are other rows than folds="
    ):
        shoal.tune(search, **options(folds=2, groups=[0, 1] * 45))


def test_without_hyper_validation_data_nothing_starts() -> None:
    with pytest.raises(UsageError, match=r"WeightDecay and shoal\.extend\.Dropout needs hyper-validation data to take"):
        shoal.tune(
            search,
            **options(
                hyper_valid=None, sampler={"name": "grid", "space": {"decay": [1e-3], "on": [True], "step": [0.1]}}
            ),
        )


def test_the_plain_loop_says_what_it_lacks() -> None:
    spec = specs_of([CASES[0]])[0]
    with pytest.raises(
        UsageError, match=r"WeightDecay and .* needs hyper-validation data .*Finders have none: set on=False there"
    ):
        Solo(
            spec,
            rebuild(define, spec, WORK),
            Work(datasets(WORK.data.train.tensors, WORK.data.valid.tensors), (), WORK.device),
        )


def test_data_of_ones_own_are_asked_for_again(tmp_path: Path) -> None:
    own = (made(12, 10, dtype=torch.float32), labels(12, 4))
    shoal.tune(search, **options(storage=tmp_path / "s.db", hyper_valid=own, n_trials=1, max_epochs=1))
    with pytest.raises(
        UsageError, match=r"started with hyper-validation data, which no file holds; give resume\(hyper_valid=...\)"
    ):
        shoal.resume(tmp_path / "s.db", search, train=options()["train"], progress=False)
    shoal.resume(tmp_path / "s.db", search, train=options()["train"], hyper_valid=own, progress=False)


def test_a_hypergradient_that_is_not_finite_ends_its_trial_alone() -> None:
    data = splits()
    assert data.held_out is not None
    x, y = data.held_out.tensors
    broken = Datasets(data.train, data.valid, None, "", Split((x * 1e308, y)))
    work = Work(broken, (), torch.device("cpu"))
    specs = specs_of([{"opt": "sgd", "batch": 11, "moved": "decay", "every": 3}, {"opt": "sgd", "batch": 11}])
    fused = train_fused(define, specs, work, 1)
    for row in (fused[0].rows[0], train_solo(define, specs[0], work, 1).rows[0]):
        assert not row.finite
        assert row.why == "the hypergradient of its weight_decay was not finite at update 3"
    assert fused[1].rows[0].finite and not fused[1].rows[0].why


# -- bad input --------------------------------------------------------------------------------------------------------------


def parts(*extensions: Extension, **changes: Any) -> Recipe:
    model = changes.pop("model", nn.Linear(4, 2))
    make: Callable[..., optim.Optimizer] = changes.pop("make", lambda p: optim.SGD(p, lr=0.1, weight_decay=1e-3))
    loss = changes.pop("loss", nn.CrossEntropyLoss())
    return Recipe(model, make(model.parameters()), loss, 8, extensions=extensions, **changes)


def by_groups(p: Any) -> optim.Optimizer:
    weight, bias = p
    return optim.SGD([{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.2}], lr=0.1)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: WeightDecay(method="both"), "must be 't1t2', 'unrolled' or 'implicit', not 'both'"),  # type: ignore[arg-type]
    (lambda: Dropout(every=0), r"Dropout\(every=...\) must be a whole number of at least 1, not 0"),
    (lambda: L1(terms=1.5), r"L1\(terms=...\) must be a whole number of at least 1, not 1.5"),  # type: ignore[arg-type]
    (lambda: L1(scale=0), r"L1\(scale=...\) must be more than 0"),
    (lambda: L1(bounds=(0, 1)), "must begin above 0, since the offset is a logarithm"),
    (lambda: L1(bounds=(1e-9, math.inf)), r"L1\(bounds=...\) must be finite"),
    (lambda: Dropout(bounds=(0, 1)), r"Dropout\(bounds=...\) must stay below 1, not \(0.0, 1.0\)"),
    (lambda: LabelSmoothing(bounds=(0, 1.5)), r"LabelSmoothing\(bounds=...\) must stay below 1"),
    (lambda: parts(WeightDecay(bounds=(1e-2, 1))), r"= \(0.01, 1\) exclude the weight decay, 0.001; widen them"),
    (
        lambda: parts(WeightDecay(), make=lambda p: optim.SGD(p, lr=0.1)),
        "moves the optimizer's weight_decay, which is 0 here",
    ),
    (
        lambda: parts(WeightDecay(), make=by_groups),
        r"moves one weight_decay, and the parameter groups have \[0.1, 0.2\]",
    ),
    (lambda: parts(L1()), r"moves Recipe\(l1=...\), which is 0 here; give one to start from"),
    (
        lambda: parts(LabelSmoothing(), loss=nn.MSELoss()),
        "the smoothing of nn.CrossEntropyLoss, and the loss is MSELoss",
    ),
    (lambda: parts(Dropout()), "moves the rates of nn.Dropout, .* and the model has none"),
    (
        lambda: parts(Dropout(bounds=(0.0, 0.3)), model=nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))),
        "exclude the dropout rate of '0', 0.5",
    ),
    (lambda: parts(WeightDecay(), make=lambda p: optim.RMSprop(p)), "it knows of SGD, Adam, AdamW, not of RMSprop"),
    (
        lambda: parts(WeightDecay(), make=lambda p: optim.AdamW(p, amsgrad=True)),
        "does not know the derivative of an update with amsgrad=True",
    ),
    (lambda: parts(WeightDecay(), clip_norm=1.0), "does not know the derivative of a clipped update"),
    (lambda: parts(WeightDecay(), max_norm=1.0), "does not know the derivative of an update with max_norm"),
    (
        lambda: parts(WeightDecay(method="implicit"), l2=0.1),
        r"\(method='implicit'\) does not see l2; give the optimizer",
    ),
    (lambda: parts(WeightDecay(), BatchSize()), "WeightDecay and BatchSize have no common form yet"),
    (
        lambda: parts(WeightDecay(every=2), L1(), l1=1e-3),
        r"WeightDecay and L1 differ in every \(2 and 10\); extensions of one recipe share a validation gradient",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
