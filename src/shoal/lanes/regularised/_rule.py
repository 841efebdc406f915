"""What lanes and the plain loop share: which numbers move, on which samples, and by which rule.

Glossary: ``R`` numbers that may move: L1, weight decay, label smoothing, the learning rate (whose derivative is only
measured), the rate of each dropout module and the weight of each term of a loss; a trial has some.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.data import Datasets, Split
from shoal.errors import UsageError
from shoal.extend import L1, Dropout, LabelSmoothing, LossWeights, WeightDecay
from shoal.extend._by_validation import ByValidation, Rate, by_validation
from shoal.extend._weighted import PREFIX, weights_of
from shoal.lanes.criteria import SMOOTHING, denominators, is_known
from shoal.lanes.lane import EVALUATION_EPOCH
from shoal.lanes.lift import dropouts
from shoal.lanes.rng import derive, permutation, sample_keys
from shoal.recipe import Recipe

if TYPE_CHECKING:
    from shoal.lanes.lane import LaneTrial

L1_, DECAY_, SMOOTHING_, LR_, RATES_ = range(
    5
)  # places among the R numbers; rates of dropout and weights of terms follow
_HELD_OUT_STREAM = 0x4E1D  # orders of hyper-validation samples, apart from all else that follows from a trial's seed
_BATCH = 64  # hyper-validation samples per move, at most
_BETA1, _BETA2 = 0.9, 0.99


@dataclass(frozen=True, slots=True)
class Asked:
    """What the extensions of one recipe ask for.

    Attributes:
        shared: Any one of them: method, every, terms and scale are the same in all.
        at: Place among the R numbers -> the extension that moves it, and its base value.
        names: What a trajectory is called, by place.
        slopes: Likewise that of the derivative, where it is asked for.
        moves: As ``moves_of``.
    """

    shared: ByValidation
    at: dict[int, tuple[ByValidation, float]]
    names: dict[int, str]
    slopes: dict[int, str]
    moves: frozenset[str]

    def moves_after(self, update: int) -> bool:
        """Whether the numbers move once so many updates of the trial are made; a step of 0 is what keeps them in a warm-up."""
        return update % self.shared.every == 0


def moves_of(recipes: Iterable[Recipe]) -> frozenset[str]:
    """What derivatives the extensions of some recipes of a signature take: "held_out", that of the hyper-validation loss, if any
    does; and the names of the numbers that the training loss is differentiated in."""
    out: set[str] = set()
    for recipe in recipes:
        for e in by_validation(recipe):
            out |= {"held_out"}
            out |= {SMOOTHING} if isinstance(e, LabelSmoothing) else set()
            out |= set(weights_of(recipe.loss)) if isinstance(e, LossWeights) else set()
            out |= {f"{name}.p" for name, _ in dropouts(recipe.model)} if isinstance(e, Dropout) else set()
    return frozenset(out)


def numbers_of(moves: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The numbers among these, by the pass of the model that gives their derivatives; that of dropout's rates relaxes the masks."""
    names = sorted(set(moves) - {"held_out"})
    losses = tuple(n for n in names if n.startswith("loss."))
    found = {"losses": losses, "rates": tuple(n for n in names if n not in losses)}
    return {name: numbers for name, numbers in found.items() if numbers}


def held_out_of(recipe: Recipe, data: Datasets) -> Split:
    """The hyper-validation data that a recipe's extensions take their gradient on.

    Raises:
        UsageError: There are none.
    """
    if data.held_out is None:
        names = " and ".join(dict.fromkeys(f"shoal.extend.{type(e).__name__}" for e in by_validation(recipe)))
        raise UsageError(
            f"{names} needs hyper-validation data to take a gradient on, neither trained on nor reported, and there are none: give "
            "tune(hyper_valid=0.1) to take a tenth of train, or a split of its own. Finders have none: set on=False there."
        )
    return data.held_out


