"""Default search spaces of the builders, each of whose parts can be replaced, narrowed or fixed.

What a part may be given as is in `_knobs`; an extension of ``shoal.extend`` is a part too, by its name, with its fields as a dict.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.errors import UsageError, did_you_mean
from shoal.extend import Extension
from shoal.nn._cnn import cnn
from shoal.nn._extensions import extension, extensions
from shoal.nn._knobs import Range, value_of
from shoal.nn._mlp import mlp
from shoal.nn._rnn import rnn
from shoal.nn._transformer import transformer


@dataclass(frozen=True, slots=True)
class Choice:
    """What one trial was given: keywords for the builder, for ``shoal.nn.optimizer``, the batch size, and extensions."""

    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    extensions: tuple[Extension, ...] = ()


_TRAINING: Final[Mapping[str, Any]] = {
    "optimizer": ["adamw", "adam", "rmsprop", "momentum"],
    "lr": Range(1e-4, 1e-1, log=True),
    "weight_decay": Range(1e-6, 1e-2, log=True),
    "batch_size": [32, 64],
}
_ACTIVATIONS: Final = ["relu", "gelu", "silu", "tanh"]
_INITS: Final = ["default", "xavier_uniform", "kaiming_normal", "orthogonal"]

SPACES: Final[Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]]] = {
    "mlp": (
        mlp,
        {
            "width": [32, 64, 128],
            "depth": [1, 2],
            "activation": _ACTIVATIONS,
            "dropout": Range(0.0, 0.5),
            "init": _INITS,
        },
    ),
    "cnn": (
        cnn,
        {
            "channels": [8, 16],
            "depth": [2],
            "kernel": [3],
            "activation": _ACTIVATIONS,
            "dropout": Range(0.0, 0.3),
            "init": _INITS,
        },
    ),
    "rnn": (
        rnn,
        {"kind": ["gru", "lstm"], "width": [32, 64], "depth": [1], "dropout": Range(0.0, 0.5), "init": _INITS[:2]},
    ),
    "transformer": (
        transformer,
        {"width": [32, 64], "depth": [1, 2], "dropout": Range(0.0, 0.3), "init": ["default"]},
    ),
}


def mlp_space(trial: Any, **knobs: Any) -> Choice:
    """Suggest keywords of ``shoal.nn.mlp``, its optimizer and the batch size.

    By default: width 32, 64 or 128; depth 1 or 2; activation relu, gelu, silu or tanh; dropout 0 to 0.5; init default,
    xavier_uniform, kaiming_normal or orthogonal; optimizer adamw, adam, rmsprop or momentum; lr 1e-4 to 1e-1 and
    weight_decay 1e-6 to 1e-2, both logarithmic; batch_size 32 or 64.

    Args:
        trial: What ``define`` was given.
        knobs: Parts of the space, by these names or those of any other keyword of the builder. A list is a choice, a
            ``shoal.nn.Range`` a range, a pair of numbers other bounds where the default is a range, and anything else
            is fixed. The name of an extension of ``shoal.extend`` with its fields as a dict adds it: ``LearningRate={"on":
            [True, False]}``.

    Raises:
        UsageError: If a name is unknown, or what came for it is no choice, range or value.

    Example:
        >>> import optuna
        >>> trial = optuna.trial.FixedTrial({"width": 32, "lr": 0.01, "weight_decay": 0.001})
        >>> pick = mlp_space(trial, width=[32, 256], depth=3, activation="gelu", dropout=0.1, init="default", lr=(1e-3, 1e-1),
        ...                  optimizer="adam", batch_size=32)
        >>> pick.model, pick.optimizer["lr"]
        ({'width': 32, 'depth': 3, 'activation': 'gelu', 'dropout': 0.1, 'init': 'default'}, 0.01)
    """
    return _choose(trial, "mlp", knobs)


def cnn_space(trial: Any, **knobs: Any) -> Choice:
    """Suggest keywords of ``shoal.nn.cnn``, its optimizer and the batch size.

    By default: channels 8 or 16; depth 2; kernel 3; activation relu, gelu, silu or tanh; dropout 0 to 0.3; init, optimizer,
    lr, weight_decay and batch_size as for ``mlp_space``, whose arguments and errors are the same.
    """
    return _choose(trial, "cnn", knobs)


def rnn_space(trial: Any, **knobs: Any) -> Choice:
    """Suggest keywords of ``shoal.nn.rnn``, its optimizer and the batch size.

    By default: kind gru or lstm; width 32 or 64; depth 1; dropout 0 to 0.5; init default or xavier_uniform; optimizer, lr,
    weight_decay and batch_size as for ``mlp_space``, whose arguments and errors are the same.
    """
    return _choose(trial, "rnn", knobs)


def transformer_space(trial: Any, **knobs: Any) -> Choice:
    """Suggest keywords of ``shoal.nn.transformer``, its optimizer and the batch size.

    By default: width 32 or 64; depth 1 or 2; dropout 0 to 0.3; init default; optimizer, weight_decay and batch_size as for
    ``mlp_space``, whose arguments and errors are the same; lr 1e-4 to 1e-2.
    """
    return _choose(trial, "transformer", {"lr": Range(1e-4, 1e-2, log=True), **knobs})


def _choose(trial: Any, name: str, knobs: Mapping[str, Any]) -> Choice:
    builder, own = SPACES[name]
    defaults = {**own, **_TRAINING}
    # What a builder needs to know of the data (n_in, in_shape, ...) has no default, and is no knob.
    signature = inspect.signature(builder).parameters
    more = [key for key, p in signature.items() if p.default is not p.empty and key not in defaults]
    moved = extensions()
    for key in knobs:
        if key not in defaults and key not in more and key not in moved:
            raise UsageError(f"{name}_space has no part {key!r}.{did_you_mean(key, [*defaults, *more, *moved])}")
    values = {
        key: value_of(trial, key, knobs.get(key, defaults.get(key)), defaults.get(key))
        for key in [*defaults, *(key for key in more if key in knobs)]
    }
    return Choice(
        model={key: value for key, value in values.items() if key not in _TRAINING},
        optimizer={"name": values["optimizer"], "lr": values["lr"], "weight_decay": values["weight_decay"]},
        batch_size=values["batch_size"],
        extensions=tuple(extension(trial, key, knob) for key, knob in knobs.items() if key in moved),
    )
