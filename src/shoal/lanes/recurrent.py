"""A recurrent layer as one node of a traced graph: operators over lanes, their batching rule and their derivative.

Traced step by step, an LSTM of 100 steps is ten thousand nodes. Here it is two, one for each way through time; ``cells`` has what
they do. As with activations, each operator comes twice: for one trial, which is what a model under ``vmap`` calls, and for
lanes, which is what the batching rule and then the graph call.

Glossary: as in ``cells``, without lanes: ``x`` (T, B, F), ``h0`` (B, P), ``c0`` (B, H), ``keep`` (T, B).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from shoal.lanes.batching import lanes_first
from shoal.lanes.cells import Weights, forward
from shoal.lanes.cells_back import backward
from shoal.lanes.gates import Gates, TorchGates

_INPUTS = (
    "Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, Tensor? keep"
)
_FORWARD = f"({_INPUTS}, str kind, bool reverse) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor? dy, Tensor? dh, Tensor? dc, {_INPUTS}, Tensor y, Tensor cells, Tensor gates, str kind, bool reverse, "
    "bool wants_x) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
for _name, _schema in (("recurrent", _FORWARD), ("recurrent_backward", _BACKWARD)):
    torch.library.define(f"shoal::{_name}", _schema)
    torch.library.define(f"shoal::lane_{_name}", _schema)

_Maybe = Tensor | None


def lane_forward(
    step: Gates,
    x: Tensor,
    h0: Tensor,
    c0: _Maybe,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: _Maybe,
    b_hh: _Maybe,
    w_hr: _Maybe,
    keep: _Maybe,
    kind: str,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """``shoal::lane_recurrent``, with the gates computed by ``step``."""
    return forward(step, kind, reverse, x, h0, c0, Weights(w_ih, w_hh, b_ih, b_hh, w_hr), keep)


def lane_backward(
    step: Gates,
    dy: _Maybe,
    dh: _Maybe,
    dc: _Maybe,
    x: Tensor,
    h0: Tensor,
    c0: _Maybe,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: _Maybe,
    b_hh: _Maybe,
    w_hr: _Maybe,
    keep: _Maybe,
    y: Tensor,
    kept_cells: Tensor,
    gates: Tensor,
    kind: str,
    reverse: bool,
    wants_x: bool,
) -> tuple[Tensor, ...]:
    w = Weights(w_ih, w_hh, b_ih, b_hh, w_hr)
    got = backward(step, kind, reverse, dy, dh, dc, x, h0, c0, w, keep, y, kept_cells, gates, wants_x=wants_x)
    out = (got.x, got.h0, got.c0, got.w.w_ih, got.w.w_hh, got.w.b_ih, got.w.b_hh, got.w.w_hr)
    # An operator returns tensors, each in memory of its own.
    return tuple(x.new_empty(x.shape[0], 0) if g is None else g.clone() if g is got.w.b_hh else g for g in out)


torch.library.impl("shoal::lane_recurrent", "CompositeExplicitAutograd", partial(lane_forward, TorchGates()))
torch.library.impl("shoal::lane_recurrent_backward", "CompositeExplicitAutograd", partial(lane_backward, TorchGates()))


def _one(args: Sequence[Any]) -> list[Any]:
    return [a[None] if isinstance(a, Tensor) else a for a in args]


@torch.library.impl("shoal::recurrent", "CompositeExplicitAutograd")
def _forward(*args: Any) -> tuple[Tensor, ...]:
    return tuple(t[0] for t in torch.ops.shoal.lane_recurrent(*_one(args)))


@torch.library.impl("shoal::recurrent_backward", "CompositeExplicitAutograd")
def _backward(*args: Any) -> tuple[Tensor, ...]:
    return tuple(t[0] for t in torch.ops.shoal.lane_recurrent_backward(*_one(args)))


@torch.library.register_vmap("shoal::recurrent")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return torch.ops.shoal.lane_recurrent(*lanes_first(info, in_dims, args)), (0,) * 5


@torch.library.register_vmap("shoal::recurrent_backward")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return torch.ops.shoal.lane_recurrent_backward(*lanes_first(info, in_dims, args)), (0,) * 8


class _Apply(torch.autograd.Function):
    """Ties the operators together; ``torch.func`` transforms need it as a Function with its context set apart."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kind: str, reverse: bool, wants_x: bool, *inputs: Any) -> Any:
        return torch.ops.shoal.recurrent(*inputs, kind, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.how = inputs[:3]
        y, _, _, kept_cells, gates = output
        ctx.mark_non_differentiable(kept_cells, gates)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[3:], y, kept_cells, gates)

    @staticmethod
    def backward(ctx: Any, dy: _Maybe, dh: _Maybe, dc: _Maybe, *_: Any) -> tuple[Any, ...]:
        kind, reverse, wants_x = ctx.how
        saved = ctx.saved_tensors
        dc = dc if kind == "lstm" else None
        got = torch.ops.shoal.recurrent_backward(dy, dh, dc, *saved, kind, reverse, wants_x)
        dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr = got
        _, _, c0, _, _, b_ih, b_hh, w_hr = saved[:8]
        return (
            *(None, None, None, dx if wants_x else None, dh0, None if c0 is None else dc0, dw_ih, dw_hh),
            *(None if given is None else d for given, d in ((b_ih, db_ih), (b_hh, db_hh), (w_hr, dw_hr))),
            None,
        )


def recurrent(
    kind: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Weights,
    keep: Tensor | None = None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction of one layer, differentiable and vmappable: (y (T, B, P), h_n (B, P), c_n (B, H) or empty).

    Args:
        kind: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        x, h0, c0: (T, B, F), (B, P), (B, H); ``c0`` for an LSTM only.
        w: One trial's parameters, in torch's own layout.
        keep: bool (T, B): which steps a sequence has. The others change no state; what they get as ``x`` does not matter.
        reverse: From the last step to the first.
    """
    y, h, c, _, _ = _Apply.apply(  # type: ignore[no-untyped-call]
        kind, reverse, x.requires_grad, x, h0, c0, w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr, keep
    )
    return y, h, c
