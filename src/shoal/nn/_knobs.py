"""One named part of a search space: what it may be given as, and what a trial is given for it.

A *knob* is such a part: a list is a choice among its items, a `Range` is a range, a pair of numbers for a knob that is a range by
default is other bounds of it, and anything else is a fixed value, about which no sampler is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shoal.errors import UsageError


@dataclass(frozen=True, slots=True)
class Range:
    """A range to search.

    Args:
        low, high: Bounds, both included. Whole numbers give whole numbers.
        log: Whether to search on a logarithmic scale.
        step: Distance between neighbours, or None.

    Raises:
        UsageError: If `low` is above `high`, or `log` meets a bound that is not above 0, or a `step`.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise UsageError(f"a range must go up; got {self.low!r} to {self.high!r}.")
        if self.log and not self.low > 0:
            raise UsageError(f"a range on a logarithmic scale must start above 0; got {self.low!r} to {self.high!r}.")
        if self.log and self.step is not None:
            raise UsageError("a range is either on a logarithmic scale or has a step, not both.")


def value_of(trial: Any, name: str, knob: Any, default: Any) -> Any:
    """The value of one knob: suggested if it is a choice or a range, itself if it is fixed.

    Args:
        trial: What ``define`` was given.
        name: What the trial calls it.
        knob: What was given for it.
        default: What it is where nothing is given.

    Raises:
        UsageError: If the knob leaves nothing to choose from.
    """
    if isinstance(knob, tuple) and isinstance(default, Range):
        if len(knob) != 2 or not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in knob):
            raise UsageError(f"{name} as a pair gives the bounds of its range, (low, high); got {knob!r}.")
        knob = replace(default, low=knob[0], high=knob[1])
    if isinstance(knob, list):
        return _among(trial, name, knob)
    if not isinstance(knob, Range):
        return knob
    if isinstance(knob.low, int) and isinstance(knob.high, int) and isinstance(knob.step, int | None):
        return trial.suggest_int(name, knob.low, knob.high, step=knob.step or 1, log=knob.log)
    return trial.suggest_float(name, knob.low, knob.high, step=knob.step, log=knob.log)


def _among(trial: Any, name: str, choices: list[Any]) -> Any:
    if not choices:
        raise UsageError(f"{name}=[] leaves nothing to choose from.")
    if len(choices) == 1:
        return choices[0]
    if all(isinstance(choice, str | int | float | bool | None) for choice in choices):
        return trial.suggest_categorical(name, choices)
    # A study file holds plain values only, so a choice among shapes is searched by how it reads.
    by_text = {str(choice): choice for choice in choices}
    return by_text[trial.suggest_categorical(name, list(by_text))]
