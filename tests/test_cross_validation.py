"""Folds and seeds as lanes: each equals the same fold alone, the trial is their mean, and no fold sees what it is judged by."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import assert_close, labels, made
from shoal.data import load_whole
from shoal.errors import StorageError, UsageError
from shoal.folds import make_parts
from shoal.lanes.fleet import Work
from shoal.lanes.lane import Measured
from shoal.lanes.parts import Parts
from shoal.lanes.pool import Candidate
from shoal.lanes.solo import Solo
from shoal.lanes.together import Together
from shoal.metrics import standard_metrics
from shoal.records import EpochRow, Event, Json, TrialRecord, TrialSpec, TrialState, part_key, part_of
from shoal.replay import replay
from shoal.storage import load_study

N = 47  # divisible by no number of folds that is used here: folds differ in size
X, Y = made(N, 6), labels(N, 3)
CPU = torch.device("cpu")
QUIET: dict[str, Any] = {"progress": False, "reproducible": True, "sampler": "random", "scheduler": "none"}


def plain(trial: Any) -> shoal.Recipe:
    """Batches of several sizes in one fleet, with dropout and a schedule that watches the validation."""
    size = trial.suggest_categorical("batch_size", [8, 16])
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)).double()
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=size, schedule=schedule)


def normed(trial: Any) -> shoal.Recipe:
    """Batch statistics, so batches must be whole, and the last one is smaller in some folds than in others."""
    trial.suggest_float("lr", 1e-2, 1e-1)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = optim.SGD(model.parameters(), lr=trial.params["lr"], momentum=0.9)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=8)


def unknown_loss(trial: Any) -> shoal.Recipe:
    """A loss of one's own, weighted by class in a way that only whole batches show, on a step schedule."""
    model = nn.Linear(6, 3).double()
    optimizer = optim.RMSprop(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-2))
    steps = shoal.steps_per_epoch(trial, 10)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=4 * steps)

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        out = model(batch[0])
        each: Tensor = out.logsumexp(1) - out.gather(1, batch[1][:, None])[:, 0]
        return each.pow(2).mean()

    return shoal.Recipe(
        model, optimizer, loss, batch_size=10, schedule=schedule, schedule_every="step", predict=lambda m, b: m(b[0])
    )


def solo_parts(
    define: Callable[[Any], shoal.Recipe],
    spec: TrialSpec,
    parts: Parts,
    epochs: int,
    value_of: Callable[[Measured], float],
) -> list[list[Measured]]:
    """Every part of a trial in the plain loop."""
    data = load_whole((X, Y))
    work = Work(data, tuple(standard_metrics(Y)), CPU, parts)
    out = []
    for part in parts.split(spec):
        solo = Solo(part, replay(define, part, parts.n_train(part.part, N)), work)
        rows = []
        for _ in range(epochs):
            rows.append(solo.run_epoch())
            if solo.recipe.schedule_every == "epoch":
                solo.recipe.step_schedule(loss=rows[-1].valid_loss, value=value_of(rows[-1]))
        out.append(rows)
    return out


