"""The report: safe whatever its users type, complete whatever happened to its trials, small enough to open."""

from __future__ import annotations

import json
import math
import shutil
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
        },
        name=HOSTILE,
    )
    html = render_report(record)
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
    assert not [a for _, a in page.tags if {"src", "href"} & set(a)]
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


def test_non_finite_numbers_survive() -> None:
    values = [0.5, math.nan, math.inf, -math.inf]
    params: dict[str, ParamValue] = {"lr": math.inf}
    data = Page(render_report(study([trial(0, values, TrialState.STOPPED, params, {"lr": LR})]))).data
    assert data["curves"]["value"][0] == [0.5, "NaN", "Infinity", "-Infinity"]
    assert data["trials"]["value"] == ["-Infinity"]
    assert data["params"][0]["values"] == ["Infinity"]
    assert [float(x) for x in data["curves"]["value"][0][2:]] == [math.inf, -math.inf]


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
    assert len(controls) >= 6
    assert all(attributes.get("aria-label") for attributes in controls)


def test_style_serves_dark_screens_phones_and_paper() -> None:
    css = resources.files("shoal.report").joinpath("page.css").read_text(encoding="utf-8")
    for query in ("prefers-color-scheme: dark", "@media print", "@media (max-width"):
        assert query in css


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_script_parses_and_its_scales_work(tmp_path: Path) -> None:
    whole = tmp_path / "page.js"
    whole.write_text(Page(render_report(study([]))).scripts[1], encoding="utf-8")
    subprocess.run(["node", "--check", str(whole)], check=True)
    charts = resources.files("shoal.report").joinpath("charts.js").read_text(encoding="utf-8")
    pure = charts[: charts.index("const FONT")]
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
