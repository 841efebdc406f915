"""Schedulers on hand-made rows and in simulated time: no training, no clock."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.schedulers import (
    SCHEDULERS,
    Asha,
    Decision,
    Fifo,
    FreezeThaw,
    Hyperband,
    Median,
    Observation,
    Patience,
    Promoter,
    Room,
    Scheduler,
    SuccessiveHalving,
    TopK,
    resolve,
)
from shoal.schedulers.simulation import Outcome, simulate

NAN = math.nan
Call = list[Observation]


def wave(epoch: int, values: Sequence[float], first: int = 0) -> Call:
    return [Observation(trial, epoch, value) for trial, value in enumerate(values, start=first)]


def curve(trial: int, values: Sequence[float]) -> list[Call]:
    return [[Observation(trial, epoch, value)] for epoch, value in enumerate(values, start=1)]


def stopped(scheduler: Scheduler, calls: Sequence[Call]) -> list[list[int]]:
    return [sorted(scheduler.observe(rows)) for rows in calls]


MAKERS: dict[str, Callable[[], Scheduler]] = {
    "none": Fifo,
    "asha": lambda: Asha(max_epochs=10, eta=2, min_epochs=1),
    "asha_stop": lambda: Asha(max_epochs=10, eta=2, min_epochs=1, promote=False),
    "halving": lambda: SuccessiveHalving(max_epochs=10, eta=2, min_epochs=1),
    "hyperband": lambda: Hyperband(max_epochs=8, eta=2),
    "top_k": lambda: TopK(2),
    "freeze_thaw": lambda: FreezeThaw(10, interval=1),
    "median": lambda: Median(warmup_epochs=0, min_trials=2),
    "patience": lambda: Patience(2),
}
every_scheduler = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.mark.parametrize(
    ("scheduler", "calls", "expected"),
    [
        (Fifo(), [wave(1, [1.0, NAN, math.inf])], [[]]),
        # The best of three and its tie-break; NaN is behind inf.
        (Asha(10, min_epochs=1), [wave(1, [3, 1, 2])], [[0, 2]]),
        (Asha(10, min_epochs=1), [wave(1, [1, 1, 1])], [[1, 2]]),
        (Asha(10, min_epochs=1), [wave(1, [NAN, math.inf, NAN])], [[0, 2]]),
        (Asha(10, min_epochs=1), [wave(1, [NAN])], [[]]),
        # Alone at its rung a trial continues; the second must beat it, until the rung has seen six.
        (
            Asha(10, min_epochs=1),
            [wave(1, [1]), wave(1, [2], 1), wave(1, [0], 2), wave(1, [3, 4, 0.5], 3)],
            [[], [1], [], [3, 4]],
        ),
        # Between rungs, and at the last epoch, nobody stops.
        (Asha(9, min_epochs=1), [wave(2, [1, 2, 3]), wave(4, [1, 2, 3]), wave(9, [1, 2, 3])], [[], [], []]),
        # The value at the rung counts: trial 0 was best at epoch 2 and is worst at epoch 3.
        (Asha(9, min_epochs=3), [wave(2, [0, 5, 6]), wave(3, [9, 5, 6])], [[], [0, 2]]),
        (Median(warmup_epochs=1, min_trials=3), [wave(1, [1, 2, 3]), wave(2, [1, 2, 3])], [[], [2]]),
        (Median(warmup_epochs=0, min_trials=4), [wave(1, [1, 2, 3])], [[]]),
        # The best so far counts: trial 2 was good before, trial 0 never was.
        (Median(warmup_epochs=1, min_trials=3), [wave(1, [8, 7, 0]), wave(2, [9, 2, 9])], [[], []]),
        (Median(warmup_epochs=1, min_trials=3), [wave(1, [8, 7, 0]), wave(2, [9, 2, 7])], [[], [0]]),
        (Median(warmup_epochs=0, min_trials=2), [wave(1, [NAN, 1, NAN])], [[]]),
        (Median(warmup_epochs=0, min_trials=2), [wave(1, [NAN, 1, 2])], [[0]]),
        (Patience(2), curve(0, [5, 4, 4, 3, 3, 3]), [[], [], [], [], [], [0]]),
        (Patience(1, min_delta=0.5), curve(0, [5, 4, 3.5]), [[], [], [0]]),
        (Patience(2), curve(0, [NAN, NAN, 1, NAN, NAN]), [[], [], [], [], [0]]),
        (Patience(2), curve(0, [NAN, NAN, NAN]), [[], [], [0]]),
        (Patience(3), [*curve(0, [1, 2, 3]), *curve(1, [1, 2, 3, 4])], [[], [], [], [], [], [], [1]]),
    ],
)
def test_hand_made_rows(scheduler: Scheduler, calls: list[Call], expected: list[list[int]]) -> None:
    assert stopped(scheduler, calls) == expected


@pytest.mark.parametrize(
    ("scheduler", "rows", "reason"),
    [
        (Asha(10, min_epochs=1, promote=False), wave(1, [1, 2]), "place 2 of 2 at epoch 1, the best 1 continue"),
        (
            Median(warmup_epochs=0, min_trials=2),
            wave(3, [1, 2]),
            "best so far behind the median of 2 trials at epoch 3",
        ),
        (Patience(1), [Observation(1, 1, 0.0), Observation(1, 2, 0.0)], "no improvement in 1 epochs (best at epoch 1)"),
    ],
)
def test_a_verdict_says_why(scheduler: Scheduler, rows: Call, reason: str) -> None:
    verdict = scheduler.observe(rows)[1]
    assert (verdict.decision, verdict.reason) == (Decision.STOP, reason)


@pytest.mark.parametrize(
    ("max_epochs", "eta", "min_epochs", "rungs"),
    [
        (30, 3, None, (2, 6)),
        (81, 3, None, (5, 16)),
        (100, 3, None, (7, 20)),
        (100, 4, None, (5, 20)),
        (4, 3, None, (1,)),
        (1, 3, None, ()),
        (30, 3, 1, (1, 3, 9)),
        (16, 4, 2, (2, 8)),
        (8, 2, 1, (1, 2, 4)),
        (10, 3, 9, (9,)),
    ],
)
def test_rungs(max_epochs: int, eta: int, min_epochs: int | None, rungs: tuple[int, ...]) -> None:
    assert Asha(max_epochs, eta=eta, min_epochs=min_epochs).rungs == rungs


VALUES = st.one_of(st.integers(0, 5).map(float), st.sampled_from([NAN, math.inf, -math.inf]))
ROWS = st.lists(st.builds(Observation, st.integers(0, 9), st.integers(1, 10), VALUES), max_size=25)
CALLS = st.lists(ROWS, min_size=1, max_size=5)


@every_scheduler
@settings(deadline=None)
@given(calls=CALLS, seed=st.integers(0, 2**16))
def test_the_order_of_rows_within_a_call_does_not_matter(
    make: Callable[[], Scheduler], calls: list[Call], seed: int
) -> None:
    shuffle = random.Random(seed).sample
    one, other = make(), make()
    for rows in calls:
        assert one.observe(rows) == other.observe(shuffle(rows, len(rows)))


@settings(deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=40), cuts=st.lists(st.integers(1, 39), max_size=4))
def test_the_best_of_a_rung_is_never_stopped(values: list[float], cuts: list[int]) -> None:
    asha, median = Asha(10, min_epochs=1), Median(warmup_epochs=0, min_trials=2)
    edges = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    for start, end in itertools.pairwise(edges):
        rows = wave(1, values[start:end], start)
        seen = values[:end]
        best = min(range(end), key=lambda trial: (math.isnan(seen[trial]), seen[trial], trial))
        assert best not in asha.observe(rows)
        assert best not in median.observe(rows)


@settings(deadline=None)
@given(n=st.integers(1, 200), eta=st.integers(2, 5), seed=st.integers(0, 2**16))
def test_asha_lets_one_in_eta_of_a_wave_through(n: int, eta: int, seed: int) -> None:
    values = random.Random(seed).sample(range(1000), n)
    verdicts = Asha(20, eta=eta, min_epochs=1).observe(wave(1, values))
    survivors = sorted(set(range(n)) - set(verdicts), key=lambda trial: values[trial])
    assert survivors == sorted(range(n), key=lambda trial: values[trial])[: max(1, n // eta)]


def test_the_share_of_a_big_wave_that_survives_each_rung_is_one_in_eta() -> None:
    asha, rng = Asha(27, min_epochs=1), random.Random(0)
    alive = list(range(270))
    shares: list[float] = []
    for epoch in range(1, 27):
        verdicts = asha.observe([Observation(trial, epoch, rng.random()) for trial in alive])
        if epoch in asha.rungs:
            shares.append(1 - len(verdicts) / len(alive))
        else:
            assert not verdicts
        alive = [trial for trial in alive if trial not in verdicts]
    assert shares == pytest.approx([1 / 3] * 3)
    assert len(alive) == 10


@every_scheduler
@settings(deadline=None)
@given(calls=CALLS)
def test_replaying_the_rows_rebuilds_the_state(make: Callable[[], Scheduler], calls: list[Call]) -> None:
    first, second = make(), make()
    half = len(calls) // 2
    for rows in calls[:half]:
        first.observe(rows)
        second.observe(rows)
    assert [first.observe(rows) for rows in calls[half:]] == [second.observe(rows) for rows in calls[half:]]


@every_scheduler
def test_rows_of_a_restarted_trial_count_once(make: Callable[[], Scheduler]) -> None:
    values = [[3.0, 1.0, 2.0, 5.0], [3.0, 2.0, 1.0, 5.0], [3.0, 2.0, 1.0, 5.0]]
    calls = [wave(epoch, row) for epoch, row in enumerate(values, start=1)]
    plain, restarted = make(), make()
    verdicts = [plain.observe(rows) for rows in calls]
    for rows in calls:
        restarted.observe(rows)
    # All trials go back to epoch 1 after a crash, once with other values: they get the verdicts that they had.
    assert [restarted.observe(rows) for rows in calls] == verdicts
    assert [restarted.observe([Observation(r.trial, r.epoch, 0.0) for r in rows]) for rows in calls] == verdicts
    # And a newcomer is judged as if nobody had gone back.
    late = wave(1, [2.5], 9) + wave(2, [2.5], 9) + wave(4, [2.5], 9)
    assert restarted.observe(late) == plain.observe(late)


def made_up(n_trials: int, max_epochs: int, seed: int) -> list[list[float]]:
    """Learning curves that end near where their trial's number in a shuffled order says; early values are noisy and cross."""
    rng = random.Random(seed)
    curves = []
    for _ in range(n_trials):
        final, speed = rng.random(), rng.uniform(1.0, 6.0)
        curves.append(
            [final + math.exp(-epoch / speed) + rng.gauss(0.0, 0.03) for epoch in range(1, max_epochs)] + [final]
        )
    return curves


