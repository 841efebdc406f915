"""A process that owns a study and fills it, trial after trial, until it is killed: forked, so that it need import nothing."""

from __future__ import annotations

import os
import signal
from io import TextIOWrapper

from shoal.records import EpochRow, Event, TrialResult, TrialSpec, TrialState
from shoal.storage import StudyStore

EPOCHS = 20


class OwnerProcess:
    """Owns the study "digits" from the return of the constructor to ``kill``.

    Args:
        url: Where the study is stored.
    """

    def __init__(self, url: str) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(read)
                _own(url, os.fdopen(write, "w"))
            finally:
                os._exit(1)
        os.close(write)
        self._said = os.fdopen(read)
        assert self._said.readline() == "open\n"

    def kill(self) -> list[int]:
        """End it at once; the trials after which a flush had returned."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        with self._said:
            return [int(line) for line in self._said if line.endswith("\n")]


def _own(url: str, out: TextIOWrapper) -> None:
    store = StudyStore.open(url, name="digits", direction="maximize")
    first = len(store.load().trials)
    print("open", file=out, flush=True)
    for n in range(first, 1_000_000):
        store.asked([TrialSpec(n, n, {}, {})])
        store.recorded([EpochRow(n, e, 0.5, n + e / 100, {"loss": 0.5}) for e in range(1, EPOCHS + 1)])
        store.happened([Event(n, "left", trial=n)])
        store.ended([TrialResult(n, TrialState.FINISHED, n + 0.2, EPOCHS)])
        if n % 7 == 0:
            store.flush()
            print(n, file=out, flush=True)
