"""Learning rates that move by their hypergradient: the derivative itself, the published rules, lanes and plain loop."""

from __future__ import annotations

import copy
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn, optim
from torch.func import functional_call

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
    rebuild,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from optimizer_tables import MORE, OPTIMIZERS
from shoal.errors import RecipeError, StudyError, UsageError
from shoal.extend import LearningRate, Replay, trajectories_of
from shoal.lanes import native
from shoal.lanes.fleet import Work
from shoal.lanes.rng import permutation
from shoal.recipe import Recipe
from shoal.records import EpochRow, TrialSpec
from shoal.storage import load_study

PROPORTIONAL = {name: make for name, make in {**OPTIMIZERS, **MORE}.items() if not name.startswith(("asgd", "rprop "))}
PROPORTIONAL.pop("rprop")
WORK = work_of(class_data(44))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def define(trial: Any) -> Recipe:
    got = dict(trial.params)
    model = net().to(getattr(torch, got.pop("dtype", "float64")))
    optimizer = PROPORTIONAL[got.pop("opt")](model)
    schedule: optim.lr_scheduler.LRScheduler | None = None
    every: Literal["epoch", "step"] = "epoch"
    if got.get("schedule") == "cyclic":
        every = "step"
        schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    elif got.get("schedule") == "step":
        schedule = optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    shape = {k: got[k] for k in ("l1", "clip_norm") if k in got}
    names = ("step", "rule", "bounds", "warmup", "on")
    asked = {k: got[k] for k in names if k in got}
    extensions = [LearningRate(**asked)] if asked else []
    return Recipe(
        model, optimizer, nn.CrossEntropyLoss(), got["batch"], schedule, every, **shape, extensions=extensions
    )


def rates(trail: Trail, name: str = "lr") -> list[float]:
    return [v for row in trail.rows for v in row.trajectories[name]]


def batches(spec: TrialSpec, work: Work, size: int, epochs: int) -> list[tuple[Tensor, Tensor]]:
    x, y = work.data.train.tensors
    orders = (torch.from_numpy(permutation(spec.seed, e, len(x))) for e in range(epochs))
    return [(x[rows], y[rows]) for order in orders for rows in torch.split(order, size)]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


# -- the derivative ---------------------------------------------------------------------------------------------------------


def directions(name: str, grads: Sequence[Tensor], kept: list[dict[str, Tensor]]) -> list[Tensor]:
    """What one unit of learning rate subtracts, as the papers have it."""
    out = []
    for g, s in zip(grads, kept, strict=True):
        if name == "sgd":
            out.append(g)
            continue
        if name == "momentum":
            s["m"] = 0.9 * s["m"] + g if "m" in s else g
            out.append(s["m"])
            continue
        t = s["t"] = s.get("t", torch.zeros((), dtype=torch.float64)) + 1
        s["m"] = 0.9 * s.get("m", torch.zeros_like(g)) + 0.1 * g
        s["v"] = 0.999 * s.get("v", torch.zeros_like(g)) + 0.001 * g * g
        out.append(s["m"] / (1 - 0.9**t) / ((s["v"] / (1 - 0.999**t)).sqrt() + 1e-8))
    return out