def places(outcome: Outcome, curves: Sequence[Sequence[float]]) -> list[int]:
    """Where the finished trials stand among all by their last value; 0 is the best."""
    order = sorted(range(len(curves)), key=lambda trial: curves[trial][-1])
    return [order.index(trial) for trial in outcome.finished]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [1, 16, 200])
@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda: Asha(27), 0.3),
        (lambda: Asha(27, promote=False), 0.3),
        (lambda: Asha(27, min_epochs=1), 0.25),
        (lambda: SuccessiveHalving(27), 0.25),
        (lambda: Hyperband(27), 0.45),
        (lambda: TopK(10), 0.1),
    ],
    ids=["asha", "asha_stop", "asha from 1", "halving", "hyperband", "top_k"],
)
def test_far_fewer_epochs_and_a_top_trial(make: Callable[[], Scheduler], share: float, width: int, seed: int) -> None:
    curves = made_up(200, 27, seed)
    full = simulate(Fifo(), curves, lanes=width)
    assert full.spent[-1] == 200 * 27 and len(full.finished) == 200
    outcome = simulate(make(), curves, lanes=width)
    assert outcome.spent[-1] < share * full.spent[-1]
    assert min(places(outcome, curves)) < 10  # the top 5 % of 200


@pytest.mark.parametrize("seed", range(3))
def test_median_spends_fewer_epochs_and_keeps_the_top(seed: int) -> None:
    curves = made_up(200, 27, seed)
    outcome = simulate(Median(), curves, lanes=16)
    assert outcome.spent[-1] < 0.5 * 200 * 27
    assert min(places(outcome, curves)) < 4


