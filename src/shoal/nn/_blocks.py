"""The few modules that torch does not have and the builders need; everything else they use is ``torch.nn``'s own.

Glossary: ``batch`` samples; ``features`` numbers of a sample; ``columns`` categories of a sample; ``time`` steps of a
sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Pool = Literal["last", "mean", "max"]


class Residual(nn.Module):
    """``shortcut(x) + body(x)``; the shortcut is x itself where the shapes agree."""

    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut if shortcut is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.body(x)
        return out


class DeepAndWide(nn.Module):
    """``deep(x) + wide(x)``: a network and a linear model of the same inputs (Cheng et al. 2016)."""

    def __init__(self, deep: nn.Module, wide: nn.Module) -> None:
        super().__init__()
        self.deep = deep
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.deep(x) + self.wide(x)
        return out


class Rows(nn.Module):
    """Rows of a table: ``forward([numbers,] categories)``, each category's vector beside the numbers, then ``body``.

    All columns share one embedding table, so that looking them up is one operation; ``first`` says where each column's
    rows start in it. Category 0 of each column starts at zero: it is meant for what is unknown, and a vector that no
    training row has moved then says nothing.
    """

    first: Tensor

    def __init__(self, sizes: Sequence[int], width: int, body: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sum(sizes), width)
        first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("first", first)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[first] = 0.0
        self.body = body

    def forward(self, *inputs: Tensor) -> Tensor:
        embedded = self.embedding(inputs[-1] + self.first).flatten(1)  # (batch, columns * width)
        x = torch.cat([inputs[0], embedded], dim=1) if len(inputs) == 2 else embedded
        out: Tensor = self.body(x)
        return out


class Positions(nn.Module):
    """Adds a learned vector to each step: (batch, time, width) -> the same."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


class PoolTime(nn.Module):
    """(batch, time, width) -> (batch, width): the last step, or the mean or maximum over all."""

    def __init__(self, how: Pool) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "last":
            return x[:, -1]
        return x.mean(dim=1) if self.how == "mean" else x.amax(dim=1)

    def extra_repr(self) -> str:
        return self.how


class PoolRecurrent(nn.Module):
    """A recurrent layer and what becomes of its outputs: (batch, time, features) -> (batch, directions * width).

    "last" takes each direction's final state: of the backward one, that is its state at the first step.
    """

    def __init__(self, layer: nn.RNNBase, how: Pool) -> None:
        super().__init__()
        self.layer = layer
        self.how = how
        self._width, self._both = layer.hidden_size, layer.bidirectional

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)[0]  # (batch, time, directions * width)
        if self.how == "mean":
            return out.mean(dim=1)  # type: ignore[no-any-return]
        if self.how == "max":
            return out.amax(dim=1)  # type: ignore[no-any-return]
        if not self._both:
            return out[:, -1]  # type: ignore[no-any-return]
        return torch.cat([out[:, -1, : self._width], out[:, 0, self._width :]], dim=1)

    def extra_repr(self) -> str:
        return self.how
