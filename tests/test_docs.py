"""What the documentation says is true: code runs, commands parse, links lead somewhere, nothing public is left out."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from shoal import explain
from shoal.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "reference"
)
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
README = TEXT[ROOT / "README.md"]
EVERYTHING = "\n".join(TEXT.values())
ids = [page.name for page in PAGES]
INDEX = ROOT / "docs" / "recipes" / "index.md"
# Packages that are not for users; of the last three, what is public is a name of ``shoal``.
INTERNAL = {"export", "keyed", "lanes", "folders", "study_file", "tabular"}
PACKAGES = {p.parent.name for p in (ROOT / "src" / "shoal").glob("[a-z]*/__init__.py")}
SUBMODULES = [f"shoal.{name}" for name in sorted((PACKAGES - INTERNAL) | {"records", "transforms"})]


def public_names(module: str) -> list[str]:
    """What a module offers: what it lists, or else what it defines."""
    one = importlib.import_module(module)
    defined = (n for n, v in vars(one).items() if getattr(v, "__module__", "") == module and n[:1] != "_")
    return list(getattr(one, "__all__", defined))


def is_documentable(one: object) -> bool:
    """Whether it can have a docstring, which a constant and an alias of a type have not."""
    return inspect.isclass(one) or inspect.isroutine(one)


PUBLIC = [(module, name) for module in SUBMODULES for name in public_names(module)]


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser."""
    actions = build_parser()._actions
    return dict(next(a for a in actions if isinstance(a, argparse._SubParsersAction)).choices)


COMMANDS = parsers()


def options(parser: argparse.ArgumentParser) -> set[str]:
    """All spellings of a parser's options, but for those of ``--help``."""
    return {word for action in parser._actions for word in action.option_strings} - {"-h", "--help"}


