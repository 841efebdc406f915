"""From what the user wrote as ``metric``, ``direction`` and ``constraints`` to what trials are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from shoal.errors import UsageError
from shoal.metrics import Metric, resolve
from shoal.objectives import PROPERTIES, Constraint, Objectives, constraints_of
from shoal.records import Direction, Json
from shoal.stopping import Limits

OneMetric: TypeAlias = str | Callable[..., float]
MetricArgument: TypeAlias = OneMetric | Sequence[OneMetric] | None
DirectionArgument: TypeAlias = Direction | Sequence[Direction] | None


@dataclass(frozen=True, slots=True)
class Judged:
    """What trials are judged by.

    Attributes:
        lead: The metric that epochs are judged by; None is the loss.
        others: Further metrics that are needed.
        objectives: All that a trial is judged by.
        as_json: What ``tune(metric=...)`` can be called with again, or None if one of them is a callable.
    """

    lead: Metric | None
    others: tuple[Metric, ...]
    objectives: Objectives
    as_json: Json


def judged_by(
    metric: MetricArgument, direction: DirectionArgument, constraints: Sequence[str], *, targets: Tensor | None
) -> Judged:
    """What trials are judged by.

    Args:
        metric: A metric, or two or more of them; after the first they may be properties of the model.
        direction: One per metric; follows from a name.
        constraints: Such as "latency_ms <= 2".
        targets: As for ``shoal.metrics.resolve``.

    Raises:
        UsageError: A metric, a direction or a constraint makes no sense.
    """
    metrics: list[Any] = list(metric) if isinstance(metric, list | tuple) else [metric]
    several = len(metrics) > 1
    if not metrics:
        raise UsageError(
            "metric is an empty list; name what trials are judged by, such as metric=['accuracy', 'n_parameters']."
        )
    directions = _directions(metrics, direction)
    if isinstance(metrics[0], str) and metrics[0] in PROPERTIES:
        name = metrics[0]
        raise UsageError(
            f"metric={name!r} does not change while a model trains, so it cannot come first. Name what is learnt first, as in "
            f"metric=['accuracy', {name!r}], or set a bound: constraints=['{name} <= ...']."
        )
    found: list[Metric | None] = []
    names: list[str] = []
    ways: list[Direction] = []
    for one, way in zip(metrics, directions, strict=True):
        if isinstance(one, str) and one in PROPERTIES:
            names.append(one)
            ways.append(way or "minimize")
            continue
        if one is None and several:
            raise UsageError("metric holds None among several; name each, such as ['accuracy', 'n_parameters'].")
        chosen = resolve(one, targets=targets, direction=way)
        found.append(chosen)
        names.append("loss" if chosen is None else chosen.name)
        ways.append((way or "minimize") if chosen is None else chosen.direction)
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"metric has {name!r} twice. Name each objective once (a callable by its __name__).")
    lead, *others = found
    bounds = constraints_of(constraints)
    others += _bounded(bounds, names, targets)
    as_json: Json = list[Json](names) if several else names[0]
    return Judged(
        lead,
        tuple(m for m in others if m is not None),
        Objectives(tuple(names), tuple(ways), bounds),
        None if any(callable(m) for m in metrics) else as_json,
    )


def _directions(metrics: Sequence[Any], direction: DirectionArgument) -> list[Direction | None]:
    """One direction per metric, None where it follows from the name.

    Raises:
        UsageError: There are more or fewer directions than metrics, or one is none.
    """
    several = len(metrics) > 1
    given: list[Any] = list(direction) if isinstance(direction, list | tuple) else [direction] * len(metrics)
    if several and isinstance(direction, str):
        raise UsageError(
            f"direction={direction!r} is one, and metric names {len(metrics)} objectives: give a direction for each, as in "
            "direction=['maximize', 'minimize'], or leave it out where all have names."
        )
    if len(given) != len(metrics):
        raise UsageError(
            f"metric names {len(metrics)} objective(s), and direction has {len(given)} entries: give one for each."
        )
    for one in given:
        if one not in (None, "minimize", "maximize"):
            raise UsageError(f"direction must be 'minimize' or 'maximize', not {one!r}.")
    return given


def _bounded(constraints: Sequence[Constraint], names: Sequence[str], targets: Tensor | None) -> list[Metric | None]:
    """The metrics that constraints need and that are no objectives."""
    needed = dict.fromkeys(c.name for c in constraints if c.name not in names and c.name not in PROPERTIES)
    out: list[Metric | None] = []
    for name in needed:
        try:
            out.append(resolve(name, targets=targets))
        except UsageError as error:
            raise UsageError(f"constraints: {error} Properties of the model: {', '.join(PROPERTIES)}.") from error
    return out


def check_together(objectives: Objectives, limits: Limits, *, reproducible: bool) -> None:
    """Refuse options that do not go with what a study wants.

    Raises:
        UsageError: A target is not one per objective, or latency is wanted of a study that must not depend on measured time.
    """
    targets, n = limits.targets, len(objectives.names)
    if targets is not None and len(targets) != n:
        raise UsageError(
            f"target_value has {len(targets)} value(s), and the study has {n} objective(s) ({', '.join(objectives.names)}): give "
            f"{'one number' if n == 1 else 'a list with one for each; a trial must reach all of them'}."
        )
    if reproducible and "latency_ms" in objectives.properties:
        raise UsageError(
            "latency_ms is measured time, which reproducible=True rules out: leave one of the two out, or use n_parameters."
        )
