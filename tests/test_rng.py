"""Keyed random numbers: good enough to drop units with, and a function of the sample alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.lanes.rng import KeyedRandom, derive, permutation, sample_keys


def keys(n: int, seed: int = 3, epoch: int = 0) -> Tensor:
    return torch.from_numpy(sample_keys(seed, epoch, n))


def mask(n: int, width: int, p: float, *, seed: int = 3, epoch: int = 0, site: int = 0) -> Tensor:
    """(n, width) of 0 and 1, float64: what the dropout at call site ``site`` keeps."""
    with KeyedRandom(keys(n, seed, epoch)):
        for _ in range(site):
            F.dropout(torch.ones(n, 3), 0.5)
        out = F.dropout(torch.ones(n, width), p)
    kept: Tensor = (out != 0).double()
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - p)))
    return kept


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_dropout_keeps_its_share(p: float) -> None:
    n, width = 2000, 200
    kept = mask(n, width, p)
    sd = (p * (1 - p)) ** 0.5
    assert abs(kept.mean().item() - (1 - p)) < 5 * sd / (n * width) ** 0.5
    # By sample and by unit the spread is that of independent draws: variance p(1-p)/count, within a fifth.
    for axis, count in ((0, n), (1, width)):
        assert kept.mean(axis).var().item() == pytest.approx(sd**2 / count, rel=0.4)
        assert (kept.mean(axis) - (1 - p)).abs().max().item() < 6 * sd / count**0.5


def test_units_and_samples_are_uncorrelated() -> None:
    n, width = 3000, 60
    kept = mask(n, width, 0.5) * 2 - 1
    by_unit = (kept.T @ kept / n).fill_diagonal_(0).abs()
    assert by_unit.max().item() < 6 / n**0.5
    wide = mask(60, 3000, 0.5) * 2 - 1
    assert (wide @ wide.T / 3000).fill_diagonal_(0).abs().max().item() < 6 / 3000**0.5


@pytest.mark.parametrize(
    "other", [{"site": 1}, {"epoch": 1}, {"seed": 4}, {"seed": 3 + 2**32}, {"epoch": 2**31}], ids=str
)
def test_sites_epochs_and_seeds_are_independent(other: dict[str, int]) -> None:
    a, b = mask(500, 200, 0.5) * 2 - 1, mask(500, 200, 0.5, **other) * 2 - 1
    assert abs((a * b).mean().item()) < 5 / (500 * 200) ** 0.5
    assert (a * b).mean(0).abs().max().item() < 6 / 500**0.5
    assert (a * b).mean(1).abs().max().item() < 6 / 200**0.5


def test_no_dropout_and_nothing_but() -> None:
    x = torch.randn(8, 5)
    with KeyedRandom(keys(8)):
        assert torch.equal(F.dropout(x, 0.0), x)
        assert torch.equal(F.dropout(x, 1.0), torch.zeros(8, 5))
        assert torch.equal(F.dropout(x, 0.7, training=False), x)
        y = x.clone()
        assert F.dropout(y, 0.5, inplace=True) is y and not torch.equal(x, y)


@pytest.mark.parametrize("sizes", [[32], [16, 16], [20, 12], [1] * 32, [31, 1]], ids=str)
@pytest.mark.parametrize("draw", ["dropout", "dropout2d", "rand_like", "randn_like", "rand", "randn"])
def test_splitting_a_batch_changes_nothing(draw: str, sizes: list[int]) -> None:
    x, key = torch.randn(32, 4, 3, 3), keys(32)

    def run(x: Tensor, key: Tensor) -> Tensor:
        with KeyedRandom(key) as mode:
            F.dropout(x, 0.1)
            out: Tensor = {
                "dropout": lambda: F.dropout(x, 0.4),
                "dropout2d": lambda: F.dropout2d(x, 0.4),
                "rand_like": lambda: torch.rand_like(x),
                "randn_like": lambda: torch.randn_like(x),
                "rand": lambda: torch.rand(len(x), 7),
                "randn": lambda: torch.randn((len(x), 7)),
            }[draw]()
        assert not mode.whole
        return out

    whole = run(x, key)
    parts = torch.cat([run(a, k) for a, k in zip(torch.split(x, sizes), torch.split(key, sizes), strict=True)])
    assert torch.equal(whole, parts)


def test_dropout2d_drops_channels() -> None:
    with KeyedRandom(keys(200)):
        out = F.dropout2d(torch.ones(200, 10, 4, 4), 0.5).flatten(2)
    assert torch.equal(out.amax(2), out.amin(2)) and 0.4 < (out[..., 0] > 0).double().mean().item() < 0.6


def test_uniform_and_normal_numbers_are_what_they_say() -> None:
    with KeyedRandom(keys(4000)):
        u, z = torch.rand(4000, 25, dtype=torch.float64), torch.randn(4000, 25, dtype=torch.float64)
    n = u.numel()
    assert u.min().item() >= 0.0 and u.max().item() < 1.0
    assert abs(u.mean().item() - 0.5) < 5 / (12 * n) ** 0.5 and abs(u.var().item() - 1 / 12) < 0.002
    counts = torch.histc(u, 64, 0.0, 1.0)
    assert ((counts - n / 64) ** 2 / (n / 64)).sum().item() < 120  # chi squared of 63 degrees: 1 in 100,000
    assert abs(z.mean().item()) < 5 / n**0.5 and abs(z.std().item() - 1) < 0.02
    assert abs((z**3).mean().item()) < 0.05 and abs((z**4).mean().item() - 3) < 0.15
    assert torch.isfinite(z).all()


def test_a_draw_that_belongs_to_no_sample_is_noticed() -> None:
    with KeyedRandom(keys(8)) as mode:
        torch.rand(3)
        assert mode.whole


def test_order_and_keys_are_a_function_of_seed_and_epoch() -> None:
    for seed, epoch, n in ((0, 0, 1), (5, 2, 40), (2**62, 7, 40)):
        a = permutation(seed, epoch, n)
        np.testing.assert_array_equal(a, permutation(seed, epoch, n))
        np.testing.assert_array_equal(np.sort(a), np.arange(n))
        np.testing.assert_array_equal(sample_keys(seed, epoch, n), sample_keys(seed, epoch, n))
        # A longer epoch begins with the same keys: they depend on the position only.
        np.testing.assert_array_equal(sample_keys(seed, epoch, n), sample_keys(seed, epoch, n + 9)[:n])
        assert sample_keys(seed, epoch, n).dtype == np.int32
    for other in ((5, 3), (6, 2)):
        assert (permutation(5, 2, 40) != permutation(*other, 40)).any()
        assert (sample_keys(5, 2, 40) != sample_keys(*other, 40)).all()


def test_keys_of_an_epoch_do_not_repeat() -> None:
    assert len(np.unique(sample_keys(11, 3, 100_000))) == 100_000


def test_derived_seeds_differ_by_every_part() -> None:
    seen = {derive(a, b) for a in (0, 1, 2**32, 2**40) for b in (0, 1, 2**32)}
    assert len(seen) == 12 and all(0 <= s < 2**63 for s in seen)


def test_torchs_own_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with KeyedRandom(keys(4)):
        F.dropout(torch.ones(4, 4), 0.5)
        torch.rand(4, 2)
    assert torch.equal(before, torch.get_rng_state())
