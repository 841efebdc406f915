"""Recurrent layers and packed sequences under ``KeyedRandom``: dropout between layers by key, and one operation over lanes.

Alone, a trial keeps torch's kernels; only where a layer drops units between its layers are these run one by one. In a lane, each
layer and direction is one ``recurrent`` operation. How long a sequence is differs from lane to lane, and shapes cannot: so what
``pack_padded_sequence`` packs stays padded there, with a mask of the steps that count, and steps that do not count change no
state. ``pad_packed_sequence`` then pads to the length that the input had rather than to that of its longest sequence; ``probe``
checks that a model does not notice.

Glossary: ``T`` steps, ``B`` samples, ``F`` features, ``H`` numbers of state, ``D`` directions (1 or 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.errors import FuseError
from shoal.lanes.cells import Weights
from shoal.lanes.recurrent import recurrent
from shoal.lanes.rng import KeyedRandom, handles

_KINDS: dict[Any, str] = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "rnn_tanh", torch.rnn_relu: "rnn_relu"}


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


@handles(torch.sort, Tensor.sort)
def _sort(mode: KeyedRandom, *args: Any, **kwargs: Any) -> Any:
    """Remembered: packing sorts by length, and draws have to find their sample again."""
    out = torch.sort(*args, **kwargs)
    mode.sorted = (out[0], out[1])
    return out


@handles(torch._pack_padded_sequence)
def _pack(mode: KeyedRandom, input: Tensor, lengths: Tensor, batch_first: bool) -> Any:
    mode.packed = True
    order = mode.sorted[1] if mode.sorted is not None and mode.sorted[0] is lengths else None
    if not mode.lanes:
        data, sizes = torch._pack_padded_sequence(input, lengths, batch_first)
        sizes.shoal_order = order  # type: ignore[attr-defined]
        return data, sizes
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


@dataclass(frozen=True, slots=True)
class _Layers:
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
    def of(cls, kind: str, args: Sequence[Any]) -> _Layers:
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

    def weights(self, layer: int, direction: int) -> Weights:
        """The parameters of a layer and direction."""
        at = (layer * self.n_directions + direction) * self.n_params
        w_ih, w_hh, *rest = self.params[at : at + self.n_params]
        b_ih, b_hh = (rest.pop(0), rest.pop(0)) if self.has_biases else (None, None)
        return Weights(w_ih, w_hh, b_ih, b_hh, rest[0] if rest else None)


def _one_by_one(function: Callable[..., Any], mode: KeyedRandom, a: _Layers) -> tuple[Tensor, ...]:
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


def _mask(mode: KeyedRandom, a: _Layers, x: Tensor) -> Tensor:
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


def _over_lanes(mode: KeyedRandom, a: _Layers) -> tuple[Any, ...]:
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
                a.kind, x, h0, c0[0] if c0 else None, a.weights(layer, direction), keep, reverse=direction == 1
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
    def handler(mode: KeyedRandom, *args: Any) -> Any:
        a = _Layers.of(kind, args)
        if mode.lanes:
            return _over_lanes(mode, a)
        return _one_by_one(function, mode, a) if a.drops else function(*args)

    return handler


for _function, _kind in _KINDS.items():
    handles(_function)(_handler(_function, _kind))
