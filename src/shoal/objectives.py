"""What trials are judged by where one metric is not all: several objectives, and constraints. Plain data.

Glossary: the *lead* is the first objective: it changes while a trial trains, and schedules, schedulers and ``value="best"`` look at
it. A *property* is what a model has, whatever it learnt: its number of parameters, its latency. It is measured once, at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from shoal.errors import UsageError
from shoal.pareto import Point
from shoal.records import Direction, Outcome, TrialRecord, TrialResult, TrialState, signed

# Name -> what it is, in words. All are minimised unless the user says otherwise.
PROPERTIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "n_parameters": "elements of all parameters of the model",
        "latency_ms": "milliseconds that the trained model takes for one sample: the median of many calls on one thread",
    }
)

# What Optuna puts before the names of constraints in a trial's system attributes (``Trial.set_constraint``).
OPTUNA_PREFIX: Final = "constraints:"

_BOUND: Final = re.compile(r"\s*(?P<name>[^<>=]+?)\s*(?P<sign><=|>=)\s*(?P<bound>[^<>=]+?)\s*")


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on a metric or a property.

    Args:
        name: Of the metric or property.
        at_most: Whether the bound is the most that it may be, and not the least.
        bound: A finite number.

    Example:
        >>> c = Constraint.of("latency_ms <= 2")
        >>> c.key, c.broken_by(2.5), c.broken_by(1.0)
        ('latency_ms <= 2', 0.5, -1.0)
    """

    name: str
    at_most: bool
    bound: float

    @classmethod
    def of(cls, text: object) -> Constraint:
        """What a text says, such as "accuracy >= 0.9".

        Raises:
            UsageError: It says something else.
        """
        found = _BOUND.fullmatch(text) if isinstance(text, str) else None
        try:
            bound = math.nan if found is None else float(found["bound"].replace("_", ""))
        except ValueError:
            bound = math.nan
        if found is None or not math.isfinite(bound):
            raise UsageError(
                f"a constraint is a text such as 'latency_ms <= 2' or 'accuracy >= 0.9': a name, <= or >=, and a number; "
                f"got {text!r:.80}."
            )
        return cls(found["name"], found["sign"] == "<=", bound)

    @property
    def key(self) -> str:
        """Itself as text, which is its name in Optuna's trials."""
        return f"{self.name} {'<=' if self.at_most else '>='} {self.bound:.15g}"

    def broken_by(self, value: float) -> float:
        """By how much a value breaks it; 0 or less if it does not (Optuna's convention)."""
        return value - self.bound if self.at_most else self.bound - value


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a study wants.

    Args:
        names: Of the objectives, the lead first.
        directions: One per name.
        constraints: That a trial must keep.
    """

    names: tuple[str, ...]
    directions: tuple[Direction, ...]
    constraints: tuple[Constraint, ...] = ()

    @property
    def several(self) -> bool:
        """Whether there is more than one objective."""
        return len(self.names) > 1

    @property
    def plain(self) -> bool:
        """Whether one metric is all that there is."""
        return not self.several and not self.constraints

    @property
    def properties(self) -> tuple[str, ...]:
        """Properties of the model that have to be measured."""
        wanted = [*self.names, *(c.name for c in self.constraints)]
        return tuple(name for name in PROPERTIES if name in wanted)

    @property
    def wanted(self) -> str:
        """In words: "accuracy (maximize) and n_parameters (minimize)"."""
        return " and ".join(f"{n} ({d})" for n, d in zip(self.names, self.directions, strict=True))

    def missing(self, metrics: Mapping[str, float]) -> str:
        """The first metric that is needed and was not measured, or ""."""
        needed = [*self.names[1:], *(c.name for c in self.constraints)]
        return next((n for n in needed if n not in metrics and n not in PROPERTIES and n != self.names[0]), "")

    def judge(self, value: float, metrics: Mapping[str, float], measured: Mapping[str, float]) -> Outcome:
        """What came of a trial that finished.

        Args:
            value: Of the lead.
            metrics: Of the epoch that it is judged by.
            measured: Its model's properties.
        """
        known = {**metrics, **measured, self.names[0]: value}
        values = tuple(known[name] for name in self.names) if self.several else ()
        return replace(self.judge_stopped(value, metrics, measured), values=values)

    def judge_stopped(self, value: float, metrics: Mapping[str, float], measured: Mapping[str, float]) -> Outcome:
        """What is known of a trial that was stopped: constraints on what was measured by then, and no values."""
        known = {**metrics, **measured, self.names[0]: value}
        broken = {c.key: c.broken_by(known[c.name]) for c in self.constraints if c.name in known}
        return Outcome((), {key: by for key, by in broken.items() if by == by}, dict(measured))

    def odd(self, outcome: Outcome) -> str:
        """The first name among the objectives, or else the constraints, that came out as NaN; "" for none."""
        broken = {c.name: c.key not in outcome.constraints for c in self.constraints}
        values = dict(zip(self.names, outcome.values, strict=False))
        return next((n for n, v in values.items() if v != v), "") or next((n for n, nan in broken.items() if nan), "")

    def point(self, result: TrialResult) -> Point | None:
        """A finished trial's values, lower is better; None for one that did not finish or breaks a constraint."""
        if result.value is None or not result.outcome.feasible:
            return None
        return signed(result.outcome.values or (result.value,), self.directions)


def too_large(outcome: Outcome) -> bool:
    """Whether a trial breaks a bound on the number of its parameters, which is known before it has learnt anything."""
    return any(by > 0 for key, by in outcome.constraints.items() if key.startswith("n_parameters "))


def broken_in(ended: Iterable[TrialResult | TrialRecord]) -> int:
    """How many trials break a constraint and would otherwise be candidates: those that finished, and those that are too large."""
    return sum(not t.outcome.feasible for t in ended if t.state is TrialState.FINISHED or too_large(t.outcome))


def constraints_of(texts: object) -> tuple[Constraint, ...]:
    """The constraints that the user meant.

    Raises:
        UsageError: They are no list of texts, or one stands there twice.
    """
    if isinstance(texts, str | Mapping) or not isinstance(texts, Sequence):
        raise UsageError(f"constraints must be a list of texts, such as ['latency_ms <= 2']; got {texts!r:.80}.")
    found = tuple(Constraint.of(text) for text in texts)
    for i, constraint in enumerate(found):
        if any((c.name, c.at_most) == (constraint.name, constraint.at_most) for c in found[:i]):
            raise UsageError(f"constraints bounds {constraint.name!r} twice on the same side; keep one of them.")
    return found