class HalfUsed(nn.Module):
    """Its loss does not reach ``spare``."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(10, 4), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Any:
        return self.used(x)


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_penalties_move_what_the_loss_does_not_reach(rule: Literal["additive", "multiplicative"]) -> None:
    def penalised(trial: Any) -> Recipe:
        got = trial.params
        model = HalfUsed().double()
        groups: list[dict[str, Any]] = [{"params": model.used.parameters()}, {"params": model.spare.parameters()}]
        given = groups if got["groups"] else model.parameters()
        optimizer = optim.SGD(given, lr=0.1, momentum=0.5) if got["sgd"] else optim.Adam(given, lr=0.1)
        extensions = [LearningRate(step=1e-2, rule=rule)]
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 11, l1=got["l1"], l2=got["l2"], extensions=extensions)

    grid = itertools.product([True, False], [True, False], [0.0, 0.03], [0.0, 0.1])
    specs = specs_of([{"sgd": a, "groups": b, "l1": l1, "l2": l2} for a, b, l1, l2 in grid])
    lanes = train_fused(penalised, specs, WORK, 3)
    for spec in specs:
        alone = train_solo(penalised, spec, WORK, 3)
        assert_same_trail(lanes[spec.number], alone, 1e-10)
        for name, path in alone.rows[-1].trajectories.items():
            assert lanes[spec.number].rows[-1].trajectories[name] == pytest.approx(path, rel=1e-9), (spec.params, name)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_hypergradient_is_that_of_unrolled_autograd(name: str) -> None:
    beta, spec = 1e-4, specs_of([{"opt": name, "batch": 11, "rule": "additive", "step": 1e-4}])[0]
    solo = rates(train_solo(define, spec, WORK, 2))
    lane = rates(train_fused(define, [spec], WORK, 2, width=3)[0])
    model = rebuild(define, spec, WORK).model
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    kept: list[dict[str, Tensor]] = [{} for _ in params]
    data = batches(spec, WORK, 11, 2)
    for t, batch in enumerate(data[:-1]):
        alpha = torch.tensor(solo[t], dtype=torch.float64, requires_grad=True)
        leaves = [p.clone().requires_grad_() for p in params.values()]
        at = dict(zip(params, leaves, strict=True))
        loss = nn.functional.cross_entropy(functional_call(model, at, (batch[0],)), batch[1])
        grads = torch.autograd.grad(loss, leaves)
        steps = directions(name, [g.detach() for g in grads], kept)
        after = {k: p - alpha * d for (k, p), d in zip(params.items(), steps, strict=True)}
        x, y = data[t + 1]
        (expected,) = torch.autograd.grad(nn.functional.cross_entropy(functional_call(model, after, (x,)), y), alpha)
        for got in (solo, lane):
            assert (got[t] - got[t + 1]) / beta == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
        params = {k: p.detach() for k, p in after.items()}


def update(m: nn.Module, o: optim.Optimizer, batch: tuple[Tensor, Tensor], lrs: Sequence[float]) -> None:
    for group, lr in zip(o.param_groups, lrs, strict=True):
        group["lr"] = lr
    o.zero_grad()
    loss_of(m, batch).backward()  # type: ignore[no-untyped-call]
    o.step()


def test_the_hypergradient_is_that_of_finite_differences() -> None:
    beta = 1e-5
    specs = specs_of([{"opt": name, "batch": 22, "rule": "additive", "step": beta} for name in PROPORTIONAL])
    lanes = train_fused(define, specs, WORK, 2)
    for spec, name in zip(specs, PROPORTIONAL, strict=True):
        model, data = rebuild(define, spec, WORK).model, batches(spec, WORK, 22, 2)
        optimizer = PROPORTIONAL[name](model)
        n_groups = len(optimizer.param_groups)
        paths = [rates(lanes[spec.number], "lr" if n_groups == 1 else f"lr/{k}") for k in range(n_groups)]
        sense = [-1.0 if g["maximize"] else 1.0 for g in optimizer.param_groups]
        for t in range(3):
            for k in range(n_groups):
                found = []
                for side in (1e-5, -1e-5):
                    m, o = copy.deepcopy((model, optimizer))
                    update(m, o, data[t], [path[t] * (1 + side * (i == k)) for i, path in enumerate(paths)])
                    found.append(loss_of(m, data[t + 1]).item())
                expected = (found[0] - found[1]) / (2e-5 * paths[k][t])
                got = sense[k] * (paths[k][t] - paths[k][t + 1]) / beta
                assert got == pytest.approx(expected, rel=1e-6, abs=1e-6), (name, t, k)
            update(model, optimizer, data[t], [path[t] for path in paths])


# -- the rules --------------------------------------------------------------------------------------------------------------


def written_out(spec: TrialSpec, work: Work, epochs: int) -> tuple[list[float], dict[str, Tensor]]:
    """Baydin et al. 2018 as one would write it: one parameter group, torch's own optimizer at the learning rate of the moment."""
    got, recipe = spec.params, rebuild(define, spec, work)
    model, optimizer = recipe.model, PROPORTIONAL[str(got["opt"])](recipe.model)
    alpha, beta = float(optimizer.param_groups[0]["lr"]), float(got["step"] or 0)
    bounds: Any = got.get("bounds", (0.0, math.inf))
    d: list[Tensor] | None = None
    out: list[float] = []
    for t, batch in enumerate(batches(spec, work, int(got["batch"] or 0), epochs)):
        optimizer.zero_grad()
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        g = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        if d is not None and t >= int(got.get("warmup", 0) or 0):
            dot, gg, dd = (
                sum(float((a * b).sum()) for a, b in zip(*pair, strict=True)) for pair in ((g, d), (g, g), (d, d))
            )
            if got["rule"] == "additive":
                alpha = alpha + beta * dot
            else:
                alpha = alpha * (1 + beta * dot / math.sqrt(gg * dd))
            alpha = min(max(alpha, bounds[0]), bounds[1])
        if got.get("clip_norm"):
            nn.utils.clip_grad_norm_(model.parameters(), float(got["clip_norm"] or 0))
        start = [p.detach().clone() for p in model.parameters()]
        optimizer.param_groups[0]["lr"] = alpha
        optimizer.step()
        d = [(s - p.detach()) / alpha for s, p in zip(start, model.parameters(), strict=True)]
        out.append(alpha)
    return out, {k: p.detach() for k, p in model.state_dict().items()}