@pytest.mark.parametrize(
    ("define", "folds", "seeds"),
    [
        (plain, 4, 2),
        (normed, 3, 1),
        (unknown_loss, 3, 2),
        (plain, [(range(5, 47), range(5)), (range(17), range(20, 47))], 1),
    ],
    ids=["micro-batches", "batch norm", "whole batches", "folds of any size"],
)
def test_lanes_are_the_same_folds_alone(define: Callable[[Any], shoal.Recipe], folds: Any, seeds: int) -> None:
    study = shoal.tune(define, train=(X, Y), folds=folds, seeds=seeds, n_trials=2, max_epochs=4, **QUIET)
    parts = make_parts(folds, seeds, None, load_whole((X, Y)).train, 0)
    assert parts is not None
    assert not [e for e in study.record.events if "solo" in e.kind]
    for trial in study.record.trials:
        alone = solo_parts(define, trial.spec, parts, 4, lambda m: m.metrics["accuracy"])
        assert len(trial.rows) == 4
        for epoch, row in enumerate(trial.rows):
            those = [rows[epoch] for rows in alone]
            where = f"trial {trial.spec.number}, epoch {epoch + 1}"
            for lane, m in zip(row.lanes, those, strict=True):
                assert_close(lane, m.metrics["accuracy"], 1e-12, where)
            assert_close(row.train_loss, np.mean([m.train_loss for m in those]).item(), 1e-11, where)
            for name in those[0].metrics:
                assert_close(
                    row.metrics[name], np.mean([m.metrics[name] for m in those]).item(), 1e-11, f"{name}, {where}"
                )
            assert_close(row.metrics["loss"], np.mean([m.valid_loss for m in those]).item(), 1e-11, where)
            assert row.value == pytest.approx(np.mean(row.lanes)) and row.standard_error == parts.standard_error(
                row.lanes
            )


def lanes_of(trial: TrialRecord) -> list[tuple[float, ...]]:
    return [(*row.lanes, row.train_loss, row.metrics["loss"]) for row in trial.rows]


def test_neighbours_change_no_bit_of_a_trial() -> None:
    def first(other: float) -> TrialRecord:
        points = [{"batch_size": 8, "lr": 0.01}, {"batch_size": 16, "lr": other}]
        study = shoal.tune(
            plain, train=(X, Y), folds=3, n_trials=2, max_epochs=3, enqueue=points, metric="loss", **QUIET
        )
        return study.record.trials[0]

    assert lanes_of(first(0.002)) == lanes_of(first(0.09))


def test_seeds_alone_share_the_splits_and_the_first_is_the_trial_as_it_is_without() -> None:
    common: dict[str, Any] = {"train": (X, Y), "n_trials": 2, "max_epochs": 3, "metric": "loss", **QUIET}
    study = shoal.tune(plain, seeds=3, **common)
    alone = shoal.tune(plain, **common)
    for mine, theirs in zip(study.record.trials, alone.record.trials, strict=True):
        assert [row.lanes[0] for row in mine.rows] == pytest.approx([row.value for row in theirs.rows], rel=1e-11)
        assert all(len(row.lanes) == 3 and row.standard_error for row in mine.rows)
        assert not any(row.lanes or row.standard_error for row in theirs.rows)
    best = study.best_trial.spec
    data = alone._prepared.whole  # the same splits, drawn by the same seed
    solo = Solo(best, replay(plain, best, data.train.n), Work(data, (), CPU))
    for _ in range(3):
        row = solo.run_epoch()
        solo.recipe.step_schedule(loss=row.valid_loss, value=row.valid_loss)
    for name, tensor in study.best_model().state_dict().items():
        assert torch.allclose(tensor, solo.state_dict()[name], rtol=1e-10, atol=1e-12), name


# -- nothing leaks ------------------------------------------------------------------------------------------------------------


def trained_with(rows: Tensor, targets: Tensor) -> list[tuple[float, float]]:
    """Train and validation loss of fold 1 of two, by epoch."""
    folds = [(range(20, N), range(20)), (range(20), range(20, N))]
    study = shoal.tune(plain, train=(rows, targets), folds=folds[:1], n_trials=1, max_epochs=3, metric="loss", **QUIET)
    return [(row.train_loss, row.value) for row in study.record.trials[0].rows]


def test_training_never_touches_a_row_of_the_validation_fold() -> None:
    changed, flipped = X.clone(), Y.clone()
    changed[:20] = 1e3 * made(20, 6, seed=5)
    flipped[:20] = (flipped[:20] + 1) % 3
    before, after = trained_with(X, Y), trained_with(changed, flipped)
    # ReduceLROnPlateau watches the validation loss and may act after the first epoch; what was trained by then is the same.
    assert before[0][0] == after[0][0] and before[0][1] != after[0][1]
    changed = X.clone()
    changed[40] += 1.0  # a row of the training fold, so that the check above could fail
    assert trained_with(changed, Y)[0][0] != before[0][0]


