"""Activations whose shape is learned: what is replaced, lanes and plain loop, what they become in plain PyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.func import functional_call, grad, vmap

import shoal
from lanes_helpers import (
    assert_same_trail,
    class_data,
    compiled_lanes,
    made,
    open_fleet,
    ready,
    rebuild,
    sign,
    specs_of,
    train_fused,
    train_solo,
    work_of,
)
from shoal.data import Datasets, Split
from shoal.errors import RecipeError, UsageError
from shoal.extend import Activation, LearnedShape, Shifted, Swish, settle
from shoal.extend._activation import ACTIVATIONS
from shoal.extend._shapes import LearnedMixture
from shoal.lanes.activations import _CLASSES
from shoal.lanes.compiled._runner import agrees, compiled_tick, obstacle, own_tick
from shoal.lanes.lift import lift_template
from shoal.lanes.mixtures import LaneMixture, as_one
from shoal.recipe import Recipe

WORK = work_of(class_data(44))
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.1),
}
SHAPES: dict[str, type[nn.Module]] = {"prelu": nn.PReLU, "swish": Swish, "bias": Shifted, "mixture": nn.Module}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def define(trial: Any) -> Recipe:
    got = dict(trial.params)
    model = net()
    optimizer = OPTIMIZERS[got.pop("opt", "adam")](model.parameters())
    extensions = [Activation(**got)] if got else []
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), 20, extensions=extensions)


def written(shape: str, u: Tensor, value: Tensor) -> Tensor:
    if shape == "prelu":
        return nn.functional.prelu(u, value)
    if shape == "swish":
        return u * torch.sigmoid(value * u)
    if shape == "bias":
        return torch.tanh(u + value)
    weights = torch.softmax(value, 0)
    parts = [torch.relu(u), torch.tanh(u), nn.functional.silu(u), u]
    return sum((w * p for w, p in zip(weights, parts, strict=True)), torch.zeros(()))


@pytest.mark.parametrize("shape", SHAPES)
def test_lanes_are_the_plain_loop_and_the_formula(shape: str) -> None:
    start = 0.3 if shape != "mixture" else 0.0
    cases: list[dict[str, Any]] = [{"shape": shape, "opt": o, "start": start} for o in OPTIMIZERS]
    cases += [{"shape": shape, "step": 0.2, "start": start}, {"shape": shape, "step": 30.0, "start": start}]
    cases[-1]["bounds"] = (-0.2, 0.5)
    for some in (cases[:-1], cases[-1:]):  # other bounds are another program
        specs = specs_of(some)
        fused = train_fused(define, specs, WORK, 3)
        for spec in specs:
            assert_same_trail(fused[spec.number], train_solo(define, spec, WORK, 3), 1e-10)
            recipe = rebuild(define, spec, WORK)
            recipe.model.load_state_dict(fused[spec.number].states[-1])
            values = [m.shape() for m in recipe.model.modules() if isinstance(m, LearnedShape)]
            assert all(bool((v != start).any()) for v in values)  # they have moved
            if "bounds" in spec.params:
                assert all(bool(((v >= -0.2) & (v <= 0.5)).all()) for v in values)
            x = WORK.data.valid.tensors[0]
            layers = [recipe.model[k] for k in (0, 2, 4)]  # type: ignore[index]
            hidden = layers[1](written(shape, layers[0](x), values[0]))
            expected = layers[2](written(shape, hidden, values[1]))
            torch.testing.assert_close(recipe.model(x), expected, rtol=1e-12, atol=1e-12)


CHOICES = (("relu", "tanh", "silu", "identity"), ("gelu", "sigmoid", "leaky_relu", "tanh"))


@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_lanes_are_the_plain_loop(shape: str) -> None:
    some: list[dict[str, Any]] = [{"choices": c} for c in CHOICES] if shape == "mixture" else [{}, {"step": 0.2}]

    def define_with(trial: Any) -> Recipe:
        optimizer = optim.Adam((model := net()).parameters(), lr=0.02)
        moves = [Activation(shape=shape, **some[trial.params["which"]])]  # type: ignore[arg-type]
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 20, extensions=moves)

    specs = specs_of([{"which": 0}, {"which": 1}])
    with compiled_lanes():
        fleet = open_fleet(define_with, specs[0], 2, WORK)
        for spec in specs:
            fleet.admit(ready(define_with, spec, WORK))
        fleet.arrange()
        assert fleet.compiled is not None and not obstacle(fleet.compiled, fleet) and agrees(fleet.compiled, fleet)
        fused = train_fused(define_with, specs, WORK, 3)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define_with, spec, WORK, 3), 1e-10)


@pytest.mark.parametrize("choices", CHOICES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_a_mixture_as_one_operator_is_the_sum(choices: Any, dtype: torch.dtype, tolerance: float) -> None:
    model = nn.Sequential(
        nn.Identity(), LearnedMixture({c: ACTIVATIONS[c]() for c in choices}, 0.0, 1.0, (-9, 9), made(1))
    )
    stand_in = copy.deepcopy(model)
    lift_template(stand_in)
    assert type(stand_in[1]) is LaneMixture
    x, offsets = 3 * made(3, 7, dtype=dtype), made(3, 4, dtype=dtype)

    def slopes(module: nn.Module) -> tuple[Tensor, Tensor]:
        def loss(x: Tensor, offset: Tensor) -> Tensor:
            out: Tensor = functional_call(module, {"1.offset": offset}, (x,))
            return (out * torch.arange(7.0, dtype=dtype)).sum()

        found: tuple[Tensor, Tensor] = vmap(grad(loss, argnums=(0, 1)))(x, offsets)
        return found

    expected = slopes(model)
    for fused in (False, True):
        with as_one() if fused else nullcontext():
            torch.testing.assert_close(slopes(stand_in), expected, rtol=tolerance, atol=tolerance)


def test_a_compiled_mixture_stands_extreme_inputs() -> None:
    def define_far(trial: Any) -> Recipe:
        model = nn.Sequential(first := nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
        with torch.no_grad():
            first.weight.mul_(trial.params["scale"])
        moves = [Activation(shape="mixture", choices=("tanh", "sigmoid", "silu"))]
        return Recipe(model, optim.SGD(model.parameters(), lr=0.0), nn.CrossEntropyLoss(), 20, extensions=moves)

    x, y = WORK.data.train.tensors
    work = work_of(Datasets(Split((x.float(), y)), Split((x.float(), y)), None, ""))
    specs = specs_of([{"scale": s} for s in (1e-6, 1.0, 50.0, 1e4)])
    with compiled_lanes():
        fleet = open_fleet(define_far, specs[0], len(specs), work)
        for spec in specs:
            fleet.admit(ready(define_far, spec, work))
        fleet.arrange()
        assert fleet.compiled is not None and agrees(fleet.compiled, fleet)
        for got, expected in zip(compiled_tick(fleet.compiled, fleet), own_tick(fleet), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_off_is_the_trial_without() -> None:
    specs = specs_of([{"shape": "prelu", "on": False}, {}])
    assert sign(define, specs[0], WORK) == sign(define, specs[1], WORK)
    assert not any(isinstance(m, LearnedShape) for m in rebuild(define, specs[0], WORK).model.modules())


def test_trials_share_a_fleet_whatever_their_steps_and_starts() -> None:
    specs = specs_of([{"shape": "swish", "step": s, "start": b} for s, b in ((1.0, 1.0), (0.1, 1.0), (2.0, 0.5))])
    assert len({sign(define, s, WORK).key for s in specs}) == 1
    fleet = open_fleet(define, specs[0], 3, WORK)
    assert not fleet.exact


def test_names_of_activations_are_those_that_lanes_know() -> None:
    assert set(ACTIVATIONS.values()) == set(_CLASSES)


@pytest.mark.parametrize("shape", SHAPES)
def test_settled_it_is_plain_pytorch(shape: Any) -> None:
    model = parts(shape=shape, start=0.4, choices=("gelu", "tanh")).model
    shapes = [m for m in model.modules() if isinstance(m, LearnedShape)]
    with torch.no_grad():
        shapes[0].offset.copy_(torch.tensor([0.1, 0.9][-shapes[0].offset.numel() :]))
    plain = settle(model)
    assert isinstance(plain[1], SHAPES[shape]) and not any(isinstance(m, LearnedShape) for m in plain.modules())  # type: ignore[index]
    assert any(isinstance(m, LearnedShape) for m in model.modules())  # a copy
    x = made(5, 10)
    if shape == "mixture":
        assert type(plain[1]) is nn.Tanh and type(plain[3]) is nn.GELU  # type: ignore[index]
        weights = dict(zip(shapes[0].named, shapes[0].numbers(shapes[0].shape()).tolist(), strict=True))
        assert weights["tanh"] > weights["gelu"] and sum(weights.values()) == pytest.approx(1.0)
    else:
        torch.testing.assert_close(plain(x), model(x), rtol=1e-6, atol=1e-6)
    again = settle(model)
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again(x), plain(x))


def search(trial: Any) -> Recipe:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = optim.Adam(model.parameters(), lr=0.05)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    shape = trial.suggest_categorical("shape", ["prelu", "mixture"])
    return Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule, extensions=[Activation(shape=shape, step=2.0)])


def test_a_search_chooses_the_shape_and_the_winner_is_taken_away(tmp_path: Path) -> None:
    x = made(120, 4, dtype=torch.float32)
    study = shoal.tune(
        search, train=(x, x[:, :3].argmax(1)), n_trials=4, max_epochs=3, scheduler="none", progress=False, reproducible=True
    )  # fmt: skip
    assert all(t.state == "finished" for t in study.record.trials)
    assert {t.spec.params["shape"] for t in study.record.trials} == {"prelu", "mixture"}
    model = study.best_model()
    assert any(isinstance(m, LearnedShape) for m in model.modules())
    settled = settle(model)
    assert settled(x).shape == (120, 3)
    for t in study.record.trials:
        paths = study.trajectories(t.spec.number)
        if t.spec.params["shape"] == "prelu":
            assert list(paths) == ["activation/1"]
            assert len(paths["activation/1"].values) == 3 and paths["activation/1"].values[-1] != 0.25
        else:
            assert set(paths) == {f"activation/1/{name}" for name in ("relu", "tanh", "silu", "identity")}
            assert sum(p.values[-1] for p in paths.values()) == pytest.approx(1.0, rel=1e-5)
    with pytest.raises(UsageError, match=r"no script is written of a recipe with extensions \(Activation\)"):
        study.export(tmp_path / "out")
    done = study.export(tmp_path / "out", formats=["weights", "pt2"])
    assert done.differences["pt2"] < 1e-5


def parts(model: nn.Module | None = None, **asked: Any) -> Recipe:
    model = model or net()
    return Recipe(
        model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 8, extensions=[Activation(**asked)]
    )


BAD: list[tuple[Callable[[], object], str]] = [
    (
        lambda: Activation(shape="prelo"),  # type: ignore[arg-type]
        r"must be 'prelu', 'swish', 'bias' or 'mixture', not 'prelo'. Did you mean 'prelu'",
    ),
    (lambda: Activation(start=math.inf), r"Activation\(start=...\) must be a finite number or None, not inf"),
    (lambda: Activation(bounds=(0.5, 1.0)), r"Activation\(bounds=...\) = \(0.5, 1\) exclude its start, 0.25"),
    (lambda: Activation(bounds=(1.0, -1.0)), r"Activation\(bounds=...\) must have lowest < highest, not \(1.0, -1.0\)"),
    (lambda: Activation(warmup=3), r"Activation\(warmup=...\) must be 0: shapes are learned from the first update on"),
    (lambda: Activation(choices=("relu", "tanhh")), "knows no activation 'tanhh'. Did you mean 'tanh'"),
    (lambda: Activation(choices=("relu",)), "must be two activations or more, each once, not"),
    (lambda: parts(nn.Linear(3, 2)), "needs a model with activation modules .* and this one has none"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_input_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
