"""A thread that commits what others have queued, in order, a batch at a time.

It knows nothing of databases: it is given a function that makes one batch durable, all of it or nothing. Thus a process
that is killed loses whole batches from the tail and never a part of one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from shoal.errors import StorageError

_Item = TypeVar("_Item")


class BatchWriter(Generic[_Item]):
    """Queues items and commits them from one background thread.

    Args:
        commit: makes a batch durable or raises; called from the thread only.
        period_s: how long a batch gathers before it is committed, unless `flush` is waiting.
    """

    def __init__(self, commit: Callable[[list[_Item]], None], *, period_s: float) -> None:
        self._commit = commit
        self._period_s = period_s
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._n_put = 0
        self._n_committed = 0
        self._n_wanted = 0  # a flush waits for this many
        self._stopping = False
        self._failure: BaseException | None = None
        # A daemon: a main thread that dies of an exception must not hang on us; the owner flushes at exit.
        self._thread = threading.Thread(target=self._run, name="shoal-storage", daemon=True)
        self._thread.start()

    def put(self, item: _Item) -> None:
        """Queue an item and return at once. Raises `StorageError` when an earlier batch failed."""
        with self._changed:
            self.check()
            self._queue.append(item)
            self._n_put += 1
            if len(self._queue) == 1:  # otherwise the thread is awake already and gathers
                self._changed.notify_all()

    def flush(self) -> None:
        """Return when everything queued before is committed. Raises `StorageError` when it cannot be."""
        with self._changed:
            target = self._n_put
            self._n_wanted = max(self._n_wanted, target)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._failure is not None or self._n_committed >= target)
            self.check()

    def stop(self) -> None:
        """Flush and end the thread. The thread has ended even when this raises `StorageError`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()
        self.check()

    def check(self) -> None:
        """Raise `StorageError` when an earlier batch failed."""
        if self._failure is not None:
            raise StorageError(
                f"{self._failure} What was queued since the last commit is not in the study."
            ) from self._failure

    def _run(self) -> None:
        while batch := self._gather():
            try:
                self._commit(batch)
            except BaseException as error:  # whatever it is, the owner must hear of it
                with self._changed:
                    self._failure = error
                    self._queue.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._n_committed += len(batch)
                self._changed.notify_all()

    def _gather(self) -> list[_Item]:
        """The next batch; empty when the writer stops and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            due_s = time.monotonic() + self._period_s
            while not self._stopping and self._n_wanted <= self._n_committed:
                if (left_s := due_s - time.monotonic()) <= 0:
                    break
                self._changed.wait(left_s)
            batch = list(self._queue)
            self._queue.clear()
            return batch
