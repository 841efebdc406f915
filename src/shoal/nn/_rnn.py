"""Recurrent networks over sequences of numbers or of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from shoal.errors import UsageError, did_you_mean
from shoal.nn._blocks import Pool, PoolRecurrent
from shoal.nn._init import initialise
from shoal.nn._names import check_count, check_dropout

_KINDS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def rnn(
    n_in: int,
    n_out: int,
    *,
    kind: Literal["rnn", "gru", "lstm"] = "gru",
    width: int = 64,
    depth: int = 1,
    bidirectional: bool = False,
    dropout: float | None = None,
    pool: Pool = "last",
    tokens: bool = False,
    embedding: int = 32,
    init: str = "default",
) -> nn.Sequential:
    """A recurrent network over whole sequences: [Embedding,] RNN, GRU or LSTM, pooling over time, dropout, Linear.

    Args:
        n_in: Numbers per step; the size of the vocabulary with `tokens`.
        n_out: Outputs: classes, or targets of a regression.
        kind: "rnn" (tanh), "gru" or "lstm".
        width: Units per direction.
        depth: Layers on top of each other.
        bidirectional: Also read each sequence from its end.
        dropout: Rate between layers and before the last Linear, in [0, 1); None for no dropout at all.
        pool: What is read off the outputs: the "last" state of each direction, or the "mean" or "max" over time.
        tokens: Whether inputs are int64 (batch, time) rather than float (batch, time, n_in).
        embedding: Length of a token's vector.
        init: By name, as for ``shoal.nn.initialise``, "lsuv" excepted, which needs data.

    Raises:
        UsageError: If an argument makes no sense; unknown names get a suggestion.

    Example:
        >>> rnn(3, 2, kind="lstm", width=8, bidirectional=True)[-1]
        Linear(in_features=16, out_features=2, bias=True)
    """
    check_count("rnn", n_in=n_in, n_out=n_out, width=width, depth=depth, embedding=embedding)
    check_dropout("rnn", dropout)
    if kind not in _KINDS:
        raise UsageError(f"unknown kind {kind!r}.{did_you_mean(str(kind), _KINDS)}")
    check_pool(pool)
    front = [nn.Embedding(n_in, embedding)] if tokens else []
    layer = _KINDS[kind](
        embedding if tokens else n_in,
        width,
        num_layers=depth,
        batch_first=True,
        bidirectional=bidirectional,
        dropout=dropout if dropout and depth > 1 else 0.0,  # torch warns about dropout between the layers of one
    )
    n_features = width * (2 if bidirectional else 1)
    end = [] if dropout is None else [nn.Dropout(dropout)]
    model = nn.Sequential(*front, PoolRecurrent(layer, pool), *end, nn.Linear(n_features, n_out))
    initialise(model, init, activation="tanh")
    return model


def check_pool(pool: object) -> None:
    """Refuse what is no way to pool over time.

    Raises:
        UsageError: With a suggestion.
    """
    if pool not in ("last", "mean", "max"):
        raise UsageError(f"unknown pool {pool!r}.{did_you_mean(str(pool), ('last', 'mean', 'max'))}")
