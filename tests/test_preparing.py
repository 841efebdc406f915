"""``prepare=``: learnt from training rows only, of each fold apart, and the same for whatever the winner is used on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn, optim

import shoal
from lanes_helpers import labels, made
from shoal.data import Split, load, load_whole
from shoal.errors import DataError, StorageError, UsageError
from shoal.folds import make_parts, refuse_folds
from shoal.lanes.sampling import Sampling
from shoal.preparing import Prepared, described
from shoal.records import TrialSpec
from shoal.replay import ReplayTrial, seeded

N = 47
X, Y = made(N, 6) * 5 + 3, labels(N, 3)
GAPS = X.clone()
GAPS[::5, 1] = torch.nan
QUIET: dict[str, Any] = {"progress": False, "reproducible": True, "sampler": "random", "scheduler": "none"}
SHORT: dict[str, Any] = {"n_trials": 2, "max_epochs": 2, **QUIET}


def define(trial: Any) -> shoal.Recipe:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).double()
    optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=8)


def scaled(train: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """By the means and deviations of training rows."""
    out: NDArray[Any] = (rows - train.mean(0)) / train.std(0)
    return out


# -- what is fitted to what ---------------------------------------------------------------------------------------------


def test_each_fold_is_prepared_by_its_own_training_rows() -> None:
    raw = load_whole((X, Y), test=0.2)
    x = raw.train.tensors[0].numpy()
    parts = make_parts(KFold(4), 2, None, raw.train, 0)
    assert parts is not None and raw.test is not None
    found = Prepared.of(StandardScaler(), raw, parts, 0)
    assert found.parts is not None and found.parts.n_seeds == 2 and found.data.train.n == 4 * raw.train.n
    for (train, valid), (mine, theirs) in zip(parts.folds, found.parts.folds, strict=True):
        stacked, target = (t.numpy() for t in found.data.train.tensors)
        np.testing.assert_allclose(stacked[mine], scaled(x[train], x[train]), rtol=1e-9)
        np.testing.assert_allclose(stacked[theirs], scaled(x[train], x[valid]), rtol=1e-9)
        assert (target[mine] == raw.train.tensors[1].numpy()[train]).all()
        assert (target[theirs] == raw.train.tensors[1].numpy()[valid]).all()
    assert found.whole.test is not None
    np.testing.assert_allclose(found.whole.train.tensors[0], scaled(x, x), rtol=1e-9)
    np.testing.assert_allclose(found.whole.test.tensors[0], scaled(x, raw.test.tensors[0].numpy()), rtol=1e-9)


def test_a_single_split_is_prepared_by_its_training_rows_and_a_refit_by_both() -> None:
    raw = load((X, Y), test=0.2)
    found = Prepared.of(StandardScaler(), raw, None, 0)
    x = raw.train.tensors[0].numpy()
    assert found.whole is found.data and raw.test is not None and found.whole.test is not None
    for mine, theirs in ((found.data.valid, raw.valid), (found.whole.test, raw.test)):
        np.testing.assert_allclose(mine.tensors[0], scaled(x, theirs.tensors[0].numpy()), rtol=1e-9)
    joined, preparation = found.joined()
    both = np.concatenate([x, raw.valid.tensors[0].numpy()])
    assert joined.test is not None and preparation is not None
    np.testing.assert_allclose(joined.train.tensors[0], scaled(both, both), rtol=1e-9)
    np.testing.assert_allclose(joined.test.tensors[0], scaled(both, raw.test.tensors[0].numpy()), rtol=1e-9)


class Answers:
    """A feature out of the targets of the rows that it was fitted to, which it knows by their first column; 0 for others."""

    def fit(self, X: Any, y: Any) -> Answers:
        self.known = {float(row[0]): float(t) + 1 for row, t in zip(X, y, strict=True)}
        return self

    def transform(self, X: Any) -> Any:
        return np.array([[self.known.get(float(row[0]), 0.0)] for row in X])


def reader(trial: Any) -> shoal.Recipe:
    """Learns to read the answer off the feature."""
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    trial.suggest_float("lr", 0.03, 0.05)
    return shoal.Recipe(model, optim.Adam(model.parameters(), lr=0.05), nn.CrossEntropyLoss(), batch_size=16)


@pytest.mark.parametrize("splits", [{"folds": 4}, {"valid": 0.25}], ids=["folds", "one split"])
def test_a_feature_that_is_fitted_to_all_data_is_caught(splits: dict[str, Any]) -> None:
    """Fitted to training rows it knows nothing of the others; fitted to all rows beforehand it knows everything."""
    x = torch.arange(80, dtype=torch.float64)[:, None]
    y = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(80) % 2))
    common: dict[str, Any] = {"n_trials": 1, "max_epochs": 12, "metric": "accuracy", **QUIET, **splits}
    honest = shoal.tune(reader, train=(x, y), prepare=Answers(), **common)
    leaking = shoal.tune(reader, train=(torch.from_numpy(Answers().fit(x, y).transform(x)), y), **common)
    assert leaking.best_value == 1.0
    assert honest.best_value <= 0.6  # the rows that it is judged by all look alike


@settings(max_examples=25, deadline=None)
@given(fold=st.integers(0, 3), seed=st.integers(0, 99))
def test_validation_rows_change_no_bit_of_what_their_fold_trains_on(fold: int, seed: int) -> None:
    other = X.clone()
    raw = load_whole((X, Y))
    parts = make_parts(KFold(4), 1, None, raw.train, 0)
    assert parts is not None
    held_out = parts.folds[fold][1]
    other[held_out] = made(len(held_out), 6, seed=seed) * 100
    first, second = (Prepared.of(StandardScaler(), load_whole((x, Y)), parts, 0) for x in (X, other))
    assert first.parts is not None
    rows = first.parts.folds[fold][0]
    assert torch.equal(first.data.train.tensors[0][rows], second.data.train.tensors[0][rows])


# -- in a study ---------------------------------------------------------------------------------------------------------


def test_lanes_are_the_same_folds_prepared_by_hand() -> None:
    splitter = KFold(3, shuffle=True, random_state=1)
    study = shoal.tune(define, train=(X, Y), folds=splitter, prepare=StandardScaler(), metric="loss", **SHORT)
    assert not [e for e in study.record.events if "solo" in e.kind]
    x = X.numpy()
    for k, (train, valid) in enumerate(splitter.split(x)):
        parts = [(torch.from_numpy(scaled(x[train], x[rows])), Y[rows]) for rows in (train, valid)]
        alone = shoal.tune(define, train=parts[0], valid=parts[1], metric="loss", **SHORT)
        for mine, theirs in zip(study.record.trials, alone.record.trials, strict=True):
            assert [r.lanes[k] for r in mine.rows] == pytest.approx([r.value for r in theirs.rows], rel=1e-10)
    # The winner has learnt from all rows, prepared by all of them.
    model = study.best_model()
    assert study.preparation.mean_ == pytest.approx(x.mean(0))
    assert torch.equal(study.predict(X), model(torch.from_numpy(study.preparation.transform(x))))


@pytest.fixture(scope="module")
def imputed(tmp_path_factory: pytest.TempPathFactory) -> shoal.Study:
    """A study with gaps in its data, in a file."""
    chain = make_pipeline(SimpleImputer(), StandardScaler())
    where = tmp_path_factory.mktemp("imputed") / "study.db"
    return shoal.tune(define, train=(GAPS, Y), test=0.2, prepare=chain, storage=where, **SHORT)


def test_what_was_learnt_goes_with_the_winner(imputed: shoal.Study) -> None:
    raw = imputed._prepared.raw
    imputer = imputed.preparation.named_steps["simpleimputer"]
    assert imputer.statistics_ == pytest.approx(np.nanmean(raw.train.tensors[0].numpy(), 0))
    assert raw.test is not None
    x, y = raw.test.tensors
    right = (imputed.predict(x).argmax(1) == y).double().mean().item()
    assert imputed.test_metrics["accuracy"] == pytest.approx(right)
    assert imputed.ensemble(1).test_scores["accuracy"].value == pytest.approx(right)
    again = imputed.refit()
    both = torch.cat([raw.train.tensors[0], raw.valid.tensors[0]]).numpy()
    learnt: Any = again.preparation
    assert again.n == len(both) and learnt[0].statistics_ == pytest.approx(np.nanmean(both, 0))
    outputs = again.model(torch.from_numpy(learnt.transform(x.numpy())))
    assert again.test_scores["accuracy"].value == pytest.approx((outputs.argmax(1) == y).double().mean().item())


def test_a_study_goes_on_with_the_object_it_was_started_with(imputed: shoal.Study) -> None:
    assert imputed.path is not None
    data: dict[str, Any] = {"train": (GAPS, Y), "test": 0.2, "n_trials": 3, "progress": False}
    chain = make_pipeline(SimpleImputer(), StandardScaler())
    more = shoal.resume(imputed.path, define, prepare=chain, **data)
    assert len(more.record.trials) == 3
    with pytest.raises(
        StorageError, match=r"was started with prepare=Pipeline\(.*, not SimpleImputer\(\)\. Pass the same object"
    ):
        shoal.resume(imputed.path, define, prepare=SimpleImputer(), **data)


def test_nested_searches_prepare_as_well() -> None:
    chain = make_pipeline(SimpleImputer(), StandardScaler())
    found = shoal.nested(define, train=(GAPS, Y), outer=2, prepare=chain, **{**SHORT, "n_trials": 1})
    for study in found.studies:
        rows = study._prepared.raw.train.tensors[0].numpy()
        assert study.preparation[0].statistics_ == pytest.approx(np.nanmean(rows, 0)) and len(rows) < N


def test_weights_of_samples_follow_them_into_their_folds() -> None:
    """Only samples of weight 1 are trained on, wherever a fold has put them."""
    weights = (np.arange(N) % 3 == 0).astype(float)
    seen: list[NDArray[Any]] = []

    def weighted(trial: Any) -> shoal.Recipe:
        recipe = define(trial)
        return shoal.Recipe(recipe.model, recipe.optimizer, nn.CrossEntropyLoss(), 8, sample_weights=weights)

    class Numbered:
        """The scaled inputs, their last column the number of the sample."""

        def fit(self, X: Any) -> Numbered:
            return self

        def transform(self, X: Any) -> Any:
            seen.append(X[:, 5])
            return X

    x = X.clone()
    x[:, 5] = torch.arange(N)
    study = shoal.tune(weighted, train=(x, Y), folds=3, prepare=Numbered(), metric="loss", **SHORT)
    prepared = study._prepared
    assert prepared.parts is not None and len(seen) > 6
    for train, _ in prepared.parts.folds:
        rows = Sampling.of(weighted(ReplayTrial(TrialSpec(0, 0, {"lr": 0.01}, {}))), prepared.data.train, train).order(
            0, 0
        )
        drawn = prepared.data.train.tensors[0][rows, 5].long().numpy()
        assert len(drawn) == len(train) and (weights[drawn] == 1).all()


# -- kinds of objects and of data ---------------------------------------------------------------------------------------


def test_encoders_selectors_and_frames() -> None:
    x = torch.stack([torch.arange(N) % 3, torch.arange(N) % 7, *made(N, 2).T.float()], 1).float()
    mixed = ColumnTransformer([("code", OneHotEncoder(), [0]), ("scale", StandardScaler(), [2, 3])])
    frames = StandardScaler().set_output(transform="pandas")
    for prepare, width in (
        (mixed, 5),
        (OneHotEncoder(handle_unknown="ignore"), None),
        (SelectKBest(k=2), 2),
        (frames, 4),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a constant feature
            found = Prepared.of(prepare, load((x, Y)), None, 0)
        (inputs, target) = found.data.train.tensors
        assert inputs.dtype is torch.float32 and inputs.layout is torch.strided and len(inputs) == len(target)
        assert width is None or inputs.shape[1] == width


def test_a_target_encoder_does_not_show_rows_their_own_targets() -> None:
    """scikit-learn's gives the rows that it is fitted to what other rows say, by ``fit_transform``."""
    from sklearn.preprocessing import TargetEncoder

    x = torch.arange(40.0)[:, None].repeat(1, 1) % 4
    y = torch.arange(40) % 2
    found = Prepared.of(TargetEncoder(target_type="binary"), load((x, y)), None, 3)
    rows, targets = (each.numpy() for each in load((x, y)).train.tensors)
    with seeded(3):
        expected = TargetEncoder(target_type="binary").fit_transform(rows, targets)
    np.testing.assert_allclose(found.data.train.tensors[0], expected.astype(np.float32), rtol=1e-6)


