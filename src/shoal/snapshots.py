"""Snapshots of a study that trains: what one is, when the next is due, and where its files lie.

A snapshot belongs to a round of the engine. Its files are synced before the study file is told of them, in the same queue as the
round's rows and after them, so a snapshot that the study file names is there, and so is every row up to it. Rows after it are of
rounds that a resumed study runs again.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast, final

from shoal import sealed_file
from shoal.errors import StorageError
from shoal.records import Json
from shoal.sealed_file import Seal

# A snapshot may take this share of the time that passes from one to the next, and they are at least so far apart.
SHARE: Final = 0.03
MIN_INTERVAL_S = 2.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a study stood between two rounds.

    Attributes:
        tick: Rounds that had been run.
        time_s: Seconds of work on the study.
        n_asked: Trials that had been asked; trials of higher numbers came later.
        n_events: Length of the journal.
        open: Trials that were running or paused -> their last recorded epoch. Other trials had ended, unless they are pending.
        paused: Those among them that were paused.
        bare: Those among the paused of which nothing but rows was kept.
        pending: Trials that were waiting to start from their first epoch.
        pool: What trials held (`shoal.lanes.workers.PoolSet.snapshot`), or None when nobody trained.
    """

    tick: int
    time_s: float
    n_asked: int
    n_events: int
    open: Mapping[int, int] = field(default_factory=dict)
    paused: Mapping[int, int] = field(default_factory=dict)
    bare: Sequence[int] = ()
    pending: Sequence[int] = ()
    pool: Mapping[str, Any] | None = None

    @property
    def n_pools(self) -> int:
        """Processes that trained; 0 when nobody did."""
        return 0 if self.pool is None else len(self.pool["files"])

    @property
    def seals(self) -> list[Seal]:
        """Its files."""
        return [] if self.pool is None else [Seal.of(seal) for seal in self.pool["files"]]

    def _check(self) -> None:
        """Raise ValueError unless its parts agree."""
        if not self.paused.items() <= self.open.items() or not set(self.bare) <= self.paused.keys():
            raise ValueError("paused trials that are not there")
        if set(self.pending) & self.open.keys():
            raise ValueError("trials that wait and train")
        if any(n >= self.n_asked for n in (*self.open, *self.pending)):
            raise ValueError("trials that nobody has asked for")

    def as_json(self) -> Json:
        """As the study file holds it."""
        open_: dict[str, Json] = {str(n): epoch for n, epoch in self.open.items()}
        paused: dict[str, Json] = {str(n): epoch for n, epoch in self.paused.items()}
        return {
            "tick": self.tick,
            "time_s": self.time_s,
            "n_asked": self.n_asked,
            "n_events": self.n_events,
            "open": open_,
            "paused": paused,
            "bare": list(self.bare),
            "pending": list(self.pending),
            "pool": None if self.pool is None else dict(self.pool),
        }

    @classmethod
    def of(cls, value: Any) -> Snapshot:
        """What ``as_json`` gave.

        Raises:
            StorageError: It is something else.
        """
        try:
            found = cls(
                _count(value["tick"]),
                _seconds(value["time_s"]),
                _count(value["n_asked"]),
                _count(value["n_events"]),
                {_count(int(n)): _count(epoch) for n, epoch in value["open"].items()},
                {_count(int(n)): _count(epoch) for n, epoch in value["paused"].items()},
                [_count(n) for n in value["bare"]],
                [_count(n) for n in value["pending"]],
                value["pool"],
            )
            _ = found.seals
            found._check()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise StorageError(f"the study file describes no snapshot ({error!r}): it is damaged.") from error
        return found


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _seconds(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= cast(float, value) < math.inf:
        raise ValueError(f"{value!r:.40} is no time")
    return float(cast(float, value))


def of_meta(meta: Mapping[str, Json]) -> list[Snapshot]:
    """The snapshots that a study file tells of, newest first.

    Raises:
        StorageError: One of them is damaged.
    """
    found = meta.get("snapshots")
    return [Snapshot.of(value) for value in found] if isinstance(found, list) else []


def whole(snapshots: Sequence[Snapshot], folder: Path) -> Snapshot | None:
    """The newest snapshot whose files are what was written; says aloud what is wrong with those that are not."""
    for snapshot in snapshots:
        try:
            for seal in snapshot.seals:
                sealed_file.check(folder, seal)
        except StorageError as error:
            warnings.warn(f"a snapshot cannot be used: {error}", RuntimeWarning, stacklevel=2)
            continue
        return snapshot
    return None


@final
class Snapshots:
    """Takes snapshots, no more often than they may cost, and keeps the two last.

    Args:
        folder: Where their files go.
        known: Those that there are, newest first.
        clock: Seconds, from wherever it likes.
    """

    def __init__(self, folder: Path, known: Sequence[Snapshot], clock: Callable[[], float] = time.perf_counter) -> None:
        self.folder, self.known, self._clock = folder, list(known), clock
        self._last, self._wait_s, self._failed = clock(), MIN_INTERVAL_S, False

    def due(self) -> bool:
        """Whether enough time has passed since the last one."""
        return self._clock() - self._last >= self._wait_s

    def hurry(self) -> None:
        """Take the next one after this round: something happened in it that would not happen alike again."""
        self._wait_s = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Round all that a snapshot makes a study wait for: the next one is due when that is a small share of the time."""
        started, before, self._failed = self._clock(), self._wait_s, False
        yield
        self._last = self._clock()
        self._wait_s = max(
            MIN_INTERVAL_S, (self._last - started) * (1 / SHARE - 1), 2 * max(before, MIN_INTERVAL_S) * self._failed
        )

    def take(self, snapshot: Snapshot, write: Callable[[Path, str], Mapping[str, Any]]) -> bool:
        """Take a snapshot, inside `counted`; False when its files could not be written, which is said aloud and holds nothing up.

        Args:
            snapshot: Without what trials hold.
            write: (folder, beginning of the files' names) -> ``Snapshot.pool``.
        """
        try:
            pool = write(self.folder, f"tick_{snapshot.tick:06d}")
        except StorageError as error:
            warnings.warn(
                f"no snapshot was taken, so after an interruption the study goes on from round "
                f"{self.known[0].tick if self.known else 0}: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            self._failed = True
            return False
        self.known = [replace(snapshot, pool=pool), *self.known[:1]]
        return True

    def as_json(self) -> list[Json]:
        """As the study file holds them."""
        return [snapshot.as_json() for snapshot in self.known]

    def tidy(self) -> None:
        """Remove the files that no snapshot names. The study file must have been told before of those that there are."""
        named = {seal.name for snapshot in self.known for seal in snapshot.seals}
        with contextlib.suppress(OSError):
            for (
                path
            ) in self.folder.iterdir():  # .tmp is what safetensors had begun to write when its process was killed
                if path.name not in named and path.name.startswith(("tick_", ".tmp")):
                    path.unlink()
            if not named:
                self.folder.rmdir()

    def end(self) -> None:
        """Forget all of them: the study has come to its end."""
        self.known = []