def numbers_at(recipe: Recipe) -> dict[str, int]:
    """Where among the R numbers those stand that are tensors of a lane, by the names of these."""
    rates = [f"{name}.p" for name, _ in dropouts(recipe.model)]
    return {SMOOTHING: SMOOTHING_} | {name: RATES_ + k for k, name in enumerate([*rates, *weights_of(recipe.loss)])}


def logarithms(recipe: Recipe) -> Tensor:
    """Of which of the R numbers the offset is a logarithm, (R,)."""
    places = numbers_at(recipe)
    out = torch.zeros(max(RATES_, *(place + 1 for place in places.values())), dtype=torch.bool)
    out[[L1_, DECAY_, LR_, *(places[name] for name in weights_of(recipe.loss))]] = True
    return out


def asked(recipe: Recipe) -> Asked | None:
    """What a recipe's extensions ask for; None without any that follow a validation gradient."""
    found = by_validation(recipe)
    if not found:
        return None
    at: dict[int, tuple[ByValidation, float]] = {}
    names: dict[int, str] = {}
    for e in found:
        if isinstance(e, Dropout):
            rates = dropouts(recipe.model)
            for k, (_, module) in enumerate(rates):
                at[RATES_ + k] = (e, float(module.p))  # type: ignore[arg-type]
                names[RATES_ + k] = "dropout" if len(rates) == 1 else f"dropout/{k}"
        elif isinstance(e, LossWeights):
            places = numbers_at(recipe)
            for name, weight in weights_of(recipe.loss).items():
                at[places[name]] = (e, weight)
                names[places[name]] = f"loss_weight/{name.removeprefix(f'loss.{PREFIX}')}"
        else:
            place = {L1: L1_, WeightDecay: DECAY_, LabelSmoothing: SMOOTHING_, Rate: LR_}[type(e)]
            at[place] = (e, next(iter(e.base(recipe).values())))
            names[place] = e.HYPERPARAMETER
    slopes = {place: f"slope/{name}" for place, name in names.items() if at[place][0].slopes}
    named = {place: name for place, name in names.items() if place != LR_}
    return Asked(found[0], at, named, slopes, moves_of([recipe]))


@dataclass(frozen=True, slots=True)
class Moving:
    """What the moves of a trial need to know of it, in a lane.

    Attributes:
        asked: What it asks for.
        shares: Of each hyper-validation sample, as ``shares``.
        keys: Their random keys, (n,).
    """

    asked: Asked
    shares: NDArray[np.float64] | None
    keys: NDArray[np.int32]


def moving_of(trial: LaneTrial, data: Datasets) -> Moving | None:
    """Of a trial in a lane, kept with it; None where nothing moves."""
    if trial.moving is None and (found := asked(trial.recipe)) is not None:
        held_out = held_out_of(trial.recipe, data)
        of = shares(trial.recipe, held_out.tensors[-1])
        trial.moving = Moving(found, of, keys_of(trial.spec.seed, held_out))
    return trial.moving


