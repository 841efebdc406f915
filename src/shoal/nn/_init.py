"""Initial weights by name: most are ``torch.nn.init``, and LSUV (layer-sequential unit variance) is here.

Glossary: ``fan_in`` and ``fan_out`` are the inputs and outputs of one unit; a *gate* is one block of rows in the stacked
weights of a recurrent layer or of attention's input projection, each of which is drawn as a matrix of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

import torch
from torch import Tensor, nn

from shoal.errors import UsageError, did_you_mean
from shoal.nn._names import device_of

_Fill = Callable[[Tensor, str], object]


def _lecun_normal(weight: Tensor, activation: str) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="linear")


def _lecun_uniform(weight: Tensor, activation: str) -> None:
    nn.init.kaiming_uniform_(weight, nonlinearity="linear")


def _gain(activation: str) -> float:
    """torch's gain of an activation; those without one of their own are taken for what they resemble."""
    alike = {"gelu": "relu", "silu": "relu", "swish": "relu", "mish": "relu", "elu": "relu", "celu": "relu"}
    name = alike.get(activation, activation)
    known = ("linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu")
    return nn.init.calculate_gain(name if name in known else "linear")  # type: ignore[arg-type]


_SCHEMES: Final[Mapping[str, _Fill]] = {
    "xavier_uniform": lambda w, a: nn.init.xavier_uniform_(w, _gain(a)),
    "xavier_normal": lambda w, a: nn.init.xavier_normal_(w, _gain(a)),
    "kaiming_uniform": lambda w, a: nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "kaiming_normal": lambda w, a: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "lecun_uniform": _lecun_uniform,
    "lecun_normal": _lecun_normal,
    "orthogonal": lambda w, a: nn.init.orthogonal_(w, _gain(a)),
    "trunc_normal": lambda w, a: nn.init.trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
}
_ALIASES: Final[Mapping[str, str]] = {
    "glorot_uniform": "xavier_uniform",
    "glorot_normal": "xavier_normal",
    "xavier": "xavier_uniform",
    "glorot": "xavier_uniform",
    "he_uniform": "kaiming_uniform",
    "he_normal": "kaiming_normal",
    "he": "kaiming_normal",
    "kaiming": "kaiming_normal",
    "lecun": "lecun_normal",
}
INITIALISATIONS: Final = ("default", *_SCHEMES, *_ALIASES, "lsuv")

_LAYERS: Final = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Bilinear)


def initialise(
    model: nn.Module, name: str, *, activation: str = "relu", data: Tensor | tuple[Tensor, ...] = ()
) -> None:
    """Draw a model's initial weights anew, in place.

    Weights of linear, convolutional, recurrent and attention layers are drawn and their biases set to zero (the stacked
    weights of a recurrent layer gate by gate). Embeddings, norms, and parameters of your own classes stay as they are.
    Randomness comes from torch's generator, which inside ``define(trial)`` is seeded by the trial's seed.

    Args:
        model: Any module.
        name: "default" (leave torch's own), "xavier_uniform" or "xavier_normal" (also "glorot"), "kaiming_uniform" or
            "kaiming_normal" (also "he"), "lecun_uniform" or "lecun_normal", "orthogonal", "trunc_normal" (standard
            deviation 0.02, cut at two of them), or "lsuv".
        activation: Whose gain the xavier schemes and "orthogonal" use; "gelu" and its like count as "relu".
        data: Inputs for "lsuv", some tens of samples; a tuple for a model that takes several.

    Raises:
        UsageError: If the name is unknown, or "lsuv" gets no data.

    Example:
        >>> model = nn.Linear(8, 8)
        >>> initialise(model, "orthogonal", activation="linear")
        >>> torch.allclose(model.weight @ model.weight.T, torch.eye(8), atol=1e-5)
        True

    References:
        Glorot and Bengio 2010, eq. 16 (xavier); He et al. 2015, eq. 10 (kaiming); LeCun et al. 1998, eq. 16 (lecun); Saxe
        et al. 2014 (orthogonal); Mishkin and Matas 2016, algorithm 1 (lsuv).
    """
    name = _ALIASES.get(name, name)
    if name not in INITIALISATIONS:
        raise UsageError(f"unknown initialisation {name!r}.{did_you_mean(str(name), INITIALISATIONS)}")
    if name == "default":
        return
    if name == "lsuv":
        _lsuv(model, (data,) if isinstance(data, Tensor) else tuple(data))
        return
    with torch.no_grad():
        for weight in _weights(model):
            _SCHEMES[name](weight, activation)
        _zero_biases(model)


def _weights(model: nn.Module) -> Iterator[Tensor]:
    """Every weight that a scheme draws, as (fan_out, fan_in, ...) views."""
    for module in model.modules():
        if isinstance(module, _LAYERS):
            yield module.weight
        elif isinstance(module, nn.RNNBase):
            n_gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
            for key, parameter in module.named_parameters(recurse=False):
                if key.startswith("weight"):
                    yield from parameter.chunk(n_gates) if not key.startswith("weight_hr") else (parameter,)
        elif isinstance(module, nn.MultiheadAttention):
            if module.in_proj_weight is not None:
                yield from module.in_proj_weight.chunk(3)
            else:
                yield from (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)


def _zero_biases(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _LAYERS) and module.bias is not None:
            module.bias.zero_()
        elif isinstance(module, nn.RNNBase):
            for key, parameter in module.named_parameters(recurse=False):
                if key.startswith("bias"):
                    parameter.zero_()
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_bias is not None:
            module.in_proj_bias.zero_()


def _lsuv(model: nn.Module, data: tuple[Tensor, ...], tolerance: float = 0.05, max_rounds: int = 10) -> None:
    """Orthonormal weights, then layer by layer W <- W / std(output) until the output's variance is 1 (+- tolerance).

    Linear and convolutional layers only; recurrent and attention weights stay orthonormal.
    """
    if not data:
        raise UsageError(
            "initialise(..., 'lsuv') measures each layer's output: pass some tens of samples as data=, for example "
            "data=inputs[:64]."
        )
    with torch.no_grad():
        for weight in _weights(model):
            nn.init.orthogonal_(weight)
        _zero_biases(model)
    data = tuple(tensor.to(device_of(model)) for tensor in data)
    modes = {module: module.training for module in model.modules()}
    model.eval()  # dropout would add its own variance, and batch norm would learn from this
    try:
        for layer in _in_order(model, data):
            for _ in range(max_rounds):
                std = _std_of(model, layer, data)
                # A layer that this data does not reach, or whose output is constant, has nothing to scale by.
                if not (math.isfinite(std) and std > 1e-8) or abs(std * std - 1.0) <= tolerance:
                    break
                with torch.no_grad():
                    layer.weight.div_(std)
    finally:
        for module, training in modes.items():
            module.training = training


def _in_order(model: nn.Module, data: tuple[Tensor, ...]) -> list[nn.Linear]:
    """Linear and convolutional layers in the order in which they are run."""
    order: dict[nn.Module, None] = {}
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    hooks = [layer.register_forward_hook(lambda module, i, o: order.setdefault(module)) for layer in layers]
    try:
        with torch.no_grad():
            model(*data)
    finally:
        for hook in hooks:
            hook.remove()
    return cast("list[nn.Linear]", list(order))  # all that is used of them is their weight


def _std_of(model: nn.Module, layer: nn.Module, data: tuple[Tensor, ...]) -> float:
    """The standard deviation of one layer's output over a batch."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    try:
        with torch.no_grad():
            model(*data)
    finally:
        hook.remove()
    return float(seen[-1].double().std()) if seen and seen[-1].numel() > 1 else math.nan
