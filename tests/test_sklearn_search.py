"""``ShoalSearchCV``: what ``GridSearchCV`` gives over the same estimators, with all candidates and folds in lanes."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, RandomizedSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn, optim

from shoal import Recipe
from shoal.lanes.compiled._runner import agrees
from shoal.sklearn import ShoalClassifier, ShoalRegressor, ShoalSearchCV, _lanes

IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)
QUICK: dict[str, Any] = {"hidden_layer_sizes": (8,), "lr": 0.03, "max_epochs": 2, "random_state": 0}


@pytest.fixture(autouse=True)
def one_thread_and_two_digits_more(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """float64, in which lanes and the plain loop agree to the last digits that scores show; and lanes also where little is done."""
    monkeypatch.setattr(_lanes, "_FEW_UPDATES", 0)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [
        ShoalSearchCV(
            ShoalClassifier(hidden_layer_sizes=(16,), lr=0.05, max_epochs=8, random_state=0), {"dropout": [0.0]}, cv=2
        )
    ]
)
def test_the_checks_of_scikit_learn_pass(estimator: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # as it is by itself
    check(estimator)


def same(found: Any, expected: Any) -> None:
    """All results but the times."""
    assert list(found.cv_results_) == list(expected.cv_results_)
    for name, values in expected.cv_results_.items():
        if "time" in name:
            assert len(found.cv_results_[name]) == len(values)
        elif name.startswith("param"):
            assert list(found.cv_results_[name]) == list(values)
        else:
            np.testing.assert_allclose(found.cv_results_[name], values, rtol=1e-8)
    assert found.best_index_ == expected.best_index_ and found.best_params_ == expected.best_params_
    assert found.multimetric_ == expected.multimetric_ and found.n_splits_ == expected.n_splits_


def test_a_grid_gives_what_grid_search_gives() -> None:
    """Activations, batch sizes, dropout, class weights and numbers of epochs."""
    X, y = IRIS
    grid = {
        "activation": ["relu", "tanh"],
        "batch_size": [16, 20],
        "dropout": [0.3],
        "max_epochs": [1, 2],
        "class_weight": [None, {0: 1, 1: 2, 2: 3}],
    }
    settings: dict[str, Any] = {"cv": StratifiedKFold(3, shuffle=True, random_state=1), "return_train_score": True}
    found = ShoalSearchCV(ShoalClassifier(**QUICK), grid, **settings).fit(X, y)
    expected = GridSearchCV(ShoalClassifier(**QUICK), grid, **settings).fit(X, y)
    same(found, expected)
    np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X))
    assert found.best_score_ == pytest.approx(expected.best_score_) and (found.classes_ == [0, 1, 2]).all()
    assert found.refit_time_ > 0 and found.n_features_in_ == 4 and found.score(X, y) == expected.score(X, y)
    assert (pickle.loads(pickle.dumps(found)).predict(X) == found.predict(X)).all()
    assert clone(found).get_params()["estimator__lr"] == 0.03


def test_compiled_lanes_give_what_grid_search_gives_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = IRIS
    monkeypatch.setattr(_lanes, "_COMPILE_FROM_S", 0.0)
    compiled: list[bool] = []

    def noted(*given: Any) -> bool:
        compiled.append(agrees(*given))
        return compiled[-1]

    monkeypatch.setattr("shoal.lanes.pool.agrees", noted)
    grid = {"lr": [0.01, 0.03], "dropout": [0.2], "batch_size": [16, 32], "activation": ["relu", "tanh"]}
    first, second = (ShoalSearchCV(ShoalClassifier(**QUICK), grid, cv=3, n_jobs=n).fit(X, y) for n in (1, 2))
    assert compiled and all(compiled) and torch.get_num_threads() == 1
    same(first, GridSearchCV(ShoalClassifier(**QUICK), grid, cv=3).fit(X, y))
    for name in ("mean_test_score", "params"):
        assert list(first.cv_results_[name]) == list(second.cv_results_[name])


def test_what_is_not_worth_a_trace_trains_in_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = IRIS
    monkeypatch.undo()
    monkeypatch.setattr("shoal.lanes.pool.Fleet.run_epoch", None)
    grid = {"lr": [0.01, 0.03]}
    same(
        ShoalSearchCV(ShoalClassifier(**QUICK), grid, cv=3).fit(X, y),
        GridSearchCV(ShoalClassifier(**QUICK), grid, cv=3).fit(X, y),
    )


def test_random_candidates_and_several_scorers_are_those_of_randomized_search() -> None:
    X, y = DIABETES
    space = {"hidden_layer_sizes": [(4,), (8, 4)], "lr": loguniform(1e-3, 1e-1), "optimizer": ["adam", "sgd"]}
    settings: dict[str, Any] = {
        "n_iter": 5,
        "random_state": 3,
        "cv": 3,
        "scoring": ["r2", "neg_mean_absolute_error"],
        "refit": "r2",
    }
    found = ShoalSearchCV(ShoalRegressor(**QUICK), space, **settings).fit(X, y)
    expected = RandomizedSearchCV(ShoalRegressor(**QUICK), space, **settings).fit(X, y)
    same(found, expected)
    assert set(found.scorer_) == {"r2", "neg_mean_absolute_error"}
    np.testing.assert_allclose(found.predict(X), expected.predict(X))


def test_steps_before_the_network_are_fitted_on_each_fold_alone() -> None:
    X, y = IRIS
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"]).assign(size=np.where(X[:, 0] > 5.8, "large", "small"))
    columns = ColumnTransformer([("n", StandardScaler(), ["a", "b", "c", "d"]), ("s", OneHotEncoder(), ["size"])])
    model = Pipeline([("columns", columns), ("net", ShoalClassifier(**QUICK))])
    # Without the text column, networks have another number of inputs.
    grid = {"columns__s": [OneHotEncoder(), "drop"], "columns__n__with_mean": [True, False], "net__lr": [0.01, 0.1]}
    settings: dict[str, Any] = {"cv": GroupKFold(3), "refit": lambda results: 3}
    groups = np.arange(150) % 7
    found = ShoalSearchCV(model, grid, **settings).fit(frame, y, groups=groups)
    expected = GridSearchCV(model, grid, **settings).fit(frame, y, groups=groups)
    for name in ("mean_test_score", "split2_test_score"):
        np.testing.assert_allclose(found.cv_results_[name], expected.cv_results_[name], rtol=1e-8)
    assert found.best_index_ == 3 and not hasattr(found, "best_score_")
    assert (found.predict(frame) == expected.predict(frame)).all()
    inside = make_pipeline(StandardScaler(), ShoalSearchCV(ShoalClassifier(**QUICK), {"lr": [0.01, 0.1]}, cv=2))
    assert inside.fit(X, y).score(X, y) > 0.5


def test_a_class_that_a_fold_lacks_is_not_predicted_there() -> None:
    X, y = IRIS
    cv = [(np.arange(100), np.arange(100, 150)), (np.arange(150), np.arange(150))]
    found = ShoalSearchCV(ShoalClassifier(**QUICK), {"lr": [0.03]}, cv=cv).fit(X, y)
    assert found.cv_results_["split0_test_score"][0] == 0 and found.cv_results_["split1_test_score"][0] > 0
    assert len(found.classes_) == 3


def define(trial: Any, n_in: int, n_out: int) -> Recipe:
    width = trial.suggest_categorical("width", [4, 8])
    net = nn.Sequential(nn.Linear(n_in, width), nn.Tanh(), nn.Linear(width, n_out))
    made = optim.SGD(net.parameters(), lr=trial.suggest_float("lr", 0.01, 0.1))
    return Recipe(net, made, nn.CrossEntropyLoss(), 16, schedule=optim.lr_scheduler.ReduceLROnPlateau(made, patience=0))


def test_what_a_define_suggests_is_the_space() -> None:
    X, y = IRIS
    network = ShoalClassifier(define=define, max_epochs=3, random_state=0)
    settings: dict[str, Any] = {"n_iter": 4, "random_state": 2, "cv": 2}
    found = ShoalSearchCV(network, **settings).fit(X, y)
    params = found.cv_results_["params"]
    assert len(params) == 4 and {tuple(p) for p in params} == {("params__width", "params__lr")}
    assert params == ShoalSearchCV(network, **settings).fit(X, y).cv_results_["params"]
    grid = {name: sorted({p[name] for p in params}) for name in ("params__width", "params__lr")}
    same(ShoalSearchCV(network, grid, cv=2).fit(X, y), GridSearchCV(network, grid, cv=2).fit(X, y))
    assert found.best_estimator_.params == {n.removeprefix("params__"): v for n, v in found.best_params_.items()}


def test_more_runs_than_a_fleet_has_lanes_all_train() -> None:
    X, y = IRIS
    grid = {"lr": np.geomspace(1e-3, 1e-1, 67).tolist(), "max_epochs": [1]}
    found = ShoalSearchCV(ShoalClassifier(**QUICK), grid, cv=2, refit=False).fit(X, y)
    assert len(found.cv_results_["params"]) == 67 and np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert not hasattr(found, "best_estimator_") and found.best_params_


def test_candidates_that_cannot_be_fitted_score_the_error_score() -> None:
    X, y = IRIS
    grid = {"activation": ["relu", "rellu"], "optimizer": ["sgd"], "lr": [0.01, 1e200]}
    network = ShoalClassifier(**QUICK)
    with pytest.warns(
        FitFailedWarning, match=re.escape("6 of 8 fits failed and score -1. The first one: the loss was not")
    ):
        found = ShoalSearchCV(network, grid, cv=2, error_score=-1).fit(X, y)
    assert found.cv_results_["mean_test_score"][1:].tolist() == [-1, -1, -1] and found.best_index_ == 0
    with pytest.raises(ValueError, match="unknown activation 'rellu'"):
        ShoalSearchCV(network, {"activation": ["relu", "rellu"]}, cv=2, error_score="raise").fit(X, y)
    with pytest.raises(ValueError, match=re.escape("all 2 fits failed. The first one: unknown activation 'rellu'.")):
        ShoalSearchCV(network, {"activation": ["rellu"]}, cv=2).fit(X, y)
    with pytest.warns(FitFailedWarning, match="1 of 2 fits failed and score nan"):
        cv = [(np.arange(50), np.arange(50, 60)), (np.arange(150), np.arange(20))]  # one class only, and all
        with pytest.warns(UserWarning, match="non-finite"):
            ShoalSearchCV(network, {"lr": [0.03]}, cv=cv).fit(X, y)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (ShoalSearchCV(LogisticRegression(), {}), "or a Pipeline that ends with one, not LogisticRegression; for other"),
        (ShoalSearchCV(ShoalClassifier()), "say what to search: param_space={...}; or give the estimator a define, and n_iter="),
        (ShoalSearchCV(ShoalClassifier(define=define)), "say what to search: param_space={...};"),
        (ShoalSearchCV(ShoalClassifier(), {"lr": loguniform(0.1, 1)}), "say how many candidates to draw from the distributions"),
        (ShoalSearchCV(ShoalClassifier(), {"lr": [1]}, n_jobs=0), "n_jobs must be a number of threads, -1 for one per core, or"),
        (ShoalSearchCV(ShoalClassifier(), {"lrr": [1]}), "Invalid parameter 'lrr' for estimator ShoalClassifier"),
        (ShoalSearchCV(ShoalClassifier(), {"lr": [1]}, scoring="acuracy"), "Got 'acuracy' instead."),
        (ShoalSearchCV(ShoalClassifier(**QUICK), {}, scoring=["accuracy", "f1_macro"]), "the parameter refit must be set to a"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_explained(search: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        search.fit(*IRIS)


def test_no_child_process_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fork", refused)
    ShoalSearchCV(ShoalClassifier(**QUICK), {"lr": [0.01, 0.02]}, cv=2).fit(*IRIS)
    assert not list(tmp_path.iterdir())
