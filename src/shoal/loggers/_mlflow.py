"""Trials as MLflow runs, nested in one run for the study."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, final

from shoal.loggers._base import no_package, points
from shoal.records import EpochRow, TrialResult, TrialSpec, TrialState

_STATUS = {TrialState.FINISHED: "FINISHED", TrialState.STOPPED: "FINISHED", TrialState.FAILED: "FAILED"}


@final
class MLflow:
    """Logs each trial as a run with its parameters and a point per epoch; how it ended is its tag ``shoal.state``.

    Each session of a study is a parent run of its own. Trials that had ended before are not logged again.

    Args:
        experiment: Name of the experiment, made when needed.
        tracking_uri: As for ``mlflow.set_tracking_uri``; by default what MLflow is set to.
        run_name: Name of the parent run.

    Example:
        >>> MLflow("digits", tracking_uri="http://127.0.0.1:5000")
        MLflow('digits', tracking_uri='http://127.0.0.1:5000')
    """

    def __init__(self, experiment: str = "shoal", *, tracking_uri: str | None = None, run_name: str = "study") -> None:
        self._experiment, self._uri, self._run_name = experiment, tracking_uri, run_name
        self._client: Any = None
        self._experiment_id = self._parent = ""
        self._metric = "loss"
        self._runs: dict[int, str] = {}  # trials that have not ended -> run id

    def __repr__(self) -> str:
        return f"MLflow({self._experiment!r}, tracking_uri={self._uri!r})"

    def start(self, metric: str) -> None:
        """Find or make the experiment, and begin the parent run.

        Raises:
            UsageError: If MLflow is not installed.
        """
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise no_package("shoal.loggers.MLflow", "mlflow-skinny", "mlflow") from error
        self._client, self._metric, self._runs = MlflowClient(self._uri), metric, {}
        found = self._client.get_experiment_by_name(self._experiment)
        self._experiment_id = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        tags = {"shoal.metric": metric}
        self._parent = self._client.create_run(self._experiment_id, run_name=self._run_name, tags=tags).info.run_id

    def log(self, trial: TrialSpec, rows: Sequence[EpochRow]) -> None:
        """Log a point per epoch and number; the first one begins the trial's run."""
        from mlflow.entities import Metric

        run, now_ms = self._run(trial), int(time.time() * 1000)
        numbers = [Metric(name, value, now_ms, row.epoch) for row in rows for name, value in points(row).items()]
        for first in range(0, len(numbers), 1000):  # no more are taken at once
            self._client.log_batch(run, metrics=numbers[first : first + 1000])

    def end(self, trial: TrialSpec, result: TrialResult) -> None:
        """Log the value and how the trial ended, and end its run."""
        run = self._run(trial)
        if result.value is not None:
            self._client.log_metric(run, self._metric, result.value, step=result.epoch)
        self._client.set_tag(run, "shoal.state", str(result.state))
        if result.reason:
            self._client.set_tag(run, "shoal.reason", result.reason)
        self._client.set_terminated(run, _STATUS[result.state])
        del self._runs[trial.number]

    def close(self) -> None:
        """End what still runs: a trial that goes on in another session begins a new run there."""
        for run in self._runs.values():
            self._client.set_terminated(run, "KILLED")
        self._client.set_terminated(self._parent, "FINISHED")

    def _run(self, trial: TrialSpec) -> str:
        if trial.number not in self._runs:
            from mlflow.entities import Param

            tags = {"mlflow.parentRunId": self._parent, "shoal.trial": str(trial.number)}
            name = f"trial {trial.number}"
            run = self._client.create_run(self._experiment_id, run_name=name, tags=tags).info.run_id
            self._client.log_batch(run, params=[Param(key, str(value)) for key, value in trial.params.items()])
            self._runs[trial.number] = run
        return self._runs[trial.number]
