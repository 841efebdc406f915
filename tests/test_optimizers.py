"""Every optimizer that has a lane form does what torch.optim does, alone and beside all others; the rest say why they do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from lanes_helpers import (
    Trail,
    assert_same_trail,
    class_data,
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
from shoal.errors import FuseError
from shoal.lanes import optim as families
from shoal.lanes import tables
from shoal.lanes.optim import Family
from shoal.lanes.pool import Candidate, Pool
from shoal.lanes.rng import permutation
from shoal.lanes.solo import Solo, follow
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from shoal.signature import Signer

ALL = OPTIMIZERS | MORE


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


def define(trial: Any) -> Recipe:
    """A define whose optimizer and batch size come from the trial."""
    model = net().to(getattr(torch, trial.params.get("dtype", "float64")))
    return Recipe(model, ALL[trial.params["opt"]](model), nn.CrossEntropyLoss(), trial.params.get("batch", 16))


# --- updates -----------------------------------------------------------------------------------------------------


class Rows:
    """Optimizers of one family side by side on flat rows, as a fleet holds them."""

    def __init__(
        self, family: Family, makers: list[Callable[[nn.Module], optim.Optimizer]], dtype: torch.dtype
    ) -> None:
        self.family, self.dtype = family, dtype
        self.models = [net().to(dtype) for _ in makers]
        self.optimizers = [make(model) for make, model in zip(makers, self.models, strict=True)]
        size = sum(p.numel() for p in self.models[0].parameters())
        self.rows = torch.zeros(4, len(makers), size, dtype=dtype)
        self.carried: list[list[dict[str, float]]] = [[{} for _ in o.param_groups] for o in self.optimizers]
        for row, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            self.rows[0, row] = self.flat(model)
            first = tables.first_second(model, optimizer)
            for (name, p), part in zip(model.named_parameters(), self.parts(model, self.rows[2, row]), strict=True):
                part.view_as(p)[:] = first.get(name, 0.0)

    def flat(self, model: nn.Module) -> Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def parts(self, model: nn.Module, row: Tensor) -> list[Tensor]:
        return list(torch.split(row, [p.numel() for p in model.parameters()]))

    def table(self, steps: np.ndarray) -> np.ndarray:
        """Coefficients (T, K, rows, P), per element."""
        out = np.empty((len(steps), families.K, len(self.models), self.rows.shape[2]))
        for row, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            for group, carried in zip(optimizer.param_groups, self.carried[row], strict=True):
                h = tables.stacked([tables.numbers(group)])
                c = tables.coefficients(optimizer, self.family, h, steps, carried)
                at = 0
                for p in model.parameters():
                    if any(p is member for member in group["params"]):
                        out[:, :, row, at : at + p.numel()] = c[:, :, None]
                    at += p.numel()
        return out

    def update(self, g: Tensor, table: np.ndarray, uses: frozenset[int]) -> None:
        c = torch.from_numpy(table).to(self.dtype).unbind(0)
        p, m, v, a = self.rows.unbind(0)
        families.UPDATES[self.family](p, m, v, a, g, c, uses)


# The families of torch's own optimizers; those of shoal.optim have tests of their own (tests/test_shoal_optim.py).
TORCHS = set(Family) - {Family.SCHEDULE_FREE, Family.PRODIGY, Family.DADAPT}


def by_family(dtype: torch.dtype) -> dict[Family, list[str]]:
    out: dict[Family, list[str]] = {}
    for name, make in ALL.items():
        out.setdefault(tables.family_of(make(net())), []).append(name)
    assert set(out) == TORCHS
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_from_the_same_gradient_updates_agree(dtype: torch.dtype) -> None:
    # All optimizers of a family side by side, so that each takes the operations that any of the others needs. The table is made in
    # two halves, as in two epochs: what is carried from one to the next counts.
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    for family, names in by_family(dtype).items():
        rows = Rows(family, [ALL[name] for name in names], dtype)
        table = np.concatenate([rows.table(np.arange(a, b, dtype=np.float64)) for a, b in ((1, 9), (9, 16))])
        uses = families.uses(np.moveaxis(table, 1, -1))
        for k in range(len(table)):
            g = made(len(names), rows.rows.shape[2], seed=k, dtype=dtype)
            for row, (model, optimizer) in enumerate(zip(rows.models, rows.optimizers, strict=True)):
                for p, part in zip(model.parameters(), rows.parts(model, g[row]), strict=True):
                    p.grad = part.view_as(p).clone()
                optimizer.step()
            rows.update(g, table[k], uses)
            for row, name in enumerate(names):
                expected = rows.flat(rows.models[row])
                error = ((rows.rows[0, row] - expected).abs().max() / expected.abs().max()).item()
                assert error <= tolerance, f"{name}, step {k}: {error:.1e}"


@pytest.mark.parametrize("family", sorted(TORCHS))
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "trained"])
def test_idle_coefficients_change_nothing(family: Family, fresh: bool) -> None:
    state = [made(2, 64, seed=i, dtype=torch.float32).abs() for i in range(4)]
    if fresh:
        for t in state[1:]:
            t.zero_()
    p, m, v, a = state
    a.mul_(0.01)  # the square of a mean is never above the mean of squares
    if family is Family.ADAM_MAX:
        a.copy_(v * 1.5)  # and the largest of all v is never below v
    before = [t.clone() for t in state]
    c = [torch.full((2, 1), float(x)) for x in families.idle(family)]
    everything = frozenset({families.SIGN, families.L2, families.DECAY, families.C5})
    gradient = made(2, 64, seed=9, dtype=torch.float32)
    for optional in (frozenset(), everything):
        g = gradient.clone()
        families.UPDATES[family](p, m, v, a, g, c, optional)
        assert torch.equal(g, gradient), "a lane in the middle of its batch goes on adding to g"
        for t, b in zip(state, before, strict=True):
            assert torch.equal(t, b)


def test_momentum_that_a_schedule_moves_to_zero_and_back() -> None:
    # torch makes the buffer at the first update with momentum, and leaves it alone while there is none.
    path = [0.0, 0.0, 0.9, 0.5, 0.0, 0.0, 0.8, 0.9]
    for nesterov, dampening in ((False, 0.0), (False, 0.4), (True, 0.0)):
        rows = Rows(Family.SGD, [lambda m: optim.SGD(m.parameters(), lr=0.1, weight_decay=0.05)], torch.float64)
        (model,), (optimizer,) = rows.models, rows.optimizers
        snapshots = []
        for momentum in path:
            optimizer.param_groups[0].update(momentum=momentum, nesterov=nesterov and momentum > 0, dampening=dampening)
            snapshots.append(tables.numbers(optimizer.param_groups[0]))
        carried: dict[str, float] = {}
        halves = [
            tables.coefficients(optimizer, Family.SGD, tables.stacked(part), np.array(steps), carried)
            for part, steps in ((snapshots[:4], [1.0, 2.0, 3.0, 4.0]), (snapshots[4:], [5.0, 6.0, 7.0, 8.0]))
        ]
        table = np.concatenate(halves)[:, :, None, None]
        uses = families.uses(np.moveaxis(table, 1, -1))
        for k, momentum in enumerate(path):
            g = made(1, rows.rows.shape[2], seed=k)
            optimizer.param_groups[0].update(momentum=momentum, nesterov=nesterov and momentum > 0)
            for p, part in zip(model.parameters(), rows.parts(model, g[0]), strict=True):
                p.grad = part.view_as(p).clone()
            optimizer.step()
            rows.update(g, table[k], uses)
            assert torch.allclose(rows.rows[0, 0], rows.flat(model), rtol=0, atol=1e-14), f"update {k}"


# --- trajectories ------------------------------------------------------------------------------------------------


def test_a_fleet_of_all_optimizers_takes_the_paths_of_the_plain_loops() -> None:
    # Batches of 20 and 40 in micro-batches of 20: while some lanes update, others are in the middle of their batch. Seven lanes, so
    # that most trials enter a lane that another family has left.
    work = work_of(class_data(60), "accuracy")
    batches = itertools.cycle([20, 40, 40])
    specs = specs_of([{"opt": name, "batch": next(batches)} for name in ALL])
    fused = train_fused(define, specs, work, 3, width=7, stops={0: 1, 3: 2, 11: 1})
    for spec in specs:
        solo = train_solo(define, spec, work, 3)
        # Rprop goes by signs alone: where a gradient is rounding noise, its steps are too.
        assert_same_trail(fused[spec.number], solo, 1e-6 if "rprop" in str(spec.params["opt"]) else 1e-9)


@pytest.mark.parametrize("name", MORE)
def test_the_plain_loop_is_the_loop_one_would_write(name: str) -> None:
    work = work_of(class_data(40))
    spec = specs_of([{"opt": name}])[0]
    trail = train_solo(define, spec, work, 2)
    assert_is_plain_loop(trail, spec, work.data.train.tensors)


def assert_is_plain_loop(trail: Trail, spec: TrialSpec, data: tuple[Tensor, ...]) -> None:
    torch.manual_seed(spec.seed)
    model = net().double()
    optimizer, criterion, (x, y) = ALL[str(spec.params["opt"])](model), nn.CrossEntropyLoss(), data
    for epoch, state in enumerate(trail.states):
        for rows in torch.split(torch.from_numpy(permutation(spec.seed, epoch, len(x))), 16):
            optimizer.zero_grad()
            criterion(model(x[rows]), y[rows]).backward()
            optimizer.step()
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[key]), f"{key} after epoch {epoch}"


# --- neighbours --------------------------------------------------------------------------------------------------

ONE_OF_EACH = {
    "sgd": "nesterov",
    "adam": "radam",
    "rms": "rmsprop momentum",
    "centered": "rmsprop centered",
    "max": "amsgrad mixed",
    "mixed": "rmsprop mixed",
    "nadam": "nadam l2",
    "adamax": "adamax l2",
    "adagrad": "adagrad all",
    "adadelta": "adadelta all",
    "rprop": "rprop all",
}


@pytest.mark.parametrize("batches", [(16, 16), (20, 40)], ids=str)
def test_neighbours_of_other_families_change_no_bit(batches: tuple[int, int]) -> None:
    work = work_of(class_data(50, dtype=torch.float32))
    names = list(ONE_OF_EACH.values())
    assert {tables.family_of(ALL[n](net())) for n in names} == TORCHS
    specs = specs_of([{"opt": n, "dtype": "float32", "batch": batches[i % 2]} for i, n in enumerate(names)])
    fleet = open_fleet(define, specs[0], len(specs), work)

    def train(present: list[TrialSpec]) -> dict[int, dict[str, Tensor]]:
        fleet.lanes = [None] * fleet.width
        for spec in present:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        fleet.run_epoch()
        fleet.run_epoch()
        return {s.number: fleet.state.state_dict(fleet.lane_of(s.number)) for s in present}

    def train_late(late: list[TrialSpec], first: list[TrialSpec]) -> dict[int, dict[str, Tensor]]:
        """The late ones enter lanes that some of the first have just left."""
        fleet.lanes = [None] * fleet.width
        for spec in first:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        fleet.run_epoch()
        for spec in first[::2]:
            fleet.leave(fleet.lane_of(spec.number))
        for spec in late:
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        fleet.run_epoch()
        out = {s.number: fleet.state.state_dict(fleet.lane_of(s.number)) for s in first[1::2]}
        fleet.run_epoch()
        return out | {s.number: fleet.state.state_dict(fleet.lane_of(s.number)) for s in late}

    together = train(specs)
    rounds = [train(specs[::-1]), train(specs[::2]), train(specs[1::2])]
    rounds += [train_late(specs[:5], specs[5:]), train_late(specs[6:], specs[:6])]
    # A neighbour of each family in turn diverges: all its numbers are infinite or not a number.
    fleet.state.flat.fill_(float("nan"))
    fleet.state.grads.fill_(float("nan"))
    rounds += [train([spec]) for spec in specs]
    for states in rounds:
        for number, state in states.items():
            for key, tensor in state.items():
                assert torch.isfinite(tensor).all()
                assert torch.equal(tensor, together[number][key]), f"{key} of {specs[number].params}"


# --- what has no lane form ---------------------------------------------------------------------------------------


class Own(optim.SGD):
    pass


def stepped(m: nn.Module) -> optim.Optimizer:
    optimizer = optim.Adagrad(m.parameters())
    m(torch.zeros(1, 10)).sum().backward()
    optimizer.step()
    return optimizer


def hooked(m: nn.Module) -> optim.Optimizer:
    optimizer = optim.Rprop(m.parameters())
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


REFUSED: dict[str, tuple[Callable[[nn.Module], optim.Optimizer], str]] = {
    "lbfgs": (lambda m: optim.LBFGS(m.parameters()), "LBFGS evaluates the loss as often as its line search asks for"),
    "sparse": (lambda m: optim.SparseAdam(m.parameters()), "SparseAdam updates the rows that a sparse gradient names"),
    "adafactor": (lambda m: optim.Adafactor(m.parameters()), "Adafactor keeps means over the rows and columns"),
    "muon": (lambda m: optim.Muon([p for p in m.parameters() if p.ndim == 2]), "Muon orthogonalises whole matrices"),
    "own": (lambda m: Own(m.parameters()), r"optimizer test_optimizers.Own has no lane form"),
    "differentiable": (
        lambda m: optim.NAdam(m.parameters(), differentiable=True),
        r"NAdam\(differentiable=True\) has no lane form",
    ),
    "stepped": (stepped, "the Adagrad optimizer already has state"),
    "hooked": (hooked, "the optimizer has step hooks"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_trains_solo_says_why(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(FuseError, match=message):
        tables.family_of(make(net()))


def test_rmsprop_under_a_schedule_that_may_move_its_momentum() -> None:
    class Own(lr_scheduler.LambdaLR):
        pass

    def family(schedule: Callable[[optim.Optimizer], Any]) -> Family:
        optimizer = optim.RMSprop(net().parameters())
        return tables.family_of(optimizer, schedule(optimizer))

    assert family(lambda o: lr_scheduler.ExponentialLR(o, 0.9)) is Family.ADAM
    assert family(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9)) is Family.RMS
    cyclic: dict[str, Any] = {"base_lr": 0.1, "max_lr": 1.0, "max_momentum": 0.0}
    assert family(lambda o: lr_scheduler.CyclicLR(o, **cyclic)) is Family.RMS
    assert family(lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.CyclicLR(o, **cyclic)])) is Family.RMS
    assert family(lambda o: Own(o, lambda k: 1.0)) is Family.RMS


def test_adagrads_sums_follow_its_parameters_to_another_device() -> None:
    model = net()
    optimizer = optim.Adagrad(model.parameters())
    follow(optimizer, model.to("meta")[0].weight.device)  # type: ignore[index]
    for state in optimizer.state.values():
        assert state["sum"].is_meta and not state["step"].is_meta


def solo_lbfgs(trial: Any) -> Recipe:
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4)).double()
    optimizer = optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.8)
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), 25, schedule=schedule, l1=trial.params["l1"])


def test_lbfgs_trains_solo_through_its_closure() -> None:
    work, spec = work_of(class_data(50), "accuracy"), specs_of([{"l1": 0.0}])[0]
    recipe = rebuild(solo_lbfgs, spec, work)
    with pytest.raises(FuseError, match="LBFGS") as refused:
        Signer(work.data.train.tensors).sign(recipe)
    pool = Pool(work, lambda s: rebuild(solo_lbfgs, s, work), measure=True)
    pool.admit([Candidate(spec, recipe, None, reason=str(refused.value))])
    losses = []
    for _ in range(4):
        (row,) = pool.run_epoch()
        assert row.finite and not row.error
        losses.append(row.train_loss)
        pool.epoch_done(spec.number, row.valid_loss, 0.0)
    assert losses[-1] < 0.9 * losses[0]
    assert pool.recipe(spec.number).optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.8**4)
    assert [e.kind for e in pool.drain_events()] == ["solo"]


def test_lbfgs_sees_the_penalty_that_its_gradient_has() -> None:
    # Full batches, no dropout: what LBFGS minimises is a function, and its line search must see that function's own values.
    work, spec = work_of(class_data(50)), specs_of([{"l1": 0.01}])[0]
    recipe = rebuild(solo_lbfgs, spec, work)
    for module in recipe.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x, y = work.data.train.tensors
    torch.manual_seed(spec.seed)
    model = rebuild(solo_lbfgs, spec, work).model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(model(x), y) + 0.01 * sum(p.abs().sum() for p in model.parameters())
        loss.backward()
        return loss  # type: ignore[no-any-return]

    solo = Solo(spec, recipe, work)
    for _ in range(3):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        solo.step((x, y), torch.zeros(len(x), dtype=torch.int32))
    for key, tensor in model.state_dict().items():
        assert torch.allclose(recipe.model.state_dict()[key], tensor, rtol=1e-9, atol=1e-12), key


class Spare(nn.Module):
    """A head that the loss never sees, and one that only its values see."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.used, self.scale = nn.Linear(3, 3), nn.Linear(10, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x) * self.scale.detach()
        return out


@pytest.mark.parametrize("batch", [16, 40])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_the_loss_does_not_reach_is_left_alone(batch: int, smoothing: float) -> None:
    # torch leaves its gradient at None, and its optimizers do not even decay it.
    def spare(trial: Any) -> Recipe:
        model = Spare().double()
        optimizer = ALL[trial.params["opt"]](model)
        loss = nn.CrossEntropyLoss(
            label_smoothing=trial.params["smoothing"]
        )  # a loss with options has a graph of its own
        return Recipe(model, optimizer, loss, batch, clip_norm=trial.params["clip"])

    work = work_of(class_data(60))
    kinds = [(None, 0.0), (0.1, 0.0), (None, smoothing)]
    specs = specs_of([{"opt": n, "clip": c, "smoothing": s} for n in ONE_OF_EACH.values() for c, s in kinds])
    fused = train_fused(spare, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(spare, spec, work, 2), 1e-9)
        start = rebuild(spare, spec, work).model.state_dict()
        for key in ("spare.weight", "spare.bias", "scale"):
            assert torch.equal(fused[spec.number].states[-1][key], start[key]), f"{key} of {spec.params}"
