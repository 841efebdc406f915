"""The report: safe whatever its users type, complete whatever happened to its trials, small enough to open."""

from __future__ import annotations

import base64
import json
import math
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from shoal._text import format_duration, json_ready
from shoal.errors import StorageError
from shoal.records import EpochRow, Event, Json, ParamValue, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.report import render_report, write_report
from shoal.report._data import report_data
from shoal.report._numbers import unpacked as unpacked_values
from shoal.report._predictions import per_class

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--"
LR = json.dumps({"name": "FloatDistribution", "attributes": {"step": None, "low": 1e-4, "high": 0.1, "log": True}})
ACT = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": ["relu", None, True]}})


def trial(
    number: int,
    values: Sequence[float],
    state: TrialState = TrialState.FINISHED,
    params: Mapping[str, ParamValue] | None = None,
    distributions: Mapping[str, str] | None = None,
    first_epoch: int = 1,
    time_s: float = 0.0,
    reason: str = "",
) -> TrialRecord:
    rows = tuple(
        EpochRow(number, epoch, value / 2, value, {"loss": -value, "accuracy": value}, float(epoch))
        for epoch, value in enumerate(values, start=first_epoch)
    )
    value = None if state is TrialState.FAILED or not values else values[-1]
    spec = TrialSpec(number, number, params or {}, distributions or {})
    return TrialRecord(spec, state, value, len(values), reason, rows, time_s)


def study(
    trials: Sequence[TrialRecord], events: Sequence[Event] = (), meta: Mapping[str, Json] | None = None, name: str = "s"
) -> StudyRecord:
    return StudyRecord(name, "maximize", tuple(trials), tuple(events), {"metric": "accuracy", **(meta or {})})


