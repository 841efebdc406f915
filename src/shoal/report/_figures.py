"""The report's figures as PNG and SVG files, for papers and slides: drawn by matplotlib, which is imported only then.

Texts are the user's, so matplotlib's mathematics (``$...$``) is switched off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from shoal.errors import StorageError, UsageError
from shoal.records import StudyRecord
from shoal.report import _plots
from shoal.report._axes import View
from shoal.report._pareto import pareto
from shoal.stages import counted

Draw: TypeAlias = Callable[[Any, View], "bool | None"]
FIGURES: Final[Mapping[str, tuple[Draw, tuple[float, float]]]] = {
    "curves": (_plots.curves, (7.2, 4.0)),
    "history": (_plots.history, (7.2, 3.4)),
    "pareto": (pareto, (5.6, 3.6)),
    "importances": (_plots.importances, (6.0, 3.2)),
    "choices": (_plots.choices, (7.2, 3.0)),
    "slices": (_plots.slices, (7.2, 3.0)),
    "trajectories": (_plots.trajectories, (7.2, 3.4)),
    "contour": (_plots.contour, (5.2, 4.2)),
    "parallel": (_plots.parallel, (8.4, 4.0)),
    "confusion": (_plots.confusion, (5.2, 4.8)),
    "residuals": (_plots.residuals, (7.6, 3.4)),
    "lanes": (_plots.lanes, (7.2, 4.2)),
}
STYLE: Final[Any] = {
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e6ea",
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    # Without a salt and a date of its own, the same study gives the same file.
    "svg.hashsalt": "shoal",
    "figure.constrained_layout.use": True,
}


def write_figures(
    record: StudyRecord, folder: str | Path, importances: Mapping[str, float] | None = None
) -> list[Path]:
    """Write every figure that the study has something for, as PNG and as SVG.

    Args:
        record: The study.
        folder: Where to; it is made if it is missing, and files of the same names are replaced.
        importances: Parameter name -> share, as from `shoal.importances`.

    Returns:
        The files that were written, two per figure.

    Raises:
        UsageError: matplotlib is not installed.
        StorageError: The folder cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("figures are drawn by matplotlib: run `pip install matplotlib`.") from error
    folder = Path(folder)
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        for name, (draw, size) in counted(FIGURES.items(), "drawing figures", len(FIGURES)):
            figure = Figure(figsize=size)
            if draw(figure, View(record, importances or {})) is False:
                continue
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for kind, settings in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
                    figure.savefig(folder / f"{name}.{kind}", **settings)
                    written.append(folder / f"{name}.{kind}")
            except OSError as error:
                raise StorageError(
                    f"figures cannot be written to {str(folder)!r}: {error.strerror or error}. Give a path to a folder."
                ) from error
    return written
