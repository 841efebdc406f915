"""How Sphinx makes the site out of the pages: ``make docs``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import shoal  # noqa: E402
from shoal.cli import build_parser  # noqa: E402

project = "Shoal"
author = "the authors of Shoal"
release = version = shoal.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"Shoal {release}"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
for _name in shoal.__all__:  # they load on first use, and autodoc looks at what is there
    getattr(shoal, _name)

# Pages that lie elsewhere in the repository, because people look for them there.
ELSEWHERE = {
    "reference/changelog": ROOT / "CHANGELOG.md",
    "reference/contributing": ROOT / "CONTRIBUTING.md",
    "reference/measuring": ROOT / "benchmarks" / "README.md",
}


def commands() -> str:
    """The help texts of all commands, as Markdown."""
    parser = build_parser()
    found = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    os.environ["COLUMNS"] = "100"  # argparse breaks lines by it
    helps = {"shoal": parser, **{f"shoal {name}": command for name, command in found.choices.items()}}
    return "\n".join(f"## {name}\n\n```text\n{one.format_help()}```\n" for name, one in helps.items())


def read(app: Any, docname: str, source: list[str]) -> None:
    """Fill in what is generated, and let links between pages of the repository lead to pages of the site."""
    here = ELSEWHERE.get(docname)
    if here is not None:
        source[0] = here.read_text(encoding="utf-8")
    if docname == "index":  # a page that is not placed yet is a how-to
        listed = set(source[0].split())
        others = sorted({file.stem for file in Path(app.srcdir).glob("*.md")} - listed - {"index"})
        source[0] = source[0].replace("recipes/index\n", "\n".join(["recipes/index", *others]) + "\n")
    if docname == "reference/cli":
        source[0] += "\n" + commands()
    page = Path(app.srcdir) / f"{docname}.md"
    base = (here or page).parent

    def moved(match: re.Match[str]) -> str:
        target, anchor = (base / match[1]).resolve(), match[2] or ""
        for name, file in {**ELSEWHERE, "index": ROOT / "README.md"}.items():
            if target == file:
                target = Path(app.srcdir) / f"{name}.md"
        return f"]({os.path.relpath(target, page.parent)}{anchor})"

    source[0] = re.sub(r"\]\((?!\w+:)([^)#\s]+)(#[\w-]+)?\)", moved, source[0])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", read)
