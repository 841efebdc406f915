"""Importances: Optuna's own shares, of finished and stopped trials alike, and none where they would say nothing."""

from __future__ import annotations

import json
import math
import random

import optuna
import pytest

from shoal.importances import MAX_TRIALS, MIN_TRIALS, importances
from shoal.records import ParamValue, StudyRecord, TrialRecord, TrialSpec, TrialState

FLOAT = json.dumps({"name": "FloatDistribution", "attributes": {"step": None, "low": 0.0, "high": 1.0, "log": False}})
CHOICE = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": ["a", "b"]}})


def study(n_trials: int, *, stopped: bool = False, direction: str = "maximize") -> StudyRecord:
    draw = random.Random(1)
    trials = []
    for i in range(n_trials):
        params: dict[str, ParamValue] = {
            "matters": (matters := draw.random()),
            "does not": draw.random(),
            "kind": draw.choice("ab"),
        }
        state = TrialState.STOPPED if stopped and i % 3 else TrialState.FINISHED
        value = -((matters - 0.7) ** 2) * (1 if direction == "maximize" else -1)
        spec = TrialSpec(i, i, params, {"matters": FLOAT, "does not": FLOAT, "kind": CHOICE})
        trials.append(TrialRecord(spec, state, value, 1, "", ()))
    return StudyRecord("s", direction, tuple(trials), (), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("stopped", [False, True])
def test_what_matters_comes_first(stopped: bool, direction: str) -> None:
    found = importances(study(80, stopped=stopped, direction=direction))
    assert next(iter(found)) == "matters" and found["matters"] > 0.5
    assert sum(found.values()) == pytest.approx(1.0) and set(found) == {"matters", "does not", "kind"}


def test_shares_are_optunas_own() -> None:
    record = study(60)
    theirs = optuna.create_study(direction="maximize")
    for trial in record.trials:
        distributions = {k: optuna.distributions.json_to_distribution(v) for k, v in trial.spec.distributions.items()}
        theirs.add_trial(
            optuna.trial.create_trial(params=dict(trial.spec.params), distributions=distributions, value=trial.value)
        )
    assert importances(record) == pytest.approx(optuna.importance.get_param_importances(theirs))


def test_few_or_unjudged_trials_have_none() -> None:
    assert importances(study(MIN_TRIALS - 1)) == {}
    assert importances(StudyRecord("s", "minimize", (), (), {})) == {}
    spec = TrialSpec(0, 0, {"x": 0.5}, {"x": FLOAT})
    diverged = [TrialRecord(spec, TrialState.STOPPED, math.nan, 1, "", ()) for _ in range(50)]
    assert importances(StudyRecord("s", "minimize", tuple(diverged), (), {})) == {}


def test_equal_trials_have_none() -> None:
    spec = TrialSpec(0, 0, {}, {})
    same = tuple(TrialRecord(spec, TrialState.FINISHED, 1.0, 1, "", ()) for _ in range(50))
    assert importances(StudyRecord("s", "minimize", same, (), {})) == {}


def test_large_studies_are_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = optuna.Study.add_trials
    monkeypatch.setattr(optuna.Study, "add_trials", lambda self, t: seen.append(len(t)) or original(self, t))  # type: ignore[func-returns-value]
    assert next(iter(importances(study(MAX_TRIALS + 500)))) == "matters"
    assert seen == [MAX_TRIALS]


def test_optunas_verbosity_is_put_back() -> None:
    before = optuna.logging.get_verbosity()
    importances(study(30))
    assert optuna.logging.get_verbosity() == before
