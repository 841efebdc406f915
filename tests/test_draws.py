"""Torch's random functions by key: each sample draws the same wherever it is, and draws what torch's would be distributed as."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from lanes_helpers import assert_same_trail, class_data, sign, specs_of, train_fused, train_solo, work_of
from shoal.errors import FuseError
from shoal.lanes.rng import KeyedRandom, LaneRate, sample_keys
from shoal.recipe import Recipe


def keys(n: int, seed: int = 3) -> Tensor:
    return torch.from_numpy(sample_keys(seed, 0, n))


Draw = Callable[[Tensor], Tensor]
DRAWS: dict[str, Draw] = {
    "dropout": lambda x: F.dropout(x, 0.4),
    "dropout, tensor p": lambda x: F.dropout(x, torch.tensor(0.4)),  # type: ignore[arg-type]
    "torch.dropout": lambda x: torch.dropout(x, 0.4, True),
    "dropout1d": lambda x: F.dropout1d(x, 0.4),
    "dropout2d": lambda x: F.dropout2d(x[..., None], 0.4),
    "dropout3d": lambda x: F.dropout3d(x[..., None, None], 0.4),
    "alpha": lambda x: F.alpha_dropout(x, 0.4, training=True),
    "torch.alpha": lambda x: torch.alpha_dropout(x, 0.4, True),
    "feature alpha": lambda x: F.feature_alpha_dropout(x, 0.4, training=True),
    "torch.feature alpha": lambda x: torch.feature_alpha_dropout(x, 0.4, True),
    "rand": lambda x: torch.rand(len(x), 7),
    "randn": lambda x: torch.randn(size=(len(x), 7)),
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(5, (len(x), 4)),
    "randint, low": lambda x: torch.randint(-3, 5, (len(x), 4)),
    "randint, named": lambda x: torch.randint(low=2, high=5, size=(len(x), 4)),
    "randint_like": lambda x: torch.randint_like(x, 9),
    "randint_like, low": lambda x: torch.randint_like(x, 3, high=9),
    "normal": lambda x: torch.normal(x, 2.0),
    "normal, std": lambda x: torch.normal(0.0, x.abs()),
    "normal, size": lambda x: torch.normal(1.0, 2.0, (len(x), 3)),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli, p": lambda x: torch.bernoulli(x, 0.3),
    "multinomial": lambda x: torch.multinomial(x[:, 0].exp(), 2),
    "multinomial, replaced": lambda x: torch.multinomial(x[:, 0].exp(), 5, replacement=True),
    "uniform_": lambda x: torch.empty(len(x), 3).uniform_(-1, 2),
    "normal_": lambda x: x.clone().normal_(1.0, 0.5),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.2),
    "exponential_": lambda x: x.clone().exponential_(3.0),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "gumbel": lambda x: F.gumbel_softmax(x, tau=0.7),
    "gumbel, hard": lambda x: F.gumbel_softmax(x, hard=True),
    "distribution": lambda x: torch.distributions.Normal(x, 1.0).rsample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_belong_to_samples(name: str) -> None:
    x = torch.randn(24, 4, 6, generator=torch.Generator().manual_seed(1))

    def run(x: Tensor, key: Tensor) -> Tensor:
        with KeyedRandom(key) as mode:
            torch.rand(len(key))
            out = DRAWS[name](x)
        assert not mode.whole and mode.site == 2
        return out

    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole, sizes = run(x, keys(24)), [7, 1, 16]
    parts = torch.cat([run(a, b) for a, b in zip(torch.split(x, sizes), torch.split(keys(24), sizes), strict=True)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, run(x, keys(24, seed=4)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_distributed_as_torchs(name: str) -> None:
    """Mean and variance of every entry over many samples, against those of torch's own generator."""
    n = 20_000
    x = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(1)).expand(n, 4, 6)
    torch.manual_seed(5)
    theirs = (F.dropout(x, 0.4) if name == "dropout, tensor p" else DRAWS[name](x)).double().flatten(1)
    with KeyedRandom(keys(n)):
        ours = DRAWS[name](x).double().flatten(1)
    assert ours.shape == theirs.shape
    spread = torch.sqrt((ours.var(0) + theirs.var(0)) / n) + 1e-9
    assert ((ours.mean(0) - theirs.mean(0)).abs() / spread).max() < 5
    # The variance of a variance follows from the fourth moment.
    fourth = ((theirs - theirs.mean(0)) ** 4).mean(0)
    wobble = torch.sqrt(2 * (fourth - theirs.var(0) ** 2).clamp(min=0) / n) + 1e-6
    assert ((ours.var(0) - theirs.var(0)).abs() / wobble).max() < 5


def test_sites_and_samples_of_a_draw_are_uncorrelated() -> None:
    with KeyedRandom(keys(2000)):
        a, b = (F.alpha_dropout(torch.ones(2000, 50), 0.5, training=True) for _ in range(2))
    a, b = ((t - t.mean()) / t.std() for t in (a, b))
    assert abs((a * b).mean().item()) < 5 / math.sqrt(a.numel())
    assert (a[1:] * a[:-1]).mean().abs() < 5 / math.sqrt(a.numel())
    assert (a.T @ a / 2000).fill_diagonal_(0).abs().max() < 6 / math.sqrt(2000)


