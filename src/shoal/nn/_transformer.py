"""Transformer encoders over sequences of numbers or of tokens."""

from __future__ import annotations

from typing import Literal

from torch import nn

from shoal.errors import UsageError, did_you_mean
from shoal.nn._blocks import Pool, PoolTime, Positions
from shoal.nn._init import initialise
from shoal.nn._names import check_count, check_dropout
from shoal.nn._rnn import check_pool


def transformer(
    n_in: int,
    n_out: int,
    *,
    length: int,
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
    feedforward: int = 4,
    activation: Literal["relu", "gelu"] = "gelu",
    dropout: float = 0.0,
    norm_first: bool = True,
    pool: Pool = "mean",
    tokens: bool = False,
    init: str = "default",
) -> nn.Sequential:
    """A transformer encoder over whole sequences: Linear or Embedding, learned positions, layers, LayerNorm, pooling, Linear.

    Each layer is a ``nn.TransformerEncoderLayer`` made by itself (``nn.TransformerEncoder`` copies one, so that all its
    layers start with the same weights).

    Args:
        n_in: Numbers per step; the size of the vocabulary with `tokens`.
        n_out: Outputs: classes, or targets of a regression.
        length: The longest sequence, in steps: there is a position vector for each.
        width: Length of a step's vector; a multiple of `heads`.
        depth: Layers.
        heads: Attention heads.
        feedforward: Width of the layers' inner networks, as a multiple of `width`.
        activation: "gelu" or "relu".
        dropout: Rate inside the layers, in [0, 1).
        norm_first: Norm before attention and inner network rather than after (Xiong et al. 2020).
        pool: What is read off the outputs: their "mean" or "max" over time, or the "last" step.
        tokens: Whether inputs are int64 (batch, time) rather than float (batch, time, n_in).
        init: By name, as for ``shoal.nn.initialise``, "lsuv" excepted, which needs data.

    Raises:
        UsageError: If an argument makes no sense; unknown names get a suggestion.

    Example:
        >>> model = transformer(100, 2, length=16, width=8, heads=2, tokens=True)
        >>> model[0], len(model)
        (Embedding(100, 8), 7)
    """
    check_count(
        "transformer",
        n_in=n_in,
        n_out=n_out,
        length=length,
        width=width,
        depth=depth,
        heads=heads,
        feedforward=feedforward,
    )
    check_dropout("transformer", dropout)
    if width % heads:
        raise UsageError(f"transformer(width=...) must be a multiple of heads; got width={width} and heads={heads}.")
    if activation not in ("relu", "gelu"):
        raise UsageError(
            f"unknown activation {activation!r} of a transformer.{did_you_mean(str(activation), ('relu', 'gelu'))}"
        )
    check_pool(pool)
    front: nn.Module = nn.Embedding(n_in, width) if tokens else nn.Linear(n_in, width)
    layers = [
        nn.TransformerEncoderLayer(
            width, heads, width * feedforward, dropout, activation, batch_first=True, norm_first=norm_first
        )
        for _ in range(depth)
    ]
    end = (
        [nn.LayerNorm(width)] if norm_first else []
    )  # with the norm last in each layer, the outputs are normed already
    model = nn.Sequential(front, Positions(length, width), *layers, *end, PoolTime(pool), nn.Linear(width, n_out))
    initialise(model, init, activation=activation)
    return model
