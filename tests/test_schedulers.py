"""Schedulers on hand-made rows and in simulated time: no training, no clock."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.schedulers import SCHEDULERS, Asha, Decision, Fifo, Median, Observation, Patience, Scheduler, resolve

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
    "median": lambda: Median(warmup_epochs=0, min_trials=2),
    "patience": lambda: Patience(2),
}
every_scheduler = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@pytest.mark.parametrize(
    ("scheduler", "calls", "expected"),
    [
        (Fifo(), [wave(1, [1.0, NAN, math.inf])], [[]]),
        # The best of three and its tie-break; NaN is behind inf.
        (Asha(10), [wave(1, [3, 1, 2])], [[0, 2]]),
        (Asha(10), [wave(1, [1, 1, 1])], [[1, 2]]),
        (Asha(10), [wave(1, [NAN, math.inf, NAN])], [[0, 2]]),
        (Asha(10), [wave(1, [NAN])], [[]]),
        # Alone at its rung a trial continues; the second must beat it, until the rung has seen six.
        (Asha(10), [wave(1, [1]), wave(1, [2], 1), wave(1, [0], 2), wave(1, [3, 4, 0.5], 3)], [[], [1], [], [3, 4]]),
        # Between rungs, and at the last epoch, nobody stops.
        (Asha(9), [wave(2, [1, 2, 3]), wave(4, [1, 2, 3]), wave(9, [1, 2, 3])], [[], [], []]),
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
        (Asha(10), wave(1, [1, 2]), "place 2 of 2 at epoch 1, the best 1 continue"),
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
        (30, 3, None, (1, 3, 9, 27)),
        (81, 3, None, (3, 9, 27)),
        (100, 3, None, (4, 12, 36)),
        (1, 3, None, ()),
        (16, 4, 2, (2, 8)),
        (8, 2, 1, (1, 2, 4)),
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
    asha, median = Asha(10), Median(warmup_epochs=0, min_trials=2)
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
    asha, rng = Asha(27), random.Random(0)
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


def simulate(scheduler: Scheduler, *, n_trials: int, width: int, max_epochs: int, seed: int) -> tuple[int, list[int]]:
    """Lanes with refill over made-up learning curves: epochs spent, and the trials that trained to the end.

    Trial ``k`` ends near ``final[k]``, so the ranking at the end is known; early values are noisy and cross.
    """
    rng = random.Random(seed)
    final = [rng.random() for _ in range(n_trials)]
    speed = [rng.uniform(1.0, 6.0) for _ in range(n_trials)]
    waiting, running = list(range(n_trials)), dict[int, int]()
    spent, finished = 0, list[int]()
    while waiting or running:
        while waiting and len(running) < width:
            running[waiting.pop(0)] = 0
        running = {trial: epoch + 1 for trial, epoch in running.items()}
        spent += len(running)
        rows = [
            Observation(trial, epoch, final[trial] + math.exp(-epoch / speed[trial]) + rng.gauss(0.0, 0.03))
            for trial, epoch in running.items()
        ]
        verdicts = scheduler.observe(rows)
        finished += [trial for trial, epoch in running.items() if epoch == max_epochs]
        running = {t: e for t, e in running.items() if t not in verdicts and e < max_epochs}
    order = sorted(range(n_trials), key=lambda trial: final[trial])
    return spent, [order.index(trial) for trial in finished]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [1, 16, 200])
def test_asha_spends_far_fewer_epochs_and_keeps_a_top_trial(seed: int, width: int) -> None:
    full = 200 * 27
    assert simulate(Fifo(), n_trials=200, width=width, max_epochs=27, seed=seed)[0] == full
    spent, finished = simulate(Asha(27), n_trials=200, width=width, max_epochs=27, seed=seed)
    assert spent < 0.25 * full
    assert min(finished) < 10  # the top 5 % of 200


@pytest.mark.parametrize("seed", range(3))
def test_median_spends_fewer_epochs_and_keeps_the_top(seed: int) -> None:
    spent, finished = simulate(Median(), n_trials=200, width=16, max_epochs=27, seed=seed)
    assert spent < 0.5 * 200 * 27
    assert min(finished) < 4


@pytest.mark.parametrize(
    ("name", "max_epochs", "n_trials", "expected"),
    [
        (None, 30, 100, "Asha(30, eta=3, min_epochs=1)"),
        (None, 4, 2, "Asha(4, eta=3, min_epochs=1)"),
        (None, 3, 100, "Fifo()"),
        (None, 30, 1, "Fifo()"),
        ("none", 30, 100, "Fifo()"),
        ("asha", 1, 1, "Asha(1, eta=3, min_epochs=1)"),
        ("median", 30, 100, "Median(warmup_epochs=3, min_trials=5)"),
        ("patience", 30, 100, "Patience(6, min_delta=0.0)"),
    ],
)
def test_resolve(name: str | None, max_epochs: int, n_trials: int, expected: str) -> None:
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
        (lambda: resolve("fifo", max_epochs=9, n_trials=9), "Known: asha, median, none, patience"),
        (lambda: resolve(Asha, max_epochs=9, n_trials=9), "object with a name and observe"),  # type: ignore[arg-type]
        (lambda: resolve(3, max_epochs=9, n_trials=9), "object with a name and observe"),  # type: ignore[arg-type]
        (lambda: resolve(None, max_epochs=0, n_trials=9), "max_epochs must be a whole number, 1 or more; got 0"),
        (lambda: resolve(None, max_epochs=9, n_trials=0), "n_trials must be a whole number, 1 or more; got 0"),
        (lambda: Asha(True), "max_epochs must be a whole number, 1 or more; got True"),
        (lambda: Asha(9, eta=1), "eta must be a whole number, 2 or more; got 1"),
        (lambda: Asha(9, eta=2.5), "eta must be a whole number, 2 or more; got 2.5"),  # type: ignore[arg-type]
        (lambda: Asha(9, min_epochs=0), "min_epochs must be a whole number, 1 or more; got 0"),
        (lambda: Asha(9, min_epochs=9), "min_epochs must be below max_epochs"),
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
