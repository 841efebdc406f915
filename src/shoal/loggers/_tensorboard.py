"""Trials as TensorBoard runs, with their parameters on its HParams page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from shoal.loggers._base import no_package, points
from shoal.records import EpochRow, TrialResult, TrialSpec


@final
class TensorBoard:
    """Writes one event file per trial, ``log_dir/trial_000012``; look with ``tensorboard --logdir log_dir``.

    Files are appended to and closed at once, so thousands of trials neither keep files open nor start threads, as one
    ``SummaryWriter`` per trial would.

    Args:
        log_dir: A folder, made when needed. A trial that starts over replaces its file.

    Example:
        >>> TensorBoard("runs/digits")
        TensorBoard('runs/digits')
    """

    def __init__(self, log_dir: str | Path) -> None:
        self._folder, self._metric = Path(log_dir), "loss"

    def __repr__(self) -> str:
        return f"TensorBoard({str(self._folder)!r})"

    def start(self, metric: str) -> None:
        """See that TensorBoard is there.

        Raises:
            UsageError: If it is not.
        """
        try:
            import tensorboard.summary.writer.record_writer  # noqa: F401
        except ImportError as error:
            raise no_package("shoal.loggers.TensorBoard", "tensorboard", "tensorboard") from error
        self._metric = metric

    def log(self, trial: TrialSpec, rows: Sequence[EpochRow]) -> None:
        """Append a point per epoch and number."""
        from torch.utils.tensorboard.summary import scalar

        events: list[tuple[int, Any]] = []
        if rows[0].epoch == 1:
            self._file(trial).unlink(missing_ok=True)
            # What the HParams page shows: parameters, and the last point of these.
            params = {name: "None" if value is None else value for name, value in trial.params.items()}
            shown = dict.fromkeys((f"valid/{self._metric}", "valid/loss", "train/loss"), 0.0)
            experiment, start, _ = _hparams(params, shown)
            events += [(0, experiment), (0, start)]
        for row in rows:
            events += [(row.epoch, scalar(name, value)) for name, value in points(row).items()]  # type: ignore[no-untyped-call]
        self._write(trial, events)

    def end(self, trial: TrialSpec, result: TrialResult) -> None:
        """Close the trial's session on the HParams page."""
        if self._file(trial).exists():  # a trial that failed before its first epoch has none
            self._write(trial, [(result.epoch, _hparams({}, {})[2])])

    def close(self) -> None:
        """Nothing is open."""

    def _file(self, trial: TrialSpec) -> Path:
        return self._folder / f"trial_{trial.number:06d}" / "events.out.tfevents.shoal"

    def _write(self, trial: TrialSpec, events: Sequence[tuple[int, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        file, now = self._file(trial), time.time()
        new = not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as stream:
            writer = RecordWriter(stream)
            if new:
                writer.write(Event(wall_time=now, step=0, file_version="brain.Event:2").SerializeToString())
            for step, summary in events:
                writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())


def _hparams(params: dict[str, Any], metrics: dict[str, float]) -> tuple[Any, Any, Any]:
    """(experiment, session start, session end) as the HParams page wants them."""
    from torch.utils.tensorboard.summary import hparams

    made: tuple[Any, Any, Any] = hparams(params, metrics)  # type: ignore[no-untyped-call]
    return made
