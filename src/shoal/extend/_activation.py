"""The activation, whose shape is learned with the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

import torch
from torch import Tensor, nn, optim

from shoal.errors import RecipeError, did_you_mean
from shoal.extend._base import Extension, is_number
from shoal.extend._shapes import LearnedBias, LearnedMixture, LearnedPReLU, LearnedShape, LearnedSwish, replaced

if TYPE_CHECKING:
    from shoal.recipe import Recipe

# Element-wise activations: those that may differ between lanes.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "logsigmoid": nn.LogSigmoid,
}
_REPLACED = tuple(cls for name, cls in ACTIVATIONS.items() if name != "identity")
_STARTS = {"prelu": 0.25, "swish": 1.0, "bias": 0.0, "mixture": 0.0}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Activation(Extension):
    r"""Puts activations whose shape is learned in the place of a model's own.

    Every element-wise activation module of the model (``nn.ReLU()``, not ``F.relu``) is replaced, each by one of its own, whose
    parameter joins the optimizer's first parameter group. With the input ``u``:

    ========= ========================================================================
    shape     the activation
    ========= ========================================================================
    "prelu"   ``u`` where it is positive, else ``a u``
    "swish"   ``u sigmoid(b u)``
    "bias"    ``f(u + c)``, with ``f`` the model's own
    "mixture" ``sum_k softmax(w)_k f_k(u)`` over ``choices``
    ========= ========================================================================

    where ``a``, ``b``, ``c`` and ``w`` are ``start + step * offset`` within the bounds, and the optimizer learns ``offset`` from 0.

    Args:
        shape: Which.
        start: The base value; by default 0.25 for "prelu", 1 for "swish", 0 for "bias" and "mixture" (which is then even).
        choices: Names of the activations that are mixed, at least two.
        step: What a unit of ``offset`` counts for. With Adam and its like, how far it moves per unit of learning rate.
        bounds: Least and largest value of ``a``, ``b``, ``c`` or each ``w``.
        warmup: Must be 0: shapes are learned from the first update on.
        on: Whether it does anything.

    Raises:
        RecipeError: If a field is out of its range.

    Example:
        >>> Activation(shape="swish").start
        1.0

    References:
        He et al. 2015, Delving deep into rectifiers, section 2.1; Ramachandran et al. 2017, Searching for activation functions;
        Agostinelli et al. 2015 and Manessi and Rozza 2018 for combinations.
    """

    HYPERPARAMETER: ClassVar[str] = "activation"
    LOWEST: ClassVar[float] = -math.inf

    shape: Literal["prelu", "swish", "bias", "mixture"] = "prelu"
    start: float | None = None
    choices: Sequence[str] = ("relu", "tanh", "silu", "identity")
    step: float = 1.0
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        Extension.__post_init__(self)
        if self.shape not in _STARTS:
            raise RecipeError(
                f"{self.said('shape')} must be 'prelu', 'swish', 'bias' or 'mixture', not {self.shape!r}."
                f"{did_you_mean(str(self.shape), _STARTS)}"
            )
        if self.start is not None and not (is_number(self.start) and math.isfinite(self.start)):
            raise RecipeError(f"{self.said('start')} must be a finite number or None, not {self.start!r}.")
        object.__setattr__(self, "start", _STARTS[self.shape] if self.start is None else float(self.start))
        self.holds(self.start or 0.0, "its start")
        if self.warmup:
            raise RecipeError(f"{self.said('warmup')} must be 0: shapes are learned from the first update on.")
        names = (self.choices,) if isinstance(self.choices, str) else tuple(self.choices)
        for name in names:
            if name not in ACTIVATIONS:
                raise RecipeError(
                    f"{self.said('choices')} knows no activation {name!r}.{did_you_mean(str(name), ACTIVATIONS)}"
                )
        if len(names) < 2 or len(set(names)) < len(names):
            raise RecipeError(
                f"{self.said('choices')} must be two activations or more, each once, not {self.choices!r}."
            )
        object.__setattr__(self, "choices", names)

    def moves_after(self, per_epoch: int) -> int:
        """With every update."""
        return 0

    def check(self, recipe: Recipe) -> None:
        """The model must have activations; they are replaced, and the optimizer is told of their parameters."""
        if not self.on:
            return
        model, optimizer = recipe.model, recipe.optimizer
        found = {id(m): m for m in model.modules() if type(m) in _REPLACED and m is not model}
        if not found:
            raise RecipeError(
                "shoal.extend.Activation needs a model with activation modules (nn.ReLU(), nn.Tanh(), ...), and this one has none; "
                "functions such as torch.relu in a forward pass cannot be replaced."
            )
        like = next(p for p in model.parameters() if p.requires_grad)
        made = {key: self._made(m, like) for key, m in found.items()}
        for key, new in made.items():
            new.train(found[key].training)
            optimizer.param_groups[0]["params"].append(new.offset)
            if isinstance(optimizer, optim.Adagrad):  # which makes its state with itself
                first = optimizer.defaults["initial_accumulator_value"]
                optimizer.state[new.offset] = {"step": torch.tensor(0.0), "sum": torch.full_like(new.offset, first)}
        replaced(model, made)

    def _made(self, act: nn.Module, like: Tensor) -> LearnedShape:
        asked = (float(self.start or 0.0), self.step, self.bounds, like)
        if self.shape == "prelu":
            return LearnedPReLU(*asked)
        if self.shape == "swish":
            return LearnedSwish(*asked)
        if self.shape == "bias":
            return LearnedBias(act, *asked)
        return LearnedMixture({name: ACTIVATIONS[name]() for name in self.choices}, *asked)
