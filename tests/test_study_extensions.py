"""Extensions by name: a part of every space, a table of study files, for whatever ``shoal.extend`` exports."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest

import shoal
from shoal.errors import RecipeError, UsageError
from shoal.nn import Range, extensions, mlp_space
from shoal.study_file import json_schema, prepare_study, read_study_file, template
from tabular_helpers import write_people

STUDY = """[data]
file = "people.csv"
target = "bought"
[space]
width = [8]
optimizer = ["adam"]
[budget]
n_trials = 6
max_epochs = 1
[study]
reproducible = true
progress = false
baselines = false
[extensions.LearningRate]
on = [true, false]
step = {low = 0.01, high = 0.2}
bounds = [0.0, 2.0]
"""
FIELDS: dict[str, Any] = {"on": [True, False], "step": Range(0.01, 0.2), "bounds": [0.0, 2.0]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_people(tmp_path / "people.csv", n=60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str) -> str:
    Path("study.toml").write_text(text, encoding="utf-8")
    return "study.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum(shoal.extend.Extension):
    """Moves the momentum, in a test."""

    HYPERPARAMETER: ClassVar[str] = "momentum"

    step: float
    bounds: tuple[float, float] = (0.0, 1.0)
    rule: str = "gentle"

    def check(self, recipe: shoal.Recipe) -> None:
        if "momentum" not in recipe.optimizer.param_groups[0]:
            raise RecipeError("there is no momentum to move.")


@pytest.fixture
def momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension that nobody here has heard of."""
    monkeypatch.setattr(shoal.extend, "Momentum", Momentum, raising=False)
    monkeypatch.setattr(shoal.extend, "__all__", [*shoal.extend.__all__, "Momentum"])


def test_every_extension_that_is_exported_has_its_table(momentum: None) -> None:
    """In the space, in the file, in the schema and in the template, without a line that names it."""
    assert extensions()["Momentum"] is Momentum and "Extension" not in extensions()
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    pick = mlp_space(trial, Momentum={"step": Range(0.1, 0.2), "bounds": [[0.0, 0.5], [0.0, 0.9]], "warmup": 3})
    (made,) = pick.extensions
    assert isinstance(made, Momentum) and 0.1 <= made.step <= 0.2 and made.bounds[1] in (0.5, 0.9) and made.warmup == 3
    assert {"Momentum.step", "Momentum.bounds"} < set(trial.params)
    tables: Any = json_schema()["properties"]
    assert set(tables["extensions"]["properties"]) == set(extensions())
    assert set(tables["extensions"]["properties"]["Momentum"]["properties"]) == {
        *("step", "bounds", "warmup", "on", "rule")
    }
    assert tables["extensions"]["properties"]["Momentum"]["description"] == "Moves the momentum, in a test."
    text = template("people.csv", "bought")
    assert "# [extensions.Momentum]\n# # Moves the momentum, in a test.\n# bounds = [0.0, 1.0]" in text


@pytest.mark.parametrize("name", sorted(extensions()))
def test_the_template_shows_each_as_it_is_written(folder: Path, name: str) -> None:
    """What is commented out, switched on: defaults, which build the extension itself."""
    text = template("people.csv", "bought")
    table = re.search(rf"^# \[extensions\.{name}\]\n((?:# .*\n)*?)(?=# \[|\n|\Z)", text, re.MULTILINE)
    assert table is not None
    found = tomllib.loads(re.sub(r"^# ", "", table[0], flags=re.MULTILINE))["extensions"][name]
    file = read_study_file(written(STUDY.split("[extensions")[0] + re.sub(r"^# ", "", table[0], flags=re.MULTILINE)))
    assert set(file.knobs[name]) == set(found)


def test_a_study_of_a_file_moves_what_python_moves(folder: Path) -> None:
    file = read_study_file(written(STUDY))
    assert file.knobs == {"width": [8], "optimizer": ["adam"], "LearningRate": FIELDS}
    ready = prepare_study("study.toml")
    found = shoal.study_file.tune_study(ready)[0]
    space = {"width": [8], "optimizer": ["adam"], "LearningRate": {**FIELDS, "bounds": (0.0, 2.0)}}
    python = shoal.tune_table(
        *("people.csv",), target="bought", space=space, n_trials=6, max_epochs=1, reproducible=True, progress=False,
        baselines=False, storage="python.db",
    ).study  # fmt: skip
    assert found.best_params == python.best_params
    moved = {t.spec.number: t.spec.params["LearningRate.on"] for t in found.record.trials}
    assert set(moved.values()) == {True, False}
    assert {number: bool(found.trajectories(number)) for number in moved} == moved
    again = shoal.resume_table("python.db", "people.csv", target="bought", space=space, n_trials=7, baselines=False)
    assert len(again.study.record.trials) == 7


