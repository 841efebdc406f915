"""Trials as Weights & Biases runs, in one group for the study."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

from shoal.errors import UsageError, did_you_mean
from shoal.loggers._base import no_package, points
from shoal.records import EpochRow, TrialResult, TrialSpec, TrialState

MODES: Final = ("online", "offline", "disabled")


@final
class Wandb:
    """Logs each trial as a run: its parameters are the run's config, each epoch is a step, and the value is in the summary.

    A run is open while its trial trains, and runs of one study share a group. A trial that starts over, or goes on in another
    session, begins a new run. Of the machine, the console and the code nothing is sent.

    Args:
        project: Name of the project, made when needed.
        group: What the runs of this study are grouped under; by default a name with the time at which the logger was first used.
        mode: "online", "offline" (files for ``wandb sync``) or "disabled"; by default what ``WANDB_MODE`` says, else online.
        folder: Where wandb keeps its files; by default ``wandb`` in the current folder.
        entity: User or team that the project belongs to.

    Raises:
        UsageError: If there is no such mode.

    Example:
        >>> Wandb("digits", mode="offline")
        Wandb('digits', mode='offline')
    """

    def __init__(
        self,
        project: str = "shoal",
        *,
        group: str | None = None,
        mode: str | None = None,
        folder: str | Path | None = None,
        entity: str | None = None,
    ) -> None:
        if mode is not None and mode not in MODES:
            raise UsageError(f"shoal.loggers.Wandb has no mode {mode!r}.{did_you_mean(str(mode), MODES)}")
        self._project, self._group, self._mode = project, group, mode
        self._folder, self._entity = None if folder is None else str(folder), entity
        self._wandb: Any = None
        self._metric = "loss"
        self._runs: dict[int, Any] = {}  # trials that have not ended -> wandb's run

    def __repr__(self) -> str:
        return f"Wandb({self._project!r}, mode={self._mode!r})"

    def start(self, metric: str) -> None:
        """Log in, unless nothing is to be sent; what wandb raises then ends the study before it trains.

        Raises:
            UsageError: If wandb is not installed.
        """
        try:
            import wandb
        except ImportError as error:
            raise no_package("shoal.loggers.Wandb", "wandb", "wandb") from error
        self._wandb, self._metric, self._runs = wandb, metric, {}
        self._group = self._group or time.strftime("study %Y-%m-%d %H:%M:%S")
        mode = self._mode or os.environ.get("WANDB_MODE") or "online"
        if mode == "online":
            wandb.login()
        if self._folder is not None:
            Path(self._folder).mkdir(parents=True, exist_ok=True)  # wandb would write elsewhere without a word

    def log(self, trial: TrialSpec, rows: Sequence[EpochRow]) -> None:
        """Log a step per epoch; the first one begins the trial's run."""
        if rows[0].epoch == 1 and trial.number in self._runs:
            self._close(trial.number, "started over", failed=True)
        run = self._run(trial)
        for row in rows:
            run.log(points(row), step=row.epoch)

    def end(self, trial: TrialSpec, result: TrialResult) -> None:
        """Put the value and how the trial ended into the summary, and end its run."""
        run = self._run(trial)
        if result.value is not None:
            run.summary[self._metric] = result.value
        if result.reason:
            run.summary["shoal.reason"] = result.reason
        self._close(trial.number, str(result.state), failed=result.state is TrialState.FAILED)

    def close(self) -> None:
        """End what still runs: a trial that goes on in another session begins a new run there."""
        for number in [*self._runs]:
            self._close(number, "interrupted", failed=True)

    def _close(self, number: int, state: str, *, failed: bool) -> None:
        run = self._runs.pop(number)
        run.summary["shoal.state"] = state
        run.finish(exit_code=int(failed))

    def _run(self, trial: TrialSpec) -> Any:
        if trial.number not in self._runs:
            self._runs[trial.number] = self._wandb.init(
                project=self._project,
                entity=self._entity,
                group=self._group,
                name=f"trial {trial.number}",
                config=dict(trial.params),
                mode=self._mode,
                dir=self._folder,
                reinit="create_new",  # runs of other trials stay open beside it
                settings=self._wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    save_code=False,
                    x_disable_stats=True,
                    x_disable_meta=True,
                    x_disable_machine_info=True,
                    x_save_requirements=False,
                ),
            )
        return self._runs[trial.number]
