"""torch's functions in forms that take a lane's own number, a 0-d tensor, where torch takes a float only.

Normalisations keep torch's kernels: with s = sqrt(e0 / eps), the norm of s x with epsilon e0 is that of x with epsilon eps, since
s (x - m) / sqrt(s^2 v + e0) = (x - m) / sqrt(v + eps).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_EPS = 1e-5


def _scale(eps: float | Tensor) -> float | Tensor:
    return (_EPS / eps) ** 0.5


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | Tensor = _EPS,
) -> Tensor:
    return F.layer_norm(input * _scale(eps), normalized_shape, weight, bias, _EPS)


def rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | Tensor | None = None
) -> Tensor:
    if eps is None:
        return F.rms_norm(input, normalized_shape, weight)
    return F.rms_norm(input * _scale(eps), normalized_shape, weight, _EPS)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float | Tensor = _EPS,
) -> Tensor:
    return F.group_norm(input * _scale(eps), num_groups, weight, bias, _EPS)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float | Tensor = _EPS,
) -> Tensor:
    if not training:
        return _normalised(input, running_mean, running_var, weight, bias, eps)
    axes = [0, *range(2, input.dim())]
    with torch.no_grad():
        _follow(running_mean, lambda: input.mean(axes), momentum)
        _follow(running_var, lambda: input.var(axes, unbiased=True), momentum)
    return F.batch_norm(input * _scale(eps), None, None, weight, bias, True, 0.0, _EPS)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float | Tensor = _EPS,
) -> Tensor:
    if not use_input_stats:
        return _normalised(input, running_mean, running_var, weight, bias, eps)
    axes = list(range(2, input.dim()))
    with torch.no_grad():
        _follow(running_mean, lambda: input.mean(axes).mean(0), momentum)
        _follow(running_var, lambda: input.var(axes, unbiased=True).mean(0), momentum)
    return F.instance_norm(input * _scale(eps), None, None, weight, bias, True, 0.0, _EPS)


def _follow(running: Tensor | None, batch: Callable[[], Tensor], momentum: float | Tensor) -> None:
    """An exponential moving average, in place."""
    if running is not None:
        running.copy_((1.0 - momentum) * running + momentum * batch().to(running.dtype))


def _normalised(
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | Tensor,
) -> Tensor:
    """By statistics that are given: input (q, C, ...)."""
    assert mean is not None and var is not None
    shape = (1, -1, *(1 for _ in input.shape[2:]))
    gain = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    out = (input - mean.view(shape)) * gain.view(shape)
    return out if bias is None else out + bias.view(shape)


def leaky_relu(input: Tensor, negative_slope: Any = 0.01, inplace: bool = False) -> Tensor:
    return _placed(input, torch.where(input > 0, input, input * negative_slope), inplace)


def elu(input: Tensor, alpha: Any = 1.0, inplace: bool = False) -> Tensor:
    return _placed(input, torch.where(input > 0, input, alpha * torch.expm1(input.clamp(max=0.0))), inplace)


def softplus(input: Tensor, beta: Any = 1.0, threshold: Any = 20.0) -> Tensor:
    scaled = input * beta
    return torch.where(
        scaled > threshold, input, torch.log1p(torch.exp(torch.where(scaled > threshold, 0.0, scaled))) / beta
    )


def threshold(input: Tensor, threshold: Any, value: Any, inplace: bool = False) -> Tensor:
    return _placed(input, torch.where(input > threshold, input, value), inplace)


def hardshrink(input: Tensor, lambd: Any = 0.5) -> Tensor:
    return torch.where((input >= -lambd) & (input <= lambd), 0.0, input)


def softshrink(input: Tensor, lambd: Any = 0.5) -> Tensor:
    return torch.where(input > lambd, input - lambd, torch.where(input < -lambd, input + lambd, 0.0))


def hardtanh(input: Tensor, min_val: Any = -1.0, max_val: Any = 1.0, inplace: bool = False) -> Tensor:
    out = torch.where(input <= min_val, min_val, torch.where(input >= max_val, max_val, input))
    return _placed(input, out, inplace)


def _placed(input: Tensor, out: Tensor, inplace: bool) -> Tensor:
    return input.copy_(out) if inplace else out


def _add(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    return torch.add(input, alpha * other)


def _add_(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    return input.add_(alpha * other)


def _sub(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    return torch.sub(input, alpha * other)


def _sub_(input: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    return input.sub_(alpha * other)


def vdot(input: Tensor, other: Tensor) -> Tensor:
    return (input.conj() * other).sum()


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    """With ``out`` as an operation in place: ``vmap`` has no kernels that write into a result."""
    result = F.normalize(input, p, dim, eps)
    return result if out is None else out.copy_(result)


# What takes a lane's number where torch takes a float.
WITH_NUMBERS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    F.leaky_relu: leaky_relu,
    F.elu: elu,
    F.softplus: softplus,
    F.threshold: threshold,
    F.hardshrink: hardshrink,
    F.softshrink: softshrink,
    F.hardtanh: hardtanh,
    torch.add: _add,
    Tensor.add: _add,
    Tensor.add_: _add_,
    torch.sub: _sub,
    Tensor.sub: _sub,
    Tensor.sub_: _sub_,
}
# What runs over lanes where torch's own does not.
OVER_LANES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.vdot: vdot,
    torch.dot: vdot,
    F.normalize: normalize,
    F.instance_norm: instance_norm,
}
