"""Small tables for the tests of data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def people(n: int = 120, seed: int = 0) -> dict[str, list[str]]:
    """Columns of every kind as CSV cells; ``bought`` follows from age and city, ``spent`` from age."""
    rng = np.random.default_rng(seed)
    age, city = rng.integers(18, 80, n), rng.choice(["Rome", "Oslo", "Lima"], n)
    days = rng.integers(0, 900, n)
    bought = (age + 20 * (city == "Rome") + rng.normal(0, 5, n)) > 55
    gaps = rng.random(n) < 0.1
    return {
        "id": [str(i + 1) for i in range(n)],
        "name": [f"person {i} {seed}" for i in range(n)],
        "age": ["" if gap else str(a) for a, gap in zip(age, gaps, strict=True)],
        "city": [str(c) for c in city],
        "income": [f"{x:.2f}" for x in rng.lognormal(10, 2, n)],
        "joined": [str(np.datetime64("2020-01-01") + np.timedelta64(int(d), "D")) for d in days],
        "household": [str(h) for h in rng.integers(0, 12, n)],
        "spent": [f"{a * 3 + e:.3f}" for a, e in zip(age, rng.normal(0, 4, n), strict=True)],
        "bought": ["yes" if b else "no" for b in bought],
    }


def as_csv(columns: dict[str, list[str]], separator: str = ",") -> str:
    """The columns as the text of a CSV file."""
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(separator.join(row) for row in rows) + "\n"


def write_people(path: Path, **settings: Any) -> Path:
    """`people` as a file."""
    path.write_text(as_csv(people(**settings)), encoding="utf-8")
    return path