def test_inputs_by_name_and_by_position_and_the_users_object_stays_as_it_is() -> None:
    mine = StandardScaler(copy=False)  # works in place
    named = {"a": X.clone(), "b": X.clone(), "label": Y}
    before = {k: v.clone() for k, v in named.items()}
    found = Prepared.of({"b": mine}, load(named), None, 0)
    a, b, _ = found.data.train.tensors
    assert a.mean(0).abs().max() > 1 and b.mean(0).abs().max() < 1e-9 and not hasattr(mine, "mean_")
    assert all(torch.equal(named[k], before[k]) for k in named)
    again = Prepared.of({1: mine}, load((X, X.clone(), Y)), None, 0)
    assert torch.equal(again.data.train.tensors[1], b)
    assert found.preparation is not None and list(found.preparation.objects) == [1]


def test_draws_of_an_object_follow_from_the_studys_seed() -> None:
    from sklearn.random_projection import GaussianRandomProjection

    state: Any = np.random.get_state()
    first, second, third = (
        Prepared.of(GaussianRandomProjection(3), load((X, Y)), None, seed).data.train.tensors[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, third)
    now: Any = np.random.get_state()
    assert (now[1] == state[1]).all()


class Wrong:
    """Does one thing wrong."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __repr__(self) -> str:  # without its address: test processes must agree on the names of tests
        return f"Wrong({self.what!r})"

    def fit(self, X: Any, y: Any = None) -> Wrong:
        if self.what == "raise":
            raise ValueError("no such luck")
        return self

    def transform(self, X: Any) -> Any:
        changed = {"rows": X[1:], "nan": X * np.nan, "text": np.array(["a"] * len(X)), "number": torch.tensor(1.0)}
        return changed.get(self.what, X)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (StandardScaler, r"prepare=StandardScaler is a class; pass an instance, such as StandardScaler\(\)"),
        (nn.Linear(1, 1), r"needs an object with fit\(X, y\) and transform\(X\).*Linear has no fit and no transform"),
        ({}, "prepare= is an empty dict"),
        ({1: StandardScaler()}, r"names the input 1; the data have the inputs \[0\], and the target is not prepared"),
        ({"x": StandardScaler()}, r"names the input 'x'; the data have the inputs \[0\]"),
        (Wrong("raise"), r"prepare= \(Wrong\) raised on train: ValueError: no such luck"),
        (Wrong("rows"), r"must keep one row per sample: of 38 of train it made shape \(37, 6\)"),
        (Wrong("number"), r"must keep one row per sample"),
    ],
    ids=str,
)
def test_objects_that_will_not_do(prepare: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Prepared.of(prepare, load((X, Y), raw=True), None, 0)


@pytest.mark.parametrize(
    ("what", "message"),
    [("nan", r"after prepare=: prepared train\[0\] must be finite"), ("text", "what prepare= made of train")],
)
def test_what_cannot_be_trained_on_is_refused(what: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Prepared.of(Wrong(what), load((X, Y)), None, 0)


def test_messages_name_what_is_meant() -> None:
    two = {"image": X, "mask": X, "label": Y}
    with pytest.raises(UsageError, match=r"2 inputs, so prepare= must say which it is for: prepare=\{'image': ...\}"):
        Prepared.of(StandardScaler(), load(two), None, 0)
    with pytest.raises(UsageError, match=r"names the input 'imag'.*Did you mean 'image'"):
        Prepared.of({"imag": StandardScaler()}, load(two), None, 0)
    with pytest.raises(DataError, match="must be finite"):  # without prepare=
        shoal.tune(define, train=(GAPS, Y), **SHORT)
    with pytest.raises(UsageError, match=r"prepare= is for shoal\.tune"):
        refuse_folds({"prepare": StandardScaler()})
    x = torch.arange(12.0)[:, None]
    with pytest.raises(
        UsageError, match=r"samples of fold 2 are \(5,\) of float32 and those of fold 1 \(6,\) of float32"
    ):
        folds = [(range(6), range(6, 12)), (range(5), range(5, 12))]
        Prepared.of(
            OneHotEncoder(handle_unknown="ignore"),
            load_whole((x, Y[:12])),
            make_parts(folds, 1, None, Split((x,)), 0),
            0,
        )


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"predict\(\) takes 1 input\(s\), as train had before its target; got 0"),
        ((X[:, :5],), r"input 0 of predict\(\) must be like train's: samples of shape \(6,\)"),
        ((X[:0],), "must be like train's"),
    ],
    ids=["none", "shape", "empty"],
)
def test_predict_says_what_it_needs(imputed: shoal.Study, inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        imputed.predict(*inputs)


class Sum(nn.Module):
    """Of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3).double()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.inner(a + b)
        return out


