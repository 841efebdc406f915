"""The owner's side of a study: queue now, commit soon, and know what is committed."""

from __future__ import annotations

import atexit
import dataclasses
import datetime
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shoal.errors import StorageError
from shoal.records import (
    Direction,
    EpochRow,
    Event,
    Json,
    Outcome,
    ParamValue,
    StudyRecord,
    TrialResult,
    TrialSpec,
    TrialState,
)
from shoal.storage import _codec
from shoal.storage._place import FilePlace, Place, check_name, file_beside, place_of
from shoal.storage._writer import BatchWriter

# SQLAlchemy and Optuna take 0.4 s to import: only opening a study needs them, `import shoal` does not.
if TYPE_CHECKING:
    import sqlalchemy as sa
    from optuna.distributions import BaseDistribution

    from shoal.storage._database import Owner
    from shoal.storage._rows import Operation

_COMMIT_PERIOD_S = 0.3
_MAX_PARAM_NAME = 512  # what Optuna's tables hold


def load_study(url: str | Path, name: str | None = None) -> StudyRecord:
    """Read a study without owning it, also while its owner is writing: what is committed at this moment.

    Args:
        url: ``sqlite:///study.db``, a path that ends in .db, .sqlite or .sqlite3, or
            ``postgresql://user@host/database``.
        name: which study of the place; None is the only one.

    Returns:
        All trials, epochs and events. A running trial has no value; its ``epoch`` is the last one that was recorded.

    Raises:
        StorageError: no such place or study, several studies and no name, or what is there is not a study of Shoal's.
    """
    from shoal.storage._load import load

    return load(place_of(url), name)


def load_meta(url: str | Path, name: str | None = None) -> tuple[str, dict[str, Json]]:
    """A study's name and ``StudyRecord.meta``, without reading its trials; otherwise as `load_study`."""
    from shoal.storage import _load

    return _load.load_meta(place_of(url), name)


def study_stamp(url: str | Path) -> object:
    """Something that differs when what is stored may differ: cheaper to get than the study."""
    from shoal.storage._database import database_of, whole

    return whole(database_of(place_of(url)).stamp)


