"""Folds: the row indices are scikit-learn's own, and what cannot be trained on is refused before anything is trained."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import model_selection as ms

from shoal.data import Split, load_whole
from shoal.errors import DataError, UsageError
from shoal.folds import facts_of, make_parts
from shoal.lanes.parts import Parts
from shoal.records import TrialSpec, part_key, part_of

N = 60
X = torch.arange(N * 2.0).reshape(N, 2)
CLASSES = torch.arange(N) % 3
NUMBERS = torch.linspace(-1, 1, N)
GROUPS = np.arange(N) // 4

# (folds=, target, groups, the splitter that it must agree with)
CASES: list[tuple[str, Any, torch.Tensor, Any, Any]] = [
    ("classes", 5, CLASSES, None, ms.StratifiedKFold(5, shuffle=True, random_state=7)),
    ("numbers", 4, NUMBERS, None, ms.KFold(4, shuffle=True, random_state=7)),
    ("one column of numbers", 4, NUMBERS[:, None], None, ms.KFold(4, shuffle=True, random_state=7)),
    ("groups of classes", 3, CLASSES, GROUPS, ms.StratifiedGroupKFold(3, shuffle=True, random_state=7)),
    ("groups of numbers", 3, NUMBERS, GROUPS, ms.GroupKFold(3, shuffle=True, random_state=7)),
    *(
        (type(splitter).__name__, splitter, CLASSES, groups, splitter)
        for splitter, groups in (
            (ms.KFold(7), None),
            (ms.StratifiedKFold(3), None),
            (ms.GroupKFold(5), GROUPS),
            (ms.LeaveOneGroupOut(), torch.from_numpy(GROUPS)),
            (ms.TimeSeriesSplit(4, gap=2), None),
            (ms.RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=1), None),
            (ms.ShuffleSplit(4, test_size=0.25, random_state=3), None),
            (ms.PredefinedSplit(np.arange(N) % 4), None),
        )
    ),
]


@pytest.mark.parametrize(("folds", "target", "groups", "oracle"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_rows_are_those_of_scikit_learn(folds: Any, target: torch.Tensor, groups: Any, oracle: Any) -> None:
    parts = make_parts(folds, 2, groups, Split((X, target)), seed=7)
    assert parts is not None
    expected = list(oracle.split(X.numpy(), target.numpy(), None if groups is None else np.asarray(groups)))
    assert len(parts.folds) == len(expected) and len(parts) == 2 * len(expected)
    for part in range(len(parts)):  # both seeds have the same folds
        for mine, theirs in zip(parts.rows(part), expected[part % len(expected)], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_pairs_of_row_indices_are_taken_as_they_are() -> None:
    pairs = [(torch.arange(40), np.arange(40, 60)), ([1, 2, 3], [0])]
    parts = make_parts(pairs, 1, None, Split((X, NUMBERS)), seed=0)
    assert parts is not None and [len(valid) for _, valid in parts.folds] == [20, 1]
    assert parts.rows(1)[0] is not None and parts.rows(1)[0].tolist() == [1, 2, 3]  # type: ignore[union-attr]


def test_without_folds_there_are_parts_only_for_seeds() -> None:
    split = Split((X, CLASSES))
    assert make_parts(None, 1, None, split, 0) is None
    parts = make_parts(None, 3, None, split, 0)
    assert parts is not None and len(parts) == 3 and parts.rows(2) == (None, None) and parts.n_train(2, N) == N


BAD: list[tuple[dict[str, Any], str]] = [
    ({"folds": 1}, r"folds must be at least 2, not 1"),
    ({"folds": True}, r"folds must be a whole number of at least 2 or a splitter of scikit-learn, not True"),
    ({"folds": 2.5}, r"must be a whole number of at least 2 .*not 2\.5"),
    ({"folds": "five"}, r"folds must be a number of folds, a splitter .*not 'five'"),
    ({"folds": ms.KFold}, r"folds=KFold is a class; pass an instance, such as KFold\(5\)"),
    ({"folds": 61}, r"folds=61 does not fit the 60 rows to split: "),
    ({"folds": ms.GroupKFold(3)}, r"folds=GroupKFold.* does not fit the 60 rows to split: .*groups"),
    ({"folds": []}, r"folds=list gave no fold"),
    ({"folds": [(1, 2, 3)]}, r"fold 1 must be a pair of row indices \(train, valid\), not tuple"),
    ({"folds": [([0.5], [1])]}, r"fold 1: the rows to train on must be whole numbers, one axis of them, not float64"),
    ({"folds": [([0, 1], [2]), ([0], [])]}, r"fold 2: the rows to validate on must be whole numbers"),
    ({"folds": [([0], np.arange(0))]}, r"fold 1 has no row to validate on; use fewer folds, or more rows"),
    ({"folds": [([0, 60], [1])]}, r"fold 1 has row 60 to train on, of 60 rows"),
    ({"folds": [([0, -1], [1])]}, r"fold 1 has row -1 to train on, of 60 rows"),
    ({"folds": [([0, 5, 6], [6, 5])]}, r"fold 1 trains on 2 of the rows that it is validated on, .* is row 5"),
    ({"folds": 10, "seeds": 13}, r"10 folds under 13 seed\(s\) are 130 lanes per trial, and 128 is the most"),
    ({"seeds": 129}, r"seeds=129 is more than 128"),
    ({"seeds": 0}, r"seeds must be a whole number of at least 1, not 0"),
    ({"seeds": 1.0}, r"seeds must be a whole number of at least 1, not 1\.0"),
    ({"groups": GROUPS}, r"groups= says which rows stay in one fold, so it needs folds="),
    ({"folds": 3, "groups": GROUPS[:10]}, r"a group for each of the 60 rows of train, but its shape is \(10,\)"),
    ({"folds": [([0], [1])], "groups": GROUPS}, r"groups= is for splitters; folds= given as row indices"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_cannot_be_split_is_refused(arguments: dict[str, Any], message: str) -> None:
    given_ = {"folds": None, "seeds": 1, "groups": None, **arguments}
    with pytest.raises(UsageError, match=message):
        make_parts(train=Split((X, CLASSES)), seed=0, **given_)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"a number of folds needs scikit-learn: run `pip install scikit-learn`"):
        make_parts(5, 1, None, Split((X, CLASSES)), seed=0)


def test_repetitions_are_told_apart() -> None:
    split = Split((X, CLASSES))
    twice = make_parts(ms.RepeatedKFold(n_splits=3, n_repeats=2, random_state=0), 1, None, split, 0)
    shuffled = make_parts(ms.ShuffleSplit(3, test_size=0.5, random_state=0), 1, None, split, 0)
    assert twice is not None and facts_of(twice, 3)["repeats"] == [[0, 1, 2], [3, 4, 5]]
    assert shuffled is not None and facts_of(shuffled, 3)["repeats"] == [[0], [1], [2]]
    again = make_parts(ms.RepeatedKFold(n_splits=3, n_repeats=2, random_state=1), 1, None, split, 0)
    assert again is not None and facts_of(again, 3)["digest"] != facts_of(twice, 3)["digest"]


@pytest.mark.parametrize(("k", "s"), [(2, 1), (2, 3), (5, 1), (5, 3), (10, 2)])
def test_the_standard_error_is_that_of_the_folds_means(k: int, s: int) -> None:
    values = np.random.default_rng(k * s).normal(10, 3, k * s).tolist()
    fold = (np.arange(2), np.arange(2, 3))
    means = np.reshape(values, (s, k)).mean(0)
    expected = means.std(ddof=1) / np.sqrt(k)
    assert Parts((fold,) * k, s).standard_error(values) == pytest.approx(expected, abs=1e-9)
    if s > 1:
        assert Parts(n_seeds=s).standard_error(values[:s]) == pytest.approx(
            np.std(values[:s], ddof=1) / np.sqrt(s), abs=1e-9
        )
    assert Parts((fold,), 1).standard_error([1.0]) is None


def test_parts_of_a_trial() -> None:
    fold = (np.arange(2), np.arange(2, 3))
    parts = Parts((fold, fold, fold), 2)
    specs = parts.split(TrialSpec(4, 99, {"lr": 0.1}, {}))
    assert [s.part for s in specs] == list(range(6)) and {s.number for s in specs} == {4}
    assert [s.seed == 99 for s in specs] == [True] * 3 + [False] * 3 and len({s.seed for s in specs}) == 2
    assert [part_of(s.key) for s in specs] == [(4, part) for part in range(6)] and part_key(4, 0) == 4
    assert [parts.name(p) for p in (0, 5)] == ["fold 1, seed 1", "fold 3, seed 2"]
    assert Parts((fold, fold)).name(1) == "fold 2" and Parts(n_seeds=2).name(1) == "seed 2"


def test_whole_data_keep_every_row_but_those_of_the_test_set() -> None:
    data = load_whole((X, CLASSES), 0.25, seed=1)
    assert data.test is not None and (data.train.n, data.test.n) == (45, 15) and data.valid is data.train
    both = torch.cat([data.train.tensors[0], data.test.tensors[0]])
    assert sorted(both[:, 0].tolist()) == X[:, 0].tolist()
    assert load_whole((X, CLASSES), (X, CLASSES)).test is not None and load_whole((X, CLASSES)).test is None
    with pytest.raises(DataError, match=r"test\[0\] must be like train\[0\]"):
        load_whole((X, CLASSES), (X[:, :1], CLASSES))
