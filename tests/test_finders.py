"""Finders: what they suggest follows from what they measured, tests agree with scipy's, and bad input gets advice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, optim

import shoal
from shoal.cli import main
from shoal.data import load
from shoal.errors import StorageError, StudyError, UsageError
from shoal.finders._compare import _pairs
from shoal.finders._epochs import enough
from shoal.finders._lanes import Curves
from shoal.finders._lr import steepest, suggest
from shoal.finders._space import MiddleTrial, point
from shoal.finders._statistics import holm, seeds_for, sign_flip_p, t_half
from shoal.lanes.fleet import Work
from shoal.lanes.solo import Solo
from shoal.metrics import resolve
from shoal.records import TrialSpec
from shoal.replay import replay


def samples() -> tuple[Tensor, Tensor]:
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, x[:, :3].argmax(1)


DATA: dict[str, Any] = {"train": samples(), "valid": 0.25, "progress": False}


def define(trial: Any) -> shoal.Recipe:
    kind = trial.suggest_categorical("optimizer", ["sgd", "adam", "frozen"])
    lr = trial.suggest_float("lr", 1e-3, 1.0, log=True)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Dropout(trial.suggest_float("p", 0.0, 0.2)), nn.Linear(8, 3)
    ).double()
    optimizer: optim.Optimizer
    if kind == "sgd":
        optimizer = optim.SGD(model.parameters(), lr=lr, momentum=trial.suggest_float("momentum", 0.0, 0.9))
    elif kind == "adam":
        optimizer = optim.Adam(model.parameters(), lr=lr)
    else:
        optimizer = optim.SGD(model.parameters(), lr=1e-9 * lr)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), trial.suggest_categorical("batch_size", [10, 25, 75]))


@pytest.fixture(scope="module")
def lr() -> shoal.LrFinding:
    return shoal.find_lr(define, **DATA, n_rates=5, epochs=2, seeds=2)


@pytest.fixture(scope="module")
def comparison() -> shoal.Comparison:
    return shoal.compare(define, **DATA, over="optimizer", epochs=4, params={"batch_size": 25, "lr": 0.1})


# -- against the plain loop, and each other -----------------------------------------------------------------------------------


def test_a_run_is_what_its_configuration_does_alone(lr: shoal.LrFinding) -> None:
    assert lr.param == "lr" and lr.fixed == {"optimizer": "sgd", "p": 0.1, "momentum": 0.45, "batch_size": 10}
    assert np.allclose(lr.rates, np.geomspace(1e-3, 1.0, 5))
    from shoal.finders._lanes import seed_of
    from shoal.finders._start import setting

    start = setting(DATA["train"], DATA["valid"], None, None, None, 0, "cpu", False)
    data = load(DATA["train"], DATA["valid"])
    work = Work(data, (resolve("accuracy", targets=data.train.tensors[1]) or pytest.fail(),), torch.device("cpu"))
    for c, s in ((0, 1), (3, 0)):
        spec = TrialSpec(0, seed_of(start, s), {**lr.fixed, "lr": float(lr.rates[c])}, {})
        solo = Solo(spec, replay(define, spec, data.train.n), work)
        rows = [solo.run_epoch() for _ in range(2)]
        assert [r.valid_loss for r in rows] == pytest.approx(lr.curves.valid_loss[c, s].tolist(), rel=1e-9)
        assert [r.train_loss for r in rows] == pytest.approx(lr.curves.train_loss[c, s].tolist(), rel=1e-9)
        assert [r.metrics["accuracy"] for r in rows] == lr.curves.value[c, s].tolist()


def test_the_range_test_raises_the_rate_until_the_loss_explodes(lr: shoal.LrFinding) -> None:
    swept = lr.range_test
    assert np.allclose(np.diff(np.log(swept.rates)), np.log(10_000) / 99)  # 100 updates, to ten times the largest
    assert len(swept.losses) == len(swept.rates) <= 100 and swept.losses[0] == pytest.approx(1.1, abs=0.3)
    assert swept.suggestion is None or swept.rates[0] < swept.suggestion < swept.rates[-1]


def test_a_comparison_pairs_its_seeds(comparison: shoal.Comparison) -> None:
    assert comparison.choices == ("sgd", "adam", "frozen") and comparison.seeds == 8
    assert comparison.fixed == {"lr": 0.1, "p": 0.1, "batch_size": 25}  # momentum is sgd's alone
    first = comparison.curves.valid_loss[:, :, 0]
    assert len(set(first[2].tolist())) == 8  # each seed starts elsewhere
    losers = {(p.better, p.worse) for p in comparison.pairs if p.real}
    assert {(0, 2), (1, 2)} <= losers and len(comparison.pairs) == 3
    assert comparison.order[-1] == 2
    text = str(comparison)
    assert "adam is better than frozen: by 0." in text and "8 seeds, 4 epochs; paired sign-flip tests" in text


def test_batch_sizes_and_epochs() -> None:
    batch = shoal.find_batch_size(define, **DATA, epochs=2, seeds=2, params={"optimizer": "adam", "lr": 0.1})
    assert batch.sizes.tolist() == [10, 25, 75] and batch.updates.tolist() == [8, 3, 1]
    mean = batch.losses.mean(1)
    assert batch.suggestion in batch.sizes and mean[batch.sizes.tolist().index(batch.suggestion)] < mean.max() + 1e-12
    assert f"suggestion: batch_size = {batch.suggestion}" in str(batch)
    epochs = shoal.find_epochs(define, **DATA, max_epochs=6, seeds=2, params={"optimizer": "adam", "lr": 0.1})
    assert epochs.curves.valid_loss.shape == (1, 2, 6) and 1 <= epochs.suggestion <= epochs.best_epoch <= 6
    assert f"suggestion: {epochs.suggestion} epochs" in str(epochs)


# -- suggestions ------------------------------------------------------------------------------------------------------------


def curves(value: NDArray[np.float64], direction: Any = "minimize") -> Curves:
    return Curves(value, value, value, "loss", direction, {})


def test_the_middle_of_what_cannot_be_told_apart_is_suggested() -> None:
    rates = np.array([0.001, 0.01, 0.1, 1.0, 10.0])
    losses = np.array([[3.0, 3.0], [1.0, 1.2], [1.05, 1.15], [2.0, 2.2], [np.nan, 5.0]])
    rate, plateau, reason = suggest(rates, losses, 10)
    assert (
        plateau == pytest.approx((0.01, 0.1))
        and rate == pytest.approx(math.sqrt(0.001))
        and "within one standard error" in reason
    )
    rate, plateau, reason = suggest(rates[1:4], losses[2:, :1], 1)
    assert (
        rate == pytest.approx(0.01)
        and "smallest rate that was tried" in reason
        and "after 1 epoch." in reason.replace(". That", ".")
    )
    with pytest.raises(StudyError, match="every learning rate was not finite"):
        suggest(rates, np.full((5, 2), np.nan), 3)


def test_where_a_sweep_falls_fastest() -> None:
    rates = np.geomspace(1e-4, 1.0, 120)
    falling = 2 / (1 + np.exp(8 * np.log10(rates / 0.02))) + 0.5
    assert steepest(rates, falling) == pytest.approx(0.02, rel=0.15)
    assert steepest(rates, falling[::-1]) is None and steepest(rates, np.ones(120)) is None
    assert steepest(rates[:4], falling[:4]) is None


def test_enough_epochs_are_where_nothing_is_gained() -> None:
    mean = np.array([5.0, 3.0, 2.0, 1.52, 1.5, 1.51, 1.9])
    losses = mean + np.array([[0.1], [-0.1]])
    assert enough(losses)[:2] == (4, 5) and "rises after that, to 1.9" in enough(losses)[2]
    assert "still falling at the end" in enough(losses[:, :5])[2]
    with pytest.raises(StudyError, match="not finite in the first epoch"):
        enough(np.full((2, 3), np.nan))


# -- statistics ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 6, 11, 40])
def test_tests_are_scipys(n: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    d = np.random.default_rng(n).normal(0.4, 1.0, n)
    expected = stats.permutation_test(
        (d, np.zeros(n)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
    )
    exact = n <= 11
    assert sign_flip_p(d) == pytest.approx(expected.pvalue, rel=1e-9 if exact else 0.2)
    assert t_half(n) == pytest.approx(stats.t.ppf(0.975, n - 1), rel=1e-4)


def test_corrections_are_holms() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02]) and holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    for n in (2, 5, 9):
        pairs = n * (n - 1) / 2
        assert 2.0 ** (1 - seeds_for(n)) * pairs <= 0.05


def test_no_difference_is_claimed_of_noise_and_none_missed() -> None:
    rng = np.random.default_rng(0)
    false = 0
    for _ in range(60):
        found = _pairs(curves(rng.normal(1.0, 0.1, (3, 8, 1))))
        false += any(p.real for p in found)
    assert false <= 9  # 5 % of 60, and twice the spread of that
    real = _pairs(curves(rng.normal([[[1.0]], [[1.0]], [[2.0]]], 0.05, (3, 8, 1)), "maximize"))
    assert {(p.better, p.worse) for p in real if p.real} == {(2, 0), (2, 1)}
    gone = np.ones((2, 4, 1))
    gone[1, 2] = np.nan
    assert math.isnan(_pairs(curves(gone))[0].p) and not _pairs(curves(gone))[0].real


# -- pictures -----------------------------------------------------------------------------------------------------------------


def test_every_finding_draws(tmp_path: Path, lr: shoal.LrFinding, comparison: shoal.Comparison) -> None:
    pytest.importorskip("matplotlib")
    losses = np.abs(np.random.default_rng(0).normal(1.0, 0.1, (2, 3, 4)))
    losses[1, 0, 2:] = np.nan
    batch = shoal.BatchFinding("b", np.array([8, 16]), curves(losses), np.array([4, 2]), {}, 8, "so.")
    epochs = shoal.EpochsFinding(curves(losses[:1]), {}, 2, 3, "so.")
    for finding in (lr, comparison, batch, epochs):
        path = finding.plot(tmp_path / f"{type(finding).__name__}.svg")
        text = path.read_text(encoding="utf-8")
        assert "loss" in text and len(text) > 5000
    assert "diverged" in (tmp_path / "BatchFinding.svg").read_text(encoding="utf-8")
    assert "diverged" in str(batch)
    with pytest.raises(UsageError, match=r"must end in \.png, \.svg or \.pdf; got 'x\.doc'"):
        epochs.plot(tmp_path / "x.doc")
    with pytest.raises(StorageError, match="the figure cannot be written"):
        epochs.plot(tmp_path / "no" / "x.png")


def test_figures_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    finding = shoal.EpochsFinding(curves(np.ones((1, 1, 3))), {}, 1, 1, "so.")
    with pytest.raises(UsageError, match="pip install matplotlib"):
        finding.plot(tmp_path / "x.png")


# -- bad input ----------------------------------------------------------------------------------------------------------------


def fixed(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3).double()
    trial.suggest_categorical("only", ["one"])
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 10)


def two_rates(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3).double()
    groups = [
        {"params": [p], "lr": trial.suggest_float(f"rate_{i}", 0.1, 1.0)} for i, p in enumerate(model.parameters())
    ]
    return shoal.Recipe(model, optim.SGD(groups), nn.CrossEntropyLoss(), trial.suggest_int("size", 5, 40))


def broken(trial: Any) -> shoal.Recipe:
    raise ZeroDivisionError(trial.suggest_float("lr", 0.1, 1.0))


def chosen(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3).double()
    lr = trial.suggest_categorical("lr", [0.1, 0.2])
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=lr), nn.CrossEntropyLoss(), 10)


def wild(trial: Any) -> shoal.Recipe:
    model = nn.Linear(4, 3).double()
    lr = trial.suggest_float("lr", 1e200, 1e300, log=True)
    size = trial.suggest_categorical("batch_size", [10, 20])
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=lr), nn.MultiMarginLoss(p=2), size)


def late(trial: Any) -> shoal.Recipe:
    trial.suggest_categorical("a", [1, 2])
    model = nn.Linear(3, 3).double()  # does not take these data
    return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), 10)


@pytest.mark.parametrize(
    ("find", "of", "keywords", "message"),
    [
        ("find_lr", fixed, {}, "suggests no learning rate: it suggests only, and none of them changes"),
        ("find_lr", two_rates, {}, "several hyperparameters change the learning rate: rate_0, rate_1"),
        ("find_lr", define, {"param": "lrr"}, "does not ask for 'lrr'. Did you mean 'lr'"),
        ("find_lr", define, {"param": "p"}, "'p' does not change the learning rate"),
        ("find_lr", define, {"params": {"lr": 0.1}}, "params sets 'lr', which is what the grid is over"),
        ("find_lr", define, {"params": {"widht": 3}}, "does not ask for 'widht'"),
        ("find_lr", define, {"params": {"p": 3.0}}, "p=3.0 is not in FloatDistribution"),
        ("find_lr", define, {"params": [1]}, "params must be a dict"),
        ("find_lr", define, {"low": 0.5, "high": 0.1}, "needs 0 < low < high"),
        ("find_lr", define, {"high": 3.0}, "define() allows lr from 0.001 to 1"),
        ("find_lr", define, {"n_rates": 2}, "n_rates must be a whole number of at least 3"),
        ("find_lr", define, {"n_rates": 200}, "n_rates must be at most 128"),
        ("find_lr", define, {"seed": -1}, "seed must be a whole number of at least 0"),
        ("find_lr", chosen, {}, "a grid of rates needs a suggest_float"),
        ("find_lr", broken, {}, "define() raised ZeroDivisionError"),
        ("find_lr", wild, {"epochs": 1, "n_rates": 3, "seeds": 1}, "every learning rate was not finite"),
        ("find_batch_size", fixed, {}, "suggests no batch size"),
        ("find_batch_size", define, {"sizes": [10]}, "'batch_size' has one value, [10]"),
        ("find_batch_size", define, {"params": {"batch_size": 10}}, "params sets 'batch_size'"),
        ("find_batch_size", wild, {"epochs": 1, "seeds": 1}, "every batch size was not finite"),
        ("find_epochs", define, {"max_epochs": 1}, "max_epochs must be a whole number of at least 2"),
        ("compare", define, {"over": "optimiser"}, "does not ask for 'optimiser'. Did you mean 'optimizer'"),
        ("compare", fixed, {"over": "only"}, "'only' has one choice, ['one']"),
        ("compare", define, {"over": "lr"}, "say which values to compare: choices=[...]"),
        ("compare", define, {"over": "lr", "choices": [0.1, 0.1]}, "choices has a value twice"),
        ("compare", define, {"over": "lr", "choices": [0.1, 7.0]}, "lr=7.0 is not in"),
        ("compare", define, {"over": "optimizer", "choices": "sgd"}, "choices must be a list"),
        ("compare", define, {"over": "p", "params": {"p": 0.1}}, "params sets 'p', which is what is compared"),
        ("compare", define, {"over": "optimizer", "seeds": 1}, "seeds must be a whole number of at least 2"),
        ("compare", late, {"over": "a", "epochs": 1, "seeds": 2}, "every configuration failed. The first: "),
    ],
)
@pytest.mark.filterwarnings("ignore:trial . trains solo:RuntimeWarning", "ignore:.*trial.* train solo:RuntimeWarning")
def test_bad_input_is_told_what_to_do(find: str, of: Any, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, StudyError)) as raised:
        getattr(shoal, find)(of, **DATA, **keywords)
    assert message in str(raised.value)


def test_the_middle_of_a_space() -> None:
    trial = MiddleTrial({})
    assert trial.suggest_int("n", 1, 64, log=True) == 8 and trial.suggest_float("s", 0.0, 1.0, step=0.25) == 0.5
    assert trial.suggest_categorical("c", ["a", "b"]) == "a"
    trial.set_user_attr("x", 1)
    assert trial.user_attrs == {"x": 1} and point(two_rates, {"size": 7}, 75)[1].batch_size == 7


# -- the command line -----------------------------------------------------------------------------------------------------------

FILE = """
import torch
from torch import nn, optim
import shoal