class Page(HTMLParser):
    """What a browser would make of the page: tags, attributes, visible text, and the two scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def test_hostile_texts_stay_texts() -> None:
    params: dict[str, ParamValue] = {HOSTILE: HOSTILE}
    record = study(
        [trial(0, [0.5], params=params, distributions={HOSTILE: HOSTILE}, reason=HOSTILE)],
        meta={
            "metric": HOSTILE,
            "test": {HOSTILE: 0.5},
            "weights": {"0": HOSTILE},
            "hardware": HOSTILE,
            "options": {HOSTILE: HOSTILE},
            "fingerprint": HOSTILE,
            "space": {HOSTILE: HOSTILE},
            "winner": {
                "trial": 0,
                "split": HOSTILE,
                "classes": {"names": [HOSTILE], "matrix": [[1]], "hits": [1], "predicted": [1], "support": [1]},
            },
        },
        name=HOSTILE,
    )
    html = render_report(record, {HOSTILE: 1.0})
    page = Page(html)
    assert "img" not in [tag for tag, _ in page.tags]
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert len(page.scripts) == 2 and html.count("</script>") == 2
    assert not set("<>&") & set(page.scripts[0])
    assert page.data["metric"] == HOSTILE
    assert page.data["params"][0]["name"] == HOSTILE and page.data["params"][0]["choices"] == [HOSTILE]
    assert page.text.count(HOSTILE) >= 8


def test_script_writes_text_and_never_html_and_reaches_no_network() -> None:
    html = render_report(study([trial(0, [0.5])]))
    page = Page(html)
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "http"):
        assert forbidden not in page.scripts[1]
    assert {a.get("src") or a.get("href") for _, a in page.tags if {"src", "href"} & set(a)} == {"data:,"}
    policy = [a.get("content") or "" for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy and policy[0].startswith("default-src 'none'")
    assert "@import" not in html and "url(" not in html


def test_lone_surrogates_do_not_stop_the_report(tmp_path: Path) -> None:
    path = write_report(study([trial(0, [0.5], params={"x": "\ud800"})], name="\udfff"), tmp_path / "r.html")
    assert Page(path.read_text(encoding="utf-8")).data["params"][0]["choices"] == ["\ud800"]


def test_header_and_best_configuration_are_plain_html() -> None:
    record = study(
        [
            trial(0, [0.1, 0.25], params={"lr": 0.1 + 0.2}),
            trial(1, [0.3, 0.75], params={"lr": 1 / 3}),
            trial(2, [0.9], TrialState.STOPPED),
            trial(3, [], TrialState.FAILED),
            trial(4, [0.2], TrialState.RUNNING),
        ],
        meta={"test": {"accuracy": 0.7125}, "weights": {"1": "w/it's.safetensors"}, "elapsed_s": 3725.0},
        name="digits",
    )
    text = Page(render_report(record)).text
    for expected in (
        "digits",
        "Best accuracy",
        "0.75",
        "trial 1, epoch 2",
        "2 finished",
        "1 stopped",
        "1 failed",
        "1 running",
        "1 h 2 min",
        "0.3333333333333333",  # in full, for copying
        "0.7125",
        "from safetensors.torch import load_file",
        'model.load_state_dict(load_file("w/it\'s.safetensors"))',
    ):
        assert expected in text
    assert "Epochs trained6" in text


def test_snippet_loads_weights(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    model = torch.nn.Linear(2, 1)
    file = tmp_path / "w.safetensors"
    safetensors.save_file(model.state_dict(), file)
    text = Page(render_report(study([trial(0, [0.5])], meta={"weights": {"0": str(file)}}))).text
    code = text[text.index("from safetensors") : text.index("Copy")].replace("...", "torch.nn.Linear(2, 1)")
    scope: dict[str, Any] = {"torch": torch}
    exec(code, scope)
    assert torch.equal(scope["model"].weight, model.weight)


def unpacked(data: Any, series: int = 0) -> list[list[float]]:
    """Curves of a series, by trial, as the page reads them."""
    raw = base64.b64decode(data["curves"]["series"][series]["data"])
    values = iter(struct.unpack(f"<{len(raw) // 4}f", raw))
    return [[next(values) for _ in range(length)] for length in data["curves"]["lengths"]]


def test_non_finite_numbers_survive() -> None:
    values = [0.5, math.nan, math.inf, -math.inf]
    params: dict[str, ParamValue] = {"lr": math.inf}
    data = Page(render_report(study([trial(0, values, TrialState.STOPPED, params, {"lr": LR})]))).data
    (curve,) = unpacked(data)
    assert curve[0] == 0.5 and math.isnan(curve[1]) and curve[2:] == [math.inf, -math.inf]
    assert data["trials"]["value"] == ["-Infinity"]
    assert data["params"][0]["values"] == ["Infinity"]


def test_parameters_become_columns() -> None:
    distributions = {"lr": LR, "act": ACT}
    record = study(
        [
            trial(3, [0.1], params={"lr": 0.0123456789, "act": True, "free": 2}, distributions=distributions),
            trial(1, [0.2], params={"lr": 0.01, "act": None, "free": "two"}, distributions=distributions),
            trial(2, [0.3], params={"lr": 0.02}, distributions={"lr": "not JSON"}),
        ],
        meta={"space": {"act": ACT}},
    )
    data: Any = report_data(record)
    assert data["trials"]["number"] == [1, 2, 3] and data["best"] == 1
    assert data["params"] == [
        {"name": "act", "log": False, "choices": ["relu", "None", "True"], "values": [1, None, 2]},
        {"name": "lr", "log": True, "choices": None, "values": [0.01, 0.02, 0.012346]},
        {"name": "free", "log": False, "choices": ["two", "2"], "values": [0, None, 1]},
    ]


def test_epochs_are_written_only_where_they_are_not_one_two_three() -> None:
    data: Any = report_data(study([trial(0, [0.1, 0.2]), trial(1, [0.1, 0.2], first_epoch=4)]))
    assert data["curves"]["epochs"] == {"1": [4, 5]}


def test_many_epochs_are_thinned_to_one_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    long, short, late = trial(0, [e / 10 for e in range(1, 10)]), trial(1, [0.5, 0.6]), trial(2, [0.1], first_epoch=5)
    monkeypatch.setattr("shoal.report._data.MAX_POINTS", 12)  # 4 series of 12 epochs: each fourth
    data: Any = report_data(study([long, short, late]))
    curves = data["curves"]
    assert (curves["every"], curves["lengths"], curves["ends"]) == (4, [4, 2, 1], [9, 2, 5])
    assert curves["epochs"] == {"2": [5]}
    assert unpacked(data) == [pytest.approx([0.1, 0.4, 0.8, 0.9]), pytest.approx([0.5, 0.6]), pytest.approx([0.1])]


def test_every_recorded_metric_is_a_series() -> None:
    rows = (
        EpochRow(0, 1, 0.9, 0.5, {"loss": 0.7, "accuracy": 0.5, "f1": 0.4}),
        EpochRow(0, 2, 0.8, 0.6, {"loss": 1e300, "accuracy": 0.6}),
    )
    one = TrialRecord(TrialSpec(0, 0, {}, {}), TrialState.FINISHED, 0.6, 2, "", rows)
    data: Any = report_data(study([trial(1, [0.1]), one]))
    names = [series["name"] for series in data["curves"]["series"]]
    assert names == ["accuracy", "validation loss", "f1", "train loss"]
    assert [series["loss"] for series in data["curves"]["series"]] == [False, True, False, True]
    assert unpacked(data, 0)[0] == pytest.approx([0.5, 0.6])
    assert unpacked(data, 1)[0][1] == math.inf  # beyond float32
    assert unpacked(data, 2)[0][0] == pytest.approx(0.4) and math.isnan(unpacked(data, 2)[0][1])


def test_the_standard_error_over_folds_stands_beside_the_value() -> None:
    rows = tuple(
        EpochRow(0, e, 0.9, 0.5, {"loss": 0.7}, lanes=(0.4, 0.6), standard_error=None if e == 2 else 0.1)
        for e in (1, 2)
    )
    one = TrialRecord(TrialSpec(0, 0, {}, {}), TrialState.FINISHED, 0.5, 2, "", rows)
    data: Any = report_data(study([one, trial(1, [0.1])]))
    first, *others = data["curves"]["series"]
    errors = struct.unpack("<3f", base64.b64decode(first["errors"]))
    assert errors[0] == pytest.approx(0.1) and math.isnan(errors[1]) and math.isnan(errors[2])
    assert not any("errors" in series for series in others)
    plain: Any = report_data(study([trial(0, [0.1])]))
    assert "errors" not in plain["curves"]["series"][0]


def test_extra_metrics_give_way_when_a_study_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.report._data.MAX_POINTS", 9)
    metrics = {"loss": 0.7, "accuracy": 0.5, "f1": 0.4}
    rows = tuple(EpochRow(0, epoch, 0.9, 0.5, metrics) for epoch in (1, 2, 3))
    one = TrialRecord(TrialSpec(0, 0, {}, {}), TrialState.FINISHED, 0.5, 3, "", rows)
    data: Any = report_data(study([one]))
    assert [series["name"] for series in data["curves"]["series"]] == ["accuracy", "validation loss", "train loss"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"tick_s": 0.002, "tick_lanes": 8, "solo_step_s": 0.001}, 1),
        ({}, 0),
        ({"tick_s": 0.0, "tick_lanes": 8, "solo_step_s": 0.001}, 0),
        ({"tick_s": "fast", "tick_lanes": 8, "solo_step_s": 0.001}, 0),
    ],
)
def test_a_gain_is_told_only_where_it_was_measured(data: dict[str, Json], expected: int) -> None:
    found: Any = report_data(study([trial(0, [0.5])], [Event(0, "fleet", fleet=3, data=data)]))["speedups"]
    assert len(found) == expected
    if expected:
        assert found == [{"fleet": 3, "lanes": 8, "tick_s": 0.002, "solo_step_s": 0.001}]


def moving(number: int, paths: list[dict[str, tuple[float, ...]]]) -> TrialRecord:
    """A trial whose extensions moved something, epoch by epoch."""
    rows = tuple(EpochRow(number, e, 0.5, 0.5, {}, trajectories=p) for e, p in enumerate(paths, 1))
    return TrialRecord(TrialSpec(number, 0, {}, {}), TrialState.FINISHED, 0.5, len(rows), "", rows)


def test_what_extensions_moved_is_thinned_epoch_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    ten = tuple(float(v) for v in range(10))
    trials = [
        moving(3, [{"lr": ten}, {"lr": ten[:4]}]),
        trial(4, [0.5]),
        moving(5, [{"lr": (0.5,), "lr@1": (0.25,)}, {"lr": ()}]),
    ]
    found: Any = report_data(study(trials))["trajectories"]
    assert found["per_epoch"] == 8
    (lr,) = found["moved"]  # the folds of a trial are lines of the same hyperparameter
    assert (lr["name"], lr["trials"], lr["first"]) == ("lr", [0, 2, 2], [0, 0.5, 0.25])
    values = unpacked_values(lr["data"])
    assert values[:8] == [1, 2, 3, 4, 6, 7, 8, 9]  # the last of each eighth of the epoch's updates
    assert values[8:16] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert values[16:24] == [0.5] * 8 and all(map(math.isnan, values[24:32]))
    monkeypatch.setattr("shoal.report._trajectories.MAX_POINTS", 5)
    few: Any = report_data(study(trials))["trajectories"]
    assert few["per_epoch"] == 1 and few["moved"][0]["trials"] == [0, 2]
    assert unpacked_values(few["moved"][0]["data"])[:2] == [9, 3]


def test_a_study_without_extensions_has_no_trajectories() -> None:
    found: Any = report_data(study([trial(0, [0.5])]))["trajectories"]
    assert found == {"per_epoch": 1, "moved": []}


WINNER: dict[str, Json] = {
    "trial": 1,
    "valid": {"n": 100, "level": 0.95, "scores": {"accuracy": {"value": 0.75, "low": 0.66, "high": 0.84}}},
    "test": {"n": 400, "level": 0.95, "scores": {"accuracy": {"value": 0.7, "low": 0.65, "high": 0.74}}},
}


def test_how_sure_the_best_is() -> None:
    trials = [trial(i, [value], params={"lr": 0.1}) for i, value in enumerate([0.5, 0.75, 0.73, 0.1])]
    meta: dict[str, Json] = {"test": {"accuracy": 0.7, "f1": 0.6}, "winner": WINNER}
    text = Page(render_report(study(trials, meta=meta))).text
    for expected in (
        "0.75  (0.66 to 0.84)",
        "Test, 400 samples, 95 % interval",
        "0.7  (0.65 to 0.74)",
        "Held-out accuracy",
        "95 % interval 0.65 to 0.74",
        "On 400 held-out samples",
        "standard error of 0.046 (100 samples): 1 other finished trial lies within it",
    ):
        assert expected in text, expected


def test_intervals_of_another_winner_are_not_shown() -> None:
    meta: dict[str, Json] = {"test": {"accuracy": 0.7}, "winner": {**WINNER, "trial": 0}}
    text = Page(render_report(study([trial(0, [0.5]), trial(1, [0.75])], meta=meta))).text
    assert "interval" not in text and "0.7" in text


def test_runners_up_are_the_next_best_and_then_the_stopped() -> None:
    trials = [
        trial(0, [0.5]),
        trial(1, [0.75]),
        trial(2, [0.9], TrialState.STOPPED),
        trial(3, [0.75]),
        trial(4, [], TrialState.FAILED),
        trial(5, [math.nan], TrialState.STOPPED),
    ]
    html = render_report(study(trials))
    table = html[html.index("The best and the runners-up") :]
    order = [f"Trial {n}" for n in (1, 3, 0, 2)]
    assert [table.index(name) for name in order] == sorted(table.index(name) for name in order)
    assert "tied" in table and "1, stopped" in table and "Trial 4" not in table and "Trial 5" not in table


CLASSES: dict[str, Json] = {
    "n": 3,
    "matrix": [[8, 2, 0], [1, 9, 0], [0, 0, 0]],
    "hits": [8, 9, 0],
    "predicted": [9, 11, 0],
    "support": [10, 10, 0],
}


def test_classes_of_the_winner_are_scored_as_scikit_learn_scores_them() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, guesses = [0] * 10 + [1] * 10, [0] * 8 + [1] * 2 + [0] + [1] * 9
    expected = metrics.precision_recall_fscore_support(truth, guesses, labels=[0, 1, 2], zero_division=0)
    assert per_class(dict(CLASSES)) == [pytest.approx(row) for row in zip(*expected, strict=True)]


def test_confusions_are_a_table_that_reads_aloud() -> None:
    html = render_report(study([trial(1, [0.5])], meta={"winner": {"trial": 1, "split": "test", "classes": CLASSES}}))
    assert "Confusion matrix of trial 1 on the test split" in html
    assert 'title="2 of 10 of class 0 predicted as 1">2</td>' in html
    assert "0.889" in html and html.count("<tr><th scope") >= 5


def test_many_classes_show_their_worst_confusions() -> None:
    n = 70
    counts: dict[str, Json] = {"n": n, "hits": [1] * n, "predicted": [2] * n, "support": [3] * n}
    counts["confusions"] = [[4, 5, 2]]
    html = render_report(study([trial(1, [0.5])], meta={"winner": {"trial": 1, "classes": counts}}))
    assert "Most frequent confusions of trial 1 on the validation split" in html and "66.7 %" in html


@pytest.mark.parametrize("classes", [{"n": 2}, {"hits": [1], "predicted": [], "support": [1]}])
def test_winner_that_cannot_be_read_is_said_so(classes: dict[str, Json]) -> None:
    html = render_report(study([trial(1, [0.5])], meta={"winner": {"trial": 1, "classes": classes}}))
    assert "cannot be read" in html


def lane_bars(record: StudyRecord) -> list[tuple[str, int, int, float, float]]:
    lanes: Any = report_data(record)["lanes"]
    columns = zip(lanes["row"], lanes["trial"], lanes["start"], lanes["stop"], strict=True)
    return [(lanes["group"][row], lanes["lane"][row], i, start, stop) for row, i, start, stop in columns]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [Event(0, "admitted", 0, 0, 1, time_s=1.0), Event(2, "left", 0, 0, 1, time_s=4.0)],
            [("fleet 0", 1, 0, 1, 4)],
            id="stay",
        ),
        pytest.param([Event(0, "admitted", 0, 0, 0, time_s=1.0)], [("fleet 0", 0, 0, 1, 10)], id="until the end"),
        pytest.param(
            [Event(0, "admitted", 0, 0, 0, time_s=1.0), Event(3, "admitted", 1, 0, 0, time_s=5.0)],
            [("fleet 0", 0, 0, 1, 5), ("fleet 0", 0, 1, 5, 10)],
            id="a newcomer ends who was killed",
        ),
        pytest.param(
            [Event(0, "admitted", 0, 0, 0, time_s=1.0), Event(3, "admitted", 0, 2, 7, time_s=5.0)],
            [("fleet 0", 0, 0, 1, 5), ("fleet 2", 7, 0, 5, 10)],
            id="moved",
        ),
        pytest.param(
            [Event(0, "solo", 0, time_s=0.0), Event(0, "solo", 1, time_s=1.0), Event(0, "solo", 2, time_s=6.0)],
            [("solo", 0, 0, 0, 6), ("solo", 1, 1, 1, 10), ("solo", 0, 2, 6, 10)],
            id="solo trials share rows without overlap",
        ),
        pytest.param(
            [Event(0, "admitted", 0, 0, 0, time_s=1.0), Event(0, "solo", 0, time_s=2.0)],
            [("fleet 0", 0, 0, 1, 2), ("solo", 0, 0, 2, 6)],
            id="out of a lane into solo",
        ),
        pytest.param(
            [Event(0, "admitted", 0, 0, 0, time_s=1.0), Event(0, "admitted", 0, 1, 0, time_s=1.0)],
            [("fleet 1", 0, 0, 1, 10)],
            id="moved on before it trained",
        ),
        pytest.param(
            [Event(0, "fleet", fleet=0), Event(0, "admitted", 99, 0, 0, time_s=1.0), Event(0, "left", 1, 0, 0)],
            [],
            id="unknown trials and kinds",
        ),
    ],
)
def test_lanes(events: list[Event], expected: list[tuple[str, int, int, float, float]]) -> None:
    trials = [
        trial(0, [0.1], time_s=6.0),  # a solo trial ends when it says so
        trial(1, [0.1], TrialState.RUNNING),
        trial(2, [0.1], TrialState.RUNNING),
    ]
    assert lane_bars(study(trials, events, {"elapsed_s": 10.0})) == expected


SCORES: Json = {
    "shoal": {"accuracy": 0.8, "f1": 0.75},
    "linear model": {"accuracy": 0.7, "f1": 0.6},
    HOSTILE: {"accuracy": 0.85, "f1": 0.7},
}


def test_other_models_are_shown_where_they_win() -> None:
    compared: dict[str, Json] = {"trial": 1, "n_test": 1234, "winner": HOSTILE, "scores": SCORES}
    trials = [trial(0, [0.1]), trial(1, [0.9])]
    html = render_report(study(trials, meta={"comparison": compared}))
    page = Page(html)
    assert "Test scores, 1,234 rows" in page.text and HOSTILE not in html
    assert f"Of these, {HOSTILE} has the best accuracy, 0.85 (shoal 0.8, linear model 0.7)." in page.text
    # Scores of another trial's model say nothing of this one.
    assert "Test scores" not in render_report(study(trials, meta={"comparison": {**compared, "trial": 0}}))
    wrong: dict[str, Json] = {HOSTILE: {"f1": "x"}}
    damages: list[dict[str, Json]] = [{"trial": 1}, {**compared, "winner": "nobody"}, {**compared, "scores": wrong}]
    for damaged in damages:
        shown = render_report(study(trials, meta={"comparison": damaged}))
        assert "What the study file says of other models cannot be read." in shown


def test_what_was_left_alone_is_not_listed() -> None:
    options: dict[str, Json] = {"seed": 0, "reproducible": False, "timeout_s": None, "enqueue": [], "space_of": {}}
    ended = [trial(i, [0.5], TrialState.STOPPED, reason=f"place {i} of 9 at epoch 1") for i in range(9)]
    html = render_report(study(ended, meta={"options": options, "snapshots": [{"round": 3}]}))
    for shown in ("seed", "reproducible", "place … of … at epoch …"):
        assert shown in html
    for left_out in ("timeout_s", "enqueue", "space_of", "snapshots"):
        assert left_out not in html


def test_empty_study_has_a_report(tmp_path: Path) -> None:
    path = write_report(StudyRecord("empty", "minimize", (), (), {}), tmp_path / "new" / "r.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "none yet" in page.text and page.data["best"] == -1


def test_existing_report_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("old", encoding="utf-8")
    assert write_report(study([trial(0, [0.5])]), path) == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_path_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"the report cannot be written to .*directory"):
        write_report(study([]), tmp_path)
    assert list(tmp_path.iterdir()) == [] and list(tmp_path.parent.glob(".*html*")) == []


def test_ten_thousand_trials_stay_small() -> None:
    trials = [
        trial(
            i,
            [0.123456789 + i * 1e-7 + e * 0.01 for e in range(30 if i % 5 == 0 else 3)],
            TrialState.FINISHED if i % 5 == 0 else TrialState.STOPPED,
            {"lr": 0.001 + i * 1e-6, "act": "relu"},
            {"lr": LR, "act": ACT},
            reason="" if i % 5 == 0 else "stopped at rung 3",
        )
        for i in range(10_000)
    ]
    events = [Event(i, "admitted", i, 0, i % 64, time_s=i * 0.01) for i in range(10_000)]
    html = render_report(study(trials, events))
    assert len(html) < 8_000_000  # the promise is 20 MB; twice today's size is a regression
    assert len(Page(html).data["trials"]["number"]) == 10_000


def test_controls_have_names() -> None:
    page = Page(render_report(study([trial(0, [0.5])], meta={"weights": {"0": "w"}})))
    controls = [attributes for tag, attributes in page.tags if tag in ("input", "button", "nav")]
    controls += [attributes for tag, attributes in page.tags if tag == "select"]
    assert len(controls) >= 12
    assert all(attributes.get("aria-label") for attributes in controls)


def test_style_serves_dark_screens_phones_and_paper() -> None:
    css = resources.files("shoal.report").joinpath("page", "page.css").read_text(encoding="utf-8")
    for query in ("prefers-color-scheme: dark", "@media print", "@media (max-width"):
        assert query in css


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_script_parses_and_its_scales_work(tmp_path: Path) -> None:
    whole = tmp_path / "page.js"
    whole.write_text(Page(render_report(study([]))).scripts[1], encoding="utf-8")
    subprocess.run(["node", "--check", str(whole)], check=True)
    folder = resources.files("shoal.report").joinpath("page")
    pure = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in ("text.js", "scales.js"))
    probe = """
    const y = scale(0, 1, 100, 0, false, 0), l = scale(1e-4, 1e-1, 0, 300, true, 0);
    console.log(JSON.stringify([y(0.25), y.ticks(5), Math.round(l(1e-3)), l.ticks(4), short(num("NaN")), short(-2e-9),
      duration(3725), range([1, 2, 3, NaN, Infinity, null], [], false),
      range(Array(99).fill(1).concat([2, 1e9]), [], false).hi,
      range([...Array(99).keys(), 1e9], [], false), scale(3, 3, 0, 10, false)(3)]));
    """
    out = subprocess.run(["node", "-e", pure + probe], check=True, capture_output=True, text=True).stdout
    assert json.loads(out) == [
        75,
        [0, 0.2, 0.4, 0.6, 0.8, 1],
        100,
        [0.0001, 0.001, 0.01, 0.1],
        "NaN",
        "\N{MINUS SIGN}2e\N{MINUS SIGN}9",
        "1 h 2 min",
        {"lo": 1, "hi": 3, "cut": 0},
        1e9,
        {"lo": 2, "hi": 97, "cut": 4},
        5,
    ]


def test_texts() -> None:
    assert json_ready({"a": (1, math.nan, {2: -math.inf}), "b": Path("x")}) == {
        "a": [1, "NaN", {"2": "-Infinity"}],
        "b": "x",
    }
    assert [format_duration(s) for s in (-1.0, 59.6, 3600.0, math.nan)] == ["0.0 s", "1 min", "1 h", "unknown"]
