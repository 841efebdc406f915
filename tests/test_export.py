"""The exported winner: trained again where Shoal cannot be imported, it scores the same; its files give the model's outputs."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn, optim

import shoal
from shoal.cli import main
from shoal.errors import StorageError, StudyError, UsageError
from shoal.export import _formats, export
from shoal.export._formats import inputs_of, save_onnx, save_program
from shoal.export._script import literal
from shoal.export._source import needed
from shoal.extend import Extension

HEAD = """
import torch
from torch import nn, optim

import shoal
{imports}
torch.set_default_dtype({dtype})
READ = open("no/such/file.csv") if __name__ == "nowhere" else None
"""
DATA = """
def data():
    x = torch.randn(72, {shape}, generator=torch.Generator().manual_seed(0))
    y = (x.flatten(1).sum(1) > 0).long()
    return (x[:48], y[:48]), (x[48:60], y[48:60]), (x[60:], y[60:])
"""
MODELS = {
    "mlp": (
        "6",
        """
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(trial.suggest_float("dropout", 0.1, 0.4)), nn.Linear(8, 2))
        optimizer = optim.Adam(model.parameters(), lr=lr)
        limits = dict(l1=1e-4, l2=1e-3, clip_value=0.5, max_norm=0.9)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(label_smoothing=0.1), 16, **limits)
        """,
    ),
    "cnn": (
        "1, 6, 6",
        """
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(64, 2)
        )
        optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
        schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule, transform=Flip(0.5))
        """,
    ),
    "lstm": (
        "5, 3",
        """
        model = Tagger(trial.suggest_float("dropout", 0.1, 0.4))
        optimizer = optim.RMSprop(model.parameters(), lr=lr)
        steps = 2 * shoal.steps_per_epoch(trial, 16)
        schedule = optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule, "step", clip_norm=1.0)
        """,
    ),
    "builder": (
        "6",
        """
        model = shoal.nn.mlp(6, 2, width=8, depth=2)
        schedule_of = optim.lr_scheduler.CosineAnnealingWarmRestarts
        optimizer = optim.Adagrad(model.parameters(), lr=lr)
        return shoal.Recipe(model, optimizer, loss, 16, schedule_of(optimizer, 1), "fraction", predict=lambda m, b: m(b[0]))
        """,
    ),
    "named": (
        "6",
        """
        model, lr = Pair(), lr / 10
        optimizer = optim.Adam(model.parameters(), lr=lr)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, transform=lambda b: {**b, "a": b["a"] * 0.9})
        """,
    ),
    "weighted": (
        "6",
        """
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))
        optimizer = shoal.optim.AdamWScheduleFree(model.parameters(), lr=lr)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, sample_weights=lambda batch: 1.0 + batch[1])
        """,
    ),
    "rates": (
        "6",
        """
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))
        groups = [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": lr / 2}]
        optimizer = optim.Adam(groups, lr=lr, weight_decay=0.01)
        moving = [shoal.extend.LearningRate(step=0.05)]
        schedule = optim.lr_scheduler.StepLR(optimizer, 1)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule, extensions=moving)
        """,
    ),
    "folds": (
        "6",
        """
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = optim.Adam(model.parameters(), lr=lr)
        schedule = optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 16, schedule)
        """,
    ),
    "lbfgs": (
        "6",
        """
        model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.2), nn.Linear(4, 2))
        optimizer = optim.LBFGS(model.parameters(), lr=lr, max_iter=3)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 48, l1=1e-4, l2=1e-3, max_norm=0.9)
        """,
    ),
}
MORE = {
    "cnn": "from shoal.transforms import Flip",
    "lstm": """
class Tagger(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])
""",
    "named": """
class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, b, a):
        return self.a(a) + self.b(b)
""",
    "builder": """