# -- pausing and promoting ------------------------------------------------------------------------------------------------

FREE = frozenset[int]()


def promoted(scheduler: Promoter, room: Room, decision: Decision = Decision.PROMOTE) -> list[int]:
    return [trial for trial, verdict in scheduler.promote(room).items() if verdict.decision is decision]


def test_asha_promotes_from_the_highest_rung_down_and_the_best_first() -> None:
    asha = Asha(9, min_epochs=1)
    asha.observe(wave(1, [0, 1, 2, 3, 4, 5]))  # 0 and 1 go on
    asha.observe([Observation(0, 3, 1.0), Observation(1, 3, 0.5)])  # 1 goes on, 0 is paused at the higher rung
    asha.observe(wave(1, [9] * 6, 6))  # now 2 and 3 are among the best third of twelve
    asha.observe([Observation(6, 3, 7.0), *(Observation(trial, 3, 8.0) for trial in (7, 8, 9))])  # and 0 of six
    paused = {0: 3, **dict.fromkeys([2, 3, 4, 5], 1)}
    for free, expected in enumerate([[], [0], [0, 2], [0, 2, 3], [0, 2, 3]]):
        assert promoted(asha, Room(free, FREE, paused, 12, True)) == expected
    reasons = asha.promote(Room(2, FREE, paused, 12, True))
    assert [v.reason for v in reasons.values()] == ["place 2 of 6 at epoch 3", "place 3 of 12 at epoch 1"]


