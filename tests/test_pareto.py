"""The Pareto front: against Optuna's, and against what the words say."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.study._multi_objective import _is_pareto_front

from shoal.pareto import Front, Point, covers, crowding, front, spread

NUMBERS = st.floats(-3, 3).map(lambda x: round(x, 1) + 0.0)  # ties are likely
POINTS = st.integers(1, 4).flatmap(lambda m: st.lists(st.tuples(*[NUMBERS] * m), min_size=1, max_size=40))


@given(POINTS)
def test_the_front_is_optunas(points: list[Point]) -> None:
    assert front(points) == _is_pareto_front(np.array(points), assume_unique_lexsorted=False).tolist()


@given(POINTS)
def test_a_front_that_grows_point_by_point_is_the_front_of_all(points: list[Point]) -> None:
    growing = Front()
    for number, point in enumerate(points):
        before = list(growing.points.values())
        assert growing.add(number, point) is not any(covers(p, point) for p in before)
    assert sorted(growing.points) == [i for i, on in enumerate(front(points)) if on]


def test_a_point_that_is_said_again_counts_once() -> None:
    growing = Front()
    assert growing.add(0, (1.0, 1.0)) and growing.add(0, (2.0, 2.0))
    assert growing.points == {0: (2.0, 2.0)}


@given(POINTS, st.integers(1, 8))
def test_what_is_left_out_of_a_front_are_no_ends_of_it(points: list[Point], n: int) -> None:
    numbered = dict(enumerate(points))
    kept = spread(numbered, n)
    assert len(kept) == min(n, len(points)) and set(kept) <= set(numbered)
    assert all((numbered[a], a) < (numbered[b], b) for a, b in pairwise(kept))
    for m in range(len(points[0])) if n >= 2 * len(points[0]) else ():
        assert {min(p[m] for p in points), max(p[m] for p in points)} <= {numbered[k][m] for k in kept}


def test_crowding_is_nsga_iis() -> None:
    rng = np.random.default_rng(0)
    points = [tuple(map(float, p)) for p in rng.random((9, 3))]
    trials = [optuna.trial.create_trial(values=list(p)) for p in points]
    for number, t in enumerate(trials):
        t.number = number
    theirs = optuna.samplers.nsgaii._elite_population_selection_strategy._calc_crowding_distance(trials)
    for mine, number in zip(crowding(points), range(9), strict=True):
        assert mine == pytest.approx(theirs[number]) or (math.isinf(mine) and math.isinf(theirs[number]))


def test_nobody_is_crowded_where_all_are_equal_or_some_are_infinite() -> None:
    assert crowding([(1.0,), (1.0,), (1.0,)]) == [math.inf, 0.0, math.inf]
    assert crowding([(0.0,), (1.0,), (math.inf,)]) == [math.inf, 0.0, math.inf]
    assert crowding([]) == []
