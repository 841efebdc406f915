"""Figures for papers: every one drawn, user texts left alone, the same file from the same study, clear errors."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from shoal.cli import main
from shoal.errors import StorageError, UsageError
from shoal.records import EpochRow, Event, Json, ParamValue, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.report import write_figures
from shoal.report._axes import View
from shoal.report._figures import FIGURES
from shoal.report._medians import median_curve, median_ranks
from shoal.report._plots import curves
from shoal.storage import StudyStore

HOSTILE = "$\\frac{1}{</svg>&$_^%"
FLOAT = json.dumps({"name": "FloatDistribution", "attributes": {"step": None, "low": 1e-4, "high": 1, "log": True}})
CHOICE = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": ["sgd", HOSTILE]}})
META: dict[str, Json] = {
    "metric": HOSTILE,
    "winner": {
        "trial": 0,
        "split": "test",
        "classes": {"matrix": [[3, 1], [0, 4]], "hits": [3, 4], "predicted": [3, 5], "support": [4, 4]},
        "residuals": {"range": [0.0, 1.0], "grid": [[1, 0], [2, 3]], "span": [-1.0, 1.0], "counts": [2, 4]},
    },
}


def study(n_trials: int = 30, meta: dict[str, Json] | None = None) -> StudyRecord:
    draw = random.Random(0)
    trials, events = [], []
    for i in range(n_trials):
        params: dict[str, ParamValue] = {"lr": 10 ** draw.uniform(-4, 0), HOSTILE: draw.choice(["sgd", HOSTILE])}
        params["decay"] = draw.uniform(1e-4, 1)
        state = (TrialState.FINISHED, TrialState.STOPPED, TrialState.FAILED, TrialState.RUNNING)[i % 4]
        rows = tuple(
            EpochRow(
                i, e, 1 / e, 1 - draw.random() / e, {"loss": 1 / e}, float(e), trajectories={HOSTILE: (1 / e, 0.02 / e)}
            )
            for e in range(1, 5 - i % 2)
        )
        if state is TrialState.FAILED:
            rows = ()
        value = rows[-1].value if rows else None
        spec = TrialSpec(i, i, params, {"lr": FLOAT, HOSTILE: CHOICE, "decay": FLOAT})
        trials.append(TrialRecord(spec, state, value, len(rows), "", rows, 2.0))
        events.append(Event(i, "admitted", i, 0, i % 8, time_s=i * 0.1))
    return StudyRecord("s", "maximize", tuple(trials), tuple(events), META if meta is None else meta)


@pytest.mark.parametrize(("n_trials", "bands"), [(5, 4), (30, 1)])
def test_curves_of_folds_have_bands(n_trials: int, bands: int) -> None:
    """Of all where they are few, of the best alone otherwise."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    plain = study(n_trials)
    trials = [replace(t, rows=tuple(replace(r, standard_error=0.1) for r in t.rows)) for t in plain.trials]
    for record, wanted in ((plain, 0), (replace(plain, trials=tuple(trials)), bands)):
        figure = Figure()
        curves(figure, View(record, {}))
        drawn = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
        assert len(drawn) == wanted
        assert figure.axes[0].get_title(loc="left").startswith("band: mean") is bool(wanted)


def test_every_figure_is_drawn_twice(tmp_path: Path) -> None:
    written = write_figures(study(), tmp_path / "new" / "figures", {"lr": 0.8, HOSTILE: 0.2})
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in FIGURES.keys() - {"pareto"} for kind in ("png", "svg")
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")
    texts = {path.stem: path.read_text(encoding="utf-8") for path in written if path.suffix == ".svg"}
    escaped = "$\\frac{1}{&lt;/svg&gt;&amp;$_^%"
    for name in ("curves", "history", "importances", "choices", "slices", "parallel"):
        assert escaped in texts[name], name
    assert "mathdefault" not in "".join(texts.values())


def test_the_same_study_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.report._figures.FIGURES", {name: FIGURES[name] for name in ("curves", "contour")})
    first, second = (write_figures(study(), tmp_path / name, {"lr": 1.0}) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("n_trials", [0, 1, 3])
def test_small_studies_draw_what_they_have(tmp_path: Path, n_trials: int) -> None:
    written = write_figures(study(n_trials, {}), tmp_path)
    names = {path.stem for path in written}
    assert (
        names <= set(FIGURES) and "confusion" not in names and "residuals" not in names and "importances" not in names
    )
    assert ("curves" in names) is (n_trials > 0)


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="pip install matplotlib"):
        write_figures(study(), tmp_path)


def test_a_folder_that_cannot_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"figures cannot be written to .*Give a path to a folder"):
        write_figures(study(), tmp_path / "file" / "below")


def test_the_report_alone_does_not_load_matplotlib() -> None:
    code = "import sys, shoal.report; raise SystemExit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shoal.report._figures.FIGURES", {"curves": FIGURES["curves"]})
    with StudyStore.open("s.db", name="shoal", direction="maximize") as store:
        record = study(4)
        store.asked([trial.spec for trial in record.trials])
        store.recorded([row for trial in record.trials for row in trial.rows])
    assert main(["report", "s.db", "--figures", "figures"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[0] == "s.html" and "figures/curves.svg" in printed
    assert all(Path(name).is_file() for name in printed)


@pytest.mark.parametrize("n", [*range(1, 40), 100, 499, 500, 501, 2000])
def test_ranks_around_a_median_cover_it(n: int) -> None:
    low, high = median_ranks(n)
    assert 0 <= low <= high < n and low == n - 1 - high
    # Of n coins, the median lies outside if fewer than low + 1 fall on either side.
    outside = 2 * sum(math.comb(n, k) for k in range(low + 1)) / 2**n if n <= 500 else 0.05
    if n >= 6:
        assert outside <= 0.05
        inner = 2 * sum(math.comb(n, k) for k in range(low + 2)) / 2**n
        assert inner > 0.045  # and the next narrower pair would not do


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_uses_the_same_ranks() -> None:
    script = resources.files("shoal.report").joinpath("page", "groups.js").read_text(encoding="utf-8")
    function = script[script.index("function medianRanks") : script.index("/** Per epoch")]
    sizes = [*range(1, 60), 499, 500, 501, 10_000]
    probe = f"{function}; console.log(JSON.stringify({sizes}.map(medianRanks)))"
    out = subprocess.run(["node", "-e", probe], check=True, capture_output=True, text=True).stdout
    assert json.loads(out) == [list(median_ranks(n)) for n in sizes]


def test_medians_carry_the_stopped_and_count_the_diverged_as_worst() -> None:
    def one(values: list[float], state: TrialState) -> TrialRecord:
        rows = tuple(EpochRow(0, e, 0.0, v, {}) for e, v in enumerate(values, 1))
        return TrialRecord(TrialSpec(0, 0, {}, {}), state, None, len(rows), "", rows)

    trials = [
        one([1.0, 2.0, 3.0], TrialState.FINISHED),
        one([5.0], TrialState.STOPPED),
        one([4.0, math.nan, 9.0], TrialState.FINISHED),
        one([7.0], TrialState.RUNNING),
        one([], TrialState.FAILED),
    ]
    curve = median_curve(trials, 4, maximize=True)
    assert [(p.epoch, p.n) for p in curve] == [(1, 4), (2, 3), (3, 3), (4, 3)]
    assert curve[0].median == statistics.median_high([1, 5, 4, 7])
    assert (curve[1].low, curve[1].median, curve[1].high) == (-math.inf, 2.0, 5.0)
    worst: Any = median_curve(trials, 2, maximize=False)[1].high
    assert worst == math.inf
