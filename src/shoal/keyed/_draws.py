"""Torch's random functions by key: what each of them returns while ``KeyedRandom`` is active.

What is not here has no keyed form: a traced graph that contains it is refused, and the trial trains solo.

Glossary: ``q`` samples of a micro-batch; a draw whose first axis has ``q`` entries is made sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._random import KeyedRandom, handles

_Rate = float | Tensor


def _write(input: Tensor, out: Tensor, inplace: bool) -> Tensor:
    return input.copy_(out) if inplace else out


# --- dropout ------------------------------------------------------------------------------------------------------


@handles(F.dropout)
def _dropout(mode: KeyedRandom, input: Tensor, p: _Rate = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _write(input, mode.dropout(input, p, input.shape), inplace) if training else input


@handles(torch.dropout)
def _torch_dropout(mode: KeyedRandom, input: Tensor, p: _Rate, train: bool) -> Tensor:
    return mode.dropout(input, p, input.shape) if train else input


def _channels(input: Tensor, unbatched: int) -> tuple[int, ...]:
    """One number per sample and channel; an input of ``unbatched`` axes is one sample."""
    whole = 1 if input.dim() == unbatched else 2
    return (*input.shape[:whole], *(1 for _ in input.shape[whole:]))


def _feature_dropout(unbatched: int) -> Callable[..., Tensor]:
    def handler(
        mode: KeyedRandom, input: Tensor, p: _Rate = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        return _write(input, mode.dropout(input, p, _channels(input, unbatched)), inplace) if training else input

    return handler


handles(F.dropout1d)(_feature_dropout(2))
handles(F.dropout2d)(_feature_dropout(0))  # torch, too, takes three axes for (samples, channels, length) here
handles(F.dropout3d)(_feature_dropout(4))
handles(torch.feature_dropout)(_feature_dropout(0))

_ALPHA = 1.7580993408473766  # minus the value that SELU tends to


def _alpha(mode: KeyedRandom, input: Tensor, p: _Rate, shape: tuple[int, ...]) -> Tensor:
    """a (x keep - alpha (1 - keep) + alpha p) with a = ((1 - p)(1 + alpha^2 p))^(-1/2): keeps mean and variance of SELU."""
    p = mode.rate_of(p, input)
    a = torch.where(p < 1, ((1.0 - p) * (1.0 + _ALPHA**2 * p)).rsqrt(), 0.0).to(input.dtype)
    keep = mode.keep(p, shape, input, torch.ones_like(p))
    return a * (input * keep + _ALPHA * (keep - (1.0 - p).to(input.dtype)))


@handles(F.alpha_dropout)
def _alpha_dropout(
    mode: KeyedRandom, input: Tensor, p: _Rate = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _write(input, _alpha(mode, input, p, input.shape), inplace) if training else input


@handles(F.feature_alpha_dropout)
def _feature_alpha_dropout(
    mode: KeyedRandom, input: Tensor, p: _Rate = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _write(input, _alpha(mode, input, p, _channels(input, 0)), inplace) if training else input


@handles(torch.alpha_dropout)
def _torch_alpha_dropout(mode: KeyedRandom, input: Tensor, p: _Rate, train: bool) -> Tensor:
    return _alpha(mode, input, p, input.shape) if train else input


@handles(torch.feature_alpha_dropout)
def _torch_feature_alpha_dropout(mode: KeyedRandom, input: Tensor, p: _Rate, train: bool) -> Tensor:
    return _alpha(mode, input, p, _channels(input, 0)) if train else input


# --- tensors of random numbers ------------------------------------------------------------------------------------


def _like(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def handler(mode: KeyedRandom, input: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
        return draw(mode, input.shape, dtype or input.dtype, device or input.device)

    return handler


def _sized(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def handler(
        mode: KeyedRandom, *args: Any, size: Any = None, dtype: Any = None, device: Any = None, **_: Any
    ) -> Tensor:
        given = args if size is None else (size,)
        shape = tuple(given[0]) if len(given) == 1 and not isinstance(given[0], int) else given
        return draw(mode, shape, dtype or torch.get_default_dtype(), torch.device(device or mode.keys.device))

    return handler


handles(torch.rand_like)(_like(KeyedRandom.uniform))
handles(torch.randn_like)(_like(KeyedRandom.normal))
handles(torch.rand)(_sized(KeyedRandom.uniform))
handles(torch.randn)(_sized(KeyedRandom.normal))


def _inside(mode: KeyedRandom, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniform in (0, 1), ends left out."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return mode.uniform(shape, dtype, like.device) + 2.0**-25


def _integers(mode: KeyedRandom, low: int, high: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 in [low, high), by the high half of a product of 32 bits and the span."""
    span = high - low
    if not 0 < span <= 2**31:
        raise ValueError(f"random integers need a range of 1 to 2**31 numbers, but got [{low}, {high})")
    return ((mode.bits(shape, device).to(torch.int64) & 0xFFFFFFFF) * span >> 32) + low


