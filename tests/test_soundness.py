"""A deliberately nasty suite: models that hide from a trace what tells them apart, or what they do beside computing.

Every case trains two trials twice, in a pool that fuses whatever it can and alone, in float64. Never may a lane be wrong: each
trial either trained in a lane and is equal, or trained solo and the reason names the cause.
"""

from __future__ import annotations

import functools
import linecache
import random
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

from lanes_helpers import Trail, class_data, rebuild, specs_of, train_solo, work_of
from shoal.errors import FuseError
from shoal.lanes.pool import Candidate, Pool
from shoal.recipe import Recipe
from shoal.signature import Signer, lane_trial

WORK = work_of(class_data(22, (6,), 3, valid=7))
EPOCHS = 3


class Net(nn.Module):
    """Two layers and something in between that a case defines. ``value`` is what the two trials differ in."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.first, self.second, self.value = nn.Linear(6, 5), nn.Linear(5, 3), value

    def between(self, x: Tensor) -> Any:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.second(self.between(torch.tanh(self.first(x))))


@dataclass(frozen=True)
class Case:
    """Two models (for ``i`` = 0 and 1), and what has to become of them.

    Args:
        build: ``build(i)`` makes the model of trial i.
        fused: Whether they may train in lanes: "together" (one fleet), "apart" (two), or "" (solo).
        reason: For solo, what the reason must say.
        line: A piece of the line that the reason must name.
        loss: ``loss(i)``, the loss of trial i.
    """

    build: Callable[[int], nn.Module]
    fused: str = ""
    reason: str = ""
    line: str = ""
    loss: Callable[[int], Any] = field(default=lambda i: nn.CrossEntropyLoss())
    optimizer: Callable[[Any], optim.Optimizer] = field(default=lambda p: optim.SGD(p, lr=0.1, momentum=0.5))
    batch: int = 8


def definition(case: Case) -> Callable[[Any], Recipe]:
    def define(trial: Any) -> Recipe:
        model = case.build(int(trial.params["i"])).double()
        trained = [p for p in model.parameters() if p.requires_grad]
        return Recipe(model, case.optimizer(trained), case.loss(int(trial.params["i"])), case.batch)

    return define


CASES: dict[str, Case] = {}


def case(fused: str = "", reason: str = "", **more: Any) -> Callable[[Any], Any]:
    """Add a case: a function of i, or a subclass of ``Net``, which gets i as its value where two trials should differ."""

    def add(build: Any) -> Any:
        name = build.__name__.strip("_").replace("_", " ")
        alike = isinstance(build, type) and fused != "apart"
        CASES[name] = Case((lambda i: build(0)) if alike else build, fused, reason, **more)
        return build

    return add


# --- what differs between two instances of one class --------------------------------------------------------------


@case("apart")
class a_flag(Net):
    def between(self, x: Tensor) -> Any:
        return x * 2 if self.value else x


@case("together")
def a_float_attribute(i: int) -> nn.Module:
    class Scaled(Net):
        def between(self, x: Tensor) -> Any:
            return x * self.value + (1 - self.value)

    return Scaled(0.5 + i)


@case("apart")
def a_float_that_is_compared(i: int) -> nn.Module:
    class Compared(Net):
        def between(self, x: Tensor) -> Any:
            return x * self.value if self.value > 1.0 else x - self.value

    return Compared(0.5 + i)


@case("together")
def a_float_that_is_compared_alike(i: int) -> nn.Module:
    class Compared(Net):
        def between(self, x: Tensor) -> Any:
            return x * self.value if self.value > 0.1 else x - self.value

    return Compared(0.5 + i)


@case("apart")
def a_float_that_becomes_a_plain_one(i: int) -> nn.Module:
    import math

    class Exponential(Net):
        def between(self, x: Tensor) -> Any:
            return x * math.exp(self.value)

    return Exponential(0.5 + i)


@case("apart")
def a_float_whose_type_is_asked(i: int) -> nn.Module:
    class Asked(Net):
        def between(self, x: Tensor) -> Any:
            return x * self.value if isinstance(self.value, float) else x

    return Asked(0.5 + i)


@case("together")
def a_float_under_a_class_attribute(i: int) -> nn.Module:
    class Shadowed(Net):
        value = 100.0

        def between(self, x: Tensor) -> Any:
            return x * self.value

    return Shadowed(0.5 + i)


@case("together")
def a_float_as_an_exponent(i: int) -> nn.Module:
    class Power(Net):
        def between(self, x: Tensor) -> Any:
            return (1 + x * x) ** self.value

    return Power(0.5 + i)


@case("together")
def a_float_with_alpha(i: int) -> nn.Module:
    class Moving(Net):
        def __init__(self, value: float) -> None:
            super().__init__(value)
            self.register_buffer("mean", torch.zeros(5))
            self.mean: Tensor

        def between(self, x: Tensor) -> Any:
            if self.training:
                with torch.no_grad():
                    self.mean.mul_(self.value).add_(x.mean(0), alpha=1 - self.value)
            return x - self.mean

    return Moving(0.5 + 0.4 * i)


@case("together")
def the_slope_of_a_function(i: int) -> nn.Module:
    class Leaky(Net):
        def between(self, x: Tensor) -> Any:
            return nn.functional.leaky_relu(x, self.value)

    return Leaky(0.1 + 0.2 * i)


@case("together")
def the_eps_of_norms(i: int) -> nn.Module:
    eps = 1e-3 * (1 + i)
    return nn.Sequential(
        *(nn.Linear(6, 6), nn.LayerNorm(6, eps=eps), nn.GroupNorm(2, 6, eps=eps), nn.RMSNorm(6, eps=eps)),
        *(nn.BatchNorm1d(6, eps=eps, momentum=0.2 + 0.1 * i), nn.Linear(6, 3)),
    )


@case("apart")
class a_closure(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.between = lambda x: x * (1 + value)  # type: ignore[method-assign]


_SCALES = [1.0, 2.0]
_NOW: dict[str, Any] = {"scale": 2.0, "unused": object}


@case("together")
class a_global(Net):
    def between(self, x: Tensor) -> Any:
        return x * _NOW["scale"]


@case("apart")
class a_plain_list_of_modules(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.hidden = [nn.Tanh(), nn.Hardtanh(-1 - value, 1)]

    def between(self, x: Tensor) -> Any:
        for module in self.hidden:
            x = module(3 * x)
        return x


@case("", "keeps modules with parameters at the model.hidden.*, where torch does not see them")
class a_plain_list_of_trained_modules(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.hidden = [nn.Linear(5, 5).double()]

    def between(self, x: Tensor) -> Any:
        return self.hidden[0](x)


@case("apart", loss=lambda i: _Weighted(i))
def a_class_weight_buffer_of_ones_own_loss(i: int) -> nn.Module:
    return Net()


class _Weighted(nn.Module):
    def __init__(self, i: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor([1.0, 1.0 + i, 2.0], dtype=torch.float64))

    def forward(self, out: Tensor, target: Tensor) -> Any:
        return nn.functional.cross_entropy(out, target, self.weight)  # type: ignore[arg-type]


@case("together")
def a_plain_tensor(i: int) -> nn.Module:
    class Shifted(Net):
        def between(self, x: Tensor) -> Any:
            return x + self.value

    return Shifted(torch.full((5,), float(i), dtype=torch.float64))


@case("together")
def a_plain_index(i: int) -> nn.Module:
    class Chosen(Net):
        def between(self, x: Tensor) -> Any:
            return x[:, self.value]

    return Chosen(torch.arange(5).roll(i))


@case("apart")
def a_patched_method(i: int) -> nn.Module:
    model: Any = Net()
    if i:
        model.between = lambda x: torch.relu(x)
    return model  # type: ignore[no-any-return]


@case("apart")
def a_patched_forward_of_a_layer(i: int) -> nn.Module:
    model: Any = Net()
    inner = model.first.forward
    model.first.forward = lambda x: inner(x) * (1 + i)
    return model  # type: ignore[no-any-return]


@case("apart")
def a_forward_hook(i: int) -> nn.Module:
    model = Net()
    model.first.register_forward_hook(lambda module, args, out: out * (1 + i))
    return model


@case("", "module 'second' has a backward hook")
def a_backward_hook(i: int) -> nn.Module:
    model: Any = Net()
    model.second.register_full_backward_hook(lambda module, gi, go: (gi[0],))
    return model  # type: ignore[no-any-return]


@case("", "parameter 'first.weight' has a gradient hook")
def a_gradient_hook(i: int) -> nn.Module:
    model: Any = Net()
    model.first.weight.register_hook(lambda g: g * 0.5)
    return model  # type: ignore[no-any-return]


@case("apart")
def a_dict_of_functions(i: int) -> nn.Module:
    class Chosen(Net):
        def between(self, x: Tensor) -> Any:
            return self.value["f"](x)

    return Chosen({"f": [torch.relu, torch.sigmoid][i]})


@case("apart")
def a_partial(i: int) -> nn.Module:
    class Bound(Net):
        def between(self, x: Tensor) -> Any:
            return self.value(x)

    return Bound(functools.partial(torch.clamp, min=-0.1 * (1 + i)))


@case("apart")
def a_lambda(i: int) -> nn.Module:
    class Lambda(Net):
        def between(self, x: Tensor) -> Any:
            return self.value(x)

    return Lambda([lambda x: x + 1, lambda x: x * 2][i])


class _Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: int) -> None:
        self.scale = scale


@case("apart")
def slots(i: int) -> nn.Module:
    class Slots(Net):
        def between(self, x: Tensor) -> Any:
            return x * self.value.scale

    return Slots(_Slotted(1 + i))


@case("apart")
def a_property(i: int) -> nn.Module:
    class Property(Net):
        @property
        def scale(self) -> int:
            return 1 + int(self.value)

        def between(self, x: Tensor) -> Any:
            return x * self.scale

    return Property(i)


@case("apart")
def a_default_argument(i: int) -> nn.Module:
    class Default(Net):
        def between(self, x: Tensor, scale: int = 1 + i) -> Any:
            return x * scale

    return Default()


@case("apart")
def an_attribute_of_the_class(i: int) -> nn.Module:
    class Shared(Net):
        scale = 1 + i

        def between(self, x: Tensor) -> Any:
            return x * self.scale

    return Shared()


class _Config:
    def __init__(self, scale: int) -> None:
        self.scale, self.names = scale, ["a", "b"]


@case("apart")
def an_object_of_ones_own(i: int) -> nn.Module:
    class Configured(Net):
        def between(self, x: Tensor) -> Any:
            return x * self.value.scale

    return Configured(_Config(1 + i))


@case("together")
def an_equal_object_of_ones_own(i: int) -> nn.Module:
    class Configured(Net):
        def between(self, x: Tensor) -> Any:
            return x * self.value.scale

    return Configured(_Config(2))


@case("apart")
def flags_of_submodules(i: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))
    model[1 + i].eval()
    return model


@case("apart")
def partly_frozen(i: int) -> nn.Module:
    model = Net()
    (model.first.bias if i else model.second.bias).requires_grad = False
    return model


@case("apart")
def a_module_used_twice(i: int) -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(nn.Linear(6, 5), layer, nn.Tanh(), layer if i else nn.Linear(5, 5), nn.Linear(5, 3))


@case("apart")
def a_parameter_used_twice(i: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
    if i:
        model[3].weight = model[1].weight
    return model


@case("apart")
def complex_numbers_inside(i: int) -> nn.Module:
    class Spectrum(Net):
        def between(self, x: Tensor) -> Any:
            return torch.fft.rfft(x, n=8).abs()[:, : 5 - 0 * self.value]

    return Spectrum(i)


# --- what a forward pass does beside computing --------------------------------------------------------------------


@case("", "changes 'calls' of a_counter", line="self.calls += 1")
class a_counter(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.calls = 0

    def between(self, x: Tensor) -> Any:
        self.calls += 1
        return x


@case("", "changes 'calls' of a_counter_that_matters_later", line="self.calls += 1")
class a_counter_that_matters_later(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.calls = 0

    def between(self, x: Tensor) -> Any:
        self.calls += 1
        return x if self.calls < 5 else x * 2


@case("", "changes what the code of a_mutable_default refers to", line="seen.append(1)")
class a_mutable_default(Net):
    def between(self, x: Tensor, seen: list[int] = []) -> Any:  # noqa: B006
        seen.append(1)
        return x


@case("", "changes what the code of a_global_counter refers to", line="_SCALES[1] +=")
class a_global_counter(Net):
    def between(self, x: Tensor) -> Any:
        _SCALES[1] += 0.0 if _SCALES[1] > 1e6 else 1e-9
        return x


@case("", "value.* is a count, whose state Shoal cannot read|count")
def an_iterator(i: int) -> nn.Module:
    import itertools

    class Iterating(Net):
        def between(self, x: Tensor) -> Any:
            return x * (1 + next(self.value) % 2)

    return Iterating(itertools.count())


@case("", "changes 'average'", line="self.average.mul_")
class a_plain_tensor_written_in_place(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.average = torch.zeros(5, dtype=torch.float64)

    def between(self, x: Tensor) -> Any:
        self.average.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.average


@case("", "writes to the parameter 'first.weight'", line="self.first.weight.mul_")
class a_parameter_written_in_place(Net):
    def between(self, x: Tensor) -> Any:
        with torch.no_grad():
            self.first.weight.mul_(0.99)
        return x


@case("", "writes to the parameter 'first.weight'", line="data.clamp_")
class a_parameter_written_through_data(Net):
    def between(self, x: Tensor) -> Any:
        self.first.weight.data.clamp_(-0.1, 0.1)
        return x


@case("together")
class inputs_written_in_place(Net):
    def forward(self, x: Tensor) -> Any:
        x.mul_(2)
        x += 1
        return super().forward(x)


@case("together")
class a_buffer_that_is_assigned(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.average: Tensor
        self.register_buffer("average", torch.zeros(5), persistent=False)

    def between(self, x: Tensor) -> Any:
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return x - self.average


@case("", "changes 'cache'", line="self.cache = torch")
class a_cache(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.cache: Tensor | None = None

    def between(self, x: Tensor) -> Any:
        if self.cache is None:
            self.cache = torch.linspace(0, 1, 5, dtype=x.dtype)
        return x + self.cache


@case("", r"reads a tensor's value into Python, with an if, .* \(test_soundness.py, line \d+: if x.sum")
class a_branch_on_data(Net):
    def between(self, x: Tensor) -> Any:
        if x.sum() > 0:
            return x * 2
        return x


@case("", r"with \.item\(\) \(test_soundness.py, line \d+: return x \* x\.mean\(\)\.item")
class item(Net):
    def between(self, x: Tensor) -> Any:
        return x * x.mean().item()


@case("", r"with \.tolist\(\) \(test_soundness.py, line")
class tolist(Net):
    def between(self, x: Tensor) -> Any:
        return x * sum(x.mean(0).tolist())


@case("", r"with \.numpy\(\) \(test_soundness.py, line")
class numpy_inside(Net):
    def between(self, x: Tensor) -> Any:
        return x * float(np.tanh(x.detach().numpy()).mean())


@case("", r"with (\.numpy\(\)|NumPy) \(test_soundness.py, line")
class numpy_when_evaluating(Net):
    def forward(self, x: Tensor) -> Any:
        scale = 1.0 if self.training else float(x.numpy().mean())
        return super().forward(x) * scale


@case("together")
class no_grad_and_detach(Net):
    def between(self, x: Tensor) -> Any:
        with torch.no_grad():
            gate = torch.sigmoid(x)
        return x * gate + x.detach() * 0.1


@case("", r"accessing `data` under vmap.*\(test_soundness.py, line")
class data_of_a_tensor(Net):
    def between(self, x: Tensor) -> Any:
        return x * x.data.sum(1, keepdim=True)


class _OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x > 0)  # type: ignore[no-any-return]


class _NewStyle(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1)  # type: ignore[no-any-return]


@case("", r"autograd.Function without setup_context.*\(test_soundness.py, line")
class an_old_autograd_function(Net):
    def between(self, x: Tensor) -> Any:
        return _OldStyle.apply(x)  # type: ignore[no-untyped-call]


@case("together")
class an_autograd_function(Net):
    def between(self, x: Tensor) -> Any:
        return _NewStyle.apply(x)  # type: ignore[no-untyped-call]


def _by_its_last_gradient(i: int) -> Any:
    def loss(model: Any, batch: Any) -> Any:
        last = model.second.weight.grad
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) * (1.0 if last is None else 1.0 + last.norm())

    return loss


@case("", "reads a gradient, with .grad", line="last = model", loss=_by_its_last_gradient)
class a_loss_that_reads_a_gradient(Net):
    pass


@case("", "draws random numbers from NumPy", line="np.random.rand()")
class numpy_randomness(Net):
    def between(self, x: Tensor) -> Any:
        return x * (1 + 0.0 * np.random.rand())


@case("", "draws random numbers from Python's random", line="random.random()")
class python_randomness(Net):
    def between(self, x: Tensor) -> Any:
        return x * (1 + 0.0 * random.random())


@case("together")
class a_generator_of_torch(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def between(self, x: Tensor) -> Any:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


@case("together")
class the_size_of_the_batch(Net):
    def between(self, x: Tensor) -> Any:
        return x * x.shape[0]


@case("together", batch=20)
class the_size_of_a_large_batch(Net):
    def between(self, x: Tensor) -> Any:
        return x * 2 if x.shape[0] > 16 else x


@case("together", batch=22)
class a_buffer_that_counts_batches(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor

    def between(self, x: Tensor) -> Any:
        if self.training:
            self.seen += 1
        return x / (1 + self.seen)


@case("together")
class the_default_type(Net):
    def between(self, x: Tensor) -> Any:
        return x + torch.ones(5)


@case("together")
def batch_norm_frozen(i: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model[1].eval()
    return model


@case("together")
def batch_norm_cumulative(i: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 3))


@case("together")
def batch_norm_without_statistics(i: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))


@case("", "reaches a parameter by another way")
class parameters_in_a_list(Net):
    def __init__(self, value: int) -> None:
        super().__init__()
        self.all = [self.first.bias]

    def between(self, x: Tensor) -> Any:
        return x * self.all[0]


@case("", "module 'first' was compiled by torch.compile")
def a_compiled_submodule(i: int) -> nn.Module:
    model: Any = Net()
    model.first = torch.compile(model.first)
    return model  # type: ignore[no-any-return]


@case("", "its model is DataParallel, which spreads one model over devices; pass the model itself")
def data_parallel(i: int) -> nn.Module:
    return nn.DataParallel(Net())


@case("", "its parameters are .*complex", optimizer=lambda p: optim.SGD(p, lr=0.1))
def complex_parameters(i: int) -> nn.Module:
    class Complex(Net):
        def __init__(self) -> None:
            super().__init__()
            self.phase = nn.Parameter(torch.zeros(5, dtype=torch.complex128))

        def between(self, x: Tensor) -> Any:
            return (x * torch.exp(self.phase)).real

    return Complex()


@case("", "its loss.trial is the trial itself|is the trial itself", loss=lambda i: _holding(i))
def a_loss_that_holds_the_trial(i: int) -> nn.Module:
    return Net()


def _holding(i: int) -> Any:
    from shoal.records import TrialSpec
    from shoal.replay import ReplayTrial

    trial: Any = ReplayTrial(TrialSpec(i, 0, {"scale": 1.0}, {}))
    return lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]) * trial.params["scale"]


@case("together", loss=lambda i: _weighing(0.5 + i))
def a_float_in_the_closure_of_a_loss(i: int) -> nn.Module:
    return Net()


def _weighing(weight: float) -> Any:
    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        out: Tensor = nn.functional.cross_entropy(model(batch[0]), batch[1])
        return out + weight * sum(p.square().sum() for p in model.parameters())

    return loss


@case("together", loss=lambda i: functools.partial(_penalised, weight=0.1 * (1 + i)))
def a_float_in_a_partial_loss(i: int) -> nn.Module:
    return Net()


def _penalised(model: nn.Module, batch: tuple[Tensor, ...], weight: float) -> Tensor:
    out = model(batch[0])
    return nn.functional.cross_entropy(out, batch[1]) + weight * out.square().mean()  # type: ignore[no-any-return]


@case("", "changes what loss refers to", loss=lambda i: _annealing())
def a_loss_that_counts(i: int) -> nn.Module:
    return Net()


def _annealing() -> Any:
    calls = [0]

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        calls[0] += 1
        return nn.functional.cross_entropy(model(batch[0]), batch[1]) * (1.0 if calls[0] < 4 else 0.5)

    return loss


# --- the check ----------------------------------------------------------------------------------------------------


def train(c: Case) -> tuple[dict[int, list[tuple[Any, dict[str, Tensor]]]], dict[int, str], int, dict[int, Trail]]:
    """(per trial and epoch what the pool measured and holds, reasons of solo trials, signatures, trials alone)."""
    define, signer = definition(c), Signer(WORK.data.train.tensors)
    specs = specs_of([{"i": i} for i in range(2)])
    candidates = []
    for spec in specs:
        recipe = rebuild(define, spec, WORK)
        try:
            s = signer.sign(recipe)
            lane = lane_trial(spec, recipe, WORK.data.train.tensors[-1])
            candidates.append(Candidate(spec, recipe, lane, s.key, s.quantum, s.exact))
        except FuseError as error:
            candidates.append(Candidate(spec, recipe, None, reason=str(error)))
    pool = Pool(WORK, lambda spec: rebuild(define, spec, WORK), measure=False)
    pool.admit(candidates)
    rows: dict[int, list[tuple[Any, dict[str, Tensor]]]] = {spec.number: [] for spec in specs}
    for _ in range(EPOCHS):
        for row in pool.run_epoch():
            assert not row.error, row.error
            rows[row.trial].append((row, pool.state_dict(row.trial)))
    reasons = {e.trial: str(e.data["reason"]) for e in pool.drain_events() if e.kind == "solo" and e.trial is not None}
    alone = {spec.number: train_solo(define, spec, WORK, EPOCHS) for spec in specs}
    return rows, reasons, len({s.signature for s in candidates if s.lane is not None}), alone


@pytest.mark.parametrize("name", CASES)
def test_never_a_wrong_lane(name: str) -> None:
    c = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        rows, reasons, signatures, alone = train(c)
    for number, trail in alone.items():
        for epoch, (row, state) in enumerate(rows[number]):
            solo, expected = trail.rows[epoch], trail.states[epoch]
            assert row.train_loss == pytest.approx(solo.train_loss, rel=1e-9, abs=1e-12), (number, epoch)
            assert row.valid_loss == pytest.approx(solo.valid_loss, rel=1e-9, abs=1e-12), (number, epoch)
            for key, tensor in expected.items():
                torch.testing.assert_close(state[key], tensor, rtol=1e-9, atol=1e-11)
    if c.fused:
        assert not reasons, reasons
        assert signatures == {"together": 1, "apart": 2}[c.fused]
    else:
        assert set(reasons) == {0, 1}
        for reason in reasons.values():
            assert re.search(c.reason, reason), reason
            if c.line:
                named = re.search(r"\(test_soundness.py, line (\d+)", reason)
                assert named is not None, reason
                assert c.line in linecache.getline(__file__, int(named[1])), reason


class _Unruly(Net):
    def between(self, x: Tensor) -> Any:
        torch.manual_seed(0)
        for _ in range(2):
            x = self.counted(x)
        return x

    def counted(self, x: Tensor) -> Any:
        self.value = self.value + 1 if self.value else 1
        return x


def test_the_line_is_found_in_what_is_called_and_the_tracer_stays() -> None:
    """A debugger's tracer is as it was afterwards."""
    seen: list[str] = []

    def tracer(frame: Any, event: str, arg: Any) -> None:
        seen.append(event)

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        _, reasons, _, _ = train(Case(lambda i: _Unruly(None)))
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    named = re.search(r"\(test_soundness.py, line (\d+)\)", reasons[0])
    assert named is not None, reasons
    assert "self.value = self.value + 1" in linecache.getline(__file__, int(named[1]))
