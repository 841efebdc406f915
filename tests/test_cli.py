"""The command line against a fake library: what it passes on, what it prints, how it fails."""

from __future__ import annotations

import argparse
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shoal
from shoal.cli import build_parser, main
from shoal.errors import StorageError, StudyLockedError, UsageError
from shoal.records import EpochRow, Json, StudyRecord, TrialRecord, TrialSpec, TrialState

FILE = """
class Data:
    pass

train, valid, test = Data(), Data(), Data()
options = {"metric": "accuracy", "n_trials": 7}

def define(trial):
    return "recipe"

def other(trial):
    return "other"

def data():
    return train, valid, test
"""


def record(*, finished: bool = True, meta: Mapping[str, Json] | None = None) -> StudyRecord:
    spec = TrialSpec(3, 3, {"lr": 1 / 3, "act": "relu"}, {})
    row = EpochRow(3, 5, 0.25, 0.9876543, {"accuracy": 0.9876543, "loss": 0.1})
    state = TrialState.FINISHED if finished else TrialState.RUNNING
    trial = TrialRecord(spec, state, 0.9876543 if finished else None, 5, "", (row,))
    facts: dict[str, Json] = {"metric": "accuracy", "test": {"accuracy": 0.875}, "weights": {"3": "w/3.safetensors"}}
    return StudyRecord("shoal", "maximize", (trial,), (), {**facts, **(meta or {})})


