"""The batch size, moved by the gradient noise scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from shoal.errors import RecipeError
from shoal.extend._base import Extension

if TYPE_CHECKING:
    from shoal.recipe import Recipe

# By what power of the batch size the learning rate follows it.
FOLLOWS = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSize(Extension):
    r"""Moves the batch size towards the gradient noise scale, once per epoch.

    With the gradient :math:`G` of all training samples and the covariance :math:`\Sigma` of one sample's, the noise scale is
    :math:`B_{simple} = tr(\Sigma) / |G|^2`: much smaller batches are noise, much larger ones say little more. Both are measured at
    updates whose batch is taken in several micro-batches, from the squared norms of their gradients and of the whole batch's,
    without bias, and smoothed. Before each epoch::

        B = B * clip(B_simple / B, 1/4, 4) ** step

    with B kept as a real number, within the bounds and the size of the training split, and then rounded: to whole micro-batches
    (of at most 32 samples), or below one of them to whole samples. A batch that fits into one micro-batch is taken in two halves
    at every so many updates, to be measured.

    Schedules keep their own clock. One that steps per epoch does so; one that steps per update steps once for every
    ``Recipe(batch_size=...)`` samples, however many updates there are: ``shoal.steps_per_epoch`` stays true.

    Args:
        step: How far to go towards the noise scale in an epoch, in log space: 1 is all the way, 0 rests.
        bounds: Least and largest batch size, from 2.
        learning_rate: How it follows, on top of what the schedule says: by B / B_0 ("linear"), its root ("sqrt"), or "none".
        smoothing: What remains of the means of :math:`tr(\Sigma)` and :math:`|G|^2` after one more measurement, below 1.
        every: Which updates are measured where a batch fits into one micro-batch: the first of an epoch, and every so many.
        warmup: Updates before the first move.
        on: Whether it does anything.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> BatchSize(bounds=(32, 1024)).learning_rate
        'sqrt'

    References:
        McCandlish et al. 2018, An empirical model of large-batch training, equation 2.9 and appendix A.1, for micro-batches of any
        sizes; Goyal et al. 2017 (linear); Krizhevsky 2014 (square root). Samples are drawn without
        replacement, which makes both estimates hold for where they come from rather than for these samples alone.
    """

    HYPERPARAMETER: ClassVar[str] = "batch_size"

    step: float = 0.5
    bounds: tuple[float, float] = (16, 4096)
    learning_rate: Literal["linear", "sqrt", "none"] = "sqrt"
    smoothing: float = 0.95
    every: int = 32

    def __post_init__(self) -> None:
        Extension.__post_init__(self)
        if self.step > 1:
            raise RecipeError(
                f"{self.said('step')} must be at most 1, all the way to the noise scale, not {self.step!r}."
            )
        if self.bounds[0] < 2:
            raise RecipeError(
                f"{self.said('bounds')} must begin at 2 or above, not {self.bounds[0]:g}: noise is measured between halves."
            )
        if self.learning_rate not in FOLLOWS:
            raise RecipeError(
                f"{self.said('learning_rate')} must be 'linear', 'sqrt' or 'none', not {self.learning_rate!r}."
            )
        object.__setattr__(self, "smoothing", self.number("smoothing", self.smoothing, below=1.0))
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise RecipeError(
                f"{self.said('every')} must be a whole number of updates of at least 1, not {self.every!r}."
            )

    def moves_after(self, per_epoch: int) -> int:
        """Between epochs."""
        return -(-max(1, self.warmup) // per_epoch) * per_epoch

    def check(self, recipe: Recipe) -> None:
        """The batch size must lie within the bounds."""
        self.holds(recipe.batch_size, "the batch size")
