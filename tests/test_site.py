"""The documentation as a site: it builds without a warning, with every public name and every command in its reference."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from test_docs import COMMANDS, PUBLIC, ROOT, is_documentable, options

pytest.importorskip("sphinx")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(folder / "state"),
        str(ROOT / "docs"),
        str(folder / "html"),
    ]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    found = {name: getattr(shoal, name) for name in shoal.__all__}
    names = [f"shoal.{name}" for name, one in found.items() if callable(one)]
    assert all(f'id="module-shoal.{name}"' in page for name, one in found.items() if inspect.ismodule(one))
    own = [(module, name) for module, name in PUBLIC if not hasattr(shoal, name)]
    names += [f"{m}.{n}" for m, n in own if is_documentable(getattr(importlib.import_module(m), n))]
    assert [name for name in names if f'id="{name}"' not in page] == []


@pytest.mark.slow
def test_the_reference_has_every_command_and_option(site: Path) -> None:
    page = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for name, parser in COMMANDS.items():
        assert f"usage: shoal {name}" in page.replace("</span>", "").replace("<span>", ""), name
        assert all(option in page for option in options(parser))


@pytest.mark.slow
def test_links_between_pages_of_the_repository_stay_within_the_site(site: Path) -> None:
    assert 'href="reference/measuring.html"' in (site / "benchmarks.html").read_text(encoding="utf-8")
    assert 'href="../architecture.html"' in (site / "reference" / "contributing.html").read_text(encoding="utf-8")
