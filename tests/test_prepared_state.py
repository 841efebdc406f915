"""A fitted preparation as plain data: it transforms as it did before, and a file can name nothing else."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, VarianceThreshold
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    PowerTransformer,
    QuantileTransformer,
    RobustScaler,
    StandardScaler,
)

from shoal.prepared_state import NotPlainError, load_preparation, packed, unpacked

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(40, 3)) ** 3, RNG.integers(0, 4, (40, 2))], 1)
Y = RNG.integers(0, 2, 40)

OBJECTS = [
    StandardScaler(),
    MinMaxScaler((-1, 1), clip=True),
    RobustScaler(),
    PowerTransformer(),
    QuantileTransformer(n_quantiles=10),
    Normalizer(),
    PCA(2),
    SelectKBest(k=2),
    VarianceThreshold(),
    SimpleImputer(strategy="median"),
    KNNImputer(n_neighbors=3),
    PolynomialFeatures(2),
    KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf"),
    FunctionTransformer(np.arctan),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()),
    FeatureUnion([("a", PCA(1)), ("b", MinMaxScaler())]),
    ColumnTransformer(
        [("code", OneHotEncoder(handle_unknown="ignore"), [3, 4]), ("scale", StandardScaler(), slice(0, 2))],
        remainder="passthrough",
    ),
]


def dense(out: Any) -> Any:
    return out.toarray() if hasattr(out, "toarray") else out


@pytest.mark.parametrize("made", OBJECTS, ids=lambda one: type(one).__name__)
def test_it_transforms_as_it_did(made: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantiles of few rows
        fitted = made.fit(X[:30], Y[:30])
    text, arrays = packed({0: fitted})
    again = unpacked(text, arrays)[0]
    np.testing.assert_array_equal(dense(again.transform(X[30:])), dense(fitted.transform(X[30:])))
    assert repr(again) == repr(fitted) and all(array.dtype.kind in "biuf" for array in arrays.values())


def test_through_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "w.safetensors")
    text, arrays = packed({0: StandardScaler().fit(X)})
    save_file({"weight": np.zeros(2), **arrays}, path, metadata={"prepare": text})
    np.testing.assert_array_equal(load_preparation(path).mean_, X.mean(0))
    text, arrays = packed({1: StandardScaler().fit(X)})
    save_file(arrays, path, metadata={"prepare": text})
    assert list(load_preparation(path)) == [1]
    save_file({"weight": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="holds no preparation: the search had no prepare="):
        load_preparation(path)


class Mine(StandardScaler):  # type: ignore[misc]
    pass


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Mine().fit(X), r"prepare\[0\] is a .*Mine, which is no estimator of scikit-learn"),
        (FunctionTransformer(lambda x: x), r"prepare\[0\]\.func is a builtins\.function"),
        (make_pipeline(StandardScaler(), Mine()), r"prepare\[0\]\.steps\[1\]\[1\] is a .*Mine"),
    ],
    ids=["class", "function", "step"],
)
def test_what_is_no_plain_data_is_refused(made: Any, message: str) -> None:
    with pytest.raises(NotPlainError, match=message):
        packed({0: made})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"object": "os.system", "params": [], "learnt": []}, "'os.system' is no class of scikit-learn"),
        ({"object": "sklearn.base.clone", "params": [], "learnt": []}, "is no estimator of this version"),
        ({"object": "sklearn.utils.Bunch", "params": [], "learnt": []}, "is no estimator of this version"),
        ({"ufunc": "load"}, "'load' is no function of NumPy that works on arrays"),
        ({"scores": "os.system"}, "'os.system' is no function that scikit-learn scores features by"),
        ({"scores": "sklearn.feature_selection._rfe.clone"}, "is no function that scikit-learn scores features by"),
        ({"code": "1"}, r"a preparation holds \['code'\], which is unknown here"),
    ],
    ids=["module", "function", "class", "ufunc", "scores", "scores of others", "key"],
)
def test_no_file_can_name_anything_else(tree: Any, message: str) -> None:
    with pytest.raises(NotPlainError, match=message):
        unpacked(json.dumps({"0": tree}), {})
