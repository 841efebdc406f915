"""The user's own code that makes the winner: what ``define`` needs of its module, and the modules beside it.

A script that runs a search when it is imported, or reads data, must do neither on the way to a model. So the statements of its
top level are followed back from ``define`` by the names that they bind and read, and only those are kept.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shoal.errors import UsageError

# Names that the exported folder needs for itself.
_TAKEN: Final = {"train", "plain"}
# Parts of Shoal that a recipe may be made of; of the last, a script needs no more than the names.
STAND_INS: Final = {"extend"}
_PARTS: Final = {"nn", "transforms", "optim"} | STAND_INS
_PACKAGES: Final = tuple(Path(sysconfig.get_paths()[kind]) for kind in ("purelib", "platlib", "stdlib"))


@dataclass(slots=True)
class OwnCode:
    """What goes into an exported folder of the user's code.

    Attributes:
        module: The name that ``define`` is imported from.
        function: Its name there.
        files: Relative path -> text.
        parts: Which parts of Shoal the code uses besides ``Recipe``: "nn", "transforms", "optim", "extend".
    """

    module: str
    function: str
    files: dict[str, str] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)


def own_code(define: Any) -> OwnCode:
    """The code of a ``define``.

    Raises:
        UsageError: If it is no function at the top of a Python file.
    """
    name, module = getattr(define, "__name__", ""), sys.modules.get(getattr(define, "__module__", ""))
    nested = not inspect.isfunction(define) or define.__qualname__ != name or name == "<lambda>"
    path = _file_of(module)
    if nested or path is None or getattr(module, name, None) is not define:
        what = getattr(define, "__qualname__", type(define).__qualname__)
        raise UsageError(
            f"an exported script imports define() from a file, so it must be a function at the top of a .py file; got {what!r} of "
            f"{getattr(define, '__module__', None)!r}. Move it there, or export with format 'weights' alone."
        )
    text = path.read_text(encoding="utf-8")
    stem = path.stem if path.stem.isidentifier() and path.stem not in _TAKEN | sys.stdlib_module_names else "own_code"
    found = OwnCode(stem, name)
    tree = ast.parse(text)
    kept = needed(tree, {name})
    found.files[f"{stem}.py"] = _said(tree, text, kept)
    _follow(ast.Module(kept, []), found, path.parent)
    return found


def _said(tree: ast.Module, text: str, kept: list[ast.stmt]) -> str:
    """The kept statements as they stand in the file, comments above them included."""
    lines = text.splitlines(keepends=True)
    parts: list[str] = []
    for statement in kept:
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
        while first > 1 and lines[first - 2].startswith("#") and not lines[first - 2].startswith("#!"):
            first -= 1
        # Two statements on one line are written as Python itself writes them.
        shared = sum(s.lineno <= statement.lineno <= (s.end_lineno or s.lineno) for s in tree.body) > 1
        block = "".join(lines[first - 1 : statement.end_lineno])
        parts.append(ast.unparse(statement) + "\n" if shared else block.rstrip() + "\n")
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            parts[-1] = "\n\n" + parts[-1]
    return "".join(parts)


def needed(tree: ast.Module, wanted: set[str]) -> list[ast.stmt]:
    """The statements of a module that bind ``wanted`` and all that these need, in order.

    Statements that only run (``torch.set_default_dtype(...)``, ``TABLE["a"] = f``) are kept if all that they name is kept, or if
    they change something that is; what runs Shoal is not.

    >>> [ast.unparse(s) for s in needed(ast.parse("import os, re\\nN = 1\\nprint(N)\\ndef f():\\n  return N"), {"f"})]
    ['N = 1', 'def f():\\n    return N']
    """
    body = [s for s in tree.body if not _is_main(s) and not _is_docstring(s)]
    imports = {name for s in body if isinstance(s, ast.Import | ast.ImportFrom) for name in _binds(s)}
    ours = {
        alias.asname or alias.name
        for s in body
        if isinstance(s, ast.Import | ast.ImportFrom)
        for alias in s.names
        if (alias.name if isinstance(s, ast.Import) else s.module or "").split(".")[0] == "shoal"
    }
    runs = {id(s) for s in body if not _binds(s) or _changes(s)}
    kept: set[int] = set()
    names = set(wanted)
    grew = True
    while grew:
        grew = False
        for s in body:
            if id(s) in kept or _runs_shoal(s, ours):
                continue
            binds, reads = _binds(s), _reads(s)
            changed = _changes(s) - imports
            only_runs = id(s) in runs and not isinstance(s, ast.Import | ast.ImportFrom) and not _is_output(s)
            known = names | set(dir(builtins))
            if (binds & names) or (changed & names) or (only_runs and not binds and reads and reads <= known):
                kept.add(id(s))
                names |= reads | binds if not isinstance(s, ast.Import | ast.ImportFrom) else set()
                grew = True
            elif isinstance(s, ast.ImportFrom) and s.module == "__future__":
                kept.add(id(s))
    return [_only(s, names) for s in body if id(s) in kept]


def _only(statement: ast.stmt, names: set[str]) -> ast.stmt:
    """An import without the names that nothing needs."""
    if not isinstance(statement, ast.Import | ast.ImportFrom) or (
        isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    ):
        return statement
    used = [a for a in statement.names if (a.asname or a.name.split(".")[0]) in names or a.name == "*"]
    if len(used) == len(statement.names):
        return statement
    smaller: ast.stmt = (
        ast.Import(used)
        if isinstance(statement, ast.Import)
        else ast.ImportFrom(statement.module, used, statement.level)
    )
    return ast.copy_location(smaller, statement)


def _is_main(s: ast.stmt) -> bool:
    return isinstance(s, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(s.test))


def _is_docstring(s: ast.stmt) -> bool:
    return isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)


def _is_output(s: ast.stmt) -> bool:
    call = s.value if isinstance(s, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"


def _top(node: ast.AST) -> Iterator[ast.AST]:
    """A statement's nodes without those inside of functions and classes, which run later or bind names of their own."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield child
        else:
            yield from _top(child)


