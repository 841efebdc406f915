"""The learning rate, moved by its hypergradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from torch import optim

from shoal.errors import RecipeError
from shoal.extend._base import Extension

if TYPE_CHECKING:
    from shoal.recipe import Recipe

# Their steps are proportional to the learning rate, and nothing that they keep depends on it.
PROPORTIONAL: tuple[type[optim.Optimizer], ...] = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.RAdam,
    optim.NAdam,
    optim.Adamax,
    optim.Adagrad,
    optim.Adadelta,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate(Extension):
    """Moves the learning rate of each parameter group along its hypergradient, once per update.

    With parameters ``p_t = p_{t-1} - a_{t-1} d_{t-1}`` and ``g_t`` the gradient of the next batch's loss at ``p_t``, the
    derivative of that loss in the learning rate is ``-g_t . d_{t-1}``, and::

        additive:        a_t = a_{t-1} + step * (g_t . d_{t-1})
        multiplicative:  a_t = a_{t-1} * (1 + step * (g_t . d_{t-1}) / (|g_t| |d_{t-1}|))

    where dot products run over the parameters of one group. ``d`` is whatever the optimizer makes of the gradient: momentum,
    Adam's quotient, decoupled decay. ``g`` is the gradient of the loss that is reported, before L1, clipping and weight decay.
    With a schedule, the base value is what the schedule says, and the offset (a difference, or for the multiplicative rule a
    factor) is laid upon it.

    Args:
        step: The step size above, without a unit for the multiplicative rule, where it must be less than 1.
        rule: "multiplicative" hardly depends on the scale of the gradient, "additive" does.
        bounds: Least and largest learning rate.
        warmup: Updates before the first move.
        on: Whether it does anything.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> LearningRate(step=0.05).rule
        'multiplicative'

    References:
        Baydin et al. 2018, Online learning rate adaptation with hypergradient descent, equations 6 and 8. Differs in that
        ``d`` holds the decay of AdamW, and in that the schedule's learning rate may move below the offset.
    """

    HYPERPARAMETER: ClassVar[str] = "lr"

    step: float = 0.02
    bounds: tuple[float, float] = (0.0, math.inf)
    rule: Literal["additive", "multiplicative"] = "multiplicative"

    def __post_init__(self) -> None:
        Extension.__post_init__(self)
        if self.rule not in ("additive", "multiplicative"):
            raise RecipeError(f"{self.said('rule')} must be 'additive' or 'multiplicative', not {self.rule!r}.")
        if self.rule == "multiplicative":
            self.number("step", self.step, below=1.0)

    def check(self, recipe: Recipe) -> None:
        """The optimizer's steps must be proportional to its learning rate, which must lie within the bounds."""
        optimizer = recipe.optimizer
        if type(optimizer) not in PROPORTIONAL:
            known = ", ".join(cls.__name__ for cls in PROPORTIONAL)
            raise RecipeError(
                f"shoal.extend.LearningRate needs an optimizer whose step is proportional to its learning rate ({known}), not "
                f"{type(optimizer).__name__}; leave the extension out, or take another optimizer."
            )
        for k, group in enumerate(optimizer.param_groups):
            where = f" of parameter group {k}" if len(optimizer.param_groups) > 1 else ""
            if recipe.schedule is None:
                self.holds(float(group["lr"]), f"the learning rate{where}")
                continue
            # A schedule may begin and end at 0; what it starts from, or rises to, must be within reach.
            starts = float(group.get("initial_lr", group["lr"]))
            low, high = self.bounds
            if not any(low <= rate <= high for rate in (starts, float(group.get("max_lr", starts)))):
                raise RecipeError(
                    f"{self.said('bounds')} = ({low:g}, {high:g}) exclude the learning rate{where}, {starts:g}, that the schedule "
                    "starts from; widen them, or start inside."
                )
