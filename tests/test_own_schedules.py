"""Schedules of the user's own: those that only compute numbers stay in lanes; those that look at what a lane trains elsewhere, or
change what the model reads, go on alone. Either way they are equal to the plain loop, in float64."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler as lrs

import shoal
from lanes_helpers import Bench, assert_pool_is_solo, class_data, specs_of, work_of
from shoal.lanes.copying import go_on, take
from shoal.recipe import Recipe

WORK = work_of(class_data(40, (5,), 3, valid=9))
EPOCHS = 4


class Net(nn.Module):
    """``tau`` divides the outputs, if it is there."""

    def __init__(self, tau: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.tau = nn.Linear(5, 4), nn.Linear(4, 3), tau

    def forward(self, x: Tensor) -> Any:
        out = self.second(torch.tanh(self.first(x)))
        return out if self.tau is None else out / self.tau()

    def factor(self, epoch: int) -> float:
        return 1.0 / (1.0 + float(self.first.weight.norm().item()))


class Own(lrs.LRScheduler):
    """What a user's scheduler looks like; ``rule`` gives its factor."""

    def __init__(self, optimizer: Any, rule: Callable[[Any, int], float]) -> None:
        self.rule = rule
        super().__init__(optimizer)

    def get_lr(self) -> Any:
        factor = self.rule(self.optimizer, self.last_epoch)
        return [base * factor for base in self.base_lrs]


def first_of(optimizer: Any) -> Any:
    return optimizer.param_groups[0]["params"][0]


def by_gradient(optimizer: Any, epoch: int) -> float:
    return 1.0 if epoch == 0 else 1.0 / (1.0 + float(first_of(optimizer).grad.norm().item()))


def by_velocity(optimizer: Any, epoch: int) -> float:
    total = sum(float(s["momentum_buffer"].norm()) for s in optimizer.state.values())
    return 1.0 / (1.0 + total)


def unfreezing(optimizer: Any, epoch: int) -> float:
    first_of(optimizer).requires_grad = epoch % 2 == 0
    return 1.0


def shrinking(optimizer: Any, epoch: int) -> float:
    if epoch:
        with torch.no_grad():
            first_of(optimizer).mul_(0.5)
    return 1.0


def dropping(optimizer: Any, epoch: int) -> float:
    if epoch == 2:
        optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][1:]
    return 1.0


def sharpening(optimizer: Any, epoch: int) -> float:
    optimizer.param_groups[0]["nesterov"] = epoch > 1
    return 1.0


def counting(optimizer: Any, epoch: int) -> float:
    parameters = optimizer.param_groups[0]["params"]
    size: int = sum(p.numel() * p.dim() for p in parameters)
    return 1.0 / (1 + epoch * len(parameters) * size / len(parameters[0]))


TAU = 1.0


def global_tau(epoch: int) -> float:
    global TAU
    TAU = 0.5**epoch
    return 1.0


Built = tuple[nn.Module, optim.Optimizer, Any]


def built(schedule: Callable[[Any, nn.Module], Any], tau: Any = None) -> Built:
    model = Net(tau).double()
    optimizer = optim.SGD(model.parameters(), lr=0.2, momentum=0.5)
    return model, optimizer, schedule(optimizer, model)


def own(rule: Callable[[Any, int], float]) -> Callable[[], Built]:
    return lambda: built(lambda o, m: Own(o, rule))


def lambdas(make: Callable[[Any, nn.Module], Callable[[int], float]]) -> Callable[[], Built]:
    return lambda: built(lambda o, m: lrs.LambdaLR(o, make(o, m)))


def shared_dict() -> Built:
    kept = {"tau": 1.0}

    def rule(epoch: int) -> float:
        kept["tau"] = 0.5**epoch
        return 1.0

    return built(lambda o, m: lrs.LambdaLR(o, rule), lambda: kept["tau"])


def shared_cell() -> Built:
    tau = 1.0

    def rule(epoch: int) -> float:
        nonlocal tau
        tau = 0.5**epoch
        return 1.0

    return built(lambda o, m: lrs.LambdaLR(o, rule), lambda: tau)


