"""Recurrent layers and packed sequences over lanes: one operation for each layer and direction.

How long a sequence is differs from lane to lane, and shapes cannot: so what ``pack_padded_sequence`` packs stays padded here, with
a mask of the steps that count, and steps that do not count change no state. ``pad_packed_sequence`` then pads to the length that
the input had rather than to that of its longest sequence; ``probe`` checks that a model does not notice. Alone, a trial keeps
torch's kernels (`shoal.keyed`).

Glossary: ``T`` steps, ``B`` samples, ``F`` features, ``H`` numbers of state, ``D`` directions (1 or 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.errors import FuseError
from shoal.keyed import _sequences as alone
from shoal.keyed._sequences import Layers
from shoal.lanes.cells import Weights
from shoal.lanes.recurrent import recurrent
from shoal.lanes.rng import KeyedRandom, handles

# --- packing ------------------------------------------------------------------------------------------------------


class _Steps(int):
    """A number of steps that nobody asked for: what ``pad_packed_sequence`` pads to by itself."""


class _NoTensor:
    """Stands for a tensor of a packed sequence. Torch's recurrent functions take it; all else that is done with it is refused."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        name = getattr(func, "__name__", str(func))
        raise FuseError(f"it calls {name} on the inside of a packed sequence, whose shape differs from batch to batch")


@dataclass(frozen=True, slots=True)
class _Padded(_NoTensor):
    """The ``data`` of a packed sequence over lanes: x (T, B, F), keep bool (T, B), order (B,) the sample of each row or None."""

    x: Tensor
    keep: Tensor
    order: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device

    def dim(self) -> int:
        return self.x.dim() - 1

    def size(self, axis: int) -> int:
        if axis == 0:
            raise FuseError("it asks how long a packed sequence is, which differs from batch to batch")
        return self.x.size(axis)

    def __getitem__(self, index: object) -> NoReturn:
        raise FuseError("it reads the inside of a packed sequence, whose shape differs from batch to batch")


@dataclass(frozen=True, slots=True)
class _Sizes(_NoTensor):
    """The ``batch_sizes`` of a packed sequence over lanes."""

    steps: int
    samples: int
    device = torch.device("cpu")

    def size(self, axis: int) -> int:
        return _Steps(self.steps)

    def __getitem__(self, step: int) -> int:
        if step != 0:
            raise FuseError("it asks how many sequences have a certain step, which differs from batch to batch")
        return self.samples


@handles(torch._pack_padded_sequence)
def _pack(mode: KeyedRandom, input: Tensor, lengths: Tensor, batch_first: bool) -> Any:
    mode.packed = True
    if not mode.lanes:
        return alone.pack(mode, input, lengths, batch_first)
    order = alone.order_of(mode, lengths)
    x = input.transpose(0, 1) if batch_first else input
    steps, samples = x.shape[:2]
    lengths = lengths.to(x.device)
    # Torch refuses these lengths; here, where none is known, a loss that is not a number ends the trial.
    impossible = (lengths < 1) | (lengths > steps)
    keep = (torch.arange(steps, device=x.device)[:, None] < lengths) | impossible
    if x.is_floating_point():
        x = torch.where(impossible.view(1, samples, *(1 for _ in x.shape[2:])), torch.nan, x)
    return _Padded(x, keep, order), _Sizes(steps, samples)


@handles(torch._pad_packed_sequence)
def _pad(
    mode: KeyedRandom, data: Any, batch_sizes: Any, batch_first: bool, padding_value: float, total_length: int
) -> tuple[Tensor, Tensor]:
    if not isinstance(data, _Padded):
        return torch._pad_packed_sequence(data, batch_sizes, batch_first, padding_value, total_length)
    steps = data.x.shape[0]
    keep = data.keep.view(*data.keep.shape, *(1 for _ in data.x.shape[2:]))
    out = torch.where(keep, data.x, padding_value)
    more = mode.slack if isinstance(total_length, _Steps) else total_length - steps
    if more:
        out = torch.cat([out, out.new_full((more, *out.shape[1:]), padding_value)])
    return (out.transpose(0, 1) if batch_first else out), data.keep.sum(0)


@handles(torch.lstm_cell)
def _lstm_cell(
    mode: KeyedRandom,
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step by itself, which torch has no batching rule for; those of the other cells it has."""
    if not mode.lanes:
        return torch.lstm_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
    h, c = hx
    i, f, g, o = (F.linear(input, w_ih, b_ih) + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


# --- layers -------------------------------------------------------------------------------------------------------


def _weights(a: Layers, layer: int, direction: int) -> Weights:
    """The parameters of a layer and direction."""
    at = (layer * a.n_directions + direction) * a.n_params
    w_ih, w_hh, *rest = a.params[at : at + a.n_params]
    b_ih, b_hh = (rest.pop(0), rest.pop(0)) if a.has_biases else (None, None)
    return Weights(w_ih, w_hh, b_ih, b_hh, rest[0] if rest else None)


def _over_lanes(mode: KeyedRandom, a: Layers) -> tuple[Any, ...]:
    """All layers, each direction of each one operation."""
    keep = order = None
    if isinstance(a.input, _Padded):
        x, keep, order = a.input.x, a.input.keep, a.input.order
    else:
        x = a.input.transpose(0, 1) if a.batch_first else a.input  # (T, B, F)
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(a.n_layers):
        if layer and a.drops:
            mask = mode.mask(a.dropout, (x.shape[1], x.shape[0], x.shape[2]), x)
            x = x * (mask if order is None else mask.index_select(0, order)).transpose(0, 1)
        outputs = []
        for direction in range(a.n_directions):
            h0, *c0 = (h[direction] for h in a.states(layer))
            y, h, c = recurrent(
                a.kind, x, h0, c0[0] if c0 else None, _weights(a, layer, direction), keep, reverse=direction == 1
            )
            outputs.append(y)
            last.append((h, c))
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
    out: Any = x.transpose(0, 1) if a.batch_first else x
    if isinstance(a.input, _Padded):
        out = _Padded(x, a.input.keep, order)
    states = (torch.stack(part) for part in zip(*last, strict=True))
    return (out, *states) if a.kind == "lstm" else (out, next(states))


def _handler(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
    by_itself = KeyedRandom.handlers[function]

    def handler(mode: KeyedRandom, *args: Any) -> Any:
        return _over_lanes(mode, Layers.of(kind, args)) if mode.lanes else by_itself(mode, *args)

    return handler


for _function, _kind in alone.KINDS.items():
    handles(_function)(_handler(_function, _kind))