RULES: list[dict[str, Any]] = [
    {"rule": "additive", "step": 1e-3},
    {"rule": "multiplicative", "step": 0.1},
    {"rule": "multiplicative", "step": 0.3, "warmup": 3},
    {"rule": "additive", "step": 0.05, "bounds": (1e-3, 0.11)},
    {"rule": "multiplicative", "step": 0.5, "clip_norm": 0.2},
]


def test_lanes_and_plain_loop_follow_the_paper() -> None:
    cases = [{**r, "opt": o, "batch": b} for r, o, b in itertools.product(RULES, ("nesterov", "adamw"), (20, 40))]
    specs = specs_of(cases)
    fused = train_fused(define, specs, WORK, 3, width=24)
    moved = 0
    for spec in specs:
        path, end = written_out(spec, WORK, 3)
        solo = train_solo(define, spec, WORK, 3)
        assert rates(solo) == pytest.approx(path, rel=1e-9), spec.params
        assert rates(fused[spec.number]) == pytest.approx(path, rel=1e-9), spec.params
        for name, tensor in end.items():
            assert torch.allclose(solo.states[-1][name], tensor, rtol=1e-9, atol=1e-11), (name, spec.params)
        assert_same_trail(fused[spec.number], solo, 1e-9)
        moved += path[-1] != path[0]
    assert moved == len(specs)


@pytest.fixture(params=["traced", "native", "compiled"])
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Fleets run on torch's kernels, or on native ones, or have a compiled epoch besides, if this machine can build them."""
    if request.param != "traced":
        native.prepare()
        deadline = time.monotonic() + 60
        while native.kernels() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        found = native.kernels()
        if found is None:
            pytest.skip("no compiler")
        KERNELS.append(found)
        COMPILED.append(request.param == "compiled")
        yield request.param
        COMPILED.pop()
        KERNELS.pop()
    else:
        yield "traced"


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
def test_lanes_are_the_plain_loop_with_every_optimizer(rule: str, tier: str) -> None:
    step = {"additive": 1e-4, "multiplicative": 0.2}[rule]
    cases: list[dict[str, Any]] = [{"opt": o, "batch": 20, "rule": rule, "step": step} for o in PROPORTIONAL]
    cases += [
        {"opt": o, "batch": 40, "rule": rule, "step": step, "schedule": s}
        for o in ("adamw", "groups sgd")
        for s in ("cyclic", "step")
    ]
    cases += [{"opt": o, "batch": 40, "schedule": "cyclic"} for o in ("adamw", "groups sgd")]  # and without
    specs = specs_of(cases)
    fused = train_fused(define, specs, WORK, 2, width=16, stops={1: 1, 5: 1})
    for spec in specs:
        solo = train_solo(define, spec, WORK, 2)
        assert_same_trail(fused[spec.number], solo, 1e-9)
        for a, b in zip(fused[spec.number].rows, solo.rows, strict=False):
            assert a.trajectories.keys() == b.trajectories.keys()
            for name, path in a.trajectories.items():
                assert path == pytest.approx(b.trajectories[name], rel=1e-9, abs=1e-15), spec.params


