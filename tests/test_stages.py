"""Work other than training: told with the time that is left, shown where progress is shown, free where it is not."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import Dataset

import shoal
from shoal.progress import LiveSink, PlainSink, make_progress, stages_shown
from shoal.report import render_report
from shoal.stages import PERIOD_S, Stage, counted, enter, telling
from shoal.storage import load_study
from test_progress import STATE, Clock, Terminal


class Steps:
    """A clock that goes on by a fixed time whenever it is asked."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_items_pass_through_and_are_counted() -> None:
    seen: list[Stage] = []
    with telling(seen.append):
        assert list(counted(range(100), "reading", 100, Steps(0.1))) == list(range(100))
    assert {stage.name for stage in seen} == {"reading"} and {stage.total for stage in seen} == {100}
    assert [stage.done for stage in seen] == sorted({stage.done for stage in seen})
    # A tenth of a second per item: every third of them is worth a word.
    assert len(seen) == pytest.approx(100 * 0.1 / PERIOD_S, rel=0.2)
    last = seen[-1]
    assert last.remaining_s == pytest.approx(last.elapsed_s / last.done * (100 - last.done))


def test_short_work_is_not_worth_a_word() -> None:
    seen: list[Stage] = []
    with telling(seen.append):
        list(counted(range(100), "reading", 100, Steps(0.001)))
    assert seen == []


def test_nobody_has_to_listen() -> None:
    enter("scoring")
    assert list(counted("abc", "reading", 3)) == ["a", "b", "c"]


def test_listeners_do_not_outlive_their_block() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with telling(lambda stage: outer.append(stage.name)):
        with pytest.raises(KeyError), telling(lambda stage: inner.append(stage.name)):
            enter("one")
            raise KeyError
        enter("two")
    enter("three")
    assert (outer, inner) == (["two"], ["one"])


def test_the_time_left_is_unknown_before_the_first_item_and_without_a_total() -> None:
    assert Stage("x", 0, 10).remaining_s is None and Stage("x", 5, None, 1.0).remaining_s is None


def test_lines_come_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    sink = PlainSink(stream, clock)
    for done in range(1, 100):
        sink.stage(Stage("reading train", done, 100, float(done)))
        clock.now_s += 1.0
    sink.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[0] == "shoal: reading train: 1/100, 1 min 39 s left"


def test_json_has_an_event_of_its_own() -> None:
    stream = io.StringIO()
    make_progress("json", stream).stage(Stage("reading", 1, 4, 2.0))
    assert json.loads(stream.getvalue()) == {
        "event": "stage",
        "name": "reading",
        "done": 1,
        "total": 4,
        "elapsed_s": 2.0,
        "remaining_s": 6.0,
    }


def test_reading_reporting_and_training_again_say_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def define(trial: Any) -> shoal.Recipe:
        model = nn.Linear(2, 2)
        lr = trial.suggest_float("lr", 0.01, 0.1)
        return shoal.Recipe(model, optim.SGD(model.parameters(), lr=lr), nn.CrossEntropyLoss(), 8)

    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "study.db"
    study = shoal.tune(define, train=(x, (x[:, 0] > 0).long()), n_trials=4, max_epochs=2, storage=path, progress=False)
    seen: list[Stage] = []
    monkeypatch.setattr("shoal.stages.PERIOD_S", 0.0)
    with telling(seen.append):
        record = load_study(path)
        render_report(record)
        study.refit(epochs=3)
    totals = {stage.name: stage.total for stage in seen}
    assert totals["reading trials"] == totals["packing trials"] == 4
    assert totals["packing curves"] and totals["training the winner"] == 3
    assert all(stage.done == 0 or stage.remaining_s is not None for stage in seen)


def test_a_terminal_shows_a_stage_in_the_panels_place_and_takes_it_away() -> None:
    stream = Terminal()
    sink = LiveSink(stream, Clock())
    sink.stage(Stage("scoring the winner"))
    shown = stream.getvalue()
    sink.close()
    assert "scoring the winner" in shown
    assert "\x1b[2K" in stream.getvalue()[len(shown) :]  # the line is erased
    stream = Terminal()
    sink = LiveSink(stream, Clock())
    sink.stage(Stage("tracing"))
    sink.update(STATE)
    shown = stream.getvalue()
    sink.close()
    assert "accuracy" in shown and "\x1b[2K" not in stream.getvalue()[len(shown) :].rpartition("accuracy")[2]


@pytest.mark.parametrize("mode", [False, lambda progress: None])
def test_quiet_modes_stay_quiet(mode: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with stages_shown(mode, "scoring"):
        enter("more")
    assert capsys.readouterr() == ("", "")


class Slow(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Sixty samples."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index >= 60:
            raise IndexError
        return torch.full((2,), float(index)), torch.tensor(index % 2)


def test_a_study_tells_its_stages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def define(trial: Any) -> shoal.Recipe:
        model = nn.Linear(2, 2)
        return shoal.Recipe(
            model, optim.SGD(model.parameters(), lr=trial.suggest_float("lr", 0.01, 0.1)), nn.CrossEntropyLoss(), 8
        )

    monkeypatch.setattr("shoal.stages.PERIOD_S", 0.0)
    shoal.tune(define, train=Slow(), test=0.2, n_trials=2, max_epochs=1, progress="json", reproducible=True)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = list(dict.fromkeys(event["name"] for event in events if event["event"] == "stage"))
    assert names == ["reading train", "tracing and timing the first trials", "scoring the winner"]
    reading = [event for event in events if event.get("name") == "reading train"]
    assert [event["total"] for event in reading] == [60] * len(reading) and len(reading) > 1
    assert {field.name for field in dataclasses.fields(Stage)} < set(reading[0])
    assert {event["total"] for event in events if event.get("name") == "scoring the winner"} == {None, 1}
