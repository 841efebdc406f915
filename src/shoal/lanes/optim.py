"""Optimizers whose every number is a lane's own: SGD (momentum, Nesterov), RMSprop, Adam, AdamW.

An update is a short sequence of in-place operations on rows of flat buffers, with coefficients that were tabulated for the whole
epoch: bias corrections, schedules and "not due yet" are all just numbers. Lanes of the same family stand side by side, so a
family runs on a slice and pays for its own state only.

Glossary: ``p, m, v, a`` parameters, first moment, second moment and mean gradient, (rows, P) each; ``g`` gradient, (rows, P);
``c`` coefficients, K tensors of (rows, 1) or, when parameter groups differ, (rows, P).

References: torch.optim of torch 2.13, whose single-tensor algorithms are followed step by step; Kingma and Ba 2015, algorithm 1;
Loshchilov and Hutter 2019, algorithm 2; Sutskever et al. 2013 as torch states it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal.errors import FuseError

K = 8
DECAY, L2, C3, C4, C5, C6, C7, SIGN = range(K)


_CLASSES = (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW)


class Family(enum.IntEnum):
    """Which sequence of operations updates a lane. RMSprop without momentum is Adam with b1 = 0 and no bias correction."""

    SGD = 0
    ADAM = 1
    RMS = 2
    RMS_CENTERED = 3


_CONSTANT: dict[Family, tuple[float, ...]] = {
    # What leaves a lane as it is: the tick is not the last of its batch, the epoch is over, or nobody is in it.
    Family.SGD: (1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    Family.ADAM: (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0),
    Family.RMS: (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0),
    Family.RMS_CENTERED: (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0),
}


def idle(family: Family) -> NDArray[np.float64]:
    """Coefficients (K,) under which an update changes nothing."""
    return np.array(_CONSTANT[family])


def family_of(optimizer: torch.optim.Optimizer) -> Family:
    """The family of an optimizer.

    Raises:
        FuseError: If the class or an option has no lane form; the trial then trains solo.
    """
    cls, groups = type(optimizer), optimizer.param_groups
    if optimizer.state:
        raise FuseError(f"the {cls.__name__} optimizer already has state")
    # A scheduler wraps ``step`` of its optimizer to watch the order of calls; any other replacement is the user's own code.
    patched = "step" in vars(optimizer) and not hasattr(optimizer.step, "_wrapped_by_lr_sched")
    if cls not in _CLASSES or patched:
        raise FuseError(f"optimizer {cls.__module__}.{cls.__qualname__} has no lane form")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise FuseError("the optimizer has step hooks")
    for group in groups:
        for option in ("amsgrad", "differentiable"):
            if group.get(option):
                raise FuseError(f"{cls.__name__}({option}=True) has no lane form")
    if cls is torch.optim.SGD:
        return Family.SGD
    if cls is torch.optim.RMSprop:
        if any(g["centered"] for g in groups):
            if not all(g["centered"] for g in groups):
                raise FuseError("RMSprop groups that differ in centered have no lane form")
            return Family.RMS_CENTERED
        return Family.RMS if any(g["momentum"] for g in groups) else Family.ADAM
    return Family.ADAM


def coefficients(
    optimizer: torch.optim.Optimizer, family: Family, group: Mapping[str, Any], steps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients of one parameter group at each update: steps (U,), counted from 1 -> (U, K), in float64."""
    out = np.zeros((len(steps), K))
    lr, decay = float(group["lr"]), float(group["weight_decay"])
    out[:, SIGN] = -1.0 if group["maximize"] else 1.0
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
    out[:, DECAY] = 1.0 - lr * decay if decoupled else 1.0
    out[:, L2] = 0.0 if decoupled else decay
    if isinstance(optimizer, torch.optim.SGD):
        momentum = float(group["momentum"])
        out[:, C3] = momentum
        # torch starts the momentum buffer at the first gradient itself, whatever the dampening.
        out[:, C4] = np.where((steps == 1) | (momentum == 0.0), 1.0, 1.0 - float(group["dampening"]))
        out[:, C5] = 1.0 if group["nesterov"] else 0.0
        out[:, C6] = momentum if group["nesterov"] else 1.0
        out[:, C7] = -lr
    elif isinstance(optimizer, torch.optim.RMSprop):
        alpha, eps = float(group["alpha"]), float(group["eps"])
        if family is Family.ADAM:
            out[:, C3], out[:, C4], out[:, C5], out[:, C6], out[:, C7] = 1.0, 1.0 - alpha, 1.0, eps, -lr
        else:
            out[:, C3], out[:, C4], out[:, C5], out[:, C6], out[:, C7] = (
                1.0 - alpha,
                eps,
                float(group["momentum"]),
                1.0,
                -lr,
            )
    else:
        b1, b2 = (float(b) for b in group["betas"])
        out[:, C3], out[:, C4] = 1.0 - b1, 1.0 - b2
        out[:, C5] = 1.0 / np.sqrt(1.0 - b2**steps)
        out[:, C6] = float(group["eps"])
        out[:, C7] = -lr / (1.0 - b1**steps)
    return out


def _gradient(p: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    """g becomes what torch calls the gradient: sign and L2 applied; p is decayed when decay is decoupled."""
    if SIGN in uses:
        g.mul_(c[SIGN])
    if L2 in uses:
        g.addcmul_(p, c[L2])
    if DECAY in uses:
        p.mul_(c[DECAY])


def _sgd(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    _gradient(p, g, c, uses)
    m.mul_(c[C3]).addcmul_(g, c[C4])
    if C5 in uses:  # some lane is Nesterov
        d = g * c[C5]
        p.addcmul_(d.addcmul_(m, c[C6]), c[C7])
    else:
        p.addcmul_(m, c[C7])


def _adam(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    _gradient(p, g, c, uses)
    m.lerp_(g, c[C3])
    v.lerp_(g * g, c[C4])  # not in place: a lane in the middle of its batch goes on adding to g
    denominator = torch.addcmul(c[C6], v.sqrt(), c[C5])
    p.addcdiv_(m * c[C7], denominator)


def _rms(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    _gradient(p, g, c, uses)
    v.lerp_(g * g, c[C3])
    m.mul_(c[C5]).addcdiv_(g * c[C6], v.sqrt() + c[C4])
    p.addcmul_(m, c[C7])


def _rms_centered(
    p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]
) -> None:
    _gradient(p, g, c, uses)
    v.lerp_(g * g, c[C3])
    a.lerp_(g, c[C3])
    m.mul_(c[C5]).addcdiv_(g * c[C6], (v - a * a).sqrt() + c[C4])
    p.addcmul_(m, c[C7])


UPDATES = {Family.SGD: _sgd, Family.ADAM: _adam, Family.RMS: _rms, Family.RMS_CENTERED: _rms_centered}


def uses(table: NDArray[np.float64]) -> frozenset[int]:
    """Which optional operations a table (..., K) needs; leaving out one that multiplies by 1 or adds 0 changes no bit."""
    needed = {SIGN: bool((table[..., SIGN] != 1).any()), L2: bool(table[..., L2].any())}
    needed[DECAY] = bool((table[..., DECAY] != 1).any())
    needed[C5] = bool(table[..., C5].any())
    return frozenset(k for k, on in needed.items() if on)
