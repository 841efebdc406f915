"""What a logger is, and how rows get to it: over a queue, so that a study never waits and never fails for its logger."""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from shoal.errors import UsageError, blame
from shoal.records import EpochRow, TrialResult, TrialSpec


@runtime_checkable
class Logger(Protocol):
    """Where else a study is recorded. ``start`` is called by ``tune`` itself; all else on one thread of the logger's own."""

    def start(self, metric: str) -> None:
        """Open whatever it is; what is raised here ends the study before it trains.

        Args:
            metric: The metric that trials are judged by.
        """

    def log(self, trial: TrialSpec, rows: Sequence[EpochRow]) -> None:
        """A trial's next epochs. A trial that starts over begins at epoch 1 again."""

    def end(self, trial: TrialSpec, result: TrialResult) -> None:
        """How a trial ended."""

    def close(self) -> None:
        """The study ends or is interrupted; trials that have not ended may go on in another session."""


class _Courier:
    """One logger with its thread and its queue."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._broken = ""
        self._thread = threading.Thread(target=self._work, name=f"shoal {type(logger).__name__}", daemon=True)
        self._thread.start()

    def put(self, task: Callable[[], None]) -> None:
        self._queue.put(task)

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if self._broken:
                continue
            try:
                task()
            except Exception as error:  # whatever a server does wrong, the study goes on
                self._broken = blame(error)

    def close(self) -> None:
        """Wait until everything is logged; warn if it was not."""
        self._queue.put(self._logger.close)
        self._queue.put(None)
        self._thread.join()
        if self._broken:
            warnings.warn(
                f"the {type(self._logger).__name__} logger raised {self._broken}; what came after is in the study only.",
                RuntimeWarning,
                stacklevel=2,
            )


class Logging:
    """All loggers of a study. Use as a context manager: leaving it waits until everything has been logged.

    Args:
        loggers: As given to ``tune``; opened on entering.
        metric: The metric that trials are judged by.
    """

    def __init__(self, loggers: Sequence[Logger], metric: str) -> None:
        self._loggers, self._metric = loggers, metric
        self._lanes: list[tuple[Logger, _Courier]] = []

    def __enter__(self) -> Logging:
        for logger in self._loggers:
            logger.start(self._metric)
        self._lanes = [(logger, _Courier(logger)) for logger in self._loggers]
        return self

    def __exit__(self, *_: object) -> None:
        for _logger, lane in self._lanes:
            lane.close()

    def record(self, specs: Mapping[int, TrialSpec], rows: Sequence[EpochRow], results: Sequence[TrialResult]) -> None:
        """Hand over what a round brought; returns at once.

        Args:
            specs: By trial number.
        """
        if not self._lanes:
            return
        by_trial: dict[int, list[EpochRow]] = {}
        for row in rows:
            by_trial.setdefault(row.trial, []).append(row)
        for logger, lane in self._lanes:
            for number, own in by_trial.items():
                lane.put(lambda log=logger.log, spec=specs[number], own=own: log(spec, own))  # type: ignore[misc]
            for result in results:
                lane.put(lambda end=logger.end, spec=specs[result.number], r=result: end(spec, r))  # type: ignore[misc]


def check(loggers: object) -> Sequence[Logger]:
    """What was given as ``loggers``.

    Raises:
        UsageError: If it is no list of loggers.
    """
    if not isinstance(loggers, list | tuple):
        kind = type(loggers).__name__
        raise UsageError(f"loggers must be a list, such as [shoal.loggers.TensorBoard('runs')], not {kind}.")
    for logger in loggers:
        if isinstance(logger, type) or not isinstance(logger, Logger):
            raise UsageError(
                f"loggers must have the methods start, log, end and close (see shoal.loggers.Logger); got {logger!r}."
            )
    return loggers


def no_package(logger: str, package: str, extra: str) -> UsageError:
    """The error for a logger whose package is not there."""
    return UsageError(
        f"{logger} needs {package}: run `pip install {package}`, or install shoal with the extra {extra!r}."
    )


def points(row: EpochRow) -> dict[str, float]:
    """An epoch's numbers under the names that they are logged by.

    >>> points(EpochRow(trial=0, epoch=1, train_loss=0.5, value=0.9, metrics={"loss": 0.4, "accuracy": 0.9}))
    {'train/loss': 0.5, 'valid/loss': 0.4, 'valid/accuracy': 0.9}
    """
    return {"train/loss": row.train_loss, **{f"valid/{name}": float(v) for name, v in row.metrics.items()}}