class Library:
    """Stands for the engine: notes its calls and answers with a finished study."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.record = record()
        self.interrupted = False
        self.stop_reason = ""
        self.error: BaseException | None = None

    def tune(
        self,
        define: object,
        *,
        train: object,
        valid: object = None,
        test: object = None,
        metric: str | None = None,
        direction: str | None = None,
        constraints: object = (),
        metrics: object = (),
        target_value: object = None,
        value: str = "last",
        n_trials: int = 100,
        max_epochs: int = 30,
        sampler: object = None,
        scheduler: object = None,
        storage: str | None = None,
        seed: int = 0,
        device: str = "auto",
        reproducible: bool = False,
        timeout_s: float | None = None,
        progress: object = True,
    ) -> object:
        return self._answer("tune", locals())

    def resume(self, storage: str, define: object, **keywords: object) -> object:
        return self._answer("resume", {"storage": storage, "define": define, **keywords})

    def explain(self, define: object, **keywords: object) -> object:
        self._answer("explain", {"define": define, **keywords})
        return "two fleets"

    def load_study(self, url: str, name: str | None = None) -> StudyRecord:
        self._answer("load_study", {"url": url, "name": name})
        return self.record

    def _answer(self, name: str, keywords: dict[str, Any]) -> object:
        self.calls.append((name, {key: item for key, item in keywords.items() if key != "self"}))
        if self.error is not None:
            raise self.error
        return SimpleNamespace(
            record=self.record, interrupted=self.interrupted, stop_reason=self.stop_reason, report=Path
        )

    @property
    def last(self) -> dict[str, Any]:
        return self.calls[-1][1]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    for name in ("tune", "resume", "explain"):
        monkeypatch.setattr(shoal, name, getattr(fake, name), raising=False)
    monkeypatch.setattr("shoal.storage.load_study", fake.load_study)
    return fake


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(text: str, name: str = "my_digits.py") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def defaults() -> dict[str, Any]:
    return {key: p.default for key, p in inspect.signature(Library.tune).parameters.items() if p.default is not p.empty}


def test_tune_passes_file_options_and_defaults(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", write(FILE)]) == 0
    module = sys.modules["my_digits"]
    assert library.last == {
        **defaults(),
        "define": module.define,
        "train": module.train,
        "valid": module.valid,
        "test": module.test,
        "metric": "accuracy",
        "n_trials": 7,
        "storage": "my_digits.db",
    }
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "best trial  3 (epoch 5)",
        "params      lr = 0.3333333333333333",
        "            act = 'relu'",
        "validation  accuracy 0.98765, loss 0.1",
        "test        accuracy 0.875",
        "weights     w/3.safetensors",
        "study       my_digits.db",
    ]
    assert err == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--n-trials 9 --max-epochs 4", {"n_trials": 9, "max_epochs": 4}),
        ("--metric loss --direction minimize", {"metric": "loss", "direction": "minimize"}),
        (
            "--metric accuracy --metric n_parameters --direction maximize --direction minimize --target-value 0.9 "
            "--target-value 99",
            {
                "metric": ["accuracy", "n_parameters"],
                "direction": ["maximize", "minimize"],
                "target_value": [0.9, 99.0],
            },
        ),
        ("--constraint loss<=1 --constraint f1>=0.5", {"constraints": ["loss<=1", "f1>=0.5"]}),
        ("--target-value 0.5", {"target_value": 0.5}),
        ("--metrics f1,recall_class_2", {"metrics": ["f1", "recall_class_2"], "metric": "accuracy"}),
        ("--sampler random --scheduler fifo", {"sampler": "random", "scheduler": "fifo"}),
        (
            "--storage sqlite:///a.db --seed -3 --device cuda:1",
            {"storage": "sqlite:///a.db", "seed": -3, "device": "cuda:1"},
        ),
        ("--timeout 1.5 --reproducible --value best", {"timeout_s": 1.5, "reproducible": True, "value": "best"}),
        ("--quiet", {"progress": False}),
        ("--json", {"progress": "json"}),
        ("--json --quiet", {"progress": False}),
    ],
)
def test_command_line_overrides_the_file(library: Library, words: str, expected: dict[str, object]) -> None:
    assert main(["tune", write(FILE), *words.split()]) == 0
    assert {key: library.last[key] for key in expected} == expected
    others = {"metric": "accuracy", "n_trials": 7, "storage": "my_digits.db"}
    assert {key: library.last[key] for key in others if key not in expected} == {
        key: item for key, item in others.items() if key not in expected
    }


def test_define_may_have_another_name(library: Library) -> None:
    assert main(["tune", write(FILE) + ":other"]) == 0
    assert library.last["define"](None) == "other"


@pytest.mark.parametrize(
    ("returned", "expected"),
    [("train", (1, 0, 0)), ("(train,)", (1, 0, 0)), ("[train, valid]", (1, 1, 0)), ("(train, valid, None)", (1, 1, 0))],
)
def test_data_may_return_fewer_splits(library: Library, returned: str, expected: tuple[int, int, int]) -> None:
    text = FILE.replace("return train, valid, test", f"return {returned}")
    assert main(["tune", write(text)]) == 0
    assert tuple(int(library.last[key] is not None) for key in ("train", "valid", "test")) == expected


def test_classes_of_the_file_can_be_pickled(library: Library) -> None:
    import pickle

    assert main(["tune", write(FILE)]) == 0
    train = library.last["train"]
    assert type(pickle.loads(pickle.dumps(train))) is type(train)


def test_file_may_import_its_neighbours(library: Library) -> None:
    Path("sub").mkdir()
    write("width = 64\n", "sub/my_neighbour.py")
    assert main(["tune", write("import my_neighbour\n" + FILE, "sub/my_study.py")]) == 0
    assert library.last["storage"] == "my_study.db"


def test_file_can_be_run_twice_in_one_process(library: Library) -> None:
    for _ in range(2):
        assert main(["tune", write(FILE)]) == 0


def test_tune_without_test_set_or_finished_trial(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    library.record = record(meta={"test": {}, "weights": {}})
    assert main(["tune", write(FILE), "--report", "r.html"]) == 0
    out = capsys.readouterr().out
    assert "test" not in out and "weights" not in out and "report      r.html" in out
    library.record = record(finished=False)
    assert main(["tune", write(FILE)]) == 0
    assert capsys.readouterr().out == "No trial has finished.\nstudy       my_digits.db\n"


def test_tune_json_ends_with_the_result(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", write(FILE), "--json", "--report", "r.html"]) == 0
    stage, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert (stage["event"], stage["name"]) == ("stage", "writing the report")
    assert result == {
        "event": "result",
        "interrupted": False,
        "trial": 3,
        "metric": "accuracy",
        "value": 0.9876543,
        "epoch": 5,
        "valid": {"accuracy": 0.9876543, "loss": 0.1},
        "params": {"lr": 1 / 3, "act": "relu"},
        "test": {"accuracy": 0.875},
        "weights": "w/3.safetensors",
        "study": "my_digits.db",
        "report": "r.html",
    }


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["tune", "my_digits.py:other"], "shoal resume my_digits.db my_digits.py:other"),
        (["tune", "my_digits.py", "--storage", "a b.db"], "shoal resume 'a b.db' my_digits.py"),
        (["resume", "a.db", "my_digits.py"], "shoal resume a.db my_digits.py"),
    ],
)
def test_interrupted_study_says_how_to_go_on(
    library: Library, capsys: pytest.CaptureFixture[str], command: list[str], hint: str
) -> None:
    write(FILE)
    library.interrupted = True
    assert main(command) == 130
    out, err = capsys.readouterr()
    assert err == f"shoal: interrupted; go on with: {hint}\n" and "best trial  3" in out


def test_a_study_that_stopped_at_a_limit_says_how_to_go_on(
    library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    library.stop_reason = "60 epochs in all, the limit is 60"
    assert main(["resume", "a.db", write(FILE)]) == 0
    hint = "go on with: shoal resume a.db my_digits.py"
    assert capsys.readouterr().err == f"shoal: stopped: 60 epochs in all, the limit is 60; {hint}\n"


def test_interrupted_study_in_memory_is_gone(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    library.interrupted = True
    assert main(["tune", write(FILE.replace('"n_trials": 7', '"storage": None'))]) == 130
    out, err = capsys.readouterr()
    assert "without a study file it cannot go on" in err and "in memory" in out


def test_resume_passes_only_what_was_given(library: Library) -> None:
    assert main(["resume", "a.db", write(FILE)]) == 0
    module = sys.modules["my_digits"]
    splits = {"train": module.train, "valid": module.valid, "test": module.test}
    assert library.calls == [("resume", {"storage": "a.db", "define": module.define, **splits})]
    assert (
        main(["resume", "a.db", write(FILE), "--n-trials", "9", "--max-epochs", "3", "--timeout", "2", "--quiet"]) == 0
    )
    expected = {"n_trials": 9, "max_epochs": 3, "timeout_s": 2.0, "progress": False}
    assert {key: library.last[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (["sqlite:///runs/a.db"], "a.html"),
        (["runs/b.sqlite3"], "b.html"),
        (["a.db", "-o", "x/y.html"], "x/y.html"),
    ],
)
def test_report_writes_a_page(
    library: Library, capsys: pytest.CaptureFixture[str], arguments: list[str], path: str
) -> None:
    assert main(["report", *arguments]) == 0
    assert Path(capsys.readouterr().out.strip()) == Path(path)
    assert Path(path).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert library.calls == [("load_study", {"url": arguments[0], "name": None})]


def test_report_says_what_it_is_doing(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "a.db", "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one.get("name") for one in said[:-1]] == [
        "reading the study",
        "weighing the hyperparameters",
        "writing the report",
    ]
    assert said[-1] == {"event": "result", "report": "a.html", "figures": []}
    assert main(["report", "a.db", "--quiet"]) == 0
    assert capsys.readouterr() == ("a.html\n", "")


def test_best(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["best", "a.db"]) == 0
    assert "lr = 0.3333333333333333" in capsys.readouterr().out
    assert main(["best", "a.db", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["params"]["lr"] == 1 / 3
        and facts["weights"] == "w/3.safetensors"
        and facts["test"] == {"accuracy": 0.875}
    )
    library.record = record(finished=False)
    assert main(["best", "a.db"]) == 1
    assert "shoal: error: no trial of 'a.db' has finished yet" in capsys.readouterr().err


def test_explain(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", write(FILE), "--n-trials", "5"]) == 0
    assert capsys.readouterr().out == "two fleets\n"
    assert library.last["n_trials"] == 5 and library.last["seed"] == 0 and "test" not in library.last


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("wrong metric"), 2, "shoal: error: wrong metric\n"),
        (StorageError("broken file"), 1, "shoal: error: broken file\n"),
        (StudyLockedError("in use"), 1, "shoal: error: in use\n"),
        (KeyboardInterrupt(), 130, "shoal: interrupted\n"),
        (BrokenPipeError(), 1, ""),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["tune", "my_digits.py"],
        ["resume", "a.db", "my_digits.py"],
        ["explain", "my_digits.py"],
        ["best", "a.db"],
        ["report", "a.db"],
    ],
)
def test_errors_become_exit_codes(
    library: Library,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    write(FILE)
    library.error = error
    assert main(command) == code
    out, err = capsys.readouterr()
    assert (out, err.removeprefix("shoal: reading the study\n")) == ("", message)


def test_a_bug_of_ours_is_not_hidden(library: Library) -> None:
    library.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["best", "a.db"])


def test_a_wrong_file_exits_with_2(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    text = FILE.replace('"n_trials"', '"n_trails"')
    assert main(["tune", write(text)]) == 2
    message = "'options' in my_digits.py has an unknown key 'n_trails'. Did you mean 'n_trials'?"
    assert capsys.readouterr() == ("", f"shoal: error: {message}\n")
    # Data sets are the library's to name, not the options'.
    assert main(["tune", write(FILE.replace('"n_trials"', '"train"'))]) == 2
    assert "unknown key 'train'" in capsys.readouterr().err and library.calls == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("tun", "invalid choice: 'tun'"),
        ("tune", "the following arguments are required: FILE"),
        ("tune a.py --n-trials 0", "must be a whole number of at least 1; got '0'"),
        ("tune a.py --n-trials many", "must be a whole number of at least 1; got 'many'"),
        ("tune a.py --timeout -1", "must be a number greater than 0; got '-1'"),
        ("tune a.py --timeout nan", "must be a number greater than 0; got 'nan'"),
        ("tune a.py --n-trial 3", "unrecognized arguments: --n-trial 3"),
        ("tune a.py --value first", "invalid choice: 'first'"),
        ("tune a.py --metrics f1,,auroc", "must be names with commas between them, such as f1,auroc; got 'f1,,auroc'"),
    ],
)
def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shoal, "__version__", "1.2.3", raising=False)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "shoal 1.2.3\n"


def parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str | None]]:
    """Every parser with the help text that its parent shows for it."""
    yield parser.prog, parser, parser.description
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help for choice in action._choices_actions}
            for name, child in action.choices.items():
                yield f"{parser.prog} {name}", child, texts.get(name)


def test_every_command_and_option_has_help() -> None:
    found = list(parsers(build_parser()))
    assert {name for name, _, _ in found} == {
        "shoal",
        *(f"shoal {c}" for c in ["tune", "resume", "report", "best", "explain", "predict", "watch", "completion"]),
        *(f"shoal {c}" for c in ["init", "check", "lr", "batch", "epochs", "compare", "export"]),
    }
    for name, parser, text in found:
        assert text and parser.description, f"{name} has no help"
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, f"{name} {action.option_strings or action.dest} has no help"


def test_help_prints(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["tune"], ["resume"], ["report"], ["best"], ["explain"], ["predict"]):
        assert main([*command, "--help"]) == 0
        assert "usage: shoal" in capsys.readouterr().out


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "shoal", "tune"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: shoal tune" in done.stderr
