"""Widths of fleets, and which pool a trial joins: properties of pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import planner
from shoal.planner import WIDTHS, Demand

limits = st.sampled_from(WIDTHS)


@given(n=st.integers(1, 300), limit=limits)
def test_snug_holds_them_all_or_is_the_widest(n: int, limit: int) -> None:
    width = planner.snug(n, limit)
    assert width in WIDTHS and width <= limit
    assert width >= n or width == limit
    narrower = [w for w in WIDTHS if w < width]
    assert not narrower or narrower[-1] < n


@given(n=st.integers(1, 5000), learns=st.booleans(), cheap=st.booleans(), limit=limits, parts=st.integers(1, 20))
def test_total_lanes(n: int, learns: bool, cheap: bool, limit: int, parts: int) -> None:
    lanes = planner.total_lanes(n, learns=learns, cheap=cheap, limit=limit, parts=parts)
    assert 1 <= lanes <= n and (lanes == 1 or lanes * parts <= limit)
    if learns:
        assert lanes <= max(32, n // (8 if cheap else 32))
        assert lanes <= planner.total_lanes(n, learns=False, limit=limit, parts=parts)


@given(st.data(), limits, st.integers(0, 200))
def test_widths_are_never_below_what_is_active(data: st.DataObject, limit: int, waiting: int) -> None:
    width = data.draw(st.sampled_from([0, *(w for w in WIDTHS if w <= limit)]))
    active = data.draw(st.integers(0, width))
    chosen = planner.widths({"a": Demand(width, active, waiting, limit)})["a"]
    wanted = min(active + waiting, limit)
    if wanted == 0:
        assert chosen == 0
        return
    assert chosen in WIDTHS and chosen <= limit
    assert chosen >= active and chosen >= wanted
    assert chosen <= max(2 * planner.snug(wanted, limit), 4)  # lanes that stay empty cost as much as busy ones
    # Once chosen, it stays: the same demand does not change the width again.
    assert planner.widths({"a": Demand(chosen, active, waiting, limit)})["a"] == chosen


def test_signatures_are_planned_apart() -> None:
    demands = {"a": Demand(0, 0, 5), "b": Demand(8, 8, 0), "c": Demand(4, 0, 0), "d": Demand(32, 3, 0)}
    assert planner.widths(demands) == {
        "a": planner.snug(5, WIDTHS[-1]),
        "b": 8,
        "c": 0,
        "d": planner.snug(3, WIDTHS[-1]),
    }


trials = st.tuples(st.sampled_from(["", "a", "b"]), st.floats(1, 1e7))


@given(st.lists(st.lists(trials, max_size=6), min_size=1, max_size=4), trials)
def test_the_lightest_pool_makes_the_slowest_one_no_slower_than_any_other_choice(
    pools: list[list[tuple[str, float]]], trial: tuple[str, float]
) -> None:
    chosen = planner.lightest(pools, trial)

    def slowest(k: int) -> float:
        return max(planner.load([*p, trial] if i == k else p) for i, p in enumerate(pools))

    assert 0 <= chosen < len(pools)
    assert all(slowest(chosen) <= slowest(k) for k in range(len(pools)))


@pytest.mark.parametrize("wide", range(0, 33, 4))
def test_compiled_lanes_of_two_signatures_make_pools_equally_slow(wide: int) -> None:
    trials = [("narrow", 111e3)] * (32 - wide) + [("wide", 287e3)] * wide
    pools: list[list[tuple[str, float]]] = [[], []]
    for trial in trials:
        pools[planner.lightest(pools, trial, compiled=True)].append(trial)
    slow, fast = sorted((planner.load(p, compiled=True) for p in pools), reverse=True)
    assert slow - fast <= planner.load([("wide", 287e3)], compiled=True)


def placed(trials: list[tuple[str, float]], opening: float) -> list[list[str]]:
    """The signatures in each of two pools that knew none."""
    pools: list[list[tuple[str, float]]] = [[], []]
    for trial in trials:
        pools[planner.lightest(pools, trial, compiled=True, known=[(), ()], opening=opening)].append(trial)
    return [[signature for signature, _ in p] for p in pools]


def test_in_a_short_study_a_signature_is_opened_in_one_pool() -> None:
    short = planner.opening(80, 27, 1200, 32, stops=True)
    both = [("a", 285e3), ("b", 285e3)] * 16
    assert [set(p) for p in placed(both, short)] == [{"a"}, {"b"}]
    assert [len(p) for p in placed([("a", 285e3)] * 32, short)] == [
        16,
        16,
    ]  # of one alone, both pools open a fleet at once
    crowded, idle = [("a", 285e3)] * 20, [("b", 285e3)] * 4
    assert planner.lightest([crowded, idle], ("a", 285e3), compiled=True, known=[{"a"}, {"b"}], opening=short) == 0

    long = planner.opening(2000, 30, 50_000, 62, stops=False)
    assert long < short / 100
    assert planner.lightest([crowded, idle], ("a", 285e3), compiled=True, known=[{"a"}, {"b"}], opening=long) == 1
