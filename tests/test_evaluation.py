"""What is measured on the validation split: the same in a lane and alone, whatever the neighbours are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import assert_same_trail, datasets, labels, made, specs_of, train_fused, train_solo, work_of
from shoal.lanes.fleet import Work
from shoal.lanes.lane import evaluation_chunk
from shoal.lanes.solo import measure
from shoal.metrics import further
from shoal.recipe import Recipe
from shoal.replay import Define


def same(define: Define, params: list[dict[str, Any]], work: Work) -> None:
    specs = specs_of(params)
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-11)


def test_lanes_with_class_weights_of_their_own_have_their_own_validation_loss() -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Linear(6, 3).double()
        weight = torch.tensor([1.0, trial.params["w"], 2.0], dtype=torch.float64)
        return Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(weight), 16)

    x, y = made(60, 6), labels(60, 3)
    same(define, [{"w": w} for w in (0.1, 1.0, 7.0)], work_of(datasets((x[:40], y[:40]), (x[40:], y[40:]))))


def test_probabilities_are_cut_at_one_half_in_lanes_and_alone() -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid(), nn.Flatten(0)).double()
        return Recipe(model, optim.SGD(model.parameters(), lr=trial.params["lr"]), nn.BCELoss(), 16)

    x = made(60, 6)
    y = (x[:, 0] > 0.8).double()  # rare, so that a cut at 0 would call everything a hit
    data = datasets((x[:40], y[:40]), (x[40:], y[40:]))
    work = Work(data, further(["accuracy", "f1", "auroc", "log_loss"], targets=y), torch.device("cpu"))
    specs = specs_of([{"lr": 0.5}, {"lr": 1.0}])
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        solo = train_solo(define, spec, work, 2)
        assert_same_trail(fused[spec.number], solo, 1e-11)
        model = define(type("Trial", (), {"params": spec.params})()).model
        model.load_state_dict(solo.states[-1])
        p = model(x[40:]).detach()
        row = fused[spec.number].rows[-1].metrics
        assert row["accuracy"] == pytest.approx(sk.accuracy_score(y[40:], p > 0.5))
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(y[40:], p))
        assert row["log_loss"] == pytest.approx(sk.log_loss(y[40:], p))


def test_a_chunk_of_ignored_targets_adds_nothing_to_the_loss() -> None:
    def define(trial: Any) -> Recipe:
        model = nn.Linear(2000, 3).double()
        return Recipe(model, optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss(), 16)

    x, y = made(192, 2000), labels(192, 3)
    y[64:128] = -100
    size = evaluation_chunk((x, y))
    assert size == 64, "a chunk of 64 samples of 16 kB"
    work = work_of(datasets((x[:40], y[:40]), (x, y)), "accuracy")
    same(define, [{}, {}], work)
    recipe = define(None)
    loss, outputs = measure(recipe, (x, y), 0)
    assert outputs is not None and loss == pytest.approx(float(recipe.loss(outputs, y)), rel=1e-12)
    assert math.isnan(measure(recipe, (x, torch.full_like(y, -100)), 0)[0])


@pytest.mark.parametrize(
    ("shape", "expected"), [((64,), 512), ((1, 28, 28), 256), ((3, 32, 32), 64), ((3, 224, 224), 8), ((512,), 512)]
)
def test_chunks_are_smaller_where_samples_are_large(shape: tuple[int, ...], expected: int) -> None:
    assert evaluation_chunk((torch.empty(2, *shape, device="meta"),)) == expected


def skewed(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == 0).float().mean())


X = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def plain(trial: Any) -> Recipe:
    model = nn.Linear(4, 3)
    return Recipe(
        model, optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.1, 1.0)), nn.CrossEntropyLoss(), 20
    )


def test_further_metrics_are_in_every_row_and_of_the_winner() -> None:
    study = shoal.tune(
        plain, train=(X, Y), test=(X, Y), metrics=["auroc", "f1_class_2", skewed], n_trials=3, max_epochs=2,
        reproducible=True, progress=False,
    )  # fmt: skip
    for trial in study.record.trials:
        for row in trial.rows:
            assert list(row.metrics) == ["loss", "accuracy", "auroc", "f1_class_2", "skewed", "f1"]
    assert study.record.meta["metric"] == "accuracy" and study.test_metrics.keys() == row.metrics.keys()
    model = study.best_model()
    expected = sk.roc_auc_score(Y, model(X).detach().double().softmax(1), multi_class="ovr")
    assert study.test_metrics["auroc"] == pytest.approx(expected)


def test_a_study_goes_on_with_its_further_metrics(tmp_path: Any) -> None:
    keywords: dict[str, Any] = {"n_trials": 2, "max_epochs": 1, "reproducible": True, "progress": False}
    shoal.tune(plain, train=(X, Y), metrics=["mcc"], storage=tmp_path / "a.db", **keywords)
    study = shoal.resume(tmp_path / "a.db", plain, train=(X, Y), n_trials=3, progress=False)
    assert all("mcc" in trial.rows[0].metrics for trial in study.record.trials)
    shoal.tune(plain, train=(X, Y), metrics=[skewed], storage=tmp_path / "b.db", **keywords)
    with pytest.raises(shoal.UsageError, match="started with a metric, sampler or scheduler object"):
        shoal.resume(tmp_path / "b.db", plain, train=(X, Y), n_trials=3, progress=False)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [("f1", "metrics must be a list of names"), (["acuracy"], "Unknown metric 'acuracy'. Did you mean 'accuracy'?")],
)
def test_bad_metrics_are_refused_before_anything_runs(metrics: Any, message: str) -> None:
    called: list[Callable[..., Any]] = []
    with pytest.raises(shoal.UsageError, match=message):
        shoal.tune(called.append, train=(X, Y), metrics=metrics, progress=False)  # type: ignore[arg-type]
    assert not called
