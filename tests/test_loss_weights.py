"""Losses of several weighted terms, and weights that move by the task's gradient on hyper-validation data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.func import functional_call

import shoal
from lanes_helpers import COMPILED, KERNELS, made, rebuild, specs_of, train_fused, train_solo
from shoal.data import Datasets, Split
from shoal.errors import FuseError, RecipeError
from shoal.extend import LabelSmoothing, LossWeights, WeightDecay, WeightedSum
from shoal.lanes import native
from shoal.lanes.fleet import Work
from shoal.lanes.regularised._rule import rows_of
from shoal.lanes.rng import permutation
from shoal.lanes.solo import Solo
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from shoal.signature import Signer


def splits() -> Datasets:
    """Two targets that one model gives: 44 rows to train on, 13 to validate on, 17 for the hyper-validation gradient."""
    x = made(74, 10, dtype=torch.float64)
    y = torch.stack([x[:, :3].sum(1), x[:, 2:6].square().sum(1)], 1)
    train, valid, held = (Split((x[c], y[c])) for c in (slice(44), slice(44, 57), slice(57, None)))
    return Datasets(train, valid, None, "", held)


WORK = Work(splits(), (), torch.device("cpu"))
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.05),
}


def task(out: Tensor, batch: Any) -> Tensor:
    return nn.functional.mse_loss(out[:, 0], batch[1][:, 0])


def helper(out: Tensor, batch: Any) -> Tensor:
    return nn.functional.l1_loss(out[:, 1], batch[1][:, 1])


def small(out: Tensor, batch: Any) -> Tensor:
    return out.square().mean()


def forward(model: nn.Module, batch: Any) -> Tensor:
    out: Tensor = model(batch[0])
    return out


def define(trial: Any) -> Recipe:
    got = dict(trial.params)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    loss = WeightedSum(
        {"task": task, "helper": helper, "small": small},
        weights={"helper": got.get("helper", 0.5), "small": 0.1},
        forward=forward,
    )
    shared = {k: got[k] for k in ("every", "method", "terms", "slopes", "step") if k in got}
    moves: list[Any] = [LossWeights(**shared)] if got.get("moved") else []
    moves += [WeightDecay(**shared)] if got.get("decay") else []
    return Recipe(model, OPTIMIZERS[got["opt"]](model.parameters()), loss, got.get("batch", 11), extensions=moves)


CASES: list[dict[str, Any]] = [
    *({"opt": o, "moved": True, "every": 1 + k % 2} for k, o in enumerate(OPTIMIZERS)),
    {"opt": "adamw", "moved": True, "decay": True, "every": 2},
    {"opt": "sgd", "moved": True, "every": 2, "method": "implicit", "terms": 3},
    {"opt": "adam", "moved": True, "every": 2, "slopes": True, "step": 0.0},
    {"opt": "adam"},
    {"opt": "sgd", "helper": 2.0},
]


@pytest.mark.parametrize("compiled", [False, True])
def test_lanes_are_the_plain_loop(compiled: bool) -> None:
    if compiled:
        native.prepare()
        native.wait()
        if (found := native.kernels()) is None:
            pytest.skip("no compiler")
        KERNELS.append(found)
    specs = specs_of(CASES)
    COMPILED.append(compiled)
    try:
        fused = train_fused(define, specs, WORK, 2)
        quiet = train_fused(define, specs[-2:], WORK, 2, width=len(specs))
    finally:
        COMPILED.pop()
        if compiled:
            KERNELS.pop()
    for spec in specs:
        rows, solo = fused[spec.number].rows, train_solo(define, spec, WORK, 2).rows
        for a, b in zip(rows, solo, strict=True):
            assert (a.train_loss, a.valid_loss) == pytest.approx((b.train_loss, b.valid_loss), rel=1e-7)
            assert a.trajectories.keys() == b.trajectories.keys()
            for name, path in a.trajectories.items():
                assert path == pytest.approx(b.trajectories[name], rel=1e-6), (name, spec.params)
        paths = solo[-1].trajectories
        assert {"loss_weight/helper", "loss_weight/small"} <= paths.keys() if spec.params.get("moved") else not paths
        if spec.params.get("moved"):
            assert (paths["loss_weight/helper"][-1] == 0.5) is (spec.params.get("step") == 0.0)
    for spec in specs[-2:]:  # others' moves change no bit
        assert [r.train_loss for r in fused[spec.number].rows] == [r.train_loss for r in quiet[spec.number].rows]


# -- the derivative ---------------------------------------------------------------------------------------------------------

ONCE: dict[str, Any] = {"moved": True, "every": 3, "slopes": True, "step": 0.0}  # after the third of four updates


class Step:
    """A trial's third update in plain PyTorch, as a function of the weights of its two terms."""

    def __init__(self, spec: TrialSpec) -> None:
        self.recipe = rebuild(define, spec, WORK)
        self.model, self.optimizer = self.recipe.model, self.recipe.optimizer
        x, y = WORK.data.train.tensors
        batches = torch.split(torch.from_numpy(permutation(spec.seed, 0, len(x))), 11)
        for rows in batches[:2]:
            self.batch = (x[rows], y[rows])
            self.update(self.at)
        self.batch = (x[batches[2]], y[batches[2]])
        held_out = WORK.data.held_out
        assert held_out is not None
        rows = torch.from_numpy(rows_of(spec.seed, 1, held_out)[0])
        self.held = tuple(t[rows] for t in held_out.tensors)

    at = torch.tensor([0.5, 0.1], dtype=torch.float64)

    def loss(self, at: Tensor, params: dict[str, Tensor]) -> Tensor:
        out = functional_call(self.model, params, (self.batch[0],))
        return task(out, self.batch) + at[0] * helper(out, self.batch) + at[1] * small(out, self.batch)

    def update(self, at: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(at, dict(self.model.named_parameters())).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def outer(self, params: dict[str, Tensor]) -> Tensor:
        return task(functional_call(self.model, params, (self.held[0],)), self.held)

    def by_autograd(self) -> list[float]:
        at = self.at.clone().requires_grad_()
        params = {k: p.detach().requires_grad_() for k, p in self.model.named_parameters()}
        grads = torch.autograd.grad(self.loss(at, params), list(params.values()), create_graph=True)
        group, after = self.optimizer.param_groups[0], {}
        for (k, p), g, old in zip(params.items(), grads, self.model.parameters(), strict=True):
            s, d = self.optimizer.state[old], g + (group["weight_decay"] * p if "betas" not in group else 0)
            if "betas" in group:
                m, v = 0.9 * s["exp_avg"] + 0.1 * g, 0.999 * s["exp_avg_sq"] + 0.001 * g * g
                d = m / (1 - 0.9**3) / ((v / (1 - 0.999**3)).sqrt() + 1e-8)
            elif group["momentum"]:
                d = d + 0.9 * (0.9 * s["momentum_buffer"] + d)
            decay = group["weight_decay"] if "betas" in group else 0
            after[k] = p * (1 - group["lr"] * decay) - group["lr"] * d
        return torch.autograd.grad(self.outer(after), at)[0].tolist()

    def by_differences(self) -> list[float]:
        out = []
        for k in range(2):
            slope = 0.0
            for times, weight in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
                other, at = copy.deepcopy(self), self.at.clone()
                at[k] += times * 1e-5
                other.update(at)
                slope += weight * other.outer(dict(other.model.named_parameters())).item() / 12e-5
            out.append(slope)
        return out


def test_it_is_the_derivative_of_one_update() -> None:
    specs = specs_of([{**ONCE, "opt": name} for name in OPTIMIZERS])
    fused = train_fused(define, specs, WORK, 1)
    for spec in specs:
        step = Step(spec)
        expected = step.by_autograd()
        assert step.by_differences() == pytest.approx(expected, rel=1e-6, abs=1e-9), spec.params
        solo = Solo(spec, rebuild(define, spec, WORK), WORK)
        for row in (fused[spec.number].rows[0], solo.run_epoch()):
            found = [row.trajectories[f"slope/loss_weight/{name}"][0] for name in ("helper", "small")]
            assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), spec.params