@pytest.mark.parametrize("threads", [1, 2])
def test_neighbours_change_no_bit(threads: int, tier: str) -> None:
    work, trials = work_of(class_data(50, dtype=torch.float32)), {}
    cases = [
        {**r, "opt": o, "batch": b, "dtype": "float32"}
        for r, o, b in itertools.product([{}, *RULES[:2]], ("momentum", "groups"), (20, 40))
    ]
    specs = specs_of(cases)
    fleet = open_fleet(define, specs[0], len(specs), work)
    trials.update({s.number: ready(define, s, work) for s in specs})

    def train(present: Sequence[TrialSpec]) -> dict[int, tuple[dict[str, Tensor], list[Any]]]:
        fleet.lanes = [None] * fleet.width
        for spec in present:
            fleet.admit(replace(trials[spec.number], carried=[]))
        fleet.arrange()
        rows = [*fleet.run_epoch(), *fleet.run_epoch()]
        return {
            s.number: (
                fleet.state.state_dict(fleet.lane_of(s.number)),
                [r.trajectories for r in rows if r.trial == s.number],
            )
            for s in present
        }

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = train(specs)
        rounds = [train(specs[::-1]), train(specs[5:6])]
        fleet.state.flat.fill_(math.inf)  # what tenants that diverged have left behind, padding included
        fleet.state.grads.fill_(math.inf)
        for kept in fleet.state.extra.values():
            kept.fill_(math.inf if kept.is_floating_point() else 0)
        rounds += [train(specs[3:8])]
    finally:
        torch.set_num_threads(before)
    for found in rounds:
        for number, (state, paths) in found.items():
            assert paths == together[number][1], specs[number].params
            for key, tensor in state.items():
                assert torch.equal(tensor, together[number][0][key]), f"{key} of {specs[number].params}"


def test_a_paused_lane_goes_on_where_it_was() -> None:
    cases = [{"opt": o, "batch": 20, **r} for o in ("momentum", "groups") for r in ({}, *RULES[:2])]
    specs = specs_of(cases)
    whole = train_fused(define, specs, WORK, 3, width=8)
    fleet, other = (open_fleet(define, specs[0], w, WORK) for w in (6, 8))
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
        other.readmit(trial, row)
    other.arrange()
    narrow = open_fleet(define, specs[0], 6, WORK)
    other.run_epoch()
    other.move_to(narrow)
    for row_ in narrow.run_epoch():
        expected = whole[row_.trial].rows[-1]
        assert row_.train_loss == pytest.approx(expected.train_loss, rel=1e-12)
        for name, path in expected.trajectories.items():
            assert row_.trajectories[name] == pytest.approx(path, rel=1e-12)


