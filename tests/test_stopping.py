"""Stop conditions: when they say stop, that the study can go on afterwards; and Optuna's pruners as schedulers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import nn, optim

import shoal
from shoal.errors import UsageError
from shoal.objectives import Objectives
from shoal.pruning import PrunerScheduler
from shoal.records import EpochRow, Event, TrialResult, TrialState
from shoal.schedulers import Observation
from shoal.stopping import Limits, Tally

ONE = {1.0: Objectives(("loss",), ("minimize",)), -1.0: Objectives(("accuracy",), ("maximize",))}
F, S, X = TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED


def ended(*ends: tuple[int, TrialState, float | None]) -> list[TrialResult]:
    return [TrialResult(n, state, value, 1, time_s=float(i)) for i, (n, state, value) in enumerate(ends)]


@pytest.mark.parametrize(
    ("limits", "sign", "results", "reason"),
    [
        (Limits(), 1.0, ended((0, F, 0.1)), ""),
        (Limits(target_value=0.5), 1.0, ended((0, F, 0.6), (1, S, 0.1)), ""),
        (Limits(target_value=0.5), 1.0, ended((0, F, 0.6), (1, F, 0.5)), "trial 1 has reached the target: 0.5"),
        (Limits(target_value=0.5), -1.0, ended((0, F, 0.4), (3, F, 0.75)), "trial 3 has reached the target: 0.75"),
        (Limits(patience_trials=2), 1.0, ended((0, F, 0.6), (1, S, 0.9), (2, X, None)), ""),
        (Limits(patience_trials=2), 1.0, ended((0, S, 0.6), (1, S, 0.9)), ""),
        (
            Limits(patience_trials=2),
            1.0,
            ended((4, F, 0.6), (1, S, 0.9), (2, F, 0.7)),
            "2 trials without an improvement on trial 4",
        ),
        (Limits(patience_trials=2), 1.0, ended((4, F, 0.6), (1, S, 0.9), (2, F, 0.5)), ""),
        (Limits(max_total_epochs=7), 1.0, [], ""),
        (Limits(max_total_epochs=6), 1.0, [], "6 epochs in all, the limit is 6"),
    ],
)
def test_when_to_stop(limits: Limits, sign: float, results: Sequence[TrialResult], reason: str) -> None:
    rows = [EpochRow(n, e, 0.0, 0.0, {}) for n in (0, 1) for e in (1, 2, 3)]
    tally = Tally(limits, ONE[sign])
    tally.count(rows, [], [])
    for r in results:
        tally.count([], [r], [])
    assert tally.reason == reason
    by_trial = {n: [r for r in rows if r.trial == n] for n in (0, 1)}
    shuffled = random.Random(0).sample(list(results), len(results))
    assert Tally.of(limits, ONE[sign], by_trial, {r.number: r for r in shuffled}, []).reason == reason


def test_a_paused_trial_has_had_its_chance_once() -> None:
    tally = Tally(Limits(patience_trials=2), ONE[1.0])
    tally.count([], ended((0, F, 0.5)), [])
    tally.count([], [], [Event(1, "paused", 1), Event(1, "promoted", 1)])
    tally.count([], ended((1, S, 0.9)), [Event(2, "paused", 1)])
    assert not tally.reason
    tally.count([], [], [Event(3, "paused", 2)])
    assert tally.reason


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_total_epochs": 0}, "max_total_epochs must be a whole number of at least 1, or None; not 0"),
        ({"patience_trials": True}, "patience_trials must be a whole number of at least 1, or None; not True"),
        ({"patience_trials": 2.5}, "not 2.5"),
        ({"target_value": float("nan")}, "target_value must be a number, or None; not nan"),
        ({"target_value": "0.9"}, "target_value must be a number, or None; not '0.9'"),
    ],
)
def test_limits_that_make_no_sense(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Limits(**keywords)
    assert message in str(caught.value)


DATA = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
TARGET = DATA[:, :3].argmax(dim=1)


def define(trial: Any) -> shoal.Recipe:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return shoal.Recipe(model, optim.Adam(model.parameters(), lr=lr), nn.CrossEntropyLoss(), 32)


KEYWORDS: dict[str, Any] = {"train": (DATA, TARGET), "valid": (DATA, TARGET), "progress": False}


def tune(**more: Any) -> shoal.Study:
    options: dict[str, Any] = {"metric": "loss", "n_trials": 80, "max_epochs": 5, "reproducible": True}
    return shoal.tune(define, **{**KEYWORDS, **options, **more})


@pytest.mark.parametrize(
    ("limit", "looser", "reason"),
    [
        ({"max_total_epochs": 40}, {"max_total_epochs": 10_000}, "the limit is 40"),
        ({"target_value": 10.0}, {"target_value": 0.0}, "has reached the target"),
        ({"patience_trials": 3}, {"patience_trials": 1000}, "trials without an improvement"),
    ],
)
def test_a_study_that_stopped_at_a_limit_goes_on(
    limit: dict[str, Any], looser: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    said: list[str] = []
    study = tune(
        storage=tmp_path / "s.db",
        test=(DATA, TARGET),
        scheduler="asha",
        progress=lambda p: said.append(p.message),
        **limit,
    )
    assert reason in study.stop_reason and not study.interrupted and not study.timed_out
    assert said[-1] == f"stopped: {study.stop_reason}"
    epochs = sum(len(t.rows) for t in study.record.trials)
    assert 0 < epochs < 80 * 5 and any(t.state is TrialState.RUNNING for t in study.record.trials)
    if "target_value" in limit or "patience_trials" in limit:
        assert study.test_metrics
    still = shoal.resume(tmp_path / "s.db", define, test=(DATA, TARGET), **KEYWORDS)
    if "target_value" in limit:
        assert still.stop_reason == study.stop_reason and len(still.record.trials) == len(study.record.trials)
    done = shoal.resume(tmp_path / "s.db", define, test=(DATA, TARGET), **looser, **KEYWORDS)
    assert not done.stop_reason and len(done.record.trials) == 80
    assert {t.state for t in done.record.trials} == {F, S}


# -- Optuna's pruners -----------------------------------------------------------------------------------------------------


def curves(n: int, epochs: int, seed: int) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.random() + 3.0 / epoch for epoch in range(1, epochs + 1)] for _ in range(n)]


PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=2),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=9),
    "threshold": lambda: optuna.pruners.ThresholdPruner(upper=1.5, n_warmup_steps=3),
    "patient": lambda: optuna.pruners.PatientPruner(None, patience=2),
    "nop": optuna.pruners.NopPruner,
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("name", PRUNERS)
def test_a_pruner_stops_one_trial_after_another_as_it_does_in_optuna(name: str, direction: Any) -> None:
    sign = 1.0 if direction == "minimize" else -1.0
    study = optuna.create_study(study_name="shoal", direction=direction, pruner=PRUNERS[name]())
    scheduler = PrunerScheduler(PRUNERS[name](), direction, 9)
    lengths: dict[str, list[int]] = {"optuna": [], "shoal": []}
    for number, curve in enumerate(curves(25, 9, 0)):
        trial = study.ask()
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
            if epoch == 9:
                study.tell(trial, value)
            elif trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        lengths["optuna"].append(epoch)
        for epoch, value in enumerate(curve, 1):
            if number in scheduler.observe([Observation(number, epoch, sign * value)]):
                break
        lengths["shoal"].append(epoch)
    assert lengths["shoal"] == lengths["optuna"]
    assert (min(lengths["optuna"]) < 9) == (name != "nop")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_pruner_in_a_study(tmp_path: Path) -> None:
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1)
    study = tune(scheduler=pruner, n_trials=12, storage=tmp_path / "s.db")
    stopped = [t for t in study.record.trials if t.state is S]
    assert stopped and all(t.reason.startswith("SuccessiveHalvingPruner said so at epoch") for t in stopped)
    assert study.record.meta["scheduler"] == "SuccessiveHalvingPruner"
    with pytest.raises(UsageError, match="metric, sampler or scheduler object, which no file can hold"):
        shoal.resume(tmp_path / "s.db", define, **KEYWORDS)
    with pytest.raises(UsageError, match="WilcoxonPruner compares many evaluations"):
        tune(scheduler=optuna.pruners.WilcoxonPruner())
