"""Convolutional networks over sequences, images or volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from shoal.errors import UsageError, did_you_mean
from shoal.nn._blocks import Residual
from shoal.nn._init import initialise
from shoal.nn._names import activation as named_activation
from shoal.nn._names import check_count, check_dropout
from shoal.nn._names import norm as named_norm

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_DROPOUT = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def cnn(
    in_shape: Sequence[int],
    n_out: int,
    *,
    channels: int | Sequence[int] = 16,
    depth: int = 2,
    kernel: int = 3,
    pool: int = 2,
    activation: str = "relu",
    dropout: float | None = None,
    norm: str | None = None,
    residual: bool = False,
    head: Literal["flatten", "average"] = "flatten",
    init: str = "default",
) -> nn.Sequential:
    """A convolutional network: blocks of Conv, norm, activation, dropout of channels, max-pooling, and a Linear.

    Args:
        in_shape: Shape of a sample: (channels, length), (channels, height, width) or (channels, depth, height, width).
        n_out: Outputs: classes, or targets of a regression.
        channels: Channels of the first block, doubled from block to block, or a list with one number per block (then
            `depth` is not used).
        depth: Blocks, 1 or more.
        kernel: Size of a kernel along each axis; odd, so that padding keeps the size.
        pool: Size of max-pooling after each block; 1 for none.
        activation: By name, as for ``shoal.nn.activation``.
        dropout: Rate at which whole channels are left out, in [0, 1); None for no dropout at all.
        norm: None, "group" (8 groups where that divides), "layer", "instance", or "batch" (with which trials of different
            batch sizes do not train together).
        residual: Add each block's input to its output before pooling, through a convolution of size 1 where channels
            differ.
        head: Whether the last maps are "flatten"-ed or "average"-d before the last Linear.
        init: By name, as for ``shoal.nn.initialise``, "lsuv" excepted, which needs data.

    Raises:
        UsageError: If an argument makes no sense, or pooling leaves nothing.

    Example:
        >>> model = cnn((1, 28, 28), 10, channels=8, depth=2)
        >>> model[-1]
        Linear(in_features=784, out_features=10, bias=True)
    """
    shape = tuple(in_shape)
    if len(shape) not in (2, 3, 4):
        raise UsageError(
            f"cnn(in_shape=...) must be (channels, length), (channels, height, width) or (channels, depth, height, width); "
            f"got {shape!r}."
        )
    check_count("cnn", n_out=n_out, kernel=kernel, pool=pool, **{f"in_shape[{i}]": n for i, n in enumerate(shape)})
    check_dropout("cnn", dropout)
    if kernel % 2 == 0:
        raise UsageError(f"cnn(kernel=...) must be odd, so that padding keeps the size; got {kernel}.")
    if head not in ("flatten", "average"):
        raise UsageError(f"unknown head {head!r}.{did_you_mean(str(head), ('flatten', 'average'))}")
    dims, last, sides = len(shape) - 1, shape[0], list(shape[1:])
    layers: list[nn.Module] = []
    for size in _sizes(channels, depth):
        block = _block(last, size, dims, kernel, activation, dropout, norm)
        if residual:
            layers.append(
                Residual(nn.Sequential(*block), None if last == size else _CONV[dims - 1](last, size, 1, bias=False))
            )
        else:
            layers += block
        if pool > 1:
            layers.append(_POOL[dims - 1](pool))
            sides = [side // pool for side in sides]
        last = size
    if min(sides) < 1:
        raise UsageError(
            f"cnn: pooling by {pool} after each block leaves nothing of {shape}; take fewer blocks or pool=1."
        )
    if head == "average":
        layers.append(_AVERAGE[dims - 1](1))
        sides = [1] * dims
    n_features = last
    for side in sides:
        n_features *= side
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(n_features, n_out))
    initialise(model, init, activation=activation)
    return model


def _block(
    n_in: int, n_out: int, dims: int, kernel: int, activation: str, dropout: float | None, norm: str | None
) -> list[nn.Module]:
    convolution = _CONV[dims - 1](n_in, n_out, kernel, padding=kernel // 2)
    drop = None if dropout is None else _DROPOUT[dims - 1](dropout)
    parts = (convolution, named_norm(norm, n_out, dims=dims), named_activation(activation), drop)
    return [part for part in parts if part is not None]


def _sizes(channels: int | Sequence[int], depth: int) -> list[int]:
    if isinstance(channels, Sequence) and not isinstance(channels, str):
        sizes = list(channels)
        if not sizes:
            raise UsageError("cnn(channels=[]) has no block; name at least one number of channels.")
        check_count("cnn", **{f"channels[{i}]": size for i, size in enumerate(sizes)})
        return sizes
    check_count("cnn", channels=channels, depth=depth)
    assert isinstance(channels, int)
    return [channels * 2**place for place in range(depth)]
