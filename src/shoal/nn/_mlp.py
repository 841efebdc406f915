"""Multi-layer perceptrons: deep, wide, or both, with embeddings for categories."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from shoal.errors import UsageError
from shoal.nn._blocks import DeepAndWide, Residual, Rows
from shoal.nn._init import initialise
from shoal.nn._names import activation as named_activation
from shoal.nn._names import check_count, check_dropout
from shoal.nn._names import norm as named_norm


def mlp(
    n_in: int,
    n_out: int,
    *,
    width: int | Sequence[int] = 64,
    depth: int = 2,
    activation: str = "relu",
    dropout: float | None = None,
    norm: str | None = None,
    residual: bool = False,
    wide: bool = False,
    categories: Sequence[int] = (),
    embedding: int = 8,
    init: str = "default",
) -> nn.Module:
    """A multi-layer perceptron: blocks of Linear, norm, activation, dropout, and a Linear at the end.

    Args:
        n_in: Numbers per sample; 0 if there are categories only.
        n_out: Outputs: classes, or targets of a regression.
        width: Units of each hidden layer, or a list with one size per layer (then `depth` is not used; an empty list is a
            linear model).
        depth: Hidden layers, 0 or more.
        activation: By name, as for ``shoal.nn.activation``.
        dropout: Rate after each activation, in [0, 1); None for no dropout at all. (With a rate of 0 the layer is there, and
            trials with and without dropout train together.)
        norm: None, "layer", "rms", or "batch" (with which trials of different batch sizes do not train together).
        residual: Add each block's input to its output (through a Linear without bias where the sizes differ); from the
            second block on.
        wide: Add a linear model of the inputs to the outputs: "wide and deep" (Cheng et al. 2016).
        categories: For tables: how many categories each column has. The model then takes (numbers, categories), the
            latter int64 (batch, columns) counted from 0; 0 is for unknown ones.
        embedding: Length of a category's vector.
        init: By name, as for ``shoal.nn.initialise``, "lsuv" excepted, which needs data.

    Returns:
        An ``nn.Sequential``; with `wide` or `categories`, a small module around one.

    Raises:
        UsageError: If an argument makes no sense; unknown names get a suggestion.

    Example:
        >>> mlp(4, 3, width=8, depth=1)
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=3, bias=True)
        )
    """
    sizes = _sizes(width, depth)
    check_count("mlp", n_out=n_out, embedding=embedding, **{f"categories[{i}]": n for i, n in enumerate(categories)})
    check_dropout("mlp", dropout)
    if isinstance(n_in, bool) or not isinstance(n_in, int) or n_in < (0 if categories else 1):
        raise UsageError(f"mlp(n_in=...) must be a whole number, 0 only if there are categories; got {n_in!r}.")
    n_features = n_in + len(categories) * embedding
    layers: list[nn.Module] = []
    last = n_features
    for place, size in enumerate(sizes):
        block = _block(last, size, activation, dropout, norm)
        if residual and place > 0:
            shortcut = None if last == size else nn.Linear(last, size, bias=False)
            layers.append(Residual(nn.Sequential(*block), shortcut))
        else:
            layers += block
        last = size
    deep: nn.Module = nn.Sequential(*layers, nn.Linear(last, n_out))
    body = DeepAndWide(deep, nn.Linear(n_features, n_out, bias=False)) if wide else deep
    initialise(body, init, activation=activation)
    return Rows(categories, embedding, body) if categories else body


def _block(n_in: int, n_out: int, activation: str, dropout: float | None, norm: str | None) -> list[nn.Module]:
    drop = None if dropout is None else nn.Dropout(dropout)
    parts = [nn.Linear(n_in, n_out), named_norm(norm, n_out), named_activation(activation), drop]
    return [part for part in parts if part is not None]


def _sizes(width: int | Sequence[int], depth: int) -> list[int]:
    if isinstance(width, Sequence) and not isinstance(width, str):
        sizes = list(width)
        check_count("mlp", **{f"width[{i}]": size for i, size in enumerate(sizes)})
        return sizes
    check_count("mlp", width=width)
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise UsageError(f"mlp(depth=...) must be a whole number, 0 or more; got {depth!r}.")
    assert isinstance(width, int)
    return [width] * depth
