"""Recurrent layers over lanes, forward through time: what the operators in ``recurrent`` run; ``cells_back`` has the way back.

Glossary, for one layer and one direction: ``lanes``; ``T`` steps; ``B`` samples; ``F`` features of the input; ``H`` hidden units;
``P`` size of the state h (H, or ``proj_size``); ``G`` = gates x H, in torch's order: LSTM i f g o, GRU r z n, RNN one.
``x`` (lanes, T, B, F), ``h0`` (lanes, B, P), ``c0`` (lanes, B, H), ``w_ih`` (lanes, G, F), ``w_hh`` (lanes, G, P), biases
(lanes, G), ``w_hr`` (lanes, P, H), ``keep`` bool (lanes, T, B): which steps a sequence has; elsewhere the state is carried on.

A step is one product over lanes and a few element-wise kernels. Projections of the input, and gradients of weights, are taken
for some steps at once, so that what they read and write stays in the cache; only states and gates are kept for the way back.

No lane may round by its slot: MKL's sums depend on where a matrix starts, and kernels treat the last few numbers of a buffer
apart. Sizes are therefore padded so that every lane's matrices fill whole vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.lanes.gates import Gates, tanh

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_KEPT = {"lstm": 4, "gru": 4, "rnn_tanh": 0, "rnn_relu": 0}  # blocks of H columns that the way back needs
_SAMPLES, _UNITS = 8, 4  # B and H are padded to multiples: 32 numbers are two vectors of the widest kind
_ROWS = 256  # rows (step, sample) that are projected at once


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of one layer and direction, stacked over lanes."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None

    def padded(self, gates: int, units: int, state: int) -> Weights:
        """With ``units`` hidden units and ``state`` numbers of state; what is added is zero, and stays zero."""
        hidden = self.w_hh.shape[1] // gates

        def widen(w: Tensor, blocks: int, rows: int, columns: int) -> Tensor:
            lanes, height, width = w.shape
            if height == blocks * rows and width == columns and w.stride(0) % _UNITS == 0:
                return w
            split = w.reshape(lanes, blocks, height // blocks, width)
            out = F.pad(split, (0, columns - width, 0, rows - height // blocks))
            return out.reshape(lanes, blocks * rows, columns).contiguous()

        def bias(b: Tensor | None) -> Tensor | None:
            if b is None or hidden == units:
                return b
            return F.pad(b.reshape(len(b), gates, hidden), (0, units - hidden)).flatten(1)

        return Weights(
            widen(self.w_ih, gates, units, self.w_ih.shape[2]),
            widen(self.w_hh, gates, units, state),
            bias(self.b_ih),
            bias(self.b_hh),
            None if self.w_hr is None else widen(self.w_hr, 1, state, units),
        )


def up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def fit(t: Tensor, samples: int, columns: int) -> Tensor:
    """Pad the last two axes, (..., B, columns), and let lanes start at even addresses."""
    more = (0, columns - t.shape[-1], 0, samples - t.shape[-2])
    if any(more):
        return F.pad(t, more)
    return t if t.stride(0) % _UNITS == 0 else t.contiguous()


def spans(steps: int, samples: int, *, backwards: bool) -> Iterator[tuple[int, int]]:
    """Steps in groups of some ``_ROWS`` rows, first to last or last to first: (start, stop)."""
    size = max(1, _ROWS // samples)
    starts = range(0, steps, size)
    return ((s, min(s + size, steps)) for s in (reversed(starts) if backwards else starts))


class Run:
    """One call, on the way there or back: its inputs, padded."""

    def __init__(
        self, step: Gates, kind: str, x: Tensor, h0: Tensor, c0: Tensor | None, w: Weights, keep: Tensor | None
    ) -> None:
        gates = GATES[kind]
        self.step, self.kind = step, kind
        self.lanes, self.steps, self.n_samples, _ = x.shape
        self.n_units, self.n_state = w.w_hh.shape[1] // gates, w.w_hh.shape[2]
        self.samples, self.units = up(self.n_samples, _SAMPLES), up(self.n_units, _UNITS)
        self.state = self.units if w.w_hr is None else up(self.n_state, _UNITS)
        self.w = w.padded(gates, self.units, self.state)
        self.x = fit(x, self.samples, x.shape[3])
        self.h0 = fit(h0, self.samples, self.state)
        self.c0 = None if c0 is None else fit(c0, self.samples, self.units).contiguous()
        self.keep: list[Tensor] | None = None
        if keep is not None:
            self.keep = list(F.pad(keep, (0, self.samples - self.n_samples), value=True)[..., None].unbind(1))

    def empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(self.lanes, *shape)

    def cut(self, t: Tensor, columns: int) -> Tensor:
        """(..., padded B, padded columns) -> (..., B, columns)."""
        return t[..., : self.n_samples, :columns]

    def rows(self, t: Tensor, start: int, stop: int) -> Tensor:
        """(lanes, T, B, columns) -> (lanes, steps x B, columns) of some steps."""
        return t[:, start:stop].reshape(self.lanes, (stop - start) * self.samples, t.shape[3])


def forward(
    step: Gates,
    kind: str,
    reverse: bool,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Weights,
    keep: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run a layer: (y (lanes, T, B, P), h_n (lanes, B, P), c_n (lanes, B, H), cells, gates); the last two are for ``backward``."""
    run = Run(step, kind, x, h0, c0, w, keep)
    y = run.empty(run.steps, run.samples, run.state)
    cells = run.empty(run.steps, run.samples, run.units) if kind == "lstm" else run.empty(0)
    kept = run.empty(run.steps, run.samples, _KEPT[kind] * run.units)
    one = _FORWARD[kind](run, y, cells, kept)
    wide = run.w.w_ih.shape[1]
    bias = _bias(run)
    h, c = run.h0, run.c0
    for start, stop in spans(run.steps, run.samples, backwards=reverse):
        rows, weight = run.rows(run.x, start, stop), run.w.w_ih.transpose(1, 2)
        projected = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
        inputs = projected.view(run.lanes, stop - start, run.samples, wide).unbind(1)
        for t in reversed(range(start, stop)) if reverse else range(start, stop):
            h, c = one(t, inputs[t - start], h, c)
    c_n = c.clone() if c is not None else run.empty(0)
    return (
        run.cut(y, run.n_state),
        run.cut(h, run.n_state).clone(),
        run.cut(c_n, run.n_units) if c is not None else c_n,
        cells,
        kept,
    )


