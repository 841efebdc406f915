"""Extrapolated learning curves, and pausing and going on by what they promise, in simulated time."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.schedulers import FreezeThaw, Observation, Room, resolve
from shoal.schedulers._curves import Forecast, forecast
from shoal.schedulers.simulation import simulate


def curves(n: int, seed: int, epochs: int = 30) -> list[list[float]]:
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        end, height, speed = abs(rng.gauss(0.3, 0.15)), rng.uniform(0.2, 2.0), rng.uniform(0.3, 2.0)
        out.append([end + height * t**-speed + rng.gauss(0.0, 0.02 * end) for t in range(1, epochs + 1)])
    return out


def test_a_line_in_a_shape_is_bayesian_regression() -> None:
    from shoal.schedulers import _curves

    rng = np.random.default_rng(0)
    y, phi, noise = rng.standard_normal(8), _curves._shapes(20)[2], 0.3
    features = np.array([[1.0, phi[t]] for t in range(1, 9)])
    weights = _curves._RECALL ** np.arange(7, -1, -1) / noise**2
    prior = np.diag([_curves._LEVEL**-2, _curves._SLOPE**-2])
    covariance = np.linalg.inv(prior + features.T @ (weights[:, None] * features))
    mean = covariance @ (features.T @ (weights * y))
    at = np.array([1.0, phi[20]])
    evidence, m, v = _curves._line(y.tolist(), phi, noise, 20)
    assert [m, v] == pytest.approx([float(at @ mean), float(at @ covariance @ at)])
    # The evidence up to a constant that all shapes share: the integral over the two coefficients.
    fit = -0.5 * (weights * (y - features @ mean) ** 2).sum() - 0.5 * mean @ prior @ mean
    expected = fit + 0.5 * np.log(np.linalg.det(prior) * np.linalg.det(covariance))
    assert evidence == pytest.approx(float(expected - (weights * noise**2).sum() * math.log(noise)))


def test_forecasts_know_how_sure_they_are() -> None:
    inside, errors = 0, []
    for curve in curves(60, 1):
        early, late = (forecast(curve[:n], 30, 0.4, 0.3) for n in (4, 20))
        assert late.deviation < early.deviation
        inside += abs(curve[-1] - early.mean) < 2 * early.deviation
        errors.append((abs(curve[-1] - early.mean), abs(curve[-1] - curve[3])))
    assert inside >= 52
    assert sum(e for e, _ in errors) < 0.5 * sum(last for _, last in errors)  # against: it stays as it is


@given(st.floats(-5, 5), st.floats(0.01, 3), st.floats(-5, 5))
@settings(max_examples=40, deadline=None)
def test_expected_improvement_is_its_integral(mean: float, deviation: float, best: float) -> None:
    at = np.linspace(mean - 9 * deviation, mean + 9 * deviation, 20001)
    density = np.exp(-0.5 * ((at - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
    expected = float((np.maximum(best - at, 0) * density).sum() * (at[1] - at[0]))
    assert Forecast(mean, deviation).improvement(best) == pytest.approx(expected, abs=1e-6)


def test_it_finds_the_best_for_fewer_epochs() -> None:
    for seed in range(4):
        made = curves(60, seed)
        mine = simulate(FreezeThaw(30), made, lanes=16)
        asha = simulate(resolve("asha", max_epochs=30, n_trials=60), made, lanes=16)
        spread = float(np.std([c[-1] for c in made]))
        assert mine.best[-1] - min(c[-1] for c in made) < 0.1 * spread
        assert mine.spent[-1] < asha.spent[-1]
        assert mine.promoted > 5  # what was frozen is thawed again
        assert simulate(FreezeThaw(30), made, lanes=16) == mine


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("value", [1.0, math.inf, math.nan])
def test_somebody_finishes_in_any_case(n: int, value: float) -> None:
    outcome = simulate(FreezeThaw(6, interval=1), [[value] * 6 for _ in range(n)], lanes=2)
    assert outcome.finished


def test_a_row_that_comes_by_again_is_not_taken_twice() -> None:
    scheduler = FreezeThaw(10, interval=2)
    rows = [[Observation(t, e, c[e - 1]) for t, c in enumerate(curves(8, 0, 10))] for e in (1, 2)]
    first = [scheduler.observe(r) for r in rows]
    assert scheduler.observe(rows[1]) == first[1]
    room = Room(4, frozenset(), dict.fromkeys(range(8), 2), 8, False)
    assert 0 < len(scheduler.promote(room)) <= 4
    assert not scheduler.promote(Room(0, frozenset(range(8)), {}, 8, False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 1}, "max_epochs must be a whole number, 2 or more; got 1"),
        ({"max_epochs": 9, "interval": 0}, "interval must be a whole number, 1 or more; got 0"),
    ],
)
def test_what_it_refuses(options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FreezeThaw(**options)
