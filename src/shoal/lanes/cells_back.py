"""Recurrent layers over lanes, back through time: gradients of inputs, states and weights.

Glossary: as in ``cells``. ``d`` before a name is the gradient of the loss by it. Gradients before the gates are kept for a group of
steps only, (lanes, steps, B, G): what the products with inputs and states need to give the gradients of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shoal.lanes.cells import GATES, Run, Weights, fit, spans
from shoal.lanes.gates import Gates

_aten = torch.ops.aten
_sigmoid_back = _aten.sigmoid_backward.grad_input
_tanh_back = _aten.tanh_backward.grad_input
_relu_back = _aten.threshold_backward.grad_input


@dataclass(frozen=True, slots=True)
class Gradients:
    """What ``backward`` gives; None where there is no such input, or nobody asked."""

    x: Tensor | None
    h0: Tensor
    c0: Tensor | None
    w: Weights


def backward(
    step: Gates,
    kind: str,
    reverse: bool,
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w: Weights,
    keep: Tensor | None,
    y: Tensor,
    cells: Tensor,
    kept: Tensor,
    *,
    wants_x: bool,
) -> Gradients:
    """Gradients of a layer's inputs and weights, from those of ``y``, ``h_n`` and ``c_n`` (None where zero)."""
    run = Run(step, kind, x, h0, c0, w, keep)
    y = fit(y, run.samples, run.state).contiguous()
    dy = None if dy is None else F.pad(dy, (0, run.state - run.n_state, 0, run.samples - run.n_samples))
    back = _BACKWARD[kind](run, y, cells, kept)
    back.start(dh, dc)
    wide = run.w.w_ih.shape[1]
    dw_ih, dw_hh = torch.zeros_like(run.w.w_ih), torch.zeros_like(run.w.w_hh)
    db_x, db_h = run.x.new_zeros(run.lanes, wide), run.x.new_zeros(run.lanes, wide)
    dx = torch.empty_like(run.x) if wants_x else None
    for start, stop in spans(run.steps, run.samples, backwards=not reverse):
        gx, gh = back.buffers(stop - start)  # gradients before the gates, (lanes, steps, B, G): input side, hidden side
        for t in range(start, stop) if reverse else reversed(range(start, stop)):
            before = t + 1 if reverse else t - 1
            h = y[:, before] if 0 <= before < run.steps else run.h0
            back(t, t - start, before, h, None if dy is None else dy[:, t])
        back.finish()
        rows = gx.view(run.lanes, -1, wide)
        dw_ih.baddbmm_(rows.transpose(1, 2), run.rows(run.x, start, stop))
        db_x += rows.sum(1)
        if gh is not gx:
            db_h += gh.view(run.lanes, -1, wide).sum(1)
        if dx is not None:
            dx[:, start:stop] = torch.bmm(rows, run.w.w_ih).view(run.lanes, stop - start, run.samples, -1)
        # The states before: those of the neighbouring steps, and of the steps' border from h0.
        first, last = (start, min(stop, run.steps - 1)) if reverse else (max(start, 1), stop)
        if last > first:
            shift = 1 if reverse else -1
            states = run.rows(y, first + shift, last + shift)
            dw_hh.baddbmm_(gh[:, first - start : last - start].reshape(run.lanes, -1, wide).transpose(1, 2), states)
        if (stop == run.steps) if reverse else (start == 0):
            border = gh[:, -1] if reverse else gh[:, 0]
            dw_hh.baddbmm_(border.transpose(1, 2), run.h0)
    if kind != "gru":
        db_h = db_x
    return _cut(run, w, dx, back, Weights(dw_ih, dw_hh, db_x, db_h, back.dw_hr))


def _cut(run: Run, w: Weights, dx: Tensor | None, back: _Back, grads: Weights) -> Gradients:
    """Take the padding off again."""
    gates, h, p = GATES[run.kind], run.n_units, run.n_state

    def weight(d: Tensor, columns: int) -> Tensor:
        if run.units == h and d.shape[2] == columns:
            return d
        return d.view(run.lanes, gates, run.units, -1)[:, :, :h, :columns].reshape(run.lanes, gates * h, columns)

    def bias(b: Tensor | None, d: Tensor | None) -> Tensor | None:
        return None if b is None or d is None else d.view(run.lanes, gates, run.units)[..., :h].flatten(1)

    return Gradients(
        None if dx is None else run.cut(dx, dx.shape[3]),
        run.cut(back.dh, p),
        None if run.kind != "lstm" else run.cut(back.dc, h),
        Weights(
            weight(grads.w_ih, w.w_ih.shape[2]),
            weight(grads.w_hh, p),
            bias(w.b_ih, grads.b_ih),
            bias(w.b_hh, grads.b_hh),
            None if grads.w_hr is None else grads.w_hr[:, :p, :h],
        ),
    )


