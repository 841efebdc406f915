"""Who trains on: pure decisions over plain rows, so that they are tested in simulated time and rebuilt by replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from shoal.errors import UsageError, did_you_mean
from shoal.schedulers._base import (
    Decision,
    Explorer,
    Observation,
    Promoter,
    Room,
    Scheduler,
    Space,
    Verdict,
    check_whole,
)
from shoal.schedulers.asha import Asha
from shoal.schedulers.fifo import Fifo
from shoal.schedulers.freeze_thaw import FreezeThaw
from shoal.schedulers.halving import SuccessiveHalving, TopK
from shoal.schedulers.hyperband import Hyperband
from shoal.schedulers.median import Median
from shoal.schedulers.patience import Patience
from shoal.schedulers.pb2 import PB2
from shoal.schedulers.pbt import PopulationBasedTraining
from shoal.schedulers.replaying import PopulationBasedTrainingReplay

__all__ = [
    "PB2",
    "SCHEDULERS",
    "Asha",
    "Decision",
    "Explorer",
    "Fifo",
    "FreezeThaw",
    "Hyperband",
    "Median",
    "Observation",
    "Patience",
    "PopulationBasedTraining",
    "PopulationBasedTrainingReplay",
    "Promoter",
    "Room",
    "Scheduler",
    "Space",
    "SuccessiveHalving",
    "TopK",
    "Verdict",
    "resolve",
]

# Name -> (max_epochs, n_trials) -> scheduler. A patience of a fifth of the way lets a curve rest on a plateau but not live
# there; the median's warm-up of a tenth skips the epochs in which curves mostly show their learning rate. Three trials to
# the end is what the paper of top-k takes; a wide search can afford a few more for what one epoch cannot tell apart.
SCHEDULERS: Mapping[str, Callable[[int, int], Scheduler]] = MappingProxyType(
    {
        "none": lambda max_epochs, n_trials: Fifo(),
        "asha": lambda max_epochs, n_trials: Asha(max_epochs, n_trials=n_trials),
        "asha_stop": lambda max_epochs, n_trials: Asha(max_epochs, promote=False),
        "halving": lambda max_epochs, n_trials: SuccessiveHalving(max_epochs),
        "hyperband": lambda max_epochs, n_trials: Hyperband(max_epochs),
        "freeze_thaw": lambda max_epochs, n_trials: FreezeThaw(max_epochs),
        "median": lambda max_epochs, n_trials: Median(warmup_epochs=max(1, max_epochs // 10)),
        "pb2": lambda max_epochs, n_trials: PB2(max_epochs),
        "pbt": lambda max_epochs, n_trials: PopulationBasedTraining(max_epochs),
        "patience": lambda max_epochs, n_trials: Patience(max(3, max_epochs // 5)),
        "top_k": lambda max_epochs, n_trials: TopK(max(3, n_trials // 50)),
    }
)


def resolve(scheduler: str | Scheduler | None, *, max_epochs: int, n_trials: int) -> Scheduler:
    """The scheduler that the user meant.

    Args:
        scheduler: a name in ``SCHEDULERS``, a scheduler, or None: "asha" if a trial may run 4 epochs or more and there
            is more than one trial, otherwise "none", since there is too little to save or nobody to compare with.
        max_epochs: where a trial is finished, 1 or more.
        n_trials: how many trials are planned, 1 or more.

    Returns:
        A fresh scheduler, or the given one.

    Raises:
        UsageError: the name is unknown, the object is no scheduler, or a number is out of its range.

    Example:
        >>> resolve(None, max_epochs=30, n_trials=100)
        Asha(30, eta=3, rungs=(2, 6), promote=True)
    """
    check_whole("max_epochs", max_epochs, at_least=1)
    check_whole("n_trials", n_trials, at_least=1)
    if scheduler is None:
        scheduler = "asha" if max_epochs >= 4 and n_trials > 1 else "none"
    if isinstance(scheduler, str):
        if scheduler not in SCHEDULERS:
            raise UsageError(f"Unknown scheduler {scheduler!r}.{did_you_mean(scheduler, SCHEDULERS)}")
        return SCHEDULERS[scheduler](max_epochs, n_trials)
    if isinstance(scheduler, type) or not isinstance(scheduler, Scheduler):
        raise UsageError(
            f"scheduler must be one of {', '.join(sorted(SCHEDULERS))}, or an object with a name and observe(rows); "
            f"got {scheduler!r}."
        )
    return scheduler