FAULTS = [
    ("[extensions.LearningRate]", "[extensions.LearningRat]", "line 14, [extensions] LearningRat: shoal.extend has no "
     "extension of that name. Did you mean 'LearningRate'?"),
    ("step = {low", "stp = {low", "line 16, [extensions] LearningRate stp: shoal.extend.LearningRate has no such field. "
     "Did you mean 'step'?"),
    ("{low = 0.01, high = 0.2}", "{lo = 0.01, high = 0.2}", "line 16, [extensions] LearningRate step: a range has no 'lo'."),
    ("on = [true, false]", "on = []", "line 15, [extensions] LearningRate on: leaves nothing to choose from."),
    ("[extensions.LearningRate]", "[extensions]\nLearningRate = 4\n[budget.x]", "line 15, [extensions] LearningRate: must be a "
     "table, written as [extensions.LearningRate]; it is 4."),
    ("width = [8]", "LearningRate = {step = 0.1}", "line 5, [space] LearningRate: is an extension; give its fields under "
     "[extensions.LearningRate]."),
    ("[space]", "[model]\nLearningRate = 4\n[space]", "line 5, [model] LearningRate: is an extension; give its fields under"),
]  # fmt: skip
LATER_FAULTS = [
    ("bounds = [0.0, 2.0]", "bounds = [2.0]", "line 14, [extensions] LearningRate: shoal.extend.LearningRate(bounds=...) must be"),
    ("on = [true, false]", "on = [true, 2]", "line 15, [extensions] LearningRate on: shoal.extend.LearningRate(on=...) must be"),
    ("high = 0.2", "high = 1.5", "line 16, [extensions] LearningRate step: shoal.extend.LearningRate(step=...) must be"),
    ('"adam"', '"asgd"', "line 14, [extensions] LearningRate: shoal.extend.LearningRate needs an optimizer whose step is"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), FAULTS, ids=[new[:30] for _, new, _ in FAULTS])
def test_faults_name_line_and_field(folder: Path, old: str, new: str, message: str) -> None:
    assert old in STUDY
    with pytest.raises(UsageError, match=re.escape(message)):
        read_study_file(written(STUDY.replace(old, new, 1)))


@pytest.mark.parametrize(("old", "new", "message"), LATER_FAULTS, ids=[new[:30] for _, new, _ in LATER_FAULTS])
def test_faults_that_a_recipe_shows_name_line_and_field(folder: Path, old: str, new: str, message: str) -> None:
    assert old in STUDY
    with pytest.raises(UsageError, match=re.escape(message)):
        prepare_study(written(STUDY.replace(old, new, 1)))


def test_with_code_extensions_are_the_recipes_own(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"\[extensions\]: with code, define\(trial\) decides on model, space and"):
        read_study_file(written('[data]\ncode = "a.py"\n[extensions.LearningRate]\n'))


def test_parts_of_a_space_that_are_no_extension_are_refused(momentum: None) -> None:
    trial = optuna.trial.FixedTrial({})
    for knobs, message in (
        ({"LearningRat": {}}, "mlp_space has no part 'LearningRat'. Did you mean 'LearningRate'?"),
        (
            {"LearningRate": 0.1},
            "LearningRate is an extension: give its fields by name, as in LearningRate={}, not 0.1.",
        ),
        ({"LearningRate": {"stp": 0.1}}, "shoal.extend.LearningRate has no field 'stp'. Did you mean 'step'?"),
        ({"Momentum": {}}, "shoal.extend.Momentum needs a value for 'step'."),
    ):
        fixed = {"width": 8, "depth": 1, "activation": "relu", "dropout": 0.0, "init": "default", "optimizer": "adam"}
        with pytest.raises(UsageError, match=re.escape(message)):
            mlp_space(trial, **fixed, lr=0.1, weight_decay=0.0, batch_size=8, **knobs)
