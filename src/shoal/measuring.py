"""Properties of a model, measured once when its trial ends: how many parameters it has, how long it takes for one sample.

Latency is measured by the study's own process, between two epochs, when no trial trains: the model as `define` builds it, alone,
with its trained weights, in evaluation mode, without gradients, on the first sample of the validation split. On a CPU it has one
thread, which is what makes the number repeat: a batch of one has little to share out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from shoal.errors import RecipeError
from shoal.lanes.threads import threads
from shoal.objectives import Constraint
from shoal.recipe import Batch, Recipe
from shoal.records import TrialSpec

if TYPE_CHECKING:
    pass

# Calls are repeated for so long in all, but at least and at most so often.
BUDGET_S: Final = 0.02
FEWEST, MOST = 10, 1000
_WARM_UP: Final = 3  # calls before the first that counts: caches, and code that torch makes at first use


def n_parameters(model: nn.Module) -> int:
    """Elements of all parameters, trainable or not; tied ones count once.

    >>> n_parameters(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def hopeless(
    constraints: Sequence[Constraint], rebuild: Callable[[TrialSpec], Recipe]
) -> Callable[[TrialSpec], str] | None:
    """What finds out why a trial cannot be best whatever it learns: its model has too many parameters, or too few.

    Args:
        constraints: Of the study.
        rebuild: Replays a trial's recipe.

    Returns:
        A function of a trial that gives the reason, or "" where there is none; None where no constraint is about parameters.
    """
    bounds = [c for c in constraints if c.name == "n_parameters"]

    def why(spec: TrialSpec) -> str:
        n = n_parameters(rebuild(spec).model)
        return next((f"{n:,} parameters, and it must be {c.key}" for c in bounds if c.broken_by(n) > 0), "")

    return why if bounds else None


def latency_ms(
    call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median time of a call, in milliseconds.

    Args:
        call: Runs the model.
        device: Where it runs: one that works in the background is waited for.
        clock: Seconds.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(_WARM_UP):
        call()
    wait()
    took: list[float] = []
    while len(took) < FEWEST or (sum(took) < BUDGET_S and len(took) < MOST):
        began = clock()
        call()
        wait()
        took.append(clock() - began)
    return 1e3 * statistics.median(took)


def properties_of(recipe: Recipe, names: Sequence[str], sample: Batch, device: torch.device) -> dict[str, float]:
    """What a recipe's model has, by name.

    Args:
        recipe: With its trained weights.
        names: Of `shoal.objectives.PROPERTIES`.
        sample: One row of each tensor of the data, on ``device``.
        device: What the study trains on.

    Raises:
        RecipeError: Latency is wanted, and the loss is a callable that says nothing of how the model is called.
    """
    found: dict[str, float] = {}
    if "n_parameters" in names:
        found["n_parameters"] = float(n_parameters(recipe.model))
    if "latency_ms" in names:
        if recipe.predict is None and not recipe.is_criterion:
            raise RecipeError(
                "latency_ms is the time of what metrics see, and a callable loss shows none: add predict=lambda model, batch: ... "
                "to the recipe."
            )
        model = recipe.model.to(device).eval()
        with torch.no_grad(), threads(1):
            found["latency_ms"] = latency_ms(lambda: recipe.shown(model, sample), device)
    return found
