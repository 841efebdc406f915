"""Loggers against the real TensorBoard and MLflow, and a stand-in for Weights & Biases; none holds a study up or fails it."""

from __future__ import annotations

import builtins
import math
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

import shoal
from shoal.errors import UsageError
from shoal.loggers import MLflow, TensorBoard, Wandb
from shoal.records import EpochRow, TrialResult, TrialSpec, TrialState

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def define(trial: Any) -> shoal.Recipe:
    model = nn.Sequential(nn.Linear(4, 3))
    if trial.suggest_categorical("broken", [False, False, True]):
        raise ArithmeticError("on purpose")
    optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 20)


def tune(*loggers: Any, **more: Any) -> shoal.Study:
    keywords: dict[str, Any] = {"n_trials": 8, "max_epochs": 6, "sampler": "random", "scheduler": "asha", "seed": 3}
    keywords |= {"reproducible": True, "progress": False}
    return shoal.tune(define, train=(X, Y), valid=(X, Y), loggers=loggers, **{**keywords, **more})


def logged(study: shoal.Study) -> dict[int, list[tuple[int, float]]]:
    """Trial -> (epoch, validation accuracy), of trials with any."""
    return {t.spec.number: [(r.epoch, r.metrics["accuracy"]) for r in t.rows] for t in study.record.trials if t.rows}


class Book:
    """Writes down what a logger is told."""

    def __init__(self) -> None:
        self.metric, self.closed = "", 0
        self.rows: dict[int, list[EpochRow]] = {}
        self.results: dict[int, TrialResult] = {}

    def start(self, metric: str) -> None:
        self.metric = metric

    def log(self, trial: TrialSpec, rows: Sequence[EpochRow]) -> None:
        assert rows and {row.trial for row in rows} == {trial.number} and set(trial.params) == {"broken", "lr"}
        self.rows.setdefault(trial.number, []).extend(rows)

    def end(self, trial: TrialSpec, result: TrialResult) -> None:
        assert result.number == trial.number not in self.results
        self.results[trial.number] = result

    def close(self) -> None:
        self.closed += 1


class Broken(Book):
    def log(self, trial: TrialSpec, rows: Sequence[EpochRow]) -> None:
        raise ConnectionError("no route to host")


def test_a_logger_is_told_all_that_is_recorded() -> None:
    book = Book()
    study = tune(book)
    assert book.metric == "accuracy" and book.closed == 1
    assert {n: tuple(rows) for n, rows in book.rows.items()} == {
        t.spec.number: t.rows for t in study.record.trials if t.rows
    }
    assert {n: r.state for n, r in book.results.items()} == {t.spec.number: t.state for t in study.record.trials}
    states = {r.state for r in book.results.values()}
    assert states == {TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED}


def test_a_logger_that_raises_changes_nothing_and_is_warned_of_once() -> None:
    book, broken = Book(), Broken()
    with pytest.warns(
        RuntimeWarning, match="the Broken logger raised ConnectionError: no route to host.*; what came"
    ) as w:
        study = tune(broken, book)
    assert len(w) == 1 and all(r.state is TrialState.FAILED for r in broken.results.values())  # before the first row
    assert book.rows.keys() == logged(study).keys()


