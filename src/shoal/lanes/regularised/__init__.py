"""Regularisation that moves by the gradient of a hyper-validation loss: what ``shoal.extend.ByValidation`` asks for, per lane and
plain."""

from __future__ import annotations

from shoal.lanes.regularised._lanes import LaneRegularisers
from shoal.lanes.regularised._plain import PlainRegularisers
from shoal.lanes.regularised._rule import held_out_of

__all__ = ["LaneRegularisers", "PlainRegularisers", "held_out_of"]
