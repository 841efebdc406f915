"""Hyper-validation gradients through the last few updates, per lane and plain: ``method="unrolled"`` of ``shoal.extend``.

With ``C`` the hyper-validation loss, ``s = (p, m, v)`` a trial's parameters and the moments of its optimizer, and ``x'`` the
derivative of ``C`` in ``x``, the way back begins with ``p'`` the hyper-validation gradient and ``m' = v' = 0`` after the last
update. Through an update ``s <- F(s, G(p))`` it goes by the chain rule: first through the optimizer, which gives the derivative
``w`` in the gradient ``G``, then through that, which adds ``H w`` to ``p'``, with ``H`` the Hessian of the training batch. Each
number's derivative is the sum over the updates of ``w . dG/dr`` and of what the update itself has of it. What came before the first
of these updates is held for constant. Derivatives of the model along ``w`` are central differences, as for ``regularised``.

References: Shaban et al. 2019, Truncated back-propagation for bilevel optimization; Maclaurin et al. 2015, Gradient-based
hyperparameter optimization through reversible learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shoal.data import Split
from shoal.lanes.hypergradient import PlainRates
from shoal.lanes.regularised import LaneRegularisers, PlainRegularisers
from shoal.lanes.regularised._rule import asked, moving_of
from shoal.lanes.unrolled._lanes import UnrolledLanes
from shoal.lanes.unrolled._plain import UnrolledPlain
from shoal.recipe import Recipe

if TYPE_CHECKING:
    from shoal.lanes.clip import Shaping
    from shoal.lanes.fleet import Fleet

__all__ = ["lane_regularisers", "plain_regularisers"]


def lane_regularisers(
    fleet: Fleet, due: NDArray[np.bool_], goes_on: NDArray[np.bool_], shaping: Shaping | None
) -> LaneRegularisers | None:
    """What moves by a hyper-validation gradient in a fleet's lanes, None where nothing does; as for ``LaneRegularisers.of``."""
    found = [moving_of(t, fleet.work.data) for _, t in fleet.active]
    methods = {m.asked.shared.method for m in found if m is not None}
    return (UnrolledLanes if "unrolled" in methods else LaneRegularisers).of(fleet, due, goes_on, shaping)


def plain_regularisers(recipe: Recipe, held_out: Split, seed: int, rates: PlainRates | None) -> PlainRegularisers:
    """The same for one recipe in the plain loop, which has something that moves."""
    found = asked(recipe)
    unrolled = found is not None and found.shared.method == "unrolled"
    return (UnrolledPlain if unrolled else PlainRegularisers)(recipe, held_out, seed, rates)
