"""Optuna's published storage suite, on all that Shoal hands to Optuna: the private study, and tables that Shoal made.

Shoal writes through `StudyStore`, whose calls are not those of Optuna's storages, so the suite is run where Optuna calls:
on `PrivateStorage`, which samplers look at, and on Optuna's own `RDBStorage` over a file and a database whose tables
Shoal has made. What Shoal itself writes into them is compared with what Optuna writes, trial by trial.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState

from postgres_server import server
from shoal import records
from shoal._private import PrivateStorage
from shoal.storage import StudyStore, place_of
from shoal.storage._database import database_of
from shoal.storage._tables import create_tables

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class TestPrivateStorage(StorageTestCase):
    """The study in memory that samplers look at."""

    @pytest.fixture
    def storage(self) -> BaseStorage:
        return PrivateStorage()


def shoals_tables(url: str) -> Iterator[RDBStorage]:
    """Optuna's storage over tables that Shoal has made and that hold no study yet."""
    database = database_of(place_of(url))
    owner = database.own("none")
    with owner.opening() as connection:
        create_tables(connection, database)
    owner.release()
    storage = RDBStorage(place_of(url).optuna_url)
    yield storage
    storage.remove_session()
    storage.engine.dispose()
    gc.collect()  # what the suite's threads have left open is closed, and warned of, here and not in someone else's test


class TestShoalsFile(StorageTestCase):
    """A study file that Shoal has made."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[BaseStorage]:
        for storage in shoals_tables(str(tmp_path / "study.db")):
            with storage.engine.connect() as connection:  # the suite commits thousands of times; no power is cut here
                connection.exec_driver_sql("PRAGMA journal_mode=MEMORY")
            yield storage


class TestShoalsDatabase(StorageTestCase):
    """A database that Shoal has made tables in."""

    @pytest.fixture
    def storage(self) -> Iterator[BaseStorage]:
        yield from shoals_tables(server().url())


DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "drop": FloatDistribution(0.0, 0.5, step=0.1),
    "depth": IntDistribution(1, 9),
    "units": IntDistribution(16, 512, log=True),
    "kind": CategoricalDistribution(["relu", 1, False, None, 1.5]),
}


def drawn_trials(n: int) -> list[FrozenTrial]:
    """Ended trials as Optuna would keep them, of all states, some with values and reports that are not finite."""
    draw = random.Random(0)
    trials = []
    for _ in range(n):
        some = {name: d for name, d in DISTRIBUTIONS.items() if draw.random() < 0.7}
        params = {name: d.to_external_repr(_internal(d, draw)) for name, d in some.items()}
        values = [draw.choice([draw.random(), float("inf"), -1e300, 5e-324]) for _ in range(draw.randrange(1, 5))]
        state = draw.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
        trials.append(
            optuna.trial.create_trial(
                state=state,
                params=params,
                distributions=some,
                value=values[-1] if state is TrialState.COMPLETE else None,
                intermediate_values=dict(enumerate(values, start=1)),
                user_attrs={"epoch": len(values)},
            )
        )
    return trials


def _internal(distribution: BaseDistribution, draw: random.Random) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return draw.randrange(len(distribution.choices))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.step == 0.1:
        return draw.randrange(6) / 10
    low, high = distribution.low, distribution.high
    return draw.uniform(low, high) if isinstance(distribution, FloatDistribution) else draw.randint(int(low), int(high))


_STATES = {
    TrialState.COMPLETE: records.TrialState.FINISHED,
    TrialState.PRUNED: records.TrialState.STOPPED,
    TrialState.FAIL: records.TrialState.FAILED,
}


def write(store: StudyStore, trials: list[FrozenTrial]) -> None:
    for number, t in enumerate(trials):
        distributions = {name: distribution_to_json(d) for name, d in t.distributions.items()}
        store.asked([records.TrialSpec(number, number, t.params, distributions)])
        epochs = t.intermediate_values.items()
        store.recorded([records.EpochRow(number, epoch, 0.5, value, {}) for epoch, value in epochs])
        value = None if t.state is TrialState.FAIL else t.intermediate_values[len(epochs)]
        store.ended([records.TrialResult(number, _STATES[t.state], value, len(epochs))])


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_shoal_writes_reads_as_what_optuna_writes(kind: str, tmp_path: Path) -> None:
    trials = drawn_trials(40)
    url = str(tmp_path / "ours.db") if kind == "sqlite" else server().url()
    with StudyStore.open(url, name="digits", direction="maximize") as store:
        write(store, trials)
    ours = RDBStorage(place_of(url).optuna_url)
    theirs = RDBStorage(f"sqlite:///{tmp_path}/theirs.db")
    theirs_id = theirs.create_new_study([StudyDirection.MAXIMIZE], "digits")
    for t in trials:
        theirs.create_new_trial(theirs_id, t)
    ours_id = ours.get_study_id_from_name("digits")
    assert ours.get_study_directions(ours_id) == theirs.get_study_directions(theirs_id)
    assert ours.get_n_trials(ours_id) == theirs.get_n_trials(theirs_id) == 40
    assert ours.get_best_trial(ours_id).number == theirs.get_best_trial(theirs_id).number
    pairs = zip(ours.get_all_trials(ours_id), theirs.get_all_trials(theirs_id), strict=True)
    for mine, other in pairs:
        for name in ("number", "state", "params", "distributions", "intermediate_values", "user_attrs", "system_attrs"):
            assert getattr(mine, name) == getattr(other, name), (mine.number, name)
        assert [type(value) for value in mine.params.values()] == [type(value) for value in other.params.values()]
        # Optuna keeps no value of a trial that it pruned itself; Shoal's has the last finite one, which Optuna allows.
        if mine.state is not TrialState.PRUNED:
            assert mine.values == other.values
        assert mine.datetime_start is not None and mine.datetime_complete is not None
        key = (mine._trial_id, other._trial_id)
        for param in mine.params:
            assert ours.get_trial_param(key[0], param) == theirs.get_trial_param(key[1], param)
        assert ours.get_trial_number_from_id(key[0]) == theirs.get_trial_number_from_id(key[1])
    for storage in (ours, theirs):
        storage.remove_session()
        storage.engine.dispose()


def test_ended_trials_are_closed_to_optuna(tmp_path: Path) -> None:
    url = str(tmp_path / "ours.db")
    with StudyStore.open(url, name="digits", direction="maximize") as store:
        write(store, drawn_trials(3))
    storage = RDBStorage(place_of(url).optuna_url)
    study: Any = optuna.load_study(study_name="digits", storage=storage)
    for t in study.trials:
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            storage.set_trial_user_attr(t._trial_id, "key", 1)
    storage.remove_session()
    storage.engine.dispose()
