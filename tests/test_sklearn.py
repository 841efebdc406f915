"""The scikit-learn estimators: scikit-learn's own checks, and what they promise beyond them."""

from __future__ import annotations

import pickle
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn, optim

from shoal import Recipe
from shoal.errors import UsageError
from shoal.nn import mlp
from shoal.sklearn import ShoalClassifier, ShoalRegressor

TINY: dict[str, Any] = {"hidden_layer_sizes": (16,), "lr": 0.05, "batch_size": 32, "max_epochs": 8}
IRIS = load_iris(return_X_y=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@parametrize_with_checks([ShoalClassifier(**TINY), ShoalRegressor(**TINY)])  # type: ignore[untyped-decorator]
def test_the_checks_of_scikit_learn_pass(estimator: Any, check: Any) -> None:
    check(estimator)


def test_kinds_are_what_scikit_learn_takes_them_for() -> None:
    assert is_classifier(ShoalClassifier()) and is_regressor(ShoalRegressor())


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (
            ShoalClassifier,
            {"activation": "tanh", "dropout": 0.2, "norm": "layer", "optimizer": "rmsprop", "init": "orthogonal"},
        ),
        (ShoalRegressor, {"hidden_layer_sizes": 8, "residual": True, "weight_decay": 0.1, "batch_size": 7}),
    ],
)
def test_it_trains_the_network_as_a_loop_written_out_would(estimator: Any, settings: dict[str, Any]) -> None:
    """The plain loop has tests of its own; here: the network, optimizer and batches are those that were asked for."""
    X, y = IRIS
    fitted = estimator(**{**TINY, **settings, "max_epochs": 3}, random_state=4).fit(X, y)
    n_out = 3 if estimator is ShoalClassifier else 1
    like = mlp(4, n_out, width=[settings.get("hidden_layer_sizes", 16)], **{
        name: settings[name] for name in ("activation", "dropout", "norm", "residual") if name in settings
    })  # fmt: skip
    assert [(type(m), getattr(m, "p", None)) for m in fitted.module_.modules()] == [
        (type(m), getattr(m, "p", None)) for m in like.modules()
    ]
    assert len(fitted.loss_curve_) == 3 and fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert not fitted.module_.training
    again = clone(fitted).fit(X, y)
    assert all(torch.equal(a, b) for a, b in zip(fitted.module_.parameters(), again.module_.parameters(), strict=True))
    other = clone(fitted).set_params(random_state=5).fit(X, y)
    assert fitted.loss_curve_ != other.loss_curve_


def test_probabilities_are_those_of_the_logits() -> None:
    X, y = IRIS
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    fitted = ShoalClassifier(**TINY, random_state=0).fit(X, names)
    probabilities = fitted.predict_proba(X)
    logits = fitted.module_(torch.tensor(X, dtype=torch.float32)).detach()
    np.testing.assert_allclose(probabilities, torch.softmax(logits, 1).numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.log(probabilities), fitted.predict_log_proba(X), rtol=1e-4, atol=1e-6)
    assert (fitted.classes_[probabilities.argmax(1)] == fitted.predict(X)).all()
    assert log_loss(names, probabilities) < 0.5 and fitted.score(X, names) > 0.9


def test_targets_of_any_size_are_predicted_in_their_own_units() -> None:
    X, y = load_diabetes(return_X_y=True)
    model = make_pipeline(StandardScaler(), ShoalRegressor(**TINY, random_state=0))
    small, large = (model.fit(X, y * unit).predict(X) / unit for unit in (1e-3, 1e6))
    np.testing.assert_allclose(small, large, rtol=1e-3)
    assert model.score(X, y * 1e6) > 0.3
    both = clone(model).fit(X, np.stack([y, -y], axis=1)).predict(X)
    assert both.shape == (len(X), 2) and np.corrcoef(both.T)[0, 1] < -0.9
    assert model.fit(X, np.ones(len(X))).predict(X).shape == (len(X),)


def test_class_weights_are_those_of_scikit_learn() -> None:
    X, y = IRIS
    X, y = X[:120], y[:120]  # 20 of the last class
    plain, balanced = (
        ShoalClassifier(**TINY, class_weight=weight, random_state=0).fit(X, y).predict_proba(X)[:, 2].mean()
        for weight in (None, "balanced")
    )
    by_hand = ShoalClassifier(**TINY, class_weight={0: 120 / 150, 1: 120 / 150, 2: 120 / 60}, random_state=0).fit(X, y)
    assert balanced > plain
    assert by_hand.predict_proba(X)[:, 2].mean() == pytest.approx(balanced)


