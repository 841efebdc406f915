"""Regularisation that follows the gradient of a validation loss: weight decay, L1, label smoothing, dropout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from torch import nn, optim

from shoal.errors import RecipeError, did_you_mean
from shoal.extend._activation import Activation
from shoal.extend._base import Extension
from shoal.extend._batch_size import BatchSize
from shoal.extend._weighted import WeightedSum

if TYPE_CHECKING:
    from shoal.recipe import Recipe

# Their one-step derivative is known in closed form.
STEPS: tuple[type[optim.Optimizer], ...] = (optim.SGD, optim.Adam, optim.AdamW)
# What `Dropout` moves; others have rates that mean something else, or that no module of their own holds.
DROPOUTS: tuple[type[nn.Module], ...] = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
METHODS = ("t1t2", "unrolled", "implicit")
_SHARED = ("method", "every", "unroll", "terms", "scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class ByValidation(Extension):
    """A regulariser that moves against the gradient of the loss on a *hyper-validation* split, every few updates.

    That split is taken from the training data by ``tune(hyper_valid=...)``; it is never the one that is reported. With ``C`` the
    plain loss on a batch of it (in evaluation mode, without label smoothing, of a `WeightedSum` the task alone), ``G`` the
    regularised training gradient of the latest batch and ``r`` the hyperparameter::

        t1t2:      dC/dr = dC/dp(p') . du/dG . dG/dr                          with p' = p + u(G) the update just made
        unrolled:  dC/dr = sum_{k <= unroll} dC/dG_k . dG_k/dr                with G_k the gradient of the k-th last update
        implicit:  dC/dr = -scale * sum_{k <= terms} (1 - scale H)^k dC/dp . dG/dr     with H the training loss's Hessian at p'

    where dC/dG_k is taken back through the updates since, the optimizer's moments and the Hessians on the way.

    The derivative goes through Adam's moving averages, which gives the next move of ``r`` a size near ``step``.

    Args:
        step: About how far one move goes: in the logarithm of weight decay, L1 and weights of losses, in units of a
            rate for the others.
        bounds: Least and largest value; they must hold the base value.
        warmup: Updates of a trial before the first move.
        on: Whether it does anything.
        method: "t1t2" looks at one update; "unrolled" at the last few; "implicit" at the end of training at this value, by a
            Neumann series.
        every: Updates from one move to the next.
        unroll: How many updates "unrolled" goes back through, from 1 to ``every``; never past the start of an epoch.
        terms: Of the Neumann series, from 1; "implicit" only.
        scale: Of the Neumann series; it converges if it is less than 2 over the largest eigenvalue of H. "implicit" only.
        slopes: Whether the derivative is recorded: the trajectory "slope/NAME", a mean over an epoch's moves, in the hyperparameter
            itself. With ``step=0`` nothing moves, and the derivative is all that comes of it.

    References:
        Luketina et al. 2016, Scalable gradient-based tuning of continuous regularization hyperparameters, equation 3.
        Shaban et al. 2019, Truncated back-propagation for bilevel optimization, for "unrolled".
        Lorraine et al. 2020, Optimizing millions of hyperparameters by implicit differentiation, algorithms 1 to 3.
        Differs in that ``t1t2`` and ``unrolled`` differentiate the update of SGD with momentum and of Adam, not that of plain SGD,
        and in that derivatives along a direction are central differences (as in Liu et al. 2019, DARTS, equation 8).
    """

    # Whether the offset is the logarithm of a factor rather than a difference.
    LOGARITHMIC: ClassVar[bool] = False

    method: Literal["t1t2", "unrolled", "implicit"] = "t1t2"
    every: int = 10
    unroll: int = 5
    terms: int = 10
    scale: float = 0.1
    slopes: bool = False

    def __post_init__(self) -> None:
        Extension.__post_init__(self)
        if self.method not in METHODS:
            raise RecipeError(
                f"{self.said('method')} must be 't1t2', 'unrolled' or 'implicit', not {self.method!r}."
                f"{did_you_mean(str(self.method), METHODS)}"
            )
        for name in ("every", "unroll", "terms"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise RecipeError(f"{self.said(name)} must be a whole number of at least 1, not {number!r}.")
        if self.method == "unrolled" and self.unroll > self.every:
            raise RecipeError(
                f"{self.said('unroll')} must be at most every={self.every}, the updates from one move to the next, not "
                f"{self.unroll!r}."
            )
        if not isinstance(self.slopes, bool):
            raise RecipeError(f"{self.said('slopes')} must be True or False, not {self.slopes!r}.")
        object.__setattr__(self, "scale", self.number("scale", self.scale))
        if math.isinf(self.bounds[1]):
            raise RecipeError(f"{self.said('bounds')} must be finite, not {self.bounds!r}.")
        if self.scale == 0:
            raise RecipeError(f"{self.said('scale')} must be more than 0.")
        if self.LOGARITHMIC and self.bounds[0] == 0:
            raise RecipeError(
                f"{self.said('bounds')} must begin above 0, since the offset is a logarithm; got {self.bounds!r}."
            )

    def moves_after(self, per_epoch: int) -> int:
        """At every so many updates."""
        return (self.warmup // self.every + 1) * self.every

    def check(self, recipe: Recipe) -> None:
        """The recipe must be one whose updates can be differentiated, and must have what is to be moved, within the bounds.

        Raises:
            RecipeError: If not.
        """
        name, optimizer = f"shoal.extend.{type(self).__name__}", recipe.optimizer
        if type(optimizer) not in STEPS:
            known = ", ".join(cls.__name__ for cls in STEPS)
            raise RecipeError(
                f"{name} differentiates the optimizer's update, which it knows of {known}, not of {type(optimizer).__name__}."
            )
        for option in ("amsgrad", "maximize"):
            if any(group.get(option) for group in optimizer.param_groups):
                raise RecipeError(
                    f"{name} does not know the derivative of an update with {option}=True; leave one out."
                )
        if recipe.clip_norm or recipe.clip_value:
            raise RecipeError(f"{name} does not know the derivative of a clipped update; leave clipping or it out.")
        if recipe.max_norm:
            raise RecipeError(f"{name} does not know the derivative of an update with max_norm; leave one of them out.")
        if recipe.l2 and self.method == "implicit":
            raise RecipeError(
                f"{name}(method='implicit') does not see l2; give the optimizer a weight_decay in its place."
            )
        for other in recipe.extensions:
            if isinstance(other, BatchSize | Activation) and other.on and self.on:
                raise RecipeError(f"{name} and {type(other).__name__} have no common form yet; leave one of them out.")
            if isinstance(other, ByValidation) and other.on and self.on:
                for field in _SHARED:
                    if getattr(other, field) != getattr(self, field):
                        raise RecipeError(
                            f"{name} and {type(other).__name__} differ in {field} ({getattr(self, field)!r} and "
                            f"{getattr(other, field)!r}); extensions of one recipe share a validation gradient: give both the same."
                        )
        for what, value in self.base(recipe).items():
            self.holds(value, what)

    def base(self, recipe: Recipe) -> dict[str, float]:
        """What is moved and its base values, by words for it.

        Raises:
            RecipeError: If the recipe has nothing of the kind.
        """
        raise NotImplementedError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDecay(ByValidation):
    """L2: moves the optimizer's ``weight_decay``, in the logarithm, by the validation gradient.

    One factor for all parameter groups whose ``weight_decay`` is not 0, which must be equal. With AdamW the decay is decoupled from
    the gradient, and "t1t2" differentiates that; "implicit" takes it for a penalty.

    Args:
        step, bounds, warmup, on, method, every, unroll, terms, scale, slopes: As for `ByValidation`.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> WeightDecay(step=0.1, method="t1t2").every
        10
    """

    HYPERPARAMETER: ClassVar[str] = "weight_decay"
    LOGARITHMIC: ClassVar[bool] = True

    step: float = 0.1
    bounds: tuple[float, float] = (1e-8, 10.0)

    def base(self, recipe: Recipe) -> dict[str, float]:
        """The optimizer's weight decay."""
        found = {float(g["weight_decay"]) for g in recipe.optimizer.param_groups} - {0.0}
        if not found:
            raise RecipeError(
                "shoal.extend.WeightDecay moves the optimizer's weight_decay, which is 0 here; give the optimizer one to start "
                "from, such as weight_decay=1e-4."
            )
        if len(found) > 1:
            raise RecipeError(
                f"shoal.extend.WeightDecay moves one weight_decay, and the parameter groups have {sorted(found)}; give all the "
                "same, or 0 where there is to be none."
            )
        return {"the weight decay": found.pop()}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class L1(ByValidation):
    """Moves ``Recipe(l1=...)``, in the logarithm, by the validation gradient.

    Args:
        step, bounds, warmup, on, method, every, unroll, terms, scale, slopes: As for `ByValidation`.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> L1(bounds=(1e-6, 1e-2)).step
        0.1
    """

    HYPERPARAMETER: ClassVar[str] = "l1"
    LOGARITHMIC: ClassVar[bool] = True

    step: float = 0.1
    bounds: tuple[float, float] = (1e-10, 1.0)

    def base(self, recipe: Recipe) -> dict[str, float]:
        """The recipe's L1."""
        if not recipe.l1:
            raise RecipeError(
                "shoal.extend.L1 moves Recipe(l1=...), which is 0 here; give one to start from, such as l1=1e-5."
            )
        return {"l1": recipe.l1}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSmoothing(ByValidation):
    """Moves ``CrossEntropyLoss(label_smoothing=...)`` by the validation gradient of the loss without smoothing.

    Losses that are reported are those of the recipe's criterion, with the smoothing of the moment.

    Args:
        step, bounds, warmup, on, method, every, unroll, terms, scale, slopes: As for `ByValidation`.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> LabelSmoothing().bounds
        (0.0, 0.5)
    """

    HYPERPARAMETER: ClassVar[str] = "label_smoothing"

    step: float = 0.01
    bounds: tuple[float, float] = (0.0, 0.5)

    def __post_init__(self) -> None:
        ByValidation.__post_init__(self)
        _below_one(self)

    def base(self, recipe: Recipe) -> dict[str, float]:
        """The criterion's label smoothing."""
        loss = recipe.loss
        if type(loss) is not nn.CrossEntropyLoss:
            raise RecipeError(
                f"shoal.extend.LabelSmoothing moves the smoothing of nn.CrossEntropyLoss, and the loss is {type(loss).__name__}."
            )
        return {"the label smoothing": loss.label_smoothing}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Dropout(ByValidation):
    """Moves the rate of every ``nn.Dropout`` (1d, 2d and 3d too) by the validation gradient, each by its own.

    A mask is no differentiable function of its rate. The estimator is that of a continuous relaxation: training uses ordinary
    masks, which keep a unit where its random number ``u`` is above the rate ``r``; the derivative of the training gradient is
    taken with ``sigmoid((logit(u) - logit(r')) / 0.1)`` in the mask's place, of the same ``u`` and ``r' = 0.001 + 0.998 r``, over
    ``1 - r`` as before. So it is exact for the relaxed training step and biased for the one that is made. (The derivative at a
    fixed mask would see ``1 - r`` only, and not that units are dropped.)

    Args:
        step, bounds, warmup, on, method, every, unroll, terms, scale, slopes: As for `ByValidation`.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> Dropout(step=0.02).bounds
        (0.0, 0.9)

    References:
        Gal et al. 2017, Concrete dropout, equation 5.
    """

    HYPERPARAMETER: ClassVar[str] = "dropout"

    step: float = 0.01
    bounds: tuple[float, float] = (0.0, 0.9)

    def __post_init__(self) -> None:
        ByValidation.__post_init__(self)
        _below_one(self)

    def base(self, recipe: Recipe) -> dict[str, float]:
        """The rate of each dropout module."""
        found = {
            f"the dropout rate of {name!r}": float(m.p)
            for name, m in recipe.model.named_modules()
            if type(m) in DROPOUTS
            and isinstance(m.p, int | float)
            and not (m.inplace or m._forward_hooks or m._forward_pre_hooks)
        }
        if not found:
            raise RecipeError(
                "shoal.extend.Dropout moves the rates of nn.Dropout, nn.Dropout1d, nn.Dropout2d and nn.Dropout3d (without "
                "inplace=True and without hooks), and the model has none."
            )
        return found


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights(ByValidation):
    """Moves the weights of a `WeightedSum`, each in its logarithm and by its own, by the validation gradient of the task alone.

    Losses that are reported are those of the recipe's loss, with the weights of the moment: let a study judge trials by a metric.

    Args:
        step, bounds, warmup, on, method, every, unroll, terms, scale, slopes: As for `ByValidation`.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> LossWeights(bounds=(1e-3, 10)).step
        0.1
    """

    HYPERPARAMETER: ClassVar[str] = "loss_weight"
    LOGARITHMIC: ClassVar[bool] = True

    step: float = 0.1
    bounds: tuple[float, float] = (1e-6, 1e3)

    def base(self, recipe: Recipe) -> dict[str, float]:
        """The weight of each term but the task."""
        if not isinstance(recipe.loss, WeightedSum):
            raise RecipeError(
                "shoal.extend.LossWeights moves the weights of a loss of several terms; give "
                f"Recipe(loss=shoal.extend.WeightedSum(...)), not {type(recipe.loss).__name__}."
            )
        if zero := [name for name, weight in recipe.loss.weights.items() if weight == 0]:
            raise RecipeError(
                f"shoal.extend.LossWeights moves weights in their logarithm, and that of {zero[0]!r} is 0; give one to start "
                "from, such as 1e-3, or leave the term out."
            )
        return {f"the weight of {name!r}": weight for name, weight in recipe.loss.weights.items()}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rate(ByValidation):
    """Measures the derivative in the learning rate of all parameter groups together, and moves nothing.

    It is that through the latest update, ``dC/da = dC/dp(p') . (p' - p) / a``, whatever the method: the optimum that "implicit"
    looks at does not depend on the learning rate.
    """

    HYPERPARAMETER: ClassVar[str] = "lr"
    LOGARITHMIC: ClassVar[bool] = True

    step: float = 0.0
    bounds: tuple[float, float] = (1e-300, 1e300)

    def base(self, recipe: Recipe) -> dict[str, float]:
        """The first parameter group's learning rate: the others stay in proportion."""
        return {"the learning rate": float(recipe.optimizer.param_groups[0]["lr"])}


def _below_one(extension: ByValidation) -> None:
    if extension.bounds[1] >= 1:
        raise RecipeError(f"{extension.said('bounds')} must stay below 1, not {extension.bounds!r}.")


def by_validation(recipe: Recipe) -> list[ByValidation]:
    """A recipe's extensions that follow a validation gradient, but for those that are off."""
    return [e for e in recipe.extensions if isinstance(e, ByValidation) and e.on]
