"""The recipes of the documentation: their code runs, prints what the pages say, and draws the pictures that they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recipes import FOLDER, PAGES, RECIPES, blocks, run

INDEX = (FOLDER / "index.md").read_text(encoding="utf-8")


def words(text: str) -> list[str]:
    """What a machine of another kind prints as well: everything but numbers, signatures, devices, and who came first."""
    return re.findall(r"[^\W\d]{2,}", re.sub(r"\[[0-9a-f]{16}\]|\bcpu\b|\bcuda\b", "", text))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*trains solo:RuntimeWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_recipe_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    for block, printed in zip(blocks(page.read_text(encoding="utf-8")), run(page, tmp_path), strict=True):
        assert sorted(words(printed)) == sorted(words(block.output)), block.code
    assert {p.name for p in tmp_path.glob("*.png")} == {p.name for p in page.parent.glob(f"{page.stem}*.png")}


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_a_recipe_is_short_listed_and_shows_its_pictures(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert f"]({page.name})" in INDEX
    assert len(text.splitlines()) <= 180
    shown = set(re.findall(r"!\[[^\]]{10,}\]\(([\w.]+)\)", text))  # with words for those who cannot see it
    assert shown == {p.name for p in FOLDER.glob(f"{page.stem}*.png")} != set()
    for name in shown:
        picture = (FOLDER / name).read_bytes()
        assert picture.startswith(b"\x89PNG") and len(picture) < 120_000