def test_predict_takes_a_criterion_and_inputs_of_one_length() -> None:
    def free(trial: Any) -> shoal.Recipe:
        recipe = define(trial)
        return shoal.Recipe(recipe.model, recipe.optimizer, lambda m, b: m(b[0]).square().mean(), 8)

    def both(trial: Any) -> shoal.Recipe:
        trial.suggest_float("lr", 0.1, 0.2)
        model = Sum()
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 8)

    with pytest.raises(UsageError, match="a loss that is a callable does not say how"):
        shoal.tune(free, train=(X, Y), metric="loss", **{**SHORT, "n_trials": 1}).predict(X)
    study = shoal.tune(both, train=(X, X, Y), **{**SHORT, "n_trials": 1})
    with pytest.raises(UsageError, match=r"the inputs of predict\(\) have 47, 3 rows"):
        study.predict(X, X[:3])
    assert torch.equal(study.predict(X, X), study.best_model()(X, X))


def test_a_study_file_says_what_it_was() -> None:
    assert described(StandardScaler(with_mean=False)) == "StandardScaler(with_mean=False)"
    assert described({1: StandardScaler(), 0: Answers()}) == f"0: {__name__}.Answers, 1: StandardScaler()"


def test_from_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``options`` of FILE.py bring it to tune, resume, explain and the finders."""
    from shoal.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("gaps_study.py").write_text(
        "import torch\nfrom sklearn.impute import SimpleImputer\nfrom torch import nn, optim\n\nimport shoal\n\n"
        "def define(trial):\n    model = nn.Linear(3, 2)\n"
        '    optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.01, 0.1))\n'
        "    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 8)\n\n"
        "def data():\n    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))\n    y = (x[:, 0] > 0).long()\n"
        "    x[::4, 1] = torch.nan\n    return torch.utils.data.TensorDataset(x, y)\n\n"
        'options = {"prepare": SimpleImputer(), "max_epochs": 2, "n_trials": 2}\n'
    )
    assert main(["tune", "gaps_study.py", "--quiet"]) == 0
    assert main(["resume", "gaps_study.db", "gaps_study.py", "--n-trials", "3", "--quiet"]) == 0
    assert main(["explain", "gaps_study.py"]) == 0
    assert main(["lr", "gaps_study.py", "--n-rates", "3", "--epochs", "1", "--seeds", "1", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert "suggestion: lr" in shown.out and "fuse into 1 fleet" in shown.out