def define(trial):
    model = nn.Linear(4, 3)
    lr = trial.suggest_float("lr", 1e-2, 1.0, log=True)
    kind = trial.suggest_categorical("optimizer", ["sgd", "adam"])
    optimizer = optim.SGD(model.parameters(), lr=lr) if kind == "sgd" else optim.Adam(model.parameters(), lr=lr)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), trial.suggest_categorical("batch_size", [10, 20]))

def data():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return (x, x[:, :3].argmax(1)),

options = {"metric": "f1", "n_trials": 3}
"""


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_finders.py").write_text(FILE, encoding="utf-8")
    few = ["--seeds", "2", "--quiet"]
    assert main(["lr", "own_finders.py", "--n-rates", "3", "--epochs", "1", "--set", "optimizer=adam", *few]) == 0
    said = capsys.readouterr().out
    assert "suggestion: lr = " in said and "with optimizer=adam, batch_size=10" in said and "f1" in said
    assert "figure: own_finders_lr.png" in said and Path("own_finders_lr.png").is_file()
    assert main(["compare", "own_finders.py", "--over", "batch_size", "--epochs", "1", "--json", *few]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["choices"] == [10, 20] and len(facts["pairs"]) == 1 and facts["curves"]["metric"] == "f1"
    assert (
        main(["compare", "own_finders.py", "--over", "lr", "--choice", "0.1", "--choice", "0.2", "--epochs", "1", *few])
        == 0
    )
    assert main(["batch", "own_finders.py", "--epochs", "1", "-o", "b.svg", *few]) == 0 and Path("b.svg").is_file()
    assert main(["epochs", "own_finders.py", "--max-epochs", "2", *few]) == 0
    capsys.readouterr()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for arguments, message in (
        (["lr", "some.csv"], "shoal lr takes FILE.py"),
        (["lr", "own_finders.py", "--set", "optimizer"], "--set takes NAME=VALUE"),
        (["epochs", "own_finders.py", "-o", "x.png"], "pip install matplotlib"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert main(["epochs", "own_finders.py", "--max-epochs", "2", *few]) == 0
    assert "no figure, since matplotlib is not installed" in capsys.readouterr().err