def test_off_is_the_trial_without_and_pays_nothing() -> None:
    cases: list[dict[str, Any]] = [{"opt": "adamw", "batch": 20}, {"opt": "adamw", "batch": 20, "on": False}]
    specs = [TrialSpec(i, 7, c, {}) for i, c in enumerate(cases)]
    fleet = open_fleet(define, specs[0], 2, WORK)
    for spec in specs:
        fleet.admit(ready(define, spec, WORK))
    fleet.arrange()
    rows = fleet.run_epoch()
    assert rows[0].train_loss == rows[1].train_loss and rows[0].valid_loss == rows[1].valid_loss
    assert not rows[0].trajectories and not rows[1].trajectories
    assert not any(name.startswith("extend:") for name in fleet.state.extra)
    # A step of 0 stays where the base value is, to the last digits.
    still = train_fused(define, specs_of([{"opt": "adamw", "batch": 20, "step": 0.0}]), WORK, 1)[0]
    assert rates(still) == pytest.approx([0.01] * 3, rel=1e-14)


# -- what comes of it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["momentum", "adamw", "groups"])
def test_a_learned_schedule_replays_in_plain_pytorch(name: str) -> None:
    spec = specs_of([{"opt": name, "batch": 20, "rule": "multiplicative", "step": 0.3, "schedule": "step"}])[0]
    lane = train_fused(define, [spec], WORK, 3)[0]
    rows = [EpochRow(0, r.epoch, r.train_loss, 0.0, {}, trajectories=r.trajectories) for r in lane.rows]
    model = rebuild(define, spec, WORK).model
    optimizer = PROPORTIONAL[name](model)
    schedule = Replay(optimizer, trajectories_of(rows))
    for batch in batches(spec, WORK, 20, 3):
        optimizer.zero_grad()
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    for key, tensor in model.state_dict().items():
        assert torch.allclose(tensor, lane.states[-1][key], rtol=1e-9, atol=1e-11), key


def test_trajectories_are_in_the_study_and_its_file(tmp_path: Any) -> None:
    x = made(80, 4, dtype=torch.float32)
    y = x[:, :3].argmax(1)

    def search(trial: Any) -> Recipe:
        model = nn.Linear(4, 3)
        optimizer = optim.SGD(model.parameters(), lr=0.01)
        moves = LearningRate(
            step=trial.suggest_float("step", 0.01, 0.2),
            rule=trial.suggest_categorical("rule", ["additive", "multiplicative"]),
            on=trial.suggest_categorical("on", [True, False]),
        )
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, extensions=[moves])

    study = shoal.tune(
        search,
        train=(x, y),
        n_trials=8,
        max_epochs=2,
        scheduler="none",
        storage=tmp_path / "s.db",
        progress=False,
        reproducible=True,
    )
    loaded = load_study(tmp_path / "s.db")
    assert {t.spec.params["on"] for t in loaded.trials} == {True, False}
    for t in loaded.trials:
        mine = study.trajectories(t.spec.number)
        assert mine == trajectories_of(t.rows)
        assert bool(mine) is t.spec.params["on"]
        if mine:
            assert len(mine["lr"].values) == 2 * 4 and set(mine["lr"].epochs) == {1, 2}
            path = mine["lr"].to_csv(tmp_path / "lr.csv")
            lines = path.read_text().splitlines()
            assert lines[0] == "step,epoch,lr"
            assert [float(line.split(",")[2]) for line in lines[1:]] == list(mine["lr"].values)
            assert mine["lr"].table()[4] == (4, 2, mine["lr"].values[4])
    fleets = [e for e in loaded.events if e.kind == "fleet"]
    assert len({e.data["signature"] for e in fleets}) == 1
    with pytest.raises(StudyError, match="has no trial 8: it has 8, numbered from 0"):
        study.trajectories(8)


