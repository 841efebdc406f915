"""How the cost of a search grows: with trials, with trials that run at once, with samples, and with parameters.

Each series changes one of the four and leaves the others as they are: 256 trials of 2 epochs, as many at once as Shoal likes, on
1,000 samples of 64 numbers, an MLP 64-32-10 (2,410 parameters), batches of 32, Adam, random search, no study file. Everything from
the call of ``shoal.tune`` to its end counts, tracing and compiling included, so that the first points show what a search costs that
trains next to nothing. Prints a Markdown table per series; ``--figure`` draws the four side by side.

    python benchmarks/growth.py --figure docs/images/growth.png
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import torch
from torch import Tensor, nn

import shoal

BATCH, FEATURES, CLASSES = 32, 64, 10
# What is not varied.
TRIALS, EPOCHS, SAMPLES, HIDDEN = 256, 2, 1000, 32


def data(n: int) -> tuple[Tensor, Tensor]:
    """Samples (n, 64) and classes (n,) that a linear map gives."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, FEATURES, generator=generator)
    return x, (x @ torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(0))).argmax(1)


def parameters(hidden: int) -> int:
    """Of the MLP with so many hidden units."""
    return (FEATURES + 1) * hidden + (hidden + 1) * CLASSES


def wall_s(n_trials: int = TRIALS, samples: int = SAMPLES, hidden: int = HIDDEN, epochs: int = EPOCHS) -> float:
    """Seconds of one search."""

    def define(trial: optuna.Trial) -> shoal.Recipe:
        model = nn.Sequential(nn.Linear(FEATURES, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))
        optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True))
        return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=BATCH)

    splits = data(samples), data(200)
    start = time.perf_counter()
    shoal.tune(
        define,
        train=splits[0],
        valid=splits[1],
        n_trials=n_trials,
        max_epochs=epochs,
        sampler="random",
        scheduler="none",
        storage=None,
        progress=False,
        seed=0,
    )
    return time.perf_counter() - start


def lane_steps(n_trials: int = TRIALS, samples: int = SAMPLES, epochs: int = EPOCHS) -> int:
    """Batches that a search trains."""
    return n_trials * epochs * -(-samples // BATCH)


def series(quick: bool) -> list[tuple[str, list[tuple[int, float, float]]]]:
    """(name, [(what is varied, seconds, microseconds per batch of a trial)]), one after another."""
    far = 1 if quick else 0

    def measured(
        points: Sequence[int], run: Callable[[int], float], steps: Callable[[int], int]
    ) -> list[tuple[int, float, float]]:
        out = []
        for n in points[: len(points) - far]:
            seconds = run(n)
            out.append((n, seconds, 1e6 * seconds / steps(n)))
            print(f"  {n}: {seconds:.1f} s", flush=True)
        return out

    # A wider network where parameters are varied trains fewer trials, or the last points would take hours.
    wide = [14, 134, 1334, 13334, 133334]
    few = {14: 32, 134: 32, 1334: 32, 13334: 8, 133334: 2}
    return [
        ("trials", measured([10, 100, 1000, 10_000], lambda n: wall_s(n), lambda n: lane_steps(n))),
        (
            "trials at once",
            measured(
                [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024],
                lambda n: wall_s(n, epochs=20),
                lambda n: lane_steps(n, epochs=20),
            ),
        ),
        ("samples", measured([1000, 10_000, 100_000, 1_000_000], lambda n: wall_s(32, n), lambda n: lane_steps(32, n))),
        (
            "parameters",
            [
                (parameters(h), s, us)
                for h, s, us in measured(wide, lambda h: wall_s(few[h], hidden=h), lambda h: lane_steps(few[h]))
            ],
        ),
    ]


def draw(found: Sequence[tuple[str, Sequence[tuple[int, float, float]]]], path: Path) -> None:
    """Microseconds per batch of a trial, a plot for each series, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(14, 4.2), sharey=False, layout="constrained")
    for axis, (name, points) in zip(axes, found, strict=True):
        axis.loglog([n for n, _, _ in points], [us for _, _, us in points], marker="o")
        axis.set_xlabel(name)
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0].set_ylabel("microseconds per batch of a trial")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the series: .svg or .png")
    parser.add_argument("--quick", action="store_true", help="leave the last point of each series out")
    args = parser.parse_args()
    wall_s(8)  # imports, native kernels
    found = series(args.quick)
    for name, points in found:
        print(f"\n| {name} | seconds | us per batch of a trial |\n| --- | --- | --- |")
        for n, seconds, us in points:
            print(f"| {n:,} | {seconds:.2f} | {us:.1f} |")
    if args.figure is not None:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
