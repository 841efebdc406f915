"""A data file from end to end: targets, splits, the study, the comparison, and the model that predicts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

import shoal
from shoal.cli import main
from shoal.errors import DataError, StorageError, StudyError, UsageError
from shoal.tabular import Table, load_table_model, prepare_table
from shoal.tabular._baselines import BOOSTING, LINEAR, OURS, Comparison, compare, measure
from shoal.tabular._recipe import Plan, class_weights
from shoal.tabular._split import split
from shoal.tabular._target import Target, learn_target, missing_rows, target_from_json
from tabular_helpers import people, write_people

QUICK: dict[str, Any] = {"n_trials": 4, "max_epochs": 3, "progress": False, "reproducible": True}


def table(**columns: Any) -> Table:
    return Table(pd.DataFrame({**people(), **columns}, dtype=object), (), "t.csv")


# -- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "task", "expected"),
    [
        (["bought"], None, ("classes", ("no", "yes"))),
        (["household"], None, ("classes", tuple(map(str, range(12))))),
        (["spent"], None, ("numbers", ())),
        (["household"], "numbers", ("numbers", ())),
        (["spent", "income"], None, ("numbers", ())),
        (["bought", "flag"], None, ("labels", ("no", "yes", "0", "1"))),
        (["bought"], "labels", ("labels", ("no", "yes"))),
        (["many"], None, ("numbers", ())),
    ],
)
def test_tasks_follow_from_the_values(
    columns: list[str], task: str | None, expected: tuple[str, tuple[str, ...]]
) -> None:
    t = table(flag=[str(i % 2) for i in range(120)], many=[str(i % 21) for i in range(120)])
    target = learn_target(t, columns, task)
    assert (target.task, target.values) == expected
    assert target_from_json(
        json.loads(json.dumps(target.scaled_to(np.ones((3, len(columns)))).to_json()))
    ).names == tuple(columns)
    assert not missing_rows(target.encode(t)).any()


@pytest.mark.parametrize(
    ("columns", "task", "error", "message"),
    [
        ([], None, UsageError, "name the column to predict: target='...'"),
        (["bought", "bought"], None, UsageError, "each target can be named once"),
        ([f"c{i}" for i in range(1001)], None, UsageError, "at most 1000 targets; got 1001."),
        (["bougt"], None, UsageError, "t.csv has no column 'bougt' (the target). Did you mean 'bought'?"),
        (["bought"], "class", UsageError, "unknown task 'class'. Did you mean 'classes'?"),
        (["bought", "city"], None, UsageError, "several targets can be labels of two values each, or numbers"),
        (["city"], "labels", DataError, "as a label, the target 'city' must have two different values; it has 3."),
        (["city"], "numbers", DataError, "the target 'city' must be numbers, but 120 cells are none, such as '"),
        (["huge"], None, DataError, "the target 'huge' has values beyond 1e30; give it in larger units."),
        (["same"], "numbers", DataError, "the target 'same' is the same in every row; there is nothing to learn."),
        (["name"], None, DataError, "the target 'name' has 120 different values in 120 rows, too many for classes."),
    ],
)
def test_targets_that_cannot_be_learnt(
    columns: list[str], task: str | None, error: type[Exception], message: str
) -> None:
    t = table(huge=[f"{i}e31" for i in range(120)], same=["1"] * 120)
    with pytest.raises(error, match=re.escape(message)):
        learn_target(t, columns, task)


def test_numbers_come_back_in_their_own_units() -> None:
    t = table()
    target = learn_target(t, ["spent", "income"], None)
    encoded = target.encode(t)
    target = target.scaled_to(encoded)
    tensor = target.tensor(encoded)
    assert torch.allclose(tensor.mean(0), torch.zeros(2), atol=1e-5)
    assert (np.abs(target.scores(tensor) - encoded) / np.asarray(target.std)).max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"task": "other"}, {"values": ["a"]}, {"names": []}, {"mean": [1.0]}, {"values": ["a", "b"], "mean": [0.0]}],
)
def test_damaged_targets_are_refused(change: dict[str, Any]) -> None:
    good = Target("classes", ("y",), ("a", "b")).to_json()
    with pytest.raises(StorageError, match="the parts of its target do not fit each other"):
        target_from_json({**good, **change, **({"std": [1.0]} if len(change) == 2 else {})})


# -- splits -----------------------------------------------------------------------------------------------------------


def parts_of(t: Table, **how: Any) -> Any:
    settings = {"group": None, "time": None, "valid": 0.2, "test": 0.2, "seed": 0, "classes": None, **how}
    classes = settings.pop("classes")
    return split(t, np.arange(t.n), classes, **settings)


@pytest.mark.parametrize("how", [{}, {"group": "city2"}, {"time": "joined"}, {"time": "spent"}])
def test_parts_are_disjoint_and_all(how: dict[str, Any]) -> None:
    parts = parts_of(table(city2=[f"g{i % 9}" for i in range(120)]), **how)
    assert sorted(np.concatenate([parts.train, parts.valid, parts.test])) == list(range(120))
    assert min(len(parts.valid), len(parts.test)) >= 12


def test_classes_keep_their_proportions_and_rare_ones_are_trained_on() -> None:
    classes = np.asarray([0] * 80 + [1] * 38 + [2] * 2)
    parts = parts_of(table(), classes=classes)
    for rows in (parts.train, parts.valid, parts.test):
        assert abs(np.mean(classes[rows] == 0) - 2 / 3) < 0.05
    assert (classes[parts.train] == 2).sum() == 2
    assert parts.notes == ("1 classes have fewer than 4 rows; these are trained on only",)


def test_groups_stay_together_and_times_in_order() -> None:
    t = table(household=[str(i % 11) if i % 7 else "" for i in range(120)])
    parts = parts_of(t, group="household")
    groups = [set(t.frame["household"].iloc[rows]) - {""} for rows in (parts.train, parts.valid, parts.test)]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    for name in ("joined", "spent"):
        parts = parts_of(t, time=name)
        cells = t.frame[name].astype(float) if name == "spent" else t.frame[name]
        when = [cells.iloc[rows] for rows in (parts.train, parts.valid, parts.test)]
        assert when[0].max() <= when[1].min() and when[1].max() <= when[2].min()


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"valid": 0.5}, UsageError, "valid must be a fraction of the rows, above 0 and below 0.5; got 0.5."),
        ({"test": True}, UsageError, "test must be a fraction of the rows, above 0 and below 0.5; got True."),
        ({"seed": -1}, UsageError, "seed must be a whole number of at least 0, not -1."),
        ({"seed": -1, "group": "household"}, UsageError, "seed must be a whole number of at least 0, not -1."),
        ({"group": "city", "time": "joined"}, UsageError, "a split is either by group or by time; give one of them."),
        ({"group": "city"}, DataError, "splitting by 'city' needs at least 5 groups; there are 3."),
        ({"group": "town"}, UsageError, "t.csv has no column 'town' (the group)."),
        ({"time": "city"}, DataError, "the column 'city' holds neither numbers nor dates, such as '"),
        ({"time": "empty"}, DataError, "the column 'empty' is empty; it cannot order the rows."),
        ({"time": "same"}, DataError, "120 rows have a 'same'; at least 20 of different times are needed."),
    ],
)
def test_splits_that_cannot_be_made(how: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        parts_of(table(empty=[""] * 120, same=["3"] * 120), **how)


def test_a_seed_may_be_larger_than_scikit_learn_takes() -> None:
    mine, theirs = parts_of(table(), seed=2**40 + 5), parts_of(table(), seed=5)
    assert np.array_equal(mine.train, theirs.train) and not np.array_equal(mine.train, parts_of(table(), seed=6).train)


def test_rows_without_time_or_target_are_left_out_and_said(tmp_path: Path) -> None:
    columns = people()
    columns["bought"][:3] = ["", "?", "nan"]
    columns["joined"][5] = ""
    ready = prepare_table(pd.DataFrame(columns, dtype=object), target="bought", time="joined")
    assert sum(len(part[-1]) for part in (ready.train, ready.valid, ready.test)) == 116
    assert (
        "3 rows without a target are left out" in ready.notes
        and "1 rows without a 'joined' are left out" in ready.notes
    )


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_class_weights_are_those_of_scikit_learn() -> None:
    rows = np.repeat([0, 1, 2], [50, 20, 5])
    want = compute_class_weight("balanced", classes=np.asarray([0, 1, 2]), y=rows)
    found = class_weights((50, 20, 5), 1.0).numpy()
    assert np.allclose(found / found[0], want / want[0]) and np.isclose((found[rows]).mean(), 1.0)
    assert torch.equal(class_weights((50, 20, 5), 0.0), torch.ones(3))


@pytest.mark.parametrize(
    ("plan", "metric"),
    [
        (Plan("classes", 3, (), 2, 500, (300, 200)), "loss"),
        (Plan("classes", 3, (), 2, 5000, (3000, 2000)), "accuracy"),
        (Plan("classes", 3, (), 2, 5000, (4500, 500)), "f1"),
        (Plan("labels", 3, (), 2, 5000, ()), "loss"),
        (Plan("numbers", 3, (), 2, 5000, ()), "r2"),
    ],
)
def test_the_metric_suits_the_target(plan: Plan, metric: str) -> None:
    assert plan.metric == metric
    assert plan.budget["n_trials"] >= 24 and plan.imbalanced is (metric == "f1")


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn_and_the_best_is_marked() -> None:
    truth, guess = np.asarray([0, 1, 2, 1, 0, 1]), np.asarray([0, 1, 1, 1, 0, 0])
    found = measure("classes", truth, guess)
    assert found == {
        "accuracy": metrics.accuracy_score(truth, guess),
        "f1": metrics.f1_score(truth, guess, average="macro", zero_division=0),
    }
    labels = measure("labels", np.stack([truth > 0, truth > 1], 1), np.stack([guess > 0, guess > 1], 1))
    assert labels["accuracy"] == ((truth > 0) == (guess > 0))[(truth > 1) == (guess > 1)].sum() / 6
    numbers = measure("numbers", truth[:, None] * 1.0, guess[:, None] * 1.0)
    assert numbers["rmse"] == metrics.root_mean_squared_error(truth, guess) and list(numbers) == ["r2", "rmse", "mae"]
    lines = str(Comparison(6, {OURS: {"r2": 0.5, "rmse": 3.0}, LINEAR: {"r2": 0.75, "rmse": 2.0}})).splitlines()
    assert [line.split() for line in lines] == [
        ["test,", "6", "rows", "r2", "rmse"],
        ["shoal", "0.5", "3"],
        ["linear", "model", "0.75", "2", "<-", "best"],
    ]


@pytest.mark.parametrize("targets", [["bought"], ["spent"], ["spent", "income"], ["bought", "flag"]])
def test_baselines_are_fitted_for_every_task(targets: list[str]) -> None:
    ready = prepare_table(table(flag=["ab"[i % 2] for i in range(120)]).frame, target=targets)
    truth = ready.encoded[1]
    found = compare(ready.target, truth, *ready.plain, ready.encoded)
    assert list(found.scores) == [OURS, LINEAR, BOOSTING] and found.n_test == len(truth)
    assert next(iter(found.scores[OURS].values())) == 1.0 and found.winner == OURS
    first = next(iter(found.scores[OURS]))
    if targets in (["bought"], ["spent"]):  # which follow from age and city
        assert min(found.scores[LINEAR][first], found.scores[BOOSTING][first]) > 0.7


# -- the study --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of people.csv, and its model."""
    path = tmp_path_factory.mktemp("study")
    write_people(path / "people.csv")
    study = shoal.tune_table(path / "people.csv", target="bought", storage=path / "people.db", ignore="spent", **QUICK)
    assert study.model_file == path / "people.model.safetensors"
    return path


