"""Optimizers over a model's parameters, by name: every class that has a lane form, with every option that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn, optim

# Those that most tests go through.
OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.1),
    "sgd wd": lambda m: optim.SGD(m.parameters(), lr=0.1, weight_decay=0.01),
    "momentum": lambda m: optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "dampening": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.8, dampening=0.5),
    "nesterov": lambda m: optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.02),
    "maximize": lambda m: optim.SGD(m.parameters(), lr=0.01, momentum=0.5, weight_decay=0.1, maximize=True),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=0.002, weight_decay=0.01),
    "rmsprop momentum": lambda m: optim.RMSprop(m.parameters(), lr=0.002, momentum=0.9, alpha=0.9),
    "rmsprop centered": lambda m: optim.RMSprop(m.parameters(), lr=0.002, centered=True, momentum=0.5),
    "rmsprop maximize": lambda m: optim.RMSprop(m.parameters(), lr=0.002, maximize=True),
    "adam": lambda m: optim.Adam(m.parameters(), lr=0.01),
    "adam l2": lambda m: optim.Adam(m.parameters(), lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    "adam decoupled": lambda m: optim.Adam(m.parameters(), lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adam maximize": lambda m: optim.Adam(m.parameters(), lr=0.01, maximize=True),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
    "groups": lambda m: optim.AdamW(
        [_group(_but_last(m)), _group(_last(m), lr=0.003, weight_decay=0.0)], lr=0.01, weight_decay=0.1
    ),
    "groups sgd": lambda m: optim.SGD(
        [
            _group(_last(m), momentum=0.0, weight_decay=0.05),
            _group(_but_last(m), lr=0.02, nesterov=True),
        ],
        lr=0.1,
        momentum=0.9,
    ),
    "groups rmsprop": lambda m: optim.RMSprop(
        [_group(_last(m), momentum=0.3), _group(_but_last(m), lr=0.001)], lr=0.002
    ),
}

# The rest: every other class that has a lane form, and every option of every class.
MORE: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd groups maximize": lambda m: optim.SGD(
        [_group(_last(m), maximize=True), _group(_but_last(m), dampening=0.3)], lr=0.01, momentum=0.5
    ),
    "asgd": lambda m: optim.ASGD(m.parameters(), lr=0.05),
    "asgd averaging": lambda m: optim.ASGD(m.parameters(), lr=0.1, lambd=0.01, alpha=0.6, t0=3, weight_decay=0.02),
    "asgd maximize": lambda m: optim.ASGD(
        [_group(_last(m), lambd=0.1), _group(_but_last(m), lr=0.003)], lr=0.01, maximize=True
    ),
    "rmsprop mixed": lambda m: optim.RMSprop(
        [_group(_last(m), centered=True, alpha=0.8), _group(_but_last(m))], lr=0.002, momentum=0.4
    ),
    "rmsprop mixed plain": lambda m: optim.RMSprop(
        [_group(_last(m)), _group(_but_last(m), centered=True)], lr=0.002, weight_decay=0.1, maximize=True
    ),
    "amsgrad": lambda m: optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
    "amsgrad l2": lambda m: optim.Adam(m.parameters(), lr=0.01, betas=(0.7, 0.8), amsgrad=True, weight_decay=0.05),
    "amsgrad adamw": lambda m: optim.AdamW(m.parameters(), lr=0.01, betas=(0.9, 0.7), amsgrad=True, maximize=True),
    "amsgrad mixed": lambda m: optim.Adam(
        [_group(_last(m), amsgrad=True), _group(_but_last(m), lr=0.003)], lr=0.01, betas=(0.8, 0.5)
    ),
    "nadam": lambda m: optim.NAdam(m.parameters(), lr=0.01),
    "nadam l2": lambda m: optim.NAdam(m.parameters(), lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, momentum_decay=0.1),
    "nadam decoupled": lambda m: optim.NAdam(m.parameters(), weight_decay=0.1, decoupled_weight_decay=True, eps=1e-5),
    "nadam maximize": lambda m: optim.NAdam(
        [_group(_last(m), betas=(0.5, 0.9)), _group(_but_last(m), lr=0.001)], lr=0.004, maximize=True
    ),
    "radam": lambda m: optim.RAdam(m.parameters(), lr=0.01),
    "radam short": lambda m: optim.RAdam(m.parameters(), lr=0.01, betas=(0.8, 0.6), weight_decay=0.1),
    "radam decoupled": lambda m: optim.RAdam(m.parameters(), weight_decay=0.1, decoupled_weight_decay=True, eps=1e-4),
    "radam maximize": lambda m: optim.RAdam(
        [_group(_last(m), betas=(0.5, 0.7)), _group(_but_last(m), lr=0.001)], lr=0.004, maximize=True
    ),
    "adamax": lambda m: optim.Adamax(m.parameters(), lr=0.01),
    "adamax l2": lambda m: optim.Adamax(m.parameters(), betas=(0.7, 0.8), eps=1e-4, weight_decay=0.1, maximize=True),
    "adamax groups": lambda m: optim.Adamax(
        [_group(_last(m), betas=(0.5, 0.7)), _group(_but_last(m), eps=0.01)], lr=0.004
    ),
    "adagrad": lambda m: optim.Adagrad(m.parameters(), lr=0.05),
    "adagrad all": lambda m: optim.Adagrad(
        m.parameters(), lr=0.05, lr_decay=0.1, weight_decay=0.02, initial_accumulator_value=0.3, eps=1e-3
    ),
    "adagrad groups": lambda m: optim.Adagrad(
        [_group(_last(m), lr_decay=0.2), _group(_but_last(m), lr=0.01)], lr=0.05, maximize=True
    ),
    "adadelta": lambda m: optim.Adadelta(m.parameters()),
    "adadelta all": lambda m: optim.Adadelta(m.parameters(), lr=0.5, rho=0.4, eps=1e-4, weight_decay=0.1),
    "adadelta groups": lambda m: optim.Adadelta(
        [_group(_last(m), rho=0.7), _group(_but_last(m), lr=0.1, eps=1e-3)], maximize=True
    ),
    "rprop": lambda m: optim.Rprop(m.parameters(), lr=0.005),
    "rprop all": lambda m: optim.Rprop(m.parameters(), lr=0.003, etas=(0.3, 1.5), step_sizes=(1e-4, 0.02)),
    "rprop groups": lambda m: optim.Rprop(
        [_group(_last(m), etas=(0.7, 1.1)), _group(_but_last(m), lr=0.001)], lr=0.002, maximize=True
    ),
}


def _last(m: nn.Module) -> list[Any]:
    return [*m.parameters()][-2:]


def _but_last(m: nn.Module) -> list[Any]:
    return [*m.parameters()][:-2]


def _group(parameters: list[Any], **options: Any) -> dict[str, Any]:
    return {"params": parameters, **options}
