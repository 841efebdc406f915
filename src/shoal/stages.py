"""What takes time besides training: stages, told to whoever shows progress, with the time that is left.

Who works (reading a data set, scoring the winner) says how far it is; it does not know who listens, and with nobody
listening it costs a comparison per item. Nothing that a study decides depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

# Work that is done before this is not worth a word, and more words per second nobody reads.
PERIOD_S: Final = 0.25

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Stage:
    """How far a piece of work is: ``done`` of ``total`` items, or no count where there is none."""

    name: str
    done: int = 0
    total: int | None = None
    elapsed_s: float = 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds left if the rest goes as the first part did.

        >>> Stage("reading train", done=250, total=1000, elapsed_s=2.0).remaining_s
        6.0
        """
        if self.total is None or self.done == 0:
            return None
        return self.elapsed_s / self.done * (self.total - self.done)


Listener: TypeAlias = Callable[[Stage], None]
_listener: ContextVar[Listener | None] = ContextVar("_listener", default=None)


@contextmanager
def telling(listener: Listener) -> Iterator[None]:
    """Tell ``listener`` of the stages that the work inside goes through."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def enter(name: str) -> None:
    """Say that a piece of work begins whose length is not known."""
    listener = _listener.get()
    if listener is not None:
        listener(Stage(name))


def counted(
    items: Iterable[_Item], name: str, total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[_Item]:
    """The items, and word of how many of ``total`` have been taken, at most every quarter of a second."""
    listener = _listener.get()
    if listener is None:
        yield from items
        return
    began = clock()
    next_s = began + PERIOD_S
    for done, item in enumerate(items):
        now = clock()
        if now >= next_s:
            next_s = now + PERIOD_S
            listener(Stage(name, done, total, now - began))
        yield item
