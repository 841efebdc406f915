"""Batches that are dicts, and tuples of more than two: what the user's code is given, in lanes and alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import assert_same_trail, datasets, labels, made, sign, specs_of, train_fused, train_solo, work_of
from shoal.batches import Form
from shoal.errors import RecipeError
from shoal.recipe import Recipe

X, IDS, Y = made(70, 10), torch.arange(70, dtype=torch.int32) % 7, labels(70, 3)


class Both(nn.Module):
    """Takes its inputs by name, in another order than the data has them."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words, self.drop, self.head = nn.Embedding(7, 4), nn.Dropout(dropout), nn.Linear(14, 3)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.cat([torch.tanh(self.words(ids)), x], 1)))
        return out


def split(*columns: Tensor, names: tuple[str, ...] = ()) -> Any:
    return work_of(datasets([c[:50] for c in columns], [c[50:] for c in columns], names), "accuracy")


def by_name(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["ids"], batch["x"]), batch["kind"])


def in_order(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    x, ids, y = batch
    return nn.functional.cross_entropy(model(ids, x), y)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "a dict and a criterion": (split(X, IDS, Y, names=("x", "ids", "label")), {"loss": nn.CrossEntropyLoss()}),
    "a dict and a callable": (
        split(X, IDS, Y, names=("x", "ids", "kind")),
        {"loss": by_name, "predict": lambda model, batch: model(batch["ids"], batch["x"])},
    ),
    "a tuple of three and a callable": (
        split(X, IDS, Y),
        {"loss": in_order, "predict": lambda model, batch: model(batch[1], batch[0])},
    ),
    "a dict, a criterion and a transform": (
        split(X, IDS, Y, names=("x", "ids", "label")),
        {
            "loss": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5]).double()),
            "transform": lambda batch: {**batch, "x": batch["x"] + 0.1 * torch.randn_like(batch["x"])},
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_in_lanes_as_alone(name: str) -> None:
    work, given = CASES[name]

    def define(trial: Any) -> Recipe:
        model = Both(trial.params["p"]).double()
        optimizer = optim.Adam(model.parameters(), lr=trial.params["lr"])
        return Recipe(model=model, optimizer=optimizer, batch_size=16, **given)

    specs = specs_of([{"lr": 0.01, "p": 0.1}, {"lr": 0.05, "p": 0.5}])
    assert len({sign(define, spec, work).key for spec in specs}) == 1
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        alone = train_solo(define, spec, work, 2)
        assert_same_trail(fused[spec.number], alone, 1e-10)
        assert 0 <= alone.rows[-1].metrics["accuracy"] <= 1


def linear(loss: Any, **fields: Any) -> Any:
    def define(trial: Any) -> Recipe:
        model = nn.Linear(10, 3)
        trial.suggest_float("lr", 1e-3, 1e-1)
        return Recipe(model, optim.SGD(model.parameters(), lr=trial.params["lr"]), loss, 10, **fields)

    return define


def test_a_study_of_dicts_from_first_to_last(tmp_path: Any) -> None:
    """A single input goes by position, whatever it is called; split, resumed and explained like any other data."""
    data = {"target": Y, "pixels": X.float()}
    keywords: dict[str, Any] = {"train": data, "test": data}
    study = shoal.tune(
        linear(nn.CrossEntropyLoss()),
        **keywords,
        storage=tmp_path / "s.db",
        n_trials=2,
        max_epochs=1,
        reproducible=True,
        progress=False,
    )
    more = shoal.resume(tmp_path / "s.db", linear(nn.CrossEntropyLoss()), **keywords, n_trials=3, progress=False)
    assert len(more.record.trials) == 3 and not any(e.kind == "solo" for e in more.record.events)
    right = (more.best_model()(X.float()).argmax(1) == Y).double().mean().item()
    assert more.test_metrics["accuracy"] == pytest.approx(right) and study.best_value >= 0
    assert "3 trials" in str(shoal.explain(linear(nn.CrossEntropyLoss()), train=data, n_trials=3))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            Form(("x", "kind"), False),
            r"the data \(a dict of \['x', 'kind'\]\) does not say what the target is. Name the target as",
        ),
        (
            Form((), False),
            r"the data \(one tensor\) does not say what the target is. Pass \(inputs, targets\), or use a callable",
        ),
    ],
)
def test_a_criterion_needs_a_target(form: Form, message: str) -> None:
    model = nn.Linear(2, 1)
    recipe = Recipe(model, optim.SGD(model.parameters()), nn.MSELoss(), 1)
    with pytest.raises(RecipeError, match=message):
        recipe.fit(form)
    Recipe(model, optim.SGD(model.parameters()), lambda m, b: m(b["x"]).sum(), 1).fit(form)


@pytest.mark.parametrize(
    "bad", [lambda b: tuple(b.values()), lambda b: {"x": b["x"]}, lambda b: {**b, "y": b["y"][:2]}]
)
def test_a_transform_of_a_dict_gives_a_dict(bad: Any) -> None:
    model = nn.Linear(2, 1)
    recipe = Recipe(model, optim.SGD(model.parameters()), nn.MSELoss(), 1, transform=bad)
    recipe.fit(Form(("x", "y")))
    with pytest.raises(
        RecipeError, match=r"like the one it is given, a dict of \['x', 'y'\], all of as many rows; got"
    ):
        recipe.transformed((torch.zeros(4, 2), torch.zeros(4, 1)))
