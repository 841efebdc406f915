"""Completion: what a shell offers is what the parser takes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shoal._completion import SHELLS
from shoal.cli import main

OFFERED = pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("shoal wat", {"watch"}),
        ("shoal tune --max", {"--max-epochs", "--max-total-epochs"}),
        ("shoal tune --direction m", {"minimize", "maximize"}),
        ("shoal completion z", {"zsh"}),
        ("shoal report dig", {"digits.db", "digits.py"}),
        ("shoal report x.db --figures fol", {"folder"}),
    ],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "digits.db").touch()
    (tmp_path / "digits.py").touch()
    (tmp_path / "folder").mkdir()
    return tmp_path


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def offered(words: list[str], folder: Path) -> set[str]:
    out = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True)
    return {line.split("\t")[0].strip().rstrip("/") for line in out.stdout.splitlines()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@OFFERED
def test_bash_offers_what_fits(folder: Path, capsys: pytest.CaptureFixture[str], line: str, expected: set[str]) -> None:
    code = f"""
        compopt() {{ :; }}
        {script("bash", capsys)}
        COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}
        _shtab_shoal shoal
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert offered(["bash", "-c", code], folder) == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@OFFERED
def test_fish_offers_what_fits(folder: Path, capsys: pytest.CaptureFixture[str], line: str, expected: set[str]) -> None:
    code = f"{script('fish', capsys)}\ncomplete -C '{line}'"
    assert offered(["fish", "--no-config", "-c", code], folder) == expected


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_its_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "_shoal").write_text(script("zsh", capsys))
    code = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D; echo $_comps[shoal]; autoload +X _shoal"
    assert offered(["zsh", "-f", "-c", code], tmp_path) == {"_shoal"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "resume" in capsys.readouterr().out


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "nu"]) == 2
    assert "invalid choice: 'nu'" in capsys.readouterr().err


def test_without_shtab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "run `pip install shtab`" in capsys.readouterr().err
