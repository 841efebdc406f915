"""What a hyperparameter was at each update or epoch of a trial, and how to train with it again in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from shoal.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from shoal.records import EpochRow


@final
@dataclass(frozen=True, slots=True)
class Trajectory:
    """One hyperparameter over one trial.

    Attributes:
        name: "lr", or "lr/0", "lr/1", ... with several parameter groups; "batch_size"; "weight_decay"; ...
        values: In the order in which they were used: one per update, or one per epoch.
        epochs: The epoch that each value belongs to, counted from 1.
    """

    name: str
    values: tuple[float, ...]
    epochs: tuple[int, ...]

    def table(self) -> list[tuple[int, int, float]]:
        """Rows of (position from 0, epoch from 1, value)."""
        return [(i, e, v) for i, (e, v) in enumerate(zip(self.epochs, self.values, strict=True))]

    def to_csv(self, path: str | Path) -> Path:
        """Write the table, with a line of names; returns the path. Numbers read back to the same bits."""
        lines = [f"step,epoch,{self.name}", *(f"{i},{e},{v!r}" for i, e, v in self.table())]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Path(path)


def trajectories_of(rows: Iterable[EpochRow]) -> dict[str, Trajectory]:
    """The trajectories of one trial out of its rows, by name."""
    values: dict[str, list[float]] = {}
    epochs: dict[str, list[int]] = {}
    for row in rows:
        for name, part in row.trajectories.items():
            values.setdefault(name, []).extend(part)
            epochs.setdefault(name, []).extend([row.epoch] * len(part))
    return {name: Trajectory(name, tuple(v), tuple(epochs[name])) for name, v in values.items()}


@final
class Replay(LRScheduler):
    """A torch scheduler that repeats a learned learning rate: call ``step()`` after each update.

    After its last value it stays there.

    Args:
        optimizer: The optimizer to drive, with as many parameter groups as the trial had.
        trajectories: What ``Study.trajectories(number)`` gives; only learning rates are looked at.

    Raises:
        UsageError: If there is no learning rate for some parameter group.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = Replay(optimizer, {"lr": Trajectory("lr", (0.1, 0.2), (1, 1))})
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """

    def __init__(self, optimizer: Optimizer, trajectories: Mapping[str, Trajectory]) -> None:
        n = len(optimizer.param_groups)
        names = ["lr"] if n == 1 else [f"lr/{k}" for k in range(n)]
        missing = [name for name in names if name not in trajectories or not trajectories[name].values]
        if missing:
            hint = did_you_mean(missing[0], trajectories) if trajectories else " There is none at all."
            raise UsageError(f"Replay needs the trajectory {missing[0]!r}, one per parameter group.{hint}")
        self._tables = [trajectories[name].values for name in names]
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group for the update to come."""
        return [table[min(self.last_epoch, len(table) - 1)] for table in self._tables]
