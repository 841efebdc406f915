"""Runs the tutorial and the recipes of ``docs``, and writes their outputs and pictures: ``python -m recipes [NAME ...]``.

A page is Markdown. Its Python blocks share one namespace and run in order, in an empty folder; a ``text`` block right
after one is what it printed. A picture that a block saves belongs to the page and lies beside it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "recipes"
RECIPES = sorted(page for page in FOLDER.glob("*.md") if page.name != "index.md")
PAGES = [FOLDER.parent / "tutorial.md", *RECIPES]

_BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a page's code, and what the page says that it prints.

    Args:
        code: Python.
        output: "" if it prints nothing.
        line: Where in the page the code begins, from 0.
    """

    code: str
    output: str
    line: int


def blocks(text: str) -> list[Block]:
    """The Python blocks of a page."""
    return [
        Block(match["code"], match["output"] or "", text.count("\n", 0, match.start("code")))
        for match in _BLOCK.finditer(text)
    ]


def run(page: Path, folder: Path) -> list[str]:
    """Run a page's blocks in a folder; returns what each printed."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    # A module of its own, found under its name, as the code of a script is: a study reads the source of its define().
    module = types.ModuleType(f"recipe_{page.stem}")
    sys.modules[module.__name__] = module
    names: dict[str, Any] = module.__dict__
    printed, before, found = [], Path.cwd(), blocks(page.read_text(encoding="utf-8"))
    os.chdir(folder)
    try:
        with plt.rc_context({"figure.figsize": (9.0, 4.0), "figure.dpi": 100, "savefig.bbox": "tight"}):
            for block in found:
                out, source = (
                    io.StringIO(),
                    "\n" * block.line + block.code,
                )  # a traceback then names the page and its line
                with contextlib.redirect_stdout(out):
                    exec(compile(source, str(page), "exec"), names)
                printed.append(out.getvalue())
            plt.close("all")
    finally:
        os.chdir(before)
        del sys.modules[module.__name__]
    return printed


def write(page: Path) -> None:
    """Run a page, and put what it printed and drew into its place."""
    with tempfile.TemporaryDirectory() as folder:
        printed = iter(run(page, Path(folder)))
        for picture in Path(folder).glob("*.png"):
            shutil.copy(picture, page.with_name(picture.name))

    def filled(match: re.Match[str]) -> str:
        output = next(printed)
        return f"```python\n{match['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    page.write_text(_BLOCK.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """Write the pages named on the command line, or all."""
    wanted = sys.argv[1:]
    for page in PAGES:
        if not wanted or page.stem in wanted:
            print(page.stem, file=sys.stderr)
            write(page)


if __name__ == "__main__":
    main()
