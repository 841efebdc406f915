"""Adam with a learning rate that is an estimate of the distance to the solution: D-Adaptation and Prodigy.

Glossary, as in the papers: ``d`` the estimate, one number for all parameters of a model; ``s`` the sum of weighted gradients;
``p0`` where training started.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from shoal.errors import UsageError
from shoal.optim._checks import check_numbers


class Distance(Optimizer):
    """What both have in common; use one of its subclasses."""

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        d0 = defaults["d0"]
        # What is one for the whole model is kept in the first group.
        super().__init__(params, {**defaults, "updates": 0, "d": d0, "d_max": d0, "numerator": 0.0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose numbers are checked as those of the constructor.

        Raises:
            UsageError: Also if its learning rate, or anything that the estimate depends on, differs from the other groups'.
        """
        name, merged = type(self).__name__, {**self.defaults, **param_group}
        check_numbers(name, merged)
        for key in ("lr", "d0", "d_coef", "growth_rate", "use_bias_correction", "safeguard_warmup"):
            if self.param_groups and key in merged and merged[key] != self.param_groups[0][key]:
                raise UsageError(
                    f"{name} estimates one distance for all parameters: its groups must agree in {key}, got "
                    f"{self.param_groups[0][key]!r} and {merged[key]!r}."
                )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lead = self.param_groups[0]
        lead["updates"] += 1
        d, rate = lead["d"], lead["d"] * lead["lr"] * correction(lead, lead["updates"])
        held = [(g, p, p.grad) for g in self.param_groups for p in g["params"] if p.grad is not None]
        gained, length = 0.0, 0.0
        for group, p, grad in held:
            if group["weight_decay"] and not group["decouple"]:
                grad = grad.add(p, alpha=group["weight_decay"])
            state = self.state[p]
            if not state:
                state.update(
                    start=p.clone(), s=torch.zeros_like(p), first=torch.zeros_like(p), square=torch.zeros_like(p)
                )
            new = self._gather(p, grad, state, group, d, rate)
            gained, length = gained + new[0], length + new[1]
        if length == 0:  # no gradient yet, and nothing to go by
            return loss
        self._estimate(lead, gained, length)
        for group, p, _ in held:
            state = self.state[p]
            if group["weight_decay"] and group["decouple"]:
                p.mul_(1.0 - group["weight_decay"] * rate)
            self._move(p, state, group, lead["d"], rate)
        return loss

    def _gather(
        self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], d: float, rate: float
    ) -> tuple[float, float]:
        """Take a gradient in: (its part of the numerator, its part of the length of s)."""
        raise NotImplementedError

    def _estimate(self, lead: dict[str, Any], gained: float, length: float) -> None:
        raise NotImplementedError

    def _move(self, p: Tensor, state: dict[str, Tensor], group: dict[str, Any], d: float, rate: float) -> None:
        raise NotImplementedError


def correction(group: dict[str, Any], step: int) -> float:
    """Adam's bias correction, where it is asked for."""
    if not group["use_bias_correction"]:
        return 1.0
    b1, b2 = group["betas"]
    return float(math.sqrt(1.0 - b2**step) / (1.0 - b1**step))


