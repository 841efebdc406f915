"""Nested cross-validation: every outer fold is a search of its own, scored on rows that it never had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import GroupKFold, StratifiedKFold
from torch import nn

import shoal
from lanes_helpers import labels, made
from shoal.errors import StudyError, UsageError
from shoal.nesting import _beside
from shoal.storage import load_study

X, Y = made(36, 4), labels(36, 2)
X[:, 0] = torch.arange(36)  # names the row
OPTIONS: dict[str, Any] = {"n_trials": 2, "max_epochs": 2, "progress": False, "reproducible": True, "sampler": "random"}


def define(trial: Any) -> shoal.Recipe:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True))
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch_size=6)


def test_each_winner_is_scored_on_the_rows_of_its_outer_fold(tmp_path: Path) -> None:
    found = shoal.nested(define, train=(X, Y), outer=3, seed=4, folds=2, storage=tmp_path / "digits.db", **OPTIONS)
    outer = list(StratifiedKFold(3, shuffle=True, random_state=4).split(X.numpy(), Y.numpy()))
    assert len(found.studies) == 3 and found.metric == "accuracy"
    for study, score, (rows, held_out) in zip(found.studies, found.scores, outer, strict=True):
        model = study.best_model()
        with torch.no_grad():
            right = (model(X[held_out]).argmax(1) == Y[held_out]).double().mean().item()
        assert score == right
        seen = model[0].running_mean  # type: ignore[index]
        low, high = X[rows][:, 0].min(), X[rows][:, 0].max()
        assert (
            study._prepared.whole.train.tensors[0][:, 0].tolist() == rows.tolist()
            and low <= seen[0] * 4
            and seen[0] <= high
        )
    assert found.score == pytest.approx(np.mean(found.scores))
    assert found.standard_error == pytest.approx(np.std(found.scores, ddof=1) / np.sqrt(3))
    assert "accuracy" in repr(found) and "3 outer folds" in repr(found)
    assert len(load_study(str(tmp_path / "digits_outer2.db")).trials) == 2


def test_groups_stay_together_outside_and_inside() -> None:
    groups = np.arange(36) // 3
    found = shoal.nested(define, train=(X, Y), outer=GroupKFold(2), groups=groups, folds=GroupKFold(2), **OPTIONS)
    held = [{int(g) for g in groups[rows]} for _, rows in GroupKFold(2).split(X, Y, groups)]
    kept = [{int(g) for g in groups[s._prepared.whole.train.tensors[0][:, 0].long()]} for s in found.studies]
    assert all(not a & b for a, b in zip(held, kept, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"valid": 0.2}, r"nested\(\) has no valid=: outer= holds rows out"),
        ({"test": 0.2}, r"nested\(\) has no test="),
        ({"folds": [([0], [1])]}, r"nested\(\) needs folds= as a number or a splitter"),
        ({"metric": ["accuracy", "n_parameters"]}, "several objectives have a front: give it one metric"),
        ({"outer": None}, r"nested\(\) needs outer=: a number of folds"),
    ],
)
def test_what_cannot_be_nested_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shoal.nested(define, train=(X, Y), **{**OPTIONS, **arguments})


def test_a_search_without_a_winner_is_named() -> None:
    with pytest.raises(StudyError, match=r"the search of outer fold 1 ended without a winner"):
        shoal.nested(define, train=(X, Y), outer=2, timeout_s=1e-9, **OPTIONS)


def test_names_of_files() -> None:
    assert _beside("sqlite:///a/digits.db", 2) == "sqlite:///a/digits_outer2.db" and _beside("a", 1) == "a_outer1"
