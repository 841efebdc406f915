"""What bad input gets from every extension, in a study: an error that says what to do, or a trial that ends and says why."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import labels, made
from shoal.errors import RecipeError, StudyError, UsageError
from shoal.extend import (
    L1,
    Activation,
    BatchSize,
    Dropout,
    Extension,
    LabelSmoothing,
    LearningRate,
    LossWeights,
    WeightDecay,
    WeightedSum,
)
from shoal.extend._by_validation import ByValidation
from shoal.nn import extensions

X, Y = made(80, 4, dtype=torch.float32), labels(80, 3)


def model(*layers: nn.Module) -> nn.Module:
    first = nn.Linear(4, 5)
    nn.init.ones_(first.weight)  # so that the sum of four inputs can overflow
    return nn.Sequential(first, *(layers or (nn.ReLU(), nn.Dropout(0.2))), nn.Linear(5, 3))


def several() -> WeightedSum:
    terms: dict[str, Callable[[Any, Any], Tensor]] = {
        "task": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        "small": lambda model, batch: model(batch[0]).abs().mean(),
    }
    return WeightedSum(terms, weights={"small": 0.5})


def recipe(extension: Extension, **changes: Any) -> shoal.Recipe:
    """With everything that some extension moves, but for what is changed."""
    net = changes.pop("model", None) or model()
    make = changes.pop("make", lambda p: optim.SGD(p, lr=0.1, weight_decay=1e-3))
    loss = changes.pop("loss", None) or (several() if isinstance(extension, LossWeights) else nn.CrossEntropyLoss())
    predict = {"predict": lambda model, batch: model(batch[0])} if isinstance(loss, WeightedSum) else {}
    optimizer = make(net.parameters())
    return shoal.Recipe(net, optimizer, loss, 16, extensions=[extension], **{"l1": 1e-4, **predict, **changes})


@dataclass(frozen=True)
class Case:
    """What each kind of bad input is for an extension, and what is said of it."""

    plain: Callable[[], Extension]
    excludes: Callable[[], shoal.Recipe]
    excludes_said: str
    lacks: Callable[[], shoal.Recipe]
    lacks_said: str
    not_finite_said: str


CASES: dict[str, Case] = {
    "LearningRate": Case(
        LearningRate,
        lambda: recipe(LearningRate(bounds=(1e-4, 1e-2))),
        "LearningRate(bounds=...) = (0.0001, 0.01) exclude the learning rate, 0.1; widen them, or start inside",
        lambda: recipe(LearningRate(), make=lambda p: optim.Rprop(p)),
        "needs an optimizer whose step is proportional to its learning rate",
        "the hypergradient of its learning rate was not finite at update 2",
    ),
    "BatchSize": Case(
        lambda: BatchSize(bounds=(2, 64)),
        lambda: recipe(BatchSize(bounds=(32, 64))),
        "BatchSize(bounds=...) = (32, 64) exclude the batch size, 16; widen them, or start inside",
        lambda: recipe(BatchSize(bounds=(2, 64)), model=model(nn.BatchNorm1d(5))),
        "BatchSize needs batches that can be taken in parts, and here they cannot: BatchNorm1d (layer '1') follows statistics of",
        "its gradient noise scale was not finite at update 1",
    ),
    "Activation": Case(
        Activation,
        lambda: recipe(Activation(bounds=(0.5, 1.0))),
        "Activation(bounds=...) = (0.5, 1) exclude its start, 0.25",
        lambda: recipe(Activation(), model=nn.Linear(4, 3)),
        "Activation needs a model with activation modules",
        "its loss was not finite in its first epoch: the learning rate may be too high",
    ),
    "WeightDecay": Case(
        lambda: WeightDecay(every=2),
        lambda: recipe(WeightDecay(bounds=(1e-2, 1))),
        "WeightDecay(bounds=...) = (0.01, 1) exclude the weight decay, 0.001",
        lambda: recipe(WeightDecay(), make=lambda p: optim.SGD(p, lr=0.1)),
        "WeightDecay moves the optimizer's weight_decay, which is 0 here; give the optimizer one to start from",
        "the hypergradient of its weight_decay was not finite at update 2",
    ),
    "L1": Case(
        lambda: L1(every=2),
        lambda: recipe(L1(bounds=(1e-3, 1))),
        "L1(bounds=...) = (0.001, 1) exclude l1, 0.0001",
        lambda: recipe(L1(), l1=0.0),
        "L1 moves Recipe(l1=...), which is 0 here; give one to start from",
        "the hypergradient of its l1 was not finite at update 2",
    ),
    "LabelSmoothing": Case(
        lambda: LabelSmoothing(every=2),
        lambda: recipe(LabelSmoothing(bounds=(0.1, 0.2))),
        "LabelSmoothing(bounds=...) = (0.1, 0.2) exclude the label smoothing, 0",
        lambda: recipe(LabelSmoothing(), loss=nn.MultiMarginLoss()),
        "moves the smoothing of nn.CrossEntropyLoss, and the loss is MultiMarginLoss",
        "the hypergradient of its label_smoothing was not finite at update 2",
    ),
    "Dropout": Case(
        lambda: Dropout(every=2),
        lambda: recipe(Dropout(bounds=(0.3, 0.5))),
        "Dropout(bounds=...) = (0.3, 0.5) exclude the dropout rate of '2', 0.2",
        lambda: recipe(Dropout(), model=model(nn.Tanh())),
        "Dropout moves the rates of nn.Dropout",
        "the hypergradient of its dropout was not finite at update 2",
    ),
    "LossWeights": Case(
        lambda: LossWeights(every=2),
        lambda: recipe(LossWeights(bounds=(1, 2))),
        "LossWeights(bounds=...) = (1, 2) exclude the weight of 'small', 0.5",
        lambda: recipe(LossWeights(), loss=nn.CrossEntropyLoss()),
        "give Recipe(loss=shoal.extend.WeightedSum(...)), not CrossEntropyLoss",
        "the hypergradient of its loss_weight/small was not finite at update 2",
    ),
}
NAMES = sorted(CASES)


def test_the_table_has_every_extension() -> None:
    assert set(CASES) == set(extensions())


def tune(define: Callable[[Any], shoal.Recipe], **options: Any) -> shoal.Study:
    given: dict[str, Any] = {"train": (X, Y), "valid": (X, Y), "hyper_valid": (X, Y), "n_trials": 5, "max_epochs": 2}
    return shoal.tune(define, **{**given, "reproducible": True, "scheduler": "none", "progress": False, **options})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["excludes", "lacks"])
def test_bounds_that_exclude_the_base_and_what_is_not_there(name: str, what: str) -> None:
    case = CASES[name]
    make, said = (case.excludes, case.excludes_said) if what == "excludes" else (case.lacks, case.lacks_said)
    with pytest.raises(StudyError, match=f"(?s)first 5 trials all failed.*trial 0: .*{re.escape(said)}"):
        tune(lambda trial: make())


@pytest.mark.parametrize("name", NAMES)
def test_no_hyper_validation_data(name: str) -> None:
    extension = CASES[name].plain()
    if isinstance(extension, ByValidation):
        with pytest.raises(
            UsageError,
            match=rf"shoal\.extend\.{name} needs hyper-validation data to take a gradient on.*tune\(hyper_val",
        ):
            tune(lambda trial: recipe(extension), hyper_valid=None)


def test_hyper_validation_data_that_nothing_uses() -> None:
    with pytest.warns(
        RuntimeWarning, match=r"hyper_valid= keeps 80 rows from training, and none of 2 recipes of this run has"
    ):
        tune(lambda trial: recipe(LearningRate()), n_trials=2)


NEVER: list[tuple[Callable[[], Extension], str]] = [
    (lambda: LearningRate(warmup=15), "after 15 updates, and a trial has 15 (3 epochs of 5)"),
    (lambda: BatchSize(bounds=(2, 64), warmup=11), "after 15 updates, and a trial has 15 (3 epochs of 5)"),
    (lambda: WeightDecay(every=20), "after 20 updates, and a trial has 15 (3 epochs of 5)"),
    (lambda: Dropout(every=5, warmup=10), "after 15 updates, and a trial has 15 (3 epochs of 5)"),
]


@pytest.mark.parametrize(("make", "said"), NEVER)
def test_what_never_moves_says_so_once(make: Callable[[], Extension], said: str) -> None:
    held_out = (X, Y) if isinstance(make(), ByValidation) else None
    with pytest.warns(RuntimeWarning, match=re.escape(said)) as warned:
        tune(lambda trial: recipe(make()), n_trials=2, max_epochs=3, hyper_valid=held_out)
    assert len(warned) == 1


def test_first_moves() -> None:
    """Of 5 updates per epoch: the last warm-up that leaves one move in 15."""
    moving = [LearningRate(warmup=14), BatchSize(warmup=10), Dropout(every=5, warmup=9), Activation()]
    assert [e.moves_after(5) for e in moving] == [14, 10, 10, 0]


def test_hypergradients_that_are_not_finite() -> None:
    """Gradients whose products overflow, and hyper-validation data whose losses do, each trial with another extension."""

    def define(trial: Any) -> shoal.Recipe:
        name = trial.suggest_categorical("name", [*NAMES, ""])
        lr = 1e30 if name == "Activation" else 1e-30
        if not name:
            return shoal.Recipe(net := model(), optim.SGD(net.parameters(), lr=lr), nn.CrossEntropyLoss(), 16)
        return recipe(CASES[name].plain(), make=lambda p: optim.SGD(p, lr=lr, weight_decay=1e-3))

    study = tune(
        define,
        train=(X * 1e25, Y),
        hyper_valid=(torch.full_like(X, 3e38), Y),
        n_trials=len(NAMES) + 1,
        max_epochs=2,
        sampler={"name": "grid", "space": {"name": [*NAMES, ""]}},
    )
    for t in study.record.trials:
        name, said = str(t.spec.params["name"]), t.reason.removeprefix(f"trial {t.spec.number}: ")
        assert (t.state.value, said) == (("failed", CASES[name].not_finite_said) if name else ("finished", ""))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_off_asks_for_nothing(name: str) -> None:
    """A trial with ``on=False`` is one without, also where there would be nothing to move."""
    kind: Any = extensions()[name]
    off = kind(on=False)
    bare = shoal.Recipe(
        net := nn.Linear(4, 3), optim.Rprop(net.parameters()), nn.MultiMarginLoss(), 8, extensions=[off]
    )
    assert bare.extensions == (off,)


SCHEDULES: list[tuple[tuple[float, float], str]] = [
    (
        (1e-4, 1e-2),
        "(0.0001, 0.01) exclude the learning rate, 0.1, that the schedule starts from; widen them, or start inside",
    ),
    ((0.5, 1.0), "(0.5, 1) exclude the learning rate, 0.1, that the schedule starts from"),
]


@pytest.mark.parametrize(("bounds", "said"), SCHEDULES)
def test_bounds_that_exclude_what_a_schedule_starts_from(bounds: tuple[float, float], said: str) -> None:
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    schedule = optim.lr_scheduler.LambdaLR(optimizer, lambda k: k / 10)  # from 0 on, which is below any bound

    def made_with(bounds: tuple[float, float]) -> shoal.Recipe:
        moves = [LearningRate(bounds=bounds)]
        return shoal.Recipe(net, optimizer, nn.CrossEntropyLoss(), 16, schedule, extensions=moves)

    with pytest.raises(RecipeError, match=re.escape(said)):
        made_with(bounds)
    assert made_with((1e-3, 1.0)).extensions