def test_asha_stops_at_once_who_can_never_be_promoted() -> None:
    verdicts = Asha(9, min_epochs=1, n_trials=9).observe(wave(1, range(6)))
    assert {trial: v.decision for trial, v in verdicts.items()} == {2: "pause", 3: "stop", 4: "stop", 5: "stop"}


def test_halving_waits_for_all_and_then_keeps_a_third() -> None:
    halving = SuccessiveHalving(27, min_epochs=1)
    assert halving.rungs == (1, 3, 9)
    assert {v.decision for v in halving.observe(wave(1, range(20))).values()} == {Decision.PAUSE}
    paused = dict.fromkeys(range(20), 1)
    assert not halving.promote(Room(7, FREE, paused, 20, True))  # seven more may start
    halving.observe(wave(1, [0.5] * 6, 20))
    paused |= dict.fromkeys(range(20, 26), 1)
    assert not halving.promote(Room(7, frozenset({26}), paused, 27, False))  # one is on its way, and fails there
    room = Room(8, FREE, paused, 27, False)
    assert promoted(halving, room) == [0, 20, 21, 22, 23, 24, 25, 1]
    chosen = [0, 20, 21, 22, 23, 24, 25, 1]
    assert not promoted(halving, Room(8, frozenset(chosen), {}, 27, False))
    halving.observe([Observation(trial, 3, float(trial)) for trial in chosen[:-1]])
    late = Room(8, frozenset({1}), dict.fromkeys(chosen[:-1], 3), 27, False)
    assert not halving.promote(late)
    halving.observe([Observation(1, 3, 1.0)])
    last = Room(1, FREE, dict.fromkeys(chosen, 3), 27, False)
    assert promoted(halving, last) == [0]
    assert promoted(halving, Room(8, frozenset({0}), {1: 3}, 27, False)) == [1]


def test_synchronous_halving_keeps_exactly_what_the_paper_says() -> None:
    curves = made_up(81, 81, 0)
    outcome = simulate(SuccessiveHalving(81, min_epochs=1), curves, lanes=7)
    counts = {epoch: sum(n >= epoch for n in outcome.epochs) for epoch in (1, 2, 4, 10, 28, 81)}
    # Rungs at 1, 3, 9 and 27: one third each time.
    assert counts == {1: 81, 2: 27, 4: 9, 10: 3, 28: 1, 81: 1}


def test_hyperband_has_the_brackets_of_the_paper() -> None:
    # Li et al. (2018), algorithm 1 with R = 81 and eta = 3: n = ceil(5 / (s + 1) * 3**s), r = 81 / 3**s.
    brackets = Hyperband(81).brackets
    assert [len(members) for members, _ in brackets] == [81, 34, 15, 8, 5]
    assert [rungs for _, rungs in brackets] == [(1, 3, 9, 27), (3, 9, 27), (9, 27), (27,), ()]
    assert [members.start for members, _ in brackets] == [0, 81, 115, 130, 138]


def test_a_bracket_of_hyperband_does_not_wait_for_the_next() -> None:
    band = Hyperband(9)
    band.observe(wave(1, range(9)))
    room = Room(9, frozenset({9, 10}), dict.fromkeys(range(9), 1), 11, True)
    assert promoted(band, room) == [0, 1, 2] and promoted(band, room, Decision.STOP) == []
    band = Hyperband(9)
    band.observe(wave(1, range(9)))
    assert promoted(band, Room(2, frozenset({9}), dict.fromkeys(range(9), 1), 10, True)) == [0, 1]
    assert not band.promote(Room(0, frozenset({0, 1}), {2: 1}, 10, True))