@handles(torch.randint)
def _randint(
    mode: KeyedRandom,
    *args: Any,
    low: int = 0,
    high: int | None = None,
    size: Any = None,
    dtype: Any = None,
    device: Any = None,
    **_: Any,
) -> Tensor:
    rest = list(args)
    if size is None:
        size = rest.pop()
    if high is None:
        high = rest.pop()
    (low,) = rest or (low,)
    out = _integers(mode, int(low), int(high), tuple(size), torch.device(device or mode.keys.device))
    return out.to(dtype or torch.int64)


@handles(torch.randint_like)
def _randint_like(mode: KeyedRandom, input: Tensor, *bounds: int, dtype: Any = None, **named: Any) -> Tensor:
    high = named["high"] if "high" in named else bounds[-1]
    low = named.get("low", bounds[0] if len(bounds) > ("high" not in named) else 0)
    return _integers(mode, low, high, input.shape, input.device).to(dtype or input.dtype)


@handles(torch.randperm)
def _randperm(mode: KeyedRandom, n: int, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    order = torch.argsort(mode.bits((n,), torch.device(device or mode.keys.device)), stable=True)
    return order.to(dtype or torch.int64)


@handles(torch.normal)
def _normal(
    mode: KeyedRandom, mean: Any, std: Any = 1.0, size: Any = None, dtype: Any = None, device: Any = None, **_: Any
) -> Tensor:
    given = [t for t in (mean, std) if isinstance(t, Tensor)]
    shape = tuple(size) if size is not None else torch.broadcast_shapes(*(t.shape for t in given))  # type: ignore[no-untyped-call]
    dtype = dtype or (given[0].dtype if given else torch.get_default_dtype())
    place = given[0].device if given else torch.device(device or mode.keys.device)
    out: Tensor = mode.normal(shape, dtype, place) * std + mean
    return out


@handles(torch.bernoulli, Tensor.bernoulli)
def _bernoulli(mode: KeyedRandom, input: Tensor, p: _Rate | None = None, **_: Any) -> Tensor:
    u = mode.uniform(input.shape, torch.float64 if input.dtype == torch.float64 else torch.float32, input.device)
    return (u < (input if p is None else p)).to(input.dtype)


@handles(torch.multinomial, Tensor.multinomial)
def _multinomial(mode: KeyedRandom, input: Tensor, num_samples: int, replacement: bool = False, **_: Any) -> Tensor:
    """Indices with probability proportional to ``input``: the largest of log p - log(-log u), again and again or in one draw."""
    if replacement:
        shape = (*input.shape[:-1], num_samples, input.shape[-1])
        return (input.log().unsqueeze(-2) - (-_inside(mode, shape, input).log()).log()).argmax(-1)
    return (input.log() - (-_inside(mode, input.shape, input).log()).log()).topk(num_samples, -1).indices


# --- numbers written into a tensor that is there already ----------------------------------------------------------


@handles(Tensor.uniform_)
def _uniform_(mode: KeyedRandom, input: Tensor, *bounds: float, **named: Any) -> Tensor:
    low, high = (*bounds, *(0.0, 1.0)[len(bounds) :])
    low, high = named.get("from", low), named.get("to", high)
    return input.copy_(mode.uniform(input.shape, input.dtype, input.device) * (high - low) + low)


@handles(Tensor.normal_)
def _normal_(mode: KeyedRandom, input: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return input.copy_(mode.normal(input.shape, input.dtype, input.device) * std + mean)


@handles(Tensor.bernoulli_)
def _bernoulli_(mode: KeyedRandom, input: Tensor, p: _Rate = 0.5, **_: Any) -> Tensor:
    return input.copy_(mode.uniform(input.shape, torch.float32, input.device) < p)


@handles(Tensor.exponential_)
def _exponential_(mode: KeyedRandom, input: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return input.copy_(-_inside(mode, input.shape, input).log() / lambd)


# --- layers that draw ---------------------------------------------------------------------------------------------


@handles(F.rrelu)
def _rrelu(
    mode: KeyedRandom,
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    slope: float | Tensor = (lower + upper) / 2
    if training:
        slope = mode.uniform(input.shape, input.dtype, input.device) * (upper - lower) + lower
    return _write(input, torch.where(input >= 0, input, input * slope), inplace)


@handles(F.gumbel_softmax)
def _gumbel_softmax(
    mode: KeyedRandom, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    gumbels = -(-_inside(mode, logits.shape, logits).log()).log()
    soft = ((logits + gumbels) / tau).softmax(dim)
    if not hard:
        return soft
    index = soft.max(dim, keepdim=True)[1]
    hot = torch.zeros_like(logits).scatter(dim, index, 1.0)
    return hot - soft.detach() + soft
