"""Progress: the right sink for each stream, drawn no more often than promised, never a reason for a study to die."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import subprocess
import sys

import pytest

from shoal.errors import UsageError
from shoal.progress import (
    LIVE_INTERVAL_S,
    CallableSink,
    JsonSink,
    LiveSink,
    PlainSink,
    ProgressMode,
    SilentSink,
    make_progress,
    plain_line,
    render_panel,
)
from shoal.records import Progress

STATE = Progress(
    n_trials=200,
    running=30,
    finished=12,
    stopped=48,
    failed=1,
    lanes_busy=30,
    lanes_total=32,
    fleets=2,
    best_number=17,
    best_value=0.98123456,
    best_params={"lr": 0.0123456789, "act": "[red]relu"},
    metric="accuracy",
    epochs_done=1234,
    epochs_per_s=567.8,
    elapsed_s=12.3,
    remaining_s=75.0,
    paused=7,
)
FIRST = dataclasses.replace(STATE, best_number=None, best_value=None, best_params={}, remaining_s=None, lanes_total=0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Simulated time."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress(True, Terminal())) is PlainSink


@pytest.mark.parametrize(
    ("mode", "stream", "sink"),
    [
        (True, Terminal(), LiveSink),
        (True, io.StringIO(), PlainSink),
        (False, Terminal(), SilentSink),
        ("json", Terminal(), JsonSink),
        (lambda p: None, Terminal(), CallableSink),
    ],
)
def test_mode_and_stream_choose_the_sink(mode: ProgressMode, stream: io.StringIO, sink: type) -> None:
    assert type(make_progress(mode, stream)) is sink


def test_default_streams_keep_results_apart_from_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for mode in (True, "json"):
        make_progress(mode).update(STATE)
    out, err = capsys.readouterr()
    assert json.loads(out)["event"] == "progress" and err == plain_line(STATE) + "\n"


@pytest.mark.parametrize(
    ("mode", "message"), [("jsno", "got 'jsno'. Did you mean 'json'"), (3, "got int"), (None, "got None")]
)
def test_unknown_mode_is_explained(mode: ProgressMode, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_progress(mode)


def test_plain_writes_a_line_every_five_seconds_and_the_last() -> None:
    stream, clock = io.StringIO(), Clock()
    sink = PlainSink(stream, clock)
    for tenth in range(121):  # 12 seconds
        clock.now_s = 100 + tenth / 10
        sink.update(dataclasses.replace(STATE, epochs_done=tenth, finished=tenth))
    sink.message("trial 3 runs solo")
    sink.close()
    sink.close()
    heads = [line.split("/")[0] for line in stream.getvalue().splitlines()]
    assert heads == ["shoal: 49", "shoal: 99", "shoal: 149", "shoal: trial 3 runs solo", "shoal: 169"]


def test_plain_close_does_not_repeat_a_line() -> None:
    stream = io.StringIO()
    sink = PlainSink(stream, Clock())
    sink.update(STATE)
    sink.close()
    assert stream.getvalue() == plain_line(STATE) + "\n"


@pytest.mark.parametrize("show", [plain_line, lambda p: drawn(p)])
def test_everything_is_shown(show: object) -> None:
    assert callable(show)
    text = show(STATE)
    for expected in (
        "61/200 trials",
        "30 running",
        "7 paused",
        "12 finished",
        "48 stopped",
        "1 failed",
        "accuracy 0.98123",
        "trial 17",
        "lr=0.012346, act=[red]relu",
        "30/32 lanes busy (94 %) in 2 fleets",
        "568 trial-epochs/s",
        "12 s gone",
        "1 min 15 s left",
    ):
        assert expected in text
    assert "paused" not in show(dataclasses.replace(STATE, paused=0))
    early = show(dataclasses.replace(FIRST, message="compiling"))
    assert "time left unknown" in early and "17" not in early and "compiling" in early


def drawn(p: Progress) -> str:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=120).print(render_panel(p))
    return stream.getvalue()


def test_live_draws_at_most_four_times_a_second_and_the_last_state() -> None:
    stream, clock = Terminal(), Clock()
    sink = LiveSink(stream, clock)
    draws = 0
    for step in range(101):  # one second in steps of a hundredth
        before = stream.tell()
        clock.now_s = 100 + step / 100
        sink.update(dataclasses.replace(STATE, finished=step))
        draws += stream.tell() > before
    assert draws == 1 + 1 / LIVE_INTERVAL_S
    sink.message("[bold]trial 3 runs solo")
    sink.update(dataclasses.replace(STATE, finished=151))
    sink.close()
    sink.close()
    text = stream.getvalue()
    assert "[bold]trial 3 runs solo" in text and "200/200 trials" in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_live_without_any_state_leaves_the_terminal_alone() -> None:
    stream = Terminal()
    sink = LiveSink(stream, Clock())
    sink.close()
    assert stream.getvalue() == ""


def test_json_lines_parse_and_hold_non_finite_numbers() -> None:
    stream = io.StringIO()
    sink = make_progress("json", stream)
    sink.update(dataclasses.replace(STATE, best_value=math.inf))
    sink.message("line\nbreak")
    sink.close()
    first, second = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (
        first["event"] == "progress"
        and first["best_value"] == "Infinity"
        and first["best_params"]["lr"] == 0.0123456789
    )
    assert set(first) == {"event", *(field.name for field in dataclasses.fields(Progress))}
    assert second == {"event": "message", "text": "line\nbreak"}


def test_callable_gets_states_and_messages() -> None:
    seen: list[Progress] = []
    sink = make_progress(seen.append)
    sink.message("one")
    sink.message("two")
    sink.update(dataclasses.replace(STATE, message="three"))
    sink.message("four")
    sink.update(STATE)
    sink.close()
    assert [p.message for p in seen] == ["one\ntwo\nthree", "four", ""]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    sink = make_progress(False)
    sink.update(STATE)
    sink.message("nothing")
    sink.close()
    assert capsys.readouterr() == ("", "")


class Gone(io.StringIO):
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise BrokenPipeError


@pytest.mark.parametrize("mode", [True, "json"])
def test_a_reader_that_went_away_does_not_stop_the_study(mode: ProgressMode) -> None:
    stream = Gone()
    sink = make_progress(mode, stream)
    sink.update(STATE)
    sink.message("late")
    sink.close()
    assert stream.writes == 1
    closed = io.StringIO()
    closed.close()
    JsonSink(closed).update(STATE)


def test_rich_is_imported_only_for_a_terminal() -> None:
    code = "import sys, shoal.progress as p; p.make_progress('json'); print('rich' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "False\n"