def moved(
    kept: tuple[Tensor, Tensor, Tensor],
    value: Tensor,
    slope: Tensor,
    count: Tensor,
    step: Tensor,
    base: Tensor,
    bounds: tuple[Tensor, Tensor],
    logarithmic: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """One move, all in float64 and of shapes that broadcast: Adam on the offset, and the number within its bounds.

    Args:
        kept: Offset (a difference, or the logarithm of a factor), and Adam's two moments.
        value: The number now.
        slope: Derivative of the hyper-validation loss in it.
        count: Which move of the trial this is, from 1.
        step: Step size; 0 leaves the number as it is.
        base: Its base value.
        bounds: Least and largest.
        logarithmic: Whether the offset is a logarithm.

    Returns:
        What is kept, and the number.
    """
    offset, first, second = kept
    slope = torch.where(logarithmic, slope * value, slope)
    first = _BETA1 * first + (1 - _BETA1) * slope
    second = _BETA2 * second + (1 - _BETA2) * slope * slope
    size = (second / (1 - _BETA2**count)).sqrt()
    way = torch.where(size > 0, first / (1 - _BETA1**count) / size, 0.0)
    offset = torch.where(step > 0, offset - step * way, offset)
    low, high = bounds
    number = torch.clamp(torch.where(logarithmic, base * offset.exp(), base + offset), low, high)
    number = torch.where(step > 0, number, value)
    offset = torch.where(logarithmic, (number / base).log(), number - base)
    return (offset, first, second), number


class Slopes:
    """Means of the derivatives of some lanes over the moves of an epoch.

    Args:
        total, count: Their sums so far, and how many there were, (..., R), float64.
    """

    def __init__(self, total: Tensor, count: Tensor) -> None:
        self._sum, self._count = total, count

    @classmethod
    def none(cls, like: Tensor) -> Slopes:
        """Of no move yet."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))

    def add(self, slope: Tensor, on: Tensor) -> None:
        """One move's, and whose turn it was."""
        self._sum += torch.where(on, slope, 0.0)
        self._count += on

    def of(self, asked: Asked, at: tuple[int, ...] = ()) -> dict[str, tuple[float, ...]]:
        """The means of a trial by name, one value each; none where there was no move."""
        total, count = self._sum[at], self._count[at]
        return {name: (float(total[place] / count[place]),) for place, name in asked.slopes.items() if count[place] > 0}


def why(asked: Asked, bad: Sequence[float]) -> str:
    """What went wrong with a trial's numbers, given at which update the hypergradient of each was not finite, or 0."""
    for place, name in {**{k: name.removeprefix("slope/") for k, name in asked.slopes.items()}, **asked.names}.items():
        if bad[place]:
            return f"the hypergradient of its {name} was not finite at update {bad[place]}"
    return ""


def batch_size(held_out: Split) -> int:
    """Hyper-validation samples of one move."""
    return min(held_out.n, _BATCH)


def rows_of(seed: int, move: int, held_out: Split, count: int = 1) -> NDArray[np.int64]:
    """The hyper-validation samples of so many moves of a trial, (count, samples), from one on that is counted from 1.

    They are shuffled, and shuffled again when all have been seen.
    """
    n, size = held_out.n, batch_size(held_out)
    per_round = n // size
    turn, place = divmod(move - 1, per_round)
    turns = range(turn, turn + 1 + (place + count - 1) // per_round)
    return np.concatenate([_shuffled(seed, k, n, size) for k in turns])[place : place + count]


@functools.lru_cache(maxsize=256)  # every lane asks for its own again and again
def _shuffled(seed: int, turn: int, n: int, size: int) -> NDArray[np.int64]:
    """(moves, samples)"""
    return permutation(_stream(seed), turn, n)[: n // size * size].reshape(-1, size)


@functools.lru_cache(maxsize=256)
def _stream(seed: int) -> int:
    return derive(seed, _HELD_OUT_STREAM)


def keys_of(seed: int, held_out: Split) -> NDArray[np.int32]:
    """The random key of each hyper-validation sample, (n,), for models that draw in evaluation."""
    return sample_keys(seed, EVALUATION_EPOCH, held_out.n)


def shares(recipe: Recipe, target: Tensor) -> NDArray[np.float64] | None:
    """What each sample's loss is divided by, together, (n,); None where the loss is a sum or not taken apart."""
    if not is_known(recipe.loss) or recipe.loss.reduction == "sum":  # type: ignore[union-attr]
        return None
    return denominators(recipe.loss, target).numpy()


def nudge(point: Tensor, along: Tensor, dtype: torch.dtype) -> Tensor:
    """How far to go from a point along a direction and back for a central difference: norms (...), in float64 -> (...).

    The cube root of the precision, of the point's own length, balances rounding against curvature.
    """
    precision = torch.finfo(dtype).eps ** (1 / 3)
    length = torch.where(point > 0, point, 1.0)
    return torch.where(along > 0, precision * length / along, 0.0)
