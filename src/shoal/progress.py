"""What a person sees while a study runs: consumers of `shoal.records.Progress`.

The engine hands over one `Progress` per round and knows nothing of terminals. A terminal gets a live panel, a log file
gets a line now and then, a program gets JSON lines. Sinks decide for themselves how often to draw, by their own clock,
so that fast studies do not spend their time printing; what they show never feeds back into the study.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TextIO, TypeAlias

from shoal._text import format_duration, format_number, format_params, json_ready
from shoal.errors import UsageError, did_you_mean
from shoal.records import Progress
from shoal.stages import Stage, enter, telling

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.text import Text

LIVE_INTERVAL_S: Final = 0.25
PLAIN_INTERVAL_S: Final = 5.0

ProgressMode: TypeAlias = bool | str | Callable[[Progress], object]
Clock: TypeAlias = Callable[[], float]


class ProgressSink(Protocol):
    """Where progress goes. Calls come from one thread; `close` may come twice and nothing comes after it."""

    def update(self, p: Progress) -> None:
        """The study's latest state; may be shown late or not at all, but the last one is shown by `close`."""

    def message(self, text: str) -> None:
        """One line that must not get lost, such as why a trial runs solo."""

    def stage(self, stage: Stage) -> None:
        """Work other than training, under way; gives way to whatever comes next."""

    def close(self) -> None:
        """Show what is still unshown and give the terminal back."""


def make_progress(mode: ProgressMode = True, stream: TextIO | None = None) -> ProgressSink:
    """The sink for a mode.

    Args:
        mode: True for a live panel on a terminal and plain lines elsewhere; False for silence; ``"json"`` for one JSON
            object per line; a callable to receive every `Progress` (messages arrive in its ``message`` field).
        stream: Where to write; by default standard error, and standard output for ``"json"``.

    Returns:
        A sink that is ready for `update`.

    Raises:
        UsageError: The mode is none of these.
    """
    if mode is False:
        return SilentSink()
    if mode is True:
        target = sys.stderr if stream is None else stream
        redraws = target.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}
        return LiveSink(target) if redraws else PlainSink(target)
    if isinstance(mode, str):
        if mode == "json":
            return JsonSink(sys.stdout if stream is None else stream)
        raise UsageError(
            f"progress must be True, False, 'json' or a callable; got {mode!r}.{did_you_mean(mode, ['json'])}"
        )
    if callable(mode):
        return CallableSink(mode)
    raise UsageError(f"progress must be True, False, 'json' or a callable; got {type(mode).__name__}.")


@contextmanager
def stages_shown(mode: ProgressMode, name: str = "") -> Iterator[None]:
    """Show the stages of the work inside, for work before and after a session.

    Args:
        mode: As for `make_progress`.
        name: Of a stage that the work enters at once.
    """
    sink = make_progress(mode)
    try:
        with telling(sink.stage):
            if name:
                enter(name)
            yield
    finally:
        sink.close()


class SilentSink:
    """Shows nothing."""

    def stage(self, stage: Stage) -> None:
        """Nothing."""

    def update(self, p: Progress) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class CallableSink:
    """Hands every `Progress` to the user's function; a message comes with the latest known state."""

    def __init__(self, function: Callable[[Progress], object]) -> None:
        self._function = function
        self._last: Progress | None = None
        self._waiting: list[str] = []

    def update(self, p: Progress) -> None:
        """Call the function; messages that came before the first state travel with it."""
        self._last = p
        if self._waiting:
            p = dataclasses.replace(p, message="\n".join([*self._waiting, *filter(None, [p.message])]))
            self._waiting.clear()
        self._function(p)

    def message(self, text: str) -> None:
        """Call the function with the latest state and this message, or keep it until there is a state."""
        if self._last is None:
            self._waiting.append(text)
        else:
            self._function(dataclasses.replace(self._last, message=text))

    def stage(self, stage: Stage) -> None:
        """Nothing: the function was promised a `Progress`, and there is none yet or no longer."""

    def close(self) -> None:
        """Nothing: the function has seen everything, unless the study ended before its first state."""


class _LineSink:
    """Writes lines. A reader that goes away (``shoal tune ... | head``) silences the sink and not the study."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # ValueError: the stream has been closed
            self._stream = None


class JsonSink(_LineSink):
    """One JSON object per line: ``"event": "progress"`` for each state, ``"event": "message"`` for each text."""

    def update(self, p: Progress) -> None:
        """Write the state; non-finite numbers become strings, because JSON has none."""
        self._write_event("progress", dataclasses.asdict(p))

    def message(self, text: str) -> None:
        """Write the message."""
        self._write_event("message", {"text": text})

    def stage(self, stage: Stage) -> None:
        """Write the stage, as ``"event": "stage"``."""
        self._write_event("stage", {**dataclasses.asdict(stage), "remaining_s": stage.remaining_s})

    def close(self) -> None:
        """Nothing is ever held back."""

    def _write_event(self, event: str, data: dict[str, object]) -> None:
        self._write(json.dumps(json_ready({"event": event, **data}), allow_nan=False))


class PlainSink(_LineSink):
    """At most one line every `PLAIN_INTERVAL_S` seconds, and the last state: for log files and notebooks."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._next_s = self._next_stage_s = float("-inf")
        self._unshown: Progress | None = None

    def update(self, p: Progress) -> None:
        """Write a line when one is due, otherwise keep the state for later."""
        self._unshown = p
        now = self._clock()
        if now >= self._next_s:
            self._next_s = now + PLAIN_INTERVAL_S
            self._flush()

    def message(self, text: str) -> None:
        """Write the message now."""
        self._write(f"shoal: {text}")

    def stage(self, stage: Stage) -> None:
        """Write a line when one is due."""
        now = self._clock()
        if now >= self._next_stage_s:
            self._next_stage_s = now + PLAIN_INTERVAL_S
            self._write(f"shoal: {stage_line(stage)}")

    def close(self) -> None:
        """Write the last state if it has not been."""
        self._flush()

    def _flush(self) -> None:
        if self._unshown is not None:
            self._write(plain_line(self._unshown))
            self._unshown = None


