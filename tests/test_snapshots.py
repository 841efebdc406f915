"""When snapshots are due: seldom enough that they cost little, and at once when a round cannot come again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.errors import StorageError
from shoal.records import Json
from shoal.snapshots import MIN_INTERVAL_S, Snapshot, Snapshots, of_meta


class Clock:
    """Seconds that pass when a test says so."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def rounds(clock: Clock, taking: Snapshots, cost_s: float, round_s: float, until_s: float) -> Iterator[float]:
    """Train, and take snapshots when they are due, each of which costs the same; when they were begun."""
    while clock.now_s < until_s:
        clock.now_s += round_s
        if taking.due():
            yield clock.now_s
            with taking.counted():
                clock.now_s += cost_s / 2  # weights that are synced before
                taking.take(Snapshot(1, 0.0, 0, 0), lambda *_: {"files": list[Json]()})
                clock.now_s += cost_s / 2  # rows that are waited for, and old files


@pytest.mark.parametrize("round_s", [0.01, 1.0, 60.0])
@pytest.mark.parametrize("cost_s", [0.001, 0.05, 1.0, 30.0])
def test_snapshots_take_less_than_a_twentieth_of_the_time(cost_s: float, round_s: float, tmp_path: Path) -> None:
    clock = Clock()
    started = list(rounds(clock, Snapshots(tmp_path, (), clock), cost_s, round_s, 20_000))
    assert len(started) >= 10
    assert cost_s * len(started) < 0.05 * (clock.now_s - 100)
    apart = [b - a - cost_s for a, b in itertools.pairwise(started)]
    wait_s = max(MIN_INTERVAL_S, 33 * cost_s)
    assert all(wait_s - cost_s <= s <= wait_s + round_s for s in apart)  # and not much seldomer


def test_what_cannot_come_again_is_followed_by_one_at_once(tmp_path: Path) -> None:
    taking = Snapshots(tmp_path, (), Clock())
    assert not taking.due()
    taking.hurry()
    assert taking.due()


def test_after_one_that_could_not_be_written_the_next_comes_later(tmp_path: Path) -> None:
    def full(folder: Path, stem: str) -> dict[str, Json]:
        raise StorageError("no space")

    clock = Clock()
    taking = Snapshots(tmp_path, (), clock)
    for wait_s in (2 * MIN_INTERVAL_S, 4 * MIN_INTERVAL_S):
        with pytest.warns(RuntimeWarning, match="no snapshot was taken.*no space"), taking.counted():
            assert not taking.take(Snapshot(1, 0.0, 0, 0), full)
        clock.now_s += wait_s - 0.1
        assert not taking.due()
        clock.now_s += 0.2
        assert taking.due()
    assert taking.as_json() == []


def test_what_is_written_is_read_again() -> None:
    pool: dict[str, Json] = {"files": [{"name": "tick_000007.0.safetensors", "bytes": 8, "sha256": "00"}]}
    snapshot = Snapshot(7, 1.5, 9, 3, {4: 2, 5: 0, 6: 3}, {6: 3}, [6], [8], pool)
    assert of_meta({"snapshots": [snapshot.as_json()]}) == [snapshot]
