"""In which order a trial sees the training samples: shuffled, or drawn by weight. A function of (trial seed, epoch) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal import memory
from shoal.data import Split
from shoal.errors import RecipeError
from shoal.keyed import permutation, weighted_order
from shoal.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Sampling:
    """How a trial's epochs are drawn from ``n`` samples.

    Args:
        n: Samples.
        rows: Which of the training split they are, (n,); None for all.
        bounds: Where each sample ends on a line from 0 to 1 that is cut by weight, (n,); None for a shuffle without weights.
    """

    n: int
    rows: NDArray[np.int64] | None = None
    bounds: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, recipe: Recipe, split: Split, rows: NDArray[np.int64] | None = None) -> Sampling:
        """The sampling that a recipe asks for.

        Args:
            recipe: Of the trial.
            split: The training split.
            rows: The samples of it that the trial trains on; by default all.

        Raises:
            RecipeError: If its weights are not one number of 0 or more per training sample.
        """
        given, n = recipe.sample_weights, split.n if rows is None else len(rows)
        if given is None:
            return cls(n, rows)
        if callable(given):
            seen = (
                split.tensors if rows is None else tuple(memory.taken(t, torch.from_numpy(rows)) for t in split.tensors)
            )
            return cls(n, rows, _bounds(_weights(given(recipe.form.batch(seen)), n)))
        origin = split.origin
        weights = _weights(given, split.n if origin is None else origin.n)
        weights = weights if origin is None else weights[origin.samples]
        return cls(n, rows, _bounds(weights if rows is None else weights[rows]))

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch, (n,), as rows of the training split in the order in which batches take them.

        With weights they are draws with replacement, each of sample i with probability w_i / sum w.
        """
        drawn = permutation(seed, epoch, self.n) if self.bounds is None else weighted_order(seed, epoch, self.bounds)
        return drawn if self.rows is None else self.rows[drawn]


def _weights(found: object, n: int) -> NDArray[np.float64]:
    try:
        weights = np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"Recipe(sample_weights=...) must be numbers, one per training sample; got {_kind(found)}."
        ) from error
    if weights.shape != (n,):
        raise RecipeError(
            f"Recipe(sample_weights=...) must be one number per training sample, of shape ({n},); got shape {weights.shape}. Where "
            "the validation split is drawn from train, give a callable: it is shown the training samples that are left."
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise RecipeError(f"Recipe(sample_weights=...) must be finite and 0 or more; sample {at} has {weights[at]}.")
    return weights


def _bounds(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    if not weights.max() > 0:
        raise RecipeError("Recipe(sample_weights=...) are all 0, so that there is no sample to draw.")
    bounds: NDArray[np.float64] = np.cumsum(weights / weights.max())
    bounds /= bounds[-1]
    return bounds  # the last is 1, and what is drawn is below


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__qualname__}"