class LiveSink:
    """A panel that redraws itself in place, at most once per `LIVE_INTERVAL_S` seconds."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live

        # No refresh thread: it would take the interpreter from the training loop to redraw what has not changed.
        self._live = Live(
            console=Console(file=stream), auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._clock = clock
        self._next_s = float("-inf")
        self._unshown: Progress | None = None
        self._open = True
        self._shown = False

    def update(self, p: Progress) -> None:
        """Redraw when a redraw is due, otherwise keep the state for later."""
        self._unshown = p
        now = self._clock()
        if now >= self._next_s:
            self._next_s = now + LIVE_INTERVAL_S
            self._flush()

    def message(self, text: str) -> None:
        """Print the message above the panel."""
        self._live.console.print(text, markup=False, highlight=False)

    def stage(self, stage: Stage) -> None:
        """Show the stage in the panel's place."""
        from rich.text import Text

        self._draw(Text(f"shoal: {stage_line(stage)}", style="dim"))

    def close(self) -> None:
        """Draw the last state and leave it standing."""
        if self._open:
            self._flush()
            self._live.transient = not self._shown  # a stage that is over is not left standing
            self._live.stop()
            self._open = False

    def _flush(self) -> None:
        if self._unshown is not None:
            self._draw(render_panel(self._unshown))
            self._unshown = None
            self._shown = True

    def _draw(self, what: Panel | Text) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(what, refresh=True)


def stage_line(stage: Stage) -> str:
    """A stage on one line.

    >>> stage_line(Stage("reading train", done=12000, total=60000, elapsed_s=3.0)), stage_line(Stage("scoring"))
    ('reading train: 12,000/60,000, 12 s left', 'scoring')
    """
    if stage.total is None:
        return stage.name
    left = "" if stage.remaining_s is None else f", {format_duration(stage.remaining_s)} left"
    return f"{stage.name}: {stage.done:,}/{stage.total:,}{left}"


def plain_line(p: Progress) -> str:
    """One line that says what the panel says."""
    done = p.finished + p.stopped + p.failed
    paused = f"{p.paused} paused, " if p.paused else ""
    parts = [
        f"shoal: {done}/{p.n_trials} trials",
        f"{p.running} running, {paused}{p.finished} finished, {p.stopped} stopped, {p.failed} failed",
    ]
    if p.best_value is not None:
        parts.append(
            f"best {p.metric} {format_number(p.best_value)} (trial {p.best_number}: {format_params(p.best_params)})"
        )
    parts.append(_lanes(p))
    parts.append(f"{_rate(p.epochs_per_s)} trial-epochs/s")
    parts.append(f"{format_duration(p.elapsed_s)} gone, {_left(p)}")
    if p.message:
        parts.append(p.message)
    return " | ".join(parts)


def render_panel(p: Progress) -> Panel:
    """The live panel for one state. Texts are never read as markup: parameter values are the user's."""
    from rich.box import ROUNDED
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = p.finished + p.stopped + p.failed
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(
        ProgressBar(
            total=max(p.n_trials, 1),
            completed=min(done, p.n_trials),
            style="bright_black",
            complete_style="blue",
            finished_style="green",
        ),
        Text(f"{done}/{p.n_trials} trials"),
    )
    states = Text("   ").join(
        Text.assemble((f"{count}", f"bold {style}" if count else "dim"), f" {name}")
        for name, count, style in (
            ("running", p.running, "cyan"),
            *((("paused", p.paused, "magenta"),) if p.paused else ()),
            ("finished", p.finished, "green"),
            ("stopped", p.stopped, "yellow"),
            ("failed", p.failed, "red"),
        )
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    facts.add_row("trials", states)
    if p.best_value is None:
        facts.add_row("best", Text("no trial has finished yet", style="dim"))
    else:
        facts.add_row(
            "best", Text.assemble((f"{p.metric} {format_number(p.best_value)}", "bold"), f"   trial {p.best_number}")
        )
        facts.add_row("", Text(format_params(p.best_params)))
    facts.add_row("speed", Text(f"{_rate(p.epochs_per_s)} trial-epochs/s   {p.epochs_done:,} done   {_lanes(p)}"))
    facts.add_row("time", Text(f"{format_duration(p.elapsed_s)} gone   {_left(p)}"))
    if p.message:
        facts.add_row("", Text(p.message, style="italic"))
    return Panel(
        Group(bar, facts), title=Text("shoal", style="bold"), title_align="left", box=ROUNDED, border_style="blue"
    )


def _lanes(p: Progress) -> str:
    share = f" ({100 * p.lanes_busy / p.lanes_total:.0f} %)" if p.lanes_total else ""
    fleets = "1 fleet" if p.fleets == 1 else f"{p.fleets} fleets"
    return f"{p.lanes_busy}/{p.lanes_total} lanes busy{share} in {fleets}"


def _left(p: Progress) -> str:
    return "time left unknown" if p.remaining_s is None else f"{format_duration(p.remaining_s)} left"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.2g}"
