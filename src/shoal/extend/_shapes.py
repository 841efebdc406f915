"""Activations whose shape is learned, as plain PyTorch modules, and what they become when it is settled.

Each has one parameter, ``offset``, that starts at zero; the shape is ``start + step * offset`` within bounds, so that weight decay
pulls it back to where it started. ``u`` stands for the input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LearnedShape(nn.Module):
    """What learned activations share.

    Args:
        start: The shape before training.
        step: What one unit of the parameter counts for.
        bounds: Least and largest value of the shape.
        like: Its dtype and device are the parameter's.
        size: Numbers that make up the shape.
    """

    offset: nn.Parameter

    def __init__(self, start: float, step: float, bounds: tuple[float, float], like: Tensor, size: int = 1) -> None:
        super().__init__()
        self.start, self.step = start, step
        self.low, self.high = bounds
        self.offset = nn.Parameter(torch.zeros(size, dtype=like.dtype, device=like.device))

    def shape(self) -> Tensor:
        """The shape as it is now, (size,)."""
        return torch.clamp(self.start + self.step * self.offset, self.low, self.high)

    @property
    def named(self) -> tuple[str, ...]:
        """What the numbers that make up the shape are called; a single one has the name ""."""
        return ("",)

    def numbers(self, shape: Tensor) -> Tensor:
        """These numbers, of shapes (..., size)."""
        return shape

    def settled(self) -> nn.Module:
        """A module that does the same, with the shape as a constant or as torch's own parameter."""
        raise NotImplementedError


class LearnedPReLU(LearnedShape):
    """``u`` where it is positive, else ``a u`` (He et al. 2015); becomes ``torch.nn.PReLU``."""

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.shape())

    def settled(self) -> nn.Module:
        shape = self.shape().detach()
        out = nn.PReLU(init=float(shape))
        return out.to(shape.device, shape.dtype)


class LearnedSwish(LearnedShape):
    """``u sigmoid(b u)`` (Ramachandran et al. 2017); becomes a `Swish`."""

    def forward(self, input: Tensor) -> Tensor:
        return input * torch.sigmoid(self.shape() * input)

    def settled(self) -> nn.Module:
        return Swish(float(self.shape().detach()))


class LearnedBias(LearnedShape):
    """``f(u + c)`` with an activation ``f``; becomes a `Shifted`."""

    def __init__(self, act: nn.Module, start: float, step: float, bounds: tuple[float, float], like: Tensor) -> None:
        super().__init__(start, step, bounds, like)
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.act(input + self.shape())
        return out

    def settled(self) -> nn.Module:
        return Shifted(copy.deepcopy(self.act), float(self.shape().detach()))


class LearnedMixture(LearnedShape):
    """``sum_k softmax(w)_k f_k(u)`` with activations ``f_k``; becomes the one with the largest weight."""

    def __init__(
        self, acts: Mapping[str, nn.Module], start: float, step: float, bounds: tuple[float, float], like: Tensor
    ) -> None:
        super().__init__(start, step, bounds, like, len(acts))
        self.names = tuple(acts)
        self.acts = nn.ModuleList(acts.values())

    def forward(self, input: Tensor) -> Tensor:
        weights = F.softmax(self.shape(), 0)
        out: Tensor = weights[0] * self.acts[0](input)
        for k in range(1, len(self.acts)):
            out = out + weights[k] * self.acts[k](input)
        return out

    @property
    def named(self) -> tuple[str, ...]:
        return self.names

    def numbers(self, shape: Tensor) -> Tensor:
        return F.softmax(shape, -1)

    def settled(self) -> nn.Module:
        return copy.deepcopy(self.acts[int(self.shape().argmax())])


class Swish(nn.Module):
    """``u sigmoid(beta u)``.

    >>> Swish(2.0)(torch.tensor(0.0))
    tensor(0.)
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, input: Tensor) -> Tensor:
        return input * torch.sigmoid(self.beta * input)


class Shifted(nn.Module):
    """``act(u + bias)``.

    >>> Shifted(nn.ReLU(), 1.0)(torch.tensor(-0.25))
    tensor(0.7500)
    """

    def __init__(self, act: nn.Module, bias: float) -> None:
        super().__init__()
        self.act, self.bias = act, bias

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.act(input + self.bias)
        return out


def shapes_of(
    models: Sequence[nn.Module], parameter: Callable[[str], Tensor] | None = None
) -> list[dict[str, tuple[float, ...]]]:
    """The learned shapes of models alike as an epoch's trajectories: "activation/MODULE", or "activation/MODULE/NAME" in a mixture.

    Args:
        models: Whose modules have them.
        parameter: Gives a parameter of all of them by its name, (models, size), if they are not the models' own.
    """
    out: list[dict[str, tuple[float, ...]]] = [{} for _ in models]
    for path, first in models[0].named_modules():
        if not isinstance(first, LearnedShape):
            continue
        modules: list[LearnedShape] = [model.get_submodule(path) for model in models]  # type: ignore[misc]
        own = parameter is None
        offset = torch.stack([m.offset.detach() for m in modules]) if own else parameter(f"{path}.offset")  # type: ignore[misc]
        start, step, low, high = (
            torch.tensor(column, dtype=offset.dtype)[:, None]
            for column in zip(*((m.start, m.step, m.low, m.high) for m in modules), strict=True)
        )
        numbers = first.numbers(torch.clamp(start + step * offset.cpu(), low, high)).tolist()
        for found, module, row in zip(out, modules, numbers, strict=True):
            for name, value in zip(module.named, row, strict=True):
                found["/".join(filter(None, ("activation", path, name)))] = (value,)
    return out


def replaced(model: nn.Module, old: Mapping[int, nn.Module]) -> None:
    """Put modules in the place of others, by the ``id`` of those, wherever in a model they are."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in old:
                parent._modules[name] = old[id(child)]


def settle(model: nn.Module) -> nn.Module:
    """A copy of a model in which learned activations are settled: torch's own modules, where torch has them.

    ``LearnedPReLU`` becomes ``torch.nn.PReLU``, ``LearnedMixture`` the activation with the largest weight (which changes what the
    model gives: measure it again), the others a `Swish` and a `Shifted`, which keep nothing but a number.

    Example:
        >>> import shoal
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> moves = [shoal.extend.Activation(shape="prelu", start=0.1)]
        >>> recipe = shoal.Recipe(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss(), 8, extensions=moves)
        >>> settle(recipe.model)[1]
        PReLU(num_parameters=1)
    """
    made = copy.deepcopy(model)
    if isinstance(made, LearnedShape):
        return made.settled()
    replaced(made, {id(m): m.settled() for m in made.modules() if isinstance(m, LearnedShape)})
    return made