def test_a_study_in_memory_predicts(tmp_path: Path) -> None:
    frame = pd.DataFrame(people(), dtype=object)
    for target in ("spent", ["bought", "flag"]):
        frame["flag"] = ["ab"[i % 2] for i in range(120)]
        study = shoal.tune_table(frame, target=target, baselines=False, space={"width": 8, "depth": 1}, **QUICK)
        assert study.model_file is None and study.comparison is None and study.study.best_params.keys() >= {"lr"}
        found = study.predict(frame)
        names = [target] if isinstance(target, str) else target
        assert list(found.columns)[: len(names)] == names and len(found) == 120 and not found.isna().any().any()
        assert study.model is not None
        copy = load_table_model(study.model.save(tmp_path / "copy.safetensors"))
        pd.testing.assert_frame_equal(copy.predict(frame), found)


def test_the_model_file_predicts_what_the_study_measured(folder: Path) -> None:
    ready = prepare_table(folder / "people.csv", target="bought", ignore="spent")
    model = load_table_model(folder / "people.db")
    probabilities = model.scores(ready.test[:-1])
    record = shoal.resume_table(
        folder / "people.db", folder / "people.csv", target="bought", ignore="spent", progress=False
    )
    accuracy = float(np.mean(probabilities.argmax(1) == ready.test[-1].numpy()))
    assert np.isclose(record.study.test_metrics["accuracy"], accuracy)
    assert record.comparison is not None and np.isclose(record.comparison.scores[OURS]["accuracy"], accuracy)


