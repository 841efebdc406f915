"""What every finder does first: arguments checked, data read, the metric chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from shoal.data import Datasets, load
from shoal.devices import device_named
from shoal.errors import UsageError
from shoal.metrics import Metric, resolve
from shoal.preparing import PrepareArgument, Prepared
from shoal.progress import ProgressMode
from shoal.records import Direction, ParamValue


@dataclass(frozen=True, slots=True)
class Setting:
    """What the arguments that all finders share come to."""

    data: Datasets
    metric: Metric | None
    device: torch.device
    seed: int
    progress: ProgressMode
    given: Mapping[str, ParamValue] = field(default_factory=dict)


def setting(
    train: Any,
    valid: Any,
    params: Mapping[str, ParamValue] | None,
    metric: str | Callable[..., float] | None,
    direction: Direction | None,
    seed: int,
    device: str,
    progress: ProgressMode,
    prepare: PrepareArgument = None,
) -> Setting:
    """Check and read them.

    Raises:
        UsageError: If one makes no sense.
    """
    whole(seed=(seed, 0))
    if params is not None and not isinstance(params, Mapping):
        raise UsageError(f"params must be a dict of names and values, not {params!r}.")
    where, raw = device_named(device), load(train, valid, seed=seed, raw=prepare is not None)
    data = Prepared.of(prepare, raw, None, seed).data
    targets = data.train.target
    return Setting(
        data, resolve(metric, targets=targets, direction=direction), where, seed, progress, dict(params or {})
    )


def whole(**numbers: tuple[Any, int]) -> None:
    """See that arguments are whole numbers of at least something: name=(value, least).

    Raises:
        UsageError: If one is not.
    """
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}.")