@final
class Prodigy(Distance):
    """Adam whose learning rate is an estimate of the distance to the solution, which only grows.

    ``d`` is the largest quotient so far of ``sum (d/d0) rate g.(p0 - p)`` and ``|sum (d/d0) rate g|_1``, both with a decay of
    ``sqrt(b2)``; the step is that of Adam on ``d g`` with the learning rate ``rate = d lr``.

    Args:
        params: As for torch's optimizers; all groups share one learning rate and one estimate.
        lr: A factor on the estimate; leave it at 1.
        betas: Of Adam's two moments.
        eps: Added to the denominator, times d.
        weight_decay: Strength of the decay.
        decouple: Decay as in AdamW; otherwise as an L2 penalty.
        use_bias_correction: Whether moments are corrected for their start at zero.
        safeguard_warmup: Leave the schedule's learning rate out of ``s``; for schedules that warm up.
        d0: The first estimate; it should be too small.
        d_coef: A factor on the estimate: what to change if anything.
        growth_rate: The estimate grows by this factor at most, per update.

    Raises:
        UsageError: If a number is out of its range.

    Example:
        >>> Prodigy(torch.nn.Linear(2, 1).parameters()).param_groups[0]["d"]
        1e-06

    References:
        Mishchenko and Defazio 2023, Prodigy: an expeditiously adaptive parameter-free learner, algorithm 4.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decouple": decouple}
        estimate = {"d0": d0, "d_coef": d_coef, "growth_rate": growth_rate, "safeguard_warmup": safeguard_warmup}
        super().__init__(params, {**adam, **estimate, "use_bias_correction": use_bias_correction})

    def _gather(
        self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], d: float, rate: float
    ) -> tuple[float, float]:
        b1, b2 = group["betas"]
        scale = d / group["d0"]
        state["first"].mul_(b1).add_(grad, alpha=d * (1.0 - b1))
        state["square"].mul_(b2).addcmul_(grad, grad, value=d * d * (1.0 - b2))
        state["s"].mul_(math.sqrt(b2)).add_(grad, alpha=scale * (d if group["safeguard_warmup"] else rate))
        return scale * rate * float((grad * (state["start"] - p)).sum()), float(state["s"].abs().sum())

    def _estimate(self, lead: dict[str, Any], gained: float, length: float) -> None:
        lead["numerator"] = math.sqrt(lead["betas"][1]) * lead["numerator"] + gained
        found = lead["d_coef"] * lead["numerator"] / length
        d = max(lead["d"], found) if lead["d"] == lead["d0"] else lead["d"]
        lead["d_max"] = max(lead["d_max"], found)
        lead["d"] = min(lead["d_max"], d * lead["growth_rate"])

    def _move(self, p: Tensor, state: dict[str, Tensor], group: dict[str, Any], d: float, rate: float) -> None:
        p.addcdiv_(state["first"], state["square"].sqrt().add_(d * group["eps"]), value=-rate)


@final
class DAdaptAdam(Distance):
    """Adam whose learning rate is D-Adaptation's estimate of the distance to the solution.

    ``d`` is the largest quotient so far of the running means of ``rate g.s / (sqrt(v) + eps)`` and of ``|s|_1``; the step is that
    of Adam with the learning rate ``rate = d lr``.

    Args:
        params: As for torch's optimizers; all groups share one learning rate and one estimate.
        lr: A factor on the estimate; leave it at 1.
        betas: Of Adam's two moments.
        eps: Added to the denominator.
        weight_decay: Strength of the decay.
        decouple: Decay as in AdamW; otherwise as an L2 penalty.
        use_bias_correction: Whether moments are corrected for their start at zero.
        d0: The first estimate; it should be too small.
        growth_rate: The estimate grows by this factor at most, per update.

    Raises:
        UsageError: If a number is out of its range.

    Example:
        >>> DAdaptAdam(torch.nn.Linear(2, 1).parameters()).param_groups[0]["lr"]
        1.0

    References:
        Defazio and Mishchenko 2023, Learning-rate-free learning by D-Adaptation, algorithm 5.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decouple": decouple}
        estimate = {"d0": d0, "growth_rate": growth_rate}
        super().__init__(params, {**adam, **estimate, "use_bias_correction": use_bias_correction})

    def _gather(
        self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any], d: float, rate: float
    ) -> tuple[float, float]:
        b1, b2 = group["betas"]
        kept = math.sqrt(b2)
        gained = rate * float((grad * state["s"] / state["square"].sqrt().add_(group["eps"])).sum())
        state["first"].mul_(b1).add_(grad, alpha=rate * (1.0 - b1))
        state["square"].mul_(b2).addcmul_(grad, grad, value=1.0 - b2)
        state["s"].mul_(kept).add_(grad, alpha=rate * (1.0 - kept))
        return gained, float(state["s"].abs().sum())

    def _estimate(self, lead: dict[str, Any], gained: float, length: float) -> None:
        kept = math.sqrt(lead["betas"][1])
        lead["numerator"] = kept * lead["numerator"] + (1.0 - kept) * gained
        found = lead["numerator"] / ((1.0 - kept) * length)
        lead["d"] = max(lead["d"], min(found, lead["d"] * lead["growth_rate"]))

    def _move(self, p: Tensor, state: dict[str, Tensor], group: dict[str, Any], d: float, rate: float) -> None:
        p.addcdiv_(state["first"], state["square"].sqrt().add_(group["eps"]), value=-1.0)
