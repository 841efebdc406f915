"""Schedule-free lanes: parameters hold the point of the gradient while an epoch trains, and the average between epochs.

So a lane that is measured, copied out or kept has the average in it, as plain optimizers of ``shoal.optim`` do in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shoal.lanes.lane import LaneTrial
from shoal.lanes.optim import Family
from shoal.lanes.state import LaneState
from shoal.optim import ScheduleFree


def swap(state: LaneState, trials: Sequence[LaneTrial | None], *, averaged: bool) -> None:
    """Go from one to the other, lane by lane; the first row of optimizer state holds the iterates.

    Args:
        state: The fleet's tensors.
        trials: Who is in which lane.
        averaged: Whether parameters shall hold the average.
    """
    layout = state.layout
    for lane, trial in enumerate(trials):
        if trial is None or trial.family is not Family.SCHEDULE_FREE:
            continue
        groups = trial.recipe.optimizer.param_groups
        shares = [ScheduleFree.share(group, averaged=averaged) for group in groups]
        if len(set(shares)) == 1:
            state.params[lane].lerp_(state.first[lane], shares[0])
            continue
        assert trial.group_of is not None
        for k, (o, s) in enumerate(zip(layout.offsets, layout.shapes, strict=True)):
            part = slice(o, o + s.numel())
            state.params[lane, part].lerp_(state.first[lane, part], shares[int(trial.group_of[k])])


def begin(state: LaneState, lane: int) -> None:
    """A fresh lane's iterate is where its parameters start."""
    with torch.no_grad():
        state.first[lane].copy_(state.params[lane])