def test_the_value_of_random_labels_is_chance() -> None:
    """A model that has seen what it is judged by would be right more often than not: it learns its own rows by heart."""
    x, y = made(120, 200), labels(120, 2)

    def define(trial: Any) -> shoal.Recipe:
        trial.suggest_float("nothing", 0, 1)
        model = nn.Linear(200, 2).double()
        return shoal.Recipe(model, optim.Adam(model.parameters(), lr=0.05), nn.CrossEntropyLoss(), batch_size=16)

    study = shoal.tune(define, train=(x, y), folds=4, n_trials=1, max_epochs=15, **QUIET)
    assert study.record.trials[0].rows[-1].train_loss < 0.05
    assert abs(study.best_value - 0.5) < 0.17  # 3.7 standard errors of 120 coins
    with torch.no_grad():
        assert (study.best_model()(x).argmax(1) == y).double().mean() == 1.0  # the refit has seen every row


# -- the trial as a whole ------------------------------------------------------------------------------------------------------


def test_a_lane_that_diverges_ends_its_trial_and_no_other() -> None:
    x = X.clone()
    x[7] = 1e200
    folds = [([*range(20, 40)], [*range(40, N)]), ([7, *range(20, 40)], [*range(40, N)])]

    def define(trial: Any) -> shoal.Recipe:
        model = nn.Linear(6, 1).double()
        optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-3))
        return shoal.Recipe(
            model, optimizer, lambda m, b: (m(b[0]) ** 2).mean(), batch_size=10, predict=lambda m, b: m(b[0])
        )

    study = shoal.tune(define, train=(x, Y), folds=folds, seeds=2, n_trials=2, max_epochs=2, metric="loss", **QUIET)
    for trial in study.record.trials:
        assert trial.state is TrialState.FAILED
        assert trial.reason.startswith(f"trial {trial.spec.number}: its loss was not finite in fold 2, seed 1")
    # Without that fold the trial wins, and what it then learns from all rows is said to be of no use.
    with pytest.warns(
        RuntimeWarning, match=r"trial 0 won, but its loss was not finite in epoch 1 of training on all folds"
    ):
        alone = shoal.tune(define, train=(x, Y), folds=folds[:1], n_trials=1, max_epochs=2, metric="loss", **QUIET)
    assert alone.best_value > 0


def test_what_raises_in_one_fold_fails_the_trial_and_names_the_fold() -> None:
    folds = [(range(30), range(30, N)), (range(12), range(30, N))]

    def define(trial: Any) -> shoal.Recipe:
        model = nn.Linear(6, 3).double()
        optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-2))
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=trial.suggest_int("batch_size", 8, 20))

    points = [{"lr": 0.01, "batch_size": 16}, {"lr": 0.01, "batch_size": 8}]
    study = shoal.tune(define, train=(X, Y), folds=folds, n_trials=2, max_epochs=1, enqueue=points, **QUIET)
    failed, finished = study.record.trials
    assert failed.state is TrialState.FAILED and finished.state is TrialState.FINISHED
    assert "batch_size=16 is larger than the training split (12 samples)" in failed.reason


def test_schedulers_see_the_mean_and_stop_pause_and_promote_whole_trials() -> None:
    common: dict[str, Any] = {"train": (X, Y), "folds": 4, "n_trials": 10, "max_epochs": 6, "metric": "loss", **QUIET}
    study = shoal.tune(plain, **{**common, "scheduler": "halving", "sampler": "tpe"})  # eight trials at a time
    whole = shoal.tune(plain, enqueue=[dict(t.spec.params) for t in study.record.trials], **common)
    assert {t.state for t in study.record.trials} == {TrialState.FINISHED, TrialState.STOPPED}
    assert {e.kind for e in study.record.events} >= {"paused", "promoted"}
    for trial, full in zip(study.record.trials, whole.record.trials, strict=True):
        for row, expected in zip(trial.rows, full.rows, strict=False):  # pausing has changed nothing
            assert row.lanes == pytest.approx(expected.lanes, rel=1e-9) and row.epoch == expected.epoch
        own = [e for e in study.record.events if e.trial == trial.spec.number]
        admitted = sorted(str(e.data["part"]) for e in own if e.kind == "admitted")
        left = sorted(str(e.data["part"]) for e in own if e.kind == "left")
        assert admitted == left and set(admitted) == set(map(str, range(4)))