def rooted(trial: Any) -> Recipe:
    """At a large scale its first loss is finite, and the square of its gradient is not."""
    model = nn.Linear(3, 1).double()
    scale = (
        trial.suggest_categorical("scale", [1e160, 1.0]) if hasattr(trial, "suggest_float") else trial.params["scale"]
    )

    def loss(m: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        squares: Tensor = scale * m(batch[0]).square()
        return squares.mean()

    return Recipe(model, optim.SGD(model.parameters(), lr=1e-3), loss, 8, extensions=[LearningRate(step=0.1)])


def test_a_hypergradient_that_is_not_finite_ends_its_trial_alone() -> None:
    x, y = made(40, 3), torch.zeros(40, 1, dtype=torch.float64)
    work = work_of(datasets((x, y), (x[:9], y[:9])))
    specs = specs_of([{"scale": 1e160}, {"scale": 1.0}])
    fused = train_fused(rooted, specs, work, 1)
    for row in (fused[0].rows[0], train_solo(rooted, specs[0], work, 1).rows[0]):
        assert math.isfinite(row.first_loss) and not row.finite
        assert row.why == "the hypergradient of its learning rate was not finite at update 2"
    assert fused[1].rows[0].finite and not fused[1].rows[0].why
    study = shoal.tune(
        rooted, train=(x, y), n_trials=2, max_epochs=1, sampler="grid", progress=False, reproducible=True
    )
    reasons = {t.spec.params["scale"]: t.reason for t in study.record.trials}
    assert reasons[1e160].endswith("the hypergradient of its learning rate was not finite at update 2")
    assert not reasons[1.0]


# -- bad input --------------------------------------------------------------------------------------------------------------


def parts(**changes: Any) -> Recipe:
    model = nn.Linear(4, 2)
    make: Callable[..., optim.Optimizer] = changes.pop("make", lambda p: optim.SGD(p, lr=0.1))
    return Recipe(model, make(model.parameters()), nn.CrossEntropyLoss(), 8, **changes)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: LearningRate(step=-1.0), r"LearningRate\(step=...\) must be a number of at least 0 and finite, not -1.0"),
    (lambda: LearningRate(step="0.1"), r"must be a number of at least 0 and finite, not '0.1'"),  # type: ignore[arg-type]
    (lambda: LearningRate(step=1.0), r"must be a number of at least 0 and less than 1, not 1.0"),
    (lambda: LearningRate(bounds=(0.1, 0.1)), r"bounds=...\) must have 0 <= lowest < highest, not \(0.1, 0.1\)"),
    (lambda: LearningRate(bounds=0.1), r"must be a pair of numbers \(lowest, highest\), not 0.1"),  # type: ignore[arg-type]
    (lambda: LearningRate(warmup=1.5), "must be a whole number of updates of at least 0, not 1.5"),  # type: ignore[arg-type]
    (lambda: LearningRate(on=1), r"on=...\) must be True or False, not 1"),  # type: ignore[arg-type]
    (lambda: LearningRate(rule="both"), "must be 'additive' or 'multiplicative', not 'both'"),  # type: ignore[arg-type]
    (
        lambda: parts(extensions=[LearningRate(bounds=(1e-4, 1e-2))]),
        r"bounds=...\) = \(0.0001, 0.01\) exclude the learning rate, 0.1; widen them, or start inside",
    ),
    (
        lambda: parts(extensions=[LearningRate()], make=lambda p: optim.Rprop(p)),
        "needs an optimizer whose step is proportional to its learning rate .*, not Rprop",
    ),
    (lambda: parts(extensions=[1]), "holds int, which is no extension of shoal.extend"),
    (lambda: parts(extensions=[LearningRate]), r"holds type, which .*; pass an instance: LearningRate\(\)"),
    (lambda: parts(extensions=LearningRate()), "must be a list of extensions out of shoal.extend, not shoal.extend"),
    (lambda: parts(extensions=[LearningRate(), LearningRate(step=0.1)]), "holds LearningRate twice; keep one of them"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()


def test_replay_needs_a_learning_rate() -> None:
    optimizer = optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"needs the trajectory 'lr', one per parameter group\. There is none at all"):
        Replay(optimizer, {})


@pytest.mark.slow
def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "extensions.md").read_text(encoding="utf-8")
    for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(code, "extensions.md", "exec"), {"__name__": "page"})
    out = capsys.readouterr().out
    assert re.search(r"^lr \S+ -> \S+$", out, re.MULTILINE)
    assert re.search(r"^\(32\.0, .*\)$", out, re.MULTILINE)
