"""Gradient checkpointing: the plain loop with it is the plain loop without it, dropout and all, and lanes are equal to both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lanes_helpers import assert_pool_is_solo, assert_same_trail, class_data, specs_of, train_solo, work_of
from shoal.recipe import Recipe
from shoal.records import ParamValue

WORK = work_of(class_data(30, (6,), 3, valid=7))
EPOCHS = 2


class Net(nn.Module):
    """Two blocks with dropout, computed again on the way back ``how``: "no", "new", "old" or "in a row"."""

    def __init__(self, how: str, rate: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(rate)) for _ in range(2)))
        self.start, self.end, self.how = nn.Linear(6, 6), nn.Linear(6, 3), how

    def forward(self, x: Tensor) -> Any:
        h = self.start(x)
        if self.how == "in a row":
            h = checkpoint_sequential(self.blocks, 2, h, use_reentrant=False)  # type: ignore[no-untyped-call]
        else:
            for block in self.blocks:
                h = block(h) if self.how == "no" else checkpoint(block, h, use_reentrant=self.how == "old")
        return self.end(torch.nn.functional.dropout(h, 0.2, self.training))


def define(trial: Any) -> Recipe:
    model = Net(trial.params["how"], trial.params["rate"]).double()
    return Recipe(model, optim.SGD(model.parameters(), lr=0.2), nn.CrossEntropyLoss(), 8)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # when evaluating
@pytest.mark.parametrize("how", ["new", "old", "in a row"])
def test_what_is_computed_again_draws_what_it_drew(how: str) -> None:
    params: list[dict[str, ParamValue]] = [{"how": how, "rate": rate} for rate in (0.3, 0.5)]
    found = assert_pool_is_solo(define, params, WORK, EPOCHS)
    # torch refuses the old way where gradients are asked for by name.
    assert all(("use_reentrant=True" in why) if how == "old" else not why for why in found), found
    for spec, plain in zip(specs_of(params), specs_of([{**p, "how": "no"} for p in params]), strict=True):
        assert_same_trail(train_solo(define, spec, WORK, EPOCHS), train_solo(define, plain, WORK, EPOCHS), 1e-12)


def test_elsewhere_it_is_torchs() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(3, 4, requires_grad=True)
    for old in (False, True):
        torch.manual_seed(0)
        checkpoint(block, x, use_reentrant=old).sum().backward()
        again, x.grad = x.grad, None
        torch.manual_seed(0)
        block(x).sum().backward()
        torch.testing.assert_close(again, x.grad)
        x.grad = None