def test_it_stands_in_pipelines_with_columns_of_several_kinds() -> None:
    X, y = IRIS
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"]).assign(size=np.where(X[:, 0] > 5.8, "large", "small"))
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), ["a", "b", "c", "d"]), ("size", OneHotEncoder(), ["size"])]
    )
    model = make_pipeline(columns, ShoalClassifier(**TINY, random_state=0))
    assert cross_val_score(model, frame, y, cv=3).mean() > 0.85
    assert model.fit(frame, y).named_steps["shoalclassifier"].n_features_in_ == 6
    copy = pickle.loads(pickle.dumps(model))
    assert (copy.predict(frame) == model.predict(frame)).all()
    assert "hidden_layer_sizes=(16,)" in repr(model)


# -- a define of one's own --------------------------------------------------------------------------------------------


def define(trial: Any, n_in: int, n_out: int) -> Recipe:
    model = nn.Sequential(nn.Linear(n_in, trial.suggest_int("width", 4, 64)), nn.ReLU(), nn.LazyLinear(n_out))
    model(torch.zeros(1, n_in))
    made = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True))
    schedule = optim.lr_scheduler.ExponentialLR(made, 0.5)
    return Recipe(model, made, nn.CrossEntropyLoss() if n_out > 1 else nn.MSELoss(), batch_size=16, schedule=schedule)


def test_a_define_of_ones_own_is_trained() -> None:
    X, y = IRIS
    model = ShoalClassifier(define=define, params={"width": 8}, max_epochs=4, random_state=0).set_params(
        params__lr=0.03
    )
    assert model.get_params()["params__lr"] == 0.03 and model.get_params(deep=False)["params"] == {
        "width": 8,
        "lr": 0.03,
    }
    assert clone(model).fit(X, y).score(X, y) > 0.6
    assert model.fit(X, y).module_[0].out_features == 8


def one_logit(trial: Any, n_in: int, n_out: int) -> Recipe:
    model = nn.Linear(n_in, 1)
    return Recipe(
        model, optim.SGD(model.parameters(), lr=0.1), lambda m, batch: m(batch[0]).square().mean(), batch_size=16
    )


def nothing(*_: Any) -> Any:
    return None


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (ShoalClassifier(max_epochs=0), "max_epochs must be a whole number of at least 1, not 0."),
        (ShoalClassifier(batch_size=0), "batch_size must be a whole number of at least 1, not 0."),
        (ShoalClassifier(activation="rellu"), "unknown activation 'rellu'. Did you mean 'relu'?"),
        (ShoalClassifier(optimizer="adm"), "unknown optimizer 'adm'. Did you mean 'adam'?"),
        (ShoalClassifier(hidden_layer_sizes=(8, -1)), "mlp(width[1]=...) must be a whole number of at least 1; got -1."),
        (ShoalClassifier(hidden_layer_sizes=(8.5,)), "mlp(width[0]=...) must be a whole number of at least 1; got 8.5."),
        (ShoalClassifier(device="cdu"), "device='cdu' cannot be used here"),
        (ShoalClassifier(lr=1e20, optimizer="sgd", max_epochs=3), "the loss was not finite in epoch "),
        (ShoalClassifier(define=define), "define() asks for 'width', for which the estimator has no value: add it to params="),
        (ShoalClassifier(define=define, class_weight="balanced"), "with define= the loss is the recipe's own"),
        (ShoalClassifier(define=one_logit, max_epochs=1), "model must give one logit per class, (n, 3); it gives (150, 1)."),
        (ShoalRegressor(define=nothing), "define(trial) must return a shoal.Recipe, not None"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_explained_at_fit(estimator: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        estimator.fit(*IRIS).predict(IRIS[0])


def test_a_regressor_needs_one_output_per_target() -> None:
    X, y = IRIS
    model = ShoalRegressor(define=one_logit, max_epochs=1).fit(X, np.stack([y, y], axis=1))
    with pytest.raises(
        UsageError, match=re.escape("model must give one number per target, (n, 2); it gives (150, 1).")
    ):
        model.predict(X)


def test_sample_weights_are_no_argument() -> None:
    with pytest.raises(TypeError, match="sample_weight"):
        ShoalClassifier().fit(*IRIS, sample_weight=np.ones(150))  # type: ignore[call-arg]


def test_the_code_of_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "scikit_learn.md").read_text(encoding="utf-8")
    script = tmp_path / "page.py"
    script.write_text(
        "\n\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)), encoding="utf-8"
    )
    names = runpy.run_path(str(script))
    assert float(capsys.readouterr().out.splitlines()[0]) > 0.9
    assert names["own"].score(names["X_test"], names["y_test"]) > 0.8