# -- the winner ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["last", "best"])
def test_the_winner_is_trained_again_on_all_rows(value: Any) -> None:
    study = shoal.tune(
        plain, train=(X, Y), test=(X[:9], Y[:9]), folds=3, n_trials=3, max_epochs=4, metric="loss", value=value, **QUIET
    )
    best = study.best_trial
    data = load_whole((X, Y))
    solo = Solo(best.spec, replay(plain, best.spec, N), Work(data, (), CPU))
    for row in best.rows[: best.epoch]:
        solo.train_epoch()
        solo.recipe.step_schedule(loss=row.metrics["loss"], value=row.value)
    for name, tensor in study.best_model().state_dict().items():
        assert torch.equal(tensor, solo.state_dict()[name]), name
    solo.recipe.model.eval()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(solo.recipe.model(X[:9]), Y[:9]).item()
    assert study.test_metrics["loss"] == pytest.approx(expected)
    winner = study.record.meta["winner"]
    assert (
        isinstance(winner, Mapping) and winner["split"] == "test" and "valid" not in winner
    )  # it was trained on every such row


# -- the study file ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, shoal.Study]:
    path = tmp_path_factory.mktemp("stored") / "folds.db"
    options: dict[str, Any] = {**QUIET, "n_trials": 4, "max_epochs": 4, "metric": "loss", "storage": path}
    with pytest.MonkeyPatch.context() as patch:  # stopped in the middle, as by Ctrl-C
        calls = iter(range(100))
        real = Together.run_epoch

        def run_epoch(self: Together) -> list[Measured]:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return real(self)

        patch.setattr(Together, "run_epoch", run_epoch)
        with pytest.raises(KeyboardInterrupt):
            shoal.tune(plain, train=(X, Y), folds=3, seeds=2, **options)
    assert all(t.state is TrialState.RUNNING and len(t.rows) == 2 for t in load_study(str(path)).trials)
    return path, shoal.resume(path, plain, train=(X, Y), progress=False)


def test_a_study_goes_on_after_a_crash_as_if_nothing_had_been(stored: tuple[Path, shoal.Study]) -> None:
    whole = shoal.tune(plain, train=(X, Y), folds=3, seeds=2, n_trials=4, max_epochs=4, metric="loss", **QUIET)
    for mine, theirs in zip(stored[1].record.trials, whole.record.trials, strict=True):
        assert mine.spec == theirs.spec and lanes_of(mine) == lanes_of(theirs)
    assert stored[1].best_value == whole.best_value


def test_lanes_and_their_error_are_in_the_file_and_in_optuna(stored: tuple[Path, shoal.Study]) -> None:
    path, study = stored
    record = load_study(str(path))
    assert [t.rows for t in record.trials] == [t.rows for t in study.record.trials]
    meta = record.meta["folds"]
    assert isinstance(meta, Mapping) and (meta["n"], meta["seeds"], meta["repeats"]) == (3, 2, [[0, 1, 2]])
    in_memory = shoal.tune(plain, train=(X, Y), folds=3, n_trials=1, max_epochs=1, **QUIET).optuna_study
    for optuna_study, lanes in (
        (optuna.load_study(study_name="shoal", storage=f"sqlite:///{path}"), 6),
        (in_memory, 3),
    ):
        for trial in optuna_study.trials:
            values = trial.user_attrs["lane_values"]
            assert len(values) == lanes and trial.value == pytest.approx(np.mean(values))
            assert trial.user_attrs["standard_error"] > 0