@pytest.mark.slow
@pytest.mark.timeout(660)
def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    script = tmp_path / "readme_blocks.py"
    script.write_text("\n\n".join(blocks(README, "python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,  # seconds alone, minutes on a machine that is busy
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Another machine may find other numbers; what they are numbers of may not change.
    (shown,) = blocks(README, "text")
    for ours, theirs in zip(shown.splitlines(), done.stdout.splitlines(), strict=False):
        assert re.findall(r"'(\w+)':", ours) == re.findall(r"'(\w+)':", theirs)
    assert (tmp_path / "digits.db").is_file() and (tmp_path / "digits.html").is_file()


def test_the_first_screen_is_short() -> None:
    first = blocks(README, "python")[0].strip().splitlines()
    assert len([line for line in first if line]) <= 14
    assert README.index("```python") < 300 and README.index("![") < README.index("## ")


def test_loading_the_weights_takes_three_lines_and_no_shoal() -> None:
    (snippet,) = [block for block in blocks(README, "python") if "load_file" in block]
    assert len([line for line in snippet.splitlines() if line]) == 3
    assert "shoal" not in snippet


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_that_are_shown_exist(page: Path) -> None:
    parser = build_parser()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in "\n".join(blocks(TEXT[page], "sh")).splitlines():
        for command in line.split("#")[0].split("&&"):
            words = shlex.split(command)
            if words[:1] == ["shoal"]:
                parser.parse_args(words[1:])  # exits with a message, and so fails, when it does not parse
            if words[:1] == ["make"]:
                assert set(words[1:]) <= targets, line
    for target in re.findall(r"`make ([a-z]+)`", TEXT[page]):
        assert target in targets, target
    for command in re.findall(r"`shoal ([a-z]+)", TEXT[page]):
        assert command in COMMANDS, command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    reference = TEXT[ROOT / "docs" / "command_line.md"]
    section = re.search(rf"^## `shoal {name} (.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL)
    assert section, f"docs/command_line.md has no section for `shoal {name}`"
    for option in options(COMMANDS[name]):
        assert re.search(rf"`{option}[\s`]", section[0]), f"{option} of `shoal {name}` is documented nowhere"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_option_is_documented_that_does_not_exist(page: Path) -> None:
    known = {"--help", "--version"}.union(*map(options, COMMANDS.values()))
    for option in re.findall(r"`(?:shoal [^`]*)?(--[a-z-]+)", TEXT[page]):
        assert option in known, option


@pytest.mark.parametrize("name", sorted(set(shoal.__all__) - {"__version__"}))
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"\b{name}\b", README + TEXT[ROOT / "docs" / "python.md"]), f"shoal.{name} is documented nowhere"
    assert inspect.getdoc(getattr(shoal, name)), f"shoal.{name} has no docstring"


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda one: str(one).removeprefix("shoal."))
def test_every_public_name_of_a_submodule_is_documented(module: str, name: str) -> None:
    told = "\n".join(text for page, text in TEXT.items() if page.name not in ("architecture.md", "CHANGELOG.md"))
    assert re.search(rf"`[^`\n]*\b{name}\b|^.*\.{name}\b", told, re.MULTILINE), f"{module}.{name} is documented nowhere"
    if is_documentable(one := getattr(importlib.import_module(module), name)):
        assert inspect.getdoc(one), f"{module}.{name} has no docstring"


def test_the_scheduler_of_your_own_does_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in blocks(TEXT[ROOT / "docs" / "search.md"], "python") if "class Worst" in block]
    exec(compile(code, "search.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out in blocks(TEXT[ROOT / "docs" / "search.md"], "text")


def test_every_keyword_of_tune_and_recipe_is_documented() -> None:
    reference = TEXT[ROOT / "docs" / "python.md"]
    for function in (shoal.tune, shoal.resume, shoal.Recipe, explain):
        for keyword in inspect.signature(function).parameters:
            assert f"`{keyword}`" in reference, f"{keyword} of {function.__name__} is not in docs/python.md"
    for name, member in vars(shoal.Study).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, property)):
            assert re.search(rf"`{name}[`(]", reference), f"Study.{name} is not in docs/python.md"


def test_every_keyword_of_tune_has_its_key_in_a_study_file_and_the_reverse() -> None:
    from shoal.study_file._keys import FREE, KEYS  # add a line to that table for a new keyword

    functions = (shoal.tune, shoal.tune_table, shoal.tune_folder)
    keywords = {name for function in functions for name in inspect.signature(function).parameters}
    # The further ones of `tune`; what only `code` can bring; what `file` is, as `data`; objects.
    keywords -= {"options", "train", "groups", "prepare", "path", "loggers"}
    assert keywords == {key.keyword for key in KEYS} | {keyword for _, keyword in FREE.values()}
    page = TEXT[ROOT / "docs" / "study_file.md"]
    for name in {key.name for key in KEYS} | set(FREE):
        assert re.search(rf"`\[*{name}[`\]]", page), f"{name} is not in docs/study_file.md"


def test_the_map_has_every_module_and_no_other() -> None:
    source = ROOT / "src" / "shoal"
    text = TEXT[ROOT / "docs" / "architecture.md"]
    table = text[text.index("## Files") : text.index("## Dependencies")]
    mapped = set(re.findall(r"`([\w/]+\.py)`", table))
    assert mapped == {str(path.relative_to(source).as_posix()) for path in source.rglob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_what_is_named_and_linked_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", TEXT[page]):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:tests|examples|benchmarks|docs)/[\w./]+\.\w+)`", TEXT[page]):
        assert (ROOT / name).is_file(), name


def test_every_page_can_be_reached_from_the_readme() -> None:
    for page in PAGES:
        if page.parent == INDEX.parent and page != INDEX:
            assert f"]({page.name})" in TEXT[INDEX], page
        else:
            assert page.name == "README.md" or f"{page.relative_to(ROOT).as_posix()}" in README, page


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "images").iterdir()), ids=lambda path: path.name)
def test_pictures_are_small_and_shown(path: Path) -> None:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) < 300_000
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 800 and height >= 400
    assert path.name in EVERYTHING


def test_the_version_is_in_the_changelog() -> None:
    assert f"## {shoal.__version__}" in TEXT[ROOT / "CHANGELOG.md"]


def test_public_names_do_not_depend_on_the_order_of_their_use() -> None:
    code = "from shoal import Explanation, explain; raise SystemExit(not callable(explain))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
