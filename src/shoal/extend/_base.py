"""What every extension of a hyperparameter has: bounds, a step size, a warm-up, a switch; and how they are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, ClassVar

from shoal.errors import RecipeError

if TYPE_CHECKING:
    from shoal.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A hyperparameter that moves while the model trains: its base value plus a learned offset.

    Args:
        step: Step size of the offset, at least 0; 0 leaves the hyperparameter at its base value.
        bounds: Least and largest value that the hyperparameter may take; they must hold its base value.
        warmup: Updates of a trial during which the offset rests.
        on: Whether it does anything. A trial with ``on=False`` trains as one without the extension.
    """

    HYPERPARAMETER: ClassVar[str] = ""
    LOWEST: ClassVar[float] = 0.0  # that a bound may be

    step: float
    bounds: tuple[float, float]
    warmup: int = 0
    on: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", self.number("step", self.step))
        pair = self.bounds
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(is_number, pair)):
            raise RecipeError(f"{self.said('bounds')} must be a pair of numbers (lowest, highest), not {pair!r}.")
        low, high = map(float, pair)
        if not self.LOWEST <= low < high:
            least = "0 <= lowest" if self.LOWEST == 0 else "lowest"
            raise RecipeError(f"{self.said('bounds')} must have {least} < highest, not {pair!r}.")
        object.__setattr__(self, "bounds", (low, high))
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            raise RecipeError(
                f"{self.said('warmup')} must be a whole number of updates of at least 0, not {self.warmup!r}."
            )
        if not isinstance(self.on, bool):
            raise RecipeError(f"{self.said('on')} must be True or False, not {self.on!r}.")

    @classmethod
    def said(cls, field: str) -> str:
        """How messages name a field."""
        return f"shoal.extend.{cls.__name__}({field}=...)"

    @classmethod
    def number(cls, field: str, value: object, *, below: float = math.inf) -> float:
        """A field that must be a number from 0 to ``below``, which it must not reach.

        Raises:
            RecipeError: If it is not.
        """
        number = float(value) if is_number(value) else math.nan  # type: ignore[arg-type]
        if not 0 <= number < below:
            most = "finite" if math.isinf(below) else f"less than {below:g}"
            raise RecipeError(f"{cls.said(field)} must be a number of at least 0 and {most}, not {value!r}.")
        return number

    def holds(self, value: float, what: str) -> None:
        """Check a base value against the bounds.

        Raises:
            RecipeError: If they exclude it.
        """
        low, high = self.bounds
        if not low <= value <= high:
            raise RecipeError(
                f"{self.said('bounds')} = ({low:g}, {high:g}) exclude {what}, {value:g}; widen them, or start inside."
            )

    def moves_after(self, per_epoch: int) -> int:
        """After how many updates of a trial it first moves, given how many an epoch has."""
        return max(1, self.warmup)

    def check(self, recipe: Recipe) -> None:
        """Check that a recipe has what is to be moved.

        Raises:
            RecipeError: If it has not.
        """
        raise NotImplementedError


def is_number(value: object) -> bool:
    """Whether a value is a real number, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)
