"""A loss of several terms, each with a weight that a lane may have for itself and that ``LossWeights`` moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, final

from torch import Tensor

from shoal.errors import RecipeError, did_you_mean
from shoal.extend._base import is_number

_task_alone: ContextVar[bool] = ContextVar("task_alone", default=False)
PREFIX: Final = "weight_"


@final
class WeightedSum:
    """A loss that is the sum of a task and of other terms, each times its weight: ``task + sum_k weight_k * term_k``.

    It is a callable ``loss(model, batch)`` for `shoal.Recipe`. Lanes of one fleet have weights of their own. `LossWeights` moves
    them by the gradient of the task alone on hyper-validation data.

    Args:
        terms: Each a callable ``term(model, batch)`` that gives a scalar, by name (letters, digits and underscores). The first is
            the task: what the model is for. It has the weight 1.
        weights: Of all the others, by name: finite numbers of at least 0.
        forward: If given, ``forward(model, batch)`` runs once for all terms, which are then called as ``term(outputs, batch)``.

    Raises:
        RecipeError: If there is no term beside the task, one is not callable, or names and weights do not fit each other.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> loss = WeightedSum(
        ...     {"task": lambda out, batch: (out - batch[1]).square().mean(), "small": lambda out, batch: out.square().mean()},
        ...     weights={"small": 0.5},
        ...     forward=lambda model, batch: model(batch[0]),
        ... )
        >>> float(loss(nn.Identity(), (torch.ones(2, 1), torch.zeros(2, 1))))
        1.5
    """

    def __init__(
        self,
        terms: Mapping[str, Callable[[Any, Any], Tensor]],
        *,
        weights: Mapping[str, float],
        forward: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        if not isinstance(terms, Mapping) or len(terms) < 2:
            raise RecipeError(
                "WeightedSum(terms=...) must be a dict of the task and at least one more term, each a callable on (model, batch); "
                f"got {terms!r:.80}."
            )
        for name, term in terms.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise RecipeError(
                    f"WeightedSum(terms=...) names terms by letters, digits and underscores, not by {name!r}."
                )
            if not callable(term):
                raise RecipeError(
                    f"WeightedSum(terms=...)[{name!r}] must be a callable on (model, batch), not {term!r:.80}."
                )
        if forward is not None and not callable(forward):
            raise RecipeError(
                f"WeightedSum(forward=...) must be a callable on (model, batch), or None, not {forward!r:.80}."
            )
        self.task, *others = terms
        if not isinstance(weights, Mapping):
            raise RecipeError(f"WeightedSum(weights=...) must be a dict of numbers by term, not {weights!r:.80}.")
        for name in weights:
            if name == self.task:
                raise RecipeError(
                    f"WeightedSum(weights=...) gives a weight to {name!r}, the first term: that is the task, whose weight is 1."
                )
            if name not in terms:
                raise RecipeError(f"WeightedSum(weights=...) has no term {name!r}.{did_you_mean(str(name), others)}")
        for name in others:
            if name not in weights:
                raise RecipeError(f"WeightedSum(weights=...) lacks the weight of the term {name!r}.")
            weight = float(weights[name]) if is_number(weights[name]) else math.nan
            if not 0 <= weight < math.inf:
                raise RecipeError(
                    f"WeightedSum(weights=...)[{name!r}] must be a finite number of at least 0, not {weights[name]!r}."
                )
            setattr(self, PREFIX + name, weight)
        self.terms, self.forward = dict(terms), forward

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term but the task, by name."""
        return {name: getattr(self, PREFIX + name) for name in list(self.terms)[1:]}

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """The weighted sum, ()."""
        given = model if self.forward is None else self.forward(model, batch)
        total = self.terms[self.task](given, batch)
        if _task_alone.get():
            return total
        for name in list(self.terms)[1:]:
            total = total + getattr(self, PREFIX + name) * self.terms[name](given, batch)
        return total

    def __repr__(self) -> str:
        return f"WeightedSum({self.task!r}, weights={self.weights})"


@contextmanager
def task_alone() -> Iterator[None]:
    """Meanwhile a ``WeightedSum`` is its task: what a hyper-validation gradient is taken of."""
    before = _task_alone.set(True)
    try:
        yield
    finally:
        _task_alone.reset(before)


def weights_of(loss: object) -> dict[str, float]:
    """A loss's weights by the names of their lane tensors, ``loss.weight_NAME``; none of any other loss."""
    if not isinstance(loss, WeightedSum):
        return {}
    return {f"loss.{PREFIX}{name}": weight for name, weight in loss.weights.items()}
