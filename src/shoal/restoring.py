"""Opening a study file and going on from it: what is kept, what starts again, and what must not be mixed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from shoal.asking import Asker
from shoal.errors import StorageError, UsageError
from shoal.history import History
from shoal.records import Direction, EpochRow, Json, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.schedulers import Observation, Scheduler
from shoal.weights import WeightStore, weights_file

if TYPE_CHECKING:
    from shoal.storage import StudyStore


@contextmanager
def opened(
    storage: str | Path | None, direction: Direction, name: str | None = None
) -> Iterator[tuple[StudyStore | None, StudyRecord | None]]:
    """The stored study, owned until the context ends, and what it holds; (None, None) without one."""
    if storage is None:
        yield None, None
        return
    from shoal.storage import DEFAULT_NAME, StudyStore

    with StudyStore.open(storage, name=DEFAULT_NAME if name is None else name, direction=direction) as store:
        record = store.load()
        yield store, (record if record.trials or record.meta else None)


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a session starts.

    Attributes:
        history: Of the study so far.
        weights: Those kept of it.
        pending: Trials to run again from their first epoch.
        paused: Trials that are paused, with their rows.
    """

    history: History
    weights: WeightStore
    pending: list[TrialSpec]
    paused: dict[int, list[EpochRow]]


def restore(
    previous: StudyRecord | None,
    facts: Mapping[str, Json],
    *,
    asker: Asker,
    store: StudyStore | None,
    direction: Direction,
    max_epochs: int,
    pauses: bool,
) -> Restored:
    """Take a study up where its file left it.

    Args:
        previous: What the study file holds, or None for a new study.
        facts: This session's entries of ``StudyRecord.meta``; they win over earlier ones.
        asker: Shown the trials of ``previous``.
        store: The study file, if any. Trials that run again are reopened in it.
        max_epochs: Epochs of a full trial; more than before means that finished trials run again.
        pauses: Whether the scheduler pauses trials. If not, or if it is another one than before, paused trials run again.
    """
    folder = None if store is None else store.beside(".weights")
    name = "shoal" if store is None else store.name
    again: list[int] = []
    paused: dict[int, list[EpochRow]] = {}
    if previous is None:
        history = History(name, direction, dict(facts))
    else:
        longer = max_epochs > _max_epochs(previous, max_epochs)
        if pauses and not longer and previous.meta.get("scheduler") == facts["scheduler"]:
            paused = _paused(previous)
        states = {TrialState.RUNNING, TrialState.FINISHED} if longer else {TrialState.RUNNING}
        again = [t.spec.number for t in previous.trials if t.state in states and t.spec.number not in paused]
        trials = tuple(_reopened(t) if t.spec.number in again else t for t in previous.trials)
        record = StudyRecord(name, direction, trials, previous.events, previous.meta)
        # A winner that trains again is another one: what was measured on it no longer holds.
        stale = ("winner", "test", "test_trial") if longer else ()
        history = History.of(record, {**{k: v for k, v in previous.meta.items() if k not in stale}, **facts})
        asker.restore([_as_seen(t) if t.spec.number in paused else t for t in trials])
        if store is not None and again:
            store.restart(again)
    kept = {} if previous is None or folder is None else _weights_kept(previous, folder, again)
    if store is not None:
        store.set_meta(history.meta)
    weights = WeightStore(folder, history.sign, kept)
    return Restored(history, weights, [history.specs[n] for n in sorted(again)], paused)


def _max_epochs(previous: StudyRecord, default: int) -> int:
    before = previous.meta.get("options")
    return cast(int, before.get("max_epochs", default)) if isinstance(before, dict) else default


def _paused(previous: StudyRecord) -> dict[int, list[EpochRow]]:
    """Trials whose last event of the kind is a pause and that have not ended, with their rows."""
    last = {e.trial: e.kind for e in previous.events if e.kind in ("paused", "promoted")}
    return {
        t.spec.number: list(t.rows)
        for t in previous.trials
        if t.state is TrialState.RUNNING and last.get(t.spec.number) == "paused" and t.rows
    }


