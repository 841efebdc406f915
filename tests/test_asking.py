"""Samplers asked in rounds: seeds, restoring, and what they get to see."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json

from shoal.asking import Asker, _frozen
from shoal.errors import UsageError
from shoal.records import TrialRecord, TrialResult, TrialSpec, TrialState


def ask(asker: Asker) -> TrialSpec:
    trial = asker.ask()
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("activation", ["relu", "tanh"])
    return asker.spec(trial)


def result(number: int) -> TrialResult:
    state = (TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED)[number % 3]
    return TrialResult(number, state, None if state is TrialState.FAILED else 0.1 * number, 3)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_seed_and_results_give_the_same_trials(sampler: str) -> None:
    def specs(seed: int) -> list[TrialSpec]:
        asker, out = Asker(sampler, "minimize", seed), []
        for number in range(30):
            out.append(ask(asker))
            asker.tell(result(number))
        return out

    assert specs(0) == specs(0) != specs(1)
    assert [s.number for s in specs(0)] == list(range(30))
    assert len({s.seed for s in specs(0)} | {s.seed for s in specs(1)}) == 60


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_restored_study_goes_on_as_if_it_had_never_stopped(sampler: str) -> None:
    whole = Asker(sampler, "maximize", 7)
    specs = []
    for number in range(24):
        specs.append(ask(whole))
        if number != 20:  # one that still runs
            whole.tell(result(number))
    records = []
    for s in specs:
        r = result(s.number)
        records.append(
            TrialRecord(s, TrialState.RUNNING, None, 0, "", ())
            if s.number == 20
            else TrialRecord(s, r.state, r.value, r.epoch, "", ())
        )
    restored = Asker(sampler, "maximize", 7)
    restored.restore(records[::-1])
    assert [t.state for t in restored.study.trials] == [t.state for t in whole.study.trials]
    for _ in range(4):
        assert ask(restored) == ask(whole)
    restored.tell(TrialResult(20, TrialState.FINISHED, 0.5, 3))
    assert restored.study.trials[20].value == 0.5


def test_a_stopped_trial_is_pruned_at_its_epoch() -> None:
    asker = Asker(None, "minimize", 0)
    ask(asker)
    asker.tell(TrialResult(0, TrialState.STOPPED, 0.25, 4))
    (trial,) = asker.study.trials
    assert trial.state.name == "PRUNED" and trial.intermediate_values == {4: 0.25}


def test_optuna_says_nothing_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    level = optuna.logging.get_verbosity()
    asker = Asker("tpe", "minimize", 0)
    ask(asker)
    asker.tell(result(0))
    captured = capsys.readouterr()
    assert captured.err == captured.out == "" and optuna.logging.get_verbosity() == level


@pytest.mark.parametrize(
    ("sampler", "message"),
    [("tpee", "Did you mean 'tpe'"), (optuna.samplers.TPESampler, "not ABCMeta|not type|object")],
)
def test_what_is_no_sampler(sampler: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Asker(sampler, "minimize", 0)


def test_which_samplers_learn() -> None:
    assert Asker(None, "minimize", 0).learns and not Asker("random", "minimize", 0).learns
    assert not Asker(optuna.samplers.RandomSampler(), "minimize", 0).learns
    assert Asker(optuna.samplers.TPESampler(), "minimize", 0).name == "TPESampler"


def test_restored_trials_are_those_that_optuna_would_have_added() -> None:
    space = {"lr": distribution_to_json(FloatDistribution(1e-4, 1e-1, log=True))}
    states = [TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED, TrialState.RUNNING, TrialState.FINISHED]
    trials = [
        TrialRecord(
            TrialSpec(n, n, {"lr": 0.01 / (n + 1)}, space), s, None if s.value == "failed" else n / 10, 2, "", ()
        )
        for n, s in enumerate(states)
    ]
    asker = Asker("random", "minimize", 0)
    asker.restore(trials[::-1])
    other = optuna.create_study(direction="minimize")
    other.add_trials([_frozen(t) for t in trials])
    for mine, theirs in zip(asker.study.trials, other.trials, strict=True):
        for name in ("number", "state", "values", "params", "distributions", "intermediate_values"):
            assert getattr(mine, name) == getattr(theirs, name)
    assert asker.study.best_trial.number == other.best_trial.number == 0
    assert asker.ask().number == len(trials)
