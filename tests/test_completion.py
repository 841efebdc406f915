"""Completion: what a shell offers is what the parser takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shoal._completion import SHELLS
from shoal.cli import main


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "shoal.bash"
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["shoal", "wat"], {"watch"}),
        (["shoal", "tune", "--max"], {"--max-epochs", "--max-total-epochs"}),
        (["shoal", "tune", "--direction", "m"], {"minimize", "maximize"}),
        (["shoal", "completion", "z"], {"zsh"}),
        (["shoal", "report", "dig"], {"digits.db", "digits.py"}),
        (["shoal", "report", "x.db", "--figures", "fol"], {"folder"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_bash_offers_what_fits(script: Path, tmp_path: Path, words: list[str], expected: set[str]) -> None:
    (tmp_path / "digits.db").touch()
    (tmp_path / "digits.py").touch()
    (tmp_path / "folder").mkdir()
    quoted = " ".join(words)
    code = f"""
        compopt() {{ :; }}
        source {script}
        COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
        _shtab_shoal shoal
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    out = subprocess.run(["bash", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert {line.strip().rstrip("/") for line in out.stdout.splitlines()} == expected, out.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "resume" in capsys.readouterr().out


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "invalid choice: 'fish'" in capsys.readouterr().err


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "run `pip install shtab`" in capsys.readouterr().err