def _binds(s: ast.stmt) -> set[str]:
    """Names of the module that a statement gives a value."""
    if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {s.name}
    found: set[str] = set()
    for node in _top(s):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {a.asname or a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def _reads(s: ast.stmt) -> set[str]:
    """Names that a statement reads, now or, inside of functions, later."""
    return {n.id for n in ast.walk(s) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _changes(s: ast.stmt) -> set[str]:
    """Objects that a statement may change in place: ``T[i] = ...``, ``T.x = ...``, ``T.append(...)``."""
    found: set[str] = set()
    for node in () if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else _top(s):
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            at: ast.expr = node.value
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and not isinstance(node.value.func, ast.Name)
        ):
            at = node.value.func
        else:
            continue
        while isinstance(at, ast.Subscript | ast.Attribute):
            at = at.value
        if isinstance(at, ast.Name):
            found.add(at.id)
    return found


def _runs_shoal(s: ast.stmt, ours: set[str]) -> bool:
    """Whether a statement of the top level calls Shoal: a search, which is no part of the model."""
    if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
        return False
    calls = [n.func for n in _top(s) if isinstance(n, ast.Call)]
    for at in calls:
        depth: ast.expr = at
        path = []
        while isinstance(depth, ast.Attribute):
            path.append(depth.attr)
            depth = depth.value
        if isinstance(depth, ast.Name) and depth.id in ours and not _PARTS & {depth.id, *path}:
            return True
    return False


# --- modules of the user's own beside it ---------------------------------------------------------------------------------


def _file_of(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    path = Path(file).resolve() if isinstance(file, str) else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _follow(tree: ast.Module, found: OwnCode, folder: Path) -> None:
    """Note what of Shoal the code uses, and bring along the modules of the user's own that it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _import(alias.name, [], found, folder)
        elif isinstance(node, ast.ImportFrom):
            _import(node.module or "", [a.name for a in node.names], found, folder, node.level)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "shoal":
            found.parts |= {node.attr} & _PARTS


def _import(name: str, names: list[str], found: OwnCode, folder: Path, level: int = 0) -> None:
    top, _, rest = name.partition(".")
    if top == "shoal" and level == 0:
        found.parts |= {rest.split(".")[0], *names} & _PARTS
        return
    if level:
        raise UsageError(
            f"define() is in a package ({'.' * level}{name} is imported relative to it), and an exported folder has none; put "
            "define() and what it needs into modules that import each other by name."
        )
    path = _file_of(sys.modules.get(top))
    if path is None or _is_installed(path) or not top:
        return
    if path.name == "__init__.py":
        root = path.parent
        for file in sorted(root.rglob("*.py")):
            _take(str(Path(top) / file.relative_to(root)), file, found)
    else:
        _take(f"{top}.py", path, found)


def _take(place: str, path: Path, found: OwnCode) -> None:
    if place not in found.files:
        found.files[place] = text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if "/" in place:  # relative imports stay inside of the package
            tree.body = [s for s in tree.body if not (isinstance(s, ast.ImportFrom) and s.level)]
        _follow(tree, found, path.parent)


def _is_installed(path: Path) -> bool:
    packaged = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(packaged) or any(path.is_relative_to(folder) for folder in _PACKAGES)