# -- in a study -------------------------------------------------------------------------------------------------------------


def searched(trial: Any) -> Recipe:
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2))
    loss = WeightedSum(
        {"task": task, "helper": lambda out, batch: (out[:, 1] - batch[1][:, 1]).abs().mean()},
        weights={"helper": trial.suggest_float("helper", 0.01, 1.0, log=True)},
        forward=lambda model, batch: model(batch[0]),
    )
    moves = LossWeights(on=trial.suggest_categorical("moves", [True, False]), every=2)
    return Recipe(model, optim.Adam(model.parameters(), lr=0.01), loss, 16, extensions=[moves])


def test_a_study_searches_and_moves_them_in_lanes() -> None:
    x, y = (t.float() for t in splits().train.tensors)
    study = shoal.tune(
        searched, train=(x, y), valid=0.2, hyper_valid=0.2, n_trials=4, max_epochs=3, progress=False, reproducible=True
    )
    assert {e.kind for e in study.record.events} & {"fleet"} and not {e.kind for e in study.record.events} & {"solo"}
    for trial in study.record.trials:
        paths = study.trajectories(trial.spec.number)
        assert ("loss_weight/helper" in paths) is trial.spec.params["moves"]
        if trial.spec.params["moves"]:
            assert paths["loss_weight/helper"].values[0] == pytest.approx(trial.spec.params["helper"])


