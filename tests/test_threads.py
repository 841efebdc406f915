"""Threads of torch's kernels: one for small steps, in lanes that share a process; all that there are for large ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import shoal
from lanes_helpers import class_data, open_fleet, ready, specs_of, work_of
from shoal.lanes.step import Program
from shoal.lanes.threads import kernel_threads, threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("parameters", "lanes", "data", "expected"),
    [
        (9_000, 8, torch.zeros(4, 64), 1),
        (9_000, 128, torch.zeros(4, 64), 2),
        (900_000, 2, torch.zeros(4, 64), 2),
        (9_000, 2, torch.zeros(4, 1, 8, 8), 2),  # a convolution meets its parameters at every place
        (9_000, 2, torch.zeros(4, 20, dtype=torch.int64), 2),  # words
    ],
)
def test_small_steps_have_one_thread(
    two_threads: None, parameters: int, lanes: int, data: torch.Tensor, expected: int
) -> None:
    assert kernel_threads(parameters, lanes, 32, [data]) == expected


def test_threads_are_put_back_also_after_an_error(two_threads: None) -> None:
    with pytest.raises(ValueError, match="inside"), threads(1):
        assert torch.get_num_threads() == 1
        raise ValueError("inside")
    assert torch.get_num_threads() == 2


def define(trial: object) -> shoal.Recipe:
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=8)


def test_a_small_fleet_trains_and_validates_in_one_thread(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def noting(name: str) -> None:
        whole = getattr(Program, name)

        def noted(*args: object, **keywords: object) -> object:
            seen.setdefault(name, set()).add(torch.get_num_threads())
            return whole(*args, **keywords)

        monkeypatch.setattr(Program, name, noted)

    noting("train")
    noting("evaluate")
    work = work_of(class_data(dtype=torch.float32))
    spec = specs_of([{}])[0]
    fleet = open_fleet(define, spec, 2, work)
    fleet.admit(ready(define, spec, work))
    fleet.arrange()
    fleet.run_epoch()
    assert seen == {"train": {1}, "evaluate": {1}}
    assert torch.get_num_threads() == 2 == fleet.n_threads