def _bias(run: Run) -> Tensor | None:
    """What is added to the input's projection, (lanes, 1, G). A GRU's second bias belongs to its hidden side."""
    biases = [run.w.b_ih] if run.kind == "gru" else [run.w.b_ih, run.w.b_hh]
    given = [b for b in biases if b is not None]
    return sum(given[1:], given[0])[:, None] if given else None


class _RnnForward:
    def __init__(self, run: Run, y: Tensor, cells: Tensor, kept: Tensor) -> None:
        self.run, self.y = run, y.unbind(1)
        self.w = run.w.w_hh.transpose(1, 2)
        self.g = run.empty(run.samples, run.units)

    def __call__(self, t: int, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        g, y = torch.baddbmm(x, h, self.w, out=self.g), self.y[t]
        if self.run.kind == "rnn_tanh":
            tanh(g, out=y)
        else:
            torch.clamp_min(g, 0.0, out=y)
        if self.run.keep is not None:
            torch.where(self.run.keep[t], y, h, out=y)
        return y, c


class _LstmForward:
    """i, f, o = sigmoid, g = tanh of W_ih x + W_hh h + b; c' = f c + i g; h' = o tanh(c'), projected by W_hr if there is one."""

    def __init__(self, run: Run, y: Tensor, cells: Tensor, kept: Tensor) -> None:
        self.run, self.y, self.cells, self.gates = run, y.unbind(1), cells.unbind(1), kept.unbind(1)
        self.w = run.w.w_hh.transpose(1, 2)
        self.g = run.empty(run.samples, 4 * run.units)
        projects = run.w.w_hr is not None
        self.whole = run.empty(run.samples, run.units) if projects else None  # what is projected
        self.projected = run.empty(run.samples, run.state) if projects else None

    def __call__(self, t: int, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert c is not None
        new, y, w_hr = self.cells[t], self.y[t], self.run.w.w_hr
        torch.baddbmm(x, h, self.w, out=self.g)
        out = y if self.whole is None else self.whole
        self.run.step.lstm(self.g, c, self.gates[t], new, out)
        if w_hr is not None:
            y.copy_(torch.bmm(out, w_hr.transpose(1, 2), out=self.projected))
        if self.run.keep is not None:
            torch.where(self.run.keep[t], new, c, out=new)
            torch.where(self.run.keep[t], y, h, out=y)
        return y, new


class _GruForward:
    """r, z = sigmoid(W_ih x + W_hh h + b); q = W_hn h + b_hn; n = tanh(W_in x + b_in + r q); h' = n + z (h - n)."""

    def __init__(self, run: Run, y: Tensor, cells: Tensor, kept: Tensor) -> None:
        n = run.units
        self.run, self.y, self.n = run, y.unbind(1), n
        self.w = run.w.w_hh.transpose(1, 2)
        self.b = None if run.w.b_hh is None else run.w.b_hh[:, None]
        self.g = run.empty(run.samples, 3 * n)
        self.parts = self.g[..., : 2 * n], self.g[..., 2 * n :]
        blocks = (kept[..., : 2 * n], kept[..., :n], kept[..., n : 2 * n], kept[..., 2 * n : 3 * n], kept[..., 3 * n :])
        self.gates = list(zip(*(block.unbind(1) for block in blocks), strict=True))

    def __call__(self, t: int, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.b is None:
            torch.bmm(h, self.w, out=self.g)
        else:
            torch.baddbmm(self.b, h, self.w, out=self.g)
        pair, r, z, n, q = self.gates[t]
        torch.add(x[..., : 2 * self.n], self.parts[0], out=pair)
        torch.sigmoid(pair, out=pair)
        q.copy_(self.parts[1])
        torch.addcmul(x[..., 2 * self.n :], r, q, out=n)
        tanh(n, out=n)
        y = torch.lerp(n, h, z, out=self.y[t])
        if self.run.keep is not None:
            torch.where(self.run.keep[t], y, h, out=y)
        return y, c


_FORWARD: dict[str, Any] = {
    "lstm": _LstmForward,
    "gru": _GruForward,
    "rnn_tanh": _RnnForward,
    "rnn_relu": _RnnForward,
}