class StudyStore:
    """The one owner of a study in a file or database; made by `open`, used as a context manager or closed.

    Methods that take data queue it and return at once; a background thread commits what has gathered every 0.3 s, in
    the order of the calls, one transaction per batch. *Acknowledged* means that `flush` has returned: then the rows
    survive a kill and a power cut (``synchronous=FULL``). On the development machine (two EPYC cores, virtual disk) a
    small commit takes 0.4 ms (2.5 ms at worst), once per batch, and a trial with 20 epochs costs 1 ms in all.
    A batch that cannot be written is reported by the next call, and by every call after it. While a connection to a
    server is lost, batches wait in memory and are written when it is back.
    """

    def __init__(
        self, place: Place, name: str, owner: Owner, study_id: int, trial_ids: list[int], n_objectives: int = 1
    ) -> None:
        """Use `open`: this takes over what is owned already."""
        from shoal.storage import _rows

        self.place = place
        self.name = name
        self._rows = _rows
        self._owner = owner
        self._pid = os.getpid()
        self._closed = False
        self._n_trials = len(trial_ids)
        self._n_events = _next_seq(owner.connection, study_id)
        rows = _rows.RowWriter(owner, study_id, trial_ids, several=n_objectives > 1)
        self._writer: BatchWriter[Operation] = BatchWriter(rows.commit, period_s=_COMMIT_PERIOD_S)
        atexit.register(self.close)  # an exception that ends the program must not cost the last 0.3 s

    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        name: str,
        direction: Direction | None = None,
        directions: Sequence[Direction] = (),
    ) -> StudyStore:
        """Create a study or go on with one, and become its owner.

        Args:
            url: ``sqlite:///study.db``, a path that ends in .db, .sqlite or .sqlite3, or
                ``postgresql://user@host/database``.
            name: of the study. A file may hold several, but has one owner at a time; in a database each has its own.
            direction: ``"minimize"`` or ``"maximize"``; must be the study's own when it exists.
            directions: in its place, one for each of several objectives.

        Raises:
            StudyLockedError: another process, or another store of this process, owns the file or the study.
            StorageError: the place cannot be written, or what is there is not ours to continue.
            UsageError: what a database of this kind needs is not installed.
        """
        from shoal.storage._database import whole

        check_name(name)
        ways = tuple(directions) or (direction or "minimize",)
        place = place_of(url)
        return whole(lambda: cls._open(place, name, ways))

    @classmethod
    def _open(cls, place: Place, name: str, ways: tuple[Direction, ...]) -> StudyStore:
        from shoal.storage import _database, _open
        from shoal.storage._load import sound

        database = _database.database_of(place)
        owner = database.own(name)
        try:
            with sound(place, "its list of trials"), owner.opening() as connection:
                study_id, trial_ids = _open.open_study(connection, database, name, ways)
            owner.settle(study_id)
            with sound(place, "its list of events"), database.explained("opening"):
                return cls(place, name, owner, study_id, trial_ids, len(ways))
        except BaseException:
            owner.release()
            raise

    @property
    def path(self) -> Path | None:
        """The study file; None when the study lies in a server's database."""
        return self.place.path if isinstance(self.place, FilePlace) else None

    def beside(self, suffix: str) -> Path:
        """Where a file or folder of this study lies: beside the study file, or for a database in the current folder."""
        return file_beside(self.place, self.name, suffix)

    def asked(self, specs: Sequence[TrialSpec]) -> None:
        """Add trials that are about to run. Numbers count up from 0 without gaps, as Optuna's do.

        Raises:
            StorageError: a number that exists or is not the next, or a parameter that its distribution does not hold.
        """
        self._check_usable()
        rows = []
        start = _now()
        for number, spec in enumerate(specs, start=self._n_trials):
            if spec.number < number:
                raise StorageError(
                    f"trial {spec.number} exists already in the study {self.name!r}: ask for {number} next."
                )
            if spec.number > number:
                raise StorageError(
                    f"trial {spec.number} leaves a gap in the study {self.name!r}: ask for {number} next."
                )
            data = {"params": spec.params, "distributions": spec.distributions}
            text = _codec.encode(data, f"trial {number}: params")
            rows.append(self._rows.AskedRow(number, str(int(spec.seed)), text, _params(spec), start))
        self._put("asked", rows)
        self._n_trials += len(rows)

    def recorded(self, rows: Sequence[EpochRow]) -> None:
        """Add epochs of trials that were asked; an epoch that is there already is replaced."""
        self._check_usable()
        self._check_known(row.trial for row in rows)
        data = [
            (
                int(row.trial),
                int(row.epoch),
                float(row.train_loss),
                float(row.value),
                _codec.encode(_measured(row), f"trial {row.trial}, epoch {row.epoch}: metrics"),
                float(row.time_s),
            )
            for row in rows
        ]
        self._put("recorded", data)
        moved = [
            {
                "trial": int(row.trial),
                "epoch": int(row.epoch),
                "moved": _codec.encode(row.trajectories, f"trial {row.trial}, epoch {row.epoch}: trajectories"),
            }
            for row in rows
            if row.trajectories
        ]
        self._put("moved", moved)

    def ended(self, results: Sequence[TrialResult]) -> None:
        """Say how trials ended; may be said again of a trial that was continued, and then replaces what was said.

        For Optuna, FINISHED is COMPLETE (FAIL when the value is NaN, as Optuna itself has it), FAILED is FAIL, and
        STOPPED is PRUNED with its value, or with its last finite one when that is not finite (with several objectives,
        without any).
        """
        self._check_usable()
        self._check_known(result.number for result in results)
        for result in results:
            if result.state is TrialState.RUNNING:
                raise StorageError(
                    f"trial {result.number} cannot end in the state 'running': call restart to run it again."
                )
            if result.state is TrialState.FINISHED and result.value is None:
                raise StorageError(f"trial {result.number} finished without a value: give one, or end it as failed.")
        end = _now()
        self._put("ended", [self._rows.EndedRow(_plain(result), end) for result in results])

    def restart(self, numbers: Sequence[int]) -> None:
        """Make trials as if they had only been asked: running, without epochs and without a value."""
        self._check_usable()
        self._check_known(numbers)
        self._put("restart", [int(number) for number in numbers])

    def happened(self, events: Sequence[Event]) -> None:
        """Append events to the journal, in this order."""
        self._check_usable()
        data = [
            {
                "seq": seq,
                "tick": int(event.tick),
                "kind": event.kind,
                "trial": _int(event.trial),
                "fleet": _int(event.fleet),
                "lane": _int(event.lane),
                "data": _codec.encode(event.data, f"event {event.kind!r}: data"),
                "time_s": float(event.time_s),
            }
            for seq, event in enumerate(events, start=self._n_events)
        ]
        self._put("happened", data)
        self._n_events += len(data)

    @property
    def n_trials(self) -> int:
        """Trials that were asked so far, also before this store was opened."""
        return self._n_trials

    def rewind(self, n_events: int) -> None:
        """Go back in the journal: the next event replaces the one after the first ``n_events``. Until then that stays."""
        self._check_usable()
        if not 0 <= n_events <= self._n_events:
            raise StorageError(f"the journal of {self.name!r} has {self._n_events} events, not {n_events}.")
        self._n_events = n_events

    def set_meta(self, values: Mapping[str, Json]) -> None:
        """Set facts about the study; others stay. A key must not begin with an underscore."""
        self._check_usable()
        for key in values:
            if key.startswith("_"):
                raise StorageError(f"meta {key!r}: keys that begin with an underscore are Shoal's own, choose another.")
        self._put(
            "set_meta", [{"key": key, "json": _codec.encode(item, f"meta {key!r}")} for key, item in values.items()]
        )

    def flush(self) -> None:
        """Return when everything queued before is committed. Raises `StorageError` when it could not be written."""
        self._check_usable()
        self._writer.flush()

    def load(self) -> StudyRecord:
        """The study as it is with everything queued before; see `load_study`."""
        from shoal.storage._load import load

        self.flush()
        return load(self.place, self.name)

    def close(self) -> None:
        """Flush and give the ownership back, which happens even when the flush fails. A second call does nothing."""
        if self._closed or os.getpid() != self._pid:  # in a forked child there is no thread, and nothing is ours
            return
        self._closed = True
        atexit.unregister(self.close)
        try:
            self._writer.stop()
        finally:
            self._owner.release()

    def __enter__(self) -> StudyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, kind: str, rows: Sequence[Any]) -> None:
        if rows:
            self._writer.put((kind, rows))

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise StorageError(f"the study {self.name!r} was opened by process {self._pid}: write to it from there.")
        if self._closed:
            raise StorageError(f"the study {self.name!r} is closed: open it again to write to it.")
        self._writer.check()

    def _check_known(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if not 0 <= number < self._n_trials:
                raise StorageError(f"trial {number} is not in the study {self.name!r}: it must be asked first.")


def _measured(row: EpochRow) -> Mapping[str, Json]:
    """An epoch's metrics, and under names that no metric has: what there is of its lanes, and how its trial goes on."""
    out = dict[str, Json](row.metrics)
    if row.lanes:
        out[_codec.LANES] = {"values": list(row.lanes), "standard_error": row.standard_error}
    if (c := row.copied) is not None:
        out[_codec.COPIED] = {"source": c.source, "params": dict(c.params), "origin": str(c.origin)}
    return out


def _next_seq(connection: sa.Connection, study_id: int) -> int:
    import sqlalchemy as sa

    from shoal.storage._tables import EVENT

    query = sa.select(sa.func.max(EVENT.c.seq)).where(EVENT.c.study_id == study_id)
    last: int | None = connection.scalar(query)
    connection.rollback()  # of what SQLAlchemy began in order to read
    return 0 if last is None else last + 1


def _now() -> datetime.datetime:
    # Optuna's columns hold naive UTC.
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def _int(number: int | None) -> int | None:
    # NumPy's integers pass for int everywhere but in SQLite, which would refuse the batch.
    return None if number is None else int(number)


def _plain(result: TrialResult) -> TrialResult:
    return dataclasses.replace(
        result,
        number=int(result.number),
        value=None if result.value is None else float(result.value),
        epoch=int(result.epoch),
        reason=_storable(result.reason),
        time_s=float(result.time_s),
        outcome=Outcome(
            tuple(map(float, result.outcome.values)),
            {key: float(value) for key, value in result.outcome.constraints.items()},
            {key: float(value) for key, value in result.outcome.measured.items()},
        ),
    )


def _storable(text: str) -> str:
    """The text of an exception may hold undecodable bytes of a file name, or a zero byte: no database takes them."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


@functools.lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    from optuna.distributions import json_to_distribution

    return json_to_distribution(text)


def _params(spec: TrialSpec) -> tuple[tuple[str, float, str], ...]:
    if set(spec.params) != set(spec.distributions):
        raise StorageError(
            f"trial {spec.number}: every parameter needs a distribution and the other way round, got parameters "
            f"{sorted(spec.params)} and distributions {sorted(spec.distributions)}."
        )
    rows = []
    for name, value in spec.params.items():
        text = spec.distributions[name]
        if len(name) > _MAX_PARAM_NAME or name != _storable(name):
            raise StorageError(
                f"trial {spec.number}: the parameter name {name!r:.80} cannot be stored: use up to {_MAX_PARAM_NAME} "
                "ordinary characters."
            )
        try:
            rows.append((name, _internal(_distribution(text), value), text))
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"trial {spec.number}: parameter {name!r} does not fit its distribution: {error}"
            ) from error
    return tuple(rows)


def _internal(distribution: BaseDistribution, value: ParamValue) -> float:
    # Optuna takes the first choice that is *equal*: True for 1, 1 for 1.0. A study file must tell them apart.
    for index, choice in enumerate(getattr(distribution, "choices", ())):
        if type(choice) is type(value) and choice == value:
            return float(index)
    return float(distribution.to_internal_repr(value))