class _Back:
    """Shared by the ways back: the running gradients of h and c, and buffers for some steps."""

    def __init__(self, run: Run, y: Tensor, cells: Tensor, kept: Tensor) -> None:
        self.run, self.y, self.cells, self.kept = run, y, cells, kept
        self.w = run.w.w_hh
        self.dh, self.dc = run.empty(run.samples, run.state), run.empty(run.samples, run.units)
        self.carried = run.empty(run.samples, run.state)
        self.dw_hr = None if run.w.w_hr is None else torch.zeros_like(run.w.w_hr)
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}
        self.gx: tuple[Tensor, ...] = ()
        self.gh: tuple[Tensor, ...] = ()

    def start(self, dh: Tensor | None, dc: Tensor | None) -> None:
        """Begin with the gradients of the last state."""
        run = self.run
        for mine, given in ((self.dh, dh), (self.dc, dc)):
            mine.zero_()
            if given is not None:
                run.cut(mine, given.shape[-1]).copy_(given)

    def buffers(self, steps: int) -> tuple[Tensor, Tensor]:
        """Room for the gradients before the gates of some steps."""
        if steps not in self._whole:
            wide = self.w.shape[1]
            gx = self.run.empty(steps, self.run.samples, wide)
            self._whole[steps] = (gx, torch.empty_like(gx) if self.run.kind == "gru" else gx)
        gx, gh = self._whole[steps]
        self.gx, self.gh = gx.unbind(1), gh.unbind(1)
        return gx, gh

    def __call__(self, t: int, s: int, before: int, h: Tensor, dy: Tensor | None) -> None:
        """One step back: step ``t``, at ``s`` in the buffers; ``h`` is the state of the step ``before`` it."""
        raise NotImplementedError

    def finish(self) -> None:
        """The steps of these buffers are done."""

    def split(self, t: int) -> Tensor | None:
        """Set aside what steps that a sequence does not have pass on; returns which ones it has, as numbers."""
        if self.run.keep is None:
            return None
        keep = self.run.keep[t].to(self.dh.dtype)
        torch.mul(self.dh, 1 - keep, out=self.carried)
        self.dh.mul_(keep)
        return keep


class _RnnBack(_Back):
    def __call__(self, t: int, s: int, before: int, h: Tensor, dy: Tensor | None) -> None:
        if dy is not None:
            self.dh.add_(dy)
        keep = self.split(t)
        if self.run.kind == "rnn_tanh":
            _tanh_back(self.dh, self.y[:, t], grad_input=self.gx[s])
        else:
            _relu_back(self.dh, self.y[:, t], 0, grad_input=self.gx[s])
        torch.bmm(self.gx[s], self.w, out=self.dh)
        if keep is not None:
            self.dh.add_(self.carried)


class _LstmBack(_Back):
    def __call__(self, t: int, s: int, before: int, h: Tensor, dy: Tensor | None) -> None:
        run, gates, cell = self.run, self.kept[:, t], self.cells[:, t]
        c = self.cells[:, before] if 0 <= before < run.steps else run.c0
        assert c is not None
        if dy is not None:
            self.dh.add_(dy)
        keep = self.split(t)
        aside = None
        if keep is not None:
            aside = self.dc * (1 - keep)
            self.dc.mul_(keep)
        dh = self.dh
        if run.w.w_hr is not None and self.dw_hr is not None:
            whole = gates[..., 3 * run.units :] * torch.tanh(cell)
            self.dw_hr.baddbmm_(dh.transpose(1, 2), whole)
            dh = torch.bmm(dh, run.w.w_hr)
        run.step.lstm_backward(dh, self.dc, gates, cell, c, self.gx[s])
        torch.bmm(self.gx[s], self.w, out=self.dh)
        if keep is not None and aside is not None:
            self.dh.add_(self.carried)
            self.dc.add_(aside)


class _GruBack(_Back):
    def __init__(self, run: Run, y: Tensor, cells: Tensor, kept: Tensor) -> None:
        super().__init__(run, y, cells, kept)
        n = run.units
        self.pre = run.empty(run.samples, 2 * n)
        self.through, self.work = run.empty(run.samples, n), run.empty(run.samples, n)

    def __call__(self, t: int, s: int, before: int, h: Tensor, dy: Tensor | None) -> None:
        n = self.run.units
        r, z, new, q = self.kept[:, t].chunk(4, -1)
        if dy is not None:
            self.dh.add_(dy)
        keep = self.split(t)
        dh, gx, gh = self.dh, self.gx[s][..., 2 * n :], self.gh[s]
        torch.mul(dh, z, out=self.through)
        torch.sub(dh, self.through, out=self.work)
        _tanh_back(self.work, new, grad_input=gx)
        torch.mul(gx, q, out=self.pre[..., :n])
        torch.sub(h, new, out=self.pre[..., n:]).mul_(dh)
        _sigmoid_back(self.pre, self.kept[:, t, :, : 2 * n], grad_input=gh[..., : 2 * n])
        torch.mul(gx, r, out=gh[..., 2 * n :])
        torch.baddbmm(self.through, gh, self.w, out=self.dh)
        if keep is not None:
            self.dh.add_(self.carried)

    def finish(self) -> None:
        """Both sides of r and z have the same gradient."""
        n = self.run.units
        for gx, gh in zip(self.gx, self.gh, strict=True):
            gx[..., : 2 * n].copy_(gh[..., : 2 * n])


_BACKWARD: dict[str, type[_Back]] = {"lstm": _LstmBack, "gru": _GruBack, "rnn_tanh": _RnnBack, "rnn_relu": _RnnBack}
