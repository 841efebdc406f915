"""Activations, norms, optimizers and losses by name, for search spaces and files, which cannot hold classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import nn, optim

from shoal.errors import UsageError, did_you_mean

ACTIVATIONS: Final[Mapping[str, type[nn.Module]]] = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "hardtanh": nn.Hardtanh,
    "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU,
    "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
}

# Name -> (class, what the name says beyond the class).
OPTIMIZERS: Final[Mapping[str, tuple[type[optim.Optimizer], Mapping[str, Any]]]] = {
    "adadelta": (optim.Adadelta, {}),
    "adagrad": (optim.Adagrad, {}),
    "adam": (optim.Adam, {}),
    "adamax": (optim.Adamax, {}),
    "adamw": (optim.AdamW, {}),
    "amsgrad": (optim.Adam, {"amsgrad": True}),
    "asgd": (optim.ASGD, {}),
    "momentum": (optim.SGD, {"momentum": 0.9}),
    "nadam": (optim.NAdam, {}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "radam": (optim.RAdam, {}),
    "rmsprop": (optim.RMSprop, {}),
    "rprop": (optim.Rprop, {}),
    "sgd": (optim.SGD, {}),
}

LOSSES: Final[Mapping[str, type[nn.Module]]] = {
    "bce": nn.BCELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "gaussian_nll": nn.GaussianNLLLoss,
    "hinge_embedding": nn.HingeEmbeddingLoss,
    "huber": nn.HuberLoss,
    "kl_div": nn.KLDivLoss,
    "l1": nn.L1Loss,
    "mae": nn.L1Loss,
    "mse": nn.MSELoss,
    "multi_margin": nn.MultiMarginLoss,
    "nll": nn.NLLLoss,
    "poisson_nll": nn.PoissonNLLLoss,
    "smooth_l1": nn.SmoothL1Loss,
    "soft_margin": nn.SoftMarginLoss,
}


def activation(name: str, **options: Any) -> nn.Module:
    """An element-wise activation by its name.

    Args:
        name: "relu", "tanh", "gelu", "silu" (or "swish"), "leaky_relu", ...; see ``shoal.nn.ACTIVATIONS``.
        options: Keywords of its class, such as ``negative_slope`` of ``nn.LeakyReLU``.

    Raises:
        UsageError: If the name or a keyword is unknown.

    Example:
        >>> activation("leaky_relu", negative_slope=0.2)
        LeakyReLU(negative_slope=0.2)
    """
    return _made("activation", ACTIVATIONS, name, options)


def loss(name: str, **options: Any) -> nn.Module:
    """A criterion by its name.

    Args:
        name: "cross_entropy", "mse", "l1" (or "mae"), "huber", "bce_with_logits", ...; see ``shoal.nn.LOSSES``.
        options: Keywords of its class, such as ``label_smoothing`` of ``nn.CrossEntropyLoss``.

    Raises:
        UsageError: If the name or a keyword is unknown.

    Example:
        >>> loss("cross_entropy", label_smoothing=0.1)
        CrossEntropyLoss()
    """
    return _made("loss", LOSSES, name, options)


def optimizer(
    parameters: nn.Module | Iterable[Any], name: str = "adamw", *, lr: float = 1e-3, **options: Any
) -> optim.Optimizer:
    """An optimizer by its name.

    Args:
        parameters: A model, or what ``torch.optim`` takes: its parameters, or groups of them.
        name: "sgd", "momentum" (SGD with momentum 0.9), "nesterov" (the same, Nesterov's form), "adam", "adamw",
            "amsgrad", "rmsprop", ...; see ``shoal.nn.OPTIMIZERS``.
        lr: Learning rate, greater than 0.
        options: Further keywords of its class, such as ``weight_decay``. They win over what the name says.

    Raises:
        UsageError: If the name or a keyword is unknown, or a number is out of its range.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer(model, "momentum", lr=0.1).param_groups[0]["momentum"]
        0.9
    """
    held = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    cls, preset = _known("optimizer", OPTIMIZERS, name)
    _check_keywords("optimizer", name, cls, options, skip=("params",))
    make: Callable[..., optim.Optimizer] = cls
    try:
        return make(held, **{"lr": lr, **preset, **options})
    except ValueError as error:  # torch's own checks of ranges; its message names the value
        raise UsageError(f"optimizer {name!r}: {error}.") from error


def norm(name: str | None, width: int, *, dims: int = 0) -> nn.Module | None:
    """A normalisation over `width` features, or over channels of `dims`-dimensional maps; None for None."""
    if name is None:
        return None
    rows: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm1d,
        "layer": nn.LayerNorm,
        "rms": nn.RMSNorm,
    }
    maps: dict[str, Callable[[int], nn.Module]] = {
        "batch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[max(dims, 1) - 1],
        "group": lambda channels: nn.GroupNorm(_groups(channels), channels),
        "instance": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[max(dims, 1) - 1],
        "layer": lambda channels: nn.GroupNorm(1, channels),
    }
    made: nn.Module = _known("norm", maps if dims else rows, name)(width)
    return made


def _groups(channels: int) -> int:
    """The largest number of groups, 8 at most, that divides the channels."""
    return next(g for g in range(min(8, channels), 0, -1) if channels % g == 0)


def _known(what: str, table: Mapping[str, Any], name: object) -> Any:
    if not isinstance(name, str) or name not in table:
        raise UsageError(f"unknown {what} {name!r}.{did_you_mean(str(name), table)}")
    return table[name]


def _made(what: str, table: Mapping[str, type[nn.Module]], name: str, options: Mapping[str, Any]) -> nn.Module:
    cls = _known(what, table, name)
    _check_keywords(what, name, cls, options)
    made: nn.Module = cls(**options)
    return made


def _check_keywords(
    what: str, name: str, cls: type, options: Mapping[str, Any], skip: Iterable[str] = ("self",)
) -> None:
    known = [key for key in inspect.signature(cls).parameters if key not in ("args", "kwargs", *skip)]
    for key in options:
        if key not in known:
            hint = did_you_mean(key, known) if known else " It takes none."
            raise UsageError(f"{what} {name!r} ({cls.__module__}.{cls.__qualname__}) has no keyword {key!r}.{hint}")


def check_count(builder: str, **counts: object) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        UsageError: Naming the builder's argument and what came.
    """
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UsageError(f"{builder}({name}=...) must be a whole number of at least 1; got {number!r}.")


def check_dropout(builder: str, rate: object) -> None:
    """Refuse what is neither None nor a rate in [0, 1).

    Raises:
        UsageError: Saying what came.
    """
    if rate is None:
        return
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate < 1.0:
        raise UsageError(f"{builder}(dropout=...) must be None or a rate of at least 0 and below 1; got {rate!r}.")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter lies; the CPU when it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
