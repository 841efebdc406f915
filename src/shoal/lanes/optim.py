"""Optimizers whose every number is a lane's own, as families of updates.

An update is a short sequence of in-place operations on rows of flat buffers, with coefficients that were tabulated for the whole
epoch (``lanes/tables.py``): bias corrections, schedules and "not due yet" are all just numbers. Lanes of the same family stand
side by side, so a family runs on a slice and pays for its own state only.

Glossary: ``p, m, v, a`` parameters, first moment, second moment and mean gradient, (rows, P) each, or whatever else the family
keeps in their place; ``g`` gradient, (rows, P); ``c`` coefficients, K tensors of (rows, 1) or, when parameter groups differ,
(rows, P); ``d`` the gradient with its sign and L2.

What a coefficient multiplies, by family. ``DECAY`` (p, decoupled decay), ``L2`` (p, into d) and ``SIGN`` (g, into d) are the same
for all; 1 -> 2 is ``lerp``, which moves 1 by that share of the way to 2:

=============== ========== =========== ============ ========== ============ =============
family          C3         C4          C5           C6         C7           C8
=============== ========== =========== ============ ========== ============ =============
SGD             m, kept    d into m    d into p     m into p   step         -
ADAM            m -> d     v -> d^2    sqrt(v)      eps        step         -
RMS             v -> d^2   eps         m, kept      d into m   step         -
RMS_CENTERED    v, a ->    eps         m, kept      d into m   step         -
ADAM_MAX        m -> d     v -> d^2    sqrt(a)      eps        step         a, kept
RMS_MIXED       v -> d^2   eps         m, kept      d into m   step         a -> d
NADAM           m -> d     v -> d^2    sqrt(v)      eps        step by d    step by m
ADAMAX          m -> d     v, kept     abs(d)       eps        step         added to v
ADAGRAD         -          d^2 into v  -            eps        step         -
ADADELTA        v, a ->    eps         -            -          step         -
RPROP           eta minus  eta plus    least step   largest    step         -
SCHEDULE_FREE   p -> m     v -> d^2    sqrt(v)      eps        d into p     d into m
PRODIGY, DADAPT m, kept    v, kept     eps          p, decay   step         -
=============== ========== =========== ============ ========== ============ =============

References: torch.optim of torch 2.13, whose single-tensor algorithms are followed step by step; Kingma and Ba 2015, algorithms 1
and 2; Loshchilov and Hutter 2019, algorithm 2; Reddi et al. 2018, algorithm 2; Dozat 2016, algorithm 8; Duchi et al. 2011;
Zeiler 2012, algorithm 1; Riedmiller and Braun 1993; Sutskever et al. 2013 as torch states it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

K = 9
DECAY, L2, C3, C4, C5, C6, C7, SIGN, C8 = range(K)


class Family(enum.IntEnum):
    """Which sequence of operations updates a lane; several of torch's classes may share one.

    SGD and ASGD are ``SGD``. Adam, AdamW, RAdam and RMSprop without momentum are ``ADAM``, unless some group has ``amsgrad``, which
    makes them ``ADAM_MAX``. ``RMS_MIXED`` is RMSprop whose groups differ in ``centered``. The two optimizers of
    ``shoal.optim`` that are schedule-free are ``SCHEDULE_FREE``. ``PRODIGY`` and ``DADAPT`` make their own learning rate
    (``lanes/distance.py``).
    """

    SGD = 0
    ADAM = 1
    RMS = 2
    RMS_CENTERED = 3
    ADAM_MAX = 4
    RMS_MIXED = 5
    NADAM = 6
    ADAMAX = 7
    ADAGRAD = 8
    ADADELTA = 9
    RPROP = 10
    SCHEDULE_FREE = 11
    PRODIGY = 12
    DADAPT = 13


_INFINITE = float("inf")
_IDLE: dict[Family, tuple[float, ...]] = {
    # What leaves a lane as it is: the tick is not the last of its batch, the epoch is over, or nobody is in it.
    Family.SGD: (1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    Family.ADAM: (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0),
    Family.RMS: (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0),
    Family.RMS_CENTERED: (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0),
    Family.ADAM_MAX: (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0),
    Family.RMS_MIXED: (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0),
    Family.NADAM: (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0),
    Family.ADAMAX: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0),
    Family.ADAGRAD: (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0),
    Family.ADADELTA: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    Family.RPROP: (1.0, 0.0, 1.0, 1.0, -_INFINITE, _INFINITE, 0.0, 1.0, 0.0),
    Family.SCHEDULE_FREE: (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0),
    Family.PRODIGY: (1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0),
    Family.DADAPT: (1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0),
}


def idle(family: Family) -> NDArray[np.float64]:
    """Coefficients (K,) under which an update changes nothing."""
    return np.array(_IDLE[family])


def uses(table: NDArray[np.float64]) -> frozenset[int]:
    """Which optional operations a table (..., K) needs; leaving out one that multiplies by 1 or adds 0 changes no bit."""
    needed = {SIGN: bool((table[..., SIGN] != 1).any()), L2: bool(table[..., L2].any())}
    needed[DECAY] = bool((table[..., DECAY] != 1).any())
    needed[C5] = bool(table[..., C5].any())
    return frozenset(k for k, on in needed.items() if on)


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
    if C5 in uses:  # some lane is Nesterov, or has paused its momentum
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


def _adam_max(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    _gradient(p, g, c, uses)
    m.lerp_(g, c[C3])
    v.lerp_(g * g, c[C4])
    torch.maximum(a.mul_(c[C8]), v, out=a)  # the largest v so far; a group without amsgrad forgets it, and has v itself
    denominator = torch.addcmul(c[C6], a.sqrt(), c[C5])
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


def _rms_mixed(
    p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]
) -> None:
    _gradient(p, g, c, uses)
    v.lerp_(g * g, c[C3])
    a.lerp_(g, c[C8])  # stays 0 in a group that is not centred
    m.mul_(c[C5]).addcdiv_(g * c[C6], (v - a * a).sqrt() + c[C4])
    p.addcmul_(m, c[C7])


def _nadam(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    _gradient(p, g, c, uses)
    m.lerp_(g, c[C3])
    v.lerp_(g * g, c[C4])
    denominator = torch.addcmul(c[C6], v.sqrt(), c[C5])
    p.addcdiv_((g * c[C7]).addcmul_(m, c[C8]), denominator)


def _adamax(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    """v is the decayed largest absolute gradient (torch's ``exp_inf``)."""
    _gradient(p, g, c, uses)
    m.lerp_(g, c[C3])
    torch.maximum(v.mul_(c[C4]), torch.addcmul(c[C6], g.abs(), c[C5]), out=v)
    p.addcdiv_(m * c[C7], v + c[C8])  # an idle lane adds 1, so that a fresh one does not divide by zero


def _adagrad(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    """v is the sum of squared gradients."""
    _gradient(p, g, c, uses)
    v.addcmul_(g * g, c[C4])
    p.addcdiv_(g * c[C7], v.sqrt() + c[C6])


def _adadelta(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    """v and a are the decayed squares of gradients and of updates (torch's ``square_avg`` and ``acc_delta``)."""
    _gradient(p, g, c, uses)
    v.lerp_(g * g, c[C3])
    delta = (a + c[C4]).sqrt_().div_((v + c[C4]).sqrt_()).mul_(g)
    a.lerp_(delta * delta, c[C3])
    p.addcmul_(delta, c[C7])


def _rprop(p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]) -> None:
    """m and v are the last gradient and each element's own step size (torch's ``prev`` and ``step_size``)."""
    _gradient(p, g, c, uses)
    turn = g * m
    turned = turn < 0
    factor = torch.where(turned, c[C3], torch.where(turn > 0, c[C4], 1.0))
    torch.clamp(v.mul_(factor), c[C5], c[C6], out=v)
    d = torch.where(turned, 0.0, g)  # after a change of sign an element waits for one update
    p.addcmul_(d.sign() * c[C7], v)
    m.copy_(torch.where(c[C7] != 0, d, m))


def _schedule_free(
    p: Tensor, m: Tensor, v: Tensor, a: Tensor, g: Tensor, c: Sequence[Tensor], uses: frozenset[int]
) -> None:
    """m are the iterates, p the point at which gradients are taken; decay is added to the quotient."""
    v.lerp_(g * g, c[C4])
    d = (g / torch.addcmul(c[C6], v.sqrt(), c[C5])).addcmul_(p, c[L2])
    p.lerp_(m, c[C3]).addcmul_(d, c[C7])
    m.addcmul_(d, c[C8])


UPDATES = {
    Family.SGD: _sgd,
    Family.ADAM: _adam,
    Family.RMS: _rms,
    Family.RMS_CENTERED: _rms_centered,
    Family.ADAM_MAX: _adam_max,
    Family.RMS_MIXED: _rms_mixed,
    Family.NADAM: _nadam,
    Family.ADAMAX: _adamax,
    Family.ADAGRAD: _adagrad,
    Family.ADADELTA: _adadelta,
    Family.RPROP: _rprop,
    Family.SCHEDULE_FREE: _schedule_free,
}
