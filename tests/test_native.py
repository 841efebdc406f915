"""Native kernels against torch: the same updates, masks and activations, and the same lanes in whole trainings."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lanes_helpers import KERNELS, assert_same_trail, made, specs_of, train_fused, work_of
from optimizer_tables import OPTIMIZERS
from shoal.lanes import native, optim
from shoal.lanes.activations import TABLE, kind_of
from shoal.lanes.gates import TorchGates
from shoal.lanes.kernels import Gradients, TorchKernels, Updates
from shoal.lanes.native import NativeKernels
from shoal.lanes.native._build import compiler
from shoal.lanes.tables import coefficients, family_of, numbers, stacked
from test_bit_identity import CASES, check_neighbours
from test_equality import KINDS, definition, mixed, mlp
from test_recurrent import NEIGHBOURS
from test_recurrent import check_neighbours as check_recurrent_neighbours

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_CACHE", str(folder))
        patch.delenv("SHOAL_NATIVE", raising=False)
        build = native.library()
        build.start()
        path = build.wait()
    assert path is not None
    return path


@pytest.fixture(scope="module")
def kernels(library: Path) -> NativeKernels:
    return NativeKernels(library)


@pytest.fixture
def in_fleets(kernels: NativeKernels) -> Iterator[None]:
    """Fleets of the test helpers run on native kernels."""
    KERNELS.append(kernels)
    yield
    KERNELS.pop()


# --- updates -----------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_updates_agree_with_torch_optim(kernels: NativeKernels, dtype: torch.dtype) -> None:
    built: dict[optim.Family, list[tuple[str, nn.Module, torch.optim.Optimizer]]] = {}
    for name, make in OPTIMIZERS.items():
        model = mlp(nn.ReLU, 0.0).to(dtype)
        optimizer = make(model)
        family = family_of(optimizer)
        if family in native.FAMILIES:
            built.setdefault(family, []).append((name, model, optimizer))
    assert set(built) == set(native.FAMILIES)
    n_steps, steps = 10, np.arange(1, 11, dtype=np.float64)
    for family, members in built.items():
        case = Case.of(list(members[0][1].parameters()), len(members), n_steps, dtype)
        for row, (_, model, optimizer) in enumerate(members):
            for k, t in enumerate(model.parameters()):
                case.views[0][k][row] = t.detach()
            for group in optimizer.param_groups:
                c = coefficients(optimizer, family, stacked([numbers(group)]), steps, {})
                for k, t in enumerate(model.parameters()):
                    if any(t is member for member in group["params"]):
                        case.table[:, :, row, k] = torch.from_numpy(c)
        advance = kernels.advance(case.gradients, [case.updates(family)])
        for step in range(n_steps):
            parts = [made(*v.shape, seed=step, dtype=dtype) for v in case.gradients.views]
            for row, (_, model, optimizer) in enumerate(members):
                for k, t in enumerate(model.parameters()):
                    t.grad = parts[k][row].clone()
                optimizer.step()
            advance(step, parts)
            for row, (name, model, _) in enumerate(members):
                for k, t in enumerate(model.parameters()):
                    error = (case.views[0][k][row] - t.detach()).abs().max() / t.detach().abs().max()
                    assert error.item() <= (1e-13 if dtype == torch.float64 else 2e-6), f"{name}, step {step}"


@dataclass
class Case:
    """A stretch of lanes with everything that an update needs. ``views`` are the parameters inside each of the five buffers."""

    state: Tensor  # (5, lanes, P)
    views: list[list[Tensor]]
    table: Tensor
    due: Tensor
    gradients: Gradients

    @classmethod
    def of(cls, parameters: Sequence[Tensor], lanes: int, ticks: int, dtype: torch.dtype) -> Case:
        sizes = [t.numel() for t in parameters]
        offsets = [0, *(int(x) for x in np.cumsum([s + 3 for s in sizes]))]  # gaps, as padding leaves them
        state = torch.zeros(5, lanes, offsets.pop(), dtype=dtype)
        views = [
            [b[:, o : o + n].view(lanes, *t.shape) for o, n, t in zip(offsets, sizes, parameters, strict=True)]
            for b in state
        ]
        goes_on = torch.zeros(ticks, lanes, dtype=torch.uint8)
        gradients = Gradients(state[4], views[4], torch.tensor(offsets), torch.tensor(sizes), goes_on, None)
        table = torch.zeros(ticks, optim.K, lanes, len(sizes), dtype=dtype)
        return cls(state, views, table, torch.ones(ticks, lanes, dtype=torch.uint8), gradients)

    def updates(self, family: optim.Family, first: int = 0) -> Updates:
        p, m, v, a, g = self.state.unbind(0)
        owner = torch.zeros(p.shape[1], dtype=torch.int64)
        for k, (o, n) in enumerate(zip(self.gradients.offsets, self.gradients.sizes, strict=True)):
            owner[int(o) : int(o + n)] = k
        uses = frozenset({optim.SIGN, optim.L2, optim.DECAY, optim.C5})
        return Updates(family, first, (p, m, v, a, g), self.table, self.due, uses, owner)


@needs_compiler
@pytest.mark.parametrize("shaped", [False, True], ids=["plain", "shaped"])
@pytest.mark.parametrize("family", list(native.FAMILIES))
def test_batches_of_several_ticks_are_added_up_as_torch_does(
    kernels: NativeKernels, family: optim.Family, shaped: bool
) -> None:
    """Six lanes whose batches take one, two or three ticks, one lane with no batch at all; two stretches of lanes."""
    ticks, lanes = 6, 6
    due, goes_on = np.zeros((2, ticks, lanes), dtype=np.uint8)
    for lane, length in enumerate((1, 2, 3, 1, 3)):
        for t in range(ticks):
            due[t, lane], goes_on[t, lane] = (t + 1) % length == 0, t % length != 0
    ends = []
    for which in (kernels, TorchKernels()):
        case = Case.of([torch.zeros(4, 5), torch.zeros(3)], lanes, ticks, torch.float64)
        case.state.copy_(made(*case.state.shape).abs())
        case.state[3] *= 0.01  # the square of a mean is never above the mean of squares
        case.table.copy_(made(*case.table.shape, seed=9).abs() * 0.1)
        for t in range(ticks):
            for idle in np.flatnonzero(due[t] == 0):
                case.table[t, :, idle] = torch.from_numpy(optim.idle(family))[:, None]
        own = case.state[4].clone()

        def shape(t: int, case: Case = case, own: Tensor = own) -> None:
            own.copy_(case.state[4]).mul_(2.0)

        gradients = replace(case.gradients, goes_on=torch.from_numpy(goes_on), shape=shape if shaped else None)
        updates = []
        for i, j in ((0, 2), (2, 6)):
            p, m, v, a, g = (b[i:j] for b in (*case.state[:4], own if shaped else case.state[4]))
            rows, full = case.table[:, :, i:j].contiguous(), torch.from_numpy(np.ascontiguousarray(due[:, i:j]))
            updates.append(replace(case.updates(family), first=i, buffers=(p, m, v, a, g), table=rows, due=full))
        advance = which.advance(gradients, updates)
        for t in range(ticks):
            advance(t, [made(*v.shape, seed=20 + t) for v in case.views[4]])
        ends.append(torch.cat([v.flatten(1) for b in case.views[:4] for v in b], 1))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-12)


@needs_compiler
def test_a_family_without_a_native_form_changes_no_bit_of_the_others(kernels: NativeKernels) -> None:
    def end(second: optim.Family) -> Tensor:
        """Two Adam lanes beside two lanes of another family, after three ticks."""
        case = Case.of([torch.zeros(6, 5), torch.zeros(3)], 4, 3, torch.float32)
        case.state.copy_(made(*case.state.shape, dtype=torch.float32).abs())
        case.table.copy_(made(*case.table.shape, seed=9, dtype=torch.float32).abs() * 0.1)
        updates = []
        for family, i, j in ((optim.Family.ADAM, 0, 2), (second, 2, 4)):
            p, m, v, a, g = (b[i:j] for b in case.state)
            rows, full = case.table[:, :, i:j].contiguous(), case.due[:, i:j].contiguous()
            updates.append(replace(case.updates(family), first=i, buffers=(p, m, v, a, g), table=rows, due=full))
        advance = kernels.advance(case.gradients, updates)
        for t in range(3):
            advance(t, [made(*v.shape, seed=20 + t, dtype=torch.float32) for v in case.views[4]])
        return case.state[:4]

    beside_sgd, beside_nadam = end(optim.Family.SGD), end(optim.Family.NADAM)
    assert torch.equal(beside_sgd[:, :2], beside_nadam[:, :2])
    assert not torch.equal(beside_sgd[0, 2:], beside_nadam[0, 2:])


@needs_compiler
@pytest.mark.parametrize("family", list(native.FAMILIES))
def test_lanes_that_are_not_due_are_left_alone(kernels: NativeKernels, family: optim.Family) -> None:
    case = Case.of([torch.zeros(64)], 3, 1, torch.float32)
    case.state.copy_(made(*case.state.shape, dtype=torch.float32).abs())
    case.table.copy_(made(*case.table.shape, seed=9, dtype=torch.float32).abs())
    case.due.copy_(torch.tensor([[0, 1, 0]]))
    before = case.state.clone()
    part = made(3, 64, seed=3, dtype=torch.float32)
    kernels.advance(case.gradients, [case.updates(family)])(0, [part])
    assert torch.equal(case.state[:4, [0, 2]], before[:4, [0, 2]])
    assert not torch.equal(case.state[0, 1], before[0, 1])
    assert torch.equal(case.views[4][0][[0, 2]], part[[0, 2]])  # kept, for the ticks that follow


@needs_compiler
@pytest.mark.parametrize(
    "module",
    [nn.Identity(), nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.LeakyReLU(0.2)],
    ids=str,
)
def test_activations_in_float64_are_torchs(kernels: NativeKernels, module: nn.Module) -> None:
    kind = kind_of(module)
    assert kind is not None and kernels.code(kind) is not None
    x, grad, runs = made(3, 40) * 4, made(3, 40, seed=1), [(kind, 0, 3)]
    y = kernels.forward(x, runs)
    torch.testing.assert_close(y, TorchKernels().forward(x, runs), rtol=1e-13, atol=1e-15)
    expected = TorchKernels().backward(grad, x, y, runs)
    torch.testing.assert_close(kernels.backward(grad, x, y, runs), expected, rtol=1e-12, atol=1e-14)


@needs_compiler
def test_what_has_no_native_form_goes_to_torch(kernels: NativeKernels) -> None:
    x = made(3, 4, 5, dtype=torch.float64)
    runs = [(kind_of(nn.Tanh()) or 0, 0, 2), (kind_of(nn.Mish()) or 0, 2, 3)]
    assert torch.equal(kernels.forward(x, runs)[2:], TorchKernels().forward(x, runs)[2:])
    assert torch.equal(kernels.backward(x, x, x, runs)[2:], TorchKernels().backward(x, x, x, runs)[2:])
    mish = [(kind_of(nn.Mish()) or 0, 0, 3)]
    assert torch.equal(kernels.forward(x.float(), mish), TorchKernels().forward(x.float(), mish))
    half = (torch.zeros(2, 3, dtype=torch.int32), torch.arange(4, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
    assert kernels.mask(*half, torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


# --- masks -------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [1, 7, 64])
def test_masks_are_the_same_bits(kernels: NativeKernels, n: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(n)
    keys, element, threshold = (
        torch.randint(-(2**31), 2**31 - 1, shape, generator=draw, dtype=torch.int64).to(torch.int32)
        for shape in ((5, 9), (n,), (5,))
    )
    threshold = threshold >> 1
    scale = made(5, dtype=dtype).abs() + 1
    ours = kernels.mask(keys, element, threshold, scale)
    assert torch.equal(ours, TorchKernels().mask(keys, element, threshold, scale))
    assert 0 < (ours != 0).double().mean().item() < 1


# --- activations -------------------------------------------------------------------------------------------------

NATIVE = [
    nn.Identity(),
    nn.ReLU(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.LeakyReLU(0.2),
]


@needs_compiler
@pytest.mark.parametrize("module", NATIVE, ids=repr)
def test_activations_agree_with_float64(kernels: NativeKernels, module: nn.Module) -> None:
    kind = kind_of(module)
    assert kind is not None and kernels.code(kind) is not None
    ends = [0.0, -0.0, 0.6, -0.6, 88.8, -88.8, 120.0, -120.0, 1e30, -1e30, 1e-30, 1e-41]
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.linspace(-1, 1, 4001), torch.tensor(ends)])[None]
    y = kernels.forward(x, [(kind, 0, 1)])
    slope = kernels.backward(torch.ones_like(x), x, y, [(kind, 0, 1)])

    def through_torch(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        y = module(x)
        return y.detach(), torch.autograd.grad(y.sum(), x)[0]

    for ours, torchs, exact in zip((y, slope), through_torch(x), through_torch(x.double()), strict=True):
        # Of the larger of value and one. torch's own kernels in float32 are the measure, which overflow at 1e30 here and there.
        finite = torchs.isfinite() & exact.isfinite()
        scale = exact.abs().clamp(min=1.0)[finite]
        error, theirs = ((t.double() - exact)[finite].abs() / scale for t in (ours, torchs))
        assert error.max().item() < max(5e-7, 2 * theirs.max().item())


@needs_compiler
def test_tanh_is_accurate_near_zero(kernels: NativeKernels) -> None:
    x = torch.logspace(-30, 0, 2000)[None]
    y = kernels.forward(x, [(kind_of(nn.Tanh()) or 0, 0, 1)])
    assert ((y.double() - x.double().tanh()) / x.double().tanh()).abs().max().item() < 3e-7


@needs_compiler
@pytest.mark.parametrize("module", NATIVE, ids=repr)
def test_what_is_not_finite_stays_so(kernels: NativeKernels, module: nn.Module) -> None:
    kind = kind_of(module) or 0
    x = torch.tensor([[float("nan"), 1.0, float("inf"), -float("inf")]])
    y = kernels.forward(x, [(kind, 0, 1)])
    assert bool(y[0, 0].isnan()) and bool(y[0, 1].isfinite())
    assert float(y[0, 2]) == float(module(x.double())[0, 2])
    assert bool(kernels.backward(x, x, y, [(kind, 0, 1)])[0, 0].isnan())


@needs_compiler
def test_a_run_does_not_touch_its_neighbours(kernels: NativeKernels) -> None:
    x = made(6, 3, 7, dtype=torch.float32)
    kinds = [kind_of(m) or 0 for m in (nn.Tanh(), nn.Mish(), nn.GELU())]
    y = kernels.forward(x, [(kinds[0], 0, 2), (kinds[1], 2, 3), (kinds[2], 3, 6)])
    for part, kind in ((slice(0, 2), 0), (slice(2, 3), 1), (slice(3, 6), 2)):
        alone = x[part].clone()
        assert torch.equal(y[part], kernels.forward(alone, [(kinds[kind], 0, alone.shape[0])]))
        torch.testing.assert_close(y[part], TABLE[kinds[kind]].forward(alone, *TABLE[kinds[kind]].args))


# --- cross-entropy ---------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("smoothing", [None, 0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("q", "classes", "ignore"), [(1, 2, -100), (7, 10, 3), (600, 3, -1)])
def test_cross_entropy_agrees_with_torch(
    kernels: NativeKernels,
    q: int,
    classes: int,
    ignore: int,
    weighted: bool,
    smoothing: float | None,
    dtype: torch.dtype,
) -> None:
    lanes = 3
    scores = (20 * made(lanes, q, classes, dtype=dtype)).requires_grad_()
    target = torch.arange(lanes * q).view(lanes, q) % classes
    if ignore < 0:
        target[0, 0] = ignore
    weight = made(lanes, classes, seed=4, dtype=dtype).abs() if weighted else None
    lane_smoothing = None if smoothing is None else torch.full((lanes,), smoothing, dtype=torch.float64)
    loss, log_p = kernels.loss(scores.detach(), target, weight, lane_smoothing, ignore)
    expected = torch.stack(
        [
            nn.functional.cross_entropy(
                s,
                y,
                None if weight is None else weight[i],
                ignore_index=ignore,
                reduction="none",
                label_smoothing=smoothing or 0.0,
            )
            for i, (s, y) in enumerate(zip(scores, target, strict=True))
        ]
    )
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(loss, expected.detach(), rtol=tolerance, atol=10 * tolerance)
    grad = made(lanes, q, seed=5, dtype=dtype)
    expected.backward(grad)  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    slope = kernels.loss_backward(grad, log_p, target, weight, lane_smoothing, ignore)
    torch.testing.assert_close(slope, scores.grad, rtol=tolerance, atol=10 * tolerance)


@needs_compiler
def test_cross_entropy_of_what_is_not_finite(kernels: NativeKernels) -> None:
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[[0.0, -inf, 1.0], [nan, 0.0, 0.0], [0.0, 0.0, nan], [1e30, 0.0, -1e30]]])
    target = torch.tensor([[2, 1, 1, 0]])
    loss, log_p = kernels.loss(scores, target, None, None, -100)
    expected = nn.functional.cross_entropy(scores[0], target[0], reduction="none")
    torch.testing.assert_close(loss[0], expected, equal_nan=True)
    slope = kernels.loss_backward(torch.ones(1, 4), log_p, target, None, None, -100)
    assert slope[0, [0, 3]].isfinite().all() and slope[0, [1, 2]].isnan().any(1).all()


# --- whole trainings ---------------------------------------------------------------------------------------------


@needs_compiler
@needs_compiler
@pytest.mark.parametrize("units", [1, 4, 19])
def test_the_gates_of_an_lstm_agree_with_torchs(kernels: NativeKernels, units: int) -> None:
    def rows(n: int, apart: int = 0) -> Tensor:
        return torch.randn(3, 5 + apart, n)[:, :5]

    g, c = rows(4 * units) * 4, rows(units, 2)
    dh, dc = rows(units), rows(units, 1)
    ours, theirs = ([rows(4 * units, 1), rows(units), rows(units, 3), dc.clone(), rows(4 * units)] for _ in range(2))
    for gates, out, dtype in ((kernels, ours, torch.float32), (TorchGates(), theirs, torch.float64)):
        out[:] = [t.to(dtype) for t in out] if dtype == torch.float64 else out
        after, cell, h, new_dc, dg = out
        gates.lstm(g.to(dtype), c.to(dtype), after, cell, h)
        gates.lstm_backward(dh.to(dtype), new_dc, after, cell, c.to(dtype), dg)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-6 * max(1.0, b.abs().max().item())


@needs_compiler
def test_gates_that_do_not_lie_in_rows_go_to_torch(kernels: NativeKernels) -> None:
    def run(g: Tensor, c: Tensor) -> list[Tensor]:
        outs = [torch.empty(2, 3, n, dtype=g.dtype) for n in (16, 4, 4)]
        kernels.lstm(g, c, *outs)
        dc, dg = torch.ones(2, 3, 4, dtype=g.dtype), torch.empty(2, 3, 16, dtype=g.dtype)
        kernels.lstm_backward(dc.clone(), dc, outs[0], outs[1], c, dg)
        return [*outs, dc, dg]

    g, c = torch.randn(2, 3, 16), torch.randn(2, 4, 3).transpose(1, 2)
    for a, b, d in zip(run(g, c), run(g.double(), c.double()), run(g, c.contiguous()), strict=True):
        assert torch.allclose(a.double(), b, atol=1e-6) and torch.allclose(a, d, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp dropout", "cnn batchnorm"])
def test_lanes_take_the_same_path(name: str, kernels: NativeKernels) -> None:
    kind = KINDS[name]
    define, work = definition(kind, torch.float64), work_of(kind.data(torch.float64), kind.metric)
    specs = specs_of(mixed(len(OPTIMIZERS)))
    plain = train_fused(define, specs, work, 2)
    KERNELS.append(kernels)
    try:
        ours = train_fused(define, specs, work, 2)
    finally:
        KERNELS.pop()
    for spec in specs:
        assert_same_trail(ours[spec.number], plain[spec.number], 1e-9, loose=kind.loose)


@needs_compiler
@pytest.mark.usefixtures("in_fleets")
@pytest.mark.parametrize(("name", "width"), list(zip(CASES, (32, 7, 2, 7, 32, 7), strict=True)))
def test_neighbours_change_no_bit(name: str, width: int) -> None:
    check_neighbours(name, width)


@needs_compiler
@pytest.mark.usefixtures("in_fleets")
@pytest.mark.parametrize("case", [c for c in NEIGHBOURS if c[0] == "lstm"], ids=str)
@pytest.mark.parametrize("width", [2, 7])
def test_neighbours_of_an_lstm_change_no_bit(case: tuple[str, int, int, dict[str, Any], int], width: int) -> None:
    check_recurrent_neighbours(*case, width)


# --- the library -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SHOAL_NATIVE", raising=False)
    return tmp_path / "cache"


@needs_compiler
def test_is_built_once(folder: Path) -> None:
    first = native.library()
    assert first.ready() is None
    first.start()
    path = first.wait()
    assert path is not None and path.parent == folder and stat.S_IMODE(path.stat().st_mode) == 0o700
    second = native.library()
    second.start()
    assert second._process is None and second.ready() == path
    assert [p.name for p in folder.iterdir()] == [path.name]


@needs_compiler
def test_a_file_that_others_may_write_to_is_not_loaded(folder: Path) -> None:
    build = native.library()
    build.start()
    path = build.wait()
    assert path is not None
    path.chmod(0o722)
    assert native.library().ready() is None


def test_no_compiler_is_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    build = native.library()
    with pytest.warns(RuntimeWarning, match=r"native kernels are not used.*no C\+\+ compiler"):
        build.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build.start()
    assert build.ready() is None


def test_a_compiler_that_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'no such flag'\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    build = native.library()
    build.start()
    with pytest.warns(RuntimeWarning, match="native kernels are not used, training is slower: no such flag"):
        assert build.wait() is None
    assert build.ready() is None and list(folder.iterdir()) == []


def test_can_be_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_NATIVE", "0")
    build = native.library()
    build.start()
    assert build._process is None and build.ready() is None


def test_a_library_that_cannot_be_loaded_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and this user's own, but no library: damaged ones are built again (tests/test_safe_files.py)."""
    build = native.library()
    folder.mkdir()
    content = b"\x7fELF no more than that"
    build.path().write_bytes(content + hashlib.sha256(content).digest())
    build.path().chmod(0o700)
    monkeypatch.setattr(native, "_build", build)
    monkeypatch.setattr(native, "_loaded", None)
    with pytest.warns(RuntimeWarning, match="cannot be loaded"):
        assert native.kernels() is None
    assert native.kernels() is None


def test_a_forked_worker_builds_nothing_and_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = native.library()
    monkeypatch.setattr(build, "_owner", os.getpid() + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build.give_up("whatever")
        assert build.ready() is None
