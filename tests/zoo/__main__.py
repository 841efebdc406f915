"""Trains the whole zoo both ways and writes ``docs/zoo.md``: ``python -m zoo``, run in ``tests``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from zoo import ARCHITECTURES, LAYERS
from zoo.check import Verdict, check
from zoo.entry import Entry

_PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


def table(entries: tuple[Entry, ...]) -> tuple[list[str], int]:
    """(Markdown rows, how many fuse)."""
    rows, fused = ["| model | trains | gradients | trajectory | why not fused |", "| --- | --- | --- | --- | --- |"], 0
    for entry in entries:
        verdict = check(entry)
        fused += verdict.fused
        rows.append(_row(entry, verdict))
        print(rows[-1], file=sys.stderr)
    return rows, fused


def _row(entry: Entry, v: Verdict) -> str:
    reason = v.reason.replace("|", "\\|")
    gradients = f"{v.gradients:.0e}" if v.fused else ""
    return f"| {entry.name} | {'fused' if v.fused else 'solo'} | {gradients} | {v.trajectory:.0e} | {reason} |"


def main() -> None:
    """Write the page."""
    architectures, n_architectures = table(ARCHITECTURES)
    layers, n_layers = table(LAYERS)
    text = f"""# The zoo

Models written the way people write them, each trained twice: in lanes, as the planner would, and alone in the plain
loop. The code is in `tests/zoo`; `tests/test_zoo.py` checks every row, and `python -m zoo`, run in `tests`, writes this
page. Fused: {n_architectures} of {len(ARCHITECTURES)} architectures and {n_layers} of {len(LAYERS)} kinds of layers.

Two trials of each model, with hyperparameters drawn at random, train for two epochs in float64 (torch
{torch.__version__.split("+")[0]}, CPU). *Gradients* is the largest deviation of a lane's first gradients from those of
the plain loop, relative to the scale of that tensor's gradient; the scale of a gradient that is nothing but rounding (a
bias before a norm) is floored at a ten thousandth of the model's largest. *Trajectory* is the largest deviation of
losses, parameters and buffers after each epoch, relative to their size or to 1.

## Architectures

{chr(10).join(architectures)}

## Kinds of layers

{chr(10).join(layers)}
"""
    _PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
