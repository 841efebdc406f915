"""Every activation that may differ between lanes, against torch's own module and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from lanes_helpers import made
from shoal.lanes.activations import TABLE, activation, apply_runs, apply_runs_backward, kind_of, runs_of

MODULES: dict[str, nn.Module] = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.5, 0.8),
    "leaky": nn.LeakyReLU(0.2),
    "elu": nn.ELU(0.7),
    "celu": nn.CELU(1.3),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "softplus": nn.Softplus(2.0, 10.0),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "softsign": nn.Softsign(),
    "tanhshrink": nn.Tanhshrink(),
    "logsigmoid": nn.LogSigmoid(),
}


def kind(name: str) -> int:
    found = kind_of(MODULES[name])
    assert found is not None, name
    return found


def inputs() -> Tensor:
    # Through zero and far out on both sides; the corners of piecewise functions are left to torch's own convention.
    return torch.cat(
        [made(200) * 3, torch.linspace(-30, 30, 61, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
    )


@pytest.mark.parametrize("name", MODULES)
def test_forward_and_backward_are_torchs(name: str) -> None:
    x, g = inputs().requires_grad_(), made(262, seed=8)
    expected: Tensor = MODULES[name](x)
    (slope,) = torch.autograd.grad(expected, x, g)
    a = TABLE[kind(name)]
    y = a.forward(x.detach(), *a.args)
    torch.testing.assert_close(y, expected.detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(a.backward(g, x.detach(), y, *a.args), slope, rtol=1e-14, atol=1e-14)
    mine = inputs().requires_grad_()
    (through,) = torch.autograd.grad(activation(mine, torch.tensor(kind(name))), mine, g)
    torch.testing.assert_close(through, slope, rtol=1e-14, atol=1e-14)


def test_the_table_holds_nothing_untested() -> None:
    from shoal.lanes.activations import _CLASSES

    assert {type(m) for m in MODULES.values()} == set(_CLASSES)


def test_lanes_take_their_own_functions() -> None:
    names = ["relu", "relu", "tanh", "gelu", "identity", "gelu"]
    kinds = [kind(n) for n in names]
    x, g = made(6, 5, 3), made(6, 5, 3, seed=1)
    runs = runs_of(kinds)
    assert [r[1:] for r in runs] == [(0, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    out = apply_runs(x, runs)
    back = apply_runs_backward(g, x, out, runs)
    alone = torch.stack([MODULES[n](x[i]) for i, n in enumerate(names)])
    torch.testing.assert_close(out, alone, rtol=1e-14, atol=1e-14)
    mapped = vmap(activation)(x, torch.tensor(kinds))
    assert torch.equal(mapped, out)

    def total(x: Tensor, kind: Tensor, g: Tensor) -> Tensor:
        return (activation(x, kind) * g).sum()

    assert torch.equal(vmap(grad(total))(x, torch.tensor(kinds), g), back)


def test_the_same_module_has_one_kind_and_another_slope_another() -> None:
    assert kind_of(nn.ReLU()) == kind_of(nn.ReLU())
    assert kind_of(nn.LeakyReLU(0.1)) != kind_of(nn.LeakyReLU(0.2))


def hooked(register: str) -> nn.Module:
    module = nn.ReLU()
    getattr(module, register)(lambda *args: None)
    return module


def patched() -> nn.Module:
    module = nn.ReLU()
    module.forward = lambda input: input * 2  # type: ignore[method-assign]
    return module


class Own(nn.ReLU):
    pass


@pytest.mark.parametrize(
    "module",
    [
        nn.ReLU(inplace=True),
        nn.ELU(inplace=True),
        hooked("register_forward_hook"),
        hooked("register_forward_pre_hook"),
        hooked("register_full_backward_hook"),
        hooked("register_full_backward_pre_hook"),
        patched(),
        Own(),
        nn.PReLU(),
        nn.Softmax(dim=1),
        nn.GLU(),
        nn.RReLU(),
        nn.Linear(2, 2),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_is_more_than_a_function_is_refused(module: nn.Module) -> None:
    assert kind_of(module) is None