def _as_seen(trial: TrialRecord) -> TrialRecord:
    """A paused trial as samplers see it: stopped where it was paused."""
    row = trial.rows[-1]
    return replace(trial, state=TrialState.STOPPED, value=row.value, epoch=row.epoch)


def _reopened(trial: TrialRecord) -> TrialRecord:
    return TrialRecord(trial.spec, TrialState.RUNNING, None, 0, "", ())


def _weights_kept(previous: StudyRecord, folder: Path, again: Sequence[int]) -> dict[int, tuple[float, str]]:
    """Trial number -> (value, file). The folder and not the list in the study file: a study that was killed had no time to
    bring that up to date."""
    kept: dict[int, tuple[float, str]] = {}
    for t in previous.trials:
        path = weights_file(folder, t.spec.number)
        if t.spec.number in again:
            path.unlink(missing_ok=True)
        elif t.state is TrialState.FINISHED and t.value is not None and path.exists():
            kept[t.spec.number] = (t.value, str(path))
    return kept


def show(scheduler: Scheduler, history: History) -> None:
    """Show a scheduler what earlier sessions saw, round by round."""
    rounds: dict[float, list[Observation]] = {}
    for row in (row for rows in history.rows.values() for row in rows):
        if row.value == row.value:  # all rows of a round bear the same time
            rounds.setdefault(row.time_s, []).append(Observation(row.trial, row.epoch, history.sign * row.value))
    for _, seen in sorted(rounds.items()):
        scheduler.observe(seen)


def warm_trials(earlier: StudyRecord, direction: Direction, metric: str) -> list[TrialRecord]:
    """The trials of an earlier study that a sampler can learn from.

    Raises:
        UsageError: It was judged by another metric or in the other direction.
    """
    judged = earlier.meta.get("metric", metric)
    if judged != metric or earlier.direction != direction:
        raise UsageError(
            f"warm_start needs a study that was judged as this one is: it had {judged!r} to {earlier.direction}, this one has "
            f"{metric!r} to {direction}."
        )
    ended = (TrialState.FINISHED, TrialState.STOPPED)
    return [t for t in earlier.trials if t.state in ended and t.value is not None]


def check_same(previous: StudyRecord, facts: Mapping[str, Json]) -> None:
    """Refuse to mix trials of other code, data or metric into a study."""
    advice = "Use the file that the study was started with, or another storage."
    if previous.meta.get("fingerprint") not in (None, facts["fingerprint"]):
        raise StorageError(
            f"study {previous.name!r} belongs to other code: define() has changed since it was started (of a data file: its "
            f"target, its other options, or its rows). {advice}"
        )
    if previous.meta.get("data") not in (None, facts["data"]):
        raise StorageError(f"study {previous.name!r} was started with other data (its fingerprint differs). {advice}")
    if previous.meta.get("metric") not in (None, facts["metric"]):
        raise StorageError(
            f"study {previous.name!r} is judged by {previous.meta['metric']!r}, not by {facts['metric']!r}. {advice}"
        )
    if _digest(previous.meta.get("folds")) != _digest(facts.get("folds")):
        raise StorageError(
            f"study {previous.name!r} was started with other folds or seeds (does the splitter have a random_state?). {advice}"
        )
    before, now = previous.meta.get("options"), facts["options"]
    if isinstance(before, dict) and isinstance(now, dict):
        for key in ("seed", "value"):
            if before.get(key) != now.get(key):
                raise StorageError(
                    f"study {previous.name!r} has {key}={before.get(key)!r}, not {now.get(key)!r}. {advice}"
                )
        if cast(int, now["max_epochs"]) < cast(int, before.get("max_epochs", 0)):
            raise UsageError(
                f"study {previous.name!r} trains up to {before['max_epochs']} epochs; it cannot go on with fewer."
            )


def _digest(folds: Json) -> tuple[Json, ...]:
    """What two studies' ``meta["folds"]`` must agree in."""
    return (folds.get("digest"), folds.get("seeds")) if isinstance(folds, dict) else ()
