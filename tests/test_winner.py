"""What is kept of the winner's predictions: scikit-learn's counts, honest intervals, bounded size, and only once."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim

import shoal
from shoal.errors import StorageError
from shoal.metrics import resolve, standard_metrics
from shoal.storage import load_study
from shoal.winner import MAX_MATRIX, predictions, split_scores

metrics = pytest.importorskip("sklearn.metrics")


def classified(n: int, n_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(n_classes, (n,), generator=generator)
    outputs = torch.randn(n, n_classes, generator=generator)
    outputs[torch.arange(n), targets] += 1.0
    return outputs, targets


def classes_of(outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    found = predictions(outputs, targets)
    assert found is not None
    classes = found["classes"]
    assert isinstance(classes, dict)
    return classes


@pytest.mark.parametrize("n_classes", [2, 5, MAX_MATRIX])
def test_confusions_are_those_of_scikit_learn(n_classes: int) -> None:
    outputs, targets = classified(400, n_classes)
    guesses = outputs.argmax(1)
    classes = classes_of(outputs, targets)
    expected = metrics.confusion_matrix(targets, guesses, labels=range(n_classes))
    assert classes["matrix"] == expected.tolist()
    assert classes["hits"] == expected.diagonal().tolist()
    assert classes["support"] == expected.sum(1).tolist() and classes["predicted"] == expected.sum(0).tolist()


@pytest.mark.parametrize("shape", ["flat", "column"])
@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_binary_logits(shape: str, kind: torch.dtype) -> None:
    outputs, targets = torch.tensor([-1.0, 2.0, 3.0, -4.0]), torch.tensor([0, 1, 0, 1])
    if shape == "column":
        outputs = outputs[:, None]
        targets = targets if kind is torch.int64 else targets[:, None]
    assert classes_of(outputs, targets.to(kind))["matrix"] == [[1, 1], [1, 1]]


def test_pixels_are_samples_and_ignored_ones_are_not() -> None:
    outputs = torch.eye(3)[torch.tensor([[0, 1], [2, 2]])].movedim(-1, 1)  # (2, C, 2)
    classes = classes_of(outputs, torch.tensor([[0, 1], [-100, 1]]))
    assert classes["matrix"] == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_many_classes_stay_small() -> None:
    outputs, targets = classified(3000, 300)
    classes = classes_of(outputs, targets)
    matrix = metrics.confusion_matrix(targets, outputs.argmax(1), labels=range(300))
    np.fill_diagonal(matrix, 0)
    assert "matrix" not in classes and len(classes["confusions"]) <= 100
    assert [count for _, _, count in classes["confusions"]] == sorted(matrix.ravel().tolist())[::-1][
        : len(classes["confusions"])
    ]
    assert all(matrix[true, guess] == count for true, guess, count in classes["confusions"])
    assert len(json.dumps(classes)) < 10_000


def test_residuals_are_binned() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(5000, 2, generator=generator)
    outputs = targets + 0.5 * torch.randn(5000, 2, generator=generator) + 0.1
    found = predictions(outputs, targets)
    assert found is not None
    residuals: Any = found["residuals"]
    error = (outputs - targets).double()
    assert residuals["n"] == 10_000 == sum(residuals["counts"]) == sum(map(sum, residuals["grid"]))
    assert residuals["mean"] == pytest.approx(float(error.mean())) and residuals["std"] == pytest.approx(
        float(error.std(correction=0))
    )
    assert residuals["quantiles"]["0.5"] == pytest.approx(float(error.median()), abs=0.01)
    # Predictions follow the truth: the mass lies around the grid's diagonal.
    grid = torch.tensor(residuals["grid"])
    rows, columns = grid.nonzero(as_tuple=True)
    assert float(torch.corrcoef(torch.stack([rows, columns]).double())[0, 1]) > 0.5
    assert len(json.dumps(residuals)) < 12_000


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (None, torch.zeros(3)),
        (torch.full((3, 2), math.nan), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, 4), torch.zeros(3)),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64)),
        (torch.zeros(3, 2000), torch.zeros(3, dtype=torch.int64)),
    ],
    ids=["no outputs", "diverged", "other shape", "empty", "sequences", "complex", "too many classes"],
)
def test_what_cannot_be_shown_is_left_out(outputs: Tensor | None, targets: Tensor) -> None:
    found = predictions(outputs, targets)
    assert found is None or found == {"classes": None}


def test_a_constant_prediction_has_bins_too() -> None:
    found = predictions(torch.ones(4), torch.full((4,), 1.5))
    assert found is not None and isinstance(found["residuals"], dict)
    assert found["residuals"]["span"] == [-1.0, 0.0]


def test_the_interval_of_accuracy_is_that_of_its_binomial() -> None:
    outputs, targets = classified(500, 4)
    accuracy = standard_metrics(targets)[0]
    value = float(accuracy.compute(outputs[None], targets)[0])
    found: Any = split_scores(outputs, targets, {"accuracy": value}, [accuracy], seed=1)
    score = found["scores"]["accuracy"]
    half = 1.96 * math.sqrt(value * (1 - value) / 500)
    assert found["n"] == 500 and score["value"] == value
    assert score["low"] == pytest.approx(value - half, abs=0.02) and score["high"] == pytest.approx(
        value + half, abs=0.02
    )
    assert found == split_scores(outputs, targets, {"accuracy": value}, [accuracy], seed=1)


def test_losses_have_intervals_only_where_redrawing_means_something() -> None:
    outputs, targets = classified(200, 4)
    mean, total = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")
    measured = {"loss": float(mean(outputs, targets))}
    for loss, expected in ((mean, True), (total, False)):
        found: Any = split_scores(outputs, targets, measured, [], lambda o, t, f=loss: float(f(o, t)))  # type: ignore[misc]
        assert ("low" in found["scores"]["loss"]) is expected


def test_a_metric_that_refuses_a_draw_costs_only_its_interval() -> None:
    outputs, targets = classified(50, 2)

    def picky(outputs: Tensor, targets: Tensor) -> float:
        if len(set(outputs[:, 0].tolist())) < len(outputs):  # any draw with replacement
            raise ValueError("no sample twice")
        return 1.0

    metric = resolve(picky, targets=targets, direction="maximize")
    assert metric is not None
    found: Any = split_scores(outputs, targets, {"picky": 1.0}, [metric])
    assert found["scores"] == {"picky": {"value": 1.0}}


def test_large_splits_are_not_redrawn_for_ever() -> None:
    outputs, targets = torch.zeros(1_100_000, 1), torch.zeros(1_100_000, 1)
    found: Any = split_scores(outputs, targets, {"loss": 0.0}, [], lambda o, t: 0.0)
    assert found["scores"] == {"loss": {"value": 0.0}}


# -- in a study ---------------------------------------------------------------------------------------------------------


def define(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3)
    optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.01, 0.1))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16)


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


def run(path: Path, n_trials: int = 3, **settings: Any) -> shoal.Study:
    settings = {"train": data(), "valid": 0.25, "max_epochs": 2, "n_trials": n_trials, **settings}
    return shoal.tune(define, storage=path, progress=False, reproducible=True, **settings)


@pytest.mark.parametrize("test", [0.25, None])
def test_the_winner_is_looked_at_on_the_split_that_decides(tmp_path: Path, test: float | None) -> None:
    study = run(tmp_path / "s.db", test=test)
    winner: Any = load_study(str(tmp_path / "s.db")).meta["winner"]
    assert winner["trial"] == study.best_trial.spec.number
    assert winner["split"] == ("valid" if test is None else "test") and ("test" in winner) is (test is not None)
    assert sum(winner["classes"]["hits"]) / winner[winner["split"]]["n"] == pytest.approx(
        winner[winner["split"]]["scores"]["accuracy"]["value"]
    )
    assert winner["valid"]["scores"]["accuracy"]["value"] == pytest.approx(study.best_value)
    if test is not None:
        assert study.test_metrics["accuracy"] == winner["test"]["scores"]["accuracy"]["value"]
    assert "Confusion matrix of trial" in study.report(tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_winner_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(tmp_path / "s.db", test=0.25).record.meta["winner"]
    shutil.rmtree(tmp_path / "s.weights")  # a second look would miss them
    assert run(tmp_path / "s.db", test=0.25).record.meta["winner"] == before


def test_gone_weights_matter_only_to_who_asked_for_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: object, number: int, model: object) -> dict[str, Tensor]:
        raise StorageError("the weights are gone")

    monkeypatch.setattr("shoal.weights.WeightStore.load", gone)
    assert "winner" not in run(tmp_path / "s.db").record.meta
    with pytest.raises(StorageError, match="gone"):
        run(tmp_path / "t.db", test=0.25)
