"""Weighted sampling: drawn with replacement by (trial seed, epoch), each lane by weights of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.utils.data import WeightedRandomSampler

from lanes_helpers import assert_same_trail, class_data, sign, specs_of, train_fused, train_solo, work_of
from shoal.data import Split
from shoal.errors import RecipeError
from shoal.lanes.sampling import Sampling
from shoal.recipe import Recipe

SPLIT = Split((torch.zeros(8, 2), torch.arange(8) % 4))


def recipe(weights: Any) -> Recipe:
    model = nn.Linear(2, 4)
    return Recipe(model, optim.SGD(model.parameters()), nn.CrossEntropyLoss(), 2, sample_weights=weights)


def test_draws_are_those_of_torchs_sampler_in_distribution() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 0.5, 0.0])
    sampling = Sampling.of(recipe(weights), SPLIT)
    draws = np.concatenate([sampling.order(3, epoch) for epoch in range(1000)])
    theirs = torch.tensor(
        list(WeightedRandomSampler(weights.tolist(), 8000, generator=torch.Generator().manual_seed(0)))
    )
    share = np.bincount(draws, minlength=8) / len(draws)
    assert share == pytest.approx((weights / weights.sum()).numpy(), abs=0.02)
    assert share == pytest.approx(theirs.bincount(minlength=8).numpy() / 8000, abs=0.03)
    assert share[[0, 4, 7]].sum() == 0.0


def test_an_order_is_a_function_of_seed_and_epoch() -> None:
    sampling = Sampling.of(recipe(np.ones(8)), SPLIT)
    one, same, epoch, seed = (sampling.order(*key) for key in ((1, 2), (1, 2), (1, 3), (2, 2)))
    assert one.tolist() == same.tolist() and one.tolist() != epoch.tolist() and one.tolist() != seed.tolist()
    assert sorted(Sampling.of(recipe(None), SPLIT).order(1, 2)) == list(range(8))


def test_a_callable_sees_all_training_samples() -> None:
    def rare(batch: tuple[Tensor, ...]) -> Tensor:
        return (batch[1] == 3).double()

    assert set(Sampling.of(recipe(rare), SPLIT).order(0, 0)) == {3, 7}


def test_a_fold_draws_its_own_samples_by_their_weights() -> None:
    rows = np.array([1, 3, 4, 6])
    drawn = Sampling.of(recipe(torch.arange(8.0) % 4), SPLIT, rows).order(0, 0)
    assert len(drawn) == 4 and set(drawn) <= {1, 3, 6}  # sample 4 has weight 0
    assert set(Sampling.of(recipe(lambda batch: batch[1] == 3), SPLIT, rows).order(0, 0)) == {3}
    assert sorted(Sampling.of(recipe(None), SPLIT, rows).order(0, 0)) == rows.tolist()


def test_lanes_draw_by_weights_of_their_own_as_alone() -> None:
    work = work_of(class_data(50), "accuracy")
    counts = work.data.train.tensors[1].bincount()

    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4)).double()
        power = trial.params["power"]
        loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5, 1.0]).double(), ignore_index=trial.params["left out"])
        weights = None if power is None else lambda batch: counts[batch[1]].double() ** -power
        return Recipe(model, optim.Adam(model.parameters()), loss, trial.params["b"], sample_weights=weights)

    drawn = [{"power": p, "b": b, "left out": -100} for p, b in ((None, 16), (0.0, 16), (0.5, 16), (1.0, 32))]
    specs = specs_of(drawn)
    assert len({sign(define, spec, work).key for spec in specs if spec.params["b"] == 16}) == 1
    for together in (specs[:3], specs[3:]):
        fused = train_fused(define, together, work, 2)
        for spec in together:
            assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-10)
    losses = {row.train_loss for row in (train_solo(define, spec, work, 1).rows[0] for spec in specs)}
    assert len(losses) == 4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(5), r"must be one number per training sample, of shape \(8,\); got shape \(5,\)"),
        ([1.0] * 7 + [-2.0], "must be finite and 0 or more; sample 7 has -2.0"),
        ([float("nan")] * 8, "must be finite and 0 or more; sample 0 has nan"),
        (np.zeros(8), "are all 0, so that there is no sample to draw"),
        ("many", "must be numbers, one per training sample; got a str"),
        (lambda batch: None, r"must be one number per training sample, of shape \(8,\); got shape \(\)"),
    ],
)
def test_weights_that_are_none_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Sampling.of(recipe(weights), SPLIT)