def test_top_k_trains_the_best_k_after_one_epoch() -> None:
    curves = made_up(40, 9, 3)
    outcome = simulate(TopK(4), curves, lanes=6)
    first = sorted(range(40), key=lambda trial: curves[trial][0])[:4]
    assert sorted(outcome.finished) == sorted(first) and outcome.spent[-1] == 40 + 4 * 8
    assert outcome.paused == 40 and outcome.promoted == 4


PROMOTERS = {name: make for name, make in MAKERS.items() if isinstance(make(), Promoter) and name != "asha_stop"}


@pytest.mark.parametrize("make", PROMOTERS.values(), ids=PROMOTERS)
@settings(deadline=None)
@given(calls=CALLS, data=st.data())
def test_only_paused_trials_are_promoted_and_never_too_many(
    make: Callable[[], Promoter], calls: list[Call], data: st.DataObject
) -> None:
    scheduler = make()
    for rows in calls:
        verdicts = scheduler.observe(rows)
        assert set(verdicts) <= {row.trial for row in rows}
        running = data.draw(st.frozensets(st.integers(0, 9)))
        paused = data.draw(st.dictionaries(st.integers(0, 9), st.sampled_from([1, 2, 4]), max_size=9))
        paused = {trial: epoch for trial, epoch in paused.items() if trial not in running}
        room = Room(data.draw(st.integers(0, 4)), running, paused, 10, data.draw(st.booleans()))
        decided = scheduler.promote(room)
        assert decided.keys() <= paused.keys()
        assert sum(v.decision is Decision.PROMOTE for v in decided.values()) <= room.free
        assert {v.decision for v in decided.values()} <= {Decision.PROMOTE, Decision.STOP}


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(1, 60),
    lanes=st.integers(1, 20),
    eta=st.integers(2, 4),
    seed=st.integers(0, 2**16),
    name=st.sampled_from(["asha", "halving"]),
)
def test_no_trial_of_the_best_share_of_a_rung_is_left_behind(
    n: int, lanes: int, eta: int, seed: int, name: str
) -> None:
    curves = made_up(n, 16, seed)
    scheduler: Asha | SuccessiveHalving
    scheduler = Asha(16, eta=eta, n_trials=n) if name == "asha" else SuccessiveHalving(16, eta=eta)
    outcome = simulate(scheduler, curves, lanes=lanes)
    for epoch in scheduler.rungs:
        there = sorted((t for t in range(n) if outcome.epochs[t] >= epoch), key=lambda t: (curves[t][epoch - 1], t))
        best = there[: max(1, len(there) // eta)]
        assert all(outcome.epochs[t] > epoch for t in best)
        if name == "halving":
            assert sum(outcome.epochs[t] > epoch for t in there) == len(best)


@pytest.mark.parametrize(
    ("name", "max_epochs", "n_trials", "expected"),
    [
        (None, 30, 100, "Asha(30, eta=3, rungs=(2, 6), promote=True)"),
        (None, 4, 2, "Asha(4, eta=3, rungs=(1,), promote=True)"),
        (None, 3, 100, "Fifo()"),
        (None, 30, 1, "Fifo()"),
        ("none", 30, 100, "Fifo()"),
        ("asha", 1, 1, "Asha(1, eta=3, rungs=(), promote=True)"),
        ("asha_stop", 9, 1, "Asha(9, eta=3, rungs=(1, 2), promote=False)"),
        ("halving", 9, 1, "SuccessiveHalving(9, eta=3, rungs=(1, 2))"),
        ("hyperband", 9, 1, "Hyperband(9, eta=3)"),
        ("top_k", 9, 10, "TopK(3, epochs=1)"),
        ("top_k", 9, 1000, "TopK(20, epochs=1)"),
        ("median", 30, 100, "Median(warmup_epochs=3, min_trials=5)"),
        ("patience", 30, 100, "Patience(6, min_delta=0.0)"),
        ({"name": "asha", "eta": 2, "min_epochs": 4}, 16, 9, "Asha(16, eta=2, rungs=(4, 8), promote=True)"),
        ({"name": "asha_stop", "eta": 4}, 16, 9, "Asha(16, eta=4, rungs=(1, 3), promote=False)"),
        ({"name": "median", "min_trials": 3}, 30, 100, "Median(warmup_epochs=3, min_trials=3)"),
        ({"name": "top_k", "k": 4, "epochs": 2}, 30, 100, "TopK(4, epochs=2)"),
    ],
)
def test_resolve(name: str | dict[str, Any] | None, max_epochs: int, n_trials: int, expected: str) -> None:
    assert repr(resolve(name, max_epochs=max_epochs, n_trials=n_trials)) == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_names_lead_back_to_themselves(name: str) -> None:
    scheduler = resolve(name, max_epochs=10, n_trials=5)
    assert scheduler.name == name
    assert resolve(scheduler, max_epochs=10, n_trials=5) is scheduler


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resolve("ahsa", max_epochs=9, n_trials=9), "Unknown scheduler 'ahsa'. Did you mean 'asha'?"),
        (
            lambda: resolve("fifo", max_epochs=9, n_trials=9),
            "asha, asha_stop, freeze_thaw, halving, hyperband, median, none, patience, pb2, pbt, top_k",
        ),
        (
            lambda: resolve({"name": "asha", "etta": 4}, max_epochs=9, n_trials=9),
            "scheduler 'asha' has no option 'etta'. Did you mean 'eta'?",
        ),
        (
            lambda: resolve({"name": "asha", "promote": False}, max_epochs=9, n_trials=9),
            "scheduler 'asha' has no option 'promote'. Known: eta, min_epochs.",
        ),
        (
            lambda: resolve({"name": "none", "eta": 4}, max_epochs=9, n_trials=9),
            "scheduler 'none' has no option 'eta'. It takes none.",
        ),
        (lambda: resolve({"eta": 4}, max_epochs=9, n_trials=9), 'a scheduler given as a dict needs a "name"'),
        (lambda: resolve({"name": "asha", "eta": "3"}, max_epochs=9, n_trials=9), "eta must be a whole number"),
        (lambda: resolve(Asha, max_epochs=9, n_trials=9), "scheduler=Asha is a class: pass an object, Asha(...)"),  # type: ignore[arg-type]
        (
            lambda: resolve(Asha(27), max_epochs=9, n_trials=9),
            "was made for trials of 27 epochs, and those of this study have max_epochs=9",
        ),
        (lambda: resolve("pb2", max_epochs=9, n_trials=1), "scheduler 'pb2' needs a population"),
        (lambda: resolve(3, max_epochs=9, n_trials=9), "object with a name and observe"),  # type: ignore[arg-type]
        (lambda: resolve(None, max_epochs=0, n_trials=9), "max_epochs must be a whole number, 1 or more; got 0"),
        (lambda: resolve(None, max_epochs=9, n_trials=0), "n_trials must be a whole number, 1 or more; got 0"),
        (lambda: Asha(True), "max_epochs must be a whole number, 1 or more; got True"),
        (lambda: Asha(9, eta=1), "eta must be a whole number, 2 or more; got 1"),
        (lambda: Asha(9, eta=2.5), "eta must be a whole number, 2 or more; got 2.5"),  # type: ignore[arg-type]
        (lambda: Asha(9, min_epochs=0), "min_epochs must be a whole number, 1 or more; got 0"),
        (lambda: Asha(9, min_epochs=9), "min_epochs must be below max_epochs"),
        (lambda: Asha(9, n_trials=0), "n_trials must be a whole number, 1 or more; got 0"),
        (lambda: SuccessiveHalving(0), "max_epochs must be a whole number, 1 or more; got 0"),
        (lambda: SuccessiveHalving(9, eta=1), "eta must be a whole number, 2 or more; got 1"),
        (lambda: Hyperband(0), "max_epochs must be a whole number, 1 or more; got 0"),
        (lambda: Hyperband(9, eta=1), "eta must be a whole number, 2 or more; got 1"),
        (lambda: TopK(0), "k must be a whole number, 1 or more; got 0"),
        (lambda: TopK(epochs=0), "epochs must be a whole number, 1 or more; got 0"),
        (lambda: Median(warmup_epochs=-1), "warmup_epochs must be a whole number, 0 or more; got -1"),
        (lambda: Median(min_trials=1), "min_trials must be a whole number, 2 or more; got 1"),
        (lambda: Patience(0), "patience must be a whole number, 1 or more; got 0"),
        (lambda: Patience(min_delta=-0.1), "min_delta must be a finite number, 0 or more; got -0.1"),
        (lambda: Patience(min_delta=NAN), "min_delta must be a finite number, 0 or more; got nan"),
    ],
)
def test_nonsense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert message in str(caught.value)
