"""Optimizers without a learning rate to tune, which torch has not: they train in lanes, each with its own numbers."""

from __future__ import annotations

from shoal.optim._distance import DAdaptAdam, Prodigy
from shoal.optim._schedule_free import AdamWScheduleFree, ScheduleFree, SGDScheduleFree

__all__ = ["AdamWScheduleFree", "DAdaptAdam", "Prodigy", "SGDScheduleFree", "ScheduleFree"]
