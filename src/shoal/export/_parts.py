"""Parts of Shoal that are plain PyTorch, to lie beside a script as a small package of its own: ``plain``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SHOAL: Final = Path(__file__).resolve().parent.parent
_ABOUT: Final = '"""Parts of Shoal (Apache-2.0) that are plain PyTorch, as they were when this was exported."""\n'


def plain_parts(names: Iterable[str]) -> dict[str, str]:
    """The text of modules of Shoal and of those that they import: relative path -> text.

    Args:
        names: "keyed", "nn", "transforms", "metrics".
    """
    out = {"plain/__init__.py": _ABOUT}
    waiting, done = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        path = _SHOAL / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            text = file.read_text(encoding="utf-8")
            ours = re.sub(r"^(\s*)(from|import) shoal\b", r"\1\2 plain", text, flags=re.MULTILINE)
            out[f"plain/{file.relative_to(_SHOAL).as_posix()}"] = ours
            waiting += _imported(ast.parse(text))
    return out


def _imported(tree: ast.Module) -> list[str]:
    """The parts of Shoal that a module imports, by the first word of their name."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            top, _, rest = node.module.partition(".")
            if top == "shoal":
                found += [rest.split(".")[0]] if rest else [alias.name for alias in node.names]
    return found