def test_a_term_that_needs_its_weight_as_a_number_trains_alone() -> None:
    class Rounded(float):
        pass

    def fixed(trial: Any) -> Recipe:
        recipe = define(trial)
        object.__setattr__(recipe.loss, "weight_helper", Rounded(0.5))  # no plain float: a part of the signature
        return recipe

    (spec,) = specs_of([{"opt": "sgd", "moved": True}])
    with pytest.raises(FuseError, match=r"LossWeights moves 'loss\.weight_helper', which its loss needs as a plain"):
        Signer(WORK.data.train.tensors).sign(rebuild(fixed, spec, WORK))


# -- bad input --------------------------------------------------------------------------------------------------------------

TERMS: dict[str, Any] = {"task": task, "helper": helper}


def parts(loss: Any, *extensions: Any) -> Recipe:
    model = nn.Linear(10, 2)
    return Recipe(model, optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1), loss, 8, extensions=extensions)


WRONG: Any = 3
BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: WeightedSum({"task": task}, weights={}), "must be a dict of the task and at least one more term"),
    (lambda: WeightedSum(WRONG, weights={}), "must be a dict of the task and at least one more"),
    (
        lambda: WeightedSum({"task": task, "a b": helper}, weights={"a b": 1.0}),
        "letters, digits and underscores, not by 'a b'",
    ),
    (
        lambda: WeightedSum({"task": task, "a": WRONG}, weights={"a": 1.0}),
        r"\['a'\] must be a callable on \(model, batch\), not 3",
    ),
    (
        lambda: WeightedSum(TERMS, weights={"helper": 1.0}, forward=WRONG),
        "must be a callable on .model, batch., or None, not 3",
    ),
    (lambda: WeightedSum(TERMS, weights=WRONG), "must be a dict of numbers by term"),
    (lambda: WeightedSum(TERMS, weights={"task": 1.0}), "'task', the first term: that is the task, whose weight is 1"),
    (lambda: WeightedSum(TERMS, weights={"helpr": 1.0}), "has no term 'helpr'. Did you mean 'helper'"),
    (lambda: WeightedSum(TERMS, weights={}), "lacks the weight of the term 'helper'"),
    (
        lambda: WeightedSum(TERMS, weights={"helper": -1.0}),
        r"\['helper'\] must be a finite number of at least 0, not -1.0",
    ),
    (lambda: parts(nn.MSELoss(), LossWeights()), r"give Recipe\(loss=shoal.extend.WeightedSum\(...\)\), not MSELoss"),
    (lambda: parts(WeightedSum(TERMS, weights={"helper": 0.0}), LossWeights()), "logarithm, and that of 'helper' is 0"),
    (
        lambda: parts(WeightedSum(TERMS, weights={"helper": 5.0}), LossWeights(bounds=(0.1, 1))),
        "exclude the weight of 'helper', 5",
    ),
    (lambda: LossWeights(bounds=(0, 1)), "must begin above 0, since the offset is a logarithm"),
    (
        lambda: parts(WeightedSum(TERMS, weights={"helper": 1.0}), LossWeights(), LabelSmoothing()),
        "LabelSmoothing moves the smoothing of nn.CrossEntropyLoss",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
