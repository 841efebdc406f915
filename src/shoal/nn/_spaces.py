"""Default search spaces of the builders, each of whose parts can be replaced, narrowed or fixed.

A *knob* is one named part of a space: a list is a choice among its items, a `Range` is a range, a pair of numbers for a
knob that is a range by default is other bounds of it, and anything else is a fixed value, about which no sampler is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from shoal.errors import UsageError, did_you_mean
from shoal.nn._cnn import cnn
from shoal.nn._mlp import mlp
from shoal.nn._rnn import rnn
from shoal.nn._transformer import transformer


@dataclass(frozen=True, slots=True)
class Range:
    """A range to search.

    Args:
        low, high: Bounds, both included. Whole numbers give whole numbers.
        log: Whether to search on a logarithmic scale.
        step: Distance between neighbours, or None.

    Raises:
        UsageError: If `low` is above `high`, or `log` meets a bound that is not above 0, or a `step`.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise UsageError(f"a range must go up; got {self.low!r} to {self.high!r}.")
        if self.log and not self.low > 0:
            raise UsageError(f"a range on a logarithmic scale must start above 0; got {self.low!r} to {self.high!r}.")
        if self.log and self.step is not None:
            raise UsageError("a range is either on a logarithmic scale or has a step, not both.")


@dataclass(frozen=True, slots=True)
class Choice:
    """What one trial was given: keywords for the builder, for ``shoal.nn.optimizer``, and the batch size."""

    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32


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
            is fixed.

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
    for key in knobs:
        if key not in defaults and key not in more:
            raise UsageError(f"{name}_space has no part {key!r}.{did_you_mean(key, [*defaults, *more])}")
    values = {
        key: _value(trial, key, knobs.get(key, defaults.get(key)), defaults.get(key))
        for key in [*defaults, *(key for key in more if key in knobs)]
    }
    return Choice(
        model={key: value for key, value in values.items() if key not in _TRAINING},
        optimizer={"name": values["optimizer"], "lr": values["lr"], "weight_decay": values["weight_decay"]},
        batch_size=values["batch_size"],
    )


def _value(trial: Any, name: str, knob: Any, default: Any) -> Any:
    """The value of one knob: suggested if it is a choice or a range, itself if it is fixed."""
    if isinstance(knob, tuple) and isinstance(default, Range):
        if len(knob) != 2 or not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in knob):
            raise UsageError(f"{name} as a pair gives the bounds of its range, (low, high); got {knob!r}.")
        knob = replace(default, low=knob[0], high=knob[1])
    if isinstance(knob, list):
        return _among(trial, name, knob)
    if not isinstance(knob, Range):
        return knob
    if isinstance(knob.low, int) and isinstance(knob.high, int) and isinstance(knob.step, int | None):
        return trial.suggest_int(name, knob.low, knob.high, step=knob.step or 1, log=knob.log)
    return trial.suggest_float(name, knob.low, knob.high, step=knob.step, log=knob.log)


def _among(trial: Any, name: str, choices: list[Any]) -> Any:
    if not choices:
        raise UsageError(f"{name}=[] leaves nothing to choose from.")
    if len(choices) == 1:
        return choices[0]
    if all(isinstance(choice, str | int | float | bool | None) for choice in choices):
        return trial.suggest_categorical(name, choices)
    # A study file holds plain values only, so a choice among shapes is searched by how it reads.
    by_text = {str(choice): choice for choice in choices}
    return by_text[trial.suggest_categorical(name, list(by_text))]
