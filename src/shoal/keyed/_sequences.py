"""Recurrent layers and packed sequences by key: dropout between layers, drawn sample by sample.

A trial keeps torch's kernels; only where a layer drops units between its layers are these run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._random import KeyedRandom, handles

KINDS: dict[Any, str] = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "rnn_tanh", torch.rnn_relu: "rnn_relu"}


@handles(torch.sort, Tensor.sort)
def _sort(mode: KeyedRandom, *args: Any, **kwargs: Any) -> Any:
    """Remembered: packing sorts by length, and draws have to find their sample again."""
    out = torch.sort(*args, **kwargs)
    mode.sorted = (out[0], out[1])
    return out


def order_of(mode: KeyedRandom, lengths: Tensor) -> Tensor | None:
    """The sample of each row of what is packed now, if it was sorted."""
    return mode.sorted[1] if mode.sorted is not None and mode.sorted[0] is lengths else None


@handles(torch._pack_padded_sequence)
def pack(mode: KeyedRandom, input: Tensor, lengths: Tensor, batch_first: bool) -> Any:
    """torch's own, and the order of the samples with it."""
    data, sizes = torch._pack_padded_sequence(input, lengths, batch_first)
    sizes.shoal_order = order_of(mode, lengths)  # type: ignore[attr-defined]
    return data, sizes


@dataclass(frozen=True, slots=True)
class Layers:
    """The arguments of ``torch.lstm`` and its like. ``sizes`` is None where sequences are not packed."""

    kind: str
    input: Any
    sizes: Any
    hx: tuple[Tensor, ...]
    params: Sequence[Tensor]
    has_biases: bool
    n_layers: int
    dropout: float
    train: bool
    n_directions: int
    batch_first: bool

    @classmethod
    def of(cls, kind: str, args: Sequence[Any]) -> Layers:
        packed = isinstance(args[3], list | tuple)
        data, *sizes = args[:2] if packed else args[:1]
        hx, params, has_biases, n_layers, dropout, train, both, *first = args[2 if packed else 1 :]
        hx = tuple(hx) if kind == "lstm" else (hx,)
        batch_first = bool(first and first[0])
        return cls(
            kind,
            data,
            sizes[0] if sizes else None,
            hx,
            params,
            has_biases,
            n_layers,
            dropout,
            train,
            1 + both,
            batch_first,
        )

    @property
    def n_params(self) -> int:
        """Tensors per layer and direction."""
        return len(self.params) // (self.n_layers * self.n_directions)

    @property
    def drops(self) -> bool:
        return self.train and self.n_layers > 1 and self.dropout > 0

    def states(self, layer: int) -> tuple[Tensor, ...]:
        """The initial states of a layer, (D, B, H) each."""
        d = self.n_directions
        return tuple(h[layer * d : (layer + 1) * d] for h in self.hx)


def one_by_one(function: Callable[..., Any], mode: KeyedRandom, a: Layers) -> tuple[Tensor, ...]:
    """torch's own layers, with dropout by key between them."""
    x, states = a.input, []
    width = a.n_directions * a.n_params
    for layer in range(a.n_layers):
        if layer:
            x = x * _mask(mode, a, x)
        hx: Any = a.states(layer)
        lead = (
            (x, hx if a.kind == "lstm" else hx[0])
            if a.sizes is None
            else (x, a.sizes, hx if a.kind == "lstm" else hx[0])
        )
        rest = (a.params[layer * width : (layer + 1) * width], a.has_biases, 1, 0.0, a.train, a.n_directions == 2)
        x, *last = function(*lead, *rest, *(() if a.sizes is not None else (a.batch_first,)))
        states.append(last)
    return (x, *(torch.cat(parts) for parts in zip(*states, strict=True)))


def _mask(mode: KeyedRandom, a: Layers, x: Tensor) -> Tensor:
    """A mask for what one layer hands to the next, drawn as (B, T, features) whatever the layout of ``x``."""
    if a.sizes is None:
        samples, steps = x.shape[:2] if a.batch_first else (x.shape[1], x.shape[0])
        mask = mode.mask(a.dropout, (samples, steps, x.shape[2]), x)
        return mask if a.batch_first else mask.transpose(0, 1)
    samples, steps = int(a.sizes[0]), len(a.sizes)
    mask = mode.mask(a.dropout, (samples, steps, x.shape[1]), x)
    order = getattr(a.sizes, "shoal_order", None)
    lengths = (a.sizes > torch.arange(samples)[:, None]).sum(1)
    return torch._pack_padded_sequence(mask if order is None else mask[order], lengths, True)[0]


def _handler(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    def handler(mode: KeyedRandom, *args: Any) -> Any:
        a = Layers.of(kind, args)
        return one_by_one(function, mode, a) if a.drops else function(*args)

    return handler


for _function, _kind in KINDS.items():
    handles(_function)(_handler(_function, _kind))
