"""Checks of the numbers that optimizers take."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from shoal.errors import UsageError

# name -> (what must hold, in words; the check)
_RULES: Mapping[str, tuple[str, Any]] = {
    "lr": ("a number of at least 0", lambda x: x >= 0),
    "eps": ("a number of at least 0", lambda x: x >= 0),
    "weight_decay": ("a number of at least 0", lambda x: x >= 0),
    "momentum": ("a number between 0 and 1, both left out", lambda x: 0 < x < 1),
    "warmup_steps": ("a number of at least 0", lambda x: x >= 0),
    "r": ("a number of at least 0", lambda x: x >= 0),
    "weight_lr_power": ("a number of at least 0", lambda x: x >= 0),
    "d0": ("a number above 0", lambda x: x > 0),
    "d_coef": ("a number above 0", lambda x: x > 0),
    "growth_rate": ("a number of at least 1", lambda x: x >= 1),
}


def check_numbers(optimizer: str, values: Mapping[str, Any], *, first_beta_above_0: bool = False) -> None:
    """Refuse a number out of its range.

    Raises:
        UsageError: Naming the keyword and what came.
    """
    for name, (rule, holds) in _RULES.items():
        if name in values and not (_is_number(values[name]) and holds(values[name])):
            raise UsageError(f"{optimizer}({name}=...) must be {rule}; got {values[name]!r}.")
    if "betas" in values:
        pair = values["betas"]
        good = isinstance(pair, tuple | list) and len(pair) == 2 and all(_is_number(b) and 0 <= b < 1 for b in pair)
        if not good or (first_beta_above_0 and pair[0] == 0):
            rule = "two numbers of at least 0 and below 1" + (", the first above 0" if first_beta_above_0 else "")
            raise UsageError(f"{optimizer}(betas=...) must be {rule}; got {pair!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