def test_predictions_of_new_rows(folder: Path) -> None:
    new = pd.DataFrame({"age": ["70", "20", ""], "city": ["Rome", "Oslo", "Atlantis"], "extra": [1, 2, 3]})
    found = shoal.predict_table(folder / "people.db", new)
    assert list(found.columns) == ["bought", "p(no)", "p(yes)"] and set(found["bought"]) <= {"no", "yes"}
    assert np.allclose(found["p(no)"] + found["p(yes)"], 1)
    _, notes = load_table_model(folder / "people.model.safetensors").predict_with_notes(new)
    assert any("'Atlantis'" in note for note in notes) and any("'income' is not there" in note for note in notes)


def test_a_study_goes_on_and_refuses_another_table(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    storage, data = tmp_path / "copy" / "people.db", tmp_path / "copy" / "people.csv"
    study = shoal.resume_table(
        storage, data, target="bought", ignore="spent", n_trials=6, progress=False, baselines=False
    )
    assert len(study.study.record.trials) == 6 and study.model_file == tmp_path / "copy" / "people.model.safetensors"
    with pytest.raises(StorageError, match=r"of a data file: its target, its other options, or its rows"):
        shoal.resume_table(storage, data, target="city", progress=False)
    with pytest.raises(UsageError, match=r"resume_table\(\) has no keyword 'n_trails'. Did you mean 'n_trials'"):
        shoal.resume_table(storage, data, target="bought", n_trails=3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"target": "bought", "n_trails": 3}, "tune_table() has no keyword 'n_trails'. Did you mean 'n_trials'?"),
        ({"target": "bought", "train": 3}, "tune_table() has no keyword 'train'."),
        ({"target": "bought", "ignore": ["bought"]}, "'bought' cannot be both the target and ignored."),
        ({"target": "bought", "ignore": "nothing"}, "has no column 'nothing' (to be ignored)."),
        ({"target": "bought", "group": "bought"}, "'bought' cannot be both the target and the group."),
        ({"target": "spent", "time": "spent"}, "'spent' cannot be both the target and the time."),
        ({"target": "bought", "metric": "accurcy"}, "Unknown metric 'accurcy'. Did you mean 'accuracy'?"),
    ],
)
def test_wrong_keywords_are_explained(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        shoal.tune_table(pd.DataFrame(people(), dtype=object), progress=False, **keywords)


def test_a_study_without_a_finished_trial_says_so() -> None:
    frame = pd.DataFrame(people(), dtype=object)
    study = shoal.tune_table(frame, target="bought", **{**QUICK, "timeout_s": 1e-9})
    assert study.model is None and study.comparison is None
    with pytest.raises(StudyError, match="has finished yet"):
        study.predict(frame)


# -- the model file ---------------------------------------------------------------------------------------------------


def rewrite(source: Path, path: Path, *, facts: Any = None, tensors: Any = None) -> Path:
    """A copy of a model file with its description or its tensors changed."""
    with safe_open(source, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        described = json.loads(file.metadata()["shoal_table"])
    if tensors is not None:
        state = tensors(state)
    text = facts(described) if facts is not None else json.dumps(described)
    save_file(state, path, metadata={} if text is None else {"shoal_table": text})
    return path


def changed(*place: str, to: Any) -> Any:
    def change(described: dict[str, Any]) -> str:
        inner = described
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = to
        return json.dumps(described)

    return change


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"facts": lambda d: None}, "holds no model of such data"),
        ({"facts": lambda d: "{"}, "its description is no JSON"),
        ({"facts": lambda d: "[" * 10_000}, "its description is no JSON"),
        ({"facts": lambda d: "[]"}, "the description must be an object, not list"),
        ({"facts": changed("format", to=9)}, "has format 9; this version of Shoal reads 1"),
        ({"facts": changed("network", "width", to=10**9)}, "the network has width=1000000000, not 1 to 1000000"),
        ({"facts": changed("network", "width", to=[4, 0])}, "the network has a layer of no size"),
        ({"facts": changed("network", "depth", to=10**9)}, "the network has depth=1000000000, not 0 to 100"),
        ({"facts": changed("network", "categories", to=[10**7])}, "the network has too many categories"),
        ({"facts": changed("network", "activation", to="os.system")}, "its network cannot be made (unknown activation"),
        ({"facts": changed("network", "wide", to=False)}, "its tensors are not those of the network it describes"),
        ({"facts": changed("preparation", to=[])}, "its columns do not fit its network"),
        ({"facts": changed("target", "values", to=["a", "b", "c"])}, "its columns do not fit its network"),
        ({"tensors": lambda s: {**s, "more": torch.zeros(1)}}, "its tensors are not those of the network it describes"),
        ({"tensors": lambda s: {k: v.double() for k, v in s.items()}}, "its tensors are not those of the network"),
    ],
)
def test_damaged_model_files_are_refused(folder: Path, tmp_path: Path, how: dict[str, Any], message: str) -> None:
    path = rewrite(folder / "people.model.safetensors", tmp_path / "bad.safetensors", **how)
    with pytest.raises(StorageError, match=re.escape(message)):
        load_table_model(path)