def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
""",
}
MODELS["seeds"] = MODELS["mlp"]
# Keywords of tune beside those that all have.
MORE_OF_TUNE: dict[str, dict[str, Any]] = {
    "folds": {"folds": 2, "prepare": make_pipeline(SimpleImputer(), StandardScaler()), "max_epochs": 4},
    "seeds": {"seeds": 2},
}
# Runs the scripts of the folders it is given, where nothing of Shoal, Optuna or scikit-learn can be imported.
BLOCKED = """
import importlib.machinery, os, runpy, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in ("shoal", "optuna", "safetensors", "sklearn", "sqlalchemy"):
            return None
        return super().find_spec(name, path, target)
sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path if "ditable" not in repr(f)]
for folder in sys.argv[1:]:
    before, path = set(sys.modules), list(sys.path)
    os.chdir(folder)
    print("folder:", folder)
    runpy.run_path("train.py", run_name="__main__")
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("shoal", "optuna", "plain") or name.startswith("own_"):
            del sys.modules[name]
    import torch
    torch.set_default_dtype(torch.float32)
"""


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    path, modules, dtype = list(sys.path), set(sys.modules), torch.get_default_dtype()
    yield
    sys.path[:] = path
    torch.set_default_dtype(dtype)
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


def written(folder: Path, kind: str, dtype: str) -> tuple[ModuleType, Path]:
    """A user's FILE.py, imported as the command line does it."""
    shape, body = MODELS[kind]
    path = folder / f"own_{kind}.py"
    lines = [HEAD.format(dtype=dtype, imports=MORE.get(kind, "")), "def define(trial):"]
    lines += ['    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)', *body.strip("\n").splitlines()]
    text = "\n".join(
        line.removeprefix("    ") if i > 1 and line.startswith(" " * 8) else line for i, line in enumerate(lines)
    )
    path.write_text(text + "\n" + DATA.format(shape=shape), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module, path


def tuned(module: ModuleType, **settings: Any) -> shoal.Study:
    train, valid, test = module.data()
    if module.__name__ == "own_named":
        train, valid, test = ({"a": x[:, :3], "b": x[:, 3:], "label": y} for x, y in (train, valid, test))
    settings = {"metric": "accuracy", "n_trials": 3, "max_epochs": 2, "scheduler": "none", **settings}
    if "folds" in settings:
        valid = None
    return shoal.tune(module.define, train=train, valid=valid, test=test, progress=False, reproducible=True, **settings)


CASES = [*((kind, "torch.float64") for kind in MODELS), ("mlp", "torch.float32")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[shoal.Study, Path, str]]:
    """Each case's study, exported folder, and what its script says in one interpreter of its own."""
    found = {}
    for kind, dtype in CASES:
        folder = tmp_path_factory.mktemp(f"{kind}_{dtype[-2:]}")
        module, _ = written(folder, kind, dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="trial . trains solo: LBFGS")
            study = tuned(module, **MORE_OF_TUNE.get(kind, {}))
        study.export(folder / "out")
        found[kind, dtype] = (study, folder / "out")
        torch.set_default_dtype(torch.float32)
    folders = [str(out) for _, out in found.values()]
    command = [sys.executable, "-I", "-W", "error", "-c", BLOCKED, *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    texts = re.split(r"^folder: .*$", done.stdout, flags=re.MULTILINE)[1:]
    return {case: (*there, text) for (case, there), text in zip(found.items(), texts, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_the_script_trains_the_winner_again_without_shoal(
    outcomes: dict[tuple[str, str], tuple[shoal.Study, Path, str]], kind: str, dtype: str
) -> None:
    study, folder, said = outcomes[kind, dtype]
    value = re.search(r"^(validation|test): accuracy (\S+); the search measured (\S+)$", said, re.MULTILINE)
    test = re.search(r"^test: loss (\S+), accuracy (\S+)$", said, re.MULTILINE)
    assert value is not None and test is not None
    # With folds or seeds the value is a mean, and what is compared is the winner's own model.
    own = {"folds": study.test_metrics["accuracy"], "seeds": _rows_of(study).lanes[:1]}.get(kind, study.best_value)
    assert value[2] == value[3] and float(value[2]) in (own if isinstance(own, tuple) else (own,))
    assert value[1] == ("test" if kind == "folds" else "validation")
    assert float(test[2]) == study.test_metrics["accuracy"]
    close = 1e-9 if dtype == "torch.float64" else 1e-4
    assert float(test[1]) == pytest.approx(study.test_metrics["loss"], rel=close)
    again = torch.load(folder / "trained.pt", weights_only=True)
    for name, tensor in load_file(folder / "winner.safetensors").items():
        if name.startswith("prepare."):
            continue
        torch.testing.assert_close(again[name], tensor, rtol=close, atol=close)
    code = (folder / f"own_{kind}.py").read_text(encoding="utf-8")
    assert "def define" in code and "def data" not in code and "no/such/file" not in code


def _rows_of(study: shoal.Study) -> Any:
    best = study.best_trial
    return next(row for row in best.rows if row.epoch == best.epoch)


def test_what_was_learnt_to_prepare_inputs_comes_with_the_weights(
    outcomes: dict[tuple[str, str], tuple[shoal.Study, Path, str]],
) -> None:
    study, folder, _ = outcomes["folds", "torch.float64"]
    code = "import sys; sys.path.insert(0, '.'); from plain.prepared_state import load_preparation as load; import numpy as np; "
    code += "print(load('winner.safetensors').transform(np.arange(6.0)[None]).tolist())"
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == study.preparation.transform(torch.arange(6.0)[None].double().numpy()).tolist()


def test_weights_come_with_the_architecture(tmp_path: Path) -> None:
    module, _ = written(tmp_path, "mlp", "torch.float32")
    study = tuned(module)
    study.export(tmp_path / "out", formats="weights")
    with safe_open(tmp_path / "out" / "winner.safetensors", "pt") as file:
        facts = {name: json.loads(value) for name, value in file.metadata().items()}
    assert facts["params"] == study.best_params and facts["trial"] == study.best_trial.spec.number
    assert facts["architecture"][1]["settings"] == "in_features=6, out_features=8, bias=True"
    assert facts["architecture"][1]["tensors"] == {"weight": [8, 6], "bias": [8]}
    model = study.best_model()
    model.load_state_dict(load_file(tmp_path / "out" / "winner.safetensors"))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.b(self.a(x))
        return out


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    _formats.save_weights(tmp_path / "w.safetensors", Tied(), {})
    assert "b.weight" not in load_file(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert json.loads(file.metadata()["tied"]) == {"b.weight": "a.weight"}


class Two(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1


@pytest.mark.slow
@pytest.mark.parametrize("save", [save_program, save_onnx])
def test_programs_give_what_the_model_gives_for_any_batch(
    tmp_path: Path, save: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    if save is save_onnx:
        pytest.importorskip("onnxscript")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)).eval()
    few, more = ((torch.randn(n, 1, 6, 6),) for n in (2, 5))
    assert save(tmp_path / "model", model, few, more) < 1e-5
    with pytest.raises(StudyError, match="only models with one tensor as output"):
        save(tmp_path / "two", Two(), few, more)
    with pytest.raises(StudyError, match="cannot take this model: "):
        save(tmp_path / "branch", Branch(), few, more)
    monkeypatch.setattr(_formats, "TOLERANCE", -1.0)
    with pytest.raises(StudyError, match="gives other outputs than the model"):
        save(tmp_path / "model", model, few, more)


def test_what_a_model_is_called_with() -> None:
    model = nn.Bilinear(2, 2, 1)

    def recipe(loss: Callable[..., torch.Tensor]) -> shoal.Recipe:
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=0.1), loss, 4)

    batch = (torch.zeros(3, 2), torch.ones(3, 2))
    came = inputs_of(recipe(lambda m, b: m(b[1], b[0]).mean()), batch)
    assert torch.equal(came[0], batch[1]) and torch.equal(came[1], batch[0])
    with pytest.raises(UsageError, match="called with tensors, and with no keywords"):
        inputs_of(recipe(lambda m, b: m(input1=b[0], input2=b[1]).mean()), batch)


# -- the user's own code --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("import csv, math\nx = 1\ndef f(): return math.pi + x", "import math\nx = 1\ndef f(): return math.pi + x"),
        ("T = {}\nT['a'] = 2\nU = {}\nU['b'] = 3\ndef f(): return T", "T = {}\nT['a'] = 2\ndef f(): return T"),
        ("import torch\ntorch.a(0)\nprint(torch)\ndef f(): torch", "import torch\ntorch.a(0)\ndef f(): torch"),
        (
            "import shoal\ns = shoal.tune(f)\nshoal.tune(f)\ndef f(): shoal.Recipe",
            "import shoal\ndef f(): shoal.Recipe",
        ),
        ("def g(): 1\n@g\ndef f(): 2\nif __name__ == '__main__': g()", "def g(): 1\n@g\ndef f(): 2"),
        ("try: import a as b\nexcept A: b = 0\ndef f(): b", "try: import a as b\nexcept A: b = 0\ndef f(): b"),
    ],
    ids=["imports", "changes", "statements", "searches", "main", "try"],
)
def test_only_what_define_needs_is_kept(text: str, kept: str) -> None:
    came = ast.Module(needed(ast.parse(text), {"f"}), [])
    assert ast.unparse(came) == ast.unparse(ast.parse(kept))


def test_numbers_of_every_kind_are_written() -> None:
    for value in (1, 1.5, True, None, "a'b", float("inf"), {"x": float("-inf")}):
        assert eval(literal(value)) == value


def test_modules_of_the_users_own_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .layers import width\n")
    (package / "layers.py").write_text("import own_numbers\nwidth = own_numbers.EIGHT\n")
    (tmp_path / "own_numbers.py").write_text("EIGHT = 8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(MORE, "mlp", "from own_package import width")
    monkeypatch.setitem(MODELS, "mlp", (MODELS["mlp"][0], MODELS["mlp"][1].replace("8", "width")))
    module, _ = written(tmp_path, "mlp", "torch.float32")
    exported = tuned(module, n_trials=1, max_epochs=1).export(tmp_path / "out", check=True)
    assert {"own_package/__init__.py", "own_package/layers.py", "own_numbers.py"} <= set(exported.files)
    assert exported.again is not None


# -- what is refused ------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    module, _ = written(tmp_path, "mlp", "torch.float32")
    study = tuned(module, n_trials=1, max_epochs=1)
    with pytest.raises(UsageError, match=r"no format 'weight'\. Did you mean 'weights'"):
        study.export(tmp_path / "out", formats=["weight"])
    with pytest.raises(UsageError, match="at least one format"):
        study.export(tmp_path / "out", formats=[])
    with pytest.raises(UsageError, match="check=True runs the exported script"):
        study.export(tmp_path / "out", formats=["weights"], check=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        study.export(tmp_path / "file")
    inner = shoal.tune(
        lambda trial: module.define(trial), train=module.data()[0], n_trials=1, max_epochs=1, progress=False
    )
    with pytest.raises(UsageError, match=r"must be a function at the top of a \.py file; got '.*lambda"):
        inner.export(tmp_path / "out")
    assert inner.export(tmp_path / "out", formats=["weights"]).files == ("winner.safetensors",)


def test_what_no_script_can_repeat_is_refused(tmp_path: Path) -> None:
    module, _ = written(tmp_path, "rates", "torch.float32")
    train = module.data()[0]
    study = shoal.tune(
        module.define, train=train, folds=2, n_trials=1, max_epochs=1, progress=False, reproducible=True, metric="loss"
    )
    with pytest.raises(UsageError, match="whose learning rate is learnt and which was judged by folds"):
        study.export(tmp_path / "out")
    assert study.export(tmp_path / "out", formats="weights").files == ("winner.safetensors",)
    recipe = study._trained(study.best_trial)
    moved = type("Moved", (Extension,), {})(step=0.1, bounds=(0.0, 1.0))
    object.__setattr__(recipe, "extensions", (moved,))
    with pytest.raises(UsageError, match=r"a recipe with extensions \(Moved\), which a table cannot repeat"):
        export(study.record, study.best_trial, module.define, recipe, recipe, study._prepared.whole, tmp_path)
    assert study.refit().n == 48 and study.ensemble(1).trials == (0,)


def test_models_that_are_called_by_name_have_a_script_and_no_program(tmp_path: Path) -> None:
    module, _ = written(tmp_path, "named", "torch.float32")
    study = tuned(module, n_trials=1, max_epochs=1)
    with pytest.raises(UsageError, match=r"with no keywords, can be exported.*called by the names a, b"):
        study.export(tmp_path / "out", formats=["pt2"])


class Own:
    def fit(self, x: Any) -> Own:
        return self

    def transform(self, x: Any) -> Any:
        return x


def test_an_object_of_ones_own_is_left_out_and_said(tmp_path: Path) -> None:
    module, _ = written(tmp_path, "mlp", "torch.float32")
    study = tuned(module, n_trials=1, max_epochs=1, prepare=Own())
    with pytest.warns(RuntimeWarning, match=r"goes without the preparation of its inputs: prepare\[0\] is a .*Own"):
        study.export(tmp_path / "out", formats="weights")


def test_a_script_that_fails_or_differs_is_told(tmp_path: Path) -> None:
    from shoal.export import _run

    (tmp_path / "train.py").write_text("raise ValueError('no')")
    with pytest.raises(StudyError, match=r"the exported script failed:\n(.|\n)*no"):
        _run(tmp_path, 1.0)
    (tmp_path / "train.py").write_text("print('validation: accuracy 0.5; the search measured 1.0')")
    with pytest.raises(StudyError, match=r"measured 0\.5, and the search 1"):
        _run(tmp_path, 1.0)
    assert _run(tmp_path, 0.5) == 0.5


def test_bfloat16_data_and_packages_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, path = written(tmp_path, "mlp", "torch.float32")
    study = tuned(module, n_trials=1, max_epochs=1)
    data = study._prepared.whole
    half = type(data.train)(tuple(t.bfloat16() for t in data.train.tensors))
    whole = type(data)(half, data.valid, data.test, "")
    recipe = study._again(study.best_trial.spec)
    with pytest.raises(UsageError, match="NumPy, which has no bfloat16"):
        export(study.record, study.best_trial, module.define, recipe, recipe, whole, tmp_path / "out")
    path.write_text("from . import other as lr\n" + path.read_text().replace("lr=lr", "lr=lr.x"))
    with pytest.raises(UsageError, match="is imported relative to it"):
        study.export(tmp_path / "out")


# -- the command line -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_exports_a_study_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "mlp", "torch.float32")
    tune = ["tune", "own_mlp.py", "--n-trials", "2", "--max-epochs", "1", "--quiet", "--reproducible"]
    assert main(tune) == 0
    capsys.readouterr()
    assert main(["export", "own_mlp.db", "own_mlp.py", "--format", "script", "--format", "pt2", "--check"]) == 0
    said = capsys.readouterr().out
    assert "own_mlp.export/train.py" in said and "check       train.py measures" in said and "pt2 " in said
    assert main(["export", "own_mlp.db", "own_mlp.py", "-o", "x", "--format", "weights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["winner.safetensors"]
    for arguments, message in (
        (["own_mlp.py", "own_mlp.db"], "name the study first"),
        (["own_mlp.db", "some.csv"], "shoal export takes FILE.py"),
        (["own_mlp.db", "own_mlp.py", "--format", "exe"], "no format 'exe'"),
        (["own_mlp.db", "changed.py"], "was made with other code: define"),
        (["own_mlp.db", "others.py"], "was made with other data: their fingerprint"),
    ):
        own = Path("own_mlp.py").read_text()
        Path("changed.py").write_text(own.replace("nn.Tanh", "nn.ReLU"))
        Path("others.py").write_text(own.replace("manual_seed(0)", "manual_seed(1)"))
        assert main(["export", *arguments]) in (1, 2)
        assert message in capsys.readouterr().err


def test_a_study_without_a_winner_has_nothing_to_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from shoal.storage import StudyStore

    written(tmp_path, "mlp", "torch.float32")
    with StudyStore.open(str(tmp_path / "s.db"), name="shoal", direction="maximize"):
        pass
    assert main(["export", str(tmp_path / "s.db"), str(tmp_path / "own_mlp.py")]) == 1
    assert "has finished yet" in capsys.readouterr().err
