"""What a metric is, and how outputs reach it: chunk by chunk, so that only metrics which need all of them keep any.

A metric is a *statistic*, fed with chunks of outputs, and a function from the finished statistic to one number per lane.
Counts of classes and sums of errors take memory that does not grow with the data; metrics that share a statistic
(accuracy, F1) share its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from shoal import memory
from shoal.errors import UsageError

Direction: TypeAlias = Literal["minimize", "maximize"]
# What a number of the model's output means where that cannot be seen: a logit, or (after a sigmoid) a probability.
Scale: TypeAlias = Literal["logits", "probabilities"]

_GROUP_BYTES = 2**28  # outputs of this size are ranked at once


@dataclass(frozen=True, slots=True)
class Source:
    """What a statistic knows before the first chunk: whose it is, and the targets of the whole split."""

    name: str
    targets: Tensor  # (n, ...)
    scale: Scale


class Statistic(Protocol):
    """Takes chunks of outputs in the order of the samples."""

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """outputs (lanes, chunk, ...), targets (chunk, ...).

        Raises:
            UsageError: If the outputs do not suit the targets.
        """
        ...


@dataclass(frozen=True, slots=True)
class Metric:
    """A number per lane.

    ``statistic`` makes what is fed with chunks of outputs; ``finish`` turns it into (lanes,) float64. ``asked`` is False for what
    Shoal measures of its own accord: such a metric is left out where outputs do not suit it, and is no error.
    """

    name: str
    direction: Direction
    statistic: Callable[[Source], Statistic]
    finish: Callable[[Any], Tensor]
    asked: bool = True

    def compute(self, outputs: Tensor, targets: Tensor, scale: Scale = "logits") -> Tensor:
        """All at once: outputs (lanes, n, ...), targets (n, ...) -> (lanes,) float64.

        Raises:
            UsageError: If the outputs do not suit the targets or the metric.
        """
        meter = Meter((replace(self, asked=True),), targets, scale)
        meter.add(outputs)
        return meter.results()[self.name].to(outputs.device)


class Meter:
    """Measures one pass over a split.

    Args:
        metrics: What to measure.
        targets: Of the whole split, (n, ...).
        scale: What the outputs are.
    """

    def __init__(self, metrics: Sequence[Metric], targets: Tensor, scale: Scale = "logits") -> None:
        self._names = [metric.name for metric in metrics]
        self._targets, self._at = targets, 0
        by_kind: dict[Callable[[Source], Statistic], list[Metric]] = {}
        for metric in metrics:
            by_kind.setdefault(metric.statistic, []).append(metric)
        # An asked metric first, so that an error names what the user asked for.
        self._parts = [(sorted(group, key=lambda m: not m.asked), kind) for kind, group in by_kind.items()]
        self._statistics = [kind(Source(group[0].name, targets, scale)) for group, kind in self._parts]
        self._live = [True] * len(self._parts)

    def add(self, outputs: Tensor, size: int | None = None) -> None:
        """The outputs of the next samples, (lanes, chunk, ...); ``size`` is how many samples went in.

        Raises:
            UsageError: If they do not suit a metric that was asked for.
        """
        size = outputs.shape[1] if size is None and outputs.ndim > 1 else size
        targets = self._targets[self._at : self._at + (size or 0)]
        self._at += size or 0
        for k, (group, _) in enumerate(self._parts):
            if not self._live[k]:
                continue
            try:
                if outputs.ndim < 2 or outputs.shape[1] != size:
                    raise UsageError(
                        f"metric {group[0].name!r} needs one row of outputs per sample: {size} samples gave outputs of "
                        f"shape {tuple(outputs.shape[1:])}. Let predict(model, batch) return (n, ...)."
                    )
                self._statistics[k].add(outputs, targets)
            except UsageError:
                if group[0].asked:
                    raise
                self._live[k] = False

    def results(self) -> dict[str, Tensor]:
        """Metric name -> (lanes,) float64, on the host; nothing if there were no outputs.

        Raises:
            UsageError: If the outputs or targets as a whole do not suit a metric that was asked for.
        """
        out: dict[str, Tensor] = {}
        if self._at == 0:
            return out
        for (group, _), statistic, live in zip(self._parts, self._statistics, self._live, strict=True):
            for metric in group if live else ():
                try:
                    out[metric.name] = metric.finish(statistic).double().cpu()
                except UsageError:
                    if metric.asked:
                        raise
        return {name: out[name] for name in self._names if name in out}


class Whole:
    """All outputs, for metrics that no running sum can give. Beyond a limit of memory they lie in a file."""

    def __init__(self, source: Source) -> None:
        self.name, self.targets, self.scale = source.name, source.targets, source.scale
        self._outputs: Tensor | None = None
        self._at = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        if self._at == 0 and outputs.shape[1] == len(self.targets):
            self._outputs = outputs
        if self._outputs is None:
            shape = (len(outputs), len(self.targets), *outputs.shape[2:])
            self._outputs = memory.empty(shape, outputs.dtype, outputs.device)
        if self._outputs is not outputs:
            self._outputs[:, self._at : self._at + len(targets)] = outputs
        self._at += len(targets)

    def lanes(self) -> Iterator[Tensor]:
        """The outputs, a few lanes at a time: (group, n, ...)."""
        assert self._outputs is not None  # a split has a sample at least
        per_lane = max(1, self._outputs[0].numel() * 8)  # what ranks them works in double precision
        yield from torch.split(self._outputs, max(1, _GROUP_BYTES // per_lane))