def test_what_start_raises_ends_the_study_before_it_trains(tmp_path: Path) -> None:
    class Unreachable(Book):
        def start(self, metric: str) -> None:
            raise ConnectionError("no route to host")

    with pytest.raises(ConnectionError):
        tune(Unreachable(), storage=tmp_path / "s.db")
    assert len(tune(storage=tmp_path / "s.db", n_trials=2).record.trials) == 2


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        (TensorBoard("x"), "loggers must be a list, such as [shoal.loggers.TensorBoard('runs')], not TensorBoard."),
        (
            [TensorBoard],
            "loggers must have the methods start, log, end and close (see shoal.loggers.Logger); got <class",
        ),
        (["runs"], "got 'runs'."),
    ],
)
def test_what_is_no_logger_is_refused(loggers: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        shoal.tune(define, train=(X, Y), loggers=loggers)


@pytest.mark.parametrize(
    ("logger", "package"),
    [(TensorBoard("x"), "tensorboard"), (MLflow(), "mlflow-skinny"), (Wandb(), "wandb")],
)
def test_a_missing_package_is_named(logger: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("tensorboard", "mlflow", "wandb"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=f"{type(logger).__name__} needs {package}: run `pip install {package}`"):
        logger.start("loss")


# --- TensorBoard -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_reads_every_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    study = tune(TensorBoard(tmp_path / "runs"))
    expected = logged(study)
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {f"trial_{n:06d}" for n in expected}
    for trial in study.record.trials:
        if not trial.rows:
            continue
        run = EventAccumulator(str(tmp_path / "runs" / f"trial_{trial.spec.number:06d}"))
        run.Reload()
        assert set(run.Tags()["scalars"]) >= {"train/loss", "valid/loss", "valid/accuracy"}
        points = [(p.step, p.value) for p in run.Scalars("valid/accuracy")]
        assert points == [(epoch, pytest.approx(value)) for epoch, value in expected[trial.spec.number]]
        shown = run.PluginTagToContent(metadata.PLUGIN_NAME)
        begun = metadata.parse_session_start_info_plugin_data(shown[metadata.SESSION_START_INFO_TAG])
        assert begun.hparams["lr"].number_value == trial.spec.params["lr"]
        assert metadata.SESSION_END_INFO_TAG in shown


def test_a_trial_that_starts_over_replaces_its_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger, spec = TensorBoard(tmp_path), TrialSpec(4, 0, {"kind": None, "deep": True, "lr": 0.1}, {})
    logger.start("loss")
    for rows in ([1, 2], [3], [1]):
        logger.log(spec, [EpochRow(4, epoch, 0.5, math.nan, {"loss": math.nan}) for epoch in rows])
    logger.end(TrialSpec(5, 0, {}, {}), TrialResult(5, TrialState.FAILED, None, 0))  # never trained
    run = EventAccumulator(str(tmp_path / "trial_000004"))
    run.Reload()
    assert [p.step for p in run.Scalars("train/loss")] == [1] and math.isnan(run.Scalars("valid/loss")[0].value)
    assert [p.name for p in tmp_path.iterdir()] == ["trial_000004"]


# --- MLflow ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning:mlflow")
def test_mlflow_finds_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    uri = (tmp_path / "mlruns").as_uri()
    study = tune(MLflow("digits", tracking_uri=uri, run_name="first"))
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    parent = next(run for run in runs if run.info.run_name == "first")
    children = {int(run.data.tags["shoal.trial"]): run for run in runs if run is not parent}
    assert parent.info.status == "FINISHED" and parent.data.tags["shoal.metric"] == "accuracy"
    assert children.keys() == {t.spec.number for t in study.record.trials}
    for trial in study.record.trials:
        run = children[trial.spec.number]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["shoal.state"] == str(trial.state)
        assert run.info.status == ("FAILED" if trial.state is TrialState.FAILED else "FINISHED")
        assert run.data.params == {name: str(value) for name, value in trial.spec.params.items()}
        if trial.rows:
            points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "valid/accuracy")]
            assert sorted(points) == logged(study)[trial.spec.number]
            assert run.data.metrics["accuracy"] == trial.value


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class Run:
    """As much of a wandb run as the logger uses, as strict as wandb is: steps go up, and nothing follows ``finish``."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.history: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def log(self, data: dict[str, float], step: int) -> None:
        assert self.exit_code is None and (not self.history or step > self.history[-1][0])
        self.history.append((step, data))

    def finish(self, exit_code: int) -> None:
        assert self.exit_code is None
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the package: its runs, and how often it was asked to log in."""
    fake = types.ModuleType("wandb")
    runs: list[Run] = []
    logins: list[int] = []

    def init(**settings: Any) -> Run:
        runs.append(Run(**settings))
        return runs[-1]

    vars(fake).update(init=init, login=lambda: logins.append(1), Settings=dict, runs=runs, logins=logins)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake


def test_wandb_is_told_every_run(wandb: Any, tmp_path: Path) -> None:
    study = tune(Wandb("digits", group="first", mode="offline", folder=tmp_path / "new"))
    assert not wandb.logins and (tmp_path / "new").is_dir()
    by_name = {run.settings["name"]: run for run in wandb.runs}
    assert len(by_name) == len(wandb.runs) == len(study.record.trials)
    for trial in study.record.trials:
        run = by_name[f"trial {trial.spec.number}"]
        assert run.settings["config"] == trial.spec.params and run.settings["reinit"] == "create_new"
        assert (run.settings["project"], run.settings["group"], run.settings["mode"]) == ("digits", "first", "offline")
        assert [(step, data["valid/accuracy"]) for step, data in run.history] == [
            (row.epoch, row.metrics["accuracy"]) for row in trial.rows
        ]
        assert run.summary["shoal.state"] == str(trial.state)
        assert run.exit_code == (trial.state is TrialState.FAILED)
        assert run.summary.get("accuracy") == trial.value and run.summary.get("shoal.reason", "") == trial.reason


def test_a_wandb_run_begins_anew_with_its_trial_and_ends_with_the_session(wandb: Any) -> None:
    logger, spec = Wandb(), TrialSpec(4, 0, {"lr": 0.1}, {})
    logger.start("loss")
    for epochs in ([1, 2], [3], [1]):
        logger.log(spec, [EpochRow(4, epoch, 0.5, 0.4, {"loss": 0.4}) for epoch in epochs])
    logger.close()
    logger.close()
    assert wandb.logins == [1]  # asked for before anything trains
    assert [[step for step, _ in run.history] for run in wandb.runs] == [[1, 2, 3], [1]]
    assert [run.summary["shoal.state"] for run in wandb.runs] == ["started over", "interrupted"]
    assert [run.exit_code for run in wandb.runs] == [1, 1]
    assert len({run.settings["group"] for run in wandb.runs}) == 1


def test_wandb_does_not_log_in_where_nothing_is_sent(wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    Wandb().start("loss")
    assert not wandb.logins
    with pytest.raises(UsageError, match=r"shoal\.loggers\.Wandb has no mode 'ofline'\. Did you mean 'offline'\?"):
        Wandb(mode="ofline")


def test_the_real_wandb_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    study = tune(Wandb("digits", mode="offline", folder=tmp_path))
    assert len([*(tmp_path / "wandb").glob("offline-run-*")]) == len(study.record.trials)
