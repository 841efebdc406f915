"""Known vulnerabilities of what is pinned, by pip-audit: ``make audit``. It tells "none are known" from "nobody answered".

The service is first asked for a version that is known to be vulnerable. Where it does not say so, because there is no network, or a
mirror of PyPI without advisories, nothing has been audited, and that is what is said. CI goes on then, unless SHOAL_AUDIT=required;
a finding ends it in any case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parents[1] / "constraints.txt"
# CVE-2019-10906 and others; in every database of advisories for years.
KNOWN = "jinja2==2.10"
TIMEOUT_S = 300


class NotAudited(Exception):
    """Nobody answered."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an audit says: vulnerable versions, as lines of text, and packages that it knows nothing about."""

    vulnerable: list[str]
    unknown: list[str]
    n_audited: int


def audited(command: list[str], requirements: Path) -> Found:
    """Ask pip-audit about pinned requirements.

    Raises:
        NotAudited: It could not be run, or says nothing that can be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "audit.json"
        words = ["--requirement", str(requirements), "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        words += ["--timeout", "10", "--format", "json", "--output", str(said)]
        try:
            done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            packages: list[dict[str, Any]] = json.loads(said.read_text(encoding="utf-8"))["dependencies"]
        except FileNotFoundError as error:
            lines = "" if Path(str(error.filename)) != said else done.stderr.strip().splitlines()[-1:]
            raise NotAudited(lines[0] if lines else f"{command[0]} is not installed") from error
        except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
            raise NotAudited(str(error)) from error
    vulnerable = [
        f"{p['name']} {p['version']}: {v['id']} {' '.join(v.get('aliases', ()))}, mended in "
        f"{', '.join(v.get('fix_versions', ())) or 'no version yet'}"
        for p in packages
        for v in p.get("vulns", ())
    ]
    unknown = [p["name"] for p in packages if "skip_reason" in p]
    return Found(vulnerable, unknown, len(packages) - len(unknown))


def main(command: list[str], pins: Path = PINS) -> int:
    """Audit, and say what came of it; the exit code."""
    required = os.environ.get("SHOAL_AUDIT") == "required"
    try:
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "known.txt"
            known.write_text(KNOWN + "\n", encoding="utf-8")
            if not audited(command, known).vulnerable:
                raise NotAudited(f"the service that answers knows nothing against {KNOWN}, so it has no advisories")
        found = audited(command, pins)
    except NotAudited as error:
        print(f"NOT AUDITED: {error}. Run 'make audit' where PyPI itself can be reached.", file=sys.stderr)
        return 1 if required else 0
    for line in found.vulnerable:
        print(f"vulnerable: {line}", file=sys.stderr)
    if found.unknown:
        print(f"not audited, since unknown there: {', '.join(found.unknown)}", file=sys.stderr)
    print(f"{found.n_audited} pinned packages audited, {len(found.vulnerable)} known vulnerabilities")
    return 1 if found.vulnerable or (required and found.unknown) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["pip-audit"]))
