"""Several objectives and constraints: the front as Optuna sees it, what is kept of it, how it goes on, and what is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.study import StudyDirection
from torch import nn, optim

import shoal
from shoal import measuring
from shoal.errors import RecipeError, StorageError, StudyError, UsageError
from shoal.lanes.threads import threads
from shoal.objectives import Constraint, Objectives, constraints_of
from shoal.records import Outcome, TrialResult, TrialState
from shoal.stopping import Limits, Tally
from shoal.storage import load_study
from shoal.weights import KEPT_OF_FRONT, WeightStore

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(dim=1)
WIDTHS = (2, 8)


def define(trial: optuna.Trial) -> shoal.Recipe:
    width = trial.suggest_categorical("width", WIDTHS)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))
    sgd = optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.01, 1.0, log=True))
    return shoal.Recipe(model, sgd, nn.CrossEntropyLoss(), 16)


TWO: dict[str, Any] = {
    "train": (X[:64], Y[:64]),
    "valid": (X[64:], Y[64:]),
    "metric": ["accuracy", "n_parameters"],
    "max_epochs": 2,
    "reproducible": True,
    "progress": False,
}
TESTED: dict[str, Any] = {**TWO, "test": (X[:32], Y[:32])}
BOUND = "loss <= 1.05"


def size(width: int) -> float:
    return float(4 * width + width + 3 * width + 3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> shoal.Study:
    path = tmp_path_factory.mktemp("several") / "two.db"
    return shoal.tune(define, **TESTED, constraints=[BOUND], n_trials=12, storage=path)


def loaded(study: shoal.Study) -> optuna.Study:
    return optuna.load_study(study_name="shoal", storage=f"sqlite:///{study.path}")


def test_optuna_finds_directions_values_and_front_without_shoal(stored: shoal.Study) -> None:
    theirs = loaded(stored)
    assert theirs.directions == [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    assert stored.directions == ["maximize", "minimize"]
    for t, record in zip(theirs.trials, stored.record.trials, strict=True):
        assert t.state == optuna.trial.TrialState.COMPLETE
        row = record.judged
        assert row is not None
        assert t.values == list(record.values) == [row.metrics["accuracy"], size(record.params["width"])]  # type: ignore[arg-type]
        assert t.constraints == record.outcome.constraints == {BOUND: row.metrics["loss"] - 1.05}
        assert t.user_attrs["n_parameters"] == t.values[1]
        assert t.intermediate_values == {}  # Optuna has no reports with several objectives
    broken = [t.number for t in theirs.trials if t.constraints[BOUND] > 0]
    assert 0 < len(broken) < 12
    assert [t.number for t in theirs.best_trials] == [t.number for t in stored.best_trials]
    assert not {t.number for t in stored.best_trials} & set(broken)


def test_optuna_plots_the_front_and_names_the_columns_as_ever(stored: shoal.Study) -> None:
    from optuna.visualization.matplotlib import plot_pareto_front

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        axes = plot_pareto_front(loaded(stored), target_names=["accuracy", "n_parameters"])
    front = {(float(x), float(y)) for x, y in np.asarray(axes.collections[-1].get_offsets())}
    assert front == {t.values for t in stored.best_trials}
    pytest.importorskip("pandas")
    frame = stored.trials_dataframe()
    assert {"values_0", "values_1", "params_lr", "user_attrs_n_parameters"} <= set(frame.columns)
    assert frame["values_1"].tolist() == [t.values[1] for t in stored.record.trials]


def test_optuna_goes_on_with_the_study_by_its_own_samplers(stored: shoal.Study, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(Path(str(stored.path)).read_bytes())
    for sampler in (optuna.samplers.TPESampler(seed=0, n_startup_trials=2), optuna.samplers.NSGAIISampler(seed=0)):
        study = optuna.load_study(study_name="shoal", storage=f"sqlite:///{copy}", sampler=sampler)
        trial = study.ask()
        assert set(WIDTHS) & {trial.suggest_categorical("width", WIDTHS)}
        trial.suggest_float("lr", 0.01, 1.0, log=True)
        study.tell(trial, [0.5, 10.0])


def test_no_trial_is_best_and_the_message_names_the_way_on(stored: shoal.Study) -> None:
    for name in ("best_trial", "best_params", "best_value", "optimism"):
        with pytest.raises(
            StudyError, match=r"2 objectives \(accuracy, n_parameters\).*best_trials has the Pareto front"
        ):
            getattr(stored, name)
    for call in (stored.best_model, stored.refit):
        with pytest.raises(StudyError, match=r"best_model\(trial\)"):
            call()
    with pytest.raises(StudyError, match="an ensemble averages the best trials by one metric"):
        stored.ensemble(1)


def test_each_model_of_the_front_is_kept_and_gives_what_it_gave(stored: shoal.Study, tmp_path: Path) -> None:
    front = stored.best_trials
    assert sorted(stored.weights.kept) == [t.number for t in front]
    for t in front:
        with torch.no_grad():
            right = float((stored.best_model(t)(X[64:]).argmax(1) == Y[64:]).double().mean())
        assert right == pytest.approx(t.values[0])
    one = front[0]
    again = [stored.best_model(trial) for trial in (one.number, loaded(stored).best_trials[0])]
    assert all(torch.equal(a, b) for a, b in zip(again[0].parameters(), again[1].parameters(), strict=True))
    refit = stored.refit(trial=one.number)
    assert refit.trial == one.number and refit.n == 96
    exported = stored.export(tmp_path / "out", trial=one, formats=["weights"])
    assert exported.folder == tmp_path / "out"


def test_a_trial_that_is_none_is_refused(stored: shoal.Study) -> None:
    for trial, said in ((99, "there is none"), ("3", "there is none"), (True, "there is none")):
        with pytest.raises(UsageError, match=f"trial= takes the number of a finished trial.*{said}"):
            stored.best_model(trial)  # type: ignore[arg-type]
    dominated = next(t.number for t in stored.record.trials if t.number not in stored.weights.kept)
    with pytest.raises(StorageError, match=f"no weights are kept for trial {dominated}"):
        stored.best_model(dominated)


def test_the_test_split_is_touched_for_one_trial_of_the_front(stored: shoal.Study) -> None:
    first = max(stored.best_trials, key=lambda t: t.values[0])
    assert stored.record.meta["test_trial"] == first.number
    assert set(stored.test_metrics) >= {"accuracy", "loss"}


def test_a_study_goes_on_with_the_same_objectives_only(stored: shoal.Study, tmp_path: Path) -> None:
    record = load_study(str(stored.path))
    assert record == stored.record
    assert record.objectives == ("accuracy", "n_parameters")
    for changed, said in (
        ({"metric": ["accuracy", "loss"]}, "is judged by 'accuracy', 'n_parameters', not 'accuracy', 'loss'"),
        ({"metric": "accuracy"}, "has the directions maximize, minimize, not maximize"),
        ({"metric": ["accuracy", "f1"]}, "has the directions maximize, minimize, not maximize, maximize"),
        ({"constraints": []}, "has the constraints 'loss <= 1.05', not none"),
    ):
        with pytest.raises(StorageError, match=said):
            shoal.tune(define, **{**TESTED, "constraints": [BOUND], **changed}, storage=stored.path, n_trials=12)
    parts = {name: TESTED[name] for name in ("train", "valid", "test")}
    longer = shoal.resume(str(stored.path), define, **parts, n_trials=14, progress=False)
    assert [t.values for t in longer.record.trials[:12]] == [t.values for t in record.trials]
    assert len(longer.record.trials) == 14
    assert sorted(longer.weights.kept) == [t.number for t in longer.best_trials]
    assert [t.number for t in longer.best_trials] == [t.number for t in loaded(longer).best_trials]


def test_latency_is_measured_between_rounds_of_every_model_that_finished() -> None:
    shown: list[str] = []
    study = shoal.tune(
        define,
        **{
            **TWO,
            "reproducible": False,
            "metric": ["loss", "latency_ms"],
            "progress": lambda p: shown.append(p.message),
        },
        constraints=["n_parameters <= 50"],
        n_trials=4,
        sampler={"name": "grid", "space": {"lr": [0.1, 0.3]}},
    )
    finished = [t for t in study.record.trials if t.state is TrialState.FINISHED]
    assert len(finished) == 4
    for t in finished:
        assert t.outcome.measured == {"n_parameters": size(t.params["width"]), "latency_ms": t.values[1]}  # type: ignore[arg-type]
        assert 0 < t.values[1] < 1000
        assert t.outcome.feasible is (t.params["width"] == 2)
    assert {t.params["width"] for t in study.best_trials} == {2}
    assert (
        shown[-1].startswith("Pareto front: ") and "loss 0." in shown[-1] and shown[-1].endswith("break a constraint")
    )


def test_one_objective_with_a_constraint_has_a_best_trial_that_keeps_it() -> None:
    study = shoal.tune(define, **{**TWO, "metric": "accuracy"}, constraints=["n_parameters <= 50"], n_trials=8)
    assert study.best_params["width"] == 2
    assert set(study.weights.kept) <= {t.number for t in study.record.trials if t.params["width"] == 2}
    assert study.best_value == max(t.value or 0.0 for t in study.record.trials if t.params["width"] == 2)
    assert [t.number for t in study.optuna_study.best_trials] == [t.number for t in study.best_trials]
    assert study.optuna_study.best_trial.number in [t.number for t in study.best_trials]
    none = shoal.tune(define, **{**TWO, "metric": "accuracy"}, constraints=["n_parameters <= 5"], n_trials=2)
    with pytest.raises(StudyError, match=r"each of the 2 trials .* breaks a constraint \(n_parameters <= 5\)"):
        _ = none.best_params


def test_models_that_are_too_large_are_stopped_at_once_and_take_no_place_at_a_rung(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {**TWO, "metric": "loss", "constraints": ["n_parameters <= 50"], "max_epochs": 4}
    whole = shoal.tune(define, **wanted, n_trials=18)
    ended = {t.number: (t.params["width"], t.state, t.epoch, t.value) for t in whole.record.trials}
    assert {(state, epoch) for width, state, epoch, _ in ended.values() if width == 8} == {(TrialState.STOPPED, 1)}
    small = [(value, epoch) for width, _, epoch, value in ended.values() if width == 2]
    assert len(small) >= 6 and sum(epoch == 4 for _, epoch in small) >= len(small) // 3
    reasons = {t.reason for t in whole.record.trials if t.params["width"] == 8}
    assert reasons == {"67 parameters, and it must be n_parameters <= 50"}

    path = tmp_path / "stopped.db"
    part = shoal.tune(define, **wanted, n_trials=18, storage=path, max_total_epochs=18)
    assert part.stop_reason
    rest = {"train": wanted["train"], "valid": wanted["valid"], "progress": False, "max_total_epochs": 1000}
    again = shoal.resume(path, define, **rest)
    assert ended == {t.number: (t.params["width"], t.state, t.epoch, t.value) for t in again.record.trials}

    all_train = shoal.tune(define, **wanted, n_trials=6, scheduler="none")
    assert {t.epoch for t in all_train.record.trials} == {4}
    none = shoal.tune(define, **{**wanted, "constraints": ["n_parameters <= 5"]}, n_trials=3)
    with pytest.raises(StudyError, match=r"each of the 3 trials .* breaks a constraint \(n_parameters <= 5\)"):
        _ = none.best_params


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"metric": []}, "metric is an empty list"),
        (
            {"metric": ["n_parameters", "accuracy"]},
            "'n_parameters' does not change while a model trains, so it cannot come first",
        ),
        ({"metric": "latency_ms"}, r"constraints=\['latency_ms <= ...'\]"),
        ({"metric": ["accuracy", "accuracy"]}, "metric has 'accuracy' twice"),
        ({"metric": ["accuracy", None]}, "metric holds None among several"),
        ({"metric": ["accuracy", "n_params"]}, "Unknown metric 'n_params'"),
        ({"metric": ["accuracy", lambda o, t: 0.0]}, "is a callable, so say what is better"),
        ({"direction": "maximize"}, "give a direction for each"),
        ({"direction": ["maximize"]}, r"metric names 2 objective\(s\), and direction has 1 entries"),
        ({"direction": ["maximize", "up"]}, "direction must be 'minimize' or 'maximize', not 'up'"),
        ({"metric": ["accuracy", "latency_ms"]}, "latency_ms is measured time, which reproducible=True rules out"),
        (
            {"target_value": 0.9},
            r"target_value has 1 value\(s\), and the study has 2 objective\(s\) \(accuracy, n_parameters\)",
        ),
        ({"target_value": [0.9, "x"]}, "target_value must be a number, or None; not 'x'"),
        ({"metric": "loss", "target_value": [0.9, 0.8]}, "give one number"),
        ({"constraints": "loss <= 1"}, "constraints must be a list of texts"),
        ({"constraints": {"loss": "<= 1"}}, "constraints must be a list of texts"),
        ({"constraints": ["loss < 1"]}, "a constraint is a text such as 'latency_ms <= 2'"),
        ({"constraints": ["loss <= one"]}, "got 'loss <= one'"),
        ({"constraints": ["loss <= inf"]}, "got 'loss <= inf'"),
        ({"constraints": [3]}, "got 3"),
        ({"constraints": ["loss <= 1", "loss <= 2"]}, "constraints bounds 'loss' twice on the same side"),
        (
            {"constraints": ["n_parms <= 5"]},
            "constraints: Unknown metric 'n_parms'.* Properties of the model: n_parameters, latency_ms",
        ),
        ({"scheduler": "asha"}, "scheduler='asha' ranks trials by one metric"),
        ({"scheduler": optuna.pruners.MedianPruner()}, "scheduler='MedianPruner' ranks trials by one metric"),
        ({"sampler": "cmaes"}, "sampler='cmaes' searches for one objective, and the study has 2"),
        ({"sampler": optuna.samplers.CmaEsSampler()}, "sampler='CmaEsSampler' searches for one objective"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shoal.tune(define, **{**TWO, "n_trials": 1, **changed})


def test_an_earlier_study_of_other_objectives_teaches_nothing(stored: shoal.Study) -> None:
    one = shoal.tune(define, **{**TWO, "metric": "accuracy"}, n_trials=1)
    with pytest.raises(
        UsageError, match=r"it had accuracy \(maximize\), this one has accuracy \(maximize\) and n_parameters"
    ):
        shoal.tune(define, **TWO, n_trials=1, warm_start=one)
    warm = shoal.tune(define, **TWO, n_trials=2, warm_start=stored)
    assert len(warm.record.trials) == 2 and len(warm.optuna_study.trials) == 2


def test_a_trial_that_cannot_be_judged_fails_and_says_why() -> None:
    def half(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return math.nan

    study = shoal.tune(
        define, **{**TWO, "metric": ["accuracy", half], "direction": ["maximize", "minimize"]}, n_trials=1
    )
    (failed,) = study.record.trials
    assert failed.state is TrialState.FAILED and "trial 0: its half was not a number in epoch 2" in failed.reason
    assert study.best_trials == []

    def silent(trial: optuna.Trial) -> shoal.Recipe:
        recipe = define(trial)
        return shoal.Recipe(recipe.model, recipe.optimizer, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), 16)

    bare = {**TWO, "reproducible": False}
    study = shoal.tune(silent, **{**bare, "metric": ["loss", "latency_ms"]}, n_trials=1)
    assert "latency_ms is the time of what metrics see" in study.record.trials[0].reason
    study = shoal.tune(silent, **{**TWO, "metric": ["loss", "f1"]}, n_trials=1)
    assert "the metric 'f1' is measured on outputs" in study.record.trials[0].reason


def test_targets_and_patience_look_at_the_whole_front() -> None:
    two = Objectives(("accuracy", "n_parameters"), ("maximize", "minimize"))

    def results(*values: tuple[float, float], broken: float = 0.0) -> list[TrialResult]:
        return [
            TrialResult(n, TrialState.FINISHED, v[0], 1, outcome=Outcome(v, {"c": broken}))
            for n, v in enumerate(values)
        ]

    def reason(limits: Limits, ended: list[TrialResult]) -> str:
        tally = Tally(limits, two)
        for result in ended:
            tally.count([], [result], [])
        return tally.reason

    wanted = Limits(target_value=[0.9, 100])
    assert reason(wanted, results((0.95, 200), (0.8, 50))) == ""
    assert reason(wanted, results((0.95, 200), (0.9, 100))) == "trial 1 has reached the targets: 0.9, 100"
    assert reason(wanted, results((0.95, 50), broken=1.0)) == ""
    patient = Limits(patience_trials=2)
    assert reason(patient, results((0.9, 9), (0.8, 8), (0.7, 7))) == ""
    assert reason(patient, results((0.9, 9), (0.8, 9), (0.9, 9))) == "2 trials without a new trial on the Pareto front"


def test_weights_of_a_large_front_are_thinned_but_for_its_ends() -> None:
    store = WeightStore(None, (-1.0, 1.0))
    n = KEPT_OF_FRONT + 15
    for i in range(n):
        store.offer(i, (float(i), float(i * i)), dict)
    assert len(store.kept) == KEPT_OF_FRONT and {0, n - 1} <= set(store.kept)
    store.offer(n, (float(n), -1.0), dict)  # better than all in both
    assert store.kept == [n]
    store.offer(n + 1, (float(n), 0.0), lambda: pytest.fail("a dominated model is not even asked for"))
    seen = WeightStore(None, (-1.0, 1.0), seen={0: (5.0, 5.0)})
    seen.offer(1, (4.0, 6.0), lambda: pytest.fail("dominated by a trial whose weights are gone"))


def test_latency_is_the_median_after_a_warm_up() -> None:
    ticks = iter(x for i in range(1000) for x in (i, i + (0.009 if i % 3 else 0.5)))
    calls: list[None] = []
    assert measuring.latency_ms(lambda: calls.append(None), torch.device("cpu"), lambda: next(ticks)) == pytest.approx(
        9
    )
    assert len(calls) == measuring.FEWEST + 3
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_properties_of_a_model() -> None:
    tied = nn.Linear(3, 3)
    model = nn.Sequential(tied, nn.BatchNorm1d(3), nn.Sequential(tied))
    model[1].bias.requires_grad_(False)
    assert measuring.n_parameters(model) == 12 + 6
    recipe = shoal.Recipe(
        model, optim.SGD([p for p in model.parameters() if p.requires_grad]), lambda m, b: m(b[0]).sum(), 4
    )
    with pytest.raises(RecipeError, match="add predict=lambda model, batch"):
        measuring.properties_of(recipe, ["latency_ms"], (torch.zeros(1, 3),), torch.device("cpu"))


def test_constraints_as_text() -> None:
    found = constraints_of(["latency_ms<=2", " accuracy >=  0.90", "n_parameters <= 1_000_000"])
    assert [c.key for c in found] == ["latency_ms <= 2", "accuracy >= 0.9", "n_parameters <= 1000000"]
    assert [Constraint.of(c.key) for c in found] == list(found)
    assert found[1].broken_by(0.95) == pytest.approx(-0.05)
    assert constraints_of(["loss >= 0.1", "loss <= 2"])[0].at_most is False
