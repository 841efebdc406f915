"""Given width, tier and quantum, no bit of a lane depends on who its neighbours are, on its slot, or on when it was let in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from lanes_helpers import class_data, open_fleet, ready, specs_of, step_schedule, work_of
from shoal.lanes.fleet import Fleet, Work
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec
from shoal.replay import Define

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
OPTIMIZERS: dict[str, Callable[[nn.Module, float], optim.Optimizer]] = {
    "adamw": lambda m, lr: optim.AdamW(m.parameters(), lr=lr, weight_decay=0.01),
    "nesterov": lambda m, lr: optim.SGD(m.parameters(), lr=lr, momentum=0.9, nesterov=True),
    "sgd": lambda m, lr: optim.SGD(m.parameters(), lr=lr),
    "rmsprop": lambda m, lr: optim.RMSprop(m.parameters(), lr=lr),
    "groups": lambda m, lr: optim.AdamW(
        [{"params": [p], "lr": lr / (i + 1)} for i, p in enumerate(m.parameters())], lr=lr
    ),
    "centered": lambda m, lr: optim.RMSprop(m.parameters(), lr=lr, momentum=0.9, centered=True),
}


def mlp(trial: Any) -> Recipe:
    """Widths that fill no vector, so that every kernel has a tail."""
    got = trial.params
    act = ACTIVATIONS[got["act"]]
    hidden = 31
    model = nn.Sequential(
        nn.Linear(10, hidden), act(), nn.Dropout(got["p"]), nn.Linear(hidden, 13), act(), nn.Linear(13, 4)
    )
    return Recipe(model, OPTIMIZERS[got["opt"]](model, got["lr"]), nn.CrossEntropyLoss(), got["batch"])


def norm(trial: Any) -> Recipe:
    got = trial.params
    act = ACTIVATIONS[got["act"]]
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), act(), nn.Dropout(got["p"]), nn.Linear(16, 4))
    return Recipe(model, OPTIMIZERS[got["opt"]](model, got["lr"]), nn.CrossEntropyLoss(), got["batch"])


def cnn(trial: Any) -> Recipe:
    got = trial.params
    act = ACTIVATIONS[got["act"]]
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2),
        act(),
        nn.Flatten(),
        nn.Linear(20, 4),
    )
    return Recipe(model, OPTIMIZERS[got["opt"]](model, got["lr"]), nn.CrossEntropyLoss(), got["batch"])


@dataclass(frozen=True)
class Case:
    define: Define
    features: tuple[int, ...]
    batches: tuple[int, ...]


CASES = {
    "mlp": Case(mlp, (10,), (32, 31)),
    "mlp, small batches": Case(mlp, (10,), (5, 5)),
    "mlp, several micro-batches": Case(mlp, (10,), (40, 39)),
    "mlp, one at a time": Case(mlp, (10,), (1, 1)),
    "batchnorm": Case(norm, (10,), (16,)),
    "cnn": Case(cnn, (1, 8, 8), (16,)),
}


def trial(number: int, case: Case, lr: float = 0.003) -> TrialSpec:
    params: Mapping[str, ParamValue] = {
        "act": list(ACTIVATIONS)[number % 4],
        "p": 0.1 * (number % 4),
        "opt": list(OPTIMIZERS)[number % 6],
        "lr": lr,
        "batch": case.batches[number % len(case.batches)],
    }
    return TrialSpec(number, 77 + number, params, {})


def train(
    define: Define,
    work: Work,
    fleet: Fleet,
    arrivals: Mapping[int, Sequence[TrialSpec]],
    subject: int,
    *,
    epochs: int = 2,
    leave: Mapping[int, Sequence[int]] | None = None,
    copy_over: int = -1,
) -> dict[str, Tensor]:
    """The subject's tensors after its epochs, in a fleet that trials enter and leave before the epochs given.

    Before epoch ``copy_over``, every other lane is overwritten with what its neighbour holds.

    The fleet is used again and again, so that whatever a lane's last tenant left there is part of the test.
    """
    fleet.lanes = [None] * fleet.width
    for epoch in range(20):
        for number in (leave or {}).get(epoch, ()):
            fleet.leave(fleet.lane_of(number))
        for spec in arrivals.get(epoch, ()):
            fleet.admit(ready(define, spec, work))
        fleet.arrange()
        if epoch == copy_over:
            rows = [fleet.state.take(i) for i in range(fleet.width)]
            for i in set(range(fleet.width)) - {fleet.lane_of(subject)}:
                fleet.state.restore(i, rows[i - 1])
        for row in fleet.run_epoch():
            lane = fleet.lane_of(row.trial)
            held = fleet.lanes[lane]
            assert held is not None
            step_schedule(held.recipe, row)
            if row.trial == subject and row.epoch == epochs:
                return fleet.state.state_dict(lane)
    raise AssertionError("the subject was never let in")


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# Every case at a narrow width and at one that fills vectors; one thread, as in worker processes, and two for a few.
WIDTHS = {
    "mlp": (2, 7, 8, 32),
    "mlp, small batches": (7, 32),
    "mlp, several micro-batches": (2, 8),
    "mlp, one at a time": (7,),
    "batchnorm": (2, 32),
    "cnn": (7, 8),
}
ROUNDS = [(name, width, 1) for name, widths in WIDTHS.items() for width in widths]
ROUNDS += [("mlp", 4, 2), ("cnn", 7, 2)]


@pytest.mark.parametrize(("name", "width", "threads"), ROUNDS, indirect=["threads"])
def test_neighbours_change_no_bit(name: str, width: int, threads: int) -> None:
    check_neighbours(name, width)


def check_neighbours(name: str, width: int) -> None:
    """A trial's tensors are the same bits whoever trains beside it, wherever it stands, and whenever it is let in."""
    case = CASES[name]
    work = work_of(class_data(50 if case.batches != (1, 1) else 6, case.features, dtype=torch.float32))
    fleet = open_fleet(case.define, trial(0, case), width, work)
    around = [trial(i, case) for i in range(width)]
    for subject in (1, 4) if width <= 7 else (5,):
        own = trial(subject, case)
        others = [s for s in around if s.number != subject][: width - 1]
        new = [trial(100 + 5 * i, case) for i in range(width - 1)]
        wild = [trial(s.number, case, lr=1e30) for s in others]
        runs = {
            "among others": train(case.define, work, fleet, {0: [own, *others]}, subject),
            "last": train(case.define, work, fleet, {0: [*reversed(others), own]}, subject),
            "alone": train(case.define, work, fleet, {0: [own]}, subject),
            "beside others": train(case.define, work, fleet, {0: [*new, own]}, subject),
            "beside what diverges": train(case.define, work, fleet, {0: [*wild, own]}, subject),
            "others are copied over": train(case.define, work, fleet, {0: [own, *others]}, subject, copy_over=1),
            "let in late": train(
                case.define,
                work,
                fleet,
                {0: [*wild[:1], *new[1:]], 1: [own]},
                subject,
                leave={1: [s.number for s in wild[:1]]},
            ),
            "others come and go": train(
                case.define,
                work,
                fleet,
                {0: [own, *others], 1: new[:1]},
                subject,
                leave={1: [s.number for s in others[:1]]},
            ),
        }
        plain = runs.pop("among others")
        assert all(bool(torch.isfinite(t).all()) for t in plain.values())
        for what, state in runs.items():
            for key, tensor in state.items():
                assert torch.equal(tensor, plain[key]), f"{what}: {key} of trial {subject}"


def test_a_move_to_another_width_keeps_every_bit_of_the_state() -> None:
    case = CASES["mlp"]
    work = work_of(class_data(50, case.features, dtype=torch.float32))
    specs = specs_of([trial(i, case).params for i in range(3)])
    narrow, wide = open_fleet(mlp, specs[0], 4, work), open_fleet(mlp, specs[0], 8, work)
    for spec in specs:
        narrow.admit(ready(mlp, spec, work))
    narrow.arrange()
    narrow.run_epoch()
    before = {s.number: narrow.state.take(narrow.lane_of(s.number)) for s in specs}
    narrow.move_to(wide)
    assert narrow.n_active == 0 and wide.n_active == 3
    for spec in specs:
        row = wide.state.take(wide.lane_of(spec.number))
        assert torch.equal(row.flat, before[spec.number].flat)
        assert all(torch.equal(row.extra[k], t) for k, t in before[spec.number].extra.items())
