"""Schedule-free SGD and AdamW: an average of iterates in the place of a schedule.

Glossary, as in the paper: ``z`` the iterates of the base optimizer, ``x`` their weighted average, which is what is evaluated, and
``y = (1 - b) z + b x``, where gradients are taken. Parameters hold ``y`` in training and ``x`` in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from shoal.errors import StudyError
from shoal.optim._checks import check_numbers


class ScheduleFree(Optimizer):
    """What both have in common; use one of its subclasses."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        own = {"updates": 0, "weight_sum": 0.0, "lr_max": 0.0, "averaged": False}
        super().__init__(params, {**defaults, **own})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose numbers are checked as those of the constructor."""
        check_numbers(type(self).__name__, {**self.defaults, **param_group}, first_beta_above_0=True)
        super().add_param_group(param_group)

    @torch.no_grad()
    def eval(self) -> None:
        """Let parameters hold the average, for evaluation and for saving. A second call does nothing."""
        self._swap(averaged=True)

    @torch.no_grad()
    def train(self) -> None:
        """Let parameters hold the point at which gradients are taken, as at the start. A second call does nothing."""
        self._swap(averaged=False)

    def _swap(self, *, averaged: bool) -> None:
        for group in self.param_groups:
            if group["averaged"] is averaged:
                continue
            share = self.share(group, averaged=averaged)
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], share)
            group["averaged"] = averaged

    @staticmethod
    def share(group: dict[str, Any], *, averaged: bool) -> float:
        """How far to go from parameters towards ``z`` to get the average, or to get back from it."""
        b = interpolation(group)
        return 1.0 - 1.0 / b if averaged else 1.0 - b

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update.

        Raises:
            StudyError: In evaluation mode.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["averaged"]:
                raise StudyError(f"{type(self).__name__}.step() in evaluation mode: call train() first.")
            group["updates"] += 1
            lr, share = weighted(group, group["updates"])
            b = interpolation(group)
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state["z"] = p.clone()
                d = self._direction(p, p.grad, state, group).add(p, alpha=group["weight_decay"])
                p.lerp_(state["z"], share).add_(d, alpha=lr * (b * (1.0 - share) - 1.0))
                state["z"].sub_(d, alpha=lr)
        return loss

    def _direction(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        raise NotImplementedError


def interpolation(group: dict[str, Any]) -> float:
    """``b``: how far y is from z on the way to x."""
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def weighted(carried: dict[str, Any], step: int, lr: float | None = None) -> tuple[float, float]:
    """The learning rate of an update, and the share of its iterate in the average; ``weight_sum`` and ``lr_max`` go on.

    Args:
        carried: A parameter group.
        step: Which update it is, from 1.
        lr: The learning rate, where it is not the group's own.
    """
    rate = float(carried["lr"] if lr is None else lr)
    if step <= carried["warmup_steps"]:
        rate *= step / carried["warmup_steps"]
    carried["lr_max"] = max(rate, carried["lr_max"])
    weight = step ** carried["r"] * carried["lr_max"] ** carried["weight_lr_power"]
    carried["weight_sum"] += weight
    return rate, weight / carried["weight_sum"] if carried["weight_sum"] else 0.0


@final
class SGDScheduleFree(ScheduleFree):
    """SGD whose average of iterates takes the place of a schedule.

        z += -lr (g + weight_decay y);    x = (1 - c) x + c z;    y = (1 - momentum) z + momentum x

    with ``g`` the gradient at y, and ``c`` the share of an update in the average, 1/t for a constant learning rate.

    Args:
        params: As for torch's optimizers.
        lr: Learning rate. Rates larger than for plain SGD do well.
        momentum: How far y is from z on the way to x, between 0 and 1.
        weight_decay: L2 penalty, taken at y.
        warmup_steps: Updates over which the learning rate rises from 0, linearly.
        r: Iterates count in the average with the power r of their number.
        weight_lr_power: And with this power of the largest learning rate so far.

    Raises:
        UsageError: If a number is out of its range.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SGDScheduleFree(model.parameters(), lr=0.5)
        >>> optimizer.eval()  # before evaluation; train() before the next update. Shoal calls both by itself.

    References:
        Defazio et al. 2024, The road less scheduled, algorithm of section 3.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**own, "warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power})

    def _direction(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        return grad


@final
class AdamWScheduleFree(ScheduleFree):
    """AdamW whose average of iterates takes the place of a schedule; see `SGDScheduleFree`.

    The gradient is divided by ``sqrt(v) + eps``, with ``v`` the running mean of its square,
    corrected for its start at zero; the first beta is the momentum there.

    Args:
        params: As for torch's optimizers.
        lr: Learning rate.
        betas: How far y is from z on the way to x, and how much of ``v`` is kept.
        eps: Added to the denominator.
        weight_decay: Decoupled from the quotient, taken at y.
        warmup_steps, r, weight_lr_power: As for `SGDScheduleFree`.

    Raises:
        UsageError: If a number is out of its range.

    Example:
        >>> AdamWScheduleFree(torch.nn.Linear(2, 1).parameters()).param_groups[0]["lr"]
        0.0025

    References:
        Defazio et al. 2024, The road less scheduled, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.0025,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**own, "warmup_steps": warmup_steps, "r": r, "weight_lr_power": weight_lr_power})

    def _direction(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
        square = state.setdefault("square", torch.zeros_like(p))
        square.lerp_(grad * grad, 1.0 - group["betas"][1])
        corrected: Tensor = square / (1.0 - group["betas"][1] ** group["updates"])
        return grad / corrected.sqrt_().add_(group["eps"])
