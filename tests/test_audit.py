"""The audit of dependencies: a finding ends CI, and where nobody answers, that is what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import audit

# Stands in for pip-audit: what it says of a requirement is in a file beside it.
STAND_IN = """
import json, pathlib, sys
words = dict(zip(sys.argv[1::1], sys.argv[2::1]))
said = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())
if said is None:
    sys.exit("ERROR: could not connect to the vulnerability feed")
pins = pathlib.Path(words["--requirement"]).read_text().split()
found = [{"name": pin.split("==")[0], "version": pin.split("==")[1], **said.get(pin, {"vulns": []})} for pin in pins]
pathlib.Path(words["--output"]).write_text(json.dumps({"dependencies": found}))
sys.exit(any(p.get("vulns") for p in found))
"""
BAD = {"vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3.1.6"]}]}


def run(folder: Path, said: Any, pins: str = "good==1.0\nalso==2.0\n") -> int:
    program, requirements = folder / "pip_audit.py", folder / "pins.txt"
    program.write_text(STAND_IN, encoding="utf-8")
    program.with_suffix(".json").write_text(json.dumps(said), encoding="utf-8")
    requirements.write_text(pins, encoding="utf-8")
    return audit.main([sys.executable, str(program)], requirements)


CASES: dict[str, tuple[Any, str | None, int, str]] = {
    "nothing known": ({audit.KNOWN: BAD}, None, 0, "2 pinned packages audited, 0 known vulnerabilities"),
    "a finding": (
        {audit.KNOWN: BAD, "good==1.0": BAD},
        None,
        1,
        "vulnerable: good 1.0: PYSEC-1 CVE-1, mended in 3.1.6",
    ),
    "nobody answers": (None, None, 0, "NOT AUDITED: ERROR: could not connect to the vulnerability feed"),
    "nobody answers, but must": (None, "required", 1, "NOT AUDITED"),
    "no advisories": ({}, None, 0, f"NOT AUDITED: the service that answers knows nothing against {audit.KNOWN}"),
    "one unknown": ({audit.KNOWN: BAD, "also==2.0": {"skip_reason": "?"}}, None, 0, "unknown there: also"),
    "one unknown, but must": (
        {audit.KNOWN: BAD, "also==2.0": {"skip_reason": "?"}},
        "required",
        1,
        "unknown there: also",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_it_says(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said, required, code, text = CASES[case]
    monkeypatch.setenv("SHOAL_AUDIT", required or "")
    assert run(tmp_path, said) == code
    out, err = capsys.readouterr()
    assert text in out + err
    assert ("packages audited" in out) == ("NOT AUDITED" not in err)


def test_without_pip_audit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SHOAL_AUDIT", "")
    assert audit.main(["no-such-program"]) == 0
    assert "NOT AUDITED: no-such-program is not installed" in capsys.readouterr().err


def test_what_is_audited_is_what_is_installed() -> None:
    pins = [line.split("==") for line in audit.PINS.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert all(len(pin) == 2 and all(pin) for pin in pins)
    assert {"torch", "optuna", "sqlalchemy", "safetensors"} <= {name.lower() for name, _ in pins}
