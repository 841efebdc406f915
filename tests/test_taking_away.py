"""The winner refitted, the best few as one model, and scores with intervals: against scikit-learn, statistics and plain loops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn, optim

import shoal
from shoal import ensembles
from shoal.data import load
from shoal.ensembles import Ensemble, averaged
from shoal.errors import StudyError, UsageError
from shoal.lanes.fleet import Work
from shoal.lanes.rng import permutation
from shoal.metrics import standard_metrics
from shoal.records import EpochRow, TrialRecord, TrialSpec, TrialState
from shoal.refitting import refit
from shoal.scores import Score, scores_of, wilson

CPU = torch.device("cpu")


def samples(n: int = 150) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


def define(trial: Any) -> shoal.Recipe:
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[trial.suggest_categorical("act", ["relu", "tanh"])]
    model = nn.Sequential(nn.Linear(4, 8), act(), nn.Dropout(trial.suggest_float("p", 0.0, 0.3)), nn.Linear(8, 3))
    optimizer = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.05, 0.5))
    schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule)


@pytest.fixture(scope="module")
def study() -> shoal.Study:
    return shoal.tune(
        define, train=samples(), valid=0.2, test=0.2, n_trials=8, max_epochs=3, progress=False, reproducible=True
    )


# -- intervals ------------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 2000), share=st.floats(0, 1), level=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilsons_ends_are_where_the_score_test_just_rejects(n: int, share: float, level: float) -> None:
    hits = round(share * n)
    low, high = wilson(hits, n, level)
    assert 0.0 <= low <= hits / n <= high <= 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(hits / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9)


def test_the_winners_test_scores_have_intervals(study: shoal.Study) -> None:
    scores = study.test_scores
    assert {name: score.value for name, score in scores.items()} == study.test_metrics
    accuracy = scores["accuracy"]
    assert accuracy.method == "wilson" and accuracy.n == 30
    assert (accuracy.low, accuracy.high) == wilson(round(accuracy.value * 30), 30)
    assert scores["loss"].method == "bootstrap" and scores["loss"].low < scores["loss"].value < scores["loss"].high
    assert str(accuracy).endswith("n = 30)")
    assert str(Score(0.5, math.nan, math.nan, 4, 0.95, "")) == "0.5 (n = 4)"
    assert scores_of(None) == {}


# -- refit ----------------------------------------------------------------------------------------------------------------


def test_a_refit_is_the_plain_loop_on_both_splits(study: shoal.Study) -> None:
    again = study.refit()
    best, data = study.best_trial, study._prepared.whole
    x, y = (torch.cat(pair) for pair in zip(data.train.tensors, data.valid.tensors, strict=True))
    assert (again.n, again.epochs, again.seed) == (120, best.epoch, best.spec.seed) and len(again.train_losses) == 3
    # Without dropout a loop as one writes it gives the same.
    spec = TrialSpec(0, 5, {"act": "tanh", "p": 0.0, "lr": 0.4}, {})
    rows = tuple(EpochRow(0, e, 1.0, 0.5, {"loss": 1.0}) for e in (1, 2, 3))
    came = refit(TrialRecord(spec, TrialState.FINISHED, 0.5, 3, "", rows), define, study._work, study._prepared)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    for epoch, lr in enumerate((0.4, 0.4, 0.04)):  # the loss that was measured then did not fall after the first epoch
        for at in range(0, 120, 16):
            batch = torch.from_numpy(permutation(5, epoch, 120))[at : at + 16]
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p.sub_(lr * g)
    for p, q in zip(model.parameters(), came.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert came.test_scores["accuracy"].n == 30 and not came.model.training


def test_a_refit_takes_other_epochs_and_seeds(study: shoal.Study) -> None:
    more = study.refit(epochs=5, seed=1)
    assert more.epochs == 5 and more.seed == 1 and len(more.train_losses) == 5
    assert more.train_losses[0] != study.refit(epochs=1).train_losses[0]


@pytest.mark.parametrize(("keyword", "value"), [("epochs", 0), ("epochs", 1.5), ("seed", -1), ("seed", True)])
def test_a_refit_needs_whole_numbers(study: shoal.Study, keyword: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"refit\({keyword}=\.\.\.\) must be a whole number of at least"):
        study.refit(**{keyword: value})


def test_a_refit_that_diverges_is_told(study: shoal.Study) -> None:
    def wild(trial: Any) -> shoal.Recipe:
        model = nn.Linear(4, 3)
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=1e30), nn.MultiMarginLoss(p=2), 16)

    rows = (EpochRow(3, 1, 1.0, 0.5, {"loss": 1.0}),)
    best = TrialRecord(TrialSpec(3, 1, {}, {}), TrialState.FINISHED, 0.5, 1, "", rows)
    with pytest.raises(StudyError, match=r"trial 3: its loss was not finite in epoch 1 of the refit.*refit\(seed=1\)"):
        refit(best, wild, study._work, study._prepared)


# -- ensembles ------------------------------------------------------------------------------------------------------------


def members(*models: nn.Module, loss: Any = None) -> dict[int, shoal.Recipe]:
    def recipe(model: nn.Module) -> shoal.Recipe:
        return shoal.Recipe(model.eval(), optim.SGD(model.parameters(), lr=0.1), loss or nn.CrossEntropyLoss(), 8)

    return {i: recipe(m) for i, m in enumerate(models)}


def work(x: Tensor, y: Tensor) -> Work:
    data = load((x, y), 0.2, 0.2)
    return Work(data, standard_metrics(y), CPU)


def test_an_ensemble_averages_probabilities(study: shoal.Study) -> None:
    both = study.ensemble(5)
    x, y = study._prepared.whole.test.tensors if study._prepared.whole.test else ()
    recipes = both._recipes[0]
    expected = torch.stack([r.model(x).softmax(1) for r in recipes]).mean(0).detach()
    torch.testing.assert_close(both(x).softmax(1), expected)
    assert both.trials[0] == study.best_trial.spec.number and len(both.trials) == 5 == sum(both.groups)
    assert both.test_scores["accuracy"].value == pytest.approx(float((expected.argmax(1) == y).double().mean()))
    assert both.test_scores["loss"].value == pytest.approx(float(nn.functional.nll_loss(expected.log(), y)), rel=1e-5)
    assert set(both.valid_scores) == set(both.test_scores)
    alone = study.ensemble(1)
    torch.testing.assert_close(alone(x).softmax(1), study.best_model()(x).softmax(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x[:, None])[0][:, -1])
        return out


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if bool(out.sum() > 0) else out + 1


@pytest.mark.parametrize(
    ("models", "groups"),
    [
        ([nn.Sequential(nn.Linear(4, 8), nn.Dropout(p), nn.Linear(8, 3)) for p in (0.1, 0.2, 0.0)], [3]),
        ([nn.Sequential(nn.Linear(4, 8), a(), nn.Linear(8, 3)) for a in (nn.ReLU, nn.Tanh, nn.ReLU)], [1, 2]),
        ([nn.Sequential(nn.Linear(4, w), nn.BatchNorm1d(w), nn.Linear(w, 3)) for w in (8, 4, 8)], [1, 2]),
        ([Branching(4, 3), Branching(4, 3)], [1, 1]),
    ],
    ids=["dropout", "activations", "widths", "branches"],
)
def test_models_of_one_structure_run_as_one(models: list[nn.Module], groups: list[int]) -> None:
    both = Ensemble(members(*models), work(*samples(60)))
    assert sorted(both.groups) == groups
    x = samples(20)[0]
    for inputs in (x, -x):
        torch.testing.assert_close(both.members(inputs), torch.stack([m(inputs) for m in models]))
    again = copy.deepcopy(both)
    again.load_state_dict(both.state_dict())
    torch.testing.assert_close(again(x), both(x))


def test_recurrent_models_give_what_they_give_alone() -> None:
    models: list[nn.Module] = [Recurrent(), Recurrent()]
    both, x = Ensemble(members(*models), work(*samples(60))), samples(20)[0]
    torch.testing.assert_close(both.members(x), torch.stack([m(x) for m in models]))


@pytest.mark.parametrize("how", ["classes", "log_probabilities", "logits", "outputs"])
def test_one_models_mean_is_itself(how: ensembles.Average) -> None:
    out = torch.randn(7, 3, dtype=torch.float64)
    out = out.log_softmax(1) if how == "log_probabilities" else out
    came = averaged(torch.stack([out, out]), how)
    shift = (out - came)[:, :1] if how == "classes" else torch.zeros(())
    torch.testing.assert_close(came + shift, out)
    if how == "logits":
        both = averaged(torch.stack([out, -2 * out]), how)
        torch.testing.assert_close(both.sigmoid(), (out.sigmoid() + (-2 * out).sigmoid()) / 2)


def test_how_outputs_are_averaged_follows_from_the_loss() -> None:
    model, (x, y) = nn.Linear(4, 3), samples(8)
    for loss, how in (
        (nn.CrossEntropyLoss(), "classes"),
        (nn.NLLLoss(), "log_probabilities"),
        (nn.BCEWithLogitsLoss(), "logits"),
        (nn.MSELoss(), "outputs"),
    ):
        assert ensembles.average_of(members(model, loss=loss)[0], model(x), y) == how
    shown = shoal.Recipe(
        model, optim.SGD(model.parameters(), lr=1), lambda m, b: m(b[0]).sum(), 4, predict=lambda m, b: m(b[0])
    )
    assert ensembles.average_of(shown, model(x), y) == "classes"
    assert ensembles.average_of(shown, model(x)[:, :1], y) == "logits"
    both = Ensemble({0: shown, 1: shown}, work(*samples(60)))
    assert both.test_scores["accuracy"].n == 12 and "loss" not in both.test_scores


@pytest.mark.parametrize("k", [0, 6, 2.0, True])
def test_an_ensemble_needs_models_that_are_kept(study: shoal.Study, k: Any) -> None:
    with pytest.raises(UsageError, match=r"ensemble\(k\) takes a whole number from 1 to 5"):
        study.ensemble(k)


def test_outputs_that_cannot_be_averaged_are_refused() -> None:
    with pytest.raises(UsageError, match="outputs are tensors of one shape; those of trials 0, 1 are"):
        Ensemble(members(nn.Linear(4, 3), nn.Linear(4, 2)), work(*samples(60)))
    named = work(*samples(60))
    split = type(named.data.train)(named.data.train.tensors, ("x", "y"))
    with pytest.raises(UsageError, match="an ensemble needs data that are tuples"):
        Ensemble(members(nn.Linear(4, 3)), Work(replace(named.data, train=split), named.metrics, CPU))
    with pytest.raises(UsageError, match=r"all tensors of the data but the last, 1 here, which raised"):
        Ensemble(members(nn.Linear(5, 3)), work(*samples(60)))
