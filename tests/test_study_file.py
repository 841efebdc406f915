"""study.toml: every fault named with its line, every key a keyword and the reverse, and the same study as from Python."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shoal
from shoal.cli import main
from shoal.errors import StudyError, UsageError
from shoal.nn import Range, extensions
from shoal.storage import load_study
from shoal.study_file import KEYS, json_schema, prepare_study, read_study_file, template
from shoal.study_file._keys import FREE, SECTIONS
from tabular_helpers import write_people

GOOD = """# a study
[data]
file = "people.csv"
target = "bought"
ignore = "spent"

[model]
depth = 1
norm = "none"

[space]
width = [8, 16]
lr = {low = 1e-3, high = 1e-1, log = true}

[sampler]
name = "tpe"
n_startup_trials = 3

[scheduler]
name = "none"

[metrics]
metric = "f1"
metrics = "auroc"

[budget]
n_trials = 4
max_epochs = 2

[study]
reproducible = true
progress = false
seed = 3
baselines = false

[[enqueue]]
lr = 0.05
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_people(tmp_path / "people.csv", n=60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(text: str, name: str = "study.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_what_python_would(folder: Path) -> None:
    file = read_study_file(study(GOOD))
    assert file.source == "table" and file.given == {
        "data": "people.csv",
        "target": "bought",
        "ignore": "spent",
        "sampler": {"name": "tpe", "n_startup_trials": 3},
        "scheduler": "none",
        "metric": "f1",
        "metrics": ["auroc"],
        "n_trials": 4,
        "max_epochs": 2,
        "reproducible": True,
        "progress": False,
        "seed": 3,
        "baselines": False,
        "enqueue": [{"lr": 0.05}],
    }
    assert file.knobs == {"depth": 1, "norm": None, "width": [8, 16], "lr": Range(1e-3, 1e-1, log=True)}


def test_a_scheduler_has_options_too(folder: Path) -> None:
    text = GOOD.replace('name = "none"', 'name = "asha"\neta = 4')
    assert read_study_file(study(text)).given["scheduler"] == {"name": "asha", "eta": 4}


def test_the_study_is_the_one_that_python_gives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(GOOD)
    assert main(["tune", "study.toml", "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    python = shoal.tune_table(
        "people.csv",
        target="bought",
        ignore="spent",
        space={"depth": 1, "norm": None, "width": [8, 16], "lr": Range(1e-3, 1e-1, log=True)},
        sampler={"name": "tpe", "n_startup_trials": 3},
        scheduler="none",
        metric="f1",
        metrics=["auroc"],
        n_trials=4,
        max_epochs=2,
        reproducible=True,
        progress=False,
        seed=3,
        baselines=False,
        enqueue=[{"lr": 0.05}],
    )
    assert result["params"] == python.study.best_params and result["value"] == python.study.best_value
    assert python.comparison is None and result["comparison"] is None
    assert Path("study.model.safetensors").is_file()
    # It goes on from the file, and the command line wins over it.
    assert main(["tune", "study.toml", "--n-trials", "5", "--quiet"]) == 0
    assert main(["resume", "study.db", "study.toml", "--n-trials", "6", "--quiet"]) == 0
    assert len(load_study("study.db").trials) == 6


CODE = """
import shoal, torch
from torch import nn
X = torch.randn(40, 3)
def define(trial):
    net = nn.Linear(3, 2)
    return shoal.Recipe(net, torch.optim.SGD(net.parameters(), lr=trial.suggest_float("lr", 0.1, 1)), nn.CrossEntropyLoss(), 8)
def data():
    return (X, (X[:, 0] > 0).long()),
options = {"n_trials": 9, "max_epochs": 9}
"""


def test_code_is_named_from_another_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study('[data]\ncode = "mine.py"\nvalid = 0.25\n[budget]\nn_trials = 2\n[study]\nprogress = false', "sub/study.toml")
    Path("sub/mine.py").write_text(CODE, encoding="utf-8")
    assert main(["check", "sub/study.toml"]) == 0
    shown = capsys.readouterr().out
    assert "30 train, 10 validation" in shown and "2 trials of at most 9 epochs" in shown and "lr: 0.1 to 1" in shown
    assert main(["explain", "sub/study.toml"]) == 0
    assert main(["tune", "sub/study.toml", "--max-epochs", "1"]) == 0
    assert Path("sub/study.db").is_file()
    study('[data]\ncode = "mine.py"\n[metrics]\nfolds = 4\n[study]\nreproducible = true', "sub/folds.toml")
    assert main(["check", "sub/folds.toml"]) == 0 and "40 in 4 folds" in capsys.readouterr().out
    assert main(["tune", "sub/folds.toml", "--max-epochs", "1", "--n-trials", "2", "--quiet"]) == 0
    study('[data]\ncode = "mine.py"\ntest = 0.25\n', "sub/both.toml")
    Path("sub/mine.py").write_text(CODE.replace("> 0).long()),", "> 0).long()), None, (X, X)"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"both\.toml, line 3, \[data\] test: data\(\) in .* gives that part already"):
        prepare_study("sub/both.toml")


def test_a_folder_of_texts_is_searched_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("cat", "dog"):
        for i in range(12):
            path = Path("texts") / kind / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{kind} number {i % 3} runs", encoding="utf-8")
    study('[data]\nfile = "texts"\n[space]\nwidth = [4, 8]\n')
    assert main(["check", "study.toml"]) == 0
    assert "class, 2 classes: cat, dog" in (shown := capsys.readouterr().out) and "width: 4 or 8" in shown
    study('[data]\nfile = "texts"\ntarget = "a"\n')
    with pytest.raises(UsageError, match=r"line 3, \[data\] target: is for a CSV or Parquet file, not for a folder of"):
        read_study_file("study.toml")


FAULTS: list[tuple[str, str, str]] = [
    ("n_trials = 4", "n_trails = 4", "line 27, [budget] n_trails: there is no such key. Did you mean 'n_trials'?"),
    ("n_trials = 4", "seed = 4", "line 27, [budget] seed: there is no such key. 'seed' belongs under [study]."),
    ("n_trials = 4", "n_trials = 0", "line 27, [budget] n_trials: must be a whole number of at least 1, not 0."),
    ("n_trials = 4", "n_trials = true", "must be a whole number of at least 1, not True."),
    ("n_trials = 4", "n_trials = 1979-05-27", "must be a whole number of at least 1, not datetime.date"),
    (
        "n_trials = 4",
        "target_value = nan",
        "line 27, [budget] target_value: must be a finite number, or a list of numbers, not nan.",
    ),
    ("n_trials = 4", "timeout_s = 0", "must be a number of seconds above 0, not 0."),
    (
        "# a study",
        "n_trials = 4",
        "line 1, [n_trials]: there is no table [n_trials]. 'n_trials' belongs under [budget].",
    ),
    ("# a study", "n_trails = 4", "there is no table [n_trails]. Did you mean 'n_trials' under [budget]?"),
    ("[budget]", "[buget]", "line 26, [buget]: there is no table [buget]. Did you mean 'budget'?"),
    ("[[enqueue]]", "[enqueue]", "[enqueue]: write each as [[enqueue]], with double brackets."),
    ("# a study", 'data = "people.csv"', "study.toml is not TOML: Cannot overwrite a value (at line 2, column 6)."),
    ("# a study", "a = [[[", "study.toml is not TOML: "),
    ('target = "bought"\n', "", 'line 2, [data]: name the column to predict: target = "...".'),
    ('target = "bought"', "target = []", "line 4, [data] target: must be text in quotes, or a list of texts, not []."),
    ('target = "bought"', 'target = ""', "line 4, [data] target: is empty."),
    ('file = "people.csv"', "", 'line 2, [data]: say what to learn from: file = "data.csv" or code = "study.py".'),
    ('file = "people.csv"', 'file = "people.csv"\ncode = "a.py"', "name either a file or code, not both."),
    ('ignore = "spent"', 'task = "class"', "line 5, [data] task: 'class' is not known. Did you mean 'classes'?"),
    ('ignore = "spent"', "valid = 0.7", "line 5, [data] valid: must be a fraction above 0 and below 0.5, not 0.7."),
    (
        "depth = 1",
        "depth = {low = 1, high = 2}",
        "line 8, [model] depth: is fixed here; a range belongs under [space].",
    ),
    ("depth = 1", "width = 4", "line 12, [space] width: is fixed under [model] already; give it in one of the two."),
    ("width = [8, 16]", "width = []", "line 12, [space] width: leaves nothing to choose from."),
    ("low = 1e-3", "lo = 1e-3", "line 13, [space] lr: a range has no 'lo'. Did you mean 'low'?"),
    ("low = 1e-3", 'low = "a"', "line 13, [space] lr: a range is {low = NUMBER, high = NUMBER}"),
    ("low = 1e-3", "low = 1", "line 13, [space] lr: a range must go up; got 1 to 0.1."),
    ("log = true", "log = 1", "line 13, [space] lr: log must be true or false, and step greater than 0."),
    ('name = "tpe"', "", "line 15, [sampler]: options need the name of a sampler"),
]
LATER_FAULTS: list[tuple[str, str, str]] = [
    ("people.csv", "peple.csv", "line 3, [data] file: there is no file 'peple.csv'. Did you mean 'people.csv'?"),
    ("people.csv", "p" * 300 + ".csv", "line 3, [data] file: File name too long."),
    (
        '"bought"',
        '"bougt"',
        "line 4, [data] target: people.csv has no column 'bougt' (the target). Did you mean 'bought'?",
    ),
    ('"spent"', '"bought"', "line 2, [data]: 'bought' cannot be both the target and ignored."),
    ("depth = 1", "dept = 1", "line 8, [model] dept: shoal.nn.mlp has no such keyword. Did you mean 'depth'?"),
    (
        "depth = 1",
        'activation = "rellu"',
        "line 8, [model] activation: unknown activation 'rellu'. Did you mean 'relu'?",
    ),
    (
        "depth = 1",
        "batch_size = 64",
        "line 8, [model] batch_size: there are 36 training rows; a batch can be no larger.",
    ),
    ("[8, 16]", '[8, "a"]', "line 12, [space] width: mlp(width=...) must be a whole number of at least 1; got 'a'."),
    ("high = 1e-1", "high = 1e9999", "line 13, [space] lr: a range is {low = NUMBER"),
    ('"tpe"', '"tpee"', "line 15, [sampler]: sampler='tpee' is not known. Did you mean 'tpe'?"),
    ("n_startup_trials", "n_startup", "line 15, [sampler]: sampler='tpe' has no option 'n_startup'."),
    (
        "trials = 3",
        'trials = "3"',
        "[sampler]: option 'n_startup_trials' of sampler='tpe' must be a whole number, not '3'.",
    ),
    ('name = "none"', 'name = "ahsa"', "line 20, [scheduler] name: Unknown scheduler 'ahsa'. Did you mean 'asha'?"),
    (
        'name = "none"',
        'name = "asha"\neta = 1',
        "line 20, [scheduler] name: eta must be a whole number, 2 or more; got 1",
    ),
    (
        'name = "none"',
        'name = "asha"\netta = 4',
        "[scheduler] name: scheduler 'asha' has no option 'etta'. Did you mean 'eta'?",
    ),
    ('name = "none"', "eta = 4", "line 19, [scheduler]: options need the name of a scheduler"),
    ('metric = "f1"', 'metric = "f2"', "line 23, [metrics] metric: "),
    ('"auroc"', '["auroc", "acuracy"]', "line 24, [metrics] metrics: "),
    ("seed = 3", 'device = "cdu"', "line 33, [study] device: device='cdu' cannot be used here"),
    ("lr = 0.05", "lr = 5", "line 36, [enqueue]: "),
]


@pytest.mark.parametrize(("old", "new", "message"), FAULTS, ids=[new[:30] or old[:30] for old, new, _ in FAULTS])
def test_faults_name_line_and_key(folder: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    study(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=re.escape(message)):
        read_study_file("study.toml")


@pytest.mark.parametrize(("old", "new", "message"), LATER_FAULTS, ids=[new[:30] for _, new, _ in LATER_FAULTS])
def test_faults_that_the_data_show_name_line_and_key(folder: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    study(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=re.escape(message)):
        prepare_study("study.toml")


def test_several_faults_are_said_at_once(folder: Path) -> None:
    study(GOOD.replace("n_trials = 4", "\n".join(f"n_trials{i} = 4" for i in range(13))))
    with pytest.raises(UsageError) as caught:
        read_study_file("study.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 3 more." and all("[budget] n_trials" in line for line in lines[:-1])


def test_files_that_are_none_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(GOOD)
    for content, message in (
        (b"\xff\xfe[\0", "bad.toml, line 1: not UTF-8 text. Save the file in UTF-8."),
        (b"#" * 1_000_001, "bad.toml has 1,000,001 bytes, too many for a study file."),
        (b"a = " + b"[" * 3000, "bad.toml is not TOML: "),
    ):
        Path("bad.toml").write_bytes(content)
        with pytest.raises(UsageError, match=re.escape(message)):
            read_study_file("bad.toml")
    with pytest.raises(UsageError, match=re.escape("there is no file 'stdy.toml'. Did you mean 'study.toml'?")):
        read_study_file("stdy.toml")
    with pytest.raises(UsageError, match=r"is a folder\. Name the study file in it\."):
        read_study_file(folder)
    # A byte order mark, as Windows writes it, is nothing to complain about.
    Path("mark.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_study_file("mark.toml").given["target"] == "bought"
    assert main(["check", "people.csv"]) == 2 and "its name must end in .toml" in capsys.readouterr().err
    assert main(["tune", "study.toml", "--target", "a"]) == 2
    assert "--target is for data files; write it into study.toml, under [data]." in capsys.readouterr().err


def test_init_writes_what_check_accepts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--data", "people.csv", "--target", "bought"]) == 0
    assert main(["check", "study.toml"]) == 0
    shown = capsys.readouterr().out
    assert (
        shown.startswith("study.toml\n") and "36 train, 12 validation, 12 test" in shown and "scheduler asha" in shown
    )
    assert main(["init"]) == 2 and "study.toml exists already" in capsys.readouterr().err
    assert main(["init", "study.txt"]) == 2 and "name ends in .toml" in capsys.readouterr().err
    assert main(["init", "nowhere/study.toml"]) == 1 and "cannot write" in capsys.readouterr().err
    assert not Path("study.db").exists()


def test_every_line_of_the_template_is_right(folder: Path) -> None:
    """With all that is commented out switched on, one key excepted that excludes another."""
    text = template("people.csv", "bought")
    on = re.sub(
        r"^# (?=\w+ = |\[\[)", "", text.split("# [extensions")[0] + text[text.index("[sampler]") :], flags=re.MULTILINE
    )
    assert {key.name for key in KEYS} <= {
        name for table in tomllib.loads(on).values() if isinstance(table, dict) for name in table
    }
    for without in ("code = ", "folds = ", "time = ", "warm_start = ", "task = "):
        on = re.sub(rf"^{without}.*\n", "", on, flags=re.MULTILINE)
    study(on.replace("depth = 2", "batch_size = 8"))
    assert prepare_study("study.toml").keywords["target_value"] == 0.99


def test_the_schema_knows_what_reading_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--schema"]) == 0
    schema: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert schema == json_schema() and list(schema["properties"]) == list(SECTIONS)
    keys = {(section, name) for section, table in schema["properties"].items() for name in table.get("properties", {})}
    named = {("extensions", name) for name in extensions()}
    assert keys == {(key.section, key.name) for key in KEYS} | named
    for key in KEYS:
        example = tomllib.loads(f"x = {key.example}")["x"]
        assert key.kind.fits(example) and (not key.choices or example in key.choices), key
    assert set(FREE) < set(SECTIONS)


# -- any file -----------------------------------------------------------------------------------------------------------

_ODD = """
0, -1, 0.3, 1e999, nan, "", "a", true, [], ["a"; 1], [[1; 2]; 3], {}, {low = 1}, "none", 1979-05-27, 07:32:00, "\\u0000",
{low = -1; high = 1; log = true}, 999999999999999999999999
"""
VALUES = st.sampled_from([*(value.strip().replace(";", ",") for value in _ODD.split(",")), f'"{"x" * 300}"'])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """`GOOD` with a few faults in it."""
    lines = GOOD.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.integers(0, 7)):
            case 0 | 1 if " = " in line:
                lines[at] = f"{line.split(' = ')[0]} = {draw(VALUES)}"
            case 2:
                lines.insert(draw(st.integers(0, len(lines))), line)
            case 3:
                del lines[at]
            case 4:
                place = draw(st.integers(0, len(line)))
                lines[at] = (
                    line[:place]
                    + draw(st.sampled_from(["x", '"', "[", "]", "=", ".", "é", "\0", "{", " "]))
                    + line[place:]
                )
            case 5:
                place = draw(st.integers(0, len(line)))
                lines[at] = line[:place] + line[place + 1 :]
            case 6:
                name = draw(st.sampled_from(["LearningRate", "LearningRat", "x.y"]))
                field = draw(st.sampled_from(["on", "step", "bounds", "rule", "warmup", "stp"]))
                lines += [f"[extensions.{name}]", f"{field} = {draw(VALUES)}"]
            case _:
                lines.insert(at, f"{draw(st.sampled_from([key.name for key in KEYS]))} = {draw(VALUES)}")
        if not lines:
            break
    content = "\n".join(lines).encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-16", "cp1252", "utf-8-sig"])))
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 9)) == 0 else content


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=mutated())
def test_any_study_file_is_accepted_or_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    Path("study.toml").write_bytes(content)
    accepted: list[Any] = []

    def instead_of_training(ready: Any, **keywords: Any) -> None:
        accepted.append(ready)
        raise StudyError("accepted")

    with monkeypatch.context() as patch:
        patch.setattr("shoal.study_file.tune_study", instead_of_training)
        code = main(["tune", "study.toml"])
    error = capsys.readouterr().err
    assert "Traceback" not in error and code == (1 if accepted else 2)
    if not accepted:
        assert "shoal: error: study.toml" in error or "shoal: error: there is no file" in error, error
