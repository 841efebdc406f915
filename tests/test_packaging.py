"""What is shipped: the wheel, the metadata, the pins, the cost of ``import shoal``, the examples and the baseline."""

from __future__ import annotations

import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import optuna
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from torch import Tensor

import shoal
from shoal.cli import main

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "shoal"
# Those that read an archive which the user has to fetch have tests of their own (test_cifar10.py, test_examples.py).
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.stem not in ("cifar10_cnn", "spam_gru"))
# What only torch's CUDA build brings; torch pins these itself.
PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The ``[project]`` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The wheel of this tree, built as ``pip`` would, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, text=True)
    (path,) = folder.glob("shoal-*.whl")
    return zipfile.Path(path)


def test_version_is_that_of_the_metadata() -> None:
    assert shoal.__version__ == importlib.metadata.version("shoal")


def test_command_line_entry_point() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="shoal")
    assert script.load() is main


def test_wheel_has_every_file_of_the_package(wheel: zipfile.Path) -> None:
    names = set(wheel.root.namelist())
    expected = {
        f"shoal/{path.relative_to(PACKAGE).as_posix()}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    # The parts that no import would miss.
    assert "shoal/py.typed" in names
    for suffix in (".html", ".css", ".js"):
        assert any(name.startswith("shoal/report/") and name.endswith(suffix) for name in names), suffix


def test_wheel_has_the_package_and_its_metadata_only(wheel: zipfile.Path) -> None:
    roots = {name.split("/")[0] for name in wheel.root.namelist()}
    info = f"shoal-{shoal.__version__}.dist-info"
    assert roots == {"shoal", info}
    assert (wheel / info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


NOT_INSTALLED = {"mlflow", "wandb"}  # by the Makefile: each brings dozens of packages; tested where they are at hand


def test_constraints_pin_everything_that_gets_installed(project: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    pinned = {canonicalize_name(pin.name) for pin in pins}

    seen: set[str] = set()
    waiting = [Requirement(line) for line in project["dependencies"]]
    extras_of = project["optional-dependencies"]
    waiting += [Requirement(line) for extra in set(extras_of) - NOT_INSTALLED for line in extras_of[extra]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if name in seen or name.startswith(PINNED_BY_TORCH):
            continue
        seen.add(name)
        for line in importlib.metadata.requires(name) or []:
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    assert seen - pinned == set()


def test_import_shoal_loads_nothing_that_it_may_not_need() -> None:
    code = "import sys, shoal; print(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(child.stdout.split())
    assert "shoal" in loaded
    assert loaded & {"optuna", "sqlalchemy", "alembic", "rich", "sklearn", "matplotlib", "pandas"} == set()


@pytest.mark.slow
def test_import_shoal_is_fast() -> None:
    benchmark = [sys.executable, str(ROOT / "benchmarks" / "import_time.py"), "--max-s", "0.3"]
    child = subprocess.run(benchmark, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_defines_what_the_command_line_reads(path: Path) -> None:
    names = runpy.run_path(str(path))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    recipe = names["define"](trial)
    assert isinstance(recipe, shoal.Recipe)
    assert {"metric", "n_trials", "max_epochs"} <= set(names["options"])

    parts = [tuple(part.values()) if isinstance(part, dict) else part for part in names["data"]()]
    splits: list[tuple[Tensor, ...]] = [(part,) if isinstance(part, Tensor) else part for part in parts]
    train = splits[0]
    inputs = train[0][: recipe.batch_size]
    output = recipe.model(inputs)
    if recipe.is_criterion:
        loss = recipe.loss(output, train[1][: recipe.batch_size])
    else:
        loss = recipe.loss(recipe.model, (inputs,))
    assert loss.isfinite() and loss.shape == ()
    # Images are as good as unique: a sample in two splits would show here.
    images = [{image.numpy().tobytes() for image in split[0]} for split in splits]
    assert [len(split[0]) for split in splits] == [len(part) for part in images]
    assert not (images[0] & images[1] or images[0] & images[2] or images[1] & images[2])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_fits_on_a_screen(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def test_example_and_baseline_search_the_same_space(tmp_path: Path) -> None:
    # In a process of its own: the baseline reads sys.argv and silences warnings and Optuna for good.
    code = """
import json, optuna, runpy, sys
sys.argv = ["optuna_digits.py", "tensor", "1", "1", "memory"]
trial = optuna.create_study(direction="maximize").ask()
runpy.run_path({script!r}, run_name="baseline")["objective"](trial)
space = trial.distributions
print(json.dumps([[name, optuna.distributions.distribution_to_json(d)] for name, d in space.items()]))
"""
    script = str(ROOT / "benchmarks" / "optuna_digits.py")
    line = [sys.executable, "-c", code.format(script=script)]
    child = subprocess.run(line, check=True, capture_output=True, text=True, cwd=tmp_path)
    trial = optuna.create_study().ask()
    runpy.run_path(str(ROOT / "examples" / "digits.py"))["define"](trial)
    # As lists: the order in which parameters are asked for is part of what a seeded sampler sees.
    space = trial.distributions.items()
    ours = [[name, optuna.distributions.distribution_to_json(distribution)] for name, distribution in space]
    assert json.loads(child.stdout.splitlines()[-1]) == ours
