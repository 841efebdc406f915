"""The best of many trials is lucky: what is reported beside its value is right where the truth is known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from shoal.cli import _best_facts, _best_text
from shoal.optimism import bias_corrected, optimism
from shoal.records import EpochRow, Json, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.report import render_report


def by_hand(values: np.ndarray[Any, Any]) -> float:
    """The definition, draw by draw, over all K**K draws."""
    k, found = values.shape[1], []
    for draw in itertools.product(range(k), repeat=k):
        left = [fold for fold in range(k) if fold not in draw]
        if left:
            chosen = int(np.argmin(values[:, draw].sum(1).round(12)))
            found.append(values[chosen, left].mean())
    return float(np.mean(found))


@pytest.mark.parametrize("k", [3, 4, 5])
def test_the_estimate_is_the_mean_over_all_draws(k: int) -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=(7, k))
        assert bias_corrected(values) == pytest.approx(by_hand(values), abs=1e-12)


def test_pure_luck_is_taken_off() -> None:
    """Forty candidates that are all worth 0: the best looks better than that, and the corrected value does not."""
    rng = np.random.default_rng(0)
    seen, corrected = zip(
        *((v.mean(1).min(), bias_corrected(v)) for v in (rng.normal(size=(40, 5)) for _ in range(300))), strict=True
    )
    assert np.mean(seen) < -0.8
    assert abs(np.mean(corrected)) < 4 * np.std(corrected) / np.sqrt(300)


def test_a_winner_that_is_truly_better_keeps_its_value() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(1.0, 0.01, size=(20, 10))
    values[4] = 0.5 + rng.normal(0, 0.01, size=10)
    assert bias_corrected(values) == pytest.approx(values[4].mean(), abs=0.005)


@pytest.mark.parametrize("folds", [1, 2])
def test_too_few_folds_give_no_estimate(folds: int) -> None:
    assert bias_corrected(np.zeros((4, folds))) is None


def study(
    values: np.ndarray[Any, Any], *, seeds: int = 1, repeats: list[list[int]] | None = None, **meta: Json
) -> StudyRecord:
    """Trials (C, epochs, S * K) that are to be maximised, all finished."""
    n_folds = values.shape[2] // seeds
    trials = []
    for number, epochs in enumerate(values):
        rows = tuple(
            EpochRow(number, e, 0.1, float(v.mean()), {"loss": 1.0}, 1.0, tuple(map(float, v)), 0.01)
            for e, v in enumerate(epochs, 1)
        )
        best = meta.get("options") == {"value": "best"}
        at = max(rows, key=lambda r: r.value) if best else rows[-1]
        spec = TrialSpec(number, 1, {"lr": 0.1}, {})
        trials.append(TrialRecord(spec, TrialState.FINISHED, at.value, at.epoch, "", rows, 1.0))
    apart: list[Json] = [list[Json](some) for some in repeats or [list(range(n_folds))]]
    folds: Json = {"n": n_folds, "seeds": seeds, "splitter": "5", "digest": "", "repeats": apart}
    return StudyRecord("s", "maximize", tuple(trials), (), {"metric": "accuracy", "folds": folds, **meta})


VALUES = np.random.default_rng(3).uniform(0.5, 0.9, size=(6, 2, 10))


def test_seeds_are_averaged_and_the_direction_is_the_users() -> None:
    found = optimism(study(VALUES, seeds=2))
    assert found is not None and found.n_trials == 6 and found.standard_error == 0.01
    expected = -by_hand(-VALUES[:, -1].reshape(6, 2, 5).mean(1))
    assert found.corrected == pytest.approx(expected) and expected < found.value
    assert found.expected == found.corrected and "Tsamardinos" in found.source and found.held_out is None


def test_with_value_best_the_epoch_was_chosen_too() -> None:
    found = optimism(study(VALUES[:, :, :5], options={"value": "best"}))
    assert found is not None and found.corrected == pytest.approx(-by_hand(-VALUES[:, :, :5].reshape(12, 5)))


def test_repetitions_are_drawn_from_apart() -> None:
    halves = [list(range(5)), list(range(5, 10))]
    found = optimism(study(VALUES, repeats=halves))
    expected = np.mean([-by_hand(-VALUES[:, -1, half]) for half in halves])
    assert found is not None and found.corrected == pytest.approx(expected)
    alone = optimism(study(VALUES, repeats=[[k] for k in range(10)]))  # shuffled splits overlap: no fold is left out
    assert alone is not None and alone.corrected is None and alone.source == ""


def test_a_test_set_is_better_than_a_correction() -> None:
    found = optimism(study(VALUES, test={"accuracy": 0.61}, test_trial=None))
    assert found is not None and found.expected == found.held_out == 0.61 and found.source == "test set"


def test_what_stopped_or_was_not_finite_is_no_candidate() -> None:
    record = study(VALUES)
    odd = np.full((1, 2, 10), np.nan)
    trials = (
        *record.trials,
        study(odd).trials[0],
        TrialRecord(TrialSpec(9, 1, {}, {}), TrialState.STOPPED, 1.0, 1, "", ()),
    )
    more = StudyRecord("s", "maximize", trials, (), record.meta)
    mine, theirs = optimism(more), optimism(record)
    assert mine is not None and theirs is not None and mine.corrected == theirs.corrected


def test_without_folds_or_trials_nothing_is_claimed() -> None:
    record = study(VALUES)
    plain = optimism(StudyRecord("s", "maximize", record.trials, (), {"metric": "accuracy"}))
    assert plain is not None and plain.corrected is None and plain.expected is None
    assert optimism(StudyRecord("s", "maximize", (), (), {})) is None


def test_the_report_and_the_command_line_say_so() -> None:
    record = study(VALUES, seeds=2)
    found = optimism(record)
    assert found is not None and found.corrected is not None
    page = render_report(record)
    assert "Maximizes accuracy over 5 folds under 2 seeds" in page and "Expected accuracy" in page
    assert "As the best of 6 finished trials it is also a little lucky" in page and "standard error 0.01" in page
    facts = _best_facts(record)
    assert facts is not None and facts["corrected"] == found.corrected and facts["standard_error"] == 0.01
    assert "(standard error 0.01)" in _best_text(facts) and "expected    accuracy" in _best_text(facts)
    plain = StudyRecord("s", "maximize", record.trials, (), {"metric": "accuracy"})
    assert "Expected accuracy" not in render_report(plain)