def test_alpha_dropout_keeps_mean_and_variance_of_selu() -> None:
    x = F.selu(torch.randn(4000, 100, generator=torch.Generator().manual_seed(0)))
    with KeyedRandom(keys(4000)):
        out = F.alpha_dropout(x, 0.3, training=True)
        assert torch.equal(F.alpha_dropout(x, 0.0, training=True), x)
        assert torch.equal(F.alpha_dropout(x, 1.0, training=True), torch.zeros_like(x))
        assert F.alpha_dropout(x, 0.3) is x
    assert abs(out.mean().item()) < 0.02 and abs(out.var().item() - 1) < 0.03


def test_a_permutation_is_one() -> None:
    with KeyedRandom(keys(8)) as mode:
        order = torch.randperm(1000)
    assert mode.whole and torch.equal(order.sort().values, torch.arange(1000))
    assert (order == torch.arange(1000)).sum() < 10


def test_an_input_that_is_one_sample_loses_whole_channels() -> None:
    with KeyedRandom(keys(5)):
        for out in (F.dropout1d(torch.ones(40, 9), 0.5), F.dropout3d(torch.ones(40, 3, 3, 2), 0.5).flatten(1)):
            assert torch.equal(out.amax(1), out.amin(1)) and 0 < (out[:, 0] > 0).sum() < 40


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_a_rate_that_is_no_probability_is_refused(p: float) -> None:
    with KeyedRandom(keys(4)), pytest.raises(ValueError, match="between 0 and 1, but got"):
        F.dropout(torch.ones(4), p)


@pytest.mark.parametrize("bounds", [(5, 5), (0, 2**40)])
def test_a_range_of_integers_that_cannot_be_drawn_is_refused(bounds: tuple[int, int]) -> None:
    with KeyedRandom(keys(4)), pytest.raises(ValueError, match="need a range of 1 to"):
        torch.randint(*bounds, (4,))


def test_a_lanes_own_rate_reads_as_a_number_and_draws_as_a_tensor() -> None:
    module = nn.Module()
    module.register_buffer("dropout_rate", torch.tensor(0.25))
    rate = LaneRate(module)
    assert rate > 0.0 and 0 <= rate <= 1
    with KeyedRandom(keys(4000)):
        out = F.dropout(torch.ones(4000, 10), rate)
    assert abs((out == 0).double().mean().item() - 0.25) < 0.02
    with KeyedRandom(keys(4000), rate=0.75):
        assert abs((F.dropout(torch.ones(4000, 10), rate) == 0).double().mean().item() - 0.75) < 0.02


class Noisy(nn.Module):
    """Draws in its forward pass, in evaluation too."""

    def __init__(self, draw: str) -> None:
        super().__init__()
        self.draw = draw
        self.first, self.last = nn.Linear(10, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        noise = DRAWS[self.draw](h[:, None]) if self.draw != "poisson" else torch.poisson(h.abs())
        return self.last(h + noise.reshape(len(x), -1)[:, :1].to(h.dtype))  # type: ignore[no-any-return]


@pytest.mark.parametrize("draw", ["bernoulli", "gumbel, hard", "multinomial", "distribution", "alpha", "exponential_"])
def test_what_a_forward_pass_draws_is_the_same_in_a_lane(draw: str) -> None:
    def define(trial: Any) -> Recipe:
        model = Noisy(draw).double()
        opt = optim.SGD(model.parameters(), lr=trial.params["lr"])
        return Recipe(model, opt, nn.CrossEntropyLoss(), trial.params["batch"])

    work = work_of(class_data(40, valid=9))
    specs = specs_of([{"lr": 0.1, "batch": 20}, {"lr": 0.2, "batch": 40}])
    assert len({sign(define, s, work).key for s in specs}) == 1
    lanes = train_fused(define, specs, work, 1)
    for spec in specs:
        assert_same_trail(lanes[spec.number], train_solo(define, spec, work, 1), 1e-10)


def test_what_has_no_keyed_form_trains_solo() -> None:
    def define(trial: Any) -> Recipe:
        model = Noisy("poisson").double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 20)

    work = work_of(class_data(40, valid=9))
    with pytest.raises(FuseError, match="draws random numbers in a way that has no keyed form"):
        train_fused(define, specs_of([{}]), work, 1)


class Selu(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 8), nn.SELU(), nn.AlphaDropout(p), nn.RReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # type: ignore[no-any-return]


def test_rates_of_alpha_dropout_do_not_split() -> None:
    def define(trial: Any) -> Recipe:
        model = Selu(trial.params["p"]).double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 20)

    work = work_of(class_data(40, valid=9))
    specs = specs_of([{"p": 0.0}, {"p": 0.5}])
    assert len({sign(define, s, work).key for s in specs}) == 1
    lanes = train_fused(define, specs, work, 1)
    for spec in specs:
        assert_same_trail(lanes[spec.number], train_solo(define, spec, work, 1), 1e-10)