def shared_class() -> Built:
    class Kept:
        tau = 1.0

    def rule(epoch: int) -> float:
        Kept.tau = 0.5**epoch
        return 1.0

    return built(lambda o, m: lrs.LambdaLR(o, rule), lambda: Kept.tau)


def shared_and_left_alone() -> Built:
    options = {"tau": 0.5, "gamma": 0.8}
    return built(lambda o, m: lrs.LambdaLR(o, lambda epoch: options["gamma"] ** epoch), lambda: options["tau"])


def a_global() -> Built:
    global TAU
    TAU = 1.0
    return built(lambda o, m: lrs.LambdaLR(o, global_tau), lambda: TAU)


def in_a_list() -> Built:
    return built(lambda o, m: lrs.ChainedScheduler([lrs.ConstantLR(o, 0.5, 1), Own(o, by_gradient)]))


def views(optimizer: Any, model: nn.Module) -> Callable[[int], float]:
    weight = first_of(optimizer).data.view(-1)
    return lambda epoch: 1.0 / (1.0 + weight.norm().item())


def arrays(optimizer: Any, model: nn.Module) -> Callable[[int], float]:
    weight = first_of(optimizer).detach().numpy()
    return lambda epoch: 1.0 / (1.0 + float(abs(weight).sum()))


HOLDS = "its schedule holds a module or a parameter"
LOOKS = r"its schedule looks at a tensor of the model, .*\(test_own_schedules.py, line \d+\)"
READS = "its schedule changes what the forward pass reads"
STATE = r"its schedule looks at its optimizer's state, .*line \d+"
CASES: dict[str, tuple[Callable[[], Built], str]] = {
    "numbers only": (own(lambda o, k: 0.9**k), ""),
    "cosine of the epoch": (lambdas(lambda o, m: lambda k: math.cos(k / 10)), ""),
    "how many parameters there are": (own(counting), ""),
    "an option that the model reads too": (shared_and_left_alone, ""),
    "Nesterov from the second epoch on": (own(sharpening), ""),
    "norm of a weight": (own(lambda o, k: 1.0 / (1.0 + first_of(o).norm().item())), LOOKS),
    "norm of a weight, later": (own(lambda o, k: 1.0 if k < 2 else 1.0 / (1.0 + first_of(o).norm().item())), LOOKS),
    "norm of a gradient": (own(by_gradient), LOOKS),
    "norm of a gradient, in a chain": (in_a_list, LOOKS),
    "the optimizer in a closure": (lambdas(lambda o, m: lambda k: 1.0 / (1.0 + first_of(o)[0, 0].item() ** 2)), LOOKS),
    "momentum": (own(by_velocity), STATE),
    "unfreezing": (own(unfreezing), LOOKS),
    "shrinking weights": (own(shrinking), LOOKS),
    "dropping a parameter": (own(dropping), "changes which parameters its optimizer holds"),
    "the model in a closure": (lambdas(lambda o, m: lambda k: m.factor(k)), HOLDS),  # type: ignore[operator]
    "a method of the model": (lambdas(lambda o, m: m.factor), HOLDS),  # type: ignore[return-value,arg-type]
    "a default": (lambdas(lambda o, m: lambda k, m=m: m.factor(k)), HOLDS),  # type: ignore[misc]
    "a partial": (lambdas(lambda o, m: functools.partial(lambda m, k: m.factor(k), m)), HOLDS),
    "a view of a weight": (lambdas(views), HOLDS),
    "an array in a weight's memory": (lambdas(arrays), HOLDS),
    "state in a closure": (
        lambdas(lambda o, m: (lambda s: lambda k: 1.0 / (1 + len(s)))(o.state)),
        "its optimizer's state",
    ),
    "a dict that the model reads": (shared_dict, READS),
    "a variable that the model reads": (shared_cell, READS),
    "a class that the model reads": (shared_class, READS),
    "a global that the model reads": (a_global, READS),
}


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_in_lanes_as_alone(every: Literal["epoch", "step"]) -> None:
    """All of them in one pool, side by side."""
    names = list(CASES)

    def define(trial: Any) -> Recipe:
        model, optimizer, schedule = CASES[names[trial.params["case"]]][0]()
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule=schedule, schedule_every=every)

    found = assert_pool_is_solo(define, [{"case": k} for k in range(len(names))], WORK, EPOCHS)
    for (name, (_, reason)), why in zip(CASES.items(), found, strict=True):
        assert re.search(reason, why) if reason else not why, f"{name}: {why or 'in a lane'}"


