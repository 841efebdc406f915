"""Native kernels against torch: the same updates, masks and activations, and the same lanes in whole trainings."""

from __future__ import annotations

import itertools
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lanes_helpers import KERNELS, assert_same_trail, made, specs_of, train_fused, work_of
from optimizer_tables import MORE, OPTIMIZERS
from shoal.lanes import native, optim, tables
from shoal.lanes.activations import TABLE, kind_of
from shoal.lanes.kernels import TorchKernels, Updates
from shoal.lanes.native import NativeKernels
from shoal.lanes.native._build import Build, compiler
from test_bit_identity import CASES, check_neighbours
from test_equality import KINDS, definition, mixed, mlp

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_CACHE", str(folder))
        patch.delenv("SHOAL_NATIVE", raising=False)
        build = Build()
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
    for name, make in {**OPTIMIZERS, **MORE}.items():  # families without a native form run on torch's kernels
        model = mlp(nn.ReLU, 0.0).to(dtype)
        optimizer = make(model)
        built.setdefault(tables.family_of(optimizer), []).append((name, model, optimizer))
    n_steps, steps = 10, np.arange(1, 11, dtype=np.float64)
    for family, members in built.items():
        shapes = [t.numel() for t in members[0][1].parameters()]
        bounds = torch.tensor([0, *np.cumsum(shapes)])
        table = np.empty((n_steps, optim.K, len(members), len(shapes)))
        state = torch.zeros(5, len(members), sum(shapes), dtype=dtype)
        for row, (_, model, optimizer) in enumerate(members):
            state[0, row] = torch.cat([t.detach().flatten() for t in model.parameters()])
            second = tables.first_second(model, optimizer)
            if second:
                state[2, row] = torch.cat(
                    [torch.full_like(t, 0).add(second[n]).flatten() for n, t in model.named_parameters()]
                )
            for group in optimizer.param_groups:
                h = tables.stacked([tables.numbers(group)])
                c = tables.coefficients(optimizer, family, h, steps, {})
                for k, t in enumerate(model.parameters()):
                    if any(t is member for member in group["params"]):
                        table[:, :, row, k] = c
        p, m, v, a, g = state.unbind(0)
        owner = torch.repeat_interleave(torch.arange(len(shapes)), torch.tensor(shapes))
        due = torch.ones(n_steps, len(members), dtype=torch.uint8)
        uses = optim.uses(np.moveaxis(table, 1, -1))
        update = kernels.updater(
            Updates(family, (p, m, v, a, g), torch.from_numpy(table).to(dtype), due, uses, owner, bounds)
        )
        for k in range(n_steps):
            g.copy_(made(len(members), sum(shapes), seed=k, dtype=dtype))
            for row, (_, model, optimizer) in enumerate(members):
                for t, (first, last) in zip(model.parameters(), itertools.pairwise(bounds), strict=True):
                    t.grad = g[row, int(first) : int(last)].view_as(t).clone()
                optimizer.step()
            update(k)
            for row, (name, model, _) in enumerate(members):
                expected = torch.cat([t.detach().flatten() for t in model.parameters()])
                error = ((p[row] - expected).abs().max() / expected.abs().max()).item()
                assert error <= (1e-13 if dtype == torch.float64 else 1e-6), f"{name}, step {k}: {error:.1e}"


@needs_compiler
@pytest.mark.parametrize("family", [optim.Family.SGD, optim.Family.ADAM, optim.Family.RMS, optim.Family.RMS_CENTERED])
def test_lanes_that_are_not_due_are_left_alone(kernels: NativeKernels, family: optim.Family) -> None:
    state = [made(3, 64, seed=i, dtype=torch.float32).abs() for i in range(5)]
    before = [t.clone() for t in state]
    table = made(1, optim.K, 3, 1, seed=9, dtype=torch.float32).abs()
    due = torch.tensor([[0, 1, 0]], dtype=torch.uint8)
    p, m, v, a, g = state
    updates = Updates(family, (p, m, v, a, g), table, due, frozenset(), torch.zeros(64), torch.tensor([0, 64]))
    kernels.updater(updates)(0)
    for t, b in zip(state, before, strict=True):
        assert torch.equal(t[[0, 2]], b[[0, 2]])
    assert not torch.equal(p[1], before[0][1])
    assert torch.equal(g, before[4])  # a lane in the middle of its batch goes on adding to it


@needs_compiler
def test_what_has_no_native_form_goes_to_torch(kernels: NativeKernels) -> None:
    x = made(3, 4, 5, dtype=torch.float64)
    runs = [(kind_of(nn.Tanh()) or 0, 0, 2), (kind_of(nn.Mish()) or 0, 2, 3)]
    assert torch.equal(kernels.forward(x, runs), TorchKernels().forward(x, runs))
    assert torch.equal(kernels.backward(x, x, x, runs), TorchKernels().backward(x, x, x, runs))
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
    assert kind is not None and kernels._code(kind) is not None
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
@pytest.mark.parametrize(("name", "width"), [(n, w) for n in CASES for w in (2, 7, 32)])
def test_neighbours_change_no_bit(name: str, width: int) -> None:
    check_neighbours(name, width)


# --- the library -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SHOAL_NATIVE", raising=False)
    return tmp_path / "cache"


@needs_compiler
def test_is_built_once(folder: Path) -> None:
    first = Build()
    assert first.ready() is None
    first.start()
    path = first.wait()
    assert path is not None and path.parent == folder and stat.S_IMODE(path.stat().st_mode) == 0o700
    second = Build()
    second.start()
    assert second._process is None and second.ready() == path
    assert [p.name for p in folder.iterdir()] == [path.name]


@needs_compiler
def test_a_file_that_others_may_write_to_is_not_loaded(folder: Path) -> None:
    build = Build()
    build.start()
    path = build.wait()
    assert path is not None
    path.chmod(0o722)
    assert Build().ready() is None


def test_no_compiler_is_said_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    build = Build()
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
    build = Build()
    build.start()
    with pytest.warns(RuntimeWarning, match="native kernels are not used, training is slower: no such flag"):
        assert build.wait() is None
    assert build.ready() is None and list(folder.iterdir()) == []


def test_can_be_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_NATIVE", "0")
    build = Build()
    build.start()
    assert build._process is None and build.ready() is None


def test_a_damaged_library_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build()
    folder.mkdir()
    build.path().write_bytes(b"\x7fELF no more than that")
    build.path().chmod(0o700)
    monkeypatch.setattr(native, "_build", build)
    monkeypatch.setattr(native, "_loaded", None)
    with pytest.warns(RuntimeWarning, match="cannot be loaded"):
        assert native.kernels() is None
    assert native.kernels() is None


def test_a_forked_worker_builds_nothing_and_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build()
    monkeypatch.setattr(build, "_owner", os.getpid() + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build.give_up("whatever")
        assert build.ready() is None
