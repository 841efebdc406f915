"""Who trains on: pure decisions over plain rows, so that they are tested in simulated time and rebuilt by replay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

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
]

# Name -> a scheduler, and (max_epochs, n_trials) -> what it is made with. A patience of a fifth of the way lets a curve rest on
# a plateau but not live there; the median's warm-up of a tenth skips the epochs in which curves mostly show their learning rate.
# Three trials to the end is what the paper of top-k takes; a wide search affords a few more for what one epoch cannot tell apart.
_NAMED: Mapping[str, tuple[Callable[..., Scheduler], Callable[[int, int], Mapping[str, Any]]]] = MappingProxyType(
    {
        "none": (Fifo, lambda max_epochs, n_trials: {}),
        "asha": (Asha, lambda max_epochs, n_trials: {"max_epochs": max_epochs, "n_trials": n_trials}),
        "asha_stop": (Asha, lambda max_epochs, n_trials: {"max_epochs": max_epochs, "promote": False}),
        "halving": (SuccessiveHalving, lambda max_epochs, n_trials: {"max_epochs": max_epochs}),
        "hyperband": (Hyperband, lambda max_epochs, n_trials: {"max_epochs": max_epochs}),
        "freeze_thaw": (FreezeThaw, lambda max_epochs, n_trials: {"max_epochs": max_epochs}),
        "median": (Median, lambda max_epochs, n_trials: {"warmup_epochs": max(1, max_epochs // 10)}),
        "pb2": (PB2, lambda max_epochs, n_trials: {"max_epochs": max_epochs}),
        "pbt": (PopulationBasedTraining, lambda max_epochs, n_trials: {"max_epochs": max_epochs}),
        "patience": (Patience, lambda max_epochs, n_trials: {"patience": max(3, max_epochs // 5)}),
        "top_k": (TopK, lambda max_epochs, n_trials: {"k": max(3, n_trials // 50)}),
    }
)
# What the study or the name says, and no option does.
_SAID = {"max_epochs", "n_trials", "promote"}


def _made(name: str, max_epochs: int, n_trials: int, **options: Any) -> Scheduler:
    kind, of = _NAMED[name]
    return kind(**{**of(max_epochs, n_trials), **options})


# Name -> (max_epochs, n_trials, and options by keyword) -> scheduler.
SCHEDULERS: Mapping[str, Callable[..., Scheduler]] = MappingProxyType({n: partial(_made, n) for n in _NAMED})


def rungs_of(scheduler: Scheduler) -> frozenset[int]:
    """The epochs at which a scheduler lets trials pass that it does not pause there; samplers are shown those, too.

    >>> sorted(rungs_of(Asha(30))), sorted(rungs_of(Fifo()))
    ([2, 6], [])
    """
    return frozenset(scheduler.rungs if isinstance(scheduler, Asha) else ())


def options_of(name: str) -> tuple[str, ...]:
    """The options that a named scheduler takes.

    >>> options_of("median"), options_of("asha")
    (('warmup_epochs', 'min_trials'), ('eta', 'min_epochs'))
    """
    return tuple(n for n in inspect.signature(_NAMED[name][0]).parameters if n not in _SAID)


def resolve(scheduler: str | Mapping[str, Any] | Scheduler | None, *, max_epochs: int, n_trials: int) -> Scheduler:
    """The scheduler that the user meant.

    Args:
        scheduler: a name in ``SCHEDULERS``, a dict of a name and options (``{"name": "asha", "eta": 4}``), a scheduler, or None:
            "asha" if a trial may run 4 epochs or more and there is more than one trial, otherwise "none", since there is too
            little to save or nobody to compare with.
        max_epochs: where a trial is finished, 1 or more.
        n_trials: how many trials are planned, 1 or more.

    Returns:
        A fresh scheduler, or the given one.

    Raises:
        UsageError: the name or an option is unknown, the object is no scheduler, or a number is out of its range.

    Example:
        >>> resolve(None, max_epochs=30, n_trials=100)
        Asha(30, eta=3, rungs=(2, 6), promote=True)
    """
    check_whole("max_epochs", max_epochs, at_least=1)
    check_whole("n_trials", n_trials, at_least=1)
    if scheduler is None:
        scheduler = "asha" if max_epochs >= 4 and n_trials > 1 else "none"
    if isinstance(scheduler, str | Mapping):
        return _named({"name": scheduler} if isinstance(scheduler, str) else scheduler, max_epochs, n_trials)
    if isinstance(scheduler, type):
        raise UsageError(
            f"scheduler={scheduler.__name__} is a class: pass an object, {scheduler.__name__}(...), or a name: "
            f"{', '.join(sorted(SCHEDULERS))}."
        )
    if not isinstance(scheduler, Scheduler):
        raise UsageError(
            f"scheduler must be one of {', '.join(sorted(SCHEDULERS))}, or an object with a name and observe(rows); "
            f"got {scheduler!r}."
        )
    made_for = getattr(scheduler, "max_epochs", max_epochs)
    if type(scheduler).__module__.startswith("shoal.") and made_for != max_epochs:
        raise UsageError(
            f"the scheduler {scheduler!r} was made for trials of {made_for} epochs, and those of this study have "
            f"max_epochs={max_epochs}: give both the same number."
        )
    return scheduler


def _named(given: Mapping[str, Any], max_epochs: int, n_trials: int) -> Scheduler:
    options = dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f'a scheduler given as a dict needs a "name", such as "asha"; got {dict(given)!r}.')
    if name not in SCHEDULERS:
        raise UsageError(f"Unknown scheduler {name!r}.{did_you_mean(name, SCHEDULERS)}")
    known = options_of(name)
    for option in options:
        if option not in known:
            hint = did_you_mean(str(option), known) if known else " It takes none."
            raise UsageError(f"scheduler {name!r} has no option {option!r}.{hint}")
    if name in ("pbt", "pb2") and n_trials < 2:
        raise UsageError(
            f"scheduler {name!r} needs a population: give n_trials of 2 or more, better 16; got {n_trials}."
        )
    return SCHEDULERS[name](max_epochs, n_trials, **options)
