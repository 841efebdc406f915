"""Several objectives in the report, its figures and on the command line; a study of one metric shows nothing of it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from shoal.cli import main
from shoal.records import (
    Direction,
    EpochRow,
    Json,
    Outcome,
    StudyRecord,
    TrialRecord,
    TrialResult,
    TrialSpec,
    TrialState,
)
from shoal.report import render_report, write_figures, write_report
from shoal.storage import StudyStore

LR = json.dumps({"name": "FloatDistribution", "attributes": {"step": None, "low": 0.0, "high": 1.0, "log": False}})
BOUND = "latency_ms <= 2"
NAMES: tuple[tuple[str, Direction], ...] = (
    ("accuracy", "maximize"),
    ("n_parameters", "minimize"),
    ("loss", "minimize"),
)


def study(n_trials: int = 60, n_objectives: int = 2, broken: float = 0.2) -> StudyRecord:
    """Larger models are better up to a point; a share of the trials breaks the bound, one trial failed, one was stopped."""
    draw = random.Random(1)
    trials = []
    for i in range(n_trials):
        size, lr = 10 ** draw.uniform(2, 6), draw.random()
        accuracy = min(0.99, 0.4 + 0.1 * (len(str(int(size))) - 2) + 0.2 * lr)
        values = (accuracy, float(int(size)), 1 - accuracy + 0.3 * draw.random())[:n_objectives]
        state = TrialState.FAILED if i == 3 else TrialState.STOPPED if i == 5 else TrialState.FINISHED
        finished = state is TrialState.FINISHED
        over = 0.5 if draw.random() < broken else -0.5
        outcome = Outcome(
            values if finished and n_objectives > 1 else (), {BOUND: over} if finished else {}, {"latency_ms": 2 + over}
        )
        rows = tuple(EpochRow(i, e, 0.5, accuracy * e / 3, {"loss": 0.5}, e) for e in (1, 2, 3))
        value = None if state is TrialState.FAILED else accuracy
        spec = TrialSpec(i, i, {"lr": lr, "size": round(size)}, {"lr": LR, "size": LR.replace("1.0", "1000000.0")})
        trials.append(TrialRecord(spec, state, value, 3, "", rows, 3.0, outcome))
    meta: dict[str, Json] = {"metric": "accuracy", "constraints": [BOUND], "weights": {"0": "x.safetensors"}}
    if n_objectives > 1:
        meta["objectives"] = [name for name, _ in NAMES[:n_objectives]]
    directions = tuple(direction for _, direction in NAMES[:n_objectives])
    return StudyRecord("two", "maximize", tuple(trials), (), meta, directions)


def data_of(html: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[0])


@pytest.mark.parametrize("n", [2, 3])
def test_the_page_has_the_front_and_who_breaks_a_constraint(n: int) -> None:
    record = study(n_objectives=n)
    html = render_report(record)
    shown = data_of(html)["objectives"]
    numbers = [t.spec.number for t in record.front()]
    assert shown["names"] == list(record.objectives) and shown["directions"] == list(record.directions)
    assert shown["front"] == numbers and 1 < len(numbers) < 30
    assert data_of(html)["broken"] == [t.number for t in record.trials if not t.outcome.feasible]
    assert [len(own) for own in shown["values"]] == [60] * n and shown["values"][1][3] is None
    rows = re.findall(r'<th scope="row">Trial (\d+)</th>', html)
    best_first = sorted(record.front(), key=lambda t: (record.point(t), t.number))
    assert rows == [str(t.number) for t in best_first]
    assert "Maximizes accuracy and minimizes n_parameters" in html
    assert f"Constraints: {BOUND.replace('<', '&lt;')}." in html and "break one and are left out." in html
    assert "Of the Pareto front below, the trial with the best accuracy." in html
    assert "runners-up" not in html


def test_a_study_of_one_metric_shows_no_front_but_its_constraints() -> None:
    html = render_report(study(n_objectives=1))
    assert "objectives" not in data_of(html) and 'id="pareto"' not in html
    assert ">Constraints</h2>" in html and "runners-up" in html
    plain = study(n_objectives=1)
    bare = StudyRecord(plain.name, plain.direction, (), (), {"metric": "accuracy"})
    assert "h-front" not in render_report(bare)


def test_nobody_on_the_front() -> None:
    assert "No finished trial keeps every constraint yet." in render_report(study(6, broken=1.0))
    assert "No trial has finished yet." in render_report(study(0))


@pytest.mark.parametrize("n", [2, 3])
def test_the_figure_for_papers(tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from shoal.report import _figures

    monkeypatch.setattr(_figures, "FIGURES", {"pareto": _figures.FIGURES["pareto"]})
    written = write_figures(study(n_objectives=n), tmp_path)
    assert [path.name for path in written] == ["pareto.png", "pareto.svg"]
    text = written[1].read_text(encoding="utf-8")
    assert all(word in text for word in ("Pareto front", "breaks a constraint", "n_parameters"))
    assert write_figures(study(n_objectives=1), tmp_path) == []


def stored(record: StudyRecord, path: Path) -> str:
    with StudyStore.open(path, name="shoal", directions=record.directions) as store:
        store.asked([t.spec for t in record.trials])
        store.recorded([row for t in record.trials for row in t.rows])
        store.ended([TrialResult(t.number, t.state, t.value, t.epoch, outcome=t.outcome) for t in record.trials])
        store.set_meta(record.meta)
    return str(path)


def test_the_command_line_prints_the_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = study()
    path = stored(record, tmp_path / "two.db")
    assert main(["best", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    best = record.best()
    assert best is not None and len(record.front()) > 1
    assert lines[0].startswith(
        f"front       trial {best.number}: accuracy {best.value:.5g}, n_parameters {best.values[1]:.0f} (lr="
    )
    assert f"shown       {best.number} (epoch 3), the one of the front with the best accuracy" in lines
    assert f"keeps       {BOUND}" in lines
    assert main(["best", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [m["trial"] for m in facts["front"]] == [t.number for t in record.front()]
    assert facts["front"][0]["values"] == dict(zip(record.objectives, record.front()[0].values, strict=True))
    assert main(["best", stored(study(8, broken=1.0), tmp_path / "none.db")]) == 1
    assert f"each of the 6 trials breaks a constraint ({BOUND})" in capsys.readouterr().err


def test_export_wants_to_know_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = study(12)
    path = stored(record, tmp_path / "two.db")
    code = tmp_path / "my_code.py"
    code.write_text("def define(trial): ...\ndef data(): return ([1],)\n")
    assert main(["export", path, str(code)]) == 1
    assert "choose one of the Pareto front with --trial (" in capsys.readouterr().err
    assert main(["export", path, str(code), "--trial", "3"]) == 2
    assert "has no trial 3 that has finished" in capsys.readouterr().err


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None and os.environ.get("SHOAL_BROWSER") != "required", reason="needs Chromium")
def test_in_a_browser(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        for n in (2, 3, 1):
            record = study(n_objectives=n)
            page.goto(write_report(record, tmp_path / f"{n}.html").as_uri())
            page.wait_for_timeout(200)
            heads = page.locator("#trials thead th").all_inner_texts()
            if n == 1:
                assert page.locator("#pareto").count() == 0 and not any("Front" in text for text in heads)
                continue
            assert any(text.startswith("Front") for text in heads)
            assert "Pareto front" in (page.locator("#pareto").get_attribute("aria-label") or "")
            assert page.locator("#pareto-x-field").is_visible() is (n == 3)
            first = page.locator("#trials tbody tr").first.inner_text()
            assert "front" in first and str(record.front()[0].number) in first
            page.locator("#pareto").scroll_into_view_if_needed()
            page.wait_for_timeout(100)
            drawn = "document.querySelector('#pareto canvas').getContext('2d').getImageData(0, 0, 400, 200).data.some((v) => v)"
            assert page.evaluate(drawn)
        assert not problems
        browser.close()