def test_a_description_of_any_length_is_not_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.tabular._file._MAX_JSON", 10)
    with pytest.raises(StorageError, match=r"its description has \d+ characters"):
        load_table_model(folder / "people.db")


def test_what_is_no_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(StorageError, match="cannot be read"):
        load_table_model(tmp_path / "bad.safetensors")
    with pytest.raises(StorageError, match=r"there is no model .*nothing\.model\.safetensors"):
        load_table_model(tmp_path / "nothing.db")


def test_a_model_that_cannot_be_written_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write the model to"):
        load_table_model(folder / "people.db").save(tmp_path / "no" / "folder.safetensors")


# -- the command line -------------------------------------------------------------------------------------------------


def test_tune_predict_and_resume_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_people(Path("people.csv"))
    words = ["people.csv", "--target", "bought", "--ignore", "spent", "--ignore", "income"]
    quick = ["--n-trials", "4", "--max-epochs", "3", "--reproducible"]
    assert main(["tune", *words, *quick]) == 0
    out, err = capsys.readouterr()
    assert "model       people.model.safetensors" in out and "test, 24 rows" in out and "gradient boosting" in out
    assert "shoal: column 'name' is left out: nearly every row has another text" in err
    assert main(["best", "people.db"]) == 0 and main(["report", "people.db"]) == 0
    assert "Beside scikit-learn" in Path("people.html").read_text(encoding="utf-8")
    assert main(["explain", *words, "--n-trials", "3"]) == 0 and "3 sampled trials" in capsys.readouterr().out

    assert main(["resume", "people.db", *words, "--n-trials", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["comparison"]) == {OURS, LINEAR, BOOSTING} and result["model"] == "people.model.safetensors"
    assert "column 'name' is left out: nearly every row has another text" in result["notes"]

    write_people(Path("new.csv"), n=5, seed=2)
    assert main(["predict", "people.db", "new.csv"]) == 0
    assert capsys.readouterr().out == "new.predictions.csv\n"
    assert pd.read_csv("new.predictions.csv").shape == (5, 3)
    assert main(["predict", "people.model.safetensors", "new.csv", "-o", "new.csv"]) == 2
    assert "'new.csv' is what to predict for; name another file with -o PATH." in capsys.readouterr().err
    assert main(["predict", "people.db", "new.csv", "-o", "no/where.csv"]) == 1
    assert "cannot write the predictions to no/where.csv" in capsys.readouterr().err

    assert main(["tune", *words, *quick, "--timeout", "0.000001", "--storage", "a b.db", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "No trial has finished." in out
    assert "go on with: shoal resume 'a b.db' people.csv --target bought --ignore spent --ignore income" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tune people.csv", "name the column to predict: --target NAME. people.csv has 'id', 'name', 'age',"),
        ("tune people.py --target bought", "--target is for data files; 'people.py' is none"),
        ("resume people.db people.py --group city", "--group is for data files"),
        ("explain people.py --time joined", "--time is for data files"),
        ("tune people.csv --target bougt", "people.csv has no column 'bougt' (the target). Did you mean 'bought'?"),
        ("tune peple.csv --target bought", "there is no file 'peple.csv'. Did you mean 'people.csv'?"),
        ("tune people.csv --target bought --task clases", "invalid choice: 'clases'"),
        ("tune people.csv --targt bought", "unrecognized arguments: --targt bought. Did you mean '--target'?"),
    ],
)
def test_wrong_commands_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_people(Path("people.csv"))
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert main(["predict", "people.db", "new.csv"]) == 2
    assert "data files need pandas and scikit-learn: run `pip install 'shoal[tabular]'`." in capsys.readouterr().err