def test_weights_of_the_winner_are_kept_and_not_trained_twice(stored: tuple[Path, shoal.Study]) -> None:
    path, study = stored
    files = list(path.with_suffix(".weights").iterdir())
    assert [f.name for f in files] == [f"trial_{study.best_trial.spec.number:06d}.safetensors"]
    before = files[0].stat().st_mtime_ns
    again = shoal.tune(
        plain, train=(X, Y), folds=3, seeds=2, n_trials=4, max_epochs=4, metric="loss", storage=path, **QUIET
    )
    assert files[0].stat().st_mtime_ns == before
    for name, tensor in again.best_model().state_dict().items():
        assert torch.equal(tensor, study.best_model().state_dict()[name])


def test_other_folds_are_refused(stored: tuple[Path, shoal.Study]) -> None:
    path, _ = stored
    for other in ({"folds": 4, "seeds": 2}, {"folds": 3}, {"seeds": 2, "valid": (X, Y)}):
        with pytest.raises(StorageError, match=r"other folds or seeds|other data"):
            shoal.tune(plain, train=(X, Y), n_trials=4, max_epochs=4, metric="loss", storage=path, **other, **QUIET)


def test_a_splitter_is_not_kept_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "object.db"
    folds = [(range(30), range(30, N))]
    arguments: dict[str, Any] = {"train": (X, Y), "folds": folds, "max_epochs": 1, "storage": path, **QUIET}
    shoal.tune(plain, n_trials=1, **arguments)
    with pytest.raises(
        UsageError, match=r"started with a splitter, row indices or groups, which no file holds; call tune\(\)"
    ):
        shoal.resume(path, plain, train=(X, Y), n_trials=2, progress=False)
    assert len(shoal.tune(plain, n_trials=2, **arguments).record.trials) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid": 0.2}, r"folds= takes the place of valid="),
        ({"test": 0.2, "groups": np.arange(N) // 4}, r"test=0\.2 draws rows at random, which breaks up groups"),
    ],
    ids=["valid", "groups"],
)
def test_data_that_folds_do_not_go_with(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shoal.tune(plain, train=(X, Y), folds=3, n_trials=1, max_epochs=1, **arguments, **QUIET)


def test_a_random_test_part_is_refused_where_rows_have_an_order() -> None:
    from sklearn.model_selection import TimeSeriesSplit

    with pytest.raises(UsageError, match=r"test=0\.2 draws rows at random, which breaks up an order in time"):
        shoal.tune(plain, train=(X, Y), test=0.2, folds=TimeSeriesSplit(3), n_trials=1, max_epochs=1, **QUIET)


def test_a_table_refuses_folds_since_its_preparation_is_learnt_once() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": made(60).numpy(), "y": ["a", "b"] * 30})
    with pytest.raises(UsageError, match=r"a fold would be validated on rows that its preparation has seen"):
        shoal.tune_table(frame, target="y", folds=3, n_trials=1, progress=False)


# -- parts that lose step -------------------------------------------------------------------------------------------------------


class Forgetful:
    """A trainer of parts that loses one of them while it is paused, and counts what it is told."""

    def __init__(self) -> None:
        self.epochs: dict[int, int] = {}
        self.paused: dict[int, int] = {}
        self.n_lanes = self.n_fleets = 0

    @property
    def n_running(self) -> int:
        return len(self.epochs)

    def admit(self, candidates: Iterable[Candidate], promoted: Sequence[int] = ()) -> None:
        self.epochs |= {c.spec.key: 0 for c in candidates}
        for key in promoted:
            epoch = self.paused.pop(key)
            self.epochs[key] = 0 if part_of(key)[1] == 1 else epoch  # part 1 was not kept

    def pause(self, trial: int) -> None:
        self.paused[trial] = self.epochs.pop(trial)

    def run_epoch(self) -> list[Measured]:
        self.epochs = {key: epoch + 1 for key, epoch in self.epochs.items()}
        return [Measured(k, e, 1.0, 1.0, {}, 1.0, True) for k, e in sorted(self.epochs.items())]

    def epoch_done(self, trial: int, loss: float, value: float) -> None: ...
    def remember(self, trial: int) -> None: ...
    def state_dict(self, trial: int, *, remembered: bool = False) -> dict[str, Tensor]:
        return {}

    def remove(self, trial: int) -> None:
        (self.epochs if trial in self.epochs else self.paused).pop(trial)

    def copy(self, moves: Sequence[tuple[TrialSpec, int]]) -> set[int]:
        """All but part 1, and of trial 5 none."""
        return {spec.key for spec, _ in moves if spec.part != 1 and spec.number != 5}

    def snapshot(self, folder: Path, stem: str) -> dict[str, Json]:
        return {}

    def restore(self, folder: Path, facts: Mapping[str, Any], specs: Mapping[int, TrialSpec], rounds: int) -> None: ...
    def drain_events(self) -> list[Event]:
        return [Event(0, "left", part_key(3, 1), 0, 2)]


def test_a_trial_of_which_only_some_parts_are_copied_over_fails_and_says_so() -> None:
    together = Together(
        Forgetful(), Parts(n_seeds=2), lambda m: m.valid_loss, lambda spec: pytest.fail("not asked for")
    )
    specs = [TrialSpec(n, n, {}, {}, origin=2) for n in (3, 5)]
    assert together.copy([(spec, 2) for spec in specs]) == set()
    (found,) = together.run_epoch()
    assert (found.trial, found.error) == (3, "trial 3: only some of its parts could go on from another trial's")


def test_a_trial_whose_parts_lose_step_starts_over_as_one() -> None:
    parts, inner = Parts(n_seeds=3), Forgetful()
    recipe = replay(plain, TrialSpec(3, 1, {"batch_size": 8, "lr": 0.1}, {}), N)

    def admission(spec: TrialSpec) -> Candidate:
        return Candidate(spec, recipe, None)

    trainer = Together(inner, parts, lambda m: m.valid_loss, admission)
    trainer.admit([admission(s) for s in parts.split(TrialSpec(3, 1, {}, {}))])
    assert [(m.trial, m.epoch, m.lanes) for m in trainer.run_epoch()] == [(3, 1, (1.0,) * 3)] and trainer.n_running == 1
    trainer.pause(3)
    assert trainer.n_running == 0 and len(inner.paused) == 3
    trainer.admit([], [3])
    assert trainer.run_epoch() == [] and trainer.n_running == 1 and not inner.epochs
    trainer.pause(3)  # while nothing of it is anywhere
    trainer.admit([], [3])
    assert [m.epoch for m in trainer.run_epoch()] == [1] and len(inner.epochs) == 3
    assert [(e.trial, e.data["part"]) for e in trainer.drain_events()] == [(3, 1)]
    trainer.remove(3)
    assert not inner.epochs and trainer.n_running == 0


def test_a_mean_that_is_no_number_says_whose_it_is() -> None:
    parts, inner = Parts(n_seeds=2), Forgetful()
    recipe = replay(plain, TrialSpec(0, 1, {"batch_size": 8, "lr": 0.1}, {}), N)

    def admission(spec: TrialSpec) -> Candidate:
        return Candidate(spec, recipe, None)

    trainer = Together(inner, parts, lambda m: math.nan if part_of(m.trial)[1] else 1.0, admission)
    trainer.admit([admission(s) for s in parts.split(TrialSpec(0, 1, {}, {}))])
    (m,) = trainer.run_epoch()
    assert m.where == " in seed 2" and m.finite


def test_rows_without_lanes_are_as_they_were() -> None:
    row = EpochRow(0, 1, 0.5, 0.5, {"loss": 0.5})
    assert dataclasses.asdict(row)["lanes"] == () and row.standard_error is None
