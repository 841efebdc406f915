"""Tables and one figure out of the results of ``compare.py``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compare import DEFAULT, METHODS, Result
from statistic import half_width, interval, worse


def _of(results: Sequence[Result], task: str, method: str) -> list[Result]:
    return sorted((r for r in results if r.task == task and r.method == method), key=lambda r: r.seed)


def table(results: Sequence[Result], tasks: Sequence[str]) -> None:
    """Print the best validation loss after the epochs that the default spent, which differ a little by seed."""
    for task in tasks:
        mine = _of(results, task, DEFAULT)
        if len(mine) < 2:
            continue
        spent = statistics.fmean(r.epochs for r in mine)
        print(f"\n{task}: {len(mine)} seeds, {mine[0].trials} trials of the default, {spent:.0f} epochs\n")
        print("| method | at half of them | at equal epochs | less the default | the default is |")
        print("| --- | --- | --- | --- | --- |")
        base = [r.at(r.epochs) for r in mine]
        for method in METHODS:
            theirs = _of(results, task, method)
            if len(theirs) != len(mine):
                continue
            values = [r.at(m.epochs) for r, m in zip(theirs, mine, strict=True)]
            half = [r.at(m.epochs / 2) for r, m in zip(theirs, mine, strict=True)]
            cells = [interval(half), interval(values), "", ""]
            if method != DEFAULT:
                cells[2] = interval([v - b for v, b in zip(values, base, strict=True)], sign="+")
                cells[3] = "worse" if worse(base, values) else "better" if worse(values, base) else "not different"
            print(f"| {method} | {' | '.join(cells)} |")


def figure(results: Sequence[Result], tasks: Sequence[str], out: Path) -> None:
    """Draw the best validation loss against epochs spent: the mean over seeds, and its 95 % interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(1, len(tasks), figsize=(3.4 * len(tasks), 3.4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for k, method in enumerate(METHODS):
            found = _of(results, task, method)
            if len(found) < 2 or len(found) != len(_of(results, task, DEFAULT)):
                continue
            last = min(r.epochs for r in found)
            at = [n for n in range(30, last + 1, 10) if all(np.isfinite(r.at(n)) for r in found)]
            if not at:  # trials run side by side, and the first ones end late: only what the search came to
                ends_at, came_to = statistics.fmean(r.epochs for r in found), [r.at(r.epochs) for r in found]
                mean_, half_ = statistics.fmean(came_to), half_width(came_to)
                axis.errorbar([ends_at], [mean_], [half_], color=f"C{k}", label=method, marker="o", capsize=3)
                continue
            values = [[r.at(n) for r in found] for n in at]
            mean = np.array([statistics.fmean(v) for v in values])
            half = np.array([half_width(v) for v in values])
            axis.plot(at, mean, color=f"C{k}", label=method, linewidth=2 if method == DEFAULT else 1)
            axis.fill_between(at, mean - half, mean + half, color=f"C{k}", alpha=0.12, linewidth=0)
        ends = [min(r.at(r.epochs) for r in _of(results, task, m)) for m in METHODS if _of(results, task, m)]
        starts = [
            statistics.fmean(r.at(r.epochs / 4) for r in found) for m in METHODS if (found := _of(results, task, m))
        ]
        axis.set_ylim(0.97 * min(ends), max((s for s in starts if np.isfinite(s)), default=1.0))
        axis.set_title(task)
        axis.set_xlabel("epochs spent")
    axes[0][0].set_ylabel("best validation loss")
    axes[0][0].legend(fontsize=6)
    picture.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(out, dpi=150)
