"""What ends a piece of work that takes too long, and how to tell that there was not enough memory."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

# Signing, tracing and timing a signature take seconds; that is Shoal's time, and added to the user's.
SETUP_S = 60.0


class OutOfTime(Exception):
    """The user's code took longer than it may."""


@contextmanager
def at_most(limit_s: float | None) -> Iterator[None]:
    """Cut off what takes longer than so many seconds; None lets it take as long as it likes.

    The operating system's timer interrupts Python code between two of its instructions: a loop, a sleep, a download. A single call
    into compiled code is let end first. There is no timer outside a process's main thread, nor on Windows; then nothing is cut off.

    Raises:
        OutOfTime: From within, where the code was.
    """
    if limit_s is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def cut(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"it took longer than {limit_s:g} s (trial_timeout_s)")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, cut)
    outer_s, _ = signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if outer_s:  # a limit around this one goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, outer_s - (time.monotonic() - started)))


def for_want_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had: Python's, a device's, or that of torch's allocator on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)