def by_lr(optimizer: Any) -> Callable[[Any, Any], Tensor]:
    def loss(model: Any, batch: Any) -> Tensor:
        x, y = batch
        mean: Tensor = nn.functional.cross_entropy(model(x), y)
        return mean * (1.0 + float(optimizer.param_groups[0]["lr"]))

    return loss


def test_a_loss_that_reads_the_learning_rate_goes_alone() -> None:
    def define(trial: Any) -> Recipe:
        model = Net().double()
        optimizer = optim.SGD(model.parameters(), lr=0.2)
        schedule = lrs.ExponentialLR(optimizer, 0.5)
        return Recipe(model, optimizer, by_lr(optimizer), 16, schedule=schedule)

    found = assert_pool_is_solo(define, [{}, {}], WORK, EPOCHS)
    assert all("SGD, whose numbers change while it trains" in why for why in found), found


def test_explain_says_which_line_looks() -> None:
    def define(trial: Any) -> Recipe:
        model, optimizer, schedule = own(
            by_gradient if trial.suggest_categorical("looks", [True, False]) else counting
        )()
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule=schedule)

    told = str(shoal.explain(define, train=tuple(WORK.data.train.tensors), n_trials=8))
    assert re.search("solo: [1-7] trials, Net: " + LOOKS, told), told
    assert "fuse into 1 fleet(s)" in told


def test_a_schedule_that_holds_too_much_goes_alone() -> None:
    held = [(k,) for k in range(60_000)]

    def define(trial: Any) -> Recipe:
        model, optimizer, schedule = lambdas(lambda o, m: lambda k: 1.0 / len(held))()
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule=schedule)

    (why,) = assert_pool_is_solo(define, [{}], WORK, 1)
    assert "its schedule reaches more objects than Shoal reads" in why


def later(first: int) -> Callable[[Any, int], float]:
    """Looks at a weight from an epoch on."""
    return lambda o, k: 1.0 if k < first else 1.0 / (1.0 + float(first_of(o).norm().item()))


def test_a_copy_that_looks_does_not_go_on_wrong() -> None:
    """What was copied cannot be trained again alone: the copy is refused, or the trial ends, and says why."""

    def define(trial: Any) -> Recipe:
        model, optimizer, schedule = own(later(int(trial.params["first"])))()
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule=schedule)

    bench = Bench(define, *WORK.data.train.tensors)
    specs = specs_of([{"first": 9}, {"first": 9}, {"first": 9}])
    pool = bench.pool()
    pool.admit([bench.candidate(s) for s in specs])

    def epoch() -> dict[int, Any]:
        rows = {m.trial: m for m in pool.run_epoch()}
        for m in rows.values():
            if not m.error:
                pool.epoch_done(m.trial, m.valid_loss, m.valid_loss)
        return rows

    epoch()
    moves = []
    for spec, first in zip(specs[1:], (1, 3), strict=True):
        held = take(pool, 0)
        assert held is not None
        moves.append((bench.candidate(replace(spec, params={"first": first}, origin=specs[0].seed)), held))
    refused, said = go_on(pool, moves)
    assert re.search(LOOKS, refused) and said == ""
    assert [sorted(epoch()) for _ in range(2)] == [[0, 1, 2]] * 2  # the third epoch's end is where it looks
    last = epoch()
    assert re.search("trial 2: " + LOOKS + "; it goes on from another trial's weights", last[2].error)
    assert not last[0].error and not last[1].error
